/* tests/unit/test_events.c - what a client's program hears of the server's messages: each token and each byte once,
 * also after the server was away; requests that a busy server is asked again for, and when; messages about nothing of
 * ours. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "client/conn.h"

#define ID    "01ARZ3NDEKTSV4RRFFQ69G5FAV"
#define OTHER "01ARZ3NDEKTSV4RRFFQ69G5FAW"

static struct winnow w;
static struct winnow_job *job; /* of the events */
static struct winnow_event ev;

static int fresh(void **state)
{
    (void)state;
    memset(&w, 0, sizeof(w));
    w.busy_timeout_ms = 60000;
    job = wn_jobs_add(&w);
    assert_non_null(job);
    return 0;
}

static int gone(void **state)
{
    (void)state;
    for (size_t i = 0; i < w.jobs_n; i++) w.jobs[i].submit = NULL;
    free(w.jobs);
    return 0;
}

/* Does the program hear of it? */
static bool fill(Wn__Envelope *env)
{
    memset(&ev, 0, sizeof(ev));
    job = NULL;
    w.current = env;
    return wn_event_fill(&w, &ev, &job);
}

/* ---- tokens ---- */

static bool tokens(const char *id, uint32_t first, uint32_t n, const char *text)
{
    static uint32_t ids[16];
    static Wn__JobRef ref;
    static Wn__Tokens t;
    static Wn__Envelope env;

    for (uint32_t i = 0; i < 16; i++) ids[i] = 1000 + first + i;
    ref = (Wn__JobRef)WN__JOB_REF__INIT;
    t = (Wn__Tokens)WN__TOKENS__INIT;
    env = (Wn__Envelope)WN__ENVELOPE__INIT;
    ref.job_id = (char *)(uintptr_t)id;
    t.job = &ref;
    t.first = first;
    t.ids = ids;
    t.n_ids = n;
    t.text = (char *)(uintptr_t)text;
    env.body_case = WN__ENVELOPE__BODY_TOKENS;
    env.tokens = &t;
    return fill(&env);
}

static void expect_text(uint32_t first, uint32_t n, const char *text)
{
    assert_int_equal(ev.type, WINNOW_EVENT_TEXT);
    assert_ptr_equal(job, &w.jobs[0]);
    assert_string_equal(ev.text, text);
    assert_int_equal(ev.first_token, first);
    assert_int_equal(ev.token_ids_n, n);
    for (uint32_t i = 0; i < n; i++) assert_int_equal(ev.token_ids[i], 1000 + first + i);
}

static void test_a_stream_that_is_told_again(void **state)
{
    (void)state;
    memcpy(w.jobs[0].id, ID, sizeof(ID));
    assert_true(tokens(ID, 0, 1, "A"));
    expect_text(0, 1, "A");
    assert_true(tokens(ID, 1, 2, "bcd"));
    expect_text(1, 2, "bcd");
    assert_true(tokens(ID, 3, 1, "")); /* a token whose text is still held */
    expect_text(3, 1, "");
    w.jobs[0].stream_text = 0; /* the server was away, and tells all again, in other pieces */
    assert_false(tokens(ID, 0, 2, "Abc"));
    assert_true(tokens(ID, 2, 3, "def"));
    expect_text(4, 1, "ef");
    assert_true(tokens(ID, 5, 1, "g"));
    expect_text(5, 1, "g");
    assert_true(tokens(ID, 6, 0, "tail")); /* text without a token */
    assert_string_equal(ev.text, "tail");
    assert_false(tokens(OTHER, 7, 1, "x")); /* not ours */
}

/* ---- a busy server ---- */

static bool busy(const char *tag, uint32_t retry_ms)
{
    static Wn__Busy b;
    static Wn__Envelope env;

    b = (Wn__Busy)WN__BUSY__INIT;
    env = (Wn__Envelope)WN__ENVELOPE__INIT;
    b.client_tag = (char *)(uintptr_t)tag;
    b.retry_ms = retry_ms;
    b.reason = "full";
    env.body_case = WN__ENVELOPE__BODY_BUSY;
    env.busy = &b;
    return fill(&env);
}

/* The request waits as long as the server says, doubled with each refusal up to eight times, and up to half as long
 * again, so that those who were refused together come back apart. */
static void test_a_busy_server_is_asked_again_later(void **state)
{
    static int request;
    static const int64_t times[] = {1, 2, 4, 8, 8, 8};
    (void)state;

    w.jobs[0].submit = (struct conn_request *)(void *)&request;
    for (int i = 0; i < 6; i++) {
        const int64_t before = wn_now_us();
        assert_false(busy("1", 500));
        assert_in_range(w.jobs[0].retry_us - before, 500000 * times[i], 750000 * times[i] + 1000000);
    }
    w.jobs[0].refusals = 0;
    assert_false(busy("1", UINT32_MAX)); /* a server is granted 10 s at a time */
    assert_in_range(w.jobs[0].retry_us - wn_now_us(), 9000000, 15000000);
}

/* Until the program's patience is over: then it hears why. */
static void test_patience_ends(void **state)
{
    static int request;
    (void)state;

    w.jobs[0].submit = (struct conn_request *)(void *)&request;
    w.busy_timeout_ms = 499;
    assert_true(busy("1", 500));
    assert_int_equal(ev.type, WINNOW_EVENT_BUSY);
    assert_string_equal(ev.text, "full");
    assert_int_equal(ev.retry_ms, 500);
    assert_int_equal(w.jobs[0].retry_us, 0);
    w.busy_timeout_ms = 60000;
    w.jobs[0].busy_us = wn_now_us() - 59600000; /* it was first busy so long ago */
    assert_true(busy("1", 500));
    w.jobs[0].busy_us = 0;
    w.jobs[0].submit = NULL; /* nothing is there to be sent again */
    assert_true(busy("1", 500));
    assert_false(busy("77", 500)); /* not ours */
    assert_null(job);
}

/* ---- accepted ---- */

static bool accepted(const char *tag, uint32_t choice, const char *id)
{
    static Wn__Accepted a;
    static Wn__Envelope env;

    a = (Wn__Accepted)WN__ACCEPTED__INIT;
    env = (Wn__Envelope)WN__ENVELOPE__INIT;
    a.client_tag = (char *)(uintptr_t)tag;
    a.choice = choice;
    a.job_id = (char *)(uintptr_t)id;
    env.body_case = WN__ENVELOPE__BODY_ACCEPTED;
    env.accepted = &a;
    return fill(&env);
}

/* Each answer of a request gets the server's name once, however often a server that was away says it. */
static void test_accepted_once(void **state)
{
    (void)state;
    assert_true(wn_jobs_add_choices(&w, 2));
    assert_false(accepted("1", 0, "no id"));
    assert_false(accepted("2", 0, ID)); /* not ours */
    assert_false(accepted("1", 2, ID));
    assert_true(accepted("1", 1, OTHER)); /* in any order */
    assert_int_equal(ev.type, WINNOW_EVENT_ACCEPTED);
    assert_ptr_equal(job, &w.jobs[1]);
    assert_true(accepted("1", 0, ID));
    assert_ptr_equal(job, &w.jobs[0]);
    assert_string_equal(w.jobs[0].id, ID);
    assert_string_equal(w.jobs[1].id, OTHER);
    assert_false(accepted("1", 0, ID));
    assert_false(accepted("", 0, OTHER)); /* as one that is attached to is said */
    wn_jobs_drop_one(&w, &w.jobs[0]);
    assert_ptr_equal(wn_jobs_by_id(&w, OTHER), &w.jobs[0]);
    assert_null(wn_jobs_by_id(&w, ID));
    wn_jobs_drop(&w, 1);
    assert_int_equal(w.jobs_n, 0);
    assert_int_equal(wn_jobs_add(&w)->number, 2); /* no number twice */
}

/* ---- ends ---- */

static void test_ends(void **state)
{
    static const struct {
        Wn__FinishReason reason;
        const char *text;
    } reasons[] = {{WN__FINISH_REASON__FINISH_STOP, "stop"},
                   {WN__FINISH_REASON__FINISH_LENGTH, "length"},
                   {WN__FINISH_REASON__FINISH_CANCELLED, "cancelled"},
                   {WN__FINISH_REASON__FINISH_ERROR, "error"},
                   {(Wn__FinishReason)99, "unknown"}};
    Wn__JobRef ref = WN__JOB_REF__INIT;
    Wn__Done done = WN__DONE__INIT;
    Wn__Error error = WN__ERROR__INIT;
    Wn__Envelope env = WN__ENVELOPE__INIT;
    (void)state;

    memcpy(w.jobs[0].id, ID, sizeof(ID));
    ref.job_id = ID;
    done.job = &ref;
    done.text = "all of it";
    env.body_case = WN__ENVELOPE__BODY_DONE;
    env.done = &done;
    for (size_t i = 0; i < sizeof(reasons) / sizeof(reasons[0]); i++) {
        done.reason = reasons[i].reason;
        assert_true(fill(&env));
        assert_ptr_equal(job, &w.jobs[0]);
        assert_int_equal(ev.type, WINNOW_EVENT_DONE);
        assert_string_equal(ev.finish_reason, reasons[i].text);
        assert_string_equal(ev.text, "all of it");
    }
    ref.job_id = OTHER;
    assert_false(fill(&env));
    env.body_case = WN__ENVELOPE__BODY_ERROR;
    env.error = &error;
    error.code = WN_ELIMIT;
    error.text = "too long";
    error.client_tag = "1"; /* a request that became no job */
    assert_true(fill(&env));
    assert_ptr_equal(job, &w.jobs[0]);
    assert_int_equal(ev.type, WINNOW_EVENT_ERROR);
    assert_int_equal(ev.error_code, WN_ELIMIT);
    assert_string_equal(ev.text, "too long");
    error.client_tag = "";
    ref.job_id = ID;
    error.job = &ref;
    assert_true(fill(&env));
    assert_ptr_equal(job, &w.jobs[0]);
    error.job = NULL; /* about the connection */
    assert_true(fill(&env));
    assert_null(job);
}

/* Every number of the server's usage is the program's, under its own name. */
static void test_usage(void **state)
{
    Wn__JobRef ref = WN__JOB_REF__INIT;
    Wn__Done done = WN__DONE__INIT;
    Wn__Usage u = WN__USAGE__INIT;
    Wn__LinkBytes b = WN__LINK_BYTES__INIT;
    Wn__Pruning p = WN__PRUNING__INIT;
    Wn__Envelope env = WN__ENVELOPE__INIT;
    (void)state;

    memcpy(w.jobs[0].id, ID, sizeof(ID));
    ref.job_id = ID;
    done.job = &ref;
    done.usage = &u;
    env.body_case = WN__ENVELOPE__BODY_DONE;
    env.done = &done;
    u.prompt_tokens = 1;
    u.completion_tokens = 2;
    u.image_tokens = 3;
    u.image_tokens_before_pruning = 4;
    u.attempts = 5;
    u.cached_tokens = 6;
    u.preemptions = 7;
    u.vision_cache_hit = true;
    u.queue_us = 11;
    u.preprocess_us = 12;
    u.encode_us = 13;
    u.prune_us = 14;
    u.transfer_us = 15;
    u.prefill_us = 16;
    u.decode_us = 17;
    u.time_to_first_token_us = 18;
    u.total_us = 19;
    assert_true(fill(&env)); /* what the server does not say is 0 */
    assert_int_equal(ev.usage.bytes_image, 0);
    assert_string_equal(ev.usage.pruning_method, "");
    u.bytes_on_wire = &b;
    b.control = 21;
    b.embedding = 22;
    b.activation = 23;
    b.allreduce = 24;
    b.logits = 25;
    b.image = 26;
    u.pruning = &p;
    p.method = "cls-topk";
    p.setting = "paper";
    p.options = "anchors=3";
    p.keep = 31;
    p.rate = 0.25f;
    p.cap = 33;
    p.position = WN__POSITION_POLICY__POSITION_COMPACT;
    p.projected = true;
    p.seed = 34;
    assert_true(fill(&env));
    assert_true(ev.usage.prompt_tokens == 1 && ev.usage.completion_tokens == 2 && ev.usage.image_tokens == 3);
    assert_true(ev.usage.image_tokens_before_pruning == 4 && ev.usage.attempts == 5 && ev.usage.cached_tokens == 6);
    assert_true(ev.usage.preemptions == 7 && ev.usage.vision_cache_hit);
    assert_true(ev.usage.queue_us == 11 && ev.usage.preprocess_us == 12 && ev.usage.encode_us == 13);
    assert_true(ev.usage.prune_us == 14 && ev.usage.transfer_us == 15 && ev.usage.prefill_us == 16);
    assert_true(ev.usage.decode_us == 17 && ev.usage.time_to_first_token_us == 18 && ev.usage.total_us == 19);
    assert_true(ev.usage.bytes_control == 21 && ev.usage.bytes_embedding == 22 && ev.usage.bytes_activation == 23);
    assert_true(ev.usage.bytes_allreduce == 24 && ev.usage.bytes_logits == 25 && ev.usage.bytes_image == 26);
    assert_string_equal(ev.usage.pruning_method, "cls-topk");
    assert_string_equal(ev.usage.pruning_setting, "paper");
    assert_string_equal(ev.usage.pruning_options, "anchors=3");
    assert_true(ev.usage.pruning_keep == 31 && ev.usage.pruning_rate == 0.25f && ev.usage.pruning_cap == 33);
    assert_true(ev.usage.pruning_position == WINNOW_POSITION_COMPACT && ev.usage.pruning_projected);
    assert_true(ev.usage.pruning_seed == 34);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_a_stream_that_is_told_again, fresh, gone),
        cmocka_unit_test_setup_teardown(test_a_busy_server_is_asked_again_later, fresh, gone),
        cmocka_unit_test_setup_teardown(test_patience_ends, fresh, gone),
        cmocka_unit_test_setup_teardown(test_accepted_once, fresh, gone),
        cmocka_unit_test_setup_teardown(test_ends, fresh, gone),
        cmocka_unit_test_setup_teardown(test_usage, fresh, gone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
