/* tests/cudasim/device.cuh - CUDA C++ as the kernels of shard/cuda use it, for an ordinary C++ compiler: blocks run one
 * after the other, and the threads of a block are fibers that change at barriers and warp operations only. Between two
 * of those a thread runs to the end of its section before another starts, so a missing barrier shows as a wrong result;
 * asynchronous copies happen as late as they may, at the wait, so a missing wait does too. Dynamic shared memory starts
 * as NaNs. WN_CUDASIM_ORDER=reverse turns the order of threads round.
 *
 * What it cannot show: speed, registers, bank conflicts, memory ordering weaker than this, and errors of the tensor
 * cores' rounding (sums here are float32 in ascending order of K). */
#ifndef WN_TESTS_CUDASIM_DEVICE_CUH
#define WN_TESTS_CUDASIM_DEVICE_CUH
#define WN_SHARD_CUDA_DEVICE_CUH /* takes the place of shard/cuda/device.cuh */

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>

#include "shard/cuda/launch.h"
#include "tests/cudasim/cuda_runtime_api.h"

#define __global__   static
#define __device__   static
#define __host__
#define __forceinline__ inline
#define __shared__   static
#define __align__(n) alignas(n)
#define __launch_bounds__(...)

struct dim3 {
    uint32_t x, y, z;
    dim3(uint32_t x_ = 1, uint32_t y_ = 1, uint32_t z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct float4 {
    float x, y, z, w;
};
struct uint4 {
    uint32_t x, y, z, w;
};

struct sim_state {
    dim3 grid, block, block_at, thread_at;
    unsigned char *shared;
    uint32_t thread, warp;
};
extern sim_state sim;

#define threadIdx sim.thread_at
#define blockIdx  sim.block_at
#define blockDim  sim.block
#define gridDim   sim.grid

/* early: every thread must have called sim_follow. */
void sim_launch(dim3 grid, dim3 block, size_t shared, bool early, const std::function<void()> &kernel);
void sim_follow(void);
void sim_push(cudaStream_t st, std::function<bool()> fn); /* queues work, which says whether it is done */
void sim_kernel(cudaStream_t st, std::function<bool()> fn); /* the same, or notes it in the graph that is captured */
/* Would the device take it? If not, cudaGetLastError says why. */
bool sim_launchable(cudaStream_t st, const void *kernel, dim3 grid, dim3 block, size_t shared);
int sim_allow_shared(const void *kernel, size_t bytes);
/* Arguments are taken when the kernel is queued, as on the device. */
template <typename K, typename... A>
void sim_queue_kernel(wn_cuda_stream st, dim3 grid, dim3 block, size_t shared, K kernel, A... args)
{
    if (!sim_launchable(st.queue, reinterpret_cast<const void *>(kernel), grid, block, shared)) return;
    sim_kernel(st.queue, [=] { return sim_launch(grid, block, shared, st.early, [=] { kernel(args...); }), true; });
}
void sim_block_barrier(void);
/* All lanes of the warp put `bytes` in and get a table of what the 32 lanes put in, until the next call. */
const unsigned char *sim_exchange(const void *mine, size_t bytes);
void sim_cp_async(void *shared, const void *global, uint32_t bytes);
void sim_cp_commit(void);
void sim_cp_wait(int left);

#define WN_LAUNCH(kernel, grid, block, shared, stream, ...) \
    sim_queue_kernel((stream), (grid), (block), (shared), (kernel), __VA_ARGS__)
#define WN_DYNAMIC_SHARED(name) unsigned char *const name = sim.shared

template <typename K> static inline int wn_allow_shared(K kernel, size_t bytes)
{
    return sim_allow_shared(reinterpret_cast<const void *>(kernel), bytes);
}

template <typename K> static inline int wn_has_code(K)
{
    return getenv("WN_CUDASIM_NO_CODE") ? (int)cudaErrorNoKernelImageForDevice : 0;
}

static inline void wn_follow(void)
{
    sim_follow();
}

static inline void __syncthreads(void)
{
    sim_block_barrier();
}

/* Between two barriers one thread runs at a time. */
static inline uint32_t atomicAdd(uint32_t *p, uint32_t v)
{
    const uint32_t old = *p;
    *p = old + v;
    return old;
}

static inline float __shfl_xor_sync(uint32_t, float v, int d)
{
    const unsigned char *all = sim_exchange(&v, sizeof(v));
    float r;
    memcpy(&r, all + (sim.thread % 32 ^ (uint32_t)d) * sizeof(v), sizeof(r));
    return r;
}

static inline float __uint_as_float(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof(f));
    return f;
}

static inline uint32_t __float_as_uint(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof(u));
    return u;
}

float wn_f16_value(uint16_t h);
uint32_t wn_pack_bf16(float lo, float hi);
uint32_t wn_add_bf16(uint32_t a, uint32_t b);

static inline void wn_cp_async(void *shared, const void *global, uint32_t bytes)
{
    sim_cp_async(shared, global, bytes);
}

static inline void wn_cp_commit(void)
{
    sim_cp_commit();
}

template <int N> static inline void wn_cp_wait(void)
{
    sim_cp_wait(N);
}

void wn_mma(float c[4], const uint32_t a[4], const uint32_t b[2]);
void wn_ldmatrix(uint32_t r[4], const void *shared);
void wn_ldmatrix_trans(uint32_t r[4], const void *shared);

#endif
