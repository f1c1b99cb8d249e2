/* transport/link_impl.h - what links and collectives share and callers do not need. Internal to transport/.
 * Owns, threads, errors: as transport/link.h. */
#ifndef WN_TRANSPORT_LINK_IMPL_H
#define WN_TRANSPORT_LINK_IMPL_H

#include "transport/link.h"

#define WN_LINK_TAGS_ALL 2048u      /* callers' tags, then those of collectives: 11 bits beside 4 bits of kind */
#define WN_LINK_POLL     INT64_MIN  /* deadline of an ops->wait that only looks: WN_ETIME without an error text */

/* Tags of collectives. A pair of ranks calls its collectives in one order, so one tag for each is enough. */
enum { WN_TAG_SUM = WN_LINK_TAGS, WN_TAG_SPREAD, WN_TAG_GATHER, WN_TAG_RING, WN_TAG_STATUS, WN_TAG_DEVICE };

_Static_assert(WN_TRAFFIC_N <= 16, "MPI promises tags up to 32767: 16 kinds x 2048");

/* Checks rank and size, allocates the counters. */
wn_status wn_link_init(struct wn_link *link, const struct wn_link_ops *ops, int rank, int size, struct wn_err *err);
void wn_link_fini(struct wn_link *link); /* NULL members are fine */

/* Fills link->error with a sentence that names the operation. Returns code. */
wn_status wn_link_op_failed(struct wn_link *link, wn_status code, struct wn_route route, bool send, const char *why);

/* wn_link_wait for a receive of exactly `bytes`; WN_EPROTO for another size. */
wn_status wn_link_wait_exact(struct wn_link *link, wn_op op, struct wn_route from, size_t bytes,
                             int64_t deadline_us);

#endif
