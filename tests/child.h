/* tests/child.h - a process that a test starts and ends. */
#ifndef WN_TESTS_CHILD_H
#define WN_TESTS_CHILD_H

#include <sys/types.h>

/* argv[0] is the path of its program. It is killed when the thread that has started it ends. */
pid_t child_start(const char *const *argv);

/* Sends it the signal (0: none) and waits for its end. Returns its status, as waitpid gives it; -1: it was waited for
 * before. */
int child_end(pid_t pid, int sig);

#endif
