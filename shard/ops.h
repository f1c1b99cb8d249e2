/* shard/ops.h - what the operations of a backend are told (shard/backend.h): matrices, shapes, tables in host memory.
 *
 * Owns: nothing; all that a struct points to is borrowed for the call. Threads: any. */
#ifndef WN_SHARD_OPS_H
#define WN_SHARD_OPS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/mat.h"

struct wn_weight; /* shard/backend.h */

/* out[M, N] = act(x[M, K] * w[N, K]^T + bias[N]); out may be float32 or bfloat16. */
typedef enum wn_act { WN_ACT_NONE, WN_ACT_GELU, WN_ACT_QUICK_GELU, WN_ACT_SILU } wn_act; /* GELU is the erf form */

struct wn_matmul {
    struct wn_mat out, x;
    const struct wn_weight *w;
    const float *bias; /* [N] in backend memory, or NULL */
    uint32_t slices;   /* parts of K, a power of two that divides K; 1 for plain sums; of int8 weights: their own */
    wn_act act;        /* applied in float32, after the bias */
};

/* out = norm(x) * weight (+ bias), row by row; weight and bias are float32 [cols] in backend memory. */
struct wn_norm {
    struct wn_mat out, x; /* may be the same memory */
    const float *weight;
    const float *bias; /* layer norm only; NULL for RMS norm */
    float eps;
    bool rms; /* true: x / sqrt(mean(x^2) + eps); false: (x - mean) / sqrt(var + eps) */
};

/* Rotary embedding in place, the "rotate half" form of Llama: pair (i, i + head_dim/2), angle
 * pos * theta^(-2i/head_dim). Computed in float32, then rounded to x's type. */
struct wn_rope {
    struct wn_mat x;          /* [tokens, heads * head_dim] */
    const uint32_t *position; /* [tokens], host memory */
    uint32_t head_dim;
    float theta;
};

/* One layer's key and value pages: page p holds rows [p * page_tokens, (p+1) * page_tokens) of two matrices
 * [pages * page_tokens, kv_heads * head_dim]; the order of elements inside a page is the backend's own affair. */
struct wn_kv {
    struct wn_mat k, v;
    uint32_t page_tokens;
};

/* Rows of one sequence in a step. Token i of it has place pos + i in the sequence and its pages, and row first_row + i
 * of the step's matrices. Places say who sees whom; rotary positions are told apart (struct wn_rope). */
struct wn_seq {
    uint32_t first_row, rows; /* rows of this step's matrices; they ascend from one sequence to the next */
    uint32_t pos;             /* tokens of this sequence that are already in its pages */
    const uint32_t *pages;    /* block table, host memory: ceil((pos + rows) / page_tokens) page numbers */
};

/* Copies k and v rows of the step into their pages. */
struct wn_kv_write {
    struct wn_mat k, v; /* [rows, kv_heads * head_dim] */
    struct wn_kv kv;
    const struct wn_seq *seqs;
    uint32_t seqs_n;
};

/* Causal attention over pages: the token at place p of a sequence sees places 0..p. Scores, softmax and sums in
 * float32; probabilities are not rounded. Query head h uses kv head h / (heads / kv_heads). */
struct wn_attn_paged {
    struct wn_mat out, q; /* [rows, heads * head_dim] */
    struct wn_kv kv;      /* already written, this step's rows included */
    const struct wn_seq *seqs;
    uint32_t seqs_n;
    uint32_t heads, kv_heads, head_dim;
    float scale;
};

/* Full (not causal) attention of a vision tower, image by image, with optional taps of the probabilities. */
struct wn_attn_full {
    struct wn_mat out, q, k, v; /* [images * tokens, heads * head_dim] */
    uint32_t images, tokens, heads, head_dim;
    float scale;
    float *cls_rows;  /* NULL, or [images, heads, tokens]: probabilities of query row 0, each head */
    float *mean_cols; /* NULL, or [images, tokens]: probability each key receives, mean over heads and query rows */
};

#endif
