/* Tests of tokenizer.h. Run from the repository root:
     gcc -std=gnu11 -O2 -Wall -Wextra -Werror -I. test/test_tokenizer.c -o /tmp/test_tokenizer -lm -lpthread && /tmp/test_tokenizer [../shared]
   The cases under test/golden/tokenizer (dev/make_tokenizer_golden.py) and the hand-written ones always run; the large published files are used
   where the shared folder exists. Prints one line per case and exits 1 if any failed. */
#undef NDEBUG
#define TOKENIZER_IMPLEMENTATION
#include "tokenizer.h"
#include <pthread.h>

static int passed, failed;

static bool check(bool ok, const char *name, const char *detail) {
    printf("%s %s%s%s\n", ok ? "ok    " : "FAILED", name, ok || !detail[0] ? "" : ": ", ok ? "" : detail);
    if (ok) passed++; else failed++;
    return ok;
}

extern size_t work_counted;     /* test/count_work.c: basic blocks passed so far */

static bool exists(const char *path) { FILE *f = fopen(path, "rb"); if (f) fclose(f); return f != NULL; }

/* ---- JSON ---- */

static void test_json(void) {
    Error err;
    JsonDoc doc;
    const char *good =
        "{\"a\": [1, -0.5e3, true, false, null], \"s\": \"x\\u00e9\\ud83d\\ude00\\n\\u0000z\", \"a\": 7, \"\": {}}";
    bool ok = json_parse(&doc, good, strlen(good), "t", 1, &err);
    const Json *s = ok ? json_get(doc.root, "s") : NULL;
    check(ok && doc.root->type == JSON_OBJECT && doc.root->count == 4 && json_get(doc.root, "a")->number == 7 &&
              !json_get(doc.root, "b"),
          "json: object, last duplicate wins", ok ? "" : err.text);
    check(s && s->count == 10 && memcmp(s->str, "x\xC3\xA9\xF0\x9F\x98\x80\n\0z", 11) == 0, "json: escapes", "");
    JsonDoc edge;
    bool edges = json_parse(&edge, "\"\\ud7ff\\ue000\\ud800\\udc00\\udbff\\udfff\"", 38, "f.jsonl", 3, &err);
    check(edges && !strcmp(edge.root->str, "\xED\x9F\xBF\xEE\x80\x80\xF0\x90\x80\x80\xF4\x8F\xBF\xBF"),
          "json: escapes beside the surrogates, and their first and last", edges ? "" : err.text);
    if (edges) json_free(&edge);
    const Json *a = doc.root->child;
    check(a->count == 5 && a->child->next->number == -500 && strcmp(a->child->next->str, "-0.5e3") == 0 &&
              a->child->next->next->type == JSON_TRUE,
          "json: array", "");
    json_free(&doc);

    static const struct { const char *text, *what; int line, column; } bad[] = {
        {"", "unexpected end", 3, 1}, {"{", "unexpected end", 3, 2},
        {"{\"a\":\n [1,2,]}", "unexpected character", 4, 7}, {"[1 2]", "expected ','", 3, 4},
        {"{\"a\" 1}", "expected ':'", 3, 6}, {"{a:1}", "expected a name", 3, 2}, {"[1]x", "text after", 3, 4},
        {"\"abc", "without closing", 3, 1},
        {"\"\\udfff\"", "lone surrogate", 3, 2}, {"\"\\udbff\\ue000\"", "lone surrogate", 3, 2},
        {"\"\\ud800\"", "lone surrogate", 3, 2}, {"\"\\ude00\"", "lone surrogate", 3, 2},
        {"\"\\ud800\\u0041\"", "lone surrogate", 3, 2}, {"\"\\x\"", "unknown escape", 3, 2},
        {"\"\\u12g4\"", "four hex", 3, 2}, {"\"a\tb\"", "control character", 3, 3}, {"[NaN]", "NaN", 3, 2},
        {"-Infinity", "NaN", 3, 1}, {"01", "malformed number", 3, 2},
        {"1.", "malformed number", 3, 3}, {"-", "malformed number", 3, 2}, {"1e", "malformed number", 3, 3},
        {"+1", "unexpected character", 3, 1}, {"tru", "unexpected character", 3, 1},
        {"\"\xC3\xA9\", \"\xFF\"", "invalid UTF-8", 3, 7}, {"\"\xED\xA0\x80\"", "invalid UTF-8", 3, 2},
        {"\"\xC0\x80\"", "invalid UTF-8", 3, 2}, {"\xEF\xBB\xBF{}", "byte order mark", 3, 1},
        {"\"\\", "without closing", 3, 1}, {"[\"\xC3\xA9\xC3\xA9\" 1]", "expected ','", 3, 7},
        {"// x", "unexpected character", 3, 1}, {"1x", "malformed number", 3, 2}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char where[64], name[128];
        snprintf(where, sizeof where, "; f.jsonl:%d:%d; ", bad[i].line, bad[i].column);
        snprintf(name, sizeof name, "json: refuses case %zu (%s)", i, bad[i].what);
        strcpy(err.text, "accepted");
        bool took = json_parse(&doc, bad[i].text, strlen(bad[i].text), "f.jsonl", 3, &err);
        check(!took && strstr(err.text, bad[i].what) && strstr(err.text, where), name, err.text);
        if (took) json_free(&doc);
    }
    for (int depth = 256; depth <= 257; depth++) {
        char deep[600];
        memset(deep, '[', (size_t)depth); memset(deep + depth, ']', (size_t)depth);
        bool took = json_parse(&doc, deep, 2 * (size_t)depth, "deep", 1, &err);
        check(took == (depth == 256), depth == 256 ? "json: depth 256 accepted" : "json: depth 257 refused",
              took ? "accepted" : err.text);
        if (took) json_free(&doc);
    }
    bool cut = true;
    /* exact-size copies, so that a sanitizer sees any read past the end */
    for (size_t n = 0; n < strlen(good); n++) {
        char *copy = (char *)malloc(n ? n : 1);
        memcpy(copy, good, n);
        if (json_parse(&doc, copy, n, "cut", 1, &err)) { cut = false; json_free(&doc); }
        free(copy);
    }
    check(cut, "json: every truncation refused", "accepted");
    check(!read_file("/nonexistent/file", NULL, &err) && strstr(err.text, "cannot open file; /nonexistent/file: "),
          "read_file: missing file", err.text);
    check(!read_file("/tmp", NULL, &err) && strstr(err.text, "folder"), "read_file: folder", err.text);
}

/* ---- UTF-8 ---- */

/* test/golden/lower.txt (dev/make_unicode.py): a text, what Python's str.lower makes of it, and so on. */
/* Commas, lines and quotes come where they belong. */
static void test_json_writer(void) {
    static const char lines[] =
        "{\n  \"empty\": {},\n  \"nothing\": [],\n  \"list\": [\n    1,\n    {\"a\": true, \"b\": null}\n  ],\n"
        "  \"s\": \"\\\"\\\\\\u000a\\udc80\"\n}";
    static const char rows[] = "{\"a\": [[1, 2], \"]\"]}\n{\"b\": 1,\n  \"c\": 2}\n";
    Error err;
    JsonDoc doc;
    Text t = TEXT_EMPTY;
    json_object(&t, NULL, JSON_LINES);
    json_object(&t, "empty", JSON_LINES);
    json_end(&t);
    json_list(&t, "nothing", JSON_LINE);
    json_end(&t);
    json_list(&t, "list", JSON_LINES);
    json_print(&t, NULL, "%d", 1);
    json_object(&t, NULL, JSON_LINE);
    json_bool(&t, "a", true);
    json_string(&t, "b", NULL);
    json_end(&t);
    json_end(&t);
    json_bytes(&t, "s", "\"\\\n\x80", 4);
    json_end(&t);
    check(!strcmp(t.at, lines) && !t.depth, "JSON writer: a line for each member", t.at);
    check(json_parse(&doc, "\"\\u000a\"", 8, "t", 1, &err) && !strcmp(doc.root->str, "\n"), "JSON writer: read back",
          "");
    json_free(&doc);
    text_cut(&t, 0);
    json_object(&t, NULL, JSON_LINE);
    json_list(&t, "a", JSON_LINE);
    json_print(&t, NULL, "[1, 2]");
    json_string(&t, NULL, "]");
    json_end(&t);
    json_end(&t);
    text_string(&t, "\n");
    json_object(&t, NULL, JSON_LINE);
    json_print(&t, "b", "1");
    json_new_line(&t);
    json_print(&t, "c", "2");
    json_end(&t);
    text_string(&t, "\n");
    check(!strcmp(t.at, rows), "JSON writer: rows of a file", t.at);
    text_free(&t);
}

/* A growable text keeps its zero byte, whatever is put into it. */
static void test_text(void) {
    char longer[1000], want[3000];
    Text t = TEXT_EMPTY;
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    text_bytes(&t, "a\0b", 3);
    check(t.length == 3 && !memcmp(t.at, "a\0b", 4), "Text: holds zero bytes", "");
    text_cut(&t, 1);
    text_cut(&t, 5);
    text_print(&t, "%s %d", longer, 7);
    text_print(&t, "%s", "");
    snprintf(want, sizeof want, "a%s 7", longer);
    check(t.length == strlen(want) && !strcmp(t.at, want), "Text: grows as it is printed to", "");
    for (size_t n = 0; n < 300; n++) {      /* every length beside every capacity, under the sanitizer */
        Text u = TEXT_EMPTY;
        for (size_t i = 0; i < n; i++) text_append(&u, "yz", 1);
        if (n && (strlen(u.at) != n || u.capacity <= n)) check(false, "Text: a byte at a time", "");
        text_free(&u);
    }
    Text room = TEXT_EMPTY;
    check(text_room(&room, 200) && room.length == 0 && !*room.at, "Text: room without anything in it is a text", "");
    text_free(&room);
    static const char *const near[] = {"abcdef", "abcdeg", "tree"};
    check(name_nearest("abcdex", near, 3) == near[0] && name_nearest("abcdegh", near, 3) == near[1] &&
          name_nearest("river", near, 3) == NULL, "names: the first of the two that are nearest, or none", "");
    check(!text_room(&t, SIZE_MAX / 2) && t.failed && !text_append(&t, longer, 900) && !strcmp(t.at, want),
          "Text: what cannot grow says so and stays", "");
    text_free(&t);
}

static void test_lower(void) {
    Error err;
    char *text = read_file("test/golden/lower.txt", NULL, &err), out[300];
    size_t pairs = 0;
    for (char *a = text, *b, *end; a && *a; a = end + 1, pairs++) {
        b = strchr(a, '\n') + 1; end = strchr(b, '\n');
        size_t n = (size_t)(b - 1 - a), want = (size_t)(end - b), made = utf8_lower(out, sizeof out, a, n);
        a[n] = *end = 0;
        check(made == want && made <= n + n / 2 && memcmp(out, b, made) == 0, "lower case: as Python has it", a);
    }
    check(pairs >= 15, "lower case: the golden texts are there", err.text);
    free(text);
    memset(out, '.', 8);
    check(utf8_lower(out, 2, "A\xC8\xBA\xFF" "B", 5) == 6 && memcmp(out, "a\xE2....", 6) == 0,
          "lower case: no byte beyond the room", "");
    check(utf8_lower(out, 8, "\xFF" "A\xC3", 3) == 3 && memcmp(out, "\xFF" "a\xC3", 3) == 0,
          "lower case: bytes that are no text stay", "");
}

/* Every code point there and back through the decoders: first bytes at the borders of the lengths too, 0xE0 (Thai,
   Devanagari) and 0xF0. */
static void test_utf8(void) {
    size_t wrong = 0, count = 0;
    uint32_t first = 0;
    for (uint32_t cp = 0; cp < 0x110000; cp++) {
        char s[4], low[8];
        uint32_t a = ~cp, b = ~cp;
        int want = cp < 0x80 ? 1 : cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4, n = utf8_put(s, cp);
        bool surrogate = cp >= 0xD800 && cp < 0xE000;
        bool ok = n == want && utf8_next(s, &a) == n && a == cp && b != cp &&
                  utf8_get(s, (size_t)n, &b) == (surrogate ? 0 : n) && b == cp &&
                  utf8_invalid(s, (size_t)n) == (surrogate ? 0 : (size_t)n) && utf8_get(s, (size_t)n - 1, &a) == 0;
        size_t made = utf8_lower(low, sizeof low, s, (size_t)n);
        ok = ok && made >= 1 && 2 * made <= 3 * (size_t)n && (surrogate || utf8_invalid(low, made) == made);
        if (!ok && wrong++ == 0) first = cp;
        count++;
    }
    char detail[60];
    snprintf(detail, sizeof detail, "%zu wrong, the first is U+%04X", wrong, (unsigned)first);
    check(wrong == 0 && count == 0x110000, "UTF-8: every code point there and back", detail);
    static const char *const bad[] = {
        "\xC0\x80", "\xC1\xBF", "\xE0\x80\x80", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80",
        "\xF5\x80\x80\x80", "\x80", "\xE0\xB8", "\xC3(", "\xE0\xB8(", "\xF0\x9F\x98("};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        check(utf8_invalid(bad[i], strlen(bad[i])) == 0, "UTF-8: malformed is refused", bad[i]);
    /* As Rust's from_utf8_lossy: what could have become a character is replaced as one. */
    static const struct { const char *bytes; int replaced; } cut[] = {
        {"\xE0\xB8", 1}, {"\xE0\x9F", 2}, {"\xE0\xA0", 1}, {"\xE1\x80", 1}, {"\xDF", 1}, {"\xC2", 1},
        {"\xED\x9F", 1}, {"\xED\xA0", 2}, {"\xF0\x90\x80", 1}, {"\xF0\x8F", 2}, {"\xF4\x8F", 1}, {"\xF4\x90", 2},
        {"\xEF\xBF", 1}, {"\xF5\x80", 2}, {"\xC1\x80", 2}};
    for (size_t i = 0; i < sizeof cut / sizeof *cut; i++) {
        Text b = TEXT_EMPTY;
        tok_lossy(&b, cut[i].bytes, strlen(cut[i].bytes));
        check(b.length == 3 * (size_t)cut[i].replaced, "UTF-8: pieces of a character: U+FFFD as in Rust", cut[i].bytes);
        text_free(&b);
    }
}

/* ---- vectors: {"text", "ids", "ids_special", "decoded" [, "decoded_skip", "covered"]} per line ---- */

static bool same_ids(const TokenIds *ids, const Json *want) {
    size_t i = 0;
    if (!want || ids->count != want->count) return false;
    for (const Json *c = want->child; c; c = c->next) if (ids->ids[i++] != (int32_t)c->number) return false;
    return true;
}

static void describe(char *out, size_t size, size_t line, const char *what, const Json *text, const TokenIds *ids) {
    int n = snprintf(out, size, "line %zu: %s of \"%.60s\": got", line, what, text->str);
    for (size_t i = 0; i < ids->count && i < 20 && n < (int)size - 16; i++)
        n += snprintf(out + n, size - (size_t)n, " %d", ids->ids[i]);
}

static Tokenizer *open_or_fail(const char *folder) {
    Error err;
    Tokenizer *t = tokenizer_open(folder, &err);
    if (!t) check(false, folder, err.text);
    return t;
}

static void test_vectors(const Tokenizer *t, const char *path) {
    Error err;
    size_t bytes, cases = 0, wrong = 0, line = 0;
    char detail[600] = "", name[600], *text = read_file(path, &bytes, &err);
    TokenIds ids = {NULL, NULL, 0, 0};
    snprintf(name, sizeof name, "vectors: %s", path);
    if (!text) { check(false, name, err.text); return; }
    for (char *p = text, *end; p < text + bytes; p = end + 1) {
        JsonDoc doc;
        end = (char *)memchr(p, '\n', (size_t)(text + bytes - p));
        if (!end) end = text + bytes;
        line++;
        if (end == p) continue;
        if (!json_parse(&doc, p, (size_t)(end - p), path, line, &err)) { wrong++; strcpy(detail, err.text); break; }
        const Json *s = json_get(doc.root, "text"), *want = json_get(doc.root, "decoded"),
                   *skip = json_get(doc.root, "decoded_skip"), *cover = json_get(doc.root, "covered");
        const char *what = NULL;
        size_t n;
        cases++;
        if (!tokenizer_encode(t, &ids, s->str, s->count, 0, &err)) what = err.text;
        else if (!same_ids(&ids, json_get(doc.root, "ids"))) what = "ids";
        else {
            char *back = tokenizer_decode(t, ids.ids, ids.count, false, &n);
            if (n != want->count || memcmp(back, want->str, n) != 0) what = "decoded";
            free(back);
            if (skip) {
                tokenizer_encode(t, &ids, s->str, s->count, TOK_ADD_SPECIAL, &err);
                back = tokenizer_decode(t, ids.ids, ids.count, true, &n);
                if (n != skip->count || memcmp(back, skip->str, n) != 0) what = "decoded_skip";
                free(back);
            }
        }
        if (!what && (!tokenizer_encode(t, &ids, s->str, s->count, TOK_ADD_SPECIAL, &err) ||
                      !same_ids(&ids, json_get(doc.root, "ids_special"))))
            what = "ids_special";
        /* Encoding with spans is a second path through the normalizer: same ids, and everything covered by one span
           over the text. */
        TextSpan whole = {0, s->count};
        if (!what && (!tokenizer_encode_spans(t, &ids, s->str, s->count, &whole, 1, 0, &err) ||
                      !same_ids(&ids, json_get(doc.root, "ids"))))
            what = "ids with spans";
        for (size_t i = 0; !what && i < ids.count; i++) if (!ids.mask[i]) what = "mask over the whole text";
        /* covered: [[begin, end, first token, last token], ...] from the library's char_to_token */
        for (const Json *c = cover ? cover->child : NULL; c && !what; c = c->next) {
            TextSpan span = {(size_t)c->child->number, (size_t)c->child->next->number};
            size_t first = (size_t)c->child->next->next->number, last = (size_t)c->child->next->next->next->number;
            if (!tokenizer_encode_spans(t, &ids, s->str, s->count, &span, 1, TOK_ADD_SPECIAL, &err)) what = err.text;
            for (size_t i = 0; !what && i < ids.count; i++) if (ids.mask[i] != (i >= first && i <= last)) what = "span";
        }
        if (what && wrong++ == 0) describe(detail, sizeof detail, line, what, s, &ids);
        json_free(&doc);
    }
    snprintf(name, sizeof name, "vectors: %s, %zu texts, %zu wrong", path, cases, wrong);
    check(wrong == 0 && cases > 0, name, detail);
    token_ids_free(&ids);
    free(text);
}

/* llama.cpp's files: texts separated by "\n__ggml_vocab_test__\n", one line of ids each. */
static void test_llamacpp(const Tokenizer *t, const char *base) {
    Error err;
    char path[300], name[600], detail[400] = "", *inp, *out, *line, *p;
    static const char separator[] = "\n__ggml_vocab_test__\n";
    size_t cases = 0, wrong = 0;
    TokenIds ids = {NULL, NULL, 0, 0};
    snprintf(path, sizeof path, "%s.inp", base); inp = read_file(path, NULL, &err);
    snprintf(path, sizeof path, "%s.out", base); out = read_file(path, NULL, &err);
    for (p = inp, line = out; p && line && *line; cases++) {
        char *end = strstr(p, separator), *q = line, *eol = strchr(line, '\n');
        if (!end) end = p + strlen(p);
        if (!*end && end == p && !eol) break;
        if (eol) *eol = 0;
        bool same = tokenizer_encode(t, &ids, p, (size_t)(end - p), 0, &err);
        for (size_t i = 0; i < ids.count && same; i++) same = strtol(q, &q, 10) == ids.ids[i];
        while (*q == ' ') q++;
        if ((!same || *q) && wrong++ == 0)
            snprintf(detail, sizeof detail, "text %zu \"%.*s\" wanted %.200s", cases,
                     (int)(end - p < 80 ? end - p : 80), p, line);
        if (!*end || !eol) { cases++; break; }
        p = end + strlen(separator); line = eol + 1;
    }
    snprintf(name, sizeof name, "llama.cpp vectors: %s, %zu texts, %zu wrong", base, cases, wrong);
    check(inp && out && wrong == 0 && cases > 5, name, detail);
    free(inp); free(out); token_ids_free(&ids);
}

/* ---- chat ---- */

static void test_renders(const char *path, Tokenizer *qwen, Tokenizer *tiny, Tokenizer *llama) {
    Error err;
    size_t bytes, cases = 0, wrong = 0, line = 0;
    char detail[900] = "", name[600], *text = read_file(path, &bytes, &err);
    if (!text) { check(false, path, err.text); return; }
    for (char *p = text, *end; p < text + bytes; p = end + 1) {
        static const struct { const char *file, *ours; } names[] = {
            {"qwen2_5", "qwen2.5"}, {"llama3_1", "llama3.1"}, {"llama3_2", "llama3.2"}};
        JsonDoc doc;
        ChatTemplate kind;
        ChatText chat;
        ChatMessage m[32];
        ChatOptions o = {false, -1, NULL, NULL, false, NULL};
        size_t n = 0, assistants = 0;
        end = (char *)memchr(p, '\n', (size_t)(text + bytes - p));
        if (!end) end = text + bytes;
        line++;
        if (end == p) continue;
        if (!json_parse(&doc, p, (size_t)(end - p), path, line, &err)) { wrong++; strcpy(detail, err.text); break; }
        const char *which = json_get(doc.root, "template")->str;
        const Json *kw = json_get(doc.root, "kwargs"), *want = json_get(doc.root, "expected");
        Tokenizer *t = strncmp(which, "qwen", 4) == 0 ? qwen : strncmp(which, "llama3", 6) == 0 ? llama : tiny;
        for (int i = 0; i < 3; i++) if (strcmp(which, names[i].file) == 0) which = names[i].ours;
        memset(m, 0, sizeof m);
        for (const Json *c = json_get(doc.root, "messages")->child; c; c = c->next, n++) {
            const Json *content = json_get(c, "content"), *reason = json_get(c, "reasoning_content");
            m[n].role = json_get(c, "role")->str; m[n].content = content->str; m[n].content_bytes = content->count;
            if (reason) { m[n].reasoning = reason->str; m[n].reasoning_bytes = reason->count; }
            assistants += strcmp(m[n].role, "assistant") == 0;
        }
        o.add_generation_prompt = json_get(doc.root, "add_generation_prompt")->type == JSON_TRUE;
        /* there the template asks for today; the renders were given this */
        if (strcmp(which, "llama3.2") == 0) o.date = "04 Jul 2025";
        if (json_get(kw, "enable_thinking")) o.enable_thinking = json_get(kw, "enable_thinking")->type == JSON_TRUE;
        o.tools = json_get(kw, "tools");
        cases++;
        strcpy(err.text, "rendered differently");
        bool named = chat_template_by_name(which, &kind, &err),
             ok = named && chat_render(&chat, t, kind, m, n, o, &err);
        bool right = named && (want ? ok && chat.bytes == want->count &&
                                          memcmp(chat.text, want->str, chat.bytes) == 0 && chat.nspans == assistants
                                    : !ok);
        for (size_t i = 0; right && ok && i < chat.nspans; i++) {
            static const char *const ends[] = {"<|im_end|>", "</s>", "<|eot_id|>"};
            bool ended = false;
            for (int k = 0; k < 3; k++) {
                size_t e = strlen(ends[k]);
                ended = ended || (chat.spans[i].end - chat.spans[i].begin >= e &&
                                  memcmp(chat.text + chat.spans[i].end - e, ends[k], e) == 0);
            }
            right = ended;
        }
        if (!right && wrong++ == 0)
            snprintf(detail, sizeof detail, "line %zu (%s): %.200s; got %.300s", line, which, err.text,
                     ok ? chat.text : "(error)");
        if (ok) chat_text_free(&chat);
        json_free(&doc);
    }
    snprintf(name, sizeof name, "chat: %s, %zu renders, %zu wrong", path, cases, wrong);
    check(wrong == 0 && cases >= 100, name, detail);
    free(text);
}

/* test/golden/chat.jsonl (dev/make_chat_golden.py): what Jinja2 makes of every published template. A conversation is
   rendered as it is, and its answer once more behind the prompt that asks for it. A message in a place where a template
   loses it is refused by us. */
static void test_golden_chats(const Tokenizer *t) {
    static const char *const thinkers[] = {"qwen3", "qwen3-thinking-2507", "deepseek-r1"};
    static const char path[] = "test/golden/chat.jsonl";
    Error err;
    size_t bytes, rows = 0, wrong = 0, raises = 0, stricter = 0, begins = 0;
    char detail[900] = "", *text = read_file(path, &bytes, &err), *p = text;
    JsonDoc head = {NULL, NULL};
    for (size_t line = 1; p && p < text + bytes; line++) {
        JsonDoc doc;
        ChatTemplate kind = CHAT_NONE;
        ChatText chat, answer;
        ChatMessage m[16];
        size_t n = 0;
        char *end = strchr(p, '\n');
        if (!json_parse(line == 1 ? &head : &doc, p, (size_t)(end - p), path, line, &err)) {
            wrong++;
            strcpy(detail, err.text);
            break;
        }
        p = end + 1;
        if (line == 1) continue;
        rows++;
        const char *what = NULL, *name = json_get(doc.root, "template")->str;
        const Json *want = json_get(doc.root, "want"), *prompt = json_get(doc.root, "prompt");
        const Json *begin = json_get(doc.root, "begin"), *lost = json_get(doc.root, "lost");
        const Json *thinking = json_get(doc.root, "thinking"), *set = json_get(head.root, "chats")->child;
        for (int i = (int)json_get(doc.root, "chat")->number; i > 0; i--) set = set->next;
        memset(m, 0, sizeof m);
        for (const Json *c = set->child; c; c = c->next, n++) {
            const Json *content = json_get(c, "content"), *reason = json_get(c, "reasoning_content");
            m[n].role = json_get(c, "role")->str; m[n].content = content->str; m[n].content_bytes = content->count;
            if (reason) { m[n].reasoning = reason->str; m[n].reasoning_bytes = reason->count; }
        }
        bool last = strcmp(m[n - 1].role, "assistant") == 0, thinks = false;
        for (int i = 0; i < 3; i++) thinks = thinks || strcmp(name, thinkers[i]) == 0;
        ChatOptions o = {!last, thinking ? thinking->type == JSON_TRUE : -1, NULL, NULL, false, NULL};
        if (json_get(doc.root, "tools")) o.tools = json_get(head.root, "tools");
        if (!chat_template_by_name(name, &kind, &err)) what = err.text;
        bool ok = !what && chat_render(&chat, t, kind, m, n, o, &err);
        if (what) {}
        else if (want->type == JSON_NULL) { raises++; if (ok) what = "rendered what raises"; }
        else if (!ok) {                            /* what a template would lose in silence */
            stricter++;
            if (!strstr(err.text, "has no place for role") && !strstr(err.text, "must alternate")) what = err.text;
        } else if (chat.bytes != want->count || memcmp(chat.text, want->str, chat.bytes) != 0)
            what = "rendered otherwise";
        else if (chat.thoughts != (size_t)lost->number) what = "another number of thoughts is lost";
        if (ok && !what && begin) {
            size_t from = chat.spans[chat.nspans - 1].begin;
            begins++;
            if (from < (size_t)begin->child->number || from > (size_t)begin->child->next->number)
                what = "learned from another place on";
        }
        if (ok) chat_text_free(&chat);
        if (ok && !what && last && n > 1 && prompt && prompt->type == JSON_STRING) {
            o.as_answer = true;
            if (!chat_render(&answer, t, kind, m, n, o, &err)) what = err.text;
            else {
                TextSpan s = answer.spans[0];
                const char *said = answer.text + s.begin;
                bool shown = want->type == JSON_STRING && want->count >= s.begin &&
                             memcmp(want->str, answer.text, s.begin) == 0;
                if (answer.nspans != 1 || s.begin != prompt->count || memcmp(answer.text, prompt->str, s.begin) != 0)
                    what = "asked otherwise";
                else if (s.end != answer.bytes || s.end - s.begin < 4) what = "the answer is not the end";
                /* Where the template shows the answer behind that very prompt, it is what we teach. */
                else if (shown && (want->count < answer.bytes || memcmp(want->str, answer.text, answer.bytes) != 0))
                    what = "answered otherwise";
                else if (thinks && o.enable_thinking != 0 && strstr(m[n - 1].content, "Un and") &&
                         !strstr(said, "Un and\n\none.\n</think>\n\nTwo.")) what = "the thought is not taught";
                else if (o.enable_thinking == 0 && strstr(said, "think>"))
                    what = "a thought is taught with thinking off";
                chat_text_free(&answer);
            }
        }
        if (what && wrong++ == 0) snprintf(detail, sizeof detail, "line %zu (%s): %.800s", line, name, what);
        json_free(&doc);
    }
    char name[200];
    snprintf(name, sizeof name, "chat: %s, %zu renders (%zu raise, %zu refused by us, %zu with a begin), %zu wrong",
             path, rows, raises, stricter, begins, wrong);
    check(wrong == 0 && rows >= 290 && begins >= 100 && stricter < 40, name, detail);
    json_free(&head);
    free(text);
}

static ChatMessage message(const char *role, const char *content) {
    ChatMessage m;
    memset(&m, 0, sizeof m);
    m.role = role; m.content = content; m.content_bytes = strlen(content);
    return m;
}

/* What the templates say, written out by hand; |...| marks the span of each assistant turn. */
static void test_chat(Tokenizer *t) {
    Error err;
    ChatText chat;
    ChatMessage m[4] = {message("system", " S "), message("user", "U\n"), message("assistant", " A "),
                        message("user", "<think>")};
    ChatMessage think[2] = {message("user", "u"), message("assistant", "<think>\nwhy\n</think>\n\nyes")};
    ChatMessage tools[4] = {message("user", "u"), message("tool", "1"), message("tool", "2"),
                            message("assistant", "\"")};
    static const struct {
        const char *kind;
        int set;
        size_t count;
        bool prompt;
        int thinking;
        const char *want;
    } cases[] = {
        {"chatml", 0, 4, true, -1,
         "<|im_start|>system\n S <|im_end|>\n<|im_start|>user\nU\n<|im_end|>\n<|im_start|>assistant\n| A <|im_end|>|\n<|im_start|>user\n<think><|im_end|>\n<|im_start|>assistant\n"},
        {"chatml", 1, 2, false, -1,
         "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n|<think>\nwhy\n</think>\n\nyes<|im_end|>|\n"},
        {"qwen2.5", 1, 1, false, -1,
         "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n<|im_start|>user\nu<|im_end|>\n"},
        {"qwen3", 0, 3, false, -1,
         "<|im_start|>system\n S <|im_end|>\n<|im_start|>user\nU\n<|im_end|>\n<|im_start|>assistant\n|<think>\n\n</think>\n\n A <|im_end|>|\n"},
        {"qwen3", 0, 4, true, 0,
         "<|im_start|>system\n S <|im_end|>\n<|im_start|>user\nU\n<|im_end|>\n<|im_start|>assistant\n| A <|im_end|>|\n<|im_start|>user\n<think><|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"},
        {"qwen3", 1, 2, false, 1,
         "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n|<think>\nwhy\n</think>\n\nyes<|im_end|>|\n"},
        {"qwen3", 2, 4, false, -1,
         "<|im_start|>user\nu<|im_end|>\n<|im_start|>user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n<|im_start|>assistant\n|<think>\n\n</think>\n\n\"<|im_end|>|\n"},
        {"zephyr", 0, 3, true, -1, "<|system|>\n S </s>\n<|user|>\nU\n</s>\n<|assistant|>\n| A </s>|\n<|assistant|>\n"},
        {"llama2", 0, 4, false, -1, "<s>[INST] <<SYS>>\n S \n<</SYS>>\n\nU [/INST]| A </s>|<s>[INST] <think> [/INST]"},
        {"llama3", 0, 3, false, -1,
         "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n|A<|eot_id|>|<|start_header_id|>assistant<|end_header_id|>\n\n"},
        {"llama3-gen", 0, 3, false, -1,
         "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n|A<|eot_id|>|"},
        {"llama3.1", 2, 2, true, -1,
         "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nu<|eot_id|><|start_header_id|>ipython<|end_header_id|>\n\n\"1\"<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"},
        {"llama3.2", 0, 2, false, -1,
         "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|>"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ChatTemplate kind;
        ChatMessage *sets[3] = {m, think, tools};
        ChatOptions o = {cases[i].prompt, cases[i].thinking, NULL, NULL, false, NULL};
        char name[100], got[2000] = "rendering failed";
        snprintf(name, sizeof name, "chat: by hand %zu (%s)", i, cases[i].kind);
        if (chat_template_by_name(cases[i].kind, &kind, &err) &&
            chat_render(&chat, t, kind, sets[cases[i].set], cases[i].count, o, &err)) {
            size_t n = 0, s = 0;
            for (size_t k = 0; k <= chat.bytes; k++) {
                if (s < chat.nspans && k == chat.spans[s].begin) got[n++] = '|';
                if (s < chat.nspans && k == chat.spans[s].end) { got[n++] = '|'; s++; }
                got[n++] = chat.text[k];
            }
            chat_text_free(&chat);
        }
        check(strcmp(got, cases[i].want) == 0, name, got);
    }
    ChatOptions o = {false, -1, NULL, NULL, false, NULL};
    ChatTemplate kind;
    ChatMessage alien[2] = {message("user", "u"), message("wizard", "w")};
    for (int k = CHAT_QWEN3; k < CHAT_UNKNOWN; k++)
        check(!chat_render(&chat, t, (ChatTemplate)k, alien, 2, o, &err) &&
                  strstr(k == CHAT_LLAMA2 ? "wizard" : err.text, "wizard"),
              "chat: unknown role refused", err.text);
    check(!chat_render(&chat, t, CHAT_LLAMA2, think + 1, 1, o, &err) && strstr(err.text, "must alternate"),
          "chat: llama2 order", err.text);
    check(!chat_render(&chat, t, CHAT_MISTRAL_NEMO, tools, 2, o, &err) && strstr(err.text, "length 9") &&
          strstr(err.text, "message 2"), "chat: the answer of a tool that Mistral refuses is named",
          err.text);
    check(!chat_render(&chat, t, CHAT_UNKNOWN, m, 2, o, &err) && !chat_render(&chat, t, CHAT_NONE, m, 2, o, &err) &&
              !chat_render(&chat, t, CHAT_QWEN3, m, 0, o, &err),
          "chat: refusals", "");
    check(!chat_template_by_name("qwen-3", &kind, &err) && strstr(err.text, "\"qwen3\""), "chat: nearest name",
          err.text);
    check(chat_recognise("{{ bos_token }}", 15) == CHAT_UNKNOWN, "chat: foreign template is unknown", "");
    /* tojson */
    JsonDoc doc;
    const char *tool =
        "[{\"a\":\"\xE2\x80\x94<'\\u0001\\\"\",\"b\":[1,2.50,1e22,-0,1e-7,true,null],\"c\":{},\"d\":[]}]";
    check(json_parse(&doc, tool, strlen(tool), "t", 1, &err), "chat: tool parses", err.text);
    Text b = TEXT_EMPTY;
    json_dumps(&b, doc.root->child, 0);
    text_string(&b, "\n");
    json_dumps(&b, doc.root->child, 2);
    static const char written[] =
        "{\"a\": \"\xE2\x80\x94<'\\u0001\\\"\", \"b\": [1, 2.5, 1e+22, 0, 1e-07, true, null], \"c\": {}, \"d\": []}\n"
        "{\n  \"a\": \"\xE2\x80\x94<'\\u0001\\\"\",\n  \"b\": [\n    1,\n    2.5,\n    1e+22,\n    0,\n    1e-07,\n"
        "    true,\n    null\n  ],\n  \"c\": {},\n  \"d\": []\n}";
    check(!strcmp(b.at, written), "chat: tojson", b.at);
    text_free(&b);
    json_free(&doc);
}

/* ---- robustness ---- */

/* A line without a space: a square in the length would make 256 times the work of 16 times the text. */
static void test_long_line(const Tokenizer *t, const char *name) {
    static const char *const units[] = {"abcdefghij", " ", "a", "\xCC\x81\xCC\xA3", "\xE4\xBD\xA0", "'", "\n", "<|im_",
                                        "\xE2\x96\x81"};
    enum { SHORT = 1 << 14, TIMES = 16 };
    Error err = {{0}};
    TokenIds ids = {NULL, NULL, 0, 0};
    char *text = (char *)malloc((size_t)SHORT * TIMES);
    for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
        size_t k = strlen(units[u]), work[2];
        bool ok = true;
        for (int longer = 0; longer < 2; longer++) {
            size_t used = (size_t)SHORT / k * k * (longer ? TIMES : 1), bytes, before = work_counted;
            for (size_t i = 0; i < used; i++) text[i] = units[u][i % k];
            TextSpan span = {0, used};
            ok = ok && tokenizer_encode(t, &ids, text, used, 0, &err) && ids.count > 0 &&
                 tokenizer_encode_spans(t, &ids, text, used, &span, 1, 0, &err);
            char *back = ok ? tokenizer_decode(t, ids.ids, ids.count, false, &bytes) : NULL;
            ok = ok && back;
            free(back);
            work[longer] = work_counted - before;
        }
        char line[200], grown[100];
        snprintf(line, sizeof line, "long line: %s, 256 KiB of unit %zu", name, u);
        snprintf(grown, sizeof grown, "work x %.1f for text x %d", (double)work[1] / (double)work[0], TIMES);
        check(ok && work[0] > SHORT && work[1] < 2 * TIMES * work[0], line, ok ? grown : err.text);
    }
    free(text); token_ids_free(&ids);
}

static void test_hostile(const char *path, size_t step) {
    Error err;
    char name[600];
    size_t bytes, tried = 0, accepted = 0;
    char *text = read_file(path, &bytes, &err);
    if (!text) { check(false, path, err.text); return; }
    while (bytes && (text[bytes - 1] == '\n' || text[bytes - 1] == ' ')) bytes--;
    /* exact-size copy, so that a sanitizer sees any read past the end */
    for (size_t n = 0; n < bytes; n += step, tried++) {
        char *copy = (char *)malloc(n ? n : 1);
        memcpy(copy, text, n);
        Tokenizer *t = tokenizer_parse(copy, n, "cut.json", &err);
        if (t) { accepted++; tokenizer_free(t); }
        free(copy);
    }
    snprintf(name, sizeof name, "hostile: %s, %zu truncations", path, tried);
    check(accepted == 0, name, "accepted");
    uint64_t seed = 42;
    TokenIds ids = {NULL, NULL, 0, 0};
    for (size_t i = 0; i < 150; i++) {                              /* flipped bytes: anything but a crash */
        char *copy = (char *)malloc(bytes);
        memcpy(copy, text, bytes);
        for (int k = 0; k < 3; k++) {
            seed = seed * 6364136223846793005ull + 1442695040888963407ull;
            size_t range = i % 2 || bytes < 2000 ? bytes : 2000;
            copy[(seed >> 33) % range] = "0129\"{}[],:-x\\ \xC3"[seed >> 20 & 15];
        }
        Tokenizer *t = tokenizer_parse(copy, bytes, "flip.json", &err);
        if (t && tokenizer_encode(t, &ids, text, bytes < 5000 ? 0 : 3000, TOK_ADD_SPECIAL, &err))
            free(tokenizer_decode(t, ids.ids, ids.count, false, NULL));
        tokenizer_free(t);
        free(copy);
    }
    token_ids_free(&ids);
    snprintf(name, sizeof name, "hostile: %s, 150 with flipped bytes", path);
    check(true, name, "");
    free(text);
}

static void test_refusals(void) {
#define MODEL "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]}"
#define REPLACE "{\"type\":\"Replace\",\"pattern\":{\"String\":\"l\"},\"content\":\"llll\"}"
#define STEPS(name, steps) "{\"type\":\"Sequence\",\"" name "\":[" steps "]}"
#define BYTES64 "a prepended text has at most sixty-four bytes, and this has them"
#define TEMPLATE(single, ids) "{\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[" single "]," \
    "\"special_tokens\":{\"x\":{\"id\":\"x\",\"ids\":[0,1,2,0,1,2,0,1" ids "],\"tokens\":[]}}}," MODEL "}"
#define PLACE(kind, id) "{\"" kind "\":{\"id\":\"" id "\",\"type_id\":0}}"
    static const struct { const char *json, *what; } cases[] = {
        {"{" MODEL "}", NULL},
        {TEMPLATE(PLACE("SpecialToken", "x") "," PLACE("Sequence", "A"), ""), NULL},
        {TEMPLATE(PLACE("SpecialToken", "x") "," PLACE("Sequence", "A"), ",2"), "more than 8 tokens"},
        {TEMPLATE(PLACE("Sequence", "A") "," PLACE("SpecialToken", "x"), ""), NULL},
        {TEMPLATE(PLACE("Sequence", "A") "," PLACE("SpecialToken", "x"), ",2"), "more than 8 tokens"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}", "model type Unigram"},
        {"{\"model\":{\"type\":\"WordPiece\",\"vocab\":{}}}", "model type WordPiece"},
        {"{}", "no model"}, {"[]", "not an object"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[]}}", "vocabulary is empty"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a b\"]}}", "not in the vocabulary"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a b c\"]}}", "not two tokens"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}", "share the id"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":-1},\"merges\":[]}}", "bad id"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0.5},\"merges\":[]}}", "bad id"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":4e9},\"merges\":[]}}", "bad id"},
        {"{\"model\":{\"type\":\"BPE\",\"dropout\":0.1,\"vocab\":{\"a\":0},\"merges\":[]}}", "dropout"},
        {"{\"model\":{\"type\":\"BPE\",\"end_of_word_suffix\":\"</w>\",\"vocab\":{\"a\":0},\"merges\":[]}}", "end_of_word_suffix"},
        {"{\"model\":{\"type\":\"BPE\",\"continuing_subword_prefix\":\"##\",\"vocab\":{\"a\":0},\"merges\":[]}}", "continuing_subword_prefix"},
        {"{\"model\":{\"type\":\"BPE\",\"unk_token\":\"?\",\"vocab\":{\"a\":0},\"merges\":[]}}", "unk_token"},
        {"{\"normalizer\":{\"type\":\"NFKC\"}," MODEL "}", "normalizer NFKC"},
        {"{\"normalizer\":{\"type\":\"Lowercase\"}," MODEL "}", "normalizer Lowercase"},
        {"{\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"Regex\":\" +\"},\"content\":\" \"}," MODEL "}", "Replace with a pattern"},
        {"{\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\"\"},\"content\":\"x\"}," MODEL "}",
         "Replace with a pattern"},
        {"{\"normalizer\":" STEPS("normalizers", REPLACE "," REPLACE) "," MODEL "}", NULL},
        {"{\"normalizer\":" STEPS("normalizers", REPLACE "," REPLACE "," REPLACE) "," MODEL "}", "more than 16 times"},
        {"{\"decoder\":" STEPS("decoders", REPLACE "," REPLACE "," REPLACE) "," MODEL "}", "more than 16 times"},
        {"{\"decoder\":" STEPS("decoders", REPLACE "," REPLACE) ",\"normalizer\":" REPLACE "," MODEL "}", NULL},
        {"{\"normalizer\":{\"type\":\"Prepend\",\"prepend\":\"" BYTES64 "\"}," MODEL "}", NULL},
        {"{\"normalizer\":{\"type\":\"Prepend\",\"prepend\":\"x" BYTES64 "\"}," MODEL "}", "more than 64 bytes"},
        {"{\"decoder\":{\"type\":\"Strip\",\"content\":\"\",\"start\":1,\"stop\":0}," MODEL "}", "one character"},
        {"{\"pre_tokenizer\":{\"type\":\"Whitespace\"}," MODEL "}", "pre-tokenizer Whitespace"},
        {"{\"pre_tokenizer\":{\"type\":\"Digits\",\"individual_digits\":true}," MODEL "}", "Digits without ByteLevel"},
        {"{\"pre_tokenizer\":" STEPS("pretokenizers", "{\"type\":\"Digits\"},{\"type\":\"ByteLevel\"}") "," MODEL "}",
         "add_prefix_space after Digits"},
        {"{\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\w+\"},\"behavior\":\"Isolated\"},{\"type\":\"ByteLevel\",\"use_regex\":false}]}," MODEL "}", "unknown Split pattern \\w+"},
        {"{\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"first\"}," MODEL "}", "Metaspace replacement"},
        {"{\"pre_tokenizer\":" STEPS("pretokenizers", "{\"type\":\"Metaspace\",\"replacement\":\"\xE2\x96\x81\","
         "\"prepend_scheme\":\"first\"},{\"type\":\"ByteLevel\"}") "," MODEL "}", "after ByteLevel or Metaspace"},
        {"{\"pre_tokenizer\":" STEPS("pretokenizers", "{\"type\":\"ByteLevel\",\"add_prefix_space\":false},"
         "{\"type\":\"Digits\",\"individual_digits\":true}") "," MODEL "}", "after ByteLevel or Metaspace"},
        {"{\"post_processor\":{\"type\":\"BertProcessing\"}," MODEL "}", "post-processor BertProcessing"},
        {"{\"decoder\":{\"type\":\"WordPiece\"}," MODEL "}", "decoder WordPiece"},
        {"{\"decoder\":{\"type\":\"CTC\"}," MODEL "}", "decoder CTC"},
        {"{\"added_tokens\":[{\"id\":9,\"content\":\"<x>\",\"special\":true}]," MODEL "}", "id 9 where the library gives it 3"},
        {"{\"added_tokens\":[{\"id\":1,\"content\":\"a\",\"special\":true}]," MODEL "}", "broken tokenizer"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Error err = {"accepted"};
        char name[120];
        Tokenizer *t = tokenizer_parse(cases[i].json, strlen(cases[i].json), "small.json", &err);
        snprintf(name, sizeof name, "refusal %zu: %s", i, cases[i].what ? cases[i].what : "(the plain one loads)");
        check(cases[i].what ? !t && strstr(err.text, cases[i].what) && strstr(err.text, "small.json") : t != NULL, name,
              err.text);
        tokenizer_free(t);
    }
}

/* A merge that ends a word with the next one's visible space: "xy_xy" is one word for it. */
static void test_merge_over_space(void) {
#define SPACE "\xE2\x96\x81"
#define OVER_SPACE(merges) \
    "{\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"" SPACE "\"}," \
    "\"model\":{\"type\":\"BPE\",\"vocab\":{\"x\":0,\"y\":1,\"" SPACE "\":2,\"y" SPACE "\":3,\"" SPACE "x\":4}," \
    "\"merges\":[" merges "]}}"
    static const char over[] = OVER_SPACE("\"y " SPACE "\",\"" SPACE " x\""), within[] = OVER_SPACE("\"" SPACE " x\"");
    static const int32_t over_ids[] = {0, 3, 0, 1}, within_ids[] = {0, 1, 4, 1};
    static const struct { const char *json; size_t bytes; const int32_t *want; } cases[] = {
        {over, sizeof over - 1, over_ids}, {within, sizeof within - 1, within_ids}};
    for (int i = 0; i < 2; i++) {
        Error err = {""};
        TokenIds ids = {0};
        Tokenizer *t = tokenizer_parse(cases[i].json, cases[i].bytes, "small.json", &err);
        bool ok = t && tokenizer_encode(t, &ids, "xy xy", 5, 0, &err);
        check(ok && ids.count == 4 && !memcmp(ids.ids, cases[i].want, 4 * sizeof *ids.ids),
              i ? "merges within words" : "a merge over a space", err.text);
        token_ids_free(&ids);
        tokenizer_free(t);
    }
}

/* The long-word path against the short one, on random words over a small alphabet; and every byte offset of bad
   UTF-8. */
static void test_merge_paths(const Tokenizer *t, const char *name) {
    Error err;
    char line[200];
    uint64_t seed = 7;
    size_t differ = 0;
    TokState S;
    memset(&S, 0, sizeof S);
    S.t = t;
    for (int round = 0; round < 3000; round++) {
        char w[48];
        TokSymbol a[48], b[48];
        size_t n = 1 + (size_t)(round % 48);
        for (size_t i = 0; i < n; i++) {
            seed = seed * 6364136223846793005ull + 1442695040888963407ull;
            w[i] = "etaoinshr \nle"[(seed >> 33) % 13];
        }
        size_t k = tok_symbols(&S, w, n, a);
        memcpy(b, a, sizeof a);
        size_t ka = tok_merge_short(t, a, k), kb = tok_merge_long(&S, b, k);
        bool same = ka == kb;
        for (size_t i = 0; same && i < ka; i++)
            same = a[i].id == b[i].id && a[i].begin == b[i].begin && a[i].end == b[i].end;
        differ += !same;
    }
    tok_state_free(&S);
    snprintf(line, sizeof line, "bpe: %s, heap and array agree on 3000 words", name);
    check(differ == 0, line, "they differ");
    TokenIds ids = {NULL, NULL, 0, 0};
    check(!tokenizer_encode(t, &ids, "ab\xC3\xA9\xFFz", 6, 0, &err) && strstr(err.text, "byte 4"),
          "encode: invalid UTF-8 names the byte", err.text);
    check(tokenizer_encode(t, &ids, NULL, 0, 0, &err) && ids.count == 0, "encode: empty text", err.text);
    TextSpan bad = {3, 9};
    check(!tokenizer_encode_spans(t, &ids, "abc", 3, &bad, 1, 0, &err) && strstr(err.text, "span 0"),
          "encode: span beyond the text", err.text);
    token_ids_free(&ids);
}

typedef struct Job { const Tokenizer *t; const char *text; size_t bytes; TokenIds ids; bool ok; } Job;
static void *job_run(void *p) {
    Job *j = (Job *)p;
    for (int i = 0; i < 20; i++) j->ok = tokenizer_encode(j->t, &j->ids, j->text, j->bytes, TOK_ADD_SPECIAL, NULL);
    return NULL;
}
static void test_threads(const char *folder) {
    Error err;
    pthread_t thread[4];
    Job job[4];
    size_t bytes;
    Tokenizer *t = open_or_fail(folder);
    char *text = read_file("test/golden/tokenizer/texts.txt", &bytes, &err);
    if (!t || !text) { check(false, "threads", err.text); tokenizer_free(t); return; }
    memset(job, 0, sizeof job);
    for (int i = 0; i < 4; i++) {
        job[i].t = t;
        job[i].text = text;
        job[i].bytes = bytes;
        pthread_create(&thread[i], NULL, job_run, &job[i]);
    }
    bool same = true;
    for (int i = 0; i < 4; i++) {
        pthread_join(thread[i], NULL);
        same = same && job[i].ok && job[i].ids.count == job[0].ids.count &&
               memcmp(job[i].ids.ids, job[0].ids.ids, job[0].ids.count * 4) == 0;
    }
    check(same, "threads: four on one tokenizer agree", "they differ");
    for (int i = 0; i < 4; i++) token_ids_free(&job[i].ids);
    free(text); tokenizer_free(t);
}

/* Spans refer to the text as given. "e" + U+0301 composes to one character; both its bytes ranges must find the same
   token. */
static void test_spans_nfc(const Tokenizer *t) {
    Error err;
    TokenIds ids = {NULL, NULL, 0, 0};
    static const char text[] = "x\ncafe\xCC\x81s<|im_end|>\ny e\xCC\x81";
    const char *answer = strstr(text, "cafe"), *end = strstr(text, "\ny");
    TextSpan span = {(size_t)(answer - text), (size_t)(end - text)};
    bool ok = tokenizer_encode_spans(t, &ids, text, sizeof text - 1, &span, 1, 0, &err);
    char *all = ok ? tokenizer_decode(t, ids.ids, ids.count, false, NULL) : NULL;
    size_t n = 0, first = ids.count, last = 0;
    for (size_t i = 0; ok && i < ids.count; i++) if (ids.mask[i]) { if (first == ids.count) first = i; last = i; n++; }
    char *part = ok ? tokenizer_decode(t, ids.ids + first, n, false, NULL) : NULL;
    check(ok && n && last - first + 1 == n && strcmp(part, "caf\xC3\xA9s<|im_end|>") == 0,
          "spans: NFC changes bytes before the offset", part ? part : err.text);
    check(all && strcmp(all, "x\ncaf\xC3\xA9s<|im_end|>\ny \xC3\xA9") == 0, "spans: the whole text is in NFC",
          all ? all : "");
    free(all); free(part); token_ids_free(&ids);
}

int main(int argc, char **argv) {
    static const char *const kinds[] = {"qwen2", "llama3", "gpt2", "llama2_legacy", "llama2_metaspace",
                                        "metaspace_split", "digits", "digit_runs"};
    const char *shared = argc > 1 ? argv[1] : "../shared";
    char path[4][400];
    test_json();
    test_json_writer();
    test_text();
    test_utf8();
    test_lower();
    test_refusals();
    test_merge_over_space();
    for (int i = 0; i < 8; i++) {
        snprintf(path[0], 400, "test/golden/tokenizer/%s", kinds[i]);
        Tokenizer *t = open_or_fail(path[0]);
        if (!t) continue;
        snprintf(path[1], 400, "test/golden/tokenizer/%s/vectors.jsonl", kinds[i]);
        test_vectors(t, path[1]);
        if (i >= 6) { tokenizer_free(t); continue; }        /* but for the numbers they are GPT-2's */
        test_merge_paths(t, kinds[i]);
        test_long_line(t, kinds[i]);
        if (i == 0) test_spans_nfc(t);
        if (i == 3) { test_chat(t); test_golden_chats(t); }
        snprintf(path[1], 400, "test/golden/tokenizer/%s/tokenizer.json", kinds[i]);
        test_hostile(path[1], i == 0 || i == 3 ? 41 : 397);
        tokenizer_free(t);
    }
    test_threads("test/golden/tokenizer/qwen2");

    snprintf(path[0], 400, "%s/templates/renders.jsonl", shared);
    if (!exists(path[0])) printf("skipped: ../shared not present\n");
    else {
        static const struct {
            const char *folder, *vectors, *cpp;
            ChatTemplate chat;
            int32_t bos, eos, vocab;
        } real[] = {{"qwen3", "qwen3", "llamacpp-qwen2", CHAT_QWEN3, -1, 151645, 151669},
                    {"tinyllama", "llama2", "llamacpp-llama-spm", CHAT_ZEPHYR, 1, 2, 32000},
                    {"llama3_1", NULL, "llamacpp-llama-bpe", CHAT_LLAMA3_GEN, 128000, 128009, 128256}};
        Tokenizer *t[3];
        for (int i = 0; i < 3; i++) {
            snprintf(path[1], 400, "%s/tokenizers/%s", shared, real[i].folder);
            t[i] = open_or_fail(path[1]);
            if (!t[i]) return 1;
            check(tokenizer_chat_template(t[i]) == real[i].chat, "shared: template recognised",
                  chat_template_name(tokenizer_chat_template(t[i])));
            check(tokenizer_bos(t[i]) == real[i].bos && tokenizer_eos(t[i]) == real[i].eos &&
                      tokenizer_vocab_size(t[i]) == real[i].vocab && tokenizer_is_stop(t[i], real[i].eos),
                  "shared: bos, eos, size", "");
            snprintf(path[2], 400, "%s/vectors/%s.jsonl", shared, real[i].vectors);
            if (real[i].vectors) test_vectors(t[i], path[2]);
            snprintf(path[2], 400, "%s/vectors/%s", shared, real[i].cpp);
            test_llamacpp(t[i], path[2]);
            if (i == 1) {
                snprintf(path[2], 400, "%s/vectors/llamacpp-tinyllama", shared);
                test_llamacpp(t[i], path[2]);
            }
            test_long_line(t[i], real[i].folder);
        }
        test_renders(path[0], t[0], t[1], t[2]);
        for (int i = 0; i < 3; i++) tokenizer_free(t[i]);
        static const struct { const char *file; ChatTemplate chat; } files[] = {
            {"llama2", CHAT_LLAMA2}, {"llama3", CHAT_LLAMA3}, {"llama3_1", CHAT_LLAMA31}, {"llama3_2", CHAT_LLAMA32},
            {"qwen2_5", CHAT_QWEN2_5}, {"qwen3", CHAT_QWEN3}, {"tinyllama", CHAT_ZEPHYR}};
        for (int i = 0; i < 7; i++) {
            size_t n = 0;
            snprintf(path[1], 400, "%s/templates/%s.jinja", shared, files[i].file);
            char *text = read_file(path[1], &n, NULL);
            check(text && chat_recognise(text, n) == files[i].chat, path[1], "not recognised");
            if (text) {
                text[n / 2] ^= 1;
                check(chat_recognise(text, n) == CHAT_UNKNOWN, "chat: one changed character is unknown", "");
            }
            free(text);
        }
    }
    snprintf(path[0], 400, "%s/models/stories260K", shared);
    if (exists(path[0])) {
        Tokenizer *t = open_or_fail(path[0]);
        if (t) check(tokenizer_vocab_size(t) == 512, "shared: stories260K opens", "");
        tokenizer_free(t);
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed ? 1 : 0;
}
