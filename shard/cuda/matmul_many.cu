/* Matmul of many rows with int8 weights, in the sums of matmul_mma.cu: the same bits. bfloat16 goes to cuBLASLt. For
 * that int8 would have to be widened in memory, which writes two bytes a weight and reads them again, and each part of
 * a sum would have to lie there as float32 until it is scaled.
 *
 * The four chains of a sum are made one after the other, each down the whole part, so that a thread has the sums of one
 * chain, and what the chains before have come to, in its registers. A block makes 128 x 128: weights are read again for
 * each 128 rows, and x for each 128 columns, both from the cache. */
#include "shard/cuda/matmul.cuh"

#define ROWS    128
#define COLS    128
#define BK      64 /* K of a tile: what a chain has of a round */
#define STAGES  4
#define X_BYTES (BK * 2)
#define W_TILE  (COLS * (BK + WN_MM_ROOM))
#define STAGE   (W_TILE + ROWS * (X_BYTES + WN_MM_ROOM))
#define OUT_STEP (COLS + 4) /* floats of a row of results in shared memory */
#define SHARED  ((size_t)STAGES * STAGE) /* 112 KiB */

static_assert(SHARED >= ROWS * OUT_STEP * sizeof(float), "results lie where the tiles were");

/* A warp's 64 rows x 32 columns of a tile; ws, xs: the lane's first places. */
__device__ __forceinline__ void tile_step(float sum[2][8][4], const unsigned char *ws, const unsigned char *xs)
{
#pragma unroll
    for (int k = 0; k < BK; k += 16) {
        uint32_t af[2][4];
#pragma unroll
        for (int c = 0; c < 2; c++) wn_mm_weights<1, BK>(af[c], ws + c * 16 * (BK + WN_MM_ROOM) + k);
#pragma unroll
        for (int i = 0; i < 8; i += 2) {
            uint32_t bf[4];
            wn_ldmatrix(bf, xs + i * 8 * (X_BYTES + WN_MM_ROOM) + 2 * k);
#pragma unroll
            for (int c = 0; c < 2; c++) {
                wn_mma(sum[c][i], af[c], bf);
                wn_mma(sum[c][i + 1], af[c], bf + 2);
            }
        }
    }
}

/* to += more, and more = 0. */
__device__ __forceinline__ void add_sums(float to[2][8][4], float more[2][8][4])
{
#pragma unroll
    for (int c = 0; c < 2; c++)
#pragma unroll
        for (int i = 0; i < 8; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                to[c][i][j] += more[c][i][j];
                more[c][i][j] = 0.0f;
            }
}

/* Block (tile of rows x, tile of columns `tile`, part z). */
__device__ __forceinline__ void many_block(const struct wn_cuda_matmul &a, uint32_t tile)
{
    WN_DYNAMIC_SHARED(raw);
    float sum[2][8][4] = {}, first[2][8][4] = {}, second[2][8][4] = {}; /* a chain; chains 0 and 1; 2 and 3 */
    const uint32_t m0 = blockIdx.x * ROWS, n0 = tile * COLS, part = a.w.k / a.slices, w_part = wn_mm_part<1>(a);
    const uint32_t steps = (part + BK - 1) / BK, z = blockIdx.z;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const uint32_t row0 = warp / 4 * 64, col0 = warp % 4 * 32; /* of the warp, in the tile */
    uint32_t load_k = 0, loaded = 0, done = 0;

    const auto load = [&] {
        unsigned char *to = raw + loaded % STAGES * STAGE;
        if (loaded < steps) {
            wn_mm_load<BK>(to, a.w.ptr, a.w.stride, COLS, n0, a.w.n, z * w_part + load_k, (z + 1) * w_part);
            wn_mm_load<X_BYTES>(to + W_TILE, a.x.ptr, (size_t)a.x.stride * 2, ROWS, m0, a.out.rows,
                                2 * (z * part + load_k), 2 * (z + 1) * part);
        }
        wn_cp_commit(); /* empty groups too: the count of groups is the clock */
        load_k = load_k + WN_MM_DEPTH < part ? load_k + WN_MM_DEPTH : load_k % WN_MM_DEPTH + BK; /* or the next chain */
        loaded++;
    };
    const auto chain = [&](uint32_t of) {
#pragma unroll 1
        for (uint32_t k = of * BK; k < part; k += WN_MM_DEPTH, done++) {
            wn_cp_wait<STAGES - 2>();
            __syncthreads(); /* this tile is there for all, and nobody reads the one before any more */
            load();
            const unsigned char *at = raw + done % STAGES * STAGE;
            tile_step(sum, at + (col0 + g) * (BK + WN_MM_ROOM) + 4 * t,
                      at + W_TILE + (row0 + lane / 16 * 8 + lane % 8) * (X_BYTES + WN_MM_ROOM) + lane / 8 % 2 * 16);
        }
    };
    wn_follow();
    for (uint32_t s = 0; s < STAGES - 1; s++) load();
    chain(0);
    add_sums(first, sum);
    chain(1);
    add_sums(first, sum);
    chain(2);
    add_sums(second, sum);
    chain(3);
    add_sums(second, sum);
    add_sums(first, second);
    wn_cp_wait<0>();
    __syncthreads();
    float *out = (float *)raw;
#pragma unroll
    for (int c = 0; c < 2; c++)
#pragma unroll
        for (int i = 0; i < 8; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                out[(row0 + i * 8 + 2 * t + j % 2) * OUT_STEP + col0 + c * 16 + g + j / 2 * 8] = first[c][i][j];
    __syncthreads();
    const uint32_t n = n0 + threadIdx.x % COLS;
    if (n >= a.w.n) return;
    const float scale = a.w.scales[(size_t)z * a.w.n + n], bias = a.bias ? a.bias[n] : 0.0f;
    for (uint32_t r = threadIdx.x / COLS; r < ROWS && m0 + r < a.out.rows; r += WN_MM_THREADS / COLS) {
        const float v = out[r * OUT_STEP + threadIdx.x % COLS] * scale;
        if (a.slices > 1) a.parts[((size_t)z * a.out.rows + m0 + r) * a.w.n + n] = v;
        else wn_put(a.out.ptr, a.out.dtype, wn_at(a.out, m0 + r, n), wn_activate(a.bias ? v + bias : v, a.act));
    }
}

/* grid: tiles of rows, tiles of columns, parts. */
__global__ void __launch_bounds__(WN_MM_THREADS, 1) many_kernel(struct wn_cuda_matmul a)
{
    many_block(a, blockIdx.y);
}

/* grid: tiles of rows, tiles of columns of one product after the other. */
__global__ void __launch_bounds__(WN_MM_THREADS, 1) many_group_kernel(struct wn_cuda_matmul_group g)
{
    uint32_t tile = blockIdx.y;
    const struct wn_cuda_matmul a = wn_mm_product(g, COLS, &tile);

    many_block(a, tile);
}

int wn_cuda_run_matmul_many(const struct wn_cuda_matmul *a, wn_cuda_stream st)
{
    dim3 grid((a->out.rows + ROWS - 1) / ROWS, wn_mm_tiles(a->w, COLS), a->slices);

    if (!wn_mm_fits(many_kernel, SHARED)) return (int)cudaErrorNotSupported;
    WN_LAUNCH(many_kernel, grid, WN_MM_THREADS, SHARED, st, *a);
    const int rc = (int)cudaGetLastError();
    return rc == 0 && a->slices > 1 ? wn_cuda_run_matmul_finish(a, st) : rc;
}

int wn_cuda_run_matmul_many_group(const struct wn_cuda_matmul_group *a, wn_cuda_stream st)
{
    dim3 grid((a->x.rows + ROWS - 1) / ROWS, wn_mm_tiles_of(a, COLS));

    if (!wn_mm_fits(many_group_kernel, SHARED)) return (int)cudaErrorNotSupported;
    WN_LAUNCH(many_group_kernel, grid, WN_MM_THREADS, SHARED, st, *a);
    return (int)cudaGetLastError();
}
