/* shard/decoder_run.c - one step through a stage. All partial sums meet in float32 and are rounded once, to what the
 * whole matmul would have stored; so the path with one tensor rank and the path with several give the same bits.
 * What crosses links is in decoder_link.c. */
#include <string.h>

#include "base/log.h"
#include "base/progress.h"
#include "shard/decoder_impl.h"

#define SHORT_ROWS 64 /* a device is done with such a step long before anyone wonders */

/* Rows [first, first + n) of a step that come from one feature slot. */
struct run {
    uint32_t first, n;
    const struct wn_slot *slot;
};

/* Finds the next run of image rows at or after *row and moves *row behind it; false at the end of the step. */
static bool next_run(const struct wn_stage *s, const struct wn_step *step, uint32_t *row, struct run *out)
{
    uint32_t i = *row, slot;

    if (!step->slot) return false;
    while (i < step->rows && step->slot[i] == WN_SLOT_NONE) i++;
    if (i == step->rows) return false;
    slot = step->slot[i];
    out->first = i;
    out->slot = &s->slots[slot];
    while (i < step->rows && step->slot[i] == slot) i++;
    out->n = i - out->first;
    *row = i;
    return true;
}

static wn_status check_features(const struct wn_stage *s, const struct wn_step *step, struct wn_err *err)
{
    struct run r;

    for (uint32_t at = 0; next_run(s, step, &at, &r);) {
        if (!r.slot->rows.ptr)
            return wn_fail(err, WN_ENOENT, "step: row %u: feature slot %u is empty", r.first, step->slot[r.first]);
        for (uint32_t i = r.first; i < r.first + r.n; i++)
            if (step->token[i] >= r.slot->rows.rows)
                return wn_fail(err, WN_EINVAL, "step: row %u: features row %u of %u", i, step->token[i],
                               r.slot->rows.rows);
    }
    return WN_OK;
}

static wn_status matmul(struct wn_stage *s, struct wn_mat out, struct wn_mat x, const struct wn_weight *w,
                        uint32_t slices)
{
    struct wn_matmul m = {.out = out, .x = x, .w = w, .slices = slices};
    wn_status rc = wn_stage_drive(s);

    wn_progress_note();
    return rc == WN_OK ? wn_be_matmul(s->o.be, &m) : rc;
}

static wn_status matmuls(struct wn_stage *s, const struct wn_matmul *a, uint32_t n)
{
    wn_status rc = wn_stage_drive(s);

    wn_progress_note();
    return rc == WN_OK ? wn_be_matmuls(s->o.be, a, n) : rc;
}

static wn_status rms_norm(struct wn_stage *s, struct wn_mat out, struct wn_mat x, const float *weight)
{
    struct wn_norm n = {.out = out, .x = x, .weight = weight, .eps = s->plan.model.text.eps, .rms = true};
    return wn_be_norm(s->o.be, &n);
}

/* out = x * w^T where this rank holds some of w's columns: the sum over ranks, rounded to out's type. */
static wn_status row_parallel(struct wn_stage *s, struct wn_mat out, struct wn_mat x, const struct wn_weight *w,
                              uint32_t rows, int64_t deadline_us)
{
    struct wn_mat sums = wn_mat_rows(s->sums, 0, out.rows);
    wn_status rc;

    if (s->plan.tensors == 1) return matmul(s, out, x, w, s->slices);
    rc = matmul(s, sums, x, w, s->slices);
    if (rc == WN_OK) rc = wn_stage_sum(s, rows, deadline_us);
    if (rc == WN_OK) rc = wn_be_convert(s->o.be, &out, &sums);
    return rc;
}

/* Puts the image rows into s->sums: this rank's part of the projector's sums, without the last bias. Rows that come
 * projected are whole on tensor rank 0 and zero on the others. */
static wn_status image_rows(struct wn_stage *s, const struct wn_step *step)
{
    struct wn_backend *be = s->o.be;
    uint32_t m = 0;
    struct run r;
    wn_status rc = WN_OK;

    for (uint32_t at = 0; rc == WN_OK && next_run(s, step, &at, &r);) {
        struct wn_mat to = r.slot->projected ? wn_mat_rows(s->sums, r.first, r.n) : wn_mat_rows(s->image, m, r.n);
        if (r.slot->projected && s->tensor != 0) continue;
        rc = wn_be_gather_rows(be, &to, &r.slot->rows, step->token + r.first);
        if (!r.slot->projected) m += r.n;
    }
    if (rc == WN_OK && m > 0) {
        struct wn_mat mid = wn_mat_rows(s->image_mid, 0, m);
        struct wn_matmul first = {.out = mid,
                                  .x = wn_mat_rows(s->image, 0, m),
                                  .w = s->linear1,
                                  .bias = s->linear1_bias,
                                  .slices = 1,
                                  .act = s->plan.model.projector_act};
        rc = wn_be_matmul(be, &first);
        if (rc == WN_OK) rc = matmul(s, wn_mat_rows(s->image_sums, 0, m), mid, s->linear2, s->slices);
    }
    m = 0;
    for (uint32_t at = 0; rc == WN_OK && next_run(s, step, &at, &r);) {
        struct wn_mat to = wn_mat_rows(s->sums, r.first, r.n), from = wn_mat_rows(s->image_sums, m, r.n);
        if (r.slot->projected) continue;
        rc = wn_be_convert(be, &to, &from);
        m += r.n;
    }
    return rc;
}

/* The projector's last bias, after the sums have met: added once, and at the same place for every number of ranks. */
static wn_status image_bias(struct wn_stage *s, const struct wn_step *step)
{
    struct run r;
    wn_status rc = WN_OK;

    for (uint32_t at = 0; rc == WN_OK && next_run(s, step, &at, &r);) {
        struct wn_mat rows = wn_mat_rows(s->sums, r.first, r.n), bias = wn_mat_rows(s->image_sums, 0, r.n);
        if (r.slot->projected) continue;
        rc = wn_be_gather_rows(s->o.be, &bias, &s->linear2_bias, s->zeros);
        if (rc == WN_OK) rc = wn_be_add(s->o.be, &rows, &rows, &bias);
    }
    return rc;
}

/* Stage 0: tokens and features to the rows that enter layer 0. */
static wn_status input_rows(struct wn_stage *s, const struct wn_step *step, int64_t deadline_us)
{
    struct wn_mat sums = wn_mat_rows(s->sums, 0, s->rows), x = wn_mat_rows(s->x, 0, s->rows);
    bool image = false;
    wn_status rc;

    for (uint32_t i = 0; i < s->rows; i++) {
        bool text = i < step->rows && (!step->slot || step->slot[i] == WN_SLOT_NONE);
        /* Ids below the range wrap round to large numbers: all that is not held becomes zeros. */
        s->index[i] = text ? step->token[i] - s->vocab.first : UINT32_MAX;
        image |= i < step->rows && !text;
    }
    if (s->plan.tensors == 1 && !image) return wn_be_gather_rows(s->o.be, &x, &s->embedding, s->index);
    rc = wn_be_gather_rows(s->o.be, &sums, &s->embedding, s->index);
    if (rc == WN_OK) rc = image_rows(s, step);
    if (rc == WN_OK) rc = wn_stage_sum(s, step->rows, deadline_us);
    if (rc == WN_OK) rc = image_bias(s, step);
    if (rc == WN_OK) rc = wn_be_convert(s->o.be, &x, &sums);
    return rc;
}

static wn_status attention(struct wn_stage *s, const struct wn_layer *y, const struct wn_step *step)
{
    const struct wn_text_config *t = &s->plan.model.text;
    uint32_t hd = t->head_dim, q_cols = s->heads * hd, kv_cols = s->kv_heads * hd;
    struct wn_mat normed = wn_mat_rows(s->normed, 0, s->rows), qkv = wn_mat_rows(s->qkv, 0, s->rows);
    struct wn_mat q = wn_mat_cols(qkv, 0, q_cols), k = wn_mat_cols(qkv, q_cols, kv_cols);
    struct wn_mat v = wn_mat_cols(qkv, q_cols + kv_cols, kv_cols);
    struct wn_kv kv = {.k = y->keys, .v = y->values, .page_tokens = s->o.page_tokens};
    struct wn_rope rope = {
        .x = wn_mat_cols(qkv, 0, q_cols + kv_cols), .position = s->position, .head_dim = hd, .theta = t->rope_theta};
    struct wn_kv_write write = {.k = k, .v = v, .kv = kv, .seqs = step->seqs, .seqs_n = step->seqs_n};
    struct wn_attn_paged a = {.out = wn_mat_rows(s->attn, 0, s->rows),
                              .q = q,
                              .kv = kv,
                              .seqs = step->seqs,
                              .seqs_n = step->seqs_n,
                              .heads = s->heads,
                              .kv_heads = s->kv_heads,
                              .head_dim = hd,
                              .scale = 1.0f / __builtin_sqrtf((float)hd)};
    const struct wn_matmul products[] = {{.out = q, .x = normed, .w = y->q, .slices = 1},
                                         {.out = k, .x = normed, .w = y->k, .slices = 1},
                                         {.out = v, .x = normed, .w = y->v, .slices = 1}};
    wn_status rc = matmuls(s, products, 3);

    if (rc == WN_OK) rc = wn_be_rope_kv(s->o.be, &rope, &write);
    if (rc == WN_OK) rc = wn_be_attn_paged(s->o.be, &a);
    return rc;
}

/* x += what the layer's half has added, and the norm of the next half, in `normed` both. */
static wn_status add_norm(struct wn_stage *s, const float *weight)
{
    struct wn_norm n = {.out = wn_mat_rows(s->normed, 0, s->rows),
                        .x = wn_mat_rows(s->x, 0, s->rows),
                        .weight = weight,
                        .eps = s->plan.model.text.eps,
                        .rms = true};
    return wn_be_add_norm(s->o.be, &n.out, &n);
}

/* `normed` holds the layer's normed input; next_norm: of the layer that follows in this stage, or NULL. */
static wn_status run_layer(struct wn_stage *s, const struct wn_layer *y, const float *next_norm,
                           const struct wn_step *step, int64_t deadline_us)
{
    struct wn_backend *be = s->o.be;
    uint32_t n = s->rows;
    struct wn_mat x = wn_mat_rows(s->x, 0, n), normed = wn_mat_rows(s->normed, 0, n);
    struct wn_mat gate = wn_mat_rows(s->gate, 0, n), up = wn_mat_rows(s->up, 0, n);
    const struct wn_matmul products[] = {{.out = gate, .x = normed, .w = y->gate, .slices = 1},
                                         {.out = up, .x = normed, .w = y->up, .slices = 1}};
    wn_status rc = attention(s, y, step);

    if (rc == WN_OK) rc = row_parallel(s, normed, wn_mat_rows(s->attn, 0, n), y->o, step->rows, deadline_us);
    if (rc == WN_OK) rc = add_norm(s, y->norm2);
    if (rc == WN_OK) rc = matmuls(s, products, 2);
    if (rc == WN_OK) rc = wn_be_silu_mul(be, &gate, &gate, &up);
    if (rc == WN_OK) rc = row_parallel(s, normed, gate, y->down, step->rows, deadline_us);
    if (rc != WN_OK) return rc;
    return next_norm ? add_norm(s, next_norm) : wn_be_add(be, &x, &x, &normed);
}

static wn_status layers(struct wn_stage *s, const struct wn_step *step, int64_t deadline_us)
{
    const uint32_t n = s->plan.layers[s->stage].n;
    wn_status rc = rms_norm(s, wn_mat_rows(s->normed, 0, s->rows), wn_mat_rows(s->x, 0, s->rows), s->layers[0].norm1);

    for (uint32_t i = 0; rc == WN_OK && i < n; i++) {
        if (s->device && s->rows > SHORT_ROWS) wn_dev_mark(s->o.link);
        rc = run_layer(s, &s->layers[i], i + 1 < n ? s->layers[i + 1].norm1 : NULL, step, deadline_us);
    }
    return rc;
}

/* What comes of a step on the rank that has the scores: logits, or (each not NULL) tokens. */
struct result {
    float *logits;
    const struct wn_pick *each;
    uint32_t *tokens;
};

/* Wanted rows of the whole vocabulary; alone a rank has them as the head stored them. */
static const struct wn_mat *whole_rows(const struct wn_stage *s)
{
    return s->plan.tensors == 1 ? &s->rounded : &s->whole;
}

static wn_status pick(struct wn_stage *s, uint32_t n, int64_t deadline_us, const struct result *out)
{
    const struct wn_picks a = {
        .logits = wn_mat_rows(*whole_rows(s), 0, s->wanted_n), .each = s->picks, .out = s->picked.ptr};
    wn_status rc;

    memset(s->picks, 0, s->wanted_n * sizeof(*s->picks)); /* rows that pad the step want nothing */
    memcpy(s->picks, out->each, n * sizeof(*s->picks));
    rc = s->o.be->ops->pick(s->o.be, &a);
    if (rc == WN_OK) rc = wn_stage_sync(s, deadline_us); /* a download has no deadline of its own */
    return rc == WN_OK ? s->o.be->ops->download(s->o.be, out->tokens, s->picked.ptr, n * sizeof(*out->tokens)) : rc;
}

/* Last stage: scores of the wanted rows, whole on tensor rank 0. */
static wn_status head(struct wn_stage *s, const struct wn_step *step, int64_t deadline_us, const struct result *out)
{
    struct wn_backend *be = s->o.be;
    uint32_t n = step->wanted_n;
    struct wn_mat rows = wn_mat_rows(s->wanted, 0, s->wanted_n), x = wn_mat_rows(s->x, 0, s->rows);
    struct wn_mat scores = wn_mat_rows(s->scores, 0, s->wanted_n), rounded = wn_mat_rows(s->rounded, 0, s->wanted_n);
    wn_status rc;

    if (n == 0) return WN_OK;
    rc = wn_be_gather_rows(be, &rows, &x, s->wanted_rows);
    if (rc == WN_OK) rc = rms_norm(s, rows, rows, s->norm);
    if (rc == WN_OK && s->vocab.n > 0) rc = matmul(s, rounded, rows, s->head, 1);
    if (rc == WN_OK && out->each && s->plan.tensors == 1) return pick(s, n, deadline_us, out);
    if (rc == WN_OK && rounded.dtype != WN_F32) rc = wn_be_convert(be, &scores, &rounded);
    if (rc != WN_OK || !out->each) return rc == WN_OK ? wn_stage_collect(s, n, deadline_us, out->logits) : rc;
    rc = wn_stage_gather_scores(s, n);
    return rc == WN_OK ? pick(s, n, deadline_us, out) : rc;
}

/* What of a step the operations are told; rows that pad it have position 0, and are gathered from nowhere. */
static void set_rows(struct wn_stage *s, const struct wn_step *step)
{
    for (uint32_t i = 0; i < s->wanted_n; i++) s->wanted_rows[i] = i < step->wanted_n ? step->wanted[i] : UINT32_MAX;
    for (uint32_t i = step->rows; i < s->rows; i++) s->position[i] = 0;
    for (uint32_t i = 0; i < step->seqs_n; i++) {
        const struct wn_seq *q = &step->seqs[i];
        for (uint32_t r = 0; r < q->rows; r++)
            s->position[q->first_row + r] = step->position ? step->position[q->first_row + r] : q->pos + r;
    }
}

/* Says how many rows the matrices have: more than the step where a device replays steps of one size. With other ranks
 * every step is told apart: what is kept back would have to go before each message. */
static wn_status begin(struct wn_stage *s, const struct wn_step *step)
{
    const struct wn_backend_ops *ops = s->o.be->ops;
    bool decode = ops->step_begin && s->plan.stages == 1 && s->plan.tensors == 1 && step->seqs_n == step->rows;
    wn_status rc = WN_OK;

    s->rows = step->rows;
    s->wanted_n = step->wanted_n;
    for (uint32_t i = 0; decode && step->slot && i < step->rows; i++) decode = step->slot[i] == WN_SLOT_NONE;
    if (!decode) return WN_OK;
    rc = ops->step_begin(s->o.be, step->rows, s->o.rows_max, &s->rows);
    if (s->wanted_n > 0) s->wanted_n = s->rows < s->o.wanted_max ? s->rows : s->o.wanted_max;
    return rc;
}

static wn_status run(struct wn_stage *s, const struct wn_step *step, int64_t deadline_us, const struct result *out,
                     struct wn_err *err)
{
    wn_status rc = wn_stage_check(s, step, err), ended;

    if (rc == WN_OK && s->first) rc = check_features(s, step, err);
    if (rc != WN_OK) return rc;
    WN_ASSERT(out->logits || out->each || step->wanted_n == 0 || !wn_stage_is_last(s));
    if (s->failed)
        return wn_fail(err, WN_EPEER, "stage %u, tensor rank %u: a step failed before", s->stage, s->tensor);
    if ((rc = begin(s, step)) != WN_OK) goto out;
    set_rows(s, step);
    rc = s->first ? input_rows(s, step, deadline_us) : wn_stage_receive(s, step->rows, deadline_us);
    if (rc == WN_OK) rc = layers(s, step, deadline_us);
    if (rc == WN_OK) rc = s->last ? head(s, step, deadline_us, out) : wn_stage_send(s, step->rows, deadline_us);
    ended = s->o.be->ops->step_end ? s->o.be->ops->step_end(s->o.be) : WN_OK;
    if (rc == WN_OK) rc = ended;
    if (rc == WN_OK) rc = wn_stage_sync(s, deadline_us);
out:
    if (rc == WN_OK) return WN_OK;
    s->failed = true;
    return wn_fail(err, rc, "stage %u, tensor rank %u: %s", s->stage, s->tensor,
                   s->o.link && wn_link_error(s->o.link)->code == rc ? wn_link_error(s->o.link)->text
                                                                     : wn_status_name(rc));
}

wn_status wn_stage_run(struct wn_stage *s, const struct wn_step *step, int64_t deadline_us, float *logits,
                       struct wn_err *err)
{
    const struct result out = {.logits = logits};

    return run(s, step, deadline_us, &out, err);
}

wn_status wn_stage_pick(struct wn_stage *s, const struct wn_step *step, int64_t deadline_us,
                        const struct wn_pick *each, uint32_t *tokens, struct wn_err *err)
{
    const struct result out = {.each = each, .tokens = tokens};

    WN_ASSERT(wn_stage_can_pick(s));
    return run(s, step, deadline_us, &out, err);
}

/* A page's bytes are in one piece, so that rows may be copied whatever their order inside it is. */
static wn_status copy_rows(struct wn_stage *s, const struct wn_mat *all, uint32_t from, uint32_t to)
{
    const uint32_t n = s->o.page_tokens;
    const struct wn_mat in = wn_mat_rows(*all, from * n, n), out = wn_mat_rows(*all, to * n, n);

    return wn_be_convert(s->o.be, &out, &in); /* from a type to itself */
}

wn_status wn_stage_copy_page(struct wn_stage *s, uint32_t from, uint32_t to, struct wn_err *err)
{
    wn_status rc = WN_OK;

    WN_ASSERT(from < s->o.pages && to < s->o.pages && from != to);
    for (uint32_t i = 0; rc == WN_OK && i < s->plan.layers[s->stage].n; i++) {
        rc = copy_rows(s, &s->layers[i].keys, from, to);
        if (rc == WN_OK) rc = copy_rows(s, &s->layers[i].values, from, to);
    }
    return rc == WN_OK ? rc : wn_fail(err, rc, "copy of page %u to %u: %s", from, to, wn_status_name(rc));
}

wn_status wn_stage_logits(struct wn_stage *s, uint32_t i, float *logits, struct wn_err *err)
{
    struct wn_backend *be = s->o.be;
    const struct wn_mat from = wn_mat_rows(*whole_rows(s), i, 1), scores = wn_mat_rows(s->scores, i, 1);
    const bool wide = from.dtype == WN_F32;
    wn_status rc = wide ? WN_OK : wn_be_convert(be, &scores, &from);

    WN_ASSERT(wn_stage_can_pick(s) && i < s->wanted_n);
    if (rc == WN_OK) rc = be->ops->download(be, logits, wide ? from.ptr : scores.ptr, from.cols * sizeof(*logits));
    return rc == WN_OK ? rc : wn_fail(err, rc, "logits of row %u: %s", i, wn_status_name(rc));
}
