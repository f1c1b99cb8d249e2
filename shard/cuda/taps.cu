/* The attention taps of a vision tower, computed again from queries and keys: few layers are tapped. */
#include "shard/cuda/common.cuh"

#define THREADS 128

/* W elements are read at a time, and added one by one. */
template <int W> __device__ __forceinline__ float dot(const struct wn_cuda_taps &a, size_t q, size_t k)
{
    float sum = 0.0f, x[W], y[W];
    for (uint32_t d = 0; d < a.head_dim; d += W) {
        wn_get_n<W>(x, a.q.ptr, a.q.dtype, q + d);
        wn_get_n<W>(y, a.k.ptr, a.k.dtype, k + d);
        for (int i = 0; i < W; i++) sum = fmaf(x[i], y[i], sum);
    }
    return a.scale * sum;
}

/* Maximum and sum of the softmax of each query row. With `cls` set only CLS's rows, whose probabilities are the tap.
 * grid: rows (or images), heads. */
template <int W> __global__ void __launch_bounds__(THREADS) stats_kernel(struct wn_cuda_taps a, bool cls)
{
    __shared__ float room[32];
    const uint32_t head = blockIdx.y, image = cls ? blockIdx.x : blockIdx.x / a.tokens;
    const size_t first = (size_t)image * a.tokens, row = cls ? first : blockIdx.x, col = (size_t)head * a.head_dim;
    float max = -INFINITY, sum = 0.0f;

    for (uint32_t j = threadIdx.x; j < a.tokens; j += THREADS)
        max = fmaxf(max, dot<W>(a, wn_at(a.q, row, col), wn_at(a.k, first + j, col)));
    max = wn_block_max(max, room);
    for (uint32_t j = threadIdx.x; j < a.tokens; j += THREADS)
        sum += expf(dot<W>(a, wn_at(a.q, row, col), wn_at(a.k, first + j, col)) - max);
    sum = wn_block_sum(sum, room);
    if (cls) {
        float *out = a.cls_rows + ((size_t)image * a.heads + head) * a.tokens;
        for (uint32_t j = threadIdx.x; j < a.tokens; j += THREADS)
            out[j] = expf(dot<W>(a, wn_at(a.q, row, col), wn_at(a.k, first + j, col)) - max) / sum;
    } else if (threadIdx.x == 0) {
        a.stats[(row * a.heads + head) * 2] = max;
        a.stats[(row * a.heads + head) * 2 + 1] = sum;
    }
}

/* grid: keys, images. */
template <int W> __global__ void __launch_bounds__(THREADS) mean_kernel(struct wn_cuda_taps a)
{
    __shared__ float room[32];
    const size_t first = (size_t)blockIdx.y * a.tokens;
    float sum = 0.0f;

    for (uint32_t i = threadIdx.x; i < a.tokens * a.heads; i += THREADS) {
        const size_t row = first + i / a.heads, head = i % a.heads, col = head * a.head_dim;
        const float *stats = a.stats + (row * a.heads + head) * 2;
        sum += expf(dot<W>(a, wn_at(a.q, row, col), wn_at(a.k, first + blockIdx.x, col)) - stats[0]) / stats[1];
    }
    sum = wn_block_sum(sum, room);
    if (threadIdx.x == 0) a.mean_cols[first + blockIdx.x] = sum / ((float)a.heads * (float)a.tokens);
}

template <int W> static void run(const struct wn_cuda_taps *a, wn_cuda_stream st)
{
    if (a->cls_rows) {
        dim3 grid(a->images, a->heads);
        WN_LAUNCH(stats_kernel<W>, grid, THREADS, 0, st, *a, true);
    }
    if (a->mean_cols) {
        dim3 rows(a->images * a->tokens, a->heads), keys(a->tokens, a->images);
        WN_LAUNCH(stats_kernel<W>, rows, THREADS, 0, st, *a, false);
        WN_LAUNCH(mean_kernel<W>, keys, THREADS, 0, st, *a);
    }
}

int wn_cuda_run_taps(const struct wn_cuda_taps *a, wn_cuda_stream st)
{
    if (wn_wide(&a->q) && wn_wide(&a->k) && a->head_dim % 8 == 0)
        run<8>(a, st);
    else
        run<1>(a, st);
    return (int)cudaGetLastError();
}
