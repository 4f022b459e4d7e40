/* score.h - how good is an answer? The metrics that people report for dialogue, question answering and translation,
   each to the digit of the library that they use for it. Plain C, one header beside tokenizer.h, which it needs for
   lower case:

       #define SCORE_IMPLEMENTATION
       #include "score.h"

   exact match, token F1    SQuAD v1.1's evaluation script (evaluate's "squad")        0 to 1
   BLEU                     sacrebleu's corpus_bleu, tokenizers 13a, zh, char, none    0 to 100
   BLEU of a sentence       nltk's sentence_bleu with smoothing method 4               0 to 1
                            split at white space, or by nltk's word_tokenize
   chrF                     sacrebleu's corpus_chrf (chrF2: 6 characters, beta 2)      0 to 100
   ROUGE-L                  rouge_score's F measure, without stemming                  0 to 1
   labels                   which one an answer means; data/classify.h has scikit-learn's scores of them

   An answer may have several references (SQuAD's gold answers): exact match, F1 and ROUGE-L take the best of them, chrF
   the one that it scores highest with, BLEU clips by the most that any of them has and takes the nearest length, as the
   libraries do. Text is UTF-8; bytes that are not count as one character each. Lower case is Python's str.lower.
   test/test_score.c checks every number (test/golden/scores.json). */
#ifndef SCORE_H
#define SCORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "tokenizer.h"
#if defined(SCORE_IMPLEMENTATION) && !defined(CLASSIFY_IMPLEMENTATION)
#define CLASSIFY_IMPLEMENTATION
#endif
#include "classify.h"         /* LabelScore, label_scores: of labels that were answered in words */

/* What was expected: count > 0 texts, any of which is right. */
typedef struct References { const char *const *text; int count; } References;

/* 1 or 0: equal after lower-casing and leaving out punctuation, articles (a, an, the) and surplus white space. */
double score_exact_match(const char *answer, References r);
/* 2 P R / (P + R) over the words that both have after the same normalisation, a word as often as both have it. */
double score_token_f1(const char *answer, References r);

/* How BLEU cuts text into words: 13a as mteval-v13a.pl, zh with every Chinese character a word of its own, char with
   every character one, none at white space. */
typedef enum { BLEU_13A, BLEU_ZH, BLEU_CHAR, BLEU_NONE } BleuTokenize;
/* How the BLEU of one sentence does: at white space, into its characters, or as nltk's word_tokenize does (Treebank's
   rules, NLTKWordTokenizer). nltk looks for the ends of sentences with a trained model; here one ends behind . ? or !
   (and closing quotes and brackets) before white space and what is no small letter, unless a single letter or a title
   (Mr. Dr. St.) stands before the point. */
typedef enum { PIECES_SPACE, PIECES_CHARACTERS, PIECES_WORDS } Pieces;
/* sums over a corpus; start with zeros */
typedef struct Bleu { int64_t match[4], total[4], answer_length, reference_length; } Bleu;
void bleu_add(Bleu *b, const char *answer, References r, BleuTokenize how);
/* 100 exp(min(0, 1 - reference length / answer length)) (p1 p2 p3 p4)^(1/4), the k-th precision without a match taken
   as 1 / (2^k total) (sacrebleu metrics/bleu.py, smoothing exp). */
double bleu_score(const Bleu *b);
/* The same product for one sentence split at white space (or into its characters), precisions without a match as
   ln(length) / (5 2^k total) (Chen & Cherry 2014; nltk/translate/bleu_score.py, method4). */
double score_sentence_bleu(const char *answer, References r, Pieces how);

/* Popović 2015: F with beta 2 of the averaged precisions and recalls of character 1- to 6-grams, white space left out
   (sacrebleu metrics/chrf.py). */
typedef struct Chrf { int64_t answer[6], reference[6], match[6]; } Chrf;
void chrf_add(Chrf *c, const char *answer, References r);
double chrf_score(const Chrf *c);

/* Lin 2004: F of the longest common subsequence of words [a-z0-9]+, or of all characters but white space, where text
   has no such words (Chinese). */
double score_rouge_l(const char *answer, References r, bool characters);

int score_words(const char *text);           /* pieces between white space */
int score_characters(const char *text);

/* Which of `count` labels an answer means: the one it equals, case, white space and surrounding punctuation aside;
   else the only one that stands in it as a word; else -1. */
int score_label(const char *answer, const char *const *labels, int count);

#endif /* SCORE_H */

#ifdef SCORE_IMPLEMENTATION

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- text as code points, words as hashes ------------------------------------------------------------------------ */

typedef struct Runes { uint32_t *at; size_t count; } Runes;
typedef struct Words { uint64_t *at; size_t count; } Words;

static void *score_alloc(size_t count, size_t size) {
    void *p = calloc(count ? count : 1, size);
    if (!p) abort();
    return p;
}
static Runes runes_of(const char *text) {
    size_t n = strlen(text);
    Runes r = {(uint32_t *)score_alloc(n, 4), 0};
    for (size_t i = 0; i < n;) {
        uint32_t c;
        int bytes = utf8_get(text + i, n - i, &c);
        r.at[r.count++] = bytes ? c : 0xFFFD;
        i += bytes ? (size_t)bytes : 1;
    }
    return r;
}
/* The same of the text in lower case: the whole, because the sigma at a word's end looks at its neighbours. */
static Runes lower_runes_of(const char *text) {
    size_t n = strlen(text), room = n + n / 2 + 1;
    char *low = (char *)score_alloc(room, 1);
    utf8_lower(low, room - 1, text, n);
    Runes r = runes_of(low);
    free(low);
    return r;
}
/* Python's str.isspace and string.punctuation. */
static bool is_space(uint32_t c) { return (c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
                                  c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
                                      c == 0x202F || c == 0x205F || c == 0x3000; }
static bool is_punctuation(uint32_t c) {
    return (c >= 33 && c <= 47) || (c >= 58 && c <= 64) || (c >= 91 && c <= 96) || (c >= 123 && c <= 126);
}
/* What \w matches, for what may stand beside an article: letters and digits; not the punctuation and the symbols of
   Latin-1, General Punctuation to Dingbats, CJK punctuation, full-width signs and emoji. */
static bool is_word(uint32_t c) {
    if (c < 0x80) return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
    if (c < 0xC0)
        return c == 0xAA || c == 0xB5 || c == 0xBA || c == 0xB2 || c == 0xB3 || c == 0xB9 || (c >= 0xBC && c <= 0xBE);
    return c != 0xD7 && c != 0xF7 && !(c >= 0x2000 && c <= 0x206F) && !(c >= 0x20A0 && c <= 0x20CF) &&
        !(c >= 0x2190 && c <= 0x245F) && !(c >= 0x2500 && c <= 0x2775) && !(c >= 0x2794 && c <= 0x2BFF) &&
        !(c >= 0x3000 && c <= 0x3004) && !(c >= 0x3008 && c <= 0x3020) && c != 0x3030 &&
        !(c >= 0xFF01 && c <= 0xFF0F) && !(c >= 0xFF1A && c <= 0xFF20) &&
        !(c >= 0xFF3B && c <= 0xFF40) && !(c >= 0xFF5B && c <= 0xFF65) &&
        !(c >= 0x1F000 && c <= 0x1FAFF) && c != 0xFFFD;
}

static uint64_t word_hash(const uint32_t *at, size_t n) {
    uint64_t h = 0xCBF29CE484222325u;
    for (size_t i = 0; i < n; i++) { h = (h ^ at[i]) * 0x100000001B3u; h ^= h >> 29; }
    return h;
}
/* The pieces between white space. */
static Words words_of(const uint32_t *at, size_t n) {
    Words w = {(uint64_t *)score_alloc(n, 8), 0};
    for (size_t i = 0; i < n;) {
        size_t begin = i;
        while (i < n && !is_space(at[i])) i++;
        if (i > begin) w.at[w.count++] = word_hash(at + begin, i - begin);
        i += i == begin;
    }
    return w;
}
/* Every character but white space a word of its own. */
static Words characters_of(const char *text) {
    Runes r = runes_of(text);
    Words w = {(uint64_t *)score_alloc(r.count, 8), 0};
    for (size_t i = 0; i < r.count; i++) if (!is_space(r.at[i])) w.at[w.count++] = r.at[i];
    free(r.at);
    return w;
}

static int compare_hashes(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}
/* Sorted hashes of the n-grams of w: max(0, count - n + 1) of them. */
static Words ngrams_of(Words w, size_t n) {
    Words g = {(uint64_t *)score_alloc(w.count, 8), w.count >= n ? w.count - n + 1 : 0};
    for (size_t i = 0; i < g.count; i++)
        for (size_t k = 0; k < n; k++) {
            g.at[i] = (g.at[i] ^ w.at[i + k]) * 0x9E3779B97F4A7C15u;
            g.at[i] ^= g.at[i] >> 31;
        }
    qsort(g.at, g.count, sizeof *g.at, compare_hashes);
    return g;
}
/* How many of a's n-grams the references have, each as often as a has it but at most as often as any one of them
   does. */
static int64_t ngram_matches(Words a, const Words *references, int count, size_t n) {
    Words x = ngrams_of(a, n);
    int64_t *most = (int64_t *)score_alloc(x.count, sizeof *most), same = 0;      /* by the first of equal n-grams */
    for (int k = 0; k < count; k++) {
        Words y = ngrams_of(references[k], n);
        for (size_t i = 0, j = 0; i < x.count;) {
            size_t end = i;
            int64_t have = 0;
            while (end < x.count && x.at[end] == x.at[i]) end++;
            while (j < y.count && y.at[j] < x.at[i]) j++;
            for (; j < y.count && y.at[j] == x.at[i]; j++) have++;
            if (have > (int64_t)(end - i)) have = (int64_t)(end - i);
            if (have > most[i]) most[i] = have;
            i = end;
        }
        free(y.at);
    }
    for (size_t i = 0; i < x.count; i++) same += most[i];
    free(most);
    free(x.at);
    return same;
}
/* The length nearest to `length`, the shorter of two as near. */
static int64_t nearest_length(const Words *references, int count, size_t length) {
    int64_t best = 0, n = (int64_t)length;
    for (int k = 0; k < count; k++) {
        int64_t l = (int64_t)references[k].count, d = llabs(l - n), e = llabs(best - n);
        if (!k || d < e || (d == e && l < best)) best = l;
    }
    return best;
}
static int64_t ngram_count(Words w, size_t n) { return w.count >= n ? (int64_t)(w.count - n + 1) : 0; }

/* ---- SQuAD ------------------------------------------------------------------------------------------------------- */

static Words squad_words(const char *text) {
    Runes r = lower_runes_of(text);
    size_t n = 0;
    for (size_t i = 0; i < r.count; i++) if (!is_punctuation(r.at[i])) r.at[n++] = r.at[i];
    for (size_t i = 0; i < n; i++) {        /* \b(a|an|the)\b becomes a space */
        static const char *const articles[] = {"a", "an", "the"};
        for (int k = 0; k < 3 && (i == 0 || !is_word(r.at[i - 1])); k++) {
            size_t m = strlen(articles[k]), same = 0;
            while (same < m && i + same < n && r.at[i + same] == (uint32_t)articles[k][same]) same++;
            if (same == m && (i + m == n || !is_word(r.at[i + m]))) for (size_t j = 0; j < m; j++) r.at[i + j] = ' ';
        }
    }
    Words w = words_of(r.at, n);
    free(r.at);
    return w;
}
double score_exact_match(const char *answer, References r) {
    Words a = squad_words(answer);
    bool same = false;
    for (int k = 0; k < r.count && !same; k++) {
        Words b = squad_words(r.text[k]);
        same = a.count == b.count && !memcmp(a.at, b.at, a.count * sizeof *a.at);
        free(b.at);
    }
    free(a.at);
    return same;
}
double score_token_f1(const char *answer, References r) {
    Words a = squad_words(answer);
    double best = 0;
    for (int k = 0; k < r.count; k++) {
        Words b = squad_words(r.text[k]);
        double same = (double)ngram_matches(a, &b, 1, 1), sum = (double)(a.count + b.count);
        if (same > 0) best = fmax(best, 2 * same / sum);
        free(b.at);
    }
    free(a.at);
    return best;
}

/* ---- BLEU -------------------------------------------------------------------------------------------------------- */

static bool is_digit(uint32_t c) { return c >= '0' && c <= '9'; }
/* the ranges of sacrebleu/tokenizers/tokenizer_zh.py; its '\u20000' to '\u2a6d6' are strings of two characters each,
   and compare as the last line says ('\u2f800' to '\u2fa1d' too, within another range) */
static bool is_chinese(uint32_t c) {
    static const uint32_t ranges[][2] = {
        {0x3400, 0x4DB5}, {0x4E00, 0x9FBB}, {0xF900, 0xFA2D}, {0xFA30, 0xFA6A}, {0xFA70, 0xFAD9}, {0xFF00, 0xFFEF},
        {0x2E80, 0x2EFF}, {0x3000, 0x303F}, {0x31C0, 0x31EF}, {0x2F00, 0x2FDF}, {0x2FF0, 0x2FFF}, {0x3100, 0x312F},
        {0x31A0, 0x31BF}, {0xFE10, 0xFE1F}, {0xFE30, 0xFE4F}, {0x2600, 0x27BF}, {0x3200, 0x33FF}};
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) if (c >= ranges[i][0] && c <= ranges[i][1]) return true;
    return c >= 0x2001 && c <= 0x2A6D;
}

/* One pass over the text; out has room for three times its length. pass 0: mteval's punctuation stands alone; 1: .
   and , after what is no digit; 2: before it; 3: a dash after a digit. */
static size_t bleu_pass(uint32_t *out, const uint32_t *in, size_t n, int pass) {
    size_t m = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t c = in[i], next = i + 1 < n ? in[i + 1] : 0;
        bool pair = i + 1 < n, point = c == '.' || c == ',', point_next = next == '.' || next == ',';
        if (pass == 0 &&
            ((c >= '{' && c <= '~') || (c >= '[' && c <= '`') || (c >= ' ' && c <= '&') || (c >= '(' && c <= '+') ||
             (c >= ':' && c <= '@') || c == '/')) {
            out[m++] = ' ';
            out[m++] = c;
            out[m++] = ' ';
        } else if (pass == 1 && !is_digit(c) && point_next) {
            out[m++] = c;
            out[m++] = ' ';
            out[m++] = next;
            out[m++] = ' ';
            i++;
        } else if (pass == 2 && pair && point && !is_digit(next)) {
            out[m++] = ' ';
            out[m++] = c;
            out[m++] = ' ';
            out[m++] = next;
            i++;
        } else if (pass == 3 && is_digit(c) && next == '-') {
            out[m++] = c;
            out[m++] = ' ';
            out[m++] = next;
            out[m++] = ' ';
            i++;
        } else out[m++] = c;
    }
    return m;
}
static size_t replace_runes(uint32_t *at, size_t n, const char *from, const char *to) {
    size_t a = strlen(from), b = strlen(to), m = 0;
    for (size_t i = 0; i < n;) {
        size_t same = 0;
        while (same < a && i + same < n && at[i + same] == (uint8_t)from[same]) same++;
        if (same < a) { at[m++] = at[i++]; continue; }
        for (size_t k = 0; k < b; k++) at[m++] = (uint8_t)to[k];              /* never longer than `from` */
        i += a;
    }
    return m;
}
static Words bleu_words(const char *text, BleuTokenize how) {
    Runes r = runes_of(text);
    size_t begin = 0, n = r.count;
    while (n && is_space(r.at[n - 1])) n--;
    if (how == BLEU_NONE || how == BLEU_CHAR) {
        Words w = how == BLEU_NONE ? words_of(r.at, n) : characters_of(text);
        free(r.at);
        return w;
    }
    uint32_t *a = (uint32_t *)score_alloc(3 * n + 2, 4);
    size_t m = 0;
    if (how == BLEU_ZH) {
        while (begin < n && is_space(r.at[begin])) begin++;
        for (size_t i = begin; i < n; i++) {
            bool apart = is_chinese(r.at[i]);
            if (apart) a[m++] = ' ';
            a[m++] = r.at[i];
            if (apart) a[m++] = ' ';
        }
    } else {
        n = replace_runes(r.at, n, "<skipped>", "");
        n = replace_runes(r.at, n, "-\n", "");
        n = replace_runes(r.at, n, "\n", " ");
        n = replace_runes(r.at, n, "&quot;", "\"");
        n = replace_runes(r.at, n, "&amp;", "&");
        n = replace_runes(r.at, n, "&lt;", "<");
        n = replace_runes(r.at, n, "&gt;", ">");
        a[m++] = ' ';
        for (size_t i = 0; i < n; i++) a[m++] = r.at[i];
        a[m++] = ' ';
    }
    for (int pass = 0; pass < 4; pass++) {
        uint32_t *b = (uint32_t *)score_alloc(3 * m, 4);
        m = bleu_pass(b, a, m, pass);
        free(a);
        a = b;
    }
    Words w = words_of(a, m);
    free(a);
    free(r.at);
    return w;
}

static void words_free(Words *w, int count) {
    for (int k = 0; k < count; k++) free(w[k].at);
    free(w);
}
void bleu_add(Bleu *bleu, const char *answer, References r, BleuTokenize how) {
    Words a = bleu_words(answer, how), *b = (Words *)score_alloc((size_t)r.count, sizeof *b);
    for (int k = 0; k < r.count; k++) b[k] = bleu_words(r.text[k], how);
    bleu->answer_length += (int64_t)a.count;
    bleu->reference_length += nearest_length(b, r.count, a.count);
    for (size_t n = 1; n <= 4; n++) {
        bleu->match[n - 1] += ngram_matches(a, b, r.count, n);
        bleu->total[n - 1] += ngram_count(a, n);
    }
    free(a.at);
    words_free(b, r.count);
}
double bleu_score(const Bleu *b) {
    double log_sum = 0, smooth = 1;
    if (!b->match[0]) return 0;
    for (int n = 0; n < 4; n++) {
        if (!b->total[n]) return 0;
        if (!b->match[n]) smooth *= 2;
        log_sum += log(b->match[n] ? 100.0 * (double)b->match[n] / (double)b->total[n]
                                   : 100.0 / (smooth * (double)b->total[n]));
    }
    double brevity =
        b->answer_length < b->reference_length ? exp(1 - (double)b->reference_length / (double)b->answer_length) : 1;
    return brevity * exp(log_sum / 4);
}

/* ---- nltk's word_tokenize ---------------------------------------------------------------------------------------- */

/* A text is rewritten, rule after rule (nltk/tokenize/destructive.py), then cut at spaces. */

typedef struct RuneText { uint32_t *at; size_t count, room; } RuneText;
static void rune_put(RuneText *t, uint32_t c) {
    if (t->count == t->room) {
        uint32_t *more = (uint32_t *)score_alloc(2 * t->room + 64, 4);
        if (t->count) memcpy(more, t->at, t->count * 4);
        free(t->at);
        t->at = more;
        t->room = 2 * t->room + 64;
    }
    t->at[t->count++] = c;
}
static void rune_text(RuneText *t, const char *s) { while (*s) rune_put(t, (uint8_t)*s++); }
/* Does the text have s at i, in small letters or any? */
static bool rune_has(const RuneText *t, size_t i, const char *s, bool any_case) {
    for (size_t k = 0; s[k]; k++) {
        uint32_t c = i + k < t->count ? t->at[i + k] : 0;
        if (any_case && c >= 'A' && c <= 'Z') c += 32;
        if (c != (uint8_t)s[k]) return false;
    }
    return true;
}
static bool rune_in(uint32_t c, const char *set) { return c && c < 128 && strchr(set, (int)c); }
static bool is_closing(uint32_t c) { return rune_in(c, "])}>\"'") || c == 0xBB || c == 0x201D || c == 0x2019; }
static bool rune_word(const RuneText *t, size_t i) { return i < t->count && is_word(t->at[i]); }

/* The rules that look at single characters and their neighbours; each is one pass. Returns how many characters at i are
   rewritten into out; 0: none, the character is copied. end: where white space at the end begins. */
typedef size_t WordRule(RuneText *out, const RuneText *t, size_t i, size_t end);
static size_t spaced(RuneText *out, const RuneText *t, size_t i, size_t n) {
    rune_put(out, ' ');
    for (size_t k = 0; k < n; k++) rune_put(out, t->at[i + k]);
    rune_put(out, ' ');
    return n;
}
static size_t rule_opening(RuneText *out, const RuneText *t, size_t i, size_t end) {
    uint32_t c = t->at[i];
    (void)end;
    if (rune_has(t, i, "``", false)) return spaced(out, t, i, 2);       /* of a run's, two by two */
    return c == '`' || c == 0xAB || c == 0x201C || c == 0x2018 || c == 0x201E ? spaced(out, t, i, 1) : 0;
}
static size_t rule_first_quote(RuneText *out, const RuneText *t, size_t i, size_t end) {
    (void)end;
    if (i || t->at[0] != '"') return 0;
    rune_text(out, " `` ");
    return 1;
}
static size_t rule_quote_behind(RuneText *out, const RuneText *t, size_t i, size_t end) {
    (void)end;
    size_t n = i + 1 < t->count && t->at[i + 1] == '"' ? 2 : rune_has(t, i + 1, "''", false) ? 3 : 0;
    if (!n || !rune_in(t->at[i], " ([{<")) return 0;
    rune_put(out, t->at[i]);
    rune_text(out, " `` ");
    return n;
}
static size_t rule_apostrophe(RuneText *out, const RuneText *t, size_t i, size_t end) {
    static const char *const kept[] = {"re", "ve", "ll", "m", "t", "s", "d", "n"};
    (void)end;
    if (t->at[i] != '\'' || (i && is_word(t->at[i - 1])) || !rune_word(t, i + 1)) return 0;
    for (int k = 0; k < 8; k++)
        if (rune_has(t, i + 1, kept[k], true) && !rune_word(t, i + 1 + strlen(kept[k]))) return 0;
    rune_text(out, "' ");
    return 1;
}
static size_t rule_last_point(RuneText *out, const RuneText *t, size_t i, size_t end) {
    size_t k = i + 2;
    if (t->at[i] == '.' || i + 1 >= t->count || t->at[i + 1] != '.') return 0;
    while (k < end && (is_closing(t->at[k]) || t->at[k] == ' ')) k++;
    if (k < end) return 0;
    rune_put(out, t->at[i]);
    spaced(out, t, i + 1, 1);
    return 2;
}
static size_t rule_comma(RuneText *out, const RuneText *t, size_t i, size_t end) {
    if (t->at[i] != ':' && t->at[i] != ',') return 0;
    (void)end;
    if (i + 1 == t->count) return spaced(out, t, i, 1);
    if (is_digit(t->at[i + 1])) return 0;
    spaced(out, t, i, 1);
    rune_put(out, t->at[i + 1]);
    return 2;
}
static size_t rule_points(RuneText *out, const RuneText *t, size_t i, size_t end) {
    size_t n = 0;
    (void)end;
    while (i + n < t->count && t->at[i + n] == '.') n++;
    return n > 1 ? spaced(out, t, i, n) : 0;
}
static size_t rule_signs(RuneText *out, const RuneText *t, size_t i, size_t end) {
    (void)end;
    if (rune_has(t, i, "--", false)) return spaced(out, t, i, 2);
    return rune_in(t->at[i], ";@#$%&?!*[](){}<>") || (t->at[i] >= 0x2012 && t->at[i] <= 0x2015) ? spaced(out, t, i, 1)
        : 0;
}
static size_t rule_apostrophe_space(RuneText *out, const RuneText *t, size_t i, size_t end) {
    (void)end;
    if (t->at[i] == '\'' || !rune_has(t, i + 1, "' ", false)) return 0;
    rune_put(out, t->at[i]);
    rune_text(out, " ' ");
    return 3;
}
static size_t rule_closing(RuneText *out, const RuneText *t, size_t i, size_t end) {
    (void)end;
    if (t->at[i] == 0xBB || t->at[i] == 0x201D || t->at[i] == 0x2019) return spaced(out, t, i, 1);
    if (rune_has(t, i, "''", false)) { rune_text(out, " '' "); return 2; }
    if (t->at[i] == '"') { rune_text(out, " '' "); return 1; }
    return 0;
}
static size_t rule_one_space(RuneText *out, const RuneText *t, size_t i, size_t end) {
    size_t n = 0;
    (void)end;
    while (i + n < t->count && is_space(t->at[i + n])) n++;
    if (n) rune_put(out, ' ');
    return n;
}
/* A character that is neither ' nor space, then one of the endings, then a space. */
static size_t ending(RuneText *out, const RuneText *t, size_t i, const char *const *endings, int count) {
    if (t->at[i] == '\'' || t->at[i] == ' ') return 0;
    for (int k = 0; k < count; k++) {
        size_t n = strlen(endings[k]);
        if (!rune_has(t, i + 1, endings[k], false) || i + 1 + n >= t->count || t->at[i + 1 + n] != ' ') continue;
        rune_put(out, t->at[i]);
        spaced(out, t, i + 1, n);
        return n + 2;
    }
    return 0;
}
static size_t rule_short_endings(RuneText *out, const RuneText *t, size_t i, size_t end) {
    static const char *const list[] = {"'s", "'S", "'m", "'M", "'d", "'D", "'"};
    (void)end;
    return ending(out, t, i, list, 7);
}
static size_t rule_long_endings(RuneText *out, const RuneText *t, size_t i, size_t end) {
    static const char *const list[] = {"'ll", "'LL", "'re", "'RE", "'ve", "'VE", "n't", "N'T"};
    (void)end;
    return ending(out, t, i, list, 8);
}
/* nltk lists 'tis and 'twas too; rule_apostrophe has cut off their apostrophe before. */
static size_t rule_contractions(RuneText *out, const RuneText *t, size_t i, size_t end) {
    static const struct { const char *a, *b; } list[] = {{"can", "not"}, {"d", "'ye"}, {"gim", "me"}, {"gon", "na"},
                                                         {"got", "ta"}, {"lem", "me"}, {"more", "'n"}, {"wan", "na"}};
    (void)end;
    for (int k = 0; k < 8; k++) {
        size_t n = strlen(list[k].a), m = strlen(list[k].b);
        if (!rune_has(t, i, list[k].a, true) || !rune_has(t, i + n, list[k].b, true) || rune_word(t, i + n + m))
            continue;
        if ((i && is_word(t->at[i - 1])) || (k == 7 && !(i + n + m < t->count && is_space(t->at[i + n + m]))))
            continue;
        rune_put(out, ' ');
        for (size_t j = 0; j < n; j++) rune_put(out, t->at[i + j]);
        spaced(out, t, i + n, m);
        return n + m;
    }
    return 0;
}

static void sentence_words(RuneText *out, const uint32_t *at, size_t n) {
    static WordRule *const rules[] = {rule_opening, rule_first_quote, rule_quote_behind, rule_apostrophe,
                                      rule_last_point, rule_comma,
        rule_points, rule_signs, rule_apostrophe_space, NULL, rule_closing, rule_one_space, rule_short_endings,
            rule_long_endings,
        rule_contractions};
    RuneText t = {NULL, 0, 0};
    for (size_t i = 0; i < n; i++) rune_put(&t, at[i]);
    for (size_t k = 0; k < sizeof rules / sizeof *rules; k++) {
        RuneText next = {NULL, 0, 0};
        size_t end = t.count, used;
        while (end && is_space(t.at[end - 1])) end--;
        for (size_t i = 0; i < t.count; i += used)
            if (!(used = rules[k] ? rules[k](&next, &t, i, end) : 0)) { rune_put(&next, t.at[i]); used = 1; }
        if (!rules[k]) rune_put(&next, ' ');    /* NULL: a space at the end; nltk's one in front changes no word */
        free(t.at);
        t = next;
    }
    for (size_t i = 0; i < t.count; i++) rune_put(out, t.at[i]);
    rune_put(out, ' ');
    free(t.at);
}
/* Does a sentence end before i, where white space begins? */
static bool sentence_ends(const Runes *r, size_t i) {
    static const char *const titles[] = {"mr", "mrs", "ms", "dr", "prof", "st", "vs", "jr", "sr"};
    size_t next = i, stop = i, begin;
    while (next < r->count && is_space(r->at[next])) next++;
    while (stop && is_closing(r->at[stop - 1])) stop--;
    if (next == r->count || (r->at[next] >= 'a' && r->at[next] <= 'z') || !stop || !rune_in(r->at[stop - 1], ".?!"))
        return false;
    if (r->at[stop - 1] != '.') return true;
    for (begin = stop - 1; begin && is_word(r->at[begin - 1]); begin--) {}
    RuneText word = {r->at + begin, stop - 1 - begin, 0};
    if (word.count == 1 && !is_digit(*word.at)) return false;
    for (int k = 0; k < 9; k++)
        if (word.count == strlen(titles[k]) && rune_has(&word, 0, titles[k], true)) return false;
    return true;
}
static Words treebank_words(const char *text) {
    Runes r = runes_of(text);
    RuneText all = {NULL, 0, 0};
    size_t begin = 0;
    for (size_t i = 0; i <= r.count; i++) {
        if (i < r.count && !(is_space(r.at[i]) && i > begin && sentence_ends(&r, i))) continue;
        sentence_words(&all, r.at + begin, i - begin);
        begin = i;
        while (begin < r.count && is_space(r.at[begin])) begin++;
        if (i < begin) i = begin - 1;
    }
    Words w = words_of(all.at, all.count);
    free(all.at);
    free(r.at);
    return w;
}

static Words pieces_of(const char *text, Pieces how) {
    if (how == PIECES_CHARACTERS) return characters_of(text);
    if (how == PIECES_WORDS) return treebank_words(text);
    Runes r = runes_of(text);
    Words w = words_of(r.at, r.count);
    free(r.at);
    return w;
}
double score_sentence_bleu(const char *answer, References r, Pieces how) {
    Words a = pieces_of(answer, how), *b = (Words *)score_alloc((size_t)r.count, sizeof *b);
    for (int k = 0; k < r.count; k++) b[k] = pieces_of(r.text[k], how);
    double length = (double)a.count, log_sum = 0, power = 1;
    int64_t first = ngram_matches(a, b, r.count, 1), nearest = nearest_length(b, r.count, a.count);
    for (size_t n = 1; n <= 4 && first; n++) {
        double match = (double)ngram_matches(a, b, r.count, n),
            total = (double)(ngram_count(a, n) ? ngram_count(a, n) : 1);
        if (match == 0 && a.count > 1) { power *= 2; match = log(length) / (5 * power); }
        if (match > 0) log_sum += log(match / total) / 4;
    }
    double brevity = (int64_t)a.count > nearest ? 1 : exp(1 - (double)nearest / length);   /* a word: length > 0 */
    free(a.at);
    words_free(b, r.count);
    return first ? brevity * exp(log_sum) : 0;
}

/* ---- chrF -------------------------------------------------------------------------------------------------------- */

void chrf_add(Chrf *c, const char *answer, References r) {
    Words a = characters_of(answer);
    Chrf best, one;
    double score = -1;
    memset(&best, 0, sizeof best);
    for (int k = 0; k < r.count; k++) {
        Words b = characters_of(r.text[k]);
        for (size_t n = 1; n <= 6; n++) {
            /* an order that the reference does not have is not held against the answer */
            one.answer[n - 1] = ngram_count(b, n) ? ngram_count(a, n) : 0;
            one.reference[n - 1] = ngram_count(b, n);
            one.match[n - 1] = ngram_matches(a, &b, 1, n);
        }
        if (chrf_score(&one) > score) { best = one; score = chrf_score(&one); }
        free(b.at);
    }
    for (int n = 0; n < 6; n++) {
        c->answer[n] += best.answer[n];
        c->reference[n] += best.reference[n];
        c->match[n] += best.match[n];
    }
    free(a.at);
}
double chrf_score(const Chrf *c) {
    double precision = 0, recall = 0;
    int orders = 0;
    for (int n = 0; n < 6; n++) {
        if (!c->answer[n] || !c->reference[n]) continue;
        precision += (double)c->match[n] / (double)c->answer[n];
        recall += (double)c->match[n] / (double)c->reference[n];
        orders++;
    }
    if (!orders || precision + recall == 0) return 0;
    precision /= orders;
    recall /= orders;
    return 100 * 5 * precision * recall / (4 * precision + recall);
}

/* ---- ROUGE-L ----------------------------------------------------------------------------------------------------- */

static Words rouge_words(const char *text) {
    Runes r = lower_runes_of(text);
    for (size_t i = 0; i < r.count; i++) {
        uint32_t c = r.at[i];
        r.at[i] = is_digit(c) || (c >= 'a' && c <= 'z') ? c : ' ';
    }
    Words w = words_of(r.at, r.count);
    free(r.at);
    return w;
}
/* F of the longest common subsequence of a and b. */
static double rouge_l(Words a, Words b) {
    size_t *row = (size_t *)score_alloc(b.count + 1, sizeof *row);     /* row[j]: of the first i of a, j of b */
    for (size_t i = 0; i < a.count; i++) {
        size_t diagonal = 0;
        for (size_t j = 1; j <= b.count; j++) {
            size_t above = row[j];
            row[j] = a.at[i] == b.at[j - 1] ? diagonal + 1 : above > row[j - 1] ? above : row[j - 1];
            diagonal = above;
        }
    }
    double common = (double)row[b.count], sum = (double)(a.count + b.count);
    free(row);
    return common > 0 ? 2 * common / sum : 0;
}
double score_rouge_l(const char *answer, References r, bool characters) {
    Words a = characters ? characters_of(answer) : rouge_words(answer);
    double best = 0;
    for (int k = 0; k < r.count; k++) {
        Words b = characters ? characters_of(r.text[k]) : rouge_words(r.text[k]);
        best = fmax(best, rouge_l(a, b));
        free(b.at);
    }
    free(a.at);
    return best;
}

int score_words(const char *text) {
    Runes r = runes_of(text);
    Words w = words_of(r.at, r.count);
    int n = (int)w.count;
    free(r.at);
    free(w.at);
    return n;
}
int score_characters(const char *text) {
    Runes r = runes_of(text);
    free(r.at);
    return (int)r.count;
}

/* ---- labels ------------------------------------------------------------------------------------------------------ */

/* Lower case, without white space and punctuation at either end; *count gets its length. */
static Runes label_form(const char *text) {
    Runes r = lower_runes_of(text);
    size_t begin = 0;
    while (r.count && !is_word(r.at[r.count - 1])) r.count--;
    while (begin < r.count && !is_word(r.at[begin])) begin++;
    for (size_t i = begin; i < r.count; i++) r.at[i - begin] = r.at[i];
    r.count -= begin;
    return r;
}
int score_label(const char *answer, const char *const *labels, int count) {
    Runes a = label_form(answer);
    int found = -1, hits = 0, equal = -1;
    for (int k = 0; k < count && equal < 0; k++) {
        Runes l = label_form(labels[k]);
        bool inside = false;
        if (l.count && l.count == a.count && !memcmp(l.at, a.at, l.count * 4)) equal = k;
        for (size_t i = 0; l.count && i + l.count <= a.count && !inside; i++)
            inside = !memcmp(a.at + i, l.at, l.count * 4) && (i == 0 || !is_word(a.at[i - 1])) &&
                (i + l.count == a.count || !is_word(a.at[i + l.count]));
        if (inside) { found = k; hits++; }
        free(l.at);
    }
    free(a.at);
    return equal >= 0 ? equal : hits == 1 ? found : -1;
}

#endif /* SCORE_IMPLEMENTATION */
