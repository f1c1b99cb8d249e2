/* tests/unit/test_job.c - every event in every state, every order of events, ids, and the answer that grows by replayed
 * pieces. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/job.h"

/* Written out a second time, as a list of what is allowed; everything else must be refused. */
static void every_event_in_every_state(void **state)
{
    static const struct {
        wn_job_state from;
        wn_job_event event;
        uint32_t attempt, max;
        wn_job_state to;
    } allowed[] = {
        {WN_JOB_ACCEPTED, WN_JOB_QUEUE, 0, 3, WN_JOB_QUEUED},
        {WN_JOB_ACCEPTED, WN_JOB_FAIL, 0, 3, WN_JOB_FAILED},
        {WN_JOB_ACCEPTED, WN_JOB_CANCEL, 0, 3, WN_JOB_CANCELLED},
        {WN_JOB_QUEUED, WN_JOB_DISPATCH, 0, 3, WN_JOB_RUNNING},
        {WN_JOB_QUEUED, WN_JOB_DISPATCH, 2, 3, WN_JOB_RUNNING},
        {WN_JOB_QUEUED, WN_JOB_FAIL, 0, 3, WN_JOB_FAILED},
        {WN_JOB_QUEUED, WN_JOB_CANCEL, 1, 3, WN_JOB_CANCELLED},
        {WN_JOB_RUNNING, WN_JOB_COMPLETE, 1, 3, WN_JOB_DONE},
        {WN_JOB_RUNNING, WN_JOB_FAIL, 1, 3, WN_JOB_FAILED},
        {WN_JOB_RUNNING, WN_JOB_LOSE, 1, 3, WN_JOB_QUEUED},
        {WN_JOB_RUNNING, WN_JOB_LOSE, 2, 3, WN_JOB_QUEUED},
        {WN_JOB_RUNNING, WN_JOB_LOSE, 3, 3, WN_JOB_FAILED},
        {WN_JOB_RUNNING, WN_JOB_LOSE, 1, 1, WN_JOB_FAILED},
        {WN_JOB_RUNNING, WN_JOB_CANCEL, 1, 3, WN_JOB_CANCELLED},
    };
    const size_t n = sizeof(allowed) / sizeof(allowed[0]);
    size_t taken = 0;

    (void)state;
    for (size_t i = 0; i < n; i++) {
        struct wn_job_life life = {allowed[i].from, allowed[i].attempt, allowed[i].max};
        struct wn_err err = {0};
        assert_int_equal(wn_job_apply(&life, allowed[i].event, &err), WN_OK);
        assert_int_equal(life.state, allowed[i].to);
        assert_int_equal(life.attempt, allowed[i].attempt + (allowed[i].event == WN_JOB_DISPATCH));
    }
    for (int s = 0; s < WN_JOB_STATES; s++) {
        for (int e = 0; e < WN_JOB_EVENTS; e++) {
            struct wn_job_life life = {(wn_job_state)s, 1, 3}, before = life;
            struct wn_err err = {0};
            bool in_list = false;
            for (size_t i = 0; i < n; i++) in_list |= (int)allowed[i].from == s && (int)allowed[i].event == e;
            if (in_list) {
                taken++;
                continue;
            }
            assert_int_equal(wn_job_apply(&life, (wn_job_event)e, &err), WN_EINVAL);
            assert_memory_equal(&life, &before, sizeof(life));
            assert_non_null(strstr(err.text, wn_job_state_name((wn_job_state)s)));
        }
    }
    assert_int_equal(taken, 10);
}

/* ---- every order ---- */

#define DEPTH 12

/* What has happened to a job, kept apart from its state machine. */
struct history {
    uint32_t dispatches, losses, ends, attempts_max;
    int n;
};

static unsigned long orders;

/* Nothing is lost: what has not ended can still end well. */
static bool can_be_answered(struct wn_job_life life)
{
    static const wn_job_event on[] = {WN_JOB_QUEUE, WN_JOB_DISPATCH, WN_JOB_COMPLETE};
    struct wn_err err = {0};

    for (size_t i = 0; i < 3; i++) (void)!wn_job_apply(&life, on[i], &err); /* those before its state are refused */
    return life.state == WN_JOB_DONE;
}

static void walk(struct wn_job_life life, struct history h)
{
    const bool runs = life.state == WN_JOB_RUNNING;

    orders++;
    assert_int_equal(wn_job_ended(&life), h.ends == 1);
    assert_int_equal(life.attempt, h.dispatches);
    assert_true(life.attempt <= h.attempts_max);
    if (!h.ends) assert_true(can_be_answered(life));
    /* answers of this attempt count while it runs, of all others never */
    for (uint32_t a = 0; a <= h.attempts_max + 1; a++)
        assert_int_equal(wn_job_takes(&life, a), runs && a == life.attempt);
    if (h.n == DEPTH) return;
    for (int e = 0; e < WN_JOB_EVENTS; e++) {
        struct wn_job_life then = life;
        struct history with = h;
        struct wn_err err = {0};
        if (wn_job_apply(&then, (wn_job_event)e, &err) != WN_OK) {
            assert_memory_equal(&then, &life, sizeof(life)); /* refused: as it was */
            continue;
        }
        assert_int_equal(h.ends, 0); /* nothing moves what has ended: one answer */
        with.n++;
        with.dispatches += e == WN_JOB_DISPATCH;
        with.losses += e == WN_JOB_LOSE;
        with.ends += wn_job_ended(&then);
        if (e == WN_JOB_COMPLETE) assert_true(runs && then.state == WN_JOB_DONE);
        if (e == WN_JOB_CANCEL) assert_int_equal(then.state, WN_JOB_CANCELLED);
        /* a loss ends a job when its tries are used up, and only then */
        if (e == WN_JOB_LOSE) assert_int_equal(wn_job_ended(&then), with.losses == h.attempts_max);
        walk(then, with);
    }
}

static void every_order(void **state)
{
    (void)state;
    for (uint32_t max = 1; max <= 4; max++)
        walk((struct wn_job_life){WN_JOB_ACCEPTED, 0, max}, (struct history){.attempts_max = max});
    print_message("%lu orders of up to %d events\n", orders, DEPTH);
}

static void a_life_with_two_losses(void **state)
{
    struct wn_job_life life = {WN_JOB_ACCEPTED, 0, 3};
    struct wn_err err = {0};

    (void)state;
    assert_false(wn_job_takes(&life, 0));
    assert_int_equal(wn_job_apply(&life, WN_JOB_QUEUE, &err), WN_OK);
    for (uint32_t attempt = 1; attempt <= 3; attempt++) {
        assert_int_equal(wn_job_apply(&life, WN_JOB_DISPATCH, &err), WN_OK);
        assert_true(wn_job_takes(&life, attempt));
        assert_false(wn_job_takes(&life, attempt - 1));
        assert_false(wn_job_takes(&life, attempt + 1));
        assert_int_equal(wn_job_apply(&life, WN_JOB_LOSE, &err), WN_OK);
        assert_false(wn_job_takes(&life, attempt)); /* late */
    }
    assert_int_equal(life.state, WN_JOB_FAILED);
    assert_true(wn_job_ended(&life));
}

static void ids(void **state)
{
    char a[WN_JOB_ID_CHARS + 1], b[WN_JOB_ID_CHARS + 1];

    (void)state;
    wn_job_id_make(a);
    assert_true(wn_job_id_valid(a));
    for (int i = 0; i < 1000; i++) {
        wn_job_id_make(b);
        assert_true(wn_job_id_valid(b));
        assert_true(strncmp(a, b, 10) <= 0); /* the time part does not go back */
        assert_string_not_equal(a, b);
        memcpy(a, b, sizeof(a));
    }
}

static void answer_grows(void **state)
{
    struct wn_transcript a = {0};
    struct wn_err err = {0};
    const uint32_t one[] = {11, 12}, two[] = {13};
    bool news;

    (void)state;
    assert_int_equal(wn_transcript_add(&a, 0, one, 2, "a red", &news, &err), WN_OK);
    assert_true(news);
    assert_int_equal(wn_transcript_add(&a, 2, two, 1, "", &news, &err), WN_OK); /* half a character: no text yet */
    assert_int_equal(wn_transcript_add(&a, 3, NULL, 0, " dot", &news, &err), WN_OK);
    assert_true(news);
    assert_string_equal(a.text, "a red dot");
    assert_int_equal(a.ids_n, 3);
    assert_int_equal(wn_transcript_text_at(&a, 0), 0);
    assert_int_equal(wn_transcript_text_at(&a, 1), 0); /* a text belongs to the last of its tokens */
    assert_int_equal(wn_transcript_text_at(&a, 2), 5);
    assert_int_equal(wn_transcript_text_at(&a, 3), 9);
    assert_int_equal(wn_transcript_text_at(&a, 99), 9);

    assert_int_equal(wn_transcript_add(&a, 0, one, 2, "a red", &news, &err), WN_OK); /* replayed: known */
    assert_false(news);
    assert_int_equal(wn_transcript_add(&a, 5, two, 1, "x", &news, &err), WN_EPROTO); /* gap */
    assert_int_equal(wn_transcript_add(&a, 2, one, 2, "x", &news, &err), WN_EPROTO); /* half known */
    assert_string_equal(a.text, "a red dot");
    wn_transcript_fini(&a);
}

static void answer_is_bounded(void **state)
{
    struct wn_transcript a = {0};
    struct wn_err err = {0};
    uint32_t many[4096] = {0};
    bool news;

    (void)state;
    for (uint32_t i = 0; i < WN_EMITTED_MAX / 4096; i++)
        assert_int_equal(wn_transcript_add(&a, i * 4096, many, 4096, "", &news, &err), WN_OK);
    assert_int_equal(wn_transcript_add(&a, WN_EMITTED_MAX, many, 1, "", &news, &err), WN_ELIMIT);
    assert_int_equal(a.ids_n, WN_EMITTED_MAX);
    wn_transcript_fini(&a);
}

/* What a journal says of an answer is kept, or refused whole where its parts do not fit together. */
static void answer_is_restored(void **state)
{
    const uint32_t ids[3] = {1, 2, 3}, ends[3] = {0, 2, 5}, back[3] = {3, 2, 5}, far[3] = {0, 2, 6};
    struct wn_transcript a = {0};
    struct wn_err err = {0};
    uint32_t *many = calloc(WN_EMITTED_MAX + 1, sizeof(*many));
    char *text = malloc(WN_ANSWER_BYTES_MAX + 1);

    (void)state;
    assert_true(many && text);
    memset(text, 't', WN_ANSWER_BYTES_MAX + 1);
    assert_int_equal(wn_transcript_restore(&a, ids, back, 3, "abcde", 5, &err), WN_EFORMAT);
    assert_int_equal(wn_transcript_restore(&a, ids, far, 3, "abcde", 5, &err), WN_EFORMAT);
    assert_int_equal(wn_transcript_restore(&a, ids, ends, 3, "abcd\xff", 5, &err), WN_EFORMAT);
    assert_int_equal(wn_transcript_restore(&a, many, many, WN_EMITTED_MAX + 1, "", 0, &err), WN_EFORMAT);
    assert_int_equal(wn_transcript_restore(&a, ids, ends, 3, text, WN_ANSWER_BYTES_MAX + 1, &err), WN_EFORMAT);
    assert_int_equal(a.ids_n + a.text_bytes, 0);
    assert_int_equal(wn_transcript_restore(&a, NULL, NULL, 0, NULL, 0, &err), WN_OK);
    assert_null(a.text);
    assert_int_equal(wn_transcript_restore(&a, ids, ends, 3, "", 0, &err), WN_EFORMAT);
    assert_int_equal(wn_transcript_restore(&a, many, many, WN_EMITTED_MAX, "", 0, &err), WN_OK); /* no text yet */
    assert_int_equal(a.ids_n, WN_EMITTED_MAX);
    assert_string_equal(a.text, "");
    wn_transcript_fini(&a);
    assert_int_equal(wn_transcript_restore(&a, ids, ends, 3, "abcde", 5, &err), WN_OK);
    assert_memory_equal(a.ids, ids, sizeof(ids));
    assert_string_equal(a.text, "abcde");
    assert_int_equal(wn_transcript_text_at(&a, 2), 2);
    wn_transcript_fini(&a);
    free(many);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_event_in_every_state),
        cmocka_unit_test(every_order),
        cmocka_unit_test(a_life_with_two_losses),
        cmocka_unit_test(ids),
        cmocka_unit_test(answer_grows),
        cmocka_unit_test(answer_is_bounded),
        cmocka_unit_test(answer_is_restored),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
