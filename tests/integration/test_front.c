/* tests/integration/test_front.c - what a worker's front holds for others is bounded: features that a leader's engine
 * has not claimed, answers that a vision worker does not read, messages for a leader that is not there. The fronts are
 * real, the other sides are scripted. */
#include "side.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/sha256.h"
#include "daemon/front.h"
#include "tests/scratch.h"

#define FEATURES_BYTES ((size_t)16384)
#define ROOM           4 /* such features */

static char base[64], scheduler_at[96], leader_at[96];
static struct wn_net *net;

static struct wn_front *front_open(Wn__Role role)
{
    const struct wn_front_opts o = {.role = role,
                                    .name = "test",
                                    .model_id = "m",
                                    .build = "test",
                                    .scheduler = scheduler_at,
                                    .features_bind = role == WN__ROLE__ROLE_LEADER ? leader_at : NULL,
                                    .slots = 4,
                                    .payload_max = FEATURES_BYTES,
                                    .unclaimed_max = ROOM * FEATURES_BYTES};
    struct wn_front *f = NULL;
    struct wn_err err = {0};

    if (wn_front_start(&f, &o, &err) != WN_OK) fail_msg("%s", err.text);
    return f;
}

static struct wn_endpoint *vision_open(void)
{
    const struct wn_endpoint_opts o = {.type = WN_ENDPOINT_DEALER, .address = leader_at,
                                       .frame_max = {WN_CODEC_BYTES_MAX, 4096}, .recv_queue_max = 1};
    struct wn_endpoint *ep = NULL;

    assert_int_equal(wn_endpoint_open(&ep, net, &o, NULL), WN_OK);
    return ep;
}

static void vision_say(struct wn_endpoint *ep, Wn__Envelope__BodyCase kind, const void *body, size_t payload)
{
    static const uint8_t rows[FEATURES_BYTES];

    end_say(ep, 10000, kind, body, payload ? rows : NULL, payload);
}

static void say_features_with(struct wn_endpoint *ep, uint32_t image, uint8_t damage)
{
    static const uint8_t rows[FEATURES_BYTES];
    Wn__JobRef ref = WN__JOB_REF__INIT;
    Wn__Features f = WN__FEATURES__INIT;
    uint8_t hash[WN_SHA256_BYTES];

    wn_sha256(hash, rows, sizeof(rows));
    hash[31] ^= damage;
    ref.job_id = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
    ref.attempt = 1;
    f.job = &ref;
    f.image = image;
    f.method = "none";
    f.sha256 = (ProtobufCBinaryData){.len = sizeof(hash), .data = hash};
    vision_say(ep, WN__ENVELOPE__BODY_FEATURES, &f, FEATURES_BYTES);
}

static void say_features(struct wn_endpoint *ep, uint32_t image)
{
    say_features_with(ep, image, 0);
}

/* The next message for this worker; NULL: none in time. */
static Wn__Envelope *vision_hear(struct wn_endpoint *ep, int ms)
{
    const int64_t until = wn_deadline_in_us(ms * 1000ll);
    Wn__Envelope *env = NULL;
    struct wn_msg msg;

    wn_msg_init(&msg);
    while (wn_endpoint_recv(ep, &msg) != WN_OK) {
        struct wn_poll_item item = {.ep = ep};
        if (wn_endpoint_poll(&item, 1, until) != WN_OK) return NULL;
    }
    assert_int_equal(wn_codec_unpack(&env, wn_msg_data(&msg, 0), wn_msg_size(&msg, 0), NULL), WN_OK);
    wn_msg_clear(&msg);
    return env;
}

static void expect_refused(struct wn_endpoint *ep, uint32_t image)
{
    Wn__Envelope *env = vision_hear(ep, 10000);

    assert_non_null(env);
    assert_int_equal(env->body_case, WN__ENVELOPE__BODY_FEATURES_ACK);
    assert_int_equal(env->features_ack->image, image);
    assert_int_equal(env->features_ack->code, WN_EBUSY);
    wn_codec_free(env);
}

static struct wn_front_msg *take(struct wn_front *f)
{
    struct wn_front_msg *m = NULL;

    for (int i = 0; i < 1000 && !(m = wn_front_take(f)); i++) usleep(10000);
    assert_non_null(m);
    return m;
}

/* A worker that sends without credit is told so; what is claimed or freed makes room. */
static void features_without_credit(void **state)
{
    struct wn_front *f = front_open(WN__ROLE__ROLE_LEADER);
    struct wn_endpoint *vision = vision_open();
    struct wn_front_msg *kept;

    (void)state;
    for (uint32_t i = 0; i < ROOM + 3; i++) say_features(vision, i);
    for (uint32_t i = ROOM; i < ROOM + 3; i++) expect_refused(vision, i);
    wn_front_msg_free(take(f));
    kept = take(f);
    wn_front_claim(kept);
    for (uint32_t i = 0; i < 3; i++) say_features(vision, i);
    expect_refused(vision, 2);
    assert_null(vision_hear(vision, 100));
    for (int i = 0; i < ROOM; i++) wn_front_msg_free(take(f));
    assert_null(wn_front_take(f));
    wn_front_msg_free(kept);
    wn_endpoint_close(vision);
    wn_front_stop(f, 0);
}

/* Features that are not what their hash says reach the main thread with a mark. */
static void damaged_features(void **state)
{
    struct wn_front *f = front_open(WN__ROLE__ROLE_LEADER);
    struct wn_endpoint *vision = vision_open();

    (void)state;
    for (uint32_t i = 0; i < 3; i++) say_features_with(vision, i, i == 1);
    for (uint32_t i = 0; i < 3; i++) {
        struct wn_front_msg *m = take(f);
        assert_int_equal(m->damaged, i == 1);
        wn_front_msg_free(m);
    }
    wn_endpoint_close(vision);
    wn_front_stop(f, 0);
}

static atomic_int alive;

static void count_down(void *data, void *hint)
{
    (void)hint;
    free(data);
    atomic_fetch_sub(&alive, 1);
}

static void send_counted(struct wn_front *f, const struct wn_party *to)
{
    const Wn__Credit c = WN__CREDIT__INIT;

    atomic_fetch_add(&alive, 1);
    wn_front_send(f, to, WN__ENVELOPE__BODY_CREDIT, &c, WN_TRAFFIC_CONTROL, calloc(1, 4096), 4096, count_down, NULL);
}

/* A vision worker reads nothing: what is for it is dropped, and others are answered. */
static void a_worker_that_does_not_read(void **state)
{
    struct wn_front *f = front_open(WN__ROLE__ROLE_LEADER);
    struct wn_endpoint *deaf = vision_open(), *other = vision_open();
    Wn__FeaturesHello hello = WN__FEATURES_HELLO__INIT;
    struct wn_front_msg *m;
    struct wn_party to;

    (void)state;
    hello.name = "vision-0";
    hello.model_id = "m";
    vision_say(deaf, WN__ENVELOPE__BODY_FEATURES_HELLO, &hello, 0);
    m = take(f);
    to = m->party;
    wn_front_msg_free(m);
    for (int i = 0; i < 20000; i++) send_counted(f, &to);
    vision_say(other, WN__ENVELOPE__BODY_FEATURES_HELLO, &hello, 0);
    m = take(f);
    send_counted(f, &m->party);
    wn_front_msg_free(m);
    wn_codec_free(vision_hear(other, 10000));
    assert_in_range(atomic_load(&alive), 0, 1500); /* ZeroMQ's queue of 1000, and what is on its way */
    wn_endpoint_close(deaf);
    wn_endpoint_close(other);
    wn_front_stop(f, 0);
    wn_net_destroy(net);
    assert_int_equal(wn_net_create(&net, NULL), WN_OK);
    assert_int_equal(atomic_load(&alive), 0);
}

/* A leader is not there: its messages are dropped and the worker is told, once; messages to another arrive. */
static void a_leader_that_is_not_there(void **state)
{
    struct side scheduler = {0}, leader = {0};
    Wn__Welcome welcome = WN__WELCOME__INIT;
    struct wn_party nowhere = {.side = WN_SIDE_LEADER}, there = {.side = WN_SIDE_LEADER};
    struct wn_front_msg *m = NULL;
    struct wn_front *f;

    (void)state;
    side_open(&scheduler, net, scheduler_at);
    side_open(&leader, net, leader_at);
    f = front_open(WN__ROLE__ROLE_VISION);
    wn_codec_free(side_expect(&scheduler, WN__ENVELOPE__BODY_HELLO));
    welcome.lease_ms = 500;
    welcome.heartbeat_ms = 50;
    side_say(&scheduler, WN__ENVELOPE__BODY_WELCOME, &welcome, NULL, 0);
    snprintf(nowhere.address, sizeof(nowhere.address), "ipc://%s/nobody", base);
    snprintf(there.address, sizeof(there.address), "%s", leader_at);
    for (int i = 0; i < 1000; i++) send_counted(f, &nowhere);
    send_counted(f, &there);
    wn_codec_free(side_expect(&leader, WN__ENVELOPE__BODY_CREDIT));
    for (int i = 0; i < 100 && !(m = wn_front_take(f)); i++)
        assert_null(side_wait(&scheduler, WN__ENVELOPE__BODY_ERROR, 50));
    assert_non_null(m);
    assert_true(m->unreachable);
    assert_string_equal(m->party.address, nowhere.address);
    wn_front_msg_free(m);
    for (int i = 0; i < 500 && atomic_load(&alive); i++) usleep(10000);
    assert_int_equal(atomic_load(&alive), 0);
    assert_null(side_wait(&scheduler, WN__ENVELOPE__BODY_ERROR, 1500));
    assert_null(wn_front_take(f));
    wn_front_stop(f, 0);
    wn_endpoint_close(leader.ep);
    wn_endpoint_close(scheduler.ep);
}

/* A leader whose group ends says so once, and is silent from then on: the scheduler must not take it for alive. */
static void a_group_that_ends(void **state)
{
    struct side scheduler = {0};
    Wn__Welcome welcome = WN__WELCOME__INIT;
    Wn__Envelope *env;
    struct wn_front *f;
    struct wn_err err = {0};

    (void)state;
    side_open(&scheduler, net, scheduler_at);
    f = front_open(WN__ROLE__ROLE_LEADER);
    wn_codec_free(side_expect(&scheduler, WN__ENVELOPE__BODY_HELLO));
    welcome.lease_ms = 60000;
    welcome.heartbeat_ms = 20;
    side_say(&scheduler, WN__ENVELOPE__BODY_WELCOME, &welcome, NULL, 0);
    wn_fail(&err, WN_EIO, "rank 1 is gone");
    wn_front_leave(f, &err);
    wn_front_leave(f, &err);
    env = side_expect(&scheduler, WN__ENVELOPE__BODY_ERROR);
    assert_null(env->error->job);
    assert_true(env->error->code >= WN_EPEER);
    assert_string_equal(env->error->text, "rank 1 is gone");
    wn_codec_free(env);
    assert_null(side_wait(&scheduler, WN__ENVELOPE__BODY_ERROR, 100));
    assert_null(side_wait(&scheduler, WN__ENVELOPE__BODY_HEARTBEAT, 200));
    wn_front_stop(f, 0);
    wn_endpoint_close(scheduler.ep);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(features_without_credit),
        cmocka_unit_test(damaged_features),
        cmocka_unit_test(a_worker_that_does_not_read),
        cmocka_unit_test(a_leader_that_is_not_there),
        cmocka_unit_test(a_group_that_ends),
    };
    int rc;

    wn_log_max = WN_LOG_ERROR;
    if (!scratch_make(base, sizeof(base), "front") || wn_net_create(&net, NULL) != WN_OK) return 1;
    snprintf(scheduler_at, sizeof(scheduler_at), "ipc://%s/s", base);
    snprintf(leader_at, sizeof(leader_at), "ipc://%s/l", base);
    rc = cmocka_run_group_tests(tests, NULL, NULL);
    if (rc == 0) wn_net_destroy(net); /* else sockets may be open */
    scratch_remove(base);
    return rc;
}
