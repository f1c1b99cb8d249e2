/* pruning/divprune.c - the tokens that lie farthest apart (DivPrune).
 *
 * Distance is 1 - cosine. First the token whose nearest other is farthest; then, again and again,
 * the one that is farthest from its nearest picked one. Raster order.
 *
 * The paper compares projected rows. On the wire that would cost the saving, so by default these
 * are the tower's own (CLIP) features: the same algorithm, other distances, another choice. With
 * projected rows it is the paper's. A token is picked once at most; the reference can pick equal
 * ones twice. */
#include "pruning/impl.h"

static void wants(const struct wn_prune_ask *ask, uint32_t feature_layer, struct wn_prune_wants *w)
{
    (void)ask;
    (void)feature_layer;
    w->features = true;
}

/* score[i]: how far the nearest other one is. */
static void nearest_other(const float *cos, uint32_t n, float *score)
{
    for (uint32_t i = 0; i < n; i++) {
        const float *row = cos + (size_t)i * n;
        float least = 2.0f;
        for (uint32_t j = 0; j < n; j++) {
            const float d = 1.0f - row[j];
            if (j != i && d < least) least = d;
        }
        score[i] = least;
    }
}

/* far[i] = min(far[i], distance to `pick`), but for what is kept: their far is what it was when they
 * were picked. */
static void come_closer(const float *cos, uint32_t n, uint32_t pick, const uint8_t *kept, float *far)
{
    const float *row = cos + (size_t)pick * n;

    for (uint32_t i = 0; i < n; i++) {
        const float d = 1.0f - row[i];
        if (!kept[i] && d < far[i]) far[i] = d;
    }
}

static uint32_t farthest(const float *far, const uint8_t *kept, uint32_t n)
{
    uint32_t best = n;

    for (uint32_t i = 0; i < n; i++)
        if (!kept[i] && (best == n || far[i] > far[best])) best = i;
    return best;
}

static wn_status run(struct wn_prune_ctx *c)
{
    const uint32_t n = c->n;
    float *inv = wn_prune_alloc(c, n, sizeof(*inv)), *far, *cos;
    uint8_t *kept;
    uint32_t pick;

    far = inv ? wn_prune_alloc(c, n, sizeof(*far)) : NULL;
    cos = far ? wn_prune_alloc(c, (size_t)n * n, sizeof(*cos)) : NULL;
    kept = cos ? wn_prune_calloc(c, n, 1) : NULL;
    if (!kept) return WN_ENOMEM;
    wn_prune_cosines(c->width, (struct wn_prune_rows){.x = c->features, .n = n}, inv, cos);
    nearest_other(cos, n, far);
    pick = farthest(far, kept, n);
    for (uint32_t i = 0; i < n; i++)
        if (i != pick) far[i] = 3.0f; /* more than any distance */
    for (uint32_t k = 0; k < c->count; k++) {
        if (k > 0) pick = farthest(far, kept, n);
        kept[pick] = 1;
        come_closer(cos, n, pick, kept, far);
    }
    wn_prune_put_kept(c, kept);
    wn_prune_put_scores(c, far);
    return WN_OK;
}

const struct wn_prune_method wn_prune_divprune = {
    .name = "divprune",
    .help = "tokens that differ most from each other (DivPrune, on the tower's features)",
    .spaces = WN_PRUNE_TOWER | WN_PRUNE_PROJECTED,
    .wants = wants,
    .run = run,
};
