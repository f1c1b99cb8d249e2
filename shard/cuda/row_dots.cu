/* Products of rows, by which pruning chooses: with the host's order of sums (pruning/rows.h), so that a choice is the
 * same wherever it was prepared. Tensor cores would round otherwise; at 576 rows of 1,024 these are 0.7 GFLOP.
 *
 * A block makes TILE x TILE products. The eight threads of a group of lanes hold the eight partial sums of the same
 * products, each those of its columns; shuffles add them in pairs. */
#include "shard/cuda/common.cuh"

#define THREADS 128
#define TILE    32u
#define PART    64u        /* columns that are in shared memory at a time */
#define STRIDE  (PART + 8) /* rows one apart are eight banks apart */
#define EACH    8          /* a thread has EACH x EACH products: rows and columns two apart */

enum { ALL, UPPER, SELF }; /* wn_row_pairs */

__device__ __forceinline__ uint32_t row_at(const struct wn_cuda_row_list &l, uint32_t i)
{
    return l.at ? l.at[i] : i;
}

/* Columns [c0, c0 + PART) of rows [first, first + TILE) of the list; zeros beyond either end. */
template <int W>
__device__ __forceinline__ void load(float *to, const struct wn_cuda_row_list &l, uint32_t first, uint32_t c0)
{
    for (uint32_t e = threadIdx.x * W; e < TILE * PART; e += THREADS * W) {
        const uint32_t i = e / PART, c = e % PART;
        float v[W];
        for (int j = 0; j < W; j++) v[j] = 0.0f;
        if (first + i < l.n && c0 + c < l.m.cols)
            wn_get_n<W>(v, l.m.ptr, l.m.dtype, wn_at(l.m, row_at(l, first + i), c0 + c));
        for (int j = 0; j < W; j++) to[i * STRIDE + c + j] = v[j];
    }
}

/* The eight partial sums of a group of lanes: ((s0 + s4) + (s2 + s6)) + ((s1 + s5) + (s3 + s7)), for all of them. */
__device__ __forceinline__ float add_lanes(float v)
{
    for (int d = 4; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffffu, v, d);
    return v;
}

/* grid: columns / TILE, rows / TILE. */
template <int W> __global__ void __launch_bounds__(THREADS) row_dots_kernel(struct wn_cuda_row_dots d)
{
    __shared__ float a[TILE * STRIDE], b[TILE * STRIDE];
    const uint32_t lane = threadIdx.x % 8, group = threadIdx.x / 8 % 4, warp = threadIdx.x / 32;
    const uint32_t i0 = blockIdx.y * TILE, j0 = blockIdx.x * TILE;
    const uint32_t i1 = warp / 2 * 16 + group / 2, j1 = warp % 2 * 16 + group % 2;
    float sum[EACH][EACH] = {}, x[EACH], y[EACH];

    if (d.pairs == UPPER && j0 + TILE <= i0) return;
    for (uint32_t c0 = 0; c0 < d.a.m.cols; c0 += PART) {
        __syncthreads(); /* the part before has been read */
        load<W>(a, d.a, i0, c0);
        load<W>(b, d.b, j0, c0);
        __syncthreads();
        for (uint32_t c = lane; c < PART; c += 8) {
#pragma unroll
            for (int r = 0; r < EACH; r++) {
                x[r] = a[(i1 + 2 * r) * STRIDE + c];
                y[r] = b[(j1 + 2 * r) * STRIDE + c];
            }
#pragma unroll
            for (int r = 0; r < EACH; r++)
#pragma unroll
                for (int s = 0; s < EACH; s++) sum[r][s] += x[r] * y[s];
        }
    }
#pragma unroll
    for (int r = 0; r < EACH; r++) {
        const uint32_t i = i0 + i1 + 2 * r;
#pragma unroll
        for (int s = 0; s < EACH; s++) {
            const uint32_t j = j0 + j1 + 2 * s;
            const float v = add_lanes(sum[r][s]);
            if ((uint32_t)s == lane && i < d.a.n && j < d.b.n) d.out[(size_t)i * d.b.n + j] = v;
        }
    }
}

/* Eight threads a row, THREADS / 8 rows a block. */
__global__ void __launch_bounds__(THREADS) self_dots_kernel(struct wn_cuda_row_dots d)
{
    const uint32_t i = blockIdx.x * (THREADS / 8) + threadIdx.x / 8;
    const size_t row = wn_at(d.a.m, row_at(d.a, i < d.a.n ? i : 0), 0);
    float sum = 0.0f;

    for (uint32_t c = threadIdx.x % 8; c < d.a.m.cols; c += 8) {
        const float v = wn_get(d.a.m.ptr, d.a.m.dtype, row + c);
        sum += v * v;
    }
    sum = add_lanes(sum);
    if (threadIdx.x % 8 == 0 && i < d.a.n) d.out[i] = sum;
}

int wn_cuda_run_row_dots(const struct wn_cuda_row_dots *a, wn_cuda_stream st)
{
    dim3 grid((a->b.n + TILE - 1) / TILE, (a->a.n + TILE - 1) / TILE);

    if (a->pairs == SELF)
        WN_LAUNCH(self_dots_kernel, (a->a.n + THREADS / 8 - 1) / (THREADS / 8), THREADS, 0, st, *a);
    else if (grid.y > WN_GRID_Y_MAX)
        return (int)cudaErrorInvalidValue;
    else if (wn_wide(&a->a.m) && wn_wide(&a->b.m))
        WN_LAUNCH(row_dots_kernel<8>, grid, THREADS, 0, st, *a);
    else
        WN_LAUNCH(row_dots_kernel<1>, grid, THREADS, 0, st, *a);
    return (int)cudaGetLastError();
}
