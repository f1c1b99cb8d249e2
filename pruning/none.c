/* pruning/none.c - keeps every row. */
#include "pruning/prune.h"

static wn_status run(const struct wn_prune_in *in, struct wn_prune_out *out, struct wn_err *err)
{
    if (in->rows == 0) return wn_fail(err, WN_EINVAL, "pruning: an image without visual tokens");
    for (uint32_t i = 0; i < in->rows; i++) out->index[i] = i;
    out->rows = in->rows;
    return WN_OK;
}

const struct wn_prune_method wn_prune_none = {
    .name = "none",
    .help = "keep every visual token",
    .run = run,
};
