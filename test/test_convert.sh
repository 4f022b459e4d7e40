#!/usr/bin/env bash
# data/convert on every format, small and real, and the recipes from the published data to the page of answers: test_convert.sh CONVERT PROGRAM
set -u
convert=$(realpath "$1") program=$(realpath "$2") passed=0 failed=0
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS=2
verdict() { if [ "$1" = 0 ]; then passed=$((passed + 1)); echo "ok    $2"; else failed=$((failed + 1)); echo "FAIL  $2"; fi; }
gives() {       # name, expected lines of output, arguments...
    local name=$1 want=$2 got
    shift 2
    got=$("$convert" "$@" 2>"$work/err")
    verdict "$([ $? = 0 ] && [ "$got" = "$want" ]; echo $?)" "$name: $(tail -n 1 "$work/err")"
    [ "$got" = "$want" ] || printf '      %s\n' "$got"
}
refused() {     # name, status, pattern, arguments...
    local name=$1 status=$2 pattern=$3
    shift 3
    "$convert" "$@" >"$work/out" 2>"$work/err"
    verdict "$([ $? = "$status" ] && grep -q "^error: .*$pattern" "$work/err"; echo $?)" "$name: $(grep ^error "$work/err" | head -n 1 | sed "s|$work/||g" | cut -c 1-150)"
}
cd "$work" || exit 1

cat >logs.json <<'X'
[[{"speaker": "U", "text": "Is the \"Avalon\" quiet?"}], [{"speaker": "U", "text": "Hi"}, {"speaker": "S", "text": "Hello"}, {"speaker": "U", "text": "Parking?"}]]
X
cat >labels.json <<'X'
[{"target": false}, {"target": true, "knowledge": [{"domain": "hotel", "entity_id": 1, "doc_type": "faq", "doc_id": 0}, {"domain": "hotel", "entity_id": 1, "doc_type": "review", "doc_id": 2, "sent_id": 0}], "response": "Yes, it is free."}]
X
cat >knowledge.json <<'X'
{"hotel": {"1": {"name": "AVALON", "reviews": {"2": {"traveler_type": "Solo travelers", "sentences": {"0": "Parking is easy."}}}, "faqs": {"0": {"question": "Is parking free?", "answer": "Yes."}}}}}
X
gives "dstc11" '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Parking?"}, {"role": "assistant", "content": "Yes, it is free."}]}' dstc11 logs.json labels.json
"$convert" dstc11 logs.json labels.json knowledge.json --with-knowledge >out 2>err
verdict "$(grep -q 'AVALON.*Is parking free?.*Yes\..*Parking is easy\.' out; echo $?)" "dstc11 --with-knowledge: $(cut -c 1-170 out)"
printf 'conv_id,utterance_idx,context,prompt,speaker_idx,utterance,selfeval,tags\nhit:0_conv:1,1,sad,I lost_comma_ all,1,My dog is gone_comma_ sadly,5|5,\nhit:0_conv:1,2,sad,I lost,2,I am sorry,5|5,\nhit:0_conv:2,1,joy,p,1,I won,5|5,\nhit:0_conv:2,2,joy,p,2,Great,5|5,\nhit:0_conv:2,3,joy,p,1,Yes,5|5,\nhit:0_conv:2,4,joy,p,2,Well done,5|5,\n' >ed.csv
gives "empathetic" '{"messages": [{"role": "user", "content": "My dog is gone, sadly"}, {"role": "assistant", "content": "I am sorry"}]}
{"messages": [{"role": "user", "content": "I won"}, {"role": "assistant", "content": "Great"}, {"role": "user", "content": "Yes"}, {"role": "assistant", "content": "Well done"}]}' empathetic ed.csv
"$convert" empathetic ed.csv --each-reply >out 2>err
verdict "$([ "$(wc -l <out)" = 3 ]; echo $?)" "empathetic --each-reply: $(wc -l <out) examples"
cat >squad.json <<'X'
{"data": [{"title": "T", "paragraphs": [{"context": "Ada wrote it in 1843.", "qas": [{"id": "1", "question": "When?", "answers": [{"text": "1843", "answer_start": 16}]}, {"id": "2", "question": "Where?", "is_impossible": true, "answers": []}]}]}]}
X
"$convert" squad squad.json --shape prompt-completion >out 2>err
verdict "$([ "$(wc -l <out)" = 2 ] && grep -q '"completion": " *1843"' out && grep -q 'unanswerable"' out && grep -q 'Ada wrote it in 1843.*When?' out; echo $?)" "squad: $(head -n 1 out)"
printf '{"instruction": "Add", "input": "1 2", "output": "3"}\n{"instruction": "Say", "output": "hi"}\n{"instruction": 5, "output": "x"}\n' >alpaca.jsonl
gives "alpaca, a malformed row skipped" '{"messages": [{"role": "user", "content": "Add\n1 2"}, {"role": "assistant", "content": "3"}]}
{"messages": [{"role": "user", "content": "Say"}, {"role": "assistant", "content": "hi"}]}' alpaca alpaca.jsonl
verdict "$(grep -q 'alpaca.jsonl.*row 3' err; echo $?)" "and named: $(head -n 1 err)"
refused "--strict" 1 "row 3" alpaca alpaca.jsonl --strict
printf '{"conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "q\\t\\u00e9"}, {"from": "gpt", "value": "a"}]}\n' >sharegpt.jsonl
gives "sharegpt" '{"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "q\té"}, {"role": "assistant", "content": "a"}]}' sharegpt sharegpt.jsonl
cat >ms.json <<'X'
{"1": {"title": "t", "utterances": [{"actor_type": "User", "utterance": "It crashed."}, {"actor_type": "User", "utterance": "Help!"}, {"actor_type": "Agent", "utterance": "Restart it."}]}}
X
"$convert" msdialog ms.json >out 2>err
verdict "$(grep -q '"content": "It crashed\.[\\n ]*Help!"}, {"role": "assistant", "content": "Restart it\."' out; echo $?)" "msdialog joins posts of one person: $(cat out)"
printf '[{"prompt": "p", "chosen": "good", "rejected": "bad"}]' >dpo.json
"$convert" dpo dpo.json >out 2>err
verdict "$(grep -q '"chosen":.*good.*"rejected":.*bad' out; echo $?)" "dpo: $(cat out)"
printf '[{"id": "1", "instruction": "翻译:学而时习之", "output": "学习"}]' >cc.json
gives "classical-chinese" '{"messages": [{"role": "user", "content": "翻译:学而时习之"}, {"role": "assistant", "content": "学习"}]}' classical-chinese cc.json
for i in $(seq 200); do echo "{\"instruction\": \"Question number $((i % 150))\", \"output\": \"$i\"}"; done >many.jsonl
"$convert" alpaca many.jsonl --output parts.jsonl --split eval=0.2,test=0.1 --seed 3 2>err
total=$(cat parts-train.jsonl parts-eval.jsonl parts-test.jsonl | wc -l) shared=$(for p in train eval test; do grep -o 'number [0-9]*' parts-$p.jsonl | sort -u; done | sort | uniq -d | wc -l)
verdict "$([ "$total" = 200 ] && [ "$shared" = 0 ] && [ "$(wc -l <parts-eval.jsonl)" -gt 20 ] && [ "$(wc -l <parts-eval.jsonl)" -lt 60 ]; echo $?)" "--split: $(wc -l <parts-train.jsonl) + $(wc -l <parts-eval.jsonl) + $(wc -l <parts-test.jsonl) examples, $shared prompts in two parts"
tac many.jsonl >turned.jsonl
"$convert" alpaca turned.jsonl --output turned-parts.jsonl --split eval=0.2,test=0.1 --seed 3 2>err
verdict "$(cmp -s <(sort parts-eval.jsonl) <(sort turned-parts-eval.jsonl); echo $?)" "the split does not depend on the order of the rows"
"$convert" alpaca many.jsonl --dedup >out 2>err
verdict "$([ "$(wc -l <out)" = 150 ] && grep -q '50 duplicates' err; echo $?)" "--dedup: $(tail -n 1 err)"
head -n 10 many.jsonl >held.jsonl
"$convert" alpaca many.jsonl --dedup-against held.jsonl >out 2>err
verdict "$([ "$(wc -l <out)" = 180 ]; echo $?)" "--dedup-against: $(tail -n 1 err)"
"$convert" alpaca many.jsonl --sample 20 --seed 1 >a 2>err && "$convert" alpaca many.jsonl --sample 20 --seed 1 >b 2>err && "$convert" alpaca many.jsonl --sample 20 --seed 2 >c 2>err
verdict "$([ "$(wc -l <a)" = 20 ] && cmp -s a b && ! cmp -s a c; echo $?)" "--sample is drawn by the seed"
: >empty.json
refused "an empty file" 1 "empty" classical-chinese empty.json
head -c 40 cc.json >cut.json
refused "a cut file" 1 "cut.json" classical-chinese cut.json
refused "no such file" 1 "none.json" alpaca none.json
refused "no such format" 2 "alpaca" alpcaa alpaca.jsonl
refused "no format" 2 ""
refused "a file too few" 2 "labels" dstc11 logs.json
refused "an option too many" 2 "splt" alpaca alpaca.jsonl --splt eval=0.1
printf '\xff\xfe{' >bytes.json
refused "not text" 1 "bytes.json" classical-chinese bytes.json

# The recipes, from the published data to the answers side by side, with the embedded base in place of the large models.
cd - >/dev/null || exit 1
shared=../shared/datasets
if [ -d $shared ]; then
    recipe() {      # name recipe-file max-length evaluate-options... ; $work/NAME-train.jsonl and -eval.jsonl are there
        local name=$1 file=$2 length=$3
        shift 3
        head -n 6 "$work/$name-eval.jsonl" >"$work/$name-few.jsonl"
        "$program" train --config "data/recipes/$file.json" --model data/base --data "$work/$name-train.jsonl" --eval-data "$work/$name-few.jsonl" --max-length "$length" --max-steps 3 --output "$work/$name" >"$work/log" 2>&1 &&
            "$program" compare --config "data/recipes/$file.json" --model data/base --adapter "$work/$name" --data "$work/$name-few.jsonl" --max-length "$length" --max-new-tokens 24 --output "$work/$name-page" "$@" >"$work/log2" 2>&1
        verdict "$([ $? = 0 ] && [ -s "$work/$name-page/compare.html" ] && [ "$(wc -l <"$work/$name-page/responses.jsonl")" = 12 ] && grep -q '^chrf' "$work/log2"; echo $?)" "recipe $file: $(wc -l <"$work/$name-train.jsonl") examples, $(grep -o 'done after.*' "$work/log"), $(grep '^loss' "$work/log2" | tr -s ' ')"
    }
    "$convert" dstc11 $shared/dstc11/logs.json $shared/dstc11/labels.json $shared/dstc11/knowledge.json --with-knowledge --sample 300 --split eval=0.1 --output "$work/dstc11.jsonl" 2>"$work/err"
    verdict $? "dstc11: $(tail -n 1 "$work/err")"
    recipe dstc11 dstc11-qwen3-1.7b 512
    "$convert" empathetic $shared/empathetic/valid.csv --each-reply --sample 300 --split eval=0.1 --output "$work/empathetic.jsonl" 2>"$work/err"
    verdict $? "empathetic: $(tail -n 1 "$work/err")"
    recipe empathetic empathetic-tinyllama 256
    "$convert" classical-chinese $shared/classical_chinese/train.json --sample 300 --split eval=0.1 --dedup --output "$work/chinese.jsonl" 2>"$work/err"
    verdict $? "classical-chinese: $(tail -n 1 "$work/err")"
    recipe chinese classical-chinese-qwen3-4b 256 --bleu-tokenize zh --few-shot 1 --shots "$work/chinese-train.jsonl"
    "$convert" squad $shared/xquad/xquad.en.json 2>"$work/err" >"$work/xquad.jsonl"
    verdict "$([ "$(wc -l <"$work/xquad.jsonl")" = 1190 ]; echo $?)" "xquad: $(tail -n 1 "$work/err")"
    "$convert" dpo $shared/human_like_dpo/*.json 2>"$work/err" >"$work/dpo.jsonl"
    verdict "$([ "$(wc -l <"$work/dpo.jsonl")" -gt 100 ]; echo $?)" "human_like_dpo: $(tail -n 1 "$work/err")"
else
    echo "skipped: ../shared not present"
fi
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
