/* daemon/sched.h - what scheduler.c and the sched_*.c share. Everything runs in the scheduler's one thread. */
#ifndef WN_DAEMON_SCHED_H
#define WN_DAEMON_SCHED_H

#include "daemon/access.h"
#include "daemon/config.h"
#include "daemon/journal.h"
#include "daemon/sched_job.h"
#include "daemon/turned_away.h"

#define WN_SCHED_WORKERS_MAX  320
#define WN_SCHED_GONE         1024
#define WN_SCHED_BUCKETS      4096

struct wn_sched_worker {
    bool up, confirmed, draining;     /* confirmed: it has answered our Welcome */
    bool hangs;                       /* a leader that beats, but does nothing */
    bool solo;                        /* its one job has killed leaders before: it gets no other beside it */
    struct wn_peer_id peer;
    Wn__Role role;
    char name[65], host[257], model_id[129], features_endpoint[513];
    char build[129];                  /* "": the scheduler's own */
    uint32_t pid, slots, tokens_max;
    uint32_t outstanding;             /* jobs of a leader, images of a vision worker */
    uint64_t dispatched;
    int64_t last_seen_us, cut_us;     /* cut_us: its connection is gone since then; 0: it is there */
    int64_t moved_us;                 /* when it last got on with any of its work */
    Wn__Envelope *heartbeat;          /* the last one, owned; or NULL */
};

struct wn_scheduler {
    struct wn_config cfg;
    struct wn_access *access;         /* NULL: no keys */
    struct wn_net *net;
    struct wn_endpoint *clients, *workers;
    struct wn_sched_worker worker[WN_SCHED_WORKERS_MAX];
    int workers_n;                    /* places in use, from the first on */
    struct wn_turned_away_list turned_away;
    uint64_t mismatched;              /* of workers' connections, so far */
    uint64_t cuts;                    /* workers' connections that were lost */
    int64_t call_until_us;            /* how long to look whose */
    int64_t adopt_until_us;           /* how long orphaned jobs wait for their leaders */
    int64_t absent_us[2];             /* since when there is no leader [0], no vision worker [1]; 0: there is one */
    struct wn_job *by_id[WN_SCHED_BUCKETS], *by_key[WN_SCHED_BUCKETS], *news;
    struct {
        struct wn_job *first, *last;
        size_t n;
    } list[WN_LISTS];
    struct wn_job *marked[WN_MARKS];
    struct wn_accounts accounts;
    struct wn_account *journal_account; /* of the jobs that were in the journal at start; valid until run */
    struct {
        char id[WN_JOB_ID_CHARS + 1];
        bool acknowledged;
    } gone[WN_SCHED_GONE];            /* the last results that were dropped, a ring: for a better answer */
    unsigned gone_at;
    size_t held_bytes, unsettled;     /* unsettled: ended jobs whose end was not told yet */
    int64_t started_us, ended_us, gap_us; /* when the last job ended, and how long that takes: a moving mean */
    bool draining, probing;
    struct wn_journal *journal;       /* NULL: jobs live in memory only */
    struct wn_err journal_error;      /* why it cannot be written; code WN_OK: it can */
    int64_t probe_us, record_us;      /* when to try it again, when to record tokens again */
    int64_t sweep_us, drain_until_us; /* when to look for accounts to forget; draining: the end of what runs */
    uint64_t accepted, answered, failed, cancelled, replayed, busy, refused_messages;
    uint64_t prompt_tokens, generated_tokens, image_tokens, image_tokens_before;
};

/* ---- scheduler.c ---- */
void wn_sched_drain(struct wn_scheduler *s, int64_t until_us); /* and end; said again it can only be sooner */
size_t wn_sched_jobs_left(const struct wn_scheduler *s);

/* ---- sched_table.c: jobs ---- */
struct wn_job *wn_sched_job_find(struct wn_scheduler *s, const char *id);
struct wn_job *wn_sched_job_find_key(struct wn_scheduler *s, const char *key, const char *owner);
void wn_payload_release(struct wn_payload *p); /* any thread; NULL is fine */
/* Takes over *request on success. id NULL: a new one. images: a copy is made; NULL: without. The job is in no list. */
WN_NODISCARD wn_status wn_sched_job_create(struct wn_scheduler *s, struct wn_job **out, Wn__Envelope *request,
                                           const char *id, const void *images, size_t images_bytes,
                                           struct wn_err *err);
void wn_sched_job_share(struct wn_scheduler *s, struct wn_job *job, const struct wn_job *twin); /* the twin's images */
void wn_sched_job_destroy(struct wn_scheduler *s, struct wn_job *job);
void wn_sched_list_put(struct wn_scheduler *s, struct wn_job *job, enum wn_job_list list, bool first);
void wn_sched_mark(struct wn_scheduler *s, struct wn_job *job, enum wn_job_mark mark, bool on);
void wn_sched_payload_drop(struct wn_scheduler *s, struct wn_job *job);
void wn_sched_expire(struct wn_scheduler *s, int64_t now_us); /* ended jobs that nobody will ask for */
void wn_sched_bury(struct wn_scheduler *s, struct wn_job *job); /* it is not on record, or not any more */
const char *wn_sched_gone(const struct wn_scheduler *s, const char *id); /* why there is no such job */

/* Packs and queues a message, with `bytes` of the payload from `offset` on (NULL: none). *sent (NULL is fine): bytes of
 * the envelope. */
WN_NODISCARD wn_status wn_sched_send(struct wn_endpoint *ep, const struct wn_peer_id *to, Wn__Envelope__BodyCase kind,
                                     const void *body, struct wn_payload *payload, size_t offset, size_t bytes,
                                     size_t *sent);

/* ---- sched_client.c, sched_status.c ---- */
void wn_sched_client_message(struct wn_scheduler *s, struct wn_msg *msg);
/* About the last message, or (tag) about a Submit. */
void wn_sched_refuse(struct wn_endpoint *ep, const struct wn_peer_id *to, const char *tag, const struct wn_err *err);
void wn_sched_busy(struct wn_scheduler *s, const struct wn_peer_id *to, const char *tag, const char *why);
void wn_sched_status_send(struct wn_scheduler *s, const struct wn_peer_id *to, const struct wn_access_entry *who);
int64_t wn_sched_deadline(const Wn__Submit *r, int64_t submitted_us);

/* ---- sched_follow.c ---- */
/* NULL: it has too many, and all of them are there. */
struct wn_watcher *wn_sched_watch(struct wn_scheduler *s, struct wn_job *job, const struct wn_peer_id *peer);
void wn_sched_flush(struct wn_scheduler *s, struct wn_job *job); /* brings its followers up to date */
void wn_sched_tell_news(struct wn_scheduler *s); /* the same for all jobs that have news, after a burst of messages */

/* ---- sched_journal.c: nothing happens without --journal ---- */
WN_NODISCARD wn_status wn_sched_journal_open(struct wn_scheduler *s, struct wn_err *err); /* and what is in it */
WN_NODISCARD wn_status wn_sched_journal_add(struct wn_scheduler *s, struct wn_job *job);
void wn_sched_record(struct wn_scheduler *s, struct wn_job *job);  /* its state has changed */
bool wn_sched_forget(struct wn_scheduler *s, struct wn_job *job); /* its record goes, then it; false: not yet */
void wn_sched_journal_outcomes(struct wn_scheduler *s);
void wn_sched_journal_tick(struct wn_scheduler *s, int64_t now_us);

/* ---- sched_worker.c ---- */
void wn_sched_worker_message(struct wn_scheduler *s, struct wn_msg *msg);
void wn_sched_slow_encodes(struct wn_scheduler *s, int64_t now_us);
void wn_sched_leases(struct wn_scheduler *s, int64_t now_us);
void wn_sched_roll_call(struct wn_scheduler *s, int64_t now_us); /* whose connection is gone? */
void wn_sched_strangers(struct wn_scheduler *s, int64_t now_us); /* who could not even connect? */
void wn_sched_worker_lost(struct wn_scheduler *s, int worker, const char *why);
bool wn_sched_dismiss(struct wn_scheduler *s); /* asks every worker to leave, once; false: not all have */
uint64_t wn_sched_stalled_ms(const struct wn_sched_worker *w, uint32_t *rank); /* 0: every rank gets on */
unsigned wn_sched_workers_up(const struct wn_scheduler *s, Wn__Role role);

/* ---- sched_route.c: changes of a job's state; each may flush and free nothing ---- */
void wn_sched_dispatch(struct wn_scheduler *s);             /* whatever can go out now */
void wn_sched_admit(struct wn_scheduler *s, struct wn_job *job); /* it is on record, where there is one */
void wn_sched_lose(struct wn_scheduler *s, struct wn_job *job, const char *why);
void wn_sched_fail(struct wn_scheduler *s, struct wn_job *job, wn_status code, bool retriable, const char *why);
void wn_sched_cancel(struct wn_scheduler *s, struct wn_job *job);
void wn_sched_tell_cancel(struct wn_scheduler *s, int worker, const struct wn_job *job); /* stop this attempt */
void wn_sched_complete(struct wn_scheduler *s, struct wn_job *job, const Wn__Done *done);
void wn_sched_deadlines(struct wn_scheduler *s, int64_t now_us);
/* Orphaned jobs that no leader has claimed go back to the queue, once all leaders were heard or had the time for it. */
void wn_sched_orphans(struct wn_scheduler *s, int64_t now_us);

#endif
