/* tests/integration/test_batch_answers.c - `winnow run-batch` with several answers to a request, when one of them
 * fails: for good, or so that another try may help. The command and the scheduler are real, the leader is scripted:
 * what fails is not up to chance.
 *
 *   test_batch_answers PATH-OF-WINNOW */
#include "sched_bed.h"

#include <jansson.h>
#include <signal.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "base/log.h"
#include "tests/child.h"
#include "tests/scratch.h"

#define SEED 40 /* answer i is drawn from seed SEED + i: so the leader knows which one it has */

static const char *winnow;

struct fixture {
    struct bed b;
    struct end *leader;
    char folder[64], in[96], out[96], said[96];
};

static int start(void **state)
{
    static struct fixture f;

    if (!scratch_make(f.folder, sizeof(f.folder), "batch-answers")) return -1;
    snprintf(f.in, sizeof(f.in), "%s/in", f.folder);
    snprintf(f.out, sizeof(f.out), "%s/out", f.folder);
    snprintf(f.said, sizeof(f.said), "%s/said", f.folder);
    bed_init(&f.b);
    f.b.cfg.max_attempts = 1;
    bed_start(&f.b);
    f.leader = worker_open(&f.b, WN__ROLE__ROLE_LEADER, "replica-0", 8);
    *state = &f;
    return 0;
}

static int stop(void **state)
{
    struct fixture *f = *state;

    bed_stop(&f->b);
    return scratch_remove(f->folder) ? 0 : -1;
}

/* A request; its custom_id is its question. */
static void add_request(const struct fixture *f, const char *question, int answers)
{
    FILE *in = fopen(f->in, "a");

    assert_non_null(in);
    fprintf(in, "{\"custom_id\":\"%s\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\"body\":{\"n\":%d,"
                "\"seed\":%d,\"messages\":[{\"role\":\"user\",\"content\":\"%s\"}]}}\n", question, answers, SEED,
            question);
    assert_int_equal(fclose(in), 0);
}

/* One request at a time. */
static pid_t start_batch_with(const struct fixture *f, const char *options)
{
    char command[1024];
    const char *const argv[] = {"/bin/sh", "-c", command, NULL};

    snprintf(command, sizeof(command), "exec %s run-batch -i %s -o %s --concurrency 1 --endpoint %s %s 2> %s", winnow,
             f->in, f->out, f->b.clients, options, f->said);
    return child_start(argv);
}

static pid_t start_batch(const struct fixture *f)
{
    return start_batch_with(f, "");
}

/* Waits for its end, with this code and these words (the last may be NULL). */
static void expect_end(const struct fixture *f, pid_t batch, int code, const char *sum, const char *words)
{
    const int status = child_end(batch, 0);
    FILE *said = fopen(f->said, "r");
    char text[4096];

    assert_non_null(said);
    text[fread(text, 1, sizeof(text) - 1, said)] = '\0';
    fclose(said);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != code || !strstr(text, sum) || (words && !strstr(text, words)))
        fail_msg("status %d, said '%s'", status, text);
}

/* The orders of a question, in the order of their answers. */
static void take_answers(struct fixture *f, const char *question, struct order *orders, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        const struct order o = take_order(f->leader, WN__ENVELOPE__BODY_GENERATE);
        assert_string_equal(o.text, question);
        assert_true(o.seed >= SEED && o.seed < SEED + n);
        orders[o.seed - SEED] = o;
    }
}

static void answer(struct fixture *f, const struct order *o)
{
    char text[16];

    snprintf(text, sizeof(text), "answer %d", (int)(o->seed - SEED));
    give_tokens(f->leader, o, 0, 7, text);
    give_done(f->leader, o, 10);
}

/* Line `which` of the output, parsed; NULL: it is not there. */
static json_t *line_of(const struct fixture *f, int which)
{
    static char text[8192];
    FILE *out = fopen(f->out, "r");
    char *line = NULL;

    for (int i = 0; out && i <= which; i++) line = fgets(text, sizeof(text), out);
    if (out) fclose(out);
    return line ? json_loads(line, 0, NULL) : NULL;
}

static const char *text_at(const json_t *o, const char *a, const char *b, const char *c)
{
    o = json_object_get(o, a);
    if (b) o = json_object_get(o, b);
    if (c) o = json_object_get(o, c);
    return json_string_value(o);
}

static void expect_answers(const struct fixture *f, int which, const char *question, size_t n)
{
    json_t *line = line_of(f, which), *response = json_object_get(line, "response"), *choice;
    const json_t *body = json_object_get(response, "body");
    char want[16];
    size_t i;

    assert_non_null(line);
    assert_string_equal(text_at(line, "custom_id", NULL, NULL), question);
    assert_true(json_is_null(json_object_get(line, "error")));
    assert_int_equal(json_integer_value(json_object_get(response, "status_code")), 200);
    assert_int_equal(json_array_size(json_object_get(body, "choices")), n);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(body, "usage"), "completion_tokens")), n);
    json_array_foreach(json_object_get(body, "choices"), i, choice)
    {
        snprintf(want, sizeof(want), "answer %d", (int)i);
        assert_int_equal(json_integer_value(json_object_get(choice, "index")), i);
        assert_string_equal(text_at(choice, "message", "content", NULL), want);
    }
    json_decref(line);
}

static void expect_failure(const struct fixture *f, int which, const char *question, const char *words)
{
    json_t *line = line_of(f, which), *response = json_object_get(line, "response");

    assert_non_null(line);
    assert_string_equal(text_at(line, "custom_id", NULL, NULL), question);
    assert_string_equal(text_at(line, "error", "message", NULL), words);
    assert_string_equal(text_at(response, "body", "error", "message"), words);
    assert_int_equal(json_integer_value(json_object_get(response, "status_code")), 400);
    assert_null(json_object_get(json_object_get(response, "body"), "choices"));
    json_decref(line);
}

/* One answer is there, one fails for good; whoever still runs is cancelled, and nobody else. */
static void fail_one(struct fixture *f, const struct order *orders, uint32_t n)
{
    bool told[3] = {false};

    answer(f, &orders[0]);
    give_error(f->leader, &orders[1], WN_ELIMIT, false, "the prompt is too long");
    for (uint32_t i = 1; i < n; i++) { /* the one that failed, too, as ever */
        const struct order o = take_order(f->leader, WN__ENVELOPE__BODY_CANCEL);
        for (uint32_t k = 0; k < n; k++) told[k] = told[k] || strcmp(o.id, orders[k].id) == 0;
    }
    assert_false(told[0]);
    for (uint32_t k = 1; k < n; k++) assert_true(told[k]);
}

/* The request has its line, which names what failed. A run that is killed among the answers of the next request is
 * finished by another: it asks for nothing again. */
static void one_fails(void **state)
{
    static const char why[] = "the prompt is too long";
    struct fixture *f = *state;
    struct order first[3], second[2], third[2];
    pid_t batch;

    add_request(f, "first", 3);
    add_request(f, "second", 2);
    add_request(f, "third", 2);
    batch = start_batch(f);
    take_answers(f, "first", first, 3);
    fail_one(f, first, 3);
    take_answers(f, "second", second, 2);
    expect_failure(f, 0, "first", why);
    assert_null(line_of(f, 1));
    answer(f, &second[1]);
    assert_int_equal(WTERMSIG(child_end(batch, SIGKILL)), SIGKILL);
    answer(f, &second[0]);

    batch = start_batch(f);
    take_answers(f, "third", third, 2);
    fail_one(f, third, 2);
    expect_end(f, batch, 1, "3 of 3 done, 2 failed; 2 in this run", "line 3: the prompt is too long");
    expect_failure(f, 0, "first", why);
    expect_answers(f, 1, "second", 2);
    expect_failure(f, 2, "third", why);
    expect_end(f, start_batch(f), 1, "3 of 3 done, 2 failed; 0 in this run", NULL);
    assert_null(end_recv(f->leader, 50)); /* no order, and nothing is cancelled */
    assert_null(line_of(f, 3));
}

/* The server gave one up, and says that it is no fault of the request: that one is asked for again, the others not. */
static void one_is_tried_again(void **state)
{
    struct fixture *f = *state;
    struct order first[3], again;
    pid_t batch;

    add_request(f, "first", 3);
    batch = start_batch(f);
    take_answers(f, "first", first, 3);
    answer(f, &first[0]);
    give_error(f->leader, &first[1], WN_EDEVICE, true, "a rank was lost");
    assert_string_equal(take_order(f->leader, WN__ENVELOPE__BODY_CANCEL).id, first[1].id);
    answer(f, &first[2]);
    again = take_order(f->leader, WN__ENVELOPE__BODY_GENERATE); /* 2 s later */
    assert_string_not_equal(again.id, first[1].id);
    assert_int_equal(again.seed, first[1].seed);
    answer(f, &again);
    expect_end(f, batch, 0, "1 of 1 done, 0 failed; 1 in this run", NULL);
    assert_null(end_recv(f->leader, 50));
    expect_answers(f, 0, "first", 3);
    assert_null(line_of(f, 1));
}

/* A method that nobody knows, on the command line: no line is spoilt. In a line: that one is, at once, for another try
 * would not help. */
static void unknown_pruning(void **state)
{
    static const char words[] = "pruning method 'sharpen' is not known";
    struct fixture *f = *state;
    const int64_t began_us = wn_now_us();
    FILE *in;

    add_request(f, "first", 1);
    expect_end(f, start_batch_with(f, "--pruning sharpen"), 1, words, NULL);
    assert_null(line_of(f, 0));
    assert_non_null(in = fopen(f->in, "w"));
    fputs("{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\"body\":{\"messages\":"
          "[{\"role\":\"user\",\"content\":\"a\"}],\"image_pruning\":{\"method\":\"sharpen\"}}}\n", in);
    assert_int_equal(fclose(in), 0);
    expect_end(f, start_batch(f), 1, "1 of 1 done, 1 failed", words);
    assert_true(wn_now_us() - began_us < 10000000); /* another try comes after 2 s, the last after 14 */
    assert_non_null(in = fopen(f->in, "w"));
    assert_int_equal(fclose(in), 0);
    expect_end(f, start_batch(f), 0, "has no requests", NULL);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(one_fails, start, stop),
        cmocka_unit_test_setup_teardown(one_is_tried_again, start, stop),
        cmocka_unit_test_setup_teardown(unknown_pruning, start, stop),
    };

    if (argc < 2) return 2;
    winnow = argv[1];
    if (argc > 2) cmocka_set_test_filter(argv[2]);
    wn_log_max = WN_LOG_ERROR;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
