# shellcheck shell=bash disable=SC2154
# check.sh - the frame of the shell tests, as check.h is that of the C tests: . test/check.sh
# (from the repository root). A test of the program sets `work`, its folder, `said`, the file of what
# the program prints, and after each run `status`.
passed=0 failed=0 status='' said=''
# What is checked, then what must succeed: check "what" command [, command]... A failure names the first that did not.
check() {
    local what=$1 word command=()
    shift
    for word in "$@" ','; do
        if [ "$word" != , ]; then command+=("$word"); continue; fi
        if [ ${#command[@]} = 0 ] || ! "${command[@]}"; then
            echo "FAIL  $what"
            echo "      not so: ${command[*]}"
            failed=$((failed + 1))
            [ -z "${STOP_AT_FAILURE-}" ] || exit 1
            return
        fi
        command=()
    done
    echo "ok    $what"
    passed=$((passed + 1))
}
not() { ! "$@"; }
ended() { [ "$status" = "$1" ]; }                       # the exit status
says() { grep -q -- "$1" "${2:-$said}"; }               # pattern [file]
told() { grep -m 2 -- "$1" "${2:-$said}" | sed "s|$work/||g" | cut -c 1-170; }      # those lines, short
exists() { [ -e "$1" ]; }                               # the first file of a pattern, as test/*.sh
absent() { [ ! -e "$1" ]; }
finish() { echo "$passed passed, $failed failed"; [ "$failed" = 0 ]; }
