/* daemon/accounts.c - see accounts.h. */
#include "daemon/accounts.h"

#include <stdlib.h>
#include <string.h>

#include "base/hash.h"

static uint32_t bucket_of(const struct wn_peer_id *who)
{
    return wn_hash(who->bytes, who->n) % WN_ACCOUNTS_BUCKETS; /* ids are the scheduler's own choice, or keys */
}

static double burst(const struct wn_accounts *a)
{
    return a->jobs_per_s > 1 ? a->jobs_per_s : 1;
}

static void refill(const struct wn_accounts *a, struct wn_account *acc, int64_t now_us)
{
    acc->allowance += (double)(now_us - acc->allowance_us) * 1e-6 * a->jobs_per_s;
    if (acc->allowance > burst(a)) acc->allowance = burst(a);
    acc->allowance_us = now_us;
}

void wn_accounts_fini(struct wn_accounts *a)
{
    for (int i = 0; i < WN_ACCOUNTS_BUCKETS; i++) {
        while (a->buckets[i]) {
            struct wn_account *next = a->buckets[i]->next;
            free(a->buckets[i]);
            a->buckets[i] = next;
        }
    }
    memset(a, 0, sizeof(*a));
}

struct wn_account *wn_account_open(struct wn_accounts *a, const struct wn_peer_id *who, int64_t now_us)
{
    struct wn_account **bucket = &a->buckets[bucket_of(who)], *acc = *bucket;

    while (acc && !wn_peer_equal(&acc->who, who)) acc = acc->next;
    if (acc) return acc;
    if (a->n == WN_ACCOUNTS_MAX || !(acc = calloc(1, sizeof(*acc)))) return NULL;
    acc->who = *who;
    acc->allowance = burst(a);
    acc->allowance_us = now_us;
    acc->next = *bucket;
    *bucket = acc;
    a->n++;
    return acc;
}

bool wn_account_allows(struct wn_accounts *a, struct wn_account *acc, uint32_t jobs, int64_t now_us,
                       uint32_t *retry_ms)
{
    *retry_ms = 0;
    if (acc->jobs + jobs > a->jobs_max) return false;
    if (a->jobs_per_s <= 0) return true;
    refill(a, acc, now_us);
    /* more than a bucket holds may come when it is full, and is owed */
    if (acc->allowance >= (double)jobs || acc->allowance >= burst(a)) {
        acc->allowance -= (double)jobs;
        return true;
    }
    *retry_ms = 1 + (uint32_t)((((double)jobs < burst(a) ? (double)jobs : burst(a)) - acc->allowance) * 1000 /
                               a->jobs_per_s);
    return false;
}

void wn_ticket_open(struct wn_ticket *t, struct wn_account *acc)
{
    t->account = acc;
    acc->jobs++;
}

void wn_ticket_close(struct wn_accounts *a, struct wn_ticket *t)
{
    if (!t->account) return;
    wn_ticket_leave(a, t, false);
    t->account->jobs--;
    t->account = NULL;
}

/* ---- turns ---- */

static void turn_leave(struct wn_accounts *a, struct wn_account *acc)
{
    if (acc->turn_prev) acc->turn_prev->turn_next = acc->turn_next;
    else a->turn_first = acc->turn_next;
    if (acc->turn_next) acc->turn_next->turn_prev = acc->turn_prev;
    else a->turn_last = acc->turn_prev;
    acc->turn_prev = acc->turn_next = NULL;
}

static void turn_enter(struct wn_accounts *a, struct wn_account *acc, bool first)
{
    acc->turn_next = first ? a->turn_first : NULL;
    acc->turn_prev = first ? NULL : a->turn_last;
    *(acc->turn_next ? &acc->turn_next->turn_prev : &a->turn_last) = acc;
    *(acc->turn_prev ? &acc->turn_prev->turn_next : &a->turn_first) = acc;
}

void wn_ticket_queue(struct wn_accounts *a, struct wn_ticket *t, bool first)
{
    struct wn_account *acc = t->account;
    const bool had_turn = acc && acc->first;

    if (!acc || t->queued) return;
    t->queued = true;
    t->next = first ? acc->first : NULL;
    t->prev = first ? NULL : acc->last;
    if (t->next) t->next->prev = t;
    else acc->last = t;
    if (t->prev) t->prev->next = t;
    else acc->first = t;
    if (had_turn && first) turn_leave(a, acc);
    if (!had_turn || first) turn_enter(a, acc, first);
}

void wn_ticket_leave(struct wn_accounts *a, struct wn_ticket *t, bool served)
{
    struct wn_account *acc = t->account;

    if (!t->queued) return;
    if (t->prev) t->prev->next = t->next;
    else acc->first = t->next;
    if (t->next) t->next->prev = t->prev;
    else acc->last = t->prev;
    t->prev = t->next = NULL;
    t->queued = false;
    if (acc->first && !served) return;
    turn_leave(a, acc);
    if (acc->first) turn_enter(a, acc, false);
}

void wn_accounts_sweep(struct wn_accounts *a, int64_t now_us)
{
    for (int i = 0; i < WN_ACCOUNTS_BUCKETS; i++) {
        for (struct wn_account **at = &a->buckets[i], *acc; (acc = *at) != NULL;) {
            refill(a, acc, now_us);
            if (acc->jobs > 0 || (a->jobs_per_s > 0 && acc->allowance < burst(a))) {
                at = &acc->next;
                continue;
            }
            *at = acc->next;
            a->n--;
            free(acc);
        }
    }
}
