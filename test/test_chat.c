/* test_chat.c - chat templates against transformers: test/golden/chat_templates.jsonl (dev/check_chat.py --golden made
   it), a template, what it is told, and the text, or null where it raises. Another file of such lines may be named. */
#define TOKENIZER_IMPLEMENTATION
#define CHAT_IMPLEMENTATION
#include "../data/chat.h"
#include "check.h"
#include <unistd.h>

/* Characters [begin, end) that transformers found within {% generation %}, as a mark for every byte. */
static bool same_generation(const ChatOutput *out, const Json *spans) {
    size_t at = 0, character = 0;
    const Json *s = spans->child;
    for (; at < out->bytes; character++) {
        while (s && (double)character >= s->child->next->number) s = s->next;
        bool marked = s && (double)character >= s->child->number;
        for (bool first = true; at < out->bytes && (first || (out->text[at] & 0xC0) == 0x80); first = false, at++)
            if (((out->from[at] & CHAT_GENERATION) != 0) != marked) return false;
    }
    return true;
}

static bool same_text(const Json *row, const ChatOutput *out) {
    const Json *text = json_get(row, "text");
    return text->type == JSON_STRING && text->count == out->bytes && !memcmp(text->str, out->text, out->bytes);
}

/* ---- a template's answers ---- */

/* Enough of a vocabulary for the special tokens of published templates; byte-level, so that other text has none. */
static Tokenizer *special_tokens(const char *bos, const char *eos) {
    static const char *const tokens[] = {"<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|begin_of_text|>",
                                         "<|start_header_id|>", "<|end_header_id|>"};
    char folder[] = "/tmp/test_chat_XXXXXX", path[64];
    Text t = TEXT_EMPTY, config = TEXT_EMPTY;
    Error err;
    if (!mkdtemp(folder)) return NULL;
    text_print(&t, "{\"model\": {\"type\": \"BPE\", \"vocab\": {}, \"merges\": []}, \"added_tokens\": [");
    for (int i = 0; i < 8; i++)
        text_print(&t, "%s{\"id\": %d, \"content\": \"%s\", \"special\": true}", i ? ", " : "", i, tokens[i]);
    text_print(&t, "]}");
    text_print(&config, "{\"bos_token\": \"%s\", \"eos_token\": {\"content\": \"%s\"}}", bos, eos);
    bool ok = text_write(&t, folder, "tokenizer.json", &err) &&
              text_write(&config, folder, "tokenizer_config.json", &err);
    Tokenizer *tokenizer = ok ? tokenizer_open(folder, &err) : NULL;
    if (!tokenizer) check(false, "a tokenizer of special tokens: %s", err.text);
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, i ? "tokenizer_config.json" : "tokenizer.json");
        remove(path);
    }
    rmdir(folder);
    return tokenizer;
}
static ChatSource *source_of(const Tokenizer *t, const char *text) {
    char path[] = "/tmp/test_chat_XXXXXX";
    int fd = mkstemp(path);
    Error err;
    if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text)) return NULL;
    close(fd);
    ChatSource *s = chat_source_open(t, path, &err);
    remove(path);
    if (!s) check(false, "%s", err.text);
    return s;
}
static ChatMessage said(const char *role, const char *content) {
    ChatMessage m;
    memset(&m, 0, sizeof m);
    m.role = role; m.content = content; m.content_bytes = strlen(content);
    return m;
}
/* The text with [ ] around what is learned, and the answer's number before; NULL: err. */
static char *learned(const ChatSource *s, const ChatMessage *m, size_t n, ChatOptions o, ChatText *chat, Error *err) {
    Text t = TEXT_EMPTY;
    size_t at = 0;
    if (!chat_source_render(chat, s, m, n, o, err)) return NULL;
    for (size_t k = 0; k < chat->nspans; k++) {
        TextSpan span = chat->spans[k];
        text_print(&t, "%.*s%zu[%.*s]", (int)(span.begin - at), chat->text + at, chat->owner[k],
                   (int)(span.end - span.begin), chat->text + span.begin);
        at = span.end;
    }
    text_print(&t, "%s", chat->text + at);
    return t.at;
}

static void test_answers(void) {
    static const char chatml[] =
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content and loop.last %}<think>"
        "{{ m.reasoning_content }}</think>\n{% endif %}{{ m.content|trim }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    static const char marked[] =
        "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' %}{% generation %}{{ m.content }};"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}";
    static const char plain[] = "{% for m in messages %}{{ m.content }}\n{% endfor %}";
    static const char nested[] =
        "{% macro turn(m) %}{% set body %}{{ m.content|upper }}{% for c in m.tool_calls or [] %}"
        "<call>{{ c.function.name }} {{ c.function.arguments|tojson }}</call>{% endfor %}{% endset %}"
        "{{ m.role }}={{ body }}{% endmacro %}{% for m in messages %}{{ turn(m) }}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant={% endif %}";
    static const char two[] = "{% for m in messages %}{{ m.content }}<s></s>{% endfor %}";
    Tokenizer *t = special_tokens("<s>", "</s>");
    ChatMessage m[5] = {said("system", "s"), said("user", "u"), said("assistant", " a "), said("user", "v"),
                        said("assistant", "")};
    JsonDoc calls;
    Error err = {""};
    m[2].reasoning = "why"; m[2].reasoning_bytes = 3;
    static const char call[] = "{\"content\": \"\\u00e9\", \"tool_calls\": [{\"function\": {\"name\": \"f\", "
                               "\"arguments\": {\"k\": [1, true]}}}]}";
    if (!t || !json_parse(&calls, call, sizeof call - 1, "call", 1, &err)) return;
    ChatMessage tool[2] = {said("user", "u"), said("assistant", "\xC3\xA9")};
    tool[1].whole = calls.root;
    const struct { const char *what, *text; const ChatMessage *m; size_t n; bool answer; const char *want; size_t lost,
                   rewritten; } cases[] = {
        {"content, end of turn; an empty answer", chatml, m + 1, 4, false,
         "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n0[a<|im_end|>]\n<|im_start|>user\nv<|im_end|>\n"
         "<|im_start|>assistant\n1[<|im_end|>]\n", 1, 0},
        {"the last answer's thought", chatml, m + 1, 2, false,
         "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n0[<think>why</think>\na<|im_end|>]\n", 0, 0},
        {"an answer behind its prompt", chatml, m + 1, 2, true,
         "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n0[<think>why</think>\na<|im_end|>]\n", 0, 0},
        {"{% generation %}", marked, m, 5, false, "system:suser:uassistant:0[ a ;]user:vassistant:1[;]", 1, 0},
        {"{% generation %}, an answer behind its prompt", marked, m, 5, true,
         "system:suser:uassistant: a ;user:vassistant:0[;]", 0, 0},
        {"up to what stops generation, whatever else is special", two, m + 1, 2, false, "u<s></s>0[ a <s></s>]", 1, 0},
        {"content through macro, block, filter; a tool call", nested, tool, 2, false,
         "user=U</s>assistant=0[\xC3\xA9<call>f {\"k\": [1, true]}</call></s>]", 0, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ChatOptions o = {false, -1, NULL, NULL, cases[i].answer, NULL};
        ChatText chat;
        memset(&chat, 0, sizeof chat);
        bool upper = cases[i].text == nested;                /* of letters beyond ASCII: refused */
        ChatSource *s = source_of(t, cases[i].text);
        char *got = s ? learned(s, cases[i].m, cases[i].n, o, &chat, &err) : NULL;
        if (upper) check(!got && strstr(err.text, "the upper case of U+00E9"), "refused: %s", err.text);
        else check(got && !strcmp(got, cases[i].want) && chat.thoughts == cases[i].lost &&
                   chat.rewritten == cases[i].rewritten, "answers: %s: %s", cases[i].what, got ? got : err.text);
        free(got);
        chat_text_free(&chat);
        chat_source_close(s);
    }
    ChatOptions o = {false, -1, NULL, NULL, false, NULL};
    ChatText chat;
    ChatSource *s = source_of(t, plain);
    check(s && !chat_source_render(&chat, s, m, 3, o, &err) && strstr(err.text, "no special token") &&
          strstr(err.text, "message 3"), "refused: %s", err.text);
    chat_source_close(s);
    json_free(&calls);
    tokenizer_free(t);
}

/* The interpreter makes of a published text what its renderer makes: the same bytes, the same spans. */
static void test_renderers(const char *shared) {
    static const struct { const char *file, *name, *bos, *eos; } known[] = {
        {"llama2", "llama2", "<s>", "</s>"}, {"llama3", "llama3", "<|begin_of_text|>", "<|eot_id|>"},
        {"llama3_1", "llama3.1", "<|begin_of_text|>", "<|eot_id|>"},
        {"llama3_2", "llama3.2", "<|begin_of_text|>", "<|eot_id|>"}, {"qwen2_5", "qwen2.5", "<s>", "<|im_end|>"},
        {"qwen3", "qwen3", "<s>", "<|im_end|>"}, {"tinyllama", "tinyllama", "<s>", "</s>"}};
    ChatMessage m[7] = {said("system", "Be kind.\n"), said("user", " What?\n"), said("assistant", " It is \xC3\xA9. "),
                        said("user", "And\n"), said("assistant", "<think>\nhm\n</think>\n\nThat."),
                        said("user", "So"), said("assistant", "Yes")};
    const struct { size_t begin, n; } parts[] = {{0, 3}, {1, 2}, {1, 4}, {0, 7}, {1, 6}, {0, 2}, {1, 1}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        char path[512];
        Error err = {""};
        ChatTemplate kind;
        size_t same = 0, of = 0;
        snprintf(path, sizeof path, "%s/templates/%s.jinja", shared, known[i].file);
        if (access(path, R_OK)) { printf("skipped: no %s\n", path); continue; }
        Tokenizer *t = special_tokens(known[i].bos, known[i].eos);
        ChatSource *s = t ? chat_source_open(t, path, &err) : NULL;
        bool ok = s && chat_template_by_name(known[i].name, &kind, &err);
        for (size_t k = 0; ok && k < sizeof parts / sizeof *parts; k++)
            for (int way = 0; way < 4; way++) {
                ChatText a, b;
                bool answer = way == 3 && m[parts[k].begin + parts[k].n - 1].role[0] == 'a' && parts[k].n > 1;
                ChatOptions o = {way == 1, way == 2 ? 0 : -1, "26 Jul 2024", NULL, answer, NULL};
                bool one = chat_render(&a, t, kind, m + parts[k].begin, parts[k].n, o, &err);
                bool two = chat_source_render(&b, s, m + parts[k].begin, parts[k].n, o, &err);
                of++;
                bool equal = one == two;
                if (one && two) {
                    equal = a.bytes == b.bytes && !memcmp(a.text, b.text, a.bytes);
                    /* with a header asked for the interpreter has no answers: nothing is learned of a prompt. The last
                       answer alone: its renderer stops where the answer does */
                    if (answer) equal = a.bytes <= b.bytes && !memcmp(a.text, b.text, a.bytes);
                    if (way != 1) equal = equal && a.nspans == b.nspans;
                    for (size_t j = 0; equal && way != 1 && j < a.nspans; j++)
                        equal = a.spans[j].begin == b.spans[j].begin && a.spans[j].end == b.spans[j].end;
                }
                if (!equal && one && two)
                    for (size_t j = 0; j < a.nspans && j < b.nspans; j++)
                        printf("%zu..%zu and %zu..%zu\n", a.spans[j].begin, a.spans[j].end, b.spans[j].begin,
                               b.spans[j].end);
                if (!equal) printf("%s, part %zu, way %d:\n--- renderer\n%s\n--- interpreter\n%s\n%s\n", known[i].name,
                                   k, way, one ? a.text : "(raises)", two ? b.text : "(raises)", err.text);
                same += equal;
                if (one) chat_text_free(&a);
                if (two) chat_text_free(&b);
            }
        check(ok && same == of && of == 28, "%s: the interpreter equals the renderer in %zu of %zu, text and answers",
              known[i].name, same, of);
        chat_source_close(s);
        tokenizer_free(t);
    }
}

int main(int argc, char **argv) {
    const char *path = argc > 1 ? argv[1] : "test/golden/chat_templates.jsonl";
    size_t bytes, rows = 0, rendered = 0, raised = 0, refused = 0, wrong = 0, marked = 0;
    Error err;
    char *text = read_file(path, &bytes, &err);
    ChatProgram *program = NULL;
    if (!text) { fprintf(stderr, "error: %s\n", err.text); return 1; }
    for (char *line = text, *end; *line; line = end + 1) {
        JsonDoc doc;
        ChatOutput out;
        ChatInput in;
        if (!(end = strchr(line, '\n'))) break;
        if (!json_parse(&doc, line, (size_t)(end - line), path, ++rows, &err)) { check(false, "%s", err.text); break; }
        const Json *row = doc.root, *source = json_get(row, "template"), *spans = json_get(row, "generation"),
                   *raises = json_get(row, "text"), *name = json_get(row, "name");
        if (source) {                                        /* else the line before's */
            chat_close(program);
            program = chat_open(source->str, source->count, name->str, &err);
            if (!program && raises->type != JSON_NULL) check(false, "%s does not open: %s", name->str, err.text);
        }
        memset(&in, 0, sizeof in);
        in.messages = json_get(row, "messages"); in.count = in.messages->count;
        in.tools = json_get(row, "tools"); in.kwargs = json_get(row, "kwargs"); in.tokens = json_get(row, "tokens");
        in.date = "2025-07-26";
        in.add_generation_prompt = json_get(row, "add_generation_prompt")->type == JSON_TRUE;
        if (!program) raised++;
        else if (!chat_text(&out, program, &in, &err)) {
            bool ours = strstr(err.text, "published templates do not use it") != NULL;
            if (raises->type != JSON_NULL || ours)
                check(false, "%s, line %zu, %s: %s", name->str, rows, ours ? "is refused" : "raises", err.text);
            raised += !ours; refused += ours; wrong += raises->type != JSON_NULL;
        } else {
            bool same = same_text(row, &out), generation = !spans || same_generation(&out, spans);
            rendered++;
            marked += spans && generation;
            wrong += !same;
            if (!same)
                check(false, "%s, line %zu: %s\n--- want\n%s\n--- got\n%s", name->str, rows,
                      raises->type == JSON_NULL ? "should raise" : "another text",
                      raises->type == JSON_NULL ? "" : raises->str, out.text);
            else if (!generation)
                check(false, "%s, line %zu: another part is within {%% generation %%}", name->str, rows);
            chat_output_free(&out);
        }
        json_free(&doc);
    }
    chat_close(program);
    free(text);
    if (argc == 1) {
        test_answers();
        test_renderers("../shared");
    }
    check(rows > 100 && rendered > 50 && !wrong && !refused,
          "%s: %zu lines, %zu rendered as transformers does (%zu with masks), %zu raise as there, %zu wrong, %zu "
          "refused",
          path, rows, rendered, marked, raised, wrong, refused);
    return finish();
}
