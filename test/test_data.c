/* test_data.c - rows to examples to batches: every row shape, every mask token by token, every error, the packer, the
   sampler's order.
   gcc -std=gnu11 -O2 -fopenmp -I. test/test_data.c -o build/test_data -lm && build/test_data
   (from the repository root). Most cases use a tokenizer whose every byte is one token (test/golden/tokenizer/bytes),
   so that an expected mask is the text itself with brackets around what is learned. */
#define TOKENIZER_IMPLEMENTATION
#define DATASET_IMPLEMENTATION
#include "data/dataset.h"        /* alone: data sets know no model */
#include "check.h"

#include <sys/types.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[64];                     /* mkdtemp */
static Tokenizer *plain, *with_bos;         /* the byte tokenizers */
enum { IM_START = 256, IM_END, BOS, END_OF_TEXT, BYTE_VOCAB };
static const char *const special_text[] = {"<|im_start|>", "<|im_end|>", "<s>", "<|endoftext|>"};

/* ---- scaffolding ------------------------------------------------------------------------------------------------- */

static const char *write_bytes(const char *name, const char *text, size_t n) {
    static char path[2][160];
    static int turn;
    char *p = path[turn ^= 1];
    snprintf(p, sizeof path[0], "%s/%s", folder, name);
    FILE *f = fopen(p, "wb");
    assert(f && fwrite(text, 1, n, f) == n);
    assert(fclose(f) == 0);
    return p;
}
static const char *write_text(const char *name, const char *text) { return write_bytes(name, text, strlen(text)); }

/* Its byte-level BPE has no merges: token id = byte, then special_text. */
static Tokenizer *byte_tokenizer(const char *path) {
    Error err;
    Tokenizer *t = tokenizer_open(path, &err);
    if (!t) { printf("FAIL  cannot go on: %s\n", err.text); exit(1); }
    return t;
}

static DataOptions options_of(LossOn loss_on, ChatTemplate chat) {
    DataOptions o;
    memset(&o, 0, sizeof o);
    o.loss_on = loss_on; o.chat_template = chat; o.max_length = 1024; o.enable_thinking = -1; o.threads = 2;
    return o;
}

/* The text of an example of a byte tokenizer, with [ ] around the runs that are learned. */
static const char *masked(const Dataset *d, size_t example) {
    static char text[2][8192];
    static int turn;
    char *out = text[turn ^= 1], *p = out;
    bool open = false;
    for (size_t i = d->offset[example]; i < d->offset[example + 1]; i++) {
        bool learn = d->labels[i] != -100;
        if (learn && d->labels[i] != d->ids[i]) p += sprintf(p, "<label %d>", d->labels[i]);
        if (learn != open) *p++ = learn ? '[' : ']';
        open = learn;
        if (d->ids[i] < 256) *p++ = (char)d->ids[i];
        else p += sprintf(p, "%s", special_text[d->ids[i] - 256]);
    }
    if (open) *p++ = ']';
    *p = 0;
    return out;
}

/* One row in a file gives one example that reads `want`. */
static void expect(const char *what, const char *name, const char *file, const Tokenizer *t, DataOptions o,
                   const char *want) {
    Dataset d;
    Error err;
    bool ok = dataset_open(&d, write_text(name, file), t, &o, &err);
    const char *got = ok && d.count ? masked(&d, 0) : ok ? "no example" : err.text;
    bool same = !strcmp(got, want);
    check(same, "%s%s%s%s%s", what, same ? "" : ": got ", same ? "" : got, same ? "" : " want ", same ? "" : want);
    if (ok) dataset_free(&d);
}

/* Opening fails with a message that holds the parts, in order; and leaves nothing behind. */
static void expect_error_bytes(const char *what, const char *name, const char *file, size_t n, const Tokenizer *t,
                               DataOptions o, const char *a, const char *b, const char *c) {
    const char *parts[3] = {a, b, c}, *at;
    Dataset d;
    Error err = {"no error"};
    bool ok = dataset_open(&d, write_bytes(name, file, n), t, &o, &err), found = true;
    at = err.text;
    for (int i = 0; i < 3 && found; i++) if (parts[i]) { at = strstr(at, parts[i]); found = at != NULL; }
    check(!ok && found && d.ids == NULL && d.count == 0 && !strchr(err.text, '\n'), "error: %s: %s", what, err.text);
    if (ok) dataset_free(&d);
}
static void expect_error(const char *what, const char *name, const char *file, const Tokenizer *t, DataOptions o,
                         const char *a, const char *b, const char *c) {
    expect_error_bytes(what, name, file, strlen(file), t, o, a, b, c);
}

/* ---- row shapes and masks ---------------------------------------------------------------------------------------- */

#define CHAT2 "{\"messages\":[{\"role\":\"system\",\"content\":\"S\"},{\"role\":\"user\",\"content\":\"a\"}," \
    "{\"role\":\"assistant\",\"content\":\"b\"},{\"role\":\"user\",\"content\":\"c\"}," \
    "{\"role\":\"assistant\",\"content\":\"d\"}]}\n"
#define SYS "<|im_start|>system\nS<|im_end|>\n"
#define USER(x) "<|im_start|>user\n" x "<|im_end|>\n<|im_start|>assistant\n"

/* Every example of one row, in order, with the thoughts and system messages that the template left out. */
static void expect_turns(const char *what, const char *file, const Tokenizer *t, DataOptions o, int count,
                         const char *const *want, int thoughts, int systems) {
    Dataset d;
    Error err;
    bool ok = dataset_open(&d, write_text("turns.jsonl", file), t, &o, &err), same = ok && d.count == (size_t)count;
    for (int i = 0; same && i < count; i++) if (strcmp(masked(&d, (size_t)i), want[i]) || d.row[i] != 1) {
        printf("example %d: %s\n   wanted: %s\n", i, masked(&d, (size_t)i), want[i]);
        same = false;
    }
    same = same && d.stats.rows == 1 && d.stats.thoughts == thoughts && d.stats.systems == systems;
    check(same, "turns: %s: %s", what, ok ? "" : err.text);
    if (ok) dataset_free(&d);
}

/* A template rewrites what has become history; split_turns asks for every answer as a prompt would. */
static void test_turns(void) {
#define SAYS(role, text) "{\"role\":\"" role "\",\"content\":\"" text "\"}"
    static const char thinks[] = "{\"messages\":[" SAYS("system", "S") "," SAYS("user", "a") ","
        SAYS("assistant", "<think>\\nw\\n</think>\\n\\nb") "," SAYS("user", "c") ","
        "{\"role\":\"assistant\",\"content\":\"d\",\"reasoning_content\":\"v\"}]%s}";
    static const char plainly[] = "{\"messages\":[" SAYS("user", "a") "," SAYS("assistant", "b") "]}";
#define THINK(x) "<think>\n" x "\n</think>\n\n"
#define INST(x) "[INST] " x "[/INST]"
    char row[700];
    DataOptions q = options_of(LOSS_DEFAULT, CHAT_QWEN3), m = options_of(LOSS_DEFAULT, CHAT_MISTRAL3);
    const char *whole[] = {SYS USER("a") "[b<|im_end|>]\n" USER("c") "[" THINK("v") "d<|im_end|>]\n"};
    snprintf(row, sizeof row, thinks, "");
    expect_turns("Qwen3 takes the thought out of the history, and it is counted", row, plain, q, 1, whole, 1, 0);
    q.split_turns = m.split_turns = true;
#define ONCE SYS USER("a") "b<|im_end|>\n" USER("c")
    const char *split[] = {SYS USER("a") "[" THINK("w") "b<|im_end|>]", ONCE "[" THINK("v") "d<|im_end|>]"};
    expect_turns("split: each answer with its thought", row, plain, q, 2, split, 0, 0);
    q.loss_on = LOSS_ON_COMPLETION;
    expect_turns("split: of a completion the last alone", row, plain, q, 1, split + 1, 0, 0);
    q.loss_on = LOSS_ON_ALL;
    expect_error("split turns and everything learned", "a.jsonl", row, plain, q, "--split-turns", "row 1", NULL);
    q.loss_on = LOSS_DEFAULT; q.enable_thinking = 0;
    const char *off[] = {SYS USER("a") THINK("") "[b<|im_end|>]", ONCE THINK("") "[d<|im_end|>]"};
    expect_turns("split, thinking off: the empty block is the prompt's, thoughts go", row, plain, q, 2, off, 2, 0);
    snprintf(row, sizeof row, thinks, ",\"chat_template_kwargs\":{\"enable_thinking\":true},\"enable_thinking\":false");
    expect_turns("a row's chat_template_kwargs, its enable_thinking, the option", row, plain, q, 2, split, 0, 0);
    snprintf(row, sizeof row, thinks, ",\"enable_thinking\":\"no\"");
    expect_error("enable_thinking that is none", "a.jsonl", row, plain, q, "\"enable_thinking\" is a string", "row 1",
                 NULL);

    q.split_turns = false;
    expect("thinking off: the empty block is not learned (TRL)", "a.jsonl", plainly, plain, q,
           USER("a") THINK("") "[b<|im_end|>]\n");
    q.enable_thinking = -1;
    expect("thinking: the empty block is learned (TRL)", "a.jsonl", plainly, plain, q,
           USER("a") "[" THINK("") "b<|im_end|>]\n");

    snprintf(row, sizeof row, thinks, "");
    m.split_turns = false;
    const char *lost[] = {"<s>" INST("a") "[ <think>\nw\n</think>\n\nb<|im_end|>]" INST("c") "[ d<|im_end|>]"};
    expect_turns("Mistral v0.3 loses the system message where an answer is the end", row, with_bos, m, 1, lost, 1, 1);
    m.split_turns = true;
    const char *kept[] = {"<s>" INST("S\n\na") "[ <think>\nw\n</think>\n\nb<|im_end|>]",
                          "<s>" INST("a") " <think>\nw\n</think>\n\nb<|im_end|>" INST("S\n\nc") "[ d<|im_end|>]"};
    expect_turns("split: it stands before the last question, as when asked", row, with_bos, m, 2, kept, 1, 0);

    DataOptions l = options_of(LOSS_DEFAULT, CHAT_LLAMA32);
#define HEADER(role) "<|start_header_id|>" role "<|end_header_id|>\n\n"
#define LLAMA(date) "<s>" HEADER("system") "Cutting Knowledge Date: December 2023\nToday Date: " date "\n\n<|eot_id|>" \
                    HEADER("user") "a<|eot_id|>" HEADER("assistant") "[b<|eot_id|>]"
    expect("Llama 3.2: the template's own date", "a.jsonl", plainly, with_bos, l, LLAMA("26 Jul 2024"));
    l.template_date = "04 Jul 2025";
    expect("Llama 3.2: a date that was given", "a.jsonl", plainly, with_bos, l, LLAMA("04 Jul 2025"));
    snprintf(row, sizeof row, "%.*s,\"chat_template_kwargs\":{\"date_string\":\"1 May 1999\"}}",
             (int)sizeof plainly - 2, plainly);
    expect("Llama 3.2: a row's date", "a.jsonl", row, with_bos, l, LLAMA("1 May 1999"));

    Dataset d;
    Error err;
    l.template_date = NULL;
    bool ok = dataset_open(&d, write_text("a.jsonl", plainly), with_bos, &l, &err);
    check(ok && d.stats.dated == 1, "Llama 3.2: the old date is counted");
    if (ok) dataset_free(&d);
    l.template_date = "04 Jul 2025";
    ok = dataset_open(&d, write_text("a.jsonl", plainly), with_bos, &l, &err);
    check(ok && !d.stats.dated, "Llama 3.2: a date that was given is not");
    if (ok) dataset_free(&d);
    l.template_date = NULL;
    l.chat_template = CHAT_LLAMA31;
    snprintf(row, sizeof row, "%.*s,\"enable_thinking\":false,\"chat_template_kwargs\":"
             "{\"x\":1,\"enable_thinking\":true}}", (int)sizeof plainly - 2, plainly);
    ok = dataset_open(&d, write_text("a.jsonl", row), with_bos, &l, &err);
    char *unread = ok ? data_columns_text(&d.stats.unread) : NULL;
    check(unread && !strcmp(unread, "chat_template_kwargs.enable_thinking (1 row), chat_template_kwargs.x (1 row), "
                                    "enable_thinking (1 row)") && !d.stats.dated,
          "what a template does not know is named: %s", unread ? unread : ok ? "nothing" : err.text);
    free(unread);
    if (ok) dataset_free(&d);
}

static void test_shapes(void) {
    DataOptions o = options_of(LOSS_DEFAULT, CHAT_CHATML), all = options_of(LOSS_ON_ALL, CHAT_CHATML);
    DataOptions assistant = options_of(LOSS_ON_ASSISTANT, CHAT_CHATML);
    DataOptions completion = options_of(LOSS_ON_COMPLETION, CHAT_CHATML);
    DataOptions none = options_of(LOSS_DEFAULT, CHAT_NONE), templated = options_of(LOSS_DEFAULT, CHAT_CHATML);
    templated.prompt_template = "Q: {prompt}\nA: ";
    const char *turns = SYS USER("a") "[b<|im_end|>]\n" USER("c") "[d<|im_end|>]\n";
    expect("messages, default: every assistant turn with its end", "a.jsonl", CHAT2, plain, o, turns);
    expect("messages, assistant", "a.jsonl", CHAT2, plain, assistant, turns);
    expect("messages, completion: the last assistant turn", "a.jsonl", CHAT2, plain, completion,
           SYS USER("a") "b<|im_end|>\n" USER("c") "[d<|im_end|>]\n");
    expect("messages, all", "a.jsonl", CHAT2, plain, all, "[" SYS USER("a") "b<|im_end|>\n" USER("c") "d<|im_end|>\n]");
    expect("messages: a template has its own BOS or none, the tokenizer adds nothing", "a.jsonl", CHAT2, with_bos, o,
           turns);
    expect("messages: a chat that ends with the user", "a.jsonl",
           "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"},"
           "{\"role\":\"user\",\"content\":\"c\"}]}", plain, completion,
           USER("a") "[b<|im_end|>]\n<|im_start|>user\nc<|im_end|>\n");
    expect("conversations: human and gpt", "a.jsonl",
           "{\"id\":7,\"conversations\":[{\"from\":\"system\",\"value\":\"S\"},{\"from\":\"human\",\"value\":\"a\"},"
           "{\"from\":\"gpt\",\"value\":\"b\"}]}", plain, o, SYS USER("a") "[b<|im_end|>]\n");
    expect("conversations: user and assistant, system beside them", "a.jsonl",
           "{\"system\":\"S\",\"conversations\":[{\"from\":\"user\",\"value\":\"a\"},"
           "{\"from\":\"assistant\",\"value\":\"b\"}]}", plain, o, SYS USER("a") "[b<|im_end|>]\n");
    expect("conversations with role and content", "a.jsonl",
           "{\"conversations\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}]}",
           plain, o, USER("a") "[b<|im_end|>]\n");
    expect("a literal end-of-turn in the user's text is not learned", "a.jsonl",
           "{\"messages\":[{\"role\":\"user\",\"content\":\"x<|im_end|>y\"},"
           "{\"role\":\"assistant\",\"content\":\"b\"}]}",
           plain, o, USER("x<|im_end|>y") "[b<|im_end|>]\n");
    expect("an empty answer: its end is learned", "a.jsonl",
           "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"\"}]}", plain,
           o, USER("a") "[<|im_end|>]\n");

    expect("pair: completion and end of text", "a.jsonl", "{\"prompt\":\"2+2=\",\"completion\":\"4\"}", plain, none,
           "2+2=[4<|im_end|>]");
    expect("pair: a chat template does not change strings (TRL)", "a.jsonl",
           "{\"prompt\":\"2+2=\",\"completion\":\"4\"}", plain, o, "2+2=[4<|im_end|>]");
    expect("pair: end of text is not doubled", "a.jsonl", "{\"prompt\":\"2+2=\",\"completion\":\"4<|im_end|>\"}",
           plain, none, "2+2=[4<|im_end|>]");
    expect("pair: the tokenizer's BOS, not learned", "a.jsonl", "{\"prompt\":\"p\",\"completion\":\"c\"}", with_bos,
           none, "<s>p[c<|im_end|>]");
    expect("pair, all", "a.jsonl", "{\"prompt\":\"p\",\"completion\":\"c\"}", with_bos, all, "[<s>pc<|im_end|>]");
    expect("pair, assistant = completion", "a.jsonl", "{\"prompt\":\"p\",\"completion\":\"c\"}", plain, assistant,
           "p[c<|im_end|>]");
    expect("pair with --prompt-template", "a.jsonl", "{\"prompt\":\"p\",\"completion\":\"c\"}", plain, templated,
           "Q: p\nA: [c<|im_end|>]");
    expect("pair, empty prompt", "a.jsonl", "{\"prompt\":\"\",\"completion\":\"c\"}", plain, none, "[c<|im_end|>]");
    expect("pair, bytes of several per character", "a.jsonl",
           "{\"prompt\":\"\xC3\xA4\",\"completion\":\"\xE4\xBD\xA0\"}", plain, none,
           "\xC3\xA4[\xE4\xBD\xA0<|im_end|>]");
    const char *lists = "{\"prompt\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"},"
                        "{\"role\":\"user\",\"content\":\"c\"}],"
                        "\"completion\":[{\"role\":\"assistant\",\"content\":\"d\"}]}";
    expect("pair of message lists: the completion", "a.jsonl", lists, plain, o,
           USER("a") "b<|im_end|>\n" USER("c") "[d<|im_end|>]\n");
    expect("pair of message lists, completion", "a.jsonl", lists, plain, completion,
           USER("a") "b<|im_end|>\n" USER("c") "[d<|im_end|>]\n");
    expect("pair of message lists, assistant: every turn", "a.jsonl", lists, plain, assistant,
           USER("a") "[b<|im_end|>]\n" USER("c") "[d<|im_end|>]\n");

    expect("instruction and output as a chat", "a.jsonl",
           "{\"instruction\":\"i\",\"output\":\"o\",\"text\":\"ignored\"}", plain, o, USER("i") "[o<|im_end|>]\n");
    expect("instruction, input, output", "a.jsonl", "{\"instruction\":\"i\",\"input\":\"x\",\"output\":\"o\"}", plain,
           o, USER("i\nx") "[o<|im_end|>]\n");
    expect("instruction, empty input", "a.jsonl", "{\"instruction\":\"i\",\"input\":\"\",\"output\":\"o\"}", plain,
           completion, USER("i") "[o<|im_end|>]\n");
    expect("instruction, input null", "a.jsonl", "{\"instruction\":\"i\",\"input\":null,\"output\":\"o\"}", plain, o,
           USER("i") "[o<|im_end|>]\n");
    expect("instruction with --prompt-template", "a.jsonl", "{\"instruction\":\"i\",\"input\":\"x\",\"output\":\"o\"}",
           with_bos, templated, "<s>Q: i\nx\nA: [o<|im_end|>]");
    expect("instruction, all", "a.jsonl", "{\"instruction\":\"i\",\"output\":\"o\"}", plain, all,
           "[" USER("i") "o<|im_end|>\n]");

    DataOptions qwen = options_of(LOSS_DEFAULT, CHAT_QWEN3_INSTRUCT);
    expect("content in parts of text", "a.jsonl",
           "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},\"b\"]},"
           "{\"role\":\"assistant\",\"content\":[{\"text\":\"c\",\"type\":\"text\"}]}]}", plain, o,
               USER("ab") "[c<|im_end|>]\n");
    for (int i = 0; i < 4; i++) {
        static const char *const gpt[] = {"chatgpt", "bard", "bing", "model"};
        char row[160];
        snprintf(row, sizeof row,
                 "{\"conversations\":[{\"from\":\"human\",\"value\":\"a\"},{\"from\":\"%s\",\"value\":\"b\"}]}",
                 gpt[i]);
        expect(gpt[i], "a.jsonl", row, plain, o, USER("a") "[b<|im_end|>]\n");
    }
#define CALL "<tool_call>\n{\"name\": \"w\", \"arguments\": {\"at\": \"Bern\"}}\n</tool_call>"
#define ANSWERED "<|im_start|>user\n<tool_response>\n4 C\n</tool_response><|im_end|>\n" \
    "<|im_start|>assistant\n[4<|im_end|>]\n"
    expect("ShareGPT's function_call and observation", "a.jsonl",
           "{\"conversations\":[{\"from\":\"human\",\"value\":\"a\"},{\"from\":\"function_call\","
           "\"value\":\"{\\\"name\\\":\\\"w\\\",\\\"arguments\\\":{\\\"at\\\":\\\"Bern\\\"}}\"},"
           "{\"from\":\"observation\",\"value\":\"4 C\"},"
           "{\"from\":\"gpt\",\"value\":\"4\"}],\"tools\":\"[]\"}", plain, qwen,
               USER("a") "[" CALL "<|im_end|>]\n" ANSWERED);
#define CALLS(content) "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\"," content \
    "\"tool_calls\":[{\"id\":\"1\",\"type\":\"function\"," \
    "\"function\":{\"name\":\"w\",\"arguments\":{\"at\":\"Bern\"}}}]},{\"role\":\"tool\",\"content\":\"4 C\"}," \
    "{\"role\":\"assistant\",\"content\":\"4\"}]}"
    expect("tool_calls, content absent", "a.jsonl", CALLS(""), plain, qwen,
           USER("a") "[" CALL "<|im_end|>]\n" ANSWERED);
    expect("tool_calls, content null", "a.jsonl", CALLS("\"content\":null,"), plain, qwen,
           USER("a") "[" CALL "<|im_end|>]\n" ANSWERED);
    for (int c = CHAT_NONE + 1; c < CHAT_UNKNOWN; c++) {        /* the other templates' own texts have no calls */
        DataOptions any = options_of(LOSS_DEFAULT, (ChatTemplate)c);
        bool writes = c == CHAT_QWEN3 || c == CHAT_QWEN2_5 || c == CHAT_QWEN3_INSTRUCT || c == CHAT_QWEN3_THINKING;
        Dataset d;
        Error err = {""};
        bool ok = dataset_open(&d, write_text("a.jsonl", CALLS("")), with_bos, &any, &err);
        check(ok == writes && (ok || strstr(err.text, "has tool calls")), "tool_calls with %s: %s",
              chat_template_name((ChatTemplate)c), ok ? "written" : err.text);
        if (ok) dataset_free(&d);
    }
    expect("tool_calls behind content", "a.jsonl", CALLS("\"content\":\"b\","), plain, qwen,
           USER("a") "[b\n" CALL "<|im_end|>]\n" ANSWERED);
    /* A solved example stands before the row, behind its system message; it is not learned. */
    DataOptions shown = options_of(LOSS_DEFAULT, CHAT_CHATML);
    char shots[128];
    snprintf(shots, sizeof shots, "%s",
             write_text("shots.jsonl", "{\"messages\":[{\"role\":\"user\",\"content\":\"q\"},"
                                       "{\"role\":\"assistant\",\"content\":\"r\"}]}\n"));
    shown.shots = shots;
    shown.few_shot = 1;
    expect("a shot", "a.jsonl", "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},"
           "{\"role\":\"assistant\",\"content\":\"b\"}]}", plain, shown,
           USER("q") "r<|im_end|>\n" USER("a") "[b<|im_end|>]\n");
    expect("a shot behind a system message", "a.jsonl", "{\"messages\":[{\"role\":\"system\",\"content\":\"S\"},"
           "{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}]}", plain, shown,
           SYS USER("q") "r<|im_end|>\n" USER("a") "[b<|im_end|>]\n");
    /* What beside the text decides what is learned. */
#define WEIGHTED(a, b) \
    "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"" a "}," \
    "{\"role\":\"user\",\"content\":\"c\"},{\"role\":\"assistant\",\"content\":\"d\"" b "}]}"
    expect("weight 0: not learned", "a.jsonl", WEIGHTED(",\"weight\":0", ",\"weight\":1"), plain, o,
           USER("a") "b<|im_end|>\n" USER("c") "[d<|im_end|>]\n");
    expect("weight 0 of the last: the first is learned", "a.jsonl", WEIGHTED("", ",\"weight\":0.0"), plain, o,
           USER("a") "[b<|im_end|>]\n" USER("c") "d<|im_end|>\n");
    expect_error("weight 0.5", "a.jsonl", WEIGHTED("", ",\"weight\":0.5"), plain, o, "the weight of message 4", "row 1",
                 "1 learns");
    expect_error("weight 0 with the loss on all", "a.jsonl", WEIGHTED(",\"weight\":0", ""), plain, all, "message 2",
                 "--loss-on all", NULL);
    expect("Alpaca's history", "a.jsonl",
           "{\"instruction\":\"i\",\"output\":\"o\",\"system\":\"S\",\"history\":[[\"q\",\"r\"]]}", plain, o,
           SYS USER("q") "[r<|im_end|>]\n" USER("i") "[o<|im_end|>]\n");
    expect("history, completion: the output", "a.jsonl",
           "{\"instruction\":\"i\",\"output\":\"o\",\"history\":[[\"q\",\"r\"]]}", plain,
           completion, USER("q") "r<|im_end|>\n" USER("i") "[o<|im_end|>]\n");
    expect("empty history, and as text in CSV", "a.csv", "instruction,output,history,system\ni,o,,\ni,o,[],\n", plain,
           o,
           USER("i") "[o<|im_end|>]\n");
    expect("history as JSON text", "a.csv", "instruction,output,history\ni,o,\"[[\"\"q\"\",\"\"r\"\"]]\"\n", plain, o,
           USER("q") "[r<|im_end|>]\n" USER("i") "[o<|im_end|>]\n");
    expect_error("history of three", "a.jsonl",
                 "{\"instruction\":\"i\",\"output\":\"o\",\"history\":[[\"a\",\"b\",\"c\"]]}", plain, o,
                 "no list of pairs", "row 1", "question");
    expect_error("history in a prompt template", "a.jsonl",
                 "{\"instruction\":\"i\",\"output\":\"o\",\"history\":[[\"a\",\"b\"]]}", plain,
                 templated, "\"history\" has no place", "row 1", NULL);
    expect("messages as JSON text", "a.csv",
           "messages\n\"[{\"\"role\"\":\"\"user\"\",\"\"content\"\":\"\"a\"\"},"
           "{\"\"role\"\":\"\"assistant\"\",\"\"content\"\":\"\"b\"\"}]\"\n",
           plain, o, USER("a") "[b<|im_end|>]\n");
    expect_error("messages as Python text", "a.csv", "messages\n\"[{'role': 'user'}]\"\n", plain, o,
                 "begins like a list", "row 1",
                 "json.dumps");
    expect("assistant_masks of ids", "a.jsonl", "{\"input_ids\":[65,66,67],\"assistant_masks\":[0,1,false]}", plain,
           all, "A[B]C");
    expect("completion_mask of ids", "a.jsonl", "{\"input_ids\":[65,66,67],\"completion_mask\":[0,0,true]}", plain,
           completion, "AB[C]");
    expect("padding is left out", "a.jsonl", "{\"input_ids\":[9,65,66,9],\"attention_mask\":[0,1,1,0]}", plain, o,
           "[AB]");
    expect_error("a mask of other numbers", "a.jsonl", "{\"input_ids\":[1,2],\"assistant_masks\":[0,2]}", plain, o,
                 "assistant_masks[1] is neither 0 nor 1", "row 1", NULL);
    expect_error("a mask of another length", "a.jsonl", "{\"input_ids\":[1,2],\"assistant_masks\":[0]}", plain, o,
                 "2 input_ids, but 1 assistant_masks", "row 1", NULL);

    expect("text", "a.jsonl", "{\"text\":\"hello\"}", with_bos, o, "[<s>hello<|im_end|>]");
    expect("text that ends with the end of text", "a.jsonl", "{\"text\":\"hello<|im_end|>\"}", plain, all,
           "[hello<|im_end|>]");
    expect("input_ids", "a.jsonl", "{\"input_ids\":[65,66,257]}", plain, o, "[AB<|im_end|>]");
    expect("input_ids and labels, whatever --loss-on says", "a.jsonl",
           "{\"input_ids\":[65,66,67],\"labels\":[-100,-100,67]}", plain, all, "AB[C]");
    expect(".json array, spread over lines", "a.json", " [\n {\"text\":\n\"x\"}\n]\n", plain, o, "[x<|im_end|>]");
    expect(".jsonl that is an array", "a.jsonl", "[\n{\"text\":\n\"x\"}\n]\n", plain, o, "[x<|im_end|>]");
    expect(".json that is JSON lines", "a.json", "{\"text\":\"x\"}\n{\"text\":\"y\"}\n", plain, o, "[x<|im_end|>]");
    expect("unknown ending: array by its first byte", "a.data", "[{\"text\":\"x\"}]", plain, o, "[x<|im_end|>]");
    expect("unknown ending: CSV by its first byte", "a.data", "text\nx\n", plain, o, "[x<|im_end|>]");
    expect("objects spread over lines", "a.jsonl", "{\n  \"text\":\n  \"x}\\\"{\"\n}\r\n{\"text\":\"y\"}", plain, o,
           "[x}\"{<|im_end|>]");
    expect("one object spread over lines, .json", "a.json", "{\n \"prompt\": \"p\",\n \"completion\": \"c\"\n}\n",
           plain, o, "p[c<|im_end|>]");
    expect("NaN is an empty cell", "a.jsonl",
           "{\"instruction\":\"i\",\"input\":NaN,\"output\":\"o\",\"score\":-Infinity}", plain, o,
           USER("i") "[o<|im_end|>]\n");
    expect("byte order mark in .jsonl", "a.jsonl", "\xEF\xBB\xBF{\"text\":\"x\"}", plain, o, "[x<|im_end|>]");
    expect("byte order mark in .json", "a.json", "\xEF\xBB\xBF[{\"text\":\"x\"}]", plain, o, "[x<|im_end|>]");
}

/* What the row set has of columns that nothing reads, and how it says so. */
static void expect_unread(const char *what, const char *name, const char *file, DataOptions o, const char *want) {
    Dataset d;
    Error err;
    bool ok = dataset_open(&d, write_text(name, file), plain, &o, &err);
    char *got = ok ? data_columns_text(&d.stats.unread) : NULL;
    check(ok && !strcmp(got ? got : "", want), "unread: %s: %s", what, !ok ? err.text : got ? got : "nothing");
    free(got);
    if (ok) dataset_free(&d);
}
static void test_unread(void) {
    DataOptions o = options_of(LOSS_DEFAULT, CHAT_CHATML), completion = options_of(LOSS_ON_COMPLETION, CHAT_CHATML);
    expect_unread("nothing", "a.jsonl", CHAT2, o, "");
    expect_unread("what evaluate reads of a row", "a.jsonl",
                  "{\"prompt\":\"p\",\"completion\":\"c\",\"group\":\"g\",\"answers\":[\"c\",\"d\"]}", o, "");
    expect_unread("a null is no column", "a.jsonl", "{\"text\":\"x\",\"y\":null}", o, "");
    expect_unread("keys of rows, each row counts once", "a.jsonl",
                  "{\"text\":\"x\",\"b\":1,\"a\":[{\"c\":1}]}\n{\"text\":\"x\",\"b\":1,\"b\":{}}\n", o,
                      "a (1 row), b (2 rows)");
    expect_unread("keys of messages", "a.jsonl",
                  "{\"messages\":[{\"role\":\"user\",\"name\":\"Ann\",\"content\":\"a\"},"
                  "{\"role\":\"assistant\",\"content\":\"b\",\"loss\":false,\"name\":\"Bot\"}],\"id\":7}", o,
                  "id (1 row), messages[].loss (1 row), messages[].name (1 row)");
    expect_unread("what a template takes is read whole, what it does not know is not", "a.jsonl",
                  "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}],"
                  "\"tools\":\"[{\\\"name\\\":{}}]\",\"chat_template_kwargs\":{\"mood\":1}}", options_of(LOSS_DEFAULT,
                          CHAT_QWEN3),
                  "chat_template_kwargs.mood (1 row)");
    expect_unread("both shapes of one row: the other one", "a.jsonl",
                  "{\"text\":\"x\",\"prompt\":\"p\",\"completion\":\"c\"}", o,
                  "text (1 row)");
    expect_unread("columns of CSV", "a.csv", "text,id,\nx,1,\ny,2,\n", o, "\"\" (2 rows), id (2 rows)");
    expect_unread("masks beside labels", "a.jsonl",
                  "{\"input_ids\":[1,2],\"labels\":[1,2],\"assistant_masks\":[1,0],\"attention_mask\":[1,1]}",
                      completion,
                  "assistant_masks (1 row)");
    expect_unread("a completion mask, with the loss on all", "a.jsonl",
                  "{\"input_ids\":[1,2],\"completion_mask\":[0,1]}", o,
                  "completion_mask (1 row)");
    expect_unread("a name that would drive the terminal, and a long one", "a.jsonl",
                  "{\"text\":\"x\",\"\\u001b[2J\\u009b\":1,"
                  "\"zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz\":1}", o,
                  "?[2J? (1 row), zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz... (1 row)");
    /* More than are kept, over blocks and threads: the same text every time. */
    char *file = (char *)malloc(1 << 20), first[2048] = "";
    size_t n = 0;
    for (int i = 0; i < 3000; i++)
        n += (size_t)sprintf(file + n, "{\"text\":\"x\",\"%c%c\":1,\"k%d\":2}\n", 'a' + i % 26, 'a' + i / 26 % 3,
                             i % 7);
    for (int threads = 1; threads <= 3; threads++) {
        Dataset d;
        Error err;
        o.threads = threads;
        bool ok = dataset_open(&d, write_text("many.jsonl", file), plain, &o, &err);
        char *got = ok ? data_columns_text(&d.stats.unread) : NULL;
        if (threads == 1) snprintf(first, sizeof first, "%s", got ? got : "");
        check(ok && got && d.stats.unread.count == DATA_COLUMNS && !strcmp(got, first) &&
              !strncmp(got, "aa (39 rows), ab (39 rows)", 25) &&
              strstr(got, " and others"), "unread: more than are kept, %d threads: %.60s...", threads, got ? got :
                  err.text);
        free(got);
        if (ok) dataset_free(&d);
    }
    free(file);
}

/* test/golden/trl_labels.jsonl: rows as TRL's SFTTrainer prepared them with data/base (dev/make_golden.py labels). */
static void test_trl_labels(void) {
    Error err;
    size_t bytes;
    Tokenizer *t = tokenizer_open("data/base", &err);
    char *text = read_file("test/golden/trl_labels.jsonl", &bytes, &err);
    int pairs = 0, ids = 0, merged = 0, wrong = 0;
    if (!check(t && text, "data/base and trl_labels.jsonl are there")) return;
    for (char *line = text, *stop; (stop = strchr(line, '\n')); line = stop + 1) {
        JsonDoc doc;
        Dataset d;
        if (!json_parse(&doc, line, (size_t)(stop - line), "trl_labels.jsonl", 1, &err)) { check(false, "%s", err.text);
        break; }
        const Json *row = json_get(doc.root, "row"), *only = json_get(doc.root, "completion_only");
        const Json *id = json_get(doc.root, "input_ids")->child, *label = json_get(doc.root, "labels")->child;
        DataOptions o = options_of(only->type == JSON_TRUE ? LOSS_ON_COMPLETION : LOSS_DEFAULT, CHAT_NONE);
        char *end = strstr(line, ",\"completion_only\"");
        bool ok = dataset_open(&d, write_bytes("row.jsonl", line + 7, (size_t)(end - line - 7)), t, &o, &err);
        bool same = ok && d.count == 1;
        for (size_t i = 0; same && i < d.offset[1]; i++, id = id->next, label = label->next)
            same = id && d.ids[i] == (int32_t)id->number && d.labels[i] == (int32_t)label->number;
        same = same && !id;
        if (json_get(row, "prompt")) {
            TextSpan border = {json_get(row, "prompt")->count, json_get(row, "prompt")->count + json_get(row,
                    "completion")->count};
            char both[256];
            TokenIds tok;
            memset(&tok, 0, sizeof tok);
            snprintf(both, sizeof both, "%s%s<|im_end|>", json_get(row, "prompt")->str,
                     json_get(row, "completion")->str);
            border.end = strlen(both);
            pairs++;
            /* Counting a token as the completion's where it holds one of its bytes would be another answer? */
            if (tokenizer_encode_spans(t, &tok, both, strlen(both), &border, 1, TOK_ADD_SPECIAL, &err))
                for (size_t i = 0; ok && i < tok.count && i < d.offset[1]; i++)
                    if (tok.mask[i] != (d.labels[i] != -100)) { merged++; break; }
            token_ids_free(&tok);
        } else ids++;
        if (!same && wrong++ < 5) check(false, "TRL has other labels: %.*s", (int)(end - line), line);
        if (ok) dataset_free(&d);
        json_free(&doc);
    }
    check(!wrong && pairs == 100 && ids == 18, "TRL's labels: %d pairs, %d tokenised rows with masks", pairs, ids);
    check(merged > 0, "in %d pairs the bytes of the completion would have said otherwise", merged);
    free(text);
    tokenizer_free(t);
}

/* Only position 0 is labelled: there is nothing to learn. Blank lines are not rows; rows keep their numbers when
   others are dropped. */
static void test_rows(void) {
    Dataset d;
    Error err;
    DataOptions o = options_of(LOSS_DEFAULT, CHAT_CHATML);
    const char *file = "\r\n{\"text\":\"ab\"}\r\n  \t\r\n{\"input_ids\":[65,66],\"labels\":[65,-100]}\r\n"
                       "{\"input_ids\":[]}\n{\"prompt\":\"p\",\"completion\":\"cc\"}";
    bool ok = dataset_open(&d, write_text("rows.jsonl", file), plain, &o, &err);
    check(ok && d.count == 2 && d.slots == 2 && d.slot == NULL && d.row[0] == 1 && d.row[1] == 4,
          "blank lines, CRLF, dropped rows: rows 1 and 4 of 4 are left%s%s", ok ? "" : ": ", ok ? "" : err.text);
    check(ok && d.stats.rows == 4 && d.stats.examples == 2 && d.stats.dropped == 2 && d.stats.truncated == 0 &&
          d.stats.tokens == 7 && d.stats.labelled == 5 && d.stats.longest == 4 && d.stats.stop_trained == 2 &&
          d.stats.double_bos == 0 && d.stats.uses.labelled == 1 && d.stats.uses.chats == 0,
          "stats: rows %lld dropped %lld tokens %lld labelled %lld (shifted) longest %lld stop %lld",
          (long long)d.stats.rows, (long long)d.stats.dropped, (long long)d.stats.tokens,
          (long long)d.stats.labelled, (long long)d.stats.longest, (long long)d.stats.stop_trained);
    if (ok) dataset_free(&d);

    const char *two[2] = {write_text("rows.jsonl", "{\"text\":\"ab\"}\n{\"text\":\"cd\"}\n"),
                          write_text("rows.csv", "text\nef\ngh\nij\n")};
    static const struct { int rows, examples; } limits[] = {{1, 1}, {2, 2}, {3, 3}, {4, 4}, {5, 5}, {99, 5}, {0, 5}};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        o.max_rows = limits[i].rows;
        ok = dataset_open_files(&d, two, 2, plain, &o, &err);
        check(ok && d.count == (size_t)limits[i].examples && d.stats.rows == limits[i].examples &&
              (d.count < 3 || !strcmp(masked(&d, 2), "[ef<|im_end|>]")),
              "the first %d rows of two files: %zu", limits[i].rows, ok ? d.count : 0);
        if (ok) dataset_free(&d);
    }
    two[0] = write_text("rows.jsonl", "{\"text\":\"ab\"}\n{\"text\":\"cd\"}\n");
    two[1] = write_text("broken.jsonl", "{\"text\":\n");
    o.max_rows = 2;
    ok = dataset_open_files(&d, two, 2, plain, &o, &err);
    check(ok && d.count == 2, "a file behind the last row that is wanted is not read%s", ok ? "" : err.text);
    if (ok) dataset_free(&d);
    o.max_rows = 0;

    file = "{\"prompt\":\"12345678\",\"completion\":\"cc\"}\n{\"prompt\":\"1234\",\"completion\":\"56789\"}\n"
           "{\"text\":\"<s>x\"}\n{\"text\":\"1234567\"}\n{\"input_ids\":[1,2,3,4,5,6,7,8,9,10]}\n";
    ok = dataset_open(&d, write_text("ids.jsonl", "{\"input_ids\":[1,2000000]}"), NULL, &o, &err);
    check(ok && d.count == 1 && d.ids[1] == 2000000 && d.stats.stop_trained == 0, "input_ids need no tokenizer");
    if (ok) dataset_free(&d);
    DataOptions untold = o;
    untold.chat_template = CHAT_NONE;
    ok = dataset_open(&d, write_text("ids.jsonl", "{\"input_ids\":[1,2]}"), NULL, &untold, &err);
    check(ok && d.count == 1 && d.ids[1] == 2, "nor do they a chat template");
    if (ok) dataset_free(&d);
    o.max_length = 8;
    ok = dataset_open(&d, write_text("cut.jsonl", file), with_bos, &o, &err);
    check(ok && d.count == 4 && d.stats.truncated == 4 && d.stats.dropped == 1 && d.stats.longest == 8,
          "truncation: 4 of 5 rows cut at 8 tokens, one of them loses its answer and is dropped");
    check(ok && !strcmp(masked(&d, 0), "<s>1234[567]"), "truncation cuts the end: %s", ok ? masked(&d, 0) : err.text);
    check(ok && d.stats.double_bos == 1 && !strcmp(masked(&d, 1), "[<s><s>x<|im_end|>]"),
          "a BOS in the data and the tokenizer's: counted as double");
    check(ok && d.stats.stop_trained == 1,
          "stop token trained: only in the row that was not cut (%lld)", (long long)d.stats.stop_trained);
    check(ok && d.offset[4] - d.offset[3] == 8 && d.ids[d.offset[4] - 1] == 8, "input_ids are cut too");
    if (ok) dataset_free(&d);
}

/* --max-length cuts the end, which is the reply: counted; or with --truncate-prompt the beginning of what is before
   it. */
static void test_cut(void) {
#define TURN "{\"messages\":[{\"role\":\"user\",\"content\":\"abc\"},{\"role\":\"assistant\",\"content\":\"defg\"}]}"
    static const struct { const char *what, *file; int max, cut, lost; const char *kept; int cut_with;
    const char *kept_with; } cases[] = {
        {"nothing to cut", TURN, 28, 0, 0, USER("abc") "[defg<|im_end|>]\n", 0, USER("abc") "[defg<|im_end|>]\n"},
        {"the line break after it", TURN, 27, 0, 0, USER("abc") "[defg<|im_end|>]", 0, USER("abc") "[defg<|im_end|>]"},
        {"a chat's end", TURN, 26, 1, 0, USER("abc") "[defg]", 0,
         "user\nabc<|im_end|>\n<|im_start|>assistant\n[defg<|im_end|>]"},
        {"a completion's end", "{\"prompt\":\"1234\",\"completion\":\"56789\"}", 8, 1, 0, "1234[5678]", 0,
         "34[56789<|im_end|>]"},
        {"all of it", "{\"prompt\":\"12345678\",\"completion\":\"9\"}", 8, 1, 1, NULL, 0, "345678[9<|im_end|>]"},
        {"a reply longer than all", "{\"prompt\":\"1234\",\"completion\":\"abcdefghijk\"}", 8, 1, 0, "1234[abcd]", 1,
         "4[abcdefg]"},
        {"a prompt of one", "{\"prompt\":\"1\",\"completion\":\"abcdefghijk\"}", 8, 1, 0, "1[abcdefg]", 1,
         "1[abcdefg]"},
        {"plain text has no reply", "{\"text\":\"abcdefghijk\"}", 8, 0, 0, "[abcdefgh]", 0, "[abcdefgh]"},
        {"ids with labels", "{\"input_ids\":[65,66,67,68],\"labels\":[-100,-100,67,68]}", 3, 1, 0, "AB[C]", 0, "B[CD]"},
        {"ids alone have no reply", "{\"input_ids\":[65,66,67,68]}", 3, 0, 0, "[ABC]", 0, "[ABC]"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int with = 0; with < 2; with++) {
            Dataset d;
            Error err;
            DataOptions o = options_of(LOSS_DEFAULT, CHAT_CHATML);
            char file[512];
            o.max_length = cases[i].max;
            o.truncate_prompt = with;
            snprintf(file, sizeof file, "%s\n{\"text\":\"x\"}\n", cases[i].file);
            const char *want = with ? cases[i].kept_with : cases[i].kept;
            bool ok = dataset_open(&d, write_text("cut.jsonl", file), plain, &o, &err), gone = ok && d.count == 1;
            check(ok && (want ? !gone && !strcmp(masked(&d, 0), want) : gone) &&
                  d.stats.cut_replies == (with ? cases[i].cut_with : cases[i].cut) && d.stats.lost_replies ==
                      (with ? 0 : cases[i].lost),
                  "cut%s: %s: %lld cut, %lld lost%s%s", with ? ", of the prompt" : "", cases[i].what,
                      ok ? (long long)d.stats.cut_replies : 0,
                  ok ? (long long)d.stats.lost_replies : 0, ok ? "" : ": ", ok ? "" : err.text);
            if (ok) dataset_free(&d);
        }
    DataOptions o = options_of(LOSS_DEFAULT, CHAT_NONE);
    o.max_length = 5;
    o.truncate_prompt = true;
    expect("cut, of the prompt: its BOS stays", "cut.jsonl", "{\"prompt\":\"1234\",\"completion\":\"56\"}", with_bos, o,
           "<s>4[56<|im_end|>]");
    expect("cut, of the prompt: its BOS stays alone", "cut.jsonl", "{\"prompt\":\"1234\",\"completion\":\"567\"}",
           with_bos, o,
           "<s>[567<|im_end|>]");
}

/* The newline ChatML puts after the end of turn does not hide that the end of turn is learned; an answer without any is
   noticed. */
static void test_stop(void) {
    static const struct { const char *file; LossOn loss_on; int want; } cases[] = {
        {CHAT2, LOSS_DEFAULT, 1}, {CHAT2, LOSS_ON_ALL, 1}, {"{\"input_ids\":[65,66]}", LOSS_DEFAULT, 0},
        {"{\"input_ids\":[65,257,67,68]}", LOSS_DEFAULT, 0},
        {"{\"input_ids\":[65,257,67],\"labels\":[-100,-100,67]}", LOSS_DEFAULT, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Dataset d;
        Error err;
        DataOptions o = options_of(cases[i].loss_on, CHAT_CHATML);
        bool ok = dataset_open(&d, write_text("stop.jsonl", cases[i].file), plain, &o, &err);
        check(ok && d.stats.stop_trained == cases[i].want,
              "stop token in the loss: case %zu, %d", i + 1, cases[i].want);
        if (ok) dataset_free(&d);
    }
}

/* ---- CSV --------------------------------------------------------------------------------------------------------- */

static void test_csv(void) {
    DataOptions o = options_of(LOSS_DEFAULT, CHAT_CHATML);
    expect("CSV: two columns", "a.csv", "prompt,completion\np,c\n", plain, o, "p[c<|im_end|>]");
    expect("CSV: quotes, doubled quotes, a comma", "a.csv", "\"prompt\",completion\n\"a, \"\"b\"\"\",\"c\"\n", plain,
           o, "a, \"b\"[c<|im_end|>]");
    expect("CSV: line breaks inside quotes stay as they are", "a.csv", "prompt,completion\r\n\"a\nb\r\nc\",d\r\n",
           plain, o, "a\nb\r\nc[d<|im_end|>]");
    expect("CSV: byte order mark, no line end at the end, other columns", "a.csv",
           "\xEF\xBB\xBF" "completion,,prompt\nc,7,p", plain, o, "p[c<|im_end|>]");
    expect("CSV: lone CR ends a line, empty lines are skipped", "a.csv", "\n\rtext\r\r\n\nab\r", plain, o,
           "[ab<|im_end|>]");
    expect("CSV: spaces belong to the field", "a.csv", "text\n a \n", plain, o, "[ a <|im_end|>]");
    expect("CSV: a file that ends with a closing quote", "a.csv", "text\n\"ab\"", plain, o, "[ab<|im_end|>]");
    expect("CSV: empty quoted fields", "a.csv", "instruction,input,output\ni,\"\",o\n", plain, o,
           USER("i") "[o<|im_end|>]\n");
    expect("CSV: semicolons", "a.csv", "prompt;completion\r\n\"a;b\";c,d\r\n", plain, o, "a;b[c,d<|im_end|>]");
    expect("CSV: a comma wins", "a.csv", "text,a;b\nx;y,1\n", plain, o, "[x;y<|im_end|>]");
    expect("CSV: tabs", "a.csv", "prompt\tcompletion\nHi\t a;b\n", plain, o, "Hi[ a;b<|im_end|>]");
    expect(".tsv", "a.tsv", "prompt\tcompletion\na,b\tc\n", plain, o, "a,b[c<|im_end|>]");
    expect("CSV: Excel's sep=", "a.csv", "\xEF\xBB\xBFsep=|\r\nprompt|completion\r\na,b|c\r\n", plain, o,
           "a,b[c<|im_end|>]");
    expect("CSV: sep= and a line feed", "a.csv", "sep=|\nprompt|completion\na,b|c\n", plain, o, "a,b[c<|im_end|>]");
    expect("CSV: sep= and a carriage return", "a.csv", "sep=|\rprompt|completion\ra,b|c\r", plain, o,
           "a,b[c<|im_end|>]");
    expect("CSV: names with blanks and capitals", "a.csv", "Prompt , COMPLETION\np,c\n", plain, o, "p[c<|im_end|>]");
    expect_error("CSV: twice after all", "a.csv", "Text,text \na,b\n", plain, o, "two columns are named \"text\"",
                 "a.csv:1;", NULL);
    Dataset d;
    Error err;
    /* names are sorted, not compared with each other: else this takes a minute */
    size_t n = 0;
    char *wide = (char *)malloc(4 << 20);
    for (int c = 0; c < 200000; c++) n += (size_t)sprintf(wide + n, c ? ",c%d" : "text", c);
    n += (size_t)sprintf(wide + n, "\nx");
    for (int c = 1; c < 200000; c++) wide[n++] = ',';
    clock_t start = clock();
    bool many = dataset_open(&d, write_bytes("wide.csv", wide, n), plain, &o, &err);
    check(many && d.stats.unread.count == DATA_COLUMNS && d.stats.unread.more, "CSV: 200,000 columns (%.2f s)%s%s",
          (double)(clock() - start) / CLOCKS_PER_SEC, many ? "" : ": ", many ? "" : err.text);
    if (many) dataset_free(&d);
    free(wide);
    bool ok = dataset_open(&d, write_text("rows.csv", "text\n\"\"\nab\n\n\"c\nd\"\n"), plain, &o, &err);
    check(ok && d.stats.rows == 3 && d.count == 2 && d.row[0] == 2 && d.row[1] == 3 &&
          !strcmp(masked(&d, 1), "[c\nd<|im_end|>]"),
          "CSV: rows are numbered as records, an empty text has nothing to learn%s%s", ok ? "" : ": ",
          ok ? "" : err.text);
    if (ok) dataset_free(&d);
    expect_error("CSV: quote never closed", "a.csv", "text\na\n\"b\nc\n", plain, o, "never closed", "a.csv:3;", NULL);
    expect_error("CSV: text after a quote", "a.csv", "text\n\"a\nb\"c\n", plain, o, "after a closing quote",
                 "a.csv:3;", NULL);
    expect_error("CSV: quote in an unquoted field", "a.csv", "text\na\"b\n", plain, o, "inside an unquoted field",
                 "a.csv:2;", NULL);
    expect_error("CSV: too many fields", "a.csv", "prompt,completion\n\"a\nb\",c\nd,e,f\n", plain, o,
                 "3 fields, the header has 2", "a.csv:4;", NULL);
    expect_error("CSV: too few fields", "a.csv", "prompt,completion\na\n", plain, o, "1 fields, the header has 2",
                 "a.csv:2;", NULL);
    expect_error("CSV: column twice", "a.csv", "text,text\na,b\n", plain, o, "two columns are named \"text\"",
                 "a.csv:1;", NULL);
    expect_error("CSV: invalid UTF-8", "a.csv", "text\na\nb\xE4\n", plain, o, "invalid UTF-8", "a.csv:3;", NULL);
    expect_error("CSV: only a header", "a.csv", "prompt,completion\n", plain, o, "no rows", "a.csv", NULL);
    expect_error("CSV: messages", "a.csv", "messages\nx\n", plain, o,
                 "column \"messages\" cannot be a list in a CSV file", "a.csv row 1", ".jsonl");
    expect_error("CSV: unknown columns", "a.csv", "question,answer\na,b\n", plain, o, "keys found: question, answer",
                 "a.csv row 1 (line 2)", "prompt + completion");
}

/* ---- what is no data file ---------------------------------------------------------------------------------------- */

/* One line each, and nothing is waited for. */
static void expect_no_file(const char *what, const char *path, const char *a, const char *b) {
    DataOptions o = options_of(LOSS_DEFAULT, CHAT_CHATML);
    Dataset d;
    Error err = {"no error"};
    bool ok = dataset_open(&d, path, plain, &o, &err);
    check(!ok && strstr(err.text, a) && strstr(err.text, b) && !strchr(err.text, '\n'),
          "no file: %s: %s", what, err.text);
    if (ok) dataset_free(&d);
}
static void test_files(void) {
    static const char lfs[] = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 11422654\n";
    char path[160], tokenizer[160];
    int ends[2];
    Error err;
    DataOptions o = options_of(LOSS_DEFAULT, CHAT_CHATML);
    Dataset d;
    snprintf(path, sizeof path, "%s/pipe.jsonl", folder);
    assert(mkfifo(path, 0600) == 0);
    expect_no_file("a pipe that nobody writes to", path, "file is empty", "pipe.jsonl");
    expect_no_file("a device without an end", "/dev/zero", "/dev/zero: it is a device", "give a file");
    expect_no_file("a folder", folder, "it is a folder", "give a file inside it");
    expect_no_file("an empty name", "", "an empty file name", "give the path");
    expect_no_file("a Git LFS pointer", write_text("lfs.jsonl", lfs), "a Git LFS pointer",
                   "git lfs install && git lfs pull");
    snprintf(path, sizeof path, "%s/locked.jsonl", folder);
    write_text("locked.jsonl", "{\"text\":\"x\"}\n");
    assert(chmod(path, 0) == 0);
    if (access(path, R_OK))
        expect_no_file("one that may not be read", path, "locked.jsonl: Permission denied", "check the path");
    else printf("skipped: everything may be read by root\n");
    snprintf(tokenizer, sizeof tokenizer, "%s/pointers", folder);
    assert(mkdir(tokenizer, 0700) == 0);
    write_text("pointers/tokenizer.json", lfs);
    check(!tokenizer_open(tokenizer, &err) && strstr(err.text, "pointers/tokenizer.json; run in its folder: git lfs"),
          "no file: a pointer for a tokenizer: %s", err.text);
    /* But what a program writes into a pipe is data, as in --data <(jq ...). */
    assert(pipe(ends) == 0 && write(ends[1], "{\"text\":\"x\"}\n", 13) == 13 && close(ends[1]) == 0);
    snprintf(path, sizeof path, "/dev/fd/%d", ends[0]);
    bool ok = dataset_open(&d, path, plain, &o, &err);
    check(ok && !strcmp(masked(&d, 0), "[x<|im_end|>]"),
          "a pipe that somebody writes to is read%s%s", ok ? "" : ": ", ok ? "" : err.text);
    if (ok) dataset_free(&d);
    close(ends[0]);
}

/* A token file whose sums are right and whose numbers are not: nothing that the program goes by is taken unseen. */
typedef struct MadeFile { TokenHeader h; int32_t ids[3], labels[3]; size_t offset[2]; int64_t row[1]; } MadeFile;
static void test_token_file(void) {
#define AT_MEMBER(member) offsetof(MadeFile, member), sizeof ((MadeFile *)0)->member
    static const struct { const char *what; size_t at, bytes; int64_t value; } damages[] = {
        {"as it was written", 0, 0, 0},
        {"too many columns", AT_MEMBER(h.stats.unread.count), DATA_COLUMNS + 1},
        {"fewer columns than none", AT_MEMBER(h.stats.unread.count), -1},
        {"a column's name without end", AT_MEMBER(h.stats.unread.list[0].name), 'x'},
        {"neither true nor false", AT_MEMBER(h.stats.unread.more), 41},
        {"an id beyond the largest", AT_MEMBER(ids[2]), 6}, {"an id below 0", AT_MEMBER(ids[2]), -1},
        {"a label beyond the largest", AT_MEMBER(labels[1]), 6}, {"a label below 0", AT_MEMBER(labels[1]), -1},
        {"a largest id below 0", AT_MEMBER(h.largest_id), -1},
        {"a largest id of 33 bits", AT_MEMBER(h.largest_id), (1ll << 32) + 5},
        {"one below 0 whose lower half is 5", AT_MEMBER(h.largest_id), 5 - (1ll << 32)},
        {"an example beyond the tokens", AT_MEMBER(offset[1]), 4}, {"a first one not at 0", AT_MEMBER(offset[0]), 1},
        {"another longest", AT_MEMBER(h.stats.longest), 2}, {"another count of labels", AT_MEMBER(h.stats.labelled), 1},
        {"another count of tokens", AT_MEMBER(h.stats.tokens), 4},
        {"another count of examples", AT_MEMBER(h.stats.examples), 2}};
#undef AT_MEMBER
    for (size_t i = 0; i < sizeof damages / sizeof *damages; i++) {
        MadeFile f;
        Dataset d;
        Error err = {""};
        char *at = (char *)&f + damages[i].at;
        memset(&f, 0, sizeof f);
        memcpy(f.h.magic, "LORATOK3", 8);
        f.h.key = 7; f.h.count = 1; f.h.tokens = 3; f.h.largest_id = 5;
        f.h.stats.examples = 1; f.h.stats.tokens = f.h.stats.longest = 3; f.h.stats.labelled = 2;
        f.h.stats.unread.count = 1; f.h.stats.unread.more = true;
        f.ids[2] = 5; f.labels[2] = 5; f.offset[1] = 3; f.row[0] = 1;
        if (damages[i].bytes <= sizeof damages[i].value) memcpy(at, &damages[i].value, damages[i].bytes);
        else memset(at, (int)damages[i].value, damages[i].bytes);
        f.h.hash = hash_bytes(hash_bytes(HASH_START, f.ids, sizeof f.ids), f.labels, sizeof f.labels);
        f.h.checksum = tokens_checksum(&f.h, f.offset, f.row);
        int fd = open(write_bytes("made.tokens", (const char *)&f, sizeof f), O_RDONLY);
        bool ok = fd >= 0 && dataset_map(&d, fd, 7, false, "made.tokens", &err);
        check(ok == !damages[i].bytes && (ok || strstr(err.text, "a damaged token file; made.tokens; delete it")),
              "token file: %s: %s", damages[i].what, ok ? "taken" : err.text);
        if (ok) dataset_free(&d);
        close(fd);
    }

    /* The same with two examples, or with none. */
    struct { TokenHeader h; int32_t ids[3], labels[3]; size_t offset[3]; int64_t row[2]; } two;
    struct { TokenHeader h; size_t offset[1]; } none;
    static const struct { const char *what; size_t offset[3]; int64_t longest, labelled; bool whole, late; }
        borders[] = {
        {"two examples", {0, 1, 3}, 2, 1, true, false}, {"an empty one", {0, 0, 3}, 3, 2, false, false},
        {"a token behind the last", {0, 1, 2}, 1, 0, false, false},
        {"a row changed after the sum", {0, 1, 3}, 2, 1, false, true}};
    for (size_t i = 0; i < sizeof borders / sizeof *borders; i++) {
        Dataset d;
        Error err = {""};
        memset(&two, 0, sizeof two);
        memcpy(two.h.magic, "LORATOK3", 8);
        two.h.key = 7; two.h.count = 2; two.h.tokens = 3; two.h.largest_id = 5;
        two.h.stats.examples = 2; two.h.stats.tokens = 3;
        two.h.stats.longest = borders[i].longest; two.h.stats.labelled = borders[i].labelled;
        two.ids[2] = two.labels[2] = 5; two.row[0] = 1; two.row[1] = 2;
        memcpy(two.offset, borders[i].offset, sizeof two.offset);
        two.h.hash = HASH_START;
        for (size_t k = 0; k < 2; k++) {
            size_t from = two.offset[k], bytes = (two.offset[k + 1] - from) * 4;
            two.h.hash = hash_bytes(hash_bytes(two.h.hash, two.ids + from, bytes), two.labels + from, bytes);
        }
        two.h.checksum = tokens_checksum(&two.h, two.offset, two.row);
        two.row[1] += borders[i].late;
        int fd = open(write_bytes("made.tokens", (const char *)&two, sizeof two), O_RDONLY);
        bool ok = fd >= 0 && dataset_map(&d, fd, 7, false, "made.tokens", &err);
        check(ok == borders[i].whole && (ok || strstr(err.text, "a damaged token file; made.tokens; delete it")),
              "token file: %s: %s", borders[i].what, ok ? "taken" : err.text);
        if (ok) dataset_free(&d);
        close(fd);
    }
    Dataset d;
    Error err = {""};
    memset(&none, 0, sizeof none);
    memcpy(none.h.magic, "LORATOK3", 8);
    none.h.key = 7; none.h.hash = HASH_START; none.h.largest_id = 5;
    none.h.checksum = tokens_checksum(&none.h, none.offset, NULL);
    int fd = open(write_bytes("made.tokens", (const char *)&none, sizeof none), O_RDONLY);
    check(fd >= 0 && !dataset_map(&d, fd, 7, false, "made.tokens", &err) && strstr(err.text, "a damaged token file"),
          "token file: no example: %s", err.text);
    close(fd);
}

/* ---- errors ------------------------------------------------------------------------------------------------------ */

static void test_errors(void) {
    DataOptions o = options_of(LOSS_DEFAULT, CHAT_CHATML), none = options_of(LOSS_DEFAULT, CHAT_NONE);
    DataOptions completion = options_of(LOSS_ON_COMPLETION, CHAT_CHATML), bad = o;
    Dataset d;
    Error err;
    char path[160];
    snprintf(path, sizeof path, "%s/absent.jsonl", folder);
    check(!dataset_open(&d, path, plain, &o, &err) && strstr(err.text, "absent.jsonl"),
          "error: no such file: %s", err.text);
    expect_error("empty file", "a.jsonl", "", plain, o, "file is empty", "a.jsonl", NULL);
    expect_error("blank file", "a.json", "\n \n", plain, o, "file is empty", "a.json", NULL);
    expect_error("empty array", "a.json", "[]", plain, o, "no rows", "a.json", NULL);
    expect_error("bad JSON: line and column", "a.jsonl", "{\"text\":\"x\"}\n\n{\"text\":\"x\",}\n", plain, o,
                 "a.jsonl:3:13", NULL, NULL);
    expect_error("bad JSON in an array", "a.json", "[{\"text\":\"x\"},\n {\"text\" \"x\"}]", plain, o, "a.json:2:",
                 NULL, NULL);
    expect_error("an object that is not a row list", "a.json", "[1, 2]", plain, o, "the row is a number",
                 "a.json row 1;", NULL);
    expect_error("a line that is an array", "a.jsonl", "{\"text\":\"x\"}\n[{\"text\":\"x\"}]", plain, o,
                 "the row is a list", "a.jsonl row 2 (line 2)", NULL);
    expect_error("an object over several lines", "a.json", "{\"data\": [\n{\"text\":\"x\"}]}", plain, o,
                 "a list of them under \"data\"", "a.json", NULL);
    expect_error("a Parquet file", "a.parquet", "PAR1xyz", plain, o, "a Parquet file", "a.parquet",
                 "save it as .jsonl");
    expect_error("a web page", "a.jsonl", "<!DOCTYPE html>", plain, o, "a web page", "a.jsonl", "raw or resolve");
    expect_error("a mark and nothing else", "a.jsonl", "%PDF", plain, o, "a PDF file", NULL, NULL);
    expect_error("a mark and nothing else", "a.jsonl", "PK\3\4", plain, o, "a zip file", NULL, NULL);
    expect_error("a workbook", "a.xlsx", "PK\3\4aaaaaaaaaaaaaaaaaaaaaaaaaa[Content_Types].xml", plain, o, "spreadsheet",
                 "a.xlsx", "CSV UTF-8");
    expect_error("UTF-16", "a.csv", "\xFF\xFEt", plain, o, "UTF-16", "a.csv", "UTF-8");
    expect_error("text without rows", "a.txt", "Some text.\nMore of it.\n", plain, o, "neither JSON nor a table",
                 "a.txt", "{\"text\": \"...\"}");
    expect_error("pandas' default", "a.json", "{\"prompt\":{\"0\":\"a\"},\"completion\":{\"0\":\"b\"}}", plain, o,
                 "a table column by column",
                 "row 1", "orient=\"records\", lines=True");
    expect_error("a dict of lists", "a.json", "{\"prompt\":[\"a\"],\"completion\":[\"b\"]}", plain, o,
                 "a table column by column", "row 1",
                 NULL);
    expect_error("pandas' split", "a.json", "{\"columns\":[\"text\"],\"index\":[0],\"data\":[[\"x\"]]}", plain, o,
                 "a table column by column",
                 "row 1", NULL);
    expect_error("pandas' index", "a.json", "{\"0\":{\"text\":\"x\"}}", plain, o, "a table column by column", "row 1",
                 NULL);
    expect_error("SQuAD", "a.json", "{\"version\":1,\"data\":[{\"paragraphs\":[]}]}", plain, o, "SQuAD's layout",
                 "row 1",
                 "data/convert squad");
    expect_error("preference data", "a.jsonl", "{\"prompt\":\"a\",\"chosen\":\"b\",\"rejected\":\"c\"}", plain, o,
                 "preference data", "row 1",
                 "DPO is not there yet");
    expect_error("an object that never ends", "a.jsonl", "{\"text\":\"x\"}\n{\"text\":\n{\"text\":\"x\"}\n", plain, o,
                 "a.jsonl:2:", NULL, NULL);
    expect_error("a gzip file", "a.jsonl", "\x1F\x8B\x08x", plain, o, "a gzip file", "a.jsonl", "gunzip");
    expect_error("unknown keys", "a.jsonl", "{\"text\":\"x\"}\n\n{\"prompt\":\"x\",\"chosen\":\"y\"}", plain, o,
                 "keys found: prompt, chosen", "row 2 (line 3)", "accepted are messages | conversations");
    expect_error("no keys", "a.jsonl", "{}", plain, o, "keys found: none", "row 1", NULL);
    expect_error("null counts as absent", "a.jsonl", "{\"text\":null}", plain, o, "keys found: text (null))", "row 1",
                 "null counts as absent: leave such rows out");
    expect_error("a null is named", "a.jsonl", "{\"prompt\":null,\"completion\":\"b\"}", plain, o,
                 "keys found: prompt (null), completion)", "row 1", NULL);
    expect_error("so with a list of other things beside it", "a.jsonl", "{\"messages\":null,\"tools\":[{}]}", plain, o,
                 "keys found: messages (null), tools)", "row 1", NULL);
    expect_error("many long keys", "a.jsonl",
                 "{\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                 "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\":1,"
                 "\"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
                 "bbbbbbbbbbbbb\":2,\"c\\nd\":3}",
                 plain, o, "...", "row 1", NULL);
    expect_error("wrong type", "a.jsonl", "{\"text\":5}", plain, o, "\"text\" is a number, expected a string", "row 1",
                 NULL);
    expect_error("wrong type of messages", "a.jsonl", "{\"messages\":\"x\"}", plain, o,
                 "\"messages\" is a string, expected a list", NULL, NULL);
    expect_error("prompt a list, completion a string", "a.jsonl", "{\"prompt\":[],\"completion\":\"x\"}", plain, o,
                 "\"prompt\" is a list, expected a string", NULL, NULL);
    expect_error("unknown role", "a.jsonl",
                 "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"},{\"role\":\"bot\",\"content\":\"x\"}]}", plain,
                 o, "unknown role \"bot\" in message 2", "row 1", "assistant");
    expect_error("human is not a role of messages", "a.jsonl",
                 "{\"messages\":[{\"role\":\"human\",\"content\":\"x\"}]}", plain, o, "unknown role \"human\"", NULL,
                 NULL);
    expect_error("unknown ShareGPT role", "a.jsonl", "{\"conversations\":[{\"from\":\"alien\",\"value\":\"x\"}]}",
                 plain, o, "unknown role \"alien\"", "row 1", "gpt");
    expect_error("message without content", "a.jsonl", "{\"messages\":[{\"role\":\"user\"}]}", plain, o,
                 "message 1 of \"messages\" has no role and content", NULL, NULL);
    expect_error("message that is a string", "a.jsonl", "{\"messages\":[\"x\"]}", plain, o,
                 "message 1 of \"messages\" has no role and content", NULL, NULL);
    expect_error("a part that is an image", "a.jsonl",
                 "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":{}}]}]}",
                 plain, o, "a part of the type \"image_url\"", "row 1", "only text");
    expect_error("tool calls of a template that has none", "a.jsonl",
                 "{\"messages\":[{\"role\":\"assistant\",\"content\":\"\","
                 "\"tool_calls\":[{\"name\":\"f\",\"arguments\":{}}]}]}",
                 plain, o, "has tool calls",
                 "row 1", "into its content");
    expect_error("a user's tool call", "a.jsonl",
                 "{\"messages\":[{\"role\":\"user\",\"tool_calls\":[{\"name\":\"f\"}]}]}", plain, o,
                 "message 1 of \"messages\" has tool calls", "row 1", "only an assistant");
    expect_error("a function_call that is no JSON", "a.jsonl",
                 "{\"conversations\":[{\"from\":\"function_call\",\"value\":\"w()\"}]}", plain,
                 options_of(LOSS_DEFAULT, CHAT_QWEN2_5), "but no JSON", "row 1", NULL);
    expect_error("tools that are no list", "a.jsonl",
                 "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}],"
                 "\"tools\":false}", plain, options_of(LOSS_DEFAULT, CHAT_QWEN3), "tools", "row 1", NULL);
    expect_error("an output that is no text", "a.jsonl", "{\"instruction\":\"i\",\"output\":{\"a\":1}}", plain, o,
                 "output", "row 1", NULL);
    expect_error("an output with an image", "a.jsonl",
                 "{\"instruction\":\"i\",\"output\":[{\"type\":\"image_url\",\"image_url\":{}}]}", plain, o,
                 "\"output\" is a list", "row 1", NULL);
    expect_error("no messages", "a.jsonl", "{\"messages\":[]}", plain, o, "a.jsonl row 1", NULL, NULL);
    expect_error("no chat template for a chat", "a.jsonl", CHAT2, plain, none, "no chat template", "row 1",
                 "FILE.jinja or NAME: qwen3");
    expect_error("unknown chat template for a chat", "a.jsonl", CHAT2, plain, options_of(LOSS_DEFAULT, CHAT_UNKNOWN),
                 "row 1", "no chat template that is a text", "FILE.jinja");
    expect_error("neither template for an instruction", "a.jsonl", "{\"instruction\":\"i\",\"output\":\"o\"}", plain,
                 none, "no chat template", "--chat-template", "--prompt-template");
    expect_error("invalid UTF-8", "a.jsonl", "{\"text\":\"x\"}\n{\"text\":\"\xFF\"}", plain, o, "UTF-8",
                 "a.jsonl:2:10", NULL);
    expect_error("id out of range", "a.jsonl", "{\"input_ids\":[1,260]}", plain, o,
                 "input_ids[1] is 260, not in 0..259", "row 1", NULL);
    expect_error("id that is no integer", "a.jsonl", "{\"input_ids\":[1.5]}", plain, o, "input_ids[0] is 1.5", NULL,
                 NULL);
    expect_error("negative id", "a.jsonl", "{\"input_ids\":[-100]}", plain, o, "input_ids[0] is -100", NULL, NULL);
    expect_error("id beyond any integer", "a.jsonl", "{\"input_ids\":[1e300]}", plain, o, "input_ids[0] is 1e300",
                 NULL, NULL);
    expect_error("id that is a string", "a.jsonl", "{\"input_ids\":[\"1\"]}", plain, o, "input_ids[0] is 1", NULL,
                 NULL);
    expect_error("bad label", "a.jsonl", "{\"input_ids\":[1,2],\"labels\":[-100,-1]}", plain, o, "labels[1] is -1",
                 NULL, NULL);
    expect_error("label count", "a.jsonl", "{\"input_ids\":[1,2],\"labels\":[-100]}", plain, o,
                 "2 input_ids, but 1 labels", NULL, NULL);
    expect_error("completion of a plain text", "a.jsonl", "{\"text\":\"x\"}", plain, completion,
                 "--loss-on completion needs to know the answer", "row 1", NULL);
    expect_error("completion of ids without labels", "a.jsonl", "{\"input_ids\":[1,2]}", plain, completion,
                 "--loss-on completion", NULL, NULL);
    expect_error("nothing to learn in all", "a.jsonl",
                 "{\"input_ids\":[1,2],\"labels\":[-100,-100]}\n{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}",
                 plain, o, "no token to learn in any of 2 rows", "a.jsonl", "--max-length");
    bad.max_length = 3;
    expect_error("nothing left after the cut", "a.jsonl", "{\"prompt\":\"12345\",\"completion\":\"6\"}", plain, bad,
                 "1 rows were cut at 3 tokens", NULL, NULL);
    bad.max_length = 1;
    expect_error("a cut at one token", "a.jsonl", "{\"prompt\":\"12345\",\"completion\":\"6\"}", plain, bad,
                 "1 rows were cut at 1 tokens", NULL, NULL);
    bad = o; bad.prompt_template = "no place";
    expect_error("template without {prompt}", "a.jsonl", "{\"text\":\"x\"}", plain, bad, "{prompt}",
                 "--prompt-template", NULL);
    expect_error("text without a tokenizer", "a.jsonl", "{\"text\":\"x\"}", NULL, o, "no tokenizer", "row 1",
                 "tokenizer.json");
    bad = o; bad.packing = true; bad.max_length = 0;
    expect_error("packing without length", "a.jsonl", "{\"text\":\"x\"}", plain, bad, "--packing", "--max-length",
                 NULL);
    /* The first bad row is reported whatever the threads do: row 1232 comes after much text, so that the bad row
       1233 is met before it by another thread. */
    size_t room = 4 << 20, n = 0;
    char *file = (char *)malloc(room);
    for (int i = 1; i <= 2000; i++) {
        int filler = i > 1200 && i < 1232 ? 50000 : 1;
        if (i == 1232 || i == 1233) n += (size_t)sprintf(file + n, "{\"row\":%d}\n", i);
        else n += (size_t)sprintf(file + n, "{\"text\":\"%0*d\"}\n", filler, i);
    }
    for (int threads = 1; threads <= 8; threads *= 2) {
        bad = o; bad.threads = threads;
        expect_error_bytes(threads == 1 ? "first of many, 1 thread" : "first of many, more threads", "many.jsonl",
                           file, n, plain, bad, "row 1232", NULL, NULL);
    }
    free(file);
}

/* ---- packing, batches, order ------------------------------------------------------------------------------------- */

/* Rows of the given lengths, as ids. */
static Dataset of_lengths(const int *length, int count, DataOptions o) {
    Dataset d;
    Error err;
    size_t n = 0, room = 0;
    for (int i = 0; i < count; i++) room += (size_t)length[i] * 4 + 32;
    char *file = (char *)malloc(room);
    for (int i = 0; i < count; i++) {
        n += (size_t)sprintf(file + n, "{\"input_ids\":[%d", i % 200);
        for (int k = 1; k < length[i]; k++) n += (size_t)sprintf(file + n, ",%d", k % 200);
        n += (size_t)sprintf(file + n, "]}\n");
    }
    if (!dataset_open(&d, write_bytes("lengths.jsonl", file, n), plain, &o, &err)) {
        check(false, "cannot go on: %s", err.text);
        exit(finish());
    }
    free(file);
    return d;
}

static void test_packing(void) {
    DataOptions o = options_of(LOSS_DEFAULT, CHAT_CHATML);
    o.packing = true;
    /* trl.data_utils._pack_bfd(lengths, 10), printed bin by bin. */
    static const int length[] = {3, 7, 2, 10, 5, 5, 8, 2, 4, 3, 6, 25, 2};
    static const char want[] = "3 | 11 | 6 2 | 1 0 | 10 8 | 4 5 | 9 7 12";
    char got[256] = "";
    o.max_length = 10;
    Dataset d = of_lengths(length, 13, o);
    for (size_t b = 0; b < d.slots; b++)
        for (size_t j = d.slot_offset[b]; j < d.slot_offset[b + 1]; j++)
            sprintf(got + strlen(got), "%d%s", d.slot[j],
                    j + 1 < d.slot_offset[b + 1] ? " " : b + 1 < d.slots ? " | " : "");
    check(!strcmp(got, want), "packing in TRL's order: %s", got);
    int tokens, sequences;
    dataset_largest_batch(&d, 2, &tokens, &sequences);
    check(tokens == 20 && sequences == 5,
          "largest batch of 2 packed slots: %d tokens, %d sequences", tokens, sequences);
    Batch b;
    Error err;
    int64_t slot = (int64_t)d.slots - 1;
    size_t sum = 0;
    for (size_t j = d.slot_offset[slot]; j < d.slot_offset[slot + 1]; j++)
        sum += d.offset[d.slot[j] + 1] - d.offset[d.slot[j]];
    bool ok = batch_alloc(&b, 10, 4, &err);
    batch_build(&b, &d, &slot, 0, 1);
    check(ok && (size_t)b.N == sum && (size_t)b.S == d.slot_offset[slot + 1] - d.slot_offset[slot] && b.M == b.N - b.S,
          "a packed slot is %d sequences: each loses one target (%d of %d)", b.S, b.M, b.N);
    batch_free(&b);
    dataset_free(&d);

    /* A capacity that is a power of two: 8 | 5 and 3 | 4 and 4 | 2. */
    static const int eight[] = {5, 3, 4, 4, 8, 2};
    static const int32_t eight_order[] = {4, 0, 1, 2, 3, 5};
    static const size_t eight_begin[] = {0, 1, 3, 5, 6};
    o.max_length = 8;
    d = of_lengths(eight, 6, o);
    check(d.slots == 4 && !memcmp(d.slot, eight_order, sizeof eight_order) &&
          !memcmp(d.slot_offset, eight_begin, sizeof eight_begin), "packing into bins of 8: %zu", d.slots);
    dataset_free(&d);
    o.max_length = 10;

    /* No two fit together: as many bins as examples, the most that the borders have room for. */
    static const int alone[] = {10, 9, 10, 9, 10};
    d = of_lengths(alone, 5, o);
    check(d.slots == 5 && d.slot_offset[5] == 5 && d.slot_offset[1] == 1, "packing that packs nothing: %zu bins",
          d.slots);
    dataset_free(&d);
    /* What a split leaves, packed or not. */
    o.packing = false;
    for (int packed = 0; packed < 2; packed++) {
        Dataset held;
        d = of_lengths(alone, 5, o);
        bool split = dataset_split(&d, &held, 0.75, 7, &err) && (!packed || dataset_pack(&d, 10, &err));
        bool seen[5] = {false};
        for (size_t i = 0; split && i < d.slots; i++) seen[d.slot[i]] = true;
        for (size_t i = 0; split && i < held.slots; i++) seen[held.slot[i]] = true;
        check(split && held.slots == 4 && d.slots == 1 && d.slot_offset[1] == 1 && held.slot_offset[4] == 4 &&
              seen[0] && seen[1] && seen[2] &&
              seen[3] && seen[4], "a split of five, four held out%s", packed ? ", the rest packed" : "");
        /* What is told of each side is so of its own examples. */
        const Dataset *side[2] = {&d, &held};
        for (int k = 0; split && k < 2; k++) {
            int64_t tokens = 0, labelled = 0, longest = 0;
            for (size_t i = 0; i < side[k]->slot_offset[side[k]->slots]; i++) {
                size_t begin = side[k]->offset[side[k]->slot[i]], end = side[k]->offset[side[k]->slot[i] + 1];
                tokens += (int64_t)(end - begin);
                if ((int64_t)(end - begin) > longest) longest = (int64_t)(end - begin);
                for (size_t n = begin + 1; n < end; n++) labelled += side[k]->labels[n] != DATA_IGNORE;
            }
            const DataStats *s = &side[k]->stats;
            check(tokens > 8 && labelled > 0 && s->tokens == tokens && s->labelled == labelled &&
                  s->longest == longest, "  %lld tokens, %lld in the loss, longest %lld", (long long)s->tokens,
                  (long long)s->labelled, (long long)s->longest);
        }
        if (split) dataset_free(&held);
        dataset_free(&d);
    }
    o.packing = true;

    /* A thousand pseudo-random lengths against the same function (number of bins, FNV-1a of the example numbers
       bin by bin). */
    int many[1000];
    uint32_t x = 1, h = 2166136261u;
    for (int i = 0; i < 1000; i++) { x = x * 1664525u + 1013904223u; many[i] = 2 + (int)(x >> 8) % 99; }
    o.max_length = 100;
    d = of_lengths(many, 1000, o);
    bool full = true;
    for (size_t s = 0; s < d.slots; s++) {
        size_t used = 0;
        for (size_t j = d.slot_offset[s]; j < d.slot_offset[s + 1]; j++) {
            used += d.offset[d.slot[j] + 1] - d.offset[d.slot[j]];
            h = (h ^ (uint32_t)d.slot[j]) * 16777619u;
        }
        h = (h ^ 0xFFFFu) * 16777619u;
        full = full && used <= 100;
    }
    check(full && d.slots == 511 && h == 4246642674u,
          "packing 1000 lengths as TRL does: %zu bins, hash %u", d.slots, h);
    dataset_free(&d);
}

static void test_batches(void) {
    DataOptions o = options_of(LOSS_DEFAULT, CHAT_CHATML);
    Dataset d;
    Error err;
    Batch b;
    const char *rows4 = "{\"prompt\":\"ab\",\"completion\":\"c\"}\n{\"input_ids\":[1,2],\"labels\":[-100,-100]}\n"
                        "{\"input_ids\":[7,8,9],\"labels\":[7,8,9]}\n{\"text\":\"x\"}\n";
    bool ok = dataset_open(&d, write_text("batch.jsonl", rows4), plain, &o, &err);
    int tokens = 0, sequences = 0;
    check(ok && d.count == 3, "three examples of four rows");
    dataset_largest_batch(&d, 2, &tokens, &sequences);
    check(tokens == 7 && sequences == 2, "largest batch of 2: the two longest, %d tokens", tokens);
    dataset_largest_batch(&d, 99, &tokens, &sequences);
    check(tokens == 9 && sequences == 3,
          "largest batch of more than there are: %d tokens, %d sequences", tokens, sequences);
    ok = batch_alloc(&b, tokens, sequences, &err);
    check(ok && b.max_tokens == 9 && b.max_sequences == 3, "batch_alloc");
    memset(b.ids, 0xFF, 36); memset(b.positions, 0xFF, 36); memset(b.cu_seqlens, 0xFF, 16); memset(b.row, 0xFF, 24);
    memset(b.labelled, 0xFF, 36); memset(b.targets, 0xFF, 36);
    static const int64_t order[] = {1, 0, 2};
    static const int32_t ids[] = {7, 8, 9, 'a', 'b', 'c', IM_END, 'x', IM_END},
                                 positions[] = {0, 1, 2, 0, 1, 2, 3, 0, 1}, cu[] = {0, 3, 7, 9};
    static const int32_t labelled[] = {0, 1, 4, 5, 7}, targets[] = {8, 9, 'c', IM_END, IM_END};
    static const int64_t rows[] = {3, 1, 4};
    batch_build(&b, &d, order, 0, 3);
    check(b.N == 9 && b.S == 3 && !memcmp(b.cu_seqlens, cu, sizeof cu) && !memcmp(b.row, rows, sizeof rows),
          "batch: borders and rows");
    check(!memcmp(b.ids, ids, sizeof ids), "batch: ids end to end");
    check(!memcmp(b.positions, positions, sizeof positions), "batch: positions start again in every sequence");
    check(b.M == 5 && !memcmp(b.labelled, labelled, sizeof labelled) && !memcmp(b.targets, targets, sizeof targets),
          "batch: targets are the next labels, none across a border; %d labelled rows", b.M);
    batch_build(&b, &d, order, 2, 1);
    check(b.N == 2 && b.S == 1 && b.M == 1 && b.labelled[0] == 0 && b.targets[0] == IM_END && b.cu_seqlens[1] == 2 &&
          b.row[0] == 4, "batch: built again, smaller");
    batch_free(&b);
    check(b.ids == NULL && b.max_tokens == 0, "batch_free leaves zeros");
    dataset_free(&d);
    check(d.ids == NULL && d.count == 0, "dataset_free leaves zeros");
}

/* ---- classification and reward ----------------------------------------------------------------------------------- */

/* The whole of a data set of labels in a line: the problem's first letter, its classes, then every slot's examples with
   '>' before the token that is pooled, and their targets. "s no,yes: a>b=1 | >c=0". */
static const char *described(const Dataset *d) {
    static char text[4096];
    char *p = text + sprintf(text, "%c ", d->task == TASK_REWARD ? 'p' : problem_name[d->problem][0]);
    for (int k = 0; k < d->label_count; k++) p += sprintf(p, "%s%s", k ? "," : "", d->label_names[k]);
    p += sprintf(p, ":");
    for (size_t s = 0; s < d->slots; s++) {
        if (s) p += sprintf(p, " |");
        for (SlotIterator e = slot_begin(d, s); slot_next(&e);) {
            size_t pooled = batch_pooled(e.ids, e.count, d->pad_token_id);
            *p++ = ' ';
            for (size_t i = 0; i < e.count; i++) {
                if (i == pooled) *p++ = '>';
                if (e.ids[i] < 256) *p++ = (char)e.ids[i];
                else p += sprintf(p, "%s", special_text[e.ids[i] - 256]);
                if (e.labels[i] != DATA_IGNORE) p += sprintf(p, "<label %d>", e.labels[i]);
            }
            for (int k = 0; k < d->target_width; k++) p += sprintf(p, "%c%g", k ? ',' : '=', (double)e.target[k]);
        }
    }
    *p = 0;
    return text;
}
static DataOptions options_of_task(Task task, Problem problem, ChatTemplate chat) {
    DataOptions o = options_of(LOSS_DEFAULT, chat);
    o.task = task;
    o.problem_type = problem;
    o.pad_token_id = -1;
    return o;
}
static void expect_labels(const char *what, const char *name, const char *file, const Tokenizer *t, DataOptions o,
                          const char *want) {
    Dataset d;
    Error err;
    bool ok = dataset_open(&d, write_text(name, file), t, &o, &err);
    const char *got = ok ? described(&d) : err.text;
    bool same = ok && !strcmp(got, want);
    check(same, "labels: %s%s%s%s%s", what, same ? "" : ": got ", same ? "" : got, same ? "" : " want ",
          same ? "" : want);
    if (ok) dataset_free(&d);
}

#define AN(label) "{\"text\":\"n\",\"label\":" label "}\n"
#define BN(label) "{\"text\":\"bb\",\"label\":" label "}\n"
static void test_labels(void) {
    DataOptions o = options_of_task(TASK_CLASSIFICATION, PROBLEM_AUTO, CHAT_CHATML), given = o, cut = o;
    static char no[] = "no", yes[] = "yes", one[] = "1", two[] = "2", *names[] = {no, yes}, *numbers[] = {one, two};
    /* What the labels are. */
    static const struct { const char *what, *name, *file; Problem problem; const char *want; } cases[] = {
        {"texts, sorted", "l.jsonl", AN("\"yes\"") BN("\"no\"") AN("\"yes\""), PROBLEM_AUTO,
         "s no,yes: >n=1 | b>b=0 | >n=1"},
        {"by bytes, as Python sorts", "l.jsonl", AN("\"b\"") AN("\"B\"") AN("\"\xC3\xA4\"") AN("\"a\""), PROBLEM_AUTO,
         "s B,a,b,\xC3\xA4: >n=2 | >n=0 | >n=3 | >n=1"},
        {"whole numbers are themselves", "l.jsonl", AN("1") BN("0") AN("2"), PROBLEM_AUTO,
         "s 0,1,2: >n=1 | b>b=0 | >n=2"},
        {"others by value, not by their digits", "l.jsonl", AN("10") BN("9") AN("-1") AN("9.0"), PROBLEM_AUTO,
         "s -1,9,10: >n=2 | b>b=1 | >n=0 | >n=1"},
        {"1.0 and 1e0 are the class 1", "l.jsonl", AN("1.0") BN("2.0") AN("1e0") AN("1"), PROBLEM_AUTO,
         "s 1,2: >n=0 | b>b=1 | >n=0 | >n=0"},
        {"0 and -0 are one", "l.jsonl", AN("-0") BN("1") AN("0") AN("-0.0"), PROBLEM_AUTO,
         "s 0,1: >n=0 | b>b=1 | >n=0 | >n=0"},
        {"CSV: hexadecimal is a text", "l.csv", "text,label\na,0x2\nb,0x1\n", PROBLEM_AUTO, "s 0x1,0x2: >a=1 | >b=0"},
        {"false and true", "l.jsonl", AN("true") BN("false"), PROBLEM_AUTO, "s false,true: >n=1 | b>b=0"},
        {"a fraction makes numbers of all", "l.jsonl", AN("1") BN("0.5") AN("-2"), PROBLEM_AUTO,
         "r : >n=1 | b>b=0.5 | >n=-2"},
        {"or the option does", "l.jsonl", AN("1") BN("3"), PROBLEM_REGRESSION, "r : >n=1 | b>b=3"},
        {"lists of names", "l.jsonl", AN("[\"x\",\"a\"]") BN("[]") AN("[\"x\"]"), PROBLEM_AUTO,
         "m a,x: >n=1,1 | b>b=0,0 | >n=0,1"},
        {"lists of 0 and 1", "l.jsonl", AN("[0,1,1]") BN("[1.0,0.0,0.0]") AN("[false,true,false]"), PROBLEM_AUTO,
         "m 0,1,2: >n=0,1,1 | b>b=1,0,0 | >n=0,1,0"},
        {"called labels", "l.jsonl", "{\"text\":\"n\",\"labels\":\"p\"}\n{\"text\":\"n\",\"labels\":\"q\"}\n",
         PROBLEM_AUTO, "s p,q: >n=0 | >n=1"},
        {"a label is not a language model's labels", "l.jsonl",
         "{\"input_ids\":[7,8],\"labels\":3}\n{\"input_ids\":[65,66,0],\"attention_mask\":[1,1,0],\"label\":4}\n",
         PROBLEM_AUTO, "s 3,4: \a>\b=0 | A>B=1"},
        {"CSV: numbers", "l.csv", "text,label\na,1\nb,0\n", PROBLEM_AUTO, "s 0,1: >a=1 | >b=0"},
        {"CSV: a fraction", "l.csv", "text,label\na,1\nb,0.25\n", PROBLEM_AUTO, "r : >a=1 | >b=0.25"},
        {"CSV: a text among numbers makes texts of all", "l.csv", "text,label\na,10\nb,9\nc,n/a\n", PROBLEM_AUTO,
         "s 10,9,n/a: >a=0 | >b=1 | >c=2"},
        {"CSV: nan is a text there", "l.csv", "text,label\na,nan\nb,up\n", PROBLEM_AUTO, "s nan,up: >a=0 | >b=1"},
        {"CSV: lists as JSON", "l.csv", "Text , Label\na,\"[\"\"u\"\"]\"\nb,\"[\"\"v\"\",\"\"u\"\"]\"\n", PROBLEM_AUTO,
         "m u,v: >a=1,0 | >b=1,1"},
        {"a prompt; a completion beside it is not read", "l.jsonl",
         "{\"prompt\":\"q\",\"completion\":\"no\",\"label\":\"no\"}\n"
         "{\"prompt\":\"r\",\"label\":\"yes\"}\n", PROBLEM_AUTO,
         "s no,yes: >q=0 | >r=1"},
        {"a prompt of messages ends where the answer begins", "l.jsonl",
         "{\"prompt\":[" SAYS("user", "a") "],\"completion\":[" SAYS("assistant", "no") "],\"label\":0}\n"
         "{\"messages\":[" SAYS("user", "a") "," SAYS("assistant", "b") "],\"label\":1}\n", PROBLEM_AUTO,
         "s 0,1: <|im_start|>user\na<|im_end|>\n<|im_start|>assistant>\n=0 | "
         "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>>\n=1"},
        {"an instruction without its output; ShareGPT", "l.jsonl",
         "{\"instruction\":\"a\",\"input\":\"b\",\"output\":\"z\",\"label\":0}\n"
         "{\"conversations\":[{\"from\":\"human\",\"value\":\"c\"}],\"label\":1}\n", PROBLEM_AUTO,
         "s 0,1: <|im_start|>user\na\nb<|im_end|>>\n=0 | <|im_start|>user\nc<|im_end|>>\n=1"},
        {"a row without a token is left out", "l.jsonl", AN("\"a\"") "{\"text\":\"\",\"label\":\"c\"}\n" BN("\"b\""),
         PROBLEM_AUTO, "s a,b: >n=0 | b>b=1"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        o.problem_type = cases[i].problem;
        expect_labels(cases[i].what, cases[i].name, cases[i].file, plain, o, cases[i].want);
    }
    o.problem_type = PROBLEM_AUTO;

    /* Pooling: the rightmost token that is not the pad token, which is the end of text where the tokenizer has none. */
    expect_labels("an end that is the pad token is passed over", "l.jsonl",
                  "{\"text\":\"ab<|im_end|><|im_end|>\",\"label\":0}\n"
                  "{\"text\":\"<|im_end|>a<|im_end|>\",\"label\":1}\n"
                  "{\"text\":\"<|im_end|>\",\"label\":1}\n", plain, o,
                  "s 0,1: a>b<|im_end|><|im_end|>=0 | <|im_end|>>a<|im_end|>=1 | ><|im_end|>=1");
    given.pad_token_id = 'b';
    expect_labels("another pad token is the options'", "l.jsonl",
                  "{\"text\":\"abb\",\"label\":0}\n{\"text\":\"a<|im_end|>\",\"label\":1}\n", plain, given,
                  "s 0,1: >abb=0 | a><|im_end|>=1");
    static const int32_t pooled[] = {5, 6, 7}, pads[] = {5, 5, 5};
    check(batch_pooled(pads, 3, 5) == 0, "labels: the first is pooled where all are pads");
    check(batch_pooled(pooled, 3, -1) == 2 && batch_pooled(pooled, 3, 7) == 1 && batch_pooled(pooled, 1, 5) == 0,
          "labels: without a pad token the last is pooled");

    /* Classes that are given. */
    given = o;
    given.label_names = names;
    given.label_count = 2;
    expect_labels("given names, one of them in no row", "l.jsonl", AN("\"yes\"") BN("\"yes\""), plain, given,
                  "s no,yes: >n=1 | b>b=1");
    expect_labels("a number is the class's own where names are words", "l.jsonl", AN("1") BN("0.0"), plain, given,
                  "s no,yes: >n=1 | b>b=0");
    expect_labels("so is a truth value", "l.jsonl", AN("true") BN("false"), plain, given, "s no,yes: >n=1 | b>b=0");
    expect_labels("and lists", "l.jsonl", AN("[\"yes\"]") BN("[]"), plain, given, "m no,yes: >n=0,1 | b>b=0,0");
    given.label_names = numbers;
    expect_labels("a number is the class of that name where names are numbers", "l.jsonl", AN("1") BN("2.0"), plain,
                  given, "s 1,2: >n=0 | b>b=1");

    /* BOS, and cuts: at the end, as tokenizer(text, truncation=True); with --truncate-prompt at the beginning. */
    expect_labels("plain text gets a BOS, and no end", "l.jsonl", AN("0") BN("1"), with_bos, o,
                  "s 0,1: <s>>n=0 | <s>b>b=1");
    cut.max_length = 3;
    static const char longer[] = "{\"text\":\"abcd\",\"label\":0}\n{\"text\":\"ef\",\"label\":1}\n";
    expect_labels("cut at the end", "l.jsonl", longer, with_bos, cut, "s 0,1: <s>a>b=0 | <s>e>f=1");
    cut.truncate_prompt = true;
    expect_labels("cut at the beginning, but for the BOS", "l.jsonl", longer, with_bos, cut,
                  "s 0,1: <s>c>d=0 | <s>e>f=1");
    expect_labels("cut at the beginning", "l.jsonl", longer, plain, cut, "s 0,1: bc>d=0 | e>f=1");

    /* What is counted: statistics, classes, columns that nothing reads. */
    Dataset d;
    Error err;
    cut.truncate_prompt = false;
    static const char counted[] = "{\"text\":\"abcd\",\"label\":\"no\",\"id\":1,\"completion\":\"x\"}\n"
                                  "{\"text\":\"\",\"label\":\"no\"}\n"
                                  "{\"text\":\"ef\",\"label\":\"yes\"}\n" BN("\"no\"");
    bool ok = dataset_open(&d, write_text("l.jsonl", counted), plain, &cut, &err);
    char *columns = ok ? data_columns_text(&d.stats.unread) : NULL;
    check(ok && d.count == 3 && d.stats.rows == 4 && d.stats.dropped == 1 && d.stats.truncated == 1 &&
          d.stats.tokens == 7 && d.stats.labelled == 3 && d.stats.longest == 3 && d.row[1] == 3 &&
          d.label_rows[0] == 2 && d.label_rows[1] == 1 && slot_labelled(&d, 2) == 1 && columns &&
          !strcmp(columns, "completion (1 row), id (1 row)"), "labels: what is counted: %s", ok ? columns : err.text);
    free(columns);
    if (ok) dataset_free(&d);
}

static void test_label_errors(void) {
    DataOptions o = options_of_task(TASK_CLASSIFICATION, PROBLEM_AUTO, CHAT_CHATML), given = o;
    static char no[] = "no", yes[] = "yes", *names[] = {no, yes};
    static const struct { const char *what, *name, *file; Problem problem; const char *a, *b, *c; } cases[] = {
        {"no label anywhere", "a.csv", "text,sentiment\nx,1\ny,0\n", PROBLEM_AUTO, "no row has a label; ",
         "a.csv row 1 (line 2); the column must be called label or labels, and there are sentiment (2 rows)", NULL},
        {"some without one", "a.jsonl", AN("1") "{\"text\":\"x\"}\n" AN("null") AN("0"), PROBLEM_AUTO,
         "2 of 4 rows have no label", "the first is", "a.jsonl row 2 (line 2)"},
        {"an empty cell", "a.csv", "text,label\nx,1\ny,\n", PROBLEM_AUTO, "1 of 2 rows have no label", "row 2 (line 3)",
         NULL},
        {"NaN", "a.jsonl", AN("NaN") AN("1") AN("2"), PROBLEM_AUTO, "1 of 3 rows have no label", "NaN too", "row 1"},
        {"a CSV file's inf among numbers", "a.csv", "text,label\nx,1\ny,inf\n", PROBLEM_AUTO, "not a finite number",
         "row 2 (line 3)", NULL},
        {"and nan", "a.csv", "text,label\nx,0.5\ny,nan\n", PROBLEM_AUTO, "not a finite number", "row 2", NULL},
        {"a number beyond float", "a.jsonl", AN("0.5") AN("1e39"), PROBLEM_AUTO, "not a finite number", "row 2", NULL},
        {"one class", "a.jsonl", AN("\"no\"") BN("\"no\""), PROBLEM_AUTO, "one class only: all 2 examples", "\"no\"",
         "a.jsonl"},
        {"a list among texts", "a.jsonl", AN("\"a\"") AN("\"b\"") AN("[\"a\"]"), PROBLEM_AUTO,
         "a text in some rows and a list of texts in others", "row 1 (line 1)", "row 3 (line 3)"},
        {"a number among texts", "a.jsonl", AN("\"a\"") AN("1"), PROBLEM_AUTO,
         "a text in some rows and a number in others", "row 1", "row 2"},
        {"a truth value among numbers", "a.jsonl", AN("1") AN("true"), PROBLEM_AUTO, "a truth value in some rows",
         "row 2", "row 1"},
        {"an object", "a.jsonl", AN("{\"a\":1}"), PROBLEM_AUTO, "\"label\" is an object", "row 1", NULL},
        {"a NUL", "a.jsonl", AN("\"a\\u0000b\""), PROBLEM_AUTO, "holds a NUL", "row 1", NULL},
        {"class numbers in a list", "a.jsonl", AN("[0,2]"), PROBLEM_AUTO, "label[1] is 2", "row 1",
         "0 or 1 for every class"},
        {"a list of both", "a.jsonl", AN("[\"a\",1]"), PROBLEM_AUTO, "label[1] is 1", "row 1", NULL},
        {"a name of nothing", "a.jsonl", AN("[\"a\",\"\"]"), PROBLEM_AUTO, "label[1] is no name", "row 1", NULL},
        {"0 and 1 of another length", "a.jsonl", AN("[0,1]") AN("[0,1,0]"), PROBLEM_AUTO,
         "not the 2 numbers", "row 2", NULL},
        {"lists that are all empty", "a.jsonl", AN("[]") AN("[]"), PROBLEM_AUTO, "no class in any row", "a.jsonl",
         NULL},
        {"Python's list in a CSV file", "a.csv", "text,label\nx,\"['a']\"\n", PROBLEM_AUTO, "is no JSON", "row 1",
         "json.dumps"},
        {"texts as regression", "a.jsonl", AN("\"a\"") AN("\"b\""), PROBLEM_REGRESSION,
         "the labels are no regression: the label is a text", "row 1", NULL},
        {"fractions as classes", "a.jsonl", AN("1") AN("0.5"), PROBLEM_SINGLE_LABEL, "the label is a fraction", "row 2",
         "--problem-type regression"},
        {"a text as multi-label", "a.jsonl", AN("\"a\""), PROBLEM_MULTI_LABEL, "no multi_label_classification", "row 1",
         NULL},
        {"a list as single label", "a.jsonl", AN("[\"a\"]"), PROBLEM_SINGLE_LABEL, "no single_label_classification",
         "a list of texts", "row 1"},
        {"no shape", "a.jsonl", "{\"sentence\":\"x\",\"label\":1}\n", PROBLEM_AUTO, "none of the known row shapes",
         "sentence, label", "text | prompt | messages"},
        {"the answer in the chat", "a.jsonl", "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":"
         "\"assistant\",\"content\":\"no\"}],\"label\":\"no\"}\n", PROBLEM_AUTO, "an assistant who says the label",
         "row 1", "prompt + completion + label"},
        {"no token in any row", "a.jsonl", "{\"text\":\"\",\"label\":1}\n", PROBLEM_AUTO, "no token in any of 1 rows",
         "a.jsonl", NULL}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        o.problem_type = cases[i].problem;
        expect_error(cases[i].what, cases[i].name, cases[i].file, plain, o, cases[i].a, cases[i].b, cases[i].c);
    }
    o.problem_type = PROBLEM_AUTO;
    given.label_names = names;
    given.label_count = 2;
    expect_error("a class that is not given", "a.jsonl", AN("\"no\"") AN("\"maybe\"") AN("\"Yes\"") AN("\"maybe\""),
                 plain, given, "labels that are none of no, yes: 3, the first is \"maybe\"", "row 2 (line 2)", NULL);
    expect_error("a number beyond the given", "a.jsonl", AN("1") AN("2"), plain, given,
                 "none of no, yes: 1, the first is \"2\"", "row 2", NULL);
    static char one[] = "1", two[] = "2", *numbers[] = {one, two};
    given.label_names = numbers;
    expect_error("a number that is the place of a class named otherwise", "a.jsonl", AN("1") AN("0"), plain, given,
                 "none of 1, 2: 1, the first is \"0\"", "row 2", NULL);
    given.label_names = names;
    expect_error("a fraction of them", "a.jsonl", AN("0.5"), plain, given, "the label is a fraction", "row 1", NULL);
    expect_error("flags of other classes", "a.jsonl", AN("[0,1,0]"), plain, given,
                 "3 numbers in the label of 2 classes", "row 1", NULL);
    char many[8192] = "";
    for (int i = 0; i < 60; i++) sprintf(many + strlen(many), AN("%d"), i);
    expect_error("60 numbers in 60 rows", "a.jsonl", many, plain, o,
                 "60 different labels in 60 rows are hardly classes", "--problem-type single_label_classification",
                 "regression as numbers");
    o.problem_type = PROBLEM_SINGLE_LABEL;
    Dataset d;
    Error err;
    bool ok = dataset_open(&d, write_text("a.jsonl", many), plain, &o, &err);
    check(ok && d.label_count == 60 && d.target[59] == 59, "labels: 60 classes, where they are said to be");
    if (ok) dataset_free(&d);
    o.problem_type = PROBLEM_AUTO;
    o.few_shot = 1;
    o.shots = "a.jsonl";
    expect_error("solved examples", "a.jsonl", AN("1") AN("0"), plain, o, "--few-shot with --task classification", NULL,
                 NULL);
}

/* TRL's RewardTrainer: prompt and answer as one text with its end, or as one chat; long pairs are left out. */
static void test_pairs(void) {
    DataOptions o = options_of_task(TASK_REWARD, PROBLEM_AUTO, CHAT_CHATML), dressed = o, cut = o;
    expect_labels("pairs: a prompt and two answers, each with its end", "p.jsonl",
                  "{\"prompt\":\"q \",\"chosen\":\"good\",\"rejected\":\"b<|im_end|>\"}\n", plain, o,
                  "p : q goo>d<|im_end|>=0 q >b<|im_end|>=0");
    expect_labels("pairs: the prompt is in the answers", "p.csv", "chosen,rejected\nqa,qb\nc,d\n", with_bos, o,
                  "p : <s>q>a<|im_end|>=0 <s>q>b<|im_end|>=0 | <s>>c<|im_end|>=0 <s>>d<|im_end|>=0");
    dressed.prompt_template = "U {prompt} A ";
    expect_labels("pairs: a template dresses the prompt", "p.jsonl",
                  "{\"prompt\":\"q\",\"chosen\":\"x\",\"rejected\":\"y\"}\n", plain, dressed,
                  "p : U q A >x<|im_end|>=0 U q A >y<|im_end|>=0");
    expect_labels("pairs: chats", "p.jsonl",
                  "{\"prompt\":[" SAYS("user", "q") "],\"chosen\":[" SAYS("assistant", "x") "],\"rejected\":["
                  SAYS("assistant", "y") "]}\n{\"chosen\":[" SAYS("user", "q") "," SAYS("assistant", "x")
                  "],\"rejected\":[" SAYS("user", "q") "," SAYS("assistant", "y") "]}\n", plain, o,
                  "p : <|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nx<|im_end|>>\n=0 "
                  "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\ny<|im_end|>>\n=0 | "
                  "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nx<|im_end|>>\n=0 "
                  "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\ny<|im_end|>>\n=0");
    Dataset chats;
    Error why;
    bool read = dataset_open(&chats, write_text("p.jsonl", "{\"chosen\":[" SAYS("user", "q") "],\"rejected\":["
                                                SAYS("user", "r") "]}\n"), plain, &o, &why);
    check(read && chats.stats.uses.chats == 1, "pairs: a row of two chats counts once");
    if (read) dataset_free(&chats);
    expect_labels("pairs: margins", "p.jsonl", "{\"chosen\":\"a\",\"rejected\":\"b\",\"margin\":0.5}\n"
                  "{\"chosen\":\"c\",\"rejected\":\"d\",\"margin\":2}\n", plain, o,
                  "p : >a<|im_end|>=0.5 >b<|im_end|>=0.5 | >c<|im_end|>=2 >d<|im_end|>=2");
    cut.max_length = 4;
    static const char rows[] = "{\"chosen\":\"abc\",\"rejected\":\"d\"}\n{\"chosen\":\"a\",\"rejected\":\"bcde\"}\n"
                               "{\"chosen\":\"abcd\",\"rejected\":\"e\"}\n{\"chosen\":\"f\",\"rejected\":\"f\"}\n"
                               "{\"chosen\":\"g\",\"rejected\":\"hi\"}\n";
    expect_labels("pairs: those with a side that is too long are left out", "p.jsonl", rows, plain, cut,
                  "p : ab>c<|im_end|>=0 >d<|im_end|>=0 | >f<|im_end|>=0 >f<|im_end|>=0 | "
                  ">g<|im_end|>=0 h>i<|im_end|>=0");
    Dataset d, held;
    Batch b;
    Error err;
    bool ok = dataset_open(&d, write_text("p.jsonl", rows), plain, &cut, &err);
    check(ok && d.slots == 3 && d.count == 6 && d.stats.dropped == 2 && d.stats.truncated == 0 && d.stats.rows == 5 &&
          d.stats.same_pairs == 1 && d.stats.examples == 6 && d.row[1] == 1 && d.row[2] == 4 &&
          slot_labelled(&d, 0) == 2, "pairs: what is counted%s%s", ok ? "" : ": ", ok ? "" : err.text);
    if (!ok) return;
    int tokens, sequences;
    int64_t order[] = {2, 0};
    dataset_largest_batch(&d, 2, &tokens, &sequences);
    check(tokens == 11 && sequences == 4, "pairs: the largest batch of 2: %d tokens, %d sequences", tokens, sequences);
    ok = batch_alloc(&b, tokens, sequences, &err) && batch_alloc_targets(&b, d.target_width, &err);
    batch_build(&b, &d, order, 0, 2);
    static const int32_t rows_of[] = {0, 3, 7, 9}, cu[] = {0, 2, 5, 9, 11};
    check(ok && b.S == 4 && b.M == 4 && b.N == 11 && !memcmp(b.labelled, rows_of, sizeof rows_of) &&
          !memcmp(b.cu_seqlens, cu, sizeof cu), "pairs: a batch has the pooled row of every answer, chosen first");
    batch_free(&b);
    check(!dataset_pack(&d, 100, &err) && strstr(err.text, "--packing with --task reward"), "pairs: %s", err.text);
    ok = dataset_split(&d, &held, 0.3, 1, &err);
    check(ok && d.slots == 2 && held.slots == 1 && d.stats.examples == 4 && held.stats.examples == 2 &&
          d.slot[0] / 2 == d.slot[1] / 2 && d.slot[1] == d.slot[0] + 1 && held.slot[1] == held.slot[0] + 1 &&
          held.stats.labelled == 2 && d.slot_offset[2] == 4, "pairs: a split takes both answers");
    if (ok) dataset_free(&held);
    dataset_free(&d);
    expect_error("pairs: of different kinds", "p.jsonl", "{\"prompt\":\"q\",\"chosen\":[" SAYS("assistant", "x")
                 "],\"rejected\":[" SAYS("assistant", "y") "]}\n", plain, o,
                 "\"prompt\" is a string, \"chosen\" is a list", "row 1", "leave out a prompt");
    expect_error("pairs: one answer", "p.jsonl", "{\"prompt\":\"q\",\"chosen\":\"x\"}\n", plain, o,
                 "none of the known row shapes", "row 1", "chosen + rejected");
    expect_error("pairs: a margin here and there", "p.jsonl", "{\"chosen\":\"a\",\"rejected\":\"b\",\"margin\":1}\n"
                 "{\"chosen\":\"a\",\"rejected\":\"b\"}\n", plain, o, "some pairs have a margin",
                 "row 2 (line 2)", NULL);
    expect_error("pairs: a margin in words", "p.jsonl", "{\"chosen\":\"a\",\"rejected\":\"b\",\"margin\":\"1\"}\n",
                 plain, o, "\"margin\" is no number", "row 1", NULL);
    cut.max_length = 2;
    expect_error("pairs: all too long", "p.jsonl", "{\"chosen\":\"abc\",\"rejected\":\"b\"}\n", plain, cut,
                 "every one of 1 pairs is longer than 2 tokens", "p.jsonl", "--max-length");
}

/* A file of tokens brings all of it back; a split and a packed data set keep targets beside their examples. */
static void test_label_sets(void) {
    static const struct { const char *what, *file; Task task; } cases[] = {
        {"classes", AN("\"yes\"") BN("\"no\"") AN("\"no\"") BN("\"yes\""), TASK_CLASSIFICATION},
        {"lists", AN("[\"a\",\"b\"]") BN("[]") AN("[\"b\"]"), TASK_CLASSIFICATION},
        {"numbers", AN("0.5") BN("-1") AN("7"), TASK_CLASSIFICATION},
        {"pairs", "{\"chosen\":\"a\",\"rejected\":\"bc\",\"margin\":1.5}\n", TASK_REWARD}};
    char cache[96], made[4096];
    snprintf(cache, sizeof cache, "%s/label_tokens", folder);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        DataOptions o = options_of_task(cases[i].task, PROBLEM_AUTO, CHAT_CHATML);
        const char *path = write_text("cached.jsonl", cases[i].file);
        uint64_t hash[3] = {0, 1, 2};
        bool ok = true;
        Error err;
        for (int k = 0; k < 3 && ok; k++) { /* in memory; the file is written; it is read */
            Dataset d;
            o.token_cache = k ? cache : NULL;
            ok = dataset_open(&d, path, plain, &o, &err);
            if (!ok) break;
            ok = k ? !strcmp(made, described(&d)) && d.map && !d.rebuilt : !d.map;
            strcpy(made, described(&d));
            hash[k] = d.hash;
            dataset_free(&d);
        }
        check(ok && hash[0] == hash[1] && hash[1] == hash[2], "labels: a token file of %s: %s", cases[i].what, made);
    }
    /* The same rows with other labels are other data. */
    DataOptions o = options_of_task(TASK_CLASSIFICATION, PROBLEM_AUTO, CHAT_CHATML);
    Dataset a, b, held;
    Error err;
    bool ok = dataset_open(&a, write_text("a.jsonl", AN("0") BN("1")), plain, &o, &err) &&
              dataset_open(&b, write_text("b.jsonl", AN("1") BN("0")), plain, &o, &err);
    check(ok && a.hash != b.hash, "labels: they are in the hash");
    dataset_free(&a);
    dataset_free(&b);
    ok = dataset_open(&a, write_text("a.jsonl", AN("0") BN("1")), plain, &o, &err) &&
         dataset_open(&b, write_text("b.jsonl", AN("\"0\"") BN("\"x\"")), plain, &o, &err);
    check(ok && a.hash != b.hash, "labels: so are the classes' names");
    dataset_free(&a);
    dataset_free(&b);

    char rows[2048] = "";
    for (int i = 0; i < 12; i++)
        sprintf(rows + strlen(rows), "{\"text\":\"%.*s\",\"label\":%d}\n", 1 + i % 4, "abcd", i % 3);
    for (int packed = 0; packed < 2; packed++) {
        ok = dataset_open(&a, write_text("a.jsonl", rows), plain, &o, &err) &&
             dataset_split(&a, &held, 0.25, 3, &err) && (!packed || dataset_pack(&a, 6, &err));
        int64_t seen[3] = {0};
        bool right = ok && held.slots == 3 && (!packed || a.slots < 9);
        Batch batch;
        for (int side = 0; side < 2 && ok; side++) {
            const Dataset *d = side ? &held : &a;
            right = right && batch_alloc(&batch, 100, 12, &err) && batch_alloc_targets(&batch, 1, &err);
            batch_build(&batch, d, NULL, 0, (int)d->slots);
            right = right && batch.M == batch.S && d->label_rows[0] + d->label_rows[1] + d->label_rows[2] == batch.S;
            int64_t here[3] = {0};
            for (int k = 0; k < batch.S; k++) {
                int64_t row = batch.row[k] - 1;
                right = right && batch.target[k] == (float)(row % 3) && batch.targets[k] == row % 3 &&
                        batch.labelled[k] == batch.cu_seqlens[k + 1] - 1 &&
                        batch.ids[batch.labelled[k]] == "abcd"[row % 4];
                here[row % 3]++;
                seen[row % 3]++;
            }
            right = right && !memcmp(here, d->label_rows, sizeof here);
            batch_free(&batch);
        }
        check(right && seen[0] == 4 && seen[1] == 4 && seen[2] == 4, "labels: a split%s, and batches of it%s%s",
              packed ? ", packed" : "", ok ? "" : ": ", ok ? "" : err.text);
        if (ok) dataset_free(&held);
        dataset_free(&a);
    }
}

/* A token file of labels whose sums are right and whose numbers are not. */
typedef struct MadeLabels {
    TokenHeader h; int32_t ids[3], labels[3]; size_t offset[3]; int64_t row[2]; float target[2]; char names[4];
} MadeLabels;
static void test_label_token_file(void) {
#define AT_MEMBER(member) offsetof(MadeLabels, member), sizeof ((MadeLabels *)0)->member
    enum { CLASSES, PAIRS, NUMBERS };
    static const float half = 0.5f, two = 2, minus = -1, many = INFINITY;
    static const uint64_t zero = 0, one = 1, three = 3, huge = (uint64_t)1 << 62;
    static const int32_t label = 1;
    static const int64_t row = 9;
    static const struct { const char *what; int kind; size_t at, bytes; const void *value; } damages[] = {
        {"classes as they were written", CLASSES, 0, 0, NULL}, {"pairs", PAIRS, 0, 0, NULL},
        {"numbers", NUMBERS, 0, 0, NULL},
        {"a label beside a target", CLASSES, AT_MEMBER(labels[1]), &label},
        {"a class and a half", CLASSES, AT_MEMBER(target[1]), &half},
        {"a class too high", CLASSES, AT_MEMBER(target[1]), &two},
        {"a class below 0", CLASSES, AT_MEMBER(target[0]), &minus},
        {"a number without end", NUMBERS, AT_MEMBER(target[0]), &many},
        {"margins that differ", PAIRS, AT_MEMBER(target[1]), &two},
        {"answers of two rows", PAIRS, AT_MEMBER(row[1]), &row},
        {"no such task", CLASSES, AT_MEMBER(h.task), &three}, {"no such problem", CLASSES, AT_MEMBER(h.problem), &huge},
        {"classes of a language model", CLASSES, AT_MEMBER(h.task), &zero},
        {"classes without a problem", CLASSES, AT_MEMBER(h.problem), &zero},
        {"more classes than names", CLASSES, AT_MEMBER(h.classes), &three},
        {"no class", CLASSES, AT_MEMBER(h.classes), &zero},
        {"numbers with a class", NUMBERS, AT_MEMBER(h.classes), &one},
        {"a name without end", CLASSES, offsetof(MadeLabels, names) + 3, 1, "x"}};
#undef AT_MEMBER
    for (size_t i = 0; i < sizeof damages / sizeof *damages; i++) {
        MadeLabels f;
        Dataset d;
        Error err = {""};
        memset(&f, 0, sizeof f);
        memcpy(f.h.magic, "LORATOK3", 8);
        bool classes = damages[i].kind == CLASSES;
        f.h.key = 7; f.h.count = 2; f.h.tokens = 3; f.h.largest_id = 5; f.h.width = 1;
        f.h.task = damages[i].kind == PAIRS ? TASK_REWARD : TASK_CLASSIFICATION;
        f.h.problem = (uint64_t)(classes ? PROBLEM_SINGLE_LABEL : damages[i].kind == PAIRS ? PROBLEM_AUTO
                                                                                          : PROBLEM_REGRESSION);
        f.h.classes = classes ? 2 : 0;
        f.h.names = classes ? 4 : 0;
        f.h.stats.examples = f.h.stats.labelled = f.h.stats.longest = 2; f.h.stats.tokens = 3;
        f.ids[2] = 5; f.offset[1] = 1; f.offset[2] = 3; f.row[0] = 1; f.row[1] = damages[i].kind == PAIRS ? 1 : 2;
        f.target[0] = f.target[1] = 1;
        for (int k = 0; k < 3; k++) f.labels[k] = DATA_IGNORE;
        memcpy(f.names, "a\0b", 4);
        if (damages[i].bytes) memcpy((char *)&f + damages[i].at, damages[i].value, damages[i].bytes);
        f.h.hash = HASH_START;
        for (size_t k = 0; k < 2; k++) {
            size_t from = f.offset[k], bytes = (f.offset[k + 1] - from) * 4;
            f.h.hash = hash_bytes(hash_bytes(f.h.hash, f.ids + from, bytes), f.labels + from, bytes);
        }
        f.h.hash = hash_bytes(hash_bytes(f.h.hash, f.target, sizeof f.target), f.names, f.h.names);
        f.h.checksum = tokens_checksum(&f.h, f.offset, f.row);
        size_t bytes = offsetof(MadeLabels, names) + (classes ? 4 : 0);
        int fd = open(write_bytes("made.tokens", (const char *)&f, bytes), O_RDONLY);
        bool ok = fd >= 0 && dataset_map(&d, fd, 7, false, "made.tokens", &err);
        check(ok == !damages[i].bytes && (ok || strstr(err.text, "a damaged token file; made.tokens; delete it")),
              "token file of labels: %s: %s", damages[i].what, ok ? "taken" : err.text);
        if (ok) dataset_free(&d);
        close(fd);
    }
}

/* Tokens and pooled rows as transformers and TRL have them, on the embedded tokenizer and on real ones; classes as
   datasets' class_encode_column numbers them: dev/make_label_golden.py. */
static void test_label_golden(void) {
    Error err;
    size_t bytes;
    char *text = read_file("test/golden/labelled.jsonl", &bytes, &err), opened[128] = "";
    static char zero[] = "0", one[] = "1", *names[] = {zero, one};
    Tokenizer *t = NULL;
    int rows[2] = {0, 0}, dropped = 0, encoded = 0, wrong = 0, skipped = 0;
    if (!check(text != NULL, "labelled.jsonl is there")) return;
    for (char *line = text, *stop; (stop = strchr(line, '\n')); line = stop + 1) {
        JsonDoc doc;
        Dataset d;
        if (!json_parse(&doc, line, (size_t)(stop - line), "labelled.jsonl", 1, &err)) {
            check(false, "%s", err.text);
            break;
        }
        const Json *labels = json_get(doc.root, "labels"), *folder_of = json_get(doc.root, "tokenizer");
        if (labels) {
            Text file = TEXT_EMPTY;
            for (const Json *v = labels->child; v; v = v->next)
                text_print(&file, "{\"text\":\"x\",\"label\":\"%s\"}\n", v->str);
            DataOptions o = options_of_task(TASK_CLASSIFICATION, PROBLEM_AUTO, CHAT_NONE);
            bool same = dataset_open(&d, write_text("row.jsonl", file.at), plain, &o, &err);
            size_t i = 0;
            for (const Json *v = json_get(doc.root, "classes")->child; same && v; v = v->next)
                same = d.target[i++] == (float)v->number;
            i = 0;
            for (const Json *v = json_get(doc.root, "names")->child; same && v; v = v->next)
                same = !strcmp(d.label_names[i++], v->str);
            encoded += same && i == (size_t)d.label_count;
            dataset_free(&d);
            text_free(&file);
        } else if (strcmp(opened, folder_of->str)) {
            if (t) tokenizer_free(t);
            snprintf(opened, sizeof opened, "%s", folder_of->str);
            t = access(opened, R_OK) ? NULL : tokenizer_open(opened, &err);
        }
        if (labels || !t) { skipped += !labels; json_free(&doc); continue; }
        const Json *row = json_get(doc.root, "row"), *sequence = json_get(doc.root, "ids")->child;
        const Json *pooled = json_get(doc.root, "pooled")->child;
        bool pair = json_get(row, "chosen") != NULL;
        DataOptions o = options_of_task(pair ? TASK_REWARD : TASK_CLASSIFICATION, PROBLEM_AUTO, CHAT_NONE);
        o.max_length = (int)json_get(doc.root, "max_length")->number;
        if (!pair) { o.label_names = names; o.label_count = 2; }
        char *end = strstr(line, ",\"tokenizer\"");
        bool ok = dataset_open(&d, write_bytes("row.jsonl", line + 7, (size_t)(end - line - 7)), t, &o, &err);
        bool same = sequence ? ok && d.count == (pair ? 2u : 1u) : !ok && strstr(err.text, "every one of 1 pairs");
        for (size_t e = 0; same && sequence; e++, sequence = sequence->next, pooled = pooled->next) {
            size_t n = d.offset[e + 1] - d.offset[e], i = 0;
            same = n == sequence->count &&
                   batch_pooled(d.ids + d.offset[e], n, d.pad_token_id) == (size_t)pooled->number;
            for (const Json *id = sequence->child; same && id; id = id->next)
                same = d.ids[d.offset[e] + i++] == (int32_t)id->number;
        }
        if (!same && wrong++ < 5) check(false, "Hugging Face has other tokens: %.*s%s", (int)(stop - line), line,
                                        ok ? "" : err.text);
        rows[pair] += same;
        dropped += same && pair && !ok;
        if (ok) dataset_free(&d);
        json_free(&doc);
    }
    check(!wrong && rows[0] >= 20 && rows[1] >= 10 && dropped >= 3 && encoded == 2,
          "labels: %d rows, %d pairs (%d too long) as transformers and TRL tokenise and pool them", rows[0], rows[1],
          dropped);
    if (skipped) printf("skipped: %d rows, ../shared not present\n", skipped);
    if (t) tokenizer_free(t);
    free(text);
}

/* --class-weights, and what training asks of the classes. */
static void test_class_weights(void) {
    DataOptions o = options_of_task(TASK_CLASSIFICATION, PROBLEM_AUTO, CHAT_CHATML);
    Dataset d, eval, numbers;
    Error err;
    float w[3];
    bool ok = dataset_open(&d, write_text("w.jsonl", AN("\"a\"") AN("\"b,c=d\"") AN("\"a\"") AN("\"b\"")
                                                 AN("\"a\"")), plain, &o, &err);
    if (!check(ok, "class weights: %s", ok ? "three classes" : err.text)) return;
    static const struct { const char *text; float want[3]; } good[] = {
        {"balanced", {5 / 9.f, 5 / 3.f, 5 / 3.f}}, {"1,2,0.5", {1, 2, .5f}}, {" 1 , 2e0 ,0", {1, 2, 0}},
        {"b=3", {1, 3, 1}}, {"b,c=d=4,a=0.25", {.25f, 1, 4}}, {"b=2,b,c=d=3", {1, 2, 3}}};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        ok = class_weights_parse(w, &d, good[i].text, &err);
        check(ok && !memcmp(w, good[i].want, sizeof w), "class weights: %s: %g, %g, %g%s%s", good[i].text, (double)w[0],
              (double)w[1], (double)w[2], ok ? "" : ": ", ok ? "" : err.text);
    }
    static const struct { const char *text, *what; } bad[] = {
        {"1,2", "2 weights for 3 classes; --class-weights; the classes are a, b, b,c=d"},
        {"1,2,3,4", "4 weights for 3 classes"}, {"", "bad weight ''"}, {"1,,2", "bad weight ''"},
        {"1,2,", "bad weight ''"}, {"1,nan,1", "bad weight 'nan'"}, {"1,-1,1", "bad weight '-1'"},
        {"1,inf,1", "bad weight 'inf'"}, {"1,1e39,1", "bad weight '1e39'"}, {"1,2x,1", "bad weight '2x'"},
        {"a=", "bad weight ''"}, {"a=x", "bad weight 'x'"},
        {"c=1", "no class \"c\"; --class-weights; the classes are a"},
        {"a=1,z=2", "no class \"z\""}, {"a=1,2", "no class \"2\""}, {"=1", "no class \"\""},
        {"a=1,a=2", "two weights for the class \"a\""}, {"0,0,0", "every weight is 0"}, {"Balanced", "bad weight"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        check(!class_weights_parse(w, &d, bad[i].text, &err) && strstr(err.text, bad[i].what),
              "class weights: '%s': %s", bad[i].text, err.text);

    static char shorter[] = "a", longer[] = "a=b", *nested[] = {shorter, longer};
    Dataset two;
    memset(&two, 0, sizeof two);
    two.label_names = nested;
    two.label_count = 2;
    check(class_weights_parse(w, &two, "a=b=3", &err) && w[0] == 1 && w[1] == 3,
          "class weights: the longest name that fits: %g, %g", (double)w[0], (double)w[1]);

    /* Evaluation has the classes of training; those that it lacks are named. */
    Text absent = TEXT_EMPTY;
    DataOptions other = o;
    other.label_names = d.label_names;
    other.label_count = d.label_count;
    ok = dataset_open(&eval, write_text("e.jsonl", AN("\"b\"") AN("\"b\"")), plain, &other, &err);
    ok = ok && dataset_classes_check(&d, &eval, "w.jsonl", &absent, &err);
    check(ok && absent.at && !strcmp(absent.at, "a, b,c=d"), "classes absent from evaluation: %s",
          absent.at ? absent.at : "none");
    text_free(&absent);
    check(!dataset_classes_check(&eval, NULL, "w.jsonl", NULL, &err) && strstr(err.text, "one class only: all 2"),
          "one class of several to train on: %s", err.text);
    check(!class_weights_parse(w, &eval, "balanced", &err) && strstr(err.text, "no example of the class \"a\""),
          "balanced without a class's rows: %s", err.text);
    dataset_free(&eval);
    ok = dataset_open(&numbers, write_text("e.jsonl", AN("0.5") AN("1")), plain, &o, &err);
    check(ok && !class_weights_parse(w, &numbers, "balanced", &err) && strstr(err.text, "a task without classes"),
          "class weights of a regression: %s", err.text);
    dataset_free(&numbers);
    dataset_free(&d);
}

static void test_randperm(void) {
    /* torch 2.15: torch.randperm(n, generator=torch.Generator().manual_seed(seed)) */
    static const struct { uint64_t seed; int n; int order[17]; } known[] = {
        {0, 10, {4, 1, 7, 5, 3, 9, 0, 8, 6, 2}}, {42, 10, {2, 6, 1, 8, 4, 5, 0, 9, 3, 7}},
        {43, 17, {13, 1, 7, 8, 5, 2, 10, 3, 12, 4, 9, 15, 16, 11, 0, 14, 6}},
        {4294967303u, 10, {5, 0, 3, 4, 1, 7, 9, 6, 8, 2}},
        {9223372036854775807u, 17, {2, 3, 13, 6, 4, 9, 7, 11, 14, 5, 0, 12, 8, 16, 1, 15, 10}},
        {42, 2, {0, 1}}, {42, 1, {0}}};
    int64_t order[2048];
    for (size_t k = 0; k < sizeof known / sizeof *known; k++) {
        bool same = true;
        torch_randperm(order, known[k].n, known[k].seed);
        for (int i = 0; i < known[k].n; i++) same = same && order[i] == known[k].order[i];
        check(same, "randperm(%d) with seed %llu", known[k].n, (unsigned long long)known[k].seed);
    }
    torch_randperm(order, 0, 1);
    Error err;
    JsonDoc doc;
    if (!check(json_read(&doc, "test/golden/randperm.json", &err), "test/golden/randperm.json is there")) return;
    for (const Json *c = doc.root->child; c; c = c->next) {
        int64_t n = (int64_t)json_get(c, "n")->number, i = 0;
        const Json *perm = json_get(c, "perm");
        bool same = n <= 2048 && perm->count > 0;
        if (same) torch_randperm(order, n, (uint64_t)strtoull(json_get(c, "seed")->str, NULL, 10));
        for (const Json *v = perm->child; v && same; v = v->next) same = order[i++] == (int64_t)v->number;
        check(same, "golden randperm(%lld), seed %s: %u numbers", (long long)n, json_get(c, "seed")->str, perm->count);
    }
    json_free(&doc);
}

/* ---- the base model's tokenizer, and real data ------------------------------------------------------------------- */

static bool example_is(const Dataset *d, size_t e, const Tokenizer *t, const char *prompt, const char *answer,
                       const char *rest) {
    const char *part[3] = {prompt, answer, rest};
    size_t at = d->offset[e];
    TokenIds tok;
    Error err;
    bool same = true;
    memset(&tok, 0, sizeof tok);
    for (int p = 0; p < 3; p++) {
        if (!*part[p]) continue;
        if (!tokenizer_encode(t, &tok, part[p], strlen(part[p]), 0, &err)) return false;
        for (size_t i = 0; i < tok.count; i++, at++)
            same = same && at < d->offset[e + 1] && d->ids[at] == tok.ids[i] &&
                   d->labels[at] == (p == 1 ? tok.ids[i] : -100);
    }
    token_ids_free(&tok);
    return same && at == d->offset[e + 1];
}

static void test_base(void) {
    Error err;
    Dataset d;
    Tokenizer *t = tokenizer_open("data/base", &err);
    if (!check(t != NULL, "data/base opens%s%s", t ? "" : ": ", t ? "" : err.text)) return;
    DataOptions o = options_of(LOSS_DEFAULT, CHAT_QWEN3);
    bool ok = dataset_open(&d,
                           write_text("base.jsonl", CHAT2 "{\"instruction\":\"Say hi.\",\"output\":\"hi there\"}\n"),
                           t, &o, &err);
    check(ok && d.count == 2 && example_is(&d, 1, t, "<|im_start|>user\nSay hi.<|im_end|>\n<|im_start|>assistant\n",
                                           "<think>\n\n</think>\n\nhi there<|im_end|>", "\n"),
          "data/base: instruction as a Qwen3 chat, the answer with its empty think block%s%s", ok ? "" : ": ",
          ok ? "" : err.text);
    check(ok && d.stats.stop_trained == 2, "data/base: the end of turn is a stop token and is learned");
    if (ok) dataset_free(&d);
    o = options_of(LOSS_DEFAULT, CHAT_NONE);
    ok = dataset_open(&d, write_text("base.jsonl", CHAT2), t, &o, &err);
    check(ok && d.count == 1, "data/base: the folder's own chat template is found%s%s", ok ? "" : ": ",
          ok ? "" : err.text);
    if (ok) dataset_free(&d);

    const char *path = "../shared/datasets/classical_chinese/train.json";
    if (access(path, R_OK) != 0) { printf("skipped: ../shared not present\n"); tokenizer_free(t); return; }
    o.prompt_template = "{prompt}\n";
    o.threads = 1;
    ok = dataset_open(&d, path, t, &o, &err);
    check(ok && d.stats.rows == 10000 && d.stats.rows == (int64_t)d.count + d.stats.dropped &&
          d.stats.stop_trained + d.stats.truncated >= (int64_t)d.count,
          "classical Chinese: %lld rows, %zu examples, %lld tokens, %lld in the loss%s%s",
          ok ? (long long)d.stats.rows : 0, ok ? d.count : 0, ok ? (long long)d.stats.tokens : 0,
              ok ? (long long)d.stats.labelled : 0, ok ? "" : ": ", ok ? "" : err.text);
    for (int threads = 2; ok && threads <= 4; threads += 2) {
        Dataset other;
        o.threads = threads;
        bool same = dataset_open(&other, path, t, &o, &err) && other.count == d.count &&
                    !memcmp(&other.stats, &d.stats, sizeof d.stats) &&
                    !memcmp(other.ids, d.ids, (size_t)d.stats.tokens * 4) &&
                    !memcmp(other.labels, d.labels, (size_t)d.stats.tokens * 4);
        check(same, "classical Chinese: the same bits with %d threads", threads);
        dataset_free(&other);
    }
    if (ok) dataset_free(&d);
    tokenizer_free(t);
}

static void remove_folder(void) {
    char command[160];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    if (system(command) != 0) printf("left behind: %s\n", folder);
}

int main(void) {
    snprintf(folder, sizeof folder, "/tmp/test_data_XXXXXX");
    assert(mkdtemp(folder));
    plain = byte_tokenizer("test/golden/tokenizer/bytes");
    with_bos = byte_tokenizer("test/golden/tokenizer/bytes_bos");
    test_shapes();
    test_turns();
    test_unread();
    test_trl_labels();
    test_rows();
    test_cut();
    test_stop();
    test_csv();
    test_files();
    test_token_file();
    test_errors();
    test_packing();
    test_batches();
    test_labels();
    test_label_errors();
    test_pairs();
    test_label_sets();
    test_label_token_file();
    test_label_golden();
    test_class_weights();
    test_randperm();
    test_base();
    tokenizer_free(plain);
    tokenizer_free(with_bos);
    remove_folder();
    return finish();
}
