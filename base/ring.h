/* base/ring.h - bounded ring of pointers between two threads, with an eventfd that wakes the reader.
 *
 * Owns:    its slots and its eventfd; what the pointers point at is moved: to the ring on put, to the reader on take.
 * Threads: one thread puts, one takes.
 * Fails:   put returns false when the ring is full: the writer answers BUSY or holds back, it never grows. */
#ifndef WN_BASE_RING_H
#define WN_BASE_RING_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

struct wn_ring; /* opaque */

/* Creates a ring for `capacity` pointers (rounded up to a power of two). *out is owned by the caller. */
WN_NODISCARD wn_status wn_ring_create(struct wn_ring **out, uint32_t capacity, struct wn_err *err);

/* `drop` (NULL is fine) is called for each item that is still inside. NULL ring is fine. */
void wn_ring_destroy(struct wn_ring *ring, void (*drop)(void *item));

/* Moves item into the ring and wakes the reader; false (item stays yours) when it is full. */
WN_NODISCARD bool wn_ring_put(struct wn_ring *ring, void *item);

/* Put in two steps, so that several items cost one wake-up: moves an item, and wakes the reader for all that were. */
WN_NODISCARD bool wn_ring_push(struct wn_ring *ring, void *item);
void wn_ring_wake(struct wn_ring *ring);

/* The oldest item, now yours, or NULL. */
void *wn_ring_take(struct wn_ring *ring);

/* Readable (POLLIN) when something may be inside. */
int wn_ring_fd(const struct wn_ring *ring);

/* Reader: clears the wake-up. Call before taking until NULL; else a put in between is missed. */
void wn_ring_clear_wake(struct wn_ring *ring);

#endif
