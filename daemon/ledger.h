/* daemon/ledger.h - what a leader has of the scheduler's jobs and has said about them, so that a scheduler that was
 * started again can take the jobs over where they run.
 *
 * A job is in the ledger from its order until its end was told long enough ago. Every answer is kept as the frame that
 * was sent: the next scheduler says how many tokens of a job it has, and gets the rest. Saying a frame twice does no
 * harm, since tokens are numbered and a job ends once.
 * Owns:    its jobs and copies of their frames, from create to destroy.
 * Threads: one at a time (the front's).
 * Fails:   a job that cannot be kept for want of memory leaves the ledger: it is replayed instead of taken over. */
#ifndef WN_DAEMON_LEDGER_H
#define WN_DAEMON_LEDGER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/codec.h"

struct wn_ledger;

WN_NODISCARD wn_status wn_ledger_create(struct wn_ledger **out, struct wn_err *err);
void wn_ledger_destroy(struct wn_ledger *l); /* NULL is fine */

/* An order for this job came. One that is there already stays as it is. */
void wn_ledger_order(struct wn_ledger *l, const Wn__JobRef *job);

/* What an answer is, beside its frame. */
struct wn_ledger_note {
    uint32_t tokens; /* of the job's answer that are out with it */
    bool end;        /* Done or Error: nothing follows */
};

/* An answer about this job is going out; frame is copied. false: the job is not in the ledger. */
bool wn_ledger_said(struct wn_ledger *l, const Wn__JobRef *job, struct wn_ledger_note note, const void *frame,
                    size_t bytes, int64_t now_us);

void wn_ledger_drop(struct wn_ledger *l, const Wn__JobRef *job); /* it is no concern of the scheduler's any more */
void wn_ledger_clear(struct wn_ledger *l);
void wn_ledger_expire(struct wn_ledger *l, int64_t before_us); /* drops jobs that ended before that */

/* Lists the jobs in a Hello; borrowed until the ledger's next change. */
WN_NODISCARD wn_status wn_ledger_hello(struct wn_ledger *l, Wn__Hello *hello, struct wn_err *err);

/* Hands out the frames of a job that has more than `tokens` tokens, and its end, in the order they were said. */
void wn_ledger_resume(struct wn_ledger *l, const Wn__JobRef *job, uint32_t tokens,
                      void (*say)(void *arg, const void *frame, size_t bytes), void *arg);

size_t wn_ledger_size(const struct wn_ledger *l);

#endif
