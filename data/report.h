/* report.h - what a run leaves for people to look at: TensorBoard event files, and the pages beside it, filled with
   their data. Plain C, part of train_lora.cu: uses lora.h's LogRecord, tokenizer.h's JSON writer and write_file. The
   pages are plain .html; make brings them into build/pages.h as texts. */
#ifndef REPORT_H
#define REPORT_H

#include "build/pages.h"      /* report_page, compare_page */

/* ---- pages: one JSON object takes the place of {{DATA}} ---------------------------------------------------------- */

/* Writes `page` with its data to path. In a script of HTML only "<" could end the JSON early, so it is written as
   \u003c; bytes that are not UTF-8 become U+FFFD. */
static bool page_write(const char *path, const char *page, const Text *data, Error *err) {
    const char *mark = strstr(page, "{{DATA}}");
    Text t = TEXT_EMPTY;
    text_bytes(&t, page, (size_t)(mark - page));
    size_t begin = 0, i = 0, end = data->length;                              /* [begin, i): as it is */
    while (i < end) {
        uint32_t cp;
        int bytes = utf8_get(data->at + i, end - i, &cp);
        if (bytes > 0 && cp != '<') { i += (size_t)bytes; continue; }
        text_bytes(&t, data->at + begin, i - begin);
        text_print(&t, "%s", bytes <= 0 ? "\xEF\xBF\xBD" : "\\u003c");
        begin = ++i;
    }
    text_bytes(&t, data->at ? data->at + begin : "", end - begin);
    text_print(&t, "%s", mark + strlen("{{DATA}}"));
    bool ok = write_file(path, t.at, t.length, err);
    text_free(&t);
    return ok;
}

static void time_text(char *out, size_t size) {
    time_t now = time(NULL);
    strftime(out, size, "%Y-%m-%d %H:%M:%S", localtime(&now));
}

/* The page of a training run: what is known at its start once as text, then the log as it grows. */
typedef struct Report {
    char path[PATH_MAX];
    Text fixed, history, warnings, samples; /* members; elements */
    Text classes;                           /* a member: the last evaluation, class by class; or empty */
    double start, written;                  /* seconds_now */
    double cost;                            /* seconds that the last writing took */
    int64_t total_steps;
    LogRecord last;                         /* the newest training record */
    double epochs;
} Report;

/* Lengths of the examples in about 24 bars of a round width. */
static void report_lengths(Text *t, const Dataset *d) {
    int64_t width = 1, *bars = NULL;
    while (width * 24 < d->stats.longest) width *= 2;
    arrsetlen(bars, (size_t)(d->stats.longest / width + 1));
    memset(bars, 0, (size_t)arrlen(bars) * sizeof *bars);
    for (size_t s = 0; s < d->slots; s++)
        for (SlotIterator i = slot_begin(d, s); slot_next(&i);) bars[(int64_t)i.count / width]++;
    json_list(t, "lengths", JSON_LINE);
    for (ptrdiff_t i = 0; i < arrlen(bars); i++) {
        json_object(t, NULL, JSON_LINE);
        json_print(t, "from", "%lld", (long long)(i * width));
        json_print(t, "to", "%lld", (long long)((i + 1) * width));
        json_print(t, "count", "%lld", (long long)bars[i]);
        json_end(t);
    }
    json_end(t);
    arrfree(bars);
}

/* model, adapter: a line each; options: run.json. */
static void report_begin(Report *r, const TrainOptions *o, const Dataset *train, const Dataset *eval,
                         const MemoryTable *memory, int64_t total_steps, const char *model, const char *adapter,
                         const char *options) {
    const DataStats *s = &train->stats;
    char device[256];
    memset(r, 0, sizeof *r);
    path_in(r->path, sizeof r->path, o->output, "report.html");
    backend_describe(device, sizeof device);
    r->start = seconds_now();
    r->total_steps = total_steps;
    r->epochs = o->num_train_epochs;
    Text *t = &r->fixed;
    json_string(t, "title", o->output);
    json_string(t, "device", device);
    json_string(t, "model", model);
    json_string(t, "adapter", adapter);
    json_object(t, "data", JSON_LINE);
    json_print(t, "examples", "%lld", (long long)s->examples);
    json_print(t, "tokens", "%lld", (long long)s->tokens);
    json_print(t, "labelled_tokens", "%lld", (long long)s->labelled);
    json_print(t, "truncated", "%lld", (long long)s->truncated);
    json_print(t, "dropped", "%lld", (long long)s->dropped);
    if (eval) json_print(t, "eval_examples", "%lld", (long long)eval->stats.examples);
    report_lengths(t, train);
    json_end(t);
    json_list(t, "memory", JSON_LINE);
    for (int i = 0; i < memory->count; i++) {
        json_object(t, NULL, JSON_LINE);
        json_print(t, "bytes", "%zu", memory->row[i].bytes);
        json_string(t, "name", memory->row[i].name);
        json_end(t);
    }
    json_end(t);
    json_print(t, "options", "%s", options);
}
static void report_log(Report *r, const LogRecord *record) {
    if (r->history.length) json_new_line(&r->history);
    log_record_json(&r->history, record);
    if (!record->eval) r->last = *record;
}
/* What an evaluation says of every class: precision, recall, F1, rows, and what was answered where it was expected. */
static void report_classes(Report *r, const EvalResult *e, const Dataset *d) {
    int K = e->K;
    if (!e->logits || !d->label_count || K > 200) return;         /* a page of more would be no help */
    LabelScore *each = (LabelScore *)must_alloc((size_t)K * sizeof *each), macro, weighted;
    int64_t *counts = (int64_t *)must_alloc((size_t)K * (size_t)(K + 1) * sizeof *counts);
    bool one = d->problem == PROBLEM_SINGLE_LABEL;
    if (one) class_counts(counts, e, d);
    if (one) label_scores(each, &macro, &weighted, counts, K);
    else class_labels(each, e, d);
    Text *t = &r->classes;
    text_free(t);
    json_object(t, "classes", JSON_LINE);
    json_print(t, "step", "%lld", (long long)e->record.step);
    json_list(t, "rows", JSON_LINE);
    for (int k = 0; k < K; k++) {
        json_object(t, NULL, JSON_LINE);
        json_string(t, "label", d->label_names[k]);
        json_print(t, "precision", "%.6g", each[k].precision);
        json_print(t, "recall", "%.6g", each[k].recall);
        json_print(t, "f1", "%.6g", each[k].f1);
        json_print(t, "support", "%lld", (long long)each[k].support);
        if (one) json_list(t, "answered", JSON_LINE);
        for (int j = 0; j < K && one; j++) json_print(t, NULL, "%lld", (long long)counts[k * (K + 1) + j]);
        if (one) json_end(t);
        json_end(t);
    }
    json_end(t);
    json_end(t);
    free(each);
    free(counts);
}
static void report_warn(Report *r, const char *text) { json_string(&r->warnings, NULL, text); }

/* Adapter and base, answering the same dialogue. */
static void report_sample(Report *r, int64_t step, const char *dialogue, const char *base, const char *adapter) {
    JsonDoc doc;
    Text prompt = TEXT_EMPTY;
    if (!json_parse(&doc, dialogue, strlen(dialogue), "dialogue", 1, NULL)) return;
    for (const Json *m = doc.root->child; m; m = m->next)
        text_print(&prompt, "%s%s: %s", prompt.length ? "\n" : "", json_get(m, "role")->str,
                   json_get(m, "content")->str);
    json_free(&doc);
    json_object(&r->samples, NULL, JSON_LINE);
    json_print(&r->samples, "step", "%lld", (long long)step);
    json_string(&r->samples, "prompt", prompt.at ? prompt.at : "");
    json_string(&r->samples, "base", base);
    json_string(&r->samples, "adapter", adapter);
    json_end(&r->samples);
    text_free(&prompt);
}

/* A list of what is in `elements`. */
static void report_list(Text *t, const char *name, const Text *elements) {
    json_list(t, name, JSON_LINE);
    if (elements->length) json_print(t, NULL, "%s", elements->at);
    json_end(t);
}
/* status: running, finished, interrupted or failed. `more`: members that only the end knows, or NULL. While the run
   goes the page is written every five seconds at most, and so seldom that it costs two percent of the time: it grows
   with the log, and is written whole. */
static bool report_due(const Report *r, double now) {
    return !(r->written > 0) || now - r->written >= fmax(5, 50 * r->cost);
}
static bool report_write(Report *r, const char *status, const char *message, const Text *more, Error *err) {
    double now = seconds_now();
    char updated[32];
    if (!strcmp(status, "running") && !report_due(r, now)) return true;
    r->written = now;
    time_text(updated, sizeof updated);
    const LogRecord *l = &r->last;
    Text t = TEXT_EMPTY;
    json_object(&t, NULL, JSON_LINE);
    json_string(&t, "status", status);
    json_string(&t, "updated", updated);
    if (message) json_string(&t, "message", message);
    json_object(&t, "progress", JSON_LINE);
    json_print(&t, "step", "%lld", (long long)l->step);
    json_print(&t, "max_steps", "%lld", (long long)r->total_steps);
    json_print(&t, "epoch", "%.6g", l->epoch);
    json_print(&t, "num_train_epochs", "%.6g", r->epochs);
    json_print(&t, "elapsed_seconds", "%.1f", now - r->start);
    if (l->step) {                          /* before the first record nothing is known of speed */
        json_print(&t, "eta_seconds", "%.1f", l->eta);
        json_print(&t, "tokens_per_second", "%.1f", l->tokens_per_second);
        json_print(&t, "ceiling_share", "%.4f", l->ceiling_share);
    }
    json_end(&t);
    json_print(&t, "memory_peak_bytes", "%zu", resident_bytes(true));
    report_list(&t, "log_history", &r->history);
    report_list(&t, "samples", &r->samples);
    report_list(&t, "warnings", &r->warnings);
    if (r->classes.length) json_print(&t, NULL, "%s", r->classes.at);
    if (more) json_print(&t, NULL, "%s", more->at);
    json_print(&t, NULL, "%s", r->fixed.at);
    json_end(&t);
    bool ok = page_write(r->path, report_page, &t, err);
    r->cost = seconds_now() - now;
    text_free(&t);
    return ok;
}
static void report_end(Report *r) {
    text_free(&r->fixed);
    text_free(&r->history);
    text_free(&r->samples);
    text_free(&r->warnings);
    text_free(&r->classes);
}

/* ---- TensorBoard: TFRecords of Event messages (tensorflow/core/util/event.proto) ---------------------------------
   Tags are those of transformers' TensorBoardCallback. */

/* CRC-32C (Castagnoli), rotated and offset as TFRecord wants it (tensorflow/core/lib/hash/crc32c.h, Mask). */
static uint32_t masked_crc32c(const uint8_t *data, size_t bytes) {
    uint32_t crc = 0xFFFFFFFF;
    for (size_t i = 0; i < bytes; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78 : 0);
    }
    crc = ~crc;
    return (crc >> 15 | crc << 17) + 0xA282EAD8;
}

/* A message being written: fields of protocol buffers are (number << 3 | kind) and a value; kinds used: 0 varint,
   1 eight bytes, 2 counted bytes, 5 four bytes. */
typedef struct Message { uint8_t at[8192]; size_t bytes; } Message;
static void message_bytes(Message *m, const void *data, size_t bytes) {
    if (m->bytes + bytes > sizeof m->at) return;
    memcpy(m->at + m->bytes, data, bytes);
    m->bytes += bytes;
}
static void message_varint(Message *m, uint64_t v) {
    uint8_t byte;
    do { byte = (uint8_t)((v & 127) | (v > 127 ? 128 : 0)); message_bytes(m, &byte, 1); } while (v >>= 7);
}
static void message_counted(Message *m, int field, const void *data, size_t bytes) {
    message_varint(m, (uint64_t)field << 3 | 2);
    message_varint(m, bytes);
    message_bytes(m, data, bytes);
}
/* Summary.value: {1: tag, 2: simple_value} */
static void message_scalar(Message *summary, const char *tag, double value) {
    Message v;
    v.bytes = 0;
    float number = (float)value;
    message_counted(&v, 1, tag, strlen(tag));
    message_varint(&v, 2 << 3 | 5);
    message_bytes(&v, &number, sizeof number);
    message_counted(summary, 1, v.at, v.bytes);
}

/* Event: {1: wall_time, 2: step, 3: file_version or 5: summary} */
static void event_write(FILE *f, int64_t step, int field, const void *data, size_t bytes) {
    Message event;
    event.bytes = 0;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    double wall = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
    message_varint(&event, 1 << 3 | 1);
    message_bytes(&event, &wall, sizeof wall);
    message_varint(&event, 2 << 3 | 0);
    message_varint(&event, (uint64_t)step);
    message_counted(&event, field, data, bytes);
    uint64_t length = event.bytes;
    uint32_t length_crc = masked_crc32c((const uint8_t *)&length, sizeof length);
    uint32_t crc = masked_crc32c(event.at, event.bytes);
    fwrite(&length, sizeof length, 1, f);
    fwrite(&length_crc, sizeof length_crc, 1, f);
    fwrite(event.at, 1, event.bytes, f);
    fwrite(&crc, sizeof crc, 1, f);
    fflush(f);
}

/* Opens OUTPUT/runs/MonDD_HH-MM-SS/events.out.tfevents.SECONDS.train_lora, a folder a run as transformers has it; NULL:
   cannot. */
static FILE *events_open(const char *output, Error *err) {
    char stamp[64], folder[PATH_MAX], path[PATH_MAX + 64];
    time_t now = time(NULL);
    strftime(stamp, sizeof stamp, "runs/%b%d_%H-%M-%S", localtime(&now));
    path_in(folder, sizeof folder, output, stamp);
    if (!make_folder(folder, err)) return NULL;
    snprintf(path, sizeof path, "%s/events.out.tfevents.%lld.%ld.train_lora", folder, (long long)now, (long)getpid());
    FILE *f = fopen(path, "wb");
    if (!f) { fail(err, "cannot write; %s: %s; give another --output", path, strerror(errno)); return NULL; }
    event_write(f, 0, 3, "brain.Event:2", 13);
    return f;
}
static void events_log(FILE *f, const LogRecord *r) {
    Message s;
    s.bytes = 0;
    char tag[64];
    for (int i = 0; i < LOG_METRICS; i++) {
        if (!(log_metric[i].is & (r->eval ? METRIC_BEST : METRIC_TAG)) || !metric_is_of(&log_metric[i], r->of))
            continue;
        if (r->of && !isfinite(metric_value(r, &log_metric[i]))) continue;
        snprintf(tag, sizeof tag, "%s/%s", r->eval ? "eval" : "train", log_metric[i].name);
        message_scalar(&s, tag, metric_value(r, &log_metric[i]));
    }
    if (!r->eval) {
        message_scalar(&s, "train/epoch", r->epoch);
        message_scalar(&s, "train/num_tokens", (double)r->num_tokens);
    }
    event_write(f, r->step, 5, s.at, s.bytes);
}

#endif /* REPORT_H */
