/* tests/integration/test_gateway_serve.c - `winnow gateway` in front of a real service of tiny-llava: over HTTP, whole
 * and in pieces, the answers are those of the library to the byte, also for many connections at a time and when the
 * scheduler dies in the middle of a stream.
 *
 *   test_gateway_serve PATH-OF-WINNOW */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <jansson.h>
#include <signal.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/integration/http.h"
#include "tests/integration/service.h"
#include "tests/scratch.h"

#define CONNECTIONS 32
#define PICTURE     "models/tiny-llava/demo.jpg"
#define STORY       "Tell me a story."
#define STORY_MORE  ",\"max_tokens\":300,\"ignore_eos\":true"

static const char *winnow;
static struct service service;
static struct http_gateway gateway;
static struct winnow *w;
static char journal[64], *picture_url;
static uint8_t *picture;
static size_t picture_bytes;

static int start(void **state)
{
    char flag[96];
    const char *flags[] = {"--dtype=float32", flag, NULL};
    (void)state;

    assert_true(scratch_make(journal, sizeof(journal), "gateway-serve"));
    snprintf(flag, sizeof(flag), "--journal=%s", journal);
    service_start(&service, "models/tiny-llava", flags);
    http_gateway_start(&gateway, winnow, service.endpoint, NULL);
    assert_int_equal(winnow_connect(&w, service.endpoint, NULL), WINNOW_OK);
    picture = read_file(PICTURE, &picture_bytes);
    picture_url = malloc(sodium_base64_encoded_len(picture_bytes, sodium_base64_VARIANT_ORIGINAL));
    assert_non_null(picture_url);
    sodium_bin2base64(picture_url, sodium_base64_encoded_len(picture_bytes, sodium_base64_VARIANT_ORIGINAL), picture,
                      picture_bytes, sodium_base64_VARIANT_ORIGINAL);
    return 0;
}

static int stop(void **state)
{
    (void)state;
    winnow_close(w);
    http_gateway_wait_end(&gateway, SIGTERM);
    assert_int_equal(service_stop(&service), 0);
    free(picture);
    free(picture_url);
    return scratch_remove(journal) ? 0 : -1;
}

/* A body; `more` begins with a comma, or is "". The caller's. */
static char *body_of(const char *question, bool with_picture, const char *more)
{
    char *body = NULL;

    if (!with_picture)
        assert_true(asprintf(&body,
                             "{\"model\":\"tiny-llava\",\"messages\":[{\"role\":\"user\",\"content\":\"%s\"}]%s}",
                             question, more) > 0);
    else
        assert_true(asprintf(&body,
                             "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":{"
                             "\"url\":\"data:image/jpeg;base64,%s\"}},{\"type\":\"text\",\"text\":\"%s\"}]}]%s}",
                             picture_url, question, more) > 0);
    return body;
}

/* What the library says. */
static char *library_says(const struct winnow_request *q)
{
    struct winnow_event ev;
    uint64_t job;

    assert_int_equal(winnow_submit(w, q, &job), WINNOW_OK);
    do {
        if (winnow_next(w, &ev, 60000) != WINNOW_OK) fail_msg("%s", winnow_error(w));
    } while (ev.job != job || ev.type < WINNOW_EVENT_DONE);
    assert_int_equal(ev.type, WINNOW_EVENT_DONE);
    return strdup(ev.text);
}

static char *http_says(const char *body, int choice, json_t **usage)
{
    struct http h;
    struct http_reply r;
    json_t *root;
    char *text;

    http_open(&h, gateway.port);
    http_post(&h, "", body);
    r = http_take(&h);
    if (r.status != 200) fail_msg("%d: %s", r.status, r.body);
    text = http_text(r.body, choice);
    root = json_loads(r.body, 0, NULL);
    if (usage) *usage = json_incref(json_object_get(root, "usage"));
    json_decref(root);
    free(r.body);
    http_close(&h);
    return text;
}

static char *stream_says(const char *body)
{
    struct http h;
    char *text;

    http_open(&h, gateway.port);
    http_post(&h, "", body);
    assert_int_equal(http_take_head(&h).status, 200);
    text = http_stream_text(&h, 0);
    http_close(&h);
    return text;
}

static json_int_t of(const json_t *o, const char *a, const char *b)
{
    const json_t *v = json_object_get(o, a);

    return json_integer_value(b ? json_object_get(v, b) : v);
}

static void same_answers(void **state)
{
    static const char *const questions[] = {"What does the text say?", "What is on the left?", "How many are there?"};
    const struct winnow_image image = {picture, picture_bytes};
    json_t *usage;
    (void)state;

    for (int i = 0; i < 6; i++) {
        const bool seen = i % 2 == 0;
        const struct winnow_request q = {.prompt = questions[i / 2],
                                         .images = &image,
                                         .images_n = seen,
                                         .max_tokens = 16,
                                         .pruning_method = i == 4 ? "cls-topk" : NULL,
                                         .pruning_keep = i == 4 ? 64 : 0};
        const char *more = i == 4 ? ",\"image_pruning\":{\"method\":\"cls-topk\",\"keep\":64},\"max_tokens\":16"
                                  : ",\"max_tokens\":16";
        char *body = body_of(questions[i / 2], seen, more), *text = http_says(body, 0, &usage), *want, *stream;
        char streamed[128];
        assert_string_equal(text, want = library_says(&q));
        free(body);
        snprintf(streamed, sizeof(streamed), "%s,\"stream\":true", more);
        body = body_of(questions[i / 2], seen, streamed);
        assert_string_equal(stream = stream_says(body), want);
        assert_int_equal(of(usage, "prompt_tokens_details", "image_tokens_before_pruning"), seen ? 576 : 0);
        assert_int_equal(of(usage, "prompt_tokens_details", "image_tokens"), i == 4 ? 64 : seen ? 576 : 0);
        assert_int_equal(of(json_object_get(usage, "winnow"), "bytes_on_wire", "embedding") > 0, seen);
        json_decref(usage);
        free(stream);
        free(want);
        free(text);
        free(body);
    }
}

static void several_answers(void **state)
{
    char *body = body_of("Say something.", false,
                         ",\"n\":2,\"temperature\":4,\"seed\":5,\"max_tokens\":8,"
                         "\"logprobs\":true,\"top_logprobs\":2"),
         *text, *want;
    (void)state;

    for (int i = 0; i < 2; i++) { /* each is drawn from a seed of its own */
        const struct winnow_request q = {
            .prompt = "Say something.", .temperature = 4, .seed = 5 + (uint64_t)i, .max_tokens = 8};
        assert_string_equal(text = http_says(body, i, NULL), want = library_says(&q));
        free(text);
        free(want);
    }
    free(body);
}

/* One client's connections, all at once; each second one a stream. */
static void many_connections(void **state)
{
    static struct http h[CONNECTIONS];
    static char *want[4];
    char question[64];
    (void)state;

    for (int i = 0; i < 4; i++) {
        const struct winnow_request q = {.prompt = question, .max_tokens = 24, .ignore_eos = 1};
        snprintf(question, sizeof(question), "Say something about %d.", i);
        want[i] = library_says(&q);
    }
    for (int i = 0; i < CONNECTIONS; i++) http_open(&h[i], gateway.port);
    for (int i = 0; i < CONNECTIONS; i++) {
        char *body;
        snprintf(question, sizeof(question), "Say something about %d.", i % 4);
        body = body_of(question, false,
                       i / 4 % 2 ? ",\"max_tokens\":24,\"ignore_eos\":true,\"stream\":true"
                                 : ",\"max_tokens\":24,\"ignore_eos\":true");
        http_post(&h[i], "", body);
        free(body);
    }
    for (int i = 0; i < CONNECTIONS; i++) {
        char *text;
        if (i / 4 % 2) {
            assert_int_equal(http_take_head(&h[i]).status, 200);
            text = http_stream_text(&h[i], 0);
        } else {
            struct http_reply r = http_take(&h[i]);
            assert_int_equal(r.status, 200);
            text = http_text(r.body, 0);
            free(r.body);
        }
        assert_string_equal(text, want[i % 4]);
        free(text);
        http_close(&h[i]);
    }
    for (int i = 0; i < 4; i++) free(want[i]);
}

/* Nobody reads the story any more: it is not told on. */
static void gone_reader(void **state)
{
    char *body = body_of(STORY, false, STORY_MORE ",\"stream\":true");
    struct http h;
    double gone;
    (void)state;

    http_open(&h, gateway.port);
    http_post(&h, "", body);
    assert_int_equal(http_take_head(&h).status, 200);
    for (int i = 0; i < 3; i++) (void)http_take_piece(&h);
    service_says(w, "\"running\": 1");
    http_close(&h);
    gone = now_s();
    for (bool runs = true; runs;) {
        char *status = winnow_status_json(w, 10000);
        assert_non_null(status);
        runs = !strstr(status, "\"queued\": 0, \"running\": 0");
        free(status);
        if (now_s() - gone > 5) fail_msg("the job goes on without its reader");
    }
    printf("  the job was gone %.0f ms after its reader\n", (now_s() - gone) * 1e3);
    service_says(w, "\"cancelled\": 1");
    free(body);
}

static void scheduler_dies_under_a_stream(void **state)
{
    const struct winnow_request q = {.prompt = STORY, .max_tokens = 300, .ignore_eos = 1};
    char *body = body_of(STORY, false, STORY_MORE ",\"stream\":true"), *want = library_says(&q), *rest;
    char begun[512] = "";
    struct http h;
    pid_t scheduler[4];
    (void)state;

    http_open(&h, gateway.port);
    http_post(&h, "", body);
    assert_int_equal(http_take_head(&h).status, 200);
    for (int i = 0; i < 8; i++) {
        json_t *root = json_loads(http_take_piece(&h), 0, NULL);
        const json_t *delta = json_object_get(json_array_get(json_object_get(root, "choices"), 0), "delta");
        const char *text = json_string_value(json_object_get(delta, "content"));
        assert_non_null(text);
        snprintf(begun + strlen(begun), sizeof(begun) - strlen(begun), "%s", text);
        json_decref(root);
    }
    assert_int_equal(service_pids(&service, "scheduler", scheduler, 4), 1);
    kill(scheduler[0], SIGKILL);
    rest = http_stream_text(&h, 0);
    assert_int_equal(strncmp(want, begun, strlen(begun)), 0);
    assert_string_equal(rest, want + strlen(begun)); /* no gap, nothing twice */
    http_close(&h);
    free(rest);
    free(want);
    free(body);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_answers),
        cmocka_unit_test(several_answers),
        cmocka_unit_test(many_connections),
        cmocka_unit_test(gone_reader),
        cmocka_unit_test(scheduler_dies_under_a_stream),
    };
    if (argc < 2) return 2;
    winnow = argv[1];
    if (argc > 2) cmocka_set_test_filter(argv[2]);
    return cmocka_run_group_tests(tests, start, stop);
}
