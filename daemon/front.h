/* daemon/front.h - the thread of a worker (leader or vision) that owns its sockets, so that heartbeats go out
 * while the main thread computes.
 *
 * It says hello to the scheduler, keeps the lease alive, and moves messages between the sockets and two bounded
 * rings. A leader binds the endpoint where vision workers connect; a vision worker connects to leaders on
 * demand.
 *
 * While the scheduler is away a leader goes on with its jobs for grace_ms: its answers are kept (daemon/ledger.h), its
 * next Hello names the jobs, and what the scheduler has not had is said when it welcomes the leader.
 *
 * Owns:    sockets, both rings, and every message inside them. A taken message is the caller's:
 *          wn_front_msg_free().
 * Threads: start, take, send and stop from the main thread; the load figures are atomics.
 * Fails:   start: WN_EIO, WN_EINVAL (an address), WN_ENOMEM. A message for a peer that is gone is dropped with
 *          a record in the log: whoever waits for it has a lease or a deadline. When the inbound ring is full
 *          the front answers the sender with an Error of code WN_EBUSY. */
#ifndef WN_DAEMON_FRONT_H
#define WN_DAEMON_FRONT_H

#include <stdatomic.h>

#include "base/key.h"
#include "base/traffic.h"
#include "daemon/ledger.h"
#include "proto/codec.h"
#include "shard/plan.h"
#include "transport/endpoint.h"

struct wn_front;

#define WN_ADDRESS_MAX       160
#define WN_FRONT_LEADERS_MAX 16 /* that a vision worker is connected to; the longest unused one makes room */

typedef enum wn_side {
    WN_SIDE_SCHEDULER,
    WN_SIDE_WORKER, /* at a leader: a vision worker, named by its peer id */
    WN_SIDE_LEADER, /* at a vision worker: a leader, named by its address */
    WN_SIDE_SELF    /* the front itself: lease_lost is set */
} wn_side;

/* Where a message comes from or goes to. */
struct wn_party {
    wn_side side;
    struct wn_peer_id peer;
    char address[WN_ADDRESS_MAX];
};

/* An answer about a job of the scheduler's; id "" is none. */
struct wn_front_about {
    char id[WN_JOB_ID_CHARS + 1];
    uint32_t attempt;
    struct wn_ledger_note note;
};

struct wn_front_msg {
    struct wn_party party;
    Wn__Envelope *env;    /* inbound only; NULL: see the flags below */
    const void *payload;  /* inbound: the payload frame, inside msg; NULL if there is none */
    size_t payload_bytes;
    bool damaged;         /* features whose payload is not what their hash says */
    bool link_lost;       /* without env: the connection to this leader was lost, and what was on its way with it */
    bool unreachable;     /* without env: this leader was not connected for two leases; what was for it was dropped */
    bool lease_lost;      /* from WN_SIDE_SELF: the scheduler was away too long, what it ordered is given up */
    struct wn_msg msg;    /* the frames */
    atomic_size_t *unclaimed_bytes; /* inbound: where the payload counts until it is claimed or freed; NULL: nowhere */
    wn_traffic traffic;   /* outbound only: what it counts as */
    struct wn_front_about about; /* outbound only */
    struct wn_front_msg *next;
};

/* What heartbeats report; written by the main thread at any time. */
struct wn_front_load {
    atomic_uint running, waiting, pages_used, pages, features, feature_slots;
    atomic_ulong steps, images, cache_hits, encodes, preemptions;
    atomic_ulong sent_bytes[WN_TRAFFIC_N];
    struct {
        atomic_ulong busy_us, wait_us, link_us;
    } stages[WN_STAGES_MAX]; /* leader: the first opts.stages_n of them */
};

struct wn_front_opts {
    Wn__Role role;
    const char *name, *model_id, *build;
    const char *scheduler;     /* endpoint of the scheduler for workers */
    const char *features_bind; /* leader: where to wait for vision workers; NULL: none */
    uint32_t slots, tokens_max;
    uint32_t stages_n;    /* leader */
    uint32_t grace_ms; /* how long jobs go on without a scheduler; 0: they are given up when the lease ends */
    Wn__RankInfo **ranks; /* borrowed until stop; NULL for a vision worker */
    size_t ranks_n;
    struct wn_link *link; /* leader of several ranks: cancelled when one is silent for a lease (daemon/pulse.h) */
    uint32_t lease_ms;    /* that lease */
    uint32_t stall_ms;    /* leader: that the main thread may do nothing; 0: for ever */
    size_t payload_max;   /* largest payload frame to receive */
    size_t unclaimed_max; /* leader: bytes of features taken in that wn_front_claim has not been called for */
    const struct wn_key *key; /* the workers', borrowed until stop; NULL: plain text */
    bool insecure;            /* plain text even to other machines */
};

WN_NODISCARD wn_status wn_front_start(struct wn_front **out, const struct wn_front_opts *opts, struct wn_err *err);

/* Sends what is queued, at most flush_ms long, and ends the thread. NULL is fine. */
void wn_front_stop(struct wn_front *f, int flush_ms);

struct wn_front_load *wn_front_load(struct wn_front *f);
const char *wn_front_features_address(const struct wn_front *f); /* leader; valid until stop */

/* The oldest inbound message, now the caller's, or NULL. */
struct wn_front_msg *wn_front_take(struct wn_front *f);
void wn_front_msg_free(struct wn_front_msg *m); /* NULL is fine */

/* The features of this message belong to a job from now on, and are bounded by the number of jobs: they make room for
 * others. */
void wn_front_claim(struct wn_front_msg *m);

/* Waits until something is inbound or the deadline passes; false then. */
bool wn_front_wait(struct wn_front *f, int64_t deadline_us);

/* Sends a body to a party. The payload (NULL: none) is not copied: free_fn(payload, hint) gives it back, also
 * on failure. */
void wn_front_send(struct wn_front *f, const struct wn_party *to, Wn__Envelope__BodyCase kind, const void *body,
                   wn_traffic traffic, void *payload, size_t payload_bytes, void (*free_fn)(void *, void *),
                   void *hint);

/* A leader's group ends, and why: the scheduler is told at once, and hears no heartbeat any more. NULL is fine. */
void wn_front_leave(struct wn_front *f, const struct wn_err *why);

/* Between hold and release what is sent waits, and its thread wakes once for all of it: a step's tokens. */
void wn_front_hold(struct wn_front *f);
void wn_front_release(struct wn_front *f);

/* An Error about a job (NULL: none) to a party, from *err. */
void wn_front_send_error(struct wn_front *f, const struct wn_party *to, Wn__JobRef *job, const struct wn_err *err,
                         bool retriable);

#endif
