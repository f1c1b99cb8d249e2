/* shard/projector.h - LLaVA's two-layer projector, whole, on one backend: from the tower's width to the decoder's. For
 * vision workers whose method works on projected rows; otherwise stage 0 projects what arrives (shard/decoder.h), with
 * the same bits.
 *
 * Owns:    its weights and scratch, from open to close. Backend borrowed until close, weights until open returns.
 * Threads: the backend's thread.
 * Fails:   open: WN_ENOENT, WN_EFORMAT, WN_ENOMEM. Run: WN_ELIMIT (more rows than rows_max), what the backend does. */
#ifndef WN_SHARD_PROJECTOR_H
#define WN_SHARD_PROJECTOR_H

#include "shard/backend.h"
#include "shard/model.h"
#include "shard/weights.h"

struct wn_projector;

/* dtype: of weights and rows. rows_max bounds one run. *out is owned by the caller. */
WN_NODISCARD wn_status wn_projector_open(struct wn_projector **out, struct wn_backend *be, const struct wn_model *model,
                                         const struct wn_weights *weights, wn_dtype dtype, uint32_t rows_max,
                                         struct wn_err *err);
void wn_projector_close(struct wn_projector *p); /* NULL is fine */

/* in [rows, vision width] to out [rows, decoder width], backend memory of dtype. */
WN_NODISCARD wn_status wn_projector_run(struct wn_projector *p, struct wn_mat in, struct wn_mat out,
                                        struct wn_err *err);

#endif
