/* daemon/launcher.c - what launchers share. See launcher.h. */
#include "daemon/launcher.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#define SEGMENT_BYTES "16777216"
#define BESIDE_BYTES  ((size_t)1 << 20) /* of a rank: PMIx and what else is shared */

/* For what is started: the processes of a service share the cores, and one that spins keeps the one it waits for from
 * running. Threads at a barrier sleep after some microseconds, idle ranks yield. Rows of up to 64 KiB go at once
 * between ranks of a host: larger messages move only while both ends are in a call, so that a stage which computes
 * holds up the one after it. What the user has set stays. */
static const char *const settings[][2] = {
    {"GOMP_SPINCOUNT", "4000"},
    {"OMPI_MCA_mpi_yield_when_idle", "1"},
    {"OMPI_MCA_btl_vader_eager_limit", "65536"},
    {"OMPI_MCA_btl_vader_max_send_size", "65536"},
    {"OMPI_MCA_btl_vader_segment_size", SEGMENT_BYTES},
};

size_t wn_launcher_memory(unsigned ranks)
{
    const char *text = getenv("OMPI_MCA_btl_vader_segment_size");

    if (!text) text = SEGMENT_BYTES;
    return ranks * ((size_t)strtoull(text, NULL, 10) + BESIDE_BYTES);
}

/* In the child; does not return. */
static void child(char **argv, pid_t parent, int end_signal, int out_fd)
{
    sigset_t none;

    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setpgid(0, 0); /* a Ctrl-C at the terminal is for the supervisor, which ends the others in order */
    prctl(PR_SET_PDEATHSIG, end_signal);
    if (getppid() != parent) _exit(1); /* it died before the line above */
    if (out_fd && (dup2(out_fd, STDOUT_FILENO) < 0 || dup2(out_fd, STDERR_FILENO) < 0)) _exit(1);
    execvp(argv[0], argv);
    fprintf(stderr, "winnow: %s: %s\n", argv[0], strerror(errno));
    _exit(127);
}

wn_status wn_launcher_spawn(char **argv, int end_signal, int out_fd, pid_t *pid, struct wn_err *err)
{
    const pid_t self = getpid();
    pid_t got;

    for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++) setenv(settings[i][0], settings[i][1], 0);
    got = fork();
    if (got == 0) child(argv, self, end_signal, out_fd);
    if (got < 0) return wn_fail(err, WN_EIO, "fork for %s: %s", argv[0], strerror(errno));
    *pid = got;
    return WN_OK;
}
