/* client/conn.h - inside of libwinnow: the socket of a connection, the messages that came ahead of their turn, and what
 * is needed to go on with open jobs on a new socket when the server went away.
 * Owns:    socket and queued messages. Threads: one at a time. Not installed. */
#ifndef WN_CLIENT_CONN_H
#define WN_CLIENT_CONN_H

#include <stdbool.h>

#include "base/clock.h"
#include "base/key.h"
#include "client/winnow.h"
#include "proto/codec.h"

#define WN_CLIENT_PENDING_MAX 65536 /* messages kept while a status is waited for */

struct conn_request;                /* a request as it was sent */

/* A job of this connection that has not ended. */
struct winnow_job {
    uint64_t number;
    char id[WINNOW_JOB_ID_MAX];     /* "": not accepted yet */
    struct conn_request *submit;    /* shared by the request's choices, until accepted; then NULL */
    uint32_t choice;                /* entries of one request have the same number */
    bool own;                       /* submitted here: its end is acknowledged */
    int64_t busy_us, retry_us;      /* when the server was first busy; when to ask again. 0: it was not */
    unsigned refusals;
    bool accepted, cancel;          /* the user knows of it; the user wants it to end */
    bool stale;                     /* the server was not asked for it since it came back */
    uint32_t from, tokens;          /* first token wanted; end of those that the user has */
    size_t text, stream_text;       /* bytes of text that the user has; where in the text the server's stream is */
};

struct pending {
    struct pending *next;
    Wn__Envelope *env;
};

/* Where an endpoint leads. */
struct conn_place {
    char address[256];
    char key_file[512]; /* that gets us in; "": the endpoint does not say */
};

struct winnow {
    void *ctx, *socket, *monitor;
    char endpoint[256];             /* as the user gave it */
    struct conn_place place;        /* what it stands for: of "slurm:JOBID" it may change */
    struct wn_key *key;             /* owned; NULL: plain text */
    bool connected, lost, dead;     /* lost: the socket is; dead: the server did not come back */
    bool reached;                   /* somebody took the connection, who may be stopped, or no server of ours */
    bool greeted, refused;          /* it was connected once; until then: the server did not like our key, or none */
    bool stale;                     /* some jobs are */
    bool asked;                     /* something was sent since the last look for a message */
    int64_t lost_us, reopened_us;   /* since when it is away (0: it is not), when we last tried anew */
    uint32_t reconnect_timeout_ms, busy_timeout_ms;
    bool keep_results;
    char delivered[WINNOW_JOB_ID_MAX]; /* job whose end was the last event: to be acknowledged; "": none */
    struct winnow_job *jobs;
    size_t jobs_n, jobs_room;
    uint64_t last_number;
    struct pending *first, **end;
    size_t pending_n;
    Wn__Envelope *current; /* behind the strings of the last event */
    struct chances *chances; /* and behind its log-probabilities; owned, logprobs.c */
    struct wn_err error;
};

/* The functions return an enum winnow_result and fill w->error on failure. */
int wn_conn_open(struct winnow *w, const char *endpoint, int timeout_ms);
void wn_conn_close(struct winnow *w);

/* payload is gathered from `images`. *keep (NULL is fine): the request, to be sent again; owned by the caller. */
int wn_conn_send(struct winnow *w, Wn__Envelope__BodyCase kind, const void *body, const struct winnow_image *images,
                 size_t images_n, struct conn_request **keep);
int wn_conn_resend(struct winnow *w, struct conn_request *r);
struct conn_request *wn_conn_request_share(struct conn_request *r); /* one more owner */
void wn_conn_request_free(struct conn_request *r); /* NULL is fine */

/* jobs.c. Entries move when one is added or dropped. wn_jobs_add: NULL without memory. */
struct winnow_job *wn_jobs_add(struct winnow *w);
bool wn_jobs_add_choices(struct winnow *w, uint32_t n); /* the request's other answers, after its first in the table */
struct winnow_job *wn_jobs_by_id(struct winnow *w, const char *id);
struct winnow_job *wn_jobs_by_number(struct winnow *w, uint64_t number); /* its first choice */
struct winnow_job *wn_jobs_by_tag(struct winnow *w, const char *tag, uint32_t choice);
void wn_jobs_drop_one(struct winnow *w, struct winnow_job *job);
void wn_jobs_drop(struct winnow *w, uint64_t number); /* all choices */
int wn_jobs_send_cancel(struct winnow *w, const struct winnow_job *job);
void wn_jobs_resume(struct winnow *w); /* asks a server that came back for the jobs that are stale */
/* Sends again what the server was too busy for, if it is time; returns when the next is due (WN_NEVER). */
int64_t wn_jobs_retry(struct winnow *w);

/* events.c: fills ev from w->current; false: nothing for the user. *job: whose it is; NULL: none of ours. */
bool wn_event_fill(struct winnow *w, struct winnow_event *ev, struct winnow_job **job);

/* The next message, from the queue first; *out is owned by the caller. WINNOW_TIMEOUT also when `fd` (-1: none) can be
 * read. */
int wn_conn_recv(struct winnow *w, Wn__Envelope **out, int fd, int64_t deadline_us);

/* The next Status, whatever comes before it; other messages are kept for wn_conn_recv. */
int wn_conn_status(struct winnow *w, Wn__Envelope **out, int64_t deadline_us);

/* Our result code for a status of the codec or the server. */
int wn_conn_result(wn_status code);

/* peek.c: does ZeroMQ listen at "tcp://HOST:PORT"? Waits twice as long at most. "ipc://PATH": as far as one can see. */
bool wn_conn_is_zeromq(const char *address, int timeout_ms);

/* locate.c: "slurm:JOBID" is looked up, any other endpoint is an address. */
wn_status wn_conn_locate(const char *endpoint, struct conn_place *out, struct wn_err *err);

/* logprobs.c: *out [n] of n packed values; *keep is behind it, to be freed. WINNOW_EPROTO: they make no sense. */
int wn_chances_unpack(struct winnow *w, const ProtobufCBinaryData *values, size_t n, const struct winnow_logprobs **out,
                      struct chances **keep);
void wn_chances_free(struct chances *c); /* NULL is fine */

/* json.c: the Status as JSON text, to be freed; NULL without memory. */
char *wn_status_json(const Wn__Status *st);

#endif
