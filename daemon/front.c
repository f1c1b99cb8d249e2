/* daemon/front.c - see front.h. */
#include "daemon/front.h"

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/ring.h"
#include "daemon/pulse.h"

#define RING_SLOTS       4096
#define LEADERS_MAX      16 /* connections of a vision worker; the longest unused one makes room */
#define DEFAULT_BEAT_MS  500
#define DEFAULT_LEASE_MS 3000
#define RECONNECT_MAX_MS 250 /* a scheduler that was started again is found soon */
#define RETRY_MS         10 /* how soon a send that found a full queue is tried again */
#define ROLL_FIRST_LEASES 3 /* until every rank must have been heard first */
#define RECV_BURST       64 /* messages of one socket before the others get a turn */

struct leader {
    struct wn_endpoint *ep; /* NULL: free place */
    char address[WN_ADDRESS_MAX];
    int64_t used_us;
    uint64_t losses; /* of its connection, that were told */
};

struct wn_front {
    struct wn_front_opts opts;
    char host[64];
    pthread_t thread;
    bool started;
    atomic_bool stop;
    atomic_int flush_ms;
    struct wn_net *net;
    struct wn_endpoint *scheduler, *features;
    struct leader leaders[LEADERS_MAX];
    char features_address[WN_ADDRESS_MAX];
    struct wn_ring *inbound, *outbound;
    struct wn_front_msg *pending, **pending_end; /* outbound that found a full queue, in order */
    struct wn_front_load load;
    int64_t beat_us, next_beat_us, lease_us, heard_us;
    bool welcome;          /* the scheduler knows this worker */
    int64_t away_us;       /* when it was missed; 0: it was not, or its jobs were given up */
    struct wn_ledger *ledger;
    struct wn_roll roll;   /* leader: when its ranks were heard */
    int64_t ending_us;     /* of wn_pulse_end_group */
    wn_status started_rc;
    struct wn_err started_err;
};

/* ---- messages ---- */

static struct wn_front_msg *msg_new(void)
{
    struct wn_front_msg *m = calloc(1, sizeof(*m));
    if (m) wn_msg_init(&m->msg);
    return m;
}

void wn_front_msg_free(struct wn_front_msg *m)
{
    if (!m) return;
    wn_codec_free(m->env);
    wn_msg_clear(&m->msg);
    free(m);
}

static void msg_drop(void *item)
{
    wn_front_msg_free(item);
}

static void free_packed(void *data, void *hint)
{
    (void)hint;
    free(data);
}

/* Packs a body into a fresh message; NULL (with a record in the log) when that fails. Takes the payload in any case. */
static struct wn_front_msg *msg_pack(const struct wn_party *to, Wn__Envelope__BodyCase kind, const void *body,
                                     void *payload, size_t payload_bytes, void (*free_fn)(void *, void *), void *hint)
{
    struct wn_front_msg *m = msg_new();
    struct wn_err err = {0};
    uint8_t *bytes = NULL;
    size_t n = 0;

    if (!m || wn_codec_pack_body(&bytes, &n, kind, body, &err) != WN_OK ||
        wn_msg_add_ref(&m->msg, bytes, n, free_packed, NULL) != WN_OK)
        goto fail;
    bytes = NULL;
    if (payload) {
        if (wn_msg_add_ref(&m->msg, payload, payload_bytes, free_fn, hint) != WN_OK) goto fail;
    }
    m->party = *to;
    return m;
fail:
    wn_error("front", "%s not sent: %s", wn_codec_body_name(kind), err.text);
    free(bytes);
    wn_front_msg_free(m);
    if (payload) free_fn(payload, hint);
    return NULL;
}

/* ---- sending, in the front's thread ---- */

static struct wn_endpoint *leader_connect(struct wn_front *f, const char *address)
{
    struct leader *place = &f->leaders[0];
    struct wn_err err = {0};
    const struct wn_endpoint_opts eo = {.type = WN_ENDPOINT_DEALER,
                                        .address = address,
                                        .frame_max = {WN_CODEC_BYTES_MAX},
                                        .linger_ms = 200};

    for (int i = 0; i < LEADERS_MAX; i++) {
        struct leader *l = &f->leaders[i];
        if (l->ep && strcmp(l->address, address) == 0) {
            l->used_us = wn_now_us();
            return l->ep;
        }
        if (!l->ep || (place->ep && l->used_us < place->used_us)) place = l;
    }
    wn_endpoint_close(place->ep);
    place->ep = NULL;
    if (wn_endpoint_open(&place->ep, f->net, &eo, &err) != WN_OK) {
        wn_warn("front", "leader %s: %s", address, err.text);
        return NULL;
    }
    snprintf(place->address, sizeof(place->address), "%s", address);
    place->used_us = wn_now_us();
    place->losses = 0;
    return place->ep;
}

/* Tries to send; WN_EBUSY: m is still the caller's, and worth another try. Anything else: m is gone. */
static wn_status send_one(struct wn_front *f, struct wn_front_msg *m)
{
    struct wn_endpoint *ep = m->party.side == WN_SIDE_SCHEDULER ? f->scheduler
                             : m->party.side == WN_SIDE_WORKER
                                 ? f->features
                                 : leader_connect(f, m->party.address);
    wn_status rc;

    if (!ep) {
        wn_front_msg_free(m);
        return WN_EPEER;
    }
    if (m->party.side == WN_SIDE_WORKER) m->msg.peer = m->party.peer;
    rc = wn_endpoint_send(ep, &m->msg, m->traffic);
    if (rc == WN_EBUSY) return rc;
    if (rc != WN_OK) wn_debug("front", "a message was lost: its peer is gone");
    wn_front_msg_free(m);
    return rc;
}

static bool same_party(const struct wn_party *a, const struct wn_party *b)
{
    return a->side == b->side && wn_peer_equal(&a->peer, &b->peer) && strcmp(a->address, b->address) == 0;
}

/* Sends the queue. A message waits behind an earlier one to the same party, not behind others. */
static void send_pending(struct wn_front *f)
{
    struct wn_front_msg *m = f->pending, *kept = NULL, **kept_end = &kept;

    while (m) {
        struct wn_front_msg *next = m->next, *k = kept;
        m->next = NULL;
        while (k && !same_party(&k->party, &m->party)) k = k->next;
        if (k || send_one(f, m) == WN_EBUSY) {
            *kept_end = m;
            kept_end = &m->next;
        }
        m = next;
    }
    f->pending = kept;
    f->pending_end = kept ? kept_end : &f->pending;
}

static void queue(struct wn_front *f, struct wn_front_msg *m)
{
    if (!m) return;
    m->next = NULL;
    *f->pending_end = m;
    f->pending_end = &m->next;
}

/* ---- hello and heartbeats ---- */

static void say_again(void *arg, const void *frame, size_t bytes)
{
    struct wn_front *f = arg;
    struct wn_front_msg *m = msg_new();

    if (!m) return;
    m->party.side = WN_SIDE_SCHEDULER;
    m->traffic = WN_TRAFFIC_TOKENS;
    if (wn_msg_add_copy(&m->msg, frame, bytes) == WN_OK)
        queue(f, m);
    else
        wn_front_msg_free(m); /* the gap is seen, and the job replayed */
}

/* The scheduler does not know this worker any more, or is not there. */
static void miss_scheduler(struct wn_front *f, const char *why)
{
    wn_warn("front", "%s", why);
    f->welcome = false;
    f->next_beat_us = 0;
    f->away_us = wn_now_us();
}

/* The scheduler was away for too long: what it ordered is given up. */
static void give_up(struct wn_front *f)
{
    struct wn_front_msg *m = msg_new();

    f->away_us = 0;
    wn_ledger_clear(f->ledger);
    if (!m) return;
    m->party.side = WN_SIDE_SELF;
    m->lease_lost = true;
    if (!wn_ring_put(f->inbound, m)) wn_front_msg_free(m);
}

static void send_hello(struct wn_front *f)
{
    const struct wn_party to = {.side = WN_SIDE_SCHEDULER};
    Wn__Hello h = WN__HELLO__INIT;
    struct wn_err err = {0};

    if (wn_ledger_hello(f->ledger, &h, &err) != WN_OK) wn_warn("front", "hello without jobs: %s", err.text);
    h.role = f->opts.role;
    h.name = (char *)(uintptr_t)f->opts.name;
    h.host = f->host;
    h.pid = (uint32_t)getpid();
    h.build = (char *)(uintptr_t)f->opts.build;
    h.model_id = (char *)(uintptr_t)f->opts.model_id;
    h.features_endpoint = f->features_address;
    h.slots = f->opts.slots;
    h.tokens_max = f->opts.tokens_max;
    h.ranks = f->opts.ranks;
    h.n_ranks = f->opts.ranks_n;
    queue(f, msg_pack(&to, WN__ENVELOPE__BODY_HELLO, &h, NULL, 0, NULL, NULL));
}

static void send_heartbeat(struct wn_front *f)
{
    const struct wn_party to = {.side = WN_SIDE_SCHEDULER};
    Wn__Heartbeat h = WN__HEARTBEAT__INIT;
    Wn__LinkBytes sent = WN__LINK_BYTES__INIT;
    struct wn_traffic_table table = {0};
    Wn__StageLoad stages[WN_STAGES_MAX], *list[WN_STAGES_MAX];

    for (uint32_t i = 0; i < f->opts.stages_n; i++) {
        list[i] = &stages[i];
        stages[i] = (Wn__StageLoad)WN__STAGE_LOAD__INIT;
        stages[i].busy_us = atomic_load(&f->load.stages[i].busy_us);
        stages[i].wait_us = atomic_load(&f->load.stages[i].wait_us);
        stages[i].link_us = atomic_load(&f->load.stages[i].link_us);
    }
    h.stages = list;
    h.n_stages = f->opts.stages_n;
    for (int k = 0; k < WN_TRAFFIC_N; k++)
        table.of[k].sent_bytes = atomic_load(&f->load.sent_bytes[k]);
    wn_link_bytes_from_traffic(&sent, &table);
    h.running = atomic_load(&f->load.running);
    h.waiting = atomic_load(&f->load.waiting);
    h.pages_used = atomic_load(&f->load.pages_used);
    h.pages = atomic_load(&f->load.pages);
    h.steps = atomic_load(&f->load.steps);
    h.images = atomic_load(&f->load.images);
    h.cache_hits = atomic_load(&f->load.cache_hits);
    h.preemptions = atomic_load(&f->load.preemptions);
    h.features = atomic_load(&f->load.features);
    h.feature_slots = atomic_load(&f->load.feature_slots);
    h.sent = &sent;
    h.ranks = f->opts.ranks;
    h.n_ranks = f->opts.ranks_n;
    queue(f, msg_pack(&to, WN__ENVELOPE__BODY_HEARTBEAT, &h, NULL, 0, NULL, NULL));
}

/* A leader ends the group when a rank is silent. */
static void watch_ranks(struct wn_front *f, int64_t now)
{
    const int lost = wn_roll_call(&f->roll, now, (int64_t)f->opts.lease_ms * 1000);

    if (lost < 0) return;
    if (!f->ending_us)
        wn_error("front", "nothing heard from rank %d for %u ms: the group ends", lost, f->opts.lease_ms);
    wn_pulse_end_group(f->opts.link, &f->ending_us);
}

static void beat(struct wn_front *f)
{
    const int64_t now = wn_now_us();

    if (now < f->next_beat_us) return;
    watch_ranks(f, now);
    if (f->welcome && now - f->heard_us > f->lease_us) miss_scheduler(f, "nothing heard from the scheduler");
    if (f->away_us && now - f->away_us >= (int64_t)f->opts.grace_ms * 1000) give_up(f);
    if (f->welcome) wn_ledger_expire(f->ledger, now - 2 * f->lease_us);
    f->next_beat_us = now + f->beat_us;
    if (f->pending && f->pending->party.side == WN_SIDE_SCHEDULER) return; /* no use in piling up */
    if (f->welcome)
        send_heartbeat(f);
    else
        send_hello(f);
}

/* ---- receiving ---- */

static void answer_busy(struct wn_front *f, struct wn_front_msg *m)
{
    const Wn__Envelope *e = m->env;
    Wn__JobRef *job = NULL;
    struct wn_err err = {0};

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
        queue(f, msg_pack(&m->party, WN__ENVELOPE__BODY_ERROR, &body, NULL, 0, NULL, NULL));
    }
    wn_front_msg_free(m);
}

/* Bodies that the front deals with itself: true, and m is still the caller's. Orders also go into the ledger. */
static bool handle_own(struct wn_front *f, const struct wn_front_msg *m)
{
    const Wn__Envelope *e = m->env;

    if (m->party.side != WN_SIDE_SCHEDULER) return false;
    f->heard_us = wn_now_us();
    if (e->body_case == WN__ENVELOPE__BODY_WELCOME) {
        f->welcome = true;
        if (e->welcome->heartbeat_ms) f->beat_us = (int64_t)e->welcome->heartbeat_ms * 1000;
        if (e->welcome->lease_ms) f->lease_us = (int64_t)e->welcome->lease_ms * 1000;
        f->next_beat_us = 0;
        f->away_us = 0;
        for (size_t i = 0; i < e->welcome->n_kept; i++)
            wn_ledger_resume(f->ledger, e->welcome->kept[i]->job, e->welcome->kept[i]->tokens, say_again, f);
        return true;
    }
    if (e->body_case == WN__ENVELOPE__BODY_ERROR && e->error->code == WN_ENOENT && !e->error->job) {
        if (f->welcome) miss_scheduler(f, "the scheduler was started again");
        return true;
    }
    if (e->body_case == WN__ENVELOPE__BODY_GENERATE) wn_ledger_order(f->ledger, e->generate->job);
    if (e->body_case == WN__ENVELOPE__BODY_CANCEL) wn_ledger_drop(f->ledger, e->cancel->job);
    return e->body_case == WN__ENVELOPE__BODY_HEARTBEAT;
}

/* A rank's sign of life, and ours back. */
static bool hear_rank(struct wn_front *f, const struct wn_front_msg *m)
{
    Wn__Heartbeat answer = WN__HEARTBEAT__INIT;

    if (m->party.side != WN_SIDE_WORKER || m->env->body_case != WN__ENVELOPE__BODY_HEARTBEAT) return false;
    if (wn_roll_heard(&f->roll, m->env->heartbeat, wn_now_us()))
        queue(f, msg_pack(&m->party, WN__ENVELOPE__BODY_HEARTBEAT, &answer, NULL, 0, NULL, NULL));
    return true;
}

static void receive(struct wn_front *f, struct wn_endpoint *ep, const struct wn_party *from)
{
    for (int i = 0; i < RECV_BURST; i++) {
        struct wn_front_msg *m = msg_new();
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
        if (handle_own(f, m) || hear_rank(f, m))
            wn_front_msg_free(m);
        else if (!wn_ring_put(f->inbound, m))
            answer_busy(f, m);
    }
}

/* ---- the thread ---- */

static wn_status open_sockets(struct wn_front *f, struct wn_err *err)
{
    struct wn_endpoint_opts eo = {.type = WN_ENDPOINT_DEALER,
                                  .address = f->opts.scheduler,
                                  .frame_max = {WN_CODEC_BYTES_MAX, f->opts.payload_max},
                                  .reconnect_max_ms = RECONNECT_MAX_MS,
                                  .linger_ms = 200};
    wn_status rc = wn_endpoint_open(&f->scheduler, f->net, &eo, err);

    if (rc != WN_OK || !f->opts.features_bind) return rc;
    eo.type = WN_ENDPOINT_ROUTER;
    eo.bind = true;
    eo.address = f->opts.features_bind;
    rc = wn_endpoint_open(&f->features, f->net, &eo, err);
    if (rc == WN_OK)
        snprintf(f->features_address, sizeof(f->features_address), "%s",
                 wn_endpoint_address(f->features));
    return rc;
}

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
            queue(f, m);
    }
}

/* Tells the worker when a connection to a leader is lost: credit and features on their way are gone with it. */
static void watch_leaders(struct wn_front *f)
{
    for (int i = 0; i < LEADERS_MAX; i++) {
        struct leader *l = &f->leaders[i];
        struct wn_endpoint_stats stats;
        struct wn_front_msg *m;
        if (!l->ep) continue;
        wn_endpoint_stats_get(l->ep, &stats);
        if (stats.disconnected == l->losses || !(m = msg_new())) continue;
        l->losses = stats.disconnected;
        m->party.side = WN_SIDE_LEADER;
        snprintf(m->party.address, sizeof(m->party.address), "%s", l->address);
        m->link_lost = true;
        if (!wn_ring_put(f->inbound, m)) wn_front_msg_free(m);
    }
}

static void turn(struct wn_front *f)
{
    struct wn_poll_item items[3 + LEADERS_MAX] = {{.ep = f->scheduler},
                                                  {.fd = wn_ring_fd(f->outbound)}};
    struct leader *who[3 + LEADERS_MAX] = {0};
    size_t n = 2, features_at = 0;
    int64_t deadline_us = f->next_beat_us;
    struct wn_party from = {.side = WN_SIDE_SCHEDULER};

    if (f->features) {
        features_at = n;
        items[n++].ep = f->features;
    }
    for (int i = 0; i < LEADERS_MAX; i++) {
        if (!f->leaders[i].ep) continue;
        who[n] = &f->leaders[i];
        items[n++].ep = f->leaders[i].ep;
    }
    if (f->pending && deadline_us > wn_now_us() + RETRY_MS * 1000)
        deadline_us = wn_now_us() + RETRY_MS * 1000;
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
    watch_leaders(f);
    take_outbound(f);
    beat(f);
    send_pending(f);
}

static void *front_main(void *arg)
{
    struct wn_front *f = arg;
    int64_t flush_until;

    while (!atomic_load(&f->stop)) turn(f);
    flush_until = wn_deadline_in_us((int64_t)atomic_load(&f->flush_ms) * 1000);
    do {
        take_outbound(f);
        send_pending(f);
        if (f->pending) usleep(2000);
    } while (f->pending && !wn_deadline_passed(flush_until));
    wn_endpoint_close(f->scheduler);
    wn_endpoint_close(f->features);
    for (int i = 0; i < LEADERS_MAX; i++) wn_endpoint_close(f->leaders[i].ep);
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

    rc = f->started_rc = open_sockets(f, &f->started_err);
    if (rc != WN_OK) {
        wn_endpoint_close(f->scheduler);
        wn_endpoint_close(f->features);
    }
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
    f->pending_end = &f->pending;
    f->beat_us = DEFAULT_BEAT_MS * 1000;
    f->lease_us = DEFAULT_LEASE_MS * 1000;
    if (gethostname(f->host, sizeof(f->host) - 1) != 0) snprintf(f->host, sizeof(f->host), "?");
    if ((rc = wn_net_create(&f->net, err)) != WN_OK) goto out;
    if ((rc = wn_ledger_create(&f->ledger, err)) != WN_OK) goto out;
    rc = wn_roll_init(&f->roll, opts->link ? opts->ranks : NULL, opts->ranks_n,
                      ROLL_FIRST_LEASES * (int64_t)opts->lease_ms * 1000, err);
    if (rc != WN_OK) goto out;
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
        struct wn_front_msg *wake = msg_new();
        atomic_store(&f->flush_ms, flush_ms);
        atomic_store(&f->stop, true);
        if (wake) {
            wake->party.side = WN_SIDE_SELF;
            if (!wn_ring_put(f->outbound, wake))
                wn_front_msg_free(wake); /* full: the thread is awake */
        }
        pthread_join(f->thread, NULL);
    }
    while (f->pending) {
        struct wn_front_msg *next = f->pending->next;
        wn_front_msg_free(f->pending);
        f->pending = next;
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
    struct wn_front_msg *m = msg_pack(to, kind, body, payload, payload_bytes, free_fn, hint);

    if (!m) return;
    m->traffic = traffic;
    if (to->side == WN_SIDE_SCHEDULER) note_about(m, kind, body);
    while (!wn_ring_put(f->outbound, m))
        sched_yield(); /* the front never waits for this thread, so room comes */
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
