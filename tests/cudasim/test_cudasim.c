/* test_cudasim [mode [test]] - the GPU backend against the conformance suite, on the simulated device: every kernel.
 * Tensor cores may be 1e-9 off for float32 results of bfloat16 factors; the plain kernels keep the CPU's limit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/conform/backend_suite.h"

int main(int argc, char **argv)
{
    static const struct wn_suite_opts plain = {.title = "cuda, simulated: plain"},
                                      exact = {.title = "cuda, simulated: exact", .f32_limit = 1e-9};
    bool both = argc < 2;
    int failed = 0;

    if (argc > 2) cmocka_set_test_filter(argv[2]);
    if (both || strcmp(argv[1], "plain") == 0) {
        setenv("WINNOW_CUDA_KERNELS", "plain", 1);
        failed += wn_backend_suite_run("cuda", &plain);
    }
    if (both || strcmp(argv[1], "exact") == 0) {
        setenv("WINNOW_CUDA_KERNELS", "exact", 1);
        setenv("WN_CUDASIM_ORDER", "reverse", 1); /* threads the other way round */
        failed += wn_backend_suite_run("cuda", &exact);
    }
    return failed != 0;
}
