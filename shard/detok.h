/* shard/detok.h - token ids back to text, in a stream that never holds half a character.
 *
 * The pieces, joined, are what the `tokenizers` library decodes from the same ids at once: special tokens vanish,
 * Llama's first space goes, and bytes that make no UTF-8 become U+FFFD. With byte-fallback tokenizers that library
 * decides over a whole run of byte tokens, so a run is held back until it ends.
 *
 * Owns:    its own buffers, from init to fini; borrows the tokenizer.   Threads: one a stream.
 * Fails:   WN_ENOMEM; WN_ELIMIT for a run of bytes without end. Ids that the tokenizer lacks decode to nothing. */
#ifndef WN_SHARD_DETOK_H
#define WN_SHARD_DETOK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

struct wn_tokenizer; /* shard/tokenizer.h */

struct wn_detok { /* private */
    const struct wn_tokenizer *tok;
    char *out, *held;
    size_t out_n, out_cap, held_n, held_cap;
    uint32_t strip; /* leading characters that may still have to go */
    bool keep_special, begun;
};

/* keep_special: special tokens come out as they are spelt. Allocates nothing yet. */
void wn_detok_init(struct wn_detok *d, const struct wn_tokenizer *tok, bool keep_special);
void wn_detok_fini(struct wn_detok *d);

/* Takes n more ids. *text is what can be told so far, UTF-8, perhaps of no bytes; borrowed until the next call. */
WN_NODISCARD wn_status wn_detok_feed(struct wn_detok *d, const uint32_t *ids, size_t n, const char **text,
                                     size_t *bytes_n, struct wn_err *err);

/* Ends the stream: what is still held comes out. Then the stream may begin anew. */
WN_NODISCARD wn_status wn_detok_flush(struct wn_detok *d, const char **text, size_t *bytes_n, struct wn_err *err);

/* All at once. *text is terminated (it may also hold NULs), owned by the caller, to be freed with free(). */
WN_NODISCARD wn_status wn_tokenizer_decode(const struct wn_tokenizer *tok, const uint32_t *ids, size_t n,
                                           bool keep_special, char **text, size_t *bytes_n, struct wn_err *err);

#endif
