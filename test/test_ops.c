/* test_ops.c - every op, in two hops: finite differences -> reference (double), reference -> the ops of lora.h (odd
   shapes, every format, poisoned outputs), and bit-equality over thread counts.
   The same file tests the CPU ops and the CUDA kernels (backend.h says how it is built for which).
   gcc -std=gnu11 -O2 -march=native -fopenmp -I. test/test_ops.c -o build/test_ops -lm && build/test_ops */
#if !defined(EMULATED) && !defined(__CUDACC__)
#include <stdlib.h>
/* Allocations that are written in lora.h and its headers; those of this file and its reference do not count. */
static size_t allocations;
#define COUNTED(call) ((allocations += !strstr(__FILE__, "test/")), (call))
#define malloc(n) COUNTED(malloc(n))
#define calloc(n, size) COUNTED(calloc(n, size))
#define realloc(p, n) COUNTED(realloc(p, n))
#endif
#include "backend.h"

#define REAL float
#define REF(name) name##_ref
#include "reference.h"
#undef REAL
#undef REF
#define REAL double
#define REF(name) name##_f64
#include "reference.h"

/* The reference, the CPU op and the CUDA op have one type (where floatX is the reference's float). */
#if defined(LORA_CUDA) && !defined(PRECISION_FP32)
#define SAME_SIGNATURE(op) static_assert(true, "")
#elif defined(__cplusplus)
#include <type_traits>
#define SAME_SIGNATURE(op) static_assert(std::is_same<decltype(&op), decltype(&op##_ref)>::value, #op)
#else
#define SAME_SIGNATURE(op) _Static_assert(__builtin_types_compatible_p(__typeof__(&op), __typeof__(&op##_ref)), #op)
#endif
SAME_SIGNATURE(embedding_forward);
SAME_SIGNATURE(rmsnorm_forward);
SAME_SIGNATURE(rmsnorm_backward);
SAME_SIGNATURE(linear_forward);
SAME_SIGNATURE(linear_backward);
SAME_SIGNATURE(qk_norm_rope_forward);
SAME_SIGNATURE(qk_norm_rope_backward);
SAME_SIGNATURE(attention_forward);
SAME_SIGNATURE(attention_backward);
SAME_SIGNATURE(cache_store);
SAME_SIGNATURE(attention_decode);
SAME_SIGNATURE(swiglu_forward);
SAME_SIGNATURE(swiglu_backward);
SAME_SIGNATURE(lm_head_loss);
SAME_SIGNATURE(lm_head_logits);
SAME_SIGNATURE(linear_weight_backward);
SAME_SIGNATURE(rmsnorm_weight_backward);
SAME_SIGNATURE(qk_norm_weight_backward);
SAME_SIGNATURE(embedding_backward);
SAME_SIGNATURE(weight_set);
SAME_SIGNATURE(vector_set);
SAME_SIGNATURE(score_forward);
SAME_SIGNATURE(score_backward);
SAME_SIGNATURE(adamw_update);
SAME_SIGNATURE(adamw_8bit_update);
SAME_SIGNATURE(global_norm);

static uint32_t random_state = 1;
static float uniform(void) { random_state = random_state * 1664525u + 1013904223u; return (float)(random_state >> 8) * 0x1p-23f - 1; }   /* [-1, 1) */
static float *random_floats(size_t count, float scale) {
    float *p = (float *)shared_alloc(count * sizeof(float));
    for (size_t i = 0; i < count; i++) p[i] = uniform() * scale;
    return p;
}
static float *poisoned(size_t count) { float *p = (float *)shared_alloc(count * sizeof(float)); memset((void *)p, 0xff, count * sizeof(float)); return p; }     /* all NaN */
static float *copied(const float *from, size_t count) { float *p = (float *)shared_alloc(count * sizeof(float)); memcpy(p, from, count * sizeof(float)); return p; }
static int32_t *integers(const int32_t *from, size_t count) { int32_t *p = (int32_t *)shared_alloc(count * sizeof(int32_t)); memcpy(p, from, count * sizeof(int32_t)); return p; }

/* Activations: floatX for the op, the same rounded values as floats for the reference. */
static floatX *x_poisoned(size_t count) { floatX *p = (floatX *)shared_alloc(count * sizeof(floatX)); memset((void *)p, 0xff, count * sizeof(floatX)); return p; }
static floatX *x_of(float *values, size_t count) {
    floatX *p = (floatX *)shared_alloc(count * sizeof(floatX));
    for (size_t i = 0; i < count; i++) { p[i] = (floatX)values[i]; values[i] = (float)p[i]; }
    return p;
}
static Scratch scratch_of(int n, int widest, int rank, int vocab, int hidden) {
    Scratch s;
    s.bytes = op_scratch_bytes(n, widest, rank, vocab, hidden);
    s.base = shared_alloc(s.bytes);
    memset(s.base, 0xff, s.bytes);
    return s;
}
static Weight random_weight(int rows, int cols, FormatId format) {
    Weight w;
    memset(&w, 0, sizeof w);
    w.rows = rows; w.cols = cols; w.format = format;
    char *data = (char *)malloc(weight_bytes(&w));
    size_t size = format_bytes(format, 1);
    w.data = data;
    for (size_t i = 0; i < (size_t)rows * (size_t)cols; i++) {
        float f = (float)(floatX)(uniform() / sqrtf((float)cols));
        uint32_t u;
        memcpy(&u, &f, 4);
        uint16_t h = (uint16_t)(u >> 16);
        if (format == FORMAT_F16)           /* subnormals too */
            h = i % 17 == 3 ? (uint16_t)(i % 1024)
                            : (uint16_t)((u >> 16 & 0x8000) | ((u >> 13 & 0x3ff) + ((9u + i % 4) << 10)));
        if (format == FORMAT_F32) memcpy(data + i * size, &f, size);
        else memcpy(data + i * size, &h, size);
        weight_decode(&f, &w, i, 1);
        /* What floatX cannot hold the backend would round: both sides must have the same weights. */
        if ((float)(floatX)f != f) memset(data + i * size, 0, size);
    }
    weight_pack(&w, shared_alloc(weight_packed_bytes(&w)));
    return w;
}
static void weight_free(Weight *w) { free((void *)w->data); shared_free(w->packed); }

/* A sum of `length` products of numbers of size one, rounded to fp32 at every addition, is off by about epsilon * sqrt(length) of its typical size sqrt(length), relative to the largest output
   by epsilon * sqrt(length); 8 leaves room for the worst element of many. The same bound for 16-bit weights: both sides read the same rounded weights. */
static double bound(int length) { return 8 * FLT_EPSILON * sqrt((double)length + 16); }
/* Where floatX is narrower than float, every rounding to it on the way to the result adds half a step of floatX, relative to the size of what is rounded. */
static double x_epsilon(void) { return sizeof(floatX) == 4 ? 0 : (float)(floatX)1.002f != 1.0f ? 0x1p-10 : 0x1p-7; }      /* distance of 1 to the next number: fp16 10 bits, bf16 7 */
static double x_bound(int length, int roundings) { return bound(length) + roundings * x_epsilon() / 2; }

/* ---- 1. finite differences -> reference ------------------------------------------------------------------------------------------------------------
   L = sum weight_i * out_i.  Four points, h^4: (L(-2h) - 8 L(-h) + 8 L(h) - L(2h)) / 12h */

typedef double (*Scalar)(void *context);
static double difference(double *x, double h, Scalar f, void *context) {
    double keep = *x, sum = 0;
    static const double at[4] = {-2, -1, 1, 2}, factor[4] = {1, -8, 8, -1};
    for (int i = 0; i < 4; i++) { *x = keep + at[i] * h; sum += factor[i] * f(context); }
    *x = keep;
    return sum / (12 * h);
}
/* Adapter parameters are floats; steps that are powers of two keep the stencil exact enough, and L is linear in each of them. */
static double difference_float(float *x, Scalar f, void *context) {
    float keep = *x, plus = keep + 0.0625f, minus = keep - 0.0625f;
    *x = plus;
    double high = f(context);
    *x = minus;
    double low = f(context);
    *x = keep;
    return (high - low) / ((double)plus - (double)minus);
}
/* Four points for what is not linear: *x must be a multiple of the step, so that every point is exact. */
static double difference_fine(float *x, Scalar f, void *context) {
    static const float at[4] = {-2, -1, 1, 2};
    static const double factor[4] = {1, -8, 8, -1};
    const float keep = *x, h = 0x1p-7f;
    double sum = 0;
    for (int i = 0; i < 4; i++) { *x = keep + at[i] * h; sum += factor[i] * f(context); }
    *x = keep;
    return sum / (12 * (double)h);
}
/* The gradient of a weight that forward reads as floats. factor: what forward has beside the trained value. */
static void compare_weight_gradient(const char *what, float *x, size_t count, const double *gradient, double factor,
                                    double (*derivative)(float *, Scalar, void *), Scalar f, void *context) {
    double worst = 0, scale = 0;
    for (size_t i = 0; i < count; i++) {
        double g = derivative(&x[i], f, context) * factor;
        worst = fmax(worst, isfinite(gradient[i]) ? fabs(g - gradient[i]) : INFINITY);
        scale = fmax(scale, fabs(g));
    }
    check(scale > 0 && worst <= 1e-6 * scale, "finite differences: %s, %zu weights, relative error %.1e", what, count,
          worst / scale);
}
static void compare_gradient(const char *what, double *x, size_t count, const double *gradient, Scalar f,
                             void *context) {
    double worst = 0, scale = 0;
    for (size_t i = 0; i < count; i++) {
        double g = difference(&x[i], 1e-3, f, context);
        worst = fmax(worst, isfinite(gradient[i]) ? fabs(g - gradient[i]) : INFINITY);
        scale = fmax(scale, fabs(g));
    }
    check(scale > 0 && worst <= 1e-6 * scale, "finite differences: %s, %zu inputs, relative error %.1e", what, count, worst / scale);   /* saved statistics are fp32: 6e-8 */
}

typedef struct Case {
    double *x, *out, *weight, *residual, *score;
    float *stat, *norm, *norm2, *cs, *sn;
    int32_t *positions, *cu, *rows, *targets;
    float *row_scale;
    Linear *group;
    Lora *lora;
    Weight *head;
    DropoutKey key;
    int N, C, S, count, V, M;
    AttentionShape a;
    size_t outputs;
} Case;
static double weighted(const Case *c) { double s = 0; for (size_t i = 0; i < c->outputs; i++) s += c->weight[i] * c->out[i]; return s; }
static double *doubles(size_t count) { double *p = (double *)malloc((count + 1) * sizeof(double)); for (size_t i = 0; i < count; i++) p[i] = (double)uniform(); return p; }
static const Scratch no_scratch = {NULL, 0};

static double f_rmsnorm(void *v) { Case *c = (Case *)v; rmsnorm_forward_f64(c->out, c->stat, NULL, c->x, NULL, c->norm, 1e-5f, c->N, c->C); return weighted(c); }
static double f_swiglu(void *v) { Case *c = (Case *)v; swiglu_forward_f64(c->out, c->x, c->N, c->C); return weighted(c); }
static double f_rope(void *v) {
    Case *c = (Case *)v;
    qk_norm_rope_forward_f64(c->out, c->x, c->norm, c->norm2, 1e-5f, c->cs, c->sn, c->positions, c->N, c->a);
    return weighted(c);
}
static double f_attention(void *v) {
    Case *c = (Case *)v;
    attention_forward_f64(c->out, c->stat, c->x, c->cu, c->S, c->N, c->a, no_scratch);
    return weighted(c);
}
static double f_linear(void *v) {
    Case *c = (Case *)v;
    linear_forward_f64(c->out, c->residual, NULL, c->x, c->group, c->lora, c->count, c->key, c->N, no_scratch);
    return weighted(c);
}
static double f_loss(void *v) {
    Case *c = (Case *)v;
    RowLoss row[8];
    double sum = 0;
    lm_head_loss_f64(NULL, NULL, row, c->x, c->rows, c->targets, NULL, c->head, 0, c->M, c->N, c->C, c->V, no_scratch);
    for (int i = 0; i < c->M; i++) sum += 0.7 * (c->row_scale ? (double)c->row_scale[i] : 1) * row[i].loss;
    return sum;
}

static double f_embedding(void *v) {
    Case *c = (Case *)v;
    embedding_forward_f64(c->out, c->rows, c->head, 1.5f, c->N, c->C);
    return weighted(c);
}
static double f_score(void *v) {
    Case *c = (Case *)v;
    score_forward_f64(c->out, c->x, c->rows, c->score, c->M, c->V, c->C);
    return weighted(c);
}

static Linear random_linear(int in, int out, FormatId format, bool bias, uint32_t dropout_id) {
    Linear p;
    memset(&p, 0, sizeof p);
    p.w = random_weight(out, in, format);
    p.in = in; p.out = out; p.dropout_id = dropout_id;
    p.bias = bias ? random_floats((size_t)out, 1) : NULL;
    return p;
}
static Lora random_lora(const Linear *p, int rank) {
    Lora a;
    memset(&a, 0, sizeof a);
    size_t in = (size_t)(rank * p->in), out = (size_t)(rank * p->out);
    a.rank = rank; a.scale = 1.5f;
    a.A = random_floats(in, 1); a.B = random_floats(out, 1);
    a.dA = random_floats(in, 1); a.dB = random_floats(out, 1);                /* += : what was there must stay */
    a.packed = shared_alloc(adapter_packed_bytes(p, &a));
    memset(a.packed, 0xff, adapter_packed_bytes(p, &a));
    adapter_pack(p, &a, 1);
    return a;
}
static void linear_free(Linear *p, Lora *a) {
    weight_free(&p->w);
    shared_free(p->bias); shared_free(a->packed);
    shared_free(a->A); shared_free(a->B); shared_free(a->dA); shared_free(a->dB);
}
/* Clears the gradients of three. */
static void lora_zero(const Linear *group, Lora *lora) {
    for (int j = 0; j < 3; j++) {
        memset(lora[j].dA, 0, (size_t)(lora[j].rank * group[j].in) * sizeof(float));
        memset(lora[j].dB, 0, (size_t)(lora[j].rank * group[j].out) * sizeof(float));
    }
}

/* Not 1/sqrt(D), which an op could come to by itself. */
static AttentionShape attention_shape(int H, int KV, int D) {
    AttentionShape a = {H, KV, D, 0.8f / sqrtf((float)D)};
    return a;
}

/* Gradients of the weights themselves; += on zeros. */
static void test_weight_differences(void) {
    enum { MOST = 512 };
    Case c;
    memset(&c, 0, sizeof c);
    c.x = doubles(MOST); c.out = doubles(MOST); c.weight = doubles(MOST); c.score = doubles(64);
    c.stat = poisoned(MOST); c.norm = random_floats(16, 1); c.norm2 = random_floats(16, 1);
    char what[96];
    for (int N = 1; N <= 3; N += 2) {
        Linear group[3] = {random_linear(9, 5, FORMAT_F32, true, 1), random_linear(9, 3, FORMAT_F32, true, 2),
                           random_linear(9, 4, FORMAT_F32, true, 3)};
        c.N = N; c.group = group; c.count = 3; c.lora = NULL; c.outputs = (size_t)(12 * N);
        for (int j = 0, o = 0; j < 3; o += group[j++].out) {
            double *dW = (double *)calloc(45, sizeof *dW), dbias[5] = {0};
            int O = group[j].out;
            linear_weight_backward_f64(dW, dbias, c.weight + o, 12, c.x, N, 9, O, no_scratch);
            snprintf(what, sizeof what, "linear dW, %d tokens, outputs %d to %d of 12", N, o, o + O - 1);
            compare_weight_gradient(what, (float *)group[j].w.data, (size_t)(9 * O), dW, 1, difference_float, f_linear,
                                    &c);
            compare_weight_gradient("  dbias", (float *)group[j].bias, (size_t)O, dbias, 1, difference_float, f_linear,
                                    &c);
            free(dW);
        }
        for (int j = 0; j < 3; j++) { weight_free(&group[j].w); shared_free(group[j].bias); }

        double dnorm[7] = {0};
        c.C = 7; c.outputs = (size_t)(7 * N);
        f_rmsnorm(&c);
        rmsnorm_weight_backward_f64(dnorm, c.weight, c.stat, c.x, 1.25f, N, 7, no_scratch);
        snprintf(what, sizeof what, "rmsnorm's weight, %d tokens, factor 1.25", N);
        compare_weight_gradient(what, c.norm, 7, dnorm, 1.25, difference_float, f_rmsnorm, &c);
    }
    int32_t positions[5] = {0, 1, 2, 0, 1};
    float *angles = random_floats(9, 3), *cs = random_floats(9, 1), *sn = random_floats(9, 1);
    for (int i = 0; i < 9; i++) { cs[i] = cosf(angles[i]); sn[i] = sinf(angles[i]); }
    for (int rope = 0; rope < 2; rope++) {
        double dq[6] = {0}, dk[6] = {0};
        c.N = 5; c.a = attention_shape(3, 1, 6); c.cs = cs; c.sn = sn; c.positions = rope ? positions : NULL;
        c.outputs = 5 * 30;
        qk_norm_weight_backward_f64(dq, dk, c.weight, c.x, 1e-5f, cs, sn, c.positions, 5, c.a, no_scratch);
        snprintf(what, sizeof what, "q's norm, %s rope", rope ? "with" : "without");
        compare_weight_gradient(what, c.norm, 6, dq, 1, difference_float, f_rope, &c);
        compare_weight_gradient("  k's norm", c.norm2, 6, dk, 1, difference_float, f_rope, &c);
    }
    Weight embed = random_weight(11, 6, FORMAT_F32);
    int32_t ids[5] = {4, 10, 4, 0, 4};
    double dembed[66] = {0}, dhead[66] = {0}, dx[24], dscore[18] = {0};
    c.head = &embed; c.rows = ids; c.C = 6; c.outputs = 30;
    embedding_backward_f64(dembed, ids, c.weight, 1.5f, 5, 6, 11);
    compare_weight_gradient("embedding, an id three times", (float *)embed.data, 66, dembed, 1, difference_float,
                            f_embedding, &c);

    int32_t rows[3] = {0, 2, 3}, targets[3] = {3, 0, 10};
    float scales[3] = {2.5f, -0.5f, 0};
    RowLoss row_loss[3];
    c.rows = rows; c.targets = targets; c.row_scale = scales; c.M = 3; c.N = 4; c.V = 11;
    for (int i = 0; i < 66; i++) ((float *)embed.data)[i] = rintf(((float *)embed.data)[i] * 4096) / 4096;
    lm_head_loss_f64(NULL, dhead, row_loss, c.x, rows, targets, scales, &embed, 0.7f, 3, 4, 6, 11, no_scratch);
    compare_weight_gradient("lm_head_loss' head, a factor for every row", (float *)embed.data, 66, dhead,
                            (double)0.7f / 0.7, difference_fine, f_loss, &c);
    weight_free(&embed);

    c.V = 3; c.outputs = 9;
    score_backward_f64(dx, dscore, c.weight, c.x, rows, c.score, 3, 4, 3, 6);
    compare_gradient("score, a row without a label: x", c.x, 24, dx, f_score, &c);
    compare_gradient("  score", c.score, 18, dscore, f_score, &c);
    free(c.x); free(c.out); free(c.weight); free(c.score);
    shared_free(c.stat); shared_free(c.norm); shared_free(c.norm2);
    shared_free(angles); shared_free(cs); shared_free(sn);
}

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
        c.a = attention_shape(heads[i][0], heads[i][1], heads[i][2]); c.N = 8; c.S = 3; c.cu = cu;
        size_t P = (size_t)((c.a.H + 2 * c.a.KV) * c.a.D);
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
            qk_norm_rope_backward_f64(gradient, c.x, c.norm, c.norm2, 1e-5f, c.cs, c.sn, positions, 8, c.a);
            snprintf(what, sizeof what, "qk_norm_rope %s norm, %d heads on %d of %d", norm ? "with" : "without",
                     c.a.H, c.a.KV, c.a.D);
            compare_gradient(what, c.x, 8 * P, gradient, f_rope, &c);
            c.norm = keep; c.norm2 = keep2;
        }
        c.outputs = (size_t)(8 * c.a.H * c.a.D);
        f_attention(&c);
        attention_backward_f64(gradient, c.weight, c.out, c.stat, c.x, cu, 3, 8, c.a, no_scratch);
        snprintf(what, sizeof what, "attention, %d heads on %d of %d, lengths 1 5 2", c.a.H, c.a.KV, c.a.D);
        compare_gradient(what, c.x, 8 * P, gradient, f_attention, &c);
        free(c.x); shared_free(c.cs); shared_free(c.sn);
    }

    int ranks[][3] = {{1, 0, 3}, {8, 8, 8}, {0, 2, 0}};
    for (int i = 0; i < 3; i++) {
        for (int drop = 0; drop < 2; drop++) {
            Linear group[3] = {random_linear(9, 5, FORMAT_F32, true, 1), random_linear(9, 3, FORMAT_F32, false, 2),
                               random_linear(9, 4, FORMAT_F32, true, 3)};
            Lora lora[3];
            for (int j = 0; j < 3; j++) lora[j] = random_lora(&group[j], ranks[i][j]);
            int R = rank_width(ranks[i][0]) + rank_width(ranks[i][1]) + rank_width(ranks[i][2]);
            char what[96];
            c.N = 3; c.C = 9; c.group = group; c.lora = lora; c.count = 3; c.outputs = 36;
            memset(&c.key, 0, sizeof c.key);
            c.key.dropout = drop ? 0.4f : 0; c.key.seed = 9;
            c.x = doubles(27); c.residual = doubles((size_t)(3 * R)); gradient = (double *)realloc(gradient, 64 * sizeof(double)); c.out = (double *)realloc(c.out, 64 * sizeof(double));
            f_linear(&c);
            lora_zero(group, lora);
            linear_backward_f64(gradient, c.weight, c.residual, NULL, c.x, group, lora, 3, c.key, 3, no_scratch);
            snprintf(what, sizeof what, "linear dx, ranks %d %d %d, dropout %.1f", ranks[i][0], ranks[i][1], ranks[i][2], (double)c.key.dropout);
            compare_gradient(what, c.x, 27, gradient, f_linear, &c);
            double worst = 0, scale = 0;
            for (int j = 0; j < 3; j++) {
                for (int side = 0; side < 2; side++) {
                    float *p = side ? lora[j].B : lora[j].A, *d = side ? lora[j].dB : lora[j].dA;
                    for (int k = 0; k < lora[j].rank * (side ? group[j].out : 9); k++) {
                        double g = difference_float(&p[k], f_linear, &c);
                        worst = fmax(worst, isfinite(d[k]) ? fabs(g - (double)d[k]) : INFINITY);
                        scale = fmax(scale, fabs(g));
                    }
                }
            }
            check(scale > 0 && worst <= 1e-6 * scale, "finite differences: linear dA and dB, ranks %d %d %d, dropout %.1f, relative error %.1e", ranks[i][0], ranks[i][1], ranks[i][2], (double)c.key.dropout, worst / scale);
            for (int j = 0; j < 3; j++) linear_free(&group[j], &lora[j]);
            free(c.x); free(c.residual);
        }
    }
    Weight head = random_weight(11, 6, FORMAT_F32);
    int32_t rows[3] = {0, 2, 3}, targets[3] = {3, 0, 10};
    float scales[3] = {2.5f, -0.5f, 0};     /* of DPO's rows some are negative; 0: a row that must not move */
    RowLoss row_loss[3];
    c.head = &head; c.rows = rows; c.targets = targets; c.M = 3; c.N = 4; c.C = 6; c.V = 11;
    c.x = doubles(24);
    for (int i = 0; i < 24; i++) c.x[i] *= 4;
    for (int scaled = 0; scaled < 2; scaled++) {
        c.row_scale = scaled ? scales : NULL;
        lm_head_loss_f64(gradient, NULL, row_loss, c.x, rows, targets, c.row_scale, &head, 0.7f, 3, 4, 6, 11, no_scratch);
        for (int i = 0; i < 24; i++) gradient[i] *= 0.7 / (double)0.7f;
        compare_gradient(scaled ? "lm_head_loss, a factor for every row" : "lm_head_loss with a masked row", c.x, 24,
                         gradient, f_loss, &c);
    }
    weight_free(&head);
    free(c.x); free(c.out); free(c.weight); shared_free(c.norm); shared_free(c.norm2); shared_free(c.stat); free(gradient);
}

/* ---- 2. reference -> the ops ------------------------------------------------------------------------------------------------------------------- */

static void compare(const char *what, const float *got, const float *want, size_t count, double allowed) {
    shared_wait();
    double e = relative_error(got, want, count);
    check(e <= allowed, "%s: relative error %.1e, allowed %.1e", what, e, allowed);
}
static void compare_x(const char *what, const floatX *got, const float *want, size_t count, double allowed) {
    shared_wait();
    float *values = (float *)malloc((count + 1) * sizeof(float));
    for (size_t i = 0; i < count; i++) values[i] = (float)got[i];
    compare(what, values, want, count, allowed);
    free(values);
}
static void same_bits(const char *what, const floatX *a, const floatX *b, size_t count) {
    shared_wait();
    check(!memcmp((const void *)a, (const void *)b, count * sizeof(floatX)), "%s: the same bits", what);
}

static void test_rmsnorm(int N, int C) {
    char what[96];
    size_t count = (size_t)N * (size_t)C;
    float *x = random_floats(count, 2), *res = random_floats(count, 2), *w = random_floats((size_t)C, 1), *d = random_floats(count, 1);
    floatX *X = x_of(x, count), *RES = x_of(res, count), *D = x_of(d, count), *A = x_poisoned(count), *S = x_poisoned(count), *G = x_poisoned(count), *alias = x_poisoned(count);
    Scratch s = scratch_of(N, C, 0, 64, C);
    float *b = poisoned(count), *sum = poisoned(count), *ra = poisoned((size_t)N), *rb = poisoned((size_t)N), *g = poisoned(count);
    for (int residual = 0; residual < 2; residual++) {
        rmsnorm_forward(A, ra, residual ? S : NULL, X, residual ? RES : NULL, w, 1e-6f, N, C);
        shared_wait();
        if (residual) {
            compare_x("rmsnorm_forward: x + residual", S, (rmsnorm_forward_ref(b, rb, sum, x, res, w, 1e-6f, N, C), sum), count, x_bound(1, 1));
            for (size_t i = 0; i < count; i++) sum[i] = (float)S[i];          /* from here on both sides have the rounded sum */
        }
        rmsnorm_forward_ref(b, rb, NULL, residual ? sum : x, NULL, w, 1e-6f, N, C);
        snprintf(what, sizeof what, "rmsnorm_forward [%d,%d]%s", N, C, residual ? " + residual" : "");
        compare_x(what, A, b, count, x_bound(C, 1));
        compare("  rstd", ra, rb, (size_t)N, bound(C));
        rmsnorm_backward(G, residual ? RES : NULL, D, rb, residual ? S : X, w, N, C);
        rmsnorm_backward_ref(g, residual ? res : NULL, d, rb, residual ? sum : x, w, N, C);
        snprintf(what, sizeof what, "rmsnorm_backward [%d,%d]%s", N, C, residual ? " + residual" : "");
        compare_x(what, G, g, count, x_bound(C, 1));
        float *dw = random_floats((size_t)C, 1), *want = copied(dw, (size_t)C);
        rmsnorm_weight_backward(dw, D, rb, residual ? S : X, 1.75f, N, C, s);
        rmsnorm_weight_backward_ref(want, d, rb, residual ? sum : x, 1.75f, N, C, s);
        compare("  rmsnorm_weight_backward", dw, want, (size_t)C, bound(N));
        shared_free(dw); shared_free(want);
        if (!residual) continue;
        memcpy((void *)alias, (const void *)RES, count * sizeof(floatX));
        rmsnorm_backward(alias, alias, D, rb, S, w, N, C);
        same_bits("  dx in the place of dresidual", alias, G, count);
        memcpy((void *)alias, (const void *)RES, count * sizeof(floatX));
        rmsnorm_forward(A, ra, alias, X, alias, w, 1e-6f, N, C);
        same_bits("  sum in the place of residual", alias, S, count);
    }
    shared_free(x); shared_free(res); shared_free(w); shared_free(d); shared_free(X); shared_free(RES); shared_free(D); shared_free(A); shared_free(S); shared_free(G); shared_free(alias);
    shared_free(b); shared_free(sum); shared_free(ra); shared_free(rb); shared_free(g); shared_free(s.base);
}

static void test_swiglu(int N, int F) {
    char what[96];
    size_t count = (size_t)N * (size_t)F;
    float *x = random_floats(2 * count, 6), *d = random_floats(count, 1), *b = poisoned(count), *db = poisoned(2 * count);
    x[0] = 100; x[1 % F] = F > 1 ? -100 : x[0];
    floatX *X = x_of(x, 2 * count), *D = x_of(d, count), *A = x_poisoned(count), *G = x_poisoned(2 * count);
    swiglu_forward(A, X, N, F);
    swiglu_forward_ref(b, x, N, F);
    swiglu_backward(G, D, X, N, F);
    swiglu_backward_ref(db, d, x, N, F);
    snprintf(what, sizeof what, "swiglu [%d,%d], forward", N, F);
    compare_x(what, A, b, count, x_bound(1, 1));
    compare_x("  backward", G, db, 2 * count, x_bound(1, 1));
    swiglu_backward(X, D, X, N, F);
    same_bits("  d_gate_up in the place of gate_up", X, G, 2 * count);
    shared_free(x); shared_free(d); shared_free(b); shared_free(db); shared_free(X); shared_free(D); shared_free(A); shared_free(G);
}

/* The masks that a backend keeps say the same as dropout_keep, and nothing beyond x's columns. */
static void test_kept(const uint8_t *kept, const Linear *group, const Lora *lora, int count, DropoutKey key, int N) {
#ifdef LORA_CUDA
    int wrong = 0;
    shared_wait();
    for (int j = 0; j < count; kept += kept_bytes(&group[j], &lora[j], 1, N), j++) {
        int I = group[j].in, width = (int)kept_width(I);
        if (lora[j].rank)
            for (int n = 0; n < N; n++)
                for (int i = 0; i < 8 * width; i++) {
                    bool due = i < I && dropout_keep(key, group[j].dropout_id, (uint64_t)n * (uint64_t)I + (uint64_t)i);
                    wrong += (kept[n * width + i / 8] >> i % 8 & 1) != due;
                }
    }
    check(wrong == 0, "  masks, bit for bit: %d wrong", wrong);
#else
    (void)kept; (void)key;
    check(kept_bytes(group, lora, count, N) == 0, "  no masks are kept");
#endif
}

typedef struct LinearCase { int N, I, outs[3], ranks[3], count; float dropout; bool adapter, quick; } LinearCase;
static void test_linear(LinearCase k, FormatId format) {
    char what[160];
    Linear group[3];
    Lora lora[3], same[3];
    int N = k.N, I = k.I, count = k.count, O = 0, R = 0, rank = 0, widest = I;
    for (int j = 0; j < count; j++) {
        group[j] = random_linear(I, k.outs[j], format, j != 1, (uint32_t)j + 5);
        lora[j] = same[j] = random_lora(&group[j], k.ranks[j]);
        same[j].dA = copied(lora[j].dA, (size_t)(k.ranks[j] * I));
        same[j].dB = copied(lora[j].dB, (size_t)(k.ranks[j] * k.outs[j]));
        O += k.outs[j]; R += rank_width(k.ranks[j]);
        if (k.ranks[j] > rank) rank = k.ranks[j];
    }
    if (O > widest) widest = O;
    DropoutKey key;
    memset(&key, 0, sizeof key);
    const Lora *on = k.adapter ? lora : NULL, *on_ref = k.adapter ? same : NULL;
    key.dropout = k.dropout; key.seed = 77; key.step = 3; key.micro_batch = 1;
    Scratch s = scratch_of(N, widest, R, 64, 64);
    size_t ny = (size_t)N * (size_t)O, nt = (size_t)N * (size_t)R, nx = (size_t)N * (size_t)I;
    float *x = random_floats(nx, 1), *dy = random_floats(ny, 1), *y = poisoned(ny), *t = poisoned(nt), *dx = poisoned(nx);
    floatX *X = x_of(x, nx), *DY = x_of(dy, ny), *Y = x_poisoned(ny), *T = x_poisoned(nt), *DX = x_poisoned(nx);
    uint8_t *kept = (uint8_t *)shared_alloc(kept_bytes(group, lora, count, N));
    memset(kept, 0xa5, kept_bytes(group, lora, count, N));
    linear_forward(Y, T, kept, X, group, on, count, key, N, s);
    linear_forward_ref(y, t, NULL, x, group, on_ref, count, key, N, s);
    snprintf(what, sizeof what, "linear_forward N=%d I=%d O=%d R=%d %s dropout %.1f%s", N, I, O, R,
             weight_format[format].name, (double)k.dropout, k.adapter ? "" : ", adapter off");
    compare_x(what, Y, y, ny, x_bound(I + rank, 5));                          /* dropped x, A, t, sB, y */
    /* t: dropped x, A, t. One number alone may by chance be far smaller than sums of its length are: a quarter of the standard deviation is still allowed for. */
    if (R && k.adapter) compare_x("  t", T, t, nt, (N * rank < 8 ? 4 : 1) * x_bound(I, 3));
    if (k.adapter && k.dropout > 0) test_kept(kept, group, lora, count, key, N);
    shared_free(T);
    T = x_of(t, nt);                        /* the same t for both backward passes */
    linear_backward(DX, DY, T, kept, X, group, on, count, key, N, s);
    linear_backward_ref(dx, dy, t, NULL, x, group, on_ref, count, key, N, s);
    compare_x("  dx", DX, dx, nx, x_bound(O + R, 4));                         /* sB, dt, A, dx */
    for (int j = 0; j < count; j++) {
        if (!k.ranks[j]) continue;
        compare("  dA", lora[j].dA, same[j].dA, (size_t)(k.ranks[j] * I), x_bound(N + k.outs[j], 3));       /* sB, dt, dropped x */
        compare("  dB", lora[j].dB, same[j].dB, (size_t)(k.ranks[j] * k.outs[j]), x_bound(N, 0));
    }
    if (count == 1 && R && k.adapter) {     /* dx NULL: the same adapter gradients, added once more */
        float *twice = copied(lora[0].dA, (size_t)(k.ranks[0] * I));
        linear_backward(NULL, DY, T, kept, X, group, on, count, key, N, s);
        linear_backward_ref(NULL, dy, t, NULL, x, group, on_ref, count, key, N, s);
        compare("  dx NULL, dA", lora[0].dA, same[0].dA, (size_t)(k.ranks[0] * I), x_bound(N + k.outs[0], 3));
        check(memcmp(twice, lora[0].dA, (size_t)(k.ranks[0] * I) * sizeof(float)) != 0, "  dA is added to, not overwritten");
        shared_free(twice);
    }
    for (int j = 0; j < count; j++) { linear_free(&group[j], &lora[j]); shared_free(same[j].dA); shared_free(same[j].dB); }
    shared_free(x); shared_free(dy); shared_free(y); shared_free(t); shared_free(dx); shared_free(X); shared_free(DY); shared_free(Y); shared_free(T); shared_free(DX); shared_free(s.base);
    shared_free(kept);
}

/* dy: O columns of rows that are `more` wider; what is beside them must not be read. */
static void test_linear_weight(int N, int I, int O, int more) {
    char what[96];
    int stride = O + more;
    size_t count = (size_t)N * (size_t)stride, nx = (size_t)N * (size_t)I, nw = (size_t)O * (size_t)I;
    float *dy = random_floats(count, 1), *x = random_floats(nx, 1);
    float *dW = random_floats(nw, 1), *want = copied(dW, nw), *dbias = random_floats((size_t)O, 1);
    float *want_bias = copied(dbias, (size_t)O), *twice = copied(dW, nw), *bias_twice = copied(dbias, (size_t)O);
    for (size_t i = 0; i < count; i++) if (i % (size_t)stride >= (size_t)O) dy[i] = NAN;
    floatX *DY = x_of(dy, count), *X = x_of(x, nx);
    Scratch s = scratch_of(N, O > I ? O : I, 0, 64, 64);
    linear_weight_backward(dW, dbias, DY, stride, X, N, I, O, s);
    linear_weight_backward_ref(want, want_bias, dy, stride, x, N, I, O, s);
    snprintf(what, sizeof what, "linear_weight_backward N=%d I=%d O=%d of %d: dW", N, I, O, stride);
    compare(what, dW, want, nw, bound(N));
    compare("  dbias", dbias, want_bias, (size_t)O, bound(N));
    linear_weight_backward(twice, NULL, DY, stride, X, N, I, O, s);
    linear_weight_backward(NULL, bias_twice, DY, stride, X, N, I, O, s);
    shared_wait();
    check(!memcmp(twice, dW, nw * sizeof *dW), "  dbias NULL: the same dW, bit for bit");
    check(!memcmp(bias_twice, dbias, (size_t)O * sizeof *dbias), "  dW NULL: the same dbias, bit for bit");
    shared_free(bias_twice);
    shared_free(dy); shared_free(x); shared_free(dW); shared_free(want); shared_free(dbias); shared_free(want_bias);
    shared_free(twice); shared_free(DY); shared_free(X); shared_free(s.base);
}

#ifdef LORA_CUDA
/* The fast product against the plain one, y and dx of one projection with the ranks as more depth. */
static void test_gemm(int M, int N, int K, int R) {
    for (int transposed = 0; transposed < 2; transposed++) {
        size_t count = (size_t)M * (size_t)N, nx = (size_t)M * (size_t)K, nw = (size_t)N * (size_t)K;
        size_t nt = (size_t)M * (size_t)R, nu = (size_t)N * (size_t)R;
        float *host[4] = {random_floats(nx, 1), random_floats(nw, 1), random_floats(nt, 1), random_floats(nu, 1)};
        floatX *x = x_of(host[0], nx), *w = x_of(host[1], nw), *t = x_of(host[2], nt), *up = x_of(host[3], nu);
        floatX *fast = x_poisoned(count), *plain = x_poisoned(count);
        float *bias = transposed ? NULL : random_floats((size_t)N, 1), *want = (float *)shared_alloc(count * sizeof(float));
        Group g;
        memset(&g, 0, sizeof g);
        g.count = 1; g.rows = M; g.stride = N;
        g.part[0].x = matrix(x, (size_t)K, M, K);
        g.part[0].w = transposed ? matrix(w, (size_t)N, K, N) : matrix(w, (size_t)K, N, K);
        g.part[0].t = matrix(t, (size_t)R, M, R);
        g.part[0].up = transposed ? matrix(up, (size_t)N, R, N) : matrix(up, (size_t)R, N, R);
        g.part[0].bias = bias;
        g.part[0].rank = R;
        g.part[0].columns = N;
        if (transposed) gemm_backward(fast, g, NULL, 0, N);
        else gemm_forward(fast, g, N);
        dim3 grid(div_up(N, 128), M);
        LAUNCH(gemm_plain_kernel, grid, 128, 0, plain, x, w, t, up, bias, N, K, R, transposed);
        shared_wait();
        for (size_t i = 0; i < count; i++) want[i] = (float)plain[i];
        char what[96];
        snprintf(what, sizeof what, "gemm [%d x %d x %d + %d]%s against the plain one", M, N, K, R,
                 transposed ? ", transposed" : "");
        compare_x(what, fast, want, count, x_bound(K + R, 2));
        for (int i = 0; i < 4; i++) shared_free(host[i]);
        shared_free(x); shared_free(w); shared_free(t); shared_free(up);
        shared_free(fast); shared_free(plain); shared_free(bias); shared_free(want);
    }
}
#endif

typedef struct AttentionCase { int lengths[4], S, H, KV, D; float size; } AttentionCase;
static void test_attention(AttentionCase k) {
    int32_t cu_host[8] = {0};
    int S = k.S, H = k.H, KV = k.KV, D = k.D;
    for (int s = 0; s < S; s++) cu_host[s + 1] = cu_host[s] + k.lengths[s];
    int N = cu_host[S], P = (H + 2 * KV) * D, half = D / 2;
    char what[128];
    int32_t *cu = integers(cu_host, 8), *positions = (int32_t *)shared_alloc((size_t)N * sizeof *positions);
    for (int s = 0; s < S; s++) for (int n = cu[s]; n < cu[s + 1]; n++) positions[n] = n - cu[s];
    size_t nq = (size_t)N * (size_t)P, no = (size_t)N * (size_t)(H * D);
    float *qkv = random_floats(nq, k.size), *dout = random_floats(no, 1), *b = poisoned(nq), *la = poisoned((size_t)(N * H)), *lb = poisoned((size_t)(N * H)), *db = poisoned(nq);
    float *cs = random_floats((size_t)(N * half), 1), *sn = random_floats((size_t)(N * half), 1), *qw = random_floats((size_t)D, 1), *kw = random_floats((size_t)D, 1);
    floatX *QKV = x_of(qkv, nq), *DOUT = x_of(dout, no), *A = x_poisoned(nq), *G = x_poisoned(nq);
    ModelConfig config;
    memset(&config, 0, sizeof config);
    config.head_dim = D; config.rope_theta = 10000;
    rope_tables(cs, sn, &config, N);
    Scratch s = scratch_of(N, P, 0, 64, 64);
    AttentionShape shape = attention_shape(H, KV, D);
    attention_forward(A, la, QKV, cu, S, N, shape, s);
    attention_forward_ref(b, lb, qkv, cu, S, N, shape, s);
    snprintf(what, sizeof what, "attention_forward %d sequences, %d tokens, %d heads on %d of %d, size %g", S, N, H, KV, D, (double)k.size);
    /* the scores' rounding error is epsilon * |score|, and the softmax passes it on */
    int length = (int)((1 + k.size * k.size) * (1 + k.size * k.size) * (float)(D + N));
    compare_x(what, A, b, no, x_bound(length, 2));                            /* p, out */
    compare("  lse", la, lb, (size_t)(N * H), bound(length));
    floatX *OUT = x_of(b, no);              /* the same saved output for both */
    float *dout_p = random_floats(nq, 1);
    floatX *DOUT_P = x_of(dout_p, nq);
    attention_backward(G, DOUT, OUT, lb, QKV, cu, S, N, shape, s);
    attention_backward_ref(db, dout, b, lb, qkv, cu, S, N, shape, s);
    compare_x("  backward", G, db, nq, x_bound(length, 3));                   /* p, ds, dqkv */
    for (int variant = 0; variant < 3; variant++) {
        bool norm = variant == 1, still = variant == 2;
        const int32_t *at = still ? NULL : positions;
        float *want = copied(db, nq);
        memset((void *)A, 0xff, nq * sizeof(floatX));
        qk_norm_rope_forward(A, QKV, norm ? qw : NULL, norm ? kw : NULL, 1e-6f, cs, sn, at, N, shape);
        qk_norm_rope_forward_ref(b, qkv, norm ? qw : NULL, norm ? kw : NULL, 1e-6f, cs, sn, at, N, shape);
        compare_x(norm ? "  qk_norm_rope_forward with norm" : still ? "  qk_norm_rope_forward without positions" :
                  "  qk_norm_rope_forward without norm", A, b, nq, x_bound(D, 1));
        shared_free(G);
        G = x_of(want, nq);
        qk_norm_rope_backward(G, QKV, norm ? qw : NULL, norm ? kw : NULL, 1e-6f, cs, sn, at, N, shape);
        qk_norm_rope_backward_ref(want, qkv, norm ? qw : NULL, norm ? kw : NULL, 1e-6f, cs, sn, at, N, shape);
        compare_x("  qk_norm_rope_backward", G, want, nq, x_bound(D, 1));
        shared_free(want);
        if (variant == 0) continue;         /* without norm there is no weight */
        float *dw = random_floats((size_t)(2 * D), 1), *dw_ref = copied(dw, (size_t)(2 * D));
        float *alone = copied(dw, (size_t)(2 * D));
        qk_norm_weight_backward(dw, dw + D, DOUT_P, QKV, 1e-6f, cs, sn, at, N, shape, s);
        qk_norm_weight_backward_ref(dw_ref, dw_ref + D, dout_p, qkv, 1e-6f, cs, sn, at, N, shape, s);
        compare(still ? "  qk_norm_weight_backward without positions: q" : "  qk_norm_weight_backward: q", dw, dw_ref,
                (size_t)D, bound(N * H + D));
        compare("    k", dw + D, dw_ref + D, (size_t)D, bound(N * KV + D));
        qk_norm_weight_backward(alone, NULL, DOUT_P, QKV, 1e-6f, cs, sn, at, N, shape, s);
        qk_norm_weight_backward(NULL, alone + D, DOUT_P, QKV, 1e-6f, cs, sn, at, N, shape, s);
        shared_wait();
        check(!memcmp(alone, dw, (size_t)(2 * D) * sizeof *dw), "    each alone: the same, bit for bit");
        shared_free(alone);
        shared_free(dw); shared_free(dw_ref);
    }
    shared_free(dout_p); shared_free(DOUT_P);
    shared_free(cu); shared_free(positions); shared_free(qkv); shared_free(dout); shared_free(b); shared_free(la); shared_free(lb); shared_free(db); shared_free(cs); shared_free(sn); shared_free(qw); shared_free(kw);
    shared_free(QKV); shared_free(DOUT); shared_free(A); shared_free(G); shared_free(OUT); shared_free(s.base);
}

/* A cache of three places, two of them in use, each N tokens' newest at its own position; the `spare` rows and more that lie behind it are poisoned. */
static void test_decode(int H, int KV, int D, int first, int second, int spare, float size) {
    enum { SLOTS = 3 };
    int capacity = (first > second ? first : second) + 1 + spare, N = 2, P = (H + 2 * KV) * D;
    char what[128];
    int32_t place_host[2] = {2, 0}, position_host[2] = {first, second};
    int32_t *place = integers(place_host, 2), *positions = integers(position_host, 2);
    size_t count = (size_t)SLOTS * 2 * (size_t)(KV * capacity * D), block = (size_t)(capacity * D);
    float *cache = random_floats(count, size), *qkv = random_floats((size_t)(N * P), size), *want = poisoned((size_t)(N * H * D));
    floatX *QKV = x_of(qkv, (size_t)(N * P)), *CACHE = x_of(cache, count), *OUT = x_poisoned((size_t)(N * H * D));
    for (int s = 0; s < SLOTS; s++)
        for (int part = 0; part < 2 * KV; part++) {
            int from = s == 2 ? first : s == 0 ? second : 0;
            size_t at = (size_t)(s * 2 * KV + part) * block + (size_t)(from * D), n = block - (size_t)(from * D);
            memset((void *)(CACHE + at), 0xff, n * sizeof(floatX));
            memset(cache + at, 0xff, n * sizeof(float));
        }
    AttentionShape shape = attention_shape(H, KV, D);
    cache_store(CACHE, QKV, place, positions, capacity, N, shape);
    cache_store_ref(cache, qkv, place, positions, capacity, N, shape);
    attention_decode(OUT, QKV, CACHE, place, positions, capacity, N, shape);
    attention_decode_ref(want, qkv, cache, place, positions, capacity, N, shape);
    snprintf(what, sizeof what, "attention_decode %d and %d keys, %d heads on %d of %d, size %g", first + 1, second + 1, H, KV, D, (double)size);
    int length = (int)((1 + size * size) * (1 + size * size) * (float)(D + capacity));
    compare_x(what, OUT, want, (size_t)(N * H * D), x_bound(length, 1));
    size_t stored = 0, other = 0;           /* exactly one row of every head of the two places was written */
    for (size_t i = 0; i < count; i++) { floatX x = CACHE[i]; uint8_t ff[sizeof x]; memset(ff, 0xff, sizeof x); bool poison = !memcmp(&x, ff, sizeof x), poison_ref = isnan(cache[i]); stored += !poison; other += poison != poison_ref; }
    check(!other && stored == (size_t)(2 * KV * D) * (size_t)(first + second + 2), "  cache_store wrote one row a head");
    shared_free(place); shared_free(positions); shared_free(cache); shared_free(qkv); shared_free(want); shared_free(QKV); shared_free(CACHE); shared_free(OUT);
}

/* The labelled rows of targets[N], -100: none, as an op wants them. */
typedef struct Labelled { int32_t *rows, *targets; int M; } Labelled;
static Labelled labelled_of(const int32_t *targets, int N) {
    Labelled l = {(int32_t *)shared_alloc((size_t)N * 4), (int32_t *)shared_alloc((size_t)N * 4), 0};
    for (int n = 0; n < N; n++)
        if (targets[n] != -100) { l.rows[l.M] = n; l.targets[l.M++] = targets[n]; }
    return l;
}
static RowLoss *row_loss_poisoned(int M) {
    RowLoss *p = (RowLoss *)shared_alloc((size_t)M * sizeof *p);
    memset(p, 0xff, (size_t)M * sizeof *p);
    return p;
}
/* The rows' losses as floats, after the op is done. */
static float *losses_of(const RowLoss *row, int M) {
    float *p = (float *)shared_alloc((size_t)M * sizeof *p);
    shared_wait();
    for (int i = 0; i < M; i++) p[i] = (float)row[i].loss;
    return p;
}

static void test_head(int N, int C, int V, FormatId format, int masked, bool scaled, float size) {
    char what[160];
    Weight head = random_weight(V, C, format);
    size_t count = (size_t)N * (size_t)C;
    float *x = random_floats(count, size), *b = poisoned(count), *za = poisoned((size_t)N * (size_t)V), *zb = poisoned((size_t)N * (size_t)V);
    floatX *X = x_of(x, count), *A = x_poisoned(count);
    int32_t *targets = (int32_t *)malloc((size_t)N * sizeof *targets);
    for (int n = 0; n < N; n++) targets[n] = masked == 2 || (masked == 1 && n % 3) ? -100 : (int32_t)((n * 7919) % V);
    Labelled l = labelled_of(targets, N);
    int M = l.M;
    RowLoss *ra = row_loss_poisoned(M), *rb = row_loss_poisoned(M);
    float *scale = scaled ? random_floats((size_t)M, 2) : NULL;
    if (scaled) scale[M / 2] = 0;
    Scratch s = scratch_of(N, 2 * C, 1, V, C);
#ifdef EMULATED
    int64_t copies = emulator_copies;
#endif
    size_t nw = (size_t)V * (size_t)C;
    float *dhead = random_floats(nw, 1e-3f), *want = copied(dhead, nw), *alone = copied(dhead, nw);
    lm_head_loss(A, dhead, ra, X, l.rows, l.targets, scale, &head, 0.01f, M, N, C, V, s);
#ifdef EMULATED
    check(emulator_copies == copies, "lm_head_loss copies nothing to the card and nothing from it");
#endif
    lm_head_loss_ref(b, want, rb, x, l.rows, l.targets, scale, &head, 0.01f, M, N, C, V, s);
    float *la = losses_of(ra, M), *lb = losses_of(rb, M);
    LossStats p = model_loss_sums(ra, M), q = model_loss_sums(rb, M);
    lm_head_logits(za, X, &head, N, C, V, s);
    lm_head_logits_ref(zb, x, &head, N, C, V, s);
    double largest = 1;                     /* a logit rounded to floatX is off by half a step of its own size, and so are the loss and p */
    for (size_t i = 0; i < (size_t)N * (size_t)V; i++) largest = fmax(largest, fabs((double)zb[i]));
    snprintf(what, sizeof what, "lm_head_loss N=%d C=%d V=%d %s, %s%s, size %g: dx", N, C, V,
             weight_format[format].name, masked == 2 ? "all masked" : masked ? "two thirds masked" : "none masked",
             scaled ? ", a factor for every row" : "", (double)size);
    int length = (int)((1 + size) * (1 + size) * (float)(C + V));
    double allowed = bound(length) + largest * x_epsilon();                   /* target's logit and the others': twice half a step */
    if (masked == 2) check(p.tokens == 0 && p.loss_sum == 0, "%s: no tokens, no loss", what);
    compare_x(masked == 2 ? "  dx is zero" : what, A, b, count, masked == 2 ? 0 : allowed + 2 * x_epsilon());
    check(p.tokens == q.tokens && (sizeof(floatX) < 4 || p.correct == q.correct) && fabs(p.loss_sum - q.loss_sum) <= allowed * fmax(1, q.loss_sum) &&
          fabs(p.entropy_sum - q.entropy_sum) <= allowed * fmax(1, (double)q.tokens * log((double)V)),
          "  loss %.6f (%.6f), entropy %.6f (%.6f), %d of %d correct", p.loss_sum, q.loss_sum, p.entropy_sum, q.entropy_sum, (int)p.correct, (int)p.tokens);
    compare("  row_loss", la, lb, (size_t)M, allowed);
    compare("  dhead", dhead, want, nw, masked == 2 ? 0 : allowed + bound(M) + 2 * x_epsilon());
    lm_head_loss(NULL, alone, rb, X, l.rows, l.targets, scale, &head, 0.01f, M, N, C, V, s);
    shared_wait();
    check(!memcmp(dhead, alone, nw * sizeof *dhead), "  dx NULL: the same dhead, bit for bit");
    shared_free(dhead); shared_free(want); shared_free(alone);
    lm_head_loss(NULL, NULL, rb, X, l.rows, l.targets, NULL, &head, 0, M, N, C, V, s);
    shared_wait();
    check(!memcmp(ra, rb, (size_t)M * sizeof *ra), "  dx NULL: the same rows' losses, bit for bit");
    compare("  lm_head_logits", za, zb, (size_t)N * (size_t)V, x_bound(C, 1));
    weight_free(&head);
    shared_free(x); shared_free(b); shared_free(la); shared_free(lb); shared_free(za); shared_free(zb); shared_free(X); shared_free(A); shared_free(s.base);
    shared_free(l.rows); shared_free(l.targets); shared_free(ra); shared_free(rb); shared_free(scale); free(targets);
}

static void test_embedding(FormatId format) {
    Weight w = random_weight(19, 13, format);
    const int32_t host_ids[7] = {0, 18, 3, 3, 7, 1, 18};
    int32_t *ids = integers(host_ids, 7);
    floatX *A = x_poisoned(91);
    float *b = poisoned(91);
    const float scale[] = {1, 12 / 0.22f};
    for (int i = 0; i < 2; i++) {
        embedding_forward(A, ids, &w, scale[i], 7, 13);
        embedding_forward_ref(b, ids, &w, scale[i], 7, 13);
        char what[64];
        snprintf(what, sizeof what, "embedding_forward %s times %g", weight_format[format].name, (double)scale[i]);
        compare_x(what, A, b, 91, i ? x_bound(1, 1) : 0);                     /* times 1: exact */
    }
    shared_free(A); shared_free(b); shared_free(ids);
    weight_free(&w);
}

static void test_embedding_backward(int N, int C, int V) {
    char what[96];
    size_t count = (size_t)N * (size_t)C, nw = (size_t)V * (size_t)C;
    int32_t *ids = (int32_t *)shared_alloc((size_t)N * sizeof *ids);
    for (int n = 0; n < N; n++) ids[n] = n % 3 ? (int32_t)((n * 7919) % V) : V - 1;
    float *dx = random_floats(count, 1), *dembed = random_floats(nw, 1), *want = copied(dembed, nw);
    floatX *DX = x_of(dx, count);
    embedding_backward(dembed, ids, DX, 1.5f, N, C, V);
    embedding_backward_ref(want, ids, dx, 1.5f, N, C, V);
    snprintf(what, sizeof what, "embedding_backward N=%d C=%d V=%d, an id %d times", N, C, V, (N + 2) / 3);
    compare(what, dembed, want, nw, bound(N));
    shared_free(ids); shared_free(dx); shared_free(dembed); shared_free(want); shared_free(DX);
}

static void test_score(int M, int N, int K, int C) {
    char what[96];
    size_t count = (size_t)N * (size_t)C, nw = (size_t)K * (size_t)C, nz = (size_t)M * (size_t)K;
    int32_t *rows = (int32_t *)shared_alloc((size_t)M * sizeof *rows);
    for (int i = 0; i < M; i++) rows[i] = N - 1 - (M - 1 - i) * (N / M);
    float *x = random_floats(count, 1), *score = random_floats(nw, 1), *dz = random_floats(nz, 1);
    float *z = poisoned(nz), *z_ref = poisoned(nz), *dx = poisoned(count), *dscore = random_floats(nw, 1);
    float *want = copied(dscore, nw), *alone = copied(dscore, nw);
    floatX *X = x_of(x, count), *DX = x_poisoned(count), *DX2 = x_poisoned(count);
    score_forward(z, X, rows, score, M, K, C);
    score_forward_ref(z_ref, x, rows, score, M, K, C);
    snprintf(what, sizeof what, "score_forward M=%d of N=%d, K=%d C=%d", M, N, K, C);
    compare(what, z, z_ref, nz, bound(C));
    score_backward(DX, dscore, dz, X, rows, score, M, N, K, C);
    score_backward_ref(dx, want, dz, x, rows, score, M, N, K, C);
    compare_x("  score_backward: dx", DX, dx, count, x_bound(K, 1));
    compare("  dscore", dscore, want, nw, bound(M));
    score_backward(NULL, alone, dz, X, rows, score, M, N, K, C);
    score_backward(DX2, NULL, dz, X, rows, score, M, N, K, C);
    same_bits("  dscore NULL", DX2, DX, count);
    check(!memcmp(alone, dscore, nw * sizeof *alone), "  dx NULL: the same bits");
    shared_free(rows); shared_free(x); shared_free(score); shared_free(dz); shared_free(z); shared_free(z_ref);
    shared_free(dx); shared_free(dscore); shared_free(want); shared_free(alone);
    shared_free(X); shared_free(DX); shared_free(DX2);
}

/* The copy that ops read of a trained weight is what weight_pack makes of the file that its values would be saved
   in. */
static void test_weight_set(int rows, int cols, FormatId format) {
    char what[96];
    size_t count = (size_t)rows * (size_t)cols, bytes = format_bytes(format, count);
    float *values = random_floats(count, 1), *out = poisoned(count), *want = poisoned(count);
    for (size_t i = 0; i < count; i++) {
        if (i % 5 == 0) values[i] *= 0x1p-20f;                                /* subnormal in F16 */
        if (i % 7 == 0) values[i] = 1 + (float)(i % 64) * 0x1p-11f;           /* halfway in F16 and, of 2^-8, in BF16 */
    }
    Weight file = {shared_alloc(bytes), NULL, format, rows, cols}, w = file;
    size_t packed = weight_packed_bytes(&w);
    weight_set_ref(&file, values);
    weight_pack(&file, shared_alloc(packed));
    w.data = shared_alloc(bytes);
    for (int which = 1; which <= 3; which++) {      /* data, packed, both */
        void *data = (void *)w.data;
        w.packed = shared_alloc(packed);
        memset(data, 0xff, bytes);
        memset(w.packed, 0xff, packed);
        Weight part = w;
        if (!(which & 1)) part.data = NULL;
        if (!(which & 2)) part.packed = NULL;
        weight_set(&part, values);
        shared_wait();
        bool ok = (!(which & 1) || !memcmp(data, file.data, bytes)) &&
                  (!(which & 2) || !memcmp(w.packed, file.packed, packed));
        snprintf(what, sizeof what, "weight_set [%d,%d] %s, %s", rows, cols, weight_format[format].name,
                 which == 1 ? "as in the file" : which == 2 ? "packed" : "both");
        check(ok, "%s: the bits of a file with these values", what);
        shared_free(w.packed);
    }
    vector_set(out, values, count, format, 0.3f);
    vector_set_ref(want, values, count, format, 0.3f);
    shared_wait();
    check(!memcmp(out, want, count * sizeof *out), "  vector_set, times 0.3: the bits of the reference");
    shared_free(values); shared_free(out); shared_free(want);
    shared_free(file.data); shared_free(file.packed); shared_free(w.data);
}

#ifdef EMULATED
/* What would go wrong on a card, or might, must not get past the emulator: a child does it, and must not come to its end. */
#include <sys/wait.h>
__global__ void read_kernel(float *to, const float *from, int at) { if (threadIdx.x == 0) to[0] = from[at]; }
__global__ void shuffles_part_kernel(float *to) {
    float v = to[threadIdx.x];
    to[threadIdx.x] = threadIdx.x % 8 < 4 ? warp_sum(v) + 1 : warp_sum(v);
}
__global__ void barriers_part_kernel(float *to) {
    if (threadIdx.x < WARP) { __syncthreads(); to[threadIdx.x] = 1; }
    else { __syncthreads(); to[threadIdx.x] = 2; }
}
typedef struct Offence { const char *what; void (*commit)(float *card, float *managed, float *host); } Offence;
static const Offence offences[] = {
    {"nothing", [](float *card, float *managed, float *) { LAUNCH(read_kernel, 1, 32, 0, managed, card, 63); }},
    {"the host reads device memory", [](float *card, float *, float *host) { host[0] = *(volatile float *)card; }},
    {"the host writes device memory", [](float *card, float *, float *) { *(volatile float *)card = 1; }},
    {"an argument of a launch reads device memory",
     [](float *card, float *managed, float *) { LAUNCH(read_kernel, 1, 32, 0, managed, card, (int)*(volatile float *)card); }},
    {"a kernel is given host memory", [](float *card, float *, float *host) { LAUNCH(read_kernel, 1, 32, 0, card, host, 0); }},
    {"a kernel reads behind an allocation",
     [](float *card, float *managed, float *) { LAUNCH(read_kernel, 1, 32, 0, managed, card, 64); }},
    {"a kernel reads what was freed",
     [](float *card, float *managed, float *) {
         float *gone;
         CUDA_CHECK(cudaMalloc((void **)&gone, 256));
         float *inside[] = {gone};          /* not an argument of its own: only the access can tell */
         CUDA_CHECK(cudaFree(gone));
         LAUNCH(read_kernel, 1, 32, 0, managed, card, (int)(inside[0] - card));
     }},
    {"a copy to the host's memory says to the device",
     [](float *card, float *, float *host) { cudaMemcpy(host, card, 4, cudaMemcpyHostToDevice); }},
    {"a copy from the host's memory says from the device",
     [](float *card, float *, float *host) { cudaMemcpy(card, host, 4, cudaMemcpyDeviceToDevice); }},
    {"the host's memory is set", [](float *, float *, float *host) { cudaMemset(host, 0, 4); }},
    {"a warp shuffles on both sides of a branch",
     [](float *, float *managed, float *) { LAUNCH(shuffles_part_kernel, 1, 32, 0, managed); }},
    {"warps wait at two barriers", [](float *, float *managed, float *) { LAUNCH(barriers_part_kernel, 1, 64, 0, managed); }}};

static void test_offences(void) {
    for (size_t i = 0; i < sizeof offences / sizeof *offences; i++) {
        int status = 0;
        fflush(stdout);
        pid_t child = fork();
        if (child == 0) {
            float *card, *managed = random_floats(64, 1), host[64] = {0};
            if (!freopen("/dev/null", "w", stderr)) _exit(0);
            CUDA_CHECK(cudaMalloc((void **)&card, 64 * sizeof(float)));
            offences[i].commit(card, managed, host);
            _exit(0);
        }
        bool ended = child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
        check(ended == (i == 0), "emulator: %s: %s", offences[i].what, ended ? "goes on" : "is stopped");
    }
}
#endif

#ifdef LORA_CUDA
/* mma_fp32 is emulated by its meaning; on a card it is mma_fp32_shuffled, whose shuffles are checked here. One warp, c [16,8] = a [16,16] b [16,8]. */
__global__ void shuffled_product_kernel(float *c, const float *a, const float *b) {
    int g = threadIdx.x / 4, t = threadIdx.x % 4 * 2;
    float fa[8], fb[4], fc[4] = {0, 0, 0, 0};
    for (int i = 0; i < 8; i++) fa[i] = a[(g + i / 2 % 2 * 8) * 16 + t + i / 4 * 8 + i % 2];
    for (int i = 0; i < 4; i++) fb[i] = b[(t + i / 2 * 8 + i % 2) * 8 + g];
    mma_fp32_shuffled(fc, fa, fb);
    for (int i = 0; i < 4; i++) c[(g + i / 2 * 8) * 8 + t + i % 2] = fc[i];
}
static void test_shuffled_product(void) {
    float *a = random_floats(256, 1), *b = random_floats(128, 1), *c = poisoned(128), *want = poisoned(128);
    LAUNCH(shuffled_product_kernel, 1, WARP, 0, c, a, b);
    for (int m = 0; m < 16; m++) for (int n = 0; n < 8; n++) { double sum = 0; for (int k = 0; k < 16; k++) sum += (double)a[m * 16 + k] * (double)b[k * 8 + n]; want[m * 8 + n] = (float)sum; }
    compare("mma_fp32_shuffled", c, want, 128, bound(16));
    shared_free(a); shared_free(b); shared_free(c); shared_free(want);
}
#endif

/* The worst cases of a cross-entropy: a target far below the maximum, ties, huge logits. */
static void test_extremes(void) {
    float rows[3] = {16384, 0, -16384}, x[1] = {1};            /* powers of two: exact in every floatX */
    Weight w;
    memset(&w, 0, sizeof w);
    w.rows = 3; w.cols = 1; w.format = FORMAT_F32; w.data = rows;
    void *packed = shared_alloc(weight_packed_bytes(&w));
    weight_pack(&w, packed);
    Scratch s = scratch_of(1, 2, 1, 3, 1);
    int32_t zero = 0, two = 2, *row = integers(&zero, 1), *target = integers(&two, 1);
    RowLoss *loss = row_loss_poisoned(1);
    floatX *X = x_of(x, 1), *DX = x_poisoned(1);
    lm_head_loss(DX, NULL, loss, X, row, target, NULL, &w, 1, 1, 1, 1, 3, s);
    shared_wait();
    check(loss->loss == 32768 && (float)DX[0] == 32768, "target 32,768 below the maximum: loss %.1f, gradient %.1f", loss->loss, (double)(float)DX[0]);
    float tied[3] = {-2, -2, -3};           /* below zero: padding must not win */
    w.data = tied;
    weight_pack(&w, packed);
    *target = 0;
    lm_head_loss(NULL, NULL, loss, X, row, target, NULL, &w, 1, 1, 1, 1, 3, s);
    shared_wait();
    check(loss->correct == 1, "a tie goes to the lowest index");
    /* More rows than gemv takes: padding's logits are 0, exp(0 - top) infinite, and must not be part of dz. */
    enum { ROWS = 9 };
    float low[3] = {-1000, -1000, -1000}, ones[ROWS];
    int32_t zeros[ROWS] = {0};
    Labelled all = labelled_of(zeros, ROWS);
    RowLoss *losses = row_loss_poisoned(ROWS);
    for (int n = 0; n < ROWS; n++) ones[n] = 1;
    floatX *X9 = x_of(ones, ROWS), *DX9 = x_poisoned(ROWS);
    Scratch more = scratch_of(ROWS, 2, 1, 3, 1);
    w.data = low;
    weight_pack(&w, packed);
    lm_head_loss(DX9, NULL, losses, X9, all.rows, all.targets, NULL, &w, 1, ROWS, ROWS, 1, 3, more);
    shared_wait();
    LossStats p = model_loss_sums(losses, ROWS);
    check(isfinite((float)DX9[0]) && fabs(p.loss_sum - ROWS * log(3)) < 1e-3,
          "three logits of -1,000: loss %.6f, gradient %g", p.loss_sum / ROWS, (double)(float)DX9[0]);
    shared_free(all.rows); shared_free(all.targets); shared_free(losses); shared_free(X9); shared_free(DX9); shared_free(more.base);
    X[0] = (floatX)NAN;
    lm_head_loss(DX, NULL, loss, X, row, target, NULL, &w, 1, 1, 1, 1, 3, s);
    shared_wait();
    check(!isfinite(loss->loss), "a NaN in the input is a NaN in the loss");
    shared_free(packed); shared_free(s.base); shared_free(X); shared_free(DX); shared_free(target);
    shared_free(row); shared_free(loss);
#ifndef LORA_CUDA
    float worst = 0;
    for (int i = -8700; i < 8850; i++) { cpu_vec v = cpu_exp(cpu_splat((float)i * 0.01f)); worst = fmaxf(worst, fabsf(v[0] / expf((float)i * 0.01f) - 1)); }
    check(worst <= 3 * FLT_EPSILON, "cpu_exp from -87 to 88.5: worst relative error %.1e", (double)worst);
    check(cpu_exp(cpu_splat(-INFINITY))[0] == 0 && cpu_exp(cpu_splat(0))[0] == 1 && isnan(cpu_exp(cpu_splat(NAN))[0]), "cpu_exp(-inf) = 0, cpu_exp(0) = 1, cpu_exp(NaN) = NaN");
#endif
}

/* Every step begins at the same state in both, so that a code that is rounded the other way (fp32 against double, at a
   midpoint) does not make another run of it. */
static void test_adamw_8bit(size_t count) {
    size_t blocks = (count + ADAMW_BLOCK - 1) / ADAMW_BLOCK;
    float *p = random_floats(count, 1), *p2 = copied(p, count), *g = poisoned(count);
    float *most = random_floats(2 * blocks, 0), *most2 = poisoned(2 * blocks);
    uint8_t *code = (uint8_t *)shared_alloc(2 * count), *code2 = (uint8_t *)shared_alloc(2 * count);
    memset(code, 0, 2 * count);
    size_t apart = 0, far = 0;
    double worst_p = 0, worst_most = 0;
    for (int step = 1; step <= 6; step++) {
        for (size_t i = 0; i < count; i++) g[i] = i / ADAMW_BLOCK == 1 ? 0 : uniform() * expf(8 * uniform());
        memcpy(p2, p, count * sizeof *p);
        memcpy(most2, most, 2 * blocks * sizeof *most);
        memcpy(code2, code, 2 * count);
        adamw_8bit_update(p, code, code + count, most, most + blocks, g, count, 0.5f, 1e-2f, 0.9f, 0.99f, 1e-6f, 0.1f,
                          step);
        adamw_8bit_update_ref(p2, code2, code2 + count, most2, most2 + blocks, g, count, 0.5f, 1e-2f, 0.9f, 0.99f,
                              1e-6f, 0.1f, step);
        shared_wait();
        worst_p = fmax(worst_p, relative_error(p, p2, count));
        worst_most = fmax(worst_most, relative_error(most, most2, 2 * blocks));
        for (size_t i = 0; i < 2 * count; i++) { apart += code[i] != code2[i]; far += abs(code[i] - code2[i]) > 1; }
    }
    check(worst_p <= bound(1) && worst_most <= bound(1),
          "adamw_8bit_update of %zu, 6 steps: parameters %.1e, absmax %.1e", count, worst_p, worst_most);
    check(apart <= count * 12 / 500 && !far, "  codes: %zu of %zu are the neighbour of the reference's", apart,
          12 * count);
    shared_free(p); shared_free(p2); shared_free(g); shared_free(most); shared_free(most2);
    shared_free(code); shared_free(code2);
}
static void test_adamw_map(void) {
    float map[256];
    double want[256];
    for (int is_signed = 0; is_signed < 2; is_signed++) {
        int right = 0, nearest = 0;
        adamw_map(map, is_signed);
        adamw_map_ref(want, is_signed);
        for (int i = 0; i < 256; i++) {
            right += fabs((double)map[i] - want[i]) <= 2 * FLT_EPSILON * fabs(want[i]);
            float down = i ? (map[i - 1] + map[i]) / 2 : -1, up = i < 255 ? (map[i] + map[i + 1]) / 2 : 1;
            nearest += adamw_code(map, map[i]) == i && adamw_code(map, down + (map[i] - down) * 0.01f) == i &&
                       adamw_code(map, up - (up - map[i]) * 0.01f) == i;
        }
        check(right == 256 && nearest == 256,
              "the %s map: %d numbers of 256 are right, %d are the nearest up to the middle",
              is_signed ? "signed" : "unsigned", right, nearest);
#ifndef LORA_CUDA
        const CpuMomentMap m = cpu_moment_map(is_signed);
        size_t wrong = 0, looked = 0;
        for (uint32_t bits = 0x33000000; bits <= 0x3F800000; bits += 97)      /* 2^-25 to 1, every bin 675 times */
            for (int sign = 0; sign < 2; sign++, looked++) {
                float x = format_float(bits | (uint32_t)sign << 31);
                wrong += cpu_moment_code(&m, x) != adamw_code(map, x);
            }
        for (int i = 0; i < 255; i++) {     /* three floats on either side of every middle, and what is no number */
            float x = (map[i] + map[i + 1]) / 2;
            for (int j = 0; j < 3; j++) x = nextafterf(x, -2);
            for (int j = 0; j < 7; j++, looked++, x = nextafterf(x, 2))
                wrong += cpu_moment_code(&m, x) != adamw_code(map, x);
        }
        int none = cpu_moment_code(&m, NAN);
        check(!wrong && none >= 0 && none < 256 && cpu_moment_code(&m, 0) == adamw_code(map, 0),
              "  cpu_moment_code is adamw_code: %zu wrong of %zu", wrong, looked);
#endif
    }
}

/* Twelve steps of bitsandbytes' own AdamW8bit (dev/make_golden.py adamw_8bit): a block without gradients, one that has
   none at first, a last one of 88. Where rounding decides between two codes, or turns a tie, an element may have
   another than there. */
static void test_adamw_8bit_golden(void) {
    TensorSet set;
    Error err;
    memset(&set, 0, sizeof set);
    if (!tensors_add_file(&set, "test/golden/adamw_8bit.safetensors", &err)) { check(false, "%s", err.text); return; }
    static const char *const names[] = {"param", "grad", "after", "m", "v", "m_absmax", "v_absmax", "m_map", "v_map"};
    const Tensor *t[9];
    for (int i = 0; i < 9; i++) t[i] = &set.table[shgeti(set.table, names[i])].value;
    size_t count = t[0]->count, blocks = t[5]->count, steps = t[1]->count / count;
    float *p = (float *)shared_alloc(count * sizeof(float)), *g = (float *)shared_alloc(count * sizeof(float));
    float *absmax = (float *)shared_alloc(2 * blocks * sizeof(float));
    uint8_t *code = (uint8_t *)shared_alloc(2 * count);
    memset(absmax, 0, 2 * blocks * sizeof(float));
    memset(code, 0, 2 * count);
    memcpy(p, t[0]->data, count * sizeof(float));
    float maps[2][256];
    adamw_map(maps[0], true);
    adamw_map(maps[1], false);
    check(!memcmp(maps[0], t[7]->data, sizeof maps[0]) && !memcmp(maps[1], t[8]->data, sizeof maps[1]),
          "adamw_map: both maps of bitsandbytes, bit for bit");
    size_t off = 0, other = 0;
    for (size_t step = 0; step < steps; step++) {
        memcpy(g, (const float *)t[1]->data + step * count, count * sizeof(float));
        adamw_8bit_update(p, code, code + count, absmax, absmax + blocks, g, count, 0.5f, 1e-2f, 0.9f, 0.99f, 1e-6f,
                          0.1f, (int)step + 1);
        shared_wait();
        const float *want = (const float *)t[2]->data + step * count;
        for (size_t i = 0; i < count; i++) off += !(fabsf(p[i] - want[i]) <= 2e-6f);
    }
    for (size_t i = 0; i < 2 * count; i++)
        other += code[i] != ((const int32_t *)t[i < count ? 3 : 4]->data)[i < count ? i : i - count];
    check(steps == 12 && off <= steps * count / 200, "adamw_8bit_update: %d steps as bitsandbytes', %d of %d numbers "
          "not", (int)steps, (int)off, (int)(steps * count));
    check(other <= 2 * count / 200, "  its codes, %d of %d not", (int)other, (int)(2 * count));
    compare("  absmax of m", absmax, (const float *)t[5]->data, blocks, 1e-5);
    compare("  and of v", absmax + blocks, (const float *)t[6]->data, blocks, 1e-5);
    shared_free(p); shared_free(g); shared_free(absmax); shared_free(code);
    tensors_close(&set);
}

static void test_optimizer(void) {
    enum { COUNT = 1003, ALL = COUNT + 1 };      /* one behind the last, which nobody may touch */
    float *p = random_floats(ALL, 1), *m = random_floats(ALL, 0), *v = random_floats(ALL, 0);
    float *g = random_floats(ALL, 1), *p2 = copied(p, ALL), *m2 = copied(m, ALL), *v2 = copied(v, ALL);
    for (int step = 1; step <= 20; step++) {
        adamw_update(p, m, v, g, COUNT, 0.5f, 1e-2f, 0.9f, 0.99f, 1e-6f, 0.1f, step);
        adamw_update_ref(p2, m2, v2, g, COUNT, 0.5f, 1e-2f, 0.9f, 0.99f, 1e-6f, 0.1f, step);
        shared_wait();
        for (int i = 0; i < COUNT; i++) g[i] = uniform();
    }
    compare("adamw_update, 20 steps: parameters", p, p2, COUNT, bound(20));
    compare("  m", m, m2, COUNT, bound(20));
    compare("  v", v, v2, COUNT, bound(20));
    check(p[COUNT] == p2[COUNT] && m[COUNT] == 0 && v[COUNT] == 0, "  and nothing behind the last");
    check(fabs(global_norm(g, COUNT) / global_norm_ref(g, COUNT) - 1) < 1e-14 && global_norm(g, 1) == fabs((double)g[0]) && global_norm(g, 0) == 0, "global_norm of 1003, 1 and 0 numbers");
    shared_free(p); shared_free(m); shared_free(v); shared_free(g); shared_free(p2); shared_free(m2); shared_free(v2);
    uint32_t out[4], zero[4] = {0, 0, 0, 0}, ones[4] = {~0u, ~0u, ~0u, ~0u};
    philox4x32(out, zero, zero);
    bool ok = out[0] == 0x6627e8d5 && out[1] == 0xe169c58d && out[2] == 0xbc57ac4c && out[3] == 0x9b00dbd8;
    philox4x32(out, ones, ones);
    check(ok && out[0] == 0x408f276d && out[1] == 0x41c83b0e && out[2] == 0xa20bc7c6 && out[3] == 0x6d5451fd, "philox4x32: the two known answers of Random123");
    DropoutKey key;
    memset(&key, 0, sizeof key);
    key.dropout = 0.3f; key.seed = 4;
    int kept = 0, other = 0;
    for (uint64_t i = 0; i < 100000; i++) { kept += dropout_keep(key, 2, i); other += dropout_keep(key, 2, i) == dropout_keep(key, 3, i); }
    check(abs(kept - 70000) < 600 && abs(other - 58000) < 700, "dropout 0.3 keeps %d of 100000; another projection's mask is independent", kept);   /* 4 standard deviations */
}

#ifndef LORA_CUDA
/* The products that the CPU ops are made of, against reference.h's six lines: B from a weight's panels either way up,
   from floats either way up, and a tile of attention; tiles, slices and panels that are not full, A either way up.
   Nothing beside C's columns is written. */
static void test_products(FormatId format) {
    enum { KINDS = 5, M_MOST = 31, N_MOST = 37, K_MOST = 303, LDC = N_MOST + 3 };
    static const char *const kind[KINDS] = {"cpu_gemm, W^T in", "cpu_gemm, W in", "cpu_gemm, B from columns of",
                                            "cpu_gemm, B from rows of", "cpu_tile_product, B from"};
    static const int Ms[] = {1, 2, 3, 5, 8, 12, M_MOST}, Ns[] = {1, 16, N_MOST}, Ks[] = {1, 33, K_MOST};
    double worst[KINDS] = {0};
    int outside = 0;
    float *x = random_floats(M_MOST * K_MOST, 1), *before = random_floats(M_MOST * LDC, 1);
    float *down = poisoned(N_MOST * K_MOST), *up = poisoned(N_MOST * K_MOST);
    Scratch s = scratch_of(M_MOST, K_MOST, 8, N_MOST, K_MOST);
    for (size_t i = 0; i < sizeof Ns / sizeof *Ns; i++) for (size_t j = 0; j < sizeof Ks / sizeof *Ks; j++) {
        int N = Ns[i], K = Ks[j];
        size_t n = (size_t)N, k = (size_t)K;
        Weight tall = random_weight(N, K, format), wide = random_weight(K, N, format);
        weight_decode(down, &tall, 0, n * k);
        weight_decode(up, &wide, 0, n * k);
        CpuMatrix b[KINDS - 1] = {cpu_frozen(&tall, false), cpu_frozen(&wide, true), cpu_floats(down, 1, k),
                                  cpu_floats(up, n, 1)};
        for (size_t l = 0; l < sizeof Ms / sizeof *Ms; l++) for (int how = 0; how < 8 * KINDS; how++) {
            int M = Ms[l], which = how / 8;
            bool add = how & 1, column = how & 2, tile = which == KINDS - 1;
            float alpha = how & 4 && !tile ? 0.5f : 1, got[M_MOST * LDC], want[M_MOST * LDC];
            size_t a_row = column ? 1 : k, a_column = column ? (size_t)M : 1;
            memcpy(got, before, sizeof got);
            memcpy(want, before, sizeof want);
            if (tile) cpu_tile_product(got, LDC, x, a_row, a_column, up, n, M, N, K, add);
            else cpu_gemm(got, LDC, x, a_row, a_column, b[which], M, N, K, alpha, add, scratch_begin(s));
            bool from_rows = which == 1 || which >= 3;
            product_ref(want, LDC, x, a_row, a_column, from_rows ? up : down, from_rows ? n : 1, from_rows ? 1 : k, M,
                        N, K, (double)alpha, add);
            double e = relative_error(got, want, sizeof got / sizeof *got) / bound(K);
            if (!(e <= worst[which])) worst[which] = e;
            for (int m = 0; m < M_MOST; m++) for (int c = 0; c < LDC; c++)
                outside += (m >= M || c >= N) && got[m * LDC + c] != before[m * LDC + c];
        }
        weight_free(&tall);
        weight_free(&wide);
    }
    for (int i = 0; i < KINDS; i++)
        check(worst[i] <= 1, "%s %s: at most %.2f of what rounding allows", kind[i], weight_format[format].name,
              worst[i]);
    check(!outside, "  %d numbers beside C were written", outside);
    shared_free(x); shared_free(before); shared_free(down); shared_free(up); shared_free(s.base);
}

/* A row has the same bits in a batch of 1 to 14, which the CPU multiplies in ways of their own, as in a batch of 40: answers do not depend on the batch. */
static void test_few_rows(FormatId format) {
    enum { MOST = 40, I = 600, O = 115, R = 8 };
    Linear l = random_linear(I, O, format, true, 1);
    Lora a = random_lora(&l, 5);
    float *x = random_floats(MOST * I, 1), *all = poisoned(MOST * O), *few = poisoned(MOST * O);
    floatX *X = x_of(x, MOST * I), *y = x_poisoned(MOST * O), *some = x_poisoned(MOST * O), *t = x_poisoned(MOST * R);
    Scratch s = scratch_of(MOST, I, R, O, I);
    DropoutKey key;
    memset(&key, 0, sizeof key);
    linear_forward(y, t, NULL, X, &l, &a, 1, key, MOST, s);
    lm_head_logits(all, X, &l.w, MOST, I, O, s);
    int same = 0;
    for (int n = 1; n <= 14; n++) {
        memset((void *)some, 0xff, MOST * O * sizeof *some);
        memset(few, 0xff, MOST * O * sizeof *few);
        linear_forward(some, t, NULL, X, &l, &a, 1, key, n, s);
        lm_head_logits(few, X, &l.w, n, I, O, s);
        uint32_t behind;
        memcpy(&behind, few + n * O, 4);
        same += !memcmp((void *)some, (void *)y, (size_t)(n * O) * sizeof *y) && !memcmp(few, all, (size_t)(n * O) * sizeof *all) && behind == 0xffffffff;
    }
    check(same == 14, "1 to 14 rows of %s weights have the bits of 40: %d of 14", weight_format[format].name, same);
    linear_free(&l, &a);
    shared_free(x); shared_free(all); shared_free(few); shared_free(X); shared_free(y); shared_free(some); shared_free(t); shared_free(s.base);
}
#endif

/* ---- 3. any number of threads, any order of the emulator's threads: the same bits ---------------------------------------------------------------------- */

#if defined(_OPENMP) || defined(EMULATED)
typedef struct Bits { unsigned char *at; size_t count; } Bits;
static void bits_add(Bits *b, const void *p, size_t bytes) {
    shared_wait();
    b->at = (unsigned char *)realloc(b->at, b->count + bytes);
    memcpy(b->at + b->count, p, bytes);
    b->count += bytes;
}

static void test_orders(void) {
    enum { N = 141, I = 72, O = 114, H = 6, KV = 3, D = 16, P = (H + 2 * KV) * D, V = 301, R = 24 };
    Linear group[3] = {random_linear(I, 53, FORMAT_BF16, true, 1), random_linear(I, 40, FORMAT_BF16, false, 2),
                       random_linear(I, 21, FORMAT_BF16, true, 3)};
    Lora lora[3] = {random_lora(&group[0], 3), random_lora(&group[1], 8), random_lora(&group[2], 1)};
    Weight head = random_weight(V, I, FORMAT_F16);
    int32_t cu_host[3] = {0, 17, N}, targets_host[N];
    for (int n = 0; n < N; n++) targets_host[n] = n % 4 ? n * 4 % V : -100;
    int32_t *cu = integers(cu_host, 3);
    Labelled label = labelled_of(targets_host, N);
    RowLoss *row_loss = row_loss_poisoned(label.M);
    float *x = random_floats(N * I, 1), *dy = random_floats(N * O, 1), *qkv = random_floats(N * P, 1), *weight = random_floats(I, 1), *lse = poisoned(N * H), *rstd = poisoned(N);
    floatX *X = x_of(x, N * I), *DY = x_of(dy, N * O), *QKV = x_of(qkv, N * P), *y = x_poisoned(N * O), *t = x_poisoned(N * R), *dx = x_poisoned(N * I), *out = x_poisoned(N * H * D), *dqkv = x_poisoned(N * P);
    Scratch s = scratch_of(N, P, R, V, I);
    DropoutKey key;
    memset(&key, 0, sizeof key);
    key.dropout = 0.2f;
    Bits first = {NULL, 0};
    enum { K = 5, WEIGHTS = O * I + O + I + 2 * D + V * I + K * I + V * I };
    float *gradients = random_floats(WEIGHTS, 0), *weights = random_floats(K * I, 1), *angles = random_floats(D, 1);
    float *absmax = random_floats(2 * K * I, 0);
    uint8_t *codes = (uint8_t *)shared_alloc((size_t)(2 * K * I));
    uint8_t *kept = (uint8_t *)shared_alloc(kept_bytes(group, lora, 3, N));
    for (int order = 0; order < 5; order++) {
#ifdef EMULATED
        emulator_order = order == 4 ? 12345 : order;
#else
        omp_set_num_threads(1 + order);
#endif
        Bits all = {NULL, 0};
        lora_zero(group, lora);
        linear_forward(y, t, kept, X, group, lora, 3, key, N, s);
        linear_backward(dx, DY, t, kept, X, group, lora, 3, key, N, s);
        attention_forward(out, lse, QKV, cu, 2, N, attention_shape(H, KV, D), s);
        bits_add(&all, (void *)y, N * O * sizeof(floatX)); bits_add(&all, (void *)t, N * R * sizeof(floatX)); bits_add(&all, (void *)dx, N * I * sizeof(floatX)); bits_add(&all, (void *)out, N * H * D * sizeof(floatX));
        attention_backward(dqkv, out, out, lse, QKV, cu, 2, N, attention_shape(H, KV, D), s);
        rmsnorm_forward(dx, rstd, NULL, X, NULL, weight, 1e-6f, N, I);
        bits_add(&all, (void *)dqkv, N * P * sizeof(floatX)); bits_add(&all, (void *)dx, N * I * sizeof(floatX)); bits_add(&all, lse, N * H * sizeof(float));
        float *d = gradients;
        memset(d, 0, WEIGHTS * sizeof *d);
        linear_weight_backward(d, d + O * I, DY, O, X, N, I, O, s);
        rmsnorm_weight_backward(d += O * I + O, X, rstd, X, 1, N, I, s);
        qk_norm_weight_backward(d + I, d + I + D, dqkv, QKV, 1e-6f, angles, angles + D / 2, NULL, N,
                                attention_shape(H, KV, D), s);
        embedding_backward(d += I + 2 * D, label.targets, X, 2, label.M, I, V);
        score_backward(NULL, d += V * I, dy, X, label.rows, weights, label.M, N, K, I);
        lm_head_loss(dx, d += K * I, row_loss, X, label.rows, label.targets, NULL, &head, 0.1f, label.M, N, I, V, s);
        memcpy(weights, dy, sizeof(float) * K * I);
        memset(codes, 0, (size_t)(2 * K * I));
        memset(absmax, 0, sizeof(float) * 2 * K * I);
        adamw_8bit_update(weights, codes, codes + K * I, absmax, absmax + K * I, d, K * I, 1, 0.1f, 0.9f, 0.99f, 1e-6f,
                          0.1f, 1);
        bits_add(&all, gradients, WEIGHTS * sizeof *d);
        bits_add(&all, weights, sizeof(float) * K * I);
        bits_add(&all, codes, (size_t)(2 * K * I));
        double norm = global_norm(dy, N * O);
        bits_add(&all, (void *)dx, N * I * sizeof(floatX)); bits_add(&all, row_loss, (size_t)label.M * sizeof *row_loss); bits_add(&all, &norm, sizeof norm);
        for (int j = 0; j < 3; j++) {
            bits_add(&all, lora[j].dA, (size_t)(lora[j].rank * I) * 4);
            bits_add(&all, lora[j].dB, (size_t)(lora[j].rank * group[j].out) * 4);
        }
        if (!order) first = all;
        else {
            check(all.count == first.count && !memcmp(first.at, all.at, all.count),
                  "order %d (CPU: %d threads): linear, attention, rmsnorm, head, norm and the gradients of weights "
                  "have the same bits", order, 1 + order);
            free(all.at);
        }
    }
#ifdef EMULATED
    emulator_order = 0;
#else
    omp_set_num_threads(2);
#endif
    for (int j = 0; j < 3; j++) linear_free(&group[j], &lora[j]);
    weight_free(&head);
    free(first.at);
    shared_free(x); shared_free(dy); shared_free(qkv); shared_free(weight); shared_free(lse); shared_free(rstd); shared_free(row_loss); shared_free(X); shared_free(DY); shared_free(QKV); shared_free(y); shared_free(t); shared_free(dx);
    shared_free(out); shared_free(dqkv); shared_free(cu);
    shared_free(label.rows); shared_free(label.targets); shared_free(s.base);
    shared_free(kept);
    shared_free(gradients); shared_free(weights); shared_free(angles); shared_free(absmax); shared_free(codes);
}
#else
static void test_orders(void) {}          /* one thread: one order */
#endif

/* Odd shapes that no tile divides, then at least one aligned shape per code path (16-byte copies, several tiles, several steps of the ring). */
static const LinearCase linear_cases[] = {
    {1, 37, {53}, {1}, 1, 0, true, false}, {13, 64, {32}, {8}, 1, 0.3f, true, true}, {97, 48, {31, 33}, {3, 0}, 2, 0, true, false}, {61, 37, {53, 8, 129}, {64, 8, 3}, 3, 0.3f, true, true},
    {300, 300, {70}, {16}, 1, 0, true, false}, {24, 600, {64, 16, 16}, {8, 8, 8}, 3, 0, false, false}, {25, 12, {1, 600}, {0, 0}, 2, 0, true, true}, {40, 64, {72}, {200}, 1, 0.1f, true, true},
    {256, 256, {256, 128, 128}, {16, 16, 16}, 3, 0.05f, true, false}, {192, 320, {136, 136}, {64, 64}, 2, 0, true, false}, {130, 264, {72}, {16}, 1, 0, true, true},
    {1, 264, {72, 8, 16}, {16, 16, 16}, 3, 0, true, true}, {5, 300, {70, 3}, {8, 0}, 2, 0, true, true}, {2, 64, {33}, {3}, 1, 0.2f, true, false}, {8, 520, {24}, {64}, 1, 0, false, true},
    /* wide: few splits of the tokens, several steps each */
    {150, 24, {1100}, {8}, 1, 0, true, true}, {135, 1100, {24}, {8}, 1, 0.2f, true, true},
    /* ranks that 8 does not divide */
    {33, 72, {40, 24}, {4, 12}, 2, 0.1f, true, false}, {3, 72, {40, 24}, {12, 4}, 2, 0, true, false}};
/* N, I, O, columns beside: the odd ones, then whole tiles, several splits of the tokens, one weight that is narrow. */
static const int weight_cases[][4] = {{1, 37, 53, 0}, {13, 41, 29, 9}, {97, 3, 1, 2}, {301, 131, 139, 7},
                                      {256, 256, 128, 128}, {560, 72, 136, 8}, {33, 264, 5, 3}};
static const int head_shapes[][3] = {{1, 1, 8}, {4, 1, 12}, {6, 3, 32}, {2, 1, 48}, {8, 2, 64}, {4, 4, 80}, {8, 1, 96}, {2, 1, 128}};

/* A case of the mutation test, which runs each several times: the numbers are the same every time. */
#ifdef MUTATED
#define CASE(call) \
    do { \
        uint32_t random = random_state; \
        for (mutants::case_begin(); mutants::case_again(); ) { random_state = random; call; } \
    } while (0)
#else
#define CASE(call) call
#endif

/* quick: for the mutation test. The cases that meet every line of the kernels once, no finite differences. */
static void test_all(bool quick) {
#ifdef LORA_CUDA
    CASE(test_shuffled_product());
#endif
#ifdef EMULATED
    if (!quick) test_offences();
#endif
    if (!quick) test_differences();
    if (!quick) test_weight_differences();
#ifdef LORA_CUDA
    if (!quick) { test_gemm(37, 53, 70, 8); test_gemm(200, 136, 264, 16); test_gemm(5, 40, 24, 8); }
#endif
#ifndef LORA_CUDA
    for (int d = 0; d < FORMAT_COUNT; d++) test_products((FormatId)d);
    for (int d = 0; d < FORMAT_COUNT; d++) test_few_rows((FormatId)d);
#endif
    for (int d = 0; d < FORMAT_COUNT; d++) CASE(test_embedding((FormatId)d));
    for (int d = 0; d < FORMAT_COUNT; d++) CASE(test_weight_set(45, 77, (FormatId)d));
    CASE(test_weight_set(1, 3, FORMAT_BF16));
    CASE(test_weight_set(64, 128, FORMAT_BF16));
    CASE(test_embedding_backward(1, 5, 2));
    CASE(test_embedding_backward(97, 131, 19));
    CASE(test_embedding_backward(40, 72, 5));          /* whole chunks, fewer than a warp takes */
    CASE(test_score(1, 1, 1, 5));
    CASE(test_score(3, 11, 7, 131));
    CASE(test_score(5, 64, 2, 264));
    for (size_t i = 0; i < sizeof weight_cases / sizeof *weight_cases; i++) {
        const int *k = weight_cases[i];
        if (!quick || i % 2) CASE(test_linear_weight(k[0], k[1], k[2], k[3]));
    }
    int sizes[][2] = {{1, 3}, {1, 37}, {13, 64}, {97, 53}, {3, 1000}, {2, 4096}};
    for (int i = quick ? 3 : 0; i < 6; i++) {
        CASE(test_rmsnorm(sizes[i][0], sizes[i][1]));
        CASE(test_swiglu(sizes[i][0], sizes[i][1]));
    }
    for (int d = quick ? FORMAT_BF16 : 0; d < FORMAT_COUNT; d++) {
        FormatId format = (FormatId)d;
        for (size_t i = 0; i < sizeof linear_cases / sizeof *linear_cases; i++)
            if (!quick || linear_cases[i].quick) CASE(test_linear(linear_cases[i], format));
        CASE(test_head(1, 5, 2, format, 0, false, 1));
        CASE(test_head(97, 37, 131, format, 1, false, 1));
        CASE(test_head(97, 37, 131, format, 1, true, 1));
        if (!quick) test_head(13, 64, 1001, format, 0, true, 30);
        CASE(test_head(9, 16, 300, format, 2, false, 1));
    }
    test_head(240, 1, 40, FORMAT_BF16, 0, false, 1);      /* many rows, few outputs: what dhead needs of the scratch */
    /* More rows than the CPU has in one chunk of logits, 240; sums over three of its blocks of 4,096; 8 does not divide V. */
    if (!quick) test_head(250, 24, 8201, FORMAT_BF16, 0, false, 4);
#ifdef LORA_CUDA
    /* Two chunks of a tile's rows, and a third of 44, of which a third is labelled or all are. */
    size_t bytes = logits_bytes;
    logits_bytes = TILE * 131 * sizeof(floatX);
    test_head(2 * TILE + 44, 37, 131, FORMAT_F32, 0, true, 1);
    test_head(3 * (2 * TILE + 44), 16, 131, FORMAT_BF16, 1, false, 1);
    logits_bytes = bytes;
#endif
    for (size_t i = 0; i < sizeof head_shapes / sizeof *head_shapes; i++) {
        int H = head_shapes[i][0], KV = head_shapes[i][1], D = head_shapes[i][2];
        AttentionCase one = {{1}, 1, H, KV, D, 1}, mixed = {{1, 17, 2, 33}, 4, H, KV, D, 1};
        AttentionCase longer = {{131, 64}, 2, H, KV, D, 1};
        if (quick && D != 8 && D != 12 && D != 48) continue;
        CASE(test_attention(one));
        CASE(test_attention(mixed));
        CASE(test_attention(longer));
        CASE(test_decode(H, KV, D, 0, 1, 3, 1));
        CASE(test_decode(H, KV, D, 37, 130, 3, 1));
    }
    CASE(test_decode(4, 2, 64, 70, 69, 3, 6));
    CASE(test_decode(2, 1, 64, 0, 0, 0, 1));           /* a full cache: a key past the length is outside of the allocation */
    AttentionCase sharp = {{70}, 1, 2, 1, 64, 6};      /* scores of hundreds: the softmax is nearly one-hot */
    if (!quick) test_attention(sharp);
    CASE(test_extremes());
    CASE(test_optimizer());
    test_adamw_map();
    const size_t adam_counts[] = {1, 256, 1003};
    for (int i = 0; i < 3; i++) CASE(test_adamw_8bit(adam_counts[i]));
    if (!quick) test_orders();
#ifndef LORA_CUDA
    check(allocations == 0 && !cpu_taken, "no op allocates: %zu allocations, %zu bytes", allocations, cpu_taken);
    free(must_alloc(1));
    check(allocations == 1, "  and one that does would be seen");
#endif
    CASE(test_adamw_8bit_golden());         /* reads a file, which allocates */
}

#ifdef MUTATED
static void all(void) { test_all(true); }
static void new_card(void) {
    device.open = false;
    backend_ready();
}
int main(void) {
    mutants::count = MUTANT_SITES;
    stop_at_failure = true;
    return mutants::run(all, new_card);
}
#else
int main(void) {
    backend_ready();
    test_all(false);
    return finish();
}
#endif
