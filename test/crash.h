/* crash.h - stops the process with SIGKILL at the CRASH_AT-th place where a file is between written, synced and renamed (lora.h, CRASH_POINT). Included in front of the program: gcc -include test/crash.h */
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>
static void crash_point(void) {
    static long passed;
    const char *at = getenv("CRASH_AT");
    if (at && ++passed == atol(at)) kill(getpid(), SIGKILL);
}
#define CRASH_POINT() crash_point()
