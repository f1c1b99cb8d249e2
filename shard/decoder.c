/* shard/decoder.c - a stage's memory, weights and features, and the checks of a step; decoder_run.c runs it. */
#include "shard/decoder.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "shard/decoder_impl.h"

#define SCRATCH_BUFS     16
#define FEATURE_ROWS_MAX (1u << 20)

static wn_status mat_alloc(struct wn_stage *s, struct wn_mat *out, uint32_t rows, uint32_t cols, wn_dtype dtype,
                           struct wn_err *err)
{
    struct wn_buf *buf = &s->bufs[s->bufs_n];
    size_t bytes = (size_t)rows * cols * wn_dtype_bytes(dtype);
    wn_status rc;

    WN_ASSERT(s->bufs_n < s->bufs_max);
    rc = s->o.be->ops->buf_alloc(s->o.be, bytes ? bytes : 1, buf);
    if (rc != WN_OK)
        return wn_fail(err, rc, "stage %u: matrix [%u, %u]: %s", s->stage, rows, cols, wn_status_name(rc));
    s->bufs_n++;
    *out = (struct wn_mat){buf->ptr, dtype, rows, cols, cols};
    return WN_OK;
}

static wn_status kv_alloc(struct wn_stage *s, struct wn_err *err)
{
    uint32_t rows = s->o.pages * s->o.page_tokens, cols = s->kv_heads * s->plan.model.text.head_dim;
    wn_status rc = WN_OK;

    for (uint32_t i = 0; rc == WN_OK && i < s->plan.layers[s->stage].n; i++) {
        rc = mat_alloc(s, &s->layers[i].keys, rows, cols, s->plan.dtype, err);
        if (rc == WN_OK) rc = mat_alloc(s, &s->layers[i].values, rows, cols, s->plan.dtype, err);
    }
    return rc;
}

/* Room in a slot; that of another size goes. */
static wn_status slot_room(struct wn_stage *s, struct wn_slot *d, size_t bytes, struct wn_err *err)
{
    wn_status rc;

    if (d->buf.bytes >= bytes) return WN_OK;
    if (d->buf.ptr) s->o.be->ops->buf_free(s->o.be, &d->buf);
    if ((rc = s->o.be->ops->buf_alloc(s->o.be, bytes, &d->buf)) == WN_OK) return WN_OK;
    return wn_fail(err, rc, "features of %zu bytes: %s", bytes, wn_status_name(rc));
}

/* Bytes of a picture of which nothing was pruned. */
static size_t picture_bytes(const struct wn_stage *s, uint32_t width, wn_dtype dtype)
{
    return ((size_t)s->plan.model.vision.patches + 1) * width * wn_dtype_bytes(dtype);
}

/* The memory plan counts on unpruned pictures in all slots: no step has to make room for what vision workers send. Rows
 * that come through the projector make a slot larger once. */
static wn_status slots_alloc(struct wn_stage *s, struct wn_err *err)
{
    const size_t bytes = picture_bytes(s, s->plan.model.vision.hidden, s->plan.dtype);
    wn_status rc = WN_OK;

    for (uint32_t i = 0; s->first && rc == WN_OK && i < s->o.slots; i++) rc = slot_room(s, &s->slots[i], bytes, err);
    return rc;
}

static wn_status scratch_alloc(struct wn_stage *s, struct wn_err *err)
{
    const struct wn_model *m = &s->plan.model;
    uint32_t rows = s->o.rows_max, hidden = m->text.hidden, hd = m->text.head_dim, part = hidden / s->plan.tensors;
    uint32_t want = s->o.wanted_max;
    wn_dtype t = s->plan.dtype;
    const struct {
        bool needed;
        struct wn_mat *mat;
        uint32_t rows, cols;
        wn_dtype dtype;
    } all[] = {
        {true, &s->x, rows, hidden, t},
        {true, &s->normed, rows, hidden, t},
        {true, &s->qkv, rows, (s->heads + 2 * s->kv_heads) * hd, t},
        {true, &s->attn, rows, s->heads * hd, t},
        {true, &s->gate, rows, s->mlp, t},
        {true, &s->up, rows, s->mlp, t},
        {s->first || s->plan.tensors > 1, &s->sums, rows, hidden, WN_F32},
        {s->first, &s->image, rows, m->vision.hidden, t},
        {s->first, &s->image_mid, rows, part, t},
        {s->first, &s->image_sums, rows, hidden, WN_F32},
        {!s->last, &s->part, rows, part, t},
        {!s->first, &s->next, rows, part, t},
        {!s->first && s->plan.tensors > 1, &s->parts, rows * s->plan.tensors, part, t},
        {s->last, &s->wanted, want, hidden, t},
        {s->last, &s->rounded, want, s->vocab.n, t},
        {s->last && t != WN_F32, &s->scores, want, s->vocab.n, WN_F32},
        {s->last && s->tensor == 0 && s->plan.tensors > 1, &s->all_scores, want, m->text.vocab, WN_F32},
        {s->last && s->tensor == 0 && s->plan.tensors > 1 && s->device, &s->whole, want, m->text.vocab, WN_F32},
    };
    wn_status rc = WN_OK;

    for (size_t i = 0; rc == WN_OK && i < sizeof(all) / sizeof(all[0]); i++)
        if (all[i].needed) rc = mat_alloc(s, all[i].mat, all[i].rows, all[i].cols, all[i].dtype, err);
    if (rc != WN_OK) return rc;
    if (t == WN_F32) s->scores = s->rounded;
    s->index = calloc(rows, sizeof(*s->index));
    s->zeros = calloc(rows, sizeof(*s->zeros));
    s->position = calloc(rows, sizeof(*s->position));
    s->wanted_rows = calloc(want ? want : 1, sizeof(*s->wanted_rows));
    s->slots = calloc(s->o.slots ? s->o.slots : 1, sizeof(*s->slots));
    s->picks = calloc(want ? want : 1, sizeof(*s->picks));
    if (wn_stage_can_pick(s) && want > 0) {
        rc = s->o.be->ops->buf_alloc(s->o.be, want * sizeof(uint32_t), &s->picked);
        if (rc != WN_OK) return wn_fail(err, rc, "stage %u: %u tokens", s->stage, want);
    }
    if (!s->picks || !s->index || !s->zeros || !s->position || !s->wanted_rows || !s->slots)
        return wn_fail(err, WN_ENOMEM, "stage %u: steps of %u rows", s->stage, rows);
    return slots_alloc(s, err);
}

static const struct wn_weight *layer_matrix(const struct wn_stage *s, uint32_t layer, const char *part)
{
    char name[WN_NAME_MAX];

    snprintf(name, sizeof(name), "language_model.model.layers.%u.%s.weight", layer, part);
    return wn_loader_matrix(s->loader, name);
}

static const float *layer_norm(const struct wn_stage *s, uint32_t layer, const char *part)
{
    char name[WN_NAME_MAX];

    snprintf(name, sizeof(name), "language_model.model.layers.%u.%s.weight", layer, part);
    return wn_loader_vector(s->loader, name);
}

/* Finds what the plan made the loader hold; the two sides agree, or it is a bug. */
static void bind(struct wn_stage *s)
{
    const struct wn_range *range = &s->plan.layers[s->stage];
    uint32_t hidden = s->plan.model.text.hidden;

    for (uint32_t i = 0; i < range->n; i++) {
        struct wn_layer *y = &s->layers[i];
        uint32_t n = range->first + i;
        y->norm1 = layer_norm(s, n, "input_layernorm");
        y->norm2 = layer_norm(s, n, "post_attention_layernorm");
        y->q = layer_matrix(s, n, "self_attn.q_proj");
        y->k = layer_matrix(s, n, "self_attn.k_proj");
        y->v = layer_matrix(s, n, "self_attn.v_proj");
        y->o = layer_matrix(s, n, "self_attn.o_proj");
        y->gate = layer_matrix(s, n, "mlp.gate_proj");
        y->up = layer_matrix(s, n, "mlp.up_proj");
        y->down = layer_matrix(s, n, "mlp.down_proj");
        WN_ASSERT(y->norm1 && y->norm2 && y->q && y->k && y->v && y->o && y->gate && y->up && y->down);
    }
    if (s->first) {
        const float *bias = wn_loader_vector(s->loader, "multi_modal_projector.linear_2.bias");
        s->linear1 = wn_loader_matrix(s->loader, "multi_modal_projector.linear_1.weight");
        s->linear1_bias = wn_loader_vector(s->loader, "multi_modal_projector.linear_1.bias");
        s->linear2 = wn_loader_matrix(s->loader, "multi_modal_projector.linear_2.weight");
        s->linear2_bias = (struct wn_mat){(void *)(uintptr_t)bias, WN_F32, 1, hidden, hidden};
        s->embedding = wn_loader_table(s->loader, "language_model.model.embed_tokens.weight");
        WN_ASSERT(s->linear1 && s->linear1_bias && s->linear2 && bias);
        WN_ASSERT(s->embedding.rows == s->vocab.n);
        s->embedding.cols = s->embedding.stride = hidden; /* a rank without rows has an empty table of this width */
    }
    if (s->last) {
        s->norm = wn_loader_vector(s->loader, "language_model.model.norm.weight");
        s->head = wn_loader_matrix(s->loader, "language_model.lm_head.weight");
        WN_ASSERT(s->norm && (s->head || s->vocab.n == 0));
    }
}

static wn_status check_opts(const struct wn_stage_opts *o, struct wn_err *err)
{
    const struct wn_plan *p = o->plan;
    uint32_t ranks = p->stages * p->tensors;

    if (o->rank >= ranks) return wn_fail(err, WN_EINVAL, "rank %u, but the plan has %u", o->rank, ranks);
    if (ranks > 1 && (!o->link || wn_link_size(o->link) < (int)ranks || wn_link_rank(o->link) != (int)o->rank))
        return wn_fail(err, WN_EINVAL, "rank %u of a plan of %u: the link does not fit", o->rank, ranks);
    if (o->rows_max == 0 || o->seqs_max == 0 || o->pages == 0 || o->page_tokens == 0 || o->wanted_max > o->rows_max ||
        (uint64_t)o->pages * o->page_tokens > UINT32_MAX / 2 || o->rows_max > 1u << 20)
        return wn_fail(err, WN_EINVAL, "stage: %u rows, %u sequences, %u wanted, %u pages of %u tokens", o->rows_max,
                       o->seqs_max, o->wanted_max, o->pages, o->page_tokens);
    return WN_OK;
}

/* Places and sizes that follow from plan and rank. */
static void place(struct wn_stage *s)
{
    const struct wn_plan *p = &s->plan;

    s->stage = s->o.rank / p->tensors;
    s->tensor = s->o.rank % p->tensors;
    s->first = s->stage == 0;
    s->last = s->stage + 1 == p->stages;
    s->slices = p->slices / p->tensors;
    s->heads = wn_plan_heads(p, s->tensor).n;
    s->kv_heads = wn_plan_kv_heads(p, s->tensor).n;
    s->mlp = wn_plan_mlp(p, s->tensor).n;
    s->vocab = wn_plan_vocab(p, s->tensor);
    for (uint32_t t = 0; t < p->tensors; t++) s->ranks[t] = (int)wn_plan_rank(p, s->stage, t);
    s->device = wn_link_has_device(s->o.link);
    s->staged = s->o.be->ops->device_memory && s->o.link && !s->device;
    s->comm = (struct wn_comm){.ranks = s->ranks, .n = (int)p->tensors, .me = (int)s->tensor};
}

wn_status wn_stage_open(struct wn_stage **out, const struct wn_stage_opts *opts, struct wn_err *err)
{
    struct wn_stage *s = NULL;
    uint32_t layers_n;
    wn_status rc = check_opts(opts, err);

    if (rc != WN_OK) goto out;
    s = calloc(1, sizeof(*s));
    if (!s) {
        rc = wn_fail(err, WN_ENOMEM, "stage");
        goto out;
    }
    s->o = *opts;
    s->plan = *opts->plan;
    s->o.plan = &s->plan;
    s->sending = WN_OP_NONE;
    place(s);
    layers_n = s->plan.layers[s->stage].n;
    s->bufs_max = SCRATCH_BUFS + 2 * layers_n;
    s->bufs = calloc(s->bufs_max, sizeof(*s->bufs));
    s->layers = calloc(layers_n, sizeof(*s->layers));
    if (!s->bufs || !s->layers) {
        rc = wn_fail(err, WN_ENOMEM, "stage of %u layers", layers_n);
        goto out;
    }
    if ((rc = wn_loader_open(&s->loader, s->o.be, s->plan.dtype, err)) != WN_OK) goto out;
    if ((rc = wn_loader_plan(s->loader, s->o.weights, &s->plan, s->o.rank, err)) != WN_OK) goto out;
    if ((rc = scratch_alloc(s, err)) != WN_OK) goto out;
    if ((rc = kv_alloc(s, err)) != WN_OK) goto out;
    if ((rc = wn_stage_links_open(s, err)) != WN_OK) goto out;
    bind(s);
    s->o.weights = NULL;
    *out = s;
    s = NULL;
out:
    wn_stage_close(s);
    return rc;
}

void wn_stage_close(struct wn_stage *s)
{
    if (!s) return;
    wn_stage_links_close(s);
    for (uint32_t i = 0; s->slots && i < s->o.slots; i++)
        if (s->slots[i].buf.ptr) s->o.be->ops->buf_free(s->o.be, &s->slots[i].buf);
    for (uint32_t i = 0; i < s->bufs_n; i++) s->o.be->ops->buf_free(s->o.be, &s->bufs[i]);
    if (s->picked.ptr) s->o.be->ops->buf_free(s->o.be, &s->picked);
    wn_loader_close(s->loader);
    free(s->slots);
    free(s->picks);
    free(s->index);
    free(s->zeros);
    free(s->position);
    free(s->wanted_rows);
    free(s->layers);
    free(s->bufs);
    free(s);
}

static wn_status check_seq(const struct wn_stage *s, const struct wn_seq *q, uint32_t first_row, struct wn_err *err)
{
    uint64_t len = (uint64_t)q->pos + q->rows;

    if (q->first_row != first_row || q->rows == 0)
        return wn_fail(err, WN_EINVAL, "step: a sequence has rows %u + %u, expected some from %u", q->first_row,
                       q->rows, first_row);
    if (len > s->plan.model.text.positions_max)
        return wn_fail(err, WN_ELIMIT, "step: %llu tokens, the model has %u positions", (unsigned long long)len,
                       s->plan.model.text.positions_max);
    for (uint64_t i = 0; i * s->o.page_tokens < len; i++)
        if (q->pages[i] >= s->o.pages)
            return wn_fail(err, WN_EINVAL, "step: page %u, there are %u", q->pages[i], s->o.pages);
    return WN_OK;
}

wn_status wn_stage_check(const struct wn_stage *s, const struct wn_step *step, struct wn_err *err)
{
    uint32_t row = 0;
    wn_status rc;

    if (step->rows == 0 || step->rows > s->o.rows_max || step->seqs_n > s->o.seqs_max ||
        step->wanted_n > s->o.wanted_max)
        return wn_fail(err, WN_ELIMIT, "step: %u rows, %u sequences, %u wanted; limits %u, %u, %u", step->rows,
                       step->seqs_n, step->wanted_n, s->o.rows_max, s->o.seqs_max, s->o.wanted_max);
    for (uint32_t i = 0; i < step->seqs_n; i++) {
        if (step->seqs[i].rows > step->rows - row)
            return wn_fail(err, WN_EINVAL, "step: sequence %u has %u rows, %u are left", i, step->seqs[i].rows,
                           step->rows - row);
        if ((rc = check_seq(s, &step->seqs[i], row, err)) != WN_OK) return rc;
        row += step->seqs[i].rows;
    }
    if (row != step->rows) return wn_fail(err, WN_EINVAL, "step: %u rows, sequences cover %u", step->rows, row);
    for (uint32_t i = 0; i < step->rows; i++) {
        bool text = !step->slot || step->slot[i] == WN_SLOT_NONE;
        if (text ? step->token[i] >= s->plan.model.text.vocab : step->slot[i] >= s->o.slots)
            return wn_fail(err, WN_EINVAL, "step: row %u: %s %u is out of range", i, text ? "token" : "feature slot",
                           text ? step->token[i] : step->slot[i]);
        if (step->position && step->position[i] >= s->plan.model.text.positions_max)
            return wn_fail(err, WN_ELIMIT, "step: row %u: position %u, the model has %u", i, step->position[i],
                           s->plan.model.text.positions_max);
    }
    for (uint32_t i = 0; i < step->wanted_n; i++)
        if (step->wanted[i] >= step->rows || (i > 0 && step->wanted[i] <= step->wanted[i - 1]))
            return wn_fail(err, WN_EINVAL, "step: wanted row %u of %u", step->wanted[i], step->rows);
    return WN_OK;
}

/* Makes room in a slot; its contents are not valid until the caller has written them. */
static wn_status slot_prepare(struct wn_stage *s, uint32_t slot, const struct wn_features *f, struct wn_err *err)
{
    uint32_t width = f->projected ? s->plan.model.text.hidden : s->plan.model.vision.hidden;
    size_t bytes = (size_t)f->rows * f->width * wn_dtype_bytes(f->dtype);
    struct wn_slot *d;

    if (slot >= s->o.slots) return wn_fail(err, WN_EINVAL, "feature slot %u, there are %u", slot, s->o.slots);
    if (f->rows == 0 || f->rows > FEATURE_ROWS_MAX)
        return wn_fail(err, WN_ELIMIT, "features of %u rows, limit %u", f->rows, FEATURE_ROWS_MAX);
    if (f->width != width)
        return wn_fail(err, WN_EINVAL, "features are %u wide, expected %u%s", f->width, width,
                       f->projected ? " (projected)" : "");
    if (f->dtype != WN_F32 && f->dtype != WN_BF16 && f->dtype != WN_F16)
        return wn_fail(err, WN_EINVAL, "features have an unknown type %d", (int)f->dtype);
    d = &s->slots[slot];
    d->rows.ptr = NULL;
    if (d->buf.bytes < bytes) {
        const size_t whole = picture_bytes(s, f->width, f->dtype);
        const wn_status rc = slot_room(s, d, whole > bytes ? whole : bytes, err);
        if (rc != WN_OK) return rc;
    }
    d->projected = f->projected;
    return WN_OK;
}

static void slot_fill(struct wn_slot *d, const struct wn_features *f)
{
    d->rows = (struct wn_mat){d->buf.ptr, f->dtype, f->rows, f->width, f->width};
}

wn_status wn_stage_features_put(struct wn_stage *s, uint32_t slot, const void *data, const struct wn_features *f,
                                struct wn_err *err)
{
    const struct wn_backend_ops *ops = s->o.be->ops;
    wn_status rc;

    if (!s->first) return WN_OK;
    if ((rc = slot_prepare(s, slot, f, err)) != WN_OK) return rc;
    rc = ops->upload(s->o.be, s->slots[slot].buf.ptr, data, (size_t)f->rows * f->width * wn_dtype_bytes(f->dtype));
    if (rc == WN_OK) rc = ops->sync(s->o.be, WN_NEVER); /* data is the caller's again */
    if (rc != WN_OK) return wn_fail(err, rc, "features: %s", wn_status_name(rc));
    slot_fill(&s->slots[slot], f);
    return WN_OK;
}

wn_status wn_stage_features_share(struct wn_stage *s, uint32_t slot, const void *data, const struct wn_features *f,
                                  int64_t deadline_us, struct wn_err *err)
{
    size_t bytes = (size_t)f->rows * f->width * wn_dtype_bytes(f->dtype);
    wn_status rc;

    if (!s->first) return WN_OK;
    rc = s->tensor == 0 ? wn_stage_features_put(s, slot, data, f, err) : slot_prepare(s, slot, f, err);
    if (rc != WN_OK || s->plan.tensors == 1) return rc;
    rc = wn_stage_spread(s, s->slots[slot].buf.ptr, data, bytes, deadline_us);
    if (rc != WN_OK) {
        s->failed = true;
        s->slots[slot].rows.ptr = NULL;
        return wn_fail(err, rc, "features to the tensor ranks: %s", wn_link_error(s->o.link)->text);
    }
    slot_fill(&s->slots[slot], f);
    return WN_OK;
}

void wn_stage_features_drop(struct wn_stage *s, uint32_t slot)
{
    if (slot < s->o.slots) s->slots[slot].rows.ptr = NULL;
}

bool wn_stage_can_pick(const struct wn_stage *s)
{
    return wn_stage_is_last(s) && s->o.be->ops->pick && (s->plan.tensors == 1 || s->device);
}

struct wn_load_rate wn_stage_load_rate(const struct wn_stage *s)
{
    return wn_loader_rate(s->loader);
}

bool wn_stage_is_last(const struct wn_stage *s)
{
    return s->last && s->tensor == 0;
}
