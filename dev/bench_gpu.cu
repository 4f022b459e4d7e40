/* bench_gpu.cu - every kernel on this machine's GPU as a share of what the card can do, and the whole step.
     make bench                     (on a machine with nvcc and a GPU; links cuBLAS, here only, to have its rate beside ours)
     build/bench_gpu --random-weights dev/configs/qwen3-1.7b.json [--tokens 8192] [--length 1024] [--rank 16]      the whole step of a model with random weights made on the spot

   Medians of 9 after 3 warm-ups; random data (constant data draws less power and flatters); the L2 cache is flushed before each elementwise run. MFU counts the LoRA model's FLOPs, nothing that is
   computed again: a token costs 4 N_body + 4 C V + 6 r sum(in + out) + 7 s H D L (causal attention at sequence length s), over the rate that --peak gives (default 989: H100, H200 bf16 dense). */
#define TESTING
#include "../train_lora.cu"
#ifdef WITH_CUBLAS
#include <cublas_v2.h>
#endif

typedef struct Shape { const char *name; int C, F, H, KV, D, V; } Shape;
static const Shape shapes[] = {{"Qwen3-1.7B", 2048, 6144, 16, 8, 128, 151936}, {"TinyLlama-1.1B", 2048, 5632, 32, 4, 64, 32000}, {"Llama-3.1-8B", 4096, 14336, 32, 8, 128, 128256}};

static double copy_rate;                    /* bytes a second, read plus written */
static void *flush_buffer;
enum { FLUSH = 256 << 20, RUNS = 9, WARMUPS = 3 };

static int by_size(const void *a, const void *b) { float x = *(const float *)a, y = *(const float *)b; return x < y ? -1 : x > y; }
/* Seconds of one call of f, the median. */
template <typename F> static double seconds_of(F f, bool flush) {
    float ms[RUNS];
    cudaEvent_t start, stop;
    CUDA_CHECK(cudaEventCreate(&start));
    CUDA_CHECK(cudaEventCreate(&stop));
    for (int i = -WARMUPS; i < RUNS; i++) {
        if (flush) CUDA_CHECK(cudaMemset(flush_buffer, i, FLUSH));
        CUDA_CHECK(cudaEventRecord(start));
        f();
        CUDA_CHECK(cudaEventRecord(stop));
        CUDA_CHECK(cudaEventSynchronize(stop));
        if (i >= 0) CUDA_CHECK(cudaEventElapsedTime(&ms[i], start, stop));
    }
    CUDA_CHECK(cudaEventDestroy(start));
    CUDA_CHECK(cudaEventDestroy(stop));
    qsort(ms, RUNS, sizeof *ms, by_size);
    return ms[RUNS / 2] / 1e3;
}
static void *bytes_on_card(size_t bytes) {
    void *p = backend_alloc(bytes);
    if (!p) { fprintf(stderr, "error: no %.1f GiB left on the card; bench_gpu; use a smaller model or fewer --tokens\n", (double)bytes / 0x1p30); exit(1); }
    return p;
}
__global__ void random_kernel(floatX *p, size_t count, float size, uint32_t seed) {
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (size_t)gridDim.x * blockDim.x) {
        uint32_t out[4], counter[4] = {(uint32_t)i, (uint32_t)(i >> 32), seed, 0}, key[2] = {1, 2};
        philox4x32(out, counter, key);
        p[i] = (floatX)(size * ((float)(out[0] >> 8) * 0x1p-23f - 1));
    }
}
static floatX *random_x(size_t count, float size) {
    static uint32_t seed;
    floatX *p = (floatX *)bytes_on_card(count * sizeof(floatX));
    LAUNCH(random_kernel, 1024, 256, 0, p, count, size, ++seed);
    return p;
}
static Linear random_projection(int in, int out) {
    Linear p;
    memset(&p, 0, sizeof p);
    p.in = in; p.out = out;
    p.w.rows = out; p.w.cols = in;
    p.w.packed = random_x((size_t)in * (size_t)out, 0.03f);
    return p;
}
static Lora random_adapter(const Linear *p, int rank) {
    Lora a;
    memset(&a, 0, sizeof a);
    a.rank = rank; a.scale = 2;
    size_t bytes = (size_t)rank * (size_t)(p->in > p->out ? p->in : p->out) * sizeof(float);
    float **all[] = {&a.A, &a.B, &a.dA, &a.dB};
    for (int i = 0; i < 4; i++) *all[i] = (float *)bytes_on_card(bytes);
    a.packed = bytes_on_card(adapter_packed_bytes(p, &a));
    adapter_pack(p, &a, 1);
    return a;
}

typedef enum { PRODUCT_Y, PRODUCT_DX, PRODUCT_DW } Product;
#ifdef WITH_CUBLAS
/* y [N,O] = x [N,I] W^T, dx [N,I] = dy [N,O] W, or, in fp32, dW [O,I] += dy^T x: y, x, w are then dW, dy, x. */
static double cublas_seconds(void *y, const floatX *x, const floatX *w, int N, int O, int I, Product which) {
    static cublasHandle_t handle;
    if (!handle && cublasCreate(&handle) != CUBLAS_STATUS_SUCCESS) return NAN;
    const cudaDataType_t type = sizeof(floatX) == 4 ? CUDA_R_32F : LORA_LOSS_SCALE > 1 ? CUDA_R_16F : CUDA_R_16BF;
    const float one = 1, zero = 0;
    return seconds_of([&] {
        if (which == PRODUCT_DW)
            cublasGemmEx(handle, CUBLAS_OP_N, CUBLAS_OP_T, I, O, N, &one, w, type, I, x, type, O, &one, y, CUDA_R_32F, I,
                         CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
        else if (which == PRODUCT_Y) cublasGemmEx(handle, CUBLAS_OP_T, CUBLAS_OP_N, O, N, I, &one, w, type, I, x, type, I, &zero, y, type, O, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
        else cublasGemmEx(handle, CUBLAS_OP_N, CUBLAS_OP_N, I, N, O, &one, w, type, I, x, type, O, &zero, y, type, I, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
    }, false);
}
#else
static double cublas_seconds(void *, const floatX *, const floatX *, int, int, int, Product) { return NAN; }
#endif

/* Prints cuBLAS's rate where it was measured, and notes the ratio. */
static void report_peer(double ours, double peer, double flops, double *ratios, int *ratio_count) {
    if (!isfinite(peer)) return;
    printf("  cuBLAS %6.1f (%.2f x)", flops / peer / 1e12, peer / ours);
    ratios[(*ratio_count)++] = peer / ours;
}

static void bench_linear(const char *what, int N, int I, const int *outs, int count, double *ratios, int *ratio_count) {
    Linear group[3];
    Lora adapter[3];
    int O = 0;
    for (int j = 0; j < count; j++) {
        group[j] = random_projection(I, outs[j]);
        adapter[j] = random_adapter(&group[j], 16);
        O += outs[j];
    }
    floatX *x = random_x((size_t)N * (size_t)I, 1), *y = random_x((size_t)N * (size_t)O, 1), *t = random_x((size_t)N * 48, 1), *dx = random_x((size_t)N * (size_t)I, 1), *all = random_x((size_t)O * (size_t)I, 0.03f);
    Scratch s;
    s.bytes = op_scratch_bytes(N, O > I ? O : I, 48, 1024, 64);
    s.base = bytes_on_card(s.bytes);
    uint8_t *kept = (uint8_t *)bytes_on_card(kept_bytes(group, adapter, count, N));
    DropoutKey key = {0, 0, 0, 0};
    double flops = 2.0 * N * O * I;
    for (int backward = 0; backward < 2; backward++) {
        auto run = [&](const Lora *on) {
            if (backward) linear_backward(dx, y, t, kept, x, group, on, count, key, N, s);
            else linear_forward(y, t, kept, x, group, on, count, key, N, s);
        };
        double base = seconds_of([&] { run(NULL); }, false);
        double lora = seconds_of([&] { run(adapter); }, false);
        key.dropout = 0.05f;               /* forward has left its masks in `kept` when backward comes */
        double dropped = seconds_of([&] { run(adapter); }, false);
        key.dropout = 0;
        double peer = backward ? cublas_seconds(dx, y, all, N, O, I, PRODUCT_DX)
                               : cublas_seconds(y, x, all, N, O, I, PRODUCT_Y);
        printf("  %-8s %s [%d x %d x %d]  %6.1f TFLOP/s", what, backward ? "dx" : "y ", N, O, I, flops / base / 1e12);
        report_peer(base, peer, flops, ratios, ratio_count);
        printf("  with LoRA r 16 %+.1f %%, and dropout %+.1f %% time\n", (lora / base - 1) * 100, (dropped / base - 1) * 100);
    }
    /* of weights that are trained themselves: each projection apart, out of dy's columns. cuBLAS makes all in one. */
    float *dW = (float *)bytes_on_card((size_t)O * (size_t)I * sizeof(float));
    double weights = seconds_of([&] {
        size_t o = 0;
        for (int j = 0; j < count; o += (size_t)outs[j++])
            linear_weight_backward(dW + o * (size_t)I, NULL, y + o, O, x, N, I, outs[j], s);
    }, false);
    printf("  %-8s dW [%d x %d x %d]  %6.1f TFLOP/s", what, N, O, I, flops / weights / 1e12);
    report_peer(weights, cublas_seconds(dW, y, x, N, O, I, PRODUCT_DW), flops, ratios, ratio_count);
    printf("\n");
    backend_free(dW, 0);
    for (int j = 0; j < count; j++) {
        backend_free(group[j].w.packed, 0); backend_free(adapter[j].packed, 0);
        backend_free(adapter[j].A, 0); backend_free(adapter[j].B, 0);
        backend_free(adapter[j].dA, 0); backend_free(adapter[j].dB, 0);
    }
    backend_free(x, 0); backend_free(y, 0); backend_free(t, 0); backend_free(dx, 0); backend_free(all, 0); backend_free(s.base, 0);
    backend_free(kept, 0);
}

static void bench_attention(const Shape *m, int N, int length) {
    int S = N / length, P = (m->H + 2 * m->KV) * m->D;
    int32_t *host = (int32_t *)must_alloc((size_t)(S + 1) * sizeof *host), *cu = (int32_t *)bytes_on_card((size_t)(S + 1) * sizeof *cu);
    for (int s = 0; s <= S; s++) host[s] = s * length;
    backend_upload(cu, host, (size_t)(S + 1) * sizeof *cu);
    floatX *qkv = random_x((size_t)N * (size_t)P, 1), *out = random_x((size_t)N * (size_t)(m->H * m->D), 1), *dqkv = random_x((size_t)N * (size_t)P, 1);
    float *lse = (float *)bytes_on_card((size_t)N * (size_t)m->H * sizeof(float));
    Scratch s;
    s.bytes = op_scratch_bytes(N, P, 0, 1024, 64);
    s.base = bytes_on_card(s.bytes);
    AttentionShape a = {m->H, m->KV, m->D, 1.0f / sqrtf((float)m->D)};
    double product = 2.0 * N * length / 2 * m->H * m->D;      /* causal: half of the square */
    double forward = seconds_of([&] { attention_forward(out, lse, qkv, cu, S, N, a, s); }, false);
    double backward = seconds_of([&] { attention_backward(dqkv, out, out, lse, qkv, cu, S, N, a, s); }, false);
    printf("  attention %d x %d, %d heads on %d of %d   forward %6.1f TFLOP/s   backward %6.1f TFLOP/s (counted as 5 products)\n", S, length, m->H, m->KV, m->D, 2 * product / forward / 1e12, 5 * product / backward / 1e12);
    backend_free(cu, 0); backend_free(qkv, 0); backend_free(out, 0); backend_free(dqkv, 0); backend_free(lse, 0); backend_free(s.base, 0);
    free(host);
}

static void report_bandwidth(const char *what, double bytes, double seconds) { printf("  %-22s %7.1f GB/s  %5.1f %% of the copy rate\n", what, bytes / seconds / 1e9, 100 * bytes / seconds / copy_rate); }

static void bench_elementwise(const Shape *m, int N) {
    int C = m->C, F = m->F, D = m->D, P = (m->H + 2 * m->KV) * D;
    size_t widest = (size_t)(2 * F > P ? 2 * F : P) * (size_t)N, X = sizeof(floatX);
    floatX *a = random_x(widest, 1), *b = random_x(widest, 1), *c = random_x((size_t)N * (size_t)F, 1);
    float *weight = (float *)bytes_on_card((size_t)(C + F) * sizeof(float)), *rstd = (float *)bytes_on_card((size_t)N * sizeof(float)), *table = (float *)bytes_on_card((size_t)N * (size_t)D * sizeof(float));
    int32_t *positions = (int32_t *)bytes_on_card((size_t)N * sizeof(int32_t));
    double row = (double)N * C * (double)X;
    AttentionShape shape = {m->H, m->KV, D, 1.0f / sqrtf((float)D)};
    report_bandwidth("rmsnorm + residual", 4 * row, seconds_of([&] { rmsnorm_forward(a, rstd, b, b, c, weight, 1e-6f, N, C); }, true));
    report_bandwidth("rmsnorm backward", 4 * row, seconds_of([&] { rmsnorm_backward(a, a, b, rstd, c, weight, N, C); }, true));
    report_bandwidth("swiglu forward", 3.0 * N * F * (double)X, seconds_of([&] { swiglu_forward(c, a, N, F); }, true));
    report_bandwidth("swiglu backward", 5.0 * N * F * (double)X, seconds_of([&] { swiglu_backward(a, c, a, N, F); }, true));
    report_bandwidth("q/k norm and rope", 2.0 * N * P * (double)X,
                     seconds_of([&] { qk_norm_rope_forward(b, a, weight, weight, 1e-6f, table, table, positions, N,
                                                           shape); }, true));
    report_bandwidth("q/k norm and rope back", 3.0 * N * P * (double)X,
                     seconds_of([&] { qk_norm_rope_backward(b, a, weight, weight, 1e-6f, table, table, positions, N,
                                                            shape); }, true));
    Scratch s;
    s.bytes = op_scratch_bytes(N, F > P ? F : P, 0, 1024, C);
    s.base = bytes_on_card(s.bytes);
    report_bandwidth("rmsnorm dweight", 2 * row,
                     seconds_of([&] { rmsnorm_weight_backward(weight, a, rstd, b, 1, N, C, s); }, true));
    report_bandwidth("q/k norm dweight", 2.0 * N * (m->H + m->KV) * D * (double)X,
                     seconds_of([&] { qk_norm_weight_backward(weight, weight + D, b, a, 1e-6f, table, table, positions,
                                                              N, shape, s); }, true));
    backend_free(s.base, 0);
    size_t count = (size_t)20 << 20;
    float *state[4];
    for (int i = 0; i < 4; i++) state[i] = (float *)bytes_on_card(count * sizeof(float));
    report_bandwidth("AdamW", 28.0 * (double)count, seconds_of([&] { adamw_update(state[0], state[1], state[2], state[3], count, 1, 1e-4f, 0.9f, 0.999f, 1e-8f, 0, 1); }, true));
    Weight trained;
    memset(&trained, 0, sizeof trained);
    trained.rows = 1 << 10; trained.cols = (int)(count >> 10); trained.format = FORMAT_BF16;
    trained.packed = random_x(count, 1);
    report_bandwidth("weight_set", (4.0 + (double)X) * (double)count,
                     seconds_of([&] { weight_set(&trained, state[0]); }, true));
    backend_free(trained.packed, 0);
    for (int i = 0; i < 4; i++) backend_free(state[i], 0);
    backend_free(a, 0); backend_free(b, 0); backend_free(c, 0); backend_free(weight, 0); backend_free(rstd, 0); backend_free(table, 0); backend_free(positions, 0);
}

static void bench_head(const Shape *m, int N) {
    Linear p = random_projection(m->C, m->V);
    floatX *x = random_x((size_t)N * (size_t)m->C, 1), *dx = random_x((size_t)N * (size_t)m->C, 1);
    size_t bytes = (size_t)N * sizeof(int32_t);
    int32_t *host = (int32_t *)must_alloc(bytes);
    int32_t *rows = (int32_t *)bytes_on_card(bytes), *targets = (int32_t *)bytes_on_card(bytes);
    RowLoss *row_loss = (RowLoss *)bytes_on_card((size_t)N * sizeof *row_loss);
    for (int n = 0; n < N; n++) host[n] = n;
    backend_upload(rows, host, bytes);
    for (int n = 0; n < N; n++) host[n] = (int32_t)((int64_t)n * 7919 % m->V);
    backend_upload(targets, host, bytes);
    Scratch s;
    s.bytes = op_scratch_bytes(N, m->C, 0, m->V, m->C);
    s.base = bytes_on_card(s.bytes);
    double seconds = seconds_of([&] {
        lm_head_loss(dx, NULL, row_loss, x, rows, targets, NULL, &p.w, 1e-4f, N, N, m->C, m->V, s);
    }, false);
    printf("  head and loss, all %d rows labelled   %6.1f TFLOP/s, %.0f MB of workspace\n", N, 4.0 * N * m->C * m->V / seconds / 1e12, (double)s.bytes / 1e6);
    backend_free(p.w.packed, 0);
    backend_free(x, 0); backend_free(dx, 0); backend_free(targets, 0); backend_free(s.base, 0);
    backend_free(rows, 0); backend_free(row_loss, 0);
    free(host);
}

/* The whole step: forward, backward, norm, AdamW, on random tokens. */
static int bench_step(const char *config, int tokens, int length, int rank, double peak) {
    char folder[] = "/tmp/bench_gpu_XXXXXX", command[4096];
    Error err;
    Model m;
    Adapter a;
    Workspace w;
    memset(&a, 0, sizeof a);
    memset(&w, 0, sizeof w);
    if (!mkdtemp(folder)) return 1;
    snprintf(command, sizeof command, "build/make_random_model '%s' %s BF16", config, folder);
    bool ok = system(command) == 0 && model_open(&m, folder, &err);
    snprintf(command, sizeof command, "rm -r %s", folder);
    if (system(command)) fprintf(stderr, "could not remove %s\n", folder);
    if (!ok) { fprintf(stderr, "error: %s; is build/make_random_model there?\n", err.text); return 1; }
    LoraConfig lora;
    memset(&lora, 0, sizeof lora);
    lora.r = rank; lora.lora_alpha = 2 * (float)rank;
    for (int j = 0; j < MODULE_COUNT; j++) lora.target[j] = true;
    MemoryTable table;
    memset(&table, 0, sizeof table);
    Batch b;
    const ModelConfig *c = &m.config;
    int S = tokens / length;
    ok = adapter_attach(&a, &m, &lora, 1, &err) && batch_alloc(&b, tokens, S, &err) &&
         workspace_open(&w, &m, &a, tokens, length, RECOMPUTE_NONE, true, &table, &err);
    if (!ok) { fprintf(stderr, "error: %s\n", err.text); return 1; }
    model_memory(&m, &a, &table);
    b.N = S * length; b.S = S;
    for (int n = 0; n < b.N; n++) {
        b.ids[n] = (int32_t)((int64_t)n * 7919 % c->vocab_size);
        b.positions[n] = n % length;
        if (n % length + 1 == length) continue;
        b.labelled[b.M] = n;
        b.targets[b.M++] = b.ids[n];
    }
    for (int s = 0; s <= S; s++) b.cu_seqlens[s] = s * length;
    DropoutKey key = {0, 0, 0, 0};
    double seconds = seconds_of([&] {
        adapter_zero_grad(&a);
        model_forward(&m, &a, &w, &b, key);
        model_loss(&m, &a, &w, &b, 1.0f / (float)b.N);
        model_backward(&m, &a, &w, &b, key);
        global_norm(a.grad, a.param_count);
        adamw_update(a.param, a.adam_m, a.adam_v, a.grad, a.param_count, 1, 1e-5f, 0.9f, 0.999f, 1e-8f, 0, 1);
    }, false);
    double body = 0, in_out = 0;
    for (int j = 0; j < MODULE_COUNT; j++) { const Linear *p = &m.layers[0].linear[j]; body += (double)p->in * p->out; in_out += p->in + p->out; }
    double L = c->num_hidden_layers, per_token = 4 * body * L + 4.0 * c->hidden_size * c->vocab_size + 6.0 * rank * in_out * L + 7.0 * length * c->num_attention_heads * c->head_dim * L;
    size_t available, total;
    CUDA_CHECK(cudaMemGetInfo(&available, &total));
    printf("%s, %d x %d tokens, r %d, %s: %.0f tokens/s, %.1f TFLOP/s, MFU %.1f %% of %.0f; memory announced %.2f GiB, in use %.2f GiB\n", config, S, length, rank, PRECISION_NAME, b.N / seconds, per_token * b.N / seconds / 1e12,
           100 * per_token * b.N / seconds / 1e12 / peak, peak, (double)(table.total + device.overhead) / 0x1p30, (double)(total - available) / 0x1p30);
    batch_free(&b);
    workspace_close(&w);
    adapter_drop(&a);
    model_close(&m);
    return 0;
}

int main(int argc, char **argv) {
    Error err;
    int tokens = 8192, length = 1024, rank = 16;
    double peak = 989;
    const char *config = NULL;
    for (int i = 1; i < argc; i += 2) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (!strcmp(argv[i], "--random-weights") && *value) config = value;
        else if (!strcmp(argv[i], "--tokens") && atoi(value) > 0) tokens = atoi(value);
        else if (!strcmp(argv[i], "--length") && atoi(value) > 0) length = atoi(value);
        else if (!strcmp(argv[i], "--rank") && atoi(value) > 0) rank = atoi(value);
        else if (!strcmp(argv[i], "--peak") && atof(value) > 0) peak = atof(value);
        else { fprintf(stderr, "usage: bench_gpu [--random-weights CONFIG.json] [--tokens N] [--length N] [--rank N] [--peak TFLOP/s]\n"); return 2; }
    }
    if (length > tokens) length = tokens;
    if (!device_open(&err)) { fprintf(stderr, "error: %s\n", err.text); return 1; }
    char text[512];
    backend_describe(text, sizeof text);
    printf("%s\n", text);
    if (config) return bench_step(config, tokens, length, rank, peak);
    flush_buffer = bytes_on_card(2 * (size_t)FLUSH);
    copy_rate = 2.0 * FLUSH / seconds_of([&] { CUDA_CHECK(cudaMemcpyAsync(flush_buffer, (char *)flush_buffer + FLUSH, FLUSH, cudaMemcpyDeviceToDevice)); }, false);
    printf("copy %.0f GB/s, read plus written\n", copy_rate / 1e9);
    double ratios[64];
    int count = 0;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const Shape *m = &shapes[i];
        int qkv[3] = {m->H * m->D, m->KV * m->D, m->KV * m->D}, one[1] = {m->C}, gate_up[2] = {m->F, m->F};
        printf("%s, %d tokens\n", m->name, tokens);
        bench_linear("q k v", tokens, m->C, qkv, 3, ratios, &count);
        bench_linear("o", tokens, m->H * m->D, one, 1, ratios, &count);
        bench_linear("gate up", tokens, m->C, gate_up, 2, ratios, &count);
        bench_linear("down", tokens, m->F, one, 1, ratios, &count);
        bench_head(m, tokens);
        bench_attention(m, tokens, length);
        bench_elementwise(m, tokens);
    }
    double log_sum = 0, least = INFINITY;
    for (int i = 0; i < count; i++) { log_sum += log(ratios[i]); least = fmin(least, ratios[i]); }
    if (count) printf("our GEMM against cuBLAS over %d shapes: geometric mean %.2f x, least %.2f x\n", count, exp(log_sum / count), least);
    return 0;
}
