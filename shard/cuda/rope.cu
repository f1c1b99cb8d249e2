/* Rotary embedding in place: a thread turns one pair. The frequencies come from the host, whose powf the CPU backends
 * use too: a bit of difference there would grow with the position. */
#include "shard/cuda/common.cuh"

#define THREADS 128

__global__ void __launch_bounds__(THREADS) rope_kernel(struct wn_cuda_mat x, const uint32_t *position,
                                                       const float *freq, uint32_t head_dim)
{
    const uint32_t half = head_dim / 2, pair = blockIdx.x * THREADS + threadIdx.x;
    const uint32_t head = pair / half, i = pair % half;

    if (pair >= x.cols / 2) return;
    const float angle = (float)position[blockIdx.y] * freq[i], c = cosf(angle), s = sinf(angle);
    const size_t at = wn_at(x, blockIdx.y, (size_t)head * head_dim + i);
    const float x0 = wn_get(x.ptr, x.dtype, at), x1 = wn_get(x.ptr, x.dtype, at + half);
    wn_put(x.ptr, x.dtype, at, x0 * c - x1 * s);
    wn_put(x.ptr, x.dtype, at + half, x1 * c + x0 * s);
}

int wn_cuda_run_rope(const struct wn_cuda_rope *a, wn_cuda_stream st)
{
    const struct wn_cuda_mat *x = &a->x;

    for (uint32_t first = 0; first < x->rows; first += 65535) { /* the most that a grid's y may be */
        struct wn_cuda_mat part = *x;
        part.ptr = (char *)x->ptr + wn_at(*x, first, 0) * (x->dtype == WN_CUDA_F32 ? 4 : 2);
        part.rows = x->rows - first < 65535 ? x->rows - first : 65535;
        dim3 grid((x->cols / 2 + THREADS - 1) / THREADS, part.rows);
        WN_LAUNCH(rope_kernel, grid, THREADS, 0, st, part, a->position + first, a->freq, (uint32_t)a->head_dim);
    }
    return (int)cudaGetLastError();
}
