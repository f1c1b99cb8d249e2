/* daemon/batcher.h - who gets into the next step, and what a job holds meanwhile: a slot, KV pages, feature slots.
 *
 * Each step takes one row of every sequence that decodes, and fills up to --max-num-batched-tokens with prompt rows
 * of the oldest jobs. A job enters a slot when its features are here, there is room for a row of it, and there are
 * pages for its rows and one more for each job that runs, in order of arrival; nobody overtakes, so a long prompt
 * does not starve. Prompts that begin alike share the pages of their beginning, also when they come together, as
 * the answers of one request do; of a page that they would go on writing, the one that came later gets a copy, once
 * a step has filled it. Further pages are taken row by row. When they run out the youngest job is
 * preempted: it gives back what it holds and waits in its place, by arrival, until there are pages for its prompt
 * and the tokens so far, which it computes again (what is still in the prefix cache it finds there). So the oldest
 * job always goes on, and as results do not depend on chunks, neighbours or page numbers, no answer changes. Every
 * rank runs the records in order: what a job gives back while rows of it are still on their way may be lent again
 * in the next record.
 *
 * A prompt that has the replica to itself is cut into chunks, so that every stage has one to work on: as one chunk it
 * would keep one stage busy at a time.
 *
 * Bookkeeping only: no message, no replica. The engine ships the records and says what their tokens mean.
 *
 * Owns:    the jobs, from add until they have ended and no row of theirs is on its way; pages and the prefix cache.
 * Threads: engine only. */
#ifndef WN_DAEMON_BATCHER_H
#define WN_DAEMON_BATCHER_H

#include "daemon/engine_job.h"

struct wn_batcher;

/* What steps go through. */
struct wn_pipeline {
    uint32_t depth;     /* steps on their way at a time, at most */
    uint32_t stages;
    uint32_t chunk_min; /* a step of fewer rows takes no less time; 0: not known, prompts are not cut for stages */
};

/* A step on its way: whose sequences it has. */
struct wn_flight {
    struct wn_gen_job **order; /* [seqs_n] */
    uint32_t seqs_n, flags;
};

struct wn_batcher_load {
    uint32_t waiting, running; /* jobs without and with a slot; those that have ended count as neither */
    uint32_t pages_used, feature_slots_used;
    uint32_t features; /* images whose features are here, of all jobs in the list */
    uint64_t preemptions; /* since the start */
};

/* Rows of a chunk when `rows` rows of a prompt have the pipeline to themselves: in k chunks they take the time of
 * rows * (1 + (stages - 1) / k), so as many chunks as chunk_min allows, and no more than win a few hundredths. */
uint32_t wn_pipeline_chunk(const struct wn_pipeline *pipe, uint32_t rows);

WN_NODISCARD wn_status wn_batcher_create(struct wn_batcher **out, const struct wn_step_limits *limits,
                                         const struct wn_pipeline *pipe, struct wn_err *err);
void wn_batcher_destroy(struct wn_batcher *b); /* NULL is fine; without jobs no page may be lent any more */

void wn_batcher_add(struct wn_batcher *b, struct wn_gen_job *job); /* takes the job: it is the youngest now */
struct wn_gen_job *wn_batcher_oldest(const struct wn_batcher *b);  /* NULL: none; job->next is the one after */

/* WN_ELIMIT: the job, which is laid out, could not run if it had the pool for itself. */
WN_NODISCARD wn_status wn_batcher_check(const struct wn_batcher *b, const struct wn_gen_job *job, struct wn_err *err);

/* The job has been answered; `how` ended it. It gives back what it holds, and stays in the list until a reap. */
void wn_batcher_end(struct wn_batcher *b, struct wn_gen_job *job, wn_gen_event how);
void wn_batcher_reap(struct wn_batcher *b); /* destroys ended jobs of which nothing is on its way */

/* Fills a cleared record; the caller may set flags. Data of its features is in wn_batcher_features() until the next
 * fill. Either wn_batcher_begun follows, or, if the record is of no use (wn_batcher_is_idle), the next fill. */
void wn_batcher_fill(struct wn_batcher *b, struct wn_step_record *rec);
bool wn_batcher_is_idle(const struct wn_step_record *rec); /* says nothing to anybody */
const void *const *wn_batcher_features(const struct wn_batcher *b);
void wn_batcher_begun(struct wn_batcher *b, const struct wn_step_record *rec);

/* The oldest step is over; valid until wn_batcher_begun. Jobs in it may have ended meanwhile. */
const struct wn_flight *wn_batcher_landed(struct wn_batcher *b);
uint32_t wn_batcher_in_flight(const struct wn_batcher *b);

void wn_batcher_load(const struct wn_batcher *b, struct wn_batcher_load *load);

#endif
