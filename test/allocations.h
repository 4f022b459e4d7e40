/* allocations.h - included in front of lora.h, it ends the test at an allocation where there must be none, with file and
   line: while allocations_forbidden says what is going on. Unless that is "steps alone", the functions of
   allocations_allowed may, for the reason beside them. */
#ifndef ALLOCATIONS_H
#define ALLOCATIONS_H
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static const char *allocations_forbidden;               /* NULL: anything goes */
static int allocations_permitted;                       /* how many of the allowed there were */
static const char *const allocations_allowed[][2] = {
    {"must_realloc", "stb_ds's arrays: the history of the run doubles now and then"},
    {"text_room", "a line of the log, a file of JSON: as long as they are"},
    {"must_alloc", "an evaluation's list of rows; what a checkpoint brings from the device to the disk"},
    {NULL, NULL}
};
static const char *const *allocations_may(const char *function) {
    for (int i = 0; allocations_allowed[i][0]; i++)
        if (!strcmp(allocations_allowed[i][0], function)) return allocations_allowed[i];
    return NULL;
}
static inline void allocation(const char *call, const char *file, int line, const char *function) {
    if (!allocations_forbidden) return;
    if (allocations_may(function) && !strstr(allocations_forbidden, "steps alone")) { allocations_permitted++; return; }
    printf("FAIL  %s in %s, %s:%d, during %s\n0 passed, 1 failed\n", call, function, file, line, allocations_forbidden);
    fflush(stdout);
    abort();
}
#define ALLOCATION(call) allocation(call, __FILE__, __LINE__, __func__)
#define malloc(n) (ALLOCATION("malloc"), malloc(n))
#define calloc(n, size) (ALLOCATION("calloc"), calloc(n, size))
#define realloc(p, n) (ALLOCATION("realloc"), realloc(p, n))
#define mmap(...) (ALLOCATION("mmap"), mmap(__VA_ARGS__))
#endif
