/* daemon/gpu_choice.h - which GPU a rank takes. A pure function of what CUDA and the launcher show the process.
 *
 * CUDA numbers the devices that CUDA_VISIBLE_DEVICES leaves, from 0; Slurm's binding (--gpus-per-task) sets that
 * variable for each task. So a rank that sees one device takes number 0, whichever card that is; ranks that see several
 * take one each, in the order of their places on the host, and the next replica of the host goes on from there.
 *
 * Owns: nothing. Threads: any.
 * Fails: WN_EUNSUPP: no device. WN_EINVAL: no such device, or ranks of one replica would share one unasked. */
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

WN_NODISCARD wn_status wn_gpu_choose(const struct wn_gpu_place *p, int *device, struct wn_err *err);

#endif
