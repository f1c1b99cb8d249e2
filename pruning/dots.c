/* pruning/dots.c - dot products of rows, four rows against three, with a fixed order of sums.
 *
 * Column c goes into partial sum c % 8 and the eight are added in pairs, so AVX2 (one register of
 * eight) and anything else (two of four) give the same bits; there is no fused multiply-add. */
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "pruning/impl.h"

#if defined(__x86_64__)
#define WITH_AVX2 1
#else
#define WITH_AVX2 0
#endif

#define LANES 8
#define A_N   3 /* 12 accumulators, 3 + 1 operands: the 16 registers of AVX2 */
#define B_N   4
#define PANEL 48 /* rows of a that meet all rows of b before the next: they stay in the L2 cache */

#define PAIRS(s) (((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7])))

typedef float lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(4)));

struct block {
    const float *a[A_N], *b[B_N];
    uint32_t width;
    float out[A_N][B_N];
};

static inline __attribute__((always_inline)) void block_body(struct block *k)
{
    lanes sum[A_N][B_N] = {0};
    uint32_t c = 0;

    for (; c + LANES <= k->width; c += LANES) {
        lanes a[A_N];
        for (int i = 0; i < A_N; i++) a[i] = *(const lanes *)(const void *)(k->a[i] + c);
        for (int j = 0; j < B_N; j++) {
            const lanes b = *(const lanes *)(const void *)(k->b[j] + c);
            for (int i = 0; i < A_N; i++) sum[i][j] += a[i] * b;
        }
    }
    for (int i = 0; i < A_N; i++) {
        for (int j = 0; j < B_N; j++) {
            lanes s = sum[i][j];
            for (uint32_t t = c; t < k->width; t++) s[t - c] += k->a[i][t] * k->b[j][t];
            k->out[i][j] = PAIRS(s);
        }
    }
}

static void block_plain(struct block *k) { block_body(k); }

#if WITH_AVX2
__attribute__((target("avx2"))) static void block_avx2(struct block *k) { block_body(k); }
#endif

static void (*block_fn(void))(struct block *)
{
#if WITH_AVX2
    if (__builtin_cpu_supports("avx2")) return block_avx2;
#endif
    return block_plain;
}

static const float *row_of(const struct wn_prune_rows *r, uint32_t width, uint32_t i)
{
    return r->x + (size_t)(r->list ? r->list[i] : i) * width;
}

/* Rows [a0, a1) against rows [b0, ..). At the edges a row is taken twice and its result dropped. */
static void panel(uint32_t width, const struct wn_prune_rows *a, uint32_t a0, uint32_t a1,
                  const struct wn_prune_rows *b, uint32_t b0, float *out, size_t out_stride)
{
    void (*const run)(struct block *) = block_fn();
    struct block k = {.width = width};

    for (uint32_t j = b0; j < b->n; j += B_N) {
        const uint32_t bn = b->n - j < B_N ? b->n - j : B_N;
        for (uint32_t t = 0; t < B_N; t++) k.b[t] = row_of(b, width, j + (t < bn ? t : 0));
        for (uint32_t i = a0; i < a1; i += A_N) {
            const uint32_t an = a1 - i < A_N ? a1 - i : A_N;
            for (uint32_t t = 0; t < A_N; t++) k.a[t] = row_of(a, width, i + (t < an ? t : 0));
            run(&k);
            for (uint32_t t = 0; t < an; t++)
                memcpy(out + (i + t) * out_stride + j, k.out[t], bn * sizeof(float));
        }
    }
}

void wn_prune_dots(uint32_t width, struct wn_prune_rows a, struct wn_prune_rows b, float *out,
                   size_t out_stride)
{
    for (uint32_t i = 0; i < a.n; i += PANEL)
        panel(width, &a, i, a.n - i < PANEL ? a.n : i + PANEL, &b, 0, out, out_stride);
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

    for (uint32_t i = 0; i < n; i += PANEL) /* dots of the upper half */
        panel(width, &rows, i, n - i < PANEL ? n : i + PANEL, &rows, i, out, n);
    for (uint32_t i = 0; i < n; i++) inv[i] = inverse_length(out[(size_t)i * n + i]);
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t j = i; j < n; j++) {
            const float v = out[(size_t)i * n + j] * inv[i] * inv[j];
            out[(size_t)i * n + j] = v;
            out[(size_t)j * n + i] = v;
        }
    }
}

void wn_prune_axpy(float *y, float w, const float *x, uint32_t width)
{
    for (uint32_t i = 0; i < width; i++) y[i] += w * x[i];
}
