/* The simulated device refuses what a device refuses, so that the other tests on it say something about launches. */
#include <cstdio>

#include "tests/cudasim/device.cuh"

static int failed;

static wn_cuda_stream on(cudaStream_t st)
{
    return {st, false};
}

static void fill(float *out, float value)
{
    if (threadIdx.x == 0) out[0] = value;
}

static void expect(const char *what, cudaError_t want)
{
    const cudaError_t got = cudaGetLastError(), again = cudaGetLastError();

    if (got == want && again == cudaSuccess) return;
    fprintf(stderr, "%s: %d and then %d, expected %d\n", what, (int)got, (int)again, (int)want);
    failed++;
}

int main(void)
{
    cudaStream_t st = nullptr, other = nullptr;
    float value = 0.0f;

    setenv("WN_CUDASIM_DEVICES", "2", 1);
    cudaSetDevice(1);
    cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking);
    cudaSetDevice(0);
    cudaStreamCreateWithFlags(&st, cudaStreamNonBlocking);
    WN_LAUNCH(fill, dim3(70000, 65535, 1), 0, 0, on(st), &value, 1.0f);
    expect("a block without threads", cudaErrorInvalidConfiguration);
    WN_LAUNCH(fill, 1, 2048, 0, on(st), &value, 1.0f);
    expect("2048 threads", cudaErrorInvalidConfiguration);
    WN_LAUNCH(fill, dim3(1, 65536), 32, 0, on(st), &value, 1.0f);
    expect("a grid of 65536 rows", cudaErrorInvalidConfiguration);
    WN_LAUNCH(fill, dim3(1, 0), 32, 0, on(st), &value, 1.0f);
    expect("an empty grid", cudaErrorInvalidConfiguration);
    WN_LAUNCH(fill, 1, 32, 64 << 10, on(st), &value, 1.0f);
    expect("64 KiB of shared memory that were not asked for", cudaErrorInvalidValue);
    WN_LAUNCH(fill, 1, 32, 0, on(other), &value, 1.0f);
    expect("a stream of another device", cudaErrorInvalidResourceHandle);
    WN_LAUNCH(fill, 1, 32, 0, on(nullptr), &value, 1.0f);
    expect("the legacy stream", cudaErrorInvalidResourceHandle);
    if (value != 0.0f) failed++;
    if (wn_allow_shared(fill, 228 << 10) == 0) failed++;
    expect("228 KiB of shared memory", cudaErrorInvalidValue);
    if (wn_allow_shared(fill, 64 << 10) != 0) failed++;
    WN_LAUNCH(fill, 1, 32, 64 << 10, on(st), &value, 2.0f);
    expect("64 KiB of shared memory", cudaSuccess);
    if (value != 2.0f) failed++;
    printf("%d failed\n", failed);
    return failed != 0;
}
