/* transport/nccl_none.c - in place of nccl.c in a build that found no CUDA or NCCL headers. */
#include "transport/nccl.h"

wn_status wn_nccl_attach(struct wn_link *link, const struct wn_nccl_opts *opts, struct wn_err *err)
{
    (void)link;
    (void)opts;
    return wn_fail(err, WN_EUNSUPP, "this build has no NCCL: nccl.h or nvcc was not found when it was configured");
}

void wn_nccl_detach(struct wn_link *link)
{
    (void)link;
}
