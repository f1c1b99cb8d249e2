/* client/gateway.h - `winnow gateway`: OpenAI's HTTP interface in front of a service. It is a client like any other: it
 * knows the service by winnow.h alone, and what it forgets when it ends the service has.
 *
 *     curl --HTTP--> MHD daemon --request--> chat_request --winnow_submit--> scheduler
 *          <------- reply, or a stream <---- chat_answer or chat_stream <-- events --'
 *
 * One thread does all of this and waits in one place, winnow_next_or(): for events of the service and, by one epoll
 * descriptor, for signals, for libmicrohttpd and for readers that hang up. A connection whose request is with the
 * service, or whose reader has all that there is, is suspended, so nothing turns while nothing happens. A second thread
 * (gateway_watch.c) asks for the service's status once a second, for that call waits. Nothing else is shared.
 *
 * A request's life: its body gathers under limits; begun (parsed and submitted); ACCEPTED starts a stream, else DONE is
 * the reply; ended. It owns one job at most and cancels it when the reader hangs up, reads too slowly for the bound on
 * what waits for him, or when the gateway ends before it. When the service goes away jobs wait for it and go on
 * (libwinnow does that), up to away_s.
 *
 * Owns:    as said at each.     Threads: one, beside the watch.
 * Fails:   requests by HTTP codes and OpenAI's error objects; starting with WN_EINVAL, WN_EIO, WN_ENOMEM. */
#ifndef WN_CLIENT_GATEWAY_H
#define WN_CLIENT_GATEWAY_H

#include <microhttpd.h>

#include "base/clock.h"
#include "base/sha256.h"
#include "client/chat.h"

#define GATEWAY_KEYS_MAX  1024
#define GATEWAY_MODEL_MAX 256
#define GATEWAY_OUT_MAX   ((size_t)256 << 10) /* of a stream, waiting for its reader */

struct gateway_opts {
    const char *endpoint, *host;
    uint16_t port;                     /* 0: any */
    uint8_t (*keys)[WN_SHA256_BYTES];  /* hashes of those that are let in; owned by the caller */
    size_t keys_n;                     /* 0: everybody is */
    uint32_t connections, per_address; /* at a time; per_address 0: no bound of its own */
    uint32_t body_bytes;               /* of one request */
    uint32_t idle_s, arrive_s;         /* without a byte; until a request has arrived whole */
    uint32_t away_s, drain_s;          /* a service that went away is waited for; SIGTERM gives requests so long */
};

/* ---- gateway_watch.c: the service's state, a second old at most ---- */

struct gateway_watch;

struct gateway_service {
    bool answers, ready;
    int64_t away_us; /* since when it does not answer; 0: it does */
    char model[GATEWAY_MODEL_MAX];
    char why[WN_ERR_TEXT_MAX]; /* it is not ready, or does not answer */
};

/* Looks once, and starts the thread. endpoint is borrowed until stop, which waits for the library to return, as start
 * does (2 s each at most). */
WN_NODISCARD wn_status gateway_watch_start(struct gateway_watch **out, const char *endpoint, struct wn_err *err);
void gateway_watch_stop(struct gateway_watch *w); /* NULL is fine */
void gateway_watch_look(struct gateway_watch *w, struct gateway_service *out);
char *gateway_watch_metrics(struct gateway_watch *w); /* Prometheus text; the caller's; NULL: there is none */

/* ---- what the files share ---- */

/* A connection; while a request is answered it is busy. */
struct gateway_conn {
    struct gateway_conn *next, **link;
    int fd;
    int64_t since_us; /* it is not busy */
    bool busy;
};

struct gateway_request {
    struct gateway_request *next, **link;
    struct gateway *g;
    struct MHD_Connection *http;
    struct gateway_conn *conn;
    const struct gateway_route *route;
    char *body; /* owned, until the request is begun */
    size_t body_n, body_room;
    int refused; /* HTTP status, and why: the rest of the body is not kept */
    char refused_text[WN_ERR_TEXT_MAX];
    bool suspended, replied, gone; /* replied: MHD has the response; gone: nobody reads */
    bool watched;                  /* its socket is in the epoll set */
    /* of a chat */
    uint64_t job; /* at the service; 0: none */
    bool streams;
    char model[GATEWAY_MODEL_MAX];
    struct chat_answer answer; /* or, if it streams, */
    struct chat_stream stream;
    char *out; /* of the stream: what MHD has not taken yet is behind out_at; owned */
    size_t out_n, out_at, out_room;
    bool out_ends; /* nothing comes behind it */
};

struct gateway {
    struct gateway_opts opts;
    struct MHD_Daemon *http;
    struct winnow *w; /* NULL: there has been no service yet */
    struct gateway_watch *watch;
    struct gateway_service service; /* what the watch said last */
    int listener, epoll, signals;   /* listener -1: it takes no new connections */
    struct gateway_conn *conns;
    struct gateway_request *requests;
    size_t bodies; /* bytes of all of them */
    bool draining;
    int64_t drained_us; /* then at the latest */
};

/* ---- gateway.c ---- */

/* Serves until SIGTERM or SIGINT; a line on standard output says when it listens, and where. */
WN_NODISCARD wn_status gateway_run(const struct gateway_opts *opts, struct wn_err *err);

/* ---- gateway_http.c: routes, limits, replies ---- */

WN_NODISCARD wn_status gateway_http_start(struct gateway *g, struct wn_err *err);
void gateway_http_check_time(struct gateway *g); /* hangs up on who does not get on */
void gateway_hang_up(struct gateway_request *r); /* nobody reads it, or nobody shall */
void gateway_suspend(struct gateway_request *r);
void gateway_resume(struct gateway_request *r); /* fine if it is not suspended */

/* A reply; o is moved, NULL: without memory for it. retry_s 0: no Retry-After. */
enum MHD_Result gateway_reply_json(struct gateway_request *r, int status, json_t *o, uint32_t retry_s);
enum MHD_Result gateway_reply_error(struct gateway_request *r, int status, const char *param, const char *text,
                                    uint32_t retry_s);
enum MHD_Result gateway_reply_stream(struct gateway_request *r); /* of out, as it comes */
json_t *gateway_error_json(int status, const char *param, const char *text);

/* ---- gateway_chat.c: chat completions ---- */

enum MHD_Result gateway_chat_begin(struct gateway_request *r);
void gateway_chat_event(struct gateway *g, const struct winnow_event *ev);
void gateway_chat_fail(struct gateway_request *r, int status, const char *text, uint32_t retry_s);
void gateway_chat_drop(struct gateway_request *r); /* its job, if it has one, and what came of it */

#endif
