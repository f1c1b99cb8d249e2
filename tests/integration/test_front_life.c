/* tests/integration/test_front_life.c - a worker's front and its scheduler: what is said at hello and with each
 * heartbeat, what becomes of jobs when the scheduler is started again, is silent or refuses the worker, and when the
 * worker is overrun; and connections to leaders. The front is real, the other sides are scripted. */
#include "side.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "daemon/front.h"
#include "tests/scratch.h"

#define ID "01ARZ3NDEKTSV4RRFFQ69G5FAV"

static char base[64], scheduler_at[96];
static struct wn_net *net;

static struct wn_front *front_open(Wn__Role role, uint32_t grace_ms)
{
    char leader_at[96];
    const struct wn_front_opts o = {.role = role,
                                    .name = "test",
                                    .model_id = "m",
                                    .build = "b",
                                    .scheduler = scheduler_at,
                                    .features_bind = role == WN__ROLE__ROLE_LEADER ? leader_at : NULL,
                                    .slots = 4,
                                    .tokens_max = 2048,
                                    .stages_n = role == WN__ROLE__ROLE_LEADER ? 2 : 0,
                                    .grace_ms = grace_ms,
                                    .payload_max = 4096,
                                    .unclaimed_max = 4096};
    struct wn_front *f = NULL;
    struct wn_err err = {0};

    snprintf(leader_at, sizeof(leader_at), "ipc://%s/l", base);
    if (wn_front_start(&f, &o, &err) != WN_OK) fail_msg("%s", err.text);
    return f;
}

static void welcome(struct side *s, uint32_t lease_ms, Wn__Kept *kept)
{
    Wn__Welcome w = WN__WELCOME__INIT;

    w.lease_ms = lease_ms;
    w.heartbeat_ms = 20;
    w.kept = &kept;
    w.n_kept = kept ? 1 : 0;
    side_say(s, WN__ENVELOPE__BODY_WELCOME, &w, NULL, 0);
}

static struct wn_front_msg *take(struct wn_front *f)
{
    struct wn_front_msg *m = NULL;

    for (int i = 0; i < 1000 && !(m = wn_front_take(f)); i++) (void)wn_front_wait(f, wn_deadline_in_us(10000));
    assert_non_null(m);
    return m;
}

static void order(struct side *s, Wn__JobRef *ref, uint32_t attempt)
{
    Wn__Generate g = WN__GENERATE__INIT;

    *ref = (Wn__JobRef)WN__JOB_REF__INIT;
    ref->job_id = ID;
    ref->attempt = attempt;
    g.job = ref;
    g.prompt = "q";
    side_say(s, WN__ENVELOPE__BODY_GENERATE, &g, NULL, 0);
}

static void say_token(struct wn_front *f, Wn__JobRef *ref, uint32_t n)
{
    const struct wn_party to = {.side = WN_SIDE_SCHEDULER};
    Wn__Tokens t = WN__TOKENS__INIT;

    t.job = ref;
    t.first = n;
    t.ids = &n;
    t.n_ids = 1;
    t.text = "x";
    wn_front_send(f, &to, WN__ENVELOPE__BODY_TOKENS, &t, WN_TRAFFIC_TOKENS, NULL, 0, NULL, NULL);
}

static void expect_token(struct side *s, uint32_t n)
{
    Wn__Envelope *env = side_expect(s, WN__ENVELOPE__BODY_TOKENS);

    assert_string_equal(env->tokens->job->job_id, ID);
    assert_int_equal(env->tokens->first, n);
    wn_codec_free(env);
}

static void expect_hello(struct side *s, size_t running)
{
    Wn__Envelope *env = side_expect(s, WN__ENVELOPE__BODY_HELLO);

    assert_int_equal(env->hello->n_running, running);
    if (running) assert_string_equal(env->hello->running[0]->job_id, ID);
    wn_codec_free(env);
}

/* Whoever looks after the service sees what a worker is, and how it is. */
static void says_what_it_is(void **state)
{
    struct side s = {0};
    struct wn_front *f;
    struct wn_front_load *load;
    Wn__Envelope *env;
    char here[65] = "";

    (void)state;
    side_open(&s, net, scheduler_at);
    f = front_open(WN__ROLE__ROLE_LEADER, 0);
    env = side_expect(&s, WN__ENVELOPE__BODY_HELLO);
    (void)gethostname(here, sizeof(here) - 1);
    assert_int_equal(env->hello->role, WN__ROLE__ROLE_LEADER);
    assert_string_equal(env->hello->name, "test");
    assert_string_equal(env->hello->host, here);
    assert_int_equal(env->hello->pid, getpid());
    assert_string_equal(env->hello->model_id, "m");
    assert_string_equal(env->hello->build, "b");
    assert_string_equal(env->hello->features_endpoint, wn_front_features_address(f));
    assert_int_equal(env->hello->slots, 4);
    assert_int_equal(env->hello->tokens_max, 2048);
    wn_codec_free(env);
    load = wn_front_load(f);
    atomic_store(&load->running, 1);
    atomic_store(&load->waiting, 2);
    atomic_store(&load->pages_used, 3);
    atomic_store(&load->pages, 4);
    atomic_store(&load->features, 5);
    atomic_store(&load->feature_slots, 6);
    atomic_store(&load->steps, 7);
    atomic_store(&load->images, 8);
    atomic_store(&load->cache_hits, 9);
    atomic_store(&load->preemptions, 10);
    atomic_store(&load->sent_bytes[WN_TRAFFIC_ACTIVATION], 11);
    atomic_store(&load->stages[0].busy_us, 12);
    atomic_store(&load->stages[1].busy_us, 13);
    atomic_store(&load->stages[1].wait_us, 14);
    atomic_store(&load->stages[1].link_us, 15);
    welcome(&s, 60000, NULL);
    env = side_expect(&s, WN__ENVELOPE__BODY_HEARTBEAT);
    assert_int_equal(env->heartbeat->running, 1);
    assert_int_equal(env->heartbeat->waiting, 2);
    assert_int_equal(env->heartbeat->pages_used, 3);
    assert_int_equal(env->heartbeat->pages, 4);
    assert_int_equal(env->heartbeat->features, 5);
    assert_int_equal(env->heartbeat->feature_slots, 6);
    assert_int_equal(env->heartbeat->steps, 7);
    assert_int_equal(env->heartbeat->images, 8);
    assert_int_equal(env->heartbeat->cache_hits, 9);
    assert_int_equal(env->heartbeat->preemptions, 10);
    assert_int_equal(env->heartbeat->sent->activation, 11);
    assert_int_equal(env->heartbeat->n_stages, 2);
    assert_int_equal(env->heartbeat->stages[0]->busy_us, 12);
    assert_int_equal(env->heartbeat->stages[1]->busy_us, 13);
    assert_int_equal(env->heartbeat->stages[1]->wait_us, 14);
    assert_int_equal(env->heartbeat->stages[1]->link_us, 15);
    wn_codec_free(env);
    wn_front_stop(f, 0);
    wn_endpoint_close(s.ep);
}

/* A scheduler that does not know the worker hears of its jobs at hello, says what it has of them, and gets the rest;
 * what was said meanwhile is among it. */
static void scheduler_was_started_again(void **state)
{
    Wn__Error unknown = WN__ERROR__INIT;
    Wn__Kept kept = WN__KEPT__INIT;
    struct side s = {0};
    struct wn_front *f;
    Wn__JobRef ref;

    (void)state;
    side_open(&s, net, scheduler_at);
    f = front_open(WN__ROLE__ROLE_LEADER, 60000);
    expect_hello(&s, 0);
    welcome(&s, 60000, NULL);
    order(&s, &ref, 1);
    wn_front_msg_free(take(f));
    say_token(f, &ref, 0);
    say_token(f, &ref, 1);
    expect_token(&s, 0);
    expect_token(&s, 1);
    unknown.code = WN_ENOENT;
    unknown.text = "not known";
    side_say(&s, WN__ENVELOPE__BODY_ERROR, &unknown, NULL, 0);
    expect_hello(&s, 1);
    say_token(f, &ref, 2);
    assert_null(side_wait(&s, WN__ENVELOPE__BODY_TOKENS, 100)); /* nobody would understand it */
    kept.job = &ref;
    kept.tokens = 1;
    welcome(&s, 60000, &kept);
    expect_token(&s, 1);
    expect_token(&s, 2);
    say_token(f, &ref, 3);
    expect_token(&s, 3);
    assert_null(wn_front_take(f)); /* the job goes on */
    wn_front_stop(f, 0);
    wn_endpoint_close(s.ep);
}

/* A scheduler that is silent for a lease and the grace after it gets a worker without jobs. */
static void scheduler_is_silent(void **state)
{
    struct side s = {0};
    struct wn_front_msg *m;
    struct wn_front *f;
    Wn__JobRef ref;
    int64_t began;

    (void)state;
    side_open(&s, net, scheduler_at);
    f = front_open(WN__ROLE__ROLE_LEADER, 400);
    expect_hello(&s, 0);
    welcome(&s, 200, NULL);
    began = wn_now_us();
    order(&s, &ref, 1);
    wn_front_msg_free(take(f));
    m = take(f);
    assert_true(wn_now_us() - began >= 600000 - 20000);
    assert_true(m->lease_lost);
    assert_int_equal(m->party.side, WN_SIDE_SELF);
    wn_front_msg_free(m);
    assert_null(side_wait(&s, WN__ENVELOPE__BODY_DONE, 100)); /* hellos of the grace had the job: they are read here */
    expect_hello(&s, 0);
    assert_null(wn_front_take(f)); /* said once */
    wn_front_stop(f, 0);
    wn_endpoint_close(s.ep);
}

/* A worker that is refused says hello again: what is in its way may leave. */
static void scheduler_refuses(void **state)
{
    Wn__Error no = WN__ERROR__INIT;
    struct side s = {0};
    struct wn_front *f;

    (void)state;
    side_open(&s, net, scheduler_at);
    f = front_open(WN__ROLE__ROLE_VISION, 0);
    no.code = WN_EINVAL;
    no.text = "they do not mix";
    for (int i = 0; i < 2; i++) {
        expect_hello(&s, 0);
        side_say(&s, WN__ENVELOPE__BODY_ERROR, &no, NULL, 0);
    }
    expect_hello(&s, 0);
    welcome(&s, 60000, NULL);
    wn_codec_free(side_expect(&s, WN__ENVELOPE__BODY_HEARTBEAT));
    assert_null(wn_front_take(f)); /* no concern of the main thread */
    wn_front_stop(f, 0);
    wn_endpoint_close(s.ep);
}

/* More orders than a main thread that does not look may have waiting: the rest is given back at once, each by name. */
static void overrun(void **state)
{
    struct side s = {0};
    struct wn_front *f;
    Wn__JobRef ref;
    uint32_t refused = 0, taken = 0;

    (void)state;
    side_open(&s, net, scheduler_at);
    f = front_open(WN__ROLE__ROLE_LEADER, 0);
    expect_hello(&s, 0);
    welcome(&s, 60000, NULL);
    for (uint32_t i = 1; i <= 6000; i++) {
        order(&s, &ref, i);
        if (i % 500 == 0) usleep(50000); /* the socket's queue has a bound, too */
    }
    for (Wn__Envelope *env; (env = side_wait(&s, WN__ENVELOPE__BODY_ERROR, 500)) != NULL; refused++) {
        assert_int_equal(env->error->code, WN_EBUSY);
        assert_true(env->error->retriable);
        assert_string_equal(env->error->job->job_id, ID);
        wn_codec_free(env);
    }
    for (struct wn_front_msg *m; (m = wn_front_take(f)) != NULL; taken++) wn_front_msg_free(m);
    assert_true(refused > 1000);
    assert_int_equal(taken + refused, 6000);
    wn_front_stop(f, 0);
    wn_endpoint_close(s.ep);
}

/* A vision worker is told when its connection to a leader was lost, for its credit went with it; what it says after
 * that arrives. */
static void a_leader_comes_back(void **state)
{
    struct wn_party to = {.side = WN_SIDE_LEADER};
    Wn__FeaturesHello h = WN__FEATURES_HELLO__INIT;
    struct side leader = {0};
    struct wn_front_msg *m;
    struct wn_front *f = front_open(WN__ROLE__ROLE_VISION, 0);

    (void)state;
    h.name = "test";
    h.model_id = "m";
    snprintf(to.address, sizeof(to.address), "ipc://%s/back", base);
    for (int i = 0; i < 2; i++) {
        side_open(&leader, net, to.address);
        wn_front_send(f, &to, WN__ENVELOPE__BODY_FEATURES_HELLO, &h, WN_TRAFFIC_CONTROL, NULL, 0, NULL, NULL);
        wn_codec_free(side_expect(&leader, WN__ENVELOPE__BODY_FEATURES_HELLO));
        usleep(50000);
        wn_endpoint_close(leader.ep);
        m = take(f);
        assert_true(m->link_lost);
        assert_false(m->unreachable);
        assert_int_equal(m->party.side, WN_SIDE_LEADER);
        assert_string_equal(m->party.address, to.address);
        wn_front_msg_free(m);
        assert_null(wn_front_take(f));
    }
    wn_front_stop(f, 0);
}

static atomic_int alive;

static void count_down(void *data, void *hint)
{
    (void)hint;
    free(data);
    atomic_fetch_sub(&alive, 1);
}

/* For leaders that are not there a bounded number of messages waits, and for a bounded number of leaders: the one that
 * was not used for longest makes room, and the worker is told. */
static void leaders_are_bounded(void **state)
{
    struct wn_front *f = front_open(WN__ROLE__ROLE_VISION, 0);
    struct wn_party to = {.side = WN_SIDE_LEADER};
    const Wn__Credit c = WN__CREDIT__INIT;
    struct wn_front_msg *m;
    char first[WN_ADDRESS_MAX];

    (void)state;
    for (int i = 0; i < WN_FRONT_LEADERS_MAX + 1; i++) {
        snprintf(to.address, sizeof(to.address), "ipc://%s/absent%d", base, i);
        if (i == 0) snprintf(first, sizeof(first), "%s", to.address);
        if (i == WN_FRONT_LEADERS_MAX) assert_null(wn_front_take(f));
        for (int k = 0; k < 400; k++) {
            atomic_fetch_add(&alive, 1);
            wn_front_send(f, &to, WN__ENVELOPE__BODY_CREDIT, &c, WN_TRAFFIC_CONTROL, calloc(1, 64), 64, count_down,
                          NULL);
        }
        usleep(20000);
    }
    m = take(f);
    assert_true(m->unreachable);
    assert_string_equal(m->party.address, first);
    wn_front_msg_free(m);
    assert_null(wn_front_take(f));
    usleep(50000);
    assert_in_range(atomic_load(&alive), WN_FRONT_LEADERS_MAX, WN_FRONT_LEADERS_MAX * 256);
    wn_front_stop(f, 0);
    for (int i = 0; i < 500 && atomic_load(&alive); i++) usleep(10000);
    assert_int_equal(atomic_load(&alive), 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(says_what_it_is),     cmocka_unit_test(scheduler_was_started_again),
        cmocka_unit_test(scheduler_is_silent), cmocka_unit_test(scheduler_refuses),
        cmocka_unit_test(overrun),             cmocka_unit_test(a_leader_comes_back),
        cmocka_unit_test(leaders_are_bounded),
    };
    int rc;

    if (argc > 1) cmocka_set_test_filter(argv[1]);
    wn_log_max = WN_LOG_ERROR;
    if (!scratch_make(base, sizeof(base), "front-life") || wn_net_create(&net, NULL) != WN_OK) return 1;
    snprintf(scheduler_at, sizeof(scheduler_at), "ipc://%s/s", base);
    rc = cmocka_run_group_tests(tests, NULL, NULL);
    if (rc == 0) wn_net_destroy(net); /* else sockets may be open */
    scratch_remove(base);
    return rc;
}
