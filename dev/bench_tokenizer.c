/* Encoding speed of tokenizer.h on one thread.
     gcc -std=gnu11 -O3 -march=native -I. dev/bench_tokenizer.c -o /tmp/bench_tokenizer && /tmp/bench_tokenizer FOLDER TEXTFILE [chunk bytes]
   FOLDER holds tokenizer.json. The file is encoded whole, or in chunks of about that many bytes cut at line ends, again and again for about two
   seconds; prints MB/s of the fastest pass and the number of tokens, to be compared with the official library on the same text:
     python3 -c 'import sys,time,tokenizers; t=tokenizers.Tokenizer.from_file(sys.argv[1]); s=open(sys.argv[2],newline="").read(); b=time.time();
                 n=len(t.encode(s,add_special_tokens=False).ids); print(len(s.encode())/1e6/(time.time()-b),"MB/s",n)' FOLDER/tokenizer.json TEXTFILE */
#define TOKENIZER_IMPLEMENTATION
#include "tokenizer.h"

int main(int argc, char **argv) {
    Error err;
    size_t bytes, chunk, count = 0;
    TokenIds ids = {NULL, NULL, 0, 0};
    if (argc < 3) { fprintf(stderr, "usage: bench_tokenizer FOLDER TEXTFILE [chunk bytes]\n"); return 2; }
    double start = seconds_now(), load, best = 1e30;
    Tokenizer *t = tokenizer_open(argv[1], &err);
    load = seconds_now() - start;
    char *text = t ? read_file(argv[2], &bytes, &err) : NULL;
    if (!text) { fprintf(stderr, "%s\n", err.text); return 1; }
    chunk = argc > 3 ? (size_t)strtoull(argv[3], NULL, 10) : bytes;
    for (double end = seconds_now() + 2; seconds_now() < end;) {
        count = 0;
        start = seconds_now();
        for (size_t at = 0, n; at < bytes; at += n) {
            const char *line = bytes - at > chunk ? (const char *)memchr(text + at + chunk, '\n', bytes - at - chunk) : NULL;
            n = line ? (size_t)(line + 1 - text) - at : bytes - at;
            if (!tokenizer_encode(t, &ids, text + at, n, 0, &err)) { fprintf(stderr, "%s\n", err.text); return 1; }
            count += ids.count;
        }
        if (seconds_now() - start < best) best = seconds_now() - start;
    }
    printf("%s: loaded in %.3f s; %.1f MB in %zu tokens; %.1f MB/s\n", argv[1], load, (double)bytes / 1e6, count, (double)bytes / 1e6 / best);
    token_ids_free(&ids); tokenizer_free(t); free(text);
    return 0;
}
