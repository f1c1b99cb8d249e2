/* base/chunk.h - how a long payload travels in a ZeroMQ message.
 *
 * A frame after the first that has WN_CHUNK_BYTES or more goes as pieces of exactly that many bytes and a last one that
 * is shorter, and may be empty: so a piece of that size is followed by the next, and any other size is an end. No frame
 * on the wire is longer. That is what a connection may announce before it has proved who it is, when ZeroMQ knows of
 * one limit for all frames: the memory that a stranger can take does not depend on how large pictures may be. */
#ifndef WN_BASE_CHUNK_H
#define WN_BASE_CHUNK_H

#include <stddef.h>

#define WN_CHUNK_BYTES ((size_t)1 << 20)

static inline size_t wn_chunks_of(size_t bytes)
{
    return bytes / WN_CHUNK_BYTES + 1;
}

#endif
