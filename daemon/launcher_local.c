/* daemon/launcher_local.c - processes on this machine: fork and exec, through mpirun for several ranks. */
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "daemon/launcher.h"

#define ARGS_MAX 160

/* Open MPI on one machine: more ranks than cores are fine, nobody is bound (threads place themselves), idle
 * ranks yield, shared memory needs no ptrace rights, and no ssh has to be there. */
static const char *const mpirun_args[] = {
    "mpirun",
    "--quiet",
    "--oversubscribe",
    "--bind-to",
    "none",
    "--mca",
    "mpi_yield_when_idle",
    "1",
    "--mca",
    "btl",
    "self,vader",
    "--mca",
    "btl_vader_single_copy_mechanism",
    "none",
    "--mca",
    "plm",
    "isolated",
    "--mca",
    "orte_abort_on_non_zero_status",
    "1",
};

/* In the child; does not return. */
static void child(char **argv, pid_t parent)
{
    sigset_t none;

    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setpgid(0, 0); /* a Ctrl-C at the terminal is for the supervisor, which ends the others in order */
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(1); /* it died before the line above */
    execvp(argv[0], argv);
    fprintf(stderr, "winnow: %s: %s\n", argv[0], strerror(errno));
    _exit(127);
}

static wn_status local_start(const struct wn_launch *l, pid_t *pid, struct wn_err *err)
{
    const size_t extra = sizeof(mpirun_args) / sizeof(mpirun_args[0]);
    char *argv[ARGS_MAX], count[16];
    size_t n = 0;
    const pid_t self = getpid();
    pid_t got;

    if (l->ranks > 1) {
        snprintf(count, sizeof(count), "%u", l->ranks);
        for (size_t i = 0; i < extra; i++) argv[n++] = (char *)(uintptr_t)mpirun_args[i];
        argv[n++] = (char *)(uintptr_t) "-np";
        argv[n++] = count;
    }
    for (size_t i = 0; l->argv[i]; i++) {
        if (n == ARGS_MAX - 1) return wn_fail(err, WN_ELIMIT, "more than %d arguments", ARGS_MAX);
        argv[n++] = l->argv[i];
    }
    argv[n] = NULL;
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 0); /* before the fork: another thread may hold malloc's lock in it */
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 0);
    /* Threads that wait at a barrier sleep after some microseconds: the processes of a service share the cores, and one
     * that spins keeps the one it waits for from running. */
    setenv("GOMP_SPINCOUNT", "4000", 0);
    got = fork();
    if (got == 0) child(argv, self);
    if (got < 0) return wn_fail(err, WN_EIO, "fork: %s", strerror(errno));
    *pid = got;
    return WN_OK;
}

static void local_signal(pid_t pid, int sig)
{
    if (sig == SIGKILL) kill(-pid, sig); /* mpirun cannot pass that one on; its ranks end when it does */
    kill(pid, sig);
}

const struct wn_launcher_ops wn_launcher_local = {
    .name = "local",
    .start = local_start,
    .signal = local_signal,
};
