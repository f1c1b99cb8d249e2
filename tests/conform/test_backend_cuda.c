/* test_backend_cuda - the conformance suite on GPU 0, in each mode of the backend. Where there is no GPU, or the build
 * has no CUDA, it says so and exits 77, which ctest counts as skipped. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/conform/backend_suite.h"

#define SKIPPED 77

/* The device named after the colon, kernels that do not exist. */
static void refusals(void **state)
{
    struct wn_backend *be = NULL;
    struct wn_err err = {0};
    (void)state;
    assert_int_equal(wn_backend_open(&be, "cuda:4000", 0, &err), WN_EINVAL);
    assert_non_null(strstr(err.text, "4000"));
    setenv("WINNOW_CUDA_KERNELS", "best", 1);
    assert_int_equal(wn_backend_open(&be, "cuda", 0, &err), WN_EINVAL);
    assert_non_null(strstr(err.text, "plain"));
    unsetenv("WINNOW_CUDA_KERNELS");
    assert_int_equal(wn_backend_open(&be, "cuda:0", 0, &err), WN_OK);
    wn_backend_close(be);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {cmocka_unit_test(refusals)};
    static const struct {
        const char *kernels;
        struct wn_suite_opts opts;
    } modes[] = {
        {"plain", {.title = "cuda: plain"}},
        {"exact", {.title = "cuda: exact", .f32_limit = 1e-9}},
        {"fast", {.title = "cuda: fast", .f32_limit = 1e-9, .rows_differ = true}},
    };
    struct wn_backend *be = NULL;
    struct wn_err err = {0};
    int failed;

    if (wn_backend_open(&be, "cuda", 0, &err) != WN_OK) {
        printf("skipped: %s\n", err.text);
        return SKIPPED;
    }
    wn_backend_close(be);
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    failed = cmocka_run_group_tests_name("cuda: opening", tests, NULL, NULL);
    for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
        setenv("WINNOW_CUDA_KERNELS", modes[i].kernels, 1);
        failed += wn_backend_suite_run("cuda", &modes[i].opts);
    }
    return failed != 0;
}
