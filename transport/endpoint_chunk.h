/* transport/endpoint_chunk.h - cuts long frames and puts them together (base/chunk.h). Internal to transport/.
 * Owns:    nothing that outlives a call but pieces on their way, which keep the whole alive.
 * Threads: the socket's. */
#ifndef WN_TRANSPORT_ENDPOINT_CHUNK_H
#define WN_TRANSPORT_ENDPOINT_CHUNK_H

#include <stdbool.h>
#include <zmq.h>

#include "base/status.h"

/* As zmq_msg_send, of a frame after the first, with any number of bytes. The end of the message goes out even when -1
 * is returned: what a receiver then has is too short. */
int wn_chunk_send(void *socket, zmq_msg_t *frame, int flags);

/* *frame is a piece of WN_CHUNK_BYTES: takes those that follow, which have arrived with it, and makes it the whole.
 * *more: whether the message goes on behind what was taken. WN_EPROTO: longer than max, or cut off; *frame stays. */
WN_NODISCARD wn_status wn_chunk_join(void *socket, zmq_msg_t *frame, size_t max, bool *more);

#endif
