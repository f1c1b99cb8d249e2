/* The operations: checks, the choice of a kernel, the tables that it reads, and the launch. */
#include "shard/cpu/check.h"
#include "shard/cuda/cuda.h"
#include "shard/pick.h"
#include "transport/device.h"

static struct wn_cuda *cuda(struct wn_backend *be)
{
    return (struct wn_cuda *)be;
}

static struct wn_cuda_mat view(const struct wn_mat *m)
{
    return (struct wn_cuda_mat){m->ptr, (uint32_t)m->dtype, m->rows, m->cols, m->stride};
}

static wn_status launched(int code, const char *op)
{
    return wn_cuda_check((cudaError_t)code, op, NULL);
}

static struct wn_cuda_key key_of(const void *from, uint32_t purpose, uint32_t words)
{
    return (struct wn_cuda_key){.from = from, .purpose = purpose, .words = words};
}

/* out[to[i]] = in[from[i]]; in rows of out, or of in where rows are scattered. */
static wn_status move_rows(struct wn_cuda *c, const struct wn_mat *out, const struct wn_mat *in, const uint32_t *to,
                           const uint32_t *from)
{
    const struct wn_cuda_launch l = {
        .op = WN_CUDA_OP_ROWS,
        .as.rows = {.out = view(out), .in = view(in), .to = to, .from = from, .rows = to ? in->rows : out->rows}};
    return wn_cuda_launch(c, &l);
}

static wn_status matmul_as(struct wn_cuda *c, const struct wn_matmul *a, struct wn_cuda_matmul m,
                           wn_cuda_matmul_kind kind)
{
    size_t need = wn_cuda_matmul_parts(kind, a, m.w.n);
    struct wn_cuda_launch l = {.op = 0};
    void *parts = NULL;
    wn_status rc = need ? wn_cuda_scratch(c, WN_CUDA_SCRATCH_PARTS, need * sizeof(float), &parts) : WN_OK;

    if (rc != WN_OK) return rc;
    m.parts = parts;
    if (kind == WN_CUDA_MATMUL_LT) { /* not for the rows of a step, so never kept */
        m.slices = 1;
        if ((rc = wn_cuda_flush(c)) != WN_OK) return rc;
        rc = wn_cuda_lt_run(c->lt, &m, &(struct wn_cuda_same){.n = 1}, c->stream);
        return rc == WN_OK && parts ? launched(wn_cuda_run_matmul_finish(&m, wn_cuda_now(c)), "matmul") : rc;
    }
    l.op = kind == WN_CUDA_MATMUL_MMA ? WN_CUDA_OP_MATMUL_MMA : WN_CUDA_OP_MATMUL_PLAIN;
    l.as.matmul = m;
    return wn_cuda_launch(c, &l);
}

static wn_cuda_matmul_kind choose(const struct wn_cuda *c, const struct wn_matmul *a)
{
    const wn_cuda_kernels kernels = c->kernels == WN_CUDA_FAST && !c->lt ? WN_CUDA_EXACT : c->kernels;

    return wn_cuda_choose_matmul(kernels, a, a->w->dtype, a->w->n, a->w->k);
}

static struct wn_cuda_w weight_view(const struct wn_weight *w)
{
    return (struct wn_cuda_w){w->ptr, w->scales, (uint32_t)w->dtype, w->n, w->k, w->stride};
}

wn_status wn_cuda_matmul(struct wn_backend *be, const struct wn_matmul *a)
{
    struct wn_cuda *c = cuda(be);
    const struct wn_weight *w = a->w;
    wn_cuda_matmul_kind kind;
    struct wn_cuda_matmul m = {.out = view(&a->out),
                               .x = view(&a->x),
                               .w = weight_view(w),
                               .bias = a->bias,
                               .slices = a->slices,
                               .act = (uint32_t)a->act};
    wn_status rc;

    wn_check_matmul(a, w->n, w->k);
    WN_ASSERT(a->slices <= 128); /* the kernels keep eight levels of the tree */
    WN_ASSERT(!w->scales || w->slices == a->slices);
    if (a->out.rows == 0 || w->n == 0) return WN_OK;
    kind = choose(c, a);
    rc = matmul_as(c, a, m, kind);
    if (kind != WN_CUDA_MATMUL_LT || rc != WN_EUNSUPP) return rc;
    /* cuBLASLt has no algorithm for this shape */
    return matmul_as(c, a, m, wn_cuda_choose_matmul(WN_CUDA_EXACT, a, w->dtype, w->n, w->k));
}

/* May product b go into one launch with a? */
static bool joins(const struct wn_cuda *c, const struct wn_matmul *a, const struct wn_matmul *b)
{
    return b->x.ptr == a->x.ptr && b->x.rows == a->x.rows && b->x.stride == a->x.stride && b->slices == 1 && !b->bias &&
           b->act == WN_ACT_NONE && b->w->n > 0 && b->w->dtype == a->w->dtype && choose(c, b) == WN_CUDA_MATMUL_MMA;
}

/* Are they products of one shape, whose weights and results lie in equal steps? */
static bool in_steps(const struct wn_cuda *c, const struct wn_matmul *a, uint32_t n, struct wn_cuda_same *of)
{
    const intptr_t e = (intptr_t)sizeof(wn_bf16);

    if (n < 2 || a->out.dtype != WN_BF16 || a->x.rows == 0) return false;
    *of = (struct wn_cuda_same){.n = n};
    for (uint32_t i = 0; i < n; i++) {
        const struct wn_matmul *b = &a[i];
        const intptr_t w = (intptr_t)b->w->ptr - (intptr_t)a->w->ptr, out = (intptr_t)b->out.ptr - (intptr_t)a->out.ptr;
        if (b->x.ptr != a->x.ptr || b->x.stride != a->x.stride || b->x.rows != a->x.rows || b->bias ||
            b->act != WN_ACT_NONE || b->out.dtype != a->out.dtype || b->out.stride != a->out.stride ||
            b->w->n != a->w->n || b->w->k != a->w->k || b->w->stride != a->w->stride ||
            choose(c, b) != WN_CUDA_MATMUL_LT)
            return false;
        if (i == 1) {
            of->w_step = w / e;
            of->out_step = out / e;
        }
        if (w < 0 || out < 0 || w != of->w_step * e * i || out != of->out_step * e * i) return false;
    }
    return of->w_step % 8 == 0 && of->out_step % 8 == 0;
}

/* One call of cuBLASLt, whose tiles fill the device together: those of gate, and then those of up, leave a third of it
 * idle at the end. WN_EUNSUPP: it has no algorithm for that. */
static wn_status matmuls_in_steps(struct wn_cuda *c, const struct wn_matmul *a, const struct wn_cuda_same *of)
{
    const struct wn_cuda_matmul m = {
        .out = view(&a->out), .x = view(&a->x), .w = weight_view(a->w), .slices = 1};
    wn_status rc;

    for (uint32_t i = 0; i < of->n; i++) wn_check_matmul(&a[i], a[i].w->n, a[i].w->k);
    rc = wn_cuda_flush(c);
    return rc == WN_OK ? wn_cuda_lt_run(c->lt, &m, of, c->stream) : rc;
}

/* Several launches read several matrices one after the other, and each ends with a part of the device idle. */
wn_status wn_cuda_matmuls(struct wn_backend *be, const struct wn_matmul *a, uint32_t n)
{
    struct wn_cuda *c = cuda(be);
    struct wn_cuda_launch l = {.op = WN_CUDA_OP_MATMUL_GROUP, .as.group = {.x = view(&a->x), .n = n}};
    bool together = n <= WN_CUDA_GROUP && a->x.rows > 0;
    struct wn_matmul back[4];
    struct wn_cuda_same of;
    wn_status rc = WN_OK;

    for (uint32_t i = 0; together && i < n; i++) {
        wn_check_matmul(&a[i], a[i].w->n, a[i].w->k);
        together = joins(c, a, &a[i]);
        l.as.group.out[i] = view(&a[i].out);
        l.as.group.w[i] = weight_view(a[i].w);
    }
    if (together) return wn_cuda_launch(c, &l);
    for (uint32_t i = 0; n <= 4 && i < n; i++) back[i] = a[n - 1 - i];
    if (in_steps(c, a, n, &of)) rc = matmuls_in_steps(c, a, &of);
    else if (n <= 4 && in_steps(c, back, n, &of)) rc = matmuls_in_steps(c, back, &of); /* memory from above */
    else rc = WN_EUNSUPP;
    if (rc != WN_EUNSUPP) return rc;
    rc = WN_OK;
    for (uint32_t i = 0; rc == WN_OK && i < n; i++) rc = wn_cuda_matmul(be, &a[i]);
    return rc;
}

static struct wn_cuda_norm norm_of(const struct wn_norm *a)
{
    return (struct wn_cuda_norm){.out = view(&a->out),
                                 .x = view(&a->x),
                                 .weight = a->weight,
                                 .bias = a->bias,
                                 .eps = a->eps,
                                 .rms = a->rms};
}

/* Rows that are read eight elements at a time, as common.cuh says it. */
static bool is_wide(const struct wn_mat *m)
{
    return m->cols % 8 == 0 && wn_cuda_aligned(m);
}

wn_status wn_cuda_add_norm(struct wn_backend *be, const struct wn_mat *y, const struct wn_norm *a)
{
    struct wn_cuda_launch l = {.op = WN_CUDA_OP_NORM, .as.norm = norm_of(a)};
    wn_status rc;

    wn_check_norm(a);
    wn_check_mat(y);
    wn_check_same_shape(&a->x, y);
    if (a->x.rows == 0 || a->x.cols == 0) return WN_OK;
    if (is_wide(&a->x) && is_wide(&a->out) && !is_wide(y)) { /* would sum in another order */
        rc = wn_cuda_add(be, &a->x, &a->x, y);
        return rc == WN_OK ? wn_cuda_norm(be, a) : rc;
    }
    l.as.norm.y = view(y);
    return wn_cuda_launch(cuda(be), &l);
}

wn_status wn_cuda_norm(struct wn_backend *be, const struct wn_norm *a)
{
    const struct wn_cuda_launch l = {
        .op = WN_CUDA_OP_NORM, .as.norm = norm_of(a)};

    wn_check_norm(a);
    return a->x.rows == 0 || a->x.cols == 0 ? WN_OK : wn_cuda_launch(cuda(be), &l);
}

/* The frequencies of (head_dim, theta) on the device: a model has one pair of them. */
static wn_status rope_freq(struct wn_cuda *c, uint32_t head_dim, float theta)
{
    uint32_t half = head_dim / 2;
    uint32_t *words = NULL;
    struct wn_buf buf = {0};
    wn_status rc;

    if (c->freq && c->rope_dim == head_dim && c->rope_theta == theta) return WN_OK;
    if ((rc = wn_cuda_words(c, half, &words)) != WN_OK) return rc;
    for (uint32_t i = 0; i < half; i++) {
        float freq = 1.0f / __builtin_powf(theta, (float)(2 * i) / (float)head_dim);
        memcpy(&words[i], &freq, sizeof(freq));
    }
    if ((rc = wn_cuda_buf_alloc(&c->base, half * sizeof(float), &buf)) != WN_OK) return rc;
    if ((rc = wn_cuda_upload(&c->base, buf.ptr, words, half * sizeof(float))) != WN_OK) {
        wn_cuda_buf_free(&c->base, &buf);
        return rc;
    }
    if (c->freq) wn_cuda_buf_free(&c->base, &(struct wn_buf){.ptr = c->freq});
    c->freq = buf.ptr;
    c->rope_dim = head_dim;
    c->rope_theta = theta;
    return WN_OK;
}

wn_status wn_cuda_rope(struct wn_backend *be, const struct wn_rope *a)
{
    struct wn_cuda *c = cuda(be);
    struct wn_cuda_launch l = {.op = WN_CUDA_OP_ROPE, .as.rope = {.x = view(&a->x), .head_dim = a->head_dim}};
    wn_status rc;

    wn_check_rope(a);
    if (a->x.rows == 0 || a->x.cols == 0) return WN_OK;
    rc = rope_freq(c, a->head_dim, a->theta);
    if (rc == WN_OK)
        rc = wn_cuda_table(c, key_of(a->position, WN_CUDA_TABLE_POSITIONS, a->x.rows), a->position,
                           &l.as.rope.position);
    l.as.rope.freq = c->freq;
    return rc == WN_OK ? wn_cuda_launch(c, &l) : rc;
}

/* The pool row of every row of the step, on the device. */
static wn_status targets_of(struct wn_cuda *c, const struct wn_kv_write *a, const uint32_t **out)
{
    const struct wn_cuda_key key = key_of(a->seqs, WN_CUDA_TABLE_TARGETS, a->k.rows);
    uint32_t *words = NULL;
    wn_status rc;

    if (wn_cuda_table_find(c, key, out)) return WN_OK;
    if ((rc = wn_cuda_words(c, a->k.rows, &words)) != WN_OK) return rc;
    wn_cuda_fill_targets(a->seqs, a->seqs_n, a->k.rows, a->kv.page_tokens, words);
    return wn_cuda_table(c, key, words, out);
}

wn_status wn_cuda_kv_write(struct wn_backend *be, const struct wn_kv_write *a)
{
    struct wn_cuda *c = cuda(be);
    const uint32_t *targets = NULL;
    wn_status rc;

    wn_check_kv_write(a);
    if (a->k.rows == 0 || a->k.cols == 0) return WN_OK;
    if ((rc = targets_of(c, a, &targets)) != WN_OK) return rc;
    rc = move_rows(c, &a->kv.k, &a->k, targets, NULL);
    return rc == WN_OK ? move_rows(c, &a->kv.v, &a->v, targets, NULL) : rc;
}

wn_status wn_cuda_rope_kv(struct wn_backend *be, const struct wn_rope *r, const struct wn_kv_write *w)
{
    struct wn_cuda *c = cuda(be);
    struct wn_cuda_launch l = {.op = WN_CUDA_OP_ROPE_KV,
                               .as.rope_kv = {.x = view(&r->x),
                                              .v = view(&w->v),
                                              .keys = view(&w->kv.k),
                                              .values = view(&w->kv.v),
                                              .head_dim = r->head_dim,
                                              .q_cols = r->x.cols - w->k.cols}};
    wn_status rc;

    wn_check_rope(r);
    wn_check_kv_write(w);
    WN_ASSERT(w->k.ptr == wn_mat_cols(r->x, r->x.cols - w->k.cols, w->k.cols).ptr && w->v.cols % 2 == 0);
    if (r->x.rows == 0 || w->k.cols == 0) return WN_OK;
    rc = rope_freq(c, r->head_dim, r->theta);
    if (rc == WN_OK)
        rc = wn_cuda_table(c, key_of(r->position, WN_CUDA_TABLE_POSITIONS, r->x.rows), r->position,
                           &l.as.rope_kv.position);
    if (rc == WN_OK) rc = targets_of(c, w, &l.as.rope_kv.targets);
    l.as.rope_kv.freq = c->freq;
    return rc == WN_OK ? wn_cuda_launch(c, &l) : rc;
}

/* Fills in the tables and launches; d has matrices and shapes. */
static wn_status attention(struct wn_cuda *c, struct wn_cuda_attn *d, const struct wn_seq *seqs, uint32_t seqs_n,
                           bool tensor)
{
    uint32_t group = d->heads / d->kv_heads, rows = d->q.rows;
    struct wn_cuda_attn_plan p = wn_cuda_plan_attn(seqs, seqs_n, rows, group, d->page_tokens);
    struct wn_cuda_launch l = {.op = tensor ? WN_CUDA_OP_ATTN_MMA : WN_CUDA_OP_ATTN_PLAIN};
    struct wn_cuda_key key;
    size_t values;
    uint32_t *words = NULL;
    const uint32_t *device = NULL;
    void *parts = NULL;
    wn_status rc = WN_OK;

    if (c->queue.open) wn_cuda_pad_attn(&p, seqs, seqs_n, rows, group, d->page_tokens);
    values = (size_t)p.chunks * rows * d->heads;
    key = key_of(seqs, WN_CUDA_TABLE_ATTN, p.words);
    if (!wn_cuda_table_find(c, key, &device)) {
        if ((rc = wn_cuda_words(c, p.words, &words)) != WN_OK) return rc;
        wn_cuda_fill_attn(&p, seqs, seqs_n, rows, group, d->page_tokens, words);
        if ((rc = wn_cuda_table(c, key, words, &device)) != WN_OK) return rc;
    }
    d->seqs = (const struct wn_cuda_seq *)(device + p.seqs);
    d->row_seq = device + p.row_seq;
    d->tables = device + p.tables;
    d->tiles = (const struct wn_cuda_tile *)(device + p.tiles);
    d->split_tiles = (const struct wn_cuda_tile *)(device + p.split_tiles);
    d->tiles_n = p.tiles_n;
    d->split_tiles_n = p.split_tiles_n;
    d->chunks = p.chunks;
    d->split_rows = p.split_rows;
    if (tensor && values)
        rc = wn_cuda_scratch(c, WN_CUDA_SCRATCH_ATTN, values * (d->head_dim + 2) * sizeof(float), &parts);
    d->part_out = parts;
    d->part_ml = parts ? d->part_out + values * d->head_dim : NULL;
    l.as.attn = *d;
    return rc == WN_OK ? wn_cuda_launch(c, &l) : rc;
}

wn_status wn_cuda_attn_paged(struct wn_backend *be, const struct wn_attn_paged *a)
{
    struct wn_cuda *c = cuda(be);
    struct wn_cuda_attn d = {.out = view(&a->out),
                             .q = view(&a->q),
                             .k = view(&a->kv.k),
                             .v = view(&a->kv.v),
                             .page_tokens = a->kv.page_tokens,
                             .heads = a->heads,
                             .kv_heads = a->kv_heads,
                             .head_dim = a->head_dim,
                             .causal = true,
                             .scale = a->scale};

    wn_check_attn_paged(a);
    if (a->q.rows == 0 || a->seqs_n == 0) return WN_OK;
    return attention(c, &d, a->seqs, a->seqs_n,
                     wn_cuda_choose_attn_mma(c->kernels, &a->q, &a->kv.k, &a->kv.v, a->head_dim));
}

static wn_status taps(struct wn_cuda *c, const struct wn_attn_full *a)
{
    struct wn_cuda_taps t = {.q = view(&a->q),
                             .k = view(&a->k),
                             .images = a->images,
                             .tokens = a->tokens,
                             .heads = a->heads,
                             .head_dim = a->head_dim,
                             .scale = a->scale,
                             .cls_rows = a->cls_rows,
                             .mean_cols = a->mean_cols};
    void *stats = NULL;
    wn_status rc =
        wn_cuda_scratch(c, WN_CUDA_SCRATCH_TAPS, (size_t)a->q.rows * a->heads * 2 * sizeof(float), &stats);

    t.stats = stats;
    if (rc == WN_OK) rc = wn_cuda_flush(c);
    return rc == WN_OK ? launched(wn_cuda_run_taps(&t, wn_cuda_now(c)), "attention taps") : rc;
}

/* An image is a sequence without a past whose keys fill one page of the matrices themselves. */
wn_status wn_cuda_attn_full(struct wn_backend *be, const struct wn_attn_full *a)
{
    enum { AT_ONCE = 64 };
    struct wn_cuda *c = cuda(be);
    struct wn_cuda_attn d = {.k = view(&a->k),
                             .v = view(&a->v),
                             .page_tokens = a->tokens,
                             .heads = a->heads,
                             .kv_heads = a->heads,
                             .head_dim = a->head_dim,
                             .scale = a->scale};
    bool tensor = wn_cuda_choose_attn_mma(c->kernels, &a->q, &a->k, &a->v, a->head_dim);
    wn_status rc = WN_OK;

    wn_check_attn_full(a);
    for (uint32_t first = 0; rc == WN_OK && first < a->images; first += AT_ONCE) {
        uint32_t n = a->images - first < AT_ONCE ? a->images - first : AT_ONCE, pages[AT_ONCE];
        struct wn_mat q = wn_mat_rows(a->q, first * a->tokens, n * a->tokens);
        struct wn_mat out = wn_mat_rows(a->out, first * a->tokens, n * a->tokens);
        struct wn_seq seqs[AT_ONCE];
        for (uint32_t i = 0; i < n; i++) {
            pages[i] = first + i;
            seqs[i] = (struct wn_seq){.first_row = i * a->tokens, .rows = a->tokens, .pages = &pages[i]};
        }
        d.q = view(&q);
        d.out = view(&out);
        rc = attention(c, &d, seqs, n, tensor);
    }
    if (rc == WN_OK && a->images > 0 && (a->cls_rows || a->mean_cols)) rc = taps(c, a);
    return rc;
}

static wn_status pair(struct wn_cuda *c, wn_cuda_op op, const struct wn_mat *out, const struct wn_mat *a,
                      const struct wn_mat *b)
{
    const struct wn_cuda_launch l = {.op = op, .as.pair = {view(out), view(a), view(b)}};

    wn_check_elementwise(out, a, b);
    return out->rows == 0 || out->cols == 0 ? WN_OK : wn_cuda_launch(c, &l);
}

wn_status wn_cuda_add(struct wn_backend *be, const struct wn_mat *out, const struct wn_mat *a, const struct wn_mat *b)
{
    return pair(cuda(be), WN_CUDA_OP_ADD, out, a, b);
}

wn_status wn_cuda_silu_mul(struct wn_backend *be, const struct wn_mat *out, const struct wn_mat *gate,
                           const struct wn_mat *up)
{
    return pair(cuda(be), WN_CUDA_OP_SILU_MUL, out, gate, up);
}

wn_status wn_cuda_gather_rows(struct wn_backend *be, const struct wn_mat *out, const struct wn_mat *table,
                              const uint32_t *index)
{
    struct wn_cuda *c = cuda(be);
    const uint32_t *device = NULL;
    wn_status rc;

    wn_check_mat(out);
    wn_check_source(table);
    WN_ASSERT(out->cols == table->cols && (index || out->rows == 0));
    if (out->rows == 0 || out->cols == 0) return WN_OK;
    rc = wn_cuda_table(c, key_of(index, WN_CUDA_TABLE_ROWS, out->rows), index, &device);
    return rc == WN_OK ? move_rows(c, out, table, NULL, device) : rc;
}

wn_status wn_cuda_convert(struct wn_backend *be, const struct wn_mat *out, const struct wn_mat *in)
{
    wn_check_mat(out);
    wn_check_source(in);
    wn_check_same_shape(out, in);
    return out->rows == 0 || out->cols == 0 ? WN_OK : move_rows(cuda(be), out, in, NULL, NULL);
}

_Static_assert(sizeof(struct wn_pick) == sizeof(struct wn_cuda_pick), "the device reads a table of the host's");

wn_status wn_cuda_pick(struct wn_backend *be, const struct wn_picks *a)
{
    const uint32_t words = a->logits.rows * (uint32_t)(sizeof(struct wn_pick) / sizeof(uint32_t));
    struct wn_cuda_launch l = {.op = WN_CUDA_OP_PICK, .as.picks = {.logits = view(&a->logits), .out = a->out}};
    const uint32_t *device = NULL;
    wn_status rc;

    wn_check_mat(&a->logits);
    if (a->logits.rows == 0) return WN_OK;
    rc = wn_cuda_table(cuda(be), key_of(a->each, WN_CUDA_TABLE_PICKS, words), (const uint32_t *)a->each, &device);
    l.as.picks.each = (const struct wn_cuda_pick *)device;
    return rc == WN_OK ? wn_cuda_launch(cuda(be), &l) : rc;
}

wn_status wn_cuda_sum_parts(struct wn_backend *be, const struct wn_dev_sum *a)
{
    const struct wn_cuda_sum s = {.out = a->out,
                                  .parts = a->parts,
                                  .own = a->own,
                                  .stride = a->stride,
                                  .count = a->count,
                                  .n = (uint32_t)a->n,
                                  .me = (uint32_t)a->me};

    WN_ASSERT(a->n >= 1 && a->n <= WN_DEV_GROUP_MAX);
    return a->count ? launched(wn_cuda_run_sum_tree(&s, wn_cuda_now(cuda(be))), "sum") : WN_OK;
}
