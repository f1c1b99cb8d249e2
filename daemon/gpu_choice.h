/* daemon/gpu_choice.h - which GPU a rank takes. A pure function of what CUDA and the launcher show the process.
 *
 * CUDA numbers the devices that CUDA_VISIBLE_DEVICES leaves, from 0; Slurm's binding (--gpus-per-task) sets that
 * variable for each task. So a rank that sees one device takes number 0, whichever card that is; ranks that see several
 * take one each, in the order of their places on the host, and the next replica of the host goes on from there. Entries
 * may be numbers or UUIDs; CUDA stops at the first that it does not know.
 *
 * Of MIG instances CUDA shows a process one, the first that the variable lists. So where it lists several, a rank takes
 * one in the same way, and makes the variable name that one alone before it asks CUDA for anything.
 *
 * Owns: nothing. Threads: any.
 * Fails: WN_EUNSUPP: no device. WN_EINVAL: no such device, a list that makes no sense, or ranks of one replica would
 * share a device unasked. */
#ifndef WN_DAEMON_GPU_CHOICE_H
#define WN_DAEMON_GPU_CHOICE_H

#include <stdint.h>

#include "base/status.h"

#define WN_GPU_UNASKED (-1)

struct wn_gpu_place {
    int visible;             /* devices that CUDA shows this process */
    int asked;               /* N of --backend cuda:N, which always holds; else WN_GPU_UNASKED */
    uint32_t replica;        /* number of the rank's replica */
    uint32_t ranks, rank;    /* of the replica on this host, and which of them this is */
    const char *visible_env; /* CUDA_VISIBLE_DEVICES for error texts; NULL: not set */
};

/* Devices that a value of CUDA_VISIBLE_DEVICES lists; NULL: none. */
int wn_gpu_listed(const char *visible_env);

/* What the variable has to become for this rank, if it lists several MIG instances; "" if it stays as it is. p->visible
 * is not read. */
#define WN_GPU_NAME_MAX 128
WN_NODISCARD wn_status wn_gpu_choose_mig(const struct wn_gpu_place *p, char out[WN_GPU_NAME_MAX], struct wn_err *err);

WN_NODISCARD wn_status wn_gpu_choose(const struct wn_gpu_place *p, int *device, struct wn_err *err);

#endif
