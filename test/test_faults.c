/* test_faults.c - nothing is lost: a crash at every place where a file is half written (CRASH_POINT), and a call of the
   system or the allocator that fails, the n-th for every n. Each trial is a child process, so that what it leaves on the
   disk is what a real one would leave.
   gcc -std=gnu11 -O2 -fopenmp -I. test/test_faults.c -o build/test_faults -lm && build/test_faults    (in the root) */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "check.h"

static long points, crash_at;
static void crash_point(void) { if (++points == crash_at) _exit(99); }
#define CRASH_POINT() crash_point()

/* The calls of lora.h and tokenizer.h that may fail; the fail_at-th does, once. */
static long *calls, fail_at;                /* *calls: shared with the child */
static bool due(int error) {
    if (!calls || ++*calls != fail_at) return false;
    errno = error;
    return true;
}
#define malloc(n) (due(ENOMEM) ? (void *)NULL : malloc(n))
#define calloc(n, size) (due(ENOMEM) ? (void *)NULL : calloc(n, size))
#define realloc(p, n) (due(ENOMEM) ? (void *)NULL : realloc(p, n))
#define mmap(...) (due(ENOMEM) ? MAP_FAILED : mmap(__VA_ARGS__))
#define open(...) (due(EIO) ? -1 : open(__VA_ARGS__))
#define read(fd, p, n) (due(EIO) ? (ssize_t)-1 : read(fd, p, n))
#define fopen(path, how) (due(EIO) ? (FILE *)NULL : fopen(path, how))
#define fdopen(fd, how) (due(ENOMEM) ? (FILE *)NULL : fdopen(fd, how))
#define fread(p, size, n, f) (due(EIO) ? (size_t)0 : fread(p, size, n, f))
#define fwrite(p, size, n, f) (due(ENOSPC) ? (size_t)0 : fwrite(p, size, n, f))
#define fflush(f) (due(ENOSPC) ? EOF : fflush(f))
#define fsync(fd) (due(EIO) ? -1 : fsync(fd))
#define rename(from, to) (due(EIO) ? -1 : rename(from, to))
#define syscall(...) (due(ENOSYS) ? -1L : syscall(__VA_ARGS__))
#define mkdir(path, mode) (due(ENOSPC) ? -1 : mkdir(path, mode))
#define opendir(path) (due(EMFILE) ? (DIR *)NULL : opendir(path))
#define TOKENIZER_IMPLEMENTATION
#define LORA_IMPLEMENTATION
#include "lora.h"

static char work[] = "/tmp/train_lora_faults_XXXXXX";
/* A name in the test's folder; never freed. */
static char *in_work(const char *name) {
    char *path = (char *)malloc(sizeof work + strlen(name) + 1);
    sprintf(path, "%s/%s", work, name);
    static char **kept;                     /* for the leak checker */
    arrput(kept, path);
    return path;
}
static void shell(const char *format, ...) {
    char command[PATH_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(command, sizeof command, format, args);
    va_end(args);
    if (system(command)) { printf("FAIL  %s\n", command); exit(1); }
}
static void must(bool ok, const Error *err) { if (!ok) { printf("FAIL  %s\n", err->text); exit(1); } }

/* ---- an adapter over an earlier one ------------------------------------------------------------------------------ */

/* An adapter of rank 2 whose numbers follow from its alpha, so that weights and configuration show whether they belong
   together. */
static void adapter_make(Adapter *a, const Model *m, float alpha) {
    Error err;
    LoraConfig c;
    memset(&c, 0, sizeof c);
    c.r = 2;
    c.lora_alpha = alpha;
    c.target[MODULE_Q] = true;
    must(adapter_attach(a, m, &c, (uint64_t)alpha, &err), &err);
    for (size_t i = 0; i < a->param_count; i++) a->param[i] = alpha;
}

static void test_adapter_crash(Adapter *a, const Model *m) {
    Error err;
    int mixed = 0, lost = 0, old = 0, fresh = 0, peft = 0, n = 0, at = 0;
    char *folder = in_work("adapter");
    for (int left_over = 0, status = 1; left_over < 2; n++) {     /* of an earlier crash: nothing, a whole adapter */
        shell("rm -rf %s", folder);
        adapter_make(a, m, 8);
        must(adapter_save(a, folder, &err), &err);
        if (left_over) shell("mkdir %s/adapter.1-0.tmp && cp %s/adapter_* %s/adapter.1-0.tmp", folder, folder, folder);
        fflush(stdout);
        pid_t child = fork();
        if (!child) {
            adapter_make(a, m, 64);
            crash_at = points + at + 1;
            _exit(adapter_save(a, folder, &err) ? 0 : 1);
        }
        must(waitpid(child, &status, 0) == child, &err);
        bool loaded = adapter_load(a, m, folder, &err);
        lost += !loaded;
        mixed += loaded && a->param[0] != a->config.lora_alpha;
        old += loaded && a->config.lora_alpha == 8;
        fresh += loaded && a->config.lora_alpha == 64;
        /* who reads the two files alone must not be deceived either */
        size_t bytes;
        char *text = read_file(in_work("adapter/adapter_config.json"), &bytes, NULL);
        TensorSet set;
        memset(&set, 0, sizeof set);
        if (text && tensors_add_file(&set, in_work("adapter/adapter_model.safetensors"), &err)) {
            float value;
            memcpy(&value, set.table[0].value.data, sizeof value);
            peft += strstr(text, value == 64 ? "\"lora_alpha\": 64," : "\"lora_alpha\": 8,") == NULL;
        }
        tensors_close(&set);
        free(text);
        at = status ? at + 1 : 0;
        left_over += !status;
    }
    check(!lost && !mixed && !peft && old > 5 && fresh > 3,
          "an adapter over another, killed at %d places: %d times the old, %d the new, %d mixed, %d lost, "
          "%d mixed files", n - 2, old, fresh, mixed, lost, peft);
    int left = 0;
    DIR *d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d));) left += strstr(e->d_name, ".tmp") != NULL;
    if (d) closedir(d);
    check(!left, "saved whole, nothing temporary is left: %d", left);
}

/* The same of a whole model: every norm that it trains has one value, so that a folder of two models would show. */
static void trained_make(Adapter *a, const Model *m, float value) {
    Error err;
    LoraConfig c;
    memset(&c, 0, sizeof c);
    c.train = TRAIN_NORMS;
    must(adapter_attach(a, m, &c, 1, &err), &err);
    for (size_t i = 0; i < a->param_count; i++) a->param[i] = value;
}
static void test_whole_model_crash(Adapter *a, const Model *m) {
    Error err;
    int mixed = 0, lost = 0, old = 0, fresh = 0, shown = 0, n = 0;
    char *folder = in_work("whole");
    for (int status = 1; status; n++) {
        shell("rm -rf %s", folder);
        if (n % 3 == 2) adapter_make(a, m, 8);            /* an adapter was there before */
        else trained_make(a, m, 8);
        must(adapter_save(a, folder, &err), &err);
        fflush(stdout);
        pid_t child = fork();
        if (!child) {
            trained_make(a, m, 64);
            crash_at = points + n + 1;
            _exit(adapter_save(a, folder, &err) ? 0 : 1);
        }
        must(waitpid(child, &status, 0) == child, &err);
        bool loaded = adapter_load(a, m, folder, &err);
        lost += !loaded;
        for (size_t i = 1; loaded && i < a->param_count; i++)
            if (a->param[i] != a->param[0]) { mixed++; break; }
        old += loaded && a->param[0] == 8;
        fresh += loaded && a->param[0] == 64;
        /* who reads the folder as a model must not be deceived either: all of it or no config.json */
        Model whole;
        memset(&whole, 0, sizeof whole);
        if (!access(in_work("whole/config.json"), F_OK)) {
            bool open = model_plan(&whole, folder, &err);
            int C = m->config.hidden_size;
            const Tensor *t = open ? tensors_get(&whole.files, "model.norm.weight", C, 0, &err) : NULL;
            float value = 0;
            Weight w = t ? tensor_weight(t) : m->head;
            if (t) weight_decode(&value, &w, 0, 1);
            shown += !t || !loaded || value != a->param[0] || !access(in_work("whole/adapter_config.json"), F_OK);
            if (open) model_close(&whole);
        }
    }
    check(!lost && !mixed && !shown && old > 5 && fresh > 3,
          "a whole model over another, killed at %d places: %d times the old, %d the new, %d mixed, %d lost, %d shown as "
          "what it is not",
          n - 1, old, fresh, mixed, lost, shown);
    int left = 0;
    DIR *d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d));) left += strstr(e->d_name, ".tmp") != NULL;
    if (d) closedir(d);
    check(!left, "saved whole, nothing temporary is left: %d", left);
    shell("rm -rf %s", folder);
}

/* ---- folders ----------------------------------------------------------------------------------------------------- */

static bool folder_of(const char *path, const char *text, bool replace, Error *err) {
    SafeFolder f;
    if (!folder_begin(&f, path, err)) return false;
    char file[PATH_MAX];
    path_in(file, sizeof file, f.temporary, "content");
    if (!write_file(file, text, strlen(text), err)) { folder_discard(f.temporary); return false; }
    return folder_commit(&f, replace, err);
}
static bool content_is(const char *path, const char *want) {
    char *text = read_file(path, NULL, NULL);
    bool same = text && !strcmp(text, want);
    free(text);
    return same;
}

static void test_folder_crash(void) {
    Error err;
    int whole = 0, notes = 0, n = 0;
    char *folder = in_work("folder");
    for (int status = 1; status; n++) {
        shell("rm -rf %s*", folder);
        must(folder_of(folder, "old", true, &err), &err);
        shell("mkdir %s/mine && echo -n precious >%s/mine/notes.txt", folder, folder);
        fflush(stdout);
        pid_t child = fork();
        if (!child) {
            crash_at = points + n + 1;
            _exit(folder_of(folder, "new", true, &err) ? 0 : 1);
        }
        must(waitpid(child, &status, 0) == child, &err);
        whole += content_is(in_work("folder/content"), "old") || content_is(in_work("folder/content"), "new");
        char command[PATH_MAX];
        snprintf(command, sizeof command, "cat %s*/mine/notes.txt | grep -qx precious", folder);
        notes += system(command) == 0;
    }
    check(whole == n && notes == n && content_is(in_work("folder/content"), "new") &&
              content_is(in_work("folder/mine/notes.txt"), "precious"),
          "a folder over another, killed at %d places: always whole (%d), what somebody put there is kept (%d)", n - 1,
          whole, notes);
    check(!folder_of(folder, "third", false, &err) && strstr(err.text, "exists already") &&
              content_is(in_work("folder/content"), "new"),
          "a folder that may not be replaced: %s", err.text);
    shell("mkdir %s/x && touch %s/x.tmp && ln -s %s/folder/content %s/y.1-0.tmp", work, work, work, work);
    char name[PATH_MAX], *x = in_work("x");
    snprintf(name, sizeof name, "%s.%ld-0.tmp", x, (long)getpid());
    must(!symlink(in_work("folder/content"), name), &err);
    check(write_file(in_work("x/../x.file"), "1", 1, &err) && folder_of(x, "4", true, &err) &&
              content_is(in_work("folder/content"), "new"),
          "a temporary name that somebody has made a link of is passed over");
}

/* ---- checkpoints that were changed ------------------------------------------------------------------------------- */

static void train_options(TrainOptions *o, const char *output) {
    memset(o, 0, sizeof *o);
    o->model = in_work("model");
    o->data = in_work("data.jsonl");
    o->output = output;
    o->lora.r = 2;
    o->lora.lora_alpha = 8;
    o->lora.target[MODULE_Q] = o->lora.target[MODULE_V] = true;
    o->adam_beta1 = 0.9; o->adam_beta2 = 0.999; o->adam_epsilon = 1e-8; o->learning_rate = 1e-2;
    o->per_device_train_batch_size = o->per_device_eval_batch_size = o->gradient_accumulation_steps = o->logging_steps =
        1;
    o->max_steps = 4;
    o->save_strategy = STRATEGY_STEPS;
    o->save_steps = 2;
    o->data_options.max_length = 64; o->data_options.enable_thinking = -1; o->data_options.threads = 1;
}

/* Puts `with` in the place of `what` in checkpoint.json, and a checksum that fits over everything. */
static void forge(Adapter *a, const Model *m, const char *folder, const char *what, const char *with) {
    Error err;
    char path[PATH_MAX], line[64];
    TensorSet set;
    size_t bytes;
    memset(&set, 0, sizeof set);
    path_in(path, sizeof path, folder, "optimizer.safetensors");
    must(adapter_load(a, m, folder, &err) && tensors_add_file(&set, path, &err), &err);
    uint64_t sum;
    int64_t count = (int64_t)a->param_count;
    const Tensor *first = tensors_get(&set, "adam_m", count, 1, &err);
    const Tensor *second = tensors_get(&set, "adam_v", count, 1, &err);
    must(checkpoint_hash(&sum, a, (const float *)first->data, (const float *)second->data, folder, &err), &err);
    tensors_close(&set);
    path_in(path, sizeof path, folder, "checkpoint.json");
    char *text = read_file(path, &bytes, &err), *at = strstr(text, what);
    if (!at) { printf("FAIL  no %s in %s\n", what, path); exit(1); }
    Text t = TEXT_EMPTY;
    text_print(&t, "%.*s%s%s", (int)(at - text) - CHECKPOINT_LINE_BYTES, text + CHECKPOINT_LINE_BYTES, with,
               at + strlen(what));
    snprintf(line, sizeof line, CHECKPOINT_LINE, (unsigned long long)hash_bytes(sum, t.at, t.length));
    Text file = TEXT_EMPTY;
    text_print(&file, "%s%s", line, t.at);
    must(write_file(path, file.at, file.length, &err), &err);
    text_free(&t);
    text_free(&file);
    free(text);
}

static void test_forged(Adapter *a, const Model *m) {
    Error err;
    TrainOptions o;
    TrainResult result;
    char *run = in_work("run"), *bad = in_work("bad");
    shell("mkdir %s && cp test/golden/llama/*.json test/golden/llama/model.safetensors %s", in_work("model"),
          in_work("model"));
    shell("for i in 1 2 3 4 5 6; do echo \"{\\\"input_ids\\\": [1, $i, 5, 9, $i, 3]}\"; done >%s",
          in_work("data.jsonl"));
    train_options(&o, run);
    must(train_run(&o, NULL, &result, &err), &err);
    static const struct { const char *what, *with, *message; } forged[] = {
        {"\"loss_scale\": 1", "\"loss_scale\": 1e300", "damaged"},
        {"\"loss_scale\": 1", "\"loss_scale\": -1", "damaged"},
        {"\"adam_step\": 2", "\"adam_step\": 2147483647", "damaged"}, {"\"step\": 2", "\"step\": 2.7", "damaged"},
        {"\"step\": 2", "\"step\": 1e30", "damaged"}, {"\"skipped\": 0", "\"skipped\": 3", "damaged"},
        {"\"window\": [0, 0", "\"window\": [0, -1e40", "damaged"},
        {"\"lora_alpha\": 8", "\"lora_alpha\": 9", "lora_alpha 9"},
        {"\"format\": 2", "\"format\": 1", "another version"}, {"\"step\": 2", "\"step\": 2", NULL}};
    for (size_t i = 0; i < sizeof forged / sizeof *forged; i++) {
        shell("rm -rf %s && cp -r %s/checkpoint-2 %s", bad, run, bad);
        forge(a, m, bad, forged[i].what, forged[i].with);
        o.output = in_work("resumed");
        o.resume = bad;
        bool ok = train_run(&o, NULL, &result, &err);
        check(forged[i].message ? !ok && strstr(err.text, forged[i].message) : ok,
              "a checkpoint with %s and the right checksum: %s", forged[i].with, ok ? "resumed" : err.text);
        shell("rm -rf %s", o.output);
    }
    /* what is not in checkpoint.json */
    static const struct { const char *change, *message; } other[] = {
        {"sed -i 's/\"lora_alpha\": 8/\"lora_alpha\": 9/' bad/adapter_config.json", "damaged"},
        {"sed -i 's/\"use_rslora\": false/\"use_rslora\": true/' bad/adapter_config.json", "damaged"},
        {"sed -i 's/lora_alpha/lorc_alpha/' bad/adapter_config.json", "checksum"},
        {"sed -i 's/\"rms_norm_eps\": [^,]*/\"rms_norm_eps\": 1e-3/' model/config.json", "another model"},
        {"printf '\\1' | dd of=model/model.safetensors bs=1 seek=94001 conv=notrunc 2>/dev/null", "another model"},
        {"echo '{\"input_ids\": [1, 2, 3]}' >>data.jsonl", "another data"}};
    for (size_t i = 0; i < sizeof other / sizeof *other; i++) {
        shell("rm -rf %s && cp -r %s/checkpoint-2 %s && cd %s && cp -r model data.jsonl run && %s", bad, run, bad, work,
              other[i].change);
        bool ok = train_run(&o, NULL, &result, &err);
        check(!ok && strstr(err.text, other[i].message), "%.60s...: %s", other[i].change, ok ? "resumed" : err.text);
        shell("cd %s && rm -r model && mv run/model run/data.jsonl .", work);
    }
    uint8_t *layers = NULL;
    arrsetlen(layers, (size_t)m->config.num_hidden_layers);
    memset(layers, 1, (size_t)arrlen(layers));
    layers[0] = 0;
    o.lora.layers = layers;
    bool ok = train_run(&o, NULL, &result, &err);
    check(!ok && strstr(err.text, "layers_to_transform"), "other layers: %s", ok ? "resumed" : err.text);
    arrfree(layers);
}

/* ---- a run that is told to stop ---------------------------------------------------------------------------------- */

typedef struct Stop { int asked, at; } Stop;
static bool stop_at(void *user) {
    Stop *s = (Stop *)user;
    return ++s->asked >= s->at;
}
/* The log's lines without the timings, which are the only ones that may differ. */
static bool same_log(const char *a, const char *b) {
    char command[2 * PATH_MAX];
    snprintf(
        command, sizeof command,
        "f() { sed -E 's/\"(tokens_per_second|ceiling_share|seconds|eval_runtime)\": [0-9.e+-]+,? ?//g' $1/log.jsonl; };"
        "f %s >%s/one; f %s >%s/two; cmp -s %s/one %s/two && cmp -s %s/adapter_model.safetensors %s/adapter_model.safetensors",
        a, work, b, work, work, work, a, b);
    return system(command) == 0;
}

static void test_stopped(void) {
    Error err;
    TrainOptions o;
    TrainResult result;
    char *whole = in_work("whole"), *cut = in_work("cut");
    train_options(&o, whole);
    o.eval_data = o.data;
    o.eval_strategy = STRATEGY_STEPS;
    o.eval_steps = 2;
    must(train_run(&o, NULL, &result, &err), &err);
    int stopped = 0, same = 0, inside = 0, k = 1;
    for (bool ended = false; !ended; k++) {
        Stop stop = {0, k};
        TrainHooks hooks;
        memset(&hooks, 0, sizeof hooks);
        hooks.user = &stop;
        hooks.stop = stop_at;
        shell("rm -rf %s", cut);
        o.output = cut;
        o.resume = NULL;
        must(train_run(&o, &hooks, &result, &err), &err);
        ended = !result.stopped;
        stopped += result.stopped;
        inside += result.stopped && result.steps % 2 == 0;
        o.resume = cut;
        if (!ended) must(train_run(&o, NULL, &result, &err), &err);
        same += same_log(whole, cut);
    }
    check(stopped >= 10 && inside >= 8 && same == stopped + 1,
          "told to stop at each of %d places, %d of them in an evaluation, and resumed: %d end with the same adapter "
          "and log", stopped, inside, same);
}

/* ---- the token cache --------------------------------------------------------------------------------------------- */

/* Rows for a task each: to predict tokens, a class, several, a number, and which of two answers is the better one. */
static const struct LabelRows { const char *what, *file; Task task; } label_rows[] = {
    {"tokens", NULL, TASK_CAUSAL_LM},       /* the run's own */
    {"classes", "{\"input_ids\":[3,4,5],\"label\":\"no\"}\n{\"input_ids\":[3,4],\"label\":\"yes\"}\n",
     TASK_CLASSIFICATION},
    {"lists", "{\"input_ids\":[3,4,5],\"label\":[\"a\",\"b\"]}\n{\"input_ids\":[3],\"label\":[]}\n",
     TASK_CLASSIFICATION},
    {"numbers", "{\"input_ids\":[3,4,5],\"label\":0.5}\n{\"input_ids\":[3],\"label\":-1}\n", TASK_CLASSIFICATION},
    {"pairs", "{\"chosen\":\"ab\",\"rejected\":\"c\",\"margin\":2}\n"
              "{\"chosen\":\"d\",\"rejected\":\"ef\",\"margin\":1}\n", TASK_REWARD}};
enum { LABEL_ROWS = sizeof label_rows / sizeof *label_rows };

static const char *label_file(const struct LabelRows *rows) {
    Error err;
    if (!rows->file) return in_work("data.jsonl");
    must(write_file(in_work("labels.jsonl"), rows->file, strlen(rows->file), &err), &err);
    return in_work("labels.jsonl");
}
static DataOptions label_options(const struct LabelRows *rows, const char *cache) {
    DataOptions o;
    memset(&o, 0, sizeof o);
    o.max_length = 64; o.enable_thinking = -1; o.threads = 1; o.pad_token_id = -1;
    o.task = rows->task;
    o.token_cache = cache;
    return o;
}

static void test_token_cache(const struct LabelRows *rows, const Tokenizer *t) {
    Error err;
    Dataset d;
    char *cache = in_work("cache"), file[PATH_MAX];
    const char *data = label_file(rows);
    DataOptions o = label_options(rows, cache);
    shell("rm -rf %s", cache);
    must(dataset_open(&d, data, t, &o, &err), &err);
    uint64_t hash = d.hash;
    size_t count = d.count;
    dataset_free(&d);
    struct dirent *e;
    DIR *folder = opendir(cache);
    while ((e = readdir(folder)) && strcmp(e->d_name + strcspn(e->d_name, "."), ".tokens")) {}
    path_in(file, sizeof file, cache, e->d_name);
    closedir(folder);
    size_t bytes, tried = 0, noticed = 0, n, head = sizeof(TokenHeader);
    char *good = read_file(file, &bytes, &err);
    for (size_t at = 0; at < bytes; at += rows->task && at > head ? 1 : 11, tried++) {
        good[at] ^= (char)(1 << at % 8);
        FILE *f = fopen(file, "wb");
        must(f && fwrite(good, 1, bytes, f) == bytes && !fclose(f), &err);
        good[at] ^= (char)(1 << at % 8);
        must(dataset_open(&d, data, t, &o, &err), &err);
        char *again = read_file(file, &n, &err);
        noticed += d.rebuilt && d.hash == hash && d.count == count && again && n == bytes && !memcmp(again, good, n);
        free(again);
        dataset_free(&d);
    }
    free(good);
    must(dataset_open(&d, data, t, &o, &err), &err);
    check(noticed == tried && !d.rebuilt && count > 1,
          "a bit flipped in %zu of the %zu bytes of a token cache of %s: %zu noticed and made good", tried, bytes,
          rows->what, noticed);
    dataset_free(&d);
}

/* ---- calls that fail --------------------------------------------------------------------------------------------- */

/* What a failing call leaves allocated is no leak of the program: it ends. */
static void leave(int status, void *unused) {
    (void)unused;
    fflush(stderr);
    _exit(status);
}

/* Resumes the run at step 2, which opens a model, data, an adapter and a checkpoint, and writes each of them again. */
static void test_failing_calls(Adapter *a, const Model *m) {
    Error err;
    TrainOptions o;
    TrainResult result;
    char *run = in_work("run"), *victim = in_work("victim"), *output = in_work("stderr"),
         *saved = in_work("victim/checkpoint-2");
    long *counter = (long *)mmap(NULL, sizeof *counter, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    must(adapter_load(a, m, run, &err), &err);
    size_t bytes = a->param_count * sizeof(float);
    float *want = (float *)malloc(bytes);
    memcpy(want, a->param, bytes);
    train_options(&o, victim);
    o.resume = saved;
    o.fallback_output = in_work("fallback");
    int trials = 0, refused = 0, bad = 0;
    long every = getenv("EVERY_FAULT") ? 1 : 0;
    for (long n = 1, total = 0; n <= total || !trials; n += every ? 1 : 1 + n / 12) {
        shell("rm -rf %s %s && cp -r %s %s", victim, o.fallback_output, run, victim);
        fflush(stdout);
        pid_t child = fork();
        if (!child) {
            if (!freopen(output, "w", stderr)) _exit(2);
            on_exit(leave, NULL);
            setenv("TMPDIR", work, 1);
            *counter = 0;
            calls = counter;
            fail_at = trials ? n : -1;
            bool ok = train_run(&o, NULL, &result, &err);
            calls = NULL;
            if (!ok) fprintf(stderr, "error: %s\n", err.text);
            exit(ok ? 0 : 1);
        }
        int status;
        must(waitpid(child, &status, 0) == child, &err);
        if (!trials++) { total = *counter; n = 0; }
        char *said = read_file(output, NULL, NULL), *line = said ? strstr(said, "error: ") : NULL;
        bool ended = WIFEXITED(status) && WEXITSTATUS(status) <= 1, failed = ended && WEXITSTATUS(status);
        bool one_line = !failed || (line && line[strlen(line) - 1] == '\n' && strchr(line, '\n')[1] == 0);
        bool kept = adapter_load(a, m, saved, &err) && adapter_load(a, m, victim, &err) &&
                    a->param_count * sizeof(float) == bytes && !memcmp(a->param, want, bytes);
        char command[2 * PATH_MAX];
        snprintf(command, sizeof command, "diff -r %s/checkpoint-2 %s >/dev/null", run, saved);
        kept = kept && system(command) == 0;
        refused += failed;
        if (!ended || !one_line || !kept) {
            printf("      call %ld: status %d, %s%s\n", n, status, kept ? "" : "damaged, ", said ? said : "");
            bad++;
        }
        free(said);
    }
    check(!bad && refused > 20, "a failing call at %d of %ld places: %d ended in one line, %d badly, nothing lost",
          trials - 1, *counter, refused, bad);
    free(want);
}

/* Every call of opening and dividing a data set fails once: in one line or not at all, and the cache is as it was. */
static void test_failing_data(const struct LabelRows *rows, const Tokenizer *t) {
    Error err;
    Dataset d, held;
    char *cache = in_work("cache"), *output = in_work("stderr");
    const char *data = label_file(rows);
    DataOptions o = label_options(rows, cache);
    long *counter = (long *)mmap(NULL, sizeof *counter, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    uint64_t want = 0;
    int refused = 0, bad = 0;
    for (long n = 0, total = 0; n <= total; n++) {
        shell("rm -rf %s", cache);
        fflush(stdout);
        pid_t child = fork();
        if (!child) {
            if (!freopen(output, "w", stderr)) _exit(2);
            on_exit(leave, NULL);
            *counter = 0;
            calls = counter;
            fail_at = n ? n : -1;
            bool ok = dataset_open(&d, data, t, &o, &err);
            uint64_t hash = d.hash;
            if (ok && dataset_split(&d, &held, 0.5, 1, &err)) dataset_free(&held);
            calls = NULL;
            if (!ok) fprintf(stderr, "error: %s\n", err.text);
            exit(!ok ? 1 : !n || hash == want ? 0 : 3);
        }
        int status;
        must(waitpid(child, &status, 0) == child, &err);
        bool ended = WIFEXITED(status) && WEXITSTATUS(status) <= 1, failed = ended && WEXITSTATUS(status);
        char *said = read_file(output, NULL, NULL), *line = said ? strstr(said, "error: ") : NULL;
        bool one_line = !failed || (line && line[strlen(line) - 1] == '\n' && strchr(line, '\n')[1] == 0);
        must(dataset_open(&d, data, t, &o, &err), &err);
        if (!n) { total = *counter; want = d.hash; }
        if (!ended || !one_line || d.hash != want || d.rebuilt || (!n && failed)) {
            printf("      call %ld: status %d, %s\n", n, status, said ? said : "");
            bad++;
        }
        dataset_free(&d);
        free(said);
        refused += failed;
    }
    check(!bad && refused > 10, "a failing call at each of %ld places of reading %s: %d ended in one line, %d badly",
          *counter, rows->what, refused, bad);
}

int main(void) {
    Error err;
    Model m;
    Adapter a;
    memset(&a, 0, sizeof a);
#ifdef _OPENMP
    omp_set_num_threads(1);                 /* children of a process with threads have none */
#endif
    if (!mkdtemp(work)) return 1;
    must(model_open(&m, "test/golden/llama", &err), &err);
    test_adapter_crash(&a, &m);
    test_whole_model_crash(&a, &m);
    test_folder_crash();
    test_forged(&a, &m);
    test_stopped();
    Tokenizer *bytes = tokenizer_open("test/golden/tokenizer/bytes", &err);
    must(bytes != NULL, &err);
    for (int i = 0; i < LABEL_ROWS; i++) test_token_cache(&label_rows[i], bytes);
    for (int i = 0; i < LABEL_ROWS; i++) test_failing_data(&label_rows[i], bytes);
    tokenizer_free(bytes);
    test_failing_calls(&a, &m);
    adapter_drop(&a);
    model_close(&m);
    shell("rm -rf %s", work);
    return finish();
}
