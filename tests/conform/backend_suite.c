/* tests/conform/backend_suite.c - see backend_suite.h. */
#include "tests/conform/backend_suite_parts.h"

#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

#define GUARD 32u /* elements of NaN after each matrix */

const char *be_name;
struct wn_backend *be, *ref; /* ref is NULL when the backend under test is the reference */
static struct wn_suite_opts opts;

/* The most that a result may differ from the reference: sum of squared errors over sum of squares. float32 results
 * differ by the order of sums and by exp; a bfloat16 result may also fall to the other side of a rounding now and
 * then. */
static double limit_of(wn_dtype t)
{
    if (t != WN_F32) return 1e-7;
    return opts.f32_limit > 0.0 ? opts.f32_limit : 1e-11;
}

struct dev dev_raw(struct wn_backend *b, wn_dtype t, uint32_t rows, uint32_t cols, uint32_t pad, void **host)
{
    struct dev d = {.m = {.dtype = t, .rows = rows, .cols = cols, .stride = cols + pad}};
    size_t bytes = ((size_t)rows * d.m.stride + GUARD) * wn_dtype_bytes(t);

    assert_int_equal(b->ops->buf_alloc(b, bytes, &d.buf), WN_OK);
    d.m.ptr = d.buf.ptr;
    *host = malloc(bytes);
    assert_non_null(*host);
    memset(*host, 0xff, bytes); /* NaN in every type */
    return d;
}

struct dev dev_finish(struct wn_backend *b, struct dev d, void *host)
{
    assert_int_equal(b->ops->upload(b, d.buf.ptr, host, d.buf.bytes), WN_OK);
    free(host);
    return d;
}

struct dev dev_out(struct wn_backend *b, wn_dtype t, uint32_t rows, uint32_t cols, uint32_t pad)
{
    void *host;
    struct dev d = dev_raw(b, t, rows, cols, pad, &host);
    return dev_finish(b, d, host);
}

static void put(void *host, wn_dtype t, size_t i, float v)
{
    if (t == WN_F32)
        ((float *)host)[i] = v;
    else
        ((wn_bf16 *)host)[i] = wn_f32_to_bf16(v);
}

/* Rows [first, first + rows) of the case's matrix. */
struct dev dev_rows(struct wn_backend *b, const struct case_mat *c, uint32_t first, uint32_t rows)
{
    void *host;
    struct dev d = dev_raw(b, c->dtype, rows, c->cols, c->pad, &host);
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t k = 0; k < c->cols; k++)
            put(host, c->dtype, (size_t)r * d.m.stride + k, case_value(c, first + r, k));
    return dev_finish(b, d, host);
}

struct dev dev_mat(struct wn_backend *b, const struct case_mat *c)
{
    return dev_rows(b, c, 0, c->rows);
}

static struct dev dev_vector(struct wn_backend *b, uint64_t seed, uint32_t n)
{
    void *host;
    struct dev d = dev_raw(b, WN_F32, 1, n, 0, &host);
    for (uint32_t i = 0; i < n; i++) ((float *)host)[i] = case_vector(seed, i);
    return dev_finish(b, d, host);
}

/* Dense float32 values; fails if memory outside the view was written. */
void dev_read(struct wn_backend *b, const struct dev *d, float *out)
{
    size_t e = wn_dtype_bytes(d->m.dtype), total = d->buf.bytes / e;
    uint8_t *host = malloc(d->buf.bytes);

    assert_non_null(host);
    assert_int_equal(b->ops->download(b, host, d->buf.ptr, d->buf.bytes), WN_OK);
    for (size_t i = 0; i < total; i++) {
        size_t r = i / d->m.stride, c = i % d->m.stride;
        if (r < d->m.rows && c < d->m.cols) {
            out[r * d->m.cols + c] = d->m.dtype == WN_F32 ? ((float *)host)[i] : wn_bf16_to_f32(((wn_bf16 *)host)[i]);
        } else {
            for (size_t j = 0; j < e; j++) {
                if (host[i * e + j] != 0xff)
                    fail_msg("%s: wrote outside the view, row %zu column %zu", be_name, r, c);
            }
        }
    }
    free(host);
}

void dev_free(struct wn_backend *b, struct dev *d)
{
    b->ops->buf_free(b, &d->buf);
}

float *floats(size_t n)
{
    float *p = malloc((n ? n : 1) * sizeof(*p));
    assert_non_null(p);
    return p;
}

/* want: the reference's values, or (rounded here) those in double. */
void check_close(const char *what, const float *got, const float *want, const double *want64, size_t n, wn_dtype out)
{
    double err = 0.0, sum = 0.0;
    for (size_t i = 0; i < n; i++) {
        double w = want ? (double)want[i] : want64[i];
        if (want64 && out == WN_BF16) w = wn_bf16_to_f32(wn_f32_to_bf16((float)w));
        if (!isfinite(got[i]))
            fail_msg("%s: %s: element %zu is %g, should be %g", be_name, what, i, (double)got[i], w);
        err += (got[i] - w) * (got[i] - w);
        sum += w * w;
    }
    if (err > limit_of(out) * sum) fail_msg("%s: %s: NMSE %.3g, limit %.3g", be_name, what, err / sum, limit_of(out));
}

void check_bits(const char *what, const float *got, const float *want, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (memcmp(&got[i], &want[i], sizeof(float)) != 0)
            fail_msg("%s: %s: element %zu is %a, was %a", be_name, what, i, (double)got[i], (double)want[i]);
    }
}

/* ---- matmul ---- */

static struct wn_weight *make_weight(struct wn_backend *b, const struct case_matmul *c)
{
    struct case_mat wc = case_matmul_w(c);
    struct wn_mat host = {.dtype = c->w, .rows = c->n, .cols = c->k, .stride = c->k + c->pad};
    struct wn_weight *w;

    host.ptr = calloc((size_t)host.rows * host.stride, wn_dtype_bytes(c->w));
    assert_non_null(host.ptr);
    for (uint32_t j = 0; j < c->n; j++)
        for (uint32_t k = 0; k < c->k; k++) put(host.ptr, c->w, (size_t)j * host.stride + k, case_value(&wc, j, k));
    assert_int_equal(b->ops->weight_create(b, &w, &host, c->w), WN_OK);
    free(host.ptr);
    return w;
}

/* Rows [first, first + rows) of the case; out is dense [rows, n]. */
static void run_matmul(struct wn_backend *b, const struct case_matmul *c, uint32_t first, uint32_t rows, float *out)
{
    struct case_mat xc = case_matmul_x(c);
    struct dev x = dev_rows(b, &xc, first, rows), o = dev_out(b, c->out, rows, c->n, c->pad);
    struct dev bias = dev_vector(b, 3, c->n);
    struct wn_weight *w = make_weight(b, c);
    struct wn_matmul a = {
        .out = o.m, .x = x.m, .w = w, .bias = c->bias ? bias.buf.ptr : NULL, .slices = c->slices, .act = c->act};
    assert_int_equal(wn_be_matmul(b, &a), WN_OK);
    dev_read(b, &o, out);
    b->ops->weight_destroy(b, w);
    dev_free(b, &x);
    dev_free(b, &o);
    dev_free(b, &bias);
}

static void matmul_close(void **state)
{
    static const struct case_matmul cases[] = {
        {1, 1, 1, 1, WN_ACT_NONE, false, WN_F32, WN_F32, WN_F32, 0},
        {1, 17, 3, 1, WN_ACT_NONE, true, WN_F32, WN_BF16, WN_F32, 5},
        {3, 33, 7, 1, WN_ACT_GELU, true, WN_BF16, WN_F32, WN_F32, 1},
        {5, 15, 64, 4, WN_ACT_SILU, false, WN_BF16, WN_BF16, WN_BF16, 0},
        {7, 100, 130, 2, WN_ACT_QUICK_GELU, true, WN_F32, WN_F32, WN_F32, 3},
        {2, 257, 1028, 4, WN_ACT_NONE, false, WN_BF16, WN_BF16, WN_F32, 0},
        {32, 48, 516, 1, WN_ACT_NONE, false, WN_F32, WN_BF16, WN_BF16, 2},
        {13, 65, 300, 4, WN_ACT_GELU, true, WN_BF16, WN_BF16, WN_BF16, 7},
        {129, 300, 260, 4, WN_ACT_NONE, true, WN_F32, WN_F32, WN_F32, 1},
        {200, 530, 768, 8, WN_ACT_GELU, true, WN_BF16, WN_BF16, WN_BF16, 0},
        {577, 64, 1024, 4, WN_ACT_QUICK_GELU, true, WN_F32, WN_F32, WN_F32, 0},
        {1, 2048, 1536, 4, WN_ACT_NONE, false, WN_F32, WN_F32, WN_F32, 0},
        {4, 1000, 2304, 1, WN_ACT_NONE, false, WN_BF16, WN_BF16, WN_F32, 0},
        {9, 40, 1040, 1, WN_ACT_QUICK_GELU, true, WN_BF16, WN_BF16, WN_BF16, 8},
        {65, 200, 520, 1, WN_ACT_GELU, true, WN_BF16, WN_BF16, WN_F32, 8},
        {130, 72, 264, 1, WN_ACT_NONE, false, WN_BF16, WN_BF16, WN_BF16, 16},
        {66, 40, 588, 1, WN_ACT_NONE, false, WN_BF16, WN_BF16, WN_BF16, 4}, /* patches of 14 x 14 pixels */
        {11, 33, 509, 1, WN_ACT_NONE, false, WN_BF16, WN_BF16, WN_F32, 3},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        const struct case_matmul *c = &cases[i];
        size_t n = (size_t)c->m * c->n;
        float *got = floats(n), *want = floats(n);
        double *want64 = calloc(n, sizeof(double));
        char what[64];

        snprintf(what, sizeof(what), "matmul [%u, %u] x [%u, %u]", c->m, c->k, c->n, c->k);
        run_matmul(be, c, 0, c->m, got);
        if (ref)
            run_matmul(ref, c, 0, c->m, want);
        else
            double_matmul(c, want64);
        check_close(what, got, ref ? want : NULL, ref ? NULL : want64, n, c->out);
        free(got);
        free(want);
        free(want64);
    }
}

/* A row computed alone, or among others, has the same bits. */
static void matmul_rows(void **state)
{
    static const uint32_t counts[] = {1, 2, 5, 16, 17, 33, 129};
    (void)state;
    for (int i = 0; i < 10; i++) { /* the last two with rows that are aligned for fast kernels */
        bool aligned = i >= 8, bf16 = aligned || (i & 1);
        struct case_matmul c = {129,
                                81,
                                aligned ? 1216 : i & 4 ? 1200 : 333,
                                i & 4 || i == 9 ? 4 : 1,
                                WN_ACT_GELU,
                                true,
                                bf16 ? WN_BF16 : WN_F32,
                                aligned || i & 2 ? WN_BF16 : WN_F32,
                                bf16 ? WN_BF16 : WN_F32,
                                aligned ? 8 : 3};
        float *all = floats((size_t)c.m * c.n), *some = floats((size_t)c.m * c.n);
        run_matmul(be, &c, 0, c.m, all);
        for (size_t j = 0; j < COUNT(counts); j++) {
            uint32_t first = c.m - counts[j] > 11 ? 11 : c.m - counts[j];
            run_matmul(be, &c, first, counts[j], some);
            if (opts.rows_differ)
                check_close("matmul rows", some, all + (size_t)first * c.n, NULL, (size_t)counts[j] * c.n, c.out);
            else
                check_bits("matmul rows", some, all + (size_t)first * c.n, (size_t)counts[j] * c.n);
        }
        free(all);
        free(some);
    }
}

/* p[ranks][n] added as the tree ((p0+p1)+(p2+p3)); the sum is left in p[0]. */
static void tree_add(float *p, uint32_t ranks, size_t n)
{
    for (uint32_t step = 1; step < ranks; step *= 2)
        for (uint32_t r = 0; r < ranks; r += 2 * step)
            for (size_t i = 0; i < n; i++) p[r * n + i] += p[(r + step) * n + i];
}

void check_together(struct wn_backend *b, const char *what, struct wn_matmul *a, struct wn_weight **w, struct dev *o,
                    size_t n)
{
    assert_int_equal(wn_be_matmuls(b, a, (uint32_t)n), WN_OK);
    for (size_t j = 0; j < n; j++) {
        const size_t values = (size_t)o[j].m.rows * o[j].m.cols;
        float *got = floats(values), *want = floats(values);
        dev_read(b, &o[j], got);
        assert_int_equal(wn_be_matmul(b, &a[j]), WN_OK);
        dev_read(b, &o[j], want);
        check_bits(what, got, want, values);
        b->ops->weight_destroy(b, w[j]);
        dev_free(b, &o[j]);
        free(got);
        free(want);
    }
}

/* Products of the same x in one call: the bits of one call each. */
static void matmul_together(void **state)
{
    static const uint32_t rows[] = {1, 5, 40, 200}, cols[] = {33, 16, 300};
    (void)state;
    for (size_t i = 0; i < 4 * COUNT(rows); i++) {
        struct case_matmul c = {rows[i / 4], 0, i & 1 ? 768 : 332, i & 2 ? 1 : 4, WN_ACT_NONE, false,
                                i & 1 ? WN_BF16 : WN_F32, WN_BF16, WN_BF16, 8};
        struct case_mat xc = case_matmul_x(&c);
        struct dev x = dev_rows(be, &xc, 0, c.m), o[COUNT(cols)];
        struct wn_matmul a[COUNT(cols)];
        struct wn_weight *w[COUNT(cols)];
        for (size_t j = 0; j < COUNT(cols); j++) {
            c.n = cols[j];
            o[j] = dev_out(be, c.out, c.m, c.n, c.pad);
            w[j] = make_weight(be, &c);
            a[j] = (struct wn_matmul){.out = o[j].m, .x = x.m, .w = w[j], .slices = c.slices};
        }
        check_together(be, "matmuls together", a, w, o, COUNT(cols));
        dev_free(be, &x);
    }
}

/* Ranks that hold K/T columns each, and an all-reduce in the same tree, give the bits of the whole. */
static void matmul_slices(void **state)
{
    enum { M = 9, N = 50 };
    (void)state;
    for (int i = 0; i < 10; i++) {
        const uint32_t K = i < 8 ? 1048 : 1088; /* the last two are aligned for fast kernels */
        uint32_t ranks = i & 1 ? 4 : 2, part = K / ranks, slices = i & 4 ? 4 : 8;
        wn_dtype t = i >= 8 || i & 2 ? WN_BF16 : WN_F32;
        struct case_mat xc = {.dtype = t, .rows = M, .cols = K, .pad = i < 8 ? 5 : 8, .seed = 1, .scale = 1.0f};
        struct case_mat wc = {.dtype = t, .rows = N, .cols = K, .pad = 2, .seed = 2, .scale = 1.0f};
        struct wn_mat host = {.dtype = t, .rows = N, .cols = K, .stride = K + 2};
        struct dev x = dev_mat(be, &xc), o = dev_out(be, WN_F32, M, N, 0);
        float *parts = floats((size_t)ranks * M * N), *whole = floats(M * N);
        struct wn_weight *w;

        host.ptr = calloc((size_t)N * host.stride, 4);
        assert_non_null(host.ptr);
        for (uint32_t j = 0; j < N; j++)
            for (uint32_t k = 0; k < K; k++) put(host.ptr, t, (size_t)j * host.stride + k, case_value(&wc, j, k));
        for (uint32_t r = 0; r <= ranks; r++) { /* the last turn is the whole */
            uint32_t k0 = r < ranks ? r * part : 0, len = r < ranks ? part : K;
            struct wn_mat cut = wn_mat_cols(host, k0, len);
            assert_int_equal(be->ops->weight_create(be, &w, &cut, t), WN_OK);
            struct wn_matmul a = {
                .out = o.m, .x = wn_mat_cols(x.m, k0, len), .w = w, .slices = r < ranks ? slices / ranks : slices};
            assert_int_equal(wn_be_matmul(be, &a), WN_OK);
            dev_read(be, &o, r < ranks ? parts + (size_t)r * M * N : whole);
            be->ops->weight_destroy(be, w);
        }
        tree_add(parts, ranks, M * N);
        check_bits("matmul slices", parts, whole, M * N);
        free(host.ptr);
        free(parts);
        free(whole);
        dev_free(be, &x);
        dev_free(be, &o);
    }
}

/* Half-precision host rows; a weight kept as bfloat16 rounds them. */
static void weight_types(void **state)
{
    enum { N = 19, K = 23 };
    uint16_t half[N * K];
    float eye_out[K * N];
    struct wn_mat host = {.ptr = half, .dtype = WN_F16, .rows = N, .cols = K, .stride = K};
    (void)state;

    for (uint32_t i = 0; i < N * K; i++) half[i] = (uint16_t)(0x3000u + 29u * i % 0x1000u);
    for (int as = 0; as < 2; as++) { /* x is the unit matrix: out is the weight's transpose */
        void *rows;
        struct dev x = dev_raw(be, WN_F32, K, K, 0, &rows), o = dev_out(be, WN_F32, K, N, 1);
        struct wn_weight *w;
        for (uint32_t i = 0; i < K * K; i++) ((float *)rows)[i] = i % (K + 1) == 0 ? 1.0f : 0.0f;
        x = dev_finish(be, x, rows);
        assert_int_equal(be->ops->weight_create(be, &w, &host, as ? WN_BF16 : WN_F32), WN_OK);
        struct wn_matmul a = {.out = o.m, .x = x.m, .w = w, .slices = 1};
        assert_int_equal(wn_be_matmul(be, &a), WN_OK);
        dev_read(be, &o, eye_out);
        for (uint32_t k = 0; k < K; k++) {
            for (uint32_t j = 0; j < N; j++) {
                float v = wn_f16_to_f32(half[j * K + k]);
                if (as) v = wn_bf16_to_f32(wn_f32_to_bf16(v));
                if (eye_out[k * N + j] != v)
                    fail_msg("%s: weight [%u, %u] is kept as %g, not %g", be_name, j, k, (double)eye_out[k * N + j],
                             (double)v);
            }
        }
        be->ops->weight_destroy(be, w);
        dev_free(be, &x);
        dev_free(be, &o);
    }
}

/* ---- row operations ---- */

static void run_norm(struct wn_backend *b, const struct case_norm *c, const struct case_mat *xc, uint32_t first,
                     uint32_t rows, float *out)
{
    struct dev x = dev_rows(b, xc, first, rows), w = dev_vector(b, 4, c->cols), bias = dev_vector(b, 5, c->cols);
    struct wn_norm a = {.out = x.m,
                        .x = x.m,
                        .weight = w.buf.ptr,
                        .bias = c->bias ? bias.buf.ptr : NULL,
                        .eps = 1e-5f,
                        .rms = c->rms};
    assert_int_equal(wn_be_norm(b, &a), WN_OK);
    dev_read(b, &x, out);
    dev_free(b, &x);
    dev_free(b, &w);
    dev_free(b, &bias);
}

static void norm_close(void **state)
{
    static const uint32_t cols[] = {1, 2, 9, 64, 100, 1024, 1411};
    (void)state;
    for (size_t i = 0; i < COUNT(cols) * 6; i++) {
        struct case_norm c = {5, cols[i / 6], i % 3 == 0, i % 3 == 2, i / 3 % 2 ? WN_BF16 : WN_F32};
        struct case_mat x = {.dtype = c.type, .rows = 5, .cols = c.cols, .pad = 3, .seed = 9, .scale = 4.0f};
        size_t n = (size_t)c.rows * c.cols;
        float *got = floats(n), *want = floats(n), *row = floats(n);
        double *want64 = calloc(n, sizeof(double));

        if (c.cols == 1 && !c.rms) x.scale = 0.0f; /* one value minus its mean: nothing but zeros is exact */
        run_norm(be, &c, &x, 0, 5, got);
        if (ref)
            run_norm(ref, &c, &x, 0, 5, want);
        else
            double_norm(&c, &x, want64);
        check_close(c.rms ? "rms norm" : "layer norm", got, ref ? want : NULL, ref ? NULL : want64, n, c.type);
        run_norm(be, &c, &x, 3, 1, row);
        check_bits("norm row alone", row, got + 3 * c.cols, c.cols);
        free(got);
        free(want);
        free(row);
        free(want64);
    }
}

static void run_rope(struct wn_backend *b, const struct case_mat *xc, const uint32_t *position, uint32_t head_dim,
                     float *out)
{
    struct dev x = dev_mat(b, xc);
    struct wn_rope a = {.x = x.m, .position = position, .head_dim = head_dim, .theta = CASE_ROPE_THETA};
    assert_int_equal(wn_be_rope(b, &a), WN_OK);
    dev_read(b, &x, out);
    dev_free(b, &x);
}

static void rope_close(void **state)
{
    static const uint32_t dims[] = {2, 6, 32, 64, 80, 128}, position[] = {0, 1, 2, 77, 500, 499, 1000};
    (void)state;
    for (size_t i = 0; i < COUNT(dims) * 2; i++) {
        struct case_mat x = {.dtype = i % 2 ? WN_BF16 : WN_F32,
                             .rows = COUNT(position),
                             .cols = 3 * dims[i / 2],
                             .pad = 4,
                             .seed = 11,
                             .scale = 2.0f};
        size_t n = (size_t)x.rows * x.cols;
        float *got = floats(n), *want = floats(n);
        double *want64 = calloc(n, sizeof(double)), err = 0.0, sum = 0.0;

        run_rope(be, &x, position, dims[i / 2], got);
        if (ref) {
            run_rope(ref, &x, position, dims[i / 2], want);
            check_close("rope", got, want, NULL, n, x.dtype);
        } else { /* float32 angles: position * 2^-24 of error, by definition */
            double_rope(&x, position, dims[i / 2], want64);
            for (size_t j = 0; j < n; j++) {
                err += (got[j] - want64[j]) * (got[j] - want64[j]);
                sum += want64[j] * want64[j];
            }
            if (!(err <= (x.dtype == WN_F32 ? 1e-9 : 1e-5) * sum))
                fail_msg("%s: rope: NMSE %.3g", be_name, err / sum);
        }
        free(got);
        free(want);
        free(want64);
    }
}

static float rounded(float v, wn_dtype t)
{
    return t == WN_BF16 ? wn_bf16_to_f32(wn_f32_to_bf16(v)) : v;
}

/* add, silu_mul, convert and gather on all pairs of types; all but silu_mul have one right answer. */
static void elementwise(void **state)
{
    static const uint32_t shapes[][2] = {{1, 1}, {3, 7}, {2, 64}, {5, 333}, {40, 1000}};
    (void)state;
    for (size_t i = 0; i < COUNT(shapes) * 8; i++) {
        uint32_t rows = shapes[i / 8][0], cols = shapes[i / 8][1];
        wn_dtype ta = i & 1 ? WN_BF16 : WN_F32, tb = i & 2 ? WN_BF16 : WN_F32, to = i & 4 ? WN_BF16 : WN_F32;
        struct case_mat ac = {ta, rows, cols, 3, 21, 5.0f}, bc = {tb, rows, cols, 0, 22, 3.0f};
        struct dev a = dev_mat(be, &ac), b = dev_mat(be, &bc), o = dev_out(be, to, rows, cols, 2);
        size_t n = (size_t)rows * cols;
        float *got = floats(n), *want = floats(n);
        uint32_t index[40];

        assert_int_equal(wn_be_add(be, &o.m, &a.m, &b.m), WN_OK);
        dev_read(be, &o, got);
        for (size_t j = 0; j < n; j++)
            want[j] = rounded(case_value(&ac, j / cols, j % cols) + case_value(&bc, j / cols, j % cols), to);
        check_bits("add", got, want, n);

        assert_int_equal(wn_be_silu_mul(be, &o.m, &a.m, &b.m), WN_OK);
        dev_read(be, &o, got);
        for (size_t j = 0; j < n; j++) {
            double g = case_value(&ac, j / cols, j % cols);
            want[j] = rounded(rounded((float)(g / (1.0 + exp(-g))), to) * case_value(&bc, j / cols, j % cols), to);
        }
        check_close("silu_mul", got, want, NULL, n, to);

        assert_int_equal(wn_be_convert(be, &o.m, &a.m), WN_OK);
        dev_read(be, &o, got);
        for (size_t j = 0; j < n; j++) want[j] = rounded(case_value(&ac, j / cols, j % cols), to);
        check_bits("convert", got, want, n);

        for (uint32_t r = 0; r < rows; r++) index[r] = r % 3 == 1 ? rows + r : rows - 1 - r;
        assert_int_equal(wn_be_gather_rows(be, &o.m, &b.m, index), WN_OK);
        dev_read(be, &o, got);
        for (size_t j = 0; j < n; j++)
            want[j] = index[j / cols] < rows ? rounded(case_value(&bc, index[j / cols], j % cols), to) : 0.0f;
        check_bits("gather_rows", got, want, n);

        assert_int_equal(wn_be_add(be, &a.m, &a.m, &a.m), WN_OK); /* in place */
        dev_read(be, &a, got);
        for (size_t j = 0; j < n; j++) want[j] = rounded(2.0f * case_value(&ac, j / cols, j % cols), ta);
        check_bits("add in place", got, want, n);
        free(got);
        free(want);
        dev_free(be, &a);
        dev_free(be, &b);
        dev_free(be, &o);
    }
}

/* Half-precision values that models hold: all of them survive the trip to float32. */
static void convert_half(void **state)
{
    enum { N = 0x7c00 };
    void *host;
    struct dev in = {.m = {.dtype = WN_F16, .rows = 31, .cols = N / 31, .stride = N / 31}};
    struct dev o = dev_out(be, WN_F32, 31, N / 31, 0);
    float *got = floats(N);
    (void)state;

    assert_int_equal(be->ops->buf_alloc(be, N * 2, &in.buf), WN_OK);
    in.m.ptr = in.buf.ptr;
    host = malloc(N * 2);
    assert_non_null(host);
    for (uint32_t i = 0; i < N; i++) ((uint16_t *)host)[i] = (uint16_t)(i | (i & 1u) << 15);
    in = dev_finish(be, in, host);
    assert_int_equal(N % 31, 0);
    assert_int_equal(wn_be_convert(be, &o.m, &in.m), WN_OK);
    dev_read(be, &o, got);
    for (uint32_t i = 0; i < N; i++) {
        float v = wn_f16_to_f32((uint16_t)(i | (i & 1u) << 15));
        check_bits("half to float32", &got[i], &v, 1);
    }
    free(got);
    dev_free(be, &in);
    dev_free(be, &o);
}

/* ---- threads: the same bits with 1, 2 and 3 ---- */

static void threads_bits(void **state)
{
    static const struct case_matmul mm[] = {
        {1, 1000, 1540, 4, WN_ACT_NONE, true, WN_BF16, WN_BF16, WN_BF16, 0},
        {70, 500, 700, 1, WN_ACT_SILU, true, WN_F32, WN_F32, WN_F32, 0},
        {300, 300, 400, 2, WN_ACT_NONE, false, WN_F32, WN_BF16, WN_F32, 0},
    };
    static const struct case_attn attn = {
        8, 4, 64, 16, WN_F32, WN_F32, WN_F32, {{100, 1, 1}, {0, 200, 2}, {80, 1, 3}}, 3, false};
    static const struct case_full full = {2, 100, 4, 64, WN_F32, false};
    enum { MAX = 300 * 500, FULL = 2 * 100 * 4 * 64 };
    float *one = floats(MAX), *more = floats(MAX);
    const int most = be->ops->device_memory ? 2 : 3; /* a device has threads of its own: twice the same is enough */
    int before = omp_get_max_threads();
    (void)state;

    for (size_t i = 0; i < COUNT(mm) + 2; i++) {
        for (int threads = 1; threads <= most; threads++) {
            float *out = threads == 1 ? one : more;
            size_t n = i < COUNT(mm) ? (size_t)mm[i].m * mm[i].n : i == COUNT(mm) ? attn_values(&attn) : FULL + 1000;
            omp_set_num_threads(threads);
            if (i < COUNT(mm))
                run_matmul(be, &mm[i], 0, mm[i].m, out);
            else if (i == COUNT(mm))
                run_attn(be, &attn, out);
            else
                run_full(be, &full, 0, 2, out, out + FULL, out + FULL + 800);
            if (threads > 1) check_bits("threads", more, one, n);
        }
    }
    omp_set_num_threads(before);
    free(one);
    free(more);
}

static void nothing_to_do(void **state)
{
    struct case_matmul c = {0, 8, 8, 1, WN_ACT_NONE, false, WN_F32, WN_F32, WN_F32, 0};
    struct wn_mat empty = {.dtype = WN_F32, .cols = 4, .stride = 4};
    struct wn_attn_paged a = {.out = empty, .q = empty, .heads = 1, .kv_heads = 1, .head_dim = 4, .scale = 1.0f};
    float out[1];
    (void)state;
    run_matmul(be, &c, 0, 0, out);
    a.kv = (struct wn_kv){.k = empty, .v = empty, .page_tokens = 4};
    assert_int_equal(wn_be_attn_paged(be, &a), WN_OK);
    assert_int_equal(wn_be_add(be, &empty, &empty, &empty), WN_OK);
    assert_int_equal(wn_be_gather_rows(be, &empty, &empty, NULL), WN_OK);
    assert_int_equal(be->ops->sync(be, WN_NEVER), WN_OK);
}

static void unknown_names(void **state)
{
    struct wn_backend *none = NULL;
    struct wn_err err = {0};
    (void)state;
    assert_int_equal(wn_backend_open(&none, "abacus", 0, &err), WN_ENOENT);
    assert_non_null(strstr(err.text, be_name)); /* names the known ones */
    assert_int_not_equal(wn_backend_open(&none, be_name, 4711, &err), WN_OK);
    assert_null(none);
}

static int suite_open(void **state)
{
    struct wn_err err = {0};
    (void)state;
    if (wn_backend_open(&be, be_name, 0, &err) != WN_OK) {
        print_error("%s: %s\n", be_name, err.text);
        return -1;
    }
    if (strcmp(be_name, "cpu-reference") != 0 && wn_backend_open(&ref, "cpu-reference", 0, &err) != WN_OK) return -1;
    return 0;
}

static int suite_close(void **state)
{
    (void)state;
    wn_backend_close(be);
    wn_backend_close(ref);
    be = ref = NULL;
    return 0;
}

int wn_backend_suite_run(const char *name, const struct wn_suite_opts *o)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(matmul_close),    cmocka_unit_test(matmul_rows),     cmocka_unit_test(matmul_slices),
        cmocka_unit_test(weight_types),    cmocka_unit_test(norm_close),      cmocka_unit_test(rope_close),
        cmocka_unit_test(elementwise),     cmocka_unit_test(convert_half),    cmocka_unit_test(attn_paged_close),
        cmocka_unit_test(attn_paged_shared), cmocka_unit_test(matmul_together),
        cmocka_unit_test(attn_paged_bits), cmocka_unit_test(attn_full_close), cmocka_unit_test(threads_bits),
        cmocka_unit_test(fused_norm),      cmocka_unit_test(fused_rope),      cmocka_unit_test(pick_as_sampler),
        cmocka_unit_test(pick_seeds),      cmocka_unit_test(pick_left),       cmocka_unit_test(nothing_to_do),
        cmocka_unit_test(upload_large),    cmocka_unit_test(weight_large),    cmocka_unit_test(weight_blocks),
        cmocka_unit_test(unknown_names),
        cmocka_unit_test(row_dots_bits),   cmocka_unit_test(row_sums_bits),   cmocka_unit_test(int8_values),
        cmocka_unit_test(int8_not_finite), cmocka_unit_test(int8_close),      cmocka_unit_test(int8_rows),
        cmocka_unit_test(int8_slices),     cmocka_unit_test(int8_as_bfloat16), cmocka_unit_test(int8_together),
    };
    be_name = name;
    opts = o ? *o : (struct wn_suite_opts){.title = NULL};
    return cmocka_run_group_tests_name(opts.title ? opts.title : name, tests, suite_open, suite_close);
}
