/* bench_generate.c - how near generation comes to what memory allows: bytes of weights a token over measured bandwidth; and reading a prompt beside the forward pass of training.
   build/bench_generate MODEL_FOLDER      (make bench; a folder of random weights will do: build/make_random_model) */
#ifdef __CUDACC__
#define TESTING
#include "../train_lora.cu"
#else
#define TOKENIZER_IMPLEMENTATION
#define LORA_IMPLEMENTATION
#include "../lora.h"
#endif

static void must(bool ok, const Error *err) { if (!ok) { fprintf(stderr, "error: %s\n", err->text); exit(1); } }

/* Bytes a second that memory gives, best of five passes over more than any cache holds: the card's for a copy within it (read and written), else what all threads read together. */
static double bandwidth(void) {
    size_t bytes = (size_t)512 << 20;
    double best = 0;
#ifdef LORA_CUDA
    void *from = backend_alloc(bytes), *to = backend_alloc(bytes);
    for (int pass = 0; pass < 5; pass++) {
        double start = seconds_now();
        CUDA_CHECK(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToDevice));
        CUDA_CHECK(cudaDeviceSynchronize());
        best = fmax(best, 2.0 * (double)bytes / (seconds_now() - start));
    }
    backend_free(from, bytes);
    backend_free(to, bytes);
#else
    int count = (int)(bytes / sizeof(double));
    double *data = (double *)must_alloc(bytes), sink = 0;
#pragma omp parallel for schedule(static)
    for (int i = 0; i < count; i++) data[i] = i;
    for (int pass = 0; pass < 5; pass++) {
        double start = seconds_now();
#pragma omp parallel for schedule(static) reduction(+ : sink)
        for (int i = 0; i < count; i += 8) sink += (data[i] + data[i + 1]) + (data[i + 2] + data[i + 3]) + (data[i + 4] + data[i + 5]) + (data[i + 6] + data[i + 7]);
        double rate = (double)bytes / (seconds_now() - start);
        if (sink != 0) best = fmax(best, rate);
    }
    free(data);
#endif
    return best;
}

int main(int argc, char **argv) {
    Error err;
    Model m;
    if (argc != 2) { fprintf(stderr, "error: usage; build/bench_generate; give a model folder\n"); return 2; }
    must(model_open(&m, argv[1], &err), &err);
    GenerateOptions o;
    memset(&o, 0, sizeof o);
    o.top_p = o.repetition_penalty = 1;
    double bytes = (double)m.weight_bytes, rate = bandwidth();
    printf("memory bandwidth %.1f GB/s, weights %.2f GB: at most %.1f tokens/s with one sequence\n", rate * 1e-9, bytes * 1e-9, rate / bytes);
    for (int batch = 1; batch <= 8; batch *= 2) {
        Prompt prompts[8];
        Answer answers[8];
        int32_t id = 5;
        for (int i = 0; i < batch; i++) { Prompt p = {&id, 1, NULL, NULL, i + 1}; prompts[i] = p; }
        double seconds[2];
        for (int k = 0; k < 2; k++) {       /* the difference leaves out what happens once */
            o.max_new_tokens = k ? 40 : 8;
            o.batch_size = batch;
            double start = seconds_now();
            must(model_generate(&m, NULL, NULL, NULL, prompts, (size_t)batch, &o, answers, NULL, NULL, &err), &err);
            seconds[k] = seconds_now() - start;
            answers_free(answers, (size_t)batch);
        }
        double steps = 32 / (seconds[1] - seconds[0]);
        printf("decode, batch %d: %8.1f tokens/s, %3.0f %% of the bandwidth\n", batch, steps * batch, 100 * steps * bytes / rate);
    }
    enum { VOCAB = 151936, DRAWS = 100 };   /* Qwen3's, with the settings that its generation_config.json gives */
    float *logits = (float *)must_alloc(VOCAB * sizeof *logits), *scratch = (float *)must_alloc(VOCAB * sizeof *scratch);
    GenCandidate *work = (GenCandidate *)must_alloc(VOCAB * sizeof *work);
    for (int i = 0; i < VOCAB; i++) logits[i] = (float)((uint32_t)i * 2654435761u >> 16) * 0x1p-12f;
    GenerateOptions sampling = o;
    sampling.temperature = 0.6; sampling.top_k = 20; sampling.top_p = 0.95;
    double start = seconds_now();
    volatile int32_t chosen;                /* read by nobody, but made */
    for (int i = 0; i < DRAWS; i++) { memcpy(scratch, logits, VOCAB * sizeof *logits); chosen = sample_token(scratch, VOCAB, NULL, 0, &sampling, (uint64_t)i, 0, work); }
    (void)chosen;
    printf("choosing one of %d tokens, top-k 20, top-p 0.95: %.2f ms\n", VOCAB, 1e3 * (seconds_now() - start) / DRAWS);
    free(logits); free(scratch); free(work);
    enum { LENGTH = 512 };
    int32_t *ids = (int32_t *)must_alloc(LENGTH * sizeof *ids);
    for (int i = 0; i < LENGTH; i++) ids[i] = i % 200 + 3;
    Prompt prompt = {ids, LENGTH, NULL, NULL, 1};
    Answer answer;
    double prefill = 1e9, forward = 1e9;
    for (int k = 0; k < 3; k++) {
        o.max_new_tokens = 1;
        start = seconds_now();
        must(model_generate(&m, NULL, NULL, NULL, &prompt, 1, &o, &answer, NULL, NULL, &err), &err);
        prefill = fmin(prefill, seconds_now() - start);
        answers_free(&answer, 1);
    }
    Batch b;
    DropoutKey none = {0, 0, 0, 0};
    Workspace w;
    memset(&w, 0, sizeof w);
    must(workspace_open(&w, &m, NULL, LENGTH, LENGTH, RECOMPUTE_NONE, true, NULL, &err) && batch_alloc(&b, LENGTH, 1, &err), &err);
    for (int i = 0; i < LENGTH; i++) { b.ids[i] = ids[i]; b.positions[i] = i; }
    b.N = LENGTH; b.S = b.M = 1; b.labelled[0] = LENGTH - 1; b.targets[0] = 5; b.cu_seqlens[0] = 0; b.cu_seqlens[1] = LENGTH;
    for (int k = 0; k < 3; k++) {
        start = seconds_now();
        model_forward(&m, NULL, &w, &b, none);
        model_loss(&m, NULL, &w, &b, 0);
        forward = fmin(forward, seconds_now() - start);
    }
    printf("prefill of %d tokens: %.1f tokens/s; training's forward pass: %.1f tokens/s (%+.0f %%)\n", LENGTH, LENGTH / prefill, LENGTH / forward, 100 * (forward / prefill - 1));
    batch_free(&b);
    workspace_close(&w);
    model_close(&m);
    free(ids);
    return 0;
}
