#!/usr/bin/env bash
# The command line as a user meets it: bad input gives one line "error: what; where; what to do", exit status 1 (2 for
# usage), and an earlier output survives.
# bash test/test_cli.sh ./train_lora      (from the repository root)
set -u
. test/check.sh
program=$(realpath "$1")
work=$(mktemp -d /tmp/train_lora_cli_XXXXXX)
trap 'umount "$work/small" 2>/dev/null; rm -rf "$work"' EXIT
said=$work/out.txt err=$work/err.txt
run() { "$program" "$@" >"$said" 2>"$err"; status=$?; return $status; }
all() { "$program" "$@" >"$said" 2>&1; status=$?; return $status; }    # what it says and what it warns of, together
lines() { [ "$(wc -l <"$2")" = "$1" ]; }
count() { [ "$(grep -c -- "$2" "$3")" = "$1" ]; }           # how many lines have a pattern
refuse() {      # name status pattern arguments...: exactly one line on stderr, with the pattern in it
    local name=$1 want=$2 pattern=$3
    shift 3
    run "$@" </dev/null
    sed -i '/^\.\.\. /d' "$err"                           # what a slow machine says while it loads
    check "$name: $(told . "$err")" \
        ended "$want" , lines 1 "$err" , says '^error: .*;.*;' "$err" , says "$pattern" "$err"
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
refuse "an option of training" 2 "generate does not use --max-length, .*--max-new-tokens" \
    generate --prompt a --max-length 9
refuse "an option of training" 2 "evaluate does not use --lora-r, an option of train and plan" evaluate --lora-r 2
refuse "a word that means nothing" 2 "see ./train_lora train --help" --qqq 3
for word in "lr 1=learning-rate" "epochs 3=num-train-epochs" "rank 4=lora-r" "model-name-or-path x=model" \
    "limit 3=max-train-samples" "evaluation-strategy epoch=eval-strategy" "gradient-checkpointing=recompute layer" \
    "fp16=PRECISION=BF16" "bias none=--train full" "load-in-4bit=no quantised" \
    "beta 0.1=DPO" "deepspeed x=one GPU" "report-to wandb=tensorboard"; do
    refuse "--${word%%=*}" 2 "${word#*=}" --${word%%=*}
done
refuse "a near value" 2 "did you mean cosine?" --lr-scheduler-type cosin
refuse "a near module" 2 "did you mean q_proj?" $base --target-modules qproj
refuse "a near verb" 2 "did you mean train?" trian
all --chat-template foo --model data/base
check "no suggestion where nothing is near: $(cut -c1-90 "$said")" ended 2 , not says "did you mean"
refuse "two sources" 2 "several things" generate --prompt a --chat
refuse "--system beside --data" 2 "does nothing with --data" generate --data data/hotel/test.jsonl --system x
refuse "--system beside --messages" 2 "does nothing with --messages" generate --messages x.json --system x
refuse "answers over a folder" 2 "name a file" generate --prompt a --output data
refuse "escapes in an error" 2 "lr<0x1B>\[31m<U+202E>" $'--lr\e[31m\u202e' 3
echo '{"max_steps": 1, "on_finish": "touch '"$work"'/ran"}' >"$work/c.json"
refuse "a command in a config file" 2 "not taken from files" --config "$work/c.json"
check "and it did not run" absent "$work/ran"
printf '{"learning_rate": 1, "prompt": ["hi"], "max_new_tokens": 1, "output": "%s"}' "$work/answers" >"$work/c.json"
run generate --config "$work/c.json"
note="output $work/answers (where files are written); generate does not use learning_rate"
check "a config file of another verb: $(told ^note "$err")" says "^note: .*$note$" "$err" , [ -s "$work/answers" ]
for verb in train inspect plan generate evaluate compare merge; do
    case $verb in train | plan) trains=1 ;; *) trains=0 ;; esac
    "$program" $verb --help >"$work/a" && run help $verb
    check "$verb has its help: $(grep -c '^  --' "$said") options" \
        cmp -s "$said" "$work/a" , count $trains "--lora-r " "$said"
    several="^  --data  *data file: .*; train, plan and inspect take several,"
    [ $verb = merge ] || check "that of --data is true of $verb" says "$several"
done
"$program" help train >"$said"
check "train's lists chat templates: $(grep -o 'one of qwen3.*' "$said" | cut -c1-60)" \
    says "one of qwen3, .*, mistral-v0.1"
for verb in generate evaluate compare; do
    refuse "two data files: $verb" 2 "one data file" $verb --model data/base --data a --data b --adapter base
done

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
model; sed -i 's/"rope_type": "default"/"rope_type": "yarn", "factor": 4.0/' "$work/m/config.json"
bad "unsupported rope" "yarn"
model; sed -i 's/"model_type"/"num_experts": 8, "model_type"/' "$work/m/config.json"
bad "mixture of experts" "num_experts"
model; sed -i 's/"hidden_size": 128/"hidden_size": 256/' "$work/m/config.json"; bad "wrong shape" "\[2048, 128\]"
model; sed -i 's/"vocab_size": 2048/"vocab_size": 1000/' "$work/m/config.json"
bad "vocabulary larger than the embedding" "1000"
model; sed -i 's/"num_hidden_layers": 4/"num_hidden_layers": 5/' "$work/m/config.json"
bad "missing tensor" "model.layers.4"
model; sed -i 's/}$/,/' "$work/m/config.json"; bad "broken config.json" "config.json:"
model; rm "$work/m/model.safetensors"; bad "no weights" "model.safetensors"
model; truncate -s 500000 "$work/m/model.safetensors"; bad "truncated weights" "truncated"
model; truncate -s 4 "$work/m/model.safetensors"; bad "four bytes of weights" "safetensors"
model; printf '\377\377\377\377\377\377\377\177' | dd of="$work/m/model.safetensors" conv=notrunc 2>/dev/null
bad "absurd header length" "header"
model; printf '\300\177' | dd of="$work/m/model.safetensors" bs=1 seek=1000000 conv=notrunc 2>/dev/null
bad "NaN in the weights" "NaN"
model; sed -i 's/"\[2048,128\]"/x/; s/"data_offsets":\[0,/"data_offsets":[2,/' "$work/m/model.safetensors"
bad "offsets that do not fit" "tensor"
model; truncate -s 5000 "$work/m/tokenizer.json"; bad "truncated tokenizer" "tokenizer.json"
model; echo "{{ messages }}" >"$work/m/chat_template.jinja"; bad "chat template that ends no answer" "no special token"
model; echo "{{ 1 + }}" >"$work/m/chat_template.jinja"; bad "broken chat template" "chat_template:1:8"
model; echo "{{ messages[0].a.b }}" >"$work/m/chat_template.jinja"
bad "chat template that raises" "row 1: .*template:1:18"
# one that no renderer knows is interpreted: the same adapter as with the renderer of the text that it was
model; echo '{# changed #}' >>"$work/m/chat_template.jinja"
run $base --output "$work/known"
all $base --model "$work/m" --output "$work/interpreted" --enable-thinking true
check "a chat template that nobody knows: $(told enable-thinking)" ended 0 , \
    says "--enable-thinking changes nothing: the chat template does not look at it" , \
    cmp "$work/known/adapter_model.safetensors" "$work/interpreted/adapter_model.safetensors"
cp "$work/m/chat_template.jinja" "$work/own.jinja"
run $base --chat-template "$work/own.jinja" --output "$work/from_file"
check "and one from a file" ended 0 , cmp "$work/known/adapter_model.safetensors" \
    "$work/from_file/adapter_model.safetensors"
echo '{"messages": [{"role": "user", "content": [{"type": "text", "text": "u"}]}, {"role": "critic", "content": "c"}, {
"role": "assistant", "content": "a", "k": 1}]}' | tr '\n' ' ' >"$work/odd.jsonl"
echo "{% for m in messages if m.role != 'critic' %}{{ m.content if m.content is string }}<|im_end|>{% endfor %}" \
    >"$work/own.jinja"
all inspect --model data/base --data "$work/odd.jsonl" --chat-template "$work/own.jinja"
check "what a template leaves out: $(told leaves)" ended 0 , says "leaves out 2 whole messages" , \
    says "columns not used: messages\[\].k (1 row)"
# what templates are told is today: the day of the run, which is kept; thoughts that they take out of the history
cat >"$work/own.jinja" <<'END'
{{ strftime_now('%d.%m.%Y') }}{% for m in messages %}<|im_start|>{{ m.role }}
{% if loop.last and m.thinking %}<think>{{ m.thinking }}</think>{% endif %}{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
<think>{% endif %}
END
echo '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "thinking": "T"}, {"role":
"user", "content": "c"}, {"role": "assistant", "content": "d", "reasoning_content": "why"}]}' | tr '\n' ' ' \
    >"$work/thinks.jsonl"
thinks="--model data/base --data $work/thinks.jsonl --chat-template $work/own.jinja"
all $thinks --max-steps 1 --output "$work/dated"
check "the day is kept: $(told template_date "$work/dated/run.json")" ended 0 , \
    says "\"template_date\": \"$(date +%Y)-" "$work/dated/run.json" , \
    says "note: the chat template leaves out 1 thought; " , says "warning: 1 answers stand behind another text"
all inspect $thinks --template-date "4 Jul 2025"
check "the day is given: $(told 04.07)" ended 0 , says "04.07.2025" , \
    says '<think>\[w\]\[h\]\[y\]' , says '^  \[b\]' , not says '\[T\]'
all inspect $thinks --split-turns
check "every answer behind its own prompt: $(told T)" ended 0 , says '<think>\[T\]' , says '<think>\[w\]' , \
    not says "leaves out" , not says warning
all inspect $thinks --template-date yesterday
check "a day that is none: $(told error)" ended 1 , says '^error: .*"yesterday" is no date.*write it as 2025-07-26'

# ids beyond the model's embedding: of the tokenizer, of tokenised rows; whoever asks
mkdir "$work/wide" && ln -s "$PWD"/data/base/* "$work/wide/" && rm "$work/wide/tokenizer.json"
token='"id": 2048, "content": "<|wide|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, '
token+='"special": true'
sed "0,/\"added_tokens\": \[/s//&{$token},/" data/base/tokenizer.json >"$work/wide/tokenizer.json"
echo '{"input_ids": [5, 2047, 2048, 7], "labels": [5, 2047, 2048, 7]}' >"$work/ids.jsonl"
wide="--model $work/wide --data data/hotel/test.jsonl"
for verb in "train --output $work/w" plan inspect "generate --max-new-tokens 2" evaluate "compare --adapter base"; do
    refuse "a tokenizer wider than the model: $verb" 1 "ids up to 2048 .* only 2048 rows" $verb $wide
done
refuse "an id beyond the vocabulary in training" 1 "2048, not in 0..2047" \
    --model data/base --data "$work/ids.jsonl" --output "$work/w"
refuse "an id beyond the vocabulary in the evaluation data" 1 "2048" $base --eval-data "$work/ids.jsonl"
refuse "an id beyond the vocabulary to inspect" 1 "2048" inspect --model data/base --data "$work/ids.jsonl"

# a run, and a second one that fails must leave the first one's adapter as it was
all $base
check "two steps, adapter, trainer_state.json, run.json" ended 0 , [ -s "$work/o/adapter_model.safetensors" ] , \
    [ -s "$work/o/trainer_state.json" ] , [ -s "$work/o/run.json" ]
# what is printed and reported works as pasted: a folder with a difficult name, and a chat template that the model
# folder does not name
paste() { echo hi | sh <(sed -n 's/^use it *//p' "$said") >"$work/answer" 2>"$err"; status=$?; }
model; echo "{{ x }}" >"$work/m/chat_template.jinja"; mv "$work/m" "$work/the model"
adapter="$work/it's \$(touch $work/ran)"
all --model "$work/the model" --data data/hotel/test.jsonl --chat-template zephyr --template-date "1 May 2025" \
    --max-steps 2 --save-strategy steps --save-steps 1 --output "$adapter"
note='^note: --template-date changes nothing: it is unknown to the chat template zephyr; data/hotel'
check "an option that the chat template does not know is named" ended 0 , says "$note"
sed -n 's/^use it *//p' "$said" >"$work/use"
paste
check "the printed command, pasted: $(sed "s|$work/||g" "$work/use" | cut -c1-110)" \
    ended 0 , absent "$work/ran" , [ -s "$work/answer" ] , \
    count 1 '^note: --chat-template zephyr, --template-date 1 May 2025, as ' "$err"
check "the page has the same command" grep -qF "$(sed 's/[\\"]/\\&/g' "$work/use")" "$adapter/report.html"
# whoever waits is told for what, on a terminal at once
if script -qec true /dev/null </dev/null >/dev/null 2>&1; then
    script -qec "$program generate --model data/base --prompt a --max-new-tokens 1" /dev/null </dev/null >"$said"
    check "a wait is explained" says '\.\.\. loading data/base.*answering 1 prompt with base'
    head -n 1 data/hotel/test.jsonl >"$work/one.jsonl"
    script -qec "$program evaluate --model data/base --data $work/one.jsonl --generate --max-new-tokens 1" /dev/null \
        </dev/null >"$said"
    check "of one row in the singular" \
        says "measuring base on 1 row[^s]" , says "answering 1 row with base" , says "1 row of $work/one.jsonl"
else echo "skipped: no script(1)"; fi
# options that no row uses, or not every row: every verb that reads rows names them
echo '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}' >"$work/chat.jsonl"
echo '{"prompt": "a", "completion": "b"}' | tee "$work/pair.jsonl" | cat "$work/chat.jsonl" - >"$work/both.jsonl"
echo '{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}' >"$work/labels.jsonl"
unused() {      # name, what the notes say, verb and arguments...
    local name=$1 want=$2
    shift 2
    all "$@" --model data/base
    notes=$(sed -n "s|^note: ||; s|; $work/.*||p" "$said" | grep changes | tr '\n' ';')
    check "$name: $notes" [ "$notes" = "$want" ]
}
dress="--prompt-template Q:{prompt} --chat-template zephyr"
nothing="changes nothing:"
for verb in "train --max-steps 1 --output $work/o8" plan inspect "generate --max-new-tokens 1" evaluate; do
    unused "${verb%% *} of a chat" "--prompt-template $nothing the rows are chats;" \
        $verb $dress --data "$work/chat.jsonl"
done
unused "a pair" "--chat-template $nothing no row is a chat;" inspect $dress --data "$work/pair.jsonl"
unused "a chat and a pair" "--prompt-template changes nothing in 1 of 2 rows, which are chats or have no prompt;" \
    inspect $dress --data "$work/both.jsonl"
unused "a pair with options of chats" "--split-turns $nothing no row is a chat;--enable-thinking $nothing no row is a \
chat;" inspect --split-turns --enable-thinking false --data "$work/pair.jsonl"
unused "rows with labels" "--loss-on $nothing the rows have labels;" inspect --loss-on all --data "$work/labels.jsonl"
# rows with a label, and pairs: what of them is read, learned, cut and left out
cat >"$work/classes.jsonl" <<'X'
{"text": "Where is it?", "label": "question", "id": 7}
{"text": "I am tired of it all.", "label": "statement"}
{"text": "Thanks", "label": "statement"}
{"text": "Bye", "label": "statement"}
X
cat >"$work/pairs.jsonl" <<'X'
{"prompt": "Where? ", "chosen": "By the river.", "rejected": "No"}
{"prompt": "Hi ", "chosen": "Hello", "rejected": "Hello"}
{"prompt": "Hi ", "chosen": "a b c d e f g h i j k l m n o p q r s t u v w x y z", "rejected": "Hello"}
X
COLUMNS=80 all inspect --model data/base --data "$work/classes.jsonl" --task SEQ_CLS --examples 2
check "inspect of classes: $(told 'labels  ')" ended 0 , says '^row 1: .* is pooled, label question$' , \
    says '^  Where is it\[?\]$' , says 'labels  * 2   question 25.0 %, statement 75.0 %; imbalanced$' , \
    says '^columns not used: id (1 row)' , count 0 "stop token" "$said"
COLUMNS=80 all inspect --model data/base --data "$work/pairs.jsonl" --task reward --max-length 24
check "inspect of pairs, side by side: $(told ' | Where')" ended 0 , says '^  chosen: .* | rejected: .*' , \
    says '^  Where? By the river\..* | Where? No' , says '^warning: 1 of 3 pairs are left out, longer' , \
    says '^warning: in 1 pairs chosen and rejected are the same;' , says 'dropped  *1   pairs beyond'
unused "classes" \
    "--split-turns $nothing a row with a label is one example;--loss-on $nothing the loss is on the labels;" \
    inspect --task classification --split-turns --loss-on all --data "$work/classes.jsonl"
unused "pairs" "--truncate-prompt $nothing pairs are not cut;--problem-type $nothing it is --task classification's;" \
    inspect --task reward --truncate-prompt --problem-type regression --data "$work/pairs.jsonl"
unused "a language model" "--problem-type $nothing it is --task classification's;" \
    inspect --problem-type regression --data "$work/pair.jsonl"
all inspect --model data/base --data "$work/classes.jsonl" --task classification --max-length 3
check "cut texts: $(told ^warning)" says '^warning: 2 of 4 rows are cut at --max-length 3, at their end; .*-prompt'
refuse "a task" 2 "causal_lm|classification|reward" train --task dpo --data "$work/pairs.jsonl"
refuse "a problem" 2 "single_label_classification|" train --problem-type binary --data "$work/pairs.jsonl"
refuse "pairs packed" 1 "a pair is a slot" inspect --task reward --packing --data "$work/pairs.jsonl"
refuse "no label column" 1 "no row has a label; .* there are text" inspect --task classification \
    --data <(printf '{"prompt": "a", "text": "b"}\n')
all train --model data/base --task classification --data "$work/classes.jsonl" --max-steps 1 --output "$work/o9" \
    --eval-data <(tail -n 2 "$work/classes.jsonl")
check "shares, and a class that evaluation lacks: $(told ^warning)" ended 0 , \
    says '^labels   question 25.0 %, statement 75.0 %; imbalanced' , says '^hint: .*--class-weights balanced' , \
    says '^warning: the evaluation data have no row of the class question'
all train --model data/base --task classification --data "$work/classes.jsonl" --max-steps 1 --output "$work/o9" \
    --class-weights balanced
check "a hint that is followed is not given" ended 0 , count 0 ^hint "$said"
refuse "one class" 1 "one class only: all 2 examples have the label .statement" train --model data/base \
    --task classification --data <(tail -n 2 "$work/classes.jsonl") --output "$work/o9"
refuse "--raw and a template" 2 "nothing with --raw" generate --model data/base --prompt a --raw --chat-template zephyr
thought='{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>why</think>b"}'
echo "{\"messages\": [$thought, $thought], \"chat_template_kwargs\": {\"x\": 1}}" >"$work/thoughts.jsonl"
thoughts="inspect --model data/base --chat-template qwen3 --data $work/thoughts.jsonl"
run $thoughts && "$program" $thoughts --split-turns >"$work/split"
check "thoughts that the chat template leaves out are named" \
    says '^note: the chat template leaves out 1 thought; .*see --split-turns' , \
    says '^columns not used: chat_template_kwargs.x (1 row)'
check "and learned with --split-turns" says 'examples *2' "$work/split" , not says '^note: the chat' "$work/split"
answer="generate --prompt hi --max-new-tokens 1"
run $answer --model "$work/the model" --adapter "$adapter/checkpoint-1"
check "a checkpoint brings its prompts too" ended 0 , says '^note: --chat-template zephyr' "$err"
run $answer --model "$work/the model" --adapter "$adapter" --chat-template qwen3 --template-date x
check "what is given again is not taken" ended 0 , not says "^note: .*, as " "$err"
# how the loss was measured in training belongs to the adapter as well
head -n 4 data/hotel/test.jsonl >"$work/four.jsonl"
short="--max-length 64 --truncate-prompt true --loss-on completion"
all --model data/base --data "$work/four.jsonl" $short --max-steps 1 --output "$work/short"
for verb in evaluate inspect "generate --prompt a --max-new-tokens 1"; do
    how="$verb --model data/base --adapter $work/short"
    case $verb in generate*) want=0 given= ;; *) want=1 how+=" --data $work/four.jsonl" given=$short ;; esac
    "$program" $how $given >"$work/again.txt" 2>"$work/err2.txt" && run $how
    note="^note: --max-length 64, --truncate-prompt true, --loss-on completion, as $work/short was trained"
    check "what is measured is taken from the adapter's run: ${verb%% *}, $want note" \
        ended 0 , cmp -s "$said" "$work/again.txt" , not says "^note: --.* was trained" "$work/err2.txt" , \
        count $want "^note: --.* was trained" "$err" , count $want "$note" "$err"
done
measured() { sed -n 's/^token_loss *\([0-9.]*\).*/\1/p' "$said"; }
measure="evaluate --model data/base --adapter $work/short --data $work/four.jsonl"
run $measure; taken=$(measured)
run $measure --max-length 1024 --truncate-prompt false --loss-on default; given=$(measured)
check "and not where it is given: $taken, $given" \
    [ -n "$taken" ] , [ -n "$given" ] , [ "$taken" != "$given" ] , not says "was trained" "$err"
cp -r "$work/short" "$work/long"; sed -i 's/"max_length": 64/"max_length": 128/' "$work/long/run.json"
refuse "adapters of different lengths" 2 "different --max-length, '64' and '128'" \
    compare --model data/base --adapter "$work/short" --adapter "$work/long" --data "$work/four.jsonl"
all merge --model data/base --adapter "$work/short" --output "$work/m64"
paste
check "the merged model's command has only what generate takes: $(told '^use it')" ended 0 , [ -s "$work/answer" ]
# a base model without a chat template: the printed --chat takes every line as a prompt of its own
model; rm "$work/m/chat_template.jinja"
printf '{"prompt": "a question", "completion": "an answer"}\n' >"$work/pairs.jsonl"
all --model "$work/m" --data "$work/pairs.jsonl" --prompt-template 'Q: {prompt} A:' --max-steps 1 --output "$work/o9"
paste
check "the printed command of a base model, pasted: $(head -n 1 "$err" | cut -c1-60)" \
    ended 0 , [ -s "$work/answer" ] , says "^note: --prompt-template Q: {prompt} A:, as " "$err" , \
    says "a prompt of its own" "$err"
cp -r "$adapter" "$work/other"; sed -i 's/zephyr/qwen3/' "$work/other/run.json"
refuse "adapters of different prompts" 2 "different --chat-template, 'zephyr' and 'qwen3'" compare \
    --model "$work/the model" --adapter "$adapter" --adapter "$work/other" --data data/hotel/test.jsonl
# a chat whose next adapter has seen other prompts says so and goes on as it was; a run that begins with one says so too
{ echo hi; echo "/adapter $work/other"; echo hi; echo "/adapter $work/o"; echo hi; echo "/adapter base"; } >"$work/talk"
talk() { run generate --model "$work/the model" --chat --temperature 0 --max-new-tokens 8 "$@" <"$work/talk"; }
talk --adapter "$adapter"
check "/adapter of other prompts: $(told ^error "$err")" \
    ended 0 , lines 3 "$said" , count 2 "^error: .* was trained with .*; /adapter; the chat stays as it was" "$err" , \
    grep -qF "$work/other was trained with --chat-template qwen3 (here zephyr); /adapter" "$err" , \
    grep -qF "no --chat-template (here zephyr), no --template-date (here 1 May 2025); /adapter" "$err"
talk --adapter "$adapter" --chat-template zephyr --template-date "1 May 2025"
check "and not where they were given: $(wc -l <"$said") answers" ended 0 , not says "was trained with" "$err"
begin="--model data/base --data $work/four.jsonl --max-steps 1 --output $work/begun"
run $begin --init-adapter "$adapter"
note="^note: .* was trained with --chat-template zephyr (here none), --template-date 1 May 2025 (here none)"
check "--init-adapter of other prompts: $(grep "^note.*trained" "$err" | sed 's|.* was|... was|')" \
    ended 0 , says "$note" "$err"
run plan $begin --init-adapter "$work/o"
check "and not one of the same" ended 0 , not says "was trained with" "$err"
cp "$work/o/adapter_model.safetensors" "$work/before"
run $base --learning-rate 1e29 --max-grad-norm 0 --max-steps 20
check "a run that diverges leaves the earlier adapter as it was: $(told ^error "$err")" \
    ended 1 , says "not finite" "$err" , cmp -s "$work/before" "$work/o/adapter_model.safetensors"
all $base && all --config "$work/o/run.json" --output "$work/o2"
check "the same run again from its run.json: the same adapter" \
    ended 0 , cmp -s "$work/o/adapter_model.safetensors" "$work/o2/adapter_model.safetensors"
all merge --model data/base --adapter "$work/o" --output "$work/m32" --dtype f32
size() { stat -c %s "$1/model.safetensors"; }
check "merged in fp32: $(told ^merged)" \
    ended 0 , says '"dtype": "float32"' "$work/m32/config.json" , \
    says ', F32; .* agree .* rounding to F32 explains 1.0e-05)' , \
    [ "$(size "$work/m32")" -gt "$(($(size data/base) * 2 - 9999))" ]
if [ "$(id -u)" = 0 ] && mkdir "$work/small" && mount -t tmpfs -o size=64k tmpfs "$work/small" 2>/dev/null; then
    refuse "disk full" 1 "No space left" $base --output "$work/small/o"
else echo "skipped: no tmpfs for the full disk"; fi
"$program" $base --output "$work/o3" --max-steps 100000 >"$said" 2>&1 & pid=$!
sleep 2; kill -INT $pid; wait $pid
status=$?
check "SIGINT: the step is finished, the adapter saved, exit status 130" \
    ended 130 , [ -s "$work/o3/adapter_model.safetensors" ]
check "and it says which: $(grep -o 'with the adapter of.*;' "$said")" \
    says "^adapter .* with the adapter of the last step, [0-9]*;"
# where the highest loss is the best, the best evaluation is an early one, and lies in its checkpoint
"$program" $base --learning-rate 5e-3 --eval-data data/hotel/eval.jsonl --max-eval-samples 4 --eval-steps 1 \
    --metric-for-best-model loss --greater-is-better --load-best-model-at-end --output "$work/o7" --max-steps 100000 \
    >"$said" 2>&1 & pid=$!
for i in $(seq 100); do says "^eval  step 5:" && break; sleep 0.1; done
kill -INT $pid; wait $pid
best=$(sed -n 's/^best     step \([0-9]*\), loss .*: its adapter is in .*checkpoint-\1$/\1/p' "$said")
check "stopped: $(told ^best)" [ -n "$best" ] , [ -s "$work/o7/checkpoint-$best/adapter_model.safetensors" ]
# before the first step nothing is known of speed; silence is explained, on a pipe too
for i in 1 2 3; do cat data/hotel/eval.jsonl; done >"$work/slow.jsonl"
OMP_NUM_THREADS=1 "$program" $base --eval-data "$work/slow.jsonl" --output "$work/o8" >"$said" 2>&1 & pid=$!
for i in $(seq 1000); do [ -s "$work/o8/report.html" ] && break; sleep 0.01; done
cp "$work/o8/report.html" "$work/early.html"
for i in 1 2 3 4; do                        # a run that is held up: the first time perhaps before it evaluates
    kill -STOP $pid 2>/dev/null || break
    sleep 2.2; kill -CONT $pid; sleep 0.05
    says "^\.\.\. evaluating" && break
done
wait $pid
check "the page before the first step: $(grep -o '"progress": {[^}]*}' "$work/early.html" | head -n 1)" \
    says '"step": 0, .*"elapsed_seconds": [0-9.]*}' "$work/early.html"
check "an evaluation of more than two seconds is announced" says "^\.\.\. evaluating 300 examples$"
all inspect --model data/base --data data/hotel/test.jsonl --examples 1
check "inspect" ended 0 , says "im_end"
# Characters that are several tokens are shown whole, learned or not; one that is cut is shown as bytes.
printf '{"prompt": "\\u7ffb\\u8b6f", "completion": "\\u5927"}\n{"input_ids": [163, 119]}\n' >"$work/han.jsonl"
all inspect --model data/base --data "$work/han.jsonl"
check "inspect joins the bytes of a character: $(told '大'), $(told '^  <0x')" \
    says '^  翻譯\[大\]\[«' , says '^  <0x[0-9A-F]*>'
all plan $base --output "$work/never"
check "plan prints the memory table and writes nothing" ended 0 , says "total" , absent "$work/never"
# from anywhere: beside the program in another folder, and installed
mkdir "$work/elsewhere"
from() { (cd "$work/elsewhere" && "$@" >"$said" 2>&1); status=$?; }
from "$program" --max-steps 1 --eval-on-start false --output "$work/o5"
check "the embedded example from another folder: $(told ^model)" ended 0
from "$program" plan --config data/recipes/dstc11-qwen3-1.7b.json --model "$(dirname "$program")/data/base"
check "and a recipe" ended 0 , says total
make -s -o train_lora install DESTDIR="$work/root dir" PREFIX=/usr >"$said" 2>&1
from "$work/root dir/usr/bin/train_lora" --max-steps 1 --eval-on-start false --output "$work/o6"
check "installed: $(told ^model)" ended 0 , says "^model    $work/root dir/usr/bin/../share/train_lora/data/base"
make -s uninstall DESTDIR="$work/root dir" PREFIX=/usr
check "uninstalled, nothing is left" [ -z "$(find "$work/root dir" -type f)" ]
"$program" --version >"$work/version" && run --help
check "--help and --version" ended 0 , says "--gradient-accumulation-steps" , says train_lora "$work/version"
# the memory table is true: the peak of the whole process is within 10 % of it, 5 % where everything is trained
if command -v /usr/bin/time >/dev/null; then
    for trained in "lora --lora-r 16" full; do
        run plan --model data/base --data data/hotel/train.jsonl --train $trained
        total=$(awk '$1 == "total" { print $2 * 1024 }' "$said")
        all="--model data/base --data data/hotel/train.jsonl --output $work/o4 --num-train-epochs 1 --train $trained"
        [ "$trained" = full ] && all="$all --max-steps 20" && near=0.05 || near=0.1
        rm -rf "$work/o4"
        /usr/bin/time -o "$work/peak" -f %M "$program" $all >"$said" 2>&1
        peak=$(tail -n 1 "$work/peak")
        check "--train $trained: memory table $total kB, peak resident memory $peak kB" \
            awk -v t="$total" -v p="$peak" -v near=$near 'BEGIN { exit !(p > (1 - near) * t && p < (1 + near) * t) }'
    done
else echo "skipped: no time(1) to measure the peak of memory"; fi
# what is trained: what does not fit says what does; a whole model answers alone and as an adapter of its base
refuse "too few layers" 2 "'last:0' names no layers" $base --train last:0
refuse "too many layers" 1 "last:99 of a model with 4 layers" $base --train last:99
refuse "everything and LoRA" 2 "full and last:N stand alone" $base --train full,lora
refuse "no such set" 2 "is no set of weights" $base --train every
refuse "LoRA's option without LoRA" 2 "--lora-r is of LoRA, --train full has none" $base --train full --lora-r 8
refuse "an adapter's dtype" 2 "--dtype of an adapter" $base --dtype f32
refuse "no such module to save" 2 "no module 'pooler'" $base --modules-to-save pooler
refuse "two that say what is trained" 2 "exclude each other" $base --train full --init-adapter "$work/o4"
refuse "the model's own folder" 1 "the folder of the model that is trained" --model "$work/o4" --output "$work/o4" \
    --train full
refuse "an adapter over a whole model" 1 "it holds the whole model of an earlier run" $base --output "$work/o4"
all plan --model data/base --data data/hotel/test.jsonl --train full --device-memory 50MiB
check "plan of what does not fit: $(told would)" ended 1 , says "--train last:[0-9] would fit, or --train lora"
all generate --model "$work/o4" --prompt hi --max-new-tokens 2
check "a whole model answers" ended 0
all evaluate --model data/base --adapter "$work/o4" --data data/hotel/eval.jsonl --limit 3
check "and as an adapter of its base" ended 0 , says token_loss
# Threads that wait for each other spin for a bounded time, so that two programs can share the cores (libgomp prints
# what it uses).
OMP_WAIT_POLICY=active OMP_DISPLAY_ENV=verbose all --version
bound=$(sed -n "s/.*GOMP_SPINCOUNT = '\([0-9]*\)'.*/\1/p" "$said" | tail -n 1)
check "spinning is bounded, whatever OMP_WAIT_POLICY says: ${bound:-no libgomp}" [ "${bound:-0}" -le 1000 ]
finish
