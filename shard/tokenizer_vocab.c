/* shard/tokenizer_vocab.c - the tokenizer's strings and tables; see tokenizer_impl.h. */
#include <stdlib.h>

#include "shard/tokenizer_impl.h"

wn_status tok_grow(void **p, size_t *cap, size_t want, size_t elem, struct wn_err *err)
{
    size_t c = *cap ? *cap : 64;
    void *q;

    if (want <= *cap) return WN_OK;
    while (c < want) {
        if (c > SIZE_MAX / 2) return wn_fail(err, WN_ELIMIT, "tokenizer: %zu elements", want);
        c *= 2;
    }
    if (c > SIZE_MAX / elem) return wn_fail(err, WN_ELIMIT, "tokenizer: %zu elements", want);
    q = realloc(*p, c * elem);
    if (!q) return wn_fail(err, WN_ENOMEM, "tokenizer: %zu bytes", c * elem);
    *p = q;
    *cap = c;
    return WN_OK;
}

wn_status tok_buf_add(struct tok_buf *b, const char *p, size_t n, size_t max, struct wn_err *err)
{
    wn_status rc;

    if (b->n > max || n > max - b->n) return wn_fail(err, WN_ELIMIT, "tokenizer: text grows over %zu bytes", max);
    if (b->n + n > b->cap && (rc = tok_grow((void **)&b->p, &b->cap, b->n + n, 1, err)) != WN_OK) return rc;
    if (n) memcpy(b->p + b->n, p, n);
    b->n += n;
    return WN_OK;
}

wn_status tok_store_add(struct wn_tokenizer *t, const char *p, size_t n, struct tok_str *out, struct wn_err *err)
{
    size_t off = t->store.n;
    wn_status rc = tok_buf_add(&t->store, p, n, TOK_STORE_MAX, err);

    if (rc == WN_OK) *out = (struct tok_str){(uint32_t)off, (uint32_t)n};
    return rc;
}

const char *tok_at(const struct wn_tokenizer *t, struct tok_str s)
{
    return t->store.p ? t->store.p + s.off : "";
}

static uint32_t hash_bytes(const char *p, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u; /* FNV-1a, then a finaliser: the table's mask reads low bits only */

    for (size_t i = 0; i < n; i++) h = (h ^ (uint8_t)p[i]) * 0x100000001b3u;
    h ^= h >> 32;
    h *= 0x9e3779b97f4a7c15u;
    return (uint32_t)(h >> 32);
}

static uint32_t hash_pair(uint64_t pair)
{
    pair ^= pair >> 31;
    pair *= 0x9e3779b97f4a7c15u;
    pair ^= pair >> 29;
    pair *= 0xbf58476d1ce4e5b9u;
    return (uint32_t)(pair >> 32);
}

/* The smallest power of two with a load of at most one half. */
static size_t table_size(size_t n)
{
    size_t size = 16;

    while (size < 2 * n) size *= 2;
    return size;
}

uint32_t tok_find(const struct wn_tokenizer *t, const char *p, size_t n)
{
    if (!t->slot) return TOK_NONE;
    for (uint32_t i = hash_bytes(p, n) & t->slot_mask; t->slot[i]; i = (i + 1) & t->slot_mask) {
        uint32_t id = t->slot[i] - 1;
        struct tok_str s = t->entry[id].text;
        if (s.len == n && memcmp(tok_at(t, s), p, n) == 0) return id;
    }
    return TOK_NONE;
}

wn_status tok_slots_build(struct wn_tokenizer *t, struct wn_err *err)
{
    size_t size = table_size(t->entry_n);

    t->slot = calloc(size, sizeof(*t->slot));
    if (!t->slot) return wn_fail(err, WN_ENOMEM, "tokenizer: table of %zu tokens", t->entry_n);
    t->slot_mask = (uint32_t)(size - 1);
    for (uint32_t id = 0; id < t->entry_n; id++) {
        const struct tok_entry *e = &t->entry[id];
        uint32_t i = hash_bytes(tok_at(t, e->text), e->text.len) & t->slot_mask;
        if (!(e->flags & TOK_MODEL)) continue;
        while (t->slot[i]) i = (i + 1) & t->slot_mask;
        t->slot[i] = id + 1;
    }
    return WN_OK;
}

wn_status tok_merges_init(struct wn_tokenizer *t, size_t merges, struct wn_err *err)
{
    size_t size = table_size(merges);

    t->merge = calloc(size, sizeof(*t->merge));
    if (!t->merge) return wn_fail(err, WN_ENOMEM, "tokenizer: table of %zu merges", merges);
    t->merge_mask = (uint32_t)(size - 1);
    for (size_t i = 0; i < size; i++) t->merge[i].rank = TOK_NONE;
    return WN_OK;
}

static uint32_t merges_slot(const struct wn_tokenizer *t, uint64_t pair)
{
    uint32_t i = hash_pair(pair) & t->merge_mask;

    while (t->merge[i].rank != TOK_NONE && t->merge[i].pair != pair) i = (i + 1) & t->merge_mask;
    return i;
}

void tok_merges_put(struct wn_tokenizer *t, uint32_t left, uint32_t right, uint32_t rank, uint32_t id)
{
    uint64_t pair = (uint64_t)left << 32 | right;

    /* a pair that is listed twice has the later rank, as in the tokenizers library */
    t->merge[merges_slot(t, pair)] = (struct tok_merge){pair, rank, id};
}

const struct tok_merge *tok_merges_find(const struct wn_tokenizer *t, uint32_t left, uint32_t right)
{
    const struct tok_merge *m = &t->merge[merges_slot(t, (uint64_t)left << 32 | right)];

    return m->rank == TOK_NONE ? NULL : m;
}

static int compare_added(const void *a, const void *b, void *ctx)
{
    const struct tok_added *x = a, *y = b;
    const struct wn_tokenizer *t = ctx;
    size_t n = x->text.len < y->text.len ? x->text.len : y->text.len;
    int c = n ? memcmp(tok_at(t, x->text), tok_at(t, y->text), n) : 0;

    if (c) return c;
    if (x->text.len != y->text.len) return x->text.len < y->text.len ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

void tok_matcher_sort(const struct wn_tokenizer *t, struct tok_matcher *m)
{
    if (m->n > 1) qsort_r(m->v, m->n, sizeof(*m->v), compare_added, (void *)t);
}

/* The first token in [lo, hi), all equal up to `depth`, whose byte there is >= c (a token that ends sorts first). */
static size_t narrow(const struct wn_tokenizer *t, const struct tok_matcher *m, size_t lo, size_t hi, size_t depth,
                     int c)
{
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        struct tok_str s = m->v[mid].text;
        int b = s.len <= depth ? -1 : (uint8_t)tok_at(t, s)[depth];
        if (b < c) lo = mid + 1;
        else hi = mid;
    }
    return lo;
}

const struct tok_added *tok_matcher_at(const struct wn_tokenizer *t, const struct tok_matcher *m, const char *p,
                                       size_t n)
{
    const struct tok_added *best = NULL;
    size_t lo = 0, hi = m->n;

    for (size_t depth = 0; depth < n && lo < hi; depth++) {
        int c = (uint8_t)p[depth];
        lo = narrow(t, m, lo, hi, depth, c);
        hi = narrow(t, m, lo, hi, depth, c + 1);
        if (lo < hi && m->v[lo].text.len == depth + 1) best = &m->v[lo];
    }
    return best;
}
