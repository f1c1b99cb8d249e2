/* Matmul on the tensor cores for bfloat16, made for few rows, where reading the weights is all the time there is: a
 * block takes 32 output columns and 8, 16 or 32 rows, eight warps share the K of each tile, and copies run ahead.
 *
 * Order of sums, for every number of rows: tiles of 256 along the part; in a tile warp group q (0..3) adds the 16-wide
 * steps 4q .. 4q+3 to its own chain; at the end ((q0+q1)+(q2+q3)). Behind the part's end are zeros, which change
 * nothing. So a part's sum depends on its length only, and parts are added by matmul_finish.cu as a tree. */
#include "shard/cuda/common.cuh"

#define COLS    32  /* output columns of a block */
#define DEPTH   256 /* K of a tile */
#define STRIDE  (DEPTH + 8) /* of a row in shared memory: rows 4 banks apart, so a fragment's loads never collide */
#define THREADS 256

template <int ROWS, int STAGES> struct tile_shape {
    static const int stage = (COLS + ROWS) * STRIDE; /* elements */
    static const size_t bytes = (size_t)STAGES * stage * 2;
};

/* Queues the copies of one tile: `rows` rows of 256 values from column k on, zeros outside [rows_n, k_end). */
__device__ __forceinline__ void load_tile(uint16_t *to, const uint16_t *from, size_t stride, uint32_t rows,
                                          uint32_t row0, uint32_t rows_n, uint32_t k, uint32_t k_end)
{
    for (uint32_t i = threadIdx.x; i < rows * (DEPTH / 8); i += THREADS) {
        const uint32_t r = i / (DEPTH / 8), c = i % (DEPTH / 8) * 8;
        const uint32_t left = row0 + r < rows_n && k + c < k_end ? k_end - k - c : 0; /* in the row, not in the tile */
        wn_cp_async(to + r * STRIDE + c, left ? from + (row0 + r) * stride + k + c : from, left < 8 ? 2 * left : 16);
    }
}

/* Block (tile of rows x, tile of columns `tile`, slice z). */
template <int ROWS, int STAGES>
__device__ __forceinline__ void mma_block(const struct wn_cuda_matmul &a, uint32_t tile)
{
    typedef tile_shape<ROWS, STAGES> shape;
    WN_DYNAMIC_SHARED(raw);
    uint16_t *tiles = (uint16_t *)raw;
    const uint16_t *x = (const uint16_t *)a.x.ptr, *w = (const uint16_t *)a.w.ptr;
    const uint32_t m0 = blockIdx.x * ROWS, n0 = tile * COLS, part = a.w.k / a.slices;
    const uint32_t k_begin = blockIdx.z * part, k_end = k_begin + part, steps = (part + DEPTH - 1) / DEPTH;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const uint32_t half = warp % 2, quarter = warp / 2; /* columns 16 * half ..; steps 4 * quarter .. */
    float sum[ROWS / 8][4];

    for (int i = 0; i < ROWS / 8; i++)
        for (int j = 0; j < 4; j++) sum[i][j] = 0.0f;
    for (uint32_t s = 0; s < STAGES - 1; s++) {
        uint16_t *to = tiles + s * shape::stage;
        if (s < steps) {
            load_tile(to, w, a.w.stride, COLS, n0, a.w.n, k_begin + s * DEPTH, k_end);
            load_tile(to + COLS * STRIDE, x, a.x.stride, ROWS, m0, a.out.rows, k_begin + s * DEPTH, k_end);
        }
        wn_cp_commit(); /* empty groups too: the count of groups is the clock */
    }
    for (uint32_t s = 0; s < steps; s++) {
        wn_cp_wait<STAGES - 2>();
        __syncthreads(); /* tile s is there for all, and nobody reads tile s - 1 any more */
        const uint32_t next = s + STAGES - 1;
        if (next < steps) {
            uint16_t *to = tiles + next % STAGES * shape::stage;
            load_tile(to, w, a.w.stride, COLS, n0, a.w.n, k_begin + next * DEPTH, k_end);
            load_tile(to + COLS * STRIDE, x, a.x.stride, ROWS, m0, a.out.rows, k_begin + next * DEPTH, k_end);
        }
        wn_cp_commit();
        const uint16_t *ws = tiles + s % STAGES * shape::stage + (half * 16 + g) * STRIDE + quarter * 64 + 2 * t;
        const uint16_t *xs = tiles + s % STAGES * shape::stage + (COLS + g) * STRIDE + quarter * 64 + 2 * t;
#pragma unroll
        for (int k = 0; k < 64; k += 16) {
            const uint32_t af[4] = {*(const uint32_t *)(ws + k), *(const uint32_t *)(ws + 8 * STRIDE + k),
                                    *(const uint32_t *)(ws + k + 8), *(const uint32_t *)(ws + 8 * STRIDE + k + 8)};
#pragma unroll
            for (int i = 0; i < ROWS / 8; i++) {
                const uint32_t bf[2] = {*(const uint32_t *)(xs + i * 8 * STRIDE + k),
                                        *(const uint32_t *)(xs + i * 8 * STRIDE + k + 8)};
                wn_mma(sum[i], af, bf);
            }
        }
    }
    /* The four chains meet in shared memory: [quarter][row][column]. */
    float *meet = (float *)raw;
    wn_cp_wait<0>();
    __syncthreads();
    for (int i = 0; i < ROWS / 8; i++)
        for (int j = 0; j < 4; j++) {
            const uint32_t col = half * 16 + g + (j / 2) * 8, row = i * 8 + 2 * t + j % 2;
            meet[(quarter * ROWS + row) * COLS + col] = sum[i][j];
        }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < ROWS * COLS; i += THREADS) {
        const uint32_t m = m0 + i / COLS, n = n0 + i % COLS;
        const float v = (meet[i] + meet[ROWS * COLS + i]) + (meet[2 * ROWS * COLS + i] + meet[3 * ROWS * COLS + i]);
        if (m >= a.out.rows || n >= a.w.n) continue;
        if (a.slices > 1)
            a.parts[((size_t)blockIdx.z * a.out.rows + m) * a.w.n + n] = v;
        else
            wn_put(a.out.ptr, a.out.dtype, wn_at(a.out, m, n), wn_activate(a.bias ? v + a.bias[n] : v, a.act));
    }
}

/* grid: tiles of rows, tiles of columns, slices. */
template <int ROWS, int STAGES> __global__ void __launch_bounds__(THREADS) mma_kernel(struct wn_cuda_matmul a)
{
    mma_block<ROWS, STAGES>(a, blockIdx.y);
}

__host__ __device__ __forceinline__ uint32_t col_tiles(const struct wn_cuda_w &w)
{
    return (w.n + COLS - 1) / COLS;
}

/* grid: tiles of rows, tiles of columns of one product after the other. */
template <int ROWS, int STAGES>
__global__ void __launch_bounds__(THREADS) group_kernel(struct wn_cuda_matmul_group g)
{
    struct wn_cuda_matmul a = {g.out[0], g.x, g.w[0], NULL, 1, 0, NULL};
    uint32_t tile = blockIdx.y;

#pragma unroll
    for (uint32_t i = 1; i < WN_CUDA_GROUP; i++) {
        if (i >= g.n || tile < col_tiles(a.w)) break;
        tile -= col_tiles(a.w);
        a.out = g.out[i];
        a.w = g.w[i];
    }
    mma_block<ROWS, STAGES>(a, tile);
}

template <int ROWS, int STAGES> static int run(const struct wn_cuda_matmul *a, wn_cuda_stream st)
{
    const size_t shared = tile_shape<ROWS, STAGES>::bytes;
    dim3 grid((a->out.rows + ROWS - 1) / ROWS, col_tiles(a->w), a->slices);
    int rc = wn_allow_shared(mma_kernel<ROWS, STAGES>, shared);

    if (rc != 0) return rc;
    WN_LAUNCH((mma_kernel<ROWS, STAGES>), grid, THREADS, shared, st, *a);
    rc = (int)cudaGetLastError();
    return rc == 0 && a->slices > 1 ? wn_cuda_run_matmul_finish(a, st) : rc;
}

int wn_cuda_run_matmul_mma(const struct wn_cuda_matmul *a, wn_cuda_stream st)
{
    if (a->out.rows <= 8) return run<8, 4>(a, st); /* 84, 76, 68 KiB: within every target's limit */
    if (a->out.rows <= 16) return run<16, 3>(a, st);
    return run<32, 2>(a, st);
}

template <int ROWS, int STAGES> static int run_group(const struct wn_cuda_matmul_group *a, wn_cuda_stream st)
{
    const size_t shared = tile_shape<ROWS, STAGES>::bytes;
    uint32_t tiles = 0;
    int rc = wn_allow_shared(group_kernel<ROWS, STAGES>, shared);

    if (rc != 0) return rc;
    for (uint64_t i = 0; i < a->n; i++) tiles += col_tiles(a->w[i]);
    dim3 grid((a->x.rows + ROWS - 1) / ROWS, tiles);
    WN_LAUNCH((group_kernel<ROWS, STAGES>), grid, THREADS, shared, st, *a);
    return (int)cudaGetLastError();
}

int wn_cuda_run_matmul_group(const struct wn_cuda_matmul_group *a, wn_cuda_stream st)
{
    if (a->x.rows <= 8) return run_group<8, 4>(a, st);
    if (a->x.rows <= 16) return run_group<16, 3>(a, st);
    return run_group<32, 2>(a, st);
}
