/* backend.h - what a test of ops or models includes instead of lora.h: the backend under test and memory that both it and the test can reach.
     gcc test.c                          the CPU ops of lora.h
     g++ -x c++ -DEMULATED test.c        the CUDA kernels of train_lora.cu, run by test/cuda_on_cpu.h; -DPRECISION_FP32 or -DPRECISION_FP16 choose floatX, else bf16
     nvcc -x cu test.c                   the same kernels on a card */
#ifndef BACKEND_H
#define BACKEND_H
#ifdef EMULATED
#include "cuda_on_cpu.h"
#endif
#if defined(EMULATED) || defined(__CUDACC__)
#define TESTING                             /* train_lora.cu without its main */
#ifdef MUTATED
#include "mutants.h"
#include "train_lora.cu"
enum { MUTANT_SITES = __COUNTER__ - mutants::FIRST };
#else
#include "train_lora.cu"
#endif
#else
#define TOKENIZER_IMPLEMENTATION
#define LORA_IMPLEMENTATION
#include "lora.h"
#endif
#include "check.h"

/* Memory for inputs and outputs of ops; on a card it is managed memory, which host and kernels share. */
__attribute__((unused)) static void *shared_alloc(size_t bytes) {
#ifdef LORA_CUDA
    void *p = NULL;
    CUDA_CHECK(cudaMallocManaged(&p, bytes ? bytes : 1));      /* not a byte more: an overrun must be seen */
    return p;
#else
    return aligned_alloc(64, (bytes + 64) / 64 * 64);
#endif
}
__attribute__((unused)) static void shared_free(const void *p) {
#ifdef LORA_CUDA
    if (p) CUDA_CHECK(cudaFree((void *)p));
#else
    free((void *)p);
#endif
}
/* Kernels run beside the host: nothing is read before they are done. */
__attribute__((unused)) static void shared_wait(void) {
#ifdef LORA_CUDA
    CUDA_CHECK(cudaDeviceSynchronize());
#endif
}
__attribute__((unused)) static void backend_ready(void) {
    Error err;
    ModelConfig any;
    memset(&any, 0, sizeof any);
    any.head_dim = 64;
    if (!backend_open(&any, &err)) { printf("FAIL  %s\n", err.text); exit(1); }
#ifdef LORA_CUDA
    int shared = 0;
    CUDA_CHECK(cudaDeviceGetAttribute(&shared, cudaDevAttrConcurrentManagedAccess, 0));
    if (!shared && !getenv("CUDA_LAUNCH_BLOCKING")) {
        printf("FAIL  host and kernels cannot share managed memory at once here (WSL2): set CUDA_LAUNCH_BLOCKING=1\n");
        exit(1);
    }
#endif
}

/* How far values are from a probe of dev/make_trained_golden.py, [sum of x_i cos(i + 1), sum of |x_i|, the first 8]:
   the sums relative to the second, the values to their mean size. */
__attribute__((unused)) static double probe_error(const float *x, size_t count, const Json *want) {
    double sum = 0, size = 0, worst = 0;
    if (!want || want->type != JSON_ARRAY || want->count < 3) return INFINITY;
    for (size_t i = 0; i < count; i++) {
        sum += (double)x[i] * cos((double)i + 1);
        size += fabs((double)x[i]);
    }
    const Json *e = want->child;
    double all = e->next->number, mean = all / (double)count, errors[2] = {fabs(sum - e->number) / all,
                                                                         fabs(size - all) / all};
    for (int i = 0; i < 2; i++) if (!(errors[i] <= worst)) worst = isfinite(errors[i]) ? errors[i] : INFINITY;
    e = e->next->next;
    for (size_t i = 0; e && i < count; i++, e = e->next) {
        double error = fabs((double)x[i] - e->number) / mean;
        if (!(error <= worst)) worst = isfinite(error) ? error : INFINITY;
    }
    return worst;
}
#endif
