/* test_cudasim [mode [test]] - the GPU backend against the conformance suite, on the simulated device: every kernel.
 * Tensor cores may be 1e-9 off for float32 results of bfloat16 factors; the plain kernels keep the CPU's limit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/conform/backend_suite.h"

/* Kernels that were built for other devices are found out when the device is opened. */
static void other_architecture(void **state)
{
    struct wn_backend *be = NULL;
    struct wn_err err = {0};
    (void)state;
    setenv("WN_CUDASIM_NO_CODE", "1", 1);
    assert_int_equal(wn_backend_open(&be, "cuda", 0, &err), WN_EUNSUPP);
    assert_non_null(strstr(err.text, "WN_CUDA_ARCHITECTURES=90"));
    unsetenv("WN_CUDASIM_NO_CODE");
    assert_int_equal(wn_backend_open(&be, "cuda", 0, &err), WN_OK);
    wn_backend_close(be);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest opening[] = {cmocka_unit_test(other_architecture)};
    static const struct wn_suite_opts plain = {.title = "cuda, simulated: plain"},
                                      exact = {.title = "cuda, simulated: exact", .f32_limit = 1e-9};
    bool both = argc < 2;
    int failed;

    if (argc > 2) cmocka_set_test_filter(argv[2]);
    failed = cmocka_run_group_tests_name("cuda, simulated: opening", opening, NULL, NULL);
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
