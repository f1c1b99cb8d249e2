/* tests/unit/test_vision_cache.c - daemon/vision_cache: copies, taps that are missing, order of eviction, the bound. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/vision_cache.h"

enum { ROWS = 4, WIDTH = 24, TOKENS = 5, HEADS = 2 };

static float features[ROWS * WIDTH], cls[3 * 2 * HEADS * TOKENS], mean[2 * TOKENS];
static float keys[3 * TOKENS * WIDTH], query[3 * WIDTH], row[WIDTH];

/* A view of picture n; layers 1 and 3 of the CLS attention and keys of 4 and 6 lie two images apart, as in a
 * batch; some have a CLS row. */
static struct wn_vision_view picture(int n)
{
    for (int i = 0; i < ROWS * WIDTH; i++) features[i] = (float)(n * 1000 + i);
    for (size_t i = 0; i < sizeof(cls) / sizeof(cls[0]); i++) cls[i] = (float)(n * 100) + (float)i;
    for (int i = 0; i < 2 * TOKENS; i++) mean[i] = (float)(n + i);
    for (int i = 0; i < 3 * TOKENS * WIDTH; i++) keys[i] = (float)(n - i);
    for (int i = 0; i < 3 * WIDTH; i++) query[i] = (float)(n + 7 * i);
    for (int i = 0; i < WIDTH; i++) row[i] = (float)(n * i);
    return (struct wn_vision_view){
        .features = features,
        .rows = ROWS,
        .width = WIDTH,
        .tokens = TOKENS,
        .heads = HEADS,
        .dtype = WN_F32,
        .taps = {.cls_layers = 10,
                 .mean_layers = 3,
                 .cls_attention = cls,
                 .mean_attention = mean,
                 .cls_stride = 2 * HEADS * TOKENS,
                 .mean_stride = TOKENS,
                 .keys_layers = 0x50,
                 .keys = keys,
                 .cls_query = query,
                 .keys_stride = 2 * TOKENS * WIDTH,
                 .query_stride = 2 * WIDTH,
                 .cls_row = n >= 50 ? row : NULL},
    };
}

static void put(struct wn_vision_cache *c, int n)
{
    const float pixel = (float)n;
    uint8_t key[WN_VISION_KEY_BYTES];
    const struct wn_vision_view v = picture(n);
    wn_vision_cache_key(&pixel, 1, key);
    wn_vision_cache_put(c, key, &v);
    picture(99); /* the cache must have a copy */
}

static bool get(struct wn_vision_cache *c, int n, const struct wn_prune_wants *w, struct wn_vision_view *v)
{
    const float pixel = (float)n;
    uint8_t key[WN_VISION_KEY_BYTES];
    struct wn_prune_wants wants = *w;
    wn_vision_cache_key(&pixel, 1, key);
    return wn_vision_cache_get(c, key, &wants, v);
}

static const struct wn_prune_wants nothing;
static struct wn_backend *be;

static int setup(void **state)
{
    (void)state;
    return wn_backend_open(&be, "cpu-reference", 0, NULL) != WN_OK;
}

static int teardown(void **state)
{
    (void)state;
    wn_backend_close(be);
    return 0;
}

static void test_copies(void **state)
{
    struct wn_vision_cache *c = NULL;
    struct wn_vision_view v, want;
    (void)state;
    assert_int_equal(wn_vision_cache_create(&c, be, 1 << 20, NULL), WN_OK);
    assert_false(get(c, 1, &nothing, &v));
    put(c, 1);
    put(c, 2);
    assert_true(get(c, 1, &nothing, &v));
    want = picture(1);
    assert_memory_equal(v.features, want.features, sizeof(features));
    for (size_t layer = 0; layer < 2; layer++) { /* strides differ, contents do not */
        assert_memory_equal(v.taps.cls_attention + layer * v.taps.cls_stride,
                            want.taps.cls_attention + layer * want.taps.cls_stride, HEADS * TOKENS * sizeof(float));
        assert_memory_equal(v.taps.mean_attention + layer * v.taps.mean_stride,
                            want.taps.mean_attention + layer * want.taps.mean_stride, TOKENS * sizeof(float));
        assert_memory_equal(v.taps.keys + layer * v.taps.keys_stride, want.taps.keys + layer * want.taps.keys_stride,
                            TOKENS * WIDTH * sizeof(float));
        assert_memory_equal(v.taps.cls_query + layer * v.taps.query_stride,
                            want.taps.cls_query + layer * want.taps.query_stride, WIDTH * sizeof(float));
    }
    assert_null(v.taps.cls_row);
    put(c, 50);
    assert_true(get(c, 50, &(struct wn_prune_wants){.cls_row = true}, &v));
    assert_memory_equal(v.features, picture(50).features, sizeof(features));
    assert_memory_equal(v.taps.cls_row, row, sizeof(row));
    assert_ptr_not_equal(v.taps.cls_row, row); /* ours, as all that it hands out */
    wn_vision_cache_destroy(c);
}

/* What was not there when a picture was put is not there when it is found. */
static void test_a_picture_without_taps(void **state)
{
    const float pixel = 7.0f;
    uint8_t key[WN_VISION_KEY_BYTES];
    struct wn_vision_cache *c = NULL;
    struct wn_vision_view v = picture(3);
    (void)state;

    v.taps = (struct wn_prune_taps){0};
    assert_int_equal(wn_vision_cache_create(&c, be, 1 << 20, NULL), WN_OK);
    wn_vision_cache_key(&pixel, 1, key);
    wn_vision_cache_put(c, key, &v);
    memset(&v, 0xff, sizeof(v));
    assert_true(get(c, 7, &nothing, &v));
    assert_memory_equal(v.features, picture(3).features, sizeof(features));
    assert_null(v.taps.cls_attention);
    assert_null(v.taps.mean_attention);
    assert_null(v.taps.keys);
    assert_null(v.taps.cls_query);
    assert_null(v.taps.cls_row);
    wn_vision_cache_destroy(c);
}

/* One picture that is as large as the bound is kept; one byte less, and it is not. */
static void test_the_bound_is_met_exactly(void **state)
{
    struct wn_vision_cache_stats s;
    struct wn_vision_cache *c = NULL;
    struct wn_vision_view v;
    size_t bytes;
    (void)state;

    assert_int_equal(wn_vision_cache_create(&c, be, 1 << 20, NULL), WN_OK);
    put(c, 1);
    wn_vision_cache_stats(c, &s);
    bytes = s.bytes;
    wn_vision_cache_destroy(c);
    for (size_t less = 0; less < 2; less++) {
        assert_int_equal(wn_vision_cache_create(&c, be, bytes - less, NULL), WN_OK);
        put(c, 1);
        assert_int_equal(get(c, 1, &nothing, &v), !less);
        wn_vision_cache_destroy(c);
    }
}

static void test_missing_taps_miss(void **state)
{
    const struct wn_prune_wants has[] = {{.cls_layers = 8},
                                         {.cls_layers = 10, .mean_layers = 1, .keys_layers = 0x40}};
    const struct wn_prune_wants lacks[] = {
        {.cls_layers = 4}, {.mean_layers = 4}, {.keys_layers = 0x30}, {.cls_row = true}};
    struct wn_vision_cache *c = NULL;
    struct wn_vision_view v;
    (void)state;
    assert_int_equal(wn_vision_cache_create(&c, be, 1 << 20, NULL), WN_OK);
    put(c, 1);
    for (size_t i = 0; i < 2; i++) assert_true(get(c, 1, &has[i], &v));
    for (size_t i = 0; i < 4; i++) assert_false(get(c, 1, &lacks[i], &v));
    wn_vision_cache_destroy(c);
}

/* What a picture has here is not lost by the encode for what it lacks. */
static void test_a_miss_asks_for_what_is_there(void **state)
{
    struct wn_prune_wants w = {.cls_layers = 4, .keys_layers = 0x20, .cls_row = true};
    struct wn_vision_cache *c = NULL;
    struct wn_vision_view v;
    uint8_t key[WN_VISION_KEY_BYTES];
    const float pixel = 1;
    (void)state;
    assert_int_equal(wn_vision_cache_create(&c, be, 1 << 20, NULL), WN_OK);
    put(c, 1);
    wn_vision_cache_key(&pixel, 1, key);
    assert_false(wn_vision_cache_get(c, key, &w, &v));
    assert_true(w.cls_layers == 14 && w.mean_layers == 3 && w.keys_layers == 0x70 && w.cls_row);
    wn_vision_cache_destroy(c);
}

static void test_oldest_goes_first(void **state)
{
    struct wn_vision_cache *c = NULL;
    struct wn_vision_cache_stats s;
    struct wn_vision_view v;
    size_t one;
    (void)state;
    assert_int_equal(wn_vision_cache_create(&c, be, 1 << 20, NULL), WN_OK);
    put(c, 1);
    wn_vision_cache_stats(c, &s);
    one = s.bytes;
    wn_vision_cache_destroy(c);
    assert_int_equal(wn_vision_cache_create(&c, be, 3 * one, NULL), WN_OK);
    for (int i = 1; i <= 3; i++) put(c, i);
    assert_true(get(c, 1, &nothing, &v)); /* now 2 is the one used longest ago */
    put(c, 4);
    assert_false(get(c, 2, &nothing, &v));
    assert_true(get(c, 1, &nothing, &v) && get(c, 3, &nothing, &v) && get(c, 4, &nothing, &v));
    assert_memory_equal(v.features, picture(4).features, sizeof(features)); /* in the memory that 2 had */
    put(c, 4); /* again: replaced, not doubled */
    wn_vision_cache_stats(c, &s);
    assert_int_equal(s.entries, 3);
    assert_int_equal(s.bytes, 3 * one);
    assert_int_equal(s.evicted, 1);
    assert_int_equal(s.queries, 5);
    assert_int_equal(s.hits, 4);
    wn_vision_cache_destroy(c);
}

/* Two files of the same pixels, one of others, and a file whose place another one takes. */
static void test_files(void **state)
{
    const uint8_t a[WN_VISION_KEY_BYTES] = {1}, b[WN_VISION_KEY_BYTES] = {2}, c2[WN_VISION_KEY_BYTES] = {1, 0, 0, 0, 9};
    uint8_t pixels[WN_VISION_KEY_BYTES] = {77}, others[WN_VISION_KEY_BYTES] = {78}, got[WN_VISION_KEY_BYTES];
    struct wn_vision_cache *c = NULL;
    (void)state;
    assert_int_equal(wn_vision_cache_create(&c, be, 1 << 20, NULL), WN_OK);
    assert_false(wn_vision_cache_known(c, a, got));
    wn_vision_cache_learn(c, a, pixels);
    wn_vision_cache_learn(c, b, pixels);
    assert_true(wn_vision_cache_known(c, a, got));
    assert_memory_equal(got, pixels, sizeof(got));
    assert_false(wn_vision_cache_known(c, c2, got));
    wn_vision_cache_learn(c, c2, others);
    assert_true(wn_vision_cache_known(c, c2, got));
    assert_memory_equal(got, others, sizeof(got));
    assert_false(wn_vision_cache_known(c, a, got));
    assert_true(wn_vision_cache_known(c, b, got));
    wn_vision_cache_destroy(c);
}

static void test_no_room(void **state)
{
    struct wn_vision_cache *c = NULL;
    struct wn_vision_view v;
    (void)state;
    assert_int_equal(wn_vision_cache_create(&c, be, 0, NULL), WN_OK);
    put(c, 1);
    assert_false(get(c, 1, &nothing, &v));
    wn_vision_cache_destroy(c);
    wn_vision_cache_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_copies),
        cmocka_unit_test(test_a_picture_without_taps),
        cmocka_unit_test(test_the_bound_is_met_exactly),
        cmocka_unit_test(test_missing_taps_miss),
        cmocka_unit_test(test_a_miss_asks_for_what_is_there),
        cmocka_unit_test(test_oldest_goes_first),
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_no_room),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
