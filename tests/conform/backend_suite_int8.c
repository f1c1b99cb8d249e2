/* int8 weights: what is kept, and the promises that all products make. */
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "tests/conform/backend_suite_parts.h"

/* Columns [first, first + cols) of the case's w, which is float32. */
static struct wn_weight *make(struct wn_backend *b, const struct case_matmul *c, uint32_t first, uint32_t cols,
                              uint32_t slices)
{
    struct case_mat wc = case_matmul_w(c);
    struct wn_mat host = {.dtype = WN_F32, .rows = c->n, .cols = c->k, .stride = c->k + c->pad};
    struct wn_mat cut;
    struct wn_weight *w = NULL;

    host.ptr = calloc((size_t)host.rows * host.stride, sizeof(float));
    assert_non_null(host.ptr);
    for (uint32_t j = 0; j < c->n; j++)
        for (uint32_t k = 0; k < c->k; k++)
            ((float *)host.ptr)[(size_t)j * host.stride + k] = case_value(&wc, j, k);
    cut = wn_mat_cols(host, first, cols);
    assert_int_equal(b->ops->weight_i8(b, &w, &cut, slices), WN_OK);
    free(host.ptr);
    return w;
}

/* Rows [first, first + rows) of the case's product; out is dense. */
static void run(struct wn_backend *b, const struct case_matmul *c, uint32_t first, uint32_t rows, float *out)
{
    struct case_mat xc = case_matmul_x(c);
    struct dev x = dev_rows(b, &xc, first, rows), o = dev_out(b, c->out, rows, c->n, c->pad);
    struct wn_weight *w = make(b, c, 0, c->k, c->slices);
    const struct wn_matmul a = {.out = o.m, .x = x.m, .w = w, .slices = c->slices, .act = c->act};

    assert_int_equal(wn_be_matmul(b, &a), WN_OK);
    dev_read(b, &o, out);
    b->ops->weight_destroy(b, w);
    dev_free(b, &x);
    dev_free(b, &o);
}

/* The unit matrix times w^T is what is kept of w, to the bit: all types of rows, ties, parts of nothing but zeros. */
void int8_values(void **state)
{
    enum { N = 37, K = 24, SLICES = 2, PART = K / SLICES };
    float rows[N * K], got[K * N], unit[K * K];
    uint16_t narrow[N * K];
    (void)state;

    for (uint32_t i = 0; i < K * K; i++) unit[i] = i % (K + 1) == 0 ? 1.0f : 0.0f;
    for (int type = WN_F32; type <= WN_F16; type++) {
        struct wn_mat host = {.ptr = type == WN_F32 ? (void *)rows : narrow, .dtype = (wn_dtype)type, .rows = N,
                              .cols = K, .stride = K};
        struct dev x = dev_out(be, WN_F32, K, K, 0), o = dev_out(be, WN_F32, K, N, 3);
        struct wn_weight *w = NULL;
        for (uint32_t i = 0; i < N * K; i++) {
            const float v = i / PART % 7 == 3 ? 0.0f : i % PART == 0 ? -254.0f : (float)(i * 29 % 509) - 254.0f;
            narrow[i] = type == WN_BF16 ? wn_f32_to_bf16(v) : (uint16_t)(0x3000u + 29u * i % 0x1000u);
            rows[i] = type == WN_F32 ? v : type == WN_BF16 ? wn_bf16_to_f32(narrow[i]) : wn_f16_to_f32(narrow[i]);
        }
        assert_int_equal(be->ops->weight_i8(be, &w, &host, SLICES), WN_OK);
        assert_int_equal(be->ops->upload(be, x.buf.ptr, unit, sizeof(unit)), WN_OK);
        const struct wn_matmul a = {.out = o.m, .x = x.m, .w = w, .slices = SLICES};
        assert_int_equal(wn_be_matmul(be, &a), WN_OK);
        dev_read(be, &o, got);
        for (uint32_t i = 0; i < N * K; i++) {
            const float *part = rows + i / PART * PART;
            float most = 0.0f, want;
            for (uint32_t k = 0; k < PART; k++) most = fmaxf(most, fabsf(part[k]));
            want = most > 0.0f ? rintf(rows[i] * (127.0f / most)) * (most / 127.0f) : 0.0f;
            if (got[i % K * N + i / K] != want)
                fail_msg("%s: weight [%u, %u] of %s is kept as %a, not %a", be_name, i / K, i % K,
                         wn_dtype_name((wn_dtype)type), (double)got[i % K * N + i / K], (double)want);
        }
        be->ops->weight_destroy(be, w);
        dev_free(be, &x);
        dev_free(be, &o);
    }
}

/* A part with NaN or infinity gives sums that are not finite; the other rows are as ever. */
void int8_not_finite(void **state)
{
    float rows[3][8] = {{1, 2, 3, 4, 5, 6, 7, NAN}, {1, -INFINITY, 3, 4, 5, 6, 7, 8}, {[3] = 127}}, got[3];
    const struct wn_mat host = {.ptr = rows, .dtype = WN_F32, .rows = 3, .cols = 8, .stride = 8};
    const float ones[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    struct wn_weight *w = NULL;
    (void)state;

    struct dev x = dev_out(be, WN_F32, 1, 8, 0), o = dev_out(be, WN_F32, 1, 3, 0);
    assert_int_equal(be->ops->weight_i8(be, &w, &host, 1), WN_OK);
    assert_int_equal(be->ops->upload(be, x.buf.ptr, ones, sizeof(ones)), WN_OK);
    const struct wn_matmul a = {.out = o.m, .x = x.m, .w = w, .slices = 1};
    assert_int_equal(wn_be_matmul(be, &a), WN_OK);
    dev_read(be, &o, got);
    assert_false(isfinite(got[0]));
    assert_false(isfinite(got[1]));
    assert_true(got[2] == 127.0f);
    be->ops->weight_destroy(be, w);
    dev_free(be, &x);
    dev_free(be, &o);
}

static const struct case_matmul cases[] = {
    {1, 17, 3, 1, WN_ACT_NONE, false, WN_F32, WN_F32, WN_F32, 5},
    {1, 2048, 1536, 4, WN_ACT_NONE, false, WN_F32, WN_F32, WN_F32, 0},
    {5, 33, 1048, 8, WN_ACT_SILU, false, WN_BF16, WN_F32, WN_F32, 1},
    {32, 48, 516, 1, WN_ACT_NONE, false, WN_F32, WN_F32, WN_F32, 2},
    {33, 545, 1040, 4, WN_ACT_NONE, false, WN_BF16, WN_F32, WN_F32, 0}, /* panels in pairs, and one alone */
    {65, 200, 768, 8, WN_ACT_NONE, false, WN_BF16, WN_F32, WN_BF16, 0},
    {129, 81, 1200, 4, WN_ACT_GELU, false, WN_BF16, WN_F32, WN_BF16, 3},
    {1, 70, 1056, 4, WN_ACT_NONE, false, WN_BF16, WN_F32, WN_F32, 0}, /* from here on aligned for fast kernels */
    {7, 33, 2112, 4, WN_ACT_SILU, false, WN_BF16, WN_F32, WN_BF16, 8},
    {70, 81, 608, 2, WN_ACT_NONE, false, WN_BF16, WN_F32, WN_F32, 8},
    {70, 130, 1088, 1, WN_ACT_NONE, false, WN_BF16, WN_F32, WN_BF16, 0},
    {520, 17, 272, 2, WN_ACT_GELU, false, WN_BF16, WN_F32, WN_BF16, 0},
};

/* Near the reference's by the limit of all products, and near those of the weights that it was made of: an error of
 * half a step of 1/127 is 2e-5 of the sum of squares. */
void int8_close(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        const struct case_matmul *c = &cases[i];
        const size_t n = (size_t)c->m * c->n;
        float *got = floats(n), *want = floats(n);
        double *exact = calloc(n, sizeof(*exact)), err = 0.0, all = 0.0;

        run(be, c, 0, c->m, got);
        if (ref) run(ref, c, 0, c->m, want);
        if (ref) check_close("int8 matmul", got, want, NULL, n, c->out);
        double_matmul(c, exact);
        for (size_t j = 0; j < n; j++) {
            err += (got[j] - exact[j]) * (got[j] - exact[j]);
            all += exact[j] * exact[j];
        }
        if (!(err <= 5e-5 * all)) fail_msg("%s: int8 matmul %zu: NMSE %.3g to float32", be_name, i, err / all);
        free(got);
        free(want);
        free(exact);
    }
}

/* A row computed alone or among others, by any number of threads, has the same bits. */
void int8_rows(void **state)
{
    static const uint32_t counts[] = {1, 2, 5, 16, 20, 33};
    const int threads = omp_get_max_threads();
    (void)state;

    for (size_t i = 0; i < COUNT(cases); i++) {
        const struct case_matmul *c = &cases[i];
        float *all = floats((size_t)c->m * c->n), *some = floats((size_t)c->m * c->n);
        run(be, c, 0, c->m, all);
        for (size_t j = 0; j < COUNT(counts) && counts[j] <= c->m; j++) {
            const uint32_t first = c->m - counts[j] > 11 ? 11 : c->m - counts[j];
            omp_set_num_threads(1 + (int)j);
            run(be, c, first, counts[j], some);
            check_bits("int8 rows", some, all + (size_t)first * c->n, (size_t)counts[j] * c->n);
        }
        omp_set_num_threads(threads);
        free(all);
        free(some);
    }
}

/* Of weights that are integers, with 127 in each part, they are kept as such: the bits of the same in bfloat16. */
void int8_as_bfloat16(void **state)
{
    enum { N = 75, K = 1072, SLICES = 2, PART = K / SLICES, ROWS = 64 };
    static const uint32_t counts[] = {1, 9, 32, ROWS};
    static const struct case_mat xc = {.dtype = WN_BF16, .rows = ROWS, .cols = K, .pad = 8, .seed = 7, .scale = 1.0f};
    float *rows = floats(N * K), *got = floats(ROWS * N), *want = floats(ROWS * N);
    const struct wn_mat host = {.ptr = rows, .dtype = WN_F32, .rows = N, .cols = K, .stride = K};
    struct wn_weight *w[2] = {NULL, NULL};
    (void)state;

    for (uint32_t i = 0; i < N * K; i++) rows[i] = i % PART == 5 ? -127.0f : (float)(i * 2654435761u >> 24) / 2 - 63.0f;
    for (uint32_t i = 0; i < N * K; i++) rows[i] = rintf(rows[i]);
    assert_int_equal(be->ops->weight_i8(be, &w[0], &host, SLICES), WN_OK);
    assert_int_equal(be->ops->weight_create(be, &w[1], &host, WN_BF16), WN_OK);
    for (size_t i = 0; i < COUNT(counts); i++) {
        struct dev x = dev_rows(be, &xc, 0, counts[i]), o = dev_out(be, WN_F32, counts[i], N, 3);
        struct wn_matmul a = {.out = o.m, .x = x.m, .w = w[0], .slices = SLICES};
        assert_int_equal(wn_be_matmul(be, &a), WN_OK);
        dev_read(be, &o, got);
        a.w = w[1];
        assert_int_equal(wn_be_matmul(be, &a), WN_OK);
        dev_read(be, &o, want);
        check_bits("int8 as bfloat16", got, want, counts[i] * N);
        dev_free(be, &x);
        dev_free(be, &o);
    }
    for (int i = 0; i < 2; i++) be->ops->weight_destroy(be, w[i]);
    free(rows);
    free(got);
    free(want);
}

/* Products of the same x in one call: the bits of one call each, also where one of them is of another type. */
void int8_together(void **state)
{
    static const uint32_t rows[] = {1, 12, 40, 70}, cols[] = {33, 16, 150};
    (void)state;

    for (size_t i = 0; i < 2 * COUNT(rows); i++) {
        struct case_matmul c = {rows[i / 2], 0, 528, 1, WN_ACT_NONE, false, WN_BF16, WN_F32, WN_BF16, 8};
        const struct case_mat xc = case_matmul_x(&c);
        struct dev x = dev_mat(be, &xc), o[COUNT(cols)];
        struct wn_matmul a[COUNT(cols)];
        struct wn_weight *w[COUNT(cols)];
        for (size_t j = 0; j < COUNT(cols); j++) {
            float *zeros = calloc((size_t)cols[j] * c.k, sizeof(float));
            const struct wn_mat host = {.ptr = zeros, .dtype = WN_F32, .rows = cols[j], .cols = c.k, .stride = c.k};
            assert_non_null(zeros);
            c.n = cols[j];
            o[j] = dev_out(be, c.out, c.m, c.n, c.pad);
            if (i % 2 == 0 || j != 1) w[j] = make(be, &c, 0, c.k, 1);
            else assert_int_equal(be->ops->weight_create(be, &w[j], &host, WN_BF16), WN_OK);
            a[j] = (struct wn_matmul){.out = o[j].m, .x = x.m, .w = w[j], .slices = 1};
            free(zeros);
        }
        check_together(be, "int8 together", a, w, o, COUNT(cols));
        dev_free(be, &x);
    }
}

/* Ranks that made their own part of w, and an all-reduce in the same tree, give the bits of the whole. */
void int8_slices(void **state)
{
    const struct case_matmul c = {9, 50, 1048, 8, WN_ACT_NONE, false, WN_BF16, WN_F32, WN_F32, 5};
    const size_t n = (size_t)c.m * c.n;
    struct case_mat xc = case_matmul_x(&c);
    float *parts = floats(8 * n), *whole = floats(n);
    (void)state;

    run(be, &c, 0, c.m, whole);
    for (uint32_t ranks = 2; ranks <= 8; ranks *= 2) {
        struct dev x = dev_mat(be, &xc), o = dev_out(be, WN_F32, c.m, c.n, 0);
        for (uint32_t r = 0; r < ranks; r++) {
            const uint32_t len = c.k / ranks;
            struct wn_weight *w = make(be, &c, r * len, len, c.slices / ranks);
            const struct wn_matmul a = {
                .out = o.m, .x = wn_mat_cols(x.m, r * len, len), .w = w, .slices = c.slices / ranks};
            assert_int_equal(wn_be_matmul(be, &a), WN_OK);
            dev_read(be, &o, parts + r * n);
            be->ops->weight_destroy(be, w);
        }
        for (uint32_t step = 1; step < ranks; step *= 2)
            for (uint32_t r = 0; r < ranks; r += 2 * step)
                for (size_t i = 0; i < n; i++) parts[r * n + i] += parts[(r + step) * n + i];
        check_bits("int8 slices", parts, whole, n);
        dev_free(be, &x);
        dev_free(be, &o);
    }
    free(parts);
    free(whole);
}
