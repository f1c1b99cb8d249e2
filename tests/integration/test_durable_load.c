/* tests/integration/test_durable_load.c - what a scheduler makes of the journal that it finds: whose turn it is, which
 * failures may be tried again, and rows that contradict each other. */
#include "sched_bed.h"

#include <sqlite3.h>

#include "base/log.h"
#include "tests/scratch.h"

/* Jobs go on in the order in which they came, over any number of restarts: those that ran first, then those that
 * waited. */
static void turns_are_kept(void **state)
{
    struct bed *b = *state;
    struct order o;
    char ids[6][32];

    bed_start_with(b, 2, 0);
    for (int i = 0; i < 6; i++) submit_new(b->client, "q", NULL, ids[i]);
    for (int i = 0; i < 2; i++) assert_string_equal(take_order(b->leader, WN__ENVELOPE__BODY_GENERATE).id, ids[i]);
    for (int i = 0; i < 2; i++) {
        bed_stop(b);
        bed_start_with(b, 0, 0);
    }
    b->leader = worker_open(b, WN__ROLE__ROLE_LEADER, "replica-0", 1);
    for (int i = 0; i < 6; i++) {
        o = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
        assert_string_equal(o.id, ids[i]);
        assert_true(o.attempt > 1); /* an answer of a scheduler before this one must not count */
        give_done(b->leader, &o, 3);
    }
}

static void expect_end(struct bed *b, const char *words, bool retriable)
{
    Wn__Envelope *env = end_expect(b->client, WN__ENVELOPE__BODY_ERROR);

    assert_non_null(strstr(env->error->text, words));
    assert_int_equal(env->error->retriable, retriable);
    wn_codec_free(env);
}

/* A failure is said to be worth another try before and after a restart, and its key then begins a new job. */
static void failures_are_kept(void **state)
{
    struct bed *b = *state;
    struct order o;
    char ids[2][32], again[32];

    b->cfg.max_attempts = 1;
    bed_start_with(b, 4, 0);
    for (int i = 0; i < 2; i++) {
        submit(b->client, "q", NULL, i ? "unlucky" : "wrong");
        expect_accepted(b->client, false, ids[i]);
        o = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
        give_error(b->leader, &o, i ? WN_EPEER : WN_EINVAL, i, i ? "a link broke" : "stop token 9");
        expect_end(b, i ? "a link broke" : "stop token 9", i);
        (void)take_order(b->leader, WN__ENVELOPE__BODY_CANCEL);
    }
    bed_stop(b);
    bed_start_with(b, 4, 0);
    for (int i = 0; i < 2; i++) {
        attach(b->client, ids[i], 0);
        expect_accepted(b->client, true, NULL);
        expect_end(b, i ? "a link broke" : "stop token 9", i);
    }
    submit(b->client, "q", NULL, "wrong");
    expect_accepted(b->client, true, again);
    assert_string_equal(again, ids[0]);
    expect_end(b, "stop token 9", false);
    submit(b->client, "q", NULL, "unlucky");
    expect_accepted(b->client, false, again);
    assert_string_not_equal(again, ids[1]);
    o = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    give_done(b->leader, &o, 3);
    expect_answer(b->client, "");
}

/* Until its first token a job has waited also while there was no scheduler. */
static void times_are_kept(void **state)
{
    struct bed *b = *state;
    struct order o;
    Wn__Envelope *env;
    char id[32];

    bed_start_with(b, 4, 0);
    submit_new(b->client, "q", NULL, id);
    o = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    usleep(300000);
    bed_stop(b);
    bed_start_with(b, 4, 0);
    attach(b->client, id, 0);
    expect_accepted(b->client, true, NULL);
    o = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    give_tokens(b->leader, &o, 0, 5, "x");
    expect_tokens(b->client, 0, 1, "x");
    usleep(200000);
    give_done(b->leader, &o, 3);
    env = expect_done(b->client, WN__FINISH_REASON__FINISH_STOP, "x");
    assert_in_range(env->done->usage->time_to_first_token_us, 300000, env->done->usage->total_us - 200000);
    wn_codec_free(env);
}

/* Runs SQL on the file, as no journal would. */
static void tamper(const struct bed *b, const char *text)
{
    char path[WN_PATH_LEN + 32];
    sqlite3 *sql = NULL;

    snprintf(path, sizeof(path), "%s/journal.db", b->cfg.journal);
    assert_int_equal(sqlite3_open(path, &sql), SQLITE_OK);
    if (sqlite3_exec(sql, text, NULL, NULL, NULL) != SQLITE_OK) fail_msg("%s: %s", text, sqlite3_errmsg(sql));
    sqlite3_close(sql);
}

/* The service does not start with half of what was promised: the first row that makes no sense is named. */
static void rows_that_contradict(void **state)
{
    static const struct {
        const char *sql, *says;
    } cases[] = {
        {"UPDATE jobs SET ended_us=5 WHERE seq=1", "and has ended"},
        {"UPDATE jobs SET state=(SELECT state FROM jobs WHERE ended_us<>0) WHERE seq=1", "and has not ended"},
        {"DELETE FROM images WHERE job=1", "0 images of 1"},
        {"UPDATE images SET job=9 WHERE job=2; UPDATE images SET job=2 WHERE job=1; UPDATE images SET job=1 WHERE "
         "job=9", "image 0 has 14 bytes of 7"},
        {"UPDATE requests SET request=zeroblob(3) WHERE job=1", ""},
    };
    struct bed *b = *state;

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct wn_scheduler *s = NULL;
        struct wn_err err = {0};
        char id[32], other[32];
        bed_new_journal(b);
        bed_start_with(b, 0, 0);
        submit_new(b->client, "one", "picture", id);
        submit_new(b->client, "two", "longer picture", NULL);
        submit_new(b->client, "three", NULL, other);
        cancel(b->client, other);
        wn_codec_free(expect_done(b->client, WN__FINISH_REASON__FINISH_CANCELLED, ""));
        bed_stop(b);
        tamper(b, cases[i].sql);
        if (wn_scheduler_open(&s, &b->cfg, "tcp://127.0.0.1:0", &err) == WN_OK) fail_msg("%s: it opens", cases[i].sql);
        assert_null(s);
        if (!strstr(err.text, id) || !strstr(err.text, cases[i].says)) fail_msg("%s: %s", cases[i].sql, err.text);
    }
}


int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        JOURNAL_TEST(turns_are_kept),
        JOURNAL_TEST(failures_are_kept),
        JOURNAL_TEST(times_are_kept),
        JOURNAL_TEST(rows_that_contradict),
    };
    int rc;

    wn_log_max = WN_LOG_ERROR;
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    if (!scratch_make(bed_base, sizeof(bed_base), "durable-load")) return 1;
    rc = cmocka_run_group_tests(tests, NULL, NULL);
    scratch_remove(bed_base);
    return rc;
}
