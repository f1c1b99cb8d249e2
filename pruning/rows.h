/* pruning/rows.h - what methods do with the values of rows: products, by which they choose, and weighted sums, which
 * kept rows are. Features and keys stay where the tower made them: in host memory this folder does both; in a device's
 * memory a worker does (shard/row_worker.h), with the same bits, so that only products and kept rows leave it.
 *
 * Bits. A product is made in eight partial sums, column c in sum c % 8, of float32 without fused multiply-add, that are
 * added in pairs. A sum is made in float64, one term after the other, where products of two float32 are exact; it is
 * divided and rounded once to float32, and from there to the type of the row.
 *
 * Owns:    nothing. Lists, terms and divisors are host memory, values are in the worker's (no worker: the host's).
 * Threads: those of the worker; without one any.
 * Fails:   dots: WN_ENOMEM, and what a device does. Sums on the host do not. */
#ifndef WN_PRUNING_ROWS_H
#define WN_PRUNING_ROWS_H

#include <stdbool.h>

#include "base/mat.h"
#include "base/status.h"

/* Rows of a matrix of float32 or bfloat16. */
struct wn_row_list {
    struct wn_mat m;
    const uint32_t *at; /* [n] which; NULL: 0 .. n-1 */
    uint32_t n;
};

typedef enum wn_row_pairs {
    WN_ROWS_ALL,   /* out[i][j] = a[i] . b[j] */
    WN_ROWS_UPPER, /* a is b: only j >= i is wanted, what else is written is not said */
    WN_ROWS_SELF   /* out[i] = a[i] . a[i]; b is not looked at */
} wn_row_pairs;

struct wn_row_dots {
    float *out;              /* [a.n, b.n], or [a.n] */
    struct wn_row_list a, b; /* as wide as each other */
    wn_row_pairs pairs;
};

struct wn_row_term {
    uint32_t row; /* in.rows: the row `last` */
    float weight;
};

/* out[i] = sum of terms[first[i] .. first[i + 1]) / div[i]; no terms: 0. */
struct wn_row_sums {
    struct wn_mat out, in;
    const void *last; /* [in.cols] of in's type, a row elsewhere; NULL: none */
    const uint32_t *first;
    const struct wn_row_term *terms;
    const float *div;
};

/* Both are complete at return. dots: out is host memory. sums: s->out says type and shape, and *out where it is, in the
 * worker's memory, until its next sums. */
struct wn_row_worker {
    wn_status (*dots)(struct wn_row_worker *w, const struct wn_row_dots *d, struct wn_err *err);
    wn_status (*sums)(struct wn_row_worker *w, const struct wn_row_sums *s, struct wn_mat *out, struct wn_err *err);
};

WN_NODISCARD wn_status wn_row_dots(const struct wn_row_dots *d, struct wn_err *err);
void wn_row_sums(const struct wn_row_sums *s);

#endif
