#!/usr/bin/env bash
# The sources are C11 and C++17 for gcc and clang, without a warning.
mkdir -p build
passed=0 failed=0
compiles() {    # what, command...
    local what=$1
    shift
    if "$@" -Wall -Wextra -Werror -O1 -march=native -isystem .stb -fsyntax-only 2>build/compiler.log; then
        echo "ok    $what"; passed=$((passed + 1))
    else
        echo "FAIL  $what: $(grep -m 1 -E "error|warning" build/compiler.log)"; failed=$((failed + 1))
    fi
}
for compiler in "gcc -std=gnu11 -x c" "g++ -std=gnu++17 -x c++" "clang -std=gnu11 -x c" "clang++ -std=gnu++17 -x c++"; do
    if ! command -v "${compiler%% *}" >/dev/null; then echo "skipped: no ${compiler%% *}"; continue; fi
    # clang's OpenMP is a package of its own: without it the pragmas are skipped silently
    case $compiler in g*) openmp=-fopenmp ;; *) openmp= ;; esac
    for source in train_lora.cu test/test_ops.c test/test_model.c test/test_embed.c; do
        case "$compiler:$source" in *++*:test/test_ops.c) continue ;; esac    # SAME_SIGNATURE of CPU ops is C11's
        # shellcheck disable=SC2086
        compiles "$compiler $source" $compiler $openmp -I. "$source"
    done
    # `make single`: one file, and nothing of the repository beside it
    # shellcheck disable=SC2086
    compiles "$compiler test/test_embed.c, lora.h in one file" $compiler $openmp -Ibuild test/test_embed.c
done
# The program needs no more than what the headers declare.
if gcc -std=gnu11 -x c -fopenmp -Wall -Wextra -Werror -Wno-unused-function -DDECLARATIONS_ALONE -I. -isystem .stb \
    -fsyntax-only train_lora.cu 2>build/compiler.log; then
    echo "ok    train_lora.cu uses nothing private of the headers"; passed=$((passed + 1))
else
    echo "FAIL  train_lora.cu: $(grep -m 1 -E "error|warning" build/compiler.log)"; failed=$((failed + 1))
fi
# The fuzz entries, which nothing else compiles: those of the headers are those that make fuzz runs.
entries=$(grep -h '^#.*if.*FUZZ_' lora.h data/dataset.h data/chat.h tokenizer.h | grep -o 'FUZZ_[A-Z]*' | sort -u)
for entry in $entries; do
    command -v clang >/dev/null || { echo "skipped: no clang for the fuzz entries"; break; }
    header=$(grep -l "^#.*if.*$entry\b" tokenizer.h data/chat.h data/dataset.h lora.h)
    if clang -std=gnu11 -Wall -Wextra -Werror -DTOKENIZER_IMPLEMENTATION -DDATASET_IMPLEMENTATION -DLORA_IMPLEMENTATION \
        "-D$entry" -I. -isystem .stb -fsyntax-only -include "$header" -x c /dev/null 2>build/compiler.log &&
        grep -q "^all=.*\b${entry#FUZZ_}\b" test/fuzz.sh; then
        echo "ok    clang $entry"; passed=$((passed + 1))
    else
        echo "FAIL  $entry, of test/fuzz.sh's: $(grep -m 1 -E "error|warning" build/compiler.log)"
        failed=$((failed + 1))
    fi
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
