/* daemon/main.c - winnowd: one program, one role a process. */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/output.h"
#include "daemon/roles.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *what;
} roles[] = {
    {"serve", wn_role_serve, "start a service and watch over it"},
    {"scheduler", wn_role_scheduler, "take jobs from clients, hand them to workers"},
    {"vision", wn_role_vision, "encode images and prune visual tokens"},
    {"shard", wn_role_shard, "one rank of a replica of the language model"},
    {"bench-link", wn_cmd_bench_link, "measure messages and all-reduces between ranks"},
    {"probe", wn_role_probe, "one process of winnow check"},
    {"check", wn_cmd_check, "measure what a service would use, before weights load"},
    {"plan", wn_cmd_plan, "print who holds what, and what crosses which link"},
    {"prune", wn_cmd_prune, "draw which visual tokens of a picture are kept"},
};

static int usage(FILE *f)
{
    fprintf(f, "Usage: winnowd ROLE [OPTION]...\n\n");
    for (size_t i = 0; i < sizeof(roles) / sizeof(roles[0]); i++)
        fprintf(f, "  %-12s%s\n", roles[i].name, roles[i].what);
    fprintf(f, "\nwinnowd ROLE --help lists the options. Clients use the command winnow.\n");
    return f == stdout ? 0 : 2;
}

static int run(int argc, char **argv)
{
    if (argc < 2) return usage(stderr);
    for (size_t i = 0; i < sizeof(roles) / sizeof(roles[0]); i++)
        if (strcmp(argv[1], roles[i].name) == 0) return roles[i].run(argc - 1, argv + 1);
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) return usage(stdout);
    if (strcmp(argv[1], "--version") == 0) {
        wn_version_print(stdout, "winnowd");
        return 0;
    }
    fprintf(stderr, "winnowd: unknown role '%s'\n", argv[1]);
    return usage(stderr);
}

int main(int argc, char **argv)
{
    wn_output_begin();
    signal(SIGXFSZ, SIG_IGN); /* a file over ulimit -f is an error of the write that says which */
    return wn_output_end("winnowd", run(argc, argv));
}
