/* Matmul on the tensor cores for bfloat16, made for few rows, where reading the weights is all the time there is:
 * eight warps share the K of each tile, and copies run ahead. Weights of int8 are widened between shared memory and
 * the product: all their values are bfloat16 numbers, so their sums are those of such weights, times a scale at the
 * end of each part. Of more than 64 rows with them matmul_many.cu makes the same sums.
 *
 * Up to 16 rows a block takes 32 columns and walks over all parts of K: one launch, one wave of blocks, and no parts
 * in memory. With more rows a part has a block of its own, and blocks are wider: x is read again by every block of
 * columns, out of a cache that gives no more than about twice what the memory does.
 *
 * Order of sums, for every number of rows: tiles of 256 along the part; in a tile warp group q (0..3) adds the 16-wide
 * steps 4q .. 4q+3 to its own chain; at the end ((q0+q1)+(q2+q3)). Behind the part's end are zeros, which change
 * nothing. So a part's sum depends on its length only, and parts are added as a tree: here, or by matmul_finish.cu. */
#include "shard/cuda/matmul.cuh"

#define DEPTH   WN_MM_DEPTH /* K of a tile */
#define THREADS WN_MM_THREADS
#define LEVELS  7 /* of the tree over at most WN_CUDA_SLICES_MAX parts */

/* Bytes of a row of a tile in shared memory, E a value. */
template <int E> struct tile_row {
    static const int bytes = DEPTH * E, step = bytes + WN_MM_ROOM;
};

/* ROWS x COLS: what a block makes, of weights of E bytes. STAGES tiles in shared memory. WALK: over all parts; else
 * over part blockIdx.z. */
template <int E, int ROWS, int COLS, int STAGES, bool WALK> struct tile_shape {
    static const int e = E, rows = ROWS, cols = COLS, stages = STAGES;
    static const bool walk = WALK;
    static const int w_bytes = COLS * tile_row<E>::step, stage = w_bytes + ROWS * tile_row<2>::step;
    static const int each = ROWS * COLS / THREADS; /* sums of a thread */
    static const size_t tiles = (size_t)STAGES * stage, meet = (size_t)4 * ROWS * COLS * sizeof(float);
    static const size_t bytes = WALK ? tiles + meet : tiles > meet ? tiles : meet;
};

/* The last are for where no more than 99 KiB fit. */
template <int E> struct tiles_of { /* bfloat16 */
    typedef tile_shape<E, 8, 32, 4, true> few;     /* 87 KiB */
    typedef tile_shape<E, 16, 32, 3, true> some;   /* 83 KiB */
    typedef tile_shape<E, 32, 64, 2, false> more;  /* 99 KiB */
    typedef tile_shape<E, 64, 128, 2, false> most; /* 198 KiB */
    typedef more less;
};

template <> struct tiles_of<1> { /* int8: as many bytes on their way are more tiles */
    typedef tile_shape<1, 8, 32, 5, true> few;     /* 67 KiB, so a multiprocessor of 9.0 has three blocks */
    typedef tile_shape<1, 16, 32, 4, true> some;   /* 75 KiB */
    typedef tile_shape<1, 32, 64, 3, false> more;  /* 101 KiB */
    typedef tile_shape<1, 64, 128, 3, false> most; /* 201 KiB */
    typedef tile_shape<1, 32, 64, 2, false> less;  /* 67 KiB */
};

/* A warp's share of a tile: columns cols / 2 of its half, all rows, steps 4q .. 4q+3 of its quarter. */
template <typename S>
__device__ __forceinline__ void tile_step(float sum[S::cols / 32][S::rows / 8][4], const unsigned char *ws,
                                          const unsigned char *xs)
{
#pragma unroll
    for (int k = 0; k < 64; k += 16) {
        uint32_t bf[S::rows / 8][2];
#pragma unroll
        for (int i = 0; i < S::rows / 8; i++) {
            const uint32_t *xi = (const uint32_t *)(xs + i * 8 * tile_row<2>::step + 2 * k);
            bf[i][0] = xi[0];
            bf[i][1] = xi[4];
        }
#pragma unroll
        for (int c = 0; c < S::cols / 32; c++) {
            uint32_t af[4];
            wn_mm_weights<S::e, DEPTH * S::e>(af, ws + c * 16 * tile_row<S::e>::step + k * S::e);
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
    float *meet = (float *)(raw + (S::walk ? S::tiles : 0)), level[S::each][LEVELS], sum[S::cols / 32][S::rows / 8][4];
    float scale[S::each];
    const uint32_t m0 = blockIdx.x * S::rows, n0 = tile * S::cols, part = a.w.k / a.slices;
    const uint32_t w_part = wn_mm_part<S::e>(a);
    const uint32_t steps = (part + DEPTH - 1) / DEPTH, all = S::walk ? a.slices * steps : steps;
    const uint32_t warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const uint32_t half = warp % 2, quarter = warp / 2; /* columns cols / 2 * half ..; steps 4 * quarter .. */

    const auto load = [&](uint32_t s, bool weights, bool rows) {
        const uint32_t slice = S::walk ? s / steps : blockIdx.z, k = (S::walk ? s % steps : s) * DEPTH;
        unsigned char *to = raw + s % S::stages * S::stage;
        if (weights)
            wn_mm_load<DEPTH * S::e>(to, a.w.ptr, (size_t)a.w.stride * S::e, S::cols, n0, a.w.n,
                                     slice * w_part + k * S::e, (slice + 1) * w_part);
        if (rows)
            wn_mm_load<DEPTH * 2>(to + S::w_bytes, a.x.ptr, (size_t)a.x.stride * 2, S::rows, m0, a.out.rows,
                                  2 * (slice * part + k), 2 * (slice + 1) * part);
    };
    const auto scale_of = [&](uint32_t slice, uint32_t e) {
        const uint32_t n = n0 + (threadIdx.x + e * THREADS) % S::cols;
        return n < a.w.n ? a.w.scales[(size_t)slice * a.w.n + n] : 0.0f;
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
        if (S::e == 1 && S::walk && s % steps == 0) /* asked for long before they are wanted */
            for (uint32_t e = 0; e < S::each; e++) scale[e] = scale_of(s / steps, e);
        const unsigned char *at = raw + s % S::stages * S::stage + 4 * t;
        tile_step<S>(sum, at + (half * (S::cols / 2) + g) * tile_row<S::e>::step + quarter * 64 * S::e,
                     at + S::w_bytes + g * tile_row<2>::step + quarter * 128);
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
            if (S::e == 1) v *= S::walk ? scale[e] : scale_of(blockIdx.z, e);
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

/* grid: tiles of rows, tiles of columns of one product after the other. */
template <typename S> __global__ void __launch_bounds__(THREADS) group_kernel(struct wn_cuda_matmul_group g)
{
    uint32_t tile = blockIdx.y;
    const struct wn_cuda_matmul a = wn_mm_product(g, S::cols, &tile);

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

template <typename S, typename A> static bool fits(const A *a)
{
    return wn_mm_fits(kernel_of<S>(a), S::bytes);
}

template <typename S> static int run(const struct wn_cuda_matmul *a, wn_cuda_stream st)
{
    const bool parts = !S::walk && a->slices > 1;
    dim3 grid((a->out.rows + S::rows - 1) / S::rows, wn_mm_tiles(a->w, S::cols), parts ? a->slices : 1);
    int rc;

    WN_LAUNCH(mma_kernel<S>, grid, THREADS, S::bytes, st, *a);
    rc = (int)cudaGetLastError();
    return rc == 0 && parts ? wn_cuda_run_matmul_finish(a, st) : rc;
}

template <typename S> static int run(const struct wn_cuda_matmul_group *a, wn_cuda_stream st)
{
    dim3 grid((a->x.rows + S::rows - 1) / S::rows, wn_mm_tiles_of(a, S::cols));

    WN_LAUNCH(group_kernel<S>, grid, THREADS, S::bytes, st, *a);
    return (int)cudaGetLastError();
}

static int run_many(const struct wn_cuda_matmul *a, wn_cuda_stream st)
{
    return wn_cuda_run_matmul_many(a, st);
}

static int run_many(const struct wn_cuda_matmul_group *a, wn_cuda_stream st)
{
    return wn_cuda_run_matmul_many_group(a, st);
}

/* One product, or several. Smaller tiles give the same bits. */
template <int E, typename A> static int run_rows(const A *a, uint32_t rows, wn_cuda_stream st)
{
    typedef tiles_of<E> T;

    if (E == 1 && rows > WN_CUDA_MANY_ROWS) {
        const int rc = run_many(a, st);
        if (rc != (int)cudaErrorNotSupported) return rc;
    }
    if (rows <= 8 && fits<typename T::few>(a)) return run<typename T::few>(a, st);
    if (rows <= WN_CUDA_WALK_ROWS && fits<typename T::some>(a)) return run<typename T::some>(a, st);
    if (rows > 32 && fits<typename T::most>(a)) return run<typename T::most>(a, st);
    if (fits<typename T::more>(a)) return run<typename T::more>(a, st);
    return fits<typename T::less>(a) ? run<typename T::less>(a, st) : (int)cudaErrorInvalidValue;
}

int wn_cuda_run_matmul_mma(const struct wn_cuda_matmul *a, wn_cuda_stream st)
{
    const uint32_t most = a->slices > 1 ? WN_CUDA_PART_ROWS : a->out.rows;
    int rc = 0;

    for (uint32_t first = 0; rc == 0 && first < a->out.rows; first += most) {
        const uint32_t rows = a->out.rows - first < most ? a->out.rows - first : most;
        struct wn_cuda_matmul p = *a;
        p.out = wn_rows_of(a->out, first, rows);
        p.x = wn_rows_of(a->x, first, rows);
        rc = a->w.dtype == WN_CUDA_I8 ? run_rows<1>(&p, rows, st) : run_rows<2>(&p, rows, st);
    }
    return rc;
}

int wn_cuda_run_matmul_group(const struct wn_cuda_matmul_group *a, wn_cuda_stream st)
{
    return a->w[0].dtype == WN_CUDA_I8 ? run_rows<1>(a, a->x.rows, st) : run_rows<2>(a, a->x.rows, st);
}
