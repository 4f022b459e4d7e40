#!/usr/bin/env bash
# data/convert on every format, small and real, and the recipes from the published data to the page of answers: test_convert.sh CONVERT PROGRAM
set -u
convert=$(realpath "$1") program=$(realpath "$2") passed=0 failed=0
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} OMP_WAIT_POLICY=passive
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
gives "dstc11" '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Parking?"}, {"role": "assistant", "content": "Yes, it is free."}], "group": "hotel, reviews and FAQ"}' dstc11 logs.json labels.json
"$convert" dstc11 logs.json labels.json knowledge.json --with-knowledge >out 2>err
verdict "$(grep -q 'AVALON.*Is parking free?.*Yes\..*Parking is easy\.' out; echo $?)" "dstc11 --with-knowledge: $(cut -c 1-170 out)"
printf 'conv_id,utterance_idx,context,prompt,speaker_idx,utterance,selfeval,tags\nhit:0_conv:1,1,sad,I lost_comma_ all,1,My dog is gone_comma_ sadly,5|5,\nhit:0_conv:1,2,sad,I lost,2,I am sorry,5|5,\nhit:0_conv:2,1,joy,p,1,I won,5|5,\nhit:0_conv:2,2,joy,p,2,Great,5|5,\nhit:0_conv:2,3,joy,p,1,Yes,5|5,\nhit:0_conv:2,4,joy,p,2,Well done,5|5,\n' >ed.csv
gives "empathetic" '{"messages": [{"role": "user", "content": "My dog is gone, sadly"}, {"role": "assistant", "content": "I am sorry"}], "group": "sad"}
{"messages": [{"role": "user", "content": "I won"}, {"role": "assistant", "content": "Great"}, {"role": "user", "content": "Yes"}, {"role": "assistant", "content": "Well done"}], "group": "joy"}' empathetic ed.csv
gives "empathetic as text with its emotion in front" '{"text": "Instruction: sad\nUser: My dog is gone, sadly\nAssistant: I am sorry", "group": "sad"}
{"text": "Instruction: joy\nUser: I won\nAssistant: Great\nUser: Yes\nAssistant: Well done", "group": "joy"}' \
    empathetic ed.csv --shape text
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
cat >intent.json <<'X'
{"1": {"utterances": [{"actor_type": "User", "utterance": "It crashed.", "tags": "OQ"}, {"actor_type": "Agent", "utterance": "Which build?", "tags": " IR FQ "}, {"actor_type": "User", "utterance": "7"}]}}
X
gives "msdialog --labels" '{"prompt": [{"role": "user", "content": "User: It crashed.\n\nWhat does the last post do?"}], "completion": [{"role": "assistant", "content": "OQ"}], "label": "OQ"}
{"prompt": [{"role": "user", "content": "User: It crashed.\nAgent: Which build?\n\nWhat does the last post do?"}], "completion": [{"role": "assistant", "content": "IR FQ"}], "label": "IR FQ"}' \
    msdialog intent.json --labels
gives "as text without the answer" '{"text": "User: It crashed.\n\nWhat does the last post do?", "label": "OQ"}
{"text": "User: It crashed.\nAgent: Which build?\n\nWhat does the last post do?", "label": "IR FQ"}' \
    msdialog intent.json --labels --shape text
cat >turns.json <<'X'
{"1": {"utterances": [{"actor_type": "Agent", "utterance": "Welcome", "tags": "GG"}, {"actor_type": "User", "utterance": "It crashed.", "tags": "CQ"}, {"actor_type": "Agent", "utterance": "Sorry", "tags": "GG"}, {"actor_type": "Agent", "utterance": "Which?", "tags": "PA  CQ"}, {"actor_type": "Agent", "utterance": " "}, {"actor_type": "User", "utterance": "7"}, {"actor_type": "Agent", "utterance": "Restart", "tags": "PA"}, {"actor_type": "User", "utterance": "Hm"}, {"actor_type": "Agent", "utterance": "Well"}]},
 "2": {"utterances": [{"actor_type": "User", "utterance": "Hi"}, {"actor_type": "Agent", "utterance": "Hi"}]},
 "3": {"utterances": [{"actor_type": "User", "utterance": "Hi"}, {"actor_type": "Bot", "utterance": "Hi", "tags": "CQ"}]}}
X
asks="Does the agent take the initiative in the next post, with a question of its own? Answer with one of: yes, no."
gives "msdialog --classes initiative: what was said before the agent's turn, and whether it asks" '{"prompt": [{"role": "user", "content": "Agent: Welcome\nUser: It crashed.\n\n'"$asks"'"}], "completion": [{"role": "assistant", "content": "yes"}], "label": "yes"}
{"prompt": [{"role": "user", "content": "Agent: Welcome\nUser: It crashed.\nAgent: Sorry\nAgent: Which?\nUser: 7\n\n'"$asks"'"}], "completion": [{"role": "assistant", "content": "no"}], "label": "no"}' \
    msdialog turns.json --classes initiative
"$convert" msdialog turns.json --classes initiative >out 2>err
verdict "$(grep -q '^classes: yes = CQ FQ IR, 1 rows; no = everything else, 1 rows$' err && grep -q 'no row has "FQ"' err && grep -q 'row 2: no post has "tags"' err && grep -q 'row 3: unknown actor_type "Bot"' err; echo $?)" "the map is printed: $(grep ^classes err)"
gives "a map of one's own" '{"prompt": "S\n\nAgent: Welcome\nUser: It crashed.\n\nWhat does the agent'"'"'s next post do? Answer with one of: thanks, answers.\n", "completion": "thanks", "label": "thanks"}
{"prompt": "S\n\nAgent: Welcome\nUser: It crashed.\nAgent: Sorry\nAgent: Which?\nUser: 7\n\nWhat does the agent'"'"'s next post do? Answer with one of: thanks, answers.\n", "completion": "answers", "label": "answers"}' \
    msdialog turns.json --classes 'thanks=GG; answers = PA' --shape prompt-completion --system S
gives "empathetic --classes: what the speaker begins with" '{"text": "My dog is gone, sadly\n\nHow does this person feel? Answer with one of: low, high.", "group": "sad", "label": "low"}
{"text": "I won\n\nHow does this person feel? Answer with one of: low, high.", "group": "joy", "label": "high"}' \
    empathetic ed.csv --classes 'low=sad;high=joy,proud' --shape text
"$convert" empathetic ed.csv --classes 'low=sad;high=proud' >out 2>err
verdict "$([ "$(wc -l <out)" = 1 ] && grep -q '1 in no class' err && grep -q 'no row has "proud"' err; echo $?)" "what is in no class is counted: $(head -n 1 err)"
for i in $(seq 100); do printf '%s,1,%s,p,1,opening %s,5|5,\n%s,2,x,p,2,reply,5|5,\n' $i "$([ $((i % 2)) = 0 ] && echo sad || echo proud)" $i $i; done | cat <(echo conv_id,utterance_idx,context,prompt,speaker_idx,utterance,selfeval,tags) - >even.csv
for want in "sad=3 16 50" "sad=0.5 50 25" "sad=1 50 50" "proud=4 50 12"; do
    set -- $want
    "$convert" empathetic even.csv --classes 'sad=sad;proud=proud' --imbalance $1 --shape text >out 2>err
    verdict "$([ "$(grep -c '"label": "proud"' out)" = $2 ] && [ "$(grep -c '"label": "sad"' out)" = $3 ]; echo $?)" "--imbalance $1 of 50 and 50: $(grep -c '"label": "sad"' out) sad, $(grep -c '"label": "proud"' out) proud"
done
"$convert" empathetic even.csv --classes 'sad=sad;proud=proud' --imbalance sad=3 --shape text --seed 9 >other 2>err
"$convert" empathetic even.csv --classes 'sad=sad;proud=proud' --imbalance sad=3 --shape text >again 2>err
verdict "$([ "$(wc -l <other)" = 66 ] && ! cmp -s other again; echo $?)" "who is left out is drawn by the seed"
refused "a label that no row has" 1 "0 rows have the label glad" empathetic even.csv --classes 'sad=sad;proud=proud' --imbalance glad=3
refused "an imbalance of three" 2 "more than two labels" msdialog turns.json --labels --imbalance GG=2
for bad in sad sad= =3 sad=0 sad=-1 sad=x sad=nan; do refused "--imbalance $bad" 2 "LABEL=N" empathetic even.csv --classes 'sad=sad;proud=proud' --imbalance $bad; done
for bad in yes yes=a "yes=a;" "yes=a;no" "=a;no=b" "yes=;no=b" "yes=a,;no=b" ""; do refused "--classes '$bad'" 2 "two classes at least" msdialog intent.json --classes "$bad"; done
for bad in "a=x;b=x" "a=x;a=y" "a=*;b=*"; do refused "--classes '$bad'" 2 "in two classes" msdialog intent.json --classes "$bad"; done
refused "--classes of another format" 2 "msdialog and empathetic" alpaca alpaca.jsonl --classes initiative
refused "--classes with --labels" 2 "exclude each other" msdialog intent.json --classes initiative --labels
refused "--imbalance without labels" 2 "add --classes" empathetic even.csv --imbalance sad=3
refused "--each-reply of labels" 2 "rows with a label" msdialog intent.json --labels --each-reply
"$convert" msdialog intent.json >out 2>err
verdict "$(grep -q '2 tags left out (--labels' err; echo $?)" "without --labels and --classes the tags are counted: $(tail -n 1 err)"
refused "--labels of posts without tags" 1 "no post has" msdialog ms.json --labels --strict
refused "--labels of another format" 2 "msdialog" alpaca alpaca.jsonl --labels
refused "preferences as text" 2 "--shape text" dpo alpaca.jsonl --shape text
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

# The same in more detail: the other layouts and shapes, malformed rows, what is written and what is refused.
cat >joined.csv <<'X'
prompt,utterance_data,speaker_utterance,emotion,emotion_label,speaker_info
job,"I got a job!Great! Where? ""At the bank, Tom said """"yes"""". ""So proud.","I got a job!""At the bank, Tom said """"yes"""". """,8,joyful,"[0, 1, 0, 1]"
pet,My dog is gonewhy is thatcarsorry,My dog is gonecar,2,sad,"[0, 1, 0, 1]"
alone,Hello?,Hello?,2,sad,[0]
other,Hello?Hi,Goodbye,2,sad,"[0, 1]"
X
gives "empathetic with joined turns" '{"messages": [{"role": "user", "content": "I got a job!"}, {"role": "assistant", "content": "Great! Where?"}, {"role": "user", "content": "At the bank, Tom said \"yes\"."}, {"role": "assistant", "content": "So proud."}], "group": "joyful"}
{"messages": [{"role": "user", "content": "My dog is gone"}, {"role": "assistant", "content": "why is that"}, {"role": "user", "content": "car"}, {"role": "assistant", "content": "sorry"}], "group": "sad"}' empathetic joined.csv
verdict "$(grep -q 'row 3: no user turn that is answered' err && grep -q 'row 4:.*cannot be divided' err; echo $?)" "a conversation without answer and one that does not fit are named"
printf 'conv_id,utterance_idx,prompt,utterance,label\r\na,2,p,"two\r\nlines, ""quoted""",1\r\nb,1,p,x,1\r\na,1,p, first ,1\r\nb,3,p,y,1\r\nc,1,p,"open" shut,1\r\nc,1,p,q\r\nc,one,p,q,1\r\nc,1,p,\xff,1\r\n' >rows.csv
gives "a CSV file with quotes, line breaks and rows in any order" '{"messages": [{"role": "user", "content": "first"}, {"role": "assistant", "content": "two\r\nlines, \"quoted\""}], "group": "trusting"}' empathetic rows.csv
for reason in 'row 5: text after a closing quote' 'row 6: 4 fields, the header has 5' 'row 7: "utterance_idx" is not a whole number' 'row 8: invalid UTF-8 in field 4' 'row 2: the conversation that starts here has no turn 2'; do
    verdict "$(grep -q "$reason" err; echo $?)" "its malformed rows: $reason"
done
gives "a dialogue for a base model" '{"prompt": "User: Hi\nAssistant: Hello\nUser: Parking?\nAssistant:", "completion": " Yes, it is free.", "group": "hotel, reviews and FAQ"}' dstc11 logs.json labels.json --shape prompt-completion
gives "--each-reply and --system" '{"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}], "group": "hotel, reviews and FAQ"}
{"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Parking?"}, {"role": "assistant", "content": "Yes, it is free."}], "group": "hotel, reviews and FAQ"}' dstc11 logs.json labels.json --each-reply --system "Be kind."
cat >log.json <<'X'
[[{"speaker": "U", "text": "Quiet?"}], [{"speaker": "U", "text": "Loud?"}], [{"speaker": "U", "text": "Far?"}, {"speaker": "S", "text": "No"}], [{"speaker": "X", "text": "Far?"}], [{"speaker": "U", "text": "Far?"}]]
X
cat >label.json <<'X'
[{"target": true, "response": "Very.", "knowledge": [{"domain": "hotel", "entity_id": 1, "doc_type": "review", "doc_id": 2, "sent_id": 2}, {"domain": "hotel", "entity_id": 1, "doc_type": "faq", "doc_id": 0}, {"domain": "hotel", "entity_id": 1, "doc_type": "review", "doc_id": 2, "sent_id": 0}]},
 {"target": true, "response": "No.", "knowledge": [{"domain": "hotel", "entity_id": 9, "doc_type": "faq", "doc_id": 0}]}, {"target": true, "response": "r", "knowledge": []}, {"target": true, "response": "r", "knowledge": []}, {"target": 1}]
X
cat >known.json <<'X'
{"hotel": {"1": {"name": "AVALON", "reviews": {"2": {"traveler_type": "Couples", "sentences": {"0": "It is quiet.", "1": "It is old.", "2": "We slept well."}}}, "faqs": {"0": {"question": "Is it quiet?", "answer": "Yes."}}}}}
X
gives "only the named sentences, each source once" '{"messages": [{"role": "system", "content": "Be kind.\n\nAnswer from these sources:\n- AVALON, review (Couples): It is quiet. We slept well.\n- AVALON, FAQ: Is it quiet? Yes."}, {"role": "user", "content": "Quiet?"}, {"role": "assistant", "content": "Very."}], "group": "hotel, reviews and FAQ"}' dstc11 log.json label.json known.json --with-knowledge --system "Be kind."
for reason in 'row 2: hotel 9, faq 0: not in the knowledge file' 'row 3: the dialogue does not end with the user' 'row 4: unknown speaker "X"' 'row 5: the label has no "target"'; do verdict "$(grep -q "$reason" err; echo $?)" "its malformed rows: $reason"; done
cat >squad2.json <<'X'
{"data": [{"paragraphs": [{"context": "C", "qas": [{"question": "1?", "answers": "a"}, {"question": "", "answers": []}, {"question": "2?", "is_impossible": true, "answers": [{"text": "no"}]}]}, {"qas": []}]}, {"context": "D", "question": "3?", "answers": {"text": ["d", "e"], "answer_start": [0, 1]}}, 7]}
X
gives "squad, both layouts and malformed questions" '{"messages": [{"role": "user", "content": "C\n\nQuestion: 2?"}, {"role": "assistant", "content": "unanswerable"}]}
{"messages": [{"role": "user", "content": "D\n\nQuestion: 3?"}, {"role": "assistant", "content": "d"}], "answers": ["d", "e"]}' squad squad2.json
verdict "$(grep -q '^6 rows read, 2 examples written, 4 skipped' err; echo $?)" "$(tail -n 1 err)"
cat >chats.jsonl <<'X'
{"conversations": [{"from": "gpt", "value": "lost"}, {"from": "human", "value": "a\\b\"c\u0000\u001f\ud83d\ude00"}, {"from": "gpt", "value": "d"}, {"from": "human", "value": "bye"}], "system": "S"}
{"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}
{"conversations": [{"from": "wizard", "value": "x"}]}
{"conversations": [{"from": "human", "value": 3}]}
{"conversations": "x"}
{"conversations": [{"from": "human", "value": "x"}]}
{"conversations": [7]
["x"]
{"text": "x"}
X
gives "sharegpt: escapes, an answer to nothing, a question without answer" '{"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "a\\b\"c\u0000\u001f😀"}, {"role": "assistant", "content": "d"}]}
{"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}' sharegpt chats.jsonl
for reason in 'row 3: message 1: unknown role "wizard"' 'row 4: message 1: "value" is not a string' 'row 5: "conversations" is not a list' 'row 6: no user turn' 'row 7: .*chats.jsonl:7:22' 'row 8: not an object' 'row 9: "conversations" is missing' '9 rows read, 2 examples written, 7 skipped'; do
    verdict "$(grep -q "$reason" err; echo $?)" "its malformed rows: $reason"
done
"$convert" sharegpt chats.jsonl 2>err | "$convert" sharegpt /dev/stdin >again 2>err
verdict "$("$convert" sharegpt chats.jsonl 2>err | cmp -s - again; echo $?)" "what it writes it reads as the same"
cat >prefer.json <<'X'
[{"chosen": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "good"}], "rejected": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "bad"}], "prompt": "u"},
 {"prompt": [{"role": "user", "content": "v"}], "chosen": [{"role": "assistant", "content": "good"}], "rejected": "bad", "system": "S"},
 {"prompt": "p", "chosen": "same", "rejected": "same"}, {"prompt": "p", "chosen": "c"}, {"chosen": "c", "rejected": "r"}, {"prompt": 1, "chosen": "c", "rejected": "r"}]
X
gives "dpo, message lists and malformed rows" '{"prompt": [{"role": "user", "content": "u"}], "chosen": [{"role": "assistant", "content": "good"}], "rejected": [{"role": "assistant", "content": "bad"}]}
{"prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "v"}], "chosen": [{"role": "assistant", "content": "good"}], "rejected": [{"role": "assistant", "content": "bad"}]}' dpo prefer.json
verdict "$(grep -q 'row 3: "chosen" and "rejected" are the same' err && grep -q 'row 4: "rejected" is missing' err && grep -q 'row 5: the prompt does not end' err && grep -q '4 skipped' err; echo $?)" "$(tail -n 1 err)"
gives "dpo as plain text" '{"prompt": "p\n", "chosen": "good", "rejected": "bad"}' dpo dpo.json --shape prompt-completion
printf '{"7": {"utterances": [{"actor_type": "Agent", "utterance": "x"}, {"actor_type": "Robot", "utterance": "x"}]}, "8": {}, "9": {"utterances": [{"actor_type": "Agent", "utterance": "x"}]}}' >robot.json
refused "msdialog without a whole dialog" 1 "3 rows read, 3 skipped" msdialog robot.json
seq 15 | sed 's/.*/{"instruction": "i"}/' >wrong.jsonl; cat alpaca.jsonl >>wrong.jsonl
"$convert" alpaca wrong.jsonl >out 2>err
verdict "$([ "$(grep -c '^skipped: wrong.jsonl row' err)" = 10 ] && grep -q '^skipped: 6 more' err; echo $?)" "ten malformed rows are shown, the others counted"

printf '{"instruction": "What  IS it?", "output": "1"}\n{"instruction": "what is\\tit? ", "output": "2"}\n{"instruction": "ÄRGER", "output": "3"}\n{"instruction": "ärger", "output": "4"}\n' >case.jsonl
"$convert" alpaca case.jsonl --dedup >out 2>err
verdict "$([ "$(wc -l <out)" = 2 ] && grep -q 'IS it' out && grep -q 'ÄRGER' out; echo $?)" "--dedup: neither capitals nor white space make a prompt another one: $(tail -n 1 err)"
"$convert" dstc11 logs.json labels.json --shape prompt-completion >plain.jsonl 2>err
refused "--dedup-against knows a conversation in the other shape" 1 "1 in --dedup-against" dstc11 logs.json labels.json --dedup-against plain.jsonl
"$convert" alpaca many.jsonl --sample 20 --seed 1 --output s.jsonl 2>err; "$convert" alpaca turned.jsonl --sample 20 --seed 1 --output t.jsonl 2>err
verdict "$(cmp -s s.jsonl <(tac t.jsonl); echo $?)" "--sample draws the same rows from a file turned round, in its order"
"$convert" alpaca many.jsonl --max-examples 3 2>err >out
verdict "$(cmp -s out <("$convert" alpaca many.jsonl 2>err | head -n 3); echo $?)" "--max-examples: the first"
for i in $(seq 30); do echo "{\"conversations\": [{\"from\": \"human\", \"value\": \"begin $i\"}, {\"from\": \"gpt\", \"value\": \"a\"}, {\"from\": \"human\", \"value\": \"go on\"}, {\"from\": \"gpt\", \"value\": \"b\"}]}"; done >long.jsonl
"$convert" sharegpt long.jsonl --each-reply --split eval=0.2 --output long-parts.jsonl 2>err
verdict "$([ "$(wc -l <long-parts-eval.jsonl)" = 12 ] && ! grep -oh 'begin [0-9]*' long-parts-*.jsonl | sort | uniq -c | grep -vq ' 2 ' && [ -z "$(comm -12 <(grep -o 'begin [0-9]*' long-parts-train.jsonl | sort -u) <(grep -o 'begin [0-9]*' long-parts-eval.jsonl | sort -u))" ]; echo $?)" "--each-reply and --split: no conversation in two parts"
echo precious >kept.jsonl
refused "nothing to write" 1 "no examples" alpaca squad.json --output kept.jsonl
"$convert" alpaca alpaca.jsonl 2>err >/dev/full
verdict "$([ $? = 1 ] && grep -q '^error: cannot write; standard output: No space left' err; echo $?)" "a full disk: $(tail -n 1 err)"
mkfifo pipe
cat pipe >piped & "$convert" alpaca alpaca.jsonl --output pipe 2>err
[ -p pipe ] || { rm -f pipe; kill $!; } 2>/dev/null
wait $!
verdict "$([ -p pipe ] && [ "$(wc -l <piped)" = 2 ]; echo $?)" "a pipe or device is written, not replaced"
refused "the output in place of an input" 2 "replace an input" alpaca alpaca.jsonl --output ./alpaca.jsonl
refused "no such folder" 1 "cannot write" alpaca alpaca.jsonl --output none/out.jsonl
verdict "$([ "$(cat kept.jsonl)" = precious ] && [ "$(wc -l <alpaca.jsonl)" = 3 ] && ! ls | grep -q tmp; echo $?)" "earlier files are as they were, no temporary file is left"
"$convert" alpaca alpaca.jsonl --output kept.jsonl 2>err
verdict "$([ "$(wc -l <kept.jsonl)" = 2 ]; echo $?)" "and a whole output takes an earlier one's place"
refused "a share too large" 2 "together below 1" alpaca many.jsonl --output p.jsonl --split eval=0.5,test=0.5
refused "a part without share" 2 "NAME=SHARE" alpaca many.jsonl --output p.jsonl --split eval
refused "the part train" 2 "twice" alpaca many.jsonl --output p.jsonl --split train=0.1
refused "a part without examples" 1 "no examples for eval" alpaca alpaca.jsonl --output p.jsonl --split eval=0.1
refused "--split to standard output" 2 "add --output" alpaca many.jsonl --split eval=0.1
refused "no such shape" 2 "messages or prompt-completion" alpaca many.jsonl --shape chat
refused "--each-reply of pairs" 2 "dialogues" squad squad.json --each-reply
refused "--with-knowledge of another format" 2 "dstc11" squad squad.json --with-knowledge
refused "not a number" 2 "whole number" alpaca many.jsonl --sample -1
refused "a missing value" 2 "needs a value" alpaca many.jsonl --seed
refused "dialogues and labels of different files" 1 "2 dialogues, but 5 labels" dstc11 logs.json label.json
printf '[{"conversations": [' >short.json
refused "a truncated list" 1 "short.json:1:21" sharegpt short.json
for text in '[]' '{}' '7' 'null' '[[[]]]' '{"data": 3}' '{"data": [{"paragraphs": 5}]}' '[{"prompt": {}}]' '{"a": {"utterances": {}}}' "$(printf '[%.0s' $(seq 300))" '"' 'a,a'; do
    for format in empathetic squad alpaca sharegpt msdialog dpo classical-chinese; do
        printf '%s' "$text" >hostile.json
        "$convert" $format hostile.json >out 2>err
        [ $? = 1 ] && [ "$(grep -c '^error: .*;.*;' err)" = 1 ] && [ ! -s out ] || echo "$format: $text"
    done
done >odd
verdict "$([ ! -s odd ]; echo $?)" "strange but valid and invalid files are refused, by every format: $(head -n 3 odd)"
"$convert" --help >out && grep -q 'dedup-against' out && grep -q 'classical-chinese' out
verdict $? "--help"

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
    "$convert" empathetic $shared/empathetic/fixed_valid.csv --output "$work/rows.jsonl" 2>"$work/err" && "$convert" empathetic $shared/empathetic/valid.csv --output "$work/joined.jsonl" 2>>"$work/err"
    same=$(awk 'NR == FNR { row[NR] = $0; next } row[FNR] == $0' "$work/rows.jsonl" "$work/joined.jsonl" | wc -l)
    verdict "$([ "$(wc -l <"$work/rows.jsonl")" = 2769 ] && [ "$same" -ge 2766 ]; echo $?)" "both layouts of EmpatheticDialogues: $same of $(wc -l <"$work/rows.jsonl") conversations come out the same"
else
    echo "skipped: ../shared not present"
fi
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
