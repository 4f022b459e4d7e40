#!/usr/bin/env bash
# Runs every test program of build/ (and its sanitizer build), the command-line tests and the compilers check. Full logs in build/logs; the last line is the sum.
set -u
mkdir -p build/logs
passed=0 failed=0
suite() {       # name command...: adds up the suite's own last line; a crash, or no verdict, is a failure
    local name=$1 log=build/logs/${1//\//-}.log status line p f start=$SECONDS
    shift
    "$@" >"$log" 2>&1
    status=$?
    line=$(grep -E '^[0-9]+ passed, [0-9]+ failed$' "$log" | tail -n 1)
    p=${line%% *} f=${line##*, } f=${f%% *}
    if [ -z "$line" ] || [ "$((p + f))" = 0 ] || { [ "$status" != 0 ] && [ "$f" = 0 ]; }; then
        echo "FAIL  $name: exit status $status and no verdict; the end of $log:"
        tail -n 5 "$log"
        p=${p:-0} f=$((${f:-0} + 1))
    fi
    grep -E '^FAIL' "$log"
    grep -E '^skipped' "$log" | sort -u | sed "s/^/$name: /"
    printf '%-28s %5d passed %3d failed %4d s\n' "$name" "$p" "$f" $((SECONDS - start))
    passed=$((passed + p)) failed=$((failed + f))
}
for t in test_tokenizer test_ops test_data test_model test_train test_embed; do suite "$t" "build/$t"; done
suite test_cli bash test/test_cli.sh ./train_lora
suite compilers bash test/compilers.sh
export OMP_NUM_THREADS=2 ASAN_OPTIONS=detect_leaks=1
for t in test_tokenizer test_ops test_data test_model test_train test_embed; do suite "asan/$t" "build/asan/$t"; done 2>/dev/null
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
