/* tests/integration/test_restart.c - a real scheduler with a journal is killed again and again while jobs come in:
 * every accepted job has exactly one result, and its text arrives without a gap or a repeat.
 *
 *   test_restart WINNOWD [KILLS JOBS [SEED]]
 *
 * Leaders and vision worker are scripted (threads of this process); scheduler, sockets, journal and client library are
 * real. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "client/winnow.h"
#include "daemon/journal.h"
#include "tests/blob_files.h"
#include "tests/integration/sched_proc.h"
#include "tests/scratch.h"
#include "transport/endpoint.h"

#define LEADERS   2
#define SLOTS     64
#define LEASE_MS  400
#define BEAT_MS   50
#define OPEN_MAX  256 /* jobs on their way at a time */
#define TOKENS(n) (3 + (n) % 5)

static char base[64], journal[80];
static unsigned kills = 10, jobs = 400, seed = 1;
static struct wn_net *net;
static atomic_bool stop_workers;
static atomic_uint kills_done, wrong_orders;
static struct sched_proc scheduler;

/* What job n answers; token k is n * 10 + k. */
static void answer_text(unsigned n, char out[128])
{
    size_t at = 0;

    for (unsigned k = 0; k < TOKENS(n); k++) at += (size_t)snprintf(out + at, 128 - at, "%u.%u ", n, k);
}

/* ---- the scheduler ---- */

static void start_scheduler(void)
{
    static const char *const flags[] = {"--lease-ms=400", "--heartbeat-ms=50", "--max-queue=4096",
                                        "--max-results=100000", "--result-ttl=3600", "--log-level=error", NULL};

    sched_proc_start(&scheduler, journal, flags);
}

static atomic_bool scheduler_over;

static void *killer(void *arg)
{
    unsigned state = seed;

    (void)arg;
    for (unsigned i = 0; i < kills; i++) {
        int status;
        usleep(300000 + (unsigned)rand_r(&state) % 1500000);
        status = sched_proc_end(&scheduler, SIGKILL);
        if (!WIFSIGNALED(status)) fprintf(stderr, "the scheduler had ended by itself: %d\n", status);
        usleep((unsigned)rand_r(&state) % 200000);
        start_scheduler();
        atomic_fetch_add(&kills_done, 1);
    }
    while (!atomic_load(&scheduler_over)) usleep(10000); /* the scheduler dies with the thread that forked it */
    return NULL;
}

/* ---- workers ---- */

struct task {
    char id[32];
    uint32_t attempt, n, next;
};

struct worker {
    pthread_t thread;
    struct wn_endpoint *ep;
    char name[16];
    bool vision, welcome;
    int64_t heard_us, beat_us;
    struct task tasks[SLOTS * 2];
    unsigned tasks_n;
};

static void send_body(struct worker *w, Wn__Envelope__BodyCase kind, const void *body)
{
    struct wn_err err = {0};
    struct wn_msg msg;
    uint8_t *data = NULL;
    size_t bytes = 0;

    wn_msg_init(&msg);
    if (wn_codec_pack_body(&data, &bytes, kind, body, &err) == WN_OK && wn_msg_add_copy(&msg, data, bytes) == WN_OK)
        (void)!wn_endpoint_send(w->ep, &msg, WN_TRAFFIC_CONTROL); /* nobody there: it is asked again */
    free(data);
    wn_msg_clear(&msg);
}

static void beat(struct worker *w)
{
    const int64_t now = wn_now_us();
    Wn__Hello h = WN__HELLO__INIT;
    Wn__Heartbeat hb = WN__HEARTBEAT__INIT;

    if (w->welcome && now - w->heard_us > LEASE_MS * 1000) {
        w->welcome = false; /* what it had is lost */
        w->tasks_n = 0;
    }
    if (now - w->beat_us < BEAT_MS * 1000) return;
    w->beat_us = now;
    if (w->welcome) {
        send_body(w, WN__ENVELOPE__BODY_HEARTBEAT, &hb);
        return;
    }
    h.role = w->vision ? WN__ROLE__ROLE_VISION : WN__ROLE__ROLE_LEADER;
    h.name = w->name;
    h.host = "test";
    h.pid = (uint32_t)getpid();
    h.model_id = "abc";
    h.features_endpoint = w->vision ? "" : "ipc:///tmp/none";
    h.slots = SLOTS;
    send_body(w, WN__ENVELOPE__BODY_HELLO, &h);
}

static void on_generate(struct worker *w, const Wn__Generate *g)
{
    struct task *t = &w->tasks[w->tasks_n];

    if (w->tasks_n == SLOTS * 2) return;
    memset(t, 0, sizeof(*t));
    snprintf(t->id, sizeof(t->id), "%s", g->job->job_id);
    t->attempt = g->job->attempt;
    if (sscanf(g->prompt, "job %u", &t->n) != 1) atomic_fetch_add(&wrong_orders, 1);
    t->next = (uint32_t)g->n_emitted;
    for (uint32_t k = 0; k < t->next; k++)
        if (g->emitted[k] != t->n * 10 + k) atomic_fetch_add(&wrong_orders, 1);
    w->tasks_n++;
}

static void on_order(struct worker *w, const Wn__Envelope *env, struct wn_msg *msg)
{
    Wn__Encoded done = WN__ENCODED__INIT;

    if (env->body_case == WN__ENVELOPE__BODY_WELCOME || env->body_case == WN__ENVELOPE__BODY_HEARTBEAT) {
        w->heard_us = wn_now_us();
        if (env->body_case == WN__ENVELOPE__BODY_WELCOME) w->welcome = true;
    } else if (env->body_case == WN__ENVELOPE__BODY_GENERATE) {
        on_generate(w, env->generate);
    } else if (env->body_case == WN__ENVELOPE__BODY_ENCODE) {
        if (msg->frames_n != 2 || memcmp(wn_msg_data(msg, 1), "picture ", 8) != 0) atomic_fetch_add(&wrong_orders, 1);
        done.job = env->encode->job;
        done.image = env->encode->image;
        done.rows = done.rows_before = 4;
        send_body(w, WN__ENVELOPE__BODY_ENCODED, &done);
    } else if (env->body_case == WN__ENVELOPE__BODY_CANCEL) {
        for (unsigned i = 0; i < w->tasks_n; i++)
            if (strcmp(w->tasks[i].id, env->cancel->job->job_id) == 0 &&
                w->tasks[i].attempt == env->cancel->job->attempt)
                w->tasks[i--] = w->tasks[--w->tasks_n];
    }
}

/* One token of each task. */
static void work(struct worker *w)
{
    for (unsigned i = 0; i < w->tasks_n; i++) {
        struct task *t = &w->tasks[i];
        Wn__JobRef ref = WN__JOB_REF__INIT;
        Wn__Tokens tokens = WN__TOKENS__INIT;
        Wn__Done done = WN__DONE__INIT;
        uint32_t id = t->n * 10 + t->next;
        char text[32];
        ref.job_id = t->id;
        ref.attempt = t->attempt;
        if (t->next < TOKENS(t->n)) {
            snprintf(text, sizeof(text), "%u.%u ", t->n, t->next);
            tokens.job = &ref;
            tokens.first = t->next++;
            tokens.ids = &id;
            tokens.n_ids = 1;
            tokens.text = text;
            send_body(w, WN__ENVELOPE__BODY_TOKENS, &tokens);
        } else {
            done.job = &ref;
            done.reason = WN__FINISH_REASON__FINISH_STOP;
            send_body(w, WN__ENVELOPE__BODY_DONE, &done);
            w->tasks[i--] = w->tasks[--w->tasks_n];
        }
    }
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    struct wn_endpoint_opts o = {.type = WN_ENDPOINT_DEALER,
                                 .address = scheduler.workers,
                                 .reconnect_max_ms = 100,
                                 .frame_max = {WN_CODEC_BYTES_MAX, (size_t)1 << 20}};
    struct wn_err err = {0};
    struct wn_msg msg;

    if (wn_endpoint_open(&w->ep, net, &o, &err) != WN_OK) return NULL;
    wn_msg_init(&msg);
    while (!atomic_load(&stop_workers)) {
        struct wn_poll_item item = {.ep = w->ep};
        (void)!wn_endpoint_poll(&item, 1, wn_deadline_in_us(5000));
        while (wn_endpoint_recv(w->ep, &msg) == WN_OK) {
            Wn__Envelope *env = NULL;
            if (wn_codec_unpack(&env, wn_msg_data(&msg, 0), wn_msg_size(&msg, 0), &err) == WN_OK)
                on_order(w, env, &msg);
            wn_codec_free(env);
        }
        beat(w);
        work(w);
    }
    wn_msg_clear(&msg);
    wn_endpoint_close(w->ep);
    return NULL;
}

/* ---- the client ---- */

struct asked {
    uint64_t number;
    char id[WINNOW_JOB_ID_MAX], text[128];
    unsigned accepted, done;
};

static struct asked *asked;

static void submit_one(struct winnow *w, unsigned n)
{
    char prompt[32], picture[32], key[32];
    struct winnow_image image = {picture, 0};
    struct winnow_request r = {.prompt = prompt, .images = &image, .images_n = n % 3 == 0, .idempotency_key = key};

    snprintf(prompt, sizeof(prompt), "job %u", n);
    snprintf(key, sizeof(key), "key-%u", n);
    image.bytes = (size_t)snprintf(picture, sizeof(picture), "picture %u", n % 50);
    if (winnow_submit(w, &r, &asked[n].number) != WINNOW_OK) fail_msg("submit: %s", winnow_error(w));
}

/* Numbers of one connection count from 1, as the jobs do. */
static unsigned on_event(const struct winnow_event *ev)
{
    struct asked *a = &asked[ev->job - 1];
    char expected[128];
    size_t used;

    if (ev->job < 1 || ev->job > jobs) fail_msg("an event of job %llu: %s", (unsigned long long)ev->job, ev->text);
    switch (ev->type) {
    case WINNOW_EVENT_ACCEPTED:
        a->accepted++;
        memcpy(a->id, ev->job_id, sizeof(a->id));
        return 0;
    case WINNOW_EVENT_TEXT:
        used = strlen(a->text);
        snprintf(a->text + used, sizeof(a->text) - used, "%s", ev->text);
        return 0;
    case WINNOW_EVENT_DONE:
        a->done++;
        answer_text((unsigned)(ev->job - 1), expected);
        assert_string_equal(ev->text, expected);
        assert_string_equal(a->text, expected);
        assert_string_equal(ev->finish_reason, "stop");
        return 1;
    default:
        fail_msg("job %llu: event %d: %s", (unsigned long long)ev->job, ev->type, ev->text);
    }
    return 0;
}

/* Submits while the killer kills: always as many as its part done. */
static void load(struct winnow *w)
{
    unsigned sent = 0, done = 0;
    int64_t last_us = wn_now_us();

    while (done < jobs) {
        const unsigned parts = atomic_load(&kills_done) + 1;
        const unsigned until = (unsigned)((uint64_t)jobs * parts / (kills + 1));
        struct winnow_event ev;
        int rc;
        while (sent < until && sent - done < OPEN_MAX) submit_one(w, sent++);
        rc = winnow_next(w, &ev, 20);
        if (rc == WINNOW_OK) {
            done += on_event(&ev);
            last_us = wn_now_us();
        } else if (rc == WINNOW_ECONNECT && sent == done) {
            usleep(20000); /* it is away, and nothing of ours is there */
        } else if (rc != WINNOW_TIMEOUT) {
            fail_msg("next: %s", winnow_error(w));
        }
        if (wn_now_us() - last_us > 30000000) fail_msg("nothing for 30 s: %u of %u jobs are done", done, sent);
    }
}

/* Another client asks for every job by its id: the same single result. */
static void ask_again(void)
{
    struct winnow *w = sched_proc_connect(&scheduler, true);

    for (unsigned n = 0; n < jobs; n++) {
        struct winnow_event ev;
        char expected[128];
        uint64_t job;
        assert_int_equal(asked[n].accepted, 1);
        assert_int_equal(asked[n].done, 1);
        assert_int_equal(winnow_attach(w, asked[n].id, UINT32_MAX, &job), WINNOW_OK);
        do assert_int_equal(winnow_next(w, &ev, 5000), WINNOW_OK);
        while (ev.type != WINNOW_EVENT_DONE && ev.type != WINNOW_EVENT_ERROR);
        answer_text(n, expected);
        assert_string_equal(ev.text, expected);
    }
    winnow_close(w);
}

struct tally {
    unsigned all, done, attempts;
};

static wn_status count(void *arg, const struct wn_journal_job *job, const struct wn_journal_state *s,
                       const struct wn_err *damage, struct wn_err *err)
{
    struct tally *t = arg;

    (void)job;
    (void)damage;
    (void)err;
    t->all++;
    t->done += s->life.state == WN_JOB_DONE;
    t->attempts += s->life.attempt;
    return WN_OK;
}

/* The journal holds these jobs and no others, all done, and no image. */
static void look_inside(void)
{
    struct tally t = {0};
    struct wn_journal *j = NULL;
    struct wn_err err = {0};

    if (wn_journal_open(&j, journal, &err) != WN_OK || wn_journal_load(j, count, &t, &err) != WN_OK)
        fail_msg("%s", err.text);
    wn_journal_close(j);
    assert_int_equal(t.all, jobs);
    assert_int_equal(t.done, jobs);
    assert_int_equal(blob_files_count(journal), 0);
    printf("%u jobs, %u kills: %u results, %u attempts\n", jobs, kills, t.done, t.attempts);
}

static void killed_again_and_again(void **state)
{
    struct worker *workers = calloc(LEADERS + 1, sizeof(*workers));
    struct wn_err err = {0};
    struct winnow *w;
    pthread_t thread;
    int status;

    (void)state;
    asked = calloc(jobs, sizeof(*asked));
    assert_true(workers && asked);
    start_scheduler();
    assert_int_equal(wn_net_create(&net, &err), WN_OK);
    for (int i = 0; i <= LEADERS; i++) {
        workers[i].vision = i == LEADERS;
        snprintf(workers[i].name, sizeof(workers[i].name), "worker-%d", i);
        assert_int_equal(pthread_create(&workers[i].thread, NULL, worker_main, &workers[i]), 0);
    }
    w = sched_proc_connect(&scheduler, true);
    assert_int_equal(pthread_create(&thread, NULL, killer, NULL), 0);
    load(w);
    winnow_close(w);
    ask_again();
    atomic_store(&stop_workers, true);
    for (int i = 0; i <= LEADERS; i++) pthread_join(workers[i].thread, NULL);
    status = sched_proc_end(&scheduler, SIGTERM);
    atomic_store(&scheduler_over, true);
    pthread_join(thread, NULL);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_int_equal(atomic_load(&wrong_orders), 0);
    look_inside();
    wn_net_destroy(net);
    free(workers);
    free(asked);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(killed_again_and_again)};
    int rc;

    if (argc < 2) return 2;
    if (argc > 3) {
        kills = (unsigned)strtoul(argv[2], NULL, 10);
        jobs = (unsigned)strtoul(argv[3], NULL, 10);
    }
    if (argc > 4) seed = (unsigned)strtoul(argv[4], NULL, 10);
    wn_log_max = WN_LOG_ERROR;
    if (!scratch_make(base, sizeof(base), "restart")) return 1;
    snprintf(journal, sizeof(journal), "%s/journal", base);
    sched_proc_init(&scheduler, argv[1], base);
    rc = cmocka_run_group_tests(tests, NULL, NULL);
    if (rc == 0) scratch_remove(base); /* else it is left to be looked at */
    return rc;
}
