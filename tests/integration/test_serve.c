/* tests/integration/test_serve.c - the whole service as a user sees it: right answers from every plan, clear errors for
 * bad requests, and a service that goes on when one of its processes dies.
 *
 *   test_serve answers TP PP N    the first N evaluation questions, against Transformers' bfloat16 answers
 *   test_serve answers TP PP N int8   the same with int8 weights: as many are right, to a point or two
 *   test_serve requests           bad requests, streaming, cancel, text only
 *   test_serve deaths             a worker, a rank and the scheduler are killed */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "shard/detok.h"
#include "shard/tokenizer.h"
#include "tests/integration/service.h"

#define MODEL     "models/tiny-llava"
#define QUESTIONS "tests/eval/questions.jsonl"
#define ANSWERS                                                                                    \
    "tests/golden/tiny-llava/answers.txt" /* one line a question: what Transformers answers */
#define IN_FLIGHT 8
/* bfloat16 rounds at other places in other programs: an answer between two that the checkpoint finds equally likely
 * may flip. */
#define AGREE      0.99
#define AGREE_INT8 0.97 /* of the weights' own rounding there are a few more */

struct question {
    char *image, *text, *expected, *golden, *got;
};

static struct question *questions;
static int questions_n;

static char *take_line(char **at)
{
    char *line = *at, *end = strchr(line, '\n');
    if (!*line) return NULL;
    if (end) *end = '\0';
    *at = end ? end + 1 : line + strlen(line);
    return line;
}

/* The right answer of the question called id. */
static char *expected_answer(json_t *all, const char *id)
{
    size_t i;
    json_t *o;
    json_array_foreach(all, i, o)
    {
        if (strcmp(json_string_value(json_object_get(o, "id")), id) == 0)
            return strdup(json_string_value(json_object_get(o, "answer")));
    }
    fail_msg("%s has no question %s", QUESTIONS, id);
    return NULL;
}

static json_t *load_eval_set(void)
{
    size_t n;
    char *text = read_file(QUESTIONS, &n), *at = text, *line;
    json_t *all = json_array();

    while ((line = take_line(&at)) != NULL) {
        json_error_t e;
        json_t *o = json_loads(line, 0, &e);
        if (!o) fail_msg("%s: %s", QUESTIONS, e.text);
        json_array_append_new(all, o);
    }
    free(text);
    return all;
}

/* "12 7 2" -> text, without special tokens. */
static char *decode_ids(const struct wn_tokenizer *tok, char *line)
{
    uint32_t ids[1024];
    size_t n = 0, bytes;
    char *end, *text = NULL;

    for (char *at = line; n < 1024 && *at; at = end) {
        ids[n] = (uint32_t)strtoul(at, &end, 10);
        if (end == at) break;
        n++;
    }
    assert_int_equal(wn_tokenizer_decode(tok, ids, n, false, &text, &bytes, NULL), WN_OK);
    return text;
}

/* The golden file: a line about the checkpoint, then five lines a question. */
static void load_questions(int max)
{
    size_t n;
    char *answers = read_file(ANSWERS, &n), *at = answers, *line;
    json_t *all = load_eval_set();
    struct wn_tokenizer *tok = NULL;

    assert_int_equal(wn_tokenizer_open(&tok, MODEL "/tokenizer.json", NULL), WN_OK);
    questions = calloc((size_t)max, sizeof(*questions));
    take_line(&at);
    while (questions_n < max && (line = take_line(&at)) != NULL) {
        struct question *q = &questions[questions_n];
        char *part[4];
        if (strncmp(line, "question ", 9) != 0) continue;
        for (int i = 0; i < 4; i++)
            if (!(part[i] = take_line(&at))) fail_msg("%s ends inside %s", ANSWERS, line);
        q->expected = expected_answer(all, line + 9);
        q->image = strdup(part[0]);
        q->text = strdup(part[1]);
        q->golden = decode_ids(tok, part[3]);
        questions_n++;
    }
    if (questions_n == 0) fail_msg("%s has no questions", ANSWERS);
    wn_tokenizer_close(tok);
    json_decref(all);
    free(answers);
}

static void free_questions(void)
{
    for (int i = 0; i < questions_n; i++) {
        free(questions[i].image);
        free(questions[i].text);
        free(questions[i].expected);
        free(questions[i].golden);
        free(questions[i].got);
    }
    free(questions);
    questions = NULL;
    questions_n = 0;
}

static uint64_t submit(struct winnow *w, const struct question *q)
{
    char path[512];
    size_t n;
    struct winnow_image im;
    struct winnow_request r = {.prompt = q->text, .images = &im, .images_n = 1, .max_tokens = 256};
    uint64_t job;
    void *data;

    snprintf(path, sizeof(path), "tests/eval/%s", q->image);
    data = read_file(path, &n);
    im = (struct winnow_image){.data = data, .bytes = n};
    if (winnow_submit(w, &r, &job) != WINNOW_OK) fail_msg("submit: %s", winnow_error(w));
    free(data);
    return job;
}

/* All questions, IN_FLIGHT at a time. */
static void ask_all(struct winnow *w)
{
    uint64_t *jobs = calloc((size_t)questions_n, sizeof(*jobs));
    int sent = 0, done = 0;

    while (done < questions_n) {
        struct winnow_event ev;
        while (sent < questions_n && sent - done < IN_FLIGHT) {
            jobs[sent] = submit(w, &questions[sent]);
            sent++;
        }
        if (winnow_next(w, &ev, 60000) != WINNOW_OK)
            fail_msg("after %d answers: %s", done, winnow_error(w));
        if (ev.type == WINNOW_EVENT_ERROR || ev.type == WINNOW_EVENT_BUSY)
            fail_msg("job failed: %s", ev.text);
        if (ev.type != WINNOW_EVENT_DONE) continue;
        for (int i = 0; i < sent; i++)
            if (jobs[i] == ev.job) questions[i].got = strdup(ev.text);
        done++;
    }
    free(jobs);
}

static int tp = 1, pp = 1, count = 40;
static bool int8;

/* Every stage says how long it was at work and how long it waited for work: it has done some, and none never waits.
 * What heartbeats have said so far may be from the middle of the work. */
static void check_stages(struct winnow *w)
{
    struct stage_time t[8] = {{0}};
    const char *backend = getenv("WINNOW_BACKEND");
    const bool gpus = backend && strncmp(backend, "cuda", 4) == 0;
    int n = 0;

    for (int i = 0, known = 0; i < 50 && known < pp; i++) {
        usleep(200000);
        n = service_stages(w, t, 8);
        for (known = 0; known < n && t[known].busy_us > 0 && t[known].wait_us > 0;) known++;
    }
    assert_int_equal(n, pp);
    for (int i = 0; i < n; i++) {
        printf("stage %d: at work %.0f ms, waited %.0f ms, for bytes %.0f ms\n", i, t[i].busy_us / 1e3,
               t[i].wait_us / 1e3, t[i].link_us / 1e3);
        assert_true(t[i].busy_us > 0 && t[i].wait_us > 0);
        /* nobody sends bytes to himself; what GPUs say to each other their queues wait for, unmeasured */
        if (!gpus) assert_true((t[i].link_us > 0) == (tp * pp > 1));
        assert_true(t[i].busy_us + t[i].wait_us + t[i].link_us < 600e6 * tp);
    }
}

static void test_answers(void **state)
{
    char tp_flag[16], pp_flag[16];
    const char *flags[] = {tp_flag, pp_flag, "--dtype=bfloat16", int8 ? "--quantization=int8" : NULL, NULL};
    struct service s;
    struct winnow *w = NULL;
    int agree = 0, right = 0, golden = 0;
    (void)state;

    snprintf(tp_flag, sizeof(tp_flag), "-tp=%d", tp);
    snprintf(pp_flag, sizeof(pp_flag), "-pp=%d", pp);
    load_questions(count);
    service_start(&s, MODEL, flags);
    assert_int_equal(winnow_connect(&w, s.endpoint, NULL), WINNOW_OK);
    ask_all(w);
    check_stages(w);
    service_says(w, int8 ? "\"quantization\": \"int8\"" : "\"quantization\": \"\"");
    winnow_close(w);
    assert_int_equal(service_stop(&s), 0);
    for (int i = 0; i < questions_n; i++) {
        const struct question *q = &questions[i];
        agree += strcmp(q->got, q->golden) == 0;
        right += strcmp(q->got, q->expected) == 0;
        golden += strcmp(q->golden, q->expected) == 0;
        if (strcmp(q->got, q->golden) != 0)
            printf("differs: %s | %s | '%s', Transformers '%s'\n", q->image, q->text, q->got,
                   q->golden);
    }
    printf("%d stages x %d tensor ranks: %d questions, %d as Transformers answers, %d right (it %d); ready "
           "in %.2f s\n",
           pp, tp, questions_n, agree, right, golden, s.ready_s);
    if (int8) assert_true(agree >= AGREE_INT8 * questions_n && right >= golden - 0.02 * questions_n);
    else assert_true(agree >= AGREE * questions_n);
    free_questions();
}

/* ---- requests ---- */

static struct service service;
static struct winnow *conn;
static void *picture;
static size_t picture_bytes;
static char *question, *good_answer;

static int start_service(void **state)
{
    const char *flags[] = {"-tp=2", "-pp=2", "--image-pixels-max=4000000", NULL};
    char path[512];
    (void)state;
    load_questions(1);
    snprintf(path, sizeof(path), "tests/eval/%s", questions[0].image);
    picture = read_file(path, &picture_bytes);
    question = strdup(questions[0].text);
    service_start(&service, MODEL, flags);
    assert_int_equal(winnow_connect(&conn, service.endpoint, NULL), WINNOW_OK);
    assert_int_equal(ask(conn, picture, picture_bytes, question, &good_answer, NULL),
                     WINNOW_EVENT_DONE);
    return 0;
}

static int stop_service(void **state)
{
    (void)state;
    winnow_close(conn);
    conn = NULL;
    assert_int_equal(service_stop(&service), 0);
    free(picture);
    free(question);
    free(good_answer);
    free_questions();
    return 0;
}

/* The service still gives the answer that it gave at the start. */
static void still_right(void)
{
    char *answer;
    assert_int_equal(ask(conn, picture, picture_bytes, question, &answer, NULL), WINNOW_EVENT_DONE);
    assert_string_equal(answer, good_answer);
    free(answer);
}

static void refused(const void *image, size_t bytes, const char *text, const char *word)
{
    char *answer;
    const enum winnow_event_type type = ask(conn, image, bytes, text, &answer, NULL);
    if (type != WINNOW_EVENT_ERROR)
        fail_msg("expected an error with '%s', got %d: %s", word, (int)type, answer);
    if (!answer || !strstr(answer, word)) fail_msg("'%s' is not in the error: %s", word, answer);
    free(answer);
    still_right();
}

static void test_truncated_image(void **state)
{
    (void)state;
    refused(picture, picture_bytes / 2, question, "JPEG");
}

static void test_not_an_image(void **state)
{
    (void)state;
    refused("hello, I am text", 16, question, "image");
}

static void test_decompression_bomb(void **state)
{
    /* a PNG header that claims 60000 x 60000 pixels */
    static const unsigned char bomb[] = {
        0x89, 'P',  'N',  'G', '\r', '\n', 0x1a, '\n', 0, 0, 0, 13, 'I',  'H',  'D',  'R', 0,
        0,    0xea, 0x60, 0,   0,    0xea, 0x60, 8,    2, 0, 0, 0,  0x5d, 0x5e, 0x3a, 0x0e};
    (void)state;
    refused(bomb, sizeof(bomb), question, "pixels");
}

static void test_oversized_image(void **state)
{
    const size_t n = (size_t)40 << 20;
    char *big = calloc(1, n);
    (void)state;
    memcpy(big, picture, picture_bytes);
    refused(big, n, question, "bytes");
    free(big);
}

static void test_prompt_too_long(void **state)
{
    char *text = malloc(60001);
    (void)state;
    for (int i = 0; i < 60000; i += 6) memcpy(text + i, "circle", 6);
    for (int i = 6; i < 60000; i += 7) text[i] = ' ';
    text[60000] = '\0';
    refused(picture, picture_bytes, text, "tokens");
    free(text);
}

/* Asks and waits for the end, an answer or an error. */
static struct winnow_event end_of(const struct winnow_request *q)
{
    struct winnow_event ev;
    uint64_t job;

    if (winnow_submit(conn, q, &job) != WINNOW_OK) fail_msg("submit: %s", winnow_error(conn));
    do {
        assert_int_equal(winnow_next(conn, &ev, 60000), WINNOW_OK);
    } while (ev.job != job || (ev.type != WINNOW_EVENT_DONE && ev.type != WINNOW_EVENT_ERROR));
    return ev;
}

/* One short job with this pruning; fails the test unless it is answered. */
static struct winnow_usage usage_of(struct winnow_request q, char **answer)
{
    const struct winnow_image im = {.data = picture, .bytes = picture_bytes};
    struct winnow_event ev;

    q.prompt = question;
    q.images = &im;
    q.images_n = 1;
    ev = end_of(&q);
    if (ev.type == WINNOW_EVENT_ERROR) fail_msg("%s: %s", q.pruning_method, ev.text);
    if (answer) *answer = strdup(ev.text);
    return ev.usage;
}

static void test_unknown_pruning_method(void **state)
{
    const struct winnow_image im = {.data = picture, .bytes = picture_bytes};
    const struct winnow_request q = {
        .prompt = question, .images = &im, .images_n = 1, .pruning_method = "sharpen"};
    struct winnow_event ev;
    (void)state;
    ev = end_of(&q);
    assert_int_equal(ev.type, WINNOW_EVENT_ERROR);
    assert_non_null(strstr(ev.text, "sharpen"));
    still_right();
}

/* Every method at a budget: the answer comes, and usage says what was kept. Matryoshka works on projected rows. */
static void test_pruning_methods(void **state)
{
    static const char *const methods[] = {"none",      "random",    "uniform",   "cls-topk", "prumerge",  "prumerge+",
                                          "visionzip", "vispruner", "divprune",  "hiprune",  "matryoshka"};
    (void)state;
    for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++) {
        const struct winnow_usage u = usage_of(
            (struct winnow_request){.max_tokens = 4, .pruning_method = methods[i], .pruning_keep = 64}, NULL);
        if (u.image_tokens != (strcmp(methods[i], "none") == 0 ? 576 : 64))
            fail_msg("%s keeps %u", methods[i], u.image_tokens);
        assert_int_equal(u.image_tokens_before_pruning, 576);
    }
    still_right();
}

/* What was asked, what was kept, and what usage says was in force. */
static void test_budgets(void **state)
{
    static const struct {
        const char *method;
        uint32_t keep;
        float rate;
        uint32_t kept, in_force;
    } cases[] = {
        {"cls-topk", 1, 0, 1, 1},       {"cls-topk", 575, 0, 575, 575}, {"cls-topk", 576, 0, 576, 576},
        {"cls-topk", 577, 0, 576, 576}, {"uniform", 0, 0.99f, 6, 6},    {"uniform", 0, 1, 1, 1},
        {"random", 0, 0, 64, 64},       {"prumerge", 0, 1, 1, 1},       {"none", 9, 0, 576, 0},
        {"none", 0, 1, 576, 0},         {"prumerge+", 1, 0, 1, 1},      {"visionzip", 577, 0, 576, 576},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct winnow_usage u = usage_of((struct winnow_request){.max_tokens = 1,
                                                                       .pruning_method = cases[i].method,
                                                                       .pruning_keep = cases[i].keep,
                                                                       .pruning_rate = cases[i].rate},
                                               NULL);
        if (u.image_tokens != cases[i].kept || u.pruning_keep != cases[i].in_force)
            fail_msg("%s %u %g: %u kept, %u in force", cases[i].method, cases[i].keep, (double)cases[i].rate,
                     u.image_tokens, u.pruning_keep);
    }
}

/* Everything that a request can say comes back. */
static void test_pruning_in_force(void **state)
{
    struct winnow_request q = {.max_tokens = 1, .pruning_method = "prumerge", .pruning_keep = 50, .pruning_seed = 7,
                               .pruning_setting = "paper", .pruning_options = "neighbours=8", .pruning_cap = 60,
                               .pruning_position = WINNOW_POSITION_ORIGINAL};
    const struct winnow_usage plain = usage_of(q, NULL);
    struct winnow_usage u;
    (void)state;
    q.pruning_projected = 1;
    u = usage_of(q, NULL);
    assert_string_equal(u.pruning_method, "prumerge");
    assert_string_equal(u.pruning_setting, "paper");
    assert_string_equal(u.pruning_options, "neighbours=8");
    assert_int_equal(u.pruning_keep, 50);
    assert_int_equal(u.pruning_cap, 60);
    assert_int_equal(u.pruning_seed, 7);
    assert_int_equal(u.pruning_position, WINNOW_POSITION_ORIGINAL);
    assert_true(u.pruning_projected && !plain.pruning_projected);
    q = (struct winnow_request){.max_tokens = 1, .pruning_method = "matryoshka"}; /* knows projected rows only */
    assert_true(usage_of(q, NULL).pruning_projected);
    q.pruning_method = "none";
    assert_int_equal(usage_of(q, NULL).pruning_position, WINNOW_POSITION_COMPACT);
}

/* With nothing pruned the policies are one, down to the pages in the cache; else the same rows are turned otherwise. */
static void test_positions(void **state)
{
    struct winnow_request q = {.max_tokens = 24, .pruning_method = "none", .pruning_position = WINNOW_POSITION_COMPACT};
    struct winnow_usage first, again;
    char *compact, *original;
    (void)state;
    first = usage_of(q, &compact);
    q.pruning_position = WINNOW_POSITION_ORIGINAL;
    again = usage_of(q, &original);
    assert_string_equal(compact, original);
    assert_int_equal(again.prompt_tokens, first.prompt_tokens);
    assert_true(again.cached_tokens + 32 > again.prompt_tokens);
    free(compact);
    free(original);
    q.pruning_method = "uniform"; /* patch 0 and then every ninth or so: positions differ from the second row on */
    q.pruning_keep = 63;
    first = usage_of(q, &original);
    assert_true(first.cached_tokens < 32);
    again = usage_of(q, &compact);
    assert_string_equal(compact, original);
    assert_true(again.cached_tokens + 32 > again.prompt_tokens);
    free(compact);
    free(original);
    q.pruning_position = WINNOW_POSITION_COMPACT;
    assert_true(usage_of(q, NULL).cached_tokens < 32);
}

/* Rows of the prompt that came from the prefix cache. */
static uint32_t cached_tokens(const char *method, uint32_t keep, uint64_t seed)
{
    return usage_of((struct winnow_request){.max_tokens = 2, .pruning_method = method, .pruning_keep = keep,
                                            .pruning_seed = seed},
                    NULL)
        .cached_tokens;
}

/* The same picture with the same pruning is found; with another method, budget or draw its text alone is. */
static void test_prefix_hits_need_the_same_pruning(void **state)
{
    static const struct {
        const char *method;
        uint32_t keep;
        uint64_t seed;
    } asks[] = {{"cls-topk", 80, 0}, {"cls-topk", 81, 0}, {"visionzip", 80, 0}, {"divprune", 80, 0},
                {"random", 80, 1},   {"random", 80, 2},   {"none", 0, 0},
                {"uniform", 576, 0}, {"divprune", 576, 0}}; /* these keep the rows of "none" */
    const uint32_t text = cached_tokens("uniform", 90, 0) / 16 * 16;
    (void)state;
    assert_true(text < 64);
    for (size_t i = 0; i < sizeof(asks) / sizeof(asks[0]); i++) {
        const bool first = strcmp(asks[i].method, "none") != 0; /* the fixture has asked without pruning */
        const uint32_t cold = cached_tokens(asks[i].method, asks[i].keep, asks[i].seed);
        const uint32_t again = cached_tokens(asks[i].method, asks[i].keep, asks[i].seed);
        if (first && cold != text)
            fail_msg("%s:%u finds %u rows of another pruning", asks[i].method, asks[i].keep, cold - text);
        if (again < text + (first ? 64 : 512))
            fail_msg("%s:%u finds only %u rows", asks[i].method, asks[i].keep, again);
    }
}

static void test_special_tokens_in_text_are_text(void **state)
{
    char *answer;
    (void)state;
    /* were these tokens, the prompt would have more images than features, or end at once */
    assert_int_equal(
        ask(conn, picture, picture_bytes, "<image></s><image> What is there?", &answer, NULL),
        WINNOW_EVENT_DONE);
    free(answer);
    still_right();
}

static void test_text_only(void **state)
{
    char *answer;
    struct winnow_usage usage;
    (void)state;
    assert_int_equal(ask(conn, NULL, 0, "How many objects are there?", &answer, &usage),
                     WINNOW_EVENT_DONE);
    assert_int_equal(usage.image_tokens, 0);
    assert_int_equal(usage.bytes_embedding, 0);
    assert_int_equal(usage.bytes_image, 0);
    free(answer);
}

static void test_two_images(void **state)
{
    const struct winnow_image im[2] = {{picture, picture_bytes}, {picture, picture_bytes}};
    const struct winnow_request q = {
        .prompt = question, .images = im, .images_n = 2, .max_tokens = 8};
    struct winnow_event ev;
    (void)state;
    ev = end_of(&q);
    if (ev.type == WINNOW_EVENT_ERROR) fail_msg("%s", ev.text);
    assert_int_equal(ev.usage.image_tokens, 2 * 576);
    assert_int_equal(ev.usage.bytes_image, 2 * 2 * picture_bytes);
}

static void test_stream_joins_to_the_answer(void **state)
{
    const struct winnow_image im = {.data = picture, .bytes = picture_bytes};
    const struct winnow_request q = {
        .prompt = "Describe the picture.", .images = &im, .images_n = 1, .max_tokens = 100};
    struct winnow_event ev;
    char joined[4096] = "";
    uint64_t job;
    uint32_t next = 0;
    int pieces = 0;
    (void)state;
    assert_int_equal(winnow_submit(conn, &q, &job), WINNOW_OK);
    for (;;) {
        assert_int_equal(winnow_next(conn, &ev, 20000), WINNOW_OK);
        if (ev.type == WINNOW_EVENT_DONE) break;
        if (ev.type != WINNOW_EVENT_TEXT) continue;
        if (ev.token_ids_n) assert_int_equal(ev.first_token, next);
        next += (uint32_t)ev.token_ids_n;
        snprintf(joined + strlen(joined), sizeof(joined) - strlen(joined), "%s", ev.text);
        pieces++;
    }
    assert_string_equal(joined, ev.text);
    assert_int_equal(ev.usage.completion_tokens, next);
    assert_true(pieces > 1);
    assert_int_equal(ev.usage.image_tokens, 576);
    assert_int_equal(ev.usage.bytes_embedding > 0 && ev.usage.bytes_activation > 0 &&
                         ev.usage.bytes_allreduce > 0,
                     1);
}

static void test_cancel(void **state)
{
    const struct winnow_image im = {.data = picture, .bytes = picture_bytes};
    const struct winnow_request q = {
        .prompt = "Describe the picture.", .images = &im, .images_n = 1, .max_tokens = 400};
    struct winnow_event ev;
    uint64_t job;
    (void)state;
    assert_int_equal(winnow_submit(conn, &q, &job), WINNOW_OK);
    assert_int_equal(winnow_next(conn, &ev, 20000), WINNOW_OK);
    assert_int_equal(ev.type, WINNOW_EVENT_ACCEPTED);
    assert_int_equal(winnow_cancel(conn, job), WINNOW_OK);
    do {
        assert_int_equal(winnow_next(conn, &ev, 20000), WINNOW_OK);
    } while (ev.type == WINNOW_EVENT_TEXT);
    assert_int_equal(ev.type, WINNOW_EVENT_DONE);
    assert_string_equal(ev.finish_reason, "cancelled");
    still_right();
}

/* ---- deaths ---- */

static void kill_component(const char *name, int which)
{
    pid_t pids[16];
    const int n = service_pids(&service, name, pids, 16);
    if (n <= which) fail_msg("%s has %d processes", name, n);
    kill(pids[which], SIGKILL);
}

static void test_vision_worker_dies(void **state)
{
    (void)state;
    kill_component("vision-0", 0);
    still_right();
}

static void test_rank_dies(void **state)
{
    (void)state;
    for (int which = 0; which < 4; which += 3) {
        kill_component("replica-0", which);
        still_right();
    }
}

static void test_rank_dies_in_the_middle(void **state)
{
    const struct winnow_image im = {.data = picture, .bytes = picture_bytes};
    const struct winnow_request q = {
        .prompt = "Describe the picture.", .images = &im, .images_n = 1};
    struct winnow_event ev;
    char *whole, joined[4096] = "";
    uint64_t job;
    bool killed = false;
    (void)state;
    assert_int_equal(ask(conn, picture, picture_bytes, q.prompt, &whole, NULL), WINNOW_EVENT_DONE);
    assert_int_equal(winnow_submit(conn, &q, &job), WINNOW_OK);
    for (;;) {
        assert_int_equal(winnow_next(conn, &ev, 60000), WINNOW_OK);
        if (ev.type == WINNOW_EVENT_ERROR) fail_msg("%s", ev.text);
        if (ev.type == WINNOW_EVENT_DONE) break;
        if (ev.type != WINNOW_EVENT_TEXT) continue;
        snprintf(joined + strlen(joined), sizeof(joined) - strlen(joined), "%s", ev.text);
        if (!killed && strlen(joined) > 10) {
            kill_component("replica-0", 1);
            killed = true;
        }
    }
    assert_true(killed);
    assert_string_equal(joined, whole); /* no gap, no repeat */
    assert_true(ev.usage.attempts >= 1);
    free(whole);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest answers[] = {cmocka_unit_test(test_answers)};
    const struct CMUnitTest requests[] = {
        cmocka_unit_test(test_truncated_image),
        cmocka_unit_test(test_not_an_image),
        cmocka_unit_test(test_decompression_bomb),
        cmocka_unit_test(test_oversized_image),
        cmocka_unit_test(test_prompt_too_long),
        cmocka_unit_test(test_unknown_pruning_method),
        cmocka_unit_test(test_pruning_methods),
        cmocka_unit_test(test_budgets),
        cmocka_unit_test(test_pruning_in_force),
        cmocka_unit_test(test_positions),
        cmocka_unit_test(test_prefix_hits_need_the_same_pruning),
        cmocka_unit_test(test_special_tokens_in_text_are_text),
        cmocka_unit_test(test_text_only),
        cmocka_unit_test(test_two_images),
        cmocka_unit_test(test_stream_joins_to_the_answer),
        cmocka_unit_test(test_cancel),
    };
    const struct CMUnitTest deaths[] = {
        cmocka_unit_test(test_vision_worker_dies),
        cmocka_unit_test(test_rank_dies),
        cmocka_unit_test(test_rank_dies_in_the_middle),
    };

    int8 = argc == 6 && strcmp(argv[5], "int8") == 0;
    if (argc == 5 + int8 && strcmp(argv[1], "answers") == 0) {
        tp = (int)strtol(argv[2], NULL, 10);
        pp = (int)strtol(argv[3], NULL, 10);
        count = (int)strtol(argv[4], NULL, 10);
        return cmocka_run_group_tests(answers, NULL, NULL);
    }
    if (argc == 2 && strcmp(argv[1], "requests") == 0)
        return cmocka_run_group_tests(requests, start_service, stop_service);
    if (argc == 2 && strcmp(argv[1], "deaths") == 0)
        return cmocka_run_group_tests(deaths, start_service, stop_service);
    fprintf(stderr, "usage: test_serve answers TP PP N [int8] | requests | deaths\n");
    return 2;
}
