#!/usr/bin/env bash
# generate, merge, evaluate and compare as a user meets them: test_generate.sh PROGRAM
set -u
. test/check.sh
program=$1
work=$(mktemp -d) || exit 1
said=$work/out
trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} OMP_WAIT_POLICY=passive
run() { timeout 900 "$program" "$@" >"$said" 2>"$work/err" </dev/null; status=$?; return $status; }
refused() {     # name, status, pattern, arguments...
    local name=$1 want=$2 pattern=$3
    shift 3
    run "$@"
    check "$name: $(told ^error "$work/err")" \
        ended "$want" , [ "$(grep -c '^error: .*;.*;' "$work/err")" = 1 ] , grep -q -- "$pattern" "$work/err"
}
hotel=$work/hotel
run --max-steps 150 --learning-rate 1e-2 --per-device-train-batch-size 4 --eval-on-start false --output "$hotel"
check "an adapter to try: $(grep '^done' "$work/out")" ended 0
base=(--model data/base --temperature 0)

run generate "${base[@]}" --adapter "$hotel" --prompt "What time is check-in at Linden Court?"
check "a prompt is answered on stdout, the speed is on stderr: $(cat "$work/out")" \
    ended 0 , [ "$(wc -l <"$work/out")" = 1 ] , grep -qi 'linden court' "$work/out" , grep -q 'tokens/s' "$work/err"
cp "$work/out" "$work/once"
run generate "${base[@]}" --adapter "$hotel" --prompt "What time is check-in at Linden Court?" --threads 2
check "again, with two threads, the same" cmp -s "$work/out" "$work/once"
sample() { run generate --model data/base --prompt Hello --temperature "$1" --seed "$2" && cp "$work/out" "$work/$3"; }
sample 1 1 a && sample 1 1 b && sample 1.5 2 c
check "sampling repeats with its seed: $(cat "$work/a")" cmp -s "$work/a" "$work/b" , not cmp -s "$work/a" "$work/c"
run generate "${base[@]}" --adapter base --adapter "$hotel" --prompt "Hi" --prompt "Bye" --jsonl
row='^{"id": [12], "adapter": "[^"]*", "messages": \[{"role": "user", "content": "\(Hi\|Bye\)"}\], "response": ".*", '
row+='"tokens": [0-9]*, "finish_reason": "\(stop\|length\)"}$'
check "--jsonl, two prompts, base and adapter: $(head -n 1 "$work/out")" \
    [ "$(grep -c "$row" "$work/out")" = 4 ]
run generate "${base[@]}" --prompt "Hello" --max-new-tokens 2 --jsonl
check "--max-new-tokens 2: $(cat "$work/out")" says '"tokens": 2, "finish_reason": "length"'
run generate "${base[@]}" --adapter "$hotel" --prompt "What time is check-in at Linden Court?" --stop " at" --jsonl
check "--stop: $(grep -o '"response": "[^"]*"' "$work/out")" \
    says '"finish_reason": "stop"' , not says '"response": ".* at'
echo '[{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello, how can I help?"},
 {"role": "user", "content": "Where is it?"}]' >"$work/chat.json"
run generate "${base[@]}" --messages "$work/chat.json" --output "$work/answers.jsonl"
check "--messages, --output" ended 0 , [ ! -s "$work/out" ] , grep -q 'how can I help' "$work/answers.jsonl"
printf '%s\n' "Hello there" "$(seq 2000 | tr '\n' ' ')" "/adapter $hotel" "What time is check-in at Linden Court?" \
    /nonsense "/adapter $work/none" /reset "Hello there" /quit "not reached" |
    "$program" generate "${base[@]}" --chat >"$work/out" 2>"$work/err"
status=$?
check "--chat, a turn that is too long, an unknown command and an adapter that is none: $(tr '\n' '|' <"$work/out")" \
    ended 0 , [ "$(wc -l <"$work/out")" = 3 ] , [ "$(sed -n 1p "$work/out")" = "$(sed -n 3p "$work/out")" ] , \
    grep -qi linden <(sed -n 2p "$work/out") , [ "$(grep -c '^error' "$work/err")" = 3 ]
for size in 1 3 50; do
    run generate "${base[@]}" --adapter "$hotel" --data data/hotel/test.jsonl --batch-size $size --jsonl &&
        cp "$work/out" "$work/batch$size"
done
check "a file in batches of 1, 3 and 50: the same 50 answers" \
    cmp -s "$work/batch1" "$work/batch3" , cmp -s "$work/batch1" "$work/batch50" , \
    [ "$(wc -l <"$work/batch1")" = 50 ] , [ "$(grep -c '"reference": ' "$work/batch1")" = 50 ]

refused "nothing to answer" 2 "--prompt TEXT" generate --model data/base
refused "two things to answer" 2 "one of" generate --model data/base --prompt a --chat
refused "no such adapter" 1 "none" generate --model data/base --prompt a --adapter "$work/none"
refused "an adapter for another shape" 1 "shape\|layer\|tensor" generate --model data/base --prompt a \
    --adapter test/golden/qwen3/adapter
refused "no model" 1 "none" generate --model "$work/none" --prompt a
cp -r data/base "$work/plain" && rm "$work/plain/chat_template.jinja" &&
    sed -i 's/"chat_template"/"no_template"/' "$work/plain/tokenizer_config.json"
refused "no chat template" 1 "chat template" generate --model "$work/plain" --messages "$work/chat.json"
run generate --model "$work/plain" --temperature 0 --prompt "Once" --max-new-tokens 5
check "a model without a template goes on with the text: $(cat "$work/out")" ended 0 , [ -s "$work/out" ]
refused "longer than the context" 1 "more than the" generate --model data/base --prompt a --max-new-tokens 100000
refused "an empty prompt" 1 "empty" generate --model data/base --prompt "" --raw
: >"$work/empty.jsonl"
refused "an empty file" 1 "empty" generate --model data/base --data "$work/empty.jsonl"
refused "a negative temperature" 2 "out of range" generate --model data/base --prompt a --temperature -1
refused "shots without their number's file" 2 "--shots" generate --model data/base --data data/hotel/test.jsonl \
    --few-shot 2
cp -r "$hotel" "$work/renamed"
sed -i 's/"base_model_name_or_path": "[^"]*"/"base_model_name_or_path": "org\/Other-7B"/' \
    "$work/renamed/adapter_config.json"
run generate "${base[@]}" --adapter "$work/renamed" --prompt Hi
check "an adapter of another base's name: $(told warning "$work/err")" \
    ended 0 , grep -q '^warning: .*trained on org/Other-7B' "$work/err"

run evaluate --model data/base --adapter base --adapter "$hotel" --data data/hotel/test.jsonl --generate \
    --output "$work/evaluation"
check "evaluate: loss, f1 and bleu of base and adapter: $(grep '^\(loss\|f1\|bleu\) ' "$work/out" | tr -s ' \n' ' ')" \
    ended 0 , awk '$1 == "token_loss" { loss = $3 < $2 } $1 == "f1" { f1 = $3 > $2 } $1 == "bleu" { bleu = $3 > $2 }
        END { exit !(loss && f1 && bleu) }' "$work/out"
loss=$(grep -o '"token_loss": [0-9.]*' "$work/evaluation/evaluation.json" | tail -n 1 | cut -d' ' -f2)
run --model data/base --data data/hotel/train.jsonl --eval-data data/hotel/test.jsonl --init-adapter "$hotel" \
    --learning-rate 0 --max-steps 1 --output "$work/again"
other=$(grep -o '"eval_token_loss": [0-9.]*' "$work/again/log.jsonl" | head -n 1 | cut -d' ' -f2)
check "its loss is the one that training's evaluation has: $loss" \
    awk -v a="$loss" -v b="$other" 'BEGIN { d = a / b - 1; exit !(d < 1e-6 && d > -1e-6) }'
check "responses.jsonl has 100 scored answers" \
    [ "$(wc -l <"$work/evaluation/responses.jsonl")" = 100 ] , \
    [ "$(grep -c '"rouge_l": [0-9.e-]*}$' "$work/evaluation/responses.jsonl")" = 100 ]
labelled='{"messages": [{"role": "user", "content": "%s. Is it good?"}, {"role": "assistant", "content": "%s"}]}\n'
# shellcheck disable=SC2059
for i in 1 2 3; do printf "$labelled" Hello yes Goodbye no; done >"$work/labels.jsonl"
run --model data/base --data "$work/labels.jsonl" --max-steps 60 --learning-rate 1e-2 --per-device-train-batch-size 6 \
    --lora-dropout 0 --output "$work/yesno"
run evaluate --model data/base --adapter base --adapter "$work/yesno" --data "$work/labels.jsonl" --labels yes,no
check "--labels: $(grep '^accuracy' "$work/out" | tr -s ' '), $(grep '^yes' "$work/out" | tail -n 1 | tr -s ' ')" \
    ended 0 , grep -q '^accuracy 0\.0000 1\.0000' <(tr -s ' ' <"$work/out") , \
    grep -q '^macro mean 1\.0000 1\.0000 1\.0000 6' <(tr -s ' ' <"$work/out")
check "the table says what a score is, and has none that means nothing for labels" \
    says '^exact_match .* 0 to 1: equal' , not says '^\(bleu\|chrf\|rouge_l\|f1\) '
refused "an answer that is no label" 1 "row 2" evaluate --model data/base --data "$work/labels.jsonl" \
    --labels yes,perhaps
refused "one label" 1 "fewer than two" evaluate --model data/base --data "$work/labels.jsonl" --labels yes
head -n 4 data/hotel/test.jsonl >"$work/chat2.jsonl"
# Several right answers, groups, a language without words.
cat >"$work/gold.jsonl" <<'X'
{"group":"joy","answers":["x","y"],"messages":[{"role":"user","content":"Hello"},{"role":"assistant","content":"x"}]}
{"prompt": "P", "completion": "x", "answers": {"text": ["z", "x"], "answer_start": [1, 2]}, "label": 7}
X
run compare --model data/base --adapter "$hotel" --data "$work/gold.jsonl" --max-new-tokens 12 --output "$work/gold"
answer=$(sed -n '1s/.*"response": "\([^"]*\)".*/\1/p' "$work/gold/responses.jsonl")
check "compare has the row's group and the settings" \
    ended 0 , grep -q '"label": "joy"' "$work/gold/compare.html" , grep -q '"label": "7"' "$work/gold/compare.html" , \
    grep -q '"settings": {"temperature": 0, .*"max_new_tokens": 12' "$work/gold/compare.html" , \
    not grep -q '^warning: .*answers' "$work/err"
sed -i "1s/\"y\"/\"$answer\"/" "$work/gold.jsonl"
run evaluate --model data/base --data "$work/gold.jsonl" --limit 1 --generate --max-new-tokens 12
check "the second of two right answers: $(grep ^exact "$work/out" | tr -s ' ')" says '^exact_match *1\.0000'
printf '{"prompt": "P", "completion": "x", "answers": [7]}\n' >"$work/bad.jsonl"
refused "an answer that is no text" 1 "answers" evaluate --model data/base --data "$work/bad.jsonl" --generate
mkdir "$work/wordless" && ln -s "$PWD"/data/base/* "$work/wordless/" && rm "$work/wordless/tokenizer.json"
echo '{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}' >"$work/ids.jsonl"
run evaluate --model data/base --data "$work/ids.jsonl" && cp "$said" "$work/with"
run evaluate --model "$work/wordless" --data "$work/ids.jsonl"
check "rows of token ids are measured without a tokenizer: $(told ^token_loss)" \
    ended 0 , says '^token_loss *[0-9]' , cmp -s "$work/with" "$said"
refused "text is not" 1 "no tokenizer" evaluate --model "$work/wordless" --data "$work/gold.jsonl"
refused "nor can it answer" 1 "tokenizer.json" evaluate --model "$work/wordless" --data "$work/ids.jsonl" --generate
echo '{"prompt": "P", "completion": "学习并且按时温习"}' >"$work/chinese.jsonl"
run evaluate --model data/base --data "$work/chinese.jsonl" --generate --max-new-tokens 2
check "$(grep ^hint "$work/err")" grep -q '^hint: .*--bleu-tokenize zh' "$work/err"
run evaluate --model data/base --data "$work/chinese.jsonl" --generate --max-new-tokens 2 --bleu-tokenize zh
check "with it none, and no F1 of words" not grep -q '^hint' "$work/err" , says '^rouge_l' , not says '^f1 '

run evaluate --model data/base --data "$work/chat2.jsonl" --generate --max-new-tokens 12 &&
    before=$(grep ^sentence "$work/out")
run evaluate --model data/base --data "$work/chat2.jsonl" --generate --max-new-tokens 12 --bleu-tokenize word_tokenize
check "--bleu-tokenize word_tokenize: $(grep ^sentence "$work/out" | tr -s ' ')" \
    [ -n "$before" ] , [ "$(grep ^sentence "$work/out")" != "$before" ]

# Killed while it answers: what is done is there, and so is what an earlier one has left.
cp "$work/gold/responses.jsonl" "$work/earlier.jsonl"
killed() {      # file of answers on their way, arguments...
    local partial=$1
    shift
    "$program" "$@" >"$work/out" 2>"$work/err" </dev/null &
    until [ -s "$partial" ] || ! kill -0 $! 2>/dev/null; do :; done
    kill -KILL $! 2>/dev/null
    wait $! 2>/dev/null
    [ "$(grep -c '^{"id": .*}$' "$partial")" -ge 1 ]
}
killed "$work/gold/responses.jsonl.partial" evaluate --model data/base --data data/hotel/test.jsonl --generate \
    --batch-size 1 --output "$work/gold"
status=$?
check "evaluate, killed: its answers are kept" ended 0 , cmp -s "$work/gold/responses.jsonl" "$work/earlier.jsonl"
cp "$work/earlier.jsonl" "$work/answers.jsonl"
killed "$work/answers.jsonl.partial" generate "${base[@]}" --data data/hotel/test.jsonl --batch-size 1 \
    --output "$work/answers.jsonl"
status=$?
check "generate, killed: its answers are kept" ended 0 , cmp -s "$work/answers.jsonl" "$work/earlier.jsonl"

# Solved examples: the loss is that of the row's own answers behind them, as transformers has it (expected.txt: shape,
# shots, loss per token, mean perplexity of a row).
head -n 4 data/hotel/test.jsonl >"$work/chat.jsonl"
shot=test/golden/few_shot
near() {        # key, value: as evaluation.json has it
    tr ',' '\n' <"$work/shots/evaluation.json" | tr -d '"' | awk -v key="$1:" -v want="$2" '
        $1 == key { found++; off += $2 / want > 1 + 1e-5 || $2 / want < 1 - 1e-5 }
        END { exit found != 1 || off }'
}
while read -r shape k loss_want perplexity_want; do
    how=(--data "$work/chat.jsonl") from=data/hotel/train.jsonl
    template=$'Q: {prompt}\nA: '
    [ "$shape" = plain ] && how=(--data $shot/plain.jsonl --prompt-template "$template") from=$shot/plain_shots.jsonl
    run evaluate --model data/base "${how[@]}" --few-shot "$k" --shots "$from" --output "$work/shots"
    check "$shape rows behind $k solved examples: $(grep '^mean_ex' "$work/out" | tr -s ' '), want $perplexity_want" \
        ended 0 , not says '^chrf' , near token_loss "$loss_want" , near mean_example_perplexity "$perplexity_want"
done <$shot/expected.txt
shots=(--data "$work/chat.jsonl" --few-shot 1 --shots data/hotel/train.jsonl)
run evaluate --model data/base "${shots[@]}" --max-new-tokens 8 --generate
check "with --generate answers too: $(grep '^chrf' "$work/out")" ended 0 , says '^chrf'
run inspect --model data/base "${shots[@]}" --examples 1
check "inspect shows the solved example, not in the loss" \
    says "Queen's Rest is in the station road area" , says '\[\.\]\[«<|im_end|>»\]'
run evaluate --model data/base --data "$work/chat.jsonl" --few-shot 1 --shots "$work/chat.jsonl" --max-length 200
check "rows among their own shots, and rows that are cut: $(grep -c ^warning "$work/err") warnings" \
    grep -q '^warning: the solved examples show the answer to the first 1 row of ' "$work/err" , \
    grep -q '^warning: [1-4] of 4 rows are cut at --max-length 200, [0-4] of them in their last reply' \
        "$work/err"
refused "chats before plain text" 1 "same shape" evaluate --model data/base --data $shot/plain.jsonl "${shots[@]:2}"
refused "shots in training" 2 "train does not use --few-shot" --model data/base "${shots[@]}"
refused "a file of shots, but how many" 2 "--few-shot" evaluate --model data/base "${shots[@]:0:2}" "${shots[@]:4}"
refused "all in the loss, shots too" 1 "--loss-on" evaluate --model data/base "${shots[@]}" --loss-on all
echo '{"messages": [{"role": "user", "content": "Hi"}]}' >"$work/question.jsonl"
refused "nothing to measure" 1 "evaluate --generate" evaluate --model data/base --data "$work/question.jsonl"
# Plain text and token ids have no prompt, but a loss: what training's evaluation of them says before the first step.
echo '{"text": "Hello. Where is Kumo?"}' >"$work/text.jsonl"
echo '{"input_ids": [5, 6, 7, 8, 9]}' >"$work/ids.jsonl"
for rows in text ids; do
    run evaluate --model data/base --data "$work/$rows.jsonl"; got=$(awk '/_loss/ { print $2; exit }' "$work/out")
    run --model data/base --data "$work/$rows.jsonl" --eval-data "$work/$rows.jsonl" --max-steps 1 \
        --output "$work/$rows"
    check "the loss of $rows rows, $got, is training's" [ -n "$got" ] , says "^eval  step 0: loss $got,"
done
refused "answers to plain text" 1 "no prompt to answer" evaluate --model data/base --data "$work/text.jsonl" --generate
printf '{"prompt": "a\\u0000b", "completion": "c\\u0000d"}\n' >"$work/nul.jsonl"
run generate --model data/base --data "$work/nul.jsonl" --max-new-tokens 1 --temperature 0 --jsonl
check "a NUL in prompt and reference: what follows stays" says '"content": "a\\u0000b".*"reference": "c\\u0000d"'
printf '{"prompt": "p", "completion": "c", "history": []}\n' >"$work/more.jsonl"
printf '{"prompt": "p", "completion": "c", "note": {"by": 1}}\n' >>"$work/more.jsonl"
for verb in inspect evaluate generate ""; do
    run $verb --model data/base --data "$work/more.jsonl" \
        $([ "$verb" = "" ] && echo --max-steps 1 --output "$work/more") \
        $([ "$verb" = generate ] && echo --max-new-tokens 1)
    cat "$work/out" "$work/err" >"$work/both"
    check "columns that nothing reads, named once by ${verb:-train}" \
        [ "$(grep -c '^columns not used: history (1 row), note (1 row);' "$work/both")" = 1 ]
done
refused "nothing to compare" 2 "--adapter" compare --model data/base --data data/hotel/test.jsonl
run compare --model data/base --adapter "$hotel" --adapter "$work/yesno" --data data/hotel/test.jsonl \
    --max-new-tokens 24 --output "$work/page"
check "compare: $(tail -n 1 "$work/out" | sed "s|$work/||")" \
    ended 0 , grep -q '"columns": \["base", ' "$work/page/compare.html" , \
    not grep -q '{{DATA}}' "$work/page/compare.html" , [ -s "$work/page/responses.jsonl" ]

run merge --model data/base --adapter "$hotel" --output "$work/merged"
check "merge: $(sed "s|$work/||g" "$work/out")" \
    ended 0 , says '^merged .*agree' , cmp -s data/base/tokenizer.json "$work/merged/tokenizer.json" , \
    [ "$(stat -c %s data/base/model.safetensors)" = "$(stat -c %s "$work/merged/model.safetensors")" ]
run evaluate --model "$work/merged" --data data/hotel/test.jsonl
check "the merged model's loss: $(grep '^token_loss' "$work/out" | tr -s ' '), with the adapter beside it $loss" \
    awk -v a="$loss" '$1 == "token_loss" { d = $2 / a - 1; exit !(d < 0.02 && d > -0.02) }' "$work/out"
refused "merge over a folder" 1 "exists already" merge --model data/base --adapter "$hotel" --output "$work/merged"
refused "merge nothing" 2 "--adapter" merge --model data/base --output "$work/m2"

# OLoRA as plain LoRA, by the run itself and later: the same file, and how the prompts were written goes with it.
olora=(train --model data/base --data data/hotel/train.jsonl --max-train-samples 16 --max-steps 2 --learning-rate 1e-3
    --init-lora-weights olora --chat-template chatml)
run "${olora[@]}" --output "$work/olora"
run merge --convert-to-lora --model data/base --adapter "$work/olora" --output "$work/plain_lora"
check "merge --convert-to-lora: $(sed "s|$work/||g" "$work/out")" \
    ended 0 , says '^written .*plain LoRA of r 32; its logits agree' , \
    cmp -s "$work/olora/run.json" "$work/plain_lora/run.json" , \
    grep -q '"init_lora_weights": true' "$work/plain_lora/adapter_config.json" , \
    grep -q '"init_lora_weights": "olora"' "$work/olora/adapter_config.json"
run "${olora[@]}" --output "$work/direct" --convert-to-lora
check "train --convert-to-lora writes the same adapter" \
    ended 0 , cmp -s "$work/direct/adapter_model.safetensors" "$work/plain_lora/adapter_model.safetensors" , \
    cmp -s "$work/direct/adapter_config.json" "$work/plain_lora/adapter_config.json"
for adapter in olora plain_lora; do
    run evaluate --model data/base --adapter "$work/$adapter" --data data/hotel/test.jsonl --limit 20
    grep -E '^(token|eval)_loss' "$work/out" >"$work/$adapter.loss"
done
check "and the same loss: $(tr -s ' ' <"$work/plain_lora.loss" | cut -d ' ' -f 1,2 | tr '\n' ' ')" \
    [ "$(wc -l <"$work/plain_lora.loss")" = 2 ] , cmp -s "$work/olora.loss" "$work/plain_lora.loss"
refused "plain LoRA converted" 1 "neither PiSSA nor OLoRA" merge --convert-to-lora --model data/base \
    --adapter "$work/plain_lora" --output "$work/m2"
refused "converted over a folder" 1 "exists already" merge --convert-to-lora --model data/base \
    --adapter "$work/olora" --output "$work/plain_lora"
refused "a dtype of an adapter" 2 "adapters are F32" merge --convert-to-lora --model data/base --adapter "$work/olora" \
    --output "$work/m2" --dtype bf16
refused "a run with nothing to convert" 1 "neither PiSSA nor OLoRA" train --model data/base \
    --data data/hotel/train.jsonl --output "$work/m2" --convert-to-lora

(ulimit -f 512; trap '' XFSZ; run merge --model data/base --adapter "$hotel" --output "$work/full")
status=$?
check "merge without room leaves nothing: $(told ^error "$work/err")" \
    ended 1 , grep -q '^error: cannot write' "$work/err" , absent "$work"/full*
mkdir "$work/mine.tmp" && echo precious >"$work/mine.tmp/thesis.txt"
run merge --model data/base --adapter "$hotel" --output "$work/mine"
check "merge to X beside a folder X.tmp leaves that alone" \
    ended 0 , [ -s "$work/mine/model.safetensors" ] , [ ! -e "$work/mine/thesis.txt" ] , \
    [ "$(cat "$work/mine.tmp/thesis.txt")" = precious ]
finish
