/* The end of a matmul whose sums lie in float32 parts [slices, rows, n]: the tree over the parts, bias, activation and
 * the one rounding. */
#include "shard/cuda/common.cuh"

#define THREADS 256

__global__ void __launch_bounds__(THREADS) finish_kernel(struct wn_cuda_matmul a)
{
    const uint32_t m = blockIdx.x, n = blockIdx.y * THREADS + threadIdx.x;

    if (n >= a.w.n) return;
    float v = wn_tree_sum(a.parts + (size_t)m * a.w.n + n, (size_t)a.out.rows * a.w.n, a.slices);
    if (a.bias) v += a.bias[n];
    wn_put(a.out.ptr, a.out.dtype, wn_at(a.out, m, n), wn_activate(v, a.act));
}

int wn_cuda_run_matmul_finish(const struct wn_cuda_matmul *a, wn_cuda_stream st)
{
    dim3 grid(a->out.rows, (a->w.n + THREADS - 1) / THREADS);
    WN_LAUNCH(finish_kernel, grid, THREADS, 0, st, *a);
    return (int)cudaGetLastError();
}
