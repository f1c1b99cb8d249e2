/* transport/cuda_check.h - the one place where CUDA's codes become ours. For transport/ and shard/cuda/. */
#ifndef WN_TRANSPORT_CUDA_CHECK_H
#define WN_TRANSPORT_CUDA_CHECK_H

#include <cuda_runtime_api.h>

#include "base/log.h"
#include "base/status.h"

/* WN_OK, WN_ENOMEM, or WN_EDEVICE with CUDA's own sentence: "what: out of memory". Without err, as in operations, which
 * have nobody to tell, the log gets it: a device that fails says why once, and after that the same to every call. */
static inline wn_status wn_cuda_check(cudaError_t code, const char *what, struct wn_err *err)
{
    if (code == cudaSuccess) return WN_OK;
    (void)cudaGetLastError(); /* a refused call leaves its code behind, and the next launch would report it */
    if (!err && code != cudaErrorMemoryAllocation) wn_error("cuda", "%s: %s", what, cudaGetErrorString(code));
    return wn_fail(err, code == cudaErrorMemoryAllocation ? WN_ENOMEM : WN_EDEVICE, "cuda: %s: %s", what,
                   cudaGetErrorString(code));
}

#endif
