/* The sums of tensor ranks: the tree of transport/coll.h over parts that lie one after the other, each element by
 * itself, so that the bits do not depend on how many floats a message has. */
#include "shard/cuda/common.cuh"

#define THREADS 256
#define LEVELS  7 /* up to 64 parts: one finished subtree for each power of two */

/* N parts, or a->n of them if N is 0; W floats a thread. */
template <int N, int W> __global__ void __launch_bounds__(THREADS) sum_tree_kernel(struct wn_cuda_sum a)
{
    const size_t i = ((size_t)blockIdx.x * THREADS + threadIdx.x) * W;
    const uint32_t n = N ? N : a.n;
    float level[LEVELS][W];

    if (i >= a.count) return;
#pragma unroll
    for (uint32_t k = 0; k < n; k++) {
        const float *part = a.own && k == a.me ? a.own : a.parts + k * a.stride;
        float v[W];
        if (W == 4) {
            float4 f = *(const float4 *)(part + i);
            v[0] = f.x, v[W / 4] = f.y, v[W / 2] = f.z, v[W - 1] = f.w;
        } else {
            v[0] = part[i];
        }
        int l = 0;
#pragma unroll
        for (uint32_t m = k; m & 1; m >>= 1, l++)
            for (int j = 0; j < W; j++) v[j] = level[l][j] + v[j];
        for (int j = 0; j < W; j++) level[l][j] = v[j];
    }
    /* Members that the next power of two lacks are left out: what is there joins from the right. */
    float sum[W] = {};
    bool any = false;
#pragma unroll
    for (int l = 0; l < LEVELS; l++) {
        if (!(n >> l & 1)) continue;
        for (int j = 0; j < W; j++) sum[j] = any ? level[l][j] + sum[j] : level[l][j];
        any = true;
    }
    if (W == 4) {
        float4 f = {sum[0], sum[W / 4], sum[W / 2], sum[W - 1]};
        *(float4 *)(a.out + i) = f;
    } else {
        a.out[i] = sum[0];
    }
}

template <int W> static void launch(const struct wn_cuda_sum *a, wn_cuda_stream st)
{
    dim3 grid((uint32_t)((a->count / W + THREADS - 1) / THREADS));

    switch (a->n) {
    case 2: WN_LAUNCH((sum_tree_kernel<2, W>), grid, THREADS, 0, st, *a); break;
    case 4: WN_LAUNCH((sum_tree_kernel<4, W>), grid, THREADS, 0, st, *a); break;
    case 8: WN_LAUNCH((sum_tree_kernel<8, W>), grid, THREADS, 0, st, *a); break;
    default: WN_LAUNCH((sum_tree_kernel<0, W>), grid, THREADS, 0, st, *a); break;
    }
}

int wn_cuda_run_sum_tree(const struct wn_cuda_sum *a, wn_cuda_stream st)
{
    const uintptr_t at = (uintptr_t)a->out | (uintptr_t)a->parts | (uintptr_t)a->own;

    if (at % 16 == 0 && a->stride % 4 == 0 && a->count % 4 == 0)
        launch<4>(a, st);
    else
        launch<1>(a, st);
    return (int)cudaGetLastError();
}
