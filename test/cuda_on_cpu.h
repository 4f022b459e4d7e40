/* cuda_on_cpu.h - runs the CUDA kernels of train_lora.cu on a machine without a GPU:  g++ -std=gnu++17 -DEMULATED -x c++ test.c  (test/backend.h includes this first).

   One fiber per CUDA thread, one block after another. A fiber runs until it meets a barrier or a warp-wide operation; the last one to arrive does the work for all and everybody goes on. So a test sees
   what a GPU would compute, at a few billion operations a second, deterministically, and under a debugger and the sanitizers.

   What it checks that a GPU does not: every kernel can be run in several thread orders (emulator_order), and a missing barrier then changes the result; shared memory is a heap block of the exact size,
   filled with 0xFF (NaN) before every block, so that AddressSanitizer sees each overrun and a test each uninitialised read; device memory likewise; an asynchronous copy happens only when it is waited
   for, its destination being poison until then; lanes of a warp that meet at different operations, or at the same one in
   two places of the program (the two sides of a branch), a barrier that some threads never reach, a misaligned 16-byte
   access: each is an abort with a message. And the two memories are two: what cudaMalloc gave, the host can touch in a
   copy only, and no kernel is launched with a pointer that the card could not follow. */
#ifndef CUDA_ON_CPU
#define CUDA_ON_CPU
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <map>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>
#if defined(__SANITIZE_ADDRESS__)
#define EMULATOR_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifndef __x86_64__
#include <ucontext.h>
#endif

/* ---- the language ------------------------------------------------------------------------------------------------------------------------------------ */

#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define SHARED_MEMORY(name) unsigned char *name = emulator::shared

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }

/* 16-bit numbers: storage and conversion, arithmetic happens in float. Rounding to nearest even, as the hardware does. */
struct __nv_bfloat16 {
    uint16_t bits;
    __nv_bfloat16() = default;
    __nv_bfloat16(float f) {
        uint32_t u;
        memcpy(&u, &f, 4);
        bits = f != f ? 0x7fff : (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
    }
    operator float() const { uint32_t u = (uint32_t)bits << 16; float f; memcpy(&f, &u, 4); return f; }
};
struct __half {
    uint16_t bits;
    __half() = default;
    __half(float f) {
        uint32_t u;
        memcpy(&u, &f, 4);
        uint32_t sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffff;
        if (magnitude > 0x7f800000) bits = 0x7fff;                            /* NaN */
        else if (magnitude >= 0x477ff000) bits = (uint16_t)(sign | 0x7c00);   /* 65520 and above round to infinity */
        else if (magnitude < 0x38800000) {                                    /* below 2^-14: counted in steps of 2^-24 */
            float small;
            memcpy(&small, &magnitude, 4);
            bits = (uint16_t)(sign | (uint32_t)lrintf(small * 16777216.0f));  /* lrintf rounds to even */
        } else bits = (uint16_t)(sign | ((magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000) >> 13));
    }
    operator float() const {
        uint32_t sign = (uint32_t)(bits & 0x8000) << 16, exponent = bits >> 10 & 31, mantissa = bits & 1023, u;
        float f;
        if (exponent == 0) { f = (float)mantissa * 0x1p-24f; return sign ? -f : f; }
        u = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | mantissa << 13;
        memcpy(&f, &u, 4);
        return f;
    }
};

/* ---- fibers ------------------------------------------------------------------------------------------------------------------------------------------- */

/* In which order the threads of a block, and the blocks of a grid, take their turns. 0 forward and 1 reverse: everybody goes on to the next meeting, fairly. 2 and 3: the first, or the last, warp that can go on does,
   as far as it can, before any other moves; fair orders keep the warps within one meeting of each other and would never show a missing barrier that lets one run ahead. Else the seed of a shuffle. */
static int emulator_order = getenv("EMULATOR_ORDER") ? atoi(getenv("EMULATOR_ORDER")) : 0;

namespace emulator {

enum { MAX_THREADS = 1024, WARP_SIZE = 32 };
enum Operation { NOTHING, SYNCTHREADS, SYNCWARP, SHUFFLE, LDMATRIX, LDMATRIX_TRANS, MMA };
static const char *const operation_name[] = {"nothing", "__syncthreads", "__syncwarp", "a shuffle", "ldmatrix", "ldmatrix.trans", "mma"};
#ifdef EMULATOR_ASAN
static const size_t STACK = 512 << 10;
#else
static const size_t STACK = 128 << 10;
#endif

/* EMULATED_SHARED: bytes of shared memory that the card grants a block; 65536 makes it a Turing card, whose rings have fewer slots and whose mma is half as deep. */
static size_t shared_limit = getenv("EMULATED_SHARED") ? strtoull(getenv("EMULATED_SHARED"), NULL, 10) : 232448;
static bool turing = shared_limit <= 65536;

struct Copy { void *to; const void *from; bool valid; int group; };

struct Fiber {
#ifdef __x86_64__
    void *sp;
#else
    ucontext_t context;
#endif
    char *stack;
    dim3 thread;
    unsigned lane, warp;
    Operation waits_for;
    const uint64_t *clock;                  /* generation of what it waits for: it may go on when that has moved from `seen` */
    uint64_t seen;
    bool done;
    std::vector<Copy> copies;               /* asynchronous, not yet waited for */
    int committed;                          /* groups */
};
/* Where threads meet. `generation` tells those that still wait from those that have come round again. */
struct Meeting { Operation operation; const void *site; unsigned arrived; uint64_t generation; void *given[WARP_SIZE]; };
/* Where in the program an operation stands: whoever asks is never inlined, what the kernels call always is. */
#define CALL_SITE __builtin_return_address(0)
#define NEVER_INLINE __attribute__((noinline))

static Fiber fibers[MAX_THREADS], *current;
static Meeting block_meeting, warp_meetings[MAX_THREADS / WARP_SIZE];
static unsigned char *shared, *shared_end;
static dim3 block_index, block_size, grid_size;
static unsigned threads;
static const char *kernel_name;
static void (*body)(void *);
static void *body_arguments;
#ifdef EMULATOR_ASAN
static const void *scheduler_bottom;
static size_t scheduler_size;
#endif

[[noreturn]] static void stop(const char *what) {
    fflush(stdout);
    fprintf(stderr, "emulator: %s; kernel %s, block (%u,%u,%u), thread %u\n", what, kernel_name, block_index.x, block_index.y, block_index.z, current ? current->thread.x : 0);
    abort();
}

#ifdef __x86_64__
/* Saves the registers that a function must keep, changes stacks, restores: a switch is a dozen instructions (swapcontext makes two system calls). */
extern "C" void emulator_switch(void **save, void *to);
__asm__(".text\n.type emulator_switch,@function\nemulator_switch:\n"
        "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\nmov %rsp,(%rdi)\n"
        "mov %rsi,%rsp\npop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n.size emulator_switch,.-emulator_switch\n");
static void *scheduler_sp;
#else
static ucontext_t scheduler_context;
#endif

static void to_scheduler(bool last) {
    Fiber *f = current;
#ifdef EMULATOR_ASAN
    void *fake = NULL;
    __sanitizer_start_switch_fiber(last ? NULL : &fake, scheduler_bottom, scheduler_size);
#endif
    (void)last;
#ifdef __x86_64__
    emulator_switch(&f->sp, scheduler_sp);
#else
    swapcontext(&f->context, &scheduler_context);
#endif
#ifdef EMULATOR_ASAN
    __sanitizer_finish_switch_fiber(fake, &scheduler_bottom, &scheduler_size);
#endif
}
static void resume(Fiber *f) {
    current = f;
#ifdef EMULATOR_ASAN
    void *fake;
    __sanitizer_start_switch_fiber(&fake, f->stack, STACK);
#endif
#ifdef __x86_64__
    emulator_switch(&scheduler_sp, f->sp);
#else
    swapcontext(&scheduler_context, &f->context);
#endif
#ifdef EMULATOR_ASAN
    __sanitizer_finish_switch_fiber(fake, NULL, NULL);
#endif
    current = NULL;
}
static void fiber_main() {
#ifdef EMULATOR_ASAN
    __sanitizer_finish_switch_fiber(NULL, &scheduler_bottom, &scheduler_size);
#endif
    body(body_arguments);
    if (!current->copies.empty()) stop("a thread ended with asynchronous copies that it never waited for");
    current->done = true;
    to_scheduler(true);
    abort();
}
static void fiber_start(unsigned i) {
    Fiber *f = &fibers[i];
    if (!f->stack) {
        char *page = (char *)mmap(NULL, STACK + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (page == (char *)MAP_FAILED || mprotect(page, 4096, PROT_NONE)) { perror("emulator: stack"); abort(); }      /* an overflow hits the guard page */
        f->stack = page + 4096;
    }
    f->thread = dim3(i % block_size.x, i / block_size.x % block_size.y, i / block_size.x / block_size.y);
    f->lane = i % WARP_SIZE;
    f->warp = i / WARP_SIZE;
    f->clock = NULL;
    f->done = false;
    f->committed = 0;
#ifdef EMULATOR_ASAN
    __asan_unpoison_memory_region(f->stack, STACK);
#endif
#ifdef __x86_64__
    void **top = (void **)(void *)(f->stack + STACK - 64);                    /* fiber_main is "returned" to, with the stack as after a call */
    *--top = NULL;
    *--top = (void *)fiber_main;
    for (int r = 0; r < 6; r++) *--top = NULL;
    f->sp = top;
#else
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack;
    f->context.uc_stack.ss_size = STACK;
    makecontext(&f->context, fiber_main, 0);
#endif
}

/* Everybody who meets must have come the same way. */
static void join(Meeting *m, Operation operation, const void *site) {
    const char *name = operation_name[operation];
    if (!m->arrived) { m->operation = operation; m->site = site; }
    else if (m->operation != operation || m->site != site) {
        fprintf(stderr, "emulator: the ways part: one thread is at %s (%p), another at %s (%p)\n", operation_name[m->operation], m->site, name, site);
        stop("threads must come together at one place of the program");
    }
    m->arrived++;
}
static void wait_for(Meeting *m) {
    current->clock = &m->generation;
    current->seen = m->generation;
    current->waits_for = m->operation;
    to_scheduler(false);
}

/* ---- memory ------------------------------------------------------------------------------------------------------------------------------------------- */

/* cudaMalloc: pages of one reserved range, closed to everybody but a launch or a copy, each allocation at the end of its
   pages with a closed one behind; an address is never given twice. So the host that follows a device pointer, an overrun
   of 256 bytes and the use of freed memory all end in a fault, AddressSanitizer (its redzones are kept by hand) seeing
   the last byte. cudaMallocManaged: the heap, open to both sides. */
struct Allocation { size_t bytes; bool managed; };
static std::map<char *, Allocation> allocations;
static size_t allocated, memory_size = getenv("EMULATED_MEMORY") ? strtoull(getenv("EMULATED_MEMORY"), NULL, 10) : (size_t)8 << 30;
static const size_t PAGE = 4096, SPAN = (size_t)1 << 40;
static char *span, *span_next;

#ifndef EMULATOR_ASAN
static void on_fault(int, siginfo_t *info, void *) {
    char *p = (char *)info->si_addr;
    if (p >= span && p < span + SPAN) {
        if (current) stop("a kernel leaves the memory that cudaMalloc gave");
        fprintf(stderr, "emulator: the host reads or writes device memory at %p; backend_upload and backend_download go there\n", p);
        abort();
    }
    signal(SIGSEGV, SIG_DFL);               /* not ours: it happens again, and ends the program */
}
#endif

/* The allocation that p points into, or to the end of. */
static std::map<char *, Allocation>::iterator owner(const void *p) {
    auto a = allocations.upper_bound((char *)p);
    if (a == allocations.begin()) return allocations.end();
    --a;
    return (char *)p <= a->first + a->second.bytes ? a : allocations.end();
}
static void open_memory(std::map<char *, Allocation>::iterator a, bool open) {
    if (a == allocations.end() || a->second.managed) return;
    char *page = (char *)((uintptr_t)a->first / PAGE * PAGE);
    if (mprotect(page, (size_t)(a->first + a->second.bytes - page), open ? PROT_READ | PROT_WRITE : PROT_NONE)) { perror("emulator: mprotect"); abort(); }
}
static void open_memory(bool open) { for (auto a = allocations.begin(); a != allocations.end(); ++a) open_memory(a, open); }

/* The arguments of a launch are the host's, computed before it; a pointer among them must be one that the card can follow. */
template <typename T> static void check_argument(const char *, const T &) {}
template <typename T> static void check_argument(const char *kernel, T *p) {
    kernel_name = kernel;
    if (p && owner(p) == allocations.end()) stop("a pointer to the host's memory is given to a kernel");
}
template <typename... T> static void check_arguments(const char *kernel, const T &...argument) { (check_argument(kernel, argument), ...); }

/* Runs the fibers of one block to their end, a round at a time. */
static void run_block(uint64_t *random) {
    static unsigned live[MAX_THREADS];
    unsigned count = threads;
    for (unsigned i = 0; i < threads; i++) { live[i] = i; fiber_start(i); }
    memset(&block_meeting, 0, sizeof block_meeting);
    memset(warp_meetings, 0, sizeof warp_meetings);
    while (count) {
        unsigned step = 1, at = 0, left = 0, warp = 0;
        bool moved = false;
        bool greedy = emulator_order == 2 || emulator_order == 3;
        if (emulator_order == 1 || emulator_order == 3) { step = count - 1; at = count - 1; }        /* a step of -1 */
        else if (emulator_order > 3) {
            *random = *random * 6364136223846793005ull + 1442695040888963407ull;
            at = (unsigned)(*random >> 33) % count;
            for (step = (unsigned)(*random >> 40) % count | 1;; step += 2) {  /* coprime to count, so that every fiber has its turn */
                unsigned a = step, b = count;
                while (b) { unsigned c = a % b; a = b; b = c; }
                if (a == 1) break;
            }
        }
        for (unsigned i = 0; i < count; i++, at = (at + step) % count) {
            Fiber *f = &fibers[live[at]];
            if (f->clock && *f->clock == f->seen) continue;
            if (greedy && moved && f->warp != warp) break;
            f->clock = NULL;
            warp = f->warp;
            resume(f);
            moved = true;
        }
        if (!moved) {
            fprintf(stderr, "emulator: deadlock; kernel %s, block (%u,%u,%u): %u of %u threads wait for ever", kernel_name, block_index.x, block_index.y, block_index.z, count, threads);
            for (unsigned i = 0; i < count && i < 4; i++) fprintf(stderr, "%s thread %u at %s", i ? "," : ":", live[i], operation_name[fibers[live[i]].waits_for]);
            fprintf(stderr, "\n");
            abort();
        }
        for (unsigned i = 0; i < count; i++) if (!fibers[live[i]].done) live[left++] = live[i];
        count = left;
    }
}

template <typename F> static void invoke(void *f) { (*(F *)f)(); }

template <typename F> static void launch(const char *name, dim3 grid, dim3 block, size_t bytes, F f) {
    kernel_name = name;
    block_size = block;
    grid_size = grid;
    threads = block.x * block.y * block.z;
    current = NULL;
    block_index = dim3(0, 0, 0);
    if (!threads || threads > MAX_THREADS) stop("a block must have 1 to 1024 threads");
    if (bytes > shared_limit) stop("more shared memory than the card has");
    if (grid.y > 65535 || grid.z > 65535 || grid.x > 2147483647u || !grid.x || !grid.y || !grid.z) stop("a grid of zero blocks, or of more than a GPU can count");
    body = invoke<F>;
    body_arguments = &f;
    uint64_t random = (uint64_t)emulator_order * 0x9E3779B97F4A7C15ull, blocks = (uint64_t)grid.x * grid.y * grid.z;
    void *memory = NULL;
    if (posix_memalign(&memory, 128, bytes ? bytes : 1)) abort();
    shared = (unsigned char *)memory;
    shared_end = shared + bytes;
    open_memory(true);
    uint64_t turn = emulator_order > 3 ? (uint64_t)emulator_order % blocks : 0;
    for (uint64_t i = 0; i < blocks; i++) {
        uint64_t b = emulator_order % 2 && emulator_order < 4 ? blocks - 1 - i : (i + turn) % blocks;
        block_index = dim3((unsigned)(b % grid.x), (unsigned)(b / grid.x % grid.y), (unsigned)(b / grid.x / grid.y));
        memset(shared, 0xff, bytes);
        run_block(&random);
    }
    open_memory(false);
    free(memory);
}

/* ---- operations of a warp: every lane leaves a pointer to what it brings, the last one does the work for all ----------------------------------------------- */

static unsigned warp_lanes() { return threads - current->warp * WARP_SIZE < WARP_SIZE ? threads - current->warp * WARP_SIZE : (unsigned)WARP_SIZE; }

template <typename Work> static void warp_meet(Operation operation, const void *site, void *mine, Work work) {
    Meeting *m = &warp_meetings[current->warp];
    join(m, operation, site);
    m->given[current->lane] = mine;
    if (m->arrived < warp_lanes()) { wait_for(m); return; }
    work(m->given);
    m->arrived = 0;
    m->generation++;
}

static void full_mask(unsigned mask) { if (mask != 0xffffffffu) stop("only full masks are supported"); }
static void in_shared(const void *p, size_t bytes) {
    if ((uintptr_t)p % 16) stop("a 16-byte access to shared memory is not aligned");
    if ((const unsigned char *)p < shared || (const unsigned char *)p + bytes > shared_end) stop("an access outside of the block's shared memory");
}

template <typename T> NEVER_INLINE static T shuffle(T value, unsigned from) {
    struct Lane { T value, result; unsigned from; } lane = {value, value, from};
    unsigned lanes = warp_lanes();
    warp_meet(SHUFFLE, CALL_SITE, &lane, [lanes](void **given) {
        for (unsigned i = 0; i < lanes; i++) { Lane *l = (Lane *)given[i]; l->result = l->from < lanes ? ((Lane *)given[l->from])->value : l->value; }
    });
    return lane.result;
}

struct Matrices { const uint16_t *row; uint32_t *to; };
NEVER_INLINE static void ldmatrix(uint32_t r[4], const void *row, bool transposed) {
    in_shared(row, 16);
    Matrices lane = {(const uint16_t *)row, r};
    if (warp_lanes() != WARP_SIZE) stop("ldmatrix needs a whole warp");
    warp_meet(transposed ? LDMATRIX_TRANS : LDMATRIX, CALL_SITE, &lane, [transposed](void **given) {
        for (int l = 0; l < WARP_SIZE; l++) {
            for (int i = 0; i < 4; i++) {
                int g = l / 4, t = l % 4 * 2;
                uint32_t low = transposed ? ((Matrices *)given[i * 8 + t])->row[g] : ((Matrices *)given[i * 8 + g])->row[t];
                uint32_t high = transposed ? ((Matrices *)given[i * 8 + t + 1])->row[g] : ((Matrices *)given[i * 8 + g])->row[t + 1];
                ((Matrices *)given[l])->to[i] = low | high << 16;
            }
        }
    });
}

/* c [16 x 8] += a [16 x 16] b [16 x 8]; T is the type of the fragments' numbers. KS: depth. */
template <typename T, int DEPTH> struct Product { float *c; const T *a, *b; };
template <typename T, int DEPTH> NEVER_INLINE static void multiply(float *c, const void *a, const void *b) {
    typedef Product<T, DEPTH> Lane;
    Lane lane = {c, (const T *)a, (const T *)b};
    if (warp_lanes() != WARP_SIZE) stop("mma needs a whole warp");
    warp_meet(MMA, CALL_SITE, &lane, [](void **given) {
        float A[16][DEPTH], B[DEPTH][8], C[16][8];
        for (int l = 0; l < WARP_SIZE; l++) {
            Lane *x = (Lane *)given[l];
            int g = l / 4, t = l % 4 * 2;
            for (int i = 0; i < DEPTH / 2; i++) A[g + i / 2 % 2 * 8][t + i / 4 * 8 + i % 2] = (float)x->a[i];
            for (int i = 0; i < DEPTH / 4; i++) B[t + i / 2 * 8 + i % 2][g] = (float)x->b[i];
            for (int i = 0; i < 4; i++) C[g + i / 2 * 8][t + i % 2] = x->c[i];
        }
        for (int m = 0; m < 16; m++) for (int k = 0; k < DEPTH; k++) for (int n = 0; n < 8; n++) C[m][n] += A[m][k] * B[k][n];
        for (int l = 0; l < WARP_SIZE; l++) for (int i = 0; i < 4; i++) ((Lane *)given[l])->c[i] = C[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2];
    });
}

NEVER_INLINE static void sync_warp() { warp_meet(SYNCWARP, CALL_SITE, NULL, [](void **) {}); }
NEVER_INLINE static void sync_block() {
    Meeting *m = &block_meeting;
    join(m, SYNCTHREADS, CALL_SITE);
    if (m->arrived < threads) { wait_for(m); return; }
    m->arrived = 0;
    m->generation++;
}

}   /* namespace emulator */

#define threadIdx (emulator::current->thread)
#define blockIdx emulator::block_index
#define blockDim emulator::block_size
#define gridDim emulator::grid_size
#define LAUNCH(kernel, grid, block, shared_bytes, ...) \
    (emulator::check_arguments(#kernel, __VA_ARGS__), emulator::launch(#kernel, dim3(grid), dim3(block), (size_t)(shared_bytes), [&] { kernel(__VA_ARGS__); }))

__forceinline__ void __syncthreads() { emulator::sync_block(); }
__forceinline__ void __syncwarp(unsigned mask = 0xffffffffu) { emulator::full_mask(mask); emulator::sync_warp(); }
template <typename T> __forceinline__ T __shfl_sync(unsigned mask, T value, int lane) { emulator::full_mask(mask); return emulator::shuffle(value, (unsigned)lane % 32); }
inline int __ffs(int x) { return __builtin_ffs(x); }
template <typename T> __forceinline__ T __shfl_xor_sync(unsigned mask, T value, int lanes) { emulator::full_mask(mask); return emulator::shuffle(value, emulator::current->lane ^ (unsigned)lanes); }
__forceinline__ unsigned __ballot_sync(unsigned mask, bool mine) {
    unsigned all = mine ? 1u << emulator::current->lane : 0;
    for (int lanes = 1; lanes < 32; lanes *= 2) all |= __shfl_xor_sync(mask, all, lanes);
    return all;
}

/* ---- the PTX of train_lora.cu, chapter 2 ------------------------------------------------------------------------------------------------------------------- */

__forceinline__ void ldmatrix_x4(uint32_t r[4], const void *row) { emulator::ldmatrix(r, row, false); }
__forceinline__ void ldmatrix_x4_trans(uint32_t r[4], const void *row) { emulator::ldmatrix(r, row, true); }
__forceinline__ void mma_bf16(float c[4], const uint32_t a[4], const uint32_t b[2]) { emulator::multiply<__nv_bfloat16, 16>(c, a, b); }
__forceinline__ void mma_fp16_k8(float c[4], const uint32_t a[2], const uint32_t b[1]) { emulator::multiply<__half, 8>(c, a, b); }
__forceinline__ void mma_fp16(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    if (!emulator::turing) { emulator::multiply<__half, 16>(c, a, b); return; }
    mma_fp16_k8(c, a, b);
    mma_fp16_k8(c, a + 2, b + 1);
}
__forceinline__ void mma_fp32(float c[4], const float a[8], const float b[4]) { emulator::multiply<float, 16>(c, a, b); }

/* The copy is made when it is waited for; until then its destination is poison. */
inline void cp_async_16(void *to, const void *from, bool valid) {
    emulator::in_shared(to, 16);
    if (valid && (uintptr_t)from % 16) emulator::stop("the source of an asynchronous copy is not aligned");
    memset(to, 0xff, 16);
    emulator::current->copies.push_back({to, from, valid, emulator::current->committed});
}
inline void cp_async_commit() { emulator::current->committed++; }
template <int PENDING> inline void cp_async_wait_group() {
    std::vector<emulator::Copy> &copies = emulator::current->copies;
    size_t left = 0;
    for (size_t i = 0; i < copies.size(); i++) {
        emulator::Copy c = copies[i];
        if (c.group >= emulator::current->committed - PENDING) copies[left++] = c;
        else if (c.valid) memcpy(c.to, c.from, 16);
        else memset(c.to, 0, 16);
    }
    copies.resize(left);
}

/* ---- the runtime --------------------------------------------------------------------------------------------------------------------------------------------- */

typedef int cudaError_t;
enum { cudaSuccess = 0, cudaErrorMemoryAllocation = 2 };
enum cudaMemcpyKind { cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice, cudaMemcpyDefault };
enum { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
struct cudaDeviceProp {
    char name[256];
    int major, minor, multiProcessorCount;
    size_t totalGlobalMem, sharedMemPerBlockOptin, sharedMemPerMultiprocessor;
};

inline cudaError_t cudaMallocManaged(void **p, size_t bytes) {
    if (emulator::allocated + bytes > emulator::memory_size || posix_memalign(p, 256, bytes ? bytes : 1)) return cudaErrorMemoryAllocation;
    memset(*p, 0xff, bytes);
    emulator::allocations[(char *)*p] = {bytes, true};
    emulator::allocated += bytes;
    return cudaSuccess;
}
inline cudaError_t cudaMalloc(void **p, size_t bytes) {
    using namespace emulator;
    if (allocated + bytes > memory_size) return cudaErrorMemoryAllocation;
    if (!span) {
        span = span_next = (char *)mmap(NULL, SPAN, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (span == (char *)MAP_FAILED) { perror("emulator: addresses of device memory"); abort(); }
#ifndef EMULATOR_ASAN
        struct sigaction fault;
        memset(&fault, 0, sizeof fault);
        fault.sa_sigaction = on_fault;
        fault.sa_flags = SA_SIGINFO;
        sigaction(SIGSEGV, &fault, NULL);
#endif
    }
    size_t pages = (bytes + PAGE - 1) / PAGE * PAGE + PAGE;
    if (pages > (size_t)(span + SPAN - span_next)) { fprintf(stderr, "emulator: out of addresses\n"); abort(); }
    char *at = span_next + pages - PAGE - (bytes + 255) / 256 * 256;
#ifdef EMULATOR_ASAN
    __asan_poison_memory_region(span_next, pages);
    __asan_unpoison_memory_region(at, bytes);
#endif
    span_next += pages;
    auto a = allocations.emplace(at, Allocation{bytes, false}).first;
    allocated += bytes;
    open_memory(a, true);
    memset(at, 0xff, bytes);
    open_memory(a, false);
    *p = at;
    return cudaSuccess;
}
inline cudaError_t cudaFree(void *p) {
    using namespace emulator;
    auto a = allocations.find((char *)p);
    if (a == allocations.end()) { fprintf(stderr, "emulator: cudaFree of what cudaMalloc never gave\n"); abort(); }
    if (a->second.managed) free(p);
    else if (a->second.bytes) {             /* the memory goes, the addresses stay closed */
        char *page = (char *)((uintptr_t)p / PAGE * PAGE);
        size_t bytes = (size_t)(a->first + a->second.bytes - page);
        if (mmap(page, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) != page) { perror("emulator: cudaFree"); abort(); }
#ifdef EMULATOR_ASAN
        __asan_poison_memory_region(page, (bytes + PAGE - 1) / PAGE * PAGE);
#endif
    }
    allocated -= a->second.bytes;
    allocations.erase(a);
    return cudaSuccess;
}
static int64_t emulator_copies;            /* cudaMemcpy so far: on a card each of them waits */
/* A copy must say where its ends lie: managed memory is on either side, all else on one. */
inline cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    using namespace emulator;
    if (!bytes) return cudaSuccess;
    emulator_copies++;
    auto in = owner(to), out = owner(from), none = allocations.end();
    bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    kernel_name = "cudaMemcpy";
    if (kind != cudaMemcpyDefault && (to_device ? in == none : in != none && !in->second.managed)) stop("a copy to the other memory than it says");
    if (kind != cudaMemcpyDefault && (from_device ? out == none : out != none && !out->second.managed)) stop("a copy from the other memory than it says");
    open_memory(in, true);
    open_memory(out, true);
    memcpy(to, from, bytes);
    open_memory(in, false);
    open_memory(out, false);
    return cudaSuccess;
}
inline cudaError_t cudaMemcpy2D(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t bytes,
                                size_t rows, cudaMemcpyKind kind) {
    if (bytes > to_pitch || bytes > from_pitch) emulator::stop("a row that is wider than its pitch");
    for (size_t r = 0; r < rows; r++)
        cudaMemcpy((char *)to + r * to_pitch, (const char *)from + r * from_pitch, bytes, kind);
    return cudaSuccess;
}
inline cudaError_t cudaMemset(void *p, int value, size_t bytes) {
    auto a = emulator::owner(p);
    emulator::kernel_name = "cudaMemset";
    if (bytes && a == emulator::allocations.end()) emulator::stop("it is for device memory");
    emulator::open_memory(a, true);
    if (bytes) memset(p, value, bytes);
    emulator::open_memory(a, false);
    return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char *cudaGetErrorName(cudaError_t e) { return e ? "cudaErrorMemoryAllocation" : "cudaSuccess"; }
inline const char *cudaGetErrorString(cudaError_t e) { return e ? "out of memory" : "no error"; }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int *count) { *count = 1; return cudaSuccess; }
inline cudaError_t cudaMemGetInfo(size_t *available, size_t *total) { *available = emulator::memory_size - emulator::allocated; *total = emulator::memory_size; return cudaSuccess; }
enum cudaDeviceAttr { cudaDevAttrClockRate = 13, cudaDevAttrConcurrentManagedAccess = 89 };
inline cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr a, int) {
    *value = a == cudaDevAttrClockRate ? 1000000 : 1;
    return cudaSuccess;
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int) {
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "emulated on the CPU");
    p->major = 9;
    p->multiProcessorCount = 4;
    p->totalGlobalMem = emulator::memory_size;
    p->sharedMemPerBlockOptin = emulator::shared_limit;
    p->sharedMemPerMultiprocessor = emulator::shared_limit + 1024;
    return cudaSuccess;
}
struct cudaFuncAttributes { int binaryVersion; };
template <typename K> inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *a, K) {
    a->binaryVersion = 90;
    return cudaSuccess;
}
template <typename K> inline cudaError_t cudaFuncSetAttribute(K, int, int) { return cudaSuccess; }
#endif
