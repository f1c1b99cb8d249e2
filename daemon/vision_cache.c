/* daemon/vision_cache.c - see vision_cache.h. Entries are few (megabytes each), so a list in order of use will do. */
#include "daemon/vision_cache.h"

#include <stdlib.h>
#include <string.h>

#include "base/sha256.h"

#define FILES 1024u /* remembered by name; a newer one takes the place of an older one */

struct entry {
    struct entry *prev, *next; /* most lately used first */
    uint8_t key[WN_VISION_KEY_BYTES];
    struct wn_vision_view view; /* pointers into data */
    size_t bytes;
    char data[];
};

/* The hash of a picture's file, and that of the pixels that came of it. */
struct file {
    bool known;
    uint8_t file[WN_VISION_KEY_BYTES], key[WN_VISION_KEY_BYTES];
};

struct wn_vision_cache {
    struct entry *first, *last;
    struct file files[FILES];
    size_t bytes_max;
    struct wn_vision_cache_stats stats;
};

wn_status wn_vision_cache_create(struct wn_vision_cache **out, size_t bytes_max, struct wn_err *err)
{
    struct wn_vision_cache *c = calloc(1, sizeof(*c));

    if (!c) return wn_fail(err, WN_ENOMEM, "vision cache");
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

static void drop(struct wn_vision_cache *c, struct entry *e)
{
    unlink_entry(c, e);
    c->stats.bytes -= e->bytes;
    c->stats.entries--;
    free(e);
}

void wn_vision_cache_destroy(struct wn_vision_cache *c)
{
    if (!c) return;
    while (c->first) drop(c, c->first);
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

/* Copies bytes to *at and returns where they lie now; src NULL stays NULL. */
static const void *keep(char **at, const void *src, size_t bytes)
{
    char *here = *at;
    if (!src) return NULL;
    memcpy(here, src, bytes);
    *at += (bytes + 63) / 64 * 64;
    return here;
}

static uint32_t bits(uint64_t mask)
{
    return (uint32_t)__builtin_popcountll(mask);
}

/* Layers of a tap lie `stride` floats apart at the source and close together in the copy. */
static const float *keep_layers(char **at, const float *src, uint32_t layers, size_t stride, size_t floats)
{
    char *here = *at;
    if (!src) return NULL;
    for (uint32_t i = 0; i < layers; i++)
        memcpy(here + i * floats * sizeof(float), src + i * stride, floats * sizeof(float));
    *at += (layers * floats * sizeof(float) + 63) / 64 * 64;
    return (const float *)(const void *)here;
}

void wn_vision_cache_put(struct wn_vision_cache *c, const uint8_t key[WN_VISION_KEY_BYTES],
                         const struct wn_vision_view *v)
{
    const struct wn_prune_taps *t = &v->taps;
    const size_t features = (size_t)v->rows * v->width * wn_dtype_bytes(v->dtype);
    const size_t row = (size_t)v->width * wn_dtype_bytes(v->dtype);
    const size_t cls = (size_t)v->heads * v->tokens, keys = (size_t)v->tokens * v->width;
    const size_t bytes = sizeof(struct entry) + 6 * 64 + features + row +
                         (bits(t->cls_layers) * cls + bits(t->mean_layers) * (size_t)v->tokens +
                          bits(t->keys_layers) * (keys + v->width)) * sizeof(float);
    struct entry *e = find(c, key);
    char *at;

    if (e) drop(c, e);
    if (bytes > c->bytes_max) return;
    while (c->stats.bytes + bytes > c->bytes_max) {
        drop(c, c->last);
        c->stats.evicted++;
    }
    if (!(e = malloc(bytes))) return;
    memcpy(e->key, key, WN_VISION_KEY_BYTES);
    e->bytes = bytes;
    e->view = *v;
    at = e->data + (64 - (uintptr_t)e->data % 64) % 64;
    e->view.features = keep(&at, v->features, features);
    e->view.taps.cls_attention = keep_layers(&at, t->cls_attention, bits(t->cls_layers), t->cls_stride, cls);
    e->view.taps.cls_stride = cls;
    e->view.taps.mean_attention = keep_layers(&at, t->mean_attention, bits(t->mean_layers), t->mean_stride, v->tokens);
    e->view.taps.mean_stride = v->tokens;
    e->view.taps.keys = keep_layers(&at, t->keys, bits(t->keys_layers), t->keys_stride, keys);
    e->view.taps.keys_stride = keys;
    e->view.taps.cls_query = keep_layers(&at, t->cls_query, bits(t->keys_layers), t->query_stride, v->width);
    e->view.taps.query_stride = v->width;
    e->view.taps.cls_row = keep(&at, t->cls_row, row);
    WN_ASSERT((size_t)(at - (char *)e) <= bytes);
    c->stats.bytes += bytes;
    c->stats.entries++;
    link_first(c, e);
}

void wn_vision_cache_stats(const struct wn_vision_cache *c, struct wn_vision_cache_stats *stats)
{
    *stats = c->stats;
}
