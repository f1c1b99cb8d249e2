/* tests/unit/test_prune_golden.c - numbers worked out by hand for the other methods, budgets at their edges, broken
 * input, no memory, and a picture on which choosing must beat drawing by lot. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/prune_case.h"

#define N CASE_N
#define W CASE_W

/* The linker puts this in malloc's place: it fails when mallocs_left reaches 0. Negative: never. */
static int mallocs_left = -1;
void *__real_malloc(size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_malloc(size_t bytes)
{
    if (mallocs_left == 0) return NULL;
    if (mallocs_left > 0) mallocs_left--;
    return __real_malloc(bytes);
}

static void divprune(void **state)
{
    static const float points[8] = {1, 0, 1, .1f, 0, 1, -1, 0};
    const struct wn_prune_shape s = {.rows = 4, .width = 2};
    static const uint32_t want[3][3] = {{3}, {0, 3}, {0, 2, 3}};
    struct prune_case c;

    (void)state;
    case_init(&c, s, 1);
    memcpy(c.x, points, sizeof(points));
    for (uint32_t k = 1; k <= 3; k++) {
        c.in.ask.budget.keep = k;
        must_run(&c, &wn_prune_divprune);
        assert_int_equal(c.out.rows, k);
        assert_memory_equal(c.out.index, want[k - 1], k * sizeof(uint32_t));
    }
    memset(c.x, 0, sizeof(points)); /* equal rows: each is picked once all the same */
    must_run(&c, &wn_prune_divprune);
    assert_memory_equal(c.out.index, ((const uint32_t[]){0, 1, 2}), 12);
    case_fini(&c);
}

static void visionzip(void **state)
{
    const struct wn_prune_shape s = {.rows = 5, .width = 2, .heads = 1};
    struct prune_case c;

    (void)state;
    case_init(&c, s, 1);
    for (uint32_t i = 0; i < 5; i++) {
        memcpy(c.x + 2 * i, ((const float[]){(float)i + 1, 10}), 8);
        memcpy(c.keys + 2 * (i + 1), ((const float[]){1, i == 2 ? 1.0f : 0.0f}), 8);
    }
    c.cls_row[0] = 7;
    c.in.ask.budget.keep = 3;
    c.in.ask.options.contextual = 2;
    must_run(&c, &wn_prune_visionzip); /* targets 0 and 2; 1, 3 and 4 are like 0 */
    assert_int_equal(c.out.rows, 3);
    assert_true(c.out.index[0] == WN_PRUNE_NO_INDEX && c.out.flags[0] == WN_PRUNE_CLS);
    assert_true(c.out.index[1] == 0 && c.out.flags[1] == WN_PRUNE_MERGED);
    assert_true(c.out.index[2] == 2 && c.out.flags[2] == 0);
    close_to(c.values, (const double[]){7, 0, 1 + (2 + 4 + 5) / 3.0, 20, 3, 10}, 6, 1e-6);
    case_fini(&c);
}

/* 64 = CLS, 53 patches and 10 contextual rows; with step 52 nothing past residual 468 is a target. */
static void visionzip_split(void **state)
{
    struct prune_case c;
    uint32_t merged = 0, last = 0, residual = 0;

    (void)state;
    case_random(&c, grid24, 600);
    c.in.ask.budget.keep = 64;
    must_run(&c, &wn_prune_visionzip);
    assert_int_equal(c.out.rows, 64);
    assert_int_equal(c.out.flags[0], WN_PRUNE_CLS);
    for (uint32_t r = 54; r < 64; r++) merged += c.out.flags[r] == WN_PRUNE_MERGED;
    assert_int_equal(merged, 10);
    for (uint32_t r = 1; r < 54; r++) assert_int_equal(c.out.flags[r], 0);
    last = c.out.index[63];
    for (uint32_t i = 0; i < last; i++) {
        bool dominant = false;
        for (uint32_t r = 1; r < 54; r++) dominant |= c.out.index[r] == i;
        residual += !dominant;
    }
    assert_int_equal(residual, 468);
    case_fini(&c);
}

static void hiprune(void **state)
{
    static const struct {
        uint32_t anchor, n, around[5];
    } cases[] = {{0, 3, {0, 1, 24}},
                 {23, 5, {0, 22, 23, 24, 47}},
                 {300, 5, {276, 299, 300, 301, 324}},
                 {575, 3, {551, 574, 575}}};
    struct prune_case c;

    (void)state;
    case_random(&c, grid24, 700);
    c.in.ask.options.object_layer = 1;
    c.in.ask.options.anchors = 1;
    c.in.ask.budget.keep = 5;
    for (size_t t = 0; t < sizeof(cases) / sizeof(cases[0]); t++) {
        memset(c.mean, 0, 2 * 577 * sizeof(float));
        c.mean[1 + cases[t].anchor] = 1;
        c.mean[577 + 1 + 400] = 0.5f; /* what fills the rest of the budget: */
        c.mean[577 + 1 + 100] = 0.4f;
        must_run(&c, &wn_prune_hiprune);
        assert_int_equal(c.out.rows, 5);
        for (uint32_t i = 0; i < cases[t].n; i++)
            assert_true(case_find(&c, cases[t].around[i]) != UINT32_MAX);
        if (cases[t].n == 3)
            assert_true(case_find(&c, 100) != UINT32_MAX && case_find(&c, 400) != UINT32_MAX);
    }
    case_fini(&c);
}

static void matryoshka(void **state)
{
    static const uint32_t scales[] = {1, 4, 9, 16, 36, 64, 144, 576};
    struct prune_case c;
    double mean[W] = {0};

    (void)state;
    case_random(&c, grid24, 800);
    c.in.ask.projected = true;
    for (uint32_t i = 0; i < N * W; i++) mean[i % W] += (double)c.x[i] / N;
    c.in.ask.budget.keep = 1;
    must_run(&c, &wn_prune_matryoshka);
    assert_int_equal(c.out.rows, 1);
    close_to(c.values, mean, W, 1e-6);
    c.in.ask.budget.keep = 576;
    must_run(&c, &wn_prune_matryoshka);
    assert_int_equal(c.out.rows, 576);
    assert_memory_equal(c.values, c.x, N * W * sizeof(float));
    for (uint32_t i = 0; i < N; i++) assert_true(c.out.index[i] == i && c.out.flags[i] == 0);
    for (uint32_t i = 0; i < N * W; i++) c.x[i] = 0.1f * (float)(i % W);
    for (size_t t = 0; t < sizeof(scales) / sizeof(scales[0]); t++) {
        c.in.ask.budget.keep = scales[t] + (t < 7 ? 2 : 0); /* what does not fit is left out */
        must_run(&c, &wn_prune_matryoshka);
        assert_int_equal(c.out.rows, scales[t]);
        for (uint32_t i = 0; i < c.out.rows * W; i++)
            assert_true(c.values[i] == 0.1f * (float)(i % W));
    }
    case_fini(&c);
}

static void vispruner(void **state)
{
    struct prune_case c;
    uint32_t top[N];

    (void)state;
    case_random(&c, grid24, 900);
    for (uint32_t keep = 1; keep <= 577; keep += 29) {
        c.in.ask.budget.keep = keep;
        must_run(&c, &wn_prune_cls_topk);
        memcpy(top, c.out.index, sizeof(top));
        c.in.ask.options.important = 1;
        must_run(&c, &wn_prune_vispruner);
        assert_int_equal(c.out.rows, keep < N ? keep : N);
        assert_memory_equal(c.out.index, top, c.out.rows * sizeof(*top));
        c.in.ask.options.important = 0; /* half: both parts are odd for 58 */
        must_run(&c, &wn_prune_vispruner);
        assert_int_equal(c.out.rows, keep < N ? keep : N);
        for (uint32_t r = 1; r < c.out.rows; r++) assert_true(c.out.index[r] > c.out.index[r - 1]);
    }
    case_fini(&c);
}

static void uniform(void **state)
{
    struct prune_case c;

    (void)state;
    case_random(&c, grid24, 1000);
    for (uint32_t keep = 1; keep <= 577; keep++) {
        c.in.ask.budget.keep = keep;
        must_run(&c, &wn_prune_uniform);
        assert_int_equal(c.out.rows, keep < N ? keep : N);
        for (uint32_t r = 1; r < c.out.rows; r++) assert_true(c.out.index[r] > c.out.index[r - 1]);
        assert_true(c.out.index[c.out.rows - 1] < N);
        if (keep == 64) /* every third, from the second */
            for (uint32_t r = 0; r < 64; r++)
                assert_int_equal(c.out.index[r], (r / 8 * 3 + 1) * 24 + r % 8 * 3 + 1);
    }
    case_fini(&c);
}

static void random_lots(void **state)
{
    struct prune_case c;
    uint32_t few[64], hits[N] = {0};

    (void)state;
    case_random(&c, grid24, 1100);
    for (uint64_t seed = 0; seed < 400; seed++) {
        c.in.ask.budget = (struct wn_prune_budget){.keep = 64, .seed = seed};
        must_run(&c, &wn_prune_random);
        memcpy(few, c.out.index, sizeof(few));
        for (uint32_t r = 0; r < 64; r++) hits[few[r]]++;
        c.in.ask.budget.keep = 65 + (uint32_t)seed % 500;
        must_run(&c, &wn_prune_random); /* a larger budget keeps those too */
        for (uint32_t r = 0; r < 64; r++) assert_true(case_find(&c, few[r]) != UINT32_MAX);
    }
    for (uint32_t i = 0; i < N; i++) assert_in_range(hits[i], 14, 85); /* 44.4, sigma 6.3 */
    case_fini(&c);
}

/* Budgets 1, 575, 576, 577 and rates 0, 0.99, 1, on 24 x 24 and on 4 x 4. */
static void budgets(void **state)
{
    struct wn_prune_shape small = grid24;

    (void)state;
    small.rows = 16;
    small.grid_w = small.grid_h = 4;
    for (size_t i = 1; wn_prune_methods[i]; i++) {
        const struct wn_prune_method *m = wn_prune_methods[i];
        for (int big = 0; big < 2; big++) {
            const struct wn_prune_shape s = big ? grid24 : small;
            const uint32_t n = s.rows, keeps[] = {1, 2, 3, n - 1, n, n + 1, UINT32_MAX};
            const bool pools = m == &wn_prune_matryoshka;
            struct prune_case c;
            case_random(&c, s, 1200);
            c.in.ask.projected = pools;
            for (size_t t = 0; t < sizeof(keeps) / sizeof(keeps[0]); t++) {
                const uint32_t want = keeps[t] < n ? keeps[t] : n;
                c.in.ask.budget = (struct wn_prune_budget){.keep = keeps[t]};
                must_run(&c, m);
                if (pools)
                    assert_true(c.out.rows <= want);
                else
                    assert_int_equal(c.out.rows, want);
            }
            c.in.ask.budget = (struct wn_prune_budget){.rate = 0.99f};
            must_run(&c, m);
            if (!pools) assert_int_equal(c.out.rows, big ? 6 : 1);
            c.in.ask.budget.rate = 1;
            must_run(&c, m);
            assert_int_equal(c.out.rows, 1);
            c.in.ask.budget.rate = 0;
            must_run(&c, m);
            if (!m->adaptive) assert_int_equal(c.out.rows, n);
            case_fini(&c);
        }
    }
}

/* A tower that makes NaN costs an answer, not memory. */
static void not_a_number(void **state)
{
    struct prune_case c;

    (void)state;
    case_random(&c, grid24, 1300);
    for (uint32_t i = 0; i < N * W; i += 3) c.x[i] = NAN, c.keys[i] = NAN;
    for (uint32_t i = 0; i < 2 * 577; i += 2) c.mean[i] = NAN, c.cls[i] = INFINITY;
    for (size_t i = 1; wn_prune_methods[i]; i++) {
        c.in.ask.projected = wn_prune_methods[i] == &wn_prune_matryoshka;
        for (uint32_t keep = 0; keep < 70; keep += 23) {
            c.in.ask.budget.keep = keep;
            must_run(&c, wn_prune_methods[i]);
            for (uint32_t r = 0; r < c.out.rows; r++)
                assert_true(c.out.index[r] < N || c.out.index[r] == WN_PRUNE_NO_INDEX);
        }
    }
    case_fini(&c);
}

/* The blocked product against its definition, bit for bit, at widths that are no multiple of 8; float32, bfloat16. */
static void dots_have_one_order(void **state)
{
    static const uint32_t widths[] = {1, 7, 8, 9, 31, 64, 1023, 1024}, list[7] = {3, 0, 9, 9, 1, 10, 4};
    static float x[11 * 1024], cos[121], inv[11], alone[11];
    static wn_bf16 half[11 * 1024];
    struct wn_prune_ctx c = {.method = &wn_prune_none};
    float out[35], halves[35];

    (void)state;
    fill(x, 11 * 1024, 55);
    for (uint32_t i = 0; i < 11 * 1024; i++) x[i] = wn_bf16_to_f32(half[i] = wn_f32_to_bf16(x[i]));
    for (size_t t = 0; t < sizeof(widths) / sizeof(widths[0]); t++) {
        const uint32_t w = widths[t];
        const struct wn_mat m = {x, WN_F32, 11, w, w}, h = {half, WN_BF16, 11, w, w};
        const struct wn_row_dots d = {.out = out, .a = {.m = m, .n = 5}, .b = {m, list, 7}};
        const struct wn_row_dots dh = {.out = halves, .a = {.m = h, .n = 5}, .b = {h, list, 7}};
        assert_int_equal(wn_row_dots(&d, NULL), WN_OK);
        assert_int_equal(wn_row_dots(&dh, NULL), WN_OK);
        assert_memory_equal(out, halves, sizeof(out));
        for (uint32_t i = 0; i < 5; i++) {
            for (uint32_t j = 0; j < 7; j++) {
                float s[8] = {0}, want;
                for (uint32_t k = 0; k < w; k++) s[k % 8] += x[i * w + k] * x[list[j] * w + k];
                want = ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
                assert_memory_equal(&out[i * 7 + j], &want, sizeof(want));
            }
        }
        assert_int_equal(wn_prune_cosines(&c, (struct wn_row_list){.m = m, .n = 11}, inv, cos), WN_OK);
        assert_int_equal(wn_prune_inverse_lengths(&c, (struct wn_row_list){.m = m, .n = 11}, alone), WN_OK);
        assert_memory_equal(inv, alone, sizeof(inv));
        for (uint32_t i = 0; i < 121; i++) assert_true(cos[i] == cos[i % 11 * 11 + i / 11]);
    }
}

/* Sums of rows, bit for bit one term after the other in float64, the last row elsewhere, a sum of nothing; from both
 * types and to both. */
static void sums_have_one_order(void **state)
{
    static const uint32_t widths[] = {1, 15, 16, 33, 256}, first[5] = {0, 5, 6, 6, 8};
    static const float div[4] = {3, 1, 7, 0.3f};
    struct wn_row_term terms[8] = {{4, 0}, {0, 0}, {2, 0}, {2, 0}, {3, 0}, {1, 1}, {5, 0}, {0, 0}};
    static float x[6 * 256], out[4 * 256];
    static wn_bf16 half[6 * 256], rounded[4 * 256];

    (void)state;
    fill(x, 6 * 256, 56);
    for (uint32_t i = 0; i < 6 * 256; i++) x[i] = wn_bf16_to_f32(half[i] = wn_f32_to_bf16(x[i]));
    x[256] = -0.0f, half[256] = 0x8000; /* row 1, alone: as it is */
    for (uint32_t i = 0; i < 8; i++)
        if (i != 5) terms[i].weight = 1.0f / (float)(3 + i);
    for (size_t t = 0; t < 2 * sizeof(widths) / sizeof(widths[0]); t++) {
        const uint32_t n = widths[t / 2];
        const struct wn_mat from = {t % 2 ? (void *)half : x, t % 2 ? WN_BF16 : WN_F32, 5, n, 256};
        struct wn_row_sums s = {.out = {out, WN_F32, 4, n, n},
                                .in = from,
                                .last = t % 2 ? (const void *)(half + 5 * 256) : (const void *)(x + 5 * 256),
                                .first = first,
                                .terms = terms,
                                .div = div};
        wn_row_sums(&s);
        s.out.ptr = rounded;
        s.out.dtype = WN_BF16;
        wn_row_sums(&s);
        for (uint32_t i = 0; i < 4; i++) {
            for (uint32_t j = 0; j < n; j++) {
                double sum = first[i] == first[i + 1] ? 0.0 : -0.0;
                float want;
                for (uint32_t k = first[i]; k < first[i + 1]; k++)
                    sum += (double)terms[k].weight * (double)x[terms[k].row * 256 + j];
                want = (float)(sum / (double)div[i]);
                assert_memory_equal(&out[i * n + j], &want, sizeof(want));
                assert_int_equal(rounded[i * n + j], wn_f32_to_bf16(want));
            }
        }
    }
}

static void the_most_of_a_row(void **state)
{
    static const uint32_t widths[] = {1, 15, 16, 33, 256};
    static float x[256], bias[256];

    (void)state;
    fill(x, 256, 56);
    for (size_t t = 0; t < sizeof(widths) / sizeof(widths[0]); t++) {
        const uint32_t n = widths[t];
        for (uint32_t at = 0; at < n; at++) {
            memset(bias, 0, sizeof(bias));
            bias[at] = 3; /* the numbers are between -1 and 1 */
            assert_true(wn_prune_most(x, bias, n) == x[at] + 3);
            bias[at] = NAN;
            assert_true(wn_prune_most(x, bias, n) < 3);
            bias[at] = -INFINITY;
            assert_true((wn_prune_most(x, bias, n) == wn_prune_most(x, NULL, n)) ==
                        (x[at] < wn_prune_most(x, NULL, n)));
        }
        for (uint32_t j = 0; j < n; j++) assert_true(x[j] <= wn_prune_most(x, NULL, n));
    }
    assert_true(wn_prune_most(x, NULL, 0) == -INFINITY);
}

/* Memory that runs out at any of a method's allocations is an error and no leak. */
static void out_of_memory(void **state)
{
    struct prune_case c;

    (void)state;
    case_random(&c, grid24, 1350);
    c.in.ask.budget.keep = 64;
    for (size_t i = 1; wn_prune_methods[i]; i++) {
        const struct wn_prune_method *m = wn_prune_methods[i];
        struct wn_prune_wants w;
        uint32_t failures = 0;
        wn_status rc;
        c.in.ask.projected = m == &wn_prune_matryoshka;
        wn_prune_wants(m, &c.in.ask, 1, &w);
        case_taps(&c, w.cls_layers | w.mean_layers, w.keys_layers);
        do {
            struct wn_err err = {0};
            mallocs_left = (int)failures;
            rc = wn_prune_run(m, &c.in, &c.out, &err);
            mallocs_left = -1;
            wn_prune_out_fini(&c.out);
            failures++;
            assert_true(rc == WN_OK || (rc == WN_ENOMEM && strstr(err.text, m->name)));
        } while (rc != WN_OK);
        assert_in_range(failures, 4, WN_PRUNE_MEM_MAX + 5); /* the recipe has three, and grows */
    }
    case_fini(&c);
}

/* ---- better than by lot ---- */

/* 24 patches of an otherwise plain picture matter: the tower attends to them and they look like
 * nothing else. Every selector must keep most of them in 64; by lot that is 2.7 on average. */
static void beats_random(void **state)
{
    static const struct wn_prune_method *const selectors[] = {
        &wn_prune_cls_topk,  &wn_prune_prumerge,  &wn_prune_prumerge_plus, &wn_prune_visionzip,
        &wn_prune_vispruner, &wn_prune_divprune,  &wn_prune_hiprune};
    const struct wn_prune_shape s = {.rows = N, .width = 64, .grid_w = 24, .grid_h = 24,
                                     .heads = 4, .feature_layer = 1};
    struct prune_case c;
    uint32_t lots = 0;

    (void)state;
    case_random(&c, s, 1400);
    for (uint32_t i = 0; i < N; i++) {
        float *x = c.x + i * 64, *key = c.keys + (i + 1) * 64;
        const bool matters = i % 24 == 7;
        for (uint32_t j = 0; j < 64; j++) {
            x[j] = matters ? x[j] : 1 + 0.1f * x[j];
            key[j] = 0.2f * key[j] + (matters ? c.query[j] : 0);
        }
        for (uint32_t h = 0; h < 4; h++) c.cls[h * 577 + 1 + i] += matters ? 0.1f : 0;
        c.mean[1 + i] += matters ? 0.1f : 0;
        c.mean[577 + 1 + i] += matters ? 0.1f : 0;
    }
    memcpy(c.cls + 4 * 577, c.cls, 4 * 577 * sizeof(float));
    c.in.ask.budget.keep = 64;
    for (uint64_t seed = 0; seed < 20; seed++) {
        c.in.ask.budget.seed = seed;
        must_run(&c, &wn_prune_random);
        for (uint32_t i = 7; i < N; i += 24) lots += case_find(&c, i) != UINT32_MAX;
    }
    assert_in_range(lots, 20, 90);
    for (size_t t = 0; t < sizeof(selectors) / sizeof(selectors[0]); t++) {
        const bool quarter = selectors[t] == &wn_prune_prumerge_plus; /* 16 by score, then spread */
        uint32_t found = 0;
        must_run(&c, selectors[t]);
        for (uint32_t i = 7; i < N; i += 24) found += case_find(&c, i) != UINT32_MAX;
        if (found < (quarter ? 16 : 20)) fail_msg("%s keeps %u of 24", selectors[t]->name, found);
    }
    case_fini(&c);
}

int main(void)
{
    const struct CMUnitTest values[] = {
        cmocka_unit_test(divprune),     cmocka_unit_test(visionzip),    cmocka_unit_test(visionzip_split),
        cmocka_unit_test(matryoshka),   cmocka_unit_test(not_a_number), cmocka_unit_test(beats_random),
    };
    const struct CMUnitTest others[] = { /* where values are does not matter, or it is the host */
        cmocka_unit_test(hiprune),
        cmocka_unit_test(vispruner),
        cmocka_unit_test(uniform),
        cmocka_unit_test(random_lots),
        cmocka_unit_test(budgets),
        cmocka_unit_test(dots_have_one_order),
        cmocka_unit_test(sums_have_one_order),
        cmocka_unit_test(the_most_of_a_row),
        cmocka_unit_test(out_of_memory),
    };
    int failed = cmocka_run_group_tests(values, NULL, NULL);

    if (!case_on_device) failed += cmocka_run_group_tests(others, NULL, NULL);
    return failed;
}
