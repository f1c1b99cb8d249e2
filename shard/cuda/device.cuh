/* shard/cuda/device.cuh - the instructions that CUDA C++ has no words for, and the launch. sm_80 and later. */
#ifndef WN_SHARD_CUDA_DEVICE_CUH
#define WN_SHARD_CUDA_DEVICE_CUH

#include <stdint.h>

#include <cuda_runtime.h>

#include "shard/cuda/launch.h"

#define WN_LAUNCH(kernel, grid, block, shared, on, ...) \
    wn_launch((kernel), (grid), (block), (shared), (on), __VA_ARGS__)

/* What is refused is found by cudaGetLastError, as after <<< >>>. */
template <typename... P, typename... A>
static inline void wn_launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, wn_cuda_stream on, A... args)
{
    cudaLaunchAttribute early = {};
    cudaLaunchConfig_t config = {};

    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared;
    config.stream = on.queue;
    config.attrs = &early;
    config.numAttrs = on.early ? 1 : 0;
    (void)cudaLaunchKernelEx(&config, kernel, P(args)...);
}

/* Every thread of every kernel that may be launched early calls it, before it touches what other kernels write, or
 * writes: the kernel before has ended then, and with it all that came before that one. The next kernel may start its
 * blocks as soon as all of this one's have come here. Nothing happens in launches that are not early. */
__device__ __forceinline__ void wn_follow(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

#define WN_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

/* More than 48 KiB of dynamic shared memory has to be asked for, once a kernel. Such a kernel wants all of a
 * multiprocessor's memory as that, for a second block; what it reads is there, and does not come by way of L1. */
template <typename K> static inline int wn_allow_shared(K kernel, size_t bytes)
{
    const int rc = (int)cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);

    if (rc != 0) return rc;
    return (int)cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                     (int)cudaSharedmemCarveoutMaxShared);
}

/* Is there code for the device of this thread? */
template <typename K> static inline int wn_has_code(K kernel)
{
    struct cudaFuncAttributes a;
    return (int)cudaFuncGetAttributes(&a, kernel);
}

__device__ __forceinline__ float wn_f16_value(uint16_t h)
{
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}

/* Two bfloat16 in a register, lo in the lower half; rounded to nearest even. */
__device__ __forceinline__ uint32_t wn_pack_bf16(float lo, float hi)
{
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

/* a + b, each two bfloat16; rounded to nearest even. A multiply-add by one: 8.0 has no addition. */
__device__ __forceinline__ uint32_t wn_add_bf16(uint32_t a, uint32_t b)
{
    uint32_t r;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(0x3f803f80u), "r"(b));
    return r;
}

/* Copies 16 bytes from global to shared memory, or the first `bytes` of them and zeros after; both 16-byte aligned. */
__device__ __forceinline__ void wn_cp_async(void *shared, const void *global, uint32_t bytes)
{
    uint32_t s = (uint32_t)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(s), "l"(global), "r"(bytes) : "memory");
}

__device__ __forceinline__ void wn_cp_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Waits until at most N of the thread's groups are pending. */
template <int N> __device__ __forceinline__ void wn_cp_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/* c[16, 8] += a[16, 16] * b[16, 8], bfloat16 with float32 sums. With g = lane / 4 and t = lane % 4:
 * a: rows g, g + 8, g, g + 8 at columns 2t, 2t, 2t + 8, 2t + 8; b: rows 2t, 2t + 8 of column g;
 * c: rows g, g, g + 8, g + 8 at columns 2t, 2t + 1, 2t, 2t + 1. */
__device__ __forceinline__ void wn_mma(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Four 8 x 8 matrices of 16-bit values: lane 8i + r names row r (16 bytes) of matrix i in shared memory; r[i] gets
 * elements (g, 2t) and (g, 2t + 1) of matrix i. */
__device__ __forceinline__ void wn_ldmatrix(uint32_t r[4], const void *shared)
{
    uint32_t s = (uint32_t)__cvta_generic_to_shared(shared);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(s)
                 : "memory");
}

/* Four 8 x 8 matrices of 16-bit values, transposed: lane 8i + r names row r (16 bytes) of matrix i in shared memory;
 * r[i] gets elements (2t, g) and (2t + 1, g) of matrix i. */
__device__ __forceinline__ void wn_ldmatrix_trans(uint32_t r[4], const void *shared)
{
    uint32_t s = (uint32_t)__cvta_generic_to_shared(shared);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(s)
                 : "memory");
}

#endif
