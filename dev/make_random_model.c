/* make_random_model.c - a Hugging Face folder with random weights in the shape of a config.json, for benches: make_random_model CONFIG.json FOLDER F32|BF16
   Matrices are uniform with standard deviation 0.02, norms are 1. Tensors are streamed: a folder larger than memory is no problem. */
#define TOKENIZER_IMPLEMENTATION
#define LORA_IMPLEMENTATION
#include "lora.h"

int main(int argc, char **argv) {
    Error err;
    JsonDoc doc;
    ModelConfig c;
    size_t bytes;
    if (argc != 4 || (strcmp(argv[3], "F32") && strcmp(argv[3], "BF16"))) { fprintf(stderr, "usage: make_random_model CONFIG.json FOLDER F32|BF16\n"); return 2; }
    char *text = read_file(argv[1], &bytes, &err);
    if (!text || !json_parse(&doc, text, bytes, argv[1], 1, &err) || !config_parse(&c, doc.root, argv[1], &err) || !make_folder(argv[2], &err)) { fprintf(stderr, "error: %s\n", err.text); return 1; }
    char path[PATH_MAX];
    path_in(path, sizeof path, argv[2], "config.json");
    if (!write_file(path, text, bytes, &err)) { fprintf(stderr, "error: %s\n", err.text); return 1; }
    TensorSpec *specs = NULL;               /* stb_ds array */
    for (TensorSpec t = model_tensors(&c, "model."); tensor_next(&t);)
        if (t.kind != TENSOR_HEAD || !t.optional) arrput(specs, t);
    bool half = !strcmp(argv[3], "BF16");
    Text header = TEXT_EMPTY;
    size_t offset = 0;
    safetensors_begin(&header);
    for (ptrdiff_t i = 0; i < arrlen(specs); i++) {
        size_t size = tensor_count(&specs[i]) * (half ? 2 : 4);
        int64_t shape[2] = {specs[i].rows, specs[i].cols};
        safetensors_entry(&header, specs[i].name, argv[3], shape, specs[i].cols ? 2 : 1, offset, offset + size);
        offset += size;
    }
    text_bytes(&header, "}", 1);
    SafeFile f;
    path_in(path, sizeof path, argv[2], "model.safetensors");
    if (!safe_open(&f, path, &err)) { fprintf(stderr, "error: %s\n", err.text); return 1; }
    safetensors_header(&f, &header);
    uint32_t state = 1;
    static uint32_t block[1 << 16];
    for (ptrdiff_t i = 0; i < arrlen(specs); i++) {
        size_t left = tensor_count(&specs[i]);
        bool norm = specs[i].kind == TENSOR_NORM || specs[i].kind == TENSOR_FINAL_NORM;
        while (left) {
            size_t n = left < sizeof block / sizeof *block ? left : sizeof block / sizeof *block;
            for (size_t k = 0; k < n; k++) {
                state = state * 1664525u + 1013904223u;
                float v = norm ? 1.0f : ((float)(state >> 8) * 0x1p-23f - 1) * 0.0346f;
                uint32_t u;
                memcpy(&u, &v, 4);
                if (half) { uint16_t h = (uint16_t)(u >> 16); memcpy((char *)block + k * 2, &h, 2); }
                else block[k] = u;
            }
            safe_write(&f, block, n * (half ? 2 : 4));
            left -= n;
        }
    }
    if (!safe_close(&f, &err)) { fprintf(stderr, "error: %s\n", err.text); return 1; }
    printf("%s: %.2f GiB\n", path, (double)offset / 0x1p30);
    return 0;
}
