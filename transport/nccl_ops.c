/* transport/nccl_ops.c - the operations of an attachment. Each queues, settles (a non-blocking communicator may not
 * have put it into the stream when the call returns) and counts. */
#include "base/log.h"
#include "transport/nccl_impl.h"

/* One member's side of an exchange inside the group: out_bytes at `out` go to it, and in_bytes come from it. */
struct piece {
    const void *out;
    void *in;
    size_t out_bytes, in_bytes;
};

static void count(struct wn_link *l, int peer, wn_traffic kind, uint64_t sent, uint64_t received)
{
    if (wn_nccl_of(l)->connecting) return;
    if (sent) wn_traffic_sent(&l->meters[peer], kind, sent);
    if (received) wn_traffic_received(&l->meters[peer], kind, received);
}

/* Before and after an operation of the group: the first one after a sync may wait long for a member. */
static void meet(struct wn_nccl *n)
{
    if (!n->met) wn_cuda_marks_put(&n->marks, n->queue, true);
}

static wn_status settle_group(struct wn_link *l, ncclResult_t code, const char *what)
{
    struct wn_nccl *n = wn_nccl_of(l);
    const wn_status rc = wn_nccl_settle(l, WN_NCCL_GROUP, code, what);

    if (!n->met) wn_cuda_marks_put(&n->marks, n->queue, false);
    n->met = true;
    return rc;
}

/* Runs `call` on a communicator unless it is aborted meanwhile. */
#define LOCKED(n, which, code, call)                                   \
    do {                                                               \
        pthread_mutex_lock(&(n)->lock);                                \
        (code) = (n)->comms[which] ? (call) : ncclInvalidUsage;        \
        pthread_mutex_unlock(&(n)->lock);                              \
    } while (0)

static void first_error(ncclResult_t *code, ncclResult_t more)
{
    if (*code == ncclSuccess || *code == ncclInProgress) *code = more == ncclSuccess ? *code : more;
}

static ncclResult_t exchange_pieces(struct wn_nccl *n, const struct piece *pieces)
{
    const struct wn_nccl_lib *lib = n->lib;
    ncclComm_t comm = n->comms[WN_NCCL_GROUP];
    ncclResult_t code = lib->ncclGroupStart();

    if (code != ncclSuccess) return code;
    for (int i = 0; i < n->n; i++) {
        const struct piece *p = &pieces[i];
        if (i == n->me) continue;
        if (p->out_bytes) first_error(&code, lib->ncclSend(p->out, p->out_bytes, ncclUint8, i, comm, n->queue));
        if (p->in_bytes) first_error(&code, lib->ncclRecv(p->in, p->in_bytes, ncclUint8, i, comm, n->queue));
    }
    first_error(&code, lib->ncclGroupEnd());
    return code;
}

static wn_status exchange(struct wn_link *l, wn_traffic kind, const struct piece *pieces, const char *what)
{
    struct wn_nccl *n = wn_nccl_of(l);
    ncclResult_t code;

    meet(n);
    LOCKED(n, WN_NCCL_GROUP, code, exchange_pieces(n, pieces));
    for (int i = 0; i < n->n; i++)
        if (i != n->me) count(l, n->ranks[i], kind, pieces[i].out_bytes, pieces[i].in_bytes);
    return settle_group(l, code, what);
}

static wn_status scratch(struct wn_link *l, size_t bytes, float **out)
{
    struct wn_nccl *n = wn_nccl_of(l);

    if (bytes > n->scratch_bytes) {
        void *grown = NULL;
        wn_status rc = wn_nccl_cuda(l, cudaMalloc(&grown, bytes), "parts of a sum");
        if (rc != WN_OK) return rc;
        if (n->scratch) (void)cudaFree(n->scratch); /* waits for what still uses it */
        n->scratch = grown;
        n->scratch_bytes = bytes;
    }
    *out = n->scratch;
    return WN_OK;
}

wn_status wn_nccl_reserve(struct wn_link *l, size_t floats)
{
    struct wn_nccl *n = wn_nccl_of(l);
    size_t first, end, bytes = (size_t)n->n * floats * sizeof(float);
    float *room;

    if (n->n == 1 || n->o.fast_sums || floats == 0) return WN_OK;
    if (!wn_dev_sums_whole(n->n, floats)) { /* spans of the largest, or all of one that is just small enough */
        wn_dev_span(n->n, 0, floats, &first, &end);
        bytes = (size_t)n->n * (end > WN_DEV_WHOLE_FLOATS ? end : WN_DEV_WHOLE_FLOATS) * sizeof(float);
    }
    return scratch(l, bytes, &room);
}

static wn_status sum(struct wn_link *l, const struct wn_dev_sum *s)
{
    struct wn_nccl *n = wn_nccl_of(l);
    wn_status rc = n->o.sum(n->o.backend, s);

    return rc == WN_OK ? rc : wn_nccl_failed(l, rc, "an all-reduce", "its sum could not be queued");
}

static wn_status sum_whole(struct wn_link *l, float *data, size_t floats)
{
    struct wn_nccl *n = wn_nccl_of(l);
    struct wn_dev_sum s = {.out = data, .stride = floats, .count = floats, .n = n->n, .me = n->me};
    float *parts = NULL;
    ncclResult_t code;
    wn_status rc = scratch(l, (size_t)n->n * floats * sizeof(float), &parts);

    if (rc != WN_OK) return rc;
    meet(n);
    LOCKED(n, WN_NCCL_GROUP, code,
           n->lib->ncclAllGather(data, parts, floats, ncclFloat32, n->comms[WN_NCCL_GROUP], n->queue));
    if ((rc = settle_group(l, code, "an all-reduce")) != WN_OK) return rc;
    s.parts = parts;
    return sum(l, &s);
}

/* Everyone gets all parts of its own span, sums them, and hands the sums to the others. */
static wn_status sum_spans(struct wn_link *l, float *data, size_t floats)
{
    struct wn_nccl *n = wn_nccl_of(l);
    struct wn_dev_sum s = {.n = n->n, .me = n->me};
    struct piece parts[WN_DEV_GROUP_MAX], spans[WN_DEV_GROUP_MAX];
    size_t first, end, mine, each;
    float *room = NULL;
    wn_status rc;

    wn_dev_span(n->n, 0, floats, &first, &each); /* the largest span */
    if ((rc = scratch(l, (size_t)n->n * each * sizeof(float), &room)) != WN_OK) return rc;
    wn_dev_span(n->n, n->me, floats, &first, &end);
    mine = end - first;
    for (int i = 0; i < n->n; i++) {
        size_t a, b;
        wn_dev_span(n->n, i, floats, &a, &b);
        parts[i] = (struct piece){data + a, room + (size_t)i * each, (b - a) * sizeof(float), mine * sizeof(float)};
        spans[i] = (struct piece){data + first, data + a, mine * sizeof(float), (b - a) * sizeof(float)};
    }
    s.out = data + first;
    s.own = data + first;
    s.parts = room;
    s.stride = each;
    s.count = mine;
    rc = exchange(l, WN_TRAFFIC_ALLREDUCE, parts, "an all-reduce");
    if (rc == WN_OK && mine) rc = sum(l, &s);
    return rc == WN_OK ? exchange(l, WN_TRAFFIC_ALLREDUCE, spans, "an all-reduce") : rc;
}

wn_status wn_nccl_allreduce_f32(struct wn_link *l, float *data, size_t floats)
{
    struct wn_nccl *n = wn_nccl_of(l);
    wn_status rc = wn_nccl_ready(l, "an all-reduce");
    ncclResult_t code;

    if (rc != WN_OK || n->n == 1 || floats == 0) return rc;
    if (floats > WN_LINK_BYTES_MAX / sizeof(float)) return wn_nccl_failed(l, WN_ELIMIT, "an all-reduce", "too large");
    if (!n->o.fast_sums && !wn_dev_sums_whole(n->n, floats)) return sum_spans(l, data, floats);
    for (int i = 0; i < n->n; i++)
        count(l, n->ranks[i], WN_TRAFFIC_ALLREDUCE, wn_dev_allreduce_bytes(n->n, n->o.fast_sums, n->me, i, floats),
              wn_dev_allreduce_bytes(n->n, n->o.fast_sums, i, n->me, floats));
    if (!n->o.fast_sums) return sum_whole(l, data, floats);
    meet(n);
    LOCKED(n, WN_NCCL_GROUP, code,
           n->lib->ncclAllReduce(data, data, floats, ncclFloat32, ncclSum, n->comms[WN_NCCL_GROUP], n->queue));
    return settle_group(l, code, "an all-reduce");
}

wn_status wn_nccl_allgather(struct wn_link *l, wn_traffic kind, const void *mine, void *all, size_t bytes)
{
    struct wn_nccl *n = wn_nccl_of(l);
    wn_status rc = wn_nccl_ready(l, "an all-gather");
    ncclResult_t code;

    if (rc != WN_OK || bytes == 0) return rc;
    if (n->n == 1) {
        if (mine == all) return WN_OK;
        return wn_nccl_cuda(l, cudaMemcpyAsync(all, mine, bytes, cudaMemcpyDeviceToDevice, n->queue), "an all-gather");
    }
    for (int i = 0; i < n->n; i++)
        if (i != n->me) count(l, n->ranks[i], kind, bytes, bytes);
    meet(n);
    LOCKED(n, WN_NCCL_GROUP, code,
           n->lib->ncclAllGather(mine, all, bytes, ncclUint8, n->comms[WN_NCCL_GROUP], n->queue));
    return settle_group(l, code, "an all-gather");
}

wn_status wn_nccl_gather(struct wn_link *l, int root, wn_traffic kind, const void *mine, void *all,
                         const size_t *bytes_of)
{
    struct wn_nccl *n = wn_nccl_of(l);
    struct piece pieces[WN_DEV_GROUP_MAX] = {0};
    wn_status rc = wn_nccl_ready(l, "a gather");
    char *at = all;

    if (rc != WN_OK) return rc;
    if (root < 0 || root >= n->n) return wn_nccl_failed(l, WN_EINVAL, "a gather", "there is no such member");
    if (n->me != root) {
        pieces[root] = (struct piece){.out = mine, .out_bytes = bytes_of[n->me]};
        return exchange(l, kind, pieces, "a gather");
    }
    for (int i = 0; i < n->n; at += bytes_of[i++]) {
        if (i != root) pieces[i] = (struct piece){.in = at, .in_bytes = bytes_of[i]};
        else if (at != mine && bytes_of[i])
            rc = wn_nccl_cuda(l, cudaMemcpyAsync(at, mine, bytes_of[i], cudaMemcpyDeviceToDevice, n->queue),
                              "a gather");
    }
    return rc == WN_OK && n->n > 1 ? exchange(l, kind, pieces, "a gather") : rc;
}

wn_status wn_nccl_broadcast(struct wn_link *l, int root, wn_traffic kind, void *data, size_t bytes)
{
    struct wn_nccl *n = wn_nccl_of(l);
    wn_status rc = wn_nccl_ready(l, "a broadcast");
    ncclResult_t code;

    if (rc != WN_OK) return rc;
    if (root < 0 || root >= n->n) return wn_nccl_failed(l, WN_EINVAL, "a broadcast", "there is no such member");
    if (n->n == 1 || bytes == 0) return WN_OK;
    if (n->me != root) count(l, n->ranks[root], kind, 0, bytes);
    for (int i = 0; n->me == root && i < n->n; i++)
        if (i != root) count(l, n->ranks[i], kind, bytes, 0);
    meet(n);
    LOCKED(n, WN_NCCL_GROUP, code,
           n->lib->ncclBroadcast(data, data, bytes, ncclUint8, root, n->comms[WN_NCCL_GROUP], n->queue));
    return settle_group(l, code, "a broadcast");
}

/* ---- neighbours ---- */

/* `stream` goes on when what is queued now in `after` is done. */
static wn_status follow(struct wn_link *l, cudaStream_t stream, cudaStream_t after, cudaEvent_t event)
{
    wn_status rc = wn_nccl_cuda(l, cudaEventRecord(event, after), "event");
    return rc == WN_OK ? wn_nccl_cuda(l, cudaStreamWaitEvent(stream, event, 0), "event") : rc;
}

/* The queue goes on when `event` is there, which a neighbour decides. */
static wn_status await(struct wn_link *l, cudaEvent_t event)
{
    struct wn_nccl *n = wn_nccl_of(l);
    wn_status rc;

    wn_cuda_marks_put(&n->marks, n->queue, true);
    rc = wn_nccl_cuda(l, cudaStreamWaitEvent(n->queue, event, 0), "event");
    wn_cuda_marks_put(&n->marks, n->queue, false);
    return rc;
}

wn_status wn_nccl_send(struct wn_link *l, wn_traffic kind, const void *data, size_t bytes)
{
    struct wn_nccl *n = wn_nccl_of(l);
    wn_status rc = wn_nccl_ready(l, "a send");
    ncclResult_t code;

    if (rc != WN_OK || bytes == 0) return rc;
    if (n->o.next < 0) return wn_nccl_failed(l, WN_EINVAL, "a send", "there is no next neighbour");
    if ((rc = follow(l, n->out, n->queue, n->events[WN_NCCL_READY])) != WN_OK) return rc;
    count(l, n->o.next, kind, bytes, 0);
    LOCKED(n, WN_NCCL_OUT, code, n->lib->ncclSend(data, bytes, ncclUint8, 1, n->comms[WN_NCCL_OUT], n->out));
    if ((rc = wn_nccl_settle(l, WN_NCCL_OUT, code, "a send")) != WN_OK) return rc;
    n->sent_any = true;
    return wn_nccl_cuda(l, cudaEventRecord(n->events[WN_NCCL_SENT], n->out), "event");
}

wn_status wn_nccl_reuse(struct wn_link *l)
{
    struct wn_nccl *n = wn_nccl_of(l);
    wn_status rc = wn_nccl_ready(l, "a send");

    if (rc != WN_OK || !n->sent_any) return rc;
    return await(l, n->events[WN_NCCL_SENT]);
}

wn_status wn_nccl_recv(struct wn_link *l, wn_traffic kind, void *data, size_t bytes)
{
    struct wn_nccl *n = wn_nccl_of(l);
    wn_status rc = wn_nccl_ready(l, "a receive");
    ncclResult_t code;

    if (rc != WN_OK || bytes == 0) return rc;
    if (n->o.prev < 0) return wn_nccl_failed(l, WN_EINVAL, "a receive", "there is no neighbour before");
    /* the buffer is free by then */
    if ((rc = follow(l, n->in, n->queue, n->events[WN_NCCL_READY])) != WN_OK) return rc;
    if ((rc = wn_nccl_cuda(l, cudaEventRecord(n->events[WN_NCCL_ROWS_ASKED], n->in), "event")) != WN_OK) return rc;
    count(l, n->o.prev, kind, 0, bytes);
    LOCKED(n, WN_NCCL_IN, code, n->lib->ncclRecv(data, bytes, ncclUint8, 0, n->comms[WN_NCCL_IN], n->in));
    if ((rc = wn_nccl_settle(l, WN_NCCL_IN, code, "a receive")) != WN_OK) return rc;
    n->rows_pending = true;
    rc = wn_nccl_cuda(l, cudaEventRecord(n->events[WN_NCCL_ROWS_HERE], n->in), "event");
    return rc == WN_OK ? await(l, n->events[WN_NCCL_ROWS_HERE]) : rc;
}

uint64_t wn_nccl_waited_us(const struct wn_link *l)
{
    return wn_nccl_of(l)->waited_us;
}

/* An abort, or the end of the communicator, forgets registrations too. */
void wn_nccl_lend(struct wn_link *l, void *data, size_t bytes)
{
    struct wn_nccl *n = wn_nccl_of(l);

    for (int i = 0; n->lib->ncclCommRegister && bytes && i < WN_NCCL_COMMS; i++) {
        ncclResult_t code;
        void *handle = NULL;
        if (!n->comms[i] || n->lent_n == WN_NCCL_LENT) continue;
        LOCKED(n, i, code, n->lib->ncclCommRegister(n->comms[i], data, bytes, &handle));
        if (code == ncclInProgress && wn_nccl_settle(l, i, code, "a registration") == WN_OK) code = ncclSuccess;
        if (code == ncclSuccess) {
            n->lent[n->lent_n].which = i;
            n->lent[n->lent_n++].handle = handle;
        } else {
            wn_debug("nccl", "a buffer of %zu bytes is not registered: %d", bytes, (int)code);
        }
    }
}

void wn_nccl_unlend(struct wn_link *l)
{
    struct wn_nccl *n = wn_nccl_of(l);

    while (n->lent_n > 0) {
        const int which = n->lent[--n->lent_n].which;
        ncclResult_t code;
        LOCKED(n, which, code, n->lib->ncclCommDeregister(n->comms[which], n->lent[n->lent_n].handle));
        if (code != ncclSuccess) wn_debug("nccl", "a buffer stays registered: %d", (int)code);
    }
}

/* ---- the first messages ---- */

#define CONNECT_MAX ((size_t)1 << 20)

/* NCCL chooses its algorithm by size, and each connects ranks of its own. Sums of nothing but zeros. */
static wn_status connect_group(struct wn_link *l, char *room)
{
    static const size_t sizes[] = {16, 4 << 10, 64 << 10, CONNECT_MAX};
    struct wn_nccl *n = wn_nccl_of(l);
    struct piece pieces[WN_DEV_GROUP_MAX] = {0};
    wn_status rc = WN_OK;

    for (size_t i = 0; rc == WN_OK && i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        rc = wn_nccl_allgather(l, WN_TRAFFIC_CONTROL, room + (size_t)n->me * sizes[i], room, sizes[i]);
        if (rc == WN_OK) rc = wn_nccl_broadcast(l, 0, WN_TRAFFIC_CONTROL, room, sizes[i]);
        if (rc == WN_OK && n->o.fast_sums)
            rc = wn_nccl_allreduce_f32(l, (float *)(void *)room, sizes[i] / sizeof(float));
    }
    for (int i = 0; i < n->n; i++)
        if (i != n->me) pieces[i] = (struct piece){room, room + (size_t)(i + 1) * 16, 16, 16};
    return rc == WN_OK ? exchange(l, WN_TRAFFIC_CONTROL, pieces, "a gather") : rc;
}

wn_status wn_nccl_connect(struct wn_link *l)
{
    struct wn_nccl *n = wn_nccl_of(l);
    const bool in_first = n->o.prev < l->rank;
    float *room = NULL;
    wn_status rc = scratch(l, (size_t)(n->n + 1) * CONNECT_MAX, &room);

    if (rc == WN_OK) rc = wn_nccl_cuda(l, cudaMemsetAsync(room, 0, n->scratch_bytes, n->queue), "first messages");
    if (rc == WN_OK && n->n > 1) rc = connect_group(l, (char *)room);
    if (rc == WN_OK && n->o.prev >= 0 && in_first) rc = wn_nccl_recv(l, WN_TRAFFIC_CONTROL, room, 16);
    if (rc == WN_OK && n->o.next >= 0) rc = wn_nccl_send(l, WN_TRAFFIC_CONTROL, room + 4, 16);
    if (rc == WN_OK && n->o.prev >= 0 && !in_first) rc = wn_nccl_recv(l, WN_TRAFFIC_CONTROL, room, 16);
    return rc == WN_OK ? wn_nccl_reuse(l) : rc;
}
