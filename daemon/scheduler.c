/* daemon/scheduler.c - the scheduler's sockets, loop and end. */
#include "daemon/scheduler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "daemon/pruning_ask.h"
#include "daemon/sched.h"

#define BURST    64              /* messages of one socket before the other has its turn */
#define TICK_US  ((int64_t)50000)
#define SWEEP_US ((int64_t)1000000)
#define STALL_US ((int64_t)10000) /* while a client's queue is full */
#define LEAVE_US ((int64_t)1000000) /* for all to hear that this is the end */
#define WORDS_US ((int64_t)100000) /* for the last words to leave */
#define GAP_US   ((int64_t)500000) /* between the ends of two jobs, as long as none has ended */

static wn_status open_endpoints(struct wn_scheduler *s, const char *workers, struct wn_err *err)
{
    const size_t images_max = WN_IMAGES_MAX * s->cfg.image_bytes_max, request_max = s->cfg.max_request_bytes;
    char address[WN_TEXT_LEN + 32];
    struct wn_endpoint_opts clients_opts = {
        .type = WN_ENDPOINT_ROUTER,
        .address = address,
        .bind = true,
        .frame_max = {WN_CODEC_BYTES_MAX, images_max < request_max ? images_max : request_max},
        .recv_queue_max = 4, /* a message may be large, and is taken out at once */
        .linger_ms = 1000,
        .insecure = s->cfg.insecure,
    };
    struct wn_endpoint_opts workers_opts = {
        .type = WN_ENDPOINT_ROUTER,
        .address = workers,
        .bind = true,
        .frame_max = {WN_CODEC_BYTES_MAX},
        .linger_ms = 1000,
        .handover = true,
        .insecure = s->cfg.insecure,
    };
    wn_status rc;

    if (s->access) {
        const char *secret = s->access->self->secret_key;
        clients_opts.curve = (struct wn_curve_opts){.server = true, .secret_key = secret};
        workers_opts.curve = (struct wn_curve_opts){.server = true, .secret_key = secret};
        workers_opts.curve.allowed = wn_access_keys(s->access, 1u << WN_KEY_WORKER, &workers_opts.curve.allowed_n);
    }
    snprintf(address, sizeof(address), "tcp://%s:%u", s->cfg.host, s->cfg.port);
    if ((rc = wn_endpoint_open(&s->workers, s->net, &workers_opts, err)) != WN_OK) return rc;
    if (s->access) clients_opts.curve.allowed = wn_access_keys(s->access, ~0u, &clients_opts.curve.allowed_n);
    return wn_endpoint_open(&s->clients, s->net, &clients_opts, err);
}

wn_status wn_scheduler_open(struct wn_scheduler **out, const struct wn_config *cfg, const char *workers,
                            struct wn_err *err)
{
    struct wn_scheduler *s = calloc(1, sizeof(*s));
    const struct wn_prune_method *method;
    struct wn_prune_ask ask;
    Wn__Pruning pruning;
    wn_status rc;

    if (!s) return wn_fail(err, WN_ENOMEM, "scheduler");
    s->cfg = *cfg;
    s->gap_us = GAP_US;
    s->accounts.jobs_max = (uint32_t)ceil((double)s->cfg.max_queue_share * s->cfg.max_queue);
    if (s->cfg.max_jobs_per_client && s->cfg.max_jobs_per_client < s->accounts.jobs_max)
        s->accounts.jobs_max = s->cfg.max_jobs_per_client;
    s->accounts.jobs_per_s = (double)s->cfg.max_job_rate;
    s->started_us = s->absent_us[0] = s->absent_us[1] = wn_now_us();
    wn_pruning_complete(&pruning, NULL, &s->cfg);
    if ((rc = wn_pruning_ask(&pruning, &method, &ask, err)) != WN_OK) goto out;
    if (s->cfg.keys[0] && (rc = wn_access_open(&s->access, s->cfg.keys, err)) != WN_OK) goto out;
    if ((rc = wn_net_create(&s->net, err)) != WN_OK) goto out;
    if ((rc = wn_sched_journal_open(s, err)) != WN_OK) goto out; /* before anybody can ask for what is in it */
    if ((rc = open_endpoints(s, workers, err)) != WN_OK) goto out;
    if (s->access) { /* ZeroMQ has its copy */
        wn_key_close(s->access->self);
        s->access->self = NULL;
    }
    *out = s;
    s = NULL;
out:
    wn_scheduler_close(s);
    return rc;
}

void wn_scheduler_close(struct wn_scheduler *s)
{
    if (!s) return;
    wn_journal_close(s->journal); /* first: it writes what is on its way */
    for (int l = 0; l < WN_LISTS; l++)
        while (s->list[l].first) wn_sched_job_destroy(s, s->list[l].first);
    wn_accounts_fini(&s->accounts);
    for (int i = 0; i < s->workers_n; i++) wn_codec_free(s->worker[i].heartbeat);
    wn_endpoint_close(s->clients);
    wn_endpoint_close(s->workers);
    wn_net_destroy(s->net);
    wn_access_close(s->access);
    free(s);
}

const char *wn_scheduler_client_address(const struct wn_scheduler *s)
{
    return wn_endpoint_address(s->clients);
}

const char *wn_scheduler_worker_address(const struct wn_scheduler *s)
{
    return wn_endpoint_address(s->workers);
}

/* Takes up to BURST messages. */
static void receive(struct wn_scheduler *s, struct wn_endpoint *ep,
                    void (*handle)(struct wn_scheduler *s, struct wn_msg *msg))
{
    struct wn_msg msg;

    wn_msg_init(&msg);
    for (int i = 0; i < BURST; i++) {
        wn_status rc = wn_endpoint_recv(ep, &msg);
        struct wn_err err = {0};
        if (rc == WN_EBUSY) break;
        if (rc == WN_OK) {
            handle(s, &msg);
        } else if (rc == WN_EPROTO) {
            wn_fail(&err, WN_ELIMIT, "a frame is larger than allowed, or there are too many");
            wn_sched_refuse(ep, &msg.peer, NULL, &err);
        } else {
            wn_error("scheduler", "receive: %s", wn_status_name(rc));
            break;
        }
    }
    wn_msg_clear(&msg);
}

/* A client's queue is full. */
static bool stalled(const struct wn_scheduler *s)
{
    return s->marked[WN_MARK_STALLED] != NULL;
}

/* Goes on where a client's queue was full. */
static void flush_stalled(struct wn_scheduler *s)
{
    for (struct wn_job *job = s->marked[WN_MARK_STALLED], *next; job; job = next) {
        next = job->mark[WN_MARK_STALLED].next;
        wn_sched_flush(s, job);
    }
}

static void tick(struct wn_scheduler *s)
{
    const int64_t now = wn_now_us();

    wn_sched_leases(s, now);
    wn_sched_roll_call(s, now);
    wn_sched_strangers(s, now);
    wn_sched_orphans(s, now);
    wn_sched_slow_encodes(s, now);
    wn_sched_deadlines(s, now);
    wn_sched_journal_tick(s, now);
    flush_stalled(s);
    wn_sched_expire(s, now);
    if (now < s->sweep_us) return;
    s->sweep_us = now + SWEEP_US;
    wn_accounts_sweep(&s->accounts, now);
}

size_t wn_sched_jobs_left(const struct wn_scheduler *s)
{
    return s->list[WN_LIST_PENDING].n + s->list[WN_LIST_QUEUED].n + s->list[WN_LIST_ORPHANED].n +
           s->list[WN_LIST_RUNNING].n + s->unsettled;
}

void wn_sched_drain(struct wn_scheduler *s, int64_t until_us)
{
    if (!s->draining) wn_info("scheduler", "shutting down: %zu jobs are left", wn_sched_jobs_left(s));
    if (!s->draining || until_us < s->drain_until_us) s->drain_until_us = until_us;
    s->draining = true; /* workers go on: what is queued may still be finished */
}

static bool drained(const struct wn_scheduler *s)
{
    if (!s->draining) return false;
    return (wn_sched_jobs_left(s) == 0 && !stalled(s)) || wn_deadline_passed(s->drain_until_us);
}

/* What could not be finished in time. With a journal it is left to the next scheduler. */
static void end_rest(struct wn_scheduler *s)
{
    for (struct wn_job *job = s->marked[WN_MARK_DIRTY], *next; job && s->journal; job = next) {
        next = job->mark[WN_MARK_DIRTY].next;
        job->recording = false; /* nobody waits for that outcome any more */
        wn_sched_record(s, job);
    }
    for (struct wn_job *job = s->list[WN_LIST_PENDING].first; job; job = job->next) /* it may be there next time */
        for (unsigned i = 0; i < job->watchers_n; i++)
            wn_sched_busy(s, &job->watchers[i].peer, job->watchers[i].tag, "the server is shutting down");
    for (int l = WN_LIST_QUEUED; l <= WN_LIST_RUNNING && !s->journal; l++)
        while (s->list[l].first) wn_sched_fail(s, s->list[l].first, WN_ECANCEL, true, "the server is shutting down");
}

/* The last words: a full queue is tried again, and workers hang up when they have heard. Whoever has a question
 * meanwhile is answered; bytes that nobody read would make the kernel drop what is still to go out. Sockets stay for a
 * moment: what is handed to ZeroMQ just before they close may be lost when heartbeats cross on the connection. */
static void say_goodbye(struct wn_scheduler *s)
{
    const int64_t least_us = wn_deadline_in_us(WORDS_US), until_us = wn_deadline_in_us(LEAVE_US);

    while (!wn_deadline_passed(until_us)) {
        const bool heard = wn_sched_dismiss(s) && !stalled(s);
        if (heard && wn_deadline_passed(least_us)) break;
        usleep((useconds_t)STALL_US);
        receive(s, s->clients, wn_sched_client_message);
        flush_stalled(s);
    }
}

wn_status wn_scheduler_run(struct wn_scheduler *s, int stop_fd, struct wn_err *err)
{
    int64_t next_tick_us = 0;
    bool stopped = false;

    while (!drained(s)) {
        struct wn_poll_item items[4] = {{.ep = s->workers}, {.ep = s->clients}};
        struct wn_poll_item *stop = NULL, *journal = NULL;
        size_t n = 2;
        wn_status rc;

        if (s->journal) (journal = &items[n++])->fd = wn_journal_fd(s->journal);
        if (!stopped) (stop = &items[n++])->fd = stop_fd;
        rc = wn_endpoint_poll(items, n, next_tick_us);
        if (rc != WN_OK && rc != WN_ETIME) return wn_fail(err, rc, "scheduler: waiting failed");
        if (items[0].readable) receive(s, s->workers, wn_sched_worker_message);
        wn_sched_tell_news(s);
        if (items[1].readable) receive(s, s->clients, wn_sched_client_message);
        if (journal && journal->readable) wn_sched_journal_outcomes(s);
        if (stop && stop->readable) {
            stopped = true;
            wn_sched_drain(s, wn_deadline_in_us((int64_t)s->cfg.shutdown_timeout_s * 1000000));
        }
        if (wn_now_us() >= next_tick_us) {
            tick(s); /* after what had come was read: a pause of this process is not a worker's fault */
            next_tick_us = wn_deadline_in_us(stalled(s) ? STALL_US : TICK_US);
        }
        wn_sched_dispatch(s);
    }
    end_rest(s);
    say_goodbye(s);
    return WN_OK;
}
