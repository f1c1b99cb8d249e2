/* daemon/blobs.h - files named by the SHA-256 of what is in them: DIR/ab/cdef... A file that has its name is whole and
 * on disk: it is written under another name, synced, renamed, and its folder synced.
 * Owns:    the folder's descriptor, from open to close. Who needs which file is the caller's book-keeping.
 * Threads: one at a time.
 * Fails:   WN_EIO with the path and the system's reason; WN_EFORMAT: a file is not what its name says. */
#ifndef WN_DAEMON_BLOBS_H
#define WN_DAEMON_BLOBS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

#define WN_BLOB_HASH 32

struct wn_blobs;

/* Makes the folder where it is not there. *out is owned by the caller. */
WN_NODISCARD wn_status wn_blobs_open(struct wn_blobs **out, const char *dir, struct wn_err *err);
void wn_blobs_close(struct wn_blobs *b); /* NULL is fine */

/* Stores the bytes if they are not there yet. */
WN_NODISCARD wn_status wn_blobs_put(struct wn_blobs *b, const void *data, size_t bytes, uint8_t hash[WN_BLOB_HASH],
                                    struct wn_err *err);
/* Reads a file of exactly `bytes` bytes and checks them against the hash. */
WN_NODISCARD wn_status wn_blobs_get(struct wn_blobs *b, const uint8_t hash[WN_BLOB_HASH], void *into, size_t bytes,
                                    struct wn_err *err);
void wn_blobs_drop(struct wn_blobs *b, const uint8_t hash[WN_BLOB_HASH]); /* fine if it is not there */

/* Removes unfinished files, and those that `needed` does not want. Returns how many. */
unsigned wn_blobs_sweep(struct wn_blobs *b, bool (*needed)(void *arg, const uint8_t hash[WN_BLOB_HASH]), void *arg);

#endif
