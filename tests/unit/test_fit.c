/* What the ranks of a replica agree on before they load, and that a stage then takes what was counted. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/fit.h"
#include "shard/decoder.h"
#include "transport/link.h"

#define RANKS 4
#define GB    1000000000ull

/* A CPU backend that counts what it lends, and says what we want of its memory. */
struct counted {
    struct wn_backend_ops ops;
    struct wn_memory memory;
    uint64_t bufs, weights;
};

static struct counted counts[RANKS];

static struct counted *of(struct wn_backend *be)
{
    for (int i = 0; i < RANKS; i++)
        if (be->ops == &counts[i].ops) return &counts[i];
    abort();
}

static wn_status said_memory(struct wn_backend *be, struct wn_memory *out)
{
    *out = of(be)->memory;
    return WN_OK;
}

static wn_status count_buf(struct wn_backend *be, size_t bytes, struct wn_buf *out)
{
    of(be)->bufs += bytes;
    return wn_backend_cpu_reference.buf_alloc(be, bytes, out);
}

static wn_status count_weight(struct wn_backend *be, struct wn_weight **out, const struct wn_mat *host, wn_dtype as)
{
    of(be)->weights += (uint64_t)host->rows * host->cols * wn_dtype_bytes(as);
    return wn_backend_cpu_reference.weight_create(be, out, host, as);
}

static wn_status count_int8(struct wn_backend *be, struct wn_weight **out, const struct wn_mat *host, uint32_t slices)
{
    of(be)->weights += (uint64_t)host->rows * (host->cols + slices * sizeof(float));
    return wn_backend_cpu_reference.weight_i8(be, out, host, slices);
}

static struct wn_backend *open_counted(int i)
{
    struct wn_backend *be = NULL;
    assert_int_equal(wn_backend_open(&be, "cpu-reference", 0, NULL), WN_OK);
    counts[i] = (struct counted){.ops = *be->ops};
    counts[i].ops.memory = said_memory;
    counts[i].ops.buf_alloc = count_buf;
    counts[i].ops.weight_create = count_weight;
    counts[i].ops.weight_i8 = count_int8;
    be->ops = &counts[i].ops;
    return be;
}

static void close_counted(struct wn_backend *be)
{
    be->ops = &wn_backend_cpu_reference;
    wn_backend_close(be);
}

struct rank {
    struct wn_fit fit;
    struct wn_group group;
    struct wn_step_limits step;
    bool refused;
    struct wn_err err;
    wn_status rc;
};

static void *run_rank(void *arg)
{
    struct rank *r = arg;
    r->rc = wn_link_open(&r->fit.link, "local", &r->group, &r->err);
    r->fit.deadline_us = wn_deadline_in_us(10000000);
    if (r->rc == WN_OK) r->rc = wn_fit_agree(&r->step, &r->fit, &r->refused, &r->err);
    return NULL;
}

static int odd_rank = -1; /* has int8 weights */

/* All ranks of 13B, 2 x 2, find what `memory` says. */
static void agree(struct rank ranks[RANKS], struct wn_config *cfg, const struct wn_memory memory[RANKS])
{
    struct wn_local_hub *hub = NULL;
    struct wn_step_limits step;
    struct wn_model model;
    struct wn_plan plan, odd;
    uint32_t tokens_max = 0;
    pthread_t threads[RANKS];

    assert_int_equal(wn_model_open(&model, "tests/golden/config/llava-1.5-13b.json", NULL), WN_OK);
    assert_int_equal(wn_plan_make(&plan, &model, 2, 2, NULL, WN_BF16, NULL), WN_OK);
    odd = plan;
    odd.linear = WN_I8;
    assert_int_equal(wn_fit_step(&step, &tokens_max, cfg, &model, NULL), WN_OK);
    assert_int_equal(wn_local_hub_create(&hub, RANKS, NULL), WN_OK);
    for (int i = 0; i < RANKS; i++) {
        struct wn_backend *be = open_counted(i);
        counts[i].memory = memory[i];
        ranks[i] = (struct rank){.fit = {.cfg = cfg, .plan = i == odd_rank ? &odd : &plan, .be = be,
                                         .rank = (uint32_t)i, .tokens_max = tokens_max},
                                 .group = {.hub = hub, .rank = i, .size = RANKS},
                                 .step = step};
    }
    for (int i = 0; i < RANKS; i++) assert_int_equal(pthread_create(&threads[i], NULL, run_rank, &ranks[i]), 0);
    for (int i = 0; i < RANKS; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < RANKS; i++) {
        wn_link_close(ranks[i].fit.link);
        close_counted(ranks[i].fit.be);
    }
    wn_local_hub_destroy(hub);
}

static void devices_of_their_own(void **state)
{
    const struct wn_memory memory[RANKS] = {{.free_bytes = 24 * GB, .id = "a"},
                                            {.free_bytes = 24 * GB, .id = "b"},
                                            {.free_bytes = 16 * GB, .id = "c"},
                                            {.free_bytes = 24 * GB, .id = "d"}};
    struct rank ranks[RANKS];
    struct wn_memory_limits limits;
    struct wn_config cfg;
    (void)state;

    wn_config_defaults(&cfg);
    agree(ranks, &cfg, memory);
    limits = wn_fit_limits(&cfg, &ranks[0].step, ranks[0].fit.tokens_max, 16 * GB);
    assert_int_equal(limits.pages_min, 256); /* 4096 tokens */
    for (int i = 0; i < RANKS; i++) {
        assert_int_equal(ranks[i].rc, WN_OK);
        assert_false(ranks[i].refused);
        assert_int_equal(ranks[i].step.pages_max, ranks[0].step.pages_max);
    }
    /* what the smallest device holds, with its tenth kept free: 6.5 of 14.4 GB are weights */
    assert_true(ranks[0].step.pages_max > 2200 && ranks[0].step.pages_max < 2450);
}

static void one_device_for_two(void **state)
{
    struct wn_memory memory[RANKS] = {{.free_bytes = 24 * GB, .id = "a"},
                                      {.free_bytes = 24 * GB, .id = "a"},
                                      {.free_bytes = 24 * GB, .id = "b"},
                                      {.free_bytes = 24 * GB, .id = "b"}};
    struct rank ranks[RANKS];
    struct wn_config cfg;
    uint32_t one, two;
    (void)state;

    wn_config_defaults(&cfg);
    agree(ranks, &cfg, memory);
    for (int i = 0; i < RANKS; i++) assert_int_equal(ranks[i].rc, WN_OK);
    /* 13 of 21.6 GB are weights, and a page of two ranks is 6.6 MB */
    assert_true(ranks[3].step.pages_max > 1150 && ranks[3].step.pages_max < 1300);
    one = ranks[3].step.pages_max;
    memory[2].free_bytes = 22 * GB; /* as the first of two found it, and as the other did: the less counts */
    agree(ranks, &cfg, memory);
    assert_true(ranks[0].rc == WN_OK && ranks[0].step.pages_max < one - 200);
    two = ranks[0].step.pages_max;
    memory[2].free_bytes = 24 * GB;
    memory[3].free_bytes = 22 * GB;
    agree(ranks, &cfg, memory);
    assert_true(ranks[0].rc == WN_OK && ranks[0].step.pages_max == two);
    memory[3].free_bytes = 24 * GB;
    memory[0].free_bytes = 20 * GB; /* rank 0's device is one of them */
    agree(ranks, &cfg, memory);
    assert_true(ranks[0].rc == WN_OK && ranks[0].step.pages_max < two - 200);
    memory[0].free_bytes = 24 * GB;
    cfg.kv_pages = 2000; /* so many were asked for: fewer are a refusal, and everybody's */
    agree(ranks, &cfg, memory);
    for (int i = 0; i < RANKS; i++) {
        assert_int_equal(ranks[i].rc, WN_ENOMEM);
        assert_true(ranks[i].refused);
        assert_non_null(strstr(ranks[i].err.text, "2 ranks that share a device need"));
        assert_string_equal(ranks[i].err.text, ranks[0].err.text);
    }
    for (int i = 0; i < RANKS; i++) memory[i].id[0] = (char)('a' + i);
    agree(ranks, &cfg, memory);
    for (int i = 0; i < RANKS; i++) assert_int_equal(ranks[i].rc, WN_OK);
    assert_int_equal(ranks[0].step.pages_max, 2000);
}

/* Ranks that are to compute in different types would not compute one model: all leave. */
static void types_differ(void **state)
{
    const struct wn_memory memory[RANKS] = {
        {.free_bytes = 24 * GB, .id = "a"}, {.free_bytes = 24 * GB, .id = "b"}, {.free_bytes = 24 * GB, .id = "c"},
        {.free_bytes = 24 * GB, .id = "d"}};
    struct rank ranks[RANKS];
    struct wn_config cfg;
    (void)state;

    wn_config_defaults(&cfg);
    odd_rank = 2;
    agree(ranks, &cfg, memory);
    odd_rank = -1;
    for (int i = 0; i < RANKS; i++) {
        assert_int_equal(ranks[i].rc, WN_EINVAL);
        assert_true(ranks[i].refused);
        assert_non_null(strstr(ranks[i].err.text, "rank 2 has another --dtype or --quantization than rank 0"));
    }
}

/* What the options make of the model's positions. */
static void step_limits(void **state)
{
    struct wn_model model;
    struct wn_step_limits step;
    struct wn_config cfg;
    struct wn_err err = {0};
    uint32_t tokens_max = 0;
    (void)state;

    wn_config_defaults(&cfg);
    assert_int_equal(wn_model_open(&model, "tests/golden/config/llava-1.5-13b.json", NULL), WN_OK);
    cfg.max_num_seqs = 10;
    cfg.block_size = 16;
    cfg.max_model_len = 1000;
    assert_int_equal(wn_fit_step(&step, &tokens_max, &cfg, &model, &err), WN_OK);
    assert_int_equal(tokens_max, 1000);
    assert_int_equal(step.pages_max, 10 * 63);
    assert_int_equal(step.table_max, 10 * 63);
    assert_int_equal(step.positions_max, 4096);
    cfg.max_num_batched_tokens = 4; /* a step has no more jobs than rows */
    assert_int_equal(wn_fit_step(&step, &tokens_max, &cfg, &model, &err), WN_OK);
    assert_int_equal(step.seqs_max, 4);
    assert_int_equal(step.table_max, 4 * 63);
    cfg.max_model_len = 4097;
    assert_int_equal(wn_fit_step(&step, &tokens_max, &cfg, &model, &err), WN_ELIMIT);
    assert_non_null(strstr(err.text, "--max-model-len 4097: the model has positions for 4096 tokens"));
}

/* A machine that does not hold the model says so before anything starts. */
static void host(void **state)
{
    struct wn_model model;
    struct wn_plan plan;
    struct wn_config cfg;
    struct wn_err err = {0};
    (void)state;

    wn_config_defaults(&cfg);
    assert_int_equal(wn_model_open(&model, "models/tiny-llava", NULL), WN_OK);
    assert_int_equal(wn_plan_make(&plan, &model, 2, 2, NULL, WN_F32, NULL), WN_OK);
    assert_int_equal(wn_fit_host(&cfg, &plan, &err), WN_OK);
    cfg.kv_pages = 1u << 24; /* terabytes */
    cfg.block_size = 1024;
    assert_int_equal(wn_fit_host(&cfg, &plan, &err), WN_ENOMEM);
    assert_non_null(strstr(err.text, "4 ranks that share a device need"));
}

/* A stage takes the memory that was counted for it, to the byte. */
static void stages_take_what_was_counted(void **state)
{
    static const uint32_t layouts[][2] = {{1, 1}, {2, 1}, {1, 2}, {2, 2}, {1, 4}, {2, 2}}; /* the last two int8 */
    struct wn_model model;
    struct wn_weights *weights = NULL;
    (void)state;

    assert_int_equal(wn_model_open(&model, "models/tiny-llava", NULL), WN_OK);
    assert_int_equal(wn_weights_open(&weights, "models/tiny-llava", NULL), WN_OK);
    for (size_t i = 0; i < sizeof(layouts) / sizeof(layouts[0]); i++) {
        const int n = (int)(layouts[i][0] * layouts[i][1]);
        struct wn_local_hub *hub = NULL;
        struct wn_link *links[RANKS] = {NULL};
        struct wn_plan plan;
        const wn_dtype type = i % 2 ? WN_F32 : WN_BF16;
        assert_int_equal(wn_plan_make(&plan, &model, layouts[i][0], layouts[i][1], NULL, type, NULL), WN_OK);
        if (i > 3) plan.linear = WN_I8;
        assert_int_equal(wn_local_hub_create(&hub, n, NULL), WN_OK);
        for (int r = 0; r < n; r++) {
            const struct wn_memory_limits limits = {.device_bytes = 100 * GB, .page_tokens = 16, .pages_min = 1,
                                                    .rows_max = 96, .wanted_max = 5, .slots = 2};
            const struct wn_group group = {.hub = hub, .rank = r, .size = n};
            struct wn_stage_opts o = {.plan = &plan, .weights = weights, .rank = (uint32_t)r, .pages = 40,
                                      .page_tokens = 16, .rows_max = 96, .seqs_max = 7, .wanted_max = 5, .slots = 2};
            struct wn_memory_plan need;
            struct wn_stage *stage = NULL;
            o.be = open_counted(r);
            assert_int_equal(wn_link_open(&links[r], "local", &group, NULL), WN_OK);
            o.link = links[r];
            assert_int_equal(wn_stage_open(&stage, &o, NULL), WN_OK);
            assert_int_equal(wn_plan_memory(&need, &plan, (uint32_t)r, &limits, NULL), WN_OK);
            assert_int_equal(counts[r].bufs + counts[r].weights,
                             need.weight_bytes + need.step_bytes + need.feature_bytes + 40 * need.page_bytes);
            wn_stage_close(stage);
            close_counted(o.be);
        }
        for (int r = 0; r < n; r++) wn_link_close(links[r]);
        wn_local_hub_destroy(hub);
    }
    wn_weights_close(weights);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(devices_of_their_own), cmocka_unit_test(one_device_for_two), cmocka_unit_test(types_differ),
        cmocka_unit_test(step_limits),          cmocka_unit_test(host),
        cmocka_unit_test(stages_take_what_was_counted)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
