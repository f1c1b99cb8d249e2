/* tests/unit/prune_case.h - one image for pruning tests: features, every tap, room for a result; and the counter
 * generator that scripts/golden/prune.py uses too. */
#ifndef WN_TESTS_UNIT_PRUNE_CASE_H
#define WN_TESTS_UNIT_PRUNE_CASE_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "pruning/impl.h"

/* Compiled with CASE_DEVICE (tests/cudasim), rows are in a device's memory while a method runs. */
struct prune_case {
    struct wn_prune_in in;
    struct wn_prune_out out;
    float *values; /* [rows, width] the kept rows in float32 */
    float *x, *keys, *query, *cls, *mean, *cls_row;
};

static inline uint64_t case_mix(uint64_t z)
{
    z *= 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static inline uint64_t case_draw(uint64_t stream, uint64_t i)
{
    return case_mix((stream << 32) + i + 1);
}

/* Room for the largest result; taps of `layers` attention layers, all zero. */
static inline void case_init(struct prune_case *c, struct wn_prune_shape s, uint32_t layers)
{
    const size_t tokens = (size_t)s.rows + 1, width = s.width;

    *c = (struct prune_case){.in = {.shape = s, .dtype = WN_F32}};
    c->x = calloc(s.rows * width, sizeof(float));
    c->keys = calloc(tokens * width, sizeof(float));
    c->query = calloc(width, sizeof(float));
    c->cls = calloc(layers * s.heads * tokens + 1, sizeof(float));
    c->mean = calloc(layers * tokens, sizeof(float));
    c->cls_row = calloc(width, sizeof(float));
    c->out.index = calloc(tokens, sizeof(uint32_t));
    c->out.flags = calloc(tokens, 1);
    c->values = calloc(tokens * width, sizeof(float));
    c->out.scores = calloc(s.rows, sizeof(float));
    WN_ASSERT(c->x && c->keys && c->query && c->cls && c->mean && c->cls_row && c->out.index &&
              c->out.flags && c->values && c->out.scores);
    c->in.features = c->x;
    c->in.taps = (struct wn_prune_taps){.cls_attention = c->cls,
                                        .mean_attention = c->mean,
                                        .cls_stride = s.heads * tokens,
                                        .mean_stride = tokens,
                                        .keys = c->keys,
                                        .cls_query = c->query,
                                        .cls_row = c->cls_row};
}

static inline void case_fini(struct prune_case *c)
{
    free(c->x);
    free(c->keys);
    free(c->query);
    free(c->cls);
    free(c->mean);
    free(c->cls_row);
    free(c->out.index);
    free(c->out.flags);
    free(c->out.scores);
    free(c->values);
    wn_prune_out_fini(&c->out);
}

/* Says that the taps are those that the method wants: the arrays of the case hold `layers` in
 * ascending order. */
static inline void case_taps(struct prune_case *c, uint64_t layers, uint64_t keys_layers)
{
    c->in.taps.cls_layers = c->in.taps.mean_layers = layers;
    c->in.taps.keys_layers = keys_layers;
}

/* Makes the values of the result, on the host. */
static inline void case_make_values(struct prune_case *c)
{
    struct wn_row_sums s = wn_prune_sums(&c->in, &c->out);

    s.out.ptr = c->values;
    s.out.dtype = WN_F32;
    wn_row_sums(&s);
}

/* Runs the method and makes the values. */
#ifdef CASE_DEVICE
enum { case_on_device = 1 };
wn_status case_run(struct prune_case *c, const struct wn_prune_method *m, struct wn_err *err);
#else
enum { case_on_device = 0 };
static inline wn_status case_run(struct prune_case *c, const struct wn_prune_method *m, struct wn_err *err)
{
    const wn_status rc = wn_prune_run(m, &c->in, &c->out, err);

    if (rc == WN_OK) case_make_values(c);
    return rc;
}
#endif

/* The place of patch i in the result; UINT32_MAX: not there. */
static inline uint32_t case_find(const struct prune_case *c, uint32_t i)
{
    for (uint32_t r = 0; r < c->out.rows; r++)
        if (c->out.index[r] == i) return r;
    return UINT32_MAX;
}

/* ---- random images, and what tests say about results ---- */

#define CASE_N 576
#define CASE_W 8

static const struct wn_prune_shape grid24 __attribute__((unused)) = {
    .rows = CASE_N, .width = CASE_W, .grid_w = 24, .grid_h = 24, .heads = 2, .feature_layer = 1};

static inline void must_run(struct prune_case *c, const struct wn_prune_method *m)
{
    struct wn_prune_wants w;
    struct wn_err err = {0};

    wn_prune_wants(m, &c->in.ask, c->in.shape.feature_layer, &w);
    case_taps(c, w.cls_layers | w.mean_layers, w.keys_layers);
    if (case_run(c, m, &err) != WN_OK) fail_msg("%s: %s", m->name, err.text);
    assert_in_range(c->out.rows, 1, wn_prune_rows_max(m, &c->in.ask, c->in.shape.rows));
}

static inline void fill(float *v, size_t n, uint64_t stream)
{
    for (size_t i = 0; i < n; i++) v[i] = (float)(case_draw(stream, i) >> 40) / 0x1p23f - 1.0f;
}

/* A picture of random features and taps; layers 0 and 1. */
static inline void case_random(struct prune_case *c, struct wn_prune_shape s, uint64_t seed)
{
    const size_t tokens = (size_t)s.rows + 1;

    case_init(c, s, 2);
    fill(c->x, s.rows * (size_t)s.width, seed + 1);
    fill(c->keys, tokens * s.width, seed + 2);
    fill(c->query, s.width, seed + 3);
    fill(c->cls_row, s.width, seed + 4);
    for (size_t i = 0; i < 2 * tokens * s.heads; i++)
        c->cls[i] = (float)(case_draw(seed + 5, i) >> 44) / 0x1p30f;
    for (size_t i = 0; i < 2 * tokens; i++)
        c->mean[i] = (float)(case_draw(seed + 6, i) >> 44) / 0x1p30f;
}

static inline void close_to(const float *v, const double *want, size_t n, double eps)
{
    for (size_t i = 0; i < n; i++)
        if (!(fabs((double)v[i] - want[i]) <= eps)) fail_msg("[%zu] %g, not %g", i, (double)v[i], want[i]);
}

#endif
