/* daemon/encoder.c - see encoder.h. */
#include "daemon/encoder.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/sha256.h"
#include "daemon/vision_cache.h"
#include "shard/jsonfile.h"
#include "shard/preprocess.h"
#include "shard/projector.h"
#include "shard/row_worker.h"
#include "shard/vision.h"
#include "shard/weights.h"

#define ENCODE_TIMEOUT_US (300 * 1000000ll)

struct wn_encoder {
    struct wn_model model;
    struct wn_image_limits limits;
    struct wn_backend *be;
    struct wn_vision *tower;
    struct wn_projector *projector;
    struct wn_row_worker *rows;                      /* NULL: features are in host memory */
    struct wn_buf projected[WN_ENCODE_BATCH_MAX + 1]; /* backend memory, from its first use: all features of a picture
                                                         each, and kept rows */
    struct wn_preprocess preprocess;
    struct wn_pool *pool;
    struct wn_vision_cache *cache;
    uint64_t kept_cls_layers; /* made with every picture that is kept: half of the methods read it, and beside an
                                 encode it costs nothing */
    float *pixels; /* [BATCH_MAX, 3, side, side] */
    size_t image_floats;
};

wn_status wn_encoder_preprocess(struct wn_preprocess *out, const char *dir, const struct wn_model *model,
                                struct wn_err *err)
{
    const uint32_t side = model->vision.image_side;
    char path[WN_PATH_MAX];
    wn_status rc = wn_path_join(path, dir, "preprocessor_config.json", err);

    if (rc != WN_OK || (rc = wn_preprocess_load(out, path, err)) != WN_OK) return rc;
    if (out->width != side || out->height != side)
        return wn_fail(err, WN_EUNSUPP, "%s: makes pictures of %u x %u, and the tower takes %u x %u", path, out->width,
                       out->height, side, side);
    return WN_OK;
}

wn_status wn_encoder_open(struct wn_encoder **out, const struct wn_encoder_opts *opts, struct wn_err *err)
{
    const struct wn_config *cfg = opts->cfg;
    const char *backend = cfg->vision_backend[0] ? cfg->vision_backend : cfg->backend;
    const struct wn_pool_opts po = {.threads = WN_ENCODE_BATCH_MAX - 1, .queue_max = 16};
    struct wn_encoder *e = calloc(1, sizeof(*e));
    struct wn_weights *weights = NULL;
    wn_status rc;

    if (!e) return wn_fail(err, WN_ENOMEM, "encoder");
    e->model = *opts->model;
    e->limits = opts->limits;
    e->image_floats = 3 * (size_t)e->model.vision.image_side * e->model.vision.image_side;
    if ((rc = wn_encoder_preprocess(&e->preprocess, opts->cfg->model, &e->model, err)) != WN_OK) goto out;
    e->pixels = calloc(WN_ENCODE_BATCH_MAX * e->image_floats, sizeof(float));
    if (!e->pixels) {
        rc = wn_fail(err, WN_ENOMEM, "pixels of %d images", WN_ENCODE_BATCH_MAX);
        goto out;
    }
    if (opts->cfg->vision_cache_bytes > 0 && e->model.vision.layers_run <= 64)
        e->kept_cls_layers = (uint64_t)1 << (e->model.vision.layers_run - 1);
    if ((rc = wn_pool_start(&e->pool, &po, err)) != WN_OK) goto out;
    if ((rc = wn_backend_open(&e->be, backend, 0, err)) != WN_OK) goto out;
    if ((rc = wn_row_worker_open(&e->rows, e->be, err)) != WN_OK) goto out;
    if ((rc = wn_vision_cache_create(&e->cache, e->be, cfg->vision_cache_bytes, err)) != WN_OK) goto out;
    if ((rc = wn_weights_open(&weights, opts->cfg->model, err)) != WN_OK) goto out;
    rc = wn_vision_open(&e->tower, e->be, &e->model, weights, opts->dtype, WN_ENCODE_BATCH_MAX, err);
    if (rc != WN_OK) goto out;
    rc = wn_projector_open(&e->projector, e->be, &e->model, weights, opts->dtype, e->model.vision.patches + 2, err);
out:
    wn_weights_close(weights);
    if (rc != WN_OK) {
        wn_encoder_close(e);
        return rc;
    }
    *out = e;
    return WN_OK;
}

void wn_encoder_close(struct wn_encoder *e)
{
    if (!e) return;
    wn_projector_close(e->projector);
    wn_vision_close(e->tower);
    wn_vision_cache_destroy(e->cache);
    wn_row_worker_close(e->rows);
    for (size_t i = 0; i < sizeof(e->projected) / sizeof(e->projected[0]); i++)
        if (e->projected[i].ptr) e->be->ops->buf_free(e->be, &e->projected[i]);
    wn_backend_close(e->be);
    wn_pool_stop(e->pool);
    free(e->pixels);
    free(e);
}

void wn_encode_item_fini(struct wn_encode_item *item)
{
    free(item->rows);
    free(item->index);
    free(item->flags);
    free(item->scores);
    item->rows = NULL;
    item->index = NULL;
    item->flags = NULL;
    item->scores = NULL;
}

struct wn_prune_shape wn_encoder_shape(const struct wn_model *model)
{
    const struct wn_vision_config *v = &model->vision;
    const uint32_t side = v->image_side / v->patch_side;

    return (struct wn_prune_shape){
        .rows = v->patches + (v->keep_cls ? 1 : 0),
        .width = v->hidden,
        .grid_w = side,
        .grid_h = side,
        .heads = v->heads,
        .feature_layer = v->layers_run - 1,
        .cls_first = v->keep_cls,
    };
}

/* An image of a call, on its way. */
struct picture {
    struct wn_encode_item *item;
    uint8_t file[WN_VISION_KEY_BYTES], key[WN_VISION_KEY_BYTES]; /* hashes of its bytes and of its pixels */
    struct wn_prune_wants wants;
    struct wn_vision_view view; /* what the tower made of it: the cache's, or the tower's own */
    struct wn_prune_in in;
    struct wn_prune_out kept;
};

static bool in_tower(const struct wn_encode_item *item)
{
    return (item->method->spaces & WN_PRUNE_TOWER) != 0;
}

/* Decodes the pictures into e->pixels, picture i at place i. */
static void preprocess(struct wn_encoder *e, struct picture *const *pictures, uint32_t n)
{
    struct wn_preprocess_item each[WN_ENCODE_BATCH_MAX] = {0};
    const int64_t began_us = wn_now_us();

    for (uint32_t i = 0; i < n; i++)
        each[i] = (struct wn_preprocess_item){.data = pictures[i]->item->file,
                                              .bytes = pictures[i]->item->file_bytes,
                                              .pixels = e->pixels + i * e->image_floats};
    wn_preprocess_many(e->pool, &e->preprocess, &e->limits, each, n);
    for (uint32_t i = 0; i < n; i++) {
        struct wn_encode_item *item = pictures[i]->item;
        item->rc = each[i].rc;
        item->err = each[i].err;
        item->preprocess_us = (uint64_t)(wn_now_us() - began_us);
        if (item->rc != WN_OK) continue;
        wn_vision_cache_key(each[i].pixels, e->image_floats, pictures[i]->key);
        wn_vision_cache_learn(e->cache, pictures[i]->file, pictures[i]->key);
    }
}

/* Image i of a batch, as methods and the cache see it. */
static struct wn_vision_view view_of(const struct wn_vision_out *out, const struct wn_vision_taps *asked, uint32_t i)
{
    const size_t row_bytes = (size_t)out->width * wn_dtype_bytes(out->dtype);
    struct wn_vision_view v = {
        .features = (const char *)out->features + (size_t)i * out->rows * row_bytes,
        .rows = out->rows,
        .width = out->width,
        .tokens = out->tokens,
        .heads = out->heads,
        .dtype = out->dtype,
        .taps = {.cls_layers = asked->cls_layers,
                 .mean_layers = asked->mean_layers,
                 .keys_layers = asked->keys_layers,
                 .cls_stride = (size_t)out->images * out->heads * out->tokens,
                 .mean_stride = (size_t)out->images * out->tokens,
                 .keys_stride = (size_t)out->images * out->tokens * out->width,
                 .query_stride = (size_t)out->images * out->width},
    };
    if (out->cls_attention) v.taps.cls_attention = out->cls_attention + (size_t)i * out->heads * out->tokens;
    if (out->mean_attention) v.taps.mean_attention = out->mean_attention + (size_t)i * out->tokens;
    if (out->keys) v.taps.keys = out->keys + (size_t)i * out->tokens * out->width;
    if (out->cls_query) v.taps.cls_query = out->cls_query + (size_t)i * out->width;
    if (out->cls_features) v.taps.cls_row = (const char *)out->cls_features + i * row_bytes;
    return v;
}

/* ---- pruning ---- */

/* rows [n, tower's width] through the projector, into the place's memory. */
static wn_status project(struct wn_encoder *e, struct wn_mat rows, uint32_t place, struct wn_mat *out,
                         struct wn_err *err)
{
    const uint32_t width = e->model.text.hidden, rows_max = e->model.vision.patches + 2;
    struct wn_buf *buf = &e->projected[place];
    wn_status rc = WN_OK;

    if (!buf->ptr) rc = e->be->ops->buf_alloc(e->be, (size_t)rows_max * width * wn_dtype_bytes(rows.dtype), buf);
    if (rc != WN_OK) return wn_fail(err, rc, "%u projected rows", rows_max);
    *out = (struct wn_mat){buf->ptr, rows.dtype, rows.rows, width, width};
    return wn_projector_run(e->projector, rows, *out, err);
}

/* What the method is to see of picture i of a call. */
static void prune_begin(struct wn_encoder *e, struct picture *p, uint32_t i)
{
    struct wn_encode_item *item = p->item;
    const int64_t began_us = wn_now_us();
    const struct wn_vision_view *v = &p->view;
    struct wn_mat all = {(void *)(uintptr_t)v->features, v->dtype, v->rows, v->width, v->width};

    item->rows_before = p->view.rows;
    item->projected = item->ask.projected || !in_tower(item);
    if (!in_tower(item)) item->rc = project(e, all, i, &all, &item->err);
    p->in = (struct wn_prune_in){.shape = wn_encoder_shape(&e->model),
                                 .ask = item->ask,
                                 .features = all.ptr,
                                 .dtype = all.dtype,
                                 .taps = p->view.taps,
                                 .worker = e->rows};
    p->in.shape.width = all.cols;
    p->in.ask.projected = !in_tower(item);
    for (int k = 0; k < 8; k++) p->in.ask.budget.seed += (uint64_t)p->key[k] << (8 * k);
    item->prune_us = (uint64_t)(wn_now_us() - began_us);
}

/* Runs the method: item gets indices, flags and scores, the picture how rows are made. */
static wn_status choose(struct picture *p)
{
    struct wn_encode_item *item = p->item;
    const uint32_t room = wn_prune_rows_max(item->method, &p->in.ask, p->in.shape.rows);
    wn_status rc;

    item->index = calloc(room, sizeof(*item->index));
    item->flags = calloc(room, sizeof(*item->flags));
    if (item->want_scores) item->scores = calloc(p->in.shape.rows, sizeof(float));
    if (!item->index || !item->flags || (item->want_scores && !item->scores))
        return wn_fail(&item->err, WN_ENOMEM, "%u visual tokens", room);
    p->kept.index = item->index;
    p->kept.flags = item->flags;
    p->kept.scores = item->scores;
    if ((rc = wn_prune_run(item->method, &p->in, &p->kept, &item->err)) != WN_OK) return rc;
    item->rows_n = p->kept.rows;
    item->plain = true;
    for (uint32_t i = 0; i < item->rows_n; i++) item->plain = item->plain && item->flags[i] == 0;
    if (!p->kept.scored) {
        free(item->scores);
        item->scores = NULL;
    }
    return WN_OK;
}

/* Room for the rows of the item. */
static wn_status make_room(struct wn_encode_item *item, uint32_t width, wn_dtype dtype)
{
    item->width = width;
    item->rows = malloc(((size_t)item->rows_n * width + 1) * wn_dtype_bytes(dtype));
    return item->rows ? WN_OK : wn_fail(&item->err, WN_ENOMEM, "%u visual tokens", item->rows_n);
}

/* What of pruning may run on any thread, where rows are in host memory: choosing, and making rows. */
static void prune_choose(void *pictures, size_t i)
{
    struct picture *p = ((struct picture *const *)pictures)[i];
    struct wn_encode_item *item = p->item;
    const int64_t began_us = wn_now_us();

    if (item->rc == WN_OK) item->rc = choose(p);
    if (item->rc == WN_OK && !p->in.worker) {
        item->rc = make_room(item, p->in.shape.width, p->in.dtype);
        if (item->rc == WN_OK) item->rc = wn_prune_gather(&p->in, &p->kept, item->rows, &item->err);
    }
    item->prune_us += (uint64_t)(wn_now_us() - began_us);
}

/* The kept rows in backend memory, through the projector if that is still to be done, and to the host. */
static wn_status fetch(struct wn_encoder *e, struct picture *p)
{
    const bool on_host = !p->in.worker, projects = p->item->projected && in_tower(p->item);
    struct wn_encode_item *item = p->item;
    struct wn_row_sums sums = wn_prune_sums(&p->in, &p->kept);
    struct wn_mat rows = sums.out;
    wn_status rc = WN_OK;

    if (on_host && !projects) return WN_OK; /* they are there */
    if (on_host) rows.ptr = item->rows;
    else rc = e->rows->sums(e->rows, &sums, &rows, &item->err);
    if (rc == WN_OK && projects) rc = project(e, rows, WN_ENCODE_BATCH_MAX, &rows, &item->err);
    if (rc != WN_OK) return rc;
    free(item->rows); /* projected: in backend memory now */
    if ((rc = make_room(item, rows.cols, rows.dtype)) != WN_OK) return rc;
    rc = e->be->ops->download(e->be, item->rows, rows.ptr, rows.rows * wn_mat_row_bytes(&rows));
    return rc == WN_OK ? rc : wn_fail(&item->err, rc, "%u visual tokens: %s", rows.rows, wn_status_name(rc));
}

static void prune_end(struct wn_encoder *e, struct picture *p)
{
    const int64_t began_us = wn_now_us();

    if (p->item->rc == WN_OK) p->item->rc = fetch(e, p);
    p->item->prune_us += (uint64_t)(wn_now_us() - began_us);
    wn_prune_out_fini(&p->kept);
}

/* Backend and projector are this thread's. Rows of the host are chosen among side by side; a device does one picture
 * after the other, all at once. */
static void prune(struct wn_encoder *e, struct picture **pictures, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) prune_begin(e, pictures[i], i);
    if (!e->rows) wn_pool_run(e->pool, prune_choose, pictures, n);
    for (uint32_t i = 0; i < n; i++) {
        if (e->rows) prune_choose(pictures, i);
        prune_end(e, pictures[i]);
    }
}

/* ---- encoding ---- */

static struct wn_vision_taps to_taps(const struct wn_prune_wants *w)
{
    return (struct wn_vision_taps){
        .cls_layers = w->cls_layers,
        .mean_layers = w->mean_layers,
        .keys_layers = w->keys_layers,
        .cls_features = w->cls_row,
        .stay = true,
    };
}

/* One encode of pictures whose pixels lie at the places 0 .. n - 1, with the taps that any of them wants. */
static void encode(struct wn_encoder *e, struct picture **pictures, uint32_t n)
{
    struct wn_prune_wants wants = {.cls_layers = e->kept_cls_layers};
    const int64_t began_us = wn_now_us();
    struct wn_vision_taps taps;
    struct wn_vision_out out;
    struct wn_err err = {0};
    uint64_t took_us;
    wn_status rc;

    if (n == 0) return;
    for (uint32_t i = 0; i < n; i++) wn_prune_wants_join(&wants, &pictures[i]->wants);
    taps = to_taps(&wants);
    rc = wn_vision_encode(e->tower, e->pixels, n, &taps, wn_deadline_in_us(ENCODE_TIMEOUT_US), &out, &err);
    took_us = (uint64_t)(wn_now_us() - began_us);
    for (uint32_t i = 0; i < n; i++) {
        pictures[i]->item->encode_us = took_us;
        pictures[i]->item->rc = rc;
        pictures[i]->item->err = err;
        if (rc == WN_OK) pictures[i]->view = view_of(&out, &taps, i);
    }
    if (rc != WN_OK) return;
    prune(e, pictures, n);
    for (uint32_t i = 0; i < n; i++) wn_vision_cache_put(e->cache, pictures[i]->key, &pictures[i]->view);
}

/* Is the picture in the cache with all that is wanted of it? What the cache lends is lent until an encode. */
static bool find(struct wn_encoder *e, struct picture *p)
{
    p->item->cached = wn_vision_cache_get(e->cache, p->key, &p->wants, &p->view);
    return p->item->cached;
}

/* What the picture's method wants of the tower. False: it cannot be had, and the item says why. */
static bool check(const struct wn_encoder *e, struct picture *p)
{
    const struct wn_prune_shape shape = wn_encoder_shape(&e->model);
    struct wn_prune_ask ask = p->item->ask;

    ask.projected = !in_tower(p->item); /* where the method itself works */
    p->item->rc = wn_prune_check(p->item->method, &ask, &shape, &p->item->err);
    if (p->item->rc == WN_OK) wn_prune_wants(p->item->method, &ask, shape.feature_layer, &p->wants);
    return p->item->rc == WN_OK;
}

void wn_encoder_run(struct wn_encoder *e, struct wn_encode_item *items, uint32_t n)
{
    struct picture pictures[WN_ENCODE_BATCH_MAX], *fresh[WN_ENCODE_BATCH_MAX], *cached[WN_ENCODE_BATCH_MAX];
    uint32_t fresh_n = 0, cached_n = 0, left = 0;

    WN_ASSERT(n <= WN_ENCODE_BATCH_MAX);
    for (uint32_t i = 0; i < n; i++) {
        struct picture *p = &pictures[i];
        *p = (struct picture){.item = &items[i]};
        if (!check(e, p)) continue;
        wn_sha256(p->file, items[i].file, items[i].file_bytes);
        if (wn_vision_cache_known(e->cache, p->file, p->key) && find(e, p)) cached[cached_n++] = p;
        else fresh[fresh_n++] = p;
    }
    preprocess(e, fresh, fresh_n);
    for (uint32_t i = 0; i < fresh_n; i++) {
        const float *pixels = e->pixels + i * e->image_floats;
        if (fresh[i]->item->rc != WN_OK) continue;
        if (find(e, fresh[i])) {
            cached[cached_n++] = fresh[i];
            continue;
        }
        if (left < i) memcpy(e->pixels + left * e->image_floats, pixels, e->image_floats * sizeof(float));
        fresh[left++] = fresh[i];
    }
    prune(e, cached, cached_n); /* first: an encode may take what the cache lends */
    encode(e, fresh, left);
}

/* ---- warm-up ---- */

/* All methods on the first picture of out, with few rows and many, projected or not: what they compare and make finds
 * its memory. What a method does not do is no matter. */
static wn_status warm_methods(struct wn_encoder *e, const struct wn_vision_out *out, const struct wn_vision_taps *taps,
                              struct wn_err *err)
{
    for (uint32_t i = 0; wn_prune_methods[i]; i++)
        for (uint32_t how = 0; how < 4; how++) {
            struct wn_encode_item item = {
                .method = wn_prune_methods[i],
                .ask = {.budget = {.keep = how % 2 ? out->rows / 2 : 0}, .projected = how / 2 != 0}};
            struct picture p = {.item = &item}, *one[] = {&p};
            if (!check(e, &p)) continue;
            p.view = view_of(out, taps, 0);
            prune(e, one, 1);
            wn_encode_item_fini(&item);
            if (item.rc == WN_ENOMEM || item.rc == WN_EDEVICE)
                return wn_fail(err, item.rc, "%s: %s", item.method->name, item.err.text);
        }
    return WN_OK;
}

/* The projector with every class of rows, in the memory of every place. */
static wn_status warm_projector(struct wn_encoder *e, const struct wn_vision_out *out, struct wn_err *err)
{
    struct wn_mat rows = {(void *)(uintptr_t)out->features, out->dtype, out->rows, out->width, out->width}, to;
    wn_status rc = WN_OK;
    uint32_t any = 1;

    for (uint32_t i = 0; rc == WN_OK && i <= WN_ENCODE_BATCH_MAX; i++) rc = project(e, rows, i, &to, err);
    for (uint32_t n = 1; rc == WN_OK && n < out->rows; n++) {
        e->be->ops->step_alike(e->be, &n, &any);
        rc = project(e, wn_mat_rows(rows, 0, n < out->rows ? n : out->rows), 0, &to, err);
    }
    return rc;
}

static wn_status warm_device(struct wn_encoder *e, struct wn_err *err)
{
    struct wn_prune_wants wants = {.cls_layers = e->kept_cls_layers};
    const int64_t began_us = wn_now_us();
    wn_status rc = WN_OK;

    for (uint32_t i = 0; wn_prune_methods[i]; i++) {
        struct wn_encode_item item = {.method = wn_prune_methods[i]};
        struct picture p = {.item = &item};
        if (check(e, &p)) wn_prune_wants_join(&wants, &p.wants);
    }
    for (uint32_t n = WN_ENCODE_BATCH_MAX; rc == WN_OK && n > 0; n--) { /* what mostly is tapped, and all that can be */
        const struct wn_prune_wants few = {.cls_layers = e->kept_cls_layers};
        const struct wn_vision_taps all = to_taps(&wants), some = to_taps(&few);
        const int64_t until_us = wn_deadline_in_us(ENCODE_TIMEOUT_US);
        struct wn_vision_out out;
        rc = wn_vision_encode(e->tower, e->pixels, n, &some, until_us, &out, err);
        if (rc == WN_OK) rc = wn_vision_encode(e->tower, e->pixels, n, &all, until_us, &out, err);
        if (rc == WN_OK && n == 1) rc = warm_methods(e, &out, &all, err);
        if (rc == WN_OK && n == 1) rc = warm_projector(e, &out, err);
    }
    if (rc == WN_OK)
        wn_info("vision", "warmed up in %.2f s: 1 to %d pictures", (double)(wn_now_us() - began_us) * 1e-6,
                WN_ENCODE_BATCH_MAX);
    return rc;
}

wn_status wn_encoder_warm_up(struct wn_encoder *e, struct wn_err *err)
{
    struct wn_vision_out out;

    memset(e->pixels, 0, e->image_floats * sizeof(float));
    if (e->be->ops->step_alike) return warm_device(e, err);
    return wn_vision_encode(e->tower, e->pixels, 1, NULL, wn_deadline_in_us(ENCODE_TIMEOUT_US), &out, err);
}
