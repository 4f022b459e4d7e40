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
    float *dW = (float *)backend_alloc((size_t)O * (size_t)I * 4);
    double best[3] = {INFINITY, INFINITY, INFINITY}, flops = 2.0 * N * O * I;
    for (int repeat = 0; repeat < 5; repeat++) {
        for (int which = 0; which < 3; which++) {
            double start = seconds_now();
            ScratchCursor at = scratch_begin(s);
            if (which == 2) linear_weight_backward(dW, NULL, y, O, x, N, I, O, s);
            else if (which)
                cpu_gemm(x, (size_t)I, y, (size_t)O, 1, cpu_frozen(&w, true), N, I, O, 1e-6f, false, at);
            else cpu_gemm(y, (size_t)O, x, (size_t)I, 1, cpu_frozen(&w, false), N, O, I, 1, false, at);
            double t = seconds_now() - start;
            if (t < best[which]) best[which] = t;
        }
    }
    printf("%d threads  %-4s  N %4d  O %5d  I %5d   y = x W^T %6.1f GFLOP/s %3.0f %%   "
           "dx = dy W %6.1f GFLOP/s %3.0f %%   dW += dy^T x %6.1f GFLOP/s %3.0f %%, %.2f of dx's time\n",
           threads, weight_format[format].name, N, O, I, flops / best[0] * 1e-9, 100 * flops / best[0] / peak / threads,
           flops / best[1] * 1e-9, 100 * flops / best[1] / peak / threads,
           flops / best[2] * 1e-9, 100 * flops / best[2] / peak / threads, best[2] / best[1]);
    backend_free(dW, (size_t)O * (size_t)I * 4);
    backend_free(data, bytes);
    backend_free(packed, packed_bytes);
    backend_free(x, x_bytes);
    backend_free(y, y_bytes);
    backend_free(s.base, s.bytes);
}

/* The head's three products in lm_head_loss: logits; and dx; and dhead. */
static void bench_head(int N, int C, int V, int threads) {
    size_t count = (size_t)V * (size_t)C, x_bytes = (size_t)N * (size_t)C * 4;
    Weight w = {backend_alloc(count * 4), NULL, FORMAT_BF16, V, C};
    float *values = (float *)backend_alloc(count * 4), *dhead = (float *)backend_alloc(count * 4);
    float *x = (float *)backend_alloc(x_bytes), *dx = (float *)backend_alloc(x_bytes);
    size_t packed = weight_packed_bytes(&w);
    w.packed = backend_alloc(packed);
    for (size_t k = 0; k < count; k++) values[k] = (float)(k * 7919 % 101) * 1e-3f - 0.05f;
    for (size_t k = 0; k < x_bytes / 4; k++) x[k] = (float)(k % 13) * 0.1f - 0.6f;
    double set[2] = {INFINITY, INFINITY}, best[3] = {INFINITY, INFINITY, INFINITY};
    for (int repeat = 0; repeat < 3; repeat++)
        for (int which = 0; which < 2; which++) {
            Weight part = {which ? w.data : NULL, w.packed, FORMAT_BF16, V, C};
            double start = seconds_now();
            weight_set(&part, values);
            set[which] = fmin(set[which], seconds_now() - start);
        }
    int32_t *rows = (int32_t *)must_alloc((size_t)N * 4), *targets = (int32_t *)must_alloc((size_t)N * 4);
    RowLoss *loss = (RowLoss *)must_alloc((size_t)N * sizeof *loss);
    for (int n = 0; n < N; n++) { rows[n] = n; targets[n] = n * 7919 % V; }
    Scratch s;
    s.bytes = op_scratch_bytes(N, C, 0, V, C);
    s.base = backend_alloc(s.bytes);
    for (int repeat = 0; repeat < 3; repeat++)
        for (int which = 0; which < 3; which++) {
            double start = seconds_now();
            lm_head_loss(which ? dx : NULL, which == 2 ? dhead : NULL, loss, x, rows, targets, NULL, &w, 1e-3f, N, N,
                         C, V, s);
            best[which] = fmin(best[which], seconds_now() - start);
        }
    double flops = 2.0 * N * C * V * 1e-9;
    printf("%d threads  head of %d x %d, %d rows   loss %6.1f GFLOP/s   and dx %6.1f   and dhead %6.1f, %.2f of dx's "
           "time   weight_set %.1f GB/s, with data %.1f\n",
           threads, V, C, N, flops / best[0], flops / (best[1] - best[0]), flops / (best[2] - best[1]),
           (best[2] - best[1]) / (best[1] - best[0]), 6.0 * (double)count / set[0] * 1e-9,
           8.0 * (double)count / set[1] * 1e-9);
    free(rows); free(targets); free(loss);
    backend_free((void *)w.data, count * 4);
    backend_free(w.packed, packed);
    backend_free(values, count * 4);
    backend_free(dhead, count * 4);
    backend_free(x, x_bytes);
    backend_free(dx, x_bytes);
    backend_free(s.base, s.bytes);
}

/* The gradients that are sums over tokens, and the optimizers, which are all reading and writing. */
static void bench_bandwidth(int N, int C, int H, int KV, int D, int threads) {
    size_t count = (size_t)N * (size_t)C, P = (size_t)((H + 2 * KV) * D), nq = (size_t)N * P;
    size_t most = count > nq ? count : nq;
    float *a = (float *)must_alloc(most * 4), *b = (float *)must_alloc(most * 4), *m = (float *)must_alloc(most * 4);
    float *v = (float *)must_alloc(most * 4), *dembed = (float *)must_alloc(count * 4);
    uint8_t *code = (uint8_t *)must_alloc(2 * most);
    float table[256], weight[512] = {0}, *rstd = (float *)must_alloc((size_t)(N + C) * 4);
    int32_t *ids = (int32_t *)must_alloc((size_t)N * 4);
    for (int i = 0; i < 256; i++) table[i] = 0.5f;
    for (int n = 0; n < N + C; n++) rstd[n] = 1;
    for (int n = 0; n < N; n++) ids[n] = n * 7919 % N;
    for (size_t i = 0; i < most; i++) { a[i] = (float)(i * 7919 % 101) * 0.02f - 1; b[i] = a[i]; m[i] = v[i] = 0; }
    memset(code, 0, 2 * most);
    memset(dembed, 0, count * 4);
    Scratch s;
    s.bytes = op_scratch_bytes(N, C > (int)P ? C : (int)P, 0, 64, C);
    s.base = must_alloc(s.bytes);
    AttentionShape shape = {H, KV, D, 1};
    double best[5] = {INFINITY, INFINITY, INFINITY, INFINITY, INFINITY};
    for (int repeat = 1; repeat <= 3; repeat++)
        for (int which = 0; which < 5; which++) {
            double start = seconds_now();
            if (which == 0) rmsnorm_weight_backward(rstd + N, a, rstd, b, 1, N, C, s);
            if (which == 1) qk_norm_weight_backward(weight, weight + D, a, b, 1e-6f, table, table, NULL, N, shape, s);
            if (which == 2) embedding_backward(dembed, ids, a, 1, N, C, N);
            if (which == 3) adamw_update(a, m, v, b, most, 1, 1e-3f, 0.9f, 0.99f, 1e-8f, 0, repeat);
            if (which == 4)
                adamw_8bit_update(a, code, code + most, m, v, b, most, 1, 1e-3f, 0.9f, 0.99f, 1e-8f, 0, repeat);
            best[which] = fmin(best[which], seconds_now() - start);
        }
    printf("%d threads  %d x %d   norm's weight %.1f GB/s   q/k norm's, %d heads on %d of %d, %.1f GB/s   "
           "embedding %.1f GB/s   AdamW %.2f ns a parameter, in 8 bits %.2f ns\n",
           threads, N, C, 8.0 * (double)count / best[0] * 1e-9, H, KV, D, 8.0 * (double)nq / best[1] * 1e-9,
           12.0 * (double)count / best[2] * 1e-9, best[3] / (double)most * 1e9, best[4] / (double)most * 1e9);
    free(a); free(b); free(m); free(v); free(dembed); free(code); free(rstd); free(ids); free(s.base);
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
        bench_head(512, 576, 49152, threads);
        bench_head(512, 2048, 32000, threads);
        bench_bandwidth(1024, 2048, 16, 8, 128, threads);
    }
    return 0;
}
