/* daemon/crew.h - the processes that make a service: what runs with which flags, where, and by which launcher. `winnow
 * serve` keeps a crew running; `winnow check` sends probes to the same places.
 *
 * A crew is filled in the order of the functions below. Parts: the scheduler, the vision workers, the replicas.
 * Owns:    argument blocks, the Slurm job's node list, and the run folder (daemon/run_dir.h), from zeroed to close. The
 *          configuration and the plan are borrowed; the configuration gets the addresses that are chosen here.
 * Threads: main.
 * Fails:   WN_EINVAL, WN_EIO, and what slurm.h and launcher.h say. */
#ifndef WN_DAEMON_CREW_H
#define WN_DAEMON_CREW_H

#include "daemon/config.h"
#include "daemon/launcher.h"
#include "daemon/run_dir.h"
#include "daemon/slurm.h"
#include "shard/plan.h"

struct wn_crew_part {
    char name[WN_NAME_LEN]; /* "scheduler", "vision-0", "replica-0" */
    unsigned ranks;
    char **argv, **flags; /* owned blocks: the arguments, and the texts of most of them */
    const char **nodes;   /* [ranks] owned; NULL: here */
    char name_flag[WN_NAME_LEN + 8];
};

struct wn_crew {
    struct wn_config *cfg;
    const struct wn_plan *plan;
    const struct wn_launcher_ops *launcher;
    struct wn_slurm slurm; /* job "": not inside one */
    char program[WN_PATH_LEN], run_flag[WN_PATH_LEN + 16], port_flag[32], expect_flags[2][48];
    struct wn_run_dir run;
    struct wn_crew_part *parts;
    size_t parts_n;
};

/* Where: on this machine, or on the nodes of the Slurm job that this process runs in. */
WN_NODISCARD wn_status wn_crew_place(struct wn_crew *c, struct wn_err *err);

/* Binds the clients' address for a moment: a port in use is said before weights load, and port 0 becomes a free one. */
WN_NODISCARD wn_status wn_crew_choose_port(struct wn_crew *c, struct wn_err *err);

/* The addresses may be used as they are, and with --keys every role's files are there, are in order, and belong
 * together. */
WN_NODISCARD wn_status wn_crew_check_keys(const struct wn_crew *c, struct wn_err *err);

/* Makes the run folder and the parts; role NULL: each part's own, else all get this role of winnowd. */
WN_NODISCARD wn_status wn_crew_make(struct wn_crew *c, const char *role, struct wn_err *err);

/* Starts a part. out_fd: where its standard output and error go; 0: to those of this process. */
WN_NODISCARD wn_status wn_crew_start(const struct wn_crew *c, size_t part, int out_fd, pid_t *pid, struct wn_err *err);

/* A part is to be started again: where the layout is ours (auto), ranks whose nodes the job has lost get another one,
 * the one with the least to do. */
void wn_crew_move(struct wn_crew *c, size_t part);

/* All its processes have ended: what they have left in the run folder is removed. */
void wn_crew_ended(const struct wn_crew *c, size_t part);

/* The address at which a process on the scheduler's machine, or in its job, asks as a client. out has `size` bytes. */
void wn_crew_client_address(const struct wn_crew *c, char *out, size_t size);

/* Frees what it owns and closes the run folder; its processes have ended. Safe on a zeroed struct. */
void wn_crew_close(struct wn_crew *c);

#endif
