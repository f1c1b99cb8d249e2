/* daemon/engine_impl.h - the engine's parts among themselves: engine.c is the loop, engine_inbox.c what comes in,
 * engine_answer.c what goes out about a job. Who gets into a step is daemon/batcher.h. Not for others. */
#ifndef WN_DAEMON_ENGINE_IMPL_H
#define WN_DAEMON_ENGINE_IMPL_H

#include "daemon/batcher.h"
#include "daemon/engine.h"

#define WN_ENGINE_ORPHANS_MAX 64
#define WN_ENGINE_ENDED_MAX   64

/* Features that came before their order. */
struct wn_orphan {
    struct wn_front_msg *msg; /* NULL: the place is free */
    int64_t until_us;
};

/* A job that ended before all its features were here: those that still come are for nobody. */
struct wn_ended {
    char job_id[WN_JOB_ID_CHARS + 1];
    uint32_t attempt;
};

struct wn_engine {
    struct wn_engine_opts opts;
    struct wn_batcher *batcher;
    struct wn_step_token *tokens; /* [seqs_max] */
    struct wn_orphan orphans[WN_ENGINE_ORPHANS_MAX];
    struct wn_ended ended[WN_ENGINE_ENDED_MAX]; /* a ring of the last ones */
    uint32_t ended_at;
    bool draining, stats_due;
    int64_t stats_us;
};

/* ---- engine_inbox.c ---- */

void wn_engine_take(struct wn_engine *e, struct wn_front_msg *m); /* takes m */
void wn_engine_expire_orphans(struct wn_engine *e);

/* ---- engine_answer.c ---- */

/* Credit for the job's features that are here: they are in the replica, or will not be used. Once for each. */
void wn_engine_accept_features(struct wn_engine *e, struct wn_gen_job *job);
void wn_engine_send_ack(struct wn_engine *e, const struct wn_front_msg *m, const struct wn_err *err);

/* The last step's tokens[i] is the job's: its text goes out, and the job goes on or ends. */
void wn_engine_take_token(struct wn_engine *e, struct wn_gen_job *job, uint32_t i);

/* The end of a job: with an answer, with an error, or (end) without a word. */
void wn_engine_finish(struct wn_engine *e, struct wn_gen_job *job, Wn__FinishReason reason);
void wn_engine_fail(struct wn_engine *e, struct wn_gen_job *job, const struct wn_err *err);
void wn_engine_end(struct wn_engine *e, struct wn_gen_job *job, wn_gen_event how);

#endif
