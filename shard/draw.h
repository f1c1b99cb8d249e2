/* shard/draw.h - the arithmetic of a draw: random number, weights, the order of sums. C and CUDA compile the same text,
 * of additions, multiplications and comparisons only (and no fused ones), so a seed gives the same token on every
 * processor. Pure functions. Internal to shard/: sample.h and the backends' pick.
 *
 * Sums over the vocabulary: leaves of 32 ids, groups of 32 leaves, then the groups, each one after the other. */
#ifndef WN_SHARD_DRAW_H
#define WN_SHARD_DRAW_H

#include <stdint.h>

#ifdef __cplusplus
#define WN_DRAW_FN __host__ __device__ __forceinline__
#else
#define WN_DRAW_FN static inline
#endif

#define WN_DRAW_FAN 32u /* members of a leaf, and of a group */

/* Philox4x32-10 (Salmon and others, 2011): four words from a 128-bit counter and a 64-bit key. */
WN_DRAW_FN void wn_draw_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4])
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3], k0 = key[0], k1 = key[1];

    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xd2511f53u * c0, b = (uint64_t)0xcd9e8d57u * c2;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)b;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)a;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* In [0, 1), 53 bits. */
WN_DRAW_FN double wn_draw_uniform(uint64_t seed, uint64_t position)
{
    const uint32_t counter[4] = {(uint32_t)position, (uint32_t)(position >> 32), 0, 0};
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t word[4];

    wn_draw_philox(counter, key, word);
    return (double)(((uint64_t)word[1] << 32 | word[0]) >> 11) * 0x1p-53;
}

/* e^x for x <= 0, to 2e-16 of it; 0 below -700. */
WN_DRAW_FN double wn_draw_exp(double x)
{
    /* 1/n!, from n = 13 down; |r| <= ln(2)/2 */
    const double c[] = {1.6059043836821613e-10, 2.08767569878681e-09,  2.505210838544172e-08, 2.755731922398589e-07,
                        2.7557319223985893e-06, 2.48015873015873e-05,  1.984126984126984e-04, 1.388888888888889e-03,
                        8.333333333333333e-03,  4.1666666666666664e-02, 1.6666666666666666e-01, 0.5, 1.0, 1.0};
    union {
        uint64_t bits;
        double value;
    } scale;
    double r, p = c[0];
    int k;

    if (!(x >= -700.0)) return 0.0;
    k = (int)(x * 1.4426950408889634 - 0.5); /* toward zero: the nearest */
    r = x - (double)k * 6.93147180369123816490e-01; /* ln(2) in two parts: the first product is exact */
    r = r - (double)k * 1.90821492927058770002e-10;
    for (int i = 1; i < 14; i++) p = p * r + c[i];
    scale.bits = (uint64_t)(1023 + k) << 52;
    return p * scale.value;
}

/* The weight of a score: not normalised; 1 for the largest. */
WN_DRAW_FN double wn_draw_weight(float score, float max, float temperature)
{
    return wn_draw_exp(((double)score - (double)max) / (double)temperature);
}

/* Of n summands the one at which the running sum, *before at first, passes target, and in *before the sum before it.
 * Summands of nothing are passed over; where rounding leaves the end short of the target, it is the last of the
 * others. */
WN_DRAW_FN uint32_t wn_draw_find(const double *of, uint32_t n, double target, double *before)
{
    double sum = *before;
    uint32_t last = 0;

    for (uint32_t i = 0; i < n; i++) {
        if (!(of[i] > 0.0)) continue;
        last = i;
        *before = sum;
        sum += of[i];
        if (sum > target) break;
    }
    return last;
}

WN_DRAW_FN double wn_draw_sum(const double *of, uint32_t n)
{
    double sum = 0.0;

    for (uint32_t i = 0; i < n; i++) sum += of[i];
    return sum;
}

/* weight [n] of candidates, largest first: how many stay for top_p of `total`. n + 1: more than n may have to. */
WN_DRAW_FN uint32_t wn_draw_cut(const double *weight, uint32_t n, float top_p, double total)
{
    double taken = 0.0;

    for (uint32_t i = 0; i < n; i++) {
        if (i > 0 && taken >= (double)top_p * total) return i;
        taken += weight[i];
    }
    return taken >= (double)top_p * total ? n : n + 1;
}

#endif
