/* Root-mean-square and layer norm: one block a row, sums in the order of two passes as in the reference. A thread reads
 * only what it later writes, so out may be x. With ADD x becomes x + y first, rounded to its type, so that the sums are
 * those of add and norm one after the other; y may be out. */
#include "shard/cuda/common.cuh"

#define THREADS 256
#define KEPT    4 /* times 8 elements that a thread keeps */

/* Rows that fit the block's registers: read at once, and once. In a decode step the wait for that is the time. */
template <bool ADD> __global__ void __launch_bounds__(THREADS) kept_kernel(struct wn_cuda_norm a)
{
    wn_follow();
    __shared__ float room[32];
    const size_t in = wn_at(a.x, blockIdx.x, 0), to = wn_at(a.out, blockIdx.x, 0);
    const uint32_t cols = a.x.cols, first = threadIdx.x * 8, step = THREADS * 8;
    float v[KEPT][8], y[KEPT][8], weight[KEPT][8], mean = 0.0f, square = 0.0f;

#pragma unroll
    for (int i = 0; i < KEPT; i++) {
        const uint32_t c = first + i * step;
        if (c >= cols) continue;
        wn_get_n<8>(v[i], a.x.ptr, a.x.dtype, in + c);
        if (ADD) wn_get_n<8>(y[i], a.y.ptr, a.y.dtype, wn_at(a.y, blockIdx.x, c));
        wn_get_n<8>(weight[i], a.weight, WN_CUDA_F32, c);
    }
#pragma unroll
    for (int i = 0; i < KEPT; i++) {
        const uint32_t c = first + i * step;
        if (c >= cols) continue;
        for (int j = 0; ADD && j < 8; j++) v[i][j] = wn_stored(v[i][j] + y[i][j], a.x.dtype);
        if (ADD) wn_put_n<8>(a.x.ptr, a.x.dtype, in + c, v[i]);
        for (int j = 0; j < 8; j++) mean += v[i][j];
    }
    mean = a.rms ? 0.0f : wn_block_sum(mean, room) / (float)cols;
#pragma unroll
    for (int i = 0; i < KEPT; i++)
        for (int j = 0; j < 8; j++)
            if (first + i * step < cols) square = fmaf(v[i][j] - mean, v[i][j] - mean, square);
    square = wn_block_sum(square, room);
    const float scale = 1.0f / sqrtf(square / (float)cols + a.eps);
#pragma unroll
    for (int i = 0; i < KEPT; i++) {
        const uint32_t c = first + i * step;
        if (c >= cols) continue;
        for (int j = 0; j < 8; j++) {
            v[i][j] = (v[i][j] - mean) * scale * weight[i][j];
            if (a.bias) v[i][j] += a.bias[c + j];
        }
        wn_put_n<8>(a.out.ptr, a.out.dtype, to + c, v[i]);
    }
}

template <int W, bool ADD> __global__ void __launch_bounds__(THREADS) norm_kernel(struct wn_cuda_norm a)
{
    wn_follow();
    __shared__ float room[32];
    const size_t in = wn_at(a.x, blockIdx.x, 0), to = wn_at(a.out, blockIdx.x, 0);
    const uint32_t cols = a.x.cols;
    float v[W], mean = 0.0f, square = 0.0f;

    if (ADD) {
        const size_t more = wn_at(a.y, blockIdx.x, 0);
        float y[W];
        for (uint32_t c = threadIdx.x * W; c < cols; c += THREADS * W) {
            wn_get_n<W>(v, a.x.ptr, a.x.dtype, in + c);
            wn_get_n<W>(y, a.y.ptr, a.y.dtype, more + c);
            for (int j = 0; j < W; j++) v[j] += y[j];
            wn_put_n<W>(a.x.ptr, a.x.dtype, in + c, v);
        }
    }
    if (!a.rms) {
        for (uint32_t c = threadIdx.x * W; c < cols; c += THREADS * W) {
            wn_get_n<W>(v, a.x.ptr, a.x.dtype, in + c);
            for (int j = 0; j < W; j++) mean += v[j];
        }
        mean = wn_block_sum(mean, room) / (float)cols;
    }
    for (uint32_t c = threadIdx.x * W; c < cols; c += THREADS * W) {
        wn_get_n<W>(v, a.x.ptr, a.x.dtype, in + c);
        for (int j = 0; j < W; j++) square = fmaf(v[j] - mean, v[j] - mean, square);
    }
    square = wn_block_sum(square, room);
    const float scale = 1.0f / sqrtf(square / (float)cols + a.eps);
    for (uint32_t c = threadIdx.x * W; c < cols; c += THREADS * W) {
        wn_get_n<W>(v, a.x.ptr, a.x.dtype, in + c);
        for (int j = 0; j < W; j++) {
            v[j] = (v[j] - mean) * scale * a.weight[c + j];
            if (a.bias) v[j] += a.bias[c + j];
        }
        wn_put_n<W>(a.out.ptr, a.out.dtype, to + c, v);
    }
}

template <bool ADD> static void launch(const struct wn_cuda_norm *a, bool wide, wn_cuda_stream st)
{
    if (wide && a->x.cols <= KEPT * 8 * THREADS && (uintptr_t)a->weight % 16 == 0)
        WN_LAUNCH(kept_kernel<ADD>, a->x.rows, THREADS, 0, st, *a);
    else if (wide)
        WN_LAUNCH((norm_kernel<8, ADD>), a->x.rows, THREADS, 0, st, *a);
    else
        WN_LAUNCH((norm_kernel<1, ADD>), a->x.rows, THREADS, 0, st, *a);
}

int wn_cuda_run_norm(const struct wn_cuda_norm *a, wn_cuda_stream st)
{
    const bool wide = wn_wide(&a->x) && wn_wide(&a->out);

    /* The order of sums follows from the width: a y that is not wide makes two launches of it. */
    if (!a->y.ptr)
        launch<false>(a, wide, st);
    else if (!wide || wn_wide(&a->y))
        launch<true>(a, wide, st);
    else
        return (int)cudaErrorInvalidValue;
    return (int)cudaGetLastError();
}
