/* shard/cpu/reference.c - the yardstick: every operation as a plain loop, in the order that backend.h states. */
#include <math.h>
#include <stdlib.h>

#include "shard/backend.h"
#include "shard/cpu/check.h"
#include "shard/cpu/memory.h"

struct wn_weight {
    uint32_t n, k;
    float *t; /* [k, n]: the transpose, already rounded to the kept type and widened again */
    uint32_t slices;
    float *scales; /* [slices, n] of int8 weights, else NULL */
};

static wn_status ref_open(struct wn_backend **out, int device, struct wn_err *err)
{
    struct wn_backend *be;

    if (device != 0) return wn_fail(err, WN_EINVAL, "cpu-reference: device %d: there is only device 0", device);
    be = calloc(1, sizeof(*be));
    if (!be) return wn_fail(err, WN_ENOMEM, "cpu-reference: backend handle");
    be->ops = &wn_backend_cpu_reference;
    *out = be;
    return WN_OK;
}

static void ref_close(struct wn_backend *be)
{
    free(be);
}

static wn_status ref_weight_create(struct wn_backend *be, struct wn_weight **out, const struct wn_mat *host,
                                   wn_dtype as)
{
    struct wn_weight *w = calloc(1, sizeof(*w));
    (void)be;
    wn_check_source(host);
    WN_ASSERT(as == WN_F32 || as == WN_BF16);
    if (w) w->t = wn_cpu_alloc((size_t)host->rows * host->cols * sizeof(float));
    if (!w || !w->t) {
        free(w);
        return wn_fail(NULL, WN_ENOMEM, "cpu-reference: weight [%u, %u]", host->rows, host->cols);
    }
    w->n = host->rows;
    w->k = host->cols;
    for (size_t j = 0; j < w->n; j++) {
        for (size_t i = 0; i < w->k; i++) {
            float v = wn_load(wn_mat_at(host, j, 0), host->dtype, i);
            w->t[i * w->n + j] = as == WN_BF16 ? wn_bf16_to_f32(wn_f32_to_bf16(v)) : v;
        }
    }
    *out = w;
    return WN_OK;
}

static void ref_weight_destroy(struct wn_backend *be, struct wn_weight *w)
{
    (void)be;
    if (!w) return;
    free(w->scales);
    free(w->t);
    free(w);
}

static wn_status ref_weight_i8(struct wn_backend *be, struct wn_weight **out, const struct wn_mat *host,
                                 uint32_t slices)
{
    struct wn_weight *w = NULL;
    wn_status rc = ref_weight_create(be, &w, host, WN_F32);
    const size_t len = host->cols / slices;

    if (rc != WN_OK) return rc;
    WN_ASSERT(slices >= 1 && host->cols % slices == 0);
    w->slices = slices;
    w->scales = calloc((size_t)slices * w->n, sizeof(float));
    if (!w->scales) {
        ref_weight_destroy(be, w);
        return wn_fail(NULL, WN_ENOMEM, "cpu-reference: scales of a weight [%u, %u]", host->rows, host->cols);
    }
    for (size_t i = 0; i < (size_t)slices * w->n; i++) {
        const size_t s = i / w->n, j = i % w->n;
        float m = 0.0f;
        for (size_t k = s * len; k < (s + 1) * len; k++) {
            const float v = fabsf(w->t[k * w->n + j]);
            if (!(v <= m)) m = v;
            if (isnan(v)) break;
        }
        w->scales[i] = m / 127.0f;
        for (size_t k = s * len; k < (s + 1) * len; k++) {
            const float q = w->t[k * w->n + j] * (127.0f / m);
            w->t[k * w->n + j] = isfinite(q) ? rintf(q) : 0.0f;
        }
    }
    *out = w;
    return WN_OK;
}

static float activate(float v, wn_act act)
{
    switch (act) {
    case WN_ACT_GELU:
        return 0.5f * v * (1.0f + erff(v * 0.70710678f));
    case WN_ACT_QUICK_GELU:
        return v / (1.0f + expf(-1.702f * v));
    case WN_ACT_SILU:
        return v / (1.0f + expf(-v));
    case WN_ACT_NONE:
        break;
    }
    return v;
}

/* sum[n] = the part [k0, k0 + len) of row x times w, as a tree over `slices` equal parts. tmp holds a row a level. */
static void matmul_tree(float *sum, float *tmp, const struct wn_mat *x, size_t row, const struct wn_weight *w,
                        size_t k0, size_t len, uint32_t slices)
{
    if (slices > 1) {
        matmul_tree(sum, tmp, x, row, w, k0, len / 2, slices / 2);
        matmul_tree(tmp, tmp + w->n, x, row, w, k0 + len / 2, len / 2, slices / 2);
        for (size_t j = 0; j < w->n; j++) sum[j] += tmp[j];
        return;
    }
    for (size_t j = 0; j < w->n; j++) sum[j] = 0.0f;
    for (size_t k = k0; k < k0 + len; k++) {
        float xv = wn_load(wn_mat_at(x, row, 0), x->dtype, k);
        const float *wk = w->t + k * w->n;
        for (size_t j = 0; j < w->n; j++) sum[j] += xv * wk[j];
    }
    for (size_t j = 0; w->scales && j < w->n; j++) sum[j] *= w->scales[k0 / len * w->n + j];
}

static wn_status ref_matmul(struct wn_backend *be, const struct wn_matmul *a)
{
    const struct wn_weight *w = a->w;
    size_t levels = 2;
    float *sum;
    (void)be;

    wn_check_matmul(a, w->n, w->k);
    WN_ASSERT(!w->scales || w->slices == a->slices);
    for (uint32_t s = a->slices; s > 1; s /= 2) levels++;
    sum = calloc(levels * w->n, sizeof(float));
    if (!sum) return wn_fail(NULL, WN_ENOMEM, "cpu-reference: matmul scratch for %u columns", w->n);
    for (size_t i = 0; i < a->out.rows; i++) {
        matmul_tree(sum, sum + w->n, &a->x, i, w, 0, w->k, a->slices);
        for (size_t j = 0; j < w->n; j++) {
            float v = a->bias ? sum[j] + a->bias[j] : sum[j];
            wn_store(wn_mat_at(&a->out, i, 0), a->out.dtype, j, activate(v, a->act));
        }
    }
    free(sum);
    return WN_OK;
}

static wn_status ref_norm(struct wn_backend *be, const struct wn_norm *a)
{
    size_t n = a->x.cols;
    (void)be;

    wn_check_norm(a);
    for (size_t r = 0; r < a->x.rows; r++) {
        const void *x = wn_mat_at(&a->x, r, 0);
        void *out = wn_mat_at(&a->out, r, 0);
        float mean = 0.0f, square = 0.0f, scale;

        if (!a->rms) {
            for (size_t i = 0; i < n; i++) mean += wn_load(x, a->x.dtype, i);
            mean /= (float)n;
        }
        for (size_t i = 0; i < n; i++) {
            float d = wn_load(x, a->x.dtype, i) - mean;
            square += d * d;
        }
        scale = 1.0f / sqrtf(square / (float)n + a->eps);
        for (size_t i = 0; i < n; i++) {
            float v = (wn_load(x, a->x.dtype, i) - mean) * scale * a->weight[i];
            wn_store(out, a->out.dtype, i, a->bias ? v + a->bias[i] : v);
        }
    }
    return WN_OK;
}

static wn_status ref_rope(struct wn_backend *be, const struct wn_rope *a)
{
    uint32_t half = a->head_dim / 2;
    (void)be;

    wn_check_rope(a);
    for (size_t r = 0; r < a->x.rows; r++) {
        for (uint32_t i = 0; i < half; i++) {
            float freq = 1.0f / powf(a->theta, (float)(2 * i) / (float)a->head_dim);
            float angle = (float)a->position[r] * freq, c = cosf(angle), s = sinf(angle);
            for (size_t h = 0; h < a->x.cols; h += a->head_dim) {
                void *x = wn_mat_at(&a->x, r, h);
                float x0 = wn_load(x, a->x.dtype, i), x1 = wn_load(x, a->x.dtype, i + half);
                wn_store(x, a->x.dtype, i, x0 * c - x1 * s);
                wn_store(x, a->x.dtype, i + half, x1 * c + x0 * s);
            }
        }
    }
    return WN_OK;
}

static size_t kv_row(const struct wn_kv *kv, const struct wn_seq *seq, uint32_t position)
{
    return (size_t)seq->pages[position / kv->page_tokens] * kv->page_tokens + position % kv->page_tokens;
}

static wn_status ref_kv_write(struct wn_backend *be, const struct wn_kv_write *a)
{
    (void)be;
    wn_check_kv_write(a);
    for (uint32_t s = 0; s < a->seqs_n; s++) {
        const struct wn_seq *seq = &a->seqs[s];
        for (uint32_t i = 0; i < seq->rows; i++) {
            size_t to = kv_row(&a->kv, seq, seq->pos + i), from = (size_t)seq->first_row + i;
            for (uint32_t c = 0; c < a->k.cols; c++) {
                wn_store(wn_mat_at(&a->kv.k, to, 0), a->kv.k.dtype, c,
                         wn_load(wn_mat_at(&a->k, from, 0), a->k.dtype, c));
                wn_store(wn_mat_at(&a->kv.v, to, 0), a->kv.v.dtype, c,
                         wn_load(wn_mat_at(&a->v, from, 0), a->v.dtype, c));
            }
        }
    }
    return WN_OK;
}

static float dot(const struct wn_mat *q, size_t qr, const struct wn_mat *k, size_t kr, size_t qc, size_t kc, size_t n)
{
    float sum = 0.0f;
    for (size_t i = 0; i < n; i++)
        sum += wn_load(wn_mat_at(q, qr, qc), q->dtype, i) * wn_load(wn_mat_at(k, kr, kc), k->dtype, i);
    return sum;
}

/* p[n]: scores become probabilities. */
static void softmax(float *p, size_t n)
{
    float max = p[0], sum = 0.0f;
    for (size_t j = 1; j < n; j++) max = fmaxf(max, p[j]);
    for (size_t j = 0; j < n; j++) sum += p[j] = expf(p[j] - max);
    for (size_t j = 0; j < n; j++) p[j] /= sum;
}

/* Token i of the sequence, query head h. p has room for every key that it sees. */
static void attn_paged_row(const struct wn_attn_paged *a, const struct wn_seq *seq, uint32_t i, uint32_t h, float *p)
{
    uint32_t keys = seq->pos + i + 1, kv_head = h / (a->heads / a->kv_heads), hd = a->head_dim;
    size_t row = (size_t)seq->first_row + i, qc = (size_t)h * hd, kc = (size_t)kv_head * hd;

    for (uint32_t j = 0; j < keys; j++)
        p[j] = a->scale * dot(&a->q, row, &a->kv.k, kv_row(&a->kv, seq, j), qc, kc, hd);
    softmax(p, keys);
    for (uint32_t d = 0; d < hd; d++) {
        float sum = 0.0f;
        for (uint32_t j = 0; j < keys; j++)
            sum += p[j] * wn_load(wn_mat_at(&a->kv.v, kv_row(&a->kv, seq, j), kc), a->kv.v.dtype, d);
        wn_store(wn_mat_at(&a->out, row, qc), a->out.dtype, d, sum);
    }
}

static wn_status ref_attn_paged(struct wn_backend *be, const struct wn_attn_paged *a)
{
    size_t keys_max = 1;
    float *p;
    (void)be;

    wn_check_attn_paged(a);
    for (uint32_t s = 0; s < a->seqs_n; s++) {
        size_t len = (size_t)a->seqs[s].pos + a->seqs[s].rows;
        if (len > keys_max) keys_max = len;
    }
    p = malloc(keys_max * sizeof(*p));
    if (!p) return wn_fail(NULL, WN_ENOMEM, "cpu-reference: attention scores of %zu keys", keys_max);
    for (uint32_t s = 0; s < a->seqs_n; s++)
        for (uint32_t i = 0; i < a->seqs[s].rows; i++)
            for (uint32_t h = 0; h < a->heads; h++) attn_paged_row(a, &a->seqs[s], i, h, p);
    free(p);
    return WN_OK;
}

/* Query token i of an image, head h; p[tokens] is left holding the probabilities. */
static void attn_full_row(const struct wn_attn_full *a, uint32_t image, uint32_t i, uint32_t h, float *p)
{
    size_t first = (size_t)image * a->tokens, col = (size_t)h * a->head_dim;

    for (uint32_t j = 0; j < a->tokens; j++)
        p[j] = a->scale * dot(&a->q, first + i, &a->k, first + j, col, col, a->head_dim);
    softmax(p, a->tokens);
    for (uint32_t d = 0; d < a->head_dim; d++) {
        float sum = 0.0f;
        for (uint32_t j = 0; j < a->tokens; j++)
            sum += p[j] * wn_load(wn_mat_at(&a->v, first + j, col), a->v.dtype, d);
        wn_store(wn_mat_at(&a->out, first + i, col), a->out.dtype, d, sum);
    }
}

static wn_status ref_attn_full(struct wn_backend *be, const struct wn_attn_full *a)
{
    float *p;
    double *mean;
    (void)be;

    wn_check_attn_full(a);
    p = malloc(a->tokens * sizeof(*p));
    mean = malloc(a->tokens * sizeof(*mean));
    if (!p || !mean) {
        free(p);
        free(mean);
        return wn_fail(NULL, WN_ENOMEM, "cpu-reference: attention scores of %u tokens", a->tokens);
    }
    for (uint32_t m = 0; m < a->images; m++) {
        for (uint32_t j = 0; j < a->tokens; j++) mean[j] = 0.0;
        for (uint32_t h = 0; h < a->heads; h++) {
            for (uint32_t i = 0; i < a->tokens; i++) {
                attn_full_row(a, m, i, h, p);
                if (a->cls_rows && i == 0)
                    memcpy(a->cls_rows + ((size_t)m * a->heads + h) * a->tokens, p, a->tokens * sizeof(*p));
                for (uint32_t j = 0; j < a->tokens; j++) mean[j] += p[j];
            }
        }
        for (uint32_t j = 0; a->mean_cols && j < a->tokens; j++)
            a->mean_cols[(size_t)m * a->tokens + j] = (float)(mean[j] / ((double)a->heads * a->tokens));
    }
    free(p);
    free(mean);
    return WN_OK;
}

static wn_status ref_add(struct wn_backend *be, const struct wn_mat *out, const struct wn_mat *a,
                         const struct wn_mat *b)
{
    (void)be;
    wn_check_elementwise(out, a, b);
    for (size_t r = 0; r < out->rows; r++)
        for (size_t c = 0; c < out->cols; c++)
            wn_store(wn_mat_at(out, r, c), out->dtype, 0,
                     wn_load(wn_mat_at(a, r, c), a->dtype, 0) + wn_load(wn_mat_at(b, r, c), b->dtype, 0));
    return WN_OK;
}

static wn_status ref_silu_mul(struct wn_backend *be, const struct wn_mat *out, const struct wn_mat *gate,
                              const struct wn_mat *up)
{
    (void)be;
    wn_check_elementwise(out, gate, up);
    for (size_t r = 0; r < out->rows; r++) {
        for (size_t c = 0; c < out->cols; c++) {
            float s = activate(wn_load(wn_mat_at(gate, r, c), gate->dtype, 0), WN_ACT_SILU);
            if (out->dtype == WN_BF16) s = wn_bf16_to_f32(wn_f32_to_bf16(s));
            wn_store(wn_mat_at(out, r, c), out->dtype, 0, s * wn_load(wn_mat_at(up, r, c), up->dtype, 0));
        }
    }
    return WN_OK;
}

static wn_status ref_gather_rows(struct wn_backend *be, const struct wn_mat *out, const struct wn_mat *table,
                                 const uint32_t *index)
{
    (void)be;
    wn_check_mat(out);
    wn_check_source(table);
    WN_ASSERT(out->cols == table->cols && (index || out->rows == 0));
    for (size_t r = 0; r < out->rows; r++) {
        bool inside = index[r] < table->rows;
        for (size_t c = 0; c < out->cols; c++)
            wn_store(wn_mat_at(out, r, c), out->dtype, 0,
                     inside ? wn_load(wn_mat_at(table, index[r], c), table->dtype, 0) : 0.0f);
    }
    return WN_OK;
}

static wn_status ref_convert(struct wn_backend *be, const struct wn_mat *out, const struct wn_mat *in)
{
    (void)be;
    wn_check_mat(out);
    wn_check_source(in);
    wn_check_same_shape(out, in);
    for (size_t r = 0; r < out->rows; r++)
        for (size_t c = 0; c < out->cols; c++)
            wn_store(wn_mat_at(out, r, c), out->dtype, 0, wn_load(wn_mat_at(in, r, c), in->dtype, 0));
    return WN_OK;
}

const struct wn_backend_ops wn_backend_cpu_reference = {
    .name = "cpu-reference",
    .open = ref_open,
    .close = ref_close,
    .memory = wn_cpu_memory,
    .buf_alloc = wn_cpu_buf_alloc,
    .buf_free = wn_cpu_buf_free,
    .upload = wn_cpu_upload,
    .download = wn_cpu_download,
    .weight_create = ref_weight_create,
    .weight_i8 = ref_weight_i8,
    .weight_destroy = ref_weight_destroy,
    .matmul = ref_matmul,
    .norm = ref_norm,
    .rope = ref_rope,
    .kv_write = ref_kv_write,
    .attn_paged = ref_attn_paged,
    .attn_full = ref_attn_full,
    .add = ref_add,
    .silu_mul = ref_silu_mul,
    .gather_rows = ref_gather_rows,
    .convert = ref_convert,
    .sync = wn_cpu_sync,
};
