/* shard/plan.h - who holds what: a pure function from (model, P stages, T tensor ranks) to the
 * tensors of each rank, their bytes, and the bytes that a prompt puts on each link. Loading, the
 * engine and `winnow plan` all read it, so what is printed is what is held and sent.
 *
 * Layout. Rank r = stage * T + tensor. A stage holds a range of layers. Inside a stage each
 * tensor rank holds
 *   q_proj, k_proj, v_proj, gate_proj, up_proj: the output rows of its heads or columns
 *       (column parallel);
 *   o_proj, down_proj: the matching input columns; partial sums meet in an all-reduce
 *       (row parallel);
 *   norms: whole, on every tensor rank.
 * Stage 0 also holds the projector (linear_1 by output rows, linear_2 by input columns) and its
 * part of the vocabulary rows of the embedding: both give partial input rows, so that one
 * all-reduce makes the input of layer 0. linear_2's bias is whole on every tensor rank: it is
 * added after that all-reduce, so that the sum has the same bits for every T. The last stage
 * holds the final norm and its part of the vocabulary rows of the head (of the embedding, if the
 * two are tied). Vocabulary rows are dealt out evenly, the first ranks taking one more when they
 * do not divide. The vision tower is no part of a replica: vision workers hold it whole. Between
 * stages tensor rank t of stage s sends columns [t * hidden/T, (t+1) * hidden/T) of the hidden
 * rows to tensor rank t of stage s+1, and an all-gather inside that stage makes them whole: a
 * boundary carries each row once. */
#ifndef WN_SHARD_PLAN_H
#define WN_SHARD_PLAN_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/status.h"
#include "base/traffic.h"
#include "shard/model.h"

#define WN_STAGES_MAX 64
#define WN_TENSOR_MAX 64
#define WN_NAME_MAX   128

struct wn_range {
    uint32_t first, n;
};

struct wn_plan {
    struct wn_model model;
    wn_dtype dtype;  /* of weights, KV cache and activations in memory and between stages */
    wn_dtype linear; /* of the layers' matrices: dtype, or WN_I8 (set after the plan is made) */
    uint32_t stages, tensors;
    struct wn_range layers[WN_STAGES_MAX];
    uint32_t slices; /* model.slices if tensors divides it, else `tensors` (one part a rank) */
};

/* Part of one tensor that a rank holds: rows and columns of a matrix; a vector has cols.n = 1. */
struct wn_slice {
    char name[WN_NAME_MAX]; /* as in the checkpoint, with the family's prefix resolved at load */
    struct wn_range rows, cols;
    uint32_t int8_slices; /* kept as int8, with scales for so many parts of its columns; 0: as the plan's dtype */
};

/* Makes the plan. layers_spec NULL cuts the layers evenly (the first stages take one more), else
 * "0-9,10-39". `dtype` is the compute type. A size that does not divide the heads or the widths
 * is WN_EINVAL, and the text names sizes that work. */
WN_NODISCARD wn_status wn_plan_make(struct wn_plan *out, const struct wn_model *model,
                                    uint32_t stages, uint32_t tensors, const char *layers_spec,
                                    wn_dtype dtype, struct wn_err *err);

static inline uint32_t wn_plan_rank(const struct wn_plan *p, uint32_t stage, uint32_t tensor)
{
    return stage * p->tensors + tensor;
}

/* Calls `each` for every tensor part that `rank` holds, in load order; stops at the first
 * failure. Each part comes once, also an embedding that the only stage uses as its head too. */
typedef wn_status wn_slice_fn(void *ctx, const struct wn_slice *s, struct wn_err *err);
WN_NODISCARD wn_status wn_plan_slices(const struct wn_plan *p, uint32_t rank, wn_slice_fn *each,
                                      void *ctx, struct wn_err *err);

struct wn_range wn_plan_heads(const struct wn_plan *p, uint32_t tensor); /* query heads */
struct wn_range wn_plan_kv_heads(const struct wn_plan *p, uint32_t tensor);
struct wn_range wn_plan_mlp(const struct wn_plan *p, uint32_t tensor);
struct wn_range wn_plan_vocab(const struct wn_plan *p, uint32_t tensor);

/* What a rank holds: matrices in the plan's dtype or int8 with its scales, norms and biases in
 * float32; an embedding that is the head too counts twice. And for each token in its KV cache: keys and values of all
 * layers of the rank. */
uint64_t wn_plan_weight_bytes(const struct wn_plan *p, uint32_t rank);
uint64_t wn_plan_kv_bytes_per_token(const struct wn_plan *p, uint32_t rank);

/* A prompt and its answer, as far as bytes go. Features travel in the plan's dtype. */
struct wn_plan_load {
    uint32_t text_tokens, image_rows; /* prompt rows; image rows after pruning */
    uint32_t new_tokens;   /* tokens generated; new_tokens - 1 decode steps follow the prefill */
    uint32_t chunk_tokens; /* prefill chunk (--max-num-batched-tokens) */
    bool projected;        /* features have the decoder's width already */
    bool gpus;             /* the tensor ranks of a stage speak through NCCL, with ordered sums */
};

/* Payload bytes that rank `src` sends to rank `dst` for one prompt, by kind (base/traffic.h);
 * src = WN_PLAN_VISION is the vision worker. Equal to what the links count. */
#define WN_PLAN_VISION UINT32_MAX
uint64_t wn_plan_link_bytes(const struct wn_plan *p, const struct wn_plan_load *load, uint32_t src,
                            uint32_t dst, enum wn_traffic kind);

/* Prints the plan: layers, tensors and bytes of each rank, bytes of each link for `load`, the
 * totals they add up to, and what a generated token more adds. load NULL: without links. memory
 * (shard/plan_memory.h) NULL: without each rank's. json: NULL if memory runs out, else owned. */
struct wn_memory_limits;
void wn_plan_print(const struct wn_plan *p, const struct wn_plan_load *load, FILE *out);
char *wn_plan_json(const struct wn_plan *p, const struct wn_plan_load *load,
                   const struct wn_memory_limits *memory);

#endif
