/* client/cmd_status.c - `winnow status`. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/cli.h"
#include "client/conn.h"
#include "client/console.h"

#define ANSWER_MS 3000

static const struct cli_opt opts[] = {
    {"json", NULL, "print JSON"},
    {"wait", "S", "wait up to S seconds until the server is ready; exit code 1 if it is not"},
    CLI_ENDPOINT_OPT,
    {"metrics", NULL, "print Prometheus text"},
    {NULL, NULL, NULL},
};

/* Asks once; NULL: no answer. */
static Wn__Envelope *ask(const char *endpoint, uint32_t timeout_ms, char *error, size_t error_size)
{
    const struct winnow_options options = {.connect_timeout_ms = timeout_ms};
    struct winnow *w = NULL;
    Wn__Envelope *env = NULL;

    if (winnow_connect(&w, endpoint, &options) != WINNOW_OK ||
        wn_conn_status(w, &env, wn_deadline_in_us((int64_t)timeout_ms * 1000)) != WINNOW_OK)
        snprintf(error, error_size, "%s", winnow_error(w));
    winnow_close(w);
    return env;
}

int cmd_status(int argc, char **argv)
{
    struct cli_args args = {.argc = argc, .argv = argv, .opts = opts,
                            .usage = "Usage: winnow status [OPTION]...\nSays what the server and its workers do."};
    const char *flag = NULL;
    char error[WN_ERR_TEXT_MAX] = "";
    Wn__Envelope *env = NULL;
    uint32_t wait_s = 0;
    bool json = false, metrics = false, ready = false;
    int64_t deadline_us;

    for (;;) {
        int option = cli_next(&args);
        if (option == CLI_END) break;
        if (option == CLI_EXIT) return CLI_OK;
        if (option == CLI_PLAIN) fprintf(stderr, "winnow: unexpected argument '%.60s'\n", args.value);
        if (option < 0) return CLI_USAGE;
        if (option == 0) json = true;
        if (option == 1 && !cli_u32("wait", args.value, 86400, &wait_s)) return CLI_USAGE;
        if (option == 2) flag = args.value;
        if (option == 3) metrics = true;
    }
    deadline_us = wn_deadline_in_us((int64_t)wait_s * 1000000);
    for (;;) {
        wn_codec_free(env);
        env = ask(cli_endpoint(flag), wait_s ? 500 : ANSWER_MS, error, sizeof(error));
        ready = env && env->status->ready;
        if (ready || wn_deadline_passed(deadline_us)) break;
        usleep(50000);
    }
    if (!env) {
        fprintf(stderr, "winnow: %s\n", error);
        return CLI_FAILED;
    }
    if (json) {
        char *text = wn_status_json(env->status);
        if (text) puts(text);
        free(text);
    } else if (metrics) {
        console_metrics(stdout, env->status);
    } else {
        console_status(stdout, cli_endpoint(flag), env->status, NULL, 0);
    }
    wn_codec_free(env);
    return wait_s && !ready ? CLI_FAILED : CLI_OK;
}
