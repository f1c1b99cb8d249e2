/* tests/integration/test_plan_links.c - a replica of threads, with the real decoder over the local
 * link, answers a prompt; each link then counted exactly the payload that the plan predicts. A rank that waits
 * says for what. And rows travel while their ranks compute: each rank's calls come in the order that lets them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <pthread.h>
#include <unistd.h>

#include "shard/decoder.h"
#include "tests/one_seq.h"
#include "transport/link.h"

#define PAGE_TOKENS 16u
#define PAGES       8u
#define ROWS_MAX    (PAGES * PAGE_TOKENS)
#define RANKS_MAX   12u

/* What a rank does, a letter a call. b: a step begins; c: products; r: the receive of rows is posted; s: rows are sent;
 * w, t: a wait for the rows that were sent, a look at them. */
struct diary {
    char text[128];
    uint32_t n;
    wn_op sent;
};

struct rank {
    const struct wn_plan *plan;
    const struct wn_plan_load *load;
    const struct wn_weights *weights;
    struct wn_link *link;
    uint32_t rank;
    useconds_t late_us; /* comes to its first step so much later than the others */
    struct wn_stage_waits waits;
    struct diary diary;
    struct wn_err err;
};

/* ---- links and backends that keep a diary ---- */

static _Thread_local struct diary *diary; /* of the rank whose thread this is */

static void note(char what)
{
    if (what == 'c' && diary->n && diary->text[diary->n - 1] == 'c') return;
    if (diary->n + 1 < sizeof(diary->text)) diary->text[diary->n++] = what;
}

static wn_status noted_send(struct wn_link *link, struct wn_route to, const void *data, size_t bytes, wn_op *op)
{
    const wn_status rc = wn_link_local.send(link, to, data, bytes, op);

    if (to.kind != WN_TRAFFIC_ACTIVATION) return rc;
    note('s');
    diary->sent = *op;
    return rc;
}

static wn_status noted_recv(struct wn_link *link, struct wn_route from, void *data, size_t room, wn_op *op)
{
    if (from.kind == WN_TRAFFIC_ACTIVATION) note('r');
    return wn_link_local.recv(link, from, data, room, op);
}

static wn_status noted_wait(struct wn_link *link, wn_op op, size_t *bytes, int64_t deadline_us)
{
    if (op == diary->sent) note(deadline_us < 0 ? 't' : 'w');
    return wn_link_local.wait(link, op, bytes, deadline_us);
}

static wn_status noted_matmul(struct wn_backend *be, const struct wn_matmul *a)
{
    note('c');
    return wn_backend_cpu_reference.matmul(be, a);
}

/* ---- the replica ---- */

/* Rows [pos, pos + rows) of the prompt (image rows first, then text) or of its answer. */
static wn_status run_rows(struct rank *r, struct wn_stage *stage, uint32_t pos, uint32_t rows,
                          int wanted, float *logits)
{
    static const uint32_t pages[PAGES] = {3, 1, 0, 2, 7, 5, 4, 6};
    uint32_t token[ROWS_MAX], slot[ROWS_MAX], last = rows - 1;
    const struct wn_seq seq = {.rows = rows, .pos = pos, .pages = pages};
    const struct wn_step step = {.rows = rows,
                                 .token = token,
                                 .slot = slot,
                                 .seqs_n = 1,
                                 .seqs = &seq,
                                 .wanted_n = wanted ? 1 : 0,
                                 .wanted = &last};

    note('b');
    for (uint32_t i = 0; i < rows; i++) {
        int image = pos + i < r->load->image_rows;
        slot[i] = image ? 0 : WN_SLOT_NONE;
        token[i] = image ? pos + i : (7 * (pos + i)) % 200;
    }
    return wn_stage_run(stage, &step, wn_deadline_in_us(20000000), logits, &r->err);
}

static wn_status answer(struct rank *r, struct wn_stage *stage, float *logits)
{
    const struct wn_model *m = &r->plan->model;
    const struct wn_plan_load *load = r->load;
    struct wn_features shape = {.rows = load->image_rows,
                                .width = load->projected ? m->text.hidden : m->vision.hidden,
                                .dtype = r->plan->dtype,
                                .projected = load->projected};
    uint32_t rows = load->text_tokens + load->image_rows, pos = 0;
    void *features = calloc((size_t)shape.rows + 1, (size_t)shape.width * sizeof(float));
    wn_status rc = features ? WN_OK : WN_ENOMEM;

    if (rc == WN_OK && shape.rows && r->rank < r->plan->tensors)
        rc = wn_stage_features_share(stage, 0, r->rank == 0 ? features : NULL, &shape,
                                     wn_deadline_in_us(20000000), &r->err);
    while (rc == WN_OK && pos < rows) {
        uint32_t n = rows - pos < load->chunk_tokens ? rows - pos : load->chunk_tokens;
        rc = run_rows(r, stage, pos, n, pos + n == rows, logits);
        pos += n;
    }
    for (uint32_t i = 1; rc == WN_OK && i < load->new_tokens; i++)
        rc = run_rows(r, stage, pos++, 1, 1, logits);
    free(features);
    return rc;
}

static void *rank_main(void *arg)
{
    struct rank *r = arg;
    struct wn_backend *be = NULL;
    struct wn_link_ops link_ops = wn_link_local;
    struct wn_backend_ops be_ops = wn_backend_cpu_reference;
    struct wn_stage *stage = NULL;
    float *logits = calloc(r->plan->model.text.vocab, sizeof(float));
    struct wn_stage_opts opts = {.link = r->link, .plan = r->plan, .weights = r->weights, .rank = r->rank,
                                 ONE_SEQ(ROWS_MAX, PAGE_TOKENS)};
    wn_status rc = wn_backend_open(&be, "cpu-reference", 0, &r->err);

    diary = &r->diary;
    link_ops.send = noted_send;
    link_ops.recv = noted_recv;
    link_ops.wait = noted_wait;
    be_ops.matmul = noted_matmul;
    be_ops.matmuls = NULL;
    r->link->ops = &link_ops;
    if (rc == WN_OK) be->ops = &be_ops;
    opts.be = be;
    if (rc == WN_OK) rc = wn_stage_open(&stage, &opts, &r->err);
    usleep(r->late_us);
    if (rc == WN_OK) rc = answer(r, stage, logits);
    if (rc == WN_OK) r->waits = wn_stage_waits(stage);
    r->err.code = rc;
    wn_stage_close(stage);
    wn_backend_close(be);
    r->link->ops = &wn_link_local;
    free(logits);
    return NULL;
}

static void compare(const struct rank *ranks, uint32_t n)
{
    const struct wn_plan *p = ranks[0].plan;

    for (uint32_t src = 0; src < n; src++)
        for (uint32_t dst = 0; dst < n; dst++) {
            struct wn_traffic_table sent = {0}, got = {0};
            if (src == dst) continue;
            wn_link_traffic(ranks[src].link, (int)dst, &sent);
            wn_link_traffic(ranks[dst].link, (int)src, &got);
            for (int k = WN_TRAFFIC_CONTROL + 1; k < WN_TRAFFIC_N; k++) {
                uint64_t plan = wn_plan_link_bytes(p, ranks[0].load, src, dst, (wn_traffic)k);
                if (plan != sent.of[k].sent_bytes || plan != got.of[k].received_bytes)
                    fail_msg("%u x %u %s: %u -> %u %s: planned %llu, sent %llu, received %llu",
                             p->stages, p->tensors, wn_dtype_name(p->dtype), src, dst,
                             wn_traffic_name((wn_traffic)k), (unsigned long long)plan,
                             (unsigned long long)sent.of[k].sent_bytes,
                             (unsigned long long)got.of[k].received_bytes);
            }
        }
}

/* Ranks [n] of the plan answer the prompt, rank 0 late. Their links are open after it: to be ended by `leave`. */
static struct wn_local_hub *run_all(struct rank *ranks, const struct wn_plan *p, const struct wn_weights *weights,
                                    const struct wn_plan_load *load, useconds_t late_us)
{
    pthread_t threads[RANKS_MAX];
    struct wn_local_hub *hub = NULL;
    uint32_t n = p->stages * p->tensors;

    assert_true(n <= RANKS_MAX);
    assert_int_equal(wn_local_hub_create(&hub, (int)n, NULL), WN_OK);
    for (uint32_t r = 0; r < n; r++) {
        struct wn_group group = {.rank = (int)r, .size = (int)n, .hub = hub};
        ranks[r] = (struct rank){
            .plan = p, .load = load, .weights = weights, .rank = r, .late_us = r == 0 ? late_us : 0};
        assert_int_equal(wn_link_open(&ranks[r].link, "local", &group, NULL), WN_OK);
    }
    for (uint32_t r = 0; r < n; r++)
        assert_int_equal(pthread_create(&threads[r], NULL, rank_main, &ranks[r]), 0);
    for (uint32_t r = 0; r < n; r++) pthread_join(threads[r], NULL);
    for (uint32_t r = 0; r < n; r++)
        if (ranks[r].err.code != WN_OK)
            fail_msg("%u x %u: rank %u: %s", p->stages, p->tensors, r, ranks[r].err.text);
    return hub;
}

static void leave(struct wn_local_hub *hub, struct rank *ranks, uint32_t n)
{
    for (uint32_t r = 0; r < n; r++) wn_link_close(ranks[r].link);
    wn_local_hub_destroy(hub);
}

static void check(const struct wn_plan *p, const struct wn_weights *weights,
                  const struct wn_plan_load *load)
{
    struct rank ranks[RANKS_MAX];
    const uint32_t n = p->stages * p->tensors;
    struct wn_local_hub *hub = run_all(ranks, p, weights, load, 0);

    compare(ranks, n);
    leave(hub, ranks, n);
}

/* Rank 0 is late: a rank of the next stage waits for a step, and one of the same stage for bytes. */
static void test_waits(void **state)
{
    enum { LATE_US = 300000 };
    const struct wn_plan_load load = {.text_tokens = 8, .new_tokens = 1, .chunk_tokens = 4};
    struct wn_weights *weights = NULL;
    struct wn_model m;
    struct wn_err err = {0};

    if (wn_model_open(&m, *state, &err) || wn_weights_open(&weights, *state, &err)) fail_msg("%s", err.text);
    for (uint32_t stages = 1; stages <= 2; stages++) {
        struct rank ranks[2];
        struct wn_local_hub *hub;
        struct wn_plan p;
        uint64_t of_late, other;
        assert_int_equal(wn_plan_make(&p, &m, stages, 3 - stages, NULL, WN_F32, NULL), WN_OK);
        hub = run_all(ranks, &p, weights, &load, LATE_US);
        of_late = stages == 2 ? ranks[1].waits.step_us : ranks[1].waits.link_us;
        other = stages == 2 ? ranks[1].waits.link_us : ranks[1].waits.step_us;
        if (of_late < LATE_US / 2 || other > of_late / 2)
            fail_msg("%u stages: rank 1 waited %llu us for a step, %llu for bytes", stages,
                     (unsigned long long)ranks[1].waits.step_us, (unsigned long long)ranks[1].waits.link_us);
        leave(hub, ranks, 2);
    }
    wn_weights_close(weights);
}

static void expect_diaries(const struct wn_plan *p, const struct wn_weights *weights, const struct wn_plan_load *load,
                           const char *first, const char *last)
{
    struct rank ranks[2];
    struct wn_local_hub *hub = run_all(ranks, p, weights, load, 0);

    assert_string_equal(ranks[0].diary.text, first);
    if (last) assert_string_equal(ranks[1].diary.text, last);
    leave(hub, ranks, 2);
}

/* A chunk's rows are on their way while the next chunk is computed: nobody waits for them between the two, large ones
 * are looked after, and the last stage has said where they may go before it computes. */
static void test_rows_travel_meanwhile(void **state)
{
    const struct wn_plan_load chunks = {.text_tokens = 12, .new_tokens = 1, .chunk_tokens = 4},
                              large = {.text_tokens = 96, .new_tokens = 1, .chunk_tokens = 48};
    struct wn_weights *weights = NULL;
    struct wn_model m;
    struct wn_plan p;
    struct wn_err err = {0};

    if (wn_model_open(&m, *state, &err) || wn_weights_open(&weights, *state, &err)) fail_msg("%s", err.text);
    assert_int_equal(wn_plan_make(&p, &m, 2, 1, NULL, WN_F32, NULL), WN_OK);
    expect_diaries(&p, weights, &chunks, "bcs" "bcws" "bcws" "w", "brrc" "brc" "brc");
    expect_diaries(&p, weights, &large, "bcs" "btcs" "w", NULL);
    wn_weights_close(weights);
}

static void test_checkpoint(void **state)
{
    const struct wn_plan_load loads[] = {
        {.text_tokens = 30, .image_rows = 10, .new_tokens = 5, .chunk_tokens = 16},
        {.text_tokens = 12,
         .image_rows = 4,
         .new_tokens = 2,
         .chunk_tokens = 64,
         .projected = true},
        {.text_tokens = 8, .image_rows = 0, .new_tokens = 1, .chunk_tokens = 4},
    };
    const char *dir = *state;
    struct wn_weights *weights = NULL;
    struct wn_model m;
    struct wn_plan p;
    struct wn_err err = {0};
    int plans = 0;

    if (wn_model_open(&m, dir, &err) || wn_weights_open(&weights, dir, &err))
        fail_msg("%s", err.text);
    for (uint32_t stages = 1; stages <= 3; stages++)
        for (uint32_t tensors = 1; tensors <= 4; tensors++)
            for (int bf16 = 0; bf16 < 2; bf16++) {
                wn_dtype dtype = bf16 ? WN_BF16 : WN_F32;
                if (wn_plan_make(&p, &m, stages, tensors, NULL, dtype, NULL) != WN_OK) continue;
                for (size_t i = 0; i < sizeof(loads) / sizeof(loads[0]); i++, plans++)
                    check(&p, weights, &loads[i]);
            }
    assert_true(plans >= 36);
    wn_weights_close(weights);
}

int main(void)
{
    static char a[] = "tests/golden/llava-a", b[] = "tests/golden/llava-b";
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(test_checkpoint, a),
        cmocka_unit_test_prestate(test_checkpoint, b),
        cmocka_unit_test_prestate(test_waits, a),
        cmocka_unit_test_prestate(test_rows_travel_meanwhile, b),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
