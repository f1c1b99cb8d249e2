/* The plain attention: one block for a query row and head walks over the keys in tiles of 128, counted from the start
 * of the sequence, with a running maximum. For every type; what the tensor-core kernel is compared with. */
#include "shard/cuda/common.cuh"

#define THREADS 128

/* grid: rows, heads. Dynamic shared memory: query and sums, head_dim floats each. */
__global__ void __launch_bounds__(THREADS) plain_kernel(struct wn_cuda_attn a)
{
    wn_follow();
    WN_DYNAMIC_SHARED(raw);
    __shared__ float room[32], p[THREADS];
    __shared__ size_t rows[THREADS]; /* of each key in k and v */
    float *q = (float *)raw, *sum = q + a.head_dim;
    const uint32_t head = blockIdx.y, row = blockIdx.x, s = a.row_seq[row], hd = a.head_dim;
    const size_t qc = (size_t)head * hd, kc = (size_t)(head / (a.heads / a.kv_heads)) * hd;

    if (s == UINT32_MAX) return; /* a row of no sequence stays as it is */
    const struct wn_cuda_seq seq = a.seqs[s];
    const uint32_t keys = a.causal ? seq.pos + (row - seq.first_row) + 1 : seq.pos + seq.rows;
    for (uint32_t d = threadIdx.x; d < hd; d += THREADS) {
        q[d] = wn_get(a.q.ptr, a.q.dtype, wn_at(a.q, row, qc + d));
        sum[d] = 0.0f;
    }
    float max = -INFINITY, total = 0.0f;
    for (uint32_t j0 = 0; j0 < keys; j0 += THREADS) {
        const uint32_t n = keys - j0 < THREADS ? keys - j0 : THREADS, j = j0 + threadIdx.x;
        float score = -INFINITY;
        __syncthreads(); /* q is there; p and rows of the tile before are not read any more */
        if (threadIdx.x < n) {
            const size_t r =
                (size_t)a.tables[seq.table + j / a.page_tokens] * a.page_tokens + j % a.page_tokens;
            float dot = 0.0f;
            for (uint32_t d = 0; d < hd; d++) dot = fmaf(q[d], wn_get(a.k.ptr, a.k.dtype, wn_at(a.k, r, kc + d)), dot);
            score = a.scale * dot;
            rows[threadIdx.x] = r;
        }
        const float tile_max = wn_block_max(score, room), new_max = fmaxf(max, tile_max);
        const float keep = expf(max - new_max), e = threadIdx.x < n ? expf(score - new_max) : 0.0f;
        p[threadIdx.x] = e;
        total = total * keep + wn_block_sum(e, room); /* its barriers also publish p */
        for (uint32_t d = threadIdx.x; d < hd; d += THREADS) {
            float v = sum[d] * keep;
            for (uint32_t i = 0; i < n; i++)
                v = fmaf(p[i], wn_get(a.v.ptr, a.v.dtype, wn_at(a.v, rows[i], kc + d)), v);
            sum[d] = v;
        }
        max = new_max;
    }
    for (uint32_t d = threadIdx.x; d < hd; d += THREADS)
        wn_put(a.out.ptr, a.out.dtype, wn_at(a.out, row, qc + d), sum[d] / total);
}

int wn_cuda_run_attn_plain(const struct wn_cuda_attn *a, wn_cuda_stream st)
{
    dim3 grid(a->q.rows, a->heads);
    WN_LAUNCH(plain_kernel, grid, THREADS, 2 * a->head_dim * sizeof(float), st, *a);
    return (int)cudaGetLastError();
}
