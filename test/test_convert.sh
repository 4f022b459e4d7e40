#!/usr/bin/env bash
# data/convert on every format, small and real, and the recipes from the published data to the page of answers:
# test_convert.sh CONVERT PROGRAM
set -u
. test/check.sh
convert=$(realpath "$1") program=$(realpath "$2")
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} OMP_WAIT_POLICY=passive
run() { "$convert" "$@" >out 2>err; status=$?; return $status; }
lines() { [ "$(wc -l <"$2")" = "$1" ]; }
said() { grep -q -- "$1" err; }             # in what is written there for a reader
last() { tail -n 1 err; }
gives() {       # name, expected lines of output, arguments...
    local name=$1 want=$2
    shift 2
    run "$@"
    check "$name: $(last)" ended 0 , [ "$(cat out)" = "$want" ]
}
refused() {     # name, status, pattern, arguments...
    local name=$1 want=$2 pattern=$3
    shift 3
    run "$@"
    check "$name: $(told ^error err)" ended "$want" , said "^error: .*$pattern"
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
run dstc11 logs.json labels.json knowledge.json --with-knowledge
check "dstc11 --with-knowledge: $(cut -c 1-170 out)" grep -q 'AVALON.*Is parking free?.*Yes\..*Parking is easy\.' out
printf 'conv_id,utterance_idx,context,prompt,speaker_idx,utterance,selfeval,tags\nhit:0_conv:1,1,sad,I lost_comma_ all,1,My dog is gone_comma_ sadly,5|5,\nhit:0_conv:1,2,sad,I lost,2,I am sorry,5|5,\nhit:0_conv:2,1,joy,p,1,I won,5|5,\nhit:0_conv:2,2,joy,p,2,Great,5|5,\nhit:0_conv:2,3,joy,p,1,Yes,5|5,\nhit:0_conv:2,4,joy,p,2,Well done,5|5,\n' >ed.csv
gives "empathetic" '{"messages": [{"role": "user", "content": "My dog is gone, sadly"}, {"role": "assistant", "content": "I am sorry"}], "group": "sad"}
{"messages": [{"role": "user", "content": "I won"}, {"role": "assistant", "content": "Great"}, {"role": "user", "content": "Yes"}, {"role": "assistant", "content": "Well done"}], "group": "joy"}' empathetic ed.csv
gives "empathetic as text with its emotion in front" '{"text": "Instruction: sad\nUser: My dog is gone, sadly\nAssistant: I am sorry", "group": "sad"}
{"text": "Instruction: joy\nUser: I won\nAssistant: Great\nUser: Yes\nAssistant: Well done", "group": "joy"}' \
    empathetic ed.csv --shape text
run empathetic ed.csv --each-reply
check "empathetic --each-reply: $(wc -l <out) examples" lines 3 out
cat >squad.json <<'X'
{"data": [{"title": "T", "paragraphs": [{"context": "Ada wrote it in 1843.", "qas": [{"id": "1", "question": "When?", "answers": [{"text": "1843", "answer_start": 16}]}, {"id": "2", "question": "Where?", "is_impossible": true, "answers": []}]}]}]}
X
run squad squad.json --shape prompt-completion
check "squad: $(head -n 1 out)" \
    lines 2 out , grep -q '"completion": " *1843"' out , grep -q 'unanswerable"' out , \
    grep -q 'Ada wrote it in 1843.*When?' out
printf '{"instruction": "Add", "input": "1 2", "output": "3"}\n{"instruction": "Say", "output": "hi"}\n{"instruction": 5, "output": "x"}\n' >alpaca.jsonl
gives "alpaca, a malformed row skipped" '{"messages": [{"role": "user", "content": "Add\n1 2"}, {"role": "assistant", "content": "3"}]}
{"messages": [{"role": "user", "content": "Say"}, {"role": "assistant", "content": "hi"}]}' alpaca alpaca.jsonl
check "and named: $(head -n 1 err)" said 'alpaca.jsonl.*row 3'
refused "--strict" 1 "row 3" alpaca alpaca.jsonl --strict
printf '{"conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "q\\t\\u00e9"}, {"from": "gpt", "value": "a"}]}\n' >sharegpt.jsonl
gives "sharegpt" '{"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "q\té"}, {"role": "assistant", "content": "a"}]}' sharegpt sharegpt.jsonl
cat >ms.json <<'X'
{"1": {"title": "t", "utterances": [{"actor_type": "User", "utterance": "It crashed."}, {"actor_type": "User", "utterance": "Help!"}, {"actor_type": "Agent", "utterance": "Restart it."}]}}
X
run msdialog ms.json
check "msdialog joins posts of one person: $(cat out)" \
    grep -q '"content": "It crashed\.[\\n ]*Help!"}, {"role": "assistant", "content": "Restart it\."' out
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
run msdialog turns.json --classes initiative
check "the map is printed: $(grep ^classes err)" \
    said '^classes: yes = CQ FQ IR, 1 rows; no = everything else, 1 rows$' , said 'no row has "FQ"' , \
    said 'row 2: no post has "tags"' , said 'row 3: unknown actor_type "Bot"'
gives "a map of one's own" '{"prompt": "S\n\nAgent: Welcome\nUser: It crashed.\n\nWhat does the agent'"'"'s next post do? Answer with one of: thanks, answers.\n", "completion": "thanks", "label": "thanks"}
{"prompt": "S\n\nAgent: Welcome\nUser: It crashed.\nAgent: Sorry\nAgent: Which?\nUser: 7\n\nWhat does the agent'"'"'s next post do? Answer with one of: thanks, answers.\n", "completion": "answers", "label": "answers"}' \
    msdialog turns.json --classes 'thanks=GG; answers = PA' --shape prompt-completion --system S
gives "empathetic --classes: what the speaker begins with" '{"text": "My dog is gone, sadly\n\nHow does this person feel? Answer with one of: low, high.", "group": "sad", "label": "low"}
{"text": "I won\n\nHow does this person feel? Answer with one of: low, high.", "group": "joy", "label": "high"}' \
    empathetic ed.csv --classes 'low=sad;high=joy,proud' --shape text
run empathetic ed.csv --classes 'low=sad;high=proud'
check "what is in no class is counted: $(head -n 1 err)" lines 1 out , said '1 in no class' , said 'no row has "proud"'
for i in $(seq 100); do printf '%s,1,%s,p,1,opening %s,5|5,\n%s,2,x,p,2,reply,5|5,\n' $i "$([ $((i % 2)) = 0 ] && echo sad || echo proud)" $i $i; done | cat <(echo conv_id,utterance_idx,context,prompt,speaker_idx,utterance,selfeval,tags) - >even.csv
for want in "sad=3 16 50" "sad=0.5 50 25" "sad=1 50 50" "proud=4 50 12"; do
    set -- $want
    "$convert" empathetic even.csv --classes 'sad=sad;proud=proud' --imbalance $1 --shape text >out 2>err
    check "--imbalance $1 of 50 and 50: $(grep -c '"label": "sad"' out) sad, $(grep -c '"label": "proud"' out) proud" \
        [ "$(grep -c '"label": "proud"' out)" = $2 ] , [ "$(grep -c '"label": "sad"' out)" = $3 ]
done
"$convert" empathetic even.csv --classes 'sad=sad;proud=proud' --imbalance sad=3 --shape text --seed 9 >other 2>err
"$convert" empathetic even.csv --classes 'sad=sad;proud=proud' --imbalance sad=3 --shape text >again 2>err
check "who is left out is drawn by the seed" lines 66 other , not cmp -s other again
"$convert" empathetic even.csv --classes 'sad=sad;proud=proud' --imbalance proud=4 --sample 30 --shape text >out 2>err
check "a sample of imbalanced rows is as imbalanced: $(grep -c '"label": "sad"' out) of 30" \
    lines 30 out , [ "$(grep -c '"label": "sad"' out)" -lt 12 ]
refused "a label that no row has" 1 "0 rows have the label glad" \
    empathetic even.csv --classes 'sad=sad;proud=proud' --imbalance glad=3
refused "an imbalance of three" 2 "more than two labels" msdialog turns.json --labels --imbalance GG=2
for bad in sad sad= =3 sad=0 sad=-1 sad=x sad=nan; do
    refused "--imbalance $bad" 2 "LABEL=N" empathetic even.csv --classes 'sad=sad;proud=proud' --imbalance $bad
done
for bad in yes yes=a "yes=a;" "yes=a;no" "=a;no=b" "yes=;no=b" "yes=a,;no=b" ""; do
    refused "--classes '$bad'" 2 "two classes at least" msdialog intent.json --classes "$bad"
done
for bad in "a=x;b=x" "a=x;a=y" "a=*;b=*"; do
    refused "--classes '$bad'" 2 "in two classes" msdialog intent.json --classes "$bad"
done
refused "--classes of another format" 2 "msdialog and empathetic" alpaca alpaca.jsonl --classes initiative
refused "--classes with --labels" 2 "exclude each other" msdialog intent.json --classes initiative --labels
refused "--imbalance without labels" 2 "add --classes" empathetic even.csv --imbalance sad=3
refused "--each-reply of labels" 2 "rows with a label" msdialog intent.json --labels --each-reply
run msdialog intent.json
check "without --labels and --classes the tags are counted: $(last)" said '2 tags left out (--labels'
refused "--labels of posts without tags" 1 "no post has" msdialog ms.json --labels --strict
refused "--labels of another format" 2 "msdialog" alpaca alpaca.jsonl --labels
refused "preferences as text" 2 "--shape text" dpo alpaca.jsonl --shape text
printf '[{"prompt": "p", "chosen": "good", "rejected": "bad"}]' >dpo.json
run dpo dpo.json
check "dpo: $(cat out)" grep -q '"chosen":.*good.*"rejected":.*bad' out
printf '[{"id": "1", "instruction": "翻译:学而时习之", "output": "学习"}]' >cc.json
gives "classical-chinese" '{"messages": [{"role": "user", "content": "翻译:学而时习之"}, {"role": "assistant", "content": "学习"}]}' classical-chinese cc.json
for i in $(seq 200); do echo "{\"instruction\": \"Question number $((i % 150))\", \"output\": \"$i\"}"; done >many.jsonl
run alpaca many.jsonl --output parts.jsonl --split eval=0.2,test=0.1 --seed 3
numbers() { grep -o 'number [0-9]*' parts-$1.jsonl | sort -u; }
shared=$(for p in train eval test; do numbers $p; done | sort | uniq -d | wc -l)
held=$(wc -l <parts-eval.jsonl) total=$(cat parts-{train,eval,test}.jsonl | wc -l)
check "--split: $total examples, $held of them in eval, $shared prompts in two parts" \
    [ "$total" = 200 ] , [ "$shared" = 0 ] , [ "$held" -gt 20 ] , [ "$held" -lt 60 ]
tac many.jsonl >turned.jsonl
run alpaca turned.jsonl --output turned-parts.jsonl --split eval=0.2,test=0.1 --seed 3
check "the split does not depend on the order of the rows" \
    cmp -s <(sort parts-eval.jsonl) <(sort turned-parts-eval.jsonl)
run alpaca many.jsonl --dedup
check "--dedup: $(last)" lines 150 out , said '50 duplicates'
head -n 10 many.jsonl >held.jsonl
run alpaca many.jsonl --dedup-against held.jsonl
check "--dedup-against: $(last)" lines 180 out
for name in "a 1" "b 1" "c 2"; do run alpaca many.jsonl --sample 20 --seed ${name#* } && cp out ${name% *}; done
check "--sample is drawn by the seed" lines 20 a , cmp -s a b , not cmp -s a c
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
check "a conversation without answer and one that does not fit are named" \
    said 'row 3: no user turn that is answered' , said 'row 4:.*cannot be divided'
printf 'conv_id,utterance_idx,prompt,utterance,label\r\na,2,p,"two\r\nlines, ""quoted""",1\r\nb,1,p,x,1\r\na,1,p, first ,1\r\nb,3,p,y,1\r\nc,1,p,"open" shut,1\r\nc,1,p,q\r\nc,one,p,q,1\r\nc,1,p,\xff,1\r\n' >rows.csv
gives "a CSV file with quotes, line breaks and rows in any order" '{"messages": [{"role": "user", "content": "first"}, {"role": "assistant", "content": "two\r\nlines, \"quoted\""}], "group": "trusting"}' empathetic rows.csv
for reason in 'row 5: text after a closing quote' 'row 6: 4 fields, the header has 5' \
    'row 7: "utterance_idx" is not a whole number' 'row 8: invalid UTF-8 in field 4' \
    'row 2: the conversation that starts here has no turn 2'; do
    check "its malformed rows: $reason" said "$reason"
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
for reason in 'row 2: hotel 9, faq 0: not in the knowledge file' 'row 3: the dialogue does not end with the user' \
    'row 4: unknown speaker "X"' 'row 5: the label has no "target"'; do
    check "its malformed rows: $reason" said "$reason"
done
cat >squad2.json <<'X'
{"data": [{"paragraphs": [{"context": "C", "qas": [{"question": "1?", "answers": "a"}, {"question": "", "answers": []}, {"question": "2?", "is_impossible": true, "answers": [{"text": "no"}]}]}, {"qas": []}]}, {"context": "D", "question": "3?", "answers": {"text": ["d", "e"], "answer_start": [0, 1]}}, 7]}
X
gives "squad, both layouts and malformed questions" '{"messages": [{"role": "user", "content": "C\n\nQuestion: 2?"}, {"role": "assistant", "content": "unanswerable"}]}
{"messages": [{"role": "user", "content": "D\n\nQuestion: 3?"}, {"role": "assistant", "content": "d"}], "answers": ["d", "e"]}' squad squad2.json
check "$(last)" said '^6 rows read, 2 examples written, 4 skipped'
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
for reason in 'row 3: message 1: unknown role "wizard"' 'row 4: message 1: "value" is not a string' \
    'row 5: "conversations" is not a list' 'row 6: no user turn' 'row 7: .*chats.jsonl:7:22' 'row 8: not an object' \
    'row 9: "conversations" is missing' '9 rows read, 2 examples written, 7 skipped'; do
    check "its malformed rows: $reason" said "$reason"
done
"$convert" sharegpt chats.jsonl 2>err | "$convert" sharegpt /dev/stdin >again 2>err
run sharegpt chats.jsonl
check "what it writes it reads as the same" cmp -s out again
cat >prefer.json <<'X'
[{"chosen": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "good"}], "rejected": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "bad"}], "prompt": "u"},
 {"prompt": [{"role": "user", "content": "v"}], "chosen": [{"role": "assistant", "content": "good"}], "rejected": "bad", "system": "S"},
 {"prompt": "p", "chosen": "same", "rejected": "same"}, {"prompt": "p", "chosen": "c"}, {"chosen": "c", "rejected": "r"}, {"prompt": 1, "chosen": "c", "rejected": "r"}]
X
gives "dpo, message lists and malformed rows" '{"prompt": [{"role": "user", "content": "u"}], "chosen": [{"role": "assistant", "content": "good"}], "rejected": [{"role": "assistant", "content": "bad"}]}
{"prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "v"}], "chosen": [{"role": "assistant", "content": "good"}], "rejected": [{"role": "assistant", "content": "bad"}]}' dpo prefer.json
check "$(last)" \
    said 'row 3: "chosen" and "rejected" are the same' , said 'row 4: "rejected" is missing' , \
    said 'row 5: the prompt does not end' , said '4 skipped'
gives "dpo as plain text" '{"prompt": "p\n", "chosen": "good", "rejected": "bad"}' dpo dpo.json --shape prompt-completion
printf '{"7": {"utterances": [{"actor_type": "Agent", "utterance": "x"}, {"actor_type": "Robot", "utterance": "x"}]}, "8": {}, "9": {"utterances": [{"actor_type": "Agent", "utterance": "x"}]}}' >robot.json
refused "msdialog without a whole dialog" 1 "3 rows read, 3 skipped" msdialog robot.json
seq 15 | sed 's/.*/{"instruction": "i"}/' >wrong.jsonl; cat alpaca.jsonl >>wrong.jsonl
run alpaca wrong.jsonl
check "ten malformed rows are shown, the others counted" \
    [ "$(grep -c '^skipped: wrong.jsonl row' err)" = 10 ] , said '^skipped: 6 more'

printf '{"instruction": "What  IS it?", "output": "1"}\n{"instruction": "what is\\tit? ", "output": "2"}\n{"instruction": "ÄRGER", "output": "3"}\n{"instruction": "ärger", "output": "4"}\n' >case.jsonl
run alpaca case.jsonl --dedup
check "--dedup: neither capitals nor white space make a prompt another one: $(last)" \
    lines 2 out , grep -q 'IS it' out , grep -q 'ÄRGER' out
"$convert" dstc11 logs.json labels.json --shape prompt-completion >plain.jsonl 2>err
refused "--dedup-against knows a conversation in the other shape" 1 "1 in --dedup-against" \
    dstc11 logs.json labels.json --dedup-against plain.jsonl
for side in many turned; do run alpaca $side.jsonl --sample 20 --seed 1 --output $side-sample.jsonl; done
check "--sample draws the same rows from a file turned round, in its order" cmp -s many-sample.jsonl <(tac turned-sample.jsonl)
run alpaca many.jsonl && head -n 3 out >first
run alpaca many.jsonl --max-examples 3
check "--max-examples: the first" ended 0 , cmp -s out first
for i in $(seq 30); do
    echo '{"conversations": [{"from": "human", "value": "begin '"$i"'"}, {"from": "gpt", "value": "a"},' \
        '{"from": "human", "value": "go on"}, {"from": "gpt", "value": "b"}]}'
done >long.jsonl
run sharegpt long.jsonl --each-reply --split eval=0.2 --output long-parts.jsonl
begun() { grep -oh 'begin [0-9]*' "$@" | sort; }
check "--each-reply and --split: no conversation in two parts" \
    lines 12 long-parts-eval.jsonl , [ -z "$(begun long-parts-*.jsonl | uniq -c | grep -v ' 2 ')" ] , \
    [ -z "$(comm -12 <(begun long-parts-train.jsonl) <(begun long-parts-eval.jsonl))" ]
echo precious >kept.jsonl
refused "nothing to write" 1 "no examples" alpaca squad.json --output kept.jsonl
"$convert" alpaca alpaca.jsonl 2>err >/dev/full
status=$?
check "a full disk: $(last)" ended 1 , said '^error: cannot write; standard output: No space left'
mkfifo pipe
cat pipe >piped & "$convert" alpaca alpaca.jsonl --output pipe 2>err
[ -p pipe ] || { rm -f pipe; kill $!; } 2>/dev/null
wait $!
check "a pipe or device is written, not replaced" [ -p pipe ] , lines 2 piped
refused "the output in place of an input" 2 "replace an input" alpaca alpaca.jsonl --output ./alpaca.jsonl
refused "no such folder" 1 "cannot write" alpaca alpaca.jsonl --output none/out.jsonl
check "earlier files are as they were, no temporary file is left" \
    [ "$(cat kept.jsonl)" = precious ] , lines 3 alpaca.jsonl , [ -z "$(find . -name '*tmp*')" ]
run alpaca alpaca.jsonl --output kept.jsonl
check "and a whole output takes an earlier one's place" lines 2 kept.jsonl
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
for text in '[]' '{}' '7' 'null' '[[[]]]' '{"data": 3}' '{"data": [{"paragraphs": 5}]}' '[{"prompt": {}}]' \
    '{"a": {"utterances": {}}}' "$(printf '[%.0s' $(seq 300))" '"' 'a,a'; do
    for format in empathetic squad alpaca sharegpt msdialog dpo classical-chinese; do
        printf '%s' "$text" >hostile.json
        run $format hostile.json
        ended 1 && [ "$(grep -c '^error: .*;.*;' err)" = 1 ] && [ ! -s out ] || echo "$format: $text"
    done
done >odd
check "strange but valid and invalid files are refused, by every format: $(head -n 3 odd)" [ ! -s odd ]
run --help
check "--help" ended 0 , grep -q 'dedup-against' out , grep -q 'classical-chinese' out

# The recipes, from the published data to the answers side by side, with the embedded base in place of the large models.
cd - >/dev/null || exit 1
shared=../shared/datasets
if [ -d $shared ]; then
    recipe() {      # name recipe-file max-length compare-options... ; $work/NAME-train.jsonl and -eval.jsonl are there
        local name=$1 file=$2 made=$work/$1
        local common=(--config "data/recipes/$2.json" --model data/base --max-length "$3")
        shift 3
        head -n 6 "$made-eval.jsonl" >"$made-few.jsonl"
        "$program" train "${common[@]}" --data "$made-train.jsonl" --eval-data "$made-few.jsonl" --max-steps 3 \
            --output "$made" >"$work/log" 2>&1 &&
            "$program" compare "${common[@]}" --adapter "$made" --data "$made-few.jsonl" --max-new-tokens 24 \
                --output "$made-page" "$@" >"$work/log2" 2>&1
        status=$?
        check "recipe $file: $(wc -l <"$made-train.jsonl") examples, $(grep -o 'done after.*' "$work/log")" \
            ended 0 , [ -s "$made-page/compare.html" ] , lines 12 "$made-page/responses.jsonl" , \
            grep -q '^chrf' "$work/log2"
    }
    published() {   # name, then the converter's format, files and options: $work/NAME-train.jsonl and -eval.jsonl
        local name=$1
        shift
        "$convert" "$@" --sample 300 --split eval=0.1 --output "$work/$name.jsonl" 2>"$work/err"
        status=$?
        check "$name: $(tail -n 1 "$work/err")" ended 0
    }
    published dstc11 dstc11 $shared/dstc11/{logs,labels,knowledge}.json --with-knowledge
    recipe dstc11 dstc11-qwen3-1.7b 512
    published empathetic empathetic $shared/empathetic/valid.csv --each-reply
    recipe empathetic empathetic-tinyllama 256
    published chinese classical-chinese $shared/classical_chinese/train.json --dedup
    recipe chinese classical-chinese-qwen3-4b 256 --bleu-tokenize zh --few-shot 1 --shots "$work/chinese-train.jsonl"
    "$convert" squad $shared/xquad/xquad.en.json 2>"$work/err" >"$work/xquad.jsonl"
    check "xquad: $(tail -n 1 "$work/err")" lines 1190 "$work/xquad.jsonl"
    "$convert" dpo $shared/human_like_dpo/*.json 2>"$work/err" >"$work/dpo.jsonl"
    check "human_like_dpo: $(tail -n 1 "$work/err")" [ "$(wc -l <"$work/dpo.jsonl")" -gt 100 ]
    "$convert" empathetic $shared/empathetic/fixed_valid.csv --output "$work/rows.jsonl" 2>"$work/err"
    "$convert" empathetic $shared/empathetic/valid.csv --output "$work/joined.jsonl" 2>>"$work/err"
    same=$(awk 'NR == FNR { row[NR] = $0; next } row[FNR] == $0' "$work/rows.jsonl" "$work/joined.jsonl" | wc -l)
    check "both layouts of EmpatheticDialogues: $same of $(wc -l <"$work/rows.jsonl") conversations come out the same" \
        lines 2769 "$work/rows.jsonl" , [ "$same" -ge 2766 ]
else
    echo "skipped: ../shared not present"
fi
finish
