/* transport/link.h - a link moves bytes between the ranks of one replica.
 *
 * Owns:    its operations and counters, from open to close. Message memory stays the caller's: it is borrowed from
 *          send/recv until wait or test says that the operation is over, or until the link is closed.
 * Threads: the engine thread, except wn_link_cancel() and the traffic snapshot, which any thread may call.
 * Order:   messages from one rank to another with the same tag and kind arrive in the order they were sent.
 * Fails:   WN_ETIME (a deadline passed; the operation is still alive and may be waited for again), WN_EPEER (that
 *          rank is gone), WN_ECANCEL, WN_EPROTO (more bytes came than were asked for), WN_EBUSY (WN_LINK_OPS_MAX
 *          operations in flight), WN_ELIMIT (over WN_LINK_BYTES_MAX), WN_EINVAL. wn_link_error() has the sentence.
 *
 * Memory is host memory; transport/device.h has what a link does with device memory once a device is attached to it.
 * Ranks are assumed to be machines of one byte order; what is sent is what lies in memory. */
#ifndef WN_TRANSPORT_LINK_H
#define WN_TRANSPORT_LINK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/clock.h"
#include "base/status.h"
#include "base/traffic.h"

#define WN_LINK_RANKS_MAX 1024
#define WN_LINK_OPS_MAX   1024              /* operations in flight on one rank */
#define WN_LINK_BYTES_MAX ((size_t)1 << 30) /* one message; more is refused */
#define WN_LINK_TAGS      1024              /* tags of callers: 0 .. 1023; collectives have their own */

typedef uint32_t wn_op; /* handle of a send or receive in flight; used up when wait or test reports its end */
#define WN_OP_NONE 0u

struct wn_local_hub; /* where the ranks of a local link meet */

/* Who joins, and how the ranks find each other. */
struct wn_group {
    int rank, size;           /* this rank, and how many; size 0: the link finds out (mpi) */
    struct wn_local_hub *hub; /* local only; borrowed, must outlive the links */
};

struct wn_link;
struct wn_link_device; /* transport/device.h */

/* A message's address. All of it must match between sender and receiver. */
struct wn_route {
    int peer; /* the other rank; not this one */
    uint32_t tag;
    wn_traffic kind;
};

struct wn_link_ops {
    const char *name; /* "local", "mpi" */
    wn_status (*open)(struct wn_link **out, const struct wn_group *group, struct wn_err *err);
    void (*close)(struct wn_link *link);
    wn_status (*send)(struct wn_link *link, struct wn_route to, const void *data, size_t bytes,
                      wn_op *op);
    wn_status (*recv)(struct wn_link *link, struct wn_route from, void *data, size_t room,
                      wn_op *op);
    wn_status (*wait)(struct wn_link *link, wn_op op, size_t *bytes, int64_t deadline_us);
    wn_status (*withdraw)(struct wn_link *link, wn_op op, int64_t deadline_us);
    void (*wake)(struct wn_link *link); /* after the cancel flag was set; NULL: wait polls the flag */
};

/* Every link starts with this. For links and coll.c; callers use the functions below. */
struct wn_link {
    const struct wn_link_ops *ops;
    int rank, size;
    atomic_bool cancelled;
    struct wn_traffic_meter *meters; /* [size], by peer */
    struct wn_err error;             /* the last failure */
    void *scratch;                   /* of coll.c: grows to the largest all-reduce, then stays */
    size_t scratch_bytes;
    bool broken;                     /* a collective failed: the next ones say so too */
    struct wn_link_device *device;   /* NULL: host memory only */
};

extern const struct wn_link_ops wn_link_local; /* threads of one process */
extern const struct wn_link_ops wn_link_mpi;   /* processes under mpirun or srun */
/* mpi: a wait sleeps between polls only while nothing above 16 KiB is in flight, since MPI moves large messages in
 * pieces inside our calls. Open MPI's single-copy transfer is turned off unless the environment has chosen one (see
 * mpi.c). */

/* Joins the group. *out is owned by the caller. WN_ENOENT names the known links.
 * mpi: once in the life of a process, in the thread that will use it; blocks until all ranks are there. */
WN_NODISCARD wn_status wn_link_open(struct wn_link **out, const char *name, const struct wn_group *group,
                                    struct wn_err *err);

/* Leaves the group; operations in flight are given up and their memory is the caller's again. NULL is fine.
 * mpi: waits up to 5 s for the other ranks, then finalizes MPI; if they do not come, MPI is left as it is, and the
 * process must end (with wn_link_mpi_abort() or by itself, which mpirun answers by ending the rest). */
void wn_link_close(struct wn_link *link);

/* Any thread: from now on every call on this link, also a wait in progress, returns WN_ECANCEL. Never blocks long. */
void wn_link_cancel(struct wn_link *link);

/* Starts a send or a receive. bytes and room may be 0, with data NULL. On failure *op is WN_OP_NONE. A large send
 * may need the receiver: do not wait for it before posting the receive that the peer's own send waits for. */
WN_NODISCARD wn_status wn_link_send(struct wn_link *link, struct wn_route to, const void *data, size_t bytes,
                                    wn_op *op);
WN_NODISCARD wn_status wn_link_recv(struct wn_link *link, struct wn_route from, void *data, size_t room,
                                    wn_op *op);

/* Waits for the end of op; *bytes (NULL is fine) is the size of the message. WN_OP_NONE has ended: WN_OK, 0 bytes.
 * WN_ETIME: op goes on. WN_ECANCEL: only wn_link_close() ends it. Else op is over and its memory the caller's again. */
WN_NODISCARD wn_status wn_link_wait(struct wn_link *link, wn_op op, size_t *bytes, int64_t deadline_us);

/* Like wait with a deadline that has passed, but says so without an error: *done is false. Drives sends on, too. */
WN_NODISCARD wn_status wn_link_test(struct wn_link *link, wn_op op, bool *done, size_t *bytes);

/* Takes back a receive that nothing will come for: its memory is the caller's again. If something has come it is lost.
 * WN_OP_NONE is fine. WN_ETIME: a message is still on its way into that memory. */
WN_NODISCARD wn_status wn_link_withdraw(struct wn_link *link, wn_op op, int64_t deadline_us);

/* Send or receive, and wait. recv_now wants exactly `bytes`; another size is WN_EPROTO. After WN_ETIME the operation
 * is still in flight with the caller's memory: close the link before that memory goes. */
WN_NODISCARD wn_status wn_link_send_now(struct wn_link *link, struct wn_route to, const void *data, size_t bytes,
                                        int64_t deadline_us);
WN_NODISCARD wn_status wn_link_recv_now(struct wn_link *link, struct wn_route from, void *data, size_t bytes,
                                        int64_t deadline_us);

static inline int wn_link_rank(const struct wn_link *link) { return link->rank; }
static inline int wn_link_size(const struct wn_link *link) { return link->size; }

/* The sentence of the last failure on this link, for the thread that uses it. */
static inline const struct wn_err *wn_link_error(const struct wn_link *link) { return &link->error; }

/* Adds the bytes to and from `peer` (-1: all peers) to *table. A send counts when it is posted, a receive when it
 * is over. Any thread. */
void wn_link_traffic(const struct wn_link *link, int peer, struct wn_traffic_table *table);

/* Local: a meeting place for `size` threads that each open one link. Destroy it after the last link is closed. */
WN_NODISCARD wn_status wn_local_hub_create(struct wn_local_hub **out, int size, struct wn_err *err);
void wn_local_hub_destroy(struct wn_local_hub *hub); /* NULL is fine */

/* mpi: ends every rank of the group now, with this exit code. For a rank whose peer is lost (WN_ETIME, WN_EPEER),
 * since MPI cannot leave a broken group in order. Called from main only, after logs are flushed. What MPI does by
 * itself: when a rank dies or exits without close, mpirun (srun --kill-on-bad-exit) kills the others, so a lost process
 * is seldom seen here at all; WN_ETIME means a rank that lives and does not answer, or a network that drops all. */
_Noreturn void wn_link_mpi_abort(int code);

#endif
