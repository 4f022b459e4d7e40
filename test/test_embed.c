/* test_embed.c - lora.h from a C program of one's own: open a model, attach an adapter, train a few steps, save. This is the example that lora.h's first comment promises.
   gcc -std=gnu11 -O3 -march=native -fopenmp -I. test/test_embed.c -o build/test_embed -lm && build/test_embed      (from the repository root) */
#define TOKENIZER_IMPLEMENTATION
#define LORA_IMPLEMENTATION
#include "lora.h"

int main(void) {
    Error err;
    Model model;
    Adapter adapter;
    Workspace work;
    Dataset data;
    Batch batch;
    DataOptions how = {.max_length = 256, .enable_thinking = -1, .threads = 2};
    Optimizer adamw = {.beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8};
    LoraConfig lora = {.r = 8, .lora_alpha = 16, .target = {true, true, true, true, true, true, true}};
    memset(&adapter, 0, sizeof adapter);
    memset(&work, 0, sizeof work);
    Tokenizer *tokenizer = tokenizer_open("data/base", &err);
    if (!tokenizer || !dataset_open(&data, "data/hotel/train.jsonl", tokenizer, &how, &err) || !model_open(&model, "data/base", &err) || !adapter_attach(&adapter, &model, &lora, 42, &err)) goto failed;
    int tokens, sequences;
    dataset_largest_batch(&data, 4, &tokens, &sequences);
    if (!batch_alloc(&batch, tokens, sequences, &err) || !workspace_open(&work, &model, &adapter, tokens, (int)data.stats.longest, RECOMPUTE_NONE, true, NULL, &err)) goto failed;
    double first = 0, last = 0;
    for (int step = 0; step < 12; step++) {
        int64_t slots[4] = {step % 3 * 4, step % 3 * 4 + 1, step % 3 * 4 + 2, step % 3 * 4 + 3};
        DropoutKey key = {.seed = 42, .step = (uint32_t)step};
        batch_build(&batch, &data, slots, 4);
        adapter_zero_grad(&adapter);
        model_forward(&model, &adapter, &work, &batch, key);
        LossStats s = model_loss(&model, &adapter, &work, &batch, 1.0f / (float)batch.M);
        model_backward(&model, &adapter, &work, &batch, key);
        double norm;
        if (optimizer_step(&adapter, &adamw, 5e-3, &norm) != STEP_TAKEN) continue;    /* fp16: half the scale next time */
        last = s.loss_sum / (double)s.tokens;
        if (!step) first = last;
    }
    char folder[] = "/tmp/train_lora_embed_XXXXXX";
    if (!mkdtemp(folder) || !adapter_save(&adapter, folder, &err)) goto failed;
    char command[128];
    snprintf(command, sizeof command, "rm -r %s", folder);
    batch_free(&batch);
    workspace_close(&work);
    adapter_drop(&adapter);
    model_close(&model);
    dataset_free(&data);
    tokenizer_free(tokenizer);
    bool learned = last < 0.8 * first && !system(command);
    printf("%s  lora.h embedded: loss %.4f -> %.4f in 12 steps, adapter saved\n%d passed, %d failed\n", learned ? "ok  " : "FAIL", first, last, learned, !learned);
    return !learned;
failed:
    printf("FAIL  %s\n0 passed, 1 failed\n", err.text);
    return 1;
}
