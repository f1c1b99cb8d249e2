/* pruning/prune.h - which visual tokens of an image are kept.
 *
 * A method is a pure function: rows and what the vision tower noticed about them in, indices of the kept rows out. One
 * file beside this one and one line in the table of prune.c make a new method.
 * Owns:    nothing; all memory is the caller's.
 * Threads: any.
 * Fails:   WN_ENOENT (no such method: the known ones are named), WN_EINVAL (numbers that make no sense). */
#ifndef WN_PRUNING_PRUNE_H
#define WN_PRUNING_PRUNE_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* How many to keep. keep goes before rate; neither: all. */
struct wn_prune_budget {
    uint32_t keep; /* rows; 0: by rate */
    float rate;    /* share removed, 0 .. 0.99 */
    uint32_t cap;  /* upper bound for methods that choose their own count; 0: none */
    uint64_t seed; /* for methods that draw */
};

struct wn_prune_in {
    uint32_t rows, width;
    const float *features; /* [rows, width] */
    struct wn_prune_budget budget;
};

struct wn_prune_out {
    uint32_t *index; /* [room in.rows]: original row of each kept one, ascending */
    uint32_t rows;   /* kept */
};

struct wn_prune_method {
    const char *name;
    const char *help;
    wn_status (*run)(const struct wn_prune_in *in, struct wn_prune_out *out, struct wn_err *err);
};

/* The methods there are; NULL-terminated. */
extern const struct wn_prune_method *const wn_prune_methods[];

/* NULL or "" means "none". NULL comes back, with *err filled, if there is no such method. */
const struct wn_prune_method *wn_prune_find(const char *name, struct wn_err *err);

/* Rows that the budget leaves of `rows`: at least 1 of at least 1, at most all. */
uint32_t wn_prune_count(const struct wn_prune_budget *budget, uint32_t rows);

extern const struct wn_prune_method wn_prune_none; /* none.c */

#endif
