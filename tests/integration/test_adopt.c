/* tests/integration/test_adopt.c - a scheduler is killed and started again while a leader runs its jobs: the jobs go on
 * where they are, and the client's stream has no gap and no repeat. Scheduler (a process), journal, the leader's front
 * and the client library are real; the test plays the engine.
 *
 *   test_adopt WINNOWD */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "client/winnow.h"
#include "daemon/front.h"
#include "tests/integration/sched_proc.h"
#include "tests/scratch.h"

#define WAIT_MS 20000

static char base[64], journal[128];
static struct sched_proc scheduler;
static int journals;

/* ---- the parts ---- */

static void start_scheduler(void)
{
    static const char *const flags[] = {"--lease-ms=1500", "--heartbeat-ms=50", "--shutdown-timeout=0",
                                        "--log-level=error", NULL};

    sched_proc_start(&scheduler, journal, flags);
}

static void end_scheduler(void)
{
    sched_proc_end(&scheduler, SIGKILL);
}

static void new_journal(void)
{
    snprintf(journal, sizeof(journal), "%s/journal-%d", base, ++journals);
}

static struct wn_front *start_leader(uint32_t grace_ms)
{
    char bind[96];
    const struct wn_front_opts o = {.role = WN__ROLE__ROLE_LEADER,
                                    .name = "replica-0",
                                    .model_id = "abc",
                                    .build = "test",
                                    .scheduler = scheduler.workers,
                                    .features_bind = bind,
                                    .slots = 8,
                                    .tokens_max = 100,
                                    .grace_ms = grace_ms,
                                    .payload_max = 1 << 20};
    struct wn_front *f = NULL;
    struct wn_err err = {0};

    snprintf(bind, sizeof(bind), "ipc://%s/features-%d", base, rand());
    if (wn_front_start(&f, &o, &err) != WN_OK) fail_msg("%s", err.text);
    return f;
}

/* The next message for the engine. */
static struct wn_front_msg *next_message(struct wn_front *f)
{
    const int64_t until = wn_deadline_in_us(WAIT_MS * 1000);
    struct wn_front_msg *m;

    while (!(m = wn_front_take(f)))
        if (!wn_front_wait(f, until) && wn_deadline_passed(until)) fail_msg("nothing came for the leader");
    return m;
}

static struct wn_front_msg *next_order(struct wn_front *f)
{
    struct wn_front_msg *m = next_message(f);

    assert_non_null(m->env);
    assert_int_equal(m->env->body_case, WN__ENVELOPE__BODY_GENERATE);
    return m;
}

/* Token n is n, and its text "n ". */
static void give_token(struct wn_front *f, const struct wn_front_msg *order, uint32_t n)
{
    Wn__Tokens t = WN__TOKENS__INIT;
    char text[16];

    snprintf(text, sizeof(text), "%u ", n);
    t.job = order->env->generate->job;
    t.first = n;
    t.ids = &n;
    t.n_ids = 1;
    t.text = text;
    wn_front_send(f, &order->party, WN__ENVELOPE__BODY_TOKENS, &t, WN_TRAFFIC_TOKENS, NULL, 0, NULL, NULL);
}

static void give_done(struct wn_front *f, const struct wn_front_msg *order)
{
    Wn__Done d = WN__DONE__INIT;

    d.job = order->env->generate->job;
    d.reason = WN__FINISH_REASON__FINISH_STOP;
    wn_front_send(f, &order->party, WN__ENVELOPE__BODY_DONE, &d, WN_TRAFFIC_CONTROL, NULL, 0, NULL, NULL);
}

static void ask_for(struct winnow *w, const char *prompt)
{
    const struct winnow_request r = {.prompt = prompt};
    uint64_t job;

    if (winnow_submit(w, &r, &job) != WINNOW_OK) fail_msg("%s", winnow_error(w));
}

/* Reads until `text` has come, or with end, until Done; the pieces joined must be exactly it. Returns the attempts. */
static unsigned expect_text(struct winnow *w, const char *text, bool end)
{
    static char joined[256];
    const int64_t until = wn_deadline_in_us(WAIT_MS * 1000);

    while (wn_now_us() < until) {
        struct winnow_event ev;
        if (!end && strcmp(joined, text) == 0) return 0;
        if (winnow_next(w, &ev, 100) != WINNOW_OK) continue;
        if (ev.type == WINNOW_EVENT_TEXT)
            snprintf(joined + strlen(joined), sizeof(joined) - strlen(joined), "%s", ev.text);
        if (ev.type == WINNOW_EVENT_ERROR) fail_msg("%s", ev.text);
        if (ev.type != WINNOW_EVENT_DONE) continue;
        assert_true(end);
        assert_string_equal(joined, text);
        assert_string_equal(ev.text, text);
        joined[0] = '\0';
        return ev.usage.attempts;
    }
    fail_msg("'%s' came instead of '%s'", joined, text);
    return 0;
}

/* A scheduler, a leader, and a client whose question has reached the leader. */
struct scene {
    struct wn_front *leader;
    struct winnow *client;
    struct wn_front_msg *order;
};

static struct scene scene_open(uint32_t grace_ms)
{
    struct scene s;

    new_journal();
    start_scheduler();
    s.leader = start_leader(grace_ms);
    s.client = sched_proc_connect(&scheduler, false);
    ask_for(s.client, "count");
    s.order = next_order(s.leader);
    return s;
}

static void client_leaves(struct scene *s)
{
    winnow_close(s->client);
    s->client = NULL;
}

static void scene_close(struct scene *s)
{
    wn_front_msg_free(s->order);
    winnow_close(s->client);
    wn_front_stop(s->leader, 0);
    if (scheduler.pid) end_scheduler();
}

/* ---- what must hold ---- */

static void a_job_goes_on(void **state)
{
    struct scene s = scene_open(20000);

    (void)state;
    give_token(s.leader, s.order, 0);
    give_token(s.leader, s.order, 1);
    expect_text(s.client, "0 1 ", false);
    end_scheduler();
    give_token(s.leader, s.order, 2); /* to nobody */
    start_scheduler();
    give_token(s.leader, s.order, 3); /* perhaps before the new one is known */
    expect_text(s.client, "0 1 2 3 ", false);
    give_token(s.leader, s.order, 4);
    give_done(s.leader, s.order);
    assert_int_equal(expect_text(s.client, "0 1 2 3 4 ", true), 1);
    assert_null(wn_front_take(s.leader)); /* neither a second order nor a cancel */
    scene_close(&s);
}

static void a_job_that_ended_meanwhile(void **state)
{
    struct scene s = scene_open(20000);

    (void)state;
    usleep(300000); /* that it was handed out is on record */
    end_scheduler();
    give_token(s.leader, s.order, 0);
    give_token(s.leader, s.order, 1);
    give_done(s.leader, s.order);
    start_scheduler();
    assert_int_equal(expect_text(s.client, "0 1 ", true), 1);
    assert_null(wn_front_take(s.leader));
    scene_close(&s);
}

/* A leader that does not have the job any more: it goes out again at once, with what is known of its answer. */
static void a_job_that_nobody_has(void **state)
{
    struct scene s = scene_open(20000);
    uint32_t emitted;

    (void)state;
    give_token(s.leader, s.order, 0);
    expect_text(s.client, "0 ", false);
    end_scheduler();
    wn_front_msg_free(s.order);
    wn_front_stop(s.leader, 0);
    start_scheduler();
    s.leader = start_leader(20000);
    s.order = next_order(s.leader);
    assert_int_equal(s.order->env->generate->job->attempt, 2);
    emitted = (uint32_t)s.order->env->generate->n_emitted; /* the token may not have been on record yet */
    for (uint32_t n = emitted; n < 3; n++) give_token(s.leader, s.order, n);
    give_done(s.leader, s.order);
    assert_int_equal(expect_text(s.client, "0 1 2 ", true), 2);
    scene_close(&s);
}

/* A scheduler that does not know the job cancels it. */
static void a_job_that_is_not_known(void **state)
{
    struct scene s = scene_open(20000);
    struct wn_front_msg *m;

    (void)state;
    client_leaves(&s);
    end_scheduler();
    new_journal();
    start_scheduler();
    m = next_message(s.leader);
    assert_int_equal(m->env->body_case, WN__ENVELOPE__BODY_CANCEL);
    assert_string_equal(m->env->cancel->job->job_id, s.order->env->generate->job->job_id);
    wn_front_msg_free(m);
    scene_close(&s);
}

static void grace_ends(void **state)
{
    struct scene s = scene_open(300);
    struct wn_front_msg *m;

    (void)state;
    client_leaves(&s);
    end_scheduler();
    m = next_message(s.leader);
    assert_true(m->lease_lost);
    wn_front_msg_free(m);
    scene_close(&s);
}

/* Each of the signals that end a service: exit code 0, and the rest is on record. */
static void drained_and_started_again(void **state)
{
    static const int signals[] = {SIGTERM, SIGINT, SIGUSR1};
    struct scene s = scene_open(20000);

    (void)state;
    give_token(s.leader, s.order, 0);
    for (int i = 0; i < 3; i++) {
        struct wn_front_msg *m;
        char text[16] = "";
        int status;
        for (int n = 0; n <= i; n++) snprintf(text + strlen(text), sizeof(text) - strlen(text), "%d ", n);
        expect_text(s.client, text, false);
        status = sched_proc_end(&scheduler, signals[i]);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        m = next_message(s.leader);
        assert_int_equal(m->env->body_case, WN__ENVELOPE__BODY_DRAIN);
        wn_front_msg_free(m);
        start_scheduler();
        give_token(s.leader, s.order, (uint32_t)i + 1); /* this leader does not leave */
    }
    expect_text(s.client, "0 1 2 3 ", false);
    give_done(s.leader, s.order);
    assert_int_equal(expect_text(s.client, "0 1 2 3 ", true), 1);
    scene_close(&s);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_job_goes_on),           cmocka_unit_test(a_job_that_ended_meanwhile),
        cmocka_unit_test(a_job_that_nobody_has),   cmocka_unit_test(a_job_that_is_not_known),
        cmocka_unit_test(grace_ends),              cmocka_unit_test(drained_and_started_again),
    };
    int rc;

    if (argc < 2) return 2;
    if (argc > 2) cmocka_set_test_filter(argv[2]);
    wn_log_max = WN_LOG_ERROR;
    if (!scratch_make(base, sizeof(base), "adopt")) return 1;
    sched_proc_init(&scheduler, argv[1], base);
    rc = cmocka_run_group_tests(tests, NULL, NULL);
    scratch_remove(base);
    return rc;
}
