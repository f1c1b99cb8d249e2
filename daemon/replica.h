/* daemon/replica.h - what every rank of a replica does in a step: take the record, run its stage, draw tokens.
 *
 * The leader (rank 0) sends a step record to every rank, all run their stage, and the last stage's tensor rank
 * 0 (the sampler) draws one token for each sequence that asked and sends them to the leader. A failure inside a
 * step is a failure of the group: whoever sees it returns it, and its process ends the replica.
 *
 * Owns:    stage, sampler, record buffers and, on the sampler, the token history of each slot; link and backend
 *          are borrowed until close. Close the link before the replica after a failure (see shard/decoder.h).
 * Threads: engine thread only.
 * Fails:   open: as wn_stage_open. Steps: WN_EPROTO (a record that breaks the limits), WN_ETIME, WN_EPEER, and
 *          what shard/decoder.h says. After a failed step the replica is good for close only. */
#ifndef WN_DAEMON_REPLICA_H
#define WN_DAEMON_REPLICA_H

#include "base/traffic.h"
#include "proto/step.h"
#include "shard/decoder.h"

struct wn_replica;

struct wn_replica_opts {
    struct wn_backend *be;
    struct wn_link *link; /* NULL: one rank */
    const struct wn_plan *plan;
    const struct wn_weights *weights;
    struct wn_step_limits limits;
    uint32_t tokens_max;     /* --max-model-len */
    int64_t step_timeout_us; /* a step that takes longer has lost a rank */
};

/* Time of a rank, or of a stage's ranks together, while there was something to run, in three parts that do not
 * overlap. wait_us is for a record, for the stage before to be done with its rows, or for tokens; at the leader also
 * for what it does between its steps. link_us is communication that no compute hides (struct wn_stage_waits). */
struct wn_stage_load {
    uint64_t busy_us, wait_us, link_us;
};

/* Since the start, all ranks together. */
struct wn_replica_stats {
    struct wn_traffic_table traffic;
    struct wn_stage_load stages[WN_STAGES_MAX]; /* [plan.stages] */
};

WN_NODISCARD wn_status wn_replica_open(struct wn_replica **out, const struct wn_replica_opts *opts,
                                       struct wn_err *err);
void wn_replica_close(struct wn_replica *r); /* NULL is fine */
struct wn_load_rate wn_replica_load_rate(const struct wn_replica *r); /* of this rank's weights */

/* Leader: steps that may be in flight at a time, so that no stage waits for another's tokens or for the leader. */
uint32_t wn_replica_depth(const struct wn_replica *r);

/* Leader: a cleared record to fill for the next step; valid until wn_replica_begin. */
struct wn_step_record *wn_replica_record(struct wn_replica *r);

/* Leader, with less than wn_replica_depth steps in flight: sends the record and runs stage 0's share of it.
 * features[i] is the data of record->features[i] (host memory, borrowed until the return). */
WN_NODISCARD wn_status wn_replica_begin(struct wn_replica *r, const void *const *features, struct wn_err *err);

/* Leader: waits for the oldest step in flight. tokens [limits.seqs_max] receives what was drawn, in the order of its
 * sequences. If it had WN_STEP_STATS, *stats is written. */
WN_NODISCARD wn_status wn_replica_collect(struct wn_replica *r, struct wn_step_token *tokens, uint32_t *tokens_n,
                                          struct wn_replica_stats *stats, struct wn_err *err);

/* Leader, with no step in flight: there is nothing to run, so the time until the next one is nobody's wait. */
void wn_replica_idle(struct wn_replica *r);

/* Leader, after a collect and until the next: the likeliest tokens at the place of tokens[i]. *n 0: not asked for. */
const struct wn_step_top *wn_replica_top(const struct wn_replica *r, uint32_t i, uint32_t *n);

/* Other ranks: waits for a record (as long as it takes) and runs it. *stop: the leader said to leave. */
WN_NODISCARD wn_status wn_replica_follow(struct wn_replica *r, bool *stop, struct wn_err *err);

#endif
