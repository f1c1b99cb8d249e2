/* tests/chaos/faults.h - what the chaos driver does to a service: ends, stops and cuts off its processes.
 *
 * The driver and the service have a network of their own (a namespace with a loopback alone), where each link has an
 * address: cut means that nothing reaches it, reset that its connections are closed. (Kernels without netem delay and
 * lose packets by tc's token bucket.)
 * Threads: one. */
#ifndef WN_TESTS_CHAOS_FAULTS_H
#define WN_TESTS_CHAOS_FAULTS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define CLIENTS_HOST  "127.0.0.4"
#define WORKERS_HOST  "127.0.0.2"
#define FEATURES_HOST "127.0.0.3"

typedef enum fault {
    FAULT_KILL_SCHEDULER,
    FAULT_KILL_VISION,
    FAULT_KILL_RANK,
    FAULT_KILL_LEADER,
    FAULT_KILL_MPIRUN,
    FAULT_ABORT_RANK,
    FAULT_LEAVE_VISION, /* SIGTERM: it ends by itself */
    FAULT_PAUSE,        /* any process, shorter than a lease */
    FAULT_HANG_SCHEDULER,
    FAULT_HANG_VISION,
    FAULT_HANG_RANK, /* or the leader */
    FAULT_HANG_MPIRUN,
    FAULT_RESET, /* any link */
    FAULT_CUT_CLIENTS,
    FAULT_CUT_WORKERS,
    FAULT_CUT_FEATURES,
    FAULT_SLOW_LINKS, /* all: little bandwidth and a short queue, so that bytes come late and packets are lost */
    FAULT_KILL_SERVICE, /* the supervisor; the driver starts it again once nothing of it is left */
    FAULTS
} fault;

extern const char *const fault_names[FAULTS];

struct service_info {
    const char *run_dir;
    pid_t pid;
    unsigned vision, replicas, ranks;
};

/* A network of our own. false: not allowed here; then faults of the network do nothing. */
bool faults_init(void);

/* Does it, to a process or link that `dice` chooses. false: there was nothing to do it to. */
bool faults_strike(const struct service_info *s, fault kind, unsigned dice);

void faults_turn(void); /* ends stops and cuts whose time is over */
void faults_end(void);  /* ends them all */

#endif
