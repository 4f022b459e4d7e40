#!/usr/bin/env bash
# Compiles the kernels for every architecture without a GPU and prints what ptxas says of the hot ones: registers a thread, spilled bytes, blocks of them that fit a multiprocessor's registers.
# A spill in GEMM or attention fails: it would go through memory in the innermost loop.
set -u
nvcc=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
[ -x "$nvcc" ] || { echo "skipped: no nvcc on this machine"; echo "0 passed, 0 failed"; exit 0; }
mkdir -p build/nvcc
compile() {     # arch precision: the device code alone. The FP32 build is for checking and need only compile: optimised, its loops take a minute
    local optimise=-O3
    [ "$2" = FP32 ] && optimise="-Xcicc -O1 -Xptxas -O1"
    "$nvcc" -std=c++17 $optimise -cubin -arch "sm_$1" -Xptxas -v -DPRECISION_"$2" -I. -isystem .stb train_lora.cu -o "build/nvcc/$1_$2.cubin" >"build/nvcc/$1_$2.log" 2>&1 || echo "failed to compile" >>"build/nvcc/$1_$2.log"
}
export -f compile
export nvcc
# What only a machine with a card can run must at least keep compiling; it brings the host code in with it.
"$nvcc" -std=c++17 -O1 -arch=sm_90 -Xcompiler -fopenmp,-Wall,-Wextra,-Werror,-Wno-unused-function -I. -isystem .stb -c dev/bench_gpu.cu -o build/nvcc/bench_gpu.o >build/nvcc/bench_gpu.log 2>&1 &
bench=$!
builds="75 FP16,80 BF16,86 BF16,89 BF16,90a BF16,100 BF16,120 BF16,90a FP16,90a FP32"
tr , '\n' <<<"$builds" | xargs -P "$(nproc)" -L1 bash -c 'compile $0 $1'
passed=0 failed=0
while read -r arch precision; do
    log=build/nvcc/${arch}_$precision.log
    if grep -qE "error|failed to compile" "$log"; then echo "FAIL  sm_$arch $precision does not compile:"; grep -E "error|failed" "$log" | head -n 5; failed=$((failed + 1)); continue; fi
    report=$(c++filt <"$log" | awk '
        /Compiling entry function/ { split($0, part, "\047"); name = part[2]; sub(/^void /, "", name); sub(/\(.*/, "", name) }
        /bytes spill stores/ { spill[name] = $5 + $9 }
        /Used [0-9]+ registers/ { match($0, /Used [0-9]+/); registers[name] = substr($0, RSTART + 5, RLENGTH - 5) }
        END {
            for (n in registers) if (n ~ /gemm|attention_(forward|keys|queries)|lora_(down|gradient)/) {
                if (spill[n] > 0) bad = bad sprintf(" %s spills %d bytes", n, spill[n])
                if (n ~ /gemm/ || n ~ /<8>/ || n ~ /lora/) list = list sprintf("%s %d  ", n, registers[n])
            }
            print (bad == "" ? "ok" : "FAIL") "|" bad "|" list
        }')
    IFS='|' read -r verdict bad list <<<"$report"
    if [ "$precision" = FP32 ]; then passed=$((passed + 1)); echo "ok    sm_$arch $precision compiles"
    elif [ "$verdict" = ok ]; then passed=$((passed + 1)); echo "ok    sm_$arch $precision: no spill; registers: $list"
    else failed=$((failed + 1)); echo "FAIL  sm_$arch $precision:$bad"; fi
done < <(tr , '\n' <<<"$builds")
if wait $bench; then passed=$((passed + 1)); echo "ok    dev/bench_gpu.cu compiles"
else failed=$((failed + 1)); echo "FAIL  dev/bench_gpu.cu does not compile:"; tail -n 5 build/nvcc/bench_gpu.log; fi
rm -f build/nvcc/*.cubin build/nvcc/*.o
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
