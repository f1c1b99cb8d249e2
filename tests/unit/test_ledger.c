/* tests/unit/test_ledger.c - what a leader lists after its scheduler was started again, and what it says once more. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/ledger.h"

static char id_a[] = "01ARZ3NDEKTSV4RRFFQ69G5FAV", id_b[] = "01ARZ3NDEKTSV4RRFFQ69G5FAW";

static Wn__JobRef ref(char *id, uint32_t attempt)
{
    Wn__JobRef r = WN__JOB_REF__INIT;

    r.job_id = id;
    r.attempt = attempt;
    return r;
}

static bool said(struct wn_ledger *l, Wn__JobRef r, uint32_t tokens, const char *frame, int64_t now_us)
{
    const struct wn_ledger_note note = {.tokens = tokens, .end = tokens == 0};
    return wn_ledger_said(l, &r, note, frame, strlen(frame), now_us);
}

static void collect(void *arg, const void *frame, size_t bytes)
{
    strncat(arg, frame, bytes);
}

static void expect_resumed(struct wn_ledger *l, Wn__JobRef r, uint32_t tokens, const char *want)
{
    char got[64] = "";

    wn_ledger_resume(l, &r, tokens, collect, got);
    assert_string_equal(got, want);
}

static void says_what_was_not_heard(void **state)
{
    const Wn__JobRef a = ref(id_a, 1), b = ref(id_b, 3);
    struct wn_ledger *l = NULL;
    Wn__Hello h = WN__HELLO__INIT;

    (void)state;
    assert_int_equal(wn_ledger_create(&l, NULL), WN_OK);
    assert_int_equal(wn_ledger_hello(l, &h, NULL), WN_OK);
    assert_int_equal(h.n_running, 0);
    wn_ledger_order(l, &a);
    wn_ledger_order(l, &b);
    wn_ledger_order(l, &b); /* said twice */
    assert_false(said(l, ref(id_a, 2), 1, "x", 1)); /* another attempt is another job */
    assert_true(said(l, b, 8, "h", 1));             /* a replay that goes on after 7 */
    assert_true(said(l, b, 9, "i", 1));
    assert_int_equal(wn_ledger_hello(l, &h, NULL), WN_OK);
    assert_int_equal(h.n_running, 2);
    assert_int_equal(h.n_answering, 1);
    assert_true(wn_jobref_equal(h.running[0], &a) && wn_jobref_equal(h.answering[0], &b));
    expect_resumed(l, b, 7, "hi");
    expect_resumed(l, b, 8, "i");
    expect_resumed(l, b, 9, "");
    assert_true(said(l, b, 0, "!", 5));
    expect_resumed(l, b, 9, "!"); /* the end in any case: that it was heard is not known */
    expect_resumed(l, a, 0, "");
    wn_ledger_destroy(l);
}

static void forgets(void **state)
{
    const Wn__JobRef a = ref(id_a, 1), b = ref(id_b, 1), bad = ref("short", 1);
    struct wn_ledger *l = NULL;

    (void)state;
    assert_int_equal(wn_ledger_create(&l, NULL), WN_OK);
    wn_ledger_order(l, &bad);
    wn_ledger_order(l, &a);
    wn_ledger_order(l, &b);
    assert_int_equal(wn_ledger_size(l), 2);
    assert_true(said(l, a, 0, "end", 100));
    wn_ledger_expire(l, 100);
    assert_int_equal(wn_ledger_size(l), 2);
    wn_ledger_expire(l, 101); /* b has not ended */
    assert_int_equal(wn_ledger_size(l), 1);
    wn_ledger_drop(l, &a);
    wn_ledger_drop(l, &b);
    wn_ledger_order(l, &a); /* the list's end is where it belongs */
    assert_int_equal(wn_ledger_size(l), 1);
    wn_ledger_clear(l);
    assert_int_equal(wn_ledger_size(l), 0);
    wn_ledger_destroy(l);
    wn_ledger_destroy(NULL);
}

/* As many jobs as a Hello can name: each is itself, and what comes after that is not taken over. */
static void many_jobs(void **state)
{
    static const char digits[] = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    struct wn_ledger *l = NULL;
    Wn__Hello h = WN__HELLO__INIT;
    char id[] = "01ARZ3NDEKTSV4RRFFQ69G5FAV", frame[8];

    (void)state;
    assert_int_equal(wn_ledger_create(&l, NULL), WN_OK);
    for (uint32_t i = 0; i <= WN_RUNNING_MAX; i++) {
        const Wn__JobRef r = ref(id, 1);
        for (int k = 0; k < 3; k++) id[25 - k] = digits[i >> 5 * k & 31];
        snprintf(frame, sizeof(frame), "%u", i);
        wn_ledger_order(l, &r);
        assert_int_equal(said(l, r, 1, frame, 1), i < WN_RUNNING_MAX);
    }
    assert_int_equal(wn_ledger_size(l), WN_RUNNING_MAX);
    for (uint32_t i = 0; i < WN_RUNNING_MAX; i++) {
        const Wn__JobRef r = ref(id, 1);
        for (int k = 0; k < 3; k++) id[25 - k] = digits[i >> 5 * k & 31];
        snprintf(frame, sizeof(frame), "%u", i);
        expect_resumed(l, r, 0, frame);
        if (i % 3) wn_ledger_drop(l, &r);
        expect_resumed(l, r, 0, i % 3 ? "" : frame);
    }
    assert_int_equal(wn_ledger_hello(l, &h, NULL), WN_OK);
    assert_int_equal(h.n_running, WN_RUNNING_MAX / 3 + 1);
    assert_int_equal(h.n_answering, h.n_running);
    wn_ledger_destroy(l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(says_what_was_not_heard), cmocka_unit_test(forgets),
                                       cmocka_unit_test(many_jobs)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
