/* daemon/sched_job.h - a job at the scheduler: its request, its images, its followers, where it is on its way.
 * Owns:    what it points at, but for accounts and other jobs; sched_table.c makes and ends it.
 * Threads: the scheduler's; a payload is released by any. */
#ifndef WN_DAEMON_SCHED_JOB_H
#define WN_DAEMON_SCHED_JOB_H

#include <stdatomic.h>

#include "daemon/accounts.h"
#include "daemon/job.h"
#include "transport/endpoint.h"

#define WN_SCHED_WATCHERS_MAX 8 /* followers of one job */
#define WN_NO_WORKER          (-1)

/* The images of a job, or of all answers to one request, sent without a copy: freed by whoever lets go last, on any
 * thread. */
struct wn_payload {
    atomic_uint refs;
    size_t bytes;
    uint8_t data[];
};

/* A client that follows a job, and how far it has got. */
struct wn_watcher {
    struct wn_peer_id peer;
    char tag[65];
    uint32_t choice;
    bool stream, existed, accepted;   /* accepted: that message is out */
    bool ahead;                       /* it has tokens that were not on record: they come again, and are not sent */
    size_t tokens_at, text_at;
};

struct wn_job_image {
    size_t offset, bytes;
    uint64_t hash;
    int worker;                       /* that has it in this attempt, or WN_NO_WORKER */
    bool encoded;
    uint32_t orders;                  /* to encode it, in this attempt */
    int avoid;                        /* the worker that had the last order and did not do it, or WN_NO_WORKER */
    bool waiting;                             /* encoded; its features wait at the worker for the leader's credit */
    int64_t ordered_us, full_us, order_at_us; /* the last; since when workers lack room for it, or 0; the next try */
};

/* Which list a job is in; one at a time. */
enum wn_job_list {
    WN_LIST_PENDING,  /* not on record yet */
    WN_LIST_QUEUED,
    WN_LIST_ORPHANED, /* ran under the scheduler before this one: a leader may still have it */
    WN_LIST_RUNNING,
    WN_LIST_ENDED,
    WN_LIST_LEAVING,  /* ended, and the journal is told to forget it */
    WN_LISTS
};

/* What a job waits for beside its list: found without a look at all the others. */
enum wn_job_mark {
    WN_MARK_DIRTY,    /* has changed since it was recorded */
    WN_MARK_STALLED,  /* a follower's queue is full: to be tried again soon */
    WN_MARKS
};

struct wn_job {
    char id[WN_JOB_ID_CHARS + 1];
    struct wn_job_life life;
    Wn__Envelope *request;            /* the Submit, owned */
    Wn__Pruning pruning;              /* in force: the request's and the server's defaults; strings are borrowed */
    struct wn_payload *payload;          /* all images; NULL when there are none or the job has ended */
    struct wn_job_image images[WN_IMAGES_MAX];
    uint32_t images_n;
    int leader;                       /* of this attempt, or WN_NO_WORKER */
    bool answered;                    /* this attempt's leader has sent tokens: features are no longer needed */
    bool recording, urgent;           /* an operation of the journal is under way; dirty with more than tokens */
    bool acknowledged;                /* its end has arrived: it may go */
    uint32_t deaths;                  /* attempts that ended with their leader */
    bool solo;                        /* has its leader to itself in this attempt */
    bool settled;                     /* the end is on record, or cannot be put there now */
    struct wn_transcript answer;
    struct wn_chances chances;
    struct wn_watcher watchers[WN_SCHED_WATCHERS_MAX];
    unsigned watchers_n;
    Wn__FinishReason reason;
    struct wn_err error;              /* of a failed job; or why the last attempt was lost */
    bool retriable, news;             /* news: followers have not been sent its last tokens */
    Wn__Usage usage;                  /* what is known so far, by value, without pointers */
    Wn__LinkBytes link;
    int64_t submitted_us, queued_us, dispatched_us, first_token_us, ended_us, deadline_us;
    struct wn_ticket ticket;          /* of the client that brought it, until it ends */
    struct wn_job *prev, *next;       /* in its list */
    struct {
        struct wn_job *prev, *next;
        bool on;
    } mark[WN_MARKS];
    struct wn_job *by_id, *by_key, *by_news; /* next in the bucket; next that has news */
    enum wn_job_list list;
};

#endif
