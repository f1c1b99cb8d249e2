/* tests/integration/test_gateway.c - `winnow gateway` over real sockets, in front of a real scheduler whose leader is
 * scripted, so that what is slow, full or gone is not up to chance. With a model: test_gateway_serve.c.
 *
 *   test_gateway PATH-OF-WINNOW */
#include "sched_bed.h"

#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/log.h"
#include "tests/integration/http.h"
#include "tests/scratch.h"

#define ASK(more)   "{\"messages\":[{\"role\":\"user\",\"content\":\"What?\"}]" more "}"
#define PIECES_N    4
#define PIECE_BYTES 30000

static const char *winnow;

struct fixture {
    struct bed b;
    struct end *leader;
    struct http_gateway g;
    struct http h;
};

static void start_with(struct fixture *f, const char *const *options)
{
    bed_start(&f->b);
    f->leader = worker_open(&f->b, WN__ROLE__ROLE_LEADER, "replica-0", 8);
    http_gateway_start(&f->g, winnow, f->b.clients, options);
    http_open(&f->h, f->g.port);
}

static int prepare(void **state)
{
    static struct fixture f;

    memset(&f, 0, sizeof(f));
    bed_init(&f.b);
    *state = &f;
    return 0;
}

static int start(void **state)
{
    prepare(state);
    start_with(*state, NULL);
    return 0;
}

static int stop(void **state)
{
    struct fixture *f = *state;

    if (f->h.in) http_close(&f->h);
    if (f->g.pid) http_gateway_wait_end(&f->g, SIGTERM);
    if (f->b.net) bed_stop(&f->b);
    return 0;
}

static void expect(struct http *h, int status, const char *words)
{
    struct http_reply r = http_take(h);

    if (r.status != status || !strstr(r.body, words)) fail_msg("%d: %s", r.status, r.body);
    free(r.body);
}

static void expect_cancel(struct fixture *f, const struct order *o)
{
    const struct order c = take_order(f->leader, WN__ENVELOPE__BODY_CANCEL);

    assert_string_equal(c.id, o->id);
    give_error(f->leader, o, WN_ECANCEL, false, "cancelled");
}

static void whole_and_in_pieces(void **state)
{
    struct fixture *f = *state;
    struct http_reply r;
    struct order o;

    http_post(&f->h, "", ASK(""));
    o = take_order(f->leader, WN__ENVELOPE__BODY_GENERATE);
    assert_string_equal(o.text, "What?");
    give_tokens(f->leader, &o, 0, 7, "a \"cat\"");
    give_done(f->leader, &o, 50);
    expect(&f->h, 200,
           "\"content\":\"a \\\"cat\\\"\"},\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{"
           "\"prompt_tokens\":50,");

    http_post(&f->h, "", ASK(",\"stream\":true")); /* on the same connection */
    o = take_order(f->leader, WN__ENVELOPE__BODY_GENERATE);
    r = http_take_head(&f->h);
    assert_int_equal(r.status, 200);
    assert_non_null(strstr(r.head, "Content-Type: text/event-stream"));
    assert_non_null(strstr(http_take_piece(&f->h), "{\"role\":\"assistant\",\"content\":\"\"}"));
    for (uint32_t i = 0; i < 3; i++) { /* each piece is read before the next is made */
        give_tokens(f->leader, &o, i, 7 + i, i == 1 ? "\xf0\x9f\x8d\x8e" : "x");
        assert_non_null(
            strstr(http_take_piece(&f->h), i == 1 ? "{\"content\":\"\xf0\x9f\x8d\x8e\"}" : "{\"content\":\"x\"}"));
    }
    give_done(f->leader, &o, 50);
    assert_non_null(strstr(http_take_piece(&f->h), "\"finish_reason\":\"stop\""));
    assert_string_equal(http_take_piece(&f->h), "[DONE]");
}

static void several_answers_and_scores(void **state)
{
    struct fixture *f = *state;
    struct order o[2];
    char *text;

    for (int stream = 0; stream < 2; stream++) {
        http_post(&f->h, "",
                  stream ? ASK(",\"n\":2,\"seed\":40,\"logprobs\":true,\"stream\":true,\"stream_options\":{"
                               "\"include_usage\":true}")
                         : ASK(",\"n\":2,\"seed\":40,\"logprobs\":true"));
        for (int i = 0; i < 2; i++) {
            struct order any = take_order(f->leader, WN__ENVELOPE__BODY_GENERATE);
            o[any.seed - 40] = any;
        }
        for (int i = 1; i >= 0; i--) { /* the second is done first */
            give_token_with_logprobs(f->leader, &o[i], 0, 7, i ? "one" : "zero");
            give_done(f->leader, &o[i], 10);
        }
        if (stream) {
            bool scored = false;
            const char *piece;
            assert_int_equal(http_take_head(&f->h).status, 200);
            while (!strstr(piece = http_take_piece(&f->h), "\"choices\":[],\"usage\":{"))
                scored |=
                    strstr(piece, "\"delta\":{\"content\":\"one\"},\"logprobs\":{\"content\":[{\"token\":\"one\","
                                  "\"logprob\":-1,") != NULL;
            assert_true(scored);
            assert_non_null(strstr(piece, "\"completion_tokens\":2"));
            assert_string_equal(http_take_piece(&f->h), "[DONE]");
        } else {
            struct http_reply r = http_take(&f->h);
            assert_string_equal(text = http_text(r.body, 0), "zero");
            free(text);
            assert_string_equal(text = http_text(r.body, 1), "one");
            free(text);
            assert_non_null(strstr(r.body, "\"logprob\":-1,"));
            assert_non_null(strstr(r.body, "\"completion_tokens\":2"));
            free(r.body);
        }
    }
}

static void refusals(void **state)
{
    static const struct {
        const char *body;
        int status;
        const char *words;
    } bad[] = {
        {"{", 400, "\"param\":null,\"code\":\"invalid_request\""},
        {"[1]", 400, "no JSON object"},
        {"{}", 400, "\"param\":\"messages\""},
        {ASK(",\"max_tokens\":-1"), 400, "\"param\":\"max_tokens\""},
        {ASK(",\"tools\":[]"), 400, "\"param\":\"tools\""},
        {ASK(",\"image_pruning\":{\"method\":\"sharpen\"}"), 400, "sharpen"},
        {ASK(",\"model\":\"gpt-4\""), 404, "\"param\":\"model\",\"code\":\"model_not_found\""},
        {"{\"messages\":[{\"role\":\"system\",\"content\":\"x\"}]}", 400, "role 'system' is not supported"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"x\"},{\"type\":\"image_url\","
         "\"image_url\":{\"url\":\"https://example.org/a.jpg\"}}]}]}",
         400, "nothing is fetched"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"x\"},{\"type\":\"image_url\","
         "\"image_url\":{\"url\":\"/etc/passwd\"}}]}]}",
         400, "no file is read"},
    };
    struct fixture *f = *state;
    struct order o;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) { /* all on one connection, which survives them */
        http_post(&f->h, "", bad[i].body);
        expect(&f->h, bad[i].status, bad[i].words);
    }
    http_get(&f->h, "/v1/nothing", "");
    expect(&f->h, 404, "\"code\":\"not_found\"");
    http_get(&f->h, "/v1/chat/completions", "");
    expect(&f->h, 405, "method_not_allowed");
    http_send(
        &f->h,
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}");
    expect(&f->h, 415, "application/json");
    http_get(&f->h, "/v1/models", "");
    expect(&f->h, 200, "\"object\":\"list\"");
    http_get(&f->h, "/metrics", "");
    expect(&f->h, 200, "winnow:requests_total{");
    http_post(&f->h, "", ASK(""));
    o = take_order(f->leader, WN__ENVELOPE__BODY_GENERATE);
    give_error(f->leader, &o, WN_EFORMAT, false, "image 1 is no picture");
    expect(&f->h, 400, "no picture");
    assert_string_equal(take_order(f->leader, WN__ENVELOPE__BODY_CANCEL).id, o.id);
    http_post(&f->h, "", ASK(",\"stream\":true"));
    o = take_order(f->leader, WN__ENVELOPE__BODY_GENERATE);
    assert_int_equal(http_take_head(&f->h).status, 200);
    (void)http_take_piece(&f->h);
    give_error(f->leader, &o, WN_EDEVICE, false, "on fire"); /* it has begun: the error is a piece */
    assert_non_null(strstr(http_take_piece(&f->h), "{\"error\":{\"message\":\"on fire\",\"type\":\"server_error\""));
    assert_string_equal(http_take_piece(&f->h), "[DONE]");
}

static void deadline(void **state)
{
    struct fixture *f = *state;
    struct order o;

    http_post(&f->h, "", ASK(",\"deadline_ms\":100"));
    o = take_order(f->leader, WN__ENVELOPE__BODY_GENERATE);
    expect(&f->h, 504, "the job's deadline of 100 ms has passed");
    assert_string_equal(take_order(f->leader, WN__ENVELOPE__BODY_CANCEL).id, o.id);
}

static void full(void **state)
{
    struct fixture *f = *state;
    struct http other;
    struct http_reply r;
    struct order o;

    f->b.cfg.max_queue = 1;
    start_with(f, NULL);
    http_post(&f->h, "", ASK(""));
    o = take_order(f->leader, WN__ENVELOPE__BODY_GENERATE);
    http_open(&other, f->g.port);
    http_post(&other, "", ASK(",\"stream\":true")); /* also a stream gets its code: it begins when it is accepted */
    r = http_take(&other);
    assert_int_equal(r.status, 429);
    assert_non_null(strstr(r.head, "Retry-After: "));
    assert_non_null(strstr(r.body, "the queue is full"));
    free(r.body);
    give_done(f->leader, &o, 1);
    expect(&f->h, 200, "chat.completion");
    http_post(&other, "", ASK("")); /* and the connection is good for another try */
    o = take_order(f->leader, WN__ENVELOPE__BODY_GENERATE);
    give_done(f->leader, &o, 1);
    expect(&other, 200, "chat.completion");
    http_close(&other);
}

/* Who hangs up frees the job at once: no answer has to be written before it is seen. */
static void gone_readers(void **state)
{
    struct fixture *f = *state;
    struct order o;

    for (int kind = 0; kind < 3; kind++) { /* waits for an answer; for a stream; is in the middle of one */
        struct http h;
        http_open(&h, f->g.port);
        http_post(&h, "", kind == 0 ? ASK("") : ASK(",\"stream\":true"));
        o = take_order(f->leader, WN__ENVELOPE__BODY_GENERATE);
        if (kind == 2) {
            assert_int_equal(http_take_head(&h).status, 200);
            give_tokens(f->leader, &o, 0, 7, "x");
            (void)http_take_piece(&h);
            (void)http_take_piece(&h);
        }
        http_close(&h);
        expect_cancel(f, &o);
    }
    http_get(&f->h, "/version", "");
    expect(&f->h, 200, "version");
}

/* One who does not read holds up nobody, and loses his job when too much waits for him. */
static void slow_reader(void **state)
{
    static char piece[PIECE_BYTES + 1];
    struct fixture *f = *state;
    struct order slow, quick;
    struct http h;

    memset(piece, 1, PIECE_BYTES); /* six bytes each in JSON */
    http_open(&h, f->g.port);
    http_post(&h, "", ASK(",\"stream\":true"));
    slow = take_order(f->leader, WN__ENVELOPE__BODY_GENERATE);
    for (uint32_t i = 0; i < PIECES_N; i++) {
        give_tokens(f->leader, &slow, i, 7, piece);
        if (i > 0) continue;
        http_post(&f->h, "", ASK(""));
        quick = take_order(f->leader, WN__ENVELOPE__BODY_GENERATE);
        give_done(f->leader, &quick, 1);
        expect(&f->h, 200, "chat.completion");
    }
    expect_cancel(f, &slow);
    assert_true(http_ends(&h));
    http_close(&h);
}

static void keys(void **state)
{
    struct fixture *f = *state;
    char folder[64], file[96];
    const char *options[] = {"--api-key", file, NULL};

    assert_true(scratch_make(folder, sizeof(folder), "gateway"));
    snprintf(file, sizeof(file), "%s/keys", folder);
    assert_true(scratch_text(folder, "keys", "first-key-of-sixteen\r\n\nsecond-key-of-sixteen"));
    assert_int_equal(chmod(file, 0600), 0);
    start_with(f, options);
    http_post(&f->h, "", ASK(",\"max_tokens\":-1"));
    expect(&f->h, 401, "invalid_api_key");
    http_post(&f->h, "Authorization: Bearer first-key-of-sixtee\r\n", ASK(",\"max_tokens\":-1"));
    expect(&f->h, 401, "invalid_api_key");
    http_post(&f->h, "Authorization: Bearer first-key-of-sixteen\r\n", ASK(",\"max_tokens\":-1"));
    expect(&f->h, 400, "max_tokens");
    http_post(&f->h, "authorization: bearer second-key-of-sixteen\r\n", ASK(",\"max_tokens\":-1"));
    expect(&f->h, 400, "max_tokens");
    http_get(&f->h, "/v1/models", "");
    expect(&f->h, 401, "invalid_api_key");
    http_get(&f->h, "/metrics", "");
    expect(&f->h, 401, "invalid_api_key");
    http_get(&f->h, "/nothing", "");
    expect(&f->h, 401, "invalid_api_key");
    http_get(&f->h, "/health", ""); /* for probes; the bed has no vision worker */
    expect(&f->h, 503, "{\"status\":\"not ready\"}");
    assert_true(scratch_remove(folder));
}

static void limits(void **state)
{
    const char *options[] = {
        "--max-request-bytes", "2000", "--max-connections-per-address", "3", "--request-timeout", "1", NULL};
    static char body[3000];
    struct fixture *f = *state;
    struct http h, other;
    char head[256];

    start_with(f, options);
    memset(body, ' ', sizeof(body) - 1);
    http_post(&f->h, "", body); /* its length says it */
    expect(&f->h, 413, "the body has 2999 bytes; at most 2000 are allowed");
    assert_true(http_ends(&f->h));
    http_close(&f->h);
    http_open(&f->h, f->g.port);
    snprintf(head, sizeof(head),
             "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
             "Transfer-Encoding: chunked\r\n\r\nbb7\r\n"); /* 2999 */
    http_send(&f->h, head);
    http_send(&f->h, body);
    http_send(&f->h, "\r\n0\r\n\r\n");
    expect(&f->h, 413, "more bytes than are allowed");
    http_open(&h, f->g.port);
    http_open(&other, f->g.port);
    http_get(&other, "/version", "");
    expect(&other, 200, "version");
    for (int i = 0; i < 2; i++) { /* the fourth from here, and the fifth */
        struct http late;
        http_open(&late, f->g.port);
        http_get(&late, "/version", "");
        assert_true(http_ends(&late));
        http_close(&late);
    }
    http_send(&h, "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"); /* and never more */
    assert_true(http_ends(&h));
    http_close(&h);
    http_close(&other);
}

static void drains(void **state)
{
    struct fixture *f = *state;
    struct http h, late;
    struct order o[2];

    http_open(&h, f->g.port);
    http_post(&h, "", ASK(""));
    o[0] = take_order(f->leader, WN__ENVELOPE__BODY_GENERATE);
    http_post(&f->h, "", ASK(",\"stream\":true"));
    o[1] = take_order(f->leader, WN__ENVELOPE__BODY_GENERATE);
    kill(f->g.pid, SIGTERM);
    for (int i = 0; i < 200 && http_try_open(&late, f->g.port); i++) { /* it has stopped listening */
        http_close(&late);
        usleep(10000);
    }
    assert_null(late.in);
    give_tokens(f->leader, &o[0], 0, 7, "whole");
    give_done(f->leader, &o[0], 1);
    expect(&h, 200, "whole");
    http_close(&h);
    assert_int_equal(http_take_head(&f->h).status, 200);
    give_done(f->leader, &o[1], 1);
    while (strcmp(http_take_piece(&f->h), "[DONE]") != 0) continue;
    http_gateway_wait_end(&f->g, 0);
}

/* The second signal does not wait for what runs. */
static void ends_at_once(void **state)
{
    struct fixture *f = *state;
    struct order o;

    http_post(&f->h, "", ASK(""));
    o = take_order(f->leader, WN__ENVELOPE__BODY_GENERATE);
    kill(f->g.pid, SIGTERM);
    usleep(50000);
    http_gateway_wait_end(&f->g, SIGTERM);
    expect_cancel(f, &o);
    assert_true(http_ends(&f->h));
}

/* Until the watch has seen it. */
static void wait_until(struct http *h, int health, const char *words)
{
    for (int i = 0; i < 100; i++) {
        struct http_reply r;
        bool there;
        http_get(h, "/health", "");
        r = http_take(h);
        there = r.status == health && strstr(r.body, words);
        free(r.body);
        if (there) return;
        usleep(100000);
    }
    fail_msg("/health never said %d %s", health, words);
}

/* Without a service it says so, and finds it when it comes. */
static void service_goes_and_comes(void **state)
{
    struct fixture *f = *state;
    struct order o;

    http_post(&f->h, "", ASK(""));
    o = take_order(f->leader, WN__ENVELOPE__BODY_GENERATE);
    assert_string_equal(o.text, "What?");
    f->b.cfg.port = (uint32_t)strtoul(strrchr(f->b.clients, ':') + 1, NULL, 10);
    bed_stop(&f->b);
    expect(&f->h, 503, "shutting down");
    wait_until(&f->h, 503, "no answer");
    http_get(&f->h, "/health", "");
    expect(&f->h, 503, "no answer");
    http_post(&f->h, "", ASK(""));
    expect(&f->h, 503, "\"code\":\"unavailable\"");
    bed_start(&f->b);
    f->leader = worker_open(&f->b, WN__ROLE__ROLE_LEADER, "replica-0", 8);
    wait_until(&f->h, 503, "not ready"); /* it has no vision worker */
    http_post(&f->h, "", ASK(""));
    o = take_order(f->leader, WN__ENVELOPE__BODY_GENERATE);
    give_done(f->leader, &o, 1);
    expect(&f->h, 200, "chat.completion");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(whole_and_in_pieces, start, stop),
        cmocka_unit_test_setup_teardown(several_answers_and_scores, start, stop),
        cmocka_unit_test_setup_teardown(refusals, start, stop),
        cmocka_unit_test_setup_teardown(deadline, start, stop),
        cmocka_unit_test_setup_teardown(full, prepare, stop),
        cmocka_unit_test_setup_teardown(gone_readers, start, stop),
        cmocka_unit_test_setup_teardown(slow_reader, start, stop),
        cmocka_unit_test_setup_teardown(keys, prepare, stop),
        cmocka_unit_test_setup_teardown(limits, prepare, stop),
        cmocka_unit_test_setup_teardown(drains, start, stop),
        cmocka_unit_test_setup_teardown(ends_at_once, start, stop),
        cmocka_unit_test_setup_teardown(service_goes_and_comes, start, stop),
    };
    if (argc < 2) return 2;
    winnow = argv[1];
    if (argc > 2) cmocka_set_test_filter(argv[2]);
    wn_log_max = WN_LOG_ERROR;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
