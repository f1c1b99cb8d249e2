/* daemon/launcher_slurm.c - job steps: one srun for each component, inside the allocation of `winnow serve`.
 *
 * Steps overlap, since all of them run at once on what the job has. A replica is one step: when a rank dies, Slurm ends
 * the others (--kill-on-bad-exit=1), as nothing can be done without it; other components are steps of their own and go
 * on. srun passes SIGUSR1 on to its tasks and takes SIGTERM as an order to end them at once. */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/launcher.h"
#include "daemon/nodelist.h"

#define ARGS_MAX 192

/* What sbatch or the user left in the environment for a first step, and would bend ours: how many tasks where, with how
 * many cores each, what their lines begin with and where they go. GPUs stay: a step has all that the job has. */
static const char *const not_ours[] = {
    "SLURM_NTASKS_PER_NODE",   "SLURM_NTASKS_PER_CORE",  "SLURM_NTASKS_PER_SOCKET", "SLURM_NTASKS_PER_GPU",
    "SLURM_NTASKS_PER_TRES",   "SLURM_TRES_PER_TASK",    "SLURM_CPUS_PER_TASK",     "SRUN_CPUS_PER_TASK",
    "SLURM_CPUS_PER_GPU",      "SLURM_THREADS_PER_CORE", "SLURM_HINT",              "SLURM_CORE_SPEC",
    "SLURM_HOSTFILE",          "SLURM_EXACT",            "SLURM_EXCLUSIVE",         "SLURM_SPREAD_JOB",
    "SLURM_USE_MIN_NODES",     "SLURM_LABELIO",          "SLURM_STDOUTMODE",        "SLURM_STDERRMODE",
    "SLURM_IMMEDIATE",         "SLURM_TIMELIMIT",         "SLURM_NO_KILL",
};

struct command {
    char *argv[ARGS_MAX];
    size_t n;
    char text[8][160]; /* flags with values */
    size_t texts;
};

static void add(struct command *c, const char *arg)
{
    if (c->n < ARGS_MAX) c->argv[c->n++] = (char *)(uintptr_t)arg;
}

static void add_value(struct command *c, const char *flag, const char *value)
{
    char *at = c->text[c->texts++];

    snprintf(at, sizeof(c->text[0]), "--%s=%s", flag, value);
    add(c, at);
}

static void add_count(struct command *c, const char *flag, unsigned value)
{
    char text[16];

    snprintf(text, sizeof(text), "%u", value);
    add_value(c, flag, text);
}

/* "--nodelist=n2,n2,n3": where each task runs. Owned by the caller. */
static char *node_flag(const struct wn_launch *l, unsigned *nodes_n)
{
    const size_t size = 16 + (size_t)l->ranks * WN_NODE_NAME_LEN;
    char *out = malloc(size);
    size_t n;

    *nodes_n = 0;
    if (!out) return NULL;
    n = (size_t)snprintf(out, size, "--nodelist=");
    for (unsigned i = 0; i < l->ranks; i++) {
        unsigned before = 0;
        while (before < i && strcmp(l->nodes[before], l->nodes[i]) != 0) before++;
        *nodes_n += before == i;
        n += (size_t)snprintf(out + n, size - n, "%s%s", i ? "," : "", l->nodes[i]);
    }
    return out;
}

/* Splits text at spaces, in place. */
static void add_words(struct command *c, char *text)
{
    for (char *at = text; *at;) {
        at += strspn(at, " ");
        if (!*at) return;
        add(c, at);
        at += strcspn(at, " ");
        if (*at) *at++ = '\0';
    }
}

static wn_status slurm_start(const struct wn_launch *l, pid_t *pid, struct wn_err *err)
{
    const struct wn_config *cfg = l->cfg;
    struct command c = {0};
    char extra[sizeof(cfg->srun_args)], job_name[WN_NAME_LEN + 16];
    unsigned nodes_n;
    char *nodes = node_flag(l, &nodes_n);
    wn_status rc;

    if (!nodes) return wn_fail(err, WN_ENOMEM, "%s: a list of %u nodes", l->name, l->ranks);
    snprintf(job_name, sizeof(job_name), "winnow-%s", l->name);
    memcpy(extra, cfg->srun_args, sizeof(extra));
    for (size_t i = 0; i < sizeof(not_ours) / sizeof(not_ours[0]); i++) unsetenv(not_ours[i]);
    add(&c, "srun");
    add_value(&c, "job-name", job_name);
    add(&c, "--quiet");
    add(&c, "--overlap");
    add(&c, "--export=ALL"); /* also where sbatch was told NONE: paths and MPI's variables are ours */
    add(&c, "--overcommit");
    add(&c, "--cpu-bind=none"); /* threads place themselves */
    add(&c, "--mem=0");
    add(&c, "--input=none");
    add_count(&c, "kill-on-bad-exit", l->ranks > 1);
    add_value(&c, "mpi", l->ranks > 1 ? cfg->srun_mpi : "none");
    add_count(&c, "nodes", nodes_n);
    add_count(&c, "ntasks", l->ranks);
    add(&c, "--distribution=arbitrary");
    add(&c, nodes);
    add_words(&c, extra);
    add(&c, cfg->step_program[0] ? cfg->step_program : l->argv[0]);
    for (size_t i = 1; l->argv[i]; i++) add(&c, l->argv[i]);
    add(&c, NULL);
    rc = c.argv[c.n - 1] ? wn_fail(err, WN_ELIMIT, "%s: more than %d arguments", l->name, ARGS_MAX)
                         : wn_launcher_spawn(c.argv, SIGTERM, l->out_fd, pid, err);
    free(nodes);
    return rc;
}

static void slurm_signal(pid_t pid, int sig)
{
    kill(pid, sig == SIGKILL ? SIGTERM : SIGUSR1);
}

const struct wn_launcher_ops wn_launcher_slurm = {
    .name = "slurm",
    .start = slurm_start,
    .signal = slurm_signal,
};
