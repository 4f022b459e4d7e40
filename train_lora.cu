/* train_lora.cu - the program: fine-tunes a Hugging Face model folder on a data file and writes a PEFT adapter.

       make && ./train_lora                                                    # the embedded base model on the embedded dialogues
       ./train_lora --model Qwen3-1.7B --data train.jsonl --output adapter     # a real one

   This version runs on the CPU: the ops are those of lora.h, and this file is the command line alone. It is named .cu because the CUDA kernels, one chapter an op in forward order, will stand
   above the command line and replace those ops behind the same signatures.

   TABLE OF CONTENTS
     1  options         one table: parsing, --help, range checks, --config and run.json all come from it
     2  terminal        what a run prints: the plan, the memory table, the progress bar, the evaluations
     3  inspect         what is in the loss, token by token
     4  main            the verbs */
#define TOKENIZER_IMPLEMENTATION
#define LORA_IMPLEMENTATION
#include "lora.h"

#include <signal.h>
#include <sys/ioctl.h>

#define VERSION "0.1.0"

/* ================================================================================================================================================
   1  OPTIONS
   Names are Hugging Face's, dashes and underscores alike. A new option is one line in the table; where its value lands is its offset in Options.
   ================================================================================================================================================ */

typedef struct Options {
    TrainOptions train;
    const char *target_modules, *layers_to_transform, *chat_template, *loss_on, *scheduler, *recompute, *config;
    int threads, examples;
    bool enable_thinking, thinking_given;
} Options;

typedef enum { OPTION_INT, OPTION_INT64, OPTION_DOUBLE, OPTION_FLOAT, OPTION_BOOL, OPTION_TEXT, OPTION_CHOICE } OptionType;
typedef struct Option {
    const char *name;
    OptionType type;
    size_t offset;
    double low, high;                       /* range of numbers, inclusive */
    const char *choices;                    /* OPTION_CHOICE: "a|b|c" */
    const char *help;
} Option;

#define AT(field) offsetof(Options, field)
static const Option option_table[] = {
    {"model", OPTION_TEXT, AT(train.model), 0, 0, NULL, "folder of a Hugging Face model (llama, qwen2, qwen3 or mistral)"},
    {"data", OPTION_TEXT, AT(train.data), 0, 0, NULL, "training data: .jsonl, .json or .csv"},
    {"eval-data", OPTION_TEXT, AT(train.eval_data), 0, 0, NULL, "evaluation data, the same formats"},
    {"output", OPTION_TEXT, AT(train.output), 0, 0, NULL, "folder for the adapter and the logs"},
    {"init-adapter", OPTION_TEXT, AT(train.init_adapter), 0, 0, NULL, "PEFT adapter folder to start from (its r, alpha and modules count)"},
    {"lora-r", OPTION_INT, AT(train.lora.r), 1, 4096, NULL, "rank"},
    {"lora-alpha", OPTION_FLOAT, AT(train.lora.lora_alpha), 1e-6, 1e6, NULL, "scaling is alpha / r"},
    {"lora-dropout", OPTION_FLOAT, AT(train.lora.lora_dropout), 0, 0.99, NULL, "dropout on the adapter's input"},
    {"use-rslora", OPTION_BOOL, AT(train.lora.use_rslora), 0, 0, NULL, "scaling alpha / sqrt(r)"},
    {"target-modules", OPTION_TEXT, AT(target_modules), 0, 0, NULL, "comma list of q,k,v,o,gate,up,down (or q_proj, ...), or all-linear"},
    {"layers-to-transform", OPTION_TEXT, AT(layers_to_transform), 0, 0, NULL, "comma list of layers and ranges, as 0,4-7; all when not given"},
    {"learning-rate", OPTION_DOUBLE, AT(train.learning_rate), 0, 1e30, NULL, "peak learning rate"},
    {"lr-scheduler-type", OPTION_CHOICE, AT(scheduler), 0, 0, "linear|cosine|constant|constant_with_warmup", "schedule"},
    {"warmup-steps", OPTION_INT, AT(train.warmup_steps), 0, 1e9, NULL, "optimizer steps of warm-up (wins over the ratio)"},
    {"warmup-ratio", OPTION_DOUBLE, AT(train.warmup_ratio), 0, 1, NULL, "warm-up as a share of all steps"},
    {"num-train-epochs", OPTION_DOUBLE, AT(train.num_train_epochs), 0, 1e6, NULL, "passes over the data"},
    {"max-steps", OPTION_INT, AT(train.max_steps), -1, 1e9, NULL, "optimizer steps, instead of epochs (-1: off)"},
    {"per-device-train-batch-size", OPTION_INT, AT(train.per_device_train_batch_size), 1, 4096, NULL, "examples of a micro-batch"},
    {"per-device-eval-batch-size", OPTION_INT, AT(train.per_device_eval_batch_size), 1, 4096, NULL, "examples of an evaluation batch"},
    {"gradient-accumulation-steps", OPTION_INT, AT(train.gradient_accumulation_steps), 1, 1e6, NULL, "micro-batches of an optimizer step"},
    {"max-length", OPTION_INT, AT(train.data_options.max_length), 2, 1 << 20, NULL, "tokens; longer examples are cut at the end"},
    {"packing", OPTION_BOOL, AT(train.data_options.packing), 0, 0, NULL, "fill batches to max-length; examples never see each other"},
    {"loss-on", OPTION_CHOICE, AT(loss_on), 0, 0, "default|completion|assistant|all", "what is learned (default: assistant turns, completions, or all of plain text)"},
    {"chat-template", OPTION_TEXT, AT(chat_template), 0, 0, NULL, "name of a built-in template, instead of the model folder's"},
    {"prompt-template", OPTION_TEXT, AT(train.data_options.prompt_template), 0, 0, NULL, "for base models, as 'USER: {prompt} ASSISTANT:'"},
    {"enable-thinking", OPTION_BOOL, AT(enable_thinking), 0, 0, NULL, "Qwen3's enable_thinking (not given: the template's default)"},
    {"weight-decay", OPTION_DOUBLE, AT(train.weight_decay), 0, 1e3, NULL, "decoupled, of A and B"},
    {"adam-beta1", OPTION_DOUBLE, AT(train.adam_beta1), 0, 0.999999999, NULL, "AdamW"},
    {"adam-beta2", OPTION_DOUBLE, AT(train.adam_beta2), 0, 0.999999999, NULL, "AdamW"},
    {"adam-epsilon", OPTION_DOUBLE, AT(train.adam_epsilon), 0, 1, NULL, "AdamW"},
    {"max-grad-norm", OPTION_DOUBLE, AT(train.max_grad_norm), 0, 1e30, NULL, "gradient clipping (0: off)"},
    {"seed", OPTION_INT64, AT(train.seed), 0, 9e15, NULL, "initialisation, data order and dropout"},
    {"shuffle", OPTION_BOOL, AT(train.shuffle), 0, 0, NULL, "a new order every epoch, as Hugging Face's Trainer for that seed"},
    {"eval-steps", OPTION_INT, AT(train.eval_steps), 0, 1e9, NULL, "evaluate every so many steps (0: only before and after)"},
    {"eval-on-start", OPTION_BOOL, AT(train.eval_on_start), 0, 0, NULL, "evaluate before the first step"},
    {"logging-steps", OPTION_INT, AT(train.logging_steps), 1, 1e9, NULL, "steps between log lines"},
    {"recompute", OPTION_CHOICE, AT(recompute), 0, 0, "none|gate_up|layer", "compute again in backward instead of keeping: less memory, more time"},
    {"threads", OPTION_INT, AT(threads), 0, 1024, NULL, "CPU threads (0: all)"},
    {"examples", OPTION_INT, AT(examples), 0, 1e9, NULL, "inspect: how many examples to show"},
    {"config", OPTION_TEXT, AT(config), 0, 0, NULL, "JSON file of these options; the command line wins"},
};
enum { OPTION_COUNT = sizeof option_table / sizeof *option_table };

/* Two sets of defaults and no more: the embedded example's, and for one's own model or data those of TRL's command line (SFTConfig, ModelConfig). */
static void options_default(Options *o, bool embedded) {
    memset(o, 0, sizeof *o);
    TrainOptions *t = &o->train;
    t->model = "data/base"; t->data = "data/hotel/train.jsonl"; t->eval_data = embedded ? "data/hotel/eval.jsonl" : NULL; t->output = "out";
    t->lora.r = 16; t->lora.lora_alpha = 32; t->lora.lora_dropout = embedded ? 0 : 0.05f;
    t->learning_rate = embedded ? 5e-3 : 2e-4; t->warmup_ratio = embedded ? 0.05 : 0;
    t->num_train_epochs = embedded ? 6 : 3; t->max_steps = -1;
    t->per_device_train_batch_size = 8; t->per_device_eval_batch_size = 8; t->gradient_accumulation_steps = 1;
    t->adam_beta1 = 0.9; t->adam_beta2 = 0.999; t->adam_epsilon = 1e-8; t->max_grad_norm = 1;
    t->logging_steps = 10; t->eval_on_start = true; t->shuffle = true; t->seed = 42;
    t->data_options.max_length = 1024;
    o->target_modules = "all-linear"; o->scheduler = "linear"; o->loss_on = "default"; o->recompute = "none"; o->examples = 3;
}

static void usage_error(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fprintf(stderr, "error: ");
    vfprintf(stderr, format, args);
    fprintf(stderr, "\n");
    va_end(args);
    exit(2);
}

/* Levenshtein distance, for "did you mean". */
static int edit_distance(const char *a, const char *b) {
    int row[64], n = (int)strlen(b);
    if (n > 62) return 99;
    for (int j = 0; j <= n; j++) row[j] = j;
    for (int i = 1; a[i - 1]; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            int change = diagonal + (a[i - 1] != b[j - 1]), shift = (row[j] < row[j - 1] ? row[j] : row[j - 1]) + 1;
            diagonal = row[j];
            row[j] = change < shift ? change : shift;
        }
    }
    return row[n];
}

static const Option *option_find(const char *name) {
    for (int i = 0; i < OPTION_COUNT; i++) if (!strcmp(option_table[i].name, name)) return &option_table[i];
    return NULL;
}

static bool one_of(const char *choices, const char *value) {
    size_t n = strlen(value);
    for (const char *c = choices; c; c = strchr(c, '|') ? strchr(c, '|') + 1 : NULL) if (n && !strncmp(c, value, n) && (c[n] == '|' || !c[n])) return true;
    return false;
}

/* Stores one value; `where` names its origin in messages: "command line" or the --config file. */
static void option_set(Options *o, const Option *d, const char *value, const char *where) {
    void *at = (char *)o + d->offset;
    char *end;
    errno = 0;
    switch (d->type) {
    case OPTION_TEXT: *(const char **)at = value; break;
    case OPTION_CHOICE:
        if (!one_of(d->choices, value)) usage_error("bad value '%s' of --%s; %s; give one of %s", value, d->name, where, d->choices);
        *(const char **)at = value;
        break;
    case OPTION_BOOL:
        if (strcmp(value, "true") && strcmp(value, "false")) usage_error("bad value '%s' of --%s; %s; give true or false", value, d->name, where);
        *(bool *)at = !strcmp(value, "true");
        break;
    default: {
        double v = strtod(value, &end);
        bool whole = d->type == OPTION_INT || d->type == OPTION_INT64;
        if (end == value || *end || errno || !isfinite(v) || (whole && v != floor(v))) usage_error("bad value '%s' of --%s; %s; give a %snumber", value, d->name, where, whole ? "whole " : "");
        if (v < d->low || v > d->high) usage_error("value %s of --%s is out of range; %s; give %.10g to %.10g", value, d->name, where, d->low, d->high);
        if (d->type == OPTION_INT) *(int *)at = (int)v;
        else if (d->type == OPTION_INT64) *(int64_t *)at = (int64_t)v;
        else if (d->type == OPTION_FLOAT) *(float *)at = (float)v;
        else *(double *)at = v;
    } }
    if (d->offset == AT(enable_thinking)) o->thinking_given = true;
}

/* The table's name of an option as written: leading dashes gone, underscores as dashes. */
static void option_name(char *out, size_t size, const char *word) {
    snprintf(out, size, "%s", word);
    for (char *c = out; *c; c++) if (*c == '_') *c = '-';
}
static const Option *option_or_die(const char *name, const char *where) {
    const Option *d = option_find(name);
    if (d) return d;
    const Option *nearest = &option_table[0];
    for (int i = 1; i < OPTION_COUNT; i++) if (edit_distance(name, option_table[i].name) < edit_distance(name, nearest->name)) nearest = &option_table[i];
    if (edit_distance(name, nearest->name) <= 4) usage_error("unknown option --%s; %s; did you mean --%s?", name, where, nearest->name);
    usage_error("unknown option --%s; %s; see ./train_lora --help", name, where);
    return NULL;
}

static void options_from_file(Options *o, const char *path) {
    Error err;
    JsonDoc doc;
    char name[64];
    if (!json_read(&doc, path, &err)) { fprintf(stderr, "error: %s\n", err.text); exit(1); }
    if (doc.root->type != JSON_OBJECT) usage_error("not an object; %s; write {\"learning_rate\": 1e-4, ...}", path);
    for (const Json *j = doc.root->child; j; j = j->next) {       /* the document stays in memory: text options point into it */
        if (j->type == JSON_NULL) continue;
        option_name(name, sizeof name, j->key);
        const char *value = j->type == JSON_TRUE ? "true" : j->type == JSON_FALSE ? "false" : j->str;
        if (!value) usage_error("bad value of '%s'; %s; give a number, a string, true or false", j->key, path);
        option_set(o, option_or_die(name, path), value, path);
    }
}

/* The words after the verb. --name value, --name=value; a bool may stand alone, --no-name turns it off. */
static void options_parse(Options *o, int count, char **words) {
    const char *where = "command line";
    bool embedded = true;
    for (int i = 0; i < count; i++) {        /* whose defaults? */
        char name[64];
        option_name(name, sizeof name, words[i]);
        if (!strncmp(name, "--model", 7) || !strncmp(name, "--data", 6) || !strncmp(name, "--config", 8)) embedded = false;
    }
    options_default(o, embedded);
    for (int pass = 0; pass < 2; pass++) {   /* --config first, then the command line over it */
        for (int i = 0; i < count; i++) {
            char name[64];
            if (strncmp(words[i], "--", 2)) usage_error("unexpected word '%s'; %s; options begin with --, see ./train_lora --help", words[i], where);
            const char *equals = strchr(words[i], '=');
            option_name(name, sizeof name, words[i] + 2);
            if (strchr(name, '=')) *strchr(name, '=') = 0;
            bool off = !strncmp(name, "no-", 3) && option_find(name + 3) && option_find(name + 3)->type == OPTION_BOOL;
            const Option *d = option_or_die(off ? name + 3 : name, where);
            const char *value = equals ? equals + 1 : NULL;
            if (off) value = "false";
            else if (!value && d->type == OPTION_BOOL) value = i + 1 < count && (!strcmp(words[i + 1], "true") || !strcmp(words[i + 1], "false")) ? words[++i] : "true";
            else if (!value) {
                if (i + 1 >= count) usage_error("--%s needs a value; %s; see ./train_lora --help", d->name, where);
                value = words[++i];
            }
            if (pass == (d->offset == AT(config))) continue;
            option_set(o, d, value, where);
        }
        if (!pass && o->config) options_from_file(o, o->config);
    }
}

/* Options whose text has a structure of its own. */
static void options_resolve(Options *o) {
    TrainOptions *t = &o->train;
    Error err;
    char text[1024];
    snprintf(text, sizeof text, "%s", o->target_modules);
    memset(t->lora.target, 0, sizeof t->lora.target);
    for (char *rest = text, *word; (word = strtok_r(rest, ", ", &rest));) {
        bool found = false;
        for (int j = 0; j < MODULE_COUNT; j++) {
            size_t n = strlen(module_name[j]) - 5;                            /* "q" of "q_proj" */
            if (!strcmp(word, "all-linear") || !strcmp(word, module_name[j]) || (strlen(word) == n && !strncmp(word, module_name[j], n))) t->lora.target[j] = found = true;
        }
        if (!found) usage_error("no target module '%s'; --target-modules; the modules are q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, or all-linear", word);
    }
    if (o->layers_to_transform) {
        ModelConfig config;
        if (!config_open(&config, t->model, &err)) { fprintf(stderr, "error: %s\n", err.text); exit(1); }
        arrsetlen(t->lora.layers, (size_t)config.num_hidden_layers);
        memset(t->lora.layers, 0, (size_t)config.num_hidden_layers);
        snprintf(text, sizeof text, "%s", o->layers_to_transform);
        for (char *rest = text, *word; (word = strtok_r(rest, ", ", &rest));) {
            char *end;
            long first = strtol(word, &end, 10), last = first;
            if (end != word && *end == '-') { word = end + 1; last = strtol(word, &end, 10); }
            if (end == word || *end || first < 0 || last < first || last >= config.num_hidden_layers) usage_error("bad layers '%s'; --layers-to-transform; the model has layers 0 to %d", o->layers_to_transform, config.num_hidden_layers - 1);
            for (long l = first; l <= last; l++) t->lora.layers[l] = 1;
        }
    }
    if (o->chat_template && !chat_template_by_name(o->chat_template, &t->data_options.chat_template, &err)) usage_error("%s", err.text);
    static const char *const loss[] = {"default", "completion", "assistant", "all"}, *const level[] = {"none", "gate_up", "layer"};
    for (int i = 0; i < 4; i++) if (!strcmp(o->loss_on, loss[i])) t->data_options.loss_on = (LossOn)i;
    for (int i = 0; i < 3; i++) if (!strcmp(o->recompute, level[i])) t->recompute = (Recompute)i;
    for (int i = 0; i < SCHEDULE_COUNT; i++) if (!strcmp(o->scheduler, schedule_name[i])) t->lr_scheduler_type = (Schedule)i;
    t->data_options.enable_thinking = o->thinking_given ? o->enable_thinking : -1;
    if (t->data_options.prompt_template && !strstr(t->data_options.prompt_template, "{prompt}")) usage_error("no {prompt} in '%s'; --prompt-template; write it as 'USER: {prompt} ASSISTANT:'", t->data_options.prompt_template);
#ifdef _OPENMP
    if (o->threads) omp_set_num_threads(o->threads);
    t->data_options.threads = omp_get_max_threads();
#else
    t->data_options.threads = 1;
#endif
}

/* The options of this run, for --config. */
static bool options_write(const Options *o, const char *folder, Error *err) {
    Text t = {NULL};
    const char *comma = "{\n";
    for (int i = 0; i < OPTION_COUNT; i++) {
        const Option *d = &option_table[i];
        const void *at = (const char *)o + d->offset;
        char name[64];
        if (d->offset == AT(config) || ((d->type == OPTION_TEXT || d->type == OPTION_CHOICE) && !*(const char *const *)at) || (d->offset == AT(enable_thinking) && !o->thinking_given)) continue;
        snprintf(name, sizeof name, "%s", d->name);
        for (char *c = name; *c; c++) if (*c == '-') *c = '_';
        text_add(&t, "%s  \"%s\": ", comma, name);
        comma = ",\n";
        switch (d->type) {
        case OPTION_TEXT: case OPTION_CHOICE: text_add_json_string(&t, *(const char *const *)at); break;
        case OPTION_BOOL: text_add(&t, *(const bool *)at ? "true" : "false"); break;
        case OPTION_INT: text_add(&t, "%d", *(const int *)at); break;
        case OPTION_INT64: text_add(&t, "%lld", (long long)*(const int64_t *)at); break;
        case OPTION_FLOAT: text_add(&t, "%.7g", (double)*(const float *)at); break;
        case OPTION_DOUBLE: text_add(&t, "%.15g", *(const double *)at); break;
        }
    }
    text_add(&t, "\n}\n");
    return text_write(&t, folder, "run.json", err);
}

static void print_help(void) {
    Options o;
    options_default(&o, false);
    printf("train_lora %s - LoRA fine-tuning of Hugging Face language models, in plain C\n\n"
           "  ./train_lora                       fine-tune the embedded base model on the embedded dialogues\n"
           "  ./train_lora [train] --model FOLDER --data FILE [options]\n"
           "  ./train_lora inspect ...           show what is in the loss, token by token\n"
           "  ./train_lora plan ...              print the memory table of such a run, and stop\n"
           "  ./train_lora --version | --help\n\n"
           "Options (defaults with --model or --data; the embedded example has its own):\n", VERSION);
    for (int i = 0; i < OPTION_COUNT; i++) {
        const Option *d = &option_table[i];
        const void *at = (const char *)&o + d->offset;
        char value[64] = "";
        switch (d->type) {
        case OPTION_TEXT: case OPTION_CHOICE: if (*(const char *const *)at) snprintf(value, sizeof value, " [%.50s]", *(const char *const *)at); break;
        case OPTION_BOOL: if (d->offset != AT(enable_thinking)) snprintf(value, sizeof value, " [%s]", *(const bool *)at ? "true" : "false"); break;
        case OPTION_INT: snprintf(value, sizeof value, " [%d]", *(const int *)at); break;
        case OPTION_INT64: snprintf(value, sizeof value, " [%lld]", (long long)*(const int64_t *)at); break;
        case OPTION_FLOAT: snprintf(value, sizeof value, " [%g]", (double)*(const float *)at); break;
        case OPTION_DOUBLE: snprintf(value, sizeof value, " [%g]", *(const double *)at); break;
        }
        printf("  --%-28s %s%s%s%s\n", d->name, d->help, d->choices ? ": " : "", d->choices ? d->choices : "", value);
    }
}

/* ================================================================================================================================================
   2  TERMINAL
   ================================================================================================================================================ */

static volatile sig_atomic_t interrupted;   /* the signal's number */
static void on_signal(int number) { interrupted = number; }

typedef struct Screen { const Options *o; bool bar; Error write_error; } Screen;

static const char *bytes_text(char *out, size_t size, double bytes) {
    if (bytes >= 0x1p30) snprintf(out, size, "%8.2f GiB", bytes / 0x1p30);
    else snprintf(out, size, "%8.2f MiB", bytes / 0x1p20);
    return out;
}
static const char *duration_text(char *out, size_t size, double seconds) {
    long s = seconds > 0 ? (long)(seconds + 0.5) : 0;
    if (s >= 3600) snprintf(out, size, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
    else snprintf(out, size, "%ld:%02ld", s / 60, s % 60);
    return out;
}

static void print_version(void) {
    char backend[256];
    backend_describe(backend, sizeof backend);
    printf("train_lora %s  %s\n", VERSION, backend);
}

static void print_memory(const MemoryTable *memory) {
    char text[32];
    printf("memory\n");
    for (int i = 0; i < memory->count; i++) printf("  %-44s %s\n", memory->row[i].name, bytes_text(text, sizeof text, (double)memory->row[i].bytes));
    printf("  %-44s %s\n", "total", bytes_text(text, sizeof text, (double)memory->total));
}

static void print_data(const char *label, const char *path, const Dataset *d) {
    const DataStats *s = &d->stats;
    printf("%-8s %s: %lld examples, %lld tokens, %.1f %% in the loss", label, path, (long long)d->count, (long long)s->tokens, s->tokens ? 100.0 * (double)s->labelled / (double)s->tokens : 0);
    if (s->truncated) printf(", %lld cut at max-length", (long long)s->truncated);
    if (s->dropped) printf(", %lld dropped without a labelled token", (long long)s->dropped);
    if (d->slots != d->count) printf(", packed into %zu", d->slots);
    printf("\n");
}

static void on_begin(void *user, const Model *m, const TrainOptions *o, const Dataset *train, const Dataset *eval, const MemoryTable *memory, int64_t total_steps) {
    Screen *screen = (Screen *)user;
    const ModelConfig *c = &m->config;
    size_t parameters = (size_t)c->vocab_size * (size_t)c->hidden_size * (c->tie_word_embeddings ? 1 : 2) + m->norm_bytes / sizeof(float);
    for (int j = 0; j < MODULE_COUNT; j++) parameters += (size_t)c->num_hidden_layers * (size_t)m->layers[0].linear[j].in * (size_t)m->layers[0].linear[j].out;
    printf("%-8s %s: %s, %.1f M parameters in %s, %d layers, %d wide\n", "model", o->model, c->model_type, (double)parameters * 1e-6, dtype_name[m->head.dtype], c->num_hidden_layers, c->hidden_size);
    printf("%-8s r %d, alpha %g, dropout %g%s on", "adapter", m->lora.r, (double)m->lora.lora_alpha, (double)m->lora.lora_dropout, m->lora.use_rslora ? ", rsLoRA" : "");
    for (int j = 0; j < MODULE_COUNT; j++) if (m->lora.target[j]) printf(" %.*s", (int)strlen(module_name[j]) - 5, module_name[j]);
    printf(": %.2f M trainable parameters (%.2f %%)\n", (double)m->param_count * 1e-6, 100.0 * (double)m->param_count / (double)(parameters + m->param_count));
    print_data("data", o->data, train);
    if (eval) print_data("eval", o->eval_data, eval);
    printf("%-8s %lld steps of %d x %d examples, learning rate %g %s, seed %lld\n", "run", (long long)total_steps, o->gradient_accumulation_steps, o->per_device_train_batch_size, o->learning_rate,
           schedule_name[o->lr_scheduler_type], (long long)o->seed);
    print_memory(memory);
    fflush(stdout);
    if (screen->o) options_write(screen->o, o->output, &screen->write_error);
}

static void clear_bar(const Screen *s) { if (s->bar) printf("\r\033[K"); }

static void on_step(void *user, const LogRecord *r) {
    const Screen *screen = (const Screen *)user;
    if (!screen->bar) return;
    struct winsize w;
    int columns = ioctl(1, TIOCGWINSZ, &w) == 0 && w.ws_col > 0 ? w.ws_col : 80, width = columns > 110 ? 30 : columns > 90 ? 16 : 0;
    char line[256], eta[32];
    int done = (int)((double)width * (double)r->step / (double)r->total_steps), n = 0;
    if (width) {
        line[n++] = '[';
        for (int i = 0; i < width; i++) line[n++] = i < done ? '#' : '.';
        line[n++] = ']';
        line[n++] = ' ';
    }
    snprintf(line + n, sizeof line - (size_t)n, "%lld/%lld  loss %.4f  lr %.2e  %.0f tokens/s  ETA %s", (long long)r->step, (long long)r->total_steps, r->loss, r->learning_rate, r->tokens_per_second,
             duration_text(eta, sizeof eta, r->eta));
    printf("\r\033[K%.*s", columns - 1, line);
    fflush(stdout);
}

static void on_log(void *user, const LogRecord *r) {
    const Screen *screen = (const Screen *)user;
    char eta[32];
    clear_bar(screen);
    if (r->eval) printf("eval  step %lld: loss %.4f, perplexity %.2f, token accuracy %.1f %% (%.1f s)\n", (long long)r->step, r->loss, r->perplexity, 100 * r->mean_token_accuracy, r->seconds);
    else printf("step %5lld/%lld  epoch %.2f  loss %.4f  grad_norm %.3f  lr %.2e  accuracy %.3f  entropy %.3f  %.0f tokens/s  ETA %s\n", (long long)r->step, (long long)r->total_steps, r->epoch, r->loss, r->grad_norm,
                r->learning_rate, r->mean_token_accuracy, r->entropy, r->tokens_per_second, duration_text(eta, sizeof eta, r->eta));
    fflush(stdout);
}
static bool on_stop(void *user) { (void)user; return interrupted != 0; }

/* ================================================================================================================================================
   3  INSPECT
   ================================================================================================================================================ */

/* inspect: what the model is going to learn, token by token. Colour (or brackets) says which tokens are in the loss; the table under it says what became of the file. */

/* The bytes of one token, at most room of them. The vocabulary spells bytes in two ways: GPT-2's alphabet (every byte is a printable letter, a space is U+0120) or SentencePiece's
   (a space is U+2581, a lone byte is <0xE4>). Added tokens are spelled as they are. */
static size_t inspect_bytes(char *out, size_t room, const Tokenizer *t, int32_t id, bool byte_level) {
    const char *s = tokenizer_token(t, id);
    size_t n = s ? strlen(s) : 0, k = 0;
    bool literal = tokenizer_is_special(t, id);
    if (!s) return (size_t)snprintf(out, room, "<id %d>", id);
    unsigned lone;
    if (!byte_level && n == 6 && sscanf(s, "<0x%2X>", &lone) == 1) { out[0] = (char)lone; return 1; }
    for (size_t i = 0; i < n && k + 4 < room;) {
        uint32_t cp = 0;
        int len = data_utf8(s + i, n - i, &cp);
        if (len == 0) len = 1;
        int byte = -1;
        if (byte_level && !literal) {
            if ((cp >= 33 && cp <= 126) || (cp >= 161 && cp <= 172) || (cp >= 174 && cp <= 255)) byte = (int)cp;
            else if (cp >= 256 && cp <= 288) byte = (int)cp - 256;              /* 0..32 */
            else if (cp >= 289 && cp <= 322) byte = (int)cp - 289 + 127;        /* 127..160 */
            else if (cp == 323) byte = 173;
        } else if (cp == 0x2581 && !literal) byte = ' ';
        if (byte >= 0) out[k++] = (char)byte;
        else { memcpy(out + k, s + i, (size_t)len); k += (size_t)len; }
        i += (size_t)len;
    }
    return k;
}

/* Terminal columns of a character: 0 combining, 2 East Asian and emoji, else 1. Only line breaking depends on it. */
static int inspect_width(uint32_t c) {
    static const uint32_t wide[][2] = {{0x1100, 0x115F}, {0x2E80, 0xA4CF}, {0xAC00, 0xD7A3}, {0xF900, 0xFAFF}, {0xFE30, 0xFE6F}, {0xFF00, 0xFF60}, {0xFFE0, 0xFFE6}, {0x1F300, 0x1FAFF}, {0x20000, 0x3FFFD}};
    if ((c >= 0x300 && c <= 0x36F) || (c >= 0x200B && c <= 0x200D) || (c >= 0xFE00 && c <= 0xFE0F)) return 0;
    for (size_t i = 0; i < sizeof wide / sizeof *wide; i++) if (c >= wide[i][0] && c <= wide[i][1]) return 2;
    return 1;
}

/* Bytes as something a terminal can show; the newline gets a mark. Control characters, the ones that turn the direction of text, and pieces of a character are spelled out: a data file must
   not be able to drive the terminal. Returns the columns; *newline: the token ends with one. */
static int inspect_escape(char *out, size_t room, const char *s, size_t n, bool *newline) {
    size_t k = 0;
    int columns = 0;
    *newline = n && s[n - 1] == '\n';
    out[0] = 0;
    for (size_t i = 0; i < n && k + 16 < room;) {
        uint32_t cp = 0;
        int len = data_utf8(s + i, n - i, &cp);
        if (len == 0) columns += snprintf(out + k, room - k, "<0x%02X>", (unsigned char)s[i]);
        else if (cp == '\n') { strcpy(out + k, "\xE2\x8F\x8E"); columns++; }
        else if (cp == '\t') { strcpy(out + k, "\xE2\x87\xA5"); columns++; }
        else if (cp < ' ' || cp == 127) columns += snprintf(out + k, room - k, "<0x%02X>", cp);
        else if ((cp >= 0x80 && cp < 0xA0) || (cp >= 0x200E && cp <= 0x200F) || (cp >= 0x2028 && cp <= 0x202E) || (cp >= 0x2066 && cp <= 0x2069) || cp == 0xFEFF) columns += snprintf(out + k, room - k, "<U+%04X>", cp);
        else { memcpy(out + k, s + i, (size_t)len); out[k + (size_t)len] = 0; columns += inspect_width(cp); }
        k += strlen(out + k);
        i += len ? (size_t)len : 1;
    }
    return columns;
}

static int inspect_columns(void) {
    const char *s = getenv("COLUMNS");
    struct winsize size;
    if (isatty(STDOUT_FILENO) && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col >= 40) return size.ws_col;
    int n = s ? atoi(s) : 0;
    return n >= 40 && n <= 1000 ? n : 120;
}

static int inspect_compare(const void *a, const void *b) {
    size_t x = *(const size_t *)a, y = *(const size_t *)b;
    return x < y ? -1 : x > y;
}

/* Prints the first `examples` examples and the totals. Returns the exit status: 0. */
static int inspect_print(const Tokenizer *t, const Dataset *d, int examples, bool colour) {
    const char *learned = colour ? "\033[1;30;42m" : "[", *masked = colour ? "\033[2m" : "", *special = colour ? "\033[1;37;45m" : "[\xC2\xAB", *special_masked = colour ? "\033[2;35m" : "\xC2\xAB";
    const DataStats *s = &d->stats;
    int width = inspect_columns();
    bool byte_level = tokenizer_id(t, "\xC4\xA0") >= 0 && tokenizer_id(t, "<0x0A>") < 0;      /* U+0120 is the space of GPT-2's alphabet */
    size_t show = examples > 0 ? (size_t)examples : 0;
    if (show > d->count) show = d->count;
    if (show) printf("%stoken%s in the loss   %stoken%s not in the loss   %sspecial%s   \xE2\x8F\x8E newline\n", learned, colour ? "\033[0m" : "]", masked, colour ? "\033[0m" : "", special_masked, colour ? "\033[0m" : "\xC2\xBB");
    for (size_t e = 0; e < show; e++) {
        size_t begin = d->offset[e], n = d->offset[e + 1] - begin, in_loss = 0;
        for (size_t i = 1; i < n; i++) in_loss += d->labels[begin + i] != DATA_IGNORE;
        printf("\nrow %lld: %zu tokens, %zu in the loss\n  ", (long long)d->row[e], n, in_loss);
        for (size_t i = 0, column = 2; i < n; i++) {
            char bytes[1024], text[4096];
            bool newline, learn = i > 0 && d->labels[begin + i] != DATA_IGNORE, is_special = tokenizer_is_special(t, d->ids[begin + i]);
            size_t count = inspect_bytes(bytes, sizeof bytes, t, d->ids[begin + i], byte_level);
            int wide = inspect_escape(text, sizeof text, bytes, count, &newline) + (colour ? 0 : 2 * learn + 2 * is_special);
            if (column > 2 && column + (size_t)wide > (size_t)width) { printf("\n  "); column = 2; }
            printf("%s%s%s", is_special ? (learn ? special : special_masked) : learn ? learned : masked, text, colour ? "\033[0m" : is_special ? (learn ? "\xC2\xBB]" : "\xC2\xBB") : learn ? "]" : "");
            column += (size_t)wide;
            if (newline && i + 1 < n) { printf("\n  "); column = 2; }
        }
        printf("\n");
    }
    size_t *length = (size_t *)malloc((d->count ? d->count : 1) * sizeof *length);
    printf("\n  rows               %12lld\n  examples           %12zu\n  dropped            %12lld   no token in the loss\n  truncated          %12lld   cut at --max-length\n", (long long)s->rows, d->count, (long long)s->dropped, (long long)s->truncated);
    printf("  tokens             %12lld\n  in the loss        %12lld   %.1f %%\n  longest            %12lld tokens\n", (long long)s->tokens, (long long)s->labelled, s->tokens ? 100.0 * (double)s->labelled / (double)s->tokens : 0.0, (long long)s->longest);
    if (length && d->count) {
        for (size_t i = 0; i < d->count; i++) length[i] = d->offset[i + 1] - d->offset[i];
        qsort(length, d->count, sizeof *length, inspect_compare);
        printf("  length             %12zu median, %zu at 90 %%, %zu at 99 %%, %zu shortest\n", length[(d->count - 1) / 2], length[(d->count - 1) * 90 / 100], length[(d->count - 1) * 99 / 100], length[0]);
    }
    free(length);
    if (d->slot) printf("  packed into        %12zu slots, %.1f examples in each\n", d->slots, (double)d->count / (double)d->slots);
    printf("  stop token trained %12lld of %zu\n  double BOS         %12lld of %zu\n", (long long)s->stop_trained, d->count, (long long)s->double_bos, d->count);
    if (!s->stop_trained) printf("warning: no example ends its loss with a stop token; the tuned model will not know when to stop; check the chat template, the tokenizer's eos_token, and --max-length\n");
    else if (s->stop_trained < (int64_t)d->count) printf("note: %lld of %zu examples do not end with a stop token (cut at --max-length, or other text follows)\n", (long long)((int64_t)d->count - s->stop_trained), d->count);
    if (s->double_bos) printf("warning: %lld examples begin with two BOS tokens; the data brings its own and the tokenizer adds one; take it out of the data\n", (long long)s->double_bos);
    return 0;
}

/* ================================================================================================================================================
   4  MAIN
   ================================================================================================================================================ */
#ifndef TESTING

static int failed(const Error *err) {
    fflush(stdout);
    fprintf(stderr, "error: %s\n", err->text);
    return 1;
}

static int verb_inspect(const Options *o) {
    Error err;
    Dataset d;
    Tokenizer *t = tokenizer_open(o->train.model, &err);
    if (!t || !dataset_open(&d, o->train.data, t, &o->train.data_options, &err)) return failed(&err);
    int status = inspect_print(t, &d, o->examples, isatty(1) && !getenv("NO_COLOR"));
    dataset_free(&d);
    tokenizer_free(t);
    return status;
}

static int verb_train(const Options *o, bool plan_only) {
    Error err;
    TrainResult result;
    Screen screen;
    memset(&screen, 0, sizeof screen);
    screen.o = plan_only ? NULL : o;
    screen.bar = isatty(1);
    TrainHooks hooks = {&screen, on_begin, on_step, on_log, on_stop, plan_only};
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    bool ok = train_run(&o->train, &hooks, &result, &err);
    clear_bar(&screen);
    if (!ok) return failed(&err);
    if (plan_only) return 0;
    if (screen.write_error.text[0]) return failed(&screen.write_error);
    char time[32];
    printf("%s after %lld steps in %s; train loss %.4f", result.stopped ? "stopped" : "done", (long long)result.steps, duration_text(time, sizeof time, result.seconds), result.train_loss);
    if (isfinite(result.first_eval_loss) && o->train.eval_on_start && !result.stopped)
        printf("; evaluation loss %.4f -> %.4f (%+.0f %%)", result.first_eval_loss, result.last_eval_loss, 100 * (result.last_eval_loss / result.first_eval_loss - 1));
    printf("\nadapter  %s/adapter_model.safetensors, a PEFT folder: PeftModel.from_pretrained(base, \"%s\")\n", o->train.output, o->train.output);
    return interrupted ? 128 + interrupted : 0;
}

int main(int argc, char **argv) {
    const char *verb = argc > 1 && strncmp(argv[1], "--", 2) ? argv[1] : "train";
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) { print_help(); return 0; }
        if (!strcmp(argv[i], "--version")) { print_version(); return 0; }
    }
    if (strcmp(verb, "train") && strcmp(verb, "inspect") && strcmp(verb, "plan")) usage_error("unknown verb '%s'; command line; the verbs are train, inspect, plan", verb);
    Options o;
    int skip = argc > 1 && verb == argv[1] ? 2 : 1;
    options_parse(&o, argc - skip, argv + skip);
    options_resolve(&o);
    if (!strcmp(verb, "inspect")) return verb_inspect(&o);
    print_version();
    int status = verb_train(&o, !strcmp(verb, "plan"));
    arrfree(o.train.lora.layers);
    return status;
}
#endif
