/* test_model.c - the whole model against Transformers + PEFT (test/golden, made by dev/make_golden.py), against float64 numbers of a real pretrained model, and against itself.
   gcc -std=gnu11 -O2 -fopenmp -I. test/test_model.c -o build/test_model -lm && build/test_model      (from the repository root) */
#include "backend.h"

/* fp32 rounding through a few dozen layers of sums: the reference itself (torch, fp32) is no more exact than this. */
#define TOLERANCE 1e-5

static void must(bool ok, const Error *err) {
    if (ok) return;
    printf("FAIL  cannot go on: %s\n", err->text);
    checks_failed++;
    exit(finish());
}

static const Tensor *golden_tensor(TensorSet *set, const char *name) {
    ptrdiff_t at = shgeti(set->table, name);
    assert(at >= 0);
    return &set->table[at].value;
}

/* A batch from HF-style labels. */
static void batch_from(Batch *b, const int32_t *ids, const int32_t *labels, const int32_t *cu, int S) {
    Error err;
    must(batch_alloc(b, cu[S], S, &err), &err);
    b->N = cu[S];
    b->S = S;
    b->M = 0;
    memcpy(b->cu_seqlens, cu, (size_t)(S + 1) * sizeof *cu);
    for (int s = 0; s < S; s++) {
        b->row[s] = s + 1;
        for (int n = cu[s]; n < cu[s + 1]; n++) {
            b->ids[n] = ids[n];
            b->positions[n] = n - cu[s];
            if (!labels || n + 1 == cu[s + 1] || labels[n + 1] == -100) continue;
            b->labelled[b->M] = n;
            b->targets[b->M++] = labels[n + 1];
        }
    }
}

/* A copy of an arena of the backend: on a card the host cannot look into it. */
static float *fetched(const float *arena, size_t count) {
    float *p = (float *)malloc(count * sizeof(float));
    backend_download(p, arena, count * sizeof(float));
    return p;
}
static double grad_error(const Adapter *a, const float *want) {
    float *grad = fetched(a->grad, a->param_count);
    double e = relative_error(grad, want, a->param_count);
    free(grad);
    return e;
}
static bool grad_same(const Adapter *a, const float *want) {
    float *grad = fetched(a->grad, a->param_count);
    bool same = !memcmp(grad, want, a->param_count * sizeof(float));
    free(grad);
    return same;
}

static const DropoutKey no_mask = {0, 0, 0, 0};
static Adapter no_adapter(void) { Adapter a; memset(&a, 0, sizeof a); return a; }
static Workspace no_workspace(void) { Workspace w; memset(&w, 0, sizeof w); return w; }
/* Forward, loss and backward: what a training run does with a micro-batch. */
static LossStats train_pass(const Model *m, Adapter *a, Workspace *w, const Batch *b, DropoutKey key, float dloss) {
    model_forward(m, a, w, b, key);
    LossStats s = model_loss(m, a, w, b, dloss);
    model_backward(m, a, w, b, key);
    return s;
}

/* ---- 1. Transformers + PEFT ------------------------------------------------------------------------------------------------------------------- */

static void test_golden(const char *name, const char *adapter, const char *golden) {
    static const char *const level[] = {"none", "gate_up", "layer"};
    char folder[256], path[300];
    Error err;
    Model m;
    Adapter a = no_adapter();
    Workspace w = no_workspace();
    snprintf(folder, sizeof folder, "test/golden/%s", name);
    must(model_open(&m, folder, &err), &err);
    snprintf(path, sizeof path, "%s/%s", folder, adapter);
    must(adapter_load(&a, &m, path, &err), &err);
    TensorSet set;
    memset(&set, 0, sizeof set);
    snprintf(path, sizeof path, "%s/%s", folder, golden);
    must(tensors_add_file(&set, path, &err), &err);
    const Tensor *cu = golden_tensor(&set, "cu_seqlens");
    Batch b;
    batch_from(&b, (const int32_t *)golden_tensor(&set, "ids")->data, (const int32_t *)golden_tensor(&set, "labels")->data, (const int32_t *)cu->data, (int)cu->count - 1);
    size_t V = (size_t)m.config.vocab_size, count = (size_t)b.N * V;
    float *logits = (float *)malloc(count * sizeof(float));
    for (int recompute = RECOMPUTE_NONE; recompute <= RECOMPUTE_LAYER; recompute++) {
        must(workspace_open(&w, &m, &a, b.N, 64, (Recompute)recompute, true, NULL, &err), &err);
        if (recompute == RECOMPUTE_NONE) {
            memset(logits, 0xff, count * sizeof(float));
            model_logits(&m, &a, &w, logits, &b);
            double e = relative_error(logits, (const float *)golden_tensor(&set, "logits")->data, count);
            check(e <= TOLERANCE, "%s/%s logits with adapter: relative error %.2e", name, adapter, e);
            model_logits(&m, NULL, &w, logits, &b);
            e = relative_error(logits, (const float *)golden_tensor(&set, "base_logits")->data, count);
            check(e <= TOLERANCE, "%s/%s logits of the base: relative error %.2e", name, adapter, e);
        }
        adapter_zero_grad(&a);
        LossStats s = train_pass(&m, &a, &w, &b, no_mask, 1.0f / (float)b.M);
        double loss = s.loss_sum / (double)s.tokens, want = (double)((const float *)golden_tensor(&set, "loss")->data)[0];
        check(s.tokens == b.M && fabs(loss - want) <= TOLERANCE * want, "%s/%s loss %.7f, Transformers %.7f (recompute %s)", name, adapter, loss, want, level[recompute]);
        const Trainable *list = a.list;
        float *grad = fetched(a.grad, a.param_count);
        double worst = 0;
        char worst_name[224] = "";
        for (ptrdiff_t i = 0; i < arrlen(list); i++) {
            char key[232];
            snprintf(key, sizeof key, "grad.%s", list[i].name);
            const Tensor *t = golden_tensor(&set, key);
            assert((int64_t)t->count == list[i].shape[0] * list[i].shape[1]);
            double e = relative_error(grad + list[i].offset, (const float *)t->data, t->count);
            if (!(e <= worst)) { worst = e; snprintf(worst_name, sizeof worst_name, "%s", list[i].name); }
        }
        check(worst <= TOLERANCE, "%s/%s %d gradients: worst relative error %.2e in %s (recompute %s)", name, adapter, (int)arrlen(list), worst, worst_name, level[recompute]);
        free(grad);
    }
    free(logits);
    batch_free(&b);
    tensors_close(&set);
    workspace_close(&w);
    adapter_drop(&a);
    model_close(&m);
}

/* The worst relative error of a's gradients, by the probes of their names. */
static double trained_gradient_error(const Adapter *a, const Json *gradients, const char **which) {
    float *grad = fetched(a->grad, a->param_count);
    double worst = 0;
    *which = "";
    for (const Trainable *t = a->list, *end = t + arrlen(a->list); t < end; t++) {
        double e = probe_error(grad + t->offset, adapter_tensor_count(t), json_get(gradients, t->name));
        if (t->kind == TENSOR_BIAS && t->place == MODULE_K) {      /* softmax hardly sees what moves all keys alike: */
            char name_of_q[sizeof t->name];                       /* what is left after cancelling, beside q's */
            snprintf(name_of_q, sizeof name_of_q, "%.*sq_proj.bias", (int)(strlen(t->name) - 11), t->name);
            const Linear *linear = a->model->layers[t->layer].linear;
            e *= json_get(gradients, t->name)->child->next->number * linear[MODULE_Q].out /
                 (json_get(gradients, name_of_q)->child->next->number * linear[MODULE_K].out);
        }
        if (!(e <= worst)) { worst = e; *which = t->name; }
    }
    free(grad);
    return worst;
}

/* Everything trained: the gradient of every tensor of the model, one micro-batch, as transformers has it, at every
   level of recomputing and added up in two halves. */
static void test_trained_gradients(const char *name) {
    static const char *const level[] = {"none", "gate_up", "layer"};
    char path[256];
    Error err;
    Model m;
    Adapter a = no_adapter();
    Workspace w = no_workspace();
    LoraConfig full;
    JsonDoc golden;
    Dataset d;
    DataOptions plain;
    memset(&full, 0, sizeof full);
    memset(&d, 0, sizeof d);
    memset(&plain, 0, sizeof plain);
    full.train = TRAIN_FULL;
    plain.max_length = 64; plain.enable_thinking = -1; plain.threads = 1;
    snprintf(path, sizeof path, "test/golden/%s", name);
    must(model_open(&m, path, &err) && adapter_attach(&a, &m, &full, 1, &err), &err);
    snprintf(path, sizeof path, "test/golden/trained/%s.json", name);
    must(json_read(&golden, path, &err), &err);
    must(dataset_open(&d, "test/golden/trained/data.jsonl", NULL, &plain, &err), &err);
    const Json *gradients = json_get(golden.root, "gradients");
    double want = json_get(golden.root, "loss")->number;
    int64_t rows[4] = {0, 1, 2, 3};
    Batch b;
    must(batch_alloc(&b, 256, 4, &err), &err);
    for (int recompute = RECOMPUTE_NONE; recompute <= RECOMPUTE_LAYER; recompute++) {
        must(workspace_open(&w, &m, &a, 256, 64, (Recompute)recompute, true, NULL, &err), &err);
        adapter_zero_grad(&a);
        double loss = 0;
        int64_t labelled = 0;
        for (size_t i = 0; i < 4; i++) labelled += slot_labelled(&d, i);
        int parts = recompute == RECOMPUTE_NONE ? 1 : 2;
        for (int part = 0; part < parts; part++) {
            batch_build(&b, &d, rows, (size_t)(part * 4 / parts), 4 / parts);
            loss += train_pass(&m, &a, &w, &b, no_mask, 1.0f / (float)labelled).loss_sum / (double)labelled;
        }
        const char *which;
        double worst = trained_gradient_error(&a, gradients, &which);
        check(fabs(loss - want) <= TOLERANCE * want && worst <= 2e-5 && (uint32_t)arrlen(a.list) == gradients->count,
              "%s, everything trained: loss %.7f, %d gradients as transformers', worst relative error %.1e in %s "
              "(recompute %s)", name, loss, (int)arrlen(a.list), worst, which, level[recompute]);
    }
    /* biases without their weights and q's norm without k's, as a folder may differ in them alone */
    for (TensorSpec t = model_tensors(&m.config, m.prefix); tensor_next(&t);)
        arrput(full.tensors, t.kind == TENSOR_BIAS || (t.kind == TENSOR_NORM && t.place == NORM_Q));
    if (memchr(full.tensors, 1, arrlenu(full.tensors))) {
        const char *which;
        must(adapter_attach(&a, &m, &full, 1, &err) &&
             workspace_open(&w, &m, &a, 256, 64, RECOMPUTE_NONE, true, NULL, &err), &err);
        adapter_zero_grad(&a);
        batch_build(&b, &d, rows, 0, 4);
        train_pass(&m, &a, &w, &b, no_mask, 1.0f / (float)b.M);
        double worst = trained_gradient_error(&a, gradients, &which);
        check(worst <= 2e-5, "%s, %d biases and norms alone: worst relative error %.1e in %s", name,
              (int)arrlen(a.list), worst, which);
    }
    arrfree(full.tensors);
    batch_free(&b);
    dataset_free(&d);
    json_free(&golden);
    workspace_close(&w);
    adapter_drop(&a);
    model_close(&m);
}

/* Layers below the lowest that is trained keep nothing for backward; values of a table with more rows than are read at
   once come as they are in the file. */
static void test_lowest(void) {
    static const struct { const char *what; int train, last, layer, labels, lowest; } cases[] = {
        {"full", TRAIN_FULL, 0, -1, 0, 0}, {"last:1", TRAIN_LAST, 1, -1, 0, 3}, {"norms", TRAIN_NORMS, 0, -1, 0, 0},
        {"lora on layer 2", TRAIN_LORA, 0, 2, 0, 2}, {"a head of three labels alone", TRAIN_HEAD, 0, -1, 3, 4},
        {"last:2 and that head", TRAIN_LAST, 2, -1, 3, 2}, {"lora on layer 2, embeddings", TRAIN_LORA | TRAIN_EMBEDDINGS,
                                                            0, 2, 0, 0}};
    Error err;
    Model m;
    must(model_open(&m, "data/base", &err), &err);
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        Adapter a = no_adapter();
        Workspace w = no_workspace();
        LoraConfig c;
        memset(&c, 0, sizeof c);
        c.train = cases[k].train; c.last_layers = cases[k].last; c.r = 2; c.lora_alpha = 2; c.target[MODULE_V] = true;
        c.classes.num_labels = cases[k].labels;
        for (int l = 0; l < 4 && cases[k].layer >= 0; l++) arrput(c.layers, l == cases[k].layer);
        must(adapter_attach(&a, &m, &c, 1, &err) && workspace_open(&w, &m, &a, 8, 8, RECOMPUTE_NONE, false, NULL, &err),
             &err);
        check(w.lowest == cases[k].lowest, "%s of four layers: backward ends at %d", cases[k].what, w.lowest);
        for (const Trainable *t = a.list, *end = t + arrlen(a.list); t < end && c.train == TRAIN_FULL; t++) {
            size_t count = adapter_tensor_count(t);
            float *got = fetched(a.param + t->offset, count), *want = (float *)malloc(count * sizeof *want);
            weight_decode(want, &t->base, 0, count);
            if (t->kind == TENSOR_EMBED)
                check(!memcmp(got, want, count * sizeof *want), "%zu values of %s as the file has them", count, t->name);
            free(got);
            free(want);
        }
        workspace_close(&w);
        adapter_drop(&a);
        arrfree(c.layers);
    }
    model_close(&m);
}

/* New adapters. Gaussian: the moments of a normal distribution, within four standard deviations. PiSSA and OLoRA (as
   PEFT's: test_train's goldens): training begins at the base; moved from there, saved and loaded, and as plain LoRA of
   twice the rank, whose config says nothing of it, they are the same model. */
static void test_new_adapters(void) {
    Error err;
    Model m;
    Adapter a = no_adapter(), b = no_adapter();
    LoraConfig c;
    memset(&c, 0, sizeof c);
    c.r = 128; c.lora_alpha = 8; c.init = LORA_INIT_GAUSSIAN;
    for (int j = 0; j < MODULE_COUNT; j++) c.target[j] = true;
    must(model_open(&m, "test/golden/qwen3", &err) && adapter_attach(&a, &m, &c, 5, &err) &&
         adapter_attach(&b, &m, &c, 6, &err), &err);
    double sum[5] = {0}, n = 0, beside = 0;
    bool zero = true;
    float *param = fetched(a.param, a.param_count), *other = fetched(b.param, b.param_count);
    for (int i = 0; i < 2 * MODULE_COUNT; i++) {
        const Linear *p = &m.layers[i / MODULE_COUNT].linear[i % MODULE_COUNT];
        const float *A = param + (a.lora[i].A - a.param), *B = param + (a.lora[i].B - a.param);
        for (int k = 0; k < c.r * p->in; k++, n++) {
            double x = (double)A[k] * c.r;
            for (int e = 1; e < 5; e++) sum[e] += pow(x, e);
            beside += k % 2 ? x * (double)A[k - 1] * c.r : 0;
        }
        for (int k = 0; k < c.r * p->out; k++) zero &= B[k] == 0;
    }
    check(zero && fabs(sum[1] / n) < 4 / sqrt(n) && fabs(sum[2] / n - 1) < 4 * sqrt(2 / n) &&
          fabs(sum[3] / n) < 4 * sqrt(15 / n) && fabs(sum[4] / n - 3) < 4 * sqrt(96 / n) &&
          fabs(beside / n * 2) < 4 * sqrt(2 / n) && memcmp(param, other, 4096),
          "gaussian: B 0, r A has mean %.3f, variance %.3f, third and fourth moment %.3f %.3f, neighbours %.3f",
          sum[1] / n, sum[2] / n, sum[3] / n, sum[4] / n, beside / n * 2);
    free(param);
    free(other);
    c.r = 49; c.init = LORA_INIT_PISSA;
    bool attached = adapter_attach(&a, &m, &c, 1, &err);
    check(!attached && strstr(err.text, "has only"), "more ranks than singular values: %s", attached ? "" : err.text);
    adapter_drop(&a);
    adapter_drop(&b);
    model_close(&m);

    static const char *const models[] = {"test/golden/qwen3", "test/golden/mistral"};
    int32_t ids[] = {3, 17, 60, 95, 0, 41, 8, 77, 23}, cu[2] = {0, 9};
    for (int k = 0; k < 4; k++) {
        char out[] = "/tmp/train_lora_new_XXXXXX", command[400];
        Workspace w = no_workspace();
        Batch batch;
        c.init = k % 2 ? LORA_INIT_OLORA : LORA_INIT_PISSA;
        c.use_rslora = k / 2;
        c.r = 6;
        if (!mkdtemp(out)) abort();
        must(model_open(&m, models[k / 2], &err) && adapter_attach(&a, &m, &c, 1, &err), &err);
        batch_from(&batch, ids, NULL, cu, 1);
        size_t count = (size_t)batch.N * (size_t)m.config.vocab_size;
        float *logits[4];
        for (int i = 0; i < 4; i++) logits[i] = (float *)malloc(count * sizeof(float));
        must(workspace_open(&w, &m, &a, batch.N, 64, FORWARD_ONLY, true, NULL, &err), &err);
        model_logits(&m, NULL, &w, logits[0], &batch);
        model_logits(&m, &a, &w, logits[1], &batch);
        double begin = relative_error(logits[1], logits[0], count);
        param = fetched(a.param, a.param_count);
        for (size_t i = 0; i < a.param_count; i++) param[i] *= 1 + 0.3f * sinf((float)i);
        backend_upload(a.param, param, a.param_count * sizeof(float));
        free(param);
        adapter_changed(&a);
        model_logits(&m, &a, &w, logits[1], &batch);
        must(adapter_save(&a, out, &err) && adapter_convert(&b, &a, &err) && adapter_load(&a, &m, out, &err) &&
             workspace_open(&w, &m, &a, batch.N, 64, FORWARD_ONLY, true, NULL, &err), &err);
        model_logits(&m, &a, &w, logits[2], &batch);
        must(adapter_save(&b, out, &err) && adapter_load(&b, &m, out, &err) &&
             workspace_open(&w, &m, &b, batch.N, 64, FORWARD_ONLY, true, NULL, &err), &err);
        model_logits(&m, &b, &w, logits[3], &batch);
        double moved = relative_error(logits[1], logits[0], count), plain = relative_error(logits[3], logits[1], count);
        check(begin <= TOLERANCE && moved > 1e-2 && !memcmp(logits[2], logits[1], count * sizeof(float)),
              "new %s on %s begins at the base, %.1e; moved by %.2f it has the same bits once saved and loaded",
              lora_init_name[c.init], models[k / 2], begin, moved);
        check(plain <= TOLERANCE && b.config.r == 12 && !b.initial && b.config.init == LORA_INIT_TRUE,
              "  as plain LoRA of r %d: logits %.1e", b.config.r, plain);
        attached = adapter_convert(&a, &b, &err);
        check(!attached && strstr(err.text, "neither"), "  which is not converted again: %s", attached ? "" : err.text);
        snprintf(command, sizeof command, "rm -rf %s", out);
        if (system(command)) check(false, "could not remove %s", out);
        for (int i = 0; i < 4; i++) free(logits[i]);
        batch_free(&batch);
        workspace_close(&w);
        adapter_drop(&a);
        adapter_drop(&b);
        model_close(&m);
    }
}

/* Adapters as other people write them: patterns, expressions, layers by number, bf16 and f16 tensors, names with
   ".default.", and PiSSA and OLoRA, whose base is not the one in the files. PEFT's logits; the same again after saving
   and loading; the base is itself beside it. */
static void test_adapters(void) {
    static const struct { const char *model, *name; int ranks[3]; } cases[] = {       /* of q, v and up in layer 1 */
        {"mistral", "pissa", {5, 5, 5}}, {"mistral", "olora", {3, 3, 3}}, {"qwen3", "pissa_pattern", {4, 0, 0}},
        {"qwen3", "patterns", {7, 0, 9}}, {"qwen3", "number", {0, 0, 0}}, {"llama", "all_linear", {2, 2, 2}},
        {"llama", "exclude", {2, 2, 2}}};
    Error err;
    TensorSet set;
    memset(&set, 0, sizeof set);
    must(tensors_add_file(&set, "test/golden/adapters.safetensors", &err), &err);
    const Tensor *ids = golden_tensor(&set, "ids");
    int32_t cu[2] = {0, (int32_t)ids->count};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Model m;
    Adapter a = no_adapter();
    Workspace w = no_workspace();
        Batch b;
        char folder[128], path[300], out[] = "/tmp/train_lora_adapters_XXXXXX", command[400];
        snprintf(folder, sizeof folder, "test/golden/%s", cases[i].model);
        snprintf(path, sizeof path, "%s/adapter_%s", folder, cases[i].name);
        must(model_open(&m, folder, &err), &err);
        batch_from(&b, (const int32_t *)ids->data, NULL, cu, 1);
        size_t count = (size_t)b.N * (size_t)m.config.vocab_size;
        float *base = (float *)malloc(count * sizeof(float)), *logits = (float *)malloc(count * sizeof(float)),
            *again = (float *)malloc(count * sizeof(float));
        must(workspace_open(&w, &m, NULL, b.N, 64, FORWARD_ONLY, true, NULL, &err), &err);
        model_logits(&m, NULL, &w, base, &b);
        must(adapter_load(&a, &m, path, &err) && workspace_open(&w, &m, &a, b.N, 64, FORWARD_ONLY, true, NULL, &err), &err);
        model_logits(&m, &a, &w, logits, &b);
        double e = relative_error(logits, (const float *)golden_tensor(&set, cases[i].name)->data, count);
        const Lora *l = &a.lora[MODULE_COUNT];
        check(e <= TOLERANCE && l[MODULE_Q].rank == cases[i].ranks[0] && l[MODULE_V].rank == cases[i].ranks[1] &&
              l[MODULE_UP].rank == cases[i].ranks[2],
              "%s/adapter_%s: logits as PEFT's, relative error %.2e", cases[i].model, cases[i].name, e);
        if (!mkdtemp(out)) abort();
        must(adapter_save(&a, out, &err) && adapter_load(&a, &m, out, &err) &&
             workspace_open(&w, &m, &a, b.N, 64, FORWARD_ONLY, true, NULL, &err), &err);
        model_logits(&m, &a, &w, again, &b);
        check(!memcmp(again, logits, count * sizeof(float)), "%s/adapter_%s: the same bits once saved and loaded",
              cases[i].model, cases[i].name);
        model_logits(&m, NULL, &w, again, &b);
        check(!memcmp(again, base, count * sizeof(float)), "%s/adapter_%s: beside it the base to the bit",
              cases[i].model, cases[i].name);
        snprintf(command, sizeof command, "rm -rf %s", out);
        if (system(command)) check(false, "could not remove %s", out);
        free(base); free(logits); free(again);
        batch_free(&b);
        workspace_close(&w);
        adapter_drop(&a);
        model_close(&m);
    }
    tensors_close(&set);
}

/* An adapter_config.json that holds `fields` (with ' for ") beside the least: what the program makes of it, one bit a
   projection of layer 0
   and then of layer 1 (q k v o gate up down), or the message. */
static void adapter_config(const char *fields, char text[1024]) {
    char json[1024];
    JsonDoc doc;
    LoraConfig config;
    ModelConfig model;
    Error err;
    must(config_open(&model, "test/golden/llama", &err), &err);               /* of two layers */
    snprintf(json, sizeof json, "{'peft_type': 'LORA', 'r': 4, 'lora_alpha': 8, %s}", fields);
    for (char *c = json; *c; c++) if (*c == '\'') *c = '"';
    must(json_parse(&doc, json, strlen(json), "test", 1, &err), &err);
    bool ok = adapter_config_parse(&config, doc.root, &model, "test", &err);
    snprintf(text, 1024, "%s", ok ? "" : err.text);
    for (int i = 0; ok && i < 2 * MODULE_COUNT; i++) {
        bool on = config.parts ? config.parts[i].rank > 0 : config.target[i % MODULE_COUNT] &&
            (!config.layers || config.layers[i / MODULE_COUNT]);
        snprintf(text + strlen(text), 2, "%d", on);
    }
    if (ok) { arrfree(config.layers); arrfree(config.parts); arrfree(config.tensors); }
    json_free(&doc);
}
static void test_adapter_config(void) {
    /* what Python's re and PEFT's rules make of each */
    static const struct { const char *fields, *want; } cases[] = {
        {"'target_modules': 'all-linear'", "11111111111111"},
        {"'target_modules': null", "10100001010000"},
        {"'target_modules': ['q_proj', '1.mlp.up_proj', 'v', 'proj']", "10000001000010"},
        {"'target_modules': '.*proj'", "11111111111111"},
        {"'target_modules': 'q_proj'", "the adapter names no projection"},
        {"'target_modules': 'model\\\\.layers\\\\.[1-9]\\\\d*\\\\..*(?:q|k)_proj'", "00000001100000"},
        {"'target_modules': '(?!.*mlp).*\\\\.(?=[^qk])\\\\w+_proj'", "00110000011000"},
        {"'target_modules': "
         "'(?:.*?(?:self_attn|attention).*?(?:k_proj|o_proj).*?)|"
         "(?:\\\\bmodel\\\\.layers\\\\.[\\\\d]{1,}\\\\.mlp\\\\.(?:up_proj))'", "01010100101010"},
        {"'target_modules': '^model.layers.0.[a-z_]{3,9}?.(q|down)_proj$'", "10000010000000"},
        {"'target_modules': '(.*|model)+(x?)*(x?){2,}o_proj'", "00010000001000"},
        {"'target_modules': ['q_proj'], 'layers_to_transform': 1", "00000001000000"},
        {"'target_modules': ['q_proj'], 'layers_to_transform': 0", "10000000000000"},
        {"'target_modules': ['q_proj'], 'layers_to_transform': [0, 1]", "10000001000000"},
        {"'target_modules': ['q_proj'], 'layers_to_transform': [1], 'layers_pattern': ['h', 'layers']",
         "00000001000000"},
        {"'target_modules': ['q_proj'], 'layers_to_transform': [1], 'layers_pattern': 'h'",
         "the adapter names no projection"},
        {"'target_modules': ['model.layers.0.self_attn.q_proj', 'k_proj'], 'layers_to_transform': 1", "10000000100000"},
        {"'target_modules': ['q_proj'], 'exclude_modules': 'model.layers.1.*'", "10000000000000"},
        {"'target_modules': ['q_proj'], 'init_lora_weights': 'eva', 'eva_config': {'rho': 2}", "10000001000000"},
        {"'target_modules': ['q_proj'], 'init_lora_weights': false, 'new_field': 7", "10000001000000"},
        {"'target_modules': ['q_proj'], 'init_lora_weights': 'pissa_niter_16'", "init_lora_weights 'pissa_niter_16'"},
        {"'target_modules': ['q_proj'], 'init_lora_weights': 'loftq'", "init_lora_weights 'loftq'"},
        {"'target_modules': ['q_proj'], 'init_lora_weights': 'corda'", "init_lora_weights 'corda'"},
        {"'target_modules': ['q_proj'], 'init_lora_weights': 'lora_ga'", "init_lora_weights 'lora_ga'"},
        {"'target_modules': ['q_proj'], 'use_dora': true", "unsupported adapter field 'use_dora'"},
        {"'target_modules': ['q_proj'], 'lora_bias': true", "unsupported adapter field 'lora_bias'"},
        {"'target_modules': ['q_proj'], 'bias': 'all'", "unsupported adapter field bias 'all'"},
        {"'target_modules': ['q_proj'], 'modules_to_save': ['lm_head', 'layers.1.mlp']", "10000001000000"},
        {"'target_modules': ['q_proj'], 'modules_to_save': ['norm']", "10000001000000"},
        {"'target_modules': ['q_proj'], 'modules_to_save': ['classifier']", "names 'classifier', which is nowhere"},
        {"'target_modules': ['q_proj'], 'modules_to_save': ['self_attn']",
         "both name 'model.layers.0.self_attn.q_proj'"},
        {"'target_modules': ['q_proj'], 'modules_to_save': 'lm_head'", "modules_to_save must be a list of names"},
        {"'target_modules': ['q_proj'], 'layer_replication': [[0, 1]]",
         "unsupported adapter field 'layer_replication'"},
        {"'target_modules': ['q_proj'], 'trainable_token_indices': [1]",
         "unsupported adapter field 'trainable_token_indices'"},
        {"'target_modules': ['q_proj'], 'alora_invocation_tokens': [1]",
         "unsupported adapter field 'alora_invocation_tokens'"},
        {"'target_modules': ['q_proj'], 'megatron_config': {'a': 1}", "unsupported adapter field 'megatron_config'"},
        {"'target_modules': ['q_proj', 'lm_head']", "unsupported target module 'lm_head'"},
        {"'target_modules': '.*q_proj', 'layers_to_transform': 1", "layers_to_transform beside an expression"},
        {"'target_modules': ['q_proj'], 'layers_to_transform': 2", "layers are 0 to 1"},
        {"'target_modules': ['q_proj'], 'layers_to_transform': true", "layers are 0 to 1"},
        {"'target_modules': ['q_proj'], 'rank_pattern': {'q_proj': 0}", "rank_pattern of 'q_proj' must be"},
        {"'target_modules': ['q_proj'], 'rank_pattern': {'(q': 2}",
         "an expression has a ( without its )"},
        {"'target_modules': '(q)\\\\1'", "an expression has such an escape"},
        {"'target_modules': '\\\\x71_proj'", "an expression has such an escape"},
        {"'target_modules': '\\\\p_proj'", "an expression has such an escape"},
        {"'target_modules': '[\\\\x71]_proj'", "an expression has an escape in a set"},
        {"'target_modules': 'q_proj\\\\'", "an expression has a \\ at the end"},
        {"'target_modules': '(?i).*Q_PROJ'", "an expression has a group that begins with (?"},
        {"'target_modules': '[qk_proj'", "an expression has a set without its ]"},
        {"'target_modules': '*_proj'", "an expression has a repetition of nothing"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[1024];
        adapter_config(cases[i].fields, text);
        bool bits = *cases[i].want == '0' || *cases[i].want == '1';
        check(bits ? !strcmp(text, cases[i].want) : strstr(text, cases[i].want) != NULL, "{%s}: %s", cases[i].fields,
              text);
    }
}

/* config.json of a tiny model of that family, and further fields, with ' for ". */
static bool config_of(ModelConfig *c, const char *type, const char *fields, Error *err) {
    char json[512];
    JsonDoc doc;
    snprintf(json, sizeof json, "{'model_type': '%s', 'hidden_size': 8, 'intermediate_size': 8, "
                                "'num_hidden_layers': 5, 'num_attention_heads': 2, 'vocab_size': 9%s%s}", type,
             *fields ? ", " : "", fields);
    for (char *p = json; *p; p++) if (*p == '\'') *p = '"';
    must(json_parse(&doc, json, strlen(json), "test", 1, err), err);
    bool ok = config_parse(c, doc.root, "test", err);
    json_free(&doc);
    return ok;
}

/* Fields of config.json that would make another model are refused by name, and pass where they are off or where the
   family has them. */
static void test_config_fields(void) {
    static const struct { const char *type, *fields, *want; } cases[] = {
        {"llama", "'partial_rotary_factor': 1.0, 'clip_qkv': null, 'rope_interleaved': false, 'num_experts': 0", ""},
        {"llama", "'partial_rotary_factor': 0.5", "'partial_rotary_factor'"}, {"llama", "'clip_qkv': 8", "'clip_qkv'"},
        {"llama", "'no_rope_layers': [1, 0]", "'no_rope_layers'"},
        {"llama", "'logits_scaling': 8", "'logits_scaling'"},
        {"llama", "'rope_parameters': {'rope_type': 'default', 'partial_rotary_factor': 0.5}",
         "'partial_rotary_factor' of the rope"},
        {"llama", "'rope_parameters': {'full_attention': {'rope_theta': 1e6}}", "'full_attention' of the rope"},
        {"llama", "'rope_scaling': {'type': 'default', 'mrope_section': [1, 2]}", "'mrope_section' of the rope"},
        {"llama", "'attention_dropout': 0.0", ""}, {"llama", "'attention_dropout': 0.1", "attention_dropout 0.1"},
        {"gpt2", "", "supported model types: llama, qwen2, qwen3, mistral, smollm3, granite"},
        {"llama", "'hidden_act': 'gelu'", "hidden_act 'gelu'"}, {"llama", "'hidden_act': null", ""},
        {"llama", "'hidden_act': 5", "hidden_act 'a number'"},
        {"llama", "'rope_scaling': {'rope_type': true}", "rope_type 'a truth value'"},
        {"llama", "'sliding_window': 64", "'sliding_window'"},
        {"qwen2", "'sliding_window': 64, 'use_sliding_window': false", ""},
        {"smollm3", "'use_sliding_window': true, 'sliding_window': 64", "'sliding_window'"},
        {"smollm3", "'sliding_window': 64, 'layer_types': ['full_attention']", ""},
        {"smollm3", "'layer_types': ['sliding_attention']", "layer type 'sliding_attention'"},
        {"smollm3", "'no_rope_layers': [1, 1, 0, 1]", "list of 0 and 1 for 5 layers"},
        {"smollm3", "'no_rope_layers': [1, 1, 0, 1, 2]", "list of 0 and 1 for 5 layers"},
        {"smollm3", "'no_rope_layers': 3", "list of 0 and 1 for 5 layers"},
        {"smollm3", "'no_rope_layer_interval': 0", "'no_rope_layer_interval' must be a whole number"},
        {"smollm3", "'no_rope_layers': [1, 1, 0, 1, 0, 1], 'no_rope_layer_interval': 0", ""},
        {"smollm3", "'embedding_multiplier': 2", "'embedding_multiplier'"},
        {"granite", "'no_rope_layers': [1, 0]", "'no_rope_layers'"},
        {"granite", "'residual_multiplier': 0", "'residual_multiplier' must be a positive"},
        {"granite", "'num_local_experts': 4", "'num_local_experts'"},
        {"granite", "'embedding_multiplier': 12, 'attention_multiplier': 0.1, 'logits_scaling': 8", ""}};
    ModelConfig c;
    Error err;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bool ok = config_of(&c, cases[i].type, cases[i].fields, &err);
        check(*cases[i].want ? !ok && strstr(err.text, cases[i].want) : ok, "config %s {%s}: %s", cases[i].type,
              cases[i].fields, ok ? "read" : err.text);
    }
    must(config_of(&c, "smollm3", "", &err), &err);
    const bool fourth[5] = {false, false, false, true, false}, third[5] = {false, false, true, false, false};
    check(!memcmp(c.no_rope, fourth, 5) && c.tie_word_embeddings && c.rope_theta == 2e6,
          "smollm3 by default: every 4th layer without rotary embedding, tied, theta 2e6");
    must(config_of(&c, "smollm3", "'no_rope_layers': [1, 1, 0, 1, 1], 'no_rope_layer_interval': 2", &err), &err);
    check(!memcmp(c.no_rope, third, 5), "smollm3: the list of layers goes before the interval");
    must(config_of(&c, "granite", "", &err), &err);
    check(c.attention_scale == 1 && c.embedding_scale == 1 && c.logits_scale == 1 && c.rms_norm_eps == 1e-6f,
          "granite by default: four multipliers of 1, the scores' too");
    must(config_of(&c, "llama", "", &err), &err);
    check(c.attention_scale == 0.5f && c.embedding_scale == 1 && c.logits_scale == 1, "llama: 1/sqrt(D) and no more");
}

/* What a safetensors header may not say; the file behind it has 16 bytes of data. */
static void test_header(void) {
    static const struct { const char *entry, *want; } cases[] = {
        {"'dtype': 'F32', 'shape': [2, 2], 'data_offsets': [0, 16]", ""},
        {"'dtype': 'F32', 'shape': [], 'data_offsets': [12, 16]", "leaves a hole before it"},
        {"'shape': [2, 2], 'data_offsets': [0, 16]", "lacks dtype, shape or data_offsets"},
        {"'dtype': 'F32', 'data_offsets': [0, 16]", "lacks dtype, shape or data_offsets"},
        {"'dtype': 'F32', 'shape': [2, 2]", "lacks dtype, shape or data_offsets"},
        {"'dtype': 3, 'shape': [2, 2], 'data_offsets': [0, 16]", "lacks dtype, shape or data_offsets"},
        {"'dtype': 'F32', 'shape': 4, 'data_offsets': [0, 16]", "lacks dtype, shape or data_offsets"},
        {"'dtype': 'F32', 'shape': [4], 'data_offsets': [16]", "lacks dtype, shape or data_offsets"},
        {"'dtype': 'F32', 'shape': [4], 'data_offsets': [0, 16, 32]", "lacks dtype, shape or data_offsets"},
        {"'dtype': 'F99', 'shape': [4], 'data_offsets': [0, 16]", "unknown dtype 'F99'"},
        {"'dtype': 'F32', 'shape': [1, 1, 1, 2, 2], 'data_offsets': [0, 16]", "has 5 dimensions"},
        {"'dtype': 'F32', 'shape': [-4], 'data_offsets': [0, 16]", "bad shape"},
        {"'dtype': 'F32', 'shape': [2.5], 'data_offsets': [0, 10]", "bad shape"},
        {"'dtype': 'F32', 'shape': [4294967296, 4294967296, 4], 'data_offsets': [0, 16]", "bad shape"},
        {"'dtype': 'F32', 'shape': [4], 'data_offsets': [1, 17]", "outside the file"},
        {"'dtype': 'F32', 'shape': [0], 'data_offsets': [16, 12]", "outside the file"},
        {"'dtype': 'BF16', 'shape': [4], 'data_offsets': [0, 16]", "has 16 bytes where its shape and dtype BF16 need 8"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Tensor *tensors = NULL;
        Error err;
        char file[512] = "";
        int n = snprintf(file + 8, sizeof file - 8, "{'t': {%s}}", cases[i].entry);
        for (int k = 8; k < 8 + n; k++) if (file[k] == '\'') file[k] = '"';
        uint64_t length = (uint64_t)n;
        memcpy(file, &length, 8);
        bool ok = safetensors_parse(&tensors, file, 8 + (size_t)n + 16, "t.safetensors", &err);
        check(*cases[i].want ? !ok && strstr(err.text, cases[i].want) : ok && arrlen(tensors) == 1,
              "safetensors {%s}: %s", cases[i].entry, ok ? "read" : err.text);
        for (ptrdiff_t k = 0; k < arrlen(tensors); k++) free((char *)tensors[k].name);
        arrfree(tensors);
    }
}

/* A field that transformers begins to write is noticed here when the golden folders are made again. */
static void test_config_keys(void) {
    static const char *const files[] = {
        "test/golden/llama/config.json", "test/golden/llama_linear/config.json", "test/golden/qwen2/config.json",
        "test/golden/qwen3/config.json", "test/golden/mistral/config.json", "test/golden/smollm3/config.json",
        "test/golden/granite/config.json", "data/base/config.json", "dev/configs/llama-3.1-8b.json",
        "dev/configs/qwen3-1.7b.json", "dev/configs/tinyllama-1.1b.json"};
    for (size_t f = 0; f < sizeof files / sizeof *files; f++) {
        JsonDoc doc;
        Error err;
        must(json_read(&doc, files[f], &err), &err);
        const char *unknown = NULL;
        for (const Json *j = doc.root->child; j; j = j->next) {
            bool known = false;
            for (int i = 0; i < CONFIG_FIELDS; i++) known |= !strcmp(j->key, config_fields[i].key);
            if (!known) unknown = j->key;
        }
        check(!unknown, "%s: every field is in the table%s%s", files[f], unknown ? ", but not " : "",
              unknown ? unknown : "");
        json_free(&doc);
    }
}

/* ---- 2. stories260K: a real pretrained model, reference in float64 ------------------------------------------------------------------------------- */

static void json_ids(const Json *array, int32_t **out) { for (const Json *j = array->child; j; j = j->next) arrput(*out, (int32_t)j->number); }

static double nested_error(const Json *j, const float *got, size_t *index, double *scale) {      /* walks a nested list of numbers */
    if (j->type == JSON_NUMBER) { double d = fabs((double)got[(*index)++] - j->number); *scale = fmax(*scale, fabs(j->number)); return isfinite(d) ? d : INFINITY; }
    double worst = 0;
    for (const Json *c = j->child; c; c = c->next) worst = fmax(worst, nested_error(c, got, index, scale));
    return worst;
}

static void test_stories(void) {
    const char *folder = "../shared/models/stories260K";
    if (access(folder, R_OK)) { printf("skipped: ../shared not present\n"); return; }
    Error err;
    Model m;
    Adapter a = no_adapter();
    Workspace w = no_workspace();
    must(model_open(&m, folder, &err), &err);
    JsonDoc doc;
    must(json_read(&doc, "../shared/models/stories260K/reference_f64.json", &err), &err);
    int32_t *greedy = NULL, *seq = NULL;
    json_ids(json_get(doc.root, "greedy_ids"), &greedy);
    json_ids(json_get(doc.root, "seq"), &seq);
    LoraConfig lora;
    memset(&lora, 0, sizeof lora);
    lora.r = 4; lora.lora_alpha = 8;
    for (int j = 0; j < MODULE_COUNT; j++) lora.target[j] = true;
    must(adapter_attach(&a, &m, &lora, 7, &err), &err);
    int n = (int)arrlen(greedy), V = m.config.vocab_size;
    must(workspace_open(&w, &m, &a, n > (int)arrlen(seq) ? n : (int)arrlen(seq), 512, RECOMPUTE_NONE, true, NULL, &err), &err);

    /* the greedy continuation: the argmax after every prefix must be the next id, so one forward checks all of them */
    Batch b;
    int32_t cu[2] = {0, n};
    batch_from(&b, greedy, NULL, cu, 1);
    float *logits = (float *)malloc((size_t)n * (size_t)V * sizeof(float));
    model_logits(&m, &a, &w, logits, &b);
    int wrong = 0;
    for (int i = 0; i + 1 < n; i++) {
        int best = 0;
        for (int v = 1; v < V; v++) if (logits[(size_t)i * (size_t)V + (size_t)v] > logits[(size_t)i * (size_t)V + (size_t)best]) best = v;
        wrong += best != greedy[i + 1];
    }
    check(wrong == 0, "stories260K: %d of %d greedy tokens agree with float64", n - 1 - wrong, n - 1);
    batch_free(&b);

    int T = (int)arrlen(seq);
    cu[1] = T;
    batch_from(&b, seq, seq, cu, 1);
    model_logits(&m, &a, &w, logits, &b);
    const Json *last = json_get(doc.root, "last_logits_f64"), *want = json_get(doc.root, "loss_f64");
    assert(last && want);
    size_t index = 0;
    double scale = 0, worst = nested_error(last, logits + (size_t)(T - 1) * (size_t)V, &index, &scale);
    check((int)index == V && worst <= TOLERANCE * scale, "stories260K: last logits, relative error %.2e", worst / scale);
    LossStats s = train_pass(&m, &a, &w, &b, no_mask, 1.0f / (float)b.M);
    check(fabs(s.loss_sum / (double)s.tokens - want->number) <= 1e-5 * want->number, "stories260K: loss %.8f, float64 %.8f", s.loss_sum / (double)s.tokens, want->number);

    /* The reference has the gradients of the full matrices W. With B = 0, scale 1 and A the first rows of the identity, dB = dW A^T is dW itself: rank 172 covers every column of every matrix. */
    lora.r = 172; lora.lora_alpha = 172;
    must(adapter_attach(&a, &m, &lora, 7, &err) && workspace_open(&w, &m, &a, T, 512, RECOMPUTE_NONE, true, NULL, &err), &err);
    backend_zero(a.param, a.param_count * sizeof(float));
    float *identity = (float *)calloc(172 * 172, sizeof(float));
    for (int l = 0; l < m.config.num_hidden_layers; l++) {
        for (int j = 0; j < MODULE_COUNT; j++) {
            const Linear *p = &m.layers[l].linear[j];
            for (int i = 0; i < p->in; i++) identity[i * p->in + i] = 1;
            backend_upload(a.lora[l * MODULE_COUNT + j].A, identity, (size_t)p->in * (size_t)p->in * sizeof(float));
            for (int i = 0; i < p->in; i++) identity[i * p->in + i] = 0;
        }
    }
    free(identity);
    adapter_changed(&a);
    adapter_zero_grad(&a);
    train_pass(&m, &a, &w, &b, no_mask, 1.0f / (float)b.M);
    const Json *norms = json_get(doc.root, "grad_norms_f64"), *first8 = json_get(doc.root, "grad_first8_f64");
    double worst_norm = 0, worst_first = 0;
    for (int l = 0; l < m.config.num_hidden_layers; l++) {
        for (int j = 0; j < MODULE_COUNT; j++) {
            const Linear *p = &m.layers[l].linear[j];
            const float *gradient = a.lora[l * MODULE_COUNT + j].dB;
            char name[120];
            snprintf(name, sizeof name, "model.layers.%d.%s.weight", l, module_path[j]);
            const Json *norm = json_get(norms, name), *first = json_get(first8, name);
            assert(norm && first && first->count == 8);
            worst_norm = fmax(worst_norm, fabs(global_norm(gradient, (size_t)p->out * 172) / norm->number - 1));
            index = 0;
            scale = norm->number / sqrt((double)p->in * (double)p->out);      /* the typical element: first8 may all be tiny */
            float *dB = fetched(gradient, first->count);
            worst_first = fmax(worst_first, nested_error(first, dB, &index, &scale) / scale);
            free(dB);
        }
    }
    check(worst_norm <= TOLERANCE, "stories260K: gradient norms of 35 matrices against float64, worst relative error %.2e", worst_norm);
    check(worst_first <= 1e-4, "stories260K: first 8 elements of 35 gradients against float64, worst relative error %.2e", worst_first);
    free(logits);
    batch_free(&b);
    arrfree(greedy);
    arrfree(seq);
    json_free(&doc);
    workspace_close(&w);
    adapter_drop(&a);
    model_close(&m);
}

/* ---- 3. invariances --------------------------------------------------------------------------------------------------------------------------- */

enum { ROWS = 8 };
static void random_rows(int32_t ids[ROWS][24], int length[ROWS], int vocab) {
    uint32_t state = 1;
    for (int r = 0; r < ROWS; r++) {
        length[r] = 3 + r * 3 % 19;
        for (int i = 0; i < length[r]; i++) { state = state * 1664525u + 1013904223u; ids[r][i] = (int32_t)(state >> 8) % vocab; }
    }
}
/* Lays rows order[first..first+count) end to end. */
static void rows_batch(Batch *b, int32_t ids[ROWS][24], const int length[ROWS], const int *order, int first, int count) {
    int32_t flat[ROWS * 24], cu[ROWS + 1] = {0};
    for (int i = 0; i < count; i++) {
        int r = order[first + i];
        memcpy(flat + cu[i], ids[r], (size_t)length[r] * sizeof(int32_t));
        cu[i + 1] = cu[i] + length[r];
    }
    batch_from(b, flat, flat, cu, count);
}

static void test_invariances(void) {
    Error err;
    Model m;
    Adapter a = no_adapter();
    Workspace w = no_workspace();
    must(model_open(&m, "test/golden/qwen3", &err) && adapter_load(&a, &m, "test/golden/qwen3/adapter", &err) && workspace_open(&w, &m, &a, ROWS * 24, 64, RECOMPUTE_NONE, true, NULL, &err), &err);
    int32_t ids[ROWS][24];
    int length[ROWS], order[ROWS], reversed[ROWS];
    random_rows(ids, length, m.config.vocab_size);
    int64_t labelled = 0;
    for (int i = 0; i < ROWS; i++) { order[i] = i; reversed[i] = ROWS - 1 - i; labelled += length[i] - 1; }
    size_t bytes = a.param_count * sizeof(float);
    float *whole = (float *)malloc(bytes), *other = (float *)malloc(bytes);
    Batch b;

    rows_batch(&b, ids, length, order, 0, ROWS);
    adapter_zero_grad(&a);
    double loss = train_pass(&m, &a, &w, &b, no_mask, 1.0f / (float)labelled).loss_sum;
    backend_download(whole, a.grad, bytes);
    float *logits_whole = (float *)malloc((size_t)b.N * (size_t)m.config.vocab_size * sizeof(float)), *logits = (float *)malloc((size_t)b.N * (size_t)m.config.vocab_size * sizeof(float));
    model_logits(&m, &a, &w, logits_whole, &b);

    double accumulated = 0, worst = 0;
    adapter_zero_grad(&a);
    for (int r = 0, at = 0; r < ROWS; r++) {
        Batch one;
        rows_batch(&one, ids, length, order, r, 1);
        accumulated += train_pass(&m, &a, &w, &one, no_mask, 1.0f / (float)labelled).loss_sum;
        batch_free(&one);
        at += length[r];
        (void)at;
    }
    check(fabs(accumulated - loss) <= 1e-6 * loss, "B=8,A=1 against B=1,A=8: loss %.8f and %.8f", loss / (double)labelled, accumulated / (double)labelled);
    double e = grad_error(&a, whole);
    check(e <= 1e-5, "B=8,A=1 against B=1,A=8: gradients, relative error %.2e", e);

    for (int r = 0, at = 0; r < ROWS; r++) {          /* a neighbour in the flat batch must not change a sequence */
        Batch one;
        rows_batch(&one, ids, length, order, r, 1);
        model_logits(&m, &a, &w, logits, &one);
        worst = fmax(worst, relative_error(logits, logits_whole + (size_t)at * (size_t)m.config.vocab_size, (size_t)one.N * (size_t)m.config.vocab_size));
        at += one.N;
        batch_free(&one);
    }
    check(worst <= 1e-6, "a sequence alone and among seven others: logits, relative error %.2e", worst);

    Batch back;
    rows_batch(&back, ids, length, reversed, 0, ROWS);
    adapter_zero_grad(&a);
    double loss_back = train_pass(&m, &a, &w, &back, no_mask, 1.0f / (float)labelled).loss_sum;
    e = grad_error(&a, whole);
    check(fabs(loss_back - loss) <= 1e-6 * loss && e <= 1e-5, "order of examples within a batch: gradients, relative error %.2e", e);
    batch_free(&back);

    DropoutKey dropped = no_mask;
    dropped.dropout = 0.3f; dropped.seed = 5; dropped.step = 3;
    a.config.lora_dropout = dropped.dropout;          /* room for the masks */
    must(workspace_open(&w, &m, &a, ROWS * 24, 64, RECOMPUTE_NONE, true, NULL, &err), &err);
#ifdef _OPENMP
    for (int threads = 1; threads <= 3; threads++) {
        omp_set_num_threads(threads);
        adapter_zero_grad(&a);
        train_pass(&m, &a, &w, &b, dropped, 1.0f / (float)labelled);
        if (threads == 1) backend_download(other, a.grad, bytes);
        else check(grad_same(&a, other), "1 and %d threads: gradients bit-identical (dropout on)", threads);
    }
    omp_set_num_threads(2);
#endif
    for (int recompute = RECOMPUTE_NONE; recompute <= RECOMPUTE_LAYER; recompute++) {
        must(workspace_open(&w, &m, &a, ROWS * 24, 64, (Recompute)recompute, true, NULL, &err), &err);
        adapter_zero_grad(&a);
        train_pass(&m, &a, &w, &b, dropped, 1.0f / (float)labelled);
        if (recompute == RECOMPUTE_NONE) backend_download(other, a.grad, bytes);
        else check(grad_same(&a, other), "recompute level %d: gradients bit-identical (dropout on)", recompute);
    }

    /* a fresh adapter has B = 0: the base model to the bit */
    LoraConfig lora;
    memset(&lora, 0, sizeof lora);
    lora.r = 8; lora.lora_alpha = 16;
    for (int j = 0; j < MODULE_COUNT; j++) lora.target[j] = true;
    must(adapter_attach(&a, &m, &lora, 1, &err) && workspace_open(&w, &m, &a, ROWS * 24, 64, RECOMPUTE_NONE, true, NULL, &err), &err);
    size_t count = (size_t)b.N * (size_t)m.config.vocab_size;
    model_logits(&m, &a, &w, logits, &b);
    model_logits(&m, NULL, &w, logits_whole, &b);
    check(!memcmp(logits, logits_whole, count * sizeof(float)), "an adapter with B = 0 leaves the logits bit-identical to the base");

    /* initialisation of every A: within +-1/sqrt(in), mean near 0, variance near bound^2/3. An A of zeros beside its B of
       zeros would never learn anything. */
    int odd = 0;
    double off = 0;
    for (int i = 0; i < m.config.num_hidden_layers * MODULE_COUNT; i++) {
        const Linear *p = &m.layers[i / MODULE_COUNT].linear[i % MODULE_COUNT];
        double bound = 1 / sqrt((double)p->in), sum = 0, square = 0, largest = 0;
        int elements = a.lora[i].rank * p->in;
        float *A = fetched(a.lora[i].A, (size_t)elements);
        for (int k = 0; k < elements; k++) {
            sum += (double)A[k];
            square += (double)A[k] * (double)A[k];
            largest = fmax(largest, fabs((double)A[k]));
        }
        free(A);
        double spread = square / elements * 3 / bound / bound;
        odd += !(largest <= bound && largest > 0.9 * bound && fabs(sum / elements) < 0.2 * bound && fabs(spread - 1) < 0.2);
        off = fmax(off, fabs(spread - 1));
    }
    check(!odd, "every A is uniform in +-1/sqrt(in): %d are not, variance within %.2f of it", odd, off);

    /* save and load: the same adapter */
    char folder[] = "/tmp/train_lora_adapter_XXXXXX", path[128];
    assert(mkdtemp(folder));
    size_t saved = a.param_count;
    float *copy = fetched(a.param, saved);
    for (size_t i = 0; i < saved; i++) copy[i] += (float)(i % 7) * 0.01f;
    backend_upload(a.param, copy, saved * sizeof(float));
    must(adapter_save(&a, folder, &err) && adapter_load(&a, &m, folder, &err), &err);
    float *loaded = fetched(a.param, a.param_count);
    check(a.param_count == saved && !memcmp(copy, loaded, saved * sizeof(float)) && a.config.r == 8 && a.config.lora_alpha == 16, "adapter saved and loaded: the same bits");
    free(loaded);
    snprintf(path, sizeof path, "%s/adapter_config.json", folder);
    unlink(path);
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", folder);
    unlink(path);
    rmdir(folder);
    free(copy);
    free(whole); free(other); free(logits); free(logits_whole);
    batch_free(&b);
    workspace_close(&w);
    adapter_drop(&a);
    model_close(&m);
}

/* Three adapters, one of them PiSSA's, and the base alone take turns over one model in one workspace: each has the
   numbers, to the bit, that it has where nobody else is. */
static void test_shared(void) {
    enum { ADAPTERS = 3, N = 24 };
    static const char *const names[ADAPTERS] = {"adapter", "adapter_layers", "adapter_pissa_pattern"};
    Error err;
    Model m;
    Adapter a[ADAPTERS], wide = no_adapter();
    Workspace w = no_workspace();
    Batch b;
    int32_t ids[N], cu[3] = {0, 17, N};
    float *logits[ADAPTERS + 1], *gradient[ADAPTERS], *again = NULL;
    size_t count = 0;
    int same = 0, differ = 0;
    for (int k = 0; k <= ADAPTERS; k++) {   /* alone; ADAPTERS: the base */
        char path[128];
        Adapter *own = k < ADAPTERS ? &a[k] : NULL;
        must(model_open(&m, "test/golden/qwen3", &err), &err);
        snprintf(path, sizeof path, "test/golden/qwen3/%s", names[k % ADAPTERS]);
        if (own) { *own = no_adapter(); must(adapter_load(own, &m, path, &err), &err); }
        must(workspace_open(&w, &m, own, N, N, RECOMPUTE_NONE, true, NULL, &err), &err);
        for (int i = 0; i < N; i++) ids[i] = (i * 37 + 11) % m.config.vocab_size;
        batch_from(&b, ids, ids, cu, 2);
        count = (size_t)N * (size_t)m.config.vocab_size;
        logits[k] = (float *)malloc(count * sizeof(float));
        model_logits(&m, own, &w, logits[k], &b);
        if (own) {
            train_pass(&m, own, &w, &b, no_mask, 0.1f);
            gradient[k] = fetched(own->grad, own->param_count);
            adapter_drop(own);
        }
        for (int j = 0; j < k; j++) differ += memcmp(logits[j], logits[k], count * sizeof(float)) != 0;
        batch_free(&b);
        workspace_close(&w);
        model_close(&m);
    }
    again = (float *)malloc(count * sizeof(float));
    LoraConfig all;
    memset(&all, 0, sizeof all);
    all.r = 32; all.lora_alpha = 16;          /* as wide as any of them */
    for (int j = 0; j < MODULE_COUNT; j++) all.target[j] = true;
    must(model_open(&m, "test/golden/qwen3", &err) && adapter_attach(&wide, &m, &all, 1, &err), &err);
    must(workspace_open(&w, &m, &wide, N, N, RECOMPUTE_NONE, true, NULL, &err), &err);
    batch_from(&b, ids, ids, cu, 2);
    for (int k = 0; k < ADAPTERS; k++) {
        char path[128];
        snprintf(path, sizeof path, "test/golden/qwen3/%s", names[k]);
        must(adapter_load(&a[k], &m, path, &err), &err);
    }
    for (int k = ADAPTERS; k >= 0; k--) {
        const Adapter *own = k < ADAPTERS ? &a[k] : NULL;
        if (own) train_pass(&m, &a[k], &w, &b, no_mask, 0.1f);
        model_logits(&m, own, &w, again, &b);
        same += !memcmp(again, logits[k], count * sizeof(float)) && (!own || grad_same(own, gradient[k]));
    }
    check(same == ADAPTERS + 1 && differ == ADAPTERS * (ADAPTERS + 1) / 2,
          "three adapters and the base over one model: %d of 4 have the bits that they have alone, %d of 6 pairs differ",
          same, differ);
    for (int k = 0; k <= ADAPTERS; k++) free(logits[k]);
    for (int k = 0; k < ADAPTERS; k++) { free(gradient[k]); adapter_drop(&a[k]); }
    free(again);
    batch_free(&b);
    workspace_close(&w);
    adapter_drop(&wide);
    model_close(&m);
}

/* Does a name of transformers end a tensor that its Trainer does not decay (Trainer.get_decay_parameter_names: names
   with bias, layernorm, rmsnorm; norm and whatever ends in _norm between dots)? */
static bool name_undecayed(const char *name) {
    return strstr(name, "bias") || strstr(name, "layernorm") || strstr(name, ".norm.") || strstr(name, "_norm.");
}
/* What every tensor is trained with: the rates of LoRA+ and of the embedding, no decay of norms and biases, 8 bits of
   the large ones that are no embedding, and the places of their moments, one after the other. */
static void test_trainables(void) {
    static const struct { const char *model; int train, r; } cases[] = {
        {"qwen3", TRAIN_LORA | TRAIN_NORMS | TRAIN_HEAD | TRAIN_EMBEDDINGS, 128}, {"mistral", TRAIN_FULL, 0},
        {"qwen2", TRAIN_FULL, 0}, {"granite", TRAIN_FULL, 0}, {"mistral", TRAIN_LORA | TRAIN_EMBEDDINGS, 3}};
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        Error err;
        Model m;
        Adapter a = no_adapter();
        LoraConfig c;
        char folder[64];
        memset(&c, 0, sizeof c);
        c.r = cases[k].r; c.lora_alpha = 8; c.train = cases[k].train;
        bool lora = c.train & TRAIN_LORA;
        c.target[MODULE_Q] = c.target[MODULE_UP] = lora;
        a.optim = OPTIMIZER_ADAMW_8BIT;
        snprintf(folder, sizeof folder, "test/golden/%s", cases[k].model);
        must(model_open(&m, folder, &err) && adapter_attach(&a, &m, &c, 1, &err) &&
             adapter_rates(&a, lora ? 4 : 1, 0.25, &err), &err);
        size_t moment = 0;
        int rates = 0, decays = 0, places = 0, count = (int)arrlen(a.list), eight_bits = 0;
        for (const Trainable *t = a.list; t < a.list + count; t++) {
            size_t n = adapter_tensor_count(t);
            bool embedding = strstr(t->name, "embed_tokens.") != NULL, head = strstr(t->name, "lm_head.") != NULL;
            bool b = strstr(t->name, ".lora_B.") || name_undecayed(t->name);
            bool small = n >= 4096 && !embedding;
            rates += t->rate == (embedding || head ? 0.25f : b && lora ? 4 : 1);
            decays += t->decay == !name_undecayed(t->name);
            places += t->moment == moment && t->eight_bits == small;
            moment += small ? (n + 3) / 4 + (n + 255) / 256 : n;
            eight_bits += small;
        }
        check(rates == count && decays == count, "%s, --train %d: %d tensors, %d with their rate, %d with their decay",
              cases[k].model, c.train, count, rates, decays);
        check(places == count && moment == a.moment_count && (eight_bits || k > 1),
              "  %d in 8 bits, the moments of %d in their place", eight_bits, places);
        bool none = adapter_rates(&a, lora ? 1 : 4, 1, &err);
        check(none == lora && (none || strstr(err.text, "--lora-plus-ratio")), "  a ratio without A and B: %s",
              none ? "not asked for" : err.text);
        adapter_drop(&a);
        check(a.optim == OPTIMIZER_ADAMW_8BIT && !a.moment_count, "  the choice outlives the adapter");
        model_close(&m);
    }
}

/* The optimizer clips, takes the loss scale out, and gives every trainable its own rate and decay; a gradient that is not
   finite changes nothing. */
static void test_optimizer(void) {
    Error err;
    Model m;
    Adapter a = no_adapter();
    LoraConfig lora;
    memset(&lora, 0, sizeof lora);
    lora.r = 3; lora.lora_alpha = 6;
    lora.target[MODULE_Q] = lora.target[MODULE_UP] = true;
    must(model_open(&m, "test/golden/qwen3", &err) && adapter_attach(&a, &m, &lora, 1, &err), &err);
    const Optimizer o = {0.9, 0.999, 1e-8, 0.1, 0.5};
    size_t bytes = a.param_count * sizeof(float);
    float *grad = (float *)malloc(bytes), *copy[3], bad = INFINITY;
    float **arena[3] = {&a.param, &a.adam_m, &a.adam_v};
    double squares = 0, norm;
    for (size_t i = 0; i < a.param_count; i++) {
        grad[i] = (float)((i * 2654435761u >> 8) % 1000) * 0.001f - 0.5f;
        squares += (double)grad[i] * (double)grad[i];
    }
    for (ptrdiff_t i = 0; i < arrlen(a.list); i++) {
        bool B = i % 2 == 1;
        a.list[i].rate = B ? 4 : 1;
        a.list[i].decay = i < 4 ? 0 : 1;
    }
    a.loss_scale = 4;
    backend_upload(a.grad, grad, bytes);
    for (int k = 0; k < 3; k++) {           /* what should come out, one trainable at a time */
        float *host = fetched(*arena[k], a.param_count);
        copy[k] = (float *)backend_alloc(bytes);
        backend_upload(copy[k], host, bytes);
        free(host);
    }
    double want = sqrt(squares) / 4;
    for (ptrdiff_t i = 0; i < arrlen(a.list); i++) {
        const Trainable *t = &a.list[i];
        size_t at = t->offset, count = (size_t)(t->shape[0] * t->shape[1]);
        double clip = 0.5 / (adapter_grad_norm(&a) + 1e-6);
        adamw_update(copy[0] + at, copy[1] + at, copy[2] + at, a.grad + at, count, (float)(clip / 4),
                     1e-2f * t->rate, 0.9f, 0.999f, 1e-8f, 0.1f * t->decay, 1);
    }
    bool taken = optimizer_step(&a, &o, 1e-2, &norm) == STEP_TAKEN;
    int same = 0;
    for (int k = 0; k < 3; k++) {
        float *got = fetched(*arena[k], a.param_count), *due = fetched(copy[k], a.param_count);
        same += !memcmp(got, due, bytes);
        free(got);
        free(due);
    }
    check(taken && same == 3 && fabs(norm - want) <= 1e-6 * want && a.adam_step == 1,
          "optimizer_step: %d trainables at rates 1 and 4, with and without decay, norm %.6f, expected %.6f",
          (int)arrlen(a.list), norm, want);
    float *before = fetched(a.param, a.param_count);
    backend_upload(a.grad, &bad, sizeof bad);
    bool halved = optimizer_step(&a, &o, 1e-2, &norm) == STEP_OVERFLOW && a.loss_scale == 2;
    a.loss_scale = 1;
    bool refused = optimizer_step(&a, &o, 1e-2, &norm) == STEP_NONFINITE && a.loss_scale == 1;
    float *after = fetched(a.param, a.param_count);
    check(halved && refused && a.adam_step == 1 && !memcmp(before, after, bytes),
          "an infinite gradient halves the loss scale, at 1 it is refused, and no parameter changes");
    free(before); free(after); free(grad);
    for (int k = 0; k < 3; k++) backend_free(copy[k], bytes);
    adapter_drop(&a);
    model_close(&m);
}

#ifdef LORA_CUDA
/* The table that is printed before step 0 against what the card says is gone. The emulator counts bytes. A card hands out
   pages of 2 MiB, so each of the seven arenas (norms, weights, activations, the adapter's four) may take one more or, where
   it fits beside another, one less, and the driver may take a little for itself: a native run is large enough for that to
   be a few percent. */
#ifdef EMULATED
enum { MEMORY_TOKENS = 2000, MEMORY_SLACK = 16 << 10, MEMORY_KEPT = 0 };
#else
enum { MEMORY_TOKENS = 20000, MEMORY_SLACK = (7 * 2 + 8) << 20, MEMORY_KEPT = 8 << 20 };
#endif
static void test_memory(void) {
    Error err;
    Model m;
    Adapter a = no_adapter();
    Workspace w = no_workspace();
    MemoryTable table;
    LoraConfig lora;
    memset(&table, 0, sizeof table);
    memset(&lora, 0, sizeof lora);
    lora.r = 16; lora.lora_alpha = 16;
    for (int j = 0; j < MODULE_COUNT; j++) lora.target[j] = true;
    backend_ready();
    size_t before = backend_memory();
    must(model_open(&m, "data/base", &err) && adapter_attach(&a, &m, &lora, 1, &err), &err);
    model_memory(&m, &a, &table);
    must(workspace_open(&w, &m, &a, MEMORY_TOKENS, 200, RECOMPUTE_NONE, true, &table, &err), &err);
    double used = (double)(before - backend_memory());
    check(fabs(used - (double)table.total) <= MEMORY_SLACK, "memory: announced %.3f MiB, gone from the card %.3f MiB",
          (double)table.total / 0x1p20, used / 0x1p20);
    workspace_close(&w);
    adapter_drop(&a);
    model_close(&m);
    double kept = (double)before - (double)backend_memory();
    check(fabs(kept) <= MEMORY_KEPT, "model_close gives all of it back: %.3f MiB are kept", kept / 0x1p20);
    size_t head = op_scratch_bytes(8192, 12288, 48, 151936, 2048);
    check(head <= 600000000, "scratch at a vocabulary of 151,936 and 8,192 tokens: %.0f MB", (double)head / 1e6);
}
#endif

#ifndef LORA_CUDA
/* A model that is closed leaves no file open. */
static void test_files(void) {
    Model m;
    Error err;
    int before = dup(0);
    close(before);
    must(model_open(&m, "data/base", &err), &err);
    model_close(&m);
    int after = dup(0);
    close(after);
    check(before >= 0 && after == before, "no file is open after a model: the next is %d, before %d", after, before);
}

/* The memory table's first row is what the process holds beside the backend's memory, that given back included. */
static void test_overhead(void) {
    enum { BYTES = 64 << 20 };
    const char *name;
    double before = (double)backend_overhead(&name);
    void *p = backend_alloc(BYTES);
    memset(p, 1, BYTES);
    double with = (double)backend_overhead(&name);
    backend_free(p, BYTES);
    double after = (double)backend_overhead(&name);
    check(before > 1.2e6 && fabs(with - before) < 1e6 && fabs(after - before) < 1e6,
          "%s: %.1f MB, with 64 MiB taken %.1f MB, given back %.1f MB", name, before / 1e6, with / 1e6, after / 1e6);
}
#endif

/* Dropout masks are a bit an element of every projection's input (on CUDA; the CPU makes them again): in the plan once a
   layer, or once where a recomputed forward makes them anew. */
static void test_mask_memory(void) {
    enum { TOKENS = 77 };
    Error err;
    Model m;
    Adapter a = no_adapter();
    Workspace w = no_workspace();
    LoraConfig lora;
    memset(&lora, 0, sizeof lora);
    lora.r = 4; lora.lora_alpha = 8;
    for (int j = 0; j < MODULE_COUNT; j++) lora.target[j] = true;
    must(model_plan(&m, "data/base", &err) && adapter_attach(&a, &m, &lora, 1, &err), &err);
    check(!m.weight_arena && !m.norm_arena && !a.param && m.weight_bytes > 0, "a planned model takes no memory");
    size_t group[4], layers = (size_t)m.config.num_hidden_layers;
    const int in[4] = {m.config.hidden_size, m.config.num_attention_heads * m.config.head_dim, m.config.hidden_size,
                       m.config.intermediate_size}, modules[4] = {3, 1, 2, 1};
    for (int i = 0; i < 4; i++) {
        group[i] = (size_t)modules[i] * TOKENS * (((size_t)in[i] + 63) / 64 * 8);
        group[i] = (group[i] + 255) / 256 * 256;
#ifndef LORA_CUDA
        group[i] = 0;
#endif
    }
    size_t rest = group[0] + group[1] + group[3];
    const size_t due[4] = {layers * (rest + group[2]), layers * rest + group[2], rest + group[2], 0};
    const Recompute level[4] = {RECOMPUTE_NONE, RECOMPUTE_GATE_UP, RECOMPUTE_LAYER, FORWARD_ONLY};
    for (int i = 0; i < 4; i++) {
        size_t bytes[2];
        for (int d = 0; d < 2; d++) {
            a.config.lora_dropout = d ? 0.1f : 0;
            must(workspace_open(&w, &m, &a, TOKENS, TOKENS, level[i], false, NULL, &err), &err);
            bytes[d] = w.arena_bytes;
        }
        check(bytes[1] - bytes[0] == due[i], "recompute level %d: dropout masks are %zu bytes of the plan, due %zu",
              (int)level[i], bytes[1] - bytes[0], due[i]);
    }
    workspace_close(&w);
    adapter_drop(&a);
    model_close(&m);
}

#ifdef LORA_CUDA
/* What backend_ceiling takes for the peak, against what NVIDIA publishes (TFLOP/s, dense, fp32 accumulation). */
static void test_ceiling(void) {
    static const struct { const char *name; int capability, processors, megahertz; bool fp32; double published; } card[] = {
        {"NVIDIA GeForce RTX 5090", 120, 170, 2407, false, 209.5},
        {"NVIDIA H100 80GB HBM3", 90, 132, 1830, false, 989.4},
        {"NVIDIA GeForce RTX 4090", 89, 128, 2520, false, 165.2}, {"NVIDIA L4", 89, 58, 2040, false, 121},
        {"NVIDIA GeForce RTX 3090", 86, 82, 1695, false, 71}, {"NVIDIA RTX A6000", 86, 84, 1800, false, 154.8},
        {"NVIDIA A100-SXM4-80GB", 80, 108, 1410, false, 312}, {"NVIDIA A100-SXM4-80GB", 80, 108, 1410, true, 19.5},
        {"Tesla T4", 75, 40, 1590, false, 65}, {"NVIDIA GeForce RTX 2080 Ti", 75, 68, 1545, false, 53.8},
        {"NVIDIA GeForce RTX 4090", 89, 128, 2520, true, 82.6}};
    for (size_t i = 0; i < sizeof card / sizeof *card; i++) {
        int operations = card_operations(card[i].capability, card[i].name, card[i].fp32);
        double peak = 1e-6 * card[i].processors * card[i].megahertz * operations;
        check(fabs(peak / card[i].published - 1) <= 0.005, "%s%s: peak %.1f TFLOP/s, published %.1f", card[i].name,
              card[i].fp32 ? " in fp32" : "", peak, card[i].published);
    }
}
#endif

/* Every value that F16 and BF16 have comes back as itself, the same read one by one as all at once, from an odd address
   too; what lies between two goes to the nearest, ties to the even one. */
static void test_formats(void) {
    enum { ALL = 65536 };
    static uint16_t halves[ALL];
    static char odd[ALL * 2 + 1];
    static float values[ALL], again[ALL];
    for (uint32_t h = 0; h < ALL; h++) halves[h] = (uint16_t)h;
    memcpy(odd + 1, halves, sizeof halves);
    for (int k = FORMAT_F16; k <= FORMAT_BF16; k++) {
        const Format *f = &weight_format[k];
        Weight w = {halves, NULL, (FormatId)k, 256, 256}, moved = {odd + 1, NULL, (FormatId)k, 256, 256};
        int same = 0, alike = 0, right = 0, nearest = 0, tried = 0, exponent = k == FORMAT_F16 ? 5 : 8;
        weight_decode(values, &w, 0, ALL);
        weight_decode(again, &moved, 0, ALL);
        for (uint32_t h = 0; h < ALL; h++) {
            uint16_t in = (uint16_t)h, next = (uint16_t)(h + 1), out;
            float x = values[h], one;
            f->encode(&out, &x, 1);
            same += out == in || isnan(x);
            f->decode(&one, &w, h, 1);
            alike += !memcmp(&one, &x, sizeof x) && !memcmp(&again[h], &x, sizeof x);
            /* what the bits mean: sign, exponent, mantissa */
            int bias = (1 << (exponent - 1)) - 1, digits = 15 - exponent, top = h >> digits & ((1 << exponent) - 1);
            double part = ldexp((double)(h & ((1u << digits) - 1)), -digits), sign = h & 0x8000 ? -1 : 1;
            if (top == (1 << exponent) - 1) right += part > 0 ? isnan(x) : isinf(x) && (double)x * sign > 0;
            else right += (double)x == sign * (top ? ldexp(1 + part, top - bias) : ldexp(part, 1 - bias)) &&
                          !signbit(x) == !(h & 0x8000);
            if ((h & 0x7FFF) == 0x7FFF || !isfinite(x) || !isfinite(values[h + 1])) continue;
            float y = values[h + 1], points[3] = {x + (y - x) * 0.25f, x + (y - x) * 0.5f, x + (y - x) * 0.75f};
            uint16_t want[3] = {in, in & 1 ? next : in, next};
            /* fp32 has no room for the quarters of its own subnormals */
            if (k == FORMAT_BF16 && fabsf(x) < 0x1p-126f) continue;
            for (int i = 0; i < 3; i++, tried++) { f->encode(&out, &points[i], 1); nearest += out == want[i]; }
        }
        check(same == ALL && nearest == tried && tried > 180000,
              "%s: %d values come back, %d of %d roundings are to the nearest", f->name, same, nearest, tried);
        check(right == ALL && alike == ALL, "%s: %d of 65536 halves mean what their bits say, %d read alone and from "
              "an odd address alike", f->name, right, alike);
        uint16_t large[3];
        bool five = k == FORMAT_F16;
        const float beyond[3] = {five ? 65519.0f : 0x1.fep127f, five ? 65520.0f : FLT_MAX, NAN};
        f->encode(large, beyond, 3);
        Weight read = {large, NULL, (FormatId)k, 1, 3};
        weight_decode(values, &read, 0, 3);
        check(isfinite(values[0]) && isinf(values[1]) && isnan(values[2]), "%s: what is too large is infinite",
              f->name);
        /* relative error of encode, and what it is said to be */
        double worst = 0;
        for (int i = 0; i < 1000; i++) {
            float x = 1 + (float)i / 1000, y;
            uint16_t half;
            f->encode(&half, &x, 1);
            Weight one = {&half, NULL, (FormatId)k, 1, 1};
            weight_decode(&y, &one, 0, 1);
            worst = fmax(worst, fabs((double)y / (double)x - 1));
        }
        check(worst <= f->rounding && worst > f->rounding / 2 && format_bytes((FormatId)k, 10) == 20 &&
              weight_bytes(&w) == sizeof halves, "%s: rounded by at most %.1e, two bytes each", f->name, worst);
    }
    /* The first of several bad numbers is named, wherever the blocks of the scan begin. */
    enum { COUNT = 200000 };
    static const float bad[2] = {-INFINITY, NAN};
    static const int at[] = {COUNT - 1, 65537, 65536, 65535, 4097, 1, 0};
    static float clean[COUNT];
    for (int k = 0; k < FORMAT_COUNT; k++) {
        const Format *f = &weight_format[k];
        Weight w = {clean, NULL, (FormatId)k, 4, COUNT / 4};
        memset(clean, 0, sizeof clean);
        check(weight_nonfinite(&w) == -1 && first_nonfinite(clean, COUNT) == -1, "%s: zeros are finite", f->name);
        for (int alone = 0; alone < 2; alone++)
            for (size_t i = 0; i < sizeof at / sizeof *at; i++) {
                if (alone) memset(clean, 0, sizeof clean);
                f->encode((char *)clean + at[i] * f->block_bytes, &bad[i % 2], 1);
                check(weight_nonfinite(&w) == at[i], "%s: number %d is the %s that is not finite", f->name, at[i],
                      alone ? "one" : "first");
            }
    }
}

/* A merged folder is the base with the adapter in it: same files, same logits; nothing is overwritten, nothing torn is left. */
static void test_merge(const char *folder, const char *adapter, DType wanted) {
    Model m;
    Adapter a = no_adapter();
    Workspace w = no_workspace();
    Error err;
    char base[300], path[300], out[] = "/tmp/train_lora_merge_XXXXXX", merged[64];
    snprintf(base, sizeof base, "test/golden/%s", folder);
    snprintf(path, sizeof path, "test/golden/%s/%s", folder, adapter);
    if (!mkdtemp(out)) abort();
    snprintf(merged, sizeof merged, "%s/m", out);
    int32_t ids[24], cu[3] = {0, 17, 24};
    float *logits[2] = {NULL, NULL};
    size_t count = 0;
    FormatId format = FORMAT_F32;
    int layers = 0;
    for (int k = 0; k < 2; k++) {
        must(model_open(&m, k ? merged : base, &err), &err);
        format = m.layers[0].linear[0].w.format;
        layers = m.config.num_hidden_layers;
        LoraConfig none;
        memset(&none, 0, sizeof none);
        none.r = 1; none.lora_alpha = 1; none.target[0] = true;
        must(k ? adapter_attach(&a, &m, &none, 1, &err) : adapter_load(&a, &m, path, &err), &err);
        must(workspace_open(&w, &m, &a, 24, 17, RECOMPUTE_NONE, true, NULL, &err), &err);
        Batch b;
        for (int i = 0; i < 24; i++) ids[i] = (i * 37 + 11) % m.config.vocab_size;
        batch_from(&b, ids, NULL, cu, 2);
        count = 24 * (size_t)m.config.vocab_size;
        logits[k] = (float *)malloc(count * sizeof(float));
        model_logits(&m, k ? NULL : &a, &w, logits[k], &b);
        if (!k) {
            must(adapter_merge(&a, merged, wanted, &err), &err);
            check(!adapter_merge(&a, merged, wanted, &err) && strstr(err.text, "exists already"),
                  "merge into a folder that is there: %s", err.text);
        }
        batch_free(&b);
        workspace_close(&w);
        adapter_drop(&a);
        model_close(&m);
    }
    double e = rms_error(logits[1], logits[0], count), tolerance = merged_tolerance(format, layers);
    if (wanted != DTYPE_COUNT) check(format == dtype_format(wanted), "merged %s as %s", folder, dtype_name[wanted]);
    check(e <= tolerance && (format == FORMAT_F32 || e > tolerance / 100),
          "merged %s + %s in %s: logits, relative error %.1e of %.1e", folder, adapter, weight_format[format].name, e,
          tolerance);
    free(logits[0]);
    free(logits[1]);
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", out);
    if (system(command)) check(false, "could not remove %s", out);
}

/* A copy of test/golden/qwen3 under path, written otherwise: every name that begins with `from` begins with `to`
   instead, a
   tensor of no elements comes first, the numbers lie at an odd address; head: a second head of these numbers. */
static void write_variant(const char *path, const char *from, const char *to, const float *head) {
    char file[300], name[200];
    Error err;
    TensorSet set;
    Tensor *list = NULL;
    size_t offset = 0;
    Text t = TEXT_EMPTY;
    memset(&set, 0, sizeof set);
    must(tensors_add_file(&set, "test/golden/qwen3/model.safetensors", &err), &err);
    text_print(&t, "{\"a\": {\"dtype\": \"BF16\", \"shape\": [0, 4], \"data_offsets\": [0, 0]}");
    for (ptrdiff_t i = 0; i < shlen(set.table); i++) arrput(list, set.table[i].value);
    for (ptrdiff_t i = 0; i < arrlen(list) + (head != NULL); i++) {
        const Tensor *x = i < arrlen(list) ? &list[i] : golden_tensor(&set, "model.embed_tokens.weight");
        size_t n = strlen(from);
        bool other = !strncmp(x->name, from, n);
        snprintf(name, sizeof name, "%s%s", other ? to : "", other ? x->name + n : x->name);
        text_print(&t, ", \"%s\": {\"dtype\": \"F32\", \"shape\": [", i < arrlen(list) ? name : "lm_head.weight");
        for (int k = 0; k < x->ndim; k++) text_print(&t, "%s%lld", k ? ", " : "", (long long)x->shape[k]);
        text_print(&t, "], \"data_offsets\": [%zu, %zu]}", offset, offset + x->bytes);
        offset += x->bytes;
    }
    text_print(&t, "}");
    while (t.length % 8 != 1) text_print(&t, " ");
    uint64_t length = (uint64_t)t.length;
    snprintf(file, sizeof file, "%s/model.safetensors", path);
    FILE *f = fopen(file, "wb");
    if (!f) abort();
    fwrite(&length, 8, 1, f);
    fwrite(t.at, 1, (size_t)length, f);
    for (ptrdiff_t i = 0; i < arrlen(list); i++) fwrite(list[i].data, 1, list[i].bytes, f);
    if (head) fwrite(head, 1, golden_tensor(&set, "model.embed_tokens.weight")->bytes, f);
    fclose(f);
    text_free(&t);
    arrfree(list);
    tensors_close(&set);
}

/* The same model written in other ways that transformers reads too, and merged from them. */
static void test_variants(void) {
    static const struct { const char *what, *from, *to; int head; } cases[] = {     /* head 1: another, 2: the same */
        {"an empty tensor first, odd addresses", "", "", 0}, {"names without 'model.'", "model.", "", 0},
        {"names of a wrapper", "model.", "_orig_mod.model.", 0}, {"tied, only the head stored", "model.embed_tokens",
                                                                  "lm_head", 0},
        {"tied, both stored and equal", "", "", 2}, {"tied, both stored and different", "", "", 1}};
    char folder[] = "/tmp/train_lora_variant_XXXXXX", merged[64], command[200];
    Error err;
    Model m;
    Adapter a = no_adapter();
    Workspace w = no_workspace();
    Batch b;
    TensorSet set;
    int32_t ids[9] = {3, 17, 60, 95, 0, 41, 8, 77, 23}, cu[2] = {0, 9};
    if (!mkdtemp(folder)) abort();
    snprintf(merged, sizeof merged, "%s/merged", folder);
    snprintf(command, sizeof command, "cp test/golden/qwen3/config.json %s && ln -s /etc/hostname %s/NOTES.md", folder,
             folder);
    if (system(command)) abort();
    memset(&set, 0, sizeof set);
    must(tensors_add_file(&set, "test/golden/qwen3/model.safetensors", &err), &err);
    const Tensor *embed = golden_tensor(&set, "model.embed_tokens.weight");
    size_t V = (size_t)embed->shape[0], count = 9 * V;
    float *head = (float *)malloc(embed->bytes), *want = (float *)malloc(count * sizeof(float)),
        *got = (float *)malloc(count * sizeof(float));
    for (int i = -1; i < (int)(sizeof cases / sizeof *cases); i++) {
        bool other = i >= 0 && cases[i].head == 1;
        for (size_t k = 0; k < embed->count; k++) head[k] = ((const float *)embed->data)[k] * (other ? 0.5f : 1);
        if (i >= 0) write_variant(folder, cases[i].from, cases[i].to, cases[i].head ? head : NULL);
        for (int round = 0; round < (i < 0 ? 1 : 2); round++) {
            must(model_open(&m, i < 0 ? "test/golden/qwen3" : round ? merged : folder, &err), &err);
            if (!round) must(adapter_load(&a, &m, "test/golden/qwen3/adapter", &err), &err);
            must(workspace_open(&w, &m, round ? NULL : &a, 9, 16, FORWARD_ONLY, true, NULL, &err), &err);
            batch_from(&b, ids, NULL, cu, 1);
            model_logits(&m, round ? NULL : &a, &w, i < 0 ? want : got, &b);
            /* half the head: half the logits */
            for (size_t k = 0; k < count && other; k++) got[k] *= 2;
            double e = i < 0 ? 0 : relative_error(got, want, count);
            if (i >= 0) check(e <= (round ? TOLERANCE : 0), "%s%s: relative error of the logits %.1e", cases[i].what,
                              round ? ", merged" : "", e);
            if (i >= 0 && !round) must(adapter_merge(&a, merged, DTYPE_COUNT, &err), &err);
            batch_free(&b);
            workspace_close(&w);
            adapter_drop(&a);
            model_close(&m);
        }
        snprintf(command, sizeof command, "test ! -e %s/NOTES.md && rm -rf %s", merged, merged);
        if (i >= 0) check(!system(command), "%s: a link to elsewhere is not merged", cases[i].what);
    }
    static const char lfs[] = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 11422654\n";
    snprintf(command, sizeof command, "%s/model.safetensors", folder);
    must(write_file(command, lfs, sizeof lfs - 1, &err), &err);
    check(!tensors_add_file(&set, command, &err) && strstr(err.text, "model.safetensors; run in its"),
          "no file: a pointer for weights: %s", err.text);
    check(!tensors_add_file(&set, "/dev/zero", &err) && strstr(err.text, "it is a device"),
          "no file: a device for weights");
    snprintf(command, sizeof command, "rm -rf %s", folder);
    if (system(command)) check(false, "could not remove %s", folder);
    free(head); free(want); free(got);
    tensors_close(&set);
}

int main(void) {
#ifdef LORA_CUDA
    test_ceiling();
    test_memory();
#else
    test_files();
    test_overhead();
#endif
    test_mask_memory();
    test_golden("llama", "adapter", "golden.safetensors");
    test_golden("llama_linear", "adapter", "golden.safetensors");
    test_golden("qwen2", "adapter", "golden.safetensors");
    test_golden("qwen3", "adapter", "golden.safetensors");
    test_golden("qwen3", "adapter_layers", "golden_layers.safetensors");
    test_golden("mistral", "adapter", "golden.safetensors");
    test_golden("smollm3", "adapter", "golden.safetensors");
    test_golden("granite", "adapter", "golden.safetensors");
    static const char *const families[] = {"llama", "llama_linear", "qwen2", "qwen3", "mistral", "smollm3", "granite"};
    for (int i = 0; i < 7; i++) test_trained_gradients(families[i]);
    test_new_adapters();
    test_lowest();
    test_adapters();
    test_adapter_config();
    test_config_fields();
    test_config_keys();
    test_header();
    test_formats();
    test_merge("qwen2", "adapter", DTYPE_COUNT);
    test_merge("qwen3", "adapter_layers", DTYPE_COUNT);
    test_merge("mistral", "adapter", DTYPE_COUNT);
    test_merge("smollm3", "adapter", DTYPE_COUNT);
    test_merge("granite", "adapter", DTYPE_COUNT);
    test_merge("mistral", "adapter_pissa", DTYPE_COUNT);
    test_merge("qwen3", "adapter_pissa_pattern", DTYPE_COUNT);
    test_merge("qwen3", "adapter_patterns", DTYPE_COUNT);
    test_merge("mistral", "adapter_pissa", DTYPE_F32);
    test_merge("qwen3", "adapter", DTYPE_BF16);
    test_merge("qwen3", "adapter", DTYPE_F16);
    test_variants();
    test_stories();
    test_invariances();
    test_shared();
    test_trainables();
    test_optimizer();
    return finish();
}
