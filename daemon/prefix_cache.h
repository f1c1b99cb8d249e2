/* daemon/prefix_cache.h - KV pages that more than one job may read: full pages of prompt rows, found again by what they
 * hold. The leader's bookkeeping, on top of the page pool; the memory belongs to the stages.
 *
 * A page's key is a 256-bit hash of its rows and of the key of the page before it, so equal keys mean equal rows from
 * the prompt's first row on. A row is a token id, or a row of an image's features with a hash of those features and of
 * the pruning that is in force, and its rotary position: another picture, method, budget or position policy is another
 * row, even where the same rows were kept.
 * Only full pages are shared, and a job computes at least its last prompt row itself, so nobody writes to a shared
 * page. Of a page that is not full, the first rows may have a key too: whoever wants to go on from there writes into a
 * copy of the page. A page can have both keys, for its user fills it.
 *
 * A page is used by the jobs that have matched or made it; when nobody uses it, it stays until its memory is wanted,
 * the page used longest ago first.
 *
 * Owns:    the keys, from create to destroy; the pool is borrowed until destroy. Pages are lent to jobs.
 * Threads: engine only.
 * Fails:   take: WN_EBUSY when there are not as many pages, free and unused together; then none is taken. */
#ifndef WN_DAEMON_PREFIX_CACHE_H
#define WN_DAEMON_PREFIX_CACHE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "shard/kvpool.h"

#define WN_PREFIX_KEY_BYTES 32
#define WN_PREFIX_ROWS_MAX  1024 /* --block-size */

struct wn_prefix_cache;

struct wn_prefix_key {
    uint8_t bytes[WN_PREFIX_KEY_BYTES];
};

/* One prompt row, as far as its meaning goes. */
struct wn_prefix_row {
    uint32_t id;           /* token, or row of the features */
    const uint8_t *image;  /* hash of the features and their pruning; NULL: a token */
    uint32_t position;     /* rotary: the keys in the page are turned by it */
};

WN_NODISCARD wn_status wn_prefix_cache_create(struct wn_prefix_cache **out, struct wn_kvpool *pool, struct wn_err *err);
void wn_prefix_cache_destroy(struct wn_prefix_cache *c); /* NULL is fine; every page must be released */

/* The key of a page, or of its first rows, from these rows and the key of the page before (NULL: it is the first). */
void wn_prefix_key(const struct wn_prefix_key *before, const struct wn_prefix_row *rows, uint32_t rows_n,
                   struct wn_prefix_key *out);

/* Finds the longest run of keys[0..n) that is here; writes its pages, which the caller now uses. Returns how many. */
uint32_t wn_prefix_match(struct wn_prefix_cache *c, const struct wn_prefix_key *keys, uint32_t n, uint32_t *pages);

/* Finds a page that begins with what `key` was made of. It is not lent, and the next take may take it away: a copy has
 * to be made before anybody can write to a page that is taken from now on. */
bool wn_prefix_find_head(struct wn_prefix_cache *c, const struct wn_prefix_key *key, uint32_t *page);

/* n fresh pages; unused ones of others are forgotten if the pool has too few. */
WN_NODISCARD wn_status wn_prefix_take(struct wn_prefix_cache *c, uint32_t *pages, uint32_t n);

uint32_t wn_prefix_available(const struct wn_prefix_cache *c); /* how many that could be now */

/* The caller has filled `page`, which it took: from now on it can be matched. Nothing happens if the key is here. */
void wn_prefix_publish(struct wn_prefix_cache *c, uint32_t page, const struct wn_prefix_key *key);
/* As that for a page of which the caller has written the first rows, and will not write them again. */
void wn_prefix_publish_head(struct wn_prefix_cache *c, uint32_t page, const struct wn_prefix_key *key);

/* The caller uses these pages no more, matched and taken ones alike. */
void wn_prefix_release(struct wn_prefix_cache *c, const uint32_t *pages, uint32_t n);

struct wn_prefix_stats {
    uint64_t queries, hits; /* pages asked for and found */
    uint64_t evicted;
    uint32_t cached, used; /* pages with a key; pages that jobs use, each once */
};
void wn_prefix_stats(const struct wn_prefix_cache *c, struct wn_prefix_stats *stats);

#endif
