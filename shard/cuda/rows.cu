/* Moving rows: gather (embedding, pruning), scatter (KV pages) and conversion are one kernel with an index on either
 * side. */
#include "shard/cuda/common.cuh"

#define THREADS 256

template <int W>
__global__ void __launch_bounds__(THREADS) rows_kernel(struct wn_cuda_mat out, struct wn_cuda_mat in,
                                                       const uint32_t *to, const uint32_t *from)
{
    const uint32_t row = blockIdx.x, target = to ? to[row] : row, source = from ? from[row] : row;
    const bool inside = source < in.rows;

    if (target >= out.rows) return;
    for (uint32_t c = threadIdx.x * W; c < out.cols; c += THREADS * W) {
        float v[W];
        for (int j = 0; j < W; j++) v[j] = 0.0f;
        if (inside) wn_get_n<W>(v, in.ptr, in.dtype, wn_at(in, source, c));
        wn_put_n<W>(out.ptr, out.dtype, wn_at(out, target, c), v);
    }
}

int wn_cuda_run_rows(const struct wn_cuda_mat *out, const struct wn_cuda_mat *in, const uint32_t *to,
                     const uint32_t *from, uint32_t rows, wn_cuda_stream st)
{
    if (wn_wide(out) && wn_wide(in))
        WN_LAUNCH(rows_kernel<8>, rows, THREADS, 0, st, *out, *in, to, from);
    else
        WN_LAUNCH(rows_kernel<1>, rows, THREADS, 0, st, *out, *in, to, from);
    return (int)cudaGetLastError();
}
