/* tests/integration/sched_proc.h - a real `winnowd scheduler` as a child of the test: it can be killed and started
 * again at the same addresses. Threads: started and ended by one (see tests/child.h). */
#ifndef WN_TESTS_SCHED_PROC_H
#define WN_TESTS_SCHED_PROC_H

#include <stdbool.h>
#include <sys/types.h>

#include "client/winnow.h"

struct sched_proc {
    const char *winnowd, *folder; /* the program; of its sockets */
    char clients[64], workers[96]; /* addresses */
    pid_t pid;
};

/* Chooses its addresses: a port that is free now, and a socket in the folder. */
void sched_proc_init(struct sched_proc *s, const char *winnowd, const char *folder);

/* On a journal's folder, with more flags; both end before it. */
void sched_proc_start(struct sched_proc *s, const char *journal, const char *const *flags);

/* Returns its status, as waitpid gives it. */
int sched_proc_end(struct sched_proc *s, int sig);

/* A client that is patient while the scheduler is away. The test fails if there is no connection. */
struct winnow *sched_proc_connect(const struct sched_proc *s, bool keep_results);

#endif
