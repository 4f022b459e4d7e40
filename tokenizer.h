/* tokenizer.h : the ground floor of all files (errors, texts, files, JSON), tokenizers (byte-level BPE and
   SentencePiece-style BPE) and chat templates, in one header without dependencies.
   Use: #define TOKENIZER_IMPLEMENTATION in one file before including it; every other file just includes it.

   Contents
     1  Public interface          what this file promises; everything else is private
     2  Errors and texts          fail, Text, hash_bytes, name_distance, read_file
     3  UTF-8, files              memory, warnings, paths, files and folders that are written whole, mappings, locks
     4  JSON                      a strict parser, one arena a document; a writer
     5  Unicode                   tables made by dev/make_unicode.py: letters, numbers, white space, NFC, lower case
     6  Tables                    token strings, merges, added tokens: three hash tables and a trie
     7  Loading tokenizer.json    what is understood is stored, what is not is refused by name
     8  Splitting                 the three published regular expressions, written as scanners
     9  BPE                       merging one word: array for short words, heap for long ones
    10  Encode                    added tokens -> normalize -> split -> merge -> post-process
    11  Decode
    12  Opening a folder          tokenizer_config.json, generation_config.json, chat template files
    13  Chat templates            hand-written renderers, recognised by the fingerprint of the published text
    14  Fuzz entries              -DFUZZ_JSON, -DFUZZ_TOKENIZER or -DFUZZ_CHAT with -fsanitize=fuzzer

   The reference for every observable behaviour is the Hugging Face tokenizers library (Rust); the comments name its
   file where the behaviour surprises. Easy to get wrong, each has a test: the regex "\s+(?!\S)" backtracks one
   character; an added token with normalized=true is matched in the normalized text; NFC may change bytes before an
   offset; a SentencePiece text has no words. */
#ifndef TOKENIZER_H
#define TOKENIZER_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

/* =====================================================================================================================
   1  Public interface
   ================================================================================================================== */

/* ---- errors: a function that can fail returns false or NULL and fills one line: "what; where; what to do" ---- */
typedef struct Error { char text[1024]; } Error;
#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
bool fail(Error *err, const char *fmt, ...);          /* printf-style; overwrites *err (may be NULL); always returns
                                                         false */

/* ---- whole files ---- */
/* Opens a file for reading; *bytes: its size, 0 where it has none (a pipe). The one place that says what a file may not
   be: absent, a folder, a device, the pointer that git leaves for a large file. A pipe that nobody writes to is empty,
   not waited for. -1: err. */
int file_open(const char *path, size_t *bytes, Error *err);
/* The file's bytes plus one NUL, malloc'ed, *bytes without the NUL (may be NULL). NULL + "cannot open file; PATH:
   reason; ...". */
char *read_file(const char *path, size_t *bytes, Error *err);
/* FNV-1a, eight bytes at a time; h: HASH_START or an earlier result. To recognise a file again, not against an
   adversary. */
enum { HASH_START = 0x811C9DC5 };
uint64_t hash_bytes(uint64_t h, const void *data, size_t bytes);
/* For "did you mean": how far a typed word is from a name, in letters left out, put in, changed or swapped; 0 also for
   the beginning of one (three letters at least). NAME_FAR: they have nothing to do with each other. */
enum { NAME_FAR = 99 };
int name_distance(const char *typed, const char *name);
const char *name_nearest(const char *typed, const char *const *names, int count);      /* NULL: none is near */

/* ---- memory for small bookkeeping: where there is none the program ends with one line. Big blocks are planned,
   checked and reported by their owners ---- */
void *must_alloc(size_t bytes);                       /* zeroed */
void *must_realloc(void *p, size_t bytes);
char *text_copy(const char *s);
char *text_copy_bytes(const char *s, size_t n);       /* n bytes and a zero byte */

/* ---- a growable text: bytes and behind the last a zero byte, so that `at` is a C string, or NULL where nothing
   was added yet. Start from TEXT_EMPTY, end with text_free. Where there is no memory, text_room, text_append and
   text_string return false and set `failed`, which stays: for texts as large as a user's data, whose owner reports it.
   The others end the program with one line, as must_alloc does. ---- */
typedef struct Text {
    char *at;
    size_t length, capacity;
    bool failed, new_line;
    uint8_t depth;                          /* the last four are the JSON writer's: objects and lists that are open; */
    uint32_t objects, lines;                /* bit d: the one at depth d is an object; has a line for each member */
} Text;
#define TEXT_EMPTY {NULL, 0, 0, false, false, 0, 0, 0}
bool text_room(Text *t, size_t more);                         /* for so many bytes */
bool text_append(Text *t, const char *s, size_t n);
bool text_string(Text *t, const char *s);
void text_bytes(Text *t, const char *s, size_t n);
#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
void text_print(Text *t, const char *format, ...);
void text_cut(Text *t, size_t length);                        /* what is behind it goes */
void text_free(Text *t);
/* Writes folder/name, whole (write_file), and frees the text. */
bool text_write(Text *t, const char *folder, const char *name, Error *err);

/* Says on stderr what is done with an input that is not used as it stands; control characters of files do not pass. */
#if defined(__GNUC__)
__attribute__((format(printf, 1, 2)))
#endif
void print_warning(const char *format, ...);

/* ---- paths and folders ---- */
void path_in(char *out, size_t size, const char *folder, const char *name);   /* "folder/name"; "" if too long */
bool file_exists(const char *folder, const char *name);
bool make_folder(const char *path, Error *err);                               /* mkdir -p; an existing folder is fine */
void folder_sync(const char *folder);                 /* the names in it survive a power cut too */

/* ---- mapped files: known by name, for when one shrinks while it is read the system can only say where in memory
   (SIGBUS), and a program wants to say which file. NULL: errno ---- */
typedef struct FileMapping { const char *base, *path; size_t bytes; struct FileMapping *next; } FileMapping;
extern FileMapping *file_mappings;
void *map_file(int fd, size_t bytes, int flags, const char *path);
void unmap_file(void *base, size_t bytes);
void file_release_pages(const void *data, size_t bytes);      /* what has been copied elsewhere goes back to the file
                                                                 cache */

/* ---- writing: under a name of its own, fsync, rename, so that a crash or a full disk never damages anything ---- */
typedef struct SafeFile { FILE *f; char path[PATH_MAX], temporary[PATH_MAX]; bool failed; int error; } SafeFile;
bool safe_open(SafeFile *s, const char *path, Error *err);
void safe_write(SafeFile *s, const void *data, size_t bytes);                 /* a failure waits for safe_close */
bool safe_close(SafeFile *s, Error *err);
/* A whole file at once. */
bool write_file(const char *path, const void *data, size_t bytes, Error *err);
/* A folder that appears whole or not at all: folder_begin, files written into `temporary`, then folder_commit, which
   gives it its name (an earlier one makes way only if `replace`), or folder_discard(temporary). */
typedef struct SafeFolder { char path[PATH_MAX], temporary[PATH_MAX]; } SafeFolder;
bool folder_begin(SafeFolder *f, const char *path, Error *err);
bool folder_commit(SafeFolder *f, bool replace, Error *err);
void folder_discard(const char *temporary);
/* The names that both use: makes PATH.PID-N.tmp, a file or a folder, which nobody had yet, and puts the name into
   `name`. Nothing that exists is opened, not through a link either. Returns a file's descriptor, a folder's 0, or -1.
   temporary_of: did it name this one, for something called `base`? */
int temporary_make(char *name, size_t size, const char *path, bool folder);
bool temporary_of(const char *name, const char *base);

/* One program at a time in a folder. The system holds the lock on FOLDER/run.lock, so that none outlives its program;
   the text in it is for who finds it taken. *unlocked: the file system has no locks, and two would not notice each
   other. */
typedef struct FolderLock { int fd; char path[PATH_MAX]; } FolderLock;        /* path "": none */
bool folder_lock(FolderLock *lock, const char *folder, bool *unlocked, Error *err);
void folder_unlock(FolderLock *lock);

/* ---- the machine ---- */
double seconds_now(void);                             /* a clock that only goes forward */
size_t resident_bytes(bool peak);                     /* of this process: VmRSS or VmHWM */
size_t machine_memory(void);                          /* bytes that can still be taken on this machine */

/* ---- UTF-8 ---- */
/* Length (1..4) of the character at s with n bytes left, its code point in *cp; 0 if it is not well-formed. */
int utf8_get(const char *s, size_t n, uint32_t *cp);
/* Does a character drive a terminal: C0, C1, or one that turns the direction of text? */
bool utf8_drives_terminal(uint32_t c);
/* Lower case of s (n bytes), as Python's str.lower has it: all of Unicode, the final sigma and the dotted capital I
   too. Writes at most room bytes, no NUL, and returns how many the whole takes: never more than n + n / 2. Bytes that
   are not UTF-8 stay as they are. */
size_t utf8_lower(char *out, size_t room, const char *s, size_t n);

/* ---- JSON ---- */
typedef enum { JSON_NULL, JSON_FALSE, JSON_TRUE, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT } JsonType;
typedef struct Json Json;
struct Json {
    JsonType type;
    uint32_t count;        /* ARRAY/OBJECT: children; STRING: bytes of str (may hold NUL bytes) */
    uint32_t key_count;    /* bytes of key */
    bool read;             /* the caller's: the data chapter notes which keys of a row it has looked at */
    const char *str;       /* STRING: decoded UTF-8, NUL-terminated; NUMBER: its spelling, NUL-terminated; else NULL */
    const char *key;       /* name in the parent object, decoded, NUL-terminated; NULL in arrays */
    double number;         /* NUMBER */
    Json *child, *next;    /* first child, next sibling (file order) */
};
typedef struct JsonDoc { Json *root; void *memory; } JsonDoc;   /* owns everything below root */

/* Parses strict JSON (RFC 8259) in UTF-8: no comments, NaN, lone surrogates, trailing text, or nesting beyond 256.
   Repeated names are kept; json_get returns the last one, as Python does. name is for messages only ("config.json");
   first_line is the line number of the text's first line (1; larger for .jsonl). Malformed: "what; NAME:LINE:COLUMN;
   what to do", LINE and COLUMN from 1, columns in characters. On failure *doc is empty and needs no json_free. */
bool json_parse(JsonDoc *doc, const char *text, size_t bytes, const char *name, size_t first_line, Error *err);
/* The same for a row of data: NaN, Infinity and -Infinity, as Python writes the empty cells of a table, are null. */
bool json_parse_row(JsonDoc *doc, const char *text, size_t bytes, const char *name, size_t first_line, Error *err);
/* The same for a whole file; \udc80..\udcff alone are bytes that were not UTF-8, as Python writes and reads them: of
   paths. */
bool json_read(JsonDoc *doc, const char *path, Error *err);
void json_free(JsonDoc *doc);                                   /* also fine on an empty or zeroed doc */
const Json *json_get(const Json *object, const char *key);      /* NULL if absent, or if object is NULL or not an
                                                                   object */
bool json_is_null(const Json *j);                               /* or is not there */

/* Writing: objects, lists and what is in them, one after the other; commas and line ends come by themselves. name: NULL
   in a list, and for what stands alone. JSON_LINES: a line for each member, two spaces a level.
       json_object(&t, NULL, JSON_LINE);
       json_print(&t, "step", "%d", 7);
       json_list(&t, "names", JSON_LINE);
       json_string(&t, NULL, "a");
       json_end(&t);
       json_end(&t);                                            {"step": 7, "names": ["a"]} */
typedef enum { JSON_LINE, JSON_LINES } JsonLayout;
void json_object(Text *t, const char *name, JsonLayout layout);
void json_list(Text *t, const char *name, JsonLayout layout);
void json_end(Text *t);                                         /* of the innermost */
void json_string(Text *t, const char *name, const char *value);                       /* NULL: null */
void json_bytes(Text *t, const char *name, const char *value, size_t n);
void json_bool(Text *t, const char *name, bool value);
/* A number, or anything that is JSON as it is printed. */
#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
void json_print(Text *t, const char *name, const char *format, ...);
void json_new_line(Text *t);                                    /* the next member begins a line */
/* s in quotes, as JSON has it. Paths need not be UTF-8, JSON must: a byte that is not becomes \udcXX, as Python has it,
   and json_read gives it back. */
void text_json_bytes(Text *t, const char *s, size_t n);
void text_json_string(Text *t, const char *s);
/* The same as Python's json.dumps(ensure_ascii=False) has it, \n and its like; reports as text_append does. */
void text_json_dumps(Text *t, const char *s, size_t n);
/* In a JSON text, the value behind every "key": becomes `value`. The text is taken, the new one returned. */
char *json_with(char *text, const char *key, const char *value);
/* The value as Python's json.dumps(ensure_ascii=False, indent=indent) writes it; indent 0: on one line. Reports as
   text_append does. */
void json_dumps(Text *t, const Json *value, int indent);

/* ---- tokenizer ---- */
typedef struct Tokenizer Tokenizer;
typedef struct TokenIds {      /* growable and reusable; start from zero bytes, release with token_ids_free */
    int32_t *ids;              /* (count) */
    uint8_t *mask;             /* (count) 0 or 1; only tokenizer_encode_spans fills it */
    size_t count, capacity;
} TokenIds;
void token_ids_free(TokenIds *t);

/* Reads folder/tokenizer.json, and where present tokenizer_config.json (bos, eos, pad, chat_template),
   chat_template.jinja (wins over the config's), chat_template.json (where there is no other) and generation_config.json
   (eos_token_id: number or list). Anything not understood is refused by name. tokenizer_free releases. */
Tokenizer *tokenizer_open(const char *folder, Error *err);
/* The same from memory, tokenizer.json only: text is (bytes), name is for messages. */
Tokenizer *tokenizer_parse(const char *text, size_t bytes, const char *name, Error *err);
void tokenizer_free(Tokenizer *t);

uint64_t tokenizer_fingerprint(const Tokenizer *t);               /* hash of all files that it was made from */
int32_t tokenizer_vocab_size(const Tokenizer *t);                 /* highest id + 1, including added tokens */
int32_t tokenizer_id(const Tokenizer *t, const char *token);      /* id of an exact token string (vocabulary or
                                                                     added), -1 if none */
const char *tokenizer_token(const Tokenizer *t, int32_t id);      /* raw vocabulary spelling; NULL if out of range or
                                                                     a hole */
int32_t tokenizer_bos(const Tokenizer *t);                        /* the three named by tokenizer_config.json (string
                                                                     or {"content":..}); */
int32_t tokenizer_eos(const Tokenizer *t);                        /*   -1 if none */
int32_t tokenizer_pad(const Tokenizer *t);
bool tokenizer_is_stop(const Tokenizer *t, int32_t id);           /* eos, or in generation_config's eos_token_id */
bool tokenizer_is_special(const Tokenizer *t, int32_t id);        /* an added token with "special": true */
const Json *tokenizer_config(const Tokenizer *t);                 /* tokenizer_config.json; NULL: there is none */
const char *tokenizer_chat_text(const Tokenizer *t, size_t *bytes);  /* the folder's chat template; NULL: there is
                                                                        none */

enum { TOK_ADD_SPECIAL = 1 };   /* run the post-processor (BOS/EOS), as add_special_tokens=True does */
size_t tokenizer_special_after(const Tokenizer *t);               /* how many tokens that puts behind a text */

/* Replaces out->ids by the ids of text (bytes). Added tokens inside the text are recognised, as the library does. Safe
   to call from many threads on one tokenizer (each with its own out). Text that is not UTF-8: error with the byte
   offset. */
bool tokenizer_encode(const Tokenizer *t, TokenIds *out, const char *text, size_t bytes, int flags, Error *err);
/* spans: (nspans) byte ranges [begin,end) of text, ascending, not overlapping. out->mask[i] = 1 if token i covers any
   byte of a span (char_to_token(first) .. char_to_token(last) in the library's terms); tokens the post-processor adds
   get 0. Offsets mean the ORIGINAL text. */
typedef struct TextSpan { size_t begin, end; } TextSpan;
bool tokenizer_encode_spans(const Tokenizer *t, TokenIds *out, const char *text, size_t bytes,
                            const TextSpan *spans, size_t nspans, int flags, Error *err);
/* Text of ids (count), as the library's decode(ids, skip_special_tokens). malloc'ed, NUL-terminated, *bytes set (may be
   NULL). Ids out of range are skipped; bytes that are not UTF-8 become U+FFFD. */
char *tokenizer_decode(const Tokenizer *t, const int32_t *ids, size_t count, bool skip_special, size_t *bytes);

/* ---- chat templates ---- */
typedef enum {
    CHAT_NONE,         /* the folder has no template */
    CHAT_QWEN3,        /* ChatML plus <think> blocks */
    CHAT_QWEN2_5,      /* ChatML with Qwen2.5's default system prompt */
    CHAT_CHATML,       /* plain ChatML, nothing added */
    CHAT_ZEPHYR,       /* TinyLlama, Zephyr */
    CHAT_LLAMA2,
    CHAT_LLAMA3,       /* first published form: always ends with the assistant header */
    CHAT_LLAMA3_GEN,   /* later form: assistant header only with add_generation_prompt */
    CHAT_LLAMA31, CHAT_LLAMA32,
    CHAT_QWEN3_INSTRUCT,   /* Qwen3-*-Instruct-2507: ChatML with tools, no thoughts */
    CHAT_QWEN3_THINKING,   /* Qwen3-*-Thinking-2507: the prompt opens the thought */
    CHAT_QWEN2, CHAT_SMOLLM2,              /* ChatML with a default system prompt */
    CHAT_MISTRAL1, CHAT_MISTRAL2, CHAT_MISTRAL2_SYSTEM, CHAT_MISTRAL3, CHAT_MISTRAL_NEMO,
    CHAT_DEEPSEEK_R1,      /* the distilled ones: no answer in the history keeps its thought, the prompt opens one */
    CHAT_UNKNOWN       /* the folder's template is not one of ours: data/chat.h interprets it */
} ChatTemplate;
ChatTemplate tokenizer_chat_template(const Tokenizer *t);
/* "qwen3", "qwen2.5", "chatml", "zephyr" = "tinyllama", "llama2", ... (chapter 13, chat_names, has them all); unknown:
   error with the nearest. */
bool chat_template_by_name(const char *name, ChatTemplate *out, Error *err);
const char *chat_template_known(int i);        /* the i-th of the names that it knows, or NULL */
const char *chat_template_name(ChatTemplate c);

typedef struct ChatMessage {
    const char *role;                    /* "system", "user", "assistant", "tool" */
    const char *content;                 /* (content_bytes) UTF-8 */
    size_t content_bytes;
    bool train;                          /* may its tokens be trained; not read here, carried for the caller */
    const char *reasoning;               /* (reasoning_bytes) reasoning_content of an assistant turn; NULL: not given */
    size_t reasoning_bytes;
    const Json *whole;                   /* the message as it was given, for data/chat.h; NULL: it has no more than the
                                            above */
} ChatMessage;
typedef struct ChatOptions {
    bool add_generation_prompt;
    int enable_thinking;                 /* Qwen3: -1 template default, 0 off, 1 on */
    const char *date;                    /* Llama 3.1/3.2 date_string; NULL: the template's "26 Jul 2024" */
    const Json *tools;                   /* array of tool descriptions; NULL: none */
    bool as_answer;                      /* the last message, the assistant's, as the model gives it: all before it
                                            becomes the prompt that asks for it (add_generation_prompt), behind that
                                            stands what is to be said, its thought too; one span */
    const Json *kwargs;                  /* what else the template is told, an object; data/chat.h's alone */
} ChatOptions;
typedef struct ChatText {
    char *text;                          /* (bytes) plus NUL */
    size_t bytes;
    TextSpan *spans;                     /* (nspans) one per assistant message, in order: its content (with the
                                            <think> block Qwen3 puts before */
    size_t nspans;                       /*   it) up to and including the end-of-turn token, without the '\n' some
                                              templates put after it. With thinking off the empty block before the
                                              last answer is the prompt's */
    size_t *owner;                       /* [nspans] which assistant's message a span is of, from 0; NULL: span k of the
                                            k-th. data/chat.h's: several of one, or none, are possible */
    size_t thoughts, systems;            /* thoughts and system messages that the template leaves out */
    size_t rewritten, unsaid;            /* answers in front of which stands another text than the prompt that asks for
                                            them; messages, no system's, of which nothing is in the text: data/chat.h's
                                            */
} ChatText;
/* Renders as Jinja2 renders the published template, byte for byte. t gives the bos/eos text and must not be NULL.
   Errors: a role the template has no place for, wrong order (Llama 2), no messages, CHAT_NONE, CHAT_UNKNOWN.
   chat_text_free releases *out. */
bool chat_render(ChatText *out, const Tokenizer *t, ChatTemplate kind, const ChatMessage *messages, size_t count,
                 ChatOptions options, Error *err);
void chat_text_free(ChatText *c);

#ifdef __cplusplus
}
#endif
#endif /* TOKENIZER_H */

#if defined(FUZZ_JSON) || defined(FUZZ_TOKENIZER) || defined(FUZZ_CHAT)
#define TOKENIZER_FUZZED
#endif
#if (defined(TOKENIZER_IMPLEMENTATION) || defined(TOKENIZER_FUZZED)) && !defined(TOKENIZER_IMPLEMENTED)
#define TOKENIZER_IMPLEMENTED
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* =====================================================================================================================
   2  Errors and texts
   ================================================================================================================== */

bool fail(Error *err, const char *fmt, ...) {
    char line[sizeof err->text];      /* formatted aside, so that an argument may be err->text itself */
    va_list ap;
    if (!err) return false;
    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    memcpy(err->text, line, sizeof line);
    return false;
}

/* ---- text: see the public interface ---- */

bool text_room(Text *t, size_t more) {
    if (more < t->capacity - t->length && !t->failed) return true;            /* the zero byte needs one, too */
    size_t capacity = t->capacity ? t->capacity : 128;
    while (capacity - t->length <= more && capacity <= SIZE_MAX / 2) capacity *= 2;
    char *at = t->failed || capacity - t->length <= more ? NULL : (char *)realloc(t->at, capacity);
    if (!at) { t->failed = true; return false; }
    t->at = at;
    t->capacity = capacity;
    t->at[t->length] = 0;
    return true;
}
bool text_append(Text *t, const char *s, size_t n) {
    if (!text_room(t, n)) return false;
    if (n) memcpy(t->at + t->length, s, n);
    t->length += n;
    t->at[t->length] = 0;
    return true;
}
bool text_string(Text *t, const char *s) { return text_append(t, s, strlen(s)); }

/* For the functions that do not report: ends the program where a text has failed. */
static void text_must(const Text *t) {
    if (!t->failed) return;
    fprintf(stderr, "error: out of memory; %zu bytes of text; close other programs\n", t->length);
    exit(1);
}
void text_bytes(Text *t, const char *s, size_t n) { text_append(t, s, n); text_must(t); }
static void text_print_list(Text *t, const char *format, va_list args) {
    va_list again;
    va_copy(again, args);
    text_room(t, 64);                                                         /* most pieces fit at once */
    text_must(t);
    size_t room = t->capacity - t->length;
    int n = vsnprintf(t->at + t->length, room, format, args);
    if (n > 0 && (size_t)n >= room) {
        text_room(t, (size_t)n);
        text_must(t);
        vsnprintf(t->at + t->length, (size_t)n + 1, format, again);
    }
    va_end(again);
    if (n > 0) t->length += (size_t)n;
}
void text_print(Text *t, const char *format, ...) {
    va_list args;
    va_start(args, format);
    text_print_list(t, format, args);
    va_end(args);
}
void text_cut(Text *t, size_t length) {
    if (length >= t->length) return;
    t->length = length;
    t->at[length] = 0;
}
void text_free(Text *t) {
    free(t->at);
    memset(t, 0, sizeof *t);
}

uint64_t hash_bytes(uint64_t h, const void *data, size_t bytes) {
    const uint8_t *p = (const uint8_t *)data;
    for (; bytes >= 8; p += 8, bytes -= 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        h = (h ^ word) * 0x100000001B3u;
        h ^= h >> 29;
    }
    for (; bytes; p++, bytes--) h = (h ^ *p) * 0x100000001B3u;
    return h;
}

int name_distance(const char *typed, const char *name) {
    int row[3][64], m = (int)strlen(typed), n = (int)strlen(name), shorter = m < n ? m : n;
    if (m > 62 || n > 62) return NAME_FAR;
    if (m >= 3 && strncmp(typed, name, (size_t)m) == 0) return 0;
    for (int k = 0; k <= n; k++) row[0][k] = k;
    for (int i = 1; i <= m; i++) {
        int *now = row[i % 3], *before = row[(i + 2) % 3], *earlier = row[(i + 1) % 3];
        now[0] = i;
        for (int k = 1; k <= n; k++) {
            int best = before[k - 1] + (typed[i - 1] != name[k - 1]);
            if (before[k] + 1 < best) best = before[k] + 1;
            if (now[k - 1] + 1 < best) best = now[k - 1] + 1;
            bool swapped = i > 1 && k > 1 && typed[i - 1] == name[k - 2] && typed[i - 2] == name[k - 1];
            if (swapped && earlier[k - 2] + 1 < best) best = earlier[k - 2] + 1;
            now[k] = best;
        }
    }
    return row[m % 3][n] <= shorter / 3 ? row[m % 3][n] : NAME_FAR;      /* a third of the letters at most */
}
const char *name_nearest(const char *typed, const char *const *names, int count) {
    const char *best = NULL;
    int least = NAME_FAR;
    for (int i = 0; i < count; i++) {
        int distance = name_distance(typed, names[i]);
        if (distance < least) { least = distance; best = names[i]; }
    }
    return best;
}

int file_open(const char *path, size_t *bytes, Error *err) {
    static const char lfs[] = "version https://git-lfs.github.com/spec/";
    struct stat st;
    char head[sizeof lfs];
    *bytes = 0;
    if (!*path) { fail(err, "an empty file name; \"\"; give the path of a file"); return -1; }
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);         /* opening a pipe would wait for its writer */
    if (fd < 0 || fstat(fd, &st)) {
        fail(err, "cannot open file; %s: %s; check the path", path, strerror(errno));
        if (fd >= 0) close(fd);
        return -1;
    }
    if (S_ISDIR(st.st_mode)) fail(err, "cannot read file; %s: it is a folder; give a file inside it", path);
    else if (S_ISCHR(st.st_mode) || S_ISBLK(st.st_mode))
        fail(err, "cannot read file; %s: it is a device; give a file", path);
    else if (S_ISREG(st.st_mode) && pread(fd, head, sizeof lfs - 1, 0) == sizeof lfs - 1 &&
             !memcmp(head, lfs, sizeof lfs - 1))
        fail(err, "a Git LFS pointer, not the file itself; %s; run in its folder: git lfs install && git lfs pull",
             path);
    else if (fcntl(fd, F_SETFL, 0)) fail(err, "cannot read file; %s: %s; check the path", path, strerror(errno));
    else {
        if (S_ISREG(st.st_mode)) *bytes = (size_t)st.st_size;
        return fd;
    }
    close(fd);
    return -1;
}

/* What is left in an open file, which is closed. */
static char *file_read(int fd, size_t expected, const char *path, size_t *bytes, Error *err) {
    Text b = TEXT_EMPTY;
    ssize_t got = 1;
    if (bytes) *bytes = 0;
    /* Read until the end rather than trusting the size: pipes and /proc have none. */
    text_room(&b, expected < (size_t)1 << 46 ? expected + 1 : 4096);
    while (got && text_room(&b, 1)) {
        got = read(fd, b.at + b.length, b.capacity - b.length - 1);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) break;
        b.length += (size_t)got;
    }
    if (b.failed || got < 0) {
        fail(err, "cannot read file; %s: %s; check the disk and free memory", path,
             b.failed ? "out of memory" : strerror(errno));
        close(fd); text_free(&b);
        return NULL;
    }
    close(fd);
    b.at[b.length] = 0;
    if (bytes) *bytes = b.length;
    return b.at;
}

char *read_file(const char *path, size_t *bytes, Error *err) {
    size_t size;
    int fd = file_open(path, &size, err);
    if (bytes) *bytes = 0;
    return fd < 0 ? NULL : file_read(fd, size, path, bytes, err);
}

/* =====================================================================================================================
   3  UTF-8, and the ground floor of all files: memory, warnings, paths, files and folders
   ================================================================================================================== */

/* Unicode 16, table 3-7: overlong forms, surrogates and values above U+10FFFF are refused. */
int utf8_get(const char *str, size_t n, uint32_t *cp) {
    const unsigned char *s = (const unsigned char *)str;
    if (n == 0) return 0;
    uint32_t c = s[0];
    if (c < 0x80) { *cp = c; return 1; }
    if (c < 0xC2) return 0;
    if (c < 0xE0) {
        if (n < 2 || (s[1] & 0xC0) != 0x80) return 0;
        *cp = (c & 31) << 6 | (s[1] & 63);
        return 2;
    }
    if (c < 0xF0) {
        if (n < 3 || (s[1] & 0xC0) != 0x80 || (s[2] & 0xC0) != 0x80) return 0;
        *cp = (c & 15) << 12 | (uint32_t)(s[1] & 63) << 6 | (s[2] & 63);
        return *cp < 0x800 || (*cp >= 0xD800 && *cp < 0xE000) ? 0 : 3;
    }
    if (c > 0xF4 || n < 4 || (s[1] & 0xC0) != 0x80 || (s[2] & 0xC0) != 0x80 || (s[3] & 0xC0) != 0x80) return 0;
    *cp = (c & 7) << 18 | (uint32_t)(s[1] & 63) << 12 | (uint32_t)(s[2] & 63) << 6 | (s[3] & 63);
    return *cp < 0x10000 || *cp > 0x10FFFF ? 0 : 4;
}

bool utf8_drives_terminal(uint32_t c) {
    return c < ' ' || (c >= 127 && c < 0xA0) || c == 0x61C || c == 0x200E || c == 0x200F || c == 0xFEFF ||
           (c >= 0x2028 && c <= 0x202E) || (c >= 0x2066 && c <= 0x2069);
}

/* The same for text already known to be valid. */
static inline int utf8_next(const char *str, uint32_t *cp) {
    const unsigned char *s = (const unsigned char *)str;
    uint32_t c = s[0];
    if (c < 0x80) { *cp = c; return 1; }
    if (c < 0xE0) { *cp = (c & 31) << 6 | (s[1] & 63); return 2; }
    if (c < 0xF0) { *cp = (c & 15) << 12 | (uint32_t)(s[1] & 63) << 6 | (s[2] & 63); return 3; }
    *cp = (c & 7) << 18 | (uint32_t)(s[1] & 63) << 12 | (uint32_t)(s[2] & 63) << 6 | (s[3] & 63);
    return 4;
}

/* Writes cp (at most 4 bytes) and returns the length. */
static int utf8_put(char *s, uint32_t cp) {
    if (cp < 0x80) { s[0] = (char)cp; return 1; }
    if (cp < 0x800) { s[0] = (char)(0xC0 | cp >> 6); s[1] = (char)(0x80 | (cp & 63)); return 2; }
    if (cp < 0x10000) {
        s[0] = (char)(0xE0 | cp >> 12);
        s[1] = (char)(0x80 | (cp >> 6 & 63));
        s[2] = (char)(0x80 | (cp & 63));
        return 3;
    }
    s[0] = (char)(0xF0 | cp >> 18);
    s[1] = (char)(0x80 | (cp >> 12 & 63));
    s[2] = (char)(0x80 | (cp >> 6 & 63));
    s[3] = (char)(0x80 | (cp & 63));
    return 4;
}

/* Offset of the first byte that does not belong to a well-formed character; n if all is well. Eight ASCII bytes at a
   time. */
static size_t utf8_invalid(const char *s, size_t n) {
    size_t i = 0;
    while (i < n) {
        uint64_t w; uint32_t cp;
        while (i + 8 <= n && (memcpy(&w, s + i, 8), (w & 0x8080808080808080ull) == 0)) i += 8;
        if (i == n) break;
        int k = utf8_get(s + i, n - i, &cp);
        if (k == 0) return i;
        i += (size_t)k;
    }
    return n;
}

/* ---- memory, warnings, paths, and files that are written whole --------------------------------------------------- */

void *must_realloc(void *p, size_t bytes) {
    void *q = realloc(p, bytes);
    if (!q && bytes) { fprintf(stderr, "error: out of memory; %zu bytes; close other programs\n", bytes); exit(1); }
    return q;
}
void *must_alloc(size_t bytes) {
    void *p = calloc(1, bytes ? bytes : 1);
    if (!p) { fprintf(stderr, "error: out of memory; %zu bytes; close other programs\n", bytes); exit(1); }
    return p;
}
char *text_copy(const char *s) { return strcpy((char *)must_alloc(strlen(s) + 1), s); }

/* Says on stderr what is done with an input that is not used as it stands; control characters of files do not pass. */
void print_warning(const char *format, ...) {
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    for (size_t i = 0, n = strlen(text), bytes; i < n; i += bytes) {
        uint32_t c = 0;
        int length = utf8_get(text + i, n - i, &c);
        bytes = length > 0 ? (size_t)length : 1;
        if (length <= 0 || utf8_drives_terminal(c)) memset(text + i, '?', bytes);
    }
    fprintf(stderr, "warning: %s\n", text);
}

char *text_copy_bytes(const char *s, size_t n) {
    char *c = (char *)must_alloc(n + 1);
    memcpy(c, s, n);
    return c;
}

void path_in(char *out, size_t size, const char *folder, const char *name) {
    size_t n = strlen(folder);
    int length = snprintf(out, size, "%s%s%s", folder, n && folder[n - 1] == '/' ? "" : "/", name);
    if (length < 0 || (size_t)length >= size) out[0] = 0;                     /* too long for the system: opening ""
                                                                                 says so */
}
bool file_exists(const char *folder, const char *name) {
    char path[PATH_MAX];
    path_in(path, sizeof path, folder, name);
    return access(path, F_OK) == 0;
}

/* ---- writing ---- */

#ifndef CRASH_POINT
#define CRASH_POINT()                       /* the tests stop the process here (test/test_faults.c): what is on the
                                               disk then must be whole */
#endif

/* Makes a file, or a folder, that nobody has yet: PATH.PID-N.tmp, put into `name`. Nothing that exists is opened, not
   through a link either. Returns a file's descriptor, a folder's 0, or -1. */
int temporary_make(char *name, size_t size, const char *path, bool folder) {
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') n--;
    for (int i = 0; i < 1000; i++) {
        int length = snprintf(name, size, "%.*s.%ld-%d.tmp", (int)n, path, (long)getpid(), i);
        if (length < 0 || (size_t)length >= size) { errno = ENAMETOOLONG; return -1; }
        int fd = folder ? mkdir(name, 0777) : open(name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
        if (fd >= 0 || errno != EEXIST) return fd;
    }
    return -1;
}
/* Whether temporary_make named it, for something that is called `base`. */
bool temporary_of(const char *name, const char *base) {
    char again[NAME_MAX + 64];
    long pid;
    int number;
    size_t n = strlen(base);
    if (strncmp(name, base, n) || sscanf(name + n, ".%ld-%d.tmp", &pid, &number) != 2) return false;
    snprintf(again, sizeof again, "%.*s.%ld-%d.tmp", NAME_MAX, base, pid, number);
    return !strcmp(name, again);
}

bool safe_open(SafeFile *s, const char *path, Error *err) {
    memset(s, 0, sizeof *s);
    snprintf(s->path, sizeof s->path, "%s", path);
    int fd = temporary_make(s->temporary, sizeof s->temporary, path, false);
    s->f = fd < 0 ? NULL : fdopen(fd, "wb");
    if (s->f) return true;
    fail(err, "cannot write; %s: %s; check that the folder exists and is writable", path, strerror(errno));
    if (fd >= 0) { close(fd); unlink(s->temporary); }
    return false;
}
void safe_write(SafeFile *s, const void *data, size_t bytes) {
    if (!s->failed && bytes && fwrite(data, 1, bytes, s->f) != bytes) { s->failed = true; s->error = errno; }
    CRASH_POINT();
}
bool safe_close(SafeFile *s, Error *err) {
    if (!s->failed && fflush(s->f)) { s->failed = true; s->error = errno; }
    CRASH_POINT();
    if (!s->failed && fsync(fileno(s->f))) { s->failed = true; s->error = errno; }
    if (fclose(s->f) && !s->failed) { s->failed = true; s->error = errno; }
    CRASH_POINT();
    if (!s->failed && rename(s->temporary, s->path)) { s->failed = true; s->error = errno; }
    CRASH_POINT();
    if (!s->failed) return true;
    unlink(s->temporary);
    return fail(err, "cannot write; %s: %s; %s", s->path, strerror(s->error),
                s->error == ENOSPC ? "free some space or give another --output" : "give another --output");
}

/* The names in a folder must survive a power cut too. */
void folder_sync(const char *folder) {
    int fd = open(folder, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    fsync(fd);
    close(fd);
}

/* Removes a folder that temporary_make has made, and the files in it. */
void folder_discard(const char *folder) {
    char path[PATH_MAX];
    DIR *d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d));) {
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        path_in(path, sizeof path, folder, e->d_name);
        unlink(path);
        CRASH_POINT();
    }
    if (d) closedir(d);
    rmdir(folder);
}

bool folder_begin(SafeFolder *f, const char *path, Error *err) {
    snprintf(f->path, sizeof f->path, "%s", path);
    for (size_t n = strlen(f->path); n > 1 && f->path[n - 1] == '/';) f->path[--n] = 0;
    if (!temporary_make(f->temporary, sizeof f->temporary, f->path, true)) return true;
    return fail(err, "cannot make a folder beside it; %s: %s; give another --output", path, strerror(errno));
}

/* Linux's renameat2, where kernel and file system have it. */
enum { FOLDER_NEVER_REPLACES = 1, FOLDER_EXCHANGES = 2 };
static bool folder_rename(const char *from, const char *to, unsigned flags) {
#ifdef SYS_renameat2
    return !syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, flags);
#else
    (void)from; (void)to; (void)flags;
    errno = ENOSYS;
    return false;
#endif
}

/* The new folder takes its name. An earlier one (refused unless `replace`) makes way in one step where that can be,
   else it is renamed away first; what the new folder has no file for was put there by somebody else, and moves over. */
bool folder_commit(SafeFolder *f, bool replace, Error *err) {
    char old[PATH_MAX] = "", from[PATH_MAX], to[PATH_MAX];
    struct stat st;
    folder_sync(f->temporary);
    CRASH_POINT();
    bool ok, there = !lstat(f->path, &st);
    if (there && !replace) {
        folder_discard(f->temporary);
        return fail(err, "it exists already; %s; nothing is overwritten, give a new folder", f->path);
    }
    if (!there)
        ok = folder_rename(f->temporary, f->path, FOLDER_NEVER_REPLACES) ||
             (errno != EEXIST && !rename(f->temporary, f->path));
    else if ((ok = folder_rename(f->temporary, f->path, FOLDER_EXCHANGES)))
        snprintf(old, sizeof old, "%s", f->temporary);
    else {
        ok = !temporary_make(old, sizeof old, f->path, true) && !rename(f->path, old);
        CRASH_POINT();
        if (ok && rename(f->temporary, f->path)) { int e = errno; rename(old, f->path); errno = e; ok = false; }
    }
    CRASH_POINT();
    if (!ok) {
        fail(err, "cannot write; %s: %s; give another --output", f->path, strerror(errno));
        folder_discard(f->temporary);
        return false;
    }
    DIR *d = *old ? opendir(old) : NULL;
    for (struct dirent *e; d && (e = readdir(d));) {
        path_in(from, sizeof from, old, e->d_name);
        path_in(to, sizeof to, f->path, e->d_name);
        if (lstat(to, &st)) rename(from, to);
    }
    if (d) closedir(d);
    if (*old) folder_discard(old);
    snprintf(to, sizeof to, "%s", f->path);
    char *slash = strrchr(to, '/');
    if (slash) *(slash > to ? slash : slash + 1) = 0;
    folder_sync(slash ? to : ".");
    return true;
}

bool write_file(const char *path, const void *data, size_t bytes, Error *err) {
    SafeFile s;
    if (!safe_open(&s, path, err)) return false;
    safe_write(&s, data, bytes);
    return safe_close(&s, err);
}
bool text_write(Text *t, const char *folder, const char *name, Error *err) {
    char path[PATH_MAX];
    path_in(path, sizeof path, folder, name);
    bool ok = write_file(path, t->at, t->length, err);
    text_free(t);
    return ok;
}

/* mkdir -p; an existing folder is fine. */
bool make_folder(const char *path, Error *err) {
    char part[PATH_MAX];
    size_t n = strlen(path);
    if (!n || n >= sizeof part) return fail(err, "bad folder name; '%s'; give another --output", path);
    for (size_t i = 1; i <= n; i++) {
        if (path[i] != '/' && path[i]) continue;
        memcpy(part, path, i);
        part[i] = 0;
        if (mkdir(part, 0777) && errno != EEXIST)
            return fail(err, "cannot make the folder; %s: %s; give another --output", part, strerror(errno));
    }
    struct stat st;
    if (stat(path, &st) || !S_ISDIR(st.st_mode)) return fail(err, "not a folder; %s; give another --output", path);
    return true;
}

/* ---- mapped files ---- */

FileMapping *file_mappings;

void *map_file(int fd, size_t bytes, int flags, const char *path) {
    void *base = mmap(NULL, bytes, PROT_READ, flags, fd, 0);
    if (base == MAP_FAILED) return NULL;
    FileMapping *m = (FileMapping *)must_alloc(sizeof *m);
    m->base = (const char *)base;
    m->bytes = bytes;
    m->path = text_copy(path);
    m->next = file_mappings;
    file_mappings = m;
    return base;
}
void unmap_file(void *base, size_t bytes) {
    for (FileMapping **at = &file_mappings; *at; at = &(*at)->next) {
        FileMapping *m = *at;
        if (m->base != base) continue;
        *at = m->next;
        free((char *)m->path);
        free(m);
        break;
    }
    munmap(base, bytes);
}

void file_release_pages(const void *data, size_t bytes) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), begin = ((size_t)data + page - 1) / page * page,
           end = ((size_t)data + bytes) / page * page;
    if (end > begin) madvise((void *)begin, end - begin, MADV_DONTNEED);
}

bool folder_lock(FolderLock *lock, const char *folder, bool *unlocked, Error *err) {
    struct stat opened, named;
    char host[64] = "", owner[128] = "";
    *unlocked = false;
    path_in(lock->path, sizeof lock->path, folder, "run.lock");
    for (;;) {
        lock->fd = open(lock->path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
        if (lock->fd < 0) {
            fail(err, "cannot write; %s: %s; give another --output", lock->path, strerror(errno));
            lock->path[0] = 0;
            return false;
        }
        if (flock(lock->fd, LOCK_EX | LOCK_NB)) {
            *unlocked = errno != EWOULDBLOCK;
            if (*unlocked) break;
            ssize_t n = pread(lock->fd, owner, sizeof owner - 1, 0);
            close(lock->fd);
            lock->path[0] = 0;
            owner[n > 0 ? strcspn(owner, "\n") : 0] = 0;
            return fail(err, "another run is writing there: process %s; %s; let it end or give another --output",
                        owner, folder);
        }
        /* its last owner may have removed the file between our open and our lock */
        bool known = !fstat(lock->fd, &opened) && !stat(lock->path, &named);
        if (known && opened.st_ino == named.st_ino && opened.st_dev == named.st_dev) break;
        close(lock->fd);
    }
    gethostname(host, sizeof host - 1);
    bool named_it = !ftruncate(lock->fd, 0) && dprintf(lock->fd, "%ld on %s\n", (long)getpid(), host) >= 0;
    (void)named_it;                                                           /* a full disk: no name */
    return true;
}
void folder_unlock(FolderLock *lock) {
    if (!lock->path[0]) return;
    unlink(lock->path);
    close(lock->fd);
    lock->path[0] = 0;
}

/* ---- the machine ---- */

double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* A "Name:   123 kB" line of one of Linux's status files, in bytes; 0 if it is not there. */
static size_t machine_bytes(const char *file, const char *name) {
    FILE *f = fopen(file, "r");
    char line[256];
    size_t found = 0, n = strlen(name);
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, name, n) && line[n] == ':') found = (size_t)strtoull(line + n + 1, NULL, 10) * 1024;
    if (f) fclose(f);
    return found;
}
size_t resident_bytes(bool peak) { return machine_bytes("/proc/self/status", peak ? "VmHWM" : "VmRSS"); }
size_t machine_memory(void) { return machine_bytes("/proc/meminfo", "MemAvailable"); }

/* =====================================================================================================================
   4  JSON, read and written
   One recursive-descent parser for every JSON file we read (models, tokenizers, data sets). All nodes and strings of a
   document live in one chain of blocks, so freeing is a walk over a few blocks; a decoded string never needs more room
   than its spelling. Writing needs no document: what is printed last says whether a comma is due.
   ================================================================================================================== */

enum { JSON_MAX_DEPTH = 256 };
typedef struct JsonBlock { struct JsonBlock *next; size_t used, size; } JsonBlock;   /* size bytes follow the header */
typedef struct JsonParser {
    const char *begin, *p, *end, *name;
    size_t first_line;
    int depth;
    bool row;                               /* NaN and its like are null */
    bool file;                              /* \udc80..\udcff are bytes that were not UTF-8 */
    JsonBlock *blocks;
    Error *err;
} JsonParser;

static bool json_error(JsonParser *j, const char *at, const char *what, const char *todo) {
    size_t line = j->first_line, column = 1;
    for (const char *s = j->begin; s < at; s++) {
        if (*s == '\n') { line++; column = 1; }
        else if ((*s & 0xC0) != 0x80) column++;
    }
    return fail(j->err, "%s; %s:%zu:%zu; %s", what, j->name, line, column, todo);
}

static void *json_alloc(JsonParser *j, size_t bytes) {
    JsonBlock *b = j->blocks;
    bytes = (bytes + 7) & ~(size_t)7;
    if (!b || b->size - b->used < bytes) {
        /* Blocks double up to 4 MiB: a one-line data row costs one small malloc, a 10 MB tokenizer a few dozen. */
        size_t text = (size_t)(j->end - j->begin), size = b ? b->size * 2 : text < 128 ? 1024 : text * 4;
        if (size > (size_t)4 << 20) size = (size_t)4 << 20;
        if (size < bytes) size = bytes;
        b = (JsonBlock *)malloc(sizeof *b + size);
        if (!b) return NULL;
        b->next = j->blocks; b->used = 0; b->size = size;
        j->blocks = b;
    }
    void *p = (char *)(b + 1) + b->used;
    b->used += bytes;
    return p;
}

static bool json_memory(JsonParser *j) {
    return json_error(j, j->p, "out of memory while reading JSON", "free some memory");
}

static void json_space(JsonParser *j) {
    while (j->p < j->end && (*j->p == ' ' || *j->p == '\n' || *j->p == '\r' || *j->p == '\t')) j->p++;
}

static bool json_hex4(const char *s, const char *end, uint32_t *v) {
    if (end - s < 4) return false;
    *v = 0;
    for (int i = 0; i < 4; i++) {
        char c = s[i];
        uint32_t d = c >= '0' && c <= '9' ? (uint32_t)(c - '0') : c >= 'a' && c <= 'f' ? (uint32_t)(c - 'a' + 10) :
                     c >= 'A' && c <= 'F' ? (uint32_t)(c - 'A' + 10) : 16;
        if (d == 16) return false;
        *v = *v << 4 | d;
    }
    return true;
}

static bool json_parse_string(JsonParser *j, const char **str, uint32_t *count) {
    const char *s = j->p + 1, *q = s;
    while (q < j->end && *q != '"') q += *q == '\\' && j->end - q > 1 ? 2 : 1;
    if (q >= j->end)
        return json_error(j, j->p, "string without closing quote", "close it with \"; the file may be cut off");
    if ((size_t)(q - s) > 0xFFFFFFF0u) return json_error(j, j->p, "string longer than 4 GB", "split the data");
    char *out = (char *)json_alloc(j, (size_t)(q - s) + 1), *o = out;
    if (!out) return json_memory(j);
    while (s < q) {
        unsigned char c = (unsigned char)*s;
        if (c < 0x20) return json_error(j, s, "control character inside a string", "write it as \\n, \\t or \\u00XX");
        if (c != '\\') { *o++ = *s++; continue; }
        switch (s[1]) {
            case '"': case '\\': case '/': *o++ = s[1]; s += 2; break;
            case 'b': *o++ = '\b'; s += 2; break;
            case 'f': *o++ = '\f'; s += 2; break;
            case 'n': *o++ = '\n'; s += 2; break;
            case 'r': *o++ = '\r'; s += 2; break;
            case 't': *o++ = '\t'; s += 2; break;
            case 'u': {
                uint32_t hi, lo;
                if (!json_hex4(s + 2, q, &hi))
                    return json_error(j, s, "\\u needs four hexadecimal digits", "write it as \\u00e9");
                const char *at = s;
                s += 6;
                if (j->file && hi >= 0xDC80 && hi < 0xDD00) { *o++ = (char)(hi - 0xDC00); break; }
                if (hi >= 0xDC00 && hi < 0xE000)
                    return json_error(j, at, "lone surrogate", "a \\uDC00..\\uDFFF needs a \\uD800..\\uDBFF before it");
                if (hi >= 0xD800 && hi < 0xDC00) {
                    if (q - s < 6 || s[0] != '\\' || s[1] != 'u' || !json_hex4(s + 2, q, &lo) || lo < 0xDC00 ||
                        lo > 0xDFFF)
                        return json_error(j, at, "lone surrogate",
                                          "a \\uD800..\\uDBFF needs a \\uDC00..\\uDFFF after it");
                    hi = 0x10000 + ((hi - 0xD800) << 10) + (lo - 0xDC00);
                    s += 6;
                }
                o += utf8_put(o, hi);
                break;
            }
            default: return json_error(j, s, "unknown escape in a string", "write a backslash as \\\\");
        }
    }
    *o = 0;
    *str = out; *count = (uint32_t)(o - out);
    j->p = q + 1;
    return true;
}

static bool json_parse_number(JsonParser *j, Json *v) {
    const char *s = j->p, *e = j->end, *b = s;
    if (s < e && *s == '-') s++;
    if (s < e && *s == '0') s++;
    else { if (s >= e || *s < '1' || *s > '9') goto bad; while (s < e && *s >= '0' && *s <= '9') s++; }
    if (s < e && *s == '.') {
        s++;
        if (s >= e || *s < '0' || *s > '9') goto bad;
        while (s < e && *s >= '0' && *s <= '9') s++;
    }
    if (s < e && (*s == 'e' || *s == 'E')) {
        s++;
        if (s < e && (*s == '+' || *s == '-')) s++;
        if (s >= e || *s < '0' || *s > '9') goto bad;
        while (s < e && *s >= '0' && *s <= '9') s++;
    }
    if (s < e && ((*s >= '0' && *s <= '9') || *s == '.' || *s == '+' || *s == '-' || (*s >= 'a' && *s <= 'z') ||
                  (*s >= 'A' && *s <= 'Z')))
        goto bad;
    {
        char *copy = (char *)json_alloc(j, (size_t)(s - b) + 1);
        if (!copy) return json_memory(j);
        memcpy(copy, b, (size_t)(s - b));
        copy[s - b] = 0;
        v->type = JSON_NUMBER; v->str = copy; v->number = strtod(copy, NULL);
    }
    j->p = s;
    return true;
bad:
    return json_error(j, s, "malformed number", "JSON numbers look like -1, 0.5 or 1e-5");
}

static bool json_word(JsonParser *j, Json *v) {
    static const struct { const char *word; JsonType type; } words[] = {
        {"null", JSON_NULL}, {"false", JSON_FALSE}, {"true", JSON_TRUE}};
    static const char *const nan_words[] = {"NaN", "Infinity", "-Infinity"};
    size_t left = (size_t)(j->end - j->p);
    for (int i = 0; i < 3; i++) {
        size_t n = strlen(words[i].word);
        if (left >= n && memcmp(j->p, words[i].word, n) == 0) { v->type = words[i].type; j->p += n; return true; }
    }
    for (int i = 0; i < 3; i++)
        if (left >= strlen(nan_words[i]) && memcmp(j->p, nan_words[i], strlen(nan_words[i])) == 0) {
            if (j->row) { v->type = JSON_NULL; j->p += strlen(nan_words[i]); return true; }
            return json_error(j, j->p, "NaN and Infinity are not JSON", "write a number or null");
        }
    if (left && (*j->p == '-' || (*j->p >= '0' && *j->p <= '9'))) return json_parse_number(j, v);
    return json_error(j, j->p, left ? "unexpected character" : "unexpected end of text", "expected a JSON value here");
}

static bool json_value(JsonParser *j, Json *v) {
    json_space(j);
    if (j->p < j->end && *j->p == '"') { v->type = JSON_STRING; return json_parse_string(j, &v->str, &v->count); }
    if (j->p >= j->end || (*j->p != '{' && *j->p != '[')) return json_word(j, v);
    bool object = *j->p == '{';
    char close = object ? '}' : ']';
    Json **tail = &v->child;
    if (++j->depth > JSON_MAX_DEPTH) return json_error(j, j->p, "nested deeper than 256 levels", "flatten the data");
    v->type = object ? JSON_OBJECT : JSON_ARRAY;
    j->p++;
    json_space(j);
    if (j->p < j->end && *j->p == close) { j->p++; j->depth--; return true; }
    for (;;) {
        Json *c = (Json *)json_alloc(j, sizeof *c);
        if (!c) return json_memory(j);
        memset(c, 0, sizeof *c);
        if (object) {
            json_space(j);
            if (j->p >= j->end || *j->p != '"')
                return json_error(j, j->p, j->p < j->end ? "expected a name in quotes" : "unexpected end of text",
                                  "objects look like {\"name\": value}");
            if (!json_parse_string(j, &c->key, &c->key_count)) return false;
            json_space(j);
            if (j->p >= j->end || *j->p != ':')
                return json_error(j, j->p, j->p < j->end ? "expected ':'" : "unexpected end of text",
                                  "objects look like {\"name\": value}");
            j->p++;
        }
        if (!json_value(j, c)) return false;
        *tail = c; tail = &c->next;
        if (v->count++ == 0xFFFFFFFFu) return json_error(j, j->p, "too many elements", "split the data");
        json_space(j);
        if (j->p < j->end && *j->p == ',') { j->p++; continue; }
        if (j->p < j->end && *j->p == close) { j->p++; j->depth--; return true; }
        const char *wrong = object ? "expected ',' or '}'" : "expected ',' or ']'";
        return json_error(j, j->p, j->p >= j->end ? "unexpected end of text" : wrong,
                          "the file may be cut off or a comma is missing");
    }
}

static bool json_document(JsonDoc *doc, const char *text, size_t bytes, const char *name, size_t first_line, bool row,
                          bool file, Error *err) {
    JsonParser j;
    memset(&j, 0, sizeof j);
    j.row = row;
    j.file = file;
    j.begin = j.p = text ? text : "";
    j.end = j.begin + bytes;
    j.name = name ? name : "JSON";
    j.first_line = first_line;
    j.err = err;
    doc->root = NULL; doc->memory = NULL;
    size_t bad = utf8_invalid(j.begin, bytes);
    bool ok;
    if (bad < bytes) ok = json_error(&j, j.begin + bad, "invalid UTF-8", "save the file as UTF-8");
    else if (bytes >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0)
        ok = json_error(&j, j.begin, "byte order mark at the start", "save the file without BOM");
    else {
        Json *root = (Json *)json_alloc(&j, sizeof *root);
        if (!root) ok = json_memory(&j);
        else {
            memset(root, 0, sizeof *root);
            ok = json_value(&j, root);
            if (ok) {
                json_space(&j);
                if (j.p < j.end)
                    ok = json_error(&j, j.p, "text after the JSON value",
                                    "remove it; one value per file (per line in .jsonl)");
            }
            doc->root = root;
        }
    }
    doc->memory = j.blocks;
    if (!ok) json_free(doc);
    return ok;
}

bool json_parse(JsonDoc *doc, const char *text, size_t bytes, const char *name, size_t first_line, Error *err) {
    return json_document(doc, text, bytes, name, first_line, false, false, err);
}
bool json_parse_row(JsonDoc *doc, const char *text, size_t bytes, const char *name, size_t first_line, Error *err) {
    return json_document(doc, text, bytes, name, first_line, true, false, err);
}

bool json_read(JsonDoc *doc, const char *path, Error *err) {
    size_t bytes;
    char *text = read_file(path, &bytes, err);
    bool ok = text && json_document(doc, text, bytes, path, 1, false, true, err);
    free(text);
    return ok;
}

void json_free(JsonDoc *doc) {
    JsonBlock *b = (JsonBlock *)doc->memory;
    while (b) { JsonBlock *next = b->next; free(b); b = next; }
    doc->root = NULL; doc->memory = NULL;
}

const Json *json_get(const Json *object, const char *key) {
    const Json *found = NULL;
    size_t n = strlen(key);
    if (!object || object->type != JSON_OBJECT) return NULL;
    for (const Json *c = object->child; c; c = c->next)
        if (c->key_count == n && memcmp(c->key, key, n) == 0) found = c;
    return found;
}

bool json_is_null(const Json *j) { return !j || j->type == JSON_NULL; }

/* ---- writing ---- */

/* A character of `marks` becomes a backslash and the letter below it in `letters`. */
static void json_quote(Text *t, const char *s, size_t n, const char *marks, const char *letters) {
    char escape[8];
    text_append(t, "\"", 1);
    for (size_t plain = 0, i = 0; i <= n;) {                                  /* [plain, i): as it is */
        uint8_t c = i < n ? (uint8_t)s[i] : 0;
        uint32_t cp;
        int bytes = i < n ? utf8_get(s + i, n - i, &cp) : 0;
        const char *mark = c ? strchr(marks, c) : NULL;
        if (bytes > 0 && c >= 32 && !mark) { i += (size_t)bytes; continue; }
        if (i > plain) text_append(t, s + plain, i - plain);
        if (i == n) break;
        if (mark) snprintf(escape, sizeof escape, "\\%c", letters[mark - marks]);
        else snprintf(escape, sizeof escape, bytes > 0 ? "\\u%04x" : "\\udc%02x", (unsigned)c);
        text_string(t, escape);
        plain = ++i;
    }
    text_append(t, "\"", 1);
}
void text_json_bytes(Text *t, const char *s, size_t n) {
    json_quote(t, s, n, "\"\\", "\"\\");
    text_must(t);
}
void text_json_dumps(Text *t, const char *s, size_t n) { json_quote(t, s, n, "\"\\\n\r\t\b\f", "\"\\nrtbf"); }
void text_json_string(Text *t, const char *s) { text_json_bytes(t, s, strlen(s)); }

void json_new_line(Text *t) { t->new_line = true; }
static void json_line(Text *t) {
    text_string(t, "\n");
    for (int i = 0; i < t->depth; i++) text_string(t, "  ");
}
/* What stands before a value: a comma where it is not the first one, the line's end, the name. */
static void json_begin(Text *t, const char *name) {
    char last = t->length ? t->at[t->length - 1] : '\n';
    bool first = last == '{' || last == '[' || last == '\n',
         line = t->new_line || (t->depth && t->lines >> t->depth & 1);
    if (!first) text_string(t, line ? "," : ", ");
    if (line) json_line(t);
    t->new_line = false;
    if (!name) return;
    text_json_string(t, name);
    text_string(t, ": ");
}
static void json_open(Text *t, const char *name, JsonLayout layout, bool object) {
    json_begin(t, name);
    text_bytes(t, object ? "{" : "[", 1);
    uint32_t bit = 1u << ++t->depth;
    t->objects = object ? t->objects | bit : t->objects & ~bit;
    t->lines = layout == JSON_LINES ? t->lines | bit : t->lines & ~bit;
}
void json_object(Text *t, const char *name, JsonLayout layout) { json_open(t, name, layout, true); }
void json_list(Text *t, const char *name, JsonLayout layout) { json_open(t, name, layout, false); }
void json_end(Text *t) {
    uint32_t bit = 1u << t->depth--;
    bool empty = t->at[t->length - 1] == '{' || t->at[t->length - 1] == '[';
    if (t->lines & bit && !empty) json_line(t);
    text_bytes(t, t->objects & bit ? "}" : "]", 1);
}
void json_print(Text *t, const char *name, const char *format, ...) {
    va_list args;
    json_begin(t, name);
    va_start(args, format);
    text_print_list(t, format, args);
    va_end(args);
}
void json_bytes(Text *t, const char *name, const char *value, size_t n) {
    json_begin(t, name);
    text_json_bytes(t, value, n);
}
void json_string(Text *t, const char *name, const char *value) {
    if (value) json_bytes(t, name, value, strlen(value));
    else json_print(t, name, "null");
}
void json_bool(Text *t, const char *name, bool value) { json_print(t, name, "%s", value ? "true" : "false"); }

char *json_with(char *text, const char *key, const char *value) {
    Text t = TEXT_EMPTY;
    char quoted[40];
    const char *at = text, *found;
    int n = snprintf(quoted, sizeof quoted, "\"%s\"", key);
    while ((found = strstr(at, quoted))) {
        const char *colon = found + n, *end;
        colon += strspn(colon, " \t\r\n");
        if (*colon != ':') { text_print(&t, "%.*s", (int)(colon - at), at); at = colon; continue; }
        colon += 1 + strspn(colon + 1, " \t\r\n");
        end = colon + strcspn(colon, ",}\r\n");
        text_print(&t, "%.*s%s", (int)(colon - at), at, value);
        at = end;
    }
    text_print(&t, "%s", at);
    free(text);
    return t.at;
}

/* Python's repr of a float: shortest digits that read back the same. */
static void json_float(Text *t, double x) {
    char digits[40], s[64];
    int p = 0, e, n;
    do snprintf(digits, sizeof digits, "%.*e", p, x); while (strtod(digits, NULL) != x && ++p < 17);
    char *mark = strchr(digits, 'e');
    if (!mark) { text_string(t, x < 0 ? "-Infinity" : "Infinity"); return; }         /* 1e999 */
    e = atoi(mark + 1);
    if (e < -4 || e >= 16) {
        *mark = 0;
        n = snprintf(s, sizeof s, "%se%c%02d", digits, e < 0 ? '-' : '+', e < 0 ? -e : e);
    } else n = snprintf(s, sizeof s, "%.*f", p > e ? p - e : 1, x);
    text_append(t, s, (size_t)n);
}

static void json_dumps_line(Text *t, int spaces) {
    text_string(t, "\n");
    for (int i = 0; i < spaces; i++) text_string(t, " ");
}
static void json_dumps_at(Text *t, const Json *j, int indent, int depth) {
    static const char *const words[] = {"null", "false", "true"};
    if (j->type <= JSON_TRUE) { text_string(t, words[j->type]); return; }
    if (j->type == JSON_STRING) { text_json_dumps(t, j->str, j->count); return; }
    if (j->type == JSON_NUMBER) {
        if (strpbrk(j->str, ".eE")) json_float(t, j->number);
        else text_string(t, strcmp(j->str, "-0") == 0 ? "0" : j->str);
        return;
    }
    bool object = j->type == JSON_OBJECT;
    text_string(t, object ? "{" : "[");
    for (const Json *c = j->child; c; c = c->next) {
        if (c != j->child) text_string(t, indent ? "," : ", ");
        if (indent) json_dumps_line(t, indent * (depth + 1));
        if (object) { text_json_dumps(t, c->key, c->key_count); text_string(t, ": "); }
        json_dumps_at(t, c, indent, depth + 1);
    }
    if (indent && j->child) json_dumps_line(t, indent * depth);
    text_string(t, object ? "}" : "]");
}
void json_dumps(Text *t, const Json *value, int indent) { json_dumps_at(t, value, indent, 0); }

/* =====================================================================================================================
   5  Unicode
   What the scanners and NFC need to know about a character, expanded once per tokenizer from the packed tables below
   into arrays that cost one load per character. Letters and numbers are Unicode 16.0; NFC is Unicode 9.0 because the
   library's NFC is (a character that came later neither composes nor reorders there, and ids must agree).
   ================================================================================================================== */

/* ---- generated by dev/make_unicode.py: begin ---- */
/* \p{L}: alternating gap, length */
static const uint16_t uni_letters[1354] = {
65,26,6,26,47,1,10,1,4,1,5,23,1,31,1,458,4,12,14,5,7,1,1,1,129,5,1,2,2,4,1,1,6,1,1,3,1,1,1,20,1,83,1,139,8,166,1,38,2,1,
6,41,71,27,4,4,45,43,35,2,1,99,1,1,15,2,7,2,10,3,2,1,16,1,1,30,29,89,11,1,24,33,9,2,4,1,5,22,4,1,9,1,3,1,23,25,7,11,5,
24,1,6,17,42,58,54,3,1,18,1,7,10,15,16,4,8,2,2,2,22,1,7,1,1,3,4,3,1,16,1,13,2,1,3,14,2,10,1,8,6,4,2,2,22,1,7,1,2,1,2,1,
2,31,4,1,1,19,3,16,9,1,3,1,22,1,7,1,2,1,5,3,1,18,1,15,2,23,1,11,8,2,2,2,22,1,7,1,2,1,5,3,1,30,2,1,3,15,1,17,1,1,6,3,3,1,
4,3,2,1,1,1,2,3,2,3,3,3,12,22,1,52,8,1,3,1,23,1,16,3,1,26,3,2,1,2,2,30,1,4,8,1,3,1,23,1,10,1,5,3,1,31,2,1,2,15,2,17,9,1,
3,1,41,2,1,16,1,5,3,8,3,24,6,5,18,3,24,1,9,1,1,2,7,58,48,1,2,12,7,58,2,1,1,1,5,1,24,1,1,1,10,1,2,9,1,2,5,1,1,21,4,32,1,
63,8,1,36,27,5,115,43,20,1,16,6,4,4,3,1,3,2,7,3,4,13,12,1,17,38,1,1,5,1,2,43,1,333,1,4,2,7,1,1,1,4,2,41,1,4,2,33,1,4,2,
7,1,1,1,4,2,15,1,57,1,4,2,67,37,16,16,86,2,6,3,620,2,17,1,26,5,75,6,8,7,18,13,19,14,18,14,13,1,3,15,52,35,1,4,1,67,89,7,
5,2,34,1,1,5,70,10,31,49,30,2,5,11,44,4,26,54,23,9,53,82,1,93,47,17,8,54,30,13,2,10,44,26,36,41,3,10,36,2,11,5,43,2,3,
41,4,1,6,1,2,3,1,5,192,64,278,2,6,2,38,2,6,2,8,1,1,1,1,1,1,1,31,2,53,1,7,1,1,3,3,1,7,3,4,2,6,4,13,5,3,1,7,116,1,13,1,16,
13,101,1,4,1,2,10,1,1,3,5,6,1,1,1,1,1,1,4,1,11,2,4,5,5,4,1,52,2,2683,229,6,4,3,2,12,38,1,1,5,1,2,56,7,1,16,23,9,7,1,7,1,
7,1,7,1,7,1,7,1,7,1,7,80,1,469,2,42,5,5,2,4,86,6,3,1,90,1,4,5,43,1,94,17,32,48,16,512,6592,64,22157,67,46,2,269,3,16,10,
2,20,47,16,31,2,70,49,9,2,103,2,67,2,2,1,1,1,8,21,16,1,3,1,4,1,23,29,52,14,50,62,6,3,1,1,2,11,28,10,23,25,29,7,47,28,1,
16,5,1,10,10,5,1,41,23,3,1,8,20,23,3,1,3,50,1,1,3,2,2,5,2,1,1,1,24,3,2,11,7,3,12,6,2,6,2,6,9,7,1,7,1,43,1,14,6,115,29,
11172,12,23,4,49,8452,366,2,106,38,7,12,5,5,1,1,10,1,13,1,5,1,1,1,2,1,2,1,108,33,363,18,64,2,54,40,12,116,5,1,135,36,26,
6,26,11,89,3,6,2,6,2,6,2,3,35,12,1,26,1,19,1,2,1,15,2,14,34,123,389,29,3,49,47,32,13,20,1,8,6,38,10,30,2,36,4,8,48,158,
18,36,4,36,4,40,8,52,12,11,1,15,1,7,1,2,1,11,1,15,1,7,1,2,3,52,12,311,9,22,10,8,24,6,1,42,1,9,69,6,2,1,1,44,1,2,3,1,2,
23,10,23,9,31,65,19,1,2,10,22,10,26,70,56,6,2,64,1,15,4,1,3,1,29,42,29,3,29,35,8,1,28,27,54,10,22,10,19,13,18,110,73,55,
51,13,51,13,36,38,28,9,23,250,42,6,2,16,3,59,29,10,1,8,22,42,18,46,21,27,23,12,53,57,2,2,1,13,45,32,25,26,36,29,1,2,1,8,
35,3,1,12,48,14,4,21,1,1,1,35,18,1,25,19,2,63,7,1,1,1,4,1,15,1,10,7,47,38,8,2,2,2,22,1,7,1,2,1,5,3,1,18,1,12,5,30,10,1,
1,2,1,1,38,1,1,25,1,1,1,44,53,18,4,20,3,30,48,20,2,1,1,184,47,41,4,36,48,20,1,59,43,13,1,71,27,37,7,185,44,116,64,31,8,
2,1,2,8,1,2,1,24,15,1,1,1,94,8,2,39,16,1,1,1,28,1,10,40,7,1,21,1,11,46,19,1,18,73,199,33,31,9,1,37,17,1,49,30,112,7,1,2,
1,38,21,1,25,6,1,2,1,32,14,1,327,19,15,1,1,13,1,34,124,1,79,922,230,196,2636,97,15,1072,17,6,25,3995,5,583,6841,30,1762,
569,7,31,17,79,17,30,18,48,16,4,31,21,5,19,432,45,211,64,128,75,5,1,66,13,64,2,1,1,28,6136,8,1238,41,10,8935,4,1,7,1,2,
1,291,15,1,29,3,2,1,14,4,8,396,2308,107,5,13,3,9,7,10,5990,85,1,71,1,2,2,1,2,2,2,4,1,12,1,1,1,7,1,65,1,4,2,8,1,7,1,28,1,
4,1,5,1,1,3,7,1,340,2,25,1,25,1,31,1,25,1,31,1,25,1,31,1,25,1,31,1,25,1,8,1844,31,6,6,261,62,146,45,10,7,16,1,321,30,18,
44,484,28,228,30,2,1,495,7,1,4,1,2,1,15,1,197,59,68,7,1,1204,4,1,27,1,2,1,1,2,1,1,10,1,4,1,1,1,1,6,1,4,1,1,1,1,1,1,3,1,
2,1,1,2,1,1,1,1,1,1,1,1,1,1,2,1,1,2,4,1,7,1,4,1,4,1,1,1,10,1,17,5,3,1,5,1,17,4420,42720,32,4154,6,222,2,5762,14,7473,15,
622,2466,542,1506,4939,5,4192,
};
/* \p{N}: alternating gap, length */
static const uint16_t uni_numbers[288] = {
48,10,120,2,5,1,2,3,1441,10,134,10,198,10,412,10,118,10,4,6,108,10,118,10,118,10,2,6,110,13,115,10,8,7,103,10,104,7,7,
19,109,10,96,10,118,10,70,20,268,10,70,10,719,20,881,3,239,10,6,10,22,10,300,10,128,11,165,10,6,10,182,10,86,10,134,10,
6,10,1046,1,3,6,6,10,198,51,2,5,726,60,78,22,630,30,1385,1,777,1,25,9,14,3,343,4,138,10,30,8,1,15,32,10,39,15,29536,10,
188,10,320,6,154,10,38,10,198,10,22,10,86,10,406,10,21270,10,493,45,12,57,17,2,341,27,36,4,29,1,8,1,134,5,202,10,942,8,
25,7,39,9,75,5,22,6,160,2,2,16,2,46,64,9,52,2,30,3,75,5,104,8,24,8,41,7,330,6,48,10,6,10,278,31,158,10,42,4,112,7,134,
30,128,10,60,10,144,10,7,20,251,10,342,10,118,10,374,10,102,10,6,20,76,12,420,19,93,10,662,10,86,29,227,10,70,10,422,10,
102,21,1067,111,15553,10,2342,10,86,10,134,10,1,7,526,10,262,23,24153,10,1478,20,12,20,108,25,1109,50,2368,10,422,10,
502,10,247,10,716,9,128,10,791,59,1,3,1,4,76,45,1,15,962,13,2787,10,
};
/* \w differs from \p{L} or \p{N} here: alternating gap, length */
static const uint32_t uni_words[796] = {
95,1,82,2,5,1,2,3,577,112,275,7,263,45,1,1,1,2,1,2,1,1,72,11,48,21,16,1,101,7,2,6,2,2,1,4,35,1,30,27,91,11,58,9,9,1,24,
4,1,9,1,3,1,5,43,3,59,9,42,24,1,33,54,3,1,18,1,7,10,2,29,3,56,1,1,7,2,2,2,3,9,1,10,2,16,6,4,1,2,3,56,1,1,5,4,2,2,3,3,1,
30,2,3,1,11,3,56,1,1,8,1,3,1,3,20,2,22,6,1,3,56,1,1,7,2,2,2,3,7,3,10,2,14,6,10,1,59,5,3,3,1,4,9,1,24,3,13,5,55,1,1,7,1,
3,1,4,7,2,11,2,20,7,2,3,56,1,1,7,1,3,1,4,7,2,11,2,15,1,12,4,55,2,1,7,1,3,1,4,9,8,3,2,12,9,8,3,70,1,4,6,1,1,1,8,18,2,61,
1,2,7,12,8,98,1,2,9,11,7,73,2,16,10,1,1,1,1,1,1,4,2,49,20,1,2,5,11,1,36,9,1,100,20,23,4,4,3,1,3,2,7,3,4,13,12,1,1,10,4,
703,3,9,20,917,4,28,3,29,2,30,2,64,32,9,1,18,10,17,3,1,1,117,2,34,1,118,12,4,12,158,1,60,5,57,10,1,29,2,1,48,31,49,5,47,
17,38,9,12,3,30,13,56,14,48,20,152,3,1,21,4,1,6,1,2,3,198,64,524,2,49,2,19,1,27,1,3,6,6,10,70,33,95,16,41,1,726,60,26,
74,630,30,1371,3,11,1,129,1,96,32,554,6,105,2,247,4,138,10,30,8,1,15,32,10,39,15,29615,4,1,10,32,2,80,2,272,1,3,1,4,1,
23,5,4,1,3,6,74,2,50,18,26,18,13,1,38,8,25,13,44,4,47,14,36,1,67,14,12,1,8,2,45,3,50,1,1,3,2,2,5,2,1,1,41,5,5,2,236,8,1,
2,20272,1,737,16,16,16,3,2,24,3,239,1,455,45,65,4,17,2,113,1,226,28,36,4,82,5,1245,8,25,7,39,9,75,5,22,6,160,2,2,16,2,
46,1,3,1,2,5,4,40,3,4,10,52,2,30,3,69,2,4,5,104,8,24,8,41,7,330,6,36,4,65,5,242,31,44,2,79,4,29,10,31,15,45,4,63,7,52,3,
53,15,11,20,10,1,2,2,10,4,45,11,7,1,61,3,36,14,16,2,44,1,12,3,48,14,8,4,1,2,17,20,55,12,6,1,2,1,157,12,21,4,55,2,1,7,2,
2,2,3,9,1,10,2,2,7,3,5,67,9,1,1,2,1,1,4,1,5,1,1,14,2,82,18,23,1,81,20,235,7,2,9,27,2,82,17,106,13,101,15,14,2,240,15,
175,9,61,6,1,2,2,4,1,1,1,2,141,7,2,7,3,1,28,10,40,7,1,4,8,1,9,11,46,16,405,8,1,8,26,19,37,22,1,14,122,6,3,1,1,2,1,7,1,1,
66,5,1,2,1,5,347,4,9,2,1,1,48,7,3,5,23,1,101,21,5227,1,6,15,11464,18,2496,5,59,7,36,7,798,23,184,1,1,55,7,4,81,1,11,2,
19627,2,4705,46,2,23,542,5,3,6,8,8,2,7,30,4,148,3,123,20,12,20,108,25,1671,55,4,50,8,1,14,1,22,5,1,15,1360,7,1,17,2,7,1,
2,1,5,100,1,160,7,375,1,61,4,508,4,254,2,727,16,109,7,806,59,1,3,1,4,76,45,1,15,962,13,35,26,6,26,6,26,790390,240,
};
/* combining classes: gap, length, class */
static const uint16_t uni_ccc[999] = {
768,21,230,0,1,232,0,4,220,0,1,232,0,1,216,0,5,220,0,2,202,0,4,220,0,2,202,0,11,220,0,5,1,0,4,220,0,8,230,0,1,240,0,1,
230,0,3,220,0,3,230,0,2,220,1,3,230,0,4,220,0,1,230,0,1,232,0,2,220,0,1,230,0,1,233,0,2,234,0,1,233,0,2,234,0,1,233,0,
13,230,275,5,230,265,1,220,0,4,230,0,1,220,0,3,230,0,1,222,0,1,220,0,6,230,0,6,220,0,2,230,0,1,220,0,2,230,0,1,222,0,1,
228,0,1,230,0,1,10,0,1,11,0,1,12,0,1,13,0,1,14,0,1,15,0,1,16,0,1,17,0,1,18,0,2,19,0,1,20,0,1,21,0,1,22,1,1,23,1,1,24,0,
1,25,1,1,230,0,1,220,1,1,18,72,8,230,0,1,30,0,1,31,0,1,32,48,1,27,0,1,28,0,1,29,0,1,30,0,1,31,0,1,32,0,1,33,0,1,34,0,2,
230,0,2,220,0,5,230,0,1,220,0,2,230,0,1,220,16,1,35,101,7,230,2,4,230,0,1,220,0,1,230,2,2,230,1,1,220,0,2,230,0,1,220,
35,1,36,30,1,230,0,1,220,0,2,230,0,1,220,0,2,230,0,3,220,0,1,230,0,2,220,0,1,230,0,1,220,0,3,230,0,1,220,0,1,230,0,1,
220,0,1,230,0,1,220,0,1,230,0,1,220,0,2,230,160,7,230,0,1,220,0,1,230,34,4,230,1,9,230,1,3,230,1,5,230,43,3,220,120,14,
230,1,1,220,0,2,230,0,1,220,0,2,230,0,1,220,0,3,230,0,3,220,0,1,27,0,1,28,0,1,29,0,3,230,0,1,220,0,2,230,0,2,220,0,5,
230,60,1,7,16,1,9,3,1,230,0,1,220,0,2,230,103,1,7,16,1,9,110,1,7,16,1,9,110,1,7,16,1,9,110,1,7,16,1,9,127,1,9,127,1,9,7,
1,84,0,1,91,101,1,7,16,1,9,127,1,9,124,1,9,109,2,103,0,1,9,13,4,107,108,2,118,14,4,122,76,2,220,27,1,220,1,1,220,1,1,
216,55,1,129,0,1,130,1,1,132,5,4,130,2,1,130,1,2,230,0,1,9,1,2,230,62,1,220,112,1,7,1,2,9,82,1,220,719,3,230,948,1,9,31,
1,9,157,1,9,10,1,230,203,1,228,143,1,222,0,1,230,0,1,220,219,1,230,0,1,220,71,1,9,20,8,230,2,1,220,48,5,230,0,6,220,0,2,
230,0,1,220,118,1,7,15,1,9,38,1,230,0,1,220,0,7,230,54,2,9,58,1,7,11,2,9,67,1,7,152,3,230,1,1,1,0,5,220,0,2,230,0,4,220,
0,1,230,1,7,1,4,1,220,6,1,230,3,2,230,198,2,230,0,1,220,0,7,230,0,1,220,0,2,230,0,1,234,0,1,214,0,1,220,0,1,202,0,37,
230,5,1,230,0,1,233,0,1,220,0,1,230,0,1,220,720,2,230,0,2,1,0,4,230,0,3,1,0,2,230,4,1,230,3,2,1,0,1,230,0,1,220,0,1,230,
0,2,1,0,4,220,0,1,230,3070,3,230,141,1,9,96,32,230,554,1,218,0,1,228,0,1,232,0,1,222,0,2,224,105,2,8,30164,1,230,4,10,
230,32,2,230,80,2,230,276,1,9,189,1,9,27,18,230,57,3,220,37,1,9,95,1,7,12,1,9,239,1,230,1,2,230,0,1,220,2,2,230,5,2,230,
1,1,230,52,1,9,246,1,9,20272,1,26,769,7,230,0,7,220,0,2,230,973,1,220,226,1,220,149,5,230,1682,1,220,1,1,230,40,1,230,0,
1,1,0,1,220,4,1,9,165,1,230,0,1,220,1375,1,9,56,1,9,57,1,9,0,1,7,69,3,230,48,2,9,62,1,7,76,1,9,9,1,7,106,1,9,0,1,7,178,
1,7,0,1,9,81,1,7,16,1,9,24,7,230,3,5,230,205,1,9,3,1,7,123,1,9,0,1,7,251,1,9,0,1,7,126,1,9,118,1,9,0,1,7,115,1,9,1299,1,
9,20144,5,1,59,7,230,20839,1,1,5318,2,216,0,3,1,3,1,226,0,5,216,8,8,220,2,5,230,0,2,220,30,4,230,148,3,230,3515,7,230,1,
17,230,2,7,230,1,2,230,1,5,230,2213,7,220,109,6,230,0,1,7,
};
/* canonical decompositions: 2 * gap + (two parts?), first part, second part if two */
static const uint32_t uni_decomp[5145] = {
385,65,768,3,65,769,3,65,770,3,65,771,3,65,776,3,65,778,5,67,807,3,69,768,3,69,769,3,69,770,3,69,776,3,73,768,3,73,769,
3,73,770,3,73,776,5,78,771,3,79,768,3,79,769,3,79,770,3,79,771,3,79,776,7,85,768,3,85,769,3,85,770,3,85,776,3,89,769,7,
97,768,3,97,769,3,97,770,3,97,771,3,97,776,3,97,778,5,99,807,3,101,768,3,101,769,3,101,770,3,101,776,3,105,768,3,105,
769,3,105,770,3,105,776,5,110,771,3,111,768,3,111,769,3,111,770,3,111,771,3,111,776,7,117,768,3,117,769,3,117,770,3,117,
776,3,121,769,5,121,776,3,65,772,3,97,772,3,65,774,3,97,774,3,65,808,3,97,808,3,67,769,3,99,769,3,67,770,3,99,770,3,67,
775,3,99,775,3,67,780,3,99,780,3,68,780,3,100,780,7,69,772,3,101,772,3,69,774,3,101,774,3,69,775,3,101,775,3,69,808,3,
101,808,3,69,780,3,101,780,3,71,770,3,103,770,3,71,774,3,103,774,3,71,775,3,103,775,3,71,807,3,103,807,3,72,770,3,104,
770,7,73,771,3,105,771,3,73,772,3,105,772,3,73,774,3,105,774,3,73,808,3,105,808,3,73,775,9,74,770,3,106,770,3,75,807,3,
107,807,5,76,769,3,108,769,3,76,807,3,108,807,3,76,780,3,108,780,11,78,769,3,110,769,3,78,807,3,110,807,3,78,780,3,110,
780,9,79,772,3,111,772,3,79,774,3,111,774,3,79,779,3,111,779,7,82,769,3,114,769,3,82,807,3,114,807,3,82,780,3,114,780,3,
83,769,3,115,769,3,83,770,3,115,770,3,83,807,3,115,807,3,83,780,3,115,780,3,84,807,3,116,807,3,84,780,3,116,780,7,85,
771,3,117,771,3,85,772,3,117,772,3,85,774,3,117,774,3,85,778,3,117,778,3,85,779,3,117,779,3,85,808,3,117,808,3,87,770,3,
119,770,3,89,770,3,121,770,3,89,776,3,90,769,3,122,769,3,90,775,3,122,775,3,90,780,3,122,780,69,79,795,3,111,795,29,85,
795,3,117,795,59,65,780,3,97,780,3,73,780,3,105,780,3,79,780,3,111,780,3,85,780,3,117,780,3,220,772,3,252,772,3,220,769,
3,252,769,3,220,780,3,252,780,3,220,768,3,252,768,5,196,772,3,228,772,3,550,772,3,551,772,3,198,772,3,230,772,7,71,780,
3,103,780,3,75,780,3,107,780,3,79,808,3,111,808,3,490,772,3,491,772,3,439,780,3,658,780,3,106,780,9,71,769,3,103,769,7,
78,768,3,110,768,3,197,769,3,229,769,3,198,769,3,230,769,3,216,769,3,248,769,3,65,783,3,97,783,3,65,785,3,97,785,3,69,
783,3,101,783,3,69,785,3,101,785,3,73,783,3,105,783,3,73,785,3,105,785,3,79,783,3,111,783,3,79,785,3,111,785,3,82,783,3,
114,783,3,82,785,3,114,785,3,85,783,3,117,783,3,85,785,3,117,785,3,83,806,3,115,806,3,84,806,3,116,806,7,72,780,3,104,
780,15,65,775,3,97,775,3,69,807,3,101,807,3,214,772,3,246,772,3,213,772,3,245,772,3,79,775,3,111,775,3,558,772,3,559,
772,3,89,772,3,121,772,538,768,2,769,4,787,3,776,769,96,697,20,59,15,168,769,3,913,769,2,183,3,917,769,3,919,769,3,921,
769,5,927,769,5,933,769,3,937,769,3,970,769,53,921,776,3,933,776,3,945,769,3,949,769,3,951,769,3,953,769,3,971,769,53,
953,776,3,965,776,3,959,769,3,965,769,3,969,769,11,978,769,3,978,776,89,1045,768,3,1045,776,5,1043,769,9,1030,776,11,
1050,769,3,1048,768,3,1059,774,23,1048,774,65,1080,774,47,1077,768,3,1077,776,5,1075,769,9,1110,776,11,1082,769,3,1080,
768,3,1091,774,49,1140,783,3,1141,783,149,1046,774,3,1078,774,29,1040,774,3,1072,774,3,1040,776,3,1072,776,7,1045,774,3,
1077,774,7,1240,776,3,1241,776,3,1046,776,3,1078,776,3,1047,776,3,1079,776,7,1048,772,3,1080,772,3,1048,776,3,1080,776,
3,1054,776,3,1086,776,7,1256,776,3,1257,776,3,1069,776,3,1101,776,3,1059,772,3,1091,772,3,1059,776,3,1091,776,3,1059,
779,3,1091,779,3,1063,776,3,1095,776,7,1067,776,3,1099,776,595,1575,1619,3,1575,1620,3,1608,1620,3,1575,1621,3,1610,
1620,309,1749,1620,5,1729,1620,35,1746,1620,1197,2344,2364,17,2352,2364,7,2355,2364,73,2325,2364,3,2326,2364,3,2327,
2364,3,2332,2364,3,2337,2364,3,2338,2364,3,2347,2364,3,2351,2364,217,2503,2494,3,2503,2519,33,2465,2492,3,2466,2492,5,
2479,2492,169,2610,2620,7,2616,2620,71,2582,2620,3,2583,2620,3,2588,2620,7,2603,2620,469,2887,2902,7,2887,2878,3,2887,
2903,33,2849,2876,3,2850,2876,111,2962,3031,109,3014,3006,3,3015,3006,3,3014,3031,249,3142,3158,241,3263,3285,15,3270,
3285,3,3270,3286,5,3270,3266,3,3274,3285,255,3398,3390,3,3399,3390,3,3398,3415,285,3545,3530,5,3545,3535,3,3548,3530,3,
3545,3551,715,3906,4023,21,3916,4023,11,3921,4023,11,3926,4023,11,3931,4023,27,3904,4021,21,3953,3954,5,3953,3956,3,
4018,3968,5,4019,3968,19,3953,3968,37,3986,4023,21,3996,4023,11,4001,4023,11,4006,4023,11,4011,4023,27,3984,4021,219,
4133,4142,5569,6917,6965,5,6919,6965,5,6921,6965,5,6923,6965,5,6925,6965,9,6929,6965,83,6970,6965,5,6972,6965,7,6974,
6965,3,6975,6965,5,6978,6965,1403,65,805,3,97,805,3,66,775,3,98,775,3,66,803,3,98,803,3,66,817,3,98,817,3,199,769,3,231,
769,3,68,775,3,100,775,3,68,803,3,100,803,3,68,817,3,100,817,3,68,807,3,100,807,3,68,813,3,100,813,3,274,768,3,275,768,
3,274,769,3,275,769,3,69,813,3,101,813,3,69,816,3,101,816,3,552,774,3,553,774,3,70,775,3,102,775,3,71,772,3,103,772,3,
72,775,3,104,775,3,72,803,3,104,803,3,72,776,3,104,776,3,72,807,3,104,807,3,72,814,3,104,814,3,73,816,3,105,816,3,207,
769,3,239,769,3,75,769,3,107,769,3,75,803,3,107,803,3,75,817,3,107,817,3,76,803,3,108,803,3,7734,772,3,7735,772,3,76,
817,3,108,817,3,76,813,3,108,813,3,77,769,3,109,769,3,77,775,3,109,775,3,77,803,3,109,803,3,78,775,3,110,775,3,78,803,3,
110,803,3,78,817,3,110,817,3,78,813,3,110,813,3,213,769,3,245,769,3,213,776,3,245,776,3,332,768,3,333,768,3,332,769,3,
333,769,3,80,769,3,112,769,3,80,775,3,112,775,3,82,775,3,114,775,3,82,803,3,114,803,3,7770,772,3,7771,772,3,82,817,3,
114,817,3,83,775,3,115,775,3,83,803,3,115,803,3,346,775,3,347,775,3,352,775,3,353,775,3,7778,775,3,7779,775,3,84,775,3,
116,775,3,84,803,3,116,803,3,84,817,3,116,817,3,84,813,3,116,813,3,85,804,3,117,804,3,85,816,3,117,816,3,85,813,3,117,
813,3,360,769,3,361,769,3,362,776,3,363,776,3,86,771,3,118,771,3,86,803,3,118,803,3,87,768,3,119,768,3,87,769,3,119,769,
3,87,776,3,119,776,3,87,775,3,119,775,3,87,803,3,119,803,3,88,775,3,120,775,3,88,776,3,120,776,3,89,775,3,121,775,3,90,
770,3,122,770,3,90,803,3,122,803,3,90,817,3,122,817,3,104,817,3,116,776,3,119,778,3,121,778,5,383,775,11,65,803,3,97,
803,3,65,777,3,97,777,3,194,769,3,226,769,3,194,768,3,226,768,3,194,777,3,226,777,3,194,771,3,226,771,3,7840,770,3,7841,
770,3,258,769,3,259,769,3,258,768,3,259,768,3,258,777,3,259,777,3,258,771,3,259,771,3,7840,774,3,7841,774,3,69,803,3,
101,803,3,69,777,3,101,777,3,69,771,3,101,771,3,202,769,3,234,769,3,202,768,3,234,768,3,202,777,3,234,777,3,202,771,3,
234,771,3,7864,770,3,7865,770,3,73,777,3,105,777,3,73,803,3,105,803,3,79,803,3,111,803,3,79,777,3,111,777,3,212,769,3,
244,769,3,212,768,3,244,768,3,212,777,3,244,777,3,212,771,3,244,771,3,7884,770,3,7885,770,3,416,769,3,417,769,3,416,768,
3,417,768,3,416,777,3,417,777,3,416,771,3,417,771,3,416,803,3,417,803,3,85,803,3,117,803,3,85,777,3,117,777,3,431,769,3,
432,769,3,431,768,3,432,768,3,431,777,3,432,777,3,431,771,3,432,771,3,431,803,3,432,803,3,89,768,3,121,768,3,89,803,3,
121,803,3,89,777,3,121,777,3,89,771,3,121,771,15,945,787,3,945,788,3,7936,768,3,7937,768,3,7936,769,3,7937,769,3,7936,
834,3,7937,834,3,913,787,3,913,788,3,7944,768,3,7945,768,3,7944,769,3,7945,769,3,7944,834,3,7945,834,3,949,787,3,949,
788,3,7952,768,3,7953,768,3,7952,769,3,7953,769,7,917,787,3,917,788,3,7960,768,3,7961,768,3,7960,769,3,7961,769,7,951,
787,3,951,788,3,7968,768,3,7969,768,3,7968,769,3,7969,769,3,7968,834,3,7969,834,3,919,787,3,919,788,3,7976,768,3,7977,
768,3,7976,769,3,7977,769,3,7976,834,3,7977,834,3,953,787,3,953,788,3,7984,768,3,7985,768,3,7984,769,3,7985,769,3,7984,
834,3,7985,834,3,921,787,3,921,788,3,7992,768,3,7993,768,3,7992,769,3,7993,769,3,7992,834,3,7993,834,3,959,787,3,959,
788,3,8000,768,3,8001,768,3,8000,769,3,8001,769,7,927,787,3,927,788,3,8008,768,3,8009,768,3,8008,769,3,8009,769,7,965,
787,3,965,788,3,8016,768,3,8017,768,3,8016,769,3,8017,769,3,8016,834,3,8017,834,5,933,788,5,8025,768,5,8025,769,5,8025,
834,3,969,787,3,969,788,3,8032,768,3,8033,768,3,8032,769,3,8033,769,3,8032,834,3,8033,834,3,937,787,3,937,788,3,8040,
768,3,8041,768,3,8040,769,3,8041,769,3,8040,834,3,8041,834,3,945,768,2,940,3,949,768,2,941,3,951,768,2,942,3,953,768,2,
943,3,959,768,2,972,3,965,768,2,973,3,969,768,2,974,7,7936,837,3,7937,837,3,7938,837,3,7939,837,3,7940,837,3,7941,837,3,
7942,837,3,7943,837,3,7944,837,3,7945,837,3,7946,837,3,7947,837,3,7948,837,3,7949,837,3,7950,837,3,7951,837,3,7968,837,
3,7969,837,3,7970,837,3,7971,837,3,7972,837,3,7973,837,3,7974,837,3,7975,837,3,7976,837,3,7977,837,3,7978,837,3,7979,
837,3,7980,837,3,7981,837,3,7982,837,3,7983,837,3,8032,837,3,8033,837,3,8034,837,3,8035,837,3,8036,837,3,8037,837,3,
8038,837,3,8039,837,3,8040,837,3,8041,837,3,8042,837,3,8043,837,3,8044,837,3,8045,837,3,8046,837,3,8047,837,3,945,774,3,
945,772,3,8048,837,3,945,837,3,940,837,5,945,834,3,8118,837,3,913,774,3,913,772,3,913,768,2,902,3,913,837,4,953,7,168,
834,3,8052,837,3,951,837,3,942,837,5,951,834,3,8134,837,3,917,768,2,904,3,919,768,2,905,3,919,837,3,8127,768,3,8127,769,
3,8127,834,3,953,774,3,953,772,3,970,768,2,912,7,953,834,3,970,834,3,921,774,3,921,772,3,921,768,2,906,5,8190,768,3,
8190,769,3,8190,834,3,965,774,3,965,772,3,971,768,2,944,3,961,787,3,961,788,3,965,834,3,971,834,3,933,774,3,933,772,3,
933,768,2,910,3,929,788,3,168,768,2,901,2,96,7,8060,837,3,969,837,3,974,837,5,969,834,3,8182,837,3,927,768,2,908,3,937,
768,2,911,3,937,837,2,180,6,8194,2,8195,586,937,8,75,2,197,223,8592,824,3,8594,824,39,8596,824,63,8656,824,3,8660,824,3,
8658,824,107,8707,824,11,8712,824,7,8715,824,49,8739,824,5,8741,824,55,8764,824,7,8771,824,7,8773,824,5,8776,824,47,61,
824,5,8801,824,23,8781,824,3,60,824,3,62,824,3,8804,824,3,8805,824,7,8818,824,3,8819,824,7,8822,824,3,8823,824,15,8826,
824,3,8827,824,7,8834,824,3,8835,824,7,8838,824,3,8839,824,71,8866,824,3,8872,824,3,8873,824,3,8875,824,99,8828,824,3,
8829,824,3,8849,824,3,8850,824,15,8882,824,3,8883,824,3,8884,824,3,8885,824,120,12296,2,12297,3941,10973,824,2785,12363,
12441,5,12365,12441,5,12367,12441,5,12369,12441,5,12371,12441,5,12373,12441,5,12375,12441,5,12377,12441,5,12379,12441,5,
12381,12441,5,12383,12441,5,12385,12441,7,12388,12441,5,12390,12441,5,12392,12441,15,12399,12441,3,12399,12442,5,12402,
12441,3,12402,12442,5,12405,12441,3,12405,12442,5,12408,12441,3,12408,12442,5,12411,12441,3,12411,12442,47,12358,12441,
21,12445,12441,29,12459,12441,5,12461,12441,5,12463,12441,5,12465,12441,5,12467,12441,5,12469,12441,5,12471,12441,5,
12473,12441,5,12475,12441,5,12477,12441,5,12479,12441,5,12481,12441,7,12484,12441,5,12486,12441,5,12488,12441,15,12495,
12441,3,12495,12442,5,12498,12441,3,12498,12442,5,12501,12441,3,12501,12442,5,12504,12441,3,12504,12442,5,12507,12441,3,
12507,12442,47,12454,12441,7,12527,12441,3,12528,12441,3,12529,12441,3,12530,12441,9,12541,12441,102404,35912,2,26356,2,
36554,2,36040,2,28369,2,20018,2,21477,2,40860,2,40860,2,22865,2,37329,2,21895,2,22856,2,25078,2,30313,2,32645,2,34367,2,
34746,2,35064,2,37007,2,27138,2,27931,2,28889,2,29662,2,33853,2,37226,2,39409,2,20098,2,21365,2,27396,2,29211,2,34349,2,
40478,2,23888,2,28651,2,34253,2,35172,2,25289,2,33240,2,34847,2,24266,2,26391,2,28010,2,29436,2,37070,2,20358,2,20919,2,
21214,2,25796,2,27347,2,29200,2,30439,2,32769,2,34310,2,34396,2,36335,2,38706,2,39791,2,40442,2,30860,2,31103,2,32160,2,
33737,2,37636,2,40575,2,35542,2,22751,2,24324,2,31840,2,32894,2,29282,2,30922,2,36034,2,38647,2,22744,2,23650,2,27155,2,
28122,2,28431,2,32047,2,32311,2,38475,2,21202,2,32907,2,20956,2,20940,2,31260,2,32190,2,33777,2,38517,2,35712,2,25295,2,
27138,2,35582,2,20025,2,23527,2,24594,2,29575,2,30064,2,21271,2,30971,2,20415,2,24489,2,19981,2,27852,2,25976,2,32034,2,
21443,2,22622,2,30465,2,33865,2,35498,2,27578,2,36784,2,27784,2,25342,2,33509,2,25504,2,30053,2,20142,2,20841,2,20937,2,
26753,2,31975,2,33391,2,35538,2,37327,2,21237,2,21570,2,22899,2,24300,2,26053,2,28670,2,31018,2,38317,2,39530,2,40599,2,
40654,2,21147,2,26310,2,27511,2,36706,2,24180,2,24976,2,25088,2,25754,2,28451,2,29001,2,29833,2,31178,2,32244,2,32879,2,
36646,2,34030,2,36899,2,37706,2,21015,2,21155,2,21693,2,28872,2,35010,2,35498,2,24265,2,24565,2,25467,2,27566,2,31806,2,
29557,2,20196,2,22265,2,23527,2,23994,2,24604,2,29618,2,29801,2,32666,2,32838,2,37428,2,38646,2,38728,2,38936,2,20363,2,
31150,2,37300,2,38584,2,24801,2,20102,2,20698,2,23534,2,23615,2,26009,2,27138,2,29134,2,30274,2,34044,2,36988,2,40845,2,
26248,2,38446,2,21129,2,26491,2,26611,2,27969,2,28316,2,29705,2,30041,2,30827,2,32016,2,39006,2,20845,2,25134,2,38520,2,
20523,2,23833,2,28138,2,36650,2,24459,2,24900,2,26647,2,29575,2,38534,2,21033,2,21519,2,23653,2,26131,2,26446,2,26792,2,
27877,2,29702,2,30178,2,32633,2,35023,2,35041,2,37324,2,38626,2,21311,2,28346,2,21533,2,29136,2,29848,2,34298,2,38563,2,
40023,2,40607,2,26519,2,28107,2,33256,2,31435,2,31520,2,31890,2,29376,2,28825,2,35672,2,20160,2,33590,2,21050,2,20999,2,
24230,2,25299,2,31958,2,23429,2,27934,2,26292,2,36667,2,34892,2,38477,2,35211,2,24275,2,20800,2,21952,6,22618,4,26228,6,
20958,2,29482,2,30410,2,31036,2,31070,2,31077,2,31119,2,38742,2,31934,2,32701,4,34322,4,35576,6,36920,2,37117,8,39151,2,
39164,2,39208,2,40372,2,37086,2,38583,2,20398,2,20711,2,20813,2,21193,2,21220,2,21329,2,21917,2,22022,2,22120,2,22592,2,
22696,2,23652,2,23662,2,24724,2,24936,2,24974,2,25074,2,25935,2,26082,2,26257,2,26757,2,28023,2,28186,2,28450,2,29038,2,
29227,2,29730,2,30865,2,31038,2,31049,2,31048,2,31056,2,31062,2,31069,2,31117,2,31118,2,31296,2,31361,2,31680,2,32244,2,
32265,2,32321,2,32626,2,32773,2,33261,2,33401,2,33401,2,33879,2,35088,2,35222,2,35585,2,35641,2,36051,2,36104,2,36790,2,
36920,2,38627,2,38911,2,38971,2,24693,2,148206,2,33304,6,20006,2,20917,2,20840,2,20352,2,20805,2,20864,2,21191,2,21242,
2,21917,2,21845,2,21913,2,21986,2,22618,2,22707,2,22852,2,22868,2,23138,2,23336,2,24274,2,24281,2,24425,2,24493,2,24792,
2,24910,2,24840,2,24974,2,24928,2,25074,2,25140,2,25540,2,25628,2,25682,2,25942,2,26228,2,26391,2,26395,2,26454,2,27513,
2,27578,2,27969,2,28379,2,28363,2,28450,2,28702,2,29038,2,30631,2,29237,2,29359,2,29482,2,29809,2,29958,2,30011,2,30237,
2,30239,2,30410,2,30427,2,30452,2,30538,2,30528,2,30924,2,31409,2,31680,2,31867,2,32091,2,32244,2,32574,2,32773,2,33618,
2,33775,2,34681,2,35137,2,35206,2,35222,2,35519,2,35576,2,35531,2,35585,2,35582,2,35565,2,35641,2,35722,2,36104,2,36664,
2,36978,2,37273,2,37494,2,38524,2,38627,2,38742,2,38875,2,38911,2,38923,2,38971,2,39698,2,40860,2,141386,2,141380,2,
144341,2,15261,2,16408,2,16441,2,152137,2,154832,2,163539,2,40771,2,40846,137,1497,1460,5,1522,1463,23,1513,1473,3,1513,
1474,3,64329,1473,3,64329,1474,3,1488,1463,3,1488,1464,3,1488,1468,3,1489,1468,3,1490,1468,3,1491,1468,3,1492,1468,3,
1493,1468,3,1494,1468,5,1496,1468,3,1497,1468,3,1498,1468,3,1499,1468,3,1500,1468,5,1502,1468,5,1504,1468,3,1505,1468,5,
1507,1468,3,1508,1468,5,1510,1468,3,1511,1468,3,1512,1468,3,1513,1468,3,1514,1468,3,1493,1465,3,1489,1471,3,1499,1471,3,
1508,1471,10905,69785,69818,5,69787,69818,31,69797,69818,263,69937,69927,3,69938,69927,1081,70471,70462,3,70471,70487,
735,70841,70842,3,70841,70832,5,70841,70845,505,71096,71087,3,71097,71087,96071,119127,119141,3,119128,119141,3,119135,
119150,3,119135,119151,3,119135,119152,3,119135,119153,3,119135,119154,175,119225,119141,3,119226,119141,3,119227,
119150,3,119228,119150,3,119227,119151,3,119228,119151,150656,20029,2,20024,2,20033,2,131362,2,20320,2,20398,2,20411,2,
20482,2,20602,2,20633,2,20711,2,20687,2,13470,2,132666,2,20813,2,20820,2,20836,2,20855,2,132380,2,13497,2,20839,2,20877,
2,132427,2,20887,2,20900,2,20172,2,20908,2,20917,2,168415,2,20981,2,20995,2,13535,2,21051,2,21062,2,21106,2,21111,2,
13589,2,21191,2,21193,2,21220,2,21242,2,21253,2,21254,2,21271,2,21321,2,21329,2,21338,2,21363,2,21373,2,21375,2,21375,2,
21375,2,133676,2,28784,2,21450,2,21471,2,133987,2,21483,2,21489,2,21510,2,21662,2,21560,2,21576,2,21608,2,21666,2,21750,
2,21776,2,21843,2,21859,2,21892,2,21892,2,21913,2,21931,2,21939,2,21954,2,22294,2,22022,2,22295,2,22097,2,22132,2,20999,
2,22766,2,22478,2,22516,2,22541,2,22411,2,22578,2,22577,2,22700,2,136420,2,22770,2,22775,2,22790,2,22810,2,22818,2,
22882,2,136872,2,136938,2,23020,2,23067,2,23079,2,23000,2,23142,2,14062,2,14076,2,23304,2,23358,2,23358,2,137672,2,
23491,2,23512,2,23527,2,23539,2,138008,2,23551,2,23558,2,24403,2,23586,2,14209,2,23648,2,23662,2,23744,2,23693,2,138724,
2,23875,2,138726,2,23918,2,23915,2,23932,2,24033,2,24034,2,14383,2,24061,2,24104,2,24125,2,24169,2,14434,2,139651,2,
14460,2,24240,2,24243,2,24246,2,24266,2,172946,2,24318,2,140081,2,140081,2,33281,2,24354,2,24354,2,14535,2,144056,2,
156122,2,24418,2,24427,2,14563,2,24474,2,24525,2,24535,2,24569,2,24705,2,14650,2,14620,2,24724,2,141012,2,24775,2,24904,
2,24908,2,24910,2,24908,2,24954,2,24974,2,25010,2,24996,2,25007,2,25054,2,25074,2,25078,2,25104,2,25115,2,25181,2,25265,
2,25300,2,25424,2,142092,2,25405,2,25340,2,25448,2,25475,2,25572,2,142321,2,25634,2,25541,2,25513,2,14894,2,25705,2,
25726,2,25757,2,25719,2,14956,2,25935,2,25964,2,143370,2,26083,2,26360,2,26185,2,15129,2,26257,2,15112,2,15076,2,20882,
2,20885,2,26368,2,26268,2,32941,2,17369,2,26391,2,26395,2,26401,2,26462,2,26451,2,144323,2,15177,2,26618,2,26501,2,
26706,2,26757,2,144493,2,26766,2,26655,2,26900,2,15261,2,26946,2,27043,2,27114,2,27304,2,145059,2,27355,2,15384,2,27425,
2,145575,2,27476,2,15438,2,27506,2,27551,2,27578,2,27579,2,146061,2,138507,2,146170,2,27726,2,146620,2,27839,2,27853,2,
27751,2,27926,2,27966,2,28023,2,27969,2,28009,2,28024,2,28037,2,146718,2,27956,2,28207,2,28270,2,15667,2,28363,2,28359,
2,147153,2,28153,2,28526,2,147294,2,147342,2,28614,2,28729,2,28702,2,28699,2,15766,2,28746,2,28797,2,28791,2,28845,2,
132389,2,28997,2,148067,2,29084,2,148395,2,29224,2,29237,2,29264,2,149000,2,29312,2,29333,2,149301,2,149524,2,29562,2,
29579,2,16044,2,29605,2,16056,2,16056,2,29767,2,29788,2,29809,2,29829,2,29898,2,16155,2,29988,2,150582,2,30014,2,150674,
2,30064,2,139679,2,30224,2,151457,2,151480,2,151620,2,16380,2,16392,2,30452,2,151795,2,151794,2,151833,2,151859,2,30494,
2,30495,2,30495,2,30538,2,16441,2,30603,2,16454,2,16534,2,152605,2,30798,2,30860,2,30924,2,16611,2,153126,2,31062,2,
153242,2,153285,2,31119,2,31211,2,16687,2,31296,2,31306,2,31311,2,153980,2,154279,2,154279,2,31470,2,16898,2,154539,2,
31686,2,31689,2,16935,2,154752,2,31954,2,17056,2,31976,2,31971,2,32000,2,155526,2,32099,2,17153,2,32199,2,32258,2,32325,
2,17204,2,156200,2,156231,2,17241,2,156377,2,32634,2,156478,2,32661,2,32762,2,32773,2,156890,2,156963,2,32864,2,157096,
2,32880,2,144223,2,17365,2,32946,2,33027,2,17419,2,33086,2,23221,2,157607,2,157621,2,144275,2,144284,2,33281,2,33284,2,
36766,2,17515,2,33425,2,33419,2,33437,2,21171,2,33457,2,33459,2,33469,2,33510,2,158524,2,33509,2,33565,2,33635,2,33709,
2,33571,2,33725,2,33767,2,33879,2,33619,2,33738,2,33740,2,33756,2,158774,2,159083,2,158933,2,17707,2,34033,2,34035,2,
34070,2,160714,2,34148,2,159532,2,17757,2,17761,2,159665,2,159954,2,17771,2,34384,2,34396,2,34407,2,34409,2,34473,2,
34440,2,34574,2,34530,2,34681,2,34600,2,34667,2,34694,2,17879,2,34785,2,34817,2,17913,2,34912,2,34915,2,161383,2,35031,
2,35038,2,17973,2,35066,2,13499,2,161966,2,162150,2,18110,2,18119,2,35488,2,35565,2,35722,2,35925,2,162984,2,36011,2,
36033,2,36123,2,36215,2,163631,2,133124,2,36299,2,36284,2,36336,2,133342,2,36564,2,36664,2,165330,2,165357,2,37012,2,
37105,2,37137,2,165678,2,37147,2,37432,2,37591,2,37592,2,37500,2,37881,2,37909,2,166906,2,38283,2,18837,2,38327,2,
167287,2,18918,2,38595,2,23986,2,38691,2,168261,2,168474,2,19054,2,19062,2,38880,2,168970,2,19122,2,169110,2,38923,2,
38923,2,38953,2,169398,2,39138,2,19251,2,39209,2,39335,2,39362,2,39422,2,19406,2,170800,2,39698,2,40000,2,40189,2,19662,
2,19693,2,40295,2,172238,2,19704,2,172293,2,172558,2,172689,2,40635,2,19798,2,40697,2,40702,2,40709,2,40719,2,40726,2,
40763,2,173568,
};
/* decompositions of two parts that must not compose: gaps */
static const uint32_t uni_excluded[85] = {
836,1556,1,1,1,1,1,1,1,125,1,2,84,3,35,1,1,3,254,1,998,10,5,5,5,13,10,2,1,2,9,18,10,5,5,5,13,6947,53313,2,11,1,1,1,1,1,
1,1,1,1,1,1,1,2,1,1,1,1,2,2,1,2,1,2,1,1,1,1,1,1,1,1,54800,1,1,1,1,1,1,87,1,1,1,1,1,
};
/* lower case: first, last, step, difference */
static const int32_t uni_lower[724] = {
65,90,1,32,192,214,1,32,216,222,1,32,256,302,2,1,306,310,2,1,313,327,2,1,330,374,2,1,376,376,1,-121,377,381,2,1,385,385,
1,210,386,388,2,1,390,390,1,206,391,391,1,1,393,394,1,205,395,395,1,1,398,398,1,79,399,399,1,202,400,400,1,203,401,401,
1,1,403,403,1,205,404,404,1,207,406,406,1,211,407,407,1,209,408,408,1,1,412,412,1,211,413,413,1,213,415,415,1,214,416,
420,2,1,422,422,1,218,423,423,1,1,425,425,1,218,428,428,1,1,430,430,1,218,431,431,1,1,433,434,1,217,435,437,2,1,439,439,
1,219,440,440,1,1,444,444,1,1,452,452,1,2,453,453,1,1,455,455,1,2,456,456,1,1,458,458,1,2,459,475,2,1,478,494,2,1,497,
497,1,2,498,500,2,1,502,502,1,-97,503,503,1,-56,504,542,2,1,544,544,1,-130,546,562,2,1,570,570,1,10795,571,571,1,1,573,
573,1,-163,574,574,1,10792,577,577,1,1,579,579,1,-195,580,580,1,69,581,581,1,71,582,590,2,1,880,882,2,1,886,886,1,1,895,
895,1,116,902,902,1,38,904,906,1,37,908,908,1,64,910,911,1,63,913,929,1,32,931,939,1,32,975,975,1,8,984,1006,2,1,1012,
1012,1,-60,1015,1015,1,1,1017,1017,1,-7,1018,1018,1,1,1021,1023,1,-130,1024,1039,1,80,1040,1071,1,32,1120,1152,2,1,1162,
1214,2,1,1216,1216,1,15,1217,1229,2,1,1232,1326,2,1,1329,1366,1,48,4256,4293,1,7264,4295,4295,1,7264,4301,4301,1,7264,
5024,5103,1,38864,5104,5109,1,8,7312,7354,1,-3008,7357,7359,1,-3008,7680,7828,2,1,7838,7838,1,-7615,7840,7934,2,1,7944,
7951,1,-8,7960,7965,1,-8,7976,7983,1,-8,7992,7999,1,-8,8008,8013,1,-8,8025,8031,2,-8,8040,8047,1,-8,8072,8079,1,-8,8088,
8095,1,-8,8104,8111,1,-8,8120,8121,1,-8,8122,8123,1,-74,8124,8124,1,-9,8136,8139,1,-86,8140,8140,1,-9,8152,8153,1,-8,
8154,8155,1,-100,8168,8169,1,-8,8170,8171,1,-112,8172,8172,1,-7,8184,8185,1,-128,8186,8187,1,-126,8188,8188,1,-9,8486,
8486,1,-7517,8490,8490,1,-8383,8491,8491,1,-8262,8498,8498,1,28,8544,8559,1,16,8579,8579,1,1,9398,9423,1,26,11264,11311,
1,48,11360,11360,1,1,11362,11362,1,-10743,11363,11363,1,-3814,11364,11364,1,-10727,11367,11371,2,1,11373,11373,1,-10780,
11374,11374,1,-10749,11375,11375,1,-10783,11376,11376,1,-10782,11378,11378,1,1,11381,11381,1,1,11390,11391,1,-10815,
11392,11490,2,1,11499,11501,2,1,11506,11506,1,1,42560,42604,2,1,42624,42650,2,1,42786,42798,2,1,42802,42862,2,1,42873,
42875,2,1,42877,42877,1,-35332,42878,42886,2,1,42891,42891,1,1,42893,42893,1,-42280,42896,42898,2,1,42902,42920,2,1,
42922,42922,1,-42308,42923,42923,1,-42319,42924,42924,1,-42315,42925,42925,1,-42305,42926,42926,1,-42308,42928,42928,1,
-42258,42929,42929,1,-42282,42930,42930,1,-42261,42931,42931,1,928,42932,42946,2,1,42948,42948,1,-48,42949,42949,1,
-42307,42950,42950,1,-35384,42951,42953,2,1,42960,42960,1,1,42966,42968,2,1,42997,42997,1,1,65313,65338,1,32,66560,
66599,1,40,66736,66771,1,40,66928,66938,1,39,66940,66954,1,39,66956,66962,1,39,66964,66965,1,39,68736,68786,1,64,71840,
71871,1,32,93760,93791,1,32,125184,125217,1,34,
};
/* a final sigma follows one of these: alternating gap, length */
static const uint32_t uni_cased[300] = {
65,26,6,26,47,1,10,1,4,1,5,23,1,31,1,195,1,4,4,208,1,27,192,4,2,2,3,3,1,1,6,1,1,3,1,1,1,20,1,83,1,139,8,166,1,38,9,41,
2839,38,1,1,5,1,2,43,2,3,672,86,2,6,2178,9,7,43,2,3,64,44,63,13,1,34,101,278,2,6,2,38,2,6,2,8,1,1,1,1,1,1,1,31,2,53,1,7,
1,1,3,3,1,7,3,4,2,6,4,13,5,3,1,7,261,1,4,1,2,10,1,1,3,5,6,1,1,1,1,1,1,4,1,6,4,1,2,4,5,5,4,1,17,32,3,2,817,52,1814,124,2,
103,6,4,3,2,12,38,1,1,5,1,30994,46,18,28,134,78,1,23,3,4,1,59,5,2,1,1,1,5,27,2,3,1,821,43,5,9,7,80,20288,7,12,5,1033,26,
6,26,1189,80,96,36,4,36,116,11,1,15,1,7,1,2,1,11,1,15,1,7,1,2,1731,51,13,51,2989,64,21856,64,25984,85,1,71,1,2,2,1,2,2,
2,4,1,12,1,1,1,7,1,65,1,4,2,8,1,7,1,28,1,4,1,5,1,1,3,7,1,340,2,25,1,25,1,31,1,25,1,31,1,25,1,31,1,25,1,31,1,25,1,8,1844,
10,1,20,6,6,2517,68,2028,26,6,26,6,26,
};
/* ... with any of these between: gap, length */
static const uint32_t uni_ignored[874] = {
39,1,6,1,11,1,35,1,1,1,71,1,4,1,1,1,4,1,2,2,503,192,4,2,4,1,9,2,1,1,251,7,207,1,5,1,49,45,1,1,1,2,1,2,1,1,44,1,11,6,10,
11,1,1,35,1,10,21,16,1,101,8,1,10,1,4,33,1,1,1,30,27,91,11,58,11,4,1,2,1,24,24,43,3,44,1,7,2,6,8,41,58,55,1,1,1,4,8,4,1,
3,7,10,2,13,1,15,1,58,1,4,4,8,1,20,2,26,1,2,2,57,1,4,2,4,2,2,3,3,1,30,2,3,1,11,2,57,1,4,5,1,2,4,1,20,2,22,6,1,1,58,1,2,
1,1,4,8,1,7,2,11,2,30,1,61,1,12,1,50,1,3,1,55,1,1,3,5,3,1,4,7,2,11,2,29,1,58,1,2,1,6,1,5,2,20,2,28,2,57,2,4,4,8,1,20,2,
29,1,72,1,7,3,1,1,90,1,2,7,11,9,98,1,2,9,9,1,1,7,73,2,27,1,1,1,1,1,55,14,1,5,1,2,5,11,1,36,9,1,102,4,1,6,1,2,2,2,25,2,4,
3,16,4,13,1,2,2,6,1,15,1,94,1,608,3,946,3,29,2,30,2,30,2,64,2,1,7,8,1,2,11,3,1,5,1,45,5,51,1,65,2,34,1,118,3,4,2,9,1,6,
3,219,2,2,1,58,1,1,7,1,1,1,1,2,8,6,10,2,1,39,1,8,31,49,4,48,1,1,5,1,1,5,1,40,9,12,2,32,4,2,2,1,3,56,1,1,2,3,1,1,3,58,8,
2,2,64,6,82,3,1,13,1,7,4,1,6,1,3,2,50,63,13,1,34,101,445,1,1,3,11,3,13,3,13,3,13,2,12,5,8,2,10,1,2,1,2,5,49,5,1,10,1,1,
13,1,16,13,51,33,2955,2,113,3,125,1,15,1,96,32,47,1,469,1,36,4,3,5,5,1,93,6,93,3,28438,1,1250,6,270,1,98,4,1,10,1,1,28,
4,80,2,14,34,78,1,23,3,103,3,3,2,8,1,3,1,4,1,25,2,5,1,151,2,26,18,13,1,38,8,25,11,46,3,48,1,2,4,2,2,17,1,21,2,66,6,2,2,
2,2,12,1,8,1,35,1,11,1,51,1,1,3,2,2,5,2,1,1,27,1,14,2,5,2,1,1,100,5,9,3,121,1,2,1,4,1,20272,1,147,17,573,16,3,1,12,16,
34,1,2,1,169,1,7,1,6,1,11,1,35,1,1,1,47,1,45,2,67,1,21,3,513,1,226,1,149,5,1029,6,1,42,1,9,582,3,1,2,5,4,40,3,4,1,165,2,
573,4,387,2,80,3,70,11,49,4,123,1,54,15,41,1,2,2,10,3,49,4,2,2,2,1,4,1,10,1,50,3,36,5,1,8,62,1,12,2,52,9,10,4,2,1,95,3,
2,1,1,2,6,1,2,1,157,1,3,8,21,2,57,2,3,1,37,7,3,5,195,8,2,3,1,1,23,1,84,6,1,1,4,2,1,2,238,4,6,2,1,2,27,2,85,8,2,1,1,2,
106,1,1,1,2,6,1,1,101,3,2,4,1,5,259,9,1,2,256,2,1,1,4,1,144,4,2,2,4,1,32,10,40,6,2,4,8,1,9,6,2,3,46,13,1,2,406,7,1,6,1,
1,82,22,2,7,1,2,1,2,122,6,3,1,1,2,1,7,1,1,72,2,3,1,1,1,347,2,11,2,52,5,5,1,1,1,5357,17,6,15,13978,5,59,7,9,4,1035,1,63,
17,64,2,1,2,16395,4,1,7,1,2,3230,2,1,4,4700,46,2,23,544,3,9,16,2,7,30,4,148,3,1979,55,4,50,8,1,14,1,22,5,1,15,1360,7,1,
17,2,7,1,2,1,5,5,62,33,1,160,14,368,1,61,4,507,5,992,7,109,8,2735,5,789505,1,30,96,128,240,
};
/* ---- generated by dev/make_unicode.py: end ---- */

enum { UNI_LETTER = 1, UNI_NUMBER = 2, UNI_SPACE = 4, UNI_TOUCH = 8, UNI_TABLE = 0x32400, UNI_CCC = 0x1F000 };
typedef struct UniPair { uint64_t parts; uint32_t cp; } UniPair;          /* first part << 32 | second part, sorted
                                                                             by parts */
typedef struct UniDecomp { uint32_t cp, first, second; } UniDecomp;       /* second 0: a singleton; sorted by cp */
typedef struct Uni {
    uint8_t flags[UNI_TABLE];   /* UNI_TOUCH: NFC may change this character or its neighbour; never set: a safe place
                                   to cut the text */
    uint8_t ccc[UNI_CCC];       /* canonical combining class */
    UniDecomp decomp[2100]; UniPair pairs[1100];
    int ndecomp, npairs;
} Uni;

static int uni_pair_order(const void *a, const void *b) {
    uint64_t x = ((const UniPair *)a)->parts, y = ((const UniPair *)b)->parts;
    return x < y ? -1 : x > y;
}

static void uni_mark(Uni *u, const uint16_t *t, size_t n, int flag) {
    uint32_t at = 0;
    for (size_t i = 0; i + 1 < n; i += 2) {
        at += t[i];
        for (int k = 0; k < t[i + 1]; k++, at++) u->flags[at] |= (uint8_t)flag;
    }
}

static Uni *uni_create(void) {
    static const uint16_t spaces[] = {9,5, 18,1, 100,1, 26,1, 5599,1, 2431,11, 29,2, 5,1, 47,1, 4000,1};
    Uni *u = (Uni *)calloc(1, sizeof *u);
    uint32_t at = 0, drop = uni_excluded[0];
    size_t x = 0, nx = sizeof uni_excluded / sizeof *uni_excluded, nd = sizeof uni_decomp / sizeof *uni_decomp;
    if (!u) return NULL;
    uni_mark(u, uni_letters, sizeof uni_letters / sizeof *uni_letters, UNI_LETTER);
    uni_mark(u, uni_numbers, sizeof uni_numbers / sizeof *uni_numbers, UNI_NUMBER);
    uni_mark(u, spaces, sizeof spaces / sizeof *spaces, UNI_SPACE);
    for (size_t i = 0; i < sizeof uni_ccc / sizeof *uni_ccc; i += 3) {
        at += uni_ccc[i];
        for (int k = 0; k < uni_ccc[i + 1]; k++, at++) {
            u->ccc[at] = (uint8_t)uni_ccc[i + 2];
            u->flags[at] |= UNI_TOUCH;
        }
    }
    at = 0;
    for (size_t i = 0; i < nd;) {
        bool two = uni_decomp[i] & 1;
        at += uni_decomp[i] >> 1;
        UniDecomp d = {at, uni_decomp[i + 1], two ? uni_decomp[i + 2] : 0};
        u->decomp[u->ndecomp++] = d;
        if (two && !(x < nx && drop == at)) {
            UniPair p = {(uint64_t)d.first << 32 | d.second, at};
            u->pairs[u->npairs++] = p;
            u->flags[d.second] |= UNI_TOUCH;
        } else {
            u->flags[at] |= UNI_TOUCH;
            if (two && ++x < nx) drop += uni_excluded[x];
        }
        i += two ? 3 : 2;
    }
    for (at = 0x1161; at <= 0x1175; at++) u->flags[at] |= UNI_TOUCH;      /* Hangul vowels and finals compose by
                                                                             arithmetic */
    for (at = 0x11A8; at <= 0x11C2; at++) u->flags[at] |= UNI_TOUCH;
    qsort(u->pairs, (size_t)u->npairs, sizeof *u->pairs, uni_pair_order);
    return u;
}

static inline int uni_flags(const Uni *u, uint32_t cp) { return cp < UNI_TABLE ? u->flags[cp] : 0; }

/* \w of the library's added-token matching. Only single_word tokens ask, so a walk over the ranges will do. */
static bool uni_is_word(const Uni *u, uint32_t cp) {
    uint32_t at = 0;
    bool word = uni_flags(u, cp) & (UNI_LETTER | UNI_NUMBER);
    for (size_t i = 0; i < sizeof uni_words / sizeof *uni_words; i += 2) {
        at += uni_words[i];
        if (cp < at) break;
        at += uni_words[i + 1];
        if (cp < at) return !word;
    }
    return word;
}

/* Is cp in the ranges of t, (n) numbers: alternating gap and length? A walk; only rare characters ask. */
static bool uni_in(const uint32_t *t, size_t n, uint32_t cp) {
    uint32_t at = 0;
    for (size_t i = 0; i < n && cp >= at; i += 2) {
        if (cp < at + t[i]) return false;
        at += t[i] + t[i + 1];
        if (cp < at) return true;
    }
    return false;
}

static uint32_t uni_lower_of(uint32_t cp) {
    size_t lo = 0, hi = sizeof uni_lower / sizeof *uni_lower / 4;
    while (lo < hi) {                                           /* the first run that does not end before cp */
        size_t mid = (lo + hi) / 2;
        if ((uint32_t)uni_lower[4 * mid + 1] < cp) lo = mid + 1; else hi = mid;
    }
    const int32_t *run = uni_lower + 4 * lo, c = (int32_t)cp;             /* first, last, step, difference */
    if (lo == sizeof uni_lower / sizeof *uni_lower / 4 || c < run[0] || (c - run[0]) % run[2]) return cp;
    return (uint32_t)(c + run[3]);
}

/* Going from s[at] by step: is the next character that is not to be ignored one that has a case? */
static bool uni_beside_cased(const char *s, size_t n, size_t at, int step) {
    for (;;) {
        uint32_t cp;
        if (step < 0) { if (at == 0) return false; while (--at > 0 && (s[at] & 0xC0) == 0x80) {} }
        if (at >= n) return false;
        size_t k = (size_t)utf8_get(s + at, n - at, &cp);
        if (k == 0) return false;
        if (uni_in(uni_cased, sizeof uni_cased / sizeof *uni_cased, cp)) return true;
        if (!uni_in(uni_ignored, sizeof uni_ignored / sizeof *uni_ignored, cp)) return false;
        if (step > 0) at += k;
    }
}

size_t utf8_lower(char *out, size_t room, const char *s, size_t n) {
    size_t made = 0;
    for (size_t i = 0, k; i < n; i += k) {
        uint32_t cp;
        char low[4];
        k = (size_t)utf8_get(s + i, n - i, &cp);
        size_t len = k;
        if (k == 0) { low[0] = s[i]; k = len = 1; }
        else if (cp == 0x130) { memcpy(low, "i\xCC\x87", 3); len = 3; }
        else if (cp == 0x3A3 && uni_beside_cased(s, n, i, -1) && !uni_beside_cased(s, n, i + k, 1))
            len = (size_t)utf8_put(low, 0x3C2);
        else len = (size_t)utf8_put(low, uni_lower_of(cp));
        for (size_t b = 0; b < len; b++, made++) if (made < room) out[made] = low[b];
    }
    return made;
}

static uint32_t uni_compose(const Uni *u, uint32_t a, uint32_t b) {       /* 0: the two do not compose */
    if (a >= 0x1100 && a < 0x1113 && b >= 0x1161 && b < 0x1176) return 0xAC00 + ((a - 0x1100) * 21 + (b - 0x1161)) * 28;
    if (a >= 0xAC00 && a < 0xD7A4 && (a - 0xAC00) % 28 == 0 && b > 0x11A7 && b < 0x11C3) return a + (b - 0x11A7);
    UniPair key = {(uint64_t)a << 32 | b, 0};
    const UniPair *p = (const UniPair *)bsearch(&key, u->pairs, (size_t)u->npairs, sizeof key, uni_pair_order);
    return p ? p->cp : 0;
}

/* =====================================================================================================================
   6  Tables
   Ids index everything. Each id has its spelling (as in tokenizer.json) and its raw bytes (what it stands for in text;
   a byte-level vocabulary spells byte 0x20 as U+0120). Splitting produces raw bytes, so the hot table is keyed by
   them. Both live in one string arena.
   ================================================================================================================== */

/* Offsets into strings; shown: where decode's begins. */
typedef struct TokEntry {
    size_t spelling, raw, shown;
    uint32_t spelling_n, raw_n, shown_n;
} TokEntry;
typedef struct TokPair { uint64_t key; uint32_t rank; int32_t id; } TokPair; /* key: left << 32 | right; rank
                                                                                TOK_NO_RANK: empty */
typedef struct TokAdded { int32_t id; bool lstrip, rstrip, single_word, normalized, special; } TokAdded;
typedef struct TokNode { uint32_t child, sibling; int32_t added; uint8_t byte; } TokNode;
typedef struct TokTrie {
    TokNode *nodes;                            /* nodes[0] is the root */
    size_t count, cap;
    uint8_t first[256];                        /* bytes that a token starts with */
} TokTrie;
typedef struct TokStep { int kind; char *a, *b; size_t an, bn; size_t start, stop; } TokStep;
enum { TOK_NO_RANK = 0xFFFFFFFFu };
enum { TOK_MAX_GROWTH = 16, TOK_MAX_PREPEND = 64 };   /* nor by replacing again and again: "\u2581" for " " is 3 */
#define TOK_MAX_ID 16000000                                    /* a hostile file must not make us allocate by its
                                                                  largest number */
enum { TOK_KNOWN = 1, TOK_SPECIAL = 2, TOK_ADDED = 4, TOK_VOCAB = 8 };                    /* per-id flags */
enum { TOK_WHOLE_UNKNOWN, TOK_WHOLE_YES, TOK_WHOLE_NO };
enum { TOK_NORM_NFC, TOK_NORM_PREPEND, TOK_NORM_REPLACE };
enum { TOK_SPLIT_NONE, TOK_SPLIT_GPT2, TOK_SPLIT_QWEN2, TOK_SPLIT_LLAMA3 };
enum { TOK_META_NONE, TOK_META_NEVER, TOK_META_FIRST, TOK_META_ALWAYS };
enum { TOK_DEC_BYTELEVEL, TOK_DEC_REPLACE, TOK_DEC_FALLBACK, TOK_DEC_FUSE, TOK_DEC_STRIP, TOK_DEC_METASPACE };

struct Tokenizer {
    uint64_t fingerprint;
    Uni *uni;
    char *strings; size_t strings_n, strings_cap;
    TokEntry *entries; uint8_t *flags;         /* (nids) */
    uint8_t *whole;                            /* (nids) does merging this token's own text give this token? found out
                                                  when first asked, relaxed atomic: every thread computes the same */
    int32_t nids;
    uint32_t *by_spelling, *by_raw;            /* (mask + 1) id + 1, 0 empty; open addressing */
    size_t spelling_mask, raw_mask;
    TokPair *pairs; size_t pairs_mask;
    size_t max_raw;                            /* longest raw token, bytes */
    int32_t byte_ids[256];                     /* byte-level: token of each byte; otherwise token "<0xNN>"; -1 none */
    int32_t ascii_ids[128];                    /* SentencePiece-style: token of each ASCII character, -1 none */
    int32_t unk;                               /* -1 none */
    bool byte_level, byte_fallback, all_bytes, fuse_unk, ignore_merges, cut_at_space, prefix_space, meta_split;
    bool digits, single_digits;                /* numbers are cut out before words are: runs of digits, or each alone */
    int split, meta;
    TokStep norm[8], dec[8]; int nnorm, ndec;
    size_t growth[2];                          /* how many times as long Replace makes a text: normalizer, decoder */
    bool has_decoder;
    TokAdded *added; int nadded;
    TokTrie trie[2];                           /* added tokens matched in the text as given [0] and in the normalized
                                                  text [1] */
    int32_t before[8], after[8]; int nbefore, nafter;    /* what the post-processor adds */
    int32_t bos, eos, pad, stop[32]; int nstop;
    ChatTemplate chat;
    char *chat_text; size_t chat_bytes;        /* the folder's, NULL: none */
    JsonDoc config;                            /* tokenizer_config.json */
};

static const char tok_meta[] = "\xE2\x96\x81";   /* U+2581, SentencePiece's visible space */

static inline uint64_t tok_mix(uint64_t h) { h ^= h >> 32; h *= 0x9E3779B97F4A7C15ull; return h ^ h >> 29; }

static inline uint64_t tok_hash(const char *s, size_t n) {
    uint64_t h = n * 0xD6E8FEB86659FD93ull, w;
    for (; n >= 8; s += 8, n -= 8) { memcpy(&w, s, 8); h = tok_mix(h ^ w) * 0xD6E8FEB86659FD93ull; }
    if (n) { w = 0; memcpy(&w, s, n); h = tok_mix(h ^ w ^ (uint64_t)n << 56); }
    return tok_mix(h);
}

static int32_t tok_find_raw(const Tokenizer *t, const char *s, size_t n) {
    for (size_t i = tok_hash(s, n) & t->raw_mask;; i = (i + 1) & t->raw_mask) {
        uint32_t id = t->by_raw[i];
        if (!id) return -1;
        const TokEntry *e = &t->entries[id - 1];
        if (e->raw_n == n && memcmp(t->strings + e->raw, s, n) == 0) return (int32_t)id - 1;
    }
}

static int32_t tok_find_spelling(const Tokenizer *t, const char *s, size_t n) {
    for (size_t i = tok_hash(s, n) & t->spelling_mask;; i = (i + 1) & t->spelling_mask) {
        uint32_t id = t->by_spelling[i];
        if (!id) return -1;
        const TokEntry *e = &t->entries[id - 1];
        if (e->spelling_n == n && memcmp(t->strings + e->spelling, s, n) == 0) return (int32_t)id - 1;
    }
}

static inline const TokPair *tok_find_pair(const Tokenizer *t, int32_t a, int32_t b) {   /* NULL: they do not merge */
    uint64_t key = (uint64_t)(uint32_t)a << 32 | (uint32_t)b;
    for (size_t i = tok_mix(key) & t->pairs_mask;; i = (i + 1) & t->pairs_mask) {
        const TokPair *p = &t->pairs[i];
        if (p->rank == TOK_NO_RANK) return NULL;
        if (p->key == key) return p;
    }
}

/* GPT-2's byte alphabet backwards: printable Latin-1 characters stand for their own byte, U+0100..U+0143 for the other
   68 in order. */
static int tok_char_byte(uint32_t c) {                                       /* -1: not in the alphabet */
    if ((c >= 33 && c <= 126) || (c >= 161 && c <= 172) || (c >= 174 && c <= 255)) return (int)c;
    return c < 256 || c > 323 ? -1 : c <= 288 ? (int)c - 256 : c <= 322 ? (int)c - 289 + 127 : 173;
}

/* =====================================================================================================================
   7  Loading tokenizer.json
   Everything in the file is either understood or refused; a field we ignore would show up as wrong ids a thousand steps
   later. truncation and padding are the exception: transformers switches both off before encoding.
   ================================================================================================================== */

typedef struct TokLoader { Tokenizer *t; const char *name; Error *err; } TokLoader;

static bool tok_refuse(TokLoader *l, const char *what, const char *value) {
    return fail(l->err,
                "unsupported tokenizer: %s %.200s; %s; use a byte-level (Qwen, Llama 3, GPT-2) or SentencePiece-style "
                "BPE (Llama 2, Mistral) tokenizer",
                what, value ? value : "", l->name);
}
static bool tok_broken(TokLoader *l, const char *what, const char *value) {
    return fail(l->err, "broken tokenizer: %s %.200s; %s; download the file again", what, value ? value : "", l->name);
}
static bool tok_memory(TokLoader *l) {
    return fail(l->err, "out of memory while loading the tokenizer; %s; free some memory", l->name);
}

static const char *tok_type(const Json *j) {
    const Json *type = json_get(j, "type");
    return type && type->type == JSON_STRING ? type->str : "without a type";
}

/* An optional boolean; anything else under that name is an error. */
static bool tok_flag(TokLoader *l, const Json *object, const char *key, bool otherwise, bool *out) {
    const Json *j = json_get(object, key);
    *out = json_is_null(j) ? otherwise : j->type == JSON_TRUE;
    return json_is_null(j) || j->type == JSON_TRUE || j->type == JSON_FALSE || tok_broken(l, "not true or false:", key);
}

static bool tok_id_value(const Json *j, int32_t *id) {
    if (!j || j->type != JSON_NUMBER || !(j->number >= 0 && j->number < TOK_MAX_ID) ||
        j->number != (double)(int32_t)j->number)
        return false;
    *id = (int32_t)j->number;
    return true;
}

static char *tok_copy(const char *s, size_t n) {
    char *p = (char *)malloc(n + 1);
    if (p) { memcpy(p, s, n); p[n] = 0; }
    return p;
}

/* Appends n bytes and a NUL to the string arena, which was sized beforehand. */
static size_t tok_string(Tokenizer *t, const char *s, size_t n) {
    size_t at = t->strings_n;
    memcpy(t->strings + at, s, n);
    t->strings[at + n] = 0;
    t->strings_n += n + 1;
    return at;
}

/* Stores id's spelling and raw bytes and enters them into the tables. The raw table holds model vocabulary only:
   merging never makes an added token. */
static bool tok_enter(TokLoader *l, int32_t id, const char *s, size_t n, bool vocab) {
    Tokenizer *t = l->t;
    TokEntry *e = &t->entries[id];
    if (t->flags[id] & TOK_KNOWN) return tok_broken(l, "two tokens share the id of", s);
    if (tok_find_spelling(t, s, n) >= 0) return tok_broken(l, "token listed twice:", s);
    e->spelling = e->raw = e->shown = tok_string(t, s, n);
    e->spelling_n = e->raw_n = e->shown_n = (uint32_t)n;
    t->flags[id] = (uint8_t)(TOK_KNOWN | (vocab ? TOK_VOCAB : TOK_ADDED));
    size_t i = tok_hash(s, n) & t->spelling_mask;
    while (t->by_spelling[i]) i = (i + 1) & t->spelling_mask;
    t->by_spelling[i] = (uint32_t)id + 1;
    bool mapped = true;
    if (t->byte_level) {
        size_t at = t->strings_n, k = 0;
        uint32_t cp;
        for (size_t p = 0; p < n && mapped; k++) {
            p += (size_t)utf8_next(s + p, &cp);
            int b = tok_char_byte(cp);
            mapped = b >= 0;
            t->strings[at + k] = (char)b;
        }
        if (mapped) { e->raw = at; e->raw_n = (uint32_t)k; t->strings[at + k] = 0; t->strings_n += k + 1; }
    }
    if (!vocab || !mapped || n == 0) return true;
    const char *raw = t->strings + e->raw;
    if (e->raw_n > t->max_raw) t->max_raw = e->raw_n;
    i = tok_hash(raw, e->raw_n) & t->raw_mask;
    while (t->by_raw[i]) i = (i + 1) & t->raw_mask;
    t->by_raw[i] = (uint32_t)id + 1;
    if (t->byte_level && e->raw_n == 1) t->byte_ids[(uint8_t)raw[0]] = id;
    if (!t->byte_level && e->raw_n == 1 && (uint8_t)raw[0] < 128) t->ascii_ids[(uint8_t)raw[0]] = id;
    return true;
}

static size_t tok_power(size_t n) { size_t p = 16; while (p < n * 2) p *= 2; return p; }

static bool tok_load_vocab(TokLoader *l, const Json *model, const Json *added) {
    Tokenizer *t = l->t;
    const Json *vocab = json_get(model, "vocab");
    size_t bytes = 64, count = 0;
    int32_t top = -1, id;
    if (!vocab || vocab->type != JSON_OBJECT) return tok_broken(l, "model.vocab is not an object", "");
    for (const Json *c = vocab->child; c; c = c->next, count++) {
        if (!tok_id_value(c, &id)) return tok_broken(l, "bad id of token", c->key);
        if (id > top) top = id;
        bytes += 2 * ((size_t)c->key_count + 1);
    }
    for (const Json *c = added ? added->child : NULL; c; c = c->next, count++) {
        const Json *content = json_get(c, "content");
        if (!content || content->type != JSON_STRING) return tok_broken(l, "an added token has no content", "");
        if (!tok_id_value(json_get(c, "id"), &id)) return tok_broken(l, "bad id of added token", content->str);
        if (id > top) top = id;
        bytes += 2 * ((size_t)content->count + 1);
    }
    if (count == 0) return tok_broken(l, "the vocabulary is empty", "");
    t->nids = top + 1;
    t->spelling_mask = t->raw_mask = tok_power(count) - 1;
    t->strings = (char *)malloc(bytes); t->strings_cap = bytes;
    t->entries = (TokEntry *)calloc((size_t)t->nids, sizeof *t->entries);
    t->flags = (uint8_t *)calloc((size_t)t->nids, 1);
    t->whole = (uint8_t *)calloc((size_t)t->nids, 1);
    t->by_spelling = (uint32_t *)calloc(t->spelling_mask + 1, sizeof(uint32_t));
    t->by_raw = (uint32_t *)calloc(t->raw_mask + 1, sizeof(uint32_t));
    if (!t->strings || !t->entries || !t->flags || !t->whole || !t->by_spelling || !t->by_raw) return tok_memory(l);
    for (int b = 0; b < 256; b++) t->byte_ids[b] = -1;
    for (int b = 0; b < 128; b++) t->ascii_ids[b] = -1;
    for (const Json *c = vocab->child; c; c = c->next) {
        if (!tok_id_value(c, &id) || !tok_enter(l, id, c->key, c->key_count, true)) return false;
    }
    if (!t->byte_level)
        for (int b = 0; b < 256; b++) {
            char name[8];
            snprintf(name, sizeof name, "<0x%02X>", b);
            t->byte_ids[b] = tok_find_spelling(t, name, 6);
        }
    t->all_bytes = true;
    for (int b = 0; b < 256; b++) if (t->byte_ids[b] < 0) t->all_bytes = false;
    return true;
}

/* models/bpe/model.rs: a pair listed twice keeps its last rank; the merged token must exist. */
static bool tok_load_merges(TokLoader *l, const Json *model) {
    Tokenizer *t = l->t;
    const Json *merges = json_get(model, "merges");
    uint32_t rank = 0;
    size_t joined_cap = 0;
    char *joined = NULL;
    bool ok = true;
    if (!merges || merges->type != JSON_ARRAY) return tok_broken(l, "model.merges is not a list", "");
    t->pairs_mask = tok_power(merges->count) - 1;
    t->pairs = (TokPair *)malloc((t->pairs_mask + 1) * sizeof *t->pairs);
    if (!t->pairs) return tok_memory(l);
    for (size_t i = 0; i <= t->pairs_mask; i++) {
        t->pairs[i].key = 0;
        t->pairs[i].rank = TOK_NO_RANK;
        t->pairs[i].id = -1;
    }
    t->cut_at_space = true;
    for (const Json *m = merges->child; m && ok; m = m->next, rank++) {
        const char *a = NULL, *b = NULL;
        size_t an = 0, bn = 0;
        if (m->type == JSON_STRING) {
            const char *space = (const char *)memchr(m->str, ' ', m->count);
            if (space && !memchr(space + 1, ' ', m->count - (size_t)(space - m->str) - 1)) {
                a = m->str; an = (size_t)(space - a); b = space + 1; bn = m->count - an - 1;
            }
        } else if (m->type == JSON_ARRAY && m->count == 2 && m->child->type == JSON_STRING &&
                   m->child->next->type == JSON_STRING) {
            a = m->child->str; an = m->child->count; b = m->child->next->str; bn = m->child->next->count;
        }
        if (!a) { ok = tok_broken(l, "a merge is not two tokens:", m->str); break; }
        if (an + bn > joined_cap) {
            char *p = (char *)realloc(joined, joined_cap = 2 * (an + bn) + 64);
            if (!p) { ok = tok_memory(l); break; }
            joined = p;
        }
        if (joined) { memcpy(joined, a, an); memcpy(joined + an, b, bn); }
        int32_t ia = tok_find_spelling(t, a, an), ib = tok_find_spelling(t, b, bn),
                ic = joined ? tok_find_spelling(t, joined, an + bn) : -1;
        if (ia < 0 || ib < 0 || ic < 0) {
            ok = tok_broken(l, "a merge uses a token that is not in the vocabulary:", ia < 0 ? a : ib < 0 ? b : a);
            break;
        }
        uint64_t key = (uint64_t)(uint32_t)ia << 32 | (uint32_t)ib;
        size_t i = tok_mix(key) & t->pairs_mask;
        while (t->pairs[i].rank != TOK_NO_RANK && t->pairs[i].key != key) i = (i + 1) & t->pairs_mask;
        t->pairs[i].key = key; t->pairs[i].rank = rank; t->pairs[i].id = ic;
        /* Does any merge join something that ends in a letter with a following visible space? If none does, no merge
           crosses the place before a space, and a SentencePiece text, formally one word, may be cut there: same ids,
           and the word table applies. */
        for (size_t k = 1; k + 3 <= an + bn && !t->byte_level; k++)
            if (memcmp(joined + k, tok_meta, 3) == 0 && (k < 3 || memcmp(joined + k - 3, tok_meta, 3) != 0))
                t->cut_at_space = false;
    }
    free(joined);
    /* Fused unknown characters could also join across that place. */
    if (t->unk >= 0 && !(t->byte_fallback && t->all_bytes) && (t->fuse_unk || t->byte_fallback))
        t->cut_at_space = false;
    return ok;
}

static bool tok_load_model(TokLoader *l, const Json *model, const Json *added) {
    Tokenizer *t = l->t;
    static const char *const empty[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    const Json *type = json_get(model, "type"), *dropout = json_get(model, "dropout"),
               *unk = json_get(model, "unk_token");
    if (!model || model->type != JSON_OBJECT) return tok_broken(l, "no model", "");
    if (type ? type->type != JSON_STRING || strcmp(type->str, "BPE") != 0 : !json_get(model, "merges"))
        return tok_refuse(l, "model type", tok_type(model));
    if (!json_is_null(dropout) && !(dropout->type == JSON_NUMBER && dropout->number == 0))
        return tok_refuse(l, "model.dropout", "(random merges)");
    for (int i = 0; i < 2; i++) {
        const Json *j = json_get(model, empty[i]);
        if (!json_is_null(j) && !(j->type == JSON_STRING && j->count == 0)) return tok_refuse(l, "model", empty[i]);
    }
    if (!tok_flag(l, model, "fuse_unk", false, &t->fuse_unk) ||
        !tok_flag(l, model, "byte_fallback", false, &t->byte_fallback) ||
        !tok_flag(l, model, "ignore_merges", false, &t->ignore_merges))
        return false;
    if (t->byte_level && t->byte_fallback) return tok_refuse(l, "byte_fallback together with", "ByteLevel");
    if (!tok_load_vocab(l, model, added)) return false;
    t->unk = -1;
    if (!json_is_null(unk)) {
        if (unk->type != JSON_STRING) return tok_broken(l, "model.unk_token is not a string", "");
        t->unk = tok_find_spelling(t, unk->str, unk->count);
        if (t->unk < 0) return tok_broken(l, "model.unk_token is not in the vocabulary:", unk->str);
    }
    return tok_load_merges(l, model);
}

/* {"String": s} of Replace and Split; NULL for a regex. */
static const Json *tok_pattern(const Json *j, const char *kind) {
    const Json *p = json_get(json_get(j, "pattern"), kind);
    return p && p->type == JSON_STRING ? p : NULL;
}

static bool tok_step(TokLoader *l, TokStep *steps, int *n, int kind, const Json *a, const Json *b) {
    if (*n == 8) return tok_refuse(l, "more than 8 steps in a", "Sequence");
    TokStep *s = &steps[(*n)++];
    memset(s, 0, sizeof *s);
    s->kind = kind;
    if (a) { s->a = tok_copy(a->str, a->count); s->an = a->count; if (!s->a) return tok_memory(l); }
    if (b) { s->b = tok_copy(b->str, b->count); s->bn = b->count; if (!s->b) return tok_memory(l); }
    return true;
}

/* Replace, in a normalizer or a decoder: pattern String and content. */
static bool tok_load_replace(TokLoader *l, TokStep *steps, int *n, int kind, const Json *j) {
    const Json *from = tok_pattern(j, "String"), *to = json_get(j, "content");
    size_t *growth = &l->t->growth[steps == l->t->dec];
    if (!from || from->count == 0) return tok_refuse(l, "Replace with a pattern that is not a plain string", "");
    if (!to || to->type != JSON_STRING) return tok_broken(l, "Replace without content", "");
    if (to->count > from->count) *growth *= (to->count + from->count - 1) / from->count;
    if (*growth > TOK_MAX_GROWTH)
        return tok_refuse(l, "Replace steps that make a text more than 16 times as long; the last one replaces",
                          from->str);
    return tok_step(l, steps, n, kind, from, to);
}

static bool tok_load_normalizer(TokLoader *l, const Json *j) {
    Tokenizer *t = l->t;
    if (json_is_null(j)) return true;
    const char *type = tok_type(j);
    if (strcmp(type, "Sequence") == 0) {
        const Json *list = json_get(j, "normalizers");
        if (!list || list->type != JSON_ARRAY) return tok_broken(l, "normalizer Sequence without a list", "");
        for (const Json *c = list->child; c; c = c->next) if (!tok_load_normalizer(l, c)) return false;
        return true;
    }
    if (strcmp(type, "NFC") == 0) return tok_step(l, t->norm, &t->nnorm, TOK_NORM_NFC, NULL, NULL);
    if (strcmp(type, "Replace") == 0) return tok_load_replace(l, t->norm, &t->nnorm, TOK_NORM_REPLACE, j);
    if (strcmp(type, "Prepend") == 0) {
        const Json *s = json_get(j, "prepend");
        if (!s || s->type != JSON_STRING) return tok_broken(l, "Prepend without text", "");
        if (s->count > TOK_MAX_PREPEND) return tok_refuse(l, "Prepend of more than 64 bytes:", s->str);
        return tok_step(l, t->norm, &t->nnorm, TOK_NORM_PREPEND, s, NULL);
    }
    return tok_refuse(l, "normalizer", type);
}

/* Metaspace as a pre-tokenizer or decoder. The scheme: prepend_scheme, or in old files add_prefix_space: true. */
static bool tok_load_metaspace(TokLoader *l, const Json *j, int *scheme, bool *split) {
    const Json *r = json_get(j, "replacement"), *s = json_get(j, "prepend_scheme");
    bool add;
    if (!tok_flag(l, j, "add_prefix_space", true, &add) || !tok_flag(l, j, "split", true, split)) return false;
    if (!r || r->type != JSON_STRING || strcmp(r->str, tok_meta) != 0)
        return tok_refuse(l, "Metaspace replacement", r ? r->str : "");
    if (json_is_null(s) && !add)
        return tok_refuse(l, "Metaspace without prepend_scheme but with", "add_prefix_space: false");
    if (json_is_null(s)) { *scheme = TOK_META_ALWAYS; return true; }
    if (s->type == JSON_STRING && strcmp(s->str, "always") == 0) *scheme = TOK_META_ALWAYS;
    else if (s->type == JSON_STRING && strcmp(s->str, "first") == 0) *scheme = TOK_META_FIRST;
    else if (s->type == JSON_STRING && strcmp(s->str, "never") == 0) *scheme = TOK_META_NEVER;
    else return tok_refuse(l, "Metaspace prepend_scheme", s->str);
    return true;
}

#define TOK_CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
#define TOK_REST "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

static bool tok_load_pretokenizer(TokLoader *l, const Json *j) {
    static const struct { const char *pattern; int split; } known[] = {
        {TOK_CONTRACTIONS "\\p{N}" TOK_REST, TOK_SPLIT_QWEN2},
        {TOK_CONTRACTIONS "\\p{N}{1,3}" TOK_REST, TOK_SPLIT_LLAMA3},
        {"'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+", TOK_SPLIT_GPT2}};
    Tokenizer *t = l->t;
    bool regex, prefix, invert;
    if (json_is_null(j)) return true;
    const char *type = tok_type(j);
    if (t->byte_level || t->meta)
        return tok_refuse(l, "pre-tokenizer after ByteLevel or Metaspace:", type);   /* which are last everywhere */
    if (strcmp(type, "Sequence") == 0) {
        const Json *list = json_get(j, "pretokenizers");
        if (!list || list->type != JSON_ARRAY) return tok_broken(l, "pre-tokenizer Sequence without a list", "");
        for (const Json *c = list->child; c; c = c->next) if (!tok_load_pretokenizer(l, c)) return false;
        return true;
    }
    if (strcmp(type, "Digits") == 0) {
        if (t->split || t->digits) return tok_refuse(l, "pre-tokenizer Digits after", t->split ? "Split" : "Digits");
        t->digits = true;
        return tok_flag(l, j, "individual_digits", false, &t->single_digits);
    }
    if (strcmp(type, "ByteLevel") == 0) {
        if (!tok_flag(l, j, "use_regex", true, &regex) || !tok_flag(l, j, "add_prefix_space", true, &prefix))
            return false;
        if (t->digits && prefix) return tok_refuse(l, "ByteLevel with add_prefix_space after", "Digits");
        if (t->split && (regex || prefix))
            return tok_refuse(l, "ByteLevel with use_regex or add_prefix_space after", "Split");
        if (regex) t->split = TOK_SPLIT_GPT2;
        t->prefix_space = prefix;
        return t->byte_level = true;
    }
    if (strcmp(type, "Metaspace") == 0) {
        if (t->split || t->digits) return tok_refuse(l, "Metaspace after", t->split ? "Split" : "Digits");
        return tok_load_metaspace(l, j, &t->meta, &t->meta_split);
    }
    if (strcmp(type, "Split") == 0) {
        const Json *p = tok_pattern(j, "Regex"), *b = json_get(j, "behavior");
        if (!tok_flag(l, j, "invert", false, &invert)) return false;
        if (t->split) return tok_refuse(l, "two pre-tokenizers of type", "Split");
        if (!p) return tok_refuse(l, "Split with a pattern that is not a regex", "");
        if (invert || !b || b->type != JSON_STRING || strcmp(b->str, "Isolated") != 0)
            return tok_refuse(l, "Split behavior other than", "Isolated");
        for (int i = 0; i < 3; i++) if (strcmp(p->str, known[i].pattern) == 0) t->split = known[i].split;
        return t->split ? true : tok_refuse(l, "unknown Split pattern", p->str);
    }
    return tok_refuse(l, "pre-tokenizer", type);
}

static bool tok_load_decoder(TokLoader *l, const Json *j) {
    Tokenizer *t = l->t;
    if (json_is_null(j)) return true;
    const char *type = tok_type(j);
    t->has_decoder = true;
    if (strcmp(type, "Sequence") == 0) {
        const Json *list = json_get(j, "decoders");
        if (!list || list->type != JSON_ARRAY) return tok_broken(l, "decoder Sequence without a list", "");
        for (const Json *c = list->child; c; c = c->next) if (!tok_load_decoder(l, c)) return false;
        return true;
    }
    if (strcmp(type, "ByteLevel") == 0) return tok_step(l, t->dec, &t->ndec, TOK_DEC_BYTELEVEL, NULL, NULL);
    if (strcmp(type, "ByteFallback") == 0) return tok_step(l, t->dec, &t->ndec, TOK_DEC_FALLBACK, NULL, NULL);
    if (strcmp(type, "Fuse") == 0) return tok_step(l, t->dec, &t->ndec, TOK_DEC_FUSE, NULL, NULL);
    if (strcmp(type, "Replace") == 0) return tok_load_replace(l, t->dec, &t->ndec, TOK_DEC_REPLACE, j);
    if (strcmp(type, "Metaspace") == 0) {
        int scheme;
        bool split;
        if (!tok_load_metaspace(l, j, &scheme, &split) || !tok_step(l, t->dec, &t->ndec, TOK_DEC_METASPACE, NULL, NULL))
            return false;
        t->dec[t->ndec - 1].start = scheme != TOK_META_NEVER;      /* the first token loses its visible spaces */
        return true;
    }
    if (strcmp(type, "Strip") == 0) {
        const Json *c = json_get(j, "content"), *a = json_get(j, "start"), *z = json_get(j, "stop");
        int32_t start, stop;
        uint32_t cp;
        if (!c || c->type != JSON_STRING || c->count == 0 || utf8_next(c->str, &cp) != (int)c->count ||
            !tok_id_value(a, &start) || !tok_id_value(z, &stop))
            return tok_broken(l, "decoder Strip needs one character, start and stop", "");
        if (!tok_step(l, t->dec, &t->ndec, TOK_DEC_STRIP, c, NULL)) return false;
        t->dec[t->ndec - 1].start = (size_t)start; t->dec[t->ndec - 1].stop = (size_t)stop;
        return true;
    }
    return tok_refuse(l, "decoder", type);
}

/* processors/template.rs, "single" only. A later processor wraps what the earlier ones made. */
static bool tok_load_postprocessor(TokLoader *l, const Json *j) {
    Tokenizer *t = l->t;
    if (json_is_null(j)) return true;
    const char *type = tok_type(j);
    if (strcmp(type, "ByteLevel") == 0) return true;               /* trims offsets only */
    if (strcmp(type, "Sequence") == 0) {
        const Json *list = json_get(j, "processors");
        if (!list || list->type != JSON_ARRAY) return tok_broken(l, "post-processor Sequence without a list", "");
        for (const Json *c = list->child; c; c = c->next) if (!tok_load_postprocessor(l, c)) return false;
        return true;
    }
    if (strcmp(type, "TemplateProcessing") != 0) return tok_refuse(l, "post-processor", type);
    const Json *single = json_get(j, "single"), *specials = json_get(j, "special_tokens");
    int32_t before[8], after[8];
    int nb = 0, na = 0, sequences = 0;
    if (!single || single->type != JSON_ARRAY)
        return tok_broken(l, "TemplateProcessing without a list named single", "");
    for (const Json *c = single->child; c; c = c->next) {
        const Json *special = json_get(c, "SpecialToken"), *sequence = json_get(c, "Sequence"),
                   *name = json_get(special ? special : sequence, "id");
        if (!name || name->type != JSON_STRING) return tok_broken(l, "TemplateProcessing piece without id", "");
        if (sequence) {
            if (strcmp(name->str, "A") != 0 || sequences++)
                return tok_refuse(l, "TemplateProcessing sequence", name->str);
            continue;
        }
        const Json *ids = json_get(json_get(specials, name->str), "ids");
        if (!ids || ids->type != JSON_ARRAY)
            return tok_broken(l, "TemplateProcessing names an unknown special token:", name->str);
        for (const Json *i = ids->child; i; i = i->next) {
            int32_t id;
            if (!tok_id_value(i, &id) || id >= t->nids)
                return tok_broken(l, "TemplateProcessing: bad id of", name->str);
            if (nb == 8 || na == 8) return tok_refuse(l, "TemplateProcessing with more than 8 tokens", "");
            if (sequences) after[na++] = id; else before[nb++] = id;
        }
    }
    if (!sequences) return tok_refuse(l, "TemplateProcessing without the sequence", "A");
    if (nb + t->nbefore > 8 || na + t->nafter > 8)
        return tok_refuse(l, "TemplateProcessing with more than 8 tokens", "");
    memmove(t->before + nb, t->before, (size_t)t->nbefore * sizeof *before);
    memcpy(t->before, before, (size_t)nb * sizeof *before); t->nbefore += nb;
    memcpy(t->after + t->nafter, after, (size_t)na * sizeof *after); t->nafter += na;
    return true;
}

static bool tok_trie_add(TokTrie *trie, const char *s, size_t n, int32_t added) {
    uint32_t at = 0;
    if (n == 0) return true;
    trie->first[(uint8_t)s[0]] = 1;
    for (size_t i = 0; i <= n; i++) {
        if (trie->count + 1 >= trie->cap) {
            TokNode *p = (TokNode *)realloc(trie->nodes, (trie->cap = trie->cap * 2 + 64) * sizeof *p);
            if (!p) return false;
            if (!trie->nodes) { memset(p, 0, sizeof *p); p->added = -1; trie->count = 1; }
            trie->nodes = p;
        }
        if (i == n) break;
        uint32_t c = trie->nodes[at].child;
        while (c && trie->nodes[c].byte != (uint8_t)s[i]) c = trie->nodes[c].sibling;
        if (!c) {
            TokNode node = {0, trie->nodes[at].child, -1, (uint8_t)s[i]};
            c = (uint32_t)trie->count++;
            trie->nodes[c] = node;
            trie->nodes[at].child = c;
        }
        at = c;
    }
    if (trie->nodes[at].added < 0) trie->nodes[at].added = added;   /* of equal patterns the library reports the
                                                                       first */
    return true;
}

/* Longest added token starting at s; -1 none. */
static int32_t tok_trie_match(const TokTrie *trie, const char *s, size_t n, size_t *length) {
    int32_t found = -1;
    uint32_t at = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t c = trie->nodes[at].child;
        while (c && trie->nodes[c].byte != (uint8_t)s[i]) c = trie->nodes[c].sibling;
        if (!c) break;
        at = c;
        if (trie->nodes[at].added >= 0) { found = trie->nodes[at].added; *length = i + 1; }
    }
    return found;
}

static bool tok_normalized_copy(const Tokenizer *t, const char *s, size_t n, Text *out);   /* chapter 10 */

/* tokenizer/added_vocabulary.rs. The library ignores the ids in the file: a new token takes the next free id, a known
   one keeps its own. */
static bool tok_load_added(TokLoader *l, const Json *added) {
    Tokenizer *t = l->t;
    int32_t vocab_size = 0, next;
    size_t bytes_left = 64;      /* room the later tokens still need in the string arena */
    if (json_is_null(added)) return true;
    if (added->type != JSON_ARRAY) return tok_broken(l, "added_tokens is not a list", "");
    t->added = (TokAdded *)calloc((size_t)added->count + 1, sizeof *t->added);
    if (!t->added) return tok_memory(l);
    for (int32_t i = 0; i < t->nids; i++) vocab_size += (t->flags[i] & TOK_VOCAB) != 0;
    next = vocab_size;
    for (const Json *c = added->child; c; c = c->next) bytes_left += 2 * ((size_t)json_get(c, "content")->count + 1);
    for (const Json *c = added->child; c; c = c->next) {
        const Json *content = json_get(c, "content");
        TokAdded *a = &t->added[t->nadded];
        int32_t declared = -1, id;
        tok_id_value(json_get(c, "id"), &declared);
        if (!tok_flag(l, c, "special", false, &a->special) ||
            !tok_flag(l, c, "normalized", !a->special, &a->normalized) ||
            !tok_flag(l, c, "lstrip", false, &a->lstrip) || !tok_flag(l, c, "rstrip", false, &a->rstrip) ||
            !tok_flag(l, c, "single_word", false, &a->single_word))
            return false;
        if (content->count == 0) continue;
        id = tok_find_spelling(t, content->str, content->count);
        if (id < 0) {
            id = declared;
            if (declared != next)
                return fail(l->err,
                            "broken tokenizer: added token %.100s has id %d where the library gives it %d; %s; save it "
                            "again with the tokenizers library",
                            content->str, (int)declared, (int)next, l->name);
            if (!tok_enter(l, id, content->str, content->count, false)) return false;
        } else if (id != declared)
            return fail(l->err,
                        "broken tokenizer: added token %.100s has id %d but id %d in the vocabulary; %s; save it again "
                        "with the tokenizers library",
                        content->str, (int)declared, (int)id, l->name);
        if (id >= next) next = id + 1;
        t->flags[id] |= (uint8_t)(a->special ? TOK_ADDED | TOK_SPECIAL : TOK_ADDED);
        a->id = id;
        if (!a->normalized) {
            if (!tok_trie_add(&t->trie[0], content->str, content->count, t->nadded)) return tok_memory(l);
        } else { /* matched, and shown by decode, in normalized form */
            Text pattern = TEXT_EMPTY;
            bool ok = tok_normalized_copy(t, content->str, content->count, &pattern) &&
                      tok_trie_add(&t->trie[1], pattern.at, pattern.length, t->nadded);
            char *grown = ok ? (char *)realloc(t->strings, t->strings_n + pattern.length + bytes_left) : NULL;
            if (grown) {
                t->strings = grown;
                t->entries[id].shown = tok_string(t, pattern.at, pattern.length);
                t->entries[id].shown_n = (uint32_t)pattern.length;
            }
            text_free(&pattern);
            if (!grown) return tok_memory(l);
        }
        t->nadded++;
    }
    return true;
}

static bool tok_load(TokLoader *l, const Json *root) {
    const Json *added = json_get(root, "added_tokens");
    if (root->type != JSON_OBJECT) return tok_broken(l, "not an object", "");
    if (!json_is_null(added) && added->type != JSON_ARRAY) return tok_broken(l, "added_tokens is not a list", "");
    /* The pre-tokenizer comes first: it says whether vocabulary spellings are bytes or characters. */
    if (!tok_load_normalizer(l, json_get(root, "normalizer")) ||
        !tok_load_pretokenizer(l, json_get(root, "pre_tokenizer")))
        return false;
    if ((l->t->split || l->t->digits) && !l->t->byte_level)
        return tok_refuse(l, l->t->split ? "Split without" : "Digits without", "ByteLevel");
    return tok_load_model(l, json_get(root, "model"), json_is_null(added) ? NULL : added) && tok_load_added(l, added) &&
           tok_load_postprocessor(l, json_get(root, "post_processor")) &&
           tok_load_decoder(l, json_get(root, "decoder"));
}

Tokenizer *tokenizer_parse(const char *text, size_t bytes, const char *name, Error *err) {
    JsonDoc doc;
    TokLoader l = {(Tokenizer *)calloc(1, sizeof(Tokenizer)), name ? name : "tokenizer.json", err};
    if (!l.t) { tok_memory(&l); return NULL; }
    l.t->bos = l.t->eos = l.t->pad = l.t->unk = -1;
    l.t->growth[0] = l.t->growth[1] = 1;
    l.t->fingerprint = hash_bytes(HASH_START, text, bytes);
    l.t->uni = uni_create();
    if (!l.t->uni) { tok_memory(&l); tokenizer_free(l.t); return NULL; }
    if (!json_parse(&doc, text, bytes, l.name, 1, err)) { tokenizer_free(l.t); return NULL; }
    bool ok = tok_load(&l, doc.root);
    json_free(&doc);
    if (!ok) { tokenizer_free(l.t); return NULL; }
    return l.t;
}

void tokenizer_free(Tokenizer *t) {
    if (!t) return;
    free(t->chat_text);
    json_free(&t->config);
    for (int i = 0; i < t->nnorm; i++) { free(t->norm[i].a); free(t->norm[i].b); }
    for (int i = 0; i < t->ndec; i++) { free(t->dec[i].a); free(t->dec[i].b); }
    free(t->trie[0].nodes); free(t->trie[1].nodes); free(t->added); free(t->pairs);
    free(t->by_raw); free(t->by_spelling);
    free(t->whole); free(t->flags); free(t->entries); free(t->strings); free(t->uni); free(t);
}

uint64_t tokenizer_fingerprint(const Tokenizer *t) { return t->fingerprint; }
int32_t tokenizer_vocab_size(const Tokenizer *t) { return t->nids; }
int32_t tokenizer_id(const Tokenizer *t, const char *token) { return tok_find_spelling(t, token, strlen(token)); }
const char *tokenizer_token(const Tokenizer *t, int32_t id) {
    return id >= 0 && id < t->nids && (t->flags[id] & TOK_KNOWN) ? t->strings + t->entries[id].spelling : NULL;
}
int32_t tokenizer_bos(const Tokenizer *t) { return t->bos; }
int32_t tokenizer_eos(const Tokenizer *t) { return t->eos; }
int32_t tokenizer_pad(const Tokenizer *t) { return t->pad; }
size_t tokenizer_special_after(const Tokenizer *t) { return (size_t)t->nafter; }
bool tokenizer_is_special(const Tokenizer *t, int32_t id) {
    return id >= 0 && id < t->nids && (t->flags[id] & TOK_SPECIAL);
}
bool tokenizer_is_stop(const Tokenizer *t, int32_t id) {
    for (int i = 0; i < t->nstop; i++) if (t->stop[i] == id) return true;
    return id >= 0 && id == t->eos;
}
ChatTemplate tokenizer_chat_template(const Tokenizer *t) { return t->chat; }
const Json *tokenizer_config(const Tokenizer *t) { return t->config.root; }
const char *tokenizer_chat_text(const Tokenizer *t, size_t *bytes) { *bytes = t->chat_bytes; return t->chat_text; }
void token_ids_free(TokenIds *t) { free(t->ids); free(t->mask); memset(t, 0, sizeof *t); }

/* =====================================================================================================================
   8  Splitting
   The published patterns as scanners: each returns the length of the match at s (n bytes left, n > 0), trying the
   alternatives in order as the regex engine does. Every character matches one of them, so the words tile the text.
   ================================================================================================================== */

enum { TOK_OTHER = UNI_LETTER | UNI_NUMBER | UNI_SPACE };      /* none of these bits: [^\s\p{L}\p{N}] */

static inline int tok_class(const Uni *u, const char *s, size_t *len) {
    uint32_t cp;
    *len = (size_t)utf8_next(s, &cp);
    return uni_flags(u, cp);
}

/* End of the run of flag's characters from i. */
static size_t tok_run(const Uni *u, const char *s, size_t i, size_t n, int flag) {
    size_t len;
    while (i < n && (tok_class(u, s + i, &len) & flag)) i += len;
    return i;
}

static size_t tok_run_other(const Uni *u, const char *s, size_t i, size_t n) {
    size_t len;
    while (i < n && !(tok_class(u, s + i, &len) & TOK_OTHER)) i += len;
    return i;
}

/* 's 't 're 've 'm 'll 'd; length or 0. Case folding makes U+017F (long s) an s. */
static size_t tok_contraction(const char *s, size_t n, bool fold) {
    if (n < 2 || s[0] != '\'') return 0;
    char a = s[1], b = n > 2 ? s[2] : 0;
    if (fold) {
        if (n > 2 && a == '\xC5' && b == '\xBF') return 3;
        if (a >= 'A' && a <= 'Z') a += 32;
        if (b >= 'A' && b <= 'Z') b += 32;
    }
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    return (a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

/* \s+(?!\S)|\s+ : the run, less its last character when something follows it, unless that would leave nothing. */
static size_t tok_spaces(const char *s, size_t end, size_t n) {
    size_t last = end - 1;
    if (end == n) return end;
    while (last > 0 && (s[last] & 0xC0) == 0x80) last--;
    return last > 0 ? last : end;
}

/* 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+   (pre_tokenizers/byte_level.rs) */
static size_t tok_scan_gpt2(const Uni *u, const char *s, size_t n) {
    size_t len, k = tok_contraction(s, n, false), i = s[0] == ' ' && n > 1;
    if (k) return k;
    int c = tok_class(u, s + i, &len);
    if (c & UNI_LETTER) return tok_run(u, s, i + len, n, UNI_LETTER);
    if (c & UNI_NUMBER) return tok_run(u, s, i + len, n, UNI_NUMBER);
    if (!(c & UNI_SPACE)) return tok_run_other(u, s, i + len, n);
    return tok_spaces(s, tok_run(u, s, i, n, UNI_SPACE), n);
}

/* (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,digits}|
   ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+ */
static size_t tok_scan_qwen2(const Uni *u, const char *s, size_t n, int digits) {
    size_t len, k, i;
    int c = tok_class(u, s, &len);
    if (c & UNI_LETTER) return tok_run(u, s, len, n, UNI_LETTER);
    if (c & UNI_NUMBER) {
        for (i = len; --digits > 0 && i < n && (tok_class(u, s + i, &len) & UNI_NUMBER);) i += len;
        return i;
    }
    if ((k = tok_contraction(s, n, true)) != 0) return k;
    if (s[0] != '\r' && s[0] != '\n' && len < n && (tok_class(u, s + len, &k) & UNI_LETTER))
        return tok_run(u, s, len + k, n, UNI_LETTER);
    i = s[0] == ' ' && n > 1;
    if (!(tok_class(u, s + i, &len) & TOK_OTHER)) {
        i = tok_run_other(u, s, i + len, n);
        while (i < n && (s[i] == '\r' || s[i] == '\n')) i++;
        return i;
    }
    size_t end = tok_run(u, s, 0, n, UNI_SPACE);
    for (i = end; i > 0; i--)
        if (s[i - 1] == '\r' || s[i - 1] == '\n') return i; /* \s*[\r\n]+ backs up to the last line break of the run */
    return tok_spaces(s, end, n);
}

/* End of the piece at i: a number, as the Digits pre-tokenizer cuts it out, or what there is up to the next one. */
static size_t tok_digits(const Tokenizer *t, const char *s, size_t i, size_t n) {
    size_t len;
    if (tok_class(t->uni, s + i, &len) & UNI_NUMBER)
        return t->single_digits ? i + len : tok_run(t->uni, s, i, n, UNI_NUMBER);
    while (i < n && !(tok_class(t->uni, s + i, &len) & UNI_NUMBER)) i += len;
    return i;
}

/* =====================================================================================================================
   9  BPE
   A word becomes symbols (bytes or characters), then the adjacent pair of lowest rank, leftmost first, merges until
   none is left. A word that is one token is found in the table without merging. Long words go through a heap so that a
   megabyte without a space costs n log n.
   ================================================================================================================== */

/* One stage of text on its way to words. from/to are the range of the ORIGINAL text each byte of p stands for; NULL:
   byte i is base + i. */
typedef struct TokView { const char *p; size_t n; const size_t *from, *to; size_t base; } TokView;
typedef struct TokNorm { Text text; size_t *from, *to; size_t map_cap; } TokNorm;
typedef struct TokSymbol { int32_t id; uint32_t begin, end, prev, next, rank; int32_t merged; } TokSymbol;
typedef struct TokNfcChar { uint32_t cp; uint8_t ccc; size_t from, to; } TokNfcChar;

/* Everything one encode call needs; nothing is shared between calls, which is what makes encoding thread-safe. */
typedef struct TokState {
    const Tokenizer *t;
    TokenIds *out;
    const TextSpan *spans; size_t nspans; bool map;     /* map: keep from/to and fill the mask */
    TokView view;                                       /* the text that word offsets refer to */
    TokNorm norm[3];                                    /* 0, 1: normalizer steps alternate; 2: pre-tokenizer */
    TokSymbol *symbols; size_t symbols_cap;
    uint64_t *heap; size_t heap_n, heap_cap;
    TokNfcChar *nfc, *nfc_sorted; size_t nfc_cap;
    bool memory_failed;
} TokState;

static inline size_t tok_from(const TokView *v, size_t i) { return v->from ? v->from[i] : v->base + i; }
static inline size_t tok_to(const TokView *v, size_t i) { return v->to ? v->to[i] : v->base + i + 1; }

/* Appends an id that stands for [from, to) of the original text; from == to: for nothing in it. */
static void tok_emit_range(TokState *S, int32_t id, size_t from, size_t to) {
    TokenIds *o = S->out;
    if (o->count == o->capacity) {
        size_t cap = o->capacity ? o->capacity * 2 : 64;
        int32_t *ids = (int32_t *)realloc(o->ids, cap * sizeof *ids);
        if (ids) o->ids = ids;
        uint8_t *mask = ids ? (uint8_t *)realloc(o->mask, cap) : NULL;
        if (!mask) { S->memory_failed = true; return; }
        o->mask = mask; o->capacity = cap;
    }
    bool covered = false;
    if (S->map) {
        size_t lo = 0, hi = S->nspans;      /* first span that ends after from */
        while (lo < hi) { size_t mid = (lo + hi) / 2; if (S->spans[mid].end > from) hi = mid; else lo = mid + 1; }
        covered = lo < S->nspans && S->spans[lo].begin < to && from < to;
    }
    o->mask[o->count] = covered;
    o->ids[o->count++] = id;
}

static inline void tok_emit(TokState *S, int32_t id, size_t begin, size_t end) {
    TokenIds *o = S->out;
    if (S->map) tok_emit_range(S, id, tok_from(&S->view, begin), tok_to(&S->view, end - 1));
    else if (o->count < o->capacity) o->ids[o->count++] = id;
    else tok_emit_range(S, id, 0, 0);
}

static bool tok_grow(TokState *S, void **p, size_t *cap, size_t want, size_t size) {
    if (want <= *cap) return true;
    size_t n = want + want / 2;
    void *q = realloc(*p, n * size);
    if (!q) { S->memory_failed = true; return false; }
    *p = q; *cap = n;
    return true;
}

static void tok_heap_push(TokState *S, uint64_t key) {
    size_t i = S->heap_n++;
    while (i > 0 && S->heap[(i - 1) / 2] > key) { S->heap[i] = S->heap[(i - 1) / 2]; i = (i - 1) / 2; }
    S->heap[i] = key;
}
static uint64_t tok_heap_pop(TokState *S) {
    uint64_t top = S->heap[0], key = S->heap[--S->heap_n];
    size_t i = 0, c;
    while ((c = 2 * i + 1) < S->heap_n) {
        if (c + 1 < S->heap_n && S->heap[c + 1] < S->heap[c]) c++;
        if (S->heap[c] >= key) break;
        S->heap[i] = S->heap[c];
        i = c;
    }
    S->heap[i] = key;
    return top;
}

/* models/bpe/model.rs merge_word: symbols of word s (n bytes). A character without a token becomes its bytes, else the
   unknown token, else nothing. As there, an unknown character waits until a known one or the end, and byte tokens
   overtake it. */
static size_t tok_symbols(TokState *S, const char *s, size_t n, TokSymbol *y) {
    const Tokenizer *t = S->t;
    TokSymbol unk = {-1, 0, 0, 0, 0, 0, 0};
    size_t k = 0, len;
    uint32_t cp;
    for (size_t i = 0; i < n; i += len) {
        int32_t id;
        uint32_t at = (uint32_t)i;
        len = 1;
        if (t->byte_level) id = t->byte_ids[(uint8_t)s[i]];
        else if ((uint8_t)s[i] < 128) id = t->ascii_ids[(uint8_t)s[i]];
        else { len = (size_t)utf8_next(s + i, &cp); id = tok_find_raw(t, s + i, len); }
        if (id >= 0) {
            if (unk.id >= 0) { y[k++] = unk; unk.id = -1; }
            y[k].id = id; y[k].begin = at; y[k].end = at + (uint32_t)len; k++;
            continue;
        }
        if (t->byte_fallback) {
            bool all = true;
            for (size_t b = 0; b < len; b++) all = all && t->byte_ids[(uint8_t)s[i + b]] >= 0;
            for (size_t b = 0; all && b < len; b++, k++) {
                y[k].id = t->byte_ids[(uint8_t)s[i + b]];
                y[k].begin = at + (uint32_t)b;
                y[k].end = y[k].begin + 1;
            }
            if (all) continue;
        }
        if (t->unk < 0) continue;
        if (unk.id >= 0 && !t->fuse_unk) y[k++] = unk;
        if (unk.id < 0 || !t->fuse_unk) unk.begin = at;
        unk.end = at + (uint32_t)len;
        unk.id = t->unk;
    }
    if (unk.id >= 0) y[k++] = unk;
    return k;
}

static inline void tok_rank(const Tokenizer *t, TokSymbol *y, const TokSymbol *right) {
    const TokPair *p = tok_find_pair(t, y->id, right->id);
    y->rank = p ? p->rank : TOK_NO_RANK;
    y->merged = p ? p->id : -1;
}

static size_t tok_merge_short(const Tokenizer *t, TokSymbol *y, size_t k) {
    for (size_t i = 0; i + 1 < k; i++) tok_rank(t, &y[i], &y[i + 1]);
    while (k > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < k; i++) if (y[i].rank < y[best].rank) best = i;
        if (y[best].rank == TOK_NO_RANK) break;
        y[best].id = y[best].merged;
        y[best].end = y[best + 1].end;
        memmove(y + best + 1, y + best + 2, (k - best - 2) * sizeof *y);
        k--;
        if (best + 1 < k) tok_rank(t, &y[best], &y[best + 1]);
        if (best > 0) tok_rank(t, &y[best - 1], &y[best]);
    }
    return k;
}

static size_t tok_merge_long(TokState *S, TokSymbol *y, size_t k) {
    const Tokenizer *t = S->t;
    const uint32_t none = 0xFFFFFFFFu;
    if (!tok_grow(S, (void **)&S->heap, &S->heap_cap, 3 * k, sizeof *S->heap))
        return 0; /* k pairs plus two per merge */
    S->heap_n = 0;
    for (size_t i = 0; i < k; i++) {
        y[i].prev = i ? (uint32_t)i - 1 : none;
        y[i].next = i + 1 < k ? (uint32_t)i + 1 : none;
        y[i].rank = TOK_NO_RANK;
        if (i + 1 < k) tok_rank(t, &y[i], &y[i + 1]);
        if (y[i].rank != TOK_NO_RANK) tok_heap_push(S, (uint64_t)y[i].rank << 32 | i);
    }
    while (S->heap_n) {
        uint64_t key = tok_heap_pop(S);
        TokSymbol *a = &y[(uint32_t)key], *b;
        if (a->rank != (uint32_t)(key >> 32)) continue;       /* stale: the pair here has changed since, or is gone */
        b = &y[a->next];
        a->id = a->merged; a->end = b->end; a->next = b->next;
        b->id = -1; b->rank = TOK_NO_RANK;
        a->rank = TOK_NO_RANK;
        if (a->next != none) {
            y[a->next].prev = (uint32_t)key;
            tok_rank(t, a, &y[a->next]);
            if (a->rank != TOK_NO_RANK) tok_heap_push(S, (uint64_t)a->rank << 32 | (uint32_t)key);
        }
        if (a->prev != none) {
            TokSymbol *p = &y[a->prev];
            tok_rank(t, p, a);
            if (p->rank != TOK_NO_RANK) tok_heap_push(S, (uint64_t)p->rank << 32 | a->prev);
        }
    }
    size_t m = 0;
    for (size_t i = 0; i < k; i++) if (y[i].id >= 0) y[m++] = y[i];
    return m;
}

/* One word: n bytes at offset at of S->view. */
static void tok_word(TokState *S, size_t at, size_t n) {
    enum { SHORT = 48 };
    const Tokenizer *t = S->t;
    const char *s = S->view.p + at;
    TokSymbol few[SHORT], *y = few;
    int32_t id = n <= t->max_raw ? tok_find_raw(t, s, n) : -1;
    int whole = id < 0             ? (int)TOK_WHOLE_NO
                : t->ignore_merges ? (int)TOK_WHOLE_YES
                                   : (int)__atomic_load_n(&t->whole[id], __ATOMIC_RELAXED);
    if (whole == TOK_WHOLE_YES) { tok_emit(S, id, at, at + n); return; }
    if (n > SHORT) {
        if (!tok_grow(S, (void **)&S->symbols, &S->symbols_cap, n, sizeof *y)) return;
        y = S->symbols;
    }
    size_t k = tok_symbols(S, s, n, y);
    k = k <= SHORT ? tok_merge_short(t, y, k) : tok_merge_long(S, y, k);
    if (whole == TOK_WHOLE_UNKNOWN)
        __atomic_store_n(&t->whole[id], (uint8_t)(k == 1 && y[0].id == id ? TOK_WHOLE_YES : TOK_WHOLE_NO),
                         __ATOMIC_RELAXED);
    for (size_t i = 0; i < k; i++) tok_emit(S, y[i].id, at + y[i].begin, at + y[i].end);
}

/* =====================================================================================================================
   10  Encode
   text -> added tokens cut out of the text as given -> each piece normalized -> added tokens cut out of that -> words
   -> ids. A normalizer works on pieces, so SentencePiece's leading space appears after every special token, as in the
   library.
   ================================================================================================================== */

/* n bytes that all stand for [from, to). */
static void tok_put(TokState *S, TokNorm *o, const char *s, size_t n, size_t from, size_t to) {
    if (S->map) {
        if (o->text.length + n > o->map_cap) {
            size_t cap = (o->text.length + n) * 2 + 64;
            size_t *a = (size_t *)realloc(o->from, cap * sizeof *a);
            if (a) o->from = a;
            size_t *b = a ? (size_t *)realloc(o->to, cap * sizeof *b) : NULL;
            if (!b) { S->memory_failed = true; return; }
            o->to = b; o->map_cap = cap;
        }
        for (size_t i = 0; i < n; i++) { o->from[o->text.length + i] = from; o->to[o->text.length + i] = to; }
    }
    text_append(&o->text, s, n);
    if (o->text.failed) S->memory_failed = true;
}

/* Bytes [begin, end) of v unchanged. */
static void tok_keep(TokState *S, TokNorm *o, const TokView *v, size_t begin, size_t end) {
    if (!S->map) tok_put(S, o, v->p + begin, end - begin, 0, 0);
    else for (size_t i = begin; i < end; i++) tok_put(S, o, v->p + i, 1, tok_from(v, i), tok_to(v, i));
}

static TokView tok_norm_view(const TokState *S, const TokNorm *o) {
    TokView v = {o->text.at ? o->text.at : "", o->text.length, S->map ? o->from : NULL, S->map ? o->to : NULL, 0};
    return v;
}

/* A new string in front stands for the first character, as NormalizedString::prepend has it. */
static void tok_prepend(TokState *S, TokNorm *o, const TokView *v, const char *s, size_t n) {
    uint32_t cp;
    if (v->n) tok_put(S, o, s, n, tok_from(v, 0), tok_to(v, (size_t)utf8_next(v->p, &cp) - 1));
}

static void tok_replace(TokState *S, TokNorm *o, const TokView *v, const char *a, size_t an, const char *b, size_t bn) {
    size_t i = 0, done = 0;
    while (i + an <= v->n) {
        const char *hit = (const char *)memchr(v->p + i, a[0], v->n - an - i + 1);
        if (!hit) break;
        i = (size_t)(hit - v->p);
        if (memcmp(hit, a, an) != 0) { i++; continue; }
        tok_keep(S, o, v, done, i);
        tok_put(S, o, b, bn, tok_from(v, i), tok_to(v, i + an - 1));
        done = i += an;
    }
    tok_keep(S, o, v, done, v->n);
}

static size_t tok_nfc_decompose(const Uni *u, uint32_t cp, uint32_t *out) { /* full canonical decomposition, at most
                                                                               4 characters */
    if (cp >= 0xAC00 && cp < 0xD7A4) {
        cp -= 0xAC00;
        out[0] = 0x1100 + cp / 588; out[1] = 0x1161 + cp % 588 / 28; out[2] = 0x11A7 + cp % 28;
        return cp % 28 ? 3 : 2;
    }
    int lo = 0, hi = u->ndecomp;
    while (lo < hi) { int mid = (lo + hi) / 2; if (u->decomp[mid].cp < cp) lo = mid + 1; else hi = mid; }
    if (cp < 0xC0 || lo == u->ndecomp || u->decomp[lo].cp != cp) { out[0] = cp; return 1; }
    size_t n = tok_nfc_decompose(u, u->decomp[lo].first, out); /* only the first part decomposes further */
    if (u->decomp[lo].second) out[n++] = u->decomp[lo].second;
    return n;
}

/* NFC of bytes [begin, end) of v: decompose, order marks by class (stable), compose. */
static void tok_nfc_segment(TokState *S, TokNorm *o, const TokView *v, size_t begin, size_t end) {
    const Uni *u = S->t->uni;
    size_t n = 0, want = (end - begin) * 4 + 4;
    if (want > S->nfc_cap) {
        size_t cap = S->nfc_cap;
        if (!tok_grow(S, (void **)&S->nfc, &cap, want, sizeof *S->nfc) ||
            !tok_grow(S, (void **)&S->nfc_sorted, &S->nfc_cap, want, sizeof *S->nfc))
            return;
    }
    TokNfcChar *c = S->nfc;
    for (size_t i = begin; i < end;) {
        uint32_t cp, parts[8];
        size_t len = (size_t)utf8_next(v->p + i, &cp), m = tok_nfc_decompose(u, cp, parts);
        for (size_t k = 0; k < m; k++, n++) {
            c[n].cp = parts[k]; c[n].ccc = parts[k] < UNI_CCC ? u->ccc[parts[k]] : 0;
            c[n].from = tok_from(v, i); c[n].to = tok_to(v, i + len - 1);
        }
        i += len;
    }
    for (size_t i = 0; i < n;) {                  /* counting sort per run of marks: a hostile megabyte of marks
                                                     stays linear */
        size_t k = i, count[257];
        bool sorted = true;
        while (k < n && c[k].ccc) { if (k > i && c[k].ccc < c[k - 1].ccc) sorted = false; k++; }
        if (!sorted) {
            memset(count, 0, sizeof count);
            for (size_t m = i; m < k; m++) count[c[m].ccc + 1]++;
            for (int m = 1; m < 257; m++) count[m] += count[m - 1];
            for (size_t m = i; m < k; m++) S->nfc_sorted[count[c[m].ccc]++] = c[m];
            memcpy(c + i, S->nfc_sorted, (k - i) * sizeof *c);
        }
        i = k + 1;
    }
    size_t starter = n, m = 0;                    /* starter: index of the last one in the output; n: none yet */
    int last = -1;                                /* class of the last output character after the starter; -1: none */
    for (size_t i = 0; i < n; i++) {
        uint32_t made = 0;
        if (starter != n && (last < (int)c[i].ccc || last == -1)) made = uni_compose(u, c[starter].cp, c[i].cp);
        if (made) {
            c[starter].cp = made;
            if (c[i].from < c[starter].from) c[starter].from = c[i].from;
            if (c[i].to > c[starter].to) c[starter].to = c[i].to;
            continue;
        }
        if (c[i].ccc == 0) { starter = m; last = -1; } else last = c[i].ccc;
        c[m++] = c[i];
    }
    for (size_t i = 0; i < m; i++) {
        char s[4];
        int len = utf8_put(s, c[i].cp);
        tok_put(S, o, s, (size_t)len, c[i].from, c[i].to);
    }
}

/* True if v had to change; most text is already in NFC and is not copied. */
static bool tok_nfc(TokState *S, TokNorm *o, const TokView *v) {
    const Uni *u = S->t->uni;
    size_t done = 0, prev = 0, i = 0, len = 0;
    bool changed = false;
    uint32_t cp;
    while (i < v->n) {
        if ((uint8_t)v->p[i] < 0xCC) {             /* below U+0300 nothing is ever touched */
            prev = i;
            i += (uint8_t)v->p[i] < 0x80 ? 1 : 2;
            continue;
        }
        len = (size_t)utf8_next(v->p + i, &cp);
        if (!(uni_flags(u, cp) & UNI_TOUCH)) { prev = i; i += len; continue; }
        size_t begin = prev >= done && i > done ? prev : i;
        while (i < v->n && (i += len) < v->n) {
            len = (size_t)utf8_next(v->p + i, &cp);
            if (!(uni_flags(u, cp) & UNI_TOUCH)) break;
        }
        if (!changed) o->text.length = 0;
        changed = true;
        tok_keep(S, o, v, done, begin);
        tok_nfc_segment(S, o, v, begin, i);
        done = prev = i;
    }
    if (changed) tok_keep(S, o, v, done, v->n);
    return changed;
}

static TokView tok_normalize(TokState *S, TokView v) {
    const Tokenizer *t = S->t;
    int into = 0;
    for (int i = 0; i < t->nnorm && !S->memory_failed; i++) {
        const TokStep *step = &t->norm[i];
        TokNorm *o = &S->norm[into];
        if (step->kind == TOK_NORM_NFC) { if (!tok_nfc(S, o, &v)) continue; }
        else {
            o->text.length = 0;
            if (step->kind == TOK_NORM_REPLACE) tok_replace(S, o, &v, step->a, step->an, step->b, step->bn);
            else { tok_prepend(S, o, &v, step->a, step->an); tok_keep(S, o, &v, 0, v.n); }
        }
        v = tok_norm_view(S, o);
        into = !into;
    }
    return v;
}

static void tok_state_free(TokState *S) {
    for (int i = 0; i < 3; i++) { text_free(&S->norm[i].text); free(S->norm[i].from); free(S->norm[i].to); }
    free(S->symbols); free(S->heap); free(S->nfc); free(S->nfc_sorted);
}

static bool tok_normalized_copy(const Tokenizer *t, const char *s, size_t n, Text *out) {
    TokState S;
    memset(&S, 0, sizeof S);
    S.t = t;
    TokView v = {s, n, NULL, NULL, 0};
    v = tok_normalize(&S, v);
    text_append(out, v.p, v.n);
    tok_state_free(&S);
    return !S.memory_failed && !out->failed;
}

/* Words of one piece without added tokens. first: the piece starts where the text starts. */
static void tok_words(TokState *S, TokView v, bool first) {
    const Tokenizer *t = S->t;
    size_t i = 0, k;
    if (v.n == 0) return;
    if (t->prefix_space && v.p[0] != ' ') {
        S->norm[2].text.length = 0;
        tok_prepend(S, &S->norm[2], &v, " ", 1);
        tok_keep(S, &S->norm[2], &v, 0, v.n);
        v = tok_norm_view(S, &S->norm[2]);
    } else if (t->meta) {                                         /* pre_tokenizers/metaspace.rs */
        bool marked = v.p[0] == ' ' || (v.n >= 3 && memcmp(v.p, tok_meta, 3) == 0);
        S->norm[2].text.length = 0;
        if (!marked && (t->meta == TOK_META_ALWAYS || (t->meta == TOK_META_FIRST && first)))
            tok_prepend(S, &S->norm[2], &v, tok_meta, 3);
        tok_replace(S, &S->norm[2], &v, " ", 1, tok_meta, 3);
        v = tok_norm_view(S, &S->norm[2]);
    }
    S->view = v;
    if (t->byte_level) {
        size_t stop = t->digits ? 0 : v.n;                  /* what lies behind it is another text to the scanners */
        for (; i < v.n; i += k) {
            const char *s = v.p + i;
            if (i == stop) stop = tok_digits(t, v.p, i, v.n);
            size_t n = stop - i;
            if (t->split == TOK_SPLIT_GPT2) k = tok_scan_gpt2(t->uni, s, n);
            else k = t->split ? tok_scan_qwen2(t->uni, s, n, t->split == TOK_SPLIT_LLAMA3 ? 3 : 1) : n;
            tok_word(S, i, k);
        }
        return;
    }
    bool split = t->meta && t->meta_split;
    if (!split && !t->cut_at_space) { tok_word(S, 0, v.n); return; }
    for (; i < v.n; i += k) {
        k = 0;
        /* Metaspace with split cuts before every visible space; otherwise we may cut only between a letter and a
           visible space. */
        if (split) k = v.n - i >= 3 && memcmp(v.p + i, tok_meta, 3) == 0 ? 3 : 0;
        else while (v.n - i - k >= 3 && memcmp(v.p + i + k, tok_meta, 3) == 0) k += 3;
        for (;;) {
            const char *hit = (const char *)memchr(v.p + i + k, tok_meta[0], v.n - i - k);
            if (!hit) { k = v.n - i; break; }
            k = (size_t)(hit - v.p) - i;
            if (v.n - i - k >= 3 && memcmp(hit, tok_meta, 3) == 0) break;
            k++;
        }
        tok_word(S, i, k);
    }
}

/* Bytes [begin, begin + n) of a view. */
static TokView tok_part(const TokView *v, size_t begin, size_t n) {
    TokView part = {v->p + begin, n, v->from ? v->from + begin : NULL, v->to ? v->to + begin : NULL, v->base + begin};
    return part;
}

/* Cuts added tokens out of v and hands the rest on: stage 0 on the text as given, stage 1 on normalized text.
   added_vocabulary.rs find_matches: leftmost-longest, the search goes on behind a match even where it is then
   rejected. */
static void tok_cut(TokState *S, TokView v, int stage, bool first) {
    const Tokenizer *t = S->t;
    const TokTrie *trie = &t->trie[stage];
    size_t done = 0, i = 0, len = 0;
    uint32_t cp;
    while (trie->nodes && i < v.n) {
        while (i < v.n && !trie->first[(uint8_t)v.p[i]]) i++;
        int32_t hit = i < v.n ? tok_trie_match(trie, v.p + i, v.n - i, &len) : -1;
        if (hit < 0) { i++; continue; }
        const TokAdded *a = &t->added[hit];
        size_t begin = i, end = i + len;
        i = end;
        if (a->single_word) {
            size_t p = begin;
            while (p > 0 && (v.p[--p] & 0xC0) == 0x80) {}
            if (begin > 0) { utf8_next(v.p + p, &cp); if (uni_is_word(t->uni, cp)) continue; }
            if (end < v.n) { utf8_next(v.p + end, &cp); if (uni_is_word(t->uni, cp)) continue; }
        }
        while (a->lstrip && begin > done) {
            size_t p = begin - 1;
            while (p > 0 && (v.p[p] & 0xC0) == 0x80) p--;
            utf8_next(v.p + p, &cp);
            if (!(uni_flags(t->uni, cp) & UNI_SPACE) || p < done) break;
            begin = p;
        }
        if (a->rstrip) end = tok_run(t->uni, v.p, end, v.n, UNI_SPACE);
        if (done < begin) {
            TokView part = tok_part(&v, done, begin - done);
            if (stage == 0) tok_cut(S, tok_normalize(S, part), 1, first && done == 0);
            else tok_words(S, part, first && done == 0);
        }
        S->view = v;
        tok_emit(S, a->id, begin, end);
        done = end;
    }
    if (done < v.n) {
        TokView part = tok_part(&v, done, v.n - done);
        if (stage == 0) tok_cut(S, tok_normalize(S, part), 1, first && done == 0);
        else tok_words(S, part, first && done == 0);
    }
}

static bool tok_encode(const Tokenizer *t, TokenIds *out, const char *text, size_t bytes, const TextSpan *spans,
                       size_t nspans, bool map, int flags, Error *err) {
    TokState S;
    out->count = 0;
    if (bytes == 0) text = "";      /* NULL is a fine empty text; NULL + 0 is not fine C */
    if (bytes >= ((size_t)1 << 31) / t->growth[0])
        return fail(err, "text of %zu bytes is too long to tokenize; text; split it", bytes);
    size_t bad = utf8_invalid(text, bytes);
    if (bad < bytes) return fail(err, "invalid UTF-8 at byte %zu; text; convert it to UTF-8", bad);
    for (size_t i = 0; i < nspans; i++)
        if (spans[i].begin > spans[i].end || spans[i].end > bytes || (i && spans[i].begin < spans[i - 1].end))
            return fail(err,
                        "span %zu [%zu,%zu) is out of order or beyond the text of %zu bytes; tokenizer_encode_spans; "
                        "pass ascending, separate spans",
                        i, spans[i].begin, spans[i].end, bytes);
    memset(&S, 0, sizeof S);
    S.t = t; S.out = out; S.spans = spans; S.nspans = nspans; S.map = map;
    for (int i = 0; i < t->nbefore && (flags & TOK_ADD_SPECIAL); i++) tok_emit_range(&S, t->before[i], 0, 0);
    TokView v = {text, bytes, NULL, NULL, 0};
    tok_cut(&S, v, 0, true);
    for (int i = 0; i < t->nafter && (flags & TOK_ADD_SPECIAL); i++) tok_emit_range(&S, t->after[i], 0, 0);
    tok_state_free(&S);
    return S.memory_failed ? fail(err, "out of memory while tokenizing %zu bytes; text; free some memory", bytes)
                           : true;
}

bool tokenizer_encode(const Tokenizer *t, TokenIds *out, const char *text, size_t bytes, int flags, Error *err) {
    return tok_encode(t, out, text, bytes, NULL, 0, false, flags, err);
}
bool tokenizer_encode_spans(const Tokenizer *t, TokenIds *out, const char *text, size_t bytes, const TextSpan *spans,
                            size_t nspans, int flags, Error *err) {
    return tok_encode(t, out, text, bytes, spans, nspans, true, flags, err);
}

/* =====================================================================================================================
   11  Decode
   The decoder is a list of steps over a list of strings, one string per token, as in the library (decoders/).
   ================================================================================================================== */

typedef struct TokList { Text text; size_t *ends; size_t n; } TokList;      /* string i is text[ends[i-1], ends[i]) */

static void tok_list_end(TokList *l) { l->ends[l->n++] = l->text.length; }

/* String::from_utf8_lossy: each maximal prefix of a character that goes wrong becomes one U+FFFD. */
static void tok_lossy(Text *o, const char *s, size_t n) {
    for (size_t i = 0; i < n;) {
        size_t bad = utf8_invalid(s + i, n - i), k = 1;
        text_append(o, s + i, bad);
        if ((i += bad) == n) break;
        uint8_t c = (uint8_t)s[i], d = i + 1 < n ? (uint8_t)s[i + 1] : 0;
        size_t want = c >= 0xF0 && c <= 0xF4 ? 4 : c >= 0xE0 && c < 0xF0 ? 3 : c >= 0xC2 && c < 0xE0 ? 2 : 1;
        bool second = (d & 0xC0) == 0x80 && !(c == 0xE0 && d < 0xA0) && !(c == 0xED && d > 0x9F) &&
                      !(c == 0xF0 && d < 0x90) && !(c == 0xF4 && d > 0x8F);
        if (want > 1 && second) for (k = 2; k < want && i + k < n && ((uint8_t)s[i + k] & 0xC0) == 0x80;) k++;
        text_string(o, "\xEF\xBF\xBD");
        i += k;
    }
}

static void tok_flush_bytes(TokList *o, Text *bytes) {      /* ByteFallback: a run of byte tokens is text, or one
                                                               U+FFFD per byte */
    size_t n = bytes->length;
    if (n == 0) return;
    if (utf8_invalid(bytes->at, n) == n) { text_append(&o->text, bytes->at, n); tok_list_end(o); }
    else for (size_t i = 0; i < n; i++) { text_string(&o->text, "\xEF\xBF\xBD"); tok_list_end(o); }
    bytes->length = 0;
}

static void tok_decode_step(const TokStep *step, const TokList *in, TokList *o, Text *scratch) {
    uint32_t cp;
    o->text.length = o->n = scratch->length = 0;
    for (size_t i = 0, at = 0; i < in->n; at = in->ends[i++]) {
        size_t n = in->ends[i] - at, k = 0;
        const char *s = n ? in->text.at + at : "";
        switch (step->kind) {
            case TOK_DEC_FUSE: text_append(&o->text, s, n); break;
            case TOK_DEC_BYTELEVEL: {                          /* a token with any character outside the alphabet
                                                                  stands for itself */
                size_t mark = scratch->length;
                for (k = 0; k < n; ) {
                    k += (size_t)utf8_next(s + k, &cp);
                    char b = (char)tok_char_byte(cp);
                    if (tok_char_byte(cp) < 0) { scratch->length = mark; text_append(scratch, s, n); break; }
                    text_append(scratch, &b, 1);
                }
                break;
            }
            case TOK_DEC_REPLACE:
                for (k = 0; k < n;) {
                    if (n - k >= step->an && memcmp(s + k, step->a, step->an) == 0) {
                        text_append(&o->text, step->b, step->bn);
                        k += step->an;
                    } else text_append(&o->text, s + k++, 1);
                }
                tok_list_end(o);
                break;
            case TOK_DEC_FALLBACK: {
                int v = 0;
                bool byte = n == 6 && memcmp(s, "<0x", 3) == 0 && s[5] == '>';
                for (k = 3; byte && k < 5; k++) {
                    int d = s[k] >= '0' && s[k] <= '9'   ? s[k] - '0'
                            : s[k] >= 'A' && s[k] <= 'F' ? s[k] - 'A' + 10
                            : s[k] >= 'a' && s[k] <= 'f' ? s[k] - 'a' + 10
                                                         : -1;
                    byte = d >= 0;
                    v = v * 16 + d;
                }
                if (byte) { char b = (char)v; text_append(scratch, &b, 1); break; }
                tok_flush_bytes(o, scratch);
                text_append(&o->text, s, n);
                tok_list_end(o);
                break;
            }
            case TOK_DEC_STRIP: {
                size_t left = 0, right = 0;
                while (left < step->start && n - k >= step->an && memcmp(s + k, step->a, step->an) == 0) {
                    k += step->an;
                    left++;
                }
                while (right < step->stop && n - k >= step->an && memcmp(s + n - step->an, step->a, step->an) == 0) {
                    n -= step->an;
                    right++;
                }
                text_append(&o->text, s + k, n - k);
                tok_list_end(o);
                break;
            }
            case TOK_DEC_METASPACE:
                while (k < n) {
                    if (n - k >= 3 && memcmp(s + k, tok_meta, 3) == 0) {
                        if (i > 0 || !step->start) text_append(&o->text, " ", 1);
                        k += 3;
                    } else text_append(&o->text, s + k++, 1);
                }
                tok_list_end(o);
                break;
        }
    }
    if (step->kind == TOK_DEC_FALLBACK) tok_flush_bytes(o, scratch);
    if (step->kind == TOK_DEC_BYTELEVEL) tok_lossy(&o->text, scratch->at, scratch->length);
    if (step->kind == TOK_DEC_BYTELEVEL || step->kind == TOK_DEC_FUSE) tok_list_end(o);
}

char *tokenizer_decode(const Tokenizer *t, const int32_t *ids, size_t count, bool skip_special, size_t *bytes) {
    TokList list[2];
    Text scratch = TEXT_EMPTY;
    int at = 0;
    memset(list, 0, sizeof list);
    /* Steps never make more strings than there are tokens, except that every byte of a byte run may become one: still
       one per token. */
    list[0].ends = (size_t *)malloc((count + 2) * sizeof(size_t));
    list[1].ends = (size_t *)malloc((count + 2) * sizeof(size_t));
    if (!list[0].ends || !list[1].ends) { free(list[0].ends); free(list[1].ends); return NULL; }
    for (size_t i = 0; i < count; i++) {
        int32_t id = ids[i];
        if (id < 0 || id >= t->nids || !(t->flags[id] & TOK_KNOWN) || (skip_special && (t->flags[id] & TOK_SPECIAL)))
            continue;
        if (!t->has_decoder && list[0].n) text_append(&list[0].text, " ", 1);
        text_append(&list[0].text, t->strings + t->entries[id].shown, t->entries[id].shown_n);
        tok_list_end(&list[0]);
    }
    for (int i = 0; i < t->ndec; i++, at = !at) tok_decode_step(&t->dec[i], &list[at], &list[!at], &scratch);
    Text *b = &list[at].text;
    text_room(b, 0);
    bool failed = list[0].text.failed || list[1].text.failed || scratch.failed;
    free(list[0].ends); free(list[1].ends); text_free(&scratch); text_free(&list[!at].text);
    if (failed) { text_free(b); return NULL; }
    b->at[b->length] = 0;
    if (bytes) *bytes = b->length;
    return b->at;
}

/* =====================================================================================================================
   12  Opening a folder
   ================================================================================================================== */

/* A folder's optional JSON file: true with doc->root NULL where it does not exist. */
static bool tok_optional(const char *folder, const char *file, char **text, size_t *bytes, Error *err) {
    char path[4200];
    struct stat st;
    *text = NULL;
    snprintf(path, sizeof path, "%s/%s", folder, file);
    if (stat(path, &st) != 0 && errno == ENOENT) return true;
    return (*text = read_file(path, bytes, err)) != NULL;
}

/* "bos_token": "<s>" or {"content": "<s>"} or null. */
static bool tok_named(TokLoader *l, const Json *config, const char *key, int32_t *id) {
    const Json *j = json_get(config, key);
    if (j && j->type == JSON_OBJECT) j = json_get(j, "content");
    *id = -1;
    if (json_is_null(j)) return true;
    if (j->type != JSON_STRING) return tok_broken(l, "not a string:", key);
    *id = tok_find_spelling(l->t, j->str, j->count);
    return *id >= 0 || fail(l->err, "%s \"%.100s\" is not in the vocabulary; %s; make tokenizer_config.json and "
                                    "tokenizer.json agree", key, j->str, l->name);
}

static ChatTemplate chat_recognise(const char *text, size_t bytes);      /* chapter 13 */

static void tok_chat(Tokenizer *t, char *text, size_t bytes) {
    free(t->chat_text);
    t->chat = chat_recognise(text, bytes);
    t->chat_text = text;
    t->chat_bytes = bytes;
}

static bool tok_load_config(TokLoader *l, const Json *config) {
    const Json *c = json_get(config, "chat_template");
    if (config->type != JSON_OBJECT) return tok_broken(l, "not an object", "");
    if (!tok_named(l, config, "bos_token", &l->t->bos) || !tok_named(l, config, "eos_token", &l->t->eos) ||
        !tok_named(l, config, "pad_token", &l->t->pad))
        return false;
    if (c && c->type == JSON_ARRAY) {                 /* several named templates: transformers takes "default" */
        const Json *list = c;
        c = NULL;
        for (const Json *i = list->child; i; i = i->next) {
            const Json *name = json_get(i, "name");
            if (name && name->type == JSON_STRING && strcmp(name->str, "default") == 0) c = json_get(i, "template");
        }
        l->t->chat = CHAT_UNKNOWN;
    }
    if (!json_is_null(c)) l->t->chat = CHAT_UNKNOWN;
    if (c && c->type == JSON_STRING) tok_chat(l->t, text_copy_bytes(c->str, c->count), c->count);
    return true;
}

static bool tok_load_stops(TokLoader *l, const Json *config) {
    const Json *e = json_get(config, "eos_token_id");
    int32_t id;
    if (json_is_null(e)) return true;
    for (const Json *i = e->type == JSON_ARRAY ? e->child : e; i; i = e->type == JSON_ARRAY ? i->next : NULL) {
        if (!tok_id_value(i, &id)) return tok_broken(l, "eos_token_id is not an id", "");
        if (l->t->nstop == 32) return tok_refuse(l, "more than 32 stop tokens", "");
        l->t->stop[l->t->nstop++] = id;
    }
    return true;
}

Tokenizer *tokenizer_open(const char *folder, Error *err) {
    static bool (*const load[2])(TokLoader *, const Json *) = {tok_load_config, tok_load_stops};
    static const char *const files[2] = {"tokenizer_config.json", "generation_config.json"};
    char path[4200], *text;
    size_t bytes = 0;
    if (strlen(folder) > 4000) {
        fail(err, "folder name is too long; %.100s...; use a shorter path", folder);
        return NULL;
    }
    snprintf(path, sizeof path, "%s/tokenizer.json", folder);
    text = read_file(path, &bytes, err);
    Tokenizer *t = text ? tokenizer_parse(text, bytes, path, err) : NULL;
    free(text);
    for (int i = 0; i < 2 && t; i++) {
        JsonDoc doc;
        TokLoader l = {t, path, err};
        snprintf(path, sizeof path, "%s/%s", folder, files[i]);
        bool ok = tok_optional(folder, files[i], &text, &bytes, err);
        if (ok && text) {
            t->fingerprint = hash_bytes(t->fingerprint, text, bytes);
            ok = json_parse(&doc, text, bytes, path, 1, err);
            if (ok) ok = load[i](&l, doc.root);
            if (i == 0) t->config = doc;
            else json_free(&doc);
        }
        free(text);
        if (!ok) { tokenizer_free(t); return NULL; }
    }
    if (t && !tok_optional(folder, "chat_template.jinja", &text, &bytes, err)) { tokenizer_free(t); return NULL; }
    if (t && text) {
        t->fingerprint = hash_bytes(t->fingerprint, text, bytes);
        tok_chat(t, text, bytes);
    }
    if (!t || t->chat_text) return t;
    if (!tok_optional(folder, "chat_template.json", &text, &bytes, err)) { tokenizer_free(t); return NULL; }
    if (text) {                                       /* of processors that wrote it beside the tokenizer's files */
        JsonDoc doc;
        snprintf(path, sizeof path, "%s/chat_template.json", folder);
        bool ok = json_parse(&doc, text, bytes, path, 1, err);
        const Json *c = ok ? json_get(doc.root, "chat_template") : NULL;
        t->fingerprint = hash_bytes(t->fingerprint, text, bytes);
        free(text);
        if (ok && (!c || c->type != JSON_STRING))
            ok = fail(err, "no \"chat_template\" that is a string; %s; correct it, or take the file away", path);
        if (c && ok) tok_chat(t, text_copy_bytes(c->str, c->count), c->count);
        json_free(&doc);
        if (!ok) { tokenizer_free(t); return NULL; }
    }
    return t;
}

/* =====================================================================================================================
   13  Chat templates
   Jinja is a programming language; these are some of its programs by hand, the interpreter for all others is
   data/chat.h. A template is known by the FNV-1a hash of its text, so that an edited one is not rendered nearly right.
   Comments quote the template where it surprises.
   ================================================================================================================== */

static const struct { const char *name; ChatTemplate chat; } chat_names[] = {
    {"qwen3", CHAT_QWEN3}, {"qwen2.5", CHAT_QWEN2_5}, {"chatml", CHAT_CHATML}, {"zephyr", CHAT_ZEPHYR},
    {"tinyllama", CHAT_ZEPHYR}, {"llama2", CHAT_LLAMA2}, {"llama3", CHAT_LLAMA3}, {"llama3-gen", CHAT_LLAMA3_GEN},
    {"llama3.1", CHAT_LLAMA31}, {"llama3.2", CHAT_LLAMA32}, {"qwen3-instruct-2507", CHAT_QWEN3_INSTRUCT},
    {"qwen3-thinking-2507", CHAT_QWEN3_THINKING}, {"qwen2", CHAT_QWEN2}, {"smollm2", CHAT_SMOLLM2},
    {"mistral-v0.1", CHAT_MISTRAL1}, {"mistral-v0.2", CHAT_MISTRAL2}, {"mistral-v0.2-system", CHAT_MISTRAL2_SYSTEM},
    {"mistral-v0.3", CHAT_MISTRAL3}, {"mistral-nemo", CHAT_MISTRAL_NEMO}, {"deepseek-r1", CHAT_DEEPSEEK_R1}};
enum { CHAT_NAMES = sizeof chat_names / sizeof *chat_names };

/* FNV-1a 64 of the published texts, without the one newline at the end that Jinja drops as well. */
static const struct { uint64_t print; ChatTemplate chat; } chat_prints[] = {
    {0x959a4551391a6549ull, CHAT_QWEN3},       /* Qwen/Qwen3-* */
    {0x2bfdb7aa9754484eull, CHAT_QWEN3},       /* an earlier text; it takes content that is no string otherwise */
    {0x3751fe8ea48448abull, CHAT_QWEN3_INSTRUCT},   /* Qwen/Qwen3-*-Instruct-2507 */
    {0xcd0d41a64dfce181ull, CHAT_QWEN3_THINKING},   /* Qwen/Qwen3-*-Thinking-2507 */
    {0xbe10679872d5c79aull, CHAT_CHATML},      /* data/base: plain ChatML */
    {0xe642ce246d7f2e3dull, CHAT_QWEN2_5},     /* Qwen/Qwen2.5-*-Instruct */
    {0xcd8b49000db02c2cull, CHAT_ZEPHYR},      /* TinyLlama/TinyLlama-1.1B-Chat-v1.0 */
    {0xf344eecf1bd3a427ull, CHAT_LLAMA2},      /* meta-llama/Llama-2-*-chat */
    {0x74891e390e614ae2ull, CHAT_LLAMA3},      /* meta-llama/Meta-Llama-3-*-Instruct, April 2024 */
    {0xe60067a5537498eull, CHAT_LLAMA3_GEN},   /* the same with {% if add_generation_prompt %} */
    {0xcc0368e1ffb6b958ull, CHAT_LLAMA31},     /* meta-llama/Llama-3.1-*-Instruct */
    {0x368f4c34b8554414ull, CHAT_LLAMA32},     /* meta-llama/Llama-3.2-*-Instruct */
    {0x8a87094e0e1e24c5ull, CHAT_QWEN2},       /* Qwen/Qwen2-*-Instruct */
    {0x75e88977b2787cd7ull, CHAT_QWEN2},       /* the same with \n spelled out */
    {0x45ec583d4d25bc3aull, CHAT_SMOLLM2},     /* HuggingFaceTB/SmolLM2-*-Instruct */
    {0x09b5156a5cf6abfcull, CHAT_SMOLLM2},     /* the same with \n spelled out */
    {0xc730acc029ce6ee0ull, CHAT_MISTRAL1},    /* mistralai/Mistral-7B-Instruct-v0.1 */
    {0x8c734b90b4f8d84dull, CHAT_MISTRAL2},    /* mistralai/Mistral-7B-Instruct-v0.2, Mixtral-8x7B-Instruct-v0.1 */
    {0xcfe9b32d20c1e9adull, CHAT_MISTRAL2_SYSTEM},  /* the later text of v0.1 and v0.2 */
    {0x2487e6e79d6345cfull, CHAT_MISTRAL3},    /* mistralai/Mistral-7B-Instruct-v0.3 */
    {0xc134bf40d6f56d76ull, CHAT_MISTRAL_NEMO},/* mistralai/Mistral-Nemo-Instruct-2407 */
    {0x845fdf813c637ee2ull, CHAT_DEEPSEEK_R1}, /* deepseek-ai/DeepSeek-R1-Distill-* */
};

static uint64_t chat_fingerprint(const char *text, size_t bytes) {
    uint64_t h = 0xCBF29CE484222325ull;
    if (bytes && text[bytes - 1] == '\n') bytes--;
    for (size_t i = 0; i < bytes; i++) h = (h ^ (uint8_t)text[i]) * 0x100000001B3ull;
    return h;
}

static ChatTemplate chat_recognise(const char *text, size_t bytes) {
    uint64_t h = chat_fingerprint(text, bytes);
    for (size_t i = 0; i < sizeof chat_prints / sizeof *chat_prints; i++)
        if (chat_prints[i].print == h) return chat_prints[i].chat;
    return CHAT_UNKNOWN;
}

const char *chat_template_name(ChatTemplate c) {
    for (int i = 0; i < CHAT_NAMES; i++) if (chat_names[i].chat == c) return chat_names[i].name;
    return c == CHAT_NONE ? "none" : "unknown";
}

const char *chat_template_known(int i) { return i < CHAT_NAMES ? chat_names[i].name : NULL; }
bool chat_template_by_name(const char *name, ChatTemplate *out, Error *err) {
    const char *names[CHAT_NAMES];
    char list[512] = "";
    for (int i = 0; i < CHAT_NAMES; i++) {
        names[i] = chat_names[i].name;
        if (strcmp(name, names[i]) == 0) { *out = chat_names[i].chat; return true; }
        snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", i ? ", " : "", names[i]);
    }
    const char *near = name_nearest(name, names, CHAT_NAMES);
    return fail(err, "unknown chat template \"%.60s\"; chat template name; %s%s%sknown: %s", name,
                near ? "did you mean \"" : "", near ? near : "", near ? "\"? " : "", list);
}

typedef struct ChatView { const char *s; size_t n; } ChatView;
typedef struct ChatRender {
    const Tokenizer *t; const ChatMessage *m; size_t count; ChatOptions o; Error *err;
    Text b;
    TextSpan *spans; size_t nspans;
    size_t thoughts, systems;               /* left out */
    bool tool_open;                         /* DeepSeek R1: the tools' answers are not ended yet */
    const char *bos, *eos;
} ChatRender;

static void chat_put(ChatRender *r, const char *s) { text_string(&r->b, s); }
static void chat_view(ChatRender *r, ChatView v) { text_append(&r->b, v.s, v.n); }
static bool chat_is(const ChatMessage *m, const char *role) { return strcmp(m->role, role) == 0; }
static ChatView chat_content(const ChatMessage *m) {
    ChatView v = {m->content ? m->content : "", m->content_bytes};
    return v;
}
static void chat_span(ChatRender *r, size_t begin) {
    r->spans[r->nspans].begin = begin;
    r->spans[r->nspans++].end = r->b.length;
}

/* Python's str.strip(): White_Space plus the four information separators. */
static ChatView chat_strip(const Tokenizer *t, ChatView v) {
    uint32_t cp;
    while (v.n) {
        size_t k = (size_t)utf8_next(v.s, &cp);
        if (!(uni_flags(t->uni, cp) & UNI_SPACE) && !(cp >= 0x1C && cp <= 0x1F)) break;
        v.s += k; v.n -= k;
    }
    while (v.n) {
        size_t p = v.n - 1;
        while (p > 0 && (v.s[p] & 0xC0) == 0x80) p--;
        utf8_next(v.s + p, &cp);
        if (!(uni_flags(t->uni, cp) & UNI_SPACE) && !(cp >= 0x1C && cp <= 0x1F)) break;
        v.n = p;
    }
    return v;
}
static ChatView chat_lstrip_newlines(ChatView v) { while (v.n && v.s[0] == '\n') { v.s++; v.n--; } return v; }
static ChatView chat_rstrip_newlines(ChatView v) { while (v.n && v.s[v.n - 1] == '\n') v.n--; return v; }

static size_t chat_find(ChatView v, const char *what, bool last) {      /* offset of the first or last occurrence;
                                                                           v.n if none */
    size_t n = strlen(what), found = v.n;
    for (size_t i = 0; i + n <= v.n; i++) if (memcmp(v.s + i, what, n) == 0) { found = i; if (!last) break; }
    return found;
}

static bool chat_no_tools(ChatRender *r, ChatTemplate kind, const char *others) {
    return fail(r->err, "the chat template %s has no place for tools; tools; use %s", chat_template_name(kind), others);
}

static bool chat_bad_role(ChatRender *r, ChatTemplate kind, size_t i) {
    return fail(r->err, "the chat template %s has no place for role \"%.60s\"; message %zu; use system (first), user "
                        "and assistant", chat_template_name(kind), r->m[i].role, i + 1);
}

/* "<|im_start|>user\n<tool_response>\nCONTENT\n</tool_response><|im_end|>\n", neighbouring tool messages share one
   turn. */
static void chat_tool_response(ChatRender *r, size_t i) {
    if (i == 0 || !chat_is(&r->m[i - 1], "tool")) chat_put(r, "<|im_start|>user");
    chat_put(r, "\n<tool_response>\n");
    chat_view(r, chat_content(&r->m[i]));
    chat_put(r, "\n</tool_response>");
    if (i + 1 == r->count || !chat_is(&r->m[i + 1], "tool")) chat_put(r, "<|im_end|>\n");
}

static const char chat_r1_eos[] = "<\xEF\xBD\x9C" "end\xE2\x96\x81of\xE2\x96\x81sentence\xEF\xBD\x9C>";

/* What stands in an assistant's message: its thought, given aside or in the content before </think>, without line
   breaks around it, and the rest. thinks: there is a thought, were it only line breaks. */
typedef struct ChatTurn { ChatView thought, content; bool thinks; } ChatTurn;

static ChatTurn chat_turn(const ChatMessage *m, bool inside) {
    ChatTurn t = {{m->reasoning ? m->reasoning : "", m->reasoning ? m->reasoning_bytes : 0}, chat_content(m), false};
    size_t first = chat_find(t.content, "</think>", false), last = chat_find(t.content, "</think>", true);
    if (inside && !m->reasoning && first < t.content.n) {
        t.thought.s = t.content.s; t.thought.n = first;
        t.thought = chat_rstrip_newlines(t.thought);
        size_t open = chat_find(t.thought, "<think>", true);
        if (open < t.thought.n) { t.thought.s += open + 7; t.thought.n -= open + 7; }
        t.content.s += last + 8; t.content.n -= last + 8;
        t.content = chat_lstrip_newlines(t.content);
    }
    t.thinks = t.thought.n > 0;
    t.thought = chat_rstrip_newlines(chat_lstrip_newlines(t.thought));
    return t;
}

/* The end-of-turn token. */
static const char *chat_end(const ChatRender *r, ChatTemplate kind) {
    switch (kind) {
        case CHAT_LLAMA3: case CHAT_LLAMA3_GEN: case CHAT_LLAMA31: case CHAT_LLAMA32: return "<|eot_id|>";
        case CHAT_ZEPHYR: case CHAT_LLAMA2: case CHAT_MISTRAL1: case CHAT_MISTRAL2: case CHAT_MISTRAL2_SYSTEM:
        case CHAT_MISTRAL3: case CHAT_MISTRAL_NEMO: return r->eos;
        case CHAT_DEEPSEEK_R1: return chat_r1_eos;
        default: return "<|im_end|>";
    }
}

/* A message's content in its place, as the templates that know nothing of thoughts write it. */
static void chat_plain(ChatRender *r, ChatTemplate kind, ChatView content) {
    bool strip = false, before = false, after = kind == CHAT_LLAMA2;
    switch (kind) {
        case CHAT_LLAMA2: case CHAT_MISTRAL3: strip = before = true; break;
        case CHAT_MISTRAL2_SYSTEM: before = true; break;
        case CHAT_LLAMA3: case CHAT_LLAMA3_GEN: case CHAT_LLAMA31: case CHAT_LLAMA32: strip = true; break;
        default: break;
    }
    if (before) chat_put(r, " ");
    chat_view(r, strip ? chat_strip(r->t, content) : content);
    if (after) chat_put(r, " ");
}

/* What the model is to say for message m behind its prompt, up to and including the end-of-turn token: a span. */
static void chat_answer(ChatRender *r, ChatTemplate kind, const ChatMessage *m) {
    size_t begin = r->b.length;
    /* Behind a tool's answer R1's template leaves the content alone; with Qwen3's thinking off nobody is asked to. */
    bool inside = kind == CHAT_QWEN3 || kind == CHAT_QWEN3_THINKING || (kind == CHAT_DEEPSEEK_R1 && !r->tool_open);
    bool asked = inside && !(kind == CHAT_QWEN3 && r->o.enable_thinking == 0);
    ChatTurn t = chat_turn(m, inside);
    if (asked) {
        if (kind == CHAT_QWEN3) chat_put(r, "<think>\n");            /* the others' prompts end with it */
        chat_view(r, t.thought); chat_put(r, "\n</think>\n\n");
    } else if (t.thought.n) r->thoughts++;
    chat_plain(r, kind, inside ? chat_lstrip_newlines(t.content) : t.content);
    chat_put(r, chat_end(r, kind));
    chat_span(r, begin);
}

/* An assistant turn of a template that shows no thoughts. */
static void chat_reply(ChatRender *r, ChatTemplate kind, const ChatMessage *m) {
    size_t begin = r->b.length;
    if (chat_turn(m, false).thought.n) r->thoughts++;
    chat_plain(r, kind, chat_content(m));
    chat_put(r, chat_end(r, kind));
    chat_span(r, begin);
}

/* Qwen3's thinking templates: an assistant turn after the last user query is shown with a <think> block. What the
   prompt that asks for it ends with is not for the model to say: with thinking off the empty block, in Thinking-2507
   always the block's beginning. */
static void chat_qwen3_assistant(ChatRender *r, ChatTemplate kind, size_t i, bool after_query) {
    ChatTurn t = chat_turn(&r->m[i], true);
    bool block = after_query && (i + 1 == r->count || t.thinks), off = kind == CHAT_QWEN3 && r->o.enable_thinking == 0;
    size_t begin = r->b.length, open = begin + sizeof "<think>" - 1;
    if (block) {
        chat_put(r, "<think>\n"); chat_view(r, t.thought); chat_put(r, "\n</think>\n\n");
        if (off) begin = t.thought.n ? open : r->b.length;
        if (kind == CHAT_QWEN3_THINKING) begin = open + 1;
    } else if (t.thought.n) r->thoughts++;
    chat_view(r, block ? chat_lstrip_newlines(t.content) : t.content);
    chat_put(r, "<|im_end|>");
    chat_span(r, begin);
}

static bool chat_chatml(ChatRender *r, ChatTemplate kind) {
    const ChatMessage *m = r->m;
    bool system = chat_is(&m[0], "system"), thinks = kind == CHAT_QWEN3 || kind == CHAT_QWEN3_THINKING;
    bool tools = thinks || kind == CHAT_QWEN2_5 || kind == CHAT_QWEN3_INSTRUCT;      /* and the role tool */
    size_t query = r->count - 1;
    const char *fallback = kind == CHAT_QWEN2 ? "You are a helpful assistant." : NULL;
    if (kind == CHAT_QWEN2_5) fallback = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.";
    if (kind == CHAT_SMOLLM2) fallback = "You are a helpful AI assistant named SmolLM, trained by Hugging Face";
    for (size_t i = r->count; i-- > 0;) {                 /* the last user message that is not a tool's answer in
                                                             disguise */
        ChatView c = chat_content(&m[i]);
        bool tool = c.n >= 16 && memcmp(c.s, "<tool_response>", 15) == 0 &&
                    memcmp(c.s + c.n - 16, "</tool_response>", 16) == 0;
        if (chat_is(&m[i], "user") && !tool) { query = i; break; }
    }
    if (r->o.tools && !tools) return chat_no_tools(r, kind, "qwen2.5 or qwen3");
    if (r->o.tools && r->o.tools->count) {
        chat_put(r, "<|im_start|>system\n");
        if (system) chat_view(r, chat_content(&m[0])); else if (fallback) chat_put(r, fallback);
        if (system || fallback) chat_put(r, "\n\n");
        chat_put(r, "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
                    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>");
        for (const Json *t = r->o.tools->child; t; t = t->next) { chat_put(r, "\n"); json_dumps(&r->b, t, 0); }
        chat_put(r, "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
                    "within <tool_call></tool_call> XML tags:\n<tool_call>\n"
                    "{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call><|im_end|>\n");
    } else if (system || fallback) {
        chat_put(r, "<|im_start|>system\n");
        if (system) chat_view(r, chat_content(&m[0])); else chat_put(r, fallback);
        chat_put(r, "<|im_end|>\n");
    }
    for (size_t i = system ? 1 : 0; i < r->count; i++) {
        bool assistant = chat_is(&m[i], "assistant");
        if (tools && chat_is(&m[i], "tool")) { chat_tool_response(r, i); continue; }
        if (!assistant && !chat_is(&m[i], "user") && !chat_is(&m[i], "system")) return chat_bad_role(r, kind, i);
        chat_put(r, "<|im_start|>"); chat_put(r, m[i].role); chat_put(r, "\n");
        if (assistant && thinks) chat_qwen3_assistant(r, kind, i, i > query);
        else if (assistant) chat_reply(r, kind, &m[i]);
        else { chat_view(r, chat_content(&m[i])); chat_put(r, "<|im_end|>"); }
        chat_put(r, "\n");
    }
    if (r->o.add_generation_prompt) {
        chat_put(r, "<|im_start|>assistant\n");
        if (kind == CHAT_QWEN3 && r->o.enable_thinking == 0) chat_put(r, "<think>\n\n</think>\n\n");
        if (kind == CHAT_QWEN3_THINKING) chat_put(r, "<think>\n");
    }
    return true;
}

static bool chat_zephyr(ChatRender *r) {
    for (size_t i = 0; i < r->count; i++) {
        const ChatMessage *m = &r->m[i];
        bool assistant = chat_is(m, "assistant");
        if (!assistant && !chat_is(m, "user") && !chat_is(m, "system")) return chat_bad_role(r, CHAT_ZEPHYR, i);
        chat_put(r, "<|"); chat_put(r, m->role); chat_put(r, "|>\n");
        if (assistant) chat_reply(r, CHAT_ZEPHYR, m);
        else { chat_view(r, chat_content(m)); chat_put(r, r->eos); }
        chat_put(r, "\n");
    }
    if (r->o.add_generation_prompt) chat_put(r, "<|assistant|>\n");
    return true;
}

/* "role" of message i, counted from `first`, must take turns: user, assistant, user, ... */
static bool chat_alternates(ChatRender *r, ChatTemplate kind, size_t i, size_t first) {
    bool user = chat_is(&r->m[i], "user");
    if (user != ((i - first) % 2 == 0))
        return fail(r->err, "Conversation roles must alternate user/assistant/user/assistant/...; message %zu; "
                            "reorder the messages", i + 1);
    return user || chat_is(&r->m[i], "assistant") || chat_bad_role(r, kind, i);
}

/* ' ' + content + ' ' + eos: the span takes in both spaces, for the model, prompted with "[/INST]", has to emit them.
   A system message stands only first. */
static bool chat_llama2(ChatRender *r) {
    size_t first = chat_is(&r->m[0], "system");
    for (size_t i = first; i < r->count; i++) {
        const ChatMessage *m = &r->m[i];
        if (!chat_alternates(r, CHAT_LLAMA2, i, first)) return false;
        if (chat_is(m, "assistant")) { chat_reply(r, CHAT_LLAMA2, m); continue; }
        chat_put(r, r->bos); chat_put(r, "[INST] ");
        if (i == first && first) {                       /* the strip applies to the joined text */
            Text joined = TEXT_EMPTY;
            ChatView s = chat_content(&r->m[0]), c = chat_content(m), all;
            text_string(&joined, "<<SYS>>\n"); text_append(&joined, s.s, s.n);
            text_string(&joined, "\n<</SYS>>\n\n"); text_append(&joined, c.s, c.n);
            all.s = joined.at; all.n = joined.length;
            if (joined.failed) r->b.failed = true; else chat_view(r, chat_strip(r->t, all));
            text_free(&joined);
        } else chat_view(r, chat_strip(r->t, chat_content(m)));
        chat_put(r, " [/INST]");
    }
    return true;
}

/* [{"type": "function", "function": {...}}, ...], pieced together by hand in the template: a string is not escaped,
   "return" is left out. */
static bool chat_mistral_tools(ChatRender *r) {
    for (const Json *t = r->o.tools->child; t; t = t->next) {
        const Json *function = json_get(t, "function");
        bool some = false;
        if (!function || function->type != JSON_OBJECT)
            return fail(r->err, "a tool without a \"function\"; tools; "
                                "write {\"type\": \"function\", \"function\": {...}}");
        chat_put(r, "{\"type\": \"function\", \"function\": {");
        for (const Json *c = function->child; c; c = c->next) {
            if (strcmp(c->key, "return") == 0) continue;
            if (some) chat_put(r, ", ");
            some = true;
            chat_put(r, "\""); chat_put(r, c->key); chat_put(r, "\": ");
            if (c->type != JSON_STRING) json_dumps(&r->b, c, 0);
            else { chat_put(r, "\""); text_append(&r->b, c->str, c->count); chat_put(r, "\""); }
        }
        chat_put(r, t->next ? "}}, " : "}}]");
    }
    return true;
}

/* v0.1 and v0.2 know no system message, v0.2's second text puts it before the first user message; v0.3 and Nemo put it
   before the last message, if that is the user's: a conversation that ends with an answer loses it. */
static bool chat_mistral(ChatRender *r, ChatTemplate kind) {
    bool old = kind == CHAT_MISTRAL1 || kind == CHAT_MISTRAL2, second = kind == CHAT_MISTRAL2_SYSTEM;
    bool nemo = kind == CHAT_MISTRAL_NEMO;
    size_t first = !old && chat_is(&r->m[0], "system"), last_user = r->count;
    const char *open = second ? " [INST] " : nemo ? "[INST]" : "[INST] ";
    const char *close = old || second ? " [/INST]" : "[/INST]";
    if (r->o.tools && (old || second)) return chat_no_tools(r, kind, "mistral-v0.3 or mistral-nemo");
    for (size_t i = first; i < r->count; i++) if (chat_is(&r->m[i], "user")) last_user = i;
    chat_put(r, r->bos);
    for (size_t i = first; i < r->count; i++) {
        const ChatMessage *m = &r->m[i];
        if (chat_is(m, "tool") && !old && !second)
            return fail(r->err, "Tool call IDs should be alphanumeric strings with length 9!; message %zu; "
                                "write the answer into a user message", i + 1);
        if (!chat_alternates(r, kind, i, first)) return false;
        if (chat_is(m, "assistant")) { chat_reply(r, kind, m); if (kind == CHAT_MISTRAL1) chat_put(r, " "); continue; }
        ChatView c = chat_content(m), last = chat_content(&r->m[last_user]);
        /* "message == user_messages[-1]" */
        if (r->o.tools && c.n == last.n && (c.n == 0 || memcmp(c.s, last.s, c.n) == 0)) {
            chat_put(r, nemo ? "[AVAILABLE_TOOLS][" : "[AVAILABLE_TOOLS] [");
            if (!chat_mistral_tools(r)) return false;
            chat_put(r, "[/AVAILABLE_TOOLS]");
        }
        chat_put(r, open);
        bool here = first && (second ? i == first : i + 1 == r->count);
        if (here) { chat_view(r, chat_content(&r->m[0])); chat_put(r, "\n\n"); }
        chat_view(r, c);
        chat_put(r, close);
    }
    if (first && (second ? r->count == 1 : r->count == 1 || last_user + 1 != r->count)) r->systems++;
    return true;
}

#define CHAT_R1(name) "<\xEF\xBD\x9C" name "\xEF\xBD\x9C>"
#define CHAT_R1_TOOL(what) CHAT_R1("tool\xE2\x96\x81" what)

/* The last system message opens the text, wherever it stands; every answer loses its thought, the last one too. */
static bool chat_deepseek(ChatRender *r, bool prompt) {
    const ChatMessage *system = NULL;
    bool tools = false;                                   /* ns.is_output_first stays false once it is */
    if (r->o.tools) return chat_no_tools(r, CHAT_DEEPSEEK_R1, "qwen2.5 or qwen3");
    for (size_t i = 0; i < r->count; i++)
        if (chat_is(&r->m[i], "system")) { r->systems += system != NULL; system = &r->m[i]; }
    chat_put(r, r->bos);
    if (system) chat_view(r, chat_content(system));
    for (size_t i = 0; i < r->count; i++) {
        const ChatMessage *m = &r->m[i];
        if (chat_is(m, "user")) { r->tool_open = false; chat_put(r, CHAT_R1("User")); chat_view(r, chat_content(m)); }
        else if (chat_is(m, "tool")) {
            chat_put(r, tools ? "\n" CHAT_R1_TOOL("output\xE2\x96\x81" "begin")
                              : CHAT_R1_TOOL("outputs\xE2\x96\x81" "begin") CHAT_R1_TOOL("output\xE2\x96\x81" "begin"));
            chat_view(r, chat_content(m));
            chat_put(r, CHAT_R1_TOOL("output\xE2\x96\x81" "end"));
            tools = r->tool_open = true;
        } else if (chat_is(m, "assistant")) {
            ChatTurn t = chat_turn(m, true);
            ChatView c = chat_content(m);
            size_t last = chat_find(c, "</think>", true);
            chat_put(r, r->tool_open ? CHAT_R1_TOOL("outputs\xE2\x96\x81" "end") : CHAT_R1("Assistant"));
            size_t begin = r->b.length;
            if (last < c.n && !r->tool_open) { c.s += last + 8; c.n -= last + 8; }
            if (t.thought.n && (m->reasoning || !r->tool_open)) r->thoughts++;
            chat_view(r, c);
            chat_put(r, chat_r1_eos);
            chat_span(r, begin);
            r->tool_open = false;
        } else if (!chat_is(m, "system")) return chat_bad_role(r, CHAT_DEEPSEEK_R1, i);
    }
    if (r->tool_open) chat_put(r, CHAT_R1_TOOL("outputs\xE2\x96\x81" "end"));
    else if (prompt) chat_put(r, CHAT_R1("Assistant") "<think>\n");
    return true;
}

static void chat_header(ChatRender *r, const char *role) {
    chat_put(r, "<|start_header_id|>");
    chat_put(r, role);
    chat_put(r, "<|end_header_id|>\n\n");
}

static bool chat_llama3_turn(ChatRender *r, ChatTemplate kind, size_t i) {
    const ChatMessage *m = &r->m[i];
    bool assistant = chat_is(m, "assistant"),
         tool = kind >= CHAT_LLAMA31 && (chat_is(m, "tool") || chat_is(m, "ipython"));
    if (!assistant && !tool && !chat_is(m, "user") && !chat_is(m, "system")) return chat_bad_role(r, kind, i);
    chat_header(r, tool ? "ipython" : m->role);
    if (assistant) { chat_reply(r, kind, m); return true; }
    /* "message.content is iterable" holds for a string too, so a tool's answer comes out as a JSON string */
    if (tool) text_json_dumps(&r->b, chat_content(m).s, m->content_bytes);
    else chat_view(r, chat_strip(r->t, chat_content(m)));
    chat_put(r, "<|eot_id|>");
    return true;
}

static bool chat_llama3(ChatRender *r, ChatTemplate kind) {
    size_t i = 0;
    chat_put(r, r->bos);
    if (r->o.tools && kind < CHAT_LLAMA31) return chat_no_tools(r, kind, "llama3.1");
    if (kind >= CHAT_LLAMA31) {
        chat_header(r, "system");
        if (r->o.tools) chat_put(r, "Environment: ipython\n");
        chat_put(r, "Cutting Knowledge Date: December 2023\nToday Date: ");
        chat_put(r, r->o.date ? r->o.date : "26 Jul 2024");
        chat_put(r, "\n\n");
        if (chat_is(&r->m[0], "system")) chat_view(r, chat_strip(r->t, chat_content(&r->m[i++])));
        chat_put(r, "<|eot_id|>");
        if (r->o.tools) {
            if (i == r->count || !chat_is(&r->m[i], "user"))
                return fail(r->err,
                            "Cannot put tools in the first user message when there's no first user message!; message "
                            "%zu; start with a user message",
                            i + 1);
            chat_header(r, "user");
            chat_put(r, "Given the following functions, please respond with a JSON for a function call with its proper "
                        "arguments that best answers the given prompt.\n\n"
                        "Respond in the format {\"name\": function name, \"parameters\": dictionary of argument name "
                        "and its value}.Do not use variables.\n\n");
            for (const Json *t = r->o.tools->child; t; t = t->next) { json_dumps(&r->b, t, 4); chat_put(r, "\n\n"); }
            chat_view(r, chat_strip(r->t, chat_content(&r->m[i++]))); chat_put(r, "<|eot_id|>");
        }
    }
    for (; i < r->count; i++) if (!chat_llama3_turn(r, kind, i)) return false;
    if (r->o.add_generation_prompt || kind == CHAT_LLAMA3) chat_header(r, "assistant");
    return true;
}

static bool chat_template(ChatRender *r, ChatTemplate kind) {
    switch (kind) {
        case CHAT_ZEPHYR: return chat_zephyr(r);
        case CHAT_LLAMA2: return chat_llama2(r);
        case CHAT_LLAMA3: case CHAT_LLAMA3_GEN: case CHAT_LLAMA31: case CHAT_LLAMA32: return chat_llama3(r, kind);
        case CHAT_MISTRAL1: case CHAT_MISTRAL2: case CHAT_MISTRAL2_SYSTEM: case CHAT_MISTRAL3: case CHAT_MISTRAL_NEMO:
            return chat_mistral(r, kind);
        case CHAT_DEEPSEEK_R1: return chat_deepseek(r, r->o.add_generation_prompt);
        default: return chat_chatml(r, kind);
    }
}

bool chat_render(ChatText *out, const Tokenizer *t, ChatTemplate kind, const ChatMessage *messages, size_t count,
                 ChatOptions options, Error *err) {
    ChatRender r;
    memset(out, 0, sizeof *out);
    memset(&r, 0, sizeof r);
    if (kind <= CHAT_NONE || kind >= CHAT_UNKNOWN)
        return fail(err, kind == CHAT_NONE
                    ? "the model has no chat template; chat_template; name one, such as chatml, or train on plain text"
                    : "the model's chat template is not one of ours; chat_template; name the closest one, such as "
                      "chatml, if you know it fits");
    if (count == 0) return fail(err, "a conversation without messages; messages; give at least one");
    for (size_t i = 0; i < count; i++) {
        const ChatMessage *m = &messages[i];
        if ((m->content_bytes && utf8_invalid(m->content, m->content_bytes) < m->content_bytes) ||
            (m->reasoning && utf8_invalid(m->reasoning, m->reasoning_bytes) < m->reasoning_bytes))
            return fail(err, "invalid UTF-8; message %zu; convert it to UTF-8", i + 1);
    }
    if (options.as_answer && (count == 1 || !chat_is(&messages[count - 1], "assistant")))
        return fail(err, "no answer to a prompt; message %zu; end with an assistant's message behind others", count);
    r.t = t; r.m = messages; r.count = count; r.o = options; r.err = err;
    r.bos = tokenizer_token(t, t->bos); r.eos = tokenizer_token(t, t->eos);
    bool eos = kind == CHAT_ZEPHYR, bos = kind == CHAT_DEEPSEEK_R1 || (kind >= CHAT_LLAMA3 && kind <= CHAT_LLAMA32);
    if (kind == CHAT_LLAMA2 || (kind >= CHAT_MISTRAL1 && kind <= CHAT_MISTRAL_NEMO)) eos = bos = true;
    if ((bos && !r.bos) || (eos && !r.eos))
        return fail(err, "the chat template %s needs %s; tokenizer_config.json; add it", chat_template_name(kind),
                    bos && !r.bos ? "bos_token" : "eos_token");
    r.spans = (TextSpan *)calloc(count, sizeof *r.spans);
    if (!r.spans) r.b.failed = true;
    text_room(&r.b, 256);
    if (options.as_answer) { r.count--; r.o.add_generation_prompt = true; }
    bool ok = !r.b.failed && chat_template(&r, kind);
    /* The thoughts that the history is without are not lost: each was, or will be, an answer of its own. */
    if (ok && options.as_answer) { r.nspans = r.thoughts = 0; chat_answer(&r, kind, &messages[count - 1]); }
    if (r.b.failed) ok = fail(err, "out of memory while rendering a chat; messages; free some memory");
    if (!ok) { text_free(&r.b); free(r.spans); return false; }
    out->text = r.b.at; out->bytes = r.b.length; out->spans = r.spans; out->nspans = r.nspans;
    out->thoughts = r.thoughts; out->systems = r.systems;
    return true;
}

void chat_text_free(ChatText *c) { free(c->text); free(c->spans); free(c->owner); memset(c, 0, sizeof *c); }

/* =====================================================================================================================
   14  Fuzz entries: clang -g -fsanitize=address,undefined,fuzzer -DFUZZ_JSON -x c tokenizer.h
   ================================================================================================================== */

#ifdef FUZZ_CHAT
/* Two bytes choose the template and the options; then come messages, a byte 0xFF between them, each with a byte for its
   role. The first one's content is also what the tools are read from. */
static void fuzz_chat(const uint8_t *data, size_t size) {
    static const char *const roles[] = {"user", "assistant", "system", "tool"};
    static const char tiny[] = "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"<s>\":0,\"</s>\":1},\"merges\":[]}}";
    static Tokenizer *t;
    ChatMessage m[8];
    ChatText chat, prompt;
    JsonDoc tools = {NULL, NULL};
    Error err;
    size_t n = 0;
    if (!t && (t = tokenizer_parse(tiny, sizeof tiny - 1, "fuzz", &err)) != NULL) { t->bos = 0; t->eos = 1; }
    if (!t || size < 3) return;
    ChatTemplate kind = (ChatTemplate)(data[0] % (CHAT_UNKNOWN + 1));
    ChatOptions o = {data[1] & 1, (data[1] >> 1) % 3 - 1, data[1] & 8 ? "today" : NULL, NULL, data[1] & 16, NULL};
    memset(m, 0, sizeof m);
    for (size_t i = 2; i < size && n < 8;) {
        const uint8_t *end = (const uint8_t *)memchr(data + i, 0xFF, size - i);
        size_t length = (end ? (size_t)(end - data) : size) - i - 1, aside = data[i] & 4 ? length / 2 : 0;
        if (end == data + i) { i++; continue; }
        m[n].role = roles[data[i] & 3];
        m[n].reasoning = data[i] & 4 ? (const char *)data + i + 1 : NULL; m[n].reasoning_bytes = aside;
        m[n].content = (const char *)data + i + 1 + aside; m[n].content_bytes = length - aside;
        n++;
        i += length + 2;
    }
    if (n && data[1] & 32 && json_parse(&tools, m[0].content, m[0].content_bytes, "fuzz", 1, &err))
        if (tools.root->type == JSON_ARRAY) o.tools = tools.root;
    if (chat_render(&chat, t, kind, m, n, o, &err)) {
        size_t at = 0;
        for (size_t i = 0; i < chat.nspans; i++) {
            TextSpan s = chat.spans[i];
            if (s.begin < at || s.begin >= s.end || s.end > chat.bytes) abort();
            at = s.end;
        }
        if (strlen(chat.text) > chat.bytes || chat.text[chat.bytes]) abort();
        ChatOptions asked = o;
        asked.add_generation_prompt = true; asked.as_answer = false;
        if (o.as_answer) {      /* an answer stands behind exactly the prompt that asks for it */
            if (!chat_render(&prompt, t, kind, m, n - 1, asked, &err)) abort();
            if (chat.nspans != 1 || chat.spans[0].begin != prompt.bytes) abort();
            if (memcmp(chat.text, prompt.text, prompt.bytes) != 0) abort();
            chat_text_free(&prompt);
        }
        chat_text_free(&chat);
    }
    json_free(&tools);
}
#endif

#ifdef TOKENIZER_FUZZED
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
#ifdef FUZZ_CHAT
    fuzz_chat(data, size);
#elif defined(FUZZ_JSON)
    Error err;
    JsonDoc doc;
    if (json_parse(&doc, (const char *)data, size, "fuzz", 1, &err)) json_free(&doc);
#else
    /* The input is a tokenizer.json; what loads must also encode and decode itself. */
    Error err;
    Tokenizer *t = tokenizer_parse((const char *)data, size, "fuzz", &err);
    TokenIds ids = {NULL, NULL, 0, 0};
    TextSpan span = {size / 3, size / 2};
    if (t && tokenizer_encode_spans(t, &ids, (const char *)data, size, &span, 1, TOK_ADD_SPECIAL, &err))
        free(tokenizer_decode(t, ids.ids, ids.count, false, NULL));
    token_ids_free(&ids);
    tokenizer_free(t);
#endif
    return 0;
}
#endif
#endif /* TOKENIZER_IMPLEMENTATION */
