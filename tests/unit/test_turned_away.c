/* tests/unit/test_turned_away.c - the list of workers that may not work here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/utf8.h"
#include "daemon/turned_away.h"

#define VISION WN__ROLE__ROLE_VISION
#define LEADER WN__ROLE__ROLE_LEADER

static struct wn_turned_away_list list;

static int setup(void **state)
{
    (void)state;
    memset(&list, 0, sizeof(list));
    return 0;
}

static bool note(Wn__Role role, const char *name, const char *host, const char *why, int64_t now_us)
{
    return wn_turned_away_note(&list, role, name, host, why, now_us);
}

/* Who asks again and again is one entry; another reason begins anew. */
static void one_that_asks_again(void **state)
{
    (void)state;
    assert_true(note(VISION, "vision-0", "n1", "another model", 100));
    assert_false(note(VISION, "vision-0", "n1", "another model", 200));
    assert_int_equal(list.n, 1);
    assert_int_equal(list.of[0].times, 2);
    assert_int_equal(list.of[0].since_us, 100);
    assert_int_equal(list.of[0].last_us, 200);
    assert_true(note(VISION, "vision-0", "n1", "another version", 300));
    assert_int_equal(list.n, 1);
    assert_int_equal(list.of[0].since_us, 300);
    assert_int_equal(list.of[0].times, 1);
    assert_string_equal(list.of[0].why, "another version");
    assert_true(note(LEADER, "vision-0", "n1", "another version", 300)); /* somebody else, all three */
    assert_true(note(VISION, "vision-1", "n1", "another version", 300));
    assert_true(note(VISION, "vision-0", "n2", "another version", 300));
    assert_int_equal(list.n, 4);
    assert_int_equal(list.total, 6);
}

/* Who is let in is forgotten on every host; the others stay in order. */
static void let_in(void **state)
{
    (void)state;
    note(VISION, "vision-0", "n1", "a", 1);
    note(VISION, "vision-1", "n1", "b", 2);
    note(VISION, "vision-0", "n2", "c", 3);
    note(LEADER, "vision-0", "n1", "d", 4);
    wn_turned_away_forget(&list, VISION, "vision-0");
    assert_int_equal(list.n, 2);
    assert_string_equal(list.of[0].why, "b");
    assert_string_equal(list.of[1].why, "d");
    wn_turned_away_expire(&list, 2 + WN_TURNED_AWAY_KEPT_US);
    assert_int_equal(list.n, 2);
    wn_turned_away_expire(&list, 3 + WN_TURNED_AWAY_KEPT_US);
    assert_int_equal(list.n, 1);
    assert_string_equal(list.of[0].why, "d");
    assert_int_equal(list.total, 4);
}

/* However many come, the list has its length: the place of who has been quiet for longest is taken. */
static void a_crowd(void **state)
{
    char name[32], text[1024];

    (void)state;
    for (int i = 0; i < 100; i++) {
        snprintf(name, sizeof(name), "vision-%d", i);
        note(VISION, name, "n", "no", 10 + i);
        note(VISION, "vision-0", "n", "no", 10 + i); /* never quiet */
    }
    assert_int_equal(list.n, WN_TURNED_AWAY_MAX);
    assert_string_equal(list.of[0].name, "vision-0");
    for (uint32_t i = 1; i < list.n; i++) assert_true(list.of[i].last_us >= 10 + 100 - WN_TURNED_AWAY_MAX);

    memset(text, 'x', sizeof(text));
    text[sizeof(text) - 1] = '\0';
    assert_true(note(VISION, text, text, text, 1000)); /* cut, and known again */
    assert_false(note(VISION, text, text, text, 1001));
    for (size_t i = 1; i < sizeof(text) - 1; i++) text[i] = i % 2 ? '\xc3' : '\xa9'; /* x and many two-byte letters */
    assert_true(note(LEADER, "a", "b", text, 1002));
    assert_false(note(LEADER, "a", "b", text, 1003));
    note(LEADER, "\033[2Jname", "n\n", "why", 1004);
    wn_turned_away_forget(&list, LEADER, "?[2Jname");
    for (uint32_t i = 0; i < list.n; i++) assert_null(strchr(list.of[i].host, '\n'));
    for (uint32_t i = 0; i < list.n; i++) assert_true(wn_utf8_valid(list.of[i].why, strlen(list.of[i].why)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test_setup(one_that_asks_again, setup),
                                       cmocka_unit_test_setup(let_in, setup), cmocka_unit_test_setup(a_crowd, setup)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
