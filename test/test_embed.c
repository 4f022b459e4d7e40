/* test_embed.c - lora.h from a program of one's own, C or C++: open a model, attach an adapter, train a few steps,
   save.
   This is the example that lora.h's first comment promises. From the repository root:
     gcc -std=gnu11 -O3 -march=native -fopenmp -I. test/test_embed.c -o build/test_embed -lm && build/test_embed
   or with `make single` and -Ibuild in place of -I.: lora.h in one file. */
#define TOKENIZER_IMPLEMENTATION
#define LORA_IMPLEMENTATION
#include "lora.h"

static Model model;
static Adapter adapter;                     /* all zero: nothing attached */
static Workspace work;
static Dataset data;
static Batch batch;

/* The loss per token of the first and the last step; the adapter goes into `folder`. */
static bool learn(double *first, double *last, const char *folder, Error *err) {
    static DataOptions how;                 /* zero: the default of what is not named here */
    static LoraConfig lora;
    static Optimizer adamw;
    how.max_length = 256; how.enable_thinking = -1; how.threads = 2;
    lora.r = 8; lora.lora_alpha = 16;
    for (int j = 0; j < MODULE_COUNT; j++) lora.target[j] = true;
    adamw.beta1 = 0.9; adamw.beta2 = 0.999; adamw.epsilon = 1e-8;
    int tokens, sequences;
    Tokenizer *tokenizer = tokenizer_open("data/base", err);
    if (!tokenizer || !dataset_open(&data, "data/hotel/train.jsonl", tokenizer, &how, err)) return false;
    if (!model_open(&model, "data/base", err) || !adapter_attach(&adapter, &model, &lora, 42, err)) return false;
    dataset_largest_batch(&data, 4, &tokens, &sequences);
    int longest = (int)data.stats.longest;
    if (!batch_alloc(&batch, tokens, sequences, err)) return false;
    if (!workspace_open(&work, &model, &adapter, tokens, longest, RECOMPUTE_NONE, true, NULL, err)) return false;
    for (int step = 0; step < 12; step++) {
        int64_t from = step % 3 * 4, slots[4] = {from, from + 1, from + 2, from + 3};
        DropoutKey key;
        double norm;
        memset(&key, 0, sizeof key);
        key.seed = 42; key.step = (uint32_t)step;
        batch_build(&batch, &data, slots, 0, 4);
        adapter_zero_grad(&adapter);
        model_forward(&model, &adapter, &work, &batch, key);
        LossStats s = model_loss(&model, &adapter, &work, &batch, 1.0f / (float)batch.M);
        model_backward(&model, &adapter, &work, &batch, key);
        /* fp16: half the scale next time */
        if (optimizer_step(&adapter, &adamw, 5e-3, &norm) != STEP_TAKEN) continue;
        *last = s.loss_sum / (double)s.tokens;
        if (!step) *first = *last;
    }
    bool saved = adapter_save(&adapter, folder, err);
    batch_free(&batch);
    workspace_close(&work);
    adapter_drop(&adapter);
    model_close(&model);
    dataset_free(&data);
    tokenizer_free(tokenizer);
    return saved;
}

int main(void) {
    Error err = {"no temporary folder"};
    double first = 0, last = 0;
    char folder[] = "/tmp/train_lora_embed_XXXXXX", command[128];
    bool saved = mkdtemp(folder) && learn(&first, &last, folder, &err);
#ifdef OWN_NAMES_H
    saved = saved && own_names() == 52;
#endif
    snprintf(command, sizeof command, "rm -r %s", folder);
    bool learned = saved && last < 0.8 * first && !system(command);
    if (!saved) printf("FAIL  %s\n", err.text);
    printf("%s  lora.h embedded: loss %.4f -> %.4f in 12 steps, adapter saved\n", learned ? "ok  " : "FAIL", first,
           last);
    printf("%d passed, %d failed\n", learned, !learned);
    return !learned;
}
