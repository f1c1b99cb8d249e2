/* tests/unit/test_prune_bytes.c - what each method puts on the wire for LLaVA-1.5-13B: rows, payload, header, and the
 * bytes that the plan predicts for the vision link, a stage boundary and the KV cache. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "proto/codec.h"
#include "shard/plan.h"
#include "tests/unit/prune_case.h"

/* Rows, bytes of features before and after the projector, bytes of KV cache; bfloat16. */
static const struct {
    uint32_t rows;
    uint64_t tower, hidden, kv;
} table[] = {
    {576, 1179648, 5898240, 471859200}, {288, 589824, 2949120, 235929600},
    {192, 393216, 1966080, 157286400},  {145, 296960, 1484800, 118784000},
    {144, 294912, 1474560, 117964800},  {128, 262144, 1310720, 104857600},
    {124, 253952, 1269760, 101580800},  {73, 149504, 747520, 59801600},
    {64, 131072, 655360, 52428800},     {58, 118784, 593920, 47513600},
    {41, 83968, 419840, 33587200},      {33, 67584, 337920, 27033600},
    {17, 34816, 174080, 13926400},      {1, 2048, 10240, 819200},
};
#define TABLE_N (sizeof(table) / sizeof(table[0]))

struct fixture {
    struct wn_model model;
    struct wn_plan whole, cut; /* one rank; two stages */
    struct prune_case image;
    uint16_t *half, *payload;
};

static struct fixture f;

static int setup(void **state)
{
    struct wn_err err = {0};
    const struct wn_vision_config *v = &f.model.vision;
    struct wn_prune_shape s;
    size_t n;

    (void)state;
    if (wn_model_open(&f.model, "tests/golden/config/llava-1.5-13b.json", &err) != WN_OK ||
        wn_plan_make(&f.whole, &f.model, 1, 1, NULL, WN_BF16, &err) != WN_OK ||
        wn_plan_make(&f.cut, &f.model, 2, 1, NULL, WN_BF16, &err) != WN_OK) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    s = (struct wn_prune_shape){.rows = v->patches,
                                .width = v->hidden,
                                .grid_w = v->image_side / v->patch_side,
                                .grid_h = v->image_side / v->patch_side,
                                .heads = v->heads,
                                .feature_layer = v->layers_run - 1};
    case_init(&f.image, s, 2);
    n = (size_t)s.rows * s.width;
    f.half = malloc((n + s.width) * sizeof(*f.half));
    f.payload = malloc((n + s.width) * sizeof(*f.payload));
    if (!f.half || !f.payload) return 1;
    for (size_t i = 0; i < n + s.width; i++)
        f.half[i] = wn_f32_to_bf16((float)(case_draw(1, i) >> 40) / 0x1p23f - 1.0f);
    for (size_t i = 0; i < n + s.width; i++) f.image.keys[i] = (float)(case_draw(2, i) >> 40) / 0x1p24f;
    for (size_t i = 0; i < 2 * (s.rows + 1); i++) f.image.mean[i] = (float)(case_draw(3, i) >> 40);
    for (size_t i = 0; i < 2 * s.heads * (s.rows + 1); i++)
        f.image.cls[i] = (float)(case_draw(4, i) >> 40);
    for (size_t i = 0; i < s.width; i++) f.image.query[i] = f.image.keys[i];
    f.image.in.features = f.half;
    f.image.in.taps.cls_row = f.half + n;
    f.image.in.dtype = WN_BF16;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    case_fini(&f.image);
    free(f.half);
    free(f.payload);
    return 0;
}

/* Header and back: indices and flags as they were, and few bytes beside the payload. */
static void check_header(const struct wn_prune_method *m)
{
    static char id[] = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
    const struct wn_prune_out *out = &f.image.out;
    uint8_t hash[32] = {0}, *bytes = NULL;
    Wn__JobRef job = WN__JOB_REF__INIT;
    Wn__Features h = WN__FEATURES__INIT;
    Wn__Envelope *env = NULL;
    struct wn_err err = {0};
    size_t n = 0;

    job.job_id = id;
    job.attempt = 1;
    h.job = &job;
    h.method = (char *)(uintptr_t)m->name;
    h.dtype = WN_BF16;
    h.rows = out->rows;
    h.width = f.image.in.shape.width;
    h.index = out->index;
    h.n_index = out->rows;
    h.flags = (ProtobufCBinaryData){.data = out->flags, .len = out->rows};
    h.sha256 = (ProtobufCBinaryData){.data = hash, .len = sizeof(hash)};
    assert_int_equal(wn_codec_pack_body(&bytes, &n, WN__ENVELOPE__BODY_FEATURES, &h, &err), WN_OK);
    assert_true(n < 160 + 4 * (size_t)out->rows); /* 2 bytes an index, 1 a flag, 5 for "none" */
    assert_int_equal(wn_codec_unpack(&env, bytes, n, &err), WN_OK);
    assert_int_equal(env->features->rows, out->rows);
    assert_memory_equal(env->features->index, out->index, out->rows * sizeof(*out->index));
    assert_memory_equal(env->features->flags.data, out->flags, out->rows);
    wn_codec_free(env);
    free(bytes);
}

/* Rows without flags are the tower's, bit for bit. */
static void check_payload(void)
{
    const struct prune_case *c = &f.image;
    const size_t width = c->in.shape.width;

    for (uint32_t r = 0; r < c->out.rows; r++) {
        if (c->out.flags[r]) continue;
        assert_memory_equal(f.payload + r * width, f.half + c->out.index[r] * width, width * 2);
    }
}

static void run(const struct wn_prune_method *m, wn_prune_setting setting, uint32_t keep)
{
    struct prune_case *c = &f.image;
    struct wn_prune_wants w;
    struct wn_err err = {0};

    c->in.ask = (struct wn_prune_ask){.budget = {.keep = keep},
                                      .setting = setting,
                                      .projected = m == &wn_prune_matryoshka};
    wn_prune_wants(m, &c->in.ask, c->in.shape.feature_layer, &w);
    case_taps(c, w.cls_layers | w.mean_layers, w.keys_layers);
    if (wn_prune_run(m, &c->in, &c->out, &err) != WN_OK) fail_msg("%s: %s", m->name, err.text);
    assert_int_equal(wn_prune_gather(&c->in, &c->out, f.payload, &err), WN_OK);
}

static void rows_of_every_method(void **state)
{
    (void)state;
    for (size_t t = 0; t < TABLE_N; t++) {
        for (size_t i = 0; wn_prune_methods[i]; i++) {
            const struct wn_prune_method *m = wn_prune_methods[i];
            for (int s = 0; s <= m->paper; s++) {
                uint32_t want = table[t].rows;
                run(m, s ? WN_PRUNE_PAPER : WN_PRUNE_FAITHFUL, want);
                if (m->all) want = 576;
                if (m == &wn_prune_matryoshka) /* the next scale down */
                    want = want >= 576   ? 576
                           : want >= 144 ? 144
                           : want >= 64  ? 64
                           : want >= 36  ? 36
                           : want >= 16  ? 16
                                         : 1;
                if (f.image.out.rows != want)
                    fail_msg("%s: %u rows, not %u", m->name, f.image.out.rows, want);
                check_payload();
                check_header(m);
            }
        }
    }
}

static void bytes_of_every_count(void **state)
{
    (void)state;
    for (size_t t = 0; t < TABLE_N; t++) {
        struct wn_plan_load load = {.image_rows = table[t].rows, .new_tokens = 1};
        const uint64_t width = f.image.in.shape.width;
        assert_true(table[t].rows * width * wn_dtype_bytes(WN_BF16) == table[t].tower);
        assert_true(wn_plan_link_bytes(&f.cut, &load, WN_PLAN_VISION, 0, WN_TRAFFIC_EMBEDDING) ==
                    table[t].tower);
        assert_true(wn_plan_link_bytes(&f.cut, &load, 0, 1, WN_TRAFFIC_ACTIVATION) ==
                    table[t].hidden);
        assert_true(wn_plan_kv_bytes_per_token(&f.whole, 0) * table[t].rows == table[t].kv);
        load.projected = true;
        assert_true(wn_plan_link_bytes(&f.cut, &load, WN_PLAN_VISION, 0, WN_TRAFFIC_EMBEDDING) ==
                    table[t].hidden);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_of_every_method),
        cmocka_unit_test(bytes_of_every_count),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
