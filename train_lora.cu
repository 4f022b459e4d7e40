/* train_lora.cu - the program: fine-tunes a Hugging Face model folder on a data file and writes a PEFT adapter.

       make && ./train_lora                                     # the embedded base model on the embedded dialogues
       ./train_lora --model Qwen3-1.7B --data train.jsonl --output adapter                # a real one

   Two halves. Built by nvcc, the first is the GPU: a kernel for every op that lora.h declares, each beside its
   launcher, one chapter an op in forward order, with the formula, the derivative and what the roofline says at its
   head. Built by gcc as plain C, that half is left out and the CPU ops of lora.h take its place behind the same
   signatures. The second half is the command line.

   TABLE OF CONTENTS
     1  the device                  checks, launches, memory
     2  matrix instructions, tiles  all PTX; fragments, swizzled tiles in shared memory, 16-byte rows
     3  weights and embedding
     4  RMSNorm                     with the residual add
     5  linear layers with LoRA     the matrix product on tensor cores; t = dropout(x) A^T, dA, dB
     6  q/k norm and rotary embedding
     7  attention                   FlashAttention-2, forward and backward
     8  SwiGLU
     9  head and cross-entropy
    10  optimizer                   AdamW, global norm; then the scratch that all of this needs
    11  terminal                    what the program is busy with, errors and warnings, signals
    12  options                     one table: parsing, --help, range checks, --config and run.json all come from it
    13  runs                        inspect, plan and train: what they print, and what lies beside the adapter
    14  sweep                       many runs over one base model
    15  generate                    answers, chat, merge
    16  evaluate and compare        the same rows before and after
    17  main                        the verbs

   DIMENSIONS and the = / += contract of the backward pass are those of lora.h: N tokens, C hidden, F intermediate, H
   and KV heads of D, P = (H + 2 KV) D, R rank, I and O of a linear layer, V vocabulary; gradients of activations are
   overwritten, dA and dB are added to. A kernel is called op_kernel, its launcher op. No kernel adds floats atomically:
   the same input gives the same bits.
   BOUNDS: FLOPs and bytes at the head of a chapter are counted, what bounds a kernel is what they let expect; what was
   measured on a card is in dev/gpu_log.md and nowhere else. */
#if defined(__CUDACC__) || defined(CUDA_ON_CPU)
#define LORA_CUDA
#define LORA_NO_CPU_OPS                     /* the ops of lora.h are replaced by the kernels below */
#define LORA_HOST_DEVICE __host__ __device__
#ifndef CUDA_ON_CPU                         /* test/cuda_on_cpu.h has its own meaning of all this */
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif
#if defined(PRECISION_FP32)
#define LORA_FLOATX float
#define LORA_FLOATX_FORMAT FORMAT_F32
#define PRECISION_NAME "fp32"
#elif defined(PRECISION_FP16)
#define LORA_FLOATX __half
#define LORA_FLOATX_FORMAT FORMAT_F16
#define LORA_LOSS_SCALE 65536.0f
#define PRECISION_NAME "fp16"
#else
#define LORA_FLOATX __nv_bfloat16
#define LORA_FLOATX_FORMAT FORMAT_BF16
#define PRECISION_NAME "bf16"
#endif
#endif
#ifndef DECLARATIONS_ALONE                  /* test/compilers.sh: the program uses nothing private of the headers */
#define TOKENIZER_IMPLEMENTATION
#define LORA_IMPLEMENTATION
#endif
#include "lora.h"

#ifndef TESTING
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#include <stb/stb_ds.h>
#include "data/report.h"
#define SCORE_IMPLEMENTATION
#include "data/score.h"
#include "data/inspect.h"
#include "data/evaluate.h"
#endif

#ifdef LORA_CUDA
/* =====================================================================================================================
   1  THE DEVICE
   One card, one stream, one process. Everything that can fail is checked where it is called; a failed call is fatal:
   nothing sensible can follow it.
   ================================================================================================================== */

#define CUDA_CHECK(call) \
    do { \
        cudaError_t e_ = (call); \
        if (e_ != cudaSuccess) { \
            fprintf(stderr, "error: %s: %s; %s:%d, %s; look at the first such line, later ones may follow from it\n", \
                    cudaGetErrorName(e_), cudaGetErrorString(e_), __FILE__, __LINE__, #call); \
            exit(1); \
        } \
    } while (0)

#ifndef CUDA_ON_CPU
/* Every kernel starts here, so that no launch goes unchecked and the emulator has one place to take over. */
#define LAUNCH(kernel, grid, block, shared, ...) \
    do { kernel<<<grid, block, shared>>>(__VA_ARGS__); CUDA_CHECK(cudaGetLastError()); } while (0)
#define SHARED_MEMORY(name) extern __shared__ __align__(128) unsigned char name[]
#endif

/* What is known of the card; filled once by backend_open. */
static struct Device {
    bool open;
    char name[256];
    int capability, processors;             /* 90 is sm_90; streaming multiprocessors */
    size_t shared, shared_in_all;           /* bytes of shared memory: of a block at most, of a multiprocessor */
    size_t memory;
    size_t overhead;                        /* gone when the context was made: kernels, runtime, other processes */
    double *partial;                        /* [NORM_BLOCKS] of global_norm */
} device;

enum { WARP = 32, NORM_BLOCKS = 256, MAX_HEAD_DIM = 128 };

static int div_up(int a, int b) { return (a + b - 1) / b; }
/* Blocks of 256 threads for a flat range, which go on through it where there are not enough. */
static int blocks_of(size_t count) {
    size_t blocks = (count + 255) / 256;
    return blocks < 1 ? 1 : blocks < 65536 ? (int)blocks : 65536;
}

/* =====================================================================================================================
   2  MATRIX INSTRUCTIONS AND TILES
   All PTX of this program is here. A kernel sees four things: a Tile in shared memory, fragments of it in a warp's
   registers, the product of two fragments, and asynchronous copies.

   Fragments are those of mma.m16n8k16 (PTX ISA, "Matrix fragments for mma.m16n8k16"): with g = lane / 4 and
   t = lane % 4 a lane holds
       A [16 x 16]   rows g and g+8, columns 2t, 2t+1, 2t+8, 2t+9
       B [16 x 8]    rows 2t, 2t+1, 2t+8, 2t+9, column g
       C [16 x 8]    rows g and g+8, columns 2t, 2t+1                  c[0..1] row g, c[2..3] row g+8
   so that two neighbouring C fragments are, element for element, one A fragment: attention multiplies its probabilities
   without sending them through memory.

   PRECISION=FP32 keeps the same fragments with floats in them, and mma_fp32 spells the product in FMAs. Every kernel
   below exists once; fp32 is there to check it, not to be fast.
   ================================================================================================================== */

#ifndef CUDA_ON_CPU
__device__ __forceinline__ uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

/* Four 8 x 8 matrices of 16-bit numbers: lane l names row l % 8 of matrix l / 8; r[i] gets elements
   (g, 2t) and (g, 2t+1) of matrix i, or of its transpose. */
__device__ __forceinline__ void ldmatrix_x4(uint32_t r[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t r[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}
__device__ __forceinline__ void mma_bf16(float c[4], const uint32_t a[4], const uint32_t b[2]) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
__device__ __forceinline__ void mma_fp16_k8(float c[4], const uint32_t a[2], const uint32_t b[1]) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}
__device__ __forceinline__ void mma_fp16(float c[4], const uint32_t a[4], const uint32_t b[2]) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    mma_fp16_k8(c, a, b);                   /* Turing has the instruction of half the depth: columns 0-7, then 8-15 */
    mma_fp16_k8(c, a + 2, b + 1);
#endif
}
/* 16 bytes from global to shared memory past the registers; zeros, and `global` is not read, where !valid.
   Complete after cp_async_wait and a barrier. */
__device__ __forceinline__ void cp_async_16(void *shared, const void *global, bool valid) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(shared_address(shared)), "l"(global), "r"(valid ? 16 : 0) : "memory");
#else
    *(uint4 *)shared = valid ? *(const uint4 *)global : make_uint4(0, 0, 0, 0);
#endif
}
__device__ __forceinline__ void cp_async_commit(void) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
/* cp_async_wait(n) waits until all but the newest n groups of this thread's copies have arrived. */
template <int PENDING> __device__ __forceinline__ void cp_async_wait_group(void) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" :: "n"(PENDING) : "memory");
#endif
}
#endif

/* The test of the tests takes barriers, waits for copies and GUARDs away, one at a time: test/mutants.h. A GUARD is a
   condition that keeps a thread within its rows and columns. */
#ifndef MUTATED
#define GUARD(condition) (condition)
#define cp_async_wait(pending) cp_async_wait_group<pending>()
#endif

/* c += a b in fp32 with the fragments' layout: the numbers of the other lanes come by shuffles. */
__device__ __forceinline__ void mma_fp32_shuffled(float c[4], const float a[8], const float b[4]) {
    int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int k = 0; k < 16; k++) {
        int high = k / 8, odd = k % 2, owner = k % 8 / 2;   /* column k of A and row k of B are with lanes 4x + owner */
        float a0 = __shfl_sync(0xffffffff, a[high * 4 + odd], g * 4 + owner);
        float a1 = __shfl_sync(0xffffffff, a[high * 4 + 2 + odd], g * 4 + owner);
        float b0 = __shfl_sync(0xffffffff, b[high * 2 + odd], 2 * t * 4 + owner);
        float b1 = __shfl_sync(0xffffffff, b[high * 2 + odd], (2 * t + 1) * 4 + owner);
        c[0] += a0 * b0; c[1] += a0 * b1; c[2] += a1 * b0; c[3] += a1 * b1;
    }
}

#ifdef PRECISION_FP32
typedef struct FragA { float v[8]; } FragA;
typedef struct FragB { float v[4]; } FragB;
#ifdef CUDA_ON_CPU
__device__ __forceinline__ void mma(float c[4], const FragA &a, const FragB &b) { mma_fp32(c, a.v, b.v); }
#else
/* One function, called: in line, its 128 instructions at every product would keep nvcc busy for minutes. */
typedef struct FragC { float v[4]; } FragC;
__device__ __noinline__ FragC mma_called(FragC c, FragA a, FragB b) { mma_fp32_shuffled(c.v, a.v, b.v); return c; }
__device__ __forceinline__ void mma(float c[4], const FragA &a, const FragB &b) {
    FragC sum = {{c[0], c[1], c[2], c[3]}};
    sum = mma_called(sum, a, b);
    for (int i = 0; i < 4; i++) c[i] = sum.v[i];
}
#endif
#else
typedef struct FragA { uint32_t v[4]; } FragA;
typedef struct FragB { uint32_t v[2]; } FragB;
#ifdef PRECISION_FP16
__device__ __forceinline__ void mma(float c[4], const FragA &a, const FragB &b) { mma_fp16(c, a.v, b.v); }
#else
__device__ __forceinline__ void mma(float c[4], const FragA &a, const FragB &b) { mma_bf16(c, a.v, b.v); }
#endif
#endif

/* ---- tiles ----------------------------------------------------------------------------------------------------------
   A tile [rows x columns] lies in shared memory as panels of PANEL columns, 128 bytes a row. The eight 16-byte chunks
   of a row are permuted by XOR with the row number: the eight rows that one phase of ldmatrix reads at the same column
   would otherwise lie in the same four banks and be read in eight turns; so they lie in all 32. Writing whole chunks
   stays free of conflicts too. */

enum { CHUNK = 16 / sizeof(floatX), PANEL = 128 / sizeof(floatX) };

/* Index of element (row, column); column must be the first of a chunk, or add its rest afterwards. */
__device__ __forceinline__ int tile_at(int rows, int row, int column) {
    int chunk = column % PANEL / CHUNK ^ (row & 7);
    return column / PANEL * rows * PANEL + row * PANEL + chunk * CHUNK + column % CHUNK;
}

/* A row-major matrix in global memory with its borders: what lies outside reads as zero. Chunks are copied
   asynchronously where every row is 16-byte aligned. */
typedef struct Matrix { const floatX *data; size_t stride; int rows, columns; bool aligned; } Matrix;

static Matrix matrix(const floatX *data, size_t stride, int rows, int columns) {
    Matrix m = {data, stride, rows, columns, (uintptr_t)data % 16 == 0 && stride % CHUNK == 0 && columns % CHUNK == 0};
    return m;
}

/* Starts copying [ROWS x COLUMNS] from (row0, column0) of m; all TILE_THREADS threads of the block take part.
   COLUMNS: a multiple of 16.
   A copy is one instruction; what the loop around it costs decides how soon a tile is there (dev/gemm_ladder.cu,
   step 7). So the shape is known to the compiler and nothing is worked out twice: panel by panel, a thread keeps its
   column and walks down the rows. It steps over a multiple of 8 of them, after which the swizzle repeats: the place in
   shared memory is a constant away from the first, that in global memory an addition, the border a comparison. */
enum { TILE_THREADS = 128 };

template <int ROWS, int COLUMNS>
__device__ __forceinline__ void tile_load(floatX *tile, const Matrix &m, int row0, int column0) {
    if (!m.aligned) {
#pragma unroll 1
        for (int i = threadIdx.x; i < ROWS * COLUMNS / CHUNK; i += TILE_THREADS) {
            int row = i / (COLUMNS / CHUNK), column = i % (COLUMNS / CHUNK) * CHUNK;
            floatX *to = tile + tile_at(ROWS, row, column);
            const floatX *from = m.data + (size_t)(row0 + row) * m.stride + (size_t)(column0 + column);
            for (int j = 0; j < CHUNK; j++)
                to[j] = GUARD(row0 + row < m.rows) && GUARD(column0 + column + j < m.columns) ? from[j] : (floatX)0.0f;
        }
        return;
    }
#pragma unroll
    for (int panel = 0; panel < COLUMNS; panel += PANEL) {
        const int chunks = (COLUMNS - panel < PANEL ? COLUMNS - panel : (int)PANEL) / CHUNK;
        const int step = TILE_THREADS / chunks;                               /* rows that the block copies at once */
        int row = threadIdx.x / chunks, column = panel + threadIdx.x % chunks * CHUNK;
        if (step > ROWS && !GUARD(row < ROWS)) continue;
        int left = GUARD(column0 + column < m.columns) ? m.rows - row0 - row : 0;
        const floatX *from = m.data + (size_t)(row0 + row) * m.stride + (size_t)(column0 + column);
        floatX *to = tile + tile_at(ROWS, row, column);
#pragma unroll
        for (int r = 0; r < ROWS; r += step, from += step * m.stride)
            cp_async_16(to + r * PANEL, from, GUARD(r < left));
    }
}

/* Where element c[e] of a lane's C fragment stands in its [16 x 8]:

           column  0   1   2   3   4   5   6   7
       row 0       lane 0  lane 1  lane 2  lane 3      c[0], c[1] of each
       row 1       lane 4  lane 5  lane 6  lane 7
       ...
       row 8       lane 0  lane 1  lane 2  lane 3      c[2], c[3]
       ...
   An A fragment [16 x 16] is two of these side by side. B [16 x 8] is two [8 x 8], one below the other, the transposes
   of C's two: what is a lane's row there is its column here. */
__device__ __forceinline__ int frag_row(int lane, int e) { return lane / 4 + e / 2 * 8; }
__device__ __forceinline__ int frag_column(int lane, int e) { return lane % 4 * 2 + e % 2; }
__device__ __forceinline__ int frag_b_row(int lane, int e) { return lane % 4 * 2 + e % 2 + e / 2 * 8; }
__device__ __forceinline__ int frag_b_column(int lane) { return lane / 4; }

/* The row of 8 numbers that a lane names to ldmatrix_x4, of the 16 x 16 from (row, column) on of a tile. Its four
   8 x 8 matrices are counted downwards first, or across first:      0 2       0 1
                                                                     1 3       2 3       */
__device__ __forceinline__ const floatX *matrices_down(int lane, const floatX *tile, int rows, int row, int column) {
    return tile + tile_at(rows, row + lane % 16, column + lane / 16 * 8);
}
__device__ __forceinline__ const floatX *matrices_across(int lane, const floatX *tile, int rows, int row, int column) {
    return tile + tile_at(rows, row + lane / 16 * 8 + lane % 8, column + lane / 8 % 2 * 8);
}

/* A [16 x 16] from (m0, k0) of a tile stored [m][k]. */
__device__ __forceinline__ void load_a(FragA &f, const floatX *tile, int rows, int m0, int k0) {
    int lane = threadIdx.x % WARP;
#ifdef PRECISION_FP32
    for (int i = 0; i < 8; i++)
        f.v[i] = tile[tile_at(rows, m0 + frag_row(lane, i % 4), k0 + i / 4 * 8 + frag_column(lane, i % 4))];
#else
    ldmatrix_x4(f.v, matrices_down(lane, tile, rows, m0, k0));
#endif
}
/* The same from a tile stored [k][m]. */
__device__ __forceinline__ void load_a_transposed(FragA &f, const floatX *tile, int rows, int m0, int k0) {
    int lane = threadIdx.x % WARP;
#ifdef PRECISION_FP32
    for (int i = 0; i < 8; i++)
        f.v[i] = tile[tile_at(rows, k0 + i / 4 * 8 + frag_column(lane, i % 4), m0 + frag_row(lane, i % 4))];
#else
    ldmatrix_x4_trans(f.v, matrices_across(lane, tile, rows, k0, m0));
#endif
}
/* Two neighbouring B [16 x 8], columns n0 and n0 + 8, from a tile stored [n][k]. */
__device__ __forceinline__ void load_b_pair(FragB f[2], const floatX *tile, int rows, int n0, int k0) {
    int lane = threadIdx.x % WARP;
#ifdef PRECISION_FP32
    for (int i = 0; i < 8; i++)
        f[i / 4].v[i % 4] = tile[tile_at(rows, n0 + i / 4 * 8 + frag_b_column(lane), k0 + frag_b_row(lane, i % 4))];
#else
    uint32_t r[4];
    ldmatrix_x4(r, matrices_across(lane, tile, rows, n0, k0));
    f[0].v[0] = r[0]; f[0].v[1] = r[1]; f[1].v[0] = r[2]; f[1].v[1] = r[3];
#endif
}
/* The same from a tile stored [k][n]. */
__device__ __forceinline__ void load_b_pair_transposed(FragB f[2], const floatX *tile, int rows, int n0, int k0) {
    int lane = threadIdx.x % WARP;
#ifdef PRECISION_FP32
    for (int i = 0; i < 8; i++)
        f[i / 4].v[i % 4] = tile[tile_at(rows, k0 + frag_b_row(lane, i % 4), n0 + i / 4 * 8 + frag_b_column(lane))];
#else
    uint32_t r[4];
    ldmatrix_x4_trans(r, matrices_down(lane, tile, rows, k0, n0));
    f[0].v[0] = r[0]; f[0].v[1] = r[1]; f[1].v[0] = r[2]; f[1].v[1] = r[3];
#endif
}

__device__ __forceinline__ void store_pair(floatX *to, float x, float y) { to[0] = (floatX)x; to[1] = (floatX)y; }

/* Two neighbouring C fragments as one A fragment. */
__device__ __forceinline__ void frag_from_products(FragA &f, const float c0[4], const float c1[4]) {
    floatX v[8];
    for (int i = 0; i < 4; i++) { v[i] = (floatX)c0[i]; v[4 + i] = (floatX)c1[i]; }
    memcpy(f.v, v, sizeof f.v);
}

/* A warp writes its part [rows x columns] of a tile, from (m0, n0) of the tile, to global memory: whole rows, 16 bytes
   at a time. */
__device__ __forceinline__ void tile_store(floatX *out, size_t stride, int row_end, int column_end, bool aligned,
                                           const floatX *tile, int tile_rows, int m0, int rows, int columns,
                                           int row0, int column0) {
    int chunks = columns / CHUNK;
    for (int i = threadIdx.x % WARP; i < rows * chunks; i += WARP) {
        int row = i / chunks, column = i % chunks * CHUNK;
        if (!GUARD(row0 + row < row_end)) break;
        const floatX *from = tile + tile_at(tile_rows, m0 + row, column);
        floatX *to = out + (size_t)(row0 + row) * stride + (size_t)(column0 + column);
        if (aligned && GUARD(column0 + column < column_end)) *(uint4 *)to = *(const uint4 *)from;
        else for (int j = 0; j < CHUNK && GUARD(column0 + column + j < column_end); j++) to[j] = from[j];
    }
}

/* ---- rows: elementwise kernels read and write CHUNK numbers at a time -------------------------------------------- */

/* v = p[at .. at+CHUNK), zeros from `end` on. aligned: p is, and at and end are multiples of CHUNK. */
__device__ __forceinline__ void load_chunk(float v[CHUNK], const floatX *p, int at, int end, bool aligned) {
    alignas(16) floatX x[CHUNK];
    if (aligned) *(uint4 *)x = *(const uint4 *)(p + at);
    else for (int j = 0; j < CHUNK; j++) x[j] = GUARD(at + j < end) ? p[at + j] : (floatX)0.0f;
    for (int j = 0; j < CHUNK; j++) v[j] = (float)x[j];
}
__device__ __forceinline__ void store_chunk(floatX *p, const float v[CHUNK], int at, int end, bool aligned) {
    alignas(16) floatX x[CHUNK];
    for (int j = 0; j < CHUNK; j++) x[j] = (floatX)v[j];
    if (aligned) *(uint4 *)(p + at) = *(const uint4 *)x;
    else for (int j = 0; j < CHUNK && GUARD(at + j < end); j++) p[at + j] = x[j];
}
/* The same of fp32, the weights of a norm or a table's row, with 16-byte loads too: lanes that read one float each of
   their CHUNK would touch as many lines of the cache for each of them. */
__device__ __forceinline__ void load_floats(float v[CHUNK], const float *p, int at, int end, bool aligned) {
    for (int j = 0; j < CHUNK; j += 4) {
        alignas(16) float x[4];
        if (aligned) *(uint4 *)x = *(const uint4 *)(p + at + j);
        else for (int k = 0; k < 4; k++) x[k] = GUARD(at + j + k < end) ? p[at + j + k] : 0;
        for (int k = 0; k < 4; k++) v[j + k] = x[k];
    }
}
/* v = m[row, column .. column+CHUNK) */
__device__ __forceinline__ void load_row(float v[CHUNK], const Matrix &m, int row, int column) {
    load_chunk(v, m.data + (size_t)row * m.stride, column, m.columns, m.aligned);
}
static bool rows_aligned(const void *p, int width) { return !p || ((uintptr_t)p % 16 == 0 && width % CHUNK == 0); }

/* Sum over a block in a fixed order: butterflies within warps, then every thread over the warps. `shared`: 32 floats,
   for one sum a kernel. */
__device__ __forceinline__ float warp_sum(float v) {
    for (int offset = WARP / 2; offset; offset /= 2) v += __shfl_xor_sync(0xffffffff, v, offset);
    return v;
}
__device__ __forceinline__ float block_sum(float v, float *shared) {
    int warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    v = warp_sum(v);
    if (threadIdx.x % WARP == 0) shared[warp] = v;
    __syncthreads();
    float sum = 0;
    for (int w = 0; w < warps; w++) sum += shared[w];
    return sum;
}
static int row_threads(int width) { int t = div_up(div_up(width, CHUNK), WARP) * WARP; return t < 256 ? t : 256; }

/* ---- sums over rows: gradients of what all tokens share ------------------------------------------------------------
   No float is added atomically: where the tokens are split over blocks, every split writes its sum to scratch, and
   `reduce` adds them in their order. How many there are depends on the sizes. */

typedef struct Reduce { float *gradient; int rank, offset, columns; float scale; } Reduce;
typedef struct Reduces { Reduce job[3]; } Reduces;

/* gradient [rank, columns] (transposed: [columns, rank]) += scale * sum over the splits of rows offset.. of
   partial [splits, R, width]. */
__global__ void reduce_kernel(const __grid_constant__ Reduces reduces, const float *partial, int R, int width,
                              int splits, bool transposed) {
    const Reduce &p = reduces.job[blockIdx.y];
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; GUARD(i < p.rank * p.columns); i += gridDim.x * blockDim.x) {
        int r = i / p.columns, n = i % p.columns;
        float sum = 0;
        for (int s = 0; s < splits; s++)
            sum += partial[((size_t)s * (size_t)R + (size_t)(p.offset + r)) * (size_t)width + (size_t)n];
        p.gradient[transposed ? n * p.rank + r : i] += p.scale * sum;
    }
}

/* partial[split,c] = sum over the split's rows n of row(n, c). A lane takes CHUNK columns, so that a warp reads 512
   bytes of a row; the block's 8 warps take its rows in turn, and their sums are joined in their order. */
enum { SUM_WARPS = 8, SUM_COLUMNS = WARP * CHUNK, ROW_SPLITS = 64, HEAD_SPLITS = 128, SPLIT_ROWS = 32 };

template <typename Row>
__global__ void column_sums_kernel(float *partial, const __grid_constant__ Row row, int N, int C, int split) {
    SHARED_MEMORY(memory);
    float *sums = (float *)memory, sum[CHUNK], v[CHUNK];    /* [SUM_WARPS, SUM_COLUMNS] */
    int warp = threadIdx.x / WARP, first = blockIdx.x * SUM_COLUMNS, own = threadIdx.x % WARP * CHUNK;
    int last = min(N, (int)(blockIdx.y + 1) * split);
    for (int j = 0; j < CHUNK; j++) sum[j] = 0;
    if (GUARD(first + own < C))
        for (int n = blockIdx.y * split + warp; n < last; n += SUM_WARPS) {
            row(v, n, first + own);
            for (int j = 0; j < CHUNK; j++) sum[j] += v[j];
        }
    for (int j = 0; j < CHUNK; j++) sums[warp * SUM_COLUMNS + own + j] = sum[j];
    __syncthreads();
    for (int c = threadIdx.x; c < SUM_COLUMNS && GUARD(first + c < C); c += SUM_WARPS * WARP) {
        float total = 0;
        for (int w = 0; w < SUM_WARPS; w++) total += sums[w * SUM_COLUMNS + c];
        partial[(size_t)blockIdx.y * (size_t)C + (size_t)(first + c)] = total;
    }
}
/* out[c] += factor * sum_n row(n, c) */
template <typename Row>
static void column_sums(float *out, const Row &row, float factor, int N, int C, ScratchCursor scratch) {
    int split = max(div_up(N, ROW_SPLITS), (int)SPLIT_ROWS), splits = div_up(N, split);
    float *partial = scratch_take(&scratch, (size_t)splits * (size_t)C);
    Reduces sums = {{{out, 1, 0, C, factor}}};
    dim3 grid(div_up(C, SUM_COLUMNS), splits);
    auto kernel = column_sums_kernel<Row>;
    LAUNCH(kernel, grid, SUM_WARPS * WARP, SUM_WARPS * SUM_COLUMNS * sizeof(float), partial, row, N, C, split);
    LAUNCH(reduce_kernel, div_up(C, 256), 256, 0, sums, partial, 1, C, splits, false);
}

/* ---- memory: the ops' side of lora.h's contract ------------------------------------------------------------------ */

static size_t attention_shared(int D, int stages);       /* chapter 7 */
static size_t lora_shared(int stages, float dropout);    /* chapter 5 */

/* chapter 3 */
__global__ void copy_rows_kernel(floatX *to, const floatX *from, const int32_t *row, bool back, float scale, int C,
                                 bool aligned);

static bool device_open(Error *err) {
    if (device.open) return true;
    int count = 0;
    /* all kernels now, not each at its first launch: they are part of the overhead below */
    setenv("CUDA_MODULE_LOADING", "EAGER", 0);
    cudaError_t e = cudaGetDeviceCount(&count);
    if (e != cudaSuccess || !count)
        return fail(err, "no CUDA device: %s; nvidia-smi shows what the driver sees; this program was built for a GPU, "
                    "`make CUDA=0` builds the one for the CPU",
                    e != cudaSuccess ? cudaGetErrorString(e) : "none found");
    cudaDeviceProp p;
    CUDA_CHECK(cudaGetDeviceProperties(&p, 0));
    snprintf(device.name, sizeof device.name, "%s", p.name);
    device.capability = p.major * 10 + p.minor;
    device.processors = p.multiProcessorCount;
    device.shared = p.sharedMemPerBlockOptin;
    device.shared_in_all = p.sharedMemPerMultiprocessor;
    if (sizeof(floatX) == 2 && LORA_LOSS_SCALE == 1 && device.capability < 80)
        return fail(err, "%s (sm_%d) has no bf16 tensor cores; the GPU; build with make CUDA=1 CUDA_ARCH=%d "
                    "PRECISION=FP16", device.name, device.capability, device.capability);
    if (lora_shared(1, 0.5f) > device.shared)
        return fail(err, "a kernel needs %zu KiB of shared memory, %s has %zu; the GPU; build with PRECISION=FP16",
                    lora_shared(1, 0.5f) >> 10, device.name, device.shared >> 10);
    cudaFuncAttributes kernel;
    e = cudaFuncGetAttributes(&kernel, copy_rows_kernel);
    if (e != cudaSuccess)
        return fail(err, "%s (sm_%d) cannot load the kernels: %s; the GPU; build for it with make CUDA=1 CUDA_ARCH=%d",
                    device.name, device.capability, cudaGetErrorString(e), device.capability);
    size_t available;
    CUDA_CHECK(cudaMalloc((void **)&device.partial, NORM_BLOCKS * sizeof(double)));
    /* has the driver load its own kernels */
    CUDA_CHECK(cudaMemset(device.partial, 0, NORM_BLOCKS * sizeof(double)));
    CUDA_CHECK(cudaDeviceSynchronize());
    CUDA_CHECK(cudaMemGetInfo(&available, &device.memory));
    device.overhead = device.memory - available;
    device.open = true;
    return true;
}
bool backend_open(const ModelConfig *c, Error *err) {
    if (!device_open(err)) return false;
    if (c->head_dim > MAX_HEAD_DIM)
        return fail(err, "head_dim %d is above %d; config.json; the attention kernels have no larger tile, "
                    "`make CUDA=0` builds a trainer without that limit", c->head_dim, MAX_HEAD_DIM);
    if (attention_shared(c->head_dim, 1) > device.shared)
        return fail(err, "head_dim %d needs %zu KiB of shared memory, this card has %zu; %s; build with PRECISION=FP16 "
                    "or BF16", c->head_dim, attention_shared(c->head_dim, 1) >> 10, device.shared >> 10, device.name);
    return true;
}
void *backend_alloc(size_t bytes) {
    void *p = NULL;
    if (cudaMalloc(&p, bytes ? bytes : 1) != cudaSuccess) { cudaGetLastError(); return NULL; }
    CUDA_CHECK(cudaMemset(p, 0, bytes));
    return p;
}
void backend_free(void *p, size_t bytes) { (void)bytes; if (p) CUDA_CHECK(cudaFree(p)); }
void backend_upload(void *to, const void *from, size_t bytes) {
    CUDA_CHECK(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice));
}
void backend_download(void *to, const void *from, size_t bytes) {
    CUDA_CHECK(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost));
}
void backend_zero(void *p, size_t bytes) { CUDA_CHECK(cudaMemset(p, 0, bytes)); }
size_t backend_memory(void) {
    size_t available, total;
    if (!device.open) return 0;
    CUDA_CHECK(cudaMemGetInfo(&available, &total));
    return available;
}
size_t backend_overhead(const char **name) {
    *name = "CUDA context and others on the card";
    return device.open ? device.overhead : (size_t)512 << 20;                 /* a plan for a card that is not here */
}
/* Dense tensor-core operations of one multiprocessor and cycle, accumulated in fp32 (NVIDIA's architecture white
   papers): a GeForce does half of what the same chip does on a professional card. FP32: two a cycle for each of its 64
   or 128 FMA units. */
static int card_operations(int capability, const char *name, bool fp32) {
    static const struct { int capability, operations, fp32; bool halved; } table[] = {
        {120, 1024, 256, true}, {100, 8192, 256, false}, {90, 4096, 256, false}, {89, 1024, 256, true},
        {86, 1024, 256, true}, {80, 2048, 128, false}, {75, 1024, 128, true}, {0, 128, 128, false}};
    int i = 0;
    while (capability < table[i].capability) i++;
    if (fp32) return table[i].fp32;
    return table[i].halved && strstr(name, "GeForce") ? table[i].operations / 2 : table[i].operations;
}
double backend_ceiling(void) {
    int kilohertz = 0;
    CUDA_CHECK(cudaDeviceGetAttribute(&kilohertz, cudaDevAttrClockRate, 0));
    double operations = card_operations(device.capability, device.name, sizeof(floatX) == 4);
    return device.processors * 1e3 * kilohertz * operations;
}
void backend_describe(char *text, size_t bytes) {
    Error err;
    if (!device_open(&err)) { snprintf(text, bytes, "CUDA, no GPU that it can use, %s", PRECISION_NAME); return; }
    snprintf(text, bytes, "CUDA, %.100s (sm_%d), %.1f of %.1f GiB free, %s", device.name, device.capability,
             (double)backend_memory() / 0x1p30, (double)device.memory / 0x1p30, PRECISION_NAME);
}

/* Lets a kernel have more than the 48 KiB of shared memory that every card gives unasked. */
#define WITH_SHARED(kernel, bytes) \
    CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)(bytes)))

/* =====================================================================================================================
   3  WEIGHTS AND EMBEDDING
   A frozen matrix lies on the card as in the file, row-major [rows, cols], in floatX. Both products read it as it is:
   y = x W^T takes rows of W as columns of B, dx = dy W takes W itself, and ldmatrix transposes fragments on the way to
   the registers.
   ================================================================================================================== */

size_t weight_packed_bytes(const Weight *w) { return (size_t)w->rows * (size_t)w->cols * sizeof(floatX); }
size_t embedding_packed_bytes(const Weight *embed) { return weight_packed_bytes(embed); }

void weight_pack(Weight *w, void *where) {
    size_t count = (size_t)w->rows * (size_t)w->cols;
    if (w->format == LORA_FLOATX_FORMAT) backend_upload(where, w->data, weight_bytes(w));         /* as it is */
    else {
        const size_t PIECE = 1 << 20;
        float *values = (float *)must_alloc(PIECE * sizeof(float));
        floatX *converted = (floatX *)must_alloc(PIECE * sizeof(floatX));
        for (size_t at = 0; at < count; at += PIECE) {
            size_t n = count - at < PIECE ? count - at : PIECE;
            weight_decode(values, w, at, n);
            for (size_t i = 0; i < n; i++) converted[i] = (floatX)values[i];
            backend_upload((floatX *)where + at, converted, n * sizeof(floatX));
        }
        free(values);
        free(converted);
    }
    w->packed = where;
}

/* to[i,:] = scale from[row[i],:], or with `back` to[row[i],:] = scale from[i,:]. One block a row: 2 C bytes read, 2 C
   written. */
__global__ void copy_rows_kernel(floatX *to, const floatX *from, const int32_t *row, bool back, float scale, int C,
                                 bool aligned) {
    size_t here = (size_t)blockIdx.x * (size_t)C, there = (size_t)row[blockIdx.x] * (size_t)C;
    floatX *out = to + (back ? there : here);
    const floatX *in = from + (back ? here : there);
    for (int c = threadIdx.x * CHUNK; c < C; c += blockDim.x * CHUNK) {
        float v[CHUNK];
        load_chunk(v, in, c, C, aligned);
        for (int j = 0; j < CHUNK; j++) v[j] *= scale;
        store_chunk(out, v, c, C, aligned);
    }
}
static void copy_rows(floatX *to, const floatX *from, const int32_t *row, bool back, float scale, int rows, int C) {
    bool aligned = rows_aligned(to, C) && rows_aligned(from, C);
    LAUNCH(copy_rows_kernel, rows, row_threads(C), 0, to, from, row, back, scale, C, aligned);
}

void embedding_forward(floatX *out, const int32_t *ids, const Weight *embed, float scale, int N, int C) {
    copy_rows(out, (const floatX *)embed->packed, ids, false, scale, N, C);
}

/* dembed[ids[n],:] += scale dx[n,:]. A warp takes one token and 32 chunks of its columns, and looks through all ids 32
   at a time. The first token that has an id adds up for all of them, in their order; the warps of the others end where
   they meet it. 2 C bytes read a token, 8 C read and written an id that occurs; the ids, a few KB, stay in L1. */
__global__ void embedding_backward_kernel(float *dembed, const int32_t *ids, const __grid_constant__ Matrix dx,
                                          float scale, bool aligned) {
    int lane = threadIdx.x % WARP, n = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    int C = dx.columns, at = (blockIdx.y * WARP + lane) * CHUNK;
    if (!GUARD(n < dx.rows)) return;
    float *row = dembed + (size_t)ids[n] * (size_t)C, sum[CHUNK], v[CHUNK];
    bool inside = GUARD(at < C);
    if (inside) load_floats(sum, row, at, C, aligned);
    for (int base = 0; base < dx.rows; base += WARP) {
        uint32_t same = __ballot_sync(0xffffffff, GUARD(base + lane < dx.rows) && ids[base + lane] == ids[n]);
        for (; same; same &= same - 1) {    /* the lowest bit first */
            int m = base + __ffs((int)same) - 1;
            if (m < n) return;
            if (!inside) continue;
            load_row(v, dx, m, at);
            for (int j = 0; j < CHUNK; j++) sum[j] += scale * v[j];
        }
    }
    for (int j = 0; j < CHUNK && inside && GUARD(at + j < C); j++) row[at + j] = sum[j];
}
void embedding_backward(float *dembed, const int32_t *ids, const floatX *dx, float scale, int N, int C, int V) {
    const int warps = 8;
    (void)V;
    dim3 grid(div_up(N, warps), div_up(C, WARP * CHUNK));
    LAUNCH(embedding_backward_kernel, grid, warps * WARP, 0, dembed, ids, matrix(dx, (size_t)C, N, C), scale,
           rows_aligned(dembed, C));
}

/* ---- weights that are trained: from the optimizer's fp32 to what the ops read ---------------------------------------
   Once an optimizer step; a number is rounded to the format that the folder has it in, then, as weight_pack does, to
   floatX. 4 bytes read, 2 written (4 where `data` is wanted too) a number: the copy bandwidth is the limit. */

__device__ __forceinline__ float rounded(float v, FormatId format) {
    return format == FORMAT_BF16 ? (float)(__nv_bfloat16)v : format == FORMAT_F16 ? (float)(__half)v : v;
}
__global__ void weight_set_kernel(floatX *packed, void *data, const float *values, size_t count, FormatId format) {
    size_t first = (size_t)blockIdx.x * blockDim.x + threadIdx.x, step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = first; GUARD(i < count); i += step) {
        float v = rounded(values[i], format);
        if (packed) packed[i] = (floatX)v;
        if (!data) continue;
        if (format == FORMAT_BF16) ((__nv_bfloat16 *)data)[i] = (__nv_bfloat16)v;
        else if (format == FORMAT_F16) ((__half *)data)[i] = (__half)v;
        else ((float *)data)[i] = v;
    }
}
void weight_set(Weight *w, const float *values) {
    size_t count = (size_t)w->rows * (size_t)w->cols;
    LAUNCH(weight_set_kernel, blocks_of(count), 256, 0, (floatX *)w->packed, (void *)w->data, values, count, w->format);
}
__global__ void vector_set_kernel(float *out, const float *values, size_t count, FormatId format, float factor) {
    size_t first = (size_t)blockIdx.x * blockDim.x + threadIdx.x, step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = first; GUARD(i < count); i += step) out[i] = factor * rounded(values[i], format);
}
void vector_set(float *out, const float *values, size_t count, FormatId format, float factor) {
    LAUNCH(vector_set_kernel, blocks_of(count), 256, 0, out, values, count, format, factor);
}

/* =====================================================================================================================
   4  RMSNORM
   Forward    s = x + residual;  rstd = 1 / sqrt(mean s^2 + eps);  out = weight * s * rstd
   Backward   dx = dresidual + rstd (w dout - s rstd mean(w dout s rstd))
   One block a row. The row is read twice, the second time, it is expected, from the cache. Per token forward 2 C read +
   2 C written in 16 bits (+ 2 C each with the residual), backward 3 C + C:
   about two FLOPs a byte, so the copy bandwidth should be the limit.
   ================================================================================================================== */

__global__ void rmsnorm_forward_kernel(floatX *out, float *rstd, floatX *sum, const floatX *x, const floatX *residual,
                                       const float *weight, float eps, int C, bool aligned) {
    SHARED_MEMORY(memory);
    size_t at = (size_t)blockIdx.x * (size_t)C;
    const floatX *row = x + at;
    float square = 0, v[CHUNK], r[CHUNK], w[CHUNK];
    for (int c = threadIdx.x * CHUNK; c < C; c += blockDim.x * CHUNK) {
        load_chunk(v, row, c, C, aligned);
        if (residual) {
            load_chunk(r, residual + at, c, C, aligned);
            /* the norm is of the sum that is kept */
            for (int j = 0; j < CHUNK; j++) v[j] = (float)(floatX)(v[j] + r[j]);
            store_chunk(sum + at, v, c, C, aligned);
        }
        for (int j = 0; j < CHUNK; j++) square += v[j] * v[j];
    }
    float k = 1.0f / sqrtf(block_sum(square, (float *)memory) / (float)C + eps);
    if (threadIdx.x == 0) rstd[blockIdx.x] = k;
    const floatX *again = residual ? sum + at : row;      /* each thread reads back only what it wrote */
    for (int c = threadIdx.x * CHUNK; c < C; c += blockDim.x * CHUNK) {
        load_chunk(v, again, c, C, aligned);
        load_floats(w, weight, c, C, aligned);
        for (int j = 0; j < CHUNK; j++) v[j] = w[j] * (v[j] * k);
        store_chunk(out + at, v, c, C, aligned);
    }
}
void rmsnorm_forward(floatX *out, float *rstd, floatX *sum, const floatX *x, const floatX *residual,
                     const float *weight, float eps, int N, int C) {
    bool aligned = rows_aligned(out, C) && rows_aligned(sum, C) && rows_aligned(x, C) && rows_aligned(residual, C) &&
                   rows_aligned(weight, C);
    LAUNCH(rmsnorm_forward_kernel, N, row_threads(C), WARP * sizeof(float), out, rstd, residual && !sum ? out : sum, x,
           residual, weight, eps, C, aligned);
}

__global__ void rmsnorm_backward_kernel(floatX *dx, const floatX *dresidual, const floatX *dout, const float *rstd,
                                        const floatX *x, const float *weight, int C, bool aligned) {
    SHARED_MEMORY(memory);
    size_t at = (size_t)blockIdx.x * (size_t)C;
    float k = rstd[blockIdx.x], sum = 0, v[CHUNK], d[CHUNK], r[CHUNK], w[CHUNK];
    for (int c = threadIdx.x * CHUNK; c < C; c += blockDim.x * CHUNK) {
        load_chunk(v, x + at, c, C, aligned);
        load_chunk(d, dout + at, c, C, aligned);
        load_floats(w, weight, c, C, aligned);
        for (int j = 0; j < CHUNK; j++) sum += w[j] * d[j] * v[j];
    }
    float mean = block_sum(sum, (float *)memory) * k / (float)C;
    for (int c = threadIdx.x * CHUNK; c < C; c += blockDim.x * CHUNK) {
        load_chunk(v, x + at, c, C, aligned);
        load_chunk(d, dout + at, c, C, aligned);
        for (int j = 0; j < CHUNK; j++) r[j] = 0;
        if (dresidual) load_chunk(r, dresidual + at, c, C, aligned);
        load_floats(w, weight, c, C, aligned);
        for (int j = 0; j < CHUNK; j++) v[j] = r[j] + k * (w[j] * d[j] - v[j] * k * mean);
        store_chunk(dx + at, v, c, C, aligned);
    }
}
void rmsnorm_backward(floatX *dx, const floatX *dresidual, const floatX *dout, const float *rstd, const floatX *x,
                      const float *weight, int N, int C) {
    bool aligned = rows_aligned(dx, C) && rows_aligned(dresidual, C) && rows_aligned(dout, C) && rows_aligned(x, C) &&
                   rows_aligned(weight, C);
    LAUNCH(rmsnorm_backward_kernel, N, row_threads(C), WARP * sizeof(float), dx, dresidual, dout, rstd, x, weight, C,
           aligned);
}

/* Of a norm that is trained itself: dweight += factor sum_n dout_n x_n rstd_n. 4 C bytes read a token. */
typedef struct NormRow {
    Matrix dout, x;
    const float *rstd;
    __device__ void operator()(float v[CHUNK], int n, int c) const {
        float d[CHUNK];
        load_row(v, x, n, c);
        load_row(d, dout, n, c);
        for (int j = 0; j < CHUNK; j++) v[j] *= d[j] * rstd[n];
    }
} NormRow;
void rmsnorm_weight_backward(float *dweight, const floatX *dout, const float *rstd, const floatX *x, float factor,
                             int N, int C, Scratch scratch) {
    NormRow row = {matrix(dout, (size_t)C, N, C), matrix(x, (size_t)C, N, C), rstd};
    column_sums(dweight, row, factor, N, C, scratch_begin(scratch));
}

/* =====================================================================================================================
   5  LINEAR LAYERS WITH LORA
   s = lora_alpha / r
   Forward    t = dropout(x) A^T         y  = x W^T + bias + t (sB)^T
   Backward   dt = dy (sB)               dx = dy W + mask(dt A)          dB += s dy^T t          dA += dt^T dropout(x)
   Four kernels: `gemm` makes y and dx, `lora_down` t and dt, `lora_gradient` dA and dB, `adapter_pack` brings A and B
   from fp32 to floatX. Ranks are rank_width's here, multiples of 8 with zeros behind the adapter's own.

   What the roofline says. y costs 2 N I O FLOPs on N I + I O + N O numbers: with N = 8192 and I = O = 2048 that is
   1,365 FLOPs a byte, far right of the ridge (H200: 990 TFLOP/s over 4.8 TB/s = 206), so gemm should be bound by the
   tensor cores and everything in it serves to feed them. t costs 2 N I R on the same x: with R = 16 it is 16 FLOPs a
   byte, to be bound by reading x. So x is read once for all the A's of a group (q|k|v, gate|up), and t (sB)^T, another
   N R O, is not a second pass over y but a few more steps of depth inside gemm: "K-extension", 16 / 2048 = 0.8 % more
   work, no traffic.
   ================================================================================================================== */

#ifdef TESTING
/* What gemm computes, with nothing done for speed: a thread an element, every operand read from global memory as often
   as it is needed. Read it before the fast one; test_ops compares the two.
     out [M,N] = x w + t up + bias      w and up lie as [N][depth], for y, or with `transposed` as [depth][N], for dx */
__global__ void gemm_plain_kernel(floatX *out, const floatX *x /*[M,K]*/, const floatX *w, const floatX *t /*[M,R]*/,
                                  const floatX *up, const float *bias /*[N] or NULL*/, int N, int K, int R,
                                  bool transposed) {
    int m = blockIdx.y, n = blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= N) return;
    float sum = bias ? bias[n] : 0;
    for (int k = 0; k < K; k++) sum += (float)x[m * K + k] * (float)w[transposed ? k * N + n : n * K + k];
    for (int r = 0; r < R; r++) sum += (float)t[m * R + r] * (float)up[transposed ? r * N + n : n * R + r];
    out[m * N + n] = (floatX)sum;
}
#endif

/* Group and Part: how one call of linear_forward or linear_backward looks to the kernels. For both
       t = x down^T,    out = sum over x w + t up
   forward    x = x [N,I],  w = W [O,I],  down = A [r,I],       up = sB [O,r]; each part has its own columns of y
   backward   x = dy [N,O], w = W [O,I],  down = (sB)^T [r,O],  up = A [r,I];  the parts add up in dx
   w and up lie as [columns][depth] in forward, as [depth][columns] in backward: TRANSPOSED below. */
typedef struct Part {
    Matrix x, w, t, up, down;
    const float *bias;
    int rank, columns, offset;              /* of the output: width of this part, first column */
    uint32_t dropout_id;
    size_t mask;                            /* where in `kept` its mask [rows, kept_width] begins */
} Part;
typedef struct Group { Part part[3]; int count, rows, stride; } Group;       /* rows: N; stride: of the output */

/* ---- dropout: masks of one bit an element ---------------------------------------------------------------------------
   A mask is made once, by lora_down where forward reads x: ten rounds of Philox for four elements cost more than the
   product that they are for. It is kept for backward: bit i % 8 of byte i / 8 of row n says whether element (n, i)
   stays. Rows are whole words of 64 elements, 0 from I on. */

__host__ __device__ static inline size_t kept_width(int I) { return (size_t)((I + 63) / 64 * 8); }
__device__ __forceinline__ size_t kept_at(int row, int column, int I) {
    return (size_t)row * kept_width(I) + (size_t)column / 8;
}

/* Makes the mask of eight elements from (row, column) on. They are numbered through the [N, I] of x: eight numbers lie
   in two of the generator's blocks of four, in three where I is no multiple of 4. */
__device__ __forceinline__ uint32_t dropout_bits(DropoutKey key, uint32_t dropout_id, int row, int column, int I) {
    uint64_t index = (uint64_t)row * (uint64_t)I + (uint64_t)column;
    uint32_t shift = index % 4, bits = 0, threshold = dropout_threshold(key.dropout);
#pragma unroll 2
    for (uint32_t block = 0; block * 4 < 8 + shift; block++) {
        uint32_t numbers[4];
        dropout_numbers(numbers, key, dropout_id, index / 4 + block);
#pragma unroll
        for (int j = 0; j < 4; j++) bits |= (uint32_t)(numbers[j] >= threshold) << (block * 4 + j);
    }
    int inside = max(0, min(8, I - column));
    return bits >> shift & ((1u << inside) - 1);
}

/* masked = dropout(tile), [rows x columns]. mask(row, column): eight bits from there on. */
template <typename Mask>
__device__ __forceinline__ void tile_dropout(floatX *masked, const floatX *tile, int rows, int columns, float dropout,
                                             Mask mask) {
    float factor = 1.0f / (1.0f - dropout);
    for (int i = threadIdx.x; i < rows * columns / 8; i += TILE_THREADS) {
        int row = i / (columns / 8), column = i % (columns / 8) * 8;
        uint32_t bits = mask(row, column);
#pragma unroll
        for (int c = 0; c < 8; c += CHUNK) {
            float v[CHUNK];
            int from = tile_at(rows, row, column + c);
            load_chunk(v, tile, from, 0, true);
            for (int j = 0; j < CHUNK; j++) v[j] = bits >> (c + j) & 1 ? v[j] * factor : 0;
            store_chunk(masked, v, from, 0, true);
        }
    }
}

/* ---- gemm -----------------------------------------------------------------------------------------------------------
   A block of 4 warps makes 128 x 128 of the output, each warp 64 x 64: a step of 16 in depth loads 4 A and 8 B
   fragments (24 registers) for 32 products, and an element loaded from shared memory serves 64 FLOPs: one ldmatrix for
   four products. Shared memory is a ring of STAGES stages of 128 bytes of depth; copies run STAGES - 1 stages ahead of
   the products and pass the registers by (cp.async). One barrier a step: it says both "this stage has arrived" and
   "everybody has left the stage that is overwritten next".
   TRANSPOSED: w and up lie as [depth][columns] (dx), else as [columns][depth] (y). MASKED: dropout on the part of dx
   that comes through A. */

enum { TILE = 128, WARP_TILE = 64, GEMM_THREADS = TILE_THREADS, GEMM_STAGE = 2 * TILE * PANEL };

/* What is multiplied in one step: PANEL of depth, or what is left of it, of x and w of a part, or (up) of its t and up.
   Forward: the depth I of one part, then its rank. Backward: the widths of all parts, then their ranks; -1: the end. */
typedef struct Step { int part, k0; bool up; } Step;

__device__ __forceinline__ int step_depth(const Group &g, Step s) {
    return s.up ? g.part[s.part].rank : g.part[s.part].x.columns;
}
template <bool TRANSPOSED> __device__ __forceinline__ Step next_step(const Group &g, Step s) {
    s.k0 += PANEL;
    while (s.part >= 0 && s.k0 >= step_depth(g, s)) {
        s.k0 = 0;
        if (TRANSPOSED && s.part + 1 < g.count) s.part++;
        else if (!s.up) { s.up = true; if (TRANSPOSED) s.part = 0; }
        else s.part = -1;
    }
    return s;
}
template <bool TRANSPOSED>
__device__ __forceinline__ void gemm_load(floatX *stage, const Group &g, Step s, int m0, int n0) {
    if (s.part >= 0) {
        const Part &p = g.part[s.part];
        tile_load<TILE, PANEL>(stage, s.up ? p.t : p.x, m0, s.k0);
        if (TRANSPOSED) tile_load<PANEL, TILE>(stage + TILE * PANEL, s.up ? p.up : p.w, s.k0, n0);
        else tile_load<TILE, PANEL>(stage + TILE * PANEL, s.up ? p.up : p.w, n0, s.k0);
    }
    cp_async_commit();                      /* also when there was nothing to load: the wait counts groups */
}
template <bool TRANSPOSED> __device__ __forceinline__ void gemm_load_b(FragB f[2], const floatX *stage, int n, int k) {
    if (TRANSPOSED) load_b_pair_transposed(f, stage + TILE * PANEL, PANEL, n, k);
    else load_b_pair(f, stage + TILE * PANEL, TILE, n, k);
}
/* A warp's 64 x 64 += 16 of depth. A_TRANSPOSED: the other operand lies as [depth][rows], too (dW). */
template <bool TRANSPOSED, bool A_TRANSPOSED = false>
__device__ __forceinline__ void gemm_products(float acc[4][8][4], const floatX *stage, int warp_m, int warp_n, int k) {
    FragA a[4];
    FragB b[8];
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (A_TRANSPOSED) load_a_transposed(a[i], stage, PANEL, warp_m + i * 16, k);
        else load_a(a[i], stage, TILE, warp_m + i * 16, k);
#pragma unroll
    for (int j = 0; j < 8; j += 2) gemm_load_b<TRANSPOSED>(b + j, stage, warp_n + j * 8, k);
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) mma(acc[i][j], a[i], b[j]);
}
/* The same for the whole depth of t A under dropout. Every projection has its own mask: its product is made apart,
   16 x 16 at a time, masked and added. (m0, n0): of the warp's 64 x 64 in the output [N,I]. The loop over i is kept a
   loop, its sums picked by comparison: code for one row of blocks instead of four. */
template <bool TRANSPOSED>
__device__ __forceinline__ void gemm_masked_products(float acc[4][8][4], const floatX *stage, int warp_m, int warp_n,
                                                     int depth, float dropout, const uint8_t *mask, int N, int I,
                                                     int m0, int n0) {
    int lane = threadIdx.x % WARP;
    float factor = 1.0f / (1.0f - dropout);
#pragma unroll 1
    for (int i = 0; i < 4; i++) {
        uint64_t bits[2] = {0, 0};          /* of this lane's two rows, from its first column on */
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = m0 + i * 16 + frag_row(lane, 2 * half);
            if (GUARD(row < N) && GUARD(n0 < I))
                bits[half] = *(const uint64_t *)(mask + kept_at(row, n0, I)) >> frag_column(lane, 0);
        }
#pragma unroll
        for (int j = 0; j < 8; j += 2) {
            float product[2][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
#pragma unroll 1
            for (int k = 0; k < depth; k += 16) {
                FragA a;
                FragB b[2];
                load_a(a, stage, TILE, warp_m + i * 16, k);
                gemm_load_b<TRANSPOSED>(b, stage, warp_n + j * 8, k);
                mma(product[0], a, b[0]);
                mma(product[1], a, b[1]);
            }
#pragma unroll
            for (int e = 0; e < 8; e++) {
                bool stays = bits[e % 4 / 2] >> ((j + e / 4) * 8 + e % 2) & 1;
                float masked = stays ? product[e / 4][e % 4] * factor : 0;
#pragma unroll
                for (int u = 0; u < 4; u++) acc[u][j + e / 4][e % 4] += u == i ? masked : 0;
            }
        }
    }
}

/* __launch_bounds__: two blocks a multiprocessor; the compiler may use 255 registers and must not spill for a third. */
template <bool TRANSPOSED, bool MASKED, int STAGES>
__global__ void __launch_bounds__(GEMM_THREADS, 2)
gemm_kernel(floatX *out, const __grid_constant__ Group g, const uint8_t *kept, float dropout, int column_tiles, int I,
            bool aligned) {
    SHARED_MEMORY(memory);
    floatX *ring = (floatX *)memory;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int warp_m = warp / 2 * WARP_TILE, warp_n = warp % 2 * WARP_TILE;

    /* Blocks walk down 8 row tiles before they move to the next column tile, so that those that run together share both
       x and w in the L2 cache. */
    int row_tiles = (g.rows + TILE - 1) / TILE, band = blockIdx.x / (8 * column_tiles);
    int inside = blockIdx.x % (8 * column_tiles), band_rows = min(8, row_tiles - band * 8);
    int m0 = (band * 8 + inside % band_rows) * TILE, column_tile = inside / band_rows, part = 0;
    if (!TRANSPOSED)
        for (; column_tile >= (g.part[part].columns + TILE - 1) / TILE; part++)
            column_tile -= (g.part[part].columns + TILE - 1) / TILE;
    int n0 = column_tile * TILE;

    float acc[4][8][4];
    for (int i = 0; i < 4; i++) for (int j = 0; j < 8; j++) for (int e = 0; e < 4; e++) acc[i][j][e] = 0;

    Step queue[STAGES];                     /* queue[0] is multiplied now, the others are on their way */
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        Step before = {part, -PANEL, false};
        queue[s] = next_step<TRANSPOSED>(g, s ? queue[s - 1] : before);
        gemm_load<TRANSPOSED>(ring + s * GEMM_STAGE, g, queue[s], m0, n0);
    }
    for (int from = 0, into = STAGES - 1; queue[0].part >= 0;) {
        cp_async_wait(STAGES - 2);
        __syncthreads();
        queue[STAGES - 1] = next_step<TRANSPOSED>(g, queue[STAGES - 2]);
        gemm_load<TRANSPOSED>(ring + into * GEMM_STAGE, g, queue[STAGES - 1], m0, n0);
        Step now = queue[0];
        int depth = min(step_depth(g, now) - now.k0, (int)PANEL);
        const floatX *stage = ring + from * GEMM_STAGE;
        if (MASKED && now.up)
            gemm_masked_products<TRANSPOSED>(acc, stage, warp_m, warp_n, depth, dropout, kept + g.part[now.part].mask,
                                         g.rows, I, m0 + warp_m, n0 + warp_n);
        else if (depth == PANEL) {          /* nearly always: one straight run of loads among products */
#pragma unroll
            for (int k = 0; k < PANEL; k += 16) gemm_products<TRANSPOSED>(acc, stage, warp_m, warp_n, k);
        } else {
#pragma unroll 1
            for (int k = 0; k < depth; k += 16) gemm_products<TRANSPOSED>(acc, stage, warp_m, warp_n, k);
        }
        from = from + 1 < STAGES ? from + 1 : 0;
        into = into + 1 < STAGES ? into + 1 : 0;
#pragma unroll
        for (int s = 0; s + 1 < STAGES; s++) queue[s] = queue[s + 1];
    }
    __syncthreads();                        /* the ring becomes four tiles, one a warp, to store whole 16-byte chunks */
    floatX *staging = ring + warp * WARP_TILE * WARP_TILE;
    const float *bias = TRANSPOSED ? NULL : g.part[part].bias;
    int columns = TRANSPOSED ? I : g.part[part].columns, offset = TRANSPOSED ? 0 : g.part[part].offset;
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
            int row = i * 16 + frag_row(lane, 0), column = j * 8 + frag_column(lane, 0), n = n0 + warp_n + column;
            float b0 = bias && GUARD(n < columns) ? bias[n] : 0, b1 = bias && GUARD(n + 1 < columns) ? bias[n + 1] : 0;
            store_pair(staging + tile_at(WARP_TILE, row, column), acc[i][j][0] + b0, acc[i][j][1] + b1);
            store_pair(staging + tile_at(WARP_TILE, row + 8, column), acc[i][j][2] + b0, acc[i][j][3] + b1);
        }
    }
    __syncwarp();
    tile_store(out + offset, (size_t)g.stride, g.rows, columns, aligned, staging, WARP_TILE, 0, WARP_TILE, WARP_TILE,
               m0 + warp_m, n0 + warp_n);
}

/* Stages of the ring: three where two blocks with three fit a multiprocessor, so that one multiplies while the other
   waits at its barrier; two where two with two do (sm_80). Where not even those do (100 KiB: sm_86, 89, 120) three, for
   one block; else two. A block costs 1 KiB more than it asks for. */
static int gemm_stages(void) {
    const size_t stage = GEMM_STAGE * sizeof(floatX), reserved = 1024;
    for (size_t blocks = 2; blocks > 0; blocks--)
        for (size_t stages = 3; stages > 1; stages--)
            if (stages * stage <= device.shared && blocks * (stages * stage + reserved) <= device.shared_in_all)
                return (int)stages;
    return 2;
}

template <bool TRANSPOSED, bool MASKED>
static void gemm_launch(floatX *out, const Group &g, const uint8_t *kept, float dropout, int column_tiles, int I) {
    size_t stage = GEMM_STAGE * sizeof(floatX);
    int stages = gemm_stages();
    bool aligned = (uintptr_t)out % 16 == 0 && g.stride % CHUNK == 0;
    for (int j = 0; j < g.count; j++)
        aligned = aligned && (TRANSPOSED || (g.part[j].offset % CHUNK == 0 && g.part[j].columns % CHUNK == 0));
    auto kernel = stages == 3 ? gemm_kernel<TRANSPOSED, MASKED, 3> : gemm_kernel<TRANSPOSED, MASKED, 2>;
    WITH_SHARED(kernel, stages * stage);
    int blocks = column_tiles * div_up(g.rows, TILE);
    LAUNCH(kernel, blocks, GEMM_THREADS, stages * stage, out, g, kept, dropout, column_tiles, I, aligned);
}
/* ---- gemv: a few rows -----------------------------------------------------------------------------------------------
   While a text is generated x has one row a sequence: 2 FLOPs for every weight read, so the weights' way from memory is
   all the time there is. Every weight is read once, in 16-byte chunks that a warp takes 512 bytes at a time; a warp
   makes GEMV_COLUMNS columns of y side by side, so that its loads of x (from L1) serve four weights each, and never
   meets another warp: no shared memory, no barrier. The rank is a second, short sum. */

enum { GEMV_ROWS = 8, GEMV_COLUMNS = 4, GEMV_THREADS = 256 };

template <int ROWS>
__global__ void __launch_bounds__(GEMV_THREADS) gemv_kernel(floatX *out, const __grid_constant__ Group g) {
    int lane = threadIdx.x % WARP, number = blockIdx.x * (GEMV_THREADS / WARP) + threadIdx.x / WARP, part = 0;
    for (; part < g.count && number >= (g.part[part].columns + GEMV_COLUMNS - 1) / GEMV_COLUMNS; part++)
        number -= (g.part[part].columns + GEMV_COLUMNS - 1) / GEMV_COLUMNS;
    if (!GUARD(part < g.count)) return;
    const Part &p = g.part[part];
    int n0 = number * GEMV_COLUMNS;
    float sum[GEMV_COLUMNS][ROWS], w[GEMV_COLUMNS][CHUNK], x[CHUNK];
    for (int c = 0; c < GEMV_COLUMNS; c++) for (int r = 0; r < ROWS; r++) sum[c][r] = 0;
    for (int up = 0; up < (p.rank ? 2 : 1); up++) {
        const Matrix &a = up ? p.t : p.x, &b = up ? p.up : p.w;
        for (int k = lane * CHUNK; k < a.columns; k += WARP * CHUNK) {
#pragma unroll
            for (int c = 0; c < GEMV_COLUMNS; c++) {
                const floatX *row = b.data + (size_t)min(n0 + c, b.rows - 1) * b.stride;
                load_chunk(w[c], row, k, a.columns, b.aligned);
            }
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                load_chunk(x, a.data + (size_t)min(r, g.rows - 1) * a.stride, k, a.columns, a.aligned);
#pragma unroll
                for (int c = 0; c < GEMV_COLUMNS; c++) for (int j = 0; j < CHUNK; j++) sum[c][r] += w[c][j] * x[j];
            }
        }
    }
#pragma unroll
    for (int c = 0; c < GEMV_COLUMNS; c++) {
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float v = warp_sum(sum[c][r]);
            if (lane == 0 && GUARD(n0 + c < p.columns) && GUARD(r < g.rows))
                out[(size_t)r * (size_t)g.stride + (size_t)(p.offset + n0 + c)] =
                    (floatX)(v + (p.bias ? p.bias[n0 + c] : 0));
        }
    }
}
static void gemv(floatX *y, const Group &g) {
    int warps = 0;
    for (int j = 0; j < g.count; j++) warps += div_up(g.part[j].columns, GEMV_COLUMNS);
    int blocks = div_up(warps, GEMV_THREADS / WARP);
    if (g.rows == 1) LAUNCH(gemv_kernel<1>, blocks, GEMV_THREADS, 0, y, g);
    else if (g.rows == 2) LAUNCH(gemv_kernel<2>, blocks, GEMV_THREADS, 0, y, g);
    else if (g.rows <= 4) LAUNCH(gemv_kernel<4>, blocks, GEMV_THREADS, 0, y, g);
    else LAUNCH(gemv_kernel<GEMV_ROWS>, blocks, GEMV_THREADS, 0, y, g);
}

/* y [N,O] of a group, or dx [N,I]. */
static void gemm_forward(floatX *y, const Group &g, int I) {
    if (g.rows <= GEMV_ROWS) { gemv(y, g); return; }
    int tiles = 0;
    for (int j = 0; j < g.count; j++) tiles += div_up(g.part[j].columns, TILE);
    gemm_launch<false, false>(y, g, NULL, 0, tiles, I);
}
static void gemm_backward(floatX *dx, const Group &g, const uint8_t *kept, float dropout, int I) {
    if (dropout > 0) gemm_launch<true, true>(dx, g, kept, dropout, div_up(I, TILE), I);
    else gemm_launch<true, false>(dx, g, NULL, 0, div_up(I, TILE), I);
}

/* ---- adapter_pack: A and sB in floatX, for the tensor cores -------------------------------------------------------
   Once an optimizer step, for every micro-batch in it: a [width, in] = A, b [out, width] = s B for forward and
   transposed [width, out] = (s B)^T for backward, one behind the other; rows and columns from the rank on are 0. */

typedef struct Pack { const float *A, *B; floatX *a, *b, *transposed; int in, out, rank; float scale; } Pack;
typedef struct Packs { Pack job[MODULE_COUNT]; } Packs;

__global__ void adapter_pack_kernel(const __grid_constant__ Packs packs) {
    const Pack &p = packs.job[blockIdx.y];
    int first = blockIdx.x * blockDim.x + threadIdx.x, step = gridDim.x * blockDim.x, width = rank_width(p.rank);
    for (int i = first; GUARD(i < width * p.in); i += step) p.a[i] = (floatX)(GUARD(i < p.rank * p.in) ? p.A[i] : 0);
    for (int i = first; GUARD(i < width * p.out); i += step) {
        int o = i / width, r = i % width;
        p.b[i] = (floatX)(GUARD(r < p.rank) ? p.scale * p.B[o * p.rank + r] : 0);
    }
    for (int i = first; GUARD(i < width * p.out); i += step) {
        int r = i / p.out, o = i % p.out;
        p.transposed[i] = (floatX)(GUARD(r < p.rank) ? p.scale * p.B[o * p.rank + r] : 0);
    }
}
static Pack packed(const Linear *p, const Lora *lora) {
    size_t width = (size_t)rank_width(lora->rank);
    floatX *a = (floatX *)lora->packed, *b = a + width * (size_t)p->in;
    Pack pack = {lora->A, lora->B, a, b, b + width * (size_t)p->out, p->in, p->out, lora->rank, lora->scale};
    return pack;
}
size_t kept_bytes(const Linear *group, const Lora *lora, int count, int N) {
    size_t bytes = 0;
    for (int j = 0; j < count; j++) if (lora[j].rank) bytes += (size_t)N * kept_width(group[j].in);
    return bytes;
}
size_t adapter_packed_bytes(const Linear *p, const Lora *lora) {
    return (size_t)rank_width(lora->rank) * ((size_t)p->in + 2 * (size_t)p->out) * sizeof(floatX);
}
void adapter_pack(const Linear *projections, const Lora *lora, int count) {
    Packs packs;
    int most = 0;
    for (int j = 0; j < count; j++) {
        Pack p = packs.job[j] = packed(&projections[j], &lora[j]);
        most = max(most, rank_width(p.rank) * max(p.in, p.out));
    }
    dim3 grid(div_up(most, 1024), count);
    if (most) LAUNCH(adapter_pack_kernel, grid, 256, 0, packs);
}

/* ---- lora_down: t = dropout(x) down^T -------------------------------------------------------------------------------
   Bound by reading x, so x is read once: a block of 4 warps takes 64 rows, all of the depth, and up to three slices of
   64 columns of t (q|k|v at rank 64). */

enum { SLICE = 64, SLICES = 3, DOWN_ROWS = 64, LORA_THREADS = TILE_THREADS };
typedef struct Slice { int part, r0, width; } Slice;

/* Slice `number` of t's columns. only >= 0: counted within one part, else over all of them. Width 0: there is none. */
__device__ __forceinline__ Slice find_slice(const Group &g, int number, int only) {
    for (int j = 0; j < g.count; j++) {
        if (only >= 0 && j != only) continue;
        int n = (g.part[j].rank + SLICE - 1) / SLICE;
        if (number < n) { Slice s = {j, number * SLICE, min((int)SLICE, g.part[j].rank - number * SLICE)}; return s; }
        number -= n;
    }
    Slice none = {0, 0, 0};
    return none;
}
/* The slices of block row y: with shared x over all parts, else three of one part. Returns their number. */
__device__ __forceinline__ int block_slices(Slice s[SLICES], const Group &g, int y, bool shared_x) {
    int only = -1, count = 0;
    if (!shared_x) for (only = 0; only < g.count; only++) {
        int blocks = ((g.part[only].rank + SLICE - 1) / SLICE + SLICES - 1) / SLICES;
        if (y < blocks) break;
        y -= blocks;
    }
#pragma unroll
    for (int i = 0; i < SLICES; i++) { s[i] = find_slice(g, y * SLICES + i, only); count += s[i].width > 0; }
    return count;
}
static int slice_blocks(const Group &g, bool shared_x) {
    int slices = 0, blocks = 0;
    for (int j = 0; j < g.count; j++) {
        slices += div_up(g.part[j].rank, SLICE);
        blocks += div_up(div_up(g.part[j].rank, SLICE), SLICES);
    }
    return shared_x ? div_up(slices, SLICES) : blocks;
}

__global__ void __launch_bounds__(LORA_THREADS)
lora_down_kernel(floatX *t, uint8_t *kept, int R, const __grid_constant__ Group g, bool shared_x, DropoutKey key,
                 int stages) {
    SHARED_MEMORY(memory);
    const int tile = DOWN_ROWS * PANEL, stage_size = (1 + SLICES) * tile;
    floatX *ring = (floatX *)memory, *masked = ring + stages * stage_size;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, m0 = blockIdx.x * DOWN_ROWS;
    Slice s[SLICES];
    block_slices(s, g, blockIdx.y, shared_x);
    const Matrix &x = g.part[s[0].part].x;
    int I = x.columns, steps = (I + 63) / 64 * (64 / PANEL);                  /* whole words of a mask's row */
    float acc[SLICES][8][4];
    for (int i = 0; i < SLICES; i++) for (int j = 0; j < 8; j++) for (int e = 0; e < 4; e++) acc[i][j][e] = 0;

    auto load = [&](int step) {
        floatX *stage = ring + step % stages * stage_size;
        tile_load<DOWN_ROWS, PANEL>(stage, x, m0, step * PANEL);
#pragma unroll
        for (int i = 0; i < SLICES; i++) {
            const Matrix &down = g.part[s[i].part].down;
            if (s[i].width) tile_load<SLICE, PANEL>(stage + (1 + i) * tile, down, s[i].r0, step * PANEL);
        }
        cp_async_commit();
    };
    load(0);
    for (int step = 0; step < steps; step++) {
        bool ahead = stages == 2 && step + 1 < steps;
        if (ahead) { load(step + 1); cp_async_wait(1); } else cp_async_wait(0);
        __syncthreads();
        const floatX *stage = ring + step % stages * stage_size;
        if (key.dropout > 0) {
#pragma unroll
            for (int i = 0; i < SLICES; i++)
                if (s[i].width)
                    tile_dropout(masked + i * tile, stage, DOWN_ROWS, PANEL, key.dropout, [&](int row, int column) {
                        const Part &p = g.part[s[i].part];
                        int n = m0 + row, at = step * PANEL + column;
                        uint32_t bits = dropout_bits(key, p.dropout_id, n, at, I);
                        bool keeps = s[i].r0 == 0;    /* of the slices that make the same mask */
                        if (keeps && GUARD(n < g.rows)) kept[p.mask + kept_at(n, at, I)] = (uint8_t)bits;
                        return bits;
                    });
            __syncthreads();
        }
#pragma unroll
        for (int k = 0; k < PANEL; k += 16) {
            FragA a;
            load_a(a, stage, DOWN_ROWS, warp * 16, k);
#pragma unroll
            for (int i = 0; i < SLICES; i++) {
                if (!s[i].width) continue;
                if (key.dropout > 0) load_a(a, masked + i * tile, DOWN_ROWS, warp * 16, k);
#pragma unroll
                for (int j = 0; j < 8; j += 2) {
                    if (j * 8 >= s[i].width) continue;
                    FragB b[2];
                    load_b_pair(b, stage + (1 + i) * tile, SLICE, j * 8, k);
                    mma(acc[i][j], a, b[0]);
                    mma(acc[i][j + 1], a, b[1]);
                }
            }
        }
        __syncthreads();
        if (stages == 1 && step + 1 < steps) load(step + 1);
    }
#pragma unroll
    for (int i = 0; i < SLICES; i++) {
        int first = g.part[s[i].part].offset + s[i].r0;
#pragma unroll
        for (int j = 0; j < 8; j++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int row = m0 + warp * 16 + frag_row(lane, e), column = j * 8 + frag_column(lane, e);
                if (GUARD(row < g.rows) && GUARD(column < s[i].width))
                    t[(size_t)row * (size_t)R + (size_t)(first + column)] = (floatX)acc[i][j][e];
            }
        }
    }
}

/* ---- lora_gradient: dB^T = t^T dy and dA = dt^T dropout(x) ----------------------------------------------------------
   The same thing twice: a tall thin matrix, transposed, times a tall wide one. The depth is the tokens, so blocks along
   the width alone would be few: the tokens are split, and `reduce` adds the splits. A block takes 64 columns of the
   wide matrix, read once, for up to three slices of the thin one. Group: part.t thin, part.x wide. */

__global__ void __launch_bounds__(LORA_THREADS)
lora_gradient_kernel(float *partial, int R, int width, const __grid_constant__ Group g, const uint8_t *kept,
                     float dropout, bool shared_x, int tokens, int stages) {
    SHARED_MEMORY(memory);
    const int tile = SLICE * SLICE, stage_size = (1 + SLICES) * tile;
    floatX *ring = (floatX *)memory, *masked = ring + stages * stage_size;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, n0 = blockIdx.x * SLICE;
    int first = blockIdx.z * tokens, last = min(g.rows, first + tokens);
    Slice s[SLICES];
    block_slices(s, g, blockIdx.y, shared_x);
    const Matrix &x = g.part[s[0].part].x;
    if (n0 >= x.columns) return;            /* parts of a group differ in width */
    float acc[SLICES][4][2][4];
    for (int i = 0; i < SLICES; i++)
        for (int j = 0; j < 4; j++) for (int e = 0; e < 8; e++) acc[i][j][e / 4][e % 4] = 0;

    auto load = [&](int to, int token) {
        floatX *stage = ring + to * stage_size;
        tile_load<SLICE, SLICE>(stage, x, token, n0);
#pragma unroll
        for (int i = 0; i < SLICES; i++)
            if (s[i].width) tile_load<SLICE, SLICE>(stage + (1 + i) * tile, g.part[s[i].part].t, token, s[i].r0);
        cp_async_commit();
    };
    load(0, first);
    for (int token = first, step = 0; token < last; token += SLICE, step++) {
        bool ahead = stages == 2 && token + SLICE < last;
        if (ahead) { load((step + 1) % 2, token + SLICE); cp_async_wait(1); } else cp_async_wait(0);
        __syncthreads();
        const floatX *stage = ring + step % stages * stage_size;
        if (dropout > 0) {
#pragma unroll
            for (int i = 0; i < SLICES; i++)
                if (s[i].width)
                    tile_dropout(masked + i * tile, stage, SLICE, SLICE, dropout, [&](int row, int column) {
                        const uint8_t *mask = kept + g.part[s[i].part].mask;
                        int n = token + row;
                        return GUARD(n < g.rows) ? (uint32_t)mask[kept_at(n, n0 + column, x.columns)] : 0;
                    });
            __syncthreads();
        }
#pragma unroll
        for (int k = 0; k < SLICE; k += 16) {
            FragB b[2];
            load_b_pair_transposed(b, stage, SLICE, warp * 16, k);
#pragma unroll
            for (int i = 0; i < SLICES; i++) {
                if (!s[i].width) continue;
                if (dropout > 0) load_b_pair_transposed(b, masked + i * tile, SLICE, warp * 16, k);
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    if (j * 16 >= s[i].width) continue;
                    FragA a;
                    load_a_transposed(a, stage + (1 + i) * tile, SLICE, j * 16, k);
                    mma(acc[i][j][0], a, b[0]);
                    mma(acc[i][j][1], a, b[1]);
                }
            }
        }
        __syncthreads();
        if (stages == 1 && token + SLICE < last) load(0, token + SLICE);
    }
#pragma unroll
    for (int i = 0; i < SLICES; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
#pragma unroll
            for (int e = 0; e < 8; e++) {
                int r = j * 16 + frag_row(lane, e % 4), n = n0 + warp * 16 + e / 4 * 8 + frag_column(lane, e % 4);
                size_t row = (size_t)blockIdx.z * (size_t)R + (size_t)(g.part[s[i].part].offset + s[i].r0 + r);
                if (GUARD(r < s[i].width) && GUARD(n < x.columns))
                    partial[row * (size_t)width + (size_t)n] = acc[i][j][e / 4][e % 4];
            }
        }
    }
}

/* Bytes of shared memory of lora_gradient, the hungrier of the two: in each stage a wide tile and three thin ones, and
   with dropout the wide one in three masked versions. */
static size_t lora_shared(int stages, float dropout) {
    size_t tiles = (size_t)stages * (1 + SLICES) + (dropout > 0 ? SLICES : 0);
    return tiles * SLICE * SLICE * sizeof(floatX);
}

/* As many splits of the tokens as give every multiprocessor four blocks. */
static int gradient_splits(int N, int width, int slice_rows) {
    int blocks = div_up(width, SLICE) * slice_rows, most = div_up(N, SLICE);
    int splits = div_up(4 * device.processors, blocks);
    return splits < 1 ? 1 : splits > most ? most : splits;
}
static void lora_gradient(const Group &g, const Reduces &reduces, const uint8_t *kept, float dropout, bool shared_x,
                          bool transposed, int R, ScratchCursor scratch) {
    int width = 0, rows = slice_blocks(g, shared_x);
    for (int j = 0; j < g.count; j++) if (g.part[j].x.columns > width) width = g.part[j].x.columns;
    int splits = gradient_splits(g.rows, width, rows), tokens = div_up(div_up(g.rows, splits), SLICE) * SLICE;
    splits = div_up(g.rows, tokens);
    float *partial = scratch_take(&scratch, (size_t)splits * (size_t)R * (size_t)width);
    int stages = lora_shared(2, dropout) <= device.shared ? 2 : 1;
    size_t shared = lora_shared(stages, dropout);
    WITH_SHARED(lora_gradient_kernel, shared);
    dim3 grid(div_up(width, SLICE), rows, splits), reduce_grid(div_up(R * width, 256), g.count);
    LAUNCH(lora_gradient_kernel, grid, LORA_THREADS, shared, partial, R, width, g, kept, dropout, shared_x, tokens,
           stages);
    LAUNCH(reduce_kernel, reduce_grid, 256, 0, reduces, partial, R, width, splits, transposed);
}

static void lora_down(floatX *t, uint8_t *kept, int R, const Group &g, bool shared_x, DropoutKey key) {
    if (g.rows <= GEMV_ROWS && key.dropout == 0) {     /* a few tokens: `down` is nearly all there is to read */
        Group few = g;
        few.stride = R;
        for (int j = 0; j < g.count; j++) {
            Part &p = few.part[j];
            p.w = p.down;
            p.columns = p.rank;
            p.rank = 0;
            p.bias = NULL;
        }
        gemv(t, few);
        return;
    }
    size_t tile = DOWN_ROWS * PANEL * sizeof(floatX), masks = key.dropout > 0 ? SLICES * tile : 0;
    int stages = 2 * (1 + SLICES) * tile + masks <= device.shared ? 2 : 1;
    size_t shared = (size_t)stages * (1 + SLICES) * tile + masks;
    WITH_SHARED(lora_down_kernel, shared);
    dim3 grid(div_up(g.rows, DOWN_ROWS), slice_blocks(g, shared_x));
    LAUNCH(lora_down_kernel, grid, LORA_THREADS, shared, t, kept, R, g, shared_x, key, stages);
}

/* ---- the two launchers ------------------------------------------------------------------------------------------- */

static Matrix no_matrix(void) { return matrix(NULL, 0, 0, 0); }
static Lora no_lora(void) { Lora lora; memset(&lora, 0, sizeof lora); return lora; }

static void must_fit(int count) {           /* Group and Reduces have room for q, k and v */
    if (count <= 3) return;
    fprintf(stderr, "error: %d projections in a group of at most 3; linear_forward; please report this\n", count);
    abort();
}
static void must_keep(const uint8_t *kept, float dropout) {
    if (kept || dropout == 0) return;
    fprintf(stderr, "error: no room for the masks of dropout %g; linear_forward; please report this\n",
            (double)dropout);
    abort();
}
/* scratch is counted in floats */
static size_t floats_of(size_t numbers) { return (numbers * sizeof(floatX) + 3) / 4; }

void linear_forward(floatX *y, floatX *t, uint8_t *kept, const floatX *x, const Linear *group, const Lora *lora,
                    int count, DropoutKey key, int N, Scratch scratch) {
    int O, R, I = group[0].in, o = 0, r = 0;
    must_fit(count);
    linear_sums(group, lora, count, &O, &R);
    const Lora none = no_lora();            /* of a projection without an adapter */
    bool adapter = R > 0;
    size_t mask = 0;
    must_keep(kept, adapter ? key.dropout : 0);
    (void)scratch;
    Group whole, down;                      /* t's columns are numbered by rank, y's by output */
    whole.count = down.count = count; whole.rows = down.rows = N; whole.stride = O; down.stride = R;
    for (int j = 0; j < count; j++) {
        const Linear *p = &group[j];
        const Lora *a = lora && lora[j].rank ? &lora[j] : &none;
        int rank = rank_width(a->rank);
        Pack q = packed(p, a);
        Matrix w = matrix((const floatX *)lora_weight(p, lora_at(lora, j))->packed, (size_t)I, p->out, I);
        Part part = {matrix(x, (size_t)I, N, I), w, no_matrix(), no_matrix(), no_matrix(),
                     lora_bias(p, lora_at(lora, j)), rank, p->out, o, p->dropout_id, mask};
        if (rank) {
            part.t = matrix(t + r, (size_t)R, N, rank);
            part.up = matrix(q.b, (size_t)rank, p->out, rank);
            part.down = matrix(q.a, (size_t)I, rank, I);
        }
        whole.part[j] = down.part[j] = part;
        down.part[j].offset = r;
        o += p->out;
        r += rank;
        mask += kept_bytes(p, a, 1, N);
    }
    if (adapter) lora_down(t, kept, R, down, true, key);
    gemm_forward(y, whole, I);
}

void linear_backward(floatX *dx, const floatX *dy, const floatX *t, const uint8_t *kept, const floatX *x,
                     const Linear *group, const Lora *lora, int count, DropoutKey key, int N, Scratch scratch) {
    int O, R, I = group[0].in, o = 0, r = 0;
    must_fit(count);
    linear_sums(group, lora, count, &O, &R);
    const Lora none = no_lora();            /* of a projection without an adapter */
    bool adapter = R > 0;
    size_t mask = 0;
    must_keep(kept, adapter ? key.dropout : 0);
    ScratchCursor s = scratch_begin(scratch);
    floatX *dt = adapter ? (floatX *)scratch_take(&s, floats_of((size_t)N * (size_t)R)) : NULL;
    Group whole, for_A, for_B;              /* whole: dt and dx from dy; for_A: dt^T x; for_B: t^T dy */
    Reduces reduce_A, reduce_B;
    whole.count = for_A.count = for_B.count = count;
    whole.rows = for_A.rows = for_B.rows = N;
    whole.stride = for_A.stride = for_B.stride = I;
    for (int j = 0; j < count; j++) {
        const Linear *p = &group[j];
        const Lora *a = lora && lora[j].rank ? &lora[j] : &none;
        int rank = rank_width(a->rank);
        Pack q = packed(p, a);
        Matrix w = matrix((const floatX *)lora_weight(p, lora_at(lora, j))->packed, (size_t)I, p->out, I);
        Part part = {matrix(dy + o, (size_t)O, N, p->out), w, no_matrix(), no_matrix(), no_matrix(), NULL, rank, I, r,
                     p->dropout_id, mask};
        if (rank) {
            part.t = matrix(dt + r, (size_t)R, N, rank);
            part.up = matrix(q.a, (size_t)I, rank, I);
            part.down = matrix(q.transposed, (size_t)p->out, rank, p->out);
        }
        whole.part[j] = for_A.part[j] = for_B.part[j] = part;
        for_A.part[j].x = matrix(x, (size_t)I, N, I);
        if (rank) for_B.part[j].t = matrix(t + r, (size_t)R, N, rank);
        Reduce A = {a->dA, a->rank, r, I, 1}, B = {a->dB, a->rank, r, p->out, a->scale};
        reduce_A.job[j] = A;
        reduce_B.job[j] = B;
        o += p->out;
        r += rank;
        mask += kept_bytes(p, a, 1, N);
    }
    if (adapter) {
        DropoutKey plain = key;              /* dropout is on x alone */
        plain.dropout = 0;
        lora_down(dt, NULL, R, whole, false, plain);
        lora_gradient(for_B, reduce_B, NULL, 0, false, true, R, s);
        lora_gradient(for_A, reduce_A, kept, key.dropout, true, false, R, s);
    }
    if (dx) gemm_backward(dx, whole, kept, adapter ? key.dropout : 0, I);
}

/* ---- weight_gradient: dW += dy^T x, of weights that are trained themselves ------------------------------------------
   The third product of a linear layer, 2 N I O FLOPs like the other two; its depth is the tokens, which both operands
   have down their rows: ldmatrix transposes both on the way to the registers. Blocks, warps and the ring are gemm's;
   the sums are fp32 to the end and are added to dW from the registers. Where dW has few tiles (135M parameters: 25 in
   q_proj, a card has 132 multiprocessors) the tokens are split. */

enum { WEIGHT_BLOCKS = 128, WEIGHT_TOKENS = 256 };        /* wanted in all; a split's at least, whole panels */

template <int STAGES>
__global__ void __launch_bounds__(GEMM_THREADS, 2)
weight_gradient_kernel(float *out, bool add, const __grid_constant__ Matrix dy, const __grid_constant__ Matrix x,
                       int O, int split) {
    SHARED_MEMORY(memory);
    floatX *ring = (floatX *)memory;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, I = x.columns;
    int warp_m = warp / 2 * WARP_TILE, warp_n = warp % 2 * WARP_TILE, m0 = blockIdx.y * TILE, n0 = blockIdx.x * TILE;
    int first = blockIdx.z * split, last = min(x.rows, first + split);
    float acc[4][8][4];
    for (int i = 0; i < 4; i++) for (int j = 0; j < 8; j++) for (int e = 0; e < 4; e++) acc[i][j][e] = 0;

    auto load = [&](floatX *stage, int token) {
        if (token < last) {
            tile_load<PANEL, TILE>(stage, dy, token, m0);
            tile_load<PANEL, TILE>(stage + TILE * PANEL, x, token, n0);
        }
        cp_async_commit();
    };
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) load(ring + s * GEMM_STAGE, first + s * PANEL);
    for (int token = first, from = 0, into = STAGES - 1; token < last; token += PANEL) {
        cp_async_wait(STAGES - 2);
        __syncthreads();
        load(ring + into * GEMM_STAGE, token + (STAGES - 1) * PANEL);
#pragma unroll
        for (int k = 0; k < PANEL; k += 16)
            gemm_products<true, true>(acc, ring + from * GEMM_STAGE, warp_m, warp_n, k);
        from = from + 1 < STAGES ? from + 1 : 0;
        into = into + 1 < STAGES ? into + 1 : 0;
    }
    out += (size_t)blockIdx.z * (size_t)O * (size_t)I;
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int o = m0 + warp_m + i * 16 + frag_row(lane, e), c = n0 + warp_n + j * 8 + frag_column(lane, e);
                if (!GUARD(o < O) || !GUARD(c < I)) continue;
                float *to = out + (size_t)o * (size_t)I + (size_t)c;
                *to = add ? *to + acc[i][j][e] : acc[i][j][e];
            }
        }
    }
}
static int weight_splits(int N, int I, int O) {
    int wanted = div_up(WEIGHT_BLOCKS, div_up(I, TILE) * div_up(O, TILE)), most = div_up(N, WEIGHT_TOKENS);
    return wanted < most ? wanted : most;
}
/* dW [O,I] += dy^T x. dy: at least O columns; splits: of the tokens, each with a dW of its own in scratch. */
static void weight_gradient(float *dW, const Matrix &dy, const Matrix &x, int O, int splits, ScratchCursor scratch) {
    int N = x.rows, I = x.columns, split = div_up(div_up(N, splits), PANEL) * PANEL, stages = gemm_stages();
    splits = div_up(N, split);
    float *out = splits > 1 ? scratch_take(&scratch, (size_t)splits * (size_t)O * (size_t)I) : dW;
    size_t shared = (size_t)stages * GEMM_STAGE * sizeof(floatX);
    auto kernel = stages == 3 ? weight_gradient_kernel<3> : weight_gradient_kernel<2>;
    dim3 grid(div_up(I, TILE), div_up(O, TILE), splits);
    WITH_SHARED(kernel, shared);
    LAUNCH(kernel, grid, GEMM_THREADS, shared, out, splits == 1, dy, x, O, split);
    Reduces sum = {{{dW, O, 0, I, 1}}};
    if (splits > 1) LAUNCH(reduce_kernel, div_up(O * I, 256), 256, 0, sum, out, O, I, splits, false);
}

typedef struct PlainRow {
    Matrix m;
    __device__ void operator()(float v[CHUNK], int n, int c) const { load_row(v, m, n, c); }
} PlainRow;
void linear_weight_backward(float *dW, float *dbias, const floatX *dy, int stride, const floatX *x, int N, int I,
                            int O, Scratch scratch) {
    PlainRow row = {matrix(dy, (size_t)stride, N, O)};
    if (dW)
        weight_gradient(dW, row.m, matrix(x, (size_t)I, N, I), O, weight_splits(N, I, O), scratch_begin(scratch));
    if (dbias) column_sums(dbias, row, 1, N, O, scratch_begin(scratch));
}

/* =====================================================================================================================
   6  Q/K NORM AND ROTARY EMBEDDING
   Forward    x_hat = x rstd, z = weight x_hat (Qwen3; else z = x);
              (a, b) -> (a cos - b sin, b cos + a sin) on the pairs (d, d + D/2) of z
   Backward   the rotation by the negative angle, then the norm's derivative
   A team of lanes holds one head of one token, CHUNK pairs a lane: 8 lanes for D = 128, four heads a warp. One pass: P
   numbers read and written per token, rstd is made again instead of stored.
   ================================================================================================================== */

/* Sum over a team of `team` neighbouring lanes (a power of two). */
__device__ __forceinline__ float team_sum(float v, int team) {
    for (int offset = team / 2; offset; offset /= 2) v += __shfl_xor_sync(0xffffffff, v, offset);
    return v;
}

template <bool BACKWARD>
__global__ void qk_norm_rope_kernel(floatX *out, const floatX *qkv, const float *q_weight, const float *k_weight,
                                    float eps, const float *cos_table, const float *sin_table,
                                    const int32_t *positions, int64_t heads, int H, int KV, int D, int team,
                                    bool aligned) {
    int half = D / 2, lane = threadIdx.x % team, d = lane * CHUNK;
    int64_t number = (int64_t)blockIdx.x * (blockDim.x / team) + threadIdx.x / team;   /* of the head, token by token */
    bool active = GUARD(number < heads) && GUARD(d < half);    /* the others still take part in the sums */
    int per_token = H + 2 * KV, h = active ? (int)(number % per_token) : 0;
    int64_t n = active ? number / per_token : 0;
    size_t at = (size_t)(n * per_token + h) * (size_t)D;
    const float *weight = h < H ? q_weight : h < H + KV ? k_weight : NULL;
    float x[2][CHUNK], g[2][CHUNK], w[2][CHUNK], cosine[CHUNK], sine[CHUNK];
    for (int j = 0; j < CHUNK; j++) {
        for (int side = 0; side < 2; side++) { x[side][j] = g[side][j] = 0; w[side][j] = 1; }
        cosine[j] = 1;
        sine[j] = 0;
    }
    if (active) for (int side = 0; side < 2; side++) {
        if (!BACKWARD || weight) load_chunk(x[side], qkv + at + side * half, d, half, aligned);
        if (BACKWARD) load_chunk(g[side], out + at + side * half, d, half, aligned);
    }
    float square = 0;
    for (int side = 0; side < 2; side++) for (int j = 0; j < CHUNK; j++) square += x[side][j] * x[side][j];
    square = team_sum(square, team);    /* before the branch: a warp shuffles with all of its lanes, those of v too */
    if (active && h < H + KV) {             /* v passes */
        size_t angles = (size_t)(positions ? positions[n] : 0) * (size_t)half;
        load_floats(cosine, cos_table + angles, d, half, aligned);
        load_floats(sine, sin_table + angles, d, half, aligned);
        if (weight) for (int side = 0; side < 2; side++) load_floats(w[side], weight + side * half, d, half, aligned);
    }
    float k = weight ? 1.0f / sqrtf(square / (float)D + eps) : 1.0f, mean = 0;
    for (int j = 0; j < CHUNK; j++) {
        float c = cosine[j], s = sine[j], w0 = w[0][j] * k, w1 = w[1][j] * k;
        if (!BACKWARD) {
            float a = w0 * x[0][j], b = w1 * x[1][j];
            g[0][j] = a * c - b * s;
            g[1][j] = b * c + a * s;
        } else {
            float a = g[0][j], b = g[1][j];
            g[0][j] = w0 * (a * c + b * s);                                   /* rstd * weight * (gradient of z) */
            g[1][j] = w1 * (b * c - a * s);
            mean += g[0][j] * x[0][j] + g[1][j] * x[1][j];
        }
    }
    if (BACKWARD) {
        mean = team_sum(mean, team) * k * k / (float)D;
        if (weight)
            for (int side = 0; side < 2; side++) for (int j = 0; j < CHUNK; j++) g[side][j] -= x[side][j] * mean;
    }
    if (active) for (int side = 0; side < 2; side++) store_chunk(out + at + side * half, g[side], d, half, aligned);
}
static int qk_norm_team(int D) {
    int team = 1;
    while (team * CHUNK < D / 2) team *= 2;
    return team;
}
template <bool BACKWARD>
static void qk_norm_rope_launch(floatX *out, const floatX *qkv, const float *q_weight, const float *k_weight,
                                float eps, const float *cos_table, const float *sin_table, const int32_t *positions,
                                int N, int H, int KV, int D) {
    int team = qk_norm_team(D);
    int64_t heads = (int64_t)N * (H + 2 * KV);
    int per_block = 256 / team;
    auto kernel = qk_norm_rope_kernel<BACKWARD>;
    bool aligned = rows_aligned(out, D / 2) && rows_aligned(qkv, D / 2) && rows_aligned(cos_table, D / 2) &&
                   rows_aligned(sin_table, D / 2) && rows_aligned(q_weight, D / 2) && rows_aligned(k_weight, D / 2);
    LAUNCH(kernel, (int)((heads + per_block - 1) / per_block), 256, 0, out, qkv, q_weight, k_weight, eps, cos_table,
           sin_table, positions, heads, H, KV, D, team, aligned);
}
void qk_norm_rope_forward(floatX *out, const floatX *qkv, const float *q_weight, const float *k_weight, float eps,
                          const float *cos_table, const float *sin_table, const int32_t *positions, int N,
                              AttentionShape a) {
    qk_norm_rope_launch<false>(out, qkv, q_weight, k_weight, eps, cos_table, sin_table, positions, N, a.H, a.KV, a.D);
}
void qk_norm_rope_backward(floatX *dqkv, const floatX *qkv, const float *q_weight, const float *k_weight, float eps,
                           const float *cos_table, const float *sin_table, const int32_t *positions, int N,
                               AttentionShape a) {
    qk_norm_rope_launch<true>(dqkv, qkv, q_weight, k_weight, eps, cos_table, sin_table, positions, N, a.H, a.KV, a.D);
}

/* Of norms that are trained themselves: dweight += sum over tokens and heads of (dout rotated back) x_hat. Teams as
   above; each adds up every so many heads in registers, its block joins the teams' sums in their order. Row y = 0 of
   the grid: the heads of q, 1: of k. partial [splits, 2, D] */
__global__ void qk_norm_weight_kernel(float *partial, const floatX *dout, const floatX *qkv, float eps,
                                      const float *cos_table, const float *sin_table, const int32_t *positions, int N,
                                      int H, int KV, int D, int team, int split, bool aligned) {
    SHARED_MEMORY(memory);
    float *sums = (float *)memory;          /* [teams, D] */
    int half = D / 2, d = threadIdx.x % team * CHUNK, own = threadIdx.x / team, teams = blockDim.x / team;
    int heads = blockIdx.y ? KV : H, h0 = blockIdx.y ? H : 0;
    int64_t first = (int64_t)blockIdx.x * split * heads, last = min(N, (int)(blockIdx.x + 1) * split);
    float x[2][CHUNK], g[2][CHUNK], sum[2][CHUNK], cosine[CHUNK], sine[CHUNK];
    for (int j = 0; j < CHUNK; j++) { sum[0][j] = sum[1][j] = cosine[j] = sine[j] = 0; }
    for (int64_t at = first; at < last * heads; at += teams) {
        int64_t number = at + own, n = number / heads;
        bool active = GUARD(number < last * heads) && GUARD(d < half);         /* the others take part in the sums */
        for (int side = 0; side < 2; side++) for (int j = 0; j < CHUNK; j++) x[side][j] = g[side][j] = 0;
        if (active) {
            size_t head = (size_t)(n * (H + 2 * KV) + h0 + number % heads) * (size_t)D;
            size_t angles = (size_t)(positions ? positions[n] : 0) * (size_t)half;
            for (int side = 0; side < 2; side++) {
                load_chunk(x[side], qkv + head + side * half, d, half, aligned);
                load_chunk(g[side], dout + head + side * half, d, half, aligned);
            }
            load_floats(cosine, cos_table + angles, d, half, aligned);
            load_floats(sine, sin_table + angles, d, half, aligned);
        }
        float square = 0;
        for (int side = 0; side < 2; side++) for (int j = 0; j < CHUNK; j++) square += x[side][j] * x[side][j];
        float k = 1.0f / sqrtf(team_sum(square, team) / (float)D + eps);
        for (int j = 0; j < CHUNK; j++) {
            sum[0][j] += k * x[0][j] * (g[0][j] * cosine[j] + g[1][j] * sine[j]);
            sum[1][j] += k * x[1][j] * (g[1][j] * cosine[j] - g[0][j] * sine[j]);
        }
    }
    for (int side = 0; side < 2; side++)
        for (int j = 0; j < CHUNK && GUARD(d + j < half); j++) sums[own * D + side * half + d + j] = sum[side][j];
    __syncthreads();
    for (int c = threadIdx.x; GUARD(c < D); c += blockDim.x) {
        float total = 0;
        for (int t = 0; t < teams; t++) total += sums[t * D + c];
        partial[(size_t)(blockIdx.x * 2 + blockIdx.y) * (size_t)D + (size_t)c] = total;
    }
}
void qk_norm_weight_backward(float *dq_weight, float *dk_weight, const floatX *dout, const floatX *qkv, float eps,
                             const float *cos_table, const float *sin_table, const int32_t *positions, int N,
                             AttentionShape a, Scratch scratch) {
    int D = a.D, team = qk_norm_team(D);
    int split = max(div_up(N, HEAD_SPLITS), (int)SPLIT_ROWS), splits = div_up(N, split);
    bool aligned = rows_aligned(dout, D / 2) && rows_aligned(qkv, D / 2) && rows_aligned(cos_table, D / 2) &&
                   rows_aligned(sin_table, D / 2);
    ScratchCursor cursor = scratch_begin(scratch);
    float *partial = scratch_take(&cursor, (size_t)splits * 2 * (size_t)D);
    LAUNCH(qk_norm_weight_kernel, dim3(splits, 2), 256, (size_t)(256 / team * D) * sizeof(float), partial, dout, qkv,
           eps, cos_table, sin_table, positions, N, a.H, a.KV, D, team, split, aligned);
    Reduces sums = {{{dq_weight, dq_weight ? 1 : 0, 0, D, 1}, {dk_weight, dk_weight ? 1 : 0, 1, D, 1}}};
    LAUNCH(reduce_kernel, dim3(1, 2), 256, 0, sums, partial, 2, D, splits, false);
}

/* =====================================================================================================================
   7  ATTENTION
   Forward    s = scale q k^T, causal within a sequence;  p = softmax(s);  out = p v;  lse = log sum exp(s), saved
   Backward   p = exp(s - lse);  dv = p^T dout;  ds = p (dout v^T - delta),  delta = dout . out;
              dq = scale ds k;  dk = scale ds^T q
   FlashAttention-2 (Dao 2023): a block holds 64 queries and walks over the keys they may see, 64 at a time; scores and
   probabilities live in registers only. 4 warps, 16 queries each. A row of scores is spread over the four lanes of a
   quad, so maximum and sum need two shuffles. exp is exp2 with log2(e) folded into the scale.

   Backward is two kernels. One holds 64 keys and walks over the queries that see them: dk and dv stay in registers, for
   all query heads of the group. The other holds 64 queries and walks over keys: dq. The scores are made twice, seven
   products instead of FlashAttention's five; but dq has one writer: no atomics, the same bits in every run, and
   attention is a tenth of a LoRA step.

   FLOPs: forward 2 H D (keys seen) per token and product; bytes: q, k, v, out once. At 1,024 tokens and D = 128 some
   400 FLOPs a byte: tensor cores and exponentials should be the bound.
   ================================================================================================================== */

/* SHORT: queries or keys a step of backward, where two kinds of scores share the registers */
enum { QUERIES = 64, KEYS = 64, SHORT = 32, ATTENTION_THREADS = TILE_THREADS };

typedef struct Attention {                  /* what all attention kernels are told */
    const floatX *qkv;                      /* [N,P] */
    const int32_t *cu_seqlens;
    int S, H, KV, D;
    float scale;
    int stages;
    bool aligned;
} Attention;

/* Block number -> tile of `rows` within one sequence. Sequence s owns the numbers from cu[s]/rows + s on, always enough
   for its tiles and found by bisection without a table; first >= length: an empty number. */
typedef struct SequenceTile { int begin, length, first; } SequenceTile;
__device__ __forceinline__ SequenceTile find_tile(const Attention &a, int number, int rows) {
    int low = 0, high = a.S - 1;
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (a.cu_seqlens[middle] / rows + middle <= number) low = middle;
        else high = middle - 1;
    }
    int begin = a.cu_seqlens[low];
    SequenceTile t = {begin, a.cu_seqlens[low + 1] - begin, (number - begin / rows - low) * rows};
    return t;
}
/* Columns of one head of qkv, rows of one sequence. */
__device__ __forceinline__ Matrix head_of(const Attention &a, const SequenceTile &s, int head) {
    size_t P = (size_t)(a.H + 2 * a.KV) * (size_t)a.D;
    Matrix m = {a.qkv + (size_t)s.begin * P + (size_t)head * (size_t)a.D, P, s.length, a.D, a.aligned};
    return m;
}
/* The same of an [N,H,D]. */
__device__ __forceinline__ Matrix head_rows(const Attention &a, const floatX *x, const SequenceTile &s, int head) {
    size_t HD = (size_t)a.H * (size_t)a.D;
    Matrix m = {x + (size_t)s.begin * HD + (size_t)head * (size_t)a.D, HD, s.length, a.D, a.aligned};
    return m;
}
/* Elements of a tile of `rows` rows and DT * 16 columns: whole panels. */
LORA_HOST_DEVICE static inline int head_tile(int rows, int DT) {
    return rows * ((DT * 16 + PANEL - 1) / PANEL * PANEL);
}

/* s [16 x 8 NT] = rows m0.. of `a` times the 8 NT rows of `b`, both DT * 16 wide. */
template <int DT, int NT>
__device__ __forceinline__ void scores(float s[NT][4], const floatX *a, int a_rows, int m0, const floatX *b,
                                       int b_rows) {
#pragma unroll
    for (int j = 0; j < NT; j++) for (int e = 0; e < 4; e++) s[j][e] = 0;
#pragma unroll
    for (int k = 0; k < DT; k++) {
        FragA fa;
        load_a(fa, a, a_rows, m0, k * 16);
#pragma unroll
        for (int j = 0; j < NT; j += 2) {
            FragB fb[2];
            load_b_pair(fb, b, b_rows, j * 8, k * 16);
            mma(s[j], fa, fb[0]);
            mma(s[j + 1], fa, fb[1]);
        }
    }
}
/* out [16 x 16 DT] += s [16 x 8 NT] times the 8 NT rows of b. */
template <int DT, int NT>
__device__ __forceinline__ void accumulate(float out[2 * DT][4], const float s[NT][4], const floatX *b, int b_rows) {
#pragma unroll
    for (int k = 0; k < NT; k += 2) {
        FragA fa;
        frag_from_products(fa, s[k], s[k + 1]);
#pragma unroll
        for (int j = 0; j < DT; j++) {
            FragB fb[2];
            load_b_pair_transposed(fb, b, b_rows, j * 16, k * 8);
            mma(out[2 * j], fa, fb[0]);
            mma(out[2 * j + 1], fa, fb[1]);
        }
    }
}
/* A warp's [16 x 16 DT] times `factor[row half]` to rows row0.. of an output with D columns, through 16 rows of a tile
   in shared memory. */
template <int DT>
__device__ __forceinline__ void store_rows(floatX *out, size_t stride, int length, int D, bool aligned, floatX *tile,
                                           int tile_rows, int m0, int row0, const float acc[2 * DT][4],
                                           const float factor[2]) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int j = 0; j < 2 * DT; j++)
        for (int half = 0; half < 2; half++) {
            floatX *to = tile + tile_at(tile_rows, m0 + frag_row(lane, 2 * half), j * 8 + frag_column(lane, 0));
            store_pair(to, acc[j][2 * half] * factor[half], acc[j][2 * half + 1] * factor[half]);
        }
    __syncwarp();
    tile_store(out, stride, length, D, aligned, tile, tile_rows, m0, 16, DT * 16, row0, 0);
}

template <int DT>
__global__ void __launch_bounds__(ATTENTION_THREADS, 2)
attention_forward_kernel(floatX *out, float *lse, const __grid_constant__ Attention a) {
    SHARED_MEMORY(memory);
    /* the last tiles of a sequence have the most keys: they start first */
    SequenceTile s = find_tile(a, gridDim.x - 1 - blockIdx.x, QUERIES);
    if (s.first >= s.length) return;
    int h = blockIdx.y, kv = h / (a.H / a.KV), lane = threadIdx.x % WARP, m0 = threadIdx.x / WARP * 16;
    const int tile = head_tile(KEYS, DT);
    floatX *q = (floatX *)memory, *ring = q + tile;
    Matrix mq = head_of(a, s, h), mk = head_of(a, s, a.H + kv), mv = head_of(a, s, a.H + a.KV + kv);
    /* what lies above the diagonal is never touched */
    int tiles = (min(s.first + QUERIES, s.length) + KEYS - 1) / KEYS;
    auto load = [&](int number) {
        floatX *stage = ring + number % a.stages * 2 * tile;
        tile_load<KEYS, DT * 16>(stage, mk, number * KEYS, 0);
        tile_load<KEYS, DT * 16>(stage + tile, mv, number * KEYS, 0);
        cp_async_commit();
    };
    tile_load<QUERIES, DT * 16>(q, mq, s.first, 0);
    load(0);
    float acc[2 * DT][4], top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, p[KEYS / 8][4];
    for (int j = 0; j < 2 * DT; j++) for (int e = 0; e < 4; e++) acc[j][e] = 0;
    float log2_scale = a.scale * 1.44269504f;
    for (int number = 0; number < tiles; number++) {
        bool ahead = a.stages == 2 && number + 1 < tiles;
        if (ahead) { load(number + 1); cp_async_wait(1); } else cp_async_wait(0);
        __syncthreads();
        const floatX *k = ring + number % a.stages * 2 * tile, *v = k + tile;
        scores<DT, KEYS / 8>(p, q, QUERIES, m0, k, KEYS);
        if (number == tiles - 1)            /* only the last tile meets the diagonal or the end */
            for (int j = 0; j < KEYS / 8; j++)
                for (int e = 0; e < 4; e++)
                    if (!GUARD(number * KEYS + j * 8 + frag_column(lane, e) <= s.first + m0 + frag_row(lane, e)))
                        p[j][e] = -INFINITY;
        for (int half = 0; half < 2; half++) {
            float best = top[half];
            for (int j = 0; j < KEYS / 8; j++) best = fmaxf(best, fmaxf(p[j][2 * half], p[j][2 * half + 1]));
            best = fmaxf(best, __shfl_xor_sync(0xffffffff, best, 1));
            best = fmaxf(best, __shfl_xor_sync(0xffffffff, best, 2));
            /* the first tile: exp2(-inf) = 0; every query sees at least key 0 in it */
            float shrink = exp2f((top[half] - best) * log2_scale), part = 0;
            for (int j = 0; j < KEYS / 8; j++)
                for (int e = 2 * half; e < 2 * half + 2; e++) {
                    p[j][e] = exp2f((p[j][e] - best) * log2_scale);
                    part += p[j][e];
                }
            sum[half] = sum[half] * shrink + part;
            top[half] = best;
            for (int j = 0; j < 2 * DT; j++) { acc[j][2 * half] *= shrink; acc[j][2 * half + 1] *= shrink; }
        }
        accumulate<DT, KEYS / 8>(acc, p, v, KEYS);
        __syncthreads();
        if (a.stages == 1 && number + 1 < tiles) load(number + 1);
    }
    float inverse[2];
    for (int half = 0; half < 2; half++) {
        sum[half] += __shfl_xor_sync(0xffffffff, sum[half], 1);
        sum[half] += __shfl_xor_sync(0xffffffff, sum[half], 2);
        inverse[half] = 1.0f / sum[half];
        int row = s.first + m0 + frag_row(lane, 2 * half);
        if (frag_column(lane, 0) == 0 && GUARD(row < s.length))
            lse[(size_t)(s.begin + row) * (size_t)a.H + (size_t)h] = top[half] * a.scale + logf(sum[half]);
    }
    Matrix to = head_rows(a, out, s, h);
    /* the warp's own rows of q: nobody else reads them */
    store_rows<DT>(out + (to.data - out), to.stride, s.length, a.D, a.aligned, q, QUERIES, m0, s.first + m0, acc,
                   inverse);
}

/* delta[n,h] = dout . out, a warp each. */
__global__ void attention_delta_kernel(float *delta, const floatX *dout, const floatX *out, int64_t rows, int D,
                                       bool aligned) {
    int64_t i = (int64_t)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (!GUARD(i < rows)) return;
    float sum = 0, x[CHUNK], y[CHUNK];
    for (int d = threadIdx.x % WARP * CHUNK; GUARD(d < D); d += WARP * CHUNK) {
        load_chunk(x, dout + i * D, d, D, aligned);
        load_chunk(y, out + i * D, d, D, aligned);
        for (int j = 0; j < CHUNK; j++) sum += x[j] * y[j];
    }
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) delta[i] = sum;
}

/* dk and dv of 64 keys. Scores are made transposed, keys by queries, so that p^T and ds^T are already the A operands of
   dv = p^T dout and dk = ds^T q. */
template <int DT>
__global__ void __launch_bounds__(ATTENTION_THREADS, 2)
attention_keys_kernel(floatX *dqkv, const floatX *dout, const float *lse, const float *delta,
                      const __grid_constant__ Attention a) {
    SHARED_MEMORY(memory);
    SequenceTile s = find_tile(a, blockIdx.x, KEYS);    /* the first tiles are seen by the most queries */
    if (s.first >= s.length) return;
    int kv = blockIdx.y, group = a.H / a.KV, lane = threadIdx.x % WARP, m0 = threadIdx.x / WARP * 16;
    const int keys_tile = head_tile(KEYS, DT), queries_tile = head_tile(SHORT, DT);
    floatX *k = (floatX *)memory, *v = k + keys_tile, *ring = v + keys_tile;
    float *saved = (float *)(ring + a.stages * 2 * queries_tile);             /* a stage: lse [SHORT], delta [SHORT] */
    int start = s.first / SHORT, per_head = (s.length + SHORT - 1) / SHORT - start, steps = per_head * group;
    auto load = [&](int step) {
        int h = kv * group + step / per_head, q0 = (start + step % per_head) * SHORT, stage = step % a.stages;
        tile_load<SHORT, DT * 16>(ring + stage * 2 * queries_tile, head_of(a, s, h), q0, 0);
        tile_load<SHORT, DT * 16>(ring + (stage * 2 + 1) * queries_tile, head_rows(a, dout, s, h), q0, 0);
        for (int i = threadIdx.x; i < 2 * SHORT; i += blockDim.x) {
            int query = q0 + i % SHORT;
            saved[stage * 2 * SHORT + i] = GUARD(query < s.length)
                ? (i < SHORT ? lse : delta)[(size_t)(s.begin + query) * (size_t)a.H + (size_t)h] : 0;
        }
        cp_async_commit();
    };
    tile_load<KEYS, DT * 16>(k, head_of(a, s, a.H + kv), s.first, 0);
    tile_load<KEYS, DT * 16>(v, head_of(a, s, a.H + a.KV + kv), s.first, 0);
    load(0);
    float dk[2 * DT][4], dv[2 * DT][4], p[SHORT / 8][4], ds[SHORT / 8][4];
    for (int j = 0; j < 2 * DT; j++) for (int e = 0; e < 4; e++) dk[j][e] = dv[j][e] = 0;
    for (int step = 0; step < steps; step++) {
        bool ahead = a.stages == 2 && step + 1 < steps;
        if (ahead) { load(step + 1); cp_async_wait(1); } else cp_async_wait(0);
        __syncthreads();
        int q0 = (start + step % per_head) * SHORT, stage = step % a.stages;
        const floatX *q = ring + stage * 2 * queries_tile, *d = q + queries_tile;
        const float *l = saved + stage * 2 * SHORT;
        scores<DT, SHORT / 8>(p, k, KEYS, m0, q, SHORT);
        scores<DT, SHORT / 8>(ds, v, KEYS, m0, d, SHORT);
        /* Queries past the end were loaded as zeros, dout, lse and delta too: they add nothing. */
        for (int j = 0; j < SHORT / 8; j++) for (int e = 0; e < 4; e++) {
            int column = j * 8 + frag_column(lane, e), key = s.first + m0 + frag_row(lane, e);
            p[j][e] = GUARD(key <= q0 + column) ? exp2f((p[j][e] * a.scale - l[column]) * 1.44269504f) : 0;
            ds[j][e] = p[j][e] * (ds[j][e] - l[SHORT + column]);
        }
        accumulate<DT, SHORT / 8>(dv, p, d, SHORT);
        accumulate<DT, SHORT / 8>(dk, ds, q, SHORT);
        __syncthreads();
        if (a.stages == 1 && step + 1 < steps) load(step + 1);
    }
    float one[2] = {1, 1}, scale[2] = {a.scale, a.scale};
    Matrix to_k = head_of(a, s, a.H + kv), to_v = head_of(a, s, a.H + a.KV + kv);
    store_rows<DT>(dqkv + (to_k.data - a.qkv), to_k.stride, s.length, a.D, a.aligned, k, KEYS, m0, s.first + m0, dk,
                   scale);
    store_rows<DT>(dqkv + (to_v.data - a.qkv), to_v.stride, s.length, a.D, a.aligned, v, KEYS, m0, s.first + m0, dv,
                   one);
}

/* dq of 64 queries of one head. */
template <int DT>
__global__ void __launch_bounds__(ATTENTION_THREADS, 2)
attention_queries_kernel(floatX *dqkv, const floatX *dout, const float *lse, const float *delta,
                         const __grid_constant__ Attention a) {
    SHARED_MEMORY(memory);
    SequenceTile s = find_tile(a, gridDim.x - 1 - blockIdx.x, QUERIES);
    if (s.first >= s.length) return;
    int h = blockIdx.y, kv = h / (a.H / a.KV), lane = threadIdx.x % WARP, m0 = threadIdx.x / WARP * 16;
    const int queries_tile = head_tile(QUERIES, DT), keys_tile = head_tile(SHORT, DT);
    floatX *q = (floatX *)memory, *d = q + queries_tile, *ring = d + queries_tile;
    Matrix mk = head_of(a, s, a.H + kv), mv = head_of(a, s, a.H + a.KV + kv);
    int tiles = (min(s.first + QUERIES, s.length) + SHORT - 1) / SHORT;
    auto load = [&](int number) {
        floatX *stage = ring + number % a.stages * 2 * keys_tile;
        tile_load<SHORT, DT * 16>(stage, mk, number * SHORT, 0);
        tile_load<SHORT, DT * 16>(stage + keys_tile, mv, number * SHORT, 0);
        cp_async_commit();
    };
    tile_load<QUERIES, DT * 16>(q, head_of(a, s, h), s.first, 0);
    tile_load<QUERIES, DT * 16>(d, head_rows(a, dout, s, h), s.first, 0);
    load(0);
    float l[2] = {0, 0}, del[2] = {0, 0};
    for (int half = 0; half < 2; half++) {
        int query = s.first + m0 + frag_row(lane, 2 * half);
        if (!GUARD(query < s.length)) continue;
        size_t at = (size_t)(s.begin + query) * (size_t)a.H + (size_t)h;
        l[half] = lse[at];
        del[half] = delta[at];
    }
    float dq[2 * DT][4], p[SHORT / 8][4], ds[SHORT / 8][4];
    for (int j = 0; j < 2 * DT; j++) for (int e = 0; e < 4; e++) dq[j][e] = 0;
    for (int number = 0; number < tiles; number++) {
        bool ahead = a.stages == 2 && number + 1 < tiles;
        if (ahead) { load(number + 1); cp_async_wait(1); } else cp_async_wait(0);
        __syncthreads();
        const floatX *k = ring + number % a.stages * 2 * keys_tile, *v = k + keys_tile;
        scores<DT, SHORT / 8>(p, q, QUERIES, m0, k, SHORT);
        scores<DT, SHORT / 8>(ds, d, QUERIES, m0, v, SHORT);
        for (int j = 0; j < SHORT / 8; j++) for (int e = 0; e < 4; e++) {
            int key = number * SHORT + j * 8 + frag_column(lane, e), query = s.first + m0 + frag_row(lane, e);
            int half = e / 2;
            ds[j][e] = GUARD(key <= query)
                ? exp2f((p[j][e] * a.scale - l[half]) * 1.44269504f) * (ds[j][e] - del[half]) : 0;
        }
        accumulate<DT, SHORT / 8>(dq, ds, k, SHORT);
        __syncthreads();
        if (a.stages == 1 && number + 1 < tiles) load(number + 1);
    }
    float scale[2] = {a.scale, a.scale};
    Matrix to = head_of(a, s, h);
    store_rows<DT>(dqkv + (to.data - a.qkv), to.stride, s.length, a.D, a.aligned, q, QUERIES, m0, s.first + m0, dq,
                   scale);
}

/* DT of the instance that holds D columns: steps of 16, with 3 and 7 left to the next one up. */
static int head_steps(int D) { int n = div_up(D, 16); return n == 3 ? 4 : n == 7 ? 8 : n; }
#define FOR_HEAD_DIM(D, CALL) \
    switch (head_steps(D)) { \
    case 1: CALL(1); break; \
    case 2: CALL(2); break; \
    case 4: CALL(4); break; \
    case 5: CALL(5); break; \
    case 6: CALL(6); break; \
    default: CALL(8); \
    }
/* Bytes of shared memory of the hungriest attention kernel (keys: 2 x 64 rows held, 2 x 32 in each stage, and their
   statistics; forward: 64 held, 2 x 64 in each stage). */
static size_t attention_shared(int D, int stages) {
    int DT = head_steps(D);
    size_t forward = (size_t)head_tile(QUERIES + stages * 2 * KEYS, DT) * sizeof(floatX);
    size_t backward = (size_t)head_tile(2 * KEYS + stages * 2 * SHORT, DT) * sizeof(floatX) +
                      (size_t)stages * 2 * SHORT * sizeof(float);
    return forward > backward ? forward : backward;
}

static Attention attention_arguments(const floatX *qkv, const int32_t *cu_seqlens, int S, AttentionShape a,
                                     bool aligned) {
    Attention all = {qkv, cu_seqlens, S, a.H, a.KV, a.D, a.scale, attention_shared(a.D, 2) <= device.shared ? 2 : 1,
                     aligned && rows_aligned(qkv, a.D)};
    return all;
}

void attention_forward(floatX *out, float *lse, const floatX *qkv, const int32_t *cu_seqlens,
                       int S, int N, AttentionShape shape, Scratch scratch) {
    int H = shape.H, D = shape.D;
    (void)scratch;
    Attention a = attention_arguments(qkv, cu_seqlens, S, shape, rows_aligned(out, shape.D));
    dim3 grid(N / QUERIES + S, H);
#define FORWARD(DT) do { \
        auto kernel = attention_forward_kernel<DT>; \
        size_t shared = (size_t)head_tile(QUERIES + a.stages * 2 * KEYS, DT) * sizeof(floatX); \
        WITH_SHARED(kernel, shared); \
        LAUNCH(kernel, grid, ATTENTION_THREADS, shared, out, lse, a); \
    } while (0)
    FOR_HEAD_DIM(D, FORWARD);
#undef FORWARD
}

void attention_backward(floatX *dqkv, const floatX *dout, const floatX *out, const float *lse, const floatX *qkv,
                        const int32_t *cu_seqlens,
                        int S, int N, AttentionShape shape, Scratch scratch) {
    int H = shape.H, KV = shape.KV, D = shape.D;
    ScratchCursor cursor = scratch_begin(scratch);
    float *delta = scratch_take(&cursor, (size_t)N * (size_t)H);
    bool aligned = rows_aligned(dqkv, D) && rows_aligned(dout, D) && rows_aligned(out, D);
    int64_t rows = (int64_t)N * H;
    LAUNCH(attention_delta_kernel, (int)((rows + 7) / 8), 8 * WARP, 0, delta, dout, out, rows, D, aligned);
    Attention a = attention_arguments(qkv, cu_seqlens, S, shape, aligned);
    dim3 keys_grid(N / KEYS + S, KV), queries_grid(N / QUERIES + S, H);
#define BACKWARD(DT) do { \
        auto keys = attention_keys_kernel<DT>; \
        auto queries = attention_queries_kernel<DT>; \
        size_t shared = (size_t)head_tile(2 * KEYS + a.stages * 2 * SHORT, DT) * sizeof(floatX); \
        size_t statistics = (size_t)a.stages * 2 * SHORT * sizeof(float); \
        WITH_SHARED(keys, shared + statistics); \
        WITH_SHARED(queries, shared); \
        LAUNCH(keys, keys_grid, ATTENTION_THREADS, shared + statistics, dqkv, dout, lse, delta, a); \
        LAUNCH(queries, queries_grid, ATTENTION_THREADS, shared, dqkv, dout, lse, delta, a); \
    } while (0)
    FOR_HEAD_DIM(D, BACKWARD);
#undef BACKWARD
}

/* ---- attention over a cache, for generation -------------------------------------------------------------------------
   One query a sequence, so nothing is reused but within a group of heads: the time is that of reading keys and values,
   a few per cent of the weights'. A block takes one query head of one token; its warps take DECODE_KEYS keys each in
   turn, the D numbers of a row spread over the lanes, with a running maximum, sum and output of their own (online
   softmax). At the end the warps' parts are joined in their order. */

enum { DECODE_THREADS = 256, DECODE_KEYS = 4, DECODE_NUMBERS = MAX_HEAD_DIM / WARP };

__global__ void cache_store_kernel(floatX *cache, const floatX *qkv, const int32_t *place, const int32_t *positions,
                                   int capacity, int H, int KV, int D) {
    int n = blockIdx.x, part = blockIdx.y;    /* the heads of k, then those of v: as they lie in both */
    size_t row = ((size_t)place[n] * 2 * (size_t)KV + (size_t)part) * (size_t)capacity + (size_t)positions[n];
    floatX *to = cache + row * (size_t)D;
    const floatX *from = qkv + (size_t)n * (size_t)((H + 2 * KV) * D) + (size_t)((H + part) * D);
    for (int d = threadIdx.x; GUARD(d < D); d += blockDim.x) to[d] = from[d];
}
void cache_store(floatX *cache, const floatX *qkv, const int32_t *place, const int32_t *positions, int capacity, int N,
                 AttentionShape a) {
    dim3 grid(N, 2 * a.KV);
    LAUNCH(cache_store_kernel, grid, 64, 0, cache, qkv, place, positions, capacity, a.H, a.KV, a.D);
}

__global__ void __launch_bounds__(DECODE_THREADS)
attention_decode_kernel(floatX *out, const floatX *qkv, const floatX *cache, const int32_t *place,
                        const int32_t *positions, int capacity, int H, int KV, int D, float scale) {
    SHARED_MEMORY(memory);
    const int warps = DECODE_THREADS / WARP;
    float *tops = (float *)memory, *sums = tops + warps, *outs = sums + warps;    /* [warps] [warps] [warps][D] */
    int n = blockIdx.x, h = blockIdx.y, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, length = positions[n] + 1;
    const floatX *q = qkv + (size_t)n * (size_t)((H + 2 * KV) * D) + (size_t)(h * D);
    size_t head = (size_t)capacity * (size_t)D;
    const floatX *k = cache + ((size_t)place[n] * 2 * (size_t)KV + (size_t)(h / (H / KV))) * head;
    const floatX *v = k + (size_t)KV * head;
    float query[DECODE_NUMBERS], o[DECODE_NUMBERS], top = -INFINITY, sum = 0;
#pragma unroll
    for (int i = 0; i < DECODE_NUMBERS; i++) {
        int d = lane + i * WARP;
        query[i] = GUARD(d < D) ? (float)q[d] * scale : 0;
        o[i] = 0;
    }
    for (int key = warp * DECODE_KEYS; key < length; key += warps * DECODE_KEYS) {
        float score[DECODE_KEYS], best = top;
#pragma unroll
        for (int j = 0; j < DECODE_KEYS; j++) {
            score[j] = 0;
#pragma unroll
            for (int i = 0; i < DECODE_NUMBERS; i++) {
                int d = lane + i * WARP;
                if (GUARD(d < D) && GUARD(key + j < length))
                    score[j] += query[i] * (float)k[(size_t)(key + j) * (size_t)D + (size_t)d];
            }
        }
#pragma unroll
        for (int j = 0; j < DECODE_KEYS; j++) {
            score[j] = warp_sum(score[j]);
            if (!GUARD(key + j < length)) score[j] = -INFINITY;
            best = fmaxf(best, score[j]);
        }
        float shrink = expf(top - best);
        sum *= shrink;
#pragma unroll
        for (int i = 0; i < DECODE_NUMBERS; i++) o[i] *= shrink;
#pragma unroll
        for (int j = 0; j < DECODE_KEYS; j++) {
            float p = expf(score[j] - best);
            sum += p;
#pragma unroll
            for (int i = 0; i < DECODE_NUMBERS; i++) {
                int d = lane + i * WARP;
                if (GUARD(d < D) && GUARD(key + j < length))
                    o[i] += p * (float)v[(size_t)(key + j) * (size_t)D + (size_t)d];
            }
        }
        top = best;
    }
    if (lane == 0) { tops[warp] = top; sums[warp] = sum; }
#pragma unroll
    for (int i = 0; i < DECODE_NUMBERS; i++) { int d = lane + i * WARP; if (GUARD(d < D)) outs[warp * D + d] = o[i]; }
    __syncthreads();
    float best = -INFINITY, total = 0;
    for (int w = 0; w < warps; w++) best = fmaxf(best, tops[w]);
    for (int w = 0; w < warps; w++) total += sums[w] * expf(tops[w] - best);
    for (int d = threadIdx.x; GUARD(d < D); d += blockDim.x) {
        float joined = 0;
        for (int w = 0; w < warps; w++) joined += outs[w * D + d] * expf(tops[w] - best);
        out[((size_t)n * (size_t)H + (size_t)h) * (size_t)D + (size_t)d] = (floatX)(joined / total);
    }
}
void attention_decode(floatX *out, const floatX *qkv, const floatX *cache, const int32_t *place,
                      const int32_t *positions,
                      int capacity, int N, AttentionShape a) {
    size_t shared = (size_t)(DECODE_THREADS / WARP) * (size_t)(a.D + 2) * sizeof(float);
    dim3 grid(N, a.H);
    LAUNCH(attention_decode_kernel, grid, DECODE_THREADS, shared, out, qkv, cache, place, positions, capacity,
           a.H, a.KV, a.D, a.scale);
}

/* =====================================================================================================================
   8  SWIGLU
   h = silu(gate) up, silu(g) = g sig(g).      dup = dh silu(gate);  dgate = dh up sig (1 + gate (1 - sig))
   Elementwise: 3 F numbers of traffic forward, 5 F backward. d_gate_up may be gate_up: each thread reads its elements
   before it writes them.
   ================================================================================================================== */

template <bool BACKWARD>
__global__ void swiglu_kernel(floatX *out, const floatX *dh, const floatX *gate_up, int64_t chunks, int per_row, int F,
                              bool aligned) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (!GUARD(i < chunks)) return;
    int64_t n = i / per_row;
    int f = (int)(i % per_row) * CHUNK;
    const floatX *gate = gate_up + n * 2 * F, *up = gate + F;
    float g[CHUNK], u[CHUNK], d[CHUNK];
    load_chunk(g, gate, f, F, aligned);
    load_chunk(u, up, f, F, aligned);
    if (BACKWARD) load_chunk(d, dh + n * F, f, F, aligned);
    for (int j = 0; j < CHUNK; j++) {
        float sig = 1.0f / (1.0f + expf(-g[j]));
        if (!BACKWARD) g[j] = g[j] * sig * u[j];
        else {
            float dup = d[j] * g[j] * sig;
            g[j] = d[j] * u[j] * sig * (1.0f + g[j] * (1.0f - sig));
            u[j] = dup;
        }
    }
    if (!BACKWARD) store_chunk(out + n * F, g, f, F, aligned);
    else { store_chunk(out + n * 2 * F, g, f, F, aligned); store_chunk(out + n * 2 * F + F, u, f, F, aligned); }
}
template <bool BACKWARD> static void swiglu_launch(floatX *out, const floatX *dh, const floatX *gate_up, int N, int F) {
    int per_row = div_up(F, CHUNK);
    int64_t chunks = (int64_t)N * per_row;
    bool aligned = rows_aligned(out, F) && rows_aligned(dh, F) && rows_aligned(gate_up, F);
    auto kernel = swiglu_kernel<BACKWARD>;
    LAUNCH(kernel, (int)((chunks + 255) / 256), 256, 0, out, dh, gate_up, chunks, per_row, F, aligned);
}
void swiglu_forward(floatX *h, const floatX *gate_up, int N, int F) { swiglu_launch<false>(h, NULL, gate_up, N, F); }
void swiglu_backward(floatX *d_gate_up, const floatX *dh, const floatX *gate_up, int N, int F) {
    swiglu_launch<true>(d_gate_up, dh, gate_up, N, F);
}

/* =====================================================================================================================
   9  HEAD AND CROSS-ENTROPY
   loss = log sum exp(z - max) + max - z_target;  entropy = log sum - sum p (z - max)
   dz = dloss (softmax(z) - onehot), written over z;  dx = dz W;  dW += dz^T x, where the head is trained
   Rows without a target are left out before the product: with prompts masked that is often half of 2 x 2 C V FLOPs a
   token, a fifth of the whole step of a small model. The logits come a chunk of rows at a time, at most logits_bytes of
   them, in floatX as transformers has them. A block takes a row: one pass for maximum and sums (rescaled as the maximum
   grows), one for dz, which finds in the L2 cache what still is there.
   ================================================================================================================== */

enum { LOSS_THREADS = 256 };
static size_t logits_bytes = 590000000;               /* 1,920 rows of Qwen3's 151,936; tests take fewer */

static int logits_chunk(int rows, int vocab) {
    int64_t n = (int64_t)(logits_bytes / ((size_t)vocab * sizeof(floatX))) / TILE * TILE;
    return n < TILE ? (rows < TILE ? rows : TILE) : n < rows ? (int)n : rows;
}

/* Softmax statistics of a set of logits: e = sum exp(z - top), w = sum exp(z - top) (z - top), and where the top was
   first met. */
typedef struct Softmax { float top, e, w; int argmax; } Softmax;
__device__ __forceinline__ Softmax softmax_join(Softmax a, Softmax b) {
    if (b.top > a.top || (b.top == a.top && b.argmax < a.argmax)) { Softmax c = a; a = b; b = c; }
    if (b.top == -INFINITY) return a;
    float d = b.top - a.top, f = expf(d);
    a.w += f * (b.w + b.e * d);
    a.e += f * b.e;
    return a;
}

/* A row of logits takes a multiple of 16 bytes; what is behind the vocabulary is 0 in dz. */
static int logits_width(int vocab) { return div_up(vocab, CHUNK) * CHUNK; }

__global__ void __launch_bounds__(LOSS_THREADS)
loss_kernel(RowLoss *row_loss, floatX *logits, int width, const int32_t *targets, const float *row_scale, float dloss,
            bool backward, int V) {
    SHARED_MEMORY(memory);
    Softmax *warps = (Softmax *)memory, s = {-INFINITY, 0, 0, INT_MAX};
    floatX *z = logits + (size_t)blockIdx.x * (size_t)width;
    int target = targets[blockIdx.x], lane = threadIdx.x % WARP;
    float v[CHUNK], at_target = (float)z[target];                             /* read before anything is written over */
    for (int c = threadIdx.x * CHUNK; c < V; c += LOSS_THREADS * CHUNK) {
        load_chunk(v, z, c, V, true);
        Softmax part = {-INFINITY, 0, 0, INT_MAX};
        for (int j = 0; j < CHUNK; j++)
            if (GUARD(c + j < V) && v[j] > part.top) { part.top = v[j]; part.argmax = c + j; }
        /* nothing but NaN: the row's loss becomes NaN below */
        if (c + 0 < V && part.argmax == INT_MAX) part.argmax = c;
        for (int j = 0; j < CHUNK; j++)
            if (GUARD(c + j < V)) { float d = v[j] - part.top, e = expf(d); part.e += e; part.w += e * d; }
        s = softmax_join(s, part);
    }
    for (int offset = 1; offset < WARP; offset *= 2) {
        Softmax other = {__shfl_xor_sync(0xffffffff, s.top, offset), __shfl_xor_sync(0xffffffff, s.e, offset),
                         __shfl_xor_sync(0xffffffff, s.w, offset), __shfl_xor_sync(0xffffffff, s.argmax, offset)};
        s = softmax_join(s, other);
    }
    if (lane == 0) warps[threadIdx.x / WARP] = s;
    __syncthreads();
    s = warps[0];
    for (int w = 1; w < LOSS_THREADS / WARP; w++) s = softmax_join(s, warps[w]);
    if (threadIdx.x == 0) {
        RowLoss *out = row_loss + blockIdx.x;
        out->loss = (double)(logf(s.e) + s.top - at_target);
        out->entropy = (double)(logf(s.e) - s.w / s.e);
        out->correct = s.argmax == target;
    }
    if (!backward) return;
    float scale = row_scale ? dloss * row_scale[blockIdx.x] : dloss, factor = scale / s.e;
    for (int c = threadIdx.x * CHUNK; c < V; c += LOSS_THREADS * CHUNK) {
        load_chunk(v, z, c, V, true);
        for (int j = 0; j < CHUNK; j++)
            v[j] = GUARD(c + j < V) ? expf(v[j] - s.top) * factor - (c + j == target ? scale : 0) : 0;
        store_chunk(z, v, c, V, true);
    }
}

/* x W^T or dz W of a plain matrix as a group of one part without an adapter. width: of a row of x W^T or dz, at least
   w's rows; what is behind those is 0 in dz and of no meaning in x W^T. */
static Group plain_group(const floatX *x, const Weight *w, int rows, int width, bool backward) {
    Group g;
    int in = backward ? width : w->cols, out = backward ? w->cols : width;
    Part p = {matrix(x, (size_t)in, rows, in), matrix((const floatX *)w->packed, (size_t)w->cols, w->rows, w->cols),
              no_matrix(), no_matrix(), no_matrix(), NULL, 0, out, 0, 0, 0};
    g.part[0] = g.part[1] = g.part[2] = p;
    g.count = 1; g.rows = rows; g.stride = out;
    return g;
}

void lm_head_loss(floatX *dx, float *dhead, RowLoss *row_loss, const floatX *x, const int32_t *rows,
                  const int32_t *targets, const float *row_scale, const Weight *head, float dloss, int M, int N, int C,
                  int V, Scratch scratch) {
    int chunk = logits_chunk(N, V), width = logits_width(V);
    size_t shared = LOSS_THREADS / WARP * sizeof(Softmax);
    ScratchCursor cursor = scratch_begin(scratch);
    floatX *logits = (floatX *)scratch_take(&cursor, floats_of((size_t)chunk * (size_t)width));      /* [chunk,width] */
    floatX *gathered = (floatX *)scratch_take(&cursor, floats_of((size_t)chunk * (size_t)C));        /* [chunk,C] */
    if (dx) backend_zero(dx, (size_t)N * (size_t)C * sizeof(floatX));
    for (int first = 0; first < M; first += chunk) {
        int count = M - first < chunk ? M - first : chunk;
        const float *scale = row_scale ? row_scale + first : NULL;
        copy_rows(gathered, x, rows + first, false, 1, count, C);
        gemm_forward(logits, plain_group(gathered, head, count, width, false), C);
        LAUNCH(loss_kernel, count, LOSS_THREADS, shared, row_loss + first, logits, width, targets + first, scale,
               dloss, dx || dhead, V);
        if (dhead)                          /* before dx takes the place of the gathered rows */
            weight_gradient(dhead, matrix(logits, (size_t)width, count, width), matrix(gathered, (size_t)C, count, C),
                            V, 1, cursor);
        if (!dx) continue;
        gemm_backward(gathered, plain_group(logits, head, count, width, true), NULL, 0, C);
        copy_rows(dx, gathered, rows + first, true, 1, count, C);
    }
}

void lm_head_logits(float *logits, const floatX *x, const Weight *head, int N, int C, int V, Scratch scratch) {
    ScratchCursor cursor = scratch_begin(scratch);
    int chunk = logits_chunk(N, V), width = logits_width(V);
    floatX *here = (floatX *)scratch_take(&cursor, floats_of((size_t)chunk * (size_t)width));        /* [chunk,width] */
    /* A row arrives at the end of the row of floats that it becomes from its front on: no memory in between. */
    const size_t row_bytes = (size_t)V * sizeof(float), x_bytes = (size_t)V * sizeof(floatX);
    for (int n = 0; n < N; n += chunk) {
        int rows = N - n < chunk ? N - n : chunk;
        char *to = (char *)(logits + (size_t)n * (size_t)V) + (row_bytes - x_bytes);
        gemm_forward(here, plain_group(x + (size_t)n * (size_t)C, head, rows, width, false), C);
        CUDA_CHECK(cudaMemcpy2D(to, row_bytes, here, (size_t)width * sizeof(floatX), x_bytes, (size_t)rows,
                                cudaMemcpyDeviceToHost));
    }
    for (int n = 0; n < N; n++) {
        float *row = logits + (size_t)n * (size_t)V;
        const char *from = (const char *)row + (row_bytes - x_bytes);
        for (int v = 0; v < V; v++, from += sizeof(floatX)) {
            floatX number;
            memcpy(&number, from, sizeof number);
            row[v] = (float)number;
        }
    }
}

/* ---- a head of few outputs, in fp32 ---------------------------------------------------------------------------------
   logits = x[rows] score^T;   dx[rows] = dlogits score;   dscore += dlogits^T x[rows]
   One row a sequence, K of a few: microseconds beside a step of any model. So nothing is done for speed but that reads
   are whole: a warp a logit, a thread CHUNK columns of dx and of dscore, sums in the order of k and i. */

__global__ void score_forward_kernel(float *logits, const floatX *x, const int32_t *rows, const float *score,
                                     int64_t MK, int K, int C, bool aligned) {
    int64_t number = (int64_t)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (!GUARD(number < MK)) return;
    const floatX *row = x + (size_t)rows[number / K] * (size_t)C;
    const float *w = score + (size_t)(number % K) * (size_t)C;
    float sum = 0, v[CHUNK], s[CHUNK];
    for (int c = threadIdx.x % WARP * CHUNK; GUARD(c < C); c += WARP * CHUNK) {
        load_chunk(v, row, c, C, aligned);
        load_floats(s, w, c, C, aligned);
        for (int j = 0; j < CHUNK; j++) sum += v[j] * s[j];
    }
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) logits[number] = sum;
}
void score_forward(float *logits, const floatX *x, const int32_t *rows, const float *score, int M, int K, int C) {
    const int warps = 8;
    int64_t MK = (int64_t)M * K;
    bool aligned = rows_aligned(x, C) && rows_aligned(score, C);
    LAUNCH(score_forward_kernel, (int)((MK + warps - 1) / warps), warps * WARP, 0, logits, x, rows, score, MK, K, C,
           aligned);
}

__global__ void score_dx_kernel(floatX *dx, const float *dlogits, const int32_t *rows, const float *score, int K, int C,
                                bool aligned) {
    int c = (blockIdx.y * blockDim.x + threadIdx.x) * CHUNK;
    if (!GUARD(c < C)) return;
    float sum[CHUNK], s[CHUNK];
    for (int j = 0; j < CHUNK; j++) sum[j] = 0;
    for (int k = 0; k < K; k++) {
        load_floats(s, score + (size_t)k * (size_t)C, c, C, aligned);
        for (int j = 0; j < CHUNK; j++) sum[j] += dlogits[(size_t)blockIdx.x * (size_t)K + (size_t)k] * s[j];
    }
    store_chunk(dx + (size_t)rows[blockIdx.x] * (size_t)C, sum, c, C, aligned);
}
__global__ void score_weight_kernel(float *dscore, const float *dlogits, const floatX *x, const int32_t *rows, int M,
                                    int K, int C, bool aligned) {
    int c = (blockIdx.y * blockDim.x + threadIdx.x) * CHUNK, k = blockIdx.x;
    if (!GUARD(c < C)) return;
    float *to = dscore + (size_t)k * (size_t)C, sum[CHUNK], v[CHUNK];
    load_floats(sum, to, c, C, aligned);
    for (int i = 0; i < M; i++) {
        load_chunk(v, x + (size_t)rows[i] * (size_t)C, c, C, aligned);
        for (int j = 0; j < CHUNK; j++) sum[j] += dlogits[(size_t)i * (size_t)K + (size_t)k] * v[j];
    }
    for (int j = 0; j < CHUNK && GUARD(c + j < C); j++) to[c + j] = sum[j];
}
void score_backward(floatX *dx, float *dscore, const float *dlogits, const floatX *x, const int32_t *rows,
                    const float *score, int M, int N, int K, int C) {
    bool aligned = rows_aligned(dx, C) && rows_aligned(dscore, C) && rows_aligned(x, C) && rows_aligned(score, C);
    int threads = row_threads(C), columns = div_up(C, threads * CHUNK);
    if (dx) {
        backend_zero(dx, (size_t)N * (size_t)C * sizeof(floatX));
        LAUNCH(score_dx_kernel, dim3(M, columns), threads, 0, dx, dlogits, rows, score, K, C, aligned);
    }
    if (dscore)
        LAUNCH(score_weight_kernel, dim3(K, columns), threads, 0, dscore, dlogits, x, rows, M, K, C, aligned);
}

/* =====================================================================================================================
   10  OPTIMIZER
   The adapter is one flat range of fp32: AdamW reads 16 bytes and writes 12 a parameter: 0.5 GB for 17 M of them. The
   norm is summed in double, NORM_BLOCKS partial sums that the host adds in order.
   ================================================================================================================== */

__global__ void adamw_kernel(float *param, float *m, float *v, const float *grad, size_t count, float grad_scale,
                             AdamW a) {
    size_t first = (size_t)blockIdx.x * blockDim.x + threadIdx.x, step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = first; GUARD(i < count); i += step)
        adamw_element(&param[i], &m[i], &v[i], grad_scale * grad[i], a);
}
void adamw_update(float *param, float *m, float *v, const float *grad, size_t count, float grad_scale, float lr,
                  float beta1, float beta2, float eps, float weight_decay, int step) {
    AdamW a = adamw_at(lr, beta1, beta2, eps, weight_decay, step);
    LAUNCH(adamw_kernel, blocks_of(count), 256, 0, param, m, v, grad, count, grad_scale, a);
}

/* With moments of 8 bits: 12 bytes read and written for param and grad, 4 for the moments, 16 a number instead of 28.
   A warp takes a block of ADAMW_BLOCK, 8 numbers a lane, and needs no other: maxima by shuffles. Finding the two codes
   of a number takes 8 steps of bisection each in the maps, which lie in shared memory: those are expected to take
   longer than the bytes. */
enum { MAP = 256, BLOCK_NUMBERS = ADAMW_BLOCK / WARP, ADAMW_WARPS = 8 };
typedef struct MomentMaps { float of[2][MAP]; } MomentMaps;       /* of m, of v */

__global__ void __launch_bounds__(ADAMW_WARPS * WARP)
adamw_8bit_kernel(float *param, uint8_t *m, uint8_t *v, float *m_absmax, float *v_absmax, const float *grad,
                  size_t count, float grad_scale, AdamW a, const __grid_constant__ MomentMaps maps) {
    SHARED_MEMORY(memory);
    float (*map)[MAP] = (float (*)[MAP])memory;
    int lane = threadIdx.x % WARP;
    for (int i = threadIdx.x; i < 2 * MAP; i += ADAMW_WARPS * WARP) map[i / MAP][i % MAP] = maps.of[i / MAP][i % MAP];
    __syncthreads();
    size_t blocks = (count + ADAMW_BLOCK - 1) / ADAMW_BLOCK;
    size_t block = (size_t)blockIdx.x * ADAMW_WARPS + threadIdx.x / WARP;
    for (; GUARD(block < blocks); block += (size_t)gridDim.x * ADAMW_WARPS) {
        float moment[2][BLOCK_NUMBERS], most[2] = {0, 0}, absmax[2] = {m_absmax[block], v_absmax[block]};
        size_t first = block * ADAMW_BLOCK + (size_t)lane;
#pragma unroll
        for (int j = 0; j < BLOCK_NUMBERS; j++) {
            size_t i = first + (size_t)j * WARP;
            if (!GUARD(i < count)) break;
            moment[0][j] = map[0][m[i]] * absmax[0];
            moment[1][j] = map[1][v[i]] * absmax[1];
            adamw_element(&param[i], &moment[0][j], &moment[1][j], grad_scale * grad[i], a);
            for (int k = 0; k < 2; k++) most[k] = fmaxf(most[k], fabsf(moment[k][j]));
        }
        for (int k = 0; k < 2; k++)
            for (int offset = WARP / 2; offset; offset /= 2)
                most[k] = fmaxf(most[k], __shfl_xor_sync(0xffffffff, most[k], offset));
        if (lane == 0) { m_absmax[block] = most[0]; v_absmax[block] = most[1]; }
#pragma unroll
        for (int j = 0; j < BLOCK_NUMBERS; j++) {
            size_t i = first + (size_t)j * WARP;
            if (!GUARD(i < count)) break;
            m[i] = (uint8_t)adamw_code(map[0], most[0] > 0 ? moment[0][j] / most[0] : 0);
            v[i] = (uint8_t)adamw_code(map[1], most[1] > 0 ? moment[1][j] / most[1] : 0);
        }
    }
}
void adamw_8bit_update(float *param, uint8_t *m, uint8_t *v, float *m_absmax, float *v_absmax, const float *grad,
                       size_t count, float grad_scale, float lr, float beta1, float beta2, float eps,
                       float weight_decay, int step) {
    MomentMaps maps;
    adamw_map(maps.of[0], true);
    adamw_map(maps.of[1], false);
    size_t blocks = (count + ADAMW_BLOCK * ADAMW_WARPS - 1) / (ADAMW_BLOCK * ADAMW_WARPS);
    size_t most = 8 * (size_t)device.processors;        /* as many as run at once: each reads the maps */
    LAUNCH(adamw_8bit_kernel, (int)(blocks < 1 ? 1 : blocks < most ? blocks : most), ADAMW_WARPS * WARP,
           sizeof maps, param, m, v, m_absmax, v_absmax, grad, count, grad_scale,
           adamw_at(lr, beta1, beta2, eps, weight_decay, step), maps);
}

__global__ void global_norm_kernel(double *partial, const float *grad, size_t count) {
    SHARED_MEMORY(memory);
    double *sums = (double *)memory, sum = 0;
    size_t first = (size_t)blockIdx.x * blockDim.x + threadIdx.x, step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = first; GUARD(i < count); i += step) sum += (double)grad[i] * (double)grad[i];
    sums[threadIdx.x] = sum;
    for (int width = blockDim.x / 2; width; width /= 2) {
        __syncthreads();
        if (GUARD((int)threadIdx.x < width)) sums[threadIdx.x] += sums[threadIdx.x + width];
    }
    if (threadIdx.x == 0) partial[blockIdx.x] = sums[0];
}
double global_norm(const float *grad, size_t count) {
    double partial[NORM_BLOCKS], sum = 0;
    LAUNCH(global_norm_kernel, NORM_BLOCKS, 256, 256 * sizeof(double), device.partial, grad, count);
    backend_download(partial, device.partial, sizeof partial);
    for (int i = 0; i < NORM_BLOCKS; i++) sum += partial[i];
    return sqrt(sum);
}

/* ---- scratch ----------------------------------------------------------------------------------------------------- */

size_t op_scratch_bytes(int n, int widest, int rank, int vocab, int hidden) {
    size_t N = (size_t)n, W = (size_t)widest, R = (size_t)rank, chunk = (size_t)logits_chunk(n, vocab),
        X = sizeof(floatX);
    /* splits * R * width of lora_gradient: see gradient_splits */
    size_t splits = R * (W + (size_t)SLICE * (4 * (size_t)(device.open ? device.processors : 144) + 1)) * sizeof(float);
    size_t linear = N * R * X + splits;
    size_t head = chunk * ((size_t)logits_width(vocab) + (size_t)hidden) * X;
    size_t attention = N * W * sizeof(float);         /* delta [N,H] */
    /* splits of dW: as many tiles as WEIGHT_BLOCKS and those of one more, of at most W * W numbers each */
    size_t tiles = 2 * (size_t)WEIGHT_BLOCKS * TILE * TILE, whole = (N + WEIGHT_TOKENS - 1) / WEIGHT_TOKENS * W * W;
    size_t weights = N <= WEIGHT_TOKENS ? 0 : (tiles < whole ? tiles : whole) * sizeof(float);
    size_t sums = (ROW_SPLITS * (W + (size_t)hidden) + 2 * HEAD_SPLITS * MAX_HEAD_DIM) * sizeof(float);
    size_t all[] = {linear, head, attention, weights, sums}, most = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) if (all[i] > most) most = all[i];
    return most + 4096;
}
#endif /* LORA_CUDA */

#define VERSION "0.1.0"

#ifndef TESTING
/* ==================================================================================================================
   11  TERMINAL
   What the program says about itself: what it is busy with, errors and warnings, signals.
   ================================================================================================================== */

/* What the program is busy with, on stdout or, where that carries answers, stderr: on a terminal at once, on the line
   that the next one takes; elsewhere (a notebook, a log) as a line of its own, but only after two seconds of silence.
   NULL: nothing that takes long. The alarm's handler may do no more than write. */
static int phase_to = STDOUT_FILENO;
static char phase_line[160];
static bool phase_on;
static void on_alarm(int number) {
    (void)number;
    if (write(phase_to, phase_line, strlen(phase_line)) < 0) return;
}
static void phase_show(const char *doing) {
    Text t = TEXT_EMPTY;
    if (!doing && !phase_on) return;
    if (doing) text_add_shown(&t, doing, strlen(doing), false);
    fflush(stdout);
    if (isatty(phase_to)) dprintf(phase_to, "\r\033[K%s%.78s", doing ? "... " : "", doing ? t.at : "");
    else {
        alarm(0);
        snprintf(phase_line, sizeof phase_line, "... %.150s\n", doing ? t.at : "");
        signal(SIGALRM, on_alarm);
        if (doing) alarm(2);
    }
    phase_on = doing != NULL;
    text_free(&t);
}
#ifdef __GNUC__
__attribute__((format(printf, 1, 2)))
#endif
static void phase_of(const char *format, ...) {
    char text[PATH_MAX + 64];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    phase_show(text);
}

/* Every error, warning and note of the program is one line of stderr, and goes through here: names, paths and file
   contents in it cannot drive the terminal. */
static void complain(const char *kind, const char *text) {
    Text t = TEXT_EMPTY;
    text_add_shown(&t, text, strlen(text), false);
    phase_show(NULL);
    fflush(stdout);
    fprintf(stderr, "%s: %s\n", kind, t.at ? t.at : "");
    text_free(&t);
}
#ifdef __GNUC__
__attribute__((format(printf, 2, 3)))
#endif
static void complain_of(const char *kind, const char *format, ...) {
    va_list args;
    char text[2 * PATH_MAX + 1024];
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    complain(kind, text);
}
#define usage_error(...) do { complain_of("error", __VA_ARGS__); exit(2); } while (0)

static int failed(const Error *err) {
    complain("error", err->text);
    return 1;
}

/* What the model says, on a terminal with what could drive it spelled out; into a file or pipe as it is. */
static void print_foreign(const char *text, size_t bytes) {
    Text t = TEXT_EMPTY;
    if (isatty(1)) text_add_shown(&t, text, bytes, true);
    fwrite(t.at ? t.at : text, 1, t.at ? t.length : bytes, stdout);
    text_free(&t);
}
static const char *bytes_text(char *out, size_t size, double bytes) {
    if (bytes >= 0x1p30) snprintf(out, size, "%.2f GiB", bytes / 0x1p30);
    else snprintf(out, size, "%.2f MiB", bytes / 0x1p20);
    return out;
}
static const char *duration_text(char *out, size_t size, double seconds) {
    long s = seconds > 0 ? (long)(seconds + 0.5) : 0;
    if (s >= 3600) snprintf(out, size, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
    else snprintf(out, size, "%ld:%02ld", s / 60, s % 60);
    return out;
}

static void print_version(void) {
    char backend[256];
    backend_describe(backend, sizeof backend);
    printf("train_lora %s  %s\n", VERSION, backend);
}

static volatile sig_atomic_t interrupted;   /* the signal's number */
static void on_signal(int number) { if (!interrupted) interrupted = number; }

/* A mapped file shrank while it was read: the line that says which, from what a signal handler may use. */
static void on_bus(int number, siginfo_t *info, void *context) {
    const char *at = (const char *)info->si_addr, *path = NULL;
    (void)context;
    for (const FileMapping *m = file_mappings; m; m = m->next)
        if (at >= m->base && at < m->base + m->bytes) path = m->path;
    if (!path) { signal(number, SIG_DFL); return; }             /* the same again, and the system's verdict */
    const char *const parts[] = {"error: the file shrank, or its disk failed, while it was being read; ", path,
                                 "; leave it alone during a run\n"};
    for (int i = 0; i < 3; i++) if (write(2, parts[i], strlen(parts[i])) < 0) break;
    _exit(1);
}
/* Told to end, a run saves first: by Ctrl-C, the queue (SIGTERM), a terminal that closes, a reader that is gone
   (| head). What was ignored when we began, as nohup has it, stays so; not so SIGINT, which shells ignore for what runs
   in the background. */
static void catch_signals(void) {
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP, SIGPIPE};
    for (int i = 0; i < 4; i++) if (signal(numbers[i], on_signal) == SIG_IGN && i >= 2) signal(numbers[i], SIG_IGN);
}

/* ==================================================================================================================
   12  OPTIONS
   Names are Hugging Face's, dashes and underscores alike. A new option is one row of the table: where its value lands,
   what it may be, who uses it, its default. Parsing, --help, range checks, --config and run.json come from it.
   ================================================================================================================== */

/* The verbs, as bits; an option's row says which use it. plan rehearses train, so it takes the same words. */
enum {
    TRAIN = 1, PLAN = 2, INSPECT = 4, GENERATE = 8, EVALUATE = 16, COMPARE = 32, MERGE = 64,
    /* no verbs: from the command line alone, never a file; names a place that is written to; kept with the adapter,
       because prompts must be written, and a loss measured, as they were in training; of one call: not in run.json;
       the same in all runs of a sweep */
    LINE_ONLY = 128, WRITES = 256, KEPT = 512, ONCE = 1024, FIXED = 2048,
    RUN = TRAIN | PLAN, MEASURES = EVALUATE | COMPARE, ANSWERS = GENERATE | MEASURES, ROWS = RUN | INSPECT | ANSWERS,
    EVERY = ROWS | MERGE
};
typedef struct Options Options;
typedef struct Verb {
    const char *name;
    int bit;
    int (*run)(Options *o);                 /* returns the exit status */
    const char *usage, *what;
} Verb;
static int verb_train(Options *o), verb_inspect(Options *o), verb_generate(Options *o), verb_evaluate(Options *o),
           verb_merge(Options *o);
static const Verb verb_table[] = {
    {"train", TRAIN, verb_train, "--model FOLDER --data FILE", "fine-tune; the verb where none is given"},
    {"inspect", INSPECT, verb_inspect, "--model FOLDER --data FILE", "show what is in the loss, token by token"},
    {"plan", PLAN, verb_train, "...", "print the memory table of such a run, and stop"},
    {"generate", GENERATE, verb_generate,
     "--model FOLDER [--adapter FOLDER] --prompt TEXT | --chat | --messages FILE | --data FILE", "answer"},
    {"evaluate", EVALUATE, verb_evaluate, "--model FOLDER [--adapter FOLDER] --data FILE [--generate]",
     "measure, and score the answers"},
    {"compare", COMPARE, verb_evaluate, "--model FOLDER --adapter FOLDER --data FILE [--output FOLDER]",
     "base and adapters side by side"},
    {"merge", MERGE, verb_merge, "--model FOLDER --adapter FOLDER --output FOLDER",
     "put an adapter into its base model"},
};
enum { VERB_COUNT = sizeof verb_table / sizeof *verb_table };

enum { REPORT_NONE, REPORT_TENSORBOARD, REPORT_COUNT };
static const char *const report_name[REPORT_COUNT] = {"none", "tensorboard"};
enum { MERGE_STORED, MERGE_F32, MERGE_BF16, MERGE_F16, MERGE_COUNT };
static const char *const merge_name[MERGE_COUNT] = {"stored", "f32", "bf16", "f16"};
static const DType merge_dtype[MERGE_COUNT] = {DTYPE_COUNT, DTYPE_F32, DTYPE_BF16, DTYPE_F16};
/* The metrics that may choose the best model, "eval_" in front or not; filled by options_default, up to NULL. */
static const char *metric_name[2 * LOG_METRICS + 1];

struct Options {
    const Verb *verb;
    TrainOptions train;
    const char *trained, *modules_to_save;
    const char *target_modules, *layers_to_transform, *chat_template, *sample_prompts, *on_finish, *config;
    int threads, examples, report_to;
    bool dry_run;
    const char **data, **sweep;             /* stb_ds arrays */
    /* from here on those of answers and scores */
    GenerateOptions generate;               /* where given */
    const char **adapter, **prompt, **stop; /* stb_ds arrays */
    const char *messages, *system, *labels;
    int bleu_tokenize, dtype;
    bool chat, raw, jsonl, answers;

    const char *program, *command;          /* as called; with its words, as a shell takes them, --resume left out */
    /* by position in option_table: who set it: from_default, from_line, a file or an adapter; NULL: nobody, it is 0,
       NULL or, a switch, -1 */
    const char *origin[128];
};
static const char from_line[] = "command line", from_default[] = "default";

/* TEXT may be bound to names, CHOICE is an enum with such names. SWITCH: 0, 1 or, while nobody set it, -1. */
typedef enum { OPTION_HEADING, OPTION_INT, OPTION_INT64, OPTION_DOUBLE, OPTION_FLOAT, OPTION_BYTES, OPTION_FLAG,
               OPTION_SWITCH, OPTION_CHOICE, OPTION_TEXT, OPTION_LIST /* stb_ds array of texts */ } OptionType;
typedef struct Option {
    const char *name;
    OptionType type;
    size_t offset, bytes;                   /* in Options */
    double low, high;                       /* range of numbers, inclusive */
    const char *const *names;               /* of a choice 0 to high; of a text up to NULL; NULL: it has none */
    int verbs;                              /* that use it */
    const char *value;                      /* its default, or NULL */
    const char *help;
} Option;

/* What stands behind a row's name: type, field, range or names. A field of another size does not compile. */
#define FIELD(field, type) offsetof(Options, field), sizeof(((Options *)0)->field) * SAME_SIZE(field, type)
#define SAME_SIZE(field, type) sizeof(char[sizeof(((Options *)0)->field) == sizeof(type) ? 1 : -1])
#define HEADING(text) {"", OPTION_HEADING, 0, 0, 0, 0, NULL, 0, NULL, text}
#define INTEGER(field, low, high) OPTION_INT, FIELD(field, int), low, high, NULL
#define INTEGER64(field, low, high) OPTION_INT64, FIELD(field, int64_t), low, high, NULL
#define NUMBER(field, low, high) OPTION_DOUBLE, FIELD(field, double), low, high, NULL
#define NUMBER32(field, low, high) OPTION_FLOAT, FIELD(field, float), low, high, NULL
#define BYTES(field, low, high) OPTION_BYTES, FIELD(field, size_t), low, high, NULL
#define FLAG(field) OPTION_FLAG, FIELD(field, bool), 0, 0, NULL
#define SWITCH(field) OPTION_SWITCH, FIELD(field, int), 0, 0, NULL
#define CHOICE(field, names, count) OPTION_CHOICE, FIELD(field, int), 0, (count) - 1, names
#define TEXT(field) OPTION_TEXT, FIELD(field, char *), 0, 0, NULL
#define TEXT_OF(field, names) OPTION_TEXT, FIELD(field, char *), 0, 0, names
#define LIST(field) OPTION_LIST, FIELD(field, char **), 0, 0, NULL
static const Option option_table[] = {
    HEADING("What goes in and out"),
    {"model", TEXT(train.model), EVERY | FIXED, "data/base",
     "folder of a Hugging Face model (llama, qwen2, qwen3, mistral, smollm3 or granite)"},
    {"data", LIST(data), ROWS, "data/hotel/train.jsonl",
     "data file: .jsonl, .json or .csv; train, plan and inspect take several, each with its own --data"},
    {"eval-data", TEXT(train.eval_data), RUN, NULL, "evaluation data, the same formats"},
    {"eval-split", NUMBER(train.eval_split, 0, 0.999), RUN, "0",
     "instead: hold out this share of the training examples, drawn by the seed"},
    {"max-train-samples", INTEGER(train.max_train_samples, 1, 1e9), RUN | INSPECT, NULL,
     "only the first so many rows of --data"},
    {"max-eval-samples", INTEGER(train.max_eval_samples, 1, 1e9), RUN, NULL,
     "only the first so many rows of --eval-data"},
    {"token-cache", TEXT(train.data_options.token_cache), RUN | INSPECT | MEASURES | WRITES | FIXED, NULL,
     "folder that keeps the tokens of data files for the next run; runs may share it"},
    {"output", TEXT(train.output), RUN | ANSWERS | MERGE | WRITES | FIXED, "out",
     "folder for the adapter and the logs; of evaluate and compare for scores and pages; of generate a file"},
    {"init-adapter", TEXT(train.init_adapter), RUN, NULL,
     "PEFT adapter folder, or whole model, to start from (its r, alpha and modules count; of a model, what differs)"},
    {"config", TEXT(config), EVERY | ONCE | FIXED, NULL, "JSON file of these options; the command line wins"},
    HEADING("How rows become examples"),
    {"task", CHOICE(train.data_options.task, task_name, TASK_COUNT), RUN | INSPECT | MEASURES | KEPT, "causal_lm",
     "what rows teach: the next token, the label beside a text or chat, or which of two answers is the better one; "
     "PEFT's SEQ_CLS and CAUSAL_LM will do"},
    {"problem-type", CHOICE(train.data_options.problem_type, problem_name, PROBLEM_COUNT), RUN | INSPECT | MEASURES,
     "auto", "classification: what labels are (auto: whole numbers and texts are classes, fractions a regression, "
     "lists multi-label)"},
    {"label-names", LIST(train.data_options.label_names), RUN | INSPECT | MEASURES, NULL,
     "classification: the classes in order, each with its own --label-names (not given: as the head has them, else the "
     "data's, sorted)"},
    {"max-length", INTEGER(train.data_options.max_length, 2, 1 << 20), RUN | INSPECT | MEASURES | KEPT, "1024",
     "tokens; longer examples are cut at the end"},
    {"truncate-prompt", FLAG(train.data_options.truncate_prompt), RUN | INSPECT | MEASURES | KEPT, "false",
     "cut the prompt's beginning instead, so that the last reply stays whole"},
    {"packing", FLAG(train.data_options.packing), RUN | INSPECT | MEASURES, "false",
     "fill batches to max-length; examples never see each other"},
    {"loss-on", CHOICE(train.data_options.loss_on, loss_on_name, LOSS_ON_COUNT), RUN | INSPECT | MEASURES | KEPT,
     "default", "what is learned (default: a chat's assistant turns, completions, all of plain text; completion: of a "
     "chat its last reply alone, as when every reply is a row of its own)"},
    {"chat-template", TEXT(chat_template), ROWS | KEPT, NULL,
     "a file with a template in Jinja, or the name of a built-in one, instead of the model folder's"},
    {"prompt-template", TEXT(train.data_options.prompt_template), ROWS | KEPT, NULL,
     "for base models, as 'USER: {prompt} ASSISTANT:'"},
    {"enable-thinking", SWITCH(train.data_options.enable_thinking), ROWS | KEPT, NULL,
     "Qwen3's enable_thinking (not given: the template's default)"},
    {"template-date", TEXT(train.data_options.template_date), ROWS | KEPT, NULL,
     "what templates are told is today, as '04 Jul 2025' (not given: Llama's 26 Jul 2024; of other templates the day "
     "the run began)"},
    {"split-turns", FLAG(train.data_options.split_turns), RUN | INSPECT | MEASURES | KEPT, "false",
     "every answer of a chat is an example of its own, as the template asks for it"},
    {"examples", INTEGER(examples, 0, 1e9), INSPECT, "3", "inspect: how many examples to show"},
    HEADING("What is trained"),
    {"train", TEXT(trained), RUN, "lora",
     "lora; norms, head, embeddings, alone, together or with lora, as lora,head; last:N (the last N layers and the "
     "final norm); full (everything). Without lora the output is a whole model folder"},
    {"modules-to-save", TEXT(modules_to_save), RUN, NULL,
     "PEFT's name of what is trained whole beside LoRA: comma list of lm_head, embed_tokens, norm"},
    {"lora-r", INTEGER(train.lora.r, 1, 4096), RUN, "16", "rank"},
    {"lora-alpha", NUMBER32(train.lora.lora_alpha, 1e-6, 1e6), RUN, "32", "scaling is alpha / r"},
    {"lora-dropout", NUMBER32(train.lora.lora_dropout, 0, 0.99), RUN, "0.05", "dropout on the adapter's input"},
    {"use-rslora", FLAG(train.lora.use_rslora), RUN, "false", "scaling alpha / sqrt(r)"},
    {"init-lora-weights", CHOICE(train.lora.init, lora_init_name, LORA_INIT_COUNT), RUN, "true",
     "where A and B begin (true: A uniform, B 0; gaussian: A normal, B 0; pissa, olora: at a part of W that the base "
     "is then without)"},
    {"convert-to-lora", FLAG(train.convert_to_lora), RUN | MERGE, "false",
     "write a pissa or olora adapter as plain LoRA of twice the rank, for the base as it is; merge: that, instead of "
     "the merged model"},
    {"target-modules", TEXT(target_modules), RUN, "all-linear",
     "comma list of q,k,v,o,gate,up,down (or q_proj, ...), or all-linear"},
    {"layers-to-transform", TEXT(layers_to_transform), RUN, NULL,
     "comma list of layers and ranges, as 0,4-7; all when not given"},
    {"class-weights", TEXT(train.class_weights), RUN, NULL,
     "classification: how much a row of a class counts, balanced (all classes alike), w0,w1,... or label=weight,...; "
     "multi-label: of a label that is there"},
    {"label-smoothing", NUMBER(train.label_smoothing, 0, 0.999999), RUN, "0",
     "classification: share of the target that goes to all classes alike"},
    {"focal-gamma", NUMBER(train.focal_gamma, 0, 100), RUN, "0",
     "classification: focal loss, rows count by (1 - p)^gamma (0: cross-entropy)"},
    HEADING("The optimizer"),
    {"optim", CHOICE(train.optim, optimizer_name, OPTIMIZER_COUNT), RUN, "adamw",
     "adamw_8bit keeps the moments in a quarter of the memory, as bitsandbytes does"},
    {"learning-rate", NUMBER(train.learning_rate, 0, 1e30), RUN, "2e-4", "peak learning rate"},
    {"lora-plus-ratio", NUMBER(train.lora_plus_ratio, 1e-3, 1e6), RUN, NULL,
     "LoRA+: the learning rate of B is so many times that of A (not given: the same)"},
    {"embedding-learning-rate", NUMBER(train.embedding_learning_rate, 1e-30, 1e30), RUN, NULL,
     "peak learning rate of a trained embedding and head (not given: learning-rate)"},
    {"lr-scheduler-type", CHOICE(train.lr_scheduler_type, schedule_name, SCHEDULE_COUNT), RUN, "linear", "schedule"},
    {"warmup-steps", INTEGER(train.warmup_steps, 0, 1e9), RUN, "0",
     "optimizer steps of warm-up (wins over the ratio)"},
    {"warmup-ratio", NUMBER(train.warmup_ratio, 0, 1), RUN, "0", "warm-up as a share of all steps"},
    {"num-train-epochs", NUMBER(train.num_train_epochs, 0, 1e6), RUN, "3", "passes over the data"},
    {"max-steps", INTEGER(train.max_steps, -1, 1e9), RUN, "-1", "optimizer steps, instead of epochs (-1: off)"},
    {"per-device-train-batch-size", INTEGER(train.per_device_train_batch_size, 1, 4096), RUN, "8",
     "examples of a micro-batch"},
    {"gradient-accumulation-steps", INTEGER(train.gradient_accumulation_steps, 1, 1e6), RUN, "1",
     "micro-batches of an optimizer step"},
    {"weight-decay", NUMBER(train.weight_decay, 0, 1e3), RUN, "0", "decoupled, of A and B"},
    {"adam-beta1", NUMBER(train.adam_beta1, 0, 0.999999999), RUN, "0.9", "AdamW"},
    {"adam-beta2", NUMBER(train.adam_beta2, 0, 0.999999999), RUN, "0.999", "AdamW"},
    {"adam-epsilon", NUMBER(train.adam_epsilon, 0, 1), RUN, "1e-8", "AdamW"},
    {"max-grad-norm", NUMBER(train.max_grad_norm, 0, 1e30), RUN, "1", "gradient clipping (0: off)"},
    {"seed", INTEGER64(train.seed, 0, 9e15), RUN | ANSWERS, "42", "initialisation, data order and dropout"},
    {"shuffle", FLAG(train.shuffle), RUN, "true",
     "a new order every epoch, as Hugging Face's Trainer for that seed"},
    {"on-nonfinite", CHOICE(train.on_nonfinite, nonfinite_name, NONFINITE_COUNT), RUN, "stop",
     "a loss or gradient that is NaN or infinite ends the run, or that step is left out"},
    HEADING("Evaluation"),
    {"eval-strategy", CHOICE(train.eval_strategy, strategy_name, STRATEGY_COUNT), RUN, "no",
     "evaluate during training; after the last step in any case"},
    {"eval-steps", INTEGER(train.eval_steps, 1, 1e9), RUN, NULL,
     "steps between evaluations; given alone it means --eval-strategy steps (not given: logging-steps)"},
    {"eval-on-start", FLAG(train.eval_on_start), RUN, "true", "evaluate before the first step"},
    {"per-device-eval-batch-size", INTEGER(train.per_device_eval_batch_size, 1, 4096), RUN | MEASURES, "8",
     "examples of an evaluation batch"},
    {"metric-for-best-model", TEXT_OF(train.metric_for_best_model, metric_name), RUN, NULL,
     "what makes an evaluation the best (not given: loss)"},
    {"greater-is-better", SWITCH(train.greater_is_better), RUN, NULL,
     "of that metric (not given: of the token accuracy only)"},
    {"load-best-model-at-end", FLAG(train.load_best_model_at_end), RUN, "false",
     "save the best evaluation's adapter, not the last step's"},
    {"early-stopping-patience", INTEGER(train.early_stopping_patience, 1, 1e6), RUN, NULL,
     "stop after so many evaluations in a row without a better one"},
    {"early-stopping-threshold", NUMBER(train.early_stopping_threshold, 0, 1e30), RUN, "0",
     "better by more than this"},
    {"sample-prompts", TEXT(sample_prompts), RUN, NULL,
     "data file whose first rows (8 at most) are answered at every evaluation, adapter off and on, likeliest tokens, "
     "64 at most"},
    HEADING("Checkpoints"),
    {"save-strategy", CHOICE(train.save_strategy, strategy_name, STRATEGY_COUNT), RUN, "no",
     "when OUTPUT/checkpoint-N is written; Ctrl-C writes one in any case"},
    {"save-steps", INTEGER(train.save_steps, 1, 1e9), RUN, "500", "optimizer steps between checkpoints"},
    {"save-total-limit", INTEGER(train.save_total_limit, 1, 1e6), RUN, NULL,
     "keep so many of the newest checkpoints, and the best (not given: all)"},
    {"resume", TEXT(train.resume), RUN | ONCE | FIXED, NULL,
     "go on from a checkpoint folder, or from the newest checkpoint of an output folder"},
    {"resume-force", FLAG(train.resume_force), RUN | ONCE | FIXED, "false",
     "although options, model or data differ from the checkpoint's"},
    {"fallback-output", TEXT(train.fallback_output), RUN | WRITES | FIXED, NULL,
     "where the adapter goes when --output cannot be written at the end (not given: the system's temporary folder)"},
    HEADING("Memory and machine"),
    {"recompute", CHOICE(train.recompute, recompute_name, RECOMPUTE_COUNT), RUN, "none",
     "compute again in backward instead of keeping: less memory, more time"},
    {"fit", FLAG(train.fit), RUN, "false",
     "choose micro-batch and recompute so that the run fits, with the same examples a step"},
    {"device-memory", BYTES(train.device_memory, 0x1p20, 0x1p50), RUN, NULL,
     "plan, --fit: what the run may take, as 24GiB (not given: what is free)"},
    {"threads", INTEGER(threads, 0, 1024), EVERY | FIXED, "0", "CPU threads (0: all)"},
    HEADING("Watching, and many runs"),
    {"logging-steps", INTEGER(train.logging_steps, 1, 1e9), RUN, "10", "steps between log lines"},
    {"report-to", CHOICE(report_to, report_name, REPORT_COUNT), RUN, "none",
     "also write TensorBoard's event files, into OUTPUT/runs"},
    {"on-finish", TEXT(on_finish), RUN | LINE_ONLY | FIXED, NULL,
     "shell command run when the run has ended, with TRAIN_LORA_STATUS, _OUTPUT, _STEPS, _TRAIN_LOSS, _EVAL_LOSS, "
     "_MESSAGE in its environment"},
    {"sweep", LIST(sweep), TRAIN | FIXED, NULL,
     "NAME=VALUE,VALUE,...: a run for every value, and for every combination where given several times; values with "
     "commas in them are separated by ';', as 'target_modules=q,v;all-linear'"},
    {"dry-run", FLAG(dry_run), TRAIN | FIXED, "false", "list the runs of a --sweep and stop"},
    HEADING("Answers: generate, evaluate, compare, merge"),
    {"dtype", CHOICE(dtype, merge_name, MERGE_COUNT), RUN | MERGE, "stored",
     "of the weights of a whole model, merged or trained without lora; stored: as the base has them"},
    {"adapter", LIST(adapter), INSPECT | ANSWERS | MERGE, NULL,
     "PEFT adapter folder, whole trained model or checkpoint, or 'base' for the model alone; may be given several "
     "times"},
    {"prompt", LIST(prompt), GENERATE, NULL, "a text to answer; may be given several times"},
    {"messages", TEXT(messages), GENERATE, NULL,
     "JSON file with a chat to go on with, [{\"role\": \"user\", \"content\": \"...\"}, ...]"},
    {"chat", FLAG(chat), GENERATE, "false", "talk to the model"},
    {"system", TEXT(system), GENERATE, NULL, "system message in front"},
    {"raw", FLAG(raw), GENERATE, "false", "take --prompt as it is, without the chat template"},
    {"max-new-tokens", INTEGER(generate.max_new_tokens, 1, 1 << 20), ANSWERS, NULL,
     "tokens of an answer at most (not given: 256)"},
    {"temperature", NUMBER(generate.temperature, 0, 100), ANSWERS, NULL,
     "0: the likeliest token (this and the next four: not given, the model's generation_config.json decides)"},
    {"top-k", INTEGER(generate.top_k, 0, 1 << 30), ANSWERS, NULL, "sample among the k likeliest tokens (0: off)"},
    {"top-p", NUMBER(generate.top_p, 1e-9, 1), ANSWERS, NULL,
     "sample among the likeliest tokens that have this probability together (1: off)"},
    {"min-p", NUMBER(generate.min_p, 0, 1), ANSWERS, NULL,
     "sample among tokens at least this likely, relative to the likeliest (0: off)"},
    {"repetition-penalty", NUMBER(generate.repetition_penalty, 1e-3, 1e3), ANSWERS, NULL,
     "makes tokens that were there less likely (1: off)"},
    {"stop", LIST(stop), ANSWERS, NULL, "text that ends an answer; may be given several times"},
    {"batch-size", INTEGER(generate.batch_size, 1, 4096), ANSWERS, NULL, "answers made at once (not given: 8)"},
    {"limit", INTEGER64(train.data_options.max_rows, 1, 1e9), ANSWERS, NULL, "only the first so many rows of --data"},
    {"jsonl", FLAG(jsonl), GENERATE, "false", "one JSON object an answer"},
    HEADING("Scores: evaluate, compare"),
    {"generate", FLAG(answers), MEASURES, "false", "evaluate: also answer every row and score the answers"},
    {"labels", TEXT(labels), MEASURES, NULL,
     "comma list of the possible answers: precision, recall, F1 and confusion matrix"},
    {"bleu-tokenize", CHOICE(bleu_tokenize, cut_name, CUT_COUNT), MEASURES, "13a",
     "how sacrebleu would cut words; zh and char also score ROUGE-L and sentence BLEU by characters"},
    {"few-shot", INTEGER(train.data_options.few_shot, 0, 1000), INSPECT | ANSWERS, "0",
     "solved examples in front of every row, in the loss of evaluate and in answers"},
    {"shots", TEXT(train.data_options.shots), INSPECT | ANSWERS, NULL, "data file whose first rows are those examples"},
};
#undef FIELD
#undef SAME_SIZE
#undef HEADING
#undef INTEGER
#undef INTEGER64
#undef NUMBER
#undef NUMBER32
#undef BYTES
#undef FLAG
#undef SWITCH
#undef CHOICE
#undef TEXT
#undef TEXT_OF
#undef LIST
enum { OPTION_COUNT = sizeof option_table / sizeof *option_table };
typedef char option_room[OPTION_COUNT <= sizeof ((Options *)0)->origin / sizeof(char *) ? 1 : -1];

/* Two sets of defaults and no more: for one's own model or data the table's, which are those of TRL's command line
   (SFTConfig, ModelConfig); and where the embedded example has its own. */
static const struct { const char *name, *value; } embedded_table[] = {
    {"eval-data", "data/hotel/eval.jsonl"}, {"sample-prompts", "data/hotel/questions.jsonl"}, {"lora-dropout", "0"},
    {"learning-rate", "5e-3"}, {"warmup-ratio", "0.05"}, {"num-train-epochs", "6"}};
#define AT(field) offsetof(Options, field)
static const Option *option_find(const char *name) {
    for (int i = 0; i < OPTION_COUNT; i++) if (*name && !strcmp(option_table[i].name, name)) return &option_table[i];
    return NULL;
}
static bool option_is_flag(const Option *d) { return d && (d->type == OPTION_FLAG || d->type == OPTION_SWITCH); }
static int names_count(const Option *d) {
    int n = 0;
    if (d->type == OPTION_CHOICE) return (int)d->high + 1;
    while (d->names[n]) n++;
    return n;
}
/* What it may be, as "a|b|c". */
static void names_add(Text *t, const Option *d) {
    for (int i = 0; i < names_count(d); i++) text_print(t, "%s%s", i ? "|" : "", d->names[i]);
}

/* Is value one of "a|b|c"? */
static bool one_of(const char *choices, const char *value) {
    size_t n = strlen(value);
    for (const char *c = choices; c; c = strchr(c, '|') ? strchr(c, '|') + 1 : NULL)
        if (n && !strncmp(c, value, n) && (c[n] == '|' || !c[n])) return true;
    return false;
}

/* What users of transformers, TRL, unsloth or lm-eval type, and what it is here: an option (the first row whose option
   the verb uses), or why there is none. */
typedef struct Synonym { const char *words, *option, *why; } Synonym;
static const Synonym synonym_table[] = {
    {"model-name-or-path|model-name|base-model|model-id|pretrained-model-name-or-path|model-path", "model", NULL},
    {"dataset|dataset-name|train-file|train-data|data-path|dataset-path|input|input-file|test-data|test-file", "data",
     "a file on this disk"},
    {"eval-data|eval-file|validation-file", "eval-data", NULL},
    {"eval-data|eval-file|validation-file", "data", NULL},
    {"val-data|eval-dataset|validation-data", "eval-data", NULL},
    {"val-split|test-size|validation-split|val-set-size|eval-size", "eval-split", NULL},
    {"output-dir|save-dir|out|out-dir|output-path|output-file|save-path", "output", NULL},
    {"cache-dir|dataset-cache", "token-cache", NULL},
    {"max-seq-length|max-seq-len|model-max-length|cutoff-len|block-size|seq-len|context-length", "max-length", NULL},
    {"max-length|max-tokens|max-output-tokens|n-predict", "max-new-tokens", NULL},
    {"pack", "packing", NULL},
    {"limit|max-samples|num-samples", "max-train-samples", NULL},
    {"max-train-samples|max-eval-samples|max-predict-samples|max-samples|num-samples", "limit", NULL},
    {"completion-only-loss|assistant-only-loss|train-on-responses-only|train-on-inputs|mask-prompt", "loss-on", NULL},
    {"template|chat-format", "chat-template", NULL},
    {"instruction-template|prompt-format", "prompt-template", NULL},
    {"thinking|reasoning", "enable-thinking", NULL},
    {"rank|r|lora-rank|lora-dim", "lora-r", NULL},
    {"alpha", "lora-alpha", NULL},
    {"dropout", "lora-dropout", NULL},
    {"rslora", "use-rslora", NULL},
    {"lora-target-modules|lora-modules|lora-target|target|modules", "target-modules", NULL},
    {"bias|lora-bias|train-bias", NULL, "biases are trained with all else by --train full and last:N alone"},
    {"lora-modules-to-save|additional-target", "modules-to-save", NULL},
    {"finetuning-type|full-finetuning|freeze|freeze-layers|unfreeze-layers|num-layers|fine-tune-type|"
     "freeze-trainable-layers", "train", "--train full, or last:N"},
    {"use-dora|dora|neftune-noise-alpha", NULL, "LoRA, rsLoRA, LoRA+, PiSSA and OLoRA are what there is"},
    {"loraplus-lr-ratio|loraplus-ratio|loraplus|lora-plus|use-loraplus", "lora-plus-ratio", NULL},
    {"loraplus-lr-embedding|embedding-lr|embedding-rate", "embedding-learning-rate", NULL},
    {"init|lora-init|pissa|use-pissa|use-olora|pissa-init|init-lora", "init-lora-weights", NULL},
    {"lr|max-lr|peak-lr", "learning-rate", NULL},
    {"scheduler|lr-scheduler|lr-schedule", "lr-scheduler-type", NULL},
    {"warmup|num-warmup-steps", "warmup-steps", NULL},
    {"warmup-steps=share", "warmup-ratio", "a share of all steps"},
    {"epochs|num-epochs|n-epochs|num-train-epoch", "num-train-epochs", NULL},
    {"steps|max-train-steps|num-steps|iters|iterations", "max-steps", NULL},
    {"batch-size|train-batch-size|micro-batch-size|batch", "per-device-train-batch-size", NULL},
    {"per-device-train-batch-size|per-device-eval-batch-size|eval-batch-size|batch", "batch-size", NULL},
    {"eval-batch-size", "per-device-eval-batch-size", NULL},
    {"gradient-accumulation|grad-accum|grad-accumulation-steps|accumulation-steps|accumulate-grad-batches",
     "gradient-accumulation-steps", NULL},
    {"clip|gradient-clipping|max-norm|grad-clip", "max-grad-norm", NULL},
    {"beta1", "adam-beta1", NULL},
    {"beta2", "adam-beta2", NULL},
    {"eps|epsilon", "adam-epsilon", NULL},
    {"random-seed|data-seed", "seed", NULL},
    {"task-type", "task", NULL},
    {"label-smoothing-factor", "label-smoothing", NULL},
    {"class-weight|weighted-loss|label-weights|pos-weight", "class-weights", NULL},
    {"gamma|focal-loss", "focal-gamma", NULL},
    {"labels|id2label|class-names|num-labels", "label-names", "each with its own --label-names"},
    {"label-column|label-column-name|label-name|text-column-names", NULL,
     "the columns are called text and label: rename them in the data file"},
    {"num-labels|label-list", NULL, "the labels of the training data are the classes"},
    {"optimizer|optimizer-name|optimizer-type", "optim", NULL},
    {"optim=adamw_hf|optim=adamw_torch_4bit|optim=adamw_torch_8bit|optim=adamw_anyprecision|optim=stable_adamw", NULL,
     "that AdamW has other numbers than PyTorch's and bitsandbytes'"},
    {"optim=adafactor|optim=sgd|optim=adam|optim=lion|optim=lion_32bit|optim=lion_8bit|optim=paged_lion_8bit|"
     "optim=muon|optim=galore_adamw|optim=apollo_adamw|optim=lomo|optim=adalomo|optim=schedule_free_adamw|"
     "optim=rmsprop|"
     "optim=adagrad|optim=ademamix|optim=ademamix_8bit", NULL, "AdamW is the optimizer; adamw_8bit needs less memory"},
    {"beta|dpo-beta|loss-type|rpo-alpha", NULL, "preference training (DPO) is not there yet"},
    {"evaluation-strategy|do-eval", "eval-strategy", NULL},
    {"early-stopping|patience", "early-stopping-patience", NULL},
    {"save-best|load-best", "load-best-model-at-end", NULL},
    {"do-train|do-predict|do-eval", NULL, "the verb says it: ./train_lora train, evaluate or generate"},
    {"resume-from-checkpoint|checkpoint", "resume", NULL},
    {"overwrite-output-dir", NULL, "a new run takes the place of the earlier one in --output"},
    {"logging-strategy|log-steps|log-every", "logging-steps", NULL},
    {"report-to=wandb|report-to=all|report-to=mlflow|wandb-project|run-name", NULL,
     "nothing is sent over the network; --report-to tensorboard writes files that `wandb sync` can read"},
    {"push-to-hub|hub-model-id", NULL, "nothing is uploaded; `hf upload NAME OUTPUT` does that"},
    {"fp16|bf16|tf32|half|torch-dtype|precision", NULL,
     "the arithmetic is chosen when building, make PRECISION=BF16, FP16 or FP32; weights keep the folder's type"},
    {"load-in-4bit|load-in-8bit|use-4bit|use-8bit|quantization|qlora|bnb-4bit-quant-type|bnb-4bit-compute-dtype", NULL,
     "no quantised base weights yet; --fit and --recompute layer save memory"},
    {"gradient-checkpointing|use-gradient-checkpointing", "recompute", "--recompute layer"},
    {"attn-implementation|flash-attn|use-flash-attn|use-flash-attention-2|use-sdpa", NULL,
     "attention never stores the matrix of scores, there is nothing to choose"},
    {"deepspeed|fsdp|local-rank|ddp-find-unused-parameters|num-processes|tensor-parallel-size", NULL,
     "one process, one GPU"},
    {"device|device-map|gpu|cuda|no-cuda|use-cpu|n-gpu-layers", NULL,
     "the build decides, make CUDA=1 or CUDA=0; CUDA_VISIBLE_DEVICES chooses among several GPUs"},
    {"num-workers|dataloader-num-workers|preprocessing-num-workers|dataset-num-proc|num-proc", "threads", NULL},
    {"torch-compile|use-unsloth|use-liger-kernel", NULL, "there is nothing to compile or patch"},
    {"group-by-length|padding|padding-side|pad-to-multiple-of|padding-free", NULL, "batches are never padded"},
    {"trust-remote-code", NULL, "no code of a model folder is ever run"},
    {"adapter-path|adapter-name-or-path|peft-model-id|peft-model|peft|lora|lora-path", "adapter", NULL},
    {"adapter|adapter-path|lora-path", "init-adapter", NULL},
    {"text|input-text|message", "prompt", NULL},
    {"interactive|repl", "chat", NULL},
    {"system-prompt|system-message|sys", "system", NULL},
    {"do-sample|greedy", "temperature", "--temperature 0 takes the likeliest token"},
    {"num-beams|num-return-sequences|best-of", NULL, "one answer, greedy or sampled; no beam search"},
    {"stop-token|stop-sequence|stop-sequences|eos-token", "stop", NULL},
    {"predict-with-generate", "generate", NULL},
    {"few-shots|n-shot|num-fewshot|num-shots|k-shot", "few-shot", NULL},
};
static const Synonym *synonym_find(const char *word, const Verb *verb) {
    for (size_t i = 0; i < sizeof synonym_table / sizeof *synonym_table; i++) {
        const Synonym *s = &synonym_table[i];
        const Option *d = s->option ? option_find(s->option) : NULL;
        if (one_of(s->words, word) && (!d || !verb || (d->verbs & verb->bit))) return s;
    }
    return NULL;
}

/* Other words for a choice's value: Hugging Face's. why: what is to be said of it, or NULL. */
static const struct { const char *option, *words, *value, *why; } value_table[] = {
    {"task", "CAUSAL_LM", "causal_lm", NULL},
    {"task", "SEQ_CLS|sequence_classification", "classification", NULL},
    {"task", "reward_modeling", "reward", NULL},
    {"optim", "adamw_torch|adamw_torch_fused|adamw_torch_xla|adamw_torch_npu_fused", "adamw", "the same numbers"},
    {"optim", "paged_adamw|paged_adamw_32bit", "adamw", "the same numbers; all memory is taken before the first step"},
    {"optim", "adamw_bnb_8bit", "adamw_8bit", "the same numbers"},
    {"optim", "paged_adamw_8bit", "adamw_8bit", "the same numbers; all memory is taken before the first step"},
};
/* Position of a value among the option's names; an error where it is none of them. */
static int option_choice(const Option *d, const char *value, const char *where) {
    int count = names_count(d);
    for (size_t i = 0; i < sizeof value_table / sizeof *value_table; i++) {
        if (strcmp(d->name, value_table[i].option) || !one_of(value_table[i].words, value)) continue;
        if (value_table[i].why)
            complain_of("note", "--%s %s is %s: %s", d->name, value, value_table[i].value, value_table[i].why);
        value = value_table[i].value;
        break;
    }
    for (int i = 0; i < count; i++) if (!strcmp(value, d->names[i])) return i;
    char word[128];
    Text list = TEXT_EMPTY;
    snprintf(word, sizeof word, "%s=%s", d->name, value);
    const Synonym *other = synonym_find(word, NULL);
    const char *near = name_nearest(value, d->names, count);
    names_add(&list, d);
    usage_error("bad value '%s' of --%s; %s; give one of %s%s%s%s", value, d->name, where, list.at,
                other ? ": " : near ? "; did you mean " : "", other ? other->why : near ? near : "",
                near && !other ? "?" : "");
    return -1;
}
/* A value as a number within the option's range. */
static double option_number(const Option *d, const char *value, const char *where) {
    static const struct { const char *unit; double bytes; } units[] = {
        {"", 1}, {"B", 1}, {"MB", 1e6}, {"GB", 1e9}, {"M", 0x1p20}, {"G", 0x1p30}, {"MiB", 0x1p20}, {"GiB", 0x1p30}};
    bool whole = d->type == OPTION_INT || d->type == OPTION_INT64;
    char *end, share[80];
    errno = 0;
    double v = strtod(value, &end);
    if (d->type == OPTION_BYTES && end != value) {
        while (*end == ' ') end++;
        for (size_t i = 0; i < sizeof units / sizeof *units && *end; i++)
            if (!strcmp(end, units[i].unit)) { v *= units[i].bytes; end += strlen(end); }
        if (*end)
            usage_error("bad value '%s' of --%s; %s; give bytes with a unit, as 24GiB", value, d->name, where);
    }
    snprintf(share, sizeof share, "%s=share", d->name);
    const Synonym *other = whole && v > 0 && v < 1 ? synonym_find(share, NULL) : NULL;
    if (other && !*end)
        usage_error("bad value '%s' of --%s; %s; give a whole number, or --%s %s: %s", value, d->name, where,
                    other->option, value, other->why);
    if (end == value || *end || errno || !isfinite(v) || (whole && v != floor(v)))
        usage_error("bad value '%s' of --%s; %s; give a %snumber", value, d->name, where, whole ? "whole " : "");
    if (v < d->low || v > d->high)
        usage_error("value %s of --%s is out of range; %s; give %.10g to %.10g", value, d->name, where, d->low,
                    d->high);
    return v;
}

/* Stores one value; `where` names its origin in messages: from_line, from_default or a file. */
static void option_set(Options *o, const Option *d, const char *value, const char *where) {
    const char **origin = &o->origin[d - option_table];
    void *at = (char *)o + d->offset;
    switch (d->type) {
    case OPTION_HEADING: break;
    case OPTION_TEXT:
        if (d->names) option_choice(d, value, where);
        *(const char **)at = value;
        break;
    case OPTION_LIST: {
        const char ***list = (const char ***)at;
        if (*origin != where) arrsetlen(*list, 0);      /* the command line's takes the place of the file's */
        arrput(*list, value);
        break;
    }
    case OPTION_CHOICE: {
        int choice = option_choice(d, value, where);
        memcpy(at, &choice, sizeof choice);             /* an enum, of a type of its own */
        break;
    }
    case OPTION_FLAG: case OPTION_SWITCH: {
        bool on = !strcmp(value, "true");
        if (!on && strcmp(value, "false"))
            usage_error("bad value '%s' of --%s; %s; give true or false", value, d->name, where);
        if (d->type == OPTION_FLAG) *(bool *)at = on;
        else *(int *)at = on;
        break;
    }
    case OPTION_INT: *(int *)at = (int)option_number(d, value, where); break;
    case OPTION_INT64: *(int64_t *)at = (int64_t)option_number(d, value, where); break;
    case OPTION_FLOAT: *(float *)at = (float)option_number(d, value, where); break;
    case OPTION_BYTES: *(size_t *)at = (size_t)option_number(d, value, where); break;
    case OPTION_DOUBLE: *(double *)at = option_number(d, value, where); break;
    }
    *origin = where;
}
/* As if nobody had set it, the table neither. */
static void option_unset(Options *o, const Option *d) {
    memset((char *)o + d->offset, d->type == OPTION_SWITCH ? 0xFF : 0, d->bytes);      /* a switch: -1 */
    o->origin[d - option_table] = NULL;
}
static bool is_given(const Options *o, int i) { return o->origin[i] && o->origin[i] != from_default; }
/* Did the command line, the --config file or an adapter set it? By whom? NULL: nobody. */
static const char *option_origin(const Options *o, const char *name) {
    int i = (int)(option_find(name) - option_table);
    return is_given(o, i) ? o->origin[i] : NULL;
}
static bool option_given(const Options *o, const char *name) { return option_origin(o, name) != NULL; }

/* The value of an option that is no list, as run.json has it; "" where nobody set it. */
static const char *option_value(const Options *o, const Option *d, char number[32]) {
    const void *at = (const char *)o + d->offset;
    int choice;
    *number = 0;
    if (!o->origin[d - option_table]) return "";
    switch (d->type) {
    case OPTION_HEADING: case OPTION_LIST: break;
    case OPTION_TEXT: return *(const char *const *)at;
    case OPTION_CHOICE: memcpy(&choice, at, sizeof choice); return d->names[choice];
    case OPTION_FLAG: return *(const bool *)at ? "true" : "false";
    case OPTION_SWITCH: return *(const int *)at ? "true" : "false";
    case OPTION_INT: snprintf(number, 32, "%d", *(const int *)at); break;
    case OPTION_INT64: snprintf(number, 32, "%lld", (long long)*(const int64_t *)at); break;
    case OPTION_BYTES: snprintf(number, 32, "%zu", *(const size_t *)at); break;
    case OPTION_FLOAT: snprintf(number, 32, "%.7g", (double)*(const float *)at); break;
    case OPTION_DOUBLE: snprintf(number, 32, "%.15g", *(const double *)at); break;
    }
    return number;
}

/* Where a file of data/ is: beside the program, else where `make install` puts it, else below the current folder; as
   `name` where that is the same. */
static const char *data_path(const char *name) {
    static const char *const places[] = {"", "../share/train_lora/"};
    char program[PATH_MAX], path[2 * PATH_MAX];
    struct stat here, there;
    ssize_t length = readlink("/proc/self/exe", program, sizeof program);
    while (length > 0 && program[length - 1] != '/') length--;
    for (int i = 0; i < 2 && length > 0; i++) {
        snprintf(path, sizeof path, "%.*s%s%s", (int)length, program, places[i], name);
        if (stat(path, &there)) continue;
        bool same = !stat(name, &here) && here.st_dev == there.st_dev && here.st_ino == there.st_ino;
        return same ? name : text_copy(path);
    }
    return name;
}
static void metric_names_fill(void) {
    int n = 0;
    if (metric_name[0]) return;
    for (int eval = 0; eval < 2; eval++)
        for (int i = 0; i < LOG_METRICS; i++) {
            const char *name = log_metric[i].name;
            if (!(log_metric[i].is & METRIC_BEST)) continue;
            char *copy = (char *)must_alloc(strlen(name) + 6);
            snprintf(copy, strlen(name) + 6, "%s%s", eval ? "eval_" : "", name);
            metric_name[n++] = copy;
        }
}
static void options_default(Options *o, bool embedded) {
    memset(o, 0, sizeof *o);
    metric_names_fill();
    for (int i = 0; i < OPTION_COUNT; i++) {
        const Option *d = &option_table[i];
        const char *value = d->value;
        for (size_t k = 0; k < sizeof embedded_table / sizeof *embedded_table && embedded; k++)
            if (!strcmp(d->name, embedded_table[k].name)) value = embedded_table[k].value;
        option_unset(o, d);
        if (value) option_set(o, d, strncmp(value, "data/", 5) ? value : data_path(value), from_default);
    }
}

/* The table's name of an option as the word's first bytes spell it, underscores as dashes. */
static void option_name(char out[64], const char *word, size_t bytes) {
    snprintf(out, 64, "%.*s", (int)bytes, word);
    for (char *c = out; *c; c++) if (*c == '_') *c = '-';
}
/* And as files have it: with underscores. */
static void option_key(char out[64], const Option *d) {
    snprintf(out, 64, "%s", d->name);
    for (char *c = out; *c; c++) if (*c == '-') *c = '_';
}
/* Verbs of a set, as "generate, evaluate and compare". */
static const char *verbs_text(char out[128], int verbs) {
    int left = 0, bytes = 0;
    for (int i = 0; i < VERB_COUNT; i++) left += (verbs & verb_table[i].bit) != 0;
    out[0] = 0;
    for (int i = 0; i < VERB_COUNT; i++)
        if (verbs & verb_table[i].bit) {
            const char *between = --left > 1 ? ", " : left ? " and " : "";
            bytes += snprintf(out + bytes, 128 - (size_t)bytes, "%s%s", verb_table[i].name, between);
        }
    return out;
}

/* The option called so, usable by the verb; else an error with the answer that helps. from_file: a config file may be
   for another verb, the caller looks at the row's verbs itself. */
static const Option *option_or_die(const char *name, const Verb *verb, const char *where, bool from_file) {
    const Option *d = option_find(name);
    char of[128];
    if (d && (from_file || (d->verbs & verb->bit))) return d;
    const Synonym *other = synonym_find(name, verb);
    Text hint = TEXT_EMPTY;
    if (other && other->option) text_print(&hint, "%s --%s", d ? "for this it is" : "it is called", other->option);
    if (other && other->why) text_print(&hint, "%s%s", other->option ? ": " : "", other->why);
    if (!other && !d) {
        const char *names[OPTION_COUNT];
        int count = 0;
        for (int i = 0; i < OPTION_COUNT; i++)
            if (option_table[i].verbs & verb->bit) names[count++] = option_table[i].name;
        const char *near = name_nearest(name, names, count);
        if (near) text_print(&hint, "did you mean --%s?", near);
    }
    if (!hint.at) text_print(&hint, "see ./train_lora %s --help", verb->name);
    if (d)
        usage_error("%s does not use --%s, an option of %s; %s; %s", verb->name, name, verbs_text(of, d->verbs), where,
                    hint.at);
    usage_error("unknown option --%s; %s; %s", name, where, hint.at);
    return NULL;
}

/* A member of a file as an option's value; "" for none. */
static const char *member_value(const Json *j) {
    return !j ? "" : j->type == JSON_TRUE ? "true" : j->type == JSON_FALSE ? "false" : j->str ? j->str : "";
}
/* Takes the options of a JSON file. Keys that the verb does not use are named; "on_finish" runs a command, which only
   the person at the command line may ask for; where files will be written is said. */
static void options_from_file(Options *o, const char *path) {
    Error err;
    JsonDoc doc;
    char name[64];
    Text idle = TEXT_EMPTY, writes = TEXT_EMPTY;
    if (!strncmp(path, "data/recipes/", 13) && access(path, R_OK)) path = data_path(path);     /* from any folder */
    if (!json_read(&doc, path, &err)) { complain("error", err.text); exit(1); }
    if (doc.root->type != JSON_OBJECT) usage_error("not an object; %s; write {\"learning_rate\": 1e-4, ...}", path);
    for (const Json *j = doc.root->child; j; j = j->next) {       /* it stays in memory: options point into it */
        if (j->type == JSON_NULL) continue;
        option_name(name, j->key, strlen(j->key));
        const Option *d = option_or_die(name, o->verb, path, true);
        if (d->verbs & LINE_ONLY)
            usage_error("'%s' is not taken from files; %s; give --%s on the command line", j->key, path, d->name);
        if (d->offset == AT(config)) usage_error("'config' within a config file; %s; put its keys here", path);
        if (!(d->verbs & o->verb->bit)) { text_print(&idle, "%s%s", idle.at ? ", " : "", j->key); continue; }
        if (j->type == JSON_ARRAY && d->type == OPTION_LIST) {
            for (const Json *e = j->child; e; e = e->next) {
                if (!e->str) usage_error("bad value of '%s'; %s; give a list of strings", j->key, path);
                option_set(o, d, e->str, path);
            }
            continue;
        }
        const char *value = member_value(j);
        if (!*value && !j->str)
            usage_error("bad value of '%s'; %s; give a number, a string, true or false", j->key, path);
        option_set(o, d, value, path);
        if (d->verbs & WRITES) text_print(&writes, "%s%s %s", writes.at ? ", " : "", j->key, value);
    }
    if (writes.at) text_print(&writes, " (where files are written)");
    if (idle.at) text_print(&writes, "%s%s does not use %s", writes.at ? "; " : "", o->verb->name, idle.at);
    if (writes.at) complain_of("note", "%s: %s", path, writes.at);
    text_free(&idle);
    text_free(&writes);
}

/* How the run that made an adapter wrote its prompts and measured: the KEPT members of FOLDER/run.json that one of the
   verbs uses, each NULL where it has none. false: the folder has no run.json (another program's adapter). The document
   stays in memory. */
static bool adapter_kept(const Json *kept[OPTION_COUNT], const char *folder, int verbs) {
    char path[PATH_MAX], name[64];
    JsonDoc doc;
    adapter_file(path, sizeof path, folder, "run.json");
    memset(kept, 0, OPTION_COUNT * sizeof *kept);
    if (!strcmp(folder, "base") || access(path, R_OK) || !json_read(&doc, path, NULL)) return false;
    for (const Json *j = doc.root->child; j; j = j->next) {
        option_name(name, j->key ? j->key : "", j->key ? strlen(j->key) : 0);
        const Option *d = option_find(name);
        if (d && (d->verbs & KEPT) && (d->verbs & verbs) && *member_value(j)) kept[d - option_table] = j;
    }
    return true;
}
/* What was not given is taken from the adapters, and said once where it is not the default. Adapters that were trained
   on prompts of different kinds cannot share a table. */
static void options_from_adapters(Options *o) {
    const Json *kept[OPTION_COUNT], *other[OPTION_COUNT];
    const char *first = NULL;
    char number[32];
    Text taken = TEXT_EMPTY;
    for (ptrdiff_t k = 0; k < arrlen(o->adapter); k++) {
        if (!adapter_kept(first ? other : kept, o->adapter[k], o->verb->bit)) continue;
        for (int i = 0; first && i < OPTION_COUNT; i++) {
            bool same = is_given(o, i) || !strcmp(member_value(kept[i]), member_value(other[i]));
            if (!same && o->labels && !strcmp(option_table[i].name, "task")) {
                kept[i] = NULL;             /* words and heads in one table: each column by what it is */
                same = true;
            }
            if (!same)
                usage_error("%s and %s were trained with different --%s, '%s' and '%s'; --adapter; give the one that "
                            "is meant, or take the adapters one at a time", first, o->adapter[k], option_table[i].name,
                            member_value(kept[i]), member_value(other[i]));
        }
        if (!first) first = o->adapter[k];
    }
    for (int i = 0; first && i < OPTION_COUNT; i++) {
        const Option *d = &option_table[i];
        const char *value = member_value(kept[i]);
        if (!kept[i] || is_given(o, i) || !strcmp(value, option_value(o, d, number))) continue;
        option_set(o, d, value, first);
        text_print(&taken, "%s--%s %s", taken.at ? ", " : "", d->name, value);
    }
    if (taken.at) complain_of("note", "%s, as %s was trained (its run.json)", taken.at, first);
    text_free(&taken);
}
/* How an adapter's prompts in training differ from those here, as "--chat-template zephyr (here qwen3)"; NULL: not at
   all. given: also in options that were given here. */
static Text adapter_differs(const Options *o, const char *adapter, bool given) {
    const Json *kept[OPTION_COUNT];
    Text t = TEXT_EMPTY;
    char number[32];
    bool known = adapter_kept(kept, adapter, GENERATE);
    for (int i = 0; known && i < OPTION_COUNT; i++) {
        const Option *d = &option_table[i];
        bool chosen = is_given(o, i);
        for (ptrdiff_t k = 0; k < arrlen(o->adapter); k++) chosen &= o->origin[i] != o->adapter[k];
        if (!(d->verbs & KEPT) || !(d->verbs & GENERATE) || (chosen && !given)) continue;
        const char *was = member_value(kept[i]), *is = option_value(o, d, number);
        if (!strcmp(was, is)) continue;
        text_print(&t, "%s%s--%s", t.at ? ", " : "", *was ? "" : "no ", d->name);
        text_print(&t, "%s%s (here %s)", *was ? " " : "", was, *is ? is : "none");
    }
    return t;
}

/* The option of words[*i], and its value: behind "=", the next word, or of a flag that stands alone or behind "no-". */
static const Option *option_of_words(const char **value, char **words, int count, int *i, const Verb *verb) {
    const char *word = words[*i], *equals = strchr(word, '='), *next = *i + 1 < count ? words[*i + 1] : NULL;
    char name[64];
    if (strncmp(word, "--", 2))
        usage_error("unexpected word '%s'; %s; options begin with --, see ./train_lora %s --help", word, from_line,
                    verb->name);
    option_name(name, word + 2, strcspn(word + 2, "="));
    bool off = !strncmp(name, "no-", 3) && option_is_flag(option_find(name + 3));
    const Option *d = option_or_die(off ? name + 3 : name, verb, from_line, false);
    if (off && equals)
        usage_error("--%s with a value; %s; give --%s=true or false", name, from_line, d->name);
    *value = equals ? equals + 1 : off ? "false" : "true";
    if (equals || off) return d;
    if (option_is_flag(d) ? next && (!strcmp(next, "true") || !strcmp(next, "false")) : next != NULL)
        *value = words[++*i];
    else if (!option_is_flag(d))
        usage_error("--%s needs a value; %s; see ./train_lora %s --help", d->name, from_line, verb->name);
    return d;
}
/* The words after the verb: --name value, --name=value, --flag, --no-flag. */
static void options_parse(Options *o, const Verb *verb, int count, char **words) {
    bool embedded = true;
    for (int i = 0; i < count; i++) {        /* whose defaults? */
        char name[64];
        option_name(name, words[i], strcspn(words[i], "="));
        if (!strcmp(name, "--model") || !strcmp(name, "--data") || !strcmp(name, "--config")) embedded = false;
    }
    options_default(o, embedded);
    o->verb = verb;
    for (int pass = 0; pass < 2; pass++) {   /* --config first, then the command line over it */
        for (int i = 0; i < count; i++) {
            const char *value;
            const Option *d = option_of_words(&value, words, count, &i, verb);
            if (pass != (d->offset == AT(config))) option_set(o, d, value, from_line);
        }
        if (!pass && o->config) options_from_file(o, o->config);
    }
    options_from_adapters(o);
}

/* A word of a command to paste, as a shell takes it: the one place that quotes. */
static void command_add(Text *t, const char *word) {
    const char *safe = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./=,:+@%";
    bool plain = *word && !word[strspn(word, safe)];
    text_print(t, t->length ? plain ? " %s" : " '" : plain ? "%s" : "'", plain ? word : "");
    for (const char *c = word; !plain && *c; c++) text_print(t, *c == '\'' ? "'\\''" : "%c", *c);
    if (!plain) text_print(t, "'");
}
/* The program with these words, up to NULL. */
static Text command_text(const Options *o, ...) {
    Text t = TEXT_EMPTY;
    va_list args;
    command_add(&t, o->program);
    va_start(args, o);
    for (const char *word; (word = va_arg(args, const char *)) != NULL;) command_add(&t, word);
    va_end(args);
    return t;
}
/* The command line again, --resume left out, for messages that say how to go on. */
static char *command_line(int argc, char **argv) {
    Text t = TEXT_EMPTY;
    for (int i = 0; i < argc; i++) {
        if (i && !strcmp(argv[i], "--resume")) i++;
        else if (!i || strncmp(argv[i], "--resume=", 9)) command_add(&t, argv[i]);
    }
    return t.at;
}
static void print_command(const char *label, Text command) {
    printf("%-8s %s\n", label, command.at);
    text_free(&command);
}

/* ---- options whose text has a structure of its own --------------------------------------------------------------- */

/* "q,v" or "q_proj,v_proj" or "all-linear". */
static void resolve_modules(LoraConfig *lora, const char *list) {
    enum { NAMES = MODULE_COUNT + 1 };
    const char *names[NAMES];
    char text[1024];
    for (int j = 0; j < MODULE_COUNT; j++) names[j] = module_name[j];
    names[MODULE_COUNT] = "all-linear";
    memset(lora->target, 0, sizeof lora->target);
    snprintf(text, sizeof text, "%s", list);
    for (char *rest = text, *word = strtok_r(rest, ", ", &rest); word; word = strtok_r(rest, ", ", &rest)) {
        bool found = false;
        for (int j = 0; j < MODULE_COUNT; j++) {
            size_t n = strlen(module_name[j]) - 5;                            /* "q" of "q_proj" */
            bool same = !strcmp(word, module_name[j]) || (strlen(word) == n && !strncmp(word, module_name[j], n));
            if (same || !strcmp(word, "all-linear")) lora->target[j] = found = true;
        }
        const char *near = found ? NULL : name_nearest(word, names, NAMES);
        if (!found)
            usage_error("no target module '%s'; --target-modules; %s%s%sthe modules are q_proj, k_proj, v_proj, "
                        "o_proj, gate_proj, up_proj, down_proj, or all-linear", word, near ? "did you mean " : "",
                        near ? near : "", near ? "? " : "");
    }
}
/* --train and --modules-to-save. What only LoRA uses is unset where there is none: it would be written into run.json as
   if it had done something. */
static const char *const lora_options[] = {"lora-r", "lora-alpha", "lora-dropout", "use-rslora", "init-lora-weights",
                                           "target-modules", "layers-to-transform", "modules-to-save",
                                           "lora-plus-ratio", "convert-to-lora"};
enum { LORA_OPTIONS = sizeof lora_options / sizeof *lora_options };
static void resolve_trained(Options *o) {
    static const struct { const char *name; int bit; } saved[] = {
        {"lm_head", TRAIN_HEAD}, {"embed_tokens", TRAIN_EMBEDDINGS}, {"norm", TRAIN_NORMS}};
    LoraConfig *lora = &o->train.lora;
    Error err;
    char text[1024];
    if (!train_parse(&lora->train, &lora->last_layers, o->trained, &err)) usage_error("%s", err.text);
    if (!(lora->train & TRAIN_LORA)) for (int i = 0; i < LORA_OPTIONS; i++) {
        const char *origin = option_origin(o, lora_options[i]);
        if (origin && strcmp(option_origin(o, "train"), "--sweep"))
            usage_error("--%s is of LoRA, --train %s has none; %s; leave it out, or train lora", lora_options[i],
                        o->trained, origin);
        option_unset(o, option_find(lora_options[i]));
    }
    snprintf(text, sizeof text, "%s", o->modules_to_save ? o->modules_to_save : "");
    for (char *rest = text, *word = strtok_r(rest, ", ", &rest); word; word = strtok_r(rest, ", ", &rest)) {
        int i = 0;
        while (i < 3 && strcmp(word, saved[i].name)) i++;
        if (i == 3)
            usage_error("no module '%s'; --modules-to-save; they are lm_head, embed_tokens and norm (every norm)",
                        word);
        lora->train |= saved[i].bit;
    }
}
/* "0,4-7": of a model whose layers are counted in its config.json. */
static void resolve_layers(LoraConfig *lora, const char *list, const char *model) {
    ModelConfig config;
    Error err;
    char text[1024];
    if (!config_open(&config, model, &err)) { complain("error", err.text); exit(1); }
    int layers = config.num_hidden_layers;
    arrsetlen(lora->layers, (size_t)layers);
    memset(lora->layers, 0, (size_t)layers);
    snprintf(text, sizeof text, "%s", list);
    for (char *rest = text, *word = strtok_r(rest, ", ", &rest); word; word = strtok_r(rest, ", ", &rest)) {
        char *end;
        long first = strtol(word, &end, 10), last = first;
        if (end != word && *end == '-') { word = end + 1; last = strtol(word, &end, 10); }
        if (end == word || *end || first < 0 || last < first || last >= layers)
            usage_error("bad layers '%s'; --layers-to-transform; the model has layers 0 to %d", list, layers - 1);
        for (long l = first; l <= last; l++) lora->layers[l] = 1;
    }
}
static void options_resolve(Options *o) {
    TrainOptions *t = &o->train;
    DataOptions *d = &t->data_options;
    Error err;
    t->data = o->data[0];
    t->more_data = o->data + 1;
    t->more_data_count = (int)arrlen(o->data) - 1;
    d->label_count = (int)arrlen(d->label_names);
    d->pad_token_id = -1;                   /* the tokenizer's */
    resolve_trained(o);
    t->save_dtype = o->dtype == MERGE_STORED ? NULL : &merge_dtype[o->dtype];
    if (o->target_modules) resolve_modules(&t->lora, o->target_modules);
    if (o->layers_to_transform) resolve_layers(&t->lora, o->layers_to_transform, t->model);
    if (o->chat_template && (strstr(o->chat_template, ".jinja") || access(o->chat_template, R_OK) == 0))
        d->chat_file = o->chat_template;
    else if (o->chat_template && !chat_template_by_name(o->chat_template, &d->chat_template, &err))
        usage_error("%s", err.text);
    if (d->prompt_template && !strstr(d->prompt_template, "{prompt}"))
        usage_error("no {prompt} in '%s'; --prompt-template; write it as 'USER: {prompt} ASSISTANT:'",
                    d->prompt_template);
    if (d->few_shot && !d->shots)
        usage_error("--few-shot without --shots; command line; name the file of solved examples");
    if (d->shots && !option_given(o, "few-shot"))
        usage_error("--shots without --few-shot; command line; say how many rows of it are put in front");
    if (option_given(o, "eval-steps") && !option_given(o, "eval-strategy")) t->eval_strategy = STRATEGY_STEPS;
    if (t->eval_split > 0 && !option_given(o, "eval-data")) option_unset(o, option_find("eval-data"));
#ifdef _OPENMP
    if (o->threads) omp_set_num_threads(o->threads);
    d->threads = omp_get_max_threads();
#else
    d->threads = 1;
#endif
}

/* Does a file that the chat template may lie in have the word? Few do: the tokenizer need not be read for it. */
static bool template_mentions(const Options *o, const char *word) {
    static const char *const names[] = {"chat_template.jinja", "tokenizer_config.json", "chat_template.json"};
    const char *file = o->train.data_options.chat_file;
    bool found = false;
    for (int i = 0; i < (file ? 1 : 3) && !found; i++) {
        char path[PATH_MAX];
        size_t length;
        if (file) snprintf(path, sizeof path, "%s", file);
        else path_in(path, sizeof path, o->train.model, names[i]);
        char *text = access(path, R_OK) ? NULL : read_file(path, &length, NULL);
        found = text && strstr(text, word);
        free(text);
    }
    return found;
}
/* A template that asks for the date gets one for the whole run, which run.json keeps: a resumed run takes its own, and
   so do those who read the adapter. Only training asks. */
static void options_date(Options *o) {
    DataOptions *d = &o->train.data_options;
    static char today[64];
    if (d->template_date || d->chat_template != CHAT_NONE || !template_mentions(o, "strftime_now")) return;
    Tokenizer *t = tokenizer_open(o->train.model, NULL);     /* where it does not open, training says so */
    ChatSource *s = t && (d->chat_file || tokenizer_chat_template(t) == CHAT_UNKNOWN)
                    ? chat_source_open(t, d->chat_file, NULL) : NULL;
    if (s && chat_source_reads(s, "strftime_now")) {
        time_t now = time(NULL);
        strftime(today, sizeof today, "%Y-%m-%d", localtime(&now));
        if (o->train.resume) {
            char path[PATH_MAX];
            JsonDoc doc = {NULL, NULL};
            adapter_file(path, sizeof path, o->train.resume, "run.json");
            const Json *kept = json_read(&doc, path, NULL) ? json_get(doc.root, "template_date") : NULL;
            if (kept && kept->type == JSON_STRING) snprintf(today, sizeof today, "%s", kept->str);
            json_free(&doc);
        }
        option_set(o, option_find("template-date"), today, "the day of the run");
    }
    chat_source_close(s);
    tokenizer_free(t);
}

/* Combinations that would not do what they say. Only training looks: the same --config file may be given to every
   verb. */
static void options_check(const Options *o) {
    const TrainOptions *t = &o->train;
    bool during = t->eval_strategy != STRATEGY_NO, eval_file = option_given(o, "eval-data");
    bool evaluates = t->eval_data || t->eval_split > 0, best = t->load_best_model_at_end;
    bool chooses = option_given(o, "metric-for-best-model") || option_given(o, "greater-is-better");
    if (during && !evaluates)
        usage_error("--eval-strategy %s without evaluation data; command line; add --eval-data FILE or --eval-split "
                    "0.1", strategy_name[t->eval_strategy]);
    const struct { bool is; const char *text; } wrong[] = {
        {t->eval_split > 0 && eval_file,
         "--eval-data and --eval-split exclude each other; command line; give one of them"},
        {t->max_eval_samples && !t->eval_data,
         "--max-eval-samples without --eval-data; command line; with --eval-split give a smaller share"},
        {best && !during,
         "--load-best-model-at-end without evaluation; command line; add --eval-strategy steps or epoch"},
        {t->early_stopping_patience && !during,
         "--early-stopping-patience without evaluation; command line; add --eval-strategy steps or epoch"},
        {t->early_stopping_patience && !best,
         "--early-stopping-patience without --load-best-model-at-end; command line; the evaluations it waits through "
         "would end up in the adapter: add it"},
        {chooses && !best, "--metric-for-best-model without --load-best-model-at-end; command line; add it"},
        {t->early_stopping_threshold > 0 && !t->early_stopping_patience,
         "--early-stopping-threshold without --early-stopping-patience; command line; add it"},
        {o->sample_prompts && !evaluates,
         "--sample-prompts without evaluation data; command line; they are answered at every evaluation: add "
         "--eval-data FILE or --eval-split 0.1"},
        {t->resume_force && !t->resume, "--resume-force without --resume; command line; say what to resume"},
        {t->embedding_learning_rate > 0 && !(t->learning_rate > 0),
         "--embedding-learning-rate beside --learning-rate 0; command line; it is a share of that rate: give one"},
        {t->lora.init && t->init_adapter,
         "--init-lora-weights and --init-adapter exclude each other; command line; an adapter begins where it is"},
        {option_given(o, "train") && t->init_adapter,
         "--train and --init-adapter exclude each other; command line; what the folder holds is what is trained (of a "
         "whole model, every tensor that differs from the base's): leave --train out"},
        {t->save_dtype && t->lora.train & TRAIN_LORA && !t->init_adapter,
         "--dtype of an adapter; command line; adapters are F32: leave it out, or give it to merge"},
        {t->resume && t->init_adapter,
         "--resume and --init-adapter exclude each other; command line; a checkpoint has its own adapter"},
        {o->dry_run && !arrlen(o->sweep),
         "--dry-run without --sweep; command line; `plan` shows what one run would take"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) if (wrong[i].is) usage_error("%s", wrong[i].text);
}

/* The options of this run as a JSON object, for --config: run.json. */
static Text options_text(const Options *o) {
    Text t = TEXT_EMPTY;
    json_object(&t, NULL, JSON_LINES);
    for (int i = 0; i < OPTION_COUNT; i++) {
        const Option *d = &option_table[i];
        char name[64], number[32];
        if (!(d->verbs & RUN) || (d->verbs & (LINE_ONLY | ONCE)) || !o->origin[i]) continue;
        option_key(name, d);
        if (d->type == OPTION_LIST) {
            const char **list = *(const char **const *)((const char *)o + d->offset);
            json_list(&t, name, JSON_LINE);
            for (ptrdiff_t k = 0; k < arrlen(list); k++) json_string(&t, NULL, list[k]);
            json_end(&t);
        } else if (d->type == OPTION_TEXT || d->type == OPTION_CHOICE || d->type == OPTION_BYTES)
            json_string(&t, name, option_value(o, d, number));
        else json_print(&t, name, "%s", option_value(o, d, number));
    }
    json_end(&t);
    text_string(&t, "\n");
    return t;
}

/* What was given for answers, over what the model's generation_config.json says. */
static void options_generate(GenerateOptions *g, const Options *o) {
    for (int i = 0; i < OPTION_COUNT; i++) {
        const Option *d = &option_table[i];
        size_t at = d->offset - AT(generate);
        if (d->offset < AT(generate) || at >= sizeof *g || !is_given(o, i)) continue;
        memcpy((char *)g + at, (const char *)&o->generate + at, d->bytes);
    }
    g->seed = (uint64_t)o->train.seed;
    g->stop = o->stop;
    g->stop_count = (int)arrlen(o->stop);
}

/* An option's default as --help shows it, " [8]"; "" where there is none. */
static const char *default_text(char out[64], const Options *o, const Option *d, const Verb *verb) {
    char number[32];
    out[0] = 0;
    if (!o->origin[d - option_table]) return out;
    if (d->offset == AT(train.output) && verb && !(verb->bit & RUN)) return out;      /* another file or folder */
    const char *value = d->type == OPTION_LIST ? (*(const char **const *)((const char *)o + d->offset))[0]
                                               : option_value(o, d, number);
    snprintf(out, 64, " [%.50s]", value);
    return out;
}
/* The options of one verb; NULL: all. A heading is printed with the first of its options. */
static void print_help(const Verb *verb) {
    Options o;
    char value[64];
    const char *heading = NULL;
    options_default(&o, false);
    printf("train_lora %s - LoRA fine-tuning of Hugging Face language models, in plain C\n\n", VERSION);
    if (!verb) printf("  ./train_lora  %-62s the embedded example: model and dialogues in data/\n", "");
    for (int i = 0; i < VERB_COUNT; i++)
        if (!verb || verb == &verb_table[i])
            printf("  ./train_lora %-8s %-53s %s\n", verb_table[i].name, verb_table[i].usage, verb_table[i].what);
    if (!verb) printf("  ./train_lora help [VERB] | VERB --help | --version\n");
    printf("\nOptions, dashes or underscores, defaults in brackets%s:\n",
           verb && !(verb->bit & RUN) ? "" : " (with --model or --data; the embedded example has its own)");
    for (int i = 0; i < OPTION_COUNT; i++) {
        const Option *d = &option_table[i];
        Text names = TEXT_EMPTY;
        if (d->type == OPTION_HEADING) { heading = d->help; continue; }
        if (verb && !(d->verbs & verb->bit)) continue;
        if (heading) printf("\n%s\n", heading);
        heading = NULL;
        if (d->names) names_add(&names, d);
        printf("  --%-28s %s%s%s%s\n", d->name, d->help, names.at ? ": " : "", names.at ? names.at : "",
               default_text(value, &o, d, verb));
        text_free(&names);
        if (d->offset != AT(chat_template)) continue;
        printf("    %-28s", "");
        for (int k = 0; chat_template_known(k); k++) printf("%s %s", k ? "," : " one of", chat_template_known(k));
        printf("\n");
    }
}

/* ==================================================================================================================
   13  RUNS
   inspect, plan and train: what a run prints and leaves beside its adapter, by hooks.
   ================================================================================================================== */

enum { SAMPLES = 8 };
/* What the hooks of a run share. */
typedef struct Screen {
    Options *o;
    bool plan_only, bar, page;              /* page: the report is open */
    size_t total;                           /* bytes of the memory table */
    FILE *events;                           /* TensorBoard, or NULL */
    Report report;
    Text about;                             /* the run's options */
    const Model *model;                     /* the run's */
    const Adapter *adapter;                 /* the one in training */
    Tokenizer *tokenizer;                   /* for --sample-prompts */
    Prompts samples;
    Generator generator;                    /* their memory, taken before the first step */
    Answer before[SAMPLES], after[SAMPLES]; /* of the base; of the adapter at the last evaluation; the texts are NULL
                                               before the first */
    int64_t answered;                       /* the step of `after` */
    bool stale;                             /* the report could not be written: said once */
} Screen;

static void print_memory(const MemoryTable *memory) {
    char text[32];
    printf("memory\n");
    for (int i = 0; i < memory->count; i++)
        printf("  %-44s %12s\n", memory->row[i].name, bytes_text(text, sizeof text, (double)memory->row[i].bytes));
    printf("  %-44s %12s\n", "total", bytes_text(text, sizeof text, (double)memory->total));
}

/* True: its classes are imbalanced. */
static bool print_data(const char *label, const char *path, const Dataset *d) {
    static const char *const dropped[TASK_COUNT] = {"dropped without a labelled token", "dropped without a token",
                                                    "dropped beyond max-length"};
    const DataStats *s = &d->stats;
    bool pairs = d->task == TASK_REWARD;
    long long examples = pairs ? (long long)d->slots : (long long)s->examples;
    printf("%-8s %s: %lld %s, %lld tokens", label, path, examples, pairs ? "pairs" : "examples", (long long)s->tokens);
    if (!d->target) printf(", %.1f %% in the loss", s->tokens ? 100.0 * (double)s->labelled / (double)s->tokens : 0);
    if (s->truncated) printf(", %lld cut at max-length", (long long)s->truncated);
    if (s->dropped) printf(", %lld %s", (long long)s->dropped, dropped[d->task]);
    if ((long long)d->slots != examples) printf(", packed into %zu", d->slots);
    printf("\n");
    Text labels = TEXT_EMPTY;
    bool imbalanced = inspect_labels(&labels, d);
    if (labels.at) printf("%-8s %s\n", "labels", labels.at);
    text_free(&labels);
    return imbalanced;
}

/* What a file brought and nobody will see: keys that nothing reads, what the chat template takes out of a conversation
   that goes on, replies that --max-length cuts. */
static void print_lost(FILE *to, const char *path, const DataStats *s, const DataOptions *o) {
    char *columns = data_columns_text(&s->unread);
    phase_show(NULL);
    if (columns) fprintf(to, "columns not used: %s; %s\n", columns, path);
    free(columns);
    const struct { int64_t count; const char *what; } out[3] = {
        {s->thoughts, "thought"}, {s->systems, "system message"}, {s->unsaid, "whole message"}};
    for (int i = 0; i < 3; i++)
        if (out[i].count)
            fprintf(to, "note: the chat template leaves out %lld %s%s; %s%s\n", (long long)out[i].count, out[i].what,
                    out[i].count == 1 ? "" : "s", path, o->split_turns || i == 2 ? "" : "; see --split-turns");
    /* Options, how many rows they reach, why it is none, what the others are. */
    const char *no_chat = "no row is a chat";
    char unknown[96];
    if (s->chat == CHAT_UNKNOWN) snprintf(unknown, sizeof unknown, "the chat template does not look at it");
    else snprintf(unknown, sizeof unknown, "it is unknown to the chat template %s", chat_template_name(s->chat));
    bool tokens = o->task == TASK_CAUSAL_LM, pairs = o->task == TASK_REWARD;
    const char *whole = "a row with a label is one example", *no_loss = "the loss is on the labels";
    int64_t chats = s->uses.chats, dressed = s->uses.dressed, unlabelled = tokens ? s->rows - s->uses.labelled : 0;
    const struct { bool given; const char *name; int64_t rows; const char *none, *others; } told[] = {
        {o->prompt_template != NULL, "prompt-template", dressed, chats ? "the rows are chats" : "no row is a prompt",
         "chats or have no prompt"},
        {o->chat_template != CHAT_NONE || o->chat_file, "chat-template", chats, no_chat, NULL},
        {o->split_turns, "split-turns", tokens ? chats : 0, tokens ? no_chat : whole, NULL},
        {o->truncate_prompt && pairs, "truncate-prompt", 0, "pairs are not cut", NULL},
        {o->problem_type && o->task != TASK_CLASSIFICATION, "problem-type", 0, "it is --task classification's", NULL},
        {o->enable_thinking >= 0, "enable-thinking", s->chat_thinks ? chats : 0, chats ? unknown : no_chat, NULL},
        {o->template_date != NULL, "template-date", s->chat_dates ? chats : 0, chats ? unknown : no_chat, NULL},
        {o->loss_on != LOSS_DEFAULT, "loss-on", unlabelled, tokens ? "the rows have labels" : no_loss,
         "tokens with labels"}};
    for (size_t i = 0; i < sizeof told / sizeof *told; i++) {
        if (told[i].given && !told[i].rows)
            fprintf(to, "note: --%s changes nothing: %s; %s\n", told[i].name, told[i].none, path);
        else if (told[i].given && told[i].others && told[i].rows < s->rows)
            fprintf(to, "note: --%s changes nothing in %lld of %lld rows, which are %s; %s\n", told[i].name,
                    (long long)(s->rows - told[i].rows), (long long)s->rows, told[i].others, path);
    }
    if (s->rewritten && !o->split_turns)
        fprintf(to, "warning: %lld answers stand behind another text than the prompt that asks for them, as the chat "
                    "template rewrites what went before; %s; --split-turns learns each behind its own prompt\n",
                (long long)s->rewritten, path);
    if (s->dated)
        fprintf(to, "note: %lld chats say that today is 26 Jul 2024, where transformers writes the day of the run; %s; "
                    "--template-date says another\n", (long long)s->dated, path);
    if (pairs && s->dropped)
        fprintf(to, "warning: %lld of %lld pairs are left out, longer than --max-length %d; %s; raise it\n",
                (long long)s->dropped, (long long)s->rows, o->max_length, path);
    if (s->same_pairs)
        fprintf(to, "warning: in %lld pairs chosen and rejected are the same; %s; nothing is learned of them\n",
                (long long)s->same_pairs, path);
    if (s->truncated && !tokens)
        fprintf(to, "warning: %lld of %lld rows are cut at --max-length %d, at their %s; %s; raise it%s\n",
                (long long)s->truncated, (long long)s->rows, o->max_length, o->truncate_prompt ? "beginning" : "end",
                path, o->truncate_prompt ? "" : ", or let --truncate-prompt cut the beginning instead");
    if (!s->truncated || !tokens) return;
    fprintf(to, "warning: %lld %sof %lld rows are cut at --max-length %d, %lld of them in their last reply, "
                "%lld before it; %s; raise it",
            (long long)s->truncated, o->split_turns ? "turns " : "", (long long)s->rows, o->max_length,
            (long long)(s->cut_replies - s->lost_replies), (long long)s->lost_replies, path);
    fprintf(to, s->cut_replies && !o->truncate_prompt ?
            ", or let --truncate-prompt cut the prompt's beginning instead\n" : "\n");
}

static void on_phase(void *user, const char *doing) {
    (void)user;
    phase_show(doing);
}

static void clear_bar(const Screen *s) {
    if (s->bar) printf("\r\033[K");
    phase_show(NULL);
}
static void on_warning(void *user, const char *text) {
    Screen *screen = (Screen *)user;
    clear_bar(screen);
    complain("warning", text);
    if (screen->page) report_warn(&screen->report, text);
}
/* Something beside the run went wrong: it goes on. */
static void warn(Screen *screen, const char *what, const Error *err) {
    char text[sizeof(Error) + 128];
    snprintf(text, sizeof text, "%s: %s; training goes on", what, err->text);
    on_warning(screen, text);
}

/* --sample-prompts: answers of the base, once, and of the adapter as it is. */
static bool go_on(void *user, size_t prompt, const char *text, size_t bytes) {
    (void)user; (void)prompt; (void)text; (void)bytes;
    return !interrupted;
}
enum { SAMPLE_TOKENS = 64 };                /* of an answer */
static bool samples_plan(void *user, const Model *m, const Adapter *a, bool allocate, MemoryTable *memory, Error *err) {
    Screen *screen = (Screen *)user;
    int longest = 0;
    for (size_t i = 0; i < screen->samples.count; i++)
        if (screen->samples.list[i].count > longest) longest = screen->samples.list[i].count;
    if (!longest) return true;
    bool ok = generator_open(&screen->generator, m, a, (int)screen->samples.count, longest, SAMPLE_TOKENS, allocate,
                             err);
    memory_add(memory, "answers to the sample prompts", screen->generator.bytes);
    return ok;
}
static void samples_answer(Screen *screen, const LogRecord *r) {
    Error err;
    GenerateOptions o;
    memset(&o, 0, sizeof o);
    o.max_new_tokens = SAMPLE_TOKENS; o.batch_size = SAMPLES; o.top_p = o.repetition_penalty = 1;
    size_t count = screen->samples.count;
    const Prompt *list = screen->samples.list;
    phase_of("answering %zu sample prompt%s", count, count == 1 ? "" : "s");
    bool ok = screen->before[0].text || model_generate(screen->model, NULL, &screen->generator, screen->tokenizer, list,
                                                       count, &o, screen->before, go_on, NULL, &err);
    answers_free(screen->after, count);
    screen->answered = r->step;
    ok = ok && model_generate(screen->model, screen->adapter, &screen->generator, screen->tokenizer, list, count, &o,
                              screen->after, go_on, NULL, &err);
    for (size_t i = 0; i < count && ok && !interrupted; i++)
        report_sample(&screen->report, r->step, list[i].dialogue, screen->before[i].text, screen->after[i].text);
    if (!ok) warn(screen, "no sample answers", &err);
}
static bool samples_open(Screen *screen, const TrainOptions *o, Error *err) {
    const char *path = screen->o->sample_prompts;
    if (!path) return true;
    ModelConfig config;
    if (!config_open(&config, o->model, err) || !model_tokenizer(&screen->tokenizer, o->model, &config, err) ||
        !prompts_open(&screen->samples, path, screen->tokenizer, &o->data_options, err))
        return false;
    prompts_cut(&screen->samples, SAMPLES);
    return true;
}
static void samples_close(Screen *screen) {
    answers_free(screen->before, screen->samples.count);
    answers_free(screen->after, screen->samples.count);
    generator_close(&screen->generator);
    prompts_free(&screen->samples);
    if (screen->tokenizer) tokenizer_free(screen->tokenizer);
}
static void print_sample(const char *label, const char *text) {
    printf("%-14s ", label);
    print_foreign(text, strlen(text));
    printf("\n");
}
/* The last user's words of each dialogue, what the base said to them, and the adapter at its last evaluation. */
static void samples_print(const Screen *screen) {
    char after[32];
    snprintf(after, sizeof after, "step %lld", (long long)screen->answered);
    for (size_t i = 0; i < screen->samples.count && screen->after[i].text; i++) {
        JsonDoc doc;
        const char *dialogue = screen->samples.list[i].dialogue;
        if (!json_parse(&doc, dialogue, strlen(dialogue), "dialogue", 1, NULL)) continue;
        const Json *last = doc.root->child;
        while (last && last->next) last = last->next;
        if (!i) printf("\n");
        print_sample("asked", last ? json_get(last, "content")->str : "");
        print_sample("base", screen->before[i].text);
        if (screen->answered) print_sample(after, screen->after[i].text);
        json_free(&doc);
    }
}

/* What is trained: the base model and the adapter on it. */
static void print_model(const Model *m, const Adapter *a, const char *folder) {
    const ModelConfig *c = &m->config;
    const LoraConfig *l = &a->config;
    size_t parameters = model_parameters(m);
    printf("%-8s %s: %s, %.1f M parameters in %s, %d layers, %d wide\n", "model", folder, c->model_type,
           (double)parameters * 1e-6, weight_format[m->head.format].name, c->num_hidden_layers, c->hidden_size);
    if (!adapter_has_lora(l)) {
        Text trained = TEXT_EMPTY;
        train_text(&trained, l->train, l->last_layers);
        printf("%-8s %s: %.2f M of them (%.2f %%)\n", "trained", trained.at, (double)a->param_count * 1e-6,
               100.0 * (double)a->param_count / (double)parameters);
        text_free(&trained);
        return;
    }
    printf("%-8s r %d, alpha %g, dropout %g%s%s%s on", "adapter", l->r, (double)l->lora_alpha, (double)l->lora_dropout,
           l->use_rslora ? ", rsLoRA" : "", l->init ? ", " : "", l->init ? lora_init_name[l->init] : "");
    for (int j = 0; j < MODULE_COUNT; j++)
        if (l->target[j]) printf(" %.*s", (int)strlen(module_name[j]) - 5, module_name[j]);
    printf(": %.2f M trainable parameters (%.2f %%)\n", (double)a->param_count * 1e-6,
           100.0 * (double)a->param_count / (double)(parameters + a->param_count));
}
/* On what, and what of the files is left out. */
static void print_files(Screen *screen, const TrainOptions *o, const Dataset *train, const Dataset *eval) {
    char name[PATH_MAX + 32];
    snprintf(name, sizeof name, o->more_data_count ? "%s and %d more" : "%s", o->data, o->more_data_count);
    if (train->rebuilt || (eval && eval->rebuilt))
        on_warning(screen, "a file of the token cache was damaged, and is written again");
    bool imbalanced = o->data && print_data("data", name, train);
    if (eval) print_data("eval", o->eval_data ? o->eval_data : "held out of it", eval);
    fflush(stdout);
    if (o->data) print_lost(stderr, name, &train->stats, &o->data_options);
    if (o->eval_data) print_lost(stderr, o->eval_data, &eval->stats, &o->data_options);
    if (imbalanced && !o->class_weights)
        fprintf(stderr, "hint: every row counts alike, the larger class outweighs the smaller; --class-weights "
                        "balanced weighs classes alike\n");
}
/* How, and in how much memory. */
static void print_plan(const TrainOptions *o, const MemoryTable *memory, int64_t total_steps) {
    int accumulation = o->gradient_accumulation_steps, batch = o->per_device_train_batch_size;
    char of_others[64] = "";
    if (o->lora_plus_ratio > 0)
        snprintf(of_others, sizeof of_others, " (of B %g)", o->lora_plus_ratio * o->learning_rate);
    if (o->data)
        printf("%-8s %lld steps of %d x %d examples, learning rate %g %s%s, seed %lld\n", "run", (long long)total_steps,
               accumulation, batch, o->learning_rate, schedule_name[o->lr_scheduler_type], of_others,
               (long long)o->seed);
    else printf("%-8s %d x %d examples of %d tokens\n", "run", accumulation, batch, o->data_options.max_length);
    if (o->fit)
        printf("%-8s %d x %d examples, --recompute %s\n", "fit", accumulation, batch, recompute_name[o->recompute]);
    print_memory(memory);
    fflush(stdout);
}
/* Opens what is written beside the adapter: run.json's text, report.html, TensorBoard's events. */
static bool outputs_open(Screen *screen, const Model *m, Adapter *a, const TrainOptions *o, const Dataset *train,
                         const Dataset *eval, const MemoryTable *memory, int64_t total_steps, Error *err) {
    char model[PATH_MAX + 128], adapter[128];
    Options own = *screen->o;
    own.train = *o;                         /* with what --fit chose */
    const char **names = NULL;              /* and what the labels turned out to be */
    for (int k = 0; k < train->label_count; k++) arrput(names, train->label_names[k]);
    own.train.data_options.label_names = (char **)(uintptr_t)names;
    own.train.data_options.problem_type = train->problem;
    own.origin[option_find("label-names") - option_table] = names ? from_default : NULL;
    screen->about = options_text(&own);
    arrfree(names);
    a->about = screen->about.at;            /* run.json belongs to the adapter and is written with it */
    snprintf(model, sizeof model, "%s (%s, %.4g M parameters in %s)", o->model, m->config.model_type,
             (double)model_parameters(m) * 1e-6, weight_format[m->head.format].name);
    Text trained = TEXT_EMPTY;
    train_text(&trained, a->config.train, a->config.last_layers);
    if (!adapter_has_lora(&a->config))
        snprintf(adapter, sizeof adapter, "%.3g M parameters, %s", (double)a->param_count * 1e-6, trained.at);
    else snprintf(adapter, sizeof adapter, "%.3g M parameters, r %d, alpha %g%s%s", (double)a->param_count * 1e-6,
                  a->config.r, (double)a->config.lora_alpha, strcmp(trained.at, "lora") ? ", " : "",
                  strcmp(trained.at, "lora") ? trained.at : "");
    text_free(&trained);
    report_begin(&screen->report, o, train, eval, memory, total_steps, model, adapter, screen->about.at);
    screen->page = true;
    if (!report_write(&screen->report, "running", NULL, NULL, err)) return false;
    return screen->o->report_to != REPORT_TENSORBOARD || (screen->events = events_open(o->output, err));
}
static bool on_begin(void *user, const Model *m, Adapter *a, const TrainOptions *o, const Dataset *train,
                     const Dataset *eval, const MemoryTable *memory, int64_t total_steps, Error *err) {
    Screen *screen = (Screen *)user;
    clear_bar(screen);
    print_model(m, a, o->model);
    print_files(screen, o, train, eval);
    print_plan(o, memory, total_steps);
    screen->model = m;
    screen->adapter = a;
    screen->total = memory->total;
    if (screen->plan_only) return true;
    phase_show("training");
    return outputs_open(screen, m, a, o, train, eval, memory, total_steps, err);
}

static void on_step(void *user, const LogRecord *r) {
    const Screen *screen = (const Screen *)user;
    if (!screen->bar) return;
    struct winsize w;
    int columns = ioctl(1, TIOCGWINSZ, &w) == 0 && w.ws_col > 0 ? w.ws_col : 80;
    int width = columns > 110 ? 30 : columns > 90 ? 16 : 0;
    int done = (int)((double)width * (double)r->step / (double)r->total_steps);
    char bar[40] = "", eta[32];
    if (width) {
        memset(bar, '.', (size_t)width + 1);
        memset(bar + 1, '#', (size_t)done);
        bar[0] = '[';
        snprintf(bar + width + 1, 3, "] ");
    }
    Text line = TEXT_EMPTY;
    text_print(&line, "%s%lld/%lld  loss %.4f  lr %.2e  %.0f tokens/s, %.0f %% of peak  ETA %s", bar,
               (long long)r->step, (long long)r->total_steps, r->loss, r->learning_rate, r->tokens_per_second,
               100 * r->ceiling_share, duration_text(eta, sizeof eta, r->eta));
    printf("\r\033[K%.*s", columns - 1, line.at);
    fflush(stdout);
    text_free(&line);
}

static void on_log(void *user, const LogRecord *r) {
    Screen *screen = (Screen *)user;
    char eta[32];
    if (screen->events) events_log(screen->events, r);
    report_log(&screen->report, r);
    Error err;
    if (r->eval && screen->samples.count) samples_answer(screen, r);
    if (!report_write(&screen->report, "running", NULL, NULL, &err) && !screen->stale) {
        screen->stale = true;
        warn(screen, "report.html stays as it was", &err);
    }
    clear_bar(screen);
    Text metrics = TEXT_EMPTY;
    log_record_text(&metrics, r);
    if (r->eval) printf("eval  step %lld: %s (%.1f s)\n", (long long)r->step, metrics.at, r->seconds);
    else printf("step %5lld/%lld  epoch %.2f  %s  %.0f tokens/s  ETA %s\n", (long long)r->step,
                (long long)r->total_steps, r->epoch, metrics.at, r->tokens_per_second,
                duration_text(eta, sizeof eta, r->eta));
    text_free(&metrics);
    fflush(stdout);
    if (r->eval && r->step < r->total_steps) phase_show("training");
}
/* What an evaluation says of every class goes to the page. */
static void on_evaluation(void *user, const EvalResult *result, const Dataset *eval) {
    report_classes(&((Screen *)user)->report, result, eval);
}
static bool on_stop(void *user) { (void)user; return interrupted != 0; }

static int verb_inspect(Options *o) {
    Error err;
    Dataset d;
    DataOptions options = o->train.data_options;
    options.max_rows = o->train.max_train_samples;
    Tokenizer *t;
    ModelConfig config;
    config.vocab_size = INT_MAX;            /* a folder with a tokenizer alone can be looked at too */
    if (file_exists(o->train.model, "config.json") && !config_open(&config, o->train.model, &err)) return failed(&err);
    if (!model_tokenizer(&t, o->train.model, &config, &err) ||
        !dataset_open_files(&d, o->data, (int)arrlen(o->data), t, &options, &err) ||
        !train_ids_check(&d, config.vocab_size, o->train.data, &err)) return failed(&err);
    inspect_print(t, &d, o->examples, isatty(1) && !getenv("NO_COLOR"));
    print_lost(stdout, o->train.data, &d.stats, &options);
    dataset_free(&d);
    tokenizer_free(t);
    return 0;
}

/* Does the plan fit? */
static int plan_verdict(const Options *o, size_t total) {
    Error err;
    char need[32], have[32];
    size_t limit = o->train.device_memory ? o->train.device_memory : backend_memory();
    bytes_text(need, sizeof need, (double)total);
    bytes_text(have, sizeof have, (double)limit);
    if (limit && total > limit) {
        fail(&err, "the run does not fit: %s needed, %s there; memory; add --fit, lower --max-length, or use a "
                   "smaller model", need, have);
        return failed(&err);
    }
    if (limit) printf("fits     in %s\n", have);
    return 0;
}

/* Does the run write a whole model, not an adapter? What --init-adapter begins with decides for itself. */
static bool run_leaves_model(const Options *o) {
    return o->train.init_adapter ? file_exists(o->train.output, "config.json")
                                 : !(o->train.lora.train & TRAIN_LORA);
}
/* Whose adapter lies in the output folder, and where the best one is where that is another. */
static void print_adapter(const Options *o, const TrainResult *r) {
    const TrainOptions *t = &o->train;
    const char *metric = t->metric_for_best_model ? t->metric_for_best_model : "loss";
    char best[PATH_MAX], name[64];
    bool saved = t->load_best_model_at_end && r->best_step && !r->stopped, whole = run_leaves_model(o);
    const char *what = whole ? "model" : "adapter";
    snprintf(name, sizeof name, "checkpoint-%lld", (long long)r->best_step);
    path_in(best, sizeof best, t->output, name);
    if (saved)
        printf("best     step %lld, %s %.4f: its %s is saved\n", (long long)r->best_step, metric, r->best_metric, what);
    if (r->checkpoint[0]) printf("checkpoint %s\n", r->checkpoint);
    if (!saved && r->best_step && r->best_step != r->steps && (t->load_best_model_at_end || r->stopped))
        printf("best     step %lld, %s %.4f: %s%s%s%s\n", (long long)r->best_step, metric, r->best_metric,
               access(best, R_OK) ? "not kept" : "its ", access(best, R_OK) ? "" : what,
               access(best, R_OK) ? "" : " is in ", access(best, R_OK) ? "" : best);
    printf("%-8s %s, a %s folder", what, t->output, whole ? "Hugging Face" : "PEFT");
    if (r->stopped) printf(" with the %s of the last step, %lld", what, (long long)r->steps);
    printf("; how the run went is in %s/report.html\n", t->output);
}

/* What to do with what the run has left: talk to it, or, where it has a head instead of words, measure it. */
static Text run_use_command(const Options *o) {
    const char *model = o->train.model, *out = o->train.output, *task = task_name[o->train.data_options.task];
    const char *rows = o->train.eval_data ? o->train.eval_data : o->train.data;
    bool whole = run_leaves_model(o);
    if (o->train.data_options.task == TASK_CAUSAL_LM)
        return whole ? command_text(o, "generate", "--model", out, "--chat", NULL)
                     : command_text(o, "generate", "--model", model, "--adapter", out, "--chat", NULL);
    return whole ? command_text(o, "evaluate", "--model", out, "--task", task, "--data", rows, NULL)
                 : command_text(o, "evaluate", "--model", model, "--adapter", out, "--data", rows, NULL);
}

/* The last lines of a run: what came of it, where it is and how to use it. */
static void print_result(const Options *o, const TrainResult *r) {
    char time[32];
    const char *how = r->stopped ? "stopped" : r->early_stopped ? "stopped early, no better evaluation," : "done";
    if (r->resumed_from) printf("resumed at step %lld; ", (long long)r->resumed_from);
    if (r->skipped) printf("%lld steps left out as not finite; ", (long long)r->skipped);
    printf("%s after %lld steps in %s; train loss %.4f", how, (long long)r->steps,
           duration_text(time, sizeof time, r->seconds), r->train_loss);
    if (isfinite(r->first_eval_loss) && o->train.eval_on_start && !r->stopped)
        printf("; evaluation loss %.4f -> %.4f (%+.0f %%)", r->first_eval_loss, r->last_eval_loss,
               100 * (r->last_eval_loss / r->first_eval_loss - 1));
    printf("\n");
    print_adapter(o, r);
    if (r->checkpoint[0] && r->stopped && o->command) {                 /* a sweep says by itself how it goes on */
        Text output = TEXT_EMPTY;
        command_add(&output, o->train.output);
        printf("to go on %s --resume %s\n", o->command, output.at);
        text_free(&output);
    }
    print_command("use it", run_use_command(o));
    fflush(stdout);
}

/* A command for the page to copy. */
static void command_json(Text *t, const char *what, Text command) {
    json_object(t, NULL, JSON_LINE);
    json_string(t, "what", what);
    json_string(t, "command", command.at);
    json_end(t);
    text_free(&command);
}
/* The page's last state: how to go on, which evaluation was the best. */
static bool page_finish(const Options *o, Report *report, const char *status, const TrainResult *r, const Error *ended,
                        Error *err) {
    const char *model = o->train.model, *adapter = o->train.output, *metric = o->train.metric_for_best_model;
    char merged[PATH_MAX + 16];
    Text more = TEXT_EMPTY;
    snprintf(merged, sizeof merged, "%s-merged", adapter);
    json_list(&more, "commands", JSON_LINE);
    command_json(&more, o->train.data_options.task == TASK_CAUSAL_LM ? "talk to it" : "measure it", run_use_command(o));
    if (!run_leaves_model(o))
        command_json(&more, "put it into the base model",
                     command_text(o, "merge", "--model", model, "--adapter", adapter, "--output", merged, NULL));
    json_end(&more);
    if (r->best_step) {
        json_object(&more, "best", JSON_LINE);
        json_print(&more, "step", "%lld", (long long)r->best_step);
        json_print(&more, "value", "%.9g", r->best_metric);
        json_string(&more, "metric", metric ? metric : "eval_loss");
        json_end(&more);
    }
    bool ok = report_write(report, status, ended ? ended->text : NULL, &more, err);
    text_free(&more);
    return ok;
}
static void finish_variable(const char *name, const char *format, double value, bool known) {
    char number[64] = "";
    if (known) snprintf(number, sizeof number, format, value);
    setenv(name, number, 1);
}
/* --on-finish: a command of the user's, told by its environment how the run went. */
static void finish_command(const Options *o, const char *status, const TrainResult *r, bool ok, const Error *ended) {
    fflush(stdout);
    setenv("TRAIN_LORA_STATUS", status, 1);
    setenv("TRAIN_LORA_OUTPUT", o->train.output, 1);
    setenv("TRAIN_LORA_MESSAGE", ended ? ended->text : "", 1);
    finish_variable("TRAIN_LORA_STEPS", "%.0f", (double)r->steps, true);
    finish_variable("TRAIN_LORA_TRAIN_LOSS", "%.6f", r->train_loss, ok);
    finish_variable("TRAIN_LORA_EVAL_LOSS", "%.6f", r->last_eval_loss, ok && isfinite(r->last_eval_loss));
    int code = system(o->on_finish);
    if (WIFEXITED(code)) code = WEXITSTATUS(code);
    if (code) complain_of("warning", "--on-finish: '%s' ended with status %d", o->on_finish, code);
}
/* Closes what lies beside the run and calls --on-finish. ended: what ended it, or NULL. */
static void run_finish(const Options *o, Screen *screen, const TrainResult *r, bool ok, const Error *ended) {
    const char *status = ok ? r->stopped ? "interrupted" : "finished" : "failed";
    Error err;
    if (screen->events) fclose(screen->events);
    if (screen->page && !page_finish(o, &screen->report, status, r, ended, &err) && ok)
        complain_of("warning", "report.html stays as it was: %s", err.text);
    if (screen->page) report_end(&screen->report);
    if (o->on_finish) finish_command(o, status, r, ok, ended);
}

/* One run, or its plan; model: NULL, or the base that a sweep keeps open. */
static int run_train(Options *o, const Model *model, TrainResult *result) {
    Error err;
    Screen screen;
    memset(&screen, 0, sizeof screen);
    screen.o = o;
    bool plan_only = screen.plan_only = o->verb->bit == PLAN;
    if (plan_only && option_given(o, "model") && !option_given(o, "data"))
        o->train.data = o->train.eval_data = NULL;         /* full length, then */
    screen.bar = isatty(1);
    TrainHooks hooks = {&screen, on_begin, on_step, on_log, on_warning, on_stop, model, plan_only, on_phase,
                        samples_plan, on_evaluation};
    if (!model) print_version();
    if (o->train.init_adapter) {
        Text other = adapter_differs(o, o->train.init_adapter, true);
        if (other.at)
            complain_of("note", "%s was trained with %s; --init-adapter", o->train.init_adapter, other.at);
        text_free(&other);
    }
    catch_signals();
    memset(result, 0, sizeof *result);      /* the end of the run reads it, also where train_run was never reached */
    bool ok = samples_open(&screen, &o->train, &err) && train_run(&o->train, &hooks, result, &err);
    clear_bar(&screen);
    if (ok && !plan_only) { print_result(o, result); samples_print(&screen); }
    if (!plan_only) run_finish(o, &screen, result, ok, ok ? NULL : &err);
    samples_close(&screen);
    if (plan_only) return ok ? plan_verdict(o, screen.total) : failed(&err);
    text_free(&screen.about);
    if (!ok) return failed(&err);
    return result->stopped ? 128 + interrupted : 0;
}

/* ==================================================================================================================
   14  SWEEP
   Every combination of the values of --sweep is a run of its own, in a folder of its own, over one base model that
   stays open. OUTPUT/sweep.json keeps what is done, so that an interrupted sweep goes on where it was. A run that
   fails on its way (a learning rate that diverges) costs itself alone; one that cannot even begin ends the sweep.
   ================================================================================================================== */

/* A column of the table: its name in sweep.json and sweep.csv; on the terminal its head (NULL: not there) and format
   (NULL: a duration). A column that is called like a metric has that of the last evaluation, or else of the last
   training record, where it is measured; on the terminal one that no run has is left out. */
typedef struct SweepColumn { const char *name, *head, *format; } SweepColumn;
enum { SWEEP_EVAL, SWEEP_TRAIN, SWEEP_ACCURACY, SWEEP_ENTROPY, SWEEP_SAMPLES, SWEEP_RATE, SWEEP_FLOS, SWEEP_BEST,
       SWEEP_STEPS, SWEEP_SECONDS, SWEEP_CLASS_ACCURACY, SWEEP_MACRO_F1, SWEEP_NUMBERS };
static const SweepColumn sweep_column[SWEEP_NUMBERS] = {
    {"eval_loss", "eval loss", "%.4f"}, {"train_loss", "train loss", "%.4f"},
    {"mean_token_accuracy", "accuracy", "%.4f"}, {"entropy", "entropy", "%.4f"},
    {"train_samples_per_second", "samples/s", "%.2f"}, {"train_steps_per_second", "steps/s", "%.2f"},
    {"total_flos", "total_flos", "%.2e"}, {"best_metric", NULL, NULL}, {"steps", "steps", "%.0f"},
    {"seconds", "time", NULL}, {"accuracy", "accuracy", "%.4f"}, {"macro_f1", "macro f1", "%.4f"}};
typedef struct SweepRun {
    char *name, **value;                    /* of its folder; [axes] as typed */
    uint64_t options;                       /* a hash: the same run? */
    bool done, failed;
    double number[SWEEP_NUMBERS];           /* NAN: there is none */
} SweepRun;

/* "name=a,b,c", or "name=q,v;q,k,v,o;all-linear" where a value has commas itself. */
typedef struct SweepAxis { const Option *option; char **value; } SweepAxis;      /* value: stb_ds array */
static SweepAxis sweep_axis(const Options *o, const char *word) {
    const char *equals = strchr(word, '=');
    SweepAxis axis = {NULL, NULL};
    char name[64];
    if (!equals || !equals[1]) usage_error("bad --sweep '%s'; command line; write it as learning_rate=5e-5,1e-4", word);
    option_name(name, word, strcspn(word, "="));
    axis.option = option_or_die(name, o->verb, "--sweep", false);
    if (axis.option->verbs & FIXED)
        usage_error("--%s cannot vary within a sweep; --sweep; start one run after the other instead", name);
    const char *between = strchr(equals, ';') ? ";" : ",";
    for (const char *c = equals + 1; ; c += strcspn(c, between) + 1) {
        size_t n = strcspn(c, between);
        if (!n) usage_error("an empty value in '%s'; --sweep; write it as %s=A%sB", word, name, between);
        char *value = text_copy(c);
        value[n] = 0;
        arrput(axis.value, value);
        if (!c[n]) break;
    }
    return axis;
}

/* The options of combination `number` (the last axis varies fastest), and its name, which is a folder's:
   "learning_rate-1e-4_warmup_steps-490"; a long one ends in a hash. */
static Options sweep_options(const Options *o, const SweepAxis *axes, int number, SweepRun *run) {
    enum { LONGEST = 200 };
    Options own = *o;
    Text name = TEXT_EMPTY;
    char key[64];
    option_unset(&own, option_find("sweep"));
    own.command = NULL;
    memset(run, 0, sizeof *run);
    run->value = (char **)must_alloc((size_t)arrlen(axes) * sizeof *run->value);
    for (int i = 0; i < SWEEP_NUMBERS; i++) run->number[i] = NAN;
    for (ptrdiff_t i = arrlen(axes) - 1; i >= 0; i--) {
        run->value[i] = axes[i].value[number % (int)arrlen(axes[i].value)];
        number /= (int)arrlen(axes[i].value);
    }
    for (ptrdiff_t i = 0; i < arrlen(axes); i++) {
        const Option *d = axes[i].option;
        if (d->type == OPTION_LIST) *(const char ***)((char *)&own + d->offset) = NULL;    /* not the others' list */
        option_set(&own, d, run->value[i], "--sweep");
        option_key(key, d);
        text_print(&name, "%s%s-%s", i ? "_" : "", key, run->value[i]);
    }
    for (char *c = name.at; *c; c++) if (*c == '/' || *c == ' ') *c = '.';
    if (name.length > LONGEST) {
        uint64_t rest = hash_bytes(HASH_START, name.at, name.length);
        text_cut(&name, LONGEST - 17);
        text_print(&name, "-%016llx", (unsigned long long)rest);
    }
    run->name = text_copy(name.at);
    text_free(&name);
    char *folder = (char *)must_alloc(PATH_MAX);
    path_in(folder, PATH_MAX, o->train.output, run->name);
    own.train.output = folder;
    options_resolve(&own);
    Text text = options_text(&own);
    run->options = hash_bytes(HASH_START, text.at, text.length);
    text_free(&text);
    return own;
}

/* What an earlier, interrupted sweep has done. */
static void sweep_read(SweepRun *runs, int count, const char *path) {
    JsonDoc doc;
    if (access(path, R_OK) || !json_read(&doc, path, NULL)) return;
    const Json *list = json_get(doc.root, "runs");
    for (const Json *j = list ? list->child : NULL; j; j = j->next) {
        const Json *name = json_get(j, "name"), *options = json_get(j, "options");
        if (!name || name->type != JSON_STRING || !options || options->type != JSON_STRING) continue;
        for (int i = 0; i < count; i++) {
            if (strcmp(runs[i].name, name->str) || runs[i].options != strtoull(options->str, NULL, 16)) continue;
            const Json *train = json_get(j, "train_loss");
            runs[i].done = train && train->type == JSON_NUMBER;
            for (int k = 0; k < SWEEP_NUMBERS; k++) {
                const Json *number = json_get(j, sweep_column[k].name);
                runs[i].number[k] = number && number->type == JSON_NUMBER ? number->number : NAN;
            }
        }
    }
    json_free(&doc);
}

/* The lowest evaluation loss first; without evaluation the lowest training loss; what is not done last. */
static int sweep_compare(const void *a, const void *b) {
    const SweepRun *x = (const SweepRun *)a, *y = (const SweepRun *)b;
    if (x->done != y->done) return x->done ? -1 : 1;
    double p = isfinite(x->number[SWEEP_EVAL]) ? x->number[SWEEP_EVAL] : x->number[SWEEP_TRAIN];
    double q = isfinite(y->number[SWEEP_EVAL]) ? y->number[SWEEP_EVAL] : y->number[SWEEP_TRAIN];
    return p < q ? -1 : p > q;
}

static void sweep_json(Text *t, const SweepRun *runs, int count, const SweepAxis *axes, const char *folder) {
    char updated[32];
    time_text(updated, sizeof updated);
    json_object(t, NULL, JSON_LINE);
    json_list(t, "axes", JSON_LINE);
    for (ptrdiff_t i = 0; i < arrlen(axes); i++) json_string(t, NULL, axes[i].option->name);
    json_end(t);
    json_list(t, "runs", JSON_LINES);
    for (const SweepRun *r = runs; r < runs + count; r++) {
        if (!r->done) continue;
        json_object(t, NULL, JSON_LINE);
        json_string(t, "name", r->name);
        json_list(t, "values", JSON_LINE);
        for (ptrdiff_t a = 0; a < arrlen(axes); a++) json_string(t, NULL, r->value[a]);
        json_end(t);
        for (int k = 0; k < SWEEP_NUMBERS; k++)
            if (isfinite(r->number[k])) json_print(t, sweep_column[k].name, "%.9g", r->number[k]);
            else json_string(t, sweep_column[k].name, NULL);
        json_print(t, "options", "\"%016llx\"", (unsigned long long)r->options);
        json_end(t);
    }
    json_end(t);
    json_print(t, "count", "%d", count);
    json_string(t, "title", folder);
    json_string(t, "updated", updated);
    json_end(t);
    text_string(t, "\n");
}
static void sweep_csv(Text *t, const SweepRun *runs, int count, const SweepAxis *axes) {
    text_print(t, "name");
    for (ptrdiff_t i = 0; i < arrlen(axes); i++) text_print(t, ",%s", axes[i].option->name);
    for (int k = 0; k < SWEEP_NUMBERS; k++) text_print(t, ",%s", sweep_column[k].name);
    text_print(t, "\n");
    for (const SweepRun *r = runs; r < runs + count; r++) {
        if (!r->done) continue;
        csv_add(t, r->name);
        for (ptrdiff_t a = 0; a < arrlen(axes); a++) {
            text_print(t, ",");
            csv_add(t, r->value[a]);
        }
        for (int k = 0; k < SWEEP_NUMBERS; k++) {
            text_print(t, ",");
            if (isfinite(r->number[k])) text_print(t, "%.9g", r->number[k]);
        }
        text_print(t, "\n");
    }
}
/* sweep.json (what is done: how a sweep goes on), sweep.csv and sweep.html: a column an axis, then the numbers. */
static bool sweep_write(const SweepRun *runs, int count, const SweepAxis *axes, const char *folder, Error *err) {
    Text json = TEXT_EMPTY, csv = TEXT_EMPTY;
    char path[PATH_MAX];
    SweepRun *sorted = (SweepRun *)must_alloc((size_t)count * sizeof *sorted);
    memcpy(sorted, runs, (size_t)count * sizeof *sorted);
    qsort(sorted, (size_t)count, sizeof *sorted, sweep_compare);
    sweep_json(&json, sorted, count, axes, folder);
    sweep_csv(&csv, sorted, count, axes);
    free(sorted);
    path_in(path, sizeof path, folder, "sweep.html");
    bool page = page_write(path, sweep_page, &json, err);
    bool ok = text_write(&json, folder, "sweep.json", page ? err : NULL);
    return text_write(&csv, folder, "sweep.csv", page && ok ? err : NULL) && page && ok;
}

static void sweep_print(const SweepRun *runs, int count, const SweepAxis *axes) {
    char cell[64];
    const char *head[SWEEP_NUMBERS];        /* NULL: the column is not shown */
    for (int k = 0; k < SWEEP_NUMBERS; k++) {
        bool measured = k == SWEEP_EVAL || !metric_find(sweep_column[k].name);
        for (int i = 0; i < count; i++) measured |= isfinite(runs[i].number[k]) != 0;
        head[k] = measured ? sweep_column[k].head : NULL;
    }
    printf("\n");
    for (int i = -1; i < count; i++) {
        for (ptrdiff_t a = 0; a < arrlen(axes); a++) {                 /* a column is as wide as its widest value */
            size_t width = strlen(axes[a].option->name);
            for (ptrdiff_t v = 0; v < arrlen(axes[a].value); v++)
                if (strlen(axes[a].value[v]) > width) width = strlen(axes[a].value[v]);
            printf("%-*s  ", (int)width, i < 0 ? axes[a].option->name : runs[i].value[a]);
        }
        for (int k = 0; k < SWEEP_NUMBERS && i >= 0 && runs[i].done; k++) {
            double v = runs[i].number[k];
            if (!head[k]) continue;
            if (!isfinite(v)) snprintf(cell, sizeof cell, "-");
            else if (!sweep_column[k].format) duration_text(cell, sizeof cell, v);
            else snprintf(cell, sizeof cell, sweep_column[k].format, v);
            printf(" %10s", cell);
        }
        for (int k = 0; k < SWEEP_NUMBERS && i < 0; k++)
            if (head[k]) printf(" %10s", head[k]);
        if (i >= 0 && !runs[i].done) printf(" %s", runs[i].failed ? "failed" : "not done");
        printf("\n");
    }
}

/* The axes of --sweep, and how many runs they make. */
static SweepAxis *sweep_axes(const Options *o, int *count) {
    SweepAxis *axes = NULL;                 /* stb_ds array */
    *count = 1;
    for (ptrdiff_t i = 0; i < arrlen(o->sweep); i++) {
        SweepAxis axis = sweep_axis(o, o->sweep[i]);
        if (*count > 10000 / (int)arrlen(axis.value))
            usage_error("more than 10000 runs; --sweep; vary less at a time");
        for (ptrdiff_t k = 0; k < i; k++)
            if (axes[k].option == axis.option)
                usage_error("--%s is swept twice; --sweep; give all its values at once", axis.option->name);
        *count *= (int)arrlen(axis.value);
        arrput(axes, axis);
    }
    return axes;
}
/* One run of the sweep, gone on with where it was interrupted: its exit status, 0 also where it failed on its way. */
static int sweep_run(Options *own, SweepRun *run, const Model *model) {
    TrainResult result;
    if (train_can_resume(own->train.output)) own->train.resume = own->train.output;
    int status = run_train(own, model, &result);
    run->failed = status == 1 && result.steps > 0;
    run->done = !status;
    if (!run->done) return run->failed ? 0 : status;
    double seconds = fmax(result.seconds, 1e-9), best = result.best_step ? result.best_metric : NAN;
    bool saved_best = own->train.load_best_model_at_end && result.best_step && !own->train.metric_for_best_model;
    double *number = run->number;
    for (int k = 0; k < SWEEP_NUMBERS; k++) {
        const Metric *m = metric_find(sweep_column[k].name);
        if (m && metric_is_of(m, result.last.of)) number[k] = metric_value(&result.last, m);
    }
    number[SWEEP_EVAL] = saved_best ? best : result.last_eval_loss;
    number[SWEEP_TRAIN] = result.train_loss;
    number[SWEEP_SAMPLES] = result.samples / seconds;
    number[SWEEP_RATE] = (double)result.steps / seconds;
    number[SWEEP_FLOS] = result.total_flos;
    number[SWEEP_BEST] = best;
    number[SWEEP_STEPS] = (double)result.steps;
    number[SWEEP_SECONDS] = result.seconds;
    return 0;
}
static int run_sweep(Options *o) {
    Error err;
    int count, status = 0;
    SweepAxis *axes = sweep_axes(o, &count);
    SweepRun *runs = (SweepRun *)must_alloc((size_t)count * sizeof *runs);
    char path[PATH_MAX];
    path_in(path, sizeof path, o->train.output, "sweep.json");
    for (int i = 0; i < count; i++) sweep_options(o, axes, i, &runs[i]);
    for (int i = 0; i < count; i++)
        for (int k = 0; k < i; k++)
            if (!strcmp(runs[i].name, runs[k].name))
                usage_error("two runs are called %s; --sweep; give every value once", runs[i].name);
    FolderLock lock;                        /* of the folder around the runs, where two sweeps would write one table */
    ModelConfig config;
    bool unlocked;                          /* each run says so itself */
    lock.path[0] = 0;
    if (!o->dry_run && (!config_open(&config, o->train.model, &err) || !make_folder(o->train.output, &err) ||
                        !folder_lock(&lock, o->train.output, &unlocked, &err))) return failed(&err);
    sweep_read(runs, count, path);
    if (!o->dry_run) print_version();
    Model model;
    memset(&model, 0, sizeof model);
    for (int i = 0; i < count && !status; i++) {
        SweepRun ignored;
        const char *before = runs[i].done ? ", done before" : "";
        printf("%srun %d of %d: %s%s\n", i && !o->dry_run ? "\n" : "", i + 1, count, runs[i].name, before);
        if (o->dry_run || runs[i].done) continue;
        Options own = sweep_options(o, axes, i, &ignored);
        if (!model.folder && !model_open(&model, o->train.model, &err)) { status = failed(&err); break; }
        status = sweep_run(&own, &runs[i], &model);
        if (runs[i].done && !sweep_write(runs, count, axes, o->train.output, &err)) status = failed(&err);
    }
    model_close(&model);
    folder_unlock(&lock);
    if (!o->dry_run) {
        qsort(runs, (size_t)count, sizeof *runs, sweep_compare);
        for (int i = 0; i < count; i++) if (runs[i].failed && !status) status = 1;
        sweep_print(runs, count, axes);
        printf("\ntable    %s/sweep.html, sweep.csv and sweep.json\n", o->train.output);
        if (status >= 128) printf("to go on %s\n", o->command);
    }
    free(runs);
    return status;
}

static int verb_train(Options *o) {
    TrainResult result;
    options_check(o);
    options_date(o);
    return arrlen(o->sweep) ? run_sweep(o) : run_train(o, NULL, &result);
}

/* ==================================================================================================================
   15  GENERATE
   Answers on stdout, everything else on stderr. A session is an open model with one of its adapters on, or none: what
   generate, evaluate, compare and merge work with.
   ================================================================================================================== */

typedef struct Session {
    Model model;
    Adapter loaded, *adapter;               /* adapter: loaded, or NULL where the base answers alone */
    const char *name;                       /* the adapter's folder, or "base" */
    Tokenizer *tokenizer;
    GenerateOptions generate;
    const Options *o;
} Session;

/* Merging needs no tokenizer and no way to generate; measuring no tokenizer where the rows are token ids and the folder
   has none. */
typedef enum { SESSION_MERGES, SESSION_MEASURES, SESSION_TALKS } SessionUse;
static bool session_open(Session *s, const Options *o, SessionUse use, Error *err) {
    ModelConfig config;
    const char *folder = o->train.model;
    memset(s, 0, sizeof *s);
    s->o = o;
    phase_to = STDERR_FILENO;
    phase_of("loading %s", folder);
    if (!config_open(&config, folder, err)) return false;
    bool reads = use == SESSION_TALKS || (use == SESSION_MEASURES && file_exists(folder, "tokenizer.json"));
    if (reads && !model_tokenizer(&s->tokenizer, folder, &config, err)) return false;
    if (use != SESSION_MERGES && !generate_defaults(&s->generate, folder, err)) return false;
    if (!model_open(&s->model, folder, err)) return false;
    if (use != SESSION_MERGES) options_generate(&s->generate, o);
    return true;
}
static void session_close(Session *s) {
    if (s->tokenizer) tokenizer_free(s->tokenizer);
    adapter_drop(&s->loaded);
    model_close(&s->model);
}

/* Turns an adapter on; "base": off. One that was trained on a model of another name gets a warning. */
static bool session_adapter(Session *s, const char *adapter, Error *err) {
    s->name = adapter;
    s->adapter = NULL;
    if (!strcmp(adapter, "base")) { adapter_drop(&s->loaded); return true; }
    phase_of("loading %s", adapter);
    char path[PATH_MAX];
    JsonDoc doc;
    adapter_file(path, sizeof path, adapter, "adapter_config.json");
    bool peft = !access(path, F_OK);        /* else weights that were trained whole, which do not say of what */
    if (peft && !json_read(&doc, path, err)) return false;
    const Json *base = peft ? json_get(doc.root, "base_model_name_or_path") : NULL;
    if (base && base->type == JSON_STRING && *base->str && strcmp(base_name(base->str), base_name(s->o->train.model)))
        complain_of("warning", "the adapter %s was trained on %s, this model is %s", adapter, base->str,
                    s->o->train.model);
    if (peft) json_free(&doc);
    s->loaded.frozen = true;
    if (!adapter_load(&s->loaded, &s->model, adapter, err)) return false;
    s->adapter = &s->loaded;
    return true;
}

/* Is a prompt written without a chat template? */
static bool prompts_are_plain(const Session *s) {
    const DataOptions *d = &s->o->train.data_options;
    return s->o->raw || d->prompt_template ||
           (d->chat_template == CHAT_NONE && !d->chat_file && tokenizer_chat_template(s->tokenizer) == CHAT_NONE);
}

/* Rows as a data file has them: {"role": ..., "content": ...} of a chat; a chat of such messages behind its system
   message, or NULL; a prompt. */
static void message_json(Text *t, const char *role, const char *content) {
    json_object(t, NULL, JSON_LINE);
    json_string(t, "role", role);
    json_string(t, "content", content);
    json_end(t);
}
static void chat_row(Text *t, const char *system, const char *messages) {
    json_object(t, NULL, JSON_LINE);
    json_list(t, "messages", JSON_LINE);
    if (system) message_json(t, "system", system);
    json_print(t, NULL, "%s", messages);
    json_end(t);
    json_end(t);
    text_string(t, "\n");
}
static void prompt_row(Text *t, const char *prompt) {
    json_object(t, NULL, JSON_LINE);
    json_string(t, "prompt", prompt);
    json_end(t);
    text_string(t, "\n");
}

/* The prompts that the options name: --prompt, --messages or --data. */
static bool prompts_of_options(Prompts *p, const Session *s, Error *err) {
    const Options *o = s->o;
    DataOptions options = o->train.data_options;
    if (option_given(o, "data")) {
        phase_of("reading %s", o->data[0]);
        return prompts_open(p, o->data[0], s->tokenizer, &options, err);
    }
    Text rows = TEXT_EMPTY, message = TEXT_EMPTY;
    bool plain = prompts_are_plain(s);
    if (plain && o->system) return fail(err, "a system message needs a chat template; --system; leave it out");
    for (ptrdiff_t i = 0; i < arrlen(o->prompt); i++) {
        message_json(&message, "user", o->prompt[i]);
        if (plain) prompt_row(&rows, o->prompt[i]);
        else chat_row(&rows, o->system, message.at);
        text_free(&message);
    }
    if (o->messages) {
        size_t bytes;
        char *list = read_file(o->messages, &bytes, err);
        if (!list) { text_free(&rows); return false; }
        for (char *c = list; *c; c++)
            if (*c == '\n' || *c == '\r') *c = ' ';         /* a string of JSON holds no line breaks */
        text_print(&rows, "{\"messages\": %s}\n", list);    /* prompts_parse says what is wrong with it */
        free(list);
    }
    if (options.prompt_template && o->raw) options.prompt_template = NULL;
    const char *from = o->messages ? o->messages : "--prompt";
    bool ok = prompts_parse(p, rows.at, rows.length, from, s->tokenizer, &options, err);
    text_free(&rows);
    return ok;
}

static bool print_text(void *user, size_t prompt, const char *text, size_t bytes) {
    (void)user; (void)prompt;
    phase_show(NULL);
    print_foreign(text, bytes);
    fflush(stdout);
    return !interrupted;                    /* in a chat Ctrl-C ends the answer */
}

/* ---- chat -------------------------------------------------------------------------------------------------------- */

typedef struct Talk {
    Session *s;
    const char *system;                     /* message in front, or NULL */
    Text dialogue;                          /* its messages */
    bool plain;                             /* no chat template: every line is a prompt of its own */
    bool told, over;                        /* what print_lost says, once; /quit */
} Talk;
static void talk_reset(Talk *t, const char *rest) { (void)rest; text_free(&t->dialogue); }
static void talk_quit(Talk *t, const char *rest) { (void)rest; t->over = true; }
static void talk_system(Talk *t, const char *rest) {
    if (t->plain) complain("error", "a system message needs a chat template; chat; go on without");
    else t->system = text_copy(rest);
}
static void talk_adapter(Talk *t, const char *rest) {
    Error err;
    Text other = adapter_differs(t->s->o, rest, false);
    if (other.at)
        complain_of("error", "%s was trained with %s; /adapter; the chat stays as it was: begin another with "
                             "--adapter, or give the one that is meant", rest, other.at);
    else if (!session_adapter(t->s, text_copy(rest), &err)) {
        failed(&err);
        session_adapter(t->s, "base", &err);            /* the one before may be gone already */
    }
    text_free(&other);
    phase_show(NULL);
}
static const struct { const char *name; bool takes; void (*run)(Talk *t, const char *rest); const char *help; }
    talk_table[] = {
        {"/reset", false, talk_reset, "/reset forgets the dialogue"},
        {"/system", true, talk_system, "/system TEXT sets the system message"},
        {"/adapter", true, talk_adapter, "/adapter FOLDER|base changes the adapter"},
        {"/quit", false, talk_quit, "/quit ends"},
};
enum { TALK_COMMANDS = sizeof talk_table / sizeof *talk_table };
static void talk_command(Talk *t, const char *line) {
    bool help = !strcmp(line, "/help");
    for (int i = 0; i < TALK_COMMANDS; i++) {
        size_t n = strlen(talk_table[i].name);
        bool takes = talk_table[i].takes;
        if (help) fprintf(stderr, "%s%s", i ? ", " : "", talk_table[i].help);
        else if (!strncmp(line, talk_table[i].name, n) && line[n] == (takes ? ' ' : 0)) {
            talk_table[i].run(t, line + n + takes);
            return;
        }
    }
    if (help) fprintf(stderr, "\n");
    else complain_of("error", "unknown command %s; chat; /help lists them", line);
}
/* What was said, and the answer to it. A turn that fails (too long, say) is taken back. */
static void talk_turn(Talk *t, const char *line) {
    const DataOptions *how = &t->s->o->train.data_options;
    size_t before = t->dialogue.length;
    Text row = TEXT_EMPTY;
    Prompts p;
    Answer a;
    Error err;
    interrupted = 0;
    message_json(&t->dialogue, "user", line);
    if (t->plain) prompt_row(&row, line);
    else chat_row(&row, t->system, t->dialogue.at);
    bool ok = prompts_parse(&p, row.at, row.length, "chat", t->s->tokenizer, how, &err);
    text_free(&row);
    if (ok) {
        if (!t->told) print_lost(stderr, "--chat", &p.stats, how);
        t->told = true;
        ok = model_generate(&t->s->model, t->s->adapter, NULL, t->s->tokenizer, p.list, 1, &t->s->generate, &a,
                            print_text, NULL, &err);
        prompts_free(&p);
    }
    if (!ok) {
        failed(&err);
        text_cut(&t->dialogue, before);
        return;
    }
    printf("\n");
    message_json(&t->dialogue, "assistant", a.text);
    answers_free(&a, 1);
}
/* Talks: every turn the whole dialogue is read again, so that templates which drop earlier thinking are obeyed to the
   letter. */
static int talk(Session *s) {
    Talk t;
    char *line = NULL;
    size_t room = 0;
    bool terminal = isatty(0);
    struct sigaction action;
    memset(&t, 0, sizeof t);
    t.s = s;
    t.system = s->o->system;
    t.plain = prompts_are_plain(s);
    memset(&action, 0, sizeof action);      /* without SA_RESTART: waiting for a line ends too */
    action.sa_handler = on_signal;
    sigaction(SIGINT, &action, NULL);
    phase_show(NULL);
    if (terminal)
        fprintf(stderr, "%s%s%s; /help lists the commands, Ctrl-C ends an answer, Ctrl-D the chat\n",
                s->o->train.model, s->adapter ? " with " : "", s->adapter ? s->name : "");
    if (t.plain && t.system) {
        complain("error", "a system message needs a chat template; --system; leave it out");
        return 1;
    }
    if (t.plain) complain("note", "no chat template: every line is a prompt of its own, without what was said before");
    while (!t.over) {
        if (terminal) { fprintf(stderr, "\n> "); fflush(stderr); }
        ssize_t n = getline(&line, &room, stdin);
        if (n < 0) break;
        while (n && (line[n - 1] == '\n' || line[n - 1] == '\r')) line[--n] = 0;
        if (*line == '/') talk_command(&t, line);
        else if (n) talk_turn(&t, line);
    }
    if (terminal) fprintf(stderr, "\n");
    free(line);
    text_free(&t.dialogue);
    return 0;
}

/* ---- generate ---------------------------------------------------------------------------------------------------- */

static void one_data_file(const Options *o) {
    if (arrlen(o->data) != 1) usage_error("one data file at a time; --data; run the command once for each");
}

/* One of four things is answered, and not every option goes with each: one that was typed is refused, one of a config
   file (which may be that of training) is left out and said. */
static void generate_sources(Options *o) {
    enum { PROMPT = 1, MESSAGES = 2, DATA = 4, CHAT = 8 };
    static const char *const source[] = {"prompt", "messages", "data", "chat"};
    static const struct { const char *name; int goes_with; } options[] = {
        {"few-shot", DATA}, {"shots", DATA}, {"limit", DATA}, {"system", PROMPT | CHAT}, {"raw", PROMPT},
        {"jsonl", PROMPT | MESSAGES | DATA}, {"output", PROMPT | MESSAGES | DATA}};
    int count = 0, typed = 0, which = 0;
    for (int i = 0; i < 4; i++) typed += option_origin(o, source[i]) == from_line;
    for (int i = 0; i < 4; i++) {
        if (typed && option_origin(o, source[i]) != from_line) option_unset(o, option_find(source[i]));
        if (!option_given(o, source[i]) || (1 << i == CHAT && !o->chat)) continue;
        count++;
        which = i;
    }
    if (count != 1)
        usage_error("%s; command line; give one of --prompt TEXT, --messages FILE, --data FILE or --chat",
                    count ? "several things to answer" : "nothing to answer");
    if (1 << which == DATA) one_data_file(o);
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
        const char *name = options[i].name, *where = option_origin(o, name);
        if (!where || (options[i].goes_with & 1 << which)) continue;
        if (where == from_line)
            usage_error("--%s does nothing with --%s; command line; leave it out", name, source[which]);
        complain_of("note", "%s: %s is not used with --%s", where, name, source[which]);
        option_unset(o, option_find(name));
    }
    for (int i = 0; i < OPTION_COUNT && o->raw; i++)
        if ((option_table[i].verbs & KEPT) && o->origin[i] == from_line)
            usage_error("--%s does nothing with --raw; command line; leave out one of them", option_table[i].name);
}

/* verb_generate's answers to one column, on their way: shown or kept in the order of the prompts. */
typedef struct Replies {
    const Options *o;
    const Prompts *prompts;
    const char *adapter;
    Answer *answers;                        /* [prompts] */
    size_t shown;                           /* so many are out */
    int64_t tokens;
    bool named;                             /* several adapters: say whose answer it is */
    Text *all;                              /* with --output: everything, for the whole file */
    Kept *kept;
} Replies;

static void replies_show(void *user, size_t prompt) {
    Replies *r = (Replies *)user;
    (void)prompt;
    if (!r->kept) phase_show(NULL);         /* the answers themselves show that it goes on */
    for (; r->shown < r->prompts->count && r->answers[r->shown].text; r->shown++) {
        const Prompt *p = &r->prompts->list[r->shown];
        Answer *a = &r->answers[r->shown];
        Text line = TEXT_EMPTY;
        r->tokens += a->count;
        if (r->o->jsonl || r->kept) {
            answer_json(&line, p, a, r->adapter);
            json_end(&line);
            text_string(&line, "\n");
        } else if (r->named) text_print(&line, "[%lld] %s: %s\n", (long long)p->row, r->adapter, a->text);
        else text_print(&line, "[%lld] %s\n", (long long)p->row, a->text);
        if (r->kept) {
            text_print(r->all, "%s", line.at);
            kept_add(r->kept, line.at, line.length);
        } else {
            print_foreign(line.at, line.length);
            fflush(stdout);
        }
        text_free(&line);
    }
}

/* Every prompt answered by the session's adapter. One answer alone streams. */
static bool replies_make(Replies *r, Session *s, bool stream, Error *err) {
    const Prompts *p = r->prompts;
    phase_of("answering %zu prompt%s with %s", p->count, p->count > 1 ? "s" : "", r->adapter);
    double start = seconds_now();
    s->generate.on_answer = stream ? NULL : replies_show;
    if (!model_generate(&s->model, s->adapter, NULL, s->tokenizer, p->list, p->count, &s->generate, r->answers,
                        stream ? print_text : NULL, r, err)) return false;
    if (stream) { r->tokens = r->answers[0].count; printf("\n"); }
    answers_free(r->answers, p->count);
    phase_show(NULL);
    double seconds = seconds_now() - start;
    fprintf(stderr, "%s%s: %lld token%s in %.1f s, %.1f tokens/s\n", stream ? "\n" : "", r->adapter,
            (long long)r->tokens, r->tokens == 1 ? "" : "s", seconds, (double)r->tokens / fmax(seconds, 1e-9));
    return true;
}
/* The prompts of the options, answered by each of the adapters in turn. */
static int generate_all(Session *s, const char *const *adapters, int count) {
    const Options *o = s->o;
    Error err;
    Prompts p;
    if (!prompts_of_options(&p, s, &err)) return failed(&err);
    const char *source = option_given(o, "data") ? o->data[0] : o->messages ? o->messages : "--prompt";
    if (!o->raw) print_lost(stderr, source, &p.stats, &o->train.data_options);
    bool written = option_given(o, "output"), stream = p.count == 1 && !o->jsonl && !written, ok = true;
    Text all = TEXT_EMPTY;
    Kept kept;
    if (written && !kept_open(&kept, o->train.output, &err)) return failed(&err);
    Answer *answers = (Answer *)must_alloc(p.count * sizeof *answers);
    for (int c = 0; c < count && ok; c++) {
        Replies r = {o, &p, adapters[c], answers, 0, 0, count > 1, &all, written ? &kept : NULL};
        ok = session_adapter(s, adapters[c], &err);
        if (!ok) break;
        phase_show(NULL);
        if (stream && count > 1) printf("%s%s:\n", c ? "\n" : "", adapters[c]);
        ok = replies_make(&r, s, stream, &err);
    }
    ok = ok && (!written || write_file(o->train.output, all.at, all.length, &err));
    if (!ok) failed(&err);
    if (written && ok) kept_drop(&kept);
    else if (written) fprintf(stderr, "what was answered is in %s\n", kept.path);
    text_free(&all);
    free(answers);
    prompts_free(&p);
    return !ok;
}
static int verb_generate(Options *o) {
    static const char *const only_base[] = {"base"};
    Error err;
    Session s;
    struct stat there;
    int status;
    generate_sources(o);
    if (option_given(o, "output") && !stat(o->train.output, &there) && S_ISDIR(there.st_mode))
        usage_error("the answers would take the place of a folder; --output %s; name a file", o->train.output);
    if (!session_open(&s, o, SESSION_TALKS, &err)) return failed(&err);
    const char *const *adapters = arrlen(o->adapter) ? o->adapter : only_base;
    if (!o->chat) status = generate_all(&s, adapters, arrlen(o->adapter) ? (int)arrlen(o->adapter) : 1);
    else status = session_adapter(&s, adapters[0], &err) ? talk(&s) : failed(&err);
    session_close(&s);
    return status;
}

/* ---- merge ------------------------------------------------------------------------------------------------------- */

/* Logits of a few fixed tokens: what a merged model is held against. */
enum { PROBES = 32 };
static float *probe_logits(const Model *m, const Adapter *a, Error *err) {
    Batch b;
    Workspace w;
    float *logits = NULL;
    memset(&w, 0, sizeof w);
    if (!batch_alloc(&b, PROBES, 1, err)) return NULL;
    for (int i = 0; i < PROBES; i++) {
        b.ids[i] = (int32_t)((uint32_t)(i + 1) * 2654435761u % (uint32_t)m->config.vocab_size);
        b.positions[i] = i;
    }
    b.N = PROBES; b.S = 1;
    b.cu_seqlens[0] = 0; b.cu_seqlens[1] = PROBES;
    if (workspace_open(&w, m, a, PROBES, PROBES, FORWARD_ONLY, true, NULL, err)) {
        logits = (float *)must_alloc((size_t)PROBES * (size_t)m->config.vocab_size * sizeof *logits);
        model_logits(m, a, &w, logits, &b);
    }
    workspace_close(&w);
    batch_free(&b);
    return logits;
}

/* What a merged folder may differ from base + adapter by: rounding to `dtype` in the file (DTYPE_COUNT: as the base has
   it), and in the arithmetic. */
static double merge_tolerance(const Model *m, DType dtype) {
    FormatId stored = m->layers[0].linear[0].w.format;
    int layers = m->config.num_hidden_layers;
    return fmax(merged_tolerance(dtype == DTYPE_COUNT ? stored : dtype_format(dtype), layers),
                merged_tolerance(LORA_FLOATX_FORMAT, layers));
}
/* The merged folder has no run.json: how prompts are written is spelled out. */
static void print_merged_use(const Options *o, bool head /* of classification: it has no words */) {
    const Json *kept[OPTION_COUNT];
    Text use = command_text(o, head ? "evaluate" : "generate", "--model", o->train.output, NULL);
    bool known = adapter_kept(kept, o->adapter[0], head ? EVALUATE : GENERATE);
    for (int i = 0; known && i < OPTION_COUNT; i++) {
        if (!kept[i]) continue;
        text_print(&use, " --%s", option_table[i].name);
        command_add(&use, member_value(kept[i]));
    }
    text_print(&use, head ? " --data FILE" : " --chat");
    print_command("use it", use);
}
/* Writes the session's adapter, that of the folder `from`, as plain LoRA. want: its logits, which the new one must have
   too. */
static int merge_convert(Session *s, const char *from, const char *folder, float *want) {
    Error err;
    Adapter plain;
    char path[PATH_MAX];
    size_t length;
    memset(&plain, 0, sizeof plain);
    bool ok = access(folder, F_OK) || fail(&err, "it exists already; %s; give a new folder, nothing is overwritten",
                                           folder);
    if (!ok || !adapter_convert(&plain, s->adapter, &err)) return failed(&err);
    adapter_file(path, sizeof path, from, "run.json");
    char *about = access(path, R_OK) ? NULL : read_file(path, &length, &err);       /* how its prompts are written */
    plain.about = about;
    float *got = probe_logits(&s->model, &plain, &err);
    if (!got) return failed(&err);
    double error = rms_error(got, want, PROBES * (size_t)s->model.config.vocab_size);
    double tolerance = merge_tolerance(&s->model, DTYPE_F32);
    if (!(error <= tolerance)) {
        fail(&err, "the logits of the adapter as plain LoRA differ by %.1e; %s; please report this", error, folder);
        return failed(&err);
    }
    if (!adapter_save(&plain, folder, &err)) return failed(&err);
    phase_show(NULL);
    printf("written  %s: plain LoRA of r %d; its logits agree within %.1e (relative rms of %d tokens)\n", folder,
           plain.config.r, error, PROBES);
    adapter_drop(&plain);
    session_close(s);
    free(about);
    free(got);
    free(want);
    return 0;
}
static int verb_merge(Options *o) {
    const char *folder = o->train.output;
    Error err;
    Session s;
    Model merged;
    DType dtype = merge_dtype[o->dtype];
    if (arrlen(o->adapter) != 1 || !option_given(o, "output"))
        usage_error("merge takes one adapter and a new folder; command line; give --adapter FOLDER and --output "
                    "FOLDER");
    if (!session_open(&s, o, SESSION_MERGES, &err) || !session_adapter(&s, o->adapter[0], &err)) return failed(&err);
    if (!s.adapter) usage_error("the base is what is merged into; --adapter; name a PEFT folder");
    float *want = probe_logits(&s.model, s.adapter, &err);
    phase_of("writing %s", folder);
    if (want && o->train.convert_to_lora) {
        if (option_given(o, "dtype"))
            usage_error("--dtype with --convert-to-lora; command line; adapters are F32: leave it out");
        return merge_convert(&s, o->adapter[0], folder, want);
    }
    if (!want || !adapter_merge(s.adapter, folder, dtype, &err)) return failed(&err);
    bool head = s.adapter->config.classes.num_labels > 0;
    size_t count = PROBES * (size_t)s.model.config.vocab_size;
    double tolerance = merge_tolerance(&s.model, dtype);
    session_close(&s);                      /* two large models at once might not fit */
    phase_of("reading %s again, to compare", folder);
    if (!model_open(&merged, folder, &err)) return failed(&err);
    float *got = probe_logits(&merged, NULL, &err);
    if (!got) return failed(&err);
    double error = rms_error(got, want, count);
    const char *rounded = weight_format[merged.layers[0].linear[0].w.format].name;
    free(got);
    free(want);
    model_close(&merged);
    if (!(error <= tolerance)) {
        fail(&err, "the merged model's logits differ from base + adapter by %.1e, more than rounding to %s explains; "
                   "%s; do not use it, and please report this", error, rounded, folder);
        return failed(&err);
    }
    phase_show(NULL);
    printf("merged   %s: %s with %s in it, %s; its logits agree with base + adapter within %.1e (relative rms of "
           "%d tokens; rounding to %s explains %.1e%s)\n", folder, o->train.model, o->adapter[0], rounded, error,
           PROBES, rounded, tolerance, strcmp(rounded, "F32") ? ", --dtype f32 avoids it" : "");
    print_merged_use(o, head);
    return 0;
}

/* ==================================================================================================================
   16  EVALUATE AND COMPARE
   The same rows before and after: columns, scores, tables and pages are data/evaluate.h's.
   ================================================================================================================== */

/* What is going to be measured, and what of it the loss leaves out. */
static void evaluate_begins(const Options *o, const Prompts *p, const Dataset *d) {
    const DataOptions *how = &o->train.data_options;
    phase_show(NULL);
    long long rows = d ? (long long)d->stats.rows : (long long)p->count;
    fprintf(stderr, "%lld row%s of %s", rows, rows == 1 ? "" : "s", o->data[0]);
    if (how->few_shot)
        fprintf(stderr, ", each behind %d solved example%s of %s", how->few_shot, how->few_shot > 1 ? "s" : "",
                how->shots);
    fprintf(stderr, "\n");
    struct stat data, shots;
    if (how->few_shot && !stat(o->data[0], &data) && !stat(how->shots, &shots) && data.st_dev == shots.st_dev &&
        data.st_ino == shots.st_ino)
        fprintf(stderr, "warning: the solved examples show the answer to the first %d row%s of %s; give other "
                        "--shots\n", how->few_shot, how->few_shot == 1 ? "" : "s", o->data[0]);
    print_lost(stderr, o->data[0], d ? &d->stats : &p->stats, how);
    if (d && d->stats.dropped && !d->stats.truncated)
        fprintf(stderr, "warning: %lld of %lld rows have no answer and are not in the loss\n",
                (long long)d->stats.dropped, (long long)d->stats.rows);
}

/* One column after the other: loss, answers, and the files as far as they are known. */
static bool evaluate_columns(Comparison *c, Session *s, const Dataset *d, bool answers, const char *folder,
                             Error *err) {
    long long rows = d ? (long long)d->stats.rows : 0;
    for (int k = 0; k < c->count; k++) {
        Column *column = &c->columns[k];
        double start = seconds_now();
        c->current = k;
        if (!session_adapter(s, column->name, err)) return false;
        bool head = column_head(&s->model, s->adapter) != NULL;
        if (head) {
            phase_of("measuring %s", column->name);
            if (!column_measure_head(column, c, &s->model, s->adapter, s->tokenizer,
                                     s->o->train.per_device_eval_batch_size, err)) return false;
        } else if (c->data_options->task != TASK_CAUSAL_LM && !answers)
            return fail(err, "no classification head; %s; train one with --task %s", column->name,
                        task_name[c->data_options->task]);
        if (d && !head) {
            phase_of("measuring %s on %lld row%s", column->name, rows, rows == 1 ? "" : "s");
            if (!column_loss(column, &s->model, s->adapter, d, s->o->train.per_device_eval_batch_size, err))
                return false;
        }
        if (answers && !head) {
            phase_of("answering %zu row%s with %s", c->prompts.count, c->prompts.count == 1 ? "" : "s", column->name);
            if (!column_answers(column, c, &s->model, s->adapter, s->tokenizer, err)) return false;
        }
        phase_show(NULL);
        fprintf(stderr, "%s: %.1f s\n", column->name, seconds_now() - start);
        if (folder && !comparison_write(c, folder, err)) return false;
    }
    c->current = c->count;
    return true;
}

/* The columns that the options name: the base in front where it is not one of them, or nothing else is. */
static void evaluate_names(Comparison *c, const Options *o, bool compare) {
    bool base = !arrlen(o->adapter) || (compare && strcmp(o->adapter[0], "base"));
    c->model = o->train.model;
    c->data = o->data[0];
    c->chat_template = o->chat_template;
    c->data_options = &o->train.data_options;
    comparison_cut(c, o->bleu_tokenize);
    c->count = (int)arrlen(o->adapter) + base;
    c->columns = (Column *)must_alloc((size_t)c->count * sizeof *c->columns);
    for (int k = 0; k < c->count; k++) {
        c->columns[k].name = base && !k ? "base" : o->adapter[k - base];
        for (int i = 0; i < SCORES; i++) c->columns[k].score[i] = NAN;
    }
}
/* Rows as prompts, where they are answered, and as examples, where any has a reference. Without answers every row will
   do that training would take: plain text and token ids have a loss, but no prompt. */
static bool evaluate_reads(Comparison *c, Dataset *d, bool *references, const Options *o, const Tokenizer *t,
                           bool answers, Error *err) {
    if (answers && !prompts_open(&c->prompts, c->data, t, c->data_options, err)) return false;
    if (answers && o->labels && !comparison_labels(c, o->labels, err)) return false;
    phase_of("reading %s", c->data);
    *references = !answers && c->data_options->task == TASK_CAUSAL_LM;
    for (size_t i = 0; i < c->prompts.count; i++) *references |= c->prompts.list[i].reference != NULL;
    DataOptions tokens = *c->data_options;  /* what an answer in words is measured by */
    tokens.task = TASK_CAUSAL_LM;
    tokens.problem_type = PROBLEM_AUTO;
    if (*references && !dataset_open(d, c->data, t, &tokens, err)) return false;
    if (!answers && !*references) return true;
    evaluate_begins(o, &c->prompts, *references ? d : NULL);
    if (answers && !o->labels && !c->characters && without_words(&c->prompts))
        fprintf(stderr, "hint: these answers have no spaces between words, and f1, bleu and rouge_l are of words: add "
                        "--bleu-tokenize zh\n");
    return true;
}
static int verb_evaluate(Options *o) {
    bool compare = o->verb->bit == COMPARE, answers = compare || o->answers || o->labels, references;
    const char *folder = option_given(o, "output") ? o->train.output : compare ? "compare" : NULL;
    Error err;
    Session s;
    Dataset d;
    Comparison c;
    Kept kept;
    char path[PATH_MAX] = "";
    memset(&c, 0, sizeof c);
    memset(&d, 0, sizeof d);
    if (compare && !arrlen(o->adapter))
        usage_error("nothing to compare with the base; command line; give --adapter FOLDER");
    one_data_file(o);
    evaluate_names(&c, o, compare);
    if (!session_open(&s, o, answers ? SESSION_TALKS : SESSION_MEASURES, &err)) return failed(&err);
    if (!option_given(o, "temperature")) s.generate.temperature = 0;          /* scores should not depend on luck */
    if (s.model.no_head && !option_given(o, "task")) o->train.data_options.task = TASK_CLASSIFICATION;
    c.generate = &s.generate;
    if (!evaluate_reads(&c, &d, &references, o, s.tokenizer, answers, &err)) return failed(&err);
    if (folder) {
        path_in(path, sizeof path, folder, "responses.jsonl");
        if (!make_folder(folder, &err) || (answers && !kept_open(&kept, path, &err))) return failed(&err);
        c.kept = answers ? &kept : NULL;
    }
    if (!evaluate_columns(&c, &s, references ? &d : NULL, answers, folder, &err)) return failed(&err);
    comparison_print(&c);
    if (folder && !comparison_write(&c, folder, &err)) return failed(&err);
    if (compare && !comparison_page(&c, folder, &err)) return failed(&err);
    if (c.kept) kept_drop(c.kept);
    if (compare)
        printf("\npage     %s/compare.html: read, filter and rate the answers side by side in a browser\n", folder);
    comparison_free(&c);
    dataset_free(&d);
    session_close(&s);
    return 0;
}

/* ==================================================================================================================
   17  MAIN
   ================================================================================================================== */

static const Verb *verb_or_die(const char *name) {
    const char *names[VERB_COUNT];
    Text list = TEXT_EMPTY;
    for (int i = 0; i < VERB_COUNT; i++) {
        names[i] = verb_table[i].name;
        if (!strcmp(name, names[i])) return &verb_table[i];
        text_print(&list, "%s%s", i ? ", " : "", names[i]);
    }
    const char *near = name_nearest(name, names, VERB_COUNT);
    usage_error("unknown verb '%s'; command line; %s%s%sthe verbs are %s", name, near ? "did you mean " : "",
                near ? near : "", near ? "? " : "", list.at);
    return NULL;
}

/* A thread that waits for the others spins first. libgomp's own bound, 300,000 rounds, is milliseconds: beside another
   program on the same cores two runs slow each other tenfold, each spinning while the thread it waits for has no core.
   libgomp reads its bound before main begins, hence the second start; a bound that the user gave stays. */
static void bound_spinning(char **argv) {
    char path[4096];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
    if (length <= 0 || getenv("GOMP_SPINCOUNT")) return;
    path[length] = 0;
    setenv("GOMP_SPINCOUNT", "1000", 1);            /* about what waking a thread costs */
    execv(path, argv);
}

static int run_verb(int argc, char **argv) {
    bool has_verb = argc > 1 && strncmp(argv[1], "-", 1), help = false;
    int skip = has_verb ? 2 : 1;
    if (has_verb && !strcmp(argv[1], "help")) {
        print_help(argc > 2 ? verb_or_die(argv[2]) : NULL);
        return 0;
    }
    const Verb *verb = has_verb ? verb_or_die(argv[1]) : &verb_table[0];
    for (int i = skip; i < argc; i++) {
        help |= !strcmp(argv[i], "--help") || !strcmp(argv[i], "-h");
        if (!strcmp(argv[i], "--version")) { print_version(); return 0; }
    }
    if (help) { print_help(has_verb ? verb : NULL); return 0; }
    Options o;
    options_parse(&o, verb, argc - skip, argv + skip);
    options_resolve(&o);
    o.program = argv[0];
    o.command = command_line(argc, argv);
    int status = verb->run(&o);
    arrfree(o.train.lora.layers);
    return status;
}

int main(int argc, char **argv) {
    int fd;
    do fd = open("/dev/null", O_RDWR); while (fd >= 0 && fd <= 2);      /* a closed stdout's number goes to no file */
    if (fd > 2) close(fd);
    bound_spinning(argv);
    struct sigaction bus;
    memset(&bus, 0, sizeof bus);
    bus.sa_sigaction = on_bus;
    bus.sa_flags = SA_SIGINFO;
    sigaction(SIGBUS, &bus, NULL);
    int status = run_verb(argc, argv);
    errno = 0;
    if (!fflush(stdout) && !ferror(stdout)) return status;
    if (!status)
        complain_of("error", "not all of the output could be written; standard output%s%s; see where it goes, and its "
                             "disk", errno ? ": " : "", errno ? strerror(errno) : "");
    return status ? status : 1;
}
#endif
