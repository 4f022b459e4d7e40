/* bench_ops.c - how fast the CPU ops are on this machine, as a share of the FMA peak measured in the same process.
   make bench */
#define TOKENIZER_IMPLEMENTATION
#define LORA_IMPLEMENTATION
#include "lora.h"

static void bench_product(int N, int O, int I, FormatId format, double peak, int threads) {
    Weight w;
    memset(&w, 0, sizeof w);
    w.rows = O; w.cols = I; w.format = format;
    size_t bytes = weight_bytes(&w), x_bytes = (size_t)N * (size_t)I * 4, y_bytes = (size_t)N * (size_t)O * 4;
    uint16_t *data = (uint16_t *)backend_alloc(bytes);
    for (size_t k = 0; k < bytes / 2; k++) data[k] = (uint16_t)(0x3c00 + k * 7919 % 64);
    w.data = data;
    size_t packed_bytes = weight_packed_bytes(&w);
    void *packed = backend_alloc(packed_bytes);
    weight_pack(&w, packed);
    float *x = (float *)backend_alloc(x_bytes), *y = (float *)backend_alloc(y_bytes);
    for (size_t k = 0; k < (size_t)N * (size_t)I; k++) x[k] = (float)(k % 13) * 0.1f - 0.6f;
    for (size_t k = 0; k < (size_t)N * (size_t)O; k++) y[k] = (float)(k % 11) * 0.1f - 0.5f;
    Scratch s;
    s.bytes = op_scratch_bytes(N, O > I ? O : I, 16, 1024, I);
    s.base = backend_alloc(s.bytes);
    double best[2] = {INFINITY, INFINITY}, flops = 2.0 * N * O * I;
    for (int repeat = 0; repeat < 5; repeat++) {
        for (int backward = 0; backward < 2; backward++) {
            double start = seconds_now();
            ScratchCursor at = scratch_begin(s);
            if (backward) cpu_gemm(x, (size_t)I, y, (size_t)O, 1, cpu_frozen(&w, true), N, I, O, 1e-6f, false, at);
            else cpu_gemm(y, (size_t)O, x, (size_t)I, 1, cpu_frozen(&w, false), N, O, I, 1, false, at);
            double t = seconds_now() - start;
            if (t < best[backward]) best[backward] = t;
        }
    }
    printf("%d threads  %-4s  N %4d  O %5d  I %5d   y = x W^T %6.1f GFLOP/s %3.0f %%   "
           "dx = dy W %6.1f GFLOP/s %3.0f %%\n",
           threads, weight_format[format].name, N, O, I, flops / best[0] * 1e-9, 100 * flops / best[0] / peak / threads,
           flops / best[1] * 1e-9, 100 * flops / best[1] / peak / threads);
    backend_free(data, bytes);
    backend_free(packed, packed_bytes);
    backend_free(x, x_bytes);
    backend_free(y, y_bytes);
    backend_free(s.base, s.bytes);
}

static void bench_attention(int T, int S, int H, int KV, int D, int threads) {
    int N = T * S, P = (H + 2 * KV) * D;
    int32_t cu[65];
    for (int s = 0; s <= S; s++) cu[s] = s * T;
    size_t rows = (size_t)N;
    float *qkv = (float *)must_alloc(rows * (size_t)P * 4), *d = (float *)must_alloc(rows * (size_t)P * 4);
    float *out = (float *)must_alloc(rows * (size_t)(H * D) * 4), *lse = (float *)must_alloc(rows * (size_t)H * 4);
    for (size_t k = 0; k < (size_t)N * (size_t)P; k++) qkv[k] = (float)(k * 7919 % 101) * 0.02f - 1;
    Scratch s;
    s.bytes = op_scratch_bytes(N, P, 0, 64, 64);
    s.base = must_alloc(s.bytes);
    AttentionShape a = {H, KV, D, 1.0f / sqrtf((float)D)};
    double best[2] = {INFINITY, INFINITY};
    /* causal: half of 4 T^2 D; backward 2.5 times that */
    double flops = 2.0 * S * H * D * (double)T * (double)T;
    for (int repeat = 0; repeat < 3; repeat++) {
        double start = seconds_now();
        attention_forward(out, lse, qkv, cu, S, N, a, s);
        double middle = seconds_now();
        attention_backward(d, out, out, lse, qkv, cu, S, N, a, s);
        best[0] = fmin(best[0], middle - start);
        best[1] = fmin(best[1], seconds_now() - middle);
    }
    printf("%d threads  attention  %d x %d tokens, %d heads on %d of %d   forward %6.1f GFLOP/s   "
           "backward %6.1f GFLOP/s\n",
           threads, S, T, H, KV, D, flops / best[0] * 1e-9, 2.5 * flops / best[1] * 1e-9);
    free(qkv); free(d); free(out); free(lse); free(s.base);
}

int main(void) {
    int most = cpu_threads();
    char machine[128];
    backend_describe(machine, sizeof machine);
#ifdef _OPENMP
    omp_set_num_threads(1);
#endif
    double peak = backend_ceiling();
    printf("%s; fp32 FMA peak of one core: %.1f GFLOP/s\n", machine, peak * 1e-9);
    static const int shapes[][3] = {{256, 2048, 2048}, {1024, 2048, 2048}, {1024, 5632, 2048}, {1024, 2048, 5632},
                                    {1024, 6144, 2048}};
    for (int threads = 1; threads <= most; threads += most - 1 > 0 ? most - 1 : 1) {
#ifdef _OPENMP
        omp_set_num_threads(threads);
#endif
        for (int f = 0; f < FORMAT_COUNT; f++)
            for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
                bench_product(shapes[i][0], shapes[i][1], shapes[i][2], (FormatId)f, peak, threads);
        bench_attention(256, 4, 32, 4, 64, threads);
        bench_attention(1024, 1, 16, 8, 128, threads);
    }
    return 0;
}
