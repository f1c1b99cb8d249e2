/* What the matmuls on the tensor cores share: tiles of weights and of x in shared memory, fragments of weights, and the
 * products of a group. A row of a tile is as many bytes of a row of the matrix and 16 of room, which puts the rows of a
 * fragment 4 banks apart (a row has 64, 128, 256 or 512 bytes: 20, or 4 modulo 32): its loads never collide. */
#ifndef WN_SHARD_CUDA_MATMUL_CUH
#define WN_SHARD_CUDA_MATMUL_CUH

#include "shard/cuda/common.cuh"
#include "shard/cuda/launch_matmul.h"

#define WN_MM_THREADS 256
#define WN_MM_ROOM    16 /* bytes behind a row */
#define WN_MM_DEPTH   256 /* K of a round of the four chains of a sum (matmul_mma.cu) */

/* Queues the copies of one tile: `rows` rows of BYTES from byte `at` on, zeros outside [rows_n, end). */
template <int BYTES>
__device__ __forceinline__ void wn_mm_load(unsigned char *to, const void *from, size_t step, uint32_t rows,
                                           uint32_t row0, uint32_t rows_n, uint32_t at, uint32_t end)
{
#pragma unroll 4
    for (uint32_t i = threadIdx.x; i < rows * (BYTES / 16); i += WN_MM_THREADS) {
        const uint32_t r = i / (BYTES / 16), c = i % (BYTES / 16) * 16;
        const uint32_t left = row0 + r < rows_n && at + c < end ? end - at - c : 0; /* in the row, not in the tile */
        const unsigned char *row = (const unsigned char *)from + (row0 + r) * step;
        wn_cp_async(to + r * (BYTES + WN_MM_ROOM) + c, left ? row + at + c : from, left < 16 ? left : 16);
    }
}

/* A lane's share of 16 columns and 16 of K, as wn_mma takes it. `at` is the word of its two columns' first, in a tile
 * whose rows have BYTES and whose weights have E. */
template <int E, int BYTES> __device__ __forceinline__ void wn_mm_weights(uint32_t af[4], const unsigned char *at)
{
    const uint32_t *low = (const uint32_t *)at, *high = (const uint32_t *)(at + 8 * (BYTES + WN_MM_ROOM));

    if constexpr (E == 1) {
        af[0] = wn_widen_i8(*low);
        af[1] = wn_widen_i8(*high);
        af[2] = wn_widen_i8(*low >> 8);
        af[3] = wn_widen_i8(*high >> 8);
    } else {
        af[0] = low[0];
        af[1] = high[0];
        af[2] = low[4];
        af[3] = high[4];
    }
}

/* Bytes of a part of a row. */
template <int E> __device__ __forceinline__ uint32_t wn_mm_part(const struct wn_cuda_matmul &a)
{
    return E == 1 ? a.w.stride / a.slices : E * (a.w.k / a.slices);
}

/* Tiles of `cols` columns. */
__host__ __device__ __forceinline__ uint32_t wn_mm_tiles(const struct wn_cuda_w &w, uint32_t cols)
{
    return (w.n + cols - 1) / cols;
}

/* The product of a group whose tile it is, one product's after the other; *tile becomes its number there. */
__device__ __forceinline__ struct wn_cuda_matmul wn_mm_product(const struct wn_cuda_matmul_group &g, uint32_t cols,
                                                               uint32_t *tile)
{
    struct wn_cuda_matmul a = {g.out[0], g.x, g.w[0], NULL, 1, 0, NULL};

#pragma unroll
    for (uint32_t i = 1; i < WN_CUDA_GROUP; i++) {
        if (i >= g.n || *tile < wn_mm_tiles(a.w, cols)) break;
        *tile -= wn_mm_tiles(a.w, cols);
        a.out = g.out[i];
        a.w = g.w[i];
    }
    return a;
}

static inline uint32_t wn_mm_tiles_of(const struct wn_cuda_matmul_group *g, uint32_t cols)
{
    uint32_t tiles = 0;

    for (uint64_t i = 0; i < g->n; i++) tiles += wn_mm_tiles(g->w[i], cols);
    return tiles;
}

/* May the kernel have so much shared memory on the device? */
template <typename K> static bool wn_mm_fits(K kernel, size_t bytes)
{
    if (wn_allow_shared(kernel, bytes) == 0) return true;
    (void)cudaGetLastError();
    return false;
}

#endif
