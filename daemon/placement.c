/* daemon/placement.c - see placement.h. */
#include "daemon/placement.h"

#include <limits.h>
#include <omp.h>
#include <stdlib.h>

#include "base/log.h"

static uint32_t cores_in(hwloc_topology_t t, hwloc_const_cpuset_t set)
{
    const int cores = hwloc_get_nbobjs_inside_cpuset_by_type(t, set, HWLOC_OBJ_CORE);
    /* a topology without cores (some containers), or a set of half cores: processors count */
    return cores > 0 ? (uint32_t)cores : (uint32_t)hwloc_bitmap_weight(set);
}

bool wn_placement_choose(hwloc_topology_t t, hwloc_const_cpuset_t allowed, const struct wn_placement *p,
                         hwloc_cpuset_t out, uint32_t *threads)
{
    const uint32_t cores = cores_in(t, allowed), ranks = p->ranks ? p->ranks : 1;
    hwloc_cpuset_t *sets;
    hwloc_obj_t root;
    bool placed = false;

    *threads = cores / ranks ? cores / ranks : 1;
    root = hwloc_get_obj_covering_cpuset(t, allowed);
    if (!root || p->rank >= ranks || ranks + p->others > cores) return false;
    sets = calloc(ranks, sizeof(hwloc_cpuset_t));
    if (!sets) return false;
    if (hwloc_distrib(t, &root, 1, sets, ranks, INT_MAX, 0) == 0) {
        hwloc_bitmap_and(out, sets[p->rank], allowed);
        placed = !hwloc_bitmap_iszero(out);
        if (placed) *threads = cores_in(t, out);
        for (uint32_t i = 0; i < ranks; i++) hwloc_bitmap_free(sets[i]);
    }
    free(sets);
    return placed;
}

/* Each thread of the team binds itself; main too, so that the threads it starts later stay near. */
static void bind_team(hwloc_topology_t t, hwloc_const_cpuset_t set)
{
    int failed = 0;
#pragma omp parallel reduction(+ : failed)
    failed += hwloc_set_cpubind(t, set, HWLOC_CPUBIND_THREAD) != 0;
    if (failed) wn_info("placement", "%d threads could not be bound: they run on any core", failed);
}

bool wn_placement_apply(const struct wn_placement *p, uint32_t wish)
{
    hwloc_topology_t t = NULL;
    hwloc_cpuset_t mine = hwloc_bitmap_alloc(), out = hwloc_bitmap_alloc();
    hwloc_const_cpuset_t allowed;
    uint32_t threads = 1;
    char text[128];
    bool ours, known = false;

    if (!mine || !out || hwloc_topology_init(&t) != 0 || hwloc_topology_load(t) != 0) goto out;
    known = true;
    allowed = hwloc_topology_get_allowed_cpuset(t);
    if (hwloc_get_cpubind(t, mine, HWLOC_CPUBIND_PROCESS) != 0) hwloc_bitmap_copy(mine, allowed);
    hwloc_bitmap_and(mine, mine, allowed);
    ours = hwloc_bitmap_isequal(mine, allowed); /* nobody has bound us */
    if (!wn_placement_choose(t, mine, p, out, &threads)) ours = false;
    omp_set_num_threads((int)(wish ? wish : threads));
    if (ours) {
        bind_team(t, out);
        hwloc_bitmap_list_snprintf(text, sizeof(text), out);
        wn_info("placement", "rank %u of %u on this machine: cores %s", p->rank, p->ranks, text);
    }
out:
    hwloc_bitmap_free(out);
    hwloc_bitmap_free(mine);
    if (t) hwloc_topology_destroy(t);
    return known;
}
