/* tests/integration/test_scheduler_follow.c - who follows a job: places that are free again, long answers, ends. */
#include "sched_bed.h"

#include "base/log.h"

#define LONG    5000 /* tokens: more than one message has */
#define CHANCES 600  /* tokens with log-probabilities: more than one message has of those */

static void expect_attached(struct end *e, const char *id, uint32_t from)
{
    char got[32];

    attach(e, id, from);
    expect_accepted(e, true, got);
    assert_string_equal(got, id);
}

/* A follower whose connection has ended makes room for another, also while nothing is sent to it. */
static void followers_that_are_gone(void **state)
{
    struct bed *b = *state;
    struct end *last;
    struct order gen;
    char id[32];

    b->cfg.no_worker_timeout_ms = 0;
    bed_start_with(b, 0, 0);
    submit_new(b->client, "q", NULL, id); /* nobody is there for it: it waits */
    for (int i = 0; i < 12; i++) {
        struct end *e = end_open(b, false);
        expect_attached(e, id, 0);
        end_close(e);
        usleep(20000);
    }
    last = end_open(b, false);
    expect_attached(last, id, 0);
    b->leader = worker_open(b, WN__ROLE__ROLE_LEADER, "replica-0", 4);
    gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    give_done(b->leader, &gen, 3);
    expect_answer(last, "");
    expect_answer(b->client, "");
}

/* Those that are there stay; who comes too late is told, and may cancel the job all the same. */
static void too_many_followers(void **state)
{
    struct bed *b = *state;
    struct end *others[7], *late;
    char id[32];

    b->cfg.no_worker_timeout_ms = 0;
    bed_start_with(b, 0, 0);
    submit(b->client, "q", NULL, "key");
    expect_accepted(b->client, false, id);
    for (int i = 0; i < 7; i++) {
        others[i] = end_open(b, false);
        expect_attached(others[i], id, 0);
    }
    late = end_open(b, false);
    attach(late, id, 0);
    end_expect_error(late, WN_ELIMIT, "has 8 followers already");
    submit(late, "q", NULL, "key");
    end_expect_error(late, WN_ELIMIT, "has 8 followers already");
    expect_attached(others[6], id, 0); /* who follows it already may begin anew */
    cancel(late, id);
    end_expect_error(late, WN_ELIMIT, "has 8 followers already");
    for (int i = 0; i < 7; i++) wn_codec_free(expect_done(others[i], WN__FINISH_REASON__FINISH_CANCELLED, ""));
    wn_codec_free(expect_done(b->client, WN__FINISH_REASON__FINISH_CANCELLED, ""));
}

static void check_logprobs(const Wn__Tokens *t, uint32_t chances)
{
    for (size_t i = 0; i < t->n_logprobs; i++) {
        Wn__TokenLogprobs *one = NULL;
        struct wn_err err = {0};
        assert_int_equal(wn_codec_unpack_logprobs(&one, t->logprobs[i].data, t->logprobs[i].len, &err), WN_OK);
        assert_int_equal(one->chosen->id, t->ids[i]);
        wn__token_logprobs__free_unpacked(one, NULL);
    }
    assert_int_equal(t->n_logprobs, chances ? t->n_ids : 0);
}

/* All tokens from `from` on, whose text is one letter each; returns in how many messages. */
static int expect_all(struct end *e, uint32_t from, uint32_t to, uint32_t chances)
{
    int messages = 0;

    for (uint32_t at = from; at < to; messages++) {
        Wn__Envelope *env = end_expect(e, WN__ENVELOPE__BODY_TOKENS);
        const Wn__Tokens *t = env->tokens;
        assert_int_equal(t->first, at);
        assert_in_range(t->n_ids, 1, WN_TOKENS_IDS_MAX);
        assert_int_equal(strlen(t->text), t->n_ids);
        for (size_t i = 0; i < t->n_ids; i++) {
            assert_int_equal(t->ids[i], 7 + at + i);
            assert_int_equal(t->text[i], 'a' + (at + i) % 26);
        }
        check_logprobs(t, chances);
        at += (uint32_t)t->n_ids;
        wn_codec_free(env);
    }
    return messages;
}

static void answer_long(struct bed *b, uint32_t tokens, bool chances, char id[32])
{
    struct end *late;
    struct order gen;

    bed_start_with(b, 4, 0);
    submit_new(b->client, "q", NULL, id);
    gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    for (uint32_t i = 0; i < tokens; i++) {
        const char text[2] = {(char)('a' + i % 26)};
        if (chances) give_token_with_logprobs(b->leader, &gen, i, 7 + i, text);
        else give_tokens(b->leader, &gen, i, 7 + i, text);
    }
    (void)expect_all(b->client, 0, tokens, chances);
    late = end_open(b, false);
    expect_attached(late, id, 0);
    assert_true(expect_all(late, 0, tokens, chances) > 1);
    expect_attached(late, id, tokens - 100);
    assert_int_equal(expect_all(late, tokens - 100, tokens, chances), 1);
    expect_attached(late, id, tokens); /* it has all of it, but the end */
    give_done(b->leader, &gen, 3);
    wn_codec_free(end_expect(late, WN__ENVELOPE__BODY_DONE));
    wn_codec_free(end_expect(b->client, WN__ENVELOPE__BODY_DONE));
    expect_attached(late, id, tokens - 1); /* what was kept is whole after all that */
    assert_int_equal(expect_all(late, tokens - 1, tokens, chances), 1);
    wn_codec_free(end_expect(late, WN__ENVELOPE__BODY_DONE));
}

static void a_long_answer(void **state)
{
    char id[32];

    answer_long(*state, LONG, false, id);
}

static void many_log_probabilities(void **state)
{
    char id[32];

    answer_long(*state, CHANCES, true, id);
}

/* The end by an Error: of which request and job, why, and whether to try again. */
static void expect_failure(struct end *e, const char *id, const char *words, bool retriable)
{
    Wn__Envelope *env = end_expect(e, WN__ENVELOPE__BODY_ERROR);

    assert_string_equal(env->error->client_tag, "7");
    assert_string_equal(env->error->job->job_id, id);
    assert_int_equal(env->error->job->attempt, 1);
    assert_int_equal(env->error->retriable, retriable);
    if (!strstr(env->error->text, words)) fail_msg("'%s' is not in '%s'", words, env->error->text);
    wn_codec_free(env);
}

/* A replica says in three ways that it cannot go on. */
static void failures(void **state)
{
    static const char *const said[] = {"", "no more memory"};
    struct bed *b = *state;
    struct order gen;
    char id[32];

    b->cfg.max_attempts = 1;
    bed_start_with(b, 4, 0);
    for (int i = 0; i < 2; i++) {
        Wn__JobRef ref = WN__JOB_REF__INIT;
        Wn__Done d = WN__DONE__INIT;
        submit_new(b->client, "q", NULL, id);
        gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
        ref.job_id = gen.id;
        ref.attempt = gen.attempt;
        d.job = &ref;
        d.reason = WN__FINISH_REASON__FINISH_ERROR;
        d.text = (char *)(uintptr_t)said[i];
        end_send(b->leader, WN__ENVELOPE__BODY_DONE, &d, NULL, 0);
        expect_failure(b->client, id, i ? said[i] : "the replica could not finish the job", false);
        (void)take_order(b->leader, WN__ENVELOPE__BODY_CANCEL);
    }
    submit_new(b->client, "q", NULL, id);
    gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    give_error(b->leader, &gen, WN_EINVAL, false, "stop token 9");
    expect_failure(b->client, id, "stop token 9", false);
    (void)take_order(b->leader, WN__ENVELOPE__BODY_CANCEL);
    submit_new(b->client, "q", NULL, id);
    gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    give_error(b->leader, &gen, WN_EPEER, true, "a link broke");
    expect_failure(b->client, id, "a link broke", true);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        BED_TEST(followers_that_are_gone), BED_TEST(too_many_followers), BED_TEST(a_long_answer),
        BED_TEST(many_log_probabilities),  BED_TEST(failures),
    };
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    wn_log_max = WN_LOG_ERROR;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
