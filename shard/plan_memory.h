/* shard/plan_memory.h - does a rank fit its device, and how many KV pages are left: a pure function of the plan, the
 * limits of a step and the device's free memory, to be asked before weights load.
 *
 * Owns: nothing. Threads: any. Fails: WN_ENOMEM, and the text names a layout that would fit. */
#ifndef WN_SHARD_PLAN_MEMORY_H
#define WN_SHARD_PLAN_MEMORY_H

#include "shard/plan.h"

struct wn_memory_limits {
    uint64_t device_bytes;        /* free memory of each device */
    uint64_t reserve_bytes;       /* kept free: the driver, cuBLASLt's workspace, fragments */
    uint32_t page_tokens;
    uint32_t pages_min;           /* fewer are no use: what one request of full length takes */
    uint32_t rows_max, wanted_max; /* of a step */
    uint32_t slots;               /* features of images that stage 0 may hold */
};

struct wn_memory_plan {
    uint64_t weight_bytes, step_bytes, feature_bytes, page_bytes;
    uint64_t pages; /* that fit beside them */
};

/* What `rank` needs, and the pages that fit; *out is filled in any case. */
WN_NODISCARD wn_status wn_plan_memory(struct wn_memory_plan *out, const struct wn_plan *p, uint32_t rank,
                                      const struct wn_memory_limits *limits, struct wn_err *err);

#endif
