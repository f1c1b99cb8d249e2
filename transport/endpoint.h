/* transport/endpoint.h - a ZeroMQ socket with its limits, its keys and its byte counters.
 *
 * Owns:    the socket and the messages queued in it. A wn_net owns ZeroMQ's threads; endpoints are closed before it.
 * Threads: an endpoint is used only by the thread that opened it (checked); a wn_net may be shared by threads. Nothing
 *          here blocks but wn_endpoint_poll() and wn_net_destroy(). Callers' free functions run on ZeroMQ's threads.
 * Fails:   WN_EBUSY: nothing to receive, or the peer's queue is full (the message is still the caller's). WN_EPEER: no
 *          such peer. WN_EPROTO: a message broke the frame limits; it is gone and counted. WN_EINVAL and WN_EIO at
 *          open, with a sentence that names the address.
 *
 * Limits at every hop: libzmq drops the connection of a peer that announces a frame above the largest of frame_max,
 * but never above WN_CHUNK_BYTES (nor below 1 KiB, which its handshakes need), before it allocates, also in the
 * handshake (seen here as a disconnect). Longer frames travel in pieces (base/chunk.h). This layer refuses messages
 * of too many frames or with a frame above its own maximum. ZeroMQ hands over and counts messages once they are whole:
 * a peer over TCP that has sent more than the largest without an end is cut off (endpoint_watch.h), as is who connects
 * when most of the files that this process may open are taken. A peer that goes away silently is noticed by heartbeats.
 * IPv6 is off. An address that other machines can reach is refused (WN_EAUTH) unless there are keys, or the caller
 * says that it wants it so. */
#ifndef WN_TRANSPORT_ENDPOINT_H
#define WN_TRANSPORT_ENDPOINT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/clock.h"
#include "base/status.h"
#include "base/traffic.h"

#define WN_MSG_FRAMES_MAX    4
#define WN_PEER_ID_MAX       32
#define WN_ENDPOINT_POLL_MAX 32
#define WN_CURVE_KEY_CHARS   41 /* a key as text (Z85), final zero included */

struct wn_net;
struct wn_endpoint;

/* ROUTER speaks to many peers by id; DEALER to the one it is connected to (or to all that connect to it, in turn). */
typedef enum wn_endpoint_type { WN_ENDPOINT_ROUTER, WN_ENDPOINT_DEALER } wn_endpoint_type;

/* Who a message of a ROUTER came from or goes to: opaque bytes, compared with wn_peer_equal. Plain data. */
struct wn_peer_id {
    uint8_t n; /* 0: none */
    uint8_t bytes[WN_PEER_ID_MAX];
};

/* Keys as Z85 text of 40 characters; borrowed until open returns. No keys at all: plain text. */
struct wn_curve_opts {
    bool server;               /* this side waits for clients and proves itself by its own key */
    const char *public_key;    /* of this side; a server needs only its secret */
    const char *secret_key;    /* of this side */
    const char *server_key;    /* client: the public key that the server must prove to hold */
    const char *const *allowed; /* server: public keys of the clients that may connect; NULL: any */
    size_t allowed_n;
};

/* Zero in a number means the default that is named beside it. */
struct wn_endpoint_opts {
    wn_endpoint_type type;
    const char *address;                  /* tcp://HOST:PORT, ipc://PATH, inproc://NAME; bind to port 0: any free one */
    bool bind;                            /* else connect (and reconnect for ever) */
    size_t frame_max[WN_MSG_FRAMES_MAX];  /* largest frame 0 (WN_CHUNK_BYTES at most), 1, ... to receive; 0: none */
    int send_queue_max, recv_queue_max;   /* messages of one peer, default 1000 */
    int linger_ms;                        /* how long destroy waits for what is unsent; default 0 */
    int heartbeat_ms;                     /* ping interval, default 2000; -1: none */
    int heartbeat_timeout_ms;             /* silence after which a peer counts as gone, default 4 x heartbeat_ms */
    int handshake_ms;                     /* in which a new connection must have said who it is, default 10000 */
    int reconnect_ms, reconnect_max_ms;   /* first wait and largest, doubling; default 50 and 2000 */
    const char *identity;                 /* DEALER: a fixed id, 1..32 characters; NULL: the ROUTER chooses */
    bool handover;                        /* ROUTER: a new peer with a known id replaces the old one */
    struct wn_curve_opts curve;
    bool insecure;                        /* an address that other machines reach may be used without keys */
};

/* One frame; its bytes belong to the message. */
struct wn_frame {
    _Alignas(void *) unsigned char store[64]; /* a zmq_msg_t */
};

/* Frames that travel together, all or none. Init it first; never copy it by assignment: pass pointers. */
struct wn_msg {
    struct wn_peer_id peer; /* ROUTER: the sender after recv, the destination of a send. DEALER: unused */
    unsigned frames_n;
    struct wn_frame frames[WN_MSG_FRAMES_MAX];
};

struct wn_endpoint_stats {
    uint64_t connected, disconnected; /* connections ready, and lost */
    bool up;                          /* DEALER: it is connected */
    uint64_t handshake_failed;        /* wrong key, wrong protocol, or gone before it was ready; a client with none
                                       * connected and some failed was refused, and may not be tried again */
    uint64_t keys_refused;            /* of those: a server turned away a key that is not in its list */
    uint64_t mismatched;              /* and: one side has keys, or another server's; or it speaks something else */
    uint64_t refused;                 /* messages that broke the frame limits (WN_EPROTO), or did not end */
    uint64_t crowded;                 /* connections that were refused: too many files are open */
    uint64_t busy;                    /* sends that found a full queue, or nobody connected */
};

/* A client whose key is not in the list. */
struct wn_stranger {
    char key[WN_CURVE_KEY_CHARS];
    char address[64]; /* that it came from; "": over ipc:// */
};

struct wn_poll_item {
    struct wn_endpoint *ep; /* or NULL: then fd */
    int fd;
    bool want_write;        /* also wake when a send may succeed (DEALER; a ROUTER always may) */
    bool readable, writable; /* out; an fd is readable on hang-up and error, too */
};

WN_NODISCARD wn_status wn_net_create(struct wn_net **out, struct wn_err *err);
/* After the last endpoint is closed; may wait as long as the longest linger. NULL is fine. */
void wn_net_destroy(struct wn_net *net);

/* Opens and binds, or starts to connect. *out is owned by the caller. One clear error names the address: in use, not of
 * this machine, malformed. */
WN_NODISCARD wn_status wn_endpoint_open(struct wn_endpoint **out, struct wn_net *net,
                                        const struct wn_endpoint_opts *opts, struct wn_err *err);
void wn_endpoint_close(struct wn_endpoint *ep); /* NULL is fine */

/* The address in full, with the port that was chosen; valid until close. */
const char *wn_endpoint_address(const struct wn_endpoint *ep);

/* Queues msg. WN_OK: moved, msg is empty again. WN_EBUSY, WN_EPEER (ROUTER: no such peer): still the caller's, whole.
 * WN_EIO: lost, msg is empty (the connection went in the middle; it counts as sent). */
WN_NODISCARD wn_status wn_endpoint_send(struct wn_endpoint *ep, struct wn_msg *msg, wn_traffic kind);

/* Takes the next message into msg (what it held is freed). WN_EBUSY: none there. WN_EPROTO: it broke the limits and is
 * gone; msg->peer names the sender. Its kind is known only to who parses it: see wn_endpoint_received. */
WN_NODISCARD wn_status wn_endpoint_recv(struct wn_endpoint *ep, struct wn_msg *msg);

/* Counts a received message under its kind. */
void wn_endpoint_received(struct wn_endpoint *ep, wn_traffic kind, size_t bytes);

/* Waits until an item is ready (WN_OK) or the deadline passes (WN_ETIME; never before it). At most WN_ENDPOINT_POLL_MAX
 * items, the endpoints all of this thread. After WN_OK, receive until WN_EBUSY or poll again: both work. */
WN_NODISCARD wn_status wn_endpoint_poll(struct wn_poll_item *items, size_t n, int64_t deadline_us);

/* Adds to *table; any thread. */
void wn_endpoint_traffic(const struct wn_endpoint *ep, struct wn_traffic_table *table);
/* The figures so far; they move during poll, recv and this call. */
void wn_endpoint_stats_get(struct wn_endpoint *ep, struct wn_endpoint_stats *stats);

/* Who was turned away since the last call, one at a time; of many the last few. false: nobody. */
bool wn_endpoint_stranger(struct wn_endpoint *ep, struct wn_stranger *out);

void wn_msg_init(struct wn_msg *msg);
void wn_msg_clear(struct wn_msg *msg); /* frees the frames; the message can be filled again */

/* Append a frame: a copy; room for the caller to fill (*room is valid until the message is sent); or the caller's own
 * memory without a copy, given back by free_fn(data, hint) on any thread, also when the message is cleared.
 * WN_ELIMIT: it has WN_MSG_FRAMES_MAX frames already (free_fn is not called on failure). */
WN_NODISCARD wn_status wn_msg_add_copy(struct wn_msg *msg, const void *data, size_t bytes);
WN_NODISCARD wn_status wn_msg_add_room(struct wn_msg *msg, size_t bytes, void **room);
WN_NODISCARD wn_status wn_msg_add_ref(struct wn_msg *msg, void *data, size_t bytes,
                                      void (*free_fn)(void *data, void *hint), void *hint);

/* Frame i, i < frames_n. Valid until the message is sent, cleared or received into. */
void *wn_msg_data(struct wn_msg *msg, unsigned i);
size_t wn_msg_size(const struct wn_msg *msg, unsigned i);
size_t wn_msg_bytes(const struct wn_msg *msg); /* all frames */

/* The key (Z85) of who sent a received message, as the handshake proved it; NULL: the endpoint has no list of keys.
 * Valid as long as frame 0. */
const char *wn_msg_key(const struct wn_msg *msg);

bool wn_peer_equal(const struct wn_peer_id *a, const struct wn_peer_id *b);

/* A new key pair as text, for `winnow keygen` and tests. */
WN_NODISCARD wn_status wn_curve_keypair(char public_key[WN_CURVE_KEY_CHARS], char secret_key[WN_CURVE_KEY_CHARS],
                                        struct wn_err *err);

#endif
