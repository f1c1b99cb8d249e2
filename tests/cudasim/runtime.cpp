/* The CUDA runtime's calls on the simulated device: memory, streams, events.
 *
 * A stream that is empty does its work at once. What cannot be done yet (a message of the simulated NCCL, a wait for an
 * event) stays in its stream, and everything that follows it there, too; a thread of the device's own takes it up again,
 * as GPU and network do without the host. One lock stands for the device: one operation at a time. */
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "tests/cudasim/device.cuh"
#include "tests/cudasim/sim_stream.h"

#define USUAL_SHARED ((size_t)48 << 10)
#define QUEUE_ROOM   1024 /* operations of a stream; one more waits */

struct CUgraph_st {
    std::vector<std::function<bool()>> nodes;
};

struct CUgraphExec_st {
    std::vector<std::function<bool()>> nodes;
};

struct CUstream_st {
    std::deque<std::function<bool()>> work; /* each says whether it is done */
    cudaGraph_t capture;                    /* not NULL: launches go there */
    int device;
};

struct sim_counts sim_counts;

struct record {
    uint64_t asked, done;
    double at_ms;
};

struct CUevent_st {
    std::shared_ptr<record> r;
};

namespace {

/* Never destroyed: the device's thread may outlive main. */
struct device_state {
    std::recursive_mutex lock;
    std::condition_variable_any more;
    std::vector<cudaStream_t> streams;
    bool running;
    std::map<const void *, size_t> shared; /* what kernels may have, beyond the usual */
    std::multiset<const void *> lent;      /* device memory that the network library knows */
    std::map<const char *, size_t> pinned; /* host memory that is registered */
};

device_state &device(void)
{
    static device_state *d = new device_state();
    return *d;
}

thread_local int current_device;

size_t most_shared(void)
{
    const char *wish = getenv("WN_CUDASIM_SHARED");
    return (wish ? strtoul(wish, nullptr, 10) : 227) << 10;
}

/* True if nothing is left. */
bool progress(void)
{
    device_state &d = device();
    std::lock_guard<std::recursive_mutex> hold(d.lock);
    bool idle = true;

    for (cudaStream_t st : d.streams) {
        while (!st->work.empty() && st->work.front()()) st->work.pop_front();
        idle = idle && st->work.empty();
    }
    return idle;
}

void device_main(void)
{
    device_state &d = device();

    while (true) {
        if (progress()) {
            std::unique_lock<std::recursive_mutex> hold(d.lock);
            d.more.wait_for(hold, std::chrono::milliseconds(100));
        } else {
            std::this_thread::sleep_for(std::chrono::microseconds(30));
        }
    }
}

/* Does this thread's stream note what it is given? Allocations and waits are forbidden meanwhile. */
thread_local bool capturing;

thread_local cudaError_t last_error;

cudaError_t refuse(cudaError_t why)
{
    return last_error = why;
}

double now_ms(void)
{
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

bool stream_empty(cudaStream_t st)
{
    progress();
    std::lock_guard<std::recursive_mutex> hold(device().lock);
    return !st || st->work.empty();
}

size_t queued(cudaStream_t st)
{
    std::lock_guard<std::recursive_mutex> hold(device().lock);
    return st->work.size();
}

bool device_idle(int which)
{
    progress();
    std::lock_guard<std::recursive_mutex> hold(device().lock);
    for (cudaStream_t st : device().streams)
        if (st->device == which && !st->work.empty()) return false;
    return true;
}

void nap(void)
{
    std::this_thread::sleep_for(std::chrono::microseconds(20));
}

} // namespace

bool sim_launchable(cudaStream_t st, const void *kernel, dim3 grid, dim3 block, size_t shared)
{
    device_state &d = device();
    std::lock_guard<std::recursive_mutex> hold(d.lock);
    const auto allowed = d.shared.find(kernel);
    const uint64_t threads = (uint64_t)block.x * block.y * block.z;
    cudaError_t why = cudaSuccess;

    if (!st || st->device != current_device) why = cudaErrorInvalidResourceHandle;
    else if (grid.x < 1 || grid.x > INT32_MAX || grid.y < 1 || grid.y > 65535 || grid.z < 1 || grid.z > 65535)
        why = cudaErrorInvalidConfiguration;
    else if (threads < 1 || threads > 1024 || block.z > 64) why = cudaErrorInvalidConfiguration;
    else if (shared > (allowed == d.shared.end() ? USUAL_SHARED : allowed->second)) why = cudaErrorInvalidValue;
    if (why != cudaSuccess) refuse(why);
    return why == cudaSuccess;
}

int sim_allow_shared(const void *kernel, size_t bytes)
{
    device_state &d = device();
    std::lock_guard<std::recursive_mutex> hold(d.lock);

    if (bytes > most_shared()) return refuse(cudaErrorInvalidValue);
    d.shared[kernel] = bytes;
    return cudaSuccess;
}

void sim_memory_lend(const void *p)
{
    std::lock_guard<std::recursive_mutex> hold(device().lock);
    device().lent.insert(p);
    sim_counts.lent++;
}

void sim_memory_return(const void *p)
{
    std::lock_guard<std::recursive_mutex> hold(device().lock);
    device().lent.erase(device().lent.find(p));
}

void sim_push(cudaStream_t st, std::function<bool()> fn)
{
    device_state &d = device();

    while (st && queued(st) >= QUEUE_ROOM) nap();
    std::lock_guard<std::recursive_mutex> hold(d.lock);
    if ((!st || st->work.empty()) && fn()) return;
    if (!st) abort(); /* the default stream never waits here */
    st->work.push_back(std::move(fn));
    if (!d.running) std::thread(device_main).detach();
    d.running = true;
    d.more.notify_one();
}

void sim_kernel(cudaStream_t st, std::function<bool()> fn)
{
    if (st && st->capture) {
        st->capture->nodes.push_back(std::move(fn));
        return;
    }
    sim_counts.launches++;
    sim_push(st, std::move(fn));
}

void sim_stream_push(cudaStream_t st, bool (*step)(void *ctx), void *ctx)
{
    sim_counts.pushed++;
    sim_push(st, [=] { return step(ctx); });
}

int sim_current_device(void)
{
    return current_device;
}

const char *cudaGetErrorString(cudaError_t e)
{
    switch (e) {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInvalidResourceHandle: return "invalid resource handle";
    default: return "simulated error";
    }
}

cudaError_t cudaGetLastError(void)
{
    const cudaError_t e = last_error;

    last_error = cudaSuccess;
    return e;
}

cudaError_t cudaGetDeviceCount(int *n)
{
    const char *wish = getenv("WN_CUDASIM_DEVICES");
    *n = wish ? (int)strtol(wish, nullptr, 10) : 1;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device)
{
    int n;
    cudaGetDeviceCount(&n);
    if (device < 0 || device >= n) return refuse(cudaErrorInvalidDevice);
    current_device = device;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device)
{
    *p = {};
    p->uuid.bytes[0] = (char)device;
    strncpy(p->name, "simulated device", sizeof(p->name) - 1);
    p->totalGlobalMem = (size_t)4 << 30;
    p->sharedMemPerBlockOptin = most_shared();
    p->major = 9;
    p->multiProcessorCount = 132;
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total)
{
    *free_bytes = *total = (size_t)4 << 30;
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **p, size_t bytes)
{
    if (capturing) return refuse(cudaErrorStreamCaptureUnsupported);
    sim_counts.allocations++;
    if (posix_memalign(p, 256, bytes ? bytes : 1) != 0) return refuse(cudaErrorMemoryAllocation);
    memset(*p, 0xff, bytes);
    return cudaSuccess;
}

cudaError_t cudaFree(void *p)
{
    if (capturing) return refuse(cudaErrorStreamCaptureUnsupported);
    while (p && !device_idle(current_device)) nap();
    {
        std::lock_guard<std::recursive_mutex> hold(device().lock);
        if (p && device().lent.count(p)) {
            fprintf(stderr, "cudasim: memory is freed that the network library still knows\n");
            abort();
        }
    }
    free(p);
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned)
{
    if (capturing) return refuse(cudaErrorStreamCaptureUnsupported);
    sim_counts.allocations++;
    *p = malloc(bytes);
    return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaFreeHost(void *p)
{
    free(p);
    return cudaSuccess;
}

/* Whole pages, once. */
cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned)
{
    std::lock_guard<std::recursive_mutex> hold(device().lock);
    if (capturing) return refuse(cudaErrorStreamCaptureUnsupported);
    if (!p || !bytes || (uintptr_t)p % 4096 || device().pinned.count((char *)p)) return refuse(cudaErrorInvalidValue);
    device().pinned[(char *)p] = bytes;
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *p)
{
    std::lock_guard<std::recursive_mutex> hold(device().lock);
    return device().pinned.erase((char *)p) ? cudaSuccess : refuse(cudaErrorInvalidValue);
}

static bool is_registered(const void *src)
{
    std::lock_guard<std::recursive_mutex> hold(device().lock);
    auto after = device().pinned.upper_bound((const char *)src);
    if (after == device().pinned.begin()) return false;
    --after;
    return (const char *)src < after->first + after->second;
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind, cudaStream_t st)
{
    if (!st) return refuse(cudaErrorInvalidResourceHandle);
    if (capturing) return refuse(cudaErrorStreamCaptureUnsupported);
    sim_counts.copies++;
    if (kind == cudaMemcpyDeviceToHost) sim_counts.bytes_back += bytes;
    sim_push(st, [=] { return memmove(dst, src, bytes), true; });
    return cudaSuccess;
}

cudaError_t cudaMemcpy2DAsync(void *dst, size_t dst_step, const void *src, size_t src_step, size_t width, size_t height,
                              cudaMemcpyKind, cudaStream_t st)
{
    if (!st) return refuse(cudaErrorInvalidResourceHandle);
    if (capturing) return refuse(cudaErrorStreamCaptureUnsupported);
    sim_counts.copies++;
    sim_counts.pinned_copies += is_registered(src);
    sim_push(st, [=] {
        for (size_t i = 0; i < height; i++) memcpy((char *)dst + i * dst_step, (const char *)src + i * src_step, width);
        return true;
    });
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t st)
{
    if (!st) return refuse(cudaErrorInvalidResourceHandle);
    if (capturing) return refuse(cudaErrorStreamCaptureUnsupported);
    sim_push(st, [=] { return memset(p, value, bytes), true; });
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *st, unsigned)
{
    std::lock_guard<std::recursive_mutex> hold(device().lock);
    *st = new CUstream_st();
    (*st)->device = current_device;
    device().streams.push_back(*st);
    return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *st, unsigned flags, int)
{
    return cudaStreamCreateWithFlags(st, flags);
}

/* The device goes on with what is queued, as the real one does. */
cudaError_t cudaStreamDestroy(cudaStream_t st)
{
    device_state &d = device();
    std::lock_guard<std::recursive_mutex> hold(d.lock);

    if (!st || !st->work.empty()) return cudaSuccess;
    for (size_t i = 0; i < d.streams.size(); i++)
        if (d.streams[i] == st) d.streams.erase(d.streams.begin() + (long)i--);
    delete st;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t st)
{
    if (capturing) return refuse(cudaErrorStreamCaptureUnsupported);
    sim_counts.waits++;
    while (!stream_empty(st)) nap();
    return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t st)
{
    if (capturing) return refuse(cudaErrorStreamCaptureUnsupported);
    return stream_empty(st) ? cudaSuccess : refuse(cudaErrorNotReady);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t st, cudaEvent_t e, unsigned)
{
    std::shared_ptr<record> r = e->r;
    std::lock_guard<std::recursive_mutex> hold(device().lock);
    uint64_t asked = r->asked; /* a later record is not waited for */

    sim_push(st, [r, asked] { return r->done >= asked; });
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned)
{
    *e = new CUevent_st{std::make_shared<record>()};
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    delete e;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t st)
{
    if (capturing) return refuse(cudaErrorStreamCaptureUnsupported);
    std::shared_ptr<record> r = e->r;
    std::lock_guard<std::recursive_mutex> hold(device().lock);
    uint64_t asked = ++r->asked;

    sim_push(st, [r, asked] {
        r->done = asked;
        r->at_ms = now_ms();
        return true;
    });
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    if (capturing) return refuse(cudaErrorStreamCaptureUnsupported);
    std::shared_ptr<record> r = e->r;

    while (true) {
        progress();
        {
            std::lock_guard<std::recursive_mutex> hold(device().lock);
            if (r->done >= r->asked) return cudaSuccess;
        }
        nap();
    }
}

cudaError_t cudaEventQuery(cudaEvent_t e)
{
    if (capturing) return refuse(cudaErrorStreamCaptureUnsupported);
    progress();
    std::lock_guard<std::recursive_mutex> hold(device().lock);
    return e->r->done >= e->r->asked ? cudaSuccess : refuse(cudaErrorNotReady);
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end)
{
    std::lock_guard<std::recursive_mutex> hold(device().lock);
    *ms = (float)(end->r->at_ms - start->r->at_ms);
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t st, cudaStreamCaptureMode)
{
    if (capturing) return refuse(cudaErrorStreamCaptureUnsupported);
    capturing = true;
    st->capture = new CUgraph_st();
    sim_counts.captures++;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t st, cudaGraph_t *graph)
{
    if (!st->capture) return cudaErrorInvalidValue;
    capturing = false;
    *graph = st->capture;
    st->capture = nullptr;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long)
{
    *exec = new CUgraphExec_st{graph->nodes};
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t st)
{
    if (capturing) return refuse(cudaErrorStreamCaptureUnsupported);
    sim_counts.graph_launches++;
    for (const std::function<bool()> &node : exec->nodes) sim_push(st, node);
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    delete exec;
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;
    return cudaSuccess;
}
