/* daemon/slurm.h - the Slurm job that this service runs in: its nodes, its end, where things go, and the file by which
 * clients find it.
 *
 * Owns:    node list and layout, from open to close; the job's file, from publish to close. Threads: main.
 * Fails:   WN_EFORMAT, WN_ELIMIT: what SLURM_* say; else what layout.h, netif.h and the file system say. */
#ifndef WN_DAEMON_SLURM_H
#define WN_DAEMON_SLURM_H

#include "daemon/config.h"
#include "daemon/layout.h"
#include "daemon/netif.h"

#define WN_SLURM_JOB_LEN 24

struct wn_slurm {
    char job[WN_SLURM_JOB_LEN];
    struct wn_nodelist nodes;
    struct wn_layout layout; /* after place */
    struct wn_netif net;     /* after place: the scheduler's; name "": this process is not where it can be seen */
    bool here;               /* after place: this process runs on the first node, as the scheduler does */
    uint32_t restarts;       /* times that Slurm has queued this job again */
    int64_t end_s;           /* when Slurm ends it, Unix time; 0: unknown */
    char file[WN_PATH_LEN];  /* that publish wrote; "": none */
};

/* Does this process run in a job? */
bool wn_slurm_inside(void);

/* Reads SLURM_JOB_ID, _NODELIST, _END_TIME and SLURM_RESTART_COUNT. *s is zero before. */
WN_NODISCARD wn_status wn_slurm_open(struct wn_slurm *s, struct wn_err *err);

/* The layout (--layout), and addresses that other nodes reach: sets the options host, port and scheduler-endpoint
 * unless the user did. `stages` and `tensors` are the plan's. */
WN_NODISCARD wn_status wn_slurm_place(struct wn_slurm *s, struct wn_config *cfg, uint32_t stages, uint32_t tensors,
                                      struct wn_err *err);

/* Where everything is, for the job's log: lines that could be a file for --layout. After place. */
void wn_slurm_print(const struct wn_slurm *s, const struct wn_config *cfg, uint32_t stages, uint32_t tensors, FILE *f);

/* Asks squeue when the job ends, and puts it into end_s; what is there stays if there is no answer. True: later than
 * before. Jobs are given more time; older Slurms do not set SLURM_JOB_END_TIME, and none sets it anew. Takes a second,
 * or five where Slurm does not answer. */
bool wn_slurm_ask_end(struct wn_slurm *s);

/* Asks squeue which of its nodes the job has lost: Slurm takes one that has failed away from a job that was submitted
 * with --no-kill. false: no answer, or none is lost. Takes as long as ask_end. */
bool wn_slurm_ask_lost(const struct wn_slurm *s, bool *lost /* [nodes.n] */);

/* Removes the file that a run of this job has left which was killed: clients would look at its address. */
void wn_slurm_forget(const struct wn_slurm *s);

/* Writes ~/.winnow/slurm/JOBID (0600, the folder 0700) for clients that ask for slurm:JOBID. key_file "": none. */
WN_NODISCARD wn_status wn_slurm_publish(struct wn_slurm *s, const char *endpoint, const char *key_file,
                                        struct wn_err *err);

/* Removes the file. Safe on a zeroed struct. */
void wn_slurm_close(struct wn_slurm *s);

/* When to start draining, on wn_now_us()'s clock, so that `grace_s` and a margin are left; WN_NEVER without an end. */
int64_t wn_slurm_drain_us(const struct wn_slurm *s, uint32_t grace_s);

/* Tasks of this step on this node; 1 outside of one. */
uint32_t wn_slurm_local_tasks(void);

/* Ranks of all replicas on this node, which share its cores, as the layout says; at least the tasks of this step. */
uint32_t wn_slurm_ranks_here(const struct wn_config *cfg);

#endif
