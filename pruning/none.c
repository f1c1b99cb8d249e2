/* pruning/none.c - keeps every row, CLS too if the model has it among them. */
#include "pruning/impl.h"

static wn_status run(struct wn_prune_ctx *c)
{
    for (uint32_t i = 0; i < c->n; i++) wn_prune_put(c, i, 0);
    return WN_OK;
}

const struct wn_prune_method wn_prune_none = {
    .name = "none",
    .help = "keep every visual token",
    .spaces = WN_PRUNE_TOWER | WN_PRUNE_PROJECTED,
    .cls_first = true,
    .all = true,
    .run = run,
};
