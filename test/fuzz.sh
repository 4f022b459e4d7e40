#!/usr/bin/env bash
# libFuzzer on every parser of hostile input, each for $1 seconds, seeded from the test files. Fails on the first crash.
set -eu
seconds=${1:-60}
command -v clang >/dev/null || { echo "error: no clang; make fuzz; install clang"; exit 1; }
mkdir -p build/fuzz
printf '#define TOKENIZER_IMPLEMENTATION\n#define LORA_IMPLEMENTATION\n#include "lora.h"\n' >build/fuzz/fuzz.c
for entry in JSON TOKENIZER CHAT SAFETENSORS CONFIG CSV; do
    corpus=build/fuzz/$entry
    mkdir -p "$corpus"
    case $entry in
        JSON|CONFIG) cp -n test/golden/*/config.json "$corpus" 2>/dev/null || true; for f in test/golden/*/config.json; do cp "$f" "$corpus/$(echo "$f" | tr / _)"; done ;;
        SAFETENSORS) for f in test/golden/*/adapter/adapter_model.safetensors; do cp "$f" "$corpus/$(echo "$f" | tr / _)"; done ;;
        TOKENIZER) find test/golden/tokenizer data/base -name tokenizer.json | while read -r f; do cp "$f" "$corpus/$(echo "$f" | tr / _)"; done ;;
        CHAT) chat='\2Be kind.\377\0Hi\377\1<think>why</think>Hello'      # what the bytes mean is said in fuzz_chat
              for template in $(seq 1 21); do for options in 0 1 20 22 60; do
                  printf "\\$(printf %o "$template")\\$options$chat" >"$corpus/$template-$options"; done; done ;;
        ROWS)                               # two bytes of options, one for the file's name, then rows
            head -n 3 data/hotel/test.jsonl | sed '1s/^/AB@/' >"$corpus/chats"
            printf 'AB@{"instruction": "i", "history": [["q", "r"]], "output": "o"}\n{"text": NaN}\n' >"$corpus/alpaca"
            printf 'AB@{"input_ids": [5, 6], "labels": [-100, 6]}\n{"prompt": "p", "completion": "c"}\n' >"$corpus/ids"
            printf 'ABBprompt;completion\n"a";b\n' >"$corpus/csv"
            cat >"$corpus/calls" <<'END'
AA@{"conversations": [{"from": "function_call", "value": "{\"name\": \"w\", \"arguments\": {}}"}], "tools": "[{}]"}
{"messages": [{"role": "assistant", "content": [{"type": "text", "text": "a"}], "tool_calls": [{"name": "f"}]}]}
END
            ;;
        CSV) printf 'prompt,completion\n"a ""quoted"" one","two\nlines"\nc,d\n' >"$corpus/seed" ;;
    esac
    clang -std=gnu11 -O1 -g -march=native -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -DFUZZ_$entry -I. -isystem .stb build/fuzz/fuzz.c -o "build/fuzz/fuzz_$entry" -lm
    echo "fuzzing $entry for $seconds s"
    "build/fuzz/fuzz_$entry" -max_total_time="$seconds" -max_len=65536 -verbosity=0 -artifact_prefix=build/fuzz/ "$corpus"
done
echo "no crash"
