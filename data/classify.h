/* classify.h - what a head of few outputs says: its losses with their derivatives, and the metrics of its predictions.
   Plain C, everything in double, one header without others:

       #define CLASSIFY_IMPLEMENTATION
       #include "classify.h"

   losses     cross-entropy with class weights and label smoothing, focal loss, squared error, logistic loss, pairs
   metrics    scikit-learn's, by its names: precision, recall and F1 of each class, balanced accuracy, ROC-AUC,
              average precision, the errors of a regression, multi-label scores

   K is the number of classes, z a row of logits, p = softmax(z). Every loss returns its value and, where dz is not
   NULL, writes its derivative by z (=). test/test_score.c checks the metrics and the losses (test/golden/classify.json), and
   the derivatives by finite differences. */
#ifndef CLASSIFY_H
#define CLASSIFY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- losses of one row, or pair ---------------------------------------------------------------------------------- */

/* Cross-entropy as torch's CrossEntropyLoss(weight, label_smoothing) has it (Szegedy et al. 2016):
     a_k = (1 - smoothing) w_t [k = t] + smoothing / K w_k;   loss = -sum_k a_k log p_k;   dz_k = p_k sum_j a_j - a_k
   weight NULL: 1 everywhere. The mean over rows divides by the sum of their w_t, smoothed or not. */
double loss_softmax(double *dz /*[K] or NULL*/, const double *z /*[K]*/, int target, const float *weight /*[K]*/,
                    double smoothing, int K);
/* Focal loss (Lin et al. 2017, with w for their alpha_t): rows that are right already count less.
     loss = -w_t (1 - p_t)^gamma log p_t
     dz_k = w_t (1 - p_t)^(gamma-1) (gamma p_t log p_t - (1 - p_t)) ([k = t] - p_k)
   gamma 0 is the cross-entropy; the mean over rows divides as there. */
double loss_focal(double *dz /*[K] or NULL*/, const double *z /*[K]*/, int target, const float *weight /*[K]*/,
                  double gamma, int K);
/* (z - target)^2;   dz = 2 (z - target) */
double loss_squared(double *dz /*[1] or NULL*/, double z, double target);
/* The mean over the classes of torch's BCEWithLogitsLoss(pos_weight = w), y_k 0 or 1, s = 1 / (1 + e^-z):
     loss = -1/K sum_k (w_k y_k log s_k + (1 - y_k) log(1 - s_k));   dz_k = ((1 - y_k) s_k - w_k y_k (1 - s_k)) / K */
double loss_logistic(double *dz /*[K] or NULL*/, const double *z /*[K]*/, const float *y /*[K]*/,
                     const float *weight /*[K]*/, int K);
/* Of two answers, rewards z (Bradley & Terry 1952; TRL's RewardTrainer):
     d = z_0 - z_1 - margin;   loss = -log(1 / (1 + e^-d));   dz_0 = -dz_1 = -1 / (1 + e^d) */
double loss_pair(double *dz /*[2] or NULL*/, const double *z /*[2]: chosen, rejected*/, double margin);

void class_probabilities(double *p /*[K]*/, const double *z /*[K]*/, int K);      /* softmax; p may be z */
double class_sigmoid(double z);                            /* 1 / (1 + e^-z) */
int class_likeliest(const double *z /*[K]*/, int K);       /* the lowest among equals */

/* ---- metrics ----------------------------------------------------------------------------------------------------- */

typedef struct LabelScore { double precision, recall, f1; int64_t support; } LabelScore;
/* From counts [labels][labels + 1] (row: expected, column: answered, the last: none of them): a score for each label,
   the unweighted mean and the mean by support. 0/0 is 0. Returns the accuracy. */
double label_scores(LabelScore *each /*[labels]*/, LabelScore *macro, LabelScore *weighted, const int64_t *counts,
                    int labels);
/* From the same counts: the mean recall of the labels that occur; NAN: none does. */
double class_balanced_accuracy(const int64_t *counts, int labels);

/* What a score says of two classes, row i being of the second where positive[i]. Equal scores count together, as if in
   any order. Without a row of either class NAN. */
typedef struct ClassRanking {
    double roc_auc;                         /* area under the curve of true over false positives, by trapezoids */
    double average_precision;               /* sum over thresholds of (recall gained) * precision */
    double threshold, threshold_f1;         /* the second class where score >= threshold: the largest F1, and where; of
                                               several the highest threshold */
} ClassRanking;
ClassRanking class_ranking(const double *score /*[count]*/, const bool *positive /*[count]*/, size_t count);

/* Of predictions x and what they should be, y. r2 = 1 - sum (y - x)^2 / sum (y - mean y)^2; spearman: pearson of the
   ranks, equal numbers sharing the mean of theirs. NAN where y (or x, for the last two) does not vary. */
typedef struct ClassRegression { double mse, mae, r2, pearson, spearman; } ClassRegression;
ClassRegression class_regression(const double *x /*[count]*/, const double *y /*[count]*/, size_t count);

/* Multi-label: answered and expected are 0 or 1. micro: of all labels of all rows together; subset_accuracy: rows with
   every label right. each, macro, weighted as in label_scores, of every label's own yes. */
typedef struct ClassMulti { double micro_f1, subset_accuracy; LabelScore macro, weighted; } ClassMulti;
ClassMulti class_multi(LabelScore *each /*[K]*/, const bool *answered /*[count,K]*/, const bool *expected /*[count,K]*/,
                       size_t count, int K);

#ifdef __cplusplus
}
#endif
#endif /* CLASSIFY_H */

#if defined(CLASSIFY_IMPLEMENTATION) && !defined(CLASSIFY_IMPLEMENTED)
#define CLASSIFY_IMPLEMENTED

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- losses ------------------------------------------------------------------------------------------------------ */

/* log sum_k e^(z_k): the largest is taken out, so that nothing overflows. */
static double class_log_sum(const double *z, int K) {
    double top = z[class_likeliest(z, K)], sum = 0;
    for (int k = 0; k < K; k++) sum += exp(z[k] - top);
    return top + log(sum);
}
int class_likeliest(const double *z, int K) {
    int best = 0;
    for (int k = 1; k < K; k++) if (z[k] > z[best]) best = k;
    return best;
}
void class_probabilities(double *p, const double *z, int K) {
    double all = class_log_sum(z, K);
    for (int k = 0; k < K; k++) p[k] = exp(z[k] - all);
}
double class_sigmoid(double z) { return z < 0 ? exp(z) / (1 + exp(z)) : 1 / (1 + exp(-z)); }
static double class_log_sigmoid(double z) { return z < 0 ? z - log1p(exp(z)) : -log1p(exp(-z)); }

double loss_softmax(double *dz, const double *z, int target, const float *weight, double smoothing, int K) {
    double all = class_log_sum(z, K), loss = 0, sum = 0;
    for (int pass = 0; pass < (dz ? 2 : 1); pass++) {      /* the second knows the sum of a */
        for (int k = 0; k < K; k++) {
            double w = weight ? (double)weight[k] : 1, a = smoothing / K * w;
            if (k == target) a += (1 - smoothing) * w;
            if (pass) dz[k] = exp(z[k] - all) * sum - a;
            else { loss -= a * (z[k] - all); sum += a; }
        }
    }
    return loss;
}

double loss_focal(double *dz, const double *z, int target, const float *weight, double gamma, int K) {
    double all = class_log_sum(z, K), w = weight ? (double)weight[target] : 1;
    double log_p = z[target] - all, p = exp(log_p), rest = 0;
    for (int k = 0; k < K; k++) if (k != target) rest += exp(z[k] - all);     /* 1 - p_t, exact where p_t is almost 1 */
    if (rest < 0.5) log_p = log1p(-rest);
    double power = gamma > 0 ? pow(rest, gamma) : 1;
    /* (1 - p)^(gamma-1) log p -> 0 where p -> 1 although its first factor may be infinite */
    double slope = -power + (gamma > 0 && rest > 0 ? gamma * pow(rest, gamma - 1) * p * log_p : 0);
    for (int k = 0; dz && k < K; k++) dz[k] = w * slope * ((k == target ? rest : -exp(z[k] - all)));
    return -w * power * log_p;
}

double loss_squared(double *dz, double z, double target) {
    if (dz) *dz = 2 * (z - target);
    return (z - target) * (z - target);
}

double loss_logistic(double *dz, const double *z, const float *y, const float *weight, int K) {
    double loss = 0;
    for (int k = 0; k < K; k++) {
        double w = (weight ? (double)weight[k] : 1) * (double)y[k], no = 1 - (double)y[k];
        loss -= (w * class_log_sigmoid(z[k]) + no * class_log_sigmoid(-z[k])) / K;
        if (dz) dz[k] = (no * class_sigmoid(z[k]) - w * class_sigmoid(-z[k])) / K;
    }
    return loss;
}

double loss_pair(double *dz, const double *z, double margin) {
    double d = z[0] - z[1] - margin;
    if (dz) { dz[0] = -class_sigmoid(-d); dz[1] = -dz[0]; }
    return -class_log_sigmoid(d);
}

/* ---- metrics ----------------------------------------------------------------------------------------------------- */

static double class_ratio(double part, double of) { return of > 0 ? part / of : 0; }
static LabelScore label_score(int64_t hit, int64_t answered, int64_t expected) {
    double p = class_ratio((double)hit, (double)answered), r = class_ratio((double)hit, (double)expected);
    LabelScore s = {p, r, class_ratio(2 * p * r, p + r), expected};
    return s;
}
/* The unweighted mean of the labels' scores and the mean by support. */
static void label_means(LabelScore *macro, LabelScore *weighted, const LabelScore *each, int labels) {
    memset(macro, 0, sizeof *macro);
    memset(weighted, 0, sizeof *weighted);
    for (int k = 0; k < labels; k++) {
        double n = (double)each[k].support;
        macro->precision += each[k].precision / labels;
        macro->recall += each[k].recall / labels;
        macro->f1 += each[k].f1 / labels;
        weighted->precision += each[k].precision * n;
        weighted->recall += each[k].recall * n;
        weighted->f1 += each[k].f1 * n;
        weighted->support += each[k].support;
    }
    double all = (double)(macro->support = weighted->support);
    weighted->precision = class_ratio(weighted->precision, all);
    weighted->recall = class_ratio(weighted->recall, all);
    weighted->f1 = class_ratio(weighted->f1, all);
}
double label_scores(LabelScore *each, LabelScore *macro, LabelScore *weighted, const int64_t *counts, int labels) {
    int64_t right = 0, all = 0;
    for (int k = 0; k < labels; k++) {
        int64_t answered = 0, expected = 0, hit = counts[k * (labels + 1) + k];
        for (int j = 0; j < labels; j++) answered += counts[j * (labels + 1) + k];
        for (int j = 0; j <= labels; j++) expected += counts[k * (labels + 1) + j];
        each[k] = label_score(hit, answered, expected);
        right += hit;
        all += expected;
    }
    label_means(macro, weighted, each, labels);
    return class_ratio((double)right, (double)all);
}
double class_balanced_accuracy(const int64_t *counts, int labels) {
    double sum = 0;
    int occur = 0;
    for (int k = 0; k < labels; k++) {
        int64_t expected = 0;
        for (int j = 0; j <= labels; j++) expected += counts[k * (labels + 1) + j];
        if (!expected) continue;
        sum += (double)counts[k * (labels + 1) + k] / (double)expected;
        occur++;
    }
    return occur ? sum / occur : NAN;
}

/* Numbers with where they came from, to be sorted: ClassRanking's from the highest, ranks from the lowest. */
typedef struct ClassSorted { double value; size_t at; } ClassSorted;
static int class_compare(const void *a, const void *b) {
    double x = ((const ClassSorted *)a)->value, y = ((const ClassSorted *)b)->value;
    return (x > y) - (x < y);
}
static ClassSorted *class_sorted(const double *x, size_t count) {
    ClassSorted *s = (ClassSorted *)calloc(count ? count : 1, sizeof *s);
    if (!s) abort();
    for (size_t i = 0; i < count; i++) { s[i].value = x[i]; s[i].at = i; }
    qsort(s, count, sizeof *s, class_compare);
    return s;
}

ClassRanking class_ranking(const double *score, const bool *positive, size_t count) {
    ClassRanking r = {0, 0, NAN, -1};
    double yes = 0, hits = 0, wrong = 0;
    for (size_t i = 0; i < count; i++) yes += positive[i];
    double no = (double)count - yes;
    ClassSorted *s = class_sorted(score, count);
    for (size_t end = count; end;) {        /* thresholds from the highest score down; equal scores are one */
        size_t begin = end;
        double before_hits = hits, before_wrong = wrong, value = s[end - 1].value;
        for (; begin && s[begin - 1].value == value; begin--)
            if (positive[s[begin - 1].at]) hits++; else wrong++;
        if (begin == end) break;            /* a NaN equals nothing */
        r.roc_auc += (wrong - before_wrong) / no * (hits + before_hits) / 2 / yes;
        r.average_precision += (hits - before_hits) / yes * hits / (hits + wrong);
        double f1 = 2 * hits / (hits + wrong + yes);
        if (f1 > r.threshold_f1) { r.threshold_f1 = f1; r.threshold = value; }
        end = begin;
    }
    free(s);
    if (!(yes > 0 && no > 0) || hits + wrong < (double)count)
        r.roc_auc = r.average_precision = r.threshold = r.threshold_f1 = NAN;
    return r;
}

static double class_pearson(const double *x, const double *y, size_t count) {
    double mean_x = 0, mean_y = 0, xx = 0, yy = 0, xy = 0, n = (double)count;
    for (size_t i = 0; i < count; i++) { mean_x += x[i] / n; mean_y += y[i] / n; }
    for (size_t i = 0; i < count; i++) {
        double dx = x[i] - mean_x, dy = y[i] - mean_y;
        xx += dx * dx;
        yy += dy * dy;
        xy += dx * dy;
    }
    return xx > 0 && yy > 0 ? xy / sqrt(xx) / sqrt(yy) : NAN;
}
static double *class_ranks(const double *x, size_t count) {
    double *rank = (double *)calloc(count ? count : 1, sizeof *rank);
    if (!rank) abort();
    ClassSorted *s = class_sorted(x, count);
    for (size_t begin = 0, end; begin < count; begin = end) {
        for (end = begin + 1; end < count && s[end].value == s[begin].value;) end++;
        for (size_t i = begin; i < end; i++) rank[s[i].at] = (double)(begin + end - 1) / 2;
    }
    free(s);
    return rank;
}
ClassRegression class_regression(const double *x, const double *y, size_t count) {
    ClassRegression r = {0, 0, NAN, NAN, NAN};
    double mean = 0, all = 0, n = (double)count;
    for (size_t i = 0; i < count; i++) mean += y[i] / n;
    for (size_t i = 0; i < count; i++) {
        r.mse += (x[i] - y[i]) * (x[i] - y[i]) / n;
        r.mae += fabs(x[i] - y[i]) / n;
        all += (y[i] - mean) * (y[i] - mean);
    }
    if (all > 0) r.r2 = 1 - r.mse * n / all;
    double *rank_x = class_ranks(x, count), *rank_y = class_ranks(y, count);
    r.pearson = class_pearson(x, y, count);
    r.spearman = class_pearson(rank_x, rank_y, count);
    free(rank_x);
    free(rank_y);
    return r;
}

ClassMulti class_multi(LabelScore *each, const bool *answered, const bool *expected, size_t count, int K) {
    ClassMulti m;
    int64_t hit = 0, said = 0, there = 0, whole = 0;
    for (int k = 0; k < K; k++) {
        int64_t h = 0, s = 0, t = 0;
        for (size_t i = (size_t)k; i < count * (size_t)K; i += (size_t)K) {
            h += answered[i] && expected[i];
            s += answered[i];
            t += expected[i];
        }
        each[k] = label_score(h, s, t);
        hit += h;
        said += s;
        there += t;
    }
    for (size_t i = 0; i < count; i++)
        whole += !memcmp(answered + i * (size_t)K, expected + i * (size_t)K, (size_t)K * sizeof *answered);
    label_means(&m.macro, &m.weighted, each, K);
    m.micro_f1 = label_score(hit, said, there).f1;
    m.subset_accuracy = class_ratio((double)whole, (double)count);
    return m;
}

#endif /* CLASSIFY_IMPLEMENTATION */
