/* evaluate.h - the same rows before and after: loss and its relatives of the given answers, then answers of the model's
   own, scored by data/score.h. A column is the base or one adapter; a Comparison is all columns over one file. It goes
   to the terminal, evaluation.json, responses.jsonl and compare.html. Plain C, part of train_lora.cu: uses lora.h,
   data/score.h and data/report.h.

       column_loss, column_answers, comparison_write      // of each column, in turn
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
       SCORE_ACCURACY, SCORE_MACRO, SCORES };
static const struct { const char *name, *legend; } score_table[SCORES] = {
    {"token_loss", "nats a token, lower is better"},
    {"perplexity", "exp of that"},
    {"mean_example_perplexity", "mean over rows of exp of a row's loss"},
    {"token_accuracy", "0 to 1: the likeliest token is right"},
    {"token_entropy", "nats a token"},
    {"eval_loss", "the Trainer's: mean over batches"},
    {"exact_match", "0 to 1: equal after SQuAD's normalisation"},
    {"f1", "0 to 1: SQuAD's, of words"},
    {"bleu", "0 to 100: sacrebleu"},
    {"sentence_bleu", "0 to 1: nltk, smoothing 4, mean"},
    {"chrf", "0 to 100: sacrebleu's chrF2"},
    {"rouge_l", "0 to 1: rouge_score, mean"},
    {"words_count", "words of an answer"},
    {"accuracy", "0 to 1: right labels"},
    {"macro_f1", "0 to 1: mean of the labels' F1"},
};

typedef struct Column {
    const char *name;
    double score[SCORES];                   /* NAN: not measured */
    Answer *answers;                        /* [prompts] or NULL */
    int64_t *confusion;                     /* [labels][labels + 1] or NULL */
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
    label_scores(each, &macro, &weighted, column->confusion, labels);
    printf("\n%s\n%-20s %9s %9s %9s %9s   answered:", column->name, "expected", "precision", "recall", "f1", "support");
    for (int j = 0; j <= labels; j++) printf(" %10.10s", j < labels ? label[j] : "(none)");
    printf("\n");
    for (int l = 0; l < labels + 2; l++) {
        const LabelScore *s = l < labels ? &each[l] : l == labels ? &macro : &weighted;
        const char *name = l < labels ? label[l] : l == labels ? "macro mean" : "weighted mean";
        printf("%-20.20s %9.4f %9.4f %9.4f %9lld            ", name, s->precision, s->recall, s->f1,
               (long long)s->support);
        for (int j = 0; j <= labels && l < labels; j++)
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
        for (int k = 0; k < c->count; k++) printf(" %16.4f", c->columns[k].score[i]);
        printf("   %s\n", score_table[i].legend);
    }
    for (int k = 0; k < c->count; k++)
        if (c->columns[k].confusion) confusion_print(&c->columns[k], c->labels, (int)arrlen(c->labels));
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
        if (c->columns[k].confusion) confusion_json(&t, &c->columns[k], c->labels, (int)arrlen(c->labels));
        json_end(&t);
    }
    json_end(&t);
    json_end(&t);
    text_string(&t, "\n");
    if (!text_write(&t, folder, "evaluation.json", err)) return false;
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
