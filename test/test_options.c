/* test_options.c - the options of the program: what a row of its table takes and refuses, what is given and what is
   not, run.json and back, files, adapters, words that are nearly right; and when report.html is written. Nothing is
   trained.
   make build/asan/test_options && build/asan/test_options      (from the repository root) */
#define main train_lora_main
#include "train_lora.cu"
#undef main
#include "check.h"
#include <sys/wait.h>

static char work[64];                       /* a folder of ours */

/* Runs job in a process of its own, as a wrong option ends it: its exit status, and what it said on stderr. */
static int end_of(void (*job)(const void *), const void *with, char said[4096]) {
    int pipes[2], status = -1;
    size_t n = 0;
    ssize_t got;
    fflush(stdout);
    if (pipe(pipes)) return -1;
    pid_t child = fork();
    if (!child) {
        dup2(pipes[1], 2);
        close(pipes[0]);
        close(pipes[1]);
        job(with);
        _exit(0);
    }
    close(pipes[1]);
    while ((got = read(pipes[0], said + n, 4095 - n)) > 0) n += (size_t)got;
    said[n] = 0;
    close(pipes[0]);
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}
typedef struct Line { const char *verb; char *words[16]; } Line;
static int line_count(const Line *l) {
    int n = 0;
    while (n < 16 && l->words[n]) n++;
    return n;
}
static void take(Options *o, const Line *l) {
    options_parse(o, verb_or_die(l->verb), line_count(l), (char **)l->words);
    options_resolve(o);
}
static void take_job(const void *with) {
    Options o;
    take(&o, (const Line *)with);
    if (o.verb->bit & RUN) options_check(&o);
}
static void refused(const Line *l, const char *why) {
    char said[4096];
    int status = end_of(take_job, l, said);
    check(status == 2 && strstr(said, why), "%s %s: %.*s", l->verb, l->words[0] ? l->words[0] : "",
          (int)strcspn(said, "\n"), said);
}

/* One value of one option. */
typedef struct Setting { const Option *option; const char *value; } Setting;
static void set_job(const void *with) {
    const Setting *s = (const Setting *)with;
    Options o;
    options_default(&o, false);
    option_set(&o, s->option, s->value, from_line);
}
static bool ends_with(const Option *d, const char *value, int want) {
    const Setting s = {d, value};
    char said[4096];
    int status = end_of(set_job, &s, said);
    if (status != want) printf("      --%s '%s': %s", d->name, value, status ? said : "taken\n");
    return status == want && (!want || (strstr(said, d->name) && strstr(said, from_line)));
}
static bool takes(const Option *d, const char *value) { return ends_with(d, value, 0); }
static bool refuses(const Option *d, const char *value) { return ends_with(d, value, 2); }

static void test_rows(void) {
    int numbers = 0, numbers_right = 0, choices = 0, choices_right = 0, flags = 0, flags_right = 0;
    for (int i = 0; i < OPTION_COUNT; i++) {
        const Option *d = &option_table[i];
        char low[64], high[64], below[64], above[64], number[32];
        bool whole = d->type == OPTION_INT || d->type == OPTION_INT64 || d->type == OPTION_BYTES, ok = true;
        Options o;
        switch (d->type) {
        case OPTION_INT: case OPTION_INT64: case OPTION_DOUBLE: case OPTION_FLOAT: case OPTION_BYTES:
            snprintf(low, sizeof low, "%.17g", d->low);
            snprintf(high, sizeof high, "%.17g", d->high);
            snprintf(below, sizeof below, "%.17g", whole ? d->low - 1 : nextafter(d->low, -1e300));
            snprintf(above, sizeof above, "%.17g", whole ? d->high + 1 : nextafter(d->high, 1e300));
            ok = takes(d, low) && takes(d, high) && refuses(d, below) && refuses(d, above) && refuses(d, "x") &&
                 refuses(d, "") && refuses(d, "nan") && refuses(d, "1 x");
            if (d->type == OPTION_INT || d->type == OPTION_INT64) ok &= refuses(d, "1.5");
            if (d->type == OPTION_BYTES) ok &= takes(d, "3GiB") && takes(d, "3 GB") && refuses(d, "3 GeV");
            numbers++;
            numbers_right += ok;
            break;
        case OPTION_CHOICE:
            for (int k = 0; k <= (int)d->high; k++) {
                int value;
                options_default(&o, false);
                option_set(&o, d, d->names[k], from_line);
                memcpy(&value, (char *)&o + d->offset, sizeof value);
                ok &= value == k && !strcmp(option_value(&o, d, number), d->names[k]);
            }
            ok &= refuses(d, "nonsense") && refuses(d, "") && refuses(d, "0");
            choices++;
            choices_right += ok;
            break;
        case OPTION_FLAG: case OPTION_SWITCH:
            ok = takes(d, "true") && takes(d, "false") && refuses(d, "yes") && refuses(d, "1") && refuses(d, "");
            flags++;
            flags_right += ok;
            break;
        default: break;
        }
        if (!ok) check(false, "--%s takes what it should not, or refuses what it should take", d->name);
    }
    check(numbers > 30 && numbers_right == numbers, "%d of %d numbers: both ends of the range and nothing beyond, no "
          "text, no fraction of a whole one", numbers_right, numbers);
    check(choices >= 9 && choices_right == choices, "%d of %d choices: every name is its enum's number, and back",
          choices_right, choices);
    check(flags > 15 && flags_right == flags, "%d of %d switches: true and false", flags_right, flags);

    static const struct { const char *option, *name; int value; } means[] = {
        {"loss-on", "completion", LOSS_ON_COMPLETION}, {"loss-on", "all", LOSS_ON_ALL},
        {"lr-scheduler-type", "cosine", SCHEDULE_COSINE},
        {"lr-scheduler-type", "constant_with_warmup", SCHEDULE_CONSTANT_WITH_WARMUP},
        {"on-nonfinite", "skip", NONFINITE_SKIP}, {"eval-strategy", "epoch", STRATEGY_EPOCH},
        {"save-strategy", "steps", STRATEGY_STEPS}, {"recompute", "gate_up", RECOMPUTE_GATE_UP},
        {"recompute", "layer", RECOMPUTE_LAYER}, {"report-to", "tensorboard", REPORT_TENSORBOARD},
        {"dtype", "f32", MERGE_F32}, {"dtype", "bf16", MERGE_BF16}, {"dtype", "f16", MERGE_F16},
        {"bleu-tokenize", "zh", BLEU_ZH}, {"bleu-tokenize", "none", BLEU_NONE},
        {"bleu-tokenize", "word_tokenize", CUT_WORD_TOKENIZE}};
    int meant = 0;
    for (size_t i = 0; i < sizeof means / sizeof *means; i++) {
        const Option *d = option_find(means[i].option);
        meant += d && d->type == OPTION_CHOICE && !strcmp(d->names[means[i].value], means[i].name);
    }
    check(meant == sizeof means / sizeof *means, "%d names of choices mean what they say", meant);

    int named = 0, fields = 0, bits = 0;
    for (int i = 0; i < OPTION_COUNT; i++) {
        const Option *d = &option_table[i];
        if (d->type == OPTION_HEADING) continue;
        for (int k = 0; k < i; k++) {
            const Option *e = &option_table[k];
            if (e->type == OPTION_HEADING) continue;
            named += !strcmp(d->name, e->name);
            fields += d->offset < e->offset + e->bytes && e->offset < d->offset + d->bytes;
        }
        bits += !(d->verbs & EVERY) || strchr(d->name, '_') || !*d->help;
    }
    check(!named && !fields && !bits, "no two rows share a name or a field; each has a verb, a help and dashes");
}

/* Without a default an option is not given until somebody gives it, and then again not. */
static void test_given(void) {
    int rows = 0, right = 0;
    Options o;
    options_default(&o, false);
    for (int i = 0; i < OPTION_COUNT; i++) {
        const Option *d = &option_table[i];
        const char *at = (const char *)&o + d->offset;
        char number[32], empty[8];
        if (d->type == OPTION_HEADING) continue;
        bool ok = !is_given(&o, i) && (d->value != NULL) == (o.origin[i] == from_default);
        memset(empty, d->type == OPTION_SWITCH ? 0xFF : 0, sizeof empty);
        if (!d->value) ok &= !memcmp(at, empty, d->bytes) && !*option_value(&o, d, number);
        else if (d->type != OPTION_LIST) ok &= *option_value(&o, d, number) != 0;
        const char *value = d->names ? d->names[0] : option_is_flag(d) ? "true" : "1048576";
        char low[32];
        snprintf(low, sizeof low, "%.15g", d->low);
        if (d->type >= OPTION_INT && d->type <= OPTION_FLOAT) value = low;
        option_set(&o, d, value, from_line);
        ok &= is_given(&o, i) && option_origin(&o, d->name) == from_line;
        option_unset(&o, d);
        ok &= !is_given(&o, i) && !o.origin[i] && !memcmp(at, empty, d->bytes);
        rows++;
        right += ok;
        if (!ok) check(false, "--%s: given or not", d->name);
    }
    check(rows > 80 && right == rows, "%d of %d options know whether they were given", right, rows);

    const Line embedded = {"train", {"--max-steps", "2"}}, own = {"train", {"--model=data/base"}};
    take(&o, &embedded);
    const TrainOptions *t = &o.train;
    check(t->learning_rate == 5e-3 && t->lora.lora_dropout == 0 && t->num_train_epochs == 6 && o.sample_prompts &&
          t->eval_data && t->max_steps == 2, "the embedded example's defaults");
    take(&o, &own);
    check(t->learning_rate == 2e-4 && t->lora.lora_dropout == 0.05f && t->num_train_epochs == 3 &&
          !o.sample_prompts && !t->eval_data && t->max_steps == -1 && t->greater_is_better == -1 &&
          t->data_options.enable_thinking == -1, "one's own model: TRL's");
    const Line split = {"train", {"--eval-split", "0.25", "--eval-steps", "7"}};
    take(&o, &split);
    check(!t->eval_data && t->eval_strategy == STRATEGY_STEPS && t->eval_steps == 7,
          "--eval-split takes the place of the example's file, --eval-steps means steps");

    GenerateOptions g;
    memset(&g, 0, sizeof g);
    g.top_k = 20; g.temperature = 0.7; g.max_new_tokens = 99;
    const Line answers = {"generate", {"--model", "data/base", "--temperature", "0", "--stop", "a", "--stop", "b"}};
    take(&o, &answers);
    options_generate(&g, &o);
    check(g.temperature == 0 && g.top_k == 20 && g.max_new_tokens == 99 && g.seed == 42 && g.stop_count == 2 &&
          !strcmp(g.stop[1], "b"), "what is given goes before generation_config.json, and only that");
}

/* run.json of every option at another value than its default is the same options again. */
static void test_run_json(void) {
    Options o, again;
    char path[128], number[64];
    options_default(&o, false);
    o.verb = &verb_table[0];
    int set = 0;
    for (int i = 0; i < OPTION_COUNT; i++) {
        const Option *d = &option_table[i];
        if (!(d->verbs & RUN) || (d->verbs & (ONCE | LINE_ONLY))) continue;
        const char *value = "a \"b\"\n\\";
        if (!strcmp(d->name, "target-modules")) value = "q,v";
        else if (!strcmp(d->name, "layers-to-transform")) value = "0";
        else if (!strcmp(d->name, "model")) value = "data/base";
        else if (!strcmp(d->name, "chat-template")) value = "chatml";
        else if (!strcmp(d->name, "prompt-template")) value = "U: {prompt}\t";
        else if (d->names) value = d->names[names_count(d) - 1];
        else if (option_is_flag(d)) value = strcmp(option_value(&o, d, number), "true") ? "true" : "false";
        else if (d->type < OPTION_FLAG) {
            bool whole = d->type == OPTION_INT || d->type == OPTION_INT64 || d->type == OPTION_BYTES;
            double v = d->low + (fmin(d->high, d->low + 700) - d->low) * 0.123456789;
            snprintf(number, sizeof number, "%.7g", whole ? floor(v) : d->type == OPTION_FLOAT ? (double)(float)v : v);
            value = text_copy(number);
        }
        if (d->type == OPTION_LIST) option_set(&o, d, "first", from_line);
        option_set(&o, d, value, from_line);
        set++;
    }
    Text text = options_text(&o);
    Error err;
    char *first = text_copy(text.at);
    snprintf(path, sizeof path, "%s/run.json", work);
    check(text_write(&text, work, "run.json", &err), "run.json of %d options", set);
    Line line = {"train", {"--config", path}};
    options_parse(&again, verb_or_die("train"), line_count(&line), line.words);
    int same = 0;
    for (int i = 0; i < OPTION_COUNT; i++) {
        const Option *d = &option_table[i];
        if (!(d->verbs & RUN) || (d->verbs & (ONCE | LINE_ONLY))) continue;
        const void *a = (const char *)&o + d->offset, *b = (const char *)&again + d->offset;
        const char *const *p = (const char *const *)a, *const *q = (const char *const *)b;
        bool ok;
        if (d->type == OPTION_TEXT) ok = !strcmp(*p, *q);
        else if (d->type != OPTION_LIST) ok = !memcmp(a, b, d->bytes);
        else {
            p = *(const char *const *const *)a;
            q = *(const char *const *const *)b;
            ok = arrlen(p) == 2 && arrlen(q) == 2 && !strcmp(p[0], q[0]) && !strcmp(p[1], q[1]);
        }
        if (!ok) check(false, "--%s is another after run.json", d->name);
        same += ok;
    }
    check(set > 60 && same == set, "%d of %d options are what they were after run.json", same, set);
    text = options_text(&again);
    check(!strcmp(text.at, first), "and write the same run.json");
    text_free(&text);
    free(first);
}

static void test_words(void) {
    Options o;
    const TrainOptions *t = &o.train;
    const Line forms = {"train", {"--lora_r=4", "--lora-alpha", "8", "--packing", "--no-shuffle", "--use-rslora",
                                  "false", "--eval_on_start=false", "--data", "a", "--data=b"}};
    take(&o, &forms);
    check(t->lora.r == 4 && t->lora.lora_alpha == 8 && t->data_options.packing && !t->shuffle && !t->lora.use_rslora &&
          !t->eval_on_start && arrlen(o.data) == 2 && !strcmp(o.data[0], "a") && !strcmp(t->more_data[0], "b"),
          "--name value, --name=value, --flag, --no-flag, dashes and underscores, a list");
    const Line some = {"train", {"--target-modules", "q, v_proj", "--layers-to-transform", "0,2-3",
                                 "--model", "data/base"}};
    take(&o, &some);
    bool modules = true, layers = true;
    for (int j = 0; j < MODULE_COUNT; j++)
        modules &= t->lora.target[j] == (!strcmp(module_name[j], "q_proj") || !strcmp(module_name[j], "v_proj"));
    for (int l = 0; l < 4; l++) layers &= t->lora.layers[l] == (l != 1);
    check(modules && layers, "modules and layers");

    /* Names that Hugging Face has for the same numbers: one line says so. */
    static const struct { const char *said; OptimizerType is; } same[] = {
        {"adamw_torch", OPTIMIZER_ADAMW}, {"adamw_torch_fused", OPTIMIZER_ADAMW},
        {"paged_adamw_32bit", OPTIMIZER_ADAMW}, {"adamw_bnb_8bit", OPTIMIZER_ADAMW_8BIT},
        {"paged_adamw_8bit", OPTIMIZER_ADAMW_8BIT}};
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        char said[4096], expected[128];
        const Line named = {"train", {"--optim", (char *)same[i].said}};
        int status = end_of(take_job, &named, said);
        take(&o, &named);
        snprintf(expected, sizeof expected, "note: --optim %s is %s: the same numbers", same[i].said,
                 optimizer_name[same[i].is]);
        check(!status && t->optim == same[i].is && !strncmp(said, expected, strlen(expected)), "%.*s",
              (int)strcspn(said, "\n"), said);
    }

    static const struct { Line line; const char *why; } wrong[] = {
        {{"train", {"--learning-rat", "1"}}, "did you mean --learning-rate?"},
        {{"train", {"--lr", "1"}}, "it is called --learning-rate"},
        {{"train", {"--load-in-4bit"}}, "no quantised base weights yet"},
        {{"train", {"--zzzzzz", "1"}}, "see ./train_lora train --help"},
        {{"train", {"--top-k", "3"}}, "an option of generate, evaluate and compare"},
        {{"generate", {"--per-device-train-batch-size", "3"}}, "for this it is --batch-size"},
        {{"train", {"--lr-scheduler-type", "cosin"}}, "did you mean cosine?"},
        {{"train", {"--report-to", "wandb"}}, "one of none|tensorboard: nothing is sent"},
        {{"train", {"--metric-for-best-model", "los"}}, "did you mean loss?"},
        {{"train", {"--optim", "adafactor"}}, "one of adamw|adamw_8bit: AdamW is the optimizer"},
        {{"train", {"--optim", "adamw_hf"}}, "other numbers than PyTorch's"},
        {{"train", {"--optim", "adamw_8bits"}}, "did you mean adamw_8bit?"},
        {{"train", {"--loraplus-lr-ratio", "16"}}, "it is called --lora-plus-ratio"},
        {{"train", {"--init-lora-weights", "pisa"}}, "did you mean pissa?"},
        {{"train", {"--init-lora-weights", "olora", "--init-adapter", "a"}}, "exclude each other"},
        {{"train", {"--embedding-learning-rate", "1e-5", "--learning-rate", "0"}}, "a share of that rate"},
        {{"train", {"--train", "full", "--lora-plus-ratio", "4"}}, "--lora-plus-ratio is of LoRA"},
        {{"merge", {"--lora-plus-ratio", "4"}}, "an option of train and plan"},
        {{"train", {"--warmup-steps", "0.1"}}, "or --warmup-ratio 0.1"},
        {{"train", {"--warmup-steps", "1.5"}}, "give a whole number\n"},
        {{"train", {"--target-modules", "q_pro"}}, "did you mean q_proj?"},
        {{"train", {"--layers-to-transform", "0-9", "--model", "data/base"}}, "layers 0 to 3"},
        {{"train", {"--output"}}, "--output needs a value"},
        {{"train", {"--no-shuffle=true"}}, "give --shuffle=true or false"},
        {{"train", {"--no-seed"}}, "unknown option --no-seed"},
        {{"train", {"word"}}, "unexpected word 'word'"},
        {{"evaluate", {"--few-shot", "2"}}, "--few-shot without --shots"},
        {{"train", {"--prompt-template", "x"}}, "no {prompt} in 'x'"},
        {{"train", {"--chat-template", "chatm"}}, "chatml"},
        {{"train", {"--eval-strategy", "epoch", "--model", "data/base"}}, "epoch without evaluation data"},
        {{"train", {"--eval-split", "0.1", "--eval-data", "x"}}, "exclude each other"},
        {{"train", {"--load-best-model-at-end"}}, "without evaluation"},
        {{"train", {"--no-greater-is-better"}}, "--metric-for-best-model without --load-best-model-at-end"},
        {{"train", {"--dry-run"}}, "--dry-run without --sweep"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) refused(&wrong[i].line, wrong[i].why);
}

static char *config_file(const char *name, const char *text) {
    Error err;
    char *path = (char *)must_alloc(128);
    snprintf(path, 128, "%s/%s", work, name);
    if (!write_file(path, text, strlen(text), &err)) check(false, "%s", err.text);
    return path;
}
static void test_files(void) {
    Options o;
    char said[4096];
    char *config = config_file("c.json",
        "{\"lora_r\": 3, \"lora-alpha\": 5, \"shuffle\": false, \"seed\": null, \"data\": [\"x\", \"y\"], "
        "\"stop\": [\"s\"], \"recompute\": \"layer\"}");
    Line line = {"train", {"--lora-r", "9", "--config", config, "--data", "z"}};
    check(end_of(take_job, &line, said) == 0 && strstr(said, "train does not use stop"), "a config file: %.*s",
          (int)strcspn(said, "\n"), said);
    take(&o, &line);
    const TrainOptions *t = &o.train;
    check(t->lora.r == 9 && t->lora.lora_alpha == 5 && !t->shuffle && t->seed == 42 && arrlen(o.data) == 1 &&
          !strcmp(o.data[0], "z") && t->recompute == RECOMPUTE_LAYER,
          "the command line wins, a list as a whole; null is not given");
    static const struct { const char *text, *why; } wrong[] = {
        {"{\"on_finish\": \"ls\"}", "is not taken from files"}, {"{\"config\": \"x\"}", "within a config file"},
        {"[1]", "not an object"}, {"{\"lora_r\": [1]}", "bad value of 'lora_r'"},
        {"{\"loss_on\": \"al\"}", "give one of default|"}, {"{\"lora_r=5\": 8}", "unknown option --lora-r=5"},
        {"{\"data\": [1, []]}", "give a list of strings"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        Line bad = {"train", {"--config", config_file("bad.json", wrong[i].text)}};
        refused(&bad, wrong[i].why);
    }
}

/* What an adapter was trained with is taken where it was not given. */
static void test_adapters(void) {
    Options o;
    Error err;
    char one[128], two[128], said[4096];
    snprintf(one, sizeof one, "%s/one", work);
    snprintf(two, sizeof two, "%s/two", work);
    if (!make_folder(one, &err) || !make_folder(two, &err)) check(false, "%s", err.text);
    config_file("one/run.json", "{\"chat_template\": \"zephyr\", \"max_length\": 77, \"lora_r\": 3, "
                                "\"enable_thinking\": false}");
    config_file("two/run.json", "{\"chat_template\": \"chatml\", \"max_length\": 77}");
    Line line = {"evaluate", {"--model", "data/base", "--adapter", one}};
    take(&o, &line);
    const TrainOptions *t = &o.train;
    check(!strcmp(o.chat_template, "zephyr") && t->data_options.max_length == 77 && t->lora.r == 16 &&
          t->data_options.enable_thinking == 0, "prompts and lengths as the adapter was trained");
    Line given = {"evaluate", {"--model", "data/base", "--adapter", one, "--chat-template", "llama3",
                               "--max-length", "50"}};
    take(&o, &given);
    check(!strcmp(o.chat_template, "llama3") && t->data_options.max_length == 50, "what is given counts");
    Text differs = adapter_differs(&o, one, true);
    check(differs.at && strstr(differs.at, "--chat-template zephyr (here llama3)"), "told: %s", differs.at);
    text_free(&differs);
    Line both = {"evaluate", {"--model", "data/base", "--adapter", one, "--adapter", two}};
    check(end_of(take_job, &both, said) == 2 && strstr(said, "different --chat-template, 'zephyr' and 'chatml'"),
          "two adapters of different prompts: %.*s", (int)strcspn(said, "\n"), said);
}

/* Every option of a run either decides its numbers, and then a checkpoint's identity tells it, or it does not. */
static void test_identity(void) {
    /* told by the hashes of model, tokenizer and data (with its classes), as members of what is trained and of the
       objective, or as the steps that they come to */
    static const char *const otherwise[] = {
        "model", "data", "eval-data", "eval-split", "max-train-samples", "max-eval-samples", "init-adapter",
        "max-length", "truncate-prompt", "loss-on", "chat-template", "prompt-template", "enable-thinking",
        "template-date", "split-turns", "lora-r", "lora-alpha", "lora-dropout", "use-rslora", "target-modules",
        "init-lora-weights", "layers-to-transform", "warmup-steps", "warmup-ratio", "num-train-epochs", "max-steps",
        "train", "modules-to-save", "task", "problem-type", "label-names", "class-weights", "label-smoothing",
        "focal-gamma"};
    /* where things are kept, what is told and how often, which of the steps is taken at the end, memory */
    static const char *const indifferent[] = {
        "token-cache", "output", "config", "on-nonfinite", "eval-strategy", "eval-steps", "eval-on-start",
        "per-device-eval-batch-size", "metric-for-best-model", "greater-is-better", "load-best-model-at-end",
        "early-stopping-patience", "early-stopping-threshold", "sample-prompts", "save-strategy", "save-steps",
        "save-total-limit", "resume", "resume-force", "fallback-output", "recompute", "fit", "device-memory",
        "threads", "convert-to-lora", "logging-steps", "report-to", "on-finish", "sweep", "dry-run",
        "dtype"};
    int options = 0, once = 0, rows = 0, matched = 0;
    for (int i = 0; i < OPTION_COUNT; i++) {
        const Option *d = &option_table[i];
        int said = 0;
        char key[64];
        if (!(d->verbs & RUN)) continue;
        option_key(key, d);
        for (size_t k = 0; k < sizeof otherwise / sizeof *otherwise; k++) said += !strcmp(d->name, otherwise[k]);
        for (size_t k = 0; k < sizeof indifferent / sizeof *indifferent; k++) said += !strcmp(d->name, indifferent[k]);
        for (size_t k = 0; k < sizeof run_decides / sizeof *run_decides; k++) {
            if (run_decides[k].of_plan || strcmp(run_decides[k].name, key)) continue;
            said++;
            matched += run_decides[k].at + AT(train) == d->offset;
        }
        if (said != 1) check(false, "--%s: does it decide a run's numbers? %d answers", d->name, said);
        options++;
        once += said == 1;
    }
    for (size_t k = 0; k < sizeof run_decides / sizeof *run_decides; k++) rows += !run_decides[k].of_plan;
    check(options > 60 && once == options, "%d of %d options of a run decide its numbers or do not", once, options);
    check(rows > 10 && matched == rows, "%d of %d rows of the identity are the option of that name", matched, rows);
}

/* report.html is written in full each time and grows with the log: what that costs stays a small share of the run. Here
   time is counted, not taken: a step of 0.1 s adds a record, a record `slower` seconds to every later writing. */
static void test_report(void) {
    static const double slower[] = {0, 1e-5, 1e-3, 0.01};
    for (size_t k = 0; k < sizeof slower / sizeof *slower; k++) {
        Report r;
        memset(&r, 0, sizeof r);
        double now = 1000, spent = 0, share = 0, soonest = INFINITY, latest = 0;
        int writings = 0;
        for (int step = 0; step < 100000; step++, now += 0.1) {
            if (!report_due(&r, now)) continue;
            double apart = now - r.written, rule = fmax(5, 50 * r.cost);
            if (writings++) {
                share = fmax(share, spent / (now - 1000));
                soonest = fmin(soonest, apart - rule);
                latest = fmax(latest, apart - rule);
            }
            r.written = now;
            r.cost = slower[k] * step;
            now += r.cost;
            spent += r.cost;
        }
        check(writings > 3 && share <= 0.02 && soonest >= 0 && latest < 0.11,
              "report.html, %g s a record: written %d times, %.2f %% of the run", slower[k], writings, 100 * share);
    }
    Report r;
    Error err;
    memset(&r, 0, sizeof r);
    snprintf(r.path, sizeof r.path, "%s/report.html", work);
    text_print(&r.fixed, "\"model\": 1");
    r.cost = -1;
    bool ok = report_write(&r, "running", NULL, NULL, &err) && !unlink(r.path);
    check(ok && r.written > 0 && r.cost >= 0, "a writing is remembered, and what it cost");
    r.cost = 1e6;
    ok = report_write(&r, "running", NULL, NULL, &err) && unlink(r.path);
    check(ok, "one that is not due leaves the page alone");
    ok = report_write(&r, "finished", NULL, NULL, &err) && !unlink(r.path);
    check(ok, "the end is written, due or not");
    report_end(&r);
}

int main(void) {
    snprintf(work, sizeof work, "/tmp/train_lora_options_%ld", (long)getpid());
    Error err;
    if (!make_folder(work, &err)) { printf("FAIL  %s\n0 passed, 1 failed\n", err.text); return 1; }
    test_rows();
    test_given();
    test_run_json();
    test_words();
    test_files();
    test_adapters();
    test_identity();
    test_report();
    folder_discard(work);
    return finish();
}
