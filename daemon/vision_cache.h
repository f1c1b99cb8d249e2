/* daemon/vision_cache.h - whole features and taps of pictures that were encoded lately, so that the same picture with
 * another method or budget is selected again, not encoded again.
 *
 * What is as wide as the features stays in backend memory, a device's too: there the next selection's products are
 * made, and from there only kept rows go. Attention is the host's. Copies are queued behind the encode; nobody waits.
 *
 * The key is a hash of the preprocessed pixels: what the tower sees. One cache serves one tower, so checkpoint and
 * preprocessing need not be part of it. Which pixels a file has is remembered too: the same file need not be decoded
 * again. An entry has the taps that its encode made; a request that needs more misses, and its encode, which makes the
 * entry's taps as well, replaces it: so methods that take turns on a picture do not encode it for ever. The entry used
 * longest ago goes when the bytes are used up.
 *
 * Owns:    its entries, from create to destroy; the backend is borrowed as long. What get returns is borrowed until the
 *          next put.
 * Threads: the backend's. */
#ifndef WN_DAEMON_VISION_CACHE_H
#define WN_DAEMON_VISION_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pruning/prune.h"
#include "shard/backend.h"

#define WN_VISION_KEY_BYTES 32

struct wn_vision_cache;

/* One encoded picture: features [rows, width] of dtype, and the taps that were made with them. Features, keys, queries
 * and CLS's row are in backend memory. */
struct wn_vision_view {
    const void *features;
    uint32_t rows, width, tokens, heads; /* tokens: patches + CLS, what taps run over */
    wn_dtype dtype;
    struct wn_prune_taps taps;
};

/* bytes_max 0: nothing is ever kept. *out is owned by the caller. */
WN_NODISCARD wn_status wn_vision_cache_create(struct wn_vision_cache **out, struct wn_backend *be, size_t bytes_max,
                                              struct wn_err *err);
void wn_vision_cache_destroy(struct wn_vision_cache *c); /* NULL is fine */

/* SHA-256 of the pixels (host floats). */
void wn_vision_cache_key(const float *pixels, size_t n, uint8_t key[WN_VISION_KEY_BYTES]);

/* Remembers the pixels' key of a file, found by a hash of its bytes. known: true and the key, or it was forgotten. */
void wn_vision_cache_learn(struct wn_vision_cache *c, const uint8_t file[WN_VISION_KEY_BYTES],
                           const uint8_t key[WN_VISION_KEY_BYTES]);
bool wn_vision_cache_known(const struct wn_vision_cache *c, const uint8_t file[WN_VISION_KEY_BYTES],
                           uint8_t key[WN_VISION_KEY_BYTES]);

/* True and *view if the picture is here with at least the taps in *wants. Else the taps that it has here are added to
 * *wants. */
bool wn_vision_cache_get(struct wn_vision_cache *c, const uint8_t key[WN_VISION_KEY_BYTES],
                         struct wn_prune_wants *wants, struct wn_vision_view *view);

/* Keeps a copy of the view. A picture that is too large, or no memory, is no error: it is not kept. */
void wn_vision_cache_put(struct wn_vision_cache *c, const uint8_t key[WN_VISION_KEY_BYTES],
                         const struct wn_vision_view *view);

struct wn_vision_cache_stats {
    uint64_t queries, hits, evicted;
    size_t bytes, entries;
};
void wn_vision_cache_stats(const struct wn_vision_cache *c, struct wn_vision_cache_stats *stats);

#endif
