/* test_ops.c - every op, in two hops: finite differences -> reference (double), reference -> the ops of lora.h (odd shapes, every dtype, poisoned outputs), and bit-equality over thread counts.
   gcc -std=gnu11 -O2 -march=native -fopenmp -I. test/test_ops.c -o build/test_ops -lm && build/test_ops */
#define TOKENIZER_IMPLEMENTATION
#define LORA_IMPLEMENTATION
#include "lora.h"
#include "check.h"

#define REAL float
#define REF(name) name##_ref
#include "reference.h"
#undef REAL
#undef REF
#define REAL double
#define REF(name) name##_f64
#include "reference.h"

/* The reference, the CPU op and the CUDA op have one type. */
#define SAME_SIGNATURE(op) _Static_assert(__builtin_types_compatible_p(__typeof__(&op), __typeof__(&op##_ref)), #op)
SAME_SIGNATURE(embedding_forward);
SAME_SIGNATURE(rmsnorm_forward);
SAME_SIGNATURE(rmsnorm_backward);
SAME_SIGNATURE(linear_forward);
SAME_SIGNATURE(linear_backward);
SAME_SIGNATURE(qk_norm_rope_forward);
SAME_SIGNATURE(qk_norm_rope_backward);
SAME_SIGNATURE(attention_forward);
SAME_SIGNATURE(attention_backward);
SAME_SIGNATURE(swiglu_forward);
SAME_SIGNATURE(swiglu_backward);
SAME_SIGNATURE(lm_head_loss);
SAME_SIGNATURE(lm_head_logits);
SAME_SIGNATURE(adamw_update);
SAME_SIGNATURE(global_norm);

static uint32_t random_state = 1;
static float uniform(void) { random_state = random_state * 1664525u + 1013904223u; return (float)(random_state >> 8) * 0x1p-23f - 1; }   /* [-1, 1) */
static float *random_floats(size_t count, float scale) {
    float *p = (float *)malloc((count + 1) * sizeof(float));
    for (size_t i = 0; i < count; i++) p[i] = uniform() * scale;
    return p;
}
static float *poisoned(size_t count) { float *p = (float *)malloc((count + 1) * sizeof(float)); memset(p, 0xff, (count + 1) * sizeof(float)); return p; }     /* all NaN */
static float *copied(const float *from, size_t count) { float *p = (float *)malloc((count + 1) * sizeof(float)); memcpy(p, from, count * sizeof(float)); return p; }
static Scratch scratch_of(int n, int widest, int rank, int vocab, int hidden) {
    Scratch s;
    s.bytes = op_scratch_bytes(n, widest, rank, vocab, hidden);
    s.base = malloc(s.bytes);
    memset(s.base, 0xff, s.bytes);
    return s;
}
static Weight random_weight(int rows, int cols, DType dtype) {
    Weight w;
    memset(&w, 0, sizeof w);
    w.rows = rows; w.cols = cols; w.dtype = dtype;
    char *data = (char *)malloc((size_t)rows * (size_t)cols * 4);
    for (size_t i = 0; i < (size_t)rows * (size_t)cols; i++) {
        float f = uniform() / sqrtf((float)cols);
        uint32_t u;
        memcpy(&u, &f, 4);
        uint16_t h = (uint16_t)(u >> 16);
        if (dtype == DTYPE_F16) h = i % 17 == 3 ? (uint16_t)(i % 1024) : (uint16_t)((u >> 16 & 0x8000) | ((u >> 13 & 0x3ff) + ((9u + i % 4) << 10)));   /* subnormals too */
        if (dtype == DTYPE_F32) memcpy(data + i * 4, &f, 4);
        else memcpy(data + i * 2, &h, 2);
    }
    w.data = data;
    weight_pack(&w, aligned_alloc(64, (weight_packed_bytes(&w) + 63) / 64 * 64));
    return w;
}
static void weight_free(Weight *w) { free((void *)w->data); free(w->packed); }

/* A sum of `length` products of numbers of size one, rounded to fp32 at every addition, is off by about epsilon * sqrt(length) of its typical size sqrt(length), relative to the largest output
   by epsilon * sqrt(length); 8 leaves room for the worst element of many. The same bound for 16-bit weights: both sides read the same rounded weights. */
static double bound(int length) { return 8 * FLT_EPSILON * sqrt((double)length + 16); }

/* ---- 1. finite differences -> reference ------------------------------------------------------------------------------------------------------------
   L = sum weight_i * out_i.  Four points, h^4: (L(-2h) - 8 L(-h) + 8 L(h) - L(2h)) / 12h */

typedef double (*Objective)(void *context);
static double difference(double *x, double h, Objective f, void *context) {
    double keep = *x, sum = 0;
    static const double at[4] = {-2, -1, 1, 2}, factor[4] = {1, -8, 8, -1};
    for (int i = 0; i < 4; i++) { *x = keep + at[i] * h; sum += factor[i] * f(context); }
    *x = keep;
    return sum / (12 * h);
}
/* Adapter parameters are floats; steps that are powers of two keep the stencil exact enough, and L is linear in each of them. */
static double difference_float(float *x, Objective f, void *context) {
    float keep = *x, plus = keep + 0.0625f, minus = keep - 0.0625f;
    *x = plus;
    double high = f(context);
    *x = minus;
    double low = f(context);
    *x = keep;
    return (high - low) / ((double)plus - (double)minus);
}
static void compare_gradient(const char *what, double *x, size_t count, const double *gradient, Objective f, void *context) {
    double worst = 0, scale = 0;
    for (size_t i = 0; i < count; i++) {
        double g = difference(&x[i], 1e-3, f, context);
        worst = fmax(worst, isfinite(gradient[i]) ? fabs(g - gradient[i]) : INFINITY);
        scale = fmax(scale, fabs(g));
    }
    check(scale > 0 && worst <= 1e-6 * scale, "finite differences: %s, %zu inputs, relative error %.1e", what, count, worst / scale);   /* saved statistics are fp32: 6e-8 */
}

typedef struct Case {
    double *x, *out, *weight, *residual;
    float *stat, *norm, *norm2, *cs, *sn;
    int32_t *positions, *cu, *targets;
    Linear *group;
    Weight *head;
    LoraCall call;
    int N, C, H, KV, D, S, count, V;
    size_t outputs;
} Case;
static double weighted(const Case *c) { double s = 0; for (size_t i = 0; i < c->outputs; i++) s += c->weight[i] * c->out[i]; return s; }
static double *doubles(size_t count) { double *p = (double *)malloc((count + 1) * sizeof(double)); for (size_t i = 0; i < count; i++) p[i] = (double)uniform(); return p; }
static const Scratch no_scratch = {NULL, 0};

static double f_rmsnorm(void *v) { Case *c = (Case *)v; rmsnorm_forward_f64(c->out, c->stat, NULL, c->x, NULL, c->norm, 1e-5f, c->N, c->C); return weighted(c); }
static double f_swiglu(void *v) { Case *c = (Case *)v; swiglu_forward_f64(c->out, c->x, c->N, c->C); return weighted(c); }
static double f_rope(void *v) { Case *c = (Case *)v; qk_norm_rope_forward_f64(c->out, c->x, c->norm, c->norm2, 1e-5f, c->cs, c->sn, c->positions, c->N, c->H, c->KV, c->D); return weighted(c); }
static double f_attention(void *v) { Case *c = (Case *)v; attention_forward_f64(c->out, c->stat, c->x, c->cu, c->S, c->N, c->H, c->KV, c->D, no_scratch); return weighted(c); }
static double f_linear(void *v) { Case *c = (Case *)v; linear_forward_f64(c->out, c->residual, c->x, c->group, c->count, c->call, c->N, no_scratch); return weighted(c); }
static double f_loss(void *v) { Case *c = (Case *)v; return 0.7 * lm_head_loss_f64(NULL, NULL, c->x, c->targets, c->head, 0.7f, c->N, c->C, c->V, no_scratch).loss_sum; }

static Linear random_linear(int in, int out, int rank, DType dtype, bool bias, uint32_t site) {
    Linear p;
    memset(&p, 0, sizeof p);
    p.w = random_weight(out, in, dtype);
    p.in = in; p.out = out; p.rank = rank; p.scale = 1.5f; p.site = site;
    p.bias = bias ? random_floats((size_t)out, 1) : NULL;
    p.A = random_floats((size_t)(rank * in), 1); p.B = random_floats((size_t)(rank * out), 1);
    p.dA = random_floats((size_t)(rank * in), 1); p.dB = random_floats((size_t)(rank * out), 1);   /* += : what was there must stay */
    return p;
}
static void linear_free(Linear *p) { weight_free(&p->w); free((void *)p->bias); free(p->A); free(p->B); free(p->dA); free(p->dB); }

static void test_differences(void) {
    Case c;
    memset(&c, 0, sizeof c);
    c.N = 3; c.C = 7;
    c.x = doubles(64); c.out = doubles(512); c.weight = doubles(512); c.norm = random_floats(64, 1); c.norm2 = random_floats(64, 1); c.stat = poisoned(512);
    c.outputs = 21;
    double *gradient = doubles(512);
    f_rmsnorm(&c);
    rmsnorm_backward_f64(gradient, NULL, c.weight, c.stat, c.x, c.norm, 3, 7);
    compare_gradient("rmsnorm", c.x, 21, gradient, f_rmsnorm, &c);
    c.C = 5; c.outputs = 15;
    swiglu_backward_f64(gradient, c.weight, c.x, 3, 5);
    compare_gradient("swiglu", c.x, 30, gradient, f_swiglu, &c);
    free(c.x);

    int heads[][3] = {{1, 1, 4}, {4, 2, 6}, {8, 1, 2}, {2, 2, 12}};
    int32_t cu[] = {0, 1, 6, 8};
    for (int i = 0; i < 4; i++) {
        c.H = heads[i][0]; c.KV = heads[i][1]; c.D = heads[i][2]; c.N = 8; c.S = 3; c.cu = cu;
        size_t P = (size_t)((c.H + 2 * c.KV) * c.D);
        int32_t positions[8] = {0, 0, 1, 2, 3, 4, 0, 1};
        char what[96];
        c.positions = positions; c.x = doubles(8 * P); c.out = (double *)realloc(c.out, 8 * P * sizeof(double)); free(c.weight); c.weight = doubles(8 * P); gradient = (double *)realloc(gradient, 8 * P * sizeof(double));
        c.cs = random_floats(5 * 6, 1); c.sn = random_floats(5 * 6, 1);
        for (int k = 0; k < 30; k++) { float a = c.cs[k]; c.cs[k] = cosf(3 * a); c.sn[k] = sinf(3 * a); }
        for (int norm = 0; norm < 2; norm++) {
            float *keep = c.norm, *keep2 = c.norm2;
            if (!norm) c.norm = c.norm2 = NULL;
            c.outputs = 8 * P;
            memcpy(gradient, c.weight, 8 * P * sizeof(double));
            qk_norm_rope_backward_f64(gradient, c.x, c.norm, c.norm2, 1e-5f, c.cs, c.sn, positions, 8, c.H, c.KV, c.D);
            snprintf(what, sizeof what, "qk_norm_rope %s norm, %d heads on %d of %d", norm ? "with" : "without", c.H, c.KV, c.D);
            compare_gradient(what, c.x, 8 * P, gradient, f_rope, &c);
            c.norm = keep; c.norm2 = keep2;
        }
        c.outputs = (size_t)(8 * c.H * c.D);
        f_attention(&c);
        attention_backward_f64(gradient, c.weight, c.out, c.stat, c.x, cu, 3, 8, c.H, c.KV, c.D, no_scratch);
        snprintf(what, sizeof what, "attention, %d heads on %d of %d, lengths 1 5 2", c.H, c.KV, c.D);
        compare_gradient(what, c.x, 8 * P, gradient, f_attention, &c);
        free(c.x); free(c.cs); free(c.sn);
    }

    int ranks[][3] = {{1, 0, 3}, {8, 8, 8}, {0, 2, 0}};
    for (int i = 0; i < 3; i++) {
        for (int drop = 0; drop < 2; drop++) {
            Linear group[3] = {random_linear(9, 5, ranks[i][0], DTYPE_F32, true, 1), random_linear(9, 3, ranks[i][1], DTYPE_F32, false, 2), random_linear(9, 4, ranks[i][2], DTYPE_F32, true, 3)};
            int R = ranks[i][0] + ranks[i][1] + ranks[i][2];
            char what[96];
            c.N = 3; c.C = 9; c.group = group; c.count = 3; c.outputs = 36;
            memset(&c.call, 0, sizeof c.call);
            c.call.adapter = true; c.call.dropout = drop ? 0.4f : 0; c.call.seed = 9;
            c.x = doubles(27); c.residual = doubles((size_t)(3 * R)); gradient = (double *)realloc(gradient, 64 * sizeof(double)); c.out = (double *)realloc(c.out, 64 * sizeof(double));
            f_linear(&c);
            for (int j = 0; j < 3; j++) { memset(group[j].dA, 0, (size_t)(group[j].rank * 9) * sizeof(float)); memset(group[j].dB, 0, (size_t)(group[j].rank * group[j].out) * sizeof(float)); }
            linear_backward_f64(gradient, c.weight, c.residual, c.x, group, 3, c.call, 3, no_scratch);
            snprintf(what, sizeof what, "linear dx, ranks %d %d %d, dropout %.1f", ranks[i][0], ranks[i][1], ranks[i][2], (double)c.call.dropout);
            compare_gradient(what, c.x, 27, gradient, f_linear, &c);
            double worst = 0, scale = 0;
            for (int j = 0; j < 3; j++) {
                for (int side = 0; side < 2; side++) {
                    float *p = side ? group[j].B : group[j].A, *d = side ? group[j].dB : group[j].dA;
                    for (int k = 0; k < group[j].rank * (side ? group[j].out : 9); k++) {
                        double g = difference_float(&p[k], f_linear, &c);
                        worst = fmax(worst, isfinite(d[k]) ? fabs(g - (double)d[k]) : INFINITY);
                        scale = fmax(scale, fabs(g));
                    }
                }
            }
            check(scale > 0 && worst <= 1e-6 * scale, "finite differences: linear dA and dB, ranks %d %d %d, dropout %.1f, relative error %.1e", ranks[i][0], ranks[i][1], ranks[i][2], (double)c.call.dropout, worst / scale);
            for (int j = 0; j < 3; j++) linear_free(&group[j]);
            free(c.x); free(c.residual);
        }
    }
    Weight head = random_weight(11, 6, DTYPE_F32);
    int32_t targets[4] = {3, -100, 0, 10};
    c.head = &head; c.targets = targets; c.N = 4; c.C = 6; c.V = 11;
    c.x = doubles(24);
    for (int i = 0; i < 24; i++) c.x[i] *= 4;
    lm_head_loss_f64(gradient, NULL, c.x, targets, &head, 0.7f, 4, 6, 11, no_scratch);
    for (int i = 0; i < 24; i++) gradient[i] *= 0.7 / (double)0.7f;
    compare_gradient("lm_head_loss with a masked row", c.x, 24, gradient, f_loss, &c);
    weight_free(&head);
    free(c.x); free(c.out); free(c.weight); free(c.norm); free(c.norm2); free(c.stat); free(gradient);
}

/* ---- 2. reference -> the ops ------------------------------------------------------------------------------------------------------------------- */

static void compare(const char *what, const float *got, const float *want, size_t count, int length) {
    double e = relative_error(got, want, count);
    check(e <= bound(length), "%s: relative error %.1e, allowed %.1e", what, e, bound(length));
}

static void test_rmsnorm(int N, int C) {
    char what[96];
    size_t count = (size_t)N * (size_t)C;
    float *x = random_floats(count, 2), *res = random_floats(count, 2), *w = random_floats((size_t)C, 1), *d = random_floats(count, 1);
    for (int residual = 0; residual < 2; residual++) {
        float *a = poisoned(count), *b = poisoned(count), *sa = poisoned(count), *sb = poisoned(count), *ra = poisoned((size_t)N), *rb = poisoned((size_t)N), *da = poisoned(count), *db = poisoned(count);
        rmsnorm_forward(a, ra, residual ? sa : NULL, x, residual ? res : NULL, w, 1e-6f, N, C);
        rmsnorm_forward_ref(b, rb, residual ? sb : NULL, x, residual ? res : NULL, w, 1e-6f, N, C);
        snprintf(what, sizeof what, "rmsnorm_forward [%d,%d]%s", N, C, residual ? " + residual" : "");
        compare(what, a, b, count, C);
        compare("  rstd", ra, rb, (size_t)N, C);
        if (residual) compare("  sum", sa, sb, count, 1);
        rmsnorm_backward(da, residual ? res : NULL, d, rb, residual ? sb : x, w, N, C);
        rmsnorm_backward_ref(db, residual ? res : NULL, d, rb, residual ? sb : x, w, N, C);
        snprintf(what, sizeof what, "rmsnorm_backward [%d,%d]%s", N, C, residual ? " + residual" : "");
        compare(what, da, db, count, C);
        if (residual) {
            float *alias = copied(res, count);
            rmsnorm_backward(alias, alias, d, rb, sb, w, N, C);
            check(!memcmp(alias, da, count * sizeof(float)), "  dx in the place of dresidual: the same bits");
            memcpy(alias, res, count * sizeof(float));
            rmsnorm_forward(a, ra, alias, x, alias, w, 1e-6f, N, C);
            check(!memcmp(alias, sa, count * sizeof(float)), "  sum in the place of residual: the same bits");
            free(alias);
        }
        free(a); free(b); free(sa); free(sb); free(ra); free(rb); free(da); free(db);
    }
    free(x); free(res); free(w); free(d);
}

static void test_swiglu(int N, int F) {
    char what[96];
    size_t count = (size_t)N * (size_t)F;
    float *x = random_floats(2 * count, 6), *d = random_floats(count, 1), *a = poisoned(count), *b = poisoned(count), *da = poisoned(2 * count), *db = poisoned(2 * count);
    x[0] = 100; x[1 % F] = F > 1 ? -100 : x[0];
    swiglu_forward(a, x, N, F);
    swiglu_forward_ref(b, x, N, F);
    swiglu_backward(da, d, x, N, F);
    swiglu_backward_ref(db, d, x, N, F);
    snprintf(what, sizeof what, "swiglu [%d,%d], forward", N, F);
    compare(what, a, b, count, 1);
    compare("  backward", da, db, 2 * count, 1);
    swiglu_backward(x, d, x, N, F);
    check(!memcmp(x, da, 2 * count * sizeof(float)), "  d_gate_up in the place of gate_up: the same bits");
    free(x); free(d); free(a); free(b); free(da); free(db);
}

static void test_linear(int N, int I, const int *outs, const int *ranks, int count, DType dtype, float dropout, bool adapter) {
    char what[160];
    Linear group[3], same[3];
    int O = 0, R = 0, rank = 0, widest = I;
    for (int j = 0; j < count; j++) {
        group[j] = same[j] = random_linear(I, outs[j], ranks[j], dtype, j != 1, (uint32_t)j + 5);
        same[j].dA = copied(group[j].dA, (size_t)(ranks[j] * I));
        same[j].dB = copied(group[j].dB, (size_t)(ranks[j] * outs[j]));
        O += outs[j]; R += ranks[j];
        if (ranks[j] > rank) rank = ranks[j];
    }
    if (O > widest) widest = O;
    LoraCall call;
    memset(&call, 0, sizeof call);
    call.adapter = adapter; call.dropout = dropout; call.seed = 77; call.step = 3; call.micro_batch = 1;
    Scratch s = scratch_of(N, widest, R, 64, 64);
    size_t ny = (size_t)N * (size_t)O, nt = (size_t)N * (size_t)R, nx = (size_t)N * (size_t)I;
    float *x = random_floats(nx, 1), *dy = random_floats(ny, 1), *ya = poisoned(ny), *yb = poisoned(ny), *ta = poisoned(nt), *tb = poisoned(nt), *xa = poisoned(nx), *xb = poisoned(nx);
    linear_forward(ya, ta, x, group, count, call, N, s);
    linear_forward_ref(yb, tb, x, same, count, call, N, s);
    snprintf(what, sizeof what, "linear_forward N=%d I=%d O=%d R=%d %s dropout %.1f%s", N, I, O, R, dtype_name[dtype], (double)dropout, adapter ? "" : ", adapter off");
    compare(what, ya, yb, ny, I + rank);
    if (R && adapter) compare("  t", ta, tb, nt, I);
    linear_backward(xa, dy, tb, x, group, count, call, N, s);
    linear_backward_ref(xb, dy, tb, x, same, count, call, N, s);
    compare("  dx", xa, xb, nx, O + R);
    for (int j = 0; j < count; j++) {
        if (!ranks[j]) continue;
        compare("  dA", group[j].dA, same[j].dA, (size_t)(ranks[j] * I), N + outs[j]);
        compare("  dB", group[j].dB, same[j].dB, (size_t)(ranks[j] * outs[j]), N);
    }
    if (count == 1 && R && adapter) {        /* dx NULL: the same adapter gradients, added once more */
        float *twice = copied(group[0].dA, (size_t)(ranks[0] * I));
        linear_backward(NULL, dy, tb, x, group, count, call, N, s);
        linear_backward_ref(NULL, dy, tb, x, same, count, call, N, s);
        compare("  dx NULL, dA", group[0].dA, same[0].dA, (size_t)(ranks[0] * I), N + outs[0]);
        check(memcmp(twice, group[0].dA, (size_t)(ranks[0] * I) * sizeof(float)) != 0, "  dA is added to, not overwritten");
        free(twice);
    }
    for (int j = 0; j < count; j++) { linear_free(&group[j]); free(same[j].dA); free(same[j].dB); }
    free(x); free(dy); free(ya); free(yb); free(ta); free(tb); free(xa); free(xb); free(s.base);
}

static void test_attention(const int32_t *lengths, int S, int H, int KV, int D, float size) {
    int32_t cu[8] = {0};
    for (int s = 0; s < S; s++) cu[s + 1] = cu[s] + lengths[s];
    int N = cu[S], P = (H + 2 * KV) * D, half = D / 2;
    char what[128];
    int32_t *positions = (int32_t *)malloc((size_t)N * sizeof *positions);
    for (int s = 0; s < S; s++) for (int n = cu[s]; n < cu[s + 1]; n++) positions[n] = n - cu[s];
    size_t nq = (size_t)N * (size_t)P, no = (size_t)N * (size_t)(H * D);
    float *qkv = random_floats(nq, size), *dout = random_floats(no, 1), *a = poisoned(nq), *b = poisoned(nq), *la = poisoned((size_t)(N * H)), *lb = poisoned((size_t)(N * H)), *da = poisoned(nq), *db = poisoned(nq);
    float *cs = (float *)malloc((size_t)(N * half) * sizeof(float)), *sn = (float *)malloc((size_t)(N * half) * sizeof(float)), *qw = random_floats((size_t)D, 1), *kw = random_floats((size_t)D, 1);
    ModelConfig config;
    memset(&config, 0, sizeof config);
    config.head_dim = D; config.rope_theta = 10000;
    rope_tables(cs, sn, &config, N);
    Scratch s = scratch_of(N, P, 0, 64, 64);
    attention_forward(a, la, qkv, cu, S, N, H, KV, D, s);
    attention_forward_ref(b, lb, qkv, cu, S, N, H, KV, D, s);
    snprintf(what, sizeof what, "attention_forward %d sequences, %d tokens, %d heads on %d of %d, size %g", S, N, H, KV, D, (double)size);
    /* the scores' rounding error is epsilon * |score|, and the softmax passes it on */
    int length = (int)((1 + size * size) * (1 + size * size) * (float)(D + N));
    compare(what, a, b, no, length);
    compare("  lse", la, lb, (size_t)(N * H), length);
    memset(da, 0xff, nq * sizeof(float));
    attention_backward(da, dout, b, lb, qkv, cu, S, N, H, KV, D, s);
    attention_backward_ref(db, dout, b, lb, qkv, cu, S, N, H, KV, D, s);
    compare("  backward", da, db, nq, length);
    for (int norm = 0; norm < 2; norm++) {
        memset(a, 0xff, nq * sizeof(float));
        qk_norm_rope_forward(a, qkv, norm ? qw : NULL, norm ? kw : NULL, 1e-6f, cs, sn, positions, N, H, KV, D);
        qk_norm_rope_forward_ref(b, qkv, norm ? qw : NULL, norm ? kw : NULL, 1e-6f, cs, sn, positions, N, H, KV, D);
        compare(norm ? "  qk_norm_rope_forward with norm" : "  qk_norm_rope_forward without norm", a, b, nq, D);
        memcpy(da, db, nq * sizeof(float));
        float *want = copied(db, nq);
        qk_norm_rope_backward(da, qkv, norm ? qw : NULL, norm ? kw : NULL, 1e-6f, cs, sn, positions, N, H, KV, D);
        qk_norm_rope_backward_ref(want, qkv, norm ? qw : NULL, norm ? kw : NULL, 1e-6f, cs, sn, positions, N, H, KV, D);
        compare("  qk_norm_rope_backward", da, want, nq, D);
        free(want);
    }
    free(positions); free(qkv); free(dout); free(a); free(b); free(la); free(lb); free(da); free(db); free(cs); free(sn); free(qw); free(kw); free(s.base);
}

static void test_head(int N, int C, int V, DType dtype, int masked, float size) {
    char what[128];
    Weight head = random_weight(V, C, dtype);
    size_t count = (size_t)N * (size_t)C;
    float *x = random_floats(count, size), *a = poisoned(count), *b = poisoned(count), *la = poisoned((size_t)N), *lb = poisoned((size_t)N), *za = poisoned((size_t)N * (size_t)V), *zb = poisoned((size_t)N * (size_t)V);
    int32_t *targets = (int32_t *)malloc((size_t)N * sizeof *targets);
    for (int n = 0; n < N; n++) targets[n] = masked == 2 || (masked == 1 && n % 3) ? -100 : (int32_t)((n * 7919) % V);
    Scratch s = scratch_of(N, 2 * C, 1, V, C);
    LossStats p = lm_head_loss(a, la, x, targets, &head, 0.01f, N, C, V, s), q = lm_head_loss_ref(b, lb, x, targets, &head, 0.01f, N, C, V, s);
    snprintf(what, sizeof what, "lm_head_loss N=%d C=%d V=%d %s, %s, size %g: dx", N, C, V, dtype_name[dtype], masked == 2 ? "all masked" : masked ? "two thirds masked" : "none masked", (double)size);
    int length = (int)((1 + size) * (1 + size) * (float)(C + V));
    if (masked == 2) check(relative_error(a, b, count) == 0 && p.tokens == 0 && p.loss_sum == 0, "%s is zero, no tokens, no loss", what);
    else compare(what, a, b, count, length);
    check(p.tokens == q.tokens && p.correct == q.correct && fabs(p.loss_sum - q.loss_sum) <= bound(length) * fmax(1, q.loss_sum) && fabs(p.entropy_sum - q.entropy_sum) <= bound(length) * fmax(1, (double)q.tokens * log((double)V)),
          "  loss %.6f (%.6f), entropy %.6f (%.6f), %d of %d correct", p.loss_sum, q.loss_sum, p.entropy_sum, q.entropy_sum, (int)p.correct, (int)p.tokens);
    compare("  row_loss", la, lb, (size_t)N, length);
    LossStats r = lm_head_loss(NULL, NULL, x, targets, &head, 0, N, C, V, s);
    check(r.loss_sum == p.loss_sum && r.correct == p.correct && r.entropy_sum == p.entropy_sum, "  dx NULL: the same loss");
    lm_head_logits(za, x, &head, N, C, V, s);
    lm_head_logits_ref(zb, x, &head, N, C, V, s);
    compare("  lm_head_logits", za, zb, (size_t)N * (size_t)V, C);
    weight_free(&head);
    free(x); free(a); free(b); free(la); free(lb); free(za); free(zb); free(targets); free(s.base);
}

static void test_embedding(DType dtype) {
    Weight w = random_weight(19, 13, dtype);
    int32_t ids[7] = {0, 18, 3, 3, 7, 1, 18};
    float *a = poisoned(91), *b = poisoned(91);
    embedding_forward(a, ids, &w, 7, 13);
    embedding_forward_ref(b, ids, &w, 7, 13);
    check(!memcmp(a, b, 91 * sizeof(float)), "embedding_forward %s: exact", dtype_name[dtype]);
    free(a); free(b);
    weight_free(&w);
}

/* The worst cases of a cross-entropy: a target far below the maximum, ties, huge logits. */
static void test_extremes(void) {
    float rows[3] = {1e4f, 0, -1e4f}, x[1] = {1};
    Weight w;
    memset(&w, 0, sizeof w);
    w.rows = 3; w.cols = 1; w.dtype = DTYPE_F32; w.data = rows;
    weight_pack(&w, aligned_alloc(64, (weight_packed_bytes(&w) + 63) / 64 * 64));
    Scratch s = scratch_of(1, 2, 1, 3, 1);
    int32_t target = 2;
    float dx[1];
    LossStats p = lm_head_loss(dx, NULL, x, &target, &w, 1, 1, 1, 3, s);
    check(p.loss_sum == 2e4 && dx[0] == 2e4f, "target 20,000 below the maximum: loss %.1f, gradient %.1f", p.loss_sum, (double)dx[0]);
    free(w.packed);
    float tied[3] = {2, 2, 1};
    w.data = tied;
    weight_pack(&w, aligned_alloc(64, (weight_packed_bytes(&w) + 63) / 64 * 64));
    target = 0;
    p = lm_head_loss(NULL, NULL, x, &target, &w, 1, 1, 1, 3, s);
    check(p.correct == 1, "a tie goes to the lowest index");
    x[0] = NAN;
    p = lm_head_loss(dx, NULL, x, &target, &w, 1, 1, 1, 3, s);
    check(!isfinite(p.loss_sum), "a NaN in the input is a NaN in the loss");
    free(w.packed);
    free(s.base);
    float worst = 0;
    for (int i = -8700; i < 8850; i++) { vecf v = vec_exp(vec_set((float)i * 0.01f)); worst = fmaxf(worst, fabsf(v[0] / expf((float)i * 0.01f) - 1)); }
    check(worst <= 3 * FLT_EPSILON, "vec_exp from -87 to 88.5: worst relative error %.1e", (double)worst);
    check(vec_exp(vec_set(-INFINITY))[0] == 0 && vec_exp(vec_set(0))[0] == 1 && isnan(vec_exp(vec_set(NAN))[0]), "vec_exp(-inf) = 0, vec_exp(0) = 1, vec_exp(NaN) = NaN");
}

static void test_optimizer(void) {
    enum { COUNT = 1003 };
    float *p = random_floats(COUNT, 1), *m = random_floats(COUNT, 0), *v = random_floats(COUNT, 0), *g = random_floats(COUNT, 1), *p2 = copied(p, COUNT), *m2 = copied(m, COUNT), *v2 = copied(v, COUNT);
    for (int step = 1; step <= 20; step++) {
        adamw_update(p, m, v, g, COUNT, 0.5f, 1e-2f, 0.9f, 0.99f, 1e-6f, 0.1f, step);
        adamw_update_ref(p2, m2, v2, g, COUNT, 0.5f, 1e-2f, 0.9f, 0.99f, 1e-6f, 0.1f, step);
        for (int i = 0; i < COUNT; i++) g[i] = uniform();
    }
    compare("adamw_update, 20 steps: parameters", p, p2, COUNT, 20);
    compare("  m", m, m2, COUNT, 20);
    compare("  v", v, v2, COUNT, 20);
    check(fabs(global_norm(g, COUNT) / global_norm_ref(g, COUNT) - 1) < 1e-14 && global_norm(g, 1) == fabs((double)g[0]) && global_norm(g, 0) == 0, "global_norm of 1003, 1 and 0 numbers");
    free(p); free(m); free(v); free(g); free(p2); free(m2); free(v2);
    uint32_t out[4], zero[4] = {0, 0, 0, 0}, ones[4] = {~0u, ~0u, ~0u, ~0u};
    philox4x32(out, zero, zero);
    bool ok = out[0] == 0x6627e8d5 && out[1] == 0xe169c58d && out[2] == 0xbc57ac4c && out[3] == 0x9b00dbd8;
    philox4x32(out, ones, ones);
    check(ok && out[0] == 0x408f276d && out[1] == 0x41c83b0e && out[2] == 0xa20bc7c6 && out[3] == 0x6d5451fd, "philox4x32: the two known answers of Random123");
    LoraCall call;
    memset(&call, 0, sizeof call);
    call.dropout = 0.3f; call.seed = 4;
    int kept = 0, other = 0;
    for (uint64_t i = 0; i < 100000; i++) { kept += dropout_keep(call, 2, i); other += dropout_keep(call, 2, i) == dropout_keep(call, 3, i); }
    check(abs(kept - 70000) < 600 && abs(other - 58000) < 700, "dropout 0.3 keeps %d of 100000; another projection's mask is independent", kept);   /* 4 standard deviations */
}

/* ---- 3. any number of threads: the same bits ----------------------------------------------------------------------------------------------------- */

static void test_threads(void) {
#ifdef _OPENMP
    int outs[3] = {53, 40, 21}, N = 61, I = 37;
    Linear group[3] = {random_linear(I, 53, 3, DTYPE_BF16, true, 1), random_linear(I, 40, 8, DTYPE_BF16, false, 2), random_linear(I, 21, 1, DTYPE_BF16, true, 3)};
    Weight head = random_weight(301, I, DTYPE_F16);
    int32_t cu[3] = {0, 17, 61}, targets[61];
    for (int n = 0; n < N; n++) targets[n] = n % 4 ? n * 4 % 301 : -100;
    float *x = random_floats((size_t)(N * I), 1), *dy = random_floats((size_t)(N * 114), 1), *qkv = random_floats((size_t)(N * 96), 1), *first = NULL;
    Scratch s = scratch_of(N, 114, 12, 301, I);
    LoraCall call;
    memset(&call, 0, sizeof call);
    call.adapter = true; call.dropout = 0.2f;
    (void)outs;
    for (int threads = 1; threads <= 5; threads += 2) {
        omp_set_num_threads(threads);
        enum { TOTAL = 61 * (114 + 12 + 37 + 48 + 6 + 96 + 37 + 37) + 3000 };
        float *all = (float *)calloc(TOTAL, sizeof(float)), *at = all;
        for (int j = 0; j < 3; j++) { memset(group[j].dA, 0, (size_t)(group[j].rank * I) * 4); memset(group[j].dB, 0, (size_t)(group[j].rank * group[j].out) * 4); }
        float *t = at + N * 114, *o = t + N * (12 + 37), *lse = o + N * 48, *dqkv = lse + N * 6, *norm = dqkv + N * 96, *dx = norm + N * 37, *rest = dx + N * 37;
        linear_forward(at, t, x, group, 3, call, N, s);
        linear_backward(t + N * 12, dy, t, x, group, 3, call, N, s);
        attention_forward(o, lse, qkv, cu, 2, N, 6, 3, 8, s);
        attention_backward(dqkv, o, o, lse, qkv, cu, 2, N, 6, 3, 8, s);
        rmsnorm_forward(norm, rest, NULL, x, NULL, x, 1e-6f, N, I);
        LossStats l = lm_head_loss(dx, rest + N, x, targets, &head, 0.1f, N, I, 301, s);
        rest += 2 * N;
        for (int j = 0; j < 3; j++) {
            memcpy(rest, group[j].dA, (size_t)(group[j].rank * I) * 4); rest += group[j].rank * I;
            memcpy(rest, group[j].dB, (size_t)(group[j].rank * group[j].out) * 4); rest += group[j].rank * group[j].out;
        }
        *rest++ = (float)l.loss_sum;
        *rest++ = (float)global_norm(dy, (size_t)(N * 114));
        assert(rest <= all + TOTAL);
        if (!first) first = all;
        else { check(!memcmp(first, all, TOTAL * sizeof(float)), "1 and %d threads: linear, attention, rmsnorm, head and norm have the same bits", threads); free(all); }
    }
    omp_set_num_threads(2);
    for (int j = 0; j < 3; j++) linear_free(&group[j]);
    weight_free(&head);
    free(first); free(x); free(dy); free(qkv); free(s.base);
#endif
}

int main(void) {
    test_differences();
    for (int d = DTYPE_F32; d <= DTYPE_BF16; d++) test_embedding((DType)d);
    int sizes[][2] = {{1, 3}, {1, 37}, {13, 64}, {97, 53}, {3, 1000}};
    for (int i = 0; i < 5; i++) { test_rmsnorm(sizes[i][0], sizes[i][1]); test_swiglu(sizes[i][0], sizes[i][1]); }
    for (int d = DTYPE_F32; d <= DTYPE_BF16; d++) {
        DType dtype = (DType)d;
        test_linear(1, 37, (int[]){53}, (int[]){1}, 1, dtype, 0, true);
        test_linear(13, 64, (int[]){32}, (int[]){8}, 1, dtype, 0.3f, true);
        test_linear(97, 48, (int[]){31, 33}, (int[]){3, 0}, 2, dtype, 0, true);
        test_linear(61, 37, (int[]){53, 8, 129}, (int[]){64, 8, 3}, 3, dtype, 0.3f, true);
        test_linear(300, 300, (int[]){70}, (int[]){16}, 1, dtype, 0, true);
        test_linear(24, 600, (int[]){64, 16, 16}, (int[]){8, 8, 8}, 3, dtype, 0, false);
        test_linear(25, 12, (int[]){1, 600}, (int[]){0, 0}, 2, dtype, 0, true);
        test_head(1, 5, 2, dtype, 0, 1);
        test_head(97, 37, 131, dtype, 1, 1);
        test_head(13, 64, 1000, dtype, 0, 30);
        test_head(9, 16, 300, dtype, 2, 1);
    }
    test_head(300, 24, 70000, DTYPE_BF16, 1, 4);       /* more rows than one chunk of logits, sums over more than one block */
    int heads[][3] = {{1, 1, 8}, {4, 1, 12}, {8, 2, 64}, {4, 4, 80}, {8, 1, 96}, {2, 1, 128}};
    for (int i = 0; i < 6; i++) {
        test_attention((int32_t[]){1}, 1, heads[i][0], heads[i][1], heads[i][2], 1);
        test_attention((int32_t[]){1, 17, 2, 33}, 4, heads[i][0], heads[i][1], heads[i][2], 1);
        test_attention((int32_t[]){131, 64}, 2, heads[i][0], heads[i][1], heads[i][2], 1);
    }
    test_attention((int32_t[]){70}, 1, 2, 1, 64, 6);   /* scores of hundreds: the softmax is nearly one-hot */
    test_extremes();
    test_optimizer();
    test_threads();
    return finish();
}
