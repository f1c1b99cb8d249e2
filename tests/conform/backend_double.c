/* What the operations should give, in double: the check of the reference backend. Also the random inputs. */
#include <math.h>
#include <stdlib.h>

#include "tests/conform/backend_suite.h"

static uint64_t mix(uint64_t z)
{
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static float uniform(uint64_t seed, uint64_t i)
{
    return (float)(mix(seed * 0x100000001b3u + mix(i)) >> 40) * 0x1p-23f - 1.0f; /* [-1, 1) */
}

float case_value(const struct case_mat *m, size_t r, size_t c)
{
    float v = m->scale * uniform(m->seed, ((uint64_t)r << 32) | c);
    return m->dtype == WN_BF16 ? wn_bf16_to_f32(wn_f32_to_bf16(v)) : v;
}

float case_vector(uint64_t seed, uint32_t i)
{
    return 1.0f + 0.5f * uniform(seed, i);
}

struct case_mat case_matmul_x(const struct case_matmul *c)
{
    return (struct case_mat){.dtype = c->x, .rows = c->m, .cols = c->k, .pad = c->pad, .seed = 1, .scale = 2.0f};
}

struct case_mat case_matmul_w(const struct case_matmul *c)
{
    return (struct case_mat){
        .dtype = c->w, .rows = c->n, .cols = c->k, .pad = c->pad, .seed = 2, .scale = 1.5f / sqrtf((float)c->k)};
}

struct case_mat case_attn_rows(const struct case_attn *c, uint32_t s, char which)
{
    bool q = which == 'q';
    return (struct case_mat){.dtype = q ? c->q : c->kv,
                             .rows = c->seqs[s].pos + c->seqs[s].rows,
                             .cols = (q ? c->heads : c->kv_heads) * c->head_dim,
                             .seed = 100u * c->seqs[s].id + (uint64_t)which,
                             .scale = which == 'v' ? 1.0f : 3.0f};
}

struct case_mat case_full_rows(const struct case_full *c, char which)
{
    return (struct case_mat){.dtype = c->type,
                             .rows = c->images * c->tokens,
                             .cols = c->heads * c->head_dim,
                             .pad = c->aligned ? 8 : 3,
                             .seed = (uint64_t)which,
                             .scale = which == 'v' ? 1.0f : 3.0f};
}

static double activate(double v, wn_act act)
{
    switch (act) {
    case WN_ACT_GELU:
        return 0.5 * v * (1.0 + erf(v * sqrt(0.5)));
    case WN_ACT_QUICK_GELU:
        return v / (1.0 + exp(-1.702 * v));
    case WN_ACT_SILU:
        return v / (1.0 + exp(-v));
    case WN_ACT_NONE:
        break;
    }
    return v;
}

void double_matmul(const struct case_matmul *c, double *out)
{
    struct case_mat x = case_matmul_x(c), w = case_matmul_w(c);
    float *wt = malloc(((size_t)c->k * c->n + c->k) * sizeof(float)), *xr = wt + (size_t)c->k * c->n;

    WN_ASSERT(wt);
    for (uint32_t j = 0; j < c->n; j++)
        for (uint32_t k = 0; k < c->k; k++) wt[(size_t)j * c->k + k] = case_value(&w, j, k);
    for (uint32_t i = 0; i < c->m; i++) {
        for (uint32_t k = 0; k < c->k; k++) xr[k] = case_value(&x, i, k);
        for (uint32_t j = 0; j < c->n; j++) {
            double sum = 0.0;
            for (uint32_t k = 0; k < c->k; k++) sum += (double)xr[k] * wt[(size_t)j * c->k + k];
            if (c->bias) sum += case_vector(3, j);
            out[(size_t)i * c->n + j] = activate(sum, c->act);
        }
    }
    free(wt);
}

void double_norm(const struct case_norm *c, const struct case_mat *x, double *out)
{
    for (uint32_t r = 0; r < c->rows; r++) {
        double mean = 0.0, var = 0.0;
        for (uint32_t i = 0; !c->rms && i < c->cols; i++) mean += case_value(x, r, i) / (double)c->cols;
        for (uint32_t i = 0; i < c->cols; i++) var += pow(case_value(x, r, i) - mean, 2) / c->cols;
        for (uint32_t i = 0; i < c->cols; i++) {
            double v = (case_value(x, r, i) - mean) / sqrt(var + 1e-5) * case_vector(4, i);
            out[(size_t)r * c->cols + i] = c->bias ? v + case_vector(5, i) : v;
        }
    }
}

void double_rope(const struct case_mat *x, const uint32_t *position, uint32_t head_dim, double *out)
{
    uint32_t half = head_dim / 2;
    for (uint32_t r = 0; r < x->rows; r++) {
        for (uint32_t c = 0; c < x->cols; c++) {
            uint32_t d = c % head_dim, i = d % half;
            double angle = position[r] * pow((double)CASE_ROPE_THETA, -2.0 * i / head_dim);
            double self = case_value(x, r, c), other = case_value(x, r, d < half ? c + half : c - half);
            out[(size_t)r * x->cols + c] = self * cos(angle) + (d < half ? -other : other) * sin(angle);
        }
    }
}

/* out[head_dim] += attention of one query row over keys [first, first + keys); p[keys] is left with the
 * probabilities. */
static void attend(const struct case_mat *qm, const struct case_mat *km, const struct case_mat *vm, uint32_t row,
                   uint32_t qc, uint32_t kc, uint32_t head_dim, uint32_t first, uint32_t keys, double *p, double *out)
{
    double sum = 0.0, scale = 1.0 / sqrt((double)head_dim);
    for (uint32_t j = 0; j < keys; j++) {
        double dot = 0.0;
        for (uint32_t d = 0; d < head_dim; d++)
            dot += (double)case_value(qm, row, qc + d) * case_value(km, first + j, kc + d);
        sum += p[j] = exp(dot * scale);
    }
    for (uint32_t j = 0; j < keys; j++) p[j] /= sum;
    for (uint32_t d = 0; d < head_dim; d++)
        for (uint32_t j = 0; j < keys; j++) out[d] += p[j] * case_value(vm, first + j, kc + d);
}

void double_attn(const struct case_attn *c, double *out)
{
    size_t row = 0, width = (size_t)c->heads * c->head_dim;
    for (uint32_t s = 0; s < c->seqs_n; s++) {
        struct case_mat q = case_attn_rows(c, s, 'q'), k = case_attn_rows(c, s, 'k'), v = case_attn_rows(c, s, 'v');
        double *p = calloc(q.rows, sizeof(*p));
        WN_ASSERT(p);
        for (uint32_t t = c->seqs[s].pos; t < q.rows; t++, row++) {
            for (uint32_t h = 0; h < c->heads; h++) {
                double *o = out + row * width + (size_t)h * c->head_dim;
                for (uint32_t d = 0; d < c->head_dim; d++) o[d] = 0.0;
                attend(&q, &k, &v, t, h * c->head_dim, h / (c->heads / c->kv_heads) * c->head_dim, c->head_dim, 0,
                       t + 1, p, o);
            }
        }
        free(p);
    }
}

void double_full(const struct case_full *c, double *out, double *cls_rows, double *mean_cols)
{
    struct case_mat q = case_full_rows(c, 'q'), k = case_full_rows(c, 'k'), v = case_full_rows(c, 'v');
    double *p = calloc(c->tokens, sizeof(*p));

    WN_ASSERT(p);
    for (uint32_t m = 0; m < c->images; m++) {
        for (uint32_t j = 0; j < c->tokens; j++) mean_cols[m * c->tokens + j] = 0.0;
        for (uint32_t h = 0; h < c->heads; h++) {
            for (uint32_t i = 0; i < c->tokens; i++) {
                uint32_t row = m * c->tokens + i, col = h * c->head_dim;
                double *o = out + (size_t)row * q.cols + col;
                for (uint32_t d = 0; d < c->head_dim; d++) o[d] = 0.0;
                attend(&q, &k, &v, row, col, col, c->head_dim, m * c->tokens, c->tokens, p, o);
                for (uint32_t j = 0; j < c->tokens; j++) {
                    if (i == 0) cls_rows[((size_t)m * c->heads + h) * c->tokens + j] = p[j];
                    mean_cols[m * c->tokens + j] += p[j] / ((double)c->heads * c->tokens);
                }
            }
        }
    }
    free(p);
}
