/* shard/kvpool.h - which pages of KV memory are free: bookkeeping of the leader, which decides for all ranks.
 *
 * Every rank of a replica has the same number of pages, and page p of one rank belongs to the same tokens as page p of
 * any other; the memory itself belongs to the stages (shard/decoder.h). Results do not depend on page numbers.
 *
 * Owns:    the page numbers, from create to destroy; a page is lent from take to give.
 * Threads: engine only.
 * Fails:   WN_ENOMEM at create; WN_EBUSY when fewer pages are free than asked for: then none is taken. Giving back a
 *          page that is not lent is a bug of ours and stops the process. */
#ifndef WN_SHARD_KVPOOL_H
#define WN_SHARD_KVPOOL_H

#include <stdint.h>

#include "base/status.h"

struct wn_kvpool; /* opaque */

/* Creates a pool of pages 0 .. pages-1, all free. *out is owned by the caller; on failure it is untouched. */
WN_NODISCARD wn_status wn_kvpool_create(struct wn_kvpool **out, uint32_t pages, struct wn_err *err);
void wn_kvpool_destroy(struct wn_kvpool *pool); /* NULL is fine; lent pages are forgotten */

/* Lends n pages and writes their numbers to pages[0..n): all or none. */
WN_NODISCARD wn_status wn_kvpool_take(struct wn_kvpool *pool, uint32_t *pages, uint32_t n);
void wn_kvpool_give(struct wn_kvpool *pool, const uint32_t *pages, uint32_t n);

uint32_t wn_kvpool_pages_n(const struct wn_kvpool *pool); /* free and lent */
uint32_t wn_kvpool_free_n(const struct wn_kvpool *pool);

/* Pages that `tokens` tokens need. */
static inline uint32_t wn_kvpool_need(uint32_t tokens, uint32_t page_tokens)
{
    return tokens / page_tokens + (tokens % page_tokens != 0);
}

#endif
