#!/usr/bin/env bash
# Checkpoints and resume, from the outside: test_resume.sh PROGRAM [KILLS]. A run that is killed with SIGKILL, at random
# moments and between writing, syncing and renaming a file, and resumed each time, ends with the very bits of one that
# was left alone: the adapter, and the log but for its timings. With many KILLS (make soak) the options of the runs vary
# too.
set -u
. test/check.sh
program=$1 kills=${2:-36}
work=$(mktemp -d) || exit 1
said=$work/log
trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} OMP_WAIT_POLICY=passive
timeless() { sed -E 's/"(tokens_per_second|ceiling_share|seconds|eval_runtime)": [0-9.e+-]+,? ?//g' "$1"; }
data=(--model data/base --data data/hotel/train.jsonl --learning-rate 5e-3 --warmup-ratio 0.05)
options=("${data[@]}" --max-steps 120 --logging-steps 5 --eval-on-start false --lora-dropout 0.1
    --per-device-train-batch-size 2 --gradient-accumulation-steps 2)
run() { timeout 900 "$program" "${options[@]}" "$@" >"$said" 2>&1; status=$?; return $status; }

RANDOM=2026
# Kills a run `kills` times, resumes it each time, compares its end with an undisturbed one's.
tormented() {       # name kills options...
    local name=$1 kills=$2 killed=0 crashed=0 attempts=0 resume pid
    shift 2
    local options=("$@")
    "$program" "${options[@]}" --output "$work/$name-whole" >"$work/log" 2>&1
    status=$?
    check "a run that is left alone: ${*}" ended 0
    while [ $attempts -lt $((4 * kills + 40)) ]; do
        attempts=$((attempts + 1))
        resume=()
        ls -d "$work/$name"/checkpoint-*[0-9] >/dev/null 2>&1 && resume=(--resume "$work/$name")
        # Half of the kills are aimed: at the n-th place where a file is half written.
        if [ $((RANDOM % 2)) = 0 ]; then
            CRASH_AT=$([ $((killed + crashed)) -lt "$kills" ] && echo $((1 + RANDOM % 250))) \
                LD_PRELOAD=$PWD/build/crash.so "$program" "${options[@]}" --output "$work/$name" "${resume[@]}" \
                    >"$work/log" 2>&1
            status=$?
            [ $status = 137 ] && crashed=$((crashed + 1))
        else
            "$program" "${options[@]}" --output "$work/$name" "${resume[@]}" >"$work/log" 2>&1 &
            pid=$!
            if [ $((killed + crashed)) -lt "$kills" ]; then
                sleep "$(awk -v r=$RANDOM 'BEGIN { printf "%.3f", 0.1 + r / 32768 * 0.7 }')"
                kill -KILL $pid 2>/dev/null && killed=$((killed + 1))
            fi
            wait $pid 2>/dev/null
            status=$?
        fi
        [ $status = 0 ] && break
        [ $status = 137 ] || { check "exit status $status: $(tail -n 1 "$work/log")" ended 137; return; }
    done
    check "killed $killed times at random and $crashed times inside a write, run $attempts times: $(
        grep -o 'resumed at step [0-9]*' "$work/log")" \
        [ $((killed + crashed)) -gt 0 ] , says "resumed at step"
    check "the adapter is the same file" \
        cmp -s "$work/$name-whole/adapter_model.safetensors" "$work/$name/adapter_model.safetensors"
    check "log.jsonl has the same lines but for the timings" \
        cmp -s <(timeless "$work/$name-whole/log.jsonl") <(timeless "$work/$name/log.jsonl")
    total=$((total + killed + crashed))
}

total=0
tormented killed $((kills < 12 ? kills : 12)) "${options[@]}" --save-strategy steps --save-steps 3 --save-total-limit 3
check "--save-total-limit 3 keeps three checkpoints" [ "$(ls -d "$work"/killed/checkpoint-*[0-9] | wc -l)" = 3 ]
# Picked without a subshell, which would have random numbers of its own.
ranks=(1 3 8 16) dropouts=(0 0.1 0.3) batches=(1 2 3) accumulations=(1 2) schedules=(linear cosine constant)
switches=(true false) levels=(none gate_up layer) strategies=(no steps) optims=(adamw adamw_8bit)
round=0
while [ $total -lt "$kills" ] && [ $round -lt 60 ]; do
    round=$((round + 1))
    RANDOM=$((round * 977))         # the options of a round do not depend on how often the ones before were killed
    tormented "round$round" 8 "${data[@]}" --eval-data data/hotel/test.jsonl --max-steps $((40 + RANDOM % 50)) \
        --logging-steps $((1 + RANDOM % 9)) --lora-r "${ranks[RANDOM % 4]}" --lora-dropout "${dropouts[RANDOM % 3]}" \
        --per-device-train-batch-size "${batches[RANDOM % 3]}" \
        --gradient-accumulation-steps "${accumulations[RANDOM % 2]}" --lr-scheduler-type "${schedules[RANDOM % 3]}" \
        --seed $RANDOM --packing "${switches[RANDOM % 2]}" --max-length 256 --recompute "${levels[RANDOM % 3]}" \
        --save-strategy steps --save-steps $((1 + RANDOM % 7)) --save-total-limit $((1 + RANDOM % 3)) \
        --eval-strategy "${strategies[RANDOM % 2]}" --eval-steps 20 --eval-on-start false \
        --optim "${optims[RANDOM % 2]}" --lora-plus-ratio $((1 + RANDOM % 4))
    rm -rf "$work/round$round" "$work/round$round-whole"
done
newest=$(ls -d "$work"/killed/checkpoint-*[0-9] | sort -t- -k2 -n | tail -n 1)
cp -r "$newest" "$work/newest"
newest=$work/newest

# What only looks like a checkpoint, and a file that somebody has put into one.
cp -r "$work/killed" "$work/stray"
mkdir "$work/stray/checkpoint-0118" "$work/stray/checkpoint-+119" "$work/stray/checkpoint-500"
touch "$work/stray/checkpoint-117/notes" "$work/stray/checkpoint-900"
# a removal that was killed, and another program's checkpoint
mkdir "$work/stray/checkpoint-1" "$work/stray/checkpoint-2"
touch "$work/stray/checkpoint-1/optimizer.safetensors" "$work/stray/checkpoint-1/run.json" \
    "$work/stray/checkpoint-2/optimizer.pt" "$work/stray/checkpoint-2/adapter_model.safetensors"
run --output "$work/stray" --resume "$work/stray/checkpoint-114" --save-strategy steps --save-steps 3 \
    --save-total-limit 3
check "checkpoint-117 written again keeps a file that is not ours" \
    ended 0 , [ -e "$work/stray/checkpoint-117/notes" ] , \
    [ "$(ls "$work"/stray/checkpoint-*/checkpoint.json | wc -l)" = 3 ] , absent "$work"/stray/*.tmp
check "what a killed removal left is gone, another program's checkpoint is whole" \
    absent "$work/stray/checkpoint-1" , exists "$work/stray/checkpoint-2/optimizer.pt" , \
    exists "$work/stray/checkpoint-2/adapter_model.safetensors"
run --output "$work/stray" --resume "$work/stray"
check "checkpoint-0118, checkpoint-500 without a checkpoint and a file checkpoint-900 are passed over" \
    ended 0 , says "resumed at step 120"

# Not `run`: a signal to a function's subshell would miss the program.
"$program" "${options[@]}" --output "$work/signal" >"$work/log" 2>&1 &
pid=$!
for _ in $(seq 6000); do grep -q "^step" "$work/log" && break; sleep 0.05; done
kill -TERM $pid
wait $pid
status=$?
check "SIGTERM: exit $status, a checkpoint and the way to go on: $(grep -o '^to go on .*' "$work/log")" \
    ended 143 , says '--resume '
run --output "$work/signal" --resume "$work/signal"
check "resumed after SIGTERM: the same file" \
    ended 0 , cmp -s "$work/killed-whole/adapter_model.safetensors" "$work/signal/adapter_model.safetensors"

refused() { # what, pattern, options...
    local what=$1 pattern=$2
    shift 2
    run --output "$work/refused" "$@"
    check "$what: $(told ^error)" \
        ended 1 , says "^error: .*$pattern"
}
refused "another learning rate and seed, both listed" "learning_rate 0.005 (now 0.001), seed 42 (now 7)" \
    --resume "$newest" --learning-rate 0.001 --seed 7
refused "another rank" "lora_r 16 (now 8)" --resume "$newest" --lora-r 8
head -n 599 data/hotel/train.jsonl >"$work/shorter.jsonl"
refused "another data file" "another data" --resume "$newest" --data "$work/shorter.jsonl"
cp -r data/base "$work/other"
header=$(od -An -tu8 -N8 data/base/model.safetensors | tr -d ' ')
printf '\177\077' | dd of="$work/other/model.safetensors" bs=1 seek=$((8 + header)) conv=notrunc 2>/dev/null
refused "another base model" "another model" --resume "$newest" --model "$work/other"
run --output "$work/forced" --resume "$newest" --learning-rate 0.001 --resume-force
check "--resume-force goes on: $(grep '^warning' "$work/log" | cut -c 1-140)" \
    ended 0 , says '^warning: resumed although .*learning_rate'
refused "no checkpoint there" "no checkpoint to resume from" --resume "$work/refused"
cp -r "$newest" "$work/damaged"
head -c 300 "$newest/checkpoint.json" >"$work/damaged/checkpoint.json"
refused "a cut checkpoint.json" "checkpoint.json" --resume "$work/damaged"
cp "$newest/checkpoint.json" "$work/damaged/"
head -c 5000 "$newest/optimizer.safetensors" >"$work/damaged/optimizer.safetensors"
refused "cut moments" "optimizer.safetensors" --resume "$work/damaged"
cp "$newest/optimizer.safetensors" "$work/damaged/"
sed 's/"adam_step": [0-9]*/"adam_step": 7/' "$newest/checkpoint.json" >"$work/damaged/checkpoint.json"
refused "a changed checkpoint.json" "checksum" --resume "$work/damaged"
run --output "$work/killed" --save-strategy steps --save-steps 40
check "a fresh run over old checkpoints: $(told ^error)" \
    ended 1 , says '^error: there are checkpoints of an earlier run'

# A disk that fills up: the limit on file sizes stops every file above 64 KiB, as ENOSPC would.
(ulimit -f 64; trap '' XFSZ; export TMPDIR=$work
    exec "$program" "${options[@]}" --output "$work/full" --save-strategy steps --save-steps 40) >"$work/log" 2>&1 &
pid=$!
for _ in $(seq 1500); do grep -q 'still in memory' "$work/log" && break; sleep 0.2; done
kill -INT $pid
wait $pid
check "no room for a checkpoint: $(told ^warning)" \
    says '^warning: no checkpoint: .*training goes on'
check "training went on to the last step and left no torn checkpoint" says '120/120' , absent "$work"/full/checkpoint-*
check "no room for the adapter anywhere: $(told 'still in memory')" \
    says '^warning: .*still in memory'
finish
