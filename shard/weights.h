/* shard/weights.h - the tensors of a checkpoint: safetensors files mapped read-only.
 *
 * Owns:    the mappings, from open to close; tensors are views into them, borrowed until close.
 * Threads: immutable after open; any thread may look up and read.
 * Fails:   WN_ENOENT (no such file or tensor), WN_EFORMAT (a header that lies: each offset, shape and type is checked against
 *          the file's size before anything is read), WN_EIO. */
#ifndef WN_SHARD_WEIGHTS_H
#define WN_SHARD_WEIGHTS_H

#include <stdint.h>

#include "base/dtype.h"
#include "base/status.h"

#define WN_DIMS_MAX 4

struct wn_weights; /* opaque */

struct wn_tensor {
    const void *data; /* little-endian, row-major; at least as aligned as its type */
    wn_dtype dtype;
    uint32_t dims_n;
    uint64_t dims[WN_DIMS_MAX];
    uint64_t bytes;
};

/* Opens DIR/model.safetensors, or every shard that DIR/model.safetensors.index.json names. A missing shard, or a tensor that
 * the index places in a shard which lacks it, is an error that names both. Nothing is read but the headers. */
WN_NODISCARD wn_status wn_weights_open(struct wn_weights **out, const char *dir, struct wn_err *err);
void wn_weights_close(struct wn_weights *w); /* NULL is fine */

/* Looks `name` up; WN_ENOENT names the tensor. */
WN_NODISCARD wn_status wn_weights_find(const struct wn_weights *w, const char *name, struct wn_tensor *out,
                                       struct wn_err *err);

/* As find, and the shape must be [d0] (d1 = 0) or [d0, d1]; a wrong shape is WN_EFORMAT that prints both. */
WN_NODISCARD wn_status wn_weights_find_shape(const struct wn_weights *w, const char *name, uint64_t d0, uint64_t d1,
                                             struct wn_tensor *out, struct wn_err *err);

uint64_t wn_weights_bytes(const struct wn_weights *w);    /* all tensors together */
uint32_t wn_weights_tensors_n(const struct wn_weights *w);

/* Checks one safetensors header (the JSON after the 8-byte length) against a data area of data_bytes; for fuzzing and for
 * wn_weights_open. Calls `each` (NULL is fine) once a tensor; offset is from the start of the data area. */
typedef wn_status wn_tensor_fn(void *ctx, const char *name, const struct wn_tensor *t, uint64_t offset, struct wn_err *err);
WN_NODISCARD wn_status wn_safetensors_parse(const char *json, size_t json_len, uint64_t data_bytes, wn_tensor_fn *each,
                                            void *ctx, struct wn_err *err);

#endif
