/* test_score.c - data/score.h against the libraries that people use for these scores (test/golden/scores.json, made by
   dev/make_score_golden.py),
   and data/classify.h (test/golden/classify.json, made by dev/make_classify_golden.py).
   gcc -std=gnu11 -O2 -I. test/test_score.c -o build/test_score -lm && build/test_score      (from the repository root) */
#define TOKENIZER_IMPLEMENTATION
#include "tokenizer.h"
#define SCORE_IMPLEMENTATION
#include "data/score.h"
#include "check.h"

static double number(const Json *o, const char *key) {
    const Json *j = json_get(o, key);
    return j && j->type == JSON_NUMBER ? j->number : NAN;
}
static const char *text(const Json *o, const char *key) { return json_get(o, key)->str; }
static int agree(double got, double want, const char *what, const char *where) {
    bool ok = fabs(got - want) <= 1e-6;
    if (!ok) printf("      %s of \"%.60s\": %.9g, expected %.9g\n", what, where, got, want);
    return ok;
}

/* Are the text's words of word_tokenize those between the spaces of `words`? */
static bool cut_into(const char *text, const char *words) {
    Words a = treebank_words(text), b = pieces_of(words, PIECES_SPACE);
    bool same = a.count == b.count && !memcmp(a.at, b.at, a.count * sizeof *a.at);
    if (!same) printf("      %s: %zu words, not %s\n", text, a.count, words);
    free(a.at);
    free(b.at);
    return same;
}
static size_t tokens(const char *text) {
    Words w = treebank_words(text);
    free(w.at);
    return w.count;
}

/* ---- data/classify.h: scikit-learn's metrics, torch's losses ----------------------------------------------------- */

/* The numbers of a list, or of lists in a list, one after the other; truth values are 0 and 1. */
static size_t numbers_in(double *to, const Json *list) {
    size_t n = 0;
    for (const Json *e = list ? list->child : NULL; e; e = e->next) {
        if (e->type == JSON_ARRAY) { n += numbers_in(to + n, e); continue; }
        to[n++] = e->type == JSON_NUMBER ? e->number : e->type == JSON_TRUE;
    }
    return n;
}
static size_t numbers(double *to, const Json *o, const char *key) { return numbers_in(to, json_get(o, key)); }
static bool near(double got, double want) { return fabs(got - want) <= 1e-12 * fmax(1, fabs(want)); }
static int score_agrees(const LabelScore *s, const double want[3]) {
    return near(s->precision, want[0]) && near(s->recall, want[1]) && near(s->f1, want[2]);
}
static int scores_agree(const LabelScore *each, const LabelScore *macro, const LabelScore *weighted, const Json *o,
                        int labels) {
    double want[64], means[2][3];
    int right = 0;
    numbers(want, o, "each");
    numbers(means[0], o, "macro");
    numbers(means[1], o, "weighted");
    for (int k = 0; k < labels; k++)
        right += score_agrees(&each[k], want + 4 * k) && (double)each[k].support == want[4 * k + 3];
    return right == labels && score_agrees(macro, means[0]) && score_agrees(weighted, means[1]);
}

static bool classes_agree(const Json *o) {
    double expected[64], answered[64], confusion[64];
    size_t count = numbers(expected, o, "expected");
    int K = (int)number(o, "labels"), same = 0;
    int64_t counts[64] = {0};
    LabelScore each[8], macro, weighted;
    numbers(answered, o, "answered");
    numbers(confusion, o, "confusion");
    for (size_t i = 0; i < count; i++) counts[(int)expected[i] * (K + 1) + (int)answered[i]]++;
    for (int k = 0; k < K; k++)
        for (int j = 0; j < K; j++) same += (double)counts[k * (K + 1) + j] == confusion[k * K + j];
    double accuracy = label_scores(each, &macro, &weighted, counts, K);
    return same == K * K && near(accuracy, number(o, "accuracy")) &&
           near(class_balanced_accuracy(counts, K), number(o, "balanced_accuracy")) &&
           scores_agree(each, &macro, &weighted, o, K);
}
static bool ranking_agrees(const Json *o) {
    double score[64], yes[64];
    bool positive[64];
    size_t count = numbers(score, o, "score");
    numbers(yes, o, "positive");
    for (size_t i = 0; i < count; i++) positive[i] = yes[i] != 0;
    ClassRanking r = class_ranking(score, positive, count);
    return near(r.roc_auc, number(o, "roc_auc")) && near(r.average_precision, number(o, "average_precision")) &&
           near(r.threshold, number(o, "threshold")) && near(r.threshold_f1, number(o, "threshold_f1"));
}
static bool regression_agrees(const Json *o) {
    double x[64], y[64];
    size_t count = numbers(x, o, "x");
    numbers(y, o, "y");
    ClassRegression r = class_regression(x, y, count);
    return near(r.mse, number(o, "mse")) && near(r.mae, number(o, "mae")) && near(r.r2, number(o, "r2")) &&
           near(r.pearson, number(o, "pearson")) && near(r.spearman, number(o, "spearman"));
}
static bool multi_agrees(const Json *o) {
    double numbers_of[2][128];
    bool answered[128], expected[128];
    LabelScore each[8];
    size_t count = json_get(o, "answered")->count, all = numbers(numbers_of[0], o, "answered");
    numbers(numbers_of[1], o, "expected");
    for (size_t i = 0; i < all; i++) { answered[i] = numbers_of[0][i] != 0; expected[i] = numbers_of[1][i] != 0; }
    int K = (int)(all / count);
    ClassMulti m = class_multi(each, answered, expected, count, K);
    return near(m.micro_f1, number(o, "micro_f1")) && near(m.subset_accuracy, number(o, "subset_accuracy")) &&
           scores_agree(each, &m.macro, &m.weighted, o, K);
}

/* One loss of the golden file, at z. gamma < 0: not the focal loss. */
typedef struct LossCase { const char *kind; double target[4], smoothing, gamma; float weight[4]; bool weighted; int K; }
    LossCase;
static double loss_value(const LossCase *c, double *dz, const double *z) {
    const float *weight = c->weighted ? c->weight : NULL;
    float y[4];
    for (int k = 0; k < 4; k++) y[k] = (float)c->target[k];
    if (c->gamma >= 0) return loss_focal(dz, z, (int)c->target[0], weight, c->gamma, c->K);
    if (!strcmp(c->kind, "softmax")) return loss_softmax(dz, z, (int)c->target[0], weight, c->smoothing, c->K);
    if (!strcmp(c->kind, "logistic")) return loss_logistic(dz, z, y, weight, c->K);
    if (!strcmp(c->kind, "pair")) return loss_pair(dz, z, c->target[0]);
    return loss_squared(dz, z[0], c->target[0]);
}
/* The derivative against four-point differences. */
static bool derivative_agrees(const LossCase *c, const double *z, const double *dz) {
    const double h = 1e-3;
    for (int k = 0; k < c->K; k++) {
        double at[4], sum = 0;
        static const double step[4] = {-2, -1, 1, 2}, factor[4] = {1, -8, 8, -1};
        for (int i = 0; i < 4; i++) {
            memcpy(at, z, (size_t)c->K * sizeof *at);
            at[k] += step[i] * h;
            sum += factor[i] * loss_value(c, NULL, at);
        }
        if (!(fabs(sum / (12 * h) - dz[k]) <= 1e-9 * fmax(1, fabs(dz[k])))) return false;
    }
    return true;
}
static void test_losses(const Json *list) {
    int losses = 0, right = 0, derivatives = 0, focal = 0, focal_right = 0;
    for (const Json *o = list->child; o; o = o->next, losses++) {
        LossCase c;
        double z[4], dz[4], want[4], weight[4];
        memset(&c, 0, sizeof c);
        c.kind = text(o, "kind");
        c.gamma = -1;
        c.K = (int)numbers(z, o, "z");
        c.smoothing = json_get(o, "smoothing") ? number(o, "smoothing") : 0;
        if (!numbers(c.target, o, "target")) c.target[0] = number(o, "target");
        c.weighted = numbers(weight, o, "weight") > 0;
        for (int k = 0; k < c.K; k++) c.weight[k] = (float)weight[k];
        double loss = loss_value(&c, dz, z);
        numbers(want, o, "dz");
        int same = near(loss, number(o, "loss"));
        for (int k = 0; k < c.K; k++) same += near(dz[k], want[k]);
        if (same == c.K + 1) right++;
        else printf("      %s: loss %.15g, expected %.15g\n", c.kind, loss, number(o, "loss"));
        bool smooth = fabs(z[0]) < 10 && fabs(z[1]) < 10;
        derivatives += !smooth || derivative_agrees(&c, z, dz);
        if (strcmp(c.kind, "softmax") || c.smoothing > 0) continue;
        for (double gamma = 0; gamma < 4; gamma += 0.5, focal++) {
            double df[4], p[4];
            c.gamma = gamma;
            double f = loss_value(&c, df, z), t = (int)c.target[0];
            class_probabilities(p, z, c.K);
            bool zero = gamma > 0 || (near(f, loss) && near(df[0], dz[0]) && near(df[2], dz[2]));
            double formula = pow(1 - p[(int)t], gamma) * loss;
            focal_right += zero && fabs(f - formula) <= 1e-9 * fmax(1, loss) && isfinite(df[0]) &&
                           (!smooth || derivative_agrees(&c, z, df));
        }
    }
    check(right == losses && losses == 27, "losses and derivatives: %d of %d agree with torch to 1e-12", right, losses);
    check(derivatives == losses, "derivatives: %d of %d agree with differences", derivatives, losses);
    check(focal_right == focal && focal == 48, "focal loss: %d of %d agree with its formula and differences",
          focal_right, focal);
    const double sure[2] = {800, 0};
    double dz[2];
    double loss = loss_focal(dz, sure, 0, NULL, 0.5, 2);
    check(loss == 0 && dz[0] == 0 && dz[1] == 0, "focal loss of a certain row: 0, and no gradient");
}

static void test_classify(void) {
    Error err;
    JsonDoc doc;
    if (!check(json_read(&doc, "test/golden/classify.json", &err), "test/golden/classify.json")) return;
    static const struct { const char *name; bool (*agrees)(const Json *); int count; } kinds[] = {
        {"classes", classes_agree, 5}, {"rankings", ranking_agrees, 6}, {"regressions", regression_agrees, 2},
        {"multi", multi_agrees, 2}};
    for (int i = 0; i < 4; i++) {
        int right = 0, all = 0;
        for (const Json *o = json_get(doc.root, kinds[i].name)->child; o; o = o->next, all++) {
            bool agrees = kinds[i].agrees(o);
            if (!agrees) printf("      %s %d\n", kinds[i].name, all);
            right += agrees;
        }
        check(right == all && all == kinds[i].count, "%s: %d of %d agree with scikit-learn to 1e-12", kinds[i].name,
              right, all);
    }
    test_losses(json_get(doc.root, "losses"));
    json_free(&doc);
    const double x[3] = {1, 2, 3}, flat[3] = {1, 1, 1}, bad[3] = {1, NAN, 0};
    const bool all_yes[3] = {true, true, true}, some[3] = {true, false, true};
    const int64_t none[6] = {0};
    ClassRegression r = class_regression(x, flat, 3);
    check(r.mse > 1 && isnan(r.r2) && isnan(r.pearson) && isnan(r.spearman) &&
          isnan(class_ranking(x, all_yes, 3).roc_auc) && isnan(class_ranking(x, all_yes, 3).threshold) &&
          isnan(class_ranking(bad, some, 3).average_precision) && isnan(class_balanced_accuracy(none, 2)),
          "what has no value is NaN: one class alone, numbers that do not vary, scores that are not numbers");
}

int main(void) {
    Error err;
    JsonDoc doc;
    if (!json_read(&doc, "test/golden/scores.json", &err)) {
        printf("FAIL  %s\n0 passed, 1 failed\n", err.text);
        return 1;
    }
    static const char *const metrics[] = {"em", "f1", "bleu4", "bleu4_c", "rouge", "rouge_c", "words", "characters",
        "bleu4_w", "words_w"};
    int right[10] = {0}, pairs = 0;
    const Json *list[256];
    for (const Json *p = json_get(doc.root, "pairs")->child; p; p = p->next) {
        const char *a = text(p, "answer"), *b = text(p, "reference");
        const References r = {&b, 1};
        const double got[10] = {score_exact_match(a, r), score_token_f1(a, r), score_sentence_bleu(a, r, PIECES_SPACE),
                               score_sentence_bleu(a, r, PIECES_CHARACTERS), score_rouge_l(a, r, false),
                                   score_rouge_l(a, r, true),
                                   score_words(a), score_characters(a),
            score_sentence_bleu(a, r, PIECES_WORDS), (double)tokens(a)};
        for (int k = 0; k < 10; k++) right[k] += agree(got[k], number(p, metrics[k]), metrics[k], a);
        list[pairs++] = p;
    }
    for (int k = 0; k < 10; k++)
        check(right[k] == pairs && pairs > 60, "%s: %d of %d pairs agree to 1e-6", metrics[k], right[k], pairs);
    static const char *const how[] = {"13a", "zh", "char", "none"};
    int corpora = 0, bleu_right[4] = {0}, chrf_right = 0;
    for (const Json *c = json_get(doc.root, "corpora")->child; c; c = c->next, corpora++) {
        Chrf chrf;
        memset(&chrf, 0, sizeof chrf);
        for (int k = 0; k < 4; k++) {
            Bleu bleu;
            memset(&bleu, 0, sizeof bleu);
            for (const Json *m = json_get(c, "members")->child; m; m = m->next) {
                const Json *p = list[(int)m->number];
                const char *reference = text(p, "reference");
                const References r = {&reference, 1};
                bleu_add(&bleu, text(p, "answer"), r, (BleuTokenize)k);
                if (!k) chrf_add(&chrf, text(p, "answer"), r);
            }
            bleu_right[k] += agree(bleu_score(&bleu), number(c, how[k]), how[k], "a corpus");
        }
        chrf_right += agree(chrf_score(&chrf), number(c, "chrf"), "chrf", "a corpus");
    }
    for (int k = 0; k < 4; k++)
        check(bleu_right[k] == corpora && corpora >= 9, "BLEU, tokenizer %s: %d of %d corpora agree to 1e-6", how[k],
              bleu_right[k], corpora);
    check(chrf_right == corpora, "chrF: %d of %d corpora", chrf_right, corpora);
    int several = 0, several_right = 0;
    Bleu bleu_all;
    Chrf chrf_all;
    memset(&bleu_all, 0, sizeof bleu_all);
    memset(&chrf_all, 0, sizeof chrf_all);
    for (const Json *c = json_get(doc.root, "several")->child; c; c = c->next, several++) {
        const char *a = text(c, "answer"), *list[8];
        References r = {list, 0};
        for (const Json *j = json_get(c, "references")->child; j; j = j->next) list[r.count++] = j->str;
        Bleu bleu;
        Chrf chrf;
        memset(&bleu, 0, sizeof bleu);
        memset(&chrf, 0, sizeof chrf);
        bleu_add(&bleu, a, r, BLEU_13A);
        chrf_add(&chrf, a, r);
        bleu_add(&bleu_all, a, r, BLEU_13A);
        chrf_add(&chrf_all, a, r);
        several_right += agree(score_exact_match(a, r), number(c, "em"), "em", a) & agree(score_token_f1(a, r),
                number(c, "f1"), "f1", a) &
            agree(score_sentence_bleu(a, r, PIECES_SPACE), number(c, "bleu4"), "bleu4",
                  a) & agree(score_sentence_bleu(a, r, PIECES_CHARACTERS), number(c, "bleu4_c"), "bleu4_c", a) &
            agree(score_rouge_l(a, r, false), number(c, "rouge"), "rouge", a) & agree(bleu_score(&bleu),
                    number(c, "bleu"), "bleu", a) &
            agree(chrf_score(&chrf), number(c, "chrf"), "chrf", a);
    }
    const Json *corpus = json_get(doc.root, "several_corpus");
    check(several_right == several && several >= 9, "several references: %d of %d answers, every metric",
          several_right, several);
    check(agree(bleu_score(&bleu_all), number(corpus, "bleu"), "bleu", "all") &&
          agree(chrf_score(&chrf_all), number(corpus, "chrf"), "chrf", "all"),
              "several references: BLEU and chrF of all");
    int cases = 0, good = 0;
    for (const Json *c = json_get(doc.root, "labels")->child; c; c = c->next, cases++) {
        int n = (int)number(c, "n"), ok = 1;
        int64_t counts[8 * 9] = {0};
        LabelScore each[8], macro, weighted;
        const Json *g = json_get(c, "answered")->child;
        for (const Json *e = json_get(c, "expected")->child; e; e = e->next, g = g->next)
            counts[(int)e->number * (n + 1) + (g->number < 0 ? n : (int)g->number)]++;
        ok &= agree(label_scores(each, &macro, &weighted, counts, n), number(c, "accuracy"), "accuracy", "labels");
        int k = 0;
        for (const Json *r = json_get(c, "matrix")->child; r; r = r->next)
            for (const Json *v = r->child; v; v = v->next, k++) ok &= counts[k] == (int64_t)v->number;
        k = 0;
        for (const Json *r = json_get(c, "each")->child; r; r = r->next, k++)
            ok &= agree(each[k].precision, r->child->number, "precision", "labels") &&
                  agree(each[k].recall, r->child->next->number, "recall", "labels") &&
                  agree(each[k].f1, r->child->next->next->number, "f1", "labels");
        const Json *a = json_get(c, "macro")->child, *w = json_get(c, "weighted")->child;
        ok &= agree(macro.precision, a->number, "macro", "labels") &&
              agree(macro.recall, a->next->number, "macro", "labels") &&
              agree(macro.f1, a->next->next->number, "macro", "labels");
        ok &= agree(weighted.precision, w->number, "weighted", "labels") &&
              agree(weighted.recall, w->next->number, "weighted", "labels") &&
              agree(weighted.f1, w->next->next->number, "weighted", "labels");
        good += ok;
    }
    check(good == cases && cases == 9, "labels: %d of %d cases as scikit-learn", good, cases);
    static const char *const labels[] = {"positive", "negative", "not applicable"};
    static const struct { const char *answer; int want; } answers[] = {
        {"positive", 0}, {" Positive. ", 0}, {"\"NEGATIVE\"!", 1}, {"The sentiment is negative", 1},
        {"positive or negative", -1}, {"nonnegative", -1}, {"Not applicable", 2}, {"", -1}, {"neutral", -1},
        {"It is: not applicable.", 2}};
    int labelled = 0;
    for (size_t i = 0; i < sizeof answers / sizeof *answers; i++)
        labelled += score_label(answers[i].answer, labels, 3) == answers[i].want;
    check(labelled == 10, "answers to labels: %d of 10", labelled);
    /* What stands at a word's border and what only looks like it, on either side. */
    static const struct { const char *answer; int want; } borders[] = {
        {"positively so", -1}, {"unpositive", -1}, {"_negative here", -1}, {"negative_ here", -1}, {"a2negative", -1},
        {"negative2 here", -1}, {"so (negative)", 1}, {"positive, positive", 0}, {"negatives, but positive", 0},
        {"x\xC3\xA9negative here", -1}, {"negative\xC3\xA9 here", -1}, {"so \xC2\xABnegative\xC2\xBB", 1},
    };
    labelled = 0;
    for (size_t i = 0; i < sizeof borders / sizeof *borders; i++) {
        bool right = score_label(borders[i].answer, labels, 3) == borders[i].want;
        if (!right) printf("      %s: %d\n", borders[i].answer, score_label(borders[i].answer, labels, 3));
        labelled += right;
    }
    check(labelled == 12, "a label within a word is none: %d of 12", labelled);
    static const struct { const char *answer, *reference; int same; } articles[] = {
        {"The cat", "cat", 1}, {"cat the", "cat", 1}, {"cat a", "cat", 1}, {"an a the x", "x", 1}, {"a", "", 1},
        {"breathe", "brea", 0}, {"theory", "ory", 0}, {"cata", "cat", 0}, {"the1", "1", 0}, {"1the", "1", 0},
        {"th cat", "cat", 0}, {"b\xC3\xA9" "an", "b\xC3\xA9", 0}, {"an\xC3\xA9", "\xC3\xA9", 0},
    };
    int articled = 0;
    for (size_t i = 0; i < sizeof articles / sizeof *articles; i++) {
        const References r = {&articles[i].reference, 1};
        bool right = score_exact_match(articles[i].answer, r) == articles[i].same;
        if (!right) printf("      %s, %s\n", articles[i].answer, articles[i].reference);
        articled += right;
    }
    check(articled == 13, "an article within a word is none: %d of 13", articled);
    /* nltk 3.10.4: what stands before or behind an apostrophe or a quote decides about it */
    static const char *const cuts[][2] = {
        {"he 's here", "he 's here"}, {"x 're y", "x 're y"}, {"x 's2", "x ' s2"}, {"so 'Tis", "so ' Tis"},
        {"'twas", "' twas"}, {"x '' y", "x `` y"}, {"dogs'' x", "dogs '' x"}, {"''hi x", "'' hi x"}, {"(' x", "( ' x"},
        {"cats' x", "cats ' x"}, {"\"hi\" x", "`` hi '' x"}, {"(\"x\")", "( `` x '' )"}, {"more'n x", "more 'n x"},
        {"wanna go", "wan na go"}, {"d'ye x", "d 'ye x"}, {"cannots cannot", "cannots can not"}, {"lemme", "lem me"},
        {"rock 'n roll", "rock 'n roll"}, {"'em all", "' em all"}, {"don't I", "do n't I"}, {"don't", "do n't"},
        {"a, b:c 1,2 3:4,", "a , b : c 1,2 3:4 ,"}, {"Yes... no.. x.", "Yes ... no .. x ."}, {"a--b", "a -- b"},
        {"```c", "`` ` c"}, {"a`b``c", "a ` b `` c"}, {"a,\n", "a ,"}, {"a:\n x", "a : x"}, {"x.) ", "x . )"},
        {"a\xE2\x80\x91" "b", "a\xE2\x80\x91" "b"}, {"a\xE2\x80\x92" "b", "a \xE2\x80\x92 b"},
        {"a\xE2\x80\x95" "b", "a \xE2\x80\x95 b"}, {"a\xE2\x80\x96" "b", "a\xE2\x80\x96" "b"},
        {"Mr. X", "Mr. X"}, {"Am. X", "Am . X"}, {"5. X", "5 . X"}, {"he.\" She", "he . '' She"},
        {"Vs. Sr. Prof. Mrs. St. Jr. Ms. Dr. X", "Vs. Sr. Prof. Mrs. St. Jr. Ms. Dr. X"},
        /* 64 characters: the room that a text begins with */
        {"................................................................",
         "................................................................"},
        {"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx.",
         "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx ."},
        {"U.S. is. x", "U.S. is. x"}, {"\xE2\x80\x9Cx\xE2\x80\x9D", "\xE2\x80\x9C x \xE2\x80\x9D"},
    };
    int cut = 0, cuts_count = (int)(sizeof cuts / sizeof *cuts);
    for (int i = 0; i < cuts_count; i++) cut += cut_into(cuts[i][0], cuts[i][1]);
    check(cut == cuts_count, "word_tokenize: %d of %d texts", cut, cuts_count);
    /* sacrebleu 2.6.0's 13a: a point and a dash stand alone by what is beside them */
    static const char *const points[][2] = {
        {"!.5", "! . 5"}, {".5!", ". 5 !"}, {"a.5", "a . 5"}, {"5-a", "5 - a"}, {"a-5", "a-5"}, {"5-", "5 -"},
        {"5.", "5 ."}, {"x,", "x ,"}, {"1,2 ,3 4,", "1,2 , 3 4 ,"}};
    cut = 0;
    for (int i = 0; i < 9; i++) {
        Words a = bleu_words(points[i][0], BLEU_13A), b = pieces_of(points[i][1], PIECES_SPACE);
        bool same = a.count == b.count && !memcmp(a.at, b.at, a.count * sizeof *a.at);
        if (!same) printf("      %s\n", points[i][0]);
        cut += same;
        free(a.at);
        free(b.at);
    }
    check(cut == 9, "13a: %d of 9 texts", cut);
    const Words two_four[] = {{NULL, 2}, {NULL, 4}}, four_two[] = {{NULL, 4}, {NULL, 2}};
    check(nearest_length(two_four, 2, 3) == 2 && nearest_length(four_two, 2, 3) == 2 &&
          nearest_length(two_four, 2, 4) == 4 && nearest_length(four_two, 2, 1) == 2,
          "the nearest length: the shorter of two as near");
    static const char *const near_labels[] = {"abcx", "abcy"}, *const letters[] = {"A to z, 0 to 9"},
        *const replaced[] = {"x\xEF\xBF\xBDy"};
    const References letters_of = {letters, 1}, replaced_of = {replaced, 1};
    check(score_label("abcy", near_labels, 2) == 1, "labels that begin alike");
    check(score_rouge_l("a TO Z 0 TO 9", letters_of, false) == 1, "ROUGE: letters and digits to the last");
    check(score_rouge_l("x\xFFy", replaced_of, true) == 1, "a byte that is not UTF-8: U+FFFD");
    /* str.isspace of Python: these and no other */
    static const uint32_t spaces[] = {9, 10, 11, 12, 13, 0x1C, 0x1D, 0x1E, 0x1F, 0x20, 0x85, 0xA0, 0x1680, 0x2000,
        0x2001, 0x2002, 0x2003, 0x2004, 0x2005, 0x2006, 0x2007, 0x2008, 0x2009, 0x200A, 0x2028, 0x2029, 0x202F, 0x205F,
        0x3000};
    size_t spaces_right = 0, spaces_all = 0, spaces_count = sizeof spaces / sizeof *spaces;
    for (uint32_t c = 0; c < 0x110000; c++) spaces_all += is_space(c);
    for (size_t i = 0; i < spaces_count; i++) spaces_right += is_space(spaces[i]);
    check(spaces_right == spaces_count && spaces_all == spaces_count, "white space: %zu of %zu, %zu in all",
          spaces_right, spaces_count, spaces_all);
    /* \w of Python, on either side of each border: Latin-1's signs, the blocks of punctuation and of symbols */
    static const uint32_t word[] = {'0', '9', 'a', 'z', 'A', 'Z', '_', 0xAA, 0xB2, 0xB3, 0xB5, 0xB9, 0xBA, 0xBC, 0xBE,
        0xC0, 0xD6, 0xD8, 0xF6, 0xF8, 0x1FFC, 0x2071, 0x209C, 0x2184, 0x2189, 0x2460, 0x249B, 0x2776, 0x2793, 0x2C00,
        0x3005, 0x3007, 0x3021, 0x3029, 0x3031, 0x4E00, 0xFF10, 0xFF19, 0xFF21, 0xFF3A, 0xFF41, 0xFF5A, 0xFF66};
    static const uint32_t sign[] = {'/', ':', '@', '[', '^', '`', '{', 0x7F, 0xA1, 0xA9, 0xAB, 0xB4, 0xB6, 0xB8, 0xBB,
        0xBF, 0xD7, 0xF7, 0x2000, 0x206F, 0x20A0, 0x20CF, 0x2190, 0x245F, 0x2500, 0x2775, 0x2794, 0x2BFF, 0x3000,
        0x3004, 0x3008, 0x3020, 0x3030, 0xFF01, 0xFF0F, 0xFF1A, 0xFF20, 0xFF3B, 0xFF3F, 0xFF40, 0xFF5B, 0xFF65, 0x1F000,
        0x1F600, 0x1FAFF, 0xFFFD};
    int word_right = 0, words_count = (int)(sizeof word / sizeof *word), signs = (int)(sizeof sign / sizeof *sign);
    for (int i = 0; i < words_count; i++) word_right += is_word(word[i]);
    for (int i = 0; i < signs; i++) word_right += !is_word(sign[i]);
    check(word_right == words_count + signs, "what may stand in a word: %d of %d characters", word_right,
          words_count + signs);
    /* not UTF-8: no crash, and equal to itself */
    static const char *const bad[] = {"\xff\xfe", "a\xE6\x9D", "\xC0\x80", "\xF5\x80\x80\x80", "\xED\xA0\x80"};
    int same = 0;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const References r = {&bad[i], 1};
        same += score_exact_match(bad[i], r) == 1 && score_characters(bad[i]) > 0 &&
            score_rouge_l(bad[i], r, true) == 1;
    }
    check(same == 5, "bytes that are not UTF-8: %d of 5", same);
    json_free(&doc);
    test_classify();
    return finish();
}
