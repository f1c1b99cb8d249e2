/* tests/unit/test_gen_life.c - daemon/gen_life: every order of events up to DEPTH. What a job takes it gives back once,
 * it is answered once, no token of an attempt is drawn twice, and it is never stuck. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>

#include "daemon/gen_life.h"

#define DEPTH 10

/* What a correct engine has done by now, kept apart from the table. */
struct history {
    int takes, gives, answers, sends, lands;
    wn_gen_event path[DEPTH];
    int n;
};

static unsigned long orders;
static bool reached[WN_GEN_STATES];

static bool is_end(wn_gen_event e)
{
    return e == WN_GEN_FINISH || e == WN_GEN_FAIL || e == WN_GEN_CANCEL || e == WN_GEN_DROP;
}

static void check(const struct wn_gen_life *life, const struct history *h)
{
    const bool ended = h->answers > 0;

    assert_in_range(h->takes - h->gives, 0, 1);
    assert_int_equal(wn_gen_holds(life), h->takes > h->gives);
    assert_in_range(h->answers, 0, 1);
    assert_int_equal(wn_gen_ended(life), ended);
    if (ended) assert_int_equal(h->takes, h->gives);
    assert_int_equal(life->flying, h->sends - h->lands);
    assert_int_equal(wn_gen_gone(life), ended && h->sends == h->lands);
    assert_true(life->state < WN_GEN_STATES);
}

static void walk(struct wn_gen_life life, struct history h)
{
    orders++;
    reached[life.state] = true;
    check(&life, &h);
    if (h.n == DEPTH) return;
    for (int e = 0; e < WN_GEN_EVENTS; e++) {
        struct wn_gen_life then = life;
        struct history with = h;
        const bool held = wn_gen_holds(&life);
        if (!wn_gen_apply(&then, (wn_gen_event)e)) {
            assert_memory_equal(&then, &life, sizeof(life)); /* refused: as it was */
            continue;
        }
        with.path[with.n++] = (wn_gen_event)e;
        with.sends += e == WN_GEN_SEND;
        with.lands += e == WN_GEN_LAND;
        with.answers += is_end((wn_gen_event)e);
        with.takes += !held && wn_gen_holds(&then);
        with.gives += held && !wn_gen_holds(&then);
        /* memory of the replica is entered by one door */
        if (!held && wn_gen_holds(&then)) assert_int_equal(e, WN_GEN_ADMIT);
        /* no rows without memory; no second row while the token of the first is not known */
        if (e == WN_GEN_SEND) assert_true(held && !(life.state == WN_GEN_DECODE && life.flying));
        if (e == WN_GEN_ADMIT) assert_int_equal(life.flying, 0);
        /* after the end nothing counts but rows that come back */
        if (wn_gen_ended(&life)) assert_int_equal(e, WN_GEN_LAND);
        walk(then, with);
    }
}

static void test_every_order(void **state)
{
    struct wn_gen_life life;
    struct history none;
    (void)state;
    memset(&life, 0, sizeof(life));
    memset(&none, 0, sizeof(none));
    walk(life, none);
    print_message("%lu orders of up to %d events\n", orders, DEPTH);
    for (int s = 0; s < WN_GEN_STATES; s++)
        if (!reached[s]) fail_msg("no order of events leads to state %d", s);
}

/* From everywhere that lives a cancel and the rows on their way are enough to be gone. */
static void test_nothing_is_stuck(void **state)
{
    (void)state;
    for (int s = 0; s < WN_GEN_STATES; s++) {
        for (uint32_t flying = 0; flying < 3; flying++) {
            struct wn_gen_life life = {.state = (wn_gen_state)s, .flying = flying};
            assert_int_equal(wn_gen_apply(&life, WN_GEN_CANCEL), s < WN_GEN_DONE);
            while (life.flying) assert_true(wn_gen_apply(&life, WN_GEN_LAND));
            assert_false(wn_gen_apply(&life, WN_GEN_LAND));
            assert_true(wn_gen_gone(&life));
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_order),
        cmocka_unit_test(test_nothing_is_stuck),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
