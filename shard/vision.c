/* shard/vision.c - see vision.h. The patch embedding is a matmul over patches laid out as rows (the convolution has no
 * bias and its stride is the kernel). Queries, keys and values share one buffer [rows, 3 * hidden] and are views of its
 * columns. */
#include "shard/vision.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shard/loader.h"

#define PREFIX   "vision_tower.vision_model."
#define BUFS_MAX 16

struct linear {
    const struct wn_weight *w;
    const float *bias;
};

struct layer {
    const float *norm1[2], *norm2[2]; /* weight, bias */
    struct linear q, k, v, o, fc1, fc2;
};

/* Float32 values of some layers, in their order; memory grows, never shrinks. */
struct tap {
    struct wn_buf buf;
    float *host;
    size_t room, n; /* floats: that fit; that this encode has made so far */
};

struct wn_vision {
    struct wn_backend *be;
    struct wn_vision_config c;
    wn_dtype dtype;
    uint32_t images_max, tokens, patch_cols; /* patch_cols: 3 * patch_side^2 */
    struct wn_loader *loader;
    struct layer
        *layers; /* [layers_n]: layers_run, and one more if the model has it (only norm1, q, k) */
    uint32_t layers_n;
    const struct wn_weight *patch;
    const float *pre[2];
    struct wn_mat cls, positions; /* [1, hidden], [tokens, hidden] */
    struct wn_buf bufs[BUFS_MAX];
    uint32_t bufs_n;
    struct wn_mat pixels, patches;           /* [images * patches, patch_cols]: float32, dtype */
    struct wn_mat x, normed, qkv, attn, mid; /* [images * tokens, ...] */
    struct wn_mat features, cls_features;    /* [images * rows, hidden], [images, hidden] */
    struct tap cls_tap, mean_tap, keys_tap, query_tap;
    uint32_t *zeros, *cls_rows; /* [images] row numbers: 0; the CLS row of each image */
    float *im2col;              /* host */
    void *host_features, *host_cls_features;
};

static wn_status mat_alloc(struct wn_vision *v, struct wn_mat *out, uint32_t rows, uint32_t cols,
                           wn_dtype dtype, struct wn_err *err)
{
    wn_status rc;

    WN_ASSERT(v->bufs_n < BUFS_MAX);
    rc = v->be->ops->buf_alloc(v->be, (size_t)rows * cols * wn_dtype_bytes(dtype),
                               &v->bufs[v->bufs_n]);
    if (rc != WN_OK)
        return wn_fail(err, rc, "vision tower: matrix [%u, %u]: %s", rows, cols,
                       wn_status_name(rc));
    *out = (struct wn_mat){v->bufs[v->bufs_n++].ptr, dtype, rows, cols, cols};
    return WN_OK;
}

/* Loading: the first failure sticks, so that the list of tensors reads as a list. It is read twice: first all are noted
 * and fetched together, and then they are bound to their places. */
struct load {
    struct wn_vision *v;
    const struct wn_weights *w;
    struct wn_err *err;
    wn_status rc;
    bool bind;
    char name[WN_NAME_MAX];
};

static const char *load(struct load *l, wn_load_kind kind, uint32_t rows, uint32_t cols,
                        const char *name)
{
    struct wn_load want = {.name = l->name, .rows_all = rows, .cols_all = cols, .kind = kind};

    if (l->rc != WN_OK) return NULL;
    snprintf(l->name, sizeof(l->name), PREFIX "%s", name);
    if (!l->bind) l->rc = wn_loader_want(l->v->loader, l->w, &want, l->err);
    return l->rc == WN_OK ? l->name : NULL;
}

static const float *load_vector(struct load *l, uint32_t n, const char *name)
{
    const char *key = load(l, WN_LOAD_VECTOR, n, 1, name);
    return key ? wn_loader_vector(l->v->loader, key) : NULL;
}

static void load_norm(struct load *l, const float *out[2], const char *name)
{
    char part[WN_NAME_MAX];

    snprintf(part, sizeof(part), "%s.weight", name);
    out[0] = load_vector(l, l->v->c.hidden, part);
    snprintf(part, sizeof(part), "%s.bias", name);
    out[1] = load_vector(l, l->v->c.hidden, part);
}

static struct linear load_linear(struct load *l, uint32_t out, uint32_t in, uint32_t layer,
                                 const char *name)
{
    char part[WN_NAME_MAX];
    struct linear r = {NULL, NULL};
    const char *key;

    snprintf(part, sizeof(part), "encoder.layers.%u.%s.weight", layer, name);
    if ((key = load(l, WN_LOAD_MATRIX, out, in, part))) r.w = wn_loader_matrix(l->v->loader, key);
    snprintf(part, sizeof(part), "encoder.layers.%u.%s.bias", layer, name);
    r.bias = load_vector(l, out, part);
    return r;
}

static void load_layer(struct load *l, uint32_t i, bool run)
{
    const struct wn_vision_config *c = &l->v->c;
    struct layer *y = &l->v->layers[i];
    char part[64];

    snprintf(part, sizeof(part), "encoder.layers.%u.layer_norm1", i);
    load_norm(l, y->norm1, part);
    y->q = load_linear(l, c->hidden, c->hidden, i, "self_attn.q_proj");
    y->k = load_linear(l, c->hidden, c->hidden, i, "self_attn.k_proj");
    if (!run) return;
    snprintf(part, sizeof(part), "encoder.layers.%u.layer_norm2", i);
    load_norm(l, y->norm2, part);
    y->v = load_linear(l, c->hidden, c->hidden, i, "self_attn.v_proj");
    y->o = load_linear(l, c->hidden, c->hidden, i, "self_attn.out_proj");
    y->fc1 = load_linear(l, c->mlp, c->hidden, i, "mlp.fc1");
    y->fc2 = load_linear(l, c->hidden, c->mlp, i, "mlp.fc2");
}

static void load_list(struct load *l)
{
    struct wn_vision *v = l->v;
    const struct wn_vision_config *c = &v->c;
    const char *key;

    /* The class embedding is a vector in the file; as a table of one row it keeps the type of the tokens. */
    if ((key = load(l, WN_LOAD_TABLE, c->hidden, 1, "embeddings.class_embedding"))) {
        struct wn_mat t = wn_loader_table(v->loader, key);
        v->cls = (struct wn_mat){t.ptr, t.dtype, 1, c->hidden, c->hidden};
    }
    if ((key = load(l, WN_LOAD_MATRIX, c->hidden, v->patch_cols, "embeddings.patch_embedding.weight")))
        v->patch = wn_loader_matrix(v->loader, key);
    if ((key = load(l, WN_LOAD_TABLE, v->tokens, c->hidden, "embeddings.position_embedding.weight")))
        v->positions = wn_loader_table(v->loader, key);
    load_norm(l, v->pre, "pre_layrnorm"); /* the name in every CLIP checkpoint */
    for (uint32_t i = 0; i < v->layers_n; i++) load_layer(l, i, i < c->layers_run);
}

static wn_status load_all(struct wn_vision *v, const struct wn_weights *w, struct wn_err *err)
{
    struct load l = {.v = v, .w = w, .err = err, .rc = WN_OK};

    load_list(&l);
    if (l.rc == WN_OK) l.rc = wn_loader_fetch(v->loader, w, err);
    l.bind = true;
    if (l.rc == WN_OK) load_list(&l);
    return l.rc;
}

static uint32_t feature_rows(const struct wn_vision *v)
{
    return v->c.patches + (v->c.keep_cls ? 1 : 0);
}

static wn_status scratch_alloc(struct wn_vision *v, struct wn_err *err)
{
    const struct wn_vision_config *c = &v->c;
    uint32_t n = v->images_max, rows = n * v->tokens;
    wn_status rc = WN_OK;

    if ((rc = mat_alloc(v, &v->pixels, n * c->patches, v->patch_cols, WN_F32, err)) != WN_OK ||
        (rc = mat_alloc(v, &v->patches, n * c->patches, (v->patch_cols + 7) / 8 * 8, v->dtype, err)) != WN_OK ||
        (rc = mat_alloc(v, &v->x, rows, c->hidden, v->dtype, err)) != WN_OK ||
        (rc = mat_alloc(v, &v->normed, rows, c->hidden, v->dtype, err)) != WN_OK ||
        (rc = mat_alloc(v, &v->qkv, rows, 3 * c->hidden, v->dtype, err)) != WN_OK ||
        (rc = mat_alloc(v, &v->attn, rows, c->hidden, v->dtype, err)) != WN_OK ||
        (rc = mat_alloc(v, &v->mid, rows, c->mlp, v->dtype, err)) != WN_OK ||
        (rc = mat_alloc(v, &v->features, n * feature_rows(v), c->hidden, v->dtype, err)) != WN_OK ||
        (rc = mat_alloc(v, &v->cls_features, n, c->hidden, v->dtype, err)) != WN_OK)
        return rc;
    v->patches.cols = v->patch_cols; /* its rows begin on 16 bytes, which fast kernels want: 588 values do not */
    v->zeros = calloc(n, sizeof(*v->zeros));
    v->cls_rows = calloc(n, sizeof(*v->cls_rows));
    v->im2col = malloc((size_t)n * c->patches * v->patch_cols * sizeof(float));
    v->host_features = malloc((size_t)n * feature_rows(v) * c->hidden * wn_dtype_bytes(v->dtype));
    v->host_cls_features = malloc((size_t)n * c->hidden * wn_dtype_bytes(v->dtype));
    if (!v->zeros || !v->cls_rows || !v->im2col || !v->host_features || !v->host_cls_features)
        return wn_fail(err, WN_ENOMEM, "vision tower: scratch for %u images", n);
    for (uint32_t i = 0; i < n; i++) v->cls_rows[i] = i * v->tokens;
    return WN_OK;
}

/* be NULL: for a check. */
static wn_status tower_make(struct wn_vision **out, struct wn_backend *be, const struct wn_model *model,
                            const struct wn_weights *weights, wn_dtype dtype, uint32_t images_max, struct wn_err *err)
{
    const struct wn_vision_config *c = &model->vision;
    struct wn_vision *v = NULL;
    wn_status rc;

    if (images_max == 0 || (uint64_t)images_max * (c->patches + 1) > 1u << 24)
        return wn_fail(err, WN_EINVAL, "vision tower: %u images at once", images_max);
    if (c->layers_run > c->layers || c->heads * c->head_dim != c->hidden)
        return wn_fail(err, WN_EUNSUPP, "vision tower: %u of %u layers, %u heads of %u in a width of %u",
                       c->layers_run, c->layers, c->heads, c->head_dim, c->hidden);
    v = calloc(1, sizeof(*v));
    if (!v) return wn_fail(err, WN_ENOMEM, "vision tower");
    v->be = be;
    v->c = *c;
    v->dtype = dtype;
    v->images_max = images_max;
    v->tokens = c->patches + 1;
    v->patch_cols = 3 * c->patch_side * c->patch_side;
    v->layers_n = c->layers_run + (c->layers_run < c->layers ? 1 : 0);
    v->layers = calloc(v->layers_n ? v->layers_n : 1, sizeof(*v->layers));
    rc = v->layers ? WN_OK : wn_fail(err, WN_ENOMEM, "vision tower: %u layers", v->layers_n);
    if (rc == WN_OK) rc = wn_loader_open(&v->loader, be, dtype, err);
    if (rc == WN_OK) rc = load_all(v, weights, err);
    *out = v;
    return rc;
}

wn_status wn_vision_open(struct wn_vision **out, struct wn_backend *be,
                         const struct wn_model *model, const struct wn_weights *weights,
                         wn_dtype dtype, uint32_t images_max, struct wn_err *err)
{
    struct wn_vision *v = NULL;
    wn_status rc = tower_make(&v, be, model, weights, dtype, images_max, err);

    if (rc == WN_OK) rc = scratch_alloc(v, err);
    if (rc != WN_OK) {
        wn_vision_close(v);
        return rc;
    }
    *out = v;
    return WN_OK;
}

wn_status wn_vision_check(const struct wn_model *model, const struct wn_weights *weights, struct wn_err *err)
{
    struct wn_vision *v = NULL;
    wn_status rc = tower_make(&v, NULL, model, weights, WN_F32, 1, err);

    wn_vision_close(v);
    return rc;
}

static void tap_fini(struct wn_vision *v, struct tap *t)
{
    if (t->buf.ptr) v->be->ops->buf_free(v->be, &t->buf);
    free(t->host);
    *t = (struct tap){.host = NULL};
}

void wn_vision_close(struct wn_vision *v)
{
    if (!v) return;
    for (uint32_t i = 0; i < v->bufs_n; i++) v->be->ops->buf_free(v->be, &v->bufs[i]);
    tap_fini(v, &v->cls_tap);
    tap_fini(v, &v->mean_tap);
    tap_fini(v, &v->keys_tap);
    tap_fini(v, &v->query_tap);
    wn_loader_close(v->loader);
    free(v->layers);
    free(v->zeros);
    free(v->cls_rows);
    free(v->im2col);
    free(v->host_features);
    free(v->host_cls_features);
    free(v);
}

/* out row (image, py, px) = the patch's values in the kernel's order: channel, y, x. */
static void lay_patches(const struct wn_vision *v, const float *pixels, uint32_t images)
{
    uint32_t side = v->c.image_side, p = v->c.patch_side, across = side / p;
    float *out = v->im2col;

    for (uint32_t i = 0; i < images; i++)
        for (uint32_t py = 0; py < across; py++)
            for (uint32_t px = 0; px < across; px++)
                for (uint32_t ch = 0; ch < 3; ch++)
                    for (uint32_t y = 0; y < p; y++, out += p)
                        memcpy(out,
                               pixels + (((size_t)i * 3 + ch) * side + py * p + y) * side +
                                   (size_t)px * p,
                               p * sizeof(float));
}

static struct wn_matmul product(struct wn_mat out, struct wn_mat x, struct linear y, wn_act act)
{
    return (struct wn_matmul){.out = out, .x = x, .w = y.w, .bias = y.bias, .slices = 1, .act = act};
}

static wn_status linear(struct wn_vision *v, struct wn_mat out, struct wn_mat x, struct linear y,
                        wn_act act)
{
    const struct wn_matmul m = product(out, x, y, act);
    return wn_be_matmul(v->be, &m);
}

static struct wn_norm norm_of(const struct wn_vision *v, struct wn_mat out, struct wn_mat x,
                              const float *const weight[2])
{
    return (struct wn_norm){.out = out, .x = x, .weight = weight[0], .bias = weight[1], .eps = v->c.eps};
}

static wn_status layer_norm(struct wn_vision *v, struct wn_mat out, struct wn_mat x,
                            const float *const weight[2])
{
    const struct wn_norm n = norm_of(v, out, x, weight);
    return wn_be_norm(v->be, &n);
}

/* x += y; then y becomes the norm of x, if there is one. */
static wn_status add_norm(struct wn_vision *v, struct wn_mat x, struct wn_mat y, const float *const *weight)
{
    if (!weight) return wn_be_add(v->be, &x, &x, &y);
    const struct wn_norm n = norm_of(v, y, x, weight);
    return wn_be_add_norm(v->be, &y, &n);
}

/* Pixels to hidden state 0: CLS and patches, plus positions, normalised. */
static wn_status embed(struct wn_vision *v, const float *pixels, uint32_t images)
{
    const struct wn_vision_config *c = &v->c;
    struct wn_mat raw = wn_mat_rows(v->pixels, 0, images * c->patches);
    struct wn_mat patches = wn_mat_rows(v->patches, 0, images * c->patches);
    struct wn_mat x = wn_mat_rows(v->x, 0, images * v->tokens);
    wn_status rc;

    lay_patches(v, pixels, images);
    rc = v->be->ops->upload(v->be, raw.ptr, v->im2col, (size_t)raw.rows * raw.cols * sizeof(float));
    if (rc == WN_OK) rc = wn_be_convert(v->be, &patches, &raw);
    for (uint32_t i = 0; rc == WN_OK && i < images; i++) {
        struct wn_mat all = wn_mat_rows(x, i * v->tokens, v->tokens),
                      first = wn_mat_rows(all, 0, 1);
        struct linear conv = {v->patch, NULL};
        rc = linear(v, wn_mat_rows(all, 1, c->patches),
                    wn_mat_rows(patches, i * c->patches, c->patches), conv, WN_ACT_NONE);
        if (rc == WN_OK) rc = wn_be_gather_rows(v->be, &first, &v->cls, v->zeros);
        if (rc == WN_OK) rc = wn_be_add(v->be, &all, &all, &v->positions);
    }
    if (rc == WN_OK) rc = layer_norm(v, x, x, v->pre);
    return rc;
}

/* Where the next layer's n values of a tap go, backend memory. */
static float *tap_next(struct tap *t, size_t n)
{
    float *at = (float *)t->buf.ptr + t->n;
    t->n += n;
    return at;
}

static struct wn_mat tap_rows(const struct wn_vision *v, struct tap *t, uint32_t rows)
{
    const uint32_t hidden = v->c.hidden;
    return (struct wn_mat){tap_next(t, (size_t)rows * hidden), WN_F32, rows, hidden, hidden};
}

/* A layer's keys, and its queries of CLS: those rows of q (cls NULL: all). Float32, as the tower computed them. */
static wn_status tap_keys(struct wn_vision *v, uint32_t images, struct wn_mat q, const uint32_t *cls, struct wn_mat k)
{
    struct wn_mat keys = tap_rows(v, &v->keys_tap, images * v->tokens), query = tap_rows(v, &v->query_tap, images);
    wn_status rc = wn_be_convert(v->be, &keys, &k);

    if (rc == WN_OK) rc = cls ? wn_be_gather_rows(v->be, &query, &q, cls) : wn_be_convert(v->be, &query, &q);
    return rc;
}

static bool asked(uint64_t layers, uint32_t i)
{
    return i < 64 && (layers >> i & 1);
}

/* `normed` has the layer's first norm already, and gets that of the next one, if it is wanted. */
static wn_status run_layer(struct wn_vision *v, uint32_t i, uint32_t images, const struct wn_vision_taps *want,
                           const float *const *next_norm)
{
    const struct wn_vision_config *c = &v->c;
    const struct layer *y = &v->layers[i];
    uint32_t rows = images * v->tokens;
    struct wn_mat x = wn_mat_rows(v->x, 0, rows), normed = wn_mat_rows(v->normed, 0, rows);
    struct wn_mat qkv = wn_mat_rows(v->qkv, 0, rows), mid = wn_mat_rows(v->mid, 0, rows);
    struct wn_attn_full a = {.out = wn_mat_rows(v->attn, 0, rows),
                             .q = wn_mat_cols(qkv, 0, c->hidden),
                             .k = wn_mat_cols(qkv, c->hidden, c->hidden),
                             .v = wn_mat_cols(qkv, 2 * c->hidden, c->hidden),
                             .images = images,
                             .tokens = v->tokens,
                             .heads = c->heads,
                             .head_dim = c->head_dim};
    const struct wn_matmul qkv_of[] = {product(a.q, normed, y->q, WN_ACT_NONE), product(a.k, normed, y->k, WN_ACT_NONE),
                                       product(a.v, normed, y->v, WN_ACT_NONE)};
    wn_status rc;

    a.scale = 1.0f / __builtin_sqrtf((float)c->head_dim);
    if (asked(want->cls_layers, i)) a.cls_rows = tap_next(&v->cls_tap, (size_t)images * c->heads * v->tokens);
    if (asked(want->mean_layers, i)) a.mean_cols = tap_next(&v->mean_tap, rows);
    rc = wn_be_matmuls(v->be, qkv_of, 3);
    if (rc == WN_OK && asked(want->keys_layers, i)) rc = tap_keys(v, images, a.q, v->cls_rows, a.k);
    if (rc == WN_OK) rc = wn_be_attn_full(v->be, &a);
    if (rc == WN_OK) rc = linear(v, normed, a.out, y->o, WN_ACT_NONE);
    if (rc == WN_OK) rc = add_norm(v, x, normed, y->norm2);
    if (rc == WN_OK) rc = linear(v, mid, normed, y->fc1, c->act);
    if (rc == WN_OK) rc = linear(v, normed, mid, y->fc2, WN_ACT_NONE);
    if (rc == WN_OK) rc = add_norm(v, x, normed, next_norm);
    return rc;
}

/* The keys of the layer that would come next, whose first norm is there: queries are needed for the CLS rows only. */
static wn_status next_layer_keys(struct wn_vision *v, uint32_t images)
{
    const struct layer *y = &v->layers[v->c.layers_run];
    uint32_t rows = images * v->tokens, hidden = v->c.hidden;
    struct wn_mat normed = wn_mat_rows(v->normed, 0, rows);
    struct wn_mat k = wn_mat_cols(wn_mat_rows(v->qkv, 0, rows), hidden, hidden);
    struct wn_mat cls = wn_mat_rows(v->attn, 0, images), q = wn_mat_cols(wn_mat_rows(v->qkv, 0, images), 0, hidden);
    wn_status rc = linear(v, k, normed, y->k, WN_ACT_NONE);

    if (rc == WN_OK) rc = wn_be_gather_rows(v->be, &cls, &normed, v->cls_rows);
    if (rc == WN_OK) rc = linear(v, q, cls, y->q, WN_ACT_NONE);
    if (rc == WN_OK) rc = tap_keys(v, images, q, NULL, k);
    return rc;
}

/* Room for n floats on the backend and on the host, and none of them made. */
static wn_status tap_init(struct wn_vision *v, struct tap *t, size_t n, struct wn_err *err)
{
    t->n = 0;
    if (n <= t->room) return WN_OK;
    tap_fini(v, t);
    t->host = malloc(n * sizeof(float));
    if (!t->host || v->be->ops->buf_alloc(v->be, n * sizeof(float), &t->buf) != WN_OK)
        return wn_fail(err, WN_ENOMEM, "vision tower: taps of %zu floats", n);
    t->room = n;
    return WN_OK;
}

static wn_status taps_init(struct wn_vision *v, const struct wn_vision_taps *want, uint32_t images, struct wn_err *err)
{
    const uint64_t run = v->c.layers_run >= 64 ? UINT64_MAX : ((uint64_t)1 << v->c.layers_run) - 1;
    const uint64_t known = v->layers_n >= 64 ? UINT64_MAX : ((uint64_t)1 << v->layers_n) - 1;
    const size_t rows = (size_t)images * v->tokens, hidden = v->c.hidden;
    const size_t keys_n = (size_t)__builtin_popcountll(want->keys_layers);
    wn_status rc;

    if (((want->cls_layers | want->mean_layers) & ~run) || (want->keys_layers & ~known))
        return wn_fail(err, WN_EINVAL, "vision tower: a tap of a layer that is not run (%u layers are)",
                       v->c.layers_run);
    rc = tap_init(v, &v->cls_tap, (size_t)__builtin_popcountll(want->cls_layers) * v->c.heads * rows, err);
    if (rc == WN_OK) rc = tap_init(v, &v->mean_tap, (size_t)__builtin_popcountll(want->mean_layers) * rows, err);
    if (rc == WN_OK) rc = tap_init(v, &v->keys_tap, keys_n * rows * hidden, err);
    if (rc == WN_OK) rc = tap_init(v, &v->query_tap, keys_n * images * hidden, err);
    return rc;
}

/* *out: the values, on the host unless they stay; NULL if there are none. */
static wn_status tap_fetch(struct wn_vision *v, const struct tap *t, bool stay, const float **out)
{
    *out = !t->n ? NULL : stay ? t->buf.ptr : t->host;
    return t->n && !stay ? v->be->ops->download(v->be, t->host, t->buf.ptr, t->n * sizeof(float)) : WN_OK;
}

/* The features that were asked for, one after the other, and what was tapped. */
static wn_status fetch(struct wn_vision *v, uint32_t images, const struct wn_vision_taps *want,
                       struct wn_vision_out *out)
{
    const uint32_t rows = feature_rows(v), first = v->c.keep_cls ? 0 : 1;
    const struct wn_mat cls = wn_mat_rows(v->cls_features, 0, images), all = wn_mat_rows(v->x, 0, images * v->tokens);
    const struct wn_backend_ops *ops = v->be->ops;
    wn_status rc = WN_OK;

    *out = (struct wn_vision_out){.features = want->stay ? v->features.ptr : v->host_features,
                                  .images = images,
                                  .rows = rows,
                                  .width = v->c.hidden,
                                  .tokens = v->tokens,
                                  .heads = v->c.heads,
                                  .dtype = v->dtype};
    for (uint32_t i = 0; rc == WN_OK && i < images; i++) {
        struct wn_mat from = wn_mat_rows(v->x, i * v->tokens + first, rows),
                      to = wn_mat_rows(v->features, i * rows, rows);
        rc = wn_be_convert(v->be, &to, &from);
    }
    if (rc == WN_OK && !want->stay)
        rc = ops->download(v->be, v->host_features, v->features.ptr, images * rows * wn_mat_row_bytes(&v->features));
    if (want->cls_features) {
        out->cls_features = want->stay ? cls.ptr : v->host_cls_features;
        if (rc == WN_OK) rc = wn_be_gather_rows(v->be, &cls, &all, v->cls_rows);
        if (rc == WN_OK && !want->stay)
            rc = ops->download(v->be, v->host_cls_features, cls.ptr, images * wn_mat_row_bytes(&cls));
    }
    if (rc == WN_OK) rc = tap_fetch(v, &v->cls_tap, false, &out->cls_attention);
    if (rc == WN_OK) rc = tap_fetch(v, &v->mean_tap, false, &out->mean_attention);
    if (rc == WN_OK) rc = tap_fetch(v, &v->keys_tap, want->stay, &out->keys);
    if (rc == WN_OK) rc = tap_fetch(v, &v->query_tap, want->stay, &out->cls_query);
    return rc;
}

wn_status wn_vision_encode(struct wn_vision *v, const float *pixels, uint32_t images,
                           const struct wn_vision_taps *want, int64_t deadline_us,
                           struct wn_vision_out *out, struct wn_err *err)
{
    const struct wn_vision_taps none = {0};
    uint32_t norms = v->c.layers_run; /* layers whose first norm is wanted */
    wn_status rc;

    if (!want) want = &none;
    if (images == 0 || images > v->images_max)
        return wn_fail(err, WN_ELIMIT, "vision tower: %u images at once, limit %u", images,
                       v->images_max);
    if ((rc = taps_init(v, want, images, err)) != WN_OK) return rc;
    if (asked(want->keys_layers, v->c.layers_run)) norms++;
    rc = embed(v, pixels, images);
    if (rc == WN_OK && norms > 0)
        rc = layer_norm(v, wn_mat_rows(v->normed, 0, images * v->tokens), wn_mat_rows(v->x, 0, images * v->tokens),
                        v->layers[0].norm1);
    for (uint32_t i = 0; rc == WN_OK && i < v->c.layers_run; i++)
        rc = wn_deadline_passed(deadline_us)
                 ? WN_ETIME
                 : run_layer(v, i, images, want, i + 1 < norms ? v->layers[i + 1].norm1 : NULL);
    if (rc == WN_OK && norms > v->c.layers_run) rc = next_layer_keys(v, images);
    if (rc == WN_OK && want->stay) rc = v->be->ops->sync(v->be, deadline_us); /* or the next one would wait for it */
    if (rc == WN_OK) rc = fetch(v, images, want, out);
    return rc == WN_OK ? rc : wn_fail(err, rc, "vision tower: %s", wn_status_name(rc));
}
