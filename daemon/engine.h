/* daemon/engine.h - the leader's main loop: messages in, steps out, and what becomes of the tokens.
 *
 * Who gets into a step is daemon/batcher.h. A job that cannot be served is answered with an Error; a step that fails
 * ends the replica.
 *
 * Owns:    its jobs and the batcher. Replica, front, tokenizer and plan are borrowed until close.
 * Threads: the main thread, the only one that calls MPI. */
#ifndef WN_DAEMON_ENGINE_H
#define WN_DAEMON_ENGINE_H

#include <signal.h>

#include "daemon/engine_job.h"
#include "daemon/replica.h"

struct wn_engine;

struct wn_engine_opts {
    struct wn_replica *replica;
    struct wn_front *front;
    const struct wn_plan *plan;
    struct wn_step_limits step;
    uint32_t chunk_min; /* of struct wn_pipeline: the backend's */
    struct wn_gen_limits gen;
    const volatile sig_atomic_t *drain; /* becomes non-zero when a signal asks to finish and leave */
};

WN_NODISCARD wn_status wn_engine_open(struct wn_engine **out, const struct wn_engine_opts *opts, struct wn_err *err);
void wn_engine_close(struct wn_engine *e); /* NULL is fine */

/* Serves until it is drained (WN_OK: the other ranks have been told to leave) or a step fails (they have not). */
WN_NODISCARD wn_status wn_engine_run(struct wn_engine *e, struct wn_err *err);

#endif
