/* pruning/visionzip.c - dominant tokens, and the rest folded into a few contextual ones (VisionZip).
 *
 * Of a budget of K rows, 5/32 (the published 10 of 64, 20 of 128, 30 of 192; rounded) are contextual
 * and D are dominant: CLS itself and the D-1 patches with the largest CLS attention in the feature
 * layer, summed over heads. Of the M patches left, in raster order, every step-th one is a target,
 * step = floor(M / contextual), as many as there are contextual rows; every other one goes to the
 * target with the most similar key (mean over heads, feature layer; ties: the lower patch). A
 * contextual row is its target plus the mean of what went to it: the sum is not normalised.
 * Order: CLS, dominant patches, contextual rows. A target to which nothing went stays itself. */
#include "pruning/impl.h"

static void wants(const struct wn_prune_ask *ask, uint32_t feature_layer, struct wn_prune_wants *w)
{
    (void)ask;
    w->cls_layers = wn_prune_bit(feature_layer);
    w->keys_layers = wn_prune_bit(feature_layer);
    w->cls_row = true;
    w->features = true;
}

static wn_status check(const struct wn_prune_ask *ask, const struct wn_prune_shape *s,
                       struct wn_err *err)
{
    (void)ask;
    if (s->heads == 0 || s->width % s->heads)
        return wn_fail(err, WN_EUNSUPP, "pruning method 'visionzip': %u heads in a width of %u",
                       s->heads, s->width);
    return WN_OK;
}

struct cluster {
    uint32_t *target, targets;   /* [contextual] patches, ascending */
    uint32_t *other, others;     /* [n] patches that go to a target, ascending */
    uint32_t *to, *size;         /* [n] position of the target; [contextual] */
};

static void split(const struct wn_prune_ctx *c, const uint8_t *dominant, uint32_t left_n,
                  uint32_t contextual, struct cluster *k)
{
    const uint32_t step = contextual ? left_n / contextual : 1; /* left_n > contextual */
    uint32_t at = 0;

    for (uint32_t i = 0; i < c->n; i++) {
        if (dominant[i]) continue;
        if (at % step == 0 && k->targets < contextual)
            k->target[k->targets++] = i;
        else
            k->other[k->others++] = i;
        at++;
    }
}

/* Every other patch to the target whose key, mean over heads, is most like its own. */
static wn_status assign(struct wn_prune_ctx *c, struct cluster *k)
{
    const struct wn_mat tokens = wn_prune_keys(c, c->in->shape.feature_layer);
    float *inv = wn_prune_alloc(c, c->n, sizeof(*inv));
    float *sims = inv ? wn_prune_alloc(c, (size_t)k->others * k->targets, sizeof(*sims)) : NULL;
    struct wn_row_dots d = {.out = sims};
    struct wn_mat keys;
    wn_status rc;

    if (!sims) return WN_ENOMEM;
    rc = wn_prune_mean_columns(c, wn_mat_rows(tokens, 1, c->n), c->width / c->in->shape.heads, &keys);
    if (rc == WN_OK) rc = wn_prune_inverse_lengths(c, (struct wn_row_list){.m = keys, .n = c->n}, inv);
    d.a = (struct wn_row_list){keys, k->other, k->others};
    d.b = (struct wn_row_list){keys, k->target, k->targets};
    if (rc == WN_OK) rc = wn_prune_dots(c, &d);
    for (uint32_t i = 0; rc == WN_OK && i < k->others; i++) {
        const float *row = sims + (size_t)i * k->targets;
        uint64_t best = 0;
        for (uint32_t j = 0; j < k->targets; j++) {
            const float cos = row[j] * inv[k->other[i]] * inv[k->target[j]];
            const uint64_t key = wn_prune_key(cos, j);
            if (key > best) best = key;
        }
        k->to[i] = wn_prune_key_index(best);
        k->size[k->to[i]]++;
    }
    return rc;
}

/* Target plus the mean of n others: n times the target and the others, divided by n. */
static void put_contextual(struct wn_prune_ctx *c, const struct cluster *k)
{
    for (uint32_t j = 0; j < k->targets; j++) {
        const float n = (float)k->size[j];
        if (k->size[j] == 0) {
            wn_prune_put(c, k->target[j], 0);
            continue;
        }
        wn_prune_add_term(c, k->target[j], n);
        for (uint32_t i = 0; i < k->others; i++)
            if (k->to[i] == j) wn_prune_add_term(c, k->other[i], 1.0f);
        wn_prune_put_sum(c, k->target[j], WN_PRUNE_MERGED, n);
    }
}

static wn_status run(struct wn_prune_ctx *c)
{
    const uint32_t asked = c->in->ask.options.contextual;
    uint32_t contextual = asked ? asked : (uint32_t)(((uint64_t)c->count * 5 + 16) / 32), patches;
    struct cluster k = {0};
    float *score = wn_prune_alloc(c, c->n, sizeof(*score));
    uint8_t *dominant = score ? wn_prune_calloc(c, c->n, 1) : NULL;
    wn_status rc;

    if (contextual >= c->count) contextual = c->count - 1;
    patches = c->count - contextual - 1;
    k.target = dominant ? wn_prune_alloc(c, contextual, sizeof(*k.target)) : NULL;
    k.other = k.target ? wn_prune_alloc(c, c->n, sizeof(*k.other)) : NULL;
    k.to = k.other ? wn_prune_alloc(c, c->n, sizeof(*k.to)) : NULL;
    k.size = k.to ? wn_prune_calloc(c, contextual, sizeof(*k.size)) : NULL;
    if (!k.size) return WN_ENOMEM;
    wn_prune_cls_sum(c, score);
    if (wn_prune_keep_top(c, score, patches, dominant) != WN_OK) return WN_ENOMEM;
    wn_prune_put_scores(c, score);
    wn_prune_put(c, WN_PRUNE_NO_INDEX, WN_PRUNE_CLS);
    wn_prune_put_kept(c, dominant);
    split(c, dominant, c->n - patches, contextual, &k);
    if (contextual == 0) return WN_OK;
    if ((rc = assign(c, &k)) != WN_OK) return rc;
    put_contextual(c, &k);
    return WN_OK;
}

const struct wn_prune_method wn_prune_visionzip = {
    .name = "visionzip",
    .help = "dominant tokens by CLS attention, the rest merged into contextual ones (VisionZip)",
    .spaces = WN_PRUNE_TOWER,
    .wants = wants,
    .check = check,
    .run = run,
};
