/* tests/unit/test_accounts.c - turns, limits and rates of clients. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/accounts.h"

static struct wn_peer_id peer(uint8_t n)
{
    return (struct wn_peer_id){.n = 1, .bytes = {n}};
}

static struct wn_account *of(struct wn_accounts *a, uint8_t n, int64_t now_us)
{
    const struct wn_peer_id who = peer(n);
    struct wn_account *acc = wn_account_open(a, &who, now_us);

    assert_non_null(acc);
    return acc;
}

/* Whose job goes next; takes it. 0: nobody's. */
static uint8_t next(struct wn_accounts *a)
{
    struct wn_account *acc = a->turn_first;

    if (!acc) return 0;
    wn_ticket_leave(a, acc->first, true);
    return acc->who.bytes[0];
}

static void round_robin(void **state)
{
    struct wn_accounts a = {.jobs_max = 100};
    struct wn_ticket many[4] = {{0}}, few[2] = {{0}}, one = {0};

    (void)state;
    for (int i = 0; i < 4; i++) {
        wn_ticket_open(&many[i], of(&a, 1, 0));
        wn_ticket_queue(&a, &many[i], false);
    }
    for (int i = 0; i < 2; i++) {
        wn_ticket_open(&few[i], of(&a, 2, 0));
        wn_ticket_queue(&a, &few[i], false);
    }
    wn_ticket_open(&one, of(&a, 3, 0));
    wn_ticket_queue(&a, &one, false);
    assert_int_equal(next(&a), 1);
    assert_int_equal(next(&a), 2);
    assert_int_equal(next(&a), 3);
    assert_ptr_equal(of(&a, 1, 0)->first, &many[1]); /* oldest first */
    assert_int_equal(next(&a), 1);
    assert_int_equal(next(&a), 2);
    wn_ticket_queue(&a, &one, true); /* its worker was lost */
    assert_int_equal(next(&a), 3);
    wn_ticket_close(&a, &many[2]); /* cancelled while it is queued */
    wn_ticket_close(&a, &many[2]);
    assert_int_equal(next(&a), 1);
    assert_int_equal(next(&a), 0);
    assert_int_equal(of(&a, 1, 0)->jobs, 3);
    wn_accounts_fini(&a);
}

static void limits(void **state)
{
    struct wn_accounts a = {.jobs_max = 2};
    struct wn_ticket t[2] = {{0}};
    uint32_t retry_ms = 9;

    (void)state;
    assert_true(wn_account_allows(&a, of(&a, 1, 0), 2, 0, &retry_ms));
    assert_false(wn_account_allows(&a, of(&a, 1, 0), 3, 0, &retry_ms));
    assert_int_equal(retry_ms, 0);
    for (int i = 0; i < 2; i++) wn_ticket_open(&t[i], of(&a, 1, 0));
    assert_false(wn_account_allows(&a, of(&a, 1, 0), 1, 0, &retry_ms));
    assert_true(wn_account_allows(&a, of(&a, 2, 0), 1, 0, &retry_ms));
    wn_ticket_close(&a, &t[0]);
    assert_true(wn_account_allows(&a, of(&a, 1, 0), 1, 0, &retry_ms));
    wn_accounts_sweep(&a, 0); /* 2 has nothing here; 1 has a job */
    assert_int_equal(a.n, 1);
    wn_ticket_close(&a, &t[1]);
    wn_accounts_sweep(&a, 0);
    assert_int_equal(a.n, 0);
    wn_accounts_fini(&a);
}

static void rate(void **state)
{
    struct wn_accounts a = {.jobs_max = 100, .jobs_per_s = 4};
    struct wn_account *acc = of(&a, 1, 1000000);
    uint32_t retry_ms;

    (void)state;
    for (int i = 0; i < 4; i++) assert_true(wn_account_allows(&a, acc, 1, 1000000, &retry_ms)); /* one second's worth */
    assert_false(wn_account_allows(&a, acc, 1, 1000000, &retry_ms));
    assert_int_equal(retry_ms, 251);
    wn_accounts_sweep(&a, 1000000); /* it owes: it is not forgotten */
    assert_int_equal(a.n, 1);
    assert_false(wn_account_allows(&a, acc, 1, 1249000, &retry_ms));
    assert_true(wn_account_allows(&a, acc, 1, 1251000, &retry_ms));
    assert_false(wn_account_allows(&a, acc, 1, 1251000, &retry_ms));
    assert_true(wn_account_allows(&a, acc, 10, 9000000, &retry_ms)); /* never more at once than a full bucket ... */
    assert_false(wn_account_allows(&a, acc, 1, 10000000, &retry_ms)); /* ... but what is over it is owed */
    assert_true(wn_account_allows(&a, acc, 1, 10800000, &retry_ms));
    wn_accounts_sweep(&a, 60000000);
    assert_int_equal(a.n, 0);
    wn_accounts_fini(&a);
}

/* One job in two seconds: the bucket holds one. */
static void slow_rate(void **state)
{
    struct wn_accounts a = {.jobs_max = 100, .jobs_per_s = 0.5};
    struct wn_account *acc = of(&a, 1, 0);
    uint32_t retry_ms;

    (void)state;
    assert_true(wn_account_allows(&a, acc, 1, 0, &retry_ms));
    assert_false(wn_account_allows(&a, acc, 1, 0, &retry_ms));
    assert_int_equal(retry_ms, 2001);
    assert_false(wn_account_allows(&a, acc, 1, 1999000, &retry_ms));
    assert_true(wn_account_allows(&a, acc, 1, 2001000, &retry_ms));
    wn_accounts_fini(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_robin),
        cmocka_unit_test(limits),
        cmocka_unit_test(rate),
        cmocka_unit_test(slow_rate),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
