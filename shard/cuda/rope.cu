/* Rotary embedding in place: a thread turns one pair. The frequencies come from the host, whose powf the CPU backends
 * use too: a bit of difference there would grow with the position. */
#include "shard/cuda/common.cuh"

#define THREADS 128
#define EACH    8 /* heads, or columns of v, of a thread of rope_kv */

__global__ void __launch_bounds__(THREADS) rope_kernel(struct wn_cuda_mat x, const uint32_t *position,
                                                       const float *freq, uint32_t head_dim)
{
    wn_follow();
    const uint32_t half = head_dim / 2, pair = blockIdx.x * THREADS + threadIdx.x;
    const uint32_t head = pair / half, i = pair % half;

    if (pair >= x.cols / 2) return;
    const float angle = (float)position[blockIdx.y] * freq[i], c = cosf(angle), s = sinf(angle);
    const size_t at = wn_at(x, blockIdx.y, (size_t)head * head_dim + i);
    const float x0 = wn_get(x.ptr, x.dtype, at), x1 = wn_get(x.ptr, x.dtype, at + half);
    wn_put(x.ptr, x.dtype, at, x0 * c - x1 * s);
    wn_put(x.ptr, x.dtype, at + half, x1 * c + x0 * s);
}

/* Threads of a row: for each pair of a head's columns, EACH heads apart; then EACH columns of v. */
__host__ __device__ __forceinline__ uint32_t turns_of(const struct wn_cuda_rope_kv &a)
{
    return (a.x.cols / a.head_dim + EACH - 1) / EACH * (a.head_dim / 2);
}

__host__ __device__ __forceinline__ uint32_t copies_of(const struct wn_cuda_rope_kv &a)
{
    return (a.v.cols + EACH - 1) / EACH;
}

/* A pair's angle is the same in all heads, and takes longer than turning it: so a thread turns it in several. */
__global__ void __launch_bounds__(THREADS) rope_kv_kernel(struct wn_cuda_rope_kv a)
{
    wn_follow();
    const uint32_t half = a.head_dim / 2, turns = turns_of(a), copies = copies_of(a), row = blockIdx.y;
    const uint32_t at = blockIdx.x * THREADS + threadIdx.x, target = a.targets[row];
    const bool kept = target < a.keys.rows;

    float x0[EACH], x1[EACH]; /* all is asked for before the first is written: one wait for memory */

    if (at >= turns) {
        if (!kept || at >= turns + copies) return;
#pragma unroll
        for (uint32_t j = 0; j < EACH; j++) {
            const uint32_t c = at - turns + j * copies;
            if (c < a.v.cols) x0[j] = wn_get(a.v.ptr, a.v.dtype, wn_at(a.v, row, c));
        }
#pragma unroll
        for (uint32_t j = 0; j < EACH; j++) {
            const uint32_t c = at - turns + j * copies;
            if (c < a.v.cols) wn_put(a.values.ptr, a.values.dtype, wn_at(a.values, target, c), x0[j]);
        }
        return;
    }
    const uint32_t i = at % half, first = at / half * EACH * a.head_dim + i;
#pragma unroll
    for (uint32_t j = 0; j < EACH; j++) {
        const uint32_t col = first + j * a.head_dim;
        if (col >= a.x.cols) continue;
        x0[j] = wn_get(a.x.ptr, a.x.dtype, wn_at(a.x, row, col));
        x1[j] = wn_get(a.x.ptr, a.x.dtype, wn_at(a.x, row, col) + half);
    }
    const float angle = (float)a.position[row] * a.freq[i], c = cosf(angle), s = sinf(angle);
#pragma unroll
    for (uint32_t j = 0; j < EACH; j++) {
        const uint32_t col = first + j * a.head_dim;
        const float y0 = x0[j] * c - x1[j] * s, y1 = x1[j] * c + x0[j] * s;
        if (col < a.q_cols) {
            wn_put(a.x.ptr, a.x.dtype, wn_at(a.x, row, col), y0);
            wn_put(a.x.ptr, a.x.dtype, wn_at(a.x, row, col) + half, y1);
        } else if (col < a.x.cols && kept) {
            const size_t to = wn_at(a.keys, target, col - a.q_cols);
            wn_put(a.keys.ptr, a.keys.dtype, to, wn_stored(y0, a.x.dtype));
            wn_put(a.keys.ptr, a.keys.dtype, to + half, wn_stored(y1, a.x.dtype));
        }
    }
}

int wn_cuda_run_rope_kv(const struct wn_cuda_rope_kv *a, wn_cuda_stream st)
{
    const uint32_t blocks = (turns_of(*a) + copies_of(*a) + THREADS - 1) / THREADS;

    for (uint32_t first = 0; first < a->x.rows; first += WN_GRID_Y_MAX) {
        const uint32_t left = a->x.rows - first, rows = left < WN_GRID_Y_MAX ? left : WN_GRID_Y_MAX;
        struct wn_cuda_rope_kv part = *a;
        part.x = wn_rows_of(a->x, first, rows);
        part.v = wn_rows_of(a->v, first, rows);
        part.position += first;
        part.targets += first;
        dim3 grid(blocks, rows);
        WN_LAUNCH(rope_kv_kernel, grid, THREADS, 0, st, part);
    }
    return (int)cudaGetLastError();
}

int wn_cuda_run_rope(const struct wn_cuda_rope *a, wn_cuda_stream st)
{
    for (uint32_t first = 0; first < a->x.rows; first += WN_GRID_Y_MAX) {
        const uint32_t left = a->x.rows - first, rows = left < WN_GRID_Y_MAX ? left : WN_GRID_Y_MAX;
        dim3 grid((a->x.cols / 2 + THREADS - 1) / THREADS, rows);
        WN_LAUNCH(rope_kernel, grid, THREADS, 0, st, wn_rows_of(a->x, first, rows), a->position + first, a->freq,
                  (uint32_t)a->head_dim);
    }
    return (int)cudaGetLastError();
}
