/* client/cli.h - what the subcommands of `winnow` share. Each returns the process's exit code: 0, 1 failed, 2 usage. */
#ifndef WN_CLIENT_CLI_H
#define WN_CLIENT_CLI_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "client/winnow.h"

#define CLI_OK     0
#define CLI_FAILED 1
#define CLI_USAGE  2

/* One option of a subcommand; a table of them ends with a NULL name. */
struct cli_opt {
    const char *name;   /* without dashes */
    const char *value;  /* what to call its value in --help; NULL: it has none */
    const char *help;
};

/* Where the server is: a row for a table of options. */
#define CLI_ENDPOINT_OPT {"endpoint", "ADDRESS", "where the server is; else WINNOW_ENDPOINT, else tcp://127.0.0.1:5599"}

/* Walks over arguments. Zero-initialise, then set argc, argv, opts. */
struct cli_args {
    int argc;
    char **argv;
    const struct cli_opt *opts;
    const char *usage;      /* first lines of --help */
    int at;                 /* set by cli_next */
    bool plain;             /* after "--" */
    const char *value;      /* of the option, or the plain argument */
};

#define CLI_END   (-1)
#define CLI_PLAIN (-2) /* an argument that is no option */
#define CLI_EXIT  (-3) /* --help was printed: exit 0 */
#define CLI_BAD   (-4) /* said on stderr: exit 2 */

/* The index of the next option, or one of the above. */
int cli_next(struct cli_args *a);

/* Gives every option to take(), with CLI_PLAIN for an argument that is none. -1: go on, else the exit code. take() says
 * on stderr what is wrong and returns false. */
int cli_take(struct cli_args *a, bool (*take)(void *ctx, int option, const char *value), void *ctx);

/* Numbers with bounds; say on stderr what is wrong. */
bool cli_u32(const char *name, const char *text, uint32_t max, uint32_t *out);
bool cli_count(const char *name, const char *text, uint32_t max, uint32_t *out); /* at least 1 */
bool cli_float(const char *name, const char *text, float min, float max, float *out);

/* SIGINT, SIGTERM and a reader that goes away (a pipe into head) set it, once cli_catch_signals() was called: submit
 * nothing more, and end in order. */
extern volatile sig_atomic_t cli_stopped;
void cli_catch_signals(void);

/* --endpoint, else WINNOW_ENDPOINT, else tcp://127.0.0.1:5599 */
const char *cli_endpoint(const char *flag);

/* Connects or says why not; NULL then. */
struct winnow *cli_connect(const char *endpoint_flag);

/* The whole file, owned by the caller; says on stderr why not. */
void *cli_read_file(const char *path, size_t max, size_t *bytes);

/* Can it be written? Asked before long work whose figures go there; says on stderr why not. NULL: nothing
 * goes there. */
bool cli_can_write(const char *path);

/* "METHOD", "METHOD:64" (a count), "METHOD:0.5" (a share removed, 0 to 1); says on stderr what is wrong. A share of 0
 * comes out as a count that no picture has, for a rate of 0 in a request is none. */
bool cli_pruning(const char *text, char method[WINNOW_METHOD_MAX], uint32_t *keep, float *rate);

/* Does the server take requests like this one? Asks for a token, without a picture; says on stderr, after `label`, why
 * not. */
bool cli_try(struct winnow *w, const struct winnow_request *like, const char *label, uint32_t timeout_s);

/* What a request can say about pruning beside method and budget: rows for a table of options, their number, and one of
 * them (0: the first) into a request. */
#define CLI_PRUNING_OPTS                                                                                         \
    {"cap", "N", "most visual tokens that a method with a count of its own may keep"},                           \
        {"position", "POLICY", "of kept tokens: compact (numbered on) or original (as if nothing were pruned)"}, \
        {"projected", NULL, "visual tokens cross the network at the language model's width"},                    \
        {"setting", "NAME", "faithful (as the public code) or paper, for methods that have both"},               \
        {"pruning-seed", "N", "seed of methods that draw; same seed and picture: same tokens"},                  \
    {                                                                                                            \
        "pruning-options", "NAME=N,...", "neighbours, contextual, important, anchors, object-layer"              \
    }
#define CLI_PRUNING_N 6
bool cli_pruning_option(struct winnow_request *r, int option, const char *value);

/* The model's words: on a terminal, control characters (escape sequences) are shown as '?'. Flushes. */
void cli_put_text(FILE *f, const char *text);

/* The tokens of a TEXT event: elements of OpenAI's logprobs.content, with commas between (*any: there was one before);
 * or a line each. */
void cli_logprobs_json(FILE *f, const struct winnow_event *ev, bool *any);
void cli_logprobs_table(FILE *f, const struct winnow_event *ev);

void cli_json_text(FILE *f, const char *text); /* in quotes */
void cli_json_usage(FILE *f, const struct winnow_usage *u);
void cli_usage_line(FILE *f, const struct winnow_usage *u);

int cmd_ask(int argc, char **argv);
int cmd_eval(int argc, char **argv);
int cmd_status(int argc, char **argv);
int cmd_top(int argc, char **argv);
int cmd_cancel(int argc, char **argv);
int cmd_drain(int argc, char **argv);
int cmd_run_batch(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_attach(int argc, char **argv);
int cmd_collect_env(int argc, char **argv);
int cmd_keygen(int argc, char **argv);
int cmd_gateway(int argc, char **argv); /* where libmicrohttpd was found */

#endif
