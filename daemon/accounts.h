/* daemon/accounts.h - what each client has at the scheduler, whether it may have more, and whose turn it is.
 *
 * Turns go round-robin over the clients that have queued jobs, oldest job first within one client: who queues a
 * thousand jobs delays a client with one by one job. A job that comes back from a lost worker puts its client's turn
 * first. The rate is a token bucket that holds one second's worth, and at least one job.
 *
 * Owns:    the accounts. An account lives while its client has jobs, and until its bucket is full again.
 * Threads: one. Nothing here reads clocks or sockets.
 * Fails:   wn_account_open: NULL without memory, or with WN_ACCOUNTS_MAX accounts. */
#ifndef WN_DAEMON_ACCOUNTS_H
#define WN_DAEMON_ACCOUNTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "transport/endpoint.h"

#define WN_ACCOUNTS_MAX     65536
#define WN_ACCOUNTS_BUCKETS 256

struct wn_account;

/* A job's place in its client's queue; inside the job. Zero: none. */
struct wn_ticket {
    struct wn_account *account; /* NULL: no client is charged for it */
    struct wn_ticket *prev, *next;
    bool queued;
};

struct wn_account {
    struct wn_peer_id who;
    uint32_t jobs;        /* that have not ended */
    double allowance;     /* jobs that may come now, as of allowance_us */
    int64_t allowance_us;
    struct wn_ticket *first, *last;
    struct wn_account *turn_prev, *turn_next, *next;
};

struct wn_accounts {
    uint32_t jobs_max; /* of one client; set before use */
    double jobs_per_s; /* 0: no limit */
    struct wn_account *buckets[WN_ACCOUNTS_BUCKETS], *turn_first, *turn_last;
    uint32_t n;
};

void wn_accounts_fini(struct wn_accounts *a); /* tickets must not be used after it */

struct wn_account *wn_account_open(struct wn_accounts *a, const struct wn_peer_id *who, int64_t now_us);

/* Whether it may bring `jobs` more now. false: *retry_ms says when to ask again; 0: when one of its jobs has ended. */
bool wn_account_allows(struct wn_accounts *a, struct wn_account *acc, uint32_t jobs, int64_t now_us,
                       uint32_t *retry_ms);

/* The ticket's job is the account's from now on, until wn_ticket_close (which may be called twice). */
void wn_ticket_open(struct wn_ticket *t, struct wn_account *acc);
void wn_ticket_close(struct wn_accounts *a, struct wn_ticket *t);

/* Into its client's queue; first: before all others of the client, whose turn is next. */
void wn_ticket_queue(struct wn_accounts *a, struct wn_ticket *t, bool first);
/* Out of it. `served`: the client has had its turn. */
void wn_ticket_leave(struct wn_accounts *a, struct wn_ticket *t, bool served);

void wn_accounts_sweep(struct wn_accounts *a, int64_t now_us); /* forgets clients that owe nothing */

#endif
