/* client/cmd_drain.c - `winnow drain`: ends a service as SIGTERM does, from anywhere. */
#include "client/cli.h"
#include "client/conn.h"

#define ANSWER_US ((int64_t)3000000)
#define LEAVE_US  ((int64_t)10000000) /* for the service to end, after the time for its jobs */

static const char usage[] =
    "Usage: winnow drain [OPTION]...\n"
    "The service takes no new jobs, finishes those that it has or leaves them to its journal, and ends with exit\n"
    "code 0. Where it has keys, an admin's is wanted.";
static const struct cli_opt opts[] = {
    {"timeout", "S", "how long jobs may run on; said again it can only be sooner [its --shutdown-timeout]"},
    {"wait", NULL, "until the service has gone"},
    CLI_ENDPOINT_OPT,
    {NULL, NULL, NULL},
};

struct drain {
    uint32_t timeout_s;
    bool wait;
    const char *endpoint;
};

static bool take_option(void *ctx, int option, const char *value)
{
    struct drain *d = ctx;

    switch (option) {
    case 0: return cli_count("timeout", value, WN_DRAIN_MS_MAX / 1000, &d->timeout_s);
    case 1: d->wait = true; return true;
    case 2: d->endpoint = value; return true;
    default: fprintf(stderr, "winnow: unexpected argument '%.60s'\n", value); return false;
    }
}

/* Asks, and says what was answered; *wait_us: how long the end may take. */
static int ask(struct winnow *w, const struct drain *d, int64_t *wait_us)
{
    Wn__Drain body = WN__DRAIN__INIT;
    Wn__Envelope *env = NULL;
    int rc;

    body.deadline_ms = d->timeout_s * 1000;
    rc = wn_conn_send(w, WN__ENVELOPE__BODY_DRAIN, &body, NULL, 0, NULL);
    if (rc == WINNOW_OK) rc = wn_conn_recv(w, &env, -1, wn_deadline_in_us(ANSWER_US));
    if (rc != WINNOW_OK) {
        fprintf(stderr, "winnow: %s\n", winnow_error(w));
        return CLI_FAILED;
    }
    if (env->body_case == WN__ENVELOPE__BODY_DRAIN) {
        printf("draining: %u jobs have %.1f s\n", env->drain->jobs, env->drain->deadline_ms / 1e3);
        fflush(stdout);
        *wait_us = env->drain->deadline_ms * (int64_t)1000 + LEAVE_US;
    } else {
        const bool said = env->body_case == WN__ENVELOPE__BODY_ERROR;
        fprintf(stderr, "winnow: %s\n", said ? env->error->text : "the server does not know what draining is");
        rc = CLI_FAILED;
    }
    wn_codec_free(env);
    return rc;
}

/* Until the connection is lost. */
static int wait_for_end(struct winnow *w, int64_t deadline_us)
{
    int rc = WINNOW_OK;

    while (rc == WINNOW_OK) {
        Wn__Envelope *env = NULL;
        rc = wn_conn_recv(w, &env, -1, deadline_us);
        wn_codec_free(env);
    }
    if (rc == WINNOW_ECONNECT) return CLI_OK;
    fprintf(stderr, "winnow: %s\n", rc == WINNOW_TIMEOUT ? "the service is still there" : winnow_error(w));
    return CLI_FAILED;
}

int cmd_drain(int argc, char **argv)
{
    struct cli_args args = {.argc = argc, .argv = argv, .opts = opts, .usage = usage};
    struct drain d = {0};
    struct winnow *w;
    int64_t wait_us = 0;
    int code = cli_take(&args, take_option, &d);

    if (code >= 0) return code;
    if (!(w = cli_connect(d.endpoint))) return CLI_FAILED;
    code = ask(w, &d, &wait_us);
    if (code == CLI_OK && d.wait) code = wait_for_end(w, wn_deadline_in_us(wait_us));
    winnow_close(w);
    return code;
}
