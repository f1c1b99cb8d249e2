/* pruning/divprune.c - the tokens that lie farthest apart (DivPrune).
 *
 * Distance is 1 - cosine. First the token whose nearest other is farthest; then, again and again,
 * the one that is farthest from its nearest picked one. Raster order.
 *
 * The paper compares projected rows. On the wire that would cost the saving, so by default these
 * are the tower's own (CLIP) features: the same algorithm, other distances, another choice. With
 * projected rows it is the paper's. A token is picked once at most; the reference can pick equal
 * ones twice. */
#include <math.h>

#include "pruning/impl.h"

static void wants(const struct wn_prune_ask *ask, uint32_t feature_layer, struct wn_prune_wants *w)
{
    (void)ask;
    (void)feature_layer;
    w->features = true;
}

/* far[i]: how far the nearest other one is. */
static void nearest_other(const float *cos, uint32_t n, float *far)
{
    for (uint32_t i = 0; i < n; i++) {
        const float *row = cos + (size_t)i * n;
        const float before = wn_prune_most(row, NULL, i), after = wn_prune_most(row + i + 1, NULL, n - i - 1);
        const float d = 1.0f - (before > after ? before : after);
        far[i] = d < 2.0f ? d : 2.0f;
    }
}

/* far[i] = min(far[i], distance to the picked row); what is below all distances stays. */
static void come_closer(const float *cos, uint32_t n, float *far)
{
    for (uint32_t i = 0; i < n; i++) {
        const float d = 1.0f - cos[i];
        far[i] = d < far[i] ? d : far[i];
    }
}

static uint32_t farthest(const float *far, uint32_t n)
{
    const float most = wn_prune_most(far, NULL, n);
    uint32_t i = 0;

    while (far[i] < most) i++;
    return i;
}

static wn_status run(struct wn_prune_ctx *c)
{
    const uint32_t n = c->n;
    float *inv = wn_prune_alloc(c, n, sizeof(*inv)), *far, *score, *cos;
    uint8_t *kept;
    wn_status rc;

    far = inv ? wn_prune_alloc(c, n, sizeof(*far)) : NULL;
    score = far ? wn_prune_alloc(c, n, sizeof(*score)) : NULL;
    cos = score ? wn_prune_alloc(c, (size_t)n * n, sizeof(*cos)) : NULL;
    kept = cos ? wn_prune_calloc(c, n, 1) : NULL;
    if (!kept) return WN_ENOMEM;
    if ((rc = wn_prune_cosines(c, (struct wn_row_list){.m = c->features, .n = n}, inv, cos)) != WN_OK) return rc;
    nearest_other(cos, n, far);
    for (uint32_t k = 0; k < c->count; k++) {
        const uint32_t pick = farthest(far, n);
        kept[pick] = 1;
        score[pick] = far[pick]; /* what it was picked for */
        for (uint32_t i = 0; k == 0 && i < n; i++) far[i] = 3.0f; /* more than any distance */
        far[pick] = -INFINITY; /* not again */
        come_closer(cos + (size_t)pick * n, n, far);
    }
    for (uint32_t i = 0; i < n; i++)
        if (!kept[i]) score[i] = far[i];
    wn_prune_put_kept(c, kept);
    wn_prune_put_scores(c, score);
    return WN_OK;
}

const struct wn_prune_method wn_prune_divprune = {
    .name = "divprune",
    .help = "tokens that differ most from each other (DivPrune, on the tower's features)",
    .spaces = WN_PRUNE_TOWER | WN_PRUNE_PROJECTED,
    .wants = wants,
    .run = run,
};
