/* tests/integration/test_scheduler_workers.c - workers that live and do not do what they are there for: features that
 * never come, a leader whose engine hangs, or that leaves; and workers that die. */
#include "sched_bed.h"

#include "base/log.h"

/* The image was encoded, and then its features were lost on the way: they are ordered again, for the same attempt.
 * After the first token nobody needs them. */
static void features_are_lost(void **state)
{
    struct bed *b = *state;
    struct order gen, enc;

    bed_start_with(b, 4, 1);
    submit_new(b->client, "q", "image", NULL);
    gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    enc = take_order(b->vision, WN__ENVELOPE__BODY_ENCODE);
    give_encoded(b->vision, &enc);
    give_error(b->vision, &enc, WN_EPEER, true, "leader at x cannot be reached");
    enc = take_order(b->vision, WN__ENVELOPE__BODY_ENCODE);
    assert_int_equal(enc.attempt, 1);
    give_encoded(b->vision, &enc);
    give_tokens(b->leader, &gen, 0, 1, "yes");
    expect_tokens(b->client, 0, 1, "yes");
    give_error(b->vision, &enc, WN_EPEER, true, "leader at x cannot be reached"); /* they were there after all */
    assert_null(end_recv(b->vision, 200));
    give_done(b->leader, &gen, 600);
    Wn__Envelope *done = expect_done(b->client, WN__FINISH_REASON__FINISH_STOP, "yes");
    assert_int_equal(done->done->usage->attempts, 1);
    wn_codec_free(done);
}

/* The leader's heartbeat: its rank 1 has done nothing for so long. */
static void beat_stalled(struct end *leader, uint64_t ms)
{
    Wn__RankInfo ranks[2] = {WN__RANK_INFO__INIT, WN__RANK_INFO__INIT}, *list[2] = {&ranks[0], &ranks[1]};
    Wn__Heartbeat h = WN__HEARTBEAT__INIT;

    ranks[1].rank = 1;
    ranks[1].stalled_ms = ms;
    h.ranks = list;
    h.n_ranks = 2;
    end_send(leader, WN__ENVELOPE__BODY_HEARTBEAT, &h, NULL, 0);
}

static void expect_status(struct bed *b, bool ready, const char *words)
{
    Wn__Envelope *env = ask_status(b->client);

    assert_int_equal(env->status->ready, ready);
    assert_non_null(strstr(env->status->not_ready_because, words));
    wn_codec_free(env);
}

/* A leader that beats but does nothing gives the places of its images at the vision worker to others, gets no new jobs,
 * and is said not to be ready; when it gets on, its images are ordered again, for the same attempt. */
static void a_leader_hangs(void **state)
{
    struct bed *b = *state;
    struct end *leaders[2];
    struct order stuck, other, enc;

    b->cfg.lease_ms = 4000;
    b->cfg.expect_replicas = 2;
    bed_start(b);
    leaders[0] = worker_open(b, WN__ROLE__ROLE_LEADER, "replica-0", 4);
    leaders[1] = worker_open(b, WN__ROLE__ROLE_LEADER, "replica-1", 4);
    b->vision = worker_open(b, WN__ROLE__ROLE_VISION, "vision-0", 1);
    b->client = end_open(b, false);
    submit_new(b->client, "one", "image", NULL);
    enc = take_order(b->vision, WN__ENVELOPE__BODY_ENCODE);
    stuck = take_order(leaders[0], WN__ENVELOPE__BODY_GENERATE);
    assert_string_equal(stuck.id, enc.id);
    submit_new(b->client, "two", "picture", NULL);
    other = take_order(leaders[1], WN__ENVELOPE__BODY_GENERATE);
    assert_null(end_recv(b->vision, 100)); /* its one place is taken */

    beat_stalled(leaders[0], 4500);
    assert_string_equal(take_order(b->vision, WN__ENVELOPE__BODY_CANCEL).id, stuck.id);
    enc = take_order(b->vision, WN__ENVELOPE__BODY_ENCODE);
    assert_string_equal(enc.id, other.id);
    expect_status(b, false, "rank 1 of replica-0");
    expect_status(b, false, "has done nothing for 4.5 s");
    give_encoded(b->vision, &enc);
    give_done(leaders[1], &other, 600);
    expect_answer(b->client, "");
    submit_new(b->client, "three", NULL, NULL);
    other = take_order(leaders[1], WN__ENVELOPE__BODY_GENERATE);
    assert_null(end_recv(b->vision, 100));

    worker_heartbeat(leaders[1]);
    beat_stalled(leaders[0], 0);
    enc = take_order(b->vision, WN__ENVELOPE__BODY_ENCODE);
    assert_string_equal(enc.id, stuck.id);
    assert_int_equal(enc.attempt, 1);
    expect_status(b, true, "");
    give_encoded(b->vision, &enc);
    give_done(leaders[0], &stuck, 600);
    expect_answer(b->client, "");
}

/* A leader that refuses an order because it leaves is asked once, and not as often as a job may be tried. */
static void a_leader_leaves(void **state)
{
    struct bed *b = *state;
    struct end *leaving, *other;
    struct order gen;

    bed_start(b);
    leaving = worker_open(b, WN__ROLE__ROLE_LEADER, "replica-0", 4);
    b->client = end_open(b, false);
    submit_new(b->client, "q", NULL, NULL);
    gen = take_order(leaving, WN__ENVELOPE__BODY_GENERATE);
    give_error(leaving, &gen, WN_EBUSY, true, "the replica is leaving");
    assert_string_equal(take_order(leaving, WN__ENVELOPE__BODY_CANCEL).id, gen.id);
    assert_null(end_recv(leaving, 200));
    other = worker_open(b, WN__ROLE__ROLE_LEADER, "replica-1", 4);
    gen = take_order(other, WN__ENVELOPE__BODY_GENERATE);
    assert_int_equal(gen.attempt, 2);
    give_done(other, &gen, 600);
    expect_answer(b->client, "");
}

/* A leader's process dies, or it says that its group ends: its jobs go to another one long before the lease ends. */
static void a_group_ends(void **state)
{
    struct bed *b = *state;
    Wn__Error e = WN__ERROR__INIT;
    struct end *one, *two;
    struct order gen;

    b->cfg.heartbeat_ms = 50;
    bed_start(b);
    b->client = end_open(b, false);
    one = worker_open(b, WN__ROLE__ROLE_LEADER, "replica-0", 4);
    submit_new(b->client, "q", NULL, NULL);
    gen = take_order(one, WN__ENVELOPE__BODY_GENERATE);
    two = worker_open(b, WN__ROLE__ROLE_LEADER, "replica-1", 4);
    end_close(one);
    gen = take_order(two, WN__ENVELOPE__BODY_GENERATE);
    assert_int_equal(gen.attempt, 2);

    one = worker_open(b, WN__ROLE__ROLE_LEADER, "replica-0", 4);
    e.code = WN_ETIME;
    e.text = "nothing heard from rank 1";
    e.retriable = true;
    end_send(two, WN__ENVELOPE__BODY_ERROR, &e, NULL, 0);
    gen = take_order(one, WN__ENVELOPE__BODY_GENERATE);
    assert_int_equal(gen.attempt, 3);
    give_done(one, &gen, 600);
    expect_answer(b->client, "");
}

/* A connection between machines was lost, and the leader is back before two heartbeats are over: its job stays. */
static void a_connection_comes_back(void **state)
{
    struct bed *b = *state;
    struct end *again;
    struct order gen;

    b->cfg.heartbeat_ms = 1000;
    bed_start_with(b, 4, 0);
    submit_new(b->client, "q", NULL, NULL);
    gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    end_close(b->leader);
    usleep(300000); /* it is missed by now */
    again = end_open(b, true);
    worker_hello_with(again, WN__ROLE__ROLE_LEADER, "replica-0", 4, 100, &gen);
    assert_null(end_recv(again, 2500));
    give_done(again, &gen, 600);
    expect_answer(b->client, "");
}

/* A Hello as it is, in a protocol of this version. */
static struct end *say_hello(struct bed *b, uint32_t version, Wn__Hello *h)
{
    struct end *e = end_open(b, true);
    Wn__Envelope env = WN__ENVELOPE__INIT;
    uint8_t bytes[1024];

    env.version = version;
    env.body_case = WN__ENVELOPE__BODY_HELLO;
    env.hello = h;
    assert_true(wn__envelope__get_packed_size(&env) <= sizeof(bytes));
    end_send_raw(e, bytes, wn__envelope__pack(&env, bytes), NULL, 0);
    return e;
}

static const Wn__TurnedAway *turned_away(const Wn__Status *st, const char *name)
{
    for (size_t i = 0; i < st->n_turned_away; i++)
        if (strcmp(st->turned_away[i]->name, name) == 0) return st->turned_away[i];
    return NULL;
}

/* Workers that do not fit are named in the status with the reason, until they are let in; who works here with another
 * build is let in, and the build shown. */
static void workers_that_do_not_fit(void **state)
{
    struct bed *b = *state;
    Wn__Hello h = WN__HELLO__INIT;
    const Wn__TurnedAway *t;
    Wn__Envelope *env;
    struct end *e;

    bed_start_with(b, 4, 1);
    h.host = "node7";
    h.model_id = "xyz";
    h.role = WN__ROLE__ROLE_VISION;
    h.name = "vision-1";
    h.build = "0.0 (other)";
    for (int i = 0; i < 2; i++) end_expect_error(say_hello(b, WN_PROTO_VERSION, &h), WN_EINVAL, "do not mix");
    h.name = "vision-2";
    e = say_hello(b, WN_PROTO_VERSION + 1, &h);
    end_expect_error(e, WN_EUNSUPP, "protocol version 2");
    h.role = WN__ROLE__ROLE_LEADER;
    h.name = "replica-1";
    h.model_id = "abc";
    h.tokens_max = 512;
    end_expect_error(say_hello(b, WN_PROTO_VERSION, &h), WN_EINVAL, "--max-model-len");
    env = ask_status(b->client);
    assert_int_equal(env->status->n_workers, 2);
    assert_int_equal(env->status->n_turned_away, 3);
    assert_int_equal(env->status->turned_away_total, 4);
    t = turned_away(env->status, "vision-1");
    assert_non_null(t);
    assert_string_equal(t->host, "node7");
    assert_int_equal(t->times, 2);
    assert_non_null(strstr(t->why, "vision-1 serves model xyz, but "));
    assert_true(t->since_ms >= t->last_ms && t->since_ms < 60000);
    assert_non_null(t = turned_away(env->status, "vision-2"));
    assert_non_null(strstr(t->why, "protocol version 2; this side speaks 1"));
    assert_non_null(t = turned_away(env->status, "replica-1"));
    assert_int_equal(t->role, WN__ROLE__ROLE_LEADER);
    assert_non_null(strstr(t->why, "512 tokens"));
    wn_codec_free(env);

    h.role = WN__ROLE__ROLE_VISION;
    h.name = "vision-1";
    h.tokens_max = 0;
    wn_codec_free(end_expect(say_hello(b, WN_PROTO_VERSION, &h), WN__ENVELOPE__BODY_WELCOME));
    env = ask_status(b->client);
    assert_null(turned_away(env->status, "vision-1"));
    assert_int_equal(env->status->n_turned_away, 2);
    assert_int_equal(env->status->turned_away_total, 4);
    for (size_t i = 0; i < env->status->n_workers; i++) {
        const Wn__WorkerStatus *w = env->status->workers[i];
        assert_string_equal(w->build, strcmp(w->name, "vision-1") == 0 ? "0.0 (other)" : "");
    }
    wn_codec_free(env);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        BED_TEST(features_are_lost),
        BED_TEST(a_leader_hangs),
        BED_TEST(a_leader_leaves),
        BED_TEST(a_group_ends),
        BED_TEST(a_connection_comes_back),
        BED_TEST(workers_that_do_not_fit),
    };
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    wn_log_max = WN_LOG_ERROR;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
