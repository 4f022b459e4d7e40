/* emulated.c - the tests of ops, model, generation and training in one program, so that the kernels compile once for each
   precision: build/emulated/tests_BF16 test_ops. Each test is a namespace; its headers stay outside. */
#include "backend.h"
#include <sys/wait.h>
#include <type_traits>

namespace test_ops {
#include "test_ops.c"
}
namespace test_model {
#include "test_model.c"
}
namespace test_generate {
#include "test_generate.c"
}
namespace test_train {
#include "test_train.c"
}

int main(int argc, char **argv) {
    const char *name = argc > 1 ? argv[1] : "";
    if (!strcmp(name, "test_ops")) return test_ops::main();
    if (!strcmp(name, "test_model")) return test_model::main();
    if (!strcmp(name, "test_generate")) return test_generate::main();
    if (!strcmp(name, "test_train")) return test_train::main();
    printf("FAIL  no test is called \"%s\"\n0 passed, 1 failed\n", name);
    return 1;
}
