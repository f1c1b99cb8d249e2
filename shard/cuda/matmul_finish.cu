/* The end of a matmul whose sums lie in float32 parts [slices, rows, n]: the tree over the parts, bias, activation and
 * the one rounding. */
#include "shard/cuda/common.cuh"
#include "shard/cuda/launch_matmul.h"

#define THREADS 256

/* All parts of an element are asked for before the first is added: the kernel is as long as one read. */
template <uint32_t SLICES> __global__ void __launch_bounds__(THREADS) finish_kernel(struct wn_cuda_matmul a)
{
    wn_follow();
    const uint32_t m = blockIdx.x, n = blockIdx.y * THREADS + threadIdx.x;

    if (n >= a.w.n) return;
    float v = wn_tree_sum<SLICES>(a.parts + (size_t)m * a.w.n + n, (size_t)a.out.rows * a.w.n);
    if (a.bias) v += a.bias[n];
    wn_put(a.out.ptr, a.out.dtype, wn_at(a.out, m, n), wn_activate(v, a.act));
}

int wn_cuda_run_matmul_finish(const struct wn_cuda_matmul *a, wn_cuda_stream st)
{
    dim3 grid(a->out.rows, (a->w.n + THREADS - 1) / THREADS);

    switch (a->slices) {
    case 1: WN_LAUNCH(finish_kernel<1>, grid, THREADS, 0, st, *a); break;
    case 2: WN_LAUNCH(finish_kernel<2>, grid, THREADS, 0, st, *a); break;
    case 4: WN_LAUNCH(finish_kernel<4>, grid, THREADS, 0, st, *a); break;
    case 8: WN_LAUNCH(finish_kernel<8>, grid, THREADS, 0, st, *a); break;
    case 16: WN_LAUNCH(finish_kernel<16>, grid, THREADS, 0, st, *a); break;
    case 32: WN_LAUNCH(finish_kernel<32>, grid, THREADS, 0, st, *a); break;
    case WN_CUDA_SLICES_MAX: WN_LAUNCH(finish_kernel<WN_CUDA_SLICES_MAX>, grid, THREADS, 0, st, *a); break;
    default: return (int)cudaErrorInvalidValue;
    }
    return (int)cudaGetLastError();
}
