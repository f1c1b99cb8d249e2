/* daemon/fit.h - before weights load: what the memory of each rank must hold, whether it can, and how many KV pages all
 * ranks of a replica agree on. shard/plan_memory.h counts; here is where the numbers come from and who decides.
 *
 * Owns: nothing. Threads: the link's.
 * Fails: WN_ENOMEM names what does not fit and a layout that would; WN_ELIMIT (tables too long); agree: as the link. */
#ifndef WN_DAEMON_FIT_H
#define WN_DAEMON_FIT_H

#include "daemon/config.h"
#include "proto/step.h"
#include "shard/backend.h"
#include "shard/plan_memory.h"

struct wn_link;

/* The limits of a step as the options say, with the KV pages that they wish for; *tokens_max: of one job. */
WN_NODISCARD wn_status wn_fit_step(struct wn_step_limits *out, uint32_t *tokens_max, const struct wn_config *cfg,
                                   const struct wn_model *model, struct wn_err *err);

/* What such steps ask of memory, where `free_bytes` are free (0: not known). The least is one job of full length, or
 * --kv-pages. */
struct wn_memory_limits wn_fit_limits(const struct wn_config *cfg, const struct wn_step_limits *step,
                                      uint32_t tokens_max, uint64_t free_bytes);

/* Do all ranks of all replicas fit this machine's memory together? For the CPU, with everything here. */
WN_NODISCARD wn_status wn_fit_host(const struct wn_config *cfg, const struct wn_plan *plan, struct wn_err *err);

struct wn_fit {
    const struct wn_config *cfg;
    const struct wn_plan *plan;
    struct wn_backend *be;
    struct wn_link *link; /* NULL: one rank */
    uint32_t rank, tokens_max;
    int64_t deadline_us;
};

/* All ranks of a replica call it, before any has loaded: rank 0 learns what is free where, counts ranks that share a
 * device together, and decides. step->pages_max becomes what all can hold, at most what it was. *refused: all ranks
 * return the same WN_ENOMEM, or WN_EINVAL (they are to compute in different types), and the link is sound. */
WN_NODISCARD wn_status wn_fit_agree(struct wn_step_limits *step, const struct wn_fit *f, bool *refused,
                                    struct wn_err *err);

#endif
