/* client/cmd_top.c - `winnow top`: the service's state, again and again. */
#include <string.h>
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

/* The state now; NULL: said on stderr why not. */
static Wn__Envelope *look(struct winnow *w, int64_t *at_us)
{
    Wn__Envelope *env = NULL;

    if (conn_status(w, &env, wn_deadline_in_us((int64_t)ANSWER_MS * 1000)) != WINNOW_OK) {
        if (!cli_stopped) fprintf(stderr, "winnow: %s\n", winnow_error(w));
        return NULL;
    }
    *at_us = wn_now_us();
    return env;
}

/* On a terminal in place, else one table under the other. */
static int show(struct winnow *w, const char *endpoint, float interval_s, bool once)
{
    const bool terminal = isatty(STDOUT_FILENO) && !once;
    int64_t before_us = 0, now_us = 0;
    Wn__Envelope *before = look(w, &before_us), *now;
    int code = before ? -1 : CLI_FAILED;

    if (terminal) fputs(CLEAR, stdout);
    while (code < 0) {
        usleep((useconds_t)(interval_s * 1e6f));
        if (cli_stopped) break;
        if (!(now = look(w, &now_us))) {
            code = CLI_FAILED;
            break;
        }
        if (terminal) fputs(HOME REST, stdout);
        console_status(stdout, endpoint, now->status, before->status, (double)(now_us - before_us) * 1e-6);
        if (!terminal && !once) putchar('\n');
        fflush(stdout);
        wn_codec_free(before);
        before = now;
        before_us = now_us;
        if (once || ferror(stdout)) break;
    }
    wn_codec_free(before);
    return code < 0 ? CLI_OK : code;
}

int cmd_top(int argc, char **argv)
{
    struct cli_args args = {.argc = argc, .argv = argv, .opts = opts,
                            .usage = "Usage: winnow top [OPTION]...\nShows what the server and its workers do, live."};
    const char *flag = NULL;
    float interval_s = 1;
    struct winnow *w;
    bool once = false;
    int code;

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
    if (!(w = cli_connect(flag))) return CLI_FAILED;
    cli_catch_signals();
    code = show(w, cli_endpoint(flag), interval_s, once);
    winnow_close(w);
    return code;
}
