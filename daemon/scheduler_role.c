/* daemon/scheduler_role.c - `winnowd scheduler`. */
#include <signal.h>
#include <stdio.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/log.h"
#include "daemon/harden.h"
#include "daemon/roles.h"
#include "daemon/scheduler.h"

int wn_role_scheduler(int argc, char **argv)
{
    static const char usage[] = "Usage: winnowd scheduler [OPTION]...\n"
                                "Takes jobs from clients and hands them to vision workers and replicas.";
    struct wn_scheduler *s = NULL;
    struct wn_config cfg;
    struct wn_err err = {0};
    char workers[WN_TEXT_LEN];
    sigset_t signals;
    int fd = -1, code = wn_config_start(&cfg, argc, argv, usage);

    if (code >= 0) return code;
    code = 1;
    wn_log_role("%s", cfg.name[0] ? cfg.name : "scheduler");
    wn_harden(cfg.keys[0] != '\0', false);
    wn_role_scheduler_address(&cfg, workers);
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGUSR1); /* srun passes this one on */
    sigprocmask(SIG_BLOCK, &signals, NULL); /* before ZeroMQ's threads start: they inherit it */
    fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    if (fd < 0) {
        wn_fail(&err, WN_EIO, "signalfd failed");
        goto out;
    }
    if (wn_scheduler_open(&s, &cfg, workers, &err) != WN_OK) goto out;
    wn_info("scheduler", "clients at %s, workers at %s", wn_scheduler_client_address(s),
            wn_scheduler_worker_address(s));
    if (wn_scheduler_run(s, fd, &err) == WN_OK) code = 0;
out:
    if (code) fprintf(stderr, "winnow: %s\n", err.text);
    wn_scheduler_close(s);
    if (fd >= 0) close(fd);
    return code;
}
