/* shard/tokenizer_bpe.c - byte-pair encoding of one piece, in O(n log n); see tokenizer_impl.h.
 *
 * Characters become symbols; the pair of neighbours with the lowest rank (leftmost first) is merged until none is
 * left. A heap holds the candidates; one that has gone stale is found out when it comes to the top. */
#include "shard/tokenizer_impl.h"
#include "base/utf8.h"

struct heap {
    struct tok_cand *v;
    size_t n;
};

static void heap_push(struct heap *h, struct tok_cand c)
{
    size_t i = h->n++;

    while (i && h->v[(i - 1) / 2].order > c.order) {
        h->v[i] = h->v[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    h->v[i] = c;
}

static struct tok_cand heap_pop(struct heap *h)
{
    struct tok_cand top = h->v[0], last = h->v[--h->n];
    size_t i = 0;

    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= h->n) break;
        if (child + 1 < h->n && h->v[child + 1].order < h->v[child].order) child++;
        if (last.order <= h->v[child].order) break;
        h->v[i] = h->v[child];
        i = child;
    }
    h->v[i] = last;
    return top;
}

static void push_pair(const struct wn_tokenizer *t, const struct tok_work *w, struct heap *h, int32_t pos)
{
    int32_t next = w->sym[pos].next;
    const struct tok_merge *m;

    if (next < 0) return;
    m = tok_merges_find(t, w->sym[pos].id, w->sym[next].id);
    if (m) heap_push(h, (struct tok_cand){(uint64_t)m->rank << 32 | (uint32_t)pos, m->id});
}

static void merge_all(const struct wn_tokenizer *t, struct tok_work *w, size_t n)
{
    struct heap h = {w->heap, 0};

    for (size_t i = 0; i < n; i++) push_pair(t, w, &h, (int32_t)i);
    while (h.n) {
        struct tok_cand top = heap_pop(&h);
        int32_t pos = (int32_t)(uint32_t)top.order, next;
        struct tok_symbol *s = &w->sym[pos];
        const struct tok_merge *m;

        if (s->id == TOK_NONE || s->next < 0) continue;
        next = s->next;
        m = tok_merges_find(t, s->id, w->sym[next].id);
        if (!m || m->id != top.id) continue; /* stale: a neighbour has changed since */
        s->id = m->id;
        s->next = w->sym[next].next;
        w->sym[next].id = TOK_NONE;
        if (s->next >= 0) w->sym[s->next].prev = pos;
        if (s->prev >= 0) push_pair(t, w, &h, s->prev);
        push_pair(t, w, &h, pos);
    }
}

static uint32_t char_id(const struct wn_tokenizer *t, uint32_t cp, const char *p, size_t n)
{
    uint32_t id;

    if (cp < sizeof(t->char_id) / sizeof(t->char_id[0])) return t->char_id[cp];
    id = tok_find(t, p, n);
    return id != TOK_NONE && t->entry[id].flags & TOK_SPECIAL ? TOK_NONE : id;
}

static void add_symbol(struct tok_work *w, size_t *n, uint32_t id)
{
    w->sym[*n] = (struct tok_symbol){id, (int32_t)*n - 1, (int32_t)*n + 1};
    (*n)++;
}

/* Fills w->sym with the characters of the piece, at most n + 1 symbols. Returns how many. */
static size_t make_symbols(const struct wn_tokenizer *t, struct tok_work *w, const char *p, size_t n)
{
    size_t count = 0, len;
    bool unk = false; /* an unknown token is due: it waits, so that more unknown characters may fuse into it */

    for (size_t i = 0; i < n; i += len) {
        uint32_t cp = 0, id;
        int got = wn_utf8_decode(p + i, n - i, &cp);
        bool bytes = t->byte_fallback;

        WN_ASSERT(got > 0); /* the text was checked when it came in */
        len = (size_t)got;
        id = char_id(t, cp, p + i, len);
        if (id != TOK_NONE) {
            if (unk) add_symbol(w, &count, t->unk);
            unk = false;
            add_symbol(w, &count, id);
            continue;
        }
        for (size_t k = 0; k < len && bytes; k++) bytes = t->byte_id[(uint8_t)p[i + k]] != TOK_NONE;
        if (bytes) {
            for (size_t k = 0; k < len; k++) add_symbol(w, &count, t->byte_id[(uint8_t)p[i + k]]);
            continue;
        }
        if (t->unk == TOK_NONE) continue;
        if (unk && !t->fuse_unk) add_symbol(w, &count, t->unk);
        unk = true;
    }
    if (unk) add_symbol(w, &count, t->unk);
    if (count) w->sym[count - 1].next = -1;
    return count;
}

wn_status tok_bpe(const struct wn_tokenizer *t, struct tok_work *w, const char *p, size_t n, struct wn_err *err)
{
    wn_status rc;
    size_t count;

    if (!n) return WN_OK;
    if (t->ignore_merges) {
        uint32_t id = tok_find(t, p, n);
        if (id != TOK_NONE && !(t->entry[id].flags & TOK_SPECIAL)) return tok_emit(w, id, err);
    }
    if (n > TOK_WORK_MAX) return wn_fail(err, WN_ELIMIT, "a piece of %zu bytes", n);
    if ((rc = tok_grow((void **)&w->sym, &w->sym_cap, n + 1, sizeof(*w->sym), err)) != WN_OK) return rc;
    count = make_symbols(t, w, p, n);
    /* at most count candidates to begin with; each merge takes one away and adds at most two */
    if ((rc = tok_grow((void **)&w->heap, &w->heap_cap, 2 * count + 2, sizeof(*w->heap), err)) != WN_OK) return rc;
    merge_all(t, w, count);
    for (size_t i = 0; i < count; i++) {
        if (w->sym[i].id == TOK_NONE) continue;
        if ((rc = tok_emit(w, w->sym[i].id, err)) != WN_OK) return rc;
    }
    return WN_OK;
}
