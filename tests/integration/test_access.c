/* tests/integration/test_access.c - a scheduler with keys: who gets in, and what each key may do. The keys are made by
 * `winnow keygen` (its path is the argument). */
#include "sched_bed.h"

#include "base/key.h"
#include "client/winnow.h"
#include "tests/scratch.h"

static const char *winnow;
static char dir[64];

static const char *key(const char *name)
{
    static char path[4][96];
    static int i;

    i = (i + 1) % 4;
    snprintf(path[i], sizeof(path[i]), "%s/%s.key", dir, name);
    return path[i];
}

static void keygen(const char *where, const char *client)
{
    char command[512];

    snprintf(command, sizeof(command), "%s keygen %s %s %s >/dev/null", winnow, where, client ? "--client" : "",
             client ? client : "");
    assert_int_equal(system(command), 0);
}

static int setup(void **state)
{
    static struct bed b;

    if (!scratch_make(dir, sizeof(dir), "access")) return -1;
    keygen(dir, NULL);
    keygen(dir, "alice");
    bed_init(&b);
    snprintf(b.cfg.keys, sizeof(b.cfg.keys), "%s", dir);
    b.cfg.no_worker_timeout_ms = 0;
    bed_start(&b);
    *state = &b;
    return 0;
}

static int teardown(void **state)
{
    bed_stop(*state);
    return scratch_remove(dir) ? 0 : -1;
}

/* A job belongs to the key that submitted it, whatever the client writes about that; only an admin has all of them. */
static void test_owner(void **state)
{
    struct bed *b = *state;
    struct end *client = end_open_as(b, false, key("client")), *twin = end_open_as(b, false, key("client"));
    struct end *alice = end_open_as(b, false, key("alice")), *admin = end_open_as(b, false, key("admin"));
    Wn__Submit forged = WN__SUBMIT__INIT;
    Wn__Acknowledge ack = WN__ACKNOWLEDGE__INIT;
    char id[32], second[32];

    submit(client, "mine", NULL, "same-key");
    expect_accepted(client, false, id);
    attach(alice, id, 0);
    end_expect_error(alice, WN_EAUTH, "another key");
    cancel(alice, id);
    end_expect_error(alice, WN_EAUTH, "another key");
    attach(twin, id, 0); /* another connection with the same key */
    expect_accepted(twin, true, NULL);
    submit(alice, "hers", NULL, "same-key"); /* the key of another client's job: another job */
    expect_accepted(alice, false, second);
    assert_string_not_equal(id, second);
    forged.prompt = "forged";
    forged.idempotency_key = "forged";
    forged.client_tag = "7";
    forged.owner = "F95%*4s]d/a#3!%ShpETLIaVaGME}K0.[<2=VgmK";
    end_send(alice, WN__ENVELOPE__BODY_SUBMIT, &forged, NULL, 0);
    expect_accepted(alice, false, second);
    cancel(alice, second); /* hers all the same */
    wn_codec_free(expect_done(alice, WN__FINISH_REASON__FINISH_CANCELLED, ""));
    cancel(admin, id);
    expect_accepted(admin, true, NULL);
    wn_codec_free(expect_done(admin, WN__FINISH_REASON__FINISH_CANCELLED, ""));
    wn_codec_free(expect_done(client, WN__FINISH_REASON__FINISH_CANCELLED, ""));
    ack.job_id = id; /* nor may another key give the result away */
    end_send(alice, WN__ENVELOPE__BODY_ACKNOWLEDGE, &ack, NULL, 0);
    end_expect_error(alice, WN_EAUTH, "another key");
}

/* A worker's key does not submit; a client's is no worker's, on either port. */
static void test_roles(void **state)
{
    struct bed *b = *state;
    struct end *worker_here = end_open_as(b, false, key("worker")), *client = end_open_as(b, false, key("client"));
    struct end *client_there = end_open_as(b, true, key("client")), *admin_there = end_open_as(b, true, key("admin"));
    struct end *worker = end_open_as(b, true, key("worker"));
    Wn__Hello h = WN__HELLO__INIT;

    submit(worker_here, "let me", NULL, "");
    end_expect_error(worker_here, WN_EAUTH, "a worker key may not send Submit");
    wn_codec_free(ask_status(worker_here));
    h.role = WN__ROLE__ROLE_VISION;
    h.name = "intruder";
    end_send(client, WN__ENVELOPE__BODY_HELLO, &h, NULL, 0);
    end_expect_error(client, WN_EPROTO, "Hello is not for clients");
    assert_null(end_recv(client_there, 300));
    worker_hello(worker, WN__ROLE__ROLE_VISION, "vision-0", 4, 1);
    for (int i = 0; i < 2; i++) { /* nothing can be sent: they are not connected */
        struct wn_endpoint_stats stats;
        wn_endpoint_stats_get(i ? admin_there->ep : client_there->ep, &stats);
        assert_int_equal(stats.connected, 0);
        assert_true(stats.handshake_failed > 0);
    }
    end_close(client_there);
    end_close(admin_there);
}

/* Strangers get nothing; they are counted, and only an admin sees how many and who works here. */
static void test_strangers(void **state)
{
    struct bed *b = *state;
    struct end stranger = {0}, *plain = end_open(b, false), *admin = end_open_as(b, false, key("admin"));
    struct end *client = end_open_as(b, false, key("client"));
    struct wn_key *server = NULL;
    struct wn_curve_opts curve = {0};
    char public_key[WN_CURVE_KEY_CHARS], secret_key[WN_CURVE_KEY_CHARS];
    struct wn_endpoint_opts o = {.type = WN_ENDPOINT_DEALER, .address = b->clients, .frame_max = {WN_CODEC_BYTES_MAX}};
    Wn__Envelope *env;

    assert_int_equal(wn_key_open(&server, key("server"), NULL), WN_OK);
    assert_int_equal(wn_curve_keypair(public_key, secret_key, NULL), WN_OK);
    curve.public_key = public_key;
    curve.secret_key = secret_key;
    curve.server_key = server->public_key;
    o.curve = curve;
    assert_int_equal(wn_endpoint_open(&stranger.ep, b->net, &o, NULL), WN_OK);
    assert_null(end_recv(&stranger, 300));
    assert_null(end_recv(plain, 100));
    env = ask_status(admin);
    assert_true(env->status->refused_keys >= 3); /* two of test_roles */
    assert_true(env->status->refused_handshakes > 0);
    assert_true(env->status->refused_messages >= 4);
    assert_int_equal(env->status->n_workers, 1);
    wn_codec_free(env);
    env = ask_status(client);
    assert_int_equal(env->status->refused_keys + env->status->n_workers, 0);
    assert_true(env->status->accepted > 0);
    wn_codec_free(env);
    wn_key_close(server);
    end_close(&stranger);
}

/* libwinnow: a key file, the environment, a wrong one, none. */
static void test_library(void **state)
{
    struct bed *b = *state;
    struct winnow_options options = {.client_key_file = key("client"), .connect_timeout_ms = 3000};
    struct winnow *w = NULL;

    assert_int_equal(winnow_connect(&w, b->clients, &options), WINNOW_OK);
    winnow_close(w);
    options.server_key = "F95%*4s]d/a#3!%ShpETLIaVaGME}K0.[<2=VgmK";
    options.connect_timeout_ms = 1000; /* a refusal is seen soon, and waited out */
    assert_int_equal(winnow_connect(&w, b->clients, &options), WINNOW_ECONNECT);
    assert_non_null(strstr(winnow_error(NULL), "with this key"));
    options.server_key = "no key";
    assert_int_equal(winnow_connect(&w, b->clients, &options), WINNOW_EINVAL);
    options = (struct winnow_options){.connect_timeout_ms = 1000};
    assert_int_equal(winnow_connect(&w, b->clients, &options), WINNOW_ECONNECT);
    assert_non_null(strstr(winnow_error(NULL), "without a key"));
    setenv("WINNOW_KEY", key("alice"), 1);
    options.connect_timeout_ms = 3000;
    assert_int_equal(winnow_connect(&w, b->clients, &options), WINNOW_OK);
    winnow_close(w);
    setenv("WINNOW_KEY", "/tmp/there-is-no-such-key", 1);
    assert_int_equal(winnow_connect(&w, b->clients, NULL), WINNOW_EINVAL);
    unsetenv("WINNOW_KEY");
}

/* Only an admin ends the service; a second word can bring the end nearer, not put it off. The last test of this bed. */
static void test_drain(void **state)
{
    struct bed *b = *state;
    struct end *client = end_open_as(b, false, key("client")), *worker = end_open_as(b, false, key("worker"));
    struct end *admin = end_open_as(b, false, key("admin")), *leader = end_open_as(b, true, key("worker"));
    const uint32_t asked[] = {60000, 2000, 60000}, most[] = {60000, 2000, 2000};
    Wn__Drain drain = WN__DRAIN__INIT;
    struct wn_endpoint_stats stats;
    Wn__Envelope *env;

    end_send(client, WN__ENVELOPE__BODY_DRAIN, &drain, NULL, 0);
    end_expect_error(client, WN_EAUTH, "a client key may not send Drain");
    end_send(worker, WN__ENVELOPE__BODY_DRAIN, &drain, NULL, 0);
    end_expect_error(worker, WN_EAUTH, "a worker key may not send Drain");
    worker_hello(leader, WN__ROLE__ROLE_LEADER, "replica-0", 1, 1);
    submit_new(client, "a job that does not end", NULL, NULL);
    for (int i = 0; i < 3; i++) {
        drain.deadline_ms = asked[i];
        end_send(admin, WN__ENVELOPE__BODY_DRAIN, &drain, NULL, 0);
        env = end_expect(admin, WN__ENVELOPE__BODY_DRAIN);
        assert_in_range(env->drain->deadline_ms, i == 0 ? most[0] - 5000 : 0, most[i]);
        assert_true(env->drain->jobs > 0);
        wn_codec_free(env);
    }
    submit(client, "too late", NULL, "");
    wn_codec_free(end_expect(client, WN__ENVELOPE__BODY_BUSY));
    end_expect_error(client, WN_ECANCEL, "shutting down");
    end_close(leader);
    do { /* nobody else tells it to end */
        assert_null(end_recv(admin, 10));
        wn_endpoint_stats_get(admin->ep, &stats);
    } while (stats.disconnected == 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_owner), cmocka_unit_test(test_roles),
                                       cmocka_unit_test(test_strangers), cmocka_unit_test(test_library),
                                       cmocka_unit_test(test_drain)};

    winnow = argc > 1 ? argv[1] : "winnow";
    return cmocka_run_group_tests(tests, setup, teardown);
}
