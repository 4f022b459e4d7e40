#!/usr/bin/env bash
# What a run does around its steps, from the outside: best model, early stopping, what is kept, where the adapter goes
# when the disk is full. test_run.sh PROGRAM
set -u
. test/check.sh
program=$1
work=$(mktemp -d) || exit 1
said=$work/log
trap 'umount "$work/small" 2>/dev/null; rm -rf "$work"' EXIT
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} OMP_WAIT_POLICY=passive
run() { timeout 900 "$program" "$@" >"$said" 2>&1; status=$?; return $status; }
refused() { # what, pattern, options...
    local what=$1 pattern=$2
    shift 2
    run "$@" --output "$work/refused"
    check "$what: $(cat "$work/log" | cut -c 1-170)" \
        ended 2 , [ "$(wc -l <"$work/log")" = 1 ] , says "^error: .*;.*;.*$pattern"
}
number() { grep -o "\"$1\": [0-9.e-]*" "$2" | tail -n 1 | cut -d' ' -f2; }      # last number of that key in a file

refused "best model without evaluation" "eval-strategy" --load-best-model-at-end
refused "patience without evaluation" "eval-strategy" --early-stopping-patience 2 --load-best-model-at-end
refused "patience without best model" "add it" --early-stopping-patience 2 --eval-strategy epoch
refused "threshold without patience" "add it" --early-stopping-threshold 0.1 --eval-strategy epoch \
    --load-best-model-at-end
refused "a metric without best model" "add it" --metric-for-best-model perplexity --eval-strategy epoch
refused "an unknown metric" "loss|token_loss|perplexity" --metric-for-best-model bleu --eval-strategy epoch \
    --load-best-model-at-end
refused "evaluation without data" "eval-data" --model data/base --data data/hotel/train.jsonl --eval-strategy epoch
refused "save limit 0" "1 to" --save-total-limit 0
refused "forced resume of nothing" "resume" --resume-force

# A learning rate that overfits 24 examples: the best evaluation comes long before the end.
head -n 24 data/hotel/train.jsonl >"$work/few.jsonl"
few=(--model data/base --data "$work/few.jsonl" --eval-data data/hotel/eval.jsonl --learning-rate 2e-2
    --lora-dropout 0 --num-train-epochs 40 --logging-steps 20)
run "${few[@]}" --eval-strategy epoch --save-strategy steps --save-steps 30 --save-total-limit 2 \
    --load-best-model-at-end --metric-for-best-model eval_loss --output "$work/best"
step=$(number best_global_step "$work/best/trainer_state.json")
check "the best evaluation is the one at step $step of 120: $(grep '^best' "$work/log")" \
    [ -n "$step" ] , [ "$step" -lt 120 ] , says "best     step $step"
check "its adapter is the one that is saved" \
    cmp -s "$work/best/adapter_model.safetensors" "$work/best/checkpoint-$step/adapter_model.safetensors"
check "--save-total-limit 2 keeps the best and the newest: $(cd "$work/best" && ls -d checkpoint-* | tr '\n' ' ')" \
    [ "$(cd "$work/best" && ls -d checkpoint-* | sort -t- -k2 -n | tr '\n' ' ')" = "checkpoint-$step checkpoint-120 " ]
lowest=$(grep -o '"step": [1-9][0-9]*, "epoch": [0-9.]*, "eval_loss": [0-9.]*' "$work/best/log.jsonl" |
    sort -t: -k4 -g | head -n 1)
check "no evaluation of the log is better: $lowest" [ "${lowest%%,*}" = "\"step\": $step" ]
run "${few[@]}" --eval-strategy epoch --load-best-model-at-end --early-stopping-patience 3 --output "$work/early"
last=$(number global_step "$work/early/trainer_state.json")
step=$(number best_global_step "$work/early/trainer_state.json")
check "patience 3 stops three evaluations after the best: step $step, $last" \
    [ "$last" = $((step + 9)) ] , says 'stopped early'
run "${few[@]}" --eval-steps 7 --max-steps 20 --eval-on-start false --output "$work/steps"
check "--eval-steps 7 evaluates at 7, 14 and the last step" \
    [ "$(grep eval_loss "$work/steps/log.jsonl" | sed 's/{"step": \([0-9]*\).*/\1/' | tr '\n' ' ')" = "7 14 20 " ]
mean=$(number eval_mean_example_perplexity "$work/steps/log.jsonl")
all=$(number eval_perplexity "$work/steps/log.jsonl")
check "mean per-example perplexity is above the corpus's: $mean, $all" \
    awk -v a="$mean" -v b="$all" 'BEGIN { exit !(a > b && a < 5 * b) }'

run "${few[@]}" --learning-rate 1e30 --max-steps 5 --output "$work/nan"
check "a loss that is not finite: $(told ^error)" \
    ended 1 , says '^error: the \(loss\|gradient\) is not finite; step [0-9]*, .*row [0-9]*; lower --learning-rate'
folder=$(ls -d "$work"/nan/nonfinite-*)
run --model data/base --data "$folder/batch.jsonl" --init-adapter "$folder" --eval-on-start false --max-steps 1 \
    --output "$work/replay"
check "and its batch, replayed on the adapter beside it, is so again at step 1" ended 1 , says 'is not finite; step 1,'
run --model data/base --data "$work/few.jsonl" --learning-rate 1e30 --max-steps 5 --on-nonfinite skip \
    --output "$work/skip"
check "--on-nonfinite skip: $(grep 'left out as' "$work/log" | cut -c 1-100)" \
    ended 0 , says 'steps left out as not finite'

# What lies beside the adapter.
run --max-steps 12 --logging-steps 2 --eval-steps 6 --report-to tensorboard \
    --on-finish "env | grep ^TRAIN_LORA_ | sort >$work/env; exit 3" --output "$work/out <b> 'x'"
check "a run in a folder with a difficult name" ended 0
page="$work/out <b> 'x'/report.html"
check "report.html is filled and its JSON cannot end the script" \
    says '"status": "finished"' "$page" , not says '{{DATA}}' "$page" , \
    [ "$(grep -c '</script>' "$page")" = "$(grep -c '</script>' data/report.html)" ] , \
    says '"eval_perplexity"' "$page"
data=$(sed -n '/id="data">/,$p' "$page" | sed 's/.*id="data">//')
counted() { grep -o "\"$1\":" <<<"$data" | wc -l; }
check "with three evaluations, six records, no nan" \
    [ "$(counted eval_loss) $(counted grad_norm)" = "3 6" ] , \
    says '\\u003cb>' <(echo "$data") , not says 'nan\|inf[,}]' <(echo "$data")
check "--on-finish has the result in its environment: $(tr '\n' ' ' <"$work/env" | cut -c 1-120)" \
    says '^TRAIN_LORA_STATUS=finished$' "$work/env" , says '^TRAIN_LORA_EVAL_LOSS=[0-9.]*$' "$work/env" , \
    says '^TRAIN_LORA_STEPS=12$' "$work/env" , says 'ended with status 3'
# A TensorBoard file: TFRecords (length, its checksum, message, checksum), the first of them known to the byte from
# tensorboard's own reader.
events=$(ls "$work/out <b> 'x'"/runs/*/events.out.tfevents.*)
records=0 at=0 size=$(stat -c %s "$events")
while [ $at -lt "$size" ]; do at=$((at + 16 + $(od -An -tu8 -j $at -N 8 "$events"))) records=$((records + 1)); done
check "TensorBoard: $records whole records: the version, six of training, three evaluations" \
    [ $at = "$size" ] , [ $records = 10 ] , \
    [ "$(od -An -tx1 -N 12 "$events" | tr -d ' ')" = "1a00000000000000129bd82d" ] , \
    [ "$(grep -ac 'brain.Event:2' "$events")" = 1 ] , [ "$(grep -ao 'train/grad_norm' "$events" | wc -l)" = 6 ] , \
    [ "$(grep -ao 'eval/mean_example_perplexity' "$events" | wc -l)" = 3 ]
run --max-steps 3 --model data/base --data /none --on-finish "env | grep ^TRAIN_LORA_ | sort >$work/env" \
    --output "$work/o2"
check "--on-finish hears of a failure too: $(grep MESSAGE "$work/env")" \
    ended 1 , says '^TRAIN_LORA_STATUS=failed$' "$work/env" , says '^TRAIN_LORA_MESSAGE=.*/none' "$work/env"

# Only the first rows.
hotel=(--model data/base --data data/hotel/test.jsonl)
run "${hotel[@]}" --eval-data data/hotel/eval.jsonl --max-train-samples 9 --max_eval_samples 4 --max-steps 1 \
    --eval-on-start false --output "$work/first"
check "--max-train-samples, --max-eval-samples: $(grep -o '[0-9]* examples, [0-9]* tokens' "$work/log" | tr '\n' ';')" \
    ended 0 , says '^data .*: 9 examples' , says '^eval .*: 4 examples'
head -n 3 data/hotel/test.jsonl >"$work/three.jsonl"
run evaluate --model data/base --data "$work/three.jsonl"; grep '^[a-z_][a-z_]*  *[0-9]' "$work/log" >"$work/want"
run evaluate "${hotel[@]}" --limit 3; grep '^[a-z_][a-z_]*  *[0-9]' "$work/log" >"$work/got"
check "evaluate --limit 3 is the first three rows: $(head -n 1 "$work/got")" \
    says '^token_loss' "$work/got" , cmp -s "$work/want" "$work/got"
run generate "${hotel[@]}" --limit 2 --max-new-tokens 2 --temperature 0 --jsonl
check "generate --limit 2 answers two rows" \
    [ "$(grep -c '^{"id": [12],' "$work/log")" = 2 ] , [ "$(grep -c '^{' "$work/log")" = 2 ]
refused "evaluation rows of a split" "smaller share" "${hotel[@]}" --eval-split 0.1 --max-eval-samples 3

# The memory plan: no weights are read, no full disk or device is needed.
plan() { run plan "$@" && sed -n 's/^  total *\([0-9.]*\) .*/\1/p' "$work/log"; }
run --model data/base --data data/hotel/train.jsonl --eval-on-start false --max-steps 1 --output "$work/real"
real=$(sed -n 's/^  total *\([0-9.]*\) .*/\1/p' "$work/log")
planned=$(plan --model data/base --data data/hotel/train.jsonl)
check "the plan says $planned MiB, the run $real MiB" \
    awk -v a="$real" -v b="$planned" 'BEGIN { exit !(a > 0 && b / a > 0.95 && b / a < 1.05) }'
run plan --model data/base --max-length 512 --per-device-train-batch-size 64 --device-memory 200MiB
check "$(grep ^error "$work/log")" \
    ended 1 , says '^error: the run does not fit: 1.20 GiB needed, 200.00 MiB there;.*--fit'
run plan --model data/base --max-length 512 --per-device-train-batch-size 64 --device-memory 200MiB --fit
check "--fit in 200 MiB: $(grep ^fit "$work/log" | tr '\n' ' ')" \
    ended 0 , says '^fit      8 x 8 examples, --recompute none'
run plan --model data/base --max-length 512 --per-device-train-batch-size 64 --device-memory 27MiB --fit
check "--fit in 27 MiB: $(grep ^fit "$work/log" | tr '\n' ' ')" ended 0 , says '--recompute \(gate_up\|layer\)'
run plan --model data/base --device-memory 5MiB --fit
check "$(grep ^error "$work/log")" ended 1 , says '^error: the run does not fit at all'
run --max-steps 4 --eval-on-start false --per-device-train-batch-size 8 --lora-dropout 0 --output "$work/nofit"
run --max-steps 4 --eval-on-start false --per-device-train-batch-size 8 --lora-dropout 0 --fit --device-memory 24MiB \
    --output "$work/fit"
loss() { number train_loss "$work/$1/trainer_state.json" | cut -c 1-6; }
check "--fit trains with the same loss: $(grep ^fit "$work/log" | head -n 1), $(loss fit)" \
    ended 0 , says '"per_device_train_batch_size": [124],' "$work/fit/run.json" , \
    [ "$(loss fit)" = "$(loss nofit)" ]

# Many runs in one.
sweep=(--sweep learning_rate=5e-3,1e-3 --sweep lora-r=4,8 --max-steps 20 --eval-on-start false --save-strategy steps
    --save-steps 5)
run "${sweep[@]}" --dry-run --output "$work/sweep"
check "--dry-run lists four runs and writes nothing" \
    ended 0 , [ "$(grep -c '^run . of 4: learning_rate-[0-9e-]*_lora_r-[48]$' "$work/log")" = 4 ] , \
    [ ! -e "$work/sweep" ]
CRASH_AT=800 LD_PRELOAD=$PWD/build/crash.so "$program" "${sweep[@]}" --output "$work/sweep" >"$work/log" 2>&1
status=$?
check "a sweep that is killed" ended 137
run "${sweep[@]}" --output "$work/sweep"
check "started again it does the rest: $(grep -c 'done before' "$work/log") done before, $(
    grep -o 'resumed at step [0-9]*' "$work/log" | tr '\n' ' ')" \
    ended 0 , says 'done before' , [ "$(grep -c '"name"' "$work/sweep/sweep.json")" = 4 ]
table() { sed -n '/^[a-z-]* .*eval loss/,/^$/p' "$work/log"; }
losses() { table | awk 'NF == 11 { print $3 }'; }
check "the table has a column an axis and is sorted by evaluation loss: $(table |
    awk 'NF == 11 { print $1, $2, $3 }' | tr '\n' ';')" \
    [ "$(table | head -n 1 | awk '{ print $1, $2 }')" = "learning-rate lora-r" ] , \
    [ "$(table | grep -c '^[15]e-3')" = 4 ] , sort -cg <(losses)
columns=name,learning-rate,lora-r,eval_loss,train_loss,mean_token_accuracy,entropy
columns+=,train_samples_per_second,train_steps_per_second,total_flos,
check "sweep.csv and sweep.html: $(sed -n 2p "$work/sweep/sweep.csv" | cut -c 1-100)" \
    [ "$(wc -l <"$work/sweep/sweep.csv")" = 5 ] , says "^$columns" <(head -n 1 "$work/sweep/sweep.csv") , \
    not says ',,' <(cut -d, -f1-10 "$work/sweep/sweep.csv") , not says '{{DATA}}' "$work/sweep/sweep.html" , \
    says '"values": \["5e-3", "8"\]' "$work/sweep/sweep.html"
run --learning-rate 1e-3 --lora-r 8 --max-steps 20 --eval-on-start false --output "$work/single"
check "a run of the sweep is the same file as that run alone" cmp -s "$work/single/adapter_model.safetensors" \
    "$work/sweep/learning_rate-1e-3_lora_r-8/adapter_model.safetensors"
run "${few[@]}" --sweep learning_rate=1e30,1e-3 --max-steps 6 --eval-on-start false --output "$work/diverging"
check "a run of a sweep that diverges costs itself alone: $(grep 'failed' "$work/log" | tr -s ' ')" \
    ended 1 , [ "$(grep -c '^error: .* not finite' "$work/log")" = 1 ] , says '^1e30 *failed' , \
    [ -s "$work/diverging/learning_rate-1e-3/adapter_model.safetensors" ]
sets=(--model data/base --max-train-samples 24 --max-length 64 --max-steps 1
    --sweep 'target_modules=q,v;q,k,v,o;all-linear')
run "${sets[@]}" --sweep data="$work/few.jsonl,data/hotel/train.jsonl" --data x --output "$work/sets"
check "sets of modules and data files: $(table | awk 'NF > 5 { print $1 }' | tr '\n' ' ')" \
    ended 0 , says '^q,k,v,o  *data/hotel/train.jsonl ' <(table) , \
    [ "$(grep -o '"target_modules": [^,]*' "$work"/sets/*all-linear*few*/run.json | wc -l)" = 1 ] , \
    says '"data": \["data/hotel/train.jsonl"\]' "$work"/sets/*q,v_*hotel*/run.json
overhead=$(sed -n 's/^  program and data set *\([0-9]*\).*/\1/p' "$work/log" | sort -n | sed -n '1p;$p' | tr '\n' ' ')
check "later runs do not count the earlier ones' memory: $overhead MiB at least and at most" \
    [ "$(grep -c '^  program and data set' "$work/log")" = 6 ] , awk '{ exit !($2 < 2 * $1 + 4) }' <(echo "$overhead")
run --sweep seed="$(seq -s, 100000000 100000099)" --dry-run --output "$work/never"
check "a list of a thousand characters" \
    ended 0 , [ "$(grep -c '^run ' "$work/log")" = 100 ] , says '^run 100 of 100: seed-100000099$'
refused "a sweep without values" "learning_rate=5e-5,1e-4" --sweep learning_rate
refused "an empty value" "write it as" --sweep lora_r=4,,8
refused "an axis twice" "all its values at once" --sweep lora_r=4 --sweep lora-r=8
refused "a sweep of nothing known" "did you mean --lora-r" --sweep lora-rr=1,2
refused "a sweep of the model" "one run after the other" --sweep model=a,b
refused "the same value twice" "give every value once" --sweep lora-r=4,4

# Data: several files, a held-out share, the token cache, more tokens than stay in memory.
head -n 300 data/hotel/train.jsonl >"$work/a.jsonl"
tail -n 300 data/hotel/train.jsonl >"$work/b.jsonl"
data=(--model data/base --max-steps 3 --eval-on-start false)
run "${data[@]}" --data data/hotel/train.jsonl --output "$work/one" &&
    run "${data[@]}" --data "$work/a.jsonl" --data "$work/b.jsonl" --output "$work/two"
check "two halves of a file train as the file: $(told ^data)" \
    ended 0 , cmp -s "$work/one/adapter_model.safetensors" "$work/two/adapter_model.safetensors"
run "${data[@]}" --data data/hotel/train.jsonl --eval-split 0.1 --packing --max-length 300 --output "$work/split"
check "--eval-split 0.1: $(grep -o ' [0-9]* examples, [0-9]* tokens' "$work/log" | tr '\n' ';')" \
    says '540 examples, .*packed into' , says '60 examples' , says '^eval  step 3'
for i in $(seq 160); do cat data/hotel/train.jsonl; done >"$work/large.jsonl"
run "${data[@]}" --data "$work/large.jsonl" --output "$work/large"
check "9 M tokens lie in a file, not in memory: $(grep 'program and data' "$work/log")" \
    ended 0 , [ "$(sed -n 's/^  program and data set *\([0-9]*\)\..* MiB/\1/p' "$work/log")" -lt 30 ]
for i in 1 2 3; do
    "$program" "${data[@]}" --data "$work/large.jsonl" --token-cache "$work/cache" --output "$work/cached$i" \
        >"$work/log$i" 2>&1 &
done
wait
cached() { cmp -s "$work/large/adapter_model.safetensors" "$work/cached$1/adapter_model.safetensors"; }
check "three runs at once fill one --token-cache and train as without it" \
    [ "$(ls "$work/cache" | wc -l)" = 1 ] , cached 1 , cached 2 , cached 3
run "${data[@]}" --data "$work/large.jsonl" --token-cache "$work/cache" --max-steps 1 --output "$work/again"
check "the next run starts from it: $(grep -o '[0-9]* examples, [0-9]* tokens' "$work/log")" \
    ended 0 , says '96000 examples, 9039680 tokens'
head -c 1000000 "$work"/cache/*.tokens >"$work/torn" && cp "$work/torn" "$work"/cache/*.tokens
run "${data[@]}" --data "$work/large.jsonl" --token-cache "$work/cache" --output "$work/again"
check "a torn cache file is written again" \
    ended 0 , cmp -s "$work/large/adapter_model.safetensors" "$work/again/adapter_model.safetensors"
run "${data[@]}" --data "$work/large.jsonl" --token-cache "$work/cache" --max-length 60 --output "$work/again"
check "another --max-length has a file of its own" [ "$(ls "$work/cache" | wc -l)" = 2 ] , says 'cut at max-length'
refused "eval data and a split" "give one of them" --eval-split 0.1 --eval-data data/hotel/eval.jsonl

# What lies beside a run is looked at before the first step; later it costs a warning, not the run.
run "${few[@]}" --max-steps 3 --output "$work/beside"
cp -r "$work/beside" "$work/beside-before"
run "${few[@]}" --max-steps 3 --seed 7 --sample-prompts "$work/none.jsonl" --output "$work/beside"
check "no file of sample prompts: nothing is trained, nothing lost: $(told ^error)" \
    ended 1 , says '^error: .*none.jsonl' , not says '^step' , diff -rq "$work/beside" "$work/beside-before"
(ulimit -f 64; trap '' XFSZ
    run "${few[@]}" --lora-r 1 --per-device-train-batch-size 1 --gradient-accumulation-steps 1 --max-length 48 \
        --max-steps 300 --logging-steps 1 --eval-on-start false --output "$work/stale")
status=$?
check "no room for the report: $(grep '^warning: report' "$work/log" | sed "s|$work/||g")" \
    ended 0 , says '^warning: report.html stays as it was' , [ -s "$work/stale/adapter_model.safetensors" ] , \
    says '</html>' "$work/stale/report.html"
check "no room for the log: $(grep '^warning: log' "$work/log" | sed "s|$work/||g")" \
    [ "$(grep -c '^warning: log.jsonl misses lines' "$work/log")" = 1 ] , absent "$work"/stale/*.tmp

# Two runs, one folder; signals; streams that are closed, full or gone; a mapped file that shrinks.
started() { for _ in $(seq 3000); do says '^step' "$1" && return; sleep 0.1; done; }         # its log
# SIGHUP counts here even where the tests run under nohup, which the program goes by.
hearing="env --default-signal=HUP"
$hearing true 2>/dev/null || hearing=
long() {
    # shellcheck disable=SC2086
    exec $hearing "$program" "${few[@]}" --max-steps 100000 --logging-steps 1 --output "$work/busy" "$@" \
        >"$work/busy.log" 2>&1
}
long --token-cache "$work/shrinking" & pid=$!
started "$work/busy.log"
run "${few[@]}" --max-steps 3 --output "$work/busy"
check "a second run into one folder: $(told ^error)" \
    ended 1 , says "^error: another run is writing there: process $pid on .*; .*; "
kill -HUP $pid
wait $pid
status=$?
check "SIGHUP: saved, and the folder is free again" \
    ended 129 , exists "$work"/busy/checkpoint-*/checkpoint.json , [ ! -e "$work/busy/run.lock" ]
rm -r "$work/busy"
long --sweep seed=1,2 & pid=$!
started "$work/busy.log"
run "${few[@]}" --sweep seed=3,4 --max-steps 3 --output "$work/busy"
check "a second sweep into one folder" \
    ended 1 , says "^error: another run is writing there: process $pid on .*; $work/busy; " , \
    [ "$(find "$work/busy" -name run.lock | wc -l)" = 2 ]
kill -HUP $pid
wait $pid
status=$?
check "a sweep that ends leaves no lock" ended 129 , [ -z "$(find "$work/busy" -name run.lock)" ]
rm -r "$work/busy"
long --token-cache "$work/shrinking" & pid=$!
started "$work/busy.log"
truncate -s 0 "$work"/shrinking/*.tokens
wait $pid
status=$?
check "a mapped file that shrinks: $(grep '^error' "$work/busy.log" | sed "s|$work/||g")" \
    ended 1 , says '^error: .*shrank.*shrinking/.*tokens; ' "$work/busy.log"
run "${few[@]}" --max-steps 3 --output "$work/busy"
check "a killed run's lock does not stay" ended 0
{
    "$program" "${few[@]}" --max-steps 100000 --logging-steps 1 --output "$work/pipe" 2>"$work/log"
    echo $? >"$work/status"
} | head -n 16 >"$work/pipe.log"
check "| head ends the run: saved, exit 141" \
    [ "$(cat "$work/status")" = 141 ] , exists "$work"/pipe/checkpoint-*/checkpoint.json
"$program" "${few[@]}" --max-steps 3 --logging-steps 1 --output "$work/closed" <&- >&- 2>&-
status=$?
check "closed streams: nothing but the log in log.jsonl" ended 0 , not grep -v '^{"step": ' "$work/closed/log.jsonl"
head -n 8 data/hotel/train.jsonl >"$work/eight.jsonl"
answer="generate --model data/base --prompt hi --max-new-tokens 3"
for verb in "$answer" "$answer --jsonl" "evaluate --model data/base --data $work/eight.jsonl" \
    "inspect --model data/base --data $work/eight.jsonl" "plan --model data/base" "--help" \
    "--model data/base --data $work/eight.jsonl --max-steps 2 --output $work/full-stdout"; do
    # shellcheck disable=SC2086
    "$program" $verb >/dev/full 2>"$work/log"
    status=$?
    check "stdout is full: ${verb%% /*}" \
        ended 1 , [ "$(grep -c '^error' "$work/log")" = 1 ] , says '^error: .*standard output'
done

# Names that are not UTF-8 go through every file and back.
odd=$work/mod$'\xe9'le out=$work/out$'\xc3'
cp -r data/base "$odd"
train=("${few[@]}" --model "$odd" --per-device-train-batch-size 1 --gradient-accumulation-steps 1
    --eval-on-start false --max-steps 2)
run "${train[@]}" --save-strategy steps --save-steps 1 --output "$out" &&
    run generate --model "$odd" --adapter "$out" --prompt x --max-new-tokens 2 && ! grep -aq '^warning' "$work/log" &&
    rm -r "$out/checkpoint-2" && run "${train[@]}" --resume "$out" --output "$work/odd" &&
    grep -aq 'resumed at step 1' "$work/log" &&
    run --config "$out/run.json" --output "$work/odd2" &&
    cmp -s "$out/adapter_model.safetensors" "$work/odd2/adapter_model.safetensors" &&
    says 'mod\\udce9le"' "$out/adapter_config.json"
status=$?
check "a path that is not UTF-8: trained, answered, resumed, run again from run.json: $(tail -n 1 "$work/log" |
    tr -cd ' -~' | cut -c 1-80)" ended 0

# A classification head: trained, run again from run.json, measured, beside an adapter that answers in words; a whole
# model with one; what has no words does not speak.
for i in 1 2 3 4 5 6; do
    echo "{\"prompt\": \"the room was clean $i\", \"completion\": \" yes\", \"label\": \"yes\"}"
    echo "{\"prompt\": \"nobody came, $i\", \"completion\": \" no\", \"label\": \"no\"}"
done >"$work/classes.jsonl"
rows=(--model data/base --data "$work/classes.jsonl")
head=("${rows[@]}" --eval-data "$work/classes.jsonl" --max-steps 2 --logging-steps 1 --task classification)
run "${head[@]}" --class-weights no=2 --output "$work/head"
check "a head is trained: $(told ^error)" ended 0 , says 'f1' "$work/log" , \
    says '"label_names": \["no", "yes"\]' "$work/head/run.json" , says SEQ_CLS "$work/head/adapter_config.json" , \
    says '"eval_roc_auc"' "$work/head/log.jsonl" , not says 'token_accuracy' "$work/head/log.jsonl" , \
    says '"answered"' "$work/head/report.html" , says '"what": "measure it"' "$work/head/report.html"
run --config "$work/head/run.json" --output "$work/head2"
check "the same again from its run.json: $(told ^error)" ended 0 , \
    cmp -s "$work/head/adapter_model.safetensors" "$work/head2/adapter_model.safetensors"
run "${head[@]}" --sweep 'class-weights=1,1;balanced' --output "$work/head-sweep"
check "a sweep's table has what a head is measured by: $(grep 'macro f1$' "$work/log")" ended 0 , \
    says 'time *accuracy *macro f1$' , not says entropy , [ "$(grep -c '"macro_f1": 0' "$work/head-sweep/sweep.json")" -gt 0 ]
run evaluate "${rows[@]}" --adapter "$work/head" --output "$work/head-scores"
check "evaluate takes the task from the adapter: $(told ^error)" ended 0 , says '^balanced_accuracy' "$work/log" , \
    [ "$(wc -l <"$work/head-scores/predictions.jsonl")" = 12 ] , \
    [ "$(wc -l <"$work/head-scores/predictions.csv")" = 13 ] , \
    says '"probabilities": {"no": 0' "$work/head-scores/predictions.jsonl" , \
    says '"confusion": ' "$work/head-scores/evaluation.json"
run "${rows[@]}" --max-steps 2 --output "$work/words" &&
    run compare "${rows[@]}" --adapter "$work/words" --adapter "$work/head" --labels yes,no --max-new-tokens 2 \
        --output "$work/head-compare"
check "words and a head in one table: $(told ^error)" ended 0 , \
    [ "$(grep -c '^expected' "$work/log")" = 3 ] , says '^roc_auc  *-  *- ' "$work/log"
run "${head[@]}" --train last:1 --output "$work/head-whole" &&
    run evaluate --model "$work/head-whole" --data "$work/classes.jsonl"
check "a whole model with a head says what it is: $(told ^error)" ended 0 , \
    says Qwen3ForSequenceClassification "$work/head-whole/config.json" , says '^roc_auc' "$work/log"
run generate --model "$work/head-whole" --prompt x
check "it has no words: $(told ^error)" ended 1 , says 'has no words'
run "${rows[@]}" --focal-gamma 2 --output "$work/head3"
check "a loss of classes without classes: $(told ^error)" ended 1 , says 'add --task classification'

# The end of a run on a full disk: the fallback, else the temporary folder.
if mkdir "$work/small" && mount -t tmpfs -o size=256k none "$work/small" 2>/dev/null; then
    run "${few[@]}" --max-steps 3 --eval-on-start false --fallback-output "$work/second" --output "$work/small/out"
    check "full disk, --fallback-output: $(told ^error)" \
        ended 1 , says '^error: cannot write; .*No space left.*whole in .*second' , \
        [ -s "$work/second/adapter_model.safetensors" ] , [ -s "$work/second/adapter_config.json" ]
    TMPDIR=$work run "${few[@]}" --max-steps 3 --eval-on-start false --output "$work/small/out"
    other=$(ls -d "$work"/train_lora-adapter-* 2>/dev/null)
    check "full disk, no fallback: the adapter is in the temporary folder" \
        [ -n "$other" ] , cmp -s "$other/adapter_model.safetensors" "$work/second/adapter_model.safetensors"
else
    echo "skipped: cannot mount a small tmpfs here"
fi
finish
