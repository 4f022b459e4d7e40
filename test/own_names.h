/* own_names.h - what a program may have of its own beside lora.h: short names, all of which lora.h or tokenizer.h used once.
   Included in front of test/test_embed.c (gcc -include), which must compile and run as if they were not there. */
#ifndef OWN_NAMES_H
#define OWN_NAMES_H
#define MR 3
#define NR 5
#define KC 7
#define MC 11
#define VL 13
#define CHUNK 17
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
static double dot(const double *a, const double *b, int n) { double s = 0; while (n--) s += a[n] * b[n]; return s; }
static double gemm(double a, double b) { return dot(&a, &b, 1); }
static long round_up(long n, long to) { return (n + to - 1) / to * to; }
static int unpack(const char *text) { return *text; }
static const char *copy_string(const char *text) { return text; }
static int turn(int n) { return n ? turn(n - 1) : MIN(MR, NR) + MAX(KC, MC) + VL + CHUNK; }
typedef struct Buffer { long size; } Buffer;
typedef struct Panel { Buffer rows; } Panel;
static inline long own_names(void) {
    Panel p = {{round_up((long)gemm(2, 3), 4)}};
    return p.rows.size + unpack(copy_string("")) + turn(1);
}
#endif
