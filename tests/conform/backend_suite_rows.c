/* Products and sums of rows (pruning/rows.h) have the host's bits: the limit is no error at all. A backend that leaves
 * them to the host has nothing to show here; test_prune_golden checks that one. */
#include <stdio.h>
#include <string.h>

#include "pruning/rows.h"
#include "tests/conform/backend_suite_parts.h"

/* The matrix in host memory, dense, exactly as it is stored. */
static struct wn_mat host_copy(const struct case_mat *c)
{
    void *values = malloc((size_t)c->rows * c->cols * wn_dtype_bytes(c->dtype) + 1);
    const struct wn_mat m = {values, c->dtype, c->rows, c->cols, c->cols};

    assert_non_null(m.ptr);
    for (uint32_t r = 0; r < c->rows; r++)
        for (uint32_t k = 0; k < c->cols; k++) {
            const float v = case_value(c, r, k);
            if (c->dtype == WN_F32) ((float *)m.ptr)[(size_t)r * c->cols + k] = v;
            else ((wn_bf16 *)m.ptr)[(size_t)r * c->cols + k] = wn_f32_to_bf16(v);
        }
    return m;
}

static void dots_case(const struct case_mat *ac, const struct case_mat *bc, const uint32_t *a_at, uint32_t a_n,
                      const uint32_t *b_at, uint32_t b_n, wn_row_pairs pairs)
{
    const bool same = pairs != WN_ROWS_ALL;
    const uint32_t cols = pairs == WN_ROWS_SELF ? 1 : b_n;
    struct dev a = dev_mat(be, ac), b = dev_mat(be, same ? ac : bc), out = dev_out(be, WN_F32, a_n, cols, 0);
    const struct wn_mat a_host = host_copy(ac), b_host = host_copy(same ? ac : bc);
    float *want = calloc((size_t)a_n * cols + 1, sizeof(*want)), *got = floats((size_t)a_n * cols);
    const struct wn_row_dots there = {out.m.ptr, {a.m, a_at, a_n}, {same ? a.m : b.m, b_at, b_n}, pairs};
    const struct wn_row_dots here = {want, {a_host, a_at, a_n}, {same ? a_host : b_host, b_at, b_n}, pairs};
    char what[64];

    assert_non_null(want);
    assert_int_equal(be->ops->row_dots(be, &there), WN_OK);
    assert_int_equal(wn_row_dots(&here, NULL), WN_OK);
    dev_read(be, &out, got);
    snprintf(what, sizeof(what), "row dots %u x %u of %u, pairs %d", a_n, b_n, ac->cols, (int)pairs);
    for (uint32_t i = 0; i < a_n; i++) {
        const uint32_t from = pairs == WN_ROWS_UPPER ? i : 0;
        check_bits(what, got + (size_t)i * cols + from, want + (size_t)i * cols + from, cols - from);
    }
    free(want);
    free(got);
    free(a_host.ptr);
    free(b_host.ptr);
    dev_free(be, &a);
    dev_free(be, &b);
    dev_free(be, &out);
}

void row_dots_bits(void **state)
{
    static const uint32_t cols[] = {1, 7, 8, 20, 64, 130, 256, 1024}, counts[][2] = {{1, 70}, {33, 5}, {70, 64}};
    uint32_t list[70];
    (void)state;

    if (!be->ops->row_dots) return;
    for (size_t i = 0; i < COUNT(cols) * COUNT(counts); i++) {
        const uint32_t n = cols[i / COUNT(counts)], *count = counts[i % COUNT(counts)];
        const struct case_mat a = {i & 1 ? WN_BF16 : WN_F32, 71, n, i & 2 ? 8 : 3, 61 + i, 3.0f};
        const struct case_mat b = {i & 4 ? WN_BF16 : WN_F32, 70, n, 8, 91 + i, 2.0f};
        for (uint32_t t = 0; t < COUNT(list); t++) list[t] = (t * 29 + 7) % 70;
        dots_case(&a, &b, NULL, count[0], NULL, count[1], WN_ROWS_ALL);
        dots_case(&a, &b, list, count[0], list + 70 - count[1], count[1], WN_ROWS_ALL);
        dots_case(&a, &a, list, count[0], list, count[0], WN_ROWS_UPPER);
        dots_case(&a, &a, i & 1 ? list : NULL, count[1], NULL, 0, WN_ROWS_SELF);
    }
}

void row_sums_bits(void **state)
{
    enum { IN = 40, OUT = 6 };
    static const uint32_t cols[] = {1, 5, 16, 33, 64, 1024, 2056}, first[OUT + 1] = {0, 1, 34, 34, 35, 74, 76};
    static const float div[OUT] = {1, 1, 1, 1, 39.5f, 0.25f};
    struct wn_row_term terms[76];
    (void)state;

    if (!be->ops->row_sums) return;
    for (uint32_t t = 0; t < COUNT(terms); t++)
        terms[t] = (struct wn_row_term){(t * 17 + 3) % IN, 1.0f / (float)(t + 1)};
    terms[34].row = IN; /* the last row, elsewhere, as it is */
    terms[0].weight = terms[34].weight = 1.0f;
    for (size_t i = 0; i < COUNT(cols) * 4; i++) {
        const uint32_t n = cols[i / 4];
        const wn_dtype from = i & 1 ? WN_BF16 : WN_F32, to = i & 2 ? WN_BF16 : WN_F32;
        const struct case_mat c = {from, IN, n, i & 1 ? 8 : 1, 71 + i, 3.0f}, lc = {from, 1, n, 0, 72 + i, 3.0f};
        struct dev in = dev_mat(be, &c), last = dev_mat(be, &lc), out = dev_out(be, to, OUT, n, 8);
        const struct wn_mat host = host_copy(&c), host_last = host_copy(&lc);
        float *got = floats((size_t)OUT * n), *want = floats((size_t)OUT * n);
        struct wn_row_sums s = {out.m, in.m, last.m.ptr, first, terms, div};

        assert_int_equal(be->ops->row_sums(be, &s), WN_OK);
        dev_read(be, &out, got);
        s.in = host;
        s.last = host_last.ptr;
        s.out = (struct wn_mat){want, WN_F32, OUT, n, n};
        wn_row_sums(&s);
        for (size_t j = 0; to == WN_BF16 && j < (size_t)OUT * n; j++)
            want[j] = wn_bf16_to_f32(wn_f32_to_bf16(want[j]));
        check_bits("row sums", got, want, (size_t)OUT * n);
        free(got);
        free(want);
        free(host.ptr);
        free(host_last.ptr);
        dev_free(be, &in);
        dev_free(be, &last);
        dev_free(be, &out);
    }
}
