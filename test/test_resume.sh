#!/usr/bin/env bash
# Checkpoints and resume, from the outside: test_resume.sh PROGRAM [KILLS]. A run that is killed with SIGKILL at random moments, writing checkpoints included, and resumed each time, ends with the very bits of one that
# was left alone: the adapter, and the log but for its timings.
set -u
program=$1 kills=${2:-8} passed=0 failed=0
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS=2
verdict() { if [ "$1" = 0 ]; then passed=$((passed + 1)); echo "ok    $2"; else failed=$((failed + 1)); echo "FAIL  $2"; fi; }
options=(--max-steps 120 --logging-steps 5 --eval-on-start false --lora-dropout 0.1 --per-device-train-batch-size 2 --gradient-accumulation-steps 2)
run() { timeout 60 "$program" "${options[@]}" "$@"; }
timeless() { sed -E 's/"(tokens_per_second|seconds|eval_runtime)": [0-9.e+-]+,? ?//g' "$1"; }

run --output "$work/whole" >/dev/null 2>&1
verdict $? "a run that is left alone"

RANDOM=2026 killed=0 attempts=0
while [ $attempts -lt 60 ]; do
    attempts=$((attempts + 1))
    resume=()
    ls -d "$work"/killed/checkpoint-*[0-9] >/dev/null 2>&1 && resume=(--resume "$work/killed")
    "$program" "${options[@]}" --output "$work/killed" --save-strategy steps --save-steps 3 --save-total-limit 3 "${resume[@]}" >"$work/log" 2>&1 &
    pid=$!
    if [ $killed -lt "$kills" ]; then
        sleep "$(awk -v r=$RANDOM 'BEGIN { printf "%.3f", 0.2 + r / 32768 * 0.6 }')"
        kill -KILL $pid 2>/dev/null && killed=$((killed + 1))
    fi
    wait $pid 2>/dev/null && break
done
verdict "$([ $killed -ge "$kills" ] && grep -q "resumed at step" "$work/log"; echo $?)" "killed $killed times, resumed $((attempts - 1)) times: $(grep -o 'resumed at step [0-9]*' "$work/log")"
cmp "$work/whole/adapter_model.safetensors" "$work/killed/adapter_model.safetensors" >/dev/null 2>&1
verdict $? "the adapter is the same file"
cmp <(timeless "$work/whole/log.jsonl") <(timeless "$work/killed/log.jsonl") >/dev/null 2>&1
verdict $? "log.jsonl has the same lines but for the timings"
verdict "$([ "$(ls -d "$work"/killed/checkpoint-*[0-9] | wc -l)" = 3 ]; echo $?)" "--save-total-limit 3 keeps three checkpoints"
newest=$(ls -d "$work"/killed/checkpoint-*[0-9] | sort -t- -k2 -n | tail -n 1)

"$program" "${options[@]}" --output "$work/signal" >"$work/log" 2>&1 &       # not `run`: a signal to a function's subshell would miss the program
pid=$!
sleep 0.8
kill -TERM $pid
wait $pid
status=$?
verdict "$([ $status = 143 ] && grep -q 'with --resume and this folder' "$work/log"; echo $?)" "SIGTERM: exit $status, a checkpoint and the way to go on: $(grep -o '^checkpoint .*' "$work/log")"
run --output "$work/signal" --resume "$work/signal" >/dev/null 2>&1 && cmp "$work/whole/adapter_model.safetensors" "$work/signal/adapter_model.safetensors" >/dev/null
verdict $? "resumed after SIGTERM: the same file"

refused() { # what, pattern, options...
    local what=$1 pattern=$2 status
    shift 2
    run --output "$work/refused" "$@" >"$work/log" 2>&1
    status=$?
    verdict "$([ $status = 1 ] && grep -q "^error: .*$pattern" "$work/log"; echo $?)" "$what: $(grep '^error' "$work/log" | sed "s|$work/||g" | cut -c 1-140)"
}
refused "another learning rate" "another learning_rate" --resume "$newest" --learning-rate 0.001
refused "another seed" "another seed" --resume "$newest" --seed 7
refused "no checkpoint there" "no checkpoint to resume from" --resume "$work/whole"
cp -r "$newest" "$work/damaged"
head -c 300 "$newest/checkpoint.json" >"$work/damaged/checkpoint.json"
refused "a cut checkpoint.json" "checkpoint.json" --resume "$work/damaged"
cp "$newest/checkpoint.json" "$work/damaged/"
head -c 5000 "$newest/optimizer.safetensors" >"$work/damaged/optimizer.safetensors"
refused "cut moments" "optimizer.safetensors" --resume "$work/damaged"

# A disk that fills up: the limit on file sizes stops every file above 64 KiB, as ENOSPC would.
(ulimit -f 64; trap '' XFSZ; run --output "$work/full" --save-strategy steps --save-steps 40 >"$work/log" 2>&1; true)
verdict "$(grep -q '^warning: no checkpoint: .*training goes on' "$work/log"; echo $?)" "no room for a checkpoint: $(grep -m 1 '^warning' "$work/log" | sed "s|$work/||g" | cut -c 1-120)"
verdict "$(grep -q '120/120' "$work/log" && ! ls "$work"/full/checkpoint-* >/dev/null 2>&1; echo $?)" "training went on to the last step and left no torn checkpoint"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
