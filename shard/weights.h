/* shard/weights.h - the tensors of a checkpoint: safetensors files mapped read-only.
 *
 * Owns:    the mappings, from open to close; tensors are views into them, borrowed until close.
 * Threads: immutable after open; any thread may look up and read.
 * Fails:   WN_ENOENT (no such file or tensor), WN_EFORMAT (a header that lies: each offset,
 *          shape and type is checked against the file's size before anything is read), WN_EIO. */
#ifndef WN_SHARD_WEIGHTS_H
#define WN_SHARD_WEIGHTS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/sha256.h"
#include "base/status.h"
#include "shard/reader.h"

#define WN_DIMS_MAX 4 /* of a tensor that can be read; others are kept out */

struct wn_weights; /* opaque */

struct wn_tensor {
    const void *data; /* little-endian, row-major; at least as aligned as its type */
    wn_dtype dtype;
    uint32_t dims_n;
    uint64_t dims[WN_DIMS_MAX];
    uint64_t bytes;
    const char *file; /* that has it, in the checkpoint's folder */
    uint32_t file_i;  /* its number, for wn_weights_file */
    uint64_t at;      /* of its data in that file */
};

/* Opens DIR/model.safetensors, or every shard that DIR/model.safetensors.index.json names. A
 * missing shard, or a tensor that the index places in a shard which lacks it, is an error that
 * names both. Nothing is read but the headers. */
WN_NODISCARD wn_status wn_weights_open(struct wn_weights **out, const char *dir,
                                       struct wn_err *err);
void wn_weights_close(struct wn_weights *w); /* NULL is fine */

/* Are there files to open in DIR? */
bool wn_weights_exist(const char *dir);

/* Looks `name` up; WN_ENOENT names the tensor. LLaVA checkpoints come with two sets of names:
 * `name` is of the older one ("language_model.model.layers.0...",
 * "language_model.lm_head.weight", "multi_modal_projector...", "vision_tower..."), which
 * Transformers still writes, and where it is missing the newer one is tried
 * ("model.language_model.layers.0...", "lm_head.weight", "model.multi_modal_projector...",
 * "model.vision_tower..."). WN_EUNSUPP: the tensor is there, but its type or number of
 * dimensions cannot be read, or its data is not aligned to its type. */
WN_NODISCARD wn_status wn_weights_find(const struct wn_weights *w, const char *name,
                                       struct wn_tensor *out, struct wn_err *err);

/* Adds what tells these weights from others to a hash: each tensor's name, type and shape, and bytes of its middle; to
 * read them all would take as long as to load them. */
void wn_weights_digest(const struct wn_weights *w, struct wn_sha256 *s);

/* File number i as a reader wants it, borrowed until close; false: there are no more. */
bool wn_weights_file(const struct wn_weights *w, uint32_t i, struct wn_reader_file *out);

/* Its data has been read, and this process need not keep it in memory; it is still there to be read again. */
void wn_weights_release(const struct wn_tensor *t);

/* Checks one safetensors header (the JSON after the 8-byte length) against a data area of
 * data_bytes; for fuzzing and for wn_weights_open. The tensors must cover the data area without
 * gaps or overlaps. Calls `each` (NULL is fine) once a tensor, with data NULL; `type` is the
 * name in the file ("I64"), and t->dtype is meaningful only for F32, BF16 and F16. offset is
 * from the start of the data area; file is NULL. dims_n may exceed WN_DIMS_MAX; then only the
 * first dims are there. */
typedef wn_status wn_tensor_fn(void *ctx, const char *name, const char *type,
                               const struct wn_tensor *t, uint64_t offset, struct wn_err *err);
WN_NODISCARD wn_status wn_safetensors_parse(const char *json, size_t json_len, uint64_t data_bytes,
                                            wn_tensor_fn *each, void *ctx, struct wn_err *err);

#endif
