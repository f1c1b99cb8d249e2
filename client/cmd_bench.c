/* client/cmd_bench.c - `winnow bench serve`: load of a known shape on a running server, and how it bore it.
 * Open loop (--request-rate): requests come when they come, however slow the server is, and each is timed from when it
 * was due, so that waiting for a place under --max-concurrency counts. Closed loop (--max-concurrency alone): the next
 * request is sent when one is answered. */
#include <libgen.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "client/chat.h"
#include "client/bench.h"
#include "client/cli.h"
#include "client/wire.h"
#include "winnow_version.h"

#define PROMPTS_MAX  1000000u
#define DATASET_MAX  ((size_t)256 << 20)
#define PROGRESS_US  200000
#define FAILURES_SAY 5

static const char usage[] = "Usage: winnow bench serve --dataset-path FILE.jsonl [OPTION]...\n"
                            "Sends requests to a running server and prints times and rates. The data set has an "
                            "object a line: \"question\" or\n"
                            "\"prompt\", and \"image\", a path beside the file. Its lines are sent in random order, "
                            "again and again if need be.";
static const struct cli_opt opts[] = {
    {"dataset-path", "FILE", "questions and pictures (also --dataset)"},
    {"dataset", "FILE", "the same"},
    {"num-prompts", "N", "requests in all [100]"},
    {"request-rate", "R", "requests a second, as a Poisson process; inf: all at once [inf]"},
    {"max-concurrency", "C", "requests at the server at a time; 0: no limit [0]"},
    {"max-tokens", "N", "length of an answer [64]"},
    {"ignore-eos", NULL, "every answer has that length"},
    {"pruning", "METHOD[:K]", "visual tokens kept: a count (64) or a share removed (0.5)"},
    CLI_PRUNING_OPTS,
    {"seed", "N", "of arrivals and order [0]"},
    {"num-warmups", "N", "requests before the clock starts [1]"},
    {"goodput", "NAME:MS[,...]", "objective of a good request: ttft, tpot, e2e in ms"},
    {"csv", "FILE", "append a row"},
    {"plot", "FILE.png", "draw how many were answered within a time"},
    {"timeout", "S", "give up when nothing comes for so long [300]"},
    CLI_ENDPOINT_OPT,
    {NULL, NULL, NULL},
};
enum {
    O_DATA,
    O_DATA2,
    O_PROMPTS,
    O_RATE,
    O_CONCURRENCY,
    O_TOKENS,
    O_IGNORE_EOS,
    O_PRUNING,
    O_CAP,
    O_SEED = O_CAP + CLI_PRUNING_N,
    O_WARMUPS,
    O_GOODPUT,
    O_CSV,
    O_PLOT,
    O_TIMEOUT,
    O_ENDPOINT
};

struct prompt {
    char *text;
    char *path;
    struct winnow_image image; /* data is owned; loaded when it is first drawn */
};

struct flight {
    uint64_t job;
    double due, first, last; /* seconds of our clock */
};

struct bench {
    const char *dataset, *endpoint, *csv, *plot;
    struct winnow_request base; /* what every request says about pruning */
    char method[WINNOW_METHOD_MAX];
    uint32_t warmups, timeout_s, seed;
    int last; /* option that was given */
    struct prompt *prompt;
    uint32_t prompts_n, prompts_room;
    uint32_t *order;
    double *arrival; /* seconds after the start */
    struct winnow *w;
    struct flight *flight;
    uint32_t flights_n, flights_room, sent, ended;
    double began;
    int64_t progress_us;
    struct bench_report r;
};

static double now_s(void)
{
    return (double)wn_now_us() / 1e6;
}

/* ---- the data set ---- */

static wn_status add_prompt(struct bench *b, const json_t *o, const char *folder, struct wn_err *err)
{
    const char *text = json_string_value(json_object_get(o, "question"));
    const char *image = json_string_value(json_object_get(o, "image"));
    struct prompt *p;
    char path[PATH_MAX];

    if (!text) text = json_string_value(json_object_get(o, "prompt"));
    if (!text) return wn_fail(err, WN_EFORMAT, "neither \"question\" nor \"prompt\" has a text");
    if (b->prompts_n == b->prompts_room) {
        const uint32_t room = b->prompts_room ? 2 * b->prompts_room : 256;
        struct prompt *more = realloc(b->prompt, room * sizeof(*more));
        if (!more) return wn_fail(err, WN_ENOMEM, "prompts");
        b->prompt = more;
        b->prompts_room = room;
    }
    p = &b->prompt[b->prompts_n];
    *p = (struct prompt){.text = strdup(text)};
    b->prompts_n++;
    if (image && snprintf(path, sizeof(path), "%s%s%s", image[0] == '/' ? "" : folder, image[0] == '/' ? "" : "/",
                          image) >= (int)sizeof(path))
        return wn_fail(err, WN_ELIMIT, "the path of the image is too long");
    if (image) p->path = strdup(path);
    return p->text && (p->path || !image) ? WN_OK : wn_fail(err, WN_ENOMEM, "prompts");
}

static wn_status load_dataset(struct bench *b, struct wn_err *err)
{
    char copy[PATH_MAX], *text = NULL, *at, *end, *folder;
    size_t bytes;
    unsigned line = 0;
    wn_status rc = chat_image_read(b->dataset, NULL, DATASET_MAX, (uint8_t **)&text, &bytes, err);

    if (rc != WN_OK) return rc;
    snprintf(copy, sizeof(copy), "%s", b->dataset);
    folder = dirname(copy);
    for (at = text; rc == WN_OK && at < text + bytes; at = end + 1) {
        json_t *o;
        end = memchr(at, '\n', (size_t)(text + bytes - at));
        if (!end) end = text + bytes;
        line++;
        if (end == at) continue;
        o = json_loadb(at, (size_t)(end - at), 0, NULL);
        rc = json_is_object(o) ? add_prompt(b, o, folder, err) : wn_fail(err, WN_EFORMAT, "no JSON object");
        json_decref(o);
        if (rc != WN_OK) wn_err_prefix(err, "%.150s: line %u", b->dataset, line);
        if (b->prompts_n == PROMPTS_MAX) break;
    }
    free(text);
    if (rc == WN_OK && b->prompts_n == 0) rc = wn_fail(err, WN_EFORMAT, "%.200s has no prompts", b->dataset);
    return rc;
}

/* Draws order and arrivals, and loads the pictures that will be sent: reading files is not what is measured. */
static wn_status prepare(struct bench *b, struct wn_err *err)
{
    struct bench_rng rng = {b->seed};
    const uint32_t used = b->r.prompts + b->warmups < b->prompts_n ? b->r.prompts + b->warmups : b->prompts_n;
    wn_status rc;

    b->order = malloc(b->prompts_n * sizeof(*b->order));
    b->arrival = malloc(b->r.prompts * sizeof(*b->arrival));
    if (!b->order || !b->arrival) return wn_fail(err, WN_ENOMEM, "arrivals");
    bench_shuffle(b->order, b->prompts_n, &rng);
    bench_arrivals(b->arrival, b->r.prompts, b->r.rate, &rng);
    for (uint32_t i = 0; i < used; i++) {
        struct prompt *p = &b->prompt[b->order[i]];
        uint8_t *data;
        if (!p->path) continue;
        rc = chat_image_read(p->path, NULL, CHAT_IMAGE_MAX, &data, &p->image.bytes, err);
        if (rc != WN_OK) return rc;
        p->image.data = data;
    }
    return WN_OK;
}

/* ---- requests ---- */

static wn_status send_one(struct bench *b, uint32_t which, double due, struct wn_err *err)
{
    const struct prompt *p = &b->prompt[b->order[which % b->prompts_n]];
    struct winnow_request q = b->base;
    struct flight f = {.due = due};
    int rc;

    q.prompt = p->text;
    q.images = &p->image;
    q.images_n = p->path != NULL;
    q.max_tokens = b->r.max_tokens;
    if (b->flights_n == b->flights_room) {
        const uint32_t room = b->flights_room ? 2 * b->flights_room : 64;
        struct flight *more = realloc(b->flight, room * sizeof(*more));
        if (!more) return wn_fail(err, WN_ENOMEM, "requests");
        b->flight = more;
        b->flights_room = room;
    }
    b->sent++;
    rc = winnow_submit(b->w, &q, &f.job);
    if (rc == WINNOW_EBUSY) { /* more on its way than the connection holds */
        b->r.busy++;
        b->ended++;
        return WN_OK;
    }
    if (rc != WINNOW_OK) return wn_fail(err, WN_EIO, "%s", winnow_error(b->w));
    b->flight[b->flights_n++] = f;
    return WN_OK;
}

/* Sends what is due; *wait_ms: until the next one is. */
static wn_status send_due(struct bench *b, uint32_t n, uint32_t concurrency, const double *arrival, uint32_t first,
                          int *wait_ms, struct wn_err *err)
{
    wn_status rc;

    *wait_ms = 100;
    while (b->sent < n && (!concurrency || b->flights_n < concurrency)) {
        const double now = now_s(), due = b->began + (arrival ? arrival[b->sent] : 0);
        if (due > now) {
            const double ms = (due - now) * 1e3;
            *wait_ms = ms < 100 ? (int)ms : 100;
            break;
        }
        if ((rc = send_one(b, first + b->sent, arrival ? due : now, err)) != WN_OK) return rc;
    }
    return WN_OK;
}

static wn_status on_end(struct bench *b, const struct flight *f, const struct winnow_event *ev, double now,
                        struct wn_err *err)
{
    const struct winnow_usage *u = &ev->usage;
    const double ttft = (f->first > 0 ? f->first : now) - f->due, e2e = now - f->due;
    const double tpot = u->completion_tokens > 1 ? (e2e - ttft) / (u->completion_tokens - 1) : 0;
    struct bench_report *r = &b->r;
    wn_status rc;

    r->done++;
    r->good += bench_slo_met(&r->slo, ttft, tpot, e2e);
    r->prompt_tokens += u->prompt_tokens;
    r->answer_tokens += u->completion_tokens;
    r->visual += u->image_tokens;
    r->visual_before += u->image_tokens_before_pruning;
    r->feature_bytes += u->bytes_embedding;
    if ((rc = bench_series_add(&r->ttft, ttft, err)) != WN_OK) return rc;
    if (u->completion_tokens > 1 && (rc = bench_series_add(&r->tpot, tpot, err)) != WN_OK) return rc;
    return bench_series_add(&r->e2e, e2e, err);
}

static wn_status on_event(struct bench *b, const struct winnow_event *ev, struct wn_err *err)
{
    const double now = now_s();
    struct flight *f = NULL;
    wn_status rc = WN_OK;

    for (uint32_t i = 0; i < b->flights_n && !f; i++)
        if (b->flight[i].job == ev->job) f = &b->flight[i];
    if (!f) return WN_OK;
    switch (ev->type) {
    case WINNOW_EVENT_TEXT:
        if (ev->token_ids_n == 0) return WN_OK;
        if (f->first > 0)
            rc = bench_series_add(&b->r.itl, now - f->last, err);
        else
            f->first = now;
        f->last = now;
        return rc;
    case WINNOW_EVENT_DONE:
        rc = on_end(b, f, ev, now, err);
        break;
    case WINNOW_EVENT_BUSY:
        b->r.busy++;
        break;
    case WINNOW_EVENT_ERROR:
        if (b->r.failed++ < FAILURES_SAY) fprintf(stderr, "winnow: a request failed: %s\n", ev->text);
        break;
    default:
        return WN_OK;
    }
    b->ended++;
    *f = b->flight[--b->flights_n];
    return rc;
}

static void show_progress(struct bench *b, uint32_t n)
{
    if (!isatty(STDERR_FILENO) || wn_now_us() < b->progress_us) return;
    b->progress_us = wn_deadline_in_us(PROGRESS_US);
    fprintf(stderr, "\r%u/%u answered, %u on their way, %.1f s\033[K", b->ended, n, b->flights_n, now_s() - b->began);
}

/* n requests, from place `first` of the order on. */
static wn_status run_load(struct bench *b, uint32_t n, uint32_t concurrency, const double *arrival, uint32_t first,
                          struct wn_err *err)
{
    double heard = now_s();
    wn_status rc = WN_OK;

    b->sent = b->ended = 0;
    b->began = now_s();
    while (rc == WN_OK && b->ended < n && !cli_stopped) {
        struct winnow_event ev;
        int wait_ms, got;
        if ((rc = send_due(b, n, concurrency, arrival, first, &wait_ms, err)) != WN_OK) break;
        if (b->flights_n == 0) heard = now_s();
        got = winnow_next(b->w, &ev, wait_ms);
        if (got == WINNOW_OK) {
            heard = now_s();
            rc = on_event(b, &ev, err);
        } else if (got != WINNOW_TIMEOUT) {
            rc = wn_fail(err, WN_EPEER, "%s", winnow_error(b->w));
        } else if (now_s() - heard > b->timeout_s) {
            rc = wn_fail(err, WN_ETIME, "nothing came for %u s", b->timeout_s);
        }
        show_progress(b, n);
    }
    if (isatty(STDERR_FILENO)) fputs("\r\033[K", stderr);
    return rc;
}

static wn_status measure(struct bench *b, struct wn_err *err)
{
    const struct bench_report before = b->r;
    wn_status rc = run_load(b, b->warmups, 1, NULL, b->r.prompts, err);

    bench_series_fini(&b->r.ttft);
    bench_series_fini(&b->r.tpot);
    bench_series_fini(&b->r.itl);
    bench_series_fini(&b->r.e2e);
    if (rc == WN_OK && b->r.done < b->warmups && !cli_stopped)
        rc = wn_fail(err, WN_EPEER, "the warm-up got %u answers to %u requests", b->r.done, b->warmups);
    b->r = before;
    if (rc == WN_OK) rc = run_load(b, b->r.prompts, b->r.concurrency, b->r.rate > 0 ? b->arrival : NULL, 0, err);
    b->r.duration_s = now_s() - b->began;
    bench_series_sort(&b->r.ttft);
    bench_series_sort(&b->r.tpot);
    bench_series_sort(&b->r.itl);
    bench_series_sort(&b->r.e2e);
    return rc;
}

/* ---- start and end ---- */

static bool take_rate(struct bench *b, const char *value)
{
    float rate = 0;

    b->r.rate = 0;
    if (strcmp(value, "inf") == 0) return true;
    if (!cli_float("request-rate", value, 1e-6f, 1e6f, &rate)) return false;
    b->r.rate = (double)rate;
    return true;
}

static bool take_goodput(struct bench *b, const char *value)
{
    if (bench_slo_parse(&b->r.slo, value)) return true;
    fprintf(stderr, "winnow: --goodput: '%.60s' is not ttft:MS, tpot:MS or e2e:MS\n", value);
    return false;
}

static bool take_option(void *ctx, int option, const char *value)
{
    struct bench *b = ctx;

    if (option == CLI_PLAIN && b->last == O_GOODPUT) return take_goodput(b, value); /* --goodput ttft:500 e2e:3000 */
    b->last = option;
    switch (option) {
    case CLI_PLAIN:
        fprintf(stderr, "winnow: '%.80s' is no option of bench serve; --help lists them\n", value);
        return false;
    case O_DATA:
    case O_DATA2:
        b->dataset = b->r.dataset = value;
        return true;
    case O_PROMPTS:
        return cli_count("num-prompts", value, PROMPTS_MAX, &b->r.prompts);
    case O_RATE:
        return take_rate(b, value);
    case O_CONCURRENCY:
        return cli_u32("max-concurrency", value, PROMPTS_MAX, &b->r.concurrency);
    case O_TOKENS:
        return cli_count("max-tokens", value, WN_EMITTED_MAX, &b->r.max_tokens);
    case O_IGNORE_EOS:
        b->base.ignore_eos = 1;
        return true;
    case O_PRUNING:
        b->r.pruning = value;
        b->base.pruning_method = b->method;
        return cli_pruning(value, b->method, &b->base.pruning_keep, &b->base.pruning_rate);
    case O_SEED:
        return cli_u32("seed", value, UINT32_MAX, &b->seed);
    case O_WARMUPS:
        return cli_u32("num-warmups", value, 10000, &b->warmups);
    case O_GOODPUT:
        return take_goodput(b, value);
    case O_CSV:
        b->csv = value;
        return true;
    case O_PLOT:
        b->plot = value;
        return true;
    case O_TIMEOUT:
        return cli_u32("timeout", value, 86400, &b->timeout_s);
    case O_ENDPOINT:
        b->endpoint = value;
        return true;
    default:
        return cli_pruning_option(&b->base, option - O_CAP, value);
    }
}

static int parse(struct bench *b, int argc, char **argv)
{
    struct cli_args args = {.argc = argc, .argv = argv, .opts = opts, .usage = usage};
    const int code = cli_take(&args, take_option, b);

    if (code >= 0) return code;
    if (!b->dataset) {
        fprintf(stderr, "winnow: bench serve wants --dataset-path FILE\n");
        return CLI_USAGE;
    }
    b->r.seed = b->seed;
    return -1;
}

static char *model_name(struct winnow *w)
{
    char *text = winnow_status_json(w, 5000), *name = NULL;
    json_t *root = text ? json_loads(text, 0, NULL) : NULL;
    const char *model = json_string_value(json_object_get(root, "model"));

    if (model) name = strdup(model);
    json_decref(root);
    free(text);
    return name;
}

static int run_and_report(struct bench *b)
{
    struct wn_err err = {0};
    char *model = NULL;
    wn_status rc;

    if (!cli_can_write(b->csv) || !cli_can_write(b->plot)) return CLI_FAILED;
    if ((rc = load_dataset(b, &err)) != WN_OK || (rc = prepare(b, &err)) != WN_OK) {
        fprintf(stderr, "winnow: %s\n", err.text);
        return CLI_FAILED;
    }
    if (!(b->w = cli_connect(b->endpoint))) return CLI_FAILED;
    model = model_name(b->w);
    b->r.model = model ? model : "";
    cli_catch_signals();
    rc = measure(b, &err);
    if (rc == WN_OK) bench_report_print(&b->r, stdout);
    if (rc == WN_OK && b->csv && !cli_stopped) rc = bench_report_csv(&b->r, b->csv, WN_COMMIT, &err);
    if (rc == WN_OK && b->plot && !cli_stopped) rc = bench_report_plot(&b->r, b->plot, &err);
    if (rc != WN_OK)
        fprintf(stderr, "winnow: %s\n", err.text);
    else if (cli_stopped)
        fprintf(stderr, "winnow: stopped early; nothing was written\n");
    free(model);
    return rc == WN_OK && !cli_stopped && b->r.done == b->r.prompts ? CLI_OK : CLI_FAILED;
}

static int bench_serve(int argc, char **argv)
{
    struct bench b = {.timeout_s = 300, .warmups = 1};
    int code;

    b.r = (struct bench_report){.pruning = "server's default", .prompts = 100, .max_tokens = 64};
    if ((code = parse(&b, argc, argv)) < 0) code = run_and_report(&b);
    winnow_close(b.w);
    for (uint32_t i = 0; i < b.prompts_n; i++) {
        free(b.prompt[i].text);
        free(b.prompt[i].path);
        free((void *)(uintptr_t)b.prompt[i].image.data);
    }
    free(b.prompt);
    free(b.order);
    free(b.arrival);
    free(b.flight);
    bench_series_fini(&b.r.ttft);
    bench_series_fini(&b.r.tpot);
    bench_series_fini(&b.r.itl);
    bench_series_fini(&b.r.e2e);
    return code;
}

int cmd_bench(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "serve") == 0) return bench_serve(argc - 1, argv + 1);
    if (argc > 1 && strcmp(argv[1], "wire") == 0) return bench_wire(argc - 1, argv + 1);
    if (argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        puts("Usage: winnow bench serve|link|wire [OPTION]...\n"
             "serve: measures a running server under load. link: latency and bandwidth between ranks.\n"
             "wire: what the network costs a running server's requests.\n"
             "Each has its options: winnow bench serve --help.");
        return CLI_OK;
    }
    fprintf(stderr, "winnow: bench wants what to measure: serve, link or wire\n");
    return CLI_USAGE;
}
