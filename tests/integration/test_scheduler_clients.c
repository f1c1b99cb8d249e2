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
    struct bed *b = *state;
    struct end *many, *one, *two;

    b->cfg.no_worker_timeout_ms = 0;
    bed_start_with(b, 1, 0);
    many = end_open(b, false);
    one = end_open(b, false);
    two = end_open(b, false);
    for (int i = 0; i < 10; i++)
        submit_new(many, "a", NULL, NULL);
    submit_new(one, "b", NULL, NULL);
    submit_new(two, "c", NULL, NULL);
    for (int i = 0; i < 6; i++) {
        struct order gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
        assert_string_equal(gen.text, want[i]);
        give_done(b->leader, &gen, 1);
    }
}

/* A client that has filled its share is told to come back; another is served; an ended job makes room. */
static void share_of_the_queue(void **state)
{
    struct bed *b = *state;
    struct end *greedy, *other;
    struct order gen;

    b->cfg.max_queue = 4;
    b->cfg.max_queue_share = 0.5f;
    bed_start_with(b, 1, 0);
    greedy = end_open(b, false);
    other = end_open(b, false);
    for (int i = 0; i < 2; i++)
        submit_new(greedy, "q", NULL, NULL);
    submit(greedy, "q", NULL, "");
    expect_busy(greedy, "this client has 2 jobs here; at most 2 at a time");
    submit_new(other, "q", NULL, NULL);
    gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    give_done(b->leader, &gen, 1);
    expect_answer(greedy, "");
    submit_new(greedy, "q", NULL, NULL);
}

static void rate_and_bytes(void **state)
{
    struct bed *b = *state;
    struct end *fast, *other;
    uint32_t retry_ms;

    b->cfg.no_worker_timeout_ms = 0;
    b->cfg.max_job_rate = 2;
    b->cfg.max_request_bytes = 10;
    bed_start(b);
    fast = end_open(b, false);
    other = end_open(b, false);
    for (int i = 0; i < 2; i++)
        submit_new(fast, "q", NULL, NULL);
    submit(fast, "q", NULL, "");
    retry_ms = expect_busy(fast, "more than 2 jobs/s from this client");
    assert_true(retry_ms > 100 && retry_ms <= 501);
    submit_new(other, "q", NULL, NULL);
    usleep(retry_ms * 1000);
    submit_new(fast, "q", NULL, NULL);
    submit_new(other, "q", "10 bytes..", NULL);
    submit(other, "q", "11 bytes...", "");
    end_expect_error(other, WN_ELIMIT, "larger than allowed");
}

static void cancel_and_hear(struct end *client, const char *id)
{
    cancel(client, id);
    wn_codec_free(end_expect(client, WN__ENVELOPE__BODY_DONE));
}

/* Wherever a job is when it is cancelled, whoever has it is told at once, and has room for the next. */
static void cancels(void **state)
{
    struct bed *b = *state;
    struct order gen, enc;
    char first[32], queued[32];

    bed_start_with(b, 1, 1);
    submit_new(b->client, "first", "picture", first);
    gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    (void)take_order(b->vision, WN__ENVELOPE__BODY_ENCODE);
    submit_new(b->client, "second", "picture", queued);
    cancel_and_hear(b->client, queued); /* nobody has it */
    assert_null(end_recv(b->leader, 50));
    cancel_and_hear(b->client, first); /* its picture is encoded */
    assert_string_equal(take_order(b->leader, WN__ENVELOPE__BODY_CANCEL).id, first);
    assert_string_equal(take_order(b->vision, WN__ENVELOPE__BODY_CANCEL).id, first);
    for (int i = 0; i < 2; i++) { /* before its first token, and after */
        submit_new(b->client, "again", "picture", first);
        gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
        assert_string_equal(gen.id, first);
        enc = take_order(b->vision, WN__ENVELOPE__BODY_ENCODE);
        give_encoded(b->vision, &enc);
        if (i) give_tokens(b->leader, &gen, 0, 1, "a");
        if (i) expect_tokens(b->client, 0, 1, "a");
        else usleep(50000);
        cancel_and_hear(b->client, first);
        assert_string_equal(take_order(b->leader, WN__ENVELOPE__BODY_CANCEL).id, first);
        assert_null(end_recv(b->vision, 50)); /* it has nothing of it any more */
    }
}

/* Says hello under a name that was there: the process before it has died. */
static struct end *reborn(struct bed *b, struct end *before, uint32_t pid)
{
    struct end *e;

    end_close(before);
    e = end_open(b, true);
    worker_hello(e, WN__ROLE__ROLE_LEADER, "replica-0", 4, pid);
    worker_heartbeat(e);
    return e;
}

/* A job that kills its replica takes others with it, but not for ever: the last try of each is made alone. */
static void poison(void **state)
{
    struct bed *b = *state;
    struct order gen;
    Wn__Envelope *env;
    int done = 0, failed = 0;

    b->cfg.no_worker_timeout_ms = 0;
    bed_start_with(b, 4, 0);
    for (int i = 0; i < 3; i++)
        submit_new(b->client, i == 1 ? "poison" : "fine", NULL, NULL);
    for (uint32_t death = 0; death < 2; death++) { /* all three are there */
        for (int i = 0; i < 3; i++) {
            gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
            assert_int_equal(gen.attempt, death + 1);
        }
        b->leader = reborn(b, b->leader, 200 + death);
    }
    for (int i = 0; i < 3; i++) {
        gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
        assert_int_equal(gen.attempt, 3);
        assert_null(end_recv(b->leader, 100)); /* it is alone */
        if (strcmp(gen.text, "poison") == 0) b->leader = reborn(b, b->leader, 300);
        else give_done(b->leader, &gen, 1);
    }
    for (int i = 0; i < 3; i++) {
        if (!(env = end_recv(b->client, 5000))) fail_msg("an end did not come");
        done += env->body_case == WN__ENVELOPE__BODY_DONE;
        if (env->body_case == WN__ENVELOPE__BODY_ERROR) {
            failed++;
            assert_string_equal(env->error->text, "gave up after 3 attempts, 3 of which ended with their replica; the "
                                                  "last: replica-0 was restarted");
        }
        wn_codec_free(env);
    }
    assert_int_equal(done, 2);
    assert_int_equal(failed, 1);
    submit(b->client, "next", NULL, ""); /* the replica takes several again */
    submit(b->client, "next", NULL, "");
    for (int i = 0; i < 2; i++) (void)take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
}

/* Keys of several answers stand for the same jobs; all are taken, or none is. */
static void several_answers(void **state)
{
    struct bed *b = *state;
    Wn__Submit r = WN__SUBMIT__INIT;
    char ids[3][32], again[32];

    b->cfg.no_worker_timeout_ms = 0;
    b->cfg.max_queue = 4;
    b->cfg.max_queue_share = 1;
    bed_start_with(b, 0, 0);
    r.prompt = "q";
    r.idempotency_key = "key";
    r.n = 3;
    end_send(b->client, WN__ENVELOPE__BODY_SUBMIT, &r, NULL, 0);
    for (int i = 0; i < 3; i++) expect_accepted(b->client, false, ids[i]);
    end_send(b->client, WN__ENVELOPE__BODY_SUBMIT, &r, NULL, 0);
    for (int i = 0; i < 3; i++) {
        expect_accepted(b->client, true, again);
        assert_string_equal(again, ids[i]);
    }
    r.idempotency_key = "other";
    end_send(b->client, WN__ENVELOPE__BODY_SUBMIT, &r, NULL, 0);
    expect_busy(b->client, "the queue is full");
    r.n = 1;
    end_send(b->client, WN__ENVELOPE__BODY_SUBMIT, &r, NULL, 0);
    expect_accepted(b->client, false, NULL);
    r.n = 17;
    end_send(b->client, WN__ENVELOPE__BODY_SUBMIT, &r, NULL, 0);
    end_expect_error(b->client, WN_ELIMIT, "n is 17; at most 16 are allowed");
    r.n = 5; /* not Busy: it will never fit */
    end_send(b->client, WN__ENVELOPE__BODY_SUBMIT, &r, NULL, 0);
    end_expect_error(b->client, WN_ELIMIT, "n is 5; this server holds at most 4 jobs of a client at a time");
}

/* The answers to one request have one picture: each of them gets all of it, also after another one has ended. */
static void answers_share_a_picture(void **state)
{
    struct bed *b = *state;
    Wn__Submit r = WN__SUBMIT__INIT;
    const uint64_t bytes[] = {3, 4};
    struct order gen[3], enc;
    char ids[3][32];

    bed_start_with(b, 8, 2);
    r.prompt = "q";
    r.n = 3;
    r.image_bytes = (uint64_t *)(uintptr_t)bytes;
    r.n_image_bytes = 2;
    end_send(b->client, WN__ENVELOPE__BODY_SUBMIT, &r, "onetwo!", 7);
    for (int i = 0; i < 3; i++) expect_accepted(b->client, false, ids[i]);
    for (int i = 0; i < 3; i++) gen[i] = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    for (int i = 0; i < 6; i++) { /* two at a time */
        enc = take_order(b->vision, WN__ENVELOPE__BODY_ENCODE);
        assert_string_equal(enc.id, ids[i / 2]);
        assert_int_equal(b->vision->payload_bytes, bytes[enc.image]);
        assert_memory_equal(b->vision->payload, enc.image ? "two!" : "one", bytes[enc.image]);
        give_encoded(b->vision, &enc);
        if (i % 2 == 0) continue;
        usleep(50000);
        give_done(b->leader, &gen[i / 2], 3); /* its place and its hold on the picture are given back */
        expect_answer(b->client, "");
    }
}

/* So many jobs that some share a place in the tables: each id and each key is its own job. */
static void many_keys(void **state)
{
    enum { JOBS = 500 };
    static char ids[JOBS][32];
    struct bed *b = *state;
    char key[32], id[32];

    b->cfg.no_worker_timeout_ms = 0;
    b->cfg.max_queue = JOBS;
    b->cfg.max_queue_share = 1;
    bed_start_with(b, 0, 0);
    for (int again = 0; again < 2; again++) {
        for (int i = 0; i < JOBS; i++) {
            snprintf(key, sizeof(key), "key %d", i);
            submit(b->client, "q", NULL, key);
            expect_accepted(b->client, again, again ? id : ids[i]);
            if (again) assert_string_equal(id, ids[i]);
        }
    }
    for (int i = 0; i < JOBS; i++) {
        cancel(b->client, ids[i]);
        wn_codec_free(expect_done(b->client, WN__FINISH_REASON__FINISH_CANCELLED, ""));
        attach(b->client, ids[i], 0);
        expect_accepted(b->client, true, id);
        assert_string_equal(id, ids[i]);
        wn_codec_free(expect_done(b->client, WN__FINISH_REASON__FINISH_CANCELLED, ""));
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        BED_TEST(turns),
        BED_TEST(share_of_the_queue),
        BED_TEST(rate_and_bytes),
        BED_TEST(cancels),
        BED_TEST(poison),
        BED_TEST(several_answers),
        BED_TEST(answers_share_a_picture),
        BED_TEST(many_keys),
    };
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    wn_log_max = WN_LOG_ERROR;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
