/* shard/threadpool.h - a few threads that help with loops whose turns do not depend on each other.
 *
 * wn_pool_run() is a parallel for: the calling thread takes turns too, and returns when all are
 * done. The queue of waiting loops is bounded; a loop that finds it full is simply run by its
 * caller alone, so there is nothing to wait for and nothing that can deadlock, loops within loops
 * included.
 *
 * Owns:    its threads, from start to stop.    Threads: run from any; stop once, when no run is
 *          under way.
 * Fails:   start only: WN_EINVAL, WN_ENOMEM, WN_EIO when a thread cannot be made. */
#ifndef WN_SHARD_THREADPOOL_H
#define WN_SHARD_THREADPOOL_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define WN_POOL_THREADS_MAX 256
#define WN_POOL_QUEUE_MAX   4096

struct wn_pool; /* opaque */

struct wn_pool_opts {
    uint32_t threads;   /* helpers besides the caller; 0 is fine: then the caller does it all */
    uint32_t queue_max; /* loops that may wait for helpers at the same time; at least 1 */
};

/* Success: *out is owned by the caller. Failure: *out is untouched. */
WN_NODISCARD wn_status wn_pool_start(struct wn_pool **out, const struct wn_pool_opts *opts,
                                     struct wn_err *err);

/* Joins the threads and frees the pool; NULL is fine. */
void wn_pool_stop(struct wn_pool *pool);

typedef void (*wn_pool_fn)(void *ctx, size_t i);

/* Calls fn(ctx, i) once for each i in 0 .. n - 1, in any order and on any of the threads; what fn
 * wrote is visible when this returns. pool may be NULL: then it is a plain loop. */
void wn_pool_run(struct wn_pool *pool, wn_pool_fn fn, void *ctx, size_t n);

#endif
