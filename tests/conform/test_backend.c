/* Every compiled-in compute backend against the conformance suite. A new backend adds one line to main. */
#include "tests/conform/backend_suite.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

/* WINNOW_CPU_ISA: a wrong name is refused with the names that there are; an empty one is no wish. */
static void isa_override(void **state)
{
    struct wn_backend *be = NULL;
    struct wn_err err = {0};
    (void)state;
    setenv("WINNOW_CPU_ISA", "sse9", 1);
    assert_int_equal(wn_backend_open(&be, "cpu", 0, &err), WN_EINVAL);
    assert_null(be);
    assert_non_null(strstr(err.text, "sse9"));
    assert_non_null(strstr(err.text, "portable"));
    assert_int_equal(wn_backend_open(&be, "cpu", 0, NULL), WN_EINVAL);
    setenv("WINNOW_CPU_ISA", "", 1);
    assert_int_equal(wn_backend_open(&be, "cpu", 0, &err), WN_OK);
    wn_backend_close(be);
    unsetenv("WINNOW_CPU_ISA");
}

int main(void)
{
    static const struct CMUnitTest tests[] = {cmocka_unit_test(isa_override)};
    int failed = cmocka_run_group_tests_name("cpu: instruction sets", tests, NULL, NULL);

    failed += wn_backend_suite_run("cpu-reference", NULL);
    setenv("WINNOW_CPU_ISA", "portable", 1);
    failed += wn_backend_suite_run("cpu", NULL);
    unsetenv("WINNOW_CPU_ISA");
    failed += wn_backend_suite_run("cpu", NULL);
    return failed != 0;
}
