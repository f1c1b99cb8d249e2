/* Tokens that a backend picks are those of wn_sampler_pick, whatever the options, ties and sizes; and it says which
 * rows it leaves to that. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "shard/pick.h"
#include "shard/sample.h"
#include "tests/conform/backend_suite_parts.h"

/* Scores of a row, in steps of `step`: ties, the coarser the more. Some are far above the others, as in a model's. */
static float score(uint64_t seed, uint32_t row, uint32_t id, float step)
{
    uint64_t u = (seed << 48 | (uint64_t)row << 32 | id) * 0x9e3779b97f4a7c15u;
    u = (u ^ u >> 29) * 0xbf58476d1ce4e5b9u;
    u ^= u >> 32;
    const float v = (float)(u >> 40) * 0x1p-24f * 12.0f - 9.0f + (u % 101 == 0 ? 6.0f : 0.0f);

    return rintf(v / step) * step;
}

struct picked {
    uint32_t left; /* rows that were left to the host */
};

static struct picked pick_case(uint32_t vocab, wn_dtype type, float step, const struct wn_pick *each, uint32_t rows)
{
    struct dev logits = dev_out(be, type, rows, vocab, 8), wide = dev_out(be, WN_F32, rows, vocab, 0);
    struct dev out = dev_out(be, WN_F32, 1, rows, 0);
    const struct wn_picks a = {.logits = logits.m, .each = each, .out = out.buf.ptr};
    struct wn_sampler *sampler = NULL;
    float *values = floats((size_t)rows * vocab);
    uint32_t *got = calloc(rows, sizeof(*got));
    struct picked r = {0};

    assert_non_null(got);
    for (uint32_t i = 0; i < rows; i++)
        for (uint32_t j = 0; j < vocab; j++) values[(size_t)i * vocab + j] = score(vocab, i, j, step);
    assert_int_equal(be->ops->upload(be, wide.buf.ptr, values, (size_t)rows * vocab * sizeof(float)), WN_OK);
    assert_int_equal(wn_be_convert(be, &logits.m, &wide.m), WN_OK);
    dev_read(be, &logits, values); /* as rounded */
    assert_int_equal(be->ops->pick(be, &a), WN_OK);
    assert_int_equal(be->ops->download(be, got, out.buf.ptr, rows * sizeof(*got)), WN_OK);
    assert_int_equal(wn_sampler_create(&sampler, vocab, NULL), WN_OK);
    for (uint32_t i = 0; i < rows; i++) {
        const struct wn_sample_opts o = {.temperature = each[i].temperature,
                                         .top_k = each[i].top_k,
                                         .top_p = each[i].top_p,
                                         .repetition_penalty = 1.0f,
                                         .seed = each[i].seed};
        struct wn_sampled want;
        assert_int_equal(wn_sampler_pick(sampler, &o, values + (size_t)i * vocab, NULL, 0, each[i].position, false,
                                         &want, NULL),
                         WN_OK);
        if (!each[i].wanted) assert_int_equal(got[i], WN_PICK_NONE);
        r.left += each[i].wanted && got[i] == WN_PICK_NONE;
        if (got[i] != WN_PICK_NONE && got[i] != want.token)
            fail_msg("%s: row %u of vocabulary %u, step %g: temperature %g, top_k %u, top_p %g: %u, not %u", be_name, i,
                     vocab, (double)step, (double)o.temperature, o.top_k, (double)o.top_p, got[i], want.token);
    }
    wn_sampler_destroy(sampler);
    free(values);
    free(got);
    dev_free(be, &logits);
    dev_free(be, &wide);
    dev_free(be, &out);
    return r;
}

void pick_as_sampler(void **state)
{
    static const struct wn_pick each[] = {
        {.temperature = 0.0f, .top_p = 1.0f, .wanted = 1},
        {.temperature = 1.0f, .top_p = 1.0f, .wanted = 1, .seed = 1, .position = 7},
        {.temperature = 1e-30f, .top_p = 1.0f, .wanted = 1, .seed = 2, .position = 8},
        {.temperature = 0.7f, .top_p = 1.0f, .top_k = 40, .wanted = 1, .seed = 3, .position = 9},
        {.temperature = 0.5f, .top_p = 0.5f, .wanted = 1, .seed = 4, .position = 1ull << 33},
        {.temperature = 0.0f, .top_p = 1.0f},
        {.temperature = 1.3f, .top_p = 0.8f, .top_k = 64, .wanted = 1, .seed = 5ull << 40, .position = 11},
        {.temperature = 100.0f, .top_p = 1.0f, .wanted = 1, .seed = 6, .position = 12},
        {.temperature = 0.2f, .top_p = 0.95f, .wanted = 1, .seed = 7, .position = 13},
        {.temperature = 2.0f, .top_p = 1.0f, .top_k = 1, .wanted = 1, .seed = 8, .position = 14},
        {.temperature = 1.0f, .top_p = 0.01f, .wanted = 1, .seed = 9, .position = 15},
        {.temperature = 0.9f, .top_p = 1.0f, .top_k = 300, .wanted = 1, .seed = 10, .position = 16},
    };
    static const uint32_t vocabs[] = {1, 2, 31, 33, 257, 1024, 1025, 3001};
    (void)state;

    if (!be->ops->pick) return;
    for (size_t v = 0; v < COUNT(vocabs); v++)
        for (int i = 0; i < 4; i++) {
            const float step = i & 1 ? 0.25f : 0x1p-16f;
            const struct picked r = pick_case(vocabs[v], i & 2 ? WN_BF16 : WN_F32, step, each, COUNT(each));
            if (vocabs[v] <= 1024) assert_int_equal(r.left, 0);
            assert_true(r.left <= 5); /* top_k among too many ties, top_p of too many */
        }
}

/* Many seeds, so that draws end in every part of the sums. */
void pick_seeds(void **state)
{
    enum { ROWS = 48 };
    struct wn_pick each[ROWS];
    (void)state;

    if (!be->ops->pick) return;
    for (uint32_t i = 0; i < ROWS; i++)
        each[i] = (struct wn_pick){.temperature = i % 3 ? 3.0f : 1.0f, .top_p = 1.0f, .wanted = 1, .seed = i,
                                   .position = 1000 - i};
    assert_int_equal(pick_case(2500, WN_BF16, 0x1p-16f, each, ROWS).left, 0);
}

/* What is not settled on the device: a score that is no number, a nucleus of more candidates than it sorts, ties
 * around the last of top_k. */
void pick_left(void **state)
{
    enum { VOCAB = 3000 };
    const struct wn_pick cases[] = {
        {.temperature = 0.0f, .top_p = 1.0f, .wanted = 1},
        {.temperature = 50.0f, .top_p = 0.999f, .wanted = 1},
        {.temperature = 1.0f, .top_p = 1.0f, .top_k = 100, .wanted = 1},
        {.temperature = 1.0f, .top_p = 1.0f, .top_k = 2000, .wanted = 1},
        {.temperature = 1.0f, .top_p = 0.5f, .wanted = 1},
    };
    float *values = floats(VOCAB);
    (void)state;

    for (size_t c = 0; be->ops->pick && c < COUNT(cases); c++) {
        struct dev logits = dev_out(be, WN_F32, 1, VOCAB, 0), out = dev_out(be, WN_F32, 1, 1, 0);
        const struct wn_picks a = {.logits = logits.m, .each = &cases[c], .out = out.buf.ptr};
        uint32_t got = 0;
        for (uint32_t i = 0; i < VOCAB; i++) values[i] = c == 1 ? (float)i * 1e-3f : c == 0 ? -(float)i : 1.0f;
        if (c == 0) values[VOCAB - 1] = NAN;
        assert_int_equal(be->ops->upload(be, logits.buf.ptr, values, VOCAB * sizeof(float)), WN_OK);
        assert_int_equal(be->ops->pick(be, &a), WN_OK);
        assert_int_equal(be->ops->download(be, &got, out.buf.ptr, sizeof(got)), WN_OK);
        if (got != WN_PICK_NONE) fail_msg("%s: case %zu: id %u", be_name, c, got);
        dev_free(be, &logits);
        dev_free(be, &out);
    }
    free(values);
}
