/* client/main.c - the `winnow` command. What is not in its table is winnowd's: serve, plan, check, ... */
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

#include "base/output.h"
#include "base/words.h"
#include "client/cli.h"
#include "proto/codec.h"
#include "winnow_version.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv); /* NULL: winnowd does it */
    const char *group, *help;
} commands[] = {
    {"ask", cmd_ask, "Jobs", "ask a question about pictures and print the answer"},
    {"attach", cmd_attach, "Jobs", "follow a job that was submitted before"},
    {"cancel", cmd_cancel, "Jobs", "stop a job"},
    {"run-batch", cmd_run_batch, "Jobs", "answer a file of requests; resumable"},
    {"bench", cmd_bench, "Jobs", "measure a server under load, or the links between ranks"},
    {"eval", cmd_eval, "Jobs", "accuracy and costs of an evaluation set, with each way of pruning"},
    {"serve", NULL, "Servers", "start everything for a model on this machine"},
#ifdef WN_HAVE_GATEWAY
    {"gateway", cmd_gateway, "Servers", "OpenAI's HTTP interface in front of a server"},
#endif
    {"check", NULL, "Servers", "networks, versions, memory and keys of such a server, measured"},
    {"plan", NULL, "Servers", "who would hold what, and the bytes on each link"},
    {"prune", NULL, "Servers", "draw which visual tokens of a picture are kept"},
    {"drain", cmd_drain, "Servers", "end a server when its jobs are done"},
    {"keygen", cmd_keygen, "Servers", "make the keys of a server, its workers and its clients"},
    {"status", cmd_status, "Servers", "what the server and its workers do"},
    {"top", cmd_top, "Servers", "the same, live"},
    {"collect-env", cmd_collect_env, "Problems", "versions and machine, for a report"},
};
#define COMMANDS_N (sizeof(commands) / sizeof(commands[0]))

static void print_help(FILE *f)
{
    const char *group = "";

    fputs("Usage: winnow COMMAND [ARGUMENT]...\n", f);
    for (size_t i = 0; i < COMMANDS_N; i++) {
        if (strcmp(group, commands[i].group) != 0) fprintf(f, "\n%s\n", group = commands[i].group);
        fprintf(f, "  %-14s %s\n", commands[i].name, commands[i].help);
    }
    fputs("\nGeneral\n  --help         print this; after a command: its options\n"
          "  --version      print version, commit and libraries\n"
          "\nClients find the server by --endpoint, else WINNOW_ENDPOINT, else tcp://127.0.0.1:5599,\n"
          "and show it the key of --key, else WINNOW_KEY, else none.\n"
          "Exit codes: 0 done, 1 failed, 2 usage.\n",
          f);
}

static void print_version(void)
{
    int major, minor, patch;

    zmq_version(&major, &minor, &patch);
    printf("winnow %s (commit %s)\nZeroMQ      %d.%d.%d\nprotobuf-c  %s\ncompiler    %s\n", WN_VERSION, WN_COMMIT,
           major, minor, patch, protobuf_c_version(), __VERSION__);
}

/* Becomes `winnowd ARGS`: the one beside this program, else the one on PATH. Returns only if there is none. */
static int exec_daemon(int argc, char **argv)
{
    char path[4096];
    ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 16);
    char **args = calloc((size_t)argc + 1, sizeof(*args)), *slash;

    if (!args) {
        fprintf(stderr, "winnow: out of memory\n");
        return CLI_FAILED;
    }
    memcpy(args, argv, (size_t)argc * sizeof(*args));
    args[0] = "winnowd";
    if (n > 0) {
        path[n] = '\0';
        slash = strrchr(path, '/');
        if (slash) {
            memcpy(slash + 1, "winnowd", sizeof("winnowd"));
            execv(path, args);
        }
    }
    execvp("winnowd", args);
    fprintf(stderr, "winnow: cannot run winnowd for '%s': %s\n", argv[1], strerror(errno));
    free(args);
    return CLI_FAILED;
}

static int unknown_command(const char *word)
{
    const char *best = NULL;
    unsigned distance = UINT_MAX;

    for (size_t i = 0; i < COMMANDS_N; i++)
        if (wn_word_is_nearer(word, commands[i].name, &distance)) best = commands[i].name;
    fprintf(stderr, "winnow: unknown %s %.60s; ", word[0] == '-' ? "option" : "command", word);
    if (best) fprintf(stderr, "did you mean %s?\n", best);
    else fprintf(stderr, "--help lists the commands\n");
    return CLI_USAGE;
}

static int run(int argc, char **argv)
{
    if (argc < 2) {
        print_help(stderr);
        return CLI_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
        print_help(stdout);
        return CLI_OK;
    }
    if (strcmp(argv[1], "--version") == 0) {
        print_version();
        return CLI_OK;
    }
    if (strcmp(argv[1], "bench") == 0 && argc > 2 && strcmp(argv[2], "link") == 0) {
        argv[2] = "bench-link";
        return exec_daemon(argc - 1, argv + 1);
    }
    for (size_t i = 0; i < COMMANDS_N; i++) {
        if (strcmp(argv[1], commands[i].name) != 0) continue;
        return commands[i].run ? commands[i].run(argc - 1, argv + 1) : exec_daemon(argc, argv);
    }
    return unknown_command(argv[1]);
}

int main(int argc, char **argv)
{
    wn_output_begin();
    signal(SIGXFSZ, SIG_IGN); /* a file over ulimit -f is an error of the write that says which */
    return wn_output_end("winnow", run(argc, argv));
}
