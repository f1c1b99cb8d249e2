/* Every compiled-in compute backend against the conformance suite. */
#include "tests/conform/backend_suite.h"

#include <stdlib.h>

int main(void)
{
    int failed = 0;

    failed += wn_backend_suite_run("cpu-reference");
    setenv("WINNOW_CPU_ISA", "portable", 1);
    failed += wn_backend_suite_run("cpu");
    unsetenv("WINNOW_CPU_ISA");
    failed += wn_backend_suite_run("cpu");
    return failed != 0;
}
