/* daemon/scheduler_role.c - `winnowd scheduler`. */
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "daemon/harden.h"
#include "daemon/roles.h"
#include "daemon/scheduler.h"

#define LOCK_US 180000000ll /* twice what NFS takes, see below */
#define LOOK_MS 500         /* between two tries at the lock */

/* A Slurm job that is queued again because a node was lost may find its journal locked: a file server lets go of what a
 * host held that is gone after a time of its own, 90 s with NFS. `fd`: a signal ends the waiting. */
static wn_status open_scheduler(struct wn_scheduler **out, const struct wn_config *cfg, const char *workers, int fd,
                                struct wn_err *err)
{
    const char *runs = getenv("SLURM_RESTART_COUNT");
    const int64_t until = wn_deadline_in_us(runs && strtoul(runs, NULL, 10) > 0 ? LOCK_US : 0);
    struct pollfd signals = {.fd = fd, .events = POLLIN};
    bool said = false;
    wn_status rc;

    while ((rc = wn_scheduler_open(out, cfg, workers, err)) == WN_EBUSY && !wn_deadline_passed(until)) {
        if (!said) wn_warn("scheduler", "%s, perhaps of the run before; waiting for at most %lld s", err->text,
                           LOCK_US / 1000000);
        said = true;
        if (poll(&signals, 1, LOOK_MS) > 0) break;
    }
    return rc;
}

int wn_role_scheduler(int argc, char **argv)
{
    static const char usage[] = "winnowd scheduler [OPTION]...\n"
                                "Takes jobs from clients and hands them to vision workers and replicas.";
    struct wn_scheduler *s = NULL;
    struct wn_config cfg;
    struct wn_err err = {0};
    char workers[WN_TEXT_LEN];
    sigset_t signals;
    int fd = -1, code = wn_config_start(&cfg, argc, argv, usage, WN_OPTIONS_SERVICE);

    if (code >= 0) return code;
    if (!wn_role_has_place(&cfg)) return 2;
    code = 1;
    wn_log_role("%s", cfg.name[0] ? cfg.name : "scheduler");
    wn_harden(cfg.keys[0] != '\0', false);
    if (wn_raise_files(&err) != WN_OK) goto out;
    wn_role_scheduler_address(&cfg, workers, sizeof(workers));
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGUSR1); /* srun passes this one on */
    sigprocmask(SIG_BLOCK, &signals, NULL); /* before ZeroMQ's threads start: they inherit it */
    signal(SIGPIPE, SIG_IGN);
    fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    if (fd < 0) {
        wn_fail(&err, WN_EIO, "signalfd failed");
        goto out;
    }
    if (open_scheduler(&s, &cfg, workers, fd, &err) != WN_OK) goto out;
    wn_info("scheduler", "clients at %s, workers at %s", wn_scheduler_client_address(s),
            wn_scheduler_worker_address(s));
    if (wn_scheduler_run(s, fd, &err) == WN_OK) code = 0;
out:
    if (code) fprintf(stderr, "winnow: %s\n", err.text);
    wn_scheduler_close(s);
    if (fd >= 0) close(fd);
    return code;
}
