/* The sampler: the distribution after each filter against Transformers' processors (tests/golden/sampler), edges and
 * ties, draws that depend on nothing but seed and position, and refusals. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "shard/draw.h"
#include "shard/sample.h"

#define VOCAB_MAX 128
#define DRAWS     20000

static uint32_t pick(struct wn_sampler *s, const struct wn_sample_opts *o, const float *logits,
                     uint64_t position)
{
    struct wn_sampled got;
    struct wn_err err = {0};
    if (wn_sampler_pick(s, o, logits, NULL, 0, position, false, &got, &err))
        fail_msg("%s", err.text);
    return got.token;
}

/* Known answers of the generator's authors (Random123, philox4x32 with 10 rounds). */
static void test_philox(void **state)
{
    const struct {
        uint32_t counter[4], key[2], want[4];
    } known[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    (void)state;
    for (size_t i = 0; i < 3; i++) {
        uint32_t out[4];
        wn_draw_philox(known[i].counter, known[i].key, out);
        assert_memory_equal(out, known[i].want, sizeof(out));
    }
}

struct sample_case {
    struct wn_sample_opts o;
    uint32_t vocab, context_n, context[VOCAB_MAX];
    float logits[VOCAB_MAX];
    double probs[VOCAB_MAX];
};

static int read_case(FILE *f, struct sample_case *c)
{
    memset(c, 0, sizeof(*c));
    if (fscanf(f, " case %f %u %f %f %u %u", &c->o.temperature, &c->o.top_k, &c->o.top_p,
               &c->o.repetition_penalty, &c->vocab, &c->context_n) != 6)
        return 0;
    assert_true(c->vocab <= VOCAB_MAX && c->context_n <= VOCAB_MAX);
    for (uint32_t i = 0; i < c->context_n; i++)
        assert_int_equal(fscanf(f, "%u", &c->context[i]), 1);
    for (uint32_t i = 0; i < c->vocab; i++) assert_int_equal(fscanf(f, "%f", &c->logits[i]), 1);
    for (uint32_t i = 0; i < c->vocab; i++) assert_int_equal(fscanf(f, "%lf", &c->probs[i]), 1);
    return 1;
}

/* Chi-square of the draws; tokens that are expected less than 5 times are put together. Returns it in units of its own
 * standard deviation above its mean (degrees of freedom). */
static double chi_square(const uint32_t *count, const double *probs, uint32_t vocab)
{
    double chi = 0.0, rest = 0.0, rest_count = 0.0;
    int cells = -1;

    for (uint32_t i = 0; i < vocab; i++) {
        double want = probs[i] * DRAWS;
        if (want == 0.0) assert_int_equal(count[i], 0); /* filtered out: must not come */
        if (want < 5.0) {
            rest += want;
            rest_count += count[i];
            continue;
        }
        chi += (count[i] - want) * (count[i] - want) / want;
        cells++;
    }
    if (rest >= 5.0) {
        chi += (rest_count - rest) * (rest_count - rest) / rest;
        cells++;
    }
    return cells > 0 ? (chi - cells) / sqrt(2.0 * cells) : 0.0;
}

static void test_distribution_is_that_of_transformers(void **state)
{
    static struct sample_case c;
    FILE *f = fopen("tests/golden/sampler/cases.txt", "r");
    int cases = 0;
    (void)state;

    assert_non_null(f);
    while (read_case(f, &c)) {
        struct wn_sampler *s = NULL;
        uint32_t count[VOCAB_MAX] = {0};
        double z;
        assert_int_equal(wn_sampler_create(&s, c.vocab, NULL), WN_OK);
        c.o.seed = 1000 + (uint64_t)cases;
        for (uint64_t i = 0; i < DRAWS; i++) {
            struct wn_sampled got;
            assert_int_equal(
                wn_sampler_pick(s, &c.o, c.logits, c.context, c.context_n, i, false, &got, NULL),
                WN_OK);
            count[got.token]++;
        }
        z = chi_square(count, c.probs, c.vocab);
        print_message("    case %d: chi-square %.2f deviations from its mean\n", cases, z);
        assert_true(z < 4.0);
        wn_sampler_destroy(s);
        cases++;
    }
    fclose(f);
    assert_int_equal(cases, 11);
}

static void test_greedy_and_ties(void **state)
{
    const float logits[8] = {1, 3, 2, 3, 0, 3, -1, 2};
    struct wn_sample_opts o = WN_SAMPLE_GREEDY;
    struct wn_sampler *s = NULL;
    struct wn_sampled got;
    uint32_t context[] = {1, 1, 1, 6};
    uint32_t seen = 0;
    (void)state;

    assert_int_equal(wn_sampler_create(&s, 8, NULL), WN_OK);
    assert_int_equal(pick(s, &o, logits, 0), 1);
    o.repetition_penalty = 1.1f; /* id 1 falls behind its equals */
    assert_int_equal(wn_sampler_pick(s, &o, logits, context, 4, 0, false, &got, NULL), WN_OK);
    assert_int_equal(got.token, 3);
    o = (struct wn_sample_opts){
        .temperature = 1.0f, .top_k = 2, .top_p = 1.0f, .repetition_penalty = 1.0f};
    for (uint64_t i = 0; i < 200; i++) seen |= 1u << pick(s, &o, logits, i);
    assert_int_equal(seen, 1u << 1 | 1u << 3); /* of three equal logits the two lowest ids */
    o = (struct wn_sample_opts){.temperature = 1.0f, .top_p = 0.5f, .repetition_penalty = 1.0f};
    for (uint64_t i = seen = 0; i < 200; i++) seen |= 1u << pick(s, &o, logits, i);
    assert_int_equal(seen, 1u << 1 | 1u << 3); /* 0.27 each: two of them are more than a half */
    o.top_p = 1e-30f;
    for (uint64_t i = seen = 0; i < 50; i++) seen |= 1u << pick(s, &o, logits, i);
    assert_int_equal(seen, 1u << 1); /* one always stays */
    o = (struct wn_sample_opts){.temperature = 1e-30f, .top_p = 1.0f, .repetition_penalty = 1.0f};
    for (uint64_t i = seen = 0; i < 200; i++) seen |= 1u << pick(s, &o, logits, i);
    assert_int_equal(seen,
                     1u << 1 | 1u << 3 | 1u << 5); /* nearly greedy: only the equals are left */
    wn_sampler_destroy(s);
}

/* The id of the largest logit, the lowest of equals, of few values of both signs and both zeros, in any number. */
static void test_greedy_is_the_first_largest(void **state)
{
    static const float values[] = {-3.4e38f, -2.0f, -1e-40f, -0.0f, 0.0f, 1e-40f, 0.5f, 2.0f, 3.4e38f};
    const struct wn_sample_opts o = WN_SAMPLE_GREEDY;
    float logits[40];
    (void)state;

    srand(5);
    for (uint32_t n = 1; n <= 40; n++) {
        struct wn_sampler *s = NULL;
        assert_int_equal(wn_sampler_create(&s, n, NULL), WN_OK);
        for (int round = 0; round < 50; round++) {
            const int below = 1 + rand() % 9;
            uint32_t want = 0;
            for (uint32_t i = 0; i < n; i++) logits[i] = values[rand() % below];
            for (uint32_t i = 1; i < n; i++)
                if (logits[i] > logits[want]) want = i;
            assert_int_equal(pick(s, &o, logits, 0), want);
        }
        wn_sampler_destroy(s);
    }
}

/* The penalty is applied once to an id, however often it was seen, and turns round below zero. */
static void test_penalty_once(void **state)
{
    const float logits[4] = {-1.0f, -1.4f, -9.0f, -9.0f};
    uint32_t context[] = {0, 0, 0, 0, 0, 0};
    struct wn_sample_opts o = WN_SAMPLE_GREEDY;
    struct wn_sampler *s = NULL;
    struct wn_sampled got;
    (void)state;

    assert_int_equal(wn_sampler_create(&s, 4, NULL), WN_OK);
    for (int i = 0; i < 3; i++) {    /* stamps of the last pick do not count in the next */
        o.repetition_penalty = 1.3f; /* -1.3 is still above -1.4 */
        assert_int_equal(wn_sampler_pick(s, &o, logits, context, 6, 0, false, &got, NULL), WN_OK);
        assert_int_equal(got.token, 0);
        o.repetition_penalty = 1.5f;
        assert_int_equal(wn_sampler_pick(s, &o, logits, context, 6, 0, false, &got, NULL), WN_OK);
        assert_int_equal(got.token, 1);
    }
    wn_sampler_destroy(s);
}

/* No filter: the token is the one where a plain running sum passes u of the whole, whatever leaves and groups of the
 * vocabulary its weight is in. */
static void test_whole_vocabulary(void **state)
{
    static const uint32_t sizes[] = {1, 2, 31, 32, 33, 63, 64, 1023, 1024, 1025, 2500};
    static float logits[2500];
    static double end[2500]; /* of the running sum */
    const struct wn_sample_opts o = {.temperature = 0.5f, .top_p = 1.0f, .repetition_penalty = 1.0f, .seed = 11};
    (void)state;

    for (uint32_t i = 0; i < 2500; i++) logits[i] = (float)((i * 37) % 101) / 50.0f;
    for (size_t k = 0; k < sizeof(sizes) / sizeof(sizes[0]); k++) {
        struct wn_sampler *s = NULL;
        double sum = 0.0;
        for (uint32_t i = 0; i < sizes[k]; i++) end[i] = sum += exp((double)logits[i] / 0.5);
        assert_int_equal(wn_sampler_create(&s, sizes[k], NULL), WN_OK);
        for (uint64_t at = 0; at < 300; at++) {
            const uint32_t got = pick(s, &o, logits, at);
            const double target = wn_draw_uniform(o.seed, at) * sum;
            assert_true(got < sizes[k] && target < end[got] + 1e-9 * sum);
            assert_true(got == 0 || target > end[got - 1] - 1e-9 * sum);
        }
        wn_sampler_destroy(s);
    }
}

/* A replay in another process, after other picks, draws the same; another seed or position does not. */
static void test_draws_depend_on_seed_and_position(void **state)
{
    float logits[VOCAB_MAX];
    struct wn_sampler *a = NULL, *b = NULL;
    struct wn_sample_opts o = {
        .temperature = 1.0f, .top_k = 40, .top_p = 0.95f, .repetition_penalty = 1.0f, .seed = 7};
    struct wn_sample_opts other = o;
    uint32_t first[256], differ = 0;
    (void)state;

    for (uint32_t i = 0; i < VOCAB_MAX; i++) logits[i] = (float)((i * 37) % 101) / 50.0f;
    other.seed = (uint64_t)7 << 32 | 7;
    assert_int_equal(wn_sampler_create(&a, VOCAB_MAX, NULL), WN_OK);
    assert_int_equal(wn_sampler_create(&b, VOCAB_MAX, NULL), WN_OK);
    for (uint32_t i = 0; i < 256; i++) first[i] = pick(a, &o, logits, i);
    for (uint32_t i = 256; i-- > 0;) {
        differ += pick(b, &other, logits, i) != first[i];
        assert_int_equal(pick(b, &o, logits, i), first[i]);
    }
    assert_true(differ > 128);
    for (uint32_t i = differ = 0; i < 255; i++) differ += first[i] != first[i + 1];
    assert_true(differ > 128);
    wn_sampler_destroy(a);
    wn_sampler_destroy(b);
}

static void test_logprob(void **state)
{
    const float logits[3] = {1.0f, 2.0f, 4.0f};
    double sum = exp(1.0) + exp(2.0) + exp(4.0);
    struct wn_sample_opts o = WN_SAMPLE_GREEDY;
    struct wn_sampler *s = NULL;
    struct wn_sampled got;
    uint32_t context[] = {2};
    (void)state;

    assert_int_equal(wn_sampler_create(&s, 3, NULL), WN_OK);
    assert_int_equal(wn_sampler_pick(s, &o, logits, NULL, 0, 0, true, &got, NULL), WN_OK);
    assert_true(fabs((double)got.logprob - (4.0 - log(sum))) < 1e-6);
    o.repetition_penalty = 8.0f; /* changes the pick, not the meaning of its logprob */
    assert_int_equal(wn_sampler_pick(s, &o, logits, context, 1, 0, true, &got, NULL), WN_OK);
    assert_int_equal(got.token, 1);
    assert_true(fabs((double)got.logprob - (2.0 - log(sum))) < 1e-6);
    assert_int_equal(wn_sampler_pick(s, &o, logits, context, 1, 0, false, &got, NULL), WN_OK);
    assert_true(got.logprob == 0.0f);
    wn_sampler_destroy(s);
}

/* The likeliest in falling order, the lower id first among equals, with what pick says of the same token. */
static void test_likeliest(void **state)
{
    const float logits[6] = {1.0f, 4.0f, 2.0f, 4.0f, -3.0f, 2.0f};
    const uint32_t want[6] = {1, 3, 2, 5, 0, 4};
    struct wn_sample_opts o = WN_SAMPLE_GREEDY;
    struct wn_sampler *s = NULL;
    struct wn_sampled got, top[8];
    float chosen;
    double sum = 0;
    (void)state;

    assert_int_equal(wn_sampler_create(&s, 6, NULL), WN_OK);
    assert_int_equal(wn_sampler_pick(s, &o, logits, NULL, 0, 0, true, &got, NULL), WN_OK);
    assert_int_equal(wn_sampler_logprobs(s, logits, got.token, &chosen, top, 8), 6);
    assert_true(chosen == got.logprob && chosen == top[0].logprob);
    for (uint32_t i = 0; i < 6; i++) {
        assert_int_equal(top[i].token, want[i]);
        sum += exp((double)top[i].logprob);
    }
    assert_true(fabs(sum - 1) < 1e-6);
    for (uint32_t n = 0; n < 6; n++) {
        assert_int_equal(wn_sampler_logprobs(s, logits, 4, &chosen, top, n), n);
        for (uint32_t i = 0; i < n; i++) assert_int_equal(top[i].token, want[i]);
    }
    wn_sampler_destroy(s);
}

static void test_refusals(void **state)
{
    float logits[4] = {0, 1, 2, 3};
    const struct wn_sample_opts good = {
        .temperature = 1.0f, .top_p = 1.0f, .repetition_penalty = 1.0f};
    struct wn_sample_opts o;
    struct wn_sampler *s = NULL;
    struct wn_sampled got = {.token = 99};
    uint32_t context[] = {4};
    (void)state;

#define BAD(field, value)                                                                          \
    do {                                                                                           \
        o = good;                                                                                  \
        o.field = (value);                                                                         \
        assert_int_equal(wn_sample_opts_check(&o, NULL), WN_EINVAL);                               \
    } while (0)
    assert_int_equal(wn_sample_opts_check(&good, NULL), WN_OK);
    BAD(temperature, -0.1f);
    BAD(temperature, NAN);
    BAD(temperature, INFINITY);
    BAD(top_p, 0.0f);
    BAD(top_p, 1.01f);
    BAD(top_p, NAN);
    BAD(repetition_penalty, 0.0f);
    BAD(repetition_penalty, -1.0f);
    BAD(repetition_penalty, NAN);
#undef BAD
    assert_int_equal(wn_sampler_create(&s, 0, NULL), WN_EINVAL);
    assert_int_equal(wn_sampler_create(&s, 4, NULL), WN_OK);
    assert_int_equal(wn_sampler_pick(s, &o, logits, NULL, 0, 0, false, &got, NULL), WN_EINVAL);
    o = good;
    o.repetition_penalty = 2.0f;
    assert_int_equal(wn_sampler_pick(s, &o, logits, context, 1, 0, false, &got, NULL), WN_EINVAL);
    logits[2] = NAN;
    assert_int_equal(wn_sampler_pick(s, &good, logits, NULL, 0, 0, false, &got, NULL), WN_EINVAL);
    logits[2] = INFINITY;
    assert_int_equal(wn_sampler_pick(s, &good, logits, NULL, 0, 0, false, &got, NULL), WN_EINVAL);
    assert_int_equal(got.token, 99);
    wn_sampler_destroy(s);
    wn_sampler_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox),
        cmocka_unit_test(test_distribution_is_that_of_transformers),
        cmocka_unit_test(test_greedy_and_ties),
        cmocka_unit_test(test_greedy_is_the_first_largest),
        cmocka_unit_test(test_penalty_once),
        cmocka_unit_test(test_whole_vocabulary),
        cmocka_unit_test(test_draws_depend_on_seed_and_position),
        cmocka_unit_test(test_logprob),
        cmocka_unit_test(test_likeliest),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
