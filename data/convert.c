/* convert.c - published data sets become the rows that `train_lora train --data` reads.

     make data/convert
     data/convert dstc11 logs.json labels.json --output dialogues.jsonl --split eval=0.1
     data/convert --help

   Contents: settings and errors, text, a conversation and how it is written, rows with a label, reading rows, one
   function per format, choosing, writing, command line.
   --split and --sample follow from the content of a row and --seed, not from its place. Crowd and forum dialogues
   lose white space around their turns; all other text stays byte for byte.
   Texts live until the program ends: it takes a few times the memory of its input. */
#define TOKENIZER_IMPLEMENTATION
#include "tokenizer.h"
#include <ctype.h>
#include <limits.h>
#include <math.h>
#include <unistd.h>

#define STBDS_REALLOC(context, p, bytes) must_realloc(p, bytes)
#define STBDS_FREE(context, p) free(p)
#define STB_DS_IMPLEMENTATION
#include <stb/stb_ds.h>

/* ---- settings and errors ----------------------------------------------------------------------------------------- */

static struct {
    const char *output, *shape, *system, *split, *classes, *imbalance, **against /* stb_ds */;
    bool with_knowledge, labels, each_reply, dedup, strict, help;
    uint64_t sample, max_examples, seed;    /* UINT64_MAX: all */
} o = {.shape = "messages", .sample = UINT64_MAX, .max_examples = UINT64_MAX, .seed = 42};

static char **temporaries;                  /* stb_ds; half-written files, removed whatever way the program ends */
static void remove_temporaries(void) { for (ptrdiff_t i = 0; i < arrlen(temporaries); i++) unlink(temporaries[i]); }

/* a message may quote anything */
static void one_line(char *s) { for (; *s; s++) if ((unsigned char)*s < ' ' || *s == 127) *s = '?'; }
__attribute__((format(printf, 2, 3), noreturn)) static void die(int status, const char *format, ...) {
    char text[2048];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    one_line(text);
    fprintf(stderr, "error: %s\n", text);
    exit(status);
}

/* ---- text -------------------------------------------------------------------------------------------------------- */

typedef struct Str { const char *s; size_t n; } Str;         /* may hold NUL bytes; s NULL: none */
static char **texts;                                         /* stb_ds; owns every text that is not in the input */

static Str str(const char *s) { return (Str){s, strlen(s)}; }
static void put(Text *out, Str t) { text_bytes(out, t.s, t.n); }
static void put_char(Text *out, char c) { text_bytes(out, &c, 1); }
static Str take(Text *out) {                /* what was put there so far, now a text of its own */
    put(out, str(""));
    Str t = {must_realloc(out->at, out->length + 1), out->length};
    arrput(texts, (char *)t.s);
    *out = (Text)TEXT_EMPTY;
    return t;
}
static Str join(Str a, const char *between, Str b) {
    Text out = TEXT_EMPTY;
    put(&out, a); put(&out, str(between)); put(&out, b);
    return take(&out);
}
static bool same(Str a, Str b) { return a.n == b.n && (!a.n || !memcmp(a.s, b.s, a.n)); }
static bool space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
static Str trim(Str t) {
    while (t.n && space(*t.s)) { t.s++; t.n--; }
    while (t.n && space(t.s[t.n - 1])) t.n--;
    return t;
}

static void put_json(Text *out, Str t) { text_json_dumps(out, t.s, t.n); }

/* What two prompts share that count as the same: small letters (Latin, Greek, Cyrillic), one space for white space,
   and no "User:" and "Assistant:" at the start
   of a line, so that both shapes of a conversation agree. "User:  Hello\tTHERE \n" -> "hello there". */
static Str normalised(Str t) {
    static const char *const labels[] = {"User:", "Assistant:"};
    Text out = TEXT_EMPTY;
    char four[4];
    bool line = true, gap = false;
    for (size_t i = 0; i < t.n;) {
        uint32_t c;
        for (int k = 0; line && k < 2; k++) {
            size_t n = strlen(labels[k]);
            if (t.n - i >= n && !memcmp(t.s + i, labels[k], n)) { i += n; line = false; }
        }
        if (i == t.n) break;
        i += (size_t)utf8_next(t.s + i, &c);
        line = c == '\n';
        if (!c || c == ' ' || (c >= '\t' && c <= '\r') || c == 0xA0 || c == 0x3000 || (c >= 0x2000 && c <= 0x200A)) {
            gap = true;
            continue;
        }
        if ((c >= 'A' && c <= 'Z') || (c >= 0xC0 && c <= 0xDE && c != 0xD7) || (c >= 0x391 && c <= 0x3A9) ||
            (c >= 0x410 && c <= 0x42F))
            c += 32;
        else if (c >= 0x400 && c <= 0x40F) c += 80;
        if (gap && out.length) put_char(&out, ' ');
        gap = false;
        put(&out, (Str){four, (size_t)utf8_put(four, c)});
    }
    return take(&out);
}

/* A number for a text: FNV-1a, then stirred so that neighbouring texts and seeds have nothing in common. The only
   random numbers here. */
static uint64_t hash(uint64_t seed, Str t) {
    uint64_t h = 0xCBF29CE484222325u ^ seed * 0x9E3779B97F4A7C15u;
    for (size_t i = 0; i < t.n; i++) h = (h ^ (unsigned char)t.s[i]) * 0x100000001B3u;
    h = (h ^ h >> 30) * 0xBF58476D1CE4E5B9u;
    h = (h ^ h >> 27) * 0x94D049BB133111EBu;
    return h ^ h >> 31;
}

/* ---- a conversation and how it is written ------------------------------------------------------------------------ */

typedef enum { SYSTEM, USER, ASSISTANT, TOOL } Role;
static const char *const role_name[] = {"system", "user", "assistant", "tool"},
                         *const role_label[] = {"", "User: ", "Assistant: ", "Tool: "};
typedef struct Turn { Role role; Str text; } Turn;
/* draw: its lot for --sample; a group goes into one part of --split */
typedef struct Example { Str line, label; uint64_t group, draw; int part; } Example;
typedef struct Piece { double index; int speaker /* -1: not given */; Str text; } Piece;
typedef struct Pieces { Piece *piece; size_t row; Str emotion; } Pieces;

typedef struct Converter Converter;
typedef bool RowFunction(Converter *c, const Json *row);     /* false: the row is malformed, c->err says how */
typedef struct Format {
    const char *name, *inputs, *about;
    bool dialogue;                          /* several turns: --each-reply, and labels in plain text */
    RowFunction *row;                       /* for inputs that are rows */
    void (*run)(Converter *c);              /* for the others */
} Format;
struct Converter {
    const Format *format;
    const char **inputs, *path;             /* stb_ds; the file in work */
    size_t row, read, skipped, without, duplicates, known;
    Error err;
    Turn *turns;                            /* stb_ds; the conversation in work */
    Str group, label, *answers;             /* what else its rows say: "group", "label", and "answers" (stb_ds) where
                                               several are right */
    size_t untold;                          /* tags that are in no row: --labels and --classes read them */
    size_t unclassed;                       /* rows whose tags are in none of --classes */
    Example *examples;                      /* stb_ds */
    /* normalised prompts, owned by texts; 1: of this run, 2: of a --dedup-against file */
    struct { char *key; char value; } *seen;
    struct { char *key; ptrdiff_t value; } *index;     /* empathetic: conv_id -> conversations[] */
    Pieces *conversations;
};

static void say(Turn **turns, Role role, Str text) { arrput(*turns, ((Turn){role, text})); }
/* Who writes several messages in a row has one turn: chat templates alternate. */
static void say_joined(Turn **turns, Role role, Str text) {
    if (arrlen(*turns) && arrlast(*turns).role == role)
        arrlast(*turns).text = join(arrlast(*turns).text, "\n", trim(text));
    else say(turns, role, trim(text));
}
static void put_system(Turn **turns) {      /* --system: before a system text of the row's own, not instead of it */
    bool own = arrlen(*turns) && (*turns)[0].role == SYSTEM;
    if (o.system && own) (*turns)[0].text = join(str(o.system), "\n\n", (*turns)[0].text);
    else if (o.system) arrins(*turns, 0, ((Turn){SYSTEM, str(o.system)}));
}
static bool is_plain(void) { return *o.shape == 'p'; }
static bool is_text(void) { return *o.shape == 't'; }

/* Turns as one text: a prompt up to where the answer starts, on a line of its own or, in dialogues, after "Assistant:";
   or
   the answer. */
static void put_plain(Text *text, const Turn *t, size_t n, bool labels, bool answer) {
    for (size_t i = 0; i < n; i++) {
        put(text, str(!labels ? "" : answer ? " " : role_label[t[i].role]));
        put(text, t[i].text);
        put(text, str(answer ? "" : t[i].role == SYSTEM ? "\n\n" : "\n"));
    }
    if (labels && !answer) put(text, str("Assistant:"));
}

/* "name": [{"role": ..., "content": ...}, ...], or in plain shape one text. */
static void put_turns(Text *out, const char *name, const Turn *t, size_t n, bool labels) {
    bool answer = strcmp(name, "prompt");
    Text text = TEXT_EMPTY;
    put_json(out, str(name));
    put(out, str(is_plain() ? ": " : ": ["));
    for (size_t i = 0; i < n && !is_plain(); i++) {
        put(out, str(i ? ", {\"role\": \"" : "{\"role\": \""));
        put(out, str(role_name[t[i].role]));
        put(out, str("\", \"content\": "));
        put_json(out, t[i].text);
        put_char(out, '}');
    }
    if (!is_plain()) { put_char(out, ']'); return; }
    put_plain(&text, t, n, labels, answer);
    put_json(out, (Str){text.at, text.length});
    text_free(&text);
}
/* "text": everything in one, to be learned whole, its group in front: "Instruction: sad\nUser: ...\nAssistant: ...". */
static void put_text(const Converter *c, Text *out, const Turn *t, size_t n, bool labels) {
    Text text = TEXT_EMPTY;
    if (c->group.n) { put(&text, str("Instruction: ")); put(&text, c->group); put(&text, str("\n")); }
    put_plain(&text, t, n - 1, labels, false);
    put_plain(&text, t + n - 1, 1, labels, true);
    put(out, str("\"text\": "));
    put_json(out, (Str){text.at, text.length});
    text_free(&text);
}
/* , "answers": [...], "group": "...", "label": "..." as far as there are any. */
static void put_about(const Converter *c, Text *out) {
    for (ptrdiff_t i = 0; i < arrlen(c->answers) && arrlen(c->answers) > 1; i++) {
        put(out, str(i ? ", " : ", \"answers\": ["));
        put_json(out, c->answers[i]);
    }
    if (arrlen(c->answers) > 1) put_char(out, ']');
    if (c->group.n) { put(out, str(", \"group\": ")); put_json(out, c->group); }
    if (c->label.n) { put(out, str(", \"label\": ")); put_json(out, c->label); }
}

static Str prompt_key(const Turn *t, size_t n) {
    Text out = TEXT_EMPTY;
    for (size_t i = 0; i < n; i++) { put(&out, t[i].text); put_char(&out, '\n'); }
    return normalised(take(&out));
}
/* Ends the line and keeps it, unless its prompt[n] is a duplicate. */
static void keep(Converter *c, Text *line, const Turn *prompt, size_t n, uint64_t group) {
    char known = 0;
    if (o.dedup || o.against) {
        Str key = prompt_key(prompt, n);
        known = shget(c->seen, key.s);
        if (!known && o.dedup) shput(c->seen, key.s, 1);
    }
    c->known += known == 2, c->duplicates += known == 1;
    if (known) { text_free(line); return; }
    put(line, str("}\n"));
    Str text = take(line);
    arrput(c->examples, ((Example){text, c->label, group, hash(o.seed + 1, text), 0}));
}
/* Conversations that begin with the same words share a group: one may be the other's beginning. */
static uint64_t group_of(const Turn *t, size_t n) {
    size_t i = 0;
    while (i + 1 < n && t[i].role != USER) i++;
    return hash(o.seed, normalised(t[i].text));
}

/* ---- rows with a label -------------------------------------------------------------------------------------------
   For a model that writes the label (prompt and completion) and for a classification head (prompt and "label") alike.
   --classes maps what a data set says, tags or emotions, to few classes: "yes=CQ,FQ,IR;no=*"; * is everything else. */

typedef struct Class {
    Str name, *tags;                        /* stb_ds */
    size_t *seen, rows;                     /* stb_ds: rows with each of the tags; of the class */
    bool rest;                              /* everything else is in it */
} Class;
static Class *classes;                      /* stb_ds */
static const char *class_question;          /* of the map in use */

static const struct ClassMap { const char *name, *map, *question; } class_maps[] = {
    /* MSDialog-Intent's tags for posts that ask: clarifying question, follow-up question, information request */
    {"initiative", "yes=CQ,FQ,IR;no=*",
     "Does the agent take the initiative in the next post, with a question of its own?"},
    /* EmpatheticDialogues' emotions; anticipating, nostalgic, sentimental and surprised may be either */
    {"valence",
     "negative=afraid,angry,annoyed,anxious,apprehensive,ashamed,devastated,disappointed,disgusted,embarrassed,furious,"
     "guilty,jealous,lonely,sad,terrified;"
     "positive=caring,confident,content,excited,faithful,grateful,hopeful,impressed,joyful,prepared,proud,trusting",
     "How does this person feel?"}};
enum { CLASS_MAPS = sizeof class_maps / sizeof *class_maps };

/* The text up to one of `ends`, and *s behind it. */
static Str class_word(const char **s, const char *ends) {
    Str word = trim((Str){*s, strcspn(*s, ends)});
    *s += strcspn(*s, ends);
    return word;
}
static void classes_parse(const char *text, const char *question) {
    const char *s = text;
    class_question = question;
    for (int i = 0; i < CLASS_MAPS; i++)
        if (!strcmp(text, class_maps[i].name)) { s = class_maps[i].map; class_question = class_maps[i].question; }
    const char *todo = "give initiative, valence or NAME=TAG,TAG;NAME=* with two classes at least";
    do {
        Class k = {.name = class_word(&s, "=;")};
        if (!k.name.n || *s++ != '=') die(2, "bad value '%s' of --classes; command line; %s", text, todo);
        do {
            Str tag = class_word(&s, ",;");
            if (!tag.n) die(2, "bad value '%s' of --classes; command line; %s", text, todo);
            if (same(tag, str("*"))) k.rest = true;
            else { arrput(k.tags, tag); arrput(k.seen, 0); }
            for (ptrdiff_t i = 0; i < arrlen(classes); i++) {
                bool twice = same(classes[i].name, k.name) || (k.rest && classes[i].rest);
                for (ptrdiff_t j = 0; j < arrlen(classes[i].tags); j++) twice |= same(classes[i].tags[j], tag);
                if (twice) die(2, "'%.*s' is in two classes; --classes %s; name it once", (int)tag.n, tag.s, text);
            }
        } while (*s == ',' && *++s);
        arrput(classes, k);
    } while (*s == ';' && *++s);
    if (*s || arrlen(classes) < 2) die(2, "bad value '%s' of --classes; command line; %s", text, todo);
}
/* The class of tags as "IR FQ": the first that has one of them, else the one for the rest; NULL: none. */
static Class *class_of(Str tags) {
    Class *found = NULL;
    for (ptrdiff_t i = 0; i < arrlen(classes); i++)
        for (ptrdiff_t j = 0; j < arrlen(classes[i].tags); j++)
            for (size_t at = 0, n; at < tags.n; at += n + 1) {
                for (n = 0; at + n < tags.n && !space(tags.s[at + n]);) n++;
                if (!same(classes[i].tags[j], (Str){tags.s + at, n})) continue;
                classes[i].seen[j]++;
                if (!found) found = &classes[i];
            }
    for (ptrdiff_t i = 0; i < arrlen(classes) && !found; i++) if (classes[i].rest) found = &classes[i];
    return found;
}

static void put_turns(Text *out, const char *name, const Turn *t, size_t n, bool labels);
static void put_about(const Converter *c, Text *out);
static void keep(Converter *c, Text *line, const Turn *prompt, size_t n, uint64_t group);
/* A text, its label as the answer and as "label"; in text shape the label alone. group_by as for emit_grouped. */
static bool emit_label(Converter *c, Str text, Str label, Str group_by) {
    Text line = TEXT_EMPTY;
    arrsetlen(c->turns, 0);
    say(&c->turns, USER, text);
    put_system(&c->turns);
    say(&c->turns, ASSISTANT, label);
    c->label = label;
    size_t n = arrlenu(c->turns) - 1;
    put_char(&line, '{');
    if (is_text()) {
        Text plain = TEXT_EMPTY;
        put_plain(&plain, c->turns, n, false, false);
        put(&line, str("\"text\": "));
        put_json(&line, trim((Str){plain.at, plain.length}));
        text_free(&plain);
    } else {
        put_turns(&line, "prompt", c->turns, n, false);
        put(&line, str(", "));
        put_turns(&line, "completion", &c->turns[n], 1, false);
    }
    put_about(c, &line);
    keep(c, &line, c->turns, n, hash(o.seed, normalised(group_by)));
    return true;
}
/* The same with the class of its tags, and a question with the classes' names behind the text. */
static bool emit_class(Converter *c, Str text, Str tags, Str group_by) {
    Class *k = class_of(tags);
    Text asked = TEXT_EMPTY;
    if (!k) { c->unclassed++; return true; }
    k->rows++;
    put(&asked, trim(text)); put(&asked, str("\n\n")); put(&asked, str(class_question));
    put(&asked, str(" Answer with one of: "));
    for (ptrdiff_t i = 0; i < arrlen(classes); i++) { put(&asked, str(i ? ", " : "")); put(&asked, classes[i].name); }
    put_char(&asked, '.');
    return emit_label(c, take(&asked), k->name, group_by);
}
/* What went where: "classes: yes = CQ FQ IR, 12 rows; no = everything else, 30 rows", and tags of the map in no row. */
static void classes_print(void) {
    for (ptrdiff_t i = 0; i < arrlen(classes); i++) {
        fprintf(stderr, "%s%.*s =", i ? "; " : "classes: ", (int)classes[i].name.n, classes[i].name.s);
        for (ptrdiff_t j = 0; j < arrlen(classes[i].tags); j++)
            fprintf(stderr, " %.*s", (int)classes[i].tags[j].n, classes[i].tags[j].s);
        fprintf(stderr, "%s, %zu rows", classes[i].rest ? " everything else" : "", classes[i].rows);
    }
    fprintf(stderr, "\n");
    for (ptrdiff_t i = 0; i < arrlen(classes); i++)
        for (ptrdiff_t j = 0; j < arrlen(classes[i].tags); j++)
            if (!classes[i].seen[j])
                fprintf(stderr, "note: no row has \"%.*s\", which --classes names\n", (int)classes[i].tags[j].n,
                        classes[i].tags[j].s);
}

/* c->turns becomes one example, or with --each-reply one for every answer. An answer to nothing at the start and a
   question without answer at the end teach nothing and are left out.
   group_by: what shares a part of --split; NULL: the first user turn. */
static bool emit_grouped(Converter *c, const Str *group_by) {
    bool labels = c->format->dialogue && !o.labels;
    ptrdiff_t first = 0;
    put_system(&c->turns);
    while (first < arrlen(c->turns) && c->turns[first].role == SYSTEM) first++;
    while (first < arrlen(c->turns) && c->turns[first].role != USER) arrdel(c->turns, first);
    while (arrlen(c->turns) && arrlast(c->turns).role != ASSISTANT) (void)arrpop(c->turns);
    size_t count = arrlenu(c->turns);
    if (!count) return fail(&c->err, "no user turn that is answered");
    uint64_t group = group_by ? hash(o.seed, normalised(*group_by)) : group_of(c->turns, count);
    for (size_t n = o.each_reply ? 1 : count; n <= count; n++) {
        Text line = TEXT_EMPTY;
        if (c->turns[n - 1].role != ASSISTANT) continue;
        put_char(&line, '{');
        if (is_text()) put_text(c, &line, c->turns, n, labels);
        else if (is_plain()) {
            put_turns(&line, "prompt", c->turns, n - 1, labels);
            put(&line, str(", "));
            put_turns(&line, "completion", &c->turns[n - 1], 1, labels);
        } else put_turns(&line, "messages", c->turns, n, labels);
        put_about(c, &line);
        keep(c, &line, c->turns, n - 1, group);
    }
    return true;
}
static bool emit(Converter *c) { return emit_grouped(c, NULL); }

/* ---- reading rows ------------------------------------------------------------------------------------------------ */

enum { REPORTED = 10 };                     /* so many malformed rows are shown */
static void skip(Converter *c) {
    if (o.strict)
        die(1, "%s; %s row %zu; correct it, or leave out --strict to skip such rows", c->err.text, c->path, c->row);
    one_line(c->err.text);
    if (c->skipped++ < REPORTED) fprintf(stderr, "skipped: %s row %zu: %s\n", c->path, c->row, c->err.text);
}
/* The end of a row: counted, reported if it is malformed. */
static void row_done(Converter *c, bool ok) {
    c->read++;
    if (!ok) skip(c);
    arrsetlen(c->turns, 0);
    arrsetlen(c->answers, 0);
    c->group.n = c->label.n = 0;
}
static void one_row(Converter *c, RowFunction *f, const Json *row) {
    c->row++;
    row_done(c, row->type == JSON_OBJECT ? f(c, row) : fail(&c->err, "not an object"));
}

static char *load(Converter *c, const char *path, size_t *bytes) {
    char *text = read_file(path, bytes, &c->err);
    if (!text) die(1, "%s", c->err.text);
    if (*bytes >= 3 && !memcmp(text, "\xEF\xBB\xBF", 3)) memset(text, ' ', 3);     /* a byte order mark */
    if (!trim((Str){text, *bytes}).n) die(1, "file is empty; %s; check where it comes from", path);
    c->path = path, c->row = 0;
    return text;
}
static JsonDoc load_json(Converter *c, const char *path) {
    size_t bytes;
    char *text = load(c, path, &bytes);
    JsonDoc doc;
    if (!json_parse(&doc, text, bytes, path, 1, &c->err)) die(1, "%s", c->err.text);
    free(text);
    return doc;
}

/* One CSV record at *at (RFC 4180; a quote inside an unquoted field is an ordinary character) into cells, strings
   that point into *buffer. On failure *at moves to the next line. */
static bool csv_record(Converter *c, char **at, char *end, Json **cells, Text *buffer) {
    char *in = *at, *newline = memchr(in, '\n', (size_t)(end - in));
    bool ok = true, last = false;
    text_cut(buffer, 0);
    arrsetlen(*cells, 0);
    while (ok && !last) {
        size_t begin = buffer->length;
        if (in < end && *in == '"') {
            for (in++; in < end && (*in != '"' || (in + 1 < end && in[1] == '"')); in++) {
                in += *in == '"';
                put_char(buffer, *in);
            }
            if (in == end) ok = fail(&c->err, "a quoted field is never closed");
            else if (++in < end && *in != ',' && *in != '\n' && *in != '\r')
                ok = fail(&c->err, "text after a closing quote");
        } else for (; in < end && *in != ',' && *in != '\n' && *in != '\r'; in++) put_char(buffer, *in);
        size_t n = buffer->length - begin;
        arrput(*cells, ((Json){.type = JSON_STRING, .count = (uint32_t)n}));
        if (ok && n > INT32_MAX) ok = fail(&c->err, "a field of more than 2 GB");
        if (ok && n && utf8_invalid(buffer->at + begin, n) < n)
            ok = fail(&c->err, "invalid UTF-8 in field %td", arrlen(*cells));
        put_char(buffer, 0);
        last = in == end || *in != ',';
        if (in < end) in += *in == '\r' && in + 1 < end && in[1] == '\n' ? 2 : 1;
    }
    const char *s = buffer->at;
    /* only now: the buffer has moved while it grew */
    for (ptrdiff_t i = 0; i < arrlen(*cells); s += (*cells)[i++].count + 1) (*cells)[i].str = s;
    *at = ok ? in : newline ? newline + 1 : end;
    return ok;
}
/* A .csv file: every record is handed on as an object with the header's names. */
static void each_record(Converter *c, char *s, char *end, RowFunction *f) {
    Json *header = NULL, *cells = NULL;
    Text names = TEXT_EMPTY, buffer = TEXT_EMPTY;
    if (!csv_record(c, &s, end, &header, &names))
        die(1, "%s; %s:1; the first record names the columns", c->err.text, c->path);
    while (s < end) {
        if (space(*s)) { s++; continue; }
        bool ok = csv_record(c, &s, end, &cells, &buffer);
        if (ok && arrlen(cells) != arrlen(header))
            ok = fail(&c->err, "%td fields, the header has %td", arrlen(cells), arrlen(header));
        if (!ok) { c->row++; row_done(c, false); continue; }
        for (ptrdiff_t i = 0; i < arrlen(cells); i++) {
            cells[i].key = header[i].str, cells[i].key_count = header[i].count;
            cells[i].next = i + 1 < arrlen(cells) ? &cells[i + 1] : NULL;
        }
        one_row(c, f, &(Json){.type = JSON_OBJECT, .count = (uint32_t)arrlen(cells), .child = cells});
    }
    arrfree(header); arrfree(cells); text_free(&names); text_free(&buffer);
}
static void each_line(Converter *c, char *s, char *end, RowFunction *f) {
    for (size_t line = 1; s < end; line++) {
        char *newline = memchr(s, '\n', (size_t)(end - s)), *next = newline ? newline + 1 : end;
        Str text = trim((Str){s, (size_t)(next - s)});
        JsonDoc doc = {NULL, NULL};
        s = next;
        if (!text.n) continue;
        if (json_parse(&doc, text.s, text.n, c->path, line, &c->err)) one_row(c, f, doc.root);
        else { c->row++; row_done(c, false); }
        json_free(&doc);
    }
}
/* [{...}, ...], {"data": [{...}, ...]}, one object, an object a line, or CSV: the first character tells, because many
   files of JSON lines are called .json. */
static void each_row(Converter *c, const char *path, RowFunction *f) {
    size_t bytes;
    char *text = load(c, path, &bytes), *s = text;
    JsonDoc doc = {NULL, NULL};
    while (space(*s)) s++;
    bool parsed = (*s == '[' || *s == '{') && json_parse(&doc, text, bytes, path, 1, &c->err);
    const Json *rows = *s == '[' ? doc.root : json_get(doc.root, "data");
    if (*s == '[' && !parsed) die(1, "%s", c->err.text);
    if (rows && rows->type == JSON_ARRAY) for (const Json *row = rows->child; row; row = row->next) one_row(c, f, row);
    else if (parsed) one_row(c, f, doc.root);
    else if (*s == '{') each_line(c, text, text + bytes, f);
    else each_record(c, s, text + bytes, f);
    json_free(&doc);
    free(text);
}

/* The text of a row under that name: a string that says something. false: c->err says why not. */
static bool text_of(Converter *c, const Json *row, const char *name, Str *out) {
    const Json *v = json_get(row, name);
    *out = v && v->type == JSON_STRING ? (Str){v->str, v->count} : (Str){NULL, 0};
    const char *what = json_is_null(v) ? "missing" : v->type != JSON_STRING ? "not a string" : "empty";
    return trim(*out).n || fail(&c->err, "\"%s\" is %s", name, what);
}
/* The same where there need be none: out->n is 0 then. */
static bool optional_text(Converter *c, const Json *row, const char *name, Str *out) {
    const Json *v = json_get(row, name);
    *out = v && v->type == JSON_STRING ? (Str){v->str, v->count} : (Str){NULL, 0};
    return json_is_null(v) || v->type == JSON_STRING || fail(&c->err, "\"%s\" is not a string", name);
}
static const Json *list_of(Converter *c, const Json *row, const char *name) {
    const Json *v = json_get(row, name);
    if (v && v->type == JSON_ARRAY) return v;
    fail(&c->err, "\"%s\" is %s", name, v ? "not a list" : "missing");
    return NULL;
}

/* ---- the formats ------------------------------------------------------------------------------------------------- */

/* A list of {"role": "user", "content": "..."} or of ShareGPT's {"from": "human", "value": "..."}. */
static bool messages_of(Converter *c, Turn **turns, const Json *list) {
    static const struct {
        const char *name;
        Role role;
    } roles[] = {{"system", SYSTEM},   {"user", USER},         {"human", USER},      {"assistant", ASSISTANT},
                 {"gpt", ASSISTANT},   {"chatgpt", ASSISTANT}, {"bing", ASSISTANT},  {"bard", ASSISTANT},
                 {"model", ASSISTANT}, {"tool", TOOL},         {"observation", TOOL}};
    size_t number = 0, k, known = sizeof roles / sizeof *roles;
    if (list->type != JSON_ARRAY) return fail(&c->err, "the messages are not a list");
    for (const Json *m = list->child; m; m = m->next) {
        bool sharegpt = json_get(m, "from") != NULL;
        Str role, text;
        number++;
        if (!text_of(c, m, sharegpt ? "from" : "role", &role) || !text_of(c, m, sharegpt ? "value" : "content", &text))
            return fail(&c->err, "message %zu: %s", number, c->err.text);
        for (k = 0; k < known && !same(role, str(roles[k].name));) k++;
        if (k == known) return fail(&c->err, "message %zu: unknown role \"%.60s\"", number, role.s);
        say(turns, roles[k].role, text);
    }
    return true;
}

/* {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]} -> {"messages": [{"role":
   "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
   Rows that have "messages" already are accepted too: to split or sample them, or to find duplicates. */
static bool sharegpt_row(Converter *c, const Json *row) {
    Str system;
    const Json *list = list_of(c, row, json_get(row, "messages") ? "messages" : "conversations");
    if (!list || !optional_text(c, row, "system", &system)) return false;
    if (system.n) say(&c->turns, SYSTEM, system);
    return messages_of(c, &c->turns, list) && emit(c);
}

/* {"instruction": "Add.", "input": "2 3", "output": "5"} -> {"messages": [{"role": "user", "content": "Add.\n2 3"},
   {"role": "assistant", "content": "5"}]}, joined as train_lora joins such a row.
   {"id": "2fb7", "instruction": "翻譯成文言文：\n他大笑。", "output": "大笑。"} -> {"messages": [{"role": "user", "content":
   "翻譯成文言文：\n他大笑。"}, {"role": "assistant", "content": "大笑。"}]} */
static bool alpaca_row(Converter *c, const Json *row) {
    Str system, input, instruction, output;
    if (!optional_text(c, row, "system", &system) || !optional_text(c, row, "input", &input) ||
        !text_of(c, row, "instruction", &instruction) || !text_of(c, row, "output", &output))
        return false;
    if (system.n) say(&c->turns, SYSTEM, system);
    say(&c->turns, USER, input.n ? join(instruction, "\n", input) : instruction);
    say(&c->turns, ASSISTANT, output);
    return emit(c);
}

/* {"question": "How many?", "answers": [{"text": "308", "answer_start": 34}]} of a paragraph
   -> {"messages": [{"role": "user", "content": "The Panthers gave up 308 points ...\n\nQuestion: How many?"},
   {"role": "assistant", "content": "308"}]}
   The first answer is learned, "answers" has all where they differ; no answer (SQuAD 2.0) becomes "unanswerable". A
   paragraph's questions go into one part of --split. */
static bool squad_question(Converter *c, Str context, const Json *qa) {
    const Json *answers = json_get(qa, "answers"), *impossible = json_get(qa, "is_impossible");
    Str question, answer = str("unanswerable");
    /* the datasets library stores {"text": ["308"], ...} */
    if (answers && answers->type == JSON_OBJECT) answers = json_get(answers, "text");
    if (!text_of(c, qa, "question", &question)) return false;
    if (!answers || answers->type != JSON_ARRAY) return fail(&c->err, "\"answers\" is not a list");
    if (answers->child && (!impossible || impossible->type != JSON_TRUE)) {
        for (const Json *a = answers->child; a; a = a->next) {
            bool known = false;
            if (a->type == JSON_STRING) answer = (Str){a->str, a->count};
            else if (!text_of(c, a, "text", &answer)) return false;
            for (ptrdiff_t i = 0; i < arrlen(c->answers); i++) known |= same(c->answers[i], answer);
            if (!known) arrput(c->answers, answer);
        }
        answer = c->answers[0];
    }
    say(&c->turns, USER, join(context, "\n\nQuestion: ", question));
    say(&c->turns, ASSISTANT, answer);
    return emit_grouped(c, &context);
}
/* An article {"title", "paragraphs": [{"context", "qas": [...]}]}, or the datasets library's flat row {"context",
   "question", "answers"}. */
static bool squad_row(Converter *c, const Json *row) {
    Str context;
    const Json *paragraphs = json_get(row, "paragraphs"), *qas;
    if (!paragraphs) return text_of(c, row, "context", &context) && squad_question(c, context, row);
    c->row--, c->read--;                                     /* questions count, not articles */
    for (const Json *p = paragraphs->child; p; p = p->next) {
        if (!text_of(c, p, "context", &context) || !(qas = list_of(c, p, "qas"))) {
            c->row++;
            row_done(c, false);
            continue;
        }
        for (const Json *qa = qas->child; qa; qa = qa->next) { c->row++; row_done(c, squad_question(c, context, qa)); }
    }
    return true;
}

/* {"prompt": "Seen it?", "chosen": "Not yet!", "rejected": "No."} -> {"prompt": [{"role": "user", "content": "Seen
   it?"}], "chosen": [{"role": "assistant", ...}], "rejected": [{"role": "assistant", ...}]},
   TRL's conversational format; --shape prompt-completion writes its standard one, three strings. Message lists may
   repeat the prompt in chosen and rejected: what both begin with is the prompt. */
static bool dpo_sides(Converter *c, const Json *row, Turn *side[2]) {
    static const char *const name[] = {"chosen", "rejected"};
    const Json *prompt = json_get(row, "prompt"), *answer;
    Str text;
    if (!optional_text(c, row, "system", &text)) return false;
    if (text.n) say(&c->turns, SYSTEM, text);
    if (prompt && prompt->type == JSON_ARRAY) { if (!messages_of(c, &c->turns, prompt)) return false; }
    else if (prompt) { if (!text_of(c, row, "prompt", &text)) return false; say(&c->turns, USER, text); }
    for (int i = 0; i < 2; i++) {
        if ((answer = json_get(row, name[i])) && answer->type == JSON_ARRAY) {
            if (!messages_of(c, &side[i], answer)) return false;
        } else {
            if (!text_of(c, row, name[i], &text)) return false;
            say(&side[i], ASSISTANT, text);
        }
    }
    size_t common = 0;
    while (common < arrlenu(side[0]) && common < arrlenu(side[1]) && side[0][common].role == side[1][common].role &&
           same(side[0][common].text, side[1][common].text))
        common++;
    if (common == arrlenu(side[0]) && common == arrlenu(side[1]))
        return fail(&c->err, "\"chosen\" and \"rejected\" are the same");
    if (common && side[0][0].role != ASSISTANT) {
        arrsetlen(c->turns, 0);
        for (size_t i = 0; i < common; i++) arrput(c->turns, side[0][i]);
        for (int i = 0; i < 2; i++) arrdeln(side[i], 0, common);
    }
    for (int i = 0; i < 2; i++) {
        if (!arrlen(side[i]) || side[i][0].role != ASSISTANT)
            return fail(&c->err, "\"%s\" does not begin with an assistant's message", name[i]);
        if (is_plain() && arrlen(side[i]) > 1)
            return fail(&c->err, "\"%s\" has %td messages, one text cannot hold them", name[i], arrlen(side[i]));
    }
    return (arrlen(c->turns) && (arrlast(c->turns).role == USER || arrlast(c->turns).role == TOOL)) ||
        fail(&c->err, "the prompt does not end with a user's message");
}
static bool dpo_row(Converter *c, const Json *row) {
    Turn *side[2] = {NULL, NULL};
    Text line = TEXT_EMPTY;
    bool ok = dpo_sides(c, row, side);
    if (ok) {
        put_system(&c->turns);
        size_t n = arrlenu(c->turns);
        bool labels = n > 1u + (c->turns[0].role == SYSTEM);          /* a dialogue before the answer */
        put_char(&line, '{');
        put_turns(&line, "prompt", c->turns, n, labels);
        put(&line, str(", "));
        put_turns(&line, "chosen", side[0], arrlenu(side[0]), labels);
        put(&line, str(", "));
        put_turns(&line, "rejected", side[1], arrlenu(side[1]), labels);
        keep(c, &line, c->turns, n, group_of(c->turns, n));
    }
    arrfree(side[0]); arrfree(side[1]);
    return ok;
}

/* MSDialog, Complete or Intent: {"1": {"title": "...", "utterances": [{"actor_type": "User", "utterance": "It
   crashes."}, {"actor_type": "Agent", "utterance": "Which build?"}]}}
   -> {"messages": [{"role": "user", "content": "It crashes."}, {"role": "assistant", "content": "Which build?"}]}
   With --labels every post that has "tags" (Intent: "OQ", or "PA FD") becomes a row: the posts up to it, and its tags
   as the answer
   -> {"prompt": [{"role": "user",
                   "content": "User: It crashes.\nAgent: Which build?\n\nWhat does the last post do?"}],
       "completion": [{"role": "assistant", "content": "IR"}], "label": "IR"} */
static bool msdialog_labels(Converter *c, const Json *dialog) {
    const Json *list = list_of(c, dialog, "utterances");
    Text so_far = TEXT_EMPTY;
    Str first = {NULL, 0};
    size_t rows = 0;
    bool ok = list != NULL;
    for (const Json *u = list ? list->child : NULL; u && ok; u = u->next) {
        Str actor, text, tags;
        ok = text_of(c, u, "actor_type", &actor) && optional_text(c, u, "utterance", &text) &&
            optional_text(c, u, "tags", &tags);
        if (!ok || !trim(text).n) continue;
        if (!first.n) first = text;
        put(&so_far, actor); put(&so_far, str(": ")); put(&so_far, trim(text)); put(&so_far, str("\n"));
        if (!trim(tags).n) continue;
        Text copy = TEXT_EMPTY;
        put(&copy, (Str){so_far.at, so_far.length});
        put(&copy, str("\nWhat does the last post do?"));
        ok = emit_label(c, take(&copy), trim(tags), first);
        rows++;
    }
    text_free(&so_far);
    return ok && (rows || fail(&c->err, "no post has \"tags\""));
}
/* With --classes every turn of the agent (posts of one person in a row are one) becomes a row: what was said before it,
   and the class of its tags. */
static bool msdialog_classes(Converter *c, const Json *dialog) {
    const Json *list = list_of(c, dialog, "utterances");
    Text so_far = TEXT_EMPTY, tags = TEXT_EMPTY;
    Str first = {NULL, 0}, before = {NULL, 0};
    bool ok = list != NULL, tagged = false, asked = false;
    for (const Json *u = list ? list->child : NULL; u && ok; u = u->next) {
        Str actor, text, tag;
        ok = text_of(c, u, "actor_type", &actor) && optional_text(c, u, "utterance", &text) &&
            optional_text(c, u, "tags", &tag);
        bool user = ok && same(actor, str("User"));
        if (ok && !user && !same(actor, str("Agent"))) ok = fail(&c->err, "unknown actor_type \"%.60s\"", actor.s);
        if (!ok || !trim(text).n) continue;
        tagged |= trim(tag).n > 0;
        if (!first.n) first = text;
        if (user && before.n) {             /* the agent's turn has ended */
            if (tags.length) emit_class(c, before, (Str){tags.at, tags.length}, first);
            before.n = 0;
        } else if (!user && asked && !before.n) {
            Text copy = TEXT_EMPTY;
            put(&copy, (Str){so_far.at, so_far.length});
            before = take(&copy);
            text_cut(&tags, 0);
        }
        if (!user && trim(tag).n) { put(&tags, trim(tag)); put_char(&tags, ' '); }
        asked |= user;
        put(&so_far, actor); put(&so_far, str(": ")); put(&so_far, trim(text)); put(&so_far, str("\n"));
    }
    if (ok && before.n && tags.length) emit_class(c, before, (Str){tags.at, tags.length}, first);
    text_free(&so_far);
    text_free(&tags);
    return ok && (tagged || fail(&c->err, "no post has \"tags\""));
}
static bool msdialog_row(Converter *c, const Json *dialog) {
    const Json *list = list_of(c, dialog, "utterances");
    if (o.labels) return msdialog_labels(c, dialog);
    if (o.classes) return msdialog_classes(c, dialog);
    for (const Json *u = list ? list->child : NULL; u; u = u->next) {
        Str actor, text;
        c->untold += json_get(u, "tags") != NULL;
        if (!text_of(c, u, "actor_type", &actor) || !optional_text(c, u, "utterance", &text)) return false;
        bool user = same(actor, str("User"));
        if (!user && !same(actor, str("Agent"))) return fail(&c->err, "unknown actor_type \"%.60s\"", actor.s);
        if (trim(text).n) say_joined(&c->turns, user ? USER : ASSISTANT, text);     /* some posts were only a picture */
    }
    return list && emit(c);
}
static void msdialog_run(Converter *c) {
    for (ptrdiff_t i = 0; i < arrlen(c->inputs); i++) {
        JsonDoc doc = load_json(c, c->inputs[i]);
        for (const Json *dialog = doc.root->child; dialog; dialog = dialog->next) one_row(c, msdialog_row, dialog);
        json_free(&doc);
    }
}

/* The sources a DSTC11 label names, a line each: "- HOBSONS HOUSE, review (Couples): The bathroom was spotless. ..."
   or "- HOBSONS HOUSE, FAQ: Is parking free? Yes." Of a review only the named sentences. */
static bool dstc11_sources(Converter *c, Text *out, const Json *label, const Json *knowledge) {
    static const char *const names[] = {"domain", "entity_id", "doc_type", "doc_id", "sent_id"};
    struct Source { const char *id[5]; } *sources = NULL;
    const Json *list = list_of(c, label, "knowledge");
    bool ok = list && (list->count <= 1000 || fail(&c->err, "%u sources", list->count));
    for (const Json *k = ok ? list->child : NULL; k; k = k->next) {
        struct Source s;
        for (int i = 0; i < 5; i++) {
            const Json *v = json_get(k, names[i]);
            s.id[i] = v && v->str ? v->str : "";
            if (i < 4 && !*s.id[i]) ok = fail(&c->err, "a source of \"knowledge\" has no \"%s\"", names[i]);
        }
        arrput(sources, s);
    }
    for (ptrdiff_t k = 0; ok && k < arrlen(sources); k++) {
        const char **id = sources[k].id;
        bool told = false, *named = NULL, review = !strcmp(id[2], "review"), found = false;
        for (ptrdiff_t j = 0; j < arrlen(sources); j++) {    /* named: the label's entries about this review or FAQ */
            bool match = true;
            for (int i = 0; i < 4; i++) match = match && !strcmp(sources[j].id[i], id[i]);
            told = told || (match && j < k);
            arrput(named, match);
        }
        const Json *entity = json_get(json_get(knowledge, id[0]), id[1]),
                   *doc = json_get(json_get(entity, review ? "reviews" : "faqs"), id[3]),
                   *sentences = json_get(doc, "sentences");
        Str name = {NULL, 0}, question, answer, traveler;
        ok = text_of(c, entity, "name", &name) && optional_text(c, doc, "traveler_type", &traveler) &&
            (review || (text_of(c, doc, "question", &question) && text_of(c, doc, "answer", &answer)));
        if (ok && !told) {
            put(out, str("\n- ")); put(out, name);
            if (review && traveler.n) { put(out, str(", review (")); put(out, traveler); put(out, str("):")); }
            else if (review) put(out, str(", review:"));
            else { put(out, str(", FAQ: ")); put(out, question); put(out, str(" ")); put(out, answer); }
        }
        for (const Json *s = review && sentences && !told ? sentences->child : NULL; s; s = s->next) {
            bool wanted = false;
            for (ptrdiff_t j = k; j < arrlen(sources); j++)
                wanted = wanted || (named[j] && s->key && !strcmp(sources[j].id[4], s->key));
            if (!wanted || s->type != JSON_STRING) continue;
            put(out, str(" ")); put(out, (Str){s->str, s->count});
            found = true;
        }
        if (!ok || (review && !told && !found))
            ok = fail(&c->err, "%.40s %.20s, %.20s %.20s: not in the knowledge file", id[0], id[1], id[2], id[3]);
        arrfree(named);
    }
    arrfree(sources);
    return ok;
}
/* What the answer is about, and where it stands: "hotel, reviews", "restaurant, reviews and FAQ". */
static Str dstc11_group(const Json *label) {
    const Json *list = json_get(label, "knowledge"), *domain = NULL;
    bool review = false, faq = false;
    for (const Json *k = list ? list->child : NULL; k; k = k->next) {
        const Json *type = json_get(k, "doc_type");
        if (!domain) domain = json_get(k, "domain");
        if (type && type->str) { review |= !strcmp(type->str, "review"); faq |= !strcmp(type->str, "faq"); }
    }
    if (!domain || domain->type != JSON_STRING || !(review || faq)) return (Str){NULL, 0};
    return join(str(domain->str), ", ", str(review && faq ? "reviews and FAQ" : review ? "reviews" : "FAQ"));
}
/* logs.json [[{"speaker": "U", "text": "Is it clean?"}], ...] and labels.json [{"target": true, "knowledge": [...],
   "response": "Yes, most guests say so."}, ...]
   -> {"messages": [{"role": "user", "content": "Is it clean?"}, {"role": "assistant", "content": "Yes, most guests
   say so."}]} */
static bool dstc11_dialogue(Converter *c, const Json *log, const Json *label, const Json *knowledge) {
    const Json *target = json_get(label, "target");
    Str response, speaker, text;
    if (!target || (target->type != JSON_TRUE && target->type != JSON_FALSE))
        return fail(&c->err, "the label has no \"target\" that is true or false");
    if (target->type == JSON_FALSE) { c->without++; return true; }
    if (log->type != JSON_ARRAY) return fail(&c->err, "the dialogue is not a list of turns");
    if (!text_of(c, label, "response", &response)) return false;
    if (knowledge) {
        Text sources = TEXT_EMPTY;
        bool ok = dstc11_sources(c, &sources, label, knowledge);
        text = take(&sources);
        if (!ok) return false;
        if (text.n) say(&c->turns, SYSTEM, join(str("Answer from these sources:"), "", text));
    }
    for (const Json *t = log->child; t; t = t->next) {
        if (!text_of(c, t, "speaker", &speaker) || !text_of(c, t, "text", &text)) return false;
        if (!same(speaker, str("U")) && !same(speaker, str("S")))
            return fail(&c->err, "unknown speaker \"%.60s\"", speaker.s);
        say_joined(&c->turns, *speaker.s == 'U' ? USER : ASSISTANT, text);
    }
    if (!arrlen(c->turns) || arrlast(c->turns).role != USER)
        return fail(&c->err, "the dialogue does not end with the user");
    say_joined(&c->turns, ASSISTANT, response);
    c->group = dstc11_group(label);
    return emit(c);
}
static void dstc11_run(Converter *c) {
    ptrdiff_t files = arrlen(c->inputs);
    if (files < 2 || files > 3 || (o.with_knowledge && files < 3))
        die(2, "%td input files; command line; give logs.json labels.json%s", files,
            o.with_knowledge ? " knowledge.json" : " [knowledge.json]");
    JsonDoc knowledge = {NULL, NULL}, labels = load_json(c, c->inputs[1]), logs;
    if (o.with_knowledge) knowledge = load_json(c, c->inputs[2]);
    logs = load_json(c, c->inputs[0]);
    if (logs.root->type != JSON_ARRAY || labels.root->type != JSON_ARRAY)
        die(1, "not a list; %s; give logs.json, then labels.json",
            logs.root->type != JSON_ARRAY ? c->inputs[0] : c->inputs[1]);
    if (logs.root->count != labels.root->count)
        die(1, "%u dialogues, but %u labels; %s, %s; give two files that belong together", logs.root->count,
            labels.root->count, c->inputs[0], c->inputs[1]);
    for (const Json *log = logs.root->child, *label = labels.root->child; log; log = log->next, label = label->next) {
        c->row++;
        row_done(c, dstc11_dialogue(c, log, label, knowledge.root));
    }
    json_free(&logs); json_free(&labels); json_free(&knowledge);
}

/* How little text[i] looks like the start of a turn: turns begin with a capital, after the end of a sentence. */
static unsigned unlikely_start(const char *text, size_t i) {
    unsigned char before = (unsigned char)text[i - 1], at = (unsigned char)text[i];
    size_t end = i;
    while (end && space(text[end - 1])) end--;
    bool stop = end && text[end - 1] && strchr(".!?)\"", text[end - 1]);
    if ((at & 0xC0) == 0x80) return 1000;                    /* inside a character */
    int first = space((char)at) ? 4 : at && strchr(".,!?)", at) ? 2 : islower(at) ? 1 : 0;
    return (unsigned)(first + (stop ? 0 : end < i ? 1 : isalnum(before) && !isupper(at) ? 2 : 1));
}
/* The layout with all turns in one text. Given every turn's text, the speaker's text only, and who speaks (0: the
   speaker), finds where the turns start: starts[turns + 1]. Of all divisions that leave `spoken` to the
   speaker it takes the one whose starts look most like starts; 2,767 of 2,769 dialogues come out as in the layout
   with a row for each turn. Dynamic programming over (place, speaker's characters so far, turn). */
static bool divide(Converter *c, size_t *starts, Str text, Str spoken, const uint8_t *who, size_t turns) {
    size_t n = text.n, m = spoken.n, states = (m + 1) * turns;
    if (!turns || m > n || (n + 1) * (m + 1) > (size_t)200000000 / turns)
        return fail(&c->err, "too long to divide into turns");
    /* [n + 1, m + 1, turns]: did the character before this place begin that turn? */
    uint8_t *began = must_realloc(NULL, (n + 1) * states);
    unsigned *cost = must_realloc(NULL, states * sizeof *cost), *next = must_realloc(NULL, states * sizeof *next),
             *swap;
    memset(cost, 0xFF, states * sizeof *cost);               /* UINT_MAX: cannot be reached */
    for (size_t i = 0; i < n; i++, swap = cost, cost = next, next = swap) {
        unsigned start = i ? unlikely_start(text.s, i) : 0;
        memset(next, 0xFF, states * sizeof *next);
        for (size_t s = 0; s <= m && s <= i; s++) {
            for (size_t t = 0; t < turns; t++) {
                unsigned go_on = cost[s * turns + t], begin = t ? cost[s * turns + t - 1] : i ? UINT_MAX : 0;
                if (begin != UINT_MAX) begin += start;
                if ((go_on == UINT_MAX && begin == UINT_MAX) || (!who[t] && (s == m || spoken.s[s] != text.s[i])))
                    continue;
                size_t to = (s + !who[t]) * turns + t;
                /* as likely: later, for that leaves no end of a turn at the start of the next */
                next[to] = begin <= go_on ? begin : go_on;
                began[(i + 1) * states + to] = begin <= go_on;
            }
        }
    }
    bool ok = cost[states - 1] < 1000;
    for (size_t i = n, s = m, t = turns - 1; ok && i > 0; i--) {
        bool first = began[i * states + s * turns + t];
        s -= !who[t];
        if (first) starts[t--] = i - 1;                      /* of the first turn at 0, where the loop ends */
    }
    starts[turns] = n;
    free(began); free(cost); free(next);
    return ok ||
        fail(&c->err,
             "\"utterance_data\" cannot be divided into the turns of \"speaker_utterance\" and \"speaker_info\"");
}

static Str with_commas(Str t) {             /* EmpatheticDialogues writes a comma inside a text as _comma_ */
    Text out = TEXT_EMPTY;
    for (size_t i = 0; i < t.n; i++)
        if (t.n - i >= 7 && !memcmp(t.s + i, "_comma_", 7)) {
            put_char(&out, ',');
            i += 6;
        } else put_char(&out, t.s[i]);
    return take(&out);
}
/* and in the layout with joined turns a turn with quotes as a CSV field would: "He said ""go""." */
static Str unquoted(Str t) {
    Text out = TEXT_EMPTY;
    size_t i = 1, pairs = 0;
    t = trim(t);
    if (t.n < 2 || t.s[0] != '"' || t.s[t.n - 1] != '"') return t;
    for (; i < t.n - 1 && (t.s[i] != '"' || (i + 1 < t.n - 1 && t.s[i + 1] == '"')); i++) {
        put_char(&out, t.s[i]);
        if (t.s[i] == '"') {
            i++;
            pairs++;
        }
    }
    Str inside = take(&out);
    return i == t.n - 1 && pairs ? inside : t;
}
static bool whole(const Json *v, double *out) {              /* a number, or a string that spells one */
    char *end;
    if (!v || !v->str || !*v->str) return false;
    *out = strtod(v->str, &end);
    return !*end && *out == floor(*out) && fabs(*out) < 1e9;
}
/* The emotion that a conversation is about: its name, in "emotion_label" or the first release's "context", or its
   number in
   "label" or "emotion" (the order of the Hugging Face data set). None: an empty text. */
static Str emotion_of(const Json *row) {
    static const char *const named[] = {"emotion_label", "context"}, *const numbered[] = {"label", "emotion"};
    static const char *const emotions[] = {"sad", "trusting", "terrified", "caring", "disappointed", "faithful",
        "joyful", "jealous",
        "disgusted", "surprised", "ashamed", "afraid", "impressed", "sentimental", "devastated", "excited",
            "anticipating",
        "annoyed", "anxious", "furious", "content", "lonely", "angry", "confident", "apprehensive", "guilty",
            "embarrassed",
        "grateful", "hopeful", "proud", "prepared", "nostalgic"};
    double n;
    for (int i = 0; i < 2; i++) {
        const Json *v = json_get(row, named[i]);
        if (v && v->type == JSON_STRING && v->count) return trim((Str){v->str, v->count});
    }
    for (int i = 0; i < 2; i++)
        if (whole(json_get(row, numbered[i]), &n) && n >= 0 && n < (double)(sizeof emotions / sizeof *emotions))
            return str(emotions[(int)n]);
    return (Str){NULL, 0};
}
/* With --classes: what the speaker begins with, and the class of the emotion. */
static bool empathetic_emit(Converter *c) {
    if (!o.classes) return emit(c);
    if (!c->group.n) return fail(&c->err, "the conversation has no emotion");
    if (!arrlen(c->turns) || c->turns[0].role != USER) return fail(&c->err, "the speaker does not begin");
    return emit_class(c, c->turns[0].text, c->group, c->turns[0].text);
}
/* prompt,utterance_data,speaker_utterance,emotion,emotion_label,speaker_info  with  I got a job,I got a job!Great!
   Where?,I got a job!,8,joyful,"[0, 1]"
   -> {"messages": [{"role": "user", "content": "I got a job!"}, {"role": "assistant", "content": "Great! Where?"}]} */
static bool empathetic_joined(Converter *c, const Json *row) {
    Str text, spoken, info;
    JsonDoc doc = {NULL, NULL};
    uint8_t who[100];
    size_t starts[101], turns = 0;
    if (!text_of(c, row, "utterance_data", &text) || !text_of(c, row, "speaker_utterance", &spoken) ||
        !text_of(c, row, "speaker_info", &info))
        return false;
    bool ok = json_parse(&doc, info.s, info.n, "speaker_info", 1, NULL) && doc.root->type == JSON_ARRAY &&
        doc.root->count <= 100;
    for (const Json *w = ok ? doc.root->child : NULL; w; w = w->next) {
        ok = ok && w->type == JSON_NUMBER;
        who[turns++] = w->number != 0;
    }
    json_free(&doc);
    if (!ok) return fail(&c->err, "\"speaker_info\" is not a list like [0, 1, 0, 1]");
    text = with_commas(text), spoken = with_commas(spoken);
    if (!divide(c, starts, text, spoken, who, turns)) return false;
    for (size_t i = 0; i < turns; i++)
        say_joined(&c->turns, who[i] ? ASSISTANT : USER,
                   unquoted((Str){text.s + starts[i], starts[i + 1] - starts[i]}));
    c->group = emotion_of(row);
    return empathetic_emit(c);
}
/* A row for each turn: conv_id,utterance_idx,prompt,utterance,label (the first release has speaker_idx too)
     hit:3_conv:6,1,I got a job,Guess what_comma_ I got a job!,8     and     hit:3_conv:6,2,I got a job,Great! Where?,8
   -> {"messages": [{"role": "user", "content": "Guess what, I got a job!"}, {"role": "assistant", "content": "Great!
   Where?"}]} */
static bool empathetic_row(Converter *c, const Json *row) {
    Str id, text;
    double speaker;
    Piece p = {0, -1, {NULL, 0}};
    if (json_get(row, "utterance_data")) return empathetic_joined(c, row);
    if (!text_of(c, row, "conv_id", &id) || !text_of(c, row, "utterance", &text)) return false;
    if (!whole(json_get(row, "utterance_idx"), &p.index))
        return fail(&c->err, "\"utterance_idx\" is not a whole number");
    if (whole(json_get(row, "speaker_idx"), &speaker)) p.speaker = (int)speaker;
    p.text = with_commas(text);
    ptrdiff_t i = shgeti(c->index, id.s);
    if (i < 0) {
        shput(c->index, id.s, arrlen(c->conversations));
        arrput(c->conversations, ((Pieces){NULL, c->row, join(emotion_of(row), "", str(""))}));
        i = shgeti(c->index, id.s);
    }
    arrput(c->conversations[c->index[i].value].piece, p);
    return true;
}
static int compare_pieces(const void *a, const void *b) {
    double x = ((const Piece *)a)->index, y = ((const Piece *)b)->index;
    return (x > y) - (x < y);
}
static void empathetic_run(Converter *c) {
    for (ptrdiff_t input = 0; input < arrlen(c->inputs); input++) {
        sh_new_strdup(c->index);
        each_row(c, c->inputs[input], empathetic_row);
        for (ptrdiff_t k = 0; k < arrlen(c->conversations); k++) {
            Piece *piece = c->conversations[k].piece;
            bool ok = true;
            qsort(piece, arrlenu(piece), sizeof *piece, compare_pieces);
            for (ptrdiff_t i = 0; i < arrlen(piece) && ok; i++) {
                bool asks = piece[i].speaker >= 0 ? piece[i].speaker == piece[0].speaker : i % 2 == 0;
                if (piece[i].index != (double)(i + 1))
                    ok = fail(&c->err, "the conversation that starts here has no turn %td, or two of them", i + 1);
                say_joined(&c->turns, asks ? USER : ASSISTANT, piece[i].text);
            }
            arrfree(piece);
            c->row = c->conversations[k].row;
            c->read--;                                       /* its rows were counted when they were read */
            c->group = c->conversations[k].emotion;
            row_done(c, ok && empathetic_emit(c));
        }
        arrfree(c->conversations);
        shfree(c->index);
    }
}

static const Format formats[] = {
    {"dstc11", "logs.json labels.json [knowledge.json]",
     "DSTC11 track 5: dialogues whose label has a response, which becomes the last message", true, NULL, dstc11_run},
    {"empathetic", "FILE.csv...",
     "EmpatheticDialogues: a row for each turn, or all turns in one row; the speaker is the user", true, NULL,
     empathetic_run},
    {"squad", "FILE.json...",
     "SQuAD 1.1 and 2.0: the user gives context and question; no answer becomes \"unanswerable\"", false, squad_row,
     NULL},
    {"alpaca", "FILE...", "instruction, input, output (.json, .jsonl or .csv)", false, alpaca_row, NULL},
    {"sharegpt", "FILE...", "conversations of {from, value} (human, gpt, system, ...), or messages of {role, content}",
     true, sharegpt_row, NULL},
    {"msdialog", "FILE.json...", "MSDialog-Complete or -Intent: posts of one person in a row are joined", true, NULL,
     msdialog_run},
    {"dpo", "FILE...", "prompt, chosen, rejected, texts or messages: written as TRL's preference rows", false, dpo_row,
     NULL},
    {"classical-chinese", "FILE.json...", "id, instruction, output", false, alpaca_row, NULL},
};

/* ---- choosing ---------------------------------------------------------------------------------------------------- */

/* A row of a --dedup-against file, anything the trainer reads or this program writes: remembers its prompt, all
   before the last answer. */
static bool against_row(Converter *c, const Json *row) {
    const Json *prompt = json_get(row, "prompt"),
               *list = json_get(row, "messages") ? json_get(row, "messages") : json_get(row, "conversations");
    Str text, input = {NULL, 0};
    if (list || (prompt && prompt->type == JSON_ARRAY)) {
        if (!messages_of(c, &c->turns, list ? list : prompt)) return false;
        while (list && arrlen(c->turns) && arrlast(c->turns).role != ASSISTANT) (void)arrpop(c->turns);
        if (list && arrlen(c->turns)) (void)arrpop(c->turns);
    } else {
        if (!text_of(c, row, prompt ? "prompt" : "instruction", &text) ||
            (!prompt && !optional_text(c, row, "input", &input)))
            return prompt ? false : fail(&c->err, "no messages, conversations, prompt or instruction");
        say(&c->turns, USER, join(text, "\n", input));
    }
    shput(c->seen, prompt_key(c->turns, arrlenu(c->turns)).s, 2);
    return true;
}

typedef struct Lot { uint64_t draw; size_t index; } Lot;
static int compare_lots(const void *a, const void *b) {
    const Lot *x = a, *y = b;
    return x->draw != y->draw ? (x->draw > y->draw) - (x->draw < y->draw)
                              : (x->index > y->index) - (x->index < y->index);
}
/* Whose lots: who is left out of one drawing must say nothing about the next. */
typedef enum { LOTS_SAMPLE, LOTS_IMBALANCE, LOTS_GROUPS } Lots;
static Lot *lots_of(const Converter *c, Lots which) {        /* stb_ds; all examples, in the order of their lots */
    Lot *lots = NULL;
    for (ptrdiff_t i = 0; i < arrlen(c->examples); i++) {
        uint64_t draw = c->examples[i].draw;
        if (which == LOTS_IMBALANCE) draw = hash(draw, str("imbalance"));
        arrput(lots, ((Lot){which == LOTS_GROUPS ? c->examples[i].group : draw, (size_t)i}));
    }
    qsort(lots, arrlenu(lots), sizeof *lots, compare_lots);
    return lots;
}

/* --sample: the lowest lots win, and keep the order of the input. */
static void sample(Converter *c) {
    size_t left = 0, count = arrlenu(c->examples);
    if (o.sample >= count) return;
    Lot *lots = lots_of(c, LOTS_SAMPLE);
    for (size_t i = o.sample; i < count; i++) c->examples[lots[i].index].part = -1;
    for (size_t i = 0; i < count; i++) if (c->examples[i].part >= 0) c->examples[left++] = c->examples[i];
    arrsetlen(c->examples, left);
    arrfree(lots);
}

/* --imbalance LABEL=N: N rows of that class for every row of the other; what is too many of one is left out by lot. */
static void imbalance(Converter *c) {
    const char *equal = strrchr(o.imbalance, '=');
    char *end = NULL;
    double ratio = equal ? strtod(equal + 1, &end) : 0;
    Str name = {o.imbalance, equal ? (size_t)(equal - o.imbalance) : 0};
    size_t many = 0, few = 0;
    if (!equal || !name.n || end == equal + 1 || *end || !(ratio > 0) || !(ratio <= 1e6))
        die(2, "bad value '%s' of --imbalance; command line; give LABEL=N as negative=3", o.imbalance);
    Str other = {NULL, 0};
    bool third = false;
    for (ptrdiff_t i = 0; i < arrlen(c->examples); i++) {
        Str label = c->examples[i].label;
        bool is = same(label, name);
        many += is, few += !is;
        if (!is && !other.n) other = label;
        third |= !is && !same(label, other);
    }
    if (!many || !few)
        die(1, "%zu rows have the label %.*s, %zu another; --imbalance; both are needed", many, (int)name.n, name.s,
            few);
    if (third) die(2, "more than two labels; --imbalance; leave it out, or map them to two with --classes");
    size_t want[2] = {(size_t)fmin((double)few, floor((double)many / ratio)),
                      (size_t)fmin((double)many, floor((double)few * ratio))}, had[2] = {0, 0}, left = 0;
    Lot *lots = lots_of(c, LOTS_IMBALANCE);
    for (ptrdiff_t i = 0; i < arrlen(lots); i++) {
        Example *e = &c->examples[lots[i].index];
        int is = same(e->label, name);
        if (had[is]++ >= want[is]) e->part = -1;
    }
    for (ptrdiff_t i = 0; i < arrlen(c->examples); i++)
        if (c->examples[i].part >= 0) c->examples[left++] = c->examples[i];
    arrsetlen(c->examples, left);
    arrfree(lots);
}

typedef struct Part { Str name; double share; size_t count; const char *path, *temporary; } Part;

/* "eval=0.1,test=0.05" -> parts; the first, train, is what the others leave. */
static Part *parse_split(const char *split) {
    Part *parts = NULL;
    double sum = 0;
    arrput(parts, ((Part){.name = str("train")}));
    for (const char *s = split; s;) {
        Part p = {.name = {s, strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")}};
        char *end = NULL;
        if (p.name.n && s[p.name.n] == '=') p.share = strtod(s + p.name.n + 1, &end);
        sum += p.share;
        if (!end || (*end && *end != ',') || !(p.share > 0) || !(sum < 1))
            die(2,
                "bad value '%s' of --split; command line; give NAME=SHARE,... as eval=0.1,test=0.05, together below 1",
                split);
        for (ptrdiff_t i = 0; i < arrlen(parts); i++)
            if (same(parts[i].name, p.name))
                die(2, "a part twice in --split %s; command line; name each once, train is what the others leave",
                    split);
        arrput(parts, p);
        s = *end ? end + 1 : NULL;
    }
    return parts;
}
/* Groups in the order of their lots fill the parts up to their share: a part takes a group if that brings it nearer
   to its share. */
static void split(Converter *c, Part *parts) {
    Lot *lots = lots_of(c, LOTS_GROUPS);
    size_t count = arrlenu(lots);
    for (size_t i = 0, size; i < count; i += size) {
        int to = 0;
        for (size = 1; i + size < count && lots[i + size].draw == lots[i].draw;) size++;
        for (int p = 1; p < (int)arrlen(parts) && !to; p++)
            if ((double)size < 2 * (round(parts[p].share * (double)count) - (double)parts[p].count)) to = p;
        for (size_t k = 0; k < size; k++) c->examples[lots[i + k].index].part = to;
        parts[to].count += size;
    }
    arrfree(lots);
    for (ptrdiff_t p = 0; p < arrlen(parts); p++)
        if (!parts[p].count)
            die(1, "no examples for %.*s; --split %s of %zu examples; give larger shares or more data",
                (int)parts[p].name.n, parts[p].name.s, o.split, count);
}
static const char *part_path(const char *output, Str part) { /* "rows.jsonl" -> "rows-eval.jsonl" */
    const char *slash = strrchr(output, '/'), *dot = strrchr(slash ? slash : output, '.');
    Str stem = {output, dot ? (size_t)(dot - output) : strlen(output)};
    return join(join(stem, "-", part), "", str(dot ? dot : ".jsonl")).s;
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

/* A temporary file that will take the place of path; a device or pipe is written itself. */
static FILE *open_part(const Converter *c, Part *p) {
    struct stat to, from;
    bool there = !stat(p->path, &to);
    char number[32];
    for (ptrdiff_t i = 0; there && S_ISREG(to.st_mode) && i < arrlen(c->inputs); i++)
        if (!stat(c->inputs[i], &from) && from.st_dev == to.st_dev && from.st_ino == to.st_ino)
            die(2, "the output would replace an input; %s; give another --output", p->path);
    snprintf(number, sizeof number, ".%ld.tmp", (long)getpid());
    if (!there || S_ISREG(to.st_mode)) p->temporary = join(str(p->path), "", str(number)).s;
    FILE *f = fopen(p->temporary ? p->temporary : p->path, "w");
    if (!f) die(1, "cannot write; %s: %s; give another --output", p->path, strerror(errno));
    if (p->temporary) arrput(temporaries, (char *)p->temporary);
    return f;
}
/* Every file is complete on the disk before the first takes its name: a full disk leaves earlier files as they were. */
static void write_parts(const Converter *c, Part *parts) {
    for (ptrdiff_t p = 0; p < arrlen(parts); p++) {
        FILE *f = parts[p].path ? open_part(c, &parts[p]) : stdout;
        bool ok = true;
        for (ptrdiff_t i = 0; ok && i < arrlen(c->examples); i++)
            if (c->examples[i].part == p)
                ok = fwrite(c->examples[i].line.s, 1, c->examples[i].line.n, f) == c->examples[i].line.n;
        ok = ok && !fflush(f) && (!parts[p].temporary || !fsync(fileno(f)));
        if (!ok)
            die(1, "cannot write; %s: %s; free some space or give another --output",
                parts[p].path ? parts[p].path : "standard output", strerror(errno));
        fclose(f);
    }
    for (ptrdiff_t p = 0; p < arrlen(parts); p++)
        if (parts[p].temporary && rename(parts[p].temporary, parts[p].path))
            die(1, "cannot write; %s: %s; give another --output", parts[p].path, strerror(errno));
}

/* ---- command line ------------------------------------------------------------------------------------------------ */

static const struct {
    const char *name;
    char type /* text, list, number, flag */;
    void *at;
    const char *value, *help;
} options[] = {
    {"output", 't', &o.output, "FILE",
     "write there instead of to standard output; an earlier file is replaced only by a complete one"},
    {"shape", 't', &o.shape, "SHAPE",
     "messages: for models with a chat template [default] | prompt-completion: plain "
     "text for base models, the last reply is learned | text: all in one text, all of "
     "it learned, 'Instruction: EMOTION' in front where there is one"},
    {"system", 't', &o.system, "TEXT", "put a system message in front"},
    {"with-knowledge", 'f', &o.with_knowledge, NULL,
     "dstc11: the reviews and FAQs that the label names as system message (knowledge.json is read only with this)"},
    {"labels", 'f', &o.labels, NULL,
     "msdialog: a row for every post with tags, which are the answer and its \"label\""},
    {"classes", 't', &o.classes, "MAP",
     "msdialog: a row for every turn of the agent, what was said before it and the class of its tags; empathetic: what "
     "the speaker begins with and the class of the emotion. MAP: initiative, valence, or as 'yes=CQ,FQ,IR;no=*'. The "
     "class is the answer and \"label\", for train --task causal_lm and classification; in text shape \"label\" alone"},
    {"imbalance", 't', &o.imbalance, "LABEL=N", "of two labels: N rows of LABEL for every row of the other"},
    {"each-reply", 'f', &o.each_reply, NULL,
     "dialogues: an example for every reply, with all before it, instead of one for the conversation"},
    {"split", 't', &o.split, "PARTS",
     "as eval=0.1,test=0.05: FILE-train.jsonl, FILE-eval.jsonl, FILE-test.jsonl; conversations that begin alike share "
     "a part"},
    {"sample", 'n', &o.sample, "N", "N examples drawn by --seed, in the order of the input"},
    {"max-examples", 'n', &o.max_examples, "N", "the first N examples"},
    {"seed", 'n', &o.seed, "N",
     "for --split and --sample [42]; with it the content of an example decides, not its place"},
    {"dedup", 'f', &o.dedup, NULL,
     "keep the first of the examples with the same prompt: all before the last reply, whatever capitals and white "
     "space"},
    {"dedup-against", 'l', &o.against, "FILE",
     "leave out examples whose prompt is in FILE (.jsonl, .json, .csv; may be repeated): keeps test data out of "
     "training"},
    {"strict", 'f', &o.strict, NULL, "stop at the first malformed row instead of skipping it"},
    {"help", 'f', &o.help, NULL, "this text"},
};
enum { OPTIONS = sizeof options / sizeof *options, FORMATS = sizeof formats / sizeof *formats };

static void help(void) {
    printf("convert - published data sets become rows for train_lora train --data\n\n  data/convert FORMAT INPUT... "
           "[options] > FILE.jsonl\n\nFormats:\n");
    for (int i = 0; i < FORMATS; i++)
        printf("  %-18s %s\n  %18s %s\n", formats[i].name, formats[i].inputs, "", formats[i].about);
    printf("\nOptions:\n");
    for (int i = 0; i < OPTIONS; i++)
        printf("  --%-14s %-6s %s\n", options[i].name, options[i].value ? options[i].value : "", options[i].help);
    printf("\nMaps of --classes:\n");
    for (int i = 0; i < CLASS_MAPS; i++) printf("  %-14s %s\n", class_maps[i].name, class_maps[i].map);
    printf("\nOrder: read, leave out duplicates, --imbalance, --sample, --max-examples, --split. Malformed rows are "
           "skipped and reported.\nExit status: 0 done, 1 a file or its data is at fault, 2 the command line is.\n\n"
           "  data/convert dstc11 logs.json labels.json knowledge.json --with-knowledge --output dstc11.jsonl --split "
           "eval=0.1\n"
           "  data/convert empathetic train.csv --each-reply --dedup --dedup-against test.jsonl --output train.jsonl\n"
           "  data/convert msdialog MSDialog-Intent.json --classes initiative --split eval=0.1 --output rows.jsonl\n"
           "  data/convert squad train-v2.0.json --shape prompt-completion --sample 5000 --seed 7 > squad.jsonl\n");
}

static void parse_option(int *i, int argc, char **argv) {
    const char *word = argv[*i] + 2, *value = strchr(word, '=') ? strchr(word, '=') + 1 : NULL;
    char name[64], *end;
    int k = 0;
    snprintf(name, sizeof name, "%.*s", (int)strcspn(word, "="), word);
    for (char *s = name; *s; s++) if (*s == '_') *s = '-';
    while (k < OPTIONS && strcmp(name, options[k].name)) k++;
    if (k == OPTIONS) die(2, "unknown option --%s; command line; see data/convert --help", name);
    if (options[k].type == 'f') {
        if (value) die(2, "--%s takes no value; command line; give it alone", name);
        *(bool *)options[k].at = true;
        return;
    }
    if (!value && ++*i >= argc) die(2, "--%s needs a value; command line; see data/convert --help", name);
    if (!value) value = argv[*i];
    if (utf8_invalid(value, strlen(value)) < strlen(value))
        die(2, "--%s is not UTF-8; command line; use a UTF-8 terminal", name);
    if (options[k].type == 't') *(const char **)options[k].at = value;
    else if (options[k].type == 'l') arrput(o.against, value);
    else {
        errno = 0;
        *(uint64_t *)options[k].at = strtoull(value, &end, 10);
        if (*value < '0' || *value > '9' || *end || errno)
            die(2, "bad value '%s' of --%s; command line; give a whole number", value, name);
    }
}

int main(int argc, char **argv) {
    static Converter c;
    Part *parts = NULL;
    atexit(remove_temporaries);
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "-h")) o.help = true;
        else if (!strncmp(argv[i], "--", 2)) parse_option(&i, argc, argv);
        else if (c.format) arrput(c.inputs, argv[i]);
        else {
            for (int k = 0; k < FORMATS; k++) if (!strcmp(argv[i], formats[k].name)) c.format = &formats[k];
            if (!c.format && !o.help)
                die(2,
                    "unknown format '%s'; command line; give dstc11, empathetic, squad, alpaca, sharegpt, msdialog, "
                    "dpo or classical-chinese",
                    argv[i]);
        }
    }
    if (o.help) { help(); return 0; }
    if (!c.format) die(2, "no format; command line; see data/convert --help");
    if (!arrlen(c.inputs)) die(2, "no input; command line; give %s %s", c.format->name, c.format->inputs);
    if (strcmp(o.shape, "messages") && strcmp(o.shape, "prompt-completion") && strcmp(o.shape, "text"))
        die(2, "bad value '%s' of --shape; command line; give messages or prompt-completion, or text", o.shape);
    if (is_text() && c.format->row == dpo_row)
        die(2, "--shape text of preferences; command line; give messages or prompt-completion");
    if (o.labels && c.format->run != msdialog_run) die(2, "--labels is for msdialog; command line; leave it out");
    if (o.classes && c.format->run != msdialog_run && c.format->run != empathetic_run)
        die(2, "--classes is for msdialog and empathetic; command line; leave it out");
    if (o.labels && o.classes) die(2, "--labels and --classes exclude each other; command line; give one of them");
    if (o.imbalance && !o.labels && !o.classes)
        die(2, "--imbalance without labels; command line; add --classes MAP");
    if (o.each_reply && (o.labels || o.classes))
        die(2, "--each-reply of rows with a label; command line; leave it out");
    if (o.classes)
        classes_parse(o.classes, c.format->run == msdialog_run ? "What does the agent's next post do?"
                                                               : "How does this person feel?");
    if (o.with_knowledge && c.format->run != dstc11_run)
        die(2, "--with-knowledge is for dstc11; command line; leave it out");
    if (o.each_reply && !c.format->dialogue)
        die(2, "--each-reply is for dialogues; command line; leave it out, rows of %s have one reply", c.format->name);
    if (o.split && !o.output)
        die(2,
            "--split without --output; command line; add --output FILE.jsonl, the parts get names like "
            "FILE-eval.jsonl");
    if (o.split) parts = parse_split(o.split);
    else arrput(parts, ((Part){.path = o.output}));
    for (ptrdiff_t p = 0; o.split && p < arrlen(parts); p++) parts[p].path = part_path(o.output, parts[p].name);

    for (ptrdiff_t i = 0; i < arrlen(o.against); i++) each_row(&c, o.against[i], against_row);
    c.read = 0;
    if (c.format->run) c.format->run(&c);
    else for (ptrdiff_t i = 0; i < arrlen(c.inputs); i++) each_row(&c, c.inputs[i], c.format->row);
    if (c.skipped > REPORTED) fprintf(stderr, "skipped: %zu more\n", c.skipped - REPORTED);
    if (!arrlen(c.examples))
        die(1,
            "no examples; %zu rows read, %zu skipped, %zu duplicates, %zu in --dedup-against; check the format and the "
            "files",
            c.read, c.skipped, c.duplicates, c.known);
    size_t made = arrlenu(c.examples);
    if (o.imbalance) imbalance(&c);
    sample(&c);
    if (arrlenu(c.examples) > o.max_examples) arrsetlen(c.examples, o.max_examples);
    if (o.split) split(&c, parts);
    write_parts(&c, parts);

    fprintf(stderr, "%zu rows read, %zu examples written", c.read, arrlenu(c.examples));
    for (ptrdiff_t p = 0; o.split && p < arrlen(parts); p++)
        fprintf(stderr, "%s%.*s %zu", p ? ", " : " (", (int)parts[p].name.n, parts[p].name.s, parts[p].count);
    fprintf(stderr, "%s, %zu skipped, %zu duplicates", o.split ? ")" : "", c.skipped, c.duplicates);
    if (o.against) fprintf(stderr, ", %zu in --dedup-against", c.known);
    if (c.untold) fprintf(stderr, ", %zu tags left out (--labels and --classes make rows of them)", c.untold);
    if (c.unclassed) fprintf(stderr, ", %zu in no class", c.unclassed);
    if (c.without) fprintf(stderr, ", %zu without a response", c.without);
    if (made > arrlenu(c.examples)) fprintf(stderr, ", %zu not chosen", made - arrlenu(c.examples));
    fprintf(stderr, "\n");
    if (o.classes) classes_print();
    arrfree(parts);
    return 0;
}
