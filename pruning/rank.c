/* pruning/rank.c - who comes first. A score and an index make one integer, so that the order is
 * total, ties included, and NaN (a broken tower) cannot upset a sort. */
#include <stdlib.h>
#include <string.h>

#include "pruning/impl.h"

static uint32_t order_of(float v)
{
    uint32_t u;

    if (v != v) return 0;
    v += 0.0f; /* -0 is 0 */
    memcpy(&u, &v, sizeof(u));
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

uint64_t wn_prune_key(float score, uint32_t index)
{
    return (uint64_t)order_of(score) << 32 | (uint32_t)~index;
}

static int larger_first(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x < y) - (x > y);
}

uint32_t wn_prune_top(const float *score, const uint8_t *skip, uint32_t n, uint32_t k,
                      uint32_t *out, uint64_t *scratch)
{
    uint32_t m = 0;

    for (uint32_t i = 0; i < n; i++)
        if (!skip || !skip[i]) scratch[m++] = wn_prune_key(score[i], i);
    qsort(scratch, m, sizeof(*scratch), larger_first);
    if (k > m) k = m;
    for (uint32_t i = 0; i < k; i++) out[i] = wn_prune_key_index(scratch[i]);
    return k;
}

/* keys[0 .. k) is a heap with the smallest on top; what is at `at` sinks to its place. */
static void sink(uint64_t *keys, uint32_t k, uint32_t at)
{
    const uint64_t v = keys[at];

    for (uint32_t child; (child = 2 * at + 1) < k; at = child) {
        if (child + 1 < k && keys[child + 1] < keys[child]) child++;
        if (keys[child] >= v) break;
        keys[at] = keys[child];
    }
    keys[at] = v;
}

void wn_prune_top_keys(uint64_t *keys, uint32_t n, uint32_t k)
{
    if (k > n) k = n;
    if (k == 0) return;
    for (uint32_t i = k / 2; i-- > 0;) sink(keys, k, i);
    for (uint32_t i = k; i < n; i++) {
        if (keys[i] <= keys[0]) continue;
        const uint64_t out = keys[0];
        keys[0] = keys[i];
        keys[i] = out;
        sink(keys, k, 0);
    }
    for (uint32_t left = k; left > 1;) { /* the smallest goes to the end */
        const uint64_t last = keys[0];
        keys[0] = keys[--left];
        keys[left] = last;
        sink(keys, left, 0);
    }
}

double wn_prune_quantile(const float *v, const uint32_t *order, uint32_t n, double q)
{
    const double at = q * (double)(n - 1);
    const uint32_t low = (uint32_t)at;
    const double a = (double)v[order[n - 1 - low]], b = low + 1 < n ? (double)v[order[n - 2 - low]] : a;

    return a + (at - (double)low) * (b - a);
}
