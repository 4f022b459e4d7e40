/* evaluate.h - the same rows before and after: loss and its relatives of the given answers, then answers of the model's
   own, scored by data/score.h. A column is the base or one adapter; a Comparison is all columns over one file. It goes
   to the terminal, evaluation.json, responses.jsonl and compare.html. Plain C, part of train_lora.cu: uses lora.h,
   data/score.h and data/report.h.

       column_loss, column_answers, comparison_write      // of each column, in turn; column_measure_head: of a head
       comparison_print, comparison_page                  // at the end */
#ifndef EVALUATE_H
#define EVALUATE_H

/* ---- answers on their way into files ----------------------------------------------------------------------------- */

/* The last part of a path: how models and adapters are called. */
static const char *base_name(const char *path) {
    size_t n = strlen(path);
    while (n && path[n - 1] == '/') n--;
    while (n && path[n - 1] != '/') n--;
    return path + n;
}

/* One answer as a JSON object, left open. */
static void answer_json(Text *t, const Prompt *p, const Answer *a, const char *adapter) {
    json_object(t, NULL, JSON_LINE);
    json_print(t, "id", "%lld", (long long)p->row);
    json_string(t, "adapter", adapter);
    json_print(t, "messages", "%s", p->dialogue);
    json_string(t, "response", a->text);
    if (p->reference) json_bytes(t, "reference", p->reference, p->reference_bytes);
    json_print(t, "tokens", "%d", a->count);
    json_string(t, "finish_reason", a->stopped ? "stop" : "length");
}

/* Answers as they come, in PATH.partial: what an interrupted run leaves. The whole takes its place under the name at
   the end. */
typedef struct Kept { FILE *file; char path[PATH_MAX + 16]; bool full; } Kept;

static bool kept_open(Kept *k, const char *path, Error *err) {
    snprintf(k->path, sizeof k->path, "%s.partial", path);
    k->full = false;
    k->file = fopen(k->path, "wb");
    return k->file || fail(err, "cannot write; %s: %s; give another --output", k->path, strerror(errno));
}
static void kept_add(Kept *k, const char *text, size_t bytes) {
    bool whole = fwrite(text, 1, bytes, k->file) == bytes && !fflush(k->file);
    if (!whole && !k->full)
        fprintf(stderr, "warning: %s misses answers: %s; they are still in memory\n", k->path, strerror(errno));
    k->full |= !whole;
}
static void kept_drop(Kept *k) {
    fclose(k->file);
    unlink(k->path);
}

/* ---- scores and columns ------------------------------------------------------------------------------------------ */

/* In the order of the tables. LOSS to ENTROPY and EVAL_LOSS are of the given answers, the others of the model's own. */
enum { SCORE_TOKEN_LOSS, SCORE_PERPLEXITY, SCORE_EXAMPLE_PERPLEXITY, SCORE_TOKEN_ACCURACY, SCORE_TOKEN_ENTROPY,
       SCORE_EVAL_LOSS, SCORE_EXACT, SCORE_F1, SCORE_BLEU, SCORE_SENTENCE, SCORE_CHRF, SCORE_ROUGE, SCORE_LENGTH,
       SCORE_ACCURACY, SCORE_MACRO,
       /* of classification heads, regressions and rewards: by the names of log_metric */
       SCORE_WEIGHTED, SCORE_BALANCED, SCORE_ROC_AUC, SCORE_AVERAGE_PRECISION, SCORE_THRESHOLD, SCORE_THRESHOLD_F1,
       SCORE_MICRO, SCORE_SUBSET, SCORE_MSE, SCORE_MAE, SCORE_R2, SCORE_PEARSON, SCORE_SPEARMAN, SCORE_MARGIN,
       SCORE_MIN_REWARD, SCORE_MEAN_REWARD, SCORE_MAX_REWARD, SCORES };
static const struct { const char *name, *legend; } score_table[SCORES] = {
    {"token_loss", "nats a token, lower is better"},
    {"perplexity", "exp of that"},
    {"mean_example_perplexity", "mean over rows of exp of a row's loss"},
    {"token_accuracy", "0 to 1: the likeliest token is right"},
    {"token_entropy", "nats a token"},
    {"eval_loss", "the Trainer's: mean over batches; of a head over rows"},
    {"exact_match", "0 to 1: equal after SQuAD's normalisation"},
    {"f1", "0 to 1: SQuAD's, of words"},
    {"bleu", "0 to 100: sacrebleu"},
    {"sentence_bleu", "0 to 1: nltk, smoothing 4, mean"},
    {"chrf", "0 to 100: sacrebleu's chrF2"},
    {"rouge_l", "0 to 1: rouge_score, mean"},
    {"words_count", "words of an answer"},
    {"accuracy", "0 to 1: right labels"},
    {"macro_f1", "0 to 1: mean of the labels' F1"},
    {"weighted_f1", "0 to 1: mean of the labels' F1 by their rows"},
    {"balanced_accuracy", "0 to 1: mean of the labels' recall"},
    {"roc_auc", "0 to 1: the second class above the first"},
    {"average_precision", "0 to 1: of the second class"},
    {"best_threshold", "probability of the second class from which on F1 is largest"},
    {"best_threshold_f1", "0 to 1: its F1"},
    {"micro_f1", "0 to 1: of all labels together"},
    {"subset_accuracy", "0 to 1: rows with every label right"},
    {"mse", "mean squared error, lower is better"},
    {"mae", "mean absolute error, lower is better"},
    {"r2", "up to 1: share of the variance that is explained"},
    {"pearson", "-1 to 1: correlation"},
    {"spearman", "-1 to 1: of the ranks"},
    {"margin", "mean of chosen minus rejected reward"},
    {"min_reward", "TRL's: mean over batches"},
    {"mean_reward", "of chosen and rejected"},
    {"max_reward", "TRL's: mean over batches"},
};

typedef struct Column {
    const char *name;
    double score[SCORES];                   /* NAN: not measured */
    Answer *answers;                        /* [prompts] or NULL */
    int64_t *confusion;                     /* [labels][labels + 1] or NULL */
    LabelScore *each;                       /* [K] of several labels a row, or NULL */
    const char **classes;                   /* stb_ds array: what the labels of `confusion` and `each` are called; else
                                               they are the comparison's */
    Text predictions;                       /* of a head: predictions.jsonl, and as a table */
    Text predictions_csv;
} Column;
typedef struct Comparison {
    const char *model, *data;               /* folder; file */
    const char *chat_template, *bleu_tokenize;      /* by name; chat_template may be NULL */
    const DataOptions *data_options;        /* how the prompts were written, */
    const GenerateOptions *generate;        /* and how they are answered */
    BleuTokenize how;
    bool characters;                        /* ROUGE-L and sentence BLEU are of characters: no words to count */
    Pieces pieces;                          /* of sentence BLEU */
    Prompts prompts;
    char *label_list;                       /* what --labels says, cut into */
    const char **labels;                    /* stb_ds array */
    int *expected;                          /* [prompts]: label of the reference */
    Column *columns;
    int count;
    int current;                            /* the column that is being answered */
    Kept *kept;                             /* NULL, or where its answers go one by one */
} Comparison;

/* How an answer is cut into what is counted: sacrebleu's four ways, for all scores; or word_tokenize, of nltk, for
   sentence BLEU alone. */
enum { CUT_WORD_TOKENIZE = BLEU_NONE + 1, CUT_COUNT };
static const char *const cut_name[CUT_COUNT] = {"13a", "zh", "char", "none", "word_tokenize"};
static void comparison_cut(Comparison *c, int cut) {
    c->bleu_tokenize = cut_name[cut];
    c->how = cut == CUT_WORD_TOKENIZE ? BLEU_13A : (BleuTokenize)cut;
    c->characters = c->how == BLEU_ZH || c->how == BLEU_CHAR;
    c->pieces = c->characters ? PIECES_CHARACTERS : cut == CUT_WORD_TOKENIZE ? PIECES_WORDS : PIECES_SPACE;
}

static void scores_json(Text *t, const double score[SCORES], int first, int last) {
    for (int i = first; i < last; i++) if (isfinite(score[i])) json_print(t, score_table[i].name, "%.9g", score[i]);
}
static References references_of(const Prompt *p) {
    const References r = {(const char *const *)p->answers, p->answer_count};
    return r;
}
/* The scores of one answer alone. Of a label only whether it is the right one; Chinese has no words for F1. */
static void answer_scores(double score[SCORES], const Comparison *c, const char *answer, References r) {
    Chrf chrf;
    memset(&chrf, 0, sizeof chrf);
    for (int i = 0; i < SCORES; i++) score[i] = NAN;
    if (!r.count) return;
    score[SCORE_EXACT] = score_exact_match(answer, r);
    if (arrlen(c->labels)) return;
    chrf_add(&chrf, answer, r);
    if (!c->characters) score[SCORE_F1] = score_token_f1(answer, r);
    score[SCORE_SENTENCE] = score_sentence_bleu(answer, r, c->pieces);
    score[SCORE_CHRF] = chrf_score(&chrf);
    score[SCORE_ROUGE] = score_rouge_l(answer, r, c->characters);
}

/* The loss of the given answers, batch_size examples at a time. a NULL: of the base. */
static bool column_loss(Column *column, const Model *m, const Adapter *a, const Dataset *d, int batch_size,
                        Error *err) {
    Batch b;
    Workspace w;
    EvalResult r;
    int max_tokens = 0, max_sequences = 0;
    memset(&w, 0, sizeof w);
    dataset_grow_to_batches(d, NULL, batch_size, &max_tokens, &max_sequences);
    if (!batch_alloc(&b, max_tokens, max_sequences, err)) return false;
    bool ok = workspace_open(&w, m, a, max_tokens, (int)d->stats.longest, FORWARD_ONLY, true, NULL, err) &&
              model_evaluate(m, a, &w, d, &b, batch_size, &r, err);
    workspace_close(&w);
    batch_free(&b);
    if (!ok) return false;
    column->score[SCORE_TOKEN_LOSS] = r.record.token_loss;
    column->score[SCORE_PERPLEXITY] = r.record.perplexity;
    column->score[SCORE_EXAMPLE_PERPLEXITY] = r.record.mean_example_perplexity;
    column->score[SCORE_TOKEN_ACCURACY] = r.record.token_accuracy;
    column->score[SCORE_TOKEN_ENTROPY] = r.record.token_entropy;
    column->score[SCORE_EVAL_LOSS] = r.record.loss;
    return true;
}

/* ---- a column that is a head of few outputs ---------------------------------------------------------------------- */

static const ClassConfig *column_head(const Model *m, const Adapter *a) {
    const ClassConfig *c = a && a->score ? &a->config.classes : &m->classes;
    return c->num_labels ? c : NULL;
}
/* A cell of sweep.csv. A spreadsheet would run what begins like a formula: an apostrophe goes in front. */
static void csv_add(Text *t, const char *value) {
    bool number = strspn(value, "0123456789.eE+-") == strlen(value);
    text_print(t, !number && strchr("=+-@", *value) ? "\"'" : "\"");
    for (const char *c = value; *c; c++) text_print(t, *c == '"' ? "\"\"" : "%c", *c);
    text_print(t, "\"");
}
static void csv_field(Text *t, const char *text, bool first) {
    text_string(t, first ? "" : ",");
    csv_add(t, text);
}
static void csv_number(Text *t, double v) { text_print(t, ",%.9g", v); }

/* What one row is taken for: class, labels, number; its logits, and what they mean. z: [K]. */
static void prediction_add(Column *column, const Dataset *d, const SlotIterator *e, const double *z, int K) {
    Text *t = &column->predictions, *csv = &column->predictions_csv;
    char id[32];
    double p[1024];
    bool one = d->problem == PROBLEM_SINGLE_LABEL, several = d->problem == PROBLEM_MULTI_LABEL;
    snprintf(id, sizeof id, "%lld", (long long)d->row[e->example]);
    csv_field(csv, id, true);
    csv_field(csv, column->name, false);
    json_object(t, NULL, JSON_LINE);
    json_print(t, "id", "%s", id);
    json_string(t, "adapter", column->name);
    if (one) {
        const char *expected = d->label_names[(int)*e->target], *answered = d->label_names[class_likeliest(z, K)];
        json_string(t, "label", expected);
        json_string(t, "prediction", answered);
        csv_field(csv, expected, false);
        csv_field(csv, answered, false);
        if (K <= 1024) class_probabilities(p, z, K);
    } else if (several) {
        Text list[2] = {TEXT_EMPTY, TEXT_EMPTY};
        for (int side = 0; side < 2; side++) {
            json_list(t, side ? "prediction" : "label", JSON_LINE);
            for (int k = 0; k < K; k++) {
                if (!(side ? z[k] > 0 : e->target[k] != 0)) continue;
                json_string(t, NULL, d->label_names[k]);
                text_print(&list[side], "%s%s", list[side].length ? " " : "", d->label_names[k]);
            }
            json_end(t);
            csv_field(csv, list[side].length ? list[side].at : "", false);
            text_free(&list[side]);
        }
        for (int k = 0; k < K && K <= 1024; k++) p[k] = class_sigmoid(z[k]);
    } else {
        json_print(t, "label", "%.9g", (double)*e->target);
        json_print(t, "prediction", "%.9g", *z);
        csv_number(csv, (double)*e->target);
        csv_number(csv, *z);
    }
    if ((one || several) && K <= 1024) {
        json_object(t, "probabilities", JSON_LINE);
        for (int k = 0; k < K; k++) {
            json_print(t, d->label_names[k], "%.9g", p[k]);
            csv_number(csv, p[k]);
        }
        json_end(t);
    }
    json_list(t, "logits", JSON_LINE);
    for (int k = 0; k < K; k++) json_print(t, NULL, "%.9g", z[k]);
    json_end(t);
    json_end(t);
    text_string(t, "\n");
    text_string(csv, "\n");
}
static void prediction_pair(Column *column, const Dataset *d, const SlotIterator *e, const double *z) {
    Text *t = &column->predictions, *csv = &column->predictions_csv;
    char id[32];
    snprintf(id, sizeof id, "%lld", (long long)d->row[e->example]);
    json_object(t, NULL, JSON_LINE);
    json_print(t, "id", "%s", id);
    json_string(t, "adapter", column->name);
    json_print(t, "chosen", "%.9g", z[0]);
    json_print(t, "rejected", "%.9g", z[1]);
    json_print(t, "margin", "%.9g", z[0] - z[1]);
    json_end(t);
    text_string(t, "\n");
    csv_field(csv, id, true);
    csv_field(csv, column->name, false);
    for (int k = 0; k < 2; k++) csv_number(csv, z[k]);
    csv_number(csv, z[0] - z[1]);
    text_string(csv, "\n");
}
static void prediction_header(Text *csv, const Dataset *d) {
    if (d->task == TASK_REWARD) { text_string(csv, "id,adapter,chosen,rejected,margin\n"); return; }
    text_string(csv, "id,adapter,label,prediction");
    for (int k = 0; k < d->label_count && d->label_count <= 1024; k++) csv_field(csv, d->label_names[k], false);
    text_string(csv, "\n");
}

/* The place of a head's class among the comparison's labels. */
static bool column_label(int *to, const Comparison *c, const char *name, Error *err) {
    *to = score_label(name, c->labels, (int)arrlen(c->labels));
    return *to >= 0 || fail(err, "a class of the head, '%.60s', is none of the labels; --labels; add it", name);
}
/* Where the comparison's labels are given, the head's classes are counted in their order, and its answers are their
   names: text and head stand in one table. */
static bool column_head_as_text(Column *column, Comparison *c, const Dataset *d, const EvalResult *e, Error *err) {
    int K = e->K, labels = (int)arrlen(c->labels), to[1024];
    const double *z = e->logits;
    if (d->problem != PROBLEM_SINGLE_LABEL || K > 1024)
        return fail(err, "--labels are classes, one a row; %s; leave --labels out", c->data);
    if ((size_t)e->examples != c->prompts.count)
        return fail(err, "%lld rows have a label, %zu a prompt; %s; give rows with both", (long long)e->examples,
                    c->prompts.count, c->data);
    for (int k = 0; k < K; k++) if (!column_label(&to[k], c, d->label_names[k], err)) return false;
    column->confusion = (int64_t *)must_alloc((size_t)(labels * (labels + 1)) * sizeof *column->confusion);
    column->answers = (Answer *)must_alloc(c->prompts.count * sizeof *column->answers);
    for (size_t i = 0; i < c->prompts.count; i++, z += K) {
        int got = class_likeliest(z, K);
        column->answers[i].text = text_copy(d->label_names[got]);
        column->answers[i].stopped = true;
        column->confusion[c->expected[i] * (labels + 1) + to[got]]++;
    }
    return true;
}

/* Measures a head on the rows of the file: how = the task; the classes are the head's. */
static bool column_measure_head(Column *column, Comparison *c, const Model *m, const Adapter *a, const Tokenizer *t,
                                int batch_size, Error *err) {
    const ClassConfig *head = column_head(m, a);
    DataOptions how = *c->data_options;
    Dataset d;
    Batch b;
    Workspace w;
    EvalResult r;
    int max_tokens = 0, max_sequences = 0;
    memset(&d, 0, sizeof d);
    memset(&b, 0, sizeof b);
    memset(&w, 0, sizeof w);
    memset(&r, 0, sizeof r);
    if (how.task == TASK_CAUSAL_LM) how.task = TASK_CLASSIFICATION;
    if (how.problem_type == PROBLEM_AUTO) how.problem_type = head->problem_type;
    if (how.task == TASK_REWARD) how.problem_type = PROBLEM_AUTO;
    if (!how.label_names && head->names) { how.label_names = head->names; how.label_count = head->num_labels; }
    if (how.pad_token_id < 0) how.pad_token_id = head->pad_token_id;
    how.few_shot = 0;                       /* a head has learned what is asked */
    how.shots = NULL;
    if (!dataset_open(&d, c->data, t, &how, err)) return false;
    dataset_grow_to_batches(&d, NULL, batch_size, &max_tokens, &max_sequences);
    bool ok = batch_alloc(&b, max_tokens, max_sequences, err) && batch_alloc_targets(&b, d.target_width, err) &&
              workspace_open(&w, m, a, max_tokens, (int)d.stats.longest, FORWARD_ONLY, true, NULL, err) &&
              model_evaluate(m, a, &w, &d, &b, batch_size, &r, err);
    workspace_close(&w);
    batch_free(&b);
    for (int i = 0; ok && i < SCORES; i++)
        for (int j = 0; j < LOG_METRICS; j++) {
            const Metric *x = &log_metric[j];
            bool here = x->of >> r.record.of & 1 && x->is & METRIC_EVAL && i != SCORE_F1;
            if (here && !strcmp(x->name, score_table[i].name)) column->score[i] = metric_value(&r.record, x);
        }
    if (ok) column->score[SCORE_EVAL_LOSS] = r.record.loss;
    const double *z = r.logits;
    if (ok) prediction_header(&column->predictions_csv, &d);
    for (size_t i = 0; ok && i < d.slots; i++)
        for (SlotIterator e = slot_begin(&d, i); slot_next(&e); z += r.K) {
            if (d.task != TASK_REWARD) { prediction_add(column, &d, &e, z, r.K); continue; }
            prediction_pair(column, &d, &e, z++);
            slot_next(&e);
        }
    if (ok && arrlen(c->labels)) ok = column_head_as_text(column, c, &d, &r, err);
    else if (ok && d.label_count) {
        for (int k = 0; k < r.K; k++) arrput(column->classes, text_copy(d.label_names[k]));
        size_t K = (size_t)r.K;
        if (d.problem == PROBLEM_SINGLE_LABEL) {
            column->confusion = (int64_t *)must_alloc(K * (K + 1) * sizeof *column->confusion);
            class_counts(column->confusion, &r, &d);
        } else {
            column->each = (LabelScore *)must_alloc(K * sizeof *column->each);
            class_labels(column->each, &r, &d);
        }
    }
    free(r.logits);
    dataset_free(&d);
    return ok;
}

/* One line of responses.jsonl. */
static void response_line(Text *t, const Comparison *c, const Column *column, size_t prompt) {
    const Prompt *p = &c->prompts.list[prompt];
    double score[SCORES];
    answer_json(t, p, &column->answers[prompt], column->name);
    answer_scores(score, c, column->answers[prompt].text, references_of(p));
    scores_json(t, score, SCORE_EXACT, SCORE_LENGTH);
    json_end(t);
    text_string(t, "\n");
}
static void keep_response(void *user, size_t prompt) {
    const Comparison *c = (const Comparison *)user;
    Text t = TEXT_EMPTY;
    response_line(&t, c, &c->columns[c->current], prompt);
    kept_add(c->kept, t.at, t.length);
    text_free(&t);
}

/* Scores of all answers: means over the rows with a reference; BLEU and chrF are of the whole corpus. */
static void column_score(Column *column, const Comparison *c) {
    int labels = (int)arrlen(c->labels), references = 0;
    double sum[SCORES] = {0}, score[SCORES], words = 0;
    Bleu bleu;
    Chrf chrf;
    memset(&bleu, 0, sizeof bleu);
    memset(&chrf, 0, sizeof chrf);
    if (labels) column->confusion = (int64_t *)must_alloc((size_t)(labels * (labels + 1)) * sizeof *column->confusion);
    for (size_t i = 0; i < c->prompts.count; i++) {
        const char *answer = column->answers[i].text;
        References r = references_of(&c->prompts.list[i]);
        words += score_words(answer);
        if (!r.count) continue;
        references++;
        answer_scores(score, c, answer, r);
        for (int k = SCORE_EXACT; k <= SCORE_ROUGE; k++) sum[k] += score[k];
        if (labels) {
            int got = score_label(answer, c->labels, labels);
            column->confusion[c->expected[i] * (labels + 1) + (got < 0 ? labels : got)]++;
            continue;
        }
        bleu_add(&bleu, answer, r, c->how);
        chrf_add(&chrf, answer, r);
    }
    if (!labels) column->score[SCORE_LENGTH] = words / (double)c->prompts.count;
    if (references) for (int k = SCORE_EXACT; k <= SCORE_ROUGE; k++) column->score[k] = sum[k] / references;
    if (references && !labels) {
        column->score[SCORE_BLEU] = bleu_score(&bleu);
        column->score[SCORE_CHRF] = chrf_score(&chrf);
    }
    if (labels && references) {
        LabelScore *each = (LabelScore *)must_alloc((size_t)labels * sizeof *each), macro, weighted;
        column->score[SCORE_ACCURACY] = label_scores(each, &macro, &weighted, column->confusion, labels);
        column->score[SCORE_MACRO] = macro.f1;
        column->score[SCORE_WEIGHTED] = weighted.f1;
        column->score[SCORE_BALANCED] = class_balanced_accuracy(column->confusion, labels);
        free(each);
    }
}
/* Answers every prompt as `generate` says, and scores the answers. */
static bool column_answers(Column *column, Comparison *c, const Model *m, const Adapter *a, const Tokenizer *t,
                           Error *err) {
    GenerateOptions g = *c->generate;
    g.on_answer = c->kept ? keep_response : NULL;
    column->answers = (Answer *)must_alloc(c->prompts.count * sizeof *column->answers);
    if (!model_generate(m, a, NULL, t, c->prompts.list, c->prompts.count, &g, column->answers, NULL, c, err)) {
        free(column->answers);
        column->answers = NULL;
        return false;
    }
    column_score(column, c);
    return true;
}

/* ---- a comparison: labels, table, files -------------------------------------------------------------------------- */

/* "a,b,c" into labels; every reference must be one of them. */
static bool comparison_labels(Comparison *c, const char *text, Error *err) {
    c->label_list = text_copy(text);
    for (char *rest = c->label_list, *word = strtok_r(rest, ",", &rest); word; word = strtok_r(rest, ",", &rest)) {
        while (*word == ' ') word++;
        arrput(c->labels, word);
    }
    if (arrlen(c->labels) < 2)
        return fail(err, "fewer than two labels in '%s'; --labels; write them as positive,negative", text);
    c->expected = (int *)must_alloc(c->prompts.count * sizeof *c->expected);
    for (size_t i = 0; i < c->prompts.count; i++) {
        const char *reference = c->prompts.list[i].reference;
        c->expected[i] = reference ? score_label(reference, c->labels, (int)arrlen(c->labels)) : -1;
        if (c->expected[i] < 0)
            return fail(err, "the expected answer '%.60s' is none of the labels; %s, row %lld; add it to --labels",
                        reference ? reference : "", c->data, (long long)c->prompts.list[i].row);
    }
    return true;
}

/* Precision, recall and F1 of each label, and what was answered where it was expected. */
static void confusion_print(const Column *column, const char *const *label, int labels) {
    LabelScore *each = (LabelScore *)must_alloc((size_t)labels * sizeof *each), macro, weighted;
    bool counted = column->confusion != NULL, none = false;
    if (counted) label_scores(each, &macro, &weighted, column->confusion, labels);
    else { memcpy(each, column->each, (size_t)labels * sizeof *each); label_means(&macro, &weighted, each, labels); }
    for (int l = 0; l < labels && counted; l++) none |= column->answers && column->confusion[l * (labels + 1) + labels];
    none |= counted && !column->classes;    /* answers in words may be no label at all */
    printf("\n%s\n%-20s %9s %9s %9s %9s%s", column->name, "expected", "precision", "recall", "f1", "support",
           counted ? "   answered:" : "");
    for (int j = 0; j < labels + none && counted; j++) printf(" %10.10s", j < labels ? label[j] : "(none)");
    printf("\n");
    for (int l = 0; l < labels + 2; l++) {
        const LabelScore *s = l < labels ? &each[l] : l == labels ? &macro : &weighted;
        const char *name = l < labels ? label[l] : l == labels ? "macro mean" : "weighted mean";
        printf("%-20.20s %9.4f %9.4f %9.4f %9lld%s", name, s->precision, s->recall, s->f1, (long long)s->support,
               counted ? "            " : "");
        for (int j = 0; j < labels + none && l < labels && counted; j++)
            printf(" %10lld", (long long)column->confusion[l * (labels + 1) + j]);
        printf("\n");
    }
    free(each);
}
static void comparison_print(const Comparison *c) {
    printf("%-24s", "");
    for (int k = 0; k < c->count; k++) printf(" %16.16s", base_name(c->columns[k].name));
    printf("\n");
    for (int i = 0; i < SCORES; i++) {
        bool any = false;
        for (int k = 0; k < c->count; k++) any |= isfinite(c->columns[k].score[i]);
        if (!any) continue;
        printf("%-24s", score_table[i].name);
        for (int k = 0; k < c->count; k++) {
            double v = c->columns[k].score[i];
            if (isfinite(v)) printf(" %16.4f", v);
            else printf(" %16s", "-");
        }
        printf("   %s\n", score_table[i].legend);
    }
    for (int k = 0; k < c->count; k++) {
        const Column *column = &c->columns[k];
        const char *const *label = column->classes ? column->classes : c->labels;
        if (column->confusion || column->each) confusion_print(column, label, (int)arrlen(label));
    }
}

/* What the answers were made with: the same member in evaluation.json and on the page. */
static void settings_json(Text *t, const Comparison *c) {
    const DataOptions *how = c->data_options;
    const GenerateOptions *g = c->generate;
    json_object(t, "settings", JSON_LINE);
    json_print(t, "temperature", "%g", g->temperature);
    json_print(t, "top_k", "%d", g->top_k);
    json_print(t, "top_p", "%g", g->top_p);
    json_print(t, "min_p", "%g", g->min_p);
    json_print(t, "repetition_penalty", "%g", g->repetition_penalty);
    json_print(t, "max_new_tokens", "%d", g->max_new_tokens);
    json_print(t, "seed", "%llu", (unsigned long long)g->seed);
    json_print(t, "few_shot", "%d", how->few_shot);
    json_print(t, "max_length", "%d", how->max_length);
    json_print(t, "rows", "%zu", c->prompts.count);
    if (how->few_shot) json_string(t, "shots", how->shots);
    if (how->prompt_template) json_string(t, "prompt_template", how->prompt_template);
    if (c->chat_template) json_string(t, "chat_template", c->chat_template);
    if (how->template_date) json_string(t, "template_date", how->template_date);
    if (how->enable_thinking >= 0) json_bool(t, "enable_thinking", how->enable_thinking != 0);
    json_string(t, "bleu_tokenize", c->bleu_tokenize);
    json_end(t);
}

/* The labels and, a row for each, what was answered where it was expected. */
static void confusion_json(Text *t, const Column *column, const char *const *label, int labels) {
    json_list(t, "labels", JSON_LINE);
    for (int l = 0; l < labels; l++) json_string(t, NULL, label[l]);
    json_end(t);
    json_list(t, "confusion", JSON_LINE);
    for (int l = 0; l < labels; l++) {
        json_list(t, NULL, JSON_LINE);
        for (int j = 0; j <= labels; j++)
            json_print(t, NULL, "%lld", (long long)column->confusion[l * (labels + 1) + j]);
        json_end(t);
    }
    json_end(t);
}
/* The scores of every one of several labels. */
static void labels_json(Text *t, const Column *column) {
    json_object(t, "labels", JSON_LINE);
    for (ptrdiff_t l = 0; l < arrlen(column->classes); l++) {
        json_object(t, column->classes[l], JSON_LINE);
        json_print(t, "precision", "%.9g", column->each[l].precision);
        json_print(t, "recall", "%.9g", column->each[l].recall);
        json_print(t, "f1", "%.9g", column->each[l].f1);
        json_print(t, "support", "%lld", (long long)column->each[l].support);
        json_end(t);
    }
    json_end(t);
}
/* predictions.jsonl and predictions.csv: a row a line, of one column after the other. */
static bool predictions_write(const Comparison *c, const char *folder, Error *err) {
    Text t = TEXT_EMPTY, csv = TEXT_EMPTY;
    for (int k = 0; k < c->count; k++) {
        text_append(&t, c->columns[k].predictions.at, c->columns[k].predictions.length);
        text_append(&csv, c->columns[k].predictions_csv.at, c->columns[k].predictions_csv.length);
    }
    if (!t.length) return true;
    bool ok = text_write(&t, folder, "predictions.jsonl", err);
    if (ok) return text_write(&csv, folder, "predictions.csv", err);
    text_free(&csv);
    return false;
}
/* evaluation.json: a column an object; responses.jsonl: an answer a line, for other scorers. */
static bool comparison_write(const Comparison *c, const char *folder, Error *err) {
    Text t = TEXT_EMPTY;
    json_object(&t, NULL, JSON_LINE);
    json_string(&t, "model", c->model);
    json_string(&t, "data", c->data);
    settings_json(&t, c);
    json_print(&t, "few_shot", "%d", c->data_options->few_shot);
    json_list(&t, "columns", JSON_LINES);
    for (int k = 0; k < c->count && k <= c->current; k++) {
        json_object(&t, NULL, JSON_LINE);
        json_string(&t, "adapter", c->columns[k].name);
        scores_json(&t, c->columns[k].score, 0, SCORES);
        const Column *column = &c->columns[k];
        const char *const *label = column->classes ? column->classes : c->labels;
        if (column->confusion) confusion_json(&t, column, label, (int)arrlen(label));
        if (column->each) labels_json(&t, column);
        json_end(&t);
    }
    json_end(&t);
    json_end(&t);
    text_string(&t, "\n");
    if (!text_write(&t, folder, "evaluation.json", err)) return false;
    if (c->current == c->count && !predictions_write(c, folder, err)) return false;
    if (!c->columns[0].answers) return true;
    if (c->current < c->count) return true;               /* evaluated so far; the answers are kept one by one */
    for (size_t i = 0; i < c->prompts.count; i++)
        for (int k = 0; k < c->count; k++) response_line(&t, c, &c->columns[k], i);
    return text_write(&t, folder, "responses.jsonl", err);
}

/* A row of the page: its dialogue, what was expected, every column's answer and what that scores. */
static void page_row(Text *t, const Comparison *c, size_t i) {
    const Prompt *p = &c->prompts.list[i];
    double score[SCORES];
    json_object(t, NULL, JSON_LINE);
    json_print(t, "id", "%lld", (long long)p->row);
    json_print(t, "messages", "%s", p->dialogue);
    if (p->reference) json_bytes(t, "reference", p->reference, p->reference_bytes);
    if (p->group) json_string(t, "label", p->group);
    else if (c->expected) json_string(t, "label", c->labels[c->expected[i]]);
    json_list(t, "answers", JSON_LINE);
    for (int k = 0; k < c->count; k++) json_string(t, NULL, c->columns[k].answers[i].text);
    json_end(t);
    json_list(t, "scores", JSON_LINE);
    for (int k = 0; k < c->count; k++) {
        answer_scores(score, c, c->columns[k].answers[i].text, references_of(p));
        json_object(t, NULL, JSON_LINE);
        scores_json(t, score, SCORE_EXACT, SCORE_LENGTH);
        json_end(t);
    }
    json_end(t);
    json_end(t);
}
static bool comparison_page(const Comparison *c, const char *folder, Error *err) {
    Text t = TEXT_EMPTY;
    char updated[32], path[PATH_MAX];
    time_text(updated, sizeof updated);
    json_object(&t, NULL, JSON_LINE);
    json_string(&t, "title", folder);
    json_string(&t, "model", c->model);
    json_string(&t, "data", c->data);
    json_string(&t, "updated", updated);
    settings_json(&t, c);
    json_object(&t, "legend", JSON_LINE);
    for (int i = 0; i < SCORES; i++) json_string(&t, score_table[i].name, score_table[i].legend);
    json_end(&t);
    json_list(&t, "columns", JSON_LINE);
    for (int k = 0; k < c->count; k++) json_string(&t, NULL, c->columns[k].name);
    json_end(&t);
    json_list(&t, "summary", JSON_LINE);
    for (int k = 0; k < c->count; k++) {
        json_object(&t, NULL, JSON_LINE);
        scores_json(&t, c->columns[k].score, 0, SCORES);
        json_end(&t);
    }
    json_end(&t);
    json_list(&t, "rows", JSON_LINES);
    for (size_t i = 0; i < c->prompts.count; i++) page_row(&t, c, i);
    json_end(&t);
    json_end(&t);
    path_in(path, sizeof path, folder, "compare.html");
    bool ok = page_write(path, compare_page, &t, err);
    text_free(&t);
    return ok;
}

static void comparison_free(Comparison *c) {
    for (int k = 0; k < c->count; k++) {
        if (c->columns[k].answers) answers_free(c->columns[k].answers, c->prompts.count);
        free(c->columns[k].answers);
        free(c->columns[k].confusion);
        free(c->columns[k].each);
        for (ptrdiff_t i = 0; i < arrlen(c->columns[k].classes); i++) free((char *)(uintptr_t)c->columns[k].classes[i]);
        arrfree(c->columns[k].classes);
        text_free(&c->columns[k].predictions);
        text_free(&c->columns[k].predictions_csv);
    }
    free(c->columns);
    free(c->expected);
    free(c->label_list);
    arrfree(c->labels);
    prompts_free(&c->prompts);
}

/* Words of Chinese and Japanese have no spaces between them: scores of words are then near 0. */
static bool without_words(const Prompts *p) {
    size_t wide = 0, all = 0;
    for (size_t i = 0; i < p->count; i++) {
        const char *s = p->list[i].reference;
        uint32_t cp;
        for (size_t n = s ? strlen(s) : 0, k; n; s += k, n -= k, all++) {
            k = (size_t)utf8_get(s, n, &cp);
            if (!k) { k = 1; continue; }
            wide += (cp >= 0x3040 && cp <= 0x30FF) || (cp >= 0x3400 && cp <= 0x9FFF) ||
                (cp >= 0x20000 && cp <= 0x3FFFD);
        }
    }
    return 2 * wide > all;
}

#endif /* EVALUATE_H */
