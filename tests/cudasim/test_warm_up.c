/* A stage and a tower that are warm, on the simulated device with its cuBLASLt: requests make it allocate nothing,
 * capture nothing and ask for no algorithm, whatever the mix of prompts, pictures and decodes within the limits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "shard/cuda/cuda.h"
#include "shard/decoder.h"

#define SEQS        6
#define PAGE_TOKENS 16
#define SEQ_PAGES   20 /* 320 tokens */
#define TOKENS_MAX  300
#define ROWS_MAX    150
#define MODEL       "tests/golden/llava-a"

static struct wn_model model;
static struct wn_plan plan;
static struct wn_backend *be;
static struct wn_stage *stage;
static uint32_t pages[SEQS][SEQ_PAGES], length[SEQS];
static struct wn_err err;

#define MUST(call)                                                \
    do {                                                          \
        if ((call) != WN_OK) fail_msg("%s: %s", #call, err.text); \
    } while (0)

struct made {
    unsigned long allocations, captures;
    uint64_t asked;
};

static struct made made(void)
{
    const struct wn_cuda *c = (const struct wn_cuda *)be;

    return (struct made){sim_counts.allocations, sim_counts.captures, wn_cuda_lt_asked(c->lt)};
}

static void check_nothing(struct made before, const char *what, uint32_t n)
{
    const struct made now = made();

    if (memcmp(&before, &now, sizeof(now)) != 0)
        fail_msg("%s of %u: %lu allocations, %lu captures, %llu algorithms", what, n,
                 now.allocations - before.allocations, now.captures - before.captures,
                 (unsigned long long)(now.asked - before.asked));
}

static int setup(void **state)
{
    struct wn_weights *w = NULL;
    struct wn_stage_opts o;
    (void)state;

    MUST(wn_model_open(&model, MODEL, &err));
    model.text.positions_max = SEQ_PAGES * PAGE_TOKENS;
    model.text.layers = 1;
    MUST(wn_plan_make(&plan, &model, 1, 1, NULL, WN_BF16, &err));
    MUST(wn_backend_open(&be, "cuda", 0, &err));
    assert_non_null(((struct wn_cuda *)be)->lt);
    MUST(wn_weights_open(&w, MODEL, &err));
    o = (struct wn_stage_opts){.be = be, .plan = &plan, .weights = w, .pages = SEQS * SEQ_PAGES,
                               .page_tokens = PAGE_TOKENS, .rows_max = ROWS_MAX, .seqs_max = SEQS,
                               .wanted_max = SEQS, .slots = 2};
    MUST(wn_stage_open(&stage, &o, &err));
    wn_weights_close(w);
    MUST(wn_stage_warm_up(stage, TOKENS_MAX, WN_NEVER, &err));
    for (uint32_t s = 0; s < SEQS; s++)
        for (uint32_t p = 0; p < SEQ_PAGES; p++) pages[s][p] = s * SEQ_PAGES + p;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    wn_stage_close(stage);
    wn_backend_close(be);
    return 0;
}

/* `rows[i]` more rows of sequence i, the first `image` of the step of the picture in slot 1; tokens are picked. */
static void step(const uint32_t rows[SEQS], uint32_t image, const char *what)
{
    uint32_t token[ROWS_MAX], slot[ROWS_MAX], wanted[SEQS], got[SEQS];
    struct wn_pick each[SEQS];
    struct wn_seq seqs[SEQS];
    struct wn_step s = {.token = token, .seqs = seqs, .wanted = wanted, .slot = image ? slot : NULL};
    const struct made before = made();

    for (uint32_t i = 0; i < SEQS; i++) {
        if (!rows[i]) continue;
        seqs[s.seqs_n++] = (struct wn_seq){.first_row = s.rows, .rows = rows[i], .pos = length[i], .pages = pages[i]};
        s.rows += rows[i];
        length[i] += rows[i];
        each[s.wanted_n] = (struct wn_pick){.temperature = i % 2 ? 0.8f : 0.0f, .top_p = 1.0f, .wanted = 1, .seed = i};
        wanted[s.wanted_n++] = s.rows - 1;
    }
    for (uint32_t r = 0; r < s.rows; r++) {
        slot[r] = r < image ? 1 : WN_SLOT_NONE;
        token[r] = r < image ? r % model.vision.patches : r % 250;
    }
    MUST(wn_stage_pick(stage, &s, WN_NEVER, each, got, &err));
    check_nothing(before, what, s.rows);
}

static void requests(void **state)
{
    const size_t floats = (size_t)model.vision.patches * model.vision.hidden;
    const struct wn_features f = {.rows = model.vision.patches, .width = model.vision.hidden, .dtype = WN_F32};
    float *features = calloc(floats, sizeof(*features));
    const struct made before = made();
    (void)state;

    assert_non_null(features);
    assert_true(before.asked > 0 && before.captures > 0 && sim_counts.pinned_copies > 0);
    MUST(wn_stage_features_put(stage, 1, features, &(struct wn_features){f.rows, f.width, WN_BF16, false}, &err));
    check_nothing(before, "features", f.rows);
    step((uint32_t[SEQS]){ROWS_MAX}, 16, "a prompt with a picture");
    step((uint32_t[SEQS]){110}, 0, "its second chunk");
    for (uint32_t n = 0; n < 4; n++) step((uint32_t[SEQS]){1}, 0, "decode alone");
    step((uint32_t[SEQS]){1, 70}, 0, "decode beside a prompt");
    step((uint32_t[SEQS]){1, 1, 3, 66, 1, 40}, 0, "a mix");
    step((uint32_t[SEQS]){1, 1, 1, 1, 1, 1}, 0, "decode");
    step((uint32_t[SEQS]){1, 1, 1, 0, 1, 0}, 0, "decode");
    step((uint32_t[SEQS]){0, 1, 0, 1, 1, 0}, 0, "decode, short contexts");
    step((uint32_t[SEQS]){0, 40, 29}, 20, "pictures and text");
    step((uint32_t[SEQS]){0, 0, 0, 0, 1, 0}, 1, "a row of a picture");
    for (uint32_t i = 0; i < 3; i++) step((uint32_t[SEQS]){5, 1, 1, 1, 2 + i, 1}, 0, "many tables");
    free(features);
}

/* What was chosen before is in use: a warm stage launches graphs. */
static void decodes_are_graphs(void **state)
{
    struct sim_counts before = sim_counts;
    (void)state;

    step((uint32_t[SEQS]){1, 1, 0, 1}, 0, "decode");
    assert_int_equal(sim_counts.graph_launches - before.graph_launches, 1);
    assert_int_equal(sim_counts.launches - before.launches, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(requests), cmocka_unit_test(decodes_are_graphs)};

    return cmocka_run_group_tests(tests, setup, teardown);
}
