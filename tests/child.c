/* tests/child.c - see child.h. */
#include "tests/child.h"

#include <signal.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/status.h"

pid_t child_start(const char *const *argv)
{
    const pid_t pid = fork();

    WN_ASSERT(pid >= 0);
    if (pid > 0) return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    execv(argv[0], (char **)(uintptr_t)argv);
    _exit(127);
}

int child_end(pid_t pid, int sig)
{
    int status = 0;

    WN_ASSERT(pid > 0); /* 0 and -1 are other processes */
    kill(pid, sig);
    return waitpid(pid, &status, 0) == pid ? status : -1;
}
