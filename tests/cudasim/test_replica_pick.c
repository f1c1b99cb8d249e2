/* A replica whose device picks the tokens, on the simulated device: every job gets the tokens, and the likelihoods,
 * that the sampler takes from the logits of another stage, whatever its options and its neighbours'. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/replica.h"
#include "shard/sample.h"
#include "tests/cudasim/cuda_runtime_api.h"

#define JOBS   5
#define PROMPT 3
#define STEPS  10
#define PAGE   16
#define MODEL  "tests/golden/llava-a"

static const struct {
    struct wn_sample_opts o;
    uint32_t logprobs; /* as struct wn_step_open */
} jobs[JOBS] = {
    {{.temperature = 0.0f, .top_p = 1.0f, .repetition_penalty = 1.0f}, 0},
    {{.temperature = 0.8f, .top_p = 1.0f, .repetition_penalty = 1.0f, .seed = 11}, 0},
    {{.temperature = 0.9f, .top_p = 0.9f, .top_k = 50, .repetition_penalty = 1.3f, .seed = 12}, 0},
    {{.temperature = 0.0f, .top_p = 1.0f, .repetition_penalty = 1.0f}, 1 + 3},
    {{.temperature = 1.5f, .top_p = 0.7f, .repetition_penalty = 1.0f, .seed = 13}, 0},
};

static struct wn_model model;
static struct wn_plan plan;
static struct wn_sampler *sampler;
static uint32_t history[JOBS][PROMPT + STEPS], length[JOBS];
static float *logits; /* [JOBS, vocab] */

/* Rows [from, length) of every job, as a record. */
static void fill(struct wn_step_record *rec, uint32_t from)
{
    for (uint32_t j = 0; j < JOBS; j++) {
        if (from == 0)
            rec->opens[rec->opens_n++] = (struct wn_step_open){.slot = j,
                                                               .temperature = jobs[j].o.temperature,
                                                               .top_k = jobs[j].o.top_k,
                                                               .top_p = jobs[j].o.top_p,
                                                               .repetition_penalty = jobs[j].o.repetition_penalty,
                                                               .logprobs = jobs[j].logprobs,
                                                               .seed = jobs[j].o.seed};
        rec->pages[rec->pages_n] = j;
        rec->seqs[rec->seqs_n++] = (struct wn_step_seq){.slot = j,
                                                        .first_row = rec->rows_n,
                                                        .rows = length[j] - from,
                                                        .pos = from,
                                                        .first_page = rec->pages_n++,
                                                        .pages = 1,
                                                        .sample = 1};
        for (uint32_t i = from; i < length[j]; i++)
            rec->rows[rec->rows_n++] =
                (struct wn_step_row){.id = history[j][i], .features = WN_STEP_NO_FEATURES, .position = i};
    }
}

/* The same rows on a stage of its own. */
static void run_alone(struct wn_stage *stage, uint32_t from)
{
    uint32_t token[JOBS * PROMPT], wanted[JOBS], pages[JOBS], rows = 0;
    struct wn_seq seqs[JOBS];
    struct wn_err err = {0};

    for (uint32_t j = 0; j < JOBS; j++) {
        pages[j] = j;
        seqs[j] = (struct wn_seq){.first_row = rows, .rows = length[j] - from, .pos = from, .pages = &pages[j]};
        for (uint32_t i = from; i < length[j]; i++) token[rows++] = history[j][i];
        wanted[j] = rows - 1;
    }
    const struct wn_step step = {
        .rows = rows, .token = token, .seqs_n = JOBS, .seqs = seqs, .wanted_n = JOBS, .wanted = wanted};
    if (wn_stage_run(stage, &step, WN_NEVER, logits, &err) != WN_OK) fail_msg("%s", err.text);
}

static void check_job(struct wn_replica *r, uint32_t j, const struct wn_step_token *got)
{
    const float *row = logits + (size_t)j * model.text.vocab;
    const struct wn_step_top *top;
    struct wn_sampled want, likely[WN_STEP_TOP_MAX];
    uint32_t n = 0;

    assert_int_equal(wn_sampler_pick(sampler, &jobs[j].o, row, history[j], length[j], length[j], false, &want, NULL),
                     WN_OK);
    assert_int_equal(got->id, want.token);
    top = wn_replica_top(r, j, &n);
    assert_int_equal(n, jobs[j].logprobs ? jobs[j].logprobs - 1 : 0);
    if (!jobs[j].logprobs) return;
    wn_sampler_logprobs(sampler, row, want.token, &want.logprob, likely, n);
    assert_memory_equal(&got->logprob, &want.logprob, sizeof(float));
    for (uint32_t i = 0; i < n; i++) assert_int_equal(top[i].id, likely[i].token);
}

static void same_tokens(void **state)
{
    const struct wn_step_limits limits = {.rows_max = JOBS * PROMPT,
                                          .seqs_max = JOBS,
                                          .pages_max = JOBS,
                                          .table_max = JOBS,
                                          .features_max = 1,
                                          .page_tokens = PAGE,
                                          .vocab = model.text.vocab,
                                          .positions_max = model.text.positions_max};
    struct wn_replica_opts ro = {.plan = &plan, .limits = limits, .tokens_max = PAGE, .step_timeout_us = 60000000};
    struct wn_stage_opts so = {.plan = &plan, .pages = JOBS, .page_tokens = PAGE, .rows_max = limits.rows_max,
                               .seqs_max = JOBS, .wanted_max = JOBS};
    struct wn_replica *r = NULL;
    struct wn_stage *alone = NULL;
    struct wn_weights *w = NULL;
    struct wn_backend *be = NULL;
    (void)state;

    assert_int_equal(wn_backend_open(&be, "cuda", 0, NULL), WN_OK);
    assert_int_equal(wn_weights_open(&w, MODEL, NULL), WN_OK);
    ro.be = so.be = be;
    ro.weights = so.weights = w;
    assert_int_equal(wn_replica_open(&r, &ro, NULL), WN_OK);
    assert_int_equal(wn_stage_open(&alone, &so, NULL), WN_OK);
    assert_true(wn_stage_can_pick(alone));
    wn_weights_close(w);
    for (uint32_t j = 0; j < JOBS; j++)
        for (length[j] = 0; length[j] < PROMPT; length[j]++) history[j][length[j]] = 5 + 31 * j + 7 * length[j];
    for (uint32_t s = 0; s < STEPS; s++) {
        const uint32_t from = s == 0 ? 0 : length[0] - 1;
        struct wn_step_token tokens[JOBS];
        struct wn_err err = {0};
        uint32_t n = 0;
        fill(wn_replica_record(r), from);
        if (wn_replica_begin(r, NULL, &err) != WN_OK) fail_msg("%s", err.text);
        assert_int_equal(wn_replica_collect(r, tokens, &n, NULL, NULL), WN_OK);
        assert_int_equal(n, JOBS);
        run_alone(alone, from);
        for (uint32_t j = 0; j < JOBS; j++) check_job(r, j, &tokens[j]);
        for (uint32_t j = 0; j < JOBS; j++) history[j][length[j]++] = tokens[j].id;
    }
    wn_stage_close(alone);
    wn_replica_close(r);
    wn_backend_close(be);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {cmocka_unit_test(same_tokens)};
    int bad;

    setenv("WINNOW_CUDA_KERNELS", "exact", 1);
    if (wn_model_open(&model, MODEL, NULL) != WN_OK) return 1;
    model.text.layers = 1; /* all make the same calls */
    logits = malloc((size_t)JOBS * model.text.vocab * sizeof(float));
    if (!logits || wn_plan_make(&plan, &model, 1, 1, NULL, WN_BF16, NULL) != WN_OK) return 1;
    if (wn_sampler_create(&sampler, model.text.vocab, NULL) != WN_OK) return 1;
    bad = cmocka_run_group_tests(tests, NULL, NULL);
    wn_sampler_destroy(sampler);
    free(logits);
    return bad != 0;
}
