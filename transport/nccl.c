/* transport/nccl.c - see nccl.h: communicators, the waits of the host, and the end. nccl_ops.c has the operations. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "transport/backoff.h"
#include "transport/link_impl.h"
#include "transport/nccl_impl.h"

#define LAUNCH_US 60000000 /* NCCL's own time for a call: the first message of a pair connects them */
#define CLOSE_US  5000000  /* for the other ranks to leave, too */
#define LOOK_US   1000     /* between two looks at NCCL's errors, while the device computes */
#define SPIN_US   200
#define ABORT_WAIT_S 1  /* for the link's thread to come out of NCCL */
#define ABORT_END_S  5  /* for the device to let go of what is aborted */

wn_status wn_nccl_failed(struct wn_link *l, wn_status code, const char *what, const char *why)
{
    wn_nccl_of(l)->failed = true;
    return wn_fail(&l->error, code, "%s link: rank %d, %s between GPUs: %s", l->ops->name, l->rank, what, why);
}

wn_status wn_nccl_ready(struct wn_link *l, const char *what)
{
    struct wn_nccl *n = wn_nccl_of(l);

    if (atomic_load(&l->cancelled)) return wn_nccl_failed(l, WN_ECANCEL, what, "cancelled");
    return n->failed ? l->error.code : WN_OK;
}

/* What one communicator says about the call that it has in progress, or about its peers. */
static ncclResult_t look(struct wn_nccl *n, int which)
{
    ncclResult_t state = ncclSuccess, rc = ncclSuccess;

    pthread_mutex_lock(&n->lock);
    if (n->comms[which]) rc = n->lib->ncclCommGetAsyncError(n->comms[which], &state);
    pthread_mutex_unlock(&n->lock);
    return rc == ncclSuccess ? state : rc;
}

static wn_status nccl_error(struct wn_link *l, int which, ncclResult_t code, const char *what)
{
    struct wn_nccl *n = wn_nccl_of(l);
    char why[256];

    if (atomic_load(&l->cancelled)) return wn_nccl_failed(l, WN_ECANCEL, what, "cancelled");
    pthread_mutex_lock(&n->lock);
    snprintf(why, sizeof(why), "NCCL: %s: %.160s", n->lib->ncclGetErrorString(code),
             n->comms[which] ? n->lib->ncclGetLastError(n->comms[which]) : "");
    pthread_mutex_unlock(&n->lock);
    return wn_nccl_failed(l, wn_nccl_status(code), what, why);
}

wn_status wn_nccl_settle(struct wn_link *l, int which, ncclResult_t code, const char *what)
{
    struct wn_nccl *n = wn_nccl_of(l);
    const int64_t deadline_us = n->connecting ? n->o.deadline_us : wn_deadline_in_us(LAUNCH_US);
    struct wn_backoff backoff = wn_backoff_start();

    while (code == ncclInProgress) {
        if (atomic_load(&l->cancelled)) break;
        if (wn_deadline_passed(deadline_us)) return wn_nccl_failed(l, WN_ETIME, what, "NCCL did not start it in time");
        if ((code = look(n, which)) == ncclInProgress) wn_backoff_pause(&backoff, deadline_us, true);
    }
    if (atomic_load(&l->cancelled)) return wn_nccl_failed(l, WN_ECANCEL, what, "cancelled");
    return code == ncclSuccess ? WN_OK : nccl_error(l, which, code, what);
}

wn_status wn_nccl_cuda(struct wn_link *l, cudaError_t code, const char *what)
{
    if (code == cudaSuccess) return WN_OK;
    wn_nccl_of(l)->failed = true;
    return wn_cuda_check(code, what, &l->error);
}

/* ---- the end ---- */

static struct timespec in_seconds(int seconds)
{
    struct timespec at;

    clock_gettime(CLOCK_REALTIME, &at);
    at.tv_sec += seconds;
    return at;
}

static void *abort_main(void *arg)
{
    const struct wn_nccl_abort *a = arg;

    (void)a->lib->ncclCommAbort(a->comm);
    return NULL;
}

/* Each communicator is aborted by a thread of its own: an abort first tells its kernels to end, and then waits for the
 * device, where they may stand behind those of another communicator. One after the other would wait for ever. */
static void start_aborts(struct wn_nccl *n)
{
    for (int i = 0; i < WN_NCCL_COMMS; i++) {
        struct wn_nccl_abort *a = &n->aborts[i];
        if (!n->comms[i]) continue;
        a->lib = n->lib;
        a->comm = n->comms[i];
        n->comms[i] = NULL;
        a->runs = pthread_create(&a->thread, NULL, abort_main, a) == 0;
        n->stuck = n->stuck || !a->runs;
    }
}

static void end_aborts(struct wn_nccl *n)
{
    const struct timespec until = in_seconds(ABORT_END_S);

    for (int i = 0; i < WN_NCCL_COMMS; i++) {
        struct wn_nccl_abort *a = &n->aborts[i];
        if (a->runs && pthread_timedjoin_np(a->thread, NULL, &until) != 0) n->stuck = true;
        a->runs = false;
    }
}

static void abort_all(struct wn_nccl *n)
{
    pthread_mutex_lock(&n->lock);
    start_aborts(n);
    pthread_mutex_unlock(&n->lock);
    end_aborts(n);
}

/* The link's thread has the lock while it is inside NCCL, which is short - unless its communicators are made to block
 * (NCCL_COMM_BLOCKING=1) and the device's queue is full of work that waits for a lost rank: then that call returns only
 * after the abort, which must not wait for it. */
static void *aborter_main(void *arg)
{
    struct wn_nccl *n = arg;
    const struct timespec until = in_seconds(ABORT_WAIT_S);
    const bool locked = pthread_mutex_timedlock(&n->lock, &until) == 0;

    start_aborts(n);
    if (locked) pthread_mutex_unlock(&n->lock);
    end_aborts(n);
    return NULL;
}

/* Abort waits for kernels to end, and this must not: a thread does it. The link's own thread may be inside a CUDA call
 * that only this ends. */
void wn_nccl_cancel(struct wn_link *l)
{
    struct wn_nccl *n = wn_nccl_of(l);

    if (atomic_exchange(&n->aborting, true)) return;
    if (pthread_create(&n->aborter, NULL, aborter_main, n) == 0) atomic_store(&n->aborter_runs, true);
}

/* Leaves every communicator together with its other members. False: not in time, or one of them has failed. */
static bool leave(struct wn_link *l)
{
    struct wn_nccl *n = wn_nccl_of(l);
    const int64_t deadline_us = wn_deadline_in_us(CLOSE_US);
    struct wn_backoff backoff = wn_backoff_start();

    for (int i = 0; i < WN_NCCL_COMMS; i++) {
        ncclResult_t rc = ncclSuccess;
        pthread_mutex_lock(&n->lock);
        if (n->comms[i]) rc = n->lib->ncclCommFinalize(n->comms[i]);
        pthread_mutex_unlock(&n->lock);
        if (rc != ncclSuccess && rc != ncclInProgress) return false;
    }
    for (int i = 0; i < WN_NCCL_COMMS; i++) {
        ncclResult_t rc = ncclInProgress;
        while (n->comms[i] && (rc = look(n, i)) == ncclInProgress && !wn_deadline_passed(deadline_us))
            wn_backoff_pause(&backoff, deadline_us, true);
        if (n->comms[i] && rc != ncclSuccess) return false;
    }
    pthread_mutex_lock(&n->lock);
    for (int i = 0; i < WN_NCCL_COMMS; i++) {
        if (n->comms[i]) (void)n->lib->ncclCommDestroy(n->comms[i]);
        n->comms[i] = NULL;
    }
    pthread_mutex_unlock(&n->lock);
    return true;
}

static void destroy(struct wn_nccl *n)
{
    if (n->scratch) (void)cudaFree(n->scratch);
    for (int i = 0; i < WN_NCCL_EVENTS; i++)
        if (n->events[i]) (void)cudaEventDestroy(n->events[i]);
    wn_cuda_marks_close(&n->marks);
    if (n->out) (void)cudaStreamDestroy(n->out);
    if (n->in) (void)cudaStreamDestroy(n->in);
    pthread_mutex_destroy(&n->lock);
    free(n->ranks);
    free(n);
}

/* Aborts what is left, and frees it all unless the device may still use it. */
static void give_up(const struct wn_link *l, struct wn_nccl *n)
{
    if (atomic_load(&n->aborter_runs)) pthread_join(n->aborter, NULL);
    abort_all(n);
    if (!n->stuck) destroy(n);
    else wn_error("nccl", "rank %d: the GPU does not let go of aborted messages: this process must end", l->rank);
}

void wn_nccl_close(struct wn_link *l)
{
    struct wn_nccl *n = wn_nccl_of(l);
    const bool broken = n->failed || l->broken || atomic_load(&l->cancelled);

    if (!broken && !leave(l)) wn_warn("nccl", "rank %d: the other ranks did not leave their communicators", l->rank);
    l->device = NULL;
    give_up(l, n);
}

void wn_nccl_detach(struct wn_link *l)
{
    if (l->device) wn_nccl_close(l);
}

/* ---- waiting ---- */

void wn_nccl_mark(struct wn_link *l)
{
    wn_cuda_marks_put(&wn_nccl_of(l)->marks, wn_nccl_of(l)->queue, false);
}

/* The device has done all that was queued: the time that rows were waited for is known. */
static wn_status note_wait(struct wn_link *l)
{
    struct wn_nccl *n = wn_nccl_of(l);
    float ms = 0;
    wn_status rc;

    wn_cuda_marks_clear(&n->marks);
    n->met = false;
    if (!n->rows_pending) return WN_OK;
    rc = wn_nccl_cuda(l, cudaEventElapsedTime(&ms, n->events[WN_NCCL_ROWS_ASKED], n->events[WN_NCCL_ROWS_HERE]),
                      "time of rows");
    n->rows_pending = false;
    if (rc == WN_OK) n->waited_us += (uint64_t)(ms * 1000.0f);
    return rc;
}

static wn_status look_at_all(struct wn_link *l)
{
    for (int i = 0; i < WN_NCCL_COMMS; i++) {
        ncclResult_t code = look(wn_nccl_of(l), i);
        if (code != ncclSuccess && code != ncclInProgress) return nccl_error(l, i, code, "a step");
    }
    return WN_OK;
}

wn_status wn_nccl_sync(struct wn_link *l, int64_t deadline_us)
{
    struct wn_nccl *n = wn_nccl_of(l);
    const int64_t start_us = wn_now_us();
    int64_t look_us = start_us + LOOK_US;

    while (true) {
        wn_status rc = wn_nccl_ready(l, "a step");
        cudaError_t code;
        int64_t now;

        if (rc != WN_OK) return rc;
        code = cudaStreamQuery(n->queue);
        if (code == cudaSuccess && !atomic_load(&l->cancelled)) return note_wait(l); /* aborted work ends, too */
        if (code != cudaErrorNotReady && code != cudaSuccess) return wn_nccl_cuda(l, code, "sync");
        (void)cudaGetLastError(); /* "not ready" counts as an error there */
        now = wn_now_us();
        if (now >= look_us) {
            look_us = now + LOOK_US;
            if ((rc = look_at_all(l)) != WN_OK) return rc;
            wn_cuda_marks_look(&n->marks);
        }
        if (wn_deadline_passed(deadline_us))
            return wn_fail(&l->error, WN_ETIME, "%s link: rank %d: the GPU did not finish in time", l->ops->name,
                           l->rank);
        if (now - start_us > SPIN_US) nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
    }
}

/* ---- the beginning ---- */

static const struct wn_link_device_ops ops = {
    .name = "nccl",
    .allreduce_f32 = wn_nccl_allreduce_f32,
    .allgather = wn_nccl_allgather,
    .gather = wn_nccl_gather,
    .broadcast = wn_nccl_broadcast,
    .send = wn_nccl_send,
    .recv = wn_nccl_recv,
    .reuse = wn_nccl_reuse,
    .mark = wn_nccl_mark,
    .sync = wn_nccl_sync,
    .reserve = wn_nccl_reserve,
    .waited_us = wn_nccl_waited_us,
    .lend = wn_nccl_lend,
    .unlend = wn_nccl_unlend,
    .cancel = wn_nccl_cancel,
    .close = wn_nccl_close,
};

struct id {
    ncclUniqueId of[WN_NCCL_COMMS];
};

/* All that one rank needs by itself. On failure *out is what there is, to be destroyed. */
static wn_status prepare(struct wn_nccl **out, const struct wn_link *l, const struct wn_nccl_opts *o, struct id *ids,
                         struct wn_err *err)
{
    struct wn_nccl *n = calloc(1, sizeof(*n));
    int least = 0, greatest = 0;
    wn_status rc;

    if (!n) return wn_fail(err, WN_ENOMEM, "NCCL: handle");
    *out = n;
    n->base.ops = &ops;
    n->o = *o;
    n->queue = o->queue;
    pthread_mutex_init(&n->lock, NULL);
    n->n = o->group ? o->group->n : 1;
    n->me = o->group ? o->group->me : 0;
    n->ranks = calloc((size_t)n->n, sizeof(*n->ranks));
    if (!n->ranks) return wn_fail(err, WN_ENOMEM, "NCCL: %d ranks", n->n);
    for (int i = 0; i < n->n; i++) n->ranks[i] = o->group ? o->group->ranks[i] : l->rank;
    if ((rc = wn_nccl_lib_open(&n->lib, err)) != WN_OK) return rc;
    rc = wn_cuda_check(cudaSetDevice(o->device), "device", err);
    if (rc == WN_OK) rc = wn_cuda_check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "streams", err);
    if (rc == WN_OK)
        rc = wn_cuda_check(cudaStreamCreateWithPriority(&n->out, cudaStreamNonBlocking, greatest), "stream", err);
    if (rc == WN_OK)
        rc = wn_cuda_check(cudaStreamCreateWithPriority(&n->in, cudaStreamNonBlocking, greatest), "stream", err);
    for (int i = 0; rc == WN_OK && i < WN_NCCL_EVENTS; i++) {
        const bool timed = i == WN_NCCL_ROWS_ASKED || i == WN_NCCL_ROWS_HERE;
        rc = wn_cuda_check(cudaEventCreateWithFlags(&n->events[i], timed ? 0 : cudaEventDisableTiming), "event", err);
    }
    if (rc == WN_OK) rc = wn_cuda_marks_open(&n->marks, err);
    if (rc != WN_OK) return rc;
    for (int i = 0; i < WN_NCCL_COMMS; i++) {
        ncclResult_t code = ncclSuccess;
        if ((i == WN_NCCL_GROUP && n->n > 1 && n->me == 0) || (i == WN_NCCL_OUT && o->next >= 0))
            code = n->lib->ncclGetUniqueId(&ids->of[i]);
        if (code != ncclSuccess)
            return wn_fail(err, wn_nccl_status(code), "NCCL: no address for the others: %s (NCCL_SOCKET_IFNAME: %s)",
                           n->lib->ncclGetErrorString(code),
                           getenv("NCCL_SOCKET_IFNAME") ? getenv("NCCL_SOCKET_IFNAME") : "not set");
    }
    return WN_OK;
}

/* Every rank hears whether all of them could. */
static wn_status agree(struct wn_link *l, wn_status mine, int64_t deadline_us, struct wn_err *err)
{
    struct wn_comm all = {.n = l->size, .me = l->rank};
    int *ranks = calloc((size_t)l->size, sizeof(*ranks));
    wn_status agreed = WN_ENOMEM, rc;

    if (!ranks) return wn_fail(err, WN_ENOMEM, "NCCL: %d ranks", l->size);
    for (int i = 0; i < l->size; i++) ranks[i] = i;
    all.ranks = ranks;
    rc = wn_coll_max_status(l, &all, mine, &agreed, deadline_us);
    free(ranks);
    if (rc != WN_OK) return wn_fail(err, rc, "NCCL: %s", l->error.text);
    if (mine != WN_OK || agreed == WN_OK) return mine;
    return wn_fail(err, agreed, "NCCL: another rank could not open it: %s", wn_status_name(agreed));
}

static wn_status share_ids(struct wn_link *l, const struct wn_nccl *n, struct id *ids, struct wn_err *err)
{
    const struct wn_route to = {.peer = n->o.next, .tag = WN_TAG_DEVICE, .kind = WN_TRAFFIC_CONTROL},
                          from = {.peer = n->o.prev, .tag = WN_TAG_DEVICE, .kind = WN_TRAFFIC_CONTROL};
    wn_op op = WN_OP_NONE;
    wn_status rc = WN_OK;

    if (n->o.next >= 0) rc = wn_link_send(l, to, &ids->of[WN_NCCL_OUT], sizeof(ids->of[0]), &op);
    if (rc == WN_OK && n->o.prev >= 0)
        rc = wn_link_recv_now(l, from, &ids->of[WN_NCCL_IN], sizeof(ids->of[0]), n->o.deadline_us);
    if (rc == WN_OK) rc = wn_link_wait(l, op, NULL, n->o.deadline_us);
    if (rc == WN_OK && n->n > 1)
        rc = wn_coll_broadcast(l, n->o.group, 0, WN_TRAFFIC_CONTROL, &ids->of[WN_NCCL_GROUP], sizeof(ids->of[0]),
                               n->o.deadline_us);
    return rc == WN_OK ? rc : wn_fail(err, rc, "NCCL: addresses: %s", l->error.text);
}

/* All communicators open at once, in NCCL's threads; this one looks on. Neighbours in the order in which rows go down
 * the ranks, so that nobody waits in a circle where NCCL_COMM_BLOCKING=1 makes each call wait for the other side. */
static wn_status join(struct wn_link *l, struct wn_nccl *n, const struct id *ids, struct wn_err *err)
{
    const int size[] = {n->n, 2, 2}, rank[] = {n->me, 0, 1};
    const bool wanted[] = {n->n > 1, n->o.next >= 0, n->o.prev >= 0}, in_first = n->o.prev < l->rank;
    const int order[] = {WN_NCCL_GROUP, in_first ? WN_NCCL_IN : WN_NCCL_OUT, in_first ? WN_NCCL_OUT : WN_NCCL_IN};
    struct wn_backoff backoff = wn_backoff_start();

    for (int k = 0; k < WN_NCCL_COMMS; k++) {
        ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
        ncclResult_t code;
        const int i = order[k];
        if (!wanted[i]) continue;
        config.blocking = 0;
        code = n->lib->ncclCommInitRankConfig(&n->comms[i], size[i], ids->of[i], rank[i], &config);
        if (code != ncclSuccess && code != ncclInProgress)
            return wn_fail(err, wn_nccl_status(code), "NCCL: communicator: %s: %.160s",
                           n->lib->ncclGetErrorString(code), n->lib->ncclGetLastError(n->comms[i]));
    }
    for (int i = 0; i < WN_NCCL_COMMS; i++) {
        ncclResult_t code;
        while ((code = look(n, i)) == ncclInProgress) {
            if (atomic_load(&l->cancelled)) return wn_fail(err, WN_ECANCEL, "NCCL: cancelled");
            if (wn_deadline_passed(n->o.deadline_us))
                return wn_fail(err, WN_ETIME, "NCCL: the other GPUs did not join in time");
            wn_backoff_pause(&backoff, n->o.deadline_us, true);
        }
        if (code != ncclSuccess) {
            const char *last = n->lib->ncclGetLastError(n->comms[i]);
            return wn_fail(err, wn_nccl_status(code), "NCCL: communicator: %s: %.160s%s",
                           n->lib->ncclGetErrorString(code), last,
                           strstr(last, "Duplicate GPU") ? " (ranks that share a GPU need an NCCL_HOSTID each)" : "");
        }
    }
    return WN_OK;
}

/* The first message between two ranks waits for both of them, in the call itself: it is said here, under the deadline
 * of the attachment, and every later one is only queued. */
static wn_status connect_all(struct wn_link *l, struct wn_nccl *n, struct wn_err *err)
{
    wn_status rc;

    l->device = &n->base;
    n->connecting = true;
    rc = wn_nccl_connect(l);
    if (rc == WN_OK) rc = wn_nccl_sync(l, n->o.deadline_us);
    n->connecting = n->sent_any = n->rows_pending = false;
    n->waited_us = 0;
    l->device = NULL;
    return rc == WN_OK ? rc : wn_fail(err, rc, "NCCL: first messages: %s", l->error.text);
}

/* What of NCCL's own settings is in force: "NCCL_HOSTID=n1-rank0 NCCL_SOCKET_IFNAME==eth0". */
static const char *settings(char *out, size_t room)
{
    size_t used = 0;

    out[0] = '\0';
    for (char **at = environ; *at; at++) {
        int n;
        if (strncmp(*at, "NCCL_", 5) != 0) continue;
        n = snprintf(out + used, room - used, "%s%.100s", used ? " " : "", *at);
        if (n < 0 || (size_t)n >= room - used) break;
        used += (size_t)n;
    }
    return out[0] ? out : "no settings";
}

wn_status wn_nccl_attach(struct wn_link *l, const struct wn_nccl_opts *o, struct wn_err *err)
{
    struct wn_nccl *n = NULL;
    struct id ids = {0};
    char in_force[512];
    wn_status rc;

    WN_ASSERT(!l->device && (!o->group || o->group->n <= WN_DEV_GROUP_MAX));
    WN_ASSERT(o->fast_sums || o->sum || !o->group || o->group->n == 1);
    rc = agree(l, prepare(&n, l, o, &ids, err), o->deadline_us, err);
    if (rc == WN_OK) rc = share_ids(l, n, &ids, err);
    if (rc == WN_OK) rc = join(l, n, &ids, err);
    if (rc == WN_OK) rc = connect_all(l, n, err);
    if (rc == WN_OK) rc = agree(l, WN_OK, o->deadline_us, err); /* nobody goes on before all can */
    if (rc != WN_OK) {
        if (n) give_up(l, n);
        return rc;
    }
    n->o.group = NULL;
    l->device = &n->base;
    wn_info("nccl", "NCCL %d.%d.%d (%s): GPU %d, %d tensor ranks, %s sums; %s", n->lib->version / 10000,
            n->lib->version / 100 % 100, n->lib->version % 100, n->lib->path, o->device, n->n,
            o->fast_sums ? "fast" : "ordered", settings(in_force, sizeof(in_force)));
    return WN_OK;
}
