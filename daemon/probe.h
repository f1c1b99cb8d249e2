/* daemon/probe.h - what `winnow check` starts in the places of a service's processes, and how they talk.
 *
 * A probe is a process `winnowd probe` with the options of the service; --name says whose place it takes: scheduler,
 * vision-N or replica-N, whose ranks are one MPI job. It uses the endpoints, links and keys that the service would
 * use. What it finds it writes to standard output, a line of JSON each: the launcher carries these to `winnow check`,
 * so that a broken network does not hold up the news about it.
 *
 * The scheduler's probe leads, so that nothing is measured while something else is: it waits for everyone's HELLO,
 * says GO to one at a time (measure the way to this address), then LINK to all ranks of a replica (open MPI and
 * measure), then END. Who has done what it was told says DONE; an ECHO comes back at once.
 *
 * Lines: {"kind": K, "name", "rank", "host", ...}, K = host, model, decode, journal, link, wrong.
 * Owns:    nothing beyond what main opens. Threads: main, and one for an echo; a line is one write.
 * Fails:   whatever is wrong becomes a line "wrong". */
#ifndef WN_DAEMON_PROBE_H
#define WN_DAEMON_PROBE_H

#include <jansson.h>

#include "daemon/front.h"
#include "daemon/worker.h"
#include "transport/endpoint.h"

#define WN_PROBE_MARK     "winnow-probe: " /* begins a line that is for `winnow check` */
#define WN_PROBE_LINE_MAX 4000             /* a pipe takes it whole */
#define WN_PROBE_HOST_LEN 64
#define WN_PROBE_FRAME_MAX 2048 /* a message, and what encryption and its handshake add */

typedef enum wn_probe_place { WN_PROBE_SCHEDULER, WN_PROBE_VISION, WN_PROBE_REPLICA } wn_probe_place;

struct wn_probe {
    struct wn_config cfg;
    wn_probe_place place;
    char host[WN_PROBE_HOST_LEN];
    uint32_t rank, size; /* of the replica; 0 and 1 elsewhere */
    struct wn_netif net; /* name "": one machine only */
    bool reachable;      /* its interface is there */
    bool whole;          /* interface, checkpoint and plan are there: model and plan are filled */
    struct wn_model model;
    struct wn_plan plan;
    struct wn_net *zmq;
    struct wn_key *key; /* the workers'; NULL: plain text */
};

/* Writes a line; `body` is moved. */
void wn_probe_say(const struct wn_probe *p, const char *kind, json_t *body);
void wn_probe_wrong(struct wn_probe *p, const char *fmt, ...) WN_PRINTF(2, 3);

/* To an error of a message of so many bytes that did not come, where small ones did: what it may be. */
void wn_probe_blame_size(const struct wn_probe *p, size_t bytes, struct wn_err *err);

/* ---- messages (probe_net.c) ---- */

typedef enum wn_probe_word {
    WN_PROBE_HELLO,
    WN_PROBE_ECHO, /* frame 1 of it, if there is one, is not sent back */
    WN_PROBE_GO,
    WN_PROBE_LINK,
    WN_PROBE_DONE,
    WN_PROBE_GONE, /* from `winnow check`: the processes of `name` have ended */
    WN_PROBE_END
} wn_probe_word;

/* Frame 0, of fixed size. Texts end with a zero byte. */
struct wn_probe_msg {
    uint32_t magic, word, rank, ok;
    char name[WN_NAME_LEN], host[WN_PROBE_HOST_LEN];
    char address[WN_ADDRESS_MAX];
};

/* A message of this process: its name, rank and host. */
struct wn_probe_msg wn_probe_msg_make(const struct wn_probe *p, wn_probe_word word);

/* Connects as a worker does. */
WN_NODISCARD wn_status wn_probe_connect(const struct wn_probe *p, bool to_scheduler, const char *address,
                                        struct wn_endpoint **out, struct wn_err *err);
WN_NODISCARD wn_status wn_probe_send(struct wn_endpoint *ep, const struct wn_probe_msg *m, int64_t deadline_us);
/* Copies a message of probes; false: it is none. */
bool wn_probe_msg_read(struct wn_msg *msg, struct wn_probe_msg *m);
/* The next such message. */
WN_NODISCARD wn_status wn_probe_recv(struct wn_endpoint *ep, struct wn_probe_msg *m, int64_t deadline_us);

/* Half of a round trip, the median of some. patient: the other side may still be starting. */
WN_NODISCARD wn_status wn_probe_ping(const struct wn_probe *p, struct wn_endpoint *ep, bool patient, double *us,
                                     struct wn_err *err);
/* Sends messages of `bytes` for a while, at least two. */
WN_NODISCARD wn_status wn_probe_stream(const struct wn_probe *p, struct wn_endpoint *ep, size_t bytes,
                                       double *bytes_per_s, uint64_t *sent, struct wn_err *err);

/* A thread that sends every ECHO back, on an address that workers connect to. */
struct wn_probe_echo;
WN_NODISCARD wn_status wn_probe_echo_start(struct wn_probe_echo **out, const struct wn_probe *p, const char *bind,
                                           size_t payload_max, struct wn_err *err);
const char *wn_probe_echo_address(const struct wn_probe_echo *e);
void wn_probe_echo_stop(struct wn_probe_echo *e); /* NULL is fine */

/* ---- the places ---- */

/* The scheduler's: binds both of its addresses and leads until everyone was told END (probe_lead.c). */
WN_NODISCARD wn_status wn_probe_lead(struct wn_probe *p, struct wn_err *err);

/* Opens MPI and measures sends between stages and all-reduces inside of them (probe_ranks.c). */
WN_NODISCARD wn_status wn_probe_ranks(struct wn_probe *p, struct wn_err *err);

/* What is on this host: versions, memory, interface (probe_host.c). */
void wn_probe_say_host(struct wn_probe *p);
void wn_probe_say_decode(struct wn_probe *p);
void wn_probe_say_journal(struct wn_probe *p);

/* Bytes sent by each interface of this host so far. */
struct wn_probe_tx {
    uint32_t n;
    char name[32][WN_NETIF_NAME_LEN];
    uint64_t bytes[32];
};
void wn_probe_tx_read(struct wn_probe_tx *tx);
/* The interface that has sent at least half of `bytes` since `before`; "": none has. */
void wn_probe_tx_by(const struct wn_probe_tx *before, uint64_t bytes, char out[WN_NETIF_NAME_LEN]);

#endif
