/* client/cmd_batch.c - `winnow run-batch`: a file of requests, many at a time, answers line by line into another file.
 * One thread. What was not answered is sent again after BUSY, a lost connection or in the next run; its idempotency key
 * lets the server give the answer of the job that it already has. */
#include <libgen.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "client/batch.h"
#include "client/cli.h"

#define CONCURRENCY_MAX 4096
#define SYNC_LINES      64
#define SYNC_US         1000000
#define PROGRESS_US     200000
#define WAIT_MS         200
#define BUSY_SAY_US     5000000  /* until it is said that the server takes nothing */
#define BUSY_AGAIN_US   60000000 /* and said again */
#define BUSY_MS_MAX     10000u
#define CONNECT_MS      3000
#define SAY_MAX         20 /* errors told on standard error */
#define TRIES_MAX       4  /* of a request that fails through no fault of its own */

static const char usage[] =
    "Usage: winnow run-batch -i IN.jsonl -o OUT.jsonl [OPTION]...\n"
    "Answers a file of requests in OpenAI's batch shape. Run it again with the same files to go on where it ended:\n"
    "what has a line in OUT.jsonl is finished, be it an answer or an error.";
static const struct cli_opt opts[] = {
    {"input-file", "FILE", "-i: requests, one JSON object a line"},
    {"output-file", "FILE", "-o: answers are appended here"},
    {"concurrency", "N", "requests at the server at a time [32]"},
    {"image-root", "DIR", "where relative paths of images begin [the folder of the input]"},
    {"pruning", "METHOD[:K]", "of requests that say nothing of it: a count (64) or a share removed (0.5)"},
    CLI_PRUNING_OPTS,
    {"reconnect-timeout", "S", "how long to look for a server that went away [300]"},
    CLI_ENDPOINT_OPT,
    {NULL, NULL, NULL},
};
enum { O_IN, O_OUT, O_CONCURRENCY, O_ROOT, O_PRUNING, O_CAP, O_RECONNECT = O_CAP + CLI_PRUNING_N, O_ENDPOINT };

/* A request that was taken from the input and has no line in the output yet. */
struct slot {
    bool used, sent;
    uint32_t item, tries;
    uint64_t job;
    int64_t due_us; /* not to be sent before */
    char *custom_id;
    struct chat_answer answer; /* as far as it has come */
};

struct batch {
    const char *in, *out, *endpoint;
    char *root;
    struct winnow_request base; /* what requests that say nothing about pruning get */
    char method[WINNOW_METHOD_MAX];
    uint32_t concurrency, reconnect_s;
    struct winnow *w;
    struct batch_files files;
    struct slot *slot;
    uint32_t next, done, failed, used; /* done: also the failed and those of earlier runs */
    int64_t began_us, hold_us, sync_us, progress_us;
    int64_t heard_us; /* when the server last took or answered something, or we said that it does not */
    uint32_t unsynced, said;
    char written[SYNC_LINES * WN_CHOICES_MAX][WINNOW_JOB_ID_MAX]; /* jobs whose lines are not on the disk yet */
    uint32_t written_n;
    uint64_t prompt_tokens, answer_tokens, visual, visual_before;
    char *model;
    bool model_warned, progress;
    bool pruned; /* the command line says how: it is tried before it spoils every line */
};

/* A result is acknowledged when its line is on the disk (sync_output). */
static const struct winnow_options connect_options = {.connect_timeout_ms = CONNECT_MS, .keep_results = 1};

/* ---- results ---- */

static wn_status sync_output(struct batch *b, bool now, struct wn_err *err)
{
    if (!b->unsynced || (!now && b->unsynced < SYNC_LINES && wn_now_us() - b->sync_us < SYNC_US)) return WN_OK;
    if (fdatasync(b->files.out) != 0) return wn_fail(err, WN_EIO, "cannot write %.200s to the disk", b->out);
    b->unsynced = 0;
    b->sync_us = wn_now_us();
    for (; b->written_n > 0; b->written_n--) /* what does not get through expires */
        if (b->w) (void)!winnow_acknowledge(b->w, b->written[b->written_n - 1]);
    return WN_OK;
}

static void slot_clear(struct slot *s)
{
    chat_answer_fini(&s->answer);
    free(s->custom_id);
    *s = (struct slot){0};
}

/* Its result is on its way to the disk. */
static void note_written(struct batch *b, const char *job_id)
{
    if (job_id && job_id[0] && b->written_n < sizeof(b->written) / sizeof(b->written[0]))
        snprintf(b->written[b->written_n++], WINNOW_JOB_ID_MAX, "%s", job_id);
}

/* Writes the line and frees the slot. */
static wn_status finish(struct batch *b, struct slot *s, struct batch_result *r, struct wn_err *err)
{
    char id[BATCH_ID_MAX], *line;
    size_t bytes;
    wn_status rc;

    batch_item_id(&b->files.item[s->item], id);
    r->id = id;
    r->custom_id = s->custom_id;
    r->model = b->model;
    r->created_s = (int64_t)time(NULL);
    if (!(line = batch_result_line(r, &bytes))) return wn_fail(err, WN_ENOMEM, "an output line");
    rc = batch_files_append(&b->files, line, bytes, err);
    free(line);
    if (rc != WN_OK) return rc;
    b->files.item[s->item].done = true;
    b->unsynced++;
    if (!r->answer) note_written(b, r->job_id);
    for (uint32_t i = 0; r->answer && i < r->answer->choices_n; i++) note_written(b, r->answer->choice[i].job_id);
    b->done++;
    b->failed += !r->answer;
    slot_clear(s);
    b->used--;
    return WN_OK;
}

static wn_status finish_bad(struct batch *b, struct slot *s, wn_status code, const char *why, int http_status,
                            const char *job_id, struct wn_err *err)
{
    const char *word = http_status >= 500                       ? "server_error"
                       : code == WN_EUNSUPP                     ? "unsupported"
                       : code == WN_ECANCEL                     ? "cancelled"
                       : code == WN_EFORMAT && http_status == 0 ? "invalid_line"
                                                                : "invalid_request";
    struct batch_result r = {.error_code = word, .error_text = why, .http_status = http_status, .job_id = job_id};

    if (b->said++ < SAY_MAX)
        fprintf(stderr, "%swinnow: %s: line %u: %s\n", b->progress ? "\r\033[K" : "", b->in,
                b->files.item[s->item].line, why);
    if (b->said == SAY_MAX) fprintf(stderr, "winnow: the other errors are in %s only\n", b->out);
    return finish(b, s, &r, err);
}

/* One of its answers cannot be had, so nobody waits for the others. */
static wn_status fail_request(struct batch *b, struct slot *s, wn_status code, const char *why, int http_status,
                              const char *job_id, struct wn_err *err)
{
    if (s->answer.choices_n > 1) (void)!winnow_cancel(b->w, s->job);
    return finish_bad(b, s, code, why, http_status, job_id, err);
}

/* ---- requests ---- */

static void check_model(struct batch *b, const char *asked, uint32_t line)
{
    const char *have = b->model ? b->model : "", *tail = strrchr(have, '/');

    if (!asked || !have[0] || b->model_warned || strcmp(asked, have) == 0 || (tail && strcmp(asked, tail + 1) == 0))
        return;
    b->model_warned = true;
    fprintf(stderr, "winnow: %s: line %u asks for model '%.80s'; the server has '%.80s', which answers all lines\n",
            b->in, line, asked, have);
}

static void take_pruning(struct winnow_request *q, const struct winnow_request *from)
{
    q->pruning_method = from->pruning_method;
    q->pruning_keep = from->pruning_keep;
    q->pruning_rate = from->pruning_rate;
    q->pruning_cap = from->pruning_cap;
    q->pruning_position = from->pruning_position;
    q->pruning_projected = from->pruning_projected;
    q->pruning_setting = from->pruning_setting;
    q->pruning_seed = from->pruning_seed;
    q->pruning_options = from->pruning_options;
}

/* Sends what slot s holds. A request that makes no sense gets its line at once. */
static wn_status submit(struct batch *b, struct slot *s, struct wn_err *err)
{
    const struct batch_item *item = &b->files.item[s->item];
    struct batch_request r = {0};
    struct wn_err bad = {0};
    char *line = NULL, key[65];
    int sent;
    wn_status rc = batch_item_read(&b->files, s->item, &line, err), code;

    if (rc != WN_OK) return rc;
    code = batch_line_parse(&r, line, item->bytes, &bad);
    if (r.custom_id && !s->custom_id && !(s->custom_id = strdup(r.custom_id)))
        code = wn_fail(&bad, WN_ENOMEM, "line");
    if (code == WN_OK) code = chat_images_read(&r.chat, b->root, &bad);
    if (code == WN_ENOMEM) {
        rc = wn_fail(err, code, "%s", bad.text); /* ours, not the line's */
        goto out;
    }
    if (code != WN_OK) {
        rc = finish_bad(b, s, code, bad.text, 0, NULL, err);
        goto out;
    }
    check_model(b, r.chat.model, item->line);
    batch_key(&r, line, item->bytes, key);
    if (!r.chat.pruned) take_pruning(&r.chat.request, &b->base);
    r.chat.request.idempotency_key = key;
    s->job = 0;
    chat_answer_fini(&s->answer);
    s->answer.choices_n = r.chat.request.n ? r.chat.request.n : 1;
    sent = winnow_submit(b->w, &r.chat.request, &s->job);
    if (sent == WINNOW_EINVAL) {
        snprintf(bad.text, sizeof(bad.text), "%s", winnow_error(b->w));
        rc = finish_bad(b, s, WN_EINVAL, bad.text, 0, NULL, err);
    } else if (sent == WINNOW_EBUSY) {
        b->hold_us = wn_deadline_in_us(100000);
    } else if (sent == WINNOW_OK) {
        s->sent = true;
    } else if (sent != WINNOW_ECONNECT) { /* a lost connection shows at the next wait */
        rc = wn_fail(err, WN_EIO, "%s", winnow_error(b->w));
    }
out:
    free(line);
    batch_request_fini(&r);
    return rc;
}

static wn_status fill(struct batch *b, struct wn_err *err)
{
    const int64_t now = wn_now_us();
    wn_status rc;

    for (uint32_t i = 0; i < b->concurrency && now >= b->hold_us && !cli_stopped; i++) {
        struct slot *s = &b->slot[i];
        if (!s->used) {
            while (b->next < b->files.items_n && b->files.item[b->next].done) b->next++;
            if (b->next == b->files.items_n) continue;
            *s = (struct slot){.used = true, .item = b->next++};
            b->used++;
        }
        if (s->sent || s->due_us > now) continue;
        if ((rc = submit(b, s, err)) != WN_OK) return rc;
    }
    return WN_OK;
}

/* ---- events ---- */

static struct slot *slot_of(struct batch *b, uint64_t job)
{
    for (uint32_t i = 0; job && i < b->concurrency; i++)
        if (b->slot[i].used && b->slot[i].sent && b->slot[i].job == job) return &b->slot[i];
    return NULL;
}

/* An answer has ended; with the last one the line is written. */
static wn_status on_done(struct batch *b, struct slot *s, const struct winnow_event *ev, struct wn_err *err)
{
    const struct winnow_usage *u = &s->answer.usage;
    struct batch_result r = {.answer = &s->answer};
    wn_status rc;

    if (!chat_answered(ev))
        return fail_request(b, s, WN_ECANCEL, "the job was cancelled at the server", 499, ev->job_id, err);
    if ((rc = chat_answer_take(&s->answer, ev, err)) != WN_OK || s->answer.done < s->answer.choices_n) return rc;
    b->prompt_tokens += u->prompt_tokens;
    b->answer_tokens += u->completion_tokens;
    b->visual += u->image_tokens;
    b->visual_before += u->image_tokens_before_pruning;
    return finish(b, s, &r, err);
}

/* Now and then a server is busy; one that takes nothing for long has a reason that somebody should know. */
static void say_busy(struct batch *b, const char *why)
{
    const int64_t now = wn_now_us();

    if (now - b->heard_us < BUSY_SAY_US) return;
    b->heard_us = now + BUSY_AGAIN_US - BUSY_SAY_US;
    fprintf(stderr, "%swinnow: the server takes nothing: %s; asking again\n", b->progress ? "\r\033[K" : "", why);
}

static wn_status on_event(struct batch *b, const struct winnow_event *ev, struct wn_err *err)
{
    struct slot *s = slot_of(b, ev->job);
    /* a job that it had once and does not know any more is one that a server without a journal took with it */
    const bool servers_fault = ev->error_code >= WN_ENOMEM || (ev->error_code == WN_ENOENT && ev->job_id[0]);

    if (!s) {
        if (ev->type == WINNOW_EVENT_ERROR && !ev->job) fprintf(stderr, "winnow: the server says: %s\n", ev->text);
        return WN_OK;
    }
    if (ev->choice >= s->answer.choices_n) return WN_OK;
    if (ev->type == WINNOW_EVENT_ACCEPTED || ev->type == WINNOW_EVENT_DONE) b->heard_us = wn_now_us();
    switch (ev->type) {
    case WINNOW_EVENT_TEXT:
        return chat_answer_take(&s->answer, ev, err);
    case WINNOW_EVENT_DONE:
        return on_done(b, s, ev, err);
    case WINNOW_EVENT_BUSY:
        say_busy(b, ev->text);
        s->sent = false;
        b->hold_us = wn_deadline_in_us((int64_t)(ev->retry_ms < BUSY_MS_MAX ? ev->retry_ms : BUSY_MS_MAX) * 1000);
        return WN_OK;
    case WINNOW_EVENT_ERROR:
        if (servers_fault && ++s->tries < TRIES_MAX) {
            s->sent = false;
            s->due_us = wn_deadline_in_us((int64_t)1000000 << s->tries);
            return WN_OK;
        }
        return fail_request(b, s, (wn_status)ev->error_code, ev->text, servers_fault ? 500 : 400,
                            ev->job_id[0] ? ev->job_id : NULL, err);
    default:
        return WN_OK;
    }
}

static void learn_model(struct batch *b)
{
    char *text = winnow_status_json(b->w, 5000);
    json_t *root = text ? json_loads(text, 0, NULL) : NULL;
    const char *model = json_string_value(json_object_get(root, "model"));

    if (model) {
        free(b->model);
        b->model = strdup(model);
    }
    json_decref(root);
    free(text);
}

/* The library has waited for the server already. All that was on its way goes out again. */
static wn_status reconnect(struct batch *b, struct wn_err *err)
{
    const int64_t deadline = wn_deadline_in_us((int64_t)b->reconnect_s * 1000000);

    fprintf(stderr, "%swinnow: %s; looking for it\n", b->progress ? "\r\033[K" : "", winnow_error(b->w));
    winnow_close(b->w);
    b->w = NULL;
    for (uint32_t i = 0; i < b->concurrency; i++) b->slot[i].sent = false;
    while (!cli_stopped && winnow_connect(&b->w, cli_endpoint(b->endpoint), &connect_options) != WINNOW_OK) {
        if (wn_deadline_passed(deadline)) return wn_fail(err, WN_EPEER, "%s", winnow_error(NULL));
        usleep(200000);
    }
    return WN_OK;
}

static void show_progress(struct batch *b)
{
    const double seconds = (double)(wn_now_us() - b->began_us) / 1e6;
    const double rate = (b->done - b->files.before_n) / (seconds > 0 ? seconds : 1);
    const uint32_t left = b->files.items_n - b->done;
    char eta[32] = "--";

    if (!b->progress || wn_now_us() < b->progress_us) return;
    b->progress_us = wn_deadline_in_us(PROGRESS_US);
    if (rate > 0) {
        const unsigned long s = (unsigned long)(left / rate);
        snprintf(eta, sizeof(eta), "%lu:%02lu:%02lu", s / 3600, s / 60 % 60, s % 60);
    }
    fprintf(stderr, "\r%u/%u done, %.1f/s, %u failed, ETA %s\033[K", b->done, b->files.items_n, rate, b->failed, eta);
}

static wn_status run(struct batch *b, struct wn_err *err)
{
    wn_status rc = WN_OK;

    while (rc == WN_OK && b->done < b->files.items_n) {
        struct winnow_event ev;
        int got;
        if ((rc = fill(b, err)) != WN_OK) break;
        show_progress(b);
        if ((rc = sync_output(b, false, err)) != WN_OK || b->done == b->files.items_n) break;
        got = winnow_next(b->w, &ev, cli_stopped ? 0 : WAIT_MS);
        if (got == WINNOW_OK)
            rc = on_event(b, &ev, err);
        else if (cli_stopped)
            break;
        else if (got != WINNOW_TIMEOUT && got != WINNOW_ENOMEM)
            rc = reconnect(b, err);
        else if (got == WINNOW_ENOMEM)
            rc = wn_fail(err, WN_ENOMEM, "%s", winnow_error(b->w));
        if (!b->w) break; /* stopped while there was no server */
    }
    return rc;
}

/* ---- start and end ---- */

static bool take_option(void *ctx, int option, const char *value)
{
    struct batch *b = ctx;

    switch (option) {
    case CLI_PLAIN:
        fprintf(stderr, "winnow: '%.80s' is no option of run-batch; --help lists them\n", value);
        return false;
    case O_IN: b->in = value; return true;
    case O_OUT: b->out = value; return true;
    case O_CONCURRENCY: return cli_count("concurrency", value, CONCURRENCY_MAX, &b->concurrency);
    case O_ROOT: return (b->root = strdup(value)) != NULL;
    case O_RECONNECT: return cli_u32("reconnect-timeout", value, 86400 * 30, &b->reconnect_s);
    case O_ENDPOINT: b->endpoint = value; return true;
    case O_PRUNING:
        b->pruned = true;
        b->base.pruning_method = b->method;
        return cli_pruning(value, b->method, &b->base.pruning_keep, &b->base.pruning_rate);
    default: b->pruned = true; return cli_pruning_option(&b->base, option - O_CAP, value);
    }
}

static int parse(struct batch *b, int argc, char **argv)
{
    struct cli_args args = {.argc = argc, .argv = argv, .opts = opts, .usage = usage};
    int code;

    for (int i = 1; i < argc; i++) { /* the two short options of every run-batch */
        if (strcmp(argv[i], "-i") == 0) argv[i] = (char *)"--input-file";
        if (strcmp(argv[i], "-o") == 0) argv[i] = (char *)"--output-file";
    }
    if ((code = cli_take(&args, take_option, b)) >= 0) return code;
    if (!b->in || !b->in[0] || !b->out || !b->out[0]) {
        fprintf(stderr, "winnow: run-batch wants -i IN.jsonl and -o OUT.jsonl\n");
        return CLI_USAGE;
    }
    return -1;
}

static bool default_root(struct batch *b)
{
    char path[PATH_MAX];

    if (b->root) return true;
    if (snprintf(path, sizeof(path), "%s", b->in) < (int)sizeof(path)) b->root = strdup(dirname(path));
    return b->root != NULL;
}

static int summary(const struct batch *b, wn_status rc, const struct wn_err *err)
{
    const double seconds = (double)(wn_now_us() - b->began_us) / 1e6;
    const uint32_t now = b->done - b->files.before_n;

    if (b->progress) fputs("\r\033[K", stderr);
    if (rc != WN_OK) fprintf(stderr, "winnow: %s\n", err->text);
    if (b->files.items_n == 0) fprintf(stderr, "winnow: %s has no requests\n", b->in);
    if (b->files.strangers)
        fprintf(stderr, "winnow: %u lines of %s are of requests that are not in %s\n", b->files.strangers, b->out,
                b->in);
    if (b->done < b->files.items_n) {
        fprintf(stderr, "winnow: %u of %u done; run again to go on\n", b->done, b->files.items_n);
        return CLI_FAILED;
    }
    fprintf(stderr, "winnow: %u of %u done, %u failed; %u in this run, in %.1f s, %.2f/s", b->done, b->files.items_n,
            b->failed, now, seconds, seconds > 0 ? now / seconds : 0);
    fprintf(stderr, "; %llu + %llu tokens, %llu of %llu visual\n", (unsigned long long)b->prompt_tokens,
            (unsigned long long)b->answer_tokens, (unsigned long long)b->visual,
            (unsigned long long)b->visual_before);
    return rc != WN_OK || b->failed ? CLI_FAILED : CLI_OK;
}

static int run_and_report(struct batch *b)
{
    struct wn_err err = {0}, sync_err = {0};
    wn_status rc;

    if (batch_files_open(&b->files, b->in, b->out, &err) != WN_OK) {
        fprintf(stderr, "winnow: %s\n", err.text);
        return CLI_FAILED;
    }
    b->done = b->files.before_n;
    b->failed = b->files.before_failed;
    b->began_us = b->sync_us = b->heard_us = wn_now_us();
    b->progress = isatty(STDERR_FILENO);
    if (b->done < b->files.items_n) {
        if (winnow_connect(&b->w, cli_endpoint(b->endpoint), &connect_options) != WINNOW_OK) {
            fprintf(stderr, "winnow: %s\n", winnow_error(NULL));
            return CLI_FAILED;
        }
        learn_model(b);
    }
    cli_catch_signals();
    if (b->w && b->pruned && !cli_try(b->w, &b->base, "pruning", b->reconnect_s)) return CLI_FAILED;
    rc = run(b, &err);
    if (sync_output(b, true, &sync_err) != WN_OK && rc == WN_OK) {
        err = sync_err;
        rc = err.code;
    }
    return summary(b, rc, &err);
}

int cmd_run_batch(int argc, char **argv)
{
    struct batch b = {.concurrency = 32, .reconnect_s = 300, .files = {.in = -1, .out = -1}};
    int code = parse(&b, argc, argv);

    if (code >= 0) goto out;
    b.slot = calloc(b.concurrency, sizeof(*b.slot));
    if (!b.slot || !default_root(&b)) {
        fprintf(stderr, "winnow: out of memory\n");
        code = CLI_FAILED;
        goto out;
    }
    code = run_and_report(&b);
out:
    winnow_close(b.w);
    for (uint32_t i = 0; b.slot && i < b.concurrency; i++) slot_clear(&b.slot[i]);
    free(b.slot);
    batch_files_close(&b.files);
    free(b.root);
    free(b.model);
    return code;
}
