/* base/burst.h - how several small messages to one peer travel as one message of ZeroMQ.
 *
 * An empty frame, then one with the messages one after the other, each behind its length: 32 bits, little-endian. The
 * threads on the way wake once for all of them, and copy 70 bytes a token instead of queueing a message each. A burst
 * is bounded, so that a queue of so many messages has a bound in bytes too; longer messages go by themselves. */
#ifndef WN_BASE_BURST_H
#define WN_BASE_BURST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define WN_BURST_BYTES ((size_t)8192)

/* Being written, or read from `at` on. */
struct wn_burst {
    size_t bytes, at;
    uint8_t data[WN_BURST_BYTES];
};

static inline bool wn_burst_fits(const struct wn_burst *b, size_t n)
{
    return n <= WN_BURST_BYTES - 4 && b->bytes <= WN_BURST_BYTES - 4 - n;
}

static inline void wn_burst_put(struct wn_burst *b, const void *msg, size_t n) /* it fits */
{
    for (int i = 0; i < 4; i++) b->data[b->bytes++] = (uint8_t)(n >> 8 * i);
    if (n) memcpy(b->data + b->bytes, msg, n);
    b->bytes += n;
}

/* The next message, *n bytes in the burst. false: there is none. NULL (and *n 0): what follows is no message, and was
 * dropped. */
static inline bool wn_burst_take(struct wn_burst *b, const uint8_t **msg, size_t *n)
{
    const size_t left = b->bytes - b->at;

    if (left == 0) return false;
    *n = 0;
    for (int i = 0; left >= 4 && i < 4; i++) *n |= (size_t)b->data[b->at + (size_t)i] << 8 * i;
    if (left < 4 || *n > left - 4) {
        *msg = NULL;
        *n = 0;
        b->at = b->bytes;
        return true;
    }
    *msg = b->data + b->at + 4;
    b->at += 4 + *n;
    return true;
}

/* Reads from a frame. false: it is too long. */
static inline bool wn_burst_open(struct wn_burst *b, const void *data, size_t bytes)
{
    b->bytes = b->at = 0;
    if (bytes > WN_BURST_BYTES) return false;
    if (bytes) memcpy(b->data, data, bytes);
    b->bytes = bytes;
    return true;
}

#endif
