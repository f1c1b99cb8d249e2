/* Rows as weighted sums of rows: what pruning keeps. Terms are added one after the other in float64, where a product of
 * two float32 is exact, so the host's bits come out (pruning/rows.h). */
#include "shard/cuda/common.cuh"

#define THREADS 128

/* grid: rows, columns / (THREADS * W). Sums start at -0, to which all is added exactly. */
template <int W> __global__ void __launch_bounds__(THREADS) row_sums_kernel(struct wn_cuda_row_sums a)
{
    const uint32_t row = blockIdx.x, c = (blockIdx.y * THREADS + threadIdx.x) * W;
    const uint32_t first = a.first[row], end = a.first[row + 1];
    const double div = (double)a.div[row];
    double sum[W];
    float v[W];

    if (c >= a.out.cols) return;
    for (int j = 0; j < W; j++) sum[j] = first == end ? 0.0 : -0.0;
#pragma unroll 4
    for (uint32_t t = first; t < end; t++) {
        const uint32_t from = a.terms[2 * t];
        const double weight = (double)__uint_as_float(a.terms[2 * t + 1]);
        const bool last = from == a.in.rows;
        wn_get_n<W>(v, last ? a.last : a.in.ptr, a.in.dtype, last ? c : wn_at(a.in, from, c));
        for (int j = 0; j < W; j++) sum[j] += weight * (double)v[j];
    }
    for (int j = 0; j < W; j++) v[j] = (float)(sum[j] / div);
    wn_put_n<W>(a.out.ptr, a.out.dtype, wn_at(a.out, row, c), v);
}

int wn_cuda_run_row_sums(const struct wn_cuda_row_sums *a, wn_cuda_stream st)
{
    const bool wide = wn_wide(&a->out) && wn_wide(&a->in) && (uintptr_t)a->last % 16 == 0;
    const uint32_t step = THREADS * (wide ? 8 : 1);
    dim3 grid(a->out.rows, (a->out.cols + step - 1) / step);

    if (wide)
        WN_LAUNCH(row_sums_kernel<8>, grid, THREADS, 0, st, *a);
    else
        WN_LAUNCH(row_sums_kernel<1>, grid, THREADS, 0, st, *a);
    return (int)cudaGetLastError();
}
