/* shard/cpu/rows.c - operations row by row. A row is taken in float32 through a buffer of this thread and rounded when
 * it is stored. */
#include <math.h>
#include <stdlib.h>

#include "shard/cpu/check.h"
#include "shard/cpu/cpu.h"
#include "shard/cpu/kv.h"
#include "shard/cpu/memory.h"

#define CHUNK          1024u  /* elements of a row taken at a time where a row has no sums */
#define SMALL_ELEMENTS 8192u  /* less work than this is not worth waking threads for */
#define ROPE_ROWS_MAX  (1u << 20)

static int threads_for(size_t rows, size_t cols)
{
    return rows * cols < SMALL_ELEMENTS ? 1 : wn_cpu_threads();
}

/* x += y for a row, in `sum`; what is stored is taken up again, rounded. */
static void add_row(const struct wn_cpu_isa *isa, const struct wn_mat *x, const struct wn_mat *y, uint32_t r,
                    float *sum, float *room)
{
    isa->load(sum, wn_mat_at(x, r, 0), x->dtype, x->cols);
    isa->load(room, wn_mat_at(y, r, 0), y->dtype, y->cols);
    isa->add(sum, room, x->cols);
    isa->store(wn_mat_at(x, r, 0), x->dtype, sum, x->cols);
}

/* With y, x += y goes before each row's norm. */
static wn_status norm_rows(struct wn_cpu *cpu, const struct wn_mat *y, const struct wn_norm *a)
{
    const struct wn_cpu_isa *isa = cpu->isa;
    size_t n = a->x.cols, room = wn_cpu_round_up(n);
    int threads = threads_for(a->x.rows, y ? 2 * n : n);
    float *scratch;

    if (a->x.rows == 0 || n == 0) return WN_OK;
    scratch = wn_cpu_scratch(cpu, 2 * (size_t)threads * room * sizeof(float));
    if (!scratch) return WN_ENOMEM;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (uint32_t r = 0; r < a->x.rows; r++) {
        float *row = scratch + 2 * (size_t)wn_cpu_thread() * room, mean = 0.0f, scale;
        if (y) add_row(isa, &a->x, y, r, row, row + room);
        isa->load(row, wn_mat_at(&a->x, r, 0), a->x.dtype, n);
        if (!a->rms) mean = isa->sum(row, n) / (float)n;
        scale = 1.0f / sqrtf(isa->sum_squares(row, mean, n) / (float)n + a->eps);
        isa->normalise(row, mean, scale, a->weight, a->bias, n);
        isa->store(wn_mat_at(&a->out, r, 0), a->out.dtype, row, n);
    }
    return WN_OK;
}

wn_status wn_cpu_norm(struct wn_backend *be, const struct wn_norm *a)
{
    wn_check_norm(a);
    return norm_rows((struct wn_cpu *)be, NULL, a);
}

wn_status wn_cpu_add_norm(struct wn_backend *be, const struct wn_mat *y, const struct wn_norm *a)
{
    wn_check_norm(a);
    wn_check_elementwise(&a->x, &a->x, y);
    return norm_rows((struct wn_cpu *)be, y, a);
}

/* cos and sin of position p: rows of [half] floats, cosines then sines. */
static void rope_row(float *to, uint32_t p, uint32_t head_dim, float theta)
{
    uint32_t half = head_dim / 2;
    for (uint32_t i = 0; i < half; i++) {
        float freq = 1.0f / powf(theta, (float)(2 * i) / (float)head_dim), angle = (float)p * freq;
        to[i] = cosf(angle);
        to[half + i] = sinf(angle);
    }
}

/* Makes the table of positions [0, rows) for this shape; every layer asks for the same one. */
static wn_status rope_table(struct wn_cpu *cpu, uint32_t rows, uint32_t head_dim, float theta)
{
    bool same = cpu->rope && cpu->rope_dim == head_dim && memcmp(&cpu->rope_theta, &theta, sizeof(theta)) == 0;
    uint32_t first = same ? cpu->rope_rows : 0, want = 256;
    float *t;

    if (rows <= first) return WN_OK;
    while (want < rows) want *= 2;
    t = wn_cpu_alloc((size_t)want * head_dim * sizeof(float));
    if (!t) return wn_fail(NULL, WN_ENOMEM, "cpu: rotary table of %u positions", want);
    if (first) memcpy(t, cpu->rope, (size_t)first * head_dim * sizeof(float));
#pragma omp parallel for schedule(static)
    for (uint32_t p = first; p < want; p++) rope_row(t + (size_t)p * head_dim, p, head_dim, theta);
    free(cpu->rope);
    cpu->rope = t;
    cpu->rope_rows = want;
    cpu->rope_dim = head_dim;
    cpu->rope_theta = theta;
    return WN_OK;
}

/* The table that these rows need, and scratch: *room floats for each of `threads`. */
static wn_status rope_prepare(struct wn_cpu *cpu, const struct wn_rope *a, int threads, float **scratch, size_t *room)
{
    uint32_t last = 0;
    wn_status rc;

    for (uint32_t r = 0; r < a->x.rows; r++)
        if (a->position[r] > last && a->position[r] < ROPE_ROWS_MAX) last = a->position[r];
    if ((rc = rope_table(cpu, last + 1, a->head_dim, a->theta)) != WN_OK) return rc;
    *room = wn_cpu_round_up((size_t)a->x.cols + a->head_dim);
    *scratch = wn_cpu_scratch(cpu, (size_t)threads * *room * sizeof(float));
    return *scratch ? WN_OK : WN_ENOMEM;
}

static void rotate_row(const struct wn_cpu *cpu, const struct wn_rope *a, uint32_t r, float *row)
{
    const uint32_t hd = a->head_dim, half = hd / 2;
    float *own = row + a->x.cols;
    const float *table = own;

    if (a->position[r] < cpu->rope_rows)
        table = cpu->rope + (size_t)a->position[r] * hd;
    else
        rope_row(own, a->position[r], hd, a->theta);
    cpu->isa->load(row, wn_mat_at(&a->x, r, 0), a->x.dtype, a->x.cols);
    for (uint32_t h = 0; h < a->x.cols; h += hd) cpu->isa->rotate(row + h, table, table + half, half);
    cpu->isa->store(wn_mat_at(&a->x, r, 0), a->x.dtype, row, a->x.cols);
}

wn_status wn_cpu_rope(struct wn_backend *be, const struct wn_rope *a)
{
    struct wn_cpu *cpu = (struct wn_cpu *)be;
    const int threads = threads_for(a->x.rows, a->x.cols);
    size_t room;
    float *scratch;
    wn_status rc;

    wn_check_rope(a);
    if ((rc = rope_prepare(cpu, a, threads, &scratch, &room)) != WN_OK) return rc;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (uint32_t r = 0; r < a->x.rows; r++) rotate_row(cpu, a, r, scratch + (size_t)wn_cpu_thread() * room);
    return WN_OK;
}

/* Row `from` of in becomes row `to` of out. */
static void convert_row(const struct wn_cpu_isa *isa, const struct wn_mat *out, size_t to, const struct wn_mat *in,
                        size_t from)
{
    float buf[CHUNK];
    if (in->dtype == out->dtype) {
        memcpy(wn_mat_at(out, to, 0), wn_mat_at(in, from, 0), wn_mat_row_bytes(out));
        return;
    }
    for (size_t c = 0; c < out->cols; c += CHUNK) {
        size_t n = out->cols - c < CHUNK ? out->cols - c : CHUNK;
        isa->load(buf, wn_mat_at(in, from, c), in->dtype, n);
        isa->store(wn_mat_at(out, to, c), out->dtype, buf, n);
    }
}

/* A row of `cols` elements to its places in the panels, element by element; it may change its type. */
static void scatter_row(const struct wn_mat *to, const struct wn_mat *from, size_t row, size_t cols, const void *data,
                        bool keys)
{
    for (size_t c = 0; c < cols; c++)
        wn_store(to->ptr, to->dtype, keys ? wn_cpu_kv_key_at(to, row, c) : wn_cpu_kv_value_at(to, row, c),
                 wn_load(data, from->dtype, c));
}

static void scatter_bf16(const struct wn_mat *k, const struct wn_mat *v, size_t row, const wn_bf16 *key,
                         const wn_bf16 *value)
{
    wn_bf16 *to = (wn_bf16 *)k->ptr + wn_cpu_kv_key_at(k, row, 0);
    wn_bf16 *panels = (wn_bf16 *)v->ptr + row / WN_CPU_COLS * WN_CPU_COLS * v->cols + row % WN_CPU_COLS * WN_CPU_COLS;

    for (size_t c = 0; c < k->cols; c++) to[c * WN_CPU_COLS] = key[c];
    for (size_t c = 0; c < v->cols; c += WN_CPU_COLS, panels += WN_CPU_COLS * WN_CPU_COLS)
        for (size_t i = 0; i < WN_CPU_COLS; i++) panels[WN_CPU_BF16_AT(i)] = value[c + i];
}

/* The row's elements to their places in the panels. */
static void scatter_kv(const struct wn_kv_write *a, size_t to, size_t from)
{
    const struct wn_mat *k = &a->kv.k, *v = &a->kv.v;
    const void *key = wn_mat_at(&a->k, from, 0), *value = wn_mat_at(&a->v, from, 0);

    if (k->dtype == WN_BF16 && v->dtype == WN_BF16 && a->k.dtype == WN_BF16 && a->v.dtype == WN_BF16) {
        scatter_bf16(k, v, to, key, value);
    } else {
        scatter_row(k, &a->k, to, k->cols, key, true);
        scatter_row(v, &a->v, to, v->cols, value, false);
    }
}

/* Row r of the step into its page, if it is of a sequence. The rows of a thread ascend, and *seq with them. */
static void write_kv_row(const struct wn_cpu_isa *isa, const struct wn_kv_write *a, const struct wn_seq **seq,
                         uint32_t r)
{
    const struct wn_seq *q = *seq, *end = a->seqs + a->seqs_n;
    size_t to;

    while (q < end && q->first_row + q->rows <= r) q++;
    *seq = q;
    if (q == end || r < q->first_row) return;
    to = wn_cpu_kv_row(&a->kv, q, q->pos + r - q->first_row);
    if (wn_cpu_kv_panels(&a->kv)) {
        scatter_kv(a, to, r);
    } else {
        convert_row(isa, &a->kv.k, to, &a->k, r);
        convert_row(isa, &a->kv.v, to, &a->v, r);
    }
}

wn_status wn_cpu_kv_write(struct wn_backend *be, const struct wn_kv_write *a)
{
    const struct wn_cpu_isa *isa = ((struct wn_cpu *)be)->isa;
    const struct wn_seq *seq = a->seqs;
    const int threads = threads_for(a->k.rows, 4 * (size_t)a->k.cols);

    wn_check_kv_write(a);
#pragma omp parallel for schedule(static) num_threads(threads) firstprivate(seq) if (threads > 1)
    for (uint32_t r = 0; r < a->k.rows; r++) write_kv_row(isa, a, &seq, r);
    return WN_OK;
}

wn_status wn_cpu_rope_kv(struct wn_backend *be, const struct wn_rope *a, const struct wn_kv_write *w)
{
    struct wn_cpu *cpu = (struct wn_cpu *)be;
    const struct wn_seq *seq = w->seqs;
    const int threads = threads_for(a->x.rows, a->x.cols + 2 * (size_t)w->k.cols);
    size_t room;
    float *scratch;
    wn_status rc;

    wn_check_rope(a);
    wn_check_kv_write(w);
    WN_ASSERT(a->x.rows == w->k.rows);
    if ((rc = rope_prepare(cpu, a, threads, &scratch, &room)) != WN_OK) return rc;
#pragma omp parallel for schedule(static) num_threads(threads) firstprivate(seq) if (threads > 1)
    for (uint32_t r = 0; r < a->x.rows; r++) {
        rotate_row(cpu, a, r, scratch + (size_t)wn_cpu_thread() * room);
        write_kv_row(cpu->isa, w, &seq, r);
    }
    return WN_OK;
}

typedef void (*pair_fn)(const struct wn_cpu_isa *isa, float *x, const float *y, size_t n, wn_dtype between);

static void pair_add(const struct wn_cpu_isa *isa, float *x, const float *y, size_t n, wn_dtype between)
{
    (void)between;
    isa->add(x, y, n);
}

static void pair_silu_mul(const struct wn_cpu_isa *isa, float *x, const float *y, size_t n, wn_dtype between)
{
    isa->activate(x, n, WN_ACT_SILU);
    if (between == WN_BF16) {
        wn_bf16 t[CHUNK];
        isa->store(t, WN_BF16, x, n);
        isa->load(x, t, WN_BF16, n);
    }
    isa->mul(x, y, n);
}

static wn_status pairwise(struct wn_backend *be, const struct wn_mat *out, const struct wn_mat *a,
                          const struct wn_mat *b, pair_fn fn)
{
    const struct wn_cpu_isa *isa = ((struct wn_cpu *)be)->isa;
    uint32_t chunks = (out->cols + CHUNK - 1) / CHUNK;
    int threads = threads_for(out->rows, out->cols);

    wn_check_elementwise(out, a, b);
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads) if (threads > 1)
    for (uint32_t r = 0; r < out->rows; r++) {
        for (uint32_t i = 0; i < chunks; i++) {
            float x[CHUNK], y[CHUNK];
            size_t c = (size_t)i * CHUNK, n = out->cols - c < CHUNK ? out->cols - c : CHUNK;
            isa->load(x, wn_mat_at(a, r, c), a->dtype, n);
            isa->load(y, wn_mat_at(b, r, c), b->dtype, n);
            fn(isa, x, y, n, out->dtype);
            isa->store(wn_mat_at(out, r, c), out->dtype, x, n);
        }
    }
    return WN_OK;
}

wn_status wn_cpu_add(struct wn_backend *be, const struct wn_mat *out, const struct wn_mat *a, const struct wn_mat *b)
{
    return pairwise(be, out, a, b, pair_add);
}

wn_status wn_cpu_silu_mul(struct wn_backend *be, const struct wn_mat *out, const struct wn_mat *gate,
                          const struct wn_mat *up)
{
    return pairwise(be, out, gate, up, pair_silu_mul);
}

wn_status wn_cpu_gather_rows(struct wn_backend *be, const struct wn_mat *out, const struct wn_mat *table,
                             const uint32_t *index)
{
    const struct wn_cpu_isa *isa = ((struct wn_cpu *)be)->isa;

    wn_check_mat(out);
    wn_check_source(table);
    WN_ASSERT(out->cols == table->cols && (index || out->rows == 0));
    for (uint32_t r = 0; r < out->rows; r++) {
        if (index[r] < table->rows)
            convert_row(isa, out, r, table, index[r]);
        else
            memset(wn_mat_at(out, r, 0), 0, wn_mat_row_bytes(out));
    }
    return WN_OK;
}

wn_status wn_cpu_convert(struct wn_backend *be, const struct wn_mat *out, const struct wn_mat *in)
{
    const struct wn_cpu_isa *isa = ((struct wn_cpu *)be)->isa;
    int threads = threads_for(out->rows, out->cols);

    wn_check_mat(out);
    wn_check_source(in);
    wn_check_same_shape(out, in);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (uint32_t r = 0; r < out->rows; r++) convert_row(isa, out, r, in, r);
    return WN_OK;
}
