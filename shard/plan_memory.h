/* shard/plan_memory.h - do ranks fit their devices, and how many KV pages are left: a pure function of the plan, the
 * limits of a step and the device's free memory, to be asked before weights load. `winnow plan`, `winnow serve` and
 * every rank ask it, so what is printed is what is refused.
 *
 * Weights, the scratch of a step, KV pages and features (a whole picture in every slot) are counted to the byte as
 * decoder.c allocates them (the CPU's packed matrices come to a little more). Not counted: vision towers.
 * Owns: nothing. Threads: any. Fails: WN_ENOMEM, and the text names a layout that would fit. */
#ifndef WN_SHARD_PLAN_MEMORY_H
#define WN_SHARD_PLAN_MEMORY_H

#include "shard/plan.h"

struct wn_memory_limits {
    uint64_t device_bytes;         /* free memory of a device */
    uint64_t reserve_bytes;        /* of it, kept free: the driver, cuBLASLt's workspace, fragments, other programs */
    uint32_t replicas;             /* that lie on the same devices; 0 is 1 */
    uint32_t page_tokens;
    uint32_t pages_min;            /* fewer are no use: what one request of full length takes */
    uint32_t pages_max;            /* more are never used */
    uint32_t rows_max, wanted_max; /* of a step */
    uint32_t slots;                /* features of images that stage 0 may hold */
};

struct wn_memory_plan {
    uint64_t weight_bytes, step_bytes, feature_bytes, page_bytes; /* of the ranks together */
    uint64_t pages; /* of each rank, that fit beside the rest */
};

/* What `rank` needs on a device of its own, and the pages that fit; *out is filled in any case. */
WN_NODISCARD wn_status wn_plan_memory(struct wn_memory_plan *out, const struct wn_plan *p, uint32_t rank,
                                      const struct wn_memory_limits *limits, struct wn_err *err);

/* The same for ranks [n] that share one device: every one of them can have out->pages. */
WN_NODISCARD wn_status wn_plan_memory_shared(struct wn_memory_plan *out, const struct wn_plan *p, const uint32_t *ranks,
                                             uint32_t n, const struct wn_memory_limits *limits, struct wn_err *err);

/* Prints what each rank needs; with device_bytes, also what fits. */
void wn_plan_print_memory(const struct wn_plan *p, const struct wn_memory_limits *limits, FILE *out);

#endif
