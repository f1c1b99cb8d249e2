/* daemon/roles.h - the entry points of winnowd's roles and commands: one file each, one row each in main.c.
 * Each parses its own flags and returns the process's exit code: 0 done, 1 failed, 2 usage, WN_EXIT_LOST. */
#ifndef WN_DAEMON_ROLES_H
#define WN_DAEMON_ROLES_H

#include "daemon/config.h"

#define WN_EXIT_LOST 3 /* a rank was lost: the group has to be started again */

int wn_role_scheduler(int argc, char **argv);
int wn_role_vision(int argc, char **argv);
int wn_role_shard(int argc, char **argv);
int wn_role_serve(int argc, char **argv); /* supervisor */
int wn_cmd_bench_link(int argc, char **argv); /* as `winnow bench link` */
int wn_role_probe(int argc, char **argv); /* a part of check */
int wn_cmd_check(int argc, char **argv);
int wn_cmd_plan(int argc, char **argv);
int wn_cmd_prune(int argc, char **argv);

/* Is a model named? Else it says so, and the command ends with 2. */
bool wn_role_has_model(const struct wn_config *cfg);

/* Is there a place for the sockets of a role that is started by hand? Else it says so, and the role ends with 2. */
bool wn_role_has_place(const struct wn_config *cfg);

/* Where workers reach the scheduler: --scheduler-endpoint, else a socket in --run-dir. */
void wn_role_scheduler_address(const struct wn_config *cfg, char *out, size_t size);

#endif
