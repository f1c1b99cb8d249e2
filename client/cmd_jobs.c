/* client/cmd_jobs.c - `winnow cancel` and `winnow attach`: jobs that another connection submitted. */
#include "client/cli.h"

#define WAIT_MS 5000

static const struct cli_opt cancel_opts[] = {
    CLI_ENDPOINT_OPT,
    {NULL, NULL, NULL},
};
static const struct cli_opt attach_opts[] = {
    CLI_ENDPOINT_OPT,
    {"from", "N", "first token that is wanted [0]"},
    {NULL, NULL, NULL},
};

struct target {
    const char *job_id, *endpoint;
    uint32_t from;
};

/* -1: go on, else the exit code. */
static int parse(struct target *t, struct cli_args *args)
{
    for (;;) {
        int option = cli_next(args);
        if (option == CLI_END) break;
        if (option == CLI_EXIT) return CLI_OK;
        if (option == CLI_BAD) return CLI_USAGE;
        if (option == 0) {
            t->endpoint = args->value;
        } else if (option == 1) {
            if (!cli_u32("from", args->value, UINT32_MAX, &t->from)) return CLI_USAGE;
        } else if (t->job_id) {
            fprintf(stderr, "winnow: one job id is enough\n");
            return CLI_USAGE;
        } else {
            t->job_id = args->value;
        }
    }
    if (t->job_id) return -1;
    fprintf(stderr, "winnow: no job id\n");
    return CLI_USAGE;
}

/* Connects and attaches; NULL: it was said why not. */
static struct winnow *attach(const struct target *t, uint64_t *job)
{
    struct winnow *w = cli_connect(t->endpoint);

    if (!w || winnow_attach(w, t->job_id, t->from, job) == WINNOW_OK) return w;
    fprintf(stderr, "winnow: %s\n", winnow_error(w));
    winnow_close(w);
    return NULL;
}

int cmd_cancel(int argc, char **argv)
{
    struct cli_args args = {.argc = argc, .argv = argv, .opts = cancel_opts,
                            .usage = "Usage: winnow cancel JOB-ID [OPTION]...\nStops a job."};
    struct target t = {.from = UINT32_MAX};
    struct winnow *w;
    uint64_t job;
    int code = parse(&t, &args);

    if (code >= 0) return code;
    if (!(w = attach(&t, &job))) return CLI_FAILED;
    code = winnow_cancel(w, job) == WINNOW_OK ? -1 : CLI_FAILED;
    while (code < 0) {
        struct winnow_event ev;
        if (winnow_next(w, &ev, WAIT_MS) != WINNOW_OK) {
            code = CLI_FAILED;
        } else if (ev.type == WINNOW_EVENT_ERROR) {
            fprintf(stderr, "winnow: %s\n", ev.text);
            winnow_close(w);
            return CLI_FAILED;
        } else if (ev.type == WINNOW_EVENT_DONE) {
            printf("%s: %s, %u tokens\n", t.job_id, ev.finish_reason, ev.usage.completion_tokens);
            code = CLI_OK;
        }
    }
    if (code) fprintf(stderr, "winnow: %s\n", winnow_error(w));
    winnow_close(w);
    return code;
}

int cmd_attach(int argc, char **argv)
{
    struct cli_args args = {.argc = argc, .argv = argv, .opts = attach_opts,
                            .usage = "Usage: winnow attach JOB-ID [OPTION]...\nPrints a job's answer as it comes."};
    struct target t = {0};
    struct winnow *w;
    uint64_t job;
    int code = parse(&t, &args);

    if (code >= 0) return code;
    if (!(w = attach(&t, &job))) return CLI_FAILED;
    while (code < 0) {
        struct winnow_event ev;
        if (winnow_next(w, &ev, -1) != WINNOW_OK) {
            fprintf(stderr, "winnow: %s\n", winnow_error(w));
            code = CLI_FAILED;
        } else if (ev.type == WINNOW_EVENT_TEXT) {
            cli_put_text(stdout, ev.text);
        } else if (ev.type == WINNOW_EVENT_ERROR) {
            fprintf(stderr, "winnow: %s\n", ev.text);
            code = CLI_FAILED;
        } else if (ev.type == WINNOW_EVENT_DONE) {
            putchar('\n');
            code = CLI_OK;
        }
    }
    winnow_close(w);
    return code;
}
