/* Weights become int8 where they will be used: with the bytes and scales of shard/cpu/weight_i8.c, and the device has
 * nothing else to do while the next rows are on their way. */
#include "shard/cuda/common.cuh"
#include "shard/cuda/launch_matmul.h"

#define THREADS 256

/* grid: rows, parts. Of a part with a NaN the scale is one, and its bytes are zeros. */
__global__ void __launch_bounds__(THREADS) quantise_kernel(struct wn_cuda_quantise a)
{
    wn_follow();
    __shared__ float room[32];
    const uint32_t part = a.in.cols / a.slices, bytes = a.stride / a.slices, r = blockIdx.x, s = blockIdx.y;
    const size_t from = wn_at(a.in, r, (size_t)s * part);
    int8_t *out = a.out + (size_t)r * a.stride + (size_t)s * bytes;
    float most = 0.0f, nan = 0.0f;

    for (uint32_t k = threadIdx.x; k < part; k += THREADS) {
        const float v = wn_get(a.in.ptr, a.in.dtype, from + k);
        most = fmaxf(most, fabsf(v)); /* of a number and a NaN, the number */
        nan = v == v ? nan : 1.0f;
    }
    most = wn_block_max(most, room);
    if (wn_block_max(nan, room) > 0.0f) most = __uint_as_float(0x7fc00000u);
    const float steps = 127.0f / most;
    if (threadIdx.x == 0) a.scales[(size_t)s * a.scales_step + r] = most / 127.0f;
    for (uint32_t k = threadIdx.x; k < bytes; k += THREADS) {
        const float q = k < part ? wn_get(a.in.ptr, a.in.dtype, from + k) * steps : 0.0f;
        out[wn_i8_at(k)] = fabsf(q) < 128.0f ? (int8_t)rintf(q) : (int8_t)0; /* of nothing but zeros q is NaN */
    }
}

int wn_cuda_run_quantise(const struct wn_cuda_quantise *a, wn_cuda_stream st)
{
    WN_LAUNCH(quantise_kernel, dim3(a->in.rows, a->slices), THREADS, 0, st, *a);
    return (int)cudaGetLastError();
}
