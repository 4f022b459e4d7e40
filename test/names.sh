#!/usr/bin/env bash
# Nothing of lora.h is in a user's way: its functions, variables, macros, types and enumerators carry the prefix of
# their chapter. Those that do not are listed in test/names.txt; one that is not there fails, and so does one there that
# is gone.
set -u
. test/check.sh
mkdir -p build
prefixes="adamw|adapter|answer|attention|backend|batch|chat|checkpoint|class|classifier|config|cpu|data|dataset|dialogue|dropout|
dtype|embedding|eval|example|family|file|folder|format|gen|generate|generator|json|label|layer|linear|lm_head|log|lora|
loss|machine|memory|merge|message|metric|model|module|name|nonfinite|objective|optimizer|pack|path|pattern|problem|
prompt|prompts|qk_norm|recompute|rmsnorm|rope|run|safe|safetensors|sample|schedule|score|scratch|shots|sink|slot|stb|
strategy|swiglu|task|team|temporary|tensor|tensors|text|tok|token|tokenizer|tokens|train|uni|utf8|vector|weight|
workspace"
prefixes=$(tr -d '\n' <<<"$prefixes")
source=build/names.c
printf '#define TOKENIZER_IMPLEMENTATION\n#define LORA_IMPLEMENTATION\n#include "lora.h"\n' >$source
flags="-std=gnu11 -march=native -fopenmp -I. -isystem .stb"
# shellcheck disable=SC2086
gcc $flags -w -O0 -gdwarf-5 -fno-eliminate-unused-debug-types -c $source -o build/names.o ||
    { echo "FAIL  lora.h does not compile"; echo "0 passed, 1 failed"; exit 1; }
# Symbols of the object, but for variables within functions (name.123) and what the compiler makes.
nm build/names.o | awk '$2 ~ /^[TtDdBbRr]$/ && $3 !~ /[.]/ { print $3 }' >build/names
# Macros that our own headers leave behind.
# shellcheck disable=SC2086
gcc $flags -E -dD $source | awk '/^# [0-9]/ { ours = $3 ~ /"(lora|tokenizer|data\/.*)\.h"/ }
    ours && /^#define/ { sub(/\(.*/, "", $2); macro[$2] = 1 }
    ours && /^#undef/ { delete macro[$2] }
    END { for (m in macro) print m }' >>build/names
# Types and enumerators of our own headers that are not within a function: the debugger's list of them.
{ readelf --debug-dump=rawline build/names.o; readelf --debug-dump=info build/names.o; } | awk '
    /File Name Table/ { files = 1; next }
    files && /^  [0-9]/ { ours[$1] = $NF ~ /^(lora|tokenizer|dataset|classify)[.]h$/; next }
    files && !NF { files = 0 }
    /^ <[0-9]+><[0-9a-f]+>: Abbrev/ { level = substr($0, 3, 1); tag = $NF; name = ""; if (level == 1) mine = 0 }
    /DW_AT_name/ { name = $NF; if (level == 2 && mine && tag ~ /enumerator/) print name }
    /DW_AT_decl_file/ && level == 1 { mine = ours[$NF]; if (mine && name && tag ~ /typedef|structure/) print name }
    ' | sort -u >build/names.types
types=$(wc -l <build/names.types)
check "lora.h has types and enumerators: $types" [ "$types" -gt 300 ]
# A prefix ends with "_", or where the next word of a type's name begins.
grep -viE "^stbds_|^($prefixes)s?_" build/names | sort -u >build/names.bare
names=$(sort -u build/names | wc -l)
check "lora.h has functions, variables and macros: $names" [ "$names" -gt 500 ]
camel=$(sed -E 's/(^|\||_)([a-z])/\1\U\2/g; s/_//g' <<<"$prefixes")
grep -vE "^($camel)s?([A-Z]|$)|^(${prefixes^^})S?_|^($prefixes)_" build/names.types >>build/names.bare
sort -u -o build/names.bare build/names.bare
new=$(comm -23 build/names.bare <(sort test/names.txt) | tr '\n' ' ')
check "new names without their chapter's prefix: ${new:-none}" [ -z "$new" ]
gone=$(comm -13 build/names.bare <(sort test/names.txt) | tr '\n' ' ')
check "names of test/names.txt that are gone: ${gone:-none}" [ -z "$gone" ]
finish
