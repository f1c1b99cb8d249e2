/* shard/pick.h - choosing tokens where the logits are, so that an id a row comes back instead of the row.
 * Plain data: the caller's, borrowed for the call. */
#ifndef WN_SHARD_PICK_H
#define WN_SHARD_PICK_H

#include "base/mat.h"

/* How a row's token is chosen: shard/sample.h without penalty and log-probabilities. */
struct wn_pick {
    uint64_t seed, position;
    float temperature, top_p; /* temperature 0: greedy */
    uint32_t top_k;
    uint32_t wanted; /* 0: nothing is chosen */
};

#define WN_PICK_NONE UINT32_MAX /* not wanted, or left to wn_sampler_pick: it may be too much work here */

/* out[i] becomes the id that wn_sampler_pick takes from row i of the logits, or WN_PICK_NONE. */
struct wn_picks {
    struct wn_mat logits;       /* [rows, vocab] */
    const struct wn_pick *each; /* [rows], host memory */
    uint32_t *out;              /* [rows], backend memory */
};

#endif
