/* pruning/hiprune.c - anchors from a middle layer, their neighbours, and the last layer (HiPrune).
 *
 * The score of a token is the attention that it receives, mean over heads and all queries. Anchors:
 * the round(budget * alpha / 5) highest in the object layer (alpha 0.1; halves round to even), each
 * with the patches left, right, above and below it. The rest of the budget: the highest in the
 * feature layer among what is not taken. Raster order.
 *
 * As in the reference the neighbours are index - 1, + 1, - width, + width, clamped to the first and
 * last patch: at the edges they wrap into the next row, and anchors near the ends pull in patch 0 or
 * the last one. The published object layer is 9 (from 1) of the 23 below the features; towers of
 * another depth take the layer at the same share of it. */
#include <math.h>

#include "pruning/impl.h"

#define ALPHA 0.1

static uint32_t object_layer(const struct wn_prune_ask *ask, uint32_t feature_layer)
{
    if (ask->options.object_layer) return ask->options.object_layer - 1;
    return (feature_layer * 8 + 11) / 22;
}

static void wants(const struct wn_prune_ask *ask, uint32_t feature_layer, struct wn_prune_wants *w)
{
    const uint32_t object = object_layer(ask, feature_layer);

    w->mean_layers = wn_prune_bit(feature_layer) | wn_prune_bit(object);
}

static wn_status check(const struct wn_prune_ask *ask, const struct wn_prune_shape *s,
                       struct wn_err *err)
{
    if (object_layer(ask, s->feature_layer) > s->feature_layer)
        return wn_fail(err, WN_EINVAL, "pruning method 'hiprune': object-layer %u, and %u layers are run",
                       ask->options.object_layer, s->feature_layer + 1);
    return WN_OK;
}

/* Marks the anchor and its neighbours; returns how many marks are new. */
static uint32_t mark_around(uint32_t anchor, uint32_t n, uint32_t grid_w, uint8_t *kept)
{
    const int64_t at[] = {0, -1, 1, -(int64_t)grid_w, grid_w};
    uint32_t added = 0;

    for (int t = 0; t < 5; t++) {
        int64_t i = anchor + at[t];
        if (i < 0) i = 0;
        if (i > n - 1) i = n - 1;
        added += !kept[i];
        kept[i] = 1;
    }
    return added;
}

static wn_status run(struct wn_prune_ctx *c)
{
    const uint32_t layer = c->in->shape.feature_layer;
    const double alpha = c->in->ask.options.anchors > 0 ? c->in->ask.options.anchors : ALPHA;
    const float *object = wn_prune_mean_tap(c, object_layer(&c->in->ask, layer)) + 1;
    const float *last = wn_prune_mean_tap(c, layer) + 1;
    uint32_t anchors = (uint32_t)nearbyint((double)c->count * alpha / 5), taken = 0;
    uint32_t *top = wn_prune_alloc(c, c->n, sizeof(*top));
    uint64_t *scratch = top ? wn_prune_alloc(c, c->n, sizeof(*scratch)) : NULL;
    uint8_t *kept = scratch ? wn_prune_calloc(c, c->n, 1) : NULL;

    if (!kept) return WN_ENOMEM;
    while (anchors * 5 > c->count) anchors--; /* a large alpha: never more than the budget */
    anchors = wn_prune_top(object, NULL, c->n, anchors, top, scratch);
    for (uint32_t i = 0; i < anchors; i++)
        taken += mark_around(top[i], c->n, c->in->shape.grid_w, kept);
    if (wn_prune_keep_top(c, last, c->count - taken, kept) != WN_OK) return WN_ENOMEM;
    wn_prune_put_kept(c, kept);
    wn_prune_put_scores(c, last);
    return WN_OK;
}

const struct wn_prune_method wn_prune_hiprune = {
    .name = "hiprune",
    .help = "anchors of a middle layer with their neighbours, then the last layer's (HiPrune)",
    .spaces = WN_PRUNE_TOWER | WN_PRUNE_PROJECTED,
    .grid = true,
    .wants = wants,
    .check = check,
    .run = run,
};
