/* test_chat.c - chat templates against transformers: test/golden/chat_templates.jsonl (dev/check_chat.py --golden made
   it), a template, what it is told, and the text, or null where it raises. Another file of such lines may be named. */
#define TOKENIZER_IMPLEMENTATION
#define CHAT_IMPLEMENTATION
#include "../data/chat.h"
#include "check.h"

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
            else if (!generation) check(false, "%s, line %zu: another part is within {%% generation %%}", name->str, rows);
            chat_output_free(&out);
        }
        json_free(&doc);
    }
    chat_close(program);
    free(text);
    check(rows > 100 && rendered > 50 && !wrong && !refused,
          "%s: %zu lines, %zu rendered as transformers does (%zu with masks), %zu raise as there, %zu wrong, %zu refused",
          path, rows, rendered, marked, raised, wrong, refused);
    return finish();
}
