/* The vision tower against Transformers: features and taps of two tiny checkpoints, on every backend; batches give the
 * same bits as single images; only what is asked for comes back; wrong requests and wrong files are refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "shard/vision.h"
#include "tests/integration/golden.h"

#define TOLERANCE 1e-4 /* of the largest magnitude in a row */

static const char *const names[] = {"llava-a", "llava-b"};

struct tower {
    struct golden g;
    struct wn_backend *be;
    struct wn_weights *w;
    struct wn_vision *v;
};

static void tower_open(struct tower *t, const char *name, const char *backend, wn_dtype dtype,
                       uint32_t images_max)
{
    struct wn_err err = {0};

    if (golden_open(&t->g, name, &err) || wn_backend_open(&t->be, backend, 0, &err) ||
        wn_weights_open(&t->w, t->g.dir, &err) ||
        wn_vision_open(&t->v, t->be, &t->g.model, t->w, dtype, images_max, &err))
        fail_msg("%s: %s", name, err.text);
}

static void tower_close(struct tower *t)
{
    wn_vision_close(t->v);
    wn_weights_close(t->w);
    wn_backend_close(t->be);
    golden_close(&t->g);
}

static void agrees(const char *what, const char *backend, double error, double limit)
{
    print_message("    %-15s %-15s largest relative error %.2e\n", backend, what, error);
    if (!(error <= limit)) fail_msg("%s on %s: error %g, limit %g", what, backend, error, limit);
}

static void check_golden(const char *name, const char *backend)
{
    struct tower t;
    struct wn_vision_out out;
    struct wn_err err = {0};
    tower_open(&t, name, backend, WN_F32, 8);
    const struct wn_vision_config *c = &t.g.model.vision;
    uint32_t last = c->layers_run - 1, tokens = c->patches + 1, n = t.g.images;
    struct wn_vision_taps taps = {.cls_layers = (uint64_t)1 << last,
                                  .mean_layers = (uint64_t)1 << last,
                                  .keys_layers = (uint64_t)1 << c->layers_run};

    if (wn_vision_encode(t.v, t.g.pixels, n, &taps, WN_NEVER, &out, &err)) fail_msg("%s", err.text);
    assert_int_equal(out.rows, c->patches);
    assert_int_equal(out.width, c->hidden);
    assert_int_equal(out.tokens, tokens);
    agrees("features", backend,
           golden_error(out.features, t.g.features, (size_t)n * out.rows, out.width), TOLERANCE);
    agrees("CLS attention", backend,
           golden_error(out.cls_attention, t.g.cls_attention, n * c->heads, tokens), TOLERANCE);
    agrees("mean attention", backend,
           golden_error(out.mean_attention, t.g.mean_attention, n, tokens), TOLERANCE);
    agrees("keys", backend, golden_error(out.keys, t.g.keys, n * tokens, c->hidden), TOLERANCE);
    agrees("CLS query", backend, golden_error(out.cls_query, t.g.query, n, c->hidden), TOLERANCE);
    tower_close(&t);
}

static void test_golden(void **state)
{
    (void)state;
    for (size_t i = 0; i < 2; i++)
        for (size_t b = 0; wn_backends[b]; b++)
            if (golden_backend_usable(wn_backends[b]->name)) check_golden(names[i], wn_backends[b]->name);
}

/* bfloat16 has 8 bits of mantissa and rounds after each operation: a few hundredths of a row's largest value. */
static void test_bfloat16_is_near(void **state)
{
    struct tower t;
    struct wn_vision_out out;
    struct wn_err err = {0};
    size_t n;
    float *wide;
    (void)state;

    tower_open(&t, "llava-a", wn_backends[0]->name, WN_BF16, 8);
    if (wn_vision_encode(t.v, t.g.pixels, t.g.images, NULL, WN_NEVER, &out, &err))
        fail_msg("%s", err.text);
    assert_int_equal(out.dtype, WN_BF16);
    n = (size_t)out.images * out.rows * out.width;
    wide = malloc(n * sizeof(*wide));
    for (size_t i = 0; i < n; i++) wide[i] = wn_bf16_to_f32(((const wn_bf16 *)out.features)[i]);
    agrees("bfloat16", wn_backends[0]->name,
           golden_error(wide, t.g.features, (size_t)out.images * out.rows, out.width), 0.05);
    free(wide);
    tower_close(&t);
}

static void *copy_of(const void *p, size_t bytes)
{
    void *c = malloc(bytes);
    memcpy(c, p, bytes);
    return c;
}

/* All images at once, then one by one, keys of each layer by an encode of their own: the same bits. */
static void check_batch(wn_dtype dtype)
{
    struct tower t;
    struct wn_vision_out out;
    struct wn_err err = {0};
    struct wn_vision_taps taps = {.cls_layers = 3, .mean_layers = 1};
    tower_open(&t, "llava-b", wn_backends[0]->name, dtype, 4);
    const struct wn_vision_config *c = &t.g.model.vision;
    size_t side = c->image_side, tokens = c->patches + 1, cls = c->heads * tokens, n = t.g.images;
    size_t bytes = (size_t)c->patches * c->hidden * wn_dtype_bytes(dtype), width = c->hidden;
    const uint64_t keys_layer[2] = {1, (uint64_t)1 << c->layers_run}; /* the first, and the one that is not run */

    taps.keys_layers = keys_layer[0] | keys_layer[1];
    if (wn_vision_encode(t.v, t.g.pixels, t.g.images, &taps, WN_NEVER, &out, &err))
        fail_msg("%s", err.text);
    char *features = copy_of(out.features, n * bytes);
    float *attention = copy_of(out.cls_attention, 2 * n * cls * sizeof(float));
    float *mean = copy_of(out.mean_attention, n * tokens * sizeof(float));
    float *keys = copy_of(out.keys, 2 * n * tokens * width * sizeof(float));
    float *query = copy_of(out.cls_query, 2 * n * width * sizeof(float));
    for (uint32_t i = 0; i < t.g.images; i++) {
        for (size_t layer = 0; layer < 2; layer++) {
            const struct wn_vision_taps one = {.keys_layers = keys_layer[layer]};
            if (wn_vision_encode(t.v, t.g.pixels + i * 3 * side * side, 1, &one, WN_NEVER, &out, &err))
                fail_msg("%s", err.text);
            assert_memory_equal(keys + (layer * n + i) * tokens * width, out.keys, tokens * width * sizeof(float));
            assert_memory_equal(query + (layer * n + i) * width, out.cls_query, width * sizeof(float));
        }
        if (wn_vision_encode(t.v, t.g.pixels + i * 3 * side * side, 1, &taps, WN_NEVER, &out, &err))
            fail_msg("%s", err.text);
        assert_memory_equal(features + i * bytes, out.features, bytes);
        for (size_t layer = 0; layer < 2; layer++)
            assert_memory_equal(attention + (layer * n + i) * cls, out.cls_attention + layer * cls,
                                cls * sizeof(float));
        assert_memory_equal(mean + i * tokens, out.mean_attention, tokens * sizeof(float));
    }
    free(features);
    free(attention);
    free(mean);
    free(keys);
    free(query);
    tower_close(&t);
}

static void test_batches_give_the_same_bits(void **state)
{
    (void)state;
    check_batch(WN_F32);
    check_batch(WN_BF16);
}

static void test_requests(void **state)
{
    struct tower t;
    struct wn_vision_out out;
    struct wn_err err = {0};
    struct wn_vision_taps taps = {0};
    (void)state;

    tower_open(&t, "llava-a", wn_backends[0]->name, WN_F32, 1);
    assert_int_equal(wn_vision_encode(t.v, t.g.pixels, 1, NULL, WN_NEVER, &out, &err), WN_OK);
    assert_null(out.cls_attention);
    assert_null(out.mean_attention);
    assert_null(out.keys);
    assert_null(out.cls_query);
    assert_int_equal(wn_vision_encode(t.v, t.g.pixels, 2, NULL, WN_NEVER, &out, &err), WN_ELIMIT);
    assert_int_equal(wn_vision_encode(t.v, t.g.pixels, 0, NULL, WN_NEVER, &out, &err), WN_ELIMIT);
    taps.cls_layers = (uint64_t)1 << t.g.model.vision.layers_run;
    assert_int_equal(wn_vision_encode(t.v, t.g.pixels, 1, &taps, WN_NEVER, &out, &err), WN_EINVAL);
    taps = (struct wn_vision_taps){.keys_layers = (uint64_t)1 << t.g.model.vision.layers};
    assert_int_equal(wn_vision_encode(t.v, t.g.pixels, 1, &taps, WN_NEVER, &out, &err), WN_EINVAL);
    assert_int_equal(wn_vision_encode(t.v, t.g.pixels, 1, NULL, wn_now_us() - 1, &out, &err),
                     WN_ETIME);
    assert_int_equal(wn_vision_encode(t.v, t.g.pixels, 1, NULL, WN_NEVER, &out, &err), WN_OK);
    tower_close(&t);
}

static void test_open_names_what_is_wrong(void **state)
{
    struct tower t;
    struct wn_vision *v = NULL;
    struct wn_err err = {0};
    struct wn_model wrong;
    (void)state;

    tower_open(&t, "llava-a", wn_backends[0]->name, WN_F32, 1);
    wrong = t.g.model;
    wrong.vision.mlp += 1;
    assert_int_equal(wn_vision_open(&v, t.be, &wrong, t.w, WN_F32, 1, &err), WN_EFORMAT);
    assert_non_null(strstr(err.text, "fc1.weight"));
    assert_int_equal(wn_vision_check(&wrong, t.w, &err), WN_EFORMAT);
    assert_non_null(strstr(err.text, "model.safetensors: tensor"));
    wrong = t.g.model;
    wrong.vision.layers = wrong.vision.layers_run = 9;
    assert_int_equal(wn_vision_open(&v, t.be, &wrong, t.w, WN_F32, 1, &err), WN_ENOENT);
    assert_non_null(strstr(err.text, "layers.4."));
    assert_int_equal(wn_vision_check(&wrong, t.w, &err), WN_ENOENT);
    assert_int_equal(wn_vision_check(&t.g.model, t.w, &err), WN_OK);
    assert_int_equal(wn_vision_open(&v, t.be, &t.g.model, t.w, WN_F16, 1, &err), WN_EUNSUPP);
    assert_int_equal(wn_vision_open(&v, t.be, &t.g.model, t.w, WN_F32, 0, &err), WN_EINVAL);
    assert_null(v);
    tower_close(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_bfloat16_is_near),
        cmocka_unit_test(test_batches_give_the_same_bits),
        cmocka_unit_test(test_requests),
        cmocka_unit_test(test_open_names_what_is_wrong),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
