/* pruning/rows.c - products and means of rows for methods, from the worker that has them or from the host; and how a
 * result's rows are written down. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "pruning/impl.h"

#define TILE 16 /* rows and columns that are mirrored at a time */

/* ---- products ---- */

wn_status wn_prune_dots(struct wn_prune_ctx *c, const struct wn_row_dots *d)
{
    struct wn_row_worker *w = c->in ? c->in->worker : NULL;
    const wn_status rc = w ? w->dots(w, d, c->err) : wn_row_dots(d, c->err);

    return rc == WN_OK ? rc : wn_fail(c->err, rc, "pruning method '%s': products of rows", c->method->name);
}

static float inverse_length(float square)
{
    const float length = sqrtf(square);
    return 1.0f / (length > 1e-12f ? length : 1e-12f);
}

wn_status wn_prune_inverse_lengths(struct wn_prune_ctx *c, struct wn_row_list rows, float *inv)
{
    const struct wn_row_dots d = {.out = inv, .a = rows, .pairs = WN_ROWS_SELF};
    const wn_status rc = wn_prune_dots(c, &d);

    for (uint32_t i = 0; rc == WN_OK && i < rows.n; i++) inv[i] = inverse_length(inv[i]);
    return rc;
}

wn_status wn_prune_cosines(struct wn_prune_ctx *c, struct wn_row_list rows, float *inv, float *out)
{
    const uint32_t n = rows.n;
    const struct wn_row_dots d = {.out = out, .a = rows, .b = rows, .pairs = WN_ROWS_UPPER};
    const wn_status rc = wn_prune_dots(c, &d);

    if (rc != WN_OK) return rc;
    for (uint32_t i = 0; i < n; i++) inv[i] = inverse_length(out[(size_t)i * n + i]);
    for (uint32_t i0 = 0; i0 < n; i0 += TILE) {
        const uint32_t i1 = n - i0 < TILE ? n : i0 + TILE;
        for (uint32_t j0 = i0; j0 < n; j0 += TILE) {
            const uint32_t j1 = n - j0 < TILE ? n : j0 + TILE;
            for (uint32_t i = i0; i < i1; i++) {
                for (uint32_t j = j0 > i ? j0 : i; j < j1; j++) {
                    const float v = out[(size_t)i * n + j] * inv[i] * inv[j];
                    out[(size_t)i * n + j] = v;
                    out[(size_t)j * n + i] = v;
                }
            }
        }
    }
    return WN_OK;
}

/* ---- sums ---- */

wn_status wn_prune_mean_columns(struct wn_prune_ctx *c, struct wn_mat m, uint32_t group, struct wn_mat *out)
{
    const uint32_t parts = m.cols / group;
    uint32_t *first = wn_prune_alloc(c, (size_t)m.rows + 1, sizeof(*first));
    float *div = first ? wn_prune_alloc(c, m.rows, sizeof(*div)) : NULL, *mean = NULL;
    struct wn_row_term *terms = div ? wn_prune_alloc(c, (size_t)m.rows * parts, sizeof(*terms)) : NULL;
    struct wn_row_worker *w = c->in->worker;
    struct wn_row_sums s = {
        .out = {NULL, WN_F32, m.rows, group, group},
        .in = {m.ptr, m.dtype, m.rows * parts, group, group},
        .first = first,
        .terms = terms,
        .div = div,
    };
    wn_status rc;

    WN_ASSERT(m.stride == m.cols);
    if (!terms || (!w && !(mean = wn_prune_alloc(c, (size_t)m.rows * group, sizeof(*mean))))) return WN_ENOMEM;
    for (uint32_t i = 0; i < m.rows * parts; i++) terms[i] = (struct wn_row_term){i, 1.0f};
    for (uint32_t i = 0; i <= m.rows; i++) first[i] = i * parts;
    for (uint32_t i = 0; i < m.rows; i++) div[i] = (float)parts;
    if (!w) {
        s.out.ptr = mean;
        wn_row_sums(&s);
        *out = s.out;
        return WN_OK;
    }
    rc = w->sums(w, &s, out, c->err);
    return rc == WN_OK ? rc : wn_fail(c->err, rc, "pruning method '%s': means of keys", c->method->name);
}

/* ---- what a result's rows are made of ---- */

/* A larger place for n of `bytes` each that has what is at `old`, which is freed; NULL: no memory, and old stays. */
static void *grow(void *old, size_t used, size_t n, size_t bytes)
{
    void *p = malloc(n * bytes);

    if (!p) return NULL;
    if (used) memcpy(p, old, used * bytes);
    free(old);
    return p;
}

wn_status wn_prune_recipe_begin(struct wn_prune_ctx *c, uint32_t rows_max)
{
    struct wn_prune_recipe *r = &c->out->recipe;
    void *p;

    r->terms_n = 0;
    c->out->rows = 0;
    if (r->rows_room < rows_max) {
        r->rows_room = 0;
        if (!(p = grow(r->first, 0, (size_t)rows_max + 1, sizeof(*r->first)))) return WN_ENOMEM;
        r->first = p;
        if (!(p = grow(r->div, 0, rows_max, sizeof(*r->div)))) return WN_ENOMEM;
        r->div = p;
        r->rows_room = rows_max;
    }
    r->first[0] = 0;
    return WN_OK;
}

void wn_prune_out_fini(struct wn_prune_out *out)
{
    free(out->recipe.first);
    free(out->recipe.div);
    free(out->recipe.terms);
    out->recipe = (struct wn_prune_recipe){0};
}

void wn_prune_add_term(struct wn_prune_ctx *c, uint32_t row, float weight)
{
    struct wn_prune_recipe *r = &c->out->recipe;

    if (r->terms_n == r->terms_room) {
        const size_t room = r->terms_room ? 4 * r->terms_room : 1024;
        struct wn_row_term *grown = grow(r->terms, r->terms_n, room, sizeof(*grown));
        if (!grown) {
            c->no_memory = true;
            return;
        }
        r->terms = grown;
        r->terms_room = room;
    }
    r->terms[r->terms_n++] = (struct wn_row_term){row, weight};
}

void wn_prune_put_sum(struct wn_prune_ctx *c, uint32_t index, uint8_t flags, float div)
{
    struct wn_prune_out *out = c->out;

    out->index[out->rows] = index;
    out->flags[out->rows] = flags;
    out->recipe.div[out->rows++] = div;
    out->recipe.first[out->rows] = (uint32_t)out->recipe.terms_n;
}

void wn_prune_put(struct wn_prune_ctx *c, uint32_t index, uint8_t flags)
{
    wn_prune_add_term(c, flags & WN_PRUNE_CLS ? c->n : index, 1.0f);
    wn_prune_put_sum(c, index, flags, 1.0f);
}

void wn_prune_put_kept(struct wn_prune_ctx *c, const uint8_t *kept)
{
    for (uint32_t i = 0; i < c->n; i++)
        if (kept[i]) wn_prune_put(c, i, 0);
}

struct wn_row_sums wn_prune_sums(const struct wn_prune_in *in, const struct wn_prune_out *out)
{
    const uint32_t width = in->shape.width;

    return (struct wn_row_sums){
        .out = {NULL, in->dtype, out->rows, width, width},
        .in = {(void *)(uintptr_t)in->features, in->dtype, in->shape.rows, width, width},
        .last = in->taps.cls_row,
        .first = out->recipe.first,
        .terms = out->recipe.terms,
        .div = out->recipe.div,
    };
}

wn_status wn_prune_gather(const struct wn_prune_in *in, const struct wn_prune_out *out, void *dst, struct wn_err *err)
{
    const struct wn_row_sums all = wn_prune_sums(in, out);
    const size_t bytes = wn_mat_row_bytes(&all.out);

    WN_ASSERT(!in->worker);
    for (uint32_t i = 0; i < out->rows; i++) {
        struct wn_row_sums one = all;
        char *to = (char *)dst + i * bytes;
        if (!out->flags[i]) {
            memcpy(to, (const char *)in->features + out->index[i] * bytes, bytes);
            continue;
        }
        if (in->dtype == WN_F16)
            return wn_fail(err, WN_EUNSUPP, "pruning: merged rows do not go into %s", wn_dtype_name(in->dtype));
        one.out.ptr = to;
        one.out.rows = 1;
        one.first += i;
        one.div += i;
        wn_row_sums(&one);
    }
    return WN_OK;
}
