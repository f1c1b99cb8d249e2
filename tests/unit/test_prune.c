/* tests/unit/test_prune.c - the method table, requests and budgets, wants, and `none`. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "pruning/prune.h"

static const struct wn_prune_shape clip = {
    .rows = 576, .width = 1024, .grid_w = 24, .grid_h = 24, .heads = 16, .feature_layer = 22};

static void table(void **state)
{
    static const struct {
        bool grid, paper, adaptive, all;
        unsigned spaces;
    } said[11] = {
        {.spaces = 3, .all = true}, {.spaces = 3},                  /* none, random */
        {.spaces = 3, .grid = true}, {.spaces = 3},                 /* uniform, cls-topk */
        {.spaces = WN_PRUNE_TOWER, .paper = true, .adaptive = true}, /* prumerge, prumerge+ */
        {.spaces = WN_PRUNE_TOWER, .paper = true, .adaptive = true},
        {.spaces = WN_PRUNE_TOWER}, {.spaces = 3},                  /* visionzip, vispruner */
        {.spaces = 3}, {.spaces = 3, .grid = true},                 /* divprune, hiprune */
        {.spaces = WN_PRUNE_PROJECTED, .grid = true},               /* matryoshka */
    };
    struct wn_err err = {0};
    size_t n = 0;

    (void)state;
    assert_ptr_equal(wn_prune_find(NULL, &err), &wn_prune_none);
    assert_ptr_equal(wn_prune_find("", &err), &wn_prune_none);
    assert_ptr_equal(wn_prune_find("none", &err), &wn_prune_none);
    assert_ptr_equal(wn_prune_find("prumerge", &err), &wn_prune_prumerge);
    assert_ptr_equal(wn_prune_find("prumerge+", &err), &wn_prune_prumerge_plus);
    assert_null(wn_prune_find("x", &err));
    assert_int_equal(err.code, WN_ENOENT);
    assert_string_equal(err.text,
                        "pruning method 'x' is not known; known: none, random, uniform, cls-topk, "
                        "prumerge, prumerge+, visionzip, vispruner, divprune, hiprune, matryoshka");
    for (; wn_prune_methods[n]; n++) {
        const struct wn_prune_method *m = wn_prune_methods[n];
        assert_non_null(m->run);
        assert_non_null(m->help);
        assert_true(n < 11);
        assert_int_equal(m->spaces, said[n].spaces);
        assert_true(m->grid == said[n].grid && m->paper == said[n].paper);
        assert_true(m->adaptive == said[n].adaptive && m->all == said[n].all);
        assert_ptr_equal(wn_prune_find(m->name, &err), m);
    }
    assert_int_equal(n, 11);
}

static void settings(void **state)
{
    wn_prune_setting s = WN_PRUNE_PAPER;
    struct wn_err err = {0};

    (void)state;
    assert_int_equal(wn_prune_setting_parse(&s, "", &err), WN_OK);
    assert_int_equal(s, WN_PRUNE_FAITHFUL);
    assert_int_equal(wn_prune_setting_parse(&s, "paper", &err), WN_OK);
    assert_int_equal(s, WN_PRUNE_PAPER);
    assert_int_equal(wn_prune_setting_parse(&s, "faithful", &err), WN_OK);
    assert_int_equal(s, WN_PRUNE_FAITHFUL);
    assert_int_equal(wn_prune_setting_parse(&s, "papers", &err), WN_EINVAL);
}

static void budget(void **state)
{
    static const struct {
        uint32_t keep;
        float rate;
        uint32_t rows, want;
    } cases[] = {
        {0, 0, 576, 576},     {64, 0, 576, 64},     {64, 0.5f, 576, 64}, {600, 0, 576, 576},
        {0, 0.5f, 576, 288},  {0, 0.889f, 576, 64}, {0, 0.99f, 10, 1},   {0, 0.5f, 0, 0},
        {1, 0, 576, 1},       {575, 0, 576, 575},   {576, 0, 576, 576},  {577, 0, 576, 576},
        {0, 0.99f, 576, 6},   {0, 1, 576, 1},       {0, 0.9f, 576, 58},  {0, 0.95f, 576, 29},
        {0, 0.5f, 575, 288},  {UINT32_MAX, 0, 576, 576},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct wn_prune_budget b = {.keep = cases[i].keep, .rate = cases[i].rate};
        assert_int_equal(wn_prune_count(&b, cases[i].rows), cases[i].want);
    }
}

static void rows_max(void **state)
{
    struct wn_prune_ask ask = {.budget = {.keep = 64}};

    (void)state;
    assert_int_equal(wn_prune_rows_max(&wn_prune_cls_topk, &ask, 576), 64);
    assert_int_equal(wn_prune_rows_max(&wn_prune_prumerge, &ask, 576), 64);
    assert_int_equal(wn_prune_rows_max(&wn_prune_none, &ask, 576), 576);
    ask.budget = (struct wn_prune_budget){.cap = 144};
    assert_int_equal(wn_prune_rows_max(&wn_prune_cls_topk, &ask, 576), 576);
    assert_int_equal(wn_prune_rows_max(&wn_prune_prumerge_plus, &ask, 576), 144);
    ask.budget.cap = 0;
    assert_int_equal(wn_prune_rows_max(&wn_prune_prumerge_plus, &ask, 576), 577);
    ask.budget.cap = 9999;
    assert_int_equal(wn_prune_rows_max(&wn_prune_prumerge, &ask, 576), 577);
}

static wn_status checked(const char *name, struct wn_prune_ask ask, struct wn_prune_shape shape,
                         struct wn_err *err)
{
    const struct wn_prune_method *m = wn_prune_find(name, err);

    assert_non_null(m);
    *err = (struct wn_err){0};
    return wn_prune_check(m, &ask, &shape, err);
}

/* What can not be done is refused before any work, and the text names it. */
static void refusals(void **state)
{
    static const double shares[] = {-0.1, 1, 1.5, NAN};
    struct wn_prune_shape cls = clip, line = clip, odd = clip, deep = clip, none = clip, clip_of = clip;
    struct wn_prune_ask ask = {0};
    struct wn_err err;

    (void)state;
    cls.rows = 577;
    cls.cls_first = true;
    line.grid_w = line.grid_h = 0;
    odd.rows = 35;
    odd.grid_w = 5;
    odd.grid_h = 7;
    deep.feature_layer = 70;
    none.rows = 0;
    for (size_t i = 0; wn_prune_methods[i]; i++) {
        const struct wn_prune_method *m = wn_prune_methods[i];
        ask = (struct wn_prune_ask){.projected = m == &wn_prune_matryoshka};
        assert_int_equal(checked(m->name, ask, clip, &err), WN_OK);
        assert_int_equal(checked(m->name, ask, odd, &err), WN_OK); /* matryoshka: window 1 */
        assert_int_equal(checked(m->name, ask, cls, &err), i == 0 ? WN_OK : WN_EUNSUPP);
        assert_int_equal(checked(m->name, ask, line, &err), m->grid ? WN_EUNSUPP : WN_OK);
        assert_int_equal(checked(m->name, ask, none, &err), WN_EINVAL);
        ask.setting = WN_PRUNE_PAPER;
        assert_int_equal(checked(m->name, ask, clip, &err), m->paper ? WN_OK : WN_EUNSUPP);
        ask.setting = WN_PRUNE_FAITHFUL;
        ask.projected = !ask.projected;
        assert_int_equal(checked(m->name, ask, clip, &err), m->spaces == 3 ? WN_OK : WN_EUNSUPP);
    }
    ask = (struct wn_prune_ask){.budget = {.rate = NAN}};
    assert_int_equal(checked("random", ask, clip, &err), WN_EINVAL);
    ask.budget.rate = -0.1f;
    assert_int_equal(checked("random", ask, clip, &err), WN_EINVAL);
    ask.budget.rate = 1.01f;
    assert_int_equal(checked("random", ask, clip, &err), WN_EINVAL);
    ask.budget.rate = 0;
    assert_int_equal(checked("cls-topk", ask, deep, &err), WN_EUNSUPP);
    ask.options.object_layer = 24;
    assert_int_equal(checked("hiprune", ask, clip, &err), WN_EINVAL);
    ask.options.object_layer = 23;
    assert_int_equal(checked("hiprune", ask, clip, &err), WN_OK);
    ask = (struct wn_prune_ask){.budget = {.keep = 10}, .projected = true};
    assert_int_equal(checked("matryoshka", ask, odd, &err), WN_EUNSUPP);
    assert_non_null(strstr(err.text, "a grid of 5 x 7 into 10 rows"));
    for (size_t i = 0; i < sizeof(shares) / sizeof(shares[0]); i++) {
        ask = (struct wn_prune_ask){.options = {.important = shares[i]}};
        assert_int_equal(checked("vispruner", ask, clip, &err), shares[i] == 1 ? WN_OK : WN_EINVAL);
        ask = (struct wn_prune_ask){.options = {.anchors = shares[i]}};
        assert_int_equal(checked("hiprune", ask, clip, &err), shares[i] == 1 ? WN_OK : WN_EINVAL);
    }
    ask = (struct wn_prune_ask){0};
    clip_of.heads = 0;
    assert_int_equal(checked("visionzip", ask, clip_of, &err), WN_EUNSUPP);
    clip_of.heads = 15; /* 1024 is no multiple of it */
    assert_int_equal(checked("visionzip", ask, clip_of, &err), WN_EUNSUPP);
    assert_non_null(strstr(err.text, "15 heads in a width of 1024"));
}

static struct wn_prune_wants wants_of(const char *name, wn_prune_setting setting, uint32_t layer)
{
    const struct wn_prune_ask ask = {.setting = setting};
    struct wn_prune_wants w;
    struct wn_err err;

    wn_prune_wants(wn_prune_find(name, &err), &ask, layer, &w);
    return w;
}

static void wants(void **state)
{
    static const struct {
        const char *name;
        wn_prune_setting setting;
        uint32_t layer;
        struct wn_prune_wants want;
    } cases[] = {
        {"none", WN_PRUNE_FAITHFUL, 22, {0, 0, 0, false, false}},
        {"random", WN_PRUNE_FAITHFUL, 22, {0, 0, 0, false, false}},
        {"uniform", WN_PRUNE_FAITHFUL, 22, {0, 0, 0, false, false}},
        {"cls-topk", WN_PRUNE_FAITHFUL, 22, {1u << 22, 0, 0, false, false}},
        {"prumerge", WN_PRUNE_FAITHFUL, 22, {0, 0, 1u << 23, false, true}},
        {"prumerge", WN_PRUNE_PAPER, 22, {1u << 22, 0, 1u << 22, false, true}},
        {"prumerge+", WN_PRUNE_FAITHFUL, 5, {0, 0, 1u << 6, false, true}},
        {"visionzip", WN_PRUNE_FAITHFUL, 22, {1u << 22, 0, 1u << 22, true, true}},
        {"vispruner", WN_PRUNE_FAITHFUL, 22, {1u << 22, 0, 0, false, true}},
        {"divprune", WN_PRUNE_FAITHFUL, 22, {0, 0, 0, false, true}},
        {"hiprune", WN_PRUNE_FAITHFUL, 22, {0, 1u << 22 | 1u << 8, 0, false, false}},
        {"hiprune", WN_PRUNE_FAITHFUL, 5, {0, 1u << 5 | 1u << 2, 0, false, false}},
        {"hiprune", WN_PRUNE_FAITHFUL, 4, {0, 1u << 4 | 1u << 1, 0, false, false}},
        {"matryoshka", WN_PRUNE_FAITHFUL, 22, {0, 0, 0, false, true}},
    };
    static const char *const joined[] = {"prumerge", "hiprune", "visionzip", "cls-topk"};
    struct wn_prune_wants all = {0}, one;

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        one = wants_of(cases[i].name, cases[i].setting, cases[i].layer);
        assert_true(one.cls_layers == cases[i].want.cls_layers);
        assert_true(one.mean_layers == cases[i].want.mean_layers);
        assert_true(one.keys_layers == cases[i].want.keys_layers);
        assert_int_equal(one.cls_row, cases[i].want.cls_row);
        assert_int_equal(one.features, cases[i].want.features);
    }
    for (size_t i = 0; i < sizeof(joined) / sizeof(joined[0]); i++) {
        one = wants_of(joined[i], WN_PRUNE_FAITHFUL, 22);
        wn_prune_wants_join(&all, &one);
    }
    assert_true(all.cls_layers == 1u << 22 && all.mean_layers == (1u << 22 | 1u << 8));
    assert_true(all.keys_layers == (1u << 22 | 1u << 23) && all.cls_row);
    assert_true(all.features);
}

/* Every row, in order, byte for byte in the tower's own type: no value is looked at. */
static void none_keeps_all(void **state)
{
    uint16_t rows[7 * 2], copy[7 * 2];
    uint32_t index[7];
    uint8_t flags[7];
    struct wn_prune_in in = {
        .shape = {.rows = 7, .width = 2, .cls_first = true}, .features = rows, .dtype = WN_BF16};
    struct wn_prune_out out = {.index = index, .flags = flags};
    struct wn_err err = {0};

    (void)state;
    for (uint16_t i = 0; i < 14; i++) rows[i] = (uint16_t)(0x7f80 + i * 0x1fff); /* NaN, -0, .. */
    for (int round = 0; round < 3; round++) {
        assert_int_equal(wn_prune_rows_max(&wn_prune_none, &in.ask, 7), 7);
        assert_int_equal(wn_prune_run(&wn_prune_none, &in, &out, &err), WN_OK);
        assert_int_equal(out.rows, 7);
        for (uint32_t i = 0; i < 7; i++) assert_true(index[i] == i && flags[i] == 0);
        memset(copy, 0, sizeof(copy));
        assert_int_equal(wn_prune_gather(&in, &out, copy, &err), WN_OK);
        assert_memory_equal(copy, rows, sizeof(rows));
        in.dtype = round ? WN_F16 : WN_BF16;
        in.ask.budget.keep = 3; /* asks for less: `none` is none */
        in.shape.cls_first = false;
    }
    in.shape.rows = 0;
    assert_int_equal(wn_prune_run(&wn_prune_none, &in, &out, &err), WN_EINVAL);
    wn_prune_out_fini(&out);
}

static void gather_converts(void **state)
{
    const float made[3] = {1.0f, -2.5f, 1.00390625f}, quarter[3] = {0.25f, -0.625f, 0.2509765625f};
    const uint32_t index[3] = {WN_PRUNE_NO_INDEX, 1, 0};
    const uint8_t flags[3] = {WN_PRUNE_EXTRA, 0, WN_PRUNE_MERGED};
    uint32_t first[4] = {0, 2, 3, 4};
    struct wn_row_term terms[4] = {{0, 0.5f}, {0, 1.5f}, {1, 1}, {0, 2}};
    float div[3] = {2, 1, 8};
    uint16_t rows[2 * 3] = {0x3f80, 0xc020, 0x3f81, 0xffff, 5, 6}, half[3 * 3];
    float wide[2 * 3] = {1.0f, -2.5f, 1.00390625f, 7, 8, 9}, same[3 * 3];
    struct wn_prune_in in = {.shape = {.rows = 2, .width = 3}, .features = rows, .dtype = WN_BF16};
    struct wn_prune_out out = {.index = (uint32_t *)(uintptr_t)index,
                               .flags = (uint8_t *)(uintptr_t)flags,
                               .recipe = {.first = first, .terms = terms, .div = div},
                               .rows = 3};
    struct wn_err err = {0};

    (void)state;
    assert_int_equal(wn_prune_gather(&in, &out, half, &err), WN_OK);
    assert_int_equal(half[0], 0x3f80);
    assert_int_equal(half[1], 0xc020);
    assert_int_equal(half[2], 0x3f81);
    assert_memory_equal(half + 3, rows + 3, 6);
    in.dtype = WN_F32;
    in.features = wide;
    assert_int_equal(wn_prune_gather(&in, &out, same, &err), WN_OK);
    assert_memory_equal(same, made, 12);
    assert_memory_equal(same + 3, wide + 3, 12);
    assert_memory_equal(same + 6, quarter, 12);
    in.dtype = WN_F16;
    in.features = rows;
    assert_int_equal(wn_prune_gather(&in, &out, half, &err), WN_EUNSUPP);
}

/* A method that is called without what it reads says what is missing. */
static void taps_missing(void **state)
{
    static const struct {
        const char *name, *lacks;
    } cases[] = {{"cls-topk", "CLS attention"}, {"prumerge", "keys"},     {"visionzip", "CLS att"},
                 {"vispruner", "CLS att"},      {"divprune", "features"}, {"hiprune", "mean att"}};
    uint32_t index[577];
    uint8_t flags[577];
    const float tap = 0;
    struct wn_prune_in in = {.shape = clip};
    struct wn_prune_out out = {.index = index, .flags = flags};
    struct wn_err err = {0};

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(wn_prune_run(wn_prune_find(cases[i].name, &err), &in, &out, &err),
                         WN_EINVAL);
        assert_non_null(strstr(err.text, cases[i].lacks));
    }
    in.features = index; /* never read */
    in.taps = (struct wn_prune_taps){.keys_layers = 1u << 23, .keys = &tap};
    assert_int_equal(wn_prune_run(&wn_prune_prumerge, &in, &out, &err), WN_EINVAL); /* keys without the query */
    assert_non_null(strstr(err.text, "keys"));
    in.taps = (struct wn_prune_taps){.keys_layers = 1u << 22, .keys = &tap, .cls_query = &tap};
    assert_int_equal(wn_prune_run(&wn_prune_prumerge, &in, &out, &err), WN_EINVAL); /* another layer's */
    assert_non_null(strstr(err.text, "keys"));
    in.taps = (struct wn_prune_taps){.cls_layers = 1u << 21, .cls_attention = &tap};
    assert_int_equal(wn_prune_run(&wn_prune_cls_topk, &in, &out, &err), WN_EINVAL);
    assert_non_null(strstr(err.text, "CLS attention"));
    in.taps = (struct wn_prune_taps){.mean_layers = 1u << 22, .mean_attention = &tap};
    assert_int_equal(wn_prune_run(&wn_prune_hiprune, &in, &out, &err), WN_EINVAL);
    assert_non_null(strstr(err.text, "mean attention"));
}

/* Every number of tokens of every small grid: exactly as many, no token twice. */
static void uniform_small_grids(void **state)
{
    uint32_t index[81];
    uint8_t flags[81];
    struct wn_err err = {0};

    (void)state;
    for (uint32_t w = 1; w <= 9; w++)
        for (uint32_t h = 1; h <= 9; h++)
            for (uint32_t k = 1; k <= w * h; k++) {
                const struct wn_prune_in in = {.ask = {.budget = {.keep = k}},
                                               .shape = {.rows = w * h, .width = 1, .grid_w = w, .grid_h = h}};
                struct wn_prune_out out = {.index = index, .flags = flags};
                assert_int_equal(wn_prune_run(&wn_prune_uniform, &in, &out, &err), WN_OK);
                assert_int_equal(out.rows, k);
                assert_true(index[k - 1] < w * h);
                for (uint32_t i = 1; i < k; i++) assert_true(index[i - 1] < index[i]);
                wn_prune_out_fini(&out);
            }
}

static void options(void **state)
{
    struct wn_prune_options o;
    struct wn_err err = {0};

    (void)state;
    assert_int_equal(wn_prune_options_parse(&o, "neighbours=3,contextual=5,important=0.25,anchors=0.75,object-layer=7",
                                            &err),
                     WN_OK);
    assert_true(o.neighbours == 3 && o.contextual == 5 && o.object_layer == 7);
    assert_true(o.important == 0.25 && o.anchors == 0.75);
    assert_int_equal(wn_prune_options_parse(&o, "anchors=1", &err), WN_OK);
    assert_true(o.anchors == 1 && o.important == 0 && o.neighbours == 0);
}

/* The golden prompt whose image rows keep their positions (scripts/golden/original.py). */
static void positions(void **state)
{
    struct {
        uint32_t token, image, row, index, flags, position;
    } rows[32];
    const uint32_t patches = 16;
    uint32_t next = 0, first, n, at = 0;
    FILE *f = fopen("tests/golden/llava-a/golden/original_rows.bin", "rb");

    (void)state;
    assert_non_null(f);
    n = (uint32_t)fread(rows, sizeof(rows[0]), sizeof(rows) / sizeof(rows[0]), f);
    fclose(f);
    assert_int_equal(n, 23);
    while (at < n) {
        const uint32_t image = rows[at].image;
        if (image == UINT32_MAX) {
            assert_int_equal(rows[at++].position, next++);
            continue;
        }
        for (first = next, next += patches; rows[at].image == image; at++)
            assert_int_equal(rows[at].position,
                             first + wn_prune_position(rows[at].index, (uint8_t)rows[at].flags, patches));
    }
    for (uint32_t i = 0; i < patches; i++) assert_int_equal(wn_prune_position(i, 0, patches), i); /* none: compact */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(table),          cmocka_unit_test(settings),
        cmocka_unit_test(budget),         cmocka_unit_test(rows_max),
        cmocka_unit_test(refusals),       cmocka_unit_test(wants),
        cmocka_unit_test(none_keeps_all), cmocka_unit_test(gather_converts),
        cmocka_unit_test(taps_missing),   cmocka_unit_test(uniform_small_grids),
        cmocka_unit_test(options),        cmocka_unit_test(positions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
