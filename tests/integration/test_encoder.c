/* tests/integration/test_encoder.c - daemon/encoder on the trained checkpoint: without pruning its rows are the tower's
 * bits, a picture's rows do not depend on its neighbours in a batch nor on the cache, and methods that take turns on a
 * picture encode it once for each tap that it lacks, not once each turn. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/encoder.h"
#include "shard/jsonfile.h"
#include "shard/preprocess.h"
#include "shard/vision.h"

#define MODEL      "models/tiny-llava"
#define PICTURES   4
#define MUST(call)                                                \
    do {                                                          \
        if ((call) != WN_OK) fail_msg("%s: %s", #call, err.text); \
    } while (0)

static struct wn_model model;
static struct wn_err err;
static char *file[PICTURES];
static size_t file_bytes[PICTURES];

static struct wn_encoder *open_encoder(uint64_t cache_bytes)
{
    static struct wn_config cfg;
    const struct wn_encoder_opts opts = {
        .cfg = &cfg, .model = &model, .dtype = WN_BF16, .limits = WN_IMAGE_LIMITS_DEFAULT};
    struct wn_encoder *e = NULL;

    wn_config_defaults(&cfg);
    snprintf(cfg.model, sizeof(cfg.model), "%s", MODEL);
    cfg.vision_cache_bytes = cache_bytes;
    MUST(wn_encoder_open(&e, &opts, &err));
    return e;
}

static struct wn_encode_item order(const char *method, uint32_t keep, int picture)
{
    return (struct wn_encode_item){.file = file[picture],
                                   .file_bytes = file_bytes[picture],
                                   .method = wn_prune_find(method, &err),
                                   .ask = {.budget = {.keep = keep, .seed = 5}}};
}

/* Runs one order alone. */
static struct wn_encode_item encode(struct wn_encoder *e, const char *method, uint32_t keep, int picture)
{
    struct wn_encode_item item = order(method, keep, picture);

    wn_encoder_run(e, &item, 1);
    if (item.rc != WN_OK) fail_msg("%s: %s", method, item.err.text);
    return item;
}

static void assert_same(const struct wn_encode_item *a, const struct wn_encode_item *b, const char *what)
{
    const size_t bytes = (size_t)a->rows_n * a->width * wn_dtype_bytes(WN_BF16);

    if (a->rows_n != b->rows_n || a->width != b->width || memcmp(a->rows, b->rows, bytes) != 0 ||
        memcmp(a->index, b->index, a->rows_n * sizeof(*a->index)) != 0 || memcmp(a->flags, b->flags, a->rows_n) != 0)
        fail_msg("%s, %s: other rows", a->method->name, what);
}

/* A tower and a preprocessor with nothing around them. */
static void test_none_is_the_tower(void **state)
{
    const uint32_t side = model.vision.image_side;
    const struct wn_image_limits limits = WN_IMAGE_LIMITS_DEFAULT;
    float *pixels = malloc(3 * (size_t)side * side * sizeof(*pixels));
    struct wn_encoder *e = open_encoder(1 << 24);
    struct wn_encode_item none, taps;
    struct wn_weights *weights = NULL;
    struct wn_backend *be = NULL;
    struct wn_vision *tower = NULL;
    struct wn_vision_out out;
    struct wn_preprocess pp;
    struct wn_image image = {0};
    (void)state;

    MUST(wn_preprocess_load(&pp, MODEL "/preprocessor_config.json", &err));
    MUST(wn_image_decode(&image, file[0], file_bytes[0], &limits, &err));
    MUST(wn_preprocess_run(&pp, &image, pixels, &err));
    MUST(wn_backend_open(&be, "cpu", 0, &err));
    MUST(wn_weights_open(&weights, MODEL, &err));
    MUST(wn_vision_open(&tower, be, &model, weights, WN_BF16, 1, &err));
    MUST(wn_vision_encode(tower, pixels, 1, NULL, WN_NEVER, &out, &err));
    for (int turn = 0; turn < 3; turn++) { /* by its own encode; from the cache; of an encode that made taps */
        none = encode(e, "none", 0, 0);
        assert_int_equal(none.rows_n, out.rows);
        assert_true(none.cached == (turn > 0) && none.plain && !none.projected);
        assert_memory_equal(none.rows, out.features, (size_t)out.rows * out.width * wn_dtype_bytes(WN_BF16));
        for (uint32_t i = 0; i < none.rows_n; i++) assert_int_equal(none.index[i], i);
        wn_encode_item_fini(&none);
        taps = encode(e, "hiprune", 64, 0);
        assert_true(taps.cached == (turn > 0));
        wn_encode_item_fini(&taps);
        taps = encode(e, "prumerge", 64, 0);
        assert_true(taps.cached == (turn > 0));
        wn_encode_item_fini(&taps);
    }
    wn_image_fini(&image);
    wn_vision_close(tower);
    wn_weights_close(weights);
    wn_backend_close(be);
    wn_encoder_close(e);
    free(pixels);
}

static const struct { const char *method; uint32_t keep; } asks[] = {
    {"none", 0},       {"random", 64},    {"uniform", 64},  {"cls-topk", 64}, {"prumerge", 64},   {"prumerge+", 0},
    {"visionzip", 64}, {"vispruner", 64}, {"divprune", 64}, {"hiprune", 64},  {"matryoshka", 64},
};
#define ASKS_N (sizeof(asks) / sizeof(asks[0]))

/* Every method on picture 1: with no cache; and from a cache in which all methods have been before, most of them
 * without another encode. CLS attention comes with every encode, so it is never missing. */
static void test_the_cache_changes_nothing(void **state)
{
    struct wn_encoder *plain = open_encoder(0), *e = open_encoder(1 << 24);
    uint32_t encodes[2] = {0};
    (void)state;

    for (int turn = 0; turn < 2; turn++)
        for (size_t i = 0; i < ASKS_N; i++) {
            struct wn_encode_item want = encode(plain, asks[i].method, asks[i].keep, 1);
            struct wn_encode_item got = encode(e, asks[i].method, asks[i].keep, 1);
            assert_same(&want, &got, "from the cache");
            assert_false(want.cached);
            if (got.cached && got.encode_us) fail_msg("%s: an encode that was none took time", asks[i].method);
            if (strcmp(asks[i].method, "cls-topk") == 0) assert_true(got.cached);
            encodes[turn] += !got.cached;
            wn_encode_item_fini(&want);
            wn_encode_item_fini(&got);
        }
    /* the first encode; keys of the last layer (prumerge), of the one before (visionzip); attention of hiprune */
    assert_int_equal(encodes[0], 4);
    assert_int_equal(encodes[1], 0);
    wn_encoder_close(plain);
    wn_encoder_close(e);
}

/* Four orders at a time, of different methods, one of them no picture. */
static void test_neighbours_change_nothing(void **state)
{
    struct wn_encoder *e = open_encoder(0);
    (void)state;

    for (size_t first = 0; first < ASKS_N; first += 3) {
        struct wn_encode_item items[4];
        for (size_t i = 0; i < 4; i++) items[i] = order(asks[(first + i) % ASKS_N].method, 50, (int)i);
        items[first % 4].file = "no picture";
        items[first % 4].file_bytes = 10;
        wn_encoder_run(e, items, 4);
        for (size_t i = 0; i < 4; i++) {
            struct wn_encode_item alone;
            if (i == first % 4) {
                assert_int_not_equal(items[i].rc, WN_OK);
                continue;
            }
            if (items[i].rc != WN_OK) fail_msg("%s: %s", items[i].method->name, items[i].err.text);
            alone = encode(e, items[i].method->name, 50, (int)i);
            assert_same(&alone, &items[i], "among others");
            wn_encode_item_fini(&alone);
            wn_encode_item_fini(&items[i]);
        }
    }
    wn_encoder_close(e);
}

/* Methods that read keys of different layers: they say the time of one encode. */
static void test_one_encode_makes_all_taps(void **state)
{
    static const char *const methods[4] = {"prumerge", "visionzip", "hiprune", "prumerge+"};
    struct wn_encoder *e = open_encoder(0);
    struct wn_encode_item items[4];
    (void)state;

    for (int i = 0; i < 4; i++) items[i] = order(methods[i], 50, i);
    wn_encoder_run(e, items, 4);
    for (int i = 0; i < 4; i++) {
        struct wn_encode_item alone = encode(e, methods[i], 50, i);
        if (items[i].rc != WN_OK) fail_msg("%s: %s", methods[i], items[i].err.text);
        assert_true(items[i].encode_us > 0 && items[i].encode_us == items[0].encode_us);
        assert_same(&alone, &items[i], "in one encode");
        wn_encode_item_fini(&alone);
        wn_encode_item_fini(&items[i]);
    }
    wn_encoder_close(e);
}

static int setup(void **state)
{
    (void)state;
    MUST(wn_model_open(&model, MODEL, &err));
    for (int i = 0; i < PICTURES; i++) {
        char path[64];
        snprintf(path, sizeof(path), "tests/eval/images/%03d.jpg", i);
        MUST(wn_file_read(&file[i], &file_bytes[i], path, 1 << 24, &err));
    }
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    for (int i = 0; i < PICTURES; i++) free(file[i]);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_none_is_the_tower),
        cmocka_unit_test(test_the_cache_changes_nothing),
        cmocka_unit_test(test_neighbours_change_nothing),
        cmocka_unit_test(test_one_encode_makes_all_taps),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
