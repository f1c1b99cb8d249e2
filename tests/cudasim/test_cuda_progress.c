/* A main thread that waits for a device makes progress as long as the device does (base/progress.h): on the simulated
 * device, whose queue is held up by gates. A queue that stands in the middle of its own work is none. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

#include "shard/cuda/cuda.h"
#include "shard/decoder.h"
#include "tests/cudasim/sim_stream.h"
#include "tests/one_seq.h"
#include "transport/nccl_impl.h"

#define MODEL "tests/golden/llava-a"
#define ROWS  80 /* more than a short step has */
#define PAGE  16

static struct wn_backend *be;
static struct wn_link *link_;

static cudaStream_t queue(void)
{
    return be->ops->queue(be);
}

static bool gate_passed(void *gate)
{
    return atomic_load((atomic_bool *)gate);
}

static unsigned long noted(void)
{
    return atomic_load(&wn_progress_count);
}

static void sleep_ms(long ms)
{
    nanosleep(&(struct timespec){.tv_nsec = ms * 1000000}, NULL);
}

/* A thread that watches the main one wait, and opens one gate after the other. */
struct watch {
    pthread_t thread;
    atomic_bool gate[3];
    bool stood, went_on, stood_again, waited; /* what it saw */
};

static bool noted_soon(unsigned long since)
{
    for (int i = 0; i < 500 && noted() == since; i++) sleep_ms(10);
    return noted() != since;
}

static void *watch_main(void *arg)
{
    struct watch *w = arg;
    unsigned long was;

    sleep_ms(150); /* the main thread waits by then */
    was = noted();
    sleep_ms(150);
    w->stood = noted() == was;
    atomic_store(&w->gate[0], true);
    w->went_on = noted_soon(was);
    was = noted();
    sleep_ms(150);
    w->stood_again = noted() == was;
    atomic_store(&w->gate[1], true);
    w->waited = noted_soon(was);
    was = noted();
    w->waited = noted_soon(was) && w->waited; /* and again, while nothing is passed */
    atomic_store(&w->gate[2], true);
    return NULL;
}

/* gate, mark, gate, a mark before what others decide, gate */
static void watched_wait(struct wn_cuda_marks *m, wn_status (*wait)(void))
{
    struct watch w = {0};

    for (int i = 0; i < 3; i++) {
        sim_stream_push(queue(), gate_passed, &w.gate[i]);
        if (i < 2) wn_cuda_marks_put(m, queue(), i == 1);
    }
    assert_int_equal(pthread_create(&w.thread, NULL, watch_main, &w), 0);
    assert_int_equal(wait(), WN_OK);
    pthread_join(w.thread, NULL);
    assert_true(w.stood);
    assert_true(w.went_on);
    assert_true(w.stood_again);
    assert_true(w.waited);
    assert_int_equal(m->n, 0);
}

static wn_status backend_wait(void)
{
    return be->ops->sync(be, wn_deadline_in_us(20000000));
}

static wn_status link_wait(void)
{
    return wn_dev_sync(link_, wn_deadline_in_us(20000000));
}

static void backend_waits(void **state)
{
    (void)state;
    watched_wait(&((struct wn_cuda *)be)->marks, backend_wait);
}

static void link_waits(void **state)
{
    (void)state;
    watched_wait(&wn_nccl_of(link_)->marks, link_wait);
}

/* More marks than events, and what is left of the last wait. */
static void many_marks(void **state)
{
    struct wn_cuda_marks *m = &wn_nccl_of(link_)->marks;
    atomic_bool gate = false;
    (void)state;

    sim_stream_push(queue(), gate_passed, &gate);
    for (uint32_t i = 0; i < 2 * WN_CUDA_MARKS; i++) wn_dev_mark(link_);
    assert_int_equal(m->n, WN_CUDA_MARKS);
    atomic_store(&gate, true);
    assert_int_equal(link_wait(), WN_OK);
    assert_int_equal(m->n, 0);
    wn_dev_mark(link_);
    assert_int_equal(m->n, 1);
    assert_int_equal(link_wait(), WN_OK);
}

/* A step of a whole stage whose device does not begin: a mark for each layer, with and without a link. */
static void layers_are_marked(struct wn_link *link)
{
    struct wn_cuda_marks *m = link ? &wn_nccl_of(link)->marks : &((struct wn_cuda *)be)->marks;
    uint32_t token[ROWS], pages[ROWS / PAGE], wanted = ROWS - 1;
    const struct wn_seq seq = {.rows = ROWS, .pages = pages};
    const struct wn_step step = {
        .rows = ROWS, .token = token, .seqs_n = 1, .seqs = &seq, .wanted_n = 1, .wanted = &wanted};
    struct wn_weights *w = NULL;
    struct wn_stage *stage = NULL;
    atomic_bool gate = false;
    struct wn_model model;
    struct wn_plan plan;
    float *logits;

    for (uint32_t i = 0; i < ROWS; i++) token[i] = i;
    for (uint32_t i = 0; i < ROWS / PAGE; i++) pages[i] = i;
    assert_int_equal(wn_model_open(&model, MODEL, NULL), WN_OK);
    model.text.positions_max = ROWS;
    assert_int_equal(wn_plan_make(&plan, &model, 1, 1, NULL, WN_BF16, NULL), WN_OK);
    assert_int_equal(wn_weights_open(&w, MODEL, NULL), WN_OK);
    const struct wn_stage_opts o = {.be = be, .link = link, .plan = &plan, .weights = w, ONE_SEQ(ROWS, PAGE)};
    assert_int_equal(wn_stage_open(&stage, &o, NULL), WN_OK);
    wn_weights_close(w);
    assert_non_null(logits = calloc(model.text.vocab, sizeof(*logits)));
    assert_int_equal(wn_stage_run(stage, &step, WN_NEVER - 1, logits, NULL), WN_OK); /* what grows has grown */
    assert_int_equal(backend_wait(), WN_OK);
    assert_int_equal(m->n, 0);
    sim_stream_push(queue(), gate_passed, &gate);
    assert_int_equal(wn_stage_run(stage, &step, wn_deadline_in_us(100000), logits, NULL), WN_ETIME);
    assert_int_equal(m->n, model.text.layers);
    atomic_store(&gate, true);
    assert_int_equal(link ? link_wait() : backend_wait(), WN_OK);
    wn_stage_close(stage);
    free(logits);
}

static void layers_of_one_rank(void **state)
{
    (void)state;
    layers_are_marked(NULL);
}

static void layers_of_a_group(void **state)
{
    (void)state;
    layers_are_marked(link_);
}

static int open_all(void **state)
{
    struct wn_group group = {.rank = 0, .size = 1};
    struct wn_nccl_opts o = {.prev = -1, .next = -1, .deadline_us = wn_deadline_in_us(20000000)};
    struct wn_err err = {0};
    (void)state;

    setenv("WINNOW_CUDA_KERNELS", "plain", 1);
    setenv("WINNOW_NCCL", WN_TEST_NCCL, 1);
    if (wn_local_hub_create(&group.hub, 1, &err) || wn_link_open(&link_, "local", &group, &err) ||
        wn_backend_open(&be, "cuda", 0, &err))
        fail_msg("%s", err.text);
    *state = group.hub;
    o.queue = queue();
    o.backend = be;
    if (wn_nccl_attach(link_, &o, &err)) fail_msg("%s", err.text);
    return 0;
}

static int close_all(void **state)
{
    wn_link_close(link_);
    wn_backend_close(be);
    wn_local_hub_destroy(*state);
    return 0;
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(backend_waits),      cmocka_unit_test(link_waits),        cmocka_unit_test(many_marks),
        cmocka_unit_test(layers_of_one_rank), cmocka_unit_test(layers_of_a_group),
    };

    return cmocka_run_group_tests(tests, open_all, close_all);
}
