/* lora.h - LoRA fine-tuning of Hugging Face language models in plain C: the portable half of train_lora.

   A model folder and a data file go in, a PEFT adapter folder comes out, or a whole model folder. No CUDA in this file;
   it is usable from any C11 or C++17 program (test/test_embed.c is a whole one):

       #define TOKENIZER_IMPLEMENTATION
       #define LORA_IMPLEMENTATION
       #include "lora.h"          // gcc -O3 -march=native -fopenmp -I. yours.c -lm

   WHAT SUCH A PROGRAM CALLS
     model_open, model_plan, model_close           a folder's frozen weights, or their shapes alone; for all to share
     adapter_attach, adapter_load, adapter_drop    what is trained beside them: a new one, a PEFT folder's
     adapter_save, adapter_merge                   back into a PEFT folder; into a copy of the model
     workspace_open, workspace_close               what a pass writes, sized and taken once
     model_forward, model_loss, model_backward     a micro-batch; adapter NULL: the base alone
     adapter_zero_grad, optimizer_step             before the first micro-batch of a step, after its last
     model_logits, model_evaluate, model_generate  logits, losses, answers (generator_open: in memory taken before)
     train_run                                     the whole job

   ONE TRAINING STEP IN 250 LINES, the names to follow in order
     train_loop          epochs and steps             -> run_step for each
     run_step            a step's record, the log     -> train_step, run_step_end: evaluation, checkpoint
     train_step          learning rate, overflows     -> train_gradient, optimizer_step
     train_gradient      the divisor of the loss      -> train_micro_batches, train_reduce
     train_micro_batches one after the other          -> batch_build, model_forward, Objective.loss, model_backward
     model_forward       embedding, layers, norm      -> layer_forward -> attention_block_forward, mlp_block_forward
     model_loss          objective_tokens' loss       -> lm_head_loss: head and cross-entropy of the labelled rows
     model_backward      the layers, last to first    -> layer_backward -> the two blocks' backward
     linear_forward      x W^T and what LoRA adds     chapter 8 on a CPU, train_lora.cu on a card; linear_backward
     optimizer_step      norm, clip, loss scale       -> adamw_update over the trainables, adapter_pack

   COMPILE-TIME SWITCHES
     LORA_FLOATX         type of the activations: float (with it LORA_FLOATX_FORMAT, its Format)
     LORA_LOSS_SCALE     where dynamic loss scaling starts: 1, none; fp16's range needs 65536
     LORA_HOST_DEVICE    what stands before the few formulas that kernels share: nothing
     LORA_NO_CPU_OPS     defined: chapter 8 is left out, the ops come from elsewhere, as in train_lora.cu

   TABLE OF CONTENTS
     1  dimensions and types          what a letter means; Weight, Linear, Lora
     2  files and configuration       safetensors, config.json, families, memory table
     3  the ops' contract             every op once: shapes, formula, what backward needs
     4  the model                     Model, Adapter, Workspace; open, forward, backward
     5  the adapter and optimizer     trainables, PEFT folders, merging, AdamW, schedules
     6  training                      options, objectives, the loop, the log, checkpoints
     7  generation                    sampling, answers
     then, under LORA_IMPLEMENTATION, the same chapters with their code, then 8: the CPU ops, and 9: fuzz entries.
   Rows, masks, examples, batches and prompts are data/dataset.h's, losses and metrics of classes data/classify.h's,
   files, JSON and tokenizers tokenizer.h's.

   DIMENSIONS
     N  tokens of a batch, laid end to end (never padded)     S  sequences in it; cu_seqlens[S+1] are their borders in N
     C  hidden_size                                           F  intermediate_size
     H  query heads, KV key/value heads, D head_dim           P  (H + 2 KV) D: the width of q|k|v laid side by side
     L  layers                                                V  vocabulary (rows of the embedding)
     R  LoRA rank                                             I, O  inputs and outputs of a linear layer
     M  labelled rows of the batch: those that the loss is about

   THE = / += CONTRACT OF THE BACKWARD PASS
     Gradients of activations (dx, dy, dqkv, ...) are overwritten (=). Gradients of the adapter (dA, dB) are added to
     (+=), because micro-batches of one optimizer step add up; adapter_zero_grad clears them. Argument order everywhere:
     outputs, saved statistics, inputs, weights, dimensions. A leading d means "gradient of". No op allocates memory. */
#ifndef LORA_H
#define LORA_H

#ifdef LORA_IMPLEMENTATION
#ifndef DATASET_IMPLEMENTATION
#define DATASET_IMPLEMENTATION
#endif
#define CLASSIFY_IMPLEMENTATION
#endif
#include "data/dataset.h"    /* Dataset, Batch, Prompts; includes tokenizer.h: Error, Json, Tokenizer, files */
#include "data/classify.h"   /* losses and metrics of a head of few outputs */

#ifdef __cplusplus
extern "C" {
#endif

/* =====================================================================================================================
   1  DIMENSIONS AND TYPES
   ================================================================================================================== */

#ifndef LORA_FLOATX
#define LORA_FLOATX float
#define LORA_FLOATX_FORMAT FORMAT_F32
#endif
#ifndef LORA_HOST_DEVICE
#define LORA_HOST_DEVICE                    /* CUDA: __host__ __device__, for the few formulas that kernels share */
#endif
#ifndef LORA_LOSS_SCALE
#define LORA_LOSS_SCALE 1.0f                /* where dynamic loss scaling starts; fp16's range needs 65536 */
#endif
typedef LORA_FLOATX floatX;                 /* activations: float on CPU; the CUDA build may choose bf16 or fp16 */

typedef enum { DTYPE_F32, DTYPE_F16, DTYPE_BF16, DTYPE_I32, DTYPE_COUNT } DType;
extern const char *const dtype_name[DTYPE_COUNT];          /* safetensors' names: "F32", "F16", "BF16", "I32" */
size_t dtype_size(DType t);                                /* bytes of one element */

typedef enum { FORMAT_F32, FORMAT_F16, FORMAT_BF16, FORMAT_COUNT } FormatId;
FormatId dtype_format(DType t);             /* what a file's dtype is kept in; FORMAT_COUNT: not as weights (I32) */

/* A frozen matrix, [rows, cols] row-major as in the file, its numbers in a format of their own.
   packed: the backend's own layout of the same values (CPU: panels for the matrix product, made once at load), or NULL
   where nothing multiplies by it. */
typedef struct Weight {
    const void *data;                       /* [rows, cols] in the mmapped file */
    void *packed;                           /* backend's layout, see weight_pack */
    FormatId format;
    int rows, cols;
} Weight;
size_t weight_bytes(const Weight *w);       /* of w->data */
void weight_decode(float *out /*[n]*/, const Weight *w, size_t at, size_t n);      /* numbers at..at+n of w->data */
int64_t weight_nonfinite(const Weight *w);                 /* index of the first NaN or infinity in w->data, or -1 */
int64_t first_nonfinite(const float *x, size_t count);     /* the same */

/* How the numbers of a weight lie in memory. A new way to keep them is a row of this table, a vector load for the CPU
   ops (cpu_panel_load) and, where `block` is not 1, an order for their panels (weight_pack); all else reads the row. */
typedef struct Format {
    const char *name;                       /* "F32" */
    int block, block_bytes;                 /* so many neighbours of a row lie in so many bytes; decoded as a whole */
    double rounding;                        /* half a step of encode, relative to the number */
    uint32_t exponent;                      /* bits of a number that are all set in infinity and NaN alone */
    void (*decode)(float *out /*[n]*/, const Weight *w, size_t at, size_t n);
    void (*encode)(void *out, const float *in /*[n]*/, size_t n);             /* to the nearest, ties to even */
} Format;
extern const Format weight_format[FORMAT_COUNT];
size_t format_bytes(FormatId f, size_t count);             /* what `count` numbers take */

/* One frozen projection: y = x W^T + bias. */
typedef struct Linear {
    Weight w;                               /* [O, I] */
    const float *bias;                      /* [O] or NULL */
    int in, out;                            /* I, O */
    uint32_t dropout_id;                          /* layer * MODULE_COUNT + module: names the dropout mask */
} Linear;

/* What an adapter makes of one projection. It adds scale * dropout(x) A^T B^T (rank 0: nothing), and where the weight
   or the bias is trained itself it has its own in their place. */
typedef struct Lora {
    float *A, *B;                           /* [R, I], [O, R]: views into the adapter's parameter arena */
    float *dA, *dB;                         /* the same views into its gradient arena */
    int rank;                               /* R */
    float scale;                            /* lora_alpha / r, or lora_alpha / sqrt(r) with rsLoRA */
    void *packed;                           /* A and B in the backend's layout, see adapter_pack */
    Weight rest;                            /* [O, I] stands in for W: the trained one, or PiSSA's and OLoRA's
                                               W - scale B0 A0; packed NULL: W stays what it is */
    const float *bias;                      /* [O] stands in for the bias: the trained one; or NULL */
    float *dW, *dbias;                      /* [O, I], [O] in the gradient arena; NULL where they are not trained */
} Lora;
/* What the ops read of a projection with an adapter (NULL: without one). */
LORA_HOST_DEVICE static inline const Weight *lora_weight(const Linear *p, const Lora *a) {
    return a && a->rest.packed ? &a->rest : &p->w;
}
LORA_HOST_DEVICE static inline const float *lora_bias(const Linear *p, const Lora *a) {
    return a && a->bias ? a->bias : p->bias;
}
static inline const Lora *lora_at(const Lora *first, int module) { return first ? first + module : NULL; }

/* Columns that a projection of that rank takes in t: a multiple of 8, so that rows of 16-bit numbers begin at multiples
   of 16 bytes whatever the ranks are. Those from the rank on are 0. */
LORA_HOST_DEVICE static inline int rank_width(int rank) { return (rank + 7) / 8 * 8; }

/* The dropout masks of one micro-batch: the key of a counter-based generator, see dropout_keep. */
typedef struct DropoutKey {
    float dropout;                          /* the share that is dropped; 0 when evaluating */
    uint64_t seed;
    uint32_t step, micro_batch;
} DropoutKey;

/* A block of memory that an op may scribble on; sized by op_scratch_bytes. */
typedef struct Scratch { void *base; size_t bytes; } Scratch;


/* What attention looks like: H query heads on KV key/value heads of D columns; scores are scale q.k. */
typedef struct AttentionShape { int H, KV, D; float scale; } AttentionShape;

/* Sums over the labelled rows of one micro-batch. */
typedef struct LossStats {
    double loss_sum, entropy_sum; int64_t tokens, correct;
    double weight;                          /* what loss_sum is to be divided by */
    double rewards, margins, least, most;   /* of pairs: sums, the lowest and the highest reward */
} LossStats;

/* The seven places LoRA can go, in forward order. */
enum { LORA_GROUP_QKV, LORA_GROUP_O, LORA_GROUP_GATE_UP, LORA_GROUP_DOWN, LORA_GROUPS };    /* each reads one input */
enum { MODULE_Q, MODULE_K, MODULE_V, MODULE_O, MODULE_GATE, MODULE_UP, MODULE_DOWN, MODULE_COUNT };
extern const char *const module_name[MODULE_COUNT];        /* "q_proj" ... "down_proj" */
extern const char *const module_path[MODULE_COUNT];        /* "self_attn.q_proj" ... "mlp.down_proj" */

/* =====================================================================================================================
   2  FILES AND CONFIGURATION
   Everything read here is treated as hostile: offsets are bounded, sizes checked for overflow, and an error is a line
   of text that travels up to the caller.
   ================================================================================================================== */

/* One tensor of a safetensors file; data points into the mapping. */
typedef struct Tensor {
    char *name;
    const void *data;
    size_t bytes, count;                    /* count: elements */
    int64_t shape[4];
    int ndim;
    DType dtype;                            /* DTYPE_COUNT: one that this program does not use, kept so that it can be
                                               named */
} Tensor;

typedef struct TensorEntry { char *key; Tensor value; } TensorEntry;
typedef struct SafetensorsFile { void *base; size_t bytes; char *path; } SafetensorsFile;

/* All tensors of one or several mmapped .safetensors files, by name. */
typedef struct TensorSet {
    TensorEntry *table;                     /* stb_ds string map */
    SafetensorsFile *files;                 /* stb_ds array */
} TensorSet;

/* Adds the tensors of one file. Refused: bad header, unknown keys of the header, offsets that overlap, leave holes or
   leave the file, sizes that do not match shape and dtype, a name twice. */
bool tensors_add_file(TensorSet *set, const char *path, Error *err);
/* A model folder: model.safetensors, or the shards of model.safetensors.index.json. */
bool tensors_open_folder(TensorSet *set, const char *folder, Error *err);
void tensors_close(TensorSet *set);
/* The tensor of that name and shape (columns 0: one-dimensional, [rows]); a missing name, another shape or a dtype
   other than F32, F16, BF16 is an error that shows expected and found. */
const Tensor *tensors_get(const TensorSet *set, const char *name, int64_t rows, int64_t columns, Error *err);
Weight tensor_weight(const Tensor *t);      /* its numbers as a weight, [shape[0], the rest] */
/* Writes count tensors (F32; columns 0: one-dimensional) as one safetensors file with metadata {"format":"pt"}: to a
   temporary name, fsync, rename. */
bool safetensors_write(const char *path, const char *const *names, const float *const *data,
                       const int64_t (*shapes)[2], int count, Error *err);

typedef enum { ROPE_DEFAULT, ROPE_LINEAR, ROPE_LLAMA3 } RopeType;
typedef struct RopeScaling {
    RopeType type;
    double factor, low_freq_factor, high_freq_factor, original_max_position;
} RopeScaling;

/* The places of a layer's norms. */
enum { NORM_ATTENTION, NORM_MLP, NORM_Q, NORM_K, NORM_COUNT };       /* before the block; of each head's q and k */
enum { CONFIG_MAX_LAYERS = 10000 };

/* What tells one model family from another: the rows are config_families[]. */
typedef struct Family Family;

/* config.json, checked: model_type is a family's; anything that would change the arithmetic and is not implemented is
   refused by name. */
typedef struct ModelConfig {
    char model_type[16], dtype[16];
    int hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads, head_dim;
    int vocab_size, max_position_embeddings;
    float rms_norm_eps;
    double rope_theta;
    RopeScaling rope_scaling;
    bool tie_word_embeddings, qk_norm;      /* qk_norm: RMSNorm of each head's q and k (Qwen3) */
    bool bias[MODULE_COUNT];                /* which projections have one */
    const Family *family;
    int pad_token_id;                       /* -1: none. Its row of a trained embedding stays as it is looked up, as
                                               that of nn.Embedding's padding_idx */
    float initializer_range;                /* standard deviation of new weights: a classification head's */
    float embedding_scale, attention_scale, logits_scale;     /* factors on the embedding, the scores, the logits */
    bool no_rope[CONFIG_MAX_LAYERS];        /* [L] layers whose q and k are not rotated */
} ModelConfig;
static inline AttentionShape config_attention(const ModelConfig *c) {
    AttentionShape a = {c->num_attention_heads, c->num_key_value_heads, c->head_dim, c->attention_scale};
    return a;
}
bool config_parse(ModelConfig *c, const Json *root, const char *name, Error *err);
bool config_open(ModelConfig *c, const char *folder, Error *err);
/* cos/sin tables [positions, D/2] in fp32 as transformers computes them (modeling_rope_utils.py): inverse frequencies
   in fp32, llama3 and linear scaling applied to them. */
void rope_tables(float *cos_table, float *sin_table, const ModelConfig *c, int positions);

/* One tensor that a model of some configuration has in its files. All of them, in the order of a file, are walked by
       for (TensorSpec t = model_tensors(c, "model."); tensor_next(&t);) ...
   whoever loads, packs, counts, invents or looks for the tensors of a model goes this way. */
typedef enum { TENSOR_EMBED, TENSOR_FINAL_NORM, TENSOR_HEAD, TENSOR_NORM, TENSOR_WEIGHT, TENSOR_BIAS,
               TENSOR_SCORE, TENSOR_LORA_A, TENSOR_LORA_B     /* an adapter's own: no walk comes to these */
} TensorKind;
typedef struct TensorSpec {
    char name[224];                         /* "model.layers.3.self_attn.q_proj.weight" */
    TensorKind kind;
    int layer, place;                       /* place: NORM_ of a norm, MODULE_ of a weight or bias */
    int rows, cols;                         /* cols 0: one-dimensional */
    bool optional;                          /* one of a tied pair, embedding and head: the other serves as it, too */
    const ModelConfig *config;              /* the walk's own: where it is */
    const char *prefix;
    int next;
} TensorSpec;
TensorSpec model_tensors(const ModelConfig *c, const char *prefix /* "model.", or what stands there in the files */);
bool tensor_next(TensorSpec *t);            /* false: that was the last */
size_t tensor_count(const TensorSpec *t);   /* elements */

/* What memory goes where; printed before step 0 and true. */
enum { MEMORY_ROWS = 12 };
typedef struct MemoryRow { const char *name; size_t bytes; } MemoryRow;
typedef struct MemoryTable { MemoryRow row[MEMORY_ROWS]; int count; size_t total; } MemoryTable;
void memory_add(MemoryTable *m, const char *name, size_t bytes);

/* =====================================================================================================================
   3  THE OPS' CONTRACT
   Declared once, implemented three times with the same signature: test/reference.h (suffix _ref, double accumulators:
   what the op means), this file (CPU), train_lora.cu (CUDA). The model calls ops by name and never asks which backend
   it is on. Reductions run in a fixed order that does not depend on the number of threads.
   ================================================================================================================== */

/* ---- the backend's memory ----------------------------------------------------------------------------------------
   Everything an op reads or writes (arrays, not structs) lies in it. CPU: ordinary memory, CUDA: the card's. */

/* Finds the device; refuses a model that it cannot run. Called by model_open; more than once is fine. */
bool backend_open(const ModelConfig *c, Error *err);
void *backend_alloc(size_t bytes);                         /* zeroed, 256-byte aligned; NULL: there is none left */
void backend_free(void *p, size_t bytes);
void backend_upload(void *to, const void *from, size_t bytes);
void backend_download(void *to, const void *from, size_t bytes);      /* waits for the ops before it */
void backend_zero(void *p, size_t bytes);
size_t backend_memory(void);                               /* bytes that can still be taken */
/* Bytes in use before a model is opened, and what they are: a row of the memory table. */
size_t backend_overhead(const char **name);
/* Floating-point operations a second that the machine could do at best. CPU: measured, in a few milliseconds; CUDA: of
   its tensor cores. */
double backend_ceiling(void);
void backend_describe(char *text, size_t bytes);         /* "CPU, 2 threads, AVX-512, 23.1 GiB free, fp32 arithmetic" */

/* Brings w into the backend's layout for matrix products and sets w->packed; `where` has weight_packed_bytes bytes of
   the backend's memory, 256-byte aligned. Call once, at load. */
size_t weight_packed_bytes(const Weight *w);
void weight_pack(Weight *w, void *where);
/* Bytes of the table in the form that embedding_forward reads, made by weight_pack; 0: it reads the file. Tied, the
   embedding shares the head's. */
size_t embedding_packed_bytes(const Weight *embed);

/* Brings A and B of at most MODULE_COUNT projections into the backend's layout for matrix products, at lora->packed:
   adapter_packed_bytes bytes of the backend's memory, 256-byte aligned. To be called when A or B have changed, before
   the next op that reads them. CPU: 0 bytes, there is nothing to do. */
size_t adapter_packed_bytes(const Linear *p, const Lora *lora);
void adapter_pack(const Linear *projections, const Lora *lora, int count);

/* The scratch that any op below needs for these sizes: n tokens, widest linear (inputs or outputs) `widest`, largest
   sum of rank_width over one group `rank`. */
size_t op_scratch_bytes(int n, int widest, int rank, int vocab, int hidden);

/* out[i,:] = scale * embed[ids[i],:]. Ids must lie in [0, V). */
void embedding_forward(floatX *out /*[N,C]*/, const int32_t *ids /*[N]*/, const Weight *embed /*[V,C]*/, float scale,
                       int N, int C);

/* RMSNorm with the residual add fused in (Zhang & Sennrich 2019; transformers LlamaRMSNorm, weight applied after
   normalising):
     s = x + residual          (residual NULL: s = x, and `sum` is not written)
     rstd = 1 / sqrt(mean_c s^2 + eps);  out = weight * s * rstd
   sum may be the same memory as x or as residual. */
void rmsnorm_forward(floatX *out /*[N,C]*/, float *rstd /*[N]*/, floatX *sum /*[N,C] or NULL*/,
                     const floatX *x /*[N,C]*/, const floatX *residual /*[N,C] or NULL*/, const float *weight /*[C]*/,
                     float eps, int N, int C);
/* dx = dresidual + rstd * (weight*dout - x_hat * mean_c(weight*dout * x_hat)),  x_hat = x * rstd, x the s of forward.
   dresidual NULL: 0. dx may be dresidual. */
void rmsnorm_backward(floatX *dx /*[N,C]*/, const floatX *dresidual /*[N,C] or NULL*/, const floatX *dout /*[N,C]*/,
                      const float *rstd /*[N]*/, const floatX *x /*[N,C]*/, const float *weight /*[C]*/, int N, int C);

/* Bytes of the backend's memory that hold a group's dropout masks from forward to backward, `kept` of the two ops. CPU:
   0, a mask is made again from its key. */
size_t kept_bytes(const Linear *group, const Lora *lora, int count, int N);

/* `count` projections that read the same x, their outputs side by side in y (q|k|v, o, gate|up, down):
     y_j = x W_j^T + bias_j + scale_j * t_j B_j^T,   t_j = dropout_j(x) A_j^T
   O is the sum of outputs over the group, R that of rank_width. t is saved for backward (untouched where there is no
   adapter). Dropout: inverted (kept values times 1/(1-p)), an independent mask for each projection; element (n,i) of
   the mask is number n*I+i of the generator keyed by (seed, step, micro_batch, dropout_id): see dropout_keep. */
void linear_forward(floatX *y /*[N,O]*/, floatX *t /*[N,R]*/, uint8_t *kept /*[kept_bytes], NULL: dropout is 0*/,
                    const floatX *x /*[N,I]*/, const Linear *group /*[count]*/,
                    const Lora *lora /*[count], or NULL: the base alone*/, int count, DropoutKey key, int N,
                    Scratch scratch);
/* dt_j = scale_j * dy_j B_j;  dB_j += scale_j * dy_j^T t_j;  dA_j += dt_j^T dropout_j(x)
   dx = sum_j dy_j W_j + dropout_j(dt_j A_j)      the mask and factor of forward, which must have run with the same key
   dx NULL: not wanted (nothing trainable below). The gradient of W: linear_weight_backward. */
void linear_backward(floatX *dx /*[N,I] or NULL*/, const floatX *dy /*[N,O]*/, const floatX *t /*[N,R]*/,
                     const uint8_t *kept /*as forward left it*/, const floatX *x /*[N,I]*/,
                     const Linear *group /*[count]*/, const Lora *lora /*[count] or NULL*/, int count, DropoutKey key,
                     int N, Scratch scratch);
/* True where the dropout mask keeps element `index`: Philox4x32-10 (Salmon et al. 2011), key = seed, counter =
   (index/4, dropout_id, micro_batch, step); lane index%4 as a number in [0, 2^32) is >= p * 2^32. */
bool dropout_keep(DropoutKey key, uint32_t dropout_id, uint64_t index);

/* Per-head RMSNorm of q and k where the model has it (Qwen3; q_weight NULL: none), then rotary embedding in Hugging
   Face's pairing (d, d + D/2):
     (a, b) -> (a cos - b sin, b cos + a sin);   v is copied.
   cos, sin: tables [positions, D/2], see rope_tables. positions NULL: a layer without rotary embedding (SmolLM3), every
   token counts as the first, whose rotation is by nothing. out may not be qkv. */
void qk_norm_rope_forward(floatX *out /*[N,P]*/, const floatX *qkv /*[N,P]*/, const float *q_weight /*[D] or NULL*/,
                          const float *k_weight /*[D] or NULL*/, float eps, const float *cos_table,
                          const float *sin_table, const int32_t *positions /*[N] or NULL*/, int N,
                          AttentionShape a);
/* In place: dqkv comes in as the gradient of out and leaves as the gradient of qkv. Needs the qkv that forward read
   (only where there is a norm). */
void qk_norm_rope_backward(floatX *dqkv /*[N,P]*/, const floatX *qkv /*[N,P]*/, const float *q_weight /*[D] or NULL*/,
                           const float *k_weight /*[D] or NULL*/, float eps, const float *cos_table,
                           const float *sin_table, const int32_t *positions /*[N] or NULL*/, int N,
                           AttentionShape a);

/* Causal attention within each sequence, grouped-query (query head h reads key/value head h / (H/KV)), online softmax
   (Dao 2023); no T x T matrix in memory.
     out[n,h,:] = sum_{m<=n, same sequence} p_nm v_m;   lse[n,h] = log sum_m exp(scale q.k_m) */
void attention_forward(floatX *out /*[N,H,D]*/, float *lse /*[N,H]*/, const floatX *qkv /*[N,P] after rope*/,
                       const int32_t *cu_seqlens /*[S+1]*/, int S, int N, AttentionShape a, Scratch scratch);
/* p recomputed from lse;  dv_m = sum p_nm dout_n;  ds_nm = p_nm (dout_n.v_m - dout_n.out_n);
   dq_n = scale sum_m ds_nm k_m;  dk_m = scale sum_n ds_nm q_n, summed over the heads of a group. */
void attention_backward(floatX *dqkv /*[N,P]*/, const floatX *dout /*[N,H,D]*/, const floatX *out /*[N,H,D]*/,
                        const float *lse /*[N,H]*/, const floatX *qkv /*[N,P]*/, const int32_t *cu_seqlens /*[S+1]*/,
                        int S, int N, AttentionShape a, Scratch scratch);

/* Generation. k and v of N tokens go into one layer's cache, token n into place[n] at positions[n]; then one query a
   token reads keys 0..positions[n] of its place:
     out[n,h,:] = sum_{m <= positions[n]} softmax_m(scale q_n . k_m) v_m */
void cache_store(floatX *cache /*[places,2,KV,capacity,D]*/, const floatX *qkv /*[N,P] after rope*/,
                 const int32_t *place /*[N]*/, const int32_t *positions /*[N]*/, int capacity, int N, AttentionShape a);
void attention_decode(floatX *out /*[N,H,D]*/, const floatX *qkv /*[N,P] after rope*/,
                      const floatX *cache /*[places,2,KV,capacity,D]*/, const int32_t *place /*[N]*/,
                      const int32_t *positions /*[N]*/, int capacity, int N, AttentionShape a);

/* h = silu(gate) * up, gate|up side by side. silu(g) = g / (1 + exp(-g)) */
void swiglu_forward(floatX *h /*[N,F]*/, const floatX *gate_up /*[N,2F]*/, int N, int F);
/* dup = dh silu(gate);  dgate = dh up sig (1 + gate (1 - sig)).  d_gate_up may be gate_up. */
void swiglu_backward(floatX *d_gate_up /*[N,2F]*/, const floatX *dh /*[N,F]*/, const floatX *gate_up /*[N,2F]*/, int N,
                     int F);

/* Head and cross-entropy in one: logits z = x W^T of the M labelled rows alone, a chunk of rows at a time, never all in
   memory. Labelled row i is row rows[i] of x and is to predict targets[i]:
     loss_i = log sum_v exp(z_v - max) + max - z_target;   entropy_i = -sum p log p
     correct_i: argmax (lowest index on ties) == target
     dz_i = dloss * row_scale[i] * (softmax(z) - onehot(target))
     dx[rows[i],:] = dz_i W;   every other row of dx gets 0
     dhead += sum_i dz_i^T x[rows[i],:]
   rows rise. row_scale NULL: 1 everywhere. dx and dhead NULL: loss only; dhead NULL: a head that is not trained. */
void lm_head_loss(floatX *dx /*[N,C] or NULL*/, float *dhead /*[V,C] or NULL*/, RowLoss *row_loss /*[M]*/,
                  const floatX *x /*[N,C]*/, const int32_t *rows /*[M]*/, const int32_t *targets /*[M]*/,
                  const float *row_scale /*[M] or NULL*/, const Weight *head /*[V,C]*/, float dloss, int M, int N,
                  int C, int V, Scratch scratch);
/* logits = x W^T for every row (evaluation of small things, tests, generation). */
void lm_head_logits(float *logits /*[N,V], host memory*/, const floatX *x /*[N,C]*/, const Weight *head /*[V,C]*/,
                    int N, int C, int V, Scratch scratch);

/* ---- gradients of weights that are trained themselves --------------------------------------------------------------
   Apart from the ops above, which do not know them: a run that trains adapters alone calls none of these. All add to
   fp32 gradients (+=), in an order that depends on the sizes alone: no float atomics. */

/* One projection of a group, columns [0,O) of rows of `stride` numbers (dy points at its first):
     dW += dy^T x;   dbias += sum_n dy_n */
void linear_weight_backward(float *dW /*[O,I] or NULL*/, float *dbias /*[O] or NULL*/,
                            const floatX *dy /*[N,stride]*/, int stride, const floatX *x /*[N,I]*/, int N, int I, int O, Scratch scratch);
/* dweight += factor * sum_n dout_n * x_n rstd_n;   rstd and x as in rmsnorm_backward */
void rmsnorm_weight_backward(float *dweight /*[C]*/, const floatX *dout /*[N,C]*/, const float *rstd /*[N]*/,
                             const floatX *x /*[N,C]*/, float factor, int N, int C, Scratch scratch);
/* The norms of q and k: each head's gradient of the rotated values, rotated back, times the normalised q or k, summed
   over tokens and heads. dout: what qk_norm_rope_backward gets (before it: that works in place). */
void qk_norm_weight_backward(float *dq_weight /*[D] or NULL*/, float *dk_weight /*[D] or NULL*/,
                             const floatX *dout /*[N,P]*/, const floatX *qkv /*[N,P]*/, float eps, const float *cos_table, const float *sin_table,
                             const int32_t *positions /*[N] or NULL*/, int N, AttentionShape a, Scratch scratch);
/* dembed[ids[n],:] += scale * dx[n,:], equal ids in the order of n. */
void embedding_backward(float *dembed /*[V,C]*/, const int32_t *ids /*[N]*/, const floatX *dx /*[N,C]*/, float scale,
                        int N, int C, int V);
/* What the ops read of a trained weight: w->packed, which has weight_packed_bytes bytes, and w->data, which must be
   memory that may be written here; either may be NULL, both are the backend's. From fp32 values rounded to w->format:
   the bits that weight_pack makes of a file with these values. */
void weight_set(Weight *w, const float *values /*[rows,cols], the backend's memory*/);
/* out = factor * value rounded to format: norms and biases, which ops read in fp32. */
void vector_set(float *out /*[count]*/, const float *values /*[count]*/, size_t count, FormatId format, float factor);

/* ---- a head of few outputs: classification, regression, reward -------------------------------------------------- */

/* logits[i,k] = x[rows[i],:] . score[k,:], in fp32. */
void score_forward(float *logits /*[M,K]*/, const floatX *x /*[N,C]*/, const int32_t *rows /*[M]*/,
                   const float *score /*[K,C]*/, int M, int K, int C);
/* dx[rows[i],:] = sum_k dlogits[i,k] score[k,:]; every other row of dx gets 0; rows rise.
   dscore[k,:] += sum_i dlogits[i,k] x[rows[i],:] */
void score_backward(floatX *dx /*[N,C] or NULL*/, float *dscore /*[K,C] or NULL*/, const float *dlogits /*[M,K]*/,
                    const floatX *x /*[N,C]*/, const int32_t *rows /*[M]*/, const float *score /*[K,C]*/, int M, int N,
                    int K, int C);

/* AdamW in PyTorch's order (Loshchilov & Hutter 2019; torch/optim/adamw.py), over a flat range; g is read as
   grad_scale * grad (clipping), step t counts from 1:
     p *= 1 - lr*wd;  m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2
     p -= lr / (1-b1^t) * m / (sqrt(v) / sqrt(1-b2^t) + eps) */
void adamw_update(float *param /*[count]*/, float *m, float *v, const float *grad, size_t count, float grad_scale,
                  float lr, float beta1, float beta2, float eps, float weight_decay, int step);
/* The same with both moments in 8 bits (Dettmers et al. 2022; bitsandbytes' AdamW8bit, block-wise): blocks of
   ADAMW_BLOCK neighbours share an absmax, codes are the nearest of 256 numbers of the dynamic map, which is signed for
   m and unsigned for v (adamw_map, adamw_code):
     m = map[code] absmax, v likewise;  the step above, with p from m and v before they are rounded;
     absmax = max |m| of the block;  code = the nearest number's to m / absmax, that of 0 where absmax is 0
   Codes and absmax begin as zeros. */
enum { ADAMW_BLOCK = 256 };
void adamw_8bit_update(float *param /*[count]*/, uint8_t *m, uint8_t *v, float *m_absmax /*[blocks]*/, float *v_absmax,
                       const float *grad, size_t count, float grad_scale, float lr, float beta1, float beta2, float eps,
                       float weight_decay, int step);
/* sqrt(sum g^2), in double, blocks of a fixed size summed in order. */
double global_norm(const float *grad /*[count]*/, size_t count);

/* =====================================================================================================================
   4  THE MODEL
   ================================================================================================================== */

/* What backward computes again instead of keeping: nothing | gate and up | the whole layer from its input; no backward
   at all. */
typedef enum { RECOMPUTE_NONE, RECOMPUTE_GATE_UP, RECOMPUTE_LAYER, FORWARD_ONLY, RECOMPUTE_COUNT = FORWARD_ONLY }
    Recompute;
extern const char *const recompute_name[RECOMPUTE_COUNT];

typedef struct Layer {
    float *norm[NORM_COUNT];                /* NORM_ATTENTION, NORM_MLP [C]; NORM_Q, NORM_K [D] or NULL */
    Linear linear[MODULE_COUNT];
} Layer;

/* What backward needs of one layer. Norm outputs, rotated q and k, and silu(gate)*up are computed again: elementwise
   work is cheaper than memory. */
typedef struct LayerActivations {
    floatX *x;                              /* [N,C] residual stream at the layer's input */
    floatX *qkv;                            /* [N,P] before norm and rope */
    floatX *attention;                      /* [N,H,D] */
    floatX *after_attention;                /* [N,C] residual stream */
    floatX *gate_up;                        /* [N,2F] */
    floatX *t_qkv, *t_o, *t_gate_up, *t_down;   /* [N, ranks] rank-r intermediates of the adapters */
    float *rstd1, *rstd2;                   /* [N] */
    float *lse;                             /* [N,H] */
    int width[LORA_GROUPS];                 /* columns that t_qkv, t_o, t_gate_up, t_down have */
    uint8_t *kept_qkv, *kept_o, *kept_gate_up, *kept_down;  /* kept_bytes of each group: dropout masks; NULL: none */
} LayerActivations;

/* PEFT's init_lora_weights: where a new adapter begins. With the first two B = 0 and the base stays what it is. PiSSA
   and OLoRA begin at a part of W, scale B0 A0, and take it out of the base, W - scale B0 A0, when an adapter is
   attached and when one is loaded: training begins at the base model all the same. */
typedef enum { LORA_INIT_TRUE, LORA_INIT_GAUSSIAN, LORA_INIT_PISSA, LORA_INIT_OLORA, LORA_INIT_COUNT } LoraInit;
extern const char *const lora_init_name[LORA_INIT_COUNT];  /* "true", "gaussian", "pissa", "olora" */
static inline bool lora_init_takes_out(LoraInit init) { return init >= LORA_INIT_PISSA; }

typedef struct LoraPart { int rank; float alpha; } LoraPart;      /* of one projection; rank 0: not adapted */

/* What is trained (--train), to be or-ed. LoRA, norms, head and embeddings go together, and what stands beside LoRA is
   PEFT's modules_to_save; the last layers and everything stand alone. A tied head and embedding are one matrix; beside
   LoRA, as in PEFT, the one that is trained is a copy. */
enum { TRAIN_LORA = 1, TRAIN_NORMS = 2, TRAIN_HEAD = 4, TRAIN_EMBEDDINGS = 8,
       TRAIN_LAST = 16,                     /* every tensor of the last layers, and the final norm */
       TRAIN_FULL = 32 };
/* "lora,head", "last:2"; false: err says what is wrong with it. */
bool train_parse(int *train, int *last_layers, const char *text, Error *err);
void train_text(Text *t, int train, int last_layers);

/* A head of few outputs in place of the language model's: classification, regression, reward. transformers' num_labels,
   problem_type, id2label and pad_token_id. */
typedef struct ClassConfig {
    int num_labels;                         /* K; 0: there is no such head */
    Problem problem_type;                   /* AUTO: not known, or a reward model */
    char **names;                           /* [K] class 0 first; NULL: not known, or no classes */
    int pad_token_id;                       /* pooling is at the last token that is another one; -1: at the last */
} ClassConfig;

/* What is trained and the adapter's shape, with PEFT's names (adapter_config.json). */
typedef struct LoraConfig {
    int r;
    float lora_alpha, lora_dropout;
    bool use_rslora;
    bool target[MODULE_COUNT];
    uint8_t *layers;                        /* stb_ds array [L] of 0/1 (layers_to_transform), NULL: all */
    LoraPart *parts;                        /* stb_ds array [L * MODULE_COUNT]: projection by projection, where one r
                                               and alpha on every target of every layer do not say it; NULL: they do */
    LoraInit init;
    int train, last_layers;                 /* TRAIN_, 0: TRAIN_LORA; N of last:N */
    uint8_t *tensors;                       /* stb_ds array of 0/1, in the order of model_tensors: those trained
                                               themselves where `train` does not say it, NULL: it does */
    ClassConfig classes;                    /* with a classification head, which is always trained */
} LoraConfig;
static inline bool adapter_has_lora(const LoraConfig *c) { return !c->train || (c->train & TRAIN_LORA); }

/* Where a forward pass first met a NaN or infinity. */
typedef struct WorkspaceProbe { const char *tensor; int layer; int64_t index; int width; } WorkspaceProbe;

/* Keys and values of the sequences being generated, in the backend's memory: layer l's begin at base + l * layer. */
typedef struct Cache {
    floatX *base;                           /* [L][places,2,KV,capacity,D] */
    size_t layer, bytes;                    /* elements of one layer; bytes of all */
    int32_t *place;                         /* [max_tokens]: of every token of the batch */
    int places, capacity;
    bool decode;                            /* the batch is one new token of each of N sequences; else whole prompts */
} Cache;

/* Frozen: the weights as they are in the folder's files. Nothing below changes an open model, so any number of
   adapters, workspaces and runs may share it. */
typedef struct Model {
    ModelConfig config;
    char *folder;
    TensorSet files;
    char prefix[64];                        /* of the tensors' names: "model.", or what another program wrote */
    Weight embed, head;                     /* [V,C] both; the same data when tied */
    float *final_norm;                      /* [C] */
    ClassConfig classes;                    /* of a ...ForSequenceClassification, */
    float *score;                           /* [K,C] and its head in fp32; NULL: there is none */
    bool no_head;                           /* and the files have no lm_head beside it: `head` is the embedding */
    Layer *layers;                          /* [L] */
    void *weight_arena, *norm_arena;        /* packed matrices; norms and biases in fp32 */
    size_t weight_bytes, norm_bytes;
    size_t layer_weights;                   /* elements of the layers' matrices: what every token is multiplied by */
    bool shapes_only;                       /* opened for its shapes alone: no weights, no memory taken */
} Model;

/* One tensor that is trained, by the name that it has in the adapter's file; it lies at `offset` in each of the four
   arenas. Who trains something else writes another rule that makes the list (see adapter_rule_lora): saving, loading
   and the optimizer go by it. */
typedef struct Trainable {
    char name[224];
    int64_t shape[2];                       /* shape[1] 0: one-dimensional */
    size_t offset;
    float rate, decay;                      /* factors on the learning rate and on the weight decay */
    TensorKind kind;                        /* which tensor it is */
    int layer, place;                       /* as in TensorSpec; of A and B, too */
    Weight base;                            /* the model's own tensor, as its file has it; data NULL: A or B */
    size_t moment;                          /* where its moments begin in adam_m and adam_v */
    bool eight_bits;                        /* they are a code an element, then absmax: adamw_8bit_update */
} Trainable;
size_t adapter_tensor_count(const Trainable *t);                /* elements */

/* The norms of a layer that an adapter trains, and their gradients; NULL: the model's. */
typedef struct AdapterNorms { const float *norm[NORM_COUNT]; float *d_norm[NORM_COUNT]; } AdapterNorms;

/* What AdamW's moments are kept in: fp32, or, as bitsandbytes' 8-bit AdamW under transformers' Trainer has them, 8 bits
   of a tensor with at least 4096 elements that is no embedding (a quarter of the memory), fp32 of the others. */
typedef enum { OPTIMIZER_ADAMW, OPTIMIZER_ADAMW_8BIT, OPTIMIZER_COUNT } OptimizerType;
extern const char *const optimizer_name[OPTIMIZER_COUNT];  /* "adamw", "adamw_8bit" */

/* What is trained beside one Model, which it leaves as it is: any number of adapters may stand over one. Four identical
   arenas, so that zeroing, clipping and AdamW are flat ranges. Of a tensor of the model that is trained itself, `param`
   has the fp32 values, and copy_arena what the ops read in place of the model's: the same, rounded to the format that
   the folder has it in, so that training and what is saved are one model. Begin with a zeroed one. */
typedef struct Adapter {
    const Model *model;                     /* whose projections it adapts; NULL: there is none */
    LoraConfig config;
    Trainable *list;                        /* stb_ds array, in the order of the arenas */
    Lora *lora;                             /* [L * MODULE_COUNT] in forward order */
    AdapterNorms *norms;                    /* [L] */
    Weight embed, head;                     /* [V,C] copies; rows 0: the model's */
    const float *final_norm;                /* [C] copy, or NULL: the model's */
    float *d_embed, *d_head, *d_final_norm; /* in `grad`, or NULL; the same matrix of a tied model without LoRA */
    float *score, *d_score;                 /* [K,C] in `param` and in `grad`, or NULL; K: config.classes.num_labels */
    float *param, *grad;                    /* [param_count] */
    float *adam_m, *adam_v;                 /* [moment_count]: the same, but for 8 bits, which take less */
    size_t param_count, moment_count;
    float *initial;                         /* PiSSA, OLoRA: [param_count] in ordinary memory, the adapter that every
                                               Lora.rest is without; else NULL */
    void *rest_arena, *packed_arena, *copy_arena;     /* every Lora.rest of PiSSA in fp32; Lora.packed; the copies */
    size_t rest_bytes, packed_bytes, copy_bytes;
    bool frozen;                            /* set before it is loaded: there are no gradients and no moments, it cannot
                                               be trained */
    const char *about;                      /* NULL, or what adapter_save writes as run.json beside the adapter */
    OptimizerType optim;                    /* to be set before adapter_attach and adapter_load */
    int adam_step;                          /* optimizer steps taken */
    float loss_scale;                       /* factor on every gradient of the backward pass, taken out again by the
                                               optimizer: 1 except with fp16 */
    int scale_age;                          /* steps since it changed */
} Adapter;

/* What one forward and backward pass writes: for batches of at most max_tokens tokens with sequences of at most
   max_positions, and adapters no wider than the one that it was opened for. Taken once, by workspace_open. */
typedef struct Workspace {
    int max_tokens, max_positions;
    Recompute recompute;
    int lowest;                             /* the layer that backward ends at: what it keeps may lie where those below
                                               have written before it; forward only: L */
    void *arena; size_t arena_bytes;        /* everything below but `layers` lies in it */
    LayerActivations *layers;               /* [L] */
    floatX *final_x, *normed, *rotated, *h, *projected;     /* [N,C] [N,C] [N,P] [N,F] [N,C] */
    floatX *d_residual, *d_normed, *d_h, *d_attention, *d_qkv;   /* [N,C] [N,C] [N,F] [N,HD] [N,P] */
    float *final_rstd, *cos_table, *sin_table;              /* [N] [positions, D/2] */
    int32_t *ids, *positions, *cu_seqlens, *labelled, *targets;   /* [N] [N] [S+1] [M] [M]: the batch, here */
    RowLoss *row_loss;                                      /* [M] */
    float *pad_row;                         /* [C], in ordinary memory: see embedding_gradient */
    Scratch scratch;
    Cache *cache;                           /* not NULL: forward stores keys and values there (chapter 7) */
    struct Classifier *classifier;          /* not NULL: what a classification head's losses work in (chapter 6) */
    WorkspaceProbe *probe;                  /* not NULL: forward looks at every tensor it writes (slow; used once
                                               something went wrong) */
} Workspace;

/* Opens a Hugging Face folder: config.json and the weights, each checked for name, shape, dtype and non-finite values,
   and brought into the backend's layout. The tokenizer is separate. */
bool model_open(Model *m, const char *folder, Error *err);
/* Opens its tokenizer; one whose ids go beyond the embedding that config.json tells of is refused. */
bool model_tokenizer(Tokenizer **t, const char *folder, const ModelConfig *c, Error *err);
/* The same without the values: names and shapes are checked, nothing is read or taken, no device is needed. Good for
   adapter_attach and workspace_open without allocate: the memory plan. */
bool model_plan(Model *m, const char *folder, Error *err);
void model_close(Model *m);
size_t model_parameters(const Model *m);    /* of the base, what is tied counted once */
/* The rows of a memory table that a model and an adapter (or NULL) take. */
void model_memory(const Model *m, const Adapter *a, MemoryTable *table);
/* Sizes everything that a pass of m with a (NULL: the base alone) writes, and adds its rows to `table` (or NULL). With
   allocate false nothing is taken: the plan alone. *w is zeroed, or an open workspace, which is closed first. */
bool workspace_open(Workspace *w, const Model *m, const Adapter *a, int max_tokens, int max_positions,
                    Recompute recompute, bool allocate, MemoryTable *table, Error *err);
void workspace_close(Workspace *w);

/* From the batch's ids to the final norm's output, w->normed [N,C]. a NULL: the base alone. */
void model_forward(const Model *m, const Adapter *a, Workspace *w, const Batch *b, DropoutKey key);
/* The head (the adapter's where it trains one) and the token losses of w->normed. dloss: model_backward is to add the
   gradient of dloss * (sum of the losses) to a->grad: w->d_normed gets it times the loss scale, the head's is added
   here. 0: the losses alone. b->row_loss gets the loss row by row. */
LossStats model_loss(const Model *m, const Adapter *a, Workspace *w, const Batch *b, float dloss);
/* From w->d_normed, which a loss with dloss has left, down to the lowest tensor that is trained: added to a->grad. */
void model_backward(const Model *m, Adapter *a, Workspace *w, const Batch *b, DropoutKey key);
/* logits [N,V] of every token. */
void model_logits(const Model *m, const Adapter *a, Workspace *w, float *logits, const Batch *b);
/* Runs the forward again and names the first tensor with a non-finite value: "layer 3 gate_up, data row 17". */
void model_explain_nonfinite(const Model *m, const Adapter *a, Workspace *w, const Batch *b, DropoutKey key, char *text,
                             size_t bytes);

/* =====================================================================================================================
   5  THE ADAPTER AND THE OPTIMIZER
   ================================================================================================================== */

/* A new adapter of the model, initialised as PEFT does by config->init (peft/tuners/lora/layer.py):
     true       A ~ U(-1/sqrt(in), 1/sqrt(in)), B = 0
     gaussian   A ~ N(0, 1/r^2), B = 0
     pissa      A = sqrt(S/scale) U^T, B = V sqrt(S/scale) of W = V S U^T, the r largest singular values
     olora      A = R, B = Q of W = Q R, the first r rows and columns
   *a is zeroed, or an adapter, which is dropped first. */
bool adapter_attach(Adapter *a, const Model *m, const LoraConfig *config, uint64_t seed, Error *err);
/* The adapter of a PEFT folder (adapter_config.json + adapter_model.safetensors); the trained weights of a checkpoint
   without LoRA (trained.safetensors); or a whole model folder, as every tensor in which it differs from m. What PEFT's
   uses and we do not have (DoRA, ...) is refused by name; a field that nobody knows gets a warning. PiSSA and OLoRA
   change the base that the adapter stands on (Lora.rest); the model itself stays what it is. */
bool adapter_load(Adapter *a, const Model *m, const char *folder, Error *err);
/* Where a file of an adapter folder is, also after a crash between its two renames: path[size]. */
void adapter_file(char *path, size_t size, const char *folder, const char *name);
/* Gives back what it holds; *a is zeroed but for `about`, `optim` and `frozen`. */
void adapter_drop(Adapter *a);
/* To be called by whoever writes to a->param past the functions above. */
void adapter_changed(Adapter *a);
/* Writes the adapter as PEFT's save_pretrained does; without LoRA the whole model as a Hugging Face folder, see
   adapter_merge, its floats in `dtype` (DTYPE_COUNT: each in the base's own). An earlier output there makes way when
   everything is on the disk. */
bool adapter_save(const Adapter *a, const char *folder, Error *err);
bool adapter_save_as(const Adapter *a, const char *folder, DType dtype, Error *err);
/* A PiSSA or OLoRA adapter as plain LoRA of twice the rank, which leaves the base as it is: scale (B A - B0 A0) is
   scale [B, -B0] [A; A0], as PEFT's subtract_mutated_init has it. *plain is zeroed, or an adapter, dropped first. */
bool adapter_convert(Adapter *plain, const Adapter *a, Error *err);
/* Writes the base model with the adapter in it, W + scale B A, as a Hugging Face folder: the same shards and tensors,
   tokenizer and configuration beside them; every float tensor in `dtype` (DTYPE_COUNT: each in its own). fp32
   arithmetic, one tensor at a time. The folder must not exist yet; it gets its name when everything is on the disk.
   A weight that its dtype cannot hold is an error. */
bool adapter_merge(const Adapter *a, const char *folder, DType dtype, Error *err);
/* Relative rms difference of two lists of logits, and how much of it rounding the merged weights to dtype explains:
   independent errors of a unit in the last place, in each of 2 L + 3 stages (two a layer, embedding, last norm, head),
   and 1e-5 of fp32 sums. */
double rms_error(const float *got, const float *want, size_t count);
double merged_tolerance(FormatId format, int layers);
void adapter_zero_grad(Adapter *a);
/* Norm of the gradient in a->grad, without the loss scale. */
double adapter_grad_norm(const Adapter *a);
/* Name in the safetensors file of the parameter at `index` of the arenas: for messages. */
void adapter_parameter_name(const Adapter *a, size_t index, char *text, size_t bytes);

/* Factors on the learning rate. LoRA+ (Hayou et al. 2024): that of B, and of norms and biases beside it, as
   peft/optimizers/loraplus.py groups them; embedding_rate: of a trained embedding and head. 1: none; anything else is
   an error where nothing of the kind is trained. */
bool adapter_rates(Adapter *a, double lora_plus_ratio, double embedding_rate, Error *err);

/* AdamW and clipping; max_grad_norm 0: none. */
typedef struct Optimizer { double beta1, beta2, epsilon, weight_decay, max_grad_norm; } Optimizer;
/* What came of a step. Only STEP_TAKEN changes the adapter. STEP_OVERFLOW: the gradient was too large for fp16; the
   loss scale is half of what it was, and the same gradient has to be made again. */
typedef enum { STEP_TAKEN, STEP_OVERFLOW, STEP_NONFINITE } StepOutcome;
/* One step with the gradient in a->grad, that of the mean loss times a->loss_scale, as model_backward leaves it: clips
   it, AdamW at that learning rate over every trainable, and the backend's copies follow. *norm: adapter_grad_norm. */
StepOutcome optimizer_step(Adapter *a, const Optimizer *o, double learning_rate, double *norm);

/* The processes that train one adapter together: of every step's micro-batches each makes every size-th, and rank 0
   writes. There is one so far; these three are the places where several would meet. */
typedef struct Team { int rank, size; } Team;
/* Every process gets the sum over all, added in rank order: of an array of the backend, of numbers of the host. */
void team_reduce(const Team *t, float *sum /*[count]*/, size_t count);
void team_sum(const Team *t, double *sum /*[count]*/, int count);
void team_barrier(const Team *t);           /* nobody goes on before all are here */

typedef enum { SCHEDULE_LINEAR, SCHEDULE_COSINE, SCHEDULE_CONSTANT, SCHEDULE_CONSTANT_WITH_WARMUP, SCHEDULE_COUNT }
    Schedule;
extern const char *const schedule_name[SCHEDULE_COUNT];
/* Factor of the learning rate at 0-based step `step` of `total` (transformers/optimization.py). With warm-up the first
   step has factor 0. */
double schedule_factor(Schedule s, int64_t step, int64_t warmup, int64_t total);

/* =====================================================================================================================
   6  TRAINING
   ================================================================================================================== */

/* when to evaluate, when to save */
typedef enum { STRATEGY_NO, STRATEGY_STEPS, STRATEGY_EPOCH, STRATEGY_COUNT } Strategy;
extern const char *const strategy_name[STRATEGY_COUNT];    /* "no", "steps", "epoch" */
/* A step whose loss or gradient is not finite ends the run, or is left out and counted. */
typedef enum { NONFINITE_STOP, NONFINITE_SKIP, NONFINITE_COUNT } OnNonfinite;
extern const char *const nonfinite_name[NONFINITE_COUNT];

/* The options that decide a run's numbers beside model, data, adapter and length: each is a field of TrainOptions and a
   member of a checkpoint's identity, which a run that resumes must share. */
#define TRAIN_DECIDES(_) \
    _(double, learning_rate) _(Schedule, lr_scheduler_type) _(double, weight_decay) _(double, max_grad_norm) \
    _(double, adam_beta1) _(double, adam_beta2) _(double, adam_epsilon) \
    _(int, per_device_train_batch_size) _(int, gradient_accumulation_steps) _(int64_t, seed) _(bool, shuffle) \
    _(OptimizerType, optim) _(TrainGiven, lora_plus_ratio) _(TrainGiven, embedding_learning_rate)
typedef double TrainGiven;                  /* 0: it was not given, and then nothing tells of it */

/* Names, meanings and defaults are those of TRL's SFTConfig and PEFT's LoraConfig unless a comment says otherwise.
   train_defaults fills in the embedded default's. */
typedef struct TrainOptions {
#define TRAIN_FIELD(type, name) type name;
    TRAIN_DECIDES(TRAIN_FIELD)
#undef TRAIN_FIELD
    const char *model, *output, *init_adapter;     /* folders; init_adapter may be NULL */
    const char *data, *eval_data;           /* files; eval_data may be NULL, and data for a plan */
    const char *const *more_data; int more_data_count;     /* further training files */
    int max_train_samples, max_eval_samples;       /* rows of data and of eval_data, from the first; 0: all */
    const struct Objective *objective;      /* what is learned; NULL: by data_options.task */
    const char *class_weights;              /* classification: see class_weights_parse; NULL: none. These two: see */
    double label_smoothing, focal_gamma;    /* loss_softmax, loss_focal; 0: off */
    double eval_split;                      /* without eval_data: this share of the training examples is held out for
                                               evaluation; 0: none */
    LoraConfig lora;
    double warmup_ratio, num_train_epochs;
    int warmup_steps, max_steps, logging_steps;       /* max_steps <= 0: off */
    int per_device_eval_batch_size;
    DataOptions data_options;
    Recompute recompute;
    bool fit;                               /* choose micro-batch and recompute level so that the run fits: the cheapest
                                               level, then the largest micro-batch; their product with the accumulation
                                               stays */
    size_t device_memory;                   /* bytes that a run may take; 0: what is free */
    /* evaluation: during training by strategy, and after the last step in any case where there is eval_data */
    Strategy eval_strategy;
    int eval_steps;                         /* 0: logging_steps */
    bool eval_on_start;                     /* also before the first step */
    const char *metric_for_best_model;      /* a metric_find name; NULL: loss */
    int greater_is_better;                  /* 0, 1; -1: what the metric is, true of the token accuracy only */
    bool load_best_model_at_end;            /* the adapter that is saved is the best evaluation's: an evaluation that
                                               improves the metric writes a checkpoint */
    int early_stopping_patience;            /* stop after so many evaluations in a row that do not improve the metric by
                                               more than the threshold; 0: never */
    double early_stopping_threshold;
    /* checkpoints */
    Strategy save_strategy;                 /* when output/checkpoint-N is written, and after the last step; a stopped
                                               run writes one in any case */
    int save_steps, save_total_limit;       /* keep so many of the newest, and the best (0: all) */
    const char *resume;                     /* a checkpoint folder, or an output folder (then its newest checkpoint);
                                               NULL: start afresh */
    bool resume_force;                      /* go on although options or data differ from the checkpoint's */
    OnNonfinite on_nonfinite;
    bool convert_to_lora;                   /* a PiSSA or OLoRA adapter is saved as plain LoRA, see adapter_convert;
                                               checkpoints keep it as it is */
    const DType *save_dtype;                /* of a whole model that the run writes; NULL: the base's own */
    const char *fallback_output;            /* where the adapter goes when output cannot be written at the end; NULL:
                                               the system's temporary folder */
} TrainOptions;

/* What is learned, as far as it decides which metrics there are. */
enum { METRICS_OF_TOKENS, METRICS_OF_TWO_CLASSES, METRICS_OF_CLASSES, METRICS_OF_LABELS /* several of them a row */,
       METRICS_OF_NUMBERS, METRICS_OF_PAIRS };
/* One line of the log: HF's log_history. A training record has loss, an evaluation record has eval_loss. Checkpoints
   keep every number of it in this order, all from epoch on being doubles: new ones go to the end. */
typedef struct LogRecord {
    bool eval;
    uint8_t of;                             /* METRICS_OF_ that was learned: which metrics it has */
    int64_t step, total_steps, num_tokens;
    double epoch, loss, grad_norm, learning_rate, mean_token_accuracy, entropy;
    double token_loss, token_accuracy, token_entropy, perplexity, mean_example_perplexity;     /* of an evaluation */
    double tokens_per_second, seconds, eta;
    double ceiling_share;                   /* share of backend_ceiling that useful arithmetic took */
    /* classification, regression and reward; NAN: has no value, and is in no log */
    double accuracy, balanced_accuracy, precision, recall, f1, macro_f1, weighted_f1;
    double roc_auc, average_precision, best_threshold, best_threshold_f1, micro_f1, subset_accuracy;
    double mse, mae, r2, pearson, spearman;
    double margin, min_reward, mean_reward, max_reward;
} LogRecord;

/* What a number of a LogRecord is. Log lines, trainer_state.json, the terminal, TensorBoard, a log line's averages and
   the choice of the best model all go by these rows: a new metric is a field of LogRecord, a row, and whatever measures
   it (Objective.measure, model_evaluate). */
enum { METRIC_TRAIN = 1, METRIC_EVAL = 2,   /* the records that have it */
       METRIC_TAG = 4,                      /* training's goes to TensorBoard */
       METRIC_BEST = 8,                     /* may choose the best model; evaluation's goes to TensorBoard */
       METRIC_GREATER = 16,                 /* greater is better */
       METRIC_PERCENT = 32 };               /* the terminal shows it times 100 */
typedef enum { OVER_NOTHING, OVER_STEPS, OVER_MICRO_BATCHES } MetricMean;
typedef struct Metric {
    const char *name;                       /* "loss"; of an evaluation "eval_loss" */
    size_t at;                              /* of the double in LogRecord */
    int is;                                 /* METRIC_* */
    MetricMean mean;                        /* what a log line's value is a mean over; OVER_NOTHING: the last step's */
    const char *log;                        /* format in the log */
    const char *train_text, *eval_text;     /* format on the terminal; NULL: not there */
    int of;                                 /* bits 1 << METRICS_OF_: who has it */
} Metric;
enum { LOG_METRICS = 36 };
/* Has a record of that kind, METRICS_OF_, the metric? */
static inline bool metric_is_of(const Metric *m, int of) { return m->of >> of & 1; }
extern const Metric log_metric[LOG_METRICS];        /* in the log's order */
/* The metric of that name ("eval_" in front or not) that may choose the best model, or NULL. */
const Metric *metric_find(const char *name);
double metric_value(const LogRecord *r, const Metric *m);
/* A record's metrics for the terminal: "loss 2.5712  grad_norm 1.204  lr 2.00e-04  accuracy 0.512  entropy 2.613". */
void log_record_text(Text *t, const LogRecord *r);
/* And for log.jsonl: one object. */
void log_record_json(Text *t, const LogRecord *r);

/* How the loss of a head of few outputs is meant, and what it works in beside a Workspace, whose `classifier` it is. */
typedef struct Classifier {
    Task task;
    Problem problem;
    int K, of;                              /* of: METRICS_OF_ */
    float *class_weights;                   /* [K], or NULL: 1 everywhere */
    double label_smoothing, focal_gamma;    /* gamma 0: cross-entropy */
    float *logits;                          /* [rows,K] the backend's: logits, then their gradient */
    float *host; double *row;               /* [rows,K] the same here; [4 K] of one row or pair */
    int rows;
} Classifier;
/* For batches of at most `rows` sequences of data like d, with a head of its classes; o: class_weights, label_smoothing
   and focal_gamma, or NULL; 0: no memory is taken. *c is zeroed, or an open one, which is closed first. Errors: see
   class_weights_parse; label smoothing or focal loss where there are no classes, or both. */
struct TrainOptions;
bool classifier_open(Classifier *c, const Dataset *d, const struct TrainOptions *o, int rows, Error *err);
void classifier_close(Classifier *c);

struct EvalResult;
/* What a run learns from its slots. The loop knows nothing else of it: another objective is another one of these, with
   rows of log_metric for what it measures. */
typedef struct Objective {
    const char *name;
    /* What a slot adds to the divisor of its step's loss, which must be known before the step's first gradient. */
    double (*weight)(const Classifier *c, const Dataset *d, size_t slot);
    /* After model_forward: the losses of a batch, with the head that the adapter has; dloss not 0: also w->d_normed for
       model_backward, the gradient of dloss * (sum of the losses). */
    LossStats (*loss)(const Model *m, const Adapter *a, Workspace *w, const Batch *b, float dloss);
    /* Adds a micro-batch's metrics, those that are means OVER_MICRO_BATCHES, to a record that sums them. */
    void (*measure)(LogRecord *sums, const LossStats *s);
    /* The end of an evaluation: what is of all its rows together. */
    void (*finish)(struct EvalResult *result, const LossStats *sums, const Classifier *c, const Dataset *d);
} Objective;
extern const Objective objective_tokens;    /* cross-entropy of the labelled tokens: all of a step count alike */
/* classes, several labels a row, or numbers, by the data's problem: mean of the rows' losses, weighted by their class;
   pairs: -log sigmoid(chosen - rejected - margin) (TRL's RewardTrainer) */
extern const Objective objective_classes, objective_pairs;

/* What the loop tells the program; any may be NULL. */
typedef struct TrainHooks {
    void *user;
    /* before anything is written or trained; false: the run ends here, err says why */
    bool (*on_begin)(void *user, const Model *m, Adapter *a, const TrainOptions *o, const Dataset *train,
                     const Dataset *eval, const MemoryTable *memory, int64_t total_steps, Error *err);
    /* after every optimizer step, with that step's own loss: for a progress bar */
    void (*on_step)(void *user, const LogRecord *record);
    /* every logging_steps, averaged since the last one; and every evaluation */
    void (*on_log)(void *user, const LogRecord *record);
    /* something went wrong that the run survives: a checkpoint that could not be written, a step left out */
    void (*on_warning)(void *user, const char *text);
    bool (*stop)(void *user);               /* asked after every step; true ends the run early, with everything saved */
    const Model *model;                     /* NULL, or the base model, already open: several runs over one (a sweep) */
    bool plan_only;                         /* end after on_begin: nothing is allocated for the run, nothing written */
    void (*on_phase)(void *user, const char *doing);                          /* what begins now and may take a while */
    /* before on_begin: memory that the hooks need beside the run's, as rows of the table; allocate: to be taken now, as
       nothing is taken once the steps have begun. --fit asks several times */
    bool (*on_plan)(void *user, const Model *m, const Adapter *a, bool allocate, MemoryTable *memory, Error *err);
    /* before on_log of an evaluation: all of it, the logits of a classification head with it */
    void (*on_evaluation)(void *user, const struct EvalResult *result, const Dataset *eval);
} TrainHooks;

typedef struct TrainResult {
    int64_t steps, resumed_from;            /* taken, of a run that failed too; resumed_from: the checkpoint's step, 0
                                               where there was none */
    int64_t best_step, skipped;             /* the best evaluation (0: none) and the adapter saved is its, with
                                               load_best_model_at_end; steps left out */
    double best_metric, first_eval_loss, last_eval_loss, train_loss, seconds, training_seconds /* without evaluation */;
    bool stopped, early_stopped;            /* by the hook; by patience */
    double total_flos, samples;             /* as trainer_state.json has them; examples seen */
    LogRecord last;                         /* the last evaluation; without one, the last training record */
    char checkpoint[4096];                  /* the last one written, or "" */
} TrainResult;

/* The whole job: open, attach, evaluate, train, evaluate, save. On an error nothing of an earlier output is lost. */
bool train_run(const TrainOptions *o, const TrainHooks *hooks, TrainResult *result, Error *err);
/* Is there a checkpoint in an output folder that --resume could go on from? */
bool train_can_resume(const char *output);
/* No id of the data set beyond the vocabulary; path: for the message. */
bool train_ids_check(const Dataset *d, int vocab, const char *path, Error *err);
/* Evaluation over a data set. Two ways of averaging, never under one name:
     loss, mean_token_accuracy, entropy    as transformers' Trainer and TRL log them (eval_loss,
                                      eval_mean_token_accuracy, eval_entropy): a mean over the batches
                                      of each one's own mean, the loss weighted by the batch's slots. They depend on
                                      batch_size, and on packing, as theirs do
     token_loss, token_accuracy, token_entropy    every token counts alike, however examples fall into batches
   perplexity = exp(token_loss); mean_example_perplexity = mean over examples of exp(its own mean loss).
   Classification and reward (the data set has targets): loss is the mean over all rows, by class_weights; the metrics
   are scikit-learn's over all rows, those of pairs TRL's, means over the batches. */
typedef struct EvalResult {
    LogRecord record;                       /* its metrics; where the run was is the caller's to fill in */
    int64_t tokens, examples;               /* labelled tokens; examples that have any */
    double perplexities;                    /* sum over examples of exp of its own mean loss */
    double *logits; int K;                  /* [examples,K] of a classification head, slot after slot; malloc'ed, to be
                                               freed; NULL: of tokens */
} EvalResult;
bool model_evaluate(const Model *m, const Adapter *a /* NULL: the base alone */, Workspace *w, const Dataset *d,
                    Batch *b, int batch_size, EvalResult *result, Error *err);
/* What was expected, and what is likeliest, of each row of such an evaluation of classes, as label_scores reads it. */
void class_counts(int64_t *counts /*[K][K+1]*/, const EvalResult *e, const Dataset *d);
/* The same of several labels a row: the scores of each label, and of all together. */
ClassMulti class_labels(LabelScore *each /*[K]*/, const EvalResult *e, const Dataset *d);

/* =====================================================================================================================
   7  GENERATION
   ================================================================================================================== */


/* Names, meanings and order are those of transformers' generate: repetition penalty, temperature, top-k, top-p, min-p
   (generation/utils.py, _get_logits_processor). */
typedef struct GenerateOptions {
    int max_new_tokens, batch_size;         /* batch_size: sequences at once; answers do not depend on it */
    double temperature;                     /* 0: greedy, the likeliest token (the lowest id among equals) */
    int top_k;                              /* 0: off */
    double top_p, min_p, repetition_penalty;      /* 1, 0, 1: off */
    uint64_t seed;                          /* with the prompt's row and the position: the key of every random number */
    const char *const *stop; int stop_count;      /* texts that end an answer and do not belong to it; the tokenizer's
                                                     stop tokens always do */
    void (*on_answer)(void *user, size_t prompt);      /* NULL, or told whenever answers[prompt] is complete; in any
                                                          order */
} GenerateOptions;
/* Greedy with the options off; then the folder's generation_config.json: max_new_tokens, repetition_penalty and, where
   it says do_sample, temperature, top_k, top_p, min_p. Out of range, or a field that would change answers: refused by
   name. */
bool generate_defaults(GenerateOptions *o, const char *folder, Error *err);

/* ids: [count], without the stop token. stopped: false where max_new_tokens ended it. */
typedef struct Answer { char *text; int32_t *ids; int count; bool stopped; } Answer;
void answers_free(Answer *answers, size_t count);

/* What generation writes: for at most cache.places sequences at once, prompts and their answers of at most
   cache.capacity tokens, of a model with adapters no wider than a (NULL: the base alone). */
typedef struct Generator {
    Workspace work;
    Cache cache;
    Batch batch;
    size_t bytes;                           /* of the backend's memory */
} Generator;
/* longest: tokens of a prompt. With allocate false nothing is taken: `bytes` alone. *g is zeroed, or an open one, which
   is closed first. */
bool generator_open(Generator *g, const Model *m, const Adapter *a, int places, int longest, int max_new_tokens,
                    bool allocate, Error *err);
void generator_close(Generator *g);

/* Answers every prompt. a NULL: the base alone. g NULL: memory for batch_size sequences of the longest prompt and its
   answer is taken first and given back at the end; else g's is used, which they must fit. A sequence that ends makes
   room for the next prompt. on_text (or NULL) gets every answer's text as it grows, whole characters only; it returns
   false to end that answer. t NULL: no stop tokens and no text, ids alone. Errors: a prompt and max_new_tokens longer
   than the model's context, no memory, logits that are not finite. answers: [count], malloc'ed inside. */
bool model_generate(const Model *m, const Adapter *a, Generator *g, const Tokenizer *t, const Prompt *prompts,
                    size_t count, const GenerateOptions *o, Answer *answers,
                    bool (*on_text)(void *user, size_t prompt, const char *text, size_t bytes), void *user, Error *err);
/* One token from logits [V], which are scratch afterwards. seen: the prompt's and the answer's tokens so far; prompt:
   its row; work: [V]. */
typedef struct GenCandidate { float p; int32_t id; } GenCandidate;
int32_t sample_token(float *logits, int V, const int32_t *seen, int seen_count, const GenerateOptions *o,
                     uint64_t prompt, uint32_t position, GenCandidate *work);

#ifdef __cplusplus
}
#endif
#endif /* LORA_H */

/* =====================================================================================================================
   =====================================================================================================================
   IMPLEMENTATION
   =====================================================================================================================
   ================================================================================================================== */
#ifdef LORA_IMPLEMENTATION

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#ifdef _OPENMP
#include <omp.h>
#endif

/* =====================================================================================================================
   2  FILES AND CONFIGURATION
   ================================================================================================================== */

const char *const dtype_name[DTYPE_COUNT] = {"F32", "F16", "BF16", "I32"};
const char *const module_name[MODULE_COUNT] = {"q_proj", "k_proj", "v_proj", "o_proj",
                                               "gate_proj", "up_proj", "down_proj"};
const char *const module_path[MODULE_COUNT] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                               "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"};

const char *const lora_init_name[LORA_INIT_COUNT] = {"true", "gaussian", "pissa", "olora"};

size_t dtype_size(DType t) { return t == DTYPE_F32 || t == DTYPE_I32 ? 4 : 2; }

/* ---- safetensors ---------------------------------------------------------------------------------------------------
   8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets: [begin, end)}}, then the data.
   The file stays mapped; tensors point into the mapping. */

static int tensor_compare_data(const void *a, const void *b) {
    const char *x = (const char *)((const Tensor *)a)->data, *y = (const char *)((const Tensor *)b)->data;
    return x < y ? -1 : x > y;
}

/* The non-negative integer a JSON number spells, or -1: sizes must not pass through rounding. */
static int64_t json_size(const Json *j) {
    if (!j || j->type != JSON_NUMBER) return -1;
    char *end;
    errno = 0;
    long long v = strtoll(j->str, &end, 10);
    return errno || *end || v < 0 ? -1 : v;
}

/* safetensors' dtypes that we do not use, so that a file with one can be read past it. */
static size_t tensor_other_dtype(const char *name) {
    static const struct { const char *name; size_t size; } other[] = {
        {"F64", 8}, {"I64", 8}, {"U64", 8}, {"U32", 4}, {"I16", 2}, {"U16", 2}, {"I8", 1}, {"U8", 1}, {"BOOL", 1},
        {"F8_E4M3", 1}, {"F8_E5M2", 1}};
    for (size_t i = 0; i < sizeof other / sizeof *other; i++) if (!strcmp(name, other[i].name)) return other[i].size;
    return 0;
}

static bool tensor_parse(Tensor *t, const Json *entry, const char *data, size_t data_bytes, const char *path,
                         Error *err) {
    const Json *dtype = json_get(entry, "dtype"), *shape = json_get(entry, "shape"),
        *offsets = json_get(entry, "data_offsets");
    const char *name = entry->key;
    if (!dtype || dtype->type != JSON_STRING || !shape || shape->type != JSON_ARRAY || !offsets ||
        offsets->type != JSON_ARRAY || offsets->count != 2)
        return fail(err, "bad safetensors header: tensor '%s' lacks dtype, shape or data_offsets; %s; download the "
                         "file again", name, path);
    size_t size = tensor_other_dtype(dtype->str);
    t->dtype = DTYPE_COUNT;
    for (int d = 0; d < DTYPE_COUNT; d++) {
        if (strcmp(dtype->str, dtype_name[d])) continue;
        t->dtype = (DType)d;
        size = dtype_size((DType)d);
    }
    if (!size)
        return fail(err, "unknown dtype '%s' of tensor '%s'; %s; this program reads F32, F16 and BF16 weights",
                    dtype->str, name, path);
    if (shape->count > 4)
        return fail(err, "tensor '%s' has %u dimensions; %s; at most 4 are supported", name, shape->count, path);
    t->ndim = 0;
    t->count = 1;
    for (const Json *s = shape->child; s; s = s->next) {
        int64_t v = json_size(s);
        if (v < 0 || (v > 0 && t->count > (size_t)(PTRDIFF_MAX / 8) / (size_t)v))
            return fail(err, "bad shape of tensor '%s'; %s; download the file again", name, path);
        t->shape[t->ndim++] = v;
        t->count *= (size_t)v;
    }
    int64_t begin = json_size(offsets->child), end = json_size(offsets->child->next);
    if (begin < 0 || end < begin || (uint64_t)end > data_bytes)
        return fail(err, "data of tensor '%s' lies outside the file (offsets %lld to %lld of %zu bytes); %s; the file "
                         "is truncated or damaged, download it again",
                    name, (long long)begin, (long long)end, data_bytes, path);
    t->bytes = (size_t)(end - begin);
    t->data = data + begin;
    if (t->bytes != t->count * size)
        return fail(err, "tensor '%s' has %zu bytes where its shape and dtype %s need %zu; %s; download the file again",
                    name, t->bytes, dtype->str, t->count * size, path);
    return true;
}

/* The header and its tensors, from memory: what the fuzzer calls. */
static bool safetensors_parse(Tensor **out /*stb_ds array*/, const char *base, size_t bytes, const char *path,
                              Error *err) {
    if (bytes < 8)
        return fail(err, "not a safetensors file: %zu bytes are too few; %s; download the file again", bytes, path);
    uint64_t header = 0;
    for (int i = 7; i >= 0; i--) header = header << 8 | (uint8_t)base[i];
    if (header > bytes - 8 || header > 100u << 20)
        return fail(err, "bad safetensors header: its length %llu does not fit in the file of %zu bytes; %s; the file "
                         "is truncated or not safetensors, download it again", (unsigned long long)header, bytes, path);
    JsonDoc doc;
    if (!json_parse(&doc, base + 8, (size_t)header, path, 1, err)) return false;
    bool ok = doc.root->type == JSON_OBJECT ||
              fail(err, "bad safetensors header: not an object; %s; download the file again", path);
    const char *data = base + 8 + header;
    for (const Json *e = ok ? doc.root->child : NULL; e && ok; e = e->next) {
        if (!strcmp(e->key, "__metadata__")) continue;
        Tensor t;
        memset(&t, 0, sizeof t);
        ok = tensor_parse(&t, e, data, bytes - 8 - (size_t)header, path, err);
        if (ok) { t.name = text_copy(e->key); arrput(*out, t); }
    }
    json_free(&doc);
    if (!ok) return false;
    /* The format demands that the data is covered exactly once; anything else is a damaged or forged file. */
    if (arrlen(*out)) qsort(*out, (size_t)arrlen(*out), sizeof(Tensor), tensor_compare_data);
    const char *expected = data;
    for (ptrdiff_t i = 0; i < arrlen(*out); i++) {
        const Tensor *t = &(*out)[i];
        if ((const char *)t->data != expected)
            return fail(err, "tensor '%s' %s; %s; download the file again", t->name,
                        (const char *)t->data < expected ? "overlaps another" : "leaves a hole before it", path);
        expected += t->bytes;
    }
    if (expected != base + bytes)
        return fail(err, "%zu bytes after the last tensor; %s; download the file again",
                    (size_t)(base + bytes - expected), path);
    return true;
}

bool tensors_add_file(TensorSet *set, const char *path, Error *err) {
    size_t bytes;
    int fd = file_open(path, &bytes, err);
    if (fd < 0) return false;
    if (!bytes) { close(fd); return fail(err, "the weights are an empty file; %s; download the file again", path); }
    void *base = map_file(fd, bytes, MAP_PRIVATE, path);
    close(fd);
    if (!base) return fail(err, "cannot map the weights; %s: %s; check the free memory", path, strerror(errno));
    size_t f = (size_t)arrlen(set->files);
    arrsetlen(set->files, f + 1);
    set->files[f].base = base;
    set->files[f].bytes = bytes;
    set->files[f].path = text_copy(path);
    if (!set->table) { sh_new_arena(set->table); }
    Tensor *tensors = NULL;
    bool ok = safetensors_parse(&tensors, (const char *)base, bytes, path, err);
    for (ptrdiff_t i = 0; i < arrlen(tensors); i++) {
        if (ok && shgeti(set->table, tensors[i].name) >= 0)
            ok = fail(err, "tensor '%s' occurs twice; %s; download the folder again", tensors[i].name, path);
        if (ok) {
            char *name = tensors[i].name;
            shput(set->table, name, tensors[i]);
            ptrdiff_t at = shgeti(set->table, name);
            set->table[at].value.name = set->table[at].key;
        }
        free(tensors[i].name);
    }
    arrfree(tensors);
    return ok;
}

bool tensors_open_folder(TensorSet *set, const char *folder, Error *err) {
    char path[PATH_MAX];
    if (file_exists(folder, "model.safetensors")) {
        path_in(path, sizeof path, folder, "model.safetensors");
        return tensors_add_file(set, path, err);
    }
    if (!file_exists(folder, "model.safetensors.index.json"))
        return fail(err, "no weights: neither model.safetensors nor model.safetensors.index.json; %s; %s", folder,
                    file_exists(folder, "pytorch_model.bin") ?
                        "pytorch_model.bin is not read, save the model as safetensors" :
                        "give the folder of a downloaded Hugging Face model");
    path_in(path, sizeof path, folder, "model.safetensors.index.json");
    JsonDoc doc;
    if (!json_read(&doc, path, err)) return false;
    bool ok = true;
    const Json *map = json_get(doc.root, "weight_map");
    if (!map || map->type != JSON_OBJECT || !map->count)
        ok = fail(err, "no weight_map; %s; download the file again", path);
    /* every shard once, in the order of first mention */
    for (const Json *e = ok ? map->child : NULL; e && ok; e = e->next) {
        char shard[PATH_MAX];
        if (e->type != JSON_STRING || strchr(e->str, '/')) {
            ok = fail(err, "bad file name for tensor '%s'; %s; download the file again", e->key, path);
            break;
        }
        path_in(shard, sizeof shard, folder, e->str);
        bool seen = false;
        for (ptrdiff_t i = 0; i < arrlen(set->files); i++) seen |= !strcmp(set->files[i].path, shard);
        if (!seen) ok = tensors_add_file(set, shard, err);
    }
    json_free(&doc);
    return ok;
}

void tensors_close(TensorSet *set) {
    for (ptrdiff_t i = 0; i < arrlen(set->files); i++) {
        unmap_file(set->files[i].base, set->files[i].bytes);
        free(set->files[i].path);
    }
    arrfree(set->files);
    shfree(set->table);
    memset(set, 0, sizeof *set);
}

static void tensor_shape_text(char *out, size_t size, const int64_t *shape, int ndim) {
    size_t n = (size_t)snprintf(out, size, "[");
    for (int i = 0; i < ndim && n < size; i++)
        n += (size_t)snprintf(out + n, size - n, "%s%lld", i ? ", " : "", (long long)shape[i]);
    if (n < size) snprintf(out + n, size - n, "]");
}

const Tensor *tensors_get(const TensorSet *set, const char *name, int64_t rows, int64_t columns, Error *err) {
    const char *path = arrlen(set->files) ? set->files[0].path : "?";
    char expected[96], found[96];
    int64_t want[2] = {rows, columns};
    int ndim = columns ? 2 : 1;
    tensor_shape_text(expected, sizeof expected, want, ndim);
    TensorSet s = *set;                     /* shgeti wants an lvalue; the table is not changed */
    ptrdiff_t at = s.table ? shgeti(s.table, name) : -1;
    if (at < 0) {
        fail(err, "missing tensor '%s' of shape %s; %s; the folder is incomplete or its config.json belongs to another "
                  "model", name, expected, path);
        return NULL;
    }
    const Tensor *t = &s.table[at].value;
    tensor_shape_text(found, sizeof found, t->shape, t->ndim);
    if (t->ndim != ndim || t->shape[0] != rows || (columns && t->shape[1] != columns)) {
        fail(err, "tensor '%s' has shape %s where config.json asks for %s; %s; the files belong to different models",
             name, found, expected, path);
        return NULL;
    }
    if (dtype_format(t->dtype) == FORMAT_COUNT) {
        fail(err, "tensor '%s' has a dtype other than F32, F16 and BF16; %s; quantised checkpoints are not supported, "
                  "use the original model", name, path);
        return NULL;
    }
    return t;
}

/* ---- numbers -----------------------------------------------------------------------------------------------------
   What a Weight's numbers mean, and the table of the ways to keep them. */

static inline float format_float(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
static inline uint32_t format_bits(float f) { uint32_t bits; memcpy(&bits, &f, 4); return bits; }

/* Numbers of a file whose header has any length: at any address. */
#if defined(__GNUC__)
typedef uint16_t format_file_half __attribute__((aligned(1), may_alias));
typedef uint32_t format_file_word __attribute__((aligned(1), may_alias));
#else
typedef uint16_t format_file_half;
typedef uint32_t format_file_word;
#endif

/* F32: as they are. */
static void format_decode_f32(float *out, const Weight *w, size_t at, size_t n) {
    memcpy(out, (const char *)w->data + at * 4, n * 4);
}
static void format_encode_f32(void *out, const float *in, size_t n) { memcpy(out, in, n * 4); }

/* BF16: the upper half of a float. Rounded by adding half a step, less one where the number below is even; a NaN must
   not become infinite. */
static void format_decode_bf16(float *out, const Weight *w, size_t at, size_t n) {
    const format_file_half *h = (const format_file_half *)w->data + at;
    for (size_t i = 0; i < n; i++) out[i] = format_float((uint32_t)h[i] << 16);
}
static void format_encode_bf16(void *out, const float *in, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint32_t bits = format_bits(in[i]);
        bool nan = (bits & 0x7FFFFFFF) > 0x7F800000;
        ((uint16_t *)out)[i] = (uint16_t)((nan ? bits | 64 << 16 : bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
    }
}

/* F16: 5 bits of exponent. Decoded without a branch: shifted into a float's place, the exponent scaled by 2^112, which
   brings subnormals out right because the product is normalised; infinities and NaN get all of a float's exponent. */
static void format_decode_f16(float *out, const Weight *w, size_t at, size_t n) {
    const format_file_half *h = (const format_file_half *)w->data + at;
    for (size_t i = 0; i < n; i++) {
        uint32_t half = h[i], sign = (half & 0x8000) << 16, shifted = (half & 0x7FFF) << 13;
        uint32_t top = shifted >= 0x7C00u << 13 ? 0x7F800000 : 0;
        out[i] = format_float(format_bits(format_float(shifted) * 0x1p112f) | top | sign);
    }
}
static uint16_t format_half(float x) {
    uint32_t bits = format_bits(x), sign = bits >> 16 & 0x8000;
    bits &= 0x7FFFFFFF;
    if (bits > 0x7F800000) return (uint16_t)(sign | 0x7E00);                  /* NaN */
    if (bits >= 0x477FF000) return (uint16_t)(sign | 0x7C00);                 /* 65520 and more */
    /* Below 2^-14 adding 0.5 rounds to multiples of 2^-24, the subnormals of F16. */
    if (bits < 0x38800000) return (uint16_t)(sign | (format_bits(format_float(bits) + 0.5f) - 0x3F000000));
    return (uint16_t)(sign | ((bits + 0xFFF + (bits >> 13 & 1) - (112u << 23)) >> 13));
}
static void format_encode_f16(void *out, const float *in, size_t n) {
    for (size_t i = 0; i < n; i++) ((uint16_t *)out)[i] = format_half(in[i]);
}

const Format weight_format[FORMAT_COUNT] = {
    {"F32", 1, 4, 0, 0x7F800000, format_decode_f32, format_encode_f32},
    {"F16", 1, 2, 0x1p-11, 0x7C00, format_decode_f16, format_encode_f16},
    {"BF16", 1, 2, 0x1p-8, 0x7F80, format_decode_bf16, format_encode_bf16},
};
FormatId dtype_format(DType t) {
    return t == DTYPE_F32 ? FORMAT_F32 : t == DTYPE_F16 ? FORMAT_F16 : t == DTYPE_BF16 ? FORMAT_BF16 : FORMAT_COUNT;
}
size_t format_bytes(FormatId f, size_t count) {
    return count / (size_t)weight_format[f].block * (size_t)weight_format[f].block_bytes;
}

size_t weight_bytes(const Weight *w) { return format_bytes(w->format, (size_t)w->rows * (size_t)w->cols); }
void weight_decode(float *out, const Weight *w, size_t at, size_t n) {
    weight_format[w->format].decode(out, w, at, n);
}
Weight tensor_weight(const Tensor *t) {
    size_t rows = t->ndim ? (size_t)t->shape[0] : 1;
    Weight w = {t->data, NULL, dtype_format(t->dtype), (int)rows, rows ? (int)(t->count / rows) : 0};
    return w;
}

/* All exponent bits set means infinity or NaN: looked for in the numbers as they lie, which takes half the time of
   decoding them. Blocks are scanned without a branch so that the compiler can use vectors. */
static int64_t weight_scan(const Weight *w, size_t count) {
    enum { BLOCK = 65536 };
    const bool words = weight_format[w->format].block_bytes == 4;
    const uint32_t exponent = weight_format[w->format].exponent;
    const format_file_word *word = (const format_file_word *)w->data;
    const format_file_half *half = (const format_file_half *)w->data;
    const uint16_t half_exponent = (uint16_t)exponent;
    int64_t first = -1;
#pragma omp parallel for schedule(static)
    for (size_t begin = 0; begin < count; begin += BLOCK) {
        size_t end = begin + BLOCK < count ? begin + BLOCK : count, i = begin;
        int bad = 0;
        if (words) for (size_t k = begin; k < end; k++) bad |= (word[k] & exponent) == exponent;
        else for (size_t k = begin; k < end; k++) bad |= (half[k] & half_exponent) == half_exponent;
        if (!bad) continue;
        while (((words ? word[i] : half[i]) & exponent) != exponent) i++;
#pragma omp critical(weight_scan)
        if (first < 0 || (int64_t)i < first) first = (int64_t)i;
    }
    return first;
}
int64_t weight_nonfinite(const Weight *w) { return weight_scan(w, (size_t)w->rows * (size_t)w->cols); }
int64_t first_nonfinite(const float *x, size_t count) {
    Weight w = {x, NULL, FORMAT_F32, 0, 0};
    return weight_scan(&w, count);
}

/* A safetensors header, without a blank as the format's library writes it: begin, an entry for each tensor, write,
   which puts its length in front and frees it. */
static void safetensors_begin(Text *t) { text_string(t, "{\"__metadata__\":{\"format\":\"pt\"}"); }
static void safetensors_entry(Text *t, const char *name, const char *dtype, const int64_t *shape, int ndim,
                              size_t begin, size_t end) {
    text_string(t, ",");
    text_json_string(t, name);
    text_print(t, ":{\"dtype\":\"%s\",\"shape\":", dtype);
    for (int k = 0; k < ndim; k++) text_print(t, "%c%lld", k ? ',' : '[', (long long)shape[k]);
    text_print(t, "],\"data_offsets\":[%zu,%zu]}", begin, end);
}
static void safetensors_header(SafeFile *f, Text *t) {
    uint8_t length[8];
    while (t->length % 8) text_string(t, " ");             /* data aligned to 8 bytes, as the format asks */
    for (int i = 0; i < 8; i++) length[i] = (uint8_t)((uint64_t)t->length >> 8 * i);
    safe_write(f, length, 8);
    safe_write(f, t->at, t->length);
    text_free(t);
}

bool safetensors_write(const char *path, const char *const *names, const float *const *data,
                       const int64_t (*shapes)[2], int count, Error *err) {
    Text header = TEXT_EMPTY;
    size_t begin = 0, end = 0;
    SafeFile s;
    if (!safe_open(&s, path, err)) return false;
    safetensors_begin(&header);
    for (int i = 0; i < count; i++, begin = end) {
        int ndim = shapes[i][1] ? 2 : 1;
        end += (size_t)(shapes[i][0] * (ndim > 1 ? shapes[i][1] : 1)) * sizeof(float);
        safetensors_entry(&header, names[i], "F32", shapes[i], ndim, begin, end);
    }
    text_bytes(&header, "}", 1);
    safetensors_header(&s, &header);
    for (int i = 0; i < count; i++)
        safe_write(&s, data[i], (size_t)(shapes[i][0] * (shapes[i][1] ? shapes[i][1] : 1)) * sizeof(float));
    return safe_close(&s, err);
}

/* ---- config.json ------------------------------------------------------------------------------------------------- */

/* null, false, "", [] and {}: written down, but not used. */
static bool json_is_unused(const Json *j) {
    return j->type == JSON_NULL || j->type == JSON_FALSE ||
           ((j->type == JSON_ARRAY || j->type == JSON_OBJECT || j->type == JSON_STRING) && !j->count);
}

/* Integer field in [low, high]; absent or null: `missing`, or an error when that is below low. */
static bool config_int(int *out, const Json *root, const char *key, int64_t low, int64_t high, int64_t missing,
                       const char *name, Error *err) {
    const Json *j = json_get(root, key);
    int64_t v = json_is_null(j) ? missing : json_size(j);
    if (json_is_null(j) && missing < low)
        return fail(err, "missing field '%s'; %s; give the folder of a Hugging Face model", key, name);
    if (v < low || v > high)
        return fail(err, "field '%s' must be a whole number from %lld to %lld; %s; check the file", key, (long long)low,
                    (long long)high, name);
    *out = (int)v;
    return true;
}
/* Number in [low, high]; absent or null: `missing`. */
static bool config_range(double *out, const Json *root, const char *key, double low, double high, double missing,
                         const char *name, Error *err) {
    const Json *j = json_get(root, key);
    *out = missing;
    if (json_is_null(j)) return true;
    if (j->type != JSON_NUMBER || !(j->number >= low && j->number <= high))
        return fail(err, "field '%s' must be a number from %g to %g; %s; check the file", key, low, high, name);
    *out = j->number;
    return true;
}
static bool config_number(double *out, const Json *root, const char *key, double missing, const char *name,
                          Error *err) {
    const Json *j = json_get(root, key);
    if (!json_is_null(j) && (j->type != JSON_NUMBER || !(j->number > 0) || j->number > 1e18))
        return fail(err, "field '%s' must be a positive number; %s; check the file", key, name);
    *out = json_is_null(j) ? missing : j->number;
    return true;
}
static bool config_bool(bool *out, const Json *root, const char *key, bool missing, const char *name, Error *err) {
    const Json *j = json_get(root, key);
    if (json_is_null(j)) { *out = missing; return true; }
    if (j->type != JSON_TRUE && j->type != JSON_FALSE)
        return fail(err, "field '%s' must be true or false; %s; check the file", key, name);
    *out = j->type == JSON_TRUE;
    return true;
}
/* NULL: there is none. What is no string is called by its kind, which no field knows, and so is refused. */
static const char *config_string(const Json *root, const char *key) {
    const Json *j = json_get(root, key);
    return json_is_null(j) ? NULL : j->type == JSON_STRING ? j->str : data_type_name[j->type];
}

/* What tells a model family from another. Where no row can say it, in fields of config.json that only it has, a
   function reads them. */
enum {
    FAMILY_QKV_BIAS = 1,                    /* q, k and v always have one */
    FAMILY_ATTENTION_BIAS = 2,              /* field attention_bias: q, k, v and o have one */
    FAMILY_MLP_BIAS = 4,                    /* field mlp_bias: gate, up and down have one */
    FAMILY_WINDOW_SWITCH = 8                /* use_sliding_window says whether; else sliding_window itself does */
};
struct Family {
    const char *model_type, *classifier;    /* transformers' class with a classification head; NULL: it has none */
    const char *norm[NORM_COUNT];           /* the tensors at these places of a layer; NULL: nothing is there */
    const char *activation;                 /* what hidden_act must say */
    int flags;
    /* where config.json does not say: */
    int head_dim;                           /* 0: hidden_size / num_attention_heads */
    double rope_theta;
    bool tied;                              /* tie_word_embeddings */
    const char *own[5];                     /* fields that others refuse and this one reads */
    bool (*config)(ModelConfig *c, const Json *root, const char *name, Error *err);       /* reads them; may be NULL */
};

/* rope_theta and rope_scaling, in the old spelling (two fields) or the new one (rope_parameters holds both). */
static bool config_rope(ModelConfig *c, const Json *root, const char *name, Error *err) {
    const Json *rope = json_get(root, "rope_parameters");
    if (json_is_null(rope)) rope = json_get(root, "rope_scaling");
    if (json_is_null(rope)) rope = NULL;
    if (rope && rope->type != JSON_OBJECT)
        return fail(err, "field 'rope_scaling' must be an object; %s; check the file", name);
    if (!config_number(&c->rope_theta, root, "rope_theta", c->family->rope_theta, name, err)) return false;
    if (rope && !config_number(&c->rope_theta, rope, "rope_theta", c->rope_theta, name, err)) return false;
    const char *type = rope ? config_string(rope, "rope_type") : NULL;
    if (rope && !type) type = config_string(rope, "type");
    for (const Json *j = rope ? rope->child : NULL; j; j = j->next) {      /* of a part, of pictures, layer by layer */
        bool part = !strcmp(j->key, "partial_rotary_factor") && !json_is_null(j) &&
            !(j->type == JSON_NUMBER && j->number == 1);
        if (part || !strcmp(j->key, "mrope_section") || j->type == JSON_OBJECT)
            return fail(err, "unsupported field '%s' of the rope parameters; %s; this program has no implementation "
                             "of it", j->key, name);
    }
    RopeScaling *s = &c->rope_scaling;
    s->type = ROPE_DEFAULT;
    s->factor = 1;
    if (!rope || !type || !strcmp(type, "default")) return true;
    if (!strcmp(type, "linear")) s->type = ROPE_LINEAR;
    else if (!strcmp(type, "llama3")) s->type = ROPE_LLAMA3;
    else return fail(err, "unsupported rope_type '%s'; %s; supported: default, linear, llama3", type, name);
    if (json_is_null(json_get(rope, "factor")))
        return fail(err, "missing field 'factor' of the rope scaling; %s; check the file", name);
    return config_number(&s->factor, rope, "factor", 1, name, err) &&
           config_number(&s->low_freq_factor, rope, "low_freq_factor", 1, name, err) &&
           config_number(&s->high_freq_factor, rope, "high_freq_factor", 4, name, err) &&
           config_number(&s->original_max_position, rope, "original_max_position_embeddings",
                         c->max_position_embeddings, name, err) &&
           (s->type != ROPE_LLAMA3 || s->high_freq_factor > s->low_freq_factor ||
            fail(err, "high_freq_factor must exceed low_freq_factor; %s; check the file", name));
}

/* SmolLM3: layers without rotary embedding. no_rope_layers has a 1 for every layer that rotates (sic); without it every
   no_rope_layer_interval-th does not. */
static bool config_smollm3(ModelConfig *c, const Json *root, const char *name, Error *err) {
    const Json *list = json_get(root, "no_rope_layers"), *rotates = list ? list->child : NULL;
    int interval = 1, L = c->num_hidden_layers;
    if (json_is_null(list)) {
        if (!config_int(&interval, root, "no_rope_layer_interval", 1, INT_MAX, 4, name, err)) return false;
        for (int l = 0; l < L; l++) c->no_rope[l] = (l + 1) % interval == 0;
        return true;
    }
    for (int l = 0; l < L; l++, rotates = rotates->next) {
        int64_t rotate = list->type == JSON_ARRAY ? json_size(rotates) : -1;
        if (rotate != 0 && rotate != 1)
            return fail(err, "field 'no_rope_layers' must be a list of 0 and 1 for %d layers; %s; check the file", L,
                        name);
        c->no_rope[l] = !rotate;
    }
    return true;
}

/* Granite: x = embedding_multiplier embed[id];  x += residual_multiplier block(norm(x)), twice a layer;
   scores = attention_multiplier q.k;  logits = head(norm(x)) / logits_scaling.
   We keep the residual stream divided by residual_multiplier r: then blocks are added as they are, the embedding takes
   embedding_multiplier / r, and the norms, which take any factor out, see it in eps alone:
     (x/r) / sqrt(mean (x/r)^2 + eps/r^2) = x / sqrt(mean x^2 + eps).
   The factor on the logits is the final norm's (model_vector). In fp16 the stream is 1/r nearer to its limit. */
static bool config_granite(ModelConfig *c, const Json *root, const char *name, Error *err) {
    double embedding = 1, attention = 1, residual = 1, logits = 1;
    if (!config_number(&embedding, root, "embedding_multiplier", 1, name, err) ||
        !config_number(&attention, root, "attention_multiplier", 1, name, err) ||
        !config_number(&residual, root, "residual_multiplier", 1, name, err) ||
        !config_number(&logits, root, "logits_scaling", 1, name, err)) return false;
    c->embedding_scale = (float)(embedding / residual);
    c->rms_norm_eps = (float)((double)c->rms_norm_eps / (residual * residual));
    c->attention_scale = (float)attention;
    c->logits_scale = (float)(1 / logits);
    return true;
}

/* The model families, one row each. A dense decoder of another name is a row here and its goldens in
   dev/make_golden.py. */
#define CONFIG_NORMS "input_layernorm", "post_attention_layernorm"
#define CONFIG_QK_NORMS "self_attn.q_norm", "self_attn.k_norm"
static const Family config_families[] = {
    /* model_type, classifier, norms, activation, flags, head_dim, rope_theta, tied, own fields and who reads them */
    {"llama", "LlamaForSequenceClassification", {CONFIG_NORMS, NULL, NULL}, "silu",
     FAMILY_ATTENTION_BIAS | FAMILY_MLP_BIAS, 0, 1e4, false, {NULL}, NULL},
    {"qwen2", "Qwen2ForSequenceClassification", {CONFIG_NORMS, NULL, NULL}, "silu",
     FAMILY_QKV_BIAS | FAMILY_WINDOW_SWITCH, 0, 1e4, false, {NULL}, NULL},
    {"qwen3", "Qwen3ForSequenceClassification", {CONFIG_NORMS, CONFIG_QK_NORMS}, "silu",
     FAMILY_ATTENTION_BIAS | FAMILY_WINDOW_SWITCH,
     128, 1e4, false, {NULL}, NULL},
    {"mistral", "MistralForSequenceClassification", {CONFIG_NORMS, NULL, NULL}, "silu", 0, 0, 1e4, false, {NULL}, NULL},
    {"smollm3", "SmolLM3ForSequenceClassification", {CONFIG_NORMS, NULL, NULL}, "silu",
     FAMILY_ATTENTION_BIAS | FAMILY_MLP_BIAS | FAMILY_WINDOW_SWITCH,
     0, 2e6, true, {"no_rope_layers", "no_rope_layer_interval"}, config_smollm3},
    {"granite", NULL, {CONFIG_NORMS, NULL, NULL}, "silu", FAMILY_ATTENTION_BIAS | FAMILY_MLP_BIAS, 0, 1e4, false,
     {"embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"}, config_granite},
};
enum { CONFIG_FAMILIES = sizeof config_families / sizeof *config_families };

static const Family *config_family(const char *model_type, const char *name, Error *err) {
    char all[256] = "";
    for (int i = 0; i < CONFIG_FAMILIES; i++) {
        if (!strcmp(model_type, config_families[i].model_type)) return &config_families[i];
        size_t n = strlen(all);
        snprintf(all + n, sizeof all - n, "%s%s", i ? ", " : "", config_families[i].model_type);
    }
    fail(err, "unsupported architecture '%s'; %s; supported model types: %s", model_type, name, all);
    return NULL;
}
static bool config_owned(const Family *f, const char *key) {
    for (int i = 0; f->own[i]; i++) if (!strcmp(f->own[i], key)) return true;
    return false;
}

/* Every field of config.json that we know of. */
typedef enum {
    CONFIG_FIELD_INT,                       /* whole number in [low, high]; missing < low: there must be one */
    CONFIG_FIELD_OFF,                       /* would change the arithmetic and we do not have it: refused, unless it is
                                               `low` or null, false and the like. Better refused than silently wrong */
    CONFIG_FIELD_READ,                      /* read by name in config_parse, config_rope or by its family */
    CONFIG_FIELD_IGNORED                    /* changes nothing here, for the reason given */
} ConfigFieldKind;
#define CONFIG_INT(field, low, high, missing) \
    {#field, CONFIG_FIELD_INT, offsetof(ModelConfig, field), low, high, missing, ""}
#define CONFIG_OFF(key, off) {key, CONFIG_FIELD_OFF, 0, off, 0, 0, ""}
#define CONFIG_READ(key, why) {key, CONFIG_FIELD_READ, 0, 0, 0, 0, why}
#define CONFIG_IGNORED(key, why) {key, CONFIG_FIELD_IGNORED, 0, 0, 0, 0, why}
static const struct { const char *key; ConfigFieldKind kind; size_t at; double low, high, missing; const char *why; }
config_fields[] = {
    CONFIG_INT(hidden_size, 1, 1 << 20, 0),
    CONFIG_INT(intermediate_size, 1, 1 << 22, 0),
    CONFIG_INT(num_hidden_layers, 1, CONFIG_MAX_LAYERS, 0),
    CONFIG_INT(num_attention_heads, 1, 65536, 0),
    CONFIG_INT(vocab_size, 1, 1 << 24, 0),
    CONFIG_INT(max_position_embeddings, 1, 1 << 30, 2048),
    CONFIG_INT(pad_token_id, -1, 1 << 24, -1),

    CONFIG_OFF("quantization_config", NAN),
    CONFIG_OFF("num_local_experts", 0),
    CONFIG_OFF("num_experts", 0),
    CONFIG_OFF("partial_rotary_factor", 1),
    CONFIG_OFF("rope_interleaved", NAN),
    CONFIG_OFF("no_rope_layers", NAN),
    CONFIG_OFF("embedding_multiplier", 1),
    CONFIG_OFF("attention_multiplier", NAN),
    CONFIG_OFF("residual_multiplier", 1),
    CONFIG_OFF("logits_scaling", 1),
    CONFIG_OFF("final_logit_softcapping", NAN),
    CONFIG_OFF("attn_logit_softcapping", NAN),
    CONFIG_OFF("query_pre_attn_scalar", NAN),
    CONFIG_OFF("clip_qkv", NAN),

    CONFIG_READ("model_type", "the family"),
    CONFIG_READ("dtype", "for messages; the files say what their tensors are"),
    CONFIG_READ("torch_dtype", "the same, until transformers 4"),
    CONFIG_READ("num_key_value_heads", "as many as there are heads where it is missing"),
    CONFIG_READ("head_dim", "its default is the family's"),
    CONFIG_READ("hidden_act", "the family's, or refused"),
    CONFIG_READ("rms_norm_eps", ""),
    CONFIG_READ("tie_word_embeddings", ""),
    CONFIG_READ("attention_bias", "where the family has it"),
    CONFIG_READ("mlp_bias", "where the family has it"),
    CONFIG_READ("attention_dropout", "0, or refused"),
    CONFIG_READ("use_sliding_window", "false where the family has it, or refused"),
    CONFIG_READ("sliding_window", "null where there is no use_sliding_window, or refused"),
    CONFIG_READ("layer_types", "full_attention, or refused"),
    CONFIG_READ("no_rope_layer_interval", "where the family has no_rope_layers"),
    CONFIG_READ("rope_theta", ""),
    CONFIG_READ("rope_scaling", ""),
    CONFIG_READ("rope_parameters", "the two above, since transformers 5"),

    CONFIG_IGNORED("architectures", "model_type says it"),
    CONFIG_IGNORED("transformers_version", "who wrote the file"),
    CONFIG_IGNORED("_name_or_path", "where it came from"),
    CONFIG_IGNORED("initializer_range", "read below, for a new classification head"),
    CONFIG_IGNORED("use_cache", "generation always has one"),
    CONFIG_IGNORED("max_window_layers", "there are no windows"),
    CONFIG_IGNORED("pretraining_tp", "the same product in slices"),
    CONFIG_IGNORED("bos_token_id", "the tokenizer's and generation_config.json's"),
    CONFIG_IGNORED("eos_token_id", "the tokenizer's and generation_config.json's"),
};
enum { CONFIG_FIELDS = sizeof config_fields / sizeof *config_fields };

/* The rows of the table that can be read or refused without knowing more. */
static bool config_table(ModelConfig *c, const Json *root, const char *name, Error *err) {
    for (int i = 0; i < CONFIG_FIELDS; i++) {
        const char *key = config_fields[i].key;
        double low = config_fields[i].low;
        const Json *j = json_get(root, key);
        if (config_fields[i].kind == CONFIG_FIELD_INT) {
            int *out = (int *)(void *)((char *)c + config_fields[i].at);
            if (!config_int(out, root, key, (int64_t)low, (int64_t)config_fields[i].high,
                            (int64_t)config_fields[i].missing, name, err)) return false;
        }
        if (config_fields[i].kind != CONFIG_FIELD_OFF || !j || json_is_unused(j) || config_owned(c->family, key))
            continue;
        if (j->type == JSON_NUMBER && j->number == low) continue;
        return fail(err, "unsupported field '%s'; %s; this program has no implementation of it", key, name);
    }
    return true;
}

/* Fields whose values would ask for something that we do not have. */
static bool config_refuse(const ModelConfig *c, const Json *root, const char *name, Error *err) {
    const char *act = config_string(root, "hidden_act"), *ours = c->family->activation;
    if (act && strcmp(act, ours))
        return fail(err, "unsupported field hidden_act '%s'; %s; only %s is implemented", act, name, ours);
    bool window = !json_is_null(json_get(root, "sliding_window"));
    if ((c->family->flags & FAMILY_WINDOW_SWITCH) &&
        !config_bool(&window, root, "use_sliding_window", false, name, err)) return false;
    if (window) return fail(err, "unsupported field 'sliding_window'; %s; only full attention is implemented", name);
    const Json *layer_types = json_get(root, "layer_types");
    for (const Json *t = layer_types ? layer_types->child : NULL; t; t = t->next)
        if (t->type != JSON_STRING || strcmp(t->str, "full_attention"))
            return fail(err, "unsupported layer type '%s'; %s; only full_attention is implemented",
                        t->type == JSON_STRING ? t->str : "?", name);
    const Json *dropout = json_get(root, "attention_dropout");
    if (dropout && dropout->type == JSON_NUMBER && dropout->number != 0)
        return fail(err, "unsupported field attention_dropout %s; %s; set it to 0", dropout->str, name);
    return true;
}

static bool config_biases(ModelConfig *c, const Json *root, const char *name, Error *err) {
    bool attention = false, mlp = false;
    int flags = c->family->flags;
    if ((flags & FAMILY_ATTENTION_BIAS) && !config_bool(&attention, root, "attention_bias", false, name, err))
        return false;
    if ((flags & FAMILY_MLP_BIAS) && !config_bool(&mlp, root, "mlp_bias", false, name, err)) return false;
    for (int j = MODULE_Q; j <= MODULE_V; j++) c->bias[j] = attention || (flags & FAMILY_QKV_BIAS);
    c->bias[MODULE_O] = attention;
    for (int j = MODULE_GATE; j <= MODULE_DOWN; j++) c->bias[j] = mlp;
    return true;
}

bool config_parse(ModelConfig *c, const Json *root, const char *name, Error *err) {
    memset(c, 0, sizeof *c);
    if (root->type != JSON_OBJECT)
        return fail(err, "not an object; %s; give the folder of a Hugging Face model", name);
    const char *type = config_string(root, "model_type"), *dtype = config_string(root, "dtype");
    if (!type) return fail(err, "missing field 'model_type'; %s; give the folder of a Hugging Face model", name);
    const Family *f = c->family = config_family(type, name, err);
    if (!f) return false;
    if (!dtype) dtype = config_string(root, "torch_dtype");
    snprintf(c->model_type, sizeof c->model_type, "%s", type);
    snprintf(c->dtype, sizeof c->dtype, "%s", dtype ? dtype : "");
    c->qk_norm = f->norm[NORM_Q] != NULL;
    if (!config_refuse(c, root, name, err) || !config_table(c, root, name, err)) return false;

    int heads = c->num_attention_heads, head_dim = f->head_dim ? f->head_dim : c->hidden_size / heads;
    double eps;
    if (!config_int(&c->num_key_value_heads, root, "num_key_value_heads", 1, 65536, heads, name, err) ||
        !config_int(&c->head_dim, root, "head_dim", 2, 4096, head_dim, name, err) ||
        !config_number(&eps, root, "rms_norm_eps", 1e-6, name, err) ||
        !config_bool(&c->tie_word_embeddings, root, "tie_word_embeddings", f->tied, name, err)) return false;
    const Json *range = json_get(root, "initializer_range");
    c->initializer_range = range && range->type == JSON_NUMBER && range->number > 0 ? (float)range->number : 0.02f;
    c->rms_norm_eps = (float)eps;
    if (heads % c->num_key_value_heads)
        return fail(err, "num_attention_heads %d is not a multiple of num_key_value_heads %d; %s; check the file",
                    heads, c->num_key_value_heads, name);
    if (c->head_dim % 2) return fail(err, "head_dim %d is odd; %s; rotary embedding needs pairs", c->head_dim, name);
    c->embedding_scale = c->logits_scale = 1;
    c->attention_scale = 1.0f / sqrtf((float)c->head_dim);
    return config_biases(c, root, name, err) && config_rope(c, root, name, err) &&
           (!f->config || f->config(c, root, name, err));
}

bool config_open(ModelConfig *c, const char *folder, Error *err) {
    char path[PATH_MAX];
    struct stat st;
    if (stat(folder, &st))
        return fail(err, "cannot open the model folder; %s: %s; give the folder of a downloaded Hugging Face model "
                         "with --model", folder, strerror(errno));
    if (!S_ISDIR(st.st_mode))
        return fail(err, "the model is not a folder; %s; give the folder that holds config.json and model.safetensors "
                         "with --model", folder);
    path_in(path, sizeof path, folder, "config.json");
    JsonDoc doc;
    if (!json_read(&doc, path, err)) return false;
    bool ok = config_parse(c, doc.root, path, err);
    json_free(&doc);
    return ok;
}

void rope_tables(float *cos_table, float *sin_table, const ModelConfig *c, int positions) {
    int half = c->head_dim / 2;
    const RopeScaling *s = &c->rope_scaling;
    const double pi = 3.14159265358979323846;
    for (int i = 0; i < half; i++) {
        /* fp32 where transformers has fp32: the tables are compared at position thousands, where one bit of the
           frequency is visible */
        float frequency = 1.0f / powf((float)c->rope_theta, (float)(2 * i) / (float)c->head_dim);
        if (s->type == ROPE_LINEAR) frequency /= (float)s->factor;
        if (s->type == ROPE_LLAMA3) {
            double wavelength = 2 * pi / frequency, positions_seen = s->original_max_position;
            double low = positions_seen / s->low_freq_factor, high = positions_seen / s->high_freq_factor;
            if (wavelength > low) frequency /= (float)s->factor;
            else if (wavelength >= high) {
                double smooth = (positions_seen / wavelength - s->low_freq_factor) /
                                (s->high_freq_factor - s->low_freq_factor);
                frequency = (float)((1 - smooth) * frequency / s->factor + smooth * frequency);
            }
        }
        for (int p = 0; p < positions; p++) {
            float angle = (float)p * frequency;
            cos_table[(size_t)p * (size_t)half + (size_t)i] = (float)cos((double)angle);
            sin_table[(size_t)p * (size_t)half + (size_t)i] = (float)sin((double)angle);
        }
    }
}

/* ---- the tensors of a model -------------------------------------------------------------------------------------- */

TensorSpec model_tensors(const ModelConfig *c, const char *prefix) {
    TensorSpec t;
    memset(&t, 0, sizeof t);
    t.config = c;
    t.prefix = prefix;
    return t;
}
size_t tensor_count(const TensorSpec *t) { return (size_t)t->rows * (size_t)(t->cols ? t->cols : 1); }

/* Embedding, final norm or head. */
static void tensor_outside(TensorSpec *t, TensorKind kind) {
    const ModelConfig *c = t->config;
    static const char *const stem[] = {"embed_tokens", "norm", "lm_head"};
    size_t n = strlen(t->prefix), k = strlen("model.");
    if (kind == TENSOR_HEAD && n >= k && !strcmp(t->prefix + n - k, "model.")) n -= k;    /* stands beside "model." */
    snprintf(t->name, sizeof t->name, "%.*s%s.weight", (int)n, t->prefix, stem[kind]);
    t->kind = kind;
    t->rows = kind == TENSOR_FINAL_NORM ? c->hidden_size : c->vocab_size;
    t->cols = kind == TENSOR_FINAL_NORM ? 0 : c->hidden_size;
    t->optional = kind != TENSOR_FINAL_NORM && c->tie_word_embeddings;
}

static void tensor_norm(TensorSpec *t, int place) {
    const ModelConfig *c = t->config;
    snprintf(t->name, sizeof t->name, "%slayers.%d.%s.weight", t->prefix, t->layer, c->family->norm[place]);
    t->kind = TENSOR_NORM;
    t->place = place;
    t->rows = place == NORM_Q || place == NORM_K ? c->head_dim : c->hidden_size;
    t->cols = 0;
}

static void tensor_linear(TensorSpec *t, int module, bool bias) {
    const ModelConfig *c = t->config;
    int C = c->hidden_size, F = c->intermediate_size, HD = c->num_attention_heads * c->head_dim,
        KD = c->num_key_value_heads * c->head_dim;
    const int out[MODULE_COUNT] = {HD, KD, KD, C, F, F, C}, in[MODULE_COUNT] = {C, C, C, HD, C, C, F};
    snprintf(t->name, sizeof t->name, "%slayers.%d.%s.%s", t->prefix, t->layer, module_path[module],
             bias ? "bias" : "weight");
    t->kind = bias ? TENSOR_BIAS : TENSOR_WEIGHT;
    t->place = module;
    t->rows = out[module];
    t->cols = bias ? 0 : in[module];
}

bool tensor_next(TensorSpec *t) {
    enum { OUTSIDE = 3, OF_A_LAYER = NORM_COUNT + 2 * MODULE_COUNT };
    const ModelConfig *c = t->config;
    t->optional = false;
    for (;;) {
        int i = t->next++;
        if (i < OUTSIDE) { tensor_outside(t, (TensorKind)i); return true; }
        t->layer = (i - OUTSIDE) / OF_A_LAYER;
        if (t->layer >= c->num_hidden_layers) return false;
        i = (i - OUTSIDE) % OF_A_LAYER;
        if (i < NORM_COUNT) {
            if (!c->family->norm[i]) continue;
            tensor_norm(t, i);
        } else {
            int module = (i - NORM_COUNT) / 2;
            bool bias = (i - NORM_COUNT) % 2;
            if (bias && !c->bias[module]) continue;
            tensor_linear(t, module, bias);
        }
        return true;
    }
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

void memory_add(MemoryTable *m, const char *name, size_t bytes) {
    if (m->count < MEMORY_ROWS) { m->row[m->count].name = name; m->row[m->count].bytes = bytes; m->count++; }
    m->total += bytes;
}

/* ---- scratch ----------------------------------------------------------------------------------------------------- */

/* Scratch is handed out front to back; a shortage is a bug in op_scratch_bytes, not a user's error. */
typedef struct ScratchCursor { char *at, *end; } ScratchCursor;
static inline size_t scratch_floats(size_t floats) { return (floats * sizeof(float) + 63) / 64 * 64; }
static inline ScratchCursor scratch_begin(Scratch s) {
    ScratchCursor c = {(char *)s.base, (char *)s.base + s.bytes};
    c.at += (64 - (uintptr_t)c.at % 64) % 64;
    return c;
}
static inline float *scratch_take(ScratchCursor *c, size_t floats) {
    float *p = (float *)(void *)c->at;
    size_t bytes = scratch_floats(floats);
    if (bytes > (size_t)(c->end - c->at)) {
        fprintf(stderr, "error: an op needs %zu more bytes of scratch; op_scratch_bytes; please report this\n",
                bytes - (size_t)(c->end - c->at));
        abort();
    }
    c->at += bytes;
    return p;
}

/* What a group's projections have side by side: outputs of all, columns of t. */
static inline void linear_sums(const Linear *group, const Lora *lora, int count, int *O, int *R) {
    *O = *R = 0;
    for (int j = 0; j < count; j++) { *O += group[j].out; *R += lora ? rank_width(lora[j].rank) : 0; }
}

/* ---- the counter-based generator: dropout masks and initialisation, the same numbers on every backend ----------- */

/* Philox4x32-10: ten rounds of two 32 x 32 -> 64 bit products, key bumped by the golden ratio and sqrt(3)-1 in between
   (Salmon et al., SC 2011). */
LORA_HOST_DEVICE static inline void philox4x32(uint32_t out[4], const uint32_t counter[4], const uint32_t key[2]) {
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3], k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t p = (uint64_t)0xD2511F53u * c0, q = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(q >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(p >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)q;
        c3 = (uint32_t)p;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0; out[1] = c1; out[2] = c2; out[3] = c3;
}
LORA_HOST_DEVICE static inline void dropout_numbers(uint32_t out[4], DropoutKey k, uint32_t dropout_id,
                                                    uint64_t block) {
    uint32_t counter[4] = {(uint32_t)block, dropout_id, k.micro_batch, k.step};
    uint32_t key[2] = {(uint32_t)k.seed, (uint32_t)(k.seed >> 32)};
    philox4x32(out, counter, key);
}
LORA_HOST_DEVICE static inline uint32_t dropout_threshold(float p) { return (uint32_t)((double)p * 4294967296.0); }
bool dropout_keep(DropoutKey key, uint32_t dropout_id, uint64_t index) {
    uint32_t random[4];
    dropout_numbers(random, key, dropout_id, index / 4);
    return random[index % 4] >= dropout_threshold(key.dropout);
}

/* AdamW (Loshchilov & Hutter 2019) at one step: what is the same for every parameter is worked out once, in double. */
typedef struct AdamW { float decay, rate, root, beta1, beta2, eps; } AdamW;
static AdamW adamw_at(float lr, float beta1, float beta2, float eps, float weight_decay, int step) {
    AdamW a = {(float)(1.0 - (double)lr * (double)weight_decay), (float)((double)lr / (1.0 - pow((double)beta1, step))),
               (float)(1.0 / sqrt(1.0 - pow((double)beta2, step))), beta1, beta2, eps};
    return a;
}
LORA_HOST_DEVICE static inline void adamw_element(float *param, float *m, float *v, float g, AdamW a) {
    *m = a.beta1 * *m + (1.0f - a.beta1) * g;
    *v = a.beta2 * *v + (1.0f - a.beta2) * g * g;
    *param = *param * a.decay - a.rate * *m / (sqrtf(*v) * a.root + a.eps);
}

/* The dynamic map of 8-bit moments (Dettmers 2015, arXiv:1511.04561; bitsandbytes/functional.py, create_dynamic_map):
   every decade from 1e-6 to 1 halves its range (0.1, 1) once more than the one below, and has the middles; 0 and 1
   beside them. Signed, one bit is the sign's. In torch's fp32 arithmetic, bit for bit; numbers rise. */
static void adamw_map(float *map /*[256]*/, bool is_signed) {
    enum { DECADES = 7, ZERO = 127 };
    float *next = map + (is_signed ? ZERO : 0);
    *next++ = 0;
    for (int decade = 0; decade < DECADES; decade++) {
        int steps = 1 << (is_signed ? decade : decade + 1);
        float step = (1.0f - 0.1f) / (float)steps, scale = (float)pow(10, decade - (DECADES - 1));
        for (int i = 0; i < steps; i++) {
            float edge[2];                  /* torch.linspace(0.1, 1, steps + 1): its upper half counts from the end, */
            for (int j = 0; j < 2; j++) {   /* one rounding each */
                int at = i + j;
                double from_end = 1 - (double)step * (steps - at), from_begin = (double)0.1f + (double)step * at;
                edge[j] = (float)(at < (steps + 1) / 2 ? from_begin : from_end);
            }
            *next++ = scale * ((edge[0] + edge[1]) / 2);
        }
    }
    *next = 1;
    for (int i = 0; is_signed && i < ZERO; i++) map[i] = -map[2 * ZERO - i];
}
/* The index of the number of a map that is nearest to x, the lower one of two: that is bitsandbytes' rule on a card
   with Triton and in PyTorch. (Its CUDA kernels differ in ties and in the sign of zeros, its CPU library rounds to a
   grid of 2^-15 first, which takes small second moments for larger ones.) */
LORA_HOST_DEVICE static inline int adamw_code(const float *map, float x) {
    int above = 0;                          /* the first number that is not below x, or the last */
    for (int step = 128; step; step /= 2) above += map[above + step - 1] < x ? step : 0;
    int below = above ? above - 1 : 0;
    return x - map[below] <= map[above] - x ? below : above;
}

/* =====================================================================================================================
   4  THE MODEL
   ================================================================================================================== */

static size_t model_round_up(size_t v, size_t unit) { return (v + unit - 1) / unit * unit; }

/* ---- opening ----------------------------------------------------------------------------------------------------- */

static bool model_finite(const Model *m, const Tensor *t, Error *err) {
    Weight w = tensor_weight(t);
    int64_t bad = weight_nonfinite(&w);
    file_release_pages(t->data, t->bytes);
    return bad < 0 || fail(err, "tensor '%s' holds a NaN or infinity at element %lld; %s; the weights are damaged, "
                                "download the folder again", t->name, (long long)bad, m->folder);
}
/* factor times the values of a weight as its file has them, to `to` in the backend's memory. */
static void weight_upload(float *to, const Weight *from, float factor) {
    size_t count = (size_t)from->rows * (size_t)from->cols, block = (size_t)1 << 16;
    float *values = (float *)must_alloc((count < block ? count : block) * sizeof(float));
    for (size_t at = 0; at < count; at += block) {
        size_t n = count - at < block ? count - at : block;
        weight_decode(values, from, at, n);
        for (size_t i = 0; i < n && factor != 1; i++) values[i] *= factor;
        backend_upload(to + at, values, n * sizeof(float));
    }
    free(values);
    file_release_pages(from->data, weight_bytes(from));
}

static const Tensor *model_tensor(const Model *m, const TensorSpec *spec, Error *err) {
    const Tensor *t = tensors_get(&m->files, spec->name, spec->rows, spec->cols, err);
    if (m->shapes_only) return t;
    if (!t) return NULL;
    return model_finite(m, t, err) ? t : NULL;
}
static bool model_matrix(Model *m, Weight *w, const TensorSpec *spec, Error *err) {
    const Tensor *t = model_tensor(m, spec, err);
    if (!t) return false;
    *w = tensor_weight(t);
    return true;
}
/* Norm weights and biases are few: they are kept in fp32. *next walks through the norm arena. The factor on the logits
   is the final norm's: what it gives goes nowhere else. */
static bool model_vector(Model *m, float **out, float **next, const TensorSpec *spec, Error *err) {
    const Tensor *t = model_tensor(m, spec, err);
    if (!t || m->shapes_only) return t != NULL;
    Weight w = tensor_weight(t);
    weight_upload(*next, &w, spec->kind == TENSOR_FINAL_NORM ? m->config.logits_scale : 1);
    *out = *next;
    *next += t->count;
    return true;
}

/* One tensor to its place in the model. */
static bool model_place(Model *m, const TensorSpec *t, float **next, Error *err) {
    Layer *layer = &m->layers[t->layer];
    Linear *linear = &layer->linear[t->place];
    switch (t->kind) {
    case TENSOR_EMBED: return model_matrix(m, &m->embed, t, err);
    case TENSOR_HEAD: return model_matrix(m, &m->head, t, err);
    case TENSOR_FINAL_NORM: return model_vector(m, &m->final_norm, next, t, err);
    case TENSOR_NORM: return model_vector(m, &layer->norm[t->place], next, t, err);
    case TENSOR_WEIGHT:
        linear->in = t->cols;
        linear->out = t->rows;
        linear->dropout_id = (uint32_t)(t->layer * MODULE_COUNT + t->place);
        m->layer_weights += tensor_count(t);
        return model_matrix(m, &linear->w, t, err);
    case TENSOR_BIAS: {
        float *bias = NULL;
        bool ok = model_vector(m, &bias, next, t, err);
        linear->bias = bias;
        return ok;
    }
    default: return false;
    }
}

static bool model_weights_equal(const Weight *a, const Weight *b) {
    bool equal = a->format == b->format && !memcmp(a->data, b->data, weight_bytes(a));
    file_release_pages(a->data, weight_bytes(a));
    return equal;
}

/* tie_word_embeddings, as transformers 5 has it: one of the two in the file serves as both, two equal ones are one;
   two different ones stay two. */
static bool model_tie(Model *m, Error *err) {
    ModelConfig *c = &m->config;
    TensorSpec t = model_tensors(c, m->prefix);
    tensor_next(&t);
    if (!m->embed.data && !m->head.data) return model_matrix(m, &m->embed, &t, err);      /* says what is missing */
    if (!m->embed.data) m->embed = m->head;
    if (!m->head.data || model_weights_equal(&m->embed, &m->head)) m->head = m->embed;
    if (m->head.data == m->embed.data) return true;
    while (t.kind != TENSOR_HEAD) tensor_next(&t);
    c->tie_word_embeddings = false;
    print_warning("config.json has tie_word_embeddings true, but %s differs from the embedding: it is used, "
                  "as transformers 5 does; %s", t.name, m->folder);
    return true;
}

/* ---- a classification head: score.weight [K,C] and what its outputs are called --------------------------------- */

static void class_config_free(ClassConfig *c) {
    free(c->names);
    memset(c, 0, sizeof *c);
}
static void class_config_name(ClassConfig *c, const char *const *names, int count) {
    Text t = TEXT_EMPTY;
    for (int k = 0; k < count; k++) text_append(&t, names[k], strlen(names[k]) + 1);
    free(c->names);
    c->names = class_names_copy(t.at, t.length, count);
    text_free(&t);
}
static void class_config_copy(ClassConfig *to, const ClassConfig *from) {
    *to = *from;
    to->names = NULL;
    if (from->names) class_config_name(to, (const char *const *)from->names, from->num_labels);
}
/* problem_type and names of a file, of a head of c->num_labels: config.json's id2label {"0": "no", ...}, or the list
   label_names of the run.json that we write beside an adapter. */
static bool class_config_parse(ClassConfig *c, const Json *root, const char *name, Error *err) {
    const Json *names = json_get(root, "label_names"), *ids = json_get(root, "id2label"), *e;
    const Json *problem = json_get(root, "problem_type"), *pad = json_get(root, "pad_token_id");
    int K = c->num_labels;
    for (int i = 0; problem && problem->type == JSON_STRING && i < PROBLEM_COUNT; i++)
        if (!strcmp(problem->str, problem_name[i])) c->problem_type = (Problem)i;
    if (pad && pad->type == JSON_NUMBER) c->pad_token_id = (int)pad->number;
    if (ids && ids->type == JSON_OBJECT) names = ids;
    if (json_is_null(names) || K == 1) return true;
    const char **list = (const char **)must_alloc((size_t)K * sizeof *list);
    bool ok = (names->type == JSON_ARRAY || names->type == JSON_OBJECT) && (int)names->count == K;
    int next = 0;
    for (e = ok ? names->child : NULL; e && ok; e = e->next) {
        char *end = NULL;
        long at = names == ids ? strtol(e->key, &end, 10) : next++;
        ok = e->type == JSON_STRING && at >= 0 && at < K && !list[at] && !(end && *end);
        if (ok) list[at] = e->str;
    }
    if (ok) class_config_name(c, list, K);
    free(list);
    return ok || fail(err, "the names are not those of %d labels; %s; check id2label, or label_names", K, name);
}
/* Those of a file of the folder; one that is not there says nothing. */
static bool class_config_read(ClassConfig *c, const char *folder, const char *file, Error *err) {
    char path[PATH_MAX];
    JsonDoc doc;
    adapter_file(path, sizeof path, folder, file);
    if (access(path, F_OK)) return true;
    if (!json_read(&doc, path, err)) return false;
    bool ok = class_config_parse(c, doc.root, path, err);
    json_free(&doc);
    return ok;
}

/* Its tensor in a model's files, which stands beside what begins with "model."; NULL: there is none. *K: its rows. */
static const Tensor *model_score_tensor(const Model *m, int *K, Error *err) {
    char name[sizeof m->prefix + 16];
    size_t n = strlen(m->prefix), k = strlen("model.");
    if (n >= k && !strcmp(m->prefix + n - k, "model.")) n -= k;
    snprintf(name, sizeof name, "%.*sscore.weight", (int)n, m->prefix);
    TensorSet s = m->files;                 /* shgeti wants an lvalue */
    ptrdiff_t at = shgeti(s.table, name);
    const Tensor *t = at < 0 ? NULL : &s.table[at].value;
    *K = t && t->ndim == 2 && t->shape[0] > 0 && t->shape[0] <= 1 << 20 ? (int)t->shape[0] : 1;
    return t ? tensors_get(&m->files, name, *K, m->config.hidden_size, err) : NULL;
}
/* Has the folder a head of its own? Then the lm_head may be missing, and the embedding stands for it. */
static bool model_find_score(Model *m, Error *err) {
    int K;
    Error bad;
    bad.text[0] = 0;
    if (!model_score_tensor(m, &K, &bad)) return !*bad.text || fail(err, "%s", bad.text);
    m->classes.num_labels = K;
    m->classes.pad_token_id = -1;
    TensorSpec t = model_tensors(&m->config, m->prefix);
    tensor_outside(&t, TENSOR_HEAD);
    m->no_head = shgeti(m->files.table, t.name) < 0;
    if (m->no_head) m->config.tie_word_embeddings = true;
    return class_config_read(&m->classes, m->folder, "config.json", err);
}
static bool model_load_score(Model *m, float *to, Error *err) {
    int K;
    const Tensor *t = model_score_tensor(m, &K, err);
    if (!t || m->shapes_only) return t != NULL;
    Weight w = tensor_weight(t);
    if (!model_finite(m, t, err)) return false;
    weight_upload(to, &w, 1);
    m->score = to;
    return true;
}

static bool model_load(Model *m, Error *err) {
    const ModelConfig *c = &m->config;
    m->layers = (Layer *)must_alloc((size_t)c->num_hidden_layers * sizeof(Layer));
    for (TensorSpec t = model_tensors(c, m->prefix); tensor_next(&t);)
        if (!t.cols) m->norm_bytes += tensor_count(&t) * sizeof(float);
    m->norm_bytes += (size_t)m->classes.num_labels * (size_t)c->hidden_size * sizeof(float);
    m->norm_arena = m->shapes_only ? NULL : backend_alloc(m->norm_bytes);
    if (!m->norm_arena && !m->shapes_only)
        return fail(err, "out of memory for %zu bytes of norm weights; %s; use a smaller model", m->norm_bytes,
                    m->folder);
    float *next = (float *)m->norm_arena;
    for (TensorSpec t = model_tensors(c, m->prefix); tensor_next(&t);) {
        if (t.optional && shgeti(m->files.table, t.name) < 0) continue;
        if (!model_place(m, &t, &next, err)) return false;
    }
    if (m->classes.num_labels && !model_load_score(m, next, err)) return false;
    return !c->tie_word_embeddings || model_tie(m, err);
}

/* The matrix that goes into the backend's layout for this tensor, and the bytes of it; 0: none does. */
static size_t model_packed(Model *m, const TensorSpec *t, Weight **w) {
    if (t->kind == TENSOR_WEIGHT) *w = &m->layers[t->layer].linear[t->place].w;
    else if (t->kind == TENSOR_HEAD) *w = &m->head;
    else if (t->kind == TENSOR_EMBED && !m->config.tie_word_embeddings) *w = &m->embed;
    else return 0;
    return t->kind == TENSOR_EMBED ? embedding_packed_bytes(*w) : weight_packed_bytes(*w);
}

/* Every matrix that is multiplied by goes once into the backend's layout; then its file pages are let go: those of the
   head, the largest, before the layers come. */
static bool model_pack(Model *m, Error *err) {
    for (int pass = 0; pass < 2; pass++) {
        size_t offset = 0;
        for (TensorSpec t = model_tensors(&m->config, m->prefix); tensor_next(&t);) {
            Weight *w = NULL;
            size_t bytes = model_packed(m, &t, &w);
            if (pass && bytes) {
                weight_pack(w, (char *)m->weight_arena + offset);
                file_release_pages(w->data, weight_bytes(w));
            }
            offset += model_round_up(bytes, 256);
        }
        if (pass) break;
        m->weight_bytes = offset;
        if (m->shapes_only) break;
        double need = (double)offset / 0x1p30, there = (double)backend_memory() / 0x1p30;
        if (offset > backend_memory())
            return fail(err, "the weights do not fit: %.1f GiB needed, %.1f GiB free; %s; use a smaller model or close "
                             "other programs", need, there, m->folder);
        m->weight_arena = backend_alloc(offset);
        if (!m->weight_arena)
            return fail(err, "out of memory for %.1f GiB of weights; %s; use a smaller model", need, m->folder);
    }
    if (m->config.tie_word_embeddings) m->embed.packed = m->head.packed;
    return true;
}

/* What stands before "layers.0. ..." in the tensors' names: "model." of LlamaForCausalLM, nothing of LlamaModel, more
   where a wrapper was saved (module., _orig_mod., base_model.model.). */
static void model_find_prefix(Model *m) {
    char anchor[96];
    snprintf(anchor, sizeof anchor, "layers.0.%s.weight", m->config.family->norm[NORM_ATTENTION]);
    snprintf(m->prefix, sizeof m->prefix, "model.");
    for (ptrdiff_t i = 0; i < shlen(m->files.table); i++) {
        const char *name = m->files.table[i].key;
        size_t n = strlen(name), k = strlen(anchor);
        if (n < k || strcmp(name + n - k, anchor) || n - k >= sizeof m->prefix || (n > k && name[n - k - 1] != '.'))
            continue;
        snprintf(m->prefix, sizeof m->prefix, "%.*s", (int)(n - k), name);
        if (n == k || !strcmp(m->prefix, "model.")) return;
    }
    if (strcmp(m->prefix, "model."))
        print_warning("the tensors' names begin with '%s', which is taken for 'model.'; %s", m->prefix, m->folder);
}

/* Names the tensors that no part of the model reads: what transformers, too, leaves out with a warning. */
static void model_name_unused(const Model *m) {
    TensorEntry *table = m->files.table;
    ptrdiff_t first = -1, count = 0;
    bool *used = (bool *)must_alloc((size_t)shlen(table) * sizeof *used);
    for (TensorSpec t = model_tensors(&m->config, m->prefix); tensor_next(&t);) {
        ptrdiff_t at = shgeti(table, t.name);
        if (at >= 0) used[at] = true;
    }
    int K;
    const Tensor *score = model_score_tensor(m, &K, NULL);
    if (score) used[shgeti(table, score->name)] = true;
    for (ptrdiff_t i = shlen(table) - 1; i >= 0; i--) {
        if (used[i] || !table[i].value.count || strstr(table[i].key, "rotary_emb.inv_freq")) continue;
        first = i;
        count++;
    }
    free(used);
    if (count) print_warning("%zu tensors of the files have no place in the model and are not used, '%s' the first; %s",
                             (size_t)count, table[first].key, m->folder);
}

static bool model_read(Model *m, const char *folder, bool shapes_only, Error *err) {
    memset(m, 0, sizeof *m);
    m->folder = text_copy(folder);
    m->shapes_only = shapes_only;
    bool ok = config_open(&m->config, folder, err) && (shapes_only || backend_open(&m->config, err)) &&
              tensors_open_folder(&m->files, folder, err);
    if (ok) model_find_prefix(m);
    ok = ok && model_find_score(m, err) && model_load(m, err) && model_pack(m, err);
    if (ok) model_name_unused(m);
    if (!ok) model_close(m);
    return ok;
}

size_t model_parameters(const Model *m) {
    size_t count = 0;
    for (TensorSpec t = model_tensors(&m->config, m->prefix); tensor_next(&t);)
        if (t.kind != TENSOR_HEAD || !t.optional) count += tensor_count(&t);
    return count;
}

bool model_tokenizer(Tokenizer **t, const char *folder, const ModelConfig *c, Error *err) {
    if (!(*t = tokenizer_open(folder, err))) return false;
    int ids = tokenizer_vocab_size(*t);
    if (ids <= c->vocab_size) return true;
    tokenizer_free(*t);
    *t = NULL;
    return fail(err, "the tokenizer has ids up to %d but the model's embedding has only %d rows; %s; the tokenizer "
                     "belongs to "
                     "another model", ids - 1, c->vocab_size, folder);
}

bool model_open(Model *m, const char *folder, Error *err) { return model_read(m, folder, false, err); }
bool model_plan(Model *m, const char *folder, Error *err) { return model_read(m, folder, true, err); }

void model_close(Model *m) {
    backend_free(m->weight_arena, m->weight_bytes);
    backend_free(m->norm_arena, m->norm_bytes);
    tensors_close(&m->files);
    class_config_free(&m->classes);
    free(m->layers);
    free(m->folder);
    memset(m, 0, sizeof *m);
}

/* ---- working memory: laid out by one function, run twice (memory NULL: only the size) ---------------------------- */

typedef struct WorkspaceLayout { char *base; size_t offset; } WorkspaceLayout;
static void *workspace_take(WorkspaceLayout *a, size_t count, size_t element) {
    void *p = a->base ? a->base + a->offset : NULL;
    a->offset += model_round_up(count * element, 256);
    return p;
}
/* The projections that read one input, and so are one call of linear_forward. */
static const struct { int first, count; } lora_group[LORA_GROUPS] = {{MODULE_Q, 3}, {MODULE_O, 1}, {MODULE_GATE, 2},
                                                                     {MODULE_DOWN, 1}};
static int adapter_width(const Adapter *a, int l, int group) {                /* columns of t; 0: no adapter */
    int r = 0;
    for (int j = 0; a && j < lora_group[group].count; j++)
        r += rank_width(a->lora[l * MODULE_COUNT + lora_group[group].first + j].rank);
    return r;
}
/* Has anything of modules first..first+count of layer l, or one of its norms, a gradient? */
static bool adapter_trains_modules(const Adapter *a, int l, int first, int count) {
    for (const Lora *x = &a->lora[l * MODULE_COUNT + first], *end = x + count; x < end; x++)
        if (x->rank || x->dW || x->dbias) return true;
    return false;
}
static bool adapter_trains_norm(const Adapter *a, int l, int place) { return a->norms[l].d_norm[place] != NULL; }
/* Of the attention block of layer l: what is trained behind its first norm, and with that norm. */
static bool adapter_trains_attention(const Adapter *a, int l) {
    return adapter_trains_modules(a, l, MODULE_Q, 4) || adapter_trains_norm(a, l, NORM_Q) ||
           adapter_trains_norm(a, l, NORM_K) || adapter_trains_norm(a, l, NORM_ATTENTION);
}
/* The lowest layer that needs the gradient of its output: -1 where the embedding is trained, L where no layer is. By
   the list, which a plan has, too. */
static int adapter_lowest(const Adapter *a) {
    int lowest = a->model->config.num_hidden_layers;
    for (const Trainable *t = a->list, *end = t + arrlen(a->list); t < end; t++) {
        bool above = t->kind == TENSOR_FINAL_NORM || t->kind == TENSOR_HEAD || t->kind == TENSOR_SCORE;
        int l = t->kind == TENSOR_EMBED ? -1 : t->layer;
        if (!above && l < lowest) lowest = l;
    }
    return lowest;
}
/* Is anything below the head trained? */
static bool adapter_wants_normed(const Adapter *a) {
    return a->d_final_norm || adapter_lowest(a) < a->model->config.num_hidden_layers;
}

/* What the dropout masks of one group of projections need in any layer: layers may differ in their adapters, and under
   recompute they share the memory. */
static size_t workspace_most_kept(const Model *m, const Adapter *a, int max_tokens, int group) {
    int first = lora_group[group].first, count = lora_group[group].count;
    size_t most = 0;
    for (int l = 0; l < m->config.num_hidden_layers; l++) {
        size_t bytes = kept_bytes(&m->layers[l].linear[first], &a->lora[l * MODULE_COUNT + first], count, max_tokens);
        if (bytes > most) most = bytes;
    }
    return most;
}

static size_t workspace_layout(Workspace *w, const Model *m, const Adapter *a, char *memory, MemoryTable *table) {
    const ModelConfig *c = &m->config;
    size_t N = (size_t)w->max_tokens, C = (size_t)c->hidden_size, F = (size_t)c->intermediate_size;
    size_t H = (size_t)c->num_attention_heads, D = (size_t)c->head_dim;
    size_t P = (H + 2 * (size_t)c->num_key_value_heads) * D, X = sizeof(floatX);
    WorkspaceLayout at = {memory, 0};
    int widest = (int)(2 * F > P ? 2 * F : P), rank = 0;
    if ((int)C > widest) widest = (int)C;
    bool masks = a && w->recompute != FORWARD_ONLY && a->config.lora_dropout > 0;
    LayerActivations shared;
    memset(&shared, 0, sizeof shared);
    for (int l = 0; l < c->num_hidden_layers; l++) {
        LayerActivations *s = &w->layers[l];
        bool kept = l > w->lowest, own = l == 0 || (kept && w->recompute < RECOMPUTE_LAYER);
        bool own_gate_up = l == 0 || (kept && w->recompute == RECOMPUTE_NONE);
        if (!own) *s = shared;              /* one set for all layers; only the layer's input is its own */
        if (l == 0 || kept) s->x = (floatX *)workspace_take(&at, N * C, X);
        if (own) {
            s->qkv = (floatX *)workspace_take(&at, N * P, X);
            s->attention = (floatX *)workspace_take(&at, N * H * D, X);
            s->after_attention = (floatX *)workspace_take(&at, N * C, X);
            s->rstd1 = (float *)workspace_take(&at, N, sizeof(float));
            s->rstd2 = (float *)workspace_take(&at, N, sizeof(float));
            s->lse = (float *)workspace_take(&at, N * H, sizeof(float));
            if (own_gate_up) s->gate_up = (floatX *)workspace_take(&at, N * 2 * F, X);
            else s->gate_up = w->layers[0].gate_up;
            uint8_t **mask[LORA_GROUPS] = {&s->kept_qkv, &s->kept_o, &s->kept_gate_up, &s->kept_down};
            for (int g = 0; g < LORA_GROUPS && masks; g++)
                if (own_gate_up || g != LORA_GROUP_GATE_UP)
                    *mask[g] = (uint8_t *)workspace_take(&at, workspace_most_kept(m, a, w->max_tokens, g), 1);
            if (!own_gate_up) s->kept_gate_up = w->layers[0].kept_gate_up;
        }
        floatX **t[LORA_GROUPS] = {&s->t_qkv, &s->t_o, &s->t_gate_up, &s->t_down};
        for (int g = 0; g < LORA_GROUPS; g++) {
            s->width[g] = adapter_width(a, l, g);
            *t[g] = (floatX *)workspace_take(&at, N * (size_t)s->width[g], X);
            if (s->width[g] > rank) rank = s->width[g];
        }
        if (l == 0) shared = *s;
    }
    bool backward = w->recompute != FORWARD_ONLY;
    if (table) memory_add(table, backward ? "activations kept for backward" : "activations", at.offset);
    size_t mark = at.offset;
    w->final_x = (floatX *)workspace_take(&at, N * C, X);
    w->final_rstd = (float *)workspace_take(&at, N, sizeof(float));
    w->normed = (floatX *)workspace_take(&at, N * C, X);
    w->rotated = (floatX *)workspace_take(&at, N * P, X);
    w->h = (floatX *)workspace_take(&at, N * F, X);
    w->projected = (floatX *)workspace_take(&at, N * C, X);
    w->d_residual = backward ? (floatX *)workspace_take(&at, N * C, X) : NULL;
    w->d_normed = backward ? (floatX *)workspace_take(&at, N * C, X) : NULL;
    w->d_h = backward ? (floatX *)workspace_take(&at, N * F, X) : NULL;
    w->d_attention = backward ? (floatX *)workspace_take(&at, N * H * D, X) : NULL;
    w->d_qkv = backward ? (floatX *)workspace_take(&at, N * P, X) : NULL;
    w->cos_table = (float *)workspace_take(&at, (size_t)w->max_positions * D / 2, sizeof(float));
    w->sin_table = (float *)workspace_take(&at, (size_t)w->max_positions * D / 2, sizeof(float));
    int32_t **integers[] = {&w->ids, &w->positions, &w->cu_seqlens, &w->labelled, &w->targets};
    for (int i = 0; i < 5; i++) *integers[i] = (int32_t *)workspace_take(&at, N + 1, sizeof(int32_t));
    w->row_loss = (RowLoss *)workspace_take(&at, N, sizeof(RowLoss));
    if (table) memory_add(table, "working buffers of one layer", at.offset - mark);
    w->scratch.bytes = op_scratch_bytes(w->max_tokens, widest, rank, c->vocab_size, c->hidden_size);
    w->scratch.base = workspace_take(&at, w->scratch.bytes, 1);
    if (table) memory_add(table, "scratch of the ops (logits chunk, panels)", w->scratch.bytes);
    return at.offset;
}

void model_memory(const Model *m, const Adapter *a, MemoryTable *table) {
    size_t arena = a ? a->param_count * sizeof(float) : 0;
    memory_add(table, "base weights", m->weight_bytes + m->norm_bytes + (a ? a->rest_bytes : 0));
    bool trained = a && a->copy_bytes;      /* weights of the model, not adapters alone */
    memory_add(table, trained ? "trained weights and their gradients" : "adapter and its gradient",
               (a && a->frozen ? 1 : 2) * arena);
    bool eight_bits = a && a->optim == OPTIMIZER_ADAMW_8BIT;
    memory_add(table, eight_bits ? "AdamW moments in 8 bits" : "AdamW moments",
               a && !a->frozen ? 2 * a->moment_count * sizeof(float) : 0);
    if (a && a->packed_bytes) memory_add(table, "adapter for the matrix products", a->packed_bytes);
    if (trained) memory_add(table, "trained weights as they are read", a->copy_bytes);
}

void workspace_close(Workspace *w) {
    backend_free(w->arena, w->arena_bytes);
    free(w->layers);
    free(w->pad_row);
    memset(w, 0, sizeof *w);
}

bool workspace_open(Workspace *w, const Model *m, const Adapter *a, int max_tokens, int max_positions,
                    Recompute recompute, bool allocate, MemoryTable *table, Error *err) {
    workspace_close(w);
    w->layers = (LayerActivations *)must_alloc((size_t)m->config.num_hidden_layers * sizeof(LayerActivations));
    w->pad_row = (float *)must_alloc((size_t)m->config.hidden_size * sizeof(float));
    w->max_tokens = max_tokens;
    w->max_positions = max_positions;
    w->recompute = recompute;
    int lowest = a ? adapter_lowest(a) : 0;
    w->lowest = recompute == FORWARD_ONLY ? m->config.num_hidden_layers : lowest > 0 ? lowest : 0;
    w->arena_bytes = workspace_layout(w, m, a, NULL, table);
    if (!allocate) return true;
    if (w->arena_bytes > backend_memory())
        return fail(err, "the run does not fit: %.2f GiB more needed for %d tokens at once, %.2f GiB free; memory; %s",
                    (double)w->arena_bytes / 0x1p30, max_tokens, (double)backend_memory() / 0x1p30,
                    recompute >= RECOMPUTE_LAYER ? "lower --per-device-train-batch-size or --max-length"
                                                 : "add --fit, lower --max-length, or add --recompute layer");
    w->arena = backend_alloc(w->arena_bytes);
    if (!w->arena)
        return fail(err, "out of memory for %.2f GiB of activations; memory; lower --per-device-train-batch-size or "
                         "--max-length", (double)w->arena_bytes / 0x1p30);
    workspace_layout(w, m, a, (char *)w->arena, NULL);
    size_t count = (size_t)max_positions * (size_t)m->config.head_dim / 2;
    float *cosines = (float *)must_alloc(count * sizeof(float)), *sines = (float *)must_alloc(count * sizeof(float));
    rope_tables(cosines, sines, &m->config, max_positions);
    backend_upload(w->cos_table, cosines, count * sizeof(float));
    backend_upload(w->sin_table, sines, count * sizeof(float));
    free(cosines);
    free(sines);
    return true;
}

/* ---- forward and backward ---------------------------------------------------------------------------------------- */

static void workspace_probe(WorkspaceProbe *p, const char *tensor, int layer, const floatX *x, int N, int width) {
    if (!p || p->tensor) return;
    size_t count = (size_t)N * (size_t)width;
    floatX *copy = (floatX *)must_alloc(count * sizeof(floatX));
    backend_download(copy, x, count * sizeof(floatX));
    for (size_t i = 0; i < count && !p->tensor; i++)
        if (!isfinite((float)copy[i])) {
            p->tensor = tensor; p->layer = layer;
            p->index = (int64_t)i; p->width = width;
        }
    free(copy);
}

/* A layer is two halves. Each reads a normed residual stream [N,C] and leaves what is to be added in w->projected:

       x               -> norm1 -> attention_block -> projected        after_attention = x + projected
       after_attention -> norm2 -> mlp_block       -> projected        the next layer's x = after_attention + projected

   The additions are fused into the norm that follows (the `residual` of rmsnorm_forward). Backward goes through the
   same blocks from the last to the first; w->d_residual is the gradient of the residual stream where it has got to. */

static const Lora *adapter_layer(const Adapter *a, int l) { return a ? &a->lora[l * MODULE_COUNT] : NULL; }
/* The adapter's own norm, head or embedding, or the model's. */
static const float *adapter_norm(const Model *m, const Adapter *a, int l, int place) {
    return a && a->norms[l].norm[place] ? a->norms[l].norm[place] : m->layers[l].norm[place];
}
static const float *adapter_final_norm(const Model *m, const Adapter *a) {
    return a && a->final_norm ? a->final_norm : m->final_norm;
}
static const Weight *adapter_head(const Model *m, const Adapter *a) { return a && a->head.rows ? &a->head : &m->head; }
static const Weight *adapter_embed(const Model *m, const Adapter *a) {
    return a && a->embed.rows ? &a->embed : &m->embed;
}

/* q, k, v, rotary embedding, attention, o. In: w->normed [N,C]. Out: w->projected [N,C]. */
static void attention_block_forward(const Model *m, const Adapter *a, Workspace *w, int l, const Batch *b,
                                    DropoutKey key) {
    const ModelConfig *c = &m->config;
    const Layer *layer = &m->layers[l];
    const Lora *lora = adapter_layer(a, l);
    const float *q_norm = adapter_norm(m, a, l, NORM_Q), *k_norm = adapter_norm(m, a, l, NORM_K);
    LayerActivations *s = &w->layers[l];
    AttentionShape shape = config_attention(c);
    const int32_t *rotary = c->no_rope[l] ? NULL : w->positions;
    Cache *cache = w->cache;
    floatX *keys = cache ? cache->base + (size_t)l * cache->layer : NULL;     /* [places,2,KV,capacity,D] */
    int N = b->N;

    /* [N,C] -> [N,P], q|k|v side by side; rotated apart from it, for backward needs both */
    linear_forward(s->qkv, s->t_qkv, s->kept_qkv, w->normed, &layer->linear[MODULE_Q], lora_at(lora, MODULE_Q), 3, key,
                   N, w->scratch);
    workspace_probe(w->probe, "q, k, v", l, s->qkv, N, (shape.H + 2 * shape.KV) * shape.D);
    qk_norm_rope_forward(w->rotated, s->qkv, q_norm, k_norm, c->rms_norm_eps, w->cos_table, w->sin_table, rotary, N,
                         shape);
    /* [N,P] -> [N,H,D]: over the batch's own sequences, or one new token each over what the cache holds */
    if (cache) cache_store(keys, w->rotated, cache->place, w->positions, cache->capacity, N, shape);
    if (cache && cache->decode)
        attention_decode(s->attention, w->rotated, keys, cache->place, w->positions, cache->capacity, N, shape);
    else attention_forward(s->attention, s->lse, w->rotated, w->cu_seqlens, b->S, N, shape, w->scratch);
    workspace_probe(w->probe, "attention", l, s->attention, N, shape.H * shape.D);
    /* [N,HD] -> [N,C] */
    linear_forward(w->projected, s->t_o, s->kept_o, s->attention, &layer->linear[MODULE_O], lora_at(lora, MODULE_O), 1,
                   key, N, w->scratch);
    workspace_probe(w->probe, "o_proj", l, w->projected, N, c->hidden_size);
}

/* gate, up, silu(gate) * up, down. In: w->normed [N,C]. Out: w->projected [N,C]. */
static void mlp_block_forward(const Model *m, const Adapter *a, Workspace *w, int l, const Batch *b, DropoutKey key) {
    const Layer *layer = &m->layers[l];
    const Lora *lora = adapter_layer(a, l);
    LayerActivations *s = &w->layers[l];
    int N = b->N, F = m->config.intermediate_size;
    /* [N,C] -> [N,2F], gate|up side by side */
    linear_forward(s->gate_up, s->t_gate_up, s->kept_gate_up, w->normed, &layer->linear[MODULE_GATE],
                   lora_at(lora, MODULE_GATE), 2, key, N, w->scratch);
    workspace_probe(w->probe, "gate, up", l, s->gate_up, N, 2 * F);
    swiglu_forward(w->h, s->gate_up, N, F);                                    /* [N,2F] -> [N,F] */
    /* [N,F] -> [N,C] */
    linear_forward(w->projected, s->t_down, s->kept_down, w->h, &layer->linear[MODULE_DOWN],
                   lora_at(lora, MODULE_DOWN), 1, key, N, w->scratch);
    workspace_probe(w->probe, "down_proj", l, w->projected, N, m->config.hidden_size);
}

/* One layer from its input to the unadded output of its MLP, w->projected [N,C]. previous [N,C]: the residual stream
   before the last layer's MLP, whose output still has to be added; NULL: the layer's input s->x is complete. */
static void layer_forward(const Model *m, const Adapter *a, Workspace *w, int l, const Batch *b, DropoutKey key,
                          const floatX *previous) {
    LayerActivations *s = &w->layers[l];
    int N = b->N, C = m->config.hidden_size;
    float eps = m->config.rms_norm_eps;
    const float *norm1 = adapter_norm(m, a, l, NORM_ATTENTION), *norm2 = adapter_norm(m, a, l, NORM_MLP);
    if (previous) rmsnorm_forward(w->normed, s->rstd1, s->x, previous, w->projected, norm1, eps, N, C);
    else rmsnorm_forward(w->normed, s->rstd1, NULL, s->x, NULL, norm1, eps, N, C);
    attention_block_forward(m, a, w, l, b, key);
    rmsnorm_forward(w->normed, s->rstd2, s->after_attention, s->x, w->projected, norm2, eps, N, C);
    mlp_block_forward(m, a, w, l, b, key);
}

/* Gradients of the weights and biases of a group that are trained themselves. dy: [N,O], x: [N,I], as linear_backward
   has them. */
static void linear_group_weight_backward(const Layer *layer, const Lora *lora, int group, const floatX *dy,
                                         const floatX *x, int N, Scratch scratch) {
    int first = lora_group[group].first, count = lora_group[group].count, O = 0, o = 0;
    for (int j = first; j < first + count; j++) O += layer->linear[j].out;
    for (int j = first; j < first + count; j++) {
        const Linear *p = &layer->linear[j];
        if (lora[j].dW || lora[j].dbias)
            linear_weight_backward(lora[j].dW, lora[j].dbias, dy + o, O, x, N, p->in, p->out, scratch);
        o += p->out;
    }
}

/* w->d_normed [N,C], the gradient of the MLP's input (wants_dx false: not wanted), from w->d_residual [N,C], that of
   its output. w->normed: as forward had it. */
static void mlp_block_backward(const Model *m, const Adapter *a, Workspace *w, int l, const Batch *b, DropoutKey key,
                               bool wants_dx) {
    const Layer *layer = &m->layers[l];
    const Lora *lora = adapter_layer(a, l);
    LayerActivations *s = &w->layers[l];
    int N = b->N, F = m->config.intermediate_size;
    if (w->recompute == RECOMPUTE_GATE_UP)
        linear_forward(s->gate_up, s->t_gate_up, s->kept_gate_up, w->normed, &layer->linear[MODULE_GATE],
                       lora_at(lora, MODULE_GATE), 2, key, N, w->scratch);
    swiglu_forward(w->h, s->gate_up, N, F);                                    /* again: elementwise work is cheap */
    linear_group_weight_backward(layer, lora, LORA_GROUP_DOWN, w->d_residual, w->h, N, w->scratch);
    linear_backward(w->d_h, w->d_residual, s->t_down, s->kept_down, w->h, &layer->linear[MODULE_DOWN],
                    lora_at(lora, MODULE_DOWN), 1, key, N, w->scratch);        /* d_h [N,F] */
    swiglu_backward(s->gate_up, w->d_h, s->gate_up, N, F);                     /* in place: its own gradient now */
    linear_group_weight_backward(layer, lora, LORA_GROUP_GATE_UP, s->gate_up, w->normed, N, w->scratch);
    linear_backward(wants_dx ? w->d_normed : NULL, s->gate_up, s->t_gate_up, s->kept_gate_up, w->normed,
                    &layer->linear[MODULE_GATE], lora_at(lora, MODULE_GATE), 2, key, N, w->scratch);
}

/* The gradient of the attention block's input in w->d_normed [N,C] (wants_dx false: not wanted), from w->d_residual
   [N,C], that of its output. Leaves the block's input in w->normed. */
static void attention_block_backward(const Model *m, const Adapter *a, Workspace *w, int l, const Batch *b,
                                     DropoutKey key, bool wants_dx) {
    const ModelConfig *c = &m->config;
    const Layer *layer = &m->layers[l];
    const Lora *lora = adapter_layer(a, l);
    LayerActivations *s = &w->layers[l];
    AttentionShape shape = config_attention(c);
    const int32_t *rotary = c->no_rope[l] ? NULL : w->positions;
    const float *q_norm = adapter_norm(m, a, l, NORM_Q), *k_norm = adapter_norm(m, a, l, NORM_K);
    float *dq_norm = a->norms[l].d_norm[NORM_Q], *dk_norm = a->norms[l].d_norm[NORM_K];
    float eps = c->rms_norm_eps;
    int N = b->N;
    linear_group_weight_backward(layer, lora, LORA_GROUP_O, w->d_residual, s->attention, N, w->scratch);
    linear_backward(w->d_attention, w->d_residual, s->t_o, s->kept_o, s->attention, &layer->linear[MODULE_O],
                    lora_at(lora, MODULE_O), 1, key, N, w->scratch);           /* d_attention [N,H,D] */
    qk_norm_rope_forward(w->rotated, s->qkv, q_norm, k_norm, eps, w->cos_table, w->sin_table, rotary, N, shape);
    attention_backward(w->d_qkv, w->d_attention, s->attention, s->lse, w->rotated, w->cu_seqlens, b->S, N, shape,
                       w->scratch);                                            /* d_qkv [N,P], of the rotated ones */
    if (dq_norm || dk_norm)
        qk_norm_weight_backward(dq_norm, dk_norm, w->d_qkv, s->qkv, eps, w->cos_table, w->sin_table, rotary, N, shape,
                                w->scratch);
    qk_norm_rope_backward(w->d_qkv, s->qkv, q_norm, k_norm, eps, w->cos_table, w->sin_table, rotary, N, shape);
    rmsnorm_forward(w->normed, s->rstd1, NULL, s->x, NULL, adapter_norm(m, a, l, NORM_ATTENTION), eps, N,
                    c->hidden_size);
    linear_group_weight_backward(layer, lora, LORA_GROUP_QKV, w->d_qkv, w->normed, N, w->scratch);
    linear_backward(wants_dx ? w->d_normed : NULL, w->d_qkv, s->t_qkv, s->kept_qkv, w->normed, &layer->linear[MODULE_Q],
                    lora_at(lora, MODULE_Q), 3, key, N, w->scratch);
}

/* One norm on the way down: its weight's gradient where it has one, and the residual stream's where something below
   wants it. */
static void layer_norm_backward(Workspace *w, float *d_weight, const float *rstd, const floatX *x, const float *weight,
                                bool wants_dx, int N, int C) {
    if (d_weight) rmsnorm_weight_backward(d_weight, w->d_normed, rstd, x, 1, N, C, w->scratch);
    if (wants_dx) rmsnorm_backward(w->d_residual, w->d_residual, w->d_normed, rstd, x, weight, N, C);
}

/* w->d_residual [N,C]: in, the gradient of the layer's output; out, of its input (left unfinished where nothing below
   wants it). A residual stream passes its gradient on: each block's is added to it, through its norm. */
static void layer_backward(const Model *m, const Adapter *a, Workspace *w, int l, const Batch *b, DropoutKey key,
                           bool wants_dx) {
    LayerActivations *s = &w->layers[l];
    const float *norm1 = adapter_norm(m, a, l, NORM_ATTENTION), *norm2 = adapter_norm(m, a, l, NORM_MLP);
    float *const *d_norm = a->norms[l].d_norm;
    int N = b->N, C = m->config.hidden_size;
    bool wants_attention = wants_dx || adapter_trains_attention(a, l);
    if (w->recompute == RECOMPUTE_LAYER) layer_forward(m, a, w, l, b, key, NULL);
    rmsnorm_forward(w->normed, s->rstd2, NULL, s->after_attention, NULL, norm2, m->config.rms_norm_eps, N, C);
    mlp_block_backward(m, a, w, l, b, key, wants_attention || d_norm[NORM_MLP]);
    layer_norm_backward(w, d_norm[NORM_MLP], s->rstd2, s->after_attention, norm2, wants_attention, N, C);
    if (!wants_attention) return;
    attention_block_backward(m, a, w, l, b, key, wants_dx || d_norm[NORM_ATTENTION]);
    layer_norm_backward(w, d_norm[NORM_ATTENTION], s->rstd1, s->x, norm1, wants_dx, N, C);
}

/* A batch or an adapter that the workspace has no room for is a bug of the caller's, not a user's error. */
static void workspace_check(const Workspace *w, const Model *m, const Adapter *a, const Batch *b, bool backward) {
    bool fits = b->N <= w->max_tokens && !(backward && a && w->lowest > 0 && adapter_lowest(a) < w->lowest);
    for (int l = 0; l < m->config.num_hidden_layers && a; l++)
        for (int g = 0; g < LORA_GROUPS; g++) fits &= adapter_width(a, l, g) <= w->layers[l].width[g];
    if (fits) return;
    fprintf(stderr, "error: a batch of %d tokens or an adapter that the workspace was not opened for; %s; "
                    "please report this\n", b->N, backward ? "model_backward" : "model_forward");
    abort();
}

void model_forward(const Model *m, const Adapter *a, Workspace *w, const Batch *b, DropoutKey key) {
    const ModelConfig *c = &m->config;
    int L = c->num_hidden_layers, N = b->N, C = c->hidden_size;
    size_t bytes = (size_t)N * sizeof(int32_t);
    workspace_check(w, m, a, b, false);
    backend_upload(w->ids, b->ids, bytes);
    backend_upload(w->positions, b->positions, bytes);
    backend_upload(w->cu_seqlens, b->cu_seqlens, ((size_t)b->S + 1) * sizeof(int32_t));
    const Weight *embed = adapter_embed(m, a);
    embedding_forward(w->layers[0].x, w->ids, embed, c->embedding_scale, N, C);          /* [N] -> [N,C] */
    /* What this batch has read of the file goes back: else the whole table creeps into memory. */
    if (embed == &m->embed) file_release_pages(embed->data, weight_bytes(embed));
    for (int l = 0; l < L; l++) layer_forward(m, a, w, l, b, key, l ? w->layers[l - 1].after_attention : NULL);
    rmsnorm_forward(w->normed, w->final_rstd, w->final_x, w->layers[L - 1].after_attention, w->projected,
                    adapter_final_norm(m, a), c->rms_norm_eps, N, C);
    workspace_probe(w->probe, "final norm", L, w->normed, N, C);
}

static LossStats model_loss_sums(const RowLoss *row, int M) {
    LossStats sum;
    memset(&sum, 0, sizeof sum);
    sum.tokens = M;
    sum.weight = M;
    for (int i = 0; i < M; i++) {
        sum.loss_sum += row[i].loss;
        sum.entropy_sum += row[i].entropy;
        sum.correct += row[i].correct;
    }
    return sum;
}

/* Token cross-entropy over the batch's labelled rows. */
LossStats model_loss(const Model *m, const Adapter *a, Workspace *w, const Batch *b, float dloss) {
    const ModelConfig *c = &m->config;
    size_t M = (size_t)b->M;
    bool backward = a && dloss != 0, wants_dx = backward && adapter_wants_normed(a);
    backend_upload(w->labelled, b->labelled, M * sizeof(int32_t));
    backend_upload(w->targets, b->targets, M * sizeof(int32_t));
    lm_head_loss(wants_dx ? w->d_normed : NULL, backward ? a->d_head : NULL, w->row_loss, w->normed, w->labelled,
                 w->targets, NULL, adapter_head(m, a), backward ? dloss * a->loss_scale : 0, b->M, b->N,
                 c->hidden_size, c->vocab_size, w->scratch);
    backend_download(b->row_loss, w->row_loss, M * sizeof(RowLoss));
    return model_loss_sums(b->row_loss, b->M);
}

/* The embedding's gradient. What looking up the padding token would add is none: its row comes back as it was. */
static void embedding_gradient(const Model *m, const Adapter *a, Workspace *w, const Batch *b) {
    const ModelConfig *c = &m->config;
    size_t C = (size_t)c->hidden_size, bytes = C * sizeof(float);
    bool padding = false;
    for (int n = 0; n < b->N; n++) padding |= b->ids[n] == c->pad_token_id;
    float *at = padding ? a->d_embed + (size_t)c->pad_token_id * C : NULL, *row = padding ? w->pad_row : NULL;
    if (padding) backend_download(row, at, bytes);
    embedding_backward(a->d_embed, w->ids, w->d_residual, c->embedding_scale, b->N, c->hidden_size, c->vocab_size);
    if (padding) backend_upload(at, row, bytes);
}

/* Nothing below the lowest tensor that is trained is computed. */
void model_backward(const Model *m, Adapter *a, Workspace *w, const Batch *b, DropoutKey key) {
    const ModelConfig *c = &m->config;
    int L = c->num_hidden_layers, lowest = adapter_lowest(a), N = b->N, C = c->hidden_size;
    workspace_check(w, m, a, b, true);
    if (!adapter_wants_normed(a)) return;
    if (a->d_final_norm)
        rmsnorm_weight_backward(a->d_final_norm, w->d_normed, w->final_rstd, w->final_x, c->logits_scale, N, C,
                                w->scratch);
    if (lowest == L) return;
    rmsnorm_backward(w->d_residual, NULL, w->d_normed, w->final_rstd, w->final_x, adapter_final_norm(m, a), N, C);
    for (int l = L - 1; l >= 0 && l >= lowest; l--) layer_backward(m, a, w, l, b, key, l > lowest);
    if (a->d_embed) embedding_gradient(m, a, w, b);
}

void model_logits(const Model *m, const Adapter *a, Workspace *w, float *logits, const Batch *b) {
    DropoutKey none = {0, 0, 0, 0};
    model_forward(m, a, w, b, none);
    lm_head_logits(logits, w->normed, adapter_head(m, a), b->N, m->config.hidden_size, m->config.vocab_size,
                   w->scratch);
}

void model_explain_nonfinite(const Model *m, const Adapter *a, Workspace *w, const Batch *b, DropoutKey key, char *text,
                             size_t bytes) {
    WorkspaceProbe probe;
    memset(&probe, 0, sizeof probe);
    w->probe = &probe;
    model_forward(m, a, w, b, key);
    w->probe = NULL;
    if (!probe.tensor) {
        snprintf(text, bytes, "in the loss itself, in a batch that begins with data row %lld", (long long)b->row[0]);
        return;
    }
    int64_t token = probe.index / probe.width;
    int s = 0;
    while (s + 1 < b->S && b->cu_seqlens[s + 1] <= token) s++;
    snprintf(text, bytes, "first in layer %d, %s, token %lld of data row %lld", probe.layer, probe.tensor,
             (long long)(token - b->cu_seqlens[s]), (long long)b->row[s]);
}

/* =====================================================================================================================
   5  THE ADAPTER AND THE OPTIMIZER
   ================================================================================================================== */

/* ---- what is trained --------------------------------------------------------------------------------------------- */

static const struct { const char *name; int bit; } train_sets[] = {
    {"lora", TRAIN_LORA}, {"norms", TRAIN_NORMS}, {"head", TRAIN_HEAD}, {"embeddings", TRAIN_EMBEDDINGS},
    {"full", TRAIN_FULL}, {"last", TRAIN_LAST}};
enum { TRAIN_SETS = sizeof train_sets / sizeof *train_sets, TRAIN_ALONE = TRAIN_LAST | TRAIN_FULL };

bool train_parse(int *train, int *last_layers, const char *text, Error *err) {
    const char *sets = "give lora, norms, head, embeddings or several of them with commas, or full, or last:N";
    *train = *last_layers = 0;
    for (const char *word = text; word;) {
        int n = (int)strcspn(word, ","), i = 0;
        while (i < TRAIN_SETS && ((int)strlen(train_sets[i].name) != n || strncmp(word, train_sets[i].name, (size_t)n)))
            i++;
        if (n > 5 && !strncmp(word, "last:", 5)) {
            char *end;
            long layers = strtol(word + 5, &end, 10);
            if (end != word + n || layers < 1 || layers > CONFIG_MAX_LAYERS)
                return fail(err, "'%.*s' names no layers; --train; give last:N, N from 1 on", n, word);
            *last_layers = (int)layers;
            i = TRAIN_SETS - 1;
        } else if (i == TRAIN_SETS - 1) return fail(err, "'last' does not say how many layers; --train; give last:N");
        if (i == TRAIN_SETS) return fail(err, "'%.*s' is no set of weights; --train; %s", n, word, sets);
        if (*train & train_sets[i].bit) return fail(err, "'%.*s' is there twice; --train; %s", n, word, sets);
        *train |= train_sets[i].bit;
        word = word[n] ? word + n + 1 : NULL;
    }
    return !(*train & TRAIN_ALONE) || !(*train & (*train - 1)) ||
           fail(err, "'%s': full and last:N stand alone; --train; %s", text, sets);
}

void train_text(Text *t, int train, int last_layers) {
    const char *comma = "";
    for (int i = 0; i < TRAIN_SETS; i++) {
        if (!((train ? train : TRAIN_LORA) & train_sets[i].bit)) continue;
        text_print(t, "%s%s", comma, train_sets[i].name);
        if (train_sets[i].bit == TRAIN_LAST) text_print(t, ":%d", last_layers);
        comma = ",";
    }
}

/* Is this tensor of the model, number `index` of its walk, trained itself? Of a tied pair without LoRA the embedding
   stands for both. */
static bool adapter_trains(const LoraConfig *c, const TensorSpec *t, int index) {
    int train = c->train & TRAIN_FULL ? TRAIN_NORMS | TRAIN_HEAD | TRAIN_EMBEDDINGS : c->train;
    if (c->classes.num_labels) train &= ~TRAIN_HEAD;       /* nothing reads the language model's */
    bool last = c->train & TRAIN_FULL || (c->train & TRAIN_LAST &&
                                          t->layer >= t->config->num_hidden_layers - c->last_layers);
    bool shared = t->optional && !adapter_has_lora(c);
    if (c->tensors) return c->tensors[index];
    switch (t->kind) {
    case TENSOR_EMBED: return train & (shared ? TRAIN_EMBEDDINGS | TRAIN_HEAD : TRAIN_EMBEDDINGS);
    case TENSOR_HEAD: return train & TRAIN_HEAD && !shared;
    case TENSOR_FINAL_NORM: return train & (TRAIN_NORMS | TRAIN_LAST);
    case TENSOR_NORM: return train & TRAIN_NORMS || last;
    default: return last;
    }
}

size_t adapter_tensor_count(const Trainable *t) {
    return (size_t)t->shape[0] * (size_t)(t->shape[1] ? t->shape[1] : 1);
}

/* Moments in 8 bits lie in the arenas as so many floats' worth of codes, then one absmax a block. */
enum { ADAMW_8BIT_LEAST = 4096 };           /* elements of a tensor; smaller ones keep 32 bits */
static size_t adamw_code_words(size_t count) { return (count + sizeof(float) - 1) / sizeof(float); }
static size_t adamw_blocks(size_t count) { return (count + ADAMW_BLOCK - 1) / ADAMW_BLOCK; }

/* Adds a tensor to the list. */
static Trainable *adapter_train(Adapter *a, const char *name, TensorKind kind, int layer, int place, int64_t rows,
                                int64_t cols) {
    Trainable t;
    memset(&t, 0, sizeof t);
    snprintf(t.name, sizeof t.name, "%s", name);
    t.shape[0] = rows;
    t.shape[1] = cols;
    t.offset = a->param_count;
    t.rate = t.decay = 1;
    t.kind = kind;
    t.layer = layer;
    t.place = place;
    size_t count = adapter_tensor_count(&t);
    t.moment = a->moment_count;
    t.eight_bits = a->optim == OPTIMIZER_ADAMW_8BIT && count >= ADAMW_8BIT_LEAST && kind != TENSOR_EMBED;
    arrput(a->list, t);
    a->param_count += count;
    a->moment_count += t.eight_bits ? adamw_code_words(count) + adamw_blocks(count) : count;
    return &arrlast(a->list);
}

/* The rule of LoRA: A [r, in] and B [out, r] of every adapted projection, by PEFT's names; fills in a->lora but for
   where they lie. */
static void adapter_rule_lora(Adapter *a) {
    const LoraConfig *c = &a->config;
    for (int i = 0; i < a->model->config.num_hidden_layers * MODULE_COUNT; i++) {
        int l = i / MODULE_COUNT, j = i % MODULE_COUNT;
        const Linear *p = &a->model->layers[l].linear[j];
        LoraPart part = {c->target[j] && (!c->layers || c->layers[l]) ? c->r : 0, c->lora_alpha};
        if (c->parts) part = c->parts[i];
        if (!part.rank) continue;
        float size = c->use_rslora ? sqrtf((float)part.rank) : (float)part.rank;
        a->lora[i].rank = part.rank;
        a->lora[i].scale = part.alpha / size;
        char name[120];
        for (int b = 0; b < 2; b++) {
            snprintf(name, sizeof name, "base_model.model.model.layers.%d.%s.lora_%c.weight", l, module_path[j],
                     "AB"[b]);
            adapter_train(a, name, b ? TENSOR_LORA_B : TENSOR_LORA_A, l, j, b ? p->out : part.rank,
                          b ? part.rank : p->in);
        }
    }
}

/* A tensor of the model as its file has it; of a tied pair, of which the file may have one, the other serves. */
static Weight adapter_base(const Model *m, const TensorSpec *t) {
    const Tensor *file = t->kind == TENSOR_EMBED || t->kind == TENSOR_HEAD ? NULL
                       : tensors_get(&m->files, t->name, t->rows, t->cols, NULL);
    Weight w = file ? tensor_weight(file) : t->kind == TENSOR_HEAD ? m->head : m->embed;
    w.packed = NULL;
    return w;
}
/* Does the embedding that is trained serve as the head, too? Beside LoRA, and where both are named, each is its own. */
static bool adapter_shares(const Adapter *a) {
    const LoraConfig *c = &a->config;
    return a->model->config.tie_word_embeddings && !adapter_has_lora(c) && !(c->tensors && c->tensors[TENSOR_HEAD]);
}

/* The rule of all else: tensors of the model, by the names of its folder, or beside LoRA by PEFT's. No decay of norms
   and biases, as in transformers' Trainer (get_decay_parameter_names). */
static void adapter_rule_tensors(Adapter *a) {
    const Model *m = a->model;
    bool peft = adapter_has_lora(&a->config);
    TensorSpec canonical = model_tensors(&m->config, "model.");
    char name[224 + 32];
    int index = 0;
    for (TensorSpec t = model_tensors(&m->config, m->prefix); tensor_next(&t) && tensor_next(&canonical); index++) {
        if (!adapter_trains(&a->config, &t, index)) continue;
        TensorSpec named = t;               /* of a tied pair the one that the folder has */
        if (!peft && adapter_shares(a) && !tensors_get(&m->files, t.name, t.rows, t.cols, NULL))
            tensor_outside(&named, TENSOR_HEAD);
        snprintf(name, sizeof name, peft ? "base_model.model.%s" : "%s", peft ? canonical.name : named.name);
        Trainable *x = adapter_train(a, name, t.kind, t.layer, t.place, t.rows, t.cols);
        x->base = adapter_base(m, &t);
        if (!t.cols) x->decay = 0;
    }
}

/* The rule of a classification head: it is always trained, beside LoRA as PEFT's SEQ_CLS names it. */
static void adapter_rule_score(Adapter *a) {
    const Model *m = a->model;
    int K = a->config.classes.num_labels, rows;
    if (!K) return;
    const Tensor *base = m->classes.num_labels ? model_score_tensor(m, &rows, NULL) : NULL;
    Trainable *t = adapter_train(a, adapter_has_lora(&a->config) ? "base_model.model.score.weight" : "score.weight",
                                 TENSOR_SCORE, 0, 0, K, m->config.hidden_size);
    if (base) t->base = tensor_weight(base);
}

/* ---- where it lies ----------------------------------------------------------------------------------------------- */

void adapter_drop(Adapter *a) {
    size_t bytes = a->param_count * sizeof(float);
    const char *about = a->about;
    OptimizerType optim = a->optim;
    bool frozen = a->frozen;
    backend_free(a->param, bytes); backend_free(a->grad, bytes);
    bytes = a->moment_count * sizeof(float);
    backend_free(a->adam_m, bytes); backend_free(a->adam_v, bytes);
    backend_free(a->rest_arena, a->rest_bytes);
    backend_free(a->packed_arena, a->packed_bytes);
    backend_free(a->copy_arena, a->copy_bytes);
    free(a->initial);
    free(a->lora);
    free(a->norms);
    arrfree(a->list);
    arrfree(a->config.layers);
    arrfree(a->config.parts);
    arrfree(a->config.tensors);
    class_config_free(&a->config.classes);
    memset(a, 0, sizeof *a);
    a->about = about;
    a->optim = optim;
    a->frozen = frozen;
}

/* A trained matrix as the ops read it: *w, its packed and, where rows of it are looked up in a table, its data at
   `memory` (NULL: no more than the bytes, which are returned). */
static size_t adapter_copy_matrix(Weight *w, const Trainable *t, bool table, bool product, char *memory) {
    Weight copy = {NULL, NULL, t->base.format, (int)t->shape[0], (int)t->shape[1]};
    size_t of_table = table ? embedding_packed_bytes(&copy) : 0;
    size_t packed = model_round_up(product ? weight_packed_bytes(&copy) : of_table, 256);
    size_t data = table && !of_table ? model_round_up(weight_bytes(&copy), 256) : 0;
    if (!memory) return packed + data;
    if (packed) copy.packed = memory;
    if (data) copy.data = memory + packed;
    *w = copy;
    return packed + data;
}

/* Where the copy of a trained tensor of the model and its gradient are looked for by forward and backward; the copy
   lies at `memory` (NULL: no more than the bytes, which are returned). */
static size_t adapter_copy(Adapter *a, const Trainable *t, char *memory) {
    bool shared = t->kind == TENSOR_EMBED && adapter_shares(a);
    float *copy = (float *)(void *)memory, *grad = memory && a->grad ? a->grad + t->offset : NULL;
    Lora *x = &a->lora[t->layer * MODULE_COUNT];
    size_t vector = model_round_up(adapter_tensor_count(t) * sizeof(float), 256), bytes;
    switch (t->kind) {
    case TENSOR_EMBED:
        a->d_embed = grad;
        bytes = adapter_copy_matrix(&a->embed, t, true, shared, memory);
        if (shared) { a->head = a->embed; a->d_head = grad; }
        return bytes;
    case TENSOR_HEAD:
        a->d_head = grad;
        return adapter_copy_matrix(&a->head, t, false, true, memory);
    case TENSOR_FINAL_NORM:
        a->final_norm = copy;
        a->d_final_norm = grad;
        return vector;
    case TENSOR_NORM:
        a->norms[t->layer].norm[t->place] = copy;
        a->norms[t->layer].d_norm[t->place] = grad;
        return vector;
    case TENSOR_WEIGHT:
        x[t->place].dW = grad;
        return adapter_copy_matrix(&x[t->place].rest, t, false, true, memory);
    case TENSOR_BIAS:
        x[t->place].bias = copy;
        x[t->place].dbias = grad;
        return vector;
    default: return 0;                      /* A and B are read as they are, or from Lora.packed */
    }
}

/* What the ops read follows every change at once: A and B in the layout for the matrix products, the copies of the
   model's tensors. */
void adapter_changed(Adapter *a) {
    for (int l = 0; l < a->model->config.num_hidden_layers; l++)
        adapter_pack(a->model->layers[l].linear, &a->lora[l * MODULE_COUNT], MODULE_COUNT);
    for (const Trainable *t = a->list, *end = t + arrlen(a->list); t < end; t++) {
        const float *values = a->param + t->offset, *vector = NULL;
        Lora *x = &a->lora[t->layer * MODULE_COUNT];
        float factor = 1;
        switch (t->kind) {
        case TENSOR_EMBED: weight_set(&a->embed, values); break;
        case TENSOR_HEAD: weight_set(&a->head, values); break;
        case TENSOR_WEIGHT: weight_set(&x[t->place].rest, values); break;
        case TENSOR_FINAL_NORM: vector = a->final_norm; factor = a->model->config.logits_scale; break;
        case TENSOR_NORM: vector = a->norms[t->layer].norm[t->place]; break;
        case TENSOR_BIAS: vector = x[t->place].bias; break;
        default: break;
        }
        if (vector) vector_set((float *)(uintptr_t)vector, values, adapter_tensor_count(t), t->base.format, factor);
    }
}

/* Sizes of what the ops read beside `param`, then (place) where each lies. */
static void adapter_place(Adapter *a, bool place) {
    const Model *m = a->model;
    size_t packed = 0, copies = 0;
    for (int i = 0; i < m->config.num_hidden_layers * MODULE_COUNT; i++) {
        const Linear *p = &m->layers[i / MODULE_COUNT].linear[i % MODULE_COUNT];
        if (place && a->packed_arena && a->lora[i].rank) a->lora[i].packed = (char *)a->packed_arena + packed;
        packed += model_round_up(adapter_packed_bytes(p, &a->lora[i]), 256);
    }
    for (const Trainable *t = a->list, *end = t + arrlen(a->list); t < end; t++) {
        Lora *x = &a->lora[t->layer * MODULE_COUNT + t->place];
        float *grad = place && a->grad ? a->grad + t->offset : NULL;
        if (place && t->kind == TENSOR_LORA_A) { x->A = a->param + t->offset; x->dA = grad; }
        if (place && t->kind == TENSOR_LORA_B) { x->B = a->param + t->offset; x->dB = grad; }
        if (place && t->kind == TENSOR_SCORE) { a->score = a->param + t->offset; a->d_score = grad; }
        copies += adapter_copy(a, t, place && a->copy_arena ? (char *)a->copy_arena + copies : NULL);
    }
    a->packed_bytes = packed;
    a->copy_bytes = copies;
}

/* Can the model have a head of K labels? */
static bool adapter_classes_check(const Model *m, int K, Error *err) {
    if (!m->config.family->classifier)
        return fail(err, "no classification with %s models; %s; transformers has none of this family either",
                    m->config.model_type, m->folder);
    return !m->classes.num_labels || m->classes.num_labels == K ||
           fail(err, "the model has a head of %d labels where %d are asked for; %s; give data with those labels, or the "
                     "model without its head", m->classes.num_labels, K, m->folder);
}

/* Lists what is trained and sizes what it takes; nothing is taken. */
static void adapter_list(Adapter *a, const Model *m, const LoraConfig *config) {
    size_t L = (size_t)m->config.num_hidden_layers;
    adapter_drop(a);
    a->model = m;
    a->loss_scale = LORA_LOSS_SCALE;
    a->config = *config;
    a->config.layers = a->config.tensors = NULL;
    a->config.parts = NULL;
    if (!adapter_has_lora(config)) {        /* what only LoRA has says nothing */
        a->config.r = 0;
        a->config.lora_alpha = a->config.lora_dropout = 0;
        a->config.use_rslora = false;
        a->config.init = LORA_INIT_TRUE;
        memset(a->config.target, 0, sizeof a->config.target);
    } else {
        if (config->layers) { arrsetlen(a->config.layers, L); memcpy(a->config.layers, config->layers, L); }
        if (config->parts) {
            arrsetlen(a->config.parts, L * MODULE_COUNT);
            memcpy(a->config.parts, config->parts, L * MODULE_COUNT * sizeof(LoraPart));
        }
    }
    if (config->tensors) {
        arrsetlen(a->config.tensors, arrlenu(config->tensors));
        memcpy(a->config.tensors, config->tensors, arrlenu(config->tensors));
    }
    class_config_copy(&a->config.classes, &config->classes);
    if (config->classes.pad_token_id < 0 && m->classes.num_labels)
        a->config.classes.pad_token_id = m->classes.pad_token_id;
    a->lora = (Lora *)must_alloc(L * MODULE_COUNT * sizeof(Lora));
    a->norms = (AdapterNorms *)must_alloc(L * sizeof(AdapterNorms));
    if (adapter_has_lora(config)) adapter_rule_lora(a);
    adapter_rule_tensors(a);
    adapter_rule_score(a);
    adapter_place(a, false);
}

/* Bytes of everything that adapter_layout takes. */
static size_t adapter_bytes(const Adapter *a) {
    size_t own = a->frozen ? a->param_count : 2 * (a->param_count + a->moment_count);
    return own * sizeof(float) + a->packed_bytes + a->copy_bytes;
}

/* What of this model could be trained in so many bytes, for a message: as --train and --optim have it. */
static void adapter_advice(char *text, size_t size, const Adapter *a, size_t room) {
    Adapter other;
    memset(&other, 0, sizeof other);
    LoraConfig config = a->config;
    int L = a->model->config.num_hidden_layers, n = config.train & TRAIN_LAST ? config.last_layers : L;
    snprintf(text, size, "train less: --train lora");
    config.tensors = NULL;
    if (!(config.train & (TRAIN_LAST | TRAIN_FULL))) return;
    for (int eight = a->optim == OPTIMIZER_ADAMW_8BIT; eight < 2; eight++) {
        other.optim = eight ? OPTIMIZER_ADAMW_8BIT : a->optim;
        for (int last = a->optim == other.optim ? n - 1 : n; last > 0; last--) {
            if (last < n) { config.train = TRAIN_LAST; config.last_layers = last; }
            else { config.train = a->config.train; config.last_layers = a->config.last_layers; }
            adapter_list(&other, a->model, &config);
            bool fits = adapter_bytes(&other) <= room;
            adapter_drop(&other);
            if (!fits) continue;
            Text what = TEXT_EMPTY;
            train_text(&what, config.train, config.last_layers);
            snprintf(text, size, "--train %s%s would fit, or --train lora", what.at,
                     eight && a->optim != OPTIMIZER_ADAMW_8BIT ? " --optim adamw_8bit" : "");
            text_free(&what);
            return;
        }
    }
}

/* Takes the four arenas: parameters, gradients and both moments have the same layout, so the optimizer sees flat
   ranges. */
static bool adapter_layout(Adapter *a, const Model *m, const LoraConfig *config, Error *err) {
    int L = m->config.num_hidden_layers;
    char advice[160];
    adapter_list(a, m, config);
    if (config->train & TRAIN_LAST && config->last_layers > L)
        return fail(err, "last:%d of a model with %d layers; --train; give last:N, N from 1 to %d, or full",
                    config->last_layers, L, L);
    if (config->classes.num_labels && !adapter_classes_check(m, config->classes.num_labels, err)) return false;
    if (adapter_has_lora(config) && (!a->param_count || a->list[0].kind < TENSOR_LORA_A))
        return fail(err, "the adapter has no parameters; --target-modules, --layers-to-transform; name at least one "
                         "module and one layer");
    if (m->shapes_only) return true;
    bool ok = !a->copy_bytes || adapter_bytes(a) <= backend_memory();
    size_t counts[] = {a->param_count, a->param_count, a->moment_count, a->moment_count};
    float **arenas[] = {&a->param, &a->grad, &a->adam_m, &a->adam_v};
    if (!ok) {
        adapter_advice(advice, sizeof advice, a, backend_memory());
        return fail(err, "what is trained does not fit: %.2f GiB needed, %.2f GiB free; --train; %s",
                    (double)adapter_bytes(a) / 0x1p30, (double)backend_memory() / 0x1p30, advice);
    }
    ok = (!a->packed_bytes || (a->packed_arena = backend_alloc(a->packed_bytes))) &&
         (!a->copy_bytes || (a->copy_arena = backend_alloc(a->copy_bytes)));
    for (int i = 0; i < (a->frozen ? 1 : 4) && ok; i++)
        ok = (*arenas[i] = (float *)backend_alloc(counts[i] * sizeof(float)));
    if (!ok) return fail(err, "out of memory for %zu trained parameters; %s", a->param_count,
                         a->copy_bytes ? "--train; train less" : "--lora-r; choose a smaller rank");
    adapter_place(a, true);
    return true;
}

/* The i-th of normal numbers, from the four random ones of its block of four, by Box and Muller (1958), whose two of a
   pair stand side by side. */
static double adapter_normal(const uint32_t random[4], size_t i) {
    const double turn = 2 * 3.14159265358979323846;
    const uint32_t *pair = random + i % 4 / 2 * 2;
    double radius = sqrt(-2 * log(((double)pair[0] + 0.5) * 0x1p-32)), angle = turn * (double)pair[1] * 0x1p-32;
    return radius * (i % 2 ? sin(angle) : cos(angle));
}
/* The i-th number of a new A [rank,in] of a projection: uniform, or normal. */
static float lora_initial_number(const uint32_t random[4], size_t i, const Linear *p, int rank, LoraInit init) {
    if (init == LORA_INIT_TRUE) {           /* kaiming_uniform_(a = sqrt(5)) of an [r, in] matrix */
        float bound = 1.0f / sqrtf((float)p->in);
        return bound * ((float)(random[i % 4] >> 8) * 0x1p-23f - 1.0f);
    }
    return (float)(adapter_normal(random, i) / rank);
}
/* Four random numbers of block `block` of the new tensor `id`: those of dropout masks have another last counter. */
static void adapter_random(uint32_t random[4], size_t block, uint32_t id, uint64_t seed) {
    uint32_t counter[4] = {(uint32_t)block, id, 0, UINT32_MAX}, key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    philox4x32(random, counter, key);
}
/* A new classification head: normal numbers of transformers' standard deviation. */
static void adapter_begin_score(const Adapter *a, uint64_t seed) {
    const ModelConfig *c = &a->model->config;
    size_t count = (size_t)a->config.classes.num_labels * (size_t)c->hidden_size;
    float *values = (float *)must_alloc(count * sizeof(float));
    for (size_t i = 0; i < count; i++) {
        uint32_t random[4];
        adapter_random(random, i / 4, (uint32_t)(c->num_hidden_layers * MODULE_COUNT), seed);
        values[i] = (float)(adapter_normal(random, i) * (double)c->initializer_range);
    }
    backend_upload(a->score, values, count * sizeof(float));
    free(values);
}

static bool adapter_take_out(Adapter *a, bool begin, Error *err);

bool adapter_attach(Adapter *a, const Model *m, const LoraConfig *config, uint64_t seed, Error *err) {
    if (!adapter_layout(a, m, config, err)) return false;
    for (const Trainable *t = a->list, *end = t + arrlen(a->list); t < end && !m->shapes_only; t++)
        if (t->base.data) weight_upload(a->param + t->offset, &t->base, 1);
    if (a->score && !m->score) adapter_begin_score(a, seed);
    if (adapter_has_lora(config) && lora_init_takes_out(config->init)) return adapter_take_out(a, true, err);
    if (m->shapes_only) return true;
    float *values = NULL;                   /* stb_ds array: one A, on its way to the backend */
    for (int k = 0; k < m->config.num_hidden_layers * MODULE_COUNT; k++) {
        const Linear *p = &m->layers[k / MODULE_COUNT].linear[k % MODULE_COUNT];
        size_t count = (size_t)a->lora[k].rank * (size_t)p->in;
        arrsetlen(values, count);
        for (size_t i = 0; i < count; i++) {
            uint32_t random[4];
            adapter_random(random, i / 4, p->dropout_id, seed);
            values[i] = lora_initial_number(random, i, p, a->lora[k].rank, config->init);
        }
        if (count) backend_upload(a->lora[k].A, values, count * sizeof(float));
    }
    arrfree(values);
    adapter_changed(a);
    return true;
}

/* ---- PEFT folders ------------------------------------------------------------------------------------------------ */

void adapter_parameter_name(const Adapter *a, size_t index, char *text, size_t bytes) {
    snprintf(text, bytes, "parameter %zu", index);
    for (ptrdiff_t i = 0; i < arrlen(a->list); i++)
        if (index >= a->list[i].offset) snprintf(text, bytes, "%s", a->list[i].name);
}

void adapter_zero_grad(Adapter *a) { backend_zero(a->grad, a->param_count * sizeof(float)); }
double adapter_grad_norm(const Adapter *a) { return global_norm(a->grad, a->param_count) / (double)a->loss_scale; }

/* ---- names of modules as PEFT selects them: endings, or one of Python's regular expressions ---------------------
   A pattern is read and obeyed at once, on the set of places in the name (bit i: before character i) where its next
   part may begin, which becomes the set where that part may end. Nothing is tried and taken back: greedy and lazy are
   the same. */

typedef struct LoraPattern {
    const char *at, *end, *text;            /* what is left of the pattern; the name */
    int length, depth, steps;               /* length of the name, below 64 */
    const char *unsupported;                /* NULL, or what of the pattern is not understood */
} LoraPattern;
static uint64_t lora_pattern_either(LoraPattern *p, uint64_t from);

static bool lora_pattern_word(const LoraPattern *p, int i) {
    return i >= 0 && i < p->length && (isalnum((uint8_t)p->text[i]) || p->text[i] == '_');
}
/* Does c belong to the class \d \w \s, or its opposite \D \W \S? -1: there is no such class. */
static int lora_pattern_class(char name, char c) {
    uint8_t u = (uint8_t)c;
    switch (name) {
    case 'd': return isdigit(u) != 0;
    case 'w': return isalnum(u) || c == '_';
    case 's': return isspace(u) != 0;
    case 'D': case 'W': case 'S': return !lora_pattern_class((char)tolower(name), c);
    }
    return -1;
}
/* The set [...] of characters after its '[': does it hold c? */
static bool lora_pattern_set(LoraPattern *p, char c) {
    bool without = p->at < p->end && *p->at == '^', found = false, first = true;
    for (p->at += without; p->at < p->end && (*p->at != ']' || first); first = false) {
        char low = *p->at++, high;
        if (low == '\\' && p->at < p->end) {
            low = *p->at++;
            int in = lora_pattern_class(low, c);
            if (in >= 0) { found |= in; continue; }
            if (isalnum((uint8_t)low)) { p->unsupported = "an escape in a set"; return false; }
        }
        high = low;
        if (p->at + 1 < p->end && *p->at == '-' && p->at[1] != ']') { high = p->at[1]; p->at += 2; }
        found |= c >= low && c <= high;
    }
    if (p->at == p->end) { p->unsupported = "a set without its ]"; return false; }
    p->at++;
    return found != without;
}

static uint64_t lora_pattern_group(LoraPattern *p, uint64_t from) {
    char ahead = 0;
    uint64_t to = 0;
    if (p->at < p->end && *p->at == '?') {
        p->at++;
        char kind = p->at < p->end ? *p->at++ : 0;
        if (kind == 'P' && p->at < p->end && *p->at == '<') while (p->at < p->end && *p->at++ != '>') ;
        else if (kind == '=' || kind == '!') ahead = kind;
        else if (kind != ':') { p->unsupported = "a group that begins with (?"; return 0; }
    }
    if (++p->depth > 12) { p->unsupported = "so deeply nested a group"; return 0; }
    const char *begin = p->at;
    if (!ahead) to = lora_pattern_either(p, from);
    else for (int i = 0; i <= p->length && !p->unsupported; i++) {
        uint64_t place = from & (uint64_t)1 << i;
        p->at = begin;
        if ((lora_pattern_either(p, place) != 0) == (ahead == '=')) to |= place;
    }
    p->depth--;
    if (p->unsupported) return 0;
    if (p->at == p->end) { p->unsupported = "a ( without its )"; return 0; }
    p->at++;
    return to;
}

/* One character, set, group or condition. */
static uint64_t lora_pattern_atom(LoraPattern *p, uint64_t from) {
    char c = *p->at++;
    const char *begin = p->at;
    uint64_t to = 0, end = (uint64_t)1 << p->length;
    if (++p->steps > 1000000) { p->unsupported = "so much repetition"; return 0; }
    if (c == '(') return lora_pattern_group(p, from);
    if (c == '^') return from & 1;
    if (c == '$') return from & end;
    if (c == '*' || c == '+' || c == '?' || c == '{') { p->unsupported = "a repetition of nothing"; return 0; }
    if (c == '\\') {
        if (p->at == p->end) { p->unsupported = "a \\ at the end"; return 0; }
        c = *p->at++;
        if (c == 'A') return from & 1;
        if (c == 'Z') return from & end;
        if (c == 'b' || c == 'B') {
            for (int i = 0; i <= p->length; i++) {
                bool border = lora_pattern_word(p, i - 1) != lora_pattern_word(p, i);
                if (border == (c == 'b')) to |= from & (uint64_t)1 << i;
            }
            return to;
        }
        if (lora_pattern_class(c, 0) < 0 && isalnum((uint8_t)c)) { p->unsupported = "such an escape"; return 0; }
    }
    bool escaped = begin != p->at, set = c == '[' && !escaped;
    if (set) lora_pattern_set(p, 0);             /* for where it ends and whether it can be read */
    const char *after = p->at;
    for (int i = 0; i < p->length && !p->unsupported; i++) {
        int in = escaped ? lora_pattern_class(c, p->text[i]) : -1;
        if (set) { p->at = begin; in = lora_pattern_set(p, p->text[i]); }
        else if (in < 0) in = (c == '.' && !escaped) || c == p->text[i];
        if (in) to |= (from & (uint64_t)1 << i) << 1;
    }
    p->at = after;
    return to;
}

/* An atom and how often it may come: x, x*, x+, x?, x{m}, x{m,}, x{m,n}; a ? behind (lazy) changes nothing. */
static uint64_t lora_pattern_piece(LoraPattern *p, uint64_t from) {
    const char *atom = p->at;
    uint64_t now = lora_pattern_atom(p, from), to;
    if (p->unsupported || p->at == p->end || !strchr("*+?{", *p->at)) return now;
    long least = *p->at == '+', most = *p->at == '?' ? 1 : LONG_MAX;
    if (*p->at == '{') {
        char *end;
        least = strtol(p->at + 1, &end, 10);
        most = end == p->at + 1 && *end != ',' ? -1 : least;
        if (*end == ',' && *++end == '}') most = LONG_MAX;
        else if (end[-1] == ',') most = strtol(end, &end, 10);
        if (least < 0 || most < least || *end != '}') { p->unsupported = "such a {}"; return 0; }
        p->at = end;
    }
    p->at++;
    if (p->at < p->end && *p->at == '?') p->at++;
    else if (p->at < p->end && *p->at == '+') { p->unsupported = "a possessive repetition"; return 0; }
    const char *after = p->at;
    to = least ? 0 : from;
    for (long k = 1; k <= most && now && !p->unsupported; k++) {
        uint64_t before = now;
        if (k >= least) to |= now;
        p->at = atom;
        now = lora_pattern_atom(p, now);
        if (now == before || (k >= least && !(now & ~to))) { if (k < least) to |= now; break; }
    }
    p->at = after;
    return to;
}
static uint64_t lora_pattern_either(LoraPattern *p, uint64_t from) {
    uint64_t to = 0;
    for (;;) {
        uint64_t here = from;
        while (p->at < p->end && *p->at != '|' && *p->at != ')' && !p->unsupported) here = lora_pattern_piece(p, here);
        to |= here;
        if (p->unsupported || p->at == p->end || *p->at == ')') return to;
        p->at++;
    }
}

/* re.fullmatch(pattern, name), with inner true re.fullmatch("(.*\.)?(" + pattern + ")", name). *unsupported stays as it
   is, or says what of the pattern is not understood. */
static bool lora_pattern_matches(const char *pattern, const char *name, bool inner, const char **unsupported) {
    LoraPattern p = {pattern, pattern + strlen(pattern), name, (int)strlen(name), 0, 0, NULL};
    uint64_t from = 1;
    for (int i = 0; inner && i < p.length; i++) if (name[i] == '.') from |= (uint64_t)2 << i;
    uint64_t to = lora_pattern_either(&p, from);
    if (!p.unsupported && p.at != p.end) p.unsupported = "a ) without its (";
    if (p.unsupported) { *unsupported = p.unsupported; return false; }
    return to >> p.length & 1;
}

/* PEFT's rule for a list of names: the module's whole name or its end, from a dot on. */
static bool lora_name_ends(const char *name, const char *end) {
    size_t n = strlen(name), k = strlen(end);
    return k && n >= k && !strcmp(name + n - k, end) && (n == k || name[n - k - 1] == '.');
}
/* Is the module selected by a list of names or an expression? *whole: by its whole name. */
static bool lora_name_selected(const Json *which, const char *name, bool *whole, const char **unsupported) {
    *whole = false;
    if (json_is_null(which)) return false;
    if (which->type == JSON_STRING) return which->count && lora_pattern_matches(which->str, name, false, unsupported);
    bool found = false;
    for (const Json *e = which->child; e; e = e->next) {
        found |= lora_name_ends(name, e->str);
        *whole |= !strcmp(name, e->str);
    }
    return found;
}

static bool lora_list_of_names(const Json *j) {
    if (j->type != JSON_ARRAY) return false;
    for (const Json *e = j->child; e; e = e->next) if (e->type != JSON_STRING) return false;
    return true;
}

/* ---- adapter_config.json ---------------------------------------------------------------------------------------- */

/* What to do with a field that is not read: */
static const struct { const char *names, *why; } adapter_fields[] = {
    {"|alora_invocation_tokens|arrow_config|fan_in_fan_out|kasa_config|layer_replication|lora_bias|megatron_config|"
     "monteclora_config|target_parameters|trainable_token_indices|use_bdlora|use_dora|use_qalora|"
     "velora_config|", "only plain LoRA adapters can be loaded"},
    {"|auto_mapping|base_model_name_or_path|corda_config|ensure_weight_tying|eva_config|inference_mode|loftq_config|"
     "lora_ga_config|megatron_core|peft_version|qalora_group_size|revision|runtime_config|task_type|", NULL},
         /* no matter */
    {"|alpha_pattern|bias|exclude_modules|init_lora_weights|layers_pattern|layers_to_transform|lora_alpha|lora_dropout|"
     "modules_to_save|peft_type|r|rank_pattern|target_modules|use_rslora|", NULL},      /* read below */
};
static bool adapter_fields_check(const Json *root, const char *name, Error *err) {
    for (const Json *j = root->child; j; j = j->next) {
        char key[80];
        size_t i = 0, count = sizeof adapter_fields / sizeof *adapter_fields;
        snprintf(key, sizeof key, "|%s|", j->key);
        while (i < count && !strstr(adapter_fields[i].names, key)) i++;
        if (json_is_unused(j) || (i < count && !adapter_fields[i].why)) continue;
        if (i < count) return fail(err, "unsupported adapter field '%s'; %s; %s", j->key, name, adapter_fields[i].why);
        print_warning("the field '%s' is not known and changes nothing; %s", j->key, name);
    }
    const char *bias = config_string(root, "bias");
    return !bias || !strcmp(bias, "none") ||
           fail(err, "unsupported adapter field bias '%s'; %s; only 'none' is implemented", bias, name);
}

/* What init_lora_weights means when an adapter is loaded: its own A and B come from the file, the base may change. */
static bool adapter_init_parse(LoraInit *init, const Json *j, const char *name, Error *err) {
    static const char *const plain[] = {"eva", "orthogonal", "mica"};
    *init = LORA_INIT_TRUE;
    if (json_is_null(j) || j->type == JSON_TRUE || j->type == JSON_FALSE) return true;
    const char *s = j->type == JSON_STRING ? j->str : "(not a word)";
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++) if (!strcasecmp(s, plain[i])) return true;
    if (!strcasecmp(s, "gaussian")) *init = LORA_INIT_GAUSSIAN;
    else if (!strcmp(s, "pissa")) *init = LORA_INIT_PISSA;
    else if (!strcasecmp(s, "olora")) *init = LORA_INIT_OLORA;
    else return fail(err, "unsupported adapter field init_lora_weights '%s'; %s; the base weights that it was trained "
                          "on cannot be made again: save it with PEFT's path_initial_model_for_weight_conversion, "
                          "or merge it there", s, name);
    return true;
}

/* A number of rank_pattern or alpha_pattern for a module, or `missing`. */
static double lora_pattern_number(const Json *patterns, const char *module, double missing, const char **unsupported) {
    for (const Json *e = json_is_null(patterns) ? NULL : patterns->child; e; e = e->next)
        if (lora_pattern_matches(e->key, module, true, unsupported)) return e->number;
    return missing;
}
static bool lora_patterns_check(const Json *root, const char *key, double low, double high, bool whole,
                                const char *name, Error *err) {
    const Json *patterns = json_get(root, key);
    if (!json_is_null(patterns) && patterns->type != JSON_OBJECT)
        return fail(err, "%s must be an object; %s; check the file", key, name);
    for (const Json *e = json_is_null(patterns) ? NULL : patterns->child; e; e = e->next)
        if (e->type != JSON_NUMBER || !(e->number >= low && e->number <= high) ||
            (whole && e->number != floor(e->number)))
            return fail(err, "%s of '%s' must be a %s from %g to %g; %s; check the file", key, e->key,
                        whole ? "whole number" : "number", low, high, name);
    return true;
}

/* Does layers_to_transform, a number or a list, hold layer l? */
static bool lora_layer_chosen(const Json *which, int l) {
    if (which->type != JSON_ARRAY) return json_size(which) == l;
    for (const Json *e = which->child; e; e = e->next) if (json_size(e) == l) return true;
    return false;
}
/* Is "model.layers" what one of the names of layers_pattern says? */
static bool lora_layers_named(const Json *pattern, const char **unsupported) {
    if (json_is_null(pattern) || !pattern->count) return true;
    if (pattern->type == JSON_STRING) return lora_pattern_matches(pattern->str, "model.layers", true, unsupported);
    bool found = false;
    for (const Json *e = pattern->child; e; e = e->next) found |= lora_pattern_matches(e->str, "model.layers", true,
            unsupported);
    return found;
}

/* Which projections are adapted, with what rank and alpha: PEFT's rules (tuners_utils.check_target_module_exists). */
static bool adapter_targets_parse(LoraConfig *config, const Json *root, int layers, const char *name, Error *err) {
    static const char *const names[] = {"target_modules", "exclude_modules", "layers_pattern"};
    const Json *field[3], *which = json_get(root, "layers_to_transform");
    const char *unsupported = NULL,
        modules[] = "the modules are q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj";
    for (int i = 0; i < 3; i++) {
        field[i] = json_get(root, names[i]);
        if (!json_is_null(field[i]) && field[i]->type != JSON_STRING && !lora_list_of_names(field[i]))
            return fail(err, "%s must be a name or a list of names; %s; check the file", names[i], name);
    }
    const Json *targets = field[0], *exclude = field[1];
    bool none = json_is_null(targets), all = !none && targets->type == JSON_STRING &&
        !strcasecmp(targets->str, "all-linear");
    if (json_is_null(which) || (which->type == JSON_ARRAY && !which->count)) which = NULL;
    if (which && !none && !all && targets->type == JSON_STRING)
        return fail(err, "layers_to_transform beside an expression as target_modules; %s; PEFT refuses it too", name);
    int known = 0;
    for (int l = 0; which && l < layers; l++) known += lora_layer_chosen(which, l);
    for (const Json *e = which ? which->child : NULL; e; e = e->next) if (json_size(e) < 0 || json_size(e) >= layers)
        known = 0;
    if (which && !known)
        return fail(err, "layers_to_transform names a layer that the model does not have; %s; layers are 0 to %d", name,
                    layers - 1);
    if (!lora_patterns_check(root, "rank_pattern", 1, 65536, true, name, err) ||
        !lora_patterns_check(root, "alpha_pattern", 1e-18, 1e18, false, name, err)) return false;

    char module[64];
    bool whole, any = false, plain = true, every = true;
    arrsetlen(config->parts, (size_t)layers * MODULE_COUNT);
    arrsetlen(config->layers, (size_t)layers);
    memset(config->layers, 0, (size_t)layers);
    for (int i = 0; i < layers * MODULE_COUNT; i++) {
        int l = i / MODULE_COUNT, j = i % MODULE_COUNT;
        snprintf(module, sizeof module, "model.layers.%d.%s", l, module_path[j]);
        bool on = lora_name_selected(targets, module, &whole, &unsupported);
        if (none) on = j == MODULE_Q || j == MODULE_V;                        /* PEFT's default for all four families */
        if (all) on = true;
        if (which && !whole) on = on && lora_layer_chosen(which, l) && lora_layers_named(field[2], &unsupported);
        if (on) on = !lora_name_selected(exclude, module, &whole, &unsupported);
        config->parts[i].alpha = (float)lora_pattern_number(json_get(root, "alpha_pattern"), module,
                                                       (double)config->lora_alpha, &unsupported);
        int rank = (int)lora_pattern_number(json_get(root, "rank_pattern"), module, config->r, &unsupported);
        config->parts[i].rank = on ? rank : 0;
        if (!on) continue;
        any = config->target[j] = true;
        config->layers[l] = 1;
    }
    /* Places beyond the layers, and names that are nowhere. */
    static const char *const outside[] = {"lm_head", "model.embed_tokens"};
    for (int i = 0; i < 2 && !all; i++)
        if (lora_name_selected(targets, outside[i], &whole, &unsupported) &&
            !lora_name_selected(exclude, outside[i], &whole, &unsupported))
            return fail(err, "unsupported target module '%s'; %s; %s", outside[i], name, modules);
    for (const Json *e = none ? NULL : targets->child; e; e = e->next) {
        bool used = false;
        for (int i = 0; i < layers * MODULE_COUNT && !used; i++) {
            snprintf(module, sizeof module, "model.layers.%d.%s", i / MODULE_COUNT, module_path[i % MODULE_COUNT]);
            used = lora_name_ends(module, e->str);
        }
        if (!used) print_warning("the target module '%s' is nowhere in this model; %s", e->str, name);
    }
    if (unsupported) return fail(err, "an expression has %s, which is not understood; %s; write the names out",
                                 unsupported, name);
    if (!any) return fail(err, "the adapter names no projection of this model; %s; %s", name, modules);

    /* One rank and alpha on every target of every layer need no list. */
    for (int i = 0; i < layers * MODULE_COUNT; i++) {
        LoraPart part = config->parts[i];
        bool on = config->target[i % MODULE_COUNT] && config->layers[i / MODULE_COUNT];
        plain &= part.rank == (on ? config->r : 0) && (!on || part.alpha == config->lora_alpha);
        every &= config->layers[i / MODULE_COUNT];
    }
    if (plain) arrfree(config->parts);
    if (every) arrfree(config->layers);
    return true;
}

/* Does modules_to_save name the module, or one that it is part of? PEFT takes every ending, "norm" of "q_norm" too. */
static bool lora_saves(const char *saved, const char *module) {
    size_t k = strlen(saved);
    for (size_t n = 1; k && n <= strlen(module); n++)
        if ((!module[n] || module[n] == '.') && n >= k && !strncmp(module + n - k, saved, k)) return true;
    return false;
}
/* modules_to_save: which tensors of the model are trained themselves; head: the names of a classification head are
   among them, of which the file has one or none (adapter_find_score). */
static bool adapter_saved_parse(LoraConfig *config, const Json *saved, bool head, const ModelConfig *model,
                                const char *name, Error *err) {
    if (json_is_null(saved) || !saved->count) return true;
    if (!lora_list_of_names(saved))
        return fail(err, "modules_to_save must be a list of names; %s; check the file", name);
    for (const Json *e = saved->child; e; e = e->next) {
        bool found = head && (!strcmp(e->str, "score") || !strcmp(e->str, "classifier"));
        int index = 0;
        if (found) continue;
        for (TensorSpec t = model_tensors(model, "model."); tensor_next(&t); index++) {
            char module[sizeof t.name];
            snprintf(module, sizeof module, "%.*s", (int)(strrchr(t.name, '.') - t.name), t.name);
            if (arrlen(config->tensors) <= index) arrput(config->tensors, 0);
            if (!lora_saves(e->str, module)) continue;
            LoraPart part = {0, 0};
            if (t.kind == TENSOR_WEIGHT && config->parts) part = config->parts[t.layer * MODULE_COUNT + t.place];
            else if (t.kind == TENSOR_WEIGHT && config->target[t.place] && (!config->layers || config->layers[t.layer]))
                part.rank = config->r;
            if (part.rank)
                return fail(err, "modules_to_save and target_modules both name '%s'; %s; PEFT refuses it too", module,
                            name);
            config->tensors[index] = found = true;
        }
        if (!found) return fail(err, "modules_to_save names '%s', which is nowhere in this model; %s; the adapter was "
                                     "made for another model", e->str, name);
    }
    return true;
}

static bool adapter_config_parse(LoraConfig *config, const Json *root, const ModelConfig *model, const char *name,
                                 Error *err) {
    int layers = model->num_hidden_layers;
    memset(config, 0, sizeof *config);
    const char *type = config_string(root, "peft_type");
    if (!type || strcmp(type, "LORA"))
        return fail(err, "unsupported peft_type '%s'; %s; only LORA adapters can be loaded", type ? type : "(none)",
                    name);
    double alpha, dropout = 0;
    const Json *d = json_get(root, "lora_dropout");
    if (!json_is_null(d)) dropout = d->type == JSON_NUMBER ? d->number : -1;
    if (!(dropout >= 0 && dropout < 1))
        return fail(err, "lora_dropout must be a number from 0 to below 1; %s; check the file", name);
    if (!adapter_fields_check(root, name, err) ||
        !adapter_init_parse(&config->init, json_get(root, "init_lora_weights"), name, err) ||
        !config_int(&config->r, root, "r", 1, 65536, 8, name, err) ||
        !config_number(&alpha, root, "lora_alpha", 8, name, err) ||
        !config_bool(&config->use_rslora, root, "use_rslora", false, name, err)) return false;
    config->lora_alpha = (float)alpha;
    config->lora_dropout = (float)dropout;
    const char *task = config_string(root, "task_type");
    bool head = task && !strcmp(task, "SEQ_CLS");
    if (adapter_targets_parse(config, root, layers, name, err) &&
        adapter_saved_parse(config, json_get(root, "modules_to_save"), head, model, name, err)) return true;
    arrfree(config->parts);
    arrfree(config->layers);
    arrfree(config->tensors);
    return false;
}

/* ---- PiSSA and OLoRA: the base without the initial adapter ------------------------------------------------------
   Both begin with s B0 A0 = c Q Q^T W and train from W - s B0 A0 on. PiSSA (Meng et al. 2024): Q are the first r left
   singular vectors of W, c = 1, the singular values shared by A0 and B0. OLoRA (Büyükakyüz 2024): Q of W = QR, first r
   columns, c = s. Everything in double. Vectors have either sign, which changes neither B A nor how Adam trains it. */

/* y [cols] = W^T v: columns in parallel, every sum from the first row to the last. */
static void lora_transposed_times(double *y, const float *W, const double *v, int rows, int cols) {
#pragma omp parallel for schedule(static)
    for (int begin = 0; begin < cols; begin += 256) {
        int end = begin + 256 < cols ? begin + 256 : cols;
        for (int c = begin; c < end; c++) y[c] = 0;
        for (int r = 0; r < rows; r++) for (int c = begin; c < end; c++)
            y[c] += v[r] * (double)W[(size_t)r * (size_t)cols + (size_t)c];
    }
}
/* y [rows] = W v: eight sums side by side, for one would wait for its own last addition. */
static void lora_times(double *y, const float *W, const double *v, int rows, int cols) {
    enum { LANES = 8 };
#pragma omp parallel for schedule(static)
    for (int r = 0; r < rows; r++) {
        const float *w = W + (size_t)r * (size_t)cols;
        double sum[LANES] = {0};
        int c = 0;
        for (; c + LANES <= cols; c += LANES) for (int i = 0; i < LANES; i++) sum[i] += (double)w[c + i] * v[c + i];
        for (; c < cols; c++) sum[0] += (double)w[c] * v[c];
        y[r] = 0;
        for (int i = 0; i < LANES; i++) y[r] += sum[i];
    }
}

/* Takes out of x what lies in the span of the orthonormal Q[0..count) [n], twice, because once leaves a rounding error
   behind, and makes it of length 1. Returns the length that it had; 0: nothing was left, x is not a direction. */
static double lora_orthonormalise(double *x, const double *Q, int count, int n) {
    double before = 0, after = 0;
    for (int i = 0; i < n; i++) before += x[i] * x[i];
    for (int pass = 0; pass < 2; pass++)
        for (int k = 0; k < count; k++) {
            const double *q = Q + (size_t)k * (size_t)n;
            double dot = 0;
            for (int i = 0; i < n; i++) dot += q[i] * x[i];
            for (int i = 0; i < n; i++) x[i] -= dot * q[i];
        }
    for (int i = 0; i < n; i++) after += x[i] * x[i];
    if (!(after > 1e-24 * before)) return 0;
    after = sqrt(after);
    for (int i = 0; i < n; i++) x[i] /= after;
    return after;
}

/* Eigenvalues of the symmetric tridiagonal matrix with diagonal d [k] and neighbours e [k], e[i] between i and i+1,
   left in d; columns of S [k,k] the eigenvectors. QL with implicit shifts (Wilkinson and Reinsch 1971, tql2). */
static void lora_tridiagonal_eigen(double *d, double *e, double *S, int k) {
    for (int i = 0; i < k; i++) for (int j = 0; j < k; j++) S[(size_t)i * (size_t)k + (size_t)j] = i == j;
    e[k - 1] = 0;
    for (int low = 0; low < k; low++)
        for (int round = 0; round < 60; round++) {
            int m = low;
            while (m + 1 < k && fabs(e[m]) > DBL_EPSILON * (fabs(d[m]) + fabs(d[m + 1]))) m++;
            if (m == low) break;
            double g = (d[low + 1] - d[low]) / (2 * e[low]), r = hypot(g, 1), s = 1, c = 1, p = 0;
            g = d[m] - d[low] + e[low] / (g + copysign(r, g));
            int i = m - 1;
            for (; i >= low; i--) {
                double f = s * e[i], b = c * e[i];
                e[i + 1] = r = hypot(f, g);
                if (r == 0) { d[i + 1] -= p; e[m] = 0; break; }
                s = f / r; c = g / r;
                g = d[i + 1] - p;
                r = (d[i] - g) * s + 2 * c * b;
                d[i + 1] = g + (p = s * r);
                g = c * r - b;
                for (int row = 0; row < k; row++) {
                    double *x = S + (size_t)row * (size_t)k + (size_t)i, right = x[1];
                    x[1] = s * x[0] + c * right;
                    x[0] = c * x[0] - s * right;
                }
            }
            if (i >= low) continue;
            d[low] -= p;
            e[low] = g;
            e[m] = 0;
        }
}

/* Q [r][rows] = the left singular vectors of W [rows,cols] with the r largest singular values: Lanczos' recurrence on
   W W^T with all vectors kept orthogonal, until what it knows of those r is exact to 1e-13 of the largest;
   r <= rows. */
static void lora_singular_vectors(double *Q, const float *W, int rows, int cols, int r) {
    size_t n = (size_t)rows;
    double *V = NULL, *diagonal = NULL, *beside = NULL;     /* stb_ds arrays: [k][rows], [k], [k] */
    double *y = (double *)must_alloc((size_t)cols * sizeof(double)), *x = (double *)must_alloc(n * sizeof(double));
    for (int k = 0, check = 2 * r + 16;; k++) {
        double length = k ? lora_orthonormalise(x, V, k, rows) : 0;
        if (k && (length <= 0 || length <= 1e-14 * diagonal[0])) length = 0;
        if (k) arrput(beside, length);
        bool all = k == rows;
        if (all || k >= check) {
            double *d = (double *)must_alloc((size_t)k * sizeof *d), *e = (double *)must_alloc((size_t)k * sizeof *e),
                   *S = (double *)must_alloc((size_t)k * (size_t)k * sizeof *S), error = 0, largest = 0;
            int *best = (int *)must_alloc((size_t)r * sizeof *best);
            memcpy(d, diagonal, (size_t)k * sizeof *d);
            memcpy(e, beside, (size_t)k * sizeof *e);
            lora_tridiagonal_eigen(d, e, S, k);
            for (int i = 0; i < r; i++) {   /* the r largest: few, so one pass for each */
                best[i] = -1;
                for (int j = 0; j < k; j++) {
                    bool taken = false;
                    for (int b = 0; b < i; b++) taken |= best[b] == j;
                    if (!taken && (best[i] < 0 || d[j] > d[best[i]])) best[i] = j;
                }
                error = fmax(error, fabs(length * S[(size_t)(k - 1) * (size_t)k + (size_t)best[i]]));
                largest = fmax(largest, d[best[i]]);
            }
            bool done = all || error <= 1e-13 * largest;
            for (int i = 0; i < r && done; i++)
                for (int row = 0; row < rows; row++) {
                    double sum = 0;
                    for (size_t j = 0; j < (size_t)k; j++)
                        sum += V[j * n + (size_t)row] * S[j * (size_t)k + (size_t)best[i]];
                    Q[(size_t)i * n + (size_t)row] = sum;
                }
            free(d); free(e); free(S); free(best);
            if (done) break;
            check = k + k / 4 + 8;
        }
        while (length == 0) {               /* the first vector, or the span is closed: any other direction goes on */
            for (int i = 0; i < rows; i++) {
                uint32_t counter[4] = {(uint32_t)i, (uint32_t)k, 0, 0}, key[2] = {0x70697373, 0x61}, random[4];
                philox4x32(random, counter, key);
                x[i] = (double)random[0] * 0x1p-31 - 1;
            }
            length = lora_orthonormalise(x, V, k, rows);
        }
        memcpy(arraddnptr(V, n), x, n * sizeof(double));
        lora_transposed_times(y, W, V + (size_t)k * n, rows, cols);
        lora_times(x, W, y, rows, cols);
        double dot = 0;
        for (int i = 0; i < rows; i++) dot += V[(size_t)k * n + (size_t)i] * x[i];
        arrput(diagonal, dot);
    }
    arrfree(V); arrfree(diagonal); arrfree(beside);
    free(x); free(y);
}

/* w [count,cols] += factor B A: of a whole product the rows from `first` on. */
static void lora_add_product(float *w, const float *A, const float *B, int rank, float factor, int cols, int first,
                        int count) {
    size_t width = (size_t)cols;
#pragma omp parallel for schedule(static)
    for (int o = 0; o < count; o++)
        for (size_t begin = 0; begin < width; begin += 4096) {
            size_t n = width - begin < 4096 ? width - begin : 4096;
            float sum[4096] = {0}, *row = w + (size_t)o * width + begin;
            for (int r = 0; r < rank; r++) {
                float b = B[(size_t)(first + o) * (size_t)rank + (size_t)r];
                for (size_t i = 0; i < n; i++) sum[i] += b * A[(size_t)r * width + begin + i];
            }
            for (size_t i = 0; i < n; i++) row[i] += factor * sum[i];
        }
}

/* The initial adapter of one projection, A0 [r,in] and B0 [out,r], from W [out,in]. */
static void lora_initial(float *A, float *B, const float *W, const Linear *p, const Lora *a, LoraInit init) {
    int rank = a->rank < p->out ? a->rank : p->out;
    size_t out = (size_t)p->out, in = (size_t)p->in;
    double *Q = (double *)must_alloc((size_t)rank * out * sizeof *Q), *y = (double *)must_alloc(in * sizeof *y);
    if (init == LORA_INIT_PISSA) lora_singular_vectors(Q, W, p->out, p->in, rank);
    else for (int r = 0; r < rank && r < p->in; r++) {
        for (size_t o = 0; o < out; o++) Q[(size_t)r * out + o] = (double)W[o * in + (size_t)r];
        double *q = Q + (size_t)r * out;
        if (lora_orthonormalise(q, Q, r, p->out) <= 0) memset(q, 0, out * sizeof *Q);
    }
    for (int r = 0; r < rank; r++) {
        lora_transposed_times(y, W, Q + (size_t)r * out, p->out, p->in);
        double to_a = 1, to_b = 1, S = 0;   /* PiSSA: y is S times the right singular vector */
        for (size_t i = 0; i < in; i++) S += y[i] * y[i];
        if (init == LORA_INIT_PISSA) {
            to_b = sqrt(sqrt(S) / (double)a->scale);
            to_a = S > 0 ? to_b / sqrt(S) : 0;
        }
        for (size_t i = 0; i < in; i++) A[(size_t)r * in + i] = (float)(to_a * y[i]);
        for (size_t o = 0; o < out; o++) B[o * (size_t)a->rank + (size_t)r] = (float)(to_b * Q[(size_t)r * out + o]);
    }
    free(Q);
    free(y);
}

/* A new PiSSA or OLoRA adapter has a direction of W for every rank. */
static bool lora_ranks_check(const Adapter *a, Error *err) {
    for (int i = 0; i < a->model->config.num_hidden_layers * MODULE_COUNT; i++) {
        const Linear *p = &a->model->layers[i / MODULE_COUNT].linear[i % MODULE_COUNT];
        int most = p->in < p->out ? p->in : p->out;
        if (a->lora[i].rank > most)
            return fail(err, "rank %d, but %s has only %d singular values; --lora-r with --init-lora-weights %s; "
                             "choose a rank up to %d", a->lora[i].rank, module_name[i % MODULE_COUNT], most,
                        lora_init_name[a->config.init], most);
    }
    return true;
}

/* Makes what is left of every adapted weight: fp32, as rounding it to 16 bits would be another model. begin: A and B
   become the initial adapter. */
static bool adapter_take_out(Adapter *a, bool begin, Error *err) {
    const Model *m = a->model;
    int count = m->config.num_hidden_layers * MODULE_COUNT;
    if (!lora_init_takes_out(a->config.init)) return true;
    if (begin && !lora_ranks_check(a, err)) return false;
    for (int pass = 0; pass < 2; pass++) {
        size_t offset = 0;
        for (int i = 0; i < count; i++) {
            const Linear *p = &m->layers[i / MODULE_COUNT].linear[i % MODULE_COUNT];
            Lora *x = &a->lora[i];
            Weight rest = p->w;
            if (!x->rank) continue;
            rest.format = FORMAT_F32;
            if (pass) {
                size_t elements = (size_t)p->out * (size_t)p->in;
                float *values = (float *)must_alloc(elements * sizeof(float));
                float *A = a->initial + (x->A - a->param), *B = a->initial + (x->B - a->param);
                weight_decode(values, &p->w, 0, elements);
                lora_initial(A, B, values, p, x, a->config.init);
                lora_add_product(values, A, B, x->rank, -x->scale, p->in, 0, p->out);
                if (begin) {
                    backend_upload(x->A, A, (size_t)x->rank * (size_t)p->in * sizeof(float));
                    backend_upload(x->B, B, (size_t)p->out * (size_t)x->rank * sizeof(float));
                }
                file_release_pages(p->w.data, weight_bytes(&p->w));
                rest.data = values;
                weight_pack(&rest, (char *)a->rest_arena + offset);
                free(values);
                rest.data = NULL;
                x->rest = rest;
            }
            offset += model_round_up(weight_packed_bytes(&rest), 256);
        }
        a->rest_bytes = offset;
        if (m->shapes_only) return true;
        if (pass) break;
        a->rest_arena = backend_alloc(offset);
        a->initial = (float *)must_alloc(a->param_count * sizeof(float));
        if (!a->rest_arena)
            return fail(err, "out of memory for %.1f GiB of weights without their initial adapter; %s; merge the "
                             "adapter with PEFT",
                        (double)offset / 0x1p30, m->folder);
    }
    if (begin) adapter_changed(a);
    return true;
}

/* An adapter's files cannot be renamed in one step. adapter_save writes them into a folder of their own, adapter.*.tmp,
   takes the old configuration away, and moves the new files to their place, the configuration last: new weights never
   stand beside an old configuration. Where a crash came in between, the missing file is found in that folder; a whole
   model stays in it until its last file is in place. */
static bool adapter_is_whole(const char *folder, const char *name) {
    bool peft = file_exists(folder, "adapter_config.json"), model = file_exists(folder, "config.json");
    return !strncmp(name, "adapter_", 8) ? peft : !strcmp(name, "config.json") ? model : peft || model;
}
void adapter_file(char *path, size_t size, const char *folder, const char *name) {
    char part[PATH_MAX], best[PATH_MAX] = "";
    path_in(path, size, folder, name);
    if (adapter_is_whole(folder, name)) return;
    DIR *d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d));) {
        path_in(part, sizeof part, folder, e->d_name);
        if (!temporary_of(e->d_name, "adapter") || !adapter_is_whole(part, name)) continue;    /* not whole yet */
        if (!*best || file_exists(part, "adapter_model.safetensors")) memcpy(best, part, sizeof best);
    }
    if (d) closedir(d);
    if (*best && file_exists(best, name)) path_in(path, size, best, name);
}

/* A tensor of an adapter's file: PEFT takes the adapter's name, "default", out of the key; some keep it. */
static const Tensor *adapter_tensor(TensorSet *set, const Trainable *t, Error *err) {
    char named[256];
    snprintf(named, sizeof named, "%.*s.default.weight", (int)(strlen(t->name) - strlen(".weight")), t->name);
    bool other = set->table && shgeti(set->table, t->name) < 0 && shgeti(set->table, named) >= 0;
    return tensors_get(set, other ? named : t->name, t->shape[0], t->shape[1], err);
}

/* The values of everything that is trained, from the tensors of a file or a folder, which the list's names are looked
   for in. Those that were taken are taken out of the set. */
static bool adapter_read(Adapter *a, TensorSet *set, const char *path, Error *err) {
    for (const Trainable *x = a->list, *end = x + arrlen(a->list); x < end; x++) {
        const Tensor *t = adapter_tensor(set, x, err);
        if (!t) return false;
        Weight w = tensor_weight(t);
        if (weight_nonfinite(&w) >= 0)
            return fail(err, "tensor '%s' holds a NaN or infinity; %s; use an earlier adapter", x->name, path);
        if (!a->model->shapes_only) weight_upload(a->param + x->offset, &w, 1);
        shdel(set->table, t->name);
    }
    if (!a->model->shapes_only) adapter_changed(a);
    return true;
}

/* The classification head among the tensors of a file, by that name, and what run.json beside it says of the labels. */
static bool adapter_find_score(ClassConfig *c, const TensorSet *set, const char *name, const char *folder, Error *err) {
    TensorSet s = *set;                     /* shgeti wants an lvalue */
    ptrdiff_t at = s.table ? shgeti(s.table, name) : -1;
    memset(c, 0, sizeof *c);
    if (at < 0) return true;
    const Tensor *t = &s.table[at].value;
    if (t->ndim != 2 || t->shape[0] < 1 || t->shape[0] > 1 << 20)
        return fail(err, "tensor '%s' is not a matrix of labels; %s; the adapter is damaged", name, folder);
    c->num_labels = (int)t->shape[0];
    c->pad_token_id = -1;
    return class_config_read(c, folder, "run.json", err);
}

/* A PEFT folder. */
static bool adapter_load_peft(Adapter *a, const Model *m, const char *folder, const char *config_path, Error *err) {
    char path[PATH_MAX];
    JsonDoc doc;
    LoraConfig config;
    if (!json_read(&doc, config_path, err)) return false;
    bool ok = adapter_config_parse(&config, doc.root, &m->config, config_path, err);
    json_free(&doc);
    if (!ok) return false;
    if (!file_exists(folder, "adapter_model.safetensors") && file_exists(folder, "adapter_model.bin"))
        ok = fail(err, "adapter_model.bin is not read; %s; save the adapter as safetensors: PeftModel's "
                       "save_pretrained does", folder);
    TensorSet set;
    memset(&set, 0, sizeof set);
    adapter_file(path, sizeof path, folder, "adapter_model.safetensors");
    ok = ok && tensors_add_file(&set, path, err) &&
         adapter_find_score(&config.classes, &set, "base_model.model.score.weight", folder, err) &&
         adapter_layout(a, m, &config, err) && adapter_read(a, &set, path, err);
    arrfree(config.layers);
    arrfree(config.parts);
    arrfree(config.tensors);
    class_config_free(&config.classes);
    if (ok && shlen(set.table))             /* what is left over at the end has no place in this model */
        ok = fail(err, "tensor '%s' belongs to no adapted projection of this model; %s; the adapter was made for "
                       "another model", set.table[0].key, path);
    tensors_close(&set);
    return ok && adapter_take_out(a, false, err);
}

/* The trained weights of a checkpoint without LoRA: what is in the file is what is trained. */
static bool adapter_load_trained(Adapter *a, const Model *m, const char *path, Error *err) {
    LoraConfig config;
    TensorSet set;
    memset(&config, 0, sizeof config);
    memset(&set, 0, sizeof set);
    if (!tensors_add_file(&set, path, err)) return false;
    config.train = TRAIN_FULL;
    for (TensorSpec t = model_tensors(&m->config, m->prefix); tensor_next(&t);)
        arrput(config.tensors, shgeti(set.table, t.name) >= 0);
    /* a tied pair whose one matrix the folder calls the head */
    if (m->config.tie_word_embeddings && m->embed.data == m->head.data && config.tensors[TENSOR_HEAD] &&
        !config.tensors[TENSOR_EMBED]) { config.tensors[TENSOR_EMBED] = 1; config.tensors[TENSOR_HEAD] = 0; }
    char folder[PATH_MAX];
    snprintf(folder, sizeof folder, "%.*s", (int)(strrchr(path, '/') - path), path);
    bool ok = adapter_find_score(&config.classes, &set, "score.weight", folder, err) &&
              adapter_layout(a, m, &config, err) && adapter_read(a, &set, path, err);
    if (ok && (shlen(set.table) || !a->param_count))
        ok = fail(err, "tensor '%s' is not one of this model's; %s; the weights belong to another model",
                  shlen(set.table) ? set.table[0].key : "", path);
    arrfree(config.tensors);
    class_config_free(&config.classes);
    tensors_close(&set);
    return ok;
}

/* Are two weights the same numbers, in whatever format? */
static bool adapter_same_values(const Weight *x, const Weight *y) {
    float a[4096], b[4096];
    const size_t block = sizeof a / sizeof *a;
    size_t count = (size_t)x->rows * (size_t)x->cols;
    bool same = true;
    for (size_t at = 0; at < count && same; at += block) {
        size_t n = count - at < block ? count - at : block;
        weight_decode(a, x, at, n);
        weight_decode(b, y, at, n);
        same = !memcmp(a, b, n * sizeof *a);
    }
    return same;
}

/* A whole model folder as what was trained of this one: every tensor in which they differ. */
static bool adapter_load_model(Adapter *a, const Model *m, const char *folder, Error *err) {
    LoraConfig config;
    Model other;
    memset(&config, 0, sizeof config);
    config.train = TRAIN_FULL;
    if (!model_plan(&other, folder, err)) return false;
    bool ok = true, untied = m->config.tie_word_embeddings && !other.config.tie_word_embeddings, any = false;
    TensorSpec theirs = model_tensors(&other.config, other.prefix);
    for (TensorSpec t = model_tensors(&m->config, m->prefix); ok && tensor_next(&t);) {
        Weight mine = adapter_base(m, &t), its;
        ok = tensor_next(&theirs) && theirs.kind == t.kind && theirs.place == t.place && theirs.layer == t.layer;
        if (ok) its = adapter_base(&other, &theirs);
        if (!ok || mine.rows != its.rows || mine.cols != its.cols) {
            fail(err, "tensor '%s' has another shape in %s than in %s; --adapter; it is no version of that model: "
                      "give it as --model", t.name, folder, m->folder);
            ok = false;
            break;
        }
        bool outside = t.kind == TENSOR_EMBED || t.kind == TENSOR_HEAD;
        bool differs = outside && untied ? true : !adapter_same_values(&mine, &its);
        if (t.kind == TENSOR_HEAD && m->config.tie_word_embeddings && !untied) differs = false;   /* the embedding is */
        if (t.kind == TENSOR_HEAD && other.classes.num_labels) differs = false;       /* nothing reads it there */
        arrput(config.tensors, differs);
        any |= differs;
        file_release_pages(mine.data, weight_bytes(&mine));
        file_release_pages(its.data, weight_bytes(&its));
    }
    int labels;
    const Tensor *score = ok && other.classes.num_labels ? model_score_tensor(&other, &labels, err) : NULL;
    if (score) class_config_copy(&config.classes, &other.classes);
    if (ok && !any && !score) {
        arrsetlen(config.tensors, 0);
        ok = fail(err, "no tensor differs from those of %s; %s; it is the same model", m->folder, folder);
    }
    ok = ok && adapter_layout(a, m, &config, err);
    for (const Trainable *x = a->list, *end = x + (ok ? arrlen(a->list) : 0); x < end && !m->shapes_only; x++) {
        TensorSpec t = model_tensors(&other.config, other.prefix);
        bool is_score = x->kind == TENSOR_SCORE;
        while (!is_score && tensor_next(&t) && (t.kind != x->kind || t.layer != x->layer || t.place != x->place)) {}
        Weight w = is_score ? tensor_weight(score) : adapter_base(&other, &t);
        weight_upload(a->param + x->offset, &w, 1);
        ok = ok && weight_nonfinite(&w) < 0;
        if (!ok) fail(err, "tensor '%s' holds a NaN or infinity; %s; the weights are damaged", x->name, folder);
    }
    if (ok && !m->shapes_only) adapter_changed(a);
    arrfree(config.tensors);
    class_config_free(&config.classes);
    model_close(&other);
    return ok;
}

bool adapter_load(Adapter *a, const Model *m, const char *folder, Error *err) {
    char path[PATH_MAX], trained[PATH_MAX], model[PATH_MAX];
    adapter_file(path, sizeof path, folder, "adapter_config.json");
    path_in(trained, sizeof trained, folder, "trained.safetensors");
    adapter_file(model, sizeof model, folder, "config.json");
    if (access(path, F_OK) && !access(trained, F_OK)) return adapter_load_trained(a, m, trained, err);
    if (!access(path, F_OK) || access(model, F_OK)) return adapter_load_peft(a, m, folder, path, err);
    *strrchr(model, '/') = 0;
    return adapter_load_model(a, m, model, err);
}

/* What an adapter has projection by projection: the names, or those with another rank or alpha than the rest. */
enum { ADAPTER_NAMES, ADAPTER_RANKS, ADAPTER_ALPHAS };
static void adapter_parts_json(Text *t, const Adapter *a, int what) {
    const LoraConfig *c = &a->config;
    for (ptrdiff_t i = 0; i < arrlen(c->parts); i++) {
        LoraPart part = c->parts[i];
        char name[128];
        if (!part.rank || (what == ADAPTER_RANKS && part.rank == c->r) ||
            (what == ADAPTER_ALPHAS && part.alpha == c->lora_alpha)) continue;
        snprintf(name, sizeof name, "model.layers.%d.%s", (int)i / MODULE_COUNT, module_path[i % MODULE_COUNT]);
        if (what == ADAPTER_NAMES) json_string(t, NULL, name);
        if (what == ADAPTER_RANKS) json_print(t, name, "%d", part.rank);
        if (what == ADAPTER_ALPHAS) json_print(t, name, "%.9g", (double)part.alpha);
    }
}

/* modules_to_save: what is trained beside LoRA, by the shortest names that mean it. */
static void adapter_saved_json(Text *t, const Adapter *a) {
    static const struct { int bit; const char *name; } short_names[] = {
        {TRAIN_EMBEDDINGS, "embed_tokens"}, {TRAIN_HEAD, "lm_head"}, {TRAIN_NORMS, "norm"}};
    const size_t front = strlen("base_model.model.");
    char last[sizeof a->list->name] = "";
    if (arrlast(a->list).kind >= TENSOR_LORA_A) { json_string(t, "modules_to_save", NULL); return; }
    json_list(t, "modules_to_save", JSON_LINES);
    for (int i = 0; i < 3 && !a->config.tensors; i++)
        if (a->config.train & short_names[i].bit) json_string(t, NULL, short_names[i].name);
    for (const Trainable *x = a->list, *end = x + arrlen(a->list); x < end && a->config.tensors; x++) {
        char module[sizeof x->name];
        snprintf(module, sizeof module, "%.*s", (int)(strrchr(x->name, '.') - x->name), x->name);
        if (x->kind < TENSOR_SCORE && strcmp(module, last)) json_string(t, NULL, module + front);
        memcpy(last, module, sizeof last);
    }
    if (a->score) { json_string(t, NULL, "classifier"); json_string(t, NULL, "score"); }       /* as PEFT does */
    json_end(t);
}

/* adapter_config.json: the keys that every PEFT since 0.6, vLLM and llama.cpp's converter know, sorted as PEFT sorts
   them. */
static void adapter_config_json(Text *t, const Adapter *a) {
    const LoraConfig *c = &a->config;
    const Model *m = a->model;
    json_object(t, NULL, JSON_LINES);
    json_object(t, "alpha_pattern", JSON_LINES);
    adapter_parts_json(t, a, ADAPTER_ALPHAS);
    json_end(t);
    json_string(t, "auto_mapping", NULL);
    json_string(t, "base_model_name_or_path", m->folder);
    json_string(t, "bias", "none");
    json_bool(t, "fan_in_fan_out", false);
    json_bool(t, "inference_mode", true);
    if (c->init == LORA_INIT_TRUE) json_bool(t, "init_lora_weights", true);
    else json_string(t, "init_lora_weights", lora_init_name[c->init]);
    json_string(t, "layer_replication", NULL);
    json_string(t, "layers_pattern", NULL);
    if (!c->layers || c->parts) json_string(t, "layers_to_transform", NULL);
    else {
        json_list(t, "layers_to_transform", JSON_LINE);
        for (int l = 0; l < m->config.num_hidden_layers; l++) if (c->layers[l]) json_print(t, NULL, "%d", l);
        json_end(t);
    }
    json_object(t, "loftq_config", JSON_LINE);
    json_end(t);
    json_print(t, "lora_alpha", "%.7g", (double)c->lora_alpha);
    json_print(t, "lora_dropout", "%.7g", (double)c->lora_dropout);
    json_string(t, "megatron_config", NULL);
    json_string(t, "megatron_core", "megatron.core");
    adapter_saved_json(t, a);
    json_string(t, "peft_type", "LORA");
    json_print(t, "r", "%d", c->r);
    json_object(t, "rank_pattern", JSON_LINES);
    adapter_parts_json(t, a, ADAPTER_RANKS);
    json_end(t);
    json_string(t, "revision", NULL);
    json_list(t, "target_modules", JSON_LINES);
    if (c->parts) adapter_parts_json(t, a, ADAPTER_NAMES);
    for (int j = 0; j < MODULE_COUNT && !c->parts; j++) if (c->target[j]) json_string(t, NULL, module_name[j]);
    json_end(t);
    json_string(t, "task_type", a->score ? "SEQ_CLS" : "CAUSAL_LM");
    json_bool(t, "use_dora", false);
    json_bool(t, "use_rslora", c->use_rslora);
    json_end(t);
    text_string(t, "\n");
}

/* Everything that is trained, in fp32, as one file. */
static bool adapter_tensors_write(const Adapter *a, const char *path, Error *err) {
    const size_t block = (size_t)1 << 20;
    Text header = TEXT_EMPTY;
    SafeFile f;
    if (!safe_open(&f, path, err)) return false;
    safetensors_begin(&header);
    for (const Trainable *t = a->list, *end = t + arrlen(a->list); t < end; t++)
        safetensors_entry(&header, t->name, "F32", t->shape, t->shape[1] ? 2 : 1, t->offset * sizeof(float),
                          (t->offset + adapter_tensor_count(t)) * sizeof(float));
    text_bytes(&header, "}", 1);
    safetensors_header(&f, &header);
    float *values = (float *)must_alloc(block * sizeof(float));
    for (size_t at = 0; at < a->param_count; at += block) {
        size_t n = a->param_count - at < block ? a->param_count - at : block;
        backend_download(values, a->param + at, n * sizeof(float));
        safe_write(&f, values, n * sizeof(float));
    }
    free(values);
    return safe_close(&f, err);
}

/* What nothing else in the folder of an adapter says of its labels. */
static void adapter_classes_json(Text *t, const ClassConfig *c) {
    json_object(t, NULL, JSON_LINES);
    if (c->problem_type != PROBLEM_AUTO) json_string(t, "problem_type", problem_name[c->problem_type]);
    if (c->names) json_list(t, "label_names", JSON_LINES);
    for (int k = 0; c->names && k < c->num_labels; k++) json_string(t, NULL, c->names[k]);
    if (c->names) json_end(t);
    json_end(t);
    text_string(t, "\n");
}

/* What is trained and nothing else, into a folder that nobody reads yet: a PEFT folder, or trained.safetensors. */
static bool adapter_write(const Adapter *a, const char *folder, Error *err) {
    bool peft = adapter_has_lora(&a->config);
    char path[PATH_MAX];
    Text t = TEXT_EMPTY;
    path_in(path, sizeof path, folder, peft ? "adapter_model.safetensors" : "trained.safetensors");
    /* Weights first: a configuration without its weights would look like a whole adapter. */
    bool ok = adapter_tensors_write(a, path, err);
    path_in(path, sizeof path, folder, "run.json");
    if (ok && a->about) ok = write_file(path, a->about, strlen(a->about), err);
    else if (ok && a->score) {              /* the program's run.json has these, too */
        adapter_classes_json(&t, &a->config.classes);
        ok = write_file(path, t.at, t.length, err);
        text_free(&t);
    }
    if (peft) adapter_config_json(&t, a);
    if (ok && peft) return text_write(&t, folder, "adapter_config.json", err);
    text_free(&t);
    return ok;
}

bool adapter_convert(Adapter *plain, const Adapter *a, Error *err) {
    LoraConfig c = a->config;
    float alpha = c.use_rslora ? sqrtf(2) : 2;          /* the scale stays: alpha / r, or alpha / sqrt(r) */
    if (!a->initial) return fail(err, "the adapter is neither PiSSA nor OLoRA; --convert-to-lora; leave it out");
    c.init = LORA_INIT_TRUE;
    c.r *= 2;
    c.lora_alpha *= alpha;
    c.parts = NULL;
    for (ptrdiff_t i = 0; i < arrlen(a->config.parts); i++) {
        LoraPart part = {2 * a->config.parts[i].rank, alpha * a->config.parts[i].alpha};
        arrput(c.parts, part);
    }
    bool ok = adapter_layout(plain, a->model, &c, err);
    arrfree(c.parts);
    if (!ok) return false;
    plain->about = a->about;
    float *from = (float *)must_alloc(a->param_count * sizeof(float));
    float *to = (float *)must_alloc(plain->param_count * sizeof(float));
    backend_download(from, a->param, a->param_count * sizeof(float));
    for (ptrdiff_t i = 0; i < arrlen(a->list); i++) {
        const Trainable *t = &a->list[i];
        const float *now = from + t->offset, *first = a->initial + t->offset;
        float *out = to + plain->list[i].offset;
        size_t count = adapter_tensor_count(t), rank = (size_t)t->shape[1];
        if (t->kind == TENSOR_LORA_B)
            for (size_t k = 0; k < count; k++) {        /* [O, R] becomes [O, 2 R] */
                out[k / rank * 2 * rank + k % rank] = now[k];
                out[k / rank * 2 * rank + rank + k % rank] = -first[k];
            }
        else memcpy(out, now, count * sizeof(float));
        if (t->kind == TENSOR_LORA_A) memcpy(out + count, first, count * sizeof(float));
    }
    backend_upload(plain->param, to, plain->param_count * sizeof(float));
    adapter_changed(plain);
    free(from);
    free(to);
    return true;
}

/* ---- merging: every shard is written again, its header as it was, its tensors one after the other ---------------- */

/* A whole model folder in the making. */
typedef struct Merge {
    const Adapter *a;
    const char *folder;                     /* where it is written */
    DType dtype;                            /* of every float; DTYPE_COUNT: each as it was */
    const float *params;                    /* A and B of every projection: the front of the adapter's arena, here */
    size_t bytes;                           /* of all tensors written so far */
    TensorSpec untied;                      /* the head or embedding that the folder has to have although the base's has
                                               it not: a tied pair of which one was trained apart; name "": none */
    TensorSpec head;                        /* a classification head's folder has no lm_head; name "": it has */
    Text map;                               /* the members of the index's weight_map, where they change */
} Merge;

/* rows [count,in] = W - scale B0 A0 + scale B A in fp32, from row `first` on. */
static void merge_rows(float *rows, const Merge *g, const Linear *p, const Lora *x, int first, int count) {
    const Adapter *a = g->a;
    size_t A = (size_t)(x->A - a->param), B = (size_t)(x->B - a->param), in = (size_t)p->in;
    weight_decode(rows, &p->w, (size_t)first * in, (size_t)count * in);
    if (a->initial) lora_add_product(rows, a->initial + A, a->initial + B, x->rank, -x->scale, p->in, first, count);
    lora_add_product(rows, g->params + A, g->params + B, x->rank, x->scale, p->in, first, count);
}

static const char merge_score[] = "score.weight";

/* The place in the model of the tensor of that name; false: it has none. */
static bool merge_place(TensorSpec *s, const Model *m, const char *name) {
    *s = model_tensors(&m->config, m->prefix);
    while (tensor_next(s)) if (!strcmp(s->name, name)) return true;
    return false;
}
/* The tensor of the list that stands for this place in a merged model, or NULL. */
static const Trainable *merge_trained(const Adapter *a, const TensorSpec *s) {
    for (const Trainable *t = a->list, *end = t + arrlen(a->list); t < end; t++) {
        bool same = t->kind == s->kind || (t->kind == TENSOR_EMBED && s->kind == TENSOR_HEAD && adapter_shares(a));
        if (same && t->base.data && t->layer == s->layer && t->place == s->place) return t;
    }
    return NULL;
}

/* One tensor, trained or with the adapter in it where it is one of those, as `dtype`. */
static bool merge_tensor(SafeFile *f, const Merge *g, const Tensor *t, DType dtype, Error *err) {
    TensorSpec s;
    const Adapter *a = g->a;
    if (!t->data) {                         /* the classification head: F32, or what is asked for */
        Trainable score = arrlast(a->list);
        float *values = (float *)must_alloc(t->count * sizeof(float));
        char *out = (char *)must_alloc(t->count * sizeof(float));
        backend_download(values, a->param + score.offset, t->count * sizeof(float));
        weight_format[dtype_format(dtype)].encode(out, values, t->count);
        safe_write(f, out, t->count * dtype_size(dtype));
        free(values);
        free(out);
        return true;
    }
    bool known = merge_place(&s, a->model, t->name);
    int at = known && s.kind == TENSOR_WEIGHT ? s.layer * MODULE_COUNT + s.place : -1;
    const Linear *p = at < 0 ? NULL : &a->model->layers[s.layer].linear[s.place];
    const Trainable *own = known ? merge_trained(a, &s) : NULL;
    if (p && !a->lora[at].rank) p = NULL;
    for (size_t first = 0, chunk = (size_t)1 << 20; !p && !own && dtype == t->dtype; first += chunk) {
        if (first >= t->bytes) return true;
        const char *data = (const char *)t->data + first;
        size_t bytes = t->bytes - first < chunk ? t->bytes - first : chunk;
        safe_write(f, data, bytes);
        file_release_pages(data, bytes);
    }
    size_t width = p ? (size_t)p->in : 1, rows = t->count / width, block = 1 + ((size_t)1 << 18) / width;
    float *values = (float *)must_alloc(block * width * sizeof(float));
    Weight w = tensor_weight(t);
    FormatId to = dtype_format(dtype);
    void *out = must_alloc(format_bytes(to, block * width));
    bool ok = true;
    for (size_t first = 0; first < rows && ok; first += block) {
        size_t count = rows - first < block ? rows - first : block, elements = count * width;
        if (own) backend_download(values, a->param + own->offset + first, elements * sizeof(float));
        else if (p) merge_rows(values, g, p, &a->lora[at], (int)first, (int)count);
        else weight_decode(values, &w, first * width, elements);
        weight_format[to].encode(out, values, elements);
        Weight written = {out, NULL, to, (int)count, (int)width};
        if (weight_nonfinite(&written) >= 0)
            ok = fail(err, "a merged weight does not fit its dtype %s; tensor '%s'; %s", dtype_name[dtype], t->name,
                      dtype == DTYPE_F16 ? "write it with --dtype bf16 or f32" : "the adapter is not usable");
        safe_write(f, out, weight_bytes(&written));
    }
    free(values);
    free(out);
    return ok;
}

/* Eight bytes of length and the header that lists the tensors [count] in order, their floats as `dtype` (DTYPE_COUNT:
   each as it is). */
static bool merge_header(SafeFile *f, const Tensor *tensors, ptrdiff_t count, DType dtype, const char *path,
                         Error *err) {
    Text t = TEXT_EMPTY;
    size_t offset = 0;
    json_object(&t, NULL, JSON_LINE);
    json_object(&t, "__metadata__", JSON_LINE);
    json_string(&t, "format", "pt");
    json_end(&t);
    for (ptrdiff_t i = 0; i < count; i++) {
        const Tensor *x = &tensors[i];
        DType d = dtype_format(x->dtype) != FORMAT_COUNT && dtype != DTYPE_COUNT ? dtype : x->dtype;
        if (d == DTYPE_COUNT) {
            text_free(&t);
            return fail(err, "tensor '%s' is neither F32, F16, BF16 nor I32; %s; merge without --dtype", x->name, path);
        }
        json_object(&t, x->name, JSON_LINE);
        json_string(&t, "dtype", dtype_name[d]);
        json_list(&t, "shape", JSON_LINE);
        for (int k = 0; k < x->ndim; k++) json_print(&t, NULL, "%lld", (long long)x->shape[k]);
        json_end(&t);
        size_t begin = offset;
        offset += x->count * dtype_size(d);
        json_print(&t, "data_offsets", "[%zu, %zu]", begin, offset);
        json_end(&t);
    }
    json_end(&t);
    safetensors_header(f, &t);
    return true;
}

/* One file of the base, written anew. */
static bool merge_shard(Merge *g, const SafetensorsFile *file, Error *err) {
    char path[PATH_MAX];
    const Model *m = g->a->model;
    const char *slash = strrchr(file->path, '/'), *base = (const char *)file->base;
    const char *name = slash ? slash + 1 : file->path;
    path_in(path, sizeof path, g->folder, name);
    Tensor *tensors = NULL;
    SafeFile f;
    if (!safetensors_parse(&tensors, base, file->bytes, file->path, err) || !safe_open(&f, path, err)) return false;
    size_t data = file->bytes;              /* the tensors lie in the order of the list; where the first begins */
    if (arrlen(tensors)) data = (size_t)((const char *)tensors[0].data - base);
    bool ok = true, grown = false;
    for (ptrdiff_t i = 0; i < arrlen(tensors) && g->a->score; i++) {
        bool base_score = g->a->model->score && strstr(tensors[i].name, merge_score);
        if ((strcmp(tensors[i].name, g->head.name) && !base_score) || tensors[i].data == m->embed.data) continue;
        free(tensors[i].name);
        arrdel(tensors, i);
        i--;
        grown = true;
    }
    if (g->a->score && file == &arrlast(m->files.files)) {
        Tensor t = {text_copy(merge_score), NULL, 0, 0, {g->a->config.classes.num_labels, m->config.hidden_size, 0, 0},
                    2, DTYPE_F32};
        t.count = (size_t)t.shape[0] * (size_t)t.shape[1];
        t.bytes = t.count * sizeof(float);
        arrput(tensors, t);
        grown = true;
    }
    for (ptrdiff_t i = 0; i < arrlen(tensors) && *g->untied.name; i++) {
        if (tensors[i].data != m->embed.data) continue;           /* beside the other of the pair */
        Tensor t = tensors[i];
        t.name = text_copy(g->untied.name);
        arrput(tensors, t);
        grown = true;
        break;
    }
    if (g->dtype == DTYPE_COUNT && !grown) safe_write(&f, base, data);
    else ok = merge_header(&f, tensors, arrlen(tensors), g->dtype, file->path, err);
    for (ptrdiff_t i = 0; i < arrlen(tensors); i++) {
        const Tensor *t = &tensors[i];
        DType d = g->dtype == DTYPE_COUNT || dtype_format(t->dtype) == FORMAT_COUNT ? t->dtype : g->dtype;
        ok = ok && merge_tensor(&f, g, t, d, err);
        g->bytes += d == t->dtype ? t->bytes : t->count * dtype_size(d);
        json_string(&g->map, t->name, name);
        if (t->data) file_release_pages(t->data, t->bytes);
        free(t->name);
    }
    arrfree(tensors);
    return safe_close(&f, ok ? err : NULL) && ok;
}

/* Everything else of a model folder: configuration, tokenizer, index, licence; no weights of another format, nothing
   hidden. */
static bool merge_copies(const char *name) {
    static const char *const weights[] = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx"};
    size_t n = strlen(name);
    for (size_t i = 0; i < sizeof weights / sizeof *weights; i++) {
        size_t k = strlen(weights[i]);
        if (n >= k && !strcmp(name + n - k, weights[i])) return false;
    }
    return *name != '.';
}

/* May a file that is a link be copied? What a model needs, and what a Hugging Face cache keeps in its blobs; a link to
   anywhere else would put a stranger's file into a folder that is made to be given away. */
static bool merge_follows(const char *folder, const char *name) {
    static const char needed[] =
        "|config.json|generation_config.json|tokenizer.json|tokenizer_config.json|merges.txt|vocab.json|"
        "tokenizer.model|special_tokens_map.json|added_tokens.json|chat_template.jinja|model.safetensors.index.json|";
    char path[PATH_MAX], target[PATH_MAX], blobs[PATH_MAX], key[300];
    snprintf(key, sizeof key, "|%s|", name);
    if (strstr(needed, key)) return true;
    path_in(path, sizeof path, folder, name);
    if (!realpath(path, target)) return false;
    path_in(path, sizeof path, folder, "../../blobs");
    size_t n = realpath(path, blobs) ? strlen(blobs) : 0;
    return n && !strncmp(target, blobs, n) && target[n] == '/';
}

double rms_error(const float *got, const float *want, size_t count) {
    double error = 0, scale = 0;
    for (size_t i = 0; i < count; i++) {
        double difference = (double)got[i] - (double)want[i];
        error += difference * difference;
        scale += (double)want[i] * (double)want[i];
    }
    return scale > 0 ? sqrt(error / scale) : error > 0 ? INFINITY : error;
}
double merged_tolerance(FormatId format, int layers) {
    return 1e-5 + weight_format[format].rounding * sqrt(2.0 * layers + 3);
}

/* config.json of a ...ForSequenceClassification: what it was but for these. text: the base's, freed. */
static char *merge_classes(const Adapter *a, char *text) {
    const ClassConfig *c = &a->config.classes;
    const char *type = a->model->config.family->classifier;
    JsonDoc doc;
    Text t = TEXT_EMPTY;
    char label[32];
    if (!json_parse(&doc, text, strlen(text), "config.json", 1, NULL)) return text;
    json_object(&t, NULL, JSON_LINES);
    json_list(&t, "architectures", JSON_LINES);
    json_string(&t, NULL, type);
    json_end(&t);
    for (int names = 0; names < 2; names++) {
        json_object(&t, names ? "label2id" : "id2label", JSON_LINES);
        for (int k = 0; k < c->num_labels; k++) {
            char key[16];
            snprintf(label, sizeof label, "LABEL_%d", k);
            snprintf(key, sizeof key, "%d", k);
            if (names) json_print(&t, c->names ? c->names[k] : label, "%d", k);
            else json_string(&t, key, c->names ? c->names[k] : label);
        }
        json_end(&t);
    }
    if (c->problem_type != PROBLEM_AUTO) json_string(&t, "problem_type", problem_name[c->problem_type]);
    if (c->pad_token_id >= 0) json_print(&t, "pad_token_id", "%d", c->pad_token_id);
    static const char *const ours[] = {"architectures", "id2label", "label2id", "problem_type", "num_labels"};
    for (const Json *j = doc.root->child; j; j = j->next) {
        bool written = c->pad_token_id >= 0 && !strcmp(j->key, "pad_token_id");
        for (size_t i = 0; i < sizeof ours / sizeof *ours; i++) written |= !strcmp(j->key, ours[i]);
        Text value = TEXT_EMPTY;
        json_dumps(&value, j, 0);
        if (!written) json_print(&t, j->key, "%s", value.at);
        text_free(&value);
    }
    json_end(&t);
    text_string(&t, "\n");
    json_free(&doc);
    free(text);
    return t.at;
}

/* config.json and the index, as far as the merged folder differs in them. text: the base's, freed. */
static char *merge_text(Merge *g, const char *name, char *text) {
    static const char *const torch[] = {"\"float32\"", "\"float16\"", "\"bfloat16\""};
    char size[32];
    snprintf(size, sizeof size, "%zu", g->bytes);
    if (!strcmp(name, "config.json")) {
        if (g->dtype != DTYPE_COUNT) text = json_with(json_with(text, "dtype", torch[g->dtype]), "torch_dtype",
                                                      torch[g->dtype]);
        if (*g->untied.name) text = json_with(text, "tie_word_embeddings", "false");
        if (g->a->score) text = merge_classes(g->a, text);
    } else if (!strcmp(name, "model.safetensors.index.json") && (*g->untied.name || g->a->score)) {
        Text t = TEXT_EMPTY;
        text_print(&t, "{\"metadata\": {\"total_size\": %s}, \"weight_map\": %s}\n", size, g->map.at);
        free(text);
        text = t.at;
    } else if (!strcmp(name, "model.safetensors.index.json") && g->dtype != DTYPE_COUNT)
        text = json_with(text, "total_size", size);
    return text;
}

/* The other files of the base's folder. */
static bool merge_others(Merge *g, Error *err) {
    const Model *m = g->a->model;
    char from[PATH_MAX], to[PATH_MAX];
    struct stat st;
    bool ok = true;
    DIR *d = opendir(m->folder);
    for (struct dirent *e; d && ok && (e = readdir(d));) {
        path_in(from, sizeof from, m->folder, e->d_name);
        path_in(to, sizeof to, g->folder, e->d_name);
        if (!merge_copies(e->d_name) || stat(from, &st) || !S_ISREG(st.st_mode)) continue;
        if (lstat(from, &st) || (S_ISLNK(st.st_mode) && !merge_follows(m->folder, e->d_name))) {
            print_warning("%s is a link to somewhere else and is not copied", from);
            continue;
        }
        size_t bytes;
        char *text = read_file(from, &bytes, err);
        bool ours = !strcmp(e->d_name, "config.json") || !strcmp(e->d_name, "model.safetensors.index.json");
        if (text && ours && (g->dtype != DTYPE_COUNT || *g->untied.name || g->a->score)) {
            text = merge_text(g, e->d_name, text);
            bytes = strlen(text);
        }
        ok = text && write_file(to, text, bytes, err);
        free(text);
    }
    if (d) closedir(d);
    return ok;
}

/* The whole model folder, into one that is there and empty. */
static bool merge_write(const Adapter *a, const char *folder, DType dtype, Error *err) {
    const Model *m = a->model;
    TensorSpec none = model_tensors(&m->config, m->prefix);
    Merge g = {a, folder, dtype, NULL, 0, none, none, TEXT_EMPTY};
    if (a->score) tensor_outside(&g.head, TENSOR_HEAD);
    size_t lora = 0;                        /* parameters of A and B, which come first */
    for (const Trainable *t = a->list, *end = t + arrlen(a->list); t < end; t++) {
        if (t->kind >= TENSOR_LORA_A) lora = t->offset + adapter_tensor_count(t);
        bool apart = m->config.tie_word_embeddings && !adapter_shares(a);
        if (!apart || (t->kind != TENSOR_EMBED && t->kind != TENSOR_HEAD)) continue;
        for (int kind = TENSOR_EMBED; kind <= TENSOR_HEAD; kind += TENSOR_HEAD - TENSOR_EMBED) {
            tensor_outside(&g.untied, (TensorKind)kind);
            if (!tensors_get(&m->files, g.untied.name, m->embed.rows, m->embed.cols, NULL)) break;
            *g.untied.name = 0;             /* the folder has both */
        }
    }
    float *params = (float *)must_alloc(lora * sizeof(float));
    if (lora) backend_download(params, a->param, lora * sizeof(float));
    g.params = params;
    bool ok = true;
    json_object(&g.map, NULL, JSON_LINES);
    for (ptrdiff_t i = 0; i < arrlen(m->files.files) && ok; i++) ok = merge_shard(&g, &m->files.files[i], err);
    json_end(&g.map);
    ok = ok && merge_others(&g, err);
    text_free(&g.map);
    free(params);
    return ok;
}

bool adapter_merge(const Adapter *a, const char *folder, DType dtype, Error *err) {
    struct stat st;
    SafeFolder f;
    if (!stat(folder, &st))
        return fail(err, "it exists already; %s; give a new folder, nothing is overwritten", folder);
    if (!folder_begin(&f, folder, err)) return false;
    bool ok = merge_write(a, f.temporary, dtype, err);
    if (!ok) folder_discard(f.temporary);
    return ok && folder_commit(&f, false, err);
}

/* ---- saving ------------------------------------------------------------------------------------------------------ */

/* Moves one file of `part` into `folder`; where the system can, it stays in both. */
static bool adapter_move(const char *part, const char *folder, const char *name, bool both, Error *err) {
    char from[PATH_MAX], to[PATH_MAX], other[PATH_MAX];
    path_in(from, sizeof from, part, name);
    path_in(to, sizeof to, folder, name);
    path_in(other, sizeof other, part, ".link");
    bool ok = both && !link(from, other) ? !rename(other, to) : !rename(from, to);
    CRASH_POINT();
    return ok || fail(err, "cannot write; %s: %s; it is whole as %s", to, strerror(errno), from);
}

/* Is it a file of a model's weights? */
static bool adapter_weights_file(const char *name) {
    size_t n = strlen(name);
    return !strcmp(name, "model.safetensors.index.json") ||
           (!strncmp(name, "model", 5) && n > 12 && !strcmp(name + n - 12, ".safetensors"));
}

/* What earlier crashes have left in an output folder would be taken for the new adapter's. */
static void adapter_clear(const char *folder, const char *keep) {
    static const char *const configs[] = {"adapter_config.json", "config.json"};
    char part[PATH_MAX], path[PATH_MAX];
    DIR *d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d));) {
        path_in(part, sizeof part, folder, e->d_name);
        if (!temporary_of(e->d_name, "adapter") || !strcmp(part, keep)) continue;
        for (int i = 0; i < 2; i++) {       /* first: without it the rest counts for nothing */
            path_in(path, sizeof path, part, configs[i]);
            unlink(path);
        }
        CRASH_POINT();
        folder_discard(part);
    }
    if (d) closedir(d);
}

/* Takes away what an earlier output of the folder was known by, and, where a whole model comes, its weights: no shard
   of an earlier model, and no adapter, may stand beside the new one. */
static bool adapter_take_away(const char *folder, bool peft, Error *err) {
    static const char *const old[] = {"adapter_config.json", "config.json", "adapter_model.safetensors"};
    char path[PATH_MAX];
    for (int i = 0; i < (peft ? 1 : 3); i++) {
        path_in(path, sizeof path, folder, old[i]);
        if (unlink(path) && errno != ENOENT)
            return fail(err, "cannot write; %s: %s; give another --output", path, strerror(errno));
        CRASH_POINT();
    }
    DIR *d = peft ? NULL : opendir(folder);
    for (struct dirent *e; d && (e = readdir(d));) {
        path_in(path, sizeof path, folder, e->d_name);
        if (adapter_weights_file(e->d_name)) unlink(path);
    }
    if (d) closedir(d);
    return true;
}

/* The files of `part` to their places in `folder`, the configuration last. */
static bool adapter_place_files(const char *part, const char *folder, bool peft, Error *err) {
    const char *last = peft ? "adapter_config.json" : "config.json";
    char **names = NULL;
    DIR *d = opendir(part);
    for (struct dirent *e; d && (e = readdir(d));)
        if (*e->d_name != '.' && strcmp(e->d_name, last)) arrput(names, text_copy(e->d_name));
    if (d) closedir(d);
    bool ok = d != NULL || fail(err, "cannot read; %s: %s; try again", part, strerror(errno));
    for (ptrdiff_t i = 0; i < arrlen(names); i++) {
        ok = ok && adapter_move(part, folder, names[i], !peft, err);
        free(names[i]);
    }
    arrfree(names);
    return ok && adapter_move(part, folder, last, !peft, err);
}

bool adapter_save_as(const Adapter *a, const char *folder, DType dtype, Error *err) {
    bool peft = adapter_has_lora(&a->config);
    char to[PATH_MAX];
    SafeFolder f;
    path_in(to, sizeof to, folder, "adapter");
    if (!make_folder(folder, err) || !folder_begin(&f, to, err)) return false;
    bool ok = peft ? adapter_write(a, f.temporary, err) : merge_write(a, f.temporary, dtype, err);
    path_in(to, sizeof to, f.temporary, "run.json");
    if (ok && !peft && a->about) ok = write_file(to, a->about, strlen(a->about), err);
    if (!ok) { folder_discard(f.temporary); return false; }
    folder_sync(f.temporary);
    folder_sync(folder);
    CRASH_POINT();
    adapter_clear(folder, f.temporary);
    if (!adapter_take_away(folder, peft, err)) { folder_discard(f.temporary); return false; }
    if (!adapter_place_files(f.temporary, folder, peft, err)) return false;
    folder_discard(f.temporary);
    folder_sync(folder);
    return true;
}
bool adapter_save(const Adapter *a, const char *folder, Error *err) {
    return adapter_save_as(a, folder, DTYPE_COUNT, err);
}

/* ---- the optimizer ----------------------------------------------------------------------------------------------- */

static const float OPTIMIZER_LOSS_SCALE_MAX = 0x1p40f;

const char *const optimizer_name[OPTIMIZER_COUNT] = {"adamw", "adamw_8bit"};

/* Ranges of the arenas whose trainables have the same rate and decay: AdamW is one call for each; with 8 bits one for
   each tensor, as a block ends with it. */
static void optimizer_update(Adapter *a, const Optimizer *o, double rate, float grad_scale) {
    ptrdiff_t count = arrlen(a->list);
    for (ptrdiff_t i = 0, next; i < count; i = next) {
        const Trainable *t = &a->list[i], *n = t + 1;
        for (next = i + 1; next < count && !t->eight_bits && !n->eight_bits && n->rate == t->rate &&
                           n->decay == t->decay; n++) next++;
        size_t begin = t->offset, size = (next < count ? n->offset : a->param_count) - begin;
        float *param = a->param + begin, *m = a->adam_m + t->moment, *v = a->adam_v + t->moment;
        float lr = (float)(rate * (double)t->rate), decay = (float)(o->weight_decay * (double)t->decay);
        float beta1 = (float)o->beta1, beta2 = (float)o->beta2, epsilon = (float)o->epsilon;
        size_t codes = adamw_code_words(size);
        if (t->eight_bits)
            adamw_8bit_update(param, (uint8_t *)m, (uint8_t *)v, m + codes, v + codes, a->grad + begin, size,
                              grad_scale, lr, beta1, beta2, epsilon, decay, a->adam_step);
        else adamw_update(param, m, v, a->grad + begin, size, grad_scale, lr, beta1, beta2, epsilon, decay,
                          a->adam_step);
    }
}

bool adapter_rates(Adapter *a, double lora_plus_ratio, double embedding_rate, Error *err) {
    bool pairs = false, embeddings = false;
    for (ptrdiff_t i = 0; i < arrlen(a->list); i++) {
        Trainable *t = &a->list[i];
        bool b = t->kind == TENSOR_LORA_B, embedding = t->kind == TENSOR_EMBED || t->kind == TENSOR_HEAD;
        t->rate = (float)(b || !t->shape[1] ? lora_plus_ratio : embedding ? embedding_rate : 1);
        pairs |= b;
        embeddings |= embedding;
    }
    if (lora_plus_ratio != 1 && !pairs)
        return fail(err, "a ratio of rates, but no A and B are trained; --lora-plus-ratio; leave it out");
    return embedding_rate == 1 || embeddings ||
           fail(err, "a rate of the embedding, but neither it nor the head is trained; --embedding-learning-rate; "
                     "leave it out, or add --train lora,embeddings");
}

StepOutcome optimizer_step(Adapter *a, const Optimizer *o, double learning_rate, double *norm) {
    *norm = adapter_grad_norm(a);
    if (!isfinite(*norm)) {
        if (!(a->loss_scale > 1)) return STEP_NONFINITE;
        a->loss_scale /= 2;
        a->scale_age = 0;
        return STEP_OVERFLOW;
    }
    double clip = o->max_grad_norm > 0 ? fmin(1, o->max_grad_norm / (*norm + 1e-6)) : 1;
    a->adam_step++;
    optimizer_update(a, o, learning_rate, (float)(clip / (double)a->loss_scale));
    adapter_changed(a);
    if (LORA_LOSS_SCALE > 1 && ++a->scale_age == 2000) {                      /* as torch.amp.GradScaler grows it */
        a->loss_scale = fminf(a->loss_scale * 2, OPTIMIZER_LOSS_SCALE_MAX);
        a->scale_age = 0;
    }
    return STEP_TAKEN;
}

/* ---- the team ---------------------------------------------------------------------------------------------------- */

static void team_alone(const Team *t) {
    if (t->size == 1) return;               /* the sum over one is what it is, and nobody is waited for */
    fprintf(stderr, "error: a team of %d processes; this program has one; please report this\n", t->size);
    abort();
}
void team_reduce(const Team *t, float *sum, size_t count) { (void)sum; (void)count; team_alone(t); }
void team_sum(const Team *t, double *sum, int count) { (void)sum; (void)count; team_alone(t); }
void team_barrier(const Team *t) { team_alone(t); }

/* ---- schedules --------------------------------------------------------------------------------------------------- */

const char *const schedule_name[SCHEDULE_COUNT] = {"linear", "cosine", "constant", "constant_with_warmup"};

double schedule_factor(Schedule s, int64_t step, int64_t warmup, int64_t total) {
    if (s == SCHEDULE_CONSTANT) return 1;
    if (step < warmup) return (double)step / (double)(warmup > 1 ? warmup : 1);
    if (s == SCHEDULE_CONSTANT_WITH_WARMUP) return 1;
    double rest = (double)(total - warmup > 1 ? total - warmup : 1);
    if (s == SCHEDULE_LINEAR) return fmax(0, (double)(total - step) / rest);
    return fmax(0, 0.5 * (1 + cos(3.14159265358979323846 * (double)(step - warmup) / rest)));
}

/* =====================================================================================================================
   6  TRAINING
   The order of things follows transformers' Trainer: per epoch torch.randperm(seed + epoch), batches cut from it, the
   last accumulation of an epoch possibly smaller, the loss of an optimizer step = sum of token losses / labelled tokens
   of the whole step.
   ================================================================================================================== */

/* The plan of a run in numbers: how many micro-batches and optimizer steps. */
typedef struct RunPlan { int64_t micro_per_epoch, steps_per_epoch, total_steps, epochs, warmup; } RunPlan;

static RunPlan run_plan(const TrainOptions *o, const Dataset *d) {
    RunPlan p;
    int64_t slots = d->slots ? (int64_t)d->slots : 1;
    int64_t batch = o->per_device_train_batch_size, accumulate = o->gradient_accumulation_steps;
    p.micro_per_epoch = (slots + batch - 1) / batch;
    p.steps_per_epoch = (p.micro_per_epoch + accumulate - 1) / accumulate;
    p.total_steps = o->max_steps > 0 ? o->max_steps : (int64_t)ceil(o->num_train_epochs * (double)p.steps_per_epoch);
    p.epochs = (p.total_steps + p.steps_per_epoch - 1) / p.steps_per_epoch;
    p.warmup = o->warmup_steps > 0 ? o->warmup_steps : (int64_t)ceil(o->warmup_ratio * (double)p.total_steps);
    return p;
}

static void run_epoch_order(int64_t *order, const TrainOptions *o, const Dataset *d, int64_t epoch) {
    if (o->shuffle) torch_randperm(order, (int64_t)d->slots, (uint64_t)(o->seed + epoch));
    else for (int64_t i = 0; i < (int64_t)d->slots; i++) order[i] = i;
}

/* An id beyond the embedding would be read from what lies behind it. */
bool train_ids_check(const Dataset *d, int vocab, const char *path, Error *err) {
    for (size_t e = 0; e < d->count && d->largest_id >= vocab; e++)
        for (size_t n = d->offset[e]; n < d->offset[e + 1]; n++)
            if (d->ids[n] >= vocab || d->labels[n] >= vocab)
                return fail(err, "token id %d in a vocabulary of %d; %s, row %lld; the row was tokenised for another "
                            "model", d->ids[n] >= vocab ? d->ids[n] : d->labels[n], vocab, path, (long long)d->row[e]);
    return true;
}

/* ---- metrics: rows of a table ---------------------------------------------------------------------------------- */

#define METRIC(name, field) #name, offsetof(LogRecord, field)
enum { METRIC_OF_TOKENS = 1 << METRICS_OF_TOKENS, METRIC_OF_TWO_CLASSES = 1 << METRICS_OF_TWO_CLASSES,
       METRIC_OF_ONE_CLASS = METRIC_OF_TWO_CLASSES | 1 << METRICS_OF_CLASSES,
       METRIC_OF_LABELS = 1 << METRICS_OF_LABELS, METRIC_OF_NUMBERS = 1 << METRICS_OF_NUMBERS,
       METRIC_OF_PAIRS = 1 << METRICS_OF_PAIRS, METRIC_OF_ALL = ~0,
       METRIC_SCORE = METRIC_EVAL | METRIC_BEST | METRIC_GREATER };
const Metric log_metric[LOG_METRICS] = {
    {METRIC(loss, loss), METRIC_TRAIN | METRIC_EVAL | METRIC_TAG | METRIC_BEST, OVER_STEPS,
     "%.9g", "loss %.4f", "loss %.4f", METRIC_OF_ALL},
    {METRIC(grad_norm, grad_norm), METRIC_TRAIN | METRIC_TAG, OVER_NOTHING,
     "%.9g", "grad_norm %.3f", NULL, METRIC_OF_ALL},
    {METRIC(learning_rate, learning_rate), METRIC_TRAIN | METRIC_TAG, OVER_NOTHING,
     "%.9g", "lr %.2e", NULL, METRIC_OF_ALL},
    {METRIC(tokens_per_second, tokens_per_second), METRIC_TRAIN | METRIC_TAG, OVER_NOTHING,
     "%.1f", NULL, NULL, METRIC_OF_ALL},
    {METRIC(ceiling_share, ceiling_share), METRIC_TRAIN, OVER_NOTHING, "%.4f", NULL, NULL, METRIC_OF_ALL},
    {METRIC(token_loss, token_loss), METRIC_EVAL | METRIC_BEST, OVER_NOTHING,
     "%.9g", NULL, "per token %.4f", METRIC_OF_TOKENS},
    {METRIC(perplexity, perplexity), METRIC_EVAL | METRIC_BEST, OVER_NOTHING,
     "%.9g", NULL, "perplexity %.2f", METRIC_OF_TOKENS},
    {METRIC(mean_example_perplexity, mean_example_perplexity), METRIC_EVAL | METRIC_BEST, OVER_NOTHING,
     "%.9g", NULL, NULL, METRIC_OF_TOKENS},
    {METRIC(token_accuracy, token_accuracy), METRIC_EVAL | METRIC_GREATER | METRIC_PERCENT, OVER_NOTHING,
     "%.9g", NULL, "token accuracy %.1f %%", METRIC_OF_TOKENS},
    {METRIC(token_entropy, token_entropy), METRIC_EVAL, OVER_NOTHING, "%.9g", NULL, NULL, METRIC_OF_TOKENS},
    {METRIC(runtime, seconds), METRIC_EVAL, OVER_NOTHING, "%.4f", NULL, NULL, METRIC_OF_ALL},
    {METRIC(seconds, seconds), METRIC_TRAIN, OVER_NOTHING, "%.4f", NULL, NULL, METRIC_OF_ALL},
    {METRIC(mean_token_accuracy, mean_token_accuracy),
     METRIC_TRAIN | METRIC_EVAL | METRIC_TAG | METRIC_BEST | METRIC_GREATER, OVER_MICRO_BATCHES,
     "%.9g", "accuracy %.3f", NULL, METRIC_OF_TOKENS},
    {METRIC(entropy, entropy), METRIC_TRAIN | METRIC_EVAL | METRIC_TAG | METRIC_BEST, OVER_MICRO_BATCHES,
     "%.9g", "entropy %.3f", NULL, METRIC_OF_TOKENS},
    /* training's are means over micro-batches; evaluation's of all rows together, but for those of pairs */
    {METRIC(accuracy, accuracy), METRIC_TRAIN | METRIC_EVAL | METRIC_TAG | METRIC_BEST | METRIC_GREATER,
     OVER_MICRO_BATCHES, "%.9g", "accuracy %.3f", "accuracy %.4f", METRIC_OF_ONE_CLASS | METRIC_OF_PAIRS},
    {METRIC(subset_accuracy, subset_accuracy), METRIC_TRAIN | METRIC_EVAL | METRIC_TAG | METRIC_BEST | METRIC_GREATER,
     OVER_MICRO_BATCHES, "%.9g", "all right %.3f", "all right %.4f", METRIC_OF_LABELS},
    {METRIC(balanced_accuracy, balanced_accuracy), METRIC_SCORE, OVER_NOTHING, "%.9g", NULL, "balanced %.4f",
     METRIC_OF_ONE_CLASS},
    {METRIC(precision, precision), METRIC_SCORE, OVER_NOTHING, "%.9g", NULL, NULL, METRIC_OF_TWO_CLASSES},
    {METRIC(recall, recall), METRIC_SCORE, OVER_NOTHING, "%.9g", NULL, NULL, METRIC_OF_TWO_CLASSES},
    {METRIC(f1, f1), METRIC_SCORE, OVER_NOTHING, "%.9g", NULL, "f1 %.4f", METRIC_OF_TWO_CLASSES},
    {METRIC(macro_f1, macro_f1), METRIC_SCORE, OVER_NOTHING, "%.9g", NULL, "macro f1 %.4f",
     METRIC_OF_ONE_CLASS | METRIC_OF_LABELS},
    {METRIC(weighted_f1, weighted_f1), METRIC_SCORE, OVER_NOTHING, "%.9g", NULL, NULL,
     METRIC_OF_ONE_CLASS | METRIC_OF_LABELS},
    {METRIC(micro_f1, micro_f1), METRIC_SCORE, OVER_NOTHING, "%.9g", NULL, "micro f1 %.4f", METRIC_OF_LABELS},
    {METRIC(roc_auc, roc_auc), METRIC_SCORE, OVER_NOTHING, "%.9g", NULL, "roc auc %.4f", METRIC_OF_TWO_CLASSES},
    {METRIC(average_precision, average_precision), METRIC_SCORE, OVER_NOTHING, "%.9g", NULL, NULL,
     METRIC_OF_TWO_CLASSES},
    {METRIC(best_threshold, best_threshold), METRIC_EVAL, OVER_NOTHING, "%.9g", NULL, NULL, METRIC_OF_TWO_CLASSES},
    {METRIC(best_threshold_f1, best_threshold_f1), METRIC_SCORE, OVER_NOTHING, "%.9g", NULL, NULL,
     METRIC_OF_TWO_CLASSES},
    {METRIC(mse, mse), METRIC_EVAL | METRIC_BEST, OVER_NOTHING, "%.9g", NULL, NULL, METRIC_OF_NUMBERS},
    {METRIC(mae, mae), METRIC_EVAL | METRIC_BEST, OVER_NOTHING, "%.9g", NULL, "mae %.4f", METRIC_OF_NUMBERS},
    {METRIC(r2, r2), METRIC_SCORE, OVER_NOTHING, "%.9g", NULL, "r2 %.4f", METRIC_OF_NUMBERS},
    {METRIC(pearson, pearson), METRIC_SCORE, OVER_NOTHING, "%.9g", NULL, "pearson %.4f", METRIC_OF_NUMBERS},
    {METRIC(spearman, spearman), METRIC_SCORE, OVER_NOTHING, "%.9g", NULL, NULL, METRIC_OF_NUMBERS},
    {METRIC(margin, margin), METRIC_TRAIN | METRIC_EVAL | METRIC_TAG | METRIC_BEST | METRIC_GREATER,
     OVER_MICRO_BATCHES, "%.9g", "margin %.3f", "margin %.4f", METRIC_OF_PAIRS},
    {METRIC(min_reward, min_reward), METRIC_TRAIN | METRIC_EVAL | METRIC_TAG, OVER_MICRO_BATCHES, "%.9g", NULL, NULL,
     METRIC_OF_PAIRS},
    {METRIC(mean_reward, mean_reward), METRIC_TRAIN | METRIC_EVAL | METRIC_TAG, OVER_MICRO_BATCHES, "%.9g", NULL,
     "reward %.4f", METRIC_OF_PAIRS},
    {METRIC(max_reward, max_reward), METRIC_TRAIN | METRIC_EVAL | METRIC_TAG, OVER_MICRO_BATCHES, "%.9g", NULL, NULL,
     METRIC_OF_PAIRS},
};
#undef METRIC

const Metric *metric_find(const char *name) {
    if (!strncmp(name, "eval_", 5)) name += 5;
    for (int i = 0; i < LOG_METRICS; i++)
        if (log_metric[i].is & METRIC_BEST && !strcmp(name, log_metric[i].name)) return &log_metric[i];
    return NULL;
}
static double *log_metric_at(LogRecord *r, const Metric *m) { return (double *)((char *)r + m->at); }
double metric_value(const LogRecord *r, const Metric *m) { return *(const double *)((const char *)r + m->at); }

/* ---- what is learned ------------------------------------------------------------------------------------------- */

static double train_tokens_weight(const Classifier *c, const Dataset *d, size_t slot) {
    (void)c;
    return (double)slot_labelled(d, slot);
}
static void train_tokens_measure(LogRecord *sums, const LossStats *s) {
    if (!s->tokens) return;
    sums->mean_token_accuracy += (double)s->correct / (double)s->tokens;
    sums->entropy += s->entropy_sum / (double)s->tokens;
}
static void train_tokens_finish(EvalResult *result, const LossStats *s, const Classifier *c, const Dataset *d) {
    LogRecord *r = &result->record;
    double n = s->tokens ? (double)s->tokens : 1, examples = (double)result->examples;
    (void)c; (void)d;
    r->token_loss = s->loss_sum / n;
    r->token_accuracy = (double)s->correct / n;
    r->token_entropy = s->entropy_sum / n;
    r->perplexity = fmin(exp(r->token_loss), DBL_MAX);                        /* JSON knows no infinity */
    r->mean_example_perplexity = result->examples ? fmin(result->perplexities / examples, DBL_MAX) : 1;
}
const Objective objective_tokens = {"tokens", train_tokens_weight, model_loss, train_tokens_measure,
                                    train_tokens_finish};

/* ---- classification and reward: a head of few outputs ------------------------------------------------------------
   Its losses are plain formulas of one row or pair (data/classify.h): the logits come to the host, their gradient goes
   back. */

void classifier_close(Classifier *c) {
    backend_free(c->logits, (size_t)c->rows * (size_t)c->K * sizeof *c->logits);
    free(c->host);
    free(c->row);
    free(c->class_weights);
    memset(c, 0, sizeof *c);
}
bool classifier_open(Classifier *c, const Dataset *d, const TrainOptions *o, int rows, Error *err) {
    classifier_close(c);
    bool classes = d->task == TASK_CLASSIFICATION && d->problem == PROBLEM_SINGLE_LABEL;
    c->task = d->task;
    c->problem = d->problem;
    c->K = d->label_count ? d->label_count : 1;
    c->of = d->task == TASK_REWARD ? METRICS_OF_PAIRS : d->problem == PROBLEM_REGRESSION ? METRICS_OF_NUMBERS
          : d->problem == PROBLEM_MULTI_LABEL ? METRICS_OF_LABELS
          : c->K == 2 ? METRICS_OF_TWO_CLASSES : METRICS_OF_CLASSES;
    c->label_smoothing = o ? o->label_smoothing : 0;
    c->focal_gamma = o ? o->focal_gamma : 0;
    c->rows = rows;
    if (!(c->label_smoothing >= 0 && c->label_smoothing < 1))
        return fail(err, "label smoothing is %g; --label-smoothing; give a share from 0 to below 1",
                    c->label_smoothing);
    if (!(c->focal_gamma >= 0 && isfinite(c->focal_gamma)))
        return fail(err, "gamma of the focal loss is %g; --focal-gamma; give 0 or more", c->focal_gamma);
    if (!classes && (c->label_smoothing > 0 || c->focal_gamma > 0))
        return fail(err, "the loss of %s has neither label smoothing nor gamma; --label-smoothing, --focal-gamma; leave "
                         "them out", d->task == TASK_REWARD ? "pairs" : problem_name[d->problem]);
    if (c->label_smoothing > 0 && c->focal_gamma > 0)
        return fail(err, "label smoothing and focal loss at once; --label-smoothing, --focal-gamma; choose one");
    if (o && o->class_weights) {
        c->class_weights = (float *)must_alloc((size_t)c->K * sizeof(float));
        if (!class_weights_parse(c->class_weights, d, o->class_weights, err)) return false;
    }
    size_t count = (size_t)rows * (size_t)c->K;
    c->host = (float *)must_alloc(count * sizeof *c->host);
    c->row = (double *)must_alloc(4 * (size_t)c->K * sizeof *c->row);
    if (rows) c->logits = (float *)backend_alloc(count * sizeof *c->logits);
    return !rows || c->logits || fail(err, "out of memory for the logits of %d rows; use a smaller batch", rows);
}

/* Has it a language model's head? */
static bool model_speaks(const Model *m, const Adapter *a, Error *err) {
    int K = a && a->score ? a->config.classes.num_labels : m->no_head ? m->classes.num_labels : 0;
    return !K || fail(err, "a classification head of %d label%s, it has no words; %s; evaluate it with --task "
                           "classification, or reward", K, K == 1 ? "" : "s", m->folder);
}
static const ClassConfig *adapter_classes(const Model *m, const Adapter *a) {
    return a && a->score ? &a->config.classes : &m->classes;
}
/* The logits of the batch's pooled rows, [M,K] to c->host. */
static void train_logits(const Model *m, const Adapter *a, Workspace *w, const Batch *b) {
    Classifier *c = w->classifier;
    backend_upload(w->labelled, b->labelled, (size_t)b->M * sizeof(int32_t));
    score_forward(c->logits, w->normed, w->labelled, a && a->score ? a->score : m->score, b->M, c->K,
                  m->config.hidden_size);
    backend_download(c->host, c->logits, (size_t)b->M * (size_t)c->K * sizeof *c->host);
}
/* And back: c->host holds the gradient of the sum of the losses by the logits, [M,K]. */
static void train_logits_backward(const Model *m, const Adapter *a, Workspace *w, const Batch *b, float dloss) {
    Classifier *c = w->classifier;
    size_t count = (size_t)b->M * (size_t)c->K;
    for (size_t i = 0; i < count; i++) c->host[i] *= dloss * a->loss_scale;
    backend_upload(c->logits, c->host, count * sizeof *c->host);
    score_backward(adapter_wants_normed(a) ? w->d_normed : NULL, a->d_score, c->logits, w->normed, w->labelled,
                   a->score, b->M, b->N, c->K, m->config.hidden_size);
}

/* What a row adds to the divisor of the loss: torch's weighted mean of cross-entropies, else every row is one. */
static double train_row_weight(const Classifier *c, const float *target) {
    return c->class_weights && c->problem == PROBLEM_SINGLE_LABEL ? (double)c->class_weights[(int)*target] : 1;
}
static double train_classes_weight(const Classifier *c, const Dataset *d, size_t slot) {
    double weight = 0;
    for (SlotIterator e = slot_begin(d, slot); slot_next(&e);) weight += train_row_weight(c, e.target);
    return weight;
}
/* The loss of a row of logits; dz [K] or NULL. */
static double train_row_loss(const Classifier *c, double *dz, const double *z, const float *target) {
    if (c->problem == PROBLEM_REGRESSION) return loss_squared(dz, *z, (double)*target);
    if (c->problem == PROBLEM_MULTI_LABEL) return loss_logistic(dz, z, target, c->class_weights, c->K);
    if (c->focal_gamma > 0) return loss_focal(dz, z, (int)*target, c->class_weights, c->focal_gamma, c->K);
    return loss_softmax(dz, z, (int)*target, c->class_weights, c->label_smoothing, c->K);
}
/* Is a row's answer the right one, with every label? A label is there where its probability is above a half. */
static bool train_row_right(const Classifier *c, const double *z, const float *target) {
    if (c->problem == PROBLEM_REGRESSION) return false;
    if (c->problem == PROBLEM_SINGLE_LABEL) return class_likeliest(z, c->K) == (int)*target;
    for (int k = 0; k < c->K; k++) if ((z[k] > 0) != (target[k] != 0)) return false;
    return true;
}
static LossStats train_classes_loss(const Model *m, const Adapter *a, Workspace *w, const Batch *b, float dloss) {
    Classifier *c = w->classifier;
    LossStats s;
    bool backward = a && dloss != 0;
    double *z = c->row, *dz = c->row + c->K;
    memset(&s, 0, sizeof s);
    s.tokens = b->M;
    train_logits(m, a, w, b);
    for (int i = 0; i < b->M; i++) {
        float *logits = c->host + (size_t)i * (size_t)c->K;
        const float *target = b->target + (size_t)i * (size_t)b->target_width;
        for (int k = 0; k < c->K; k++) z[k] = (double)logits[k];
        double loss = train_row_loss(c, backward ? dz : NULL, z, target);
        for (int k = 0; k < c->K && backward; k++) logits[k] = (float)dz[k];
        b->row_loss[i].loss = loss;
        s.loss_sum += loss;
        s.weight += train_row_weight(c, target);
        s.correct += train_row_right(c, z, target);
    }
    if (backward) train_logits_backward(m, a, w, b, dloss);
    return s;
}
static void train_classes_measure(LogRecord *sums, const LossStats *s) {
    if (!s->tokens) return;
    sums->accuracy += (double)s->correct / (double)s->tokens;
    sums->subset_accuracy += (double)s->correct / (double)s->tokens;          /* of several labels a row */
}

static double train_pairs_weight(const Classifier *c, const Dataset *d, size_t slot) {
    (void)c; (void)d; (void)slot;
    return 1;
}
static LossStats train_pairs_loss(const Model *m, const Adapter *a, Workspace *w, const Batch *b, float dloss) {
    Classifier *c = w->classifier;
    LossStats s;
    bool backward = a && dloss != 0;
    memset(&s, 0, sizeof s);
    s.tokens = b->M / 2;
    s.weight = (double)s.tokens;
    s.least = INFINITY;
    s.most = -INFINITY;
    train_logits(m, a, w, b);
    for (int i = 0; i + 1 < b->M; i += 2) {
        double z[2] = {(double)c->host[i], (double)c->host[i + 1]}, dz[2];
        double loss = loss_pair(dz, z, (double)b->target[(size_t)i * (size_t)b->target_width]);
        b->row_loss[i].loss = b->row_loss[i + 1].loss = loss;
        s.loss_sum += loss;
        s.correct += z[0] > z[1];
        s.margins += z[0] - z[1];
        s.rewards += z[0] + z[1];
        s.least = fmin(s.least, fmin(z[0], z[1]));
        s.most = fmax(s.most, fmax(z[0], z[1]));
        for (int k = 0; k < 2 && backward; k++) c->host[i + k] = (float)dz[k];
    }
    if (backward) train_logits_backward(m, a, w, b, dloss);
    return s;
}
static void train_pairs_measure(LogRecord *sums, const LossStats *s) {
    double pairs = (double)s->tokens;
    if (!s->tokens) return;
    sums->accuracy += (double)s->correct / pairs;
    sums->margin += s->margins / pairs;
    sums->mean_reward += s->rewards / (2 * pairs);
    sums->min_reward += s->least;
    sums->max_reward += s->most;
}

void class_counts(int64_t *counts, const EvalResult *e, const Dataset *d) {
    const double *z = e->logits;
    memset(counts, 0, (size_t)e->K * (size_t)(e->K + 1) * sizeof *counts);
    for (size_t i = 0; i < d->slots; i++)
        for (SlotIterator s = slot_begin(d, i); slot_next(&s); z += e->K)
            counts[(int)*s.target * (e->K + 1) + class_likeliest(z, e->K)]++;
}
static void train_finish_classes(EvalResult *e, const Dataset *d) {
    LogRecord *r = &e->record;
    int K = e->K;
    size_t n = 0;
    int64_t *counts = (int64_t *)must_alloc((size_t)K * (size_t)(K + 1) * sizeof *counts);
    LabelScore *each = (LabelScore *)must_alloc((size_t)K * sizeof *each), macro, weighted;
    class_counts(counts, e, d);
    r->accuracy = label_scores(each, &macro, &weighted, counts, K);
    r->balanced_accuracy = class_balanced_accuracy(counts, K);
    r->macro_f1 = macro.f1;
    r->weighted_f1 = weighted.f1;
    if (K == 2) {                           /* of the second class, as scikit-learn's "binary" */
        double *score = (double *)must_alloc((size_t)e->examples * sizeof *score), p[2];
        bool *positive = (bool *)must_alloc((size_t)e->examples * sizeof *positive);
        for (size_t i = 0; i < d->slots; i++)
            for (SlotIterator s = slot_begin(d, i); slot_next(&s); n++) {
                class_probabilities(p, e->logits + 2 * n, 2);
                score[n] = p[1];
                positive[n] = *s.target != 0;
            }
        ClassRanking ranking = class_ranking(score, positive, n);
        r->precision = each[1].precision;
        r->recall = each[1].recall;
        r->f1 = each[1].f1;
        r->roc_auc = ranking.roc_auc;
        r->average_precision = ranking.average_precision;
        r->best_threshold = ranking.threshold;
        r->best_threshold_f1 = ranking.threshold_f1;
        free(score);
        free(positive);
    }
    free(counts);
    free(each);
}
ClassMulti class_labels(LabelScore *each, const EvalResult *e, const Dataset *d) {
    size_t K = (size_t)e->K, count = (size_t)e->examples * K, n = 0;
    bool *answered = (bool *)must_alloc(count * sizeof *answered), *expected = (bool *)must_alloc(count);
    for (size_t i = 0; i < d->slots; i++)
        for (SlotIterator s = slot_begin(d, i); slot_next(&s);)
            for (size_t k = 0; k < K; k++, n++) {
                answered[n] = e->logits[n] > 0;
                expected[n] = s.target[k] != 0;
            }
    ClassMulti multi = class_multi(each, answered, expected, n / K, e->K);
    free(answered);
    free(expected);
    return multi;
}
static void train_finish_labels(EvalResult *e, const Dataset *d) {
    LogRecord *r = &e->record;
    LabelScore *each = (LabelScore *)must_alloc((size_t)e->K * sizeof *each);
    ClassMulti multi = class_labels(each, e, d);
    r->subset_accuracy = multi.subset_accuracy;
    r->micro_f1 = multi.micro_f1;
    r->macro_f1 = multi.macro.f1;
    r->weighted_f1 = multi.weighted.f1;
    free(each);
}
static void train_finish_numbers(EvalResult *e, const Dataset *d) {
    LogRecord *r = &e->record;
    double *y = (double *)must_alloc((size_t)e->examples * sizeof *y);
    size_t n = 0;
    for (size_t i = 0; i < d->slots; i++) for (SlotIterator s = slot_begin(d, i); slot_next(&s);) y[n++] = *s.target;
    ClassRegression x = class_regression(e->logits, y, n);
    r->mse = x.mse;
    r->mae = x.mae;
    r->r2 = x.r2;
    r->pearson = x.pearson;
    r->spearman = x.spearman;
    free(y);
}
static void train_classes_finish(EvalResult *e, const LossStats *s, const Classifier *c, const Dataset *d) {
    e->record.loss = s->weight > 0 ? s->loss_sum / s->weight : NAN;
    if (c->of == METRICS_OF_NUMBERS) train_finish_numbers(e, d);
    else if (c->of == METRICS_OF_LABELS) train_finish_labels(e, d);
    else train_finish_classes(e, d);
}
static void train_pairs_finish(EvalResult *e, const LossStats *s, const Classifier *c, const Dataset *d) {
    (void)e; (void)s; (void)c; (void)d;
}
const Objective objective_classes = {"classification", train_classes_weight, train_classes_loss,
                                     train_classes_measure, train_classes_finish};
const Objective objective_pairs = {"reward", train_pairs_weight, train_pairs_loss, train_pairs_measure,
                                   train_pairs_finish};
static const Objective *objective_of(Task task) {
    return task == TASK_REWARD ? &objective_pairs : task == TASK_CLASSIFICATION ? &objective_classes
         : &objective_tokens;
}

/* ---- evaluation ------------------------------------------------------------------------------------------------ */

/* What an evaluation adds up over its batches, beside its record. */
typedef struct EvalSums { LossStats all; double batches; } EvalSums;

/* A batch of `count` of the data set's slots joins the sums. */
static void train_evaluate_add(EvalResult *result, EvalSums *sums, const Objective *objective, const Batch *b,
                               LossStats s, int count, size_t slots) {
    LogRecord *r = &result->record;
    r->loss += s.loss_sum / (s.weight > 0 ? s.weight : 1) * count / (double)slots;
    objective->measure(r, &s);
    sums->batches++;
    sums->all.loss_sum += s.loss_sum;
    sums->all.entropy_sum += s.entropy_sum;
    sums->all.tokens += s.tokens;
    sums->all.correct += s.correct;
    sums->all.weight += s.weight;
    for (int i = 0, k = 0; i < b->S; i++) {                                   /* k: labelled rows, one after another */
        double loss = 0;
        int64_t tokens = 0;
        for (; k < b->M && b->labelled[k] < b->cu_seqlens[i + 1]; k++, tokens++)
            loss += (double)(float)b->row_loss[k].loss;
        if (!tokens) continue;
        result->perplexities += exp(loss / (double)tokens);
        result->examples++;
    }
}
static void train_evaluate_mean(EvalResult *result, const EvalSums *sums, const Objective *objective,
                                const Classifier *c, const Dataset *d) {
    LogRecord *r = &result->record;
    for (int i = 0; i < LOG_METRICS; i++)
        if (log_metric[i].mean == OVER_MICRO_BATCHES && metric_is_of(&log_metric[i], r->of))
            *log_metric_at(r, &log_metric[i]) /= fmax(sums->batches, 1);
    objective->finish(result, &sums->all, c, d);
    result->tokens = sums->all.tokens;
}

/* hooks: NULL, or a run's, whose stop is asked before every batch; where *stopped then, *result is of no use. */
static bool train_evaluate(const Model *m, const Adapter *a, Workspace *w, const Objective *objective, const Dataset *d,
                           Batch *b, int batch_size, const TrainHooks *hooks, bool *stopped, EvalResult *result,
                           Error *err) {
    const DropoutKey none = {0, 0, 0, 0};
    EvalSums sums;
    memset(&sums, 0, sizeof sums);
    memset(result, 0, sizeof *result);
    result->record.eval = true;
    const Classifier *c = d->target ? w->classifier : NULL;
    if (c) {
        result->record.of = (uint8_t)c->of;
        result->K = c->K;
    }
    if (!train_ids_check(d, m->config.vocab_size, "the data", err)) return false;
    bool ok = true;
    double *logits = NULL;
    if (c) result->logits = logits = (double *)must_alloc(d->count * (size_t)c->K * sizeof *logits);
    for (size_t begin = 0; begin < d->slots && ok; begin += (size_t)batch_size) {
        int count = d->slots - begin < (size_t)batch_size ? (int)(d->slots - begin) : batch_size;
        if (hooks && hooks->stop && (*stopped = hooks->stop(hooks->user))) break;
        batch_build(b, d, NULL, begin, count);
        model_forward(m, a, w, b, none);
        LossStats s = objective->loss(m, a, w, b, 0);
        if (!isfinite(s.loss_sum)) {
            char where[256];
            model_explain_nonfinite(m, a, w, b, none, where, sizeof where);
            ok = fail(err, "the evaluation loss is not finite; %s; lower --learning-rate", where);
        }
        train_evaluate_add(result, &sums, objective, b, s, count, d->slots);
        for (int i = 0; c && i < b->M * c->K; i++) *logits++ = (double)c->host[i];
    }
    if (ok && !(stopped && *stopped)) train_evaluate_mean(result, &sums, objective, c, d);
    else { free(result->logits); result->logits = NULL; }
    return ok;
}
bool model_evaluate(const Model *m, const Adapter *a, Workspace *w, const Dataset *d, Batch *b, int batch_size,
                    EvalResult *result, Error *err) {
    Classifier c, *before = w->classifier;
    memset(&c, 0, sizeof c);
    const ClassConfig *head = adapter_classes(m, a);
    if (d->task == TASK_CAUSAL_LM && !model_speaks(m, a, err)) return false;
    int K = d->label_count ? d->label_count : 1;
    if (d->task != TASK_CAUSAL_LM && head->num_labels != K)
        return fail(err, "the head has %d labels, the data %d; %s; give a model or adapter with a head for them",
                    head->num_labels, K, m->folder);
    if (d->target && !before) {
        if (!classifier_open(&c, d, NULL, b->max_sequences, err)) return false;
        w->classifier = &c;
    }
    bool ok = train_evaluate(m, a, w, objective_of(d->task), d, b, batch_size, NULL, NULL, result, err);
    w->classifier = before;
    classifier_close(&c);
    return ok;
}

/* ---- the log -----------------------------------------------------------------------------------------------------
   One JSON object a line in log.jsonl as the run goes; trainer_state.json with the same records under HF's
   log_history. */

void log_record_json(Text *t, const LogRecord *r) {
    char name[64];
    json_object(t, NULL, JSON_LINE);
    json_print(t, "step", "%lld", (long long)r->step);
    json_print(t, "epoch", "%.10g", r->epoch);
    for (int i = 0; i < LOG_METRICS; i++) {
        if (!(log_metric[i].is & (r->eval ? METRIC_EVAL : METRIC_TRAIN))) continue;
        if (!metric_is_of(&log_metric[i], r->of) || (r->of && !isfinite(metric_value(r, &log_metric[i])))) continue;
        snprintf(name, sizeof name, "%s%s", r->eval ? "eval_" : "", log_metric[i].name);
        json_print(t, name, log_metric[i].log, metric_value(r, &log_metric[i]));
    }
    json_print(t, r->eval ? "eval_num_tokens" : "num_tokens", "%lld", (long long)r->num_tokens);
    json_end(t);
}
void log_record_text(Text *t, const LogRecord *r) {
    const char *gap = "";
    for (int i = 0; i < LOG_METRICS; i++) {
        const char *format = r->eval ? log_metric[i].eval_text : log_metric[i].train_text;
        double value = metric_value(r, &log_metric[i]);
        if (!format || !metric_is_of(&log_metric[i], r->of) || (r->of && !isfinite(value))) continue;
        text_print(t, "%s", gap);
        text_print(t, format, log_metric[i].is & METRIC_PERCENT ? 100 * value : value);
        gap = r->eval ? ", " : "  ";
    }
}

const char *const strategy_name[STRATEGY_COUNT] = {"no", "steps", "epoch"};
const char *const nonfinite_name[NONFINITE_COUNT] = {"stop", "skip"};
const char *const recompute_name[RECOMPUTE_COUNT] = {"none", "gate_up", "layer"};

/* The best evaluation of a history and how many came after it in vain, as transformers' Trainer and
   EarlyStoppingCallback count: the one before training does not compete; one that does not beat the best so far by more
   than the threshold uses up patience. */
typedef struct LogBest { int64_t step; double value; int in_vain; } LogBest;
static LogBest log_best(const LogRecord *history, const TrainOptions *o) {
    LogBest best = {0, NAN, 0};
    const Metric *m = metric_find(o->metric_for_best_model ? o->metric_for_best_model : "loss");
    bool greater = o->greater_is_better < 0 ? (m->is & METRIC_GREATER) != 0 : o->greater_is_better != 0;
    for (ptrdiff_t i = 0; i < arrlen(history); i++) {
        if (!history[i].eval || !history[i].step) continue;
        double value = metric_value(&history[i], m);
        bool better = isfinite(value) && (!best.step || (greater ? value > best.value : value < best.value));
        bool enough = better && (!best.step || fabs(value - best.value) > o->early_stopping_threshold);
        best.in_vain = enough ? 0 : best.in_vain + 1;
        if (better) { best.step = history[i].step; best.value = value; }
    }
    return best;
}

/* All that one run holds; train_run opens it, train_loop works in it, run_close gives it back whatever happened. */
typedef struct Run {
    TrainOptions *o;                        /* the run's own copy: --fit changes it */
    const TrainHooks *hooks;
    const Objective *objective;
    Team team;
    const Model *model;                     /* own, opened here; or a sweep's, which stays open */
    Model own;
    Adapter adapter;
    Workspace work;
    Classifier classifier;                  /* of classification and reward */
    Dataset train, eval;
    Batch batch;
    RunPlan plan;
    MemoryTable memory;
    int64_t *order;                         /* [slots] */
    LogRecord *history;                     /* stb_ds array */
    FolderLock lock;
    FILE *log;
    char log_new[PATH_MAX];                 /* its name until the run begins */
    bool log_torn, plan_only;
    uint64_t model_hash, tokenizer_hash;    /* of a run that writes or reads checkpoints */
    int64_t files_changed;                  /* sum of the model files' times; 0: all of them was hashed */
    /* where it is */
    int64_t step, num_tokens, skipped;      /* optimizer steps taken, tokens they saw, steps among them left out */
    double epoch, start;                    /* epochs, with fraction; seconds_now when this process began to train */
    LogBest best;
    /* sums since the last log line, without steps that were left out; seconds and operations are those of steps */
    LogRecord window;                       /* sums where Metric.mean says over what; num_tokens */
    int64_t window_steps, window_micro;     /* over so many steps, so many micro-batches */
    double window_seconds, window_flops;
    /* sums over the run */
    double train_loss, training;            /* of every counted step's loss; seconds in steps, evaluations apart */
    double padded, step_padded;             /* tokens of all steps and of this one, had their batches been padded */
    /* of this process alone */
    double flops, ceiling;                  /* operations so far; operations a second that the machine could do */
    double eval_seconds; int64_t eval_count;      /* spent in so many evaluations */
} Run;

static void run_warn(const Run *run, const char *format, ...) {
    char text[sizeof(Error) + 256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (run->hooks && run->hooks->on_warning) run->hooks->on_warning(run->hooks->user, text);
}

static void run_log_line(Run *run, const LogRecord *r) {
    if (run->team.rank) return;
    Text t = TEXT_EMPTY;
    log_record_json(&t, r);
    text_print(&t, "\n");
    bool whole = fwrite(t.at, 1, t.length, run->log) == t.length;
    if ((fflush(run->log) || !whole) && !run->log_torn) {
        run->log_torn = true;
        run_warn(run, "log.jsonl misses lines: %s; %s; training goes on", strerror(errno), run->o->output);
    }
    text_free(&t);
}
static void run_log(Run *run, const LogRecord *r) {
    arrput(run->history, *r);
    run_log_line(run, r);
    if (run->hooks && run->hooks->on_log) run->hooks->on_log(run->hooks->user, r);
}

/* What transformers calls total_flos: 6 operations for every token of the batches, padding included, and every
   parameter but the embedding's (trainer.py, floating_point_ops). Packed rows it does not pad either. */
static double run_padded_tokens(const Run *run, const Batch *b) {
    int longest = 0;
    for (int s = 0; s < b->S; s++) {
        int length = b->cu_seqlens[s + 1] - b->cu_seqlens[s];
        if (length > longest) longest = length;
    }
    return run->o->data_options.packing ? (double)b->N : (double)b->S * (double)longest;
}
static double run_samples_seen(const Run *run) {
    const RunPlan *p = &run->plan;
    return p->steps_per_epoch ? (double)run->step / (double)p->steps_per_epoch * (double)run->train.slots : 0;
}
static double run_total_flos(const Run *run) {
    const Model *m = run->model;
    size_t embedding = (size_t)m->config.vocab_size * (size_t)m->config.hidden_size;
    return 6 * run->padded * (double)(model_parameters(m) - embedding + run->adapter.param_count);
}

/* The last record of log_history, as Trainer.train() ends it. */
static void log_result_json(Text *t, const Run *run, const TrainResult *result) {
    double runtime = fmax(result->seconds, 1e-9), samples = run_samples_seen(run), micro = (double)run->window_micro;
    json_object(t, NULL, JSON_LINE);
    json_print(t, "step", "%lld", (long long)run->step);
    json_print(t, "epoch", "%.10g", run->epoch);
    json_print(t, "train_loss", "%.9g", result->train_loss);
    json_print(t, "train_runtime", "%.4f", runtime);
    json_print(t, "train_samples_per_second", "%.3f", samples / runtime);
    json_print(t, "train_steps_per_second", "%.3f", (double)run->step / runtime);
    json_print(t, "total_flos", "%.1f", run_total_flos(run));
    for (int i = 0; i < LOG_METRICS && run->window_micro; i++) {              /* TRL adds what came after the last */
        const Metric *m = &log_metric[i];
        if (m->mean == OVER_MICRO_BATCHES && metric_is_of(m, run->classifier.of))
            json_print(t, m->name, m->log, metric_value(&run->window, m) / micro);
    }
    if (run->window_micro) json_print(t, "num_tokens", "%lld", (long long)run->num_tokens);
    json_end(t);
}

static bool log_trainer_state(const Run *run, const TrainResult *result, const char *folder, Error *err) {
    const TrainOptions *o = run->o;
    const RunPlan *plan = &run->plan;
    char best[PATH_MAX + 32];
    Text t = TEXT_EMPTY;
    snprintf(best, sizeof best, "%s/checkpoint-%lld", o->output, (long long)result->best_step);
    json_object(&t, NULL, JSON_LINES);
    if (result->best_step) {
        json_print(&t, "best_global_step", "%lld", (long long)result->best_step);
        json_print(&t, "best_metric", "%.9g", result->best_metric);
    } else {
        json_string(&t, "best_global_step", NULL);
        json_string(&t, "best_metric", NULL);
    }
    json_string(&t, "best_model_checkpoint", result->best_step && o->load_best_model_at_end ? best : NULL);
    json_print(&t, "epoch", "%.10g", run->epoch);
    json_print(&t, "eval_steps", "%d", o->eval_steps > 0 ? o->eval_steps : 500);
    json_print(&t, "global_step", "%lld", (long long)run->step);
    json_bool(&t, "is_hyper_param_search", false);
    json_bool(&t, "is_local_process_zero", true);
    json_bool(&t, "is_world_process_zero", true);
    json_list(&t, "log_history", JSON_LINES);
    for (ptrdiff_t i = 0; i < arrlen(run->history); i++) log_record_json(&t, &run->history[i]);
    log_result_json(&t, run, result);
    json_end(&t);
    json_print(&t, "logging_steps", "%d", o->logging_steps);
    json_print(&t, "max_steps", "%lld", (long long)plan->total_steps);
    json_print(&t, "num_input_tokens_seen", "%lld", (long long)run->num_tokens);
    json_print(&t, "num_train_epochs", "%lld", (long long)plan->epochs);
    json_print(&t, "save_steps", "%d", o->save_steps);
    json_object(&t, "stateful_callbacks", JSON_LINE);
    json_end(&t);
    json_print(&t, "total_flos", "%.1f", run_total_flos(run));
    json_print(&t, "train_batch_size", "%d", o->per_device_train_batch_size);
    json_string(&t, "trial_name", NULL);
    json_string(&t, "trial_params", NULL);
    json_end(&t);
    text_string(&t, "\n");
    return text_write(&t, folder, "trainer_state.json", err);
}

/* Says what may take a while; NULL: the steps go on. */
#ifdef __GNUC__
__attribute__((format(printf, 2, 3)))
#endif
static void run_phase(const Run *run, const char *format, ...) {
    char text[PATH_MAX + 64];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (run->hooks && run->hooks->on_phase) run->hooks->on_phase(run->hooks->user, text);
}

/* Evaluations between step `step` and the end. */
static int64_t run_evaluations_left(const Run *run, int64_t step) {
    const TrainOptions *o = run->o;
    int64_t every = o->eval_steps > 0 ? o->eval_steps : o->logging_steps, total = run->plan.total_steps;
    if (o->eval_strategy == STRATEGY_EPOCH) every = run->plan.steps_per_epoch;
    int64_t due = o->eval_strategy == STRATEGY_NO ? 0 : total / every - step / every;
    bool last = o->eval_strategy == STRATEGY_NO || total % every;             /* after the last step in any case */
    return run->eval.slots ? due + (last && step < total) : 0;
}

static bool run_evaluate(Run *run, TrainResult *result, Error *err) {
    if (!run->eval.slots) return true;
    EvalResult e;
    double start = seconds_now();
    run_phase(run, "evaluating %lld examples", (long long)run->eval.stats.examples);
    bool stopped = false;
    if (!train_evaluate(run->model, &run->adapter, &run->work, run->objective, &run->eval, &run->batch,
                        run->o->per_device_eval_batch_size, run->hooks, &stopped, &e, err)) return false;
    if (stopped) { result->stopped = true; return true; }                     /* whoever resumes evaluates then */
    LogRecord *r = &e.record;
    r->step = run->step;
    r->total_steps = run->plan.total_steps;
    r->num_tokens = run->num_tokens;
    r->epoch = run->epoch;
    r->seconds = seconds_now() - start;
    if (!isfinite(result->first_eval_loss)) result->first_eval_loss = r->loss;
    result->last_eval_loss = r->loss;
    if (run->hooks && run->hooks->on_evaluation) run->hooks->on_evaluation(run->hooks->user, &e, &run->eval);
    run_log(run, r);
    free(e.logits);
    run->eval_seconds += seconds_now() - start;          /* with what the hook does at an evaluation */
    run->eval_count++;
    run->best = log_best(run->history, run->o);
    result->best_step = run->best.step;
    result->best_metric = run->best.value;
    return true;
}

/* Useful operations of one training micro-batch: 2 a weight and token forward and 2 for dx (the head: of labelled
   tokens only), 6 an adapter parameter, attention 2 T^2 H D forward and 2.5 times that backward; computing something
   again does not count. */
static double train_flops(const Model *m, const Adapter *a, const Batch *b) {
    const ModelConfig *c = &m->config;
    double weights = (double)m->layer_weights, N = (double)b->N, squares = 0;
    double L = (double)c->num_hidden_layers, H = (double)c->num_attention_heads, D = (double)c->head_dim;
    double outputs = a->score ? (double)a->config.classes.num_labels : (double)c->vocab_size;
    for (int s = 0; s < b->S; s++) {
        double length = (double)(b->cu_seqlens[s + 1] - b->cu_seqlens[s]);
        squares += length * length;
    }
    return 4 * weights * N + 4 * outputs * (double)c->hidden_size * (double)b->M +
           6 * (double)a->param_count * N + 7 * squares * H * D * L;
}

/* This process's share of a step's micro-batches, `size` slots each of [begin, end) of run->order: gradients of dloss *
   (sum of losses) are added to a->grad, their tokens and metrics to *r. Returns the sum of the losses; one that is not
   finite ends it. */
static double train_micro_batches(Run *run, int64_t begin, int64_t end, int64_t size, DropoutKey key, float dloss,
                                  LogRecord *r) {
    const Objective *objective = run->objective;
    const Model *m = run->model;
    Adapter *a = &run->adapter;
    Workspace *w = &run->work;
    Batch *b = &run->batch;
    double loss = 0;
    for (int64_t first = begin; first < end && isfinite(loss); first += size, key.micro_batch++) {
        if ((int)key.micro_batch % run->team.size != run->team.rank) continue;
        int slots = (int)(first + size < end ? size : end - first);
        batch_build(b, &run->train, run->order, (size_t)first, slots);        /* N tokens of S sequences, M labelled */
        model_forward(m, a, w, b, key);                                       /* w->normed [N,C] */
        LossStats s = objective->loss(m, a, w, b, dloss);                     /* w->d_normed [N,C] */
        if (dloss != 0) model_backward(m, a, w, b, key);                      /* a->grad [param_count] += */
        r->num_tokens += b->N;
        run->flops += train_flops(m, a, b);
        run->step_padded += run_padded_tokens(run, b);
        loss += s.loss_sum;
        if (isfinite(loss)) objective->measure(r, &s);
    }
    return loss;
}

/* What each process has of a step becomes what all have. */
static void train_reduce(Run *run, LogRecord *r, double *loss) {
    double sums[3 + LOG_METRICS] = {*loss, (double)r->num_tokens, run->step_padded};
    for (int i = 0; i < LOG_METRICS; i++) sums[3 + i] = *log_metric_at(r, &log_metric[i]);
    team_reduce(&run->team, run->adapter.grad, run->adapter.param_count);
    team_sum(&run->team, sums, 3 + LOG_METRICS);
    *loss = sums[0];
    r->num_tokens = (int64_t)sums[1];
    run->step_padded = sums[2];
    for (int i = 0; i < LOG_METRICS; i++) *log_metric_at(r, &log_metric[i]) = sums[3 + i];
}

/* The gradient of one optimizer step: slots [begin, end) of run->order, `size` of them a micro-batch, into a->grad. The
   step's loss is sum of losses / sum of weights over all its micro-batches, so that how they are cut changes nothing.
   *r: loss (not finite as soon as one is not), tokens, metrics summed over micro-batches. */
static void train_gradient(Run *run, int64_t begin, int64_t end, int64_t size, DropoutKey key, LogRecord *r) {
    double weight = 0;
    for (int64_t i = begin; i < end; i++)
        weight += run->objective->weight(&run->classifier, &run->train, (size_t)run->order[i]);
    memset(r, 0, sizeof *r);
    r->of = (uint8_t)run->classifier.of;
    run->step_padded = 0;
    adapter_zero_grad(&run->adapter);
    double loss = train_micro_batches(run, begin, end, size, key, weight > 0 ? 1.0f / (float)weight : 0, r);
    train_reduce(run, r, &loss);
    r->loss = weight > 0 ? loss / weight : 0;
}

/* Writes slots [begin, end) of run->order, and the adapter that met them, as OUTPUT/nonfinite-STEP: `folder`, whose
   batch.jsonl can be trained on as it is. */
static bool train_nonfinite_write(const Run *run, int64_t begin, int64_t end, char folder[PATH_MAX], Error *err) {
    char name[64];
    Text t = TEXT_EMPTY;
    snprintf(name, sizeof name, "nonfinite-%lld", (long long)run->step + 1);
    path_in(folder, PATH_MAX, run->o->output, name);
    for (int64_t i = begin; i < end; i++) {
        for (SlotIterator e = slot_begin(&run->train, (size_t)run->order[i]); slot_next(&e);) {
            json_object(&t, NULL, JSON_LINE);
            for (int part = 0; part < 2; part++) {
                json_list(&t, part ? "labels" : "input_ids", JSON_LINE);
                for (size_t n = 0; n < e.count; n++) json_print(&t, NULL, "%d", part ? e.labels[n] : e.ids[n]);
                json_end(&t);
            }
            json_end(&t);
            text_string(&t, "\n");
        }
    }
    bool ok = adapter_save(&run->adapter, folder, err) && text_write(&t, folder, "batch.jsonl", err);
    text_free(&t);
    return ok;
}

/* Something of slots [begin, end) was not finite: finds the first of them that alone is so (there may be none, only all
   together), and says in err which tensor of which layer, and where the batch is to be found. */
static void train_nonfinite_explain(Run *run, int64_t begin, int64_t end, DropoutKey key, Error *err) {
    const Adapter *a = &run->adapter;
    char where[512] = "no example alone", parameter[256], folder[PATH_MAX];
    const char *what = "gradient";
    LogRecord r;
    double norm = r.loss = 0;
    for (int64_t i = begin; i < end && isfinite(r.loss) && isfinite(norm); i++) {
        train_gradient(run, i, i + 1, 1, key, &r);
        norm = adapter_grad_norm(a);
    }
    if (!isfinite(r.loss)) {
        what = "loss";
        model_explain_nonfinite(run->model, a, &run->work, &run->batch, key, where, sizeof where);
    } else if (!isfinite(norm)) {
        float *grad = (float *)must_alloc(a->param_count * sizeof(float));
        backend_download(grad, a->grad, a->param_count * sizeof(float));
        int64_t bad = first_nonfinite(grad, a->param_count);
        free(grad);
        adapter_parameter_name(a, bad < 0 ? 0 : (size_t)bad, parameter, sizeof parameter);
        snprintf(where, sizeof where, "first in the gradient of %s, data row %lld", parameter,
                 (long long)run->batch.row[0]);
    }
    /* of a run that skips, the first three are enough */
    bool written = run->skipped < 3 && train_nonfinite_write(run, begin, end, folder, err);
    fail(err, "the %s is not finite; step %lld, %s; lower --learning-rate, or look at %s%s", what,
         (long long)run->step + 1, where, written ? folder : "that row",
         written ? ": the batch and the adapter as they were" : "");
}

/* One optimizer step over slots [begin, end) of run->order. With --on-nonfinite skip a step that is not finite changes
   nothing, and its loss is NaN. */
static bool train_step(Run *run, int64_t begin, int64_t end, LogRecord *r, Error *err) {
    const TrainOptions *o = run->o;
    Adapter *a = &run->adapter;
    const Optimizer how = {o->adam_beta1, o->adam_beta2, o->adam_epsilon, o->weight_decay, o->max_grad_norm};
    double factor = schedule_factor(o->lr_scheduler_type, run->step, run->plan.warmup, run->plan.total_steps);
    double rate = o->learning_rate * factor, norm = NAN;
    DropoutKey key = {a->config.lora_dropout, (uint64_t)o->seed, (uint32_t)run->step, 0};
    StepOutcome outcome;
    do {                                    /* again where fp16 overflowed: no data is lost */
        train_gradient(run, begin, end, o->per_device_train_batch_size, key, r);
        outcome = isfinite(r->loss) ? optimizer_step(a, &how, rate, &norm) : STEP_NONFINITE;
    } while (outcome == STEP_OVERFLOW);
    run->padded += run->step_padded;
    r->learning_rate = rate;
    r->grad_norm = norm;
    if (outcome == STEP_TAKEN) return true;
    train_nonfinite_explain(run, begin, end, key, err);
    if (o->on_nonfinite == NONFINITE_STOP) return false;
    run->skipped++;
    run_warn(run, "step left out: %s", err->text);
    r->loss = NAN;
    return true;
}

/* ---- checkpoints --------------------------------------------------------------------------------------------------
   output/checkpoint-N holds a PEFT adapter (without LoRA trained.safetensors: what is trained, in fp32),
   optimizer.safetensors (AdamW's moments) and checkpoint.json: where the run was, its history, and the options that
   decide its numbers. It is written under another name and renamed when every file is on the disk: a folder that is
   called checkpoint-N is whole. Resumed, a run goes on to the very bits of one that was never stopped. */

/* The first line of checkpoint.json; the checksum is over the moments, the adapter, its configuration and the lines
   below. */
#define CHECKPOINT_LINE "{\"checksum\": \"%016llx\",\n"
enum { CHECKPOINT_LINE_BYTES = 33, CHECKPOINT_FORMAT = 2 };

/* What the base model's numbers are made of: its configuration, and names, shapes and values of its tensors. A model of
   up to 1 GiB is read whole, of a larger one 4 KiB of every so many, evenly spread: its *files_changed, the sum of the
   files' times, says what that may have missed. */
static uint64_t checkpoint_model_hash(const Model *m, int64_t *files_changed) {
    const size_t BLOCK = 4096;
    uint64_t hash = hash_bytes(HASH_START, &m->config, offsetof(ModelConfig, family));
    size_t own = offsetof(ModelConfig, embedding_scale);      /* what only families with fields of their own set */
    if (m->config.family->own[0]) hash = hash_bytes(hash, (const char *)&m->config + own, sizeof m->config - own);
    size_t total = 0;
    *files_changed = 0;
    for (ptrdiff_t i = 0; i < arrlen(m->files.files); i++) {
        struct stat st;
        total += m->files.files[i].bytes;
        if (!stat(m->files.files[i].path, &st)) *files_changed += (int64_t)st.st_mtime;
    }
    size_t stride = (total >> 30) + 1;
    if (stride == 1) *files_changed = 0;    /* nothing was missed */
    ptrdiff_t count = shlen(m->files.table);
#pragma omp parallel for schedule(dynamic) reduction(^ : hash)
    for (ptrdiff_t i = 0; i < count; i++) {                                   /* any order of files */
        const Tensor *t = &m->files.table[i].value;
        uint64_t h = hash_bytes(HASH_START, t->name, strlen(t->name));
        h = hash_bytes(h, t->shape, (size_t)t->ndim * sizeof *t->shape);
        for (size_t at = 0; at < t->bytes; at += stride * BLOCK)
            h = hash_bytes(h, (const char *)t->data + at, t->bytes - at < BLOCK ? t->bytes - at : BLOCK);
        file_release_pages(t->data, t->bytes);
        hash ^= h;
    }
    return hash;
}

static void checkpoint_hex(Text *t, const char *name, uint64_t hash) {
    json_print(t, name, "\"%016llx\"", (unsigned long long)hash);
}
static void checkpoint_lora_identity(Text *t, const LoraConfig *c, int layers) {
    Text modules = TEXT_EMPTY, transformed = TEXT_EMPTY;
    for (int j = 0; j < MODULE_COUNT; j++)
        if (c->target[j]) text_print(&modules, "%.*s ", (int)strlen(module_name[j]) - 5, module_name[j]);
    for (int l = 0; c->layers && l < layers; l++) if (c->layers[l]) text_print(&transformed, "%d ", l);
    uint64_t parts = c->parts ? hash_bytes(HASH_START, c->parts, (size_t)arrlen(c->parts) * sizeof *c->parts) : 0;
    json_print(t, "lora_r", "%d", c->r);
    json_print(t, "lora_alpha", "%.9g", (double)c->lora_alpha);
    json_print(t, "use_rslora", "%d", c->use_rslora);
    if (c->init != LORA_INIT_TRUE) json_string(t, "init_lora_weights", lora_init_name[c->init]);
    json_bytes(t, "target_modules", modules.at, modules.length);
    json_bytes(t, "layers_to_transform", transformed.at, transformed.length);
    checkpoint_hex(t, "lora_parts", parts);
    text_free(&modules);
    text_free(&transformed);
}

/* Which tensors of the model are trained themselves; nothing where LoRA is all. */
static void checkpoint_trained_identity(Text *t, const Adapter *a, const LoraConfig *config) {
    uint64_t hash = HASH_START;
    for (const Trainable *x = a->list, *end = x + arrlen(a->list); x < end; x++)
        if (x->base.data) hash = hash_bytes(hash, x->name, strlen(x->name));
    if (hash == HASH_START) return;
    Text train = TEXT_EMPTY;
    train_text(&train, config->train, config->last_layers);
    json_string(t, "train", train.at);
    checkpoint_hex(t, "trained", hash);
    text_free(&train);
}

static void run_identify(Run *run) {
    if (!run->model_hash) run->model_hash = checkpoint_model_hash(run->model, &run->files_changed);
}

/* What decides a run's numbers beside model, data and adapter: the options of TRAIN_DECIDES; warm-up and length of the
   run as the numbers of steps that they came to. What is not here (paths, logging, saving) may differ from one part of
   a run to the next. */
typedef enum { RUN_DECIDES_int, RUN_DECIDES_int64_t, RUN_DECIDES_bool, RUN_DECIDES_double, RUN_DECIDES_TrainGiven,
               RUN_DECIDES_Schedule, RUN_DECIDES_OptimizerType } RunDecidesType;
static const struct { const char *name; RunDecidesType type; bool of_plan; size_t at; } run_decides[] = {
#define OPTION(type, name) {#name, RUN_DECIDES_##type, false, offsetof(TrainOptions, name)},
    TRAIN_DECIDES(OPTION)
#undef OPTION
    {"packing", RUN_DECIDES_bool, false, offsetof(TrainOptions, data_options) + offsetof(DataOptions, packing)},
    {"warmup", RUN_DECIDES_int64_t, true, offsetof(RunPlan, warmup)},
    {"total_steps", RUN_DECIDES_int64_t, true, offsetof(RunPlan, total_steps)}
};

/* The options, the base model and the data that decide a run's numbers, as members of a JSON object. The adapter is the
   options', or --init-adapter's. */
static void checkpoint_identity(Text *t, const Run *run) {
    const TrainOptions *o = run->o;
    checkpoint_hex(t, "model", run->model_hash);
    checkpoint_hex(t, "tokenizer", run->tokenizer_hash);
    checkpoint_hex(t, "data", run->train.hash);
    checkpoint_hex(t, "eval_data", run->eval.slots ? run->eval.hash : 0);
    LoraConfig none;                        /* without LoRA its options say nothing */
    memset(&none, 0, sizeof none);
    none.train = o->lora.train;
    none.last_layers = o->lora.last_layers;
    const LoraConfig *lora = o->init_adapter ? &run->adapter.config : adapter_has_lora(&o->lora) ? &o->lora : &none;
    checkpoint_lora_identity(t, lora, run->model->config.num_hidden_layers);
    json_print(t, "lora_dropout", "%.9g", adapter_has_lora(lora) ? (double)o->lora.lora_dropout : 0);
    checkpoint_trained_identity(t, &run->adapter, lora);
    if (run->objective != &objective_tokens) json_string(t, "objective", run->objective->name);
    if (run->classifier.K) {
        checkpoint_hex(t, "class_weights", run->classifier.class_weights ?
                       hash_bytes(HASH_START, run->classifier.class_weights, (size_t)run->classifier.K *
                                  sizeof(float)) : 0);
        json_print(t, "pad_token_id", "%d", run->train.pad_token_id);
        json_print(t, "label_smoothing", "%.9g", run->classifier.label_smoothing);
        json_print(t, "focal_gamma", "%.9g", run->classifier.focal_gamma);
    }
    for (size_t i = 0; i < sizeof run_decides / sizeof *run_decides; i++) {
        const char *name = run_decides[i].name;
        const void *at = (run_decides[i].of_plan ? (const char *)&run->plan : (const char *)o) + run_decides[i].at;
        switch (run_decides[i].type) {
        case RUN_DECIDES_int: json_print(t, name, "%d", *(const int *)at); break;
        case RUN_DECIDES_int64_t: json_print(t, name, "%lld", (long long)*(const int64_t *)at); break;
        case RUN_DECIDES_bool: json_print(t, name, "%d", *(const bool *)at); break;
        case RUN_DECIDES_double: json_print(t, name, "%.12g", *(const double *)at); break;
        case RUN_DECIDES_TrainGiven:
            if (*(const TrainGiven *)at > 0) json_print(t, name, "%.12g", *(const TrainGiven *)at);
            break;
        case RUN_DECIDES_Schedule: json_string(t, name, schedule_name[*(const Schedule *)at]); break;
        case RUN_DECIDES_OptimizerType:
            if (*(const OptimizerType *)at) json_string(t, name, optimizer_name[*(const OptimizerType *)at]);
            break;
        }
    }
}

/* The numbers that say where a run is, in the order and the lines of checkpoint.json: checkpoint_write prints them,
   checkpoint_read takes them back. */
typedef enum { CHECKPOINT_INT, CHECKPOINT_INT64, CHECKPOINT_FLOAT, CHECKPOINT_DOUBLE } CheckpointType;
typedef struct CheckpointNumber {
    const char *name;
    CheckpointType type;
    void *at;
    double high;                            /* a whole number from 0 to high; 0: any, null where it is not finite */
    bool line;                              /* it begins a line of the file */
} CheckpointNumber;
enum { CHECKPOINT_NUMBERS = 16 };
static void checkpoint_numbers(CheckpointNumber list[CHECKPOINT_NUMBERS], Run *run, TrainResult *result) {
    Adapter *a = &run->adapter;
    const double whole = 0x1p53;
    const CheckpointNumber all[CHECKPOINT_NUMBERS] = {
        {"files_changed", CHECKPOINT_INT64, &run->files_changed, whole, false},
        {"padded", CHECKPOINT_DOUBLE, &run->padded, whole, false},
        {"step", CHECKPOINT_INT64, &run->step, whole, true},
        {"adam_step", CHECKPOINT_INT, &a->adam_step, INT_MAX - 1, false},
        {"scale_age", CHECKPOINT_INT, &a->scale_age, 2000, false},
        {"num_tokens", CHECKPOINT_INT64, &run->num_tokens, whole, false},
        {"window_steps", CHECKPOINT_INT64, &run->window_steps, whole, false},
        {"window_micro", CHECKPOINT_INT64, &run->window_micro, whole, false},
        {"skipped", CHECKPOINT_INT64, &run->skipped, whole, false},
        {"loss_scale", CHECKPOINT_FLOAT, &a->loss_scale, (double)OPTIMIZER_LOSS_SCALE_MAX, true},
        {"epoch", CHECKPOINT_DOUBLE, &run->epoch, 0, false},
        {"train_loss", CHECKPOINT_DOUBLE, &run->train_loss, 0, false},
        {"training", CHECKPOINT_DOUBLE, &run->training, 0, false},
        {"window_seconds", CHECKPOINT_DOUBLE, &run->window_seconds, 0, false},
        {"first_eval_loss", CHECKPOINT_DOUBLE, &result->first_eval_loss, 0, true},
        {"last_eval_loss", CHECKPOINT_DOUBLE, &result->last_eval_loss, 0, false}};
    memcpy(list, all, sizeof all);
}
static void checkpoint_number_json(Text *t, const CheckpointNumber *n) {
    double v = n->type == CHECKPOINT_INT ? (double)*(const int *)n->at
             : n->type == CHECKPOINT_INT64 ? (double)*(const int64_t *)n->at
             : n->type == CHECKPOINT_FLOAT ? (double)*(const float *)n->at : *(const double *)n->at;
    if (n->line) json_new_line(t);
    if (isfinite(v)) json_print(t, n->name, n->high > 0 ? "%.0f" : "%.17g", v);
    else json_string(t, n->name, NULL);
}
static bool checkpoint_number_parse(const CheckpointNumber *n, const Json *root) {
    const Json *j = json_get(root, n->name);
    bool null = j && j->type == JSON_NULL && !(n->high > 0);
    if (!null && !(j && j->type == JSON_NUMBER && isfinite(j->number))) return false;
    double v = null ? NAN : j->number;
    if (n->high > 0 && !(v >= 0 && v <= n->high && v == floor(v))) return false;
    switch (n->type) {
    case CHECKPOINT_INT: *(int *)n->at = (int)v; break;
    case CHECKPOINT_INT64: *(int64_t *)n->at = (int64_t)v; break;
    case CHECKPOINT_FLOAT: *(float *)n->at = (float)v; break;
    case CHECKPOINT_DOUBLE: *(double *)n->at = v; break;
    }
    return true;
}

/* Every field of a record, exactly (the log's own lines round): four whole numbers, then its doubles, null where one
   has no value. Zeros at the end are left out, as are the fields that an earlier version did not know. */
enum { CHECKPOINT_RECORD_DOUBLES = (sizeof(LogRecord) - offsetof(LogRecord, epoch)) / sizeof(double),
       CHECKPOINT_RECORD_LEAST = (offsetof(LogRecord, accuracy) - offsetof(LogRecord, epoch)) / sizeof(double) };
static void checkpoint_record_json(Text *t, const char *name, const LogRecord *r) {
    const double *v = (const double *)((const char *)r + offsetof(LogRecord, epoch));
    int count = CHECKPOINT_RECORD_DOUBLES;
    while (count > CHECKPOINT_RECORD_LEAST && v[count - 1] == 0) count--;
    json_list(t, name, JSON_LINE);
    json_print(t, NULL, "%d", r->eval);
    json_print(t, NULL, "%lld", (long long)r->step);
    json_print(t, NULL, "%lld", (long long)r->total_steps);
    json_print(t, NULL, "%lld", (long long)r->num_tokens);
    for (int i = 0; i < count; i++) {
        if (isfinite(v[i]) || !r->of) json_print(t, NULL, "%.17g", v[i]);
        else json_string(t, NULL, NULL);
    }
    json_end(t);
}
/* of: METRICS_OF_ that the run learns. */
static bool checkpoint_record_parse(LogRecord *r, const Json *j, int of) {
    const int whole = 4;
    if (!j || j->type != JSON_ARRAY || (int)j->count < whole + CHECKPOINT_RECORD_LEAST ||
        (int)j->count > whole + CHECKPOINT_RECORD_DOUBLES) return false;
    double v[4 + CHECKPOINT_RECORD_DOUBLES] = {0};
    int i = 0;
    for (const Json *e = j->child; e; e = e->next) {
        bool none = e->type == JSON_NULL && i >= whole && of;
        if (e->type != JSON_NUMBER && !none) return false;
        v[i++] = none ? NAN : e->number;
    }
    for (i = 1; i < whole; i++) if (!(v[i] >= 0 && v[i] <= 0x1p53 && v[i] == floor(v[i]))) return false;
    r->eval = v[0] != 0;
    r->of = (uint8_t)of;
    r->step = (int64_t)v[1];
    r->total_steps = (int64_t)v[2];
    r->num_tokens = (int64_t)v[3];
    memcpy((char *)r + offsetof(LogRecord, epoch), v + whole, CHECKPOINT_RECORD_DOUBLES * sizeof *v);
    return true;
}

/* Removes the files that a checkpoint is made of; what else lies in its folder is somebody else's, and stays.
   checkpoint.json goes first: without it the folder is no checkpoint any more; the optimizer's file last: with that
   alone it is what a killed removal left (run_tidy). */
static void checkpoint_remove(const char *folder) {
    static const char *const files[] = {"checkpoint.json", "adapter_config.json", "adapter_model.safetensors",
                                        "trained.safetensors", "run.json"};
    const int count = sizeof files / sizeof *files;
    char path[PATH_MAX];
    path_in(path, sizeof path, folder, files[0]);
    unlink(path);
    CRASH_POINT();
    DIR *d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d));) {
        bool ours = temporary_of(e->d_name, "optimizer.safetensors");
        for (int i = 0; i < count; i++) ours |= !strcmp(e->d_name, files[i]) || temporary_of(e->d_name, files[i]);
        path_in(path, sizeof path, folder, e->d_name);
        if (ours) unlink(path);
        CRASH_POINT();
    }
    if (d) closedir(d);
    path_in(path, sizeof path, folder, "optimizer.safetensors");
    unlink(path);
    CRASH_POINT();
    rmdir(folder);
}
/* N of a name checkpoint-N, written as this program writes it, or -1. */
static int64_t checkpoint_step(const char *name) {
    char again[64];
    long long step = -1;
    if (sscanf(name, "checkpoint-%lld", &step) != 1 || step < 0) return -1;
    snprintf(again, sizeof again, "checkpoint-%lld", step);
    return strcmp(name, again) ? -1 : step;
}
/* The steps of the checkpoints in a folder: how many, the newest, and the oldest other than `keep`. */
typedef struct Checkpoints { int64_t newest, oldest; int count; } Checkpoints;
static Checkpoints checkpoints_list(const char *folder, int64_t keep) {
    Checkpoints c = {-1, -1, 0};
    char path[PATH_MAX];
    DIR *d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d));) {
        int64_t step = checkpoint_step(e->d_name);
        path_in(path, sizeof path, folder, e->d_name);
        if (step < 0 || !file_exists(path, "checkpoint.json")) continue;
        if (step > c.newest) c.newest = step;
        if ((c.oldest < 0 || step < c.oldest) && step != keep) c.oldest = step;
        c.count++;
    }
    if (d) closedir(d);
    return c;
}
bool train_can_resume(const char *output) { return checkpoints_list(output, -1).count > 0; }

/* Removes what a run that was killed has left half written or half removed; nobody else may be writing there. Another
   program's checkpoint-N has neither checkpoint.json nor our optimizer's file, and stays. */
static void run_tidy(const char *output) {
    static const char *const names[] = {"log.jsonl", "run.json", "report.html", "trainer_state.json"};
    char path[PATH_MAX], name[NAME_MAX + 1];
    DIR *d = opendir(output);
    for (struct dirent *e; d && (e = readdir(d));) {
        path_in(path, sizeof path, output, e->d_name);
        snprintf(name, sizeof name, "%.*s", (int)strcspn(e->d_name, "."), e->d_name);
        bool checkpoint = checkpoint_step(name) >= 0, torn = checkpoint && temporary_of(e->d_name, name);
        if (checkpoint && !strcmp(e->d_name, name) && !file_exists(path, "checkpoint.json")) {
            torn = file_exists(path, "optimizer.safetensors");
            if (!torn) rmdir(path);         /* if nothing is left in it */
        }
        if (torn) checkpoint_remove(path);
        for (int i = 0; i < 4; i++) if (temporary_of(e->d_name, names[i])) unlink(path);
    }
    if (d) closedir(d);
}

/* Of the moments [moment_count], the adapter and its configuration; the text of checkpoint.json behind its first line
   comes after them. */
static bool checkpoint_hash(uint64_t *hash, const Adapter *a, const float *first, const float *second,
                            const char *folder, Error *err) {
    size_t bytes = a->param_count * sizeof(float), moments = a->moment_count * sizeof(float), length;
    float *param = (float *)must_alloc(bytes);
    backend_download(param, a->param, bytes);
    *hash = hash_bytes(hash_bytes(hash_bytes(HASH_START, first, moments), second, moments), param, bytes);
    free(param);
    if (!adapter_has_lora(&a->config)) return true;               /* the values are all that there is */
    char path[PATH_MAX];
    path_in(path, sizeof path, folder, "adapter_config.json");
    char *text = read_file(path, &length, err);
    if (text) *hash = hash_bytes(*hash, text, length);
    free(text);
    return text != NULL;
}

/* The moments' names in optimizer.safetensors; what is "F32" of those in 8 bits are the bits of the arenas. */
static const char *const *checkpoint_moment_names(const Adapter *a) {
    static const char *const names[OPTIMIZER_COUNT][2] = {{"adam_m", "adam_v"}, {"adam_m_8bit", "adam_v_8bit"}};
    return names[a->optim];
}
/* Writes optimizer.safetensors: AdamW's two moments, [moment_count] each. *hash: what checkpoint_hash says of it. */
static bool checkpoint_moments_write(const Run *run, const char *folder, uint64_t *hash, Error *err) {
    const Adapter *a = &run->adapter;
    size_t bytes = a->moment_count * sizeof(float);
    float *first = (float *)must_alloc(bytes), *second = (float *)must_alloc(bytes);
    backend_download(first, a->adam_m, bytes);
    backend_download(second, a->adam_v, bytes);
    const float *const data[2] = {first, second};
    const int64_t shapes[2][2] = {{(int64_t)a->moment_count, 1}, {(int64_t)a->moment_count, 1}};
    char path[PATH_MAX];
    path_in(path, sizeof path, folder, "optimizer.safetensors");
    bool ok = safetensors_write(path, checkpoint_moment_names(a), data, shapes, 2, err) &&
              checkpoint_hash(hash, a, first, second, folder, err);
    free(first);
    free(second);
    return ok;
}

/* checkpoint.json: a line with the checksum of everything, then where the run is, what decides it, and its history.
   Numbers that must come back as they were have 17 digits. */
static void checkpoint_json(Text *t, Run *run, TrainResult *result, uint64_t hash) {
    CheckpointNumber numbers[CHECKPOINT_NUMBERS];
    char line[CHECKPOINT_LINE_BYTES + 1];
    checkpoint_numbers(numbers, run, result);
    json_object(t, NULL, JSON_LINE);
    checkpoint_hex(t, "checksum", 0);                             /* its place; what follows is in the sum */
    json_new_line(t);
    json_print(t, "format", "%d", CHECKPOINT_FORMAT);
    for (int i = 0; i < CHECKPOINT_NUMBERS; i++) checkpoint_number_json(t, &numbers[i]);
    json_new_line(t);
    json_object(t, "identity", JSON_LINE);
    checkpoint_identity(t, run);
    json_end(t);
    json_new_line(t);
    checkpoint_record_json(t, "window", &run->window);
    json_new_line(t);
    json_list(t, "history", JSON_LINE);
    for (ptrdiff_t i = 0; i < arrlen(run->history); i++) {
        json_new_line(t);
        checkpoint_record_json(t, NULL, &run->history[i]);
    }
    json_end(t);
    text_string(t, "\n");
    json_end(t);
    text_string(t, "\n");
    hash = hash_bytes(hash, t->at + CHECKPOINT_LINE_BYTES, t->length - CHECKPOINT_LINE_BYTES);
    snprintf(line, sizeof line, CHECKPOINT_LINE, (unsigned long long)hash);
    memcpy(t->at, line, CHECKPOINT_LINE_BYTES);
}

/* Removes old checkpoints beyond save_total_limit. The newest and the best stay, whatever the limit. */
static void checkpoints_trim(const Run *run) {
    const TrainOptions *o = run->o;
    char name[64], path[PATH_MAX] = "";
    for (int64_t removed = -1;;) {
        Checkpoints c = checkpoints_list(o->output, run->best.step);
        if (o->save_total_limit <= 0 || c.count <= o->save_total_limit || c.oldest < 0 || c.oldest == c.newest) return;
        if (c.oldest == removed) {
            run_warn(run, "an old checkpoint cannot be removed; %s; see to its permissions", path);
            return;
        }
        removed = c.oldest;
        snprintf(name, sizeof name, "checkpoint-%lld", (long long)removed);
        path_in(path, sizeof path, o->output, name);
        checkpoint_remove(path);
    }
}

static bool checkpoint_write(Run *run, TrainResult *result, Error *err) {
    char name[64], folder[PATH_MAX];
    SafeFolder f;
    uint64_t hash;
    Text t = TEXT_EMPTY;
    run_identify(run);
    snprintf(name, sizeof name, "checkpoint-%lld", (long long)run->step);
    path_in(folder, sizeof folder, run->o->output, name);
    if (!folder_begin(&f, folder, err)) return false;
    bool ok = adapter_write(&run->adapter, f.temporary, err) && checkpoint_moments_write(run, f.temporary, &hash, err);
    if (ok) checkpoint_json(&t, run, result, hash);
    ok = ok && text_write(&t, f.temporary, "checkpoint.json", err);
    if (!ok) folder_discard(f.temporary);
    if (!ok || !folder_commit(&f, true, err)) return false;
    snprintf(result->checkpoint, sizeof result->checkpoint, "%s", folder);
    CRASH_POINT();
    checkpoints_trim(run);
    return true;
}

/* The folder that --resume means: itself, or the newest checkpoint in it. */
static bool checkpoint_find(char *folder, size_t size, const char *given, Error *err) {
    if (file_exists(given, "checkpoint.json")) { snprintf(folder, size, "%s", given); return true; }
    Checkpoints c = checkpoints_list(given, -1);
    char name[64];
    if (!c.count)
        return fail(err, "no checkpoint to resume from; %s; give a checkpoint-N folder or the output folder of a run "
                    "with --save-strategy", given);
    snprintf(name, sizeof name, "checkpoint-%lld", (long long)c.newest);
    path_in(folder, size, given, name);
    return true;
}

/* Lists the members of `mine`, an object (freed), that are not the same in a checkpoint's identity; whole: also what
   the checkpoint alone has. */
static void checkpoint_identity_compare(Text *differences, const Json *stored, Text *mine, bool whole) {
    /* nothing to show of these but that they differ */
    static const char *const hashes[] = {"model", "tokenizer", "data", "eval_data"};
    JsonDoc doc;
    bool ok = json_parse(&doc, mine->at, mine->length, "identity", 1, NULL);
    text_free(mine);
    for (const Json *e = ok ? doc.root->child : NULL; e; e = e->next) {
        const Json *there = json_get(stored, e->key);
        bool hash = false;
        if (there && there->str && !strcmp(there->str, e->str)) continue;
        for (int i = 0; i < 4; i++) hash |= !strcmp(e->key, hashes[i]);
        text_print(differences, "%s%s", differences->length ? ", " : "", e->key);
        if (!hash) text_print(differences, " %s (now %s)", there && there->str ? there->str : "(none)", e->str);
    }
    whole = whole && ok && stored && stored->type == JSON_OBJECT;
    for (const Json *e = whole ? stored->child : NULL; e; e = e->next) {
        if (json_get(doc.root, e->key)) continue;
        text_print(differences, "%s%s", differences->length ? ", " : "", e->key);
        text_print(differences, " %s (now (none))", e->str ? e->str : "(none)");
    }
    if (ok) json_free(&doc);
}

/* Is this run the one that the checkpoint is of? With --resume-force it may differ, but not in silence. */
static bool checkpoint_same_run(Run *run, const Json *identity, const char *folder, Error *err) {
    Text mine = TEXT_EMPTY, differences = TEXT_EMPTY;
    run_identify(run);
    json_object(&mine, NULL, JSON_LINE);
    checkpoint_identity(&mine, run);
    json_end(&mine);
    checkpoint_identity_compare(&differences, identity, &mine, true);
    bool same = !differences.length;
    if (!same && run->o->resume_force) {
        run_warn(run, "resumed although the checkpoint was made with another %s", differences.at);
        same = true;
    } else if (!same)
        fail(err, "the checkpoint was made with another %.700s; %s; resume with that run's options (run.json has "
                  "them), or add --resume-force", differences.at, folder);
    text_free(&differences);
    return same;
}

/* The adapter that was loaded is the one that the run had: its rank, scale and places, not its values alone. */
static bool checkpoint_same_adapter(const Run *run, const Json *identity) {
    Text mine = TEXT_EMPTY, differences = TEXT_EMPTY;
    json_object(&mine, NULL, JSON_LINE);
    checkpoint_lora_identity(&mine, &run->adapter.config, run->model->config.num_hidden_layers);
    json_end(&mine);
    checkpoint_identity_compare(&differences, identity, &mine, false);
    bool same = !differences.length;
    text_free(&differences);
    return same;
}

/* Where the run was. false: the numbers cannot be. */
static bool checkpoint_position(Run *run, TrainResult *result, const Json *root) {
    CheckpointNumber numbers[CHECKPOINT_NUMBERS];
    const Adapter *a = &run->adapter;
    int64_t files_changed = run->files_changed;                               /* now; the checkpoint has them then */
    checkpoint_numbers(numbers, run, result);
    for (int i = 0; i < CHECKPOINT_NUMBERS; i++) if (!checkpoint_number_parse(&numbers[i], root)) return false;
    if (a->adam_step > run->step || run->skipped > run->step || !(a->loss_scale >= 1)) return false;
    if (run->files_changed != files_changed)
        run_warn(run, "the model's files were written again since the checkpoint; %s; what was looked at of them is "
                      "the same", run->o->model);
    run->files_changed = files_changed;
    result->resumed_from = run->step;
    return true;
}

/* The log so far, and the sums since its last line. */
static bool checkpoint_history(Run *run, TrainResult *result, const Json *root) {
    if (!checkpoint_record_parse(&run->window, json_get(root, "window"), run->classifier.of)) return false;
    const Json *history = json_get(root, "history");
    for (const Json *e = history ? history->child : NULL; e; e = e->next) {
        LogRecord r;
        if (!checkpoint_record_parse(&r, e, run->classifier.of)) return false;
        arrput(run->history, r);
    }
    run->best = log_best(run->history, run->o);
    result->best_step = run->best.step;
    result->best_metric = run->best.value;
    return true;
}

/* AdamW's moments [moment_count] from optimizer.safetensors; *hash: what checkpoint_hash says of them. */
static bool checkpoint_moments_read(Run *run, const char *folder, uint64_t *hash, Error *err) {
    Adapter *a = &run->adapter;
    const char *const *names = checkpoint_moment_names(a);
    int64_t count = (int64_t)a->moment_count;
    TensorSet set;
    memset(&set, 0, sizeof set);
    char path[PATH_MAX];
    path_in(path, sizeof path, folder, "optimizer.safetensors");
    bool ok = tensors_add_file(&set, path, err);
    const Tensor *first = ok ? tensors_get(&set, names[0], count, 1, err) : NULL;
    const Tensor *second = first ? tensors_get(&set, names[1], count, 1, err) : NULL;
    ok = second != NULL;
    if (ok && (first->dtype != DTYPE_F32 || second->dtype != DTYPE_F32))
        ok = fail(err, "the moments are not F32; %s; resume from an earlier checkpoint", path);
    if (ok) {
        backend_upload(a->adam_m, first->data, a->moment_count * sizeof(float));
        backend_upload(a->adam_v, second->data, a->moment_count * sizeof(float));
        ok = checkpoint_hash(hash, a, (const float *)first->data, (const float *)second->data, folder, err);
    }
    tensors_close(&set);
    return ok;
}

/* Do the files belong together? The first line of checkpoint.json says what everything else hashes to. */
static bool checkpoint_checksum(uint64_t hash, const char *folder, Error *err) {
    char path[PATH_MAX], line[CHECKPOINT_LINE_BYTES + 1];
    size_t length;
    path_in(path, sizeof path, folder, "checkpoint.json");
    char *text = read_file(path, &length, err);
    if (!text) return false;
    bool ok = length > CHECKPOINT_LINE_BYTES;
    if (ok) {
        hash = hash_bytes(hash, text + CHECKPOINT_LINE_BYTES, length - CHECKPOINT_LINE_BYTES);
        snprintf(line, sizeof line, CHECKPOINT_LINE, (unsigned long long)hash);
        ok = !memcmp(text, line, CHECKPOINT_LINE_BYTES);
    }
    free(text);
    return ok || fail(err, "the checksum is wrong, the checkpoint's files do not belong together; %s; resume from an "
                           "earlier one", folder);
}

/* Takes the run to where the checkpoint was made. The model has its adapter already. */
static bool checkpoint_read(Run *run, const char *folder, TrainResult *result, Error *err) {
    char path[PATH_MAX];
    JsonDoc doc;
    path_in(path, sizeof path, folder, "checkpoint.json");
    if (!json_read(&doc, path, err)) return false;
    const Json *root = doc.root, *identity = json_get(root, "identity"), *format = json_get(root, "format");
    int64_t total = run->plan.total_steps;
    uint64_t hash;
    bool ok = true;
    if (identity && !(format && format->number == CHECKPOINT_FORMAT))
        ok = fail(err, "a checkpoint of another version of this program; %s; go on with that version, or begin with "
                       "its adapter: --init-adapter %s", path, folder);
    ok = ok && checkpoint_same_run(run, identity, folder, err);
    if (ok && !(checkpoint_position(run, result, root) && checkpoint_history(run, result, root) &&
                (run->o->resume_force || checkpoint_same_adapter(run, identity))))
        ok = fail(err, "the checkpoint is damaged; %s; resume from an earlier one", path);
    json_free(&doc);
    if (ok && run->step > total)
        ok = fail(err, "the checkpoint is at step %lld, the run has only %lld; %s; give more --num-train-epochs or "
                       "--max-steps", (long long)run->step, (long long)total, folder);
    return ok && checkpoint_moments_read(run, folder, &hash, err) && checkpoint_checksum(hash, folder, err);
}

static bool run_strategy_due(Strategy s, int every, const Run *run) {
    if (s == STRATEGY_STEPS) return run->step % every == 0;
    return s == STRATEGY_EPOCH && run->step % run->plan.steps_per_epoch == 0;
}

/* What is due between two steps: the evaluation, unless the history has it, and the checkpoint. */
static bool run_step_end(Run *run, TrainResult *result, Error *err) {
    const TrainOptions *o = run->o;
    bool last = run->step == run->plan.total_steps, done = !run->eval.slots;
    bool stop = run->hooks && run->hooks->stop && run->hooks->stop(run->hooks->user);
    result->stopped = stop && !last;
    for (ptrdiff_t i = 0; i < arrlen(run->history); i++)
        done |= run->history[i].eval && run->history[i].step == run->step;
    int eval_steps = o->eval_steps > 0 ? o->eval_steps : o->logging_steps;
    if (!done && (last || run_strategy_due(o->eval_strategy, eval_steps, run))) {
        if (!run_evaluate(run, result, err)) return false;
        bool patient = o->early_stopping_patience <= 0 || run->best.in_vain < o->early_stopping_patience;
        result->early_stopped = !patient && !last;
    }
    bool best = o->load_best_model_at_end && run->best.step == run->step;
    bool due = best || result->stopped || (last && o->save_strategy != STRATEGY_NO) ||
               run_strategy_due(o->save_strategy, o->save_steps, run);
    /* A full disk must not cost the run: the earlier checkpoints are intact, and the next one may find room again. */
    if (due) run_phase(run, "writing checkpoint-%lld", (long long)run->step);
    if (due && !run->team.rank && !checkpoint_write(run, result, err))
        run_warn(run, "no checkpoint: %s; training goes on", err->text);
    if (due) team_barrier(&run->team);
    if (due && run->hooks && run->hooks->on_phase) run->hooks->on_phase(run->hooks->user, NULL);
    return true;
}

/* A step's record, its metrics still sums over its micro-batches, joins what the next log line is averaged over. */
static void log_window_add(Run *run, const LogRecord *step, int64_t micro, double seconds, double flops) {
    for (int i = 0; i < LOG_METRICS; i++)
        if (log_metric[i].mean) *log_metric_at(&run->window, &log_metric[i]) += metric_value(step, &log_metric[i]);
    run->window.num_tokens += step->num_tokens;
    run->window_seconds += seconds;
    run->window_flops += flops;
    run->window_steps++;
    run->window_micro += micro;
    run->train_loss += step->loss;
}
/* The log line of a window that is full: its averages, otherwise its last step's numbers. The next one begins. */
static void log_window_close(Run *run, const LogRecord *step) {
    LogRecord log = *step;                  /* grad_norm and learning_rate are the last step's, as in transformers */
    if (!isfinite(step->loss)) log.grad_norm = 0;
    for (int i = 0; i < LOG_METRICS; i++) {
        const Metric *m = &log_metric[i];
        double sum = metric_value(&run->window, m);
        if (m->mean == OVER_STEPS) *log_metric_at(&log, m) = sum / (double)run->window_steps;
        if (m->mean == OVER_MICRO_BATCHES) *log_metric_at(&log, m) = sum / (double)run->window_micro;
    }
    log.seconds = run->window_seconds;
    log.tokens_per_second = (double)run->window.num_tokens / run->window_seconds;
    log.ceiling_share = run->window_flops / run->window_seconds / run->ceiling;
    run_log(run, &log);
    memset(&run->window, 0, sizeof run->window);
    run->window_steps = run->window_micro = 0;
    run->window_seconds = run->window_flops = 0;
}

/* Seconds to the end, at the run's own pace and that of its evaluations. */
static double run_eta(const Run *run) {
    double eta = run->training / (double)run->step * (double)(run->plan.total_steps - run->step);
    if (!run->eval_count) return eta;
    return eta + run->eval_seconds / (double)run->eval_count * (double)run_evaluations_left(run, run->step - 1);
}

/* Micro-batches [begin, end) of an epoch make one optimizer step: their slots of run->order, the log, then whatever is
   due between two steps. */
static bool run_step(Run *run, int64_t epoch, int64_t begin, int64_t end, TrainResult *result, Error *err) {
    const TrainOptions *o = run->o;
    int64_t slots = (int64_t)run->train.slots, size = o->per_device_train_batch_size, micro = end - begin;
    LogRecord r;                            /* of this step alone: its tokens, metrics summed over micro-batches */
    double start = seconds_now(), flops = run->flops;
    if (!train_step(run, begin * size, end * size < slots ? end * size : slots, &r, err)) return false;
    double seconds = seconds_now() - start;
    flops = run->flops - flops;
    run->step++;
    run->num_tokens += r.num_tokens;
    run->epoch = (double)epoch + (double)end / (double)run->plan.micro_per_epoch;
    run->training += seconds;
    if (isfinite(r.loss)) log_window_add(run, &r, micro, seconds, flops);

    for (int i = 0; i < LOG_METRICS; i++)   /* from here on it is the run's record: means, and all tokens so far */
        if (log_metric[i].mean == OVER_MICRO_BATCHES) *log_metric_at(&r, &log_metric[i]) /= (double)micro;
    r.step = run->step;
    r.total_steps = run->plan.total_steps;
    r.epoch = run->epoch;
    r.seconds = seconds;
    r.tokens_per_second = (double)r.num_tokens / seconds;
    r.ceiling_share = flops / seconds / run->ceiling;
    r.num_tokens = run->num_tokens;
    r.eta = run_eta(run);
    if (run->hooks && run->hooks->on_step) run->hooks->on_step(run->hooks->user, &r);
    if (run->step % o->logging_steps == 0 && run->window_steps) log_window_close(run, &r);
    return run_step_end(run, result, err);
}

static bool run_goes_on(const Run *run, const TrainResult *result) {
    return run->step < run->plan.total_steps && !result->stopped && !result->early_stopped;
}

/* Epochs of optimizer steps. An epoch is an order of the slots; micro-batches are cut from it one after the other, and
   gradient_accumulation_steps of them (at its end perhaps fewer) make a step. A resumed run goes on where it was: the
   order of an epoch and every dropout mask follow from the seed and the step alone. */
static bool train_loop(Run *run, TrainResult *result, Error *err) {
    const TrainOptions *o = run->o;
    const RunPlan *p = &run->plan;
    int64_t accumulate = o->gradient_accumulation_steps;
    if (o->eval_on_start && !run->step && !run_evaluate(run, result, err)) return false;
    if (run->step && !run_step_end(run, result, err)) return false;               /* an evaluation that was cut short */
    for (int64_t epoch = run->step / p->steps_per_epoch; run_goes_on(run, result); epoch++) {
        run_epoch_order(run->order, o, &run->train, epoch);
        int64_t begin = run->step % p->steps_per_epoch * accumulate;
        for (; begin < p->micro_per_epoch && run_goes_on(run, result); begin += accumulate) {
            int64_t end = begin + accumulate < p->micro_per_epoch ? begin + accumulate : p->micro_per_epoch;
            if (!run_step(run, epoch, begin, end, result, err)) return false;
        }
    }
    int64_t counted = run->step - run->skipped;
    result->skipped = run->skipped;
    result->train_loss = counted > 0 ? run->train_loss / (double)counted : 0;
    result->training_seconds = run->training;
    return true;
}

static bool run_save_in(Run *run, const TrainResult *result, const char *folder, Error *err) {
    Error less;
    Adapter plain;
    const Adapter *a = &run->adapter;
    memset(&plain, 0, sizeof plain);
    if (run->o->convert_to_lora) {
        if (adapter_convert(&plain, a, &less)) a = &plain;
        else run_warn(run, "the adapter is saved as it was trained, not as plain LoRA: %s", less.text);
    }
    bool saved = adapter_save_as(a, folder, run->o->save_dtype ? *run->o->save_dtype : DTYPE_COUNT, err);
    adapter_drop(&plain);
    if (!saved) return false;
    if (!log_trainer_state(run, result, folder, &less)) run_warn(run, "no trainer_state.json: %s", less.text);
    return true;
}

/* What the run leaves behind. The adapter of a day's work must not be lost to a full disk: it stays in memory until
   some folder has taken it, or the user gives up. */
static bool run_save(Run *run, TrainResult *result, Error *err) {
    const TrainOptions *o = run->o;
    Adapter *a = &run->adapter;
    run_phase(run, "saving the %s", adapter_has_lora(&a->config) ? "adapter" : "model");
    char best[PATH_MAX], other[PATH_MAX] = "", name[64];
    if (o->load_best_model_at_end && run->best.step && run->best.step != run->step && !result->stopped) {
        snprintf(name, sizeof name, "checkpoint-%lld", (long long)run->best.step);
        path_in(best, sizeof best, o->output, name);
        float *last = (float *)must_alloc(a->param_count * sizeof(float));
        size_t count = a->param_count;
        backend_download(last, a->param, count * sizeof(float));
        if (!adapter_load(a, run->model, best, err)) {
            run_warn(run, "the best adapter cannot be loaded, the last one is saved: %s", err->text);
            if (a->param_count == count && a->param) {
                backend_upload(a->param, last, count * sizeof(float));
                adapter_changed(a);
            }
            result->best_step = 0;
        }
        free(last);
    }
    if (run_save_in(run, result, o->output, err)) return true;
    Error first = *err;
    const char *temporary = getenv("TMPDIR");
    const char *const places[2] = {o->fallback_output, other};
    for (Error again;;) {
        if (!*other) {                      /* a folder that nobody can have prepared */
            snprintf(other, sizeof other, "%s/train_lora-adapter-XXXXXX", temporary && *temporary ? temporary : "/tmp");
            if (!mkdtemp(other)) {
                fail(&again, "cannot write; %s: %s; set TMPDIR", other, strerror(errno));
                *other = 0;
            }
        }
        for (int i = 0; i < 2; i++)
            if (places[i] && *places[i] && run_save_in(run, result, places[i], &again))
                return fail(err, "%.*s; the adapter is whole in %s, move it from there",
                            (int)(strrchr(first.text, ';') - first.text), first.text, places[i]);
        run_warn(run, "%s; the adapter is still in memory, trying again in 10 s (Ctrl-C gives it up)", again.text);
        for (int i = 0; i < 100; i++) {
            if (run->hooks && run->hooks->stop && run->hooks->stop(run->hooks->user)) return false;
            struct timespec tenth = {0, 100000000};
            nanosleep(&tenth, NULL);
        }
    }
}

static void run_close(Run *run) {
    if (run->log) fclose(run->log);
    folder_unlock(&run->lock);
    arrfree(run->history);
    free(run->order);
    batch_free(&run->batch);
    classifier_close(&run->classifier);
    class_config_free(&run->o->lora.classes);
    dataset_free(&run->eval);               /* may share the training data's tokens */
    dataset_free(&run->train);
    workspace_close(&run->work);
    adapter_drop(&run->adapter);
    if (run->model == &run->own) model_close(&run->own);
}

/* The largest batch of the run, and its longest sequence. A plan without data has to assume full length. */
static void run_sizes(const Run *run, int *max_tokens, int *max_sequences, int *longest) {
    const TrainOptions *o = run->o;
    const Dataset *d = &run->train;
    *max_tokens = *max_sequences = 0;
    if (!d->slots) {
        *longest = o->data_options.max_length;
        *max_sequences = o->per_device_train_batch_size;
        *max_tokens = o->per_device_train_batch_size * *longest;
        return;
    }
    *longest = (int)d->stats.longest;
    for (int64_t epoch = 0; epoch < (run->plan.epochs < 64 ? run->plan.epochs : 64); epoch++) {
        run_epoch_order(run->order, o, d, epoch);
        dataset_grow_to_batches(d, run->order, o->per_device_train_batch_size, max_tokens, max_sequences);
    }
    if (run->plan.epochs > 64) dataset_largest_batch(d, o->per_device_train_batch_size, max_tokens, max_sequences);
    if (run->eval.slots) {
        dataset_grow_to_batches(&run->eval, NULL, o->per_device_eval_batch_size, max_tokens, max_sequences);
        if (run->eval.stats.longest > *longest) *longest = (int)run->eval.stats.longest;
    }
}

/* The run's memory, row by row; with allocate it is taken. */
static bool run_memory(Run *run, int max_tokens, int longest, bool allocate, MemoryTable *table, Error *err) {
    const TrainHooks *h = run->hooks;
    model_memory(run->model, &run->adapter, table);
    return workspace_open(&run->work, run->model, &run->adapter, max_tokens, longest, run->o->recompute, allocate,
                          table, err) &&
           (!h || !h->on_plan || h->on_plan(h->user, run->model, &run->adapter, allocate, table, err));
}

/* Chooses recompute level and micro-batch: the cheapest level at which anything fits, then the largest micro-batch;
   micro-batch x accumulation, which decides the numbers, stays what it was. */
static bool run_fit(Run *run, Error *err) {
    TrainOptions *o = run->o;
    int effective = o->per_device_train_batch_size * o->gradient_accumulation_steps;
    int eval_batch = o->per_device_eval_batch_size;
    size_t least = 0, held = run->memory.total;
    if (!run->model->shapes_only)
        held += run->model->weight_bytes + run->model->norm_bytes + run->adapter.rest_bytes +
                adapter_bytes(&run->adapter) - run->adapter.packed_bytes;
    size_t limit = o->device_memory ? o->device_memory : held + backend_memory() / 20 * 19;
    for (int level = RECOMPUTE_NONE; level <= RECOMPUTE_LAYER; level++) {
        for (int size = effective < 4096 ? effective : 4096; size >= 1; size--) {
            if (effective % size) continue;
            int max_tokens, max_sequences, longest;
            MemoryTable table = run->memory;
            o->recompute = (Recompute)level;
            o->per_device_train_batch_size = size;
            o->gradient_accumulation_steps = effective / size;
            o->per_device_eval_batch_size = eval_batch < size ? eval_batch : size;
            run_sizes(run, &max_tokens, &max_sequences, &longest);
            if (!run_memory(run, max_tokens, longest, false, &table, err)) return false;
            if (table.total <= limit) return true;
            least = table.total;
        }
    }
    return fail(err, "the run does not fit at all: %.2f GiB needed with one example at a time and everything computed "
                "again, %.2f GiB may be taken; --fit; lower --max-length or use a smaller model",
                (double)least / 0x1p30, (double)limit / 0x1p30);
}

/* The output folder: made, locked, tidied; log.jsonl gets its name when the run begins. */
static bool run_open_output(Run *run, Error *err) {
    const TrainOptions *o = run->o;
    char path[PATH_MAX];
    bool unlocked;
    struct stat in, base;
    bool model = file_exists(o->output, "config.json"), ours = file_exists(o->output, "log.jsonl");
    bool whole = !o->init_adapter && !adapter_has_lora(&o->lora);
    if (whole && !stat(o->output, &in) && !stat(o->model, &base) && in.st_dev == base.st_dev &&
        in.st_ino == base.st_ino)
        return fail(err, "it is the folder of the model that is trained; %s; give another --output", o->output);
    if (whole && model && !ours)
        return fail(err, "it holds a model that no run has written; %s; give another --output, nothing is overwritten",
                    o->output);
    if (!whole && !o->init_adapter && model && ours)
        return fail(err, "it holds the whole model of an earlier run, which an adapter would stand beside; %s; give "
                         "another --output", o->output);
    if (!make_folder(o->output, err) || !folder_lock(&run->lock, o->output, &unlocked, err)) return false;
    if (unlocked)
        run_warn(run, "the file system of %s has no locks; a second run there would not be noticed", o->output);
    run_tidy(o->output);
    path_in(path, sizeof path, o->output, "log.jsonl");
    int fd = temporary_make(run->log_new, sizeof run->log_new, path, false);
    if (fd >= 0 && (run->log = fdopen(fd, "w"))) return true;
    return fail(err, "cannot write; %s: %s; give another --output", path, strerror(errno));
}

/* run->train and run->eval, tokenised, and packed where that is asked for. */
static bool run_read_data(Run *run, const Tokenizer *t, Error *err) {
    const TrainOptions *o = run->o;
    DataOptions unpacked = o->data_options;
    unpacked.packing = false;
    ClassConfig *known = &run->o->lora.classes;        /* what the classes are called, where a head has them already */
    if (!unpacked.label_names && known->names) {
        unpacked.label_names = known->names;
        unpacked.label_count = known->num_labels;
    }
    if (unpacked.problem_type == PROBLEM_AUTO) unpacked.problem_type = known->problem_type;
    if (unpacked.pad_token_id < 0 && known->num_labels) unpacked.pad_token_id = known->pad_token_id;
    if (unpacked.task != TASK_CAUSAL_LM && run->objective == &objective_tokens)
        return fail(err, "rows with labels, and an objective that learns tokens; --task %s; choose the objective too",
                    task_name[unpacked.task]);
    int files = 1 + o->more_data_count, capacity = o->data_options.max_length;
    if (o->data) {
        const char **paths = (const char **)must_alloc((size_t)files * sizeof *paths);
        paths[0] = o->data;
        for (int i = 1; i < files; i++) paths[i] = o->more_data[i - 1];
        unpacked.max_rows = o->max_train_samples;
        run_phase(run, "reading %s", o->data);
        bool ok = dataset_open_files(&run->train, paths, files, t, &unpacked, err);
        free(paths);
        if (!ok) return false;
        if (run->train.label_count) {       /* evaluation has the classes of training */
            unpacked.label_names = run->train.label_names;
            unpacked.label_count = run->train.label_count;
        }
        if (unpacked.task == TASK_CLASSIFICATION) unpacked.problem_type = run->train.problem;
    }
    if (o->eval_data) {
        unpacked.max_rows = o->max_eval_samples;
        if (!dataset_open(&run->eval, o->eval_data, t, &unpacked, err)) return false;
    } else if (o->data && o->eval_split > 0) {
        if (!dataset_split(&run->train, &run->eval, o->eval_split, (uint64_t)o->seed, err)) return false;
    }
    Text absent = TEXT_EMPTY;
    const Dataset *eval = run->eval.slots ? &run->eval : NULL;
    bool ok = !o->data || dataset_classes_check(&run->train, eval, o->data, &absent, err);
    if (ok && absent.length) run_warn(run, "the evaluation data have no row of the class %s", absent.at);
    text_free(&absent);
    if (!ok) return false;
    if (!o->data_options.packing) return true;
    if (o->data && !dataset_pack(&run->train, capacity, err)) return false;
    return !run->eval.slots || dataset_pack(&run->eval, capacity, err);       /* TRL does: eval_loss depends on it */
}
/* What a head that is there already calls its labels: the adapter's that the run starts from, else the model's. */
static bool run_known_classes(Run *run, const char *start, Error *err) {
    ClassConfig *c = &run->o->lora.classes;
    TensorSet set;
    char path[PATH_MAX];
    memset(&set, 0, sizeof set);
    memset(c, 0, sizeof *c);
    if (run->o->data_options.task == TASK_CAUSAL_LM) return true;
    bool ok = true;
    if (start) {
        adapter_file(path, sizeof path, start, "adapter_model.safetensors");
        if (access(path, F_OK)) path_in(path, sizeof path, start, "trained.safetensors");
        ok = access(path, F_OK) || (tensors_add_file(&set, path, err) &&
             adapter_find_score(c, &set, "base_model.model.score.weight", start, err) &&
             (c->num_labels || adapter_find_score(c, &set, "score.weight", start, err)));
        tensors_close(&set);
    }
    Model m;
    if (!ok || !model_plan(&m, run->o->model, err)) return false;
    if (!c->num_labels) class_config_copy(c, &m.classes);
    else if (m.classes.num_labels && c->pad_token_id < 0) c->pad_token_id = m.classes.pad_token_id;
    model_close(&m);
    return true;
}
/* The head that the data ask for: *c gets its labels in place of what was known of an earlier one. */
static void run_new_classes(ClassConfig *c, const Dataset *d) {
    class_config_free(c);
    if (d->task == TASK_CAUSAL_LM) return;
    c->num_labels = d->label_count ? d->label_count : 1;
    c->problem_type = d->task == TASK_CLASSIFICATION ? d->problem : PROBLEM_AUTO;
    c->pad_token_id = d->pad_token_id;
    if (d->label_names) class_config_name(c, (const char *const *)d->label_names, d->label_count);
}
/* Options of one task are no use to another. */
static bool run_task_check(const TrainOptions *o, Error *err) {
    bool given = o->class_weights || o->label_smoothing != 0 || o->focal_gamma != 0 || o->data_options.label_count;
    if (o->data_options.task == TASK_CAUSAL_LM && given)
        return fail(err, "class weights, label smoothing, focal loss and label names are of classification; "
                         "--class-weights, --label-smoothing, --focal-gamma, --label-names; add --task classification, "
                         "or leave them out");
    return true;
}
static bool run_open_data(Run *run, const ModelConfig *config, const char *start, Error *err) {
    const TrainOptions *o = run->o;
    Tokenizer *t = NULL;                    /* rows of input_ids need none */
    if (file_exists(o->model, "tokenizer.json") && !model_tokenizer(&t, o->model, config, err)) return false;
    run->tokenizer_hash = t ? tokenizer_fingerprint(t) : 0;
    bool ok = run_task_check(o, err) && run_known_classes(run, start, err) && run_read_data(run, t, err);
    if (t) tokenizer_free(t);
    if (!ok || !train_ids_check(&run->train, config->vocab_size, o->data, err) ||
        !train_ids_check(&run->eval, config->vocab_size, o->eval_data, err)) return false;
    long long longest = run->train.stats.longest;
    int positions = config->max_position_embeddings;
    if (config->rope_scaling.type == ROPE_DEFAULT && longest > positions)
        return fail(err, "an example has %lld tokens but the model was made for %d; %s; set --max-length %d", longest,
                    positions, o->data, positions);
    run->order = (int64_t *)must_alloc((size_t)run->train.slots * sizeof(int64_t));
    run_new_classes(&run->o->lora.classes, &run->train);
    return true;
}

/* The base model and its adapter: a new one, or that of the folder `start`. */
static bool run_open_model(Run *run, const ModelConfig *config, const char *start, Error *err) {
    const TrainOptions *o = run->o;
    Adapter *a = &run->adapter;
    const char *name;
    const Model *m = run->model;
    bool mine = run->model == &run->own;
    /* a plan needs no device, but takes the one that is there */
    if (!backend_open(config, run->plan_only ? NULL : err) && !run->plan_only) return false;
    size_t before = backend_overhead(&name);
    run_phase(run, "loading %s", o->model);
    if (mine && !(run->plan_only ? model_plan(&run->own, o->model, err) : model_open(&run->own, o->model, err)))
        return false;
    a->optim = o->optim;
    if (!(start ? adapter_load(a, run->model, start, err)
                : adapter_attach(a, run->model, &o->lora, (uint64_t)o->seed, err))) return false;
    if (start) a->config.lora_dropout = o->lora.lora_dropout;
    if (o->resume && !adapter_has_lora(&o->lora) && !adapter_has_lora(&a->config)) {       /* a file does not say it */
        a->config.train = o->lora.train;
        a->config.last_layers = o->lora.last_layers;
    }
    if (a->config.classes.num_labels != o->lora.classes.num_labels || (m->no_head && !a->score)) {
        int has = a->score ? a->config.classes.num_labels : m->classes.num_labels, want = o->lora.classes.num_labels;
        if (want) return fail(err, "the head has %d labels, the data %d; %s; give data with those labels, or begin "
                                   "without that adapter", has, want, start ? start : o->model);
        return fail(err, "a classification head of %d labels, no language model's; %s; add --task classification, or "
                         "reward", has, start ? start : o->model);
    }
    class_config_free(&a->config.classes);  /* names of this run's, not of an earlier one's file */
    class_config_copy(&a->config.classes, &o->lora.classes);
    double embedding = o->embedding_learning_rate > 0 ? o->embedding_learning_rate / o->learning_rate : 1;
    if (!adapter_rates(a, o->lora_plus_ratio > 0 ? o->lora_plus_ratio : 1, embedding, err)) return false;
    if (o->convert_to_lora && !lora_init_takes_out(a->config.init))
        return fail(err, "the adapter is neither PiSSA nor OLoRA; --convert-to-lora; leave it out, or add "
                         "--init-lora-weights pissa or olora");
    memory_add(&run->memory, name, before);
    return true;
}

/* Everything that the steps work in, taken once. */
static bool run_open_memory(Run *run, Error *err) {
    int max_tokens, max_sequences, longest;
    run_sizes(run, &max_tokens, &max_sequences, &longest);
    if (!run->plan_only) run->ceiling = backend_ceiling();
    if (!batch_alloc(&run->batch, max_tokens, max_sequences, err) ||
        !run_memory(run, max_tokens, longest, !run->plan_only, &run->memory, err)) return false;
    if (run->classifier.K) run->work.classifier = &run->classifier;
    if (run->train.target_width && !batch_alloc_targets(&run->batch, run->train.target_width, err)) return false;
    size_t limit = run->o->device_memory ? run->o->device_memory : backend_memory();
    size_t mine = adapter_bytes(&run->adapter);
    if (run->plan_only && run->adapter.copy_bytes && limit && run->memory.total > limit) {
        char advice[160];
        size_t others = run->memory.total - mine;
        adapter_advice(advice, sizeof advice, &run->adapter, limit > others ? limit - others : 0);
        run_warn(run, "of %s not everything that is to be trained fits; --train; %s", run->o->model, advice);
    }
    return true;
}
/* What a classification head's losses work in. */
static bool run_open_classifier(Run *run, Error *err) {
    const TrainOptions *o = run->o;
    int max_tokens, max_sequences, longest;
    if (o->data_options.task == TASK_CAUSAL_LM) return true;
    run_sizes(run, &max_tokens, &max_sequences, &longest);
    if (!classifier_open(&run->classifier, &run->train, o, run->plan_only ? 0 : max_sequences, err)) return false;
    const Metric *m = metric_find(o->metric_for_best_model ? o->metric_for_best_model : "loss");
    return metric_is_of(m, run->classifier.of) ||
           fail(err, "this run does not measure %s; --metric-for-best-model; see which metrics its log has", m->name);
}

/* Everything up to the first step. Cheap checks come first: a misspelt data file must not cost a minute of loading
   weights. */
static bool run_open(Run *run, TrainResult *result, Error *err) {
    TrainOptions *o = run->o;
    ModelConfig config;
    char checkpoint[PATH_MAX];
    bool writes_checkpoints = !run->plan_only && (o->save_strategy != STRATEGY_NO || o->load_best_model_at_end);
    if (o->resume && !checkpoint_find(checkpoint, sizeof checkpoint, o->resume, err)) return false;
    if (!o->resume && writes_checkpoints && train_can_resume(o->output))     /* which would be the newest? */
        return fail(err, "there are checkpoints of an earlier run; %s; go on with --resume %s, or give another "
                    "--output", o->output, o->output);
    if (!config_open(&config, o->model, err)) return false;
    if (!run->plan_only && !run->team.rank && !run_open_output(run, err)) return false;
    const char *start = o->resume ? checkpoint : o->init_adapter;
    if (!run_open_data(run, &config, start, err)) return false;
    if (!run_open_model(run, &config, start, err)) return false;
    run->plan = run_plan(o, &run->train);
    if (o->fit && !run_fit(run, err)) return false;
    run->plan = run_plan(o, &run->train);   /* of the micro-batch that fits */
    if (!run_open_classifier(run, err)) return false;
    if (o->resume && !run->plan_only && !checkpoint_read(run, checkpoint, result, err)) return false;
    return run_open_memory(run, err);
}

bool train_run(const TrainOptions *o, const TrainHooks *hooks, TrainResult *result, Error *err) {
    Run run;
    memset(&run, 0, sizeof run);
    memset(result, 0, sizeof *result);
    TrainOptions own = *o;
    run.o = &own;
    o = &own;
    run.hooks = hooks;
    run.team.size = 1;
    run.objective = o->objective ? o->objective : objective_of(o->data_options.task);
    own.lora.classes.num_labels = 0;        /* the data say what they are */
    own.lora.classes.names = NULL;
    run.model = hooks && hooks->model ? hooks->model : &run.own;
    run.plan_only = hooks && hooks->plan_only;
    result->first_eval_loss = result->last_eval_loss = NAN;
    for (int i = 0; i < LOG_METRICS; i++) *log_metric_at(&result->last, &log_metric[i]) = NAN;
    bool ok = run_open(&run, result, err);
    char to[PATH_MAX];
    path_in(to, sizeof to, o->output, "log.jsonl");
    if (ok && hooks && hooks->on_begin) ok = hooks->on_begin(hooks->user, run.model, &run.adapter, o, &run.train,
                                                          run.eval.slots ? &run.eval : NULL, &run.memory,
                                                          run.plan.total_steps, err);
    if (!ok && run.log) unlink(run.log_new);
    if (ok && run.log && rename(run.log_new, to))                             /* the stream goes with the file */
        ok = fail(err, "cannot write; %s: %s; give another --output", to, strerror(errno));
    if (ok && !run.plan_only) {
        run.start = seconds_now();
        for (ptrdiff_t i = 0; i < arrlen(run.history); i++)                   /* a resumed run's log is whole again */
            run_log_line(&run, &run.history[i]);
        ok = train_loop(&run, result, err);
        result->steps = run.step;
        result->total_flos = run_total_flos(&run);
        result->samples = run_samples_seen(&run);
        for (ptrdiff_t i = 0; i < arrlen(run.history); i++) {
            const LogRecord *r = &run.history[i];
            if (run.eval.slots && !r->eval) continue;
            result->last = *r;
        }
        result->seconds = seconds_now() - run.start;
        ok = ok && (run.team.rank || run_save(&run, result, err));
        team_barrier(&run.team);
    }
    run_close(&run);
    return ok;
}

/* =====================================================================================================================
   7  GENERATION
   A prompt is read once (prefill: all its tokens in one forward pass), its keys and values stay in the cache, then
   every new token is one row of a batch with one row a sequence.
   ================================================================================================================== */

/* ---- sampling --------------------------------------------------------------------------------------------------- */

/* Fields of generation_config.json that change answers and are not implemented, each with the number that turns it off
   (beside null, false and nothing at all); the last four matter in sampling alone. */
static const struct { const char *key; double off; } gen_unsupported[] = {
    {"num_beams", 1}, {"num_beam_groups", 1}, {"num_return_sequences", 1}, {"penalty_alpha", 0},
        {"diversity_penalty", 0},
    {"no_repeat_ngram_size", 0}, {"encoder_no_repeat_ngram_size", 0}, {"encoder_repetition_penalty", 1},
    {"guidance_scale", 1}, {"min_length", 0}, {"min_new_tokens", 0}, {"bad_words_ids", 0}, {"force_words_ids", 0},
        {"constraints", 0},
    {"sequence_bias", 0}, {"suppress_tokens", 0}, {"begin_suppress_tokens", 0}, {"forced_bos_token_id", -1},
    {"forced_eos_token_id", -1}, {"exponential_decay_length_penalty", 0}, {"watermarking_config", 0},
    {"dola_layers", 0}, {"token_healing", 0}, {"stop_strings", 0},
    {"top_h", 1}, {"typical_p", 1}, {"epsilon_cutoff", 0}, {"eta_cutoff", 0}};

static bool gen_config_parse(GenerateOptions *o, const Json *root, const char *name, Error *err) {
    const size_t count = sizeof gen_unsupported / sizeof *gen_unsupported;
    bool sample = false;
    double top_k, length;
    if (root->type != JSON_OBJECT) return fail(err, "not an object; %s; download the file again", name);
    if (!config_bool(&sample, root, "do_sample", false, name, err) ||
        !config_range(&o->repetition_penalty, root, "repetition_penalty", 1e-3, 1e3, 1, name, err) ||
        !config_range(&length, root, "max_new_tokens", 1, 1e6, o->max_new_tokens, name, err)) return false;
    o->max_new_tokens = (int)length;
    for (size_t i = 0; i < (sample ? count : count - 4); i++) {
        const char *key = gen_unsupported[i].key;
        const Json *j = json_get(root, key);
        if (!j || json_is_unused(j) || (j->type == JSON_NUMBER && j->number == gen_unsupported[i].off)) continue;
        return fail(err, "unsupported field '%s'; %s; take it out of the file to have answers without it", key, name);
    }
    if (!sample) return true;
    /* with do_sample the missing ones are transformers' own */
    if (!config_range(&o->temperature, root, "temperature", 1e-3, 1e3, 1, name, err) ||
        !config_range(&top_k, root, "top_k", 0, 1e9, 50, name, err) ||
        !config_range(&o->top_p, root, "top_p", 0, 1, 1, name, err) ||
        !config_range(&o->min_p, root, "min_p", 0, 1, 0, name, err)) return false;
    o->top_k = (int)top_k;
    return top_k == floor(top_k) || fail(err, "field 'top_k' must be a whole number; %s; check the file", name);
}

bool generate_defaults(GenerateOptions *o, const char *folder, Error *err) {
    memset(o, 0, sizeof *o);
    o->max_new_tokens = 256; o->batch_size = 8; o->top_p = 1; o->repetition_penalty = 1; o->seed = 42;
    char path[PATH_MAX];
    JsonDoc doc;
    if (!file_exists(folder, "generation_config.json")) return true;
    path_in(path, sizeof path, folder, "generation_config.json");
    if (!json_read(&doc, path, err)) return false;
    bool ok = gen_config_parse(o, doc.root, path, err);
    json_free(&doc);
    return ok;
}

static int gen_candidate_falls(const void *a, const void *b) {
    const GenCandidate *x = (const GenCandidate *)a, *y = (const GenCandidate *)b;
    return x->p != y->p ? (x->p > y->p ? -1 : 1) : (x->id > y->id) - (x->id < y->id);
}

/* The k-th largest of z [n], k <= n: the top of a heap of the k largest so far, its smallest on top. heap: [k]. A sort
   of a whole vocabulary would take longer than the token itself on a GPU. */
static float gen_kth_largest(const float *z, int n, int k, GenCandidate *heap) {
    for (int v = 0; v < n; v++) {
        int at = v;
        if (v < k) for (; at && heap[(at - 1) / 2].p > z[v]; at = (at - 1) / 2) heap[at] = heap[(at - 1) / 2];
        else if (z[v] > heap[0].p) {
            at = 0;
            for (int child = 1; child < k; child = 2 * at + 1) {
                if (child + 1 < k && heap[child + 1].p < heap[child].p) child++;
                if (heap[child].p >= z[v]) break;
                heap[at] = heap[child];
                at = child;
            }
        } else continue;
        heap[at].p = z[v];
    }
    return heap[0].p;
}

/* Keskar et al. 2019: what was seen becomes less likely, once a token, however often it was seen. work: [V]. */
static void gen_penalise(float *logits, const int32_t *seen, int count, float penalty, GenCandidate *work) {
    for (int i = 0; i < count; i++) work[seen[i]].p = logits[seen[i]];
    for (int i = 0; i < count; i++) {
        float z = work[seen[i]].p;
        logits[seen[i]] = z < 0 ? z * penalty : z / penalty;
    }
}
/* The tokens that top-k leaves: every one at least as likely as the k-th. Off: all but those that together weigh less
   than 2e-35. work: [V], their logits; returned is their number. */
static int gen_candidates(GenCandidate *work, const float *logits, int V, float top, const GenerateOptions *o) {
    bool top_k = o->top_k > 0 && o->top_k < V;
    float least = top_k ? gen_kth_largest(logits, V, o->top_k, work) : -80 * (float)fmax(o->temperature, 1e-3);
    int count = 0;
    for (int v = 0; v < V; v++) {
        if (top_k ? !(logits[v] >= least) : !(logits[v] - top > least)) continue;
        GenCandidate c = {logits[v], v};
        work[count++] = c;
    }
    return count;
}
/* Holtzman et al. 2020: the fewest tokens that together have probability top_p, the likeliest first. What is rarer than
   `rest` weighs less than 1 - top_p together: none of it is among the fewest, and few are left to sort. */
static int gen_top_p(GenCandidate *work, int count, double top_p, double *total) {
    double rest = (1 - top_p) * *total / count, sum = 0;
    int likely = 0, keep = 0;
    for (int i = 0; i < count; i++) if ((double)work[i].p >= rest) work[likely++] = work[i];
    qsort(work, (size_t)likely, sizeof *work, gen_candidate_falls);
    while (keep < likely && (keep == 0 || sum < top_p * *total)) sum += (double)work[keep++].p;
    *total = sum;
    return keep;
}
/* At least min_p times the best one's probability, which is 1 here. */
static int gen_min_p(GenCandidate *work, int count, double min_p, double *total) {
    int keep = 0;
    *total = 0;
    for (int i = 0; i < count; i++) {
        if (!((double)work[i].p >= min_p)) continue;
        work[keep++] = work[i];
        *total += (double)work[i].p;
    }
    return keep;
}

int32_t sample_token(float *logits, int V, const int32_t *seen, int seen_count, const GenerateOptions *o,
                     uint64_t prompt, uint32_t position, GenCandidate *work) {
    if (o->repetition_penalty != 1) gen_penalise(logits, seen, seen_count, (float)o->repetition_penalty, work);
    int best = 0;
    for (int v = 1; v < V; v++) if (logits[v] > logits[best]) best = v;
    if (o->temperature <= 0) return best;
    /* Probabilities relative to the best one's; what top-k, top-p and min-p leave of them. */
    float top = logits[best];
    int count = gen_candidates(work, logits, V, top, o);
    double total = 0;
    for (int i = 0; i < count; i++) {
        work[i].p = expf((float)((double)(work[i].p - top) / o->temperature));
        total += (double)work[i].p;
    }
    if (o->top_p < 1) count = gen_top_p(work, count, o->top_p, &total);
    if (o->min_p > 0) count = gen_min_p(work, count, o->min_p, &total);
    uint32_t counter[4] = {(uint32_t)prompt, (uint32_t)(prompt >> 32), position, 0x67656E21};
    uint32_t key[2] = {(uint32_t)o->seed, (uint32_t)(o->seed >> 32)}, random[4];
    philox4x32(random, counter, key);
    double at = ((double)random[0] * 0x1p-32 + (double)random[1] * 0x1p-64) * total;
    for (int i = 0; i + 1 < count; i++) if ((at -= (double)work[i].p) < 0) return work[i].id;
    return work[count - 1].id;
}

/* ---- answers ---------------------------------------------------------------------------------------------------- */

/* One sequence on its way: which prompt, its tokens so far, what of its text is out. */
typedef struct GenSequence {
    int64_t prompt;                         /* -1: the place is free */
    int32_t *ids;                           /* stb_ds array: prompt and answer */
    size_t sent;                            /* bytes of the text handed on */
} GenSequence;

/* Where a stop string begins in text [bytes], or what must be held back because one may be beginning at its end: the
   return value; *stopped tells which. */
static size_t gen_stop_position(const char *text, size_t bytes, const GenerateOptions *o, bool *stopped) {
    size_t hold = bytes;
    *stopped = false;
    for (int i = 0; i < o->stop_count; i++) {
        size_t n = strlen(o->stop[i]);
        const char *at = n ? strstr(text, o->stop[i]) : NULL;
        if (at && (!*stopped || (size_t)(at - text) < hold)) { hold = (size_t)(at - text); *stopped = true; }
        for (size_t k = n < bytes ? n : bytes; k > 0 && !*stopped; k--)
            if (!memcmp(text + bytes - k, o->stop[i], k)) { if (bytes - k < hold) hold = bytes - k; break; }
    }
    return hold;
}

/* Takes the next token; hands on the text that is certain; true: the answer is complete. */
static bool gen_sequence_take(GenSequence *s, int32_t id, const Tokenizer *t, const Prompt *prompt,
                              const GenerateOptions *o, Answer *answer,
                              bool (*on_text)(void *, size_t, const char *, size_t), void *user) {
    bool stop = t && tokenizer_is_stop(t, id), stopped = false, ended;
    if (!stop) arrput(s->ids, id);
    int made = (int)arrlen(s->ids) - prompt->count;
    size_t bytes = 0, certain;
    char *text = !t ? text_copy("") : tokenizer_decode(t, s->ids + prompt->count, (size_t)made, true, &bytes);
    certain = o->stop_count ? gen_stop_position(text, bytes, o, &stopped) : bytes;
    ended = stop || stopped || made >= o->max_new_tokens;
    if (!stopped && ended) certain = bytes;
    /* A character whose bytes have not all come is U+FFFD so far. */
    while (!ended && certain >= 3 && !memcmp(text + certain - 3, "\xEF\xBF\xBD", 3)) certain -= 3;
    if (certain > s->sent && on_text) ended |= !on_text(user, (size_t)s->prompt, text + s->sent, certain - s->sent);
    if (certain > s->sent) s->sent = certain;
    if (ended) {
        answer->text = text_copy_bytes(text, certain);
        answer->count = made;
        answer->ids = (int32_t *)must_alloc((size_t)made * sizeof(int32_t));
        if (made) memcpy(answer->ids, s->ids + prompt->count, (size_t)made * sizeof(int32_t));
        answer->stopped = stop || stopped;
    }
    free(text);
    return ended;
}
void answers_free(Answer *answers, size_t count) {
    for (size_t i = 0; i < count; i++) { free(answers[i].text); free(answers[i].ids); }
    memset(answers, 0, count * sizeof *answers);
}

void generator_close(Generator *g) {
    backend_free(g->cache.place, (size_t)g->work.max_tokens * sizeof(int32_t));
    backend_free(g->cache.base, g->cache.bytes);
    batch_free(&g->batch);
    workspace_close(&g->work);
    memset(g, 0, sizeof *g);
}

bool generator_open(Generator *g, const Model *m, const Adapter *a, int places, int longest, int max_new_tokens,
                    bool allocate, Error *err) {
    const ModelConfig *c = &m->config;
    Cache *cache = &g->cache;
    int most = longest > places ? longest : places;    /* tokens of one pass: a prompt, or one of every sequence */
    generator_close(g);
    cache->places = places;
    cache->capacity = longest + max_new_tokens;
    cache->layer = (size_t)places * 2 * (size_t)c->num_key_value_heads * (size_t)cache->capacity * (size_t)c->head_dim;
    cache->bytes = cache->layer * (size_t)c->num_hidden_layers * sizeof(floatX);
    if (!workspace_open(&g->work, m, a, most, cache->capacity, FORWARD_ONLY, allocate, NULL, err)) return false;
    g->bytes = g->work.arena_bytes + cache->bytes + (size_t)most * sizeof(int32_t);
    if (!allocate) return true;
    if (cache->bytes > backend_memory() || !(cache->base = (floatX *)backend_alloc(cache->bytes)) ||
        !(cache->place = (int32_t *)backend_alloc((size_t)most * sizeof(int32_t))))
        return fail(err, "no memory for the keys and values: %.2f GiB for %d sequences of %d tokens, %.2f GiB free; "
                         "memory; lower --batch-size or --max-new-tokens", (double)cache->bytes / 0x1p30, places,
                    cache->capacity, (double)backend_memory() / 0x1p30);
    g->work.cache = cache;
    return batch_alloc(&g->batch, most, places, err);
}

/* Can the model answer these, in the memory that there is? *places: sequences at once; *longest: tokens of a prompt. */
static bool gen_check(const Model *m, const Generator *g, const Prompt *prompts, size_t count,
                      const GenerateOptions *o, int *places, int *longest, Error *err) {
    const ModelConfig *c = &m->config;
    *places = (size_t)o->batch_size < count ? o->batch_size : (int)count;
    *longest = 0;
    for (size_t i = 0; i < count; i++) {
        const Prompt *p = &prompts[i];
        if (p->count > *longest) *longest = p->count;
        if (p->count + o->max_new_tokens > c->max_position_embeddings && c->rope_scaling.type == ROPE_DEFAULT)
            return fail(err, "a prompt of %d tokens and %d new ones are more than the %d that the model was made for; "
                             "row %lld; shorten it or lower --max-new-tokens", p->count, o->max_new_tokens,
                        c->max_position_embeddings, (long long)p->row);
        for (int k = 0; k < p->count; k++)
            if (p->ids[k] >= c->vocab_size)
                return fail(err, "token id %d in a vocabulary of %d; row %lld; the tokenizer belongs to another model",
                            p->ids[k], c->vocab_size, (long long)p->row);
    }
    if (g && (*places > g->cache.places || *longest + o->max_new_tokens > g->cache.capacity ||
              *longest > g->work.max_tokens))
        return fail(err, "%d sequences of %d tokens in memory for %d of %d; generator_open; open a larger one", *places,
                    *longest + o->max_new_tokens, g->cache.places, g->cache.capacity);
    return true;
}

/* One call of model_generate on its way: pass after pass over a batch that is either whole prompts, or the newest token
   of every sequence that is running. */
typedef struct Generation {
    const Model *m;
    const Adapter *a;                       /* NULL: the base alone */
    Generator *g;
    const Tokenizer *t;
    const Prompt *prompts;                  /* [count] */
    size_t count, started, done;            /* prompts: all, begun, answered */
    const GenerateOptions *o;
    Answer *answers;                        /* [count] */
    bool (*on_text)(void *, size_t, const char *, size_t);
    void *user;
    GenSequence *sequences;                 /* [places]: of the cache */
    int places;
    int32_t *place;                         /* [N]: of every token of the pass */
    int32_t *last, *next;                   /* [S]: the row whose logits choose a token, and whose token that is */
    float *logits;                          /* [S,V] */
    GenCandidate *work;                        /* [V] */
} Generation;

static void gen_begin(Generation *n) {
    size_t places = (size_t)n->places, V = (size_t)n->m->config.vocab_size;
    n->place = (int32_t *)must_alloc((size_t)n->g->work.max_tokens * sizeof *n->place);
    n->last = (int32_t *)must_alloc(places * sizeof *n->last);
    n->next = (int32_t *)must_alloc(places * sizeof *n->next);
    n->logits = (float *)must_alloc(places * V * sizeof *n->logits);
    n->work = (GenCandidate *)must_alloc(V * sizeof *n->work);
    n->sequences = (GenSequence *)must_alloc(places * sizeof *n->sequences);
    for (int s = 0; s < n->places; s++) n->sequences[s].prompt = -1;
}
static void gen_end(Generation *n) {
    for (int s = 0; s < n->places; s++) arrfree(n->sequences[s].ids);
    free(n->place); free(n->last); free(n->next); free(n->logits); free(n->work); free(n->sequences);
}

/* Tokens of sequence s from position `from` on join the pass; the last one's logits will choose its next. */
static void gen_join(Generation *n, int s, int from) {
    Batch *b = &n->g->batch;
    const int32_t *ids = n->sequences[s].ids;
    for (int i = from; i < (int)arrlen(ids); i++) {
        b->ids[b->N] = ids[i];
        b->positions[b->N] = i;
        n->place[b->N++] = s;
    }
    n->last[b->S] = b->N - 1;
    n->next[b->S++] = s;
    b->cu_seqlens[b->S] = b->N;
}
/* What the next pass is over. Free places take the next prompts, as many as fit into one pass; where none does, every
   sequence that is running takes one step. */
static void gen_schedule(Generation *n) {
    Batch *b = &n->g->batch;
    b->N = b->S = b->M = 0;                 /* nothing is labelled */
    b->cu_seqlens[0] = 0;
    for (int s = 0; s < n->places && n->started < n->count; s++) {
        GenSequence *q = &n->sequences[s];
        const Prompt *p = &n->prompts[n->started];
        if (q->prompt >= 0 || b->N + p->count > n->g->work.max_tokens) continue;
        q->prompt = (int64_t)n->started++;
        q->sent = 0;
        arrsetlen(q->ids, 0);
        for (int i = 0; i < p->count; i++) arrput(q->ids, p->ids[i]);
        gen_join(n, s, 0);
    }
    n->g->cache.decode = !b->N;
    for (int s = 0; s < n->places && n->g->cache.decode; s++)
        if (n->sequences[s].prompt >= 0) gen_join(n, s, (int)arrlen(n->sequences[s].ids) - 1);
}
/* The pass: n->logits [S,V] of each sequence's last token. */
static void gen_forward(Generation *n) {
    const DropoutKey none = {0, 0, 0, 0};
    Workspace *w = &n->g->work;
    const Batch *b = &n->g->batch;
    const Weight *head = adapter_head(n->m, n->a);
    int V = n->m->config.vocab_size, C = n->m->config.hidden_size;
    backend_upload(n->g->cache.place, n->place, (size_t)b->N * sizeof *n->place);
    model_forward(n->m, n->a, w, b, none);
    if (n->g->cache.decode) lm_head_logits(n->logits, w->normed, head, b->N, C, V, w->scratch);      /* N = S rows */
    else for (int i = 0; i < b->S; i++)
        lm_head_logits(n->logits + (size_t)i * (size_t)V, w->normed + (size_t)n->last[i] * (size_t)C, head, 1, C, V,
                       w->scratch);
}
/* Every sequence of the pass takes a token; what is complete makes room. */
static bool gen_sample(Generation *n, Error *err) {
    int V = n->m->config.vocab_size;
    for (int i = 0; i < n->g->batch.S; i++) {
        GenSequence *s = &n->sequences[n->next[i]];
        const Prompt *p = &n->prompts[s->prompt];
        Answer *answer = &n->answers[s->prompt];
        float *z = n->logits + (size_t)i * (size_t)V;
        int length = (int)arrlen(s->ids);
        if (first_nonfinite(z, (size_t)V) >= 0)
            return fail(err, "the logits are not finite; row %lld, token %d; the adapter or the model is damaged",
                        (long long)p->row, length);
        int32_t id = sample_token(z, V, s->ids, length, n->o, (uint64_t)p->row, (uint32_t)length, n->work);
        if (!gen_sequence_take(s, id, n->t, p, n->o, answer, n->on_text, n->user)) continue;
        if (n->o->on_answer) n->o->on_answer(n->user, (size_t)s->prompt);
        s->prompt = -1;
        n->done++;
    }
    return true;
}

bool model_generate(const Model *m, const Adapter *a, Generator *g, const Tokenizer *t, const Prompt *prompts,
                    size_t count, const GenerateOptions *o, Answer *answers,
                    bool (*on_text)(void *, size_t, const char *, size_t), void *user, Error *err) {
    Generator own;
    int longest, places;
    memset(&own, 0, sizeof own);
    memset(answers, 0, count * sizeof *answers);
    if (!model_speaks(m, a, err)) return false;
    if (!gen_check(m, g, prompts, count, o, &places, &longest, err)) return false;
    if (!g && !generator_open(&own, m, a, places, longest, o->max_new_tokens, true, err)) {
        generator_close(&own);
        return false;
    }
    Generation n;
    memset(&n, 0, sizeof n);
    n.m = m; n.a = a; n.g = g ? g : &own; n.t = t;
    n.prompts = prompts; n.count = count; n.o = o; n.answers = answers;
    n.on_text = on_text; n.user = user;
    n.places = places;
    bool ok = true;
    gen_begin(&n);
    while (n.done < count && ok) {
        gen_schedule(&n);
        gen_forward(&n);
        ok = gen_sample(&n, err);
    }
    gen_end(&n);
    generator_close(&own);
    if (!ok) answers_free(answers, count);
    return ok;
}

/* =====================================================================================================================
   8  THE CPU OPS
   One matrix product carries nearly all the work; the rest is row by row, and gradients that are sums over rows go by
   columns. GCC vectors (8 or 16 floats) instead of intrinsics: the same lines become AVX-512, AVX2 or NEON code. Every
   sum runs in an order fixed by the shapes alone, so one thread and sixteen give the same bits. No op allocates: what it
   needs beyond its outputs is in its scratch. What an op means, in naive loops and double sums, is test/reference.h;
   formulas stand beside the code.
   ================================================================================================================== */
#ifndef LORA_NO_CPU_OPS

/* The names of BLIS: a tile of C, MR x NR, stays in registers while a slice of B, KC x NR, stays in a 32 KiB L1. */
#if defined(__AVX512F__)
#define CPU_VL 16                           /* floats in a vector */
#define CPU_MR 12                           /* 24 registers of C + 2 of B + 1 of A, of 32 */
#elif defined(__AVX2__)
#define CPU_VL 8
#define CPU_MR 6                            /* 12 + 2 + 1 of 16 */
#else
#define CPU_VL 4
#define CPU_MR 6
#endif
#define CPU_NR (2 * CPU_VL)
#define CPU_KC 256
#define CPU_QB 16                           /* attention: queries of a tile, */
#define CPU_KB 64                           /* and keys */

typedef float cpu_vec __attribute__((vector_size(CPU_VL * 4)));
typedef int32_t cpu_ivec __attribute__((vector_size(CPU_VL * 4)));
typedef uint32_t cpu_uvec __attribute__((vector_size(CPU_VL * 4)));
typedef uint16_t cpu_hvec __attribute__((vector_size(CPU_VL * 2)));
typedef float cpu_vec_unaligned __attribute__((vector_size(CPU_VL * 4), aligned(4), may_alias));

static inline cpu_vec cpu_load(const float *p) { return *(const cpu_vec_unaligned *)p; }
static inline void cpu_store(float *p, cpu_vec v) { *(cpu_vec_unaligned *)p = v; }
static inline cpu_vec cpu_splat(float x) { return x - (cpu_vec){0}; }
static inline cpu_vec cpu_max(cpu_vec a, cpu_vec b) {
    cpu_ivec m = a > b;
    return (cpu_vec)(((cpu_ivec)a & m) | ((cpu_ivec)b & ~m));
}
static inline float cpu_sum(cpu_vec v) {    /* a fixed tree */
    float s[CPU_VL];
    cpu_store(s, v);
    for (int w = CPU_VL / 2; w; w /= 2) for (int i = 0; i < w; i++) s[i] += s[i + w];
    return s[0];
}
static inline float cpu_max_lane(cpu_vec v) {
    float s[CPU_VL], m;
    cpu_store(s, v);
    m = s[0];
    for (int i = 1; i < CPU_VL; i++) if (s[i] > m) m = s[i];
    return m;
}

/* e^x = 2^n e^r, n = round(x / ln 2), |r| <= ln(2)/2, ln 2 split in two so that r is exact; Taylor to r^7 is below half
   an ulp there. Underflows to 0, saturates at the largest float. */
static inline cpu_vec cpu_exp(cpu_vec x) {
    cpu_ivec low = x < -87.0f, high = x > 88.5f;
    x = (cpu_vec)(((cpu_ivec)x & ~(low | high)));
    cpu_vec n = x * 1.44269504f + 12582912.0f;        /* 1.5 * 2^23: the addition rounds to an integer */
    cpu_ivec bits = (cpu_ivec)n;                      /* whose value sits in the low mantissa bits */
    n -= 12582912.0f;
    cpu_vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    cpu_vec p = r * (1.0f / 5040) + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    p = (cpu_vec)((cpu_ivec)p + (bits << 23));
    return (cpu_vec)((((cpu_ivec)p & ~low) & ~high) | (high & (cpu_ivec)cpu_splat(FLT_MAX)));
}

static inline float cpu_dot(const float *a, const float *b, int n) {
    cpu_vec sum = {0};
    int i = 0;
    for (; i + CPU_VL <= n; i += CPU_VL) sum += cpu_load(a + i) * cpu_load(b + i);
    float s = cpu_sum(sum);
    for (; i < n; i++) s += a[i] * b[i];
    return s;
}

/* Where row `row` of a matrix begins whose rows have `width` numbers. */
static inline size_t cpu_at(int row, int width) { return (size_t)row * (size_t)width; }

static int cpu_threads(void) {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

static size_t cpu_taken;                    /* bytes given out */
/* Page-aligned zeroed memory that the system hands out only when it is touched. */
void *backend_alloc(size_t bytes) {
    void *p = mmap(NULL, bytes ? bytes : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
#ifdef MADV_HUGEPAGE
    if (bytes >= (size_t)8 << 20) madvise(p, bytes, MADV_HUGEPAGE);           /* fewer TLB misses in the products */
#endif
    cpu_taken += bytes;
    return p;
}
void backend_free(void *p, size_t bytes) {
    if (!p) return;
    munmap(p, bytes ? bytes : 1);
    cpu_taken -= bytes;
}

bool backend_open(const ModelConfig *c, Error *err) { (void)c; (void)err; return true; }
void backend_upload(void *to, const void *from, size_t bytes) { memcpy(to, from, bytes); }
void backend_download(void *to, const void *from, size_t bytes) { memcpy(to, from, bytes); }
void backend_zero(void *p, size_t bytes) { memset(p, 0, bytes); }
size_t backend_memory(void) { return machine_memory(); }
double backend_ceiling(void) {              /* every thread multiplies and adds in registers, 24 independent chains */
    double best = 0;
    for (int trial = 0; trial < 3; trial++) {
        enum { CHAINS = 24, ROUNDS = 100000 };
        struct timespec begin, end;
        float sink = 0;
        clock_gettime(CLOCK_MONOTONIC, &begin);
#pragma omp parallel reduction(+ : sink)
        {
            cpu_vec a[CHAINS], x = cpu_splat(0.999f), y = cpu_splat(1e-3f);
            for (int i = 0; i < CHAINS; i++) a[i] = cpu_splat((float)i);
            for (int round = 0; round < ROUNDS; round++)
#pragma GCC unroll 24
                for (int i = 0; i < CHAINS; i++) a[i] = a[i] * x + y;
            for (int i = 0; i < CHAINS; i++) sink += cpu_sum(a[i]);
        }
        clock_gettime(CLOCK_MONOTONIC, &end);
        double seconds = (double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec);
        double flops = 2.0 * CHAINS * ROUNDS * CPU_VL * cpu_threads() / seconds;
        if (flops > best && sink != 0) best = flops;
    }
    return best;
}
size_t backend_overhead(const char **name) {
    size_t r = resident_bytes(false);
    *name = "program and data set";
    return r > cpu_taken ? r - cpu_taken : 0;
}
size_t embedding_packed_bytes(const Weight *embed) { (void)embed; return 0; }
void backend_describe(char *text, size_t bytes) {
    const char *vectors = CPU_VL == 16 ? "AVX-512" : CPU_VL == 8 ? "AVX2" : "128-bit vectors";
    snprintf(text, bytes, "CPU, %d threads, %s, %.1f GiB free, fp32 arithmetic", cpu_threads(), vectors,
             (double)machine_memory() / 0x1p30);
}

/* ---- the matrix product ------------------------------------------------------------------------------------------
   C = alpha A B, or with add C += alpha A B:

       for (int m = 0; m < M; m++)
           for (int n = 0; n < N; n++) {
               float sum = 0;
               for (int k = 0; k < K; k++) sum += alpha * A[m][k] * B[k][n];
               C[m][n] = add ? C[m][n] + sum : sum;
           }

   (test/reference.h's product, which the tests hold against cpu_gemm) reads B from memory once for every row of A and
   adds one number a cycle. Here the loops are blocked as BLIS does it (Van Zee & van de Geijn 2015):
     - A is brought once into tiles [M/MR][K][MR];
     - B comes by slices of KC x NR that stay in L1 while every tile of A passes by;
     - MR x NR sums stay in registers for KC steps of k, 2 MR independent chains of multiply-adds (cpu_gemm_tile).
   A frozen weight W [O, I] is stored in the order in which y = x W^T reads it, panels [O/NR][I][NR] in its own format,
   packed once at load. dx = dy W reads the same panels and transposes NR x NR blocks on their way into the slice: N
   tokens amortise it, about 5 % at N = 256. */

typedef struct CpuMatrix {                  /* where B [K, N] comes from */
    const Weight *weight;                   /* frozen weight, or NULL: */
    bool transposed;                        /* weight: false B = W^T (K = I, N = O), true B = W (K = O, N = I) */
    const float *data;                      /* B[k][n] = data[k * row + n * column] */
    size_t row, column;
} CpuMatrix;
static CpuMatrix cpu_frozen(const Weight *w, bool transposed) { CpuMatrix b = {w, transposed, NULL, 0, 0}; return b; }
static CpuMatrix cpu_floats(const float *data, size_t row, size_t column) {
    CpuMatrix b = {NULL, false, data, row, column};
    return b;
}

size_t weight_packed_bytes(const Weight *w) {
    size_t rows = (size_t)((w->rows + CPU_NR - 1) / CPU_NR) * CPU_NR;
    return format_bytes(w->format, rows * (size_t)w->cols);
}
/* The panels of w as a weight whose numbers lie in their order: what decode reads. */
static inline Weight cpu_panels(const Weight *w) { Weight panels = *w; panels.data = w->packed; return panels; }

/* out[j][i] = in[i][j], NR x NR floats. */
static inline void cpu_transpose_block(float *out, const float *in) {
#if CPU_VL == 16 && defined(__GNUC__) && !defined(__clang__)
    /* Four rounds swap ever larger squares across the diagonal of each 16 x 16 quarter. */
    for (int q = 0; q < 4; q++) {
        const float *from = in + (q / 2) * 16 * CPU_NR + (q % 2) * 16;
        float *to = out + (q % 2) * 16 * CPU_NR + (q / 2) * 16;
        cpu_vec a[16];
        for (int i = 0; i < 16; i++) a[i] = cpu_load(from + i * CPU_NR);
#define CPU_SWAP(S) \
        for (int i = 0; i < 16; i++) if (!(i & S)) { \
            cpu_vec x = a[i], y = a[i + S]; \
            cpu_ivec low, high; \
            for (int j = 0; j < 16; j++) { low[j] = j & S ? 16 + j - S : j; high[j] = j & S ? 16 + j : j + S; } \
            a[i] = __builtin_shuffle(x, y, low); \
            a[i + S] = __builtin_shuffle(x, y, high); \
        }
        CPU_SWAP(1) CPU_SWAP(2) CPU_SWAP(4) CPU_SWAP(8)
#undef CPU_SWAP
        for (int i = 0; i < 16; i++) cpu_store(to + i * CPU_NR, a[i]);
    }
#else
    for (int i = 0; i < CPU_NR; i++) for (int j = 0; j < CPU_NR; j++) out[j * CPU_NR + i] = in[i * CPU_NR + j];
#endif
}

/* The panels of w, of the numbers in w->data or of `values`, which then are rounded on their way, and go to w->data,
   too. For formats of one number a block, 2 or 4 bytes. */
static void cpu_pack(const Weight *w, const float *values) {
    int panels = (w->rows + CPU_NR - 1) / CPU_NR, I = w->cols;
    const size_t size = format_bytes(w->format, 1), in = values ? sizeof(float) : size;
    const char *source = values ? (const char *)values : (const char *)w->data;
#pragma omp parallel for schedule(static)
    for (int p = 0; p < panels; p++) {
        int rows = w->rows - p * CPU_NR < CPU_NR ? w->rows - p * CPU_NR : CPU_NR;
        for (int r = 0; values && w->data && r < rows; r++) {
            size_t at = cpu_at(p * CPU_NR + r, I);
            weight_format[w->format].encode((char *)w->data + at * size, values + at, (size_t)I);
        }
        if (!w->packed) continue;
        char *out = (char *)w->packed + cpu_at(p, I) * CPU_NR * size;
        for (int begin = 0; begin < I; begin += CPU_NR) {
            /* A block is first brought together: its rows lie a power of two apart in memory and would evict each other
               from the cache while being transposed. */
            float block[CPU_NR * CPU_NR] __attribute__((aligned(64)));
            float transposed[CPU_NR * CPU_NR] __attribute__((aligned(64)));
            char *from = (char *)block, *to = (char *)transposed;
            int width = I - begin < CPU_NR ? I - begin : CPU_NR;
            if (rows < CPU_NR || width < CPU_NR) memset(block, 0, sizeof block);
            for (int r = 0; r < rows; r++) {
                size_t at = cpu_at(p * CPU_NR + r, I) + (size_t)begin;
                memcpy(from + (size_t)r * CPU_NR * in, source + at * in, (size_t)width * in);
            }
            if (in == 4) cpu_transpose_block(transposed, block);
            else for (int i = 0; i < CPU_NR; i++) for (int r = 0; r < CPU_NR; r++)
                memcpy(to + (i * CPU_NR + r) * 2, from + (r * CPU_NR + i) * 2, 2);
            char *there = out + (size_t)begin * CPU_NR * size;
            if (values) weight_format[w->format].encode(there, transposed, (size_t)width * CPU_NR);
            else memcpy(there, transposed, (size_t)width * CPU_NR * size);
        }
    }
}
void weight_pack(Weight *w, void *where) {
    w->packed = where;
    cpu_pack(w, NULL);
}
void weight_set(Weight *w, const float *values) { cpu_pack(w, values); }

void vector_set(float *out, const float *values, size_t count, FormatId format, float factor) {
    enum { BLOCK = 256 };
    for (size_t at = 0; at < count; at += BLOCK) {
        size_t n = count - at < BLOCK ? count - at : (size_t)BLOCK;
        float rounded[BLOCK];
        Weight w = {rounded, NULL, format, 1, (int)n};
        weight_format[format].encode(rounded, values + at, n);
        weight_decode(out + at, &w, 0, n);
        for (size_t i = at; i < at + n; i++) out[i] *= factor;
    }
}

/* The slice B[k0..k0+kc)[n0..n0+NR), zero-padded, as [kc][NR] floats: in `buffer`, or where it already lies. */
static const float *cpu_slice(float *buffer, const CpuMatrix *b, int k0, int kc, int n0, int N) {
    int width = N - n0 < CPU_NR ? N - n0 : CPU_NR;
    const Weight *w = b->weight;
    if (w && !b->transposed) {
        size_t at = (cpu_at(n0 / CPU_NR, w->cols) + (size_t)k0) * CPU_NR;
        if (w->format == FORMAT_F32) return (const float *)w->packed + at;
        Weight panels = cpu_panels(w);
        weight_decode(buffer, &panels, at, (size_t)kc * CPU_NR);
    } else if (w) {
        Weight panels = cpu_panels(w);
        float block[CPU_NR * CPU_NR] __attribute__((aligned(64)));
        float transposed[CPU_NR * CPU_NR] __attribute__((aligned(64)));
        for (int k = 0; k < kc; k += CPU_NR) {
            int depth = kc - k < CPU_NR ? kc - k : CPU_NR;
            size_t at = (cpu_at((k0 + k) / CPU_NR, w->cols) + (size_t)n0) * CPU_NR;
            weight_decode(block, &panels, at, (size_t)width * CPU_NR);
            if (width < CPU_NR) memset(block + width * CPU_NR, 0, (size_t)(CPU_NR - width) * CPU_NR * sizeof(float));
            cpu_transpose_block(depth == CPU_NR ? buffer + k * CPU_NR : transposed, block);
            if (depth < CPU_NR) memcpy(buffer + k * CPU_NR, transposed, (size_t)depth * CPU_NR * sizeof(float));
        }
    } else {
        for (int k = 0; k < kc; k++) {
            const float *row = b->data + (size_t)(k0 + k) * b->row + (size_t)n0 * b->column;
            float *out = buffer + k * CPU_NR;
            if (width == CPU_NR && b->column == 1) memcpy(out, row, CPU_NR * sizeof(float));
            else for (int n = 0; n < CPU_NR; n++) out[n] = n < width ? row[(size_t)n * b->column] : 0;
        }
    }
    return buffer;
}

/* c[MR][NR] (rows x width of it exist) = a[kc][MR]^T b[kc][NR], or with add += that: one addition, which no compiler
   rounds in two ways. */
static inline void cpu_gemm_tile(float *c, size_t ldc, int rows, int width, const float *a, const float *b, int kc,
                                 bool add) {
    cpu_vec acc[CPU_MR][2];
#pragma GCC unroll 12
    for (int i = 0; i < CPU_MR; i++) acc[i][0] = acc[i][1] = (cpu_vec){0};
    for (int k = 0; k < kc; k++, a += CPU_MR, b += CPU_NR) {
        cpu_vec b0 = cpu_load(b), b1 = cpu_load(b + CPU_VL);
#pragma GCC unroll 12
        for (int i = 0; i < CPU_MR; i++) { acc[i][0] += b0 * a[i]; acc[i][1] += b1 * a[i]; }
    }
    if (rows == CPU_MR && width == CPU_NR) {
#pragma GCC unroll 12
        for (int i = 0; i < CPU_MR; i++) {
            float *row = c + (size_t)i * ldc;
            cpu_store(row, add ? acc[i][0] + cpu_load(row) : acc[i][0]);
            cpu_store(row + CPU_VL, add ? acc[i][1] + cpu_load(row + CPU_VL) : acc[i][1]);
        }
    } else {
        float tile[CPU_MR][CPU_NR], edge[CPU_NR] = {0};
#pragma GCC unroll 12
        for (int i = 0; i < CPU_MR; i++) { cpu_store(tile[i], acc[i][0]); cpu_store(tile[i] + CPU_VL, acc[i][1]); }
        for (int i = 0; i < rows; i++) {
            float *row = c + (size_t)i * ldc;
            if (add) memcpy(edge, row, (size_t)width * sizeof(float));
            for (int v = 0; v < CPU_NR; v += CPU_VL)
                cpu_store(edge + v, add ? cpu_load(tile[i] + v) + cpu_load(edge + v) : cpu_load(tile[i] + v));
            memcpy(row, edge, (size_t)width * sizeof(float));
        }
    }
}

/* One column of a tile of A: out[MR], zero beyond its rows. */
static inline void cpu_pack_column(float *out, const float *from, size_t a_row, int rows, float alpha) {
    if (a_row == 1 && rows == CPU_MR) for (int i = 0; i < CPU_MR; i++) out[i] = alpha * from[i];
    else for (int i = 0; i < CPU_MR; i++) out[i] = i < rows ? alpha * from[(size_t)i * a_row] : 0;
}

static size_t cpu_gemm_floats(int M, int K) { return cpu_at((M + CPU_MR - 1) / CPU_MR * CPU_MR, K); }

/* ---- few rows, as in generation
   C [M,N] = A W^T, or with add += that, M <= MR. The weights' way from memory is all the time there is: each is read
   once, straight into the products, `panels` panels side by side. With `rows` that makes eight independent chains of
   sums or more, and for one or two rows several streams for the prefetchers. Every sum has the order that the tiles
   give it, so that a row has the same bits in a batch of one as in a batch of hundreds. */
typedef struct CpuGemv {
    float *C;                               /* [M, N], row stride ldc */
    size_t ldc;
    const float *a;                         /* A[m][k] = a[m * a_row + k]; over 4 rows: a[k * MR + m] */
    size_t a_row;
    const Weight *w;                        /* [N, K] */
    int M, N, K;
    bool add;
} CpuGemv;

/* VL numbers of the panels from number `at` on: weight_decode for a vector, and the one place where a format has vector
   code of its own. Generation waits for nothing else. */
static inline cpu_vec cpu_panel_load(const Weight *w, size_t at) {
    if (w->format == FORMAT_F32) return cpu_load((const float *)w->packed + at);
    cpu_hvec h;
    memcpy(&h, (const uint16_t *)w->packed + at, sizeof h);
    cpu_uvec bits = __builtin_convertvector(h, cpu_uvec);
    if (w->format == FORMAT_BF16) return (cpu_vec)(bits << 16);
    cpu_vec magnitude = (cpu_vec)((bits & 0x7fff) << 13) * 0x1p112f; /* as format_decode_f16; weights are finite */
    return (cpu_vec)((cpu_uvec)magnitude | (bits & 0x8000) << 16);
}

/* All rows of C in `panels` panels of N from panel `first` on. rows >= M and panels are known to the compiler, which
   keeps acc in registers. */
static inline __attribute__((always_inline)) void cpu_gemv_rows(const CpuGemv g, int first, const int rows,
                                                                const int panels) {
    const size_t a_row = rows > 4 ? 1 : g.a_row, a_column = rows > 4 ? CPU_MR : 1, size = format_bytes(g.w->format, 1);
    int last = (g.N + CPU_NR - 1) / CPU_NR - 1;
    cpu_vec sum[12][2];                     /* [panels * rows]: of the slices of K so far */
    memset(sum, 0, sizeof sum);
    for (int k0 = 0; k0 < g.K; k0 += CPU_KC) {
        cpu_vec acc[12][2];                 /* of this one */
        int kc = g.K - k0 < CPU_KC ? g.K - k0 : CPU_KC;
        size_t at[4];                       /* where the slice begins in each panel; past the last one: that again */
        for (int p = 0; p < panels; p++)
            at[p] = (cpu_at(first + p < last ? first + p : last, g.K) + (size_t)k0) * CPU_NR;
        for (int i = 0; i < rows * panels; i++) acc[i][0] = acc[i][1] = (cpu_vec){0};
        for (int k = 0; k < kc; k++)
#pragma GCC unroll 4
            for (int p = 0; p < panels; p++) {
                size_t here = at[p] + (size_t)k * CPU_NR;
                /* A single stream: 30 % faster (48: any of 12 to 96 does). */
                if (panels == 1) __builtin_prefetch((const char *)g.w->packed + (here + 48 * CPU_NR) * size);
                cpu_vec b0 = cpu_panel_load(g.w, here), b1 = cpu_panel_load(g.w, here + CPU_VL);
#pragma GCC unroll 12
                for (int r = 0; r < rows; r++) {
                    float x = g.a[(size_t)r * a_row + (size_t)(k0 + k) * a_column];
                    acc[p * rows + r][0] += b0 * x;
                    acc[p * rows + r][1] += b1 * x;
                }
            }
        for (int p = 0; p < panels; p++) {
            for (int r = 0; r < rows && r < g.M && first + p <= last; r++) {
                int n0 = (first + p) * CPU_NR, width = g.N - n0 < CPU_NR ? g.N - n0 : CPU_NR, i = p * rows + r;
                float *row = g.C + (size_t)r * g.ldc + (size_t)n0, before[CPU_NR] = {0}, after[CPU_NR];
                if (!k0 && g.add) memcpy(before, row, (size_t)width * sizeof(float));
                for (int v = 0; v < 2; v++) {
                    if (!k0) sum[i][v] = cpu_load(before + v * CPU_VL);
                    sum[i][v] = k0 || g.add ? acc[i][v] + sum[i][v] : acc[i][v];
                }
                if (k0 + CPU_KC < g.K) continue;
                cpu_store(after, sum[i][0]);
                cpu_store(after + CPU_VL, sum[i][1]);
                memcpy(row, after, (size_t)width * sizeof(float));
            }
        }
    }
}
/* packed: cpu_gemm_floats(M, K) floats */
static void cpu_gemv(CpuGemv g, float *packed) {
    int panels = (g.N + CPU_NR - 1) / CPU_NR, together = g.M == 1 ? 4 : g.M == 2 ? 2 : 1;
    const float *a = g.a;
    if (g.M > 4) g.a = packed;
#pragma omp parallel
    {
        if (g.M > 4) {                      /* more rows than ways of the cache would evict each other: [K][MR] */
#pragma omp for schedule(static)
            for (int k = 0; k < g.K; k++) cpu_pack_column(packed + (size_t)k * CPU_MR, a + k, g.a_row, g.M, 1);
        }
#pragma omp for schedule(static)
        for (int p = 0; p < panels; p += together) {
            if (g.M == 1) cpu_gemv_rows(g, p, 1, 4);
            else if (g.M == 2) cpu_gemv_rows(g, p, 2, 2);
            else if (g.M == 3) cpu_gemv_rows(g, p, 3, 1);
            else if (g.M == 4) cpu_gemv_rows(g, p, 4, 1);
            else if (g.M <= 6) cpu_gemv_rows(g, p, 6, 1);
            else if (g.M <= 8) cpu_gemv_rows(g, p, 8, 1);
            else cpu_gemv_rows(g, p, CPU_MR, 1);
        }
    }
}

/* ---- many rows
   C [M,N] (row stride ldc) = alpha A B, or with add += that;  A[m][k] = a[m * a_row + k * a_column], times alpha on its
   way into the tiles. */
static void cpu_gemm(float *C, size_t ldc, const float *a, size_t a_row, size_t a_column, CpuMatrix b, int M, int N,
                     int K, float alpha, bool add, ScratchCursor scratch) {
    float *packed = scratch_take(&scratch, cpu_gemm_floats(M, K));
    if (M <= CPU_MR && b.weight && !b.transposed && a_column == 1 && alpha == 1) {
        CpuGemv few = {C, ldc, a, a_row, b.weight, M, N, K, add};
        cpu_gemv(few, packed);
        return;
    }
    int tiles = (M + CPU_MR - 1) / CPU_MR, panels = (N + CPU_NR - 1) / CPU_NR, threads = cpu_threads();
    /* Few columns (a LoRA rank): split the rows too, or one thread would do it all. The split changes no sum. */
    int pieces = panels >= 4 * threads ? 1 : (4 * threads + panels - 1) / panels;
    if (pieces > tiles) pieces = tiles;
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int t = 0; t < tiles; t++) {
            float *out = packed + cpu_at(t * CPU_MR, K);
            int rows = M - t * CPU_MR < CPU_MR ? M - t * CPU_MR : CPU_MR;
            const float *from = a + (size_t)t * CPU_MR * a_row;
            for (int k = 0; k < K; k++)
                cpu_pack_column(out + (size_t)k * CPU_MR, from + (size_t)k * a_column, a_row, rows, alpha);
        }
#pragma omp for schedule(dynamic)
        for (int task = 0; task < panels * pieces; task++) {
            float buffer[CPU_KC * CPU_NR] __attribute__((aligned(64)));
            int n0 = task / pieces * CPU_NR, width = N - n0 < CPU_NR ? N - n0 : CPU_NR, piece = task % pieces;
            int first = (int)((int64_t)tiles * piece / pieces), last = (int)((int64_t)tiles * (piece + 1) / pieces);
            for (int k0 = 0; k0 < K; k0 += CPU_KC) {
                int kc = K - k0 < CPU_KC ? K - k0 : CPU_KC;
                const float *slice = cpu_slice(buffer, &b, k0, kc, n0, N);
                for (int t = first; t < last; t++) {
                    int rows = M - t * CPU_MR < CPU_MR ? M - t * CPU_MR : CPU_MR;
                    cpu_gemm_tile(C + (size_t)t * CPU_MR * ldc + (size_t)n0, ldc, rows, width,
                                  packed + (cpu_at(t, K) + (size_t)k0) * CPU_MR, slice, kc, k0 || add);
                }
            }
        }
    }
}

/* Logits come a chunk of rows at a time: 64 MiB of them at most, whole tiles. */
static int cpu_logits_chunk(int n, int vocab) {
    int rows = (int)(((size_t)16 << 20) / (size_t)vocab) / CPU_MR * CPU_MR;
    if (rows > 240) rows = 240;
    if (rows < CPU_MR) rows = CPU_MR;
    return rows < n ? rows : n;
}

size_t op_scratch_bytes(int n, int widest, int rank, int vocab, int hidden) {
    size_t N = (size_t)n + CPU_MR, W = (size_t)widest + CPU_MR, R = (size_t)rank + CPU_MR;
    size_t chunk = (size_t)cpu_logits_chunk(n, vocab) + CPU_MR;
    size_t packed = scratch_floats(N * W > W * R ? N * W : W * R);           /* A of any product: [N,I], [N,O], [O,N] */
    size_t linear = packed + scratch_floats(N * W) + scratch_floats(N * R);   /* + dropped input + dt */
    size_t V = (size_t)vocab + CPU_MR, back = (chunk - CPU_MR) * V;          /* dhead packs the logits by columns */
    size_t head = scratch_floats(chunk * (size_t)vocab) + scratch_floats(chunk * (size_t)hidden) * 2 +
                  scratch_floats(back > chunk * (size_t)vocab ? back : chunk * (size_t)vocab);
    size_t whole = scratch_floats(N * (size_t)hidden);                        /* lm_head_logits packs every row */
    size_t attention = scratch_floats((N + CPU_NR) * W) * 2;                  /* k and v transposed */
    size_t most = linear > head ? linear : head;
    if (whole > most) most = whole;
    return (attention > most ? attention : most) + 4096;
}

/* ---- embedding ---------------------------------------------------------------------------------------------------
   out[n] = scale embed[ids[n]] */

void embedding_forward(floatX *out, const int32_t *ids, const Weight *embed, float scale, int N, int C) {
#pragma omp parallel for schedule(static)
    for (int n = 0; n < N; n++) {
        float *row = out + cpu_at(n, C);
        weight_decode(row, embed, cpu_at(ids[n], C), (size_t)C);
        for (int c = 0; c < C && scale != 1; c++) row[c] *= scale;
    }
}

/* Gradients that are sums over tokens: every thread has columns of its own and takes the tokens in order. */
enum { CPU_COLUMNS = 64 };                  /* so many at a time: four cache lines of every row */
static int cpu_columns(int first, int C) { return C - first < CPU_COLUMNS ? C - first : CPU_COLUMNS; }

void embedding_backward(float *dembed, const int32_t *ids, const floatX *dx, float scale, int N, int C, int V) {
    (void)V;
#pragma omp parallel for schedule(static)
    for (int first = 0; first < C; first += CPU_COLUMNS)
        for (int n = 0, width = cpu_columns(first, C); n < N; n++) {
            float *to = dembed + cpu_at(ids[n], C) + first;
            const float *from = dx + cpu_at(n, C) + first;
            for (int c = 0; c < width; c++) to[c] += scale * from[c];
        }
}
/* sum[c] += factor * sum_n a[n,c] x[n,c] rstd[n], with x NULL factor * sum_n a[n,c]; rows of a are `stride` apart. */
static void cpu_column_sums(float *sum, const float *a, size_t stride, const float *x, const float *rstd, float factor,
                            int N, int C) {
#pragma omp parallel for schedule(static)
    for (int first = 0; first < C; first += CPU_COLUMNS) {
        float total[CPU_COLUMNS] = {0};
        int width = cpu_columns(first, C);
        for (int n = 0; n < N; n++) {
            const float *row = a + (size_t)n * stride + first, *other = x ? x + cpu_at(n, C) + first : NULL;
            if (x) for (int c = 0; c < width; c++) total[c] += row[c] * (other[c] * rstd[n]);
            else for (int c = 0; c < width; c++) total[c] += row[c];
        }
        for (int c = 0; c < width; c++) sum[first + c] += factor * total[c];
    }
}

/* ---- RMSNorm -----------------------------------------------------------------------------------------------------
   x_hat = s rstd,  rstd = 1 / sqrt(mean s^2 + eps),  out = weight x_hat.  As d rstd / d s_c = -rstd^3 s_c / C:
   ds = rstd (weight dout - x_hat mean(weight dout x_hat)) */

void rmsnorm_forward(floatX *out, float *rstd, floatX *sum, const floatX *x, const floatX *residual,
                     const float *weight, float eps, int N, int C) {
#pragma omp parallel for schedule(static)
    for (int n = 0; n < N; n++) {
        const float *row = x + cpu_at(n, C);
        float *o = out + cpu_at(n, C);
        if (residual) {
            float *s = sum ? sum + cpu_at(n, C) : o;
            const float *r = residual + cpu_at(n, C);
            for (int c = 0; c < C; c++) s[c] = row[c] + r[c];
            row = s;
        }
        float k = rstd[n] = 1.0f / sqrtf(cpu_dot(row, row, C) / (float)C + eps);
        for (int c = 0; c < C; c++) o[c] = weight[c] * (row[c] * k);
    }
}

void rmsnorm_backward(floatX *dx, const floatX *dresidual, const floatX *dout, const float *rstd, const floatX *x,
                      const float *weight, int N, int C) {
#pragma omp parallel for schedule(static)
    for (int n = 0; n < N; n++) {
        size_t at = cpu_at(n, C);
        const float *row = x + at, *d = dout + at, *more = dresidual ? dresidual + at : NULL;
        float k = rstd[n], *to = dx + at;
        cpu_vec sum = {0};
        int c = 0;
        for (; c + CPU_VL <= C; c += CPU_VL) sum += cpu_load(weight + c) * cpu_load(d + c) * cpu_load(row + c);
        float s = cpu_sum(sum);
        for (; c < C; c++) s += weight[c] * d[c] * row[c];
        float mean = s * k / (float)C;                                        /* mean of (weight dout) x_hat */
        for (c = 0; c < C; c++)
            to[c] = (more ? more[c] : 0) + k * (weight[c] * d[c] - row[c] * k * mean);
    }
}

/* d out_c / d weight_c = x_hat_c */
void rmsnorm_weight_backward(float *dweight, const floatX *dout, const float *rstd, const floatX *x, float factor,
                             int N, int C, Scratch scratch) {
    (void)scratch;
    cpu_column_sums(dweight, dout, (size_t)C, x, rstd, factor, N, C);
}

/* ---- linear with LoRA --------------------------------------------------------------------------------------------
   y = x W^T + bias + s t B^T,  t = x' A^T,  x' = dropout(x) [N,I].  Backward, each product a cpu_gemm:
     dx = dy W                              [N,O] [O,I]
     dt = s dy B                            [N,O] [O,R]
     dB += s dy^T t                         [O,N] [N,R]
     dA += dt^T x'                          [R,N] [N,I]
     dx += mask (dt A)                      [N,R] [R,I]
   and, of a weight that is trained itself, dW += dy^T x, [O,N] [N,I]: as much work as dx, and as long. */

/* out = mask * factor * x, or out += mask * factor * x, where the mask is that of this projection. */
static void cpu_dropout(float *out, const float *x, DropoutKey key, uint32_t dropout_id, size_t count, bool add) {
    float factor = 1.0f / (1.0f - key.dropout);
    uint32_t threshold = dropout_threshold(key.dropout);
#pragma omp parallel for schedule(static)
    for (size_t block = 0; block < (count + 3) / 4; block++) {
        uint32_t random[4];
        dropout_numbers(random, key, dropout_id, block);
        for (size_t i = block * 4, j = 0; j < 4 && i < count; i++, j++) {
            float v = random[j] >= threshold ? x[i] * factor : 0;
            out[i] = add ? out[i] + v : v;
        }
    }
}

size_t kept_bytes(const Linear *group, const Lora *lora, int count, int N) {
    (void)group; (void)lora; (void)count; (void)N;
    return 0;
}
size_t adapter_packed_bytes(const Linear *p, const Lora *lora) { (void)p; (void)lora; return 0; }
void adapter_pack(const Linear *projections, const Lora *lora, int count) {
    (void)projections; (void)lora; (void)count;
}

/* Widths of y and of t. */
void linear_forward(floatX *y, floatX *t, uint8_t *kept, const floatX *x, const Linear *group, const Lora *lora,
                    int count, DropoutKey key, int N, Scratch scratch) {
    int O, R, I = group[0].in, o = 0, r = 0;
    linear_sums(group, lora, count, &O, &R);
    (void)kept;                             /* made again from its key */
    for (int j = 0; j < count; j++) {
        const Linear *p = &group[j];
        const Lora *a = lora && lora[j].rank ? &lora[j] : NULL;
        const float *bias = lora_bias(p, lora_at(lora, j));
        CpuMatrix Wt = cpu_frozen(lora_weight(p, lora_at(lora, j)), false);
        ScratchCursor s = scratch_begin(scratch);
        if (bias) {
#pragma omp parallel for schedule(static)
            for (int n = 0; n < N; n++) memcpy(y + cpu_at(n, O) + (size_t)o, bias, (size_t)p->out * sizeof(float));
        }
        cpu_gemm(y + o, (size_t)O, x, (size_t)I, 1, Wt, N, p->out, I, 1, bias != NULL, s);
        if (a) {
            CpuMatrix At = cpu_floats(a->A, 1, (size_t)I), Bt = cpu_floats(a->B, 1, (size_t)a->rank);
            const float *in = x;
            if (key.dropout > 0) {
                float *dropped = scratch_take(&s, cpu_at(N, I));
                cpu_dropout(dropped, x, key, p->dropout_id, cpu_at(N, I), false);
                in = dropped;
            }
            cpu_gemm(t + r, (size_t)R, in, (size_t)I, 1, At, N, a->rank, I, 1, false, s);
            for (int n = 0; n < N; n++)
                for (int c = a->rank; c < rank_width(a->rank); c++) t[cpu_at(n, R) + (size_t)(r + c)] = 0;
            cpu_gemm(y + o, (size_t)O, t + r, (size_t)R, 1, Bt, N, p->out, a->rank, a->scale, true, s);
        }
        o += p->out;
        r += a ? rank_width(a->rank) : 0;
    }
}

void linear_backward(floatX *dx, const floatX *dy, const floatX *t, const uint8_t *kept, const floatX *x,
                     const Linear *group, const Lora *lora, int count, DropoutKey key, int N, Scratch scratch) {
    int O, R, I = group[0].in, o = 0, r = 0;
    linear_sums(group, lora, count, &O, &R);
    (void)kept;                             /* made again from its key */
    for (int j = 0; j < count; j++) {
        const Linear *p = &group[j];
        const Lora *a = lora && lora[j].rank ? &lora[j] : NULL;
        CpuMatrix W = cpu_frozen(lora_weight(p, lora_at(lora, j)), true);
        ScratchCursor s = scratch_begin(scratch);
        if (dx) cpu_gemm(dx, (size_t)I, dy + o, (size_t)O, 1, W, N, I, p->out, 1, j > 0, s);
        if (a) {
            size_t rank = (size_t)a->rank, elements = cpu_at(N, I);
            CpuMatrix A = cpu_floats(a->A, (size_t)I, 1), B = cpu_floats(a->B, rank, 1);
            CpuMatrix tj = cpu_floats(t + r, (size_t)R, 1);
            float *dt = scratch_take(&s, (size_t)N * rank), *buffer = NULL;   /* [N,R] */
            const float *in = x;
            if (key.dropout > 0) {
                in = buffer = scratch_take(&s, elements);
                cpu_dropout(buffer, x, key, p->dropout_id, elements, false);
            }
            cpu_gemm(dt, rank, dy + o, (size_t)O, 1, B, N, a->rank, p->out, a->scale, false, s);
            cpu_gemm(a->dB, rank, dy + o, 1, (size_t)O, tj, p->out, a->rank, N, a->scale, true, s);
            cpu_gemm(a->dA, (size_t)I, dt, 1, rank, cpu_floats(in, (size_t)I, 1), a->rank, I, N, 1, true, s);
            if (dx && buffer) {
                cpu_gemm(buffer, (size_t)I, dt, rank, 1, A, N, I, a->rank, 1, false, s);
                cpu_dropout(dx, buffer, key, p->dropout_id, elements, true);
            } else if (dx) cpu_gemm(dx, (size_t)I, dt, rank, 1, A, N, I, a->rank, 1, true, s);
        }
        o += p->out;
        r += a ? rank_width(a->rank) : 0;
    }
}

/* dy goes into the tiles by columns. Where the tokens are more than KC, dW is read and written once for so many. */
void linear_weight_backward(float *dW, float *dbias, const floatX *dy, int stride, const floatX *x, int N, int I, int O,
                            Scratch scratch) {
    if (dW) cpu_gemm(dW, (size_t)I, dy, 1, (size_t)stride, cpu_floats(x, (size_t)I, 1), O, I, N, 1, true,
                     scratch_begin(scratch));
    if (dbias) cpu_column_sums(dbias, dy, (size_t)stride, NULL, NULL, 1, N, O);
}

/* ---- q/k norm and rotary embedding -------------------------------------------------------------------------------
   With x_hat = x rstd and z = weight x_hat the rotation is out = R z:  (u, v) -> (u cos - v sin, v cos + u sin).
   Backward: g = R^T dout, the rotation by the negative angle, then RMSNorm's derivative for one head. */

void qk_norm_rope_forward(floatX *out, const floatX *qkv, const float *q_weight, const float *k_weight, float eps,
                          const float *cos_table, const float *sin_table, const int32_t *positions, int N,
                          AttentionShape a) {
    int H = a.H, KV = a.KV, D = a.D, P = (H + 2 * KV) * D, half = D / 2;
#pragma omp parallel for schedule(static)
    for (int n = 0; n < N; n++) {
        size_t angles = positions ? cpu_at(positions[n], half) : 0;
        const float *cs = cos_table + angles, *sn = sin_table + angles;
        for (int h = 0; h < H + KV; h++) {
            size_t at = cpu_at(n, P) + cpu_at(h, D);
            const float *x = qkv + at, *w = h < H ? q_weight : k_weight;
            float *o = out + at, k = w ? 1.0f / sqrtf(cpu_dot(x, x, D) / (float)D + eps) : 1;
            for (int d = 0; d < half; d++) {
                float u = w ? w[d] * (x[d] * k) : x[d], v = w ? w[d + half] * (x[d + half] * k) : x[d + half];
                o[d] = u * cs[d] - v * sn[d];
                o[d + half] = v * cs[d] + u * sn[d];
            }
        }
        size_t v = cpu_at(n, P) + cpu_at(H + KV, D);
        memcpy(out + v, qkv + v, cpu_at(KV, D) * sizeof(float));
    }
}

void qk_norm_rope_backward(floatX *dqkv, const floatX *qkv, const float *q_weight, const float *k_weight, float eps,
                           const float *cos_table, const float *sin_table, const int32_t *positions, int N,
                           AttentionShape a) {
    int H = a.H, KV = a.KV, D = a.D, P = (H + 2 * KV) * D, half = D / 2;
#pragma omp parallel for schedule(static)
    for (int n = 0; n < N; n++) {
        size_t angles = positions ? cpu_at(positions[n], half) : 0;
        const float *cs = cos_table + angles, *sn = sin_table + angles;
        for (int h = 0; h < H + KV; h++) {
            size_t at = cpu_at(n, P) + cpu_at(h, D);
            const float *x = qkv + at, *w = h < H ? q_weight : k_weight;
            float *g = dqkv + at;
            for (int d = 0; d < half; d++) {
                float u = g[d], v = g[d + half];
                g[d] = u * cs[d] + v * sn[d];
                g[d + half] = v * cs[d] - u * sn[d];
            }
            if (!w) continue;
            float k = 1.0f / sqrtf(cpu_dot(x, x, D) / (float)D + eps), mean = 0;
            for (int d = 0; d < D; d++) mean += w[d] * g[d] * x[d];
            mean *= k / (float)D;
            for (int d = 0; d < D; d++) g[d] = k * (w[d] * g[d] - x[d] * k * mean);
        }
    }
}

/* dweight_d = sum over tokens and heads of g_d x_hat_d. Stripes of tokens have sums of their own, added in order. */
void qk_norm_weight_backward(float *dq_weight, float *dk_weight, const floatX *dout, const floatX *qkv, float eps,
                             const float *cos_table, const float *sin_table, const int32_t *positions, int N,
                             AttentionShape a, Scratch scratch) {
    int H = a.H, KV = a.KV, D = a.D, P = (H + 2 * KV) * D, half = D / 2, stripes = N < 64 ? N : 64;
    ScratchCursor cursor = scratch_begin(scratch);
    float *sums = scratch_take(&cursor, cpu_at(stripes, 2 * D));              /* [stripes,2,D]: of q, of k */
#pragma omp parallel for schedule(static)
    for (int s = 0; s < stripes; s++) {
        float *sum = sums + cpu_at(s, 2 * D);
        memset(sum, 0, (size_t)(2 * D) * sizeof(float));
        int end = (int)((int64_t)N * (s + 1) / stripes);
        for (int n = (int)((int64_t)N * s / stripes); n < end; n++) {
            size_t angles = positions ? cpu_at(positions[n], half) : 0;
            const float *cs = cos_table + angles, *sn = sin_table + angles;
            for (int h = 0; h < H + KV; h++) {
                size_t at = cpu_at(n, P) + cpu_at(h, D);
                const float *x = qkv + at, *d_out = dout + at;
                float *to = sum + (h < H ? 0 : D), k = 1.0f / sqrtf(cpu_dot(x, x, D) / (float)D + eps);
                for (int d = 0; d < half; d++) {
                    float u = d_out[d], v = d_out[d + half];
                    to[d] += (u * cs[d] + v * sn[d]) * (x[d] * k);
                    to[d + half] += (v * cs[d] - u * sn[d]) * (x[d + half] * k);
                }
            }
        }
    }
    for (int s = 0; s < stripes; s++)
        for (int d = 0; d < D; d++) {
            if (dq_weight) dq_weight[d] += sums[cpu_at(s, 2 * D) + (size_t)d];
            if (dk_weight) dk_weight[d] += sums[cpu_at(s, 2 * D) + (size_t)(D + d)];
        }
}

/* ---- attention ---------------------------------------------------------------------------------------------------
   For query n and the keys m <= n of its sequence, s the shape's scale:
     p_nm = exp(s q_n.k_m - lse_n),  lse_n = log sum_m exp(s q_n.k_m),  out_n = sum_m p_nm v_m
     dv_m = sum_n p_nm dout_n
     ds_nm = s p_nm (dout_n.v_m - delta_n),  delta_n = dout_n.out_n  (the softmax's derivative)
     dq_n = sum_m ds_nm k_m,  dk_m = sum_n ds_nm q_n
   FlashAttention's scheme (Dao 2023) with tiles of QB queries x KB keys: scores of a tile, running maximum and sum of a
   query, output rescaled when the maximum grows; tiles above the diagonal are never made. k (and for backward v) are
   transposed once, [KV][D][N], so that a vector holds neighbouring keys. Backward gives each (sequence, key/value head)
   to one thread: dk, dv and the group's dq have a single writer. */

/* C [m,n] = (add ? C : 0) + A B; A[i][k] = a[i * a_row + k * a_column], B [K, n] with row stride ldb. For tiles, where
   nothing is worth packing: 4 rows and NR columns of C stay in registers. */
static void cpu_tile_product(float *c, size_t ldc, const float *a, size_t a_row, size_t a_column, const float *b,
                             size_t ldb, int m, int n, int K, bool add) {
    int j = 0;
    for (; j + CPU_NR <= n; j += CPU_NR) {
        int i = 0;
        for (; i + 4 <= m; i += 4) {
            cpu_vec acc[4][2];
            float *to = c + (size_t)i * ldc + (size_t)j;
            for (int u = 0; u < 4; u++) for (int v = 0; v < 2; v++)
                acc[u][v] = add ? cpu_load(to + (size_t)u * ldc + (size_t)(v * CPU_VL)) : (cpu_vec){0};
            for (int k = 0; k < K; k++) {
                const float *from = b + (size_t)k * ldb + (size_t)j;
                cpu_vec b0 = cpu_load(from), b1 = cpu_load(from + CPU_VL);
                for (int u = 0; u < 4; u++) {
                    float s = a[(size_t)(i + u) * a_row + (size_t)k * a_column];
                    acc[u][0] += b0 * s;
                    acc[u][1] += b1 * s;
                }
            }
            for (int u = 0; u < 4; u++) for (int v = 0; v < 2; v++)
                cpu_store(to + (size_t)u * ldc + (size_t)(v * CPU_VL), acc[u][v]);
        }
        for (; i < m; i++) {                /* the last rows, fewer than 4 */
            cpu_vec acc[2];
            float *to = c + (size_t)i * ldc + (size_t)j;
            for (int v = 0; v < 2; v++) acc[v] = add ? cpu_load(to + v * CPU_VL) : (cpu_vec){0};
            for (int k = 0; k < K; k++) for (int v = 0; v < 2; v++)
                acc[v] += cpu_load(b + (size_t)k * ldb + (size_t)(j + v * CPU_VL)) *
                          a[(size_t)i * a_row + (size_t)k * a_column];
            for (int v = 0; v < 2; v++) cpu_store(to + v * CPU_VL, acc[v]);
        }
    }
    if (j == n) return;
    for (int i = 0; i < m; i++) {           /* the last columns, fewer than NR */
        float acc[CPU_NR], *to = c + (size_t)i * ldc + (size_t)j;
        for (int v = 0; v < n - j; v++) acc[v] = add ? to[v] : 0;
        for (int k = 0; k < K; k++) {
            float s = a[(size_t)i * a_row + (size_t)k * a_column];
            for (int v = 0; v < n - j; v++) acc[v] += s * b[(size_t)k * ldb + (size_t)(j + v)];
        }
        for (int v = 0; v < n - j; v++) to[v] = acc[v];
    }
}

/* out[kv][d][n] = qkv[n][first + kv*D + d] */
static void cpu_transpose_heads(float *out, const float *qkv, int first, int N, int KV, int D, int P) {
#pragma omp parallel for schedule(static)
    for (int row = 0; row < KV * D; row++)
        for (int n = 0; n < N; n++) out[cpu_at(row, N) + (size_t)n] = qkv[cpu_at(n, P) + (size_t)(first + row)];
}

/* The sequence of task number `task` when every sequence has `per` tasks. */
typedef struct CpuAttentionTask { int begin, length, head; } CpuAttentionTask;
static CpuAttentionTask cpu_attention_task(int task, int per, const int32_t *cu) {
    int s = task / per;
    CpuAttentionTask t = {cu[s], cu[s + 1] - cu[s], task % per};
    return t;
}
/* How many keys of the tile at k0, `keys` of them, query q sees: those up to itself. */
static inline int cpu_seen(int q, int k0, int keys) {
    int seen = q + 1 - k0 < keys ? q + 1 - k0 : keys;
    return seen > 0 ? seen : 0;
}

void attention_forward(floatX *out, float *lse, const floatX *qkv, const int32_t *cu_seqlens, int S, int N,
                       AttentionShape a, Scratch scratch) {
    int H = a.H, KV = a.KV, D = a.D, P = (H + 2 * KV) * D, HD = H * D, group = H / KV;
    ScratchCursor cursor = scratch_begin(scratch);
    float *kt = scratch_take(&cursor, cpu_at(KV * D, N));                     /* [KV,D,N] */
    cpu_transpose_heads(kt, qkv, HD, N, KV, D, P);
#pragma omp parallel for schedule(dynamic)
    for (int task = 0; task < S * H; task++) {
        CpuAttentionTask t = cpu_attention_task(task, H, cu_seqlens);
        int kv = t.head / group;
        const float *v = qkv + cpu_at(t.begin, P) + cpu_at(H + KV + kv, D);
        const float *k = kt + cpu_at(kv * D, N) + (size_t)t.begin;
        for (int q0 = 0; q0 < t.length; q0 += CPU_QB) {
            int rows = t.length - q0 < CPU_QB ? t.length - q0 : CPU_QB;
            const float *q = qkv + cpu_at(t.begin + q0, P) + cpu_at(t.head, D);
            float *o = out + cpu_at(t.begin + q0, HD) + cpu_at(t.head, D);
            float top[CPU_QB], sum[CPU_QB], p[CPU_QB * CPU_KB];
            for (int i = 0; i < rows; i++) {
                top[i] = -INFINITY;
                sum[i] = 0;
                memset(o + cpu_at(i, HD), 0, (size_t)D * sizeof(float));
            }
            for (int k0 = 0; k0 < q0 + rows; k0 += CPU_KB) {
                int keys = q0 + rows - k0 < CPU_KB ? q0 + rows - k0 : CPU_KB;
                cpu_tile_product(p, CPU_KB, q, (size_t)P, 1, k + k0, (size_t)N, rows, keys, D, false);
                for (int i = 0; i < rows; i++) {
                    int seen = cpu_seen(q0 + i, k0, keys);
                    float *row = p + i * CPU_KB, *oi = o + cpu_at(i, HD), m = top[i];
                    for (int j = 0; j < CPU_KB; j++) row[j] = j < seen ? row[j] * a.scale : -INFINITY;
                    cpu_vec best = cpu_splat(m);
                    for (int j = 0; j < CPU_KB; j += CPU_VL) best = cpu_max(best, cpu_load(row + j));
                    m = cpu_max_lane(best);
                    float shrink = top[i] == m ? 1 : expf(top[i] - m);
                    cpu_vec total = {0};
                    for (int j = 0; j < CPU_KB; j += CPU_VL) {
                        cpu_vec e = cpu_exp(cpu_load(row + j) - m);
                        cpu_store(row + j, e);
                        total += e;
                    }
                    sum[i] = sum[i] * shrink + cpu_sum(total);
                    top[i] = m;
                    if (shrink != 1) for (int d = 0; d < D; d++) oi[d] *= shrink;
                }
                cpu_tile_product(o, (size_t)HD, p, CPU_KB, 1, v + cpu_at(k0, P), (size_t)P, rows, D, keys, true);
            }
            for (int i = 0; i < rows; i++) {
                float inverse = 1.0f / sum[i], *oi = o + cpu_at(i, HD);
                for (int d = 0; d < D; d++) oi[d] *= inverse;
                lse[cpu_at(t.begin + q0 + i, H) + (size_t)t.head] = top[i] + logf(sum[i]);
            }
        }
    }
}

void attention_backward(floatX *dqkv, const floatX *dout, const floatX *out, const float *lse, const floatX *qkv,
                        const int32_t *cu_seqlens, int S, int N, AttentionShape a, Scratch scratch) {
    int H = a.H, KV = a.KV, D = a.D, P = (H + 2 * KV) * D, HD = H * D, group = H / KV;
    ScratchCursor cursor = scratch_begin(scratch);
    float *kt = scratch_take(&cursor, cpu_at(KV * D, N)), *vt = scratch_take(&cursor, cpu_at(KV * D, N));
    cpu_transpose_heads(kt, qkv, HD, N, KV, D, P);
    cpu_transpose_heads(vt, qkv, (H + KV) * D, N, KV, D, P);
#pragma omp parallel for schedule(static)
    for (int n = 0; n < N; n++) memset(dqkv + cpu_at(n, P), 0, (size_t)P * sizeof(float));
#pragma omp parallel for schedule(dynamic)
    for (int task = 0; task < S * KV; task++) {
        CpuAttentionTask t = cpu_attention_task(task, KV, cu_seqlens);
        size_t base = cpu_at(t.begin, P), transposed = cpu_at(t.head * D, N) + (size_t)t.begin;
        size_t key = base + cpu_at(H + t.head, D), value = base + cpu_at(H + KV + t.head, D);
        for (int h = t.head * group; h < (t.head + 1) * group; h++) {
            for (int q0 = 0; q0 < t.length; q0 += CPU_QB) {
                int rows = t.length - q0 < CPU_QB ? t.length - q0 : CPU_QB;
                size_t query = base + cpu_at(q0, P) + cpu_at(h, D), at = cpu_at(t.begin + q0, HD) + cpu_at(h, D);
                const float *q = qkv + query, *d_out = dout + at;
                float *dq = dqkv + query, delta[CPU_QB], p[CPU_QB * CPU_KB], ds[CPU_QB * CPU_KB];
                for (int i = 0; i < rows; i++) delta[i] = cpu_dot(d_out + cpu_at(i, HD), out + at + cpu_at(i, HD), D);
                for (int k0 = 0; k0 < q0 + rows; k0 += CPU_KB) {
                    int keys = q0 + rows - k0 < CPU_KB ? q0 + rows - k0 : CPU_KB;
                    size_t tile = cpu_at(k0, P), across = transposed + (size_t)k0;
                    cpu_tile_product(p, CPU_KB, q, (size_t)P, 1, kt + across, (size_t)N, rows, keys, D, false);
                    cpu_tile_product(ds, CPU_KB, d_out, (size_t)HD, 1, vt + across, (size_t)N, rows, keys, D, false);
                    for (int i = 0; i < rows; i++) {
                        int seen = cpu_seen(q0 + i, k0, keys);
                        float *row = p + i * CPU_KB, *d = ds + i * CPU_KB;
                        float l = lse[cpu_at(t.begin + q0 + i, H) + (size_t)h];
                        for (int j = 0; j < CPU_KB; j++) {
                            row[j] = j < seen ? row[j] * a.scale - l : -INFINITY;
                            d[j] = j < seen ? d[j] : 0;
                        }
                        for (int j = 0; j < CPU_KB; j += CPU_VL) {
                            cpu_vec e = cpu_exp(cpu_load(row + j));
                            cpu_store(row + j, e);
                            cpu_store(d + j, e * (cpu_load(d + j) - delta[i]) * a.scale);
                        }
                    }
                    float *dk = dqkv + key + tile, *dv = dqkv + value + tile;
                    cpu_tile_product(dv, (size_t)P, p, 1, CPU_KB, d_out, (size_t)HD, keys, D, rows, true);
                    cpu_tile_product(dk, (size_t)P, ds, 1, CPU_KB, q, (size_t)P, keys, D, rows, true);
                    cpu_tile_product(dq, (size_t)P, ds, CPU_KB, 1, qkv + key + tile, (size_t)P, rows, D, keys, true);
                }
            }
        }
    }
}

/* ---- attention over a cache: one query a sequence, KB keys at a time, online softmax ----------------------------- */

void cache_store(floatX *cache, const floatX *qkv, const int32_t *place, const int32_t *positions, int capacity, int N,
                 AttentionShape a) {
    int H = a.H, KV = a.KV, D = a.D, P = (H + 2 * KV) * D;
    for (int n = 0; n < N; n++)
        for (int part = 0; part < 2 * KV; part++) {         /* the heads of k, then those of v: as they lie in both */
            size_t row = (size_t)(place[n] * 2 * KV + part) * (size_t)capacity + (size_t)positions[n];
            memcpy(cache + row * (size_t)D, qkv + cpu_at(n, P) + cpu_at(H + part, D), (size_t)D * sizeof(float));
        }
}

void attention_decode(floatX *out, const floatX *qkv, const floatX *cache, const int32_t *place,
                      const int32_t *positions, int capacity, int N, AttentionShape a) {
    int H = a.H, KV = a.KV, D = a.D, P = (H + 2 * KV) * D;
    size_t block = cpu_at(capacity, D);     /* one head of one place */
#pragma omp parallel for schedule(dynamic)
    for (int task = 0; task < N * H; task++) {
        int n = task / H, h = task % H, kv = h / (H / KV), length = positions[n] + 1;
        const float *q = qkv + cpu_at(n, P) + cpu_at(h, D);
        const float *k = cache + (size_t)(place[n] * 2 * KV + kv) * block, *v = k + (size_t)KV * block;
        float *o = out + cpu_at(task, D), top = -INFINITY, sum = 0, p[CPU_KB];
        memset(o, 0, (size_t)D * sizeof(float));
        for (int k0 = 0; k0 < length; k0 += CPU_KB) {
            int keys = length - k0 < CPU_KB ? length - k0 : CPU_KB;
            float m = top;
            for (int j = 0; j < CPU_KB; j++) {
                p[j] = j < keys ? cpu_dot(q, k + cpu_at(k0 + j, D), D) * a.scale : -INFINITY;
                if (p[j] > m) m = p[j];
            }
            float shrink = top == m ? 1 : expf(top - m);
            cpu_vec total = {0};
            for (int j = 0; j < CPU_KB; j += CPU_VL) {
                cpu_vec e = cpu_exp(cpu_load(p + j) - m);
                cpu_store(p + j, e);
                total += e;
            }
            sum = sum * shrink + cpu_sum(total);
            top = m;
            if (shrink != 1) for (int d = 0; d < D; d++) o[d] *= shrink;
            for (int j = 0; j < keys; j++) {
                const float *row = v + cpu_at(k0 + j, D);
                for (int d = 0; d < D; d++) o[d] += p[j] * row[d];
            }
        }
        for (int d = 0; d < D; d++) o[d] /= sum;
    }
}

/* ---- SwiGLU ------------------------------------------------------------------------------------------------------
   h = g sig(g) u,  dup = dh g sig(g),  dgate = dh u sig(g) (1 + g (1 - sig(g))).  A row's last vector is padded with
   zeros: the tail must not need a second formula. */

static inline cpu_vec cpu_sigmoid(cpu_vec g) { return 1.0f / (1.0f + cpu_exp(-g)); }

void swiglu_forward(floatX *h, const floatX *gate_up, int N, int F) {
#pragma omp parallel for schedule(static)
    for (int n = 0; n < N; n++) {
        const float *gate = gate_up + cpu_at(n, F) * 2, *up = gate + F;
        float *out = h + cpu_at(n, F);
        for (int f = 0; f < F; f += CPU_VL) {
            int lanes = F - f < CPU_VL ? F - f : CPU_VL;
            cpu_vec g = {0}, u = {0};
            if (lanes == CPU_VL) { g = cpu_load(gate + f); u = cpu_load(up + f); }
            else {
                memcpy(&g, gate + f, (size_t)lanes * sizeof(float));
                memcpy(&u, up + f, (size_t)lanes * sizeof(float));
            }
            cpu_vec r = g * cpu_sigmoid(g) * u;
            if (lanes == CPU_VL) cpu_store(out + f, r);
            else memcpy(out + f, &r, (size_t)lanes * sizeof(float));
        }
    }
}

void swiglu_backward(floatX *d_gate_up, const floatX *dh, const floatX *gate_up, int N, int F) {
#pragma omp parallel for schedule(static)
    for (int n = 0; n < N; n++) {
        const float *gate = gate_up + cpu_at(n, F) * 2, *up = gate + F, *d = dh + cpu_at(n, F);
        float *dgate = d_gate_up + cpu_at(n, F) * 2, *dup = dgate + F;
        for (int f = 0; f < F; f += CPU_VL) {
            size_t bytes = (size_t)(F - f < CPU_VL ? F - f : CPU_VL) * sizeof(float);
            cpu_vec g = {0}, u = {0}, x = {0};
            memcpy(&g, gate + f, bytes);
            memcpy(&u, up + f, bytes);
            memcpy(&x, d + f, bytes);
            cpu_vec s = cpu_sigmoid(g), du = x * g * s, dg = x * u * s * (1.0f + g * (1.0f - s));
            memcpy(dup + f, &du, bytes);
            memcpy(dgate + f, &dg, bytes);
        }
    }
}

/* ---- head and cross-entropy --------------------------------------------------------------------------------------
   Of the logits z [V] of one row: loss = log sum_v e^(z_v - top) + top - z_target,  p = softmax(z),
   entropy = -sum p log p = log sum - (sum e^(z - top) (z - top)) / sum,  dz = scale (p - onehot(target)).
   dx = dz W,  dW += dz^T x, rows of a chunk at a time. */

/* What one row of logits says of its target. backward: the row becomes, in place, scale * (softmax - onehot). */
static RowLoss cpu_logits_row(float *z, int target, bool backward, float scale, int V) {
    enum { BLOCK = 4096 };                  /* floats within so many logits, doubles across */
    cpu_vec best = cpu_splat(-INFINITY);
    int v = 0, argmax = 0;
    for (; v + CPU_VL <= V; v += CPU_VL) best = cpu_max(best, cpu_load(z + v));
    float top = cpu_max_lane(best), target_logit = z[target];
    for (; v < V; v++) if (z[v] > top) top = z[v];
    while (argmax < V - 1 && z[argmax] != top) argmax++;    /* lowest index on ties, as torch.argmax */
    double sum = 0, weighted = 0;           /* sum e^(z-top), sum e^(z-top) (z-top) */
    for (int begin = 0; begin < V; begin += BLOCK) {
        int end = begin + BLOCK < V ? begin + BLOCK : V;
        cpu_vec s = {0}, w = {0};
        for (v = begin; v + CPU_VL <= end; v += CPU_VL) {
            cpu_vec d = cpu_load(z + v) - top, e = cpu_exp(d);
            cpu_store(z + v, e);
            s += e;
            w += e * d;
        }
        sum += (double)cpu_sum(s);
        weighted += (double)cpu_sum(w);
        for (; v < end; v++) {
            float d = z[v] - top, e = expf(d);
            z[v] = e;
            sum += (double)e;
            weighted += (double)e * (double)d;
        }
    }
    RowLoss r = {log(sum) + (double)top - (double)target_logit, log(sum) - weighted / sum, argmax == target};
    if (backward) {
        float factor = (float)((double)scale / sum);
        for (v = 0; v < V; v++) z[v] *= factor;
        z[target] -= scale;
    }
    return r;
}

void lm_head_loss(floatX *dx, float *dhead, RowLoss *row_loss, const floatX *x, const int32_t *rows,
                  const int32_t *targets, const float *row_scale, const Weight *head, float dloss, int M, int N, int C,
                  int V, Scratch scratch) {
    bool backward = dx || dhead;
    int chunk = cpu_logits_chunk(N, V);
    size_t width = (size_t)C * sizeof(float), vocab = (size_t)V;
    ScratchCursor cursor = scratch_begin(scratch);
    float *logits = scratch_take(&cursor, (size_t)chunk * vocab);              /* [chunk,V] */
    float *gathered = scratch_take(&cursor, (size_t)chunk * (size_t)C);        /* [chunk,C]: rows of x, then of dx */
    if (dx) memset(dx, 0, (size_t)N * width);
    for (int first = 0; first < M; first += chunk) {
        int count = M - first < chunk ? M - first : chunk;
        const int32_t *row = rows + first, *target = targets + first;
        for (int i = 0; i < count; i++) memcpy(gathered + (size_t)i * (size_t)C, x + (size_t)row[i] * (size_t)C, width);
        cpu_gemm(logits, vocab, gathered, (size_t)C, 1, cpu_frozen(head, false), count, V, C, 1, false, cursor);
#pragma omp parallel for schedule(static)
        for (int i = 0; i < count; i++) {
            float scale = row_scale ? dloss * row_scale[first + i] : dloss;
            row_loss[first + i] = cpu_logits_row(logits + (size_t)i * vocab, target[i], backward, scale, V);
        }
        if (dhead)
            cpu_gemm(dhead, (size_t)C, logits, 1, vocab, cpu_floats(gathered, (size_t)C, 1), V, C, count, 1, true,
                     cursor);
        if (!dx) continue;
        cpu_gemm(gathered, (size_t)C, logits, vocab, 1, cpu_frozen(head, true), count, C, V, 1, false, cursor);
        for (int i = 0; i < count; i++)
            memcpy(dx + (size_t)row[i] * (size_t)C, gathered + (size_t)i * (size_t)C, width);
    }
}

void lm_head_logits(float *logits, const floatX *x, const Weight *head, int N, int C, int V, Scratch scratch) {
    cpu_gemm(logits, (size_t)V, x, (size_t)C, 1, cpu_frozen(head, false), N, V, C, 1, false, scratch_begin(scratch));
}

/* ---- a head of few outputs --------------------------------------------------------------------------------------- */

void score_forward(float *logits, const floatX *x, const int32_t *rows, const float *score, int M, int K, int C) {
#pragma omp parallel for schedule(static)
    for (int i = 0; i < M; i++)
        for (int k = 0; k < K; k++)
            logits[cpu_at(i, K) + (size_t)k] = cpu_dot(x + cpu_at(rows[i], C), score + cpu_at(k, C), C);
}

void score_backward(floatX *dx, float *dscore, const float *dlogits, const floatX *x, const int32_t *rows,
                    const float *score, int M, int N, int K, int C) {
    if (dx) memset(dx, 0, cpu_at(N, C) * sizeof(float));
#pragma omp parallel for schedule(static)
    for (int first = 0; first < C; first += CPU_COLUMNS) {
        int width = cpu_columns(first, C);
        for (int i = 0; i < M; i++) {
            size_t row = cpu_at(rows[i], C) + (size_t)first;
            for (int k = 0; k < K; k++) {
                size_t at = cpu_at(k, C) + (size_t)first;
                float d = dlogits[cpu_at(i, K) + (size_t)k];
                for (int c = 0; dx && c < width; c++) dx[row + (size_t)c] += d * score[at + (size_t)c];
                for (int c = 0; dscore && c < width; c++) dscore[at + (size_t)c] += d * x[row + (size_t)c];
            }
        }
    }
}

/* ---- optimizer ---------------------------------------------------------------------------------------------------
   m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,  p = p decay - rate m / (sqrt(v) root + eps): see adamw_element. */

void adamw_update(float *param, float *m, float *v, const float *grad, size_t count, float grad_scale, float lr,
                  float beta1, float beta2, float eps, float weight_decay, int step) {
    AdamW a = adamw_at(lr, beta1, beta2, eps, weight_decay, step);
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < count; i++) adamw_element(&param[i], &m[i], &v[i], grad_scale * grad[i], a);
}

/* adamw_code without its eight steps, each of which waits for the one before: 4 times as fast. A float's sign, exponent
   and first 7 bits say between which two numbers of the map it is, as no such bin has the middles of more than one
   pair; one comparison is left. */
enum { CPU_BIN_FIRST = (127 - 24) << 7, CPU_BINS = (127 << 7) - CPU_BIN_FIRST + 1 };    /* 2^-24, still 0's, to 1 */
typedef struct CpuMomentMap {
    float number[256], middle[256];         /* middle[i]: the last float whose code is i */
    uint8_t lowest[2][CPU_BINS];            /* code of the lowest float of a bin; [1]: of negative ones */
} CpuMomentMap;
static CpuMomentMap cpu_moment_map(bool is_signed) {
    CpuMomentMap m;
    adamw_map(m.number, is_signed);
    for (int i = 0; i < 255; i++) {
        float x = nextafterf((m.number[i] + m.number[i + 1]) / 2, 2);         /* as adamw_code rounds there: search */
        while (adamw_code(m.number, x) > i) x = nextafterf(x, -2);
        m.middle[i] = x;
    }
    m.middle[255] = INFINITY;
    for (int bin = 1 - CPU_BINS, code = 0; bin <= CPU_BINS; bin++) {          /* -1 to -2^-24, then 2^-24 to 1 */
        bool negative = bin <= 0;
        uint32_t bits = (uint32_t)(CPU_BIN_FIRST + (negative ? -bin : bin - 1)) << 16;
        float x = format_float(negative ? 1u << 31 | bits | 0xFFFF : bits);
        while (x > m.middle[code]) code++;
        m.lowest[negative][negative ? -bin : bin - 1] = (uint8_t)code;
    }
    return m;
}
static inline int cpu_moment_code(const CpuMomentMap *m, float x) {
    int bin = (int)(format_bits(x) << 1 >> 17) - CPU_BIN_FIRST;
    bin = bin < 0 ? 0 : bin < CPU_BINS ? bin : CPU_BINS - 1;
    int code = m->lowest[format_bits(x) >> 31][bin];
    return code + (x > m->middle[code]);
}
/* The codes of a block of one moment, and what they are fractions of. */
static inline void cpu_moment_encode(uint8_t *code, float *absmax, const float *moment, const CpuMomentMap *m, int n) {
    float most = 0;
    for (int i = 0; i < n; i++) most = fabsf(moment[i]) > most ? fabsf(moment[i]) : most;
    for (int i = 0; i < n; i++) code[i] = (uint8_t)cpu_moment_code(m, most > 0 ? moment[i] / most : 0);
    *absmax = most;
}
void adamw_8bit_update(float *param, uint8_t *m, uint8_t *v, float *m_absmax, float *v_absmax, const float *grad,
                       size_t count, float grad_scale, float lr, float beta1, float beta2, float eps,
                       float weight_decay, int step) {
    AdamW a = adamw_at(lr, beta1, beta2, eps, weight_decay, step);
    const CpuMomentMap m_map = cpu_moment_map(true), v_map = cpu_moment_map(false);
#pragma omp parallel for schedule(static)
    for (size_t block = 0; block < (count + ADAMW_BLOCK - 1) / ADAMW_BLOCK; block++) {
        size_t at = block * ADAMW_BLOCK;
        int n = count - at < ADAMW_BLOCK ? (int)(count - at) : ADAMW_BLOCK;
        float first[ADAMW_BLOCK], second[ADAMW_BLOCK];
        for (int i = 0; i < n; i++) {
            first[i] = m_map.number[m[at + (size_t)i]] * m_absmax[block];
            second[i] = v_map.number[v[at + (size_t)i]] * v_absmax[block];
        }
        for (int i = 0; i < n; i++)
            adamw_element(&param[at + (size_t)i], &first[i], &second[i], grad_scale * grad[at + (size_t)i], a);
        cpu_moment_encode(m + at, &m_absmax[block], first, &m_map, n);
        cpu_moment_encode(v + at, &v_absmax[block], second, &v_map, n);
    }
}

double global_norm(const float *grad, size_t count) {
    enum { STRIPES = 256 };
    double part[STRIPES], sum = 0;
#pragma omp parallel for schedule(static)
    for (int s = 0; s < STRIPES; s++) {
        double p = 0;
        size_t end = count * (size_t)(s + 1) / STRIPES;
        for (size_t i = count * (size_t)s / STRIPES; i < end; i++) p += (double)grad[i] * (double)grad[i];
        part[s] = p;
    }
    for (int s = 0; s < STRIPES; s++) sum += part[s];
    return sqrt(sum);
}

#undef CPU_VL
#undef CPU_MR
#undef CPU_NR
#undef CPU_KC
#undef CPU_QB
#undef CPU_KB

#endif /* LORA_NO_CPU_OPS */


/* =====================================================================================================================
   9  FUZZ ENTRIES: clang -DFUZZ_CSV -fsanitize=fuzzer,address,undefined, run in the repository's root (test/fuzz.sh)
   ================================================================================================================== */

#ifdef __cplusplus
extern "C"
#endif
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#if defined(FUZZ_ADAPTER) || defined(FUZZ_CHECKPOINT)
#define FUZZ_FOLDER "build/fuzz/files"
static void fuzz_file(const char *name, const void *data, size_t size) {
    char path[PATH_MAX];
    path_in(path, sizeof path, FUZZ_FOLDER, name);
    FILE *f = fopen(path, "wb");
    if (!f || (size && fwrite(data, 1, size, f) != size) || fclose(f)) abort();
}
#endif

#ifdef FUZZ_SAFETENSORS
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Tensor *tensors = NULL;
    Error err;
    safetensors_parse(&tensors, (const char *)data, size, "fuzz", &err);
    for (ptrdiff_t i = 0; i < arrlen(tensors); i++) free(tensors[i].name);
    arrfree(tensors);
    return 0;
}
#endif

/* A JSON file as config.json and as generation_config.json. */
#ifdef FUZZ_CONFIG
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    JsonDoc doc;
    ModelConfig c;
    GenerateOptions o;
    Error err;
    memset(&o, 0, sizeof o);
    o.max_new_tokens = 256; o.top_p = 1; o.repetition_penalty = 1;
    if (!json_parse(&doc, (const char *)data, size, "fuzz", 1, &err)) return 0;
    if (config_parse(&c, doc.root, "fuzz", &err) &&
        (c.num_hidden_layers < 1 || c.hidden_size < 1 || c.num_attention_heads % c.num_key_value_heads)) abort();
    if (gen_config_parse(&o, doc.root, "fuzz", &err) &&
        !(o.temperature >= 0 && o.top_k >= 0 && o.top_p >= 0 && o.top_p <= 1 && o.min_p >= 0 && o.min_p <= 1 &&
          o.repetition_penalty > 0 && o.max_new_tokens >= 1)) abort();
    json_free(&doc);
    return 0;
}
#endif

/* An adapter of test/golden/llama, its configuration and its weights with a zero byte between them: what a plan takes
   also loads, and what is saved then loads again. */
#ifdef FUZZ_ADAPTER
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static Model m;
    static Adapter a;
    Error err;
    const uint8_t *zero = size ? (const uint8_t *)memchr(data, 0, size) : NULL;
    size_t head = zero ? (size_t)(zero - data) : size;
    if (!m.folder && (!model_open(&m, "test/golden/llama", &err) || !make_folder(FUZZ_FOLDER, &err))) abort();
    fuzz_file("adapter_config.json", data, head);
    fuzz_file("adapter_model.safetensors", zero ? zero + 1 : data, zero ? size - head - 1 : 0);
    m.shapes_only = true;
    bool taken = adapter_load(&a, &m, FUZZ_FOLDER, &err);
    m.shapes_only = false;
    if (taken) {
        if (!adapter_load(&a, &m, FUZZ_FOLDER, &err)) abort();
        for (int i = 0; i < m.config.num_hidden_layers * MODULE_COUNT; i++)
            if (!isfinite(a.lora[i].scale)) abort();
        if (!adapter_save(&a, FUZZ_FOLDER "/saved", &err) || !adapter_load(&a, &m, FUZZ_FOLDER "/saved", &err)) abort();
    }
    adapter_drop(&a);
    return 0;
}
#endif

/* A checkpoint of test/golden/llama with its adapter: checkpoint.json behind its line with the checksum, which is made
   right; then, behind a zero byte, optimizer.safetensors, where it is not to be a good one. */
#ifdef FUZZ_CHECKPOINT
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const names[] = {"adam_m", "adam_v"}, moments[] = FUZZ_FOLDER "/optimizer.safetensors";
    static Model m;
    static Adapter a;
    TrainOptions o;
    TrainResult result;
    Run run;
    TensorSet set;
    Error err;
    const uint8_t *zero = size ? (const uint8_t *)memchr(data, 0, size) : NULL;
    size_t head = zero ? (size_t)(zero - data) : size;
    if (!m.folder && (!model_open(&m, "test/golden/llama", &err) ||
                      !adapter_load(&a, &m, "test/golden/llama/adapter", &err) ||
                      !adapter_save(&a, FUZZ_FOLDER, &err))) abort();
    const float *const good[] = {a.adam_m, a.adam_v};
    const int64_t count = (int64_t)a.param_count, shapes[][2] = {{count, 1}, {count, 1}};
    if (zero) fuzz_file("optimizer.safetensors", zero + 1, size - head - 1);
    else if (!safetensors_write(moments, names, good, shapes, 2, &err)) abort();
    memset(&set, 0, sizeof set);
    memset(&run, 0, sizeof run);
    memset(&result, 0, sizeof result);
    uint64_t checksum = HASH_START;         /* of moments that are none nobody asks */
    const float *moment[2] = {NULL, NULL};
    bool open = tensors_add_file(&set, moments, &err);
    for (int i = 0; i < 2 && open; i++) {
        const Tensor *t = tensors_get(&set, names[i], count, 1, &err);
        if (t && t->dtype == DTYPE_F32) moment[i] = (const float *)t->data;
    }
    if (moment[0] && moment[1] && !checkpoint_hash(&checksum, &a, moment[0], moment[1], FUZZ_FOLDER, &err)) abort();
    tensors_close(&set);
    Text t = TEXT_EMPTY;
    text_print(&t, CHECKPOINT_LINE, (unsigned long long)hash_bytes(checksum, data, head));
    text_bytes(&t, (const char *)data, head);
    fuzz_file("checkpoint.json", t.at, t.length);
    memset(&o, 0, sizeof o);
    o.resume_force = true;
    run.o = &o; run.model = &m; run.adapter = a; run.model_hash = 1; run.plan.total_steps = 1000;
    if (checkpoint_read(&run, FUZZ_FOLDER, &result, &err)) {
        bool sound = run.step <= 1000 && run.skipped <= run.step && run.adapter.adam_step <= run.step;
        if (!sound || !(run.adapter.loss_scale >= 1)) abort();
        for (ptrdiff_t i = 0; i < arrlen(run.history); i++) {
            JsonDoc doc;
            text_cut(&t, 0);
            log_record_json(&t, &run.history[i]);
            if (!json_parse(&doc, t.at, t.length, "record", 1, &err)) abort();
            json_free(&doc);
        }
    }
    text_free(&t);
    arrfree(run.history);
    return 0;
}
#endif

#endif /* LORA_IMPLEMENTATION */
