/* daemon/front.c - see front.h. */
#include "daemon/front_impl.h"

#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/sha256.h"

#define RING_SLOTS 4096
#define RETRY_MS   10 /* how soon a send that found a full queue is tried again */
#define RECV_BURST 64 /* messages of one socket before the others get a turn */

static void msg_drop(void *item)
{
    wn_front_msg_free(item);
}

/* ---- receiving ---- */

/* The worker gets its credit back, and has the scheduler order them again. */
static void refuse_features(struct wn_front *f, struct wn_front_msg *m)
{
    Wn__FeaturesAck ack = WN__FEATURES_ACK__INIT;

    if (m->env->body_case == WN__ENVELOPE__BODY_FEATURES) {
        ack.job = m->env->features->job;
        ack.image = m->env->features->image;
        ack.code = WN_EBUSY;
        ack.text = "the leader has too many features waiting";
        wn_front_put(f, wn_front_msg_pack(&m->party, WN__ENVELOPE__BODY_FEATURES_ACK, &ack, NULL, 0, NULL, NULL));
    }
    wn_front_msg_free(m);
}

static void answer_busy(struct wn_front *f, struct wn_front_msg *m)
{
    const Wn__Envelope *e = m->env;
    Wn__JobRef *job = NULL;
    struct wn_err err = {0};

    if (e->body_case == WN__ENVELOPE__BODY_FEATURES) {
        refuse_features(f, m);
        return;
    }
    if (e->body_case == WN__ENVELOPE__BODY_ENCODE) job = e->encode->job;
    if (e->body_case == WN__ENVELOPE__BODY_GENERATE) job = e->generate->job;
    wn_fail(&err, WN_EBUSY, "%s has too many messages waiting", f->opts.name);
    if (job) {
        Wn__Error body = WN__ERROR__INIT;
        wn_ledger_drop(f->ledger, job);
        body.job = job;
        body.code = (uint32_t)err.code;
        body.text = err.text;
        body.retriable = true;
        wn_front_put(f, wn_front_msg_pack(&m->party, WN__ENVELOPE__BODY_ERROR, &body, NULL, 0, NULL, NULL));
    }
    wn_front_msg_free(m);
}

/* What workers bring and the main thread has not claimed yet is bounded, whatever credit they think they have. */
static bool hold_payload(struct wn_front *f, struct wn_front_msg *m)
{
    if (m->party.side != WN_SIDE_WORKER || !m->payload) return true;
    if (atomic_load(&f->unclaimed_bytes) + m->payload_bytes > f->opts.unclaimed_max) return false;
    atomic_fetch_add(&f->unclaimed_bytes, m->payload_bytes);
    m->unclaimed_bytes = &f->unclaimed_bytes;
    return true;
}

/* Asked here, so that no step waits for it. The codec has checked the hash's length. */
static bool is_damaged(const struct wn_front_msg *m)
{
    uint8_t hash[WN_SHA256_BYTES];

    if (m->env->body_case != WN__ENVELOPE__BODY_FEATURES) return false;
    wn_sha256(hash, m->payload, m->payload_bytes);
    return memcmp(hash, m->env->features->sha256.data, sizeof(hash)) != 0;
}

static void receive(struct wn_front *f, struct wn_endpoint *ep, const struct wn_party *from)
{
    for (int i = 0; i < RECV_BURST; i++) {
        struct wn_front_msg *m = wn_front_msg_new();
        struct wn_err err = {0};
        wn_status rc;

        if (!m) return;
        rc = wn_endpoint_recv(ep, &m->msg);
        if (rc == WN_EBUSY) {
            wn_front_msg_free(m);
            return;
        }
        if (rc == WN_OK)
            rc = wn_codec_unpack(&m->env, wn_msg_data(&m->msg, 0), wn_msg_size(&m->msg, 0), &err);
        if (rc == WN_OK && m->msg.frames_n > 1 && !wn_codec_has_payload(m->env->body_case))
            rc = wn_fail(&err, WN_EPROTO, "%s has no payload",
                         wn_codec_body_name(m->env->body_case));
        if (rc == WN_EUNSUPP && from->side == WN_SIDE_SCHEDULER) {
            wn_front_hear_strange(f, err.text);
            wn_front_msg_free(m);
            continue;
        }
        if (rc != WN_OK) {
            wn_warn("front", "message dropped: %s", err.text[0] ? err.text : wn_status_name(rc));
            wn_front_msg_free(m);
            continue;
        }
        m->party = *from;
        if (from->side == WN_SIDE_WORKER) m->party.peer = m->msg.peer;
        if (m->msg.frames_n > 1) {
            m->payload = wn_msg_data(&m->msg, 1);
            m->payload_bytes = wn_msg_size(&m->msg, 1);
            wn_endpoint_received(
                ep, from->side == WN_SIDE_WORKER ? WN_TRAFFIC_EMBEDDING : WN_TRAFFIC_IMAGE,
                wn_msg_bytes(&m->msg));
        } else {
            wn_endpoint_received(ep, WN_TRAFFIC_CONTROL, wn_msg_bytes(&m->msg));
        }
        if (wn_front_hear(f, m)) {
            wn_front_msg_free(m);
            continue;
        }
        if (!hold_payload(f, m)) {
            refuse_features(f, m);
            continue;
        }
        m->damaged = is_damaged(m);
        if (!wn_ring_put(f->inbound, m))
            answer_busy(f, m);
    }
}

/* ---- the thread ---- */

/* Puts an answer to the scheduler into the ledger. true: that is enough, it is said when the scheduler is back. */
static bool note_answer(struct wn_front *f, struct wn_front_msg *m)
{
    Wn__JobRef job = WN__JOB_REF__INIT;

    if (!m->about.id[0]) return false;
    job.job_id = m->about.id;
    job.attempt = m->about.attempt;
    return wn_ledger_said(f->ledger, &job, m->about.note, wn_msg_data(&m->msg, 0), wn_msg_size(&m->msg, 0),
                          wn_now_us()) &&
           !f->welcome;
}

static void take_outbound(struct wn_front *f)
{
    struct wn_front_msg *m;
    wn_ring_clear_wake(f->outbound);
    while ((m = wn_ring_take(f->outbound)) != NULL) {
        if (m->party.side == WN_SIDE_SELF || note_answer(f, m)) /* of our own only the wake-up counts */
            wn_front_msg_free(m);
        else
            wn_front_put(f, m);
    }
}

/* true: all is out. */
static bool turn(struct wn_front *f, bool retry)
{
    struct wn_poll_item items[3 + WN_FRONT_LEADERS_MAX] = {{.ep = f->scheduler}, {.fd = wn_ring_fd(f->outbound)}};
    struct wn_front_leader *who[3 + WN_FRONT_LEADERS_MAX] = {0};
    size_t n = 2, features_at = 0;
    int64_t deadline_us = f->next_beat_us;
    struct wn_party from = {.side = WN_SIDE_SCHEDULER};

    if (f->features) {
        features_at = n;
        items[n++].ep = f->features;
    }
    for (int i = 0; i < WN_FRONT_LEADERS_MAX; i++) {
        if (!f->leaders[i].ep) continue;
        who[n] = &f->leaders[i];
        items[n++].ep = f->leaders[i].ep;
    }
    if (retry && deadline_us > wn_now_us() + RETRY_MS * 1000) deadline_us = wn_now_us() + RETRY_MS * 1000;
    if (wn_endpoint_poll(items, n, deadline_us) == WN_OK) {
        if (items[0].readable) receive(f, f->scheduler, &from);
        if (features_at && items[features_at].readable) {
            from.side = WN_SIDE_WORKER;
            receive(f, f->features, &from);
        }
        for (size_t i = 2; i < n; i++) {
            if (!who[i] || !items[i].readable) continue;
            from.side = WN_SIDE_LEADER;
            snprintf(from.address, sizeof(from.address), "%s", who[i]->address);
            receive(f, who[i]->ep, &from);
        }
    }
    wn_front_watch_leaders(f);
    take_outbound(f);
    wn_front_beat(f);
    return wn_front_send_queued(f);
}

static void *front_main(void *arg)
{
    struct wn_front *f = arg;
    int64_t flush_until;
    bool all = true;

    while (!atomic_load(&f->stop)) all = turn(f, !all);
    flush_until = wn_deadline_in_us((int64_t)atomic_load(&f->flush_ms) * 1000);
    do {
        take_outbound(f);
        all = wn_front_send_queued(f);
        if (!all) usleep(2000);
    } while (!all && !wn_deadline_passed(flush_until));
    wn_front_close_sockets(f);
    return NULL;
}

/* Sockets are opened by the thread that uses them; the starter waits for how that went. */
struct start {
    struct wn_front *f;
    pthread_mutex_t lock;
    pthread_cond_t cond;
    bool done;
};

static void *front_start_main(void *arg)
{
    struct start *s = arg;
    struct wn_front *f = s->f;
    wn_status rc;

    pthread_setname_np(pthread_self(), "front"); /* `top -H` tells it from the engine */
    rc = f->started_rc = wn_front_open_sockets(f, &f->started_err);
    if (rc != WN_OK) wn_front_close_sockets(f);
    pthread_mutex_lock(&s->lock);
    s->done = true;
    pthread_cond_signal(&s->cond);
    pthread_mutex_unlock(&s->lock); /* *s is gone from here on */
    return rc == WN_OK ? front_main(f) : NULL;
}

wn_status wn_front_start(struct wn_front **out, const struct wn_front_opts *opts, struct wn_err *err)
{
    struct wn_front *f = calloc(1, sizeof(*f));
    struct start s = {.f = f, .lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};
    wn_status rc;

    if (!f) return wn_fail(err, WN_ENOMEM, "front");
    f->opts = *opts;
    if (gethostname(f->host, sizeof(f->host) - 1) != 0) snprintf(f->host, sizeof(f->host), "?");
    if ((rc = wn_net_create(&f->net, err)) != WN_OK) goto out;
    if ((rc = wn_ledger_create(&f->ledger, err)) != WN_OK) goto out;
    if ((rc = wn_front_beat_init(f, err)) != WN_OK) goto out;
    if ((rc = wn_ring_create(&f->inbound, RING_SLOTS, err)) != WN_OK) goto out;
    if ((rc = wn_ring_create(&f->outbound, RING_SLOTS, err)) != WN_OK) goto out;
    pthread_mutex_lock(&s.lock);
    if (pthread_create(&f->thread, NULL, front_start_main, &s) != 0) {
        pthread_mutex_unlock(&s.lock);
        rc = wn_fail(err, WN_EIO, "front: no thread could be started");
        goto out;
    }
    while (!s.done) pthread_cond_wait(&s.cond, &s.lock);
    pthread_mutex_unlock(&s.lock);
    f->started = true;
    rc = f->started_rc;
    if (rc != WN_OK && err) *err = f->started_err;
out:
    if (rc != WN_OK) {
        wn_front_stop(f, 0);
        return rc;
    }
    *out = f;
    return WN_OK;
}

void wn_front_stop(struct wn_front *f, int flush_ms)
{
    if (!f) return;
    if (f->started) {
        struct wn_front_msg *wake = wn_front_msg_new();
        atomic_store(&f->flush_ms, flush_ms);
        atomic_store(&f->stop, true);
        if (wake) {
            wake->party.side = WN_SIDE_SELF;
            if (!wn_ring_put(f->outbound, wake))
                wn_front_msg_free(wake); /* full: the thread is awake */
        }
        pthread_join(f->thread, NULL);
    }
    wn_ring_destroy(f->inbound, msg_drop);
    wn_ring_destroy(f->outbound, msg_drop);
    wn_net_destroy(f->net);
    wn_ledger_destroy(f->ledger);
    wn_roll_fini(&f->roll);
    free(f);
}

struct wn_front_load *wn_front_load(struct wn_front *f)
{
    return &f->load;
}

const char *wn_front_features_address(const struct wn_front *f)
{
    return f->features_address;
}

struct wn_front_msg *wn_front_take(struct wn_front *f)
{
    struct wn_front_msg *m = wn_ring_take(f->inbound);
    if (!m) { /* clear, then look again: a put in between must not be missed */
        wn_ring_clear_wake(f->inbound);
        m = wn_ring_take(f->inbound);
    }
    return m;
}

bool wn_front_wait(struct wn_front *f, int64_t deadline_us)
{
    struct pollfd p = {.fd = wn_ring_fd(f->inbound), .events = POLLIN};
    int64_t left = deadline_us == WN_NEVER ? -1 : (deadline_us - wn_now_us() + 999) / 1000;
    if (deadline_us != WN_NEVER && left < 0) left = 0;
    if (left > 60000) left = 60000;
    return poll(&p, 1, (int)left) > 0;
}

/* What the ledger wants to know of an answer; the front's thread sees only its bytes. */
static void note_about(struct wn_front_msg *m, Wn__Envelope__BodyCase kind, const void *body)
{
    const Wn__JobRef *job = NULL;

    if (kind == WN__ENVELOPE__BODY_TOKENS) {
        const Wn__Tokens *t = body;
        job = t->job;
        m->about.note.tokens = t->first + (uint32_t)t->n_ids;
    } else if (kind == WN__ENVELOPE__BODY_DONE || kind == WN__ENVELOPE__BODY_ERROR) {
        job = kind == WN__ENVELOPE__BODY_DONE ? ((const Wn__Done *)body)->job : ((const Wn__Error *)body)->job;
        m->about.note.end = true;
    }
    if (!job) return;
    snprintf(m->about.id, sizeof(m->about.id), "%s", job->job_id);
    m->about.attempt = job->attempt;
}

void wn_front_send(struct wn_front *f, const struct wn_party *to, Wn__Envelope__BodyCase kind, const void *body,
                   wn_traffic traffic, void *payload, size_t payload_bytes, void (*free_fn)(void *, void *), void *hint)
{
    struct wn_front_msg *m = wn_front_msg_pack(to, kind, body, payload, payload_bytes, free_fn, hint);

    if (!m) return;
    m->traffic = traffic;
    if (to->side == WN_SIDE_SCHEDULER) note_about(m, kind, body);
    while (!wn_ring_push(f->outbound, m)) { /* the front never waits for this thread, so room comes */
        wn_ring_wake(f->outbound);
        sched_yield();
    }
    if (!f->held) wn_ring_wake(f->outbound);
}

void wn_front_leave(struct wn_front *f, const struct wn_err *why)
{
    const struct wn_party to = {.side = WN_SIDE_SCHEDULER};
    struct wn_err err = *why;

    if (!f || atomic_exchange(&f->leaving, true)) return; /* its own thread has said it */
    if (err.code < WN_EPEER) err.code = WN_EPEER;
    wn_front_send_error(f, &to, NULL, &err, true);
}

void wn_front_hold(struct wn_front *f)
{
    f->held = true;
}

void wn_front_release(struct wn_front *f)
{
    f->held = false;
    wn_ring_wake(f->outbound);
}

void wn_front_send_error(struct wn_front *f, const struct wn_party *to, Wn__JobRef *job,
                         const struct wn_err *err, bool retriable)
{
    Wn__Error body = WN__ERROR__INIT;
    body.job = job;
    body.code = (uint32_t)err->code;
    body.text = (char *)(uintptr_t)err->text;
    body.retriable = retriable;
    wn_front_send(f, to, WN__ENVELOPE__BODY_ERROR, &body, WN_TRAFFIC_CONTROL, NULL, 0, NULL, NULL);
}
