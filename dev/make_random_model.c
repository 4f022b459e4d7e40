/* make_random_model.c - a Hugging Face folder with random weights in the shape of a config.json, for benches: make_random_model CONFIG.json FOLDER F32|BF16
   Matrices are uniform with standard deviation 0.02, norms are 1. Tensors are streamed: a folder larger than memory is no problem. */
#define TOKENIZER_IMPLEMENTATION
#define LORA_IMPLEMENTATION
#include "lora.h"

typedef struct Entry { char name[128]; int64_t rows, columns; } Entry;     /* columns 0: a norm or a bias */

static Entry *entries;                      /* stb_ds array */
static void entry_add(const char *name, int64_t rows, int64_t columns) {
    Entry e;
    memset(&e, 0, sizeof e);
    snprintf(e.name, sizeof e.name, "%s", name);
    e.rows = rows;
    e.columns = columns;
    arrput(entries, e);
}

int main(int argc, char **argv) {
    Error err;
    JsonDoc doc;
    ModelConfig c;
    size_t bytes;
    if (argc != 4 || (strcmp(argv[3], "F32") && strcmp(argv[3], "BF16"))) { fprintf(stderr, "usage: make_random_model CONFIG.json FOLDER F32|BF16\n"); return 2; }
    char *text = read_file(argv[1], &bytes, &err);
    if (!text || !json_parse(&doc, text, bytes, argv[1], 1, &err) || !config_parse(&c, doc.root, argv[1], &err) || !make_folder(argv[2], &err)) { fprintf(stderr, "error: %s\n", err.text); return 1; }
    char path[PATH_MAX], name[128];
    path_in(path, sizeof path, argv[2], "config.json");
    if (!write_file(path, text, bytes, &err)) { fprintf(stderr, "error: %s\n", err.text); return 1; }
    int C = c.hidden_size, F = c.intermediate_size, D = c.head_dim, HD = c.num_attention_heads * D, KD = c.num_key_value_heads * D;
    const int out[MODULE_COUNT] = {HD, KD, KD, C, F, F, C}, in[MODULE_COUNT] = {C, C, C, HD, C, C, F};
    entry_add("model.embed_tokens.weight", c.vocab_size, C);
    entry_add("model.norm.weight", C, 0);
    if (!c.tie_word_embeddings) entry_add("lm_head.weight", c.vocab_size, C);
    for (int l = 0; l < c.num_hidden_layers; l++) {
        static const char *const norms[] = {"input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"};
        for (int i = 0; i < (c.qk_norm ? 4 : 2); i++) { snprintf(name, sizeof name, "model.layers.%d.%s.weight", l, norms[i]); entry_add(name, i < 2 ? C : D, 0); }
        for (int j = 0; j < MODULE_COUNT; j++) {
            snprintf(name, sizeof name, "model.layers.%d.%s.weight", l, module_path[j]);
            entry_add(name, out[j], in[j]);
            snprintf(name, sizeof name, "model.layers.%d.%s.bias", l, module_path[j]);
            if (c.bias[j]) entry_add(name, out[j], 0);
        }
    }
    bool half = !strcmp(argv[3], "BF16");
    Text header = TEXT_EMPTY;
    size_t offset = 0;
    text_print(&header, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (ptrdiff_t i = 0; i < arrlen(entries); i++) {
        size_t size = (size_t)(entries[i].rows * (entries[i].columns ? entries[i].columns : 1)) * (half ? 2 : 4);
        text_print(&header, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%lld", entries[i].name, argv[3], (long long)entries[i].rows);
        if (entries[i].columns) text_print(&header, ",%lld", (long long)entries[i].columns);
        text_print(&header, "],\"data_offsets\":[%zu,%zu]}", offset, offset + size);
        offset += size;
    }
    text_print(&header, "}");
    while (header.length % 8) text_print(&header, " ");
    SafeFile f;
    path_in(path, sizeof path, argv[2], "model.safetensors");
    if (!safe_open(&f, path, &err)) { fprintf(stderr, "error: %s\n", err.text); return 1; }
    uint64_t length = (uint64_t)header.length;
    safe_write(&f, &length, 8);             /* little-endian machines, like every CUDA host */
    safe_write(&f, header.at, (size_t)length);
    uint32_t state = 1;
    static uint32_t block[1 << 16];
    for (ptrdiff_t i = 0; i < arrlen(entries); i++) {
        size_t left = (size_t)(entries[i].rows * (entries[i].columns ? entries[i].columns : 1));
        bool norm = strstr(entries[i].name, "norm") != NULL;
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
