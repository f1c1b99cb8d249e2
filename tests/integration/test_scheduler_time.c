/* tests/integration/test_scheduler_time.c - slow clients, full workers, deadlines, and results that are kept or
 * forgotten. */
#include "sched_bed.h"

#include <sys/eventfd.h>

#include "base/log.h"

enum { JOBS = 40, PIECES = 100, PIECE = 5000 };

/* 20 MB of answers to a client that does not read: job j's are of the letter 'A' + j. */
static void flood(struct end *client, struct end *leader, char ids[JOBS][32])
{
    char piece[PIECE + 1] = "";

    for (int j = 0; j < JOBS; j++) {
        struct order gen;
        submit(client, "q", NULL, "");
        gen = take_order(leader, WN__ENVELOPE__BODY_GENERATE);
        memcpy(ids[j], gen.id, sizeof(ids[j]));
        memset(piece, 'A' + j, PIECE);
        for (uint32_t i = 0; i < PIECES; i++) give_tokens(leader, &gen, i, i, piece);
        give_done(leader, &gen, 1);
    }
}

/* A client that does not read: its queue fills, the leader and others are not held up, and when it reads again it gets
 * every byte of every answer in order. */
static void slow_client(void **state)
{
    struct bed *b = *state;
    struct end *other;
    struct order gen;
    size_t got[JOBS] = {0}, most = 0;
    char ids[JOBS][32];
    int done = 0;

    bed_start_with(b, JOBS + 1, 0);
    flood(b->client, b->leader, ids);
    other = end_open(b, false); /* in the meantime */
    submit_new(other, "q", NULL, NULL);
    gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    give_done(b->leader, &gen, 1);
    expect_answer(other, "");
    while (done < JOBS) {
        Wn__Envelope *env = end_recv(b->client, 5000);
        const char *id;
        int j = 0;
        if (!env) fail_msg("after %d answers nothing came", done);
        id = env->body_case == WN__ENVELOPE__BODY_TOKENS ? env->tokens->job->job_id
             : env->body_case == WN__ENVELOPE__BODY_DONE ? env->done->job->job_id
                                                         : "";
        while (j < JOBS && strcmp(ids[j], id) != 0) j++;
        if (env->body_case == WN__ENVELOPE__BODY_TOKENS) {
            assert_int_equal(env->tokens->first * (size_t)PIECE, got[j]);
            for (const char *c = env->tokens->text; *c; c++) assert_int_equal(*c, 'A' + j);
            got[j] += strlen(env->tokens->text);
            if (env->tokens->n_ids > most) most = env->tokens->n_ids;
        } else if (env->body_case == WN__ENVELOPE__BODY_DONE) {
            assert_int_equal(got[j], PIECES * PIECE);
            assert_int_equal(strlen(env->done->text), PIECES * PIECE);
            done++;
        }
        wn_codec_free(env);
    }
    assert_true(most > 1); /* pieces were put together: the queue had really been full */
}

/* A scheduler that drains waits for it as for a job that runs. */
static void slow_client_at_the_end(void **state)
{
    struct bed *b = *state;
    char ids[JOBS][32];

    b->cfg.shutdown_timeout_s = 20;
    bed_start_with(b, JOBS, 0);
    flood(b->client, b->leader, ids);
    eventfd_write(b->stop_fd, 1);
    usleep(1500000);
    for (int done = 0; done < JOBS;) {
        Wn__Envelope *env = end_recv(b->client, 5000);
        if (!env) fail_msg("after %d answers nothing came", done);
        done += env->body_case == WN__ENVELOPE__BODY_DONE;
        wn_codec_free(env);
    }
    wn_codec_free(end_expect(b->leader, WN__ENVELOPE__BODY_DRAIN));
}

static void submit_with_deadline(struct end *client, const char *image, uint64_t ms)
{
    Wn__Submit r = WN__SUBMIT__INIT;
    uint64_t bytes = image ? strlen(image) : 0;

    r.prompt = "q";
    r.stream = true;
    r.deadline_ms = ms;
    r.image_bytes = &bytes;
    r.n_image_bytes = image ? 1 : 0;
    end_send(client, WN__ENVELOPE__BODY_SUBMIT, &r, image, bytes);
    expect_accepted(client, false, NULL);
}

/* Wherever a job is when its time is up, it ends with a reason that says where that was, and whoever had it is told. */
static void deadlines(void **state)
{
    struct bed *b = *state;
    struct order gen, enc;

    b->cfg.no_worker_timeout_ms = 0;
    bed_start_with(b, 0, 0);
    submit_with_deadline(b->client, NULL, 300);
    end_expect_error(b->client, WN_ETIME, "deadline of 300 ms has passed while it was queued");

    b->leader = worker_open(b, WN__ROLE__ROLE_LEADER, "replica-0", 1);
    b->vision = worker_open(b, WN__ROLE__ROLE_VISION, "vision-0", 1);
    assert_null(end_recv(b->leader, 50)); /* the one that was queued never went out */
    submit_with_deadline(b->client, "picture", 300);
    gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    (void)take_order(b->vision, WN__ENVELOPE__BODY_ENCODE);
    end_expect_error(b->client, WN_ETIME, "has passed while its images were encoded");
    assert_string_equal(take_order(b->leader, WN__ENVELOPE__BODY_CANCEL).id, gen.id);
    assert_string_equal(take_order(b->vision, WN__ENVELOPE__BODY_CANCEL).id, gen.id);

    submit_with_deadline(b->client, "picture", 300);
    gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    enc = take_order(b->vision, WN__ENVELOPE__BODY_ENCODE);
    give_encoded(b->vision, &enc);
    end_expect_error(b->client, WN_ETIME, "has passed while it waited for its first token");
    assert_string_equal(take_order(b->leader, WN__ENVELOPE__BODY_CANCEL).id, gen.id);

    submit_with_deadline(b->client, NULL, 300);
    gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    give_tokens(b->leader, &gen, 0, 1, "a");
    expect_tokens(b->client, 0, 1, "a");
    end_expect_error(b->client, WN_ETIME, "has passed while it was answered, after 1 tokens");
    assert_string_equal(take_order(b->leader, WN__ENVELOPE__BODY_CANCEL).id, gen.id);

    submit_new(b->client, "next", NULL, NULL); /* every slot has been given back */
    gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    give_done(b->leader, &gen, 1);
    expect_answer(b->client, "");
}

/* A key stands for the same job; but one that failed for want of workers may be tried again under its key. */
static void keys(void **state)
{
    struct bed *b = *state;
    char first[32], second[32], third[32];
    struct order gen;

    b->cfg.no_worker_timeout_ms = 100;
    bed_start_with(b, 0, 0);
    submit(b->client, "q", NULL, "key");
    expect_accepted(b->client, false, first);
    end_expect_error(b->client, WN_EPEER, "no replica");
    b->leader = worker_open(b, WN__ROLE__ROLE_LEADER, "replica-0", 1);
    submit(b->client, "q", NULL, "key");
    expect_accepted(b->client, false, second);
    assert_string_not_equal(first, second);
    gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    give_tokens(b->leader, &gen, 0, 1, "x");
    give_done(b->leader, &gen, 1);
    expect_tokens(b->client, 0, 1, "x");
    expect_answer(b->client, "x");
    submit(b->client, "q", NULL, "key"); /* answered from what is kept */
    expect_accepted(b->client, true, third);
    assert_string_equal(second, third);
    expect_tokens(b->client, 0, 1, "x");
    expect_answer(b->client, "x");
}

/* Only the newest --max-results are kept. */
static void results_are_bounded(void **state)
{
    struct bed *b = *state;
    char ids[3][32];

    b->cfg.max_results = 2;
    bed_start_with(b, 1, 0);
    for (int i = 0; i < 3; i++) {
        struct order gen;
        submit_new(b->client, "q", NULL, ids[i]);
        gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
        give_done(b->leader, &gen, 1);
        expect_answer(b->client, "");
    }
    expect_forgotten(b->client, ids[0], ids[0]);
    attach(b->client, ids[1], 0);
    expect_accepted(b->client, true, NULL);
    expect_answer(b->client, "");
}

/* A worker without room is asked again, as often as it takes: that is no attempt of the job. */
static void full_vision_worker(void **state)
{
    struct bed *b = *state;
    struct order gen, enc;

    bed_start_with(b, 4, 1);
    submit_new(b->client, "q", "image", NULL);
    gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    for (int i = 0; i < 8; i++) { /* more often than attempts and orders are allowed */
        enc = take_order(b->vision, WN__ENVELOPE__BODY_ENCODE);
        assert_int_equal(enc.attempt, 1);
        give_error(b->vision, &enc, WN_EBUSY, true, "replica-0 has not taken the images that it has here");
    }
    enc = take_order(b->vision, WN__ENVELOPE__BODY_ENCODE);
    give_encoded(b->vision, &enc);
    give_done(b->leader, &gen, 9);
    expect_answer(b->client, "");
}

/* But not for ever. */
static void vision_worker_stays_full(void **state)
{
    struct bed *b = *state;
    struct order enc;
    Wn__Envelope *env = NULL;

    b->cfg.encode_timeout_ms = 300;
    b->cfg.max_attempts = 1;
    bed_start_with(b, 4, 1);
    submit_new(b->client, "q", "image", NULL);
    (void)take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    for (int i = 0; i < 50 && !env; i++) {
        enc = take_order(b->vision, WN__ENVELOPE__BODY_ENCODE);
        give_error(b->vision, &enc, WN_EBUSY, true, "no room here");
        env = end_recv(b->client, 90); /* less than the pause: it is asked again after that */
    }
    assert_non_null(env);
    assert_int_equal(env->body_case, WN__ENVELOPE__BODY_ERROR);
    assert_non_null(strstr(env->error->text, "gave up after 1 attempts: no room here"));
    wn_codec_free(env);
}

static void beat(struct end *e, uint64_t images, uint64_t steps)
{
    Wn__Heartbeat h = WN__HEARTBEAT__INIT;

    h.images = images;
    h.steps = steps;
    end_send(e, WN__ENVELOPE__BODY_HEARTBEAT, &h, NULL, 0);
}

/* A full worker that gets on with its images, or whose leader gets on, is no failure, however long that takes. */
static void full_and_busy(void **state)
{
    struct bed *b = *state;

    b->cfg.encode_timeout_ms = 300;
    b->cfg.max_attempts = 1;
    bed_start_with(b, 4, 1);
    for (int leader = 0; leader < 2; leader++) {
        struct order gen, enc;
        submit_new(b->client, "q", "image", NULL);
        gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
        for (uint64_t i = 0; i < 8; i++) { /* at least 100 ms each */
            enc = take_order(b->vision, WN__ENVELOPE__BODY_ENCODE);
            beat(b->vision, leader ? 8 : i, 0);
            beat(b->leader, 0, leader ? i : 0);
            give_error(b->vision, &enc, WN_EBUSY, true, "no room here");
        }
        enc = take_order(b->vision, WN__ENVELOPE__BODY_ENCODE);
        give_encoded(b->vision, &enc);
        give_done(b->leader, &gen, 9);
        expect_answer(b->client, "");
    }
}

/* A worker that gets on, but has not come to this image yet: that is waited for, until all before it must be done. */
static void slow_and_busy(void **state)
{
    struct bed *b = *state;
    const int64_t began_us = wn_now_us();
    Wn__Envelope *env = NULL;
    char id[32];

    b->cfg.encode_timeout_ms = 300;
    bed_start_with(b, 4, 2);
    submit_new(b->client, "q", "image", id);
    (void)take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    (void)take_order(b->vision, WN__ENVELOPE__BODY_ENCODE);
    for (uint64_t i = 0; i < 100 && !env; i++) {
        beat(b->vision, i, 0);
        env = end_recv(b->vision, 50);
    }
    assert_non_null(env);
    assert_int_equal(env->body_case, WN__ENVELOPE__BODY_CANCEL);
    assert_string_equal(env->cancel->job->job_id, id);
    assert_true(wn_now_us() - began_us >= 3 * 300000);
    wn_codec_free(env);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        BED_TEST(slow_client),
        BED_TEST(slow_client_at_the_end),
        BED_TEST(deadlines),
        BED_TEST(keys),
        BED_TEST(results_are_bounded),
        BED_TEST(full_vision_worker),
        BED_TEST(vision_worker_stays_full),
        BED_TEST(full_and_busy),
        BED_TEST(slow_and_busy),
    };
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    wn_log_max = WN_LOG_ERROR;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
