/* transport/endpoint_watch.h - what ZeroMQ does not bound of the connections that others make: how many there are, and
 * how long a message may become that never ends. Inside of an endpoint.
 *
 * ZeroMQ's monitor names a connection by its descriptor; one that goes too far is shut down, which ZeroMQ takes for its
 * end. Should the descriptor have been closed and opened again meanwhile, somebody has to connect once more: no harm.
 *
 * Connections: a part of the files that the process may open is kept for others, above all for workers' connections:
 * libzmq ends the process when it finds no descriptor for one over ipc://.
 * Messages: the kernel counts the bytes that a connection has brought, and each whole message says that all before was
 * one. So what is on its way is known, although ZeroMQ shows nothing of it.
 * Owns:    its table; the descriptors are ZeroMQ's. Threads: the endpoint's. */
#ifndef WN_TRANSPORT_ENDPOINT_WATCH_H
#define WN_TRANSPORT_ENDPOINT_WATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct wn_watch; /* opaque */

/* message_max: bytes of the largest message of a peer. */
WN_NODISCARD wn_status wn_watch_create(struct wn_watch **out, size_t message_max, struct wn_err *err);
void wn_watch_destroy(struct wn_watch *w); /* NULL is fine, here and below: nothing is watched */

/* A connection was taken, or has ended. false: it was one too many, and is shut down. */
bool wn_watch_taken(struct wn_watch *w, int fd);
void wn_watch_ended(struct wn_watch *w, int fd);

/* A whole message of this connection was received. */
void wn_watch_whole(struct wn_watch *w, int fd);

/* No whole message waits: shuts down whoever is in the middle of one that is too long. From time to time only, however
 * often it is called. Returns how many it were. */
unsigned wn_watch_look(struct wn_watch *w, int64_t now_us);

#endif
