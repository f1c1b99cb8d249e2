/* pruning/cls_topk.c - the patches that CLS looks at most (FasterVLM).
 *
 * Score: the CLS query's attention in the layer that makes the features, mean over heads; the
 * softmax counted CLS itself and is not renormalised. Raster order. */
#include "pruning/impl.h"

static void wants(const struct wn_prune_ask *ask, uint32_t feature_layer, struct wn_prune_wants *w)
{
    (void)ask;
    w->cls_layers = wn_prune_bit(feature_layer);
}

static wn_status run(struct wn_prune_ctx *c)
{
    float *score = wn_prune_alloc(c, c->n, sizeof(*score));
    uint8_t *kept = score ? wn_prune_calloc(c, c->n, 1) : NULL;

    if (!kept) return WN_ENOMEM;
    wn_prune_cls_mean(c, score);
    if (wn_prune_keep_top(c, score, c->count, kept) != WN_OK) return WN_ENOMEM;
    wn_prune_put_kept(c, kept);
    wn_prune_put_scores(c, score);
    return WN_OK;
}

const struct wn_prune_method wn_prune_cls_topk = {
    .name = "cls-topk",
    .help = "tokens that the CLS token attends to most (FasterVLM)",
    .spaces = WN_PRUNE_TOWER | WN_PRUNE_PROJECTED,
    .wants = wants,
    .run = run,
};
