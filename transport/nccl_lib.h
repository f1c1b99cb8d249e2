/* transport/nccl_lib.h - libnccl's functions, opened at run time, and its codes as ours. Internal to transport/.
 *
 * Owns:    the library, from the first open to the end of the process.
 * Threads: any for open; the functions as NCCL says.
 * Fails:   open: WN_EUNSUPP names the file that is missing, or what it lacks. */
#ifndef WN_TRANSPORT_NCCL_LIB_H
#define WN_TRANSPORT_NCCL_LIB_H

#include <nccl.h>

#include "base/status.h"

#define WN_NCCL_FUNCTIONS(F)                                                                                           \
    F(ncclGetVersion) F(ncclGetUniqueId) F(ncclGetErrorString) F(ncclGetLastError) F(ncclCommInitRankConfig)           \
    F(ncclCommFinalize) F(ncclCommDestroy) F(ncclCommAbort) F(ncclCommGetAsyncError) F(ncclGroupStart) F(ncclGroupEnd) \
    F(ncclAllReduce) F(ncclAllGather) F(ncclBroadcast) F(ncclSend) F(ncclRecv)

struct wn_nccl_lib {
    const char *path;
    int version; /* 22809 is 2.28.9 */
#define MEMBER(name) __typeof__(name) *name;
    WN_NCCL_FUNCTIONS(MEMBER)
#undef MEMBER
    __typeof__(ncclCommRegister) *ncclCommRegister; /* NULL, both, before 2.19 */
    __typeof__(ncclCommDeregister) *ncclCommDeregister;
};

/* *out is good until the process ends. */
WN_NODISCARD wn_status wn_nccl_lib_open(const struct wn_nccl_lib **out, struct wn_err *err);

/* What a code means for the group: WN_OK for ncclSuccess and ncclInProgress. */
static inline wn_status wn_nccl_status(ncclResult_t code)
{
    switch (code) {
    case ncclSuccess:
    case ncclInProgress: return WN_OK;
    case ncclUnhandledCudaError: return WN_EDEVICE;
    case ncclInvalidArgument:
    case ncclInvalidUsage: return WN_EINVAL;
    default: return WN_EPEER; /* a peer, or the network to it */
    }
}

#endif
