/* transport/nccl_impl.h - what nccl.c and nccl_ops.c share.
 * Owns, threads, errors: as transport/device.h; `lock` keeps communicators from the thread that aborts them. */
#ifndef WN_TRANSPORT_NCCL_IMPL_H
#define WN_TRANSPORT_NCCL_IMPL_H

#include <pthread.h>

#include "transport/cuda_marks.h"
#include "transport/nccl.h"
#include "transport/nccl_lib.h"

enum { WN_NCCL_GROUP, WN_NCCL_OUT, WN_NCCL_IN, WN_NCCL_COMMS };
enum { WN_NCCL_READY, WN_NCCL_SENT, WN_NCCL_ROWS_ASKED, WN_NCCL_ROWS_HERE, WN_NCCL_EVENTS };

#define WN_NCCL_LENT 16 /* registrations; more buffers go without */

/* One communicator on its way out. */
struct wn_nccl_abort {
    const struct wn_nccl_lib *lib;
    ncclComm_t comm;
    pthread_t thread;
    bool runs;
};

struct wn_nccl {
    struct wn_link_device base;
    struct wn_nccl_opts o;
    const struct wn_nccl_lib *lib;
    int n, me, *ranks; /* of the group; [n] ranks of the link */
    pthread_mutex_t lock;
    ncclComm_t comms[WN_NCCL_COMMS]; /* NULL: none, or aborted */
    pthread_t aborter;
    struct wn_nccl_abort aborts[WN_NCCL_COMMS];
    atomic_bool aborting, aborter_runs;
    bool failed;     /* and the link's error says how */
    bool connecting; /* the first message of each pair, before the attachment is there: not counted */
    bool stuck;      /* an abort did not end in time: nothing is freed, the device may still use it */
    cudaStream_t queue, out, in; /* where the caller computes; rows to and from the neighbours */
    cudaEvent_t events[WN_NCCL_EVENTS];
    struct wn_cuda_marks marks; /* of the queue */
    bool met;                   /* the group, since the last sync: from then on its members go in step */
    bool sent_any, rows_pending;
    uint64_t waited_us;
    struct {
        int which; /* communicator */
        void *handle;
    } lent[WN_NCCL_LENT];
    int lent_n;
    void *scratch; /* parts of sums */
    size_t scratch_bytes;
};

static inline struct wn_nccl *wn_nccl_of(const struct wn_link *l)
{
    return (struct wn_nccl *)l->device;
}

/* ---- nccl.c ---- */
wn_status wn_nccl_failed(struct wn_link *l, wn_status code, const char *what, const char *why);
/* May an operation start? */
wn_status wn_nccl_ready(struct wn_link *l, const char *what);
/* The end of a call that returned `code`: NCCL has put it into its stream, or says why not. */
wn_status wn_nccl_settle(struct wn_link *l, int which, ncclResult_t code, const char *what);
wn_status wn_nccl_cuda(struct wn_link *l, cudaError_t code, const char *what);
void wn_nccl_mark(struct wn_link *l);
wn_status wn_nccl_sync(struct wn_link *l, int64_t deadline_us);
void wn_nccl_cancel(struct wn_link *l);
void wn_nccl_close(struct wn_link *l);

/* ---- nccl_ops.c ---- */
wn_status wn_nccl_connect(struct wn_link *l);
wn_status wn_nccl_reserve(struct wn_link *l, size_t floats);
wn_status wn_nccl_allreduce_f32(struct wn_link *l, float *data, size_t count);
wn_status wn_nccl_allgather(struct wn_link *l, wn_traffic kind, const void *mine, void *all, size_t bytes);
wn_status wn_nccl_gather(struct wn_link *l, int root, wn_traffic kind, const void *mine, void *all,
                         const size_t *bytes_of);
wn_status wn_nccl_broadcast(struct wn_link *l, int root, wn_traffic kind, void *data, size_t bytes);
wn_status wn_nccl_send(struct wn_link *l, wn_traffic kind, const void *data, size_t bytes);
wn_status wn_nccl_recv(struct wn_link *l, wn_traffic kind, void *data, size_t bytes);
wn_status wn_nccl_reuse(struct wn_link *l);
uint64_t wn_nccl_waited_us(const struct wn_link *l);
void wn_nccl_lend(struct wn_link *l, void *data, size_t bytes);
void wn_nccl_unlend(struct wn_link *l);

#endif
