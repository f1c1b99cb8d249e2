/* shard/kvpool.c - see kvpool.h. A stack of free page numbers, and for each page whether it is lent. */
#include "shard/kvpool.h"

#include <stdbool.h>
#include <stdlib.h>

struct wn_kvpool {
    uint32_t *free; /* [pages]: the first free_n are free; the top is taken first */
    bool *lent;     /* [pages] */
    uint32_t pages, free_n;
};

wn_status wn_kvpool_create(struct wn_kvpool **out, uint32_t pages, struct wn_err *err)
{
    struct wn_kvpool *pool = calloc(1, sizeof(*pool));
    wn_status rc = WN_OK;

    if (!pool) {
        rc = wn_fail(err, WN_ENOMEM, "page pool");
        goto out;
    }
    pool->free = calloc(pages ? pages : 1, sizeof(*pool->free));
    pool->lent = calloc(pages ? pages : 1, sizeof(*pool->lent));
    if (!pool->free || !pool->lent) {
        rc = wn_fail(err, WN_ENOMEM, "page pool: %u pages", pages);
        goto out;
    }
    pool->pages = pool->free_n = pages;
    for (uint32_t i = 0; i < pages; i++) pool->free[i] = pages - 1 - i; /* page 0 goes first */
    *out = pool;
    pool = NULL;
out:
    wn_kvpool_destroy(pool);
    return rc;
}

void wn_kvpool_destroy(struct wn_kvpool *pool)
{
    if (!pool) return;
    free(pool->free);
    free(pool->lent);
    free(pool);
}

wn_status wn_kvpool_take(struct wn_kvpool *pool, uint32_t *pages, uint32_t n)
{
    if (n > pool->free_n) return WN_EBUSY;
    for (uint32_t i = 0; i < n; i++) {
        pages[i] = pool->free[--pool->free_n];
        pool->lent[pages[i]] = true;
    }
    return WN_OK;
}

void wn_kvpool_give(struct wn_kvpool *pool, const uint32_t *pages, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        WN_ASSERT(pages[i] < pool->pages && pool->lent[pages[i]]);
        pool->lent[pages[i]] = false;
        pool->free[pool->free_n++] = pages[i];
    }
}

uint32_t wn_kvpool_pages_n(const struct wn_kvpool *pool)
{
    return pool->pages;
}

uint32_t wn_kvpool_free_n(const struct wn_kvpool *pool)
{
    return pool->free_n;
}
