/* shard/loader.c - see loader.h. A list of entries by name. Lookups are linear: they happen while a tower or stage
 * binds its layers, not in a step. */
#include "shard/loader.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"

#define PIECE ((size_t)1 << 20) /* bytes of rows that are converted at a time */
#define BLOCK ((size_t)8 << 20) /* bytes of a file that are read as one */

struct entry {
    char name[WN_NAME_MAX];
    wn_load_kind kind;
    struct wn_weight *weight;
    struct wn_buf buf; /* table or vector */
    struct wn_mat mat; /* table */
    struct wn_tensor from; /* until it is fetched */
    struct wn_range rows, cols;
    uint32_t cols_all, int8_slices;
};

struct wn_loader {
    struct wn_backend *be;
    wn_dtype dtype;
    struct entry *entries;
    size_t entries_n, fetched_n, room; /* entries from fetched_n on are wanted */
    uint64_t bytes;
    struct wn_load_rate rate;
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

static wn_status want_as(struct wn_loader *l, const struct wn_weights *w, const struct wn_load *want, const char *key,
                         struct wn_err *err)
{
    struct wn_tensor t;
    struct entry *e = NULL;
    wn_status rc;

    if ((rc = wn_weights_find(w, want->name, &t, err)) != WN_OK) return rc;
    if ((rc = check_shape(want, &t, err)) != WN_OK || !l->be) return rc;
    if ((rc = entry_add(l, key, want->kind, &e, err)) != WN_OK) return rc;
    e->from = t;
    e->rows = want->rows.n ? want->rows : (struct wn_range){0, want->rows_all};
    e->cols = want->cols.n ? want->cols : (struct wn_range){0, want->cols_all};
    e->cols_all = want->cols_all;
    e->int8_slices = want->int8_slices;
    WN_ASSERT((uint64_t)e->rows.first + e->rows.n <= want->rows_all &&
              (uint64_t)e->cols.first + e->cols.n <= want->cols_all);
    return WN_OK;
}

wn_status wn_loader_want(struct wn_loader *l, const struct wn_weights *w, const struct wn_load *want,
                         struct wn_err *err)
{
    return want_as(l, w, want, want->name, err);
}

/* ---- fetching ---- */

/* The type that an entry is kept in. */
static wn_dtype kept_as(const struct wn_loader *l, const struct entry *e)
{
    if (e->int8_slices) return WN_I8;
    return e->kind == WN_LOAD_VECTOR ? WN_F32 : l->dtype;
}

/* Does the backend take the rows of this one in blocks? */
static bool in_blocks(const struct wn_loader *l, const struct entry *e)
{
    const struct wn_backend_ops *ops = l->be->ops;

    if (e->kind != WN_LOAD_MATRIX) return true;
    return e->int8_slices ? ops->weight_i8_rows != NULL : ops->weight_rows != NULL;
}

/* Rows that are read, and given to the backend, as one. */
static uint32_t block_rows(const struct wn_loader *l, const struct entry *e)
{
    const size_t step = (size_t)e->cols_all * wn_dtype_bytes(e->from.dtype);
    size_t rows = BLOCK / step / WN_WEIGHT_ROWS * WN_WEIGHT_ROWS;

    if (!in_blocks(l, e)) return e->rows.n;
    if (rows < WN_WEIGHT_ROWS) rows = WN_WEIGHT_ROWS;
    return rows < e->rows.n ? (uint32_t)rows : e->rows.n;
}

/* Room for the entry, whose rows follow; or with `whole` all of it. */
static wn_status make_room(struct wn_loader *l, struct entry *e, const void *whole, size_t stride, struct wn_err *err)
{
    const struct wn_backend_ops *ops = l->be->ops;
    const struct wn_mat host = {(void *)(uintptr_t)whole, e->from.dtype, e->rows.n, e->cols.n, (uint32_t)stride};
    const wn_dtype as = kept_as(l, e);
    const size_t bytes = (size_t)e->rows.n * e->cols.n * wn_dtype_bytes(as);
    wn_status rc;

    if (e->kind != WN_LOAD_MATRIX) {
        rc = ops->buf_alloc(l->be, bytes, &e->buf);
        e->mat = (struct wn_mat){e->buf.ptr, as, e->rows.n, e->cols.n, e->cols.n};
    } else if (e->int8_slices == 0) {
        rc = ops->weight_create(l->be, &e->weight, &host, as);
    } else {
        rc = ops->weight_i8(l->be, &e->weight, &host, e->int8_slices);
    }
    if (rc != WN_OK) return wn_fail(err, rc, "tensor '%s': %s", e->name, wn_status_name(rc));
    l->bytes += bytes + (uint64_t)e->int8_slices * e->rows.n * sizeof(float);
    return WN_OK;
}

/* Rows [first, first + host->rows) of a table or a vector: many at a time, for to a device each upload is a message. */
static wn_status upload_rows(struct wn_loader *l, struct entry *e, uint32_t first, const struct wn_mat *host)
{
    const struct wn_backend_ops *ops = l->be->ops;
    const wn_dtype as = e->mat.dtype;
    const size_t row_bytes = (size_t)host->cols * wn_dtype_bytes(as);
    const uint32_t most = row_bytes < PIECE ? (uint32_t)(PIECE / row_bytes) : 1;
    char *to = (char *)e->buf.ptr + first * row_bytes, *rows;
    wn_status rc = WN_OK;

    if (host->dtype == as && host->stride == host->cols)
        return ops->upload(l->be, to, host->ptr, row_bytes * host->rows);
    rows = malloc((most < host->rows ? most : host->rows) * row_bytes);
    if (!rows) return WN_ENOMEM;
    for (uint32_t r = 0; rc == WN_OK && r < host->rows; r += most) {
        const uint32_t n = host->rows - r < most ? host->rows - r : most;
        for (uint32_t i = 0; i < n; i++) convert_row(rows + i * row_bytes, host, r + i, as);
        rc = ops->upload(l->be, to + r * row_bytes, rows, n * row_bytes);
        /* The upload may be queued: the rows must not change before it is over. */
        if (rc == WN_OK) rc = ops->sync(l->be, WN_NEVER);
    }
    free(rows);
    return rc;
}

/* A piece is part of an entry. */
struct part {
    struct entry *e;
    uint32_t first; /* row, of the entry */
};

struct fetch {
    struct wn_reader_file *files;
    struct wn_piece *pieces;
    struct part *parts; /* [pieces_n] */
    size_t files_n, pieces_n;
    struct wn_reader *reader;
    uint32_t lent; /* pieces that copies may still be reading */
};

static void add_pieces(struct wn_loader *l, struct entry *e, struct fetch *f)
{
    const size_t element = wn_dtype_bytes(e->from.dtype), step = (size_t)e->cols_all * element;
    const uint32_t most = block_rows(l, e);

    for (uint32_t r = 0; r < e->rows.n; r += most) {
        const uint64_t row = (uint64_t)e->rows.first + r;
        f->parts[f->pieces_n] = (struct part){e, r};
        f->pieces[f->pieces_n++] = (struct wn_piece){.name = e->name,
                                                     .file = e->from.file_i,
                                                     .rows = e->rows.n - r < most ? e->rows.n - r : most,
                                                     .at = e->from.at + row * step + e->cols.first * element,
                                                     .row_bytes = e->cols.n * element,
                                                     .step = step};
    }
}

static wn_status list_pieces(struct wn_loader *l, const struct wn_weights *w, struct fetch *f, struct wn_err *err)
{
    struct wn_reader_file file;
    size_t pieces = 0;

    while (wn_weights_file(w, (uint32_t)f->files_n, &file)) f->files_n++;
    for (size_t i = l->fetched_n; i < l->entries_n; i++) {
        const struct entry *e = &l->entries[i];
        if (e->rows.n && e->cols.n) pieces += (e->rows.n - 1) / block_rows(l, e) + 1;
    }
    f->files = calloc(f->files_n + 1, sizeof(*f->files));
    f->pieces = calloc(pieces + 1, sizeof(*f->pieces));
    f->parts = calloc(pieces + 1, sizeof(*f->parts));
    if (!f->files || !f->pieces || !f->parts) return wn_fail(err, WN_ENOMEM, "list of %zu pieces to load", pieces);
    for (uint32_t i = 0; wn_weights_file(w, i, &f->files[i]); i++)
        if (l->be->ops->device_memory) f->files[i].map = NULL; /* its copies want pinned memory */
    for (size_t i = l->fetched_n; i < l->entries_n; i++)
        if (l->entries[i].rows.n && l->entries[i].cols.n) add_pieces(l, &l->entries[i], f);
    return WN_OK;
}

static wn_status take_piece(struct wn_loader *l, const struct part *part, const struct wn_piece *p,
                            const struct wn_read *read, struct wn_err *err)
{
    const struct wn_backend_ops *ops = l->be->ops;
    struct entry *e = part->e;
    const uint32_t stride = (uint32_t)(read->step / wn_dtype_bytes(e->from.dtype));
    const struct wn_mat host = {(void *)(uintptr_t)read->data, e->from.dtype, p->rows, e->cols.n, stride};
    const bool blocks = in_blocks(l, e), last = part->first + p->rows == e->rows.n;
    wn_status rc = part->first == 0 ? make_room(l, e, blocks ? NULL : read->data, stride, err) : WN_OK;

    if (rc != WN_OK) return rc;
    if (e->kind != WN_LOAD_MATRIX) rc = upload_rows(l, e, part->first, &host);
    else if (blocks && e->int8_slices) rc = ops->weight_i8_rows(l->be, e->weight, part->first, &host);
    else if (blocks) rc = ops->weight_rows(l->be, e->weight, part->first, &host);
    if (rc != WN_OK) return wn_fail(err, rc, "tensor '%s': %s", e->name, wn_status_name(rc));
    if (last) wn_weights_release(&e->from);
    return WN_OK;
}

/* Pieces whose copies may be on their way go back a few at a time: meanwhile the others are read and copied. */
static wn_status take_pieces(struct wn_loader *l, struct fetch *f, struct wn_err *err)
{
    const struct wn_backend_ops *ops = l->be->ops;
    const uint32_t lent_max = ops->device_memory ? (wn_reader_slots(f->reader) + 2) / 3 : 1;
    wn_status rc = WN_OK;

    for (size_t i = 0; rc == WN_OK && i < f->pieces_n; i++) {
        struct wn_read read;
        if ((rc = wn_reader_next(f->reader, &read, err)) != WN_OK) return rc;
        f->lent++;
        if ((rc = take_piece(l, &f->parts[i], &f->pieces[i], &read, err)) != WN_OK) return rc;
        if (f->lent < lent_max && i + 1 < f->pieces_n) continue;
        if ((rc = ops->sync(l->be, WN_NEVER)) != WN_OK) return wn_fail(err, rc, "weights: %s", wn_status_name(rc));
        wn_reader_give(f->reader, f->lent);
        f->lent = 0;
    }
    return rc;
}

static void report(struct wn_loader *l, struct fetch *f, int64_t began_us)
{
    const struct wn_reader_stats s = wn_reader_stats(f->reader);
    const uint64_t us = (uint64_t)(wn_now_us() - began_us);

    l->rate.bytes += s.bytes;
    l->rate.us += us;
    wn_info("weights", "%.3f GB in %.3f s: %.2f GB/s; %.3f GB were in the page cache, %.3f GB were read past it; "
            "%.0f %% of the time waited for reads", (double)s.bytes * 1e-9, (double)us * 1e-6,
            (double)s.bytes * 1e-3 / (double)(us ? us : 1), (double)s.cached_bytes * 1e-9,
            (double)s.direct_bytes * 1e-9, 100.0 * (double)s.wait_us / (double)(us ? us : 1));
}

wn_status wn_loader_fetch(struct wn_loader *l, const struct wn_weights *w, struct wn_err *err)
{
    const int64_t began_us = wn_now_us();
    struct fetch f = {.files = NULL};
    struct wn_reader_opts o = {.mode = WN_READ_AUTO};
    bool pinned = false;
    size_t bytes = 0;
    void *memory;
    wn_status rc = WN_OK;

    if (!l->be || l->fetched_n == l->entries_n) goto out;
    if ((rc = list_pieces(l, w, &f, err)) != WN_OK) goto out;
    o.files = f.files;
    o.files_n = f.files_n;
    o.pieces = f.pieces;
    o.pieces_n = f.pieces_n;
    if ((rc = wn_reader_open(&f.reader, &o, err)) != WN_OK) goto out;
    memory = wn_reader_memory(f.reader, &bytes);
    if (l->be->ops->pin && bytes > 0) pinned = l->be->ops->pin(l->be, memory, bytes) == WN_OK;
    rc = take_pieces(l, &f, err);
    if (pinned) l->be->ops->unpin(l->be);
    if (rc != WN_OK) goto out;
    l->fetched_n = l->entries_n;
    report(l, &f, began_us);
out:
    wn_reader_close(f.reader);
    free(f.files);
    free(f.pieces);
    free(f.parts);
    return rc;
}

struct wn_load_rate wn_loader_rate(const struct wn_loader *l)
{
    return l->rate;
}

/* ---- plans ---- */

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

static wn_status want_slice(void *ctx, const struct wn_slice *s, struct wn_err *err)
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
    if (!ends_with(s->name, "embed_tokens.weight")) return want_as(p->l, p->w, &want, s->name, err);
    if (p->last && m->text.tied)
        rc = want_as(p->l, p->w, &want, "language_model.lm_head.weight", err);
    want.kind = WN_LOAD_TABLE;
    if (p->first && rc == WN_OK) rc = want_as(p->l, p->w, &want, s->name, err);
    return rc;
}

wn_status wn_loader_plan(struct wn_loader *l, const struct wn_weights *w,
                         const struct wn_plan *plan, uint32_t rank, struct wn_err *err)
{
    uint32_t stage = rank / plan->tensors;
    struct plan_load p = {
        .l = l, .w = w, .plan = plan, .first = stage == 0, .last = stage + 1 == plan->stages};
    wn_status rc = wn_plan_slices(plan, rank, want_slice, &p, err);

    return rc == WN_OK ? wn_loader_fetch(l, w, err) : rc;
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
