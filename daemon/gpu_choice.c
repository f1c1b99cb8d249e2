/* daemon/gpu_choice.c - see gpu_choice.h. */
#include "daemon/gpu_choice.h"

wn_status wn_gpu_choose(const struct wn_gpu_place *p, int *device, struct wn_err *err)
{
    const char *env = p->visible_env ? p->visible_env : "not set";

    if (p->visible < 1) return wn_fail(err, WN_EUNSUPP, "no GPU is visible here (CUDA_VISIBLE_DEVICES: %.80s)", env);
    if (p->asked >= p->visible)
        return wn_fail(err, WN_EINVAL, "GPU %d was asked for, and %d are visible here (CUDA_VISIBLE_DEVICES: %.80s)",
                       p->asked, p->visible, env);
    if (p->asked >= 0) {
        *device = p->asked;
    } else if (p->visible == 1) {
        *device = 0; /* bound to it; two ranks with the same one are found when their communicator opens */
    } else if (p->ranks > (uint32_t)p->visible) {
        return wn_fail(err, WN_EINVAL,
                       "%u ranks of a replica on a host where %d GPUs are visible (CUDA_VISIBLE_DEVICES: %.80s): start "
                       "fewer there, or name one that they share with --backend cuda:N",
                       p->ranks, p->visible, env);
    } else {
        *device = (int)(((uint64_t)p->replica * p->ranks + p->rank) % (uint32_t)p->visible);
    }
    return WN_OK;
}
