/* data/dataset.h : data files become data sets: files -> rows -> dialogues -> examples of ids and labels -> slots ->
   batches; and prompts for generation. Knows the tokenizer and its chat templates, nothing of models.
   Use: part of lora.h, which includes it; alone with TOKENIZER_IMPLEMENTATION and DATASET_IMPLEMENTATION defined in one
   file (test/test_data.c does).

   Contents
     public interface           DataOptions, Dataset, SlotIterator, Batch, Prompts
     a file becomes rows        JSON lines, JSON, CSV
     a row is looked at         its keys, those that nothing reads, what is wrong with it; Dialogue, DataWork
     a row becomes a dialogue   one function for each shape: messages, prompt + completion, instruction, text, ids
     solved examples            dialogues in front of every row
     examples                   what is learned of a dialogue: byte ranges of its text, then labels
     examples with a label      classification and reward: a text as a whole, and what its row says of it
     prompts                    a dialogue up to where the answer begins
     the tokens of a data set   in memory or in a token file
     classes and targets        once all rows are known: names, numbers, what is wrong with them; class weights
     slots, packing             what a sampler shuffles: one example or, packed, several
     a data set                 opened, split
     batches, order             slots laid end to end; torch.randperm
     fuzz entries               -DFUZZ_CSV, -DFUZZ_ROWS, -DFUZZ_TOKENS

   The way of a row, by the names to follow: data_rows_read -> data_row_begin, dialogue_read -> example_encode,
   example_tokenise -> sink_add -> dataset_pack -> slot_next -> batch_build.
   The mask is never guessed from token ids: the text of an example is built here or by the chat renderer, which know
   the byte ranges that are to be learned, and the tokenizer says which tokens those bytes became.
   Easy to get wrong, each has a test: a loss on position 0 does not exist (nothing precedes it); the end-of-turn token
   belongs to the answer; plain text gets the tokenizer's BOS, a rendered chat already contains it; a blank line is not
   a row. */
#ifndef DATASET_H
#define DATASET_H

#include "chat.h"             /* chat templates; tokenizer.h: Error, Text, Json, Tokenizer, files */

#ifdef __cplusplus
extern "C" {
#endif

/* ---- public interface -------------------------------------------------------------------------------------------- */

/* What is learned. DEFAULT: assistant for chats, completion for pairs, all for plain text. */
typedef enum { LOSS_DEFAULT, LOSS_ON_COMPLETION, LOSS_ON_ASSISTANT, LOSS_ON_ALL, LOSS_ON_COUNT } LossOn;
extern const char *const loss_on_name[LOSS_ON_COUNT];
enum { DATA_IGNORE = -100 };                /* Hugging Face's label for "not learned" */

/* What rows are for, by PEFT's task types: the next token (CAUSAL_LM), a label (SEQ_CLS), or which of two answers is
   the better one (SEQ_CLS with one label, TRL's RewardTrainer). */
typedef enum { TASK_CAUSAL_LM, TASK_CLASSIFICATION, TASK_REWARD, TASK_COUNT } Task;
extern const char *const task_name[TASK_COUNT];
/* transformers' config.problem_type. AUTO: what the labels are (see Dataset.target). */
typedef enum { PROBLEM_AUTO, PROBLEM_SINGLE_LABEL, PROBLEM_MULTI_LABEL, PROBLEM_REGRESSION, PROBLEM_COUNT } Problem;
extern const char *const problem_name[PROBLEM_COUNT];

typedef struct DataOptions {
    Task task;
    Problem problem_type;                   /* of TASK_CLASSIFICATION */
    char **label_names; int label_count;    /* [label_count], id2label of a model or of the training data, class 0
                                               first; NULL: learned from the rows */
    int pad_token_id;                       /* classification and reward pool at the last token that is another one; -1:
                                               the tokenizer's, its end of text where it has none (TRL) */
    LossOn loss_on;
    int max_length;                         /* tokens; longer examples are cut at the end (TRL's default truncation) */
    bool truncate_prompt;                   /* cut the prompt's beginning instead: the last reply stays whole */
    bool packing;                           /* examples shorter than max_length share one slot: best-fit-decreasing bins
                                               (TRL "bfd"); they stay separate sequences for attention */
    ChatTemplate chat_template;             /* CHAT_NONE: take the model folder's own */
    int enable_thinking;                    /* Qwen3: -1 template's default, 0, 1; a row's own comes first */
    const char *chat_file;                  /* NULL or a file with a template in Jinja; wins over both */
    const ChatSource *chat_source;          /* made by those who read rows, of the file or of a folder's template that
                                               is not one of the known; NULL from outside. chat_error: why it could */
    const Error *chat_error;                /* not be, for the first row that is a chat */
    const char *template_date;              /* NULL or what Llama 3.1 and 3.2 are told is today, NULL: 26 Jul 2024; what
                                               strftime_now of other templates takes for today, NULL: today */
    bool split_turns;                       /* every answer of a chat is an example of its own, behind the prompt that
                                               asks for it: templates rewrite history (Qwen3 takes thoughts out) */
    const char *prompt_template;            /* NULL or text with {prompt}: for base models; wins over chat templates for
                                               pairs and instructions */
    int threads;
    int64_t max_rows;                       /* of the file or files, from the first; 0: all */
    const char *shots; int few_shot;        /* the first few_shot rows of the file shots stand in front of every row as
                                               solved examples; never in the loss */
    const char *token_cache;                /* NULL, or a folder that keeps the tokens of a data set, found again by the
                                               content of its files, tokenizer and options; runs may share it */
} DataOptions;

/* Keys of rows that nothing reads, by path as "history" or "messages[].name": the first DATA_COLUMNS in alphabetical
   order. */
enum { DATA_COLUMNS = 24 };
typedef struct DataColumns {
    struct { char name[56]; int64_t rows; } list[DATA_COLUMNS];
    int count;
    bool more;                              /* there are others */
} DataColumns;
/* As "history (12 rows), messages[].name (3 rows)"; malloc'ed, NULL where there is none. */
char *data_columns_text(const DataColumns *c);

/* Rows that an option could reach: chats; those dressed by prompt_template; those that bring their own labels. */
typedef struct DataUses { int64_t chats, dressed, labelled; } DataUses;

/* What was found while reading; printed by inspect and at the start of a run. */
typedef struct DataStats {
    int64_t rows, examples, dropped;        /* dropped: no labelled token */
    int64_t truncated;                      /* cut to max_length */
    int64_t cut_replies, lost_replies;      /* those whose last reply lost its end; all of it (they count twice) */
    int64_t tokens, labelled, longest, double_bos;
    int64_t stop_trained;                   /* examples whose last labelled token, or the one before it, is a stop */
    int64_t thoughts, systems;              /* thoughts and system messages that the chat template leaves out */
    int64_t dated;                          /* Llama 3.2's chats with its template's date; transformers has today's */
    int64_t rewritten;                      /* answers that stand behind another text than the prompt asking for them */
    int64_t unsaid;                         /* messages of which the chat template writes nothing; no system's */
    bool chat_thinks, chat_dates;           /* the rows' template looks at enable_thinking; at a date */
    int64_t same_pairs;                     /* reward: chosen and rejected are the same tokens */
    ChatTemplate chat;                      /* of the rows that are chats; CHAT_NONE: none is */
    DataUses uses;
    DataColumns unread;
} DataStats;

typedef struct Dataset {
    int32_t *ids, *labels;                  /* [tokens]: labels as Hugging Face writes them (not shifted), -100: not
                                               learned */
    size_t *offset;                         /* [count+1] */
    int64_t *row;                           /* [count]: row of the file the example came from, counting from 1 */
    size_t count;
    size_t slots;                           /* a slot is what the sampler shuffles and per_device_train_batch_size
                                               counts: one example or, packed, several; see SlotIterator */
    int32_t *slot;                          /* [slot_offset[slots]]: example numbers slot after slot; NULL: slot i is */
    size_t *slot_offset;                    /*   example i. [slots+1]: where each slot begins; NULL likewise */
    DataStats stats;
    /* Classification and reward; `labels` are all -100 then. target: single_label_classification: the class;
       multi_label_classification: 0 or 1 for each class; regression: the number; reward: the pair's margin, 0 where it
       has none. Labels that are texts or truth values are classes, whole numbers too (1.0 is one); where one number is
       a fraction all are a regression; lists of texts, or of 0 and 1 for every class, are multi-label. */
    Task task;
    Problem problem;                        /* never AUTO of classification */
    float *target;                          /* [count * target_width]; NULL: language modelling */
    int target_width;                       /* multi-label: label_count, else 1; 0 without */
    char **label_names;                     /* [label_count] class 0 first: the options', else texts sorted as datasets'
                                               class_encode_column does, numbers by value; NULL: regression, reward */
    int64_t *label_rows;                    /* [label_count]: examples of each class in this data set */
    int label_count;
    int pad_token_id;                       /* the one that pooling skips; -1: there is none */
    uint64_t hash;                          /* of ids and labels, and of targets */
    int32_t largest_id;                     /* and label */
    bool rebuilt;                           /* the token cache's file was damaged, and has been written again */
    void *map; size_t map_bytes;            /* a large data set lies in a file: ids, labels, offset and row point into
                                               it */
    bool shared;                            /* they belong to another Dataset, see dataset_split */
} Dataset;

/* Reads .jsonl, .json (array of objects) or .csv (RFC 4180 with a header line; anything else by its first byte). Row
   shapes, recognised by their keys:
     messages [{role, content}] | conversations [{from, value}] (ShareGPT: human/user, gpt/assistant, system) |
     prompt + completion (strings, or lists of messages as TRL allows) | instruction (+ input) + output | text |
     input_ids + labels (already tokenised)
   Classification: text | prompt | messages | conversations | instruction (+ input) | input_ids, each + label (also
   labels); a completion or output beside it is not read. Plain text is what tokenizer(text) makes of it, messages are
   apply_chat_template's, a prompt of messages ends with the header of the answer.
   Reward: (prompt +) chosen + rejected (+ margin), texts or messages: one slot of two examples, chosen first. Texts get
   the end of text; pairs longer than max_length are dropped (TRL).
   Errors name the file and the row: unknown keys, wrong type, unknown role, invalid UTF-8, no example left, no labelled
   token in all. */
bool dataset_open(Dataset *d, const char *path, const Tokenizer *t, const DataOptions *options, Error *err);
/* Several files, one after the other; row numbers go on from file to file. Rows are tokenised by all threads, a block
   at a time; tokens beyond 64 MiB go to a file (in token_cache, else without a name in $TMPDIR or /var/tmp) and are
   mapped, so that memory stays bounded whatever the size of the data. */
bool dataset_open_files(Dataset *d, const char *const *paths, int count, const Tokenizer *t, const DataOptions *options,
                        Error *err);
/* Moves a share of the slots, drawn by torch_randperm(seed), from d (not packed) to held_out, which shares its tokens:
   free both, d last. */
bool dataset_split(Dataset *d, Dataset *held_out, double share, uint64_t seed, Error *err);
/* What --packing does, for a data set opened without: best-fit-decreasing bins of `capacity` tokens become the
   slots. Not of reward pairs, which are slots of two already. */
bool dataset_pack(Dataset *d, int capacity, Error *err);
void dataset_free(Dataset *d);
/* Training data needs two classes at least. eval, not NULL and with slots: the text names classes that it has none of,
   or stays empty. */
bool dataset_classes_check(const Dataset *train, const Dataset *eval, const char *path, Text *absent, Error *err);

/* --class-weights: "balanced" (scikit-learn's: n / (K * rows of the class)), "w0,w1,..." one for each class in order,
   or "label=weight,..." (others: 1). w: [label_count]. Errors: an unknown label, a weight that is negative or not
   finite, all of them 0, another number of weights than classes, "balanced" with a class that has no row, a task
   without classes. */
bool class_weights_parse(float *w, const Dataset *d, const char *text, Error *err);

/* The examples of a slot: for (SlotIterator i = slot_begin(d, s); slot_next(&i);) ... i.ids, i.labels, i.count */
typedef struct SlotIterator {
    const int32_t *ids, *labels;            /* [count] */
    const float *target;                    /* [target_width], or NULL */
    size_t count, example;                  /* example: its number */
    const Dataset *d;
    size_t next, end;
} SlotIterator;
SlotIterator slot_begin(const Dataset *d, size_t slot);
bool slot_next(SlotIterator *i);
int64_t slot_labelled(const Dataset *d, size_t slot);          /* labelled targets: what batch_build will count */
/* The row of ids[count] that stands for all: the rightmost that is not pad; 0 where all are, the last without a pad
   token (pad -1), as transformers' GenericForSequenceClassification pools. */
size_t batch_pooled(const int32_t *ids, size_t count, int pad);

/* What the loss says of one labelled row: -log p(target), -sum p log p, and whether the target is the likeliest. */
typedef struct RowLoss { double loss, entropy; int64_t correct; } RowLoss;

/* A micro-batch: N tokens of S sequences, laid end to end. M of the rows are labelled: labels are shifted, so that row
   n is to predict token n+1 of its sequence where that token has a label. Every other row has no part in the loss.
   Classification and reward: M = S, labelled[s] is the pooled row of sequence s; of a reward pair the chosen one
   first. */
typedef struct Batch {
    int32_t *ids, *positions;               /* [N] */
    int32_t *cu_seqlens;                    /* [S+1] */
    int32_t *labelled, *targets;            /* [M]: the labelled rows n, rising, and what each is to predict: a token,
                                               or a class; 0 where target says it all */
    float *target; int target_width;        /* [M * target_width] as in Dataset, after batch_alloc_targets; NULL, 0 */
    RowLoss *row_loss;                      /* [M]: what model_loss found at each of them */
    int64_t *row;                           /* [S]: row of the data file, for messages */
    int N, S, M, max_tokens, max_sequences;
} Batch;
bool batch_alloc(Batch *b, int max_tokens, int max_sequences, Error *err);
/* Room for targets of the data set's width, before the first batch_build of one that has targets. */
bool batch_alloc_targets(Batch *b, int target_width, Error *err);
void batch_free(Batch *b);
/* Lays `count` slots of the data set end to end, from the first-th of `order` on (NULL: as they are in the file). The
   batch must be large enough (see dataset_largest_batch). */
void batch_build(Batch *b, const Dataset *d, const int64_t *order /*[d->slots]*/, size_t first, int count);
/* Upper bounds over every possible batch of `slots_per_batch` slots: the sum of the longest ones, and the most
   sequences. */
void dataset_largest_batch(const Dataset *d, int slots_per_batch, int *max_tokens, int *max_sequences);
/* The largest batch that will really come, from the real order (NULL: the file's): the memory table promises no more
   than is used. The two maxima grow. */
void dataset_grow_to_batches(const Dataset *d, const int64_t *order, int slots_per_batch, int *max_tokens,
                             int *max_sequences);

/* order[count] = torch.randperm(count, generator seeded with `seed`): MT19937, Fisher-Yates with rand32 % (count - i)
   (ATen randperm_cpu). Trainer seeds epoch e with seed + e. */
void torch_randperm(int64_t *order, int64_t count, uint64_t seed);

/* Something to answer: the tokens of a prompt, and for the reader the dialogue and what was expected. */
typedef struct Prompt {
    int32_t *ids;                           /* [count] */
    int count;
    char *dialogue;                         /* JSON list of {role, content}; plain text is one message of the role
                                               "prompt" */
    char *reference;                        /* the answer that the row gives, or NULL */
    size_t reference_bytes;                 /* it may hold a NUL; scores see what is before it */
    char **answers; int answer_count;       /* all that count as right: the row's "answers" where it has a reference,
                                               else that */
    char *group;                            /* the row's "group", else its "label", for the reader, or NULL */
    int64_t row;                            /* of the file, from 1 */
} Prompt;
/* stats: rows, chat, uses and unread alone. */
typedef struct Prompts { Prompt *list; size_t count; DataStats stats; } Prompts;

/* Reads a data file as prompts: of a chat everything before its last assistant message, which is the reference; prompt
   + completion and instruction + output alike; rows may also end with the user, or have a prompt alone. The options'
   shots stand in front of every prompt (in-context learning), but not in its dialogue. */
bool prompts_open(Prompts *p, const char *path, const Tokenizer *t, const DataOptions *options, Error *err);
/* The same from JSON lines in memory; name is for messages. */
bool prompts_parse(Prompts *p, const char *text, size_t bytes, const char *name, const Tokenizer *t,
                   const DataOptions *options, Error *err);
void prompts_cut(Prompts *p, size_t count);      /* keeps the first `count` */
void prompts_free(Prompts *p);

#ifdef __cplusplus
}
#endif
#endif /* DATASET_H */

#if defined(DATASET_IMPLEMENTATION) && !defined(DATASET_IMPLEMENTED)
#define DATASET_IMPLEMENTED
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#ifdef _OPENMP
#include <omp.h>
#endif
/* stb_ds: growing arrays and string maps, the one library of the product besides the CUDA runtime. */
#define STBDS_REALLOC(context, p, bytes) must_realloc(p, bytes)
#define STBDS_FREE(context, p) free(p)
#define STB_DS_IMPLEMENTATION
#include <stb/stb_ds.h>
#undef STB_DS_IMPLEMENTATION                /* so that a program may include stb_ds.h for itself */

const char *const task_name[TASK_COUNT] = {"causal_lm", "classification", "reward"};
const char *const problem_name[PROBLEM_COUNT] = {"auto", "single_label_classification", "multi_label_classification",
                                                 "regression"};

/* ---- growable memory --------------------------------------------------------------------------------------------- */

/* Room for `need` elements of `size` bytes in *p: doubles, never shrinks. */
static bool data_room(void **p, size_t *cap, size_t need, size_t size) {
    if (need <= *cap) return true;
    size_t more = *cap < 64 ? 64 : *cap + *cap / 2;
    if (more < need) more = need;
    void *q = more > SIZE_MAX / size ? NULL : realloc(*p, more * size);
    if (!q) return false;
    *p = q; *cap = more;
    return true;
}
static bool data_memory(Error *err, const char *path) {
    return fail(err, "out of memory; %s; use a smaller data file or --max-length", path);
}

/* ---- a file becomes rows ----------------------------------------------------------------------------------------- */

/* One row, not yet understood: a line of JSON still to be parsed, or an object that already is (elements of a .json
   array, records of a .csv). */
typedef struct DataRow { const char *text; size_t bytes, line /* 0: unknown */; const Json *object; } DataRow;
typedef struct DataRows {
    char *text;                             /* the file; the CSV reader unquotes in place */
    size_t bytes, count, cap;
    DataRow *row;                           /* [count] */
    const char *path;
    bool csv, mapped;
    JsonDoc doc;                            /* .json: owns the objects */
    Json *cells, *objects;                  /* .csv: [count * columns] and [count]: each record dressed as a JSON object
                                               of strings, so that one code path reads all formats */
} DataRows;

static void data_rows_free(DataRows *r) {
    json_free(&r->doc);
    if (r->mapped) unmap_file(r->text, r->bytes);
    else free(r->text);
    free(r->row); free(r->cells); free(r->objects);
    memset(r, 0, sizeof *r);
}

static bool data_rows_push(DataRows *r, DataRow row, Error *err) {
    void *p = r->row;
    if (!data_room(&p, &r->cap, r->count + 1, sizeof *r->row)) return data_memory(err, r->path);
    r->row = (DataRow *)p;
    r->row[r->count++] = row;
    return true;
}

/* A data file's text: mapped where it is large and only read (.jsonl), else in memory. */
static bool data_text_open(DataRows *r, Error *err) {
    const char *dot = strrchr(r->path, '.');
    size_t bytes;
    int fd = file_open(r->path, &bytes, err);
    if (fd < 0) return false;
    /* mapped: the rest of the last page is the zero that ends the text */
    if (dot && !strcmp(dot, ".jsonl") && bytes >= 16 << 20 && bytes % (size_t)sysconf(_SC_PAGESIZE)) {
        void *map = map_file(fd, bytes, MAP_PRIVATE, r->path);
        if (map) { r->text = (char *)map; r->bytes = bytes; r->mapped = true; close(fd); return true; }
    }
    r->text = file_read(fd, bytes, r->path, &r->bytes, err);
    return r->text != NULL;
}

/* Behind the bracket that closes the one at s; NULL: none does. */
static const char *data_object_end(const char *s, const char *end) {
    int depth = 0;
    for (bool text = false; s < end; s++) {
        if (text) {
            if (*s == '\\') s++;
            else text = *s != '"';
        } else if (*s == '"') text = true;
        else if (*s == '{' || *s == '[') depth++;
        else if ((*s == '}' || *s == ']') && --depth <= 0) return s + 1;
    }
    return NULL;
}

/* A row a line; an object that goes on behind its line, as one that was printed with indentation, is a row all the
   same. */
static bool data_read_lines(DataRows *r, size_t begin, Error *err) {
    size_t line = 1;
    bool spread = true;                     /* false: an object is never closed, so that lines are all there is */
    for (const char *s = r->text + begin, *end = r->text + r->bytes; s < end;) {
        const char *newline = (const char *)memchr(s, '\n', (size_t)(end - s)), *stop = newline ? newline : end;
        const char *last = stop;
        while (s < last && (*s == ' ' || *s == '\t' || *s == '\r')) s++;
        while (last > s && (last[-1] == ' ' || last[-1] == '\t' || last[-1] == '\r')) last--;
        size_t lines = 1;
        if (spread && last > s && *s == '{' && last[-1] != '}') {
            const char *close = data_object_end(s, end);
            spread = close != NULL;
            if (close) {
                for (const char *c = stop; c < close; c++) lines += *c == '\n';
                newline = (const char *)memchr(close, '\n', (size_t)(end - close));
                last = newline ? newline : end;
            }
        }
        DataRow row = {s, (size_t)(last - s), line, NULL};
        if (last > s && !data_rows_push(r, row, err)) return false;
        line += lines;
        s = newline ? newline + 1 : end;
    }
    return true;
}

static bool data_read_array(DataRows *r, size_t begin, Error *err) {
    if (!json_parse_row(&r->doc, r->text + begin, r->bytes - begin, r->path, 1, err)) return false;
    if (r->doc.root->type != JSON_ARRAY)
        return fail(err, "not a list of rows; %s; a .json data file is [{...}, {...}]; name it .jsonl if every line is "
                         "an object", r->path);
    for (const Json *v = r->doc.root->child; v; v = v->next) {
        DataRow row = {NULL, 0, 0, v};
        if (!data_rows_push(r, row, err)) return false;
    }
    return true;
}

/* One CSV field (RFC 4180) starting at *s, unquoted in place and NUL-terminated. *s moves past the field and what ends
   it; *last: it ended the record. Line ends: \n, \r\n, \r. */
static bool data_csv_field(Json *field, char **s, char *end, char comma, size_t *line, bool *last, const char *path,
                           Error *err) {
    char *in = *s, *out = in, *begin = in;
    if (in < end && *in == '"') {
        size_t opened = *line;
        for (in++;; in++) {
            if (in == end)
                return fail(err, "quoted field is never closed; %s:%zu; close it with \", and write a quote inside a "
                                 "field as \"\"", path, opened);
            if (*in == '"') { if (in + 1 < end && in[1] == '"') in++; else break; }
            if (*in == '\n') (*line)++;
            *out++ = *in;
        }
        in++;
        if (in < end && *in != comma && *in != '\r' && *in != '\n')
            return fail(err, "text after a closing quote; %s:%zu; write a quote inside a quoted field as \"\"",
                        path, *line);
    } else {
        while (in < end && *in != comma && *in != '\r' && *in != '\n') {
            if (*in == '"')
                return fail(err, "quote inside an unquoted field; %s:%zu; quote the whole field and write the inner "
                                 "quote as \"\"", path, *line);
            in++;
        }
        out = in;
    }
    size_t n = (size_t)(out - begin);
    if (n > UINT32_MAX - 16) return fail(err, "field longer than 4 GB; %s:%zu; split the data", path, *line);
    *last = in == end || *in != comma;
    if (in < end) {
        if (*in == '\r' && in + 1 < end && in[1] == '\n') in++;
        if (*in != comma) (*line)++;
        in++;
    }
    *out = 0;                               /* over a byte that has been read: what ended the field, or the file's
                                               NUL */
    field->type = JSON_STRING;
    field->str = begin;
    field->count = (uint32_t)n;
    *s = in;
    return true;
}

/* What separates the fields: a comma, or where the first line has none, the semicolon or tab that it has. */
static char data_csv_comma(const char *s, const char *end) {
    bool semicolon = false, tab = false, quoted = false;
    for (; s < end && (quoted || (*s != '\n' && *s != '\r')); s++) {
        if (*s == '"') quoted = !quoted;
        if (*s == ',' && !quoted) return ',';
        semicolon |= *s == ';' && !quoted;
        tab |= *s == '\t' && !quoted;
    }
    return tab ? '\t' : semicolon ? ';' : ',';
}

/* A column called "Prompt " is the one that rows call "prompt". */
static bool data_csv_name(Json *name) {
    static const char *const known[] = {"messages", "conversations", "prompt", "completion", "instruction", "input",
                                        "output", "text", "system", "history", "tools", "label", "labels",
                                        "chosen", "rejected", "margin"};
    const char *s = name->str;
    size_t n = name->count;
    while (n && (*s == ' ' || *s == '\t')) { s++; n--; }
    while (n && (s[n - 1] == ' ' || s[n - 1] == '\t')) n--;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (n != strlen(known[i]) || strncasecmp(s, known[i], n)) continue;
        name->str = known[i];
        name->count = (uint32_t)n;
        return true;
    }
    return false;
}
static int data_csv_order(const void *a, const void *b) {
    const Json *x = *(const Json *const *)a, *y = *(const Json *const *)b;
    int order = memcmp(x->str, y->str, x->count < y->count ? x->count : y->count);
    return order ? order : (x->count > y->count) - (x->count < y->count);
}

/* Line 1 names the columns [columns], r->cells. Known names are spelled as rows spell them. */
static bool data_csv_header(DataRows *r, size_t columns, bool table, Error *err) {
    bool known = false;
    const Json **order = (const Json **)must_alloc((columns ? columns : 1) * sizeof *order), *twice = NULL;
    for (size_t c = 0; c < columns; c++) { known |= data_csv_name(&r->cells[c]); order[c] = &r->cells[c]; }
    qsort(order, columns, sizeof *order, data_csv_order);
    for (size_t c = 1; c < columns; c++) if (!data_csv_order(&order[c - 1], &order[c])) twice = order[c];
    free(order);
    if (!known && !table)
        return fail(err, "neither JSON nor a table with known columns; %s; write each text as {\"text\": \"...\"} on a "
                         "line of a .jsonl file", r->path);
    return !twice || fail(err, "two columns are named \"%.60s\"; %s:1; rename one", twice->str, r->path);
}

/* Each record behind the first becomes an object of strings. */
static bool data_csv_objects(DataRows *r, size_t columns, Error *err) {
    if (r->count == 0) return true;
    r->objects = (Json *)calloc(r->count, sizeof *r->objects);
    if (!r->objects) return data_memory(err, r->path);
    for (size_t i = 0; i < r->count; i++) {
        Json *cell = r->cells + (i + 1) * columns, *object = &r->objects[i];
        object->type = JSON_OBJECT;
        object->count = (uint32_t)columns;
        object->child = cell;
        for (size_t c = 0; c < columns; c++) {
            cell[c].key = r->cells[c].str;
            cell[c].key_count = r->cells[c].count;
            cell[c].next = c + 1 < columns ? &cell[c + 1] : NULL;
        }
        r->row[i].object = object;
    }
    return true;
}

/* The whole file: the first record names the columns, every other one has as many fields. Empty lines are skipped, and
   so is a spreadsheet's first line "sep=;". table: it is called one, so that its columns may be unknown. */
static bool data_read_csv(DataRows *r, size_t begin, bool table, Error *err) {
    char *s = r->text + begin, *end = r->text + r->bytes, comma = 0;
    size_t line = 1, columns = 0, fields = 0, cap = 0, wrong = begin + utf8_invalid(s, r->bytes - begin), at = 1;
    r->csv = true;
    if (wrong < r->bytes) {
        for (size_t i = begin; i < wrong; i++) at += r->text[i] == '\n';
        return fail(err, "invalid UTF-8; %s:%zu; save the file as UTF-8", r->path, at);
    }
    if (end - s > 5 && !memcmp(s, "sep=", 4) && (s[5] == '\n' || s[5] == '\r')) { comma = s[4]; s += 5; }
    while (s < end) {
        if (*s == '\n' || *s == '\r') { line += *s == '\n' || s + 1 == end || s[1] != '\n'; s++; continue; }
        DataRow row = {NULL, 0, line, NULL};
        size_t first = fields;
        if (!comma) comma = data_csv_comma(s, end);
        for (bool last = false; !last;) {
            void *p = r->cells;
            if (!data_room(&p, &cap, fields + 1, sizeof *r->cells)) return data_memory(err, r->path);
            r->cells = (Json *)p;
            memset(&r->cells[fields], 0, sizeof *r->cells);
            if (!data_csv_field(&r->cells[fields++], &s, end, comma, &line, &last, r->path, err)) return false;
        }
        if (columns == 0) columns = fields;
        else if (fields - first != columns)
            return fail(err, "record has %zu fields, the header has %zu; %s:%zu; quote fields that contain a comma or "
                             "a line break", fields - first, columns, r->path, row.line);
        else if (!data_rows_push(r, row, err)) return false;
    }
    return data_csv_header(r, columns, table, err) && data_csv_objects(r, columns, err);
}

/* A list of objects is one whatever the file is called, and .csv and .jsonl are believed; anything else shows what it
   is by its first byte, because many files of JSON lines are called .json. */
static bool data_rows_read(DataRows *r, Error *err) {
    static const char to_jsonl[] = "save it as .jsonl, as to_json(\"train.jsonl\") of the datasets library does";
    static const char page[] = "a web page, not the file";
    static const char link[] = "download the file itself (of GitHub and Hugging Face: the raw or resolve link)";
    static const struct { const char *magic, *what, *todo; } foreign[] = {
        {"PAR1", "a Parquet file", to_jsonl}, {"ARROW1", "an Arrow file", to_jsonl},
        {"\xFF\xFF\xFF\xFF", "an Arrow file", to_jsonl},
        {"\x1F\x8B", "a gzip file", "unpack it with gunzip"}, {"BZh", "a bzip2 file", "unpack it with bunzip2"},
        {"\xFD" "7zXZ", "an xz file", "unpack it with unxz"},
        {"\x28\xB5\x2F\xFD", "a zstd file", "unpack it with unzstd"},
        {"7z\xBC\xAF", "a 7z file", "unpack it"},
        {"\xD0\xCF\x11\xE0", "an Excel workbook", "save it as CSV UTF-8"},
        {"\xFF\xFE", "UTF-16", "save the file as UTF-8"}, {"\xFE\xFF", "UTF-16", "save the file as UTF-8"},
        {"%PDF", "a PDF file", "write its text as rows"},
        {"SQLite format 3", "an SQLite data base", "export the table as CSV"},
        {"<!DOCTYPE", page, link}, {"<!doctype", page, link}, {"<html", page, link}};
    const char *dot = strrchr(r->path, '.');
    bool office = r->bytes >= 49 && (!memcmp(r->text + 30, "[Content_Types].xml", 19) ||
                                     !memcmp(r->text + 30, "mimetype", 8));
    if (r->bytes >= 4 && !memcmp(r->text, "PK\3\4", 4))
        return office ? fail(err, "a spreadsheet or another office file; %s; save the sheet as CSV UTF-8", r->path)
                      : fail(err, "a zip file; %s; unpack it with unzip", r->path);
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++)
        if (r->bytes >= strlen(foreign[i].magic) && !memcmp(r->text, foreign[i].magic, strlen(foreign[i].magic)))
            return fail(err, "%s; %s; %s", foreign[i].what, r->path, foreign[i].todo);
    size_t begin = r->bytes >= 3 && !memcmp(r->text, "\xEF\xBB\xBF", 3) ? 3 : 0, first = begin;
    while (first < r->bytes && strchr(" \t\r\n", r->text[first]) && r->text[first]) first++;
    if (first == r->bytes) return fail(err, "file is empty; %s; expected rows (.jsonl, .json or .csv)", r->path);
    if (dot && (!strcmp(dot, ".csv") || !strcmp(dot, ".tsv"))) return data_read_csv(r, begin, true, err);
    if (r->text[first] == '[') return data_read_array(r, begin, err);
    bool lines = dot && !strcmp(dot, ".jsonl"), json = dot && !strcmp(dot, ".json");
    if (!lines && r->text[first] != '{')
        return json ? data_read_array(r, begin, err) : data_read_csv(r, begin, false, err);
    return data_read_lines(r, begin, err);
}

/* ---- a row is looked at ------------------------------------------------------------------------------------------ */

/* The text of a key for a message: whole characters, none that drives a terminal, "..." where it is cut. */
static void data_name(char *out, size_t size, const char *key, size_t bytes) {
    size_t n = 0, i = 0;
    for (int k; i < bytes; i += (size_t)k) {
        uint32_t cp;
        k = utf8_get(key + i, bytes - i, &cp);
        if (!k) break;
        bool plain = !utf8_drives_terminal(cp);
        if (n + (plain ? (size_t)k : 1) + 4 > size) break;
        if (plain) memcpy(out + n, key + i, (size_t)k);
        else out[n] = '?';
        n += plain ? (size_t)k : 1;
    }
    memcpy(out + n, i < bytes ? "..." : "", i < bytes ? 4 : 1);
}

/* Adds rows to the column of that name. The alphabetical order makes what is kept independent of threads. */
static void data_columns_add(DataColumns *c, const char *name, int64_t rows) {
    int at = 0, order = 1;
    while (at < c->count && (order = strcmp(c->list[at].name, name)) < 0) at++;
    if (at < c->count && !order) { c->list[at].rows += rows; return; }
    c->more |= c->count == DATA_COLUMNS;
    if (at == DATA_COLUMNS) return;
    c->count += c->count < DATA_COLUMNS;
    memmove(&c->list[at + 1], &c->list[at], (size_t)(c->count - 1 - at) * sizeof c->list[0]);
    memset(&c->list[at], 0, sizeof c->list[0]);
    snprintf(c->list[at].name, sizeof c->list[0].name, "%s", name);
    c->list[at].rows = rows;
}
static void data_columns_join(DataColumns *c, const DataColumns *other) {
    for (int i = 0; i < other->count; i++) data_columns_add(c, other->list[i].name, other->list[i].rows);
    c->more |= other->more;
}
char *data_columns_text(const DataColumns *c) {
    Text t = TEXT_EMPTY;
    char rows[48];
    for (int i = 0; i < c->count; i++) {
        snprintf(rows, sizeof rows, " (%lld row%s)", (long long)c->list[i].rows, c->list[i].rows == 1 ? "" : "s");
        if (i) text_append(&t, ", ", 2);
        text_append(&t, c->list[i].name, strlen(c->list[i].name));
        text_append(&t, rows, strlen(rows));
    }
    if (c->more) text_append(&t, " and others", 11);
    return t.at;
}

/* A row understood: the value between JSON and tokens. Texts belong to the row, or to DataWork until the row's end. */
typedef enum { DIALOGUE_CHAT, DIALOGUE_PAIR, DIALOGUE_TEXT, DIALOGUE_IDS } DialogueKind;
typedef struct Dialogue {
    DialogueKind kind;
    ChatMessage *messages;                  /* CHAT: [count, capacity] */
    size_t count, capacity;
    bool divided;                           /* CHAT: the row says where the prompt ends: behind `given` answers */
    size_t given;
    ChatOptions chat;                       /* CHAT: what the template is told beside the messages */
    Text prompt;                            /* PAIR: dressed by --prompt-template where there is one */
    const char *completion;                 /* [completion_bytes] PAIR; TEXT: the text */
    size_t completion_bytes;
    const Json *ids;                        /* IDS: other columns of w->object stand beside it */
    const Json *answers, *group;            /* for those who score answers; NULL: the row has none */
} Dialogue;

/* What one thread needs to turn rows into examples; the buffers are reused from row to row. */
typedef struct DataWork {
    const DataRows *rows;
    const Tokenizer *t;
    const DataOptions *o;
    const struct Shots *shots;              /* NULL, or what is put in front of every row */
    Task task;                              /* what examples are made for; prompts are always the language model's */
    ChatTemplate chat;                      /* CHAT_NONE: there is none to use; UNKNOWN: the options' chat_source */
    DataUses uses;
    DataColumns unread;                     /* of all rows */
    /* the row in work */
    const DataRow *row;
    size_t number;                          /* from 1 */
    JsonDoc doc;
    const Json *object;
    Dialogue dialogue;
    JsonDoc *nested;                        /* stb_ds array: what the row gives as text of JSON; nested_name: its key */
    const char **nested_name;               /* stb_ds array */
    char **made;                            /* stb_ds array: texts put together for this row */
    DataColumns unread_here;
    Text text;                              /* what is tokenised */
    TokenIds tok, before;
    Error err;
} DataWork;

#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
static bool data_row_fail(DataWork *w, const char *todo, const char *what, ...) {
    char text[768], line[32] = "";
    va_list ap;
    va_start(ap, what);
    vsnprintf(text, sizeof text, what, ap);
    va_end(ap);
    if (w->row->line) snprintf(line, sizeof line, " (line %zu)", w->row->line);
    return fail(&w->err, "%s; %s row %zu%s; %s", text, w->rows->path, w->number, line, todo);
}
/* An error of the tokenizer or the chat renderer, with the row put before it. */
static bool data_row_wrap(DataWork *w) {
    return fail(&w->err, "%s row %zu: %s", w->rows->path, w->number, w->err.text);
}
static bool data_row_memory(DataWork *w) { return data_memory(&w->err, w->rows->path); }

/* A key with null counts as absent: exporters write it for empty columns. What is looked at here counts as read. */
static const Json *data_get(const Json *object, const char *key) {
    const Json *v = json_get(object, key);
    if (v) ((Json *)v)->read = true;
    return v && v->type != JSON_NULL ? v : NULL;
}

/* All that is below v counts as read: it goes to the template as it is. */
static const Json *data_whole(const Json *v) {
    for (Json *k = v->child; k; k = k->next) { k->read = true; data_whole(k); }
    return v;
}
/* Notes the keys below v that nothing has read. */
static void data_unread(DataWork *w, const Json *v, const char *path) {
    char name[sizeof w->unread.list[0].name], below[2 * sizeof name];
    if (v->type != JSON_ARRAY && v->type != JSON_OBJECT) return;
    for (const Json *k = v->child; k; k = k->next) {
        if (v->type == JSON_ARRAY) snprintf(below, sizeof below, "%s[]", path);
        else {
            data_name(name, sizeof name, k->key, k->key_count);
            snprintf(below, sizeof below, "%s%s%s", path, *path ? "." : "", name);
        }
        if (v->type == JSON_ARRAY || k->read) data_unread(w, k, below);
        else if (k->type != JSON_NULL) {
            data_name(name, sizeof name, below, strlen(below));
            data_columns_add(&w->unread_here, *name ? name : "\"\"", 1);
        }
    }
}
static bool data_is_key(const Json *v, const char *key) {
    return v->key && v->key_count == strlen(key) && !memcmp(v->key, key, v->key_count);
}
static bool data_is(const Json *v, const char *text) {
    return v->count == strlen(text) && !memcmp(v->str, text, v->count);
}

static const char *const data_type_name[] = {"null", "a truth value", "a truth value", "a number", "a string", "a list",
                                             "an object"};
static bool data_need(DataWork *w, const Json *v, const char *key, JsonType type) {
    if (v->type == type) return true;
    const char *expected = data_type_name[type];
    if (w->rows->csv)
        return data_row_fail(w, "put such rows into a .jsonl file", "column \"%s\" cannot be %s in a CSV file",
                             key, expected);
    return data_row_fail(w, "correct the row", "\"%s\" is %s, expected %s", key, data_type_name[v->type], expected);
}

/* A list, or the text of one: CSV files and Parquet exports keep lists as JSON text. NULL: the row is wrong. */
static const Json *data_list(DataWork *w, const Json *v, const char *key) {
    if (v->type == JSON_STRING) {
        size_t blank = strspn(v->str, " \t\r\n");
        JsonDoc doc;
        if (v->str[blank] == '[') {
            if (!json_parse_row(&doc, v->str, v->count, key, 1, NULL)) {
                data_row_fail(w, "write it with json.dumps, not with str",
                              "\"%s\" is text that begins like a list but is no JSON", key);
                return NULL;
            }
            arrput(w->nested_name, key);
            arrput(w->nested, doc);
            v = doc.root;
        }
    }
    return data_need(w, v, key, JSON_ARRAY) ? v : NULL;
}

/* ---- a row becomes a dialogue ---------------------------------------------------------------------------------------
   One function for each shape that a row may have reads it; the encoders below (a solved example, an example to learn,
   a prompt to answer) take the dialogue from there. */

/* Appends one message. */
static bool dialogue_add(DataWork *w, const char *role, const Json *content, const Json *reasoning) {
    Dialogue *d = &w->dialogue;
    void *p = d->messages;
    if (!data_room(&p, &d->capacity, d->count + 1, sizeof *d->messages)) return data_row_memory(w);
    d->messages = (ChatMessage *)p;
    ChatMessage *m = &d->messages[d->count++];
    memset(m, 0, sizeof *m);
    m->role = role;
    m->content = content->str;
    m->content_bytes = content->count;
    m->train = !strcmp(role, "assistant");
    if (reasoning) { m->reasoning = reasoning->str; m->reasoning_bytes = reasoning->count; }
    return true;
}

/* Answers among messages[count]. */
static size_t dialogue_answers(const ChatMessage *messages, size_t count) {
    size_t n = 0;
    for (size_t i = 0; i < count; i++) n += !strcmp(messages[i].role, "assistant");
    return n;
}

/* The text of a message: a string, or a list of parts that are text, joined. */
static bool dialogue_text(DataWork *w, const Json *content, Text *out, size_t index, const char *name) {
    if (content->type == JSON_STRING) return text_append(out, content->str, content->count) || data_row_memory(w);
    for (const Json *part = content->child; part; part = part->next) {
        const Json *type = data_get(part, "type"), *text = part->type == JSON_STRING ? part : data_get(part, "text");
        bool foreign = type && (type->type != JSON_STRING || !data_is(type, "text"));
        if (foreign || !text || text->type != JSON_STRING)
            return data_row_fail(w, "only text is learned: leave such rows out",
                                 "message %zu of \"%s\" has a part of the type \"%.40s\"", index, name,
                                 type && type->type == JSON_STRING ? type->str : "unknown");
        if (!text_append(out, text->str, text->count)) return data_row_memory(w);
    }
    return true;
}

/* Tool calls behind the content, in the words of the templates that have any: Qwen's. calls: {name, arguments}, or with
   these in "function", or a list of such. */
static bool dialogue_calls(DataWork *w, const Json *calls, Text *out, size_t index, const char *name) {
    bool list = calls->type == JSON_ARRAY, qwen = w->chat == CHAT_QWEN3 || w->chat == CHAT_QWEN2_5 ||
                                                  w->chat == CHAT_QWEN3_INSTRUCT || w->chat == CHAT_QWEN3_THINKING;
    if (!qwen)
        return data_row_fail(w, "write the call into its content, or give --chat-template the model's own FILE.jinja",
                             "message %zu of \"%s\" has tool calls, which this built-in template does not write",
                             index, name);
    for (const Json *call = list ? calls->child : calls; call; call = list ? call->next : NULL) {
        const Json *function = json_get(call, "function") ? json_get(call, "function") : call;
        const Json *called = json_get(function, "name"), *arguments = json_get(function, "arguments");
        if (!called || called->type != JSON_STRING || !arguments)
            return data_row_fail(w, "a call is {\"name\": \"...\", \"arguments\": {...}}",
                                 "a tool call without name and arguments in message %zu of \"%s\"", index, name);
        text_string(out, out->length ? "\n<tool_call>\n{\"name\": \"" : "<tool_call>\n{\"name\": \"");
        text_append(out, called->str, called->count);
        text_string(out, "\", \"arguments\": ");
        bool written = arguments->type == JSON_STRING && w->chat != CHAT_QWEN2_5;
        if (written) text_append(out, arguments->str, arguments->count);
        else json_dumps(out, arguments, 0);
        if (!text_string(out, "}\n</tool_call>")) return data_row_memory(w);
    }
    data_whole(calls);
    return true;
}

/* ShareGPT's message of the role function_call: its text is the call. NULL: the row is wrong. */
static const Json *dialogue_function_call(DataWork *w, const Json *content, size_t index, const char *name) {
    JsonDoc doc;
    if (content->type != JSON_STRING || !json_parse_row(&doc, content->str, content->count, name, 1, NULL)) {
        data_row_fail(w, "a call is {\"name\": \"...\", \"arguments\": {...}}",
                      "message %zu of \"%s\" is a function_call, but no JSON", index, name);
        return NULL;
    }
    arrput(w->nested_name, name);
    arrput(w->nested, doc);
    return doc.root;
}

/* The template's name for a role, NULL: unknown. The first four are everybody's, the others ShareGPT's. */
static const char *dialogue_role(const Json *role, bool sharegpt) {
    static const struct { const char *name, *role; } roles[] = {
        {"system", "system"}, {"user", "user"}, {"assistant", "assistant"}, {"tool", "tool"},
        {"human", "user"}, {"gpt", "assistant"}, {"chatgpt", "assistant"}, {"bing", "assistant"},
        {"bard", "assistant"}, {"model", "assistant"}, {"observation", "tool"}, {"function_call", "assistant"}};
    for (size_t i = 0; i < (sharegpt ? sizeof roles / sizeof *roles : 4); i++)
        if (data_is(role, roles[i].name)) return roles[i].role;
    return NULL;
}

/* The weight of an answer, as OpenAI's fine-tuning has it: 0 is not learned. */
static bool dialogue_weight(DataWork *w, const Json *m, size_t index, const char *name) {
    const Json *weight = data_get(m, "weight");
    if (!weight) return true;
    if (weight->type != JSON_NUMBER || (weight->number != 0 && weight->number != 1))
        return data_row_fail(w, "1 learns an assistant's message, 0 does not",
                             "the weight of message %zu of \"%s\" is neither 0 nor 1", index, name);
    if (weight->number == 0 && w->o->loss_on == LOSS_ON_ALL)
        return data_row_fail(w, "take the weights out, or --loss-on all",
                             "message %zu of \"%s\" has weight 0, with --loss-on all", index, name);
    w->dialogue.messages[w->dialogue.count - 1].train = weight->number == 1;
    return true;
}

/* A message that goes to the template as it is: what that looks at counts as read. */
static bool dialogue_whole(DataWork *w, const Json *m, const char *role) {
    static const Json silent = {JSON_STRING, 0, 0, false, "", NULL, 0, NULL, NULL};
    const Json *content = data_get(m, "content"), *thought = data_get(m, "reasoning_content");
    for (Json *k = m->child; k; k = k->next) {
        bool said = k->type == JSON_STRING && (!strcmp(k->key, "thinking") || !strcmp(k->key, "reasoning"));
        if (said && !thought) thought = k;
        if (!said && !chat_source_reads(w->o->chat_source, k->key)) continue;
        k->read = true;
        data_whole(k);
    }
    if (!dialogue_add(w, role, content && content->type == JSON_STRING ? content : &silent, thought)) return false;
    w->dialogue.messages[w->dialogue.count - 1].whole = m;
    return true;
}

/* ShareGPT's function_call as the message that templates know. */
static const Json *dialogue_openai_call(DataWork *w, const Json *calls, const Json *content, const char *name) {
    Text text = TEXT_EMPTY, call = TEXT_EMPTY;
    JsonDoc doc;
    json_dumps(&call, data_whole(calls), 0);
    json_object(&text, NULL, JSON_LINE);
    json_string(&text, "role", "assistant");
    json_bytes(&text, "content", content ? content->str : "", content ? content->count : 0);
    json_print(&text, "tool_calls", calls->type == JSON_ARRAY ? "%s" : "[%s]", call.at);
    json_end(&text);
    bool ok = json_parse(&doc, text.at, text.length, name, 1, &w->err);
    text_free(&text);
    text_free(&call);
    if (!ok) return NULL;
    arrput(w->nested_name, name);
    arrput(w->nested, doc);
    return doc.root;
}

/* The message `index` (from 1) of the list called `name`. */
static bool dialogue_message(DataWork *w, const Json *m, size_t index, const char *name) {
    bool sharegpt = !data_get(m, "role") && data_get(m, "from");
    const Json *role = data_get(m, sharegpt ? "from" : "role");
    const Json *content = data_get(m, sharegpt ? "value" : "content"), *reasoning = data_get(m, "reasoning_content");
    const Json *calls = data_get(m, "tool_calls");
    if (!calls) calls = data_get(m, "function_call");
    if (calls && calls->type == JSON_ARRAY && !calls->count) calls = NULL;
    const ChatSource *source = w->o->chat_source;
    bool speaks = content ? content->type == JSON_STRING || content->type == JSON_ARRAY : calls != NULL;
    if (m->type != JSON_OBJECT || !role || role->type != JSON_STRING || !speaks ||
        (reasoning && reasoning->type != JSON_STRING))
        return data_row_fail(w, "a message is {\"role\": \"user\", \"content\": \"...\"} or "
                                "{\"from\": \"human\", \"value\": \"...\"}",
                             "message %zu of \"%s\" has no role and content that are strings", index, name);
    const char *known = dialogue_role(role, sharegpt);
    if (source && !sharegpt)
        return dialogue_whole(w, m, known ? known : role->str) &&
               (strcmp(role->str, "assistant") || dialogue_weight(w, m, index, name));
    if (!known) {
        char shown[64];
        data_name(shown, sizeof shown, role->str, role->count);
        return data_row_fail(w, sharegpt ? "known are human, user, gpt, assistant, system, tool, observation, "
                                           "function_call" : "known are system, user, assistant, tool",
                             "unknown role \"%s\" in message %zu of \"%s\"", shown, index, name);
    }
    if (sharegpt && content && data_is(role, "function_call")) {
        if (!(calls = dialogue_function_call(w, content, index, name))) return false;
        content = NULL;
    }
    bool assistant = !strcmp(known, "assistant");
    if (calls && !assistant)
        return data_row_fail(w, "only an assistant calls", "message %zu of \"%s\" has tool calls", index, name);
    if (source && calls)
        return (m = dialogue_openai_call(w, calls, content, name)) != NULL && dialogue_whole(w, m, known);
    Json whole;
    if (calls || content->type == JSON_ARRAY) {
        Text text = TEXT_EMPTY;
        bool ok = (!content || dialogue_text(w, content, &text, index, name)) &&
                  (!calls || dialogue_calls(w, calls, &text, index, name));
        if (text.at) arrput(w->made, text.at);
        if (!ok) return false;
        memset(&whole, 0, sizeof whole);
        whole.str = text.at ? text.at : "";
        whole.count = (uint32_t)text.length;
        content = &whole;
    }
    return dialogue_add(w, known, content, reasoning) && (!assistant || dialogue_weight(w, m, index, name));
}

/* A list of {role, content} or, ShareGPT's way, {from, value}. */
static bool dialogue_messages(DataWork *w, const Json *list, const char *name) {
    size_t index = 0;
    if (!(list = data_list(w, list, name))) return false;
    for (const Json *m = list->child; m; m = m->next) if (!dialogue_message(w, m, ++index, name)) return false;
    return true;
}

/* What the template is told beside the messages: the row's tools, its chat_template_kwargs, its enable_thinking, then
   the options; the first that says something wins. A name that the template does not know is not read. */
static bool dialogue_options(DataWork *w, ChatOptions *o) {
    const ChatSource *source = w->o->chat_source;
    bool thinks = source ? chat_source_reads(source, "enable_thinking") : w->chat == CHAT_QWEN3;
    bool dated = !source && (w->chat == CHAT_LLAMA31 || w->chat == CHAT_LLAMA32);
    const Json *tools = data_get(w->object, "tools"), *kwargs = data_get(w->object, "chat_template_kwargs");
    const Json *thinking = thinks ? data_get(w->object, "enable_thinking") : NULL, *date = NULL;
    memset(o, 0, sizeof *o);
    o->enable_thinking = w->o->enable_thinking;
    o->date = w->o->template_date;
    if (kwargs) {
        if (!data_need(w, kwargs, "chat_template_kwargs", JSON_OBJECT)) return false;
        if (thinks && data_get(kwargs, "enable_thinking")) thinking = data_get(kwargs, "enable_thinking");
        if (dated) date = data_get(kwargs, "date_string");
        if (!tools) tools = data_get(kwargs, "tools");
        for (Json *k = source ? kwargs->child : NULL; k; k = k->next)
            if (chat_source_reads(source, k->key)) { k->read = true; data_whole(k); }
        o->kwargs = source ? kwargs : NULL;
    }
    if (thinking) {
        if (thinking->type != JSON_FALSE && !data_need(w, thinking, "enable_thinking", JSON_TRUE)) return false;
        o->enable_thinking = thinking->type == JSON_TRUE;
    }
    if (date && !data_need(w, date, "date_string", JSON_STRING)) return false;
    if (date) o->date = date->str;
    if (tools && tools->type == JSON_STRING && !tools->count) tools = NULL;
    if (tools && !(tools = data_list(w, tools, "tools"))) return false;
    if (tools && tools->count) o->tools = data_whole(tools);
    return true;
}

/* The end of every shape that is a chat. */
static bool dialogue_chat(DataWork *w) {
    w->dialogue.kind = DIALOGUE_CHAT;
    if (w->chat == CHAT_UNKNOWN && !w->o->chat_source) {
        if (w->o->chat_error) w->err = *w->o->chat_error;
        else fail(&w->err, "a chat, but no template to write it with");
        return data_row_wrap(w);
    }
    if (w->chat != CHAT_NONE) {
        w->uses.chats++;
        return dialogue_options(w, &w->dialogue.chat);
    }
    char names[512] = "", todo[600];
    for (int c = CHAT_NONE + 1; c < CHAT_UNKNOWN; c++) {
        size_t n = strlen(names);
        snprintf(names + n, sizeof names - n, "%s%s", n ? ", " : "", chat_template_name((ChatTemplate)c));
    }
    snprintf(todo, sizeof todo, "give --chat-template FILE.jinja or NAME: %s", names);
    return data_row_fail(w, todo, "a chat, but the model folder has no chat template");
}

/* The end of those that are a prompt and a completion (NULL: none) as plain text. The prompt is dressed by
   --prompt-template where there is one. */
static bool dialogue_pair(DataWork *w, const char *prompt, size_t bytes, const Json *completion) {
    static const char mark[] = "{prompt}";
    const char *s = w->o->prompt_template ? w->o->prompt_template : mark;
    Dialogue *d = &w->dialogue;
    d->kind = DIALOGUE_PAIR;
    w->uses.dressed += w->o->prompt_template != NULL;
    for (const char *at; (at = strstr(s, mark)) != NULL; s = at + sizeof mark - 1) {
        text_append(&d->prompt, s, (size_t)(at - s));
        text_append(&d->prompt, prompt, bytes);
    }
    if (!text_string(&d->prompt, s)) return data_row_memory(w);
    if (completion) { d->completion = completion->str; d->completion_bytes = completion->count; }
    return true;
}

/* An optional "system" beside ShareGPT conversations and instructions. */
static bool dialogue_system(DataWork *w) {
    const Json *system = data_get(w->object, "system");
    if (!system) return true;
    if (!data_need(w, system, "system", JSON_STRING)) return false;
    return system->count == 0 || dialogue_add(w, "system", system, NULL);
}

/* Alpaca's "history": [[question, answer], ...], the turns before the instruction. */
static bool dialogue_history(DataWork *w) {
    const Json *history = data_get(w->object, "history");
    if (!history || (history->type == JSON_STRING && !history->count)) return true;
    if (!(history = data_list(w, history, "history"))) return false;
    for (const Json *pair = history->child; pair; pair = pair->next) {
        const Json *question = pair->type == JSON_ARRAY && pair->count == 2 ? pair->child : NULL;
        if (!question || question->type != JSON_STRING || question->next->type != JSON_STRING)
            return data_row_fail(w, "write it as [[\"question\", \"answer\"], ...]",
                                 "\"history\" is no list of pairs of strings");
        if (!dialogue_add(w, "user", question, NULL)) return false;
        if (!dialogue_add(w, "assistant", question->next, NULL)) return false;
    }
    return true;
}

/* ---- the row shapes; the answer is NULL in a row that has none, where that may be ---- */

static bool dialogue_from_messages(DataWork *w, const Json *list) {
    return dialogue_messages(w, list, "messages") && dialogue_chat(w);
}
static bool dialogue_from_conversations(DataWork *w, const Json *list) {
    return dialogue_system(w) && dialogue_messages(w, list, "conversations") && dialogue_chat(w);
}

static bool dialogue_from_pair(DataWork *w, const Json *prompt, const Json *completion) {
    Dialogue *d = &w->dialogue;
    if (prompt->type == JSON_ARRAY && (!completion || completion->type == JSON_ARRAY)) {
        if (!dialogue_messages(w, prompt, "prompt")) return false;
        d->divided = true;
        d->given = dialogue_answers(d->messages, d->count);
        if (completion && !dialogue_messages(w, completion, "completion")) return false;
        return dialogue_chat(w);
    }
    if (!data_need(w, prompt, "prompt", JSON_STRING)) return false;
    if (completion && !data_need(w, completion, "completion", JSON_STRING)) return false;
    return dialogue_pair(w, prompt->str, prompt->count, completion);
}

static bool dialogue_from_instruction(DataWork *w, const Json *instruction, const Json *input, const Json *output) {
    const Dialogue *d = &w->dialogue;
    if (!data_need(w, instruction, "instruction", JSON_STRING)) return false;
    if (input && !data_need(w, input, "input", JSON_STRING)) return false;
    if (output && !data_need(w, output, "output", JSON_STRING)) return false;
    if (!w->o->prompt_template && w->chat == CHAT_NONE)
        return data_row_fail(w, "give --chat-template NAME, or --prompt-template with {prompt} for a plain base model",
                             "an instruction, but the model folder has no chat template");
    if (!dialogue_system(w) || !dialogue_history(w)) return false;
    if (w->o->prompt_template && d->count)
        return data_row_fail(w, "remove it or use --chat-template", "\"%s\" has no place in --prompt-template",
                             strcmp(d->messages[0].role, "system") ? "history" : "system");
    Text asked = TEXT_EMPTY;
    text_append(&asked, instruction->str, instruction->count);
    if (input && input->count) { text_string(&asked, "\n"); text_append(&asked, input->str, input->count); }
    if (asked.at) arrput(w->made, asked.at);
    if (asked.failed) return data_row_memory(w);
    if (w->o->prompt_template) return dialogue_pair(w, asked.at, asked.length, output);
    Json user;
    memset(&user, 0, sizeof user);
    user.str = asked.at;
    user.count = (uint32_t)asked.length;
    return dialogue_add(w, "user", &user, NULL) && (!output || dialogue_add(w, "assistant", output, NULL)) &&
           dialogue_chat(w);
}

const char *const loss_on_name[LOSS_ON_COUNT] = {"default", "completion", "assistant", "all"};
static bool data_wrong_loss(DataWork *w, const char *shape) {
    return data_row_fail(w, "use --loss-on all, or give rows with prompt and completion",
                         "--loss-on %s needs to know the answer, and this row is %s",
                         loss_on_name[w->o->loss_on], shape);
}
static bool dialogue_from_text(DataWork *w, const Json *text, bool answered) {
    Dialogue *d = &w->dialogue;
    if (!data_need(w, text, "text", JSON_STRING)) return false;
    if (answered && (w->o->loss_on == LOSS_ON_COMPLETION || w->o->loss_on == LOSS_ON_ASSISTANT))
        return data_wrong_loss(w, "plain text");
    d->kind = DIALOGUE_TEXT;
    d->completion = text->str;
    d->completion_bytes = text->count;
    return text_string(&d->prompt, "") || data_row_memory(w);
}

/* The keys that make a row of text what it is: the first five hold a text, the others a list of messages. */
static const char *const data_text_key[] = {"prompt", "completion", "text", "instruction", "output", "messages",
                                            "conversations"};

/* A table that was written column by column, pandas' default: its one object must not pass for a row. */
static bool data_by_column(DataWork *w) {
    const Json *o = w->object, *first = o->child;
    bool columns = first && (data_is_key(first, "0") || (json_get(o, "columns") && json_get(o, "data")));
    for (size_t i = 0; i < sizeof data_text_key / sizeof *data_text_key && !columns; i++) {
        const Json *v = json_get(o, data_text_key[i]), *below = v ? v->child : NULL;
        columns = below && (v->type == JSON_OBJECT ? data_is_key(below, "0") : i < 5 && v->type == JSON_ARRAY &&
                            below->type == JSON_STRING);
    }
    return columns && !data_row_fail(w, "write it as df.to_json(\"train.jsonl\", orient=\"records\", lines=True) does",
                                     "a table column by column, not row by row");
}

static bool data_unknown_shape(DataWork *w) {
    char keys[240] = "";
    size_t n = 0;
    bool shaped = false, nulls = false;
    if (json_get(w->object, "chosen") && json_get(w->object, "rejected"))
        return data_row_fail(w,
                             "--task reward learns which is the better one; DPO is not there yet; to learn the chosen "
                             "answers give prompt and chosen as prompt and completion",
                             "preference data (chosen and rejected)");
    for (size_t i = 0; i < sizeof data_text_key / sizeof *data_text_key; i++)
        shaped |= json_get(w->object, data_text_key[i]) != NULL;
    for (const Json *k = shaped ? NULL : w->object->child; k; k = k->next) {
        if (k->type != JSON_ARRAY || !k->child || k->child->type != JSON_OBJECT) continue;
        data_name(keys, 64, k->key, k->key_count);
        if (json_get(k->child, "paragraphs"))
            return data_row_fail(w, "run data/convert squad on it", "SQuAD's layout, not rows");
        return data_row_fail(w, "write that list alone, or one of its rows a line",
                             "no row, but a list of them under \"%s\"", keys);
    }
    for (const Json *k = w->object->child; k; k = k->next) {
        char key[sizeof keys];
        data_name(key, sizeof key, k->key, k->key_count);
        bool room = n + strlen(key) + 15 <= sizeof keys, null = k->type == JSON_NULL;
        n += (size_t)snprintf(keys + n, sizeof keys - n, "%s%s%s", n ? ", " : "", room ? key : "...",
                              room && null ? " (null)" : "");
        nulls |= null;
        if (!room) break;
    }
    static const char *const accepted[TASK_COUNT] = {
        "messages | conversations | prompt + completion | instruction (+ input) + output | text | input_ids (+ labels)",
        "text | prompt | messages | conversations | instruction (+ input) | input_ids, each with label",
        "(prompt +) chosen + rejected (+ margin)"};
    char todo[240];
    snprintf(todo, sizeof todo, "accepted are %s%s", accepted[w->task],
             nulls ? "; null counts as absent: leave such rows out" : "");
    return data_row_fail(w, todo, "none of the known row shapes (keys found: %s)", n ? keys : "none");
}

/* The answer that the row gives, or NULL. Beside a label it is not read: it may be the label in words. */
static const Json *dialogue_answer(DataWork *w, const char *key) {
    return w->task == TASK_CLASSIFICATION ? NULL : data_get(w->object, key);
}

/* The row in work becomes w->dialogue. answered: it must have its answer. */
static bool dialogue_read(DataWork *w, bool answered) {
    const Json *o = w->object, *a, *b;
    Dialogue *d = &w->dialogue;
    d->count = d->given = d->completion_bytes = 0;
    d->divided = false;
    d->completion = "";
    text_cut(&d->prompt, 0);
    if (o->type != JSON_OBJECT)
        return data_row_fail(w, "every row is an object like {\"prompt\": \"...\", \"completion\": \"...\"}",
                             "the row is %s", data_type_name[o->type]);
    if ((d->answers = data_get(o, "answers"))) data_whole(d->answers);
    d->group = data_get(o, "group");
    if ((d->ids = data_get(o, "input_ids"))) { d->kind = DIALOGUE_IDS; return true; }
    if (data_by_column(w)) return false;
    if (!w->t)
        return data_row_fail(w, "add the model's tokenizer.json, or give rows of input_ids and labels",
                             "the row is text, but the model folder has no tokenizer");
    if (w->task == TASK_REWARD) {           /* two dialogues, one after the other: example_reward */
        bool both = data_get(o, "chosen") && data_get(o, "rejected");
        d->kind = DIALOGUE_TEXT;
        return both || data_unknown_shape(w);
    }
    if ((a = data_get(o, "messages"))) return dialogue_from_messages(w, a);
    if ((a = data_get(o, "conversations"))) return dialogue_from_conversations(w, a);
    if ((a = data_get(o, "prompt")) && ((b = dialogue_answer(w, "completion")) || !answered))
        return dialogue_from_pair(w, a, b);
    if ((a = data_get(o, "instruction")) && ((b = dialogue_answer(w, "output")) || !answered))
        return dialogue_from_instruction(w, a, data_get(o, "input"), b);
    if ((a = data_get(o, "text"))) return dialogue_from_text(w, a, answered);
    return data_unknown_shape(w);
}

/* Row i of the file, up to data_row_end. */
static bool data_row_begin(DataWork *w, size_t i, bool answered) {
    DataRow *row = &w->rows->row[i];
    w->row = row;
    w->number = i + 1;
    w->object = row->object;
    if (!w->object && json_parse_row(&w->doc, row->text, row->bytes, w->rows->path, row->line, &w->err))
        w->object = w->doc.root;
    return w->object && dialogue_read(w, answered);
}
/* ok: it became what it was to become. Each column counts once, however often it is in the row. */
static void data_row_end(DataWork *w, bool ok) {
    if (ok) data_unread(w, w->object, "");
    for (ptrdiff_t i = 0; i < arrlen(w->nested); i++) {
        if (ok) data_unread(w, w->nested[i].root, w->nested_name[i]);
        json_free(&w->nested[i]);
    }
    arrsetlen(w->nested, 0);
    arrsetlen(w->nested_name, 0);
    for (ptrdiff_t i = 0; i < arrlen(w->made); i++) free(w->made[i]);
    arrsetlen(w->made, 0);
    for (int i = 0; i < w->unread_here.count; i++) w->unread_here.list[i].rows = 1;
    data_columns_join(&w->unread, &w->unread_here);
    w->unread_here.count = 0;
    w->unread_here.more = false;
    json_free(&w->doc);
}

/* The options' template, else the model folder's. */
static ChatTemplate data_chat_template(const Tokenizer *t, const DataOptions *o) {
    if (o->chat_file) return CHAT_UNKNOWN;
    return o->chat_template != CHAT_NONE || !t ? o->chat_template : tokenizer_chat_template(t);
}
/* The options, with the template that chats need where it is none of the known. False: --chat-template's file is no
   template. */
static bool data_source_open(DataOptions *own, const DataOptions *o, const Tokenizer *t, Error *why, Error *err) {
    *own = *o;
    own->chat_error = why;
    if (!t || data_chat_template(t, o) != CHAT_UNKNOWN) return true;
    own->chat_source = chat_source_open(t, o->chat_file, why);
    if (own->chat_source || !o->chat_file) return true;
    return fail(err, "%s", why->text);
}
static void data_source_close(DataOptions *own, const DataOptions *o) {
    if (own->chat_source != o->chat_source) chat_source_close((ChatSource *)own->chat_source);
}

/* Which options the template of the rows looks at. */
static void data_chat_stats(DataStats *s, const ChatSource *source) {
    bool ours = s->chat == CHAT_UNKNOWN && source;
    s->chat_thinks = ours ? chat_source_reads(source, "enable_thinking") : s->chat == CHAT_QWEN3;
    s->chat_dates = ours ? chat_source_reads(source, "strftime_now") || chat_source_reads(source, "date_string")
                         : s->chat == CHAT_LLAMA31 || s->chat == CHAT_LLAMA32;
}

static void data_work_open(DataWork *w, const DataRows *rows, const Tokenizer *t, const DataOptions *o) {
    memset(w, 0, sizeof *w);
    w->rows = rows;
    w->t = t;
    w->o = o;
    w->chat = data_chat_template(t, o);
}
static void data_work_free(DataWork *w) {
    text_free(&w->dialogue.prompt);
    text_free(&w->text);
    free(w->dialogue.messages);
    arrfree(w->made); arrfree(w->nested); arrfree(w->nested_name);
    token_ids_free(&w->tok); token_ids_free(&w->before);
}

/* ---- solved examples: in front of every row ---------------------------------------------------------------------- */

/* After a chat's system message as turns of their own; before plain text with an empty line after each. Built once,
   read by all threads. */
typedef struct Shots {
    Text text;                              /* those that are plain text: prompt, completion, "\n\n" */
    ChatMessage *messages;                  /* [count, capacity]: all as chats, no system message; texts malloc'ed */
    size_t count, capacity;
    int chats;                              /* how many have no text, being chats */
    JsonDoc *whole;                         /* stb_ds array: what messages[].whole are in */
} Shots;

/* A copy of the message, with texts of its own. */
static bool shots_add(DataWork *w, Shots *s, ChatMessage m) {
    void *p = s->messages;
    if (!data_room(&p, &s->capacity, s->count + 1, sizeof *s->messages)) return data_row_memory(w);
    s->messages = (ChatMessage *)p;
    m.content = text_copy_bytes(m.content, m.content_bytes);
    if (m.reasoning) m.reasoning = text_copy_bytes(m.reasoning, m.reasoning_bytes);
    s->messages[s->count++] = m;
    if (!m.whole) return true;
    Text text = TEXT_EMPTY;
    JsonDoc doc = {NULL, NULL};
    json_dumps(&text, m.whole, 0);
    bool ok = json_parse(&doc, text.at, text.length, "message", 1, &w->err);
    text_free(&text);
    if (!ok) return false;
    arrput(s->whole, doc);
    s->messages[s->count - 1].whole = doc.root;
    s->messages[s->count - 1].role = json_get(doc.root, "role")->str;
    return true;
}
static bool shots_refuse_ids(DataWork *w) {
    return data_row_fail(w, "give rows of text", "solved examples are text, and this row is token ids");
}
/* The dialogue becomes one of them. */
static bool shots_encode(DataWork *w, Shots *s) {
    const Dialogue *d = &w->dialogue;
    if (d->kind == DIALOGUE_IDS) return shots_refuse_ids(w);
    if (d->kind == DIALOGUE_CHAT) {
        s->chats++;
        if (!d->count || strcmp(d->messages[d->count - 1].role, "assistant"))
            return data_row_fail(w, "a solved example is a row with its answer",
                                 "the chat does not end with an answer");
        for (size_t i = 0; i < d->count; i++)
            if (strcmp(d->messages[i].role, "system") && !shots_add(w, s, d->messages[i])) return false;
        return true;
    }
    text_append(&s->text, d->prompt.at, d->prompt.length);
    text_append(&s->text, d->completion, d->completion_bytes);
    if (!text_string(&s->text, "\n\n")) return data_row_memory(w);
    ChatMessage user, assistant;
    memset(&user, 0, sizeof user);
    assistant = user;
    user.role = "user"; user.content = d->prompt.at; user.content_bytes = d->prompt.length;
    assistant.role = "assistant"; assistant.content = d->completion; assistant.content_bytes = d->completion_bytes;
    return shots_add(w, s, user) && shots_add(w, s, assistant);
}

/* Begins w->text with them. */
static bool shots_before_text(DataWork *w) {
    text_cut(&w->text, 0);
    if (!w->shots) return true;
    if (w->shots->chats)
        return data_row_fail(w, "give shots of the same shape as the data",
                             "the row is plain text, and the solved examples are chats");
    return text_append(&w->text, w->shots->text.at, w->shots->text.length) || data_row_memory(w);
}
/* Puts them into the dialogue, behind its system message. */
static bool shots_before_chat(DataWork *w) {
    Dialogue *d = &w->dialogue;
    size_t n = w->shots ? w->shots->count : 0, at = d->count && !strcmp(d->messages[0].role, "system");
    void *p = d->messages;
    if (!n) return true;
    if (!data_room(&p, &d->capacity, d->count + n, sizeof *d->messages)) return data_row_memory(w);
    d->messages = (ChatMessage *)p;
    memmove(d->messages + at + n, d->messages + at, (d->count - at) * sizeof *d->messages);
    memcpy(d->messages + at, w->shots->messages, n * sizeof *d->messages);
    d->count += n;
    return true;
}

static void shots_free(Shots *s) {
    for (size_t i = 0; i < s->count; i++) {
        free((char *)s->messages[i].content);
        free((char *)s->messages[i].reasoning);
    }
    for (ptrdiff_t i = 0; i < arrlen(s->whole); i++) json_free(&s->whole[i]);
    arrfree(s->whole);
    free(s->messages);
    text_free(&s->text);
    memset(s, 0, sizeof *s);
}
/* Reads the options' shots: each is a row of any shape that data may have, with its answer. */
static bool shots_open(Shots *s, const Tokenizer *t, const DataOptions *o, Error *err) {
    DataRows r;
    DataWork w;
    memset(s, 0, sizeof *s);
    memset(&r, 0, sizeof r);
    if (!o->few_shot) return true;
    if (!o->shots) return fail(err, "solved examples from no file; --few-shot %d; give --shots FILE", o->few_shot);
    r.path = o->shots;
    data_work_open(&w, &r, t, o);
    bool ok = data_text_open(&r, err) && data_rows_read(&r, err) &&
              (r.count >= (size_t)o->few_shot ||
               fail(err, "only %zu rows; %s; --few-shot %d needs as many", r.count, o->shots, o->few_shot));
    for (int i = 0; i < o->few_shot && ok; i++) {
        ok = data_row_begin(&w, (size_t)i, true) && shots_encode(&w, s);
        data_row_end(&w, ok);
        if (!ok && err) *err = w.err;
    }
    data_work_free(&w);
    data_rows_free(&r);
    if (!ok) shots_free(s);
    return ok;
}

/* ---- examples: what is learned of a dialogue --------------------------------------------------------------------- */

/* What a row says of its class, its number or its margin, before all rows are known. */
typedef enum { LABEL_NONE, LABEL_TEXT, LABEL_TRUTH, LABEL_NUMBER, LABEL_CELL, LABEL_NAMES, LABEL_FLAGS, LABEL_KINDS }
    LabelKind;
typedef struct DataLabel {
    LabelKind kind;                         /* CELL: of a CSV file, a number unless others are texts */
    size_t count;                           /* NAMES, FLAGS */
    char *text;                             /* malloc'ed. TEXT, TRUTH, NUMBER, CELL: as it is written; NAMES: count
                                               texts, each with its NUL; FLAGS: '0' or '1' [count] */
    double number;                          /* NUMBER, CELL */
} DataLabel;

/* The example of one row before the arena. */
typedef struct DataExample DataExample;
struct DataExample {
    int32_t *ids, *labels;                  /* one block: [count], [count] */
    size_t count, thoughts, systems;        /* left out by the chat template: thoughts, system messages */
    size_t rewritten, unsaid;               /* answers behind another text than their prompt; other messages left out */
    bool dated;                             /* as in DataStats */
    ChatTemplate chat;
    bool truncated, cut_reply, lost_reply;
    DataLabel label;                        /* of classification; reward: the margin, of the chosen one */
    DataExample *next;                      /* the same row's next turn, with split_turns, or the rejected answer;
                                               malloc'ed */
};
static void example_free(DataExample *e) {
    for (DataExample *n = e->next, *after; n; n = after) { after = n->next; free(n->ids); free(n); }
    free(e->ids);
    free(e->label.text);
    memset(e, 0, sizeof *e);
}
/* Room for ids and labels [count]. */
static bool example_room(DataWork *w, DataExample *e, size_t count) {
    e->ids = (int32_t *)malloc((count ? count : 1) * 2 * sizeof *e->ids);
    if (!e->ids) return data_row_memory(w);
    e->labels = e->ids + count;
    return true;
}

/* Cuts an example to max_length. Its last reply is [reply, end), empty where there is none. With truncate_prompt what
   is before the reply loses its beginning, but for a BOS and the one token that the reply's first needs before it. */
static void example_cut(const DataWork *w, DataExample *e, size_t reply, size_t end) {
    size_t limit = (size_t)w->o->max_length;
    if (w->o->max_length <= 0 || e->count <= limit) return;
    e->truncated = true;
    if (w->o->truncate_prompt && reply < end) {
        size_t first = w->t && e->ids[0] == tokenizer_bos(w->t), most = reply > 0 ? reply - 1 : 0;
        size_t gone = end <= limit ? 0 : end - limit < most ? end - limit : most;
        if (gone) {
            memmove(e->ids + first, e->ids + first + gone, (e->count - first - gone) * sizeof *e->ids);
            memmove(e->labels + first, e->labels + first + gone, (e->count - first - gone) * sizeof *e->labels);
        }
        e->count -= gone; reply -= gone; end -= gone;
    }
    e->cut_reply = reply < end && end > limit;
    e->lost_reply = e->cut_reply && reply >= limit;
    if (e->count > limit) e->count = limit;
}

/* The last run of tokens with mask 1, or of labels: [*begin, *end). */
static void example_last_reply(const uint8_t *mask, const int32_t *labels, size_t count, size_t *begin, size_t *end) {
    size_t i = count;
    while (i && !(mask ? mask[i - 1] : labels[i - 1] != DATA_IGNORE)) i--;
    *end = i;
    while (i && (mask ? mask[i - 1] : labels[i - 1] != DATA_IGNORE)) i--;
    *begin = i;
}

/* Tokenises text[n] and keeps the example. spans: the replies; all: everything is learned, not they alone. In plain
   text the reply begins where TRL says: where the tokens of the prompt alone and those of the whole go apart. */
static bool example_tokenise(DataWork *w, DataExample *e, const char *text, size_t n, const TextSpan *spans,
                             size_t nspans, bool all, int flags) {
    size_t same = 0, reply, end;
    bool pair = nspans && (flags & TOK_ADD_SPECIAL);
    if (pair && !tokenizer_encode(w->t, &w->before, text, spans[0].begin, flags, &w->err)) return data_row_wrap(w);
    if (!tokenizer_encode_spans(w->t, &w->tok, text, n, spans, nspans, flags, &w->err)) return data_row_wrap(w);
    e->count = w->tok.count;
    if (pair) {
        while (same < e->count && same < w->before.count && w->tok.ids[same] == w->before.ids[same]) same++;
        for (size_t i = 0; i < e->count; i++) w->tok.mask[i] = i >= same;
    }
    if (!example_room(w, e, e->count)) return false;
    for (size_t i = 0; i < e->count; i++) {
        e->ids[i] = w->tok.ids[i];
        e->labels[i] = all || w->tok.mask[i] ? w->tok.ids[i] : (int32_t)DATA_IGNORE;
    }
    example_last_reply(w->tok.mask, NULL, e->count, &reply, &end);
    example_cut(w, e, reply, end);
    return true;
}

/* Plain text, or prompt and completion as plain text, as TRL's non-conversational data: the completion follows the
   prompt directly (a space between them is the business of the data or of the template), then the tokenizer's end of
   text unless the completion brings it. */
static bool example_plain(DataWork *w, DataExample *e) {
    const Dialogue *d = &w->dialogue;
    bool all = d->kind == DIALOGUE_TEXT || w->o->loss_on == LOSS_ON_ALL;
    int32_t id = tokenizer_eos(w->t);
    const char *eos = id >= 0 ? tokenizer_token(w->t, id) : NULL;
    if (!eos) eos = "";
    size_t n = strlen(eos), bytes = d->completion_bytes;
    bool ended = bytes >= n && !memcmp(d->completion + bytes - n, eos, n);
    if (!shots_before_text(w)) return false;
    TextSpan span = {w->text.length + (all && w->shots ? 0 : d->prompt.length), 0};
    text_append(&w->text, d->prompt.at, d->prompt.length);
    text_append(&w->text, d->completion, bytes);
    if (!text_append(&w->text, eos, ended ? 0 : n)) return data_row_memory(w);
    span.end = w->text.length;
    bool reply = span.end > span.begin && !(all && !d->prompt.length && !w->shots);   /* plain text has none */
    return example_tokenise(w, e, w->text.at, w->text.length, &span, reply, all && !w->shots, TOK_ADD_SPECIAL);
}

/* Renders messages[count]; what the user should hear of it is noted. */
static bool dialogue_render(DataWork *w, ChatText *chat, size_t count, ChatOptions o) {
    const ChatMessage *messages = w->dialogue.messages;
    return (w->o->chat_source ? chat_source_render(chat, w->o->chat_source, messages, count, o, &w->err)
                              : chat_render(chat, w->t, w->chat, messages, count, o, &w->err)) || data_row_wrap(w);
}
static bool example_render(DataWork *w, DataExample *e, ChatText *chat, size_t count, ChatOptions o) {
    if (!dialogue_render(w, chat, count, o)) return false;
    e->rewritten = chat->rewritten;
    e->unsaid = chat->unsaid;
    e->thoughts = chat->thoughts;
    e->systems = chat->systems;
    e->dated = w->chat == CHAT_LLAMA32 && !o.date;
    e->chat = w->chat;
    return true;
}

/* With split_turns every answer behind the `skip` first ones becomes an example. */
static bool example_turns(DataWork *w, DataExample *e, size_t skip) {
    const Dialogue *d = &w->dialogue;
    ChatOptions options = d->chat;
    DataExample *last = NULL;
    for (size_t i = 0, seen = 0; i < d->count; i++) {
        if (strcmp(d->messages[i].role, "assistant") || seen++ < skip || !d->messages[i].train) continue;
        ChatText chat;
        if (last && !(e = last->next = (DataExample *)calloc(1, sizeof *e))) return data_row_memory(w);
        last = e;
        options.as_answer = i > 0;          /* a chat may begin with an answer to nothing */
        if (!example_render(w, e, &chat, i + 1, options)) return false;
        bool ok = example_tokenise(w, e, chat.text, chat.bytes, chat.spans, chat.nspans, false, 0);
        chat_text_free(&chat);
        if (!ok) return false;
    }
    return true;
}

/* A chat: its answers are learned, but for `skip` from the front, and those of weight 0. */
static bool example_chat(DataWork *w, DataExample *e) {
    Dialogue *d = &w->dialogue;
    bool all = w->o->loss_on == LOSS_ON_ALL, only_last = !d->divided && w->o->loss_on == LOSS_ON_COMPLETION;
    size_t skip = d->divided && w->o->loss_on != LOSS_ON_ASSISTANT ? d->given : 0;
    if (w->shots && all)
        return data_row_fail(w, "leave out --loss-on all", "solved examples in front of a chat would be in the loss");
    if (w->o->split_turns && all)
        return data_row_fail(w, "leave out one of them",
                             "--split-turns learns answers alone, --loss-on all the prompts too");
    if (!shots_before_chat(w)) return false;
    if (w->shots) skip += dialogue_answers(w->shots->messages, w->shots->count);
    size_t answers = dialogue_answers(d->messages, d->count);
    if (only_last && answers) skip = answers - 1;
    if (w->o->split_turns) return example_turns(w, e, skip);
    ChatText chat;
    if (!example_render(w, e, &chat, d->count, d->chat)) return false;
    size_t kept = 0, reply = 0, span = 0;   /* spans of the assistant's messages; those that are learned stay */
    for (size_t i = 0; i < d->count; i++) {
        if (strcmp(d->messages[i].role, "assistant")) continue;
        for (; span < chat.nspans && (chat.owner ? chat.owner[span] : span) == reply; span++)
            if (reply >= skip && d->messages[i].train) chat.spans[kept++] = chat.spans[span];
        reply++;
    }
    bool ok = example_tokenise(w, e, chat.text, chat.bytes, chat.spans, kept, all, 0);
    chat_text_free(&chat);
    return ok;
}

/* A row that is tokenised already. As in TRL labels say all; without them assistant_masks always counts, and
   completion_mask where the loss is on the completion. Tokens that attention_mask leaves out (padding) are left out. */
static bool example_ids(DataWork *w, DataExample *e) {
    enum { LABELS, ATTENTION, ASSISTANT, COMPLETION, COLUMNS };
    static const char *const name[COLUMNS] = {"labels", "attention_mask", "assistant_masks", "completion_mask"};
    const Json *ids = w->dialogue.ids, *column[COLUMNS] = {NULL, data_get(w->object, name[ATTENTION]), NULL, NULL};
    double vocab = w->t ? tokenizer_vocab_size(w->t) : INT32_MAX;
    bool tokens = w->task == TASK_CAUSAL_LM, on_completion = tokens && w->o->loss_on == LOSS_ON_COMPLETION;
    if (tokens) column[LABELS] = data_get(w->object, name[LABELS]);
    if (tokens && !column[LABELS]) column[ASSISTANT] = data_get(w->object, name[ASSISTANT]);
    if (!column[LABELS] && on_completion) column[COMPLETION] = data_get(w->object, name[COMPLETION]);
    bool answer = column[LABELS] || column[ASSISTANT] || column[COMPLETION];
    w->uses.labelled += column[LABELS] != NULL;
    if (!data_need(w, ids, "input_ids", JSON_ARRAY)) return false;
    if (tokens && !answer && (on_completion || w->o->loss_on == LOSS_ON_ASSISTANT))
        return data_wrong_loss(w, "token ids without labels");
    for (int k = 0; k < COLUMNS; k++) {
        if (!column[k]) continue;
        if (!data_need(w, column[k], name[k], JSON_ARRAY)) return false;
        if (column[k]->count != ids->count)
            return data_row_fail(w, "give one for every id", "%u input_ids, but %u %s", ids->count, column[k]->count,
                                 name[k]);
        column[k] = column[k]->child;       /* from here on: the element beside the id */
    }
    if (!example_room(w, e, ids->count)) return false;
    size_t reply, end, i = 0;
    for (const Json *id = ids->child; id; id = id->next, i++) {
        bool attended = true, fits = id->type == JSON_NUMBER && id->number >= 0 && id->number < vocab;
        if (!fits || id->number != (double)(int32_t)id->number)
            return data_row_fail(w, "ids must be integers of this model's vocabulary",
                                 "input_ids[%zu] is %.40s, not in 0..%.0f",
                                 i, id->str ? id->str : data_type_name[id->type], vocab - 1);
        int32_t label = (int32_t)id->number;
        for (int k = 0; k < COLUMNS; k++) {
            const Json *v = column[k];
            if (!v) continue;
            column[k] = v->next;
            bool number = v->type == JSON_NUMBER, one = v->type == JSON_TRUE || (number && v->number == 1);
            if (k == LABELS) {
                if (!number || v->number != (double)(int32_t)v->number ||
                    !((v->number >= 0 && v->number < vocab) || v->number == DATA_IGNORE))
                    return data_row_fail(w, "labels must be ids of the vocabulary, or -100 where nothing is learned",
                                         "labels[%zu] is %.40s, not in 0..%.0f and not -100",
                                         i, v->str ? v->str : data_type_name[v->type], vocab - 1);
                label = (int32_t)v->number;
            } else if (!one && v->type != JSON_FALSE && !(number && v->number == 0))
                return data_row_fail(w, "write 1 where the token counts and 0 where not", "%s[%zu] is neither 0 nor 1",
                                     name[k], i);
            else if (!one && k == ATTENTION) attended = false;
            else if (!one) label = DATA_IGNORE;
        }
        if (!attended) continue;
        e->ids[e->count] = (int32_t)id->number;
        e->labels[e->count++] = tokens ? label : (int32_t)DATA_IGNORE;
    }
    if (!tokens) return true;
    example_last_reply(NULL, e->labels, e->count, &reply, &end);
    example_cut(w, e, reply, answer ? end : reply);
    return true;
}

/* ---- examples with a label: classification and reward ------------------------------------------------------------ */

/* A text as a whole: its tokens, none of them a label. */
static bool example_whole(DataWork *w, DataExample *e, const char *text, size_t n, int flags) {
    if (!tokenizer_encode(w->t, &w->tok, text, n, flags, &w->err)) return data_row_wrap(w);
    e->count = w->tok.count;
    if (!example_room(w, e, e->count)) return false;
    for (size_t i = 0; i < e->count; i++) { e->ids[i] = w->tok.ids[i]; e->labels[i] = DATA_IGNORE; }
    return true;
}
/* Cuts it to max_length as tokenizer(text, truncation=True) does: at the end, but for the tokens that the tokenizer put
   there. With truncate_prompt at the beginning, behind a BOS. */
static void example_cut_whole(const DataWork *w, DataExample *e, int flags) {
    size_t limit = (size_t)w->o->max_length, kept = flags & TOK_ADD_SPECIAL ? tokenizer_special_after(w->t) : 0;
    if (w->o->max_length <= 0 || e->count <= limit) return;
    size_t gone = e->count - limit, at = limit > kept ? limit - kept : 0;
    if (w->o->truncate_prompt) at = w->t && e->ids[0] == tokenizer_bos(w->t);
    memmove(e->ids + at, e->ids + at + gone, (limit - at) * sizeof *e->ids);
    e->count = limit;
    e->truncated = true;
}

/* A text as a label. NUL ends the names of classes, so that it is none of them. */
static bool label_text(DataWork *w, DataLabel *l, LabelKind kind, const Json *v) {
    l->kind = kind;
    l->text = text_copy_bytes(v->str, v->count);
    return strlen(l->text) == v->count || data_row_fail(w, "leave it out", "\"label\" holds a NUL");
}
/* A list: names of classes, or 0 or 1 for every class. */
static bool label_list(DataWork *w, DataLabel *l, const Json *list) {
    Text text = TEXT_EMPTY;
    bool names = !list->child || list->child->type == JSON_STRING;
    const char *todo = "multi-label rows have a list of class names, or 0 or 1 for every class";
    l->kind = names ? LABEL_NAMES : LABEL_FLAGS;
    for (const Json *v = list->child; v; v = v->next, l->count++) {
        bool one = v->type == JSON_TRUE || (v->type == JSON_NUMBER && v->number == 1);
        bool zero = v->type == JSON_FALSE || (v->type == JSON_NUMBER && v->number == 0);
        bool name = v->type == JSON_STRING && v->count && strlen(v->str) == v->count;
        if (names ? !name : !one && !zero) {
            text_free(&text);
            return data_row_fail(w, todo, "label[%zu] is %.40s", l->count,
                                 v->type == JSON_NUMBER ? v->str : names && v->type == JSON_STRING ? "no name"
                                                                                          : data_type_name[v->type]);
        }
        if (names) text_append(&text, v->str, v->count + 1);
        else text_append(&text, one ? "1" : "0", 1);
    }
    if (!text_append(&text, "", 1)) return data_row_memory(w);
    l->text = text.at;
    return true;
}
/* What a CSV file's cell spells: a number from its first to its last character, or none. */
static bool label_cell_number(const char *s, double *number) {
    char *end;
    if (!*s || isspace((unsigned char)*s)) return false;
    *number = strtod(s, &end);
    return !*end && !strpbrk(s, "xXpP(");
}
/* The row's label, or labels. One that is not there is counted when all rows are: labels_fail_missing. */
static bool label_read(DataWork *w, DataLabel *l, const Json *v) {
    if (!v || (v->type == JSON_STRING && !v->count)) return true;
    if (v->type == JSON_OBJECT)
        return data_row_fail(w, "a label is a text, a number, true or false, or a list", "\"label\" is an object");
    if (v->type == JSON_ARRAY || (v->type == JSON_STRING && w->rows->csv && *v->str == '['))
        return (v = data_list(w, v, "label")) != NULL && label_list(w, l, v);
    if (v->type == JSON_STRING) {
        bool cell = w->rows->csv && label_cell_number(v->str, &l->number);
        return label_text(w, l, cell ? LABEL_CELL : LABEL_TEXT, v);
    }
    l->kind = v->type == JSON_NUMBER ? LABEL_NUMBER : LABEL_TRUTH;
    l->number = v->type == JSON_NUMBER ? v->number : v->type == JSON_TRUE;
    l->text = text_copy(v->type == JSON_NUMBER ? v->str : v->type == JSON_TRUE ? "true" : "false");
    return true;
}

/* A chat that ends with its own label gives the answer away. */
static bool example_leak(DataWork *w, const DataLabel *l) {
    const Dialogue *d = &w->dialogue;
    const ChatMessage *last = d->count ? &d->messages[d->count - 1] : NULL;
    if (!last || d->divided || strcmp(last->role, "assistant") || !l->text || l->kind > LABEL_CELL ||
        last->content_bytes != strlen(l->text) || memcmp(last->content, l->text, last->content_bytes)) return true;
    return data_row_fail(w, "leave that message out, or write prompt + completion + label: completions are not read",
                         "the chat ends with an assistant who says the label");
}

/* A row with a label: plain text with the tokenizer's own tokens around it, as tokenizer(text); a chat as
   apply_chat_template(messages) renders it, a prompt of messages up to where the answer begins. */
static bool example_labelled(DataWork *w, DataExample *e) {
    Dialogue *d = &w->dialogue;
    const Json *label = data_get(w->object, "label");
    int flags = 0;
    if (!label) label = data_get(w->object, "labels");
    if (!label_read(w, &e->label, label)) return false;
    if (d->kind == DIALOGUE_IDS) {
        if (!example_ids(w, e)) return false;
    } else if (d->kind == DIALOGUE_CHAT) {
        ChatText chat;
        ChatOptions options = d->chat;
        options.add_generation_prompt = d->divided;
        if (!example_leak(w, &e->label) || !example_render(w, e, &chat, d->count, options)) return false;
        bool ok = example_whole(w, e, chat.text, chat.bytes, 0);
        chat_text_free(&chat);
        if (!ok) return false;
    } else {
        flags = TOK_ADD_SPECIAL;
        text_cut(&w->text, 0);
        text_append(&w->text, d->prompt.at, d->prompt.length);
        if (!text_append(&w->text, d->completion, d->completion_bytes)) return data_row_memory(w);
        if (!example_whole(w, e, w->text.at, w->text.length, flags)) return false;
    }
    example_cut_whole(w, e, flags);
    return true;
}

/* One answer of a pair, as TRL's RewardTrainer: prompt and answer are one chat, or one text that ends with the
   tokenizer's end of text. */
static bool example_side(DataWork *w, DataExample *e, const char *key) {
    Dialogue *d = &w->dialogue;
    const Json *prompt = data_get(w->object, "prompt"), *answer = data_get(w->object, key);
    bool chat = answer->type == JSON_ARRAY;
    d->count = 0;
    if (prompt && (prompt->type == JSON_ARRAY) != chat)
        return data_row_fail(w, "give both as texts or both as messages; leave out a prompt that the answers repeat",
                             "\"prompt\" is %s, \"%s\" is %s", data_type_name[prompt->type], key,
                             data_type_name[answer->type]);
    if (chat) {
        ChatText text;
        if ((prompt && !dialogue_messages(w, prompt, "prompt")) || !dialogue_messages(w, answer, key) ||
            !dialogue_chat(w) || !example_render(w, e, &text, d->count, d->chat)) return false;
        bool ok = example_whole(w, e, text.text, text.bytes, 0);
        chat_text_free(&text);
        return ok;
    }
    if (!data_need(w, answer, key, JSON_STRING)) return false;
    text_cut(&d->prompt, 0);
    if (prompt && !dialogue_pair(w, prompt->str, prompt->count, NULL)) return false;
    int32_t id = tokenizer_eos(w->t);
    const char *eos = id >= 0 ? tokenizer_token(w->t, id) : NULL;
    size_t n = eos ? strlen(eos) : 0;
    bool ended = answer->count >= n && n && !memcmp(answer->str + answer->count - n, eos, n);
    text_cut(&w->text, 0);
    text_append(&w->text, d->prompt.at, d->prompt.length);
    text_append(&w->text, answer->str, answer->count);
    if (!text_append(&w->text, eos ? eos : "", ended ? 0 : n)) return data_row_memory(w);
    return example_whole(w, e, w->text.at, w->text.length, TOK_ADD_SPECIAL);
}
static bool example_reward(DataWork *w, DataExample *e) {
    const Json *margin = data_get(w->object, "margin");
    if (margin && !label_read(w, &e->label, margin)) return false;
    if (margin && e->label.kind != LABEL_NUMBER && e->label.kind != LABEL_CELL)
        return data_row_fail(w, "it says by how much the chosen answer is the better one", "\"margin\" is no number");
    if (!(e->next = (DataExample *)calloc(1, sizeof *e))) return data_row_memory(w);
    if (!example_side(w, e, "chosen")) return false;
    DataUses once = w->uses;                /* the row counts once */
    bool ok = example_side(w, e->next, "rejected");
    w->uses = once;
    return ok;
}

static bool example_encode(DataWork *w, DataExample *e) {
    if (w->task == TASK_REWARD) return example_reward(w, e);
    if (w->task == TASK_CLASSIFICATION) return example_labelled(w, e);
    switch (w->dialogue.kind) {
        case DIALOGUE_IDS: return w->shots ? shots_refuse_ids(w) : example_ids(w, e);
        case DIALOGUE_CHAT: return example_chat(w, e);
        case DIALOGUE_PAIR: case DIALOGUE_TEXT: break;
    }
    return example_plain(w, e);
}

/* Rows [begin, end) to examples[end - begin]; what they were found to be is added to stats' uses and unread. Rows are
   dealt out to threads; the error kept is the one of the first bad row, whatever the number of threads. */
static bool data_examples(DataExample *examples, DataStats *stats, const DataRows *rows, size_t begin, size_t end,
                          const Tokenizer *t, const DataOptions *o, const Shots *shots, Error *err) {
    size_t first_bad = end;
#ifdef _OPENMP
    int threads = o->threads > 0 ? o->threads : omp_get_max_threads();
#pragma omp parallel num_threads(threads)
#endif
    {
        DataWork w;
        data_work_open(&w, rows, t, o);
        w.shots = shots;
        w.task = o->task;
#ifdef _OPENMP
#pragma omp for schedule(dynamic, 16)
#endif
        for (size_t i = begin; i < end; i++) {
            size_t limit;
#ifdef _OPENMP
#pragma omp atomic read
#endif
            limit = first_bad;
            if (i > limit) continue;        /* rows before the first bad one are read: one of them may be bad, too */
            bool ok = data_row_begin(&w, i, o->task != TASK_CLASSIFICATION) && example_encode(&w, &examples[i - begin]);
            data_row_end(&w, ok);
            if (ok) continue;
#ifdef _OPENMP
#pragma omp critical(data_first_bad)
#endif
            if (i < first_bad) {
                if (err) *err = w.err;
#ifdef _OPENMP
#pragma omp atomic write
#endif
                first_bad = i;
            }
        }
#ifdef _OPENMP
#pragma omp critical(data_first_bad)
#endif
        {
            data_columns_join(&stats->unread, &w.unread);
            stats->uses.chats += w.uses.chats;
            stats->uses.dressed += w.uses.dressed;
            stats->uses.labelled += w.uses.labelled;
        }
        data_work_free(&w);
    }
    return first_bad == end;
}

/* ---- prompts: a dialogue up to where the answer begins ----------------------------------------------------------- */

static bool prompt_take(DataWork *w, Prompt *p, const char *text, size_t bytes, int flags) {
    if (!tokenizer_encode(w->t, &w->tok, text, bytes, flags, &w->err)) return data_row_wrap(w);
    if (!w->tok.count) return data_row_fail(w, "give some text", "the prompt is empty");
    p->count = (int)w->tok.count;
    p->ids = (int32_t *)must_alloc(w->tok.count * sizeof *p->ids);
    memcpy(p->ids, w->tok.ids, w->tok.count * sizeof *p->ids);
    return true;
}
static void prompt_reference(Prompt *p, const char *text, size_t bytes) {
    p->reference_bytes = bytes;
    if (bytes) p->reference = text_copy_bytes(text, bytes);
}
/* What stands in front of the answer, for the reader. */
static void prompt_dialogue(Prompt *p, const ChatMessage *messages, size_t count) {
    Text t = TEXT_EMPTY;
    json_list(&t, NULL, JSON_LINE);
    for (size_t i = 0; i < count; i++) {
        json_object(&t, NULL, JSON_LINE);
        json_string(&t, "role", messages[i].role);
        json_bytes(&t, "content", messages[i].content, messages[i].content_bytes);
        json_end(&t);
    }
    json_end(&t);
    p->dialogue = t.at;
}

static bool prompt_plain(DataWork *w, Prompt *p) {
    const Dialogue *d = &w->dialogue;
    ChatMessage whole;
    memset(&whole, 0, sizeof whole);
    whole.role = "prompt"; whole.content = d->prompt.at; whole.content_bytes = d->prompt.length;
    prompt_dialogue(p, &whole, 1);
    prompt_reference(p, d->completion, d->completion_bytes);
    if (!shots_before_text(w)) return false;
    if (!text_append(&w->text, d->prompt.at, d->prompt.length)) return data_row_memory(w);
    return prompt_take(w, p, w->text.at, w->text.length, TOK_ADD_SPECIAL);
}

/* A chat: the system message, the shots, the dialogue up to its last assistant message, the assistant's header. */
static bool prompt_chat(DataWork *w, Prompt *p) {
    Dialogue *d = &w->dialogue;
    ChatOptions options = d->chat;
    ChatText chat;
    memset(&chat, 0, sizeof chat);
    if (d->count && !strcmp(d->messages[d->count - 1].role, "assistant")) {
        const ChatMessage *last = &d->messages[--d->count];
        prompt_reference(p, last->content, last->content_bytes);
    }
    if (!d->count) return data_row_fail(w, "give a user's message", "there is nothing to answer");
    prompt_dialogue(p, d->messages, d->count);
    options.add_generation_prompt = true;
    bool ok = shots_before_chat(w) &&
              dialogue_render(w, &chat, d->count, options) &&
              prompt_take(w, p, chat.text, chat.bytes, 0);
    chat_text_free(&chat);
    return ok;
}

/* What else the row says to those who score answers. SQuAD's own {"text": [...]} will do for "answers". */
static bool prompt_about(DataWork *w, Prompt *p) {
    const Json *answers = w->dialogue.answers, *group = w->dialogue.group;
    if (!group) group = data_get(w->object, "label");
    if (group && group->str) p->group = text_copy(group->str);                 /* a number as it is written */
    if (answers && answers->type == JSON_OBJECT && data_get(answers, "text")) answers = data_get(answers, "text");
    bool one = answers && answers->type == JSON_STRING;
    if (answers && !one && !data_need(w, answers, "answers", JSON_ARRAY)) return false;
    if (!p->reference) return true;
    p->answers = (char **)must_alloc((1 + (answers ? answers->count : 0)) * sizeof *p->answers);
    for (const Json *a = one ? answers : answers ? answers->child : NULL; a; a = one ? NULL : a->next) {
        if (!data_need(w, a, "answers[]", JSON_STRING)) return false;
        p->answers[p->answer_count++] = text_copy_bytes(a->str, a->count);
    }
    if (!p->answer_count) p->answers[p->answer_count++] = text_copy(p->reference);
    return true;
}

static bool prompt_encode(DataWork *w, Prompt *p) {
    switch (w->dialogue.kind) {
        case DIALOGUE_IDS:
            if (w->shots) return shots_refuse_ids(w);
            return data_row_fail(w, "give rows of text", "token ids have no prompt to answer");
        case DIALOGUE_TEXT:
            return data_row_fail(w, "give rows with prompt and completion, or leave --generate out",
                                 "plain text has no prompt to answer");
        case DIALOGUE_CHAT: return prompt_chat(w, p) && prompt_about(w, p);
        case DIALOGUE_PAIR: break;
    }
    return prompt_plain(w, p) && prompt_about(w, p);
}

static bool prompts_read(Prompts *p, DataRows *r, const Tokenizer *t, const DataOptions *options, Error *err) {
    DataWork w;
    Shots shots;
    DataOptions own, *o = &own;
    Error why;
    memset(p, 0, sizeof *p);
    if (!data_source_open(&own, options, t, &why, err)) return false;
    data_work_open(&w, r, t, o);
    w.shots = o->few_shot ? &shots : NULL;
    bool ok = shots_open(&shots, t, o, err) && data_rows_read(r, err) &&
              (r->count || fail(err, "no rows; %s; expected at least one prompt", r->path));
    if (ok && o->max_rows && r->count > (size_t)o->max_rows) r->count = (size_t)o->max_rows;
    if (ok) p->list = (Prompt *)must_alloc(r->count * sizeof *p->list);
    for (size_t i = 0; ok && i < r->count; i++) {
        Prompt *one = &p->list[p->count++];
        one->row = (int64_t)i + 1;
        ok = data_row_begin(&w, i, false) && prompt_encode(&w, one);
        data_row_end(&w, ok);
        if (!ok && err) *err = w.err;
    }
    p->stats.rows = (int64_t)p->count;
    p->stats.uses = w.uses;
    p->stats.unread = w.unread;
    if (w.uses.chats) p->stats.chat = w.chat;
    data_chat_stats(&p->stats, own.chat_source);
    data_work_free(&w);
    shots_free(&shots);
    data_source_close(&own, options);
    if (!ok) prompts_free(p);
    return ok;
}
bool prompts_parse(Prompts *p, const char *text, size_t bytes, const char *name, const Tokenizer *t,
                   const DataOptions *options, Error *err) {
    DataRows r;
    memset(&r, 0, sizeof r);
    r.path = name;
    r.text = text_copy_bytes(text, bytes);
    r.bytes = bytes;
    bool ok = prompts_read(p, &r, t, options, err);
    data_rows_free(&r);
    return ok;
}
bool prompts_open(Prompts *p, const char *path, const Tokenizer *t, const DataOptions *options, Error *err) {
    DataRows r;
    memset(&r, 0, sizeof r);
    memset(p, 0, sizeof *p);
    r.path = path;
    bool ok = data_text_open(&r, err) && prompts_read(p, &r, t, options, err);
    data_rows_free(&r);
    return ok;
}
void prompts_cut(Prompts *p, size_t count) {
    while (p->count > count) {
        Prompt *one = &p->list[--p->count];
        for (int k = 0; k < one->answer_count; k++) free(one->answers[k]);
        free(one->ids); free(one->dialogue); free(one->reference); free(one->answers); free(one->group);
    }
}
void prompts_free(Prompts *p) {
    prompts_cut(p, 0);
    free(p->list);
    memset(p, 0, sizeof *p);
}

/* ---- the tokens of a data set ------------------------------------------------------------------------------------ */

/* Where the tokens of a data set gather: in memory, and beyond TOKENS_IN_MEMORY or for a cache in a token file: header,
   ids, labels, offset[count + 1], row[count], target[count * width], names. Labels wait in a file of their own until
   the number of ids is known. */
enum { TOKENS_IN_MEMORY = 8 << 20 };
typedef struct TokenHeader {
    char magic[8];
    uint64_t key, count, tokens, hash;
    uint64_t task, problem, width, classes, names;      /* names: bytes of all classes' names, each with its NUL */
    int64_t largest_id;
    DataStats stats;
    uint64_t checksum;                      /* of all above, offset and row; the rest has its hash */
} TokenHeader;

/* Where in the data a row is, for messages. */
typedef struct DataPlace { const char *path; size_t row, line /* 0: unknown */; } DataPlace;
/* A label that was seen: its text, or what it is in words; interned, so that rows have a number of it. */
typedef struct LabelSeen { double number; int64_t rows; DataPlace first; LabelKind kind; } LabelSeen;
typedef struct TokenSink {
    int32_t *ids, *labels;                  /* stb_ds arrays: what is not in the files yet */
    size_t *offset;                         /* stb_ds array [count + 1] */
    int64_t *row;                           /* stb_ds array */
    /* what rows say of their labels: labels_close makes classes and targets of it */
    struct { char *key; int32_t value; } *seen_id;       /* stb_ds string map: text -> place in seen */
    LabelSeen *seen;                        /* stb_ds array */
    int32_t *said;                          /* stb_ds array: of every example its labels' places in seen; FLAGS: the
                                               classes that are 1 */
    size_t *said_end;                       /* stb_ds array [count] */
    double *number;                         /* stb_ds array [count]: NUMBER and CELL */
    int64_t of_kind[LABEL_KINDS];           /* rows */
    DataPlace first[LABEL_KINDS];           /* with the first row of each */
    DataPlace fraction, not_finite, wrong_flags;      /* the first such row */
    size_t flags;                           /* of the first list of them */
    FILE *file, *label_file;
    char path[PATH_MAX];                    /* of file, "" where it has no name */
    bool failed;
} TokenSink;

static FILE *sink_temporary(Error *err) {
    const char *folder = getenv("TMPDIR");
    char path[PATH_MAX];
    if (!folder || !*folder) folder = "/var/tmp";
    snprintf(path, sizeof path, "%s/train_lora-XXXXXX", folder);
    int fd = mkstemp(path);
    if (fd < 0) {
        fail(err, "cannot write; %s: %s; set TMPDIR to a folder with room for the tokens", path, strerror(errno));
        return NULL;
    }
    unlink(path);
    return fdopen(fd, "w+b");
}
/* Writes count elements at p; what fails is remembered. */
static void sink_write(TokenSink *s, FILE *f, const void *p, size_t size, size_t count) {
    s->failed |= count && fwrite(p, size, count, f) != count;
}
static bool sink_failed(const TokenSink *s, Error *err) {
    return fail(err, "cannot write the tokens; %s: %s; set TMPDIR or --token-cache to a folder with more room",
                *s->path ? s->path : "temporary file", strerror(errno));
}
static bool sink_spill(TokenSink *s, const char *cache_path, Error *err) {
    TokenHeader empty;
    memset(&empty, 0, sizeof empty);
    if (!s->file) {
        snprintf(s->path, sizeof s->path, "%s", "");
        int fd = cache_path ? temporary_make(s->path, sizeof s->path, cache_path, false) : -1;
        s->file = !cache_path ? sink_temporary(err) : fd < 0 ? NULL : fdopen(fd, "w+b");
        if (fd < 0) *s->path = 0;
        if (!s->file && cache_path)
            return fail(err, "cannot write; %s: %s; give another --token-cache", cache_path, strerror(errno));
        if (!s->file || !(s->label_file = sink_temporary(err))) return false;
        sink_write(s, s->file, &empty, sizeof empty, 1);
    }
    sink_write(s, s->file, s->ids, sizeof *s->ids, (size_t)arrlen(s->ids));
    sink_write(s, s->label_file, s->labels, sizeof *s->labels, (size_t)arrlen(s->labels));
    arrsetlen(s->ids, 0);
    arrsetlen(s->labels, 0);
    return !s->failed || sink_failed(s, err);
}

/* What the example says to the statistics; false: it has no labelled token and is dropped. */
static bool sink_count(DataStats *stats, const DataExample *e, const Tokenizer *t) {
    int32_t bos = t ? tokenizer_bos(t) : -1;
    size_t last = 0;
    int64_t labelled = 0;
    for (size_t k = 1; k < e->count; k++) if (e->labels[k] != DATA_IGNORE) { labelled++; last = k; }
    stats->truncated += e->truncated;
    stats->thoughts += (int64_t)e->thoughts;
    stats->systems += (int64_t)e->systems;
    stats->dated += e->dated;
    stats->rewritten += (int64_t)e->rewritten;
    stats->unsaid += (int64_t)e->unsaid;
    stats->cut_replies += e->cut_reply;
    stats->lost_replies += e->lost_reply;
    if (e->chat != CHAT_NONE) stats->chat = e->chat;
    if (!labelled) { stats->dropped++; return false; }
    stats->tokens += (int64_t)e->count;
    stats->labelled += labelled;
    if ((int64_t)e->count > stats->longest) stats->longest = (int64_t)e->count;
    /* ChatML puts a newline after its end of turn: with the loss on everything it is the last that is learned. */
    bool before = last > 1 && e->labels[last - 1] != DATA_IGNORE;
    stats->stop_trained += t && (tokenizer_is_stop(t, e->labels[last]) ||
                                 (before && tokenizer_is_stop(t, e->labels[last - 1])));
    stats->double_bos += bos >= 0 && e->ids[0] == bos && e->ids[1] == bos;
    return true;
}

/* A label in words becomes its place among those that were seen. */
static void sink_said(TokenSink *s, LabelKind kind, const char *text, double number, DataPlace at) {
    if (!s->seen_id) sh_new_strdup(s->seen_id);
    ptrdiff_t i = shgeti(s->seen_id, text);
    LabelSeen seen = {number, 0, at, kind};
    int32_t id = i >= 0 ? s->seen_id[i].value : (int32_t)arrlen(s->seen);
    if (i < 0) { shput(s->seen_id, text, id); arrput(s->seen, seen); }
    s->seen[id].rows++;
    arrput(s->said, id);
}
/* What the row of an example says. Once there is a fraction numbers are no classes: their texts are not kept. */
static void sink_label(TokenSink *s, const DataLabel *l, DataPlace at) {
    if (!s->of_kind[l->kind]++) s->first[l->kind] = at;
    bool number = l->kind == LABEL_NUMBER || l->kind == LABEL_CELL;
    if (number && !s->not_finite.path && !(fabs(l->number) <= (double)FLT_MAX)) s->not_finite = at;
    if (number && !s->fraction.path && l->number != rint(l->number)) s->fraction = at;
    if (l->kind == LABEL_NAMES) {
        const char *name = l->text;
        for (size_t k = 0; k < l->count; k++, name += strlen(name) + 1) sink_said(s, LABEL_TEXT, name, 0, at);
    } else if (l->kind == LABEL_FLAGS) {
        if (s->of_kind[LABEL_FLAGS] == 1) s->flags = l->count;
        if (l->count != s->flags && !s->wrong_flags.path) s->wrong_flags = at;
        for (size_t k = 0; k < l->count; k++) if (l->text[k] == '1') arrput(s->said, (int32_t)k);
    } else if (l->kind != LABEL_NONE && (l->kind != LABEL_NUMBER || !s->fraction.path))
        sink_said(s, l->kind, l->text, l->number, at);
    arrput(s->said_end, (size_t)arrlen(s->said));
    arrput(s->number, l->number);
}

/* Classification and reward: the example's part in the statistics; false: it is dropped. A pair that is too long is
   not cut, TRL leaves it out. */
static bool sink_count_labelled(DataStats *stats, const DataExample *e, int32_t bos, int limit) {
    bool pair = e->next != NULL, fits = true;
    for (const DataExample *k = e; k; k = k->next)
        fits = fits && k->count && !(pair && limit > 0 && k->count > (size_t)limit);
    stats->truncated += e->truncated;
    if (!fits) { stats->dropped++; return false; }
    for (const DataExample *k = e; k; k = k->next) {
        stats->tokens += (int64_t)k->count;
        stats->labelled++;
        stats->thoughts += (int64_t)k->thoughts;
        stats->systems += (int64_t)k->systems;
        stats->dated += k->dated;
        if (k->chat != CHAT_NONE) stats->chat = k->chat;
        if ((int64_t)k->count > stats->longest) stats->longest = (int64_t)k->count;
        stats->double_bos += bos >= 0 && k->count > 1 && k->ids[0] == bos && k->ids[1] == bos;
    }
    stats->same_pairs += pair && e->count == e->next->count &&
                         !memcmp(e->ids, e->next->ids, e->count * sizeof *e->ids);
    return true;
}

/* The examples of rows [begin, end). before: rows of the files before this one. */
static bool sink_add(Dataset *d, TokenSink *s, const DataExample *examples, const DataRows *rows, size_t begin,
                     size_t end, size_t before, const Tokenizer *t, const DataOptions *o, Error *err) {
    if (!s->offset) arrput(s->offset, 0);
    d->stats.rows += (int64_t)(end - begin);
    int32_t bos = t ? tokenizer_bos(t) : -1;
    for (size_t i = begin; i < end; i++) {
        const DataExample *first = &examples[i - begin];
        DataPlace at = {rows->path, i + 1, rows->row[i].line};
        bool tokens = o->task == TASK_CAUSAL_LM;
        if (!tokens && !sink_count_labelled(&d->stats, first, bos, o->max_length)) continue;
        for (const DataExample *e = first; e; e = e->next) {
            if (tokens && !sink_count(&d->stats, e, t)) continue;
            if (!tokens) sink_label(s, &first->label, at);
            size_t bytes = e->count * sizeof *e->ids;
            memcpy(arraddnptr(s->ids, e->count), e->ids, bytes);
            memcpy(arraddnptr(s->labels, e->count), e->labels, bytes);
            d->hash = hash_bytes(hash_bytes(d->hash, e->ids, bytes), e->labels, bytes);
            for (size_t k = 0; k < e->count; k++) {
                if (e->ids[k] > d->largest_id) d->largest_id = e->ids[k];
                if (e->labels[k] > d->largest_id) d->largest_id = e->labels[k];
            }
            arrput(s->row, (int64_t)(before + i + 1));
            arrput(s->offset, arrlast(s->offset) + e->count);
            d->count++;
        }
    }
    return d->count <= INT32_MAX || fail(err, "more than %d examples; %s; split the file", INT32_MAX, rows->path);
}

/* ---- classes and targets -------------------------------------------------------------------------------------------
   What the labels of all rows are together: their kind decides the problem, their texts or numbers are the classes. */

/* "a, b, c": the names of the classes, the first 20 of them, as a message shows them. */
static void class_names_text(Text *t, char *const *names, int count) {
    char shown[64];
    for (int i = 0; i < count && i < 20; i++) {
        data_name(shown, sizeof shown, names[i], strlen(names[i]));
        text_print(t, "%s%s", i ? ", " : "", shown);
    }
    if (count > 20) text_print(t, " and %d more", count - 20);
}
/* Names [count], one behind the other with a NUL after each, as one block to free; NULL where there are none. */
static char **class_names_copy(const char *text, size_t bytes, int count) {
    if (count <= 0) return NULL;
    char **names = (char **)must_alloc((size_t)count * sizeof *names + bytes), *at = (char *)(names + count);
    memcpy(at, text, bytes);
    for (int k = 0; k < count; k++, at += strlen(at) + 1) names[k] = at;
    return names;
}
static size_t class_names_bytes(const Dataset *d) {
    size_t bytes = 0;
    for (int k = 0; k < d->label_count; k++) bytes += strlen(d->label_names[k]) + 1;
    return bytes;
}

/* Examples of every class, of this data set's slots. */
static void dataset_count_classes(Dataset *d) {
    size_t K = (size_t)d->label_count, width = (size_t)d->target_width;
    if (!K) return;
    d->label_rows = (int64_t *)must_alloc(K * sizeof *d->label_rows);
    for (size_t i = 0; i < d->slots; i++)
        for (SlotIterator e = slot_begin(d, i); slot_next(&e);) {
            if (d->problem == PROBLEM_SINGLE_LABEL) d->label_rows[(size_t)*e.target]++;
            else for (size_t k = 0; k < width; k++) d->label_rows[k] += e.target[k] != 0;
        }
}

static const char *data_place_text(char out[400], DataPlace at) {
    char line[32] = "";
    if (at.line) snprintf(line, sizeof line, " (line %zu)", at.line);
    snprintf(out, 400, "%.300s row %zu%s", at.path, at.row, line);
    return out;
}

static const char *const label_kind_name[LABEL_KINDS] = {"not there", "a text", "a truth value", "a number", "a number",
                                                         "a list of texts", "a list of numbers"};

static bool labels_fail_missing(const Dataset *d, const TokenSink *s, Error *err) {
    char place[400];
    long long missing = s->of_kind[LABEL_NONE];
    data_place_text(place, s->first[LABEL_NONE]);
    if ((size_t)missing < d->count)
        return fail(err, "%lld of %zu rows have no label (null counts as none, NaN too), the first is %s; write it as "
                         "\"label\" or \"labels\", or leave them out", missing, d->count, place);
    char *columns = data_columns_text(&d->stats.unread);
    fail(err, "no row has a label; %s; the column must be called label or labels%s%s", place,
         columns ? ", and there are " : "", columns ? columns : "");
    free(columns);
    return false;
}
/* What all labels are. LABEL_NONE: they differ, or some are missing. */
static LabelKind labels_kind(const Dataset *d, TokenSink *s, Error *err) {
    LabelKind cell = s->of_kind[LABEL_TEXT] ? LABEL_TEXT : LABEL_NUMBER, kind = LABEL_NONE;
    char here[400], there[400];
    if (!s->of_kind[cell]) s->first[cell] = s->first[LABEL_CELL];
    s->of_kind[cell] += s->of_kind[LABEL_CELL];
    s->of_kind[LABEL_CELL] = 0;
    if (s->of_kind[LABEL_NONE]) { labels_fail_missing(d, s, err); return LABEL_NONE; }
    for (int k = LABEL_NONE + 1; k < LABEL_KINDS; k++) {
        if (!s->of_kind[k]) continue;
        if (kind != LABEL_NONE) {
            fail(err, "the label is %s in some rows and %s in others; %s, %s; give all rows labels of one kind",
                 label_kind_name[kind], label_kind_name[k], data_place_text(here, s->first[kind]),
                 data_place_text(there, s->first[k]));
            return LABEL_NONE;
        }
        kind = (LabelKind)k;
    }
    return kind;
}
/* The problem that labels of a kind pose, and whether it is the one that was asked for. */
static bool labels_problem(Dataset *d, const TokenSink *s, LabelKind kind, const DataOptions *o, Error *err) {
    char place[400];
    bool list = kind == LABEL_NAMES || kind == LABEL_FLAGS, number = kind == LABEL_NUMBER, named = o->label_count > 0;
    Problem is = list ? PROBLEM_MULTI_LABEL : number && s->fraction.path && !named ? PROBLEM_REGRESSION
                                                                                   : PROBLEM_SINGLE_LABEL;
    d->problem = o->problem_type ? o->problem_type : is;
    bool fits = d->problem == PROBLEM_REGRESSION ? number : list == (d->problem == PROBLEM_MULTI_LABEL);
    if (!fits)
        return fail(err, "the labels are no %s: the label is %s; %s; --problem-type auto takes what they are",
                    problem_name[d->problem], label_kind_name[kind], data_place_text(place, s->first[kind]));
    if (number && s->not_finite.path)
        return fail(err, "the label is not a finite number; %s; correct the row or leave it out",
                    data_place_text(place, s->not_finite));
    if (number && d->problem == PROBLEM_SINGLE_LABEL && s->fraction.path)
        return fail(err, "a class is a whole number or a text, and the label is a fraction; %s; --problem-type "
                         "regression learns numbers", data_place_text(place, s->fraction));
    if (kind == LABEL_FLAGS && s->wrong_flags.path)
        return fail(err, "the label has not the %zu numbers that the first row's has; %s; write 0 or 1 for every class",
                    s->flags, data_place_text(place, s->wrong_flags));
    return true;
}

typedef struct LabelOrder { const char *text; double number; int32_t seen; bool by_number; } LabelOrder;
static int label_order_compare(const void *a, const void *b) {
    const LabelOrder *x = (const LabelOrder *)a, *y = (const LabelOrder *)b;
    if (x->by_number) return (x->number > y->number) - (x->number < y->number);
    return strcmp(x->text, y->text);
}
/* Classes from what was seen: texts in the order of their bytes, numbers by value. to: [seen], what each one is. */
static bool labels_learn(Dataset *d, const TokenSink *s, LabelKind kind, int32_t *to, Error *err) {
    size_t n = (size_t)arrlen(s->seen);
    Text names = TEXT_EMPTY;
    char number[32];
    if (kind == LABEL_FLAGS) {
        for (size_t k = 0; k < s->flags; k++)
            text_append(&names, number, 1 + (size_t)snprintf(number, sizeof number, "%zu", k));
        d->label_count = (int)s->flags;
    } else {
        LabelOrder *order = (LabelOrder *)must_alloc((n ? n : 1) * sizeof *order);
        for (size_t i = 0; i < n; i++)
            order[i] = (LabelOrder){s->seen_id[i].key, s->seen[i].number, (int32_t)i, kind == LABEL_NUMBER};
        qsort(order, n, sizeof *order, label_order_compare);
        for (size_t i = 0; i < n; i++) {
            bool again = i && !label_order_compare(&order[i - 1], &order[i]);
            to[order[i].seen] = again ? d->label_count - 1 : d->label_count++;
            if (again) continue;
            snprintf(number, sizeof number, "%.17g", order[i].number + 0.0);          /* -0 is 0 */
            const char *name = kind == LABEL_NUMBER ? number : order[i].text;
            text_append(&names, name, strlen(name) + 1);
        }
        free(order);
    }
    bool ok = !names.failed || fail(err, "out of memory; the names of %d classes; free some memory", d->label_count);
    if (ok) d->label_names = class_names_copy(names.at, names.length, d->label_count);
    text_free(&names);
    return ok;
}
static int class_find(const Dataset *d, const char *name) {
    for (int k = 0; k < d->label_count; k++) if (!strcmp(d->label_names[k], name)) return k;
    return -1;
}
/* Classes that are given: a text is the class of that name; so is a number, and where no name is a number it is the
   class's own. */
static bool labels_look_up(Dataset *d, const TokenSink *s, LabelKind kind, const DataOptions *o, int32_t *to,
                           Error *err) {
    Text names = TEXT_EMPTY, known = TEXT_EMPTY;
    char place[400], number[32], shown[64];
    bool numbers = false;
    double ignored;
    int64_t unknown = 0;
    int first = -1, n = (int)arrlen(s->seen);
    for (int k = 0; k < o->label_count; k++) {
        text_append(&names, o->label_names[k], strlen(o->label_names[k]) + 1);
        numbers |= label_cell_number(o->label_names[k], &ignored);
    }
    bool ok = !names.failed || fail(err, "out of memory; the names of %d classes; free some memory", o->label_count);
    if (ok) {
        d->label_count = o->label_count;
        d->label_names = class_names_copy(names.at, names.length, d->label_count);
    }
    text_free(&names);
    if (!ok) return false;
    if (kind == LABEL_FLAGS && s->flags != (size_t)d->label_count)
        return fail(err, "%zu numbers in the label of %d classes; %s; write 0 or 1 for every class", s->flags,
                    d->label_count, data_place_text(place, s->first[kind]));
    for (int i = 0; i < n && kind != LABEL_FLAGS; i++) {
        double v = s->seen[i].number;
        snprintf(number, sizeof number, "%.17g", v + 0.0);
        to[i] = class_find(d, s->seen_id[i].key);
        bool valued = to[i] < 0 && (kind == LABEL_NUMBER || kind == LABEL_TRUTH);
        if (valued && kind == LABEL_NUMBER) to[i] = class_find(d, number);
        if (valued && to[i] < 0 && !numbers && v >= 0 && v < d->label_count) to[i] = (int32_t)v;
        if (to[i] >= 0) continue;
        unknown += s->seen[i].rows;
        if (first < 0) first = i;
    }
    if (first < 0) return true;
    class_names_text(&known, d->label_names, d->label_count);
    data_name(shown, sizeof shown, s->seen_id[first].key, strlen(s->seen_id[first].key));
    fail(err, "labels that are none of %s: %lld, the first is \"%s\"; %s; correct them or leave the rows out", known.at,
         (long long)unknown, shown, data_place_text(place, s->seen[first].first));
    text_free(&known);
    return false;
}

/* targets [count * width] of what the rows said. */
static bool labels_targets(Dataset *d, const TokenSink *s, const int32_t *to, LabelKind kind, Error *err) {
    size_t width = (size_t)d->target_width, said = 0;
    d->target = (float *)calloc(d->count * width, sizeof *d->target);
    if (!d->target) return fail(err, "out of memory; %zu targets of %zu examples; use a smaller data file",
                                d->count * width, d->count);
    for (size_t i = 0; i < d->count; said = s->said_end[i++]) {
        if (d->label_count)
            for (; said < s->said_end[i]; said++) {
                int32_t k = kind == LABEL_FLAGS ? s->said[said] : to[s->said[said]];
                if (d->problem == PROBLEM_SINGLE_LABEL) d->target[i] = (float)k;
                else d->target[i * width + (size_t)k] = 1;
            }
        else d->target[i] = (float)s->number[i];
    }
    d->hash = hash_bytes(d->hash, d->target, d->count * width * sizeof *d->target);
    if (d->label_count) d->hash = hash_bytes(d->hash, d->label_names[0], class_names_bytes(d));
    return true;
}

static bool labels_close_classes(Dataset *d, TokenSink *s, const DataOptions *o, const char *path, Error *err) {
    LabelKind kind = labels_kind(d, s, err);
    if (kind == LABEL_NONE || !labels_problem(d, s, kind, o, err)) return false;
    size_t seen = (size_t)arrlen(s->seen);
    int32_t *to = (int32_t *)must_alloc((seen ? seen : 1) * sizeof *to);
    bool ok = true, learned = d->problem != PROBLEM_REGRESSION && !o->label_count;
    if (learned) ok = labels_learn(d, s, kind, to, err);
    else if (d->problem != PROBLEM_REGRESSION) ok = labels_look_up(d, s, kind, o, to, err);
    long long K = d->label_count, rows = (long long)d->count;
    if (ok && learned && !K)
        ok = fail(err, "no class in any row: every list is empty; %s; name the classes of some", path);
    else if (ok && learned && !o->problem_type && kind != LABEL_FLAGS && K > 50 && 2 * K > rows)
        ok = fail(err, "%lld different labels in %lld rows are hardly classes; %s; --problem-type %s takes them as "
                       "they are%s", K, rows, path, problem_name[d->problem],
                  kind == LABEL_NUMBER ? ", --problem-type regression as numbers" : "");
    d->target_width = d->problem == PROBLEM_MULTI_LABEL ? d->label_count : 1;
    ok = ok && labels_targets(d, s, to, kind, err);
    free(to);
    return ok;
}
/* Reward: the margins, of all pairs or of none. */
static bool labels_close_margins(Dataset *d, TokenSink *s, Error *err) {
    char place[400];
    int64_t none = s->of_kind[LABEL_NONE];
    d->target_width = 1;
    if (none && (size_t)none < d->count)
        return fail(err, "some pairs have a margin and others have none; %s; give all or none",
                    data_place_text(place, s->first[LABEL_NONE]));
    if (s->not_finite.path)
        return fail(err, "the margin is not a finite number; %s; correct the row",
                    data_place_text(place, s->not_finite));
    return labels_targets(d, s, NULL, LABEL_NUMBER, err);
}
/* All rows are known: targets, and the names of classes. */
static bool labels_close(Dataset *d, TokenSink *s, const DataOptions *o, const char *path, Error *err) {
    d->task = o->task;
    switch (o->task) {
        case TASK_CLASSIFICATION: return labels_close_classes(d, s, o, path, err);
        case TASK_REWARD: return labels_close_margins(d, s, err);
        case TASK_CAUSAL_LM: case TASK_COUNT: break;
    }
    return true;
}

bool dataset_classes_check(const Dataset *train, const Dataset *eval, const char *path, Text *absent, Error *err) {
    if (train->problem != PROBLEM_SINGLE_LABEL && train->problem != PROBLEM_MULTI_LABEL) return true;
    int there = 0, at = 0;
    for (int i = 0; i < train->label_count; i++) if (train->label_rows[i]) { there++; at = i; }
    if (train->problem == PROBLEM_SINGLE_LABEL && there < 2) {
        char shown[64];
        data_name(shown, sizeof shown, train->label_names[at], strlen(train->label_names[at]));
        return fail(err, "one class only: all %zu examples have the label \"%s\"; %s; training needs rows of two "
                         "classes at least", train->slots, shown, path);
    }
    for (int i = 0; eval && eval->slots && i < train->label_count; i++) {
        char shown[64];
        if (!train->label_rows[i] || eval->label_rows[i]) continue;
        data_name(shown, sizeof shown, train->label_names[i], strlen(train->label_names[i]));
        text_print(absent, "%s%s", absent->length ? ", " : "", shown);
    }
    return true;
}

/* One weight; the text of it is [s, end). */
static bool class_weight(float *w, const char *s, const char *end, Error *err) {
    char text[64], *stop;
    size_t n = (size_t)(end - s);
    snprintf(text, sizeof text, "%.*s", (int)(n < sizeof text ? n : sizeof text - 1), s);
    double v = strtod(text, &stop);
    if (stop == text || n >= sizeof text || stop[strspn(stop, " \t")] || !(v >= 0) || (float)v > FLT_MAX)
        return fail(err, "bad weight '%s'; --class-weights; a weight is a number that is not negative", text);
    *w = (float)v;
    return true;
}
/* The class whose name and '=' the text begins with (names may hold commas and equal signs), or -1. */
static int class_before_equal(const Dataset *d, const char *s) {
    int found = -1;
    for (int k = 0; k < d->label_count; k++) {
        size_t n = strlen(d->label_names[k]);
        bool longer = found < 0 || n > strlen(d->label_names[found]);
        if (!strncmp(s, d->label_names[k], n) && s[n] == '=' && longer) found = k;
    }
    return found;
}
bool class_weights_parse(float *w, const Dataset *d, const char *text, Error *err) {
    int K = d->label_count, given = 0;
    const char *s = text;
    float sum = 0;
    if (!K) return fail(err, "a task without classes; --class-weights; leave it out");
    if (!strcmp(text, "balanced")) {
        double rows = 0;
        for (int k = 0; k < K; k++) rows += (double)d->label_rows[k];
        for (int k = 0; k < K; k++) {
            if (!d->label_rows[k])
                return fail(err, "no example of the class \"%.60s\"; --class-weights balanced; give weights for every "
                                 "class", d->label_names[k]);
            w[k] = (float)(rows / ((double)K * (double)d->label_rows[k]));
        }
        return true;
    }
    bool named = strchr(text, '=') != NULL, ok = true;
    char *seen = (char *)must_alloc((size_t)K);
    for (int k = 0; k < K; k++) w[k] = 1;
    for (bool more = true; more && ok; given++) {
        int k = named ? class_before_equal(d, s) : given;
        const char *value = !named ? s : k < 0 ? s + strcspn(s, "=,") : s + strlen(d->label_names[k]) + 1;
        const char *end = value + strcspn(value, ",");
        more = *end == ',';
        if (k < 0) {
            Text known = TEXT_EMPTY;
            class_names_text(&known, d->label_names, K);
            ok = fail(err, "no class \"%.*s\"; --class-weights; the classes are %s", (int)(value - s), s, known.at);
            text_free(&known);
        } else if (k < K && seen[k])
            ok = fail(err, "two weights for the class \"%.60s\"; --class-weights; give one", d->label_names[k]);
        else if (k < K) { seen[k] = 1; ok = class_weight(&w[k], value, end, err); }    /* more of them: counted below */
        s = end + 1;
    }
    free(seen);
    if (!ok) return false;
    if (!named && given != K) {
        Text known = TEXT_EMPTY;
        class_names_text(&known, d->label_names, K);
        fail(err, "%d weights for %d classes; --class-weights; the classes are %s", given, K, known.at);
        text_free(&known);
        return false;
    }
    for (int k = 0; k < K; k++) sum += w[k];
    return sum > 0 || fail(err, "every weight is 0; --class-weights; nothing would be learned");
}

/* ---- the token file, and the data set's arrays ------------------------------------------------------------------- */

static uint64_t tokens_checksum(const TokenHeader *h, const size_t *offset, const int64_t *row) {
    uint64_t sum = hash_bytes(HASH_START, h, offsetof(TokenHeader, checksum));
    return hash_bytes(hash_bytes(sum, offset, (h->count + 1) * sizeof *offset), row, h->count * sizeof *row);
}

static bool data_columns_whole(const DataColumns *c) {
    bool ok = c->count >= 0 && c->count <= DATA_COLUMNS && *(const unsigned char *)&c->more <= 1;
    for (int i = 0; ok && i < c->count; i++) ok = memchr(c->list[i].name, 0, sizeof c->list[i].name) != NULL;
    return ok;
}

/* A target is what its problem knows; of a pair both have the same, and come from the same row. */
static bool data_target_whole(const Dataset *d, size_t i) {
    const float *t = d->target ? d->target + i * (size_t)d->target_width : NULL;
    if (!t) return true;
    bool ok = true;
    for (size_t k = 0; k < (size_t)d->target_width; k++) {
        bool class_number = t[k] >= 0 && t[k] < (float)d->label_count && t[k] == rintf(t[k]);
        if (d->problem == PROBLEM_SINGLE_LABEL) ok = ok && class_number;
        else if (d->problem == PROBLEM_MULTI_LABEL) ok = ok && (t[k] == 0 || t[k] == 1);
        else ok = ok && fabsf(t[k]) <= FLT_MAX;
    }
    return ok && (d->task != TASK_REWARD || !(i & 1) || (d->row[i] == d->row[i - 1] && t[0] == t[-1]));
}
/* The task's own part of a header: how wide targets are, and how many classes have a name. */
static bool tokens_task_whole(const TokenHeader *h, const char *names) {
    uint64_t width = h->task == TASK_CAUSAL_LM ? 0 : h->problem == PROBLEM_MULTI_LABEL ? h->classes : 1, ends = 0;
    bool named = h->problem == PROBLEM_SINGLE_LABEL || h->problem == PROBLEM_MULTI_LABEL;
    if (h->task >= TASK_COUNT || h->problem >= PROBLEM_COUNT || h->width != width || named != (h->classes > 0) ||
        (h->task == TASK_CLASSIFICATION) != (h->problem != PROBLEM_AUTO) || (h->names && names[h->names - 1]))
        return false;
    for (uint64_t i = 0; i < h->names; i++) ends += !names[i];
    return ends == h->classes && (h->task != TASK_REWARD || h->count % 2 == 0);
}

/* Every value of a mapped token file is looked at: what memory and shapes will be made of must hold, and a damaged file
   must not train. */
static bool tokens_whole(const Dataset *d, const TokenHeader *h) {
    bool ok = d->offset[0] == 0 && d->offset[h->count] == h->tokens && h->count && h->count <= INT32_MAX &&
              h->checksum == tokens_checksum(h, d->offset, d->row) && h->largest_id >= 0 && h->largest_id <= INT32_MAX;
    for (size_t i = 0; i < h->count && ok; i++) ok = d->offset[i] < d->offset[i + 1] && d->offset[i + 1] <= h->tokens;
    uint64_t hash = HASH_START;
    int64_t longest = 0, labelled = 0;
    size_t kept = 0;                        /* the pages of the tokens before it are the system's again */
    for (size_t i = 0; i < h->count && ok; i++) {
        size_t from = d->offset[i], n = d->offset[i + 1] - from;
        if (from - kept > (size_t)1 << 20) {
            file_release_pages(d->ids + kept, (from - kept) * sizeof *d->ids);
            file_release_pages(d->labels + kept, (from - kept) * sizeof *d->labels);
            kept = from;
        }
        hash = hash_bytes(hash, d->ids + from, n * sizeof *d->ids);
        hash = hash_bytes(hash, d->labels + from, n * sizeof *d->labels);
        if ((int64_t)n > longest) longest = (int64_t)n;
        for (size_t k = from; k < from + n; k++) {
            int32_t id = d->ids[k], label = d->labels[k];
            ok = ok && id >= 0 && id <= d->largest_id &&
                 (label == DATA_IGNORE || (!d->target && label >= 0 && label <= d->largest_id));
            labelled += k > from && label != DATA_IGNORE;
        }
    }
    if (d->target) labelled = (int64_t)h->count;
    for (size_t i = 0; i < h->count && ok; i++) ok = data_target_whole(d, i);
    if (d->target) hash = hash_bytes(hash, d->target, h->count * h->width * sizeof *d->target);
    if (h->names) hash = hash_bytes(hash, d->target + h->count * h->width, h->names);
    return ok && hash == h->hash && h->stats.longest == longest && h->stats.labelled == labelled &&
           h->stats.tokens == (int64_t)h->tokens && h->stats.examples == (int64_t)h->count &&
           data_columns_whole(&h->stats.unread);
}

/* The data set lies in an open token file. ours: this process has just written it, from tokens that it looked at
   then. */
static bool dataset_map(Dataset *d, int fd, uint64_t key, bool ours, const char *path, Error *err) {
    struct stat st;
    TokenHeader h;
    bool ok = !fstat(fd, &st) && pread(fd, &h, sizeof h, 0) == (ssize_t)sizeof h &&
              !memcmp(h.magic, "LORATOK3", 8) && h.key == key &&
              h.tokens <= (uint64_t)st.st_size / 8 && h.count <= (uint64_t)st.st_size / 16 &&
              h.names <= (uint64_t)st.st_size && (!h.count || h.width <= (uint64_t)st.st_size / 4 / h.count) &&
              h.width <= INT_MAX;
    if (!ok || (uint64_t)st.st_size != sizeof h + h.tokens * 8 + (h.count + 1) * sizeof(size_t) +
                                       h.count * sizeof(int64_t) + h.count * h.width * sizeof(float) + h.names)
        return fail(err, "not a whole token file; %s; delete it", path);
    void *map = map_file(fd, (size_t)st.st_size, MAP_SHARED, path);
    if (!map) return fail(err, "cannot map the tokens; %s: %s; free some memory", path, strerror(errno));
    memset(d, 0, sizeof *d);
    d->hash = h.hash;
    d->largest_id = (int32_t)h.largest_id;
    d->stats = h.stats;
    d->count = d->slots = h.count;
    d->map = map;
    d->map_bytes = (size_t)st.st_size;
    d->ids = (int32_t *)((char *)map + sizeof h);
    d->labels = d->ids + h.tokens;
    d->offset = (size_t *)(void *)(d->labels + h.tokens);
    d->row = (int64_t *)(d->offset + h.count + 1);
    float *target = (float *)(void *)(d->row + h.count);
    const char *names = (const char *)(target + h.count * h.width);
    if (ours || tokens_task_whole(&h, names)) {
        d->task = (Task)h.task;
        d->problem = (Problem)h.problem;
        d->target = h.width ? target : NULL;
        d->target_width = (int)h.width;
        d->label_count = (int)h.classes;
        d->label_names = class_names_copy(names, h.names, d->label_count);
        if (ours || tokens_whole(d, &h)) return true;
    }
    free(d->label_names);
    unmap_file(map, (size_t)st.st_size);
    memset(d, 0, sizeof *d);
    return fail(err, "a damaged token file; %s; delete it", path);
}

/* The gathered tokens become the data set's arrays: taken over from memory, or the file completed, given its name and
   mapped. */
static bool sink_close(Dataset *d, TokenSink *s, uint64_t key, const char *cache_path, Error *err) {
    size_t tokens = (size_t)d->stats.tokens;
    d->slots = d->count;
    d->stats.examples = (int64_t)d->count;
    if (!s->file && !cache_path) {
        d->ids = (int32_t *)malloc(tokens * sizeof *d->ids);
        d->labels = (int32_t *)malloc(tokens * sizeof *d->labels);
        d->offset = (size_t *)malloc((d->count + 1) * sizeof *d->offset);
        d->row = (int64_t *)malloc(d->count * sizeof *d->row);
        if (!d->ids || !d->labels || !d->offset || !d->row) return data_memory(err, "data set");
        memcpy(d->ids, s->ids, tokens * sizeof *d->ids);
        memcpy(d->labels, s->labels, tokens * sizeof *d->labels);
        memcpy(d->offset, s->offset, (d->count + 1) * sizeof *d->offset);
        memcpy(d->row, s->row, d->count * sizeof *d->row);
        return true;
    }
    if (!sink_spill(s, cache_path, err)) return false;
    TokenHeader h;
    memset(&h, 0, sizeof h);
    memcpy(h.magic, "LORATOK3", 8);
    h.key = key;
    h.count = d->count;
    h.tokens = tokens;
    h.hash = d->hash;
    h.task = (uint64_t)d->task;
    h.problem = (uint64_t)d->problem;
    h.width = (uint64_t)d->target_width;
    h.classes = (uint64_t)d->label_count;
    h.names = class_names_bytes(d);
    h.largest_id = d->largest_id;
    h.stats = d->stats;
    h.checksum = tokens_checksum(&h, s->offset, s->row);
    char *buffer = (char *)must_alloc(1 << 20);
    rewind(s->label_file);
    size_t copied = 0;
    for (size_t n; (n = fread(buffer, 1, 1 << 20, s->label_file)) > 0; copied += n)
        sink_write(s, s->file, buffer, 1, n);
    s->failed |= copied != tokens * sizeof *s->labels;
    free(buffer);
    sink_write(s, s->file, s->offset, sizeof *s->offset, d->count + 1);
    sink_write(s, s->file, s->row, sizeof *s->row, d->count);
    sink_write(s, s->file, d->target, sizeof *d->target, d->count * h.width);
    if (h.names) sink_write(s, s->file, d->label_names[0], 1, h.names);
    free(d->target); free(d->label_names);  /* the map has them */
    d->target = NULL;
    d->label_names = NULL;
    rewind(s->file);
    sink_write(s, s->file, &h, sizeof h, 1);
    s->failed |= fflush(s->file) != 0 || (cache_path && fsync(fileno(s->file)));
    if (s->failed || (cache_path && rename(s->path, cache_path))) return sink_failed(s, err);
    *s->path = 0;
    return dataset_map(d, fileno(s->file), key, true, "the tokens", err);
}

/* ---- slots ------------------------------------------------------------------------------------------------------- */

/* The example at place `at` of the slots laid one behind the other. */
static size_t slot_example(const Dataset *d, size_t at) { return d->slot ? (size_t)d->slot[at] : at; }
SlotIterator slot_begin(const Dataset *d, size_t slot) {
    SlotIterator i;
    memset(&i, 0, sizeof i);
    i.d = d;
    i.next = d->slot ? d->slot_offset[slot] : slot;
    i.end = d->slot ? d->slot_offset[slot + 1] : slot + 1;
    return i;
}
bool slot_next(SlotIterator *i) {
    const Dataset *d = i->d;
    if (i->next == i->end) return false;
    i->example = slot_example(d, i->next++);
    i->ids = d->ids + d->offset[i->example];
    i->labels = d->labels + d->offset[i->example];
    i->target = d->target ? d->target + i->example * (size_t)d->target_width : NULL;
    i->count = d->offset[i->example + 1] - d->offset[i->example];
    return true;
}

size_t batch_pooled(const int32_t *ids, size_t count, int pad) {
    size_t i = count;
    while (i && ids[i - 1] == pad) i--;
    return i ? i - 1 : 0;
}

int64_t slot_labelled(const Dataset *d, size_t slot) {
    int64_t labelled = 0;
    if (d->target) return d->slot ? (int64_t)(d->slot_offset[slot + 1] - d->slot_offset[slot]) : 1;
    for (SlotIterator i = slot_begin(d, slot); slot_next(&i);)
        for (size_t k = 1; k < i.count; k++) labelled += i.labels[k] != DATA_IGNORE;  /* the first is never a target */
    return labelled;
}
static void slot_size(const Dataset *d, size_t slot, size_t *tokens, size_t *sequences) {
    *tokens = *sequences = 0;
    for (SlotIterator i = slot_begin(d, slot); slot_next(&i);) { *tokens += i.count; ++*sequences; }
}

/* ---- packing ----------------------------------------------------------------------------------------------------- */

/* The rooms 1..capacity that some bin has: a tournament tree, its leaves the rooms (0: no bin has it), every other node
   the larger of the two below it. */
typedef struct PackRooms { int32_t *best; size_t leaves; } PackRooms;                  /* best [2 * leaves] */
static void pack_rooms_set(PackRooms *r, int32_t room, bool there) {
    size_t at = r->leaves + (size_t)room - 1;
    r->best[at] = there ? room : 0;
    while (at >>= 1) r->best[at] = r->best[2 * at] > r->best[2 * at + 1] ? r->best[2 * at] : r->best[2 * at + 1];
}
/* The least of them that holds `length`; the largest of all does. */
static int32_t pack_rooms_least(const PackRooms *r, int32_t length) {
    size_t at = 1;
    while (at < r->leaves) at = r->best[2 * at] >= length ? 2 * at : 2 * at + 1;
    return r->best[at];
}

/* Best-fit-decreasing bins, in exactly the order of TRL's pack_dataset(strategy="bfd"): examples by falling length
   (equal ones in their order); each goes into the bin with the least room that still holds it, among equals the one
   that has had that room longest; else into a new bin. */
bool dataset_pack(Dataset *d, int capacity, Error *err) {
    size_t n = d->slots, bins = 0, rooms = (size_t)capacity + 2;
    if (d->task == TASK_REWARD)
        return fail(err, "a pair is a slot of its own; --packing with --task reward; leave it out: batches are never "
                         "padded");
    PackRooms tree = {NULL, 1};
    while (tree.leaves < (size_t)capacity) tree.leaves *= 2;
    int32_t *block = (int32_t *)calloc(tree.leaves * 2 + 3 * rooms + 4 * n, sizeof *block), *packed = NULL;
    size_t *offset = (size_t *)calloc(n + 1, sizeof *offset);
    if (block && offset) packed = (int32_t *)malloc((n ? n : 1) * sizeof *packed);
    if (!packed) { free(block); free(offset); return data_memory(err, "packing"); }
    tree.best = block;
    /* The bins with some room wait in a queue, first and last [room]; bins count from 1, 0 ends a queue. */
    int32_t *first = block + tree.leaves * 2, *last = first + rooms, *start = last + rooms;
    int32_t *order = start + rooms, *length = order + n, *next = length + n, *bin_of = next + n;
    for (size_t i = 0; i < n; i++) {                                           /* a slot is one example until now */
        size_t e = slot_example(d, i);
        length[i] = (int32_t)(d->offset[e + 1] - d->offset[e]);
        start[capacity - length[i] + 1]++;
    }
    for (int i = 1; i <= capacity; i++) start[i] += start[i - 1];             /* counting sort */
    for (size_t i = 0; i < n; i++) order[start[capacity - length[i]]++] = (int32_t)i;
    pack_rooms_set(&tree, capacity, true);                                         /* a new bin is always to be had */
    for (size_t k = 0; k < n; k++) {
        int32_t i = order[k], room = pack_rooms_least(&tree, length[i]), bin;
        if (room < capacity) {
            bin = first[room];
            first[room] = next[bin - 1];
            if (!first[room]) pack_rooms_set(&tree, room, false);
        } else bin = (int32_t)++bins;
        bin_of[i] = bin;
        offset[bin]++;
        room -= length[i];
        next[bin - 1] = 0;
        if (room == 0) continue;
        if (first[room]) next[last[room] - 1] = bin;
        else { first[room] = bin; pack_rooms_set(&tree, room, true); }
        last[room] = bin;
    }
    for (size_t b = 0; b < bins; b++) offset[b + 1] += offset[b];
    memset(next, 0, n * sizeof *next);                                        /* now: examples already in a bin */
    for (size_t k = 0; k < n; k++) {
        size_t bin = (size_t)bin_of[order[k]] - 1;
        packed[offset[bin] + (size_t)next[bin]++] = (int32_t)slot_example(d, (size_t)order[k]);
    }
    free(block);
    free(d->slot);
    free(d->slot_offset);
    d->slot = packed;
    d->slot_offset = offset;
    d->slots = bins;
    return true;
}

/* ---- a data set -------------------------------------------------------------------------------------------------- */

static bool dataset_read(Dataset *d, TokenSink *s, DataRows *r, const Tokenizer *t, const DataOptions *o,
                         const Shots *shots, const char *cache_path, Error *err) {
    const size_t BLOCK = 16384;
    size_t before = (size_t)d->stats.rows;
    if (!data_rows_read(r, err)) return false;
    if (!r->count) return fail(err, "no rows; %s; expected at least one example", r->path);
    if (o->max_rows && r->count > (size_t)o->max_rows - before) r->count = (size_t)o->max_rows - before;
    DataExample *examples = (DataExample *)calloc(r->count < BLOCK ? r->count : BLOCK, sizeof *examples);
    bool ok = examples || data_memory(err, r->path);
    for (size_t begin = 0; begin < r->count && ok; begin += BLOCK) {
        size_t end = begin + BLOCK < r->count ? begin + BLOCK : r->count;
        ok = data_examples(examples, &d->stats, r, begin, end, t, o, shots, err);
        ok = ok && sink_add(d, s, examples, r, begin, end, before, t, o, err);
        ok = ok && ((!s->file && !cache_path && arrlen(s->ids) <= TOKENS_IN_MEMORY) || sink_spill(s, cache_path, err));
        for (size_t i = 0; i < end - begin; i++) example_free(&examples[i]);
        if (r->mapped) file_release_pages(r->row[begin].text, (size_t)(r->row[end - 1].text - r->row[begin].text));
    }
    free(examples);
    return ok;
}

/* By what a token file is found again: all that decides the tokens but the files' own content. */
static uint64_t tokens_key(const Tokenizer *t, const DataOptions *o, const Shots *shots) {
    uint64_t key = HASH_START, about[] = {
        t ? tokenizer_fingerprint(t) : 0, (uint64_t)o->loss_on, (uint64_t)o->max_length, (uint64_t)o->chat_template,
        (uint64_t)o->enable_thinking, o->split_turns, sizeof(TokenHeader), (uint64_t)o->task,
        (uint64_t)o->problem_type, (uint64_t)o->label_count};
    const char *texts[] = {o->prompt_template, o->template_date};
    key = hash_bytes(hash_bytes(key, about, sizeof about), &o->max_rows, sizeof o->max_rows);
    key = hash_bytes(key, &o->truncate_prompt, sizeof o->truncate_prompt);
    for (int i = 0; i < 2; i++) if (texts[i]) key = hash_bytes(key, texts[i], strlen(texts[i]) + 1);
    for (int i = 0; i < o->label_count; i++)
        key = hash_bytes(key, o->label_names[i], strlen(o->label_names[i]) + 1);
    if (o->chat_source) {
        uint64_t source = chat_source_hash(o->chat_source);
        key = hash_bytes(key, &source, sizeof source);
    }
    if (shots->text.length) key = hash_bytes(key, shots->text.at, shots->text.length);
    for (size_t i = 0; i < shots->count; i++) {
        const ChatMessage *m = &shots->messages[i];
        key = hash_bytes(key, m->role, strlen(m->role) + 1);
        key = hash_bytes(key, m->content, m->content_bytes + 1);
        key = hash_bytes(key, m->reasoning, m->reasoning_bytes);
    }
    return key;
}

/* Two examples a slot. */
static bool dataset_pairs(Dataset *d, Error *err) {
    d->slots = d->count / 2;
    d->slot = (int32_t *)malloc(d->count * sizeof *d->slot);
    d->slot_offset = (size_t *)malloc((d->slots + 1) * sizeof *d->slot_offset);
    if (!d->slot || !d->slot_offset) return data_memory(err, "pairs");
    for (size_t i = 0; i < d->count; i++) d->slot[i] = (int32_t)i;
    for (size_t i = 0; i <= d->slots; i++) d->slot_offset[i] = 2 * i;
    return true;
}

static bool dataset_read_files(Dataset *d, const char *const *paths, int count, const Tokenizer *t,
                               const DataOptions *o, Error *err) {
    TokenSink sink;
    memset(d, 0, sizeof *d);
    memset(&sink, 0, sizeof sink);
    d->hash = HASH_START;
    if (o->prompt_template && !strstr(o->prompt_template, "{prompt}"))
        return fail(err, "no {prompt} in it; --prompt-template; write {prompt} where the prompt belongs, the answer "
                         "follows after the last character");
    if (o->task != TASK_CAUSAL_LM && o->few_shot)
        return fail(err, "solved examples are for a model that writes its answer; --few-shot with --task %s; leave it "
                         "out", task_name[o->task]);
    if (o->packing && o->max_length <= 0) return fail(err, "packing needs a length; --packing; give --max-length");
    DataRows *rows = (DataRows *)must_alloc((size_t)count * sizeof *rows);
    char cache_path[PATH_MAX] = "", name[64];
    Shots shots;
    bool ok = shots_open(&shots, t, o, err), cached = false, rebuilt = false;
    ok = ok && (!o->token_cache || make_folder(o->token_cache, err));
    uint64_t key = tokens_key(t, o, &shots);
    for (int i = 0; i < count && ok; i++) {
        rows[i].path = paths[i];
        ok = data_text_open(&rows[i], err);
        if (!ok || !o->token_cache) continue;
        key = hash_bytes(hash_bytes(key, &rows[i].bytes, sizeof rows[i].bytes), rows[i].text, rows[i].bytes);
    }
    if (ok && o->token_cache) {
        snprintf(name, sizeof name, "%016llx.tokens", (unsigned long long)key);
        path_in(cache_path, sizeof cache_path, o->token_cache, name);
        int fd = open(cache_path, O_RDONLY);
        cached = fd >= 0 && dataset_map(d, fd, key, false, cache_path, NULL);
        rebuilt = fd >= 0 && !cached;
        if (fd >= 0) close(fd);
        if (!cached) d->hash = HASH_START;
    }
    const char *cache = *cache_path ? cache_path : NULL;
    for (int i = 0; i < count; i++) {
        bool read = ok && !cached && !(o->max_rows && d->stats.rows == o->max_rows);
        if (read) ok = dataset_read(d, &sink, &rows[i], t, o, o->few_shot ? &shots : NULL, cache, err);
        data_rows_free(&rows[i]);
    }
    if (ok && !d->count && o->task != TASK_CAUSAL_LM)
        ok = fail(err, o->task == TASK_REWARD
                       ? "every one of %lld pairs is longer than %d tokens; %s; raise --max-length"
                       : "no token in any of %lld rows; --max-length %d; %s; check that the texts are not empty",
                  (long long)d->stats.rows, o->max_length, paths[0]);
    else if (ok && !d->count)
        ok = fail(err, "no token to learn in any of %lld rows; %s: %lld rows were cut at %d tokens; raise "
                       "--max-length, or check --loss-on and that the answers are not empty "
                       "(evaluate --generate shows the model's own)",
                  (long long)d->stats.rows, paths[0], (long long)d->stats.truncated, o->max_length);
    ok = ok && (cached || (labels_close(d, &sink, o, paths[0], err) && sink_close(d, &sink, key, cache, err)));
    if (sink.file) fclose(sink.file);
    if (sink.label_file) fclose(sink.label_file);
    if (*sink.path) unlink(sink.path);
    arrfree(sink.ids); arrfree(sink.labels); arrfree(sink.offset); arrfree(sink.row);
    arrfree(sink.seen); arrfree(sink.said); arrfree(sink.said_end); arrfree(sink.number);
    shfree(sink.seen_id);
    free(rows);
    shots_free(&shots);
    if (ok) {
        int end = t && tokenizer_pad(t) < 0 ? tokenizer_eos(t) : t ? tokenizer_pad(t) : -1;
        d->pad_token_id = o->pad_token_id >= 0 ? o->pad_token_id : end;
        if (d->task == TASK_REWARD) ok = dataset_pairs(d, err);
    }
    if (ok) dataset_count_classes(d);
    if (ok && d->label_count && !o->label_count) ok = dataset_classes_check(d, NULL, paths[0], NULL, err);
    if (ok && o->packing) ok = dataset_pack(d, o->max_length, err);
    if (!ok) dataset_free(d);
    d->rebuilt = ok && rebuilt;
    return ok;
}
bool dataset_open_files(Dataset *d, const char *const *paths, int count, const Tokenizer *t, const DataOptions *o,
                        Error *err) {
    DataOptions own;
    Error why;
    memset(d, 0, sizeof *d);
    bool ok = data_source_open(&own, o, t, &why, err) && dataset_read_files(d, paths, count, t, &own, err);
    data_chat_stats(&d->stats, own.chat_source);
    data_source_close(&own, o);
    return ok;
}
bool dataset_open(Dataset *d, const char *path, const Tokenizer *t, const DataOptions *options, Error *err) {
    return dataset_open_files(d, &path, 1, t, options, err);
}

bool dataset_split(Dataset *d, Dataset *held_out, double share, uint64_t seed, Error *err) {
    size_t n = d->slots, out = (size_t)ceil(share * (double)n);
    const char *what = d->task == TASK_REWARD ? "pairs" : "examples";
    if (!out || out >= n)
        return fail(err, "nothing left on one side of %zu %s; --eval-split %g; give a share between 0 and 1", n, what,
                    share);
    int64_t *order = (int64_t *)must_alloc(n * sizeof *order);
    char *held = (char *)must_alloc(n);
    torch_randperm(order, (int64_t)n, seed);
    for (size_t i = 0; i < out; i++) held[order[i]] = 1;
    free(order);
    const Dataset whole = *d;
    *held_out = *d;
    held_out->shared = true;
    held_out->label_names = class_names_copy(d->label_count ? d->label_names[0] : NULL, class_names_bytes(d),
                                             d->label_count);
    Dataset *side[2] = {d, held_out};
    for (int k = 0; k < 2; k++) {           /* both keep the order of the file */
        Dataset *e = side[k];
        size_t examples = 0;
        e->slots = 0;
        e->slot = (int32_t *)must_alloc(d->count * sizeof *e->slot);
        e->slot_offset = (size_t *)must_alloc((n + 1) * sizeof *e->slot_offset);
        e->label_rows = NULL;
        e->stats.tokens = e->stats.labelled = e->stats.longest = 0;
        for (size_t i = 0; i < n; i++) {
            if (held[i] != k) continue;
            for (SlotIterator one = slot_begin(&whole, i); slot_next(&one);) {
                e->slot[examples++] = (int32_t)one.example;
                e->stats.tokens += (int64_t)one.count;
                if ((int64_t)one.count > e->stats.longest) e->stats.longest = (int64_t)one.count;
            }
            e->slot_offset[++e->slots] = examples;
            e->stats.labelled += slot_labelled(e, e->slots - 1);
        }
        e->stats.examples = (int64_t)examples;
        e->hash = hash_bytes(d->hash, e->slot, examples * sizeof *e->slot);
        dataset_count_classes(e);
    }
    free(whole.slot); free(whole.slot_offset); free(whole.label_rows);
    free(held);
    return true;
}

void dataset_free(Dataset *d) {
    if (d->map && !d->shared) unmap_file(d->map, d->map_bytes);
    if (!d->map && !d->shared) { free(d->ids); free(d->labels); free(d->offset); free(d->row); free(d->target); }
    free(d->slot); free(d->slot_offset);
    free(d->label_names); free(d->label_rows);
    memset(d, 0, sizeof *d);
}

/* ---- batches ----------------------------------------------------------------------------------------------------- */

bool batch_alloc(Batch *b, int max_tokens, int max_sequences, Error *err) {
    memset(b, 0, sizeof *b);
    b->max_tokens = max_tokens; b->max_sequences = max_sequences;
    size_t n = max_tokens > 0 ? (size_t)max_tokens : 1, s = max_sequences > 0 ? (size_t)max_sequences : 1;
    b->ids = (int32_t *)malloc(n * sizeof *b->ids);
    b->positions = (int32_t *)malloc(n * sizeof *b->positions);
    b->cu_seqlens = (int32_t *)calloc(s + 1, sizeof *b->cu_seqlens);
    b->labelled = (int32_t *)malloc(n * sizeof *b->labelled);
    b->targets = (int32_t *)malloc(n * sizeof *b->targets);
    b->row_loss = (RowLoss *)malloc(n * sizeof *b->row_loss);
    b->row = (int64_t *)malloc(s * sizeof *b->row);
    if (b->ids && b->positions && b->cu_seqlens && b->labelled && b->targets && b->row_loss && b->row) return true;
    batch_free(b);
    return fail(err, "out of memory; a batch of %d tokens; reduce --per-device-train-batch-size or --max-length",
                max_tokens);
}

bool batch_alloc_targets(Batch *b, int target_width, Error *err) {
    size_t s = b->max_sequences > 0 ? (size_t)b->max_sequences : 1;
    free(b->target);
    b->target_width = target_width;
    b->target = (float *)malloc((target_width ? s * (size_t)target_width : 1) * sizeof *b->target);
    return b->target || fail(err, "out of memory; targets of %zu sequences; reduce --per-device-train-batch-size", s);
}

void batch_free(Batch *b) {
    free(b->target);
    free(b->ids); free(b->positions); free(b->cu_seqlens);
    free(b->labelled); free(b->targets); free(b->row_loss); free(b->row);
    memset(b, 0, sizeof *b);
}

void batch_build(Batch *b, const Dataset *d, const int64_t *order, size_t first, int count) {
    size_t width = (size_t)d->target_width;
    b->N = b->S = b->M = 0;
    b->cu_seqlens[0] = 0;
    for (size_t k = first; k < first + (size_t)count; k++)
        for (SlotIterator e = slot_begin(d, order ? (size_t)order[k] : k); slot_next(&e);) {
            for (size_t i = 0; i < e.count; i++) {
                int at = b->N + (int)i;
                b->ids[at] = e.ids[i];
                b->positions[at] = (int32_t)i;
                if (i + 1 == e.count || e.labels[i + 1] == DATA_IGNORE) continue;
                b->labelled[b->M] = at;
                b->targets[b->M++] = e.labels[i + 1];
            }
            if (e.target) {
                memcpy(b->target + (size_t)b->M * width, e.target, width * sizeof *e.target);
                b->labelled[b->M] = b->N + (int)batch_pooled(e.ids, e.count, d->pad_token_id);
                b->targets[b->M++] = d->problem == PROBLEM_SINGLE_LABEL ? (int32_t)*e.target : 0;
            }
            b->row[b->S++] = d->row[e.example];
            b->N += (int)e.count;
            b->cu_seqlens[b->S] = b->N;
        }
}

static int data_falling(const void *a, const void *b) {
    size_t x = *(const size_t *)a, y = *(const size_t *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

void dataset_largest_batch(const Dataset *d, int slots_per_batch, int *max_tokens, int *max_sequences) {
    size_t *value = (size_t *)malloc((d->slots ? d->slots : 1) * sizeof *value), most[2] = {0, 0};
    size_t want = slots_per_batch > 0 ? (size_t)slots_per_batch : 0;
    if (want > d->slots) want = d->slots;
    for (int what = 0; what < 2; what++) {  /* tokens, then sequences */
        for (size_t i = 0; i < d->slots; i++) {
            size_t size[2];
            slot_size(d, i, &size[0], &size[1]);
            if (value) value[i] = size[what];
            else if (size[what] * want > most[what]) most[what] = size[what] * want;  /* no memory to sort: looser */
        }
        if (!value) continue;
        qsort(value, d->slots, sizeof *value, data_falling);
        for (size_t i = 0; i < want; i++) most[what] += value[i];
    }
    *max_tokens = most[0] > INT_MAX ? INT_MAX : (int)most[0];
    *max_sequences = most[1] > INT_MAX ? INT_MAX : (int)most[1];
    free(value);
}

void dataset_grow_to_batches(const Dataset *d, const int64_t *order, int slots_per_batch, int *max_tokens,
                             int *max_sequences) {
    for (size_t begin = 0; begin < d->slots; begin += (size_t)slots_per_batch) {
        size_t tokens = 0, sequences = 0;
        for (size_t i = begin; i < begin + (size_t)slots_per_batch && i < d->slots; i++) {
            size_t t, s;
            slot_size(d, order ? (size_t)order[i] : i, &t, &s);
            tokens += t;
            sequences += s;
        }
        if (tokens > (size_t)*max_tokens) *max_tokens = tokens > INT_MAX ? INT_MAX : (int)tokens;
        if (sequences > (size_t)*max_sequences) *max_sequences = (int)sequences;
    }
}

/* ---- order ------------------------------------------------------------------------------------------------------- */

/* MT19937 (Matsumoto and Nishimura 1998) as torch's CPU generator seeds it: the low 32 bits of the seed. Like torch for
   every count below 2^32 / 20. */
void torch_randperm(int64_t *order, int64_t count, uint64_t seed) {
    uint32_t state[624];
    int at = 624;
    state[0] = (uint32_t)seed;
    for (uint32_t i = 1; i < 624; i++) state[i] = 1812433253u * (state[i - 1] ^ state[i - 1] >> 30) + i;
    for (int64_t i = 0; i < count; i++) order[i] = i;
    for (int64_t i = 0; i + 1 < count; i++) {
        if (at == 624) {
            for (int k = 0; k < 624; k++) {
                uint32_t y = (state[k] & 0x80000000u) | (state[(k + 1) % 624] & 0x7FFFFFFFu);
                state[k] = state[(k + 397) % 624] ^ y >> 1 ^ (y & 1 ? 0x9908B0DFu : 0);
            }
            at = 0;
        }
        uint32_t y = state[at++];
        y ^= y >> 11;
        y ^= y << 7 & 0x9D2C5680u;
        y ^= y << 15 & 0xEFC60000u;
        y ^= y >> 18;
        int64_t z = i + (int64_t)(y % (uint64_t)(count - i)), swap = order[i];
        order[i] = order[z];
        order[z] = swap;
    }
}

/*  fuzz entries: clang -DFUZZ_CSV -fsanitize=fuzzer,address,undefined, run in the repository's root (test/fuzz.sh)  */
#if defined(FUZZ_CSV) || defined(FUZZ_ROWS) || defined(FUZZ_TOKENS)
#ifdef __cplusplus
extern "C"
#endif
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
#endif

/* A file of --token-cache: header, ids, labels, offsets, rows, targets, names. Its sums are made right, and so are its
   offsets where the key is even, and its targets and names where it is a multiple of 4; what is taken goes through
   everything that trusts it. */
#ifdef FUZZ_TOKENS
#define FUZZ_FOLDER "build/fuzz/files"
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    TokenHeader h;
    Dataset d, eval;
    Batch b;
    Error err;
    memset(&h, 0, sizeof h);
    if (size) memcpy(&h, data, size < sizeof h ? size : sizeof h);
    bool given = h.key & 1, targets = !(h.key & 3);
    h.count = 1 + h.count % 8; h.tokens = h.count + h.tokens % 64; h.key = 7; h.hash = HASH_START;
    h.task %= TASK_COUNT; h.problem %= PROBLEM_COUNT; h.width %= 8; h.classes %= 8; h.names %= 64;
    if (targets) {
        bool named = h.problem == PROBLEM_SINGLE_LABEL || h.problem == PROBLEM_MULTI_LABEL;
        if (h.task != TASK_CLASSIFICATION) h.problem = PROBLEM_AUTO;
        else if (h.problem == PROBLEM_AUTO) h.problem = PROBLEM_REGRESSION;
        named = h.problem == PROBLEM_SINGLE_LABEL || h.problem == PROBLEM_MULTI_LABEL;
        h.classes = named ? 1 + h.classes % 4 : 0;
        h.names = 2 * h.classes;
        h.width = h.task == TASK_CAUSAL_LM ? 0 : h.problem == PROBLEM_MULTI_LABEL ? h.classes : 1;
    }
    memcpy(h.magic, "LORATOK3", 8);
    size_t bytes = sizeof h + h.tokens * 8 + (2 * h.count + 1) * 8 + h.count * h.width * 4 + h.names;
    char *file = (char *)calloc(1, bytes);
    if (!file || !make_folder(FUZZ_FOLDER, &err)) abort();
    if (size > sizeof h) memcpy(file, data, size < bytes ? size : bytes);
    int32_t *ids = (int32_t *)(void *)(file + sizeof h), *labels = ids + h.tokens;
    size_t *offset = (size_t *)(void *)(labels + h.tokens);
    for (size_t i = 0; i <= h.count && !given; i++) offset[i] = i < h.count ? i : h.tokens;
    float *target = (float *)(void *)(offset + 2 * h.count + 1);
    char *names = (char *)(target + h.count * h.width);
    for (size_t i = 0; i < h.count * h.width && targets && h.classes; i++)
        target[i] = (float)((unsigned char)((char *)&target[i])[0] % (h.width > 1 ? 2 : h.classes));
    for (size_t i = 0; i < h.names && targets; i++) names[i] = i % 2 ? 0 : 'a';
    for (size_t i = 0; i < h.tokens && targets && h.width; i++) labels[i] = DATA_IGNORE;
    h.stats.examples = (int64_t)h.count; h.stats.tokens = (int64_t)h.tokens; h.stats.longest = h.stats.labelled = 0;
    for (size_t i = 0; i < h.count; i++) {
        size_t from = offset[i], n = offset[i + 1] - from;
        if (from >= offset[i + 1] || offset[i + 1] > h.tokens) break;
        h.hash = hash_bytes(hash_bytes(h.hash, ids + from, n * sizeof *ids), labels + from, n * sizeof *labels);
        if ((int64_t)n > h.stats.longest) h.stats.longest = (int64_t)n;
        for (size_t k = from + 1; k < from + n; k++) h.stats.labelled += labels[k] != DATA_IGNORE;
    }
    if (h.width) h.stats.labelled = (int64_t)h.count;
    h.hash = hash_bytes(hash_bytes(h.hash, target, h.count * h.width * 4), names, h.names);
    h.checksum = tokens_checksum(&h, offset, (int64_t *)(offset + h.count + 1));
    memcpy(file, &h, sizeof h);
    if (!write_file(FUZZ_FOLDER "/fuzz.tokens", file, bytes, &err)) abort();
    free(file);
    int fd = open(FUZZ_FOLDER "/fuzz.tokens", O_RDONLY);
    if (fd >= 0 && dataset_map(&d, fd, 7, false, "fuzz", &err)) {
        int64_t order[8] = {0, 1, 2, 3, 4, 5, 6, 7};
        int most = 0, sequences = 0;
        for (size_t i = 0; i < h.tokens; i++) if (d.ids[i] > d.largest_id || d.labels[i] > d.largest_id) abort();
        dataset_grow_to_batches(&d, NULL, 8, &most, &sequences);
        if (!chat_template_name(d.stats.chat) || !batch_alloc(&b, most, sequences, &err) ||
            !batch_alloc_targets(&b, d.target_width, &err)) abort();
        batch_build(&b, &d, order, 0, (int)d.count);
        for (int m = 0; m < b.M && d.target; m++)
            if (b.labelled[m] < b.cu_seqlens[m] || b.labelled[m] >= b.cu_seqlens[m + 1]) abort();
        dataset_count_classes(&d);
        batch_free(&b);
        free(data_columns_text(&d.stats.unread));
        if (dataset_split(&d, &eval, 0.5, 42, &err)) dataset_free(&eval);
        dataset_free(&d);
    }
    if (fd >= 0) close(fd);
    return 0;
}
#endif

#ifdef FUZZ_CSV
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    DataRows r;
    Error err;
    memset(&r, 0, sizeof r);
    r.path = "fuzz.csv"; r.bytes = size; r.text = (char *)malloc(size + 1);
    if (!r.text) return 0;
    if (size) memcpy(r.text, data, size);
    r.text[size] = 0;
    if (data_rows_read(&r, &err))
        for (size_t i = 0; i < r.count; i++)
            for (const Json *v = r.row[i].object->child; v; v = v->next)
                if (v->str < r.text || v->str + v->count > r.text + size || v->str[v->count] ||
                    json_get(r.row[i].object, "text") == r.row[i].object) abort();
    data_rows_free(&r);
    return 0;
}
#endif

#ifdef FUZZ_ROWS
/* What fuzzed rows are as a data set of labels: targets are what their problem knows. */
static void fuzz_labels(DataExample *examples, const DataRows *r, const Tokenizer *t, DataOptions *o) {
    static char no[] = "no", yes[] = "yes", *names[] = {no, yes};
    Error err;
    for (int given = 0; given < 2; given++) {
        TokenSink s;
        Dataset d;
        memset(&s, 0, sizeof s);
        memset(&d, 0, sizeof d);
        o->label_names = given ? names : NULL;
        o->label_count = given ? 2 : 0;
        bool ok = sink_add(&d, &s, examples, r, 0, r->count, 0, t, o, &err) && d.count &&
                  labels_close(&d, &s, o, r->path, &err) && sink_close(&d, &s, 0, NULL, &err);
        if (ok) {
            dataset_count_classes(&d);
            for (size_t i = 0; i < d.count; i++) if (!data_target_whole(&d, i)) abort();
            int64_t rows = 0;
            for (int k = 0; k < d.label_count; k++) rows += d.label_rows[k];
            if (d.problem == PROBLEM_SINGLE_LABEL && rows != (int64_t)d.count) abort();
            if (!d.target || (d.task == TASK_REWARD && d.count % 2)) abort();
            float w[2];
            if (d.label_count == 2) class_weights_parse(w, &d, r->bytes < 64 ? r->text : "balanced", &err);
        }
        arrfree(s.ids); arrfree(s.labels); arrfree(s.offset); arrfree(s.row);
        arrfree(s.seen); arrfree(s.said); arrfree(s.said_end); arrfree(s.number);
        shfree(s.seen_id);
        dataset_free(&d);
    }
}

/* Rows of every shape under every option and task, as examples and as prompts: what comes out are ids of the
   vocabulary, no more than max_length but for pairs, and labels of it. The tokenizer is data/base's. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const name[] = {"f.jsonl", "f.json", "f.csv", "f"};
    static Tokenizer *t;
    Error err;
    DataRows r;
    DataOptions o;
    Prompts p;
    if (!t && !(t = tokenizer_open("data/base", &err))) abort();
    if (size < 3) return 0;
    memset(&r, 0, sizeof r);
    memset(&o, 0, sizeof o);
    memset(&p, 0, sizeof p);
    o.threads = 1;
    o.max_length = data[0] & 1 ? 8 : 64;
    o.truncate_prompt = data[0] >> 1 & 1;
    o.split_turns = data[0] >> 2 & 1;
    o.prompt_template = data[0] >> 3 & 1 ? "U {prompt} A" : NULL;
    o.enable_thinking = (data[0] >> 4 & 3) % 3 - 1;
    o.loss_on = (LossOn)(data[0] >> 6);
    o.chat_template = (ChatTemplate)(data[1] % (CHAT_UNKNOWN + 1));
    o.max_rows = data[1] >> 5;
    o.task = (Task)((data[2] >> 2 & 3) % TASK_COUNT);
    o.problem_type = (Problem)(data[2] >> 4 & 3);
    r.path = name[data[2] % 4];
    r.bytes = size - 3;
    r.text = (char *)malloc(r.bytes + 1);
    if (!r.text) return 0;
    memcpy(r.text, data + 3, r.bytes);
    r.text[r.bytes] = 0;
    if (prompts_parse(&p, r.text, r.bytes, r.path, t, &o, &err)) {
        for (size_t i = 0; i < p.count; i++) {
            JsonDoc doc;
            if (p.list[i].count <= 0 || !json_parse(&doc, p.list[i].dialogue, strlen(p.list[i].dialogue), "dialogue", 1,
                                                    NULL)) abort();
            json_free(&doc);
        }
        prompts_free(&p);
    }
    if (data_rows_read(&r, &err) && r.count) {
        DataExample *examples = (DataExample *)calloc(r.count, sizeof *examples);
        DataStats stats;
        memset(&stats, 0, sizeof stats);
        if (!examples) abort();
        bool pairs = o.task == TASK_REWARD;
        bool ok = data_examples(examples, &stats, &r, 0, r.count, t, &o, NULL, &err);
        if (ok && o.task != TASK_CAUSAL_LM) fuzz_labels(examples, &r, t, &o);
        for (size_t i = 0; i < r.count; i++) {
            for (const DataExample *e = &examples[i]; e; e = e->next) {
                if ((e->count > (size_t)o.max_length && !pairs) || (e->lost_reply && !e->cut_reply) ||
                    (e->cut_reply && !e->truncated)) abort();
                for (size_t k = 0; k < e->count; k++) {
                    /* a row's own may differ */
                    bool given = e->labels[k] >= 0 && e->labels[k] < tokenizer_vocab_size(t);
                    if (e->ids[k] < 0 || e->ids[k] >= tokenizer_vocab_size(t) || (e->labels[k] != DATA_IGNORE &&
                            !given)) abort();
                }
            }
            example_free(&examples[i]);
        }
        char *columns = data_columns_text(&stats.unread);
        for (const char *c = columns ? columns : ""; *c; c++) if ((unsigned char)*c < ' ' || *c == 127) abort();
        free(columns);
        free(examples);
    }
    data_rows_free(&r);
    return 0;
}
#endif

#endif /* DATASET_IMPLEMENTATION */
