/* pruning/prumerge.c - LLaVA-PruMerge and PruMerge+: outliers of the CLS attention are kept and
 * take in what resembles them.
 *
 * faithful, as the public code of 2024-05 does:
 *   score     CLS query against keys of the layer after the features, heads as one, softmax with
 *             CLS, CLS dropped;
 *   choice    scores strictly above Q3 + 1.5 IQR, in descending order. "+" appends patches 0, s,
 *             2s, .. below n-1 that are not chosen yet, s = floor(floor(n / outliers) / 3);
 *   merge     each kept row plus, weighted by their scores, the 32 rows with the most similar keys,
 *             be they kept or not, from the rows as they were; nothing is normalised;
 *   extra     one more row at the end: the weighted sum of all that were not kept.
 * paper, as the paper says, and our reading where it says too little:
 *   score     CLS attention of the feature layer, mean over heads; keys of that layer;
 *   choice    the same outliers; "+" adds evenly spaced rows up to a quarter of all;
 *   merge     weighted mean with the 32 most similar rows of those that were not kept; no extra.
 *
 * Defined here, where the code has no answer or a bad one:
 *   no outlier  prumerge: only the extra row (paper: the top eighth). "+": the reference's fixed
 *               ratio: the top eighth and patches 4, 12, 20, .., each once.
 *   budget      rows leaving, the extra one included: count-1 (paper: count) are chosen: the
 *               highest scores; with "+" a quarter of them, and the rest evenly spaced among the
 *               others, which is the mixture that the adaptive "+" makes.
 *   cap         a picture whose own count is larger gets the budget `cap`. Without it "+" with more
 *               than n/6 outliers keeps all patches and adds the extra row, as the reference does.
 *   complement  is exact; the reference loses the lowest patches when its list has duplicates. */
#include "pruning/prumerge.h"

#include <math.h>
#include <string.h>

#define NEIGHBOURS  32
#define TRIALS      12
#define FIXED_RATIO 8  /* one in eight, without a budget and without outliers */
#define PANEL       128 /* rows whose similarities are held at a time: they stay in the L2 cache */

wn_status wn_prumerge_scores(struct wn_prune_ctx *c, struct wn_mat q, struct wn_mat keys, float *a)
{
    const uint32_t tokens = keys.rows;
    const struct wn_row_dots d = {.out = a, .a = {.m = q, .n = 1}, .b = {.m = keys, .n = tokens}};
    const float root = sqrtf((float)keys.cols);
    const wn_status rc = wn_prune_dots(c, &d);
    float most = -INFINITY;
    double sum = 0;

    if (rc != WN_OK) return rc;
    for (uint32_t j = 0; j < tokens; j++) {
        a[j] /= root;
        if (a[j] > most) most = a[j];
    }
    for (uint32_t j = 0; j < tokens; j++) sum += exp((double)a[j] - (double)most);
    for (uint32_t j = 0; j < tokens; j++)
        a[j] = (float)(exp((double)a[j] - (double)most) / sum);
    return WN_OK;
}

double wn_prumerge_fence(const float *a, const uint32_t *order, uint32_t n)
{
    const double q1 = wn_prune_quantile(a, order, n, 0.25);
    const double q3 = wn_prune_quantile(a, order, n, 0.75);

    return q3 + 1.5 * (q3 - q1);
}

uint32_t wn_prumerge_outliers(const float *a, const uint32_t *order, uint32_t n)
{
    const double fence = wn_prumerge_fence(a, order, n);
    uint32_t count = 0;

    for (uint32_t i = 0; i < n; i++) count += (double)a[i] > fence;
    return count;
}

/* ---- merging ---- */

struct merge {
    struct wn_prune_ctx *c;
    const struct wn_prumerge *m;
    struct wn_row_list others; /* candidates: all rows, or those that were not kept */
    float *inv, *inv_others;   /* [n], [others.n] 1 / length of their keys */
    float *sims;               /* [PANEL, n] */
    uint64_t *keys;            /* [n] */
    uint32_t *near;            /* [n] */
    float fence;               /* above which the neighbours of the row before were */
};

/* A number that at least k of the n cosines reach, and, where few trials find one, not many more. The first trial is
 * what did for the row before. */
static float low_fence(const float *cosines, uint32_t n, uint32_t k, float trial)
{
    float reached = -INFINITY, low = -1, high = 1;

    for (int t = 0; t < TRIALS; t++) {
        uint32_t count = 0;
        for (uint32_t i = 0; i < n; i++) count += cosines[i] >= trial;
        if (count >= k) reached = low = trial;
        else high = trial;
        if (count >= k && count < k + k / 2) break;
        trial = (low + high) / 2;
    }
    return reached;
}

/* The m.neighbours rows most like row i, the nearest first, into g->near; returns how many there are. sims: its dots
 * with the others; they become cosines. */
static uint32_t find_near(struct merge *g, uint32_t i, float *sims)
{
    const float inv = g->inv[i];
    uint32_t m = 0, n = 0, k = g->m->neighbours;

    for (uint32_t t = 0; t < g->others.n; t++) sims[t] = sims[t] * inv * g->inv_others[t];
    if (k + 1 < g->others.n) g->fence = low_fence(sims, g->others.n, k + 1, g->fence); /* the row itself is one */
    else g->fence = -INFINITY;
    for (uint32_t t = 0; t < g->others.n; t++) { /* NaN is there, too: the last */
        g->near[m] = t;
        m += !(sims[t] < g->fence);
    }
    for (uint32_t t = 0; t < m; t++) {
        const uint32_t j = g->others.at ? g->others.at[g->near[t]] : g->near[t];
        if (j != i) g->keys[n++] = wn_prune_key(sims[g->near[t]], j);
    }
    if (k > n) k = n;
    wn_prune_top_keys(g->keys, n, k);
    for (uint32_t t = 0; t < k; t++) g->near[t] = wn_prune_key_index(g->keys[t]);
    return k;
}

/* Row `kept[s]` and its neighbours become the next row of the result. */
static void merge_one(struct merge *g, uint32_t s, float *sims)
{
    const struct wn_prumerge *m = g->m;
    const uint32_t i = m->kept[s], k = find_near(g, i, sims);
    const bool mean = m->setting == WN_PRUNE_PAPER;
    float sum = m->a[i];

    for (uint32_t t = 0; t < k; t++) sum += m->a[g->near[t]];
    if (mean && !(sum > 0)) {
        wn_prune_add_term(g->c, i, 1.0f);
        wn_prune_put_sum(g->c, i, WN_PRUNE_MERGED, 1.0f);
        return;
    }
    wn_prune_add_term(g->c, i, mean ? m->a[i] : 1.0f);
    for (uint32_t t = 0; t < k; t++) wn_prune_add_term(g->c, g->near[t], m->a[g->near[t]]);
    wn_prune_put_sum(g->c, i, WN_PRUNE_MERGED, mean ? sum : 1.0f);
}

static void put_extra(struct merge *g, const uint32_t *left, uint32_t left_n)
{
    for (uint32_t t = 0; t < left_n; t++) wn_prune_add_term(g->c, left[t], g->m->a[left[t]]);
    wn_prune_put_sum(g->c, WN_PRUNE_NO_INDEX, WN_PRUNE_EXTRA, 1.0f);
}

/* The rows that are not in `kept`, ascending. */
static uint32_t complement(const uint32_t *kept, uint32_t kept_n, uint32_t n, uint8_t *mark,
                           uint32_t *out)
{
    uint32_t m = 0;

    memset(mark, 0, n);
    for (uint32_t t = 0; t < kept_n; t++) mark[kept[t]] = 1;
    for (uint32_t i = 0; i < n; i++)
        if (!mark[i]) out[m++] = i;
    return m;
}

wn_status wn_prumerge_merge(struct wn_prune_ctx *c, const struct wn_prumerge *m)
{
    struct merge g = {.c = c, .m = m, .others = {.m = m->keys, .n = c->n}};
    uint8_t *mark = wn_prune_alloc(c, c->n, 1);
    uint32_t *left = mark ? wn_prune_alloc(c, c->n, sizeof(*left)) : NULL, left_n;
    wn_status rc;

    g.inv = left ? wn_prune_alloc(c, c->n, sizeof(*g.inv)) : NULL;
    g.inv_others = g.inv ? wn_prune_alloc(c, c->n, sizeof(*g.inv_others)) : NULL;
    g.keys = g.inv_others ? wn_prune_alloc(c, c->n, sizeof(*g.keys)) : NULL;
    g.near = g.keys ? wn_prune_alloc(c, c->n, sizeof(*g.near)) : NULL;
    g.sims = g.near ? wn_prune_alloc(c, (size_t)PANEL * c->n, sizeof(*g.sims)) : NULL;
    if (!g.sims) return WN_ENOMEM;
    left_n = complement(m->kept, m->kept_n, c->n, mark, left);
    if (m->setting == WN_PRUNE_PAPER) {
        g.others.at = left;
        g.others.n = left_n;
    }
    rc = wn_prune_inverse_lengths(c, (struct wn_row_list){.m = m->keys, .n = c->n}, g.inv);
    if (rc != WN_OK) return rc;
    for (uint32_t t = 0; t < g.others.n; t++) g.inv_others[t] = g.inv[g.others.at ? g.others.at[t] : t];
    for (uint32_t s = 0; s < m->kept_n; s += PANEL) {
        const uint32_t rows_n = m->kept_n - s < PANEL ? m->kept_n - s : PANEL;
        const struct wn_row_dots d = {.out = g.sims, .a = {m->keys, m->kept + s, rows_n}, .b = g.others};
        if ((rc = wn_prune_dots(c, &d)) != WN_OK) return rc;
        for (uint32_t t = 0; t < rows_n; t++) merge_one(&g, s + t, g.sims + (size_t)t * g.others.n);
    }
    if (m->setting == WN_PRUNE_FAITHFUL) put_extra(&g, left, left_n);
    return WN_OK;
}

/* ---- choosing ---- */

struct choice {
    uint32_t *kept, kept_n; /* [n] */
    uint32_t *left;         /* [n] scratch */
    uint8_t *mark;          /* [n] scratch */
    uint32_t n;
    const uint32_t *order; /* [n] all rows, the highest score first */
};

static void choose_top(struct choice *h, uint32_t k)
{
    memcpy(h->kept, h->order, k * sizeof(*h->kept));
    h->kept_n = k;
}

/* Every `stride`th row from `first` that is below `end` and not chosen yet. */
static void add_grid(struct choice *h, uint32_t first, uint32_t stride, uint32_t end)
{
    memset(h->mark, 0, h->n);
    for (uint32_t t = 0; t < h->kept_n; t++) h->mark[h->kept[t]] = 1;
    for (uint32_t i = first; i < end; i += stride)
        if (!h->mark[i]) h->kept[h->kept_n++] = i;
}

/* `more` rows, evenly spaced among those that are not chosen yet. */
static void add_even(struct choice *h, uint32_t more)
{
    const uint32_t left_n = complement(h->kept, h->kept_n, h->n, h->mark, h->left);

    for (uint32_t t = 0; t < more; t++)
        h->kept[h->kept_n++] = h->left[(uint64_t)t * left_n / more];
}

static void choose_count(struct choice *h, bool plus, bool extra, uint32_t count)
{
    const uint32_t m = count - (extra ? 1 : 0), top = plus ? (m + 3) / 4 : m;

    choose_top(h, top);
    add_even(h, m - top);
}

static void choose_adaptive(struct choice *h, bool plus, bool paper, uint32_t outliers)
{
    const uint32_t eighth = h->n / FIXED_RATIO ? h->n / FIXED_RATIO : 1;
    const uint32_t quarter = h->n / 4 ? h->n / 4 : 1;

    choose_top(h, outliers);
    if (!plus) {
        if (paper && outliers == 0) choose_top(h, eighth);
    } else if (paper) {
        if (outliers < quarter) add_even(h, quarter - outliers);
    } else if (outliers == 0) {
        choose_top(h, eighth);
        add_grid(h, FIXED_RATIO / 2, FIXED_RATIO, h->n);
    } else {
        const uint32_t stride = h->n / outliers / 3;
        add_grid(h, 0, stride ? stride : 1, h->n - 1);
    }
}

static wn_status choose(struct wn_prune_ctx *c, const float *a, bool plus, struct choice *h)
{
    const bool paper = c->in->ask.setting == WN_PRUNE_PAPER;
    const uint32_t cap = c->in->ask.budget.cap, extra = paper ? 0 : 1;
    uint64_t *scratch = wn_prune_alloc(c, c->n, sizeof(*scratch));
    uint32_t *order = scratch ? wn_prune_alloc(c, c->n, sizeof(*order)) : NULL;

    h->n = c->n;
    h->order = order;
    h->kept = order ? wn_prune_alloc(c, c->n, sizeof(*h->kept)) : NULL;
    h->left = h->kept ? wn_prune_alloc(c, c->n, sizeof(*h->left)) : NULL;
    h->mark = h->left ? wn_prune_alloc(c, c->n, 1) : NULL;
    if (!h->mark) return WN_ENOMEM;
    wn_prune_top(a, NULL, c->n, c->n, order, scratch);
    if (c->count) {
        choose_count(h, plus, !paper, c->count);
        return WN_OK;
    }
    choose_adaptive(h, plus, paper, wn_prumerge_outliers(a, order, c->n));
    if (cap && h->kept_n + extra > cap) choose_count(h, plus, !paper, cap < c->n ? cap : c->n);
    return WN_OK;
}

static uint32_t keys_layer(const struct wn_prune_ask *ask, uint32_t feature_layer)
{
    return ask->setting == WN_PRUNE_PAPER ? feature_layer : feature_layer + 1;
}

static wn_status run(struct wn_prune_ctx *c, bool plus)
{
    const uint32_t neighbours = c->in->ask.options.neighbours;
    const uint32_t layer = keys_layer(&c->in->ask, c->in->shape.feature_layer);
    const struct wn_mat keys = wn_prune_keys(c, layer);
    struct wn_prumerge m = {.keys = wn_mat_rows(keys, 1, c->n),
                            .neighbours = neighbours ? neighbours : NEIGHBOURS,
                            .setting = c->in->ask.setting};
    float *a = wn_prune_alloc(c, (size_t)c->n + 1, sizeof(*a));
    struct choice h;
    wn_status rc;

    if (!a) return WN_ENOMEM;
    if (m.setting == WN_PRUNE_PAPER)
        wn_prune_cls_mean(c, a + 1);
    else if ((rc = wn_prumerge_scores(c, wn_prune_query(c, layer), keys, a)) != WN_OK)
        return rc;
    m.a = a + 1;
    if ((rc = choose(c, m.a, plus, &h)) != WN_OK) return rc;
    m.kept = h.kept;
    m.kept_n = h.kept_n;
    wn_prune_put_scores(c, m.a);
    return wn_prumerge_merge(c, &m);
}

static wn_status run_prumerge(struct wn_prune_ctx *c) { return run(c, false); }
static wn_status run_plus(struct wn_prune_ctx *c) { return run(c, true); }

static void wants(const struct wn_prune_ask *ask, uint32_t feature_layer, struct wn_prune_wants *w)
{
    w->features = true;
    w->keys_layers = wn_prune_bit(keys_layer(ask, feature_layer));
    if (ask->setting == WN_PRUNE_PAPER) w->cls_layers = wn_prune_bit(feature_layer);
}

const struct wn_prune_method wn_prune_prumerge = {
    .name = "prumerge",
    .help = "outliers of the CLS attention, with their likes merged in (LLaVA-PruMerge)",
    .spaces = WN_PRUNE_TOWER,
    .adaptive = true,
    .paper = true,
    .wants = wants,
    .run = run_prumerge,
};

const struct wn_prune_method wn_prune_prumerge_plus = {
    .name = "prumerge+",
    .help = "prumerge, and tokens spread over the picture",
    .spaces = WN_PRUNE_TOWER,
    .adaptive = true,
    .paper = true,
    .wants = wants,
    .run = run_plus,
};
