/* Attention on the tensor cores for bfloat16: paged and causal for the decoder, whole images for the vision tower.
 *
 * A block of four warps takes 64 query rows of one kv head, 16 a warp; a row is one query head of one token, so that
 * the heads of a group share what is read of their kv head. Keys are taken in tiles of 64, and four tiles from a
 * multiple of 256 on make a chunk, whose softmax starts afresh; chunks are merged in ascending order by merge(). Either
 * one block walks over all chunks (prefill), or each chunk has a block of its own and a second kernel merges (decode):
 * the same operations in the same order, so the same bits. Keys that a row does not see have probability zero, which
 * changes no sum; so a row's result depends on its own position only.
 *
 * Probabilities are split into two bfloat16 (high and low part), which keeps 16 bits of them: the second product costs
 * little where attention is a few per cent of the work. */
#include "shard/cuda/common.cuh"

#define THREADS 128
#define KEYS    64 /* of a tile */

/* Soft maximum of some keys of a row, so far. */
struct soft {
    float max, sum;
};

/* total and part over different keys become one; *keep and *take are what their outputs are multiplied by. */
__device__ __forceinline__ void merge(struct soft *total, struct soft part, float *keep, float *take)
{
    const float max = fmaxf(total->max, part.max), ref = max == -INFINITY ? 0.0f : max;
    *keep = exp2f(total->max - ref);
    *take = exp2f(part.max - ref);
    total->sum = fmaf(part.sum, *take, total->sum * *keep);
    total->max = max;
}

__device__ __forceinline__ float merge_out(float total, float part, float keep, float take)
{
    return fmaf(part, take, total * keep);
}

/* 64 rows of HD values into shared memory: row r from pointer row(r), zeros where it is NULL and after head_dim. */
template <int HD, typename F> __device__ __forceinline__ void load_rows(uint16_t *to, uint32_t head_dim, F row,
                                                                        const void *valid)
{
    for (uint32_t i = threadIdx.x; i < 64 * (HD / 8); i += THREADS) {
        const uint32_t r = i / (HD / 8), c = i % (HD / 8) * 8;
        const uint16_t *from = row(r);
        const bool inside = from && c < head_dim;
        wn_cp_async(to + r * (HD + 8) + c, inside ? (const void *)(from + c) : valid, inside ? 16 : 0);
    }
}

template <int HD> struct walk { /* what a thread holds */
    struct soft total[2], part[2]; /* of rows g and g + 8 of its warp */
    float out[HD / 8][4], part_out[HD / 8][4];
};

template <int HD> __device__ __forceinline__ void start_part(struct walk<HD> &w)
{
    w.part[0].max = w.part[1].max = -INFINITY;
    w.part[0].sum = w.part[1].sum = 0.0f;
#pragma unroll
    for (int i = 0; i < HD / 8; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) w.part_out[i][j] = 0.0f;
}

/* A chunk is over: a row's sum is still spread over the four lanes of its quad. */
template <int HD> __device__ __forceinline__ void end_part(struct walk<HD> &w)
{
    for (int r = 0; r < 2; r++) {
        w.part[r].sum += __shfl_xor_sync(0xffffffffu, w.part[r].sum, 1);
        w.part[r].sum += __shfl_xor_sync(0xffffffffu, w.part[r].sum, 2);
    }
}

template <int HD> __device__ __forceinline__ void merge_part(struct walk<HD> &w)
{
    float keep[2], take[2];

#pragma unroll
    for (int r = 0; r < 2; r++) merge(&w.total[r], w.part[r], &keep[r], &take[r]);
#pragma unroll
    for (int i = 0; i < HD / 8; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            w.out[i][j] = merge_out(w.out[i][j], w.part_out[i][j], keep[j / 2], take[j / 2]);
}

/* One tile of keys, in shared memory, for the warp's 16 rows. limit[r]: first key, counted in the tile, not seen. */
template <int HD>
__device__ __forceinline__ void tile_step(struct walk<HD> &w, const uint16_t *q, const uint16_t *k, const uint16_t *v,
                                          const int limit[2], float scale)
{
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    float s[KEYS / 8][4];

#pragma unroll
    for (int i = 0; i < KEYS / 8; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) s[i][j] = 0.0f;
#pragma unroll
    for (int d = 0; d < HD; d += 16) {
        const uint16_t *qa = q + g * (HD + 8) + d + 2 * t;
        const uint32_t af[4] = {*(const uint32_t *)qa, *(const uint32_t *)(qa + 8 * (HD + 8)),
                                *(const uint32_t *)(qa + 8), *(const uint32_t *)(qa + 8 * (HD + 8) + 8)};
#pragma unroll
        for (int i = 0; i < KEYS / 8; i++) {
            const uint16_t *kb = k + (i * 8 + g) * (HD + 8) + d + 2 * t;
            const uint32_t bf[2] = {*(const uint32_t *)kb, *(const uint32_t *)(kb + 8)};
            wn_mma(s[i], af, bf);
        }
    }
    float max[2] = {w.part[0].max, w.part[1].max};
#pragma unroll
    for (int i = 0; i < KEYS / 8; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int key = i * 8 + 2 * (int)t + j % 2;
            s[i][j] = key < limit[j / 2] ? s[i][j] * scale : -INFINITY;
            max[j / 2] = fmaxf(max[j / 2], s[i][j]);
        }
    float keep[2], ref[2];
    for (int r = 0; r < 2; r++) {
        max[r] = fmaxf(max[r], __shfl_xor_sync(0xffffffffu, max[r], 1));
        max[r] = fmaxf(max[r], __shfl_xor_sync(0xffffffffu, max[r], 2));
        ref[r] = max[r] == -INFINITY ? 0.0f : max[r];
        keep[r] = exp2f(w.part[r].max - ref[r]);
        w.part[r].max = max[r];
        w.part[r].sum *= keep[r];
    }
#pragma unroll
    for (int i = 0; i < KEYS / 8; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            s[i][j] = exp2f(s[i][j] - ref[j / 2]);
            w.part[j / 2].sum += s[i][j];
        }
#pragma unroll
    for (int i = 0; i < HD / 8; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) w.part_out[i][j] *= keep[j / 2];
#pragma unroll
    for (int i = 0; i < KEYS / 16; i++) { /* 16 keys at a time */
        uint32_t high[4], low[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float a = s[2 * i + j / 2][j % 2 * 2], b = s[2 * i + j / 2][j % 2 * 2 + 1];
            high[j] = wn_pack_bf16(a, b);
            low[j] = wn_pack_bf16(a - __uint_as_float(high[j] << 16), b - __uint_as_float(high[j] & 0xffff0000u));
        }
#pragma unroll
        for (int d = 0; d < HD / 16; d++) {
            /* matrices: keys 0-7 and 8-15 of columns 0-7, then of columns 8-15 */
            uint32_t b[4];
            wn_ldmatrix_trans(b, v + (i * 16 + lane / 8 % 2 * 8 + lane % 8) * (HD + 8) + d * 16 + lane / 16 * 8);
            wn_mma(w.part_out[2 * d], high, b);
            wn_mma(w.part_out[2 * d], low, b);
            wn_mma(w.part_out[2 * d + 1], high, b + 2);
            wn_mma(w.part_out[2 * d + 1], low, b + 2);
        }
    }
}

/* grid: tiles of query rows, kv heads, chunks (1 unless `split`). A warp without rows - a decode has one row for each
 * query head of a group - copies, and computes nothing. */
template <int HD, bool SPLIT> __global__ void __launch_bounds__(THREADS, 2) mma_kernel(struct wn_cuda_attn a)
{
    wn_follow();
    WN_DYNAMIC_SHARED(raw);
    uint16_t *qs = (uint16_t *)raw, *kv = qs + 64 * (HD + 8); /* then two buffers of keys and values */
    const uint32_t part = 64 * (HD + 8);
    const struct wn_cuda_tile tile = (SPLIT ? a.split_tiles : a.tiles)[blockIdx.x];
    const struct wn_cuda_seq seq = a.seqs[tile.seq];
    const uint32_t group = a.heads / a.kv_heads, kv_head = blockIdx.y, hd = a.head_dim;
    const uint32_t warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const uint32_t rows_all = seq.rows * group; /* query rows of this kv head */
    const uint32_t rows_end = tile.row0 + 64 < rows_all ? tile.row0 + 64 : rows_all;
    const uint32_t keys_all = rows_all == 0 ? 0
                              : a.causal    ? seq.pos + (rows_end - 1) / group + 1
                                            : seq.pos + seq.rows; /* of the block */
    const uint32_t first = SPLIT ? blockIdx.z * WN_CUDA_CHUNK : 0;
    const uint32_t last = SPLIT && first + WN_CUDA_CHUNK < keys_all ? first + WN_CUDA_CHUNK : keys_all;
    const uint16_t *q = (const uint16_t *)a.q.ptr, *k = (const uint16_t *)a.k.ptr, *v = (const uint16_t *)a.v.ptr;
    struct walk<HD> w;

    if (first >= last) return; /* a split tile with fewer chunks, or of no sequence: uniform over the block */
    w.total[0].max = w.total[1].max = -INFINITY;
    w.total[0].sum = w.total[1].sum = 0.0f;
#pragma unroll
    for (int i = 0; i < HD / 8; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) w.out[i][j] = 0.0f;
    start_part<HD>(w);

    const auto query_row = [&](uint32_t r) -> const uint16_t * {
        const uint32_t n = tile.row0 + r;
        if (n >= rows_all) return (const uint16_t *)nullptr;
        return q + wn_at(a.q, seq.first_row + n / group, (size_t)(kv_head * group + n % group) * hd);
    };
    const auto load_keys = [&](uint32_t j0, uint32_t buffer) {
        uint16_t *to = kv + buffer * 2 * part;
        const auto key_row = [&](const uint16_t *base, size_t stride, uint32_t j) -> const uint16_t * {
            if (j >= last) return (const uint16_t *)nullptr;
            const size_t r = (size_t)a.tables[seq.table + j / a.page_tokens] * a.page_tokens + j % a.page_tokens;
            return base + r * stride + (size_t)kv_head * hd;
        };
        load_rows<HD>(to, hd, [&](uint32_t r) { return key_row(k, a.k.stride, j0 + r); }, k);
        load_rows<HD>(to + part, hd, [&](uint32_t r) { return key_row(v, a.v.stride, j0 + r); }, v);
    };
    load_rows<HD>(qs, hd, query_row, q);
    load_keys(first, 0);
    wn_cp_commit();
    int seen[2]; /* keys that the thread's two rows see */
    for (int r = 0; r < 2; r++) {
        const uint32_t n = tile.row0 + warp * 16 + g + r * 8;
        seen[r] = n >= rows_all ? 0 : (int)(a.causal ? seq.pos + n / group + 1 : keys_all);
    }
    const float scale = a.scale * 1.44269504f; /* exp2 instead of exp */
    for (uint32_t j0 = first, turn = 0; j0 < last; j0 += KEYS, turn++) {
        if (j0 + KEYS < last) load_keys(j0 + KEYS, (turn + 1) % 2);
        wn_cp_commit();
        wn_cp_wait<1>();
        __syncthreads();
        const uint16_t *ks = kv + turn % 2 * 2 * part;
        const int limit[2] = {seen[0] - (int)j0, seen[1] - (int)j0};
        if (tile.row0 + warp * 16 < rows_all) tile_step<HD>(w, qs + warp * 16 * (HD + 8), ks, ks + part, limit, scale);
        __syncthreads(); /* the buffer is free again */
        if ((j0 + KEYS) % WN_CUDA_CHUNK != 0 && j0 + KEYS < last) continue;
        end_part<HD>(w);
        if (SPLIT) continue; /* there is one chunk only, and the part is the result */
        merge_part<HD>(w);
        start_part<HD>(w);
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const uint32_t n = tile.row0 + warp * 16 + g + r * 8;
        if (n >= rows_all) continue;
        const size_t row = seq.first_row + n / group, head = kv_head * group + n % group;
        const size_t at = ((size_t)blockIdx.z * a.q.rows + row) * a.heads + head;
#pragma unroll
        for (int i = 0; i < HD / 8; i++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const uint32_t d = i * 8 + 2 * t + j;
                if (d >= hd) continue;
                if (SPLIT)
                    a.part_out[at * hd + d] = w.part_out[i][2 * r + j];
                else
                    wn_put(a.out.ptr, a.out.dtype, wn_at(a.out, row, head * hd + d),
                           w.out[i][2 * r + j] / w.total[r].sum);
            }
        if (SPLIT && t == 0) {
            a.part_ml[at * 2] = w.part[r].max;
            a.part_ml[at * 2 + 1] = w.part[r].sum;
        }
    }
}

/* The chunks of split tiles. grid: split tiles, query rows of a tile, kv heads; a thread for each column. */
__global__ void __launch_bounds__(THREADS) merge_kernel(struct wn_cuda_attn a)
{
    wn_follow();
    const struct wn_cuda_tile tile = a.split_tiles[blockIdx.x];
    const struct wn_cuda_seq seq = a.seqs[tile.seq];
    const uint32_t group = a.heads / a.kv_heads, n = tile.row0 + blockIdx.y, d = threadIdx.x;

    if (n >= seq.rows * group || d >= a.head_dim) return;
    const size_t row = seq.first_row + n / group, head = blockIdx.z * group + n % group;
    const uint32_t keys = a.causal ? seq.pos + n / group + 1 : seq.pos + seq.rows;
    struct soft total = {-INFINITY, 0.0f};
    float out = 0.0f;
    for (uint32_t c = 0; c * WN_CUDA_CHUNK < keys; c++) {
        const size_t at = ((size_t)c * a.q.rows + row) * a.heads + head;
        const struct soft part = {a.part_ml[at * 2], a.part_ml[at * 2 + 1]};
        float keep, take;
        merge(&total, part, &keep, &take);
        out = merge_out(out, a.part_out[at * a.head_dim + d], keep, take);
    }
    wn_put(a.out.ptr, a.out.dtype, wn_at(a.out, row, head * a.head_dim + d), out / total.sum);
}

template <int HD> static int run(const struct wn_cuda_attn *a, wn_cuda_stream st)
{
    const size_t shared = (size_t)5 * 64 * (HD + 8) * 2; /* 85 KiB for 128 */
    int rc = 0;

    if (a->tiles_n > 0) {
        rc = wn_allow_shared(mma_kernel<HD, false>, shared);
        dim3 grid(a->tiles_n, a->kv_heads);
        if (rc == 0) WN_LAUNCH((mma_kernel<HD, false>), grid, THREADS, shared, st, *a);
    }
    if (rc == 0 && a->split_tiles_n > 0) {
        rc = wn_allow_shared(mma_kernel<HD, true>, shared);
        dim3 grid(a->split_tiles_n, a->kv_heads, a->chunks);
        dim3 rest(a->split_tiles_n, a->split_rows, a->kv_heads);
        if (rc == 0) WN_LAUNCH((mma_kernel<HD, true>), grid, THREADS, shared, st, *a);
        if (rc == 0) WN_LAUNCH(merge_kernel, rest, THREADS, 0, st, *a);
    }
    return rc ? rc : (int)cudaGetLastError();
}

int wn_cuda_run_attn_mma(const struct wn_cuda_attn *a, wn_cuda_stream st)
{
    return a->head_dim <= 64 ? run<64>(a, st) : run<128>(a, st);
}
