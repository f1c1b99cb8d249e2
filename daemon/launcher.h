/* daemon/launcher.h - how the supervisor starts the processes of a component, and ends them. One launcher a
 * file.
 *
 * Owns:    a started component's processes, until they have ended and been reaped by the supervisor. Threads:
 *          main.
 * Fails: WN_EIO names the command. */
#ifndef WN_DAEMON_LAUNCHER_H
#define WN_DAEMON_LAUNCHER_H

#include <stddef.h>
#include <sys/types.h>

#include "daemon/config.h"

/* What to start: argv of one process, and how many of them as one MPI job (1: no MPI). */
struct wn_launch {
    char **argv; /* NULL-terminated, borrowed; argv[0] is a path */
    unsigned ranks;
    const char *name;             /* "replica-0" */
    const char *const *nodes;     /* [ranks] where each runs; slurm only */
    const struct wn_config *cfg;
    const char *files, *memory;   /* folders of the component's own, for MPI; NULL or "": there is none */
    int out_fd; /* standard output and error of what is started; 0: those of this process */
};

struct wn_launcher_ops {
    const char *name; /* "local", "slurm" */
    /* *pid ends when the component has ended, with its exit code */
    wn_status (*start)(const struct wn_launch *l, pid_t *pid, struct wn_err *err);
    void (*signal)(pid_t pid, int sig); /* to the whole component: SIGTERM or SIGKILL */
};

/* Bytes of shared memory that so many ranks on one machine may come to use. */
size_t wn_launcher_memory(unsigned ranks);

extern const struct wn_launcher_ops wn_launcher_local; /* fork and exec here; mpirun for several ranks */
extern const struct wn_launcher_ops wn_launcher_slurm; /* a job step for each component */

/* For launchers: fork and exec, in a process group of its own, which gets `end_signal` when this process dies. out_fd
 * as above. */
WN_NODISCARD wn_status wn_launcher_spawn(char **argv, int end_signal, int out_fd, pid_t *pid, struct wn_err *err);

#endif
