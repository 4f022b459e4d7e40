#!/usr/bin/env bash
# libFuzzer on every parser of hostile input, each for $1 seconds, seeded from the test files. Fails on the first crash.
# Those named behind it alone: bash test/fuzz.sh 90 ADAPTER TOKENS.
set -eu
seconds=${1:-60}
shift || true
command -v clang >/dev/null || { echo "error: no clang; make fuzz; install clang"; exit 1; }
mkdir -p build/fuzz
printf '[alignment|bounds]\nsrc:*/stb_ds.h\n' >build/fuzz/ignored   # its arena's char[8] is as long as allocated
all="JSON TOKENIZER CHAT JINJA SAFETENSORS CONFIG ADAPTER CHECKPOINT TOKENS CSV ROWS"
for entry in ${*:-$all}; do
    corpus=build/fuzz/$entry
    mkdir -p "$corpus"
    case $entry in
        JSON|CONFIG) for f in test/golden/*/config.json test/golden/*/generation_config.json; do
                         cp "$f" "$corpus/$(echo "$f" | tr / _)"; done ;;
        ADAPTER) for f in test/golden/*/adapter*/; do
                     { cat "$f/adapter_config.json"; printf '\0'; cat "$f/adapter_model.safetensors"; } \
                         >"$corpus/$(echo "$f" | tr / _)"; done
                 own=test/golden/llama/adapter                  # PiSSA's and OLoRA's above belong to other models
                 for init in pissa OLoRA; do
                     { sed "s/\(\"init_lora_weights\": \)[a-z]*/\1\"$init\"/" $own/adapter_config.json
                       printf '\0'; cat $own/adapter_model.safetensors; } >"$corpus/$init"; done ;;
        CHECKPOINT) cat >"$corpus/seed" <<'END'
  "format": 2, "files_changed": 0, "padded": 96,
  "step": 3, "adam_step": 3, "scale_age": 2, "num_tokens": 96, "window_steps": 1, "window_micro": 1, "skipped": 0,
  "loss_scale": 1, "epoch": 0.5, "train_loss": 3.5, "training": 0.25, "window_seconds": 0.0625,
  "first_eval_loss": null, "no_eval": 0, "last_eval_loss": 2.5,
  "identity": {"model": "1", "lora_r": 3, "seed": 42},
  "window": [0, 0, 0, 32, 0, 3.5, 0, 0, 0.5, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0],
  "history": [
    [0, 2, 9, 64, 0.25, 3.5, 1.5, 2e-4, 0.5, 2, 0, 0, 0, 0, 0, 1000, 0.25, 1, 0.5],
    [1, 3, 9, 96, 0.5, 2.5, 0, 0, 0.5, 2, 2.5, 0.5, 2, 12, 13, 0, 0.5, 1, 0]]
}
END
            { cat "$corpus/seed"; printf '\0'; cat test/golden/llama/adapter/adapter_model.safetensors; } \
                >"$corpus/moments" ;;
        TOKENS) head -c 4096 /dev/zero >"$corpus/zeros"             # one example of one token
                printf 'LORATOK3\0\0\0\0\0\0\0\0\3\0\0\0\0\0\0\0\11' | cat - "$corpus/zeros" >"$corpus/four" ;;
        SAFETENSORS) for f in test/golden/*/adapter/adapter_model.safetensors; do cp "$f" "$corpus/$(echo "$f" | tr / _)"; done ;;
        TOKENIZER) find test/golden/tokenizer data/base -name tokenizer.json | while read -r f; do cp "$f" "$corpus/$(echo "$f" | tr / _)"; done ;;
        CHAT) chat='\2Be kind.\377\0Hi\377\1<think>why</think>Hello'      # what the bytes mean is said in fuzz_chat
              for template in $(seq 1 21); do for options in 0 1 20 22 60; do
                  printf "\\$(printf %o "$template")\\$options$chat" >"$corpus/$template-$options"; done; done ;;
        JINJA) n=0; grep -o '"template": "\([^"\\]\|\\.\)*"' test/golden/chat_templates.jsonl | while read -r row; do
                   n=$((n + 1)); text=${row#*: \"}; printf '%b' "${text%\"}" >"$corpus/own$n"; done ;;
        ROWS)                               # two bytes of options, one for the file's name, then rows
            head -n 3 data/hotel/test.jsonl | sed '1s/^/AB@/' >"$corpus/chats"
            printf 'AB@{"instruction": "i", "history": [["q", "r"]], "output": "o"}\n{"text": NaN}\n' >"$corpus/alpaca"
            printf 'AB@{"input_ids": [5, 6], "labels": [-100, 6]}\n{"prompt": "p", "completion": "c"}\n' >"$corpus/ids"
            printf 'ABBprompt;completion\n"a";b\n' >"$corpus/csv"
            # D to H: a label beside the row, or a pair
            printf 'ABD{"text": "a", "label": "no"}\n{"text": "b", "label": "yes"}\n' >"$corpus/classes"
            printf 'ABD{"text": "a", "label": [0, 1]}\n{"text": "b", "labels": [true, false]}\n' >"$corpus/flags"
            printf 'ABD{"text": "a", "label": ["x", "y"]}\n{"prompt": "b", "label": []}\n' >"$corpus/names"
            printf 'ABFtext,label\na,0.5\nb,1\n' >"$corpus/numbers"
            printf 'ABH{"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1}\n' >"$corpus/pairs"
            cat >"$corpus/calls" <<'END'
AA@{"conversations": [{"from": "function_call", "value": "{\"name\": \"w\", \"arguments\": {}}"}], "tools": "[{}]"}
{"messages": [{"role": "assistant", "content": [{"type": "text", "text": "a"}], "tool_calls": [{"name": "f"}]}]}
END
            ;;
        CSV) printf 'prompt,completion\n"a ""quoted"" one","two\nlines"\nc,d\n' >"$corpus/seed" ;;
    esac
    header=$(grep -l "^#.*if.*FUZZ_$entry\b" tokenizer.h data/chat.h data/dataset.h lora.h)      # the entry's own, and what it is above
    clang -std=gnu11 -O1 -g -march=native -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
        -fsanitize-ignorelist=build/fuzz/ignored -DFUZZ_$entry -DTOKENIZER_IMPLEMENTATION -DDATASET_IMPLEMENTATION \
        -DLORA_IMPLEMENTATION -I. -isystem .stb -include "$header" -x c /dev/null -o "build/fuzz/fuzz_$entry" -lm
    echo "fuzzing $entry for $seconds s"
    # close_fd_mask: the warnings of a million damaged files
    "build/fuzz/fuzz_$entry" -max_total_time="$seconds" -max_len=65536 -verbosity=0 -close_fd_mask=2 \
        -artifact_prefix=build/fuzz/ "$corpus"
done
echo "no crash"
