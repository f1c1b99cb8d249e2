/* The plain matmul: a thread makes one element, in the order that shard/backend.h states. For every type and shape;
 * what the other kernels are compared with, and what float32 models run on. */
#include "shard/cuda/common.cuh"
#include "shard/cuda/launch_matmul.h"

#define TILE 16

/* Column k of part s of row n. */
__device__ __forceinline__ float weight(const struct wn_cuda_matmul &a, uint32_t n, uint32_t s, uint32_t k)
{
    const size_t row = (size_t)n * a.w.stride;

    if (a.w.dtype != WN_CUDA_I8) return wn_get(a.w.ptr, a.w.dtype, row + s * (a.w.k / a.slices) + k);
    return (float)((const int8_t *)a.w.ptr)[row + s * (a.w.stride / a.slices) + wn_i8_at(k)];
}

/* grid: columns, rows in tiles of 16. block: 16 x 16. */
__global__ void __launch_bounds__(TILE *TILE) plain_kernel(struct wn_cuda_matmul a)
{
    wn_follow();
    __shared__ float xs[TILE][TILE + 1], ws[TILE][TILE + 1];
    const uint32_t tx = threadIdx.x % TILE, ty = threadIdx.x / TILE, part = a.w.k / a.slices;
    const uint32_t n0 = blockIdx.x * TILE, m0 = blockIdx.y * TILE, n = n0 + tx, m = m0 + ty;
    float level[8]; /* one finished subtree of parts for each power of two: the tree of wn_tree_sum */

    for (uint32_t s = 0; s < a.slices; s++) {
        float sum = 0.0f;
        for (uint32_t k0 = 0; k0 < part; k0 += TILE) {
            const uint32_t k = s * part + k0 + tx;
            const bool inside = k0 + tx < part;
            __syncthreads();
            xs[ty][tx] = inside && m < a.out.rows ? wn_get(a.x.ptr, a.x.dtype, wn_at(a.x, m, k)) : 0.0f;
            ws[ty][tx] = inside && n0 + ty < a.w.n ? weight(a, n0 + ty, s, k0 + tx) : 0.0f;
            __syncthreads();
            const uint32_t len = part - k0 < TILE ? part - k0 : TILE;
            for (uint32_t i = 0; i < len; i++) sum = fmaf(xs[ty][i], ws[tx][i], sum);
        }
        if (a.w.scales && n < a.w.n) sum *= a.w.scales[(size_t)s * a.w.n + n];
        int l = 0;
        for (uint32_t i = s; i & 1; i >>= 1, l++) sum = level[l] + sum;
        level[l] = sum;
    }
    if (m >= a.out.rows || n >= a.w.n) return;
    int top = 0;
    while ((1u << top) < a.slices) top++;
    float v = level[top];
    if (a.bias) v += a.bias[n];
    wn_put(a.out.ptr, a.out.dtype, wn_at(a.out, m, n), wn_activate(v, a.act));
}

int wn_cuda_run_matmul_plain(const struct wn_cuda_matmul *a, wn_cuda_stream st)
{
    for (uint32_t first = 0; first < a->out.rows; first += WN_GRID_Y_MAX * TILE) {
        struct wn_cuda_matmul p = *a;
        const uint32_t left = a->out.rows - first, rows = left < WN_GRID_Y_MAX * TILE ? left : WN_GRID_Y_MAX * TILE;
        p.out = wn_rows_of(a->out, first, rows);
        p.x = wn_rows_of(a->x, first, rows);
        dim3 grid((a->w.n + TILE - 1) / TILE, (rows + TILE - 1) / TILE);
        WN_LAUNCH(plain_kernel, grid, TILE * TILE, 0, st, p);
    }
    return (int)cudaGetLastError();
}
