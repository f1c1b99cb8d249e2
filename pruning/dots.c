/* pruning/dots.c - rows.h on the host: dot products of rows, three rows against four, and sums of
 * rows; and the largest of a row.
 *
 * Column c goes into partial sum c % 8 and the eight are added in pairs, so AVX2 (one register of
 * eight) and anything else (two of four) give the same bits; there is no fused multiply-add. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "pruning/impl.h"

#define LANES 8
#define A_N   3 /* 12 sums, 3 operands, 1 product: the 16 registers of AVX2 */
#define B_N   4
#define PANEL 48 /* rows of a that meet all rows of b before the next: they stay in the L2 cache */
#define CHUNK 512 /* columns of a sum that are held while its terms go by */
#define TERMS 4   /* that are added to them at a time */

#define PAIRS(s) (((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7])))

typedef float lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(4)));
typedef int32_t masks __attribute__((vector_size(LANES * sizeof(float)), aligned(4)));
typedef float four __attribute__((vector_size(4 * sizeof(float)), aligned(4)));
typedef double wides __attribute__((vector_size(4 * sizeof(double)), aligned(8)));
typedef uint16_t halves __attribute__((vector_size(4 * sizeof(uint16_t)), aligned(2)));
typedef uint32_t words __attribute__((vector_size(4 * sizeof(uint32_t)), aligned(4)));

/* Rows [a0, a1) of a against rows [b0, ..) of b; float32. */
struct panel {
    const struct wn_row_list *a, *b;
    uint32_t a0, a1, b0;
    float *out;
};

static inline const float *row_of(const struct wn_row_list *r, uint32_t i)
{
    return (const float *)r->m.ptr + (size_t)(r->at ? r->at[i] : i) * r->m.stride;
}

/* PAIRS of four sums at once: the same additions. */
static inline four pairs(const lanes *s)
{
    four h[B_N], ab, cd;

    for (int j = 0; j < B_N; j++)
        h[j] = (four){s[j][0], s[j][1], s[j][2], s[j][3]} + (four){s[j][4], s[j][5], s[j][6], s[j][7]};
    ab = (four){h[0][0], h[1][0], h[0][1], h[1][1]} + (four){h[0][2], h[1][2], h[0][3], h[1][3]};
    cd = (four){h[2][0], h[3][0], h[2][1], h[3][1]} + (four){h[2][2], h[3][2], h[2][3], h[3][3]};
    return (four){ab[0], ab[1], cd[0], cd[1]} + (four){ab[2], ab[3], cd[2], cd[3]};
}

/* Columns c .. c + 7 of three rows times those of four. */
static inline __attribute__((always_inline)) void add_products(lanes sum[A_N][B_N], const float *const *a,
                                                               const float *const *b, uint32_t c)
{
    lanes va[A_N];

    for (int i = 0; i < A_N; i++) va[i] = *(const lanes *)(const void *)(a[i] + c);
    for (int j = 0; j < B_N; j++) {
        const lanes vb = *(const lanes *)(const void *)(b[j] + c);
        for (int i = 0; i < A_N; i++) sum[i][j] += va[i] * vb;
    }
}

/* What is left of the rows from column c on, with zeros up to the next eight. */
static inline __attribute__((always_inline)) void add_rest(lanes sum[A_N][B_N], const float *const *a,
                                                           const float *const *b, uint32_t c, uint32_t width)
{
    float rest[A_N + B_N][LANES] = {0};
    const float *at[A_N + B_N];

    for (int t = 0; t < A_N + B_N; t++) {
        memcpy(rest[t], (t < A_N ? a[t] : b[t - A_N]) + c, (width - c) * sizeof(float));
        at[t] = rest[t];
    }
    add_products(sum, at, at + A_N, 0);
}

static inline __attribute__((always_inline)) void block_body(uint32_t width, const float *const *a,
                                                             const float *const *b, four out[A_N])
{
    lanes sum[A_N][B_N] = {0};
    uint32_t c = 0;

    for (; c + LANES <= width; c += LANES) add_products(sum, a, b, c);
    if (c < width) add_rest(sum, a, b, c, width);
    for (int i = 0; i < A_N; i++) out[i] = pairs(sum[i]);
}

/* At the edges a row is taken twice and its result dropped. */
static inline __attribute__((always_inline)) void panel_body(const struct panel *p)
{
    const float *a[A_N], *b[B_N];
    const uint32_t width = p->a->m.cols;
    four dots[A_N];

    for (uint32_t j = p->b0; j < p->b->n; j += B_N) {
        const uint32_t bn = p->b->n - j < B_N ? p->b->n - j : B_N;
        for (uint32_t t = 0; t < B_N; t++) b[t] = row_of(p->b, j + (t < bn ? t : 0));
        for (uint32_t i = p->a0; i < p->a1; i += A_N) {
            const uint32_t an = p->a1 - i < A_N ? p->a1 - i : A_N;
            for (uint32_t t = 0; t < A_N; t++) a[t] = row_of(p->a, i + (t < an ? t : 0));
            block_body(width, a, b, dots);
            for (uint32_t t = 0; t < an; t++)
                memcpy(p->out + (size_t)(i + t) * p->b->n + j, &dots[t], bn * sizeof(float));
        }
    }
}

/* The row that a term names. */
static inline const char *term_row(const struct wn_row_sums *s, const struct wn_row_term *t)
{
    if (t->row == s->in.rows) return s->last;
    return (const char *)s->in.ptr + (size_t)t->row * s->in.stride * wn_dtype_bytes(s->in.dtype);
}

/* Four values of a row, from column c. */
static inline __attribute__((always_inline)) void get_four(wides *to, const char *row, wn_dtype type, uint32_t c)
{
    if (type == WN_F32) {
        *to = __builtin_convertvector(*(const four *)(const void *)(row + 4 * (size_t)c), wides);
    } else {
        const words bits = __builtin_convertvector(*(const halves *)(const void *)(row + 2 * (size_t)c), words) << 16;
        *to = __builtin_convertvector((four)bits, wides);
    }
}

static inline double get_one(const char *row, wn_dtype type, uint32_t c)
{
    return (double)(type == WN_F32 ? ((const float *)(const void *)row)[c]
                                   : wn_bf16_to_f32(((const wn_bf16 *)(const void *)row)[c]));
}

static inline void put_one(const struct wn_row_sums *s, uint32_t i, uint32_t c, double v)
{
    const size_t at = (size_t)i * s->out.stride + c;

    if (s->out.dtype == WN_F32) ((float *)s->out.ptr)[at] = (float)v;
    else ((wn_bf16 *)s->out.ptr)[at] = wn_f32_to_bf16((float)v);
}

/* Columns [c0, c0 + cols) of n terms' rows onto sum [cols], one term after the other. */
static inline __attribute__((always_inline)) void add_terms(const struct wn_row_sums *s,
                                                            const struct wn_row_term *terms, int n, wn_dtype type,
                                                            uint32_t c0, uint32_t cols, double *sum)
{
    const char *row[TERMS];
    double weight[TERMS];
    uint32_t c = 0;

    for (int t = 0; t < n; t++) {
        row[t] = term_row(s, &terms[t]);
        weight[t] = (double)terms[t].weight;
    }
    for (; c + 4 <= cols; c += 4) {
        wides *to = (wides *)(void *)(sum + c), v = *to, x;
        for (int t = 0; t < n; t++) {
            get_four(&x, row[t], type, c0 + c);
            v += weight[t] * x;
        }
        *to = v;
    }
    for (; c < cols; c++)
        for (int t = 0; t < n; t++) sum[c] += weight[t] * get_one(row[t], type, c0 + c);
}

/* Row i. Sums start at -0, to which all is added exactly. */
static inline __attribute__((always_inline)) void sums_body(const struct wn_row_sums *s, uint32_t i, wn_dtype type)
{
    const struct wn_row_term *end = s->terms + s->first[i + 1];
    const double div = (double)s->div[i], zero = s->first[i] == s->first[i + 1] ? 0.0 : -0.0;
    double sum[CHUNK];

    for (uint32_t c0 = 0; c0 < s->out.cols; c0 += CHUNK) {
        const uint32_t cols = s->out.cols - c0 < CHUNK ? s->out.cols - c0 : CHUNK;
        const struct wn_row_term *t = s->terms + s->first[i];
        for (uint32_t c = 0; c < cols; c++) sum[c] = zero;
        for (; t + TERMS <= end; t += TERMS) add_terms(s, t, TERMS, type, c0, cols, sum);
        for (; t < end; t++) add_terms(s, t, 1, type, c0, cols, sum);
        for (uint32_t c = 0; c < cols; c++) put_one(s, i, c0 + c, sum[c] / div);
    }
}

static inline __attribute__((always_inline)) void take_larger(lanes *most, const lanes *x)
{
    const masks larger = *x > *most;
    *most = (lanes)((larger & (masks)*x) | (~larger & (masks)*most));
}

static inline __attribute__((always_inline)) float most_body(const float *v, const float *bias, uint32_t n)
{
    lanes most[2];
    float all = -INFINITY;
    uint32_t i = 0;

    for (int t = 0; t < LANES; t++) most[0][t] = most[1][t] = -INFINITY;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        for (uint32_t t = 0; t < 2; t++) {
            lanes x = *(const lanes *)(const void *)(v + i + t * LANES);
            if (bias) x += *(const lanes *)(const void *)(bias + i + t * LANES);
            take_larger(&most[t], &x);
        }
    }
    take_larger(&most[0], &most[1]);
    for (int t = 0; t < LANES; t++) all = most[0][t] > all ? most[0][t] : all;
    for (; i < n; i++) {
        const float x = bias ? v[i] + bias[i] : v[i];
        all = x > all ? x : all;
    }
    return all;
}

/* ---- for this processor ---- */

struct kernels {
    void (*panel)(const struct panel *p);
    void (*sums)(const struct wn_row_sums *s, uint32_t i);
    float (*most)(const float *v, const float *bias, uint32_t n);
};

#define KERNELS(name, target)                                                                  \
    target static void panel_##name(const struct panel *p) { panel_body(p); }                  \
    target static void sums_##name(const struct wn_row_sums *s, uint32_t i)                    \
    {                                                                                          \
        if (s->in.dtype == WN_F32) sums_body(s, i, WN_F32);                                    \
        else sums_body(s, i, WN_BF16);                                                         \
    }                                                                                          \
    target static float most_##name(const float *v, const float *bias, uint32_t n)             \
    {                                                                                          \
        return bias ? most_body(v, bias, n) : most_body(v, NULL, n);                           \
    }                                                                                          \
    static const struct kernels name = {panel_##name, sums_##name, most_##name}

KERNELS(plain, );
#if defined(__x86_64__)
KERNELS(avx2, __attribute__((target("avx2"))));
#endif

static const struct kernels *kernels(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) return &avx2;
#endif
    return &plain;
}

float wn_prune_most(const float *v, const float *bias, uint32_t n)
{
    return kernels()->most(v, bias, n);
}

void wn_row_sums(const struct wn_row_sums *s)
{
    for (uint32_t i = 0; i < s->out.rows; i++) kernels()->sums(s, i);
}

static void self_dots(const struct wn_row_list *a, float *out)
{
    const uint32_t width = a->m.cols;

    for (uint32_t i = 0; i < a->n; i++) {
        const float *x = row_of(a, i);
        float s[LANES] = {0};
        uint32_t c = 0;
        for (; c + LANES <= width; c += LANES)
            for (uint32_t t = 0; t < LANES; t++) s[t] += x[c + t] * x[c + t];
        for (uint32_t t = c; t < width; t++) s[t - c] += x[t] * x[t];
        out[i] = PAIRS(s);
    }
}

static void all_dots(const struct wn_row_dots *d)
{
    struct panel p = {.a = &d->a, .b = &d->b, .out = d->out};

    for (; p.a0 < d->a.n; p.a0 = p.a1) {
        p.a1 = d->a.n - p.a0 < PANEL ? d->a.n : p.a0 + PANEL;
        if (d->pairs == WN_ROWS_UPPER) p.b0 = p.a0;
        kernels()->panel(&p);
    }
}

/* The matrix as float32: itself, or a copy, which is *copy then. */
static wn_status widen(struct wn_mat *m, float **copy, struct wn_err *err)
{
    float *to;

    if (m->dtype == WN_F32) return WN_OK;
    *copy = to = malloc((size_t)m->rows * m->cols * sizeof(*to) + 1);
    if (!to) return wn_fail(err, WN_ENOMEM, "%u rows of %u", m->rows, m->cols);
    for (uint32_t i = 0; i < m->rows; i++) {
        const uint16_t *from = (const uint16_t *)m->ptr + (size_t)i * m->stride;
        if (m->dtype == WN_BF16)
            for (uint32_t c = 0; c < m->cols; c++) *to++ = wn_bf16_to_f32(from[c]);
        else
            for (uint32_t c = 0; c < m->cols; c++) *to++ = wn_f16_to_f32(from[c]);
    }
    *m = (struct wn_mat){*copy, WN_F32, m->rows, m->cols, m->cols};
    return WN_OK;
}

wn_status wn_row_dots(const struct wn_row_dots *d, struct wn_err *err)
{
    struct wn_row_dots as_floats = *d;
    float *copy[2] = {NULL, NULL};
    wn_status rc = widen(&as_floats.a.m, &copy[0], err);

    if (rc == WN_OK && d->pairs != WN_ROWS_SELF) {
        if (d->b.m.ptr == d->a.m.ptr && d->b.m.rows == d->a.m.rows) as_floats.b.m = as_floats.a.m;
        else rc = widen(&as_floats.b.m, &copy[1], err);
    }
    if (rc == WN_OK) {
        if (d->pairs == WN_ROWS_SELF) self_dots(&as_floats.a, d->out);
        else all_dots(&as_floats);
    }
    free(copy[0]);
    free(copy[1]);
    return rc;
}
