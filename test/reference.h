/* reference.h - what every op means: naive loops, double accumulators, no blocking, no cleverness.
   Included twice by the tests: REAL float, REF(op) = op_ref has the signature of the op and is what CPU and CUDA are compared with; REAL double, REF(op) = op_f64 is the same text in double,
   whose derivatives are checked by finite differences. Weights are read from the file's rows (w.data), so that packing is under test too. */

#ifndef REF_UNUSED
#define REF_UNUSED __attribute__((unused))   /* the double version of an op without a derivative */
#endif

static double REF(weight)(const Weight *w, int row, int column) {
    float f;
    weight_decode(&f, w, (size_t)row * (size_t)w->cols + (size_t)column, 1);
    return (double)f;
}
/* C [M,N], its rows ldc apart, = alpha A B, or with add C += alpha A B;  A[m][k] = a[m * a_row + k * a_column],
   B[k][n] = b[k * b_row + n * b_column]. */
REF_UNUSED static void REF(product)(REAL *C, size_t ldc, const REAL *a, size_t a_row, size_t a_column, const REAL *b,
                                    size_t b_row, size_t b_column, int M, int N, int K, double alpha, bool add) {
    for (size_t m = 0; m < (size_t)M; m++) for (size_t n = 0; n < (size_t)N; n++) {
        double sum = 0;
        for (size_t k = 0; k < (size_t)K; k++)
            sum += alpha * (double)a[m * a_row + k * a_column] * (double)b[k * b_row + n * b_column];
        C[m * ldc + n] = (REAL)(add ? (double)C[m * ldc + n] + sum : sum);
    }
}
/* Value and factor of element (n, i) of a projection's input after dropout. */
static double REF(kept)(DropoutKey key, uint32_t dropout_id, int n, int i, int I) {
    if (!(key.dropout > 0)) return 1;
    return dropout_keep(key, dropout_id, (uint64_t)n * (uint64_t)I + (uint64_t)i) ? 1.0 / (1.0 - (double)key.dropout) : 0;
}

REF_UNUSED static void REF(embedding_forward)(REAL *out, const int32_t *ids, const Weight *embed, float scale, int N,
                                              int C) {
    for (int n = 0; n < N; n++)
        for (int c = 0; c < C; c++) out[n * C + c] = (REAL)((double)scale * (double)REF(weight)(embed, ids[n], c));
}

static void REF(rmsnorm_forward)(REAL *out, float *rstd, REAL *sum, const REAL *x, const REAL *residual, const float *weight, float eps, int N, int C) {
    for (int n = 0; n < N; n++) {
        double square = 0;
        for (int c = 0; c < C; c++) {
            REAL s = (REAL)(x[n * C + c] + (residual ? residual[n * C + c] : 0));
            if (residual) sum[n * C + c] = s;
            square += (double)s * (double)s;
        }
        double k = 1 / sqrt(square / C + (double)eps);
        rstd[n] = (float)k;
        for (int c = 0; c < C; c++) out[n * C + c] = (REAL)((double)weight[c] * (double)(residual ? sum[n * C + c] : x[n * C + c]) * k);
    }
}
static void REF(rmsnorm_backward)(REAL *dx, const REAL *dresidual, const REAL *dout, const float *rstd, const REAL *x, const float *weight, int N, int C) {
    for (int n = 0; n < N; n++) {
        double mean = 0, k = (double)rstd[n];
        for (int c = 0; c < C; c++) mean += (double)weight[c] * (double)dout[n * C + c] * (double)x[n * C + c] * k / C;
        for (int c = 0; c < C; c++)
            dx[n * C + c] = (REAL)((dresidual ? (double)dresidual[n * C + c] : 0) + k * ((double)weight[c] * (double)dout[n * C + c] - (double)x[n * C + c] * k * mean));
    }
}

static void REF(linear_forward)(REAL *y, REAL *t, uint8_t *kept, const REAL *x, const Linear *group,
                                const Lora *lora, int count, DropoutKey key, int N, Scratch scratch) {
    int O = 0, R = 0, I = group[0].in, o0 = 0, r0 = 0;
    (void)scratch; (void)kept;
    for (int j = 0; j < count; j++) { O += group[j].out; R += lora ? rank_width(lora[j].rank) : 0; }
    for (int j = 0; j < count; j++) {
        const Linear *p = &group[j];
        const Lora *a = lora ? &lora[j] : NULL;
        int rank = a ? a->rank : 0;
        for (int n = 0; n < N; n++) {
            for (int r = 0; r < rank; r++) {
                double sum = 0;
                for (int i = 0; i < I; i++)
                    sum += (double)x[n * I + i] * REF(kept)(key, p->dropout_id, n, i, I) * (double)a->A[r * I + i];
                t[n * R + r0 + r] = (REAL)sum;
            }
            for (int r = rank; r < rank_width(rank); r++) t[n * R + r0 + r] = 0;
            for (int o = 0; o < p->out; o++) {
                double sum = lora_bias(p, a) ? (double)lora_bias(p, a)[o] : 0;
                for (int i = 0; i < I; i++) sum += (double)x[n * I + i] * REF(weight)(lora_weight(p, a), o, i);
                for (int r = 0; r < rank; r++)
                    sum += (double)a->scale * (double)t[n * R + r0 + r] * (double)a->B[o * rank + r];
                y[n * O + o0 + o] = (REAL)sum;
            }
        }
        o0 += p->out;
        r0 += rank_width(rank);
    }
}
static void REF(linear_backward)(REAL *dx, const REAL *dy, const REAL *t, const uint8_t *kept, const REAL *x,
                                 const Linear *group, const Lora *lora, int count, DropoutKey key, int N,
                                 Scratch scratch) {
    int O = 0, R = 0, I = group[0].in, o0 = 0, r0 = 0;
    (void)scratch; (void)kept;
    double *sum = (double *)calloc((size_t)N * (size_t)I, sizeof(double));
    for (int j = 0; j < count; j++) { O += group[j].out; R += lora ? rank_width(lora[j].rank) : 0; }
    for (int j = 0; j < count; j++) {
        const Linear *p = &group[j];
        const Lora *a = lora ? &lora[j] : NULL;
        int rank = a ? a->rank : 0;
        double *dA = (double *)calloc((size_t)rank * (size_t)I + 1, sizeof(double));
        double *dB = (double *)calloc((size_t)rank * (size_t)p->out + 1, sizeof(double));
        for (int n = 0; n < N; n++) {
            const REAL *d = dy + n * O + o0;
            for (int o = 0; o < p->out; o++)
                for (int i = 0; i < I; i++) sum[n * I + i] += (double)d[o] * REF(weight)(lora_weight(p, a), o, i);
            for (int r = 0; r < rank; r++) {
                double dt = 0;
                for (int o = 0; o < p->out; o++) {
                    dt += (double)a->scale * (double)d[o] * (double)a->B[o * rank + r];
                    dB[o * rank + r] += (double)a->scale * (double)d[o] * (double)t[n * R + r0 + r];
                }
                for (int i = 0; i < I; i++) {
                    double k = REF(kept)(key, p->dropout_id, n, i, I);
                    dA[r * I + i] += dt * k * (double)x[n * I + i];
                    sum[n * I + i] += dt * k * (double)a->A[r * I + i];
                }
            }
        }
        for (int i = 0; i < rank * I; i++) a->dA[i] = (float)((double)a->dA[i] + dA[i]);
        for (int i = 0; i < rank * p->out; i++) a->dB[i] = (float)((double)a->dB[i] + dB[i]);
        free(dA);
        free(dB);
        o0 += p->out;
        r0 += rank_width(rank);
    }
    for (int i = 0; dx && i < N * I; i++) dx[i] = (REAL)sum[i];
    free(sum);
}

static void REF(qk_norm_rope_forward)(REAL *out, const REAL *qkv, const float *q_weight, const float *k_weight,
                                      float eps, const float *cos_table, const float *sin_table,
                                      const int32_t *positions, int N, AttentionShape shape) {
    int H = shape.H, KV = shape.KV, D = shape.D;
    int P = (H + 2 * KV) * D, half = D / 2;
    for (int n = 0; n < N; n++) {
        int angles = (positions ? positions[n] : 0) * half;
        for (int h = 0; h < H + 2 * KV; h++) {
            const REAL *x = qkv + n * P + h * D;
            REAL *o = out + n * P + h * D;
            const float *w = h < H ? q_weight : k_weight;
            double square = 0, k = 1;
            for (int d = 0; d < D; d++) square += (double)x[d] * (double)x[d];
            if (w) k = 1 / sqrt(square / D + (double)eps);
            for (int d = 0; d < half; d++) {
                double a = (double)x[d] * k * (w ? (double)w[d] : 1), b = (double)x[d + half] * k * (w ? (double)w[d + half] : 1);
                double c = (double)cos_table[angles + d], s = (double)sin_table[angles + d];
                o[d] = h < H + KV ? (REAL)(a * c - b * s) : x[d];
                o[d + half] = h < H + KV ? (REAL)(b * c + a * s) : x[d + half];
            }
        }
    }
}
static void REF(qk_norm_rope_backward)(REAL *dqkv, const REAL *qkv, const float *q_weight, const float *k_weight,
                                       float eps, const float *cos_table, const float *sin_table,
                                       const int32_t *positions, int N, AttentionShape shape) {
    int H = shape.H, KV = shape.KV, D = shape.D;
    int P = (H + 2 * KV) * D, half = D / 2;
    double g[512];
    for (int n = 0; n < N; n++) {
        int angles = (positions ? positions[n] : 0) * half;
        for (int h = 0; h < H + KV; h++) {
            const REAL *x = qkv + n * P + h * D;
            REAL *dx = dqkv + n * P + h * D;
            const float *w = h < H ? q_weight : k_weight;
            double square = 0, mean = 0;
            for (int d = 0; d < half; d++) {
                double c = (double)cos_table[angles + d], s = (double)sin_table[angles + d];
                g[d] = (double)dx[d] * c + (double)dx[d + half] * s;
                g[d + half] = (double)dx[d + half] * c - (double)dx[d] * s;
            }
            for (int d = 0; d < D; d++) square += (double)x[d] * (double)x[d];
            double k = 1 / sqrt(square / D + (double)eps);
            for (int d = 0; w && d < D; d++) mean += (double)w[d] * g[d] * (double)x[d] * k / D;
            for (int d = 0; d < D; d++) dx[d] = (REAL)(w ? k * ((double)w[d] * g[d] - (double)x[d] * k * mean) : g[d]);
        }
    }
}

REF_UNUSED static void REF(cache_store)(REAL *cache, const REAL *qkv, const int32_t *place, const int32_t *positions,
                                        int capacity, int N, AttentionShape shape) {
    int H = shape.H, KV = shape.KV, D = shape.D;
    for (int n = 0; n < N; n++)
        for (int kv = 0; kv < KV; kv++)
            for (int d = 0; d < D; d++) {
                cache[((place[n] * 2 * KV + kv) * capacity + positions[n]) * D + d] = qkv[n * (H + 2 * KV) * D + (H + kv) * D + d];
                cache[((place[n] * 2 * KV + KV + kv) * capacity + positions[n]) * D + d] = qkv[n * (H + 2 * KV) * D + (H + KV + kv) * D + d];
            }
}
REF_UNUSED static void REF(attention_decode)(REAL *out, const REAL *qkv, const REAL *cache, const int32_t *place,
                                             const int32_t *positions, int capacity, int N, AttentionShape shape) {
    int H = shape.H, KV = shape.KV, D = shape.D;
    for (int n = 0; n < N; n++) {
        for (int h = 0; h < H; h++) {
            const REAL *q = qkv + n * (H + 2 * KV) * D + h * D, *k = cache + (place[n] * 2 * KV + h / (H / KV)) * capacity * D, *v = k + KV * capacity * D;
            double top = -INFINITY, sum = 0, score[1024];
            for (int m = 0; m <= positions[n]; m++) {
                score[m] = 0;
                for (int d = 0; d < D; d++) score[m] += (double)q[d] * (double)k[m * D + d] * (double)shape.scale;
                top = fmax(top, score[m]);
            }
            for (int m = 0; m <= positions[n]; m++) sum += exp(score[m] - top);
            for (int d = 0; d < D; d++) {
                double o = 0;
                for (int m = 0; m <= positions[n]; m++) o += exp(score[m] - top) / sum * (double)v[m * D + d];
                out[(n * H + h) * D + d] = (REAL)o;
            }
        }
    }
}

static void REF(attention_forward)(REAL *out, float *lse, const REAL *qkv, const int32_t *cu_seqlens, int S, int N,
                                   AttentionShape shape, Scratch scratch) {
    int H = shape.H, KV = shape.KV, D = shape.D;
    int P = (H + 2 * KV) * D;
    (void)scratch; (void)N;
    for (int s = 0; s < S; s++) {
        for (int n = cu_seqlens[s]; n < cu_seqlens[s + 1]; n++) {
            for (int h = 0; h < H; h++) {
                const REAL *q = qkv + n * P + h * D;
                double top = -INFINITY, sum = 0, score[1024];
                for (int m = cu_seqlens[s]; m <= n; m++) {
                    const REAL *k = qkv + m * P + (H + h / (H / KV)) * D;
                    double z = 0;
                    for (int d = 0; d < D; d++) z += (double)q[d] * (double)k[d];
                    score[m - cu_seqlens[s]] = z * (double)shape.scale;
                    top = fmax(top, score[m - cu_seqlens[s]]);
                }
                for (int m = cu_seqlens[s]; m <= n; m++) sum += exp(score[m - cu_seqlens[s]] - top);
                lse[n * H + h] = (float)(top + log(sum));
                for (int d = 0; d < D; d++) {
                    double o = 0;
                    for (int m = cu_seqlens[s]; m <= n; m++) o += exp(score[m - cu_seqlens[s]] - top) / sum * (double)qkv[m * P + (H + KV + h / (H / KV)) * D + d];
                    out[(n * H + h) * D + d] = (REAL)o;
                }
            }
        }
    }
}
static void REF(attention_backward)(REAL *dqkv, const REAL *dout, const REAL *out, const float *lse, const REAL *qkv,
                                    const int32_t *cu_seqlens, int S, int N, AttentionShape shape, Scratch scratch) {
    int H = shape.H, KV = shape.KV, D = shape.D;
    int P = (H + 2 * KV) * D;
    double *g = (double *)calloc((size_t)N * (size_t)P, sizeof(double));
    (void)scratch;
    for (int s = 0; s < S; s++) {
        for (int n = cu_seqlens[s]; n < cu_seqlens[s + 1]; n++) {
            for (int h = 0; h < H; h++) {
                double delta = 0;
                for (int d = 0; d < D; d++) delta += (double)dout[(n * H + h) * D + d] * (double)out[(n * H + h) * D + d];
                for (int m = cu_seqlens[s]; m <= n; m++) {
                    int q = n * P + h * D, k = m * P + (H + h / (H / KV)) * D, v = m * P + (H + KV + h / (H / KV)) * D;
                    double z = 0, dp = 0;
                    for (int d = 0; d < D; d++) { z += (double)qkv[q + d] * (double)qkv[k + d]; dp += (double)dout[(n * H + h) * D + d] * (double)qkv[v + d]; }
                    double p = exp(z * (double)shape.scale - (double)lse[n * H + h]);
                    double ds = p * (dp - delta) * (double)shape.scale;
                    for (int d = 0; d < D; d++) {
                        g[v + d] += p * (double)dout[(n * H + h) * D + d];
                        g[q + d] += ds * (double)qkv[k + d];
                        g[k + d] += ds * (double)qkv[q + d];
                    }
                }
            }
        }
    }
    for (int i = 0; i < N * P; i++) dqkv[i] = (REAL)g[i];
    free(g);
}

static void REF(swiglu_forward)(REAL *h, const REAL *gate_up, int N, int F) {
    for (int n = 0; n < N; n++) for (int f = 0; f < F; f++) { double g = (double)gate_up[n * 2 * F + f]; h[n * F + f] = (REAL)(g / (1 + exp(-g)) * (double)gate_up[n * 2 * F + F + f]); }
}
static void REF(swiglu_backward)(REAL *d_gate_up, const REAL *dh, const REAL *gate_up, int N, int F) {
    for (int n = 0; n < N; n++) {
        for (int f = 0; f < F; f++) {
            double g = (double)gate_up[n * 2 * F + f], u = (double)gate_up[n * 2 * F + F + f], s = 1 / (1 + exp(-g)), d = (double)dh[n * F + f];
            d_gate_up[n * 2 * F + f] = (REAL)(d * u * s * (1 + g * (1 - s)));
            d_gate_up[n * 2 * F + F + f] = (REAL)(d * g * s);
        }
    }
}

REF_UNUSED static void REF(lm_head_logits)(REAL *logits, const REAL *x, const Weight *head, int N, int C, int V, Scratch scratch) {
    (void)scratch;
    for (int n = 0; n < N; n++) for (int v = 0; v < V; v++) { double z = 0; for (int c = 0; c < C; c++) z += (double)x[n * C + c] * REF(weight)(head, v, c); logits[n * V + v] = (REAL)z; }
}
REF_UNUSED static void REF(lm_head_loss)(REAL *dx, REAL *dhead, RowLoss *row_loss, const REAL *x,
                                         const int32_t *rows, const int32_t *targets, const float *row_scale,
                                         const Weight *head, float dloss, int M, int N, int C, int V, Scratch scratch) {
    double *z = (double *)calloc((size_t)V, sizeof(double)), *dW = (double *)calloc((size_t)(V * C), sizeof(double));
    (void)scratch;
    for (int i = 0; dx && i < N * C; i++) dx[i] = 0;
    for (int i = 0; i < M; i++) {
        const REAL *row = x + rows[i] * C;
        double top = -INFINITY, sum = 0, entropy = 0, scale = (double)dloss * (row_scale ? (double)row_scale[i] : 1);
        int argmax = 0;
        for (int v = 0; v < V; v++) {
            z[v] = 0;
            for (int c = 0; c < C; c++) z[v] += (double)row[c] * REF(weight)(head, v, c);
            if (z[v] > top) { top = z[v]; argmax = v; }
        }
        for (int v = 0; v < V; v++) sum += exp(z[v] - top);
        for (int v = 0; v < V; v++) {
            double p = exp(z[v] - top) / sum;
            if (p > 0) entropy -= p * (z[v] - top - log(sum));
        }
        row_loss[i].loss = log(sum) + top - z[targets[i]];
        row_loss[i].entropy = entropy;
        row_loss[i].correct = argmax == targets[i];
        for (int c = 0; dx && c < C; c++) {
            double g = 0;
            for (int v = 0; v < V; v++)
                g += (exp(z[v] - top) / sum - (v == targets[i])) * REF(weight)(head, v, c);
            dx[rows[i] * C + c] = (REAL)(scale * g);
        }
        for (int v = 0; dhead && v < V; v++)
            for (int c = 0; c < C; c++)
                dW[v * C + c] += scale * (exp(z[v] - top) / sum - (v == targets[i])) * (double)row[c];
    }
    for (int i = 0; dhead && i < V * C; i++) dhead[i] = (REAL)((double)dhead[i] + dW[i]);
    free(dW);
    free(z);
}

/* ---- gradients of weights that are trained themselves ---- */

static void REF(linear_weight_backward)(REAL *dW, REAL *dbias, const REAL *dy, int stride, const REAL *x, int N, int I,
                                        int O, Scratch scratch) {
    (void)scratch;
    for (int o = 0; o < O; o++) {
        double bias = 0;
        for (int n = 0; n < N; n++) bias += (double)dy[n * stride + o];
        if (dbias) dbias[o] = (REAL)((double)dbias[o] + bias);
        for (int i = 0; dW && i < I; i++) {
            double sum = 0;
            for (int n = 0; n < N; n++) sum += (double)dy[n * stride + o] * (double)x[n * I + i];
            dW[o * I + i] = (REAL)((double)dW[o * I + i] + sum);
        }
    }
}
static void REF(rmsnorm_weight_backward)(REAL *dweight, const REAL *dout, const float *rstd, const REAL *x,
                                         float factor, int N, int C, Scratch scratch) {
    (void)scratch;
    for (int c = 0; c < C; c++) {
        double sum = 0;
        for (int n = 0; n < N; n++) sum += (double)dout[n * C + c] * (double)x[n * C + c] * (double)rstd[n];
        dweight[c] = (REAL)((double)dweight[c] + (double)factor * sum);
    }
}
static void REF(qk_norm_weight_backward)(REAL *dq_weight, REAL *dk_weight, const REAL *dout, const REAL *qkv, float eps,
                                         const float *cos_table, const float *sin_table, const int32_t *positions,
                                         int N, AttentionShape shape, Scratch scratch) {
    int H = shape.H, KV = shape.KV, D = shape.D, P = (H + 2 * KV) * D, half = D / 2;
    (void)scratch;
    for (int d = 0; d < D; d++) {
        int other = d < half ? d + half : d - half, angle = d < half ? d : d - half;
        double sum[2] = {0, 0};             /* q, k */
        for (int n = 0; n < N; n++)
            for (int h = 0; h < H + KV; h++) {
                const REAL *x = qkv + n * P + h * D, *g = dout + n * P + h * D;
                double square = 0, c = (double)cos_table[(positions ? positions[n] : 0) * half + angle];
                double s = (double)sin_table[(positions ? positions[n] : 0) * half + angle] * (d < half ? 1 : -1);
                for (int j = 0; j < D; j++) square += (double)x[j] * (double)x[j];
                sum[h >= H] += ((double)g[d] * c + (double)g[other] * s) * (double)x[d] / sqrt(square / D + (double)eps);
            }
        if (dq_weight) dq_weight[d] = (REAL)((double)dq_weight[d] + sum[0]);
        if (dk_weight) dk_weight[d] = (REAL)((double)dk_weight[d] + sum[1]);
    }
}
static void REF(embedding_backward)(REAL *dembed, const int32_t *ids, const REAL *dx, float scale, int N, int C,
                                    int V) {
    double *sum = (double *)calloc((size_t)(V * C), sizeof(double));
    for (int n = 0; n < N; n++)
        for (int c = 0; c < C; c++) sum[ids[n] * C + c] += (double)scale * (double)dx[n * C + c];
    for (int i = 0; i < V * C; i++) dembed[i] = (REAL)((double)dembed[i] + sum[i]);
    free(sum);
}
/* The copy in the file's order alone. */
REF_UNUSED static void REF(weight_set)(Weight *w, const float *values) {
    for (size_t i = 0; i < (size_t)w->rows * (size_t)w->cols; i++)
        weight_format[w->format].encode((char *)w->data + format_bytes(w->format, i), values + i, 1);
}
REF_UNUSED static void REF(vector_set)(float *out, const float *values, size_t count, FormatId format, float factor) {
    for (size_t i = 0; i < count; i++) {
        float rounded;
        Weight one = {&rounded, NULL, format, 1, 1};
        weight_format[format].encode(&rounded, values + i, 1);
        out[i] = (float)((double)factor * REF(weight)(&one, 0, 0));
    }
}

static void REF(score_forward)(REAL *logits, const REAL *x, const int32_t *rows, const REAL *score, int M, int K,
                               int C) {
    for (int i = 0; i < M; i++)
        for (int k = 0; k < K; k++) {
            double sum = 0;
            for (int c = 0; c < C; c++) sum += (double)x[rows[i] * C + c] * (double)score[k * C + c];
            logits[i * K + k] = (REAL)sum;
        }
}
static void REF(score_backward)(REAL *dx, REAL *dscore, const REAL *dlogits, const REAL *x, const int32_t *rows,
                                const REAL *score, int M, int N, int K, int C) {
    for (int i = 0; dx && i < N * C; i++) dx[i] = 0;
    for (int c = 0; c < C; c++) {
        for (int i = 0; dx && i < M; i++) {
            double sum = 0;
            for (int k = 0; k < K; k++) sum += (double)dlogits[i * K + k] * (double)score[k * C + c];
            dx[rows[i] * C + c] = (REAL)sum;
        }
        for (int k = 0; dscore && k < K; k++) {
            double sum = 0;
            for (int i = 0; i < M; i++) sum += (double)dlogits[i * K + k] * (double)x[rows[i] * C + c];
            dscore[k * C + c] = (REAL)((double)dscore[k * C + c] + sum);
        }
    }
}

/* The 256 numbers, one set of fractions for every decade, in any order and then sorted. */
static int REF(rises)(const void *a, const void *b) { return *(const double *)a < *(const double *)b ? -1 : 1; }
REF_UNUSED static void REF(adamw_map)(double *map, bool is_signed) {
    int count = 0;
    for (int decade = 0; decade < 7; decade++) {
        int steps = (is_signed ? 1 : 2) << decade;
        for (int i = 0; i < steps; i++)
            for (int sign = 1; sign >= (is_signed ? -1 : 1); sign -= 2)
                map[count++] = sign * pow(10, decade - 6) * (0.1 + 0.9 * (i + 0.5) / steps);
    }
    map[count++] = 0;
    map[count++] = 1;
    qsort(map, (size_t)count, sizeof *map, REF(rises));
}
REF_UNUSED static void REF(moment_encode)(uint8_t *code, float *absmax, const double *moment, const double *map, int n) {
    double most = 0;
    for (int i = 0; i < n; i++) most = fmax(most, fabs(moment[i]));
    *absmax = (float)most;
    for (int i = 0; i < n; i++) {
        double x = most > 0 ? moment[i] / most : 0, nearest = INFINITY;
        for (int j = 0; j < 256; j++) if (fabs(x - map[j]) < nearest) { nearest = fabs(x - map[j]); code[i] = (uint8_t)j; }
    }
}
REF_UNUSED static void REF(adamw_8bit_update)(REAL *param, uint8_t *m, uint8_t *v, float *m_absmax, float *v_absmax,
                                              const REAL *grad, size_t count, float grad_scale, float lr, float beta1,
                                              float beta2, float eps, float weight_decay, int step) {
    double m_map[256], v_map[256], b1 = (double)beta1, b2 = (double)beta2, m1[ADAMW_BLOCK], v1[ADAMW_BLOCK];
    REF(adamw_map)(m_map, true);
    REF(adamw_map)(v_map, false);
    for (size_t at = 0; at < count; at += ADAMW_BLOCK, m_absmax++, v_absmax++) {
        int n = count - at < ADAMW_BLOCK ? (int)(count - at) : ADAMW_BLOCK;
        for (int i = 0; i < n; i++) {
            double g = (double)grad_scale * (double)grad[at + (size_t)i], p = (double)param[at + (size_t)i];
            m1[i] = b1 * m_map[m[at + (size_t)i]] * (double)*m_absmax + (1 - b1) * g;
            v1[i] = b2 * v_map[v[at + (size_t)i]] * (double)*v_absmax + (1 - b2) * g * g;
            p *= 1 - (double)lr * (double)weight_decay;
            p -= (double)lr / (1 - pow(b1, step)) * m1[i] / (sqrt(v1[i]) / sqrt(1 - pow(b2, step)) + (double)eps);
            param[at + (size_t)i] = (REAL)p;
        }
        REF(moment_encode)(m + at, m_absmax, m1, m_map, n);
        REF(moment_encode)(v + at, v_absmax, v1, v_map, n);
    }
}

REF_UNUSED static void REF(adamw_update)(REAL *param, REAL *m, REAL *v, const REAL *grad, size_t count, float grad_scale, float lr, float beta1, float beta2, float eps, float weight_decay, int step) {
    for (size_t i = 0; i < count; i++) {
        double g = (double)grad_scale * (double)grad[i], b1 = (double)beta1, b2 = (double)beta2, p = (double)param[i] * (1 - (double)lr * (double)weight_decay);
        double m1 = b1 * (double)m[i] + (1 - b1) * g, v1 = b2 * (double)v[i] + (1 - b2) * g * g;
        m[i] = (REAL)m1;
        v[i] = (REAL)v1;
        param[i] = (REAL)(p - (double)lr / (1 - pow(b1, step)) * m1 / (sqrt(v1) / sqrt(1 - pow(b2, step)) + (double)eps));
    }
}
REF_UNUSED static double REF(global_norm)(const REAL *grad, size_t count) {
    double sum = 0;
    for (size_t i = 0; i < count; i++) sum += (double)grad[i] * (double)grad[i];
    return sqrt(sum);
}
