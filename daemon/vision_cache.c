/* daemon/vision_cache.c - see vision_cache.h. Entries are few (megabytes each), so a list in order of use will do. */
#include "daemon/vision_cache.h"

#include <stdlib.h>
#include <string.h>

#include "base/sha256.h"

#define FILES 1024u /* remembered by name; a newer one takes the place of an older one */

struct entry {
    struct entry *prev, *next; /* most lately used first */
    uint8_t key[WN_VISION_KEY_BYTES];
    struct wn_vision_view view; /* pointers into rows and attention */
    struct wn_buf rows;
    size_t bytes;
    float attention[];
};

/* The hash of a picture's file, and that of the pixels that came of it. */
struct file {
    bool known;
    uint8_t file[WN_VISION_KEY_BYTES], key[WN_VISION_KEY_BYTES];
};

struct wn_vision_cache {
    struct wn_backend *be;
    struct wn_buf spare; /* of an entry that went for one that comes */
    struct entry *first, *last;
    struct file files[FILES];
    size_t bytes_max;
    struct wn_vision_cache_stats stats;
};

wn_status wn_vision_cache_create(struct wn_vision_cache **out, struct wn_backend *be, size_t bytes_max,
                                 struct wn_err *err)
{
    struct wn_vision_cache *c = calloc(1, sizeof(*c));

    if (!c) return wn_fail(err, WN_ENOMEM, "vision cache");
    c->be = be;
    c->bytes_max = bytes_max;
    *out = c;
    return WN_OK;
}

static void unlink_entry(struct wn_vision_cache *c, struct entry *e)
{
    *(e->prev ? &e->prev->next : &c->first) = e->next;
    *(e->next ? &e->next->prev : &c->last) = e->prev;
}

static void link_first(struct wn_vision_cache *c, struct entry *e)
{
    e->prev = NULL;
    e->next = c->first;
    *(c->first ? &c->first->prev : &c->last) = e;
    c->first = e;
}

static void free_spare(struct wn_vision_cache *c)
{
    if (c->spare.ptr) c->be->ops->buf_free(c->be, &c->spare);
}

static void drop(struct wn_vision_cache *c, struct entry *e)
{
    unlink_entry(c, e);
    c->stats.bytes -= e->bytes;
    c->stats.entries--;
    free_spare(c);
    c->spare = e->rows;
    free(e);
}

void wn_vision_cache_destroy(struct wn_vision_cache *c)
{
    if (!c) return;
    while (c->first) drop(c, c->first);
    free_spare(c);
    free(c);
}

void wn_vision_cache_key(const float *pixels, size_t n, uint8_t key[WN_VISION_KEY_BYTES])
{
    _Static_assert(WN_VISION_KEY_BYTES == WN_SHA256_BYTES, "the key is a SHA-256");
    wn_sha256(key, pixels, n * sizeof(float));
}

static size_t place_of(const uint8_t file[WN_VISION_KEY_BYTES])
{
    uint32_t h;
    memcpy(&h, file, sizeof(h)); /* a hash already */
    return h % FILES;
}

void wn_vision_cache_learn(struct wn_vision_cache *c, const uint8_t file[WN_VISION_KEY_BYTES],
                           const uint8_t key[WN_VISION_KEY_BYTES])
{
    struct file *f = &c->files[place_of(file)];

    f->known = true;
    memcpy(f->file, file, WN_VISION_KEY_BYTES);
    memcpy(f->key, key, WN_VISION_KEY_BYTES);
}

bool wn_vision_cache_known(const struct wn_vision_cache *c, const uint8_t file[WN_VISION_KEY_BYTES],
                           uint8_t key[WN_VISION_KEY_BYTES])
{
    const struct file *f = &c->files[place_of(file)];

    if (!f->known || memcmp(f->file, file, WN_VISION_KEY_BYTES) != 0) return false;
    memcpy(key, f->key, WN_VISION_KEY_BYTES);
    return true;
}

static struct entry *find(const struct wn_vision_cache *c, const uint8_t key[WN_VISION_KEY_BYTES])
{
    for (struct entry *e = c->first; e; e = e->next)
        if (memcmp(e->key, key, WN_VISION_KEY_BYTES) == 0) return e;
    return NULL;
}

static bool has_taps(const struct wn_prune_taps *t, const struct wn_prune_wants *w)
{
    return !(w->cls_layers & ~t->cls_layers) && !(w->mean_layers & ~t->mean_layers) &&
           !(w->keys_layers & ~t->keys_layers) && (!w->cls_row || t->cls_row);
}

static void add_taps(struct wn_prune_wants *wants, const struct wn_prune_taps *t)
{
    const struct wn_prune_wants here = {.cls_layers = t->cls_layers,
                                        .mean_layers = t->mean_layers,
                                        .keys_layers = t->keys_layers,
                                        .cls_row = t->cls_row != NULL};
    wn_prune_wants_join(wants, &here);
}

bool wn_vision_cache_get(struct wn_vision_cache *c, const uint8_t key[WN_VISION_KEY_BYTES],
                         struct wn_prune_wants *wants, struct wn_vision_view *view)
{
    struct entry *e = find(c, key);

    c->stats.queries++;
    if (!e) return false;
    if (!has_taps(&e->view.taps, wants)) {
        add_taps(wants, &e->view.taps);
        return false;
    }
    c->stats.hits++;
    unlink_entry(c, e);
    link_first(c, e);
    *view = e->view;
    return true;
}

static uint32_t bits(uint64_t mask)
{
    return (uint32_t)__builtin_popcountll(mask);
}

static size_t padded(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

/* Layers of attention lie `stride` floats apart at the source and close together in the copy. */
static const float *keep_attention(float **at, const float *src, uint32_t layers, size_t stride, size_t floats)
{
    float *here = *at;
    if (!src) return NULL;
    for (uint32_t i = 0; i < layers; i++) memcpy(here + i * floats, src + i * stride, floats * sizeof(float));
    *at += layers * floats;
    return here;
}

/* Where the next rows of an entry go in backend memory. */
struct place {
    struct wn_backend *be;
    char *at;
    wn_status rc;
};

/* Copies `n` matrices [rows, cols] that lie `step` bytes apart and returns where they lie now, one after the other; src
 * NULL stays NULL. */
static const void *keep_rows(struct place *p, const void *src, uint32_t n, size_t step, uint32_t rows, uint32_t cols,
                             wn_dtype type)
{
    const size_t bytes = (size_t)rows * cols * wn_dtype_bytes(type);
    const char *here = p->at;

    if (!src) return NULL;
    for (uint32_t i = 0; i < n && p->rc == WN_OK; i++) {
        const struct wn_mat to = {p->at + i * bytes, type, rows, cols, cols},
                            from = {(char *)(uintptr_t)src + i * step, type, rows, cols, cols};
        p->rc = wn_be_convert(p->be, &to, &from);
    }
    p->at += padded(n * bytes);
    return here;
}

/* Copies the view into the entry, which has room for it. */
static wn_status fill(struct entry *e, struct wn_backend *be, const struct wn_vision_view *v)
{
    const struct wn_prune_taps *t = &v->taps;
    const size_t cls = (size_t)v->heads * v->tokens, keys = (size_t)v->tokens * v->width;
    struct place p = {.be = be, .at = e->rows.ptr};
    struct wn_prune_taps *to = &e->view.taps;
    float *at = e->attention;

    e->view = *v;
    to->cls_attention = keep_attention(&at, t->cls_attention, bits(t->cls_layers), t->cls_stride, cls);
    to->cls_stride = cls;
    to->mean_attention = keep_attention(&at, t->mean_attention, bits(t->mean_layers), t->mean_stride, v->tokens);
    to->mean_stride = v->tokens;
    e->view.features = keep_rows(&p, v->features, 1, 0, v->rows, v->width, v->dtype);
    to->keys =
        keep_rows(&p, t->keys, bits(t->keys_layers), t->keys_stride * sizeof(float), v->tokens, v->width, WN_F32);
    to->keys_stride = keys;
    to->cls_query =
        keep_rows(&p, t->cls_query, bits(t->keys_layers), t->query_stride * sizeof(float), 1, v->width, WN_F32);
    to->query_stride = v->width;
    to->cls_row = keep_rows(&p, t->cls_row, 1, 0, 1, v->width, v->dtype);
    WN_ASSERT(p.at <= (char *)e->rows.ptr + e->rows.bytes);
    return p.rc;
}

/* Memory for an entry's rows: that of one that has just gone, if it is as large; so a full cache allocates nothing. */
static wn_status take_memory(struct wn_vision_cache *c, size_t bytes, struct wn_buf *out)
{
    if (c->spare.bytes != bytes) return c->be->ops->buf_alloc(c->be, bytes, out);
    *out = c->spare;
    c->spare = (struct wn_buf){0};
    return WN_OK;
}

void wn_vision_cache_put(struct wn_vision_cache *c, const uint8_t key[WN_VISION_KEY_BYTES],
                         const struct wn_vision_view *v)
{
    const struct wn_prune_taps *t = &v->taps;
    const size_t element = wn_dtype_bytes(v->dtype), layers = bits(t->keys_layers);
    const size_t features = padded((size_t)v->rows * v->width * element) + padded(v->width * element);
    const size_t keys =
        padded(layers * v->tokens * v->width * sizeof(float)) + padded(layers * v->width * sizeof(float));
    const size_t probabilities = ((size_t)bits(t->cls_layers) * v->heads + bits(t->mean_layers)) * v->tokens;
    const size_t rows = features + keys, attention = probabilities * sizeof(float);
    const size_t bytes = sizeof(struct entry) + attention + rows;
    struct entry *e = find(c, key);

    if (e) drop(c, e);
    if (bytes > c->bytes_max) goto out;
    while (c->stats.bytes + bytes > c->bytes_max) {
        drop(c, c->last);
        c->stats.evicted++;
    }
    if (!(e = calloc(1, sizeof(*e) + attention))) goto out;
    if (take_memory(c, rows, &e->rows) != WN_OK) {
        free(e);
        goto out;
    }
    memcpy(e->key, key, WN_VISION_KEY_BYTES);
    e->bytes = bytes;
    c->stats.bytes += bytes;
    c->stats.entries++;
    link_first(c, e);
    if (fill(e, c->be, v) != WN_OK) drop(c, e);
out:
    free_spare(c);
}

void wn_vision_cache_stats(const struct wn_vision_cache *c, struct wn_vision_cache_stats *stats)
{
    *stats = c->stats;
}
