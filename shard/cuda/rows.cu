/* Moving rows: gather (embedding, pruning), scatter (KV pages) and conversion are one kernel with an index on either
 * side. */
#include "shard/cuda/common.cuh"

#define THREADS 256

template <int W>
__global__ void __launch_bounds__(THREADS) rows_kernel(struct wn_cuda_rows a)
{
    wn_follow();
    const struct wn_cuda_mat out = a.out, in = a.in;
    const uint32_t row = blockIdx.x, target = a.to ? a.to[row] : row, source = a.from ? a.from[row] : row;
    const bool inside = source < in.rows;

    if (target >= out.rows) return;
    for (uint32_t c = threadIdx.x * W; c < out.cols; c += THREADS * W) {
        float v[W];
        for (int j = 0; j < W; j++) v[j] = 0.0f;
        if (inside) wn_get_n<W>(v, in.ptr, in.dtype, wn_at(in, source, c));
        wn_put_n<W>(out.ptr, out.dtype, wn_at(out, target, c), v);
    }
}

int wn_cuda_has_code(void)
{
    return wn_has_code(rows_kernel<8>);
}

int wn_cuda_run_rows(const struct wn_cuda_rows *a, wn_cuda_stream st)
{
    const uint32_t rows = (uint32_t)a->rows;

    if (wn_wide(&a->out) && wn_wide(&a->in))
        WN_LAUNCH(rows_kernel<8>, rows, THREADS, 0, st, *a);
    else
        WN_LAUNCH(rows_kernel<1>, rows, THREADS, 0, st, *a);
    return (int)cudaGetLastError();
}
