/* pruning/prune.c - the method table, the checks, and what happens around a method. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pruning/impl.h"

const struct wn_prune_method *const wn_prune_methods[] = {
    &wn_prune_none,          &wn_prune_random,    &wn_prune_uniform,
    &wn_prune_cls_topk,      &wn_prune_prumerge,  &wn_prune_prumerge_plus,
    &wn_prune_visionzip,     &wn_prune_vispruner, &wn_prune_divprune,
    &wn_prune_hiprune,       &wn_prune_matryoshka,
    NULL,
};

const struct wn_prune_method *wn_prune_find(const char *name, struct wn_err *err)
{
    char known[256] = "";
    size_t at = 0;

    if (!name || !name[0]) return &wn_prune_none;
    for (size_t i = 0; wn_prune_methods[i]; i++) {
        if (strcmp(wn_prune_methods[i]->name, name) == 0) return wn_prune_methods[i];
        if (at < sizeof(known))
            at += (size_t)snprintf(known + at, sizeof(known) - at, "%s%s", i ? ", " : "",
                                   wn_prune_methods[i]->name);
    }
    (void)wn_fail(err, WN_ENOENT, "pruning method '%.60s' is not known; known: %s", name, known);
    return NULL;
}

wn_status wn_prune_setting_parse(wn_prune_setting *out, const char *text, struct wn_err *err)
{
    if (!text || !text[0] || strcmp(text, "faithful") == 0)
        *out = WN_PRUNE_FAITHFUL;
    else if (strcmp(text, "paper") == 0)
        *out = WN_PRUNE_PAPER;
    else
        return wn_fail(err, WN_EINVAL, "pruning setting '%.60s': it is faithful or paper", text);
    return WN_OK;
}

/* ---- checks ---- */

wn_status wn_prune_check_ask(const struct wn_prune_method *m, const struct wn_prune_ask *ask,
                             struct wn_err *err)
{
    const struct wn_prune_options *o = &ask->options;

    if (!(ask->budget.rate >= 0 && ask->budget.rate <= 1))
        return wn_fail(err, WN_EINVAL, "pruning rate %g is not between 0 and 1",
                       (double)ask->budget.rate);
    if (!(m->spaces & (ask->projected ? WN_PRUNE_PROJECTED : WN_PRUNE_TOWER)))
        return wn_fail(err, WN_EUNSUPP, "pruning method '%s' works on %s rows only", m->name,
                       ask->projected ? "unprojected" : "projected");
    if (ask->setting == WN_PRUNE_PAPER && !m->paper)
        return wn_fail(err, WN_EUNSUPP, "pruning method '%s' has no setting 'paper'", m->name);
    if (!(o->important >= 0 && o->important <= 1) || !(o->anchors >= 0 && o->anchors <= 1))
        return wn_fail(err, WN_EINVAL, "pruning options: shares %g and %g are not between 0 and 1",
                       o->important, o->anchors);
    return WN_OK;
}

wn_status wn_prune_check(const struct wn_prune_method *m, const struct wn_prune_ask *ask,
                         const struct wn_prune_shape *s, struct wn_err *err)
{
    struct wn_prune_wants w;
    wn_status rc = wn_prune_check_ask(m, ask, err);

    if (rc != WN_OK) return rc;
    if (s->rows == 0 || s->width == 0 || s->rows > 1u << 20 || s->width > 1u << 20)
        return wn_fail(err, WN_EINVAL, "pruning: an image of %u rows of %u", s->rows, s->width);
    if (s->cls_first && !m->cls_first)
        return wn_fail(err, WN_EUNSUPP,
                       "pruning method '%s': the model keeps the CLS row among the image's rows, "
                       "and the method chooses among patches only",
                       m->name);
    if (m->grid && (uint64_t)s->grid_w * s->grid_h != s->rows)
        return wn_fail(err, WN_EUNSUPP, "pruning method '%s': %u rows are no grid of %u x %u",
                       m->name, s->rows, s->grid_w, s->grid_h);
    if (m->check && (rc = m->check(ask, s, err)) != WN_OK) return rc;
    if (m->wants) {
        const uint64_t run = wn_prune_bit(s->feature_layer + 1) - 1;
        if (s->feature_layer > 62)
            return wn_fail(err, WN_EUNSUPP, "pruning method '%s': a tower of more than 63 layers",
                           m->name);
        wn_prune_wants(m, ask, s->feature_layer, &w);
        if ((w.cls_layers | w.mean_layers) & ~run)
            return wn_fail(err, WN_EINVAL,
                           "pruning method '%s' looks at a layer past the %u that are run", m->name,
                           s->feature_layer + 1);
    }
    return WN_OK;
}

void wn_prune_wants(const struct wn_prune_method *m, const struct wn_prune_ask *ask,
                    uint32_t feature_layer, struct wn_prune_wants *out)
{
    *out = (struct wn_prune_wants){0};
    if (m->wants) m->wants(ask, feature_layer, out);
}

void wn_prune_wants_join(struct wn_prune_wants *all, const struct wn_prune_wants *more)
{
    all->cls_layers |= more->cls_layers;
    all->mean_layers |= more->mean_layers;
    all->keys_layers |= more->keys_layers;
    all->cls_row |= more->cls_row;
    all->features |= more->features;
}

static bool has_budget(const struct wn_prune_budget *b)
{
    return b->keep > 0 || b->rate > 0;
}

void wn_prune_ask_complete(const struct wn_prune_method *m, struct wn_prune_ask *ask)
{
    if (!m->all && !m->adaptive && !has_budget(&ask->budget)) ask->budget.keep = WN_PRUNE_KEEP_DEFAULT;
}

uint32_t wn_prune_count(const struct wn_prune_budget *b, uint32_t rows)
{
    double left = b->keep ? (double)b->keep : floor((double)rows * (1.0 - (double)b->rate) + 0.5);

    if (!(left < (double)rows)) return rows;
    return left < 1 ? 1 : (uint32_t)left;
}

uint32_t wn_prune_position(uint32_t index, uint8_t flags, uint32_t rows)
{
    if (index < rows) return index;
    return flags & WN_PRUNE_CLS ? 0 : rows - 1;
}

uint32_t wn_prune_rows_max(const struct wn_prune_method *m, const struct wn_prune_ask *ask,
                           uint32_t rows)
{
    const struct wn_prune_budget *b = &ask->budget;

    if (m->all) return rows;
    if (!m->adaptive || has_budget(b)) return wn_prune_count(b, rows);
    return b->cap && b->cap <= rows ? b->cap : rows + 1;
}

static wn_status check_taps(const struct wn_prune_ctx *c, const struct wn_prune_wants *w)
{
    const struct wn_prune_taps *t = &c->in->taps;
    const char *lacks = NULL;

    if (w->cls_layers && (!t->cls_attention || (w->cls_layers & ~t->cls_layers)))
        lacks = "CLS attention";
    else if (w->cls_layers && c->in->shape.heads == 0)
        lacks = "number of heads";
    else if (w->mean_layers && (!t->mean_attention || (w->mean_layers & ~t->mean_layers)))
        lacks = "mean attention";
    else if (w->keys_layers && (!t->keys || !t->cls_query || (w->keys_layers & ~t->keys_layers)))
        lacks = "keys";
    else if (w->cls_row && !t->cls_row)
        lacks = "CLS row";
    else if (w->features && !c->in->features)
        lacks = "features";
    if (!lacks) return WN_OK;
    return wn_fail(c->err, WN_EINVAL, "pruning method '%s': the tower gave no %s", c->method->name,
                   lacks);
}

/* ---- a call ---- */

void *wn_prune_alloc(struct wn_prune_ctx *c, size_t n, size_t bytes)
{
    void *p = NULL;

    WN_ASSERT(c->mem_n < WN_PRUNE_MEM_MAX);
    if (n == 0) n = 1;
    if (n <= SIZE_MAX / bytes) p = malloc(n * bytes);
    if (p)
        c->mem[c->mem_n++] = p;
    else
        (void)wn_fail(c->err, WN_ENOMEM, "pruning method '%s': scratch of %zu x %zu bytes",
                      c->method->name, n, bytes);
    return p;
}

void *wn_prune_calloc(struct wn_prune_ctx *c, size_t n, size_t bytes)
{
    void *p = wn_prune_alloc(c, n, bytes);

    if (p) memset(p, 0, n * bytes);
    return p;
}

wn_status wn_prune_run(const struct wn_prune_method *method, const struct wn_prune_in *in,
                       struct wn_prune_out *out, struct wn_err *err)
{
    struct wn_prune_ctx c = {.method = method, .in = in, .out = out, .err = err};
    const uint32_t rows_max = wn_prune_rows_max(method, &in->ask, in->shape.rows);
    struct wn_prune_wants w;
    wn_status rc;

    if ((rc = wn_prune_check(method, &in->ask, &in->shape, err)) != WN_OK) return rc;
    c.n = in->shape.rows;
    c.width = in->shape.width;
    c.count = method->adaptive && !has_budget(&in->ask.budget)
                  ? 0
                  : wn_prune_count(&in->ask.budget, c.n);
    wn_prune_wants(method, &in->ask, in->shape.feature_layer, &w);
    if ((rc = check_taps(&c, &w)) != WN_OK) return rc;
    c.features = wn_prune_sums(in, out).in;
    out->scored = false;
    rc = wn_prune_recipe_begin(&c, rows_max);
    c.no_memory = rc != WN_OK;
    if (rc == WN_OK) rc = method->run(&c);
    if (c.no_memory) rc = wn_fail(err, WN_ENOMEM, "pruning method '%s': %u rows", method->name, rows_max);
    WN_ASSERT(rc != WN_OK || (out->rows > 0 && out->rows <= rows_max));
    while (c.mem_n > 0) free(c.mem[--c.mem_n]);
    return rc;
}

/* ---- for the methods ---- */

/* The taps of `layer` come after those of the lower layers that are there. */
static size_t slot(uint64_t layers, uint32_t layer)
{
    return (size_t)__builtin_popcountll(layers & (wn_prune_bit(layer) - 1));
}

const float *wn_prune_mean_tap(const struct wn_prune_ctx *c, uint32_t layer)
{
    const struct wn_prune_taps *t = &c->in->taps;
    return t->mean_attention + slot(t->mean_layers, layer) * t->mean_stride;
}

static struct wn_mat tap_rows(const struct wn_prune_ctx *c, const float *first, uint32_t rows)
{
    return (struct wn_mat){(void *)(uintptr_t)first, WN_F32, rows, c->width, c->width};
}

struct wn_mat wn_prune_keys(const struct wn_prune_ctx *c, uint32_t layer)
{
    const struct wn_prune_taps *t = &c->in->taps;
    return tap_rows(c, t->keys + slot(t->keys_layers, layer) * t->keys_stride, c->n + 1);
}

struct wn_mat wn_prune_query(const struct wn_prune_ctx *c, uint32_t layer)
{
    const struct wn_prune_taps *t = &c->in->taps;
    return tap_rows(c, t->cls_query + slot(t->keys_layers, layer) * t->query_stride, 1);
}

void wn_prune_cls_sum(const struct wn_prune_ctx *c, float *out)
{
    const struct wn_prune_taps *t = &c->in->taps;
    const float *a = t->cls_attention + slot(t->cls_layers, c->in->shape.feature_layer) * t->cls_stride;
    const size_t tokens = (size_t)c->n + 1;

    memcpy(out, a + 1, c->n * sizeof(float));
    for (uint32_t h = 1; h < c->in->shape.heads; h++)
        for (uint32_t i = 0; i < c->n; i++) out[i] += a[h * tokens + 1 + i];
}

void wn_prune_cls_mean(const struct wn_prune_ctx *c, float *out)
{
    wn_prune_cls_sum(c, out);
    for (uint32_t i = 0; i < c->n; i++) out[i] /= (float)c->in->shape.heads;
}

wn_status wn_prune_keep_top(struct wn_prune_ctx *c, const float *score, uint32_t k, uint8_t *kept)
{
    uint32_t *top = wn_prune_alloc(c, c->n, sizeof(*top));
    uint64_t *scratch = top ? wn_prune_alloc(c, c->n, sizeof(*scratch)) : NULL;

    if (!scratch) return WN_ENOMEM;
    k = wn_prune_top(score, kept, c->n, k, top, scratch);
    for (uint32_t i = 0; i < k; i++) kept[top[i]] = 1;
    return WN_OK;
}

void wn_prune_put_scores(struct wn_prune_ctx *c, const float *scores)
{
    if (!c->out->scores) return;
    memcpy(c->out->scores, scores, c->n * sizeof(float));
    c->out->scored = true;
}
