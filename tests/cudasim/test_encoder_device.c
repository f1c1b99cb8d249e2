/* The encoder with its tower on a device - the simulated one, or, built without WN_CUDASIM, GPU 0 -: for every method,
 * projected or not, in float32 and bfloat16, its rows are those that the host makes of the same tower's features, bit
 * for bit, first encoded, then from the cache; and no more comes to the host than rows, attention and products. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/encoder.h"
#include "daemon/vision_cache.h"
#include "shard/jsonfile.h"
#include "shard/preprocess.h"
#include "shard/projector.h"
#include "shard/vision.h"
#include "tests/scratch.h"
#ifdef WN_CUDASIM
#include "tests/cudasim/cuda_runtime_api.h"
#endif

#define SKIPPED 77
#define MUST(call)                                                \
    do {                                                          \
        if ((call) != WN_OK) fail_msg("%s: %s", #call, err.text); \
    } while (0)

static const char processor[] =
    "{\"image_processor_type\":\"CLIPImageProcessor\",\"do_convert_rgb\":true,\"do_resize\":true,"
    "\"size\":{\"shortest_edge\":56},\"resample\":3,\"do_center_crop\":true,\"crop_size\":{\"height\":56,\"width\":56},"
    "\"do_rescale\":true,\"rescale_factor\":0.00392156862745098,\"do_normalize\":true,"
    "\"image_mean\":[0.48,0.46,0.41],\"image_std\":[0.27,0.26,0.28]}";

static char dir[64]; /* a checkpoint of 16 patches of 32 values, with a processor */
static struct wn_model model;
static struct wn_err err;
static char *file;
static size_t file_bytes;

/* How many floats of products a method brings to the host, of n patches; -1: as many as rows that it merges. */
static const struct {
    const char *method;
    uint32_t keep;
    int products;
} asks[] = {
    {"none", 0, 0},       {"random", 5, 0},     {"uniform", 5, 0},          {"cls-topk", 5, 0},
    {"hiprune", 5, 0},    {"prumerge", 5, -1},  {"prumerge+", 0, -1},       {"visionzip", 9, -1},
    {"vispruner", 5, -1}, {"divprune", 5, 256}, {"matryoshka", 4, 0},
};
#define ASKS_N (sizeof(asks) / sizeof(asks[0]))

/* A tower and a projector on the device, whose rows come to the host. */
struct plain {
    struct wn_backend *be;
    struct wn_vision *tower;
    struct wn_projector *projector;
    float *pixels;
    uint8_t key[WN_VISION_KEY_BYTES];
    wn_dtype dtype;
};

static void plain_open(struct plain *p, wn_dtype dtype)
{
    const struct wn_image_limits limits = WN_IMAGE_LIMITS_DEFAULT;
    const size_t floats = 3 * (size_t)model.vision.image_side * model.vision.image_side;
    struct wn_weights *weights = NULL;
    struct wn_image image = {0};
    struct wn_preprocess pp;

    p->dtype = dtype;
    p->pixels = malloc(floats * sizeof(float));
    assert_non_null(p->pixels);
    MUST(wn_preprocess_parse(&pp, processor, strlen(processor), &err));
    MUST(wn_image_decode(&image, file, file_bytes, &limits, &err));
    MUST(wn_preprocess_run(&pp, &image, p->pixels, &err));
    wn_vision_cache_key(p->pixels, floats, p->key);
    MUST(wn_backend_open(&p->be, "cuda", 0, &err));
    MUST(wn_weights_open(&weights, dir, &err));
    MUST(wn_vision_open(&p->tower, p->be, &model, weights, dtype, 1, &err));
    MUST(wn_projector_open(&p->projector, p->be, &model, weights, dtype, model.vision.patches + 2, &err));
    wn_weights_close(weights);
    wn_image_fini(&image);
}

static void plain_close(struct plain *p)
{
    wn_projector_close(p->projector);
    wn_vision_close(p->tower);
    wn_backend_close(p->be);
    free(p->pixels);
}

/* Host rows through the device's projector. */
static void *project(struct plain *p, const void *rows, uint32_t n)
{
    const uint32_t widths[2] = {model.vision.hidden, model.text.hidden};
    struct wn_buf bufs[2];
    struct wn_mat mats[2];
    void *out;

    for (int i = 0; i < 2; i++) {
        mats[i] = (struct wn_mat){NULL, p->dtype, n, widths[i], widths[i]};
        MUST(p->be->ops->buf_alloc(p->be, n * wn_mat_row_bytes(&mats[i]), &bufs[i]));
        mats[i].ptr = bufs[i].ptr;
    }
    out = malloc(n * wn_mat_row_bytes(&mats[1]));
    assert_non_null(out);
    MUST(p->be->ops->upload(p->be, mats[0].ptr, rows, n * wn_mat_row_bytes(&mats[0])));
    MUST(wn_projector_run(p->projector, mats[0], mats[1], &err));
    MUST(p->be->ops->download(p->be, out, mats[1].ptr, n * wn_mat_row_bytes(&mats[1])));
    for (int i = 0; i < 2; i++) p->be->ops->buf_free(p->be, &bufs[i]);
    return out;
}

/* What the item should be: the tower's rows on the host, and the method there. */
static void check_rows(struct plain *p, const struct wn_encode_item *item, const char *what)
{
    const bool in_tower = (item->method->spaces & WN_PRUNE_TOWER) != 0;
    struct wn_prune_in in = {.shape = wn_encoder_shape(&model), .ask = item->ask, .dtype = p->dtype};
    const uint32_t room = in.shape.rows + 1;
    struct wn_prune_out out = {.index = calloc(room, sizeof(uint32_t)), .flags = calloc(room, 1)};
    void *rows = NULL, *all = NULL, *through;
    struct wn_vision_taps taps = {0};
    struct wn_prune_wants w;
    struct wn_vision_out v;

    wn_prune_wants(item->method, &item->ask, in.shape.feature_layer, &w);
    taps.cls_layers = w.cls_layers;
    taps.mean_layers = w.mean_layers;
    taps.keys_layers = w.keys_layers;
    taps.cls_features = w.cls_row;
    MUST(wn_vision_encode(p->tower, p->pixels, 1, &taps, WN_NEVER, &v, &err));
    in.features = v.features;
    in.ask.projected = !in_tower;
    for (int i = 0; i < 8; i++) in.ask.budget.seed += (uint64_t)p->key[i] << (8 * i);
    if (!in_tower) {
        in.features = all = project(p, v.features, v.rows);
        in.shape.width = model.text.hidden;
    }
    in.taps = (struct wn_prune_taps){.cls_layers = w.cls_layers,
                                     .mean_layers = w.mean_layers,
                                     .keys_layers = w.keys_layers,
                                     .cls_attention = v.cls_attention,
                                     .mean_attention = v.mean_attention,
                                     .keys = v.keys,
                                     .cls_query = v.cls_query,
                                     .cls_row = v.cls_features,
                                     .cls_stride = (size_t)v.heads * v.tokens,
                                     .mean_stride = v.tokens,
                                     .keys_stride = (size_t)v.tokens * v.width,
                                     .query_stride = v.width};
    MUST(wn_prune_run(item->method, &in, &out, &err));
    rows = malloc((size_t)room * in.shape.width * sizeof(float));
    assert_true(rows && out.index && out.flags);
    MUST(wn_prune_gather(&in, &out, rows, &err));
    if (item->ask.projected && in_tower) {
        through = project(p, rows, out.rows);
        free(rows);
        rows = through;
    }
    if (out.rows != item->rows_n || memcmp(out.index, item->index, out.rows * sizeof(uint32_t)) != 0 ||
        memcmp(out.flags, item->flags, out.rows) != 0 ||
        memcmp(rows, item->rows, (size_t)out.rows * item->width * wn_dtype_bytes(p->dtype)) != 0)
        fail_msg("%s, %s: other rows than the host's", item->method->name, what);
    assert_int_equal(item->width, item->projected ? model.text.hidden : model.vision.hidden);
    free(rows);
    free(all);
    free(out.index);
    free(out.flags);
    wn_prune_out_fini(&out);
}

/* Bytes that came to the host since the last call. */
static unsigned long bytes_back(void)
{
#ifdef WN_CUDASIM
    static unsigned long before;
    const unsigned long now = sim_counts.bytes_back, n = now - before;
    before = now;
    return n;
#else
    return 0;
#endif
}

static void check_bytes(const struct wn_encode_item *item, unsigned long back, size_t dtype_bytes, int products)
{
    const struct wn_vision_config *v = &model.vision;
    const unsigned long rows = item->rows_n * item->width * dtype_bytes;
    const unsigned long attention = item->cached ? 0 : (v->heads + 1) * (v->patches + 1) * 2 * sizeof(float);

    if (back == 0) return; /* not counted on a real device */
    if (strcmp(item->method->name, "none") == 0 && !item->cached) /* the first encode, with CLS's attention */
        assert_int_equal(back, rows + v->heads * (v->patches + 1) * sizeof(float));
    if (products >= 0 && item->cached) assert_int_equal(back, rows + (unsigned long)products * sizeof(float));
    if (back > rows + attention + 2 * v->patches * (v->patches + 2) * sizeof(float))
        fail_msg("%s: %lu bytes came to the host, %lu of them rows", item->method->name, back, rows);
}

static void check_encoder(wn_dtype dtype)
{
    static struct wn_config cfg;
    const struct wn_encoder_opts opts = {
        .cfg = &cfg, .model = &model, .dtype = dtype, .limits = WN_IMAGE_LIMITS_DEFAULT};
    struct wn_encoder *e = NULL;
    struct plain p = {0};

    wn_config_defaults(&cfg);
    snprintf(cfg.model, sizeof(cfg.model), "%s", dir);
    snprintf(cfg.backend, sizeof(cfg.backend), "cuda");
    cfg.vision_cache_bytes = 1 << 20;
    MUST(wn_encoder_open(&e, &opts, &err));
    plain_open(&p, dtype);
    for (int turn = 0; turn < 4; turn++) { /* encoded where a tap is missing; then from the cache; then projected */
        for (size_t i = 0; i < ASKS_N; i++) {
            struct wn_encode_item item = {.file = file,
                                          .file_bytes = file_bytes,
                                          .method = wn_prune_find(asks[i].method, &err),
                                          .ask = {.budget = {.keep = asks[i].keep, .seed = 5}, .projected = turn > 1}};
            if (turn == 3 && item.method->paper) item.ask.setting = WN_PRUNE_PAPER;
            (void)bytes_back();
            wn_encoder_run(e, &item, 1);
            if (item.rc != WN_OK) fail_msg("%s: %s", asks[i].method, item.err.text);
            check_bytes(&item, bytes_back(), wn_dtype_bytes(dtype), asks[i].products);
            if (turn == 1 || turn == 2) assert_true(item.cached);
            check_rows(&p, &item, turn == 0 ? "first" : turn == 1 ? "again" : "projected");
            wn_encode_item_fini(&item);
        }
    }
    plain_close(&p);
    wn_encoder_close(e);
}

static void test_rows(void **state)
{
    (void)state;
    check_encoder(WN_F32);
    check_encoder(WN_BF16);
}

/* Four pictures of a call, of which two are the same; kept rows do not mix. */
static void test_together(void **state)
{
    static const char *const methods[WN_ENCODE_BATCH_MAX] = {"prumerge", "matryoshka", "divprune", "visionzip"};
    static struct wn_config cfg;
    const struct wn_encoder_opts opts = {
        .cfg = &cfg, .model = &model, .dtype = WN_BF16, .limits = WN_IMAGE_LIMITS_DEFAULT};
    struct wn_encode_item items[WN_ENCODE_BATCH_MAX] = {0};
    struct wn_encoder *e = NULL;
    struct plain p = {0};
    (void)state;

    wn_config_defaults(&cfg);
    snprintf(cfg.model, sizeof(cfg.model), "%s", dir);
    snprintf(cfg.backend, sizeof(cfg.backend), "cuda");
    cfg.vision_cache_bytes = 0;
    MUST(wn_encoder_open(&e, &opts, &err));
    plain_open(&p, WN_BF16);
    for (uint32_t i = 0; i < WN_ENCODE_BATCH_MAX; i++)
        items[i] = (struct wn_encode_item){.file = file,
                                           .file_bytes = file_bytes,
                                           .method = wn_prune_find(methods[i], &err),
                                           .ask = {.budget = {.keep = 9}, .projected = i == 2}};
    wn_encoder_run(e, items, WN_ENCODE_BATCH_MAX);
    for (uint32_t i = 0; i < WN_ENCODE_BATCH_MAX; i++) {
        if (items[i].rc != WN_OK) fail_msg("%s: %s", methods[i], items[i].err.text);
        check_rows(&p, &items[i], "together");
        wn_encode_item_fini(&items[i]);
    }
    plain_close(&p);
    wn_encoder_close(e);
}

#ifdef WN_CUDASIM
/* After its warm-up an encoder makes the device allocate nothing. */
static void test_warm(void **state)
{
    static struct wn_config cfg;
    const struct wn_encoder_opts opts = {
        .cfg = &cfg, .model = &model, .dtype = WN_BF16, .limits = WN_IMAGE_LIMITS_DEFAULT};
    struct wn_encoder *e = NULL;
    unsigned long before;
    (void)state;

    wn_config_defaults(&cfg);
    snprintf(cfg.model, sizeof(cfg.model), "%s", dir);
    snprintf(cfg.backend, sizeof(cfg.backend), "cuda");
    cfg.vision_cache_bytes = 0; /* until it is full, it allocates */
    MUST(wn_encoder_open(&e, &opts, &err));
    MUST(wn_encoder_warm_up(e, &err));
    before = sim_counts.allocations;
    for (size_t i = 0; i < 2 * ASKS_N; i++) {
        struct wn_encode_item items[WN_ENCODE_BATCH_MAX];
        const uint32_t n = 1 + (uint32_t)i % WN_ENCODE_BATCH_MAX;
        for (uint32_t k = 0; k < n; k++)
            items[k] = (struct wn_encode_item){
                .file = file,
                .file_bytes = file_bytes,
                .method = wn_prune_find(asks[(i + k) % ASKS_N].method, &err),
                .ask = {.budget = {.keep = asks[(i + k) % ASKS_N].keep}, .projected = i >= ASKS_N}};
        wn_encoder_run(e, items, n);
        for (uint32_t k = 0; k < n; k++) {
            if (items[k].rc != WN_OK) fail_msg("%s: %s", items[k].method->name, items[k].err.text);
            wn_encode_item_fini(&items[k]);
        }
        if (sim_counts.allocations != before)
            fail_msg("%lu allocations in encode %zu, of %u pictures", sim_counts.allocations - before, i, n);
    }
    wn_encoder_close(e);
}
#endif

static int setup(void **state)
{
    static const char *const names[] = {"config.json", "model.safetensors"};
    char path[256], to[256];
    FILE *f;
    (void)state;

    assert_true(scratch_make(dir, sizeof(dir), "encoder-device"));
    for (size_t i = 0; i < 2; i++) {
        assert_non_null(realpath("tests/golden/llava-a", path));
        snprintf(path + strlen(path), sizeof(path) - strlen(path), "/%s", names[i]);
        snprintf(to, sizeof(to), "%s/%s", dir, names[i]);
        assert_int_equal(symlink(path, to), 0);
    }
    snprintf(path, sizeof(path), "%s/preprocessor_config.json", dir);
    assert_non_null(f = fopen(path, "w"));
    fputs(processor, f);
    fclose(f);
    MUST(wn_model_open(&model, dir, &err));
    MUST(wn_file_read(&file, &file_bytes, "tests/eval/images/000.jpg", 1 << 24, &err));
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    free(file);
    return scratch_remove(dir) ? 0 : 1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rows), cmocka_unit_test(test_together),
#ifdef WN_CUDASIM
                                       cmocka_unit_test(test_warm),
#endif
    };
    struct wn_backend *be = NULL;

    if (wn_backend_open(&be, "cuda", 0, &err) != WN_OK) {
        printf("skipped: %s\n", err.text);
        return SKIPPED;
    }
    wn_backend_close(be);
    return cmocka_run_group_tests(tests, setup, teardown);
}
