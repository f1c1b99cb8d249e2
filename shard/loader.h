/* shard/loader.h - tensors of a checkpoint, or the parts of them that a plan gives to a rank, into backend memory.
 *
 * Matrices become weights of the plan's type or int8, ready for matmul; the embedding becomes a table of rows; vectors
 * (norms, biases) become float32. What is wanted is noted first, then fetched together: threads of shard/reader.h read
 * ahead, only the rows and columns that are asked for, into memory that the backend has pinned if it can, while blocks
 * of rows that are there are converted and copied. Host backends take what is in the page cache from the mapped files.
 *
 * Owns:    what it loaded, from open to close. Borrows the backend until close, the checkpoint until a fetch returns.
 * Threads: the backend's thread.
 * Fails:   WN_ENOENT, WN_EFORMAT, WN_EUNSUPP (shard/weights.h; a wrong shape prints both, and its file), WN_ENOMEM,
 *          WN_EIO (shard/reader.h). */
#ifndef WN_SHARD_LOADER_H
#define WN_SHARD_LOADER_H

#include "shard/backend.h"
#include "shard/plan.h"
#include "shard/weights.h"

struct wn_loader; /* opaque: a growing list of loaded tensors */

typedef enum wn_load_kind { WN_LOAD_MATRIX, WN_LOAD_TABLE, WN_LOAD_VECTOR } wn_load_kind;

/* What is wanted of tensor `name`, whose whole shape must be [rows_all, cols_all]; a vector has cols_all = 1. Further
 * dimensions count as columns (a convolution's kernel). */
struct wn_load {
    const char *name;
    uint32_t rows_all, cols_all;
    struct wn_range rows, cols; /* n = 0: all of them */
    wn_load_kind kind;
    uint32_t int8_slices; /* > 0: a matrix as int8, see struct wn_slice */
};

/* dtype: of matrices and tables. be NULL: to want a tensor only checks that it is there, and as it should be. *out is
 * owned by the caller. */
WN_NODISCARD wn_status wn_loader_open(struct wn_loader **out, struct wn_backend *be, wn_dtype dtype,
                                      struct wn_err *err);
void wn_loader_close(struct wn_loader *l); /* frees all that it loaded; NULL is fine */

/* Notes one tensor for the next fetch. */
WN_NODISCARD wn_status wn_loader_want(struct wn_loader *l, const struct wn_weights *w, const struct wn_load *want,
                                      struct wn_err *err);
/* Loads what is wanted. The results are read with the functions below. */
WN_NODISCARD wn_status wn_loader_fetch(struct wn_loader *l, const struct wn_weights *w, struct wn_err *err);

/* Loads every slice of `rank`. A head that is tied to the embedding is loaded as the matrix "lm_head.weight" from the
 * embedding's rows: on stage 0 beside the table. */
WN_NODISCARD wn_status wn_loader_plan(struct wn_loader *l, const struct wn_weights *w,
                                      const struct wn_plan *plan, uint32_t rank,
                                      struct wn_err *err);

/* Does the checkpoint have all that the ranks of the plan load? Fails as loading would; reads headers only. */
WN_NODISCARD wn_status wn_loader_check(const struct wn_weights *w, const struct wn_plan *plan, struct wn_err *err);

/* What was loaded under `name` (whole, as in struct wn_load), until close; NULL or an empty matrix if it was not. */
const struct wn_weight *wn_loader_matrix(const struct wn_loader *l, const char *name);
const float *wn_loader_vector(const struct wn_loader *l, const char *name);
struct wn_mat wn_loader_table(const struct wn_loader *l, const char *name);

uint64_t wn_loader_bytes(const struct wn_loader *l); /* loaded so far, in the types kept */

/* Fetches so far: bytes of files that were wanted, and the time that it took to have them in backend memory. */
struct wn_load_rate {
    uint64_t bytes, us;
};
struct wn_load_rate wn_loader_rate(const struct wn_loader *l);

#endif
