#!/usr/bin/env bash
# Runs every test program of build/ (its sanitizer build, and the CUDA kernels on the emulator), the command-line tests, the compilers and nvcc checks and the mutation test. Full logs in build/logs; the last line is the sum.
set -u
mkdir -p build/logs
passed=0 failed=0 due=0 done=0
suite() {       # name command...: adds up the suite's own last line; a crash, or no verdict, is a failure
    local name=$1 log=build/logs/${1//\//-}.log status line p f start=$SECONDS
    shift
    "$@" >"$log" 2>&1
    status=$?
    line=$(grep -E '^[0-9]+ passed, [0-9]+ failed$' "$log" | tail -n 1)
    p=${line%% *} f=${line##*, } f=${f%% *}
    if [ -z "$line" ] || { [ "$((p + f))" = 0 ] && ! grep -q '^skipped' "$log"; } || { [ "$status" != 0 ] && [ "$f" = 0 ]; }; then
        echo "FAIL  $name: exit status $status and no verdict; the end of $log:"
        tail -n 5 "$log"
        p=${p:-0} f=$((${f:-0} + 1))
    fi
    grep -E '^FAIL' "$log"
    grep -E '^skipped' "$log" | sort -u | sed "s|^|$name: |"
    printf '%-28s %5d passed %3d failed %4d s\n' "$name" "$p" "$f" $((SECONDS - start))
    passed=$((passed + p)) failed=$((failed + f)) done=$((done + 1))
}
one() { due=$((due + 1)); suite "$@"; }
# "name command ..." each: two at a time, on one core each. Each leaves its output for `replay`, so that suite can count
# it in order.
replay() { start=$((SECONDS - $(cat "build/logs/${1//\//-}.seconds"))); cat "build/logs/${1//\//-}.out"; return "$(cat "build/logs/${1//\//-}.status")"; }
side_by_side() {
    due=$((due + $#))
    printf '%s\n' "$@" | OMP_NUM_THREADS=1 xargs -P 2 -L 1 bash -c 'name=${0//\//-}; "$@" >"build/logs/$name.out" 2>&1; echo $? >"build/logs/$name.status"; echo $SECONDS >"build/logs/$name.seconds"'
    local job
    for job in "$@"; do suite "${job%% *}" replay "${job%% *}"; done
}
programs="test_tokenizer test_ops test_data test_chat test_model test_generate test_train test_embed test_score test_faults"
for t in $programs; do one "$t" "build/$t"; done
side_by_side "test_cli bash test/test_cli.sh ./train_lora" \
    "test_resume bash test/test_resume.sh ./train_lora" \
    "test_run bash test/test_run.sh ./train_lora" \
    "test_generate_cli bash test/test_generate.sh ./train_lora" \
    "test_pages bash test/test_pages.sh" \
    "test_convert bash test/test_convert.sh data/convert ./train_lora" \
    "compilers bash test/compilers.sh" \
    "names bash test/names.sh"
# The kernels in three precisions, each in another order of the threads; fp16 once more as on a Turing card, with 64 KiB of shared memory and the older instruction; then the longest under sanitizers.
emulated=(
    "asan/emulated/test_ops env ASAN_OPTIONS=detect_leaks=0 build/emulated/asan/test_ops_BF16"        # fibers hold what the leak checker cannot see
    "asan/emulated/test_model env ASAN_OPTIONS=detect_leaks=0 build/emulated/asan/test_model_FP32"
    "emulated/test_ops_FP32 build/emulated/tests_FP32 test_ops"
    "emulated/test_ops_BF16 env EMULATOR_ORDER=1 build/emulated/tests_BF16 test_ops"
    "emulated/test_ops_FP16 env EMULATOR_ORDER=2026 build/emulated/tests_FP16 test_ops"
    "emulated/turing env EMULATED_SHARED=65536 build/emulated/tests_FP16 test_ops"
    "emulated/test_model_FP32 build/emulated/tests_FP32 test_model"
    "emulated/test_generate_FP32 build/emulated/tests_FP32 test_generate"
    "emulated/test_generate_BF16 env EMULATOR_ORDER=7 build/emulated/tests_BF16 test_generate"
    "emulated/test_train_FP32 build/emulated/tests_FP32 test_train"
    "emulated/test_train_BF16 build/emulated/tests_BF16 test_train"
    "emulated/test_train_FP16 build/emulated/tests_FP16 test_train"
    "gemm_ladder build/gemm_ladder"
    "attention_ladder build/attention_ladder")
side_by_side "${emulated[@]}"
# The longest first: what is done while they run costs no time of its own.
sanitized=("nvcc bash test/nvcc.sh" "mutants build/mutants")
for t in $programs; do sanitized+=("asan/$t env OMP_WAIT_POLICY=passive OMP_NUM_THREADS=2 ASAN_OPTIONS=detect_leaks=1 build/asan/$t"); done
# Options live as long as the program: no leaks are looked for.
sanitized+=("asan/test_options env ASAN_OPTIONS=detect_leaks=0 build/asan/test_options")
side_by_side "${sanitized[@]}"
[ "$done" = "$due" ] || { echo "FAIL  $((due - done)) of $due suites have no verdict"; failed=$((failed + due - done)); }
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
