/* crash.c - stops the program with SIGKILL at the CRASH_AT-th call by which a file is written, synced, renamed or removed;
   whatever is on the disk then must be whole. It stands in front of the C library, so that the very program is stopped:
   gcc -shared -fPIC test/crash.c -o build/crash.so && CRASH_AT=7 LD_PRELOAD=$PWD/build/crash.so ./train_lora */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static void crash_point(void) {
    static long passed;
    const char *at = getenv("CRASH_AT");
    if (at && ++passed == atol(at)) kill(getpid(), SIGKILL);
}
/* The call itself, then the crash. */
#define STOPS_BEHIND(result, name, parameters, arguments) \
    result name parameters { \
        static result (*real) parameters; \
        if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name); \
        result got = real arguments; \
        crash_point(); \
        return got; \
    }
STOPS_BEHIND(size_t, fwrite, (const void *data, size_t size, size_t count, FILE *f), (data, size, count, f))
STOPS_BEHIND(int, fflush, (FILE *f), (f))
STOPS_BEHIND(int, fclose, (FILE *f), (f))
STOPS_BEHIND(int, fsync, (int fd), (fd))
STOPS_BEHIND(int, mkdir, (const char *path, mode_t mode), (path, mode))
STOPS_BEHIND(int, rmdir, (const char *path), (path))
STOPS_BEHIND(int, unlink, (const char *path), (path))
STOPS_BEHIND(int, rename, (const char *from, const char *to), (from, to))
/* renameat2, for the C library has not had it for long. */
long syscall(long number, ...) {
    static long (*real)(long number, ...);
    long a[6];
    va_list args;
    va_start(args, number);
    for (int i = 0; i < 6; i++) a[i] = va_arg(args, long);
    va_end(args);
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "syscall");
    long got = real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    if (number == SYS_renameat2) crash_point();
    return got;
}
