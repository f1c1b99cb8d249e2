/* tests/unit/test_prune.c - the method table, the budget, and `none`. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "pruning/prune.h"

static void table(void **state)
{
    struct wn_err err = {0};

    (void)state;
    assert_ptr_equal(wn_prune_find(NULL, &err), &wn_prune_none);
    assert_ptr_equal(wn_prune_find("", &err), &wn_prune_none);
    assert_ptr_equal(wn_prune_find("none", &err), &wn_prune_none);
    assert_null(wn_prune_find("x", &err));
    assert_int_equal(err.code, WN_ENOENT);
    assert_non_null(strstr(err.text, "pruning method 'x' is not known; known: none"));
    for (size_t i = 0; wn_prune_methods[i]; i++) {
        assert_non_null(wn_prune_methods[i]->run);
        assert_ptr_equal(wn_prune_find(wn_prune_methods[i]->name, &err), wn_prune_methods[i]);
    }
}

static void budget(void **state)
{
    static const struct {
        uint32_t keep;
        float rate;
        uint32_t rows, want;
    } cases[] = {
        {0, 0, 576, 576},    {64, 0, 576, 64},     {64, 0.5f, 576, 64}, {600, 0, 576, 576},
        {0, 0.5f, 576, 288}, {0, 0.889f, 576, 64}, {0, 0.99f, 10, 1},   {0, 0.5f, 0, 0},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct wn_prune_budget b = {.keep = cases[i].keep, .rate = cases[i].rate};
        assert_int_equal(wn_prune_count(&b, cases[i].rows), cases[i].want);
    }
}

static void none_keeps_all(void **state)
{
    float rows[7 * 2] = {0};
    uint32_t index[7];
    struct wn_prune_in in = {.rows = 7, .width = 2, .features = rows};
    struct wn_prune_out out = {.index = index};
    struct wn_err err = {0};

    (void)state;
    assert_int_equal(wn_prune_none.run(&in, &out, &err), WN_OK);
    assert_int_equal(out.rows, 7);
    for (uint32_t i = 0; i < 7; i++) assert_int_equal(index[i], i);
    in.rows = 0;
    assert_int_equal(wn_prune_none.run(&in, &out, &err), WN_EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(table),
        cmocka_unit_test(budget),
        cmocka_unit_test(none_keeps_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
