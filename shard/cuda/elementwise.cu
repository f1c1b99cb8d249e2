/* Two matrices in, one out, element by element. out may be either of the inputs. */
#include "shard/cuda/common.cuh"

#define THREADS 256

enum { ADD, SILU_MUL };

template <int OP> __device__ __forceinline__ float pair_op(float a, float b, uint32_t type)
{
    if (OP == ADD) return a + b;
    /* silu(gate) is rounded to out's type before the product, as the model's own arithmetic does */
    return wn_stored(wn_activate(a, 3), type) * b;
}

template <int OP, int W>
__global__ void __launch_bounds__(THREADS) pair_kernel(struct wn_cuda_pair p)
{
    wn_follow();
    const struct wn_cuda_mat out = p.out, a = p.a, b = p.b;
    const uint32_t row = blockIdx.x, c = (blockIdx.y * THREADS + threadIdx.x) * W;
    float x[W], y[W];

    if (c >= out.cols) return;
    wn_get_n<W>(x, a.ptr, a.dtype, wn_at(a, row, c));
    wn_get_n<W>(y, b.ptr, b.dtype, wn_at(b, row, c));
    for (int j = 0; j < W; j++) x[j] = pair_op<OP>(x[j], y[j], out.dtype);
    wn_put_n<W>(out.ptr, out.dtype, wn_at(out, row, c), x);
}

template <int OP> static int run_pair(const struct wn_cuda_pair *p, wn_cuda_stream st)
{
    const bool wide = wn_wide(&p->out) && wn_wide(&p->a) && wn_wide(&p->b);
    const uint32_t step = THREADS * (wide ? 8 : 1);
    dim3 grid(p->out.rows, (p->out.cols + step - 1) / step);

    if (wide)
        WN_LAUNCH((pair_kernel<OP, 8>), grid, THREADS, 0, st, *p);
    else
        WN_LAUNCH((pair_kernel<OP, 1>), grid, THREADS, 0, st, *p);
    return (int)cudaGetLastError();
}

int wn_cuda_run_add(const struct wn_cuda_pair *a, wn_cuda_stream st)
{
    return run_pair<ADD>(a, st);
}

int wn_cuda_run_silu_mul(const struct wn_cuda_pair *a, wn_cuda_stream st)
{
    return run_pair<SILU_MUL>(a, st);
}
