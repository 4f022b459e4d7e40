#!/usr/bin/env bash
# What nvcc says, without a GPU. The trainer is compiled and linked as `make CUDA=1` does it, once in each precision, and
# the kernels alone for two more cards; any warning fails, the host compiler's too. Prints what ptxas says of the hot
# kernels: registers a thread, spilled bytes. A spill in GEMM or attention fails: it would go through memory in the
# innermost loop.
set -u
nvcc=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
[ -x "$nvcc" ] || { echo "skipped: no nvcc on this machine"; echo "0 passed, 0 failed"; exit 0; }
out=build/nvcc
mkdir -p $out
strict="-Werror all-warnings -Xcompiler -Werror"
# what architecture precision: the Makefile's own command, so that what is checked is what a user builds
compile() {
    local what=$1 arch=$2 precision=$3 log=$out/$2_$3.log code= output="-o $out/$2_$3" source=train_lora.cu command
    case $what:$precision in
    linked:BF16) ;;                     # the host's half at -O3, as a user builds it: once is enough for its warnings
    linked:*) output="-Xcompiler -O1 $output" ;;
    kernels:*) code="GPU_CODE=arch=compute_$arch,code=sm_$arch" output="-cubin $output" ;;
    bench:*) source=dev/bench_gpu.cu output="-c -Xcompiler -O0 -Xcicc -O1 -Xptxas -O1 $output.o" log=$out/bench.log ;;
    esac
    command=$(make -s --no-print-directory CUDA=1 CUDA_ARCH="$arch" PRECISION="$precision" BUILD=$out NVCC="$nvcc" $code nvcc-command)
    $command $strict -Xptxas -v $source $output -lm >"$log" 2>&1 || echo "failed to compile" >>"$log"
}
export -f compile
export nvcc out strict
# FP32 first: it takes longest. Its products are loops of FMAs over fragments that are twice as large: they may spill.
builds="linked 80 FP32,linked 90 BF16,linked 75 FP16,kernels 80 BF16,kernels 120 BF16,bench 90 BF16"
tr , '\n' <<<"$builds" | xargs -P "$(nproc)" -L1 bash -c 'compile $0 $1 $2'
passed=0 failed=0
while read -r what arch precision; do
    log=$out/${arch}_$precision.log name="sm_$arch $precision, $what"
    [ "$what" = bench ] && log=$out/bench.log name=dev/bench_gpu.cu
    if grep -q "failed to compile" "$log"; then
        echo "FAIL  $name does not compile:"; grep -E "error|warning|fatal|undefined" "$log" | head -n 5; failed=$((failed + 1)); continue
    fi
    report=$(c++filt <"$log" | awk '
        /Compiling entry function/ { split($0, part, "\047"); name = part[2]; sub(/^void /, "", name); sub(/\(.*/, "", name) }
        /bytes spill stores/ { spill[name] = $5 + $9 }
        /Used [0-9]+ registers/ { match($0, /Used [0-9]+/); registers[name] = substr($0, RSTART + 5, RLENGTH - 5) }
        END {
            for (n in registers) if (n ~ /gemm|attention_(forward|keys|queries)|lora_(down|gradient)|weight_gradient/) {
                hot++
                if (spill[n] > 0) bad = bad sprintf(" %s spills %d bytes", n, spill[n])
                if (n ~ /gemm/ || n ~ /<8>/ || n ~ /lora|weight_gradient/) list = list sprintf("%s %d  ", n, registers[n])
            }
            if (!hot) bad = " ptxas says nothing of the hot kernels"
            print (bad == "" ? "ok" : "FAIL") "|" bad "|" list
        }')
    IFS='|' read -r verdict bad list <<<"$report"
    if [ "$what" = bench ] || [ "$precision" = FP32 ]; then passed=$((passed + 1)); echo "ok    $name: compiles without a warning"
    elif [ "$verdict" = ok ]; then passed=$((passed + 1)); echo "ok    $name: no warning, no spill; registers: $list"
    else failed=$((failed + 1)); echo "FAIL  $name:$bad"; fi
done < <(tr , '\n' <<<"$builds")
find $out -type f ! -name '*.log' -delete
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
