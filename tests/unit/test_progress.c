/* How long a main thread has done nothing, from looks at its counter. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/progress.h"

static void stalls(void **state)
{
    struct wn_stall s = {0};

    (void)state;
    assert_int_equal(wn_stall_look(&s, 1000, 100), 0); /* the first look has nothing to compare with */
    assert_int_equal(wn_stall_look(&s, 1050, 100), 50);
    assert_int_equal(wn_stall_look(&s, 1100, 100), 100);
    wn_progress_note();
    assert_int_equal(wn_stall_look(&s, 1150, 100), 0);
    assert_int_equal(wn_stall_look(&s, 1200, 100), 50);
    assert_int_equal(wn_stall_look(&s, 900000, 100), 150); /* nobody looked: the whole process was stopped */
    assert_int_equal(wn_stall_look(&s, 900050, 100), 200);
    wn_progress_note();
    assert_int_equal(wn_stall_look(&s, 900060, 100), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(stalls)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
