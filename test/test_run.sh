#!/usr/bin/env bash
# What a run does around its steps, from the outside: best model, early stopping, what is kept, where the adapter goes when the disk is full. test_run.sh PROGRAM
set -u
program=$1 passed=0 failed=0
work=$(mktemp -d) || exit 1
trap 'umount "$work/small" 2>/dev/null; rm -rf "$work"' EXIT
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} OMP_WAIT_POLICY=passive
verdict() { if [ "$1" = 0 ]; then passed=$((passed + 1)); echo "ok    $2"; else failed=$((failed + 1)); echo "FAIL  $2"; fi; }
has() { grep -q -- "$1" "${2:-$work/log}"; echo $?; }
run() { timeout 900 "$program" "$@" >"$work/log" 2>&1; }
refused() { # what, pattern, options...
    local what=$1 pattern=$2
    shift 2
    run "$@" --output "$work/refused"
    verdict "$([ $? = 2 ] && [ "$(wc -l <"$work/log")" = 1 ] && grep -q "^error: .*;.*;.*$pattern" "$work/log"; echo $?)" "$what: $(cat "$work/log" | cut -c 1-170)"
}
number() { grep -o "\"$1\": [0-9.e-]*" "$2" | tail -n 1 | cut -d' ' -f2; }      # last number of that key in a file

refused "best model without evaluation" "eval-strategy" --load-best-model-at-end
refused "patience without evaluation" "eval-strategy" --early-stopping-patience 2 --load-best-model-at-end
refused "patience without best model" "add it" --early-stopping-patience 2 --eval-strategy epoch
refused "threshold without patience" "add it" --early-stopping-threshold 0.1 --eval-strategy epoch --load-best-model-at-end
refused "a metric without best model" "add it" --metric-for-best-model perplexity --eval-strategy epoch
refused "an unknown metric" "loss|token_loss|perplexity" --metric-for-best-model bleu --eval-strategy epoch --load-best-model-at-end
refused "evaluation without data" "eval-data" --model data/base --data data/hotel/train.jsonl --eval-strategy epoch
refused "save limit 0" "1 to" --save-total-limit 0
refused "forced resume of nothing" "resume" --resume-force

# A learning rate that overfits 24 examples: the best evaluation comes long before the end.
head -n 24 data/hotel/train.jsonl >"$work/few.jsonl"
few=(--model data/base --data "$work/few.jsonl" --eval-data data/hotel/eval.jsonl --learning-rate 2e-2 --lora-dropout 0 --num-train-epochs 40 --logging-steps 20)
run "${few[@]}" --eval-strategy epoch --save-strategy steps --save-steps 30 --save-total-limit 2 --load-best-model-at-end --metric-for-best-model eval_loss --output "$work/best"
step=$(number best_global_step "$work/best/trainer_state.json")
verdict "$([ -n "$step" ] && [ "$step" -lt 120 ] && [ "$(has "best     step $step")" = 0 ]; echo $?)" "the best evaluation is the one at step $step of 120: $(grep '^best' "$work/log")"
cmp -s "$work/best/adapter_model.safetensors" "$work/best/checkpoint-$step/adapter_model.safetensors"
verdict $? "its adapter is the one that is saved"
verdict "$([ "$(cd "$work/best" && ls -d checkpoint-* | sort -t- -k2 -n | tr '\n' ' ')" = "checkpoint-$step checkpoint-120 " ]; echo $?)" "--save-total-limit 2 keeps the best and the newest: $(cd "$work/best" && ls -d checkpoint-* | tr '\n' ' ')"
lowest=$(grep -o '"step": [1-9][0-9]*, "epoch": [0-9.]*, "eval_loss": [0-9.]*' "$work/best/log.jsonl" | sort -t: -k4 -g | head -n 1)
verdict "$(case $lowest in "\"step\": $step,"*) echo 0 ;; *) echo 1 ;; esac)" "no evaluation of the log is better: $lowest"
run "${few[@]}" --eval-strategy epoch --load-best-model-at-end --early-stopping-patience 3 --output "$work/early"
last=$(number global_step "$work/early/trainer_state.json") step=$(number best_global_step "$work/early/trainer_state.json")
verdict "$([ "$last" = $((step + 9)) ] && [ "$(has 'stopped early')" = 0 ]; echo $?)" "patience 3 stops three evaluations after the best: step $step, $last"
run "${few[@]}" --eval-steps 7 --max-steps 20 --eval-on-start false --output "$work/steps"
verdict "$([ "$(grep -o '"step": [0-9]*, "epoch": [0-9.]*, "eval_loss"' "$work/steps/log.jsonl" | grep -o '[0-9]*,' | grep -o '^[0-9]*' | tr '\n' ' ')" != "" ] && [ "$(grep eval_loss "$work/steps/log.jsonl" | sed 's/{"step": \([0-9]*\).*/\1/' | tr '\n' ' ')" = "7 14 20 " ]; echo $?)" "--eval-steps 7 evaluates at 7, 14 and the last step"
verdict "$([ "$(awk -v a="$(number eval_mean_example_perplexity "$work/steps/log.jsonl")" -v b="$(number eval_perplexity "$work/steps/log.jsonl")" 'BEGIN { print !(a > b && a < 5 * b) }')" = 0 ]; echo $?)" "mean per-example perplexity is above the corpus's: $(number eval_mean_example_perplexity "$work/steps/log.jsonl"), $(number eval_perplexity "$work/steps/log.jsonl")"

run "${few[@]}" --learning-rate 1e30 --max-steps 5 --output "$work/nan"
verdict "$([ $? = 1 ] && grep -q '^error: the \(loss\|gradient\) is not finite; step [0-9]*, .*row [0-9]*; lower --learning-rate' "$work/log"; echo $?)" "a loss that is not finite: $(grep '^error' "$work/log" | sed "s|$work/||g" | cut -c 1-170)"
folder=$(ls -d "$work"/nan/nonfinite-*)
run --model data/base --data "$folder/batch.jsonl" --init-adapter "$folder" --eval-on-start false --max-steps 1 --output "$work/replay"
verdict "$([ $? = 1 ] && grep -q 'is not finite; step 1,' "$work/log"; echo $?)" "and its batch, replayed on the adapter beside it, is so again at step 1"
run --model data/base --data "$work/few.jsonl" --learning-rate 1e30 --max-steps 5 --on-nonfinite skip --output "$work/skip"
verdict "$([ $? = 0 ] && [ "$(has 'steps left out as not finite')" = 0 ]; echo $?)" "--on-nonfinite skip: $(grep 'left out as' "$work/log" | cut -c 1-100)"

# What lies beside the adapter.
run --max-steps 12 --logging-steps 2 --eval-steps 6 --report-to tensorboard --on-finish "env | grep ^TRAIN_LORA_ | sort >$work/env; exit 3" --output "$work/out <b> 'x'"
verdict $? "a run in a folder with a difficult name"
page="$work/out <b> 'x'/report.html"
verdict "$(grep -q '"status": "finished"' "$page" && ! grep -q '{{DATA}}' "$page" && [ "$(grep -c '</script>' "$page")" = "$(grep -c '</script>' data/report.html)" ] && grep -q '"eval_perplexity"' "$page"; echo $?)" "report.html is filled and its JSON cannot end the script"
data=$(sed -n '/id="data">/,$p' "$page" | sed 's/.*id="data">//')
verdict "$([ "$(grep -o '"eval_loss":' <<<"$data" | wc -l)" = 3 ] && [ "$(grep -o '"grad_norm":' <<<"$data" | wc -l)" = 6 ] && grep -q '\\u003cb>' <<<"$data" && ! grep -q 'nan\|inf[,}]' <<<"$data"; echo $?)" "with three evaluations, six records, no nan"
verdict "$(grep -q '^TRAIN_LORA_STATUS=finished$' "$work/env" && grep -q '^TRAIN_LORA_EVAL_LOSS=[0-9.]*$' "$work/env" && grep -q '^TRAIN_LORA_STEPS=12$' "$work/env" && [ "$(has 'ended with status 3')" = 0 ]; echo $?)" "--on-finish has the result in its environment: $(tr '\n' ' ' <"$work/env" | cut -c 1-120)"
# A TensorBoard file: TFRecords (length, its checksum, message, checksum), the first of them known to the byte from tensorboard's own reader.
events=$(ls "$work/out <b> 'x'"/runs/*/events.out.tfevents.*)
records=0 at=0 size=$(stat -c %s "$events")
while [ $at -lt "$size" ]; do at=$((at + 16 + $(od -An -tu8 -j $at -N 8 "$events"))) records=$((records + 1)); done
verdict "$([ $at = "$size" ] && [ $records = 10 ] && [ "$(od -An -tx1 -N 12 "$events" | tr -d ' ')" = "1a00000000000000129bd82d" ] && [ "$(grep -ac 'brain.Event:2' "$events")" = 1 ] && [ "$(grep -ao 'train/grad_norm' "$events" | wc -l)" = 6 ] && [ "$(grep -ao 'eval/mean_example_perplexity' "$events" | wc -l)" = 3 ]; echo $?)" "TensorBoard: $records whole records: the version, six of training, three evaluations ($(od -An -tx1 -N 12 "$events" | tr -d ' '))"
run --max-steps 3 --model data/base --data /none --on-finish "env | grep ^TRAIN_LORA_ | sort >$work/env" --output "$work/o2"
verdict "$([ $? = 1 ] && grep -q '^TRAIN_LORA_STATUS=failed$' "$work/env" && grep -q '^TRAIN_LORA_MESSAGE=.*/none' "$work/env"; echo $?)" "--on-finish hears of a failure too: $(grep MESSAGE "$work/env")"

# Only the first rows.
hotel=(--model data/base --data data/hotel/test.jsonl)
run "${hotel[@]}" --eval-data data/hotel/eval.jsonl --max-train-samples 9 --max_eval_samples 4 --max-steps 1 \
    --eval-on-start false --output "$work/first"
verdict "$([ $? = 0 ] && [ "$(has '^data .*: 9 examples')$(has '^eval .*: 4 examples')" = 00 ]; echo $?)" \
    "--max-train-samples, --max-eval-samples: $(grep -o '[0-9]* examples, [0-9]* tokens' "$work/log" | tr '\n' ';')"
head -n 3 data/hotel/test.jsonl >"$work/three.jsonl"
run evaluate --model data/base --data "$work/three.jsonl"; grep '^[a-z_][a-z_]*  *[0-9]' "$work/log" >"$work/want"
run evaluate "${hotel[@]}" --limit 3; grep '^[a-z_][a-z_]*  *[0-9]' "$work/log" >"$work/got"
verdict "$(grep -q '^token_loss' "$work/got" && cmp -s "$work/want" "$work/got"; echo $?)" \
    "evaluate --limit 3 is the first three rows: $(head -n 1 "$work/got")"
run generate "${hotel[@]}" --limit 2 --max-new-tokens 2 --temperature 0 --jsonl
verdict "$([ "$(grep -c '^{"id": [12],' "$work/log")" = 2 ] && [ "$(grep -c '^{' "$work/log")" = 2 ]; echo $?)" \
    "generate --limit 2 answers two rows"
refused "evaluation rows of a split" "smaller share" "${hotel[@]}" --eval-split 0.1 --max-eval-samples 3

# The memory plan: no weights are read, no full disk or device is needed.
plan() { run plan "$@" && sed -n 's/^  total *\([0-9.]*\) .*/\1/p' "$work/log"; }
run --model data/base --data data/hotel/train.jsonl --eval-on-start false --max-steps 1 --output "$work/real"
real=$(sed -n 's/^  total *\([0-9.]*\) .*/\1/p' "$work/log") planned=$(plan --model data/base --data data/hotel/train.jsonl)
verdict "$(awk -v a="$real" -v b="$planned" 'BEGIN { exit !(a > 0 && b / a > 0.95 && b / a < 1.05) }'; echo $?)" "the plan says $planned MiB, the run $real MiB"
run plan --model data/base --max-length 512 --per-device-train-batch-size 64 --device-memory 200MiB
verdict "$([ $? = 1 ] && grep -q '^error: the run does not fit: 1.20 GiB needed, 200.00 MiB there;.*--fit' "$work/log"; echo $?)" "$(grep ^error "$work/log")"
run plan --model data/base --max-length 512 --per-device-train-batch-size 64 --device-memory 200MiB --fit
verdict "$([ $? = 0 ] && grep -q '^fit      8 x 8 examples, --recompute none' "$work/log"; echo $?)" "--fit in 200 MiB: $(grep ^fit "$work/log" | tr '\n' ' ')"
run plan --model data/base --max-length 512 --per-device-train-batch-size 64 --device-memory 27MiB --fit
verdict "$([ $? = 0 ] && grep -q -- '--recompute \(gate_up\|layer\)' "$work/log"; echo $?)" "--fit in 27 MiB: $(grep ^fit "$work/log" | tr '\n' ' ')"
run plan --model data/base --device-memory 5MiB --fit
verdict "$([ $? = 1 ] && grep -q '^error: the run does not fit at all' "$work/log"; echo $?)" "$(grep ^error "$work/log")"
run --max-steps 4 --eval-on-start false --per-device-train-batch-size 8 --lora-dropout 0 --output "$work/nofit"
run --max-steps 4 --eval-on-start false --per-device-train-batch-size 8 --lora-dropout 0 --fit --device-memory 24MiB --output "$work/fit"
verdict "$([ $? = 0 ] && grep -q '"per_device_train_batch_size": [124],' "$work/fit/run.json" && [ "$(number train_loss "$work/fit/trainer_state.json" | cut -c 1-6)" = "$(number train_loss "$work/nofit/trainer_state.json" | cut -c 1-6)" ]; echo $?)" "--fit trains with the same loss: $(grep ^fit "$work/log" | head -n 1), $(number train_loss "$work/fit/trainer_state.json")"

# Many runs in one.
sweep=(--sweep learning_rate=5e-3,1e-3 --sweep lora-r=4,8 --max-steps 20 --eval-on-start false --save-strategy steps --save-steps 5)
run "${sweep[@]}" --dry-run --output "$work/sweep"
verdict "$([ $? = 0 ] && [ "$(grep -c '^run . of 4: learning_rate-[0-9e-]*_lora_r-[48]$' "$work/log")" = 4 ] && [ ! -e "$work/sweep" ]; echo $?)" "--dry-run lists four runs and writes nothing"
CRASH_AT=1500 LD_PRELOAD=$PWD/build/crash.so "$program" "${sweep[@]}" --output "$work/sweep" >"$work/log" 2>&1
verdict "$([ $? = 137 ]; echo $?)" "a sweep that is killed"
run "${sweep[@]}" --output "$work/sweep"
verdict "$([ $? = 0 ] && [ "$(has 'done before')" = 0 ] && [ "$(grep -c '"name"' "$work/sweep/sweep.json")" = 4 ]; echo $?)" "started again it does the rest: $(grep -c 'done before' "$work/log") done before, $(grep -o 'resumed at step [0-9]*' "$work/log" | tr '\n' ' ')"
table() { sed -n '/^[a-z-]* .*eval loss/,/^$/p' "$work/log"; }
verdict "$([ "$(table | head -n 1 | awk '{ print $1, $2 }')" = "learning-rate lora-r" ] && [ "$(table | grep -c '^[15]e-3')" = 4 ] && table | awk 'NF == 11 { print $3 }' | sort -cg 2>/dev/null; echo $?)" "the table has a column an axis and is sorted by evaluation loss: $(table | awk 'NF == 11 { print $1, $2, $3 }' | tr '\n' ';')"
verdict "$([ "$(wc -l <"$work/sweep/sweep.csv")" = 5 ] && head -n 1 "$work/sweep/sweep.csv" | grep -q '^name,learning-rate,lora-r,eval_loss,train_loss,mean_token_accuracy,entropy,train_samples_per_second,train_steps_per_second,total_flos,' && ! grep -q ',,' <(cut -d, -f1-10 "$work/sweep/sweep.csv") && ! grep -q '{{DATA}}' "$work/sweep/sweep.html" && grep -q '"values": \["5e-3", "8"\]' "$work/sweep/sweep.html"; echo $?)" "sweep.csv and sweep.html: $(sed -n 2p "$work/sweep/sweep.csv" | cut -c 1-100)"
run --learning-rate 1e-3 --lora-r 8 --max-steps 20 --eval-on-start false --output "$work/single"
cmp -s "$work/single/adapter_model.safetensors" "$work/sweep/learning_rate-1e-3_lora_r-8/adapter_model.safetensors"
verdict $? "a run of the sweep is the same file as that run alone"
run "${few[@]}" --sweep learning_rate=1e30,1e-3 --max-steps 6 --eval-on-start false --output "$work/diverging"
verdict "$([ $? = 1 ] && [ "$(grep -c '^error: .* not finite' "$work/log")" = 1 ] && grep -q '^1e30 *failed' "$work/log" && [ -s "$work/diverging/learning_rate-1e-3/adapter_model.safetensors" ]; echo $?)" "a run of a sweep that diverges costs itself alone: $(grep 'failed' "$work/log" | tr -s ' ')"
sets=(--model data/base --max-train-samples 24 --max-length 64 --max-steps 1 --sweep 'target_modules=q,v;q,k,v,o;all-linear')
run "${sets[@]}" --sweep data="$work/few.jsonl,data/hotel/train.jsonl" --data x --output "$work/sets"
verdict "$([ $? = 0 ] && table | grep -q '^q,k,v,o  *data/hotel/train.jsonl ' && [ "$(grep -o '"target_modules": [^,]*' "$work"/sets/*all-linear*few*/run.json | wc -l)" = 1 ] && grep -q '"data": \["data/hotel/train.jsonl"\]' "$work"/sets/*q,v_*hotel*/run.json; echo $?)" "sets of modules and data files: $(table | awk 'NF > 5 { print $1 }' | tr '\n' ' ')"
overhead=$(sed -n 's/^  program and data set *\([0-9]*\).*/\1/p' "$work/log" | sort -n | sed -n '1p;$p' | tr '\n' ' ')
verdict "$([ "$(grep -c '^  program and data set' "$work/log")" = 6 ] && awk '{ exit !($2 < 2 * $1 + 4) }' <<<"$overhead"; echo $?)" "later runs do not count the earlier ones' memory: $overhead MiB at least and at most"
run --sweep seed="$(seq -s, 100000000 100000099)" --dry-run --output "$work/never"
verdict "$([ $? = 0 ] && [ "$(grep -c '^run ' "$work/log")" = 100 ] && grep -q '^run 100 of 100: seed-100000099$' "$work/log"; echo $?)" "a list of a thousand characters"
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
run "${data[@]}" --data data/hotel/train.jsonl --output "$work/one" && run "${data[@]}" --data "$work/a.jsonl" --data "$work/b.jsonl" --output "$work/two"
verdict "$([ $? = 0 ] && cmp -s "$work/one/adapter_model.safetensors" "$work/two/adapter_model.safetensors"; echo $?)" "two halves of a file train as the file: $(grep '^data' "$work/log" | sed "s|$work/||g")"
run "${data[@]}" --data data/hotel/train.jsonl --eval-split 0.1 --packing --max-length 300 --output "$work/split"
verdict "$([ "$(has '540 examples, .*packed into')" = 0 ] && [ "$(has '60 examples')" = 0 ] && [ "$(has '^eval  step 3')" = 0 ]; echo $?)" "--eval-split 0.1: $(grep -o ' [0-9]* examples, [0-9]* tokens' "$work/log" | tr '\n' ';')"
for i in $(seq 160); do cat data/hotel/train.jsonl; done >"$work/large.jsonl"
run "${data[@]}" --data "$work/large.jsonl" --output "$work/large"
verdict "$([ $? = 0 ] && [ "$(sed -n 's/^  program and data set *\([0-9]*\)\..* MiB/\1/p' "$work/log")" -lt 30 ]; echo $?)" "9 M tokens lie in a file, not in memory: $(grep 'program and data' "$work/log")"
for i in 1 2 3; do "$program" "${data[@]}" --data "$work/large.jsonl" --token-cache "$work/cache" --output "$work/cached$i" >"$work/log$i" 2>&1 & done
wait
verdict "$(ls "$work/cache" | wc -l | grep -qx 1 && for i in 1 2 3; do cmp -s "$work/large/adapter_model.safetensors" "$work/cached$i/adapter_model.safetensors" || exit 1; done; echo $?)" "three runs at once fill one --token-cache and train as without it"
start=$(date +%s%N)
run "${data[@]}" --data "$work/large.jsonl" --token-cache "$work/cache" --max-steps 1 --output "$work/again"
verdict "$([ $? = 0 ] && grep -q '96000 examples, 9039680 tokens' "$work/log"; echo $?)" "the next run starts from it: $((($(date +%s%N) - start) / 1000000)) ms, $(grep -o '[0-9]* examples, [0-9]* tokens' "$work/log")"
head -c 1000000 "$work"/cache/*.tokens >"$work/torn" && cp "$work/torn" "$work"/cache/*.tokens
run "${data[@]}" --data "$work/large.jsonl" --token-cache "$work/cache" --output "$work/again" && cmp -s "$work/large/adapter_model.safetensors" "$work/again/adapter_model.safetensors"
verdict $? "a torn cache file is written again"
run "${data[@]}" --data "$work/large.jsonl" --token-cache "$work/cache" --max-length 60 --output "$work/again"
verdict "$([ "$(ls "$work/cache" | wc -l)" = 2 ] && [ "$(has 'cut at max-length')" = 0 ]; echo $?)" "another --max-length has a file of its own"
refused "eval data and a split" "give one of them" --eval-split 0.1 --eval-data data/hotel/eval.jsonl

# What lies beside a run is looked at before the first step; later it costs a warning, not the run.
run "${few[@]}" --max-steps 3 --output "$work/beside"
cp -r "$work/beside" "$work/beside-before"
run "${few[@]}" --max-steps 3 --seed 7 --sample-prompts "$work/none.jsonl" --output "$work/beside"
verdict "$([ $? = 1 ] && grep -q '^error: .*none.jsonl' "$work/log" && ! grep -q '^step' "$work/log" && diff -r "$work/beside" "$work/beside-before" >"$work/diff"; echo $?)" "no file of sample prompts: nothing is trained, nothing lost: $(grep '^error' "$work/log" | sed "s|$work/||g")"
(ulimit -f 64; trap '' XFSZ; run "${few[@]}" --lora-r 1 --per-device-train-batch-size 1 --gradient-accumulation-steps 1 --max-length 48 \
    --max-steps 300 --logging-steps 1 --eval-on-start false --output "$work/stale")
verdict "$([ $? = 0 ] && grep -q '^warning: report.html stays as it was' "$work/log" &&
    [ -s "$work/stale/adapter_model.safetensors" ] && grep -q '</html>' "$work/stale/report.html"; echo $?)" \
    "no room for the report: $(grep '^warning: report' "$work/log" | sed "s|$work/||g")"
verdict "$([ "$(grep -c '^warning: log.jsonl misses lines' "$work/log")" = 1 ] && ! ls "$work"/stale/*.tmp >/dev/null 2>&1; echo $?)" \
    "no room for the log: $(grep '^warning: log' "$work/log" | sed "s|$work/||g")"

# Two runs, one folder; signals; streams that are closed, full or gone; a mapped file that shrinks.
started() { for _ in $(seq 3000); do grep -q '^step' "$1" && return; sleep 0.1; done; }
long() { exec "$program" "${few[@]}" --max-steps 100000 --logging-steps 1 --output "$work/busy" "$@" >"$work/busy.log" 2>&1; }
long --token-cache "$work/shrinking" & pid=$!
started "$work/busy.log"
run "${few[@]}" --max-steps 3 --output "$work/busy"
verdict "$([ $? = 1 ] && grep -q "^error: another run is writing there: process $pid on .*; .*; " "$work/log"; echo $?)" \
    "a second run into one folder: $(grep '^error' "$work/log" | sed "s|$work/||g")"
kill -HUP $pid
wait $pid
verdict "$([ $? = 129 ] && ls "$work"/busy/checkpoint-*/checkpoint.json >/dev/null 2>&1 && [ ! -e "$work/busy/run.lock" ]; echo $?)" \
    "SIGHUP: saved, and the folder is free again"
rm -r "$work/busy"
long --sweep seed=1,2 & pid=$!
started "$work/busy.log"
run "${few[@]}" --sweep seed=3,4 --max-steps 3 --output "$work/busy"
verdict "$([ $? = 1 ] && grep -q "^error: another run is writing there: process $pid on .*; $work/busy; " "$work/log" &&
    [ "$(find "$work/busy" -name run.lock | wc -l)" = 2 ]; echo $?)" "a second sweep into one folder"
kill -HUP $pid
wait $pid
verdict "$([ $? = 129 ] && [ -z "$(find "$work/busy" -name run.lock)" ]; echo $?)" "a sweep that ends leaves no lock"
rm -r "$work/busy"
long --token-cache "$work/shrinking" & pid=$!
started "$work/busy.log"
truncate -s 0 "$work"/shrinking/*.tokens
wait $pid
verdict "$([ $? = 1 ] && grep -q '^error: .*shrank.*shrinking/.*tokens; ' "$work/busy.log"; echo $?)" \
    "a mapped file that shrinks: $(grep '^error' "$work/busy.log" | sed "s|$work/||g")"
run "${few[@]}" --max-steps 3 --output "$work/busy"
verdict $? "a killed run's lock does not stay"
{ "$program" "${few[@]}" --max-steps 100000 --logging-steps 1 --output "$work/pipe" 2>"$work/log"; echo $? >"$work/status"; } | head -n 16 >"$work/pipe.log"
verdict "$([ "$(cat "$work/status")" = 141 ] && ls "$work"/pipe/checkpoint-*/checkpoint.json >/dev/null 2>&1; echo $?)" "| head ends the run: saved, exit 141"
"$program" "${few[@]}" --max-steps 3 --logging-steps 1 --output "$work/closed" <&- >&- 2>&-
verdict "$([ $? = 0 ] && ! grep -v '^{"step": ' "$work/closed/log.jsonl"; echo $?)" "closed streams: nothing but the log in log.jsonl"
head -n 8 data/hotel/train.jsonl >"$work/eight.jsonl"
for verb in "generate --model data/base --prompt hi --max-new-tokens 3" "generate --model data/base --prompt hi --max-new-tokens 3 --jsonl" \
    "evaluate --model data/base --data $work/eight.jsonl" "inspect --model data/base --data $work/eight.jsonl" "plan --model data/base" "--help" \
    "--model data/base --data $work/eight.jsonl --max-steps 2 --output $work/full-stdout"; do
    # shellcheck disable=SC2086
    "$program" $verb >/dev/full 2>"$work/log"
    verdict "$([ $? = 1 ] && [ "$(grep -c '^error' "$work/log")" = 1 ] && grep -q '^error: .*standard output' "$work/log"; echo $?)" "stdout is full: ${verb%% /*}"
done

# Names that are not UTF-8 go through every file and back.
odd=$work/mod$'\xe9'le out=$work/out$'\xc3'
cp -r data/base "$odd"
train=("${few[@]}" --model "$odd" --per-device-train-batch-size 1 --gradient-accumulation-steps 1 --eval-on-start false --max-steps 2)
run "${train[@]}" --save-strategy steps --save-steps 1 --output "$out" && run generate --model "$odd" --adapter "$out" --prompt x \
    --max-new-tokens 2 && ! grep -aq '^warning' "$work/log" && rm -r "$out/checkpoint-2" &&
    run "${train[@]}" --resume "$out" --output "$work/odd" && grep -aq 'resumed at step 1' "$work/log" &&
    run --config "$out/run.json" --output "$work/odd2" && cmp -s "$out/adapter_model.safetensors" "$work/odd2/adapter_model.safetensors" &&
    grep -q 'mod\\udce9le"' "$out/adapter_config.json"
verdict $? "a path that is not UTF-8: trained, answered, resumed, run again from run.json: $(tail -n 1 "$work/log" | tr -cd ' -~' | cut -c 1-80)"

# The end of a run on a full disk: the fallback, else the temporary folder.
if mkdir "$work/small" && mount -t tmpfs -o size=256k none "$work/small" 2>/dev/null; then
    run "${few[@]}" --max-steps 3 --eval-on-start false --fallback-output "$work/second" --output "$work/small/out"
    verdict "$([ $? = 1 ] && grep -q '^error: cannot write; .*No space left.*whole in .*second' "$work/log" && [ -s "$work/second/adapter_model.safetensors" ] && [ -s "$work/second/adapter_config.json" ]; echo $?)" "full disk, --fallback-output: $(grep '^error' "$work/log" | sed "s|$work/||g" | cut -c 1-170)"
    TMPDIR=$work run "${few[@]}" --max-steps 3 --eval-on-start false --output "$work/small/out"
    other=$(ls -d "$work"/train_lora-adapter-* 2>/dev/null)
    verdict "$([ -n "$other" ] && cmp -s "$other/adapter_model.safetensors" "$work/second/adapter_model.safetensors"; echo $?)" "full disk, no fallback: the adapter is in the temporary folder"
else
    echo "skipped: cannot mount a small tmpfs here"
fi
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
