/* test_cuda_graph [kernels [int8]] - decode steps as graphs, on the simulated device: the same bits as launches one by
 * one, whatever the batch and the context; one copy, one graph launch and no allocation a step once a bucket is known;
 * and a graph of its own for all that may not share one. Prompts are near what the CPU makes of them. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "shard/cuda/cuda.h"
#include "shard/decoder.h"
#include "shard/sample.h"

#define SEQS        6
#define PAGE_TOKENS 16
#define SEQ_PAGES   20 /* 320 tokens */
#define ROWS_MAX    320
#define MODEL       "tests/golden/llava-a"

struct setup {
    struct wn_model model;
    struct wn_plan plan;
    struct wn_backend *be;
    struct wn_stage *stage;
    float *logits; /* [SEQS, vocab] */
};

static struct setup graphs, single, host;
static wn_dtype linear = WN_BF16; /* of the layers' matrices */
static uint32_t pages[SEQS][SEQ_PAGES], length[SEQS];

static void open_stage(struct setup *s, const char *backend, const char *use_graphs)
{
    struct wn_weights *w = NULL;
    struct wn_stage_opts o;

    setenv("WINNOW_CUDA_GRAPHS", use_graphs, 1);
    assert_int_equal(wn_model_open(&s->model, MODEL, NULL), WN_OK);
    s->model.text.positions_max = SEQ_PAGES * PAGE_TOKENS; /* rotary positions know no end */
    s->model.text.layers = 1;                              /* all layers make the same calls */
    assert_int_equal(wn_plan_make(&s->plan, &s->model, 1, 1, NULL, WN_BF16, NULL), WN_OK);
    s->plan.linear = linear;
    assert_int_equal(wn_backend_open(&s->be, backend, 0, NULL), WN_OK);
    assert_int_equal(wn_weights_open(&w, MODEL, NULL), WN_OK);
    o = (struct wn_stage_opts){.be = s->be, .plan = &s->plan, .weights = w, .pages = SEQS * SEQ_PAGES,
                               .page_tokens = PAGE_TOKENS, .rows_max = ROWS_MAX, .seqs_max = SEQS, .wanted_max = SEQS};
    assert_int_equal(wn_stage_open(&s->stage, &o, NULL), WN_OK);
    wn_weights_close(w);
    s->logits = calloc((size_t)SEQS * s->model.text.vocab, sizeof(float));
    assert_non_null(s->logits);
}

static void close_stage(struct setup *s)
{
    wn_stage_close(s->stage);
    wn_backend_close(s->be);
    free(s->logits);
}

/* Any token will do, the same one wherever it is asked for. */
static uint32_t token_at(uint32_t seq, uint32_t pos)
{
    return (seq * 37 + pos * 11 + pos * pos % 7) % 250;
}

static void run(struct setup *s, const struct wn_step *step)
{
    struct wn_err err = {0};
    wn_status rc = wn_stage_run(s->stage, step, WN_NEVER, s->logits, &err);
    if (rc != WN_OK) fail_msg("%s", err.text);
}

/* Rows of sequence `seq` in a step of their own. */
static void prefill(struct setup *s, uint32_t seq, uint32_t n)
{
    uint32_t token[ROWS_MAX], wanted = n - 1;
    const struct wn_seq q = {.rows = n, .pages = pages[seq]};
    const struct wn_step step = {.rows = n, .token = token, .seqs_n = 1, .seqs = &q, .wanted_n = 1, .wanted = &wanted};

    for (uint32_t i = 0; i < n; i++) token[i] = token_at(seq, i);
    run(s, &step);
}

/* One row of each sequence in which[n], on both, and the same logits. */
static void decode(const uint32_t *which, uint32_t n)
{
    uint32_t token[SEQS], wanted[SEQS];
    struct wn_seq seqs[SEQS];
    const struct wn_step step = {.rows = n, .token = token, .seqs_n = n, .seqs = seqs, .wanted_n = n, .wanted = wanted};
    const size_t bytes = (size_t)n * graphs.model.text.vocab * sizeof(float);

    for (uint32_t i = 0; i < n; i++) {
        const uint32_t s = which[i];
        token[i] = token_at(s, length[s]);
        wanted[i] = i;
        seqs[i] = (struct wn_seq){.first_row = i, .rows = 1, .pos = length[s]++, .pages = pages[s]};
    }
    run(&single, &step);
    run(&graphs, &step);
    assert_memory_equal(graphs.logits, single.logits, bytes);
}

/* What `graphs` alone does in such a step: the same rows once more, so that nothing is new. */
static struct sim_counts decode_counted(const uint32_t *which, uint32_t n)
{
    struct sim_counts before, after;
    uint32_t token[SEQS], wanted[SEQS];
    struct wn_seq seqs[SEQS];
    const struct wn_step step = {.rows = n, .token = token, .seqs_n = n, .seqs = seqs, .wanted_n = n, .wanted = wanted};

    for (uint32_t i = 0; i < n; i++) {
        const uint32_t s = which[i], pos = length[s] - 1;
        token[i] = token_at(s, pos);
        wanted[i] = i;
        seqs[i] = (struct wn_seq){.first_row = i, .rows = 1, .pos = pos, .pages = pages[s]};
    }
    before = sim_counts;
    run(&graphs, &step);
    after = sim_counts;
    return (struct sim_counts){.launches = after.launches - before.launches,
                               .captures = after.captures - before.captures,
                               .graph_launches = after.graph_launches - before.graph_launches,
                               .allocations = after.allocations - before.allocations,
                               .copies = after.copies - before.copies,
                               .waits = after.waits - before.waits};
}

/* bfloat16 is rounded after every operation, so that a difference in a last place grows. */
static void near_the_cpu(void **state)
{
    static const uint32_t rows[] = {1, 20, 100};
    (void)state;

    for (uint32_t p = 0; p < SEQ_PAGES; p++) pages[0][p] = p;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        float most = 0.0f, off = 0.0f;
        prefill(&single, 0, rows[i]);
        prefill(&host, 0, rows[i]);
        for (uint32_t v = 0; v < host.model.text.vocab; v++) {
            most = fmaxf(most, fabsf(host.logits[v]));
            off = fmaxf(off, fabsf(host.logits[v] - single.logits[v]));
        }
        if (!(off <= 0.02f * most)) fail_msg("%u rows: logits differ by %g of %g", rows[i], (double)off, (double)most);
    }
}

static void same_bits(void **state)
{
    static const uint32_t first[SEQS] = {3, 17, 253, 40, 290, 1};
    static const uint32_t batches[][SEQS + 1] = {/* how many, which */
                                                 {1, 0}, {3, 5, 0, 3}, {3, 4, 2, 0}, {6, 0, 1, 2, 3, 4, 5}, {1, 2}};
    (void)state;

    for (uint32_t s = 0; s < SEQS; s++) {
        for (uint32_t p = 0; p < SEQ_PAGES; p++) pages[s][p] = (p * SEQS + s) * 7 % (SEQS * SEQ_PAGES); /* scattered */
        prefill(&graphs, s, first[s]);
        prefill(&single, s, first[s]);
        length[s] = first[s];
    }
    for (size_t b = 0; b < sizeof(batches) / sizeof(batches[0]); b++) { /* the second time it is a graph */
        decode(batches[b] + 1, batches[b][0]);
        decode(batches[b] + 1, batches[b][0]);
    }
    assert_true(length[2] > 256); /* it has left its first chunk of keys behind on the way */
}

static void one_graph_a_step(void **state)
{
    static const uint32_t all[SEQS] = {0, 1, 3, 5, 2, 4};
    const struct wn_cuda_queue *q = &((struct wn_cuda *)graphs.be)->queue;
    uint32_t known;
    (void)state;

    for (uint32_t n = 1; n <= SEQS; n++) {
        struct sim_counts c;
        decode(all, n);
        decode(all, n); /* the bucket is known after this */
        c = decode_counted(all, n);
        assert_int_equal(c.launches, 0);
        assert_int_equal(c.captures, 0);
        assert_int_equal(c.graph_launches, 1);
        assert_int_equal(c.allocations, 0);
        assert_int_equal(c.copies, 2); /* tables there, logits back */
        assert_true(c.waits <= 3);     /* for the step; those for the logits and at its end find the stream at rest */
    }
    /* Other tokens, pages, positions and fewer rows of a bucket need no new graph. */
    decode(all + 1, 3);
    decode(all + 1, 3);
    known = q->graphs_n;
    for (uint32_t i = 0; i < 4; i++) decode(all + 3 - i, 1);
    decode(all + 1, 3);
    decode(all, 4);
    assert_int_equal(q->graphs_n, known);
}

/* Tokens are picked in the graph: what comes back is an id a row, and logits where they are asked for. */
static void picks_come_back(void **state)
{
    static const uint32_t which[3] = {1, 3, 5};
    const struct wn_pick each[3] = {{.temperature = 0.0f, .top_p = 1.0f, .wanted = 1},
                                    {.temperature = 0.8f, .top_p = 1.0f, .wanted = 1, .seed = 77, .position = 9},
                                    {.temperature = 0.8f, .top_p = 1.0f}};
    const uint32_t vocab = graphs.model.text.vocab;
    uint32_t token[3], wanted[3], got[3];
    struct wn_seq seqs[3];
    const struct wn_step step = {.rows = 3, .token = token, .seqs_n = 3, .seqs = seqs, .wanted_n = 3, .wanted = wanted};
    float *row = calloc(vocab, sizeof(*row));
    struct wn_sampler *sampler = NULL;
    (void)state;

    assert_non_null(row);
    assert_int_equal(wn_sampler_create(&sampler, vocab, NULL), WN_OK);
    for (int turn = 0; turn < 4; turn++) {
        struct sim_counts before;
        for (uint32_t i = 0; i < 3; i++) {
            token[i] = token_at(which[i], length[which[i]]);
            wanted[i] = i;
            seqs[i] = (struct wn_seq){.first_row = i, .rows = 1, .pos = length[which[i]]++, .pages = pages[which[i]]};
        }
        run(&single, &step);
        before = sim_counts;
        assert_int_equal(wn_stage_pick(graphs.stage, &step, WN_NEVER, each, got, NULL), WN_OK);
        if (turn > 1) { /* the list is known */
            assert_int_equal(sim_counts.graph_launches - before.graph_launches, 1);
            assert_int_equal(sim_counts.launches - before.launches, 0);
            assert_int_equal(sim_counts.allocations - before.allocations, 0);
            assert_int_equal(sim_counts.copies - before.copies, 2); /* tables there, tokens back */
            assert_true(sim_counts.bytes_back - before.bytes_back == sizeof(got));
        }
        for (uint32_t i = 0; i < 2; i++) {
            const struct wn_sample_opts o = {.temperature = each[i].temperature, .top_p = 1.0f,
                                             .repetition_penalty = 1.0f, .seed = each[i].seed};
            struct wn_sampled want;
            assert_int_equal(wn_sampler_pick(sampler, &o, single.logits + (size_t)i * vocab, NULL, 0, each[i].position,
                                             false, &want, NULL),
                             WN_OK);
            assert_int_equal(got[i], want.token);
        }
        assert_int_equal(got[2], WN_PICK_NONE);
        assert_int_equal(wn_stage_logits(graphs.stage, 2, row, NULL), WN_OK);
        assert_memory_equal(row, single.logits + (size_t)2 * vocab, vocab * sizeof(*row));
    }
    wn_sampler_destroy(sampler);
    free(row);
}

/* A prefill between two steps makes scratch grow: what names the old memory is never launched again. */
static void scratch_moves(void **state)
{
    static const uint32_t all[SEQS] = {0, 1, 3, 5, 2, 4};
    struct wn_cuda *c = (struct wn_cuda *)graphs.be;
    struct sim_counts count;
    void *big = NULL;
    (void)state;

    decode(all, 6);
    assert_int_equal(wn_cuda_scratch(c, WN_CUDA_SCRATCH_ATTN, c->scratch[WN_CUDA_SCRATCH_ATTN].bytes * 2, &big), WN_OK);
    assert_int_equal(wn_cuda_scratch(c, WN_CUDA_SCRATCH_PARTS, c->scratch[WN_CUDA_SCRATCH_PARTS].bytes * 2 + 1, &big),
                     WN_OK);
    decode(all, 6);
    decode(all, 6);
    count = decode_counted(all, 6);
    assert_int_equal(count.graph_launches, 1);
    assert_int_equal(count.captures, 0);
}

/* The oldest graphs go when there are too many launches in all. */
static void few_graphs_are_kept(void **state)
{
    static const uint32_t all[SEQS] = {0, 1, 3, 5, 2, 4};
    struct wn_cuda_queue *q = &((struct wn_cuda *)graphs.be)->queue;
    uint32_t launches = 0;
    (void)state;

    for (uint32_t i = 0; i < q->graphs_n; i++) launches += q->graphs[i].n;
    assert_true(launches <= WN_CUDA_GRAPH_LAUNCHES && q->graphs_n <= WN_CUDA_GRAPHS);
    for (uint32_t i = 0; i < q->graphs_n; i++) q->graphs[i].n += WN_CUDA_GRAPH_LAUNCHES; /* as if they were large */
    memset(q->seen, 0, sizeof(q->seen));
    decode(all, 2);
    assert_true(q->graphs_n > 1); /* no graph is this long, and a list that is new is no graph yet */
    decode(all, 2);
    assert_int_equal(q->graphs_n, 1); /* there was no room beside the others */
    decode(all, 2);
    assert_int_equal(q->graphs_n, 1);
}

/* Steps with several rows of a sequence, or with more rows than a bucket has, are launched as they come. */
static void larger_steps(void **state)
{
    struct sim_counts before = sim_counts;
    (void)state;

    prefill(&graphs, 5, 20);
    assert_int_equal(sim_counts.graph_launches, before.graph_launches);
    assert_true(sim_counts.launches > before.launches);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {cmocka_unit_test(near_the_cpu), cmocka_unit_test(same_bits),
                                              cmocka_unit_test(one_graph_a_step), cmocka_unit_test(picks_come_back),
                                              cmocka_unit_test(scratch_moves), cmocka_unit_test(few_graphs_are_kept),
                                              cmocka_unit_test(larger_steps)};
    int bad;

    setenv("WINNOW_CUDA_KERNELS", argc > 1 ? argv[1] : "exact", 1);
    if (argc > 2 && strcmp(argv[2], "int8") == 0) linear = WN_I8;
    open_stage(&graphs, "cuda", "1");
    open_stage(&single, "cuda", "0");
    open_stage(&host, "cpu", "0");
    bad = cmocka_run_group_tests(tests, NULL, NULL);
    close_stage(&graphs);
    close_stage(&single);
    close_stage(&host);
    return bad != 0;
}
