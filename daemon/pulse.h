/* daemon/pulse.h - signs of life between the ranks of a replica, beside MPI: a rank that is stopped, or a host that is
 * gone, is noticed within the lease, however long a step may take and also when there is none.
 *
 * Every other rank has a thread that sends a Heartbeat to the leader's features endpoint and wants one back; the
 * leader's front keeps the times (wn_roll). Whoever misses the other side cancels the link, so that its main thread
 * leaves what it waits for and ends the group; a main thread that does not come back in time is ended with its process.
 * So is one that hangs while the rest of its process lives: it notes no progress (base/progress.h) for stall_ms. Until
 * then the scheduler is told, and gives places at vision workers that it holds to others.
 *
 * Owns:    the pulse its thread and socket, from start to stop; the link is borrowed until then.
 * Threads: start and stop from the main thread; a roll is used by one thread.
 * Fails:   start: WN_EIO, WN_EINVAL (the address), WN_ENOMEM. */
#ifndef WN_DAEMON_PULSE_H
#define WN_DAEMON_PULSE_H

#include "base/key.h"
#include "base/progress.h"
#include "proto/codec.h"
#include "transport/link.h"

struct wn_pulse;

struct wn_pulse_opts {
    const char *leader; /* address of its features endpoint; borrowed until start returns */
    struct wn_link *link;
    uint32_t rank, beat_ms, lease_ms;
    uint32_t stall_ms; /* that the main thread may do nothing; 0: for ever */
    const struct wn_key *key; /* the workers', borrowed until stop; NULL: plain text */
    bool insecure;            /* plain text even to another machine */
};

WN_NODISCARD wn_status wn_pulse_start(struct wn_pulse **out, const struct wn_pulse_opts *opts, struct wn_err *err);
void wn_pulse_stop(struct wn_pulse *p); /* NULL is fine */

/* For how long this process's main thread has done nothing, in ms. For a thread that polls, about every beat_ms; longer
 * than limit_ms (0: none): the group is ended, as below. */
uint64_t wn_pulse_stalled(struct wn_stall *stall, uint32_t beat_ms, uint32_t limit_ms, struct wn_link *link,
                          int64_t *ending_us);

/* Cancels the link, and ends this process if the main thread has not come back from it in time. For a thread that
 * polls: call it again and again. *ending_us is 0 before the first call. */
void wn_pulse_end_group(struct wn_link *link, int64_t *ending_us);

/* The leader's list of ranks: when each was heard. */
struct wn_roll {
    Wn__RankInfo **ranks; /* [n] borrowed; all but rank, host and pid is filled in here */
    int64_t *heard_us;    /* [n] owned */
    size_t n;
};

/* At the start every rank has `first_us` to be heard. ranks NULL: nobody is watched. */
WN_NODISCARD wn_status wn_roll_init(struct wn_roll *r, Wn__RankInfo **ranks, size_t n, int64_t first_us,
                                    struct wn_err *err);
void wn_roll_fini(struct wn_roll *r);

/* Takes down what a rank says. false: it is none of ours. */
bool wn_roll_heard(struct wn_roll *r, const Wn__Heartbeat *beat, int64_t now_us);

/* Brings last_seen_ms up to date. Returns a rank that was silent for longer than lease_us, or -1. */
int wn_roll_call(struct wn_roll *r, int64_t now_us, int64_t lease_us);

#endif
