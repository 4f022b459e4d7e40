#!/usr/bin/env bash
# The tests of the kernels, the model, generation and the trainer natively on the GPU of this machine, then compute-sanitizer's four tools on a small run, then the embedded default on GPU and CPU side by side.
set -u
nvcc=$1 arch=$2 out=build/gpu passed=0 failed=0
command -v "$nvcc" >/dev/null || { echo "error: no nvcc; make test-gpu; install the CUDA toolkit"; exit 1; }
mkdir -p "$out" build/logs
verdict() { if [ "$1" = 0 ]; then passed=$((passed + 1)); echo "ok    $2"; else failed=$((failed + 1)); echo "FAIL  $2"; fi; }
# With the Makefile's own command: what is tested is what a user builds, .stb and an nvcc older than the card included.
build() {
    $(make -s --no-print-directory CUDA=1 CUDA_ARCH="$arch" PRECISION="$2" BUILD=$out NVCC="$nvcc" nvcc-command) \
        -Itest -x cu "test/$1.c" -o "$out/$1_$2" -lm
}
# Under WSL2 the host may not touch managed memory, which the tests share with the kernels, while any kernel runs.
if grep -qi microsoft /proc/version; then
    echo "WSL2: the tests wait for every kernel (CUDA_LAUNCH_BLOCKING=1)"
    export CUDA_LAUNCH_BLOCKING=1
fi
gcc -std=gnu11 -O3 -march=native -fopenmp -I. -isystem .stb test/test_train.c -o build/test_train -lm && build/test_train >build/logs/gpu-cpu-train.log 2>&1     # writes the twenty steps that the GPU is compared with
precisions="BF16 FP16 FP32"
[ "$arch" = 75 ] && precisions="FP16 FP32"
for p in $precisions; do
    for t in test_ops test_train test_model test_generate; do
        [ "$t" = test_model ] && [ "$p" != FP32 ] && continue          # its goldens are of fp32
        build "$t" "$p" || { verdict 1 "$t $p does not compile"; continue; }
        "$out/${t}_$p" >"build/logs/gpu-${t}_$p.log" 2>&1
        verdict $? "$t $p on the GPU: $(tail -n 1 "build/logs/gpu-${t}_$p.log")"
        grep '^FAIL' "build/logs/gpu-${t}_$p.log" | head -n 5
    done
done
default=$([ "$arch" = 75 ] && echo FP16 || echo BF16)
make -s CUDA=1 CUDA_ARCH="$arch" PRECISION="$default" train_lora && cp train_lora "$out/train_lora"
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck initcheck synccheck; do
        compute-sanitizer --tool "$tool" --error-exitcode 9 "$out/train_lora" --max-steps 2 --eval-on-start false --lora-dropout 0.1 --output "$out/run" >"build/logs/gpu-$tool.log" 2>&1
        verdict $? "compute-sanitizer $tool: $(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "build/logs/gpu-$tool.log" | tail -n 1)"
    done
else echo "skipped: no compute-sanitizer"; fi
"$out/train_lora" --output "$out/gpu" >build/logs/gpu-default.log 2>&1
make -s CUDA=0 train_lora && ./train_lora --output "$out/cpu" >build/logs/cpu-default.log 2>&1
last() { grep '^done' "$1" | sed 's/.*evaluation loss [0-9.]* -> \([0-9.]*\).*/\1/'; }
gpu=$(last build/logs/gpu-default.log) cpu=$(last build/logs/cpu-default.log)
# 450 steps apart in rounding: the trajectories differ, what is learned must not
awk -v g="${gpu:-nan}" -v c="${cpu:-nan}" 'BEGIN { exit !(g > 0 && c > 0 && g < 1.15 * c && g > 0.85 * c) }'
verdict $? "the embedded default: evaluation loss $gpu on the GPU, $cpu on the CPU; $(grep -oE '[0-9]+ tokens/s' build/logs/gpu-default.log | tail -n 1) and $(grep -oE '[0-9]+ tokens/s' build/logs/cpu-default.log | tail -n 1)"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
