/* client/cmd_ask.c - `winnow ask`: one job, its answer on standard output as it comes. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "client/cli.h"
#include "proto/codec.h"

#define IMAGE_MAX   ((size_t)256 << 20)
#define STOP_N      WN_STOP_MAX
#define BUSY_SAY_US 2000000 /* until who waits is told why */

static const char usage[] = "Usage: winnow ask [--image FILE]... [OPTION]... QUESTION\n"
                            "Asks one question and prints the answer as it comes. The question - is read from standard "
                            "input.";
static const struct cli_opt opts[] = {
    {"image", "FILE", "a JPEG, PNG or WebP picture; several are allowed"},
    {"max-tokens", "N", "length of the answer"},
    {"temperature", "T", "0: always the likeliest token [0]"},
    {"top-k", "N", "choose among the N likeliest tokens"},
    {"top-p", "P", "choose among the likeliest tokens that together have this share"},
    {"repetition-penalty", "R", "above 1: repeat less"},
    {"seed", "N", "seed of the random choices"},
    {"stop", "TEXT", "end the answer before this text; several are allowed"},
    {"pruning", "METHOD[:K]", "how visual tokens are chosen, and what is kept: a count (64) or a share removed (0.5)"},
    CLI_PRUNING_OPTS,
    {"n", "N", "how many answers, each from a seed of its own [1]"},
    {"logprobs", "K", "print each token's log-probability, and those of the K likeliest"},
    {"stop-token", "ID", "end the answer at this token; several are allowed"},
    {"ignore-eos", NULL, "go on to --max-tokens, also after an end-of-sequence token"},
    {"deadline", "MS", "the server ends the job when it has had it for so long, in milliseconds"},
    {"json", NULL, "print one JSON object at the end"},
    {"usage", NULL, "print a line with the costs, also when standard error is no terminal"},
    {"timeout", "S", "give up after so many seconds [600]"},
    CLI_ENDPOINT_OPT,
    {NULL, NULL, NULL},
};
enum { O_IMAGE, O_MAX, O_TEMPERATURE, O_TOPK, O_TOPP, O_PENALTY, O_SEED, O_STOP, O_PRUNING, O_CAP,
       O_N = O_CAP + CLI_PRUNING_N, O_LOGPROBS, O_STOP_TOKEN, O_IGNORE_EOS, O_DEADLINE, O_JSON, O_USAGE,
       O_TIMEOUT, O_ENDPOINT };

struct ask {
    struct winnow_request request;
    struct winnow_image images[WN_IMAGES_MAX];
    const char *stop[STOP_N];
    uint32_t stop_ids[STOP_N];
    struct scores {
        FILE *f; /* open_memstream of text; NULL: none yet */
        char *text;
        size_t bytes;
        bool any;
    } scores[WN_CHOICES_MAX]; /* log-probabilities of each answer */
    char method[WINNOW_METHOD_MAX];
    const char *endpoint;
    char *question; /* that came on standard input; owned */
    bool json, usage, unreadable; /* a picture, or standard input */
    uint32_t timeout_s;
    int64_t began_us;
    bool said; /* that the server is busy */
};

static bool parse_pruning(struct ask *a, const char *text)
{
    a->request.pruning_method = a->method;
    return cli_pruning(text, a->method, &a->request.pruning_keep, &a->request.pruning_rate);
}

static bool add_image(struct ask *a, const char *path)
{
    struct winnow_image *im = &a->images[a->request.images_n];

    if (a->request.images_n == WN_IMAGES_MAX) {
        fprintf(stderr, "winnow: at most %d images are allowed\n", WN_IMAGES_MAX);
        return false;
    }
    im->data = cli_read_file(path, IMAGE_MAX, &im->bytes);
    a->request.images_n += im->data != NULL;
    return im->data != NULL;
}

/* The question from standard input, without its last newline. */
static bool read_question(struct ask *a)
{
    size_t n;

    if (!(a->question = cli_read_file("/dev/stdin", WN_PROMPT_BYTES_MAX + 1, &n))) return false;
    if (memchr(a->question, '\0', n)) {
        fprintf(stderr, "winnow: the question on standard input has a zero character\n");
        return false;
    }
    a->question[n - (a->question[n - 1] == '\n')] = '\0'; /* there is room: the reader met the end of the file */
    a->request.prompt = a->question;
    return true;
}

static bool set_question(struct ask *a, const char *text)
{
    if (a->request.prompt) {
        fprintf(stderr, "winnow: more than one question: put it in quotes\n");
        return false;
    }
    a->request.prompt = text;
    if (strcmp(text, "-") == 0) a->unreadable = !read_question(a);
    return !a->unreadable;
}

static bool take_option(void *ctx, int option, const char *value)
{
    struct ask *a = ctx;
    struct winnow_request *r = &a->request;
    uint32_t number = 0;
    bool good = true;

    switch (option) {
    case CLI_PLAIN: return set_question(a, value);
    case O_IMAGE: a->unreadable = !add_image(a, value); return !a->unreadable;
    case O_MAX: return cli_count("max-tokens", value, WN_EMITTED_MAX, &r->max_tokens);
    case O_TEMPERATURE: return cli_float("temperature", value, 0, 100, &r->temperature);
    case O_TOPK: return cli_u32("top-k", value, UINT32_MAX, &r->top_k);
    case O_TOPP: return cli_float("top-p", value, 0, 1, &r->top_p);
    case O_PENALTY: return cli_float("repetition-penalty", value, 0, 10, &r->repetition_penalty);
    case O_SEED:
        good = cli_u32("seed", value, UINT32_MAX, &number);
        r->seed = number;
        return good;
    case O_STOP:
        good = r->stop_n < STOP_N;
        if (good) a->stop[r->stop_n++] = value;
        else fprintf(stderr, "winnow: at most %d stop texts are allowed\n", STOP_N);
        return good;
    case O_PRUNING: return parse_pruning(a, value);
    case O_N: return cli_count("n", value, WN_CHOICES_MAX, &r->n);
    case O_LOGPROBS: r->logprobs = 1; return cli_u32("logprobs", value, WN_LOGPROBS_MAX, &r->top_logprobs);
    case O_STOP_TOKEN:
        good = r->stop_token_ids_n < STOP_N;
        if (!good) fprintf(stderr, "winnow: at most %d stop tokens are allowed\n", STOP_N);
        return good && cli_u32("stop-token", value, UINT32_MAX, &a->stop_ids[r->stop_token_ids_n++]);
    case O_IGNORE_EOS: r->ignore_eos = 1; return true;
    case O_DEADLINE:
        good = cli_u32("deadline", value, UINT32_MAX, &number);
        r->deadline_ms = number;
        return good;
    case O_JSON: a->json = true; return true;
    case O_USAGE: a->usage = true; return true;
    case O_TIMEOUT: return cli_u32("timeout", value, 86400, &a->timeout_s);
    case O_ENDPOINT: a->endpoint = value; return true;
    default: return cli_pruning_option(r, option - O_CAP, value);
    }
}

/* -1: go on, else the exit code. */
static int parse(struct ask *a, int argc, char **argv)
{
    struct cli_args args = {.argc = argc, .argv = argv, .opts = opts, .usage = usage};
    int code;

    a->timeout_s = 600;
    a->request.images = a->images;
    a->request.stop = a->stop;
    a->request.stop_token_ids = a->stop_ids;
    if ((code = cli_take(&args, take_option, a)) >= 0) return a->unreadable ? CLI_FAILED : code;
    if (!a->request.prompt) {
        fprintf(stderr, "winnow: no question; --help says how to ask one\n");
        return CLI_USAGE;
    }
    a->request.quiet = (a->json || a->request.n > 1) && !a->request.logprobs;
    return -1;
}

/* Log-probabilities of the tokens that came, kept for the end. */
static void keep_scores(struct ask *a, const struct winnow_event *ev)
{
    struct scores *s = &a->scores[ev->choice];

    if (!ev->logprobs || (!s->f && !(s->f = open_memstream(&s->text, &s->bytes)))) return;
    if (a->json) cli_logprobs_json(s->f, ev, &s->any);
    else cli_logprobs_table(s->f, ev);
    fflush(s->f);
}

static void drop_scores(struct ask *a)
{
    for (int i = 0; i < WN_CHOICES_MAX; i++) {
        if (a->scores[i].f) fclose(a->scores[i].f);
        free(a->scores[i].text);
        a->scores[i] = (struct scores){0};
    }
}

static void print_json(const struct ask *a, const struct winnow_event *ev)
{
    const struct scores *s = &a->scores[ev->choice];

    printf("{\"job_id\": \"%s\", \"text\": ", ev->job_id);
    cli_json_text(stdout, ev->text);
    if (a->request.n > 1) printf(", \"index\": %u", ev->choice);
    if (a->request.logprobs) printf(", \"logprobs\": {\"content\": [%s]}", s->text ? s->text : "");
    printf(", \"finish_reason\": \"%s\", \"usage\": ", ev->finish_reason);
    cli_json_usage(stdout, &ev->usage);
    puts("}");
}

static void print_done(const struct ask *a, const struct winnow_event *ev)
{
    if (a->json) {
        print_json(a, ev);
        return;
    }
    if (a->request.n > 1) {
        printf("[%u] ", ev->choice);
        cli_put_text(stdout, ev->text);
    }
    putchar('\n');
    if (a->scores[ev->choice].text) fputs(a->scores[ev->choice].text, stdout);
    fflush(stdout);
    if (a->usage || isatty(STDERR_FILENO)) cli_usage_line(stderr, &ev->usage);
}

/* As long as the server says, within bounds and our own time; a signal ends it. */
static void wait_for_room(uint32_t retry_ms, int64_t deadline_us)
{
    const int64_t left_us = deadline_us - wn_now_us();
    int64_t wait_us = (int64_t)(retry_ms < 10000 ? retry_ms : 10000) * 1000;

    if (wait_us > left_us) wait_us = left_us;
    if (wait_us > 0) usleep((useconds_t)wait_us);
}

/* Waits for the end of the job; -1: the server was busy and the request should be sent again. */
static int follow(struct ask *a, struct winnow *w, uint64_t job, int64_t deadline_us)
{
    uint32_t left = a->request.n > 1 ? a->request.n : 1;
    bool cancelled = false, failed = false;

    for (;;) {
        struct winnow_event ev;
        int rc;
        if ((cli_stopped || wn_deadline_passed(deadline_us)) && !cancelled) {
            cancelled = true;
            if (!cli_stopped) fprintf(stderr, "winnow: no answer within %u s\n", a->timeout_s);
            if (winnow_cancel(w, job) != WINNOW_OK) return CLI_FAILED;
            deadline_us = wn_deadline_in_us(2000000);
        } else if (cancelled && wn_deadline_passed(deadline_us)) {
            return CLI_FAILED;
        }
        rc = winnow_next(w, &ev, 100);
        if (rc == WINNOW_TIMEOUT) continue;
        if (rc != WINNOW_OK) {
            fprintf(stderr, "winnow: %s\n", winnow_error(w));
            return CLI_FAILED;
        }
        if (ev.type == WINNOW_EVENT_TEXT) {
            if (!a->json && a->request.n <= 1) cli_put_text(stdout, ev.text);
            keep_scores(a, &ev);
        } else if (ev.type == WINNOW_EVENT_DONE) {
            print_done(a, &ev);
            if (--left == 0) return cancelled || failed ? CLI_FAILED : CLI_OK;
        } else if (ev.type == WINNOW_EVENT_ERROR) {
            fprintf(stderr, "winnow: %s\n", ev.text);
            failed = true;
            if (!ev.job_id[0] || --left == 0) return CLI_FAILED; /* without an id there is no job at all */
        } else if (ev.type == WINNOW_EVENT_BUSY) {
            if (cancelled || cli_stopped || wn_deadline_passed(deadline_us)) {
                fprintf(stderr, "winnow: %s\n", ev.text);
                return CLI_FAILED;
            }
            if (!a->said && wn_now_us() - a->began_us > BUSY_SAY_US) {
                a->said = true;
                fprintf(stderr, "winnow: %s; asking again for up to %u s\n", ev.text, a->timeout_s);
            }
            wait_for_room(ev.retry_ms, deadline_us);
            return -1;
        }
    }
}

int cmd_ask(int argc, char **argv)
{
    struct ask a = {0};
    struct winnow *w = NULL;
    int64_t deadline_us;
    int code = parse(&a, argc, argv);

    if (code >= 0) goto out;
    if (!(w = cli_connect(a.endpoint))) {
        code = CLI_FAILED;
        goto out;
    }
    cli_catch_signals();
    a.began_us = wn_now_us();
    deadline_us = wn_deadline_in_us((int64_t)a.timeout_s * 1000000);
    while (code < 0) {
        uint64_t job;
        if (winnow_submit(w, &a.request, &job) != WINNOW_OK) {
            fprintf(stderr, "winnow: %s\n", winnow_error(w));
            code = CLI_FAILED;
        } else {
            code = follow(&a, w, job, deadline_us);
        }
    }
out:
    winnow_close(w);
    drop_scores(&a);
    free(a.question);
    for (size_t i = 0; i < a.request.images_n; i++) free((void *)(uintptr_t)a.images[i].data);
    return code;
}
