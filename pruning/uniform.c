/* pruning/uniform.c - rows spread evenly over the picture.
 *
 * K tokens go into R rows of the grid, R = sqrt(K * height / width) rounded, or the next number for
 * which they fit. Row r of R is grid row floor((2r + 1) * height / 2R); it takes the tokens
 * floor(r * K / R) .. floor((r + 1) * K / R), and token j of its m stands in column
 * floor((2j + 1) * width / 2m). The count is K exactly; 64 of 24 x 24 is every third one. */
#include <math.h>

#include "pruning/impl.h"

static wn_status run(struct wn_prune_ctx *c)
{
    const uint64_t k = c->count, w = c->in->shape.grid_w, h = c->in->shape.grid_h;
    uint64_t rows = (uint64_t)(sqrt((double)k * (double)h / (double)w) + 0.5);

    if (rows < 1) rows = 1;
    if (rows > h) rows = h;
    while ((k + rows - 1) / rows > w) rows++; /* ends: rows = h fits, as k <= w * h */
    for (uint64_t r = 0; r < rows; r++) {
        const uint64_t m = (r + 1) * k / rows - r * k / rows, y = (2 * r + 1) * h / (2 * rows);
        for (uint64_t j = 0; j < m; j++)
            wn_prune_put(c, (uint32_t)(y * w + (2 * j + 1) * w / (2 * m)), 0);
    }
    return WN_OK;
}

const struct wn_prune_method wn_prune_uniform = {
    .name = "uniform",
    .help = "tokens spread evenly over the picture",
    .spaces = WN_PRUNE_TOWER | WN_PRUNE_PROJECTED,
    .grid = true,
    .run = run,
};
