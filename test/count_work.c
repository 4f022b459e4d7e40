/* Work, counted: gcc and clang call this at every basic block of what they compile with -fsanitize-coverage=trace-pc.
   Unlike seconds, the count is the same on a loaded machine. This file itself is compiled without, or it would call itself. */
#include <stddef.h>
size_t work_counted;
void __sanitizer_cov_trace_pc(void);
void __sanitizer_cov_trace_pc(void) { work_counted++; }
