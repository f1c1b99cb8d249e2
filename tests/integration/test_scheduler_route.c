/* tests/integration/test_scheduler_route.c - which worker gets what, what is left of an attempt that was lost, and what
 * is counted. */
#include "sched_bed.h"

#include "base/log.h"

static void end_job(struct end *leader, struct end *client)
{
    struct order gen = take_order(leader, WN__ENVELOPE__BODY_GENERATE);

    give_done(leader, &gen, 3);
    expect_answer(client, "");
}

/* Where leaders are equally free, the one that has had fewest jobs is next: idle ones take turns. */
static void idle_leaders_take_turns(void **state)
{
    struct bed *b = *state;
    struct end *leaders[3];

    bed_start(b);
    leaders[0] = worker_open(b, WN__ROLE__ROLE_LEADER, "replica-0", 4);
    leaders[1] = worker_open(b, WN__ROLE__ROLE_LEADER, "replica-1", 4);
    leaders[2] = worker_open(b, WN__ROLE__ROLE_LEADER, "replica-2", 8);
    b->client = end_open(b, false);
    for (int i = 0; i < 9; i++) {
        submit_new(b->client, "q", NULL, NULL);
        end_job(leaders[i % 3], b->client);
    }
}

/* By the share of its slots that is in use: of 8 jobs the leader with 6 slots gets 6, the one with 2 gets 2. */
static void load_is_a_share(void **state)
{
    struct bed *b = *state;
    struct end *small, *large;

    bed_start(b);
    small = worker_open(b, WN__ROLE__ROLE_LEADER, "replica-0", 2);
    large = worker_open(b, WN__ROLE__ROLE_LEADER, "replica-1", 6);
    b->client = end_open(b, false);
    for (int i = 0; i < 4; i++) submit_new(b->client, "q", NULL, NULL); /* half of the room: half of each */
    (void)take_order(small, WN__ENVELOPE__BODY_GENERATE);
    for (int i = 0; i < 3; i++) (void)take_order(large, WN__ENVELOPE__BODY_GENERATE);
    assert_null(end_recv(small, 50));
}

/* A vision worker that leaves gets no more pictures, also not those that would be its own. */
static void a_vision_worker_leaves(void **state)
{
    struct bed *b = *state;
    Wn__Drain drain = WN__DRAIN__INIT;
    struct end *vision[2];
    struct order enc;
    char picture[32];

    bed_start_with(b, 16, 0);
    vision[0] = worker_open(b, WN__ROLE__ROLE_VISION, "vision-0", 4);
    vision[1] = worker_open(b, WN__ROLE__ROLE_VISION, "vision-1", 16);
    end_send(vision[0], WN__ENVELOPE__BODY_DRAIN, &drain, NULL, 0);
    usleep(50000);
    for (int i = 0; i < 8; i++) {
        snprintf(picture, sizeof(picture), "picture %d", i);
        submit_new(b->client, "q", picture, NULL);
        enc = take_order(vision[1], WN__ENVELOPE__BODY_ENCODE);
        give_encoded(vision[1], &enc);
    }
    assert_null(end_recv(vision[0], 50));
}

/* An attempt that was lost leaves nothing behind: the next one has the picture encoded anew, may order it as often, is
 * not charged twice for it, and the worker's one place is free again at the end. */
static void attempts_begin_anew(void **state)
{
    struct bed *b = *state;
    struct order gen, enc;
    Wn__Envelope *done;

    bed_start_with(b, 4, 1);
    submit_new(b->client, "q", "image", NULL);
    for (uint32_t attempt = 1; attempt <= 3; attempt++) {
        gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
        assert_int_equal(gen.attempt, attempt);
        enc = take_order(b->vision, WN__ENVELOPE__BODY_ENCODE);
        assert_int_equal(enc.attempt, attempt);
        give_error(b->vision, &enc, WN_EPEER, true, "the leader cannot be reached"); /* once an attempt */
        enc = take_order(b->vision, WN__ENVELOPE__BODY_ENCODE);
        assert_int_equal(enc.attempt, attempt);
        give_encoded(b->vision, &enc);
        usleep(50000);
        if (attempt == 3) break;
        give_error(b->leader, &gen, WN_EPEER, true, "a link broke");
        (void)take_order(b->leader, WN__ENVELOPE__BODY_CANCEL);
    }
    give_done(b->leader, &gen, 3); /* it says nothing of images: what the vision worker said counts */
    done = expect_done(b->client, WN__FINISH_REASON__FINISH_STOP, "");
    assert_int_equal(done->done->usage->attempts, 3);
    assert_int_equal(done->done->usage->image_tokens, 576);
    assert_int_equal(done->done->usage->image_tokens_before_pruning, 576);
    assert_int_equal(done->done->usage->encode_us, 500);
    wn_codec_free(done);
    for (int i = 0; i < 2; i++) {
        submit_new(b->client, "q", "another", NULL);
        gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
        enc = take_order(b->vision, WN__ENVELOPE__BODY_ENCODE);
        give_encoded(b->vision, &enc);
        give_done(b->leader, &gen, 3);
        expect_answer(b->client, "");
    }
}

/* An order to encode says for whom. */
static void orders_name_the_leader(void **state)
{
    struct bed *b = *state;
    Wn__Envelope *env;

    bed_start_with(b, 4, 1);
    submit_new(b->client, "q", "image", NULL);
    env = end_expect(b->vision, WN__ENVELOPE__BODY_ENCODE);
    assert_string_equal(env->encode->leader_name, "replica-0");
    assert_string_equal(env->encode->leader_endpoint, "ipc:///tmp/features");
    wn_codec_free(env);
}

static void done_with(struct bed *b, const struct order *gen, const Wn__Usage *usage)
{
    Wn__JobRef ref = WN__JOB_REF__INIT;
    Wn__Done d = WN__DONE__INIT;

    ref.job_id = (char *)(uintptr_t)gen->id;
    ref.attempt = gen->attempt;
    d.job = &ref;
    d.reason = WN__FINISH_REASON__FINISH_STOP;
    d.usage = (Wn__Usage *)(uintptr_t)usage;
    end_send(b->leader, WN__ENVELOPE__BODY_DONE, &d, NULL, 0);
}

/* What the leader measured goes before what was added up on the way; it need not have measured anything. */
static void usage_of_the_leader(void **state)
{
    struct bed *b = *state;

    bed_start_with(b, 4, 1);
    for (int i = 0; i < 3; i++) {
        Wn__Usage u = WN__USAGE__INIT;
        struct order gen, enc;
        Wn__Envelope *env;
        submit_new(b->client, "q", "image", NULL);
        gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
        enc = take_order(b->vision, WN__ENVELOPE__BODY_ENCODE);
        give_encoded(b->vision, &enc);
        usleep(50000);
        if (i == 1) {
            u.preprocess_us = 20; /* the picture was encoded before: no other time */
            u.image_tokens = 64;
        }
        if (i == 2) u.cached_tokens = 32;
        u.vision_cache_hit = i == 1;
        done_with(b, &gen, i ? &u : NULL);
        env = expect_done(b->client, WN__FINISH_REASON__FINISH_STOP, "");
        assert_int_equal(env->done->usage->encode_us, i == 1 ? 0 : 500);
        assert_int_equal(env->done->usage->preprocess_us, i == 1 ? 20 : 0);
        assert_int_equal(env->done->usage->image_tokens, i == 1 ? 64 : 576);
        assert_int_equal(env->done->usage->vision_cache_hit, i == 1);
        assert_int_equal(env->done->usage->cached_tokens, i == 2 ? 32 : 0);
        assert_int_equal(env->done->usage->time_to_first_token_us, 0); /* there was none */
        wn_codec_free(env);
    }
}

/* Each job counts once, as what it became. */
static void status_counts(void **state)
{
    struct bed *b = *state;
    struct order gen;
    Wn__Envelope *env;
    char id[32];

    bed_start_with(b, 4, 1);
    for (int i = 0; i < 2; i++) {
        submit_new(b->client, "q", NULL, NULL);
        gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
        give_tokens(b->leader, &gen, 0, 5, "x");
        expect_tokens(b->client, 0, 1, "x");
        give_done(b->leader, &gen, 600); /* with 576 of an image */
        expect_answer(b->client, "x");
    }
    submit_new(b->client, "q", NULL, NULL);
    gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    give_error(b->leader, &gen, WN_EINVAL, false, "no");
    end_expect_error(b->client, WN_EINVAL, "no");
    for (int i = 0; i < 3; i++) {
        submit_new(b->client, "q", NULL, id);
        cancel(b->client, id);
        wn_codec_free(expect_done(b->client, WN__FINISH_REASON__FINISH_CANCELLED, ""));
    }
    env = ask_status(b->client);
    assert_int_equal(env->status->accepted, 6);
    assert_int_equal(env->status->answered, 2);
    assert_int_equal(env->status->failed, 1);
    assert_int_equal(env->status->cancelled, 3);
    assert_int_equal(env->status->running + env->status->queued, 0);
    assert_int_equal(env->status->prompt_tokens, 1200);
    assert_int_equal(env->status->image_tokens, 1152);
    assert_int_equal(env->status->image_tokens_before_pruning, 1152);
    assert_int_equal(env->status->generated_tokens, 2);
    assert_int_equal(env->status->replayed, 0);
    assert_int_equal(env->status->results, 6);
    wn_codec_free(env);
}

static void hello_as(struct end *e, Wn__Role role, const char *name, const char *model_id)
{
    Wn__Hello h = WN__HELLO__INIT;

    h.role = role;
    h.name = (char *)(uintptr_t)name;
    h.model_id = (char *)(uintptr_t)model_id;
    h.slots = 1;
    end_send(e, WN__ENVELOPE__BODY_HELLO, &h, NULL, 0);
}

/* A worker was silent for so long that it was given up, and one of another model took the field: it must not come back
 * by its next heartbeat alone. */
static void models_do_not_mix_later(void **state)
{
    struct bed *b = *state;
    struct end *old, *fresh;

    b->cfg.lease_ms = 300;
    b->cfg.no_worker_timeout_ms = 0;
    bed_start(b);
    b->client = end_open(b, false);
    old = end_open(b, true);
    hello_as(old, WN__ROLE__ROLE_LEADER, "replica-0", "abc");
    wn_codec_free(end_expect(old, WN__ENVELOPE__BODY_WELCOME));
    usleep(600000);
    fresh = end_open(b, true);
    hello_as(fresh, WN__ROLE__ROLE_LEADER, "replica-1", "xyz");
    wn_codec_free(end_expect(fresh, WN__ENVELOPE__BODY_WELCOME));
    worker_heartbeat(old);
    end_expect_error(old, WN_ENOENT, "has not said hello");
    hello_as(old, WN__ROLE__ROLE_LEADER, "replica-0", "abc");
    end_expect_error(old, WN_EINVAL, "do not mix");
    submit_new(b->client, "q", NULL, NULL);
    worker_heartbeat(fresh);
    end_job(fresh, b->client);
    assert_null(end_recv(old, 50));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        BED_TEST(idle_leaders_take_turns), BED_TEST(load_is_a_share),     BED_TEST(a_vision_worker_leaves),
        BED_TEST(attempts_begin_anew),     BED_TEST(orders_name_the_leader), BED_TEST(usage_of_the_leader),
        BED_TEST(status_counts),           BED_TEST(models_do_not_mix_later),
    };
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    wn_log_max = WN_LOG_ERROR;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
