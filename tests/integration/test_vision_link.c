/* tests/integration/test_vision_link.c - a real vision worker whose connection to a leader is lost while features are
 * on their way: it greets the leader again, sends what was not acknowledged again, and its credit is whole.
 *
 *   test_vision_link WINNOWD
 *
 * Scheduler and leader are scripted. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "proto/codec.h"
#include "transport/endpoint.h"

#define PICTURE "tests/eval/images/000.jpg"
#define WAIT_MS 60000

static char program[1024], base[64], scheduler_at[96], leader_at[96];
static struct wn_net *net;

/* One of the scripted sides: a ROUTER that talks to the one worker. */
struct side {
    struct wn_endpoint *ep;
    struct wn_peer_id worker;
};

static void side_open(struct side *s, const char *address)
{
    const struct wn_endpoint_opts o = {.type = WN_ENDPOINT_ROUTER,
                                       .address = address,
                                       .bind = true,
                                       .frame_max = {WN_CODEC_BYTES_MAX, (size_t)64 << 20}};
    struct wn_err err = {0};
    wn_status rc = WN_EIO;

    for (int i = 0; i < 200 && rc != WN_OK; i++) { /* ZeroMQ lets go of an address some time after it was closed */
        if (i) usleep(50000);
        rc = wn_endpoint_open(&s->ep, net, &o, &err);
    }
    if (rc != WN_OK) fail_msg("%s", err.text);
}

/* The next message of this kind; others are skipped. */
static Wn__Envelope *expect(struct side *s, Wn__Envelope__BodyCase kind)
{
    const int64_t until = wn_deadline_in_us(WAIT_MS * 1000ll);
    struct wn_msg msg;
    struct wn_err err = {0};

    wn_msg_init(&msg);
    while (!wn_deadline_passed(until)) {
        struct wn_poll_item item = {.ep = s->ep};
        Wn__Envelope *env = NULL;
        if (wn_endpoint_recv(s->ep, &msg) != WN_OK) {
            (void)!wn_endpoint_poll(&item, 1, wn_deadline_in_us(100000));
            continue;
        }
        s->worker = msg.peer;
        if (wn_codec_unpack(&env, wn_msg_data(&msg, 0), wn_msg_size(&msg, 0), &err) != WN_OK) fail_msg("%s", err.text);
        if (env->body_case == kind) {
            wn_msg_clear(&msg);
            return env;
        }
        wn_codec_free(env);
    }
    fail_msg("%s did not come", wn_codec_body_name(kind));
    return NULL;
}

static void say(struct side *s, Wn__Envelope__BodyCase kind, const void *body, const void *payload, size_t bytes)
{
    struct wn_err err = {0};
    struct wn_msg msg;
    uint8_t *data = NULL;
    size_t n = 0;

    wn_msg_init(&msg);
    assert_int_equal(wn_codec_pack_body(&data, &n, kind, body, &err), WN_OK);
    assert_int_equal(wn_msg_add_copy(&msg, data, n), WN_OK);
    if (payload) assert_int_equal(wn_msg_add_copy(&msg, payload, bytes), WN_OK);
    msg.peer = s->worker;
    assert_int_equal(wn_endpoint_send(s->ep, &msg, WN_TRAFFIC_CONTROL), WN_OK);
    wn_msg_clear(&msg);
    free(data);
}

static pid_t start_worker(void)
{
    char endpoint[128];
    pid_t pid;

    snprintf(endpoint, sizeof(endpoint), "--scheduler-endpoint=%s", scheduler_at);
    pid = fork();
    if (pid != 0) return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    execl(program, program, "vision", "models/tiny-llava", endpoint, "--name=vision-0", "--log-level=error",
          (char *)NULL);
    _exit(127);
}

static void order(struct side *scheduler, uint32_t image, const void *picture, size_t bytes)
{
    Wn__JobRef ref = WN__JOB_REF__INIT;
    Wn__Encode e = WN__ENCODE__INIT;

    ref.job_id = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
    ref.attempt = 1;
    e.job = &ref;
    e.image = image;
    e.leader_endpoint = leader_at;
    e.leader_name = "replica-0";
    say(scheduler, WN__ENVELOPE__BODY_ENCODE, &e, picture, bytes);
}

static void give_credit(struct side *leader, uint32_t images)
{
    Wn__Credit c = WN__CREDIT__INIT;

    wn_codec_free(expect(leader, WN__ENVELOPE__BODY_FEATURES_HELLO));
    c.images = images;
    say(leader, WN__ENVELOPE__BODY_CREDIT, &c, NULL, 0);
}

static void take_features(struct side *leader, bool acknowledge, bool seen[3])
{
    Wn__FeaturesAck ack = WN__FEATURES_ACK__INIT;
    Wn__Envelope *env = expect(leader, WN__ENVELOPE__BODY_FEATURES);

    assert_true(env->features->image < 3);
    seen[env->features->image] = true;
    ack.job = env->features->job;
    ack.image = env->features->image;
    if (acknowledge) say(leader, WN__ENVELOPE__BODY_FEATURES_ACK, &ack, NULL, 0);
    wn_codec_free(env);
}

static void a_connection_is_lost(void **state)
{
    struct side scheduler = {0}, leader = {0};
    Wn__Welcome welcome = WN__WELCOME__INIT;
    bool before[3] = {false}, after[3] = {false};
    static uint8_t picture[1 << 20];
    FILE *f = fopen(PICTURE, "rb");
    size_t bytes;
    pid_t worker;
    int status;

    (void)state;
    assert_non_null(f);
    bytes = fread(picture, 1, sizeof(picture), f);
    fclose(f);
    side_open(&scheduler, scheduler_at);
    side_open(&leader, leader_at);
    worker = start_worker();
    wn_codec_free(expect(&scheduler, WN__ENVELOPE__BODY_HELLO));
    welcome.lease_ms = 600000; /* the scripted scheduler says nothing more by itself */
    welcome.heartbeat_ms = 500;
    say(&scheduler, WN__ENVELOPE__BODY_WELCOME, &welcome, NULL, 0);
    for (uint32_t i = 0; i < 3; i++) order(&scheduler, i, picture, bytes);
    give_credit(&leader, 2);
    take_features(&leader, false, before);
    take_features(&leader, false, before); /* two are on their way, the third has no credit */
    wn_endpoint_close(leader.ep);
    side_open(&leader, leader_at);
    give_credit(&leader, 2);
    take_features(&leader, true, after); /* all three, two at a time: no credit was lost with the connection */
    take_features(&leader, true, after);
    take_features(&leader, true, after);
    assert_true(after[0] && after[1] && after[2]);
    kill(worker, SIGTERM);
    waitpid(worker, &status, 0);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    wn_endpoint_close(leader.ep);
    wn_endpoint_close(scheduler.ep);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *f)
{
    (void)st;
    (void)type;
    (void)f;
    return remove(path);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_connection_is_lost)};
    struct wn_err err = {0};
    int rc;

    if (argc < 2) return 2;
    snprintf(program, sizeof(program), "%s", argv[1]);
    wn_log_max = WN_LOG_ERROR;
    snprintf(base, sizeof(base), "/tmp/winnow-vlink-XXXXXX");
    if (!mkdtemp(base) || wn_net_create(&net, &err) != WN_OK) return 1;
    snprintf(scheduler_at, sizeof(scheduler_at), "ipc://%s/s", base);
    snprintf(leader_at, sizeof(leader_at), "ipc://%s/l", base);
    rc = cmocka_run_group_tests(tests, NULL, NULL);
    if (rc == 0) wn_net_destroy(net); /* else sockets may be open */
    nftw(base, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    return rc;
}
