/* shard/cpu/check.h - shape checks that the CPU backends share: a wrong shape is a bug of the caller, so they assert.
 * Also the row conversions of the plain loops. No state, any thread. */
#ifndef WN_SHARD_CPU_CHECK_H
#define WN_SHARD_CPU_CHECK_H

#include "shard/backend.h"

/* A matrix that kernels compute on: float32 or bfloat16, rows that do not overlap. */
static inline void wn_check_mat(const struct wn_mat *m)
{
    WN_ASSERT(m->dtype == WN_F32 || m->dtype == WN_BF16);
    WN_ASSERT(m->stride >= m->cols);
    WN_ASSERT(m->ptr || m->rows == 0 || m->cols == 0);
}

/* A matrix that is only read and converted: half precision is allowed too. */
static inline void wn_check_source(const struct wn_mat *m)
{
    WN_ASSERT(m->dtype == WN_F32 || m->dtype == WN_BF16 || m->dtype == WN_F16);
    WN_ASSERT(m->stride >= m->cols);
    WN_ASSERT(m->ptr || m->rows == 0 || m->cols == 0);
}

static inline void wn_check_same_shape(const struct wn_mat *a, const struct wn_mat *b)
{
    WN_ASSERT(a->rows == b->rows && a->cols == b->cols);
}

static inline void wn_check_matmul(const struct wn_matmul *a, uint32_t n, uint32_t k)
{
    wn_check_mat(&a->out);
    wn_check_mat(&a->x);
    WN_ASSERT(a->out.rows == a->x.rows);
    WN_ASSERT(a->out.cols == n && a->x.cols == k);
    WN_ASSERT(a->slices >= 1 && (a->slices & (a->slices - 1)) == 0 && k % a->slices == 0);
    WN_ASSERT(a->act >= WN_ACT_NONE && a->act <= WN_ACT_SILU);
}

static inline void wn_check_norm(const struct wn_norm *a)
{
    wn_check_mat(&a->out);
    wn_check_mat(&a->x);
    wn_check_same_shape(&a->out, &a->x);
    WN_ASSERT(a->weight && !(a->rms && a->bias));
}

static inline void wn_check_rope(const struct wn_rope *a)
{
    wn_check_mat(&a->x);
    WN_ASSERT(a->head_dim > 0 && a->head_dim % 2 == 0 && a->x.cols % a->head_dim == 0);
    WN_ASSERT(a->position || a->x.rows == 0);
    WN_ASSERT(a->theta > 0.0f);
}

static inline void wn_check_kv(const struct wn_kv *kv)
{
    wn_check_mat(&kv->k);
    wn_check_mat(&kv->v);
    wn_check_same_shape(&kv->k, &kv->v);
    WN_ASSERT(kv->k.dtype == kv->v.dtype);
    WN_ASSERT(kv->page_tokens > 0 && kv->k.rows % kv->page_tokens == 0);
}

/* Every row that the sequences name is in the step's matrices, every page in the pool. */
static inline void wn_check_seqs(const struct wn_seq *seqs, uint32_t seqs_n, uint32_t rows, const struct wn_kv *kv)
{
    uint32_t pages = kv->k.rows / kv->page_tokens;
    uint64_t last = 0;
    WN_ASSERT(seqs || seqs_n == 0);
    for (uint32_t s = 0; s < seqs_n; s++) {
        const struct wn_seq *q = &seqs[s];
        uint64_t len = (uint64_t)q->pos + q->rows;
        WN_ASSERT(q->first_row >= last);
        last = (uint64_t)q->first_row + q->rows;
        WN_ASSERT(last <= rows);
        WN_ASSERT(len <= UINT32_MAX && (q->pages || len == 0));
        for (uint64_t p = 0; p * kv->page_tokens < len; p++) WN_ASSERT(q->pages[p] < pages);
    }
}

static inline void wn_check_kv_write(const struct wn_kv_write *a)
{
    wn_check_mat(&a->k);
    wn_check_mat(&a->v);
    wn_check_kv(&a->kv);
    wn_check_same_shape(&a->k, &a->v);
    WN_ASSERT(a->k.cols == a->kv.k.cols);
    wn_check_seqs(a->seqs, a->seqs_n, a->k.rows, &a->kv);
}

static inline void wn_check_attn_paged(const struct wn_attn_paged *a)
{
    wn_check_mat(&a->out);
    wn_check_mat(&a->q);
    wn_check_same_shape(&a->out, &a->q);
    wn_check_kv(&a->kv);
    WN_ASSERT(a->head_dim > 0 && a->heads > 0 && a->kv_heads > 0 && a->heads % a->kv_heads == 0);
    WN_ASSERT(a->q.cols == (uint64_t)a->heads * a->head_dim);
    WN_ASSERT(a->kv.k.cols == (uint64_t)a->kv_heads * a->head_dim);
    wn_check_seqs(a->seqs, a->seqs_n, a->q.rows, &a->kv);
}

static inline void wn_check_attn_full(const struct wn_attn_full *a)
{
    wn_check_mat(&a->out);
    wn_check_mat(&a->q);
    wn_check_mat(&a->k);
    wn_check_mat(&a->v);
    wn_check_same_shape(&a->out, &a->q);
    wn_check_same_shape(&a->q, &a->k);
    wn_check_same_shape(&a->q, &a->v);
    WN_ASSERT(a->head_dim > 0 && a->heads > 0 && a->tokens > 0);
    WN_ASSERT(a->q.cols == (uint64_t)a->heads * a->head_dim);
    WN_ASSERT(a->q.rows == (uint64_t)a->images * a->tokens);
}

static inline void wn_check_elementwise(const struct wn_mat *out, const struct wn_mat *a, const struct wn_mat *b)
{
    wn_check_mat(out);
    wn_check_mat(a);
    wn_check_mat(b);
    wn_check_same_shape(out, a);
    wn_check_same_shape(out, b);
}

/* The address of element (row, col). */
static inline void *wn_mat_at(const struct wn_mat *m, size_t row, size_t col)
{
    return (char *)m->ptr + (row * m->stride + col) * wn_dtype_bytes(m->dtype);
}

static inline float wn_load(const void *p, wn_dtype t, size_t i)
{
    if (t == WN_F32) return ((const float *)p)[i];
    return t == WN_BF16 ? wn_bf16_to_f32(((const wn_bf16 *)p)[i]) : wn_f16_to_f32(((const uint16_t *)p)[i]);
}

static inline void wn_store(void *p, wn_dtype t, size_t i, float v)
{
    if (t == WN_F32)
        ((float *)p)[i] = v;
    else
        ((wn_bf16 *)p)[i] = wn_f32_to_bf16(v);
}

#endif
