/* shard/cuda/cuda_backend.h - the "cuda" backend: NVIDIA GPUs of compute capability 8.0 and later.
 *
 * WINNOW_CUDA_KERNELS chooses what computes (shard/cuda/geometry.h): "plain" loops, "exact" tensor-core kernels that
 * hold the whole bit contract of shard/backend.h, or "fast", the default, where matmuls of more than 64 rows go to
 * cuBLASLt. Then a row's bits are the same for every batch of up to 64 rows, and for every batch above that as far as
 * cuBLASLt's one algorithm a shape class keeps them; they may differ between the two, and `slices` is not honoured
 * above, so with tensor ranks prefill sums round differently for each T. int8 weights hold the contract in all three:
 * cuBLASLt has nothing for them (shard/cuda/matmul_many.cu says why).
 *
 * Owns:    device, stream and pinned memory, from open to close. Threads: one, the engine's.
 * Fails:   WN_EUNSUPP (no driver, no device, a device too old), WN_EINVAL (no such device, unknown kernels),
 *          WN_ENOMEM, WN_EDEVICE. */
#ifndef WN_SHARD_CUDA_CUDA_BACKEND_H
#define WN_SHARD_CUDA_CUDA_BACKEND_H

#include "shard/backend.h"

extern const struct wn_backend_ops wn_backend_cuda;

struct wn_cuda_info {
    char name[64];
    int major, minor, processors;
    uint64_t free_bytes, total_bytes;
};

/* What device number `device` is, without opening it for work. */
WN_NODISCARD wn_status wn_cuda_info(struct wn_cuda_info *out, int device, struct wn_err *err);

/* Bytes of weights that went to the device since open, and the time that their uploads took the host. */
void wn_cuda_load_rate(const struct wn_backend *be, uint64_t *bytes, uint64_t *us);

#endif
