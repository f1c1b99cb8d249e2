/* tests/unit/test_preprocess.c - preprocessor_config.json: what is read and what is refused by
 * name; pictures in parallel. The values themselves are compared with Transformers in test_image.c.
 * */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "shard/preprocess.h"
#include "shard/threadpool.h"
#include "tests/file_read.h"

#define DIR "tests/golden/image/"

static void reads_options(void **state)
{
    static const char json[] =
        "{\"do_resize\": true, \"size\": {\"shortest_edge\": 30}, \"resample\": 2, \"crop_size\": "
        "20,"
        " \"do_center_crop\": true, \"do_rescale\": true, \"rescale_factor\": 0.5, \"image_mean\": "
        "0.25,"
        " \"image_std\": [1, 2, 4], \"do_convert_rgb\": true, \"processor_class\": "
        "\"LlavaProcessor\","
        " \"image_processor_type\": \"CLIPImageProcessor\", \"do_pad\": false, \"device\": null}";
    struct wn_preprocess pp;
    struct wn_err err = {0};

    (void)state;
    assert_int_equal(wn_preprocess_parse(&pp, json, sizeof(json) - 1, &err), WN_OK);
    assert_int_equal(pp.shortest_edge, 30);
    assert_int_equal(pp.resample, WN_FILTER_BILINEAR);
    assert_int_equal(pp.height, 20);
    assert_int_equal(pp.width, 20);
    assert_true(pp.value[2][10] == (5.0f - 0.25f) / 4);
    /* the defaults of CLIPImageProcessor */
    assert_int_equal(wn_preprocess_parse(&pp, "{}", 2, &err), WN_OK);
    assert_int_equal(pp.shortest_edge, 224);
    assert_int_equal(pp.height, 224);
    assert_int_equal(pp.resample, WN_FILTER_BICUBIC);
    assert_true(pp.std[1] == 0.26130258f);
    /* a bare number is the shortest edge for size, a square for the crop */
    assert_int_equal(wn_preprocess_parse(&pp, "{\"size\":336,\"crop_size\":336}", 28, &err), WN_OK);
    assert_int_equal(pp.shortest_edge, 336);
    assert_int_equal(pp.crop_width, 336);
    assert_int_equal(wn_preprocess_parse(&pp, "{\"size\":4096,\"crop_size\":1}", 27, &err), WN_OK); /* the limits */
    assert_int_equal(pp.shortest_edge, 4096);
    assert_int_equal(pp.crop_width, 1);
}

static void refuses_by_name(void **state)
{
    static const struct {
        const char *json;
        wn_status rc;
        const char *text;
    } bad[] = {
        {"", WN_EFORMAT, "line 1"},
        {"{", WN_EFORMAT, "line 1"},
        {"[]", WN_EFORMAT, "a list, not an object"},
        {"{} x", WN_EFORMAT, "line 1"},
        {"{\"resample\":2,\"resample\":3}", WN_EFORMAT, "duplicate"},
        {"{\"do_resize\":1}", WN_EFORMAT, "do_resize is a number, not true or false"},
        {"{\"size\":{\"longest_edge\":5}}", WN_EUNSUPP, "size: 'longest_edge' is not supported"},
        {"{\"size\":{\"shortest_edge\":5,\"height\":5}}", WN_EUNSUPP,
         "shortest_edge together with"},
        {"{\"size\":{\"height\":5}}", WN_EFORMAT, "size needs shortest_edge, or height and width"},
        {"{\"size\":{}}", WN_EFORMAT, "size needs"},
        {"{\"size\":[5,5]}", WN_EUNSUPP, "size: a list is not supported"},
        {"{\"size\":0}", WN_ELIMIT, "size is 0, not 1 to 4096"},
        {"{\"size\":-1}", WN_ELIMIT, "size is -1"},
        {"{\"size\":9223372036854775807}", WN_ELIMIT, "not 1 to 4096"},
        {"{\"crop_size\":{\"height\":4097,\"width\":1}}", WN_ELIMIT, "crop_size.height is 4097"},
        {"{\"crop_size\":{\"shortest_edge\":4}}", WN_EUNSUPP, "crop_size: 'shortest_edge'"},
        {"{\"crop_size\":{\"height\":4.5,\"width\":1}}", WN_EFORMAT, "not a whole number"},
        {"{\"resample\":0}", WN_EUNSUPP, "resample 0 is not supported"},
        {"{\"resample\":4294967298}", WN_EUNSUPP, "resample 4294967298"},
        {"{\"rescale_factor\":\"x\"}", WN_EFORMAT, "rescale_factor is a string"},
        {"{\"rescale_factor\":0}", WN_ELIMIT, "rescale_factor is 0"},
        {"{\"image_mean\":[1,2]}", WN_EFORMAT, "image_mean has 2 values, not 3"},
        {"{\"image_std\":[1,0,1]}", WN_ELIMIT, "image_std is 0"},
        {"{\"image_std\":1e300}", WN_ELIMIT, "image_std is 1e+300"},
        {"{\"do_convert_rgb\":false}", WN_EUNSUPP, "do_convert_rgb (false) is not supported"},
        {"{\"do_pad\":true}", WN_EUNSUPP, "do_pad (true) is not supported"},
        {"{\"image_processor_type\":\"LlavaNextImageProcessor\"}", WN_EUNSUPP,
         "image_processor_type 'LlavaNextImageProcessor' is not supported"},
        {"{\"image_grid_pinpoints\":[[336,672]]}", WN_EUNSUPP, "image_grid_pinpoints (a list)"},
        {"{\"do_center_crop\":false}", WN_EUNSUPP, "without do_center_crop"},
        {"{\"do_center_crop\":false,\"do_resize\":false,\"size\":{\"height\":5,\"width\":5}}",
         WN_EUNSUPP, "without do_center_crop"},
    };
    struct wn_preprocess pp = {.height = 9};
    struct wn_err err;

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        memset(&err, 0, sizeof(err));
        if (wn_preprocess_parse(&pp, bad[i].json, strlen(bad[i].json), &err) != bad[i].rc ||
            !strstr(err.text, bad[i].text))
            fail_msg("%s: %s (%s)", bad[i].json, err.text, wn_status_name(err.code));
        assert_int_equal(pp.height, 9); /* untouched */
    }
}

static void loads_files(void **state)
{
    char *big = calloc(1, WN_PREPROCESS_BYTES_MAX + 1);
    struct wn_preprocess pp;
    struct wn_err err = {0};

    (void)state;
    assert_int_equal(wn_preprocess_load(&pp, DIR "clip336.json", &err), WN_OK);
    assert_int_equal(pp.width, 336);
    assert_int_equal(wn_preprocess_load(&pp, DIR "none.json", &err), WN_ENOENT);
    assert_non_null(strstr(err.text, "none.json"));
    assert_int_equal(wn_preprocess_load(&pp, DIR "index.txt", &err), WN_EFORMAT);
    assert_non_null(strstr(err.text, "index.txt: line 1"));
    assert_int_equal(wn_preprocess_load(&pp, DIR "index.txt", NULL), WN_EFORMAT);
    assert_int_equal(wn_preprocess_load(&pp, "tests", &err), WN_EIO); /* a folder */
    assert_int_equal(wn_preprocess_parse(&pp, big, WN_PREPROCESS_BYTES_MAX + 1, &err), WN_ELIMIT);
    free(big);
}

/* ---- several pictures ---- */

static void a_bad_picture_harms_no_other(void **state)
{
    static const char *const names[] = {"rgb.png",    "wide.jpg", "index.txt",
                                        "lossy.webp", "cmyk.jpg", "dot.png"};
    enum { N = sizeof(names) / sizeof(names[0]), PIXELS = 3 * 64 * 64 };
    struct wn_image_limits limits = WN_IMAGE_LIMITS_DEFAULT;
    struct wn_preprocess_item items[N] = {0};
    struct wn_preprocess pp;
    struct wn_pool *pool = NULL;
    struct wn_err err = {0};
    float *alone = malloc(PIXELS * sizeof(float));

    (void)state;
    assert_int_equal(wn_preprocess_load(&pp, DIR "clip64.json", &err), WN_OK);
    assert_int_equal(wn_pool_start(&pool, &(struct wn_pool_opts){2, 4}, &err), WN_OK);
    for (int i = 0; i < N; i++) {
        char path[128];
        snprintf(path, sizeof(path), DIR "%s", names[i]);
        items[i].data = file_read(path, &items[i].bytes);
        assert_non_null(items[i].data);
        items[i].pixels = malloc(PIXELS * sizeof(float));
    }
    wn_preprocess_many(pool, &pp, &limits, items, N);
    for (int i = 0; i < N; i++) {
        struct wn_image img = {0};
        if (i == 2) {
            assert_int_equal(items[i].rc, WN_EUNSUPP);
            assert_non_null(strstr(items[i].err.text, "neither JPEG nor PNG nor WebP"));
        } else {
            assert_int_equal(items[i].rc, WN_OK);
            assert_int_equal(wn_image_decode(&img, items[i].data, items[i].bytes, &limits, &err),
                             WN_OK);
            assert_int_equal(wn_preprocess_run(&pp, &img, alone, &err), WN_OK);
            assert_memory_equal(alone, items[i].pixels, PIXELS * sizeof(float));
        }
        wn_image_fini(&img);
        free((void *)(uintptr_t)items[i].data);
        free(items[i].pixels);
    }
    wn_pool_stop(pool);
    free(alone);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_options),
        cmocka_unit_test(refuses_by_name),
        cmocka_unit_test(loads_files),
        cmocka_unit_test(a_bad_picture_harms_no_other),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
