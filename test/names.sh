#!/usr/bin/env bash
# Nothing of lora.h is in a user's way: its functions, variables and macros carry the prefix of their chapter. Those that
# do not are listed in test/names.txt; one that is not there fails, and so does one there that is gone.
set -u
passed=0 failed=0
mkdir -p build
check() {       # what, command...
    local what=$1
    shift
    if "$@"; then echo "ok    $what"; passed=$((passed + 1)); else echo "FAIL  $what"; failed=$((failed + 1)); fi
}
prefixes="adamw|adapter|attention|backend|batch|chat|checkpoint|class|config|cpu|data|dataset|dialogue|dropout|dtype|embedding|example|
file|folder|format|gen|generate|generator|json|layer|linear|lm_head|log|lora|loss|machine|memory|merge|message|metric|model|module|name|
objective|optimizer|pack|path|pattern|problem|prompt|prompts|qk_norm_rope|rmsnorm|rope|run|safe|safetensors|sample|schedule|scratch|shots|
sink|slot|stb|swiglu|task|team|temporary|tensor|tensors|text|tok|token|tokenizer|tokens|train|uni|utf8|weight|workspace"
prefixes=$(tr -d '\n' <<<"$prefixes")
source=build/names.c
printf '#define TOKENIZER_IMPLEMENTATION\n#define LORA_IMPLEMENTATION\n#include "lora.h"\n' >$source
flags="-std=gnu11 -march=native -fopenmp -I. -isystem .stb"
# shellcheck disable=SC2086
gcc $flags -w -O0 -c $source -o build/names.o || { echo "FAIL  lora.h does not compile"; echo "0 passed, 1 failed"; exit 1; }
# Symbols of the object, but for variables within functions (name.123) and what the compiler makes.
nm build/names.o | awk '$2 ~ /^[TtDdBbRr]$/ && $3 !~ /[.]/ { print $3 }' >build/names
# Macros that our own headers leave behind.
# shellcheck disable=SC2086
gcc $flags -E -dD $source | awk '/^# [0-9]/ { ours = $3 ~ /"(lora|tokenizer|data\/.*)\.h"/ }
    ours && /^#define/ { sub(/\(.*/, "", $2); macro[$2] = 1 }
    ours && /^#undef/ { delete macro[$2] }
    END { for (m in macro) print m }' >>build/names
grep -viE "^stbds_|^($prefixes)s?_" build/names | sort -u >build/names.bare
check "lora.h has functions, variables and macros: $(sort -u build/names | wc -l)" [ "$(sort -u build/names | wc -l)" -gt 500 ]
new=$(comm -23 build/names.bare <(sort test/names.txt) | tr '\n' ' ')
check "new names without their chapter's prefix: ${new:-none}" [ -z "$new" ]
gone=$(comm -13 build/names.bare <(sort test/names.txt) | tr '\n' ' ')
check "names of test/names.txt that are gone: ${gone:-none}" [ -z "$gone" ]
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
