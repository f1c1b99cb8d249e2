/* shard/resample.c - see resample.h. */
#include "shard/resample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define WITH_AVX2 1
#endif

#define FIXED_BITS (32 - 8 - 2) /* a sum of 8-bit samples x weights fits 32 bits with its sign */
#define FIXED_HALF (1 << (FIXED_BITS - 1))
#define GROUP      4 /* taps that the vector code takes at once; rows of weights are padded to it */

/* The weights of one direction: output i is the sum of taps[i].n samples from taps[i].first on. */
struct taps {
    struct tap {
        uint32_t first, n;
    } * tap;         /* [outputs] */
    int32_t *weight; /* [outputs, stride], fixed point, zero past n */
    int16_t *split;  /* [outputs, 2, stride]: weight >> 8, then weight & 255 */
    size_t stride;
};

static double kernel_bilinear(double x)
{
    x = fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

static double kernel_bicubic(double x)
{
    const double a = -0.5; /* Keys' cubic convolution */

    x = fabs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

static double sinc(double x)
{
    if (x == 0.0) return 1.0;
    x *= M_PI;
    return sin(x) / x;
}

static double kernel_lanczos(double x)
{
    return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0;
}

static const struct kernel {
    double (*at)(double x);
    double support; /* half the width, in samples, when nothing is reduced */
} kernels[] = {
    [WN_FILTER_LANCZOS] = {kernel_lanczos, 3.0},
    [WN_FILTER_BILINEAR] = {kernel_bilinear, 1.0},
    [WN_FILTER_BICUBIC] = {kernel_bicubic, 2.0},
};

static void taps_fini(struct taps *t)
{
    free(t->tap);
    free(t->weight);
    free(t->split);
    memset(t, 0, sizeof(*t));
}

/* Weights for outputs first .. first + n - 1 of a direction of in samples resized to out. */
static wn_status taps_init(struct taps *t, const struct kernel *k, uint32_t in, uint32_t out,
                           uint32_t first, uint32_t n, struct wn_err *err)
{
    const double scale = (double)in / out, wide = scale < 1.0 ? 1.0 : scale;
    const double support = k->support * wide, narrow = 1.0 / wide;
    const size_t most = (size_t)ceil(support) * 2 + 1;
    double *exact = malloc(most * sizeof(*exact));
    wn_status rc = WN_OK;

    t->stride = (most + GROUP - 1) / GROUP * GROUP;
    t->tap = calloc(n, sizeof(*t->tap));
    t->weight = calloc(n, t->stride * sizeof(*t->weight));
    t->split = calloc(n, t->stride * 2 * sizeof(*t->split));
    if (!exact || !t->tap || !t->weight || !t->split) {
        rc = wn_fail(err, WN_ENOMEM, "image: resize: %u rows of %zu weights", n, t->stride);
        goto out;
    }
    for (uint32_t i = 0; i < n; i++) {
        const double centre = (first + i + 0.5) * scale;
        const double lo = centre - support + 0.5, hi = centre + support + 0.5;
        const uint32_t from = lo < 0 ? 0 : (uint32_t)lo, to = hi > in ? in : (uint32_t)hi;
        int32_t *weight = t->weight + i * t->stride;
        int16_t *split = t->split + i * t->stride * 2;
        double sum = 0.0;

        WN_ASSERT(to > from && to - from <= most);
        t->tap[i] = (struct tap){from, to - from};
        for (uint32_t x = 0; x < to - from; x++)
            sum += exact[x] = k->at((x + from - centre + 0.5) * narrow);
        for (uint32_t x = 0; x < to - from; x++) {
            double w = (sum != 0.0 ? exact[x] / sum : exact[x]) * (1 << FIXED_BITS);
            weight[x] = (int32_t)(w < 0 ? w - 0.5 : w + 0.5);
            split[x] = (int16_t)(weight[x] >> 8);
            split[t->stride + x] = (int16_t)(weight[x] & 255);
        }
    }
out:
    free(exact);
    return rc;
}

static inline uint8_t clip8(int32_t sum)
{
    int32_t v = sum >> FIXED_BITS;
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

/* One row, which begins at pixel x0, becomes n outputs. */
static void row_plain(const struct taps *t, uint32_t x0, uint32_t n, const uint8_t *src,
                      uint8_t *out)
{
    for (uint32_t i = 0; i < n; i++) {
        const int32_t *w = t->weight + i * t->stride;
        const uint8_t *px = src + (size_t)(t->tap[i].first - x0) * 3;
        int32_t r = FIXED_HALF, g = FIXED_HALF, b = FIXED_HALF;

        for (uint32_t x = 0; x < t->tap[i].n; x++, px += 3) {
            r += px[0] * w[x];
            g += px[1] * w[x];
            b += px[2] * w[x];
        }
        out[i * 3] = clip8(r);
        out[i * 3 + 1] = clip8(g);
        out[i * 3 + 2] = clip8(b);
    }
}

/* One output row from n source rows of bytes samples; sum is scratch of as many. Inlined into a
 * portable and an AVX2 function, so that the compiler makes vectors of each. */
static inline __attribute__((always_inline)) void column_body(const int32_t *weight, uint32_t n,
                                                              const uint8_t *src, size_t stride,
                                                              size_t bytes, int32_t *sum,
                                                              uint8_t *out)
{
    for (size_t x = 0; x < bytes; x++) sum[x] = FIXED_HALF;
    for (uint32_t y = 0; y < n; y++, src += stride)
        for (size_t x = 0; x < bytes; x++) sum[x] += src[x] * weight[y];
    for (size_t x = 0; x < bytes; x++) out[x] = clip8(sum[x]);
}

static void column_plain(const int32_t *weight, uint32_t n, const uint8_t *src, size_t stride,
                         size_t bytes, int32_t *sum, uint8_t *out)
{
    column_body(weight, n, src, stride, bytes, sum, out);
}

#if WITH_AVX2
__attribute__((target("avx2"))) static void column_avx2(const int32_t *weight, uint32_t n,
                                                        const uint8_t *src, size_t stride,
                                                        size_t bytes, int32_t *sum, uint8_t *out)
{
    column_body(weight, n, src, stride, bytes, sum, out);
}

/* ROWS rows at once, four taps at once. Weights of 24 bits do not fit the 16-bit multiply-add, so
 * the high 16 and the low 8 bits are summed apart: (high << 8) + low is the same sum, modulo 2^32,
 * as row_plain's. Reads whole groups, 16 bytes for each: the caller knows how far that reaches. */
#define ROWS 4
__attribute__((target("avx2"))) static void rows_avx2(const struct taps *t, uint32_t x0, uint32_t n,
                                                      const uint8_t *src, size_t src_stride,
                                                      uint8_t *out, size_t out_stride)
{
    /* r0 r1 g0 g1 b0 b1 as 16-bit pairs in the low half, taps 2 and 3 in the high half */
    const __m256i pairs =
        _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1, /**/
                         6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
    const __m256i spread = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);

    for (uint32_t i = 0; i < n; i++) {
        const int16_t *high = t->split + i * t->stride * 2, *low = high + t->stride;
        const uint8_t *px = src + (size_t)(t->tap[i].first - x0) * 3;
        __m256i sum_high[ROWS], sum_low[ROWS];

        for (int r = 0; r < ROWS; r++) sum_high[r] = sum_low[r] = _mm256_setzero_si256();
        for (uint32_t x = 0; x < t->tap[i].n; x += GROUP, px += GROUP * 3) {
            __m128i h = _mm_loadl_epi64((const __m128i *)(const void *)(high + x));
            __m128i l = _mm_loadl_epi64((const __m128i *)(const void *)(low + x));
            __m256i wh = _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(h), spread);
            __m256i wl = _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(l), spread);
            for (int r = 0; r < ROWS; r++) {
                __m128i raw =
                    _mm_loadu_si128((const __m128i *)(const void *)(px + (size_t)r * src_stride));
                __m256i p = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(raw), pairs);
                sum_high[r] = _mm256_add_epi32(sum_high[r], _mm256_madd_epi16(p, wh));
                sum_low[r] = _mm256_add_epi32(sum_low[r], _mm256_madd_epi16(p, wl));
            }
        }
        for (int r = 0; r < ROWS; r++) {
            __m256i s = _mm256_add_epi32(_mm256_slli_epi32(sum_high[r], 8), sum_low[r]);
            __m128i v = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
            uint32_t rgb;
            v = _mm_srai_epi32(_mm_add_epi32(v, _mm_set1_epi32(FIXED_HALF)), FIXED_BITS);
            v = _mm_packs_epi32(v, v);
            rgb = (uint32_t)_mm_cvtsi128_si32(_mm_packus_epi16(v, v));
            memcpy(out + (size_t)r * out_stride + (size_t)i * 3, &rgb, 3);
        }
    }
}
#endif

/* A rectangle of 8-bit samples, three a pixel; readable is how many bytes there are from rgb on. */
struct plane {
    const uint8_t *rgb;
    size_t stride, readable;
};

/* Rows of src, whose first pixel is pixel x0 of the taps' count, become rows of n pixels. */
static void across(const struct taps *t, bool plain, const struct plane *src, uint32_t x0,
                   uint32_t rows, uint32_t n, uint8_t *out, size_t out_stride)
{
    uint32_t y = 0;

#if WITH_AVX2
    if (!plain && __builtin_cpu_supports("avx2")) {
        size_t reach = 0; /* how far past a row's start the vector code reads */
        for (uint32_t i = 0; i < n; i++) {
            size_t taps = (t->tap[i].n + GROUP - 1) / GROUP * GROUP;
            size_t end = (t->tap[i].first - x0 + taps) * 3 + 4;
            if (end > reach) reach = end;
        }
        for (; rows - y >= ROWS && (y + ROWS - 1) * src->stride + reach <= src->readable; y += ROWS)
            rows_avx2(t, x0, n, src->rgb + y * src->stride, src->stride, out + y * out_stride,
                      out_stride);
    }
#endif
    (void)plain;
    for (; y < rows; y++) row_plain(t, x0, n, src->rgb + y * src->stride, out + y * out_stride);
}

/* Columns of src, whose first row is row y0 of the taps' count, become columns of n pixels. */
static void down(const struct taps *t, bool plain, const struct plane *src, uint32_t y0,
                 size_t bytes, uint32_t n, int32_t *sum, uint8_t *out, size_t out_stride)
{
    void (*column)(const int32_t *, uint32_t, const uint8_t *, size_t, size_t, int32_t *,
                   uint8_t *) = column_plain;

#if WITH_AVX2
    if (!plain && __builtin_cpu_supports("avx2")) column = column_avx2;
#endif
    (void)plain;
    for (uint32_t i = 0; i < n; i++)
        column(t->weight + i * t->stride, t->tap[i].n,
               src->rgb + (size_t)(t->tap[i].first - y0) * src->stride, src->stride, bytes, sum,
               out + i * out_stride);
}

static wn_status check(const struct wn_resample *rs, const struct wn_image *src, struct wn_err *err)
{
    WN_ASSERT(rs->filter >= WN_FILTER_LANCZOS && rs->filter <= WN_FILTER_BICUBIC);
    if (!src->width || !src->height || !rs->width || !rs->height)
        return wn_fail(err, WN_EINVAL, "image: resize of %ux%u to %ux%u", src->width, src->height,
                       rs->width, rs->height);
    if (rs->width > WN_RESAMPLE_SIDE_MAX || rs->height > WN_RESAMPLE_SIDE_MAX)
        return wn_fail(err, WN_ELIMIT, "image: resize to %ux%u exceeds %u pixels a side", rs->width,
                       rs->height, WN_RESAMPLE_SIDE_MAX);
    if (!rs->window.width || !rs->window.height || rs->window.x >= rs->width ||
        rs->window.y >= rs->height || rs->window.width > rs->width - rs->window.x ||
        rs->window.height > rs->height - rs->window.y)
        return wn_fail(err, WN_EINVAL, "image: resize: window %ux%u at %u,%u is not inside %ux%u",
                       rs->window.width, rs->window.height, rs->window.x, rs->window.y, rs->width,
                       rs->height);
    return WN_OK;
}

/* The samples of one direction that outputs first .. first + n - 1 are made of. */
struct reach {
    uint32_t first, n;
};

static struct reach reach_of(const struct taps *t, uint32_t first, uint32_t n)
{
    const struct tap *last;

    if (!t->tap) return (struct reach){first, n}; /* this direction is not resized */
    last = &t->tap[n - 1];
    return (struct reach){t->tap[0].first, last->first + last->n - t->tap[0].first};
}

/* Each pass rounds, so their order shows in the last bit. Pillow 13 begins with the columns when
 * the height loses more than twice what the width loses; Pillow 12 and before always began with the
 * rows. */
static bool down_first(const struct wn_resample *rs, const struct wn_image *img)
{
    return rs->height < img->height &&
           (int64_t)img->height - rs->height > 2 * ((int64_t)img->width - rs->width);
}

/* Both directions, one after the other. */
static wn_status both(const struct wn_resample *rs, const struct wn_image *img,
                      const struct taps *tx, const struct taps *ty, const struct plane *src,
                      uint8_t *out, size_t out_stride, struct wn_err *err)
{
    const struct reach x = reach_of(tx, rs->window.x, rs->window.width);
    const struct reach y = reach_of(ty, rs->window.y, rs->window.height);
    const uint32_t w = rs->window.width, h = rs->window.height;
    const bool columns = down_first(rs, img);
    const size_t stride = (size_t)(columns ? x.n : w) * 3, bytes = stride * (columns ? h : y.n);
    uint8_t *mid = malloc(bytes);
    int32_t *sum = malloc(stride * sizeof(*sum));
    struct plane half = {mid, stride, bytes};
    wn_status rc = WN_OK;

    if (!mid || !sum) {
        rc = wn_fail(err, WN_ENOMEM, "image: resize: %zu bytes between the passes", bytes);
    } else if (columns) {
        down(ty, rs->plain, src, y.first, stride, h, sum, mid, stride);
        across(tx, rs->plain, &half, x.first, h, w, out, out_stride);
    } else {
        across(tx, rs->plain, src, x.first, y.n, w, mid, stride);
        down(ty, rs->plain, &half, y.first, stride, h, sum, out, out_stride);
    }
    free(mid);
    free(sum);
    return rc;
}

wn_status wn_resample_run(const struct wn_resample *rs, const struct wn_image *src, uint8_t *out,
                          size_t out_stride, struct wn_err *err)
{
    const uint32_t w = rs->window.width, h = rs->window.height;
    const struct kernel *kernel = &kernels[rs->filter];
    struct taps tx = {0}, ty = {0};
    struct plane from = {.stride = (size_t)src->width * 3};
    size_t skip;
    int32_t *sum = NULL;
    wn_status rc = check(rs, src, err);

    if (rc != WN_OK) return rc;
    if (rs->width != src->width)
        rc = taps_init(&tx, kernel, src->width, rs->width, rs->window.x, w, err);
    if (rc != WN_OK) goto out;
    if (rs->height != src->height)
        rc = taps_init(&ty, kernel, src->height, rs->height, rs->window.y, h, err);
    if (rc != WN_OK) goto out;
    skip = reach_of(&ty, rs->window.y, h).first * from.stride +
           (size_t)reach_of(&tx, rs->window.x, w).first * 3;
    from.rgb = src->rgb + skip;
    from.readable = from.stride * src->height - skip;
    if (tx.tap && ty.tap) {
        rc = both(rs, src, &tx, &ty, &from, out, out_stride, err);
    } else if (tx.tap) {
        across(&tx, rs->plain, &from, tx.tap[0].first, h, w, out, out_stride);
    } else if (ty.tap) {
        sum = malloc((size_t)w * 3 * sizeof(*sum));
        if (sum)
            down(&ty, rs->plain, &from, ty.tap[0].first, (size_t)w * 3, h, sum, out, out_stride);
        else
            rc = wn_fail(err, WN_ENOMEM, "image: resize: a row of %u pixels", w);
    } else {
        for (uint32_t i = 0; i < h; i++)
            memcpy(out + i * out_stride, from.rgb + i * from.stride, (size_t)w * 3);
    }
out:
    taps_fini(&tx);
    taps_fini(&ty);
    free(sum);
    return rc;
}
