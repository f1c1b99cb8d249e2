/* transport/nccl.h - NCCL between the GPUs of a replica, attached to the link that its host messages take (mpi).
 *
 * One communicator for the tensor ranks of a stage, one for each pair of neighbours. They are non-blocking: every call
 * that NCCL has not finished is polled under a deadline, and so is NCCL's asynchronous error while the host waits. Each
 * such call costs NCCL a thread; NCCL_COMM_BLOCKING=1 saves it, and then only wn_link_cancel ends one that hangs.
 * wn_link_cancel aborts them from threads of its own, so that kernels which wait for a lost peer end. A device that
 * does not let go of an abort within 5 s is left as it is, with all that it may still use: the process must end then.
 * Ranks are connected by a first message of each kind when they attach, which no counter knows of.
 *
 * libnccl is opened at run time: WINNOW_NCCL names the file, else libnccl.so.2 is searched for where libraries are.
 * NCCL refuses two ranks on one device, unless each has an NCCL_HOSTID of its own.
 *
 * Owns, threads, fails: as transport/device.h. Attach also: WN_EUNSUPP (built without NCCL; no library; too old). */
#ifndef WN_TRANSPORT_NCCL_H
#define WN_TRANSPORT_NCCL_H

#include "transport/device.h"

struct wn_backend; /* shard/backend.h */

struct wn_nccl_opts {
    int device;                  /* CUDA's number */
    void *queue;                 /* cudaStream_t where the caller computes (shard/backend.h); borrowed until close */
    const struct wn_comm *group; /* the tensor ranks of this stage; borrowed until attach returns */
    int prev, next;              /* ranks of the link that rows come from and go to; -1: none */
    bool fast_sums;
    wn_status (*sum)(struct wn_backend *be, const struct wn_dev_sum *s); /* ordered sums need it */
    struct wn_backend *backend;                                          /* for sum; borrowed until close */
    int64_t deadline_us; /* for all ranks to be there */
};

/* Called by all ranks of the link. On failure nothing is attached, on any rank. */
WN_NODISCARD wn_status wn_nccl_attach(struct wn_link *link, const struct wn_nccl_opts *opts, struct wn_err *err);

/* Ends the attachment, in order if nothing has failed, else by abort, as wn_link_close does. None: fine. */
void wn_nccl_detach(struct wn_link *link);

#endif
