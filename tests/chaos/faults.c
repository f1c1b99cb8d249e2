/* tests/chaos/faults.c - see faults.h. */
#include "tests/chaos/faults.h"

#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/processes.h"

#define PIDS_MAX  64
#define UNDO_MAX  64
#define HANG_MS   12000 /* longer than the lease: somebody must have acted before */
#define PAUSE_MS  1200
#define CUT_MS    4000

const char *const fault_names[FAULTS] = {
    "kill scheduler", "kill vision",    "kill rank",   "kill leader", "kill mpirun", "abort rank",
    "leave vision",   "pause any",      "hang scheduler", "hang vision", "hang rank", "hang mpirun",
    "reset link",     "cut clients",    "cut workers", "cut features",
    "slow links",     "kill service",
};

/* What ends later: a stop (pid) or a cut (rule). */
static struct undo {
    int64_t at_us;
    pid_t pid;
    unsigned rule; /* preference of the routing rule; 0: none */
    bool slow;     /* the bucket on all links; the last of them takes it away */
} undos[UNDO_MAX];
static bool network;
static unsigned rules;

bool faults_init(void)
{
    /* the table of local addresses is looked at first: it moves behind the rules that cut */
    network = unshare(CLONE_NEWNET) == 0 && system("ip link set lo up && ip rule add pref 1000 lookup local && "
                                                   "ip rule del pref 0") == 0;
    return network;
}

/* ---- processes ---- */

/* Sends a signal to process `which` of a component. */
static bool hit(const struct service_info *s, const char *name, bool mpirun, unsigned which, int sig, int stop_ms)
{
    pid_t pids[PIDS_MAX];
    const int n = processes_of(s->run_dir, name, mpirun, pids, PIDS_MAX);
    pid_t pid;

    if (n <= 0) return false;
    pid = pids[which % (unsigned)n];
    if (kill(pid, sig) != 0) return false;
    for (int i = 0; stop_ms && i < UNDO_MAX; i++) {
        if (undos[i].at_us) continue;
        undos[i] = (struct undo){.at_us = wn_deadline_in_us((int64_t)stop_ms * 1000), .pid = pid};
        break;
    }
    return true;
}

/* ---- links ---- */

static const char *const hosts[3] = {CLIENTS_HOST, WORKERS_HOST, FEATURES_HOST};

static bool cut(const char *host, int ms)
{
    char command[256];

    for (int i = 0; network && i < UNDO_MAX; i++) {
        if (undos[i].at_us) continue;
        rules = rules % 500 + 1;
        undos[i] = (struct undo){.at_us = wn_deadline_in_us((int64_t)ms * 1000), .rule = rules};
        snprintf(command, sizeof(command), "ip rule add to %s pref %u blackhole && ip route flush cache", host, rules);
        return system(command) == 0;
    }
    return false;
}

static bool slow_links(unsigned mbit, unsigned queue_ms, int ms)
{
    char command[256];

    for (int i = 0; network && i < UNDO_MAX; i++) {
        if (undos[i].at_us) continue;
        /* the burst: a packet of the loopback may have 64 KiB */
        snprintf(command, sizeof(command), "tc qdisc replace dev lo root tbf rate %umbit burst 80k latency %ums", mbit,
                 queue_ms);
        if (system(command) != 0) return false;
        undos[i] = (struct undo){.at_us = wn_deadline_in_us((int64_t)ms * 1000), .slow = true};
        return true;
    }
    return false;
}

static bool reset(const char *host)
{
    char command[256];

    snprintf(command, sizeof(command), "ss -Ktn dst %s > /dev/null", host);
    return network && system(command) == 0;
}

bool faults_strike(const struct service_info *s, fault kind, unsigned dice)
{
    const unsigned which = dice / 64, short_ms = 100 + dice % PAUSE_MS;
    char vision[16], replica[16];

    snprintf(vision, sizeof(vision), "vision-%u", dice % s->vision);
    snprintf(replica, sizeof(replica), "replica-%u", dice % s->replicas);
    switch (kind) {
    case FAULT_KILL_SCHEDULER: return hit(s, "scheduler", false, 0, SIGKILL, 0);
    case FAULT_KILL_VISION: return hit(s, vision, false, 0, SIGKILL, 0);
    case FAULT_KILL_RANK: return hit(s, replica, false, 1 + which % (s->ranks > 1 ? s->ranks - 1 : 1), SIGKILL, 0);
    case FAULT_KILL_LEADER: return hit(s, replica, false, 0, SIGKILL, 0);
    case FAULT_KILL_MPIRUN: return hit(s, replica, true, 0, SIGKILL, 0);
    case FAULT_ABORT_RANK: return hit(s, replica, false, which, SIGABRT, 0);
    case FAULT_LEAVE_VISION: return hit(s, vision, false, 0, SIGTERM, 0);
    case FAULT_HANG_SCHEDULER: return hit(s, "scheduler", false, 0, SIGSTOP, HANG_MS);
    case FAULT_HANG_VISION: return hit(s, vision, false, 0, SIGSTOP, HANG_MS);
    case FAULT_HANG_RANK: return hit(s, replica, false, which, SIGSTOP, HANG_MS);
    case FAULT_HANG_MPIRUN: return hit(s, replica, true, 0, SIGSTOP, HANG_MS);
    case FAULT_PAUSE:
        return hit(s, which % 5 == 0 ? "scheduler" : which % 5 == 1 ? vision : replica, false, which, SIGSTOP,
                   (int)short_ms);
    case FAULT_RESET: return reset(hosts[dice % 3]);
    case FAULT_CUT_CLIENTS: return cut(CLIENTS_HOST, (int)(dice % CUT_MS + 200));
    case FAULT_CUT_WORKERS: return cut(WORKERS_HOST, (int)(dice % CUT_MS + 200));
    case FAULT_CUT_FEATURES: return cut(FEATURES_HOST, (int)(dice % CUT_MS + 200));
    case FAULT_SLOW_LINKS: return slow_links(1 + dice % 8, 50 + which % 350, (int)(dice % CUT_MS + 500));
    case FAULT_KILL_SERVICE: return kill(s->pid, SIGKILL) == 0;
    case FAULTS: break;
    }
    return false;
}

static bool others_slow(const struct undo *u)
{
    for (int i = 0; i < UNDO_MAX; i++)
        if (&undos[i] != u && undos[i].at_us && undos[i].slow) return true;
    return false;
}

static void undo(struct undo *u)
{
    char command[128];

    snprintf(command, sizeof(command), "ip rule del pref %u && ip route flush cache", u->rule);
    if (u->pid) kill(u->pid, SIGCONT); /* most have been ended by then, as they should */
    if (u->rule && system(command) != 0) fprintf(stderr, "chaos: a cut could not be ended\n");
    if (u->slow && !others_slow(u) && system("tc qdisc del dev lo root") != 0)
        fprintf(stderr, "chaos: the links stay slow\n");
    *u = (struct undo){0};
}

void faults_turn(void)
{
    for (int i = 0; i < UNDO_MAX; i++)
        if (undos[i].at_us && wn_deadline_passed(undos[i].at_us)) undo(&undos[i]);
}

void faults_end(void)
{
    for (int i = 0; i < UNDO_MAX; i++)
        if (undos[i].at_us) undo(&undos[i]);
}
