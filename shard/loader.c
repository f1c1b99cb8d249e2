/* shard/loader.c - see loader.h. A list of entries by name. Lookups are linear: they happen while a tower or stage
 * binds its layers, not in a step. */
#include "shard/loader.h"

#include <stdlib.h>
#include <string.h>

#define PIECE ((size_t)1 << 20) /* bytes of rows that are converted at a time */

struct entry {
    char name[WN_NAME_MAX];
    wn_load_kind kind;
    struct wn_weight *weight;
    struct wn_buf buf; /* table or vector */
    struct wn_mat mat; /* table */
};

struct wn_loader {
    struct wn_backend *be;
    wn_dtype dtype;
    struct entry *entries;
    size_t entries_n, room;
    uint64_t bytes;
};

wn_status wn_loader_open(struct wn_loader **out, struct wn_backend *be, wn_dtype dtype,
                         struct wn_err *err)
{
    struct wn_loader *l;

    if (dtype != WN_F32 && dtype != WN_BF16)
        return wn_fail(err, WN_EUNSUPP,
                       "computing in %s is not supported; supported: float32, bfloat16",
                       wn_dtype_name(dtype));
    l = calloc(1, sizeof(*l));
    if (!l) return wn_fail(err, WN_ENOMEM, "loader");
    l->be = be;
    l->dtype = dtype;
    *out = l;
    return WN_OK;
}

void wn_loader_close(struct wn_loader *l)
{
    if (!l) return;
    for (size_t i = 0; i < l->entries_n; i++) {
        if (l->entries[i].weight) l->be->ops->weight_destroy(l->be, l->entries[i].weight);
        if (l->entries[i].buf.ptr) l->be->ops->buf_free(l->be, &l->entries[i].buf);
    }
    free(l->entries);
    free(l);
}

static wn_status entry_add(struct wn_loader *l, const char *key, wn_load_kind kind,
                           struct entry **out, struct wn_err *err)
{
    struct entry *e;

    if (l->entries_n == l->room) {
        size_t room = l->room ? 2 * l->room : 64;
        struct entry *grown = realloc(l->entries, room * sizeof(*grown));
        if (!grown) return wn_fail(err, WN_ENOMEM, "loader: %zu tensors", room);
        l->entries = grown;
        l->room = room;
    }
    e = &l->entries[l->entries_n++];
    memset(e, 0, sizeof(*e));
    snprintf(e->name, sizeof(e->name), "%s", key);
    e->kind = kind;
    *out = e;
    return WN_OK;
}

static float element(const void *p, wn_dtype t, size_t i)
{
    if (t == WN_F32) return ((const float *)p)[i];
    return t == WN_BF16 ? wn_bf16_to_f32(((const wn_bf16 *)p)[i])
                        : wn_f16_to_f32(((const uint16_t *)p)[i]);
}

/* Row r of `host` as type `as`. */
static void convert_row(void *out, const struct wn_mat *host, uint32_t r, wn_dtype as)
{
    const char *from = (const char *)host->ptr + r * wn_dtype_bytes(host->dtype) * (size_t)host->stride;

    if (host->dtype == as) memcpy(out, from, host->cols * wn_dtype_bytes(as));
    for (uint32_t c = 0; host->dtype != as && c < host->cols; c++) {
        float v = element(from, host->dtype, c);
        if (as == WN_F32)
            ((float *)out)[c] = v;
        else
            ((wn_bf16 *)out)[c] = wn_f32_to_bf16(v);
    }
}

/* Rows of `host` into backend memory as type `as`, packed: many at a time, for to a device each upload is a message. */
static wn_status upload_rows(struct wn_loader *l, struct entry *e, const struct wn_mat *host,
                             wn_dtype as, struct wn_err *err)
{
    const size_t row_bytes = (size_t)host->cols * wn_dtype_bytes(as);
    const bool whole = host->dtype == as && host->stride == host->cols;
    const uint32_t most = row_bytes < PIECE ? (uint32_t)(PIECE / (row_bytes ? row_bytes : 1)) : 1;
    char *rows = malloc(whole ? 1 : most * row_bytes + 1);
    wn_status rc = rows ? l->be->ops->buf_alloc(l->be, row_bytes * host->rows, &e->buf) : WN_ENOMEM;

    if (rc == WN_OK && whole) rc = l->be->ops->upload(l->be, e->buf.ptr, host->ptr, row_bytes * host->rows);
    for (uint32_t r = 0; rc == WN_OK && !whole && r < host->rows; r += most) {
        const uint32_t n = host->rows - r < most ? host->rows - r : most;
        for (uint32_t i = 0; i < n; i++) convert_row(rows + i * row_bytes, host, r + i, as);
        rc = l->be->ops->upload(l->be, (char *)e->buf.ptr + r * row_bytes, rows, n * row_bytes);
        /* The upload may be queued: the rows must not change before it is over. */
        if (rc == WN_OK) rc = l->be->ops->sync(l->be, WN_NEVER);
    }
    if (rc == WN_OK && whole) rc = l->be->ops->sync(l->be, WN_NEVER);
    free(rows);
    if (rc != WN_OK) return wn_fail(err, rc, "%s: %s", e->name, wn_status_name(rc));
    e->mat = (struct wn_mat){.ptr = e->buf.ptr,
                             .dtype = as,
                             .rows = host->rows,
                             .cols = host->cols,
                             .stride = host->cols};
    l->bytes += row_bytes * host->rows;
    return WN_OK;
}

static wn_status upload_matrix(struct wn_loader *l, struct entry *e, const struct wn_mat *host, uint32_t int8_slices,
                               struct wn_err *err)
{
    const struct wn_backend_ops *ops = l->be->ops;
    const size_t element = wn_dtype_bytes(int8_slices ? WN_I8 : l->dtype);
    wn_status rc;

    if (int8_slices == 0)
        rc = ops->weight_create(l->be, &e->weight, host, l->dtype);
    else
        rc = ops->weight_i8 ? ops->weight_i8(l->be, &e->weight, host, int8_slices) : WN_EUNSUPP;
    if (rc != WN_OK) return wn_fail(err, rc, "tensor '%s': %s", e->name, wn_status_name(rc));
    l->bytes += (uint64_t)host->rows * (host->cols * element + int8_slices * sizeof(float));
    return WN_OK;
}

static wn_status check_shape(const struct wn_load *want, const struct wn_tensor *t,
                             struct wn_err *err)
{
    uint64_t cols = 1;

    for (uint32_t i = 1; i < t->dims_n; i++)
        cols *= t->dims[i]; /* the file was checked: no overflow */
    if (t->dims_n == 0 || t->dims[0] != want->rows_all || cols != want->cols_all)
        return wn_fail(err, WN_EFORMAT, "%s: tensor '%s' is [%llu, %llu], expected [%u, %u]",
                       t->file, want->name, t->dims_n ? (unsigned long long)t->dims[0] : 0ull,
                       (unsigned long long)cols, want->rows_all, want->cols_all);
    return WN_OK;
}

static wn_status load_as(struct wn_loader *l, const struct wn_weights *w,
                         const struct wn_load *want, const char *key, struct wn_err *err)
{
    struct wn_range rows = want->rows.n ? want->rows : (struct wn_range){0, want->rows_all};
    struct wn_range cols = want->cols.n ? want->cols : (struct wn_range){0, want->cols_all};
    struct wn_tensor t;
    struct wn_mat host;
    struct entry *e = NULL;
    wn_status rc;

    if ((rc = wn_weights_find(w, want->name, &t, err)) != WN_OK) return rc;
    if ((rc = check_shape(want, &t, err)) != WN_OK || !l->be) return rc;
    WN_ASSERT((uint64_t)rows.first + rows.n <= want->rows_all &&
              (uint64_t)cols.first + cols.n <= want->cols_all);
    if ((rc = entry_add(l, key, want->kind, &e, err)) != WN_OK) return rc;
    host =
        (struct wn_mat){.dtype = t.dtype, .rows = rows.n, .cols = cols.n, .stride = want->cols_all};
    host.ptr = (char *)(uintptr_t)t.data +
               ((size_t)rows.first * want->cols_all + cols.first) * wn_dtype_bytes(t.dtype);
    if (want->kind == WN_LOAD_MATRIX) rc = upload_matrix(l, e, &host, want->int8_slices, err);
    else rc = upload_rows(l, e, &host, want->kind == WN_LOAD_VECTOR ? WN_F32 : l->dtype, err);
    wn_weights_release(&t);
    return rc;
}

wn_status wn_loader_load(struct wn_loader *l, const struct wn_weights *w,
                         const struct wn_load *want, struct wn_err *err)
{
    return load_as(l, w, want, want->name, err);
}

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);
    return n >= m && memcmp(s + n - m, end, m) == 0;
}

/* The whole shape of a tensor that a plan names: the plan says only which part of it a rank holds. */
static bool whole_shape(const struct wn_model *m, const char *name, uint32_t *rows, uint32_t *cols)
{
    const struct wn_text_config *t = &m->text;
    const struct {
        const char *end;
        uint32_t rows, cols;
    } shapes[] = {
        {"q_proj.weight", t->heads * t->head_dim, t->hidden},
        {"k_proj.weight", t->kv_heads * t->head_dim, t->hidden},
        {"v_proj.weight", t->kv_heads * t->head_dim, t->hidden},
        {"o_proj.weight", t->hidden, t->heads * t->head_dim},
        {"gate_proj.weight", t->mlp, t->hidden},
        {"up_proj.weight", t->mlp, t->hidden},
        {"down_proj.weight", t->hidden, t->mlp},
        {"norm.weight", t->hidden, 1},
        {"linear_1.weight", t->hidden, m->vision.hidden},
        {"linear_2.weight", t->hidden, t->hidden},
        {"linear_1.bias", t->hidden, 1},
        {"linear_2.bias", t->hidden, 1},
        {"embed_tokens.weight", t->vocab, t->hidden},
        {"lm_head.weight", t->vocab, t->hidden},
    };

    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        if (!ends_with(name, shapes[i].end)) continue;
        *rows = shapes[i].rows;
        *cols = shapes[i].cols;
        return true;
    }
    return false;
}

struct plan_load {
    struct wn_loader *l;
    const struct wn_weights *w;
    const struct wn_plan *plan;
    bool first, last; /* stage */
};

static wn_status load_slice(void *ctx, const struct wn_slice *s, struct wn_err *err)
{
    struct plan_load *p = ctx;
    const struct wn_model *m = &p->plan->model;
    struct wn_load want = {
        .name = s->name, .rows = s->rows, .cols = s->cols, .kind = WN_LOAD_MATRIX,
        .int8_slices = s->int8_slices};
    wn_status rc = WN_OK;

    if (!whole_shape(m, s->name, &want.rows_all, &want.cols_all))
        return wn_fail(err, WN_EUNSUPP, "tensor '%s': the decoder has no place for it", s->name);
    if (want.cols_all == 1) want.kind = WN_LOAD_VECTOR;
    if (s->rows.n == 0) return WN_OK; /* more ranks than rows of the vocabulary: nothing to hold */
    if (!ends_with(s->name, "embed_tokens.weight")) return load_as(p->l, p->w, &want, s->name, err);
    if (p->last && m->text.tied)
        rc = load_as(p->l, p->w, &want, "language_model.lm_head.weight", err);
    want.kind = WN_LOAD_TABLE;
    if (p->first && rc == WN_OK) rc = load_as(p->l, p->w, &want, s->name, err);
    return rc;
}

wn_status wn_loader_plan(struct wn_loader *l, const struct wn_weights *w,
                         const struct wn_plan *plan, uint32_t rank, struct wn_err *err)
{
    uint32_t stage = rank / plan->tensors;
    struct plan_load p = {
        .l = l, .w = w, .plan = plan, .first = stage == 0, .last = stage + 1 == plan->stages};

    return wn_plan_slices(plan, rank, load_slice, &p, err);
}

wn_status wn_loader_check(const struct wn_weights *w, const struct wn_plan *plan, struct wn_err *err)
{
    struct wn_loader *l = NULL;
    wn_status rc = wn_loader_open(&l, NULL, plan->dtype, err);

    for (uint32_t s = 0; rc == WN_OK && s < plan->stages; s++) /* whole shapes: one rank of a stage is enough */
        rc = wn_loader_plan(l, w, plan, wn_plan_rank(plan, s, 0), err);
    wn_loader_close(l);
    return rc;
}

static const struct entry *entry_find(const struct wn_loader *l, const char *name,
                                      wn_load_kind kind)
{
    for (size_t i = 0; i < l->entries_n; i++)
        if (l->entries[i].kind == kind && strcmp(l->entries[i].name, name) == 0)
            return &l->entries[i];
    return NULL;
}

const struct wn_weight *wn_loader_matrix(const struct wn_loader *l, const char *name)
{
    const struct entry *e = entry_find(l, name, WN_LOAD_MATRIX);
    return e ? e->weight : NULL;
}

const float *wn_loader_vector(const struct wn_loader *l, const char *name)
{
    const struct entry *e = entry_find(l, name, WN_LOAD_VECTOR);
    return e ? e->buf.ptr : NULL;
}

struct wn_mat wn_loader_table(const struct wn_loader *l, const char *name)
{
    const struct entry *e = entry_find(l, name, WN_LOAD_TABLE);
    return e ? e->mat : (struct wn_mat){.ptr = NULL};
}

uint64_t wn_loader_bytes(const struct wn_loader *l)
{
    return l->bytes;
}
