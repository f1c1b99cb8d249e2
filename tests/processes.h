/* tests/processes.h - the processes of a service, found by their command lines. */
#ifndef WN_TESTS_PROCESSES_H
#define WN_TESTS_PROCESSES_H

#include <stdbool.h>
#include <sys/types.h>

/* In ascending order, those with --run-dir=RUN_DIR: all (name NULL), those of a component by its --name ("vision-0"),
 * or the mpirun that started them. Returns how many, up to max. */
int processes_of(const char *run_dir, const char *name, bool mpirun, pid_t *pids, int max);

#endif
