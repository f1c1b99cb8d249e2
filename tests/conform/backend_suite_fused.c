/* Operations that are two in one give the bits of the two, one after the other. */
#include "tests/conform/backend_suite_parts.h"

static void norm_case(uint32_t cols, uint32_t pad, wn_dtype type, bool rms, bool in_place)
{
    enum { ROWS = 5 };
    const struct case_mat xc = {type, ROWS, cols, pad, 41, 3.0f}, yc = {type, ROWS, cols, pad, 42, 2.0f};
    const struct case_mat wc = {WN_F32, 1, cols, 0, 43, 1.0f}, bc = {WN_F32, 1, cols, 0, 44, 1.0f};
    struct dev weight = dev_mat(be, &wc), bias = dev_mat(be, &bc);
    const size_t n = (size_t)ROWS * cols;
    float *got[2], *want[2];

    for (int fused = 0; fused < 2; fused++) {
        struct dev x = dev_mat(be, &xc), y = dev_mat(be, &yc), o = dev_out(be, type, ROWS, cols, pad);
        const struct wn_norm norm = {.out = in_place ? y.m : o.m,
                                     .x = x.m,
                                     .weight = weight.buf.ptr,
                                     .bias = rms ? NULL : bias.buf.ptr,
                                     .eps = 1e-5f,
                                     .rms = rms};
        float **out = fused ? got : want;
        if (fused) {
            assert_int_equal(wn_be_add_norm(be, &y.m, &norm), WN_OK);
        } else {
            assert_int_equal(wn_be_add(be, &x.m, &x.m, &y.m), WN_OK);
            assert_int_equal(wn_be_norm(be, &norm), WN_OK);
        }
        dev_read(be, &x, out[0] = floats(n));
        dev_read(be, in_place ? &y : &o, out[1] = floats(n));
        dev_free(be, &x);
        dev_free(be, &y);
        dev_free(be, &o);
    }
    check_bits("add_norm: the sum", got[0], want[0], n);
    check_bits("add_norm: the norm", got[1], want[1], n);
    for (int i = 0; i < 2; i++) {
        free(got[i]);
        free(want[i]);
    }
    dev_free(be, &weight);
    dev_free(be, &bias);
}

void fused_norm(void **state)
{
    static const uint32_t cols[] = {1, 9, 64, 1024, 1411, 4104, 8208};
    (void)state;
    for (size_t i = 0; i < COUNT(cols) * 8; i++)
        norm_case(cols[i / 8], i & 1 ? 3 : 0, i & 2 ? WN_BF16 : WN_F32, i & 4, i % 3 == 0);
}

/* Three sequences, and rows of none; keys are the columns behind the queries. */
static void rope_case(uint32_t heads, uint32_t kv_heads, uint32_t head_dim, wn_dtype type, wn_dtype kv_type)
{
    enum { ROWS = 9, PAGES = 6, PAGE_TOKENS = 3 };
    static const uint32_t position[ROWS] = {4, 5, 0, 77, 1000, 3, 2, 1, 9}, pages[][3] = {{4, 1}, {0}, {2, 5, 3}};
    static const struct wn_seq seqs[] = {{.first_row = 0, .rows = 2, .pos = 2, .pages = pages[0]},
                                         {.first_row = 3, .rows = 1, .pos = 0, .pages = pages[1]},
                                         {.first_row = 4, .rows = 4, .pos = 5, .pages = pages[2]}};
    const uint32_t q_cols = heads * head_dim, kv_cols = kv_heads * head_dim;
    const struct case_mat qkv = {type, ROWS, q_cols + 2 * kv_cols, 8, 51, 2.0f};
    const struct case_mat pool = {kv_type, PAGES * PAGE_TOKENS, kv_cols, 0, 52, 1.0f};
    const size_t n = (size_t)ROWS * q_cols, kv_n = (size_t)PAGES * PAGE_TOKENS * kv_cols;
    float *got[3], *want[3];

    for (int fused = 0; fused < 2; fused++) {
        struct dev x = dev_mat(be, &qkv), keys = dev_mat(be, &pool), values = dev_mat(be, &pool), q = x;
        const struct wn_rope rope = {.x = wn_mat_cols(x.m, 0, q_cols + kv_cols),
                                     .position = position,
                                     .head_dim = head_dim,
                                     .theta = CASE_ROPE_THETA};
        const struct wn_kv_write write = {.k = wn_mat_cols(x.m, q_cols, kv_cols),
                                          .v = wn_mat_cols(x.m, q_cols + kv_cols, kv_cols),
                                          .kv = {.k = keys.m, .v = values.m, .page_tokens = PAGE_TOKENS},
                                          .seqs = seqs,
                                          .seqs_n = COUNT(seqs)};
        float **out = fused ? got : want;
        struct dev queries = dev_out(be, WN_F32, ROWS, q_cols, 0);
        if (fused) {
            assert_int_equal(wn_be_rope_kv(be, &rope, &write), WN_OK);
        } else {
            assert_int_equal(wn_be_rope(be, &rope), WN_OK);
            assert_int_equal(wn_be_kv_write(be, &write), WN_OK);
        }
        q.m = wn_mat_cols(x.m, 0, q_cols);
        assert_int_equal(wn_be_convert(be, &queries.m, &q.m), WN_OK);
        dev_read(be, &queries, out[0] = floats(n));
        dev_read(be, &keys, out[1] = floats(kv_n));
        dev_read(be, &values, out[2] = floats(kv_n));
        struct dev *all[] = {&x, &keys, &values, &queries};
        for (size_t i = 0; i < COUNT(all); i++) dev_free(be, all[i]);
    }
    check_bits("rope_kv: queries", got[0], want[0], n);
    check_bits("rope_kv: keys", got[1], want[1], kv_n);
    check_bits("rope_kv: values", got[2], want[2], kv_n);
    for (int i = 0; i < 3; i++) {
        free(got[i]);
        free(want[i]);
    }
}

void fused_rope(void **state)
{
    (void)state;
    rope_case(4, 2, 8, WN_BF16, WN_BF16);
    rope_case(3, 3, 10, WN_F32, WN_BF16);
    rope_case(2, 1, 64, WN_BF16, WN_F32);
    rope_case(4, 4, 128, WN_F32, WN_F32);
}
