/* tests/integration/test_asks.c - what a request may ask of the real service: stop texts and tokens, log-probabilities,
 * several answers, a deadline, an end at any point; and what it costs when nobody asks. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/clock.h"
#include "proto/codec.h"
#include "tests/integration/service.h"

#define MODEL   "models/tiny-llava"
#define TEXT    4096
#define TOKENS  256
#define WAYS    24
#define ROLES   4

static struct service service;
static struct winnow *conn;
static struct winnow_image picture;

static int start_service(void **state)
{
    static const char *const flags[] = {"-pp=2", "--vision-workers=1", NULL};
    size_t bytes;

    (void)state;
    picture.data = read_file("models/tiny-llava/demo.jpg", &bytes);
    picture.bytes = bytes;
    service_start(&service, MODEL, flags);
    return winnow_connect(&conn, service.endpoint, NULL);
}

static int stop_service(void **state)
{
    (void)state;
    winnow_close(conn);
    free((void *)(uintptr_t)picture.data);
    return service_stop(&service);
}

static struct winnow_request about_the_picture(uint32_t max_tokens)
{
    return (struct winnow_request){
        .prompt = "Describe the picture.", .images = &picture, .images_n = 1, .max_tokens = max_tokens};
}

/* Of any job; fails the test if it is an error or does not come. */
static void next_event(struct winnow_event *ev)
{
    if (winnow_next(conn, ev, 60000) != WINNOW_OK) fail_msg("%s", winnow_error(conn));
    if (ev->type == WINNOW_EVENT_ERROR) fail_msg("%s", ev->text);
}

struct answer {
    char text[TEXT], reason[16];
    uint32_t ids[TOKENS], ids_n;
};

/* The whole answer; fails the test if there is none. */
static void get(const struct winnow_request *q, struct answer *a)
{
    struct winnow_event ev;
    uint64_t job;

    memset(a, 0, sizeof(*a));
    assert_int_equal(winnow_submit(conn, q, &job), WINNOW_OK);
    for (;;) {
        next_event(&ev);
        for (size_t i = 0; ev.type == WINNOW_EVENT_TEXT && i < ev.token_ids_n; i++) {
            assert_true(a->ids_n < TOKENS);
            a->ids[a->ids_n++] = ev.token_ids[i];
        }
        if (ev.type == WINNOW_EVENT_DONE) break;
    }
    snprintf(a->text, sizeof(a->text), "%s", ev.text);
    snprintf(a->reason, sizeof(a->reason), "%s", ev.finish_reason);
}

/* A text from the middle of an answer ends it before that text; a token of it ends it before that token. */
static void stops(void **state)
{
    struct winnow_request q = about_the_picture(60);
    struct answer whole, cut;
    char stop[8] = "";
    const char *stops[] = {stop}, *at;
    size_t middle;

    (void)state;
    get(&q, &whole);
    middle = strlen(whole.text) / 2;
    assert_true(middle > 4);
    memcpy(stop, whole.text + middle, 4); /* over a border of tokens, most likely */
    at = strstr(whole.text, stop);
    q.stop = stops;
    q.stop_n = 1;
    get(&q, &cut);
    assert_string_equal(cut.reason, "stop");
    assert_int_equal(strlen(cut.text), at - whole.text);
    assert_memory_equal(cut.text, whole.text, strlen(cut.text));
    assert_true(cut.ids_n < whole.ids_n);

    q.stop_n = 0;
    q.stop_token_ids = &whole.ids[whole.ids_n / 2];
    q.stop_token_ids_n = 1;
    get(&q, &cut);
    assert_string_equal(cut.reason, "stop");
    assert_true(cut.ids_n <= whole.ids_n / 2 + 1);
    assert_int_equal(cut.ids[cut.ids_n - 1], whole.ids[whole.ids_n / 2]);
    assert_memory_equal(cut.text, whole.text, strlen(cut.text));
}

/* Of each greedy token: it is the likeliest, the others follow in order, and all are probabilities. */
static void logprobs(void **state)
{
    struct winnow_request q = about_the_picture(20);
    struct winnow_event ev;
    char joined[TEXT] = "";
    uint32_t tokens = 0;
    uint64_t job;

    (void)state;
    q.logprobs = 1;
    q.top_logprobs = 5;
    assert_int_equal(winnow_submit(conn, &q, &job), WINNOW_OK);
    for (;;) {
        next_event(&ev);
        if (ev.type == WINNOW_EVENT_DONE) break;
        for (size_t i = 0; ev.type == WINNOW_EVENT_TEXT && i < ev.token_ids_n; i++) {
            const struct winnow_logprobs *l = &ev.logprobs[i];
            double sum = 0;
            assert_int_equal(l->chosen.id, ev.token_ids[i]);
            assert_int_equal(l->top_n, 5);
            assert_int_equal(l->top[0].id, l->chosen.id);
            assert_true(l->top[0].logprob == l->chosen.logprob);
            for (size_t k = 0; k < 5; k++) {
                sum += exp((double)l->top[k].logprob);
                if (k > 0) assert_true(l->top[k].logprob <= l->top[k - 1].logprob);
                assert_non_null(l->top[k].text);
            }
            assert_true(sum > 0 && sum <= 1.00001);
            if (strcmp(l->chosen.text, "</s>") != 0)
                snprintf(joined + strlen(joined), sizeof(joined) - strlen(joined), "%s", l->chosen.text);
            tokens++;
        }
    }
    assert_int_equal(tokens, ev.usage.completion_tokens);
    assert_string_equal(joined[0] == ' ' ? joined + 1 : joined, ev.text);
}

/* Seeds of their own, as if each had been asked alone. */
static void several_answers(void **state)
{
    struct winnow_request q = about_the_picture(24);
    struct answer alone[3];
    struct winnow_event ev;
    uint64_t job;

    (void)state;
    q.temperature = 1.5f;
    for (uint64_t i = 0; i < 3; i++) {
        q.seed = 7 + i;
        get(&q, &alone[i]);
    }
    assert_string_not_equal(alone[0].text, alone[1].text);
    q.seed = 7;
    q.n = 3;
    q.quiet = 1;
    assert_int_equal(winnow_submit(conn, &q, &job), WINNOW_OK);
    for (int done = 0; done < 3;) {
        next_event(&ev);
        if (ev.type == WINNOW_EVENT_ACCEPTED) continue;
        assert_int_equal(ev.type, WINNOW_EVENT_DONE);
        assert_true(ev.choice < 3);
        assert_string_equal(ev.text, alone[ev.choice].text);
        done++;
    }
}

/* The answers of one request compute its prompt once, in whatever order their features come. */
static void answers_share_the_prompt(void **state)
{
    struct winnow_request q = about_the_picture(4);
    struct winnow_event ev;
    int shared = 0;
    uint64_t job;

    (void)state;
    q.temperature = 1;
    q.n = 3;
    q.quiet = 1;
    q.pruning_method = "uniform"; /* nobody has asked so before */
    q.pruning_keep = 201;
    assert_int_equal(winnow_submit(conn, &q, &job), WINNOW_OK);
    for (int done = 0; done < 3;) {
        next_event(&ev);
        if (ev.type == WINNOW_EVENT_ACCEPTED) continue;
        assert_int_equal(ev.type, WINNOW_EVENT_DONE);
        shared += ev.usage.cached_tokens >= 192;
        done++;
    }
    assert_int_equal(shared, 2);
}

/* More pictures than a vision worker may send before it hears of the first, and several such jobs at once. */
static void many_pictures(void **state)
{
    struct winnow_image pictures[WN_IMAGES_MAX];
    struct winnow_request q = about_the_picture(4);
    struct winnow_event ev;
    uint64_t job;

    (void)state;
    for (size_t i = 0; i < WN_IMAGES_MAX; i++) pictures[i] = picture;
    q.images = pictures;
    q.quiet = 1;
    q.pruning_method = "uniform";
    q.pruning_keep = 36;
    for (size_t i = 0; i < 6; i++) {
        q.images_n = i < 5 ? 3 + i : WN_IMAGES_MAX;
        assert_int_equal(winnow_submit(conn, &q, &job), WINNOW_OK);
    }
    for (int done = 0; done < 6;) {
        next_event(&ev);
        if (ev.type == WINNOW_EVENT_ACCEPTED) continue;
        assert_int_equal(ev.type, WINNOW_EVENT_DONE);
        assert_int_equal(ev.usage.image_tokens % 36, 0);
        done++;
    }
}

/* The error says which one. */
static void expect_error(const struct winnow_request *q, const char *text)
{
    struct winnow_event ev;
    uint64_t job;

    assert_int_equal(winnow_submit(conn, q, &job), WINNOW_OK);
    do {
        assert_int_equal(winnow_next(conn, &ev, 60000), WINNOW_OK);
    } while (ev.type < WINNOW_EVENT_DONE);
    assert_int_equal(ev.type, WINNOW_EVENT_ERROR);
    assert_string_equal(ev.text, text);
}

static void a_bad_picture(void **state)
{
    const struct winnow_image pictures[] = {picture, {"nonsense", 8}};
    struct winnow_request q = about_the_picture(4);

    (void)state;
    q.images = pictures;
    q.images_n = 2;
    expect_error(&q, "image 2: neither JPEG nor PNG nor WebP");
}

/* It would never come, and nobody would know why the answer goes on. */
static void a_stop_token_that_is_none(void **state)
{
    const uint32_t none = 4096;
    struct winnow_request q = about_the_picture(4);

    (void)state;
    q.stop_token_ids = &none;
    q.stop_token_ids_n = 1;
    expect_error(&q, "stop token 4096; the vocabulary has 1024");
}

/* What all workers say that they hold: jobs, images, pages, features, credit. */
static json_int_t held(json_t *status)
{
    static const char *const accounts[] = {"running", "waiting", "kv_pages_used", "feature_slots", "features"};
    json_int_t sum = json_integer_value(json_object_get(status, "queued")) +
                     json_integer_value(json_object_get(status, "running"));
    json_t *w;
    size_t i;

    json_array_foreach(json_object_get(status, "workers"), i, w)
    {
        for (size_t k = 0; k < sizeof(accounts) / sizeof(accounts[0]); k++) {
            assert_true(json_is_integer(json_object_get(w, accounts[k])));
            sum += json_integer_value(json_object_get(w, accounts[k]));
        }
    }
    return sum;
}

/* Waits until every account is zero. Workers say how theirs stand twice a second. */
static void expect_idle(int ms)
{
    const int64_t deadline_us = wn_deadline_in_us((int64_t)ms * 1000);
    char *text = NULL;
    json_int_t left;

    do {
        json_t *status;
        free(text);
        usleep(100000);
        assert_non_null(text = winnow_status_json(conn, 5000));
        assert_non_null(status = json_loads(text, 0, NULL));
        left = held(status);
        json_decref(status);
    } while (left && !wn_deadline_passed(deadline_us));
    if (left) fail_msg("it still holds something: %s", text);
    free(text);
}

/* Ended wherever it is: before it is accepted, accepted, at the first token, later. Then nothing of it is left. */
static void cancels(void **state)
{
    struct winnow_request q = about_the_picture(400);
    struct winnow_event ev;
    uint64_t job;

    (void)state;
    q.temperature = 1; /* goes on for long */
    for (int point = 0; point < 4; point++) {
        int texts = 0;
        assert_int_equal(winnow_submit(conn, &q, &job), WINNOW_OK);
        if (point == 0) assert_int_equal(winnow_cancel(conn, job), WINNOW_OK);
        do {
            assert_int_equal(winnow_next(conn, &ev, 60000), WINNOW_OK);
            texts += ev.type == WINNOW_EVENT_TEXT;
            if ((point == 1 && ev.type == WINNOW_EVENT_ACCEPTED) ||
                (ev.type == WINNOW_EVENT_TEXT && texts == (point == 2 ? 1 : point == 3 ? 5 : 0)))
                assert_int_equal(winnow_cancel(conn, job), WINNOW_OK);
        } while (ev.type != WINNOW_EVENT_DONE && ev.type != WINNOW_EVENT_ERROR);
        assert_int_equal(ev.type, WINNOW_EVENT_DONE);
        expect_idle(20000);
    }
}

/* Pictures that are new, given up at any moment: also while they are decoded, encoded, sent, or wait for each other. */
static void cancels_on_the_way(void **state)
{
    struct winnow_image pictures[WAYS][2];
    struct winnow_request q = about_the_picture(8);
    struct winnow_event ev;
    uint64_t job;

    (void)state;
    q.images_n = 2;
    for (int i = 0; i < WAYS; i++) {
        for (int k = 0; k < 2; k++) {
            char path[64];
            snprintf(path, sizeof(path), "tests/eval/images/%03d.jpg", 2 * i + k);
            pictures[i][k].data = read_file(path, &pictures[i][k].bytes);
        }
        q.images = pictures[i];
        assert_int_equal(winnow_submit(conn, &q, &job), WINNOW_OK);
        usleep((useconds_t)(10000 * i));
        assert_int_equal(winnow_cancel(conn, job), WINNOW_OK);
        do {
            next_event(&ev);
        } while (ev.type != WINNOW_EVENT_DONE);
    }
    expect_idle(4000); /* a beat or two, and what was being encoded for nobody */
    for (int i = 0; i < WAYS; i++)
        for (int k = 0; k < 2; k++) free((void *)(uintptr_t)pictures[i][k].data);
}

static void deadline(void **state)
{
    struct winnow_request q = about_the_picture(400);
    struct winnow_event ev;
    uint64_t job;

    (void)state;
    q.deadline_ms = 1; /* long before its end, wherever that finds it */
    q.temperature = 3;
    q.ignore_eos = 1;
    assert_int_equal(winnow_submit(conn, &q, &job), WINNOW_OK);
    do {
        assert_int_equal(winnow_next(conn, &ev, 60000), WINNOW_OK);
    } while (ev.type != WINNOW_EVENT_DONE && ev.type != WINNOW_EVENT_ERROR);
    if (ev.type == WINNOW_EVENT_ERROR && !strstr(ev.text, "deadline of 1 ms has passed while")) fail_msg("%s", ev.text);
    assert_int_equal(ev.type, WINNOW_EVENT_ERROR);
    expect_idle(20000);
}

/* Processor time that a process has used, in seconds; 0: it is gone. */
static double used_s(pid_t pid)
{
    char path[64], line[1024] = "", *at;
    unsigned long user = 0, system = 0;
    FILE *f;

    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    if (!(f = fopen(path, "r"))) return 0;
    if (fgets(line, sizeof(line), f) && (at = strrchr(line, ')')) != NULL)
        sscanf(at + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system);
    fclose(f);
    return (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
}

/* Nobody asks: no role waits with the processor, the ranks of MPI neither. */
static void idle_costs_nothing(void **state)
{
    static const char *const roles[] = {"supervisor", "scheduler", "vision-0", "replica-0"};
    double before[ROLES][4];
    pid_t pids[ROLES][4] = {{service.pid}};
    int n[ROLES] = {1};

    (void)state;
    expect_idle(20000);
    for (int r = 1; r < ROLES; r++) n[r] = service_pids(&service, roles[r], pids[r], 4);
    assert_true(n[1] == 1 && n[2] == 1 && n[3] == 2); /* two ranks */
    for (int r = 0; r < ROLES; r++)
        for (int i = 0; i < n[r]; i++) before[r][i] = used_s(pids[r][i]);
    usleep(2000000);
    for (int r = 0; r < ROLES; r++) {
        for (int i = 0; i < n[r]; i++) {
            const double used = used_s(pids[r][i]) - before[r][i];
            print_message("idle: %s %d: %.1f %% of a core\n", roles[r], i, used / 2 * 100);
            assert_true(used < 0.5); /* one that polls would use 2 s; what beats cost depends on the machine */
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stops),
        cmocka_unit_test(logprobs),
        cmocka_unit_test(several_answers),
        cmocka_unit_test(answers_share_the_prompt),
        cmocka_unit_test(many_pictures),
        cmocka_unit_test(a_bad_picture),
        cmocka_unit_test(a_stop_token_that_is_none),
        cmocka_unit_test(cancels),
        cmocka_unit_test(cancels_on_the_way),
        cmocka_unit_test(deadline),
        cmocka_unit_test(idle_costs_nothing),
    };

    return cmocka_run_group_tests(tests, start_service, stop_service);
}
