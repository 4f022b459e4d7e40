/* bench_ops.c - how fast the CPU ops are on this machine, as a share of the FMA peak measured in the same process.
   make bench */
#define TOKENIZER_IMPLEMENTATION
#define LORA_IMPLEMENTATION
#include "lora.h"

/* 24 independent chains of multiply-adds: what the core can do when nothing waits for memory. */
static double fma_peak(void) {
    cpu_vec a[24], b = cpu_splat(0.999f), c = cpu_splat(0.5f);
    for (int i = 0; i < 24; i++) a[i] = cpu_splat((float)i);
    const int rounds = 10000000;
    double best = INFINITY;
    for (int repeat = 0; repeat < 3; repeat++) {
        double start = seconds_now();
        for (int k = 0; k < rounds; k++) {
#pragma GCC unroll 24
            for (int i = 0; i < 24; i++) a[i] = a[i] * b + c;
        }
        double t = seconds_now() - start;
        if (t < best) best = t;
    }
    cpu_vec sum = a[0];
    for (int i = 1; i < 24; i++) sum += a[i];
    volatile float keep = cpu_sum(sum);
    (void)keep;
    return 2.0 * 24 * CPU_VL * rounds / best;
}
static void *aligned_block(size_t bytes) { return backend_alloc((bytes + 63) / 64 * 64); }

static void bench_product(int N, int O, int I, DType dtype, double peak, int threads) {
    Weight w;
    memset(&w, 0, sizeof w);
    w.rows = O; w.cols = I; w.dtype = dtype;
    size_t bytes = (size_t)O * (size_t)I * dtype_size(dtype), x_bytes = (size_t)N * (size_t)I * 4, y_bytes = (size_t)N * (size_t)O * 4;
    uint16_t *data = (uint16_t *)aligned_block(bytes);
    for (size_t k = 0; k < bytes / 2; k++) data[k] = (uint16_t)(0x3c00 + k * 7919 % 64);
    w.data = data;
    size_t packed_bytes = weight_packed_bytes(&w);
    void *packed = aligned_block(packed_bytes);
    weight_pack(&w, packed);
    float *x = (float *)aligned_block(x_bytes), *y = (float *)aligned_block(y_bytes);
    for (size_t k = 0; k < (size_t)N * (size_t)I; k++) x[k] = (float)(k % 13) * 0.1f - 0.6f;
    for (size_t k = 0; k < (size_t)N * (size_t)O; k++) y[k] = (float)(k % 11) * 0.1f - 0.5f;
    Scratch s;
    s.bytes = op_scratch_bytes(N, O > I ? O : I, 16, 1024, I);
    s.base = aligned_block(s.bytes);
    double best[2] = {INFINITY, INFINITY}, flops = 2.0 * N * O * I;
    for (int repeat = 0; repeat < 5; repeat++) {
        for (int backward = 0; backward < 2; backward++) {
            double start = seconds_now();
            if (backward) cpu_gemm(x, (size_t)I, y, (size_t)O, 1, cpu_frozen(&w, true), N, I, O, 1e-6f, 0, scratch_begin(s));
            else cpu_gemm(y, (size_t)O, x, (size_t)I, 1, cpu_frozen(&w, false), N, O, I, 1, 0, scratch_begin(s));
            double t = seconds_now() - start;
            if (t < best[backward]) best[backward] = t;
        }
    }
    printf("%d threads  %-4s  N %4d  O %5d  I %5d   y = x W^T %6.1f GFLOP/s %3.0f %%   dx = dy W %6.1f GFLOP/s %3.0f %%\n", threads, dtype_name[dtype], N, O, I, flops / best[0] * 1e-9, 100 * flops / best[0] / peak / threads,
           flops / best[1] * 1e-9, 100 * flops / best[1] / peak / threads);
    backend_free(data, (bytes + 63) / 64 * 64); backend_free(packed, (packed_bytes + 63) / 64 * 64); backend_free(x, (x_bytes + 63) / 64 * 64); backend_free(y, (y_bytes + 63) / 64 * 64); backend_free(s.base, (s.bytes + 63) / 64 * 64);
}

static void bench_attention(int T, int S, int H, int KV, int D, int threads) {
    int N = T * S, P = (H + 2 * KV) * D;
    int32_t cu[65];
    for (int s = 0; s <= S; s++) cu[s] = s * T;
    float *qkv = (float *)must_alloc((size_t)N * (size_t)P * 4), *d = (float *)must_alloc((size_t)N * (size_t)P * 4), *out = (float *)must_alloc((size_t)N * (size_t)(H * D) * 4), *lse = (float *)must_alloc((size_t)(N * H) * 4);
    for (size_t k = 0; k < (size_t)N * (size_t)P; k++) qkv[k] = (float)(k * 7919 % 101) * 0.02f - 1;
    Scratch s;
    s.bytes = op_scratch_bytes(N, P, 0, 64, 64);
    s.base = must_alloc(s.bytes);
    AttentionShape a = {H, KV, D, 1.0f / sqrtf((float)D)};
    double best[2] = {INFINITY, INFINITY}, flops = 2.0 * S * H * D * (double)T * (double)T;      /* causal: half of 4 T^2 D; backward 2.5 times */
    for (int repeat = 0; repeat < 3; repeat++) {
        double start = seconds_now();
        attention_forward(out, lse, qkv, cu, S, N, a, s);
        double middle = seconds_now();
        attention_backward(d, out, out, lse, qkv, cu, S, N, a, s);
        best[0] = fmin(best[0], middle - start);
        best[1] = fmin(best[1], seconds_now() - middle);
    }
    printf("%d threads  attention  %d x %d tokens, %d heads on %d of %d   forward %6.1f GFLOP/s   backward %6.1f GFLOP/s\n", threads, S, T, H, KV, D, flops / best[0] * 1e-9, 2.5 * flops / best[1] * 1e-9);
    free(qkv); free(d); free(out); free(lse); free(s.base);
}

int main(void) {
    int most = cpu_threads();
    double peak = fma_peak();
    printf("fp32 FMA peak of one core: %.1f GFLOP/s (%d floats a vector)\n", peak * 1e-9, CPU_VL);
    static const int shapes[][3] = {{256, 2048, 2048}, {1024, 2048, 2048}, {1024, 5632, 2048}, {1024, 2048, 5632}, {1024, 6144, 2048}};
    for (int threads = 1; threads <= most; threads += most - 1 > 0 ? most - 1 : 1) {
#ifdef _OPENMP
        omp_set_num_threads(threads);
#endif
        for (int dtype = DTYPE_F32; dtype <= DTYPE_BF16; dtype += 2) for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) bench_product(shapes[i][0], shapes[i][1], shapes[i][2], (DType)dtype, peak, threads);
        bench_attention(256, 4, 32, 4, 64, threads);
        bench_attention(1024, 1, 16, 8, 128, threads);
    }
    return 0;
}
