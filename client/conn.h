/* client/conn.h - inside of libwinnow: the socket of a connection and the messages that came ahead of their turn.
 * Owns:    socket and queued messages. Threads: one at a time. Not installed. */
#ifndef WN_CLIENT_CONN_H
#define WN_CLIENT_CONN_H

#include <stdbool.h>

#include "base/clock.h"
#include "client/winnow.h"
#include "proto/codec.h"

#define WN_CLIENT_PENDING_MAX 65536 /* messages kept while a status is waited for */

/* A job of this connection that has not ended. */
struct winnow_job {
    uint64_t number;
    char id[WINNOW_JOB_ID_MAX]; /* "": not accepted yet */
    bool cancel;                /* asked for before it had an id */
};

struct pending {
    struct pending *next;
    Wn__Envelope *env;
};

struct winnow {
    void *ctx, *socket, *monitor;
    char endpoint[256];
    bool connected, lost;
    struct winnow_job *jobs;
    size_t jobs_n, jobs_room;
    uint64_t last_number;
    struct pending *first, **end;
    size_t pending_n;
    Wn__Envelope *current; /* behind the strings of the last event */
    struct wn_err error;
};

/* The functions return an enum winnow_result and fill w->error on failure. */
int conn_open(struct winnow *w, const char *endpoint, int timeout_ms);
void conn_close(struct winnow *w);

/* payload is gathered from `images`. */
int conn_send(struct winnow *w, Wn__Envelope__BodyCase kind, const void *body, const struct winnow_image *images,
              size_t images_n);

/* The next message, from the queue first; *out is owned by the caller. */
int conn_recv(struct winnow *w, Wn__Envelope **out, int64_t deadline_us);

/* The next Status, whatever comes before it; other messages are kept for conn_recv. */
int conn_status(struct winnow *w, Wn__Envelope **out, int64_t deadline_us);

/* Our result code for a status of the codec or the server. */
int conn_result(wn_status code);

/* json.c: the Status as JSON text, to be freed; NULL without memory. */
char *status_json(const Wn__Status *st);

#endif
