#include "shard/cuda/geometry.h"

#include <string.h>

bool wn_cuda_aligned(const struct wn_mat *m)
{
    return m->stride % 8 == 0 && (uintptr_t)m->ptr % 16 == 0;
}

wn_cuda_matmul_kind wn_cuda_choose_matmul(wn_cuda_kernels kernels, const struct wn_matmul *a, wn_dtype w_type,
                                          uint32_t n, uint32_t k)
{
    bool tensor = a->x.dtype == WN_BF16 && (w_type == WN_BF16 || w_type == WN_I8) && wn_cuda_aligned(&a->x);

    if (kernels == WN_CUDA_PLAIN || !tensor) return WN_CUDA_MATMUL_PLAIN;
    /* cuBLASLt wants 16-byte aligned rows of out too; with an epilogue it writes parts, which are ours. */
    if (kernels == WN_CUDA_FAST && w_type == WN_BF16 && a->out.rows >= WN_CUDA_LT_ROWS && n % 8 == 0 &&
        (a->bias || a->act != WN_ACT_NONE || wn_cuda_aligned(&a->out)))
        return WN_CUDA_MATMUL_LT;
    if (a->slices > 1 && (k / a->slices % 8 != 0 || a->slices > WN_CUDA_SLICES_MAX)) return WN_CUDA_MATMUL_PLAIN;
    return WN_CUDA_MATMUL_MMA;
}

uint32_t wn_cuda_row_class(uint32_t rows)
{
    uint32_t step = 128;

    while ((rows - 1) / 32 >= step) step *= 2;
    return (rows + step - 1) / step * step;
}

bool wn_cuda_choose_attn_mma(wn_cuda_kernels kernels, const struct wn_mat *q, const struct wn_mat *k,
                             const struct wn_mat *v, uint32_t head_dim)
{
    return kernels != WN_CUDA_PLAIN && q->dtype == WN_BF16 && k->dtype == WN_BF16 && v->dtype == WN_BF16 &&
           wn_cuda_aligned(q) && wn_cuda_aligned(k) && wn_cuda_aligned(v) && head_dim % 8 == 0 && head_dim <= 128;
}

size_t wn_cuda_matmul_parts(wn_cuda_matmul_kind kind, const struct wn_matmul *a, uint32_t n)
{
    const uint32_t rows = a->out.rows, some = rows < WN_CUDA_PART_ROWS ? rows : WN_CUDA_PART_ROWS;
    const size_t all = (size_t)rows * n;

    if (kind == WN_CUDA_MATMUL_MMA)
        return a->slices > 1 && rows > WN_CUDA_WALK_ROWS ? (size_t)a->slices * some * n : 0;
    return kind == WN_CUDA_MATMUL_LT && (a->bias || a->act != WN_ACT_NONE) ? all : 0;
}

/* A sequence whose rows fit one tile leaves the device idle if one block walks over all its keys. */
static bool is_split(const struct wn_seq *seq, uint32_t group)
{
    return seq->rows * group <= WN_CUDA_TILE && seq->pos + seq->rows > WN_CUDA_CHUNK;
}

struct wn_cuda_attn_plan wn_cuda_plan_attn(const struct wn_seq *seqs, uint32_t seqs_n, uint32_t rows, uint32_t group,
                                           uint32_t page_tokens)
{
    struct wn_cuda_attn_plan p = {.words = 0};
    uint32_t pages = 0;

    for (uint32_t s = 0; s < seqs_n; s++) {
        uint32_t len = seqs[s].pos + seqs[s].rows, query_rows = seqs[s].rows * group;
        if (query_rows == 0) continue;
        if (is_split(&seqs[s], group)) {
            uint32_t chunks = (len + WN_CUDA_CHUNK - 1) / WN_CUDA_CHUNK;
            p.split_tiles_n++;
            if (chunks > p.chunks) p.chunks = chunks;
            if (query_rows > p.split_rows) p.split_rows = query_rows;
        } else {
            p.tiles_n += (query_rows + WN_CUDA_TILE - 1) / WN_CUDA_TILE;
        }
    }
    for (uint32_t s = 0; s < seqs_n; s++)
        pages += (seqs[s].pos + seqs[s].rows + page_tokens - 1) / page_tokens;
    p.seqs = 0;
    p.row_seq = seqs_n * (uint32_t)(sizeof(struct wn_cuda_seq) / 4);
    p.tiles = p.row_seq + rows;
    p.split_tiles = p.tiles + 2 * p.tiles_n;
    p.tables = p.split_tiles + 2 * p.split_tiles_n;
    p.words = p.tables + pages;
    return p;
}

void wn_cuda_pad_attn(struct wn_cuda_attn_plan *p, const struct wn_seq *seqs, uint32_t seqs_n, uint32_t rows,
                      uint32_t group, uint32_t page_tokens)
{
    uint32_t longest = 1, chunks = 1, pages;

    WN_ASSERT(seqs_n <= rows && group <= WN_CUDA_TILE);
    for (uint32_t s = 0; s < seqs_n; s++) {
        WN_ASSERT(seqs[s].rows <= 1);
        if (seqs[s].pos + seqs[s].rows > longest) longest = seqs[s].pos + seqs[s].rows;
    }
    while (chunks * WN_CUDA_CHUNK < longest) chunks *= 2;
    pages = (chunks * WN_CUDA_CHUNK + page_tokens - 1) / page_tokens;
    *p = (struct wn_cuda_attn_plan){
        .split_tiles_n = rows, .chunks = chunks, .split_rows = group, .padded = true};
    p->row_seq = (rows + 1) * (uint32_t)(sizeof(struct wn_cuda_seq) / 4); /* one more: the empty sequence */
    p->tiles = p->split_tiles = p->row_seq + rows;
    p->tables = p->split_tiles + 2 * rows;
    p->words = p->tables + rows * pages;
}

void wn_cuda_fill_attn(const struct wn_cuda_attn_plan *plan, const struct wn_seq *seqs, uint32_t seqs_n, uint32_t rows,
                       uint32_t group, uint32_t page_tokens, uint32_t *out)
{
    uint32_t table = 0, *tile = out + plan->tiles, *split = out + plan->split_tiles;

    if (plan->padded) memset(out, 0, plan->words * sizeof(*out));
    for (uint32_t i = 0; i < rows; i++) out[plan->row_seq + i] = UINT32_MAX;
    for (uint32_t i = 0; plan->padded && i < plan->split_tiles_n; i++) split[2 * i] = plan->split_tiles_n;
    for (uint32_t s = 0; s < seqs_n; s++) {
        const struct wn_seq *q = &seqs[s];
        struct wn_cuda_seq d = {.first_row = q->first_row, .rows = q->rows, .pos = q->pos, .table = table};
        uint32_t pages = (q->pos + q->rows + page_tokens - 1) / page_tokens;

        memcpy(out + plan->seqs + s * (sizeof(d) / 4), &d, sizeof(d));
        for (uint32_t i = 0; i < q->rows; i++) out[plan->row_seq + q->first_row + i] = s;
        if (pages) memcpy(out + plan->tables + table, q->pages, pages * sizeof(*q->pages));
        table += pages;
        if (q->rows && (plan->padded || is_split(q, group))) {
            *split++ = s;
            *split++ = 0;
            continue;
        }
        for (uint32_t r = 0; r < q->rows * group; r += WN_CUDA_TILE) {
            *tile++ = s;
            *tile++ = r;
        }
    }
}

void wn_cuda_fill_targets(const struct wn_seq *seqs, uint32_t seqs_n, uint32_t rows, uint32_t page_tokens,
                          uint32_t *out)
{
    for (uint32_t i = 0; i < rows; i++) out[i] = UINT32_MAX;
    for (uint32_t s = 0; s < seqs_n; s++)
        for (uint32_t i = 0; i < seqs[s].rows; i++) {
            uint32_t at = seqs[s].pos + i;
            out[seqs[s].first_row + i] = seqs[s].pages[at / page_tokens] * page_tokens + at % page_tokens;
        }
}
