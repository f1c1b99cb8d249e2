/* tests/unit/test_words.c - what a mistyped word is taken for. */
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/words.h"

static void distances(void **state)
{
    char longest[WN_WORD_MAX + 2];

    (void)state;
    assert_int_equal(wn_word_distance("", ""), 0);
    assert_int_equal(wn_word_distance("serve", "serve"), 0);
    assert_int_equal(wn_word_distance("", "top"), 3);
    assert_int_equal(wn_word_distance("sevre", "serve"), 2);
    assert_int_equal(wn_word_distance("kitten", "sitting"), 3);
    memset(longest, 'a', sizeof(longest));
    longest[WN_WORD_MAX] = '\0';
    assert_int_equal(wn_word_distance(longest, longest), 0);
    memset(longest, 'a', sizeof(longest) - 1);
    longest[WN_WORD_MAX + 1] = '\0';
    assert_int_equal(wn_word_distance(longest, "a"), UINT_MAX);
    assert_int_equal(wn_word_distance("a", longest), UINT_MAX);
}

static const char *nearest(const char *typed)
{
    static const char *const known[] = {"ask", "serve", "status", "run-batch"};
    const char *best = NULL;
    unsigned distance = UINT_MAX;

    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (wn_word_is_nearer(typed, known[i], &distance)) best = known[i];
    return best;
}

static void the_nearest(void **state)
{
    (void)state;
    assert_string_equal(nearest("servr"), "serve");
    assert_string_equal(nearest("stats"), "status");
    assert_string_equal(nearest("run_batch"), "run-batch");
    assert_null(nearest("as you like it"));
    assert_null(nearest("xyz")); /* three letters of "ask": all of it */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(distances),
        cmocka_unit_test(the_nearest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
