/* pruning/visionzip.c - dominant tokens, and the rest folded into a few contextual ones (VisionZip).
 *
 * Of a budget of K rows, 5/32 (the published 10 of 64, 20 of 128, 30 of 192; rounded) are contextual
 * and D are dominant: CLS itself and the D-1 patches with the largest CLS attention in the feature
 * layer, summed over heads. Of the M patches left, in raster order, every step-th one is a target,
 * step = floor(M / contextual), as many as there are contextual rows; every other one goes to the
 * target with the most similar key (mean over heads, feature layer; ties: the lower patch). A
 * contextual row is its target plus the mean of what went to it: the sum is not normalised.
 * Order: CLS, dominant patches, contextual rows. A target to which nothing went stays itself. */
#include <string.h>

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

/* Keys of the patches, mean over heads: out [n, head_dim]. */
static void mean_keys(const struct wn_prune_ctx *c, float *out)
{
    const uint32_t heads = c->in->shape.heads, dim = c->width / heads;
    const float *key = wn_prune_keys(c, c->in->shape.feature_layer);

    for (uint32_t i = 0; i < c->n; i++, out += dim) {
        key += c->width; /* the first one is CLS's */
        memcpy(out, key, dim * sizeof(*out));
        for (uint32_t h = 1; h < heads; h++)
            for (uint32_t t = 0; t < dim; t++) out[t] += key[h * dim + t];
        for (uint32_t t = 0; t < dim; t++) out[t] /= (float)heads;
    }
}

struct cluster {
    uint32_t *target, targets;   /* [contextual] patches, ascending */
    uint32_t *other, others;     /* [n] patches that go to a target, ascending */
    uint32_t *to, *size;         /* [n] position of the target; [contextual] */
};

static void split(const struct wn_prune_ctx *c, const uint8_t *dominant, uint32_t left_n,
                  uint32_t contextual, struct cluster *k)
{
    const uint32_t step = contextual && left_n / contextual ? left_n / contextual : 1;
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

static wn_status assign(struct wn_prune_ctx *c, struct cluster *k)
{
    const uint32_t dim = c->width / c->in->shape.heads;
    float *keys = wn_prune_alloc(c, (size_t)c->n * dim, sizeof(*keys));
    float *inv = keys ? wn_prune_alloc(c, c->n, sizeof(*inv)) : NULL;
    float *sims = inv ? wn_prune_alloc(c, (size_t)k->others * k->targets, sizeof(*sims)) : NULL;
    const struct wn_prune_rows a = {.x = keys, .list = k->other, .n = k->others};
    const struct wn_prune_rows b = {.x = keys, .list = k->target, .n = k->targets};

    if (!sims) return WN_ENOMEM;
    mean_keys(c, keys);
    wn_prune_inverse_lengths(keys, dim, c->n, inv);
    wn_prune_dots(dim, a, b, sims, k->targets);
    for (uint32_t i = 0; i < k->others; i++) {
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
    return WN_OK;
}

static void put_contextual(struct wn_prune_ctx *c, const struct cluster *k)
{
    const size_t width = c->width;
    float *first = wn_prune_next_values(c); /* the contextual rows follow one another */

    memset(first, 0, k->targets * width * sizeof(*first));
    for (uint32_t i = 0; i < k->others; i++)
        wn_prune_axpy(first + k->to[i] * width, 1.0f, c->features + k->other[i] * width, c->width);
    for (uint32_t j = 0; j < k->targets; j++) {
        const float *target = c->features + k->target[j] * width;
        float *row = first + j * width, n = (float)(k->size[j] ? k->size[j] : 1);
        for (size_t t = 0; t < width; t++) row[t] = target[t] + row[t] / n;
        wn_prune_put(c, k->target[j], k->size[j] ? WN_PRUNE_MERGED : 0);
    }
}

static wn_status run(struct wn_prune_ctx *c)
{
    const uint32_t asked = c->in->ask.options.contextual;
    uint32_t contextual = asked ? asked : (uint32_t)(((uint64_t)c->count * 5 + 16) / 32), patches;
    struct cluster k = {0};
    float *score = wn_prune_alloc(c, c->n, sizeof(*score));
    uint8_t *dominant = score ? wn_prune_calloc(c, c->n, 1) : NULL;

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
    memcpy(wn_prune_next_values(c), c->cls_row, c->width * sizeof(float));
    wn_prune_put(c, WN_PRUNE_NO_INDEX, WN_PRUNE_CLS);
    wn_prune_put_kept(c, dominant);
    split(c, dominant, c->n - patches, contextual, &k);
    if (contextual == 0) return WN_OK;
    if (assign(c, &k) != WN_OK) return WN_ENOMEM;
    put_contextual(c, &k);
    return WN_OK;
}

const struct wn_prune_method wn_prune_visionzip = {
    .name = "visionzip",
    .help = "dominant tokens by CLS attention, the rest merged into contextual ones (VisionZip)",
    .spaces = WN_PRUNE_TOWER,
    .merges = true,
    .wants = wants,
    .check = check,
    .run = run,
};
