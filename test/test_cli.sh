#!/usr/bin/env bash
# The command line as a user meets it: bad input gives one line "error: what; where; what to do", exit status 1 (2 for usage), and an earlier output survives.
# bash test/test_cli.sh ./train_lora      (from the repository root)
set -u
program=$(realpath "$1")
work=$(mktemp -d /tmp/train_lora_cli_XXXXXX)
trap 'umount "$work/small" 2>/dev/null; rm -rf "$work"' EXIT
passed=0 failed=0
verdict() { if [ "$1" = 0 ]; then echo "ok    $2"; passed=$((passed + 1)); else echo "FAIL  $2"; failed=$((failed + 1)); fi; }
refuse() {      # name status pattern arguments...: exactly one line on stderr, with the pattern in it
    local name=$1 status=$2 pattern=$3 got
    shift 3
    "$program" "$@" >"$work/out.txt" 2>"$work/err.txt" </dev/null
    got=$?
    sed -i '/^\.\.\. /d' "$work/err.txt"                 # what a slow machine says while it loads
    if [ $got = "$status" ] && [ "$(wc -l <"$work/err.txt")" = 1 ] && grep -q '^error: .*;.*;' "$work/err.txt" && grep -q -- "$pattern" "$work/err.txt"; then verdict 0 "$name: $(cut -c1-150 "$work/err.txt")"
    else verdict 1 "$name: exit status $got, expected $status and '$pattern': $(head -c 300 "$work/err.txt")"; fi
}
base="--model data/base --data data/hotel/test.jsonl --output $work/o --max-steps 2"

refuse "unknown option" 2 "did you mean --learning-rate" --lerning-rate 1
refuse "unknown option, nothing near" 2 "unknown option --zzzzzzzzzzzz" --zzzzzzzzzzzz 1
refuse "unknown verb" 2 "train, inspect, plan" fly
refuse "missing value" 2 "needs a value" --model
refuse "stray word" 2 "unexpected word" train data.jsonl
refuse "not a number" 2 "give a number" --learning-rate fast
refuse "not whole" 2 "whole number" --lora-r 2.5
refuse "out of range" 2 "out of range" --lora-r 0
refuse "out of range" 2 "out of range" --lora-dropout 1.5
refuse "infinite" 2 "give a number" --weight-decay inf
refuse "bad choice" 2 "linear|cosine" --lr-scheduler-type exponential
refuse "bad bool" 2 "true or false" --packing=perhaps
refuse "no such module" 2 "q_proj, k_proj" $base --target-modules q_proj,qkv_proj
refuse "no such layer" 2 "layers 0 to 3" $base --layers-to-transform 2-9
refuse "no such template" 2 "qwen3" $base --chat-template vicuna
refuse "prompt template without prompt" 2 "{prompt}" $base --prompt-template hello
refuse "a transposed name" 2 "did you mean --model" --modle x
refuse "the beginning of a name" 2 "did you mean --max-length" --max-len 3
refuse "an option of other verbs" 2 "train does not use --batch-size, .*--per-device-train-batch-size" --batch-size 2
refuse "an option of training" 2 "generate does not use --max-length, .*--max-new-tokens" generate --prompt a --max-length 9
refuse "an option of training" 2 "evaluate does not use --lora-r, an option of train and plan" evaluate --lora-r 2
refuse "a word that means nothing" 2 "see ./train_lora train --help" --qqq 3
for word in "lr 1=learning-rate" "epochs 3=num-train-epochs" "rank 4=lora-r" "model-name-or-path x=model" "limit 3=max-train-samples" \
    "evaluation-strategy epoch=eval-strategy" "gradient-checkpointing=recompute layer" "fp16=PRECISION=BF16" "bias none=only A and B" \
    "load-in-4bit=no quantised" "optim adamw_torch=AdamW" "beta 0.1=DPO" "deepspeed x=one GPU" "report-to wandb=tensorboard"; do
    refuse "--${word%%=*}" 2 "${word#*=}" --${word%%=*}
done
refuse "a near value" 2 "did you mean cosine?" --lr-scheduler-type cosin
refuse "a near module" 2 "did you mean q_proj?" $base --target-modules qproj
refuse "a near verb" 2 "did you mean train?" trian
"$program" --chat-template foo --model data/base >"$work/out.txt" 2>&1
[ $? = 2 ] && ! grep -q "did you mean" "$work/out.txt"
verdict $? "no suggestion where nothing is near: $(cut -c1-90 "$work/out.txt")"
refuse "two sources" 2 "several things" generate --prompt a --chat
refuse "--system beside --data" 2 "does nothing with --data" generate --data data/hotel/test.jsonl --system x
refuse "--system beside --messages" 2 "does nothing with --messages" generate --messages x.json --system x
refuse "answers over a folder" 2 "name a file" generate --prompt a --output data
refuse "escapes in an error" 2 "lr<0x1B>\[31m<U+202E>" $'--lr\e[31m\u202e' 3
echo '{"max_steps": 1, "on_finish": "touch '"$work"'/ran"}' >"$work/c.json"
refuse "a command in a config file" 2 "not taken from files" --config "$work/c.json"
[ ! -e "$work/ran" ]
verdict $? "and it did not run"
printf '{"learning_rate": 1, "prompt": ["hi"], "max_new_tokens": 1, "output": "%s"}' "$work/answers" >"$work/c.json"
"$program" generate --config "$work/c.json" >"$work/out.txt" 2>"$work/err.txt"
grep -q "^note: .*output $work/answers (where files are written); generate does not use learning_rate$" "$work/err.txt" && [ -s "$work/answers" ]
verdict $? "a config file of another verb: $(head -n 1 "$work/err.txt" | sed "s|$work/||g")"
for verb in train inspect plan generate evaluate compare merge; do
    "$program" $verb --help >"$work/a" && "$program" help $verb | cmp -s - "$work/a" && [ "$(grep -c -- "--lora-r " "$work/a")" = "$(case $verb in train | plan) echo 1 ;; *) echo 0 ;; esac)" ] || break
done
verdict $? "each verb has its help ($verb: $(grep -c '^  --' "$work/a") options); train's lists chat templates: $("$program" help train | grep -o 'one of qwen3.*' | cut -c1-60)"
for verb in train plan inspect generate evaluate compare; do
    "$program" $verb --help | grep -q "^  --data  *data file: .*; train, plan and inspect take several," || break
    case $verb in generate | evaluate | compare)
        refuse "two data files: $verb" 2 "one data file" $verb --model data/base --data a --data b --adapter base ;;
    esac
done
verdict $? "the help of --data is true of $verb"

refuse "no model folder" 1 "$work/none" --model "$work/none" --data data/hotel/test.jsonl --output "$work/o"
refuse "no data file" 1 "$work/none.jsonl" --model data/base --data "$work/none.jsonl" --output "$work/o"
refuse "output below a file" 1 "Makefile/out" $base --output Makefile/out
refuse "no config file" 1 "$work/none.json" --config "$work/none.json"
echo '{"learning_rate": 1e-4, "lora_rr": 3}' >"$work/c.json"
refuse "unknown key in the config file" 2 "did you mean --lora-r" --config "$work/c.json"
echo '{"learning_rate": }' >"$work/c.json"
refuse "broken config file" 1 "c.json:1:19" --config "$work/c.json"

: >"$work/d.jsonl"
refuse "empty data" 1 "d.jsonl" --model data/base --data "$work/d.jsonl" --output "$work/o"
printf '{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}\n{"prompt": \n' >"$work/d.jsonl"
refuse "broken row" 1 "d.jsonl:2" --model data/base --data "$work/d.jsonl" --output "$work/o"
printf '{"question":"a"}\n' >"$work/d.jsonl"
refuse "row without the keys" 1 "row 1" --model data/base --data "$work/d.jsonl" --output "$work/o"
printf '{"messages":[{"role":"wizard","content":"a"}]}\n' >"$work/d.jsonl"
refuse "unknown role" 1 "wizard" --model data/base --data "$work/d.jsonl" --output "$work/o"
printf '{"text":"\377"}\n' >"$work/d.jsonl"
refuse "invalid UTF-8" 1 "d.jsonl" --model data/base --data "$work/d.jsonl" --output "$work/o"
printf '{"messages":[{"role":"user","content":"a"}]}\n' >"$work/d.jsonl"
refuse "nothing to learn" 1 "d.jsonl" --model data/base --data "$work/d.jsonl" --output "$work/o"

model() { rm -rf "$work/m"; cp -r data/base "$work/m"; chmod -R u+w "$work/m"; }
bad() { refuse "$1" 1 "$2" --model "$work/m" --data data/hotel/test.jsonl --output "$work/o"; }
model; sed -i 's/"qwen3"/"gpt_neox"/' "$work/m/config.json"; bad "unsupported architecture" "gpt_neox"
model; sed -i 's/"silu"/"gelu"/' "$work/m/config.json"; bad "unsupported activation" "hidden_act"
model; sed -i 's/"rope_type": "default"/"rope_type": "yarn", "factor": 4.0/' "$work/m/config.json"; bad "unsupported rope" "yarn"
model; sed -i 's/"model_type"/"num_experts": 8, "model_type"/' "$work/m/config.json"; bad "mixture of experts" "num_experts"
model; sed -i 's/"hidden_size": 128/"hidden_size": 256/' "$work/m/config.json"; bad "wrong shape" "\[2048, 128\]"
model; sed -i 's/"vocab_size": 2048/"vocab_size": 1000/' "$work/m/config.json"; bad "vocabulary larger than the embedding" "1000"
model; sed -i 's/"num_hidden_layers": 4/"num_hidden_layers": 5/' "$work/m/config.json"; bad "missing tensor" "model.layers.4"
model; sed -i 's/}$/,/' "$work/m/config.json"; bad "broken config.json" "config.json:"
model; rm "$work/m/model.safetensors"; bad "no weights" "model.safetensors"
model; truncate -s 500000 "$work/m/model.safetensors"; bad "truncated weights" "truncated"
model; truncate -s 4 "$work/m/model.safetensors"; bad "four bytes of weights" "safetensors"
model; printf '\377\377\377\377\377\377\377\177' | dd of="$work/m/model.safetensors" conv=notrunc 2>/dev/null; bad "absurd header length" "header"
model; printf '\300\177' | dd of="$work/m/model.safetensors" bs=1 seek=1000000 conv=notrunc 2>/dev/null; bad "NaN in the weights" "NaN"
model; sed -i 's/"\[2048,128\]"/x/; s/"data_offsets":\[0,/"data_offsets":[2,/' "$work/m/model.safetensors"; bad "offsets that do not fit" "tensor"
model; truncate -s 5000 "$work/m/tokenizer.json"; bad "truncated tokenizer" "tokenizer.json"
model; echo "{{ messages }}" >"$work/m/chat_template.jinja"; bad "unknown chat template" "--chat-template"

# ids beyond the model's embedding: of the tokenizer, of tokenised rows; whoever asks
mkdir "$work/wide" && ln -s "$PWD"/data/base/* "$work/wide/" && rm "$work/wide/tokenizer.json"
token='"id": 2048, "content": "<|wide|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true'
sed "0,/\"added_tokens\": \[/s//&{$token},/" data/base/tokenizer.json >"$work/wide/tokenizer.json"
echo '{"input_ids": [5, 2047, 2048, 7], "labels": [5, 2047, 2048, 7]}' >"$work/ids.jsonl"
wide="--model $work/wide --data data/hotel/test.jsonl"
for verb in "train --output $work/w" plan inspect "generate --max-new-tokens 2" evaluate "compare --adapter base"; do
    refuse "a tokenizer wider than the model: $verb" 1 "ids up to 2048 .* only 2048 rows" $verb $wide
done
refuse "an id beyond the vocabulary in training" 1 "2048, not in 0..2047" --model data/base --data "$work/ids.jsonl" --output "$work/w"
refuse "an id beyond the vocabulary in the evaluation data" 1 "2048" $base --eval-data "$work/ids.jsonl"
refuse "an id beyond the vocabulary to inspect" 1 "2048" inspect --model data/base --data "$work/ids.jsonl"

# a run, and a second one that fails must leave the first one's adapter as it was
"$program" $base >"$work/out.txt" 2>&1 && [ -s "$work/o/adapter_model.safetensors" ] && [ -s "$work/o/trainer_state.json" ] && [ -s "$work/o/run.json" ]
verdict $? "two steps, adapter, trainer_state.json, run.json"
# what is printed and reported works as pasted: a folder with a difficult name, and a chat template that the model folder does not name
model; echo "{{ x }}" >"$work/m/chat_template.jinja"; mv "$work/m" "$work/the model"
"$program" --model "$work/the model" --data data/hotel/test.jsonl --chat-template zephyr --template-date "1 May 2025" \
    --max-steps 2 --save-strategy steps --save-steps 1 --output "$work/it's \$(touch $work/ran)" >"$work/out.txt" 2>&1
sed -n 's/^use it *//p' "$work/out.txt" >"$work/use"
echo hi | sh "$work/use" >"$work/answer" 2>"$work/err.txt" && [ ! -e "$work/ran" ] && [ -s "$work/answer" ] &&
    [ "$(grep -c '^note: --chat-template zephyr, --template-date 1 May 2025, as ' "$work/err.txt")" = 1 ]
verdict $? "the printed command, pasted: $(sed "s|$work/||g" "$work/use" | cut -c1-110); $(grep ^note "$work/err.txt" | cut -c1-32)"
grep -q '^note: --template-date changes nothing: it is unknown to the chat template zephyr; data/hotel' "$work/out.txt"
verdict $? "an option that the chat template does not know is named"
# whoever waits is told for what, on a terminal at once
if script -qec true /dev/null </dev/null >/dev/null 2>&1; then
    script -qec "$program generate --model data/base --prompt a --max-new-tokens 1" /dev/null </dev/null >"$work/out.txt"
    grep -q '\.\.\. loading data/base.*answering 1 prompt with base' "$work/out.txt"
    verdict $? "a wait is explained"
    head -n 1 data/hotel/test.jsonl >"$work/one.jsonl"
    script -qec "$program evaluate --model data/base --data $work/one.jsonl --generate --max-new-tokens 1" /dev/null \
        </dev/null >"$work/out.txt"
    grep -q "measuring base on 1 row[^s]" "$work/out.txt" && grep -q "answering 1 row with base" "$work/out.txt" &&
        grep -q "1 row of $work/one.jsonl" "$work/out.txt"
    verdict $? "of one row in the singular: $(grep -o '1 row of' "$work/out.txt")"
else echo "skipped: no script(1)"; fi
# options that no row uses, or not every row: every verb that reads rows names them
echo '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}' >"$work/chat.jsonl"
echo '{"prompt": "a", "completion": "b"}' | tee "$work/pair.jsonl" | cat "$work/chat.jsonl" - >"$work/both.jsonl"
echo '{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}' >"$work/labels.jsonl"
unused() {      # name, what the notes say, verb and arguments...
    local name=$1 want=$2
    shift 2
    "$program" "$@" --model data/base >"$work/out.txt" 2>&1
    sed -n "s|^note: ||; s|; $work/.*||p" "$work/out.txt" | grep changes | tr '\n' ';' >"$work/notes"
    [ "$(cat "$work/notes")" = "$want" ]
    verdict $? "$name: $(cat "$work/notes")"
}
dress="--prompt-template Q:{prompt} --chat-template zephyr"
nothing="changes nothing:"
for verb in "train --max-steps 1 --output $work/o8" plan inspect "generate --max-new-tokens 1" evaluate; do
    unused "${verb%% *} of a chat" "--prompt-template $nothing the rows are chats;" $verb $dress --data "$work/chat.jsonl"
done
unused "a pair" "--chat-template $nothing no row is a chat;" inspect $dress --data "$work/pair.jsonl"
unused "a chat and a pair" "--prompt-template changes nothing in 1 of 2 rows, which are chats or have no prompt;" \
    inspect $dress --data "$work/both.jsonl"
unused "a pair with options of chats" "--split-turns $nothing no row is a chat;--enable-thinking $nothing no row is a \
chat;" inspect --split-turns --enable-thinking false --data "$work/pair.jsonl"
unused "rows with labels" "--loss-on $nothing the rows have labels;" inspect --loss-on all --data "$work/labels.jsonl"
refuse "--raw and a template" 2 "nothing with --raw" generate --model data/base --prompt a --raw --chat-template zephyr
thought='{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>why</think>b"}'
echo "{\"messages\": [$thought, $thought], \"chat_template_kwargs\": {\"x\": 1}}" >"$work/thoughts.jsonl"
thoughts="inspect --model data/base --chat-template qwen3 --data $work/thoughts.jsonl"
"$program" $thoughts >"$work/out.txt" && "$program" $thoughts --split-turns >"$work/split" &&
    grep -q '^note: the chat template leaves out 1 thought; .*see --split-turns' "$work/out.txt" &&
    grep -q '^columns not used: chat_template_kwargs.x (1 row)' "$work/out.txt" &&
    grep -q 'examples *2' "$work/split" && ! grep -q '^note: the chat' "$work/split"
verdict $? "thoughts that the chat template leaves out are named, with --split-turns they are learned"
adapter="$work/it's \$(touch $work/ran)"
grep -qF "$(sed 's/[\\"]/\\&/g' "$work/use")" "$adapter/report.html"
verdict $? "the page has the same command"
"$program" generate --model "$work/the model" --adapter "$adapter/checkpoint-1" --prompt hi --max-new-tokens 1 2>&1 >/dev/null | grep -q '^note: --chat-template zephyr'
verdict $? "a checkpoint brings its prompts too"
"$program" generate --model "$work/the model" --adapter "$adapter" --prompt hi --max-new-tokens 1 \
    --chat-template qwen3 --template-date x 2>"$work/err.txt" >/dev/null && ! grep -q "^note: .*, as " "$work/err.txt"
verdict $? "what is given again is not taken"
# how the loss was measured in training belongs to the adapter as well
head -n 4 data/hotel/test.jsonl >"$work/four.jsonl"
short="--max-length 64 --truncate-prompt true --loss-on completion"
"$program" --model data/base --data "$work/four.jsonl" $short --max-steps 1 --output "$work/short" >"$work/out.txt" 2>&1
for verb in evaluate inspect "generate --prompt a --max-new-tokens 1"; do
    how="$verb --model data/base --adapter $work/short"
    case $verb in generate*) want=0 given= ;; *) want=1 how+=" --data $work/four.jsonl" given=$short ;; esac
    "$program" $how >"$work/out.txt" 2>"$work/err.txt" && "$program" $how $given >"$work/again.txt" 2>"$work/err2.txt"
    got=$? note="^note: --max-length 64, --truncate-prompt true, --loss-on completion, as $work/short was trained"
    [ $got = 0 ] && cmp -s "$work/out.txt" "$work/again.txt" && ! grep -q "^note: --.* was trained" "$work/err2.txt" &&
        [ "$(grep -c "^note: --.* was trained" "$work/err.txt")" = $want ] &&
        [ "$(grep -c "$note" "$work/err.txt")" = $want ]
    verdict $? "what is measured is taken from the adapter's run: ${verb%% *}, $want note"
done
"$program" evaluate --model data/base --adapter "$work/short" --data "$work/four.jsonl" --max-length 1024 \
    --truncate-prompt false --loss-on default >"$work/again.txt" 2>"$work/err.txt"
measured() { sed -n 's/^token_loss *\([0-9.]*\).*/\1/p' "$1"; }
"$program" evaluate --model data/base --adapter "$work/short" --data "$work/four.jsonl" >"$work/out.txt" 2>/dev/null
[ -n "$(measured "$work/out.txt")" ] && [ "$(measured "$work/out.txt")" != "$(measured "$work/again.txt")" ] &&
    ! grep -q "was trained" "$work/err.txt"
verdict $? "and not where it is given: $(measured "$work/out.txt"), $(measured "$work/again.txt")"
cp -r "$work/short" "$work/long"; sed -i 's/"max_length": 64/"max_length": 128/' "$work/long/run.json"
refuse "adapters of different lengths" 2 "different --max-length, '64' and '128'" \
    compare --model data/base --adapter "$work/short" --adapter "$work/long" --data "$work/four.jsonl"
"$program" merge --model data/base --adapter "$work/short" --output "$work/m64" >"$work/out.txt" 2>&1 &&
    echo hi | sh <(sed -n 's/^use it *//p' "$work/out.txt") >"$work/answer" 2>"$work/err.txt" && [ -s "$work/answer" ]
verdict $? "the merged model's command has only what generate takes: $(grep '^use it' "$work/out.txt")"
# a base model without a chat template: the printed --chat takes every line as a prompt of its own
model; rm "$work/m/chat_template.jinja"
printf '{"prompt": "a question", "completion": "an answer"}\n' >"$work/pairs.jsonl"
"$program" --model "$work/m" --data "$work/pairs.jsonl" --prompt-template 'Q: {prompt} A:' --max-steps 1 \
    --output "$work/o9" >"$work/out.txt" 2>&1
echo hi | sh <(sed -n 's/^use it *//p' "$work/out.txt") >"$work/answer" 2>"$work/err.txt" && [ -s "$work/answer" ] &&
    grep -q "^note: --prompt-template Q: {prompt} A:, as " "$work/err.txt" &&
    grep -q "a prompt of its own" "$work/err.txt"
verdict $? "the printed command of a base model, pasted: $(head -n 1 "$work/err.txt" | cut -c1-60)"
cp -r "$adapter" "$work/other"; sed -i 's/zephyr/qwen3/' "$work/other/run.json"
refuse "adapters of different prompts" 2 "different --chat-template, 'zephyr' and 'qwen3'" compare --model "$work/the model" --adapter "$adapter" --adapter "$work/other" --data data/hotel/test.jsonl
# a chat whose next adapter has seen other prompts says so and goes on as it was; a run that begins with one says so too
{ echo hi; echo "/adapter $work/other"; echo hi; echo "/adapter $work/o"; echo hi; echo "/adapter base"; } >"$work/talk"
talk() { "$program" generate --model "$work/the model" --chat --temperature 0 --max-new-tokens 8 "$@" \
    <"$work/talk" >"$work/answer" 2>"$work/err.txt"; }
talk --adapter "$adapter" && [ "$(wc -l <"$work/answer")" = 3 ] &&
    [ "$(grep -c "^error: .* was trained with .*; /adapter; the chat stays as it was" "$work/err.txt")" = 2 ] &&
    grep -qF "$work/other was trained with --chat-template qwen3 (here zephyr); /adapter" "$work/err.txt" &&
    grep -qF "no --chat-template (here zephyr), no --template-date (here 1 May 2025); /adapter" "$work/err.txt"
verdict $? "/adapter of other prompts: $(grep -m 1 ^error "$work/err.txt" | sed "s|$work/||g" | cut -c1-90)"
talk --adapter "$adapter" --chat-template zephyr --template-date "1 May 2025" &&
    ! grep -q "was trained with" "$work/err.txt"
verdict $? "and not where they were given: $(wc -l <"$work/answer") answers"
begin="--model data/base --data $work/four.jsonl --max-steps 1 --output $work/begun"
"$program" $begin --init-adapter "$adapter" >"$work/out.txt" 2>"$work/err.txt" &&
    grep -q "^note: .* was trained with --chat-template zephyr (here none), --template-date 1 May 2025 (here none)" \
        "$work/err.txt" &&
    "$program" plan $begin --init-adapter "$work/o" >"$work/out.txt" 2>"$work/err2.txt" &&
    ! grep -q "was trained with" "$work/err2.txt"
verdict $? "--init-adapter of other prompts: $(grep "^note.*trained" "$work/err.txt" | sed 's|.* was|... was|')"
cp "$work/o/adapter_model.safetensors" "$work/before"
"$program" $base --learning-rate 1e29 --max-grad-norm 0 --max-steps 20 >"$work/out.txt" 2>"$work/err.txt"
[ $? = 1 ] && grep -q "not finite" "$work/err.txt" && cmp -s "$work/before" "$work/o/adapter_model.safetensors"
verdict $? "a run that diverges leaves the earlier adapter as it was: $(cut -c1-140 "$work/err.txt")"
"$program" --config "$work/o/run.json" --output "$work/o2" >"$work/out.txt" 2>&1; cp "$work/o/run.json" "$work/r"
"$program" $base >/dev/null 2>&1 && "$program" --config "$work/o/run.json" --output "$work/o2" >"$work/out.txt" 2>&1 && cmp -s "$work/o/adapter_model.safetensors" "$work/o2/adapter_model.safetensors"
verdict $? "the same run again from its run.json: the same adapter"
"$program" merge --model data/base --adapter "$work/o" --output "$work/m32" --dtype f32 >"$work/out.txt" 2>&1 &&
    grep -q '"dtype": "float32"' "$work/m32/config.json" && grep -q ', F32; .* agree .* rounding to F32 explains 1.0e-05)' "$work/out.txt" &&
    [ "$(stat -c %s "$work/m32/model.safetensors")" -gt "$(($(stat -c %s data/base/model.safetensors) * 2 - 9999))" ]
verdict $? "merged in fp32: $(sed "s|$work/||g" "$work/out.txt" | head -n 1)"
if [ "$(id -u)" = 0 ] && mkdir "$work/small" && mount -t tmpfs -o size=64k tmpfs "$work/small" 2>/dev/null; then
    refuse "disk full" 1 "No space left" $base --output "$work/small/o"
else echo "skipped: no tmpfs for the full disk"; fi
"$program" $base --output "$work/o3" --max-steps 100000 >"$work/out.txt" 2>&1 & pid=$!
sleep 2; kill -INT $pid; wait $pid
[ $? = 130 ] && [ -s "$work/o3/adapter_model.safetensors" ]
verdict $? "SIGINT: the step is finished, the adapter saved, exit status 130"
grep -q "^adapter .* with the adapter of the last step, [0-9]*;" "$work/out.txt"
verdict $? "and it says which: $(grep -o 'with the adapter of.*;' "$work/out.txt")"
# where the highest loss is the best, the best evaluation is an early one, and lies in its checkpoint
best=(--learning-rate 5e-3 --eval-data data/hotel/eval.jsonl --max-eval-samples 4 --eval-steps 1 --metric-for-best-model loss)
"$program" $base "${best[@]}" --greater-is-better --load-best-model-at-end --output "$work/o7" --max-steps 100000 >"$work/out.txt" 2>&1 & pid=$!
for i in $(seq 100); do grep -q "^eval  step 5:" "$work/out.txt" && break; sleep 0.1; done
kill -INT $pid; wait $pid
best=$(sed -n 's/^best     step \([0-9]*\), loss .*: its adapter is in .*checkpoint-\1$/\1/p' "$work/out.txt")
[ -n "$best" ] && [ -s "$work/o7/checkpoint-$best/adapter_model.safetensors" ]
verdict $? "stopped: $(grep '^best' "$work/out.txt" | sed "s|$work/||g")"
# before the first step nothing is known of speed; silence is explained, on a pipe too
for i in 1 2 3; do cat data/hotel/eval.jsonl; done >"$work/slow.jsonl"
OMP_NUM_THREADS=1 "$program" $base --eval-data "$work/slow.jsonl" --output "$work/o8" >"$work/out.txt" 2>&1 & pid=$!
for i in $(seq 1000); do [ -s "$work/o8/report.html" ] && break; sleep 0.01; done
cp "$work/o8/report.html" "$work/early.html"
for i in 1 2 3 4; do                        # a run that is held up: the first time perhaps before it evaluates
    kill -STOP $pid 2>/dev/null || break
    sleep 2.2; kill -CONT $pid; sleep 0.05
    grep -q "^\.\.\. evaluating" "$work/out.txt" && break
done
wait $pid
grep -q '"step": 0, .*"elapsed_seconds": [0-9.]*}' "$work/early.html"
verdict $? "the page before the first step: $(grep -o '"progress": {[^}]*}' "$work/early.html" | head -n 1)"
grep -q "^\.\.\. evaluating 300 examples$" "$work/out.txt"
verdict $? "an evaluation of more than two seconds is announced"
"$program" inspect --model data/base --data data/hotel/test.jsonl --examples 1 >"$work/out.txt" 2>&1 && grep -q "im_end" "$work/out.txt"
verdict $? "inspect"
# Characters that are several tokens are shown whole, learned or not; one that is cut is shown as bytes.
printf '{"prompt": "\\u7ffb\\u8b6f", "completion": "\\u5927"}\n{"input_ids": [163, 119]}\n' >"$work/han.jsonl"
"$program" inspect --model data/base --data "$work/han.jsonl" >"$work/out.txt" 2>&1
grep -q '^  翻譯\[大\]\[«' "$work/out.txt" && grep -q '^  <0x[0-9A-F]*>' "$work/out.txt"
verdict $? "inspect joins the bytes of a character: $(grep '大' "$work/out.txt"), $(grep '^  <0x' "$work/out.txt")"
"$program" plan $base --output "$work/never" >"$work/out.txt" 2>&1 && grep -q "total" "$work/out.txt" && [ ! -e "$work/never" ]
verdict $? "plan prints the memory table and writes nothing"
# from anywhere: beside the program in another folder, and installed
mkdir "$work/elsewhere"
(cd "$work/elsewhere" && "$program" --max-steps 1 --eval-on-start false --output "$work/o5" >"$work/out.txt" 2>&1 && "$program" plan --config data/recipes/dstc11-qwen3-1.7b.json --model "$(dirname "$program")/data/base" >"$work/out2.txt" 2>&1)
verdict $? "the embedded example and a recipe from another folder: $(grep ^model "$work/out.txt" | cut -c1-60)"
make -s -o train_lora install DESTDIR="$work/root dir" PREFIX=/usr >"$work/out.txt" 2>&1 &&
    (cd "$work/elsewhere" && "$work/root dir/usr/bin/train_lora" --max-steps 1 --eval-on-start false --output "$work/o6" >"$work/out.txt" 2>&1) && grep -q "^model    $work/root dir/usr/bin/../share/train_lora/data/base" "$work/out.txt"
verdict $? "installed: $(grep ^model "$work/out.txt" | sed "s|$work/||" | cut -c1-80)"
make -s uninstall DESTDIR="$work/root dir" PREFIX=/usr && [ -z "$(find "$work/root dir" -type f)" ]
verdict $? "uninstalled, nothing is left"
"$program" --help >"$work/out.txt" && grep -q -- "--gradient-accumulation-steps" "$work/out.txt" && "$program" --version | grep -q train_lora
verdict $? "--help and --version"
# the memory table is true: the peak of the whole process is within 10 % of it
total=$("$program" plan --model data/base --data data/hotel/train.jsonl --lora-r 16 | awk '$1 == "total" { print $2 * 1024 }')
peak=$( { /usr/bin/time -f %M "$program" --model data/base --data data/hotel/train.jsonl --output "$work/o4" --num-train-epochs 1 >/dev/null; } 2>&1 | tail -n 1)
if command -v /usr/bin/time >/dev/null; then
    awk -v t="$total" -v p="$peak" 'BEGIN { exit !(p > 0.9 * t && p < 1.1 * t) }'
    verdict $? "memory table $total kB, peak resident memory $peak kB"
fi
# Threads that wait for each other spin for a bounded time, so that two programs can share the cores (libgomp prints what it uses).
bound=$(OMP_WAIT_POLICY=active OMP_DISPLAY_ENV=verbose "$program" --version 2>&1 | sed -n "s/.*GOMP_SPINCOUNT = '\([0-9]*\)'.*/\1/p" | tail -n 1)
[ "${bound:-0}" -le 1000 ]; verdict $? "spinning is bounded, whatever OMP_WAIT_POLICY says: ${bound:-no libgomp}"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
