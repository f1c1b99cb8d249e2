/* shard/cuda/launch.h - the launchers: each queues the kernels of one operation on a stream. Plain C on both sides;
 * nothing but device pointers, shapes and numbers, already checked by ops.c.
 *
 * A launcher returns a cudaError_t as an int (0 is success) for launches that the runtime refused; what a kernel does
 * wrong later is found by sync. Launchers allocate nothing and keep no state; what they launch follows from their
 * arguments alone, and argument structs have no padding: queue.h compares them. Kernels read and write only their
 * views.
 *
 * Bits. A stored element depends on its own row, its own sequence and the weights: never on the other rows of the
 * call, on pages, or on the launch geometry that follows from them. */
#ifndef WN_SHARD_CUDA_LAUNCH_H
#define WN_SHARD_CUDA_LAUNCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Where a launch goes. early: it follows one of queue.h's, and its blocks may start before that ends (wn_follow). */
typedef struct wn_cuda_stream {
    struct CUstream_st *queue;
    bool early;
} wn_cuda_stream;

enum { WN_CUDA_F32 = 0, WN_CUDA_BF16 = 1, WN_CUDA_F16 = 2, WN_CUDA_I8 = 3 }; /* as wn_dtype */

struct wn_cuda_mat {
    void *ptr;
    uint32_t dtype, rows, cols, stride;
};

/* A sequence of a step. Its page table is tables + table. */
struct wn_cuda_seq {
    uint32_t first_row, rows, pos, table;
};

/* A block of query rows for the tensor-core kernel: rows [row0, row0 + 64) of sequence seq, where a row is one query
 * head of one token: token * group + head in the group. */
struct wn_cuda_tile {
    uint32_t seq, row0;
};

struct wn_cuda_attn {
    struct wn_cuda_mat out, q, k, v; /* k, v: page p holds rows [p * page_tokens, (p + 1) * page_tokens) */
    const struct wn_cuda_seq *seqs;
    const uint32_t *tables, *row_seq; /* row_seq [rows]: the sequence of each row; UINT32_MAX for none */
    uint32_t page_tokens, heads, kv_heads, head_dim;
    uint32_t causal; /* else every row of a sequence sees its pos + rows keys */
    float scale;
    /* tensor-core kernel */
    const struct wn_cuda_tile *tiles;       /* whole: one block walks over all keys */
    const struct wn_cuda_tile *split_tiles; /* one block for each WN_CUDA_CHUNK keys, merged afterwards */
    uint32_t tiles_n, split_tiles_n;
    uint32_t chunks, split_rows; /* the most chunks and query rows that a split tile has */
    float *part_out, *part_ml; /* [chunks, rows, heads, head_dim], [chunks, rows, heads, 2] */
};

#define WN_CUDA_CHUNK   256u /* keys whose softmax is one unit: fixed, because results depend on it */
#define WN_CUDA_TILE    64u  /* query rows of a block of the tensor-core attention */

struct wn_cuda_norm {
    struct wn_cuda_mat out, x, y; /* y.ptr not NULL: x += y first; then y is as wide as x and out are */
    const float *weight, *bias;
    float eps;
    uint32_t rms;
};

/* out[to[i]] = in[from[i]] for i < rows; NULL means i. A from beyond in's rows gives zeros; a to beyond out's rows is
 * left out. */
struct wn_cuda_rows {
    struct wn_cuda_mat out, in;
    const uint32_t *to, *from;
    uint64_t rows;
};

struct wn_cuda_pair {
    struct wn_cuda_mat out, a, b;
};

/* Rotates x's columns: the first q_cols in place, the rest into `keys`, and copies v into `values`; a row goes to row
 * targets[row] of both, or nowhere if they have none such. */
struct wn_cuda_rope_kv {
    struct wn_cuda_mat x, v, keys, values;
    const uint32_t *position, *targets; /* [rows] device memory */
    const float *freq;
    uint32_t head_dim, q_cols;
};

struct wn_cuda_rope {
    struct wn_cuda_mat x;
    const uint32_t *position; /* [rows] device memory */
    const float *freq;        /* [head_dim / 2] device memory */
    uint64_t head_dim;
};

struct wn_cuda_pick { /* how the token of a row is chosen: struct wn_pick */
    uint64_t seed, position;
    float temperature, top_p;
    uint32_t top_k, wanted;
};

struct wn_cuda_picks {
    struct wn_cuda_mat logits;
    const struct wn_cuda_pick *each; /* [logits.rows] */
    uint32_t *out;
};

/* The tree of transport/coll.h over n parts, `stride` floats apart; part `me` is at own unless that is NULL. */
struct wn_cuda_sum {
    float *out;
    const float *parts, *own;
    size_t stride, count;
    uint32_t n, me;
};

struct wn_cuda_row_list { /* rows at[0 .. n) of m (NULL: 0 .. n - 1), device memory */
    struct wn_cuda_mat m;
    const uint32_t *at;
    uint32_t n;
};

/* pruning/rows.h: pairs as wn_row_pairs. */
struct wn_cuda_row_dots {
    float *out;
    struct wn_cuda_row_list a, b;
    uint32_t pairs;
};

/* terms [2 * all of them]: a row, and the bits of its weight. */
struct wn_cuda_row_sums {
    struct wn_cuda_mat out, in;
    const void *last;
    const uint32_t *first, *terms;
    const float *div;
};

int wn_cuda_has_code(void); /* 0: these kernels were built for the thread's device, too */
int wn_cuda_run_row_dots(const struct wn_cuda_row_dots *a, wn_cuda_stream st);
int wn_cuda_run_row_sums(const struct wn_cuda_row_sums *a, wn_cuda_stream st);
int wn_cuda_run_sum_tree(const struct wn_cuda_sum *a, wn_cuda_stream st);
int wn_cuda_run_norm(const struct wn_cuda_norm *a, wn_cuda_stream st);
int wn_cuda_run_rope(const struct wn_cuda_rope *a, wn_cuda_stream st);
int wn_cuda_run_rope_kv(const struct wn_cuda_rope_kv *a, wn_cuda_stream st);
int wn_cuda_run_rows(const struct wn_cuda_rows *a, wn_cuda_stream st);
int wn_cuda_run_add(const struct wn_cuda_pair *a, wn_cuda_stream st);
int wn_cuda_run_silu_mul(const struct wn_cuda_pair *a, wn_cuda_stream st);
int wn_cuda_run_pick(const struct wn_cuda_picks *a, wn_cuda_stream st);
int wn_cuda_run_attn_plain(const struct wn_cuda_attn *a, wn_cuda_stream st);
/* bfloat16 q, k, v, 16-byte aligned heads, head_dim a multiple of 8 and at most 128 */
int wn_cuda_run_attn_mma(const struct wn_cuda_attn *a, wn_cuda_stream st);

/* The vision tower's taps, [images, heads, tokens] and [images, tokens]; either may be NULL.
 * stats: [images * tokens, heads, 2] scratch. */
struct wn_cuda_taps {
    struct wn_cuda_mat q, k;
    uint32_t images, tokens, heads, head_dim;
    float scale;
    float *cls_rows, *mean_cols, *stats;
};
int wn_cuda_run_taps(const struct wn_cuda_taps *a, wn_cuda_stream st);

#ifdef __cplusplus
}
#endif

#endif
