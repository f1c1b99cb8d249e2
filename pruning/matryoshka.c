/* pruning/matryoshka.c - average pooling of the projected grid by square windows (M3).
 *
 * The window is the smallest that divides both sides of the grid and leaves no more rows than the
 * budget: of 24 x 24 it leaves 576, 144, 64, 36, 16, 9, 4 or 1 (the published scales are 576, 144, 36,
 * 9 and 1). The model must have been trained for it. Rows are in raster order and carry the index of
 * the window's first patch. Sums are float64 (rows.h), so a constant picture stays that constant. */
#include "pruning/impl.h"

/* 0: no window does it. */
static uint32_t window_of(const struct wn_prune_shape *s, uint32_t count)
{
    for (uint32_t side = 1; side <= s->grid_w && side <= s->grid_h; side++) {
        if (s->grid_w % side || s->grid_h % side) continue;
        if ((uint64_t)(s->grid_w / side) * (s->grid_h / side) <= count) return side;
    }
    return 0;
}

static void wants(const struct wn_prune_ask *ask, uint32_t feature_layer, struct wn_prune_wants *w)
{
    (void)ask;
    (void)feature_layer;
    w->features = true;
}

static wn_status check(const struct wn_prune_ask *ask, const struct wn_prune_shape *s,
                       struct wn_err *err)
{
    const uint32_t count = wn_prune_count(&ask->budget, s->rows);

    if (window_of(s, count) == 0)
        return wn_fail(err, WN_EUNSUPP,
                       "pruning method 'matryoshka': no square window pools a grid of %u x %u into "
                       "%u rows or fewer",
                       s->grid_w, s->grid_h, count);
    return WN_OK;
}

static wn_status run(struct wn_prune_ctx *c)
{
    const struct wn_prune_shape *s = &c->in->shape;
    const uint32_t side = window_of(s, c->count), n = side * side;

    for (uint32_t first = 0; first < c->n; first += side * s->grid_w) {
        for (uint32_t x = first; x < first + s->grid_w; x += side) {
            for (uint32_t t = 0; t < n; t++) wn_prune_add_term(c, x + t / side * s->grid_w + t % side, 1.0f);
            wn_prune_put_sum(c, x, side > 1 ? WN_PRUNE_MERGED : 0, (float)n);
        }
    }
    return WN_OK;
}

const struct wn_prune_method wn_prune_matryoshka = {
    .name = "matryoshka",
    .help = "the projected grid pooled by square windows (M3; needs a model trained for it)",
    .spaces = WN_PRUNE_PROJECTED,
    .grid = true,
    .wants = wants,
    .check = check,
    .run = run,
};
