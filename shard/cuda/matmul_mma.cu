/* Matmul on the tensor cores for bfloat16, made for few rows, where reading the weights is all the time there is:
 * eight warps share the K of each tile, and copies run ahead.
 *
 * Up to 16 rows a block takes 32 columns and walks over all parts of K: one launch, one wave of blocks, and no parts
 * in memory. With more rows a part has a block of its own, and blocks are wider: x is read again by every block of
 * columns, out of a cache that gives no more than about twice what the memory does.
 *
 * Order of sums, for every number of rows: tiles of 256 along the part; in a tile warp group q (0..3) adds the 16-wide
 * steps 4q .. 4q+3 to its own chain; at the end ((q0+q1)+(q2+q3)). Behind the part's end are zeros, which change
 * nothing. So a part's sum depends on its length only, and parts are added as a tree: here, or by matmul_finish.cu. */
#include "shard/cuda/common.cuh"

#define DEPTH   256 /* K of a tile */
#define STRIDE  (DEPTH + 8) /* of a row in shared memory: rows 4 banks apart, so a fragment's loads never collide */
#define THREADS 256
#define LEVELS  7 /* of the tree over at most WN_CUDA_SLICES_MAX parts */

/* ROWS x COLS: what a block makes. STAGES tiles in shared memory. WALK: over all parts; else over part blockIdx.z. */
template <int ROWS_, int COLS_, int STAGES_, bool WALK_> struct tile_shape {
    static const int rows = ROWS_, cols = COLS_, stages = STAGES_;
    static const bool walk = WALK_;
    static const int stage = (COLS_ + ROWS_) * STRIDE; /* elements */
    static const int each = ROWS_ * COLS_ / THREADS;    /* sums of a thread */
    static const size_t tiles = (size_t)STAGES_ * stage * 2, meet = (size_t)4 * ROWS_ * COLS_ * sizeof(float);
    static const size_t bytes = WALK_ ? tiles + meet : tiles > meet ? tiles : meet;
};

typedef tile_shape<8, 32, 4, true> tile_8;     /* 88 KiB */
typedef tile_shape<16, 32, 3, true> tile_16;   /* 84 KiB */
typedef tile_shape<32, 64, 2, false> tile_32;  /* 99 KiB: the most that a block of any target may have */
typedef tile_shape<64, 128, 2, false> tile_64; /* 198 KiB: where there is so much */

/* Queues the copies of one tile: `rows` rows of 256 values from column k on, zeros outside [rows_n, k_end). */
__device__ __forceinline__ void load_tile(uint16_t *to, const uint16_t *from, size_t stride, uint32_t rows,
                                          uint32_t row0, uint32_t rows_n, uint32_t k, uint32_t k_end)
{
#pragma unroll 4
    for (uint32_t i = threadIdx.x; i < rows * (DEPTH / 8); i += THREADS) {
        const uint32_t r = i / (DEPTH / 8), c = i % (DEPTH / 8) * 8;
        const uint32_t left = row0 + r < rows_n && k + c < k_end ? k_end - k - c : 0; /* in the row, not in the tile */
        wn_cp_async(to + r * STRIDE + c, left ? from + (row0 + r) * stride + k + c : from, left < 8 ? 2 * left : 16);
    }
}

/* A warp's share of a tile: columns cols / 2 of its half, all rows, steps 4q .. 4q+3 of its quarter. */
template <typename S>
__device__ __forceinline__ void tile_step(float sum[S::cols / 32][S::rows / 8][4], const uint16_t *ws,
                                          const uint16_t *xs)
{
#pragma unroll
    for (int k = 0; k < 64; k += 16) {
        uint32_t bf[S::rows / 8][2];
#pragma unroll
        for (int i = 0; i < S::rows / 8; i++) {
            bf[i][0] = *(const uint32_t *)(xs + i * 8 * STRIDE + k);
            bf[i][1] = *(const uint32_t *)(xs + i * 8 * STRIDE + k + 8);
        }
#pragma unroll
        for (int c = 0; c < S::cols / 32; c++) {
            const uint16_t *wc = ws + c * 16 * STRIDE + k;
            const uint32_t af[4] = {*(const uint32_t *)wc, *(const uint32_t *)(wc + 8 * STRIDE),
                                    *(const uint32_t *)(wc + 8), *(const uint32_t *)(wc + 8 * STRIDE + 8)};
#pragma unroll
            for (int i = 0; i < S::rows / 8; i++) wn_mma(sum[c][i], af, bf[i]);
        }
    }
}

/* The four chains of a part meet in shared memory, [quarter][row][column], and start afresh. */
template <typename S>
__device__ __forceinline__ void chains_meet(float *meet, float sum[S::cols / 32][S::rows / 8][4])
{
    const uint32_t warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;

#pragma unroll
    for (int c = 0; c < S::cols / 32; c++)
#pragma unroll
        for (int i = 0; i < S::rows / 8; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const uint32_t col = warp % 2 * (S::cols / 2) + c * 16 + g + (j / 2) * 8, row = i * 8 + 2 * t + j % 2;
                meet[(warp / 2 * S::rows + row) * S::cols + col] = sum[c][i][j];
                sum[c][i][j] = 0.0f;
            }
    __syncthreads();
}

/* The sum of part s goes into the tree: level[l] is a finished subtree of 2^l parts. After the last part, the whole. */
__device__ __forceinline__ float tree_push(float level[LEVELS], uint32_t s, float v)
{
    bool free = false;

#pragma unroll
    for (int l = 0; l < LEVELS; l++) {
        if (free) continue;
        free = !(s >> l & 1);
        if (free) level[l] = v;
        else v = level[l] + v;
    }
    return v;
}

/* Block (tile of rows x, tile of columns `tile`, part z). */
template <typename S> __device__ __forceinline__ void mma_block(const struct wn_cuda_matmul &a, uint32_t tile)
{
    WN_DYNAMIC_SHARED(raw);
    uint16_t *tiles = (uint16_t *)raw;
    float *meet = (float *)(raw + (S::walk ? S::tiles : 0)), level[S::each][LEVELS], sum[S::cols / 32][S::rows / 8][4];
    const uint16_t *x = (const uint16_t *)a.x.ptr, *w = (const uint16_t *)a.w.ptr;
    const uint32_t m0 = blockIdx.x * S::rows, n0 = tile * S::cols, part = a.w.k / a.slices;
    const uint32_t steps = (part + DEPTH - 1) / DEPTH, all = S::walk ? a.slices * steps : steps;
    const uint32_t warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const uint32_t half = warp % 2, quarter = warp / 2; /* columns cols / 2 * half ..; steps 4 * quarter .. */

    const auto load = [&](uint32_t s, bool weights, bool rows) {
        const uint32_t slice = S::walk ? s / steps : blockIdx.z, begin = slice * part;
        const uint32_t k = begin + (S::walk ? s % steps : s) * DEPTH;
        uint16_t *to = tiles + s % S::stages * S::stage;
        if (weights) load_tile(to, w, a.w.stride, S::cols, n0, a.w.n, k, begin + part);
        if (rows) load_tile(to + S::cols * STRIDE, x, a.x.stride, S::rows, m0, a.out.rows, k, begin + part);
    };
#pragma unroll
    for (int c = 0; c < S::cols / 32; c++)
#pragma unroll
        for (int i = 0; i < S::rows / 8; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) sum[c][i][j] = 0.0f;
    for (uint32_t s = 0; s < S::stages - 1 && s < all; s++) load(s, true, false);
    wn_follow(); /* weights are there from the start; x is what the kernel before makes */
    for (uint32_t s = 0; s < S::stages - 1; s++) {
        if (s < all) load(s, false, true);
        wn_cp_commit(); /* empty groups too: the count of groups is the clock */
    }
    for (uint32_t s = 0; s < all; s++) {
        wn_cp_wait<S::stages - 2>();
        __syncthreads(); /* tile s is there for all, and nobody reads tile s - 1, or chains that met, any more */
        if (s + S::stages - 1 < all) load(s + S::stages - 1, true, true);
        wn_cp_commit();
        const uint16_t *at = tiles + s % S::stages * S::stage + g * STRIDE + quarter * 64 + 2 * t;
        tile_step<S>(sum, at + half * (S::cols / 2) * STRIDE, at + S::cols * STRIDE);
        if ((S::walk ? s % steps : s) + 1 < steps) continue;
        if (!S::walk) { /* they meet where the tiles are */
            wn_cp_wait<0>();
            __syncthreads();
        }
        chains_meet<S>(meet, sum);
#pragma unroll(S::walk ? S::each : 4)
        for (uint32_t e = 0; e < S::each; e++) {
            const uint32_t i = threadIdx.x + e * THREADS, m = m0 + i / S::cols, n = n0 + i % S::cols;
            const uint32_t next = S::rows * S::cols;
            float v = (meet[i] + meet[next + i]) + (meet[2 * next + i] + meet[3 * next + i]);
            if (S::walk) v = tree_push(level[e], s / steps, v);
            if (s + 1 < all || m >= a.out.rows || n >= a.w.n) continue;
            if (!S::walk && a.slices > 1)
                a.parts[((size_t)blockIdx.z * a.out.rows + m) * a.w.n + n] = v;
            else
                wn_put(a.out.ptr, a.out.dtype, wn_at(a.out, m, n), wn_activate(a.bias ? v + a.bias[n] : v, a.act));
        }
    }
}

/* grid: tiles of rows, tiles of columns, parts (1 if a block walks over them). */
template <typename S> __global__ void __launch_bounds__(THREADS) mma_kernel(struct wn_cuda_matmul a)
{
    mma_block<S>(a, blockIdx.y);
}

template <typename S> __host__ __device__ __forceinline__ uint32_t col_tiles(const struct wn_cuda_w &w)
{
    return (w.n + S::cols - 1) / S::cols;
}

/* grid: tiles of rows, tiles of columns of one product after the other. */
template <typename S> __global__ void __launch_bounds__(THREADS) group_kernel(struct wn_cuda_matmul_group g)
{
    struct wn_cuda_matmul a = {g.out[0], g.x, g.w[0], NULL, 1, 0, NULL};
    uint32_t tile = blockIdx.y;

#pragma unroll
    for (uint32_t i = 1; i < WN_CUDA_GROUP; i++) {
        if (i >= g.n || tile < col_tiles<S>(a.w)) break;
        tile -= col_tiles<S>(a.w);
        a.out = g.out[i];
        a.w = g.w[i];
    }
    mma_block<S>(a, tile);
}

template <typename S> static auto kernel_of(const struct wn_cuda_matmul *)
{
    return mma_kernel<S>;
}

template <typename S> static auto kernel_of(const struct wn_cuda_matmul_group *)
{
    return group_kernel<S>;
}

/* May the kernel have this shape's shared memory on the device? */
template <typename S, typename A> static bool fits(const A *a)
{
    if (wn_allow_shared(kernel_of<S>(a), S::bytes) == 0) return true;
    (void)cudaGetLastError();
    return false;
}

template <typename S> static int run(const struct wn_cuda_matmul *a, wn_cuda_stream st)
{
    const bool parts = !S::walk && a->slices > 1;
    dim3 grid((a->out.rows + S::rows - 1) / S::rows, col_tiles<S>(a->w), parts ? a->slices : 1);
    int rc;

    WN_LAUNCH(mma_kernel<S>, grid, THREADS, S::bytes, st, *a);
    rc = (int)cudaGetLastError();
    return rc == 0 && parts ? wn_cuda_run_matmul_finish(a, st) : rc;
}

template <typename S> static int run(const struct wn_cuda_matmul_group *a, wn_cuda_stream st)
{
    uint32_t tiles = 0;

    for (uint64_t i = 0; i < a->n; i++) tiles += col_tiles<S>(a->w[i]);
    dim3 grid((a->x.rows + S::rows - 1) / S::rows, tiles);
    WN_LAUNCH(group_kernel<S>, grid, THREADS, S::bytes, st, *a);
    return (int)cudaGetLastError();
}

/* One product, or several. Smaller tiles give the same bits. */
template <typename A> static int run_rows(const A *a, uint32_t rows, wn_cuda_stream st)
{
    if (rows <= 8 && fits<tile_8>(a)) return run<tile_8>(a, st);
    if (rows <= WN_CUDA_WALK_ROWS && fits<tile_16>(a)) return run<tile_16>(a, st);
    if (rows > 32 && fits<tile_64>(a)) return run<tile_64>(a, st);
    return fits<tile_32>(a) ? run<tile_32>(a, st) : (int)cudaErrorInvalidValue;
}

int wn_cuda_run_matmul_mma(const struct wn_cuda_matmul *a, wn_cuda_stream st)
{
    return run_rows(a, a->out.rows, st);
}

int wn_cuda_run_matmul_group(const struct wn_cuda_matmul_group *a, wn_cuda_stream st)
{
    return run_rows(a, a->x.rows, st);
}
