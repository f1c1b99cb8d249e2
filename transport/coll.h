/* transport/coll.h - collectives over the sends and receives of any link, on any sub-group of its ranks.
 *
 * Owns:    nothing; the scratch memory of an all-reduce belongs to the link.
 * Threads: the engine thread. Every member calls the same collectives in the same order with the same comm list.
 * Fails:   as transport/link.h. After a failure, WN_ETIME too, operations may still be in flight: the link is good for
 *          cancel and close only, and the caller's buffers must outlive that close.
 *
 * The order of sums is part of the contract. For members r0, r1, ... of the comm each element is added as a balanced
 * binary tree in member order, ((r0+r1)+(r2+r3))+..., over the next power of two with the missing members left out:
 * three members give (r0+r1)+r2, six give ((r0+r1)+(r2+r3))+(r4+r5). The result has the same bits on every member, for
 * every message size and link. With shard/backend.h's slices this makes results independent of the number of ranks. */
#ifndef WN_TRANSPORT_COLL_H
#define WN_TRANSPORT_COLL_H

#include "transport/link.h"

/* Some ranks of a link, in the order that sums follow. Each member holds the same list; `me` is its own place. */
struct wn_comm {
    const int *ranks; /* [n] ranks of the link, all different; borrowed */
    int n, me;
};

/* data[i] becomes the sum over members; counted as WN_TRAFFIC_ALLREDUCE. n == 1: nothing happens. */
WN_NODISCARD wn_status wn_coll_allreduce_f32(struct wn_link *link, const struct wn_comm *comm, float *data,
                                             size_t count, int64_t deadline_us);

/* Payload bytes that member `from` sends to member `to` in an all-reduce of count floats among n members. Pure. */
uint64_t wn_coll_allreduce_bytes(int n, int from, int to, size_t count);

/* Member `root`'s bytes become everybody's. */
WN_NODISCARD wn_status wn_coll_broadcast(struct wn_link *link, const struct wn_comm *comm, int root,
                                         wn_traffic kind, void *data, size_t bytes, int64_t deadline_us);

/* Payload bytes that member `from` sends to member `to` in a broadcast from `root`. Pure. */
uint64_t wn_coll_broadcast_bytes(int n, int root, int from, int to, size_t bytes);

/* Member i contributes bytes_of[i] bytes; `all` receives them one after the other, in member order. mine may be the
 * member's own place in `all`. bytes_of [n] is the same everywhere; a member that sends another size is WN_EPROTO.
 * gather: only root's `all` is written (others pass NULL), each member sends its part to root once.
 * allgather: a ring; each member sends n-1 messages to the next one. */
WN_NODISCARD wn_status wn_coll_gather(struct wn_link *link, const struct wn_comm *comm, int root, wn_traffic kind,
                                      const void *mine, void *all, const size_t *bytes_of, int64_t deadline_us);
WN_NODISCARD wn_status wn_coll_allgather(struct wn_link *link, const struct wn_comm *comm, wn_traffic kind,
                                         const void *mine, void *all, const size_t *bytes_of,
                                         int64_t deadline_us);

/* *agreed is the largest status of all members (so WN_OK only if all say so): the end of each step. The worst status
 * wins because later codes harm more. 4 bytes of WN_TRAFFIC_CONTROL in each of ceil(log2 n) rounds. */
WN_NODISCARD wn_status wn_coll_max_status(struct wn_link *link, const struct wn_comm *comm, wn_status mine,
                                          wn_status *agreed, int64_t deadline_us);

/* Returns once every member has called it. */
WN_NODISCARD wn_status wn_coll_barrier(struct wn_link *link, const struct wn_comm *comm, int64_t deadline_us);

#endif
