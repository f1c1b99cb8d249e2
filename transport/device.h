/* transport/device.h - what a link does with device memory, once a device is attached to it (transport/nccl.h).
 *
 * Every operation is queued: it follows what the compute queue holds, work that is queued after it finds its result,
 * and the call returns at once. Failures show at wn_dev_sync, which the host calls once a step. Sums and gathers run in
 * the compute queue itself, because the next kernel needs them. Rows from stage to stage run beside it and meet it
 * by events: rows leave while the next layers compute.
 *
 * What overlaps, and what does not: a sum between tensor ranks stands in the way of the residual and norm behind it,
 * and they in that of the next product, so nothing is computed meanwhile. Residual and norm are one kernel (add_norm);
 * the sum of the parts and its rounding are one each before it. To make one of the three, or to let the halves of a
 * step pass each other, was left until a device has shown what it would save.
 *
 * The tensor group and the neighbours are those of the attachment. All members of the group call the same operations in
 * the same order with the same sizes, and every send has a receive of its size: sizes do not travel.
 *
 * Owns:    streams, events and scratch, from attach to the close of the link. Buffers are the caller's device memory,
 *          lent until a wn_dev_sync that succeeds, or the close.
 * Threads: the link's thread. wn_link_cancel (any thread) ends device work too, a kernel that waits for a peer as well.
 * Fails:   WN_EPEER (a member is gone), WN_ETIME, WN_ECANCEL, WN_EDEVICE, WN_ENOMEM, WN_EINVAL; wn_link_error() has the
 *          sentence. After WN_ETIME of wn_dev_sync it may be called again; after any other the link is good for cancel
 *          and close only. */
#ifndef WN_TRANSPORT_DEVICE_H
#define WN_TRANSPORT_DEVICE_H

#include "transport/coll.h"

#define WN_DEV_GROUP_MAX    64 /* members */
#define WN_DEV_WHOLE_FLOATS ((size_t)16 << 10) /* up to here one exchange of everything is faster than two of parts */

/* Queue out[i] = the tree of transport/coll.h over parts[k * stride + i], k < n, for i < count, where the caller
 * computes. Part `me` is read from `own` instead, unless that is NULL; out may be own. */
struct wn_dev_sum {
    float *out;
    const float *parts, *own;
    size_t stride, count;
    int n, me;
};

struct wn_link_device_ops {
    const char *name; /* "nccl" */
    wn_status (*allreduce_f32)(struct wn_link *link, float *data, size_t count);
    wn_status (*allgather)(struct wn_link *link, wn_traffic kind, const void *mine, void *all, size_t bytes);
    wn_status (*gather)(struct wn_link *link, int root, wn_traffic kind, const void *mine, void *all,
                        const size_t *bytes_of);
    wn_status (*broadcast)(struct wn_link *link, int root, wn_traffic kind, void *data, size_t bytes);
    wn_status (*send)(struct wn_link *link, wn_traffic kind, const void *data, size_t bytes);
    wn_status (*recv)(struct wn_link *link, wn_traffic kind, void *data, size_t bytes);
    wn_status (*reuse)(struct wn_link *link);
    void (*mark)(struct wn_link *link);
    wn_status (*sync)(struct wn_link *link, int64_t deadline_us);
    wn_status (*reserve)(struct wn_link *link, size_t floats);
    uint64_t (*waited_us)(const struct wn_link *link);
    void (*lend)(struct wn_link *link, void *data, size_t bytes);
    void (*unlend)(struct wn_link *link);
    void (*cancel)(struct wn_link *link); /* any thread, after the flag was set */
    void (*close)(struct wn_link *link);
};

/* An attachment starts with this. */
struct wn_link_device {
    const struct wn_link_device_ops *ops;
};

static inline bool wn_link_has_device(const struct wn_link *link) { return link && link->device; }

/* data[i] becomes the sum over the group, counted as WN_TRAFFIC_ALLREDUCE. Ordered sums (the default) are the tree of
 * transport/coll.h: the same bits as over any other link, for every message size. Fast sums are NCCL's own: the same
 * bits on every member, in an order that may change with the size, the number of members and the machine. */
static inline wn_status wn_dev_allreduce_f32(struct wn_link *l, float *data, size_t count)
{
    return l->device->ops->allreduce_f32(l, data, count);
}

/* Room for sums of up to `floats`, so that none of them allocates, which would wait for the device. */
static inline wn_status wn_dev_reserve(struct wn_link *l, size_t floats)
{
    return l->device->ops->reserve(l, floats);
}

/* Member i's `bytes` bytes come to all + i * bytes. mine may be its place in `all`. */
static inline wn_status wn_dev_allgather(struct wn_link *l, wn_traffic kind, const void *mine, void *all, size_t bytes)
{
    return l->device->ops->allgather(l, kind, mine, all, bytes);
}

/* Member i's bytes_of[i] bytes come one after the other into `all` of member root; others pass NULL. */
static inline wn_status wn_dev_gather(struct wn_link *l, int root, wn_traffic kind, const void *mine, void *all,
                                      const size_t *bytes_of)
{
    return l->device->ops->gather(l, root, kind, mine, all, bytes_of);
}

static inline wn_status wn_dev_broadcast(struct wn_link *l, int root, wn_traffic kind, void *data, size_t bytes)
{
    return l->device->ops->broadcast(l, root, kind, data, bytes);
}

/* Rows to the next neighbour; they may be written again by work that is queued after wn_dev_reuse. */
static inline wn_status wn_dev_send(struct wn_link *l, wn_traffic kind, const void *data, size_t bytes)
{
    return l->device->ops->send(l, kind, data, bytes);
}

/* Rows of the previous neighbour. */
static inline wn_status wn_dev_recv(struct wn_link *l, wn_traffic kind, void *data, size_t bytes)
{
    return l->device->ops->recv(l, kind, data, bytes);
}

/* Work that is queued from now on waits until the last send has left its buffer. */
static inline wn_status wn_dev_reuse(struct wn_link *l) { return l->device->ops->reuse(l); }

/* A place in the compute queue. A wait for it notes progress (base/progress.h) when one is passed, and while the queue
 * waits for other ranks: so a long step is no hanging one. */
static inline void wn_dev_mark(struct wn_link *l) { l->device->ops->mark(l); }

/* The host waits until the compute queue is empty; a send may still be on its way. */
static inline wn_status wn_dev_sync(struct wn_link *l, int64_t deadline_us)
{
    return l->device->ops->sync(l, deadline_us);
}

/* Time that the device has waited for rows of the neighbour before, as of the last sync. */
static inline uint64_t wn_dev_waited_us(const struct wn_link *l) { return l->device->ops->waited_us(l); }

/* Registers a buffer that messages will often start from or end in, where the library can make use of that. It must
 * not be freed before wn_dev_unlend, or the close. */
static inline void wn_dev_lend(struct wn_link *l, void *data, size_t bytes) { l->device->ops->lend(l, data, bytes); }

/* Takes all of them back: after a wn_dev_sync that succeeded, with no send on its way. */
static inline void wn_dev_unlend(struct wn_link *l) { l->device->ops->unlend(l); }

/* Payload bytes that member `from` of a group of n counts as sent to member `to`. Pure. In an all-gather, a gather to
 * the root and a broadcast from it each part is counted once for each member it goes to. */
uint64_t wn_dev_allreduce_bytes(int n, bool fast, int from, int to, size_t count);

/* How an ordered sum of `count` floats among n members is made. Whole: every member gets every part and sums all of it.
 * Else each sums its own span, [first, end), and all get the spans. Pure. */
bool wn_dev_sums_whole(int n, size_t count);
void wn_dev_span(int n, int member, size_t count, size_t *first, size_t *end);

#endif
