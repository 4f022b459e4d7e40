/* test_generate.c - generation against transformers' generate (test/golden/generate.json, made by dev/make_golden.py
   generation), against the full forward pass, and against itself.
   gcc -std=gnu11 -O2 -fopenmp -I. test/test_generate.c -o build/test_generate -lm && build/test_generate      (from the repository root) */
#include "backend.h"

static void must(bool ok, const Error *err) {
    if (ok) return;
    printf("FAIL  cannot go on: %s\n", err->text);
    checks_failed++;
    exit(finish());
}
static GenerateOptions greedy(int tokens, int batch) {
    GenerateOptions o;
    memset(&o, 0, sizeof o);
    o.max_new_tokens = tokens; o.batch_size = batch; o.top_p = o.repetition_penalty = 1; o.seed = 42;
    return o;
}
static JsonDoc golden_file(void) {
    Error err;
    JsonDoc doc;
    must(json_read(&doc, "test/golden/generate.json", &err), &err);
    return doc;
}
static int32_t *ids_of(const Json *list, int *count) {
    int32_t *ids = (int32_t *)malloc((list->count + 1) * sizeof *ids);
    *count = 0;
    for (const Json *j = list->child; j; j = j->next) ids[(*count)++] = (int32_t)j->number;
    return ids;
}
/* Opens both; "" is no adapter, which the answer then is: what forward takes. */
static const Adapter *golden_model(Model *m, Adapter *a, const char *model, const char *adapter) {
    Error err;
    char folder[300];
    snprintf(folder, sizeof folder, "test/golden/%s", model);
    must(model_open(m, folder, &err), &err);
    /* the tiny models stop at 64; their rotary tables do not depend on it */
    m->config.max_position_embeddings = 4096;
    snprintf(folder, sizeof folder, "test/golden/%s/%s", model, adapter);
    memset(a, 0, sizeof *a);
    if (*adapter) must(adapter_load(a, m, folder, &err), &err);
    return *adapter ? a : NULL;
}

/* Runs of one model and adapter: each alone, and all at once. How many of the tokens must agree depends on the
   numbers the backend works with. */
static void test_greedy(const char *model, const char *adapter) {
    JsonDoc doc = golden_file();
    Prompt prompts[8];
    const Json *want[8];
    Model m;
    Adapter a;
    Error err;
    int count = 0, agree = 0, tokens = 0, same = 0;
    memset(prompts, 0, sizeof prompts);
    const Adapter *on = golden_model(&m, &a, model, adapter);
    for (const Json *r = json_get(doc.root, "greedy")->child; r; r = r->next) {
        const Json *with = json_get(r, "adapter");
        if (strcmp(json_get(r, "model")->str, model) || strcmp(with->type == JSON_STRING ? with->str : "", adapter))
            continue;
        prompts[count].ids = ids_of(json_get(r, "prompt"), &prompts[count].count);
        prompts[count].row = count + 1;
        want[count++] = json_get(r, "tokens");
    }
    Answer together[8], alone[1];
    GenerateOptions o = greedy(112, 8);
    must(model_generate(&m, on, NULL, NULL, prompts, (size_t)count, &o, together, NULL, NULL, &err), &err);
    for (int i = 0; i < count; i++) {
        o.batch_size = 1;
        must(model_generate(&m, on, NULL, NULL, &prompts[i], 1, &o, alone, NULL, NULL, &err), &err);
        same += alone[0].count == 112 && together[i].count == 112 &&
                !memcmp(alone[0].ids, together[i].ids, 112 * sizeof(int32_t));
        int k = 0;
        bool path = true;
        for (const Json *j = want[i]->child; j; j = j->next, k++) {
            path = path && together[i].ids[k] == (int32_t)j->number;
            agree += path;
            tokens++;
        }
        answers_free(alone, 1);
        free(prompts[i].ids);
    }
    answers_free(together, (size_t)count);
    adapter_drop(&a);
    model_close(&m);
    json_free(&doc);
    if (sizeof(floatX) == 4)
        check(agree == tokens && tokens == 112 * count && count == 3,
              "%s %s: %d of %d greedy tokens as transformers' generate", model, *adapter ? adapter : "alone", agree,
              tokens);
    else
        check(agree * 4 > tokens, "%s %s in 16 bit: %d of %d greedy tokens before the first that differs from fp32's",
              model, *adapter ? adapter : "alone", agree, tokens);
    check(same == count, "%s %s: three prompts together and alone, the same tokens", model,
          *adapter ? adapter : "alone");
}

/* Logits of every token from the cache, one at a time, against the full forward pass over the whole sequences. */
static void test_cache(const char *model, const char *adapter) {
    enum { S = 3, T = 23, FIRST = 5 };      /* sequence s has T - 4 s tokens, FIRST - s of them in the prompt */
    Model m;
    Error err;
    Batch b;
    Cache cache;
    Adapter a;
    Workspace w;
    memset(&w, 0, sizeof w);
    const DropoutKey no_mask = {0, 0, 0, 0};
    const Adapter *on = golden_model(&m, &a, model, adapter);
    const ModelConfig *c = &m.config;
    int V = c->vocab_size, lengths[S], total = 0;
    int32_t place_host[S * T];
    for (int s = 0; s < S; s++) total += lengths[s] = T - 4 * s;
    must(workspace_open(&w, &m, on, total, T, FORWARD_ONLY, true, NULL, &err) && batch_alloc(&b, total, S, &err), &err);
    float *full = (float *)malloc((size_t)total * (size_t)V * sizeof *full),
          *step = (float *)malloc((size_t)S * (size_t)V * sizeof *step);
    b.N = 0; b.S = S; b.cu_seqlens[0] = 0;
    for (int s = 0; s < S; s++) {
        for (int i = 0; i < lengths[s]; i++) { b.ids[b.N] = (s * 31 + i * 7 + 3) % V; b.positions[b.N++] = i; }
        b.cu_seqlens[s + 1] = b.N;
    }
    model_logits(&m, on, &w, full, &b);
    memset(&cache, 0, sizeof cache);
    cache.places = S + 1; cache.capacity = T + 2;             /* place 0 stays empty */
    cache.layer =
        (size_t)cache.places * 2 * (size_t)c->num_key_value_heads * (size_t)cache.capacity * (size_t)c->head_dim;
    cache.bytes = cache.layer * (size_t)c->num_hidden_layers * sizeof(floatX);
    cache.base = (floatX *)backend_alloc(cache.bytes);
    cache.place = (int32_t *)backend_alloc(sizeof place_host);
    float *poison = (float *)malloc(cache.bytes);
    memset(poison, 0xFF, cache.bytes);
    backend_upload(cache.base, poison, cache.bytes);         /* what was never stored must never be read */
    free(poison);
    w.cache = &cache;
    int at[S], offsets[S];
    double worst = 0;
    b.N = 0;
    for (int s = 0, offset = 0; s < S; offset += lengths[s++]) {
        offsets[s] = offset;
        at[s] = FIRST - s;
        for (int i = 0; i < at[s]; i++) {
            place_host[b.N] = s + 1;
            b.ids[b.N] = (s * 31 + i * 7 + 3) % V;
            b.positions[b.N++] = i;
        }
        b.cu_seqlens[s + 1] = b.N;
    }
    backend_upload(cache.place, place_host, (size_t)b.N * sizeof(int32_t));
    model_forward(&m, on, &w, &b, no_mask);
    cache.decode = true;
    int compared = 0;
    for (;;) {
        int members[S], n = 0;
        /* last sequence first: rows and places are not in the same order */
        for (int s = S - 1; s >= 0; s--) {
            if (at[s] >= lengths[s]) continue;
            place_host[n] = s + 1; b.ids[n] = (s * 31 + at[s] * 7 + 3) % V; b.positions[n] = at[s];
            b.cu_seqlens[n + 1] = n + 1;
            members[n++] = s;
        }
        if (!n) break;
        b.N = b.S = n;
        backend_upload(cache.place, place_host, (size_t)n * sizeof(int32_t));
        model_forward(&m, on, &w, &b, no_mask);
        lm_head_logits(step, w.normed, &m.head, n, c->hidden_size, V, w.scratch);
        for (int i = 0; i < n; i++) {
            int s = members[i];
            worst = fmax(worst, relative_error(step + (size_t)i * (size_t)V,
                                               full + (size_t)(offsets[s] + at[s]++) * (size_t)V, (size_t)V));
            compared++;
        }
    }
    double tolerance = sizeof(floatX) == 4 ? 1e-5 : LORA_LOSS_SCALE > 1 ? 0x1p-8 : 0x1p-5;
    check(compared == total - (FIRST + FIRST - 1 + FIRST - 2) && worst <= tolerance,
          "%s %s: %d rows of logits from the cache and from a full pass, worst relative error %.1e", model,
          *adapter ? adapter : "alone", compared, worst);
    free(full);
    free(step);
    backend_free(cache.place, sizeof place_host);
    backend_free(cache.base, cache.bytes);
    batch_free(&b);
    workspace_close(&w);
    adapter_drop(&a);
    model_close(&m);
}

/* Memory that is taken once serves the base and an adapter in turn, as it does during training: the same tokens as with
   memory of their own. What does not fit is refused. */
static void test_generator(void) {
    enum { COUNT = 3, NEW = 12 };
    Model m;
    Adapter a;
    Generator plan, g;
    Prompt prompts[COUNT];
    Answer own[COUNT], shared[COUNT];
    Error err;
    int32_t ids[COUNT][9];
    int same = 0, differ = 0, first[COUNT];
    const Adapter *on = golden_model(&m, &a, "qwen3", "adapter");
    memset(&plan, 0, sizeof plan);
    memset(&g, 0, sizeof g);
    memset(prompts, 0, sizeof prompts);
    for (int i = 0; i < COUNT; i++) {
        for (int k = 0; k < 9; k++) ids[i][k] = (i * 31 + k * 7 + 3) % m.config.vocab_size;
        prompts[i].ids = ids[i]; prompts[i].count = 9 - 2 * i; prompts[i].row = i + 1;
    }
    must(generator_open(&plan, &m, on, COUNT, 9, NEW, false, &err), &err);
    must(generator_open(&g, &m, on, COUNT, 9, NEW, true, &err), &err);
    check(g.bytes == plan.bytes && !plan.cache.base && g.work.arena_bytes + g.cache.bytes < g.bytes,
          "a generator's memory as planned: %zu bytes", g.bytes);
    GenerateOptions o = greedy(NEW, COUNT);
    for (int round = 0; round < 4; round++) {
        const Adapter *with = round % 2 ? on : NULL;
        must(model_generate(&m, with, NULL, NULL, prompts, COUNT, &o, own, NULL, NULL, &err), &err);
        must(model_generate(&m, with, &g, NULL, prompts, COUNT, &o, shared, NULL, NULL, &err), &err);
        for (int i = 0; i < COUNT; i++) {
            same += own[i].count == NEW && shared[i].count == NEW &&
                    !memcmp(own[i].ids, shared[i].ids, NEW * sizeof(int32_t));
            if (round == 0) first[i] = shared[i].ids[NEW - 1];
            if (round == 1) differ += shared[i].ids[NEW - 1] != first[i];
        }
        answers_free(own, COUNT);
        answers_free(shared, COUNT);
    }
    check(same == 4 * COUNT && differ, "one generator for base and adapter in turn: %d of %d answers as with their own",
          same, 4 * COUNT);
    o.max_new_tokens = NEW + 1;
    bool taken = model_generate(&m, on, &g, NULL, prompts, COUNT, &o, shared, NULL, NULL, &err);
    check(!taken && strstr(err.text, "3 sequences of 22 tokens in memory for 3 of 21"), "one token too many: %s",
          err.text);
    generator_close(&plan);
    generator_close(&g);
    adapter_drop(&a);
    model_close(&m);
}

#ifndef LORA_CUDA                           /* what does not depend on the backend is tested once */
/* Frequencies of 40,000 draws against the probabilities that transformers' processors leave: chi-square, and nothing
   that they exclude. */
static void test_sampling(void) {
    JsonDoc doc = golden_file();
    for (const Json *c = json_get(doc.root, "sampling")->child; c; c = c->next) {
        const Json *opts = json_get(c, "options");
        enum { V = 32, DRAWS = 40000 };
        GenerateOptions o = greedy(1, 1);
        o.temperature = json_get(opts, "temperature")->number;
        o.top_k = (int)json_get(opts, "top_k")->number;
        o.top_p = json_get(opts, "top_p")->number;
        o.min_p = json_get(opts, "min_p")->number; o.repetition_penalty = json_get(opts, "repetition_penalty")->number;
        int seen_count, hits[V] = {0}, excluded = 0, cells = 0;
        int32_t *seen = ids_of(json_get(c, "seen"), &seen_count);
        double p[V], chi = 0;
        float z[V], logits[V];
        GenCandidate work[V];
        int v = 0;
        for (const Json *j = json_get(c, "logits")->child; j; j = j->next) z[v++] = (float)j->number;
        v = 0;
        for (const Json *j = json_get(c, "p")->child; j; j = j->next) p[v++] = j->number;
        for (int i = 0; i < DRAWS; i++) {
            memcpy(logits, z, sizeof z);
            hits[sample_token(logits, V, seen, seen_count, &o, (uint64_t)(i / 200), (uint32_t)(i % 200), work)]++;
        }
        double small = 0, small_hits = 0;   /* cells of fewer than 8 expected draws are put together */
        for (v = 0; v < V; v++) {
            double e = p[v] * DRAWS;
            if (p[v] == 0) excluded += hits[v];
            else if (e < 8) { small += e; small_hits += hits[v]; }
            else { chi += (hits[v] - e) * (hits[v] - e) / e; cells++; }
        }
        if (small >= 1) { chi += (small_hits - small) * (small_hits - small) / small; cells++; }
        /* Wilson & Hilferty 1931: 4 standard deviations */
        double df = cells > 1 ? cells - 1 : 1, limit = df * pow(1 - 2 / (9 * df) + 4.0 * sqrt(2 / (9 * df)), 3);
        check(excluded == 0 && chi <= limit,
              "sampling, temperature %g top_k %d top_p %g min_p %g penalty %g: chi-square %.1f of %.1f, "
              "%d kept tokens, %d draws of excluded ones",
              o.temperature, o.top_k, o.top_p, o.min_p, o.repetition_penalty, chi, limit, cells, excluded);
        free(seen);
    }
    json_free(&doc);
    float z[4] = {1, 3, 3, 2};
    GenCandidate work[4];
    GenerateOptions o = greedy(1, 1);
    check(sample_token(z, 4, NULL, 0, &o, 1, 1, work) == 1, "greedy: the lowest id among equals");
}

/* A vocabulary that nobody would sort for every token: the same draws as from one that is sorted from the likeliest
   to the rarest, cut and counted through. */
static void test_large_vocabulary(void) {
    enum { V = 5000, DRAWS = 40 };
    float *logits = (float *)must_alloc(V * sizeof *logits), *z = (float *)must_alloc(V * sizeof *z);
    GenCandidate *work = (GenCandidate *)must_alloc(V * sizeof *work),
                 *all = (GenCandidate *)must_alloc(V * sizeof *all);
    const struct {
        int top_k;
        double top_p;
    } cases[] = {{0, 0.9}, {0, 0.999999}, {0, 1e-9}, {1, 0.9}, {50, 0.95}, {7, 0.5}, {V - 1, 0.8}};
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        GenerateOptions o = greedy(1, 1);
        int same = 0, bound = 0;
        o.temperature = 0.8; o.top_k = cases[k].top_k; o.top_p = cases[k].top_p;
        for (int i = 0; i < DRAWS; i++) {
            for (int v = 0; v < V; v++) {       /* a few likely ones; steps of 1/8, so that many are equal */
                uint32_t counter[4] = {(uint32_t)v, (uint32_t)i, (uint32_t)k, 0}, key[2] = {7, 0}, random[4];
                philox4x32(random, counter, key);
                z[v] = floorf(logf((float)random[0] * 0x1p-32f + 1e-9f) * -8) / 8 * (i % 2 ? 1.0f : 0.3f);
                all[v].p = z[v];
                all[v].id = v;
            }
            qsort(all, V, sizeof *all, gen_candidate_falls);
            bound += !o.top_k || gen_kth_largest(z, V, o.top_k, work) == all[o.top_k - 1].p;
            int kept = o.top_k ? o.top_k : V;
            while (kept < V && all[kept].p == all[kept - 1].p) kept++;
            double total = 0, sum = 0, top = (double)all[0].p;
            for (int v = 0; v < kept; v++) {
                all[v].p = expf((float)(((double)all[v].p - top) / o.temperature));
                total += (double)all[v].p;
            }
            int fewest = 0;
            while (fewest < kept && (!fewest || sum < o.top_p * total)) sum += (double)all[fewest++].p;
            uint32_t counter[4] = {(uint32_t)i, 0, 3, 0x67656E21}, key[2] = {(uint32_t)o.seed, 0}, random[4];
            philox4x32(random, counter, key);
            double at = ((double)random[0] * 0x1p-32 + (double)random[1] * 0x1p-64) * sum;
            int want = 0;
            while (want + 1 < fewest && (at -= (double)all[want].p) >= 0) want++;
            memcpy(logits, z, V * sizeof *z);
            same += sample_token(logits, V, NULL, 0, &o, (uint64_t)i, 3, work) == all[want].id;
        }
        check(same == DRAWS && bound == DRAWS,
              "a vocabulary of %d, top_k %d top_p %g: %d of %d draws as from the sorted list", V, o.top_k, o.top_p,
              same, DRAWS);
    }
    free(logits); free(z); free(work); free(all);
}

typedef struct Pieces { char text[4096]; size_t bytes; int calls; bool broken; } Pieces;
static bool collect_piece(void *user, size_t prompt, const char *text, size_t bytes) {
    Pieces *p = (Pieces *)user;
    (void)prompt;
    memcpy(p->text + p->bytes, text, bytes);
    p->bytes += bytes;
    p->text[p->bytes] = 0;
    p->calls++;
    for (size_t i = 0; i < bytes;) {        /* every piece is UTF-8 of its own */
        uint32_t cp;
        int n = utf8_get(text + i, bytes - i, &cp);
        if (n <= 0) { p->broken = true; break; }
        i += (size_t)n;
    }
    return p->calls < 1000;
}

/* What happens to the tokens of an answer: characters of several tokens, stop strings across tokens, held back text.
   No model: the tokens are given. */
static void test_streaming(void) {
    Error err;
    Tokenizer *t = tokenizer_open("data/base", &err);
    if (!t) must(false, &err);
    static const struct { const char *text, *stop, *want; } cases[] = {
        {"Gr\xC3\xBC\xC3\x9F" "e aus \xE6\x9D\xB1\xE4\xBA\xAC \xF0\x9F\x98\x80 und \xF0\x9F\x87\xA9\xF0\x9F\x87\xAA!", NULL, NULL},
        {"one two\nUser: three", "\nUser:", "one two"}, {"one two\nUse", "\nUser:", "one two\nUse"},
        {"a stop in the middle of it", "mid", "a stop in the "}, {"aaab", "aab", "a"},
        {"\xE6\x9D\xB1\xE4\xBA\xAC", "\xE4\xBA\xAC", "\xE6\x9D\xB1"}, {"xyz", "x", ""}};
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        TokenIds ids;
        memset(&ids, 0, sizeof ids);
        must(tokenizer_encode(t, &ids, cases[k].text, strlen(cases[k].text), 0, &err), &err);
        GenerateOptions o = greedy((int)ids.count, 1);
        o.stop = &cases[k].stop;
        o.stop_count = cases[k].stop != NULL;
        GenSequence s;
        Prompt prompt;
        Answer a;
        Pieces p;
        memset(&s, 0, sizeof s); memset(&prompt, 0, sizeof prompt); memset(&a, 0, sizeof a); memset(&p, 0, sizeof p);
        bool ended = false;
        size_t used = 0;
        while (!ended && used < ids.count)
            ended = gen_sequence_take(&s, ids.ids[used++], t, &prompt, &o, &a, collect_piece, &p);
        const char *want = cases[k].want ? cases[k].want : cases[k].text;
        check(ended && !strcmp(a.text, want) && !strcmp(p.text, want) && !p.broken,
              "%zu tokens stream as %d whole pieces%s%s: \"%s\"", ids.count, p.calls, cases[k].stop ? ", stop " : "",
              cases[k].stop ? cases[k].stop : "", a.text ? a.text : "(none)");
        check(a.stopped == (strlen(want) < strlen(cases[k].text)), "finish_reason %s", a.stopped ? "stop" : "length");
        answers_free(&a, 1);
        arrfree(s.ids);
        token_ids_free(&ids);
    }
    tokenizer_free(t);
}

/* The real model: greedy_200.txt, and prompts of every row shape. */
/* A prompt of one token, for row `row`. */
static Prompt prompt_of(int32_t *id, int64_t row) {
    Prompt p;
    memset(&p, 0, sizeof p);
    p.ids = id; p.count = 1; p.row = row;
    return p;
}

static void test_stories(void) {
    const char *folder = "../shared/models/stories260K";
    Error err;
    if (access("../shared/models/stories260K/config.json", R_OK)) {
        printf("skipped: ../shared not present\n");
        return;
    }
    Model m;
    Answer a[3];
    size_t bytes;
    Tokenizer *t = tokenizer_open(folder, &err);
    if (!t) must(false, &err);
    must(model_open(&m, folder, &err), &err);
    int32_t bos = 1;
    Prompt p = prompt_of(&bos, 1);
    GenerateOptions o = greedy(200, 1);
    must(model_generate(&m, NULL, NULL, t, &p, 1, &o, a, NULL, NULL, &err), &err);
    char *want = read_file("../shared/models/stories260K/greedy_200.txt", &bytes, &err);
    if (!want) must(false, &err);
    while (bytes && want[bytes - 1] == '\n') want[--bytes] = 0;
    size_t n = strlen(a[0].text);
    check(n >= 400 && !strncmp(a[0].text, want, n < bytes ? n : bytes),
          "stories260K: greedy_200.txt, %zu bytes: \"%.40s...\"", n, a[0].text);
    free(want);
    answers_free(a, 1);
    /* Sampling: the same with the same seed, whatever the batch; another with another. */
    Prompt three[3] = {prompt_of(&bos, 1), prompt_of(&bos, 2), prompt_of(&bos, 3)};
    Answer again[3], other[3];
    o = greedy(40, 3);
    o.temperature = 1;
    must(model_generate(&m, NULL, NULL, t, three, 3, &o, a, NULL, NULL, &err), &err);
    o.batch_size = 1;
    must(model_generate(&m, NULL, NULL, t, three, 3, &o, again, NULL, NULL, &err), &err);
    o.seed = 7;
    must(model_generate(&m, NULL, NULL, t, three, 3, &o, other, NULL, NULL, &err), &err);
    int same = 0, differ = 0;
    for (int i = 0; i < 3; i++) {
        same += !strcmp(a[i].text, again[i].text);
        differ += strcmp(a[i].text, other[i].text) != 0;
    }
    check(same == 3 && differ == 3 && strcmp(a[0].text, a[1].text),
          "sampling: the seed and the row decide, the batch does not");
    answers_free(a, 3); answers_free(again, 3); answers_free(other, 3);
    m.config.max_position_embeddings = 30;
    check(!model_generate(&m, NULL, NULL, t, three, 3, &o, a, NULL, NULL, &err) && strstr(err.text, "40 new ones") &&
              strstr(err.text, "30"),
          "longer than the context: %s", err.text);
    model_close(&m);
    tokenizer_free(t);
}

/* Rows become prompts: what is asked, what is expected, with solved examples in front. */
static void test_prompts(void) {
    static const char rows[] =
        "{\"messages\": [{\"role\": \"system\", \"content\": \"S\"}, {\"role\": \"user\", \"content\": \"Q1\"}, {\"role\": \"assistant\", \"content\": \"A1\"}, {\"role\": \"user\", \"content\": \"Q2\"}, {\"role\": \"assistant\", \"content\": \"A2\"}]}\n"
        "{\"messages\": [{\"role\": \"user\", \"content\": \"Q3\"}]}\n{\"instruction\": \"I\", \"input\": \"N\", \"output\": \"O\"}\n{\"prompt\": \"P \", \"completion\": \"C\"}\n{\"prompt\": \"bare\"}\n";
    static const char *const want[5][2] = {
        {"<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n", "A2"},
        {"<|im_start|>user\nQ3<|im_end|>\n<|im_start|>assistant\n", NULL},
        {"<|im_start|>user\nI\nN<|im_end|>\n<|im_start|>assistant\n", "O"}, {"P ", "C"}, {"bare", NULL}};
    Error err;
    Prompts p;
    DataOptions options;
    memset(&options, 0, sizeof options);
    options.enable_thinking = -1;
    Tokenizer *t = tokenizer_open("data/base", &err);
    if (!t) must(false, &err);
    must(prompts_parse(&p, rows, strlen(rows), "rows", t, &options, &err), &err);
    for (size_t i = 0; i < p.count; i++) {
        char *text = tokenizer_decode(t, p.list[i].ids, (size_t)p.list[i].count, false, NULL);
        check(!strcmp(text, want[i][0]) &&
                  (want[i][1] ? p.list[i].reference && !strcmp(p.list[i].reference, want[i][1]) : !p.list[i].reference),
              "prompt %zu, reference %s", i + 1, p.list[i].reference ? p.list[i].reference : "(none)");
        free(text);
    }
    static const char dialogue[] =
        "[{\"role\": \"system\", \"content\": \"S\"}, {\"role\": \"user\", \"content\": \"Q1\"}, "
        "{\"role\": \"assistant\", \"content\": \"A1\"}, {\"role\": \"user\", \"content\": \"Q2\"}]";
    check(p.count == 5 && !strcmp(p.list[0].dialogue, dialogue), "the dialogue: %s", p.list[0].dialogue);
    prompts_cut(&p, 2);
    check(p.count == 2 && p.list[1].count > 0, "the first %zu prompts are kept", p.count);
    prompts_free(&p);
    static const char answered[] =
        "{\"prompt\": \"Q\", \"completion\": \"A\", \"answers\": [\"A\", \"B\"], \"group\": \"g\"}\n";
    must(prompts_parse(&p, answered, strlen(answered), "rows", t, &options, &err), &err);
    check(p.list[0].answer_count >= 2 && !strcmp(p.list[0].group, "g"), "a row with %d answers and a group",
          p.list[0].answer_count);
    prompts_free(&p);
    static const char single[] = "{\"prompt\": \"Q\", \"completion\": \"A\", \"answers\": \"B\"}\n";
    must(prompts_parse(&p, single, strlen(single), "rows", t, &options, &err), &err);
    check(p.list[0].answer_count == 1 && !strcmp(p.list[0].answers[0], "B"), "right answers that are one, and no list");
    prompts_cut(&p, 0);                     /* the sanitizer's build sees what is not given back */
    prompts_free(&p);
    Prompts zero;
    must(prompts_open(&zero, "data/hotel/test.jsonl", t, &options, &err), &err);
    options.shots = "data/hotel/train.jsonl";
    options.few_shot = 2;
    must(prompts_open(&p, "data/hotel/test.jsonl", t, &options, &err), &err);
    options.few_shot = 0;
    char *with = tokenizer_decode(t, p.list[0].ids, (size_t)p.list[0].count, false, NULL),
         *without = tokenizer_decode(t, zero.list[0].ids, (size_t)zero.list[0].count, false, NULL);
    size_t a = strlen(with), b = strlen(without);
    check(a > b + 100 && !strcmp(with + a - b, without) && !strcmp(p.list[0].dialogue, zero.list[0].dialogue),
          "two shots stand in front of the prompt, %zu and %zu bytes", b, a);
    free(with);
    free(without);
    prompts_free(&p);
    prompts_free(&zero);
    static const char *const bad[][2] = {
        {"{\"messages\": []}", "nothing to answer"},
        {"{\"messages\": [{\"role\": \"assistant\", \"content\": \"A\"}]}", "nothing to answer"},
        {"{\"prompt\": \"\"}", "empty"},
        {"{\"input_ids\": [1, 2]}", "no prompt"},
        {"[1]", "object"},
        {"{\"x\": 1}", "row 1"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        check(!prompts_parse(&p, bad[i][0], strlen(bad[i][0]), "row.jsonl", t, &options, &err) &&
                  strstr(err.text, bad[i][1]),
              "refused: %s", err.text);
    options.shots = "data/hotel/test.jsonl";
    options.few_shot = 51;
    check(!prompts_open(&p, "data/hotel/test.jsonl", t, &options, &err) && strstr(err.text, "--few-shot 51"),
          "refused: %s", err.text);
    tokenizer_free(t);
}
#endif

/* generation_config.json: what is taken from it, and what is refused by name. */
static void test_defaults(void) {
    static const struct { const char *fields, *want; } cases[] = {
                                                                  /* temperature top_k top_p min_p penalty length */
        {"", "0 0 1 0 1 256"}, {"'do_sample': false, 'temperature': 0, 'top_p': 7", "0 0 1 0 1 256"},
        {"'do_sample': true", "1 50 1 0 1 256"}, {"'do_sample': true, 'top_k': 0, 'min_p': 0.0", "1 0 1 0 1 256"},
        {"'do_sample': true, 'temperature': 0.6, 'top_p': 0.9, 'top_k': 20, 'min_p': 1, 'typical_p': 1.0",
         "0.6 20 0.9 1 1 256"},
        {"'max_new_tokens': 512, 'repetition_penalty': 1.05, 'typical_p': 0.5, 'num_beams': 1", "0 0 1 0 1.05 512"},
        {"'do_sample': true, 'top_p': 0, 'suppress_tokens': [], 'bad_words_ids': null", "1 50 0 0 1 256"},
        {"'do_sample': 1", "'do_sample' must be"}, {"'do_sample': true, 'min_p': 7", "'min_p' must be"},
        {"'do_sample': true, 'min_p': -0.1", "'min_p' must be"}, {"'do_sample': true, 'top_p': 1.5", "'top_p' must be"},
        {"'do_sample': true, 'top_p': -1", "'top_p' must be"}, {"'do_sample': true, 'top_k': -1", "'top_k' must be"},
        {"'do_sample': true, 'top_k': 2.5", "'top_k' must be a whole"},
            {"'do_sample': true, 'top_k': 1e30", "'top_k' must be"},
        {"'do_sample': true, 'temperature': 0", "'temperature' must be"},
        {"'do_sample': true, 'temperature': -1", "'temperature' must be"},
        {"'do_sample': true, 'temperature': 'hot'", "'temperature' must be"},
            {"'repetition_penalty': 0", "'repetition_penalty' must be"},
        {"'repetition_penalty': 1e300", "'repetition_penalty' must be"},
            {"'max_new_tokens': 0", "'max_new_tokens' must be"},
        {"'max_new_tokens': 1e12", "'max_new_tokens' must be"}, {"'num_beams': 4", "unsupported field 'num_beams'"},
        {"'no_repeat_ngram_size': 3", "unsupported field 'no_repeat_ngram_size'"},
        {"'suppress_tokens': [5]", "unsupported field 'suppress_tokens'"},
            {"'min_new_tokens': 4", "unsupported field 'min_new_tokens'"},
        {"'forced_eos_token_id': 0", "unsupported field 'forced_eos_token_id'"},
        {"'do_sample': true, 'typical_p': 0.5", "unsupported field 'typical_p'"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char json[256], text[sizeof(Error)];
        JsonDoc doc;
        Error err;
        GenerateOptions o;
        must(generate_defaults(&o, "test/golden", &err), &err);
        snprintf(json, sizeof json, "{%s}", cases[i].fields);
        for (char *c = json; *c; c++) if (*c == '\'') *c = '"';
        must(json_parse(&doc, json, strlen(json), "test", 1, &err), &err);
        if (!gen_config_parse(&o, doc.root, "test", &err)) snprintf(text, sizeof text, "%s", err.text);
        else snprintf(text, sizeof text, "%g %d %g %g %g %d", o.temperature, o.top_k, o.top_p, o.min_p,
                      o.repetition_penalty, o.max_new_tokens);
        bool numbers = *cases[i].want < 'a' && *cases[i].want != '\'';
        check(numbers ? !strcmp(text, cases[i].want) : strstr(text, cases[i].want) != NULL,
              "generation_config {%s}: %s", cases[i].fields, text);
        json_free(&doc);
    }
}

int main(void) {
    backend_ready();
    test_defaults();
    test_generator();
    test_cache("llama", "adapter");
    test_cache("qwen2", "adapter");
    test_cache("qwen3", "adapter_layers");
    test_cache("mistral", "");
    test_cache("smollm3", "adapter");
    test_cache("granite", "adapter");
    test_greedy("qwen3", "adapter");
#ifndef LORA_CUDA
    test_cache("llama_linear", "adapter");
    static const char *const models[][2] = {
        {"llama", ""}, {"llama", "adapter"}, {"llama_linear", ""}, {"llama_linear", "adapter"}, {"qwen2", ""},
        {"qwen2", "adapter"}, {"qwen3", ""}, {"qwen3", "adapter_layers"}, {"mistral", ""}, {"mistral", "adapter"},
        {"smollm3", ""}, {"smollm3", "adapter"}, {"granite", ""}, {"granite", "adapter"}};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) test_greedy(models[i][0], models[i][1]);
    test_sampling();
    test_large_vocabulary();
    test_streaming();
    test_prompts();
    test_stories();
#endif
    return finish();
}
