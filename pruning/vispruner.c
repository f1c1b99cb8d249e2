/* pruning/vispruner.c - some tokens by attention, the others so that they differ (VisPruner).
 *
 * floor(budget * important) tokens by CLS attention, as cls-topk. The others, in descending order of
 * attention, are thinned: split alternately into a (even places) and b (odd places); of a, the 8
 * (or fewer, so that the budget is met) with the largest cosine to any of b go; what is left of a in
 * descending similarity, then b, is the next order; until the count is right. Features, not keys,
 * are compared. Raster order.
 *
 * The reference fails when the number of the others is odd. Here a then has one more than b. */
#include <math.h>

#include "pruning/impl.h"

#define IMPORTANT 0.5
#define DROP      8

static void wants(const struct wn_prune_ask *ask, uint32_t feature_layer, struct wn_prune_wants *w)
{
    (void)ask;
    w->cls_layers = wn_prune_bit(feature_layer);
    w->features = true;
}

struct thin {
    const float *cos;         /* [n, n] of the others */
    float *not_b;             /* [n] 0 for b, -INFINITY for all else */
    uint32_t n, *pool, *next; /* [n] places among the others, in the current order */
    uint64_t *keys;           /* [n] */
};

/* One round: returns how many of the m in the pool are left. */
static uint32_t thin_once(struct thin *t, uint32_t m, uint32_t goal)
{
    const uint32_t a_n = (m + 1) / 2, b_n = m / 2;
    uint32_t drop = m - goal < DROP ? m - goal : DROP, left = 0, *swap;

    if (drop > a_n) drop = a_n;
    for (uint32_t i = 0; i < t->n; i++) t->not_b[i] = -INFINITY;
    for (uint32_t j = 0; j < b_n; j++) t->not_b[t->pool[2 * j + 1]] = 0;
    for (uint32_t i = 0; i < a_n; i++) {
        const uint32_t a = t->pool[2 * i];
        t->keys[i] = wn_prune_key(wn_prune_most(t->cos + (size_t)a * t->n, t->not_b, t->n), a);
    }
    wn_prune_top_keys(t->keys, a_n, a_n);
    for (uint32_t i = drop; i < a_n; i++) t->next[left++] = wn_prune_key_index(t->keys[i]);
    for (uint32_t j = 0; j < b_n; j++) t->next[left++] = t->pool[2 * j + 1];
    swap = t->pool;
    t->pool = t->next;
    t->next = swap;
    return left;
}

/* Adds `goal` of the rows that are not kept. */
static wn_status add_diverse(struct wn_prune_ctx *c, const float *score, uint32_t goal,
                             uint8_t *kept)
{
    uint32_t m = 0, *list = wn_prune_alloc(c, c->n, sizeof(*list));
    float *others = list ? wn_prune_alloc(c, c->n, sizeof(*others)) : NULL, *inv, *cos;
    struct thin t = {0};
    wn_status rc;

    if (!others) return WN_ENOMEM;
    for (uint32_t i = 0; i < c->n; i++) {
        if (kept[i]) continue;
        others[m] = score[i];
        list[m++] = i;
    }
    inv = wn_prune_alloc(c, m, sizeof(*inv));
    cos = inv ? wn_prune_alloc(c, (size_t)m * m, sizeof(*cos)) : NULL;
    t.not_b = cos ? wn_prune_alloc(c, m, sizeof(*t.not_b)) : NULL;
    t.pool = t.not_b ? wn_prune_alloc(c, m, sizeof(*t.pool)) : NULL;
    t.next = t.pool ? wn_prune_alloc(c, m, sizeof(*t.next)) : NULL;
    t.keys = t.next ? wn_prune_alloc(c, m, sizeof(*t.keys)) : NULL;
    if (!t.keys) return WN_ENOMEM;
    if ((rc = wn_prune_cosines(c, (struct wn_row_list){c->features, list, m}, inv, cos)) != WN_OK) return rc;
    t.cos = cos;
    t.n = m;
    wn_prune_top(others, NULL, m, m, t.pool, t.keys);
    while (m > goal) m = thin_once(&t, m, goal);
    for (uint32_t i = 0; i < m; i++) kept[list[t.pool[i]]] = 1;
    return WN_OK;
}

static wn_status run(struct wn_prune_ctx *c)
{
    const double share = c->in->ask.options.important;
    const uint32_t important = (uint32_t)((double)c->count * (share > 0 ? share : IMPORTANT));
    float *score = wn_prune_alloc(c, c->n, sizeof(*score));
    uint8_t *kept = score ? wn_prune_calloc(c, c->n, 1) : NULL;
    wn_status rc;

    if (!kept) return WN_ENOMEM;
    wn_prune_cls_mean(c, score);
    if (wn_prune_keep_top(c, score, important, kept) != WN_OK) return WN_ENOMEM;
    if (important < c->count && (rc = add_diverse(c, score, c->count - important, kept)) != WN_OK)
        return rc;
    wn_prune_put_kept(c, kept);
    wn_prune_put_scores(c, score);
    return WN_OK;
}

const struct wn_prune_method wn_prune_vispruner = {
    .name = "vispruner",
    .help = "half by CLS attention, half so that they differ (VisPruner)",
    .spaces = WN_PRUNE_TOWER | WN_PRUNE_PROJECTED,
    .wants = wants,
    .run = run,
};
