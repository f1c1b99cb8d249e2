/* Memory and matrices larger than a device takes at a time arrive whole, dense or cut out of wider rows. */
#include <string.h>

#include "tests/conform/backend_suite_parts.h"

static uint8_t byte_at(size_t i)
{
    return (uint8_t)(i * 131 + (i >> 8) * 17 + (i >> 20));
}

void upload_large(void **state)
{
    const size_t bytes = ((size_t)33 << 20) + 3;
    uint8_t *host = malloc(bytes), *back = malloc(bytes);
    struct wn_buf dev = {0};
    (void)state;

    assert_true(host && back);
    for (size_t i = 0; i < bytes; i++) host[i] = byte_at(i);
    assert_int_equal(be->ops->buf_alloc(be, bytes, &dev), WN_OK);
    assert_int_equal(be->ops->upload(be, dev.ptr, host, bytes), WN_OK);
    memset(host, 0, bytes); /* it is the caller's again */
    assert_int_equal(be->ops->download(be, back, dev.ptr, bytes), WN_OK);
    for (size_t i = 0; i < bytes; i++)
        if (back[i] != byte_at(i)) fail_msg("%s: byte %zu", be_name, i);
    be->ops->buf_free(be, &dev);
    free(host);
    free(back);
}

/* Small whole numbers, which every type holds. */
static float value_at(uint32_t row, uint32_t col)
{
    return (float)((row * 7 + col * 13) % 127) - 60.0f;
}

/* x picks columns of w: out [PICKED, rows of w]. */
static void large_case(wn_dtype from, wn_dtype as, uint32_t n, uint32_t k, uint32_t pad)
{
    enum { PICKED = 3 };
    const uint32_t cols[PICKED] = {0, k / 2 + 1, k - 1};
    struct wn_mat host = {.dtype = from, .rows = n, .cols = k, .stride = k + pad};
    struct dev x = dev_out(be, WN_F32, PICKED, k, 0), out = dev_out(be, WN_F32, PICKED, n, 0);
    float *one = calloc((size_t)PICKED * k, sizeof(*one)), *got = floats((size_t)PICKED * n);
    struct wn_weight *w = NULL;

    host.ptr = malloc((size_t)n * host.stride * wn_dtype_bytes(from));
    assert_true(host.ptr && one);
    for (uint32_t r = 0; r < n; r++)
        for (uint32_t c = 0; c < k; c++) {
            const size_t at = (size_t)r * host.stride + c;
            if (from == WN_F32) ((float *)host.ptr)[at] = value_at(r, c);
            else ((wn_bf16 *)host.ptr)[at] = wn_f32_to_bf16(value_at(r, c));
        }
    assert_int_equal(be->ops->weight_create(be, &w, &host, as), WN_OK);
    free(host.ptr);
    for (uint32_t i = 0; i < PICKED; i++) one[(size_t)i * k + cols[i]] = 1.0f;
    assert_int_equal(be->ops->upload(be, x.buf.ptr, one, (size_t)PICKED * k * sizeof(*one)), WN_OK);
    const struct wn_matmul a = {.out = out.m, .x = x.m, .w = w, .slices = 1};
    assert_int_equal(wn_be_matmul(be, &a), WN_OK);
    dev_read(be, &out, got);
    for (uint32_t i = 0; i < PICKED; i++)
        for (uint32_t r = 0; r < n; r++)
            if (got[(size_t)i * n + r] != value_at(r, cols[i]))
                fail_msg("%s: weight [%u, %u], row %u, column %u", be_name, n, k, r, cols[i]);
    be->ops->weight_destroy(be, w);
    dev_free(be, &x);
    dev_free(be, &out);
    free(one);
    free(got);
}

/* The same weight made whole and row block by row block, also out of pinned memory: the same products, to the bit. */
static void blocks_case(wn_dtype from, bool int8, wn_dtype as, uint32_t n, uint32_t k, uint32_t pad)
{
    enum { X = 3, SLICES = 4 };
    const size_t room = ((size_t)n * (k + pad) * wn_dtype_bytes(from) + 4095) / 4096 * 4096;
    const uint32_t slices = int8 ? SLICES : 1;
    struct wn_mat host = {.ptr = aligned_alloc(4096, room), .dtype = from, .rows = n, .cols = k, .stride = k + pad};
    const struct wn_mat later = {.dtype = from, .rows = n, .cols = k, .stride = k + pad};
    struct dev x = dev_out(be, WN_F32, X, k, 0), out = dev_out(be, WN_F32, X, n, 0);
    float *in = floats((size_t)X * k), *got[2] = {floats((size_t)X * n), floats((size_t)X * n)};
    wn_status (*rows)(struct wn_backend *, struct wn_weight *, uint32_t, const struct wn_mat *) =
        int8 ? be->ops->weight_i8_rows : be->ops->weight_rows;

    assert_non_null(host.ptr);
    for (size_t i = 0; i < (size_t)n * host.stride; i++) {
        const float v = (float)(i * 2654435761u % 2001) * 1e-3f - 1.0f;
        if (from == WN_F32) ((float *)host.ptr)[i] = v;
        else ((uint16_t *)host.ptr)[i] = from == WN_BF16 ? wn_f32_to_bf16(v) : (uint16_t)(i * 40503u % 0x3c00u);
    }
    for (size_t i = 0; i < (size_t)X * k; i++) in[i] = (float)(i * 40503u % 1999) * 1e-3f - 1.0f;
    assert_int_equal(be->ops->upload(be, x.buf.ptr, in, (size_t)X * k * sizeof(*in)), WN_OK);
    for (int blocks = 0; blocks < 2; blocks++) {
        const struct wn_mat *source = blocks ? &later : &host;
        struct wn_weight *w = NULL;
        if (blocks && be->ops->pin) assert_int_equal(be->ops->pin(be, host.ptr, room), WN_OK);
        if (int8) assert_int_equal(be->ops->weight_i8(be, &w, source, SLICES), WN_OK);
        else assert_int_equal(be->ops->weight_create(be, &w, source, as), WN_OK);
        for (uint32_t r = 0, step = WN_WEIGHT_ROWS; blocks && r < n; r += step, step += WN_WEIGHT_ROWS) {
            const struct wn_mat part = wn_mat_rows(host, r, n - r < step ? n - r : step);
            assert_int_equal(rows(be, w, r, &part), WN_OK);
        }
        if (blocks && be->ops->unpin) be->ops->unpin(be);
        const struct wn_matmul a = {.out = out.m, .x = x.m, .w = w, .slices = slices};
        assert_int_equal(wn_be_matmul(be, &a), WN_OK);
        dev_read(be, &out, got[blocks]);
        be->ops->weight_destroy(be, w);
    }
    check_bits("a weight in blocks", got[1], got[0], (size_t)X * n);
    dev_free(be, &x);
    dev_free(be, &out);
    free(host.ptr);
    free(in);
    free(got[0]);
    free(got[1]);
}

void weight_blocks(void **state)
{
    (void)state;
    for (int from = WN_F32; from <= WN_F16; from++) {
        if (be->ops->weight_rows) blocks_case((wn_dtype)from, false, WN_BF16, 203, 44, 0);
        if (be->ops->weight_rows) blocks_case((wn_dtype)from, false, WN_F32, 33, 100, 28);
        if (be->ops->weight_i8_rows) blocks_case((wn_dtype)from, true, WN_I8, 203, 88, 8);
    }
    if (!be->ops->weight_rows) print_message("%s makes weights whole\n", be_name);
}

void weight_large(void **state)
{
    (void)state;
    large_case(WN_BF16, WN_BF16, 840, 10401, 96); /* 17 MB, cut out of wider rows */
    large_case(WN_F32, WN_BF16, 480, 9000, 8); /* rounded there */
}
