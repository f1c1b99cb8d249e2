/* libncclsim.so: NCCL on the simulated device of tests/cudasim. It simulates the library, so that transport/nccl.c runs
 * as it is where there is no GPU: opened at run time, messages that wait in streams until the peer comes, errors that
 * show only when asked for. It knows nothing of Winnow. What it does as NCCL 2.28 does (src/group.cc, init.cc):
 *   - a call on a non-blocking communicator hands its work to a thread and is "in progress" until that has put it into
 *     the stream; another call meanwhile is ncclInvalidArgument, and spoils the communicator;
 *   - the first message between two ranks, and the first of a collective of a kind and size, is in progress until all
 *     of them have called; a rank that dies before is not noticed there;
 *   - an abort returns when the device is done with all that the communicator has queued, also where that stands behind
 *     another communicator's message;
 *   - two ranks on one device of one host are refused (NCCL_HOSTID tells hosts apart); NCCL_COMM_BLOCKING=1 makes all
 *     communicators blocking.
 *
 * Ranks are threads or processes of one machine; every two members of a communicator share two sockets. A rank that
 * dies closes them, and its peers' communicators then report ncclRemoteError, as NCCL does over a network. Unlike NCCL
 * it notices members that call other operations, or a receive of another size than its send, where NCCL hangs or
 * writes too far, and fails. Memory that is freed while it is
 * registered ends the program, where a network card would write to what lies there next. Its all-reduce adds from the
 * last rank to the first: an order that is not the tree.
 *
 * What it cannot show: speed, transports, topology, and whether NCCL itself does what its documentation says. */
#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <poll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/cudasim/nccl.h"
#include "tests/cudasim/sim_stream.h"

namespace {

struct move {
    bool send;
    int peer;
    char *data;
    uint64_t bytes;
    uint64_t at;   /* bytes of header and data that have moved */
    uint64_t told; /* the header: the operation, and how many bytes follow */
};

enum op { P2P, GATHER, BROADCAST, REDUCE };

struct state;

struct work {
    std::shared_ptr<state> comm;
    std::vector<move> moves;
    std::function<void()> begin, end; /* copies and sums of this rank's own */
    std::vector<std::vector<char>> room;
    bool begun;
    enum op op;
    std::vector<std::string> ways; /* connections that it needs: "recv 3" */
};

struct hello {
    int rank, device;
    bool first; /* of the two sockets */
    char host[64];
};

struct state {
    std::mutex lock;
    int n, rank;
    bool blocking, joined, finalized;
    hello me;
    std::string id, last;
    std::vector<int> fds, meeting; /* for messages, and to connect */
    ncclResult_t error;
    std::atomic<bool> abort;
    std::thread join, job; /* job: of the call in progress */
    bool busy;             /* a call is in progress */
    std::atomic<bool> job_done;
    std::atomic<int> pending; /* works that the device still has */
    std::deque<work *> order; /* started one after the other */
    std::set<std::string> connected, waited; /* said our word, heard theirs */
    std::set<void *> registered;
};

ncclResult_t fail(state &s, ncclResult_t code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
ncclResult_t fail(state &s, ncclResult_t code, const char *fmt, ...)
{
    char text[256];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    if (s.error == ncclSuccess) {
        s.error = code;
        s.last = text;
    }
    return code;
}

/* ---- joining ---- */

socklen_t address(sockaddr_un &a, const state &s, int rank)
{
    a = {};
    a.sun_family = AF_UNIX;
    int n = snprintf(a.sun_path + 1, sizeof(a.sun_path) - 1, "ncclsim-%s-%d", s.id.c_str(), rank);
    return (socklen_t)(offsetof(sockaddr_un, sun_path) + 1 + (size_t)n);
}

/* All of it, unless the communicator is aborted meanwhile. */
bool whole(state &s, int fd, void *data, size_t bytes, bool out)
{
    for (size_t at = 0; at < bytes;) {
        pollfd p = {fd, (short)(out ? POLLOUT : POLLIN), 0};
        if (s.abort) return false;
        if (poll(&p, 1, 20) <= 0) continue;
        ssize_t n = out ? send(fd, (char *)data + at, bytes - at, MSG_NOSIGNAL) : read(fd, (char *)data + at, bytes - at);
        if (n <= 0) return false;
        at += (size_t)n;
    }
    return true;
}

/* The one who connects says which of the two sockets it is. */
bool meet(state &s, int fd, bool first, hello &other)
{
    hello me = s.me;

    me.first = first;
    if (!whole(s, fd, &me, sizeof(me), true) || !whole(s, fd, &other, sizeof(other), false)) return false;
    if (other.rank > s.rank) return true;
    other.first = first;
    return true;
}

int connect_to(state &s, int rank)
{
    sockaddr_un a;
    socklen_t n = address(a, s, rank);

    while (!s.abort) {
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (connect(fd, (sockaddr *)&a, n) == 0) return fd;
        close(fd);
        usleep(5000);
    }
    return -1;
}

int accept_one(state &s, int listener)
{
    while (!s.abort) {
        pollfd p = {listener, POLLIN, 0};
        if (poll(&p, 1, 20) > 0) return accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    }
    return -1;
}

void join_main(std::shared_ptr<state> s)
{
    sockaddr_un a;
    socklen_t bytes = address(a, *s, s->rank);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ncclResult_t rc = ncclSuccess;

    if (bind(listener, (sockaddr *)&a, bytes) != 0 || listen(listener, 128) != 0) rc = ncclSystemError;
    for (int i = 0; rc == ncclSuccess && i < 2 * (s->n - 1); i++) {
        hello other = {};
        int fd = i / 2 < s->rank ? connect_to(*s, i / 2) : accept_one(*s, listener);
        if (fd < 0 || !meet(*s, fd, i % 2 == 0, other) || other.rank < 0 || other.rank >= s->n) {
            rc = ncclRemoteError;
        } else if (other.device == s->me.device && strncmp(other.host, s->me.host, sizeof(other.host)) == 0) {
            std::lock_guard<std::mutex> hold(s->lock);
            rc = fail(*s, ncclInvalidUsage, "Duplicate GPU detected: rank %d and rank %d both on CUDA device %d", s->rank,
                      other.rank, other.device);
        }
        if (fd >= 0) fcntl(fd, F_SETFL, O_NONBLOCK);
        std::lock_guard<std::mutex> hold(s->lock);
        if (fd >= 0 && rc == ncclSuccess) (other.first ? s->fds : s->meeting)[(size_t)other.rank] = fd;
        else if (fd >= 0) close(fd);
    }
    close(listener);
    std::lock_guard<std::mutex> hold(s->lock);
    if (rc != ncclSuccess) fail(*s, rc, "could not join: %s", strerror(errno));
    s->joined = true;
}

/* ---- messages ---- */

/* True if the message is through. */
bool drive(state &s, move &m, enum op op)
{
    const uint64_t all = sizeof(m.told) + m.bytes, header_is = m.bytes | (uint64_t)op << 56;
    int fd = s.fds[(size_t)m.peer];

    if (m.send) m.told = header_is;
    while (m.at < all) {
        bool header = m.at < sizeof(m.told);
        char *at = header ? (char *)&m.told + m.at : m.data + (m.at - sizeof(m.told));
        size_t left = header ? sizeof(m.told) - m.at : all - m.at;
        ssize_t n = m.send ? send(fd, at, left, MSG_NOSIGNAL) : read(fd, at, left);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) return false;
        if (n <= 0) {
            fail(s, ncclRemoteError, "rank %d: connection to rank %d closed", s.rank, m.peer);
            return false;
        }
        m.at += (uint64_t)n;
        if (header && m.at == sizeof(m.told) && m.told != header_is) {
            fprintf(stderr, "ncclsim: rank %d: operation %d, a receive of %llu bytes, and rank %d sent %llu of %d\n",
                    s.rank, (int)op, (unsigned long long)m.bytes, m.peer, (unsigned long long)(m.told << 8 >> 8),
                    (int)(m.told >> 56));
            fail(s, ncclInvalidUsage, "operations or sizes differ");
            return false;
        }
    }
    return true;
}

bool step(void *ctx)
{
    work *w = (work *)ctx;
    std::shared_ptr<state> keep = w->comm;
    state &s = *keep;
    std::lock_guard<std::mutex> hold(s.lock);
    bool done = true;

    if (s.abort) {
        s.pending--;
        delete w;
        return true;
    }
    if (s.error != ncclSuccess || s.order.front() != w) return false;
    if (!w->begun && w->begin) w->begin();
    w->begun = true;
    for (size_t i = 0; i < w->moves.size(); i++) {
        bool first = true; /* messages between two ranks keep their order */
        for (size_t k = 0; k < i; k++)
            first = first && (w->moves[k].peer != w->moves[i].peer || w->moves[k].send != w->moves[i].send ||
                              w->moves[k].at == sizeof(uint64_t) + w->moves[k].bytes);
        if (!first || !drive(s, w->moves[i], w->op)) done = false;
    }
    if (!done) return false;
    if (w->end) w->end();
    s.order.pop_front();
    s.pending--;
    delete w;
    return true;
}

/* ---- calls ---- */

/* What must be connected before it: with a rank one way, or with all for an operation and a size. */
void need_ways(work &w)
{
    for (const move &m : w.moves) {
        char way[64];
        if (w.op == P2P) snprintf(way, sizeof(way), "%d %s", m.peer, m.send ? "out" : "in");
        else snprintf(way, sizeof(way), "%d %d %d", m.peer, (int)w.op, m.bytes > ((uint64_t)32 << 10));
        if (!w.comm->connected.count(way)) w.ways.push_back(way);
    }
}

/* Each side waits for the other's word, in the host. A rank that is gone is not noticed: only an abort ends this. */
bool connect_ways(state &s, const work &w)
{
    for (const std::string &way : w.ways) {
        char word = 0;
        int fd = s.meeting[(size_t)strtol(way.c_str(), nullptr, 10)];
        if (!s.connected.insert(way).second) continue;
        if (!whole(s, fd, &word, 1, true)) {
            while (!s.abort) usleep(1000);
            return false;
        }
    }
    for (const std::string &way : w.ways) {
        char word;
        if (!s.waited.insert(way).second) continue;
        if (!whole(s, s.meeting[(size_t)strtol(way.c_str(), nullptr, 10)], &word, 1, false)) {
            while (!s.abort) usleep(1000);
            return false;
        }
    }
    return true;
}

/* What the call's thread does: it may block in the device's queue. */
void launch(std::shared_ptr<state> s, work *w, cudaStream_t st)
{
    if (connect_ways(*s, *w)) {
        s->pending++;
        sim_stream_push(st, step, w);
    } else {
        delete w;
    }
    s->job_done = true;
}

/* May the communicator be used? NCCL's ncclCommEnsureReady. */
ncclResult_t ready(state &s)
{
    if (s.error != ncclSuccess) return s.error;
    if (!s.joined || s.busy) {
        fprintf(stderr, "ncclsim: rank %d: a call before the one before it is done\n", s.rank);
        return fail(s, ncclInvalidArgument, "Attempt to use communicator before the previous operation returned success");
    }
    return s.finalized ? ncclInvalidUsage : ncclSuccess;
}

ncclResult_t submit(work *w, cudaStream_t st)
{
    std::shared_ptr<state> s = w->comm;
    {
        std::lock_guard<std::mutex> hold(s->lock);
        ncclResult_t rc = ready(*s);
        if (rc != ncclSuccess) {
            delete w;
            return rc;
        }
        need_ways(*w);
        s->order.push_back(w);
        s->busy = !s->blocking;
        s->job_done = false;
        if (s->busy) s->job = std::thread(launch, s, w, st);
    }
    if (s->blocking) launch(s, w, st);
    return s->blocking ? ncclSuccess : ncclInProgress;
}

size_t width(ncclDataType_t type)
{
    return type == ncclFloat32 ? 4 : 1;
}

struct call {
    ncclComm_t comm;
    cudaStream_t st;
    move m;
};
thread_local int depth;
thread_local std::vector<call> calls;

} // namespace

struct ncclComm {
    std::shared_ptr<state> s;
};

static ncclResult_t run_calls(void)
{
    ncclResult_t rc = ncclSuccess;

    while (!calls.empty()) { /* one communicator after the other */
        std::vector<call> rest;
        work *w = new work();
        call first = calls[0];
        w->comm = first.comm->s;
        for (const call &c : calls) {
            if (c.comm == first.comm && c.st == first.st) w->moves.push_back(c.m);
            else rest.push_back(c);
        }
        calls.swap(rest);
        ncclResult_t one = submit(w, first.st);
        if (one != ncclSuccess && (rc == ncclSuccess || rc == ncclInProgress)) rc = one;
    }
    return rc;
}

ncclResult_t ncclGetVersion(int *version)
{
    *version = 21800;
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    unsigned char random[16];

    if (getrandom(random, sizeof(random), 0) != sizeof(random)) return ncclSystemError;
    *id = {};
    for (size_t i = 0; i < sizeof(random); i++) snprintf(id->internal + 2 * i, 3, "%02x", random[i]);
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t code)
{
    static const char *const names[] = {"no error",         "unhandled cuda error", "unhandled system error",
                                        "internal error",   "invalid argument",     "invalid usage",
                                        "remote process exited or there was a network error", "in progress"};
    return (size_t)code < 8 ? names[code] : "unknown";
}

const char *ncclGetLastError(ncclComm_t comm)
{
    static thread_local std::string text;

    if (!comm) return "";
    std::lock_guard<std::mutex> hold(comm->s->lock);
    text = comm->s->last;
    return text.c_str();
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int n, ncclUniqueId id, int rank, ncclConfig_t *config)
{
    auto s = std::make_shared<state>();
    const char *host = getenv("NCCL_HOSTID"), *blocking = getenv("NCCL_COMM_BLOCKING");

    if (n < 1 || rank < 0 || rank >= n || !id.internal[0]) return ncclInvalidArgument;
    s->n = n;
    s->rank = rank;
    s->blocking = config->blocking != 0 || (blocking && strcmp(blocking, "1") == 0);
    s->id = id.internal;
    s->fds.assign((size_t)n, -1);
    s->meeting.assign((size_t)n, -1);
    s->me.rank = rank;
    s->me.device = sim_current_device();
    if (host) strncpy(s->me.host, host, sizeof(s->me.host) - 1);
    s->join = std::thread(join_main, s);
    *comm = new ncclComm{s};
    if (!s->blocking) return ncclInProgress;
    s->join.join();
    return s->error;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *out)
{
    state &s = *comm->s;
    std::lock_guard<std::mutex> hold(s.lock);

    *out = s.error;
    if (s.error != ncclSuccess) return ncclSuccess;
    if (s.busy && s.job_done) {
        s.job.join();
        s.busy = false;
    }
    if (!s.joined || s.busy || (s.finalized && s.pending > 0)) *out = ncclInProgress;
    return ncclSuccess;
}

/* Nothing is sent or received any more. */
static void shut(ncclComm_t comm)
{
    state &s = *comm->s;

    if (s.join.joinable()) s.join.join();
    if (s.job.joinable()) s.job.join();
    while (s.pending > 0) usleep(100); /* the device is done with what it was given */
    std::lock_guard<std::mutex> hold(s.lock);
    for (std::vector<int> *fds : {&s.fds, &s.meeting})
        for (int &fd : *fds) {
            if (fd >= 0) close(fd);
            fd = -1;
        }
    for (void *p : s.registered) sim_memory_return(p);
    delete comm;
}

ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    std::shared_ptr<state> keep = comm->s;

    keep->abort = true;
    shut(comm);
    return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm)
{
    std::lock_guard<std::mutex> hold(comm->s->lock);
    ncclResult_t rc = ready(*comm->s);

    if (rc != ncclSuccess) return rc;
    comm->s->finalized = true;
    return comm->s->pending == 0 ? ncclSuccess : ncclInProgress;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    std::shared_ptr<state> keep = comm->s;

    shut(comm);
    return ncclSuccess;
}

ncclResult_t ncclCommRegister(const ncclComm_t comm, void *data, size_t, void **handle)
{
    std::lock_guard<std::mutex> hold(comm->s->lock);

    if (!comm->s->registered.insert(data).second) return ncclInvalidArgument;
    sim_memory_lend(data);
    *handle = data;
    return ncclSuccess;
}

ncclResult_t ncclCommDeregister(const ncclComm_t comm, void *handle)
{
    std::lock_guard<std::mutex> hold(comm->s->lock);

    if (comm->s->registered.erase(handle) == 0) return ncclInvalidArgument;
    sim_memory_return(handle);
    return ncclSuccess;
}

ncclResult_t ncclGroupStart(void)
{
    depth++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void)
{
    if (depth == 0) return ncclInvalidUsage;
    return --depth == 0 ? run_calls() : ncclSuccess;
}

static ncclResult_t message(bool out, const void *data, size_t bytes, int peer, ncclComm_t comm, cudaStream_t st)
{
    if (peer < 0 || peer >= comm->s->n || peer == comm->s->rank) return ncclInvalidArgument;
    calls.push_back({comm, st, {out, peer, (char *)(uintptr_t)data, bytes, 0, 0}});
    return depth > 0 ? ncclSuccess : run_calls();
}

ncclResult_t ncclSend(const void *from, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t st)
{
    return message(true, from, count * width(type), peer, comm, st);
}

ncclResult_t ncclRecv(void *to, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t st)
{
    return message(false, to, count * width(type), peer, comm, st);
}

ncclResult_t ncclAllGather(const void *from, void *to, size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t st)
{
    const size_t bytes = count * width(type);
    work *w = new work();
    state &s = *(w->comm = comm->s);
    w->op = GATHER;
    char *own = (char *)to + (size_t)s.rank * bytes;

    w->begin = [=] { memmove(own, from, bytes); };
    for (int i = 0; i < s.n; i++) {
        if (i == s.rank) continue;
        w->moves.push_back({true, i, (char *)(uintptr_t)from, bytes, 0, 0});
        w->moves.push_back({false, i, (char *)to + (size_t)i * bytes, bytes, 0, 0});
    }
    return submit(w, st);
}

ncclResult_t ncclBroadcast(const void *from, void *to, size_t count, ncclDataType_t type, int root, ncclComm_t comm,
                           cudaStream_t st)
{
    const size_t bytes = count * width(type);
    work *w = new work();
    state &s = *(w->comm = comm->s);

    w->op = BROADCAST;
    if (s.rank == root) w->begin = [=] { memmove(to, from, bytes); };
    else w->moves.push_back({false, root, (char *)to, bytes, 0, 0});
    for (int i = 0; s.rank == root && i < s.n; i++)
        if (i != root) w->moves.push_back({true, i, (char *)(uintptr_t)from, bytes, 0, 0});
    return submit(w, st);
}

ncclResult_t ncclAllReduce(const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t op, ncclComm_t comm,
                           cudaStream_t st)
{
    const size_t bytes = count * width(type);
    work *w = new work();
    state &s = *(w->comm = comm->s);

    if (type != ncclFloat32 || op != ncclSum) {
        delete w;
        return ncclInvalidArgument;
    }
    w->op = REDUCE;
    w->room.resize((size_t)s.n);
    for (int i = 0; i < s.n; i++) {
        w->room[(size_t)i].resize(bytes);
        if (i == s.rank) continue;
        w->moves.push_back({true, i, (char *)(uintptr_t)from, bytes, 0, 0});
        w->moves.push_back({false, i, w->room[(size_t)i].data(), bytes, 0, 0});
    }
    w->end = [=, &s] {
        memcpy(w->room[(size_t)s.rank].data(), from, bytes);
        for (size_t k = 0; k < count; k++) {
            float sum = ((const float *)w->room[(size_t)s.n - 1].data())[k];
            for (int i = s.n - 2; i >= 0; i--) sum += ((const float *)w->room[(size_t)i].data())[k];
            ((float *)to)[k] = sum;
        }
    };
    return submit(w, st);
}
