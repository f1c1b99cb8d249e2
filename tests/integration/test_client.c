/* tests/integration/test_client.c - libwinnow and the winnow command against a real scheduler with scripted workers.
 * argv: the winnow program and libwinnow.so. */
#include "sched_bed.h"

#include <sys/wait.h>

#include "base/chunk.h"
#include "base/log.h"
#include "client/winnow.h"

static const char *program, *library;

/* A scheduler with one leader and one vision worker, and a connection. */
struct fixture {
    struct bed b;
    struct end *leader, *vision;
    struct winnow *w;
};

static int start(void **state)
{
    static struct fixture f;

    bed_init(&f.b);
    bed_start(&f.b);
    f.leader = worker_open(&f.b, WN__ROLE__ROLE_LEADER, "replica-0", 4);
    f.vision = worker_open(&f.b, WN__ROLE__ROLE_VISION, "vision-0", 4);
    if (winnow_connect(&f.w, f.b.clients, NULL) != WINNOW_OK) fail_msg("%s", winnow_error(NULL));
    *state = &f;
    return 0;
}

static int stop(void **state)
{
    struct fixture *f = *state;

    winnow_close(f->w);
    if (f->b.net) bed_stop(&f->b);
    return 0;
}

static struct winnow_event next(struct winnow *w, enum winnow_event_type type)
{
    struct winnow_event ev;

    if (winnow_next(w, &ev, 5000) != WINNOW_OK) fail_msg("%s", winnow_error(w));
    if (ev.type != type) fail_msg("event %d came instead of %d: %s", ev.type, type, ev.text);
    return ev;
}

static void ask_and_stream(void **state)
{
    struct fixture *f = *state;
    struct winnow_image images[2] = {{"first", 5}, {"second", 6}};
    struct winnow_request r = {.prompt = "What?", .images = images, .images_n = 2, .max_tokens = 7, .seed = 3};
    struct winnow_event ev;
    struct order gen, enc[2];
    uint64_t job = 0;

    assert_int_equal(winnow_submit(f->w, &r, &job), WINNOW_OK);
    ev = next(f->w, WINNOW_EVENT_ACCEPTED);
    assert_int_equal(ev.job, job);
    assert_true(wn_job_id_valid(ev.job_id));
    gen = take_order(f->leader, WN__ENVELOPE__BODY_GENERATE);
    for (int i = 0; i < 2; i++) {
        enc[i] = take_order(f->vision, WN__ENVELOPE__BODY_ENCODE);
        assert_int_equal(f->vision->payload_bytes, images[enc[i].image].bytes);
        assert_memory_equal(f->vision->payload, images[enc[i].image].data, images[enc[i].image].bytes);
        give_encoded(f->vision, &enc[i]);
    }
    give_tokens(f->leader, &gen, 0, 40, "yes");
    ev = next(f->w, WINNOW_EVENT_TEXT);
    assert_string_equal(ev.text, "yes");
    assert_int_equal(ev.token_ids_n, 1);
    assert_int_equal(ev.token_ids[0], 40);
    give_done(f->leader, &gen, 50);
    ev = next(f->w, WINNOW_EVENT_DONE);
    assert_string_equal(ev.text, "yes");
    assert_string_equal(ev.finish_reason, "stop");
    assert_int_equal(ev.usage.prompt_tokens, 50);
    assert_int_equal(ev.usage.bytes_embedding, 2 * 576 * 64);
    assert_int_equal(ev.usage.preemptions, 3);
    /* each picture came here once and went to a vision worker once */
    assert_int_equal(ev.usage.bytes_image, 2 * (images[0].bytes + images[1].bytes));
    assert_int_equal(winnow_next(f->w, &ev, 0), WINNOW_TIMEOUT);
    assert_int_equal(winnow_cancel(f->w, job), WINNOW_EINVAL); /* it has ended */
}

/* A program that waits for its own descriptor, too: it comes back at once for that, and events go before it. */
static void waits_for_more(void **state)
{
    struct fixture *f = *state;
    const struct winnow_request r = {.prompt = "What?"};
    struct winnow_event ev;
    uint64_t job;
    int fd[2];

    assert_int_equal(pipe(fd), 0);
    assert_int_equal(winnow_next_or(f->w, &ev, fd[0], 0), WINNOW_TIMEOUT);
    assert_int_equal(write(fd[1], "x", 1), 1);
    assert_int_equal(winnow_next_or(f->w, &ev, fd[0], -1), WINNOW_TIMEOUT); /* not for ever */
    assert_int_equal(winnow_submit(f->w, &r, &job), WINNOW_OK);
    (void)take_order(f->leader, WN__ENVELOPE__BODY_GENERATE); /* so the answer to the client is on its way, too */
    for (int i = 0; i < 1000 && winnow_next_or(f->w, &ev, fd[0], 5000) == WINNOW_TIMEOUT; i++) usleep(1000);
    assert_int_equal(ev.type, WINNOW_EVENT_ACCEPTED);
    assert_int_equal(ev.job, job);
    close(fd[0]);
    close(fd[1]);
}

/* Pictures whose bytes travel in several pieces: one is longer than a piece, one ends where the second piece does. */
static void large_pictures(void **state)
{
    static uint8_t bytes[3][WN_CHUNK_BYTES + 5];
    struct winnow_image images[3] = {{bytes[0], WN_CHUNK_BYTES + 5}, {bytes[1], WN_CHUNK_BYTES - 5}, {bytes[2], 7}};
    struct fixture *f = *state;
    uint64_t job;

    for (int n = 1; n <= 3; n++) { /* pieces: 2, 3 of which the last is empty, 3 */
        const struct winnow_request r = {.prompt = "What?", .images = images, .images_n = (size_t)n};
        struct order gen;
        for (int i = 0; i < n; i++) memset(bytes[i], 'a' + 3 * n + i, sizeof(bytes[i]));
        assert_int_equal(winnow_submit(f->w, &r, &job), WINNOW_OK);
        gen = take_order(f->leader, WN__ENVELOPE__BODY_GENERATE);
        for (int i = 0; i < n; i++) {
            struct order enc = take_order(f->vision, WN__ENVELOPE__BODY_ENCODE);
            assert_int_equal(f->vision->payload_bytes, images[enc.image].bytes);
            assert_memory_equal(f->vision->payload, images[enc.image].data, 7);
            give_encoded(f->vision, &enc);
        }
        give_done(f->leader, &gen, 5);
        (void)next(f->w, WINNOW_EVENT_ACCEPTED);
        (void)next(f->w, WINNOW_EVENT_DONE);
    }
}

/* Two jobs at a time keep apart; one is cancelled before the server has named it. */
static void side_by_side(void **state)
{
    struct fixture *f = *state;
    struct winnow_request r = {.prompt = "one"}, q = {.prompt = "two", .quiet = 1};
    uint64_t a, b;
    struct order first, second;
    struct winnow_event ev;
    bool cancelled = false, done = false;

    assert_int_equal(winnow_submit(f->w, &r, &a), WINNOW_OK);
    assert_int_equal(winnow_submit(f->w, &q, &b), WINNOW_OK);
    assert_int_equal(winnow_cancel(f->w, a), WINNOW_OK);
    first = take_order(f->leader, WN__ENVELOPE__BODY_GENERATE);
    second = take_order(f->leader, WN__ENVELOPE__BODY_GENERATE);
    assert_string_equal(first.text, "one");
    give_tokens(f->leader, &second, 0, 1, "quiet");
    give_done(f->leader, &second, 5);
    while (!cancelled || !done) {
        if (winnow_next(f->w, &ev, 5000) != WINNOW_OK) fail_msg("%s", winnow_error(f->w));
        assert_true(ev.type == WINNOW_EVENT_ACCEPTED || ev.type == WINNOW_EVENT_DONE);
        if (ev.type != WINNOW_EVENT_DONE) continue;
        assert_string_equal(ev.finish_reason, ev.job == a ? "cancelled" : "stop");
        if (ev.job == a) cancelled = true;
        if (ev.job == b) {
            done = true;
            assert_string_equal(ev.text, "quiet");
        }
    }
    assert_string_equal(take_order(f->leader, WN__ENVELOPE__BODY_CANCEL).id, first.id);
}

static void refusals(void **state)
{
    struct fixture *f = *state;
    struct winnow_image empty = {"x", 0};
    struct winnow_request r = {.prompt = "q", .images = &empty, .images_n = 1};
    struct winnow_event ev;
    uint64_t job;

    assert_int_equal(winnow_submit(f->w, &r, &job), WINNOW_EINVAL);
    assert_string_equal(winnow_error(f->w), "image 1 is empty");
    r.images_n = 0;
    r.temperature = -1;
    assert_int_equal(winnow_submit(f->w, &r, &job), WINNOW_EINVAL);
    assert_non_null(strstr(winnow_error(f->w), "temperature"));
    r.temperature = 0;
    r.prompt = "\xff";
    assert_int_equal(winnow_submit(f->w, &r, &job), WINNOW_EINVAL);
    assert_non_null(strstr(winnow_error(f->w), "UTF-8"));
    r.prompt = "q";
    r.pruning_method = "nonsense"; /* only the server knows the methods */
    assert_int_equal(winnow_submit(f->w, &r, &job), WINNOW_OK);
    ev = next(f->w, WINNOW_EVENT_ERROR);
    assert_int_equal(ev.job, job);
    assert_non_null(strstr(ev.text, "known: none"));
    assert_int_equal(winnow_attach(f->w, "no id", 0, &job), WINNOW_EINVAL);
    assert_int_equal(winnow_attach(f->w, "01ARZ3NDEKTSV4RRFFQ69G5FAV", 0, &job), WINNOW_OK);
    ev = next(f->w, WINNOW_EVENT_ERROR);
    assert_int_equal(ev.job, job);
    assert_non_null(strstr(ev.text, "not known"));
}

static void attach_and_status(void **state)
{
    struct fixture *f = *state;
    struct winnow_request r = {.prompt = "q"};
    struct winnow_event ev;
    struct order gen;
    uint64_t job, again;
    char id[WINNOW_JOB_ID_MAX], *json;

    assert_int_equal(winnow_submit(f->w, &r, &job), WINNOW_OK);
    ev = next(f->w, WINNOW_EVENT_ACCEPTED);
    memcpy(id, ev.job_id, sizeof(id));
    gen = take_order(f->leader, WN__ENVELOPE__BODY_GENERATE);
    give_tokens(f->leader, &gen, 0, 1, "a");
    give_tokens(f->leader, &gen, 1, 2, "b");
    usleep(50000);
    json = winnow_status_json(f->w, 2000); /* while events wait: they are kept, in order */
    assert_non_null(json);
    assert_non_null(strstr(json, "\"ready\": true"));
    assert_non_null(strstr(json, "\"running\": 1"));
    assert_non_null(strstr(json, "\"name\": \"vision-0\""));
    free(json);
    assert_string_equal(next(f->w, WINNOW_EVENT_TEXT).text, "a");
    assert_string_equal(next(f->w, WINNOW_EVENT_TEXT).text, "b");
    winnow_close(f->w);

    assert_int_equal(winnow_connect(&f->w, f->b.clients, NULL), WINNOW_OK);
    assert_int_equal(winnow_attach(f->w, id, 1, &again), WINNOW_OK);
    assert_string_equal(next(f->w, WINNOW_EVENT_ACCEPTED).job_id, id);
    ev = next(f->w, WINNOW_EVENT_TEXT);
    assert_string_equal(ev.text, "b");
    assert_int_equal(ev.first_token, 1);
    give_done(f->leader, &gen, 3);
    assert_string_equal(next(f->w, WINNOW_EVENT_DONE).text, "ab");
}

/* Attaches until the server has taken notice. */
static void expect_acknowledged(struct winnow *w, const char *id)
{
    struct winnow_event ev;
    uint64_t job;

    for (int i = 0; i < 200; i++, usleep(20000)) {
        assert_int_equal(winnow_attach(w, id, 0, &job), WINNOW_OK);
        do assert_int_equal(winnow_next(w, &ev, 5000), WINNOW_OK);
        while (ev.type != WINNOW_EVENT_DONE && ev.type != WINNOW_EVENT_ERROR);
        if (ev.type == WINNOW_EVENT_ERROR) break;
    }
    assert_int_equal(ev.type, WINNOW_EVENT_ERROR);
    assert_non_null(strstr(ev.text, "was acknowledged"));
}

/* The end of a job is acknowledged when the program comes back for more, and not before. */
static void acknowledges(void **state)
{
    struct fixture *f = *state;
    const struct winnow_options keep = {.keep_results = 1};
    struct winnow_request r = {.prompt = "q"};
    struct winnow *other = NULL;
    struct winnow_event ev;
    struct order gen;
    uint64_t job;

    assert_int_equal(winnow_connect(&other, f->b.clients, &keep), WINNOW_OK);
    assert_int_equal(winnow_submit(f->w, &r, &job), WINNOW_OK);
    gen = take_order(f->leader, WN__ENVELOPE__BODY_GENERATE);
    give_tokens(f->leader, &gen, 0, 1, "a");
    give_done(f->leader, &gen, 3);
    next(f->w, WINNOW_EVENT_ACCEPTED);
    next(f->w, WINNOW_EVENT_TEXT);
    next(f->w, WINNOW_EVENT_DONE);
    for (int i = 0; i < 2; i++) { /* the server keeps it, and an attached one leaves it there */
        usleep(80000);
        assert_int_equal(winnow_attach(other, gen.id, 0, &job), WINNOW_OK);
        next(other, WINNOW_EVENT_ACCEPTED);
        next(other, WINNOW_EVENT_TEXT);
        next(other, WINNOW_EVENT_DONE);
    }
    assert_int_equal(winnow_next(f->w, &ev, 0), WINNOW_TIMEOUT);
    expect_acknowledged(other, gen.id);

    assert_int_equal(winnow_submit(other, &r, &job), WINNOW_OK); /* kept until it says so itself */
    gen = take_order(f->leader, WN__ENVELOPE__BODY_GENERATE);
    give_done(f->leader, &gen, 3);
    next(other, WINNOW_EVENT_ACCEPTED);
    next(other, WINNOW_EVENT_DONE);
    assert_int_equal(winnow_next(other, &ev, 100), WINNOW_TIMEOUT);
    assert_int_equal(winnow_attach(f->w, gen.id, 0, &job), WINNOW_OK);
    next(f->w, WINNOW_EVENT_ACCEPTED);
    next(f->w, WINNOW_EVENT_DONE);
    assert_int_equal(winnow_acknowledge(other, gen.id), WINNOW_OK);
    expect_acknowledged(other, gen.id);
    winnow_close(other);
}

/* Three answers of one request: one picture sent, seeds of their own, each with its events. */
static void choices(void **state)
{
    struct fixture *f = *state;
    struct winnow_image image = {"picture", 7};
    struct winnow_request r = {.prompt = "q", .images = &image, .images_n = 1, .n = 3, .quiet = 1, .seed = 5};
    struct winnow_event ev;
    struct order gen[3], enc;
    uint64_t job;

    assert_int_equal(winnow_submit(f->w, &r, &job), WINNOW_OK);
    for (uint32_t i = 0; i < 3; i++) {
        ev = next(f->w, WINNOW_EVENT_ACCEPTED);
        assert_int_equal(ev.job, job);
        assert_int_equal(ev.choice, i);
        gen[i] = take_order(f->leader, WN__ENVELOPE__BODY_GENERATE);
        assert_string_equal(gen[i].id, ev.job_id);
        assert_int_equal(gen[i].seed, 5 + i);
        enc = take_order(f->vision, WN__ENVELOPE__BODY_ENCODE);
        assert_memory_equal(f->vision->payload, "picture", 7);
        give_encoded(f->vision, &enc);
    }
    for (uint32_t i = 3; i > 0; i--) {
        give_tokens(f->leader, &gen[i - 1], 0, i, i == 1 ? "one" : i == 2 ? "two" : "three");
        give_done(f->leader, &gen[i - 1], 3);
        ev = next(f->w, WINNOW_EVENT_DONE);
        assert_int_equal(ev.job, job);
        assert_int_equal(ev.choice, i - 1);
        assert_string_equal(ev.text, i == 1 ? "one" : i == 2 ? "two" : "three");
    }
    assert_int_equal(winnow_cancel(f->w, job), WINNOW_EINVAL); /* all have ended */
    r.n = 17;
    assert_int_equal(winnow_submit(f->w, &r, &job), WINNOW_EINVAL);
    assert_string_equal(winnow_error(f->w), "n is 17; at most 16 are allowed");
    r.n = 2; /* cancelling is for all */
    assert_int_equal(winnow_submit(f->w, &r, &job), WINNOW_OK);
    next(f->w, WINNOW_EVENT_ACCEPTED);
    next(f->w, WINNOW_EVENT_ACCEPTED);
    assert_int_equal(winnow_cancel(f->w, job), WINNOW_OK);
    assert_string_equal(next(f->w, WINNOW_EVENT_DONE).finish_reason, "cancelled");
    assert_string_equal(next(f->w, WINNOW_EVENT_DONE).finish_reason, "cancelled");
}

/* A full server: the library comes back by itself, as long as it may; else BUSY is an event. */
static void busy(void **state)
{
    const struct winnow_options patient = {.busy_timeout_ms = 20000}, hasty = {.busy_timeout_ms = 1};
    struct winnow_request r = {.prompt = "q"};
    struct winnow *a = NULL, *b = NULL;
    struct fixture f;
    struct winnow_event ev;
    struct order gen;
    uint64_t job;

    (void)state;
    bed_init(&f.b);
    f.b.cfg.max_queue = 1;
    bed_start(&f.b);
    f.leader = worker_open(&f.b, WN__ROLE__ROLE_LEADER, "replica-0", 4);
    assert_int_equal(winnow_connect(&f.w, f.b.clients, NULL), WINNOW_OK);
    assert_int_equal(winnow_connect(&a, f.b.clients, &patient), WINNOW_OK);
    assert_int_equal(winnow_connect(&b, f.b.clients, &hasty), WINNOW_OK);
    assert_int_equal(winnow_submit(f.w, &r, &job), WINNOW_OK);
    next(f.w, WINNOW_EVENT_ACCEPTED);
    gen = take_order(f.leader, WN__ENVELOPE__BODY_GENERATE);
    assert_int_equal(winnow_submit(b, &r, &job), WINNOW_OK);
    ev = next(b, WINNOW_EVENT_BUSY);
    assert_string_equal(ev.text, "the queue is full");
    assert_true(ev.retry_ms > 0);
    assert_int_equal(winnow_submit(a, &r, &job), WINNOW_OK);
    assert_int_equal(winnow_next(a, &ev, 1200), WINNOW_TIMEOUT); /* it has been back at least once */
    give_done(f.leader, &gen, 1);
    next(f.w, WINNOW_EVENT_DONE);
    next(a, WINNOW_EVENT_ACCEPTED);
    gen = take_order(f.leader, WN__ENVELOPE__BODY_GENERATE);
    give_done(f.leader, &gen, 1);
    next(a, WINNOW_EVENT_DONE);
    winnow_close(a);
    winnow_close(b);
    winnow_close(f.w);
    bed_stop(&f.b);
}

static void no_server(void **state)
{
    const struct winnow_options o = {.connect_timeout_ms = 300};
    struct fixture *f = *state;
    struct winnow *w = NULL;
    struct winnow_event ev;

    assert_int_equal(winnow_connect(&w, "tcp://127.0.0.1:1", &o), WINNOW_ECONNECT);
    assert_null(w);
    assert_string_equal(winnow_error(NULL), "no server at tcp://127.0.0.1:1");
    assert_int_equal(winnow_connect(&w, "http://x", &o), WINNOW_EINVAL);
    bed_stop(&f->b); /* it goes away */
    assert_int_equal(winnow_next(f->w, &ev, 5000), WINNOW_ECONNECT);
    assert_non_null(strstr(winnow_error(f->w), "was lost"));
}

/* Starts the program; the test plays the workers while it runs. */
static FILE *run(const char *args, const char *endpoint)
{
    char line[1024];

    snprintf(line, sizeof(line), "WINNOW_ENDPOINT=%s %s %s 2>&1", endpoint, program, args);
    return popen(line, "r");
}

static int end_of(FILE *p, char *out, size_t size)
{
    size_t n = fread(out, 1, size - 1, p);
    int rc = pclose(p);

    out[n] = '\0';
    return WIFEXITED(rc) ? WEXITSTATUS(rc) : -1;
}

static void expect_end(FILE *p, const char *args, int want, const char *words)
{
    char out[8192];
    int code = end_of(p, out, sizeof(out));

    if (code != want || !strstr(out, words)) fail_msg("winnow %s: exit code %d, printed '%s'", args, code, out);
}

static void expect_run(const char *args, const char *endpoint, int want, const char *words)
{
    expect_end(run(args, endpoint), args, want, words);
}

static void command_line(void **state)
{
    const char *nobody = "tcp://127.0.0.1:1";
    FILE *by_flag, *by_environment;
    int64_t before;

    (void)state;
    expect_run("", nobody, 2, "Usage: winnow COMMAND");
    expect_run("--help", nobody, 0, "collect-env");
    expect_run("--version", nobody, 0, "ZeroMQ");
    expect_run("--nonsense", nobody, 2, "unknown option --nonsense");
    expect_run("ask", nobody, 2, "no question");
    expect_run("ask --help", nobody, 0, "--max-tokens N");
    expect_run("ask a b", nobody, 2, "put it in quotes");
    expect_run("ask --max-tokens x q", nobody, 2, "not a whole number");
    expect_run("ask --colour q", nobody, 2, "unknown option --colour");
    expect_run("ask --image /nowhere q", nobody, 1, "cannot open /nowhere");
    before = wn_now_us();
    by_flag = run("cancel xyz --endpoint tcp://127.0.0.1:1", "tcp://127.0.0.1:2"); /* both wait for one */
    by_environment = run("status", nobody);
    expect_end(by_flag, "cancel", 1, "no server at tcp://127.0.0.1:1");
    expect_end(by_environment, "status", 1, "no server at tcp://127.0.0.1:1");
    assert_true(wn_now_us() - before < 5000000);
    expect_run("collect-env", nobody, 0, "cpu flags");
}

/* Who waits for a server that takes nothing hears why. */
static void busy_is_said(void **state)
{
    static const char line[] = "{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\"body\":"
                               "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}}\n";
    struct bed b;
    struct end *client;
    char path[] = "/tmp/winnow-test-busy-XXXXXX", args[160];
    const int fd = mkstemp(path);
    FILE *asks, *batch;

    (void)state;
    assert_true(fd >= 0 && write(fd, line, strlen(line)) == (ssize_t)strlen(line));
    close(fd);
    bed_init(&b);
    b.cfg.max_queue = 1;
    b.cfg.no_worker_timeout_ms = 0;
    bed_start(&b);
    client = end_open(&b, false);
    submit(client, "q", NULL, "");
    expect_accepted(client, false, NULL);
    snprintf(args, sizeof(args), "run-batch -i %s -o %s.out 2>&1 & w=$!; sleep 7; kill -TERM $w; wait $w", path, path);
    batch = run(args, b.clients);
    asks = run("ask --timeout 3 q", b.clients);
    expect_end(asks, "ask", 1, "the queue is full; asking again for up to 3 s");
    expect_end(batch, "run-batch", 1, "the server takes nothing: the queue is full; asking again");
    bed_stop(&b);
    snprintf(args, sizeof(args), "%s.out", path);
    unlink(args);
    unlink(path);
}

static void command_asks(void **state)
{
    struct fixture *f = *state;
    struct order gen, enc;
    char out[4096], path[] = "/tmp/winnow-test-image-XXXXXX", args[256];
    int fd = mkstemp(path);
    FILE *p;

    assert_true(fd >= 0 && write(fd, "picture", 7) == 7);
    close(fd);
    expect_run("status", f->b.clients, 0, "ready");
    expect_run("status --json", f->b.clients, 0, "\"ready\": true");
    expect_run("status --wait 5", f->b.clients, 0, "replica-0");

    snprintf(args, sizeof(args), "ask --image %s --usage 'What is it?'", path);
    p = run(args, f->b.clients);
    gen = take_order(f->leader, WN__ENVELOPE__BODY_GENERATE);
    assert_string_equal(gen.text, "What is it?");
    enc = take_order(f->vision, WN__ENVELOPE__BODY_ENCODE);
    assert_memory_equal(f->vision->payload, "picture", 7);
    give_encoded(f->vision, &enc);
    give_tokens(f->leader, &gen, 0, 1, "a \"red\"");
    give_tokens(f->leader, &gen, 1, 2, " dot");
    give_done(f->leader, &gen, 600);
    assert_int_equal(end_of(p, out, sizeof(out)), 0);
    assert_non_null(strstr(out, "a \"red\" dot\n"));
    assert_non_null(strstr(out, "576 of 576 visual"));

    p = run("ask --json text", f->b.clients);
    gen = take_order(f->leader, WN__ENVELOPE__BODY_GENERATE);
    give_tokens(f->leader, &gen, 0, 1, "a \"red\"");
    give_done(f->leader, &gen, 600);
    assert_int_equal(end_of(p, out, sizeof(out)), 0);
    assert_non_null(strstr(out, "\"text\": \"a \\\"red\\\"\", \"finish_reason\": \"stop\""));

    p = run("ask text", f->b.clients);
    gen = take_order(f->leader, WN__ENVELOPE__BODY_GENERATE);
    give_error(f->leader, &gen, WN_ELIMIT, false, "the prompt is too long");
    assert_int_equal(end_of(p, out, sizeof(out)), 1);
    assert_string_equal(out, "winnow: the prompt is too long\n");
    (void)take_order(f->leader, WN__ENVELOPE__BODY_CANCEL);

    p = run("ask text", f->b.clients); /* one process asks, another cancels, a third looks */
    gen = take_order(f->leader, WN__ENVELOPE__BODY_GENERATE);
    snprintf(args, sizeof(args), "cancel %s", gen.id);
    expect_run(args, f->b.clients, 0, "cancelled");
    assert_int_equal(end_of(p, out, sizeof(out)), 0);
    snprintf(args, sizeof(args), "attach %s", gen.id); /* who asked has the end */
    expect_run(args, f->b.clients, 1, "was acknowledged: its result is not kept any more");
    expect_run("top --once --interval 0.2", f->b.clients, 0, "tokens each second: 0 generated");
    expect_run("status --metrics", f->b.clients, 0, "winnow:requests_total{model_name=\"\",state=\"cancelled\"} 1\n");
    unlink(path);
}

/* Log-probabilities come with the tokens, also to who attaches later; the command prints them. */
static void logprobs(void **state)
{
    struct fixture *f = *state;
    struct winnow_request r = {.prompt = "q", .logprobs = 1, .top_logprobs = 1};
    struct winnow *other = NULL;
    struct winnow_event ev;
    struct order gen;
    char out[4096];
    uint64_t job;
    FILE *p;

    assert_int_equal(winnow_submit(f->w, &r, &job), WINNOW_OK);
    gen = take_order(f->leader, WN__ENVELOPE__BODY_GENERATE);
    next(f->w, WINNOW_EVENT_ACCEPTED);
    for (uint32_t i = 0; i < 3; i++) {
        give_token_with_logprobs(f->leader, &gen, i, 40 + i, i == 0 ? "a" : i == 1 ? " b" : " c");
        ev = next(f->w, WINNOW_EVENT_TEXT);
        assert_int_equal(ev.logprobs[0].chosen.id, 40 + i);
        assert_true(ev.logprobs[0].chosen.logprob == -1.0f);
        assert_string_equal(ev.logprobs[0].chosen.text, ev.text);
        assert_int_equal(ev.logprobs[0].top_n, 1);
        assert_int_equal(ev.logprobs[0].top[0].id, 41 + i);
        assert_int_equal(ev.logprobs[0].top[0].text_bytes, 2);
    }
    assert_int_equal(winnow_connect(&other, f->b.clients, NULL), WINNOW_OK);
    assert_int_equal(winnow_attach(other, gen.id, 1, &job), WINNOW_OK);
    next(other, WINNOW_EVENT_ACCEPTED);
    ev = next(other, WINNOW_EVENT_TEXT);
    assert_int_equal(ev.token_ids_n, 2);
    assert_int_equal(ev.logprobs[0].chosen.id, 41);
    assert_string_equal(ev.logprobs[1].chosen.text, " c");
    give_done(f->leader, &gen, 3);
    next(f->w, WINNOW_EVENT_DONE);
    winnow_close(other);
    r.top_logprobs = 21;
    assert_int_equal(winnow_submit(f->w, &r, &job), WINNOW_EINVAL);
    assert_string_equal(winnow_error(f->w), "top_logprobs is 21; at most 20 are allowed");

    p = run("ask --logprobs 1 --json text", f->b.clients);
    gen = take_order(f->leader, WN__ENVELOPE__BODY_GENERATE);
    give_token_with_logprobs(f->leader, &gen, 0, 1, "a");
    give_token_with_logprobs(f->leader, &gen, 1, 2, " b");
    give_done(f->leader, &gen, 3);
    assert_int_equal(end_of(p, out, sizeof(out)), 0);
    assert_non_null(strstr(out, "\"logprobs\": {\"content\": [{\"token\": \"a\", \"logprob\": -1, \"bytes\": [97], "
                                "\"top_logprobs\": [{\"token\": \"\xef\xbf\xbd(\", \"logprob\": -0.5, "
                                "\"bytes\": [195, 40]}]}, {\"token\": \" b\""));
    p = run("ask --logprobs 1 --n 2 text", f->b.clients);
    for (int i = 0; i < 2; i++) {
        gen = take_order(f->leader, WN__ENVELOPE__BODY_GENERATE);
        give_token_with_logprobs(f->leader, &gen, 0, 1, i ? "two" : "one");
        give_done(f->leader, &gen, 3);
    }
    assert_int_equal(end_of(p, out, sizeof(out)), 0);
    assert_non_null(strstr(out, "[0] one\n  -1.0000 \"one\"  of -0.5000 \"\xef\xbf\xbd(\"\n"));
    assert_non_null(strstr(out, "[1] two\n"));
}

/* The shared library shows nothing but its interface. */
static void exports(void **state)
{
    char line[1024], name[256];
    int functions = 0;
    FILE *p;

    (void)state;
    snprintf(line, sizeof(line), "nm -D --defined-only %s", library);
    p = popen(line, "r");
    while (fgets(line, sizeof(line), p)) {
        char type;
        if (sscanf(line, "%*s %c %255s", &type, name) != 2 || type == 'A') continue;
        if (strncmp(name, "winnow_", 7) != 0) fail_msg("libwinnow exports %s", name);
        functions++;
    }
    pclose(p);
    assert_int_equal(functions, 11);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(ask_and_stream, start, stop),
        cmocka_unit_test_setup_teardown(waits_for_more, start, stop),
        cmocka_unit_test_setup_teardown(large_pictures, start, stop),
        cmocka_unit_test_setup_teardown(side_by_side, start, stop),
        cmocka_unit_test_setup_teardown(refusals, start, stop),
        cmocka_unit_test_setup_teardown(attach_and_status, start, stop),
        cmocka_unit_test_setup_teardown(acknowledges, start, stop),
        cmocka_unit_test_setup_teardown(choices, start, stop),
        cmocka_unit_test(busy),
        cmocka_unit_test_setup_teardown(logprobs, start, stop),
        cmocka_unit_test_setup_teardown(no_server, start, stop),
        cmocka_unit_test(command_line),
        cmocka_unit_test(busy_is_said),
        cmocka_unit_test_setup_teardown(command_asks, start, stop),
        cmocka_unit_test(exports),
    };
    if (argc < 3) return 2;
    program = argv[1];
    library = argv[2];
    if (argc > 3) cmocka_set_test_filter(argv[3]);
    wn_log_max = WN_LOG_ERROR;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
