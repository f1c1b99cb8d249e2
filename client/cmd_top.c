/* client/cmd_top.c - `winnow top`: the service's state, again and again. */
#include <stdio.h>
#include <unistd.h>

#include "base/clock.h"
#include "client/cli.h"
#include "client/conn.h"
#include "client/console.h"

#define ANSWER_MS 3000
#define HOME      "\x1b[H"  /* to the upper left */
#define CLEAR     "\x1b[2J" /* the screen */
#define REST      "\x1b[J"  /* what is below */

static const struct cli_opt opts[] = {
    {"interval", "S", "seconds between looks [1]"},
    {"once", NULL, "look twice, one interval apart, print, and exit"},
    CLI_ENDPOINT_OPT,
    {NULL, NULL, NULL},
};

/* One look at the service; what went wrong is in `error`. */
struct view {
    struct winnow *w; /* NULL: not connected */
    Wn__Envelope *env;
    int64_t at_us;
    char error[WN_ERR_TEXT_MAX];
};

/* false: nothing was seen. Then the connection is given up: answers that are still on their way would be old. */
static bool look(struct view *v, const char *endpoint, uint32_t timeout_ms)
{
    const struct winnow_options options = {.connect_timeout_ms = timeout_ms};

    v->env = NULL;
    if ((v->w || winnow_connect(&v->w, endpoint, &options) == WINNOW_OK) &&
        wn_conn_status(v->w, &v->env, wn_deadline_in_us((int64_t)timeout_ms * 1000)) == WINNOW_OK) {
        v->at_us = wn_now_us();
        return true;
    }
    snprintf(v->error, sizeof(v->error), "%s", winnow_error(v->w));
    winnow_close(v->w);
    v->w = NULL;
    return false;
}

/* On a terminal in place, else one table under the other. A service that goes away is looked for until it is back. */
static int show(const char *endpoint, float interval_s, bool once)
{
    const bool terminal = isatty(STDOUT_FILENO) && !once;
    struct view v = {0};
    Wn__Envelope *before = NULL;
    int64_t before_us = 0;
    int code = CLI_OK;

    if (!look(&v, endpoint, ANSWER_MS)) code = CLI_FAILED;
    else if (terminal) fputs(CLEAR, stdout);
    while (code == CLI_OK && !cli_stopped) {
        wn_codec_free(before);
        before = v.env;
        before_us = v.at_us;
        usleep((useconds_t)(interval_s * 1e6f));
        if (cli_stopped) break;
        if (!look(&v, endpoint, ANSWER_MS / 3) && once) code = CLI_FAILED;
        if (code != CLI_OK) break;
        if (terminal) fputs(HOME REST, stdout);
        if (v.env)
            console_status(stdout, endpoint, v.env->status, before ? before->status : NULL,
                           (double)(v.at_us - before_us) * 1e-6);
        else
            printf("%s: %s\n", endpoint, v.error);
        if (!terminal && !once) putchar('\n');
        fflush(stdout);
        if (once || ferror(stdout)) break;
    }
    if (code != CLI_OK && !cli_stopped) fprintf(stderr, "winnow: %s\n", v.error);
    wn_codec_free(before);
    if (v.env != before) wn_codec_free(v.env);
    winnow_close(v.w);
    return code;
}

int cmd_top(int argc, char **argv)
{
    struct cli_args args = {.argc = argc, .argv = argv, .opts = opts,
                            .usage = "Usage: winnow top [OPTION]...\nShows what the server and its workers do, live."};
    const char *flag = NULL;
    float interval_s = 1;
    bool once = false;

    for (;;) {
        int option = cli_next(&args);
        if (option == CLI_END) break;
        if (option == CLI_EXIT) return CLI_OK;
        if (option == CLI_PLAIN) fprintf(stderr, "winnow: unexpected argument '%.60s'\n", args.value);
        if (option < 0) return CLI_USAGE;
        if (option == 0 && !cli_float("interval", args.value, 0.1f, 3600, &interval_s)) return CLI_USAGE;
        if (option == 1) once = true;
        if (option == 2) flag = args.value;
    }
    cli_catch_signals();
    return show(cli_endpoint(flag), interval_s, once);
}
