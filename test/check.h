/* check.h - the test framework: check(ok, "what was compared, with the numbers"), one line a case, finish() prints the verdict.
   A check that cannot fail is a defect: assertions stay on, comparisons are written !(difference <= tolerance) so that a NaN fails. */
#ifndef CHECK_H
#define CHECK_H
#undef NDEBUG
#include <assert.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int checks_passed, checks_failed;
__attribute__((unused)) static bool stop_at_failure;

#ifdef __GNUC__
__attribute__((format(printf, 2, 3), unused))
#endif
static bool check(bool ok, const char *format, ...) {
    va_list args;
    va_start(args, format);
    printf("%s  ", ok ? "ok  " : "FAIL");
    vprintf(format, args);
    printf("\n");
    va_end(args);
    if (ok) checks_passed++;
    else checks_failed++;
    fflush(stdout);
    if (!ok && (stop_at_failure || getenv("STOP_AT_FAILURE"))) exit(1);
    return ok;
}

/* Largest |got - want| over the largest |want|; infinity when anything got is not finite. */
__attribute__((unused)) static double relative_error(const float *got, const float *want, size_t count) {
    double worst = 0, scale = 0;
    for (size_t i = 0; i < count; i++) {
        if (!isfinite(got[i])) return INFINITY;
        worst = fmax(worst, fabs((double)got[i] - (double)want[i]));
        scale = fmax(scale, fabs((double)want[i]));
    }
    return worst / (scale > 0 ? scale : 1);
}

static int finish(void) {
    printf("%d passed, %d failed\n", checks_passed, checks_failed);
    return checks_failed ? 1 : 0;
}
#endif
