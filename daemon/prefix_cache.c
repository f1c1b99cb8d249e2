/* daemon/prefix_cache.c - see prefix_cache.h. One record a page, with two entries in a hash table by key, and in a list
 * by last use while nobody uses it. */
#include "daemon/prefix_cache.h"

#include <stdlib.h>
#include <string.h>

#include "base/sha256.h"

#define NONE UINT32_MAX

/* Entry p * ENTRIES + which is page p's. */
enum { WHOLE, HEAD, ENTRIES };

struct entry {
    struct wn_prefix_key key;
    bool keyed;    /* can be found */
    uint32_t next; /* entry in its bucket */
};

struct page {
    struct entry entry[ENTRIES];
    uint32_t users;
    uint32_t older, newer; /* in the list of unused ones */
};

struct wn_prefix_cache {
    struct wn_kvpool *pool;
    struct page *pages; /* [pages_n] */
    uint32_t pages_n;
    uint32_t *buckets, buckets_n; /* first entry of each; a power of two */
    uint32_t oldest, newest, unused_n;
    struct wn_prefix_stats stats;
};

wn_status wn_prefix_cache_create(struct wn_prefix_cache **out, struct wn_kvpool *pool, struct wn_err *err)
{
    struct wn_prefix_cache *c = calloc(1, sizeof(*c));

    if (!c) return wn_fail(err, WN_ENOMEM, "prefix cache");
    c->pool = pool;
    c->pages_n = wn_kvpool_pages_n(pool);
    for (c->buckets_n = 16; c->buckets_n < c->pages_n; c->buckets_n *= 2) {}
    c->pages = calloc(c->pages_n ? c->pages_n : 1, sizeof(*c->pages));
    c->buckets = malloc(c->buckets_n * sizeof(*c->buckets));
    if (!c->pages || !c->buckets) {
        wn_prefix_cache_destroy(c);
        return wn_fail(err, WN_ENOMEM, "prefix cache of %u pages", wn_kvpool_pages_n(pool));
    }
    memset(c->buckets, 0xff, c->buckets_n * sizeof(*c->buckets)); /* NONE */
    c->oldest = c->newest = NONE;
    *out = c;
    return WN_OK;
}

void wn_prefix_cache_destroy(struct wn_prefix_cache *c)
{
    if (!c) return;
    free(c->pages);
    free(c->buckets);
    free(c);
}

void wn_prefix_key(const struct wn_prefix_key *before, const struct wn_prefix_row *rows, uint32_t rows_n,
                   struct wn_prefix_key *out)
{
    static const uint8_t no_image[WN_SHA256_BYTES];
    struct wn_sha256 state;

    wn_sha256_init(&state);
    if (before) wn_sha256_update(&state, before->bytes, sizeof(before->bytes));
    for (uint32_t i = 0; i < rows_n; i++) {
        const uint32_t head[3] = {rows[i].image != NULL, rows[i].id, rows[i].position};
        wn_sha256_update(&state, head, sizeof(head)); /* never leaves the machine */
        wn_sha256_update(&state, rows[i].image ? rows[i].image : no_image, sizeof(no_image));
    }
    wn_sha256_final(&state, out->bytes);
}

/* ---- buckets and the list of unused pages ---- */

static uint32_t *bucket_of(const struct wn_prefix_cache *c, const struct wn_prefix_key *key)
{
    uint32_t h;
    memcpy(&h, key->bytes, sizeof(h)); /* a hash already */
    return &c->buckets[h & (c->buckets_n - 1)];
}

static struct entry *entry_at(const struct wn_prefix_cache *c, uint32_t e)
{
    return &c->pages[e / ENTRIES].entry[e % ENTRIES];
}

/* The page whose entry it is. The keys of wholes and heads differ: they are of another number of rows. */
static uint32_t find(const struct wn_prefix_cache *c, const struct wn_prefix_key *key)
{
    uint32_t e = *bucket_of(c, key);
    while (e != NONE && memcmp(&entry_at(c, e)->key, key, sizeof(*key)) != 0) e = entry_at(c, e)->next;
    return e == NONE ? NONE : e / ENTRIES;
}

static bool has_key(const struct page *g)
{
    return g->entry[WHOLE].keyed || g->entry[HEAD].keyed;
}

static void forget_keys(struct wn_prefix_cache *c, uint32_t p)
{
    for (uint32_t e = p * ENTRIES; e < (p + 1) * ENTRIES; e++) {
        struct entry *of = entry_at(c, e);
        uint32_t *at;
        if (!of->keyed) continue;
        for (at = bucket_of(c, &of->key); *at != e;) at = &entry_at(c, *at)->next;
        *at = of->next;
        of->keyed = false;
    }
    c->stats.cached--;
}

static void list_remove(struct wn_prefix_cache *c, uint32_t p)
{
    const struct page *g = &c->pages[p];
    *(g->older != NONE ? &c->pages[g->older].newer : &c->oldest) = g->newer;
    *(g->newer != NONE ? &c->pages[g->newer].older : &c->newest) = g->older;
    c->unused_n--;
}

static void list_add(struct wn_prefix_cache *c, uint32_t p)
{
    c->pages[p].newer = NONE;
    c->pages[p].older = c->newest;
    *(c->newest != NONE ? &c->pages[c->newest].newer : &c->oldest) = p;
    c->newest = p;
    c->unused_n++;
}

/* ---- use ---- */

uint32_t wn_prefix_match(struct wn_prefix_cache *c, const struct wn_prefix_key *keys, uint32_t n, uint32_t *pages)
{
    uint32_t found = 0;

    for (; found < n; found++) {
        const uint32_t p = find(c, &keys[found]);
        if (p == NONE) break;
        if (c->pages[p].users++ == 0) {
            list_remove(c, p);
            c->stats.used++;
        }
        pages[found] = p;
    }
    c->stats.queries += n;
    c->stats.hits += found;
    return found;
}

bool wn_prefix_find_head(struct wn_prefix_cache *c, const struct wn_prefix_key *key, uint32_t *page)
{
    const uint32_t p = find(c, key);

    c->stats.queries++;
    if (p == NONE) return false;
    c->stats.hits++;
    if (c->pages[p].users == 0) { /* the newest of them now */
        list_remove(c, p);
        list_add(c, p);
    }
    *page = p;
    return true;
}

uint32_t wn_prefix_available(const struct wn_prefix_cache *c)
{
    return wn_kvpool_free_n(c->pool) + c->unused_n;
}

wn_status wn_prefix_take(struct wn_prefix_cache *c, uint32_t *pages, uint32_t n)
{
    if (wn_prefix_available(c) < n) return WN_EBUSY;
    while (wn_kvpool_free_n(c->pool) < n) {
        const uint32_t p = c->oldest;
        list_remove(c, p);
        forget_keys(c, p);
        wn_kvpool_give(c->pool, &p, 1);
        c->stats.evicted++;
    }
    if (wn_kvpool_take(c->pool, pages, n) != WN_OK) return WN_EBUSY;
    for (uint32_t i = 0; i < n; i++) c->pages[pages[i]] = (struct page){.users = 1};
    c->stats.used += n;
    return WN_OK;
}

static void publish(struct wn_prefix_cache *c, uint32_t page, uint32_t which, const struct wn_prefix_key *key)
{
    struct page *g = &c->pages[page];
    uint32_t *bucket = bucket_of(c, key);

    WN_ASSERT(g->users > 0);
    if (g->entry[which].keyed || find(c, key) != NONE) return;
    c->stats.cached += !has_key(g);
    g->entry[which] = (struct entry){.key = *key, .keyed = true, .next = *bucket};
    *bucket = page * ENTRIES + which;
}

void wn_prefix_publish(struct wn_prefix_cache *c, uint32_t page, const struct wn_prefix_key *key)
{
    publish(c, page, WHOLE, key);
}

void wn_prefix_publish_head(struct wn_prefix_cache *c, uint32_t page, const struct wn_prefix_key *key)
{
    publish(c, page, HEAD, key);
}

void wn_prefix_release(struct wn_prefix_cache *c, const uint32_t *pages, uint32_t n)
{
    /* From the end: a later page is of no use without the earlier ones, so it is forgotten first. */
    for (uint32_t i = n; i-- > 0;) {
        struct page *g = &c->pages[pages[i]];
        WN_ASSERT(g->users > 0);
        if (--g->users > 0) continue;
        c->stats.used--;
        if (has_key(g))
            list_add(c, pages[i]);
        else
            wn_kvpool_give(c->pool, &pages[i], 1);
    }
}

void wn_prefix_stats(const struct wn_prefix_cache *c, struct wn_prefix_stats *stats)
{
    *stats = c->stats;
}
