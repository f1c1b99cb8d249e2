/* shard/cuda/cuda.h - the insides of the "cuda" backend: what a device holds beside the caller's buffers.
 *
 * One stream carries everything, in order. Host data reaches it in two ways: `staging` for contents (weights, pixels,
 * features), a ring of pinned chunks, so that the caller's memory is free again when upload returns; and queue.h's
 * tables (positions, page tables, row numbers), which a step passes to every layer and which are copied once.
 *
 * Owns: stream, pinned memory, scratch. Scratch only grows, so that a step that has been seen allocates nothing. */
#ifndef WN_SHARD_CUDA_CUDA_H
#define WN_SHARD_CUDA_CUDA_H

#include "shard/backend.h"
#include "shard/cuda/geometry.h"
#include "shard/cuda/launch.h"
#include "shard/cuda/queue.h"
#include "transport/cuda_check.h"
#include "transport/cuda_marks.h"

#define WN_CUDA_STAGES      3u
#define WN_CUDA_STAGE_BYTES ((size_t)16 << 20)

struct wn_weight {
    void *ptr; /* [n, stride] of dtype, as struct wn_cuda_w says */
    float *scales; /* int8: behind the rows */
    wn_dtype dtype;
    uint32_t n, k, stride, slices;
};

struct wn_cuda_stage {
    void *pinned;
    cudaEvent_t copied;
};

enum { WN_CUDA_SCRATCH_PARTS, WN_CUDA_SCRATCH_ATTN, WN_CUDA_SCRATCH_TAPS, WN_CUDA_SCRATCH_RAW, WN_CUDA_SCRATCH_N };

struct wn_cuda_lt; /* cuBLASLt's handle and chosen algorithms */

struct wn_cuda {
    struct wn_backend base;
    int device;
    wn_cuda_kernels kernels;
    cudaStream_t stream;
    struct wn_cuda_stage stages[WN_CUDA_STAGES];
    uint32_t stage; /* the next one */
    struct wn_cuda_queue queue;
    struct wn_cuda_marks marks; /* one for each attention that is launched at once */
    uint32_t *words; /* host: a table being made */
    size_t words_room;
    struct wn_buf scratch[WN_CUDA_SCRATCH_N];
    float *freq; /* device [rope_dim / 2] */
    uint32_t rope_dim;
    float rope_theta;
    struct wn_cuda_lt *lt; /* NULL without cuBLASLt */
    void *pinned; /* the caller's memory, between pin and unpin */
    size_t pinned_bytes;
    uint64_t uploaded_bytes, upload_us;
};

/* Where what is launched at once goes. */
static inline wn_cuda_stream wn_cuda_now(const struct wn_cuda *c)
{
    return (wn_cuda_stream){.queue = c->stream};
}

/* ---- memory.c ---- */
wn_status wn_cuda_memory_open(struct wn_cuda *c, struct wn_err *err);
void wn_cuda_memory_close(struct wn_cuda *c);
wn_status wn_cuda_memory(struct wn_backend *be, struct wn_memory *out);
wn_status wn_cuda_buf_alloc(struct wn_backend *be, size_t bytes, struct wn_buf *out);
void wn_cuda_buf_free(struct wn_backend *be, struct wn_buf *buf);
wn_status wn_cuda_upload(struct wn_backend *be, void *dst, const void *host_src, size_t bytes);
wn_status wn_cuda_download(struct wn_backend *be, void *host_dst, const void *src, size_t bytes);
wn_status wn_cuda_pin(struct wn_backend *be, void *host, size_t bytes);
void wn_cuda_unpin(struct wn_backend *be);
wn_status wn_cuda_weight_rows(struct wn_backend *be, struct wn_weight *w, uint32_t first, const struct wn_mat *host);
wn_status wn_cuda_weight_create(struct wn_backend *be, struct wn_weight **out, const struct wn_mat *host, wn_dtype as);
wn_status wn_cuda_weight_i8(struct wn_backend *be, struct wn_weight **out, const struct wn_mat *host, uint32_t slices);
void wn_cuda_weight_destroy(struct wn_backend *be, struct wn_weight *w);
wn_status wn_cuda_sync(struct wn_backend *be, int64_t deadline_us);
/* Device memory of at least `bytes`, valid until the next call for the same purpose; NULL and a status otherwise. */
wn_status wn_cuda_scratch(struct wn_cuda *c, int purpose, size_t bytes, void **out);
/* Host words for a table that is then given to wn_cuda_table. */
wn_status wn_cuda_words(struct wn_cuda *c, size_t words, uint32_t **out);

/* ---- ops.c ---- */
wn_status wn_cuda_matmul(struct wn_backend *be, const struct wn_matmul *a);
wn_status wn_cuda_matmuls(struct wn_backend *be, const struct wn_matmul *a, uint32_t n);
wn_status wn_cuda_norm(struct wn_backend *be, const struct wn_norm *a);
wn_status wn_cuda_add_norm(struct wn_backend *be, const struct wn_mat *y, const struct wn_norm *a);
wn_status wn_cuda_rope_kv(struct wn_backend *be, const struct wn_rope *r, const struct wn_kv_write *w);
wn_status wn_cuda_rope(struct wn_backend *be, const struct wn_rope *a);
wn_status wn_cuda_kv_write(struct wn_backend *be, const struct wn_kv_write *a);
wn_status wn_cuda_attn_paged(struct wn_backend *be, const struct wn_attn_paged *a);
wn_status wn_cuda_attn_full(struct wn_backend *be, const struct wn_attn_full *a);
wn_status wn_cuda_add(struct wn_backend *be, const struct wn_mat *out, const struct wn_mat *a, const struct wn_mat *b);
wn_status wn_cuda_silu_mul(struct wn_backend *be, const struct wn_mat *out, const struct wn_mat *gate,
                           const struct wn_mat *up);
wn_status wn_cuda_gather_rows(struct wn_backend *be, const struct wn_mat *out, const struct wn_mat *table,
                              const uint32_t *index);
wn_status wn_cuda_pick(struct wn_backend *be, const struct wn_picks *a);
wn_status wn_cuda_convert(struct wn_backend *be, const struct wn_mat *out, const struct wn_mat *in);

wn_status wn_cuda_sum_parts(struct wn_backend *be, const struct wn_dev_sum *a);

/* ---- row_ops.c: what pruning asks for, launched at once ---- */
wn_status wn_cuda_row_dots(struct wn_backend *be, const struct wn_row_dots *a);
wn_status wn_cuda_row_sums(struct wn_backend *be, const struct wn_row_sums *a);

/* ---- lt.c ---- */
wn_status wn_cuda_lt_open(struct wn_cuda_lt **out, struct wn_err *err); /* WN_EUNSUPP: built without */
void wn_cuda_lt_close(struct wn_cuda_lt *lt);                          /* NULL is fine */
uint64_t wn_cuda_lt_asked(const struct wn_cuda_lt *lt);                /* algorithms that it was asked for */
/* parts (if not NULL) or out = x * w^T, as cuBLASLt sums; no bias, no activation. n such products of one x at once:
 * each has w and out so many elements (a multiple of eight) behind the last one's. WN_EUNSUPP: no algorithm for it. */
struct wn_cuda_same {
    uint32_t n;
    int64_t w_step, out_step;
};
wn_status wn_cuda_lt_run(struct wn_cuda_lt *lt, const struct wn_cuda_matmul *a, const struct wn_cuda_same *of,
                         cudaStream_t st);

#endif
