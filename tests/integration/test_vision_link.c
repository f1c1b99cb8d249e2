/* tests/integration/test_vision_link.c - a real vision worker and its leaders. A connection is lost while features are
 * on their way: it greets the leader again, sends what was not acknowledged again, and its credit is whole. A leader
 * that is not there, or has no room, costs its own images and nobody else's; so does an order that makes no sense, one
 * that is cancelled, and one that comes when the worker is full or leaves.
 *
 *   test_vision_link WINNOWD
 *
 * Scheduler and leader are scripted. */
#include "side.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "tests/child.h"
#include "tests/scratch.h"

#define PICTURE "tests/eval/images/000.jpg"

static const char *program;
static char base[64], scheduler_at[96], leader_at[96];
static struct wn_net *net;
static uint8_t picture[1 << 20];
static size_t picture_bytes;

static pid_t start_worker(void)
{
    char endpoint[128];
    const char *const argv[] = {program,           "vision",            "models/tiny-llava", endpoint,
                                "--name=vision-0", "--log-level=error", NULL};

    snprintf(endpoint, sizeof(endpoint), "--scheduler-endpoint=%s", scheduler_at);
    return child_start(argv);
}

/* An order that a test may change before it is said: image `image` of job `job`. */
static Wn__Encode order_of(char job, uint32_t image)
{
    static char id[] = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
    static Wn__JobRef ref;
    Wn__Encode e = WN__ENCODE__INIT;

    ref = (Wn__JobRef)WN__JOB_REF__INIT;
    id[25] = job;
    ref.job_id = id;
    ref.attempt = 1;
    e.job = &ref;
    e.image = image;
    e.leader_endpoint = leader_at;
    e.leader_name = "replica-0";
    return e;
}

static void order_for(struct side *scheduler, const char *leader, uint32_t image)
{
    Wn__Encode e = order_of('V', image);

    e.leader_endpoint = (char *)(uintptr_t)leader;
    side_say(scheduler, WN__ENVELOPE__BODY_ENCODE, &e, picture, picture_bytes);
}

static void order(struct side *scheduler, uint32_t image)
{
    order_for(scheduler, leader_at, image);
}

/* Starts the worker and welcomes it. */
static pid_t worker_with(struct side *scheduler, uint32_t lease_ms)
{
    Wn__Welcome welcome = WN__WELCOME__INIT;
    pid_t worker;

    side_open(scheduler, net, scheduler_at);
    worker = start_worker();
    wn_codec_free(side_expect(scheduler, WN__ENVELOPE__BODY_HELLO));
    welcome.lease_ms = lease_ms;
    welcome.heartbeat_ms = 200;
    side_say(scheduler, WN__ENVELOPE__BODY_WELCOME, &welcome, NULL, 0);
    return worker;
}

static void end_worker(pid_t worker, struct side *scheduler)
{
    const int status = child_end(worker, SIGTERM);

    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    wn_endpoint_close(scheduler->ep);
}

static void give_credit(struct side *leader, uint32_t images)
{
    Wn__Credit c = WN__CREDIT__INIT;

    wn_codec_free(side_expect(leader, WN__ENVELOPE__BODY_FEATURES_HELLO));
    c.images = images;
    side_say(leader, WN__ENVELOPE__BODY_CREDIT, &c, NULL, 0);
}

static void take_features(struct side *leader, bool acknowledge, bool seen[3])
{
    Wn__FeaturesAck ack = WN__FEATURES_ACK__INIT;
    Wn__Envelope *env = side_expect(leader, WN__ENVELOPE__BODY_FEATURES);

    assert_true(env->features->image < 3);
    seen[env->features->image] = true;
    ack.job = env->features->job;
    ack.image = env->features->image;
    if (acknowledge) side_say(leader, WN__ENVELOPE__BODY_FEATURES_ACK, &ack, NULL, 0);
    wn_codec_free(env);
}

static void a_connection_is_lost(void **state)
{
    struct side scheduler = {0}, leader = {0};
    bool before[3] = {false}, after[3] = {false};
    Wn__Envelope *env = NULL;
    pid_t worker;

    (void)state;
    side_open(&leader, net, leader_at);
    worker = worker_with(&scheduler, 600000); /* it is not heard of while we talk to the worker as its leader */
    for (uint32_t i = 0; i < 3; i++) order(&scheduler, i);
    give_credit(&leader, 2);
    take_features(&leader, false, before);
    take_features(&leader, false, before); /* two are on their way, the third has no credit */
    wn_endpoint_close(leader.ep);
    side_open(&leader, net, leader_at);
    give_credit(&leader, 2);
    take_features(&leader, true, after); /* all three, two at a time: no credit was lost with the connection */
    take_features(&leader, true, after);
    take_features(&leader, true, after);
    assert_true(after[0] && after[1] && after[2]);
    do { /* it was one picture all the time: one run of the tower */
        wn_codec_free(env);
        env = side_expect(&scheduler, WN__ENVELOPE__BODY_HEARTBEAT);
        assert_in_range(env->heartbeat->encodes, 0, 1);
    } while (env->heartbeat->images < 3);
    assert_int_equal(env->heartbeat->encodes, 1);
    assert_in_range(env->heartbeat->images - env->heartbeat->cache_hits, 1, 4);
    wn_codec_free(env);
    end_worker(worker, &scheduler);
    wn_endpoint_close(leader.ep);
}

static void expect_error(struct side *scheduler, uint32_t code, const char *words)
{
    Wn__Envelope *env = side_expect(scheduler, WN__ENVELOPE__BODY_ERROR);

    assert_int_equal(env->error->code, code);
    assert_true(env->error->retriable);
    if (!strstr(env->error->text, words)) fail_msg("'%s' is not in '%s'", words, env->error->text);
    wn_codec_free(env);
}

/* Nobody listens there: the scheduler hears so soon, and the worker goes on for others meanwhile. */
static void a_leader_that_is_not_there(void **state)
{
    struct side scheduler = {0}, leader = {0};
    Wn__Credit credit = WN__CREDIT__INIT;
    Wn__Envelope *env;
    char nowhere[96];
    bool greeted = false, served = false;
    int missed = 0;
    pid_t worker;

    (void)state;
    side_open(&leader, net, leader_at);
    worker = worker_with(&scheduler, 1500);
    snprintf(nowhere, sizeof(nowhere), "ipc://%s/nobody", base);
    for (uint32_t i = 0; i < 5; i++) order_for(&scheduler, nowhere, i);
    expect_error(&scheduler, WN_EBUSY, "has not taken the images"); /* the fifth: half of the places */
    order(&scheduler, 5);
    credit.images = 1;
    for (int i = 0; i < 600 && (!served || missed < 4); i++) { /* both sides in turn: the lease is short */
        if ((env = side_wait(&leader, greeted ? WN__ENVELOPE__BODY_FEATURES : WN__ENVELOPE__BODY_FEATURES_HELLO, 50))) {
            if (!greeted) side_say(&leader, WN__ENVELOPE__BODY_CREDIT, &credit, NULL, 0);
            served = greeted;
            greeted = true;
        }
        wn_codec_free(env);
        if ((env = side_wait(&scheduler, WN__ENVELOPE__BODY_ERROR, 50)) != NULL) {
            assert_int_equal(env->error->code, WN_EPEER);
            assert_non_null(strstr(env->error->text, "cannot be reached"));
            missed++;
        }
        wn_codec_free(env);
    }
    assert_true(served);
    assert_int_equal(missed, 4);
    end_worker(worker, &scheduler);
    wn_endpoint_close(leader.ep);
}

static void refuse(struct side *leader, uint32_t code, const char *text)
{
    Wn__Envelope *env = side_expect(leader, WN__ENVELOPE__BODY_FEATURES);
    Wn__FeaturesAck ack = WN__FEATURES_ACK__INIT;

    ack.job = env->features->job;
    ack.image = 1;
    ack.code = code;
    ack.text = (char *)(uintptr_t)text;
    side_say(leader, WN__ENVELOPE__BODY_FEATURES_ACK, &ack, NULL, 0);
    wn_codec_free(env);
}

/* A leader that has no room, or that has given the job's features up, says so; the scheduler hears it, and the credit
 * is whole. */
static void features_are_refused(void **state)
{
    struct side scheduler = {0}, leader = {0};
    bool seen[3] = {false};
    pid_t worker;

    (void)state;
    side_open(&leader, net, leader_at);
    worker = worker_with(&scheduler, 600000);
    order(&scheduler, 1);
    give_credit(&leader, 1);
    refuse(&leader, WN_EBUSY, "no room");
    expect_error(&scheduler, WN_EBUSY, "no room");
    order(&scheduler, 1);
    refuse(&leader, WN_ENOENT, "no such job");
    expect_error(&scheduler, WN_EPEER, "no such job");
    order(&scheduler, 1);
    take_features(&leader, true, seen);
    assert_true(seen[1]);
    end_worker(worker, &scheduler);
    wn_endpoint_close(leader.ep);
}

static Wn__Envelope *error_within(struct side *scheduler, int ms)
{
    return side_wait(scheduler, WN__ENVELOPE__BODY_ERROR, ms);
}

/* A leader takes features, says nothing about them and is not reached any more: whether it has them nobody knows, so
 * the scheduler hears of them. */
static void a_leader_goes_away(void **state)
{
    struct side scheduler = {0}, leader = {0};
    Wn__Credit credit = WN__CREDIT__INIT;
    Wn__Envelope *env = NULL;
    pid_t worker;

    (void)state;
    side_open(&leader, net, leader_at);
    worker = worker_with(&scheduler, 1500);
    order(&scheduler, 2);
    for (int i = 0; i < 600 && !env; i++) { /* both sides in turn: the lease is short */
        assert_null(error_within(&scheduler, 20));
        env = side_wait(&leader, WN__ENVELOPE__BODY_FEATURES_HELLO, 20);
    }
    wn_codec_free(env);
    env = NULL;
    credit.images = 1;
    side_say(&leader, WN__ENVELOPE__BODY_CREDIT, &credit, NULL, 0);
    for (int i = 0; i < 600 && !env; i++) {
        assert_null(error_within(&scheduler, 20));
        env = side_wait(&leader, WN__ENVELOPE__BODY_FEATURES, 20);
    }
    assert_non_null(env);
    wn_codec_free(env);
    wn_endpoint_close(leader.ep);
    env = error_within(&scheduler, 60000);
    assert_non_null(env);
    assert_int_equal(env->error->code, WN_EPEER);
    assert_true(env->error->retriable);
    assert_non_null(strstr(env->error->text, "cannot be reached"));
    assert_string_equal(env->error->job->job_id, "01ARZ3NDEKTSV4RRFFQ69G5FAV");
    wn_codec_free(env);
    end_worker(worker, &scheduler);
}

static void expect_refused(struct side *scheduler, uint32_t code, const char *words)
{
    Wn__Envelope *env = side_expect(scheduler, WN__ENVELOPE__BODY_ERROR);

    if (!strstr(env->error->text, words)) fail_msg("'%s' is not in '%s'", words, env->error->text);
    assert_int_equal(env->error->code, code);
    assert_false(env->error->retriable);
    wn_codec_free(env);
}

/* Each is answered with what is wrong with it, for good; a good one among them is served. */
static void orders_that_make_no_sense(void **state)
{
    struct side scheduler = {0}, leader = {0};
    Wn__Pruning pruning = WN__PRUNING__INIT;
    Wn__Encode e;
    bool seen[3] = {false};
    pid_t worker;

    (void)state;
    side_open(&leader, net, leader_at);
    worker = worker_with(&scheduler, 600000);
    e = order_of('A', 0);
    side_say(&scheduler, WN__ENVELOPE__BODY_ENCODE, &e, NULL, 0);
    expect_refused(&scheduler, WN_EPROTO, "an order without an image");
    e.leader_endpoint = "";
    side_say(&scheduler, WN__ENVELOPE__BODY_ENCODE, &e, picture, picture_bytes);
    expect_refused(&scheduler, WN_EPROTO, "without the address of a leader");
    e = order_of('A', 0);
    pruning.method = "no-such";
    e.pruning = &pruning;
    side_say(&scheduler, WN__ENVELOPE__BODY_ENCODE, &e, picture, picture_bytes);
    expect_refused(&scheduler, WN_ENOENT, "no-such");
    e = order_of('A', 1);
    side_say(&scheduler, WN__ENVELOPE__BODY_ENCODE, &e, "no picture", 10);
    order(&scheduler, 2);
    e.image = 0;
    side_say(&scheduler, WN__ENVELOPE__BODY_ENCODE, &e, picture, picture_bytes / 2);
    expect_refused(&scheduler, WN_EUNSUPP, "image 2: neither JPEG nor PNG nor WebP"); /* the request's second */
    expect_refused(&scheduler, WN_EFORMAT, "image 1: JPEG");
    give_credit(&leader, 1);
    take_features(&leader, true, seen);
    assert_true(seen[2]);
    assert_null(side_wait(&scheduler, WN__ENVELOPE__BODY_ERROR, 100));
    end_worker(worker, &scheduler);
    wn_endpoint_close(leader.ep);
}

static void cancel(struct side *scheduler, char job)
{
    Wn__Encode e = order_of(job, 0);
    Wn__Cancel c = WN__CANCEL__INIT;

    c.job = e.job;
    side_say(scheduler, WN__ENVELOPE__BODY_CANCEL, &c, NULL, 0);
}

static void order_as(struct side *scheduler, char job, uint32_t image)
{
    Wn__Encode e = order_of(job, image);

    side_say(scheduler, WN__ENVELOPE__BODY_ENCODE, &e, picture, picture_bytes);
}

/* The features that come next are these. */
static Wn__Envelope *expect_features(struct side *leader, char job)
{
    Wn__Envelope *env = side_expect(leader, WN__ENVELOPE__BODY_FEATURES);

    assert_int_equal(env->features->job->job_id[25], job);
    return env;
}

static void acknowledge(struct side *leader, Wn__Envelope *env, uint32_t code)
{
    Wn__FeaturesAck ack = WN__FEATURES_ACK__INIT;

    ack.job = env->features->job;
    ack.image = env->features->image;
    ack.code = code;
    ack.text = "no room";
    side_say(leader, WN__ENVELOPE__BODY_FEATURES_ACK, &ack, NULL, 0);
    wn_codec_free(env);
}

/* Features that wait for credit are forgotten with their job; those that were sent give their credit back whatever
 * the leader says of them, and the scheduler hears no more of them. */
static void jobs_that_are_cancelled(void **state)
{
    struct side scheduler = {0}, leader = {0};
    Wn__Envelope *env, *a;
    pid_t worker;

    (void)state;
    side_open(&leader, net, leader_at);
    worker = worker_with(&scheduler, 600000);
    order_as(&scheduler, 'A', 0);
    give_credit(&leader, 1);
    a = expect_features(&leader, 'A');
    order_as(&scheduler, 'B', 0); /* no credit for it */
    order_as(&scheduler, 'C', 0);
    for (bool waits = false; !waits;) { /* encoded, and waits */
        env = side_expect(&scheduler, WN__ENVELOPE__BODY_ENCODED);
        waits = env->encoded->waiting && env->encoded->job->job_id[25] == 'C';
        wn_codec_free(env);
    }
    cancel(&scheduler, 'B');
    cancel(&scheduler, 'A');
    usleep(100000);
    acknowledge(&leader, a, WN_EBUSY); /* of a job that is not wanted */
    acknowledge(&leader, expect_features(&leader, 'C'), WN_OK);
    order_as(&scheduler, 'D', 0);
    acknowledge(&leader, expect_features(&leader, 'D'), WN_OK);
    assert_null(side_wait(&scheduler, WN__ENVELOPE__BODY_ERROR, 100));
    end_worker(worker, &scheduler);
    wn_endpoint_close(leader.ep);
}

/* Places are for eight images of all leaders together; then it is the next worker's turn. */
static void a_worker_that_is_full(void **state)
{
    struct side scheduler = {0};
    char nowhere[96];
    pid_t worker;
    int status;

    (void)state;
    worker = worker_with(&scheduler, 600000);
    for (uint32_t i = 0; i < 8; i++) {
        snprintf(nowhere, sizeof(nowhere), "ipc://%s/nobody-%u", base, i / 4);
        order_for(&scheduler, nowhere, i % 4);
    }
    order(&scheduler, 0);
    expect_error(&scheduler, WN_EBUSY, "queue is full");
    status = child_end(worker, SIGKILL);
    assert_true(WIFSIGNALED(status));
    wn_endpoint_close(scheduler.ep);
}

/* Told to leave, it takes nothing new, sends what it has, and goes. */
static void a_worker_that_leaves(void **state)
{
    const Wn__Drain drain = WN__DRAIN__INIT;
    struct side scheduler = {0}, leader = {0};
    pid_t worker;
    int status;

    (void)state;
    side_open(&leader, net, leader_at);
    worker = worker_with(&scheduler, 600000);
    order_as(&scheduler, 'A', 0);
    order_as(&scheduler, 'B', 0);
    side_say(&scheduler, WN__ENVELOPE__BODY_DRAIN, &drain, NULL, 0);
    order_as(&scheduler, 'C', 0);
    expect_error(&scheduler, WN_EBUSY, "is leaving");
    give_credit(&leader, 1);
    acknowledge(&leader, expect_features(&leader, 'A'), WN_OK);
    wn_codec_free(expect_features(&leader, 'B'));
    status = child_end(worker, 0);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    wn_endpoint_close(scheduler.ep);
    wn_endpoint_close(leader.ep);
}

static void read_picture(void)
{
    FILE *f = fopen(PICTURE, "rb");

    assert_non_null(f);
    picture_bytes = fread(picture, 1, sizeof(picture), f);
    fclose(f);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_connection_is_lost),
        cmocka_unit_test(a_leader_that_is_not_there),
        cmocka_unit_test(features_are_refused),
        cmocka_unit_test(a_leader_goes_away),
        cmocka_unit_test(orders_that_make_no_sense),
        cmocka_unit_test(jobs_that_are_cancelled),
        cmocka_unit_test(a_worker_that_is_full),
        cmocka_unit_test(a_worker_that_leaves),
    };
    struct wn_err err = {0};
    int rc;

    if (argc < 2) return 2;
    program = argv[1];
    wn_log_max = WN_LOG_ERROR;
    if (!scratch_make(base, sizeof(base), "vlink") || wn_net_create(&net, &err) != WN_OK) return 1;
    snprintf(scheduler_at, sizeof(scheduler_at), "ipc://%s/s", base);
    snprintf(leader_at, sizeof(leader_at), "ipc://%s/l", base);
    read_picture();
    rc = cmocka_run_group_tests(tests, NULL, NULL);
    if (rc == 0) wn_net_destroy(net); /* else sockets may be open */
    scratch_remove(base);
    return rc;
}
