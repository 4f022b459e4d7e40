/* data/chat.h : chat templates. A model folder says how its conversations become text in a small program in Jinja; this
   is an interpreter for exactly what published templates use of Jinja, byte for byte as transformers runs it.
   Use: part of lora.h through data/dataset.h; alone with TOKENIZER_IMPLEMENTATION and CHAT_IMPLEMENTATION defined.

   Contents
     public interface        chat_open, chat_text, chat_answers
     values, memory          None, truth values, numbers, strings that know where each byte comes from, lists, dicts
     template -> tokens      text, {{ }}, {% %}, {# #}; what trim_blocks and lstrip_blocks cut
     tokens -> tree          statements and expressions, Jinja's parser
     values as text          Python's str and repr, json.dumps
     operations              comparison, arithmetic, subscripts, slices
     methods, filters, tests one table each
     running                 expressions, statements, loops, macros
     a conversation          messages as values; text; which bytes are an answer
     fuzz entry              -DFUZZ_JINJA

   The way of a conversation, by the names to follow: chat_open -> chat_lex, chat_statements; chat_text ->
   chat_from_json, chat_block -> chat_eval, chat_add_str; chat_answers.
   A trainer may not be more lenient than the original: where Jinja or Python raises (None + str, an attribute of what
   is undefined), so does this. What published templates do not use is refused with its line and column, never
   approximated. Templates come from strangers: steps, depth and memory are bounded.
   Easy to get wrong, each has a test: a template's last line break is dropped; "-%}" eats more than trim_blocks does;
   `set` in a loop ends with the turn; dict.items is a method before it is a key; |safe makes + escape; a generator can
   be read once. */
#ifndef CHAT_H
#define CHAT_H

#include "../tokenizer.h"     /* Error, Text, Json, Tokenizer */

#ifdef __cplusplus
extern "C" {
#endif

/* ---- public interface -------------------------------------------------------------------------------------------- */

/* A template, parsed once; many threads may use it at the same time. */
typedef struct ChatProgram ChatProgram;
/* text: [bytes], UTF-8; name is for messages. NULL: err says what, with NAME:LINE:COLUMN. */
ChatProgram *chat_open(const char *text, size_t bytes, const char *name, Error *err);
void chat_close(ChatProgram *p);
bool chat_marks_answers(const ChatProgram *p);             /* has it {% generation %}? */
bool chat_reads(const ChatProgram *p, const char *name);   /* does it look at a variable of that name? */

/* What the template is told. */
typedef struct ChatInput {
    const Json *messages;                   /* array of objects */
    size_t count;                           /* the first so many of them */
    const Json *tools;                      /* NULL: None */
    const Json *kwargs, *tokens;            /* objects: variables by name; kwargs win over tokens (bos_token, ...) */
    bool add_generation_prompt;
    const char *date;                       /* what strftime_now takes for today, "YYYY-MM-DD"; NULL: now */
} ChatInput;

/* Where a byte of the text comes from: CHAT_TEMPLATE, or message i (from 0) as i + 1, but for its role; and whether it
   was written within {% generation %}. */
enum { CHAT_TEMPLATE = 0, CHAT_MESSAGES = 0x7FFF, CHAT_GENERATION = 0x8000 };
typedef struct ChatOutput {
    char *text;                             /* [bytes] and a zero byte */
    uint16_t *from;                         /* [bytes] */
    size_t bytes;
} ChatOutput;
bool chat_text(ChatOutput *out, const ChatProgram *p, const ChatInput *in, Error *err);
void chat_output_free(ChatOutput *out);

/* A template with what it needs of its model: the special tokens. It does what chat_render of tokenizer.h does for the
   templates that are known there. */
typedef struct ChatSource ChatSource;
/* The template of a file, or where that is NULL the folder's that t was opened from. */
ChatSource *chat_source_open(const Tokenizer *t, const char *file, Error *err);
void chat_source_close(ChatSource *s);
uint64_t chat_source_hash(const ChatSource *s);
bool chat_source_reads(const ChatSource *s, const char *name);
/* Renders as transformers' apply_chat_template; where the answers are: what the template puts within {% generation %},
   where it has that. Else all of an answer behind the prompt that asks for it (the messages before it, with
   add_generation_prompt): its content and what the template writes around it, up to and including the next token that
   ends a turn. Where the prompt is not what stands in front (templates that rewrite history), from where they part, the
   header that the prompt ends with, or the content. An answer that no special token ends: refused. */
bool chat_source_render(ChatText *out, const ChatSource *s, const ChatMessage *messages, size_t count,
                        ChatOptions options, Error *err);

#ifdef __cplusplus
}
#endif
#endif /* CHAT_H */

#if defined(FUZZ_JINJA) && !defined(CHAT_IMPLEMENTATION)
#define CHAT_IMPLEMENTATION
#endif
#if (defined(CHAT_IMPLEMENTATION) || defined(DATASET_IMPLEMENTATION)) && !defined(CHAT_IMPLEMENTED)
#define CHAT_IMPLEMENTED
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ---- values, memory ------------------------------------------------------------------------------------------------
   All that a run makes lies in an arena that ends with it; values are never changed but for a namespace's attributes
   (transformers' sandbox forbids list.append and its like). */

#ifdef FUZZ_JINJA
enum { CHAT_STEPS = 100000, CHAT_MEMORY = 1 << 26 };
#else
enum { CHAT_STEPS = 50000000, CHAT_MEMORY = 1 << 30 };
#endif
enum { CHAT_DEPTH = 500, CHAT_NESTED = 100, CHAT_RANGE = 100000 };

typedef struct ChatBlock { struct ChatBlock *next; size_t used, size; } ChatBlock;    /* size bytes follow */
typedef struct ChatArena { ChatBlock *blocks; size_t bytes; } ChatArena;

/* NULL: no memory, or more than anybody's conversation takes. */
static void *chat_take(ChatArena *a, size_t bytes) {
    ChatBlock *b = a->blocks;
    bytes = (bytes + 7) & ~(size_t)7;
    if (!b || b->size - b->used < bytes) {
        size_t size = b ? b->size * 2 : 16384;
        if (size > (size_t)1 << 22) size = (size_t)1 << 22;
        if (size < bytes) size = bytes;
        if (bytes > CHAT_MEMORY || a->bytes + size > CHAT_MEMORY) return NULL;
        if (!(b = (ChatBlock *)malloc(sizeof *b + size))) return NULL;
        b->next = a->blocks; b->used = 0; b->size = size;
        a->blocks = b;
        a->bytes += size;
    }
    void *p = (char *)(b + 1) + b->used;
    b->used += bytes;
    return memset(p, 0, bytes);
}
static void chat_arena_free(ChatArena *a) {
    for (ChatBlock *b = a->blocks, *next; b; b = next) { next = b->next; free(b); }
    a->blocks = NULL;
}

typedef enum {
    CHAT_UNDEFINED, CHAT_NULL, CHAT_BOOL, CHAT_INT, CHAT_FLOAT,
    CHAT_BIG,                               /* an integer beyond 64 bits: can be written, not computed with */
    CHAT_STRING, CHAT_LIST, CHAT_TUPLE, CHAT_DICT,
    CHAT_VIEW,                              /* dict.items(), range(): a list that is none for JSON */
    CHAT_ITERATOR,                          /* a generator: map, select, items; read once */
    CHAT_SPACE, CHAT_MACRO, CHAT_GLOBAL, CHAT_METHOD, CHAT_LOOP
} ChatType;
typedef struct ChatValue ChatValue;
typedef struct ChatNode ChatNode;
typedef struct ChatScope ChatScope;
struct ChatValue {
    ChatType type;
    uint16_t from;                          /* where it comes from, as in ChatOutput */
    bool safe;                              /* STRING: Markup; + escapes what is put beside it */
    uint32_t n;                             /* STRING: bytes; LIST, TUPLE, DICT (pairs), VIEW: elements */
    union {
        bool b;
        int64_t i;
        double f;
        const char *s;                      /* STRING, BIG; METHOD and GLOBAL: its name */
        ChatValue *list;                    /* DICT: key, value, key, value ... */
        struct ChatIterator *iterator;
        struct ChatBinding **space;
        const ChatNode *macro;
        struct ChatLoop *loop;
    };
    union {
        const uint16_t *marks;              /* STRING: [n] where each byte comes from; NULL: all of `from` */
        const ChatValue *self;              /* METHOD: of what */
        ChatScope *scope;                   /* MACRO: where it was defined */
    };
};
typedef struct ChatIterator { ChatValue *list; uint32_t n; bool spent; } ChatIterator;
typedef struct ChatBinding { const char *name; ChatValue value; struct ChatBinding *next; } ChatBinding;
struct ChatScope { ChatScope *up; ChatBinding *first; };

/* A text in the making. from: NULL while all of it is the template's. */
typedef struct ChatBuffer { char *at; uint16_t *from; uint32_t n, room; } ChatBuffer;

typedef enum {
    /* statements: their bodies and the like are lists by `next` */
    CHAT_DO_TEXT, CHAT_DO_PRINT, CHAT_DO_IF, CHAT_DO_FOR, CHAT_DO_SET, CHAT_DO_SET_BLOCK, CHAT_DO_MACRO,
    CHAT_DO_FILTER, CHAT_DO_GENERATION, CHAT_DO_BREAK, CHAT_DO_CONTINUE,
    /* expressions */
    CHAT_IS_CONST, CHAT_IS_NAME, CHAT_IS_ATTRIBUTE, CHAT_IS_ITEM, CHAT_IS_SLICE, CHAT_IS_CALL, CHAT_IS_FILTER,
    CHAT_IS_TEST, CHAT_IS_NEGATIVE, CHAT_IS_POSITIVE, CHAT_IS_NOT, CHAT_IS_AND, CHAT_IS_OR, CHAT_IS_CHOICE,
    CHAT_IS_BINARY, CHAT_IS_JOINED, CHAT_IS_COMPARED, CHAT_IS_LIST, CHAT_IS_TUPLE, CHAT_IS_DICT, CHAT_IS_CAPTURED
} ChatKind;
struct ChatNode {
    ChatKind kind;
    uint32_t at;                            /* offset in the template */
    ChatNode *next;
    ChatNode *a, *b, *c, *d;                /* by kind; see where each is made */
    const char *name;                       /* of a variable, attribute, filter, test, keyword; an operator */
    bool negated;                           /* TEST: is not */
    ChatValue value;                        /* CONST, TEXT */
};

struct ChatProgram {
    ChatArena arena;
    char *name, *source;                    /* line breaks are \n */
    uint32_t bytes;
    ChatNode *body;
    ChatBinding *names;                     /* every identifier once: compared by address */
    const char *loop;                       /* "loop" among them */
    bool generation;
};

typedef struct ChatLoop {
    ChatValue *list; uint32_t n;
    uint32_t seen;                          /* how many of `list` were looked at: behind the next one, if it is known */
    int64_t index;                          /* of the current one, from 1 */
    bool filtered, peeked, has_next;
    ChatValue current, before, after;
    const ChatNode *node;
    ChatScope *scope;                       /* around the loop */
} ChatLoop;

typedef enum { CHAT_GOES_ON, CHAT_BREAKS, CHAT_CONTINUES } ChatFlow;
typedef struct ChatRun {
    const ChatProgram *program;
    const ChatInput *in;
    ChatArena arena;
    Error *err;
    jmp_buf raised;                         /* an exception ends the run: nothing of it outlives the arena */
    uint32_t at;                            /* offset in the template of what is being done */
    int64_t steps;
    int depth;
    ChatBuffer *out;
    ChatValue captured;                     /* what a block's filter is given */
    ChatFlow flow;
} ChatRun;

#if defined(__GNUC__)
#define CHAT_ENDS __attribute__((noreturn))
#define CHAT_PRINTS(k) __attribute__((format(printf, k, k + 1)))
#else
#define CHAT_ENDS
#define CHAT_PRINTS(k)
#endif

/* "what; NAME:LINE:COLUMN; todo" */
static void chat_place(Error *err, const ChatProgram *p, uint32_t at, const char *what, const char *todo) {
    size_t line = 1, column = 1;
    for (uint32_t i = 0; i < at && i < p->bytes; i++) {
        if (p->source[i] == '\n') { line++; column = 1; }
        else if ((p->source[i] & 0xC0) != 0x80) column++;
    }
    fail(err, "%s; %s:%zu:%zu; %s", what, p->name, line, column, todo);
}
static const char chat_todo_raised[] = "the template refuses this conversation, as in transformers: correct the row",
                  chat_todo_foreign[] = "published templates do not use it: rewrite the template without it",
                  chat_todo_bounds[] = "give another template, or shorter conversations";
static void CHAT_ENDS CHAT_PRINTS(3) chat_raise(ChatRun *c, const char *todo, const char *format, ...) {
    char what[700];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    chat_place(c->err, c->program, c->at, what, todo);
    longjmp(c->raised, 1);
}
#define CHAT_RAISE(c, ...) chat_raise(c, chat_todo_raised, __VA_ARGS__)
#define CHAT_REFUSE(c, ...) chat_raise(c, chat_todo_foreign, __VA_ARGS__)

static void *chat_alloc(ChatRun *c, size_t bytes) {
    void *p = chat_take(&c->arena, bytes);
    if (!p) chat_raise(c, chat_todo_bounds, "the template takes too much memory");
    return p;
}
static void chat_steps(ChatRun *c, size_t more) {
    if ((c->steps -= (int64_t)more) < 0) chat_raise(c, chat_todo_bounds, "the template takes too many steps");
}
static void chat_deeper(ChatRun *c) {
    if (++c->depth > CHAT_DEPTH) chat_raise(c, chat_todo_bounds, "nested too deeply");
}

static ChatValue chat_value(ChatType type) {
    ChatValue v;
    memset(&v, 0, sizeof v);
    v.type = type;
    return v;
}
static ChatValue chat_bool(bool b) { ChatValue v = chat_value(CHAT_BOOL); v.b = b; return v; }
static ChatValue chat_int(int64_t i) { ChatValue v = chat_value(CHAT_INT); v.i = i; return v; }
static ChatValue chat_float(double f) { ChatValue v = chat_value(CHAT_FLOAT); v.f = f; return v; }
static ChatValue chat_string(const char *s, size_t n) {
    ChatValue v = chat_value(CHAT_STRING);
    v.s = s; v.n = (uint32_t)n;
    return v;
}
static ChatValue chat_list(ChatRun *c, ChatType type, uint32_t n) {
    ChatValue v = chat_value(type);
    v.n = n;
    v.list = (ChatValue *)chat_alloc(c, ((size_t)n + 1) * (type == CHAT_DICT ? 2 : 1) * sizeof *v.list);
    return v;
}
static ChatValue chat_iterator(ChatRun *c, ChatValue *list, uint32_t n) {
    ChatValue v = chat_value(CHAT_ITERATOR);
    v.iterator = (ChatIterator *)chat_alloc(c, sizeof *v.iterator);
    v.iterator->list = list; v.iterator->n = n;
    return v;
}
/* Bytes [begin, end) of a string. */
static ChatValue chat_cut(ChatValue v, uint32_t begin, uint32_t end) {
    v.s += begin; v.n = end - begin;
    if (v.marks) v.marks += begin;
    return v;
}

static void chat_room(ChatRun *c, ChatBuffer *b, size_t more) {
    if (b->room - b->n > more) return;                       /* a zero byte too */
    size_t room = ((size_t)b->n + more) * 2 + 64;
    if (room > CHAT_MEMORY) chat_raise(c, chat_todo_bounds, "the template writes too much");
    char *at = (char *)chat_alloc(c, room);
    if (b->n) memcpy(at, b->at, b->n);
    if (b->from) {
        uint16_t *from = (uint16_t *)chat_alloc(c, room * sizeof *from);
        memcpy(from, b->from, b->n * sizeof *from);
        b->from = from;
    }
    b->at = at; b->room = (uint32_t)room;
}
/* Appends n bytes that come from `marks` ([n], or NULL: all from `from`). */
static void chat_add(ChatRun *c, ChatBuffer *b, const char *s, size_t n, uint16_t from, const uint16_t *marks) {
    chat_steps(c, 1 + n / 16);
    chat_room(c, b, n);
    if ((from || marks) && !b->from) b->from = (uint16_t *)chat_alloc(c, b->room * sizeof *b->from);
    if (n) memcpy(b->at + b->n, s, n);
    for (size_t i = 0; b->from && i < n; i++) b->from[b->n + i] = marks ? marks[i] : from;
    b->n += (uint32_t)n;
}
static void chat_add_text(ChatRun *c, ChatBuffer *b, const char *s, uint16_t from) {
    chat_add(c, b, s, strlen(s), from, NULL);
}
static void chat_add_value(ChatRun *c, ChatBuffer *b, ChatValue v) {
    chat_add(c, b, v.s, v.n, v.from, v.marks);
}
static ChatValue chat_taken(const ChatBuffer *b) {
    ChatValue v = chat_string(b->at ? b->at : "", b->n);
    v.marks = b->from;
    return v;
}

/* Python's str.isspace, and \s of its regular expressions. */
static bool chat_is_space(uint32_t c) {
    return (c >= 9 && c <= 13) || (c >= 28 && c <= 32) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}
/* The character that begins at s[0] or, last, ends at s[n-1]: its bytes. n > 0 bytes of UTF-8. */
static uint32_t chat_character(const char *s, uint32_t n, bool last, uint32_t *cp) {
    uint32_t begin = 0;
    if (last) for (begin = n - 1; begin && (s[begin] & 0xC0) == 0x80;) begin--;
    int bytes = utf8_get(s + begin, n - begin, cp);
    if (bytes <= 0) { *cp = 0xFFFD; bytes = 1; }
    return (uint32_t)bytes;
}
static uint32_t chat_characters(ChatValue v) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < v.n; i++) n += (v.s[i] & 0xC0) != 0x80;
    return n;
}
/* Where character i begins. */
static uint32_t chat_offset(ChatValue v, int64_t i) {
    uint32_t at = 0;
    for (; at < v.n; at++) if ((v.s[at] & 0xC0) != 0x80 && i-- == 0) break;
    return at;
}
static bool chat_same(ChatValue v, const char *s) { return v.n == strlen(s) && !memcmp(v.s, s, v.n); }
/* Is a word in a list such as "|a|b|"? */
static bool chat_among(const char *list, const char *word) {
    size_t n = strlen(word);
    if (!n || strchr(word, '|')) return false;
    for (const char *s = list; (s = strstr(s, word)) != NULL; s++) if (s[-1] == '|' && s[n] == '|') return true;
    return false;
}

/* ---- template -> tokens --------------------------------------------------------------------------------------------
   As jinja2's lexer with trim_blocks and lstrip_blocks: a block's line break goes, blanks before a block that begins
   its line go; "-" cuts all white space on its side, "+" nothing. */

typedef enum {
    CHAT_T_END, CHAT_T_TEXT, CHAT_T_PRINT, CHAT_T_PRINT_END, CHAT_T_BLOCK, CHAT_T_BLOCK_END, CHAT_T_NAME, CHAT_T_STRING,
    CHAT_T_INT, CHAT_T_FLOAT, CHAT_T_MARK
} ChatTokenType;
typedef struct ChatToken { ChatTokenType type; uint32_t at, n; const char *s; } ChatToken;

typedef struct ChatParser {
    ChatProgram *p;
    Error *err;
    ChatToken *tokens; uint32_t count, room;
    uint32_t i;                             /* the token that is looked at */
    int depth, loops;                       /* loops: that a break here could end */
    jmp_buf failed;
} ChatParser;

static void CHAT_ENDS CHAT_PRINTS(3) chat_wrong(ChatParser *q, uint32_t at, const char *format, ...) {
    char what[400];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    chat_place(q->err, q->p, at, what, "correct the template; published templates show what is understood");
    longjmp(q->failed, 1);
}
static void *chat_keep(ChatParser *q, size_t bytes) {
    void *p = chat_take(&q->p->arena, bytes);
    if (!p) chat_wrong(q, 0, "the template is too large");
    return p;
}
static void chat_token(ChatParser *q, ChatTokenType type, uint32_t at, const char *s, uint32_t n) {
    if (q->count == q->room) {
        ChatToken *more = (ChatToken *)chat_keep(q, (q->room * 2 + 256) * sizeof *more);
        if (q->count) memcpy(more, q->tokens, q->count * sizeof *more);
        q->tokens = more;
        q->room = q->room * 2 + 256;
    }
    ChatToken *t = &q->tokens[q->count++];
    t->type = type; t->at = at; t->s = s; t->n = n;
}

static uint32_t chat_skip_space(const ChatProgram *p, uint32_t i) {
    uint32_t cp;
    while (i < p->bytes) {
        uint32_t n = chat_character(p->source + i, p->bytes - i, false, &cp);
        if (!chat_is_space(cp)) break;
        i += n;
    }
    return i;
}
/* The text [begin, end) before a tag whose sign is '-', '+' or 0. */
static void chat_lex_text(ChatParser *q, uint32_t begin, uint32_t end, char sign, bool print, bool line_start) {
    const char *s = q->p->source;
    uint32_t cp;
    if (sign == '-') {
        while (end > begin) {
            uint32_t n = chat_character(s + begin, end - begin, true, &cp);
            if (!chat_is_space(cp)) break;
            end -= n;
        }
    } else if (sign != '+' && !print) {
        uint32_t line = end;
        while (line > begin && s[line - 1] != '\n') line--;
        if ((line > begin || line_start) && chat_skip_space(q->p, line) >= end) end = line;
    }
    if (end > begin) chat_token(q, CHAT_T_TEXT, begin, s + begin, end - begin);
}

/* A string's body [n] between its quotes, its escapes undone as Python's unicode-escape does. */
static void chat_lex_string(ChatParser *q, uint32_t at, const char *s, uint32_t n) {
    static const char marks[] = "ntr\\'\"abfv\n", letters[] = "\n\t\r\\'\"\a\b\f\v";
    char *out = (char *)chat_keep(q, n + 1), *o = out;
    for (uint32_t i = 0; i < n;) {
        if (s[i] != '\\' || i + 1 == n) { *o++ = s[i++]; continue; }
        char e = s[i + 1];
        const char *mark = strchr(marks, e);
        int digits = e == 'x' ? 2 : e == 'u' ? 4 : e == 'U' ? 8 : 0;
        if (mark && *mark) { if (e != '\n') *o++ = letters[mark - marks]; i += 2; continue; }
        if (digits) {
            uint32_t cp = 0;
            int k = 0;
            for (; k < digits && i + 2 + (uint32_t)k < n; k++) {
                char h = s[i + 2 + (uint32_t)k];
                int v = h >= '0' && h <= '9' ? h - '0' : h >= 'a' && h <= 'f' ? h - 'a' + 10
                        : h >= 'A' && h <= 'F' ? h - 'A' + 10 : 16;
                if (v == 16) break;
                cp = cp << 4 | (uint32_t)v;
            }
            if (k < digits || cp > 0x10FFFF || (cp >= 0xD800 && cp < 0xE000))
                chat_wrong(q, at + i, "a \\%c in a string without its %d hexadecimal digits", e, digits);
            if (cp < 0x80) *o++ = (char)cp;
            else {
                int more = cp < 0x800 ? 1 : cp < 0x10000 ? 2 : 3;
                *o++ = (char)((more == 1 ? 0xC0 : more == 2 ? 0xE0 : 0xF0) | cp >> 6 * more);
                while (more--) *o++ = (char)(0x80 | (cp >> 6 * more & 0x3F));
            }
            i += 2 + (uint32_t)digits;
            continue;
        }
        if ((e & 0x80) || e == 'N' || (e >= '0' && e <= '7')) chat_wrong(q, at + i, "an unknown escape in a string");
        *o++ = s[i++];
    }
    chat_token(q, CHAT_T_STRING, at, out, (uint32_t)(o - out));
}

static bool chat_is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
static bool chat_is_digit(char c) { return c >= '0' && c <= '9'; }

/* The code within a tag, from i; returns the offset behind the tag. */
static uint32_t chat_lex_code(ChatParser *q, uint32_t i, bool print) {
    static const char *const pairs[] = {"==", "!=", ">=", "<=", "//", "**"};
    const char *s = q->p->source;
    uint32_t bytes = q->p->bytes, begin = i, n;
    char open[CHAT_NESTED];
    int nested = 0;
    for (;;) {
        if ((i = chat_skip_space(q->p, i)) >= bytes) chat_wrong(q, begin, "a tag that is not closed");
        char c = s[i], next = s[i + 1], third = next ? s[i + 2] : 0, last = print ? '}' : '%';
        ChatTokenType end = print ? CHAT_T_PRINT_END : CHAT_T_BLOCK_END;
        if (!nested && c == last && next == '}') {
            chat_token(q, end, i, s + i, 2);
            return i + 2 + (!print && third == '\n');
        }
        if (!nested && (c == '-' || (c == '+' && !print)) && next == last && third == '}') {
            chat_token(q, end, i, s + i, 3);
            return c == '-' ? chat_skip_space(q->p, i + 3) : i + 3;
        }
        if (chat_is_letter(c)) {
            for (n = 1; i + n < bytes && (chat_is_letter(s[i + n]) || chat_is_digit(s[i + n]));) n++;
            chat_token(q, CHAT_T_NAME, i, s + i, n);
        } else if (chat_is_digit(c)) {
            for (n = 1; i + n < bytes && chat_is_digit(s[i + n]);) n++;
            bool real = !(i && s[i - 1] == '.') && i + n + 1 < bytes && s[i + n] == '.' && chat_is_digit(s[i + n + 1]);
            if (real) for (n += 2; i + n < bytes && chat_is_digit(s[i + n]);) n++;
            if (i + n < bytes && (s[i + n] == 'e' || s[i + n] == 'E')) {     /* 1e3, 1.5e-3 */
                uint32_t digits = n + 1 + (s[i + n + 1] == '+' || s[i + n + 1] == '-');
                real = i + digits < bytes && chat_is_digit(s[i + digits]);
                if (real) for (n = digits; i + n < bytes && chat_is_digit(s[i + n]);) n++;
            }
            if ((i + n < bytes && chat_is_letter(s[i + n])) || (!real && n > 1 && c == '0'))
                chat_wrong(q, i, "a number of a kind that is not known");
            chat_token(q, real ? CHAT_T_FLOAT : CHAT_T_INT, i, s + i, n);
        } else if (c == '"' || c == '\'') {
            for (n = 1; i + n < bytes && s[i + n] != c;) n += s[i + n] == '\\' ? 2 : 1;
            if (i + n >= bytes) chat_wrong(q, i, "a string that is not closed");
            chat_lex_string(q, i, s + i + 1, n - 1);
            n++;
        } else {
            n = 1;
            for (int k = 0; k < 6; k++) if (c == pairs[k][0] && next == pairs[k][1]) n = 2;
            if (n == 1 && !strchr("+-/*%~[](){}><=.:|,", c)) chat_wrong(q, i, "an unexpected character");
            if (strchr("([{", c)) {
                if (nested == CHAT_NESTED) chat_wrong(q, i, "nested too deeply");
                open[nested++] = c == '(' ? ')' : c == '[' ? ']' : '}';
            }
            if (strchr(")]}", c) && (!nested || open[--nested] != c)) chat_wrong(q, i, "an unexpected '%c'", c);
            chat_token(q, CHAT_T_MARK, i, s + i, n);
        }
        i += n;
    }
}

static void chat_lex(ChatParser *q) {
    const char *s = q->p->source;
    uint32_t bytes = q->p->bytes, i = 0;
    bool line_start = true;
    while (i < bytes) {
        uint32_t tag = i;
        while (tag < bytes && !(s[tag] == '{' && (s[tag + 1] == '{' || s[tag + 1] == '%' || s[tag + 1] == '#'))) tag++;
        if (tag == bytes) { chat_token(q, CHAT_T_TEXT, i, s + i, bytes - i); break; }
        char kind = s[tag + 1], sign = s[tag + 2] == '-' || s[tag + 2] == '+' ? s[tag + 2] : 0;
        chat_lex_text(q, i, tag, sign, kind == '{', line_start);
        i = tag + 2 + (sign != 0);
        if (kind == '#') {
            const char *end = strstr(s + i, "#}");
            if (!end) chat_wrong(q, tag, "a comment that is not closed");
            uint32_t close = (uint32_t)(end - s);
            char before = close > i ? s[close - 1] : 0;
            i = close + 2;
            if (before == '-') i = chat_skip_space(q->p, i);
            else if (before != '+' && s[i] == '\n') i++;
        } else {
            chat_token(q, kind == '{' ? CHAT_T_PRINT : CHAT_T_BLOCK, tag, s + tag, 2);
            i = chat_lex_code(q, i, kind == '{');
        }
        line_start = s[i - 1] == '\n';
    }
    chat_token(q, CHAT_T_END, bytes, s + bytes, 0);
}

/* ---- tokens -> tree ---------------------------------------------------------------------------------------------- */

static const ChatToken *chat_now(ChatParser *q) { return &q->tokens[q->i]; }
static bool chat_is_token(const ChatToken *t, ChatTokenType type, const char *s) {
    return t->type == type && t->n == strlen(s) && !memcmp(t->s, s, t->n);
}
static bool chat_at_mark(ChatParser *q, const char *s) { return chat_is_token(chat_now(q), CHAT_T_MARK, s); }
static bool chat_at_word(ChatParser *q, const char *s) { return chat_is_token(chat_now(q), CHAT_T_NAME, s); }
static bool chat_skip_mark(ChatParser *q, const char *s) { return chat_at_mark(q, s) && ++q->i; }
static bool chat_skip_word(ChatParser *q, const char *s) { return chat_at_word(q, s) && ++q->i; }
static void CHAT_ENDS chat_unexpected(ChatParser *q, const char *expected) {
    const ChatToken *t = chat_now(q);
    chat_wrong(q, t->at, "expected %s, found %s%.*s", expected, t->type == CHAT_T_END ? "the end" : "",
               (int)(t->n < 40 ? t->n : 40), t->s);
}
static void chat_expect(ChatParser *q, const char *mark) { if (!chat_skip_mark(q, mark)) chat_unexpected(q, mark); }
static void chat_expect_end(ChatParser *q, ChatTokenType end) {
    if (chat_now(q)->type != end) chat_unexpected(q, end == CHAT_T_PRINT_END ? "}}" : "%}");
    q->i++;
}

static const char *chat_name(ChatProgram *p, const char *s, size_t n) {
    for (ChatBinding *b = p->names; b; b = b->next) if (strlen(b->name) == n && !memcmp(b->name, s, n)) return b->name;
    ChatBinding *b = (ChatBinding *)chat_take(&p->arena, sizeof *b);
    char *copy = (char *)chat_take(&p->arena, n + 1);
    if (!b || !copy) return NULL;
    memcpy(copy, s, n);
    b->name = copy; b->next = p->names;
    p->names = b;
    return copy;
}
static const char *chat_expect_name(ChatParser *q) {
    const ChatToken *t = chat_now(q);
    if (t->type != CHAT_T_NAME) chat_unexpected(q, "a name");
    q->i++;
    const char *name = chat_name(q->p, t->s, t->n);
    if (!name) chat_wrong(q, t->at, "the template is too large");
    return name;
}
static ChatNode *chat_node(ChatParser *q, ChatKind kind, uint32_t at, ChatNode *a, ChatNode *b) {
    ChatNode *n = (ChatNode *)chat_keep(q, sizeof *n);
    n->kind = kind; n->at = at; n->a = a; n->b = b;
    return n;
}
static ChatNode *chat_constant(ChatParser *q, uint32_t at, ChatValue v) {
    ChatNode *n = chat_node(q, CHAT_IS_CONST, at, NULL, NULL);
    n->value = v;
    return n;
}
static void chat_parse_deeper(ChatParser *q) {
    if (++q->depth > CHAT_NESTED) chat_wrong(q, chat_now(q)->at, "nested too deeply");
}

static ChatNode *chat_expression(ChatParser *q);
static ChatNode *chat_or(ChatParser *q);
static ChatNode *chat_unary(ChatParser *q, bool filters);
static ChatNode *chat_postfix(ChatParser *q, ChatNode *n);

static ChatNode **chat_push(ChatNode **tail, ChatNode *n) { *tail = n; return &n->next; }
/* A list's element is a node of its own, as an expression can be in one list alone: {a: what, name: keyword or NULL} */
static ChatNode *chat_element(ChatParser *q, ChatNode *value, const char *name) {
    ChatNode *n = chat_node(q, CHAT_IS_CAPTURED, value->at, value, NULL);
    n->name = name;
    return n;
}

/* "(...)": arguments. */
static ChatNode *chat_arguments(ChatParser *q) {
    ChatNode *list = NULL, **tail = &list;
    bool named = false;
    chat_expect(q, "(");
    while (!chat_at_mark(q, ")")) {
        const char *name = NULL;
        if (list) { chat_expect(q, ","); if (chat_at_mark(q, ")")) break; }
        if (chat_at_mark(q, "*") || chat_at_mark(q, "**")) chat_wrong(q, chat_now(q)->at, "* and ** in arguments");
        if (chat_now(q)->type == CHAT_T_NAME && chat_is_token(&q->tokens[q->i + 1], CHAT_T_MARK, "=")) {
            name = chat_expect_name(q);
            q->i++;
            named = true;
        } else if (named) chat_unexpected(q, "a keyword argument");
        tail = chat_push(tail, chat_element(q, chat_expression(q), name));
    }
    q->i++;
    return list;
}

/* a, b, c: a tuple where there is a comma. choice: may it have "if"? */
static ChatNode *chat_tuple(ChatParser *q, bool parentheses, bool choice) {
    ChatNode *list = NULL, **tail = &list, *first = NULL;
    uint32_t at = chat_now(q)->at;
    bool comma = false;
    for (;;) {
        const ChatToken *t = chat_now(q);
        if (t->type == CHAT_T_PRINT_END || t->type == CHAT_T_BLOCK_END || chat_at_mark(q, ")")) break;
        ChatNode *n = choice ? chat_expression(q) : chat_or(q);
        if (!first) first = n;
        tail = chat_push(tail, chat_element(q, n, NULL));
        if (!chat_skip_mark(q, ",")) break;
        comma = true;
    }
    if (first && !comma) return first;
    if (!first && !parentheses) chat_unexpected(q, "an expression");
    return chat_node(q, CHAT_IS_TUPLE, at, list, NULL);
}

static ChatNode *chat_number(ChatParser *q, const ChatToken *t) {
    char text[64];
    if (t->n >= sizeof text || (t->type == CHAT_T_INT && t->n > 18)) chat_wrong(q, t->at, "a number that is too long");
    memcpy(text, t->s, t->n);
    text[t->n] = 0;
    return chat_constant(q, t->at, t->type == CHAT_T_INT ? chat_int(strtoll(text, NULL, 10))
                                                        : chat_float(strtod(text, NULL)));
}

static ChatNode *chat_primary(ChatParser *q) {
    const ChatToken *t = chat_now(q);
    ChatNode *list = NULL, **tail = &list, *n;
    if (t->type == CHAT_T_NAME) {
        if (chat_skip_word(q, "true") || chat_skip_word(q, "True")) return chat_constant(q, t->at, chat_bool(true));
        if (chat_skip_word(q, "false") || chat_skip_word(q, "False")) return chat_constant(q, t->at, chat_bool(false));
        if (chat_skip_word(q, "none") || chat_skip_word(q, "None"))
            return chat_constant(q, t->at, chat_value(CHAT_NULL));
        n = chat_node(q, CHAT_IS_NAME, t->at, NULL, NULL);
        n->name = chat_expect_name(q);
        return n;
    }
    q->i++;
    if (t->type == CHAT_T_INT || t->type == CHAT_T_FLOAT) return chat_number(q, t);
    if (t->type == CHAT_T_STRING) {
        ChatValue v = chat_string(t->s, t->n);
        for (; chat_now(q)->type == CHAT_T_STRING; q->i++) {              /* 'a' 'b' */
            const ChatToken *more = chat_now(q);
            char *both = (char *)chat_keep(q, (size_t)v.n + more->n + 1);
            memcpy(both, v.s, v.n);
            memcpy(both + v.n, more->s, more->n);
            v = chat_string(both, (size_t)v.n + more->n);
        }
        return chat_constant(q, t->at, v);
    }
    if (chat_is_token(t, CHAT_T_MARK, "(")) {
        n = chat_tuple(q, true, true);
        chat_expect(q, ")");
        return n;
    }
    bool dict = chat_is_token(t, CHAT_T_MARK, "{");
    if (!dict && !chat_is_token(t, CHAT_T_MARK, "[")) { q->i--; chat_unexpected(q, "an expression"); }
    while (!chat_at_mark(q, dict ? "}" : "]")) {
        if (list) { chat_expect(q, ","); if (chat_at_mark(q, dict ? "}" : "]")) break; }
        tail = chat_push(tail, chat_element(q, chat_expression(q), NULL));
        if (!dict) continue;
        chat_expect(q, ":");
        tail = chat_push(tail, chat_element(q, chat_expression(q), NULL));
    }
    q->i++;
    return chat_node(q, dict ? CHAT_IS_DICT : CHAT_IS_LIST, t->at, list, NULL);
}

/* "[...]" behind n. Of a slice: b {a: start, b: stop, c: step}, each may be NULL. */
static ChatNode *chat_subscript(ChatParser *q, ChatNode *n, uint32_t at) {
    ChatNode *start = chat_at_mark(q, ":") ? NULL : chat_expression(q), *item;
    if (!chat_at_mark(q, ":")) item = chat_node(q, CHAT_IS_ITEM, at, n, start);
    else {
        ChatNode *slice = chat_node(q, CHAT_IS_SLICE, at, start, NULL);
        q->i++;
        if (!chat_at_mark(q, ":") && !chat_at_mark(q, "]")) slice->b = chat_expression(q);
        if (chat_skip_mark(q, ":") && !chat_at_mark(q, "]")) slice->c = chat_expression(q);
        item = chat_node(q, CHAT_IS_SLICE, at, n, slice);
    }
    chat_expect(q, "]");
    return item;
}

static ChatNode *chat_call(ChatParser *q, ChatNode *n) {
    ChatNode *call = chat_node(q, CHAT_IS_CALL, n->at, n, NULL);
    call->b = chat_arguments(q);
    return call;
}
static ChatNode *chat_postfix(ChatParser *q, ChatNode *n) {
    for (;;) {
        uint32_t at = chat_now(q)->at;
        if (chat_skip_mark(q, ".")) {
            const ChatToken *t = chat_now(q);
            if (t->type == CHAT_T_INT) { q->i++; n = chat_node(q, CHAT_IS_ITEM, at, n, chat_number(q, t)); continue; }
            n = chat_node(q, CHAT_IS_ATTRIBUTE, t->at, n, NULL);
            n->name = chat_expect_name(q);
        } else if (chat_skip_mark(q, "[")) n = chat_subscript(q, n, at);
        else if (chat_at_mark(q, "(")) n = chat_call(q, n);
        else return n;
    }
}

/* Behind "|": a, the value, NULL where a block is filtered. */
static ChatNode *chat_filter(ChatParser *q, ChatNode *a) {
    ChatNode *n = chat_node(q, CHAT_IS_FILTER, chat_now(q)->at, a, NULL);
    n->name = chat_expect_name(q);
    if (chat_at_mark(q, ".")) chat_unexpected(q, "a filter's name without a dot");
    if (chat_at_mark(q, "(")) n->b = chat_arguments(q);
    return n;
}
/* Behind "is". */
static ChatNode *chat_test(ChatParser *q, ChatNode *a) {
    ChatNode *n = chat_node(q, CHAT_IS_TEST, chat_now(q)->at, a, NULL);
    n->negated = chat_skip_word(q, "not");
    n->name = chat_expect_name(q);
    const ChatToken *t = chat_now(q);
    bool value = (t->type >= CHAT_T_NAME && t->type <= CHAT_T_FLOAT) || chat_at_mark(q, "[") || chat_at_mark(q, "{");
    if (chat_at_mark(q, "(")) n->b = chat_arguments(q);
    else if (value && !chat_at_word(q, "else") && !chat_at_word(q, "or") && !chat_at_word(q, "and")) {
        if (chat_at_word(q, "is")) chat_unexpected(q, "one test, not a chain of them");
        n->b = chat_element(q, chat_postfix(q, chat_primary(q)), NULL);
    }
    return n;
}

static ChatNode *chat_unary(ChatParser *q, bool filters) {
    uint32_t at = chat_now(q)->at;
    ChatNode *n;
    chat_parse_deeper(q);
    if (chat_skip_mark(q, "-")) n = chat_node(q, CHAT_IS_NEGATIVE, at, chat_unary(q, false), NULL);
    else if (chat_skip_mark(q, "+")) n = chat_node(q, CHAT_IS_POSITIVE, at, chat_unary(q, false), NULL);
    else n = chat_primary(q);
    n = chat_postfix(q, n);
    while (filters) {
        if (chat_skip_mark(q, "|")) n = chat_filter(q, n);
        else if (chat_skip_word(q, "is")) n = chat_test(q, n);
        else if (chat_at_mark(q, "(")) n = chat_call(q, n);
        else break;
    }
    q->depth--;
    return n;
}

static ChatNode *chat_binary(ChatParser *q, int level) {
    static const char *const levels[2] = {"|+|-|", "|*|/|//|%|"};
    if (level == 2) {
        ChatNode *n = chat_unary(q, true);
        if (chat_at_mark(q, "**")) chat_wrong(q, chat_now(q)->at, "** is not understood");
        return n;
    }
    if (level == 1) {                       /* + and - bind less than ~, which binds less than * */
        ChatNode *first = chat_binary(q, 3), *n, **tail;
        if (!chat_at_mark(q, "~")) return first;
        n = chat_node(q, CHAT_IS_JOINED, first->at, NULL, NULL);
        tail = chat_push(&n->a, chat_element(q, first, NULL));
        while (chat_skip_mark(q, "~")) tail = chat_push(tail, chat_element(q, chat_binary(q, 3), NULL));
        return n;
    }
    ChatNode *n = chat_binary(q, level == 0 ? 1 : 2);
    for (;;) {
        const ChatToken *t = chat_now(q);
        char mark[4] = "";
        if (t->type != CHAT_T_MARK || t->n > 2) return n;
        memcpy(mark, t->s, t->n);
        if (!chat_among(levels[level == 3], mark)) return n;
        q->i++;
        const char *name = chat_name(q->p, t->s, t->n);
        if (!name) chat_wrong(q, t->at, "the template is too large");
        ChatNode *right = chat_binary(q, level == 0 ? 1 : 2);
        n = chat_node(q, CHAT_IS_BINARY, t->at, n, right);
        n->name = name;
    }
}

/* a < b == c: a, and elements of b with the operator as name. */
static ChatNode *chat_compare(ChatParser *q) {
    ChatNode *n = chat_binary(q, 0), *list = NULL, **tail = &list;
    uint32_t at = chat_now(q)->at;
    for (;;) {
        static const char *const marks[] = {"==", "!=", "<=", ">=", "<", ">"};
        const char *op = NULL;
        for (int k = 0; k < 6 && !op; k++) if (chat_skip_mark(q, marks[k])) op = marks[k];
        if (!op && chat_skip_word(q, "in")) op = "in";
        if (!op && chat_at_word(q, "not") && chat_is_token(&q->tokens[q->i + 1], CHAT_T_NAME, "in")) {
            op = "not in";
            q->i += 2;
        }
        if (!op) break;
        tail = chat_push(tail, chat_element(q, chat_binary(q, 0), op));
    }
    return list ? chat_node(q, CHAT_IS_COMPARED, at, n, list) : n;
}
static ChatNode *chat_not(ChatParser *q) {
    uint32_t at = chat_now(q)->at;
    if (!chat_skip_word(q, "not")) return chat_compare(q);
    chat_parse_deeper(q);
    ChatNode *n = chat_node(q, CHAT_IS_NOT, at, chat_not(q), NULL);
    q->depth--;
    return n;
}
static ChatNode *chat_and(ChatParser *q) {
    ChatNode *n = chat_not(q);
    while (chat_skip_word(q, "and")) n = chat_node(q, CHAT_IS_AND, n->at, n, chat_not(q));
    return n;
}
static ChatNode *chat_or(ChatParser *q) {
    ChatNode *n = chat_and(q);
    while (chat_skip_word(q, "or")) n = chat_node(q, CHAT_IS_OR, n->at, n, chat_and(q));
    return n;
}
/* b if a else c */
static ChatNode *chat_expression(ChatParser *q) {
    chat_parse_deeper(q);
    ChatNode *n = chat_or(q);
    while (chat_skip_word(q, "if")) {
        ChatNode *test = chat_or(q), *choice = chat_node(q, CHAT_IS_CHOICE, n->at, test, n);
        if (chat_skip_word(q, "else")) choice->c = chat_expression(q);
        n = choice;
    }
    q->depth--;
    return n;
}

/* What is assigned to: a name, names with commas between, or name.attribute (ATTRIBUTE). */
static ChatNode *chat_target(ChatParser *q, bool attribute) {
    ChatNode *list = NULL, **tail = &list, *first = NULL;
    uint32_t at = chat_now(q)->at;
    bool brackets = chat_skip_mark(q, "("), comma = false;
    do {
        if (first && chat_now(q)->type != CHAT_T_NAME) break;
        ChatNode *n = chat_node(q, CHAT_IS_NAME, chat_now(q)->at, NULL, NULL);
        n->name = chat_expect_name(q);
        if (attribute && !first && chat_at_mark(q, ".")) {
            q->i++;
            ChatNode *dot = chat_node(q, CHAT_IS_ATTRIBUTE, n->at, n, NULL);
            dot->name = chat_expect_name(q);
            return dot;
        }
        if (!first) first = n;
        tail = chat_push(tail, chat_element(q, n, NULL));
        if (!chat_at_mark(q, ",")) break;
        comma = true;
    } while (chat_skip_mark(q, ","));
    if (brackets) chat_expect(q, ")");
    return comma ? chat_node(q, CHAT_IS_TUPLE, at, list, NULL) : first;
}

static ChatNode *chat_statements(ChatParser *q, const char *ends);

/* The body up to {% one of ends %}; the end's word is behind us, the rest of its tag not. */
static ChatNode *chat_body(ChatParser *q, const char *ends) {
    chat_expect_end(q, CHAT_T_BLOCK_END);
    return chat_statements(q, ends);
}
/* A body that is a function for Python: no break in it ends a loop outside. */
static ChatNode *chat_closed_body(ChatParser *q, const char *ends) {
    int loops = q->loops;
    q->loops = 0;
    ChatNode *body = chat_body(q, ends);
    q->loops = loops;
    return body;
}

/* a: test, b: body, c: else's body, d: elif. */
static ChatNode *chat_if(ChatParser *q, uint32_t at) {
    ChatNode *first = NULL, **last = &first;
    for (;;) {
        ChatNode *n = chat_node(q, CHAT_DO_IF, at, chat_tuple(q, false, false), NULL);
        *last = n;
        last = &n->d;
        n->b = chat_body(q, "|elif|else|endif|");
        const ChatToken *end = &q->tokens[q->i - 1];
        at = end->at;
        if (chat_is_token(end, CHAT_T_NAME, "elif")) continue;
        if (chat_is_token(end, CHAT_T_NAME, "else")) n->c = chat_body(q, "|endif|");
        return first;
    }
}
/* a: target, b: of what, c: test, d: body; value of the target's node: none. */
static ChatNode *chat_for(ChatParser *q, uint32_t at) {
    ChatNode *n = chat_node(q, CHAT_DO_FOR, at, chat_target(q, false), NULL);
    if (!chat_skip_word(q, "in")) chat_unexpected(q, "in");
    n->b = chat_tuple(q, false, false);
    if (chat_skip_word(q, "if")) n->c = chat_expression(q);
    if (chat_at_word(q, "recursive")) chat_wrong(q, at, "a recursive loop is not understood");
    q->loops++;
    n->d = chat_body(q, "|else|endfor|");
    q->loops--;
    if (chat_is_token(&q->tokens[q->i - 1], CHAT_T_NAME, "else")) chat_wrong(q, at, "a loop's else is not understood");
    return n;
}
/* SET: a target, b value. SET_BLOCK: a target, b filters or NULL, d body. */
static ChatNode *chat_set(ChatParser *q, uint32_t at) {
    ChatNode *target = chat_target(q, true), *n;
    if (chat_skip_mark(q, "=")) return chat_node(q, CHAT_DO_SET, at, target, chat_tuple(q, false, true));
    n = chat_node(q, CHAT_DO_SET_BLOCK, at, target, NULL);
    while (chat_skip_mark(q, "|")) n->b = chat_filter(q, n->b);
    n->d = chat_closed_body(q, "|endset|");
    return n;
}
/* name; b: parameters {name, a: NAME, b: default or NULL}; d: body. */
static ChatNode *chat_macro(ChatParser *q, uint32_t at) {
    ChatNode *n = chat_node(q, CHAT_DO_MACRO, at, NULL, NULL), **tail = &n->b;
    bool defaults = false;
    n->name = chat_expect_name(q);
    chat_expect(q, "(");
    while (!chat_at_mark(q, ")")) {
        if (n->b) chat_expect(q, ",");
        ChatNode *name = chat_node(q, CHAT_IS_NAME, chat_now(q)->at, NULL, NULL);
        name->name = chat_expect_name(q);
        ChatNode *parameter = chat_element(q, name, name->name);
        if (chat_skip_mark(q, "=")) { parameter->b = chat_expression(q); defaults = true; }
        else if (defaults) chat_wrong(q, name->at, "a parameter without default behind one with");
        tail = chat_push(tail, parameter);
    }
    q->i++;
    n->d = chat_closed_body(q, "|endmacro|");
    return n;
}

static ChatNode *chat_statement(ChatParser *q) {
    const ChatToken *t = chat_now(q);
    ChatNode *n;
    if (t->type != CHAT_T_NAME) chat_unexpected(q, "a statement");
    q->i++;
    if (chat_is_token(t, CHAT_T_NAME, "if")) return chat_if(q, t->at);
    if (chat_is_token(t, CHAT_T_NAME, "for")) return chat_for(q, t->at);
    if (chat_is_token(t, CHAT_T_NAME, "set")) return chat_set(q, t->at);
    if (chat_is_token(t, CHAT_T_NAME, "macro")) return chat_macro(q, t->at);
    if (chat_is_token(t, CHAT_T_NAME, "filter")) {
        n = chat_node(q, CHAT_DO_FILTER, t->at, NULL, chat_filter(q, NULL));
        while (chat_skip_mark(q, "|")) n->b = chat_filter(q, n->b);
        n->d = chat_closed_body(q, "|endfilter|");
        return n;
    }
    if (chat_is_token(t, CHAT_T_NAME, "generation")) {
        n = chat_node(q, CHAT_DO_GENERATION, t->at, NULL, NULL);
        n->d = chat_closed_body(q, "|endgeneration|");
        q->p->generation = true;
        return n;
    }
    bool breaks = chat_is_token(t, CHAT_T_NAME, "break"), goes_on = chat_is_token(t, CHAT_T_NAME, "continue");
    if (!breaks && !goes_on)
        chat_wrong(q, t->at, "the statement {%% %.*s %%} is not understood", (int)(t->n < 40 ? t->n : 40), t->s);
    if (!q->loops) chat_wrong(q, t->at, "%.*s outside a loop", (int)t->n, t->s);
    return chat_node(q, breaks ? CHAT_DO_BREAK : CHAT_DO_CONTINUE, t->at, NULL, NULL);
}

/* Up to {% one of ends, as "|endif|" (NULL: the text's end). */
static ChatNode *chat_statements(ChatParser *q, const char *ends) {
    ChatNode *list = NULL, **tail = &list;
    chat_parse_deeper(q);
    for (;;) {
        const ChatToken *t = chat_now(q);
        if (t->type == CHAT_T_END) {
            if (ends) chat_wrong(q, t->at, "the end of the template inside a block: %.60s is missing", ends);
            break;
        }
        q->i++;
        if (t->type == CHAT_T_TEXT) {
            ChatNode *n = chat_node(q, CHAT_DO_TEXT, t->at, NULL, NULL);
            n->value = chat_string(t->s, t->n);
            tail = chat_push(tail, n);
        } else if (t->type == CHAT_T_PRINT) {
            ChatNode *n = chat_node(q, CHAT_DO_PRINT, t->at, chat_tuple(q, false, true), NULL);
            chat_expect_end(q, CHAT_T_PRINT_END);
            tail = chat_push(tail, n);
        } else {
            const ChatToken *word = chat_now(q);
            char name[32] = "";
            if (word->type == CHAT_T_NAME && word->n < sizeof name) memcpy(name, word->s, word->n);
            if (ends && *name && chat_among(ends, name)) { q->i++; break; }
            tail = chat_push(tail, chat_statement(q));
            chat_expect_end(q, CHAT_T_BLOCK_END);
        }
    }
    q->depth--;
    return list;
}

static bool chat_parse(ChatParser *q) {
    if (setjmp(q->failed)) return false;
    chat_lex(q);
    if (!(q->p->loop = chat_name(q->p, "loop", 4))) return false;
    q->p->body = chat_statements(q, NULL);
    return true;
}

ChatProgram *chat_open(const char *text, size_t bytes, const char *name, Error *err) {
    ChatProgram *p = (ChatProgram *)must_alloc(sizeof *p);
    ChatParser q;
    Error unused;
    memset(&q, 0, sizeof q);
    q.p = p;
    q.err = err ? err : &unused;
    p->name = text_copy(name);
    p->source = (char *)must_alloc(bytes + 1);
    bool ok = bytes < (size_t)1 << 24 || fail(q.err, "a chat template of more than 16 MB; %s; give another", name);
    for (size_t i = 0; ok && i < bytes;) {                   /* \r\n and \r are line breaks, too */
        uint32_t cp;
        int n = utf8_get(text + i, bytes - i, &cp);
        if (n <= 0 || !cp) ok = fail(q.err, "not UTF-8 text; %s, byte %zu; save it as UTF-8", name, i);
        else if (cp == '\r') { p->source[p->bytes++] = '\n'; i += 1 + (i + 1 < bytes && text[i + 1] == '\n'); }
        else for (; n--; i++) p->source[p->bytes++] = text[i];
    }
    if (ok && p->bytes && p->source[p->bytes - 1] == '\n') p->bytes--;
    p->source[p->bytes] = 0;
    if (ok && chat_parse(&q)) return p;
    chat_close(p);
    return NULL;
}
void chat_close(ChatProgram *p) {
    if (!p) return;
    chat_arena_free(&p->arena);
    free(p->name);
    free(p->source);
    free(p);
}
bool chat_marks_answers(const ChatProgram *p) { return p->generation; }
bool chat_reads(const ChatProgram *p, const char *name) {
    for (const ChatBinding *b = p->names; b; b = b->next) if (!strcmp(b->name, name)) return true;
    return false;
}

/* ---- values as text ---------------------------------------------------------------------------------------------- */

/* What Python's str.isprintable says no to beyond ASCII (Unicode 14): alternating gap, length. */
static const uint32_t chat_unprintable[1400] = {
128,33,12,1,714,2,6,4,7,1,1,1,20,1,397,1,38,2,50,2,3,1,55,8,27,4,6,17,22,1,192,1,48,2,59,2,101,14,59,2,49,2,15,1,28,2,1,
1,11,5,31,9,74,1,161,1,8,2,2,2,22,1,7,1,1,3,4,2,9,2,2,2,4,8,1,4,2,1,5,2,25,2,3,1,6,4,2,2,22,1,7,1,2,1,2,1,2,2,1,1,5,4,2,
2,3,3,1,7,4,1,1,7,17,10,3,1,9,1,3,1,22,1,7,1,2,1,5,2,10,1,3,1,3,2,1,15,4,2,12,7,7,1,3,1,8,2,2,2,22,1,7,1,2,1,5,2,9,2,2,
2,3,7,3,4,2,1,5,2,18,10,2,1,6,3,3,1,4,3,2,1,1,1,2,3,2,3,3,3,12,4,5,3,3,1,4,2,1,6,1,14,21,5,13,1,3,1,23,1,16,2,9,1,3,1,4,
7,2,1,3,2,1,2,4,2,10,7,22,1,3,1,23,1,10,1,5,2,9,1,3,1,4,7,2,6,2,1,4,2,10,1,2,13,13,1,3,1,51,1,3,1,6,4,16,2,26,1,3,1,18,
3,24,1,9,1,1,2,7,3,1,4,6,1,1,1,8,6,10,2,3,12,58,4,29,37,2,1,1,1,5,1,24,1,1,1,23,2,5,1,1,1,6,2,10,2,4,32,72,1,36,4,39,1,
36,1,15,1,13,37,198,1,1,5,1,2,377,1,4,2,7,1,1,1,4,2,41,1,4,2,33,1,4,2,7,1,1,1,4,2,15,1,57,1,4,2,67,2,32,3,26,6,86,2,6,2,
640,1,28,3,89,7,22,9,24,9,20,12,13,1,3,1,2,12,94,2,10,6,10,6,14,1,11,6,89,7,43,5,70,10,31,1,12,4,12,4,1,3,42,2,5,11,44,
4,26,6,11,3,62,2,65,1,29,2,11,6,10,6,14,2,31,49,77,3,47,1,116,8,60,3,15,3,60,7,43,2,11,8,43,5,534,2,6,2,38,2,6,2,8,1,1,
1,1,1,1,1,31,2,53,1,15,1,14,2,6,1,19,2,3,1,9,17,24,8,47,17,2,2,27,1,13,3,33,15,33,15,140,4,663,25,11,21,1812,2,32,1,349,
5,45,1,1,5,1,2,56,7,2,14,24,9,7,1,7,1,7,1,7,1,7,1,7,1,7,1,7,1,126,34,26,1,89,12,214,26,12,5,63,1,86,2,103,5,43,1,94,1,
84,12,47,1,29293,3,55,9,348,20,184,8,203,5,2,1,1,1,5,24,59,3,10,6,56,8,70,8,12,6,116,11,30,3,78,1,11,4,33,1,55,9,14,2,
10,2,103,24,28,10,6,2,6,2,6,9,7,1,7,1,60,4,126,2,10,6,11172,12,23,4,49,8452,366,2,106,38,7,12,5,5,26,1,5,1,1,1,2,1,2,1,
125,16,445,2,54,7,1,32,42,6,51,1,19,1,4,4,5,1,135,4,190,3,6,2,6,2,6,2,3,3,7,1,7,13,2,2,12,1,26,1,19,1,2,1,15,2,14,34,
123,5,3,4,45,3,88,1,13,3,1,47,46,130,29,3,49,15,28,4,36,9,30,5,43,5,30,1,37,4,14,42,158,2,10,6,36,4,36,4,40,8,52,11,12,
1,15,1,7,1,2,1,11,1,15,1,7,1,2,67,311,9,22,10,8,24,6,1,42,1,9,69,6,2,1,1,44,1,2,3,1,2,23,1,72,8,9,48,19,1,2,5,33,3,27,5,
1,64,56,4,20,2,50,1,2,5,8,1,3,1,29,2,3,4,10,7,9,7,64,32,39,4,12,9,54,3,29,2,27,5,26,7,4,12,7,80,73,55,51,13,51,7,46,8,
10,294,31,1,42,1,3,2,2,78,40,8,42,22,26,38,28,20,23,9,78,4,36,9,62,1,5,13,25,7,10,6,53,1,18,8,39,9,96,1,20,11,18,1,44,
65,7,1,1,1,4,1,15,1,11,6,59,5,10,6,4,1,8,2,2,2,22,1,7,1,2,1,5,1,10,2,2,2,3,2,1,6,1,5,7,2,7,3,5,139,92,1,5,30,72,8,10,
166,54,2,38,34,69,11,10,6,13,19,58,6,10,54,27,2,15,4,23,185,60,100,83,12,8,2,1,2,8,1,2,1,30,1,2,2,12,9,10,70,8,2,46,2,
11,27,72,8,83,13,73,263,9,1,45,1,14,10,29,3,32,2,22,1,14,73,7,1,2,1,44,3,1,1,2,1,9,8,10,6,6,1,2,1,37,1,2,1,6,7,10,310,
25,183,1,15,50,13,923,102,111,1,5,11,196,2636,99,13,1071,4049,583,8633,569,7,31,1,10,4,81,1,10,6,30,2,6,10,70,10,10,1,7,
1,21,5,19,688,91,101,75,4,57,7,17,64,5,11,2,14,6136,8,1238,42,9,8935,4,1,7,1,2,1,291,45,3,17,4,8,396,2308,107,5,13,3,9,
7,10,2,4,4704,46,2,23,9,116,60,246,10,39,2,74,8,112,21,70,154,20,12,87,9,25,135,85,1,71,1,2,2,1,2,2,2,4,1,12,1,1,1,7,1,
65,1,4,2,8,1,7,1,28,1,4,1,5,1,1,3,7,1,340,2,292,2,702,15,5,1,15,1104,31,225,7,1,17,2,7,1,2,1,5,213,45,3,14,2,10,4,2,320,
31,17,58,5,1,1248,7,1,4,1,2,1,15,1,197,2,16,41,76,4,10,4,2,785,68,76,61,194,4,1,27,1,2,1,1,2,1,1,10,1,4,1,1,1,1,6,1,4,1,
1,1,1,1,1,3,1,2,1,1,2,1,1,1,1,1,1,1,1,1,1,2,1,1,2,4,1,7,1,4,1,4,1,1,1,10,1,17,5,3,1,5,1,17,52,2,270,44,4,100,12,15,2,15,
1,15,1,37,10,174,56,29,13,44,4,9,7,2,14,6,154,984,5,16,3,13,3,116,12,89,7,12,4,1,15,12,4,56,8,10,6,40,8,30,2,2,78,340,
12,14,2,5,3,5,3,7,9,29,3,11,5,6,10,10,6,8,8,7,9,147,1,55,37,10,1030,42720,32,4153,7,222,2,5762,14,7473,3103,542,1506,
4939,716213,240,196112,
};

static bool chat_printable(uint32_t cp) {
    uint32_t at = 0;
    for (size_t i = 0; i < sizeof chat_unprintable / sizeof *chat_unprintable && cp >= at; i += 2) {
        if (cp < at + chat_unprintable[i]) return true;
        at += chat_unprintable[i] + chat_unprintable[i + 1];
        if (cp < at) return false;
    }
    return true;
}
static uint16_t chat_from(ChatValue v, uint32_t i) { return v.marks ? v.marks[i] : v.from; }

/* A string between quotes with escapes: Python's repr, or JSON (ascii: \u for all that is not). */
static void chat_quote(ChatRun *c, ChatBuffer *b, ChatValue v, bool json, bool ascii) {
    static const char marks[] = "\\\n\r\t\b\f", letters[] = "\\nrtbf";
    char quote = json || (memchr(v.s, '\'', v.n) && !memchr(v.s, '"', v.n)) ? '"' : '\'', text[16];
    uint16_t edge = v.from;
    if (v.n) edge = chat_from(v, 0);
    if (v.safe && !json) chat_add_text(c, b, "Markup(", edge);
    chat_add(c, b, &quote, 1, edge, NULL);
    for (uint32_t i = 0, n; i < v.n; i += n) {
        uint32_t cp;
        n = chat_character(v.s + i, v.n - i, false, &cp);
        const char *mark = cp < 128 && cp ? strchr(marks, (int)cp) : NULL;
        if (mark && mark - marks > 3 && !json) mark = NULL;                  /* repr has \x08 */
        if (mark) snprintf(text, sizeof text, "\\%c", letters[mark - marks]);
        else if (cp == (uint8_t)quote) snprintf(text, sizeof text, "\\%c", quote);
        else if (json && (cp < 32 || (ascii && cp > 126 && cp < 0x10000))) snprintf(text, sizeof text, "\\u%04x", cp);
        else if (json && ascii && cp > 126)
            snprintf(text, sizeof text, "\\u%04x\\u%04x", 0xD800 + ((cp - 0x10000) >> 10), 0xDC00 + (cp & 0x3FF));
        else if (!json && (cp < 32 || cp == 127 || (cp > 127 && !chat_printable(cp))))
            snprintf(text, sizeof text, cp < 0x100 ? "\\x%02x" : cp < 0x10000 ? "\\u%04x" : "\\U%08x", cp);
        else { chat_add(c, b, v.s + i, n, v.from, v.marks ? v.marks + i : NULL); continue; }
        chat_add_text(c, b, text, chat_from(v, i));
    }
    edge = v.n ? chat_from(v, v.n - 1) : v.from;
    chat_add(c, b, &quote, 1, edge, NULL);
    if (v.safe && !json) chat_add_text(c, b, ")", edge);
}

static const char *const chat_type_names[] = {
    "undefined", "None", "a truth value", "an integer", "a float", "an integer", "a string", "a list", "a tuple",
    "a dict", "a view", "a generator", "a namespace", "a macro", "a function", "a method", "a loop"};
static const char *chat_type(ChatValue v) { return chat_type_names[v.type]; }

/* None, truth values, numbers: as Python or JSON has them. */
static void chat_add_scalar(ChatRun *c, ChatBuffer *b, ChatValue v, bool json) {
    char text[32];
    const char *s = text;
    Text number = TEXT_EMPTY;
    switch (v.type) {
        case CHAT_NULL: s = json ? "null" : "None"; break;
        case CHAT_BOOL: s = json ? v.b ? "true" : "false" : v.b ? "True" : "False"; break;
        case CHAT_INT: snprintf(text, sizeof text, "%lld", (long long)v.i); break;
        case CHAT_BIG: s = v.s; break;
        default:
            if (isnan(v.f)) s = json ? "NaN" : "nan";
            else if (isinf(v.f)) s = json ? v.f < 0 ? "-Infinity" : "Infinity" : v.f < 0 ? "-inf" : "inf";
            else {                                           /* the shortest that reads back */
                Json j;
                memset(&j, 0, sizeof j);
                j.type = JSON_NUMBER; j.str = "."; j.number = v.f;
                json_dumps(&number, &j, 0);
                snprintf(text, sizeof text, "%s", number.at ? number.at : "");
                text_free(&number);
            }
    }
    chat_add_text(c, b, s, v.from);
}

/* repr: strings in quotes. */
static void chat_add_str(ChatRun *c, ChatBuffer *b, ChatValue v, bool repr) {
    chat_deeper(c);
    bool dict = v.type == CHAT_DICT, tuple = v.type == CHAT_TUPLE;
    if (v.type == CHAT_UNDEFINED) { if (repr) chat_add_text(c, b, "Undefined", 0); }
    else if (v.type == CHAT_STRING) { if (repr) chat_quote(c, b, v, false, false); else chat_add_value(c, b, v); }
    else if (v.type < CHAT_STRING) chat_add_scalar(c, b, v, false);
    else if (v.type <= CHAT_DICT) {
        chat_add_text(c, b, dict ? "{" : tuple ? "(" : "[", v.from);
        for (uint32_t i = 0; i < v.n; i++) {
            if (i) chat_add_text(c, b, ", ", v.from);
            chat_add_str(c, b, v.list[dict ? 2 * i : i], true);
            if (dict) { chat_add_text(c, b, ": ", v.from); chat_add_str(c, b, v.list[2 * i + 1], true); }
        }
        chat_add_text(c, b, dict ? "}" : tuple ? v.n == 1 ? ",)" : ")" : "]", v.from);
    } else CHAT_REFUSE(c, "%s has no text", chat_type(v));
    c->depth--;
}
static ChatValue chat_str(ChatRun *c, ChatValue v) {
    if (v.type == CHAT_STRING) return v;
    ChatBuffer b = {NULL, NULL, 0, 0};
    chat_add_str(c, &b, v, false);
    return chat_taken(&b);
}

/* json.dumps(ensure_ascii, indent, separators, sort_keys). indent: NULL, or the text of one level. */
typedef struct ChatJson { bool ascii, sort; const ChatValue *indent; ChatValue comma, colon; } ChatJson;

static void chat_json_line(ChatRun *c, ChatBuffer *b, const ChatJson *o, int level, uint16_t from) {
    if (!o->indent) return;
    chat_add_text(c, b, "\n", from);
    for (int i = 0; i < level; i++) chat_add(c, b, o->indent->s, o->indent->n, from, NULL);
}
static int chat_order_bytes(const char *a, uint32_t an, const char *b, uint32_t bn) {
    int d = memcmp(a, b, an < bn ? an : bn);
    return d ? d : an < bn ? -1 : an > bn;
}
static void chat_json(ChatRun *c, ChatBuffer *b, ChatValue v, const ChatJson *o, int level) {
    chat_deeper(c);
    bool dict = v.type == CHAT_DICT;
    if (v.type == CHAT_STRING) chat_quote(c, b, v, true, o->ascii);
    else if (v.type >= CHAT_NULL && v.type < CHAT_STRING) chat_add_scalar(c, b, v, true);
    else if (v.type >= CHAT_STRING && v.type <= CHAT_DICT) {
        uint32_t *order = (uint32_t *)chat_alloc(c, (v.n + 1) * sizeof *order);
        for (uint32_t i = 0; i < v.n; i++) {
            uint32_t k = i;
            for (; dict && o->sort && k; k--) {              /* by insertion: dicts are small */
                ChatValue x = v.list[2 * order[k - 1]], y = v.list[2 * i];
                chat_steps(c, 1);
                if (x.type != CHAT_STRING || y.type != CHAT_STRING)
                    CHAT_REFUSE(c, "sort_keys of keys that are no strings");
                if (chat_order_bytes(x.s, x.n, y.s, y.n) <= 0) break;
                order[k] = order[k - 1];
            }
            order[k] = i;
        }
        chat_add_text(c, b, dict ? "{" : "[", v.from);
        for (uint32_t i = 0; i < v.n; i++) {
            if (i) chat_add(c, b, o->comma.s, o->comma.n, v.from, NULL);
            chat_json_line(c, b, o, level + 1, v.from);
            if (dict) {
                ChatValue key = v.list[2 * order[i]];
                ChatBuffer text = {NULL, NULL, 0, 0};
                if (key.type != CHAT_STRING) {
                    if (key.type > CHAT_STRING || key.type == CHAT_UNDEFINED)
                        CHAT_RAISE(c, "%s as a key is no JSON", chat_type(key));
                    chat_add_scalar(c, &text, key, true);
                    key = chat_taken(&text);
                }
                chat_quote(c, b, key, true, o->ascii);
                chat_add(c, b, o->colon.s, o->colon.n, v.from, NULL);
            }
            chat_json(c, b, v.list[dict ? 2 * order[i] + 1 : i], o, level + 1);
        }
        if (v.n) chat_json_line(c, b, o, level, v.from);
        chat_add_text(c, b, dict ? "}" : "]", v.from);
    } else CHAT_RAISE(c, "%s is no JSON", chat_type(v));
    c->depth--;
}

/* ---- operations -------------------------------------------------------------------------------------------------- */

static bool chat_is_number(ChatValue v) { return v.type >= CHAT_BOOL && v.type <= CHAT_FLOAT; }
static bool chat_is_integer(ChatValue v) { return v.type == CHAT_BOOL || v.type == CHAT_INT; }
static int64_t chat_integer(ChatValue v) { return v.type == CHAT_BOOL ? v.b : v.i; }
static double chat_real(ChatValue v) { return v.type == CHAT_FLOAT ? v.f : (double)chat_integer(v); }

static bool chat_true(ChatRun *c, ChatValue v) {
    switch (v.type) {
        case CHAT_UNDEFINED: case CHAT_NULL: return false;
        case CHAT_BOOL: return v.b;
        case CHAT_INT: return v.i != 0;
        case CHAT_FLOAT: return v.f != 0;
        case CHAT_STRING: case CHAT_LIST: case CHAT_TUPLE: case CHAT_DICT: case CHAT_VIEW: return v.n > 0;
        default: chat_steps(c, 1); return true;
    }
}

static bool chat_equal(ChatRun *c, ChatValue a, ChatValue b);
/* The value's place in a dict or NULL. */
static ChatValue *chat_found(ChatRun *c, ChatValue dict, ChatValue key) {
    if (key.type >= CHAT_LIST && key.type != CHAT_TUPLE) CHAT_RAISE(c, "%s as a key of a dict", chat_type(key));
    for (uint32_t i = 0; i < dict.n; i++) if (chat_equal(c, dict.list[2 * i], key)) return &dict.list[2 * i + 1];
    return NULL;
}
static bool chat_equal(ChatRun *c, ChatValue a, ChatValue b) {
    bool same = a.type == b.type;
    chat_steps(c, 1);
    if (chat_is_number(a) && chat_is_number(b)) {
        if (chat_is_integer(a) && chat_is_integer(b)) return chat_integer(a) == chat_integer(b);
        return chat_real(a) == chat_real(b);
    }
    if (a.type == CHAT_BIG && same) return !strcmp(a.s, b.s);
    if (!same || a.type == CHAT_UNDEFINED || a.type == CHAT_NULL) return same;
    if (a.type == CHAT_STRING) return a.n == b.n && (a.s == b.s || !memcmp(a.s, b.s, a.n));
    if (a.type > CHAT_DICT) CHAT_REFUSE(c, "%s is compared", chat_type(a));
    if (a.n != b.n) return false;
    chat_deeper(c);
    for (uint32_t i = 0; same && i < a.n; i++) {
        if (a.type != CHAT_DICT) { same = chat_equal(c, a.list[i], b.list[i]); continue; }
        ChatValue *other = chat_found(c, b, a.list[2 * i]);
        same = other && chat_equal(c, a.list[2 * i + 1], *other);
    }
    c->depth--;
    return same;
}
/* -1, 0, 1; 2: not a number is on one side. */
static int chat_order(ChatRun *c, ChatValue a, ChatValue b) {
    if (chat_is_number(a) && chat_is_number(b)) {
        if (chat_is_integer(a) && chat_is_integer(b)) {
            int64_t x = chat_integer(a), y = chat_integer(b);
            return x < y ? -1 : x > y;
        }
        double x = chat_real(a), y = chat_real(b);
        return x < y ? -1 : x > y ? 1 : x == y ? 0 : 2;
    }
    if (a.type == CHAT_STRING && b.type == CHAT_STRING) {    /* UTF-8 keeps the order of characters */
        int d = chat_order_bytes(a.s, a.n, b.s, b.n);
        return d < 0 ? -1 : d > 0;
    }
    if (a.type != b.type || (a.type != CHAT_LIST && a.type != CHAT_TUPLE))
        CHAT_RAISE(c, "%s and %s have no order", chat_type(a), chat_type(b));
    chat_deeper(c);
    int d = 0;
    for (uint32_t i = 0; !d && i < a.n && i < b.n; i++)
        if (!chat_equal(c, a.list[i], b.list[i])) d = chat_order(c, a.list[i], b.list[i]);
    c->depth--;
    return d ? d : a.n < b.n ? -1 : a.n > b.n;
}

/* Where `what` begins in v, from byte `at`; v.n: nowhere. */
static uint32_t chat_seek(ChatRun *c, ChatValue v, ChatValue what, uint32_t at) {
    for (; what.n <= v.n && at <= v.n - what.n; at++) {
        if (!what.n) return at;
        const char *s = (const char *)memchr(v.s + at, what.s[0], v.n - what.n - at + 1);
        if (!s) break;
        chat_steps(c, 1 + (size_t)(s - v.s - at) / 16);
        at = (uint32_t)(s - v.s);
        if (!memcmp(s, what.s, what.n)) return at;
    }
    return v.n;
}

/* What `for` goes over. */
static ChatValue chat_elements(ChatRun *c, ChatValue v) {
    ChatValue list;
    if (v.type == CHAT_LIST || v.type == CHAT_TUPLE || v.type == CHAT_VIEW) return v;
    if (v.type == CHAT_ITERATOR) {
        list = chat_value(CHAT_LIST);
        if (v.iterator->spent) return list;
        v.iterator->spent = true;
        list.list = v.iterator->list; list.n = v.iterator->n;
        return list;
    }
    if (v.type == CHAT_UNDEFINED) return chat_list(c, CHAT_LIST, 0);
    if (v.type == CHAT_DICT) {
        list = chat_list(c, CHAT_LIST, v.n);
        for (uint32_t i = 0; i < v.n; i++) list.list[i] = v.list[2 * i];
        return list;
    }
    if (v.type != CHAT_STRING) CHAT_RAISE(c, "%s cannot be gone over", chat_type(v));
    list = chat_list(c, CHAT_LIST, chat_characters(v));
    for (uint32_t i = 0, k = 0, n; i < v.n; i += n) {
        uint32_t cp;
        n = chat_character(v.s + i, v.n - i, false, &cp);
        list.list[k++] = chat_cut(v, i, i + n);
    }
    return list;
}

static bool chat_in(ChatRun *c, ChatValue what, ChatValue v) {
    if (v.type == CHAT_STRING) {
        if (what.type != CHAT_STRING) CHAT_RAISE(c, "%s in a string", chat_type(what));
        return !what.n || chat_seek(c, v, what, 0) < v.n;
    }
    if (v.type == CHAT_DICT) return chat_found(c, v, what) != NULL;
    ChatValue list = chat_elements(c, v);
    for (uint32_t i = 0; i < list.n; i++) if (chat_equal(c, list.list[i], what)) return true;
    return false;
}

/* Markup's escape. */
static ChatValue chat_escape(ChatRun *c, ChatValue v) {
    static const char marks[] = "&<>'\"", *const texts[] = {"&amp;", "&lt;", "&gt;", "&#39;", "&#34;"};
    ChatBuffer b = {NULL, NULL, 0, 0};
    for (uint32_t i = 0; i < v.n; i++) {
        const char *mark = v.s[i] ? strchr(marks, v.s[i]) : NULL;
        if (mark) chat_add_text(c, &b, texts[mark - marks], chat_from(v, i));
        else chat_add(c, &b, v.s + i, 1, chat_from(v, i), NULL);
    }
    return chat_taken(&b);
}
static ChatValue chat_plus(ChatRun *c, ChatValue a, ChatValue b) {
    bool safe = a.safe || b.safe;
    if (safe && !a.safe) a = chat_escape(c, a);
    if (safe && !b.safe) b = chat_escape(c, b);
    ChatBuffer text = {NULL, NULL, 0, 0};
    chat_room(c, &text, (size_t)a.n + b.n);
    chat_add_value(c, &text, a);
    chat_add_value(c, &text, b);
    ChatValue v = chat_taken(&text);
    v.safe = safe;
    return v;
}
/* 'a %s' % b: %s, %d, %i, %% alone. */
static ChatValue chat_percent(ChatRun *c, ChatValue format, ChatValue v) {
    ChatBuffer b = {NULL, NULL, 0, 0};
    uint32_t used = 0, given = v.type == CHAT_TUPLE ? v.n : 1;
    if (format.safe || v.type == CHAT_DICT) CHAT_REFUSE(c, "%% with Markup or a dict");
    for (uint32_t i = 0; i < format.n; i++) {
        char kind = i + 1 < format.n ? format.s[i + 1] : 0;
        if (format.s[i] != '%') { chat_add_value(c, &b, chat_cut(format, i, i + 1)); continue; }
        i++;
        if (kind == '%') { chat_add_value(c, &b, chat_cut(format, i, i + 1)); continue; }
        if (kind != 's' && kind != 'd' && kind != 'i') CHAT_REFUSE(c, "a format other than %%s and %%d");
        if (used == given) CHAT_RAISE(c, "not enough values for the format");
        ChatValue x = v.type == CHAT_TUPLE ? v.list[used] : v;
        used++;
        if (kind != 's' && !chat_is_number(x)) CHAT_RAISE(c, "%%d of %s", chat_type(x));
        if (kind != 's' && !chat_is_integer(x)) CHAT_REFUSE(c, "%%d of a float");
        if (kind != 's') x = chat_int(chat_integer(x));
        chat_add_str(c, &b, x, false);
    }
    if (used < given) CHAT_RAISE(c, "too many values for the format");
    return chat_taken(&b);
}
static ChatValue chat_times(ChatRun *c, ChatValue v, int64_t times) {
    ChatBuffer b = {NULL, NULL, 0, 0};
    if (times < 0) times = 0;
    if (v.type == CHAT_STRING) {
        for (int64_t i = 0; v.n && i < times; i++) chat_add_value(c, &b, v);
        ChatValue text = chat_taken(&b);
        text.safe = v.safe;
        return text;
    }
    if (times > CHAT_STEPS) times = CHAT_STEPS;
    chat_steps(c, (size_t)v.n * (size_t)times);
    ChatValue list = chat_list(c, v.type, v.n * (uint32_t)times);
    for (uint32_t i = 0; i < list.n; i++) list.list[i] = v.list[i % v.n];
    return list;
}

static ChatValue chat_arithmetic(ChatRun *c, const char *op, ChatValue a, ChatValue b) {
    int64_t result = 0;
    bool sequence = a.type == CHAT_STRING || a.type == CHAT_LIST || a.type == CHAT_TUPLE;
    if (a.type == CHAT_STRING && *op == '%') return chat_percent(c, a, b);
    if (*op == '+' && sequence && a.type == b.type) {
        if (a.type == CHAT_STRING) return chat_plus(c, a, b);
        ChatValue list = chat_list(c, a.type, a.n + b.n);
        chat_steps(c, list.n);
        for (uint32_t i = 0; i < list.n; i++) list.list[i] = i < a.n ? a.list[i] : b.list[i - a.n];
        return list;
    }
    if (*op == '*' && sequence && chat_is_integer(b)) return chat_times(c, a, chat_integer(b));
    if (*op == '*' && chat_is_integer(a) && (b.type == CHAT_STRING || b.type == CHAT_LIST || b.type == CHAT_TUPLE))
        return chat_times(c, b, chat_integer(a));
    if (a.type == CHAT_BIG || b.type == CHAT_BIG) CHAT_REFUSE(c, "arithmetic beyond 64 bits");
    if (!chat_is_number(a) || !chat_is_number(b))
        CHAT_RAISE(c, "%s %s %s", chat_type(a), op, chat_type(b));
    bool whole = chat_is_integer(a) && chat_is_integer(b), divides = *op == '/' || *op == '%';
    if (divides && chat_real(b) == 0) CHAT_RAISE(c, "a division by zero");
    if (!whole || !strcmp(op, "/")) {
        double x = chat_real(a), y = chat_real(b), m = fmod(x, y);
        if (!strcmp(op, "/")) return chat_float(x / y);
        if (*op == '+') return chat_float(x + y);
        if (*op == '-') return chat_float(x - y);
        if (*op == '*') return chat_float(x * y);
        if (*op == '/') CHAT_REFUSE(c, "// of floats");
        return chat_float(m && (m < 0) != (y < 0) ? m + y : m ? m : copysign(0, y));
    }
    int64_t x = chat_integer(a), y = chat_integer(b);
    bool over = divides && x == INT64_MIN && y == -1;
    if (*op == '+') over = __builtin_add_overflow(x, y, &result);
    else if (*op == '-') over = __builtin_sub_overflow(x, y, &result);
    else if (*op == '*') over = __builtin_mul_overflow(x, y, &result);
    if (over) CHAT_REFUSE(c, "arithmetic beyond 64 bits");
    if (!divides) return chat_int(result);
    int64_t rest = x % y, down = rest && (rest < 0) != (y < 0);              /* towards minus infinity */
    return chat_int(*op == '%' ? rest + (down ? y : 0) : x / y - down);
}

/* ---- attributes, subscripts, slices ---- */

/* What Python's types answer to by name: a method is found before a key. */
static const char *chat_python_names(ChatValue v) {
    switch (v.type) {
        case CHAT_STRING:
            return "|capitalize|casefold|center|count|encode|endswith|expandtabs|find|format|format_map|index|isalnum|"
                   "isalpha|isascii|isdecimal|isdigit|isidentifier|islower|isnumeric|isprintable|isspace|istitle|"
                   "isupper|join|ljust|lower|lstrip|maketrans|partition|removeprefix|removesuffix|replace|rfind|rindex|"
                   "rjust|rpartition|rsplit|rstrip|split|splitlines|startswith|strip|swapcase|title|translate|upper|"
                   "zfill|";
        case CHAT_DICT: return "|clear|copy|fromkeys|get|items|keys|pop|popitem|setdefault|update|values|";
        case CHAT_LIST: return "|append|clear|copy|count|extend|index|insert|pop|remove|reverse|sort|";
        case CHAT_TUPLE: return "|count|index|";
        case CHAT_BOOL: case CHAT_INT: case CHAT_BIG:
            return "|as_integer_ratio|bit_count|bit_length|conjugate|denominator|from_bytes|imag|numerator|real|"
                   "to_bytes|";
        case CHAT_FLOAT: return "|as_integer_ratio|conjugate|fromhex|hex|imag|is_integer|real|";
        default: return "||";
    }
}
static ChatValue chat_loop_attribute(ChatRun *c, ChatLoop *l, const char *name);

static ChatValue chat_method(ChatRun *c, ChatValue v, const char *name) {
    ChatValue method = chat_value(CHAT_METHOD), *self = (ChatValue *)chat_alloc(c, sizeof *self);
    *self = v;
    method.s = name; method.self = self;
    return method;
}
/* v.name, or by subscript v["name"]; the name is one of the program's. */
static ChatValue chat_attribute(ChatRun *c, ChatValue v, const char *name, bool subscript) {
    bool method = chat_among(chat_python_names(v), name);
    if (v.type == CHAT_UNDEFINED) CHAT_RAISE(c, "the attribute \"%.60s\" of what is undefined", name);
    if (method && !subscript) return chat_method(c, v, name);
    if (v.type == CHAT_DICT) {
        ChatValue *found = chat_found(c, v, chat_string(name, strlen(name)));
        if (found) return *found;
    }
    if (method) return chat_method(c, v, name);
    if (*name == '_') CHAT_REFUSE(c, "the attribute \"%.60s\"", name);
    if (v.type == CHAT_SPACE)
        for (ChatBinding *b = *v.space; b; b = b->next) if (!strcmp(b->name, name)) return b->value;
    if (v.type == CHAT_LOOP) return chat_loop_attribute(c, v.loop, name);
    if (v.type == CHAT_MACRO || v.type == CHAT_GLOBAL || v.type == CHAT_METHOD)
        CHAT_REFUSE(c, "the attribute \"%.60s\" of %s", name, chat_type(v));
    return chat_value(CHAT_UNDEFINED);
}

/* Slice [start:stop:step] of n elements as Python's slice.indices: start, step and how many. False: step is 0. */
static bool chat_bounds(const ChatValue part[3], int64_t n, int64_t *start, int64_t *step, int64_t *count) {
    int64_t bound[2];
    *step = part[2].type == CHAT_NULL ? 1 : chat_integer(part[2]);
    if (!*step) return false;
    for (int k = 0; k < 2; k++) {
        int64_t low = *step < 0 ? -1 : 0, high = *step < 0 ? n - 1 : n, x;
        if (part[k].type == CHAT_NULL) x = (*step < 0) == (k == 0) ? high : low;
        else {
            x = chat_integer(part[k]);
            if (x < 0) x = x < -n ? low : x + n < low ? low : x + n;
            else if (x > high) x = high;
        }
        bound[k] = x;
    }
    *start = bound[0];
    int64_t way = *step < 0 ? bound[0] - bound[1] : bound[1] - bound[0], stride = *step < 0 ? -(*step + 1) : *step - 1;
    *count = way <= 0 ? 0 : stride >= way ? 1 : (way - 1) / (stride + 1) + 1;
    return true;
}
static ChatValue chat_slice(ChatRun *c, ChatValue v, const ChatValue part[3]) {
    int64_t start, step, count;
    if (v.type == CHAT_UNDEFINED) CHAT_RAISE(c, "a slice of what is undefined");
    for (int k = 0; k < 3; k++)
        if (part[k].type != CHAT_NULL && !chat_is_integer(part[k])) return chat_value(CHAT_UNDEFINED);
    if (v.type == CHAT_VIEW) CHAT_REFUSE(c, "a slice of %s", chat_type(v));
    if (v.type != CHAT_STRING && v.type != CHAT_LIST && v.type != CHAT_TUPLE) return chat_value(CHAT_UNDEFINED);
    bool string = v.type == CHAT_STRING;
    if (!chat_bounds(part, string ? chat_characters(v) : v.n, &start, &step, &count))
        CHAT_RAISE(c, "a slice with step 0");
    if (string && step == 1) {
        uint32_t begin = chat_offset(v, start);
        return chat_cut(v, begin, begin + chat_offset(chat_cut(v, begin, v.n), count));
    }
    ChatValue list = string ? chat_elements(c, v) : v;
    chat_steps(c, (size_t)count);
    if (string) {
        ChatBuffer b = {NULL, NULL, 0, 0};
        for (int64_t i = 0; i < count; i++) chat_add_value(c, &b, list.list[start + i * step]);
        ChatValue text = chat_taken(&b);
        text.safe = v.safe;
        return text;
    }
    ChatValue some = chat_list(c, v.type, (uint32_t)count);
    for (int64_t i = 0; i < count; i++) some.list[i] = list.list[start + i * step];
    some.from = v.from;
    return some;
}
/* v[key]. */
static ChatValue chat_item(ChatRun *c, ChatValue v, ChatValue key) {
    if (v.type == CHAT_UNDEFINED) CHAT_RAISE(c, "an element of what is undefined");
    if (chat_is_integer(key) && (v.type == CHAT_STRING || v.type == CHAT_LIST || v.type == CHAT_TUPLE)) {
        int64_t i = chat_integer(key), n = v.type == CHAT_STRING ? chat_characters(v) : v.n;
        if (i < 0) i += n;
        if (i < 0 || i >= n) return chat_value(CHAT_UNDEFINED);
        if (v.type != CHAT_STRING) return v.list[i];
        uint32_t begin = chat_offset(v, i);
        return chat_cut(v, begin, begin + chat_offset(chat_cut(v, begin, v.n), 1));
    }
    if (v.type == CHAT_VIEW) CHAT_REFUSE(c, "an element of %s", chat_type(v));
    if (key.type == CHAT_STRING) {
        char *name = (char *)chat_alloc(c, key.n + 1);
        memcpy(name, key.s, key.n);
        return chat_attribute(c, v, name, true);
    }
    if (v.type == CHAT_DICT && (key.type < CHAT_LIST || key.type == CHAT_TUPLE)) {
        ChatValue *found = chat_found(c, v, key);
        if (found) return *found;
    }
    return chat_value(CHAT_UNDEFINED);
}

/* ---- methods, filters, tests ------------------------------------------------------------------------------------- */

typedef struct ChatArguments {
    ChatValue *value;                       /* [n] */
    const char **name;                      /* [n]; NULL: by position; these come first */
    uint32_t n, used;                       /* used: a bit for each */
} ChatArguments;

static const ChatValue *chat_argument(ChatArguments *a, uint32_t position, const char *name) {
    for (uint32_t i = 0; i < a->n; i++)
        if (a->name[i] ? !strcmp(a->name[i], name) : i == position) { a->used |= 1u << i; return &a->value[i]; }
    return NULL;
}
static ChatValue chat_argument_or(ChatArguments *a, uint32_t position, const char *name, ChatValue missing) {
    const ChatValue *v = chat_argument(a, position, name);
    return v ? *v : missing;
}
static ChatValue chat_needed(ChatRun *c, ChatArguments *a, uint32_t position, const char *name) {
    const ChatValue *v = chat_argument(a, position, name);
    if (!v) CHAT_RAISE(c, "the argument \"%s\" is missing", name);
    return *v;
}
static ChatValue chat_needed_string(ChatRun *c, ChatArguments *a, uint32_t position, const char *name) {
    ChatValue v = chat_needed(c, a, position, name);
    if (v.type != CHAT_STRING) CHAT_RAISE(c, "the argument \"%s\" is %s, not a string", name, chat_type(v));
    return v;
}
/* All arguments were looked at. */
static void chat_arguments_end(ChatRun *c, const ChatArguments *a, const char *of) {
    if (a->used != (a->n == 32 ? ~0u : (1u << a->n) - 1)) CHAT_RAISE(c, "%.60s takes no such arguments", of);
}
static ChatValue chat_none(void) { return chat_value(CHAT_NULL); }
static ChatValue chat_literal(const char *s) { return chat_string(s, strlen(s)); }

/* ---- strings ---- */

/* sides: 1 left, 2 right; chars: NULL is white space. */
static ChatValue chat_strip_value(ChatRun *c, ChatValue v, int sides, const ChatValue *chars) {
    uint32_t begin = 0, end = v.n, cp;
    if (chars && chars->type == CHAT_NULL) chars = NULL;
    if (chars && chars->type != CHAT_STRING) CHAT_RAISE(c, "%s to strip", chat_type(*chars));
    for (int side = 1; side <= 2; side++)
        while ((sides & side) && begin < end) {
            uint32_t n = chat_character(v.s + begin, end - begin, side == 2, &cp);
            const char *s = side == 2 ? v.s + end - n : v.s + begin;
            if (chars ? !n || chat_seek(c, *chars, chat_string(s, n), 0) == chars->n : !chat_is_space(cp)) break;
            if (side == 1) begin += n; else end -= n;
        }
    return chat_cut(v, begin, end);
}
static ChatValue chat_lower(ChatRun *c, ChatValue v) {
    uint32_t room = v.n + v.n / 2, at = 0;
    char *s = (char *)chat_alloc(c, room + 1);
    ChatValue low = chat_string(s, utf8_lower(s, room, v.s, v.n));
    low.from = v.from; low.safe = v.safe;
    if (!v.marks) return low;
    uint16_t *marks = (uint16_t *)chat_alloc(c, (low.n + 1) * sizeof *marks);
    for (uint32_t i = 0, n; i < v.n; i += n) {
        uint32_t cp;
        n = chat_character(v.s + i, v.n - i, false, &cp);
        for (size_t k = utf8_lower(NULL, 0, v.s + i, n); k-- && at < low.n;) marks[at++] = v.marks[i];
    }
    low.marks = marks;
    return low;
}
/* Letters beyond ASCII are refused: their upper case is a table that no published template needs. */
static ChatValue chat_upper(ChatRun *c, ChatValue v) {
    char *s = (char *)chat_alloc(c, v.n + 1);
    for (uint32_t i = 0, n; i < v.n; i += n) {
        uint32_t cp;
        n = chat_character(v.s + i, v.n - i, false, &cp);
        if (cp >= 0x80 && !(cp >= 0x2E80 && cp < 0xA640) && !(cp >= 0xAC00 && cp < 0xD7A4) && cp < 0x1F000)
            CHAT_REFUSE(c, "the upper case of U+%04X", cp);
        memcpy(s + i, v.s + i, n);
        if (cp >= 'a' && cp <= 'z') s[i] = (char)(cp - 32);
    }
    v.s = s;
    return v;
}
static ChatValue chat_capitalize(ChatRun *c, ChatValue v) {
    uint32_t cp, n = v.n ? chat_character(v.s, v.n, false, &cp) : 0;
    ChatValue first = chat_upper(c, chat_cut(v, 0, n)), text = chat_plus(c, first, chat_cut(chat_lower(c, v), n, v.n));
    return text;
}
static ChatValue chat_replace(ChatRun *c, ChatValue v, ChatValue old, ChatValue fresh, int64_t most) {
    ChatBuffer b = {NULL, NULL, 0, 0};
    uint32_t at = 0;
    if (!old.n) CHAT_REFUSE(c, "an empty text is replaced");
    for (uint32_t hit; most && (hit = chat_seek(c, v, old, at)) < v.n; at = hit + old.n) {
        chat_add_value(c, &b, chat_cut(v, at, hit));
        chat_add_value(c, &b, fresh);
        if (most > 0) most--;
    }
    chat_add_value(c, &b, chat_cut(v, at, v.n));
    return chat_taken(&b);
}
static void chat_append(ChatRun *c, ChatValue *list, uint32_t *room, ChatValue v) {
    if (list->n == *room) {
        ChatValue more = chat_list(c, CHAT_LIST, *room = list->n * 2 + 8);
        if (list->n) memcpy(more.list, list->list, list->n * sizeof v);
        list->list = more.list;
    }
    list->list[list->n++] = v;
}
/* From byte `at` to the end of the word there, or of the white space. */
static uint32_t chat_word_edge(ChatValue v, uint32_t at, bool word) {
    for (uint32_t cp, n; at < v.n; at += n) {
        n = chat_character(v.s + at, v.n - at, false, &cp);
        if (chat_is_space(cp) == word) break;
    }
    return at;
}
static ChatValue chat_split(ChatRun *c, ChatValue v, ChatValue by, int64_t most) {
    ChatValue list = chat_value(CHAT_LIST);
    uint32_t room = 0, at = 0;
    if (by.type == CHAT_STRING) {
        if (!by.n) CHAT_RAISE(c, "an empty separator");
        for (uint32_t hit; most && (hit = chat_seek(c, v, by, at)) < v.n; at = hit + by.n, most -= most > 0)
            chat_append(c, &list, &room, chat_cut(v, at, hit));
        chat_append(c, &list, &room, chat_cut(v, at, v.n));
        return list;
    }
    if (by.type != CHAT_NULL) CHAT_RAISE(c, "%s as a separator", chat_type(by));
    for (;; most -= most > 0) {             /* by white space: no empty pieces */
        at = chat_word_edge(v, at, false);
        if (at == v.n) return list;
        uint32_t end = chat_word_edge(v, at, true);
        if (!most) {
            chat_append(c, &list, &room, chat_cut(v, at, v.n));
            return list;
        }
        chat_append(c, &list, &room, chat_cut(v, at, end));
        at = end;
    }
}
static bool chat_edge(ChatRun *c, ChatValue v, ChatValue edge, bool end) {
    if (edge.type == CHAT_TUPLE) {
        for (uint32_t i = 0; i < edge.n; i++) if (chat_edge(c, v, edge.list[i], end)) return true;
        return false;
    }
    if (edge.type != CHAT_STRING) CHAT_RAISE(c, "a string does not begin or end with %s", chat_type(edge));
    return edge.n <= v.n && (!edge.n || !memcmp(end ? v.s + v.n - edge.n : v.s, edge.s, edge.n));
}
static ChatValue chat_join(ChatRun *c, ChatValue between, ChatValue list, bool any) {
    ChatBuffer b = {NULL, NULL, 0, 0};
    list = chat_elements(c, list);
    for (uint32_t i = 0; i < list.n; i++) {
        if (!any && list.list[i].type != CHAT_STRING) CHAT_RAISE(c, "%s is joined", chat_type(list.list[i]));
        if (i) chat_add_value(c, &b, between);
        chat_add_str(c, &b, list.list[i], false);
    }
    return chat_taken(&b);
}
static int64_t chat_count_argument(ChatRun *c, ChatArguments *a, uint32_t position, const char *name) {
    const ChatValue *v = chat_argument(a, position, name);
    if (!v) return -1;
    if (!chat_is_integer(*v)) CHAT_RAISE(c, "the argument \"%s\" is %s", name, chat_type(*v));
    return chat_integer(*v);
}

static ChatValue chat_string_method(ChatRun *c, ChatValue v, const char *name, ChatArguments *a) {
    const ChatValue *chars;
    if (!strcmp(name, "strip") || !strcmp(name, "lstrip") || !strcmp(name, "rstrip")) {
        chars = chat_argument(a, 0, "");
        return chat_strip_value(c, v, *name == 's' ? 3 : *name == 'l' ? 1 : 2, chars);
    }
    if (!strcmp(name, "split")) {
        ChatValue by = chat_argument_or(a, 0, "sep", chat_none());
        return chat_split(c, v, by, chat_count_argument(c, a, 1, "maxsplit"));
    }
    if (!strcmp(name, "startswith")) return chat_bool(chat_edge(c, v, chat_needed(c, a, 0, ""), false));
    if (!strcmp(name, "endswith")) return chat_bool(chat_edge(c, v, chat_needed(c, a, 0, ""), true));
    if (!strcmp(name, "lower")) return chat_lower(c, v);
    if (!strcmp(name, "upper")) return chat_upper(c, v);
    if (!strcmp(name, "capitalize")) return chat_capitalize(c, v);
    if (!strcmp(name, "join") && !v.safe) return chat_join(c, v, chat_needed(c, a, 0, ""), false);
    if (!strcmp(name, "replace") && !v.safe) {
        ChatValue old = chat_needed_string(c, a, 0, ""), fresh = chat_needed_string(c, a, 1, "");
        return chat_replace(c, v, old, fresh, chat_count_argument(c, a, 2, ""));
    }
    CHAT_REFUSE(c, "the method \"%.60s\" of a string", name);
}

/* The pairs of a dict, or its keys (0) or values (1) alone. */
static ChatValue chat_dict_view(ChatRun *c, ChatValue v, int part) {
    ChatValue list = chat_list(c, CHAT_VIEW, v.n);
    for (uint32_t i = 0; i < v.n; i++) {
        if (part < 2) { list.list[i] = v.list[2 * i + (uint32_t)part]; continue; }
        list.list[i] = chat_list(c, CHAT_TUPLE, 2);
        memcpy(list.list[i].list, &v.list[2 * i], 2 * sizeof v);
    }
    return list;
}
static ChatValue chat_call_method(ChatRun *c, ChatValue method, ChatArguments *a) {
    ChatValue v = *method.self, result;
    const char *name = method.s;
    if (v.type == CHAT_STRING) result = chat_string_method(c, v, name, a);
    else if (v.type == CHAT_DICT && !strcmp(name, "get")) {
        ChatValue key = chat_needed(c, a, 0, ""), missing = chat_argument_or(a, 1, "", chat_none()),
                  *found = chat_found(c, v, key);
        result = found ? *found : missing;
    } else if (v.type == CHAT_DICT && !strcmp(name, "items")) result = chat_dict_view(c, v, 2);
    else if (v.type == CHAT_DICT && !strcmp(name, "keys")) result = chat_dict_view(c, v, 0);
    else if (v.type == CHAT_DICT && !strcmp(name, "values")) result = chat_dict_view(c, v, 1);
    else if (chat_among("|append|clear|extend|insert|pop|popitem|remove|reverse|setdefault|sort|update|", name))
        CHAT_RAISE(c, "\"%.60s\" would change %s, which templates may not", name, chat_type(v));
    else CHAT_REFUSE(c, "the method \"%.60s\" of %s", name, chat_type(v));
    chat_arguments_end(c, a, name);
    return result;
}

/* ---- tests ---- */

static bool chat_run_test(ChatRun *c, const char *name, ChatValue v, ChatArguments *a) {
    bool whole = chat_is_integer(v) && v.type != CHAT_BOOL, result;
    if (!strcmp(name, "defined")) result = v.type != CHAT_UNDEFINED;
    else if (!strcmp(name, "undefined")) result = v.type == CHAT_UNDEFINED;
    else if (!strcmp(name, "none")) result = v.type == CHAT_NULL;
    else if (!strcmp(name, "boolean")) result = v.type == CHAT_BOOL;
    else if (!strcmp(name, "true")) result = v.type == CHAT_BOOL && v.b;
    else if (!strcmp(name, "false")) result = v.type == CHAT_BOOL && !v.b;
    else if (!strcmp(name, "integer")) result = whole || v.type == CHAT_BIG;
    else if (!strcmp(name, "float")) result = v.type == CHAT_FLOAT;
    else if (!strcmp(name, "number")) result = chat_is_number(v) || v.type == CHAT_BIG;
    else if (!strcmp(name, "string")) result = v.type == CHAT_STRING;
    else if (!strcmp(name, "mapping")) result = v.type == CHAT_DICT;
    else if (!strcmp(name, "iterable"))                     /* what is undefined can be gone over, too */
        result = v.type == CHAT_UNDEFINED || (v.type >= CHAT_STRING && v.type <= CHAT_ITERATOR) || v.type == CHAT_LOOP;
    else if (!strcmp(name, "sequence")) {
        if (v.type == CHAT_VIEW) CHAT_REFUSE(c, "\"is sequence\" of %s", chat_type(v));
        result = v.type == CHAT_UNDEFINED || (v.type >= CHAT_STRING && v.type <= CHAT_DICT);
    } else if (!strcmp(name, "equalto") || !strcmp(name, "eq") || !strcmp(name, "=="))
        result = chat_equal(c, v, chat_needed(c, a, 0, ""));
    else if (!strcmp(name, "ne") || !strcmp(name, "!=")) result = !chat_equal(c, v, chat_needed(c, a, 0, ""));
    else if (!strcmp(name, "in")) result = chat_in(c, v, chat_needed(c, a, 0, "seq"));
    else CHAT_REFUSE(c, "the test \"%.60s\"", name);
    chat_arguments_end(c, a, name);
    return result;
}

/* ---- filters ---- */

static ChatValue chat_run_filter(ChatRun *c, const char *name, ChatValue v, ChatArguments *a);

static ChatValue chat_tojson(ChatRun *c, ChatValue v, ChatArguments *a) {
    ChatValue ascii = chat_argument_or(a, 0, "ensure_ascii", chat_bool(false));
    ChatValue indent = chat_argument_or(a, 1, "indent", chat_none());
    ChatValue separators = chat_argument_or(a, 2, "separators", chat_none());
    ChatValue sort = chat_argument_or(a, 3, "sort_keys", chat_bool(false));
    ChatJson o;
    ChatBuffer b = {NULL, NULL, 0, 0};
    memset(&o, 0, sizeof o);
    o.ascii = chat_true(c, ascii); o.sort = chat_true(c, sort);
    o.comma = chat_literal(indent.type == CHAT_NULL ? ", " : ",");
    o.colon = chat_literal(": ");
    if (indent.type != CHAT_NULL) {
        if (chat_is_integer(indent)) indent = chat_times(c, chat_literal(" "), chat_integer(indent));
        if (indent.type != CHAT_STRING) CHAT_RAISE(c, "an indent that is %s", chat_type(indent));
        o.indent = &indent;
    }
    if (separators.type != CHAT_NULL) {
        ChatValue two = chat_elements(c, separators);
        if (two.n != 2 || two.list[0].type != CHAT_STRING || two.list[1].type != CHAT_STRING)
            CHAT_RAISE(c, "separators that are not two strings");
        o.comma = two.list[0]; o.colon = two.list[1];
    }
    chat_json(c, &b, v, &o, 0);
    return chat_taken(&b);
}

/* What ignores case compares. */
static ChatValue chat_caseless(ChatRun *c, ChatValue v) { return v.type == CHAT_STRING ? chat_lower(c, v) : v; }

static ChatValue chat_dictsort(ChatRun *c, ChatValue v, ChatArguments *a) {
    bool exact = chat_true(c, chat_argument_or(a, 0, "case_sensitive", chat_bool(false)));
    ChatValue by = chat_argument_or(a, 1, "by", chat_literal("key"));
    bool reverse = chat_true(c, chat_argument_or(a, 2, "reverse", chat_bool(false)));
    if (v.type != CHAT_DICT) CHAT_RAISE(c, "dictsort of %s", chat_type(v));
    if (by.type != CHAT_STRING || (!chat_same(by, "key") && !chat_same(by, "value")))
        CHAT_RAISE(c, "dictsort by something else than \"key\" and \"value\"");
    uint32_t part = chat_same(by, "value");
    ChatValue pairs = chat_dict_view(c, v, 2), keys = chat_list(c, CHAT_LIST, v.n);
    for (uint32_t i = 0; i < v.n; i++) {                     /* by insertion, stable */
        ChatValue pair = pairs.list[i], key = pair.list[part];
        if (!exact) key = chat_caseless(c, key);
        uint32_t k = i;
        for (; k; k--) {
            int order = chat_order(c, keys.list[k - 1], key);
            chat_steps(c, 1);
            if (reverse ? order >= 0 : order <= 0) break;
            keys.list[k] = keys.list[k - 1];
            pairs.list[k] = pairs.list[k - 1];
        }
        keys.list[k] = key; pairs.list[k] = pair;
    }
    pairs.type = CHAT_LIST;
    return pairs;
}

/* environment.getitem over "a.b.0". */
static ChatValue chat_path(ChatRun *c, ChatValue v, ChatValue path, const ChatValue *missing) {
    ChatValue parts = chat_list(c, CHAT_LIST, 1);
    parts.list[0] = path;
    if (path.type == CHAT_STRING) parts = chat_split(c, path, chat_literal("."), -1);
    for (uint32_t i = 0; i < parts.n; i++) {
        ChatValue part = parts.list[i];
        bool digits = part.type == CHAT_STRING && part.n > 0 && part.n < 10;
        for (uint32_t k = 0; digits && k < part.n; k++) digits = chat_is_digit(part.s[k]);
        if (digits) {
            int64_t index = 0;
            for (uint32_t k = 0; k < part.n; k++) index = index * 10 + part.s[k] - '0';
            part = chat_int(index);
        }
        v = chat_item(c, v, part);
        if (missing && v.type == CHAT_UNDEFINED) v = *missing;
    }
    return v;
}
/* Arguments from the k-th on. */
static ChatArguments chat_rest(ChatArguments *a, uint32_t k) {
    ChatArguments rest = {a->value + k, a->name + k, a->n - k, 0};
    a->used = a->n == 32 ? ~0u : (1u << a->n) - 1;
    return rest;
}
static const char *chat_c_string(ChatRun *c, ChatValue v) {
    char *s = (char *)chat_alloc(c, v.n + 1);
    return (const char *)memcpy(s, v.s, v.n);
}
static ChatValue chat_map(ChatRun *c, ChatValue v, ChatArguments *a) {
    ChatValue list = chat_elements(c, v), out = chat_list(c, CHAT_LIST, list.n);
    bool by_name = a->n && !a->name[0];
    const ChatValue *attribute = by_name ? NULL : chat_argument(a, 32, "attribute"),
                    *missing = by_name ? NULL : chat_argument(a, 32, "default");
    if (!by_name && !attribute) CHAT_RAISE(c, "map without a filter");
    if (missing && missing->type == CHAT_NULL) missing = NULL;
    if (by_name && a->value[0].type != CHAT_STRING) CHAT_RAISE(c, "%s as a filter's name", chat_type(a->value[0]));
    const char *filter = by_name ? chat_c_string(c, a->value[0]) : NULL;
    for (uint32_t i = 0; i < list.n; i++) {
        if (!by_name) { out.list[i] = chat_path(c, list.list[i], *attribute, missing); continue; }
        ChatArguments rest = chat_rest(a, 1);
        out.list[i] = chat_run_filter(c, filter, list.list[i], &rest);
    }
    if (by_name) chat_rest(a, 0);
    return chat_iterator(c, out.list, list.n);
}
static ChatValue chat_choose(ChatRun *c, ChatValue v, ChatArguments *a, bool attribute, bool wanted) {
    ChatValue list = chat_elements(c, v), out = chat_list(c, CHAT_LIST, list.n);
    uint32_t n = 0, skip = attribute + 1u;
    for (uint32_t i = 0; i < a->n && i < skip; i++)
        if (a->name[i]) CHAT_REFUSE(c, "select and its like with keyword arguments");
    if (attribute && !a->n) CHAT_RAISE(c, "selectattr without an attribute");
    bool test = a->n >= skip;
    if (test && a->value[skip - 1].type != CHAT_STRING) CHAT_RAISE(c, "a test's name that is no string");
    const char *name = test ? chat_c_string(c, a->value[skip - 1]) : NULL;
    for (uint32_t i = 0; i < list.n; i++) {
        ChatValue x = attribute ? chat_path(c, list.list[i], a->value[0], NULL) : list.list[i];
        ChatArguments rest = chat_rest(a, test ? skip : 0);
        if ((test ? chat_run_test(c, name, x, &rest) : chat_true(c, x)) == wanted) out.list[n++] = list.list[i];
    }
    chat_rest(a, 0);
    return chat_iterator(c, out.list, n);
}
static ChatValue chat_unique(ChatRun *c, ChatValue v, ChatArguments *a) {
    bool exact = chat_true(c, chat_argument_or(a, 0, "case_sensitive", chat_bool(false)));
    const ChatValue *attribute = chat_argument(a, 1, "attribute");
    ChatValue list = chat_elements(c, v), out = chat_list(c, CHAT_LIST, list.n), keys = chat_list(c, CHAT_LIST, list.n);
    uint32_t n = 0;
    for (uint32_t i = 0; i < list.n; i++) {
        ChatValue key = list.list[i];
        if (attribute && attribute->type != CHAT_NULL) key = chat_path(c, key, *attribute, NULL);
        if (!exact) key = chat_caseless(c, key);
        if (key.type >= CHAT_LIST && key.type != CHAT_TUPLE) CHAT_RAISE(c, "unique of %s", chat_type(key));
        uint32_t k = 0;
        while (k < n && !chat_equal(c, keys.list[k], key)) k++;
        if (k < n) continue;
        keys.list[n] = key;
        out.list[n++] = list.list[i];
    }
    return chat_iterator(c, out.list, n);
}

/* Where str.splitlines() ends a line: bytes of the break at s, 0: none. */
static uint32_t chat_line_break(const char *s, uint32_t n) {
    uint32_t cp, bytes = chat_character(s, n, false, &cp);
    if (cp == '\r' && n > 1 && s[1] == '\n') return 2;
    bool ends = (cp >= 10 && cp <= 13) || (cp >= 28 && cp <= 30) || cp == 0x85 || cp == 0x2028 || cp == 0x2029;
    return ends ? bytes : 0;
}
static ChatValue chat_indent(ChatRun *c, ChatValue v, ChatArguments *a) {
    ChatValue width = chat_argument_or(a, 0, "width", chat_int(4));
    bool first = chat_true(c, chat_argument_or(a, 1, "first", chat_bool(false)));
    bool blank = chat_true(c, chat_argument_or(a, 2, "blank", chat_bool(false)));
    ChatBuffer b = {NULL, NULL, 0, 0};
    if (v.type != CHAT_STRING) CHAT_RAISE(c, "indent of %s", chat_type(v));
    if (v.safe) CHAT_REFUSE(c, "indent of Markup");
    if (chat_is_integer(width)) width = chat_times(c, chat_literal(" "), chat_integer(width));
    if (width.type != CHAT_STRING) CHAT_RAISE(c, "an indent that is %s", chat_type(width));
    if (first) chat_add_value(c, &b, width);
    for (uint32_t at = 0, line = 0; at <= v.n; line++) {     /* the text counts as if a line break stood behind it */
        uint32_t end = at, n = 0, cp;
        for (; end < v.n && !(n = chat_line_break(v.s + end, v.n - end));)
            end += chat_character(v.s + end, v.n - end, false, &cp);
        if (line) chat_add_text(c, &b, "\n", v.n ? chat_from(v, at ? at - 1 : 0) : v.from);
        if (line && (blank || end > at)) chat_add_value(c, &b, width);
        chat_add_value(c, &b, chat_cut(v, at, end));
        if (end == v.n) break;
        at = end + n;
    }
    return chat_taken(&b);
}

static ChatValue chat_run_filter(ChatRun *c, const char *name, ChatValue v, ChatArguments *a) {
    ChatValue result, missing;
    if (!strcmp(name, "tojson")) result = chat_tojson(c, v, a);
    else if (!strcmp(name, "trim")) result = chat_strip_value(c, chat_str(c, v), 3, chat_argument(a, 0, "chars"));
    else if (!strcmp(name, "string")) result = chat_str(c, v);
    else if (!strcmp(name, "safe")) { result = chat_str(c, v); result.safe = true; }
    else if (!strcmp(name, "length") || !strcmp(name, "count")) {
        bool sized = v.type >= CHAT_STRING && v.type <= CHAT_VIEW;
        if (!sized && v.type != CHAT_UNDEFINED) CHAT_RAISE(c, "the length of %s", chat_type(v));
        result = chat_int(v.type == CHAT_STRING ? chat_characters(v) : sized ? v.n : 0);
    } else if (!strcmp(name, "default") || !strcmp(name, "d")) {
        missing = chat_argument_or(a, 0, "default_value", chat_literal(""));
        bool falsy = chat_true(c, chat_argument_or(a, 1, "boolean", chat_bool(false)));
        result = v.type == CHAT_UNDEFINED || (falsy && !chat_true(c, v)) ? missing : v;
    } else if (!strcmp(name, "lower")) result = chat_lower(c, chat_str(c, v));
    else if (!strcmp(name, "upper")) result = chat_upper(c, chat_str(c, v));
    else if (!strcmp(name, "capitalize")) result = chat_capitalize(c, chat_str(c, v));
    else if (!strcmp(name, "replace")) {
        ChatValue old = chat_str(c, chat_needed(c, a, 0, "old")), fresh = chat_str(c, chat_needed(c, a, 1, "new"));
        ChatValue most = chat_argument_or(a, 2, "count", chat_none());
        if (most.type != CHAT_NULL && !chat_is_integer(most)) CHAT_RAISE(c, "a count that is %s", chat_type(most));
        result = chat_replace(c, chat_str(c, v), old, fresh, most.type == CHAT_NULL ? -1 : chat_integer(most));
    } else if (!strcmp(name, "join")) {
        const ChatValue *attribute = chat_argument(a, 1, "attribute");
        missing = chat_argument_or(a, 0, "d", chat_literal(""));
        if (attribute && attribute->type != CHAT_NULL) {
            ChatValue list = chat_elements(c, v);
            v = chat_list(c, CHAT_LIST, list.n);
            for (uint32_t i = 0; i < list.n; i++) v.list[i] = chat_path(c, list.list[i], *attribute, NULL);
        }
        result = chat_join(c, chat_str(c, missing), v, true);
    } else if (!strcmp(name, "list")) {
        result = chat_elements(c, v);
        result.type = CHAT_LIST;
    } else if (!strcmp(name, "items")) {
        if (v.type != CHAT_DICT && v.type != CHAT_UNDEFINED) CHAT_RAISE(c, "the items of %s", chat_type(v));
        result = v.type == CHAT_DICT ? chat_dict_view(c, v, 2) : chat_list(c, CHAT_LIST, 0);
        result = chat_iterator(c, result.list, result.n);
    } else if (!strcmp(name, "dictsort")) result = chat_dictsort(c, v, a);
    else if (!strcmp(name, "map")) result = chat_map(c, v, a);
    else if (!strcmp(name, "select")) result = chat_choose(c, v, a, false, true);
    else if (!strcmp(name, "reject")) result = chat_choose(c, v, a, false, false);
    else if (!strcmp(name, "selectattr")) result = chat_choose(c, v, a, true, true);
    else if (!strcmp(name, "rejectattr")) result = chat_choose(c, v, a, true, false);
    else if (!strcmp(name, "unique")) result = chat_unique(c, v, a);
    else if (!strcmp(name, "indent")) result = chat_indent(c, v, a);
    else CHAT_REFUSE(c, "the filter \"%.60s\"", name);
    chat_arguments_end(c, a, name);
    return result;
}

/* ---- running --------------------------------------------------------------------------------------------------------
   A scope holds what was set in it and knows the one around it; a loop's turn, a macro, a captured block has its own.
   */

static ChatValue chat_eval(ChatRun *c, ChatScope *s, const ChatNode *n);
static void chat_block(ChatRun *c, ChatScope *s, const ChatNode *list);

static void chat_bind(ChatRun *c, ChatScope *s, const char *name, ChatValue v) {
    ChatBinding *b = s->first;
    while (b && b->name != name) b = b->next;
    if (!b) {
        b = (ChatBinding *)chat_alloc(c, sizeof *b);
        b->name = name; b->next = s->first;
        s->first = b;
    }
    b->value = v;
}
static ChatValue chat_variable(ChatRun *c, const ChatScope *s, const char *name) {
    for (; s; s = s->up) for (ChatBinding *b = s->first; b; b = b->next) if (b->name == name) return b->value;
    if (chat_among("|range|namespace|dict|raise_exception|strftime_now|", name)) {
        ChatValue v = chat_value(CHAT_GLOBAL);
        v.s = name;
        return v;
    }
    if (chat_among("|lipsum|cycler|joiner|varargs|kwargs|caller|self|super|", name)) CHAT_REFUSE(c, "\"%s\"", name);
    return chat_value(CHAT_UNDEFINED);
}
static void chat_assign(ChatRun *c, ChatScope *s, const ChatNode *target, ChatValue v) {
    if (target->kind == CHAT_IS_NAME) { chat_bind(c, s, target->name, v); return; }
    if (target->kind == CHAT_IS_ATTRIBUTE) {
        ChatValue space = chat_variable(c, s, target->a->name);
        if (space.type != CHAT_SPACE) CHAT_RAISE(c, "an attribute of %s is set", chat_type(space));
        if (*target->name == '_') CHAT_RAISE(c, "the attribute \"%.60s\" of a namespace", target->name);
        ChatScope attributes = {NULL, *space.space};
        chat_bind(c, &attributes, target->name, v);
        *space.space = attributes.first;
        return;
    }
    ChatValue list = chat_elements(c, v);
    uint32_t i = 0;
    for (const ChatNode *t = target->a; t; t = t->next, i++) if (i < list.n) chat_bind(c, s, t->a->name, list.list[i]);
    if (i != list.n) CHAT_RAISE(c, "%u values for %u names", list.n, i);
}

static ChatValue chat_capture(ChatRun *c, ChatScope *s, const ChatNode *body) {
    ChatBuffer b = {NULL, NULL, 0, 0}, *out = c->out;
    ChatScope *inner = (ChatScope *)chat_alloc(c, sizeof *inner);            /* a macro in it may outlive it */
    inner->up = s;
    c->out = &b;
    chat_block(c, inner, body);
    c->out = out;
    return chat_taken(&b);
}

/* ---- calls ---- */

static ChatArguments chat_evaluated(ChatRun *c, ChatScope *s, const ChatNode *list) {
    ChatArguments a = {NULL, NULL, 0, 0};
    uint32_t n = 0;
    for (const ChatNode *e = list; e; e = e->next) n++;
    if (n > 32) CHAT_REFUSE(c, "more than 32 arguments");
    a.value = (ChatValue *)chat_alloc(c, (n + 1) * sizeof *a.value);
    a.name = (const char **)chat_alloc(c, (n + 1) * sizeof *a.name);
    for (const ChatNode *e = list; e; e = e->next) {
        for (uint32_t i = 0; e->name && i < a.n; i++)
            if (a.name[i] && !strcmp(a.name[i], e->name)) CHAT_RAISE(c, "the argument \"%.60s\" twice", e->name);
        a.name[a.n] = e->name;
        a.value[a.n++] = chat_eval(c, s, e->a);
    }
    return a;
}
static ChatValue chat_call_macro(ChatRun *c, ChatValue macro, ChatArguments *a) {
    ChatScope inner = {macro.scope, NULL};
    uint32_t i = 0;
    for (const ChatNode *p = macro.macro->b; p; p = p->next, i++) {
        const ChatValue *given = chat_argument(a, i, p->name);
        ChatValue v = given ? *given : p->b ? chat_eval(c, &inner, p->b) : chat_value(CHAT_UNDEFINED);
        chat_bind(c, &inner, p->name, v);
    }
    chat_arguments_end(c, a, macro.macro->name);
    ChatScope *kept = (ChatScope *)chat_alloc(c, sizeof *kept);
    *kept = inner;
    return chat_capture(c, kept, macro.macro->d);
}
static ChatValue chat_call_range(ChatRun *c, ChatArguments *a) {
    int64_t bound[3] = {0, 0, 1};
    if (!a->n || a->n > 3) CHAT_RAISE(c, "range with %u arguments", a->n);
    for (uint32_t i = 0; i < a->n; i++) {
        const ChatValue *v = chat_argument(a, i, "");
        if (!v || !chat_is_integer(*v)) CHAT_RAISE(c, "range of what is no integer");
        bound[a->n == 1 ? 1 : i] = chat_integer(*v);
    }
    int64_t step = bound[2], n = 0;
    if (!step) CHAT_RAISE(c, "range with step 0");
    double count = ceil(((double)bound[1] - (double)bound[0]) / (double)step);
    if (count > CHAT_RANGE) CHAT_RAISE(c, "a range of more than %d", CHAT_RANGE);
    if (count > 0) n = (int64_t)count;
    ChatValue list = chat_list(c, CHAT_VIEW, (uint32_t)n);
    for (int64_t i = 0; i < n; i++) list.list[i] = chat_int(bound[0] + i * step);
    return list;
}
/* dict(mapping, a=1), and what a namespace begins with. */
static ChatValue chat_call_dict(ChatRun *c, ChatArguments *a) {
    const ChatValue *other = chat_argument(a, 0, "");
    if (other && other->type != CHAT_DICT) CHAT_REFUSE(c, "dict of %s", chat_type(*other));
    uint32_t n = other ? other->n : 0;
    ChatValue dict = chat_list(c, CHAT_DICT, n + a->n);
    if (n) memcpy(dict.list, other->list, 2 * n * sizeof dict);
    dict.n = n;
    for (uint32_t i = 0; i < a->n; i++) {
        if (!a->name[i]) continue;
        a->used |= 1u << i;
        ChatValue key = chat_literal(a->name[i]), *found = chat_found(c, dict, key);
        if (found) { *found = a->value[i]; continue; }
        dict.list[2 * dict.n] = key;
        dict.list[2 * dict.n++ + 1] = a->value[i];
    }
    return dict;
}
static ChatValue chat_call_namespace(ChatRun *c, ChatArguments *a) {
    ChatValue dict = chat_call_dict(c, a), space = chat_value(CHAT_SPACE);
    ChatScope attributes = {NULL, NULL};
    for (uint32_t i = 0; i < dict.n; i++) {
        if (dict.list[2 * i].type != CHAT_STRING) CHAT_REFUSE(c, "%s as an attribute", chat_type(dict.list[2 * i]));
        const char *text = chat_c_string(c, dict.list[2 * i]);
        if (*text == '_') CHAT_RAISE(c, "the attribute \"%.60s\" of a namespace", text);
        /* a name that the template nowhere spells is never read */
        for (const ChatBinding *b = c->program->names; b; b = b->next)
            if (!strcmp(b->name, text)) chat_bind(c, &attributes, b->name, dict.list[2 * i + 1]);
    }
    space.space = (ChatBinding **)chat_alloc(c, sizeof *space.space);
    *space.space = attributes.first;
    return space;
}
/* 2025-07-26 or 26 Jul 2025. */
static bool chat_date(const char *s, struct tm *t) {
    static const char months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
    int year = 0, month = 0, day = 0, n = 0;
    char name[4] = "";
    if (sscanf(s, "%4d-%2d-%2d%n", &year, &month, &day, &n) != 3) {
        if (sscanf(s, "%2d %3[A-Za-z] %4d%n", &day, name, &year, &n) != 3 || strlen(name) != 3) return false;
        const char *at = strstr(months, name);
        month = at && (at - months) % 3 == 0 ? (int)(at - months) / 3 + 1 : 0;
    }
    if (s[n] || month < 1 || month > 12 || day < 1 || day > 31) return false;
    memset(t, 0, sizeof *t);
    t->tm_year = year - 1900; t->tm_mon = month - 1; t->tm_mday = day;
    t->tm_hour = 12;                                         /* the day of the week, far from any change of clocks */
    t->tm_isdst = -1;
    if (mktime(t) < 0 && year >= 1970) return false;
    t->tm_hour = 0;
    return t->tm_mday == day;
}
/* Python's datetime.strftime, for what does not hang on the place. */
static ChatValue chat_call_strftime(ChatRun *c, ChatArguments *a) {
    ChatValue format = chat_needed_string(c, a, 0, "format");
    const char *text = chat_c_string(c, format);
    struct tm t;
    time_t now = time(NULL);
    memset(&t, 0, sizeof t);
    if (!c->in->date) localtime_r(&now, &t);
    else if (!chat_date(c->in->date, &t))
        chat_raise(c, "write it as 2025-07-26", "\"%.40s\" is no date for strftime_now; --template-date", c->in->date);
    for (const char *s = text; *s; s++) {
        if (*s != '%') continue;
        s += s[1] == '-' ? 2 : 1;
        if (!*s || !strchr("aAbBdeFHhIjmMpSuUwWyYT%", *s)) CHAT_REFUSE(c, "strftime_now(\"%.60s\")", text);
    }
    size_t room = 16 * (size_t)format.n + 64;
    char *s = (char *)chat_alloc(c, room);
    return chat_string(s, strftime(s, room, text, &t));
}
static ChatValue chat_call_value(ChatRun *c, ChatValue f, ChatArguments *a) {
    if (f.type == CHAT_MACRO) return chat_call_macro(c, f, a);
    if (f.type == CHAT_METHOD) return chat_call_method(c, f, a);
    if (f.type != CHAT_GLOBAL) CHAT_RAISE(c, "%s is called", chat_type(f));
    ChatValue v = chat_none();
    if (!strcmp(f.s, "range")) v = chat_call_range(c, a);
    else if (!strcmp(f.s, "namespace")) v = chat_call_namespace(c, a);
    else if (!strcmp(f.s, "dict")) v = chat_call_dict(c, a);
    else if (!strcmp(f.s, "strftime_now")) v = chat_call_strftime(c, a);
    else {
        ChatValue message = chat_str(c, chat_needed(c, a, 0, "message"));
        CHAT_RAISE(c, "%.*s", (int)(message.n < 500 ? message.n : 500), message.s);
    }
    chat_arguments_end(c, a, f.s);
    return v;
}

/* ---- loops ---- */

/* Is there another element? It is then in `after`. */
static bool chat_loop_peek(ChatRun *c, ChatLoop *l) {
    while (!l->peeked) {
        l->has_next = l->seen < l->n;
        l->peeked = true;
        if (!l->has_next) break;
        l->after = l->list[l->seen++];
        if (!l->filtered) break;
        ChatScope inner = {l->scope, NULL};
        chat_assign(c, &inner, l->node->a, l->after);
        l->peeked = chat_true(c, chat_eval(c, &inner, l->node->c));
    }
    return l->has_next;
}
static bool chat_loop_next(ChatRun *c, ChatLoop *l) {
    if (!chat_loop_peek(c, l)) return false;
    l->before = l->current; l->current = l->after;
    l->peeked = false;
    l->index++;
    return true;
}
/* How many there are: of a filtered loop those that passed, and those that will. */
static int64_t chat_loop_length(ChatRun *c, ChatLoop *l) {
    if (!l->filtered) return l->index + l->n - l->seen + (l->peeked && l->has_next);
    ChatValue rest = chat_list(c, CHAT_LIST, l->n);
    uint32_t n = 0;
    ChatLoop ahead = *l;
    while (chat_loop_peek(c, &ahead)) { rest.list[n++] = ahead.after; ahead.peeked = false; }
    l->list = rest.list; l->n = n; l->seen = 0;
    l->filtered = l->peeked = false;
    return l->index + n;
}
static ChatValue chat_loop_attribute(ChatRun *c, ChatLoop *l, const char *name) {
    if (!strcmp(name, "index")) return chat_int(l->index);
    if (!strcmp(name, "index0")) return chat_int(l->index - 1);
    if (!strcmp(name, "first")) return chat_bool(l->index == 1);
    if (!strcmp(name, "last")) return chat_bool(!chat_loop_peek(c, l));
    if (!strcmp(name, "previtem")) return l->index > 1 ? l->before : chat_value(CHAT_UNDEFINED);
    if (!strcmp(name, "nextitem")) return chat_loop_peek(c, l) ? l->after : chat_value(CHAT_UNDEFINED);
    if (!strcmp(name, "length")) return chat_int(chat_loop_length(c, l));
    if (!strcmp(name, "revindex")) return chat_int(chat_loop_length(c, l) - l->index + 1);
    if (!strcmp(name, "revindex0")) return chat_int(chat_loop_length(c, l) - l->index);
    CHAT_REFUSE(c, "loop.%.60s", name);
}
static void chat_run_for(ChatRun *c, ChatScope *s, const ChatNode *n) {
    ChatValue list = chat_elements(c, chat_eval(c, s, n->b)), loop = chat_value(CHAT_LOOP);
    ChatLoop *l = (ChatLoop *)chat_alloc(c, sizeof *l);
    l->list = list.list; l->n = list.n;
    l->node = n; l->scope = s; l->filtered = n->c != NULL;
    loop.loop = l;
    while (chat_loop_next(c, l)) {
        ChatScope *turn = (ChatScope *)chat_alloc(c, sizeof *turn);
        turn->up = s;
        c->at = n->at;
        chat_assign(c, turn, n->a, l->current);
        chat_bind(c, turn, c->program->loop, loop);
        chat_block(c, turn, n->d);
        if (c->flow == CHAT_BREAKS) { c->flow = CHAT_GOES_ON; break; }
        c->flow = CHAT_GOES_ON;
    }
}

/* ---- statements, expressions ---- */

static void chat_statement_run(ChatRun *c, ChatScope *s, const ChatNode *n) {
    ChatValue v;
    uint32_t begin;
    c->at = n->at;
    chat_steps(c, 1);
    switch (n->kind) {
        case CHAT_DO_TEXT: chat_add_value(c, c->out, n->value); break;
        case CHAT_DO_PRINT:
            v = chat_eval(c, s, n->a);
            c->at = n->at;
            chat_add_str(c, c->out, v, false);
            break;
        case CHAT_DO_IF:
            for (; n; n = n->d) {
                bool holds = chat_true(c, chat_eval(c, s, n->a));
                if (!holds && n->d) continue;
                chat_block(c, s, holds ? n->b : n->c);
                break;
            }
            break;
        case CHAT_DO_FOR: chat_run_for(c, s, n); break;
        case CHAT_DO_SET:
            v = chat_eval(c, s, n->b);
            c->at = n->at;
            chat_assign(c, s, n->a, v);
            break;
        case CHAT_DO_SET_BLOCK: case CHAT_DO_FILTER:
            v = chat_capture(c, s, n->d);
            if (n->b) { c->captured = v; v = chat_eval(c, s, n->b); }
            if (n->kind == CHAT_DO_FILTER) chat_add_str(c, c->out, v, false);
            else chat_assign(c, s, n->a, v);
            break;
        case CHAT_DO_MACRO:
            v = chat_value(CHAT_MACRO);
            v.macro = n; v.scope = s;
            chat_bind(c, s, n->name, v);
            break;
        case CHAT_DO_GENERATION:
            begin = c->out->n;
            v = chat_capture(c, s, n->d);
            chat_add_value(c, c->out, v);
            if (c->out->n > begin && !c->out->from)
                c->out->from = (uint16_t *)chat_alloc(c, c->out->room * sizeof *c->out->from);
            for (; begin < c->out->n; begin++) c->out->from[begin] |= CHAT_GENERATION;
            break;
        default: c->flow = n->kind == CHAT_DO_BREAK ? CHAT_BREAKS : CHAT_CONTINUES;
    }
}
static void chat_block(ChatRun *c, ChatScope *s, const ChatNode *list) {
    chat_deeper(c);
    for (const ChatNode *n = list; n && c->flow == CHAT_GOES_ON; n = n->next) chat_statement_run(c, s, n);
    c->depth--;
}

static bool chat_holds(ChatRun *c, const char *op, ChatValue a, ChatValue b) {
    if (*op == 'i') return chat_in(c, a, b);
    if (*op == 'n') return !chat_in(c, a, b);
    if (!strcmp(op, "==")) return chat_equal(c, a, b);
    if (!strcmp(op, "!=")) return !chat_equal(c, a, b);
    int order = chat_order(c, a, b);
    if (order == 2) return false;
    return *op == '<' ? order < 0 || (op[1] && !order) : order > 0 || (op[1] && !order);
}

static ChatValue chat_eval_inner(ChatRun *c, ChatScope *s, const ChatNode *n) {
    ChatValue v, part[3];
    ChatArguments a;
    ChatBuffer b = {NULL, NULL, 0, 0};
    uint32_t count = 0;
    switch (n->kind) {
        case CHAT_IS_CONST: return n->value;
        case CHAT_IS_NAME: return chat_variable(c, s, n->name);
        case CHAT_IS_ATTRIBUTE:
            v = chat_eval(c, s, n->a);
            c->at = n->at;
            return chat_attribute(c, v, n->name, false);
        case CHAT_IS_ITEM:
            v = chat_eval(c, s, n->a);
            part[0] = chat_eval(c, s, n->b);
            c->at = n->at;
            return chat_item(c, v, part[0]);
        case CHAT_IS_SLICE:
            v = chat_eval(c, s, n->a);
            part[0] = n->b->a ? chat_eval(c, s, n->b->a) : chat_none();
            part[1] = n->b->b ? chat_eval(c, s, n->b->b) : chat_none();
            part[2] = n->b->c ? chat_eval(c, s, n->b->c) : chat_none();
            c->at = n->at;
            return chat_slice(c, v, part);
        case CHAT_IS_CALL:
            v = chat_eval(c, s, n->a);
            a = chat_evaluated(c, s, n->b);
            c->at = n->at;
            return chat_call_value(c, v, &a);
        case CHAT_IS_FILTER:
            v = n->a ? chat_eval(c, s, n->a) : c->captured;
            a = chat_evaluated(c, s, n->b);
            c->at = n->at;
            return chat_run_filter(c, n->name, v, &a);
        case CHAT_IS_TEST:
            v = chat_eval(c, s, n->a);
            a = chat_evaluated(c, s, n->b);
            c->at = n->at;
            return chat_bool(chat_run_test(c, n->name, v, &a) != n->negated);
        case CHAT_IS_NEGATIVE: case CHAT_IS_POSITIVE:
            v = chat_eval(c, s, n->a);
            c->at = n->at;
            if (!chat_is_number(v)) CHAT_RAISE(c, "a sign before %s", chat_type(v));
            if (v.type == CHAT_FLOAT) return chat_float(n->kind == CHAT_IS_NEGATIVE ? -v.f : v.f);
            return n->kind == CHAT_IS_NEGATIVE ? chat_arithmetic(c, "-", chat_int(0), v) : chat_int(chat_integer(v));
        case CHAT_IS_NOT: return chat_bool(!chat_true(c, chat_eval(c, s, n->a)));
        case CHAT_IS_AND: v = chat_eval(c, s, n->a); return chat_true(c, v) ? chat_eval(c, s, n->b) : v;
        case CHAT_IS_OR: v = chat_eval(c, s, n->a); return chat_true(c, v) ? v : chat_eval(c, s, n->b);
        case CHAT_IS_CHOICE:
            if (chat_true(c, chat_eval(c, s, n->a))) return chat_eval(c, s, n->b);
            return n->c ? chat_eval(c, s, n->c) : chat_value(CHAT_UNDEFINED);
        case CHAT_IS_BINARY:
            v = chat_eval(c, s, n->a);
            part[0] = chat_eval(c, s, n->b);
            c->at = n->at;
            return chat_arithmetic(c, n->name, v, part[0]);
        case CHAT_IS_JOINED:
            for (const ChatNode *e = n->a; e; e = e->next) {
                v = chat_eval(c, s, e->a);
                c->at = e->at;
                chat_add_str(c, &b, v, false);
            }
            return chat_taken(&b);
        case CHAT_IS_COMPARED:
            v = chat_eval(c, s, n->a);
            for (const ChatNode *e = n->b; e; e = e->next) {
                part[0] = chat_eval(c, s, e->a);
                c->at = n->at;
                if (!chat_holds(c, e->name, v, part[0])) return chat_bool(false);
                v = part[0];
            }
            return chat_bool(true);
        case CHAT_IS_LIST: case CHAT_IS_TUPLE:
            for (const ChatNode *e = n->a; e; e = e->next) count++;
            v = chat_list(c, n->kind == CHAT_IS_LIST ? CHAT_LIST : CHAT_TUPLE, count);
            count = 0;
            for (const ChatNode *e = n->a; e; e = e->next) v.list[count++] = chat_eval(c, s, e->a);
            return v;
        case CHAT_IS_DICT:
            for (const ChatNode *e = n->a; e; e = e->next) count++;
            v = chat_list(c, CHAT_DICT, count / 2);
            v.n = 0;
            for (const ChatNode *e = n->a; e; e = e->next->next) {
                part[0] = chat_eval(c, s, e->a);
                part[1] = chat_eval(c, s, e->next->a);
                ChatValue *found = chat_found(c, v, part[0]);
                if (found) { *found = part[1]; continue; }
                v.list[2 * v.n] = part[0];
                v.list[2 * v.n++ + 1] = part[1];
            }
            return v;
        default: CHAT_REFUSE(c, "an expression");
    }
}
static ChatValue chat_eval(ChatRun *c, ChatScope *s, const ChatNode *n) {
    c->at = n->at;
    chat_steps(c, 1);
    chat_deeper(c);
    ChatValue v = chat_eval_inner(c, s, n);
    c->depth--;
    return v;
}

/* ---- a conversation ---------------------------------------------------------------------------------------------- */

static ChatValue chat_from_json(ChatRun *c, const Json *j, uint16_t from) {
    ChatValue v = chat_none();
    chat_steps(c, 1);
    if (j->type == JSON_FALSE || j->type == JSON_TRUE) v = chat_bool(j->type == JSON_TRUE);
    else if (j->type == JSON_NUMBER && strpbrk(j->str, ".eE")) v = chat_float(j->number);
    else if (j->type == JSON_NUMBER) {
        v = chat_int(strtoll(j->str, NULL, 10));
        char back[32];
        snprintf(back, sizeof back, "%lld", (long long)v.i);
        if (strcmp(back, j->str) && strcmp(j->str, "-0")) { v = chat_value(CHAT_BIG); v.s = j->str; }
    } else if (j->type == JSON_STRING) v = chat_string(j->str, j->count);
    else if (j->type == JSON_ARRAY || j->type == JSON_OBJECT) {
        bool dict = j->type == JSON_OBJECT;
        v = chat_list(c, dict ? CHAT_DICT : CHAT_LIST, j->count);
        v.n = 0;
        for (const Json *k = j->child; k; k = k->next) {
            ChatValue x = chat_from_json(c, k, from);
            if (!dict) { v.list[v.n++] = x; continue; }
            ChatValue key = chat_string(k->key, k->key_count), *found = chat_found(c, v, key);
            key.from = from;
            if (found) { *found = x; continue; }
            v.list[2 * v.n] = key;
            v.list[2 * v.n++ + 1] = x;
        }
    }
    v.from = from;
    return v;
}
/* Message i. As transformers has it, a thought is there under the names that templates read, whatever its own. */
static ChatValue chat_message(ChatRun *c, const Json *m, size_t i) {
    static const char *const thoughts[] = {"reasoning_content", "thinking", "reasoning"};
    if (m->type != JSON_OBJECT) CHAT_RAISE(c, "message %zu is no object", i + 1);
    ChatValue v = chat_from_json(c, m, (uint16_t)(i + 1)), *thought = NULL;
    for (uint32_t k = 0; k < v.n; k++) {                     /* the role and the keys are not what was said */
        v.list[2 * k].from = CHAT_TEMPLATE;
        if (chat_same(v.list[2 * k], "role")) v.list[2 * k + 1].from = CHAT_TEMPLATE;
    }
    for (int k = 0; k < 3 && (!thought || thought->type == CHAT_NULL); k++)
        thought = chat_found(c, v, chat_literal(thoughts[k]));
    if (!thought || thought->type == CHAT_NULL) return v;
    ChatValue with = chat_list(c, CHAT_DICT, v.n + 2), said = *thought;
    with.from = v.from;
    with.list[0] = chat_literal("thinking"); with.list[1] = said;
    with.n = 1;
    for (uint32_t k = 0; k < v.n; k++) {
        ChatValue *found = chat_found(c, with, v.list[2 * k]);
        if (found) { *found = v.list[2 * k + 1]; continue; }
        with.list[2 * with.n] = v.list[2 * k];
        with.list[2 * with.n++ + 1] = v.list[2 * k + 1];
    }
    ChatValue *content = chat_found(c, with, chat_literal("reasoning_content"));
    if (content) { *content = said; return with; }
    with.list[2 * with.n] = chat_literal("reasoning_content");
    with.list[2 * with.n++ + 1] = said;
    return with;
}
static void chat_given(ChatRun *c, ChatScope *s, const char *name, size_t n, ChatValue v) {
    for (const ChatBinding *b = c->program->names; b; b = b->next)
        if (strlen(b->name) == n && !memcmp(b->name, name, n)) chat_bind(c, s, b->name, v);
}

static void chat_converse(ChatRun *c) {
    const ChatInput *in = c->in;
    ChatScope *global = (ChatScope *)chat_alloc(c, sizeof *global);
    ChatValue messages = chat_list(c, CHAT_LIST, (uint32_t)in->count);
    const Json *m = in->messages->child;
    if (in->count > CHAT_MESSAGES - 1) chat_raise(c, chat_todo_bounds, "more than %d messages", CHAT_MESSAGES - 1);
    for (size_t i = 0; i < in->count && m; i++, m = m->next) messages.list[i] = chat_message(c, m, i);
    for (int k = 0; k < 2; k++) {
        const Json *given = k ? in->kwargs : in->tokens;
        for (const Json *j = given ? given->child : NULL; j; j = j->next) {
            if (chat_among("|messages|tools|documents|add_generation_prompt|", j->key))
                CHAT_RAISE(c, "chat_template_kwargs has \"%s\"", j->key);
            chat_given(c, global, j->key, j->key_count, chat_from_json(c, j, CHAT_TEMPLATE));
        }
    }
    chat_given(c, global, "messages", 8, messages);
    chat_given(c, global, "tools", 5, in->tools ? chat_from_json(c, in->tools, CHAT_TEMPLATE) : chat_none());
    chat_given(c, global, "documents", 9, chat_none());
    chat_given(c, global, "add_generation_prompt", 21, chat_bool(in->add_generation_prompt));
    chat_block(c, global, c->program->body);
}
static bool chat_try(ChatRun *c) {
    if (setjmp(c->raised)) return false;
    chat_converse(c);
    return true;
}

bool chat_text(ChatOutput *out, const ChatProgram *p, const ChatInput *in, Error *err) {
    ChatRun *c = (ChatRun *)must_alloc(sizeof *c);
    ChatBuffer b = {NULL, NULL, 0, 0};
    Error unused;
    memset(out, 0, sizeof *out);
    c->program = p; c->in = in; c->err = err ? err : &unused;
    c->steps = CHAT_STEPS;
    c->out = &b;
    bool ok = chat_try(c);
    if (ok) {
        out->bytes = b.n;
        out->text = text_copy_bytes(b.n ? b.at : "", b.n);
        out->from = (uint16_t *)must_alloc((b.n + 1) * sizeof *out->from);
        if (b.from) memcpy(out->from, b.from, b.n * sizeof *out->from);
    }
    chat_arena_free(&c->arena);
    free(c);
    return ok;
}
void chat_output_free(ChatOutput *out) { free(out->text); free(out->from); memset(out, 0, sizeof *out); }

/* ---- a model's template: which bytes are an answer ------------------------------------------------------------- */

typedef struct ChatEnd { char *text; size_t bytes; bool stop; } ChatEnd;
struct ChatSource {
    ChatProgram *program;
    JsonDoc tokens;                         /* {"bos_token": "<s>", ...} */
    ChatEnd *ends; int count;               /* special tokens; stop: generation ends with it */
    uint64_t hash;
};

/* transformers' special_tokens_map. */
static bool chat_special_tokens(ChatSource *s, const Json *config, Error *err) {
    static const char names[] = "|bos_token|eos_token|unk_token|sep_token|pad_token|cls_token|mask_token|";
    Text t = TEXT_EMPTY;
    json_object(&t, NULL, JSON_LINE);
    for (const Json *j = config ? config->child : NULL; j; j = j->next) {
        const Json *more = !strcmp(j->key, "extra_special_tokens") || !strcmp(j->key, "model_specific_special_tokens")
                           ? j->child : NULL;
        const Json *v = j->type == JSON_OBJECT ? json_get(j, "content") : j;
        if (chat_among(names, j->key) && v && v->type == JSON_STRING) json_bytes(&t, j->key, v->str, v->count);
        for (; more; more = more->next) {
            v = more->type == JSON_OBJECT ? json_get(more, "content") : more;
            if (more->key && v && v->type == JSON_STRING) json_bytes(&t, more->key, v->str, v->count);
        }
    }
    json_end(&t);
    bool ok = json_parse(&s->tokens, t.at, t.length, "special tokens", 1, err);
    text_free(&t);
    return ok;
}

ChatSource *chat_source_open(const Tokenizer *t, const char *file, Error *err) {
    size_t bytes = 0;
    char *read = file ? read_file(file, &bytes, err) : NULL;
    const char *text = file ? read : tokenizer_chat_text(t, &bytes);
    if (file && !read) return NULL;
    if (!text) {
        fail(err, "a chat, but the model folder has no chat template that is a text, or called \"default\"; "
                  "chat_template; give --chat-template NAME or FILE.jinja");
        return NULL;
    }
    ChatSource *s = (ChatSource *)must_alloc(sizeof *s);
    s->hash = hash_bytes(HASH_START, text, bytes);
    s->program = chat_open(text, bytes, file ? file : "chat_template", err);
    free(read);
    if (!s->program || !chat_special_tokens(s, tokenizer_config(t), err)) { chat_source_close(s); return NULL; }
    int32_t size = tokenizer_vocab_size(t);
    for (int pass = 0; pass < 2; pass++) {
        if (pass) s->ends = (ChatEnd *)must_alloc((size_t)(s->count + 1) * sizeof *s->ends);
        s->count = 0;
        for (int32_t id = 0; id < size; id++) {
            const char *token = tokenizer_token(t, id);
            if (!token || !*token || (!tokenizer_is_special(t, id) && !tokenizer_is_stop(t, id))) continue;
            if (pass) {
                ChatEnd end = {text_copy(token), strlen(token), tokenizer_is_stop(t, id)};
                s->ends[s->count] = end;
            }
            s->count++;
        }
    }
    return s;
}
void chat_source_close(ChatSource *s) {
    if (!s) return;
    chat_close(s->program);
    json_free(&s->tokens);
    for (int i = 0; s->ends && i < s->count; i++) free(s->ends[i].text);
    free(s->ends);
    free(s);
}
uint64_t chat_source_hash(const ChatSource *s) { return s->hash; }
bool chat_source_reads(const ChatSource *s, const char *name) { return chat_reads(s->program, name); }

/* Where the turn ends whose last own byte is before `at`: behind the first token there that stops generation, else
   behind the first special one. 0: there is none before `limit`. */
static size_t chat_turn_end(const ChatSource *s, const char *text, size_t at, size_t limit) {
    size_t found = 0;
    for (; at < limit; at++) {
        size_t longest = 0;
        bool stop = false;
        for (int i = 0; i < s->count; i++) {
            const ChatEnd *e = &s->ends[i];
            if (e->text[0] != text[at] || e->bytes <= longest || e->bytes > limit - at) continue;
            if (memcmp(e->text, text + at, e->bytes)) continue;
            longest = e->bytes;
            stop = e->stop;
        }
        if (stop) return at + longest;
        if (longest && !found) found = at + longest;
        if (longest) at += longest - 1;
    }
    return found;
}

typedef struct ChatAnswers {
    const ChatSource *s;
    ChatInput in;
    const ChatMessage *messages;
    ChatOutput whole;
    ChatText *out;
    size_t room, prompt;                    /* prompt: bytes in front of the answer, of as_answer */
    Error *err;
} ChatAnswers;

static void chat_add_span(ChatAnswers *a, size_t owner, size_t begin, size_t end) {
    ChatText *t = a->out;
    if (begin >= end) return;
    if (t->nspans == a->room) {
        a->room = a->room * 2 + 8;
        t->spans = (TextSpan *)must_realloc(t->spans, a->room * sizeof *t->spans);
        t->owner = (size_t *)must_realloc(t->owner, a->room * sizeof *t->owner);
    }
    t->spans[t->nspans].begin = begin;
    t->spans[t->nspans].end = end;
    t->owner[t->nspans++] = owner;
}
static bool chat_is_answer(const ChatMessage *m) { return !strcmp(m->role, "assistant"); }

/* Runs of bytes within {% generation %}: of the message whose content they have, or where they have none the next
   assistant's. */
static void chat_marked(ChatAnswers *a, size_t count) {
    const uint16_t *from = a->whole.from;
    size_t next = 0, ordinal = 0;           /* the first message that may be the owner; answers before it */
    for (size_t begin = 0, end; begin < a->whole.bytes; begin = end) {
        size_t owner = count;
        for (end = begin; end < a->whole.bytes && ((from[end] ^ from[begin]) & CHAT_GENERATION) == 0; end++) {
            size_t i = from[end] & CHAT_MESSAGES;
            if (i && i - 1 < count && owner == count && chat_is_answer(&a->messages[i - 1])) owner = i - 1;
        }
        if (!(from[begin] & CHAT_GENERATION)) continue;
        if (owner == count) for (owner = next; owner < count && !chat_is_answer(&a->messages[owner]);) owner++;
        if (owner == count) continue;
        for (ordinal = 0, next = 0; next < owner; next++) ordinal += chat_is_answer(&a->messages[next]);
        next = owner + 1;
        chat_add_span(a, ordinal, begin, end);
    }
}

/* The answer that is message i, the ordinal-th: where it begins and ends in the whole text. */
static bool chat_answer_span(ChatAnswers *a, size_t i, size_t ordinal, bool required) {
    const char *text = a->whole.text;
    const uint16_t *from = a->whole.from;
    size_t bytes = a->whole.bytes, first = bytes, last = 0, begin = bytes, before = 0;
    ChatInput in = a->in;
    ChatOutput prompt;
    Error unused;
    for (size_t k = 0; k < bytes; k++) {
        if ((from[k] & CHAT_MESSAGES) != i + 1) continue;
        if (first == bytes) first = k;
        last = k + 1;
    }
    in.count = i;
    in.add_generation_prompt = true;
    bool asked = chat_text(&prompt, a->s->program, &in, required ? a->err : &unused), rewritten = false;
    if (!asked && required) return false;
    size_t same = 0, header = 0, n;         /* bytes that the prompt has in common with the whole */
    while (asked && same < prompt.bytes && same < bytes && prompt.text[same] == text[same]) same++;
    if (asked) header = prompt.bytes;
    while (header && !(prompt.from[header - 1] & CHAT_MESSAGES)) header--;
    if (asked && same == prompt.bytes) begin = same;
    else if (asked && same >= header) {     /* the prompt ends otherwise, with a thought opened: from where they part;
                                               line breaks in a row are one token (TRL compares tokens) */
        begin = same;
        bool lines = prompt.text[same] == '\n' || text[same] == '\n';
        while (lines && begin > header && text[begin - 1] == '\n') begin--;
        rewritten = i > 0;
    } else if (asked) {                     /* from behind the header that the prompt ends with, if that is here, too */
        n = prompt.bytes - header;
        for (before = first; before && (from[before - 1] & CHAT_MESSAGES) == 0;) before--;
        begin = first;
        for (size_t k = before; n && k + n <= first; k++)
            if (!memcmp(text + k, prompt.text + header, n)) begin = k + n;
        rewritten = i > 0;
    } else begin = first;
    size_t prompt_bytes = asked ? prompt.bytes : 0;
    if (asked) chat_output_free(&prompt);
    a->out->rewritten += rewritten;
    if (required && rewritten)
        return fail(a->err, "the template writes another text before an answer than the prompt that asks for it; "
                            "message %zu; leave out --split-turns", i + 1);
    if (required) a->prompt = prompt_bytes;
    if (begin == bytes) return true;                         /* the template leaves the answer out */
    if (last < begin) last = begin;
    size_t limit = last;
    while (limit < bytes && (from[limit] & CHAT_MESSAGES) == 0) limit++;
    if (chat_marks_answers(a->s->program)) return true;
    size_t end = chat_turn_end(a->s, text, last, limit);
    if (!end)
        return fail(a->err, "the chat template ends an answer with no special token, so that nobody can tell what is "
                            "learned; message %zu; put {%% generation %%} around the answers in the template", i + 1);
    chat_add_span(a, ordinal, begin, end);
    return true;
}

/* Is [n] bytes of s, without line breaks around, in the text? */
static bool chat_has(const ChatOutput *o, const char *s, size_t n) {
    while (n && (s[n - 1] == '\n' || s[n - 1] == ' ')) n--;
    while (n && (*s == '\n' || *s == ' ')) { s++; n--; }
    for (size_t i = 0; n && i + n <= o->bytes; i++) if (o->text[i] == *s && !memcmp(o->text + i, s, n)) return true;
    return !n;
}
/* Thoughts, system messages and others that are not in the text. */
static void chat_left_out(ChatAnswers *a, size_t count) {
    bool *said = (bool *)must_alloc(count + 1);
    for (size_t k = 0; k < a->whole.bytes; k++) said[a->whole.from[k] & CHAT_MESSAGES] = true;
    for (size_t i = 0; i < count; i++) {
        const ChatMessage *m = &a->messages[i];
        const char *s = m->content ? m->content : "", *close = s, *found;
        bool answer = chat_is_answer(m);
        while ((found = strstr(close, "</think>"))) close = found + 1;
        if (answer && m->reasoning) a->out->thoughts += !chat_has(&a->whole, m->reasoning, m->reasoning_bytes);
        else if (answer && close > s) {
            const char *open = strstr(s, "<think>");
            if (!open || open > close) open = s;
            else open += 7;
            a->out->thoughts += !chat_has(&a->whole, open, (size_t)(close - 1 - open));
        }
        const Json *content = m->whole ? json_get(m->whole, "content") : NULL;
        bool speaks = content ? content->count > 0 : m->content_bytes > 0;
        bool there = said[i + 1] || (m->content_bytes && chat_has(&a->whole, s, m->content_bytes));
        if (!strcmp(m->role, "system")) a->out->systems += speaks && !there;
        else a->out->unsaid += speaks && !there;
    }
    free(said);
}

/* The conversation as JSON: what was given, with the role's own name for the template. */
static void chat_messages_text(Text *t, const ChatMessage *messages, size_t count) {
    json_list(t, NULL, JSON_LINE);
    for (size_t i = 0; i < count; i++) {
        const ChatMessage *m = &messages[i];
        json_object(t, NULL, JSON_LINE);
        json_string(t, "role", m->role);
        for (const Json *k = m->whole ? m->whole->child : NULL; k; k = k->next) {
            Text value = TEXT_EMPTY;
            json_dumps(&value, k, 0);
            if (strcmp(k->key, "role")) json_print(t, k->key, "%s", value.at);
            text_free(&value);
        }
        if (!m->whole) json_bytes(t, "content", m->content ? m->content : "", m->content_bytes);
        if (!m->whole && m->reasoning) json_bytes(t, "reasoning_content", m->reasoning, m->reasoning_bytes);
        json_end(t);
    }
    json_end(t);
}
static void chat_kwargs_text(Text *t, const ChatSource *s, const ChatOptions *o) {
    json_object(t, NULL, JSON_LINE);
    if (o->enable_thinking >= 0) json_bool(t, "enable_thinking", o->enable_thinking);
    if (o->date && chat_source_reads(s, "date_string")) json_string(t, "date_string", o->date);
    for (const Json *k = o->kwargs ? o->kwargs->child : NULL; k; k = k->next) {
        Text value = TEXT_EMPTY;
        json_dumps(&value, k, 0);
        if (strcmp(k->key, "tools")) json_print(t, k->key, "%s", value.at);
        text_free(&value);
    }
    json_end(t);
}

bool chat_source_render(ChatText *out, const ChatSource *s, const ChatMessage *messages, size_t count, ChatOptions o,
                        Error *err) {
    ChatAnswers a;
    JsonDoc doc = {NULL, NULL}, kwargs = {NULL, NULL};
    Text text = TEXT_EMPTY, told = TEXT_EMPTY;
    memset(out, 0, sizeof *out);
    memset(&a, 0, sizeof a);
    if (o.as_answer && (count < 2 || !chat_is_answer(&messages[count - 1])))
        return fail(err, "no answer to a prompt; message %zu; end with an assistant's message behind others", count);
    chat_messages_text(&text, messages, count);
    chat_kwargs_text(&told, s, &o);
    bool ok = json_parse(&doc, text.at, text.length, "messages", 1, err) &&
              json_parse(&kwargs, told.at, told.length, "chat_template_kwargs", 1, err);
    a.s = s; a.messages = messages; a.out = out; a.err = err;
    a.in.messages = doc.root; a.in.count = count;
    a.in.tools = o.tools; a.in.kwargs = kwargs.root; a.in.tokens = s->tokens.root;
    a.in.add_generation_prompt = o.add_generation_prompt && !o.as_answer;
    a.in.date = o.date;
    ok = ok && chat_text(&a.whole, s->program, &a.in, err);
    if (ok && chat_marks_answers(s->program)) chat_marked(&a, count);
    size_t ordinal = 0, marked = out->nspans;
    for (size_t i = 0; i < count && ok && !(o.add_generation_prompt && !o.as_answer); i++) {
        if (!chat_is_answer(&messages[i])) continue;
        bool last = o.as_answer && i + 1 == count;
        if (!o.as_answer || last) ok = chat_answer_span(&a, i, ordinal, last);
        ordinal++;
    }
    if (ok && o.as_answer) {                                 /* what stands before the answer is the prompt */
        size_t kept = 0;
        for (size_t k = 0; k < out->nspans; k++) {
            TextSpan span = out->spans[k];
            if (span.begin < a.prompt) span.begin = a.prompt;
            if ((marked && out->owner[k] + 1 != ordinal) || span.begin >= span.end) continue;
            out->owner[kept] = 0;
            out->spans[kept++] = span;
        }
        out->nspans = kept;
    } else if (ok) chat_left_out(&a, count);
    if (ok) { out->text = a.whole.text; out->bytes = a.whole.bytes; a.whole.text = NULL; }
    else chat_text_free(out);
    chat_output_free(&a.whole);
    json_free(&doc);
    json_free(&kwargs);
    text_free(&text);
    text_free(&told);
    return ok;
}

/* ---- fuzz entry -------------------------------------------------------------------------------------------------- */

#ifdef FUZZ_JINJA
/* A template, then behind a byte 0xFF what it is told: {"messages": [...], "tools": ..., "kwargs": ...}. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char chat[] = "{\"messages\": [{\"role\": \"user\", \"content\": \"\\u00e9 a\"}, "
                               "{\"role\": \"assistant\", \"content\": \"b\", "
                               "\"tool_calls\": [{\"name\": \"f\", \"n\": [1, 2.5, null]}]}]}";
    const uint8_t *end = size ? (const uint8_t *)memchr(data, 0xFF, size) : NULL;
    size_t bytes = end ? (size_t)(end - data) : size;
    JsonDoc doc;
    ChatInput in;
    ChatOutput out;
    Error err;
    ChatProgram *p = chat_open((const char *)data, bytes, "fuzz", &err);
    if (!p) return 0;
    bool told = end && json_parse(&doc, (const char *)end + 1, size - bytes - 1, "fuzz", 1, &err);
    if (!told && !json_parse(&doc, chat, sizeof chat - 1, "fuzz", 1, &err)) abort();
    memset(&in, 0, sizeof in);
    in.messages = json_get(doc.root, "messages");
    in.tools = json_get(doc.root, "tools"); in.kwargs = json_get(doc.root, "kwargs");
    in.date = "2025-07-26";
    if (in.messages && in.messages->type == JSON_ARRAY) {
        in.count = in.messages->count;
        if (chat_text(&out, p, &in, &err)) {
            for (size_t i = 0; i < out.bytes; i++) if ((out.from[i] & CHAT_MESSAGES) > in.count) abort();
            if (out.text[out.bytes]) abort();
            chat_output_free(&out);
        }
    }
    json_free(&doc);
    chat_close(p);
    return 0;
}
#endif
#endif /* CHAT_IMPLEMENTATION */
