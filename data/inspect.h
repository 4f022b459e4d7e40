/* inspect.h - what a model is going to learn, token by token: colour (or brackets) says which tokens are in the loss,
   the table under them what became of the file. Plain C, part of train_lora.cu: uses tokenizer.h and data/dataset.h.

       inspect_print(tokenizer, &dataset, 3, true);        // the first three examples, in colour

   Also the one place where text that is not ours becomes something to show: text_add_shown. */
#ifndef INSPECT_H
#define INSPECT_H

#include <sys/ioctl.h>

/* Terminal columns of a character: 0 combining, 2 East Asian and emoji, else 1. Only line breaking depends on it. */
static int shown_width(uint32_t c) {
    static const uint32_t wide[][2] = {
        {0x1100, 0x115F}, {0x2E80, 0xA4CF}, {0xAC00, 0xD7A3}, {0xF900, 0xFAFF}, {0xFE30, 0xFE6F},
        {0xFF00, 0xFF60}, {0xFFE0, 0xFFE6}, {0x1F300, 0x1FAFF}, {0x20000, 0x3FFFD}};
    if ((c >= 0x300 && c <= 0x36F) || (c >= 0x200B && c <= 0x200D) || (c >= 0xFE00 && c <= 0xFE0F)) return 0;
    for (size_t i = 0; i < sizeof wide / sizeof *wide; i++) if (c >= wide[i][0] && c <= wide[i][1]) return 2;
    return 1;
}
/* The one place where text that is not ours becomes something to show: what drives a terminal, and pieces of a
   character, are spelled out. lines: newlines and tabs stay; else they get a mark. Returns the columns. */
static int text_add_shown(Text *t, const char *s, size_t n, bool lines) {
    int columns = 0;
    for (size_t i = 0, bytes; i < n; i += bytes) {
        uint32_t c = 0;
        char spelled[16] = "";
        int length = utf8_get(s + i, n - i, &c);
        bytes = length > 0 ? (size_t)length : 1;
        if (length <= 0) snprintf(spelled, sizeof spelled, "<0x%02X>", (unsigned)(uint8_t)s[i]);
        else if (!utf8_drives_terminal(c) || (lines && (c == '\n' || c == '\t'))) columns += shown_width(c);
        else if (c == '\n') { text_print(t, "\xE2\x8F\x8E"); columns++; continue; }
        else if (c == '\t') { text_print(t, "\xE2\x87\xA5"); columns++; continue; }
        else snprintf(spelled, sizeof spelled, c < 128 ? "<0x%02X>" : "<U+%04X>", c);
        columns += (int)strlen(spelled);
        if (spelled[0]) text_print(t, "%s", spelled);
        else text_print(t, "%.*s", (int)bytes, s + i);
    }
    return columns;
}

/* The bytes of one token, at most room of them. The vocabulary spells bytes in two ways: GPT-2's alphabet (every byte
   is a printable letter, a space is U+0120) or SentencePiece's (a space is U+2581, a lone byte is <0xE4>). Added tokens
   are spelled as they are. */
static size_t inspect_bytes(char *out, size_t room, const Tokenizer *t, int32_t id, bool byte_level) {
    const char *s = tokenizer_token(t, id);
    size_t n = s ? strlen(s) : 0, k = 0;
    bool literal = tokenizer_is_special(t, id);
    if (!s) return (size_t)snprintf(out, room, "<id %d>", id);
    unsigned lone;
    if (!byte_level && n == 6 && sscanf(s, "<0x%2X>", &lone) == 1) { out[0] = (char)lone; return 1; }
    for (size_t i = 0; i < n && k + 4 < room;) {
        uint32_t cp = 0;
        int len = utf8_get(s + i, n - i, &cp);
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

/* Does s[n] end in the middle of a character? */
static bool inspect_cut(const char *s, size_t n) {
    size_t back = 0;
    while (back < 3 && back < n && (s[n - 1 - back] & 0xC0) == 0x80) back++;
    unsigned char lead = n > back ? (unsigned char)s[n - 1 - back] : 0;
    size_t whole = lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
    return back + 1 < whole;
}

/* How what is in the loss, and what is not, begins and ends: in colour, or in signs. */
typedef struct Paint { bool colour; const char *learned, *masked, *special, *special_masked; } Paint;
static const char *paint_end(const Paint *p, bool learned, bool special) {
    if (p->colour) return "\033[0m";
    return special ? learned ? "\xC2\xBB]" : "\xC2\xBB" : learned ? "]" : "";
}

/* A line of shown tokens, and its columns on a terminal. */
typedef struct InspectLine { Text text; int columns; } InspectLine;

/* Is token i in the loss? pooled: the one that stands for its row, or SIZE_MAX. */
static bool inspect_learned(const SlotIterator *e, size_t i, size_t pooled) {
    return i == pooled || (i > 0 && e->labels[i] != DATA_IGNORE);
}
/* The tokens of an example as lines no longer than width, an stb_ds array; lines_free. */
static InspectLine *inspect_lines(const Tokenizer *t, const SlotIterator *e, size_t pooled, const Paint *paint,
                                  int width, bool byte_level) {
    const int32_t *ids = e->ids;
    InspectLine *lines = NULL, empty = {TEXT_EMPTY, 0};
    Text text = TEXT_EMPTY;
    arrput(lines, empty);
    for (size_t i = 0; i < e->count; i++) {
        char bytes[1024];
        bool learned = inspect_learned(e, i, pooled), special = tokenizer_is_special(t, ids[i]);
        size_t count = inspect_bytes(bytes, sizeof bytes, t, ids[i], byte_level), more;
        /* A character whose bytes are several tokens is shown whole, with those tokens as one. */
        for (; !special && i + 1 < e->count && inspect_cut(bytes, count); i++, count += more) {
            if (learned != inspect_learned(e, i + 1, pooled) || tokenizer_is_special(t, ids[i + 1])) break;
            more = inspect_bytes(bytes + count, sizeof bytes - count, t, ids[i + 1], byte_level);
            if (!more || (bytes[count] & 0xC0) != 0x80) break;
        }
        bool newline = count && bytes[count - 1] == '\n';
        text_cut(&text, 0);
        int wide = text_add_shown(&text, bytes, count, false) + (paint->colour ? 0 : 2 * learned + 2 * special);
        if (arrlast(lines).columns && arrlast(lines).columns + wide > width) arrput(lines, empty);
        text_print(&arrlast(lines).text, "%s%s%s",
                   special ? learned ? paint->special : paint->special_masked
                           : learned ? paint->learned : paint->masked,
                   text.at ? text.at : "", paint_end(paint, learned, special));
        arrlast(lines).columns += wide;
        if (newline && i + 1 < e->count) arrput(lines, empty);
    }
    text_free(&text);
    return lines;
}
static void inspect_lines_free(InspectLine *lines) {
    for (ptrdiff_t i = 0; i < arrlen(lines); i++) text_free(&lines[i].text);
    arrfree(lines);
}

/* What a row is, in words: its class, its classes or its number. */
static void inspect_target(Text *t, const Dataset *d, const float *target) {
    bool first = true;
    if (d->problem == PROBLEM_REGRESSION) text_print(t, "%g", (double)*target);
    for (int k = 0; k < d->label_count; k++) {
        bool is = d->problem == PROBLEM_SINGLE_LABEL ? (int)*target == k : target[k] != 0;
        if (!is) continue;
        if (!first) text_print(t, ", ");
        text_add_shown(t, d->label_names[k], strlen(d->label_names[k]), false);
        first = false;
    }
    if (first && d->label_count) text_print(t, "none");
}

/* Example `number`, its lines no longer than width. */
static void inspect_example(const Tokenizer *t, const Dataset *d, size_t number, const Paint *paint, int width,
                            bool byte_level) {
    Dataset unpacked = *d;                  /* in the file's order: a slot is an example */
    unpacked.slot = NULL;
    unpacked.slot_offset = NULL;
    SlotIterator e = slot_begin(&unpacked, number);
    slot_next(&e);
    size_t in_loss = 0, pooled = e.target ? batch_pooled(e.ids, e.count, d->pad_token_id) : SIZE_MAX;
    for (size_t i = 1; i < e.count; i++) in_loss += e.labels[i] != DATA_IGNORE;
    printf("\nrow %lld: %zu tokens, ", (long long)d->row[e.example], e.count);
    if (e.target) {
        Text is = TEXT_EMPTY;
        inspect_target(&is, d, e.target);
        printf("token %zu is pooled, label %s\n", pooled + 1, is.at);
        text_free(&is);
    } else printf("%zu in the loss\n", in_loss);
    InspectLine *lines = inspect_lines(t, &e, pooled, paint, width - 2, byte_level);
    for (ptrdiff_t i = 0; i < arrlen(lines); i++) printf("  %s\n", lines[i].text.at ? lines[i].text.at : "");
    inspect_lines_free(lines);
}

/* The two answers of a pair beside each other. */
static void inspect_pair(const Tokenizer *t, const Dataset *d, size_t slot, const Paint *paint, int width,
                         bool byte_level) {
    static const char *const name[2] = {"chosen", "rejected"};
    InspectLine *lines[2];
    SlotIterator e = slot_begin(d, slot);
    int half = (width - 5) / 2;             /* "  chosen | rejected" */
    for (int k = 0; k < 2 && slot_next(&e); k++) {
        size_t pooled = batch_pooled(e.ids, e.count, d->pad_token_id);
        lines[k] = inspect_lines(t, &e, pooled, paint, half, byte_level);
        if (!k) printf("\nrow %lld, margin %g\n", (long long)d->row[e.example], (double)*e.target);
        int shown = printf("%s%s: %zu tokens, token %zu is pooled", k ? " | " : "  ", name[k], e.count, pooled + 1);
        printf("%*s", k ? 0 : half + 2 - shown, "");
    }
    printf("\n");
    for (ptrdiff_t i = 0; i < arrlen(lines[0]) || i < arrlen(lines[1]); i++) {
        const InspectLine empty = {TEXT_EMPTY, 0}, *left = i < arrlen(lines[0]) ? &lines[0][i] : &empty;
        const InspectLine *right = i < arrlen(lines[1]) ? &lines[1][i] : &empty;
        printf("  %s%*s | %s\n", left->text.at ? left->text.at : "", left->columns < half ? half - left->columns : 0,
               "", right->text.at ? right->text.at : "");
    }
    for (int k = 0; k < 2; k++) inspect_lines_free(lines[k]);
}

/* The classes and the share of each, in a line: "no 72.0 %, yes 28.0 %"; numbers: where they lie. Nothing for language
   modelling. True: imbalanced, a class has less than half of the rows that the largest has. */
static bool inspect_labels(Text *t, const Dataset *d) {
    enum { SHOWN = 20 };
    int64_t most = 0, least = INT64_MAX, rows = 0;
    if (d->problem == PROBLEM_REGRESSION && d->slots) {
        double sum = 0, squares = 0, low = INFINITY, high = -INFINITY, n = 0;
        for (size_t i = 0; i < d->slots; i++)
            for (SlotIterator e = slot_begin(d, i); slot_next(&e);) {
                double v = (double)*e.target;
                sum += v; squares += v * v; n++;
                low = v < low ? v : low;
                high = v > high ? v : high;
            }
        double spread = squares / n - sum / n * (sum / n);
        text_print(t, "numbers from %g to %g, mean %.4g, standard deviation %.4g", low, high, sum / n,
                   sqrt(spread > 0 ? spread : 0));
    }
    for (size_t i = 0; i < d->slots && d->label_count; i++)
        rows += d->slot ? (int64_t)(d->slot_offset[i + 1] - d->slot_offset[i]) : 1;
    for (int k = 0; k < d->label_count; k++) {
        int64_t n = d->label_rows[k];
        most = n > most ? n : most;
        least = n < least ? n : least;
        if (k >= SHOWN) continue;
        if (k) text_print(t, ", ");
        text_add_shown(t, d->label_names[k], strlen(d->label_names[k]), false);
        text_print(t, " %.1f %%", rows ? 100.0 * (double)n / (double)rows : 0.0);
    }
    if (d->label_count > SHOWN)
        text_print(t, " and %d more, all between %lld and %lld rows", d->label_count - SHOWN, (long long)least,
                   (long long)most);
    if (d->problem == PROBLEM_MULTI_LABEL) text_print(t, " (multi-label)");
    bool imbalanced = d->problem == PROBLEM_SINGLE_LABEL && 2 * least < most;
    if (imbalanced) text_print(t, "; imbalanced");
    return imbalanced;
}

/* What became of the file, and what of it should make one wonder. */
static void inspect_totals(const Dataset *d) {
    const DataStats *s = &d->stats;
    size_t n = d->count, *length = (size_t *)malloc((n ? n : 1) * sizeof *length);
    static const char *const dropped[TASK_COUNT] = {"no token in the loss", "no token", "pairs beyond --max-length"};
    printf("\n  rows               %12lld\n  examples           %12zu\n", (long long)s->rows, n);
    printf("  dropped            %12lld   %s\n", (long long)s->dropped, dropped[d->task]);
    printf("  truncated          %12lld   cut at --max-length\n", (long long)s->truncated);
    printf("  tokens             %12lld\n", (long long)s->tokens);
    if (!d->target)
        printf("  in the loss        %12lld   %.1f %%\n", (long long)s->labelled,
               s->tokens ? 100.0 * (double)s->labelled / (double)s->tokens : 0.0);
    printf("  longest            %12lld tokens\n", (long long)s->longest);
    if (length && n) {
        for (size_t i = 0; i < n; i++) length[i] = d->offset[i + 1] - d->offset[i];
        qsort(length, n, sizeof *length, inspect_compare);
        printf("  length             %12zu median, %zu at 90 %%, %zu at 99 %%, %zu shortest\n",
               length[(n - 1) / 2], length[(n - 1) * 90 / 100], length[(n - 1) * 99 / 100], length[0]);
    }
    free(length);
    if (d->slot && d->task != TASK_REWARD)
        printf("  packed into        %12zu slots, %.1f examples in each\n", d->slots, (double)n / (double)d->slots);
    if (!d->target) printf("  stop token trained %12lld of %zu\n", (long long)s->stop_trained, n);
    printf("  double BOS         %12lld of %zu\n", (long long)s->double_bos, n);
    Text labels = TEXT_EMPTY;
    inspect_labels(&labels, d);
    if (labels.at) printf("  labels             %12d   %s\n", d->label_count, labels.at);
    text_free(&labels);
    if (!d->target && !s->stop_trained)
        printf("warning: no example ends its loss with a stop token; the tuned model will not know when to stop; "
               "check the chat template, the tokenizer's eos_token, and --max-length\n");
    else if (!d->target && s->stop_trained < (int64_t)n)
        printf("note: %lld of %zu examples do not end with a stop token (cut at --max-length, or other text follows)\n",
               (long long)((int64_t)n - s->stop_trained), n);
    if (s->double_bos)
        printf("warning: %lld examples begin with two BOS tokens; the data brings its own and the tokenizer adds one; "
               "take it out of the data\n", (long long)s->double_bos);
}

/* Prints the first `examples` examples, or pairs, and the totals. */
static void inspect_print(const Tokenizer *t, const Dataset *d, int examples, bool colour) {
    static const Paint colours = {true, "\033[1;30;42m", "\033[2m", "\033[1;37;45m", "\033[2;35m"};
    static const Paint signs = {false, "[", "", "[\xC2\xAB", "\xC2\xAB"};
    const Paint *p = colour ? &colours : &signs;
    int width = inspect_columns();
    /* U+0120 is the space of GPT-2's alphabet */
    bool byte_level = tokenizer_id(t, "\xC4\xA0") >= 0 && tokenizer_id(t, "<0x0A>") < 0;
    size_t show = examples > 0 ? (size_t)examples : 0, there = d->task == TASK_REWARD ? d->slots : d->count;
    const char *in = d->target ? "pooled: it stands for all" : "in the loss";
    const char *out = d->target ? "" : " not in the loss";
    if (show > there) show = there;
    if (show)
        printf("%stoken%s %s   %stoken%s%s   %sspecial%s   \xE2\x8F\x8E newline\n", p->learned,
               paint_end(p, true, false), in, p->masked, paint_end(p, false, false), out, p->special_masked,
               paint_end(p, false, true));
    for (size_t i = 0; i < show; i++) {
        if (d->task == TASK_REWARD) inspect_pair(t, d, i, p, width, byte_level);
        else inspect_example(t, d, i, p, width, byte_level);
    }
    inspect_totals(d);
}

#endif /* INSPECT_H */
