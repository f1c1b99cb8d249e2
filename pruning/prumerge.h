/* pruning/prumerge.h - the steps of PruMerge, apart, for its two methods and their tests.
 *
 * n patches, tokens = n + 1 with CLS first. Owns nothing; any thread. */
#ifndef WN_PRUNING_PRUMERGE_H
#define WN_PRUNING_PRUMERGE_H

#include "pruning/impl.h"

/* a [tokens]: softmax over all tokens of (q . k) / sqrt(width), all heads as one. q [1, width],
 * keys [tokens, width]. */
WN_NODISCARD wn_status wn_prumerge_scores(struct wn_prune_ctx *c, struct wn_mat q, struct wn_mat keys, float *a);

/* The upper fence Q3 + 1.5 (Q3 - Q1); how many scores lie strictly above it. order [n]: all
 * indices, the highest score first. */
double wn_prumerge_fence(const float *a, const uint32_t *order, uint32_t n);
uint32_t wn_prumerge_outliers(const float *a, const uint32_t *order, uint32_t n);

struct wn_prumerge {
    const float *a;        /* [n]: without CLS */
    struct wn_mat keys;    /* [n, width]: without CLS, the worker's memory */
    const uint32_t *kept;  /* [kept_n] in the order in which they leave; no duplicates */
    uint32_t kept_n;
    uint32_t neighbours;
    wn_prune_setting setting;
};

/* Puts the merged rows of c->features, and with FAITHFUL the extra row, into c->out. */
WN_NODISCARD wn_status wn_prumerge_merge(struct wn_prune_ctx *c, const struct wn_prumerge *m);

#endif
