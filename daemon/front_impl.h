/* daemon/front_impl.h - inside of the front. Its thread runs front.c (what comes in and goes out), front_wire.c
 * (sockets and the queue) and front_beat.c (signs of life); front_msg.c is anybody's. */
#ifndef WN_DAEMON_FRONT_IMPL_H
#define WN_DAEMON_FRONT_IMPL_H

#include <pthread.h>

#include "base/ring.h"
#include "daemon/front.h"
#include "daemon/pulse.h"

/* Messages that found no room in a socket, in order. */
struct wn_front_queue {
    struct wn_front_msg *first, *last;
    uint32_t n;
};

struct wn_front_leader {
    struct wn_endpoint *ep; /* NULL: free place */
    char address[WN_ADDRESS_MAX];
    struct wn_front_queue queue;
    int64_t used_us, down_us; /* down_us: since when it is not connected */
    uint64_t losses;          /* of its connection, that were seen */
    bool up;
};

struct wn_front {
    struct wn_front_opts opts;
    char host[64];
    pthread_t thread;
    bool started;
    atomic_bool stop;
    atomic_int flush_ms;
    struct wn_net *net;
    struct wn_endpoint *scheduler, *features;
    struct wn_front_leader leaders[WN_FRONT_LEADERS_MAX];
    char features_address[WN_ADDRESS_MAX];
    struct wn_ring *inbound, *outbound;
    bool held; /* the main thread's: outbound is not told yet */
    struct wn_front_queue to_scheduler, to_workers;
    struct wn_front_load load;
    atomic_size_t unclaimed_bytes;
    int64_t beat_us, next_beat_us, lease_us, heard_us;
    bool welcome;      /* the scheduler knows this worker */
    bool refused;      /* it does not want it, and the log says why */
    int64_t away_us;   /* when it was missed; 0: it was not, or its jobs were given up */
    struct wn_ledger *ledger;
    struct wn_roll roll; /* leader: when its ranks were heard */
    int64_t ending_us;   /* of wn_pulse_end_group */
    struct wn_stall stall; /* leader: of the main thread */
    atomic_bool leaving;   /* the scheduler was told that the group ends */
    wn_status started_rc;
    struct wn_err started_err;
};

/* ---- front_msg.c ---- */

/* An empty message, the caller's; NULL without memory. */
struct wn_front_msg *wn_front_msg_new(void);

/* Packs a body into a fresh message; NULL (with a record in the log) when that fails. Takes the payload in any case. */
struct wn_front_msg *wn_front_msg_pack(const struct wn_party *to, Wn__Envelope__BodyCase kind, const void *body,
                                       void *payload, size_t payload_bytes, void (*free_fn)(void *, void *),
                                       void *hint);

/* ---- front_wire.c ---- */

WN_NODISCARD wn_status wn_front_open_sockets(struct wn_front *f, struct wn_err *err);
void wn_front_close_sockets(struct wn_front *f);

/* Takes a message (NULL is fine) for its party. What waits for the scheduler is bounded by the lease, for then the
 * ledger keeps what counts; a worker that does not read, and a leader that cannot be reached, lose what is for them. */
void wn_front_put(struct wn_front *f, struct wn_front_msg *m);

/* Sends what there is room for. false: something waits. */
bool wn_front_send_queued(struct wn_front *f);

/* The scheduler's socket anew; what cannot be had is tried again. */
void wn_front_reopen_scheduler(struct wn_front *f);

/* Tells the worker when a connection to a leader is lost, for credit and features on their way are gone with it, and
 * when a leader cannot be reached: it is forgotten then. */
void wn_front_watch_leaders(struct wn_front *f);

/* ---- front_beat.c ---- */

WN_NODISCARD wn_status wn_front_beat_init(struct wn_front *f, struct wn_err *err);

/* What is due: hello or heartbeat, the leases of the scheduler and of the ranks. */
void wn_front_beat(struct wn_front *f);

/* Takes down who was heard, and orders into the ledger. true: the message was for the front itself, and is still the
 * caller's. */
bool wn_front_hear(struct wn_front *f, const struct wn_front_msg *m);

/* The scheduler speaks another version. */
void wn_front_hear_strange(struct wn_front *f, const char *what);

#endif
