/* tests/unit/test_prune_prumerge.c - PruMerge's numbers worked out by hand, its properties, its edges. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "pruning/prumerge.h"
#include "tests/unit/prune_case.h"

#define N CASE_N
#define W CASE_W

static const float eight_a[8] = {.01f, .02f, .02f, .03f, .03f, .04f, .30f, .05f};

/* All of a, the highest first. */
static const uint32_t *order_of(const float *a, uint32_t n)
{
    static uint64_t scratch[N];
    static uint32_t order[N];

    wn_prune_top(a, NULL, n, n, order, scratch);
    return order;
}

static void fence(void **state)
{
    const uint32_t *order = order_of(eight_a, 8);

    (void)state;
    assert_true(fabs(wn_prune_quantile(eight_a, order, 8, 0.25) - .02) < 1e-7);
    assert_true(fabs(wn_prune_quantile(eight_a, order, 8, 0.75) - .0425) < 1e-7);
    assert_true(fabs(wn_prumerge_fence(eight_a, order, 8) - .07625) < 1e-7);
    assert_int_equal(wn_prumerge_outliers(eight_a, order, 8), 1);
}

/* Percentiles of 576: s[143] + 0.75 (s[144] - s[143]) and s[431] + 0.25 (s[432] - s[431]). */
static void fence_576(void **state)
{
    float a[N];

    (void)state;
    for (uint32_t i = 0; i < N; i++) a[i] = (float)((i * 7) % N); /* 0 .. 575, shuffled */
    assert_true(wn_prune_quantile(a, order_of(a, N), N, 0.25) == 143.75);
    assert_true(wn_prune_quantile(a, order_of(a, N), N, 0.75) == 431.25);
}

static struct wn_mat rows_at(const float *x, uint32_t rows, uint32_t width)
{
    return (struct wn_mat){(void *)(uintptr_t)x, WN_F32, rows, width, width};
}

/* The merge alone, of the case's features. */
static void merge(struct prune_case *c, const struct wn_prumerge *m)
{
    struct wn_prune_ctx ctx = {.method = &wn_prune_prumerge,
                               .in = &c->in,
                               .out = &c->out,
                               .n = c->in.shape.rows,
                               .width = c->in.shape.width};

    assert_int_equal(wn_prune_recipe_begin(&ctx, m->kept_n + 1), WN_OK);
    assert_int_equal(wn_prumerge_merge(&ctx, m), WN_OK);
    assert_false(ctx.no_memory);
    while (ctx.mem_n > 0) free(ctx.mem[--ctx.mem_n]);
    case_make_values(c);
}

static void scores_of(const float *q, const float *keys, uint32_t tokens, uint32_t width, float *a)
{
    struct wn_prune_ctx ctx = {.method = &wn_prune_prumerge};

    assert_int_equal(wn_prumerge_scores(&ctx, rows_at(q, 1, width), rows_at(keys, tokens, width), a), WN_OK);
}

/* Merges the eight rows of the specification, keeping `kept`, with two neighbours. */
static void merge_eight(struct prune_case *c, const uint32_t *kept, uint32_t kept_n)
{
    static const float x[16] = {1, 0, 0, 1, 1, 1, 2, 0, 0, 2, 2, 2, 10, 10, 4, 0};
    static const float keys[16] = {0, 1, 1, 0, 1, 1, -1, 0, 0, -1, 3, 4, 1, 0, 1, 2};
    const struct wn_prune_shape s = {.rows = 8, .width = 2};
    const struct wn_prumerge m = {
        .a = eight_a, .keys = rows_at(keys, 8, 2), .kept = kept, .kept_n = kept_n, .neighbours = 2};

    case_init(c, s, 1);
    memcpy(c->x, x, sizeof(x));
    merge(c, &m);
}

static void merge_one(void **state)
{
    struct prune_case c;

    (void)state;
    merge_eight(&c, (const uint32_t[]){6}, 1);
    assert_int_equal(c.out.rows, 2);
    assert_int_equal(c.out.index[0], 6);
    assert_int_equal(c.out.flags[0], WN_PRUNE_MERGED);
    assert_true(c.out.index[1] == WN_PRUNE_NO_INDEX && c.out.flags[1] == WN_PRUNE_EXTRA);
    close_to(c.values, (const double[]){10.02, 10.04, 0.37, 0.18}, 4, 2e-6);
    case_fini(&c);
}

static void kept_rows_are_neighbours(void **state)
{
    struct prune_case c;

    (void)state;
    merge_eight(&c, (const uint32_t[]){6, 1}, 2);
    assert_int_equal(c.out.rows, 3);
    assert_true(c.out.index[0] == 6 && c.out.index[1] == 1);
    close_to(c.values, (const double[]){10.02, 10.04, 3.02, 4.02, 0.37, 0.16}, 6, 2e-6);
    case_fini(&c);
}

/* Four tokens, two heads of width 1: all heads as one rank otherwise than the mean of two softmaxes. */
static void heads_as_one(void **state)
{
    static const float q[2] = {2, 2}, keys[8] = {0, 0, 3, 0, 0, 3, 1.6f, 1.6f};
    const struct wn_prune_shape s = {.rows = 4, .width = 2, .heads = 2};
    struct prune_case c;
    float a[4];

    (void)state;
    scores_of(q, keys, 4, 2, a);
    close_to(a, (const double[]){.0043, .2993, .2993, .3971}, 4, 5e-5);
    case_init(&c, s, 1);
    for (uint32_t h = 0; h < 2; h++) {
        double e[4], sum = 0;
        for (int j = 0; j < 4; j++) sum += e[j] = exp((double)(q[h] * keys[2 * j + h]));
        for (int j = 0; j < 4; j++) c.cls[h * 5 + 1 + j] = (float)(e[j] / sum);
    }
    c.in.ask.budget.keep = 1;
    must_run(&c, &wn_prune_cls_topk);
    assert_true(c.out.scored);
    close_to(c.out.scores, (const double[]){.0023, .4703, .4703, .0571}, 4, 5e-5);
    assert_int_equal(c.out.index[0], 1); /* 1 and 2 tie: the lower; prumerge's first is 3 */
    case_fini(&c);
}

static void flat_attention(void **state)
{
    struct prune_case c;
    double want[W] = {0};

    (void)state;
    case_random(&c, grid24, 100);
    memset(c.query, 0, W * sizeof(float));
    must_run(&c, &wn_prune_prumerge);
    assert_int_equal(c.out.rows, 1);
    assert_int_equal(c.out.flags[0], WN_PRUNE_EXTRA);
    for (uint32_t i = 0; i < N * W; i++) want[i % W] += (double)c.x[i] / 577;
    close_to(c.values, want, W, 1e-5);
    must_run(&c, &wn_prune_prumerge_plus); /* the first 72 (ties), 76, 84, .. 572, the extra */
    assert_int_equal(c.out.rows, 72 + 63 + 1);
    assert_true(c.out.index[0] == 0 && c.out.index[71] == 71);
    assert_true(c.out.index[72] == 76 && c.out.index[134] == 572);
    c.in.ask.setting = WN_PRUNE_PAPER;
    memset(c.cls, 0, 2 * 577 * sizeof(float));
    must_run(&c, &wn_prune_prumerge);
    assert_int_equal(c.out.rows, 72);
    must_run(&c, &wn_prune_prumerge_plus);
    assert_int_equal(c.out.rows, 144);
    case_fini(&c);
}

/* A picture whose outliers are those patches: one key column, the query 1. */
static void outliers_at(struct prune_case *c, const uint32_t *at, uint32_t n)
{
    const struct wn_prune_shape s = {.rows = N, .width = 1, .heads = 1, .feature_layer = 1};

    case_init(c, s, 1);
    c->query[0] = 1;
    for (uint32_t i = 0; i < n; i++) c->keys[1 + at[i]] = 2 + 0.01f * (float)i;
}

static uint32_t plus_count(const uint32_t *at, uint32_t n, bool *last)
{
    struct prune_case c;
    uint32_t rows;

    outliers_at(&c, at, n);
    must_run(&c, &wn_prune_prumerge_plus);
    rows = c.out.rows;
    *last = case_find(&c, 575) != UINT32_MAX;
    for (uint32_t r = 0; r + 1 < rows; r++) /* every patch once, the outliers from the highest */
        assert_int_equal(case_find(&c, c.out.index[r]), r);
    for (uint32_t r = 0; r < n; r++) assert_int_equal(c.out.index[r], at[n - 1 - r]);
    for (uint32_t r = n + 1; r + 1 < rows; r++) assert_true(c.out.index[r] > c.out.index[r - 1]);
    for (uint32_t i = 0; i < rows; i++) assert_true(c.values[i] == 0); /* X = 0 */
    must_run(&c, &wn_prune_prumerge);
    assert_int_equal(c.out.rows, n + 1);
    case_fini(&c);
    return rows;
}

static void plus_counts(void **state)
{
    static const struct {
        uint32_t outliers, grid;
    } table[] = {{8, 24},  {16, 48},  {24, 72},  {32, 96}, {35, 115},
                 {40, 144}, {64, 192}, {96, 288}};
    uint32_t at[144];
    bool last;

    (void)state;
    for (uint32_t i = 0; i < 32; i++) at[i] = 6 * i + 1;
    assert_int_equal(plus_count(at, 32, &last), 129);
    for (uint32_t i = 0; i < 32; i++) at[i] = 6 * i;
    assert_int_equal(plus_count(at, 32, &last), 97);
    for (uint32_t t = 0; t < sizeof(table) / sizeof(table[0]); t++) {
        const uint32_t c = table[t].outliers, stride = 576 / c / 3;
        for (uint32_t i = 0; i < c; i++) at[i] = stride * i + 1;
        assert_int_equal(plus_count(at, c, &last), c + table[t].grid + 1);
        assert_false(last);
    }
    for (uint32_t i = 0; i < 97; i++) at[i] = 3 * i;
    assert_int_equal(plus_count(at, 97, &last), 576);
    assert_false(last);
    at[96] = 575;
    assert_int_equal(plus_count(at, 97, &last), 577);
    assert_true(last);
    for (uint32_t i = 0; i < 144; i++) at[i] = 4 * i;
    assert_int_equal(plus_count(at, 144, &last), 576);
}

/* However many outliers, a cap holds, and it cuts by score. */
static void caps(void **state)
{
    struct prune_case c;
    uint32_t at[100];

    (void)state;
    for (uint32_t i = 0; i < 100; i++) at[i] = 5 * i + 2;
    outliers_at(&c, at, 100);
    c.in.ask.budget.cap = 64;
    must_run(&c, &wn_prune_prumerge);
    assert_int_equal(c.out.rows, 64);
    for (uint32_t r = 0; r < 63; r++) assert_int_equal(c.out.index[r], at[99 - r]);
    must_run(&c, &wn_prune_prumerge_plus);
    assert_int_equal(c.out.rows, 64);
    for (uint32_t r = 0; r < 16; r++) assert_int_equal(c.out.index[r], at[99 - r]);
    c.in.ask.budget.cap = 1;
    must_run(&c, &wn_prune_prumerge_plus);
    assert_int_equal(c.out.rows, 1);
    c.in.ask.budget.cap = 101; /* 100 and the extra: just enough */
    must_run(&c, &wn_prune_prumerge);
    assert_int_equal(c.out.rows, 101);
    case_fini(&c);
}

/* Selection depends on the keys' length, neighbours do not; a power of two keeps every bit. */
static void scaled_keys(void **state)
{
    const uint32_t kept[3] = {5, 77, 300};
    struct wn_prumerge m = {.kept = kept, .kept_n = 3, .neighbours = 32};
    struct prune_case c, d;

    (void)state;
    case_random(&c, grid24, 200);
    case_random(&d, grid24, 200);
    for (uint32_t i = 0; i < 577 * W; i++) d.keys[i] *= 4;
    m.a = c.mean + 1;
    m.keys = rows_at(c.keys + W, N, W);
    merge(&c, &m);
    m.keys = rows_at(d.keys + W, N, W);
    merge(&d, &m);
    assert_memory_equal(c.values, d.values, 4 * W * sizeof(float));
    must_run(&c, &wn_prune_prumerge);
    must_run(&d, &wn_prune_prumerge);
    assert_int_not_equal(c.out.rows, d.out.rows);
    case_fini(&c);
    case_fini(&d);
}

/* Patches and keys in another order: the same rows, bit for bit; the extra up to rounding. */
static void permuted(void **state)
{
    struct prune_case c, d;
    double extra[W];

    (void)state;
    case_random(&c, grid24, 300);
    case_random(&d, grid24, 300);
    for (uint32_t j = 0; j < W; j++) c.query[j] *= 3, d.query[j] *= 3;
    for (uint32_t i = 0; i < N; i++) {
        const uint32_t p = i * 125 % N;
        memcpy(d.x + p * W, c.x + i * W, W * sizeof(float));
        memcpy(d.keys + (p + 1) * W, c.keys + (i + 1) * W, W * sizeof(float));
    }
    must_run(&c, &wn_prune_prumerge);
    must_run(&d, &wn_prune_prumerge);
    assert_int_equal(c.out.rows, d.out.rows);
    assert_true(c.out.rows > 10);
    for (uint32_t r = 0; r + 1 < c.out.rows; r++)
        assert_int_equal(d.out.index[r], c.out.index[r] * 125 % N);
    /* softmax sums in row order, so the weights may differ in the last place */
    for (uint32_t i = 0; i < (c.out.rows - 1) * W; i++)
        assert_true(fabsf(c.values[i] - d.values[i]) < 1e-5f);
    for (uint32_t j = 0; j < W; j++) extra[j] = (double)c.values[(c.out.rows - 1) * W + j];
    close_to(d.values + (d.out.rows - 1) * W, extra, W, 1e-5);
    case_fini(&c);
    case_fini(&d);
}

static void logits_shifted(void **state)
{
    float q[2] = {1, 1}, keys[2 * 40], a[40], b[40];

    (void)state;
    for (uint32_t i = 0; i < 80; i++) keys[i] = (float)(case_draw(9, i) % 9) - 4;
    scores_of(q, keys, 40, 2, a);
    for (uint32_t i = 0; i < 80; i += 2) keys[i] += 16;
    scores_of(q, keys, 40, 2, b);
    for (uint32_t i = 0; i < 40; i++) assert_true(fabsf(a[i] - b[i]) <= 1e-5f * a[i]);
}

/* f(X + Y) = f(X) + f(Y), and an image's result does not depend on the one before it. */
static void linear_and_alone(void **state)
{
    struct prune_case x, y, z;
    double want[577 * W];

    (void)state;
    case_random(&x, grid24, 400);
    case_random(&y, grid24, 400);
    case_random(&z, grid24, 400);
    fill(y.x, N * W, 7777);
    for (uint32_t i = 0; i < N * W; i++) z.x[i] = x.x[i] + y.x[i];
    for (int plus = 0; plus < 2; plus++) {
        const struct wn_prune_method *m = plus ? &wn_prune_prumerge_plus : &wn_prune_prumerge;
        must_run(&x, m);
        must_run(&y, m);
        must_run(&z, m);
        assert_int_equal(x.out.rows, z.out.rows);
        for (uint32_t i = 0; i < z.out.rows * W; i++)
            want[i] = (double)x.values[i] + (double)y.values[i];
        close_to(z.values, want, z.out.rows * W, 1e-5);
    }
    must_run(&y, &wn_prune_prumerge);
    memcpy(z.values, y.values, y.out.rows * W * sizeof(float));
    must_run(&x, &wn_prune_prumerge);
    must_run(&y, &wn_prune_prumerge);
    assert_memory_equal(z.values, y.values, y.out.rows * W * sizeof(float));
    case_fini(&x);
    case_fini(&y);
    case_fini(&z);
}

/* c + 1 rows, at most 144 outliers, whatever the scores. */
static void outlier_bound(void **state)
{
    (void)state;
    for (uint32_t t = 0; t < 20; t++) {
        struct prune_case c;
        case_random(&c, grid24, 500 + t * 10);
        for (uint32_t j = 0; j < W; j++) c.query[j] *= (float)(1 << (t % 6));
        must_run(&c, &wn_prune_prumerge);
        assert_int_equal(c.out.rows, 1 + wn_prumerge_outliers(c.out.scores, order_of(c.out.scores, N), N));
        assert_true(c.out.rows <= 145);
        case_fini(&c);
    }
}

/* The setting of the paper: a weighted mean of pruned neighbours, and no extra row. */
static void paper(void **state)
{
    const struct wn_prune_shape s = {.rows = 4, .width = 1, .heads = 1, .feature_layer = 0};
    struct prune_case c;

    (void)state;
    case_init(&c, s, 1);
    memcpy(c.cls, (const float[]){0, .4f, .3f, .2f, .1f}, 5 * sizeof(float));
    memcpy(c.x, (const float[]){10, 20, 30, 40}, 4 * sizeof(float));
    for (uint32_t i = 0; i < 5; i++) c.keys[i] = i == 4 ? -1 : 1; /* patch 3 points elsewhere */
    c.in.ask.setting = WN_PRUNE_PAPER;
    c.in.ask.budget.keep = 2;
    c.in.ask.options.neighbours = 1;
    must_run(&c, &wn_prune_prumerge);
    assert_int_equal(c.out.rows, 2);
    /* both take in patch 2 and not each other: (.4*10 + .2*30) / .6 and (.3*20 + .2*30) / .5 */
    close_to(c.values, (const double[]){16.6666667, 24}, 2, 1e-5);
    case_fini(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fence),
        cmocka_unit_test(fence_576),
        cmocka_unit_test(merge_one),
        cmocka_unit_test(kept_rows_are_neighbours),
        cmocka_unit_test(heads_as_one),
        cmocka_unit_test(flat_attention),
        cmocka_unit_test(plus_counts),
        cmocka_unit_test(caps),
        cmocka_unit_test(scaled_keys),
        cmocka_unit_test(permuted),
        cmocka_unit_test(logits_shifted),
        cmocka_unit_test(linear_and_alone),
        cmocka_unit_test(outlier_bound),
        cmocka_unit_test(paper),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
