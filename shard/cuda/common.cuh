/* shard/cuda/common.cuh - what the kernels share: element access, reductions in a fixed order, activations, and the
 * launch macro. tests/cudasim compiles the same kernels for the CPU, with a header of its own for device.cuh. */
#ifndef WN_SHARD_CUDA_COMMON_CUH
#define WN_SHARD_CUDA_COMMON_CUH

#include "shard/cuda/device.cuh"
#include "shard/cuda/launch.h"

__device__ __forceinline__ float wn_bf16_value(uint16_t v)
{
    return __uint_as_float((uint32_t)v << 16);
}

/* Round to nearest even; NaN stays NaN. */
__device__ __forceinline__ uint16_t wn_bf16_round(float f)
{
    uint32_t u = __float_as_uint(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40u);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

__device__ __forceinline__ float wn_get(const void *p, uint32_t dtype, size_t i)
{
    if (dtype == WN_CUDA_F32) return ((const float *)p)[i];
    uint16_t v = ((const uint16_t *)p)[i];
    return dtype == WN_CUDA_BF16 ? wn_bf16_value(v) : wn_f16_value(v);
}

__device__ __forceinline__ void wn_put(void *p, uint32_t dtype, size_t i, float v)
{
    if (dtype == WN_CUDA_F32)
        ((float *)p)[i] = v;
    else
        ((uint16_t *)p)[i] = wn_bf16_round(v);
}

/* v as it comes back from memory of this type. */
__device__ __forceinline__ float wn_stored(float v, uint32_t dtype)
{
    return dtype == WN_CUDA_F32 ? v : wn_bf16_value(wn_bf16_round(v));
}

__host__ __device__ __forceinline__ size_t wn_at(const struct wn_cuda_mat &m, size_t row, size_t col)
{
    return row * m.stride + col;
}

/* The most blocks that a grid has along y. */
#define WN_GRID_Y_MAX 65535u

/* Rows [first, first + rows) of m. */
static inline struct wn_cuda_mat wn_rows_of(const struct wn_cuda_mat &m, uint32_t first, uint32_t rows)
{
    struct wn_cuda_mat part = m;
    part.ptr = (char *)m.ptr + wn_at(m, first, 0) * (m.dtype == WN_CUDA_F32 ? 4 : 2);
    part.rows = rows;
    return part;
}

/* Where column k of a part of int8 lies: struct wn_cuda_w. */
__device__ __forceinline__ uint32_t wn_i8_at(uint32_t k)
{
    return (k & ~15u) + k % 8 / 2 * 4 + k % 2 * 2 + k / 8 % 2;
}

/* Bytes 0 and 2 of w as bfloat16, exactly: 128 + (q & 127), less 128, or less 256 where q is negative. */
__device__ __forceinline__ uint32_t wn_widen_i8(uint32_t w)
{
    return wn_add_bf16((w & 0x007f007fu) | 0x43004300u, (w & 0x00800080u) | 0xc300c300u);
}

/* W elements at once: 16-byte accesses for W = 8 (the caller has checked the alignment), single ones for W = 1. */
template <int W> __device__ __forceinline__ void wn_get_n(float *v, const void *p, uint32_t dtype, size_t i)
{
    if (W == 8 && dtype == WN_CUDA_F32) {
        float4 a = ((const float4 *)p)[i / 4], b = ((const float4 *)p)[i / 4 + 1];
        v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
        v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
    } else if (W == 8 && dtype == WN_CUDA_BF16) {
        uint4 a = ((const uint4 *)p)[i / 8];
        uint32_t w[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
            v[2 * j] = __uint_as_float(w[j] << 16);
            v[2 * j + 1] = __uint_as_float(w[j] & 0xffff0000u);
        }
    } else {
#pragma unroll
        for (int j = 0; j < W; j++) v[j] = wn_get(p, dtype, i + j);
    }
}

template <int W> __device__ __forceinline__ void wn_put_n(void *p, uint32_t dtype, size_t i, const float *v)
{
    if (W == 8 && dtype == WN_CUDA_F32) {
        float4 a = {v[0], v[1], v[2], v[3]}, b = {v[4], v[5], v[6], v[7]};
        ((float4 *)p)[i / 4] = a;
        ((float4 *)p)[i / 4 + 1] = b;
    } else if (W == 8 && dtype == WN_CUDA_BF16) {
        uint32_t w[4];
#pragma unroll
        for (int j = 0; j < 4; j++)
            w[j] = (uint32_t)wn_bf16_round(v[2 * j]) | (uint32_t)wn_bf16_round(v[2 * j + 1]) << 16;
        uint4 a = {w[0], w[1], w[2], w[3]};
        ((uint4 *)p)[i / 8] = a;
    } else {
#pragma unroll
        for (int j = 0; j < W; j++) wn_put(p, dtype, i + j, v[j]);
    }
}

/* May rows of m be read 8 elements at a time? */
static inline bool wn_wide(const struct wn_cuda_mat *m)
{
    return m->cols % 8 == 0 && m->stride % 8 == 0 && (uintptr_t)m->ptr % 16 == 0;
}

/* Sum over the block, the same for every thread, in an order that depends on blockDim.x only (a power of two, at most
 * 1024). room: 32 floats of shared memory. */
__device__ __forceinline__ float wn_block_sum(float v, float *room)
{
    for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffffu, v, d);
    __syncthreads(); /* room may still be read from the sum before */
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = v;
    __syncthreads();
    v = room[0];
    for (uint32_t w = 1; w < blockDim.x / 32; w++) v += room[w];
    return v;
}

__device__ __forceinline__ float wn_block_max(float v, float *room)
{
    for (int d = 16; d > 0; d /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, d));
    __syncthreads();
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = v;
    __syncthreads();
    v = room[0];
    for (uint32_t w = 1; w < blockDim.x / 32; w++) v = fmaxf(v, room[w]);
    return v;
}

/* act: as wn_act. GELU is the erf form. */
__device__ __forceinline__ float wn_activate(float v, uint32_t act)
{
    switch (act) {
    case 1: return 0.5f * v * (1.0f + erff(v * 0.70710678f));
    case 2: return v / (1.0f + expf(-1.702f * v));
    case 3: return v / (1.0f + expf(-v));
    default: return v;
    }
}

/* parts[N] `step` floats apart, N a power of two: the balanced tree ((p0+p1)+(p2+p3)). */
template <uint32_t N> __device__ __forceinline__ float wn_tree_sum(const float *parts, size_t step)
{
    if constexpr (N == 1)
        return parts[0];
    else
        return wn_tree_sum<N / 2>(parts, step) + wn_tree_sum<N / 2>(parts + N / 2 * step, step);
}

#endif
