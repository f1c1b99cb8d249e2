/* The token of a row, as shard/sample.c picks it, to the bit: a block a row. Greedy and plain draws need the whole row
 * once or twice. For top-k and top-p the block looks for the score down to which at most SORTED ids are left (digit by
 * digit of a number that orders scores), sorts those, and one thread goes through them. What that does not settle -
 * more candidates, a score that is no number, a vocabulary without room - is left to the host. */
#include "shard/cuda/common.cuh"
#include "shard/draw.h"

#define THREADS 512
#define SORTED  1024u /* candidates that fit; a power of two */
#define LEAVES  4864u /* of 32 ids */
#define NONE    UINT32_MAX

struct top {
    float best[THREADS];
    uint32_t id[THREADS];
};

struct few {
    uint64_t key[SORTED]; /* order of the score, upside down, and id: ascending is what comes first */
    double weight[SORTED];
};

/* Dynamic shared memory; of the union one at a time. */
struct room {
    union {
        struct top top;
        struct few few;
        double leaf[LEAVES];
        uint32_t count[256];
    };
    double group[LEAVES / WN_DRAW_FAN];
    double total;
    uint32_t digit, above, n, bad;
};

__device__ __forceinline__ float score_at(const struct wn_cuda_mat &m, size_t row, uint32_t id)
{
    return wn_get(m.ptr, m.dtype, wn_at(m, row, id));
}

/* Unsigned numbers in the order of scores; both zeros are one. */
__device__ __forceinline__ uint32_t order_of(float score)
{
    const uint32_t u = __float_as_uint(score == 0.0f ? 0.0f : score);
    return u >> 31 ? ~u : u | 0x80000000u;
}

__device__ __forceinline__ float score_of(uint32_t order)
{
    return __uint_as_float(order >> 31 ? order & 0x7fffffffu : ~order);
}

/* The first of the largest scores, for every thread; sets room->bad if a score is not finite. */
__device__ __forceinline__ uint32_t largest(const struct wn_cuda_mat &m, size_t row, struct room *room, float *max)
{
    const uint32_t t = threadIdx.x;
    float best = -INFINITY;
    uint32_t id = NONE;

    if (t == 0) room->bad = 0;
    __syncthreads();
#pragma unroll 8
    for (uint32_t i = t; i < m.cols; i += THREADS) {
        const float v = score_at(m, row, i);
        if (!(fabsf(v) < INFINITY)) atomicAdd(&room->bad, 1);
        if (v > best) {
            best = v;
            id = i;
        }
    }
    room->top.best[t] = best;
    room->top.id[t] = id;
    for (uint32_t d = THREADS / 2; d > 0; d /= 2) {
        __syncthreads();
        if (t >= d) continue;
        const float other = room->top.best[t + d];
        if (other > room->top.best[t] || (other == room->top.best[t] && room->top.id[t + d] < room->top.id[t])) {
            room->top.best[t] = other;
            room->top.id[t] = room->top.id[t + d];
        }
    }
    __syncthreads();
    *max = room->top.best[0];
    id = room->top.id[0];
    __syncthreads(); /* the room is used again */
    return id;
}

__device__ __forceinline__ uint32_t parts(uint32_t n)
{
    return (n + WN_DRAW_FAN - 1) / WN_DRAW_FAN;
}

/* Sums of the weights of the vocabulary's parts; their total is in room->total. */
__device__ __forceinline__ void weigh(const struct wn_cuda_mat &m, size_t row, const struct wn_cuda_pick &how,
                                      float max, struct room *room)
{
    const uint32_t leaves = parts(m.cols), groups = parts(leaves);

    for (uint32_t l = threadIdx.x; l < leaves; l += THREADS) {
        const uint32_t end = (l + 1) * WN_DRAW_FAN < m.cols ? (l + 1) * WN_DRAW_FAN : m.cols;
        double sum = 0.0;
        for (uint32_t i = l * WN_DRAW_FAN; i < end; i++)
            sum += wn_draw_weight(score_at(m, row, i), max, how.temperature);
        room->leaf[l] = sum;
    }
    __syncthreads();
    for (uint32_t g = threadIdx.x; g < groups; g += THREADS) {
        const uint32_t first = g * WN_DRAW_FAN, left = leaves - first;
        room->group[g] = wn_draw_sum(room->leaf + first, left < WN_DRAW_FAN ? left : WN_DRAW_FAN);
    }
    __syncthreads();
    if (threadIdx.x == 0) room->total = wn_draw_sum(room->group, groups);
    __syncthreads();
}

/* One thread, after weigh. */
__device__ __forceinline__ uint32_t draw_all(const struct wn_cuda_mat &m, size_t row, const struct wn_cuda_pick &how,
                                             float max, const struct room *room)
{
    const double target = wn_draw_uniform(how.seed, how.position) * room->total;
    const uint32_t leaves = parts(m.cols);
    double before = 0.0, weight[WN_DRAW_FAN];
    uint32_t first = wn_draw_find(room->group, parts(leaves), target, &before) * WN_DRAW_FAN, n = leaves - first;

    first += wn_draw_find(room->leaf + first, n < WN_DRAW_FAN ? n : WN_DRAW_FAN, target, &before);
    first *= WN_DRAW_FAN;
    n = m.cols - first < WN_DRAW_FAN ? m.cols - first : WN_DRAW_FAN;
    for (uint32_t i = 0; i < n; i++) weight[i] = wn_draw_weight(score_at(m, row, first + i), max, how.temperature);
    return first + wn_draw_find(weight, n, target, &before);
}

/* The order of the score that is at place `rank` (from 0, the largest) among the row's, and in room->above how many are
 * larger, in room->n how many are as large. */
__device__ __forceinline__ uint32_t order_at(const struct wn_cuda_mat &m, size_t row, uint32_t rank, struct room *room)
{
    uint32_t prefix = 0;

    if (threadIdx.x == 0) room->above = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (uint32_t i = threadIdx.x; i < 256; i += THREADS) room->count[i] = 0;
        __syncthreads();
#pragma unroll 4
        for (uint32_t i = threadIdx.x; i < m.cols; i += THREADS) {
            const uint32_t o = order_of(score_at(m, row, i));
            if (shift == 24 || o >> (shift + 8) == prefix) atomicAdd(&room->count[o >> shift & 255], 1);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            uint32_t digit = 255;
            while (room->above + room->count[digit] <= rank) room->above += room->count[digit--];
            room->digit = digit;
            room->n = room->count[digit];
        }
        __syncthreads();
        prefix = prefix << 8 | room->digit;
    }
    return prefix;
}

/* The row's candidates from score order `least` on, sorted; room->n: how many. They fit. */
__device__ __forceinline__ void sort_from(const struct wn_cuda_mat &m, size_t row, uint32_t least, struct room *room)
{
    const uint32_t t = threadIdx.x;

    __syncthreads(); /* the counts have been read */
    for (uint32_t i = t; i < SORTED; i += THREADS) room->few.key[i] = UINT64_MAX;
    if (t == 0) room->n = 0;
    __syncthreads();
#pragma unroll 4
    for (uint32_t i = t; i < m.cols; i += THREADS) {
        const uint32_t o = order_of(score_at(m, row, i));
        if (o >= least) room->few.key[atomicAdd(&room->n, 1)] = (uint64_t)~o << 32 | i;
    }
    for (uint32_t size = 2; size <= SORTED; size *= 2)
        for (uint32_t d = size / 2; d > 0; d /= 2) {
            __syncthreads();
            for (uint32_t i = t; i < SORTED; i += THREADS) {
                const uint32_t other = i ^ d;
                const uint64_t a = room->few.key[i], b = room->few.key[other];
                if (other < i || (a > b) != ((i & size) == 0)) continue;
                room->few.key[i] = b;
                room->few.key[other] = a;
            }
        }
    __syncthreads();
}

/* grid: rows. One block an SM is enough, and registers for all that the draw keeps. */
__global__ void __launch_bounds__(THREADS, 1) pick_kernel(struct wn_cuda_picks a)
{
    wn_follow();
    WN_DYNAMIC_SHARED(raw);
    struct room *room = (struct room *)raw;
    const struct wn_cuda_pick how = a.each[blockIdx.x];
    const struct wn_cuda_mat m = a.logits;
    const size_t row = blockIdx.x;
    const uint32_t t = threadIdx.x, vocab = m.cols, k = how.top_k && how.top_k < vocab ? how.top_k : vocab;
    const bool cut = how.top_p < 1.0f, all = k == vocab && !cut;
    float max;

    if (t == 0) a.out[row] = NONE;
    if (!how.wanted) return;
    const uint32_t first = largest(m, row, room, &max);
    if (room->bad) return;
    if (how.temperature == 0.0f || k == 1) { /* of one candidate there is no draw */
        if (t == 0) a.out[row] = first;
        return;
    }
    if (k == vocab ? parts(vocab) > LEAVES : k > SORTED) return;
    if (k == vocab) weigh(m, row, how, max, room);
    if (all) {
        if (t == 0) a.out[row] = draw_all(m, row, how, max, room);
        return;
    }
    const uint32_t most = k < vocab ? k : vocab < SORTED ? vocab : SORTED;
    uint32_t least = order_at(m, row, most - 1, room);
    if (room->above + room->n > SORTED) { /* too many are as large as the last one */
        if (k < vocab || room->above == 0) return;
        least++;
    }
    sort_from(m, row, least, room);
    const uint32_t n = room->n < k ? room->n : k;
    for (uint32_t i = t; i < n; i += THREADS)
        room->few.weight[i] = wn_draw_weight(score_of(~(uint32_t)(room->few.key[i] >> 32)), max, how.temperature);
    __syncthreads();
    if (t != 0) return;
    const double total = k < vocab ? wn_draw_sum(room->few.weight, n) : room->total;
    const uint32_t cut_at = cut ? wn_draw_cut(room->few.weight, n, how.top_p, total) : n;
    const uint32_t stay = cut_at < n ? cut_at : n;
    if (cut_at > n && n < k) return; /* it goes on behind the candidates that are here */
    const double target = wn_draw_uniform(how.seed, how.position) * wn_draw_sum(room->few.weight, stay);
    double before = 0.0;
    a.out[row] = (uint32_t)room->few.key[wn_draw_find(room->few.weight, stay, target, &before)];
}

int wn_cuda_run_pick(const struct wn_cuda_picks *a, wn_cuda_stream st)
{
    static_assert(sizeof(struct room) <= 48 << 10, "what every block may have");
    WN_LAUNCH(pick_kernel, a->logits.rows, THREADS, sizeof(struct room), st, *a);
    return (int)cudaGetLastError();
}
