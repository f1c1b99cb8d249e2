/* test_prune_random [every] - every method on 200 random images, or on every so manieth, against an independent
 * implementation (scripts/golden/prune.py says how the inputs are made and how its results are stored). */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/prune_case.h"

#define GOLDEN  "tests/golden/prune/random.bin"
#define REFUSED 0xffff
#define NO_CODE 1023

static const struct {
    const char *name;
    wn_prune_setting setting;
} methods[] = {
    {"random", WN_PRUNE_FAITHFUL},    {"uniform", WN_PRUNE_FAITHFUL},
    {"cls-topk", WN_PRUNE_FAITHFUL},  {"prumerge", WN_PRUNE_FAITHFUL},
    {"prumerge", WN_PRUNE_PAPER},     {"prumerge+", WN_PRUNE_FAITHFUL},
    {"prumerge+", WN_PRUNE_PAPER},    {"visionzip", WN_PRUNE_FAITHFUL},
    {"vispruner", WN_PRUNE_FAITHFUL}, {"divprune", WN_PRUNE_FAITHFUL},
    {"hiprune", WN_PRUNE_FAITHFUL},   {"matryoshka", WN_PRUNE_FAITHFUL},
};
static uint32_t every = 1;
#define METHODS (sizeof(methods) / sizeof(methods[0]))

static const struct wn_prune_shape shapes[] = {
    {576, 64, 24, 24, 16, 22, false}, {576, 32, 24, 24, 4, 5, false},
    {16, 32, 4, 4, 4, 5, false},      {576, 64, 24, 24, 8, 22, false},
    {96, 48, 12, 8, 4, 10, false},    {576, 64, 24, 24, 16, 22, false},
    {35, 20, 5, 7, 2, 3, false},      {576, 1024, 24, 24, 16, 22, false},
};

static int ints(uint64_t stream, uint64_t i, int most)
{
    return (int)(case_draw(stream, i) % (uint64_t)(2 * most + 1)) - most;
}

/* A row of `which`'s cluster, with noise. */
static void make_row(float *row, uint64_t stream, uint64_t which, uint64_t at, uint32_t width,
                     int noise)
{
    for (uint32_t j = 0; j < width; j++)
        row[j] = (float)(ints(stream, which * width + j, 5) +
                         ints(stream + 1, at * width + j, noise));
}

static void make_attention(float *a, uint64_t stream, uint64_t most, uint32_t heads,
                           uint32_t tokens, const uint8_t *hot)
{
    for (uint32_t i = 0; i < heads * tokens; i++) {
        const uint64_t v = 1 + case_draw(stream, i) % most;
        a[i] = (float)(v << (hot[i % tokens] ? 3 : 0)) / 65536;
    }
}

/* The image of case t: case_init was called with four layers of attention. */
static void make_case(struct prune_case *c, uint64_t t)
{
    static const uint64_t one_in[] = {0, 200, 40, 10, 6, 5, 3, 16};
    const struct wn_prune_shape *s = &c->in.shape;
    const uint32_t w = s->width, tokens = s->rows + 1;
    const uint64_t st = t * 64, clusters = 1 + case_draw(st, 0) % 12;
    const int noise = (int)(case_draw(st, 1) % 4), q_most = 1 + (int)(case_draw(st, 2) % 2);
    const uint64_t dense = case_draw(st, 3) % 8, hot_in = one_in[case_draw(st, 4) % 8];
    const int key_noise = 1 + (int)(case_draw(st, 5) % 3), pull = 2 + (int)(case_draw(st, 6) % 4);
    uint8_t *hot = calloc(tokens, 1);

    WN_ASSERT(hot);
    for (uint32_t j = 0; j < w; j++) {
        c->cls_row[j] = (float)ints(st + 4, j, 6);
        c->query[j] = case_draw(st + 6, j) % 8 > dense ? 0 : (float)ints(st + 5, j, q_most);
    }
    for (uint32_t i = 0; i < tokens; i++) {
        const uint64_t which = case_draw(st + 1, i) % clusters;
        float *key = c->keys + (size_t)i * w;
        if (i) make_row(c->x + (size_t)(i - 1) * w, st + 2, which, i - 1, w, noise);
        make_row(key, st + 8, which, i, w, key_noise);
        hot[i] = hot_in && case_draw(st + 7, i) % hot_in == 0;
        for (uint32_t j = 0; hot[i] && j < w; j++)
            key[j] += (float)(pull * ((c->query[j] > 0) - (c->query[j] < 0)));
    }
    make_attention(c->cls + c->in.taps.cls_stride, st + 10, 4095, s->heads, tokens, hot);
    make_attention(c->mean + c->in.taps.mean_stride, st + 11, 255, 1, tokens, hot);
    make_attention(c->mean + 2 * c->in.taps.mean_stride, st + 12, 511, 1, tokens, hot);
    free(hot);
}

static struct wn_prune_ask make_ask(uint64_t t, uint32_t m, uint32_t n)
{
    static const float rates[] = {0.5f, 0.75f, 0.9f, 0.99f};
    static const uint32_t caps[] = {0, 40, 200, 1}, near[] = {0, 0, 5}, contextual[] = {0, 0, 7};
    static const double important[] = {0, 0.25, 0.75, 1};
    uint64_t d[8];
    struct wn_prune_ask ask = {.setting = methods[m].setting,
                               .projected = strcmp(methods[m].name, "matryoshka") == 0};
    uint32_t most;

    for (uint32_t i = 0; i < 8; i++) d[i] = case_draw(t * 64 + 32 + m, i);
    most = n >> (d[2] % 5);
    ask.budget.cap = caps[d[3] % 4];
    ask.budget.seed = d[4];
    ask.options.neighbours = near[d[5] % 3];
    ask.options.contextual = contextual[d[6] % 3];
    ask.options.important = important[d[7] % 4];
    if (d[0] % 8 == 2)
        ask.budget.rate = rates[d[1] % 4];
    else if (d[0] % 8 == 3)
        ask.budget.keep = (const uint32_t[]){1, n - 1, n, n + 1}[d[1] % 4];
    else if (d[0] % 8 > 3)
        ask.budget.keep = 1 + (uint32_t)(d[1] % (most ? most : 1));
    return ask;
}

/* Sum of values with weights between -0.5 and 0.5, and of their sizes. */
static double checksum(uint64_t row, const float *v, uint32_t n, double *size)
{
    double sum = 0;

    for (uint32_t j = 0; j < n; j++) {
        const uint64_t u = case_mix(row * 65536 + j) >> 40;
        const double part = ((double)u / 0x1p24 - 0.5) * (double)v[j];
        sum += part;
        *size += fabs(part);
    }
    return sum;
}

static void must_read(void *to, size_t bytes, FILE *f)
{
    assert_int_equal(fread(to, 1, bytes, f), bytes);
}

static void compare(const struct prune_case *c, uint32_t rows, const uint16_t *codes,
                    const double *sums, const char *what)
{
    double sum = 0, size = 0, score, score_size = 0;

    if (c->out.rows != rows) fail_msg("%s: %u rows, not %u", what, c->out.rows, rows);
    for (uint32_t r = 0; r < rows; r++) {
        const uint32_t i = c->out.index[r] == WN_PRUNE_NO_INDEX ? NO_CODE : c->out.index[r];
        if ((i | (uint32_t)c->out.flags[r] << 12) != codes[r])
            fail_msg("%s: row %u is patch %u flags %u, not patch %u flags %u", what, r, i,
                     c->out.flags[r], codes[r] & 0xfff, codes[r] >> 12);
        if (c->out.flags[r])
            sum += checksum(r, c->values + (size_t)r * c->in.shape.width, c->in.shape.width,
                            &size);
    }
    if (!(fabs(sum - sums[0]) <= 1e-9 * size))
        fail_msg("%s: rows sum to %.17g, not %.17g (of %g)", what, sum, sums[0], size);
    score = c->out.scored ? checksum(0, c->out.scores, c->in.shape.rows, &score_size) : 0;
    if (!(fabs(score - sums[1]) <= 1e-9 * score_size))
        fail_msg("%s: scores sum to %.17g, not %.17g", what, score, sums[1]);
}

/* Features as bfloat16: the numbers are small integers, so none is lost. */
static void halve(struct prune_case *c, uint16_t **half)
{
    const size_t width = c->in.shape.width, n = c->in.shape.rows * width;

    *half = malloc((n + width) * sizeof(**half));
    WN_ASSERT(*half);
    for (size_t i = 0; i < n; i++) (*half)[i] = wn_f32_to_bf16(c->x[i]);
    for (size_t i = 0; i < width; i++) (*half)[n + i] = wn_f32_to_bf16(c->cls_row[i]);
    c->in.features = *half;
    c->in.taps.cls_row = *half + n;
    c->in.dtype = WN_BF16;
}

/* Goes on behind a case's results. */
static void skip_case(FILE *f)
{
    for (uint32_t m = 0; m < METHODS; m++) {
        uint16_t rows;
        must_read(&rows, sizeof(rows), f);
        if (rows != REFUSED) assert_int_equal(fseek(f, rows * 2 + 2 * (long)sizeof(double), SEEK_CUR), 0);
    }
}

static void run_case(FILE *f, uint32_t t)
{
    const struct wn_prune_shape *s = &shapes[t % 8 != 7 || t % 32 == 7 ? t % 8 : 0];
    const uint32_t object = (s->feature_layer * 8 + 11) / 22;
    uint16_t *half = NULL;
    struct prune_case c;

    case_init(&c, *s, 4);
    make_case(&c, t);
    if (t % 2) halve(&c, &half);
    for (uint32_t m = 0; m < METHODS; m++) {
        const struct wn_prune_method *method;
        struct wn_prune_wants w;
        struct wn_err err = {0};
        char what[64];
        uint16_t rows, codes[1024];
        double sums[2];
        wn_status rc;

        c.in.ask = make_ask(t, m, s->rows);
        method = wn_prune_find(methods[m].name, &err);
        snprintf(what, sizeof(what), "case %u, %s%s", t, methods[m].name,
                 methods[m].setting == WN_PRUNE_PAPER ? " (paper)" : "");
        /* more layers are there than are wanted: the right ones must be found */
        c.in.taps.cls_layers = (uint64_t)1 | (uint64_t)1 << s->feature_layer;
        c.in.taps.mean_layers = (uint64_t)1 | (uint64_t)1 << object | (uint64_t)1 << s->feature_layer;
        wn_prune_wants(method, &c.in.ask, s->feature_layer, &w);
        c.in.taps.keys_layers = w.keys_layers;
        must_read(&rows, sizeof(rows), f);
        rc = case_run(&c, method, &err);
        if (rows == REFUSED) {
            assert_int_equal(rc, WN_EUNSUPP);
            continue;
        }
        if (rc != WN_OK) fail_msg("%s: %s", what, err.text);
        assert_in_range(rows, 1, 577);
        must_read(codes, rows * sizeof(*codes), f);
        must_read(sums, sizeof(sums), f);
        compare(&c, rows, codes, sums, what);
    }
    free(half);
    case_fini(&c);
}

static void equals_numpy(void **state)
{
    FILE *f = fopen(GOLDEN, "rb");
    uint32_t head[3];

    (void)state;
    assert_non_null(f);
    must_read(head, sizeof(head), f);
    assert_memory_equal(head, "WNPR", 4);
    assert_int_equal(head[1], 200);
    assert_int_equal(head[2], METHODS);
    for (uint32_t t = 0; t < head[1]; t++) {
        if (t % every == 0) run_case(f, t);
        else skip_case(f);
    }
    assert_int_equal(fgetc(f), EOF);
    fclose(f);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(equals_numpy)};
    if (argc > 1) every = (uint32_t)strtoul(argv[1], NULL, 10);
    if (every == 0) return 2;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
