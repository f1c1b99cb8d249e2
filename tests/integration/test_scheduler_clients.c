/* tests/integration/test_scheduler_clients.c - what several clients may ask of one scheduler: turns, limits, Busy. */
#include "sched_bed.h"

#include "base/log.h"

static uint32_t expect_busy(struct end *e, const char *words)
{
    Wn__Envelope *env = end_expect(e, WN__ENVELOPE__BODY_BUSY);
    const uint32_t retry_ms = env->busy->retry_ms;

    if (!strstr(env->busy->reason, words)) fail_msg("'%s' is not in '%s'", words, env->busy->reason);
    assert_true(retry_ms > 0);
    wn_codec_free(env);
    return retry_ms;
}

/* One client queues ten jobs, then two others one each: they come after one job of the first, not after ten. */
static void turns(void **state)
{
    static const char *const want[] = {"a", "a", "b", "c", "a", "a"};
    struct bed b;
    struct end many, one, two, leader;

    (void)state;
    bed_init(&b);
    b.cfg.lease_ms = 60000;
    b.cfg.no_worker_timeout_ms = 0;
    bed_start(&b);
    leader = worker_open(&b, WN__ROLE__ROLE_LEADER, "replica-0", 1);
    many = end_open(&b, false);
    one = end_open(&b, false);
    two = end_open(&b, false);
    for (int i = 0; i < 10; i++) {
        submit(&many, "a", NULL, "");
        expect_accepted(&many, false, NULL);
    }
    submit(&one, "b", NULL, "");
    expect_accepted(&one, false, NULL);
    submit(&two, "c", NULL, "");
    expect_accepted(&two, false, NULL);
    for (int i = 0; i < 6; i++) {
        struct order gen = take_order(&leader, WN__ENVELOPE__BODY_GENERATE);
        assert_string_equal(gen.text, want[i]);
        give_done(&leader, &gen, 1);
    }
    end_close(&many);
    end_close(&one);
    end_close(&two);
    end_close(&leader);
    bed_stop(&b);
}

/* A client that has filled its share is told to come back; another is served; an ended job makes room. */
static void share_of_the_queue(void **state)
{
    struct bed b;
    struct end greedy, other, leader;
    struct order gen;

    (void)state;
    bed_init(&b);
    b.cfg.lease_ms = 60000;
    b.cfg.max_queue = 4;
    b.cfg.max_queue_share = 0.5f;
    bed_start(&b);
    leader = worker_open(&b, WN__ROLE__ROLE_LEADER, "replica-0", 1);
    greedy = end_open(&b, false);
    other = end_open(&b, false);
    for (int i = 0; i < 2; i++) {
        submit(&greedy, "q", NULL, "");
        expect_accepted(&greedy, false, NULL);
    }
    submit(&greedy, "q", NULL, "");
    expect_busy(&greedy, "this client has 2 jobs here; at most 2 at a time");
    submit(&other, "q", NULL, "");
    expect_accepted(&other, false, NULL);
    gen = take_order(&leader, WN__ENVELOPE__BODY_GENERATE);
    give_done(&leader, &gen, 1);
    wn_codec_free(expect_done(&greedy, WN__FINISH_REASON__FINISH_STOP, ""));
    submit(&greedy, "q", NULL, "");
    expect_accepted(&greedy, false, NULL);
    end_close(&greedy);
    end_close(&other);
    end_close(&leader);
    bed_stop(&b);
}

static void rate_and_bytes(void **state)
{
    struct bed b;
    struct end fast, other;
    uint32_t retry_ms;

    (void)state;
    bed_init(&b);
    b.cfg.no_worker_timeout_ms = 0;
    b.cfg.max_job_rate = 2;
    b.cfg.max_request_bytes = 10;
    bed_start(&b);
    fast = end_open(&b, false);
    other = end_open(&b, false);
    for (int i = 0; i < 2; i++) {
        submit(&fast, "q", NULL, "");
        expect_accepted(&fast, false, NULL);
    }
    submit(&fast, "q", NULL, "");
    retry_ms = expect_busy(&fast, "more than 2 jobs/s from this client");
    assert_true(retry_ms > 100 && retry_ms <= 501);
    submit(&other, "q", NULL, "");
    expect_accepted(&other, false, NULL);
    usleep(retry_ms * 1000);
    submit(&fast, "q", NULL, "");
    expect_accepted(&fast, false, NULL);
    submit(&other, "q", "10 bytes..", "");
    expect_accepted(&other, false, NULL);
    submit(&other, "q", "11 bytes...", "");
    end_expect_error(&other, WN_ELIMIT, "larger than allowed");
    end_close(&fast);
    end_close(&other);
    bed_stop(&b);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(turns),
        cmocka_unit_test(share_of_the_queue),
        cmocka_unit_test(rate_and_bytes),
    };
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    wn_log_max = WN_LOG_ERROR;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
