/* tests/unit/test_accounts.c - turns, limits and rates of clients; turns in random orders of events against a model. */
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

/* Who is told to come back is let in then, and not much sooner. */
static void retry_is_kept(void **state)
{
    static const double rates[] = {0.1, 0.5, 1, 1.5, 4, 250};

    (void)state;
    for (size_t i = 0; i < sizeof(rates) / sizeof(rates[0]); i++) {
        for (uint32_t jobs = 1; jobs <= 5; jobs++) {
            struct wn_accounts a = {.jobs_max = 100, .jobs_per_s = rates[i]};
            struct wn_account *acc = of(&a, 1, 0);
            int64_t now_us = 0;
            uint32_t retry_ms, early_ms;
            for (int k = 0; k < 20; k++) {
                while (wn_account_allows(&a, acc, jobs, now_us, &retry_ms)) continue;
                assert_true(retry_ms > 0);
                now_us += (int64_t)retry_ms * 1000 / 2; /* half of the time is half of the way */
                assert_false(wn_account_allows(&a, acc, jobs, now_us, &early_ms));
                assert_in_range(early_ms, retry_ms / 2, retry_ms / 2 + 2);
                now_us += (int64_t)early_ms * 1000;
                assert_true(wn_account_allows(&a, acc, jobs, now_us, &retry_ms));
            }
            wn_accounts_fini(&a);
        }
    }
}

/* More clients than buckets, and as many as there may be: each has an account of its own. */
static void many_clients(void **state)
{
    struct wn_accounts a = {.jobs_max = 100};
    struct wn_peer_id who = {.n = 4};
    struct wn_account *first = NULL;

    (void)state;
    for (uint32_t i = 0; i <= WN_ACCOUNTS_MAX; i++) {
        struct wn_account *acc;
        memcpy(who.bytes, &i, sizeof(i));
        acc = wn_account_open(&a, &who, 0);
        if (i == 0) first = acc;
        if (i == WN_ACCOUNTS_MAX) assert_null(acc);
        else assert_true(acc && acc->jobs == 0 && (acc == first) == (i == 0));
        if (acc) acc->jobs = 1; /* it would be seen in another's */
    }
    memset(who.bytes, 0, sizeof(who.bytes));
    assert_ptr_equal(wn_account_open(&a, &who, 0), first); /* who is known is found still */
    first->jobs = 0;
    wn_accounts_sweep(&a, 0);
    assert_int_equal(a.n, WN_ACCOUNTS_MAX - 1);
    wn_accounts_fini(&a);
}

/* ---- random orders of events against arrays that are searched ---- */

enum { CLIENTS = 4, TICKETS = 12 };

struct model {
    int turn[CLIENTS], turns_n;            /* clients with queued jobs, the next one first */
    int queue[CLIENTS][TICKETS], n[CLIENTS];
};

static void put(int *list, int *n, int what, bool first)
{
    if (first) memmove(list + 1, list, (size_t)*n * sizeof(*list));
    list[first ? 0 : *n] = what;
    (*n)++;
}

static bool take(int *list, int *n, int what)
{
    for (int i = 0; i < *n; i++) {
        if (list[i] != what) continue;
        memmove(list + i, list + i + 1, (size_t)(*n - i - 1) * sizeof(*list));
        (*n)--;
        return true;
    }
    return false;
}

static void model_queue(struct model *m, int client, int ticket, bool first)
{
    put(m->queue[client], &m->n[client], ticket, first);
    if (m->n[client] > 1 && !first) return;
    (void)take(m->turn, &m->turns_n, client);
    put(m->turn, &m->turns_n, client, first);
}

static void model_leave(struct model *m, int client, int ticket, bool served)
{
    if (!take(m->queue[client], &m->n[client], ticket)) return;
    if (m->n[client] > 0 && !served) return;
    (void)take(m->turn, &m->turns_n, client);
    if (m->n[client] > 0) put(m->turn, &m->turns_n, client, false);
}

static void check_model(const struct wn_accounts *a, const struct model *m, const struct wn_ticket *t)
{
    const struct wn_account *acc = a->turn_first;

    for (int i = 0; i < m->turns_n; i++, acc = acc->turn_next) {
        const struct wn_ticket *at;
        assert_non_null(acc);
        assert_int_equal(acc->who.bytes[0], m->turn[i]);
        at = acc->first;
        for (int k = 0; k < m->n[m->turn[i]]; k++, at = at->next) assert_ptr_equal(at, &t[m->queue[m->turn[i]][k]]);
        assert_null(at);
    }
    assert_null(acc);
}

static void any_order(void **state)
{
    uint64_t rng = 1;

    (void)state;
    for (int run = 0; run < 200; run++) {
        struct wn_accounts a = {.jobs_max = 100};
        struct wn_ticket t[TICKETS] = {{0}};
        struct model m = {.turns_n = 0};
        for (int i = 0; i < 100; i++) {
            int n, what, client;
            bool flag;
            rng = rng * 6364136223846793005ull + 1442695040888963407ull;
            n = (int)(rng >> 33) % TICKETS;
            what = (int)(rng >> 41) % 8;
            flag = rng >> 50 & 1;
            client = n % CLIENTS;
            if (what < 3) {
                if (!t[n].account) wn_ticket_open(&t[n], of(&a, (uint8_t)client, 0));
                if (!t[n].queued) model_queue(&m, client, n, flag);
                wn_ticket_queue(&a, &t[n], flag);
            } else if (what < 6) { /* one that is not there, too */
                model_leave(&m, client, n, flag);
                wn_ticket_leave(&a, &t[n], flag);
            } else {
                model_leave(&m, client, n, false);
                wn_ticket_close(&a, &t[n]);
                wn_ticket_queue(&a, &t[n], flag); /* nobody's: nothing happens */
            }
            check_model(&a, &m, t);
        }
        for (int n = 0; n < TICKETS; n++) wn_ticket_close(&a, &t[n]);
        assert_null(a.turn_first);
        wn_accounts_sweep(&a, 0);
        assert_int_equal(a.n, 0);
        wn_accounts_fini(&a);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_robin),
        cmocka_unit_test(limits),
        cmocka_unit_test(rate),
        cmocka_unit_test(slow_rate),
        cmocka_unit_test(retry_is_kept),
        cmocka_unit_test(many_clients),
        cmocka_unit_test(any_order),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
