/* shard/row_worker.h - a device that does the work on rows that pruning asks for (pruning/rows.h), where the tower has
 * left them: products come to the host, where the choice is made, and sums stay.
 *
 * Owns:    device memory for results; it only grows. The backend is borrowed until close.
 * Threads: the backend's thread.
 * Fails:   open: WN_ENOMEM. Work: WN_ENOMEM, and what a device does. */
#ifndef WN_SHARD_ROW_WORKER_H
#define WN_SHARD_ROW_WORKER_H

#include "pruning/rows.h"
#include "shard/backend.h"

/* *out is owned by the caller; NULL with WN_OK where the backend's memory is the host's, and needs none. */
WN_NODISCARD wn_status wn_row_worker_open(struct wn_row_worker **out, struct wn_backend *be, struct wn_err *err);
void wn_row_worker_close(struct wn_row_worker *w); /* NULL is fine */

#endif
