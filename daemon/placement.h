/* daemon/placement.h - on which cores the compute threads of a rank run.
 *
 * Ranks of one machine get equal shares of its cores, neighbours in the topology, so that a rank's threads share a
 * cache and do not wander. Nobody is bound where that could make a thread wait for a core while another is free: when
 * there are more ranks and vision workers than cores, or when somebody (Slurm, mpirun, taskset) has bound the process.
 *
 * Owns: nothing. Threads: any for the choice; apply from the main thread, before the backend opens. */
#ifndef WN_DAEMON_PLACEMENT_H
#define WN_DAEMON_PLACEMENT_H

#include <hwloc.h>
#include <stdbool.h>
#include <stdint.h>

struct wn_placement {
    uint32_t ranks, rank; /* on this machine, of all its replicas; which of them this is */
    uint32_t others;      /* other processes that compute: vision workers */
};

/* The cores of `allowed` that are this rank's, into `out`; *threads: one for each core. False: no place of its own, and
 * *threads is a fair share of `allowed`, at least 1. */
bool wn_placement_choose(hwloc_topology_t topology, hwloc_const_cpuset_t allowed, const struct wn_placement *p,
                         hwloc_cpuset_t out, uint32_t *threads);

/* Places the OpenMP threads of this process; `threads` 0: as many as wn_placement_choose says. A process that cannot be
 * bound runs anywhere. False: the machine's topology could not be read, and nothing was set. */
bool wn_placement_apply(const struct wn_placement *p, uint32_t threads);

#endif
