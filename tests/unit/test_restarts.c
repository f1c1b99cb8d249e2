/* tests/unit/test_restarts.c - how long the pause before the next start is. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "daemon/restarts.h"

#define S 1000000ll

static void pauses_double_while_it_dies_young(void **state)
{
    const int64_t expected[] = {200, 400, 800, 1600, 3200, 5000, 5000};
    struct wn_restarts r = {0};

    (void)state;
    for (unsigned i = 0; i < sizeof(expected) / sizeof(*expected); i++)
        assert_int_equal(wn_restarts_pause(&r, i * S, S / 2), expected[i] * 1000);
}

/* What ran and was killed is not a component that cannot run. */
static void a_long_life_forgives(void **state)
{
    struct wn_restarts r = {0};

    (void)state;
    assert_int_equal(wn_restarts_pause(&r, 1 * S, S), WN_RESTART_PAUSE_US);
    assert_int_equal(wn_restarts_pause(&r, 3 * S, S), 2 * WN_RESTART_PAUSE_US);
    assert_int_equal(wn_restarts_pause(&r, 9 * S, WN_RESTART_YOUNG_US), WN_RESTART_PAUSE_US);
    assert_int_equal(wn_restarts_pause(&r, 15 * S, 5 * S), WN_RESTART_PAUSE_US);
    assert_int_equal(wn_restarts_pause(&r, 16 * S, S), WN_RESTART_PAUSE_US);
}

static void too_many_in_a_minute(void **state)
{
    const int64_t up = 1000 * S; /* the clock's zero is long ago */
    struct wn_restarts r = {0};

    (void)state;
    for (int i = 0; i < WN_RESTARTS_MAX; i++) assert_true(wn_restarts_pause(&r, up + 5 * S * i, 2 * S) > 0);
    assert_int_equal(wn_restarts_pause(&r, up + 59 * S, 2 * S), -1);
    assert_true(wn_restarts_pause(&r, up + 61 * S, 2 * S) > 0);
    r = (struct wn_restarts){0};
    for (int i = 0; i < 5 * WN_RESTARTS_MAX; i++) assert_true(wn_restarts_pause(&r, 7 * S * i, 2 * S) > 0);
}

/* Killed all the time, but not because it cannot run. */
static void long_lives_are_not_counted(void **state)
{
    struct wn_restarts r = {0};

    (void)state;
    for (int i = 0; i < 5 * WN_RESTARTS_MAX; i++)
        assert_int_equal(wn_restarts_pause(&r, 3 * S * i, WN_RESTART_YOUNG_US), WN_RESTART_PAUSE_US);
    assert_int_equal(wn_restarts_pause(&r, 151 * S, S), WN_RESTART_PAUSE_US);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pauses_double_while_it_dies_young),
        cmocka_unit_test(a_long_life_forgives),
        cmocka_unit_test(too_many_in_a_minute),
        cmocka_unit_test(long_lives_are_not_counted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
