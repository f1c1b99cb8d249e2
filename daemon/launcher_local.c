/* daemon/launcher_local.c - processes on this machine: fork and exec, through mpirun for several ranks. */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/log.h"
#include "daemon/launcher.h"

#define ARGS_MAX 160

/* Open MPI on one machine: more ranks than cores are fine, nobody is bound (threads place themselves), shared memory
 * needs no ptrace rights, and no ssh has to be there. When a rank is lost the others have nothing left to do: they are
 * killed at once, and not two seconds after they were asked. */
static const char *const mpirun_args[] = {
    "mpirun",
    "--oversubscribe",
    "--bind-to",
    "none",
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
    "--mca",
    "odls_base_sigkill_timeout",
    "0",
};

/* What mpirun leaves when it is killed is ours to remove. */
static size_t add_folder(char **argv, size_t n, const char *parameter, const char *path)
{
    if (!path || !path[0]) return n;
    argv[n++] = (char *)(uintptr_t) "--mca";
    argv[n++] = (char *)(uintptr_t)parameter;
    argv[n++] = (char *)(uintptr_t)path;
    return n;
}

static wn_status local_start(const struct wn_launch *l, pid_t *pid, struct wn_err *err)
{
    const size_t extra = sizeof(mpirun_args) / sizeof(mpirun_args[0]);
    char *argv[ARGS_MAX], count[16];
    size_t n = 0;

    if (l->ranks > 1) {
        snprintf(count, sizeof(count), "%u", l->ranks);
        for (size_t i = 0; i < extra; i++) argv[n++] = (char *)(uintptr_t)mpirun_args[i];
        if (wn_log_max < WN_LOG_INFO) argv[n++] = (char *)(uintptr_t) "--quiet"; /* most of its words say nothing new */
        n = add_folder(argv, n, "orte_tmpdir_base", l->files);
        n = add_folder(argv, n, "btl_vader_backing_directory", l->memory);
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
    /* mpirun takes its ranks along and cleans up; the others have nothing that is not on record */
    return wn_launcher_spawn(argv, l->ranks > 1 ? SIGTERM : SIGKILL, l->out_fd, pid, err);
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
