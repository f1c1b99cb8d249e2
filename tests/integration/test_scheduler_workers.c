/* tests/integration/test_scheduler_workers.c - workers that live and do not do what they are there for: features that
 * never come, a leader whose engine hangs, or that leaves. */
#include "sched_bed.h"

#include "base/log.h"

/* The image was encoded, and then its features were lost on the way: they are ordered again, for the same attempt.
 * After the first token nobody needs them. */
static void features_are_lost(void **state)
{
    struct bed b;
    struct end client, leader, vision;
    struct order gen, enc;

    (void)state;
    bed_init(&b);
    b.cfg.lease_ms = 60000;
    bed_start(&b);
    leader = worker_open(&b, WN__ROLE__ROLE_LEADER, "replica-0", 4);
    vision = worker_open(&b, WN__ROLE__ROLE_VISION, "vision-0", 1);
    client = end_open(&b, false);
    submit(&client, "q", "image", "");
    expect_accepted(&client, false, NULL);
    gen = take_order(&leader, WN__ENVELOPE__BODY_GENERATE);
    enc = take_order(&vision, WN__ENVELOPE__BODY_ENCODE);
    give_encoded(&vision, &enc);
    give_error(&vision, &enc, WN_EPEER, true, "leader at x cannot be reached");
    enc = take_order(&vision, WN__ENVELOPE__BODY_ENCODE);
    assert_int_equal(enc.attempt, 1);
    give_encoded(&vision, &enc);
    give_tokens(&leader, &gen, 0, 1, "yes");
    expect_tokens(&client, 0, 1, "yes");
    give_error(&vision, &enc, WN_EPEER, true, "leader at x cannot be reached"); /* they were there after all */
    assert_null(end_recv(&vision, 200));
    give_done(&leader, &gen, 600);
    Wn__Envelope *done = expect_done(&client, WN__FINISH_REASON__FINISH_STOP, "yes");
    assert_int_equal(done->done->usage->attempts, 1);
    wn_codec_free(done);
    bed_stop(&b);
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
    struct end asks = end_open(b, false);
    const Wn__StatusRequest q = WN__STATUS_REQUEST__INIT;
    Wn__Envelope *env;

    end_send(&asks, WN__ENVELOPE__BODY_STATUS_REQUEST, &q, NULL, 0);
    env = end_expect(&asks, WN__ENVELOPE__BODY_STATUS);
    assert_int_equal(env->status->ready, ready);
    if (!strstr(env->status->not_ready_because, words)) fail_msg("%s", env->status->not_ready_because);
    wn_codec_free(env);
    end_close(&asks);
}

/* A leader that beats but does nothing gives the places of its images at the vision worker to others, gets no new jobs,
 * and is said not to be ready; when it gets on, its images are ordered again, for the same attempt. */
static void a_leader_hangs(void **state)
{
    struct bed b;
    struct end client, leaders[2], vision;
    struct order stuck, other, enc;

    (void)state;
    bed_init(&b);
    b.cfg.lease_ms = 4000;
    b.cfg.expect_replicas = 2;
    bed_start(&b);
    leaders[0] = worker_open(&b, WN__ROLE__ROLE_LEADER, "replica-0", 4);
    leaders[1] = worker_open(&b, WN__ROLE__ROLE_LEADER, "replica-1", 4);
    vision = worker_open(&b, WN__ROLE__ROLE_VISION, "vision-0", 1);
    client = end_open(&b, false);
    submit(&client, "one", "image", "");
    expect_accepted(&client, false, NULL);
    enc = take_order(&vision, WN__ENVELOPE__BODY_ENCODE);
    stuck = take_order(&leaders[0], WN__ENVELOPE__BODY_GENERATE);
    assert_string_equal(stuck.id, enc.id);
    submit(&client, "two", "picture", "");
    expect_accepted(&client, false, NULL);
    other = take_order(&leaders[1], WN__ENVELOPE__BODY_GENERATE);
    assert_null(end_recv(&vision, 100)); /* its one place is taken */

    beat_stalled(&leaders[0], 4500);
    assert_string_equal(take_order(&vision, WN__ENVELOPE__BODY_CANCEL).id, stuck.id);
    enc = take_order(&vision, WN__ENVELOPE__BODY_ENCODE);
    assert_string_equal(enc.id, other.id);
    expect_status(&b, false, "rank 1 of replica-0");
    expect_status(&b, false, "has done nothing for 4.5 s");
    give_encoded(&vision, &enc);
    give_done(&leaders[1], &other, 600);
    wn_codec_free(expect_done(&client, WN__FINISH_REASON__FINISH_STOP, ""));
    submit(&client, "three", NULL, "");
    expect_accepted(&client, false, NULL);
    other = take_order(&leaders[1], WN__ENVELOPE__BODY_GENERATE);
    assert_null(end_recv(&vision, 100));

    worker_heartbeat(&leaders[1]);
    beat_stalled(&leaders[0], 0);
    enc = take_order(&vision, WN__ENVELOPE__BODY_ENCODE);
    assert_string_equal(enc.id, stuck.id);
    assert_int_equal(enc.attempt, 1);
    expect_status(&b, true, "");
    give_encoded(&vision, &enc);
    give_done(&leaders[0], &stuck, 600);
    wn_codec_free(expect_done(&client, WN__FINISH_REASON__FINISH_STOP, ""));
    bed_stop(&b);
}

/* A leader that refuses an order because it leaves is asked once, and not as often as a job may be tried. */
static void a_leader_leaves(void **state)
{
    struct bed b;
    struct end client, leaving, other;
    struct order gen;

    (void)state;
    bed_init(&b);
    bed_start(&b);
    leaving = worker_open(&b, WN__ROLE__ROLE_LEADER, "replica-0", 4);
    client = end_open(&b, false);
    submit(&client, "q", NULL, "");
    expect_accepted(&client, false, NULL);
    gen = take_order(&leaving, WN__ENVELOPE__BODY_GENERATE);
    give_error(&leaving, &gen, WN_EBUSY, true, "the replica is leaving");
    assert_string_equal(take_order(&leaving, WN__ENVELOPE__BODY_CANCEL).id, gen.id);
    assert_null(end_recv(&leaving, 200));
    other = worker_open(&b, WN__ROLE__ROLE_LEADER, "replica-1", 4);
    gen = take_order(&other, WN__ENVELOPE__BODY_GENERATE);
    assert_int_equal(gen.attempt, 2);
    give_done(&other, &gen, 600);
    wn_codec_free(expect_done(&client, WN__FINISH_REASON__FINISH_STOP, ""));
    bed_stop(&b);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(features_are_lost),
        cmocka_unit_test(a_leader_hangs),
        cmocka_unit_test(a_leader_leaves),
    };
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    wn_log_max = WN_LOG_ERROR;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
