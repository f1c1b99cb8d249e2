/* pruning/impl.h - what the methods share: the call's context, ranking, similarities.
 *
 * Owns:    wn_prune_alloc's memory belongs to the context and is freed when wn_prune_run returns.
 * Threads: one context, one thread.
 * Fails:   alloc returns NULL and has filled ctx->err; what returns a status has filled it, too. */
#ifndef WN_PRUNING_IMPL_H
#define WN_PRUNING_IMPL_H

#include "pruning/prune.h"

#define WN_PRUNE_MEM_MAX 16

struct wn_prune_ctx {
    const struct wn_prune_method *method;
    const struct wn_prune_in *in;
    struct wn_prune_out *out;
    struct wn_err *err;
    struct wn_mat features; /* [n, width] if the method wants them, the worker's memory */
    uint32_t n, width;     /* rows of the image */
    uint32_t count;        /* rows that the budget leaves; 0: the method chooses */
    bool no_memory;        /* for the recipe: the run fails at its end */
    void *mem[WN_PRUNE_MEM_MAX];
    uint32_t mem_n;
};

/* n elements of `bytes` each, uninitialised. */
void *wn_prune_alloc(struct wn_prune_ctx *c, size_t n, size_t bytes);

/* As alloc, all bytes 0. */
void *wn_prune_calloc(struct wn_prune_ctx *c, size_t n, size_t bytes);

static inline uint64_t wn_prune_bit(uint32_t layer)
{
    return layer < 64 ? (uint64_t)1 << layer : 0;
}

/* One layer of the tap that is there: [tokens]; [tokens, width] and [1, width] of the worker's. */
const float *wn_prune_mean_tap(const struct wn_prune_ctx *c, uint32_t layer);
struct wn_mat wn_prune_keys(const struct wn_prune_ctx *c, uint32_t layer);
struct wn_mat wn_prune_query(const struct wn_prune_ctx *c, uint32_t layer);

/* The CLS query's attention to each patch in the feature layer, summed over heads: out [n]. */
void wn_prune_cls_sum(const struct wn_prune_ctx *c, float *out);
void wn_prune_cls_mean(const struct wn_prune_ctx *c, float *out);

/* Room for a result of so many rows; what it was is forgotten. */
WN_NODISCARD wn_status wn_prune_recipe_begin(struct wn_prune_ctx *c, uint32_t rows_max);
/* Appends a row of the image to the result, as it is: patch `index`, or CLS's own with that flag. */
void wn_prune_put(struct wn_prune_ctx *c, uint32_t index, uint8_t flags);
/* Appends the sum of the terms since the row before, divided by div. */
void wn_prune_add_term(struct wn_prune_ctx *c, uint32_t row, float weight);
void wn_prune_put_sum(struct wn_prune_ctx *c, uint32_t index, uint8_t flags, float div);
/* The rows i with kept[i] != 0, ascending, unchanged. */
void wn_prune_put_kept(struct wn_prune_ctx *c, const uint8_t *kept);
/* Sets kept[i] of the k first by score among the rows with kept[i] == 0. */
WN_NODISCARD wn_status wn_prune_keep_top(struct wn_prune_ctx *c, const float *score, uint32_t k,
                                         uint8_t *kept);
/* Scores for the heat map, if they are wanted. */
void wn_prune_put_scores(struct wn_prune_ctx *c, const float *scores);

/* ---- ranking (rank.c): the larger score first, then the lower index; NaN last ---- */

/* A number that is larger for what comes first; no two indices have the same. */
uint64_t wn_prune_key(float score, uint32_t index);
static inline uint32_t wn_prune_key_index(uint64_t key) { return ~(uint32_t)key; }

/* The k first of n scores, in order; those with skip[i] != 0 (NULL: none) do not take part.
 * Returns how many there were, at most k. scratch [n]. */
uint32_t wn_prune_top(const float *score, const uint8_t *skip, uint32_t n, uint32_t k,
                      uint32_t *out, uint64_t *scratch);

/* The k largest keys of n, largest first, moved to the front: O(n log k). */
void wn_prune_top_keys(uint64_t *keys, uint32_t n, uint32_t k);

/* The q-quantile of v [n] with linear interpolation; order [n]: all indices, as wn_prune_top gives them. */
double wn_prune_quantile(const float *v, const uint32_t *order, uint32_t n, double q);

/* ---- products of rows, wherever they are (rows.c) ---- */

/* d->out is host memory. */
WN_NODISCARD wn_status wn_prune_dots(struct wn_prune_ctx *c, const struct wn_row_dots *d);

/* inv[i] = 1 / max(length of row i, 1e-12). */
WN_NODISCARD wn_status wn_prune_inverse_lengths(struct wn_prune_ctx *c, struct wn_row_list rows, float *inv);

/* Cosines of all pairs of rows: out [n, n], symmetric; inv [n] is filled on the way. */
WN_NODISCARD wn_status wn_prune_cosines(struct wn_prune_ctx *c, struct wn_row_list rows, float *inv, float *out);

/* Every `group` columns of each row as a row, and *out their mean: [m.rows, m.cols / group]. m has no gaps. */
WN_NODISCARD wn_status wn_prune_mean_columns(struct wn_prune_ctx *c, struct wn_mat m, uint32_t group,
                                             struct wn_mat *out);

/* ---- loops over numbers (dots.c) ---- */

/* The largest of v[i] + bias[i] (NULL: of v[i]); NaN does not count; -INFINITY of none. */
float wn_prune_most(const float *v, const float *bias, uint32_t n);

#endif
