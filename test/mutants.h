/* mutants.h - the test of the tests: takes one barrier, one wait for copies or one GUARD of the kernels away at a time and
   demands that a test fails, hangs or crashes.
     g++ -x c++ -DEMULATED -DMUTATED test_ops.c        one program for all of them
   Each site has a number, its __COUNTER__. A test case runs once as it is and notes which sites it passes; then a child
   process runs it with each of these taken away, until the site is caught. What no case catches is tried again with the
   threads in other orders and on a card with less shared memory. */
#ifndef MUTANTS_H
#define MUTANTS_H
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

extern "C" const char *__asan_default_options(void) { return "detect_leaks=0"; }       /* fibers hold what it cannot see */

namespace mutants {

enum { FIRST = __COUNTER__ + 1, MOST = 512 };
struct Site { const char *text; int line; bool passed, caught; };
static Site sites[MOST];
static int count, gone = -1;                /* sites in all; the one that is taken away */

inline bool taken_away(int number, int line, const char *text) {
    Site *s = &sites[number];
    s->text = text;
    s->line = line;
    s->passed = true;
    return number == gone;
}
#define TAKEN_AWAY(text) mutants::taken_away(__COUNTER__ - mutants::FIRST, __LINE__, text)
#define GUARD(condition) (TAKEN_AWAY(#condition) || (condition))
#define __syncthreads() do { if (!TAKEN_AWAY("__syncthreads")) emulator::sync_block(); } while (0)
#define __syncwarp() do { if (!TAKEN_AWAY("__syncwarp")) emulator::sync_warp(); } while (0)
#define cp_async_wait(pending) do { if (!TAKEN_AWAY("cp_async_wait")) cp_async_wait_group<pending>(); } while (0)

/* ---- cases: `for each of them { case_begin(); while (case_again()) run it; }` ------------------------------------------- */

static std::vector<std::vector<int>> passes[2];          /* of a card, case by case: the sites passed */
static int card, number, round_;                          /* number of the case; how often it was begun */
static bool in_child;

static bool alive(const std::vector<int> &some) {
    for (int s : some) if (!sites[s].caught) return true;
    return false;
}
static void case_begin(void) { number++; round_ = 0; }
static void child_ended(std::vector<std::pair<pid_t, int>> &children) {
    int status;
    pid_t pid = wait(&status);
    for (size_t i = 0; i < children.size(); i++) {
        if (children[i].first != pid) continue;
        if (status) sites[children[i].second].caught = true;
        children.erase(children.begin() + (ptrdiff_t)i);
        return;
    }
}
static bool case_again(void) {
    if (in_child) _exit(0);                               /* it ran to its end: nothing was noticed */
    std::vector<std::vector<int>> &known = passes[card];
    if (round_++ == 0) {
        if (number < (int)known.size()) return alive(known[number]);
        for (int s = 0; s < count; s++) sites[s].passed = false;
        return true;
    }
    if (number == (int)known.size()) {
        known.push_back({});
        for (int s = 0; s < count; s++) if (sites[s].passed) known.back().push_back(s);
    }
    std::vector<std::pair<pid_t, int>> children;
    for (int s : known[number]) {
        if (sites[s].caught) continue;
        if ((long)children.size() >= sysconf(_SC_NPROCESSORS_ONLN)) child_ended(children);
        fflush(stdout);
        pid_t pid = fork();
        if (pid == 0) {
            in_child = true;
            gone = s;
            alarm(100);                                   /* a hang is noticed */
            if (!freopen("/dev/null", "w", stdout) || !freopen("/dev/null", "w", stderr)) _exit(0);
            return true;
        }
        children.push_back({pid, s});
    }
    while (!children.empty()) child_ended(children);
    return false;
}

/* Every case of `all`, in several orders of the threads, on a large card and on a Turing card. */
static int run(void (*all)(void), void (*new_card)(void)) {
    static const struct { size_t shared; int order; } runs[] = {
        {232448, 2}, {232448, 3}, {65536, 2}, {232448, 0}, {232448, 1}, {232448, 7}, {65536, 3}};
    int caught = 0;
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        emulator::shared_limit = runs[i].shared;
        emulator_order = runs[i].order;
        card = runs[i].shared == 65536;
        number = -1;
        new_card();
        all();
    }
    for (int s = 0; s < count; s++) {
        caught += sites[s].caught;
        printf("%s  %s: line %d: %s\n", sites[s].caught ? "ok  " : "FAIL", sites[s].caught ? "caught" : "not missed",
               sites[s].line, sites[s].text ? sites[s].text : "(never passed by a test)");
    }
    printf("%d passed, %d failed\n", caught, count - caught);
    return caught < count;
}

}   /* namespace mutants */
#endif
