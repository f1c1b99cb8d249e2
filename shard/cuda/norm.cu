/* Root-mean-square and layer norm: one block a row, two passes as in the reference. A thread reads only what it later
 * writes, so out may be x. */
#include "shard/cuda/common.cuh"

#define THREADS 256

template <int W> __global__ void __launch_bounds__(THREADS) norm_kernel(struct wn_cuda_norm a)
{
    __shared__ float room[32];
    const size_t in = wn_at(a.x, blockIdx.x, 0), to = wn_at(a.out, blockIdx.x, 0);
    const uint32_t cols = a.x.cols;
    float v[W], mean = 0.0f, square = 0.0f;

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

int wn_cuda_run_norm(const struct wn_cuda_norm *a, wn_cuda_stream st)
{
    if (wn_wide(&a->x) && wn_wide(&a->out))
        WN_LAUNCH(norm_kernel<8>, a->x.rows, THREADS, 0, st, *a);
    else
        WN_LAUNCH(norm_kernel<1>, a->x.rows, THREADS, 0, st, *a);
    return (int)cudaGetLastError();
}
