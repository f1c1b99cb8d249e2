/* pruning/dots.c - dot products of rows, three rows against four, with a fixed order of sums; sums
 * of rows, and the largest of a row.
 *
 * Column c goes into partial sum c % 8 and the eight are added in pairs, so AVX2 (one register of
 * eight) and anything else (two of four) give the same bits; there is no fused multiply-add. */
#include <math.h>
#include <string.h>

#include "pruning/impl.h"

#define LANES 8
#define A_N   3 /* 12 sums, 3 operands, 1 product: the 16 registers of AVX2 */
#define B_N   4
#define PANEL 48 /* rows of a that meet all rows of b before the next: they stay in the L2 cache */
#define TILE  16 /* rows and columns that are mirrored at a time */

#define PAIRS(s) (((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7])))

typedef float lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(4)));
typedef int32_t masks __attribute__((vector_size(LANES * sizeof(float)), aligned(4)));
typedef float four __attribute__((vector_size(4 * sizeof(float)), aligned(4)));

/* Rows [a0, a1) of a against rows [b0, ..) of b. */
struct panel {
    uint32_t width;
    const struct wn_prune_rows *a, *b;
    uint32_t a0, a1, b0;
    float *out;
    size_t out_stride;
};

static inline const float *row_of(const struct wn_prune_rows *r, uint32_t width, uint32_t i)
{
    return r->x + (size_t)(r->list ? r->list[i] : i) * width;
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
    four dots[A_N];

    for (uint32_t j = p->b0; j < p->b->n; j += B_N) {
        const uint32_t bn = p->b->n - j < B_N ? p->b->n - j : B_N;
        for (uint32_t t = 0; t < B_N; t++) b[t] = row_of(p->b, p->width, j + (t < bn ? t : 0));
        for (uint32_t i = p->a0; i < p->a1; i += A_N) {
            const uint32_t an = p->a1 - i < A_N ? p->a1 - i : A_N;
            for (uint32_t t = 0; t < A_N; t++) a[t] = row_of(p->a, p->width, i + (t < an ? t : 0));
            block_body(p->width, a, b, dots);
            for (uint32_t t = 0; t < an; t++)
                memcpy(p->out + (i + t) * p->out_stride + j, &dots[t], bn * sizeof(float));
        }
    }
}

/* Sixteen columns at a time stay in registers while the rows go by. */
static inline __attribute__((always_inline)) void add_rows_body(float *y, uint32_t width, struct wn_prune_rows rows,
                                                                const float *w)
{
    uint32_t c = 0;

    for (; c + 2 * LANES <= width; c += 2 * LANES) {
        lanes *to = (lanes *)(void *)(y + c), one = to[0], two = to[1];
        for (uint32_t i = 0; i < rows.n; i++) {
            const lanes *x = (const lanes *)(const void *)(row_of(&rows, width, i) + c);
            one += w[i] * x[0];
            two += w[i] * x[1];
        }
        to[0] = one;
        to[1] = two;
    }
    for (; c < width; c++)
        for (uint32_t i = 0; i < rows.n; i++) y[c] += w[i] * row_of(&rows, width, i)[c];
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
    void (*add_rows)(float *y, uint32_t width, struct wn_prune_rows rows, const float *w);
    float (*most)(const float *v, const float *bias, uint32_t n);
};

#define KERNELS(name, target)                                                                               \
    target static void panel_##name(const struct panel *p) { panel_body(p); }                               \
    target static void add_rows_##name(float *y, uint32_t width, struct wn_prune_rows rows, const float *w) \
    {                                                                                                       \
        add_rows_body(y, width, rows, w);                                                                   \
    }                                                                                                       \
    target static float most_##name(const float *v, const float *bias, uint32_t n)                          \
    {                                                                                                       \
        return bias ? most_body(v, bias, n) : most_body(v, NULL, n);                                        \
    }                                                                                                       \
    static const struct kernels name = {panel_##name, add_rows_##name, most_##name}

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

void wn_prune_add_rows(float *y, uint32_t width, struct wn_prune_rows rows, const float *w)
{
    kernels()->add_rows(y, width, rows, w);
}

float wn_prune_most(const float *v, const float *bias, uint32_t n)
{
    return kernels()->most(v, bias, n);
}

void wn_prune_dots(uint32_t width, struct wn_prune_rows a, struct wn_prune_rows b, float *out,
                   size_t out_stride)
{
    struct panel p = {.width = width, .a = &a, .b = &b, .out = out, .out_stride = out_stride};

    for (; p.a0 < a.n; p.a0 = p.a1) {
        p.a1 = a.n - p.a0 < PANEL ? a.n : p.a0 + PANEL;
        kernels()->panel(&p);
    }
}

static float inverse_length(float square)
{
    const float length = sqrtf(square);
    return 1.0f / (length > 1e-12f ? length : 1e-12f);
}

void wn_prune_inverse_lengths(const float *x, uint32_t width, uint32_t n, float *inv)
{
    for (uint32_t i = 0; i < n; i++, x += width) {
        float s[LANES] = {0};
        uint32_t c = 0;
        for (; c + LANES <= width; c += LANES)
            for (uint32_t t = 0; t < LANES; t++) s[t] += x[c + t] * x[c + t];
        for (uint32_t t = c; t < width; t++) s[t - c] += x[t] * x[t];
        inv[i] = inverse_length(PAIRS(s));
    }
}

void wn_prune_cosines(uint32_t width, struct wn_prune_rows rows, float *inv, float *out)
{
    const uint32_t n = rows.n;
    struct panel p = {.width = width, .a = &rows, .b = &rows, .out = out, .out_stride = n};

    for (; p.a0 < n; p.a0 = p.a1) { /* dots of the upper half */
        p.a1 = n - p.a0 < PANEL ? n : p.a0 + PANEL;
        p.b0 = p.a0;
        kernels()->panel(&p);
    }
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
}

void wn_prune_axpy(float *y, float w, const float *x, uint32_t width)
{
    for (uint32_t i = 0; i < width; i++) y[i] += w * x[i];
}
