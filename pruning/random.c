/* pruning/random.c - rows drawn by lot: the baseline that every other method has to beat.
 *
 * Row i draws lot mix(seed + (i + 1) * 0x9E3779B97F4A7C15), where mix is SplitMix64's finaliser, and
 * the rows with the smallest lots stay, in raster order. So a smaller budget keeps a part of what a
 * larger one keeps, and the same seed means the same positions in every image: who wants images to
 * differ gives each its own seed. */
#include "pruning/impl.h"

static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static wn_status run(struct wn_prune_ctx *c)
{
    const uint64_t seed = c->in->ask.budget.seed;
    uint64_t *lots = wn_prune_alloc(c, c->n, sizeof(*lots)), *sorted, last;

    sorted = lots ? wn_prune_alloc(c, c->n, sizeof(*sorted)) : NULL;
    if (!sorted) return WN_ENOMEM;
    for (uint32_t i = 0; i < c->n; i++) {
        lots[i] = mix(seed + (uint64_t)(i + 1) * 0x9E3779B97F4A7C15u);
        sorted[i] = ~lots[i];
    }
    wn_prune_top_keys(sorted, c->n, c->count);
    last = ~sorted[c->count - 1];
    for (uint32_t i = 0; i < c->n; i++) /* mix is a bijection and the seeds differ: no ties */
        if (lots[i] <= last) wn_prune_put(c, i, 0);
    return WN_OK;
}

const struct wn_prune_method wn_prune_random = {
    .name = "random",
    .help = "tokens drawn by lot from a seed",
    .spaces = WN_PRUNE_TOWER | WN_PRUNE_PROJECTED,
    .run = run,
};
