/* daemon/front_wire.c - the sockets of the front: keys, connections to leaders, and the queue of what goes out. */
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "daemon/front_impl.h"
#include "daemon/worker.h"

#define RECONNECT_MAX_MS  250 /* a scheduler that was started again is found soon */
#define LEADER_QUEUED_MAX 256 /* messages that wait for one leader; features among them have its credit */
#define FEATURES_QUEUED   8

static void put(struct wn_front_queue *q, struct wn_front_msg *m)
{
    m->next = NULL;
    if (q->last) q->last->next = m;
    else q->first = m;
    q->last = m;
    q->n++;
}

static void drop_first(struct wn_front_queue *q)
{
    struct wn_front_msg *m = q->first;

    q->first = m->next;
    if (!q->first) q->last = NULL;
    q->n--;
    wn_front_msg_free(m);
}

static void drop_all(struct wn_front_queue *q)
{
    while (q->first) drop_first(q);
}

/* ---- leaders, at a vision worker ---- */

/* false: the worker has too many messages waiting, and will be told later. */
static bool tell(struct wn_front *f, const struct wn_front_leader *l, bool unreachable)
{
    struct wn_front_msg *m = wn_front_msg_new();

    if (!m) return false;
    m->party.side = WN_SIDE_LEADER;
    snprintf(m->party.address, sizeof(m->party.address), "%s", l->address);
    m->link_lost = !unreachable;
    m->unreachable = unreachable;
    if (wn_ring_put(f->inbound, m)) return true;
    wn_front_msg_free(m);
    return false;
}

static void leader_close(struct wn_front_leader *l)
{
    drop_all(&l->queue);
    wn_endpoint_close(l->ep);
    *l = (struct wn_front_leader){0};
}

/* The leader's place, with a socket; NULL: there can be none. */
static struct wn_front_leader *leader_connect(struct wn_front *f, const char *address)
{
    struct wn_front_leader *place = &f->leaders[0];
    struct wn_err err = {0};
    const struct wn_endpoint_opts eo = {.type = WN_ENDPOINT_DEALER,
                                        .address = address,
                                        .frame_max = {WN_CODEC_BYTES_MAX},
                                        .linger_ms = 200,
                                        .curve = wn_worker_curve(f->opts.key, false),
                                        .insecure = f->opts.insecure};

    for (int i = 0; i < WN_FRONT_LEADERS_MAX; i++) {
        struct wn_front_leader *l = &f->leaders[i];
        if (l->ep && strcmp(l->address, address) == 0) return l;
        if (!l->ep || (place->ep && l->used_us < place->used_us)) place = l;
    }
    if (place->ep) (void)tell(f, place, true);
    leader_close(place);
    snprintf(place->address, sizeof(place->address), "%s", address);
    place->down_us = wn_now_us();
    if (wn_endpoint_open(&place->ep, f->net, &eo, &err) == WN_OK) return place;
    wn_warn("front", "leader %s: %s", address, err.text);
    (void)tell(f, place, true);
    leader_close(place);
    return NULL;
}

static void put_for_leader(struct wn_front *f, struct wn_front_msg *m)
{
    struct wn_front_leader *l = leader_connect(f, m->party.address);

    if (!l || l->queue.n >= LEADER_QUEUED_MAX) {
        wn_front_msg_free(m);
        return;
    }
    l->used_us = wn_now_us();
    put(&l->queue, m);
}

void wn_front_watch_leaders(struct wn_front *f)
{
    const int64_t now = wn_now_us();

    for (int i = 0; i < WN_FRONT_LEADERS_MAX; i++) {
        struct wn_front_leader *l = &f->leaders[i];
        struct wn_endpoint_stats stats;
        if (!l->ep) continue;
        wn_endpoint_stats_get(l->ep, &stats);
        if (stats.disconnected != l->losses && l->up && !tell(f, l, false)) continue;
        if (stats.up || l->up) l->down_us = now;
        l->losses = stats.disconnected;
        l->up = stats.up;
        if (!l->up && now - l->down_us > 2 * f->lease_us && tell(f, l, true)) leader_close(l);
    }
}

/* ---- what goes out ---- */

void wn_front_put(struct wn_front *f, struct wn_front_msg *m)
{
    if (!m) return;
    if (m->party.side == WN_SIDE_LEADER) put_for_leader(f, m);
    else put(m->party.side == WN_SIDE_SCHEDULER ? &f->to_scheduler : &f->to_workers, m);
}

/* false: the socket has no room for the first of the queue. */
static bool send_first(struct wn_endpoint *ep, struct wn_front_queue *q)
{
    struct wn_front_msg *m = q->first;
    wn_status rc;

    if (m->party.side == WN_SIDE_WORKER) m->msg.peer = m->party.peer;
    rc = wn_endpoint_send(ep, &m->msg, m->traffic);
    if (rc == WN_EBUSY && m->party.side != WN_SIDE_WORKER) return false;
    if (rc != WN_OK) wn_debug("front", "a message was lost: its peer is gone, or reads nothing");
    drop_first(q);
    return true;
}

bool wn_front_send_queued(struct wn_front *f)
{
    bool all = true;

    while (f->to_workers.first) (void)send_first(f->features, &f->to_workers);
    while (all && f->to_scheduler.first) all = send_first(f->scheduler, &f->to_scheduler);
    for (int i = 0; i < WN_FRONT_LEADERS_MAX; i++) {
        struct wn_front_leader *l = &f->leaders[i];
        while (l->queue.first && send_first(l->ep, &l->queue)) continue;
        all = all && !l->queue.first;
    }
    return all;
}

/* ---- sockets ---- */

static wn_status open_scheduler(struct wn_front *f, struct wn_err *err)
{
    const struct wn_endpoint_opts eo = {.type = WN_ENDPOINT_DEALER,
                                        .address = f->opts.scheduler,
                                        .frame_max = {WN_CODEC_BYTES_MAX, f->opts.payload_max},
                                        .reconnect_max_ms = RECONNECT_MAX_MS,
                                        .linger_ms = 200,
                                        .curve = wn_worker_curve(f->opts.key, true),
                                        .insecure = f->opts.insecure};

    return wn_endpoint_open(&f->scheduler, f->net, &eo, err);
}

void wn_front_reopen_scheduler(struct wn_front *f)
{
    struct wn_endpoint *old = f->scheduler;
    struct wn_err err = {0};

    if (open_scheduler(f, &err) == WN_OK) wn_endpoint_close(old);
    else wn_warn("front", "the scheduler at %s: %s", f->opts.scheduler, err.text);
}

wn_status wn_front_open_sockets(struct wn_front *f, struct wn_err *err)
{
    struct wn_endpoint_opts eo = {.type = WN_ENDPOINT_ROUTER,
                                  .bind = true,
                                  .address = f->opts.features_bind,
                                  .frame_max = {WN_CODEC_BYTES_MAX, f->opts.payload_max},
                                  .recv_queue_max = FEATURES_QUEUED, /* of each connection, in ZeroMQ */
                                  .linger_ms = 200,
                                  .insecure = f->opts.insecure};
    const char *const workers[] = {f->opts.key ? f->opts.key->public_key : NULL};
    wn_status rc = open_scheduler(f, err);

    if (rc != WN_OK || !f->opts.features_bind) return rc;
    if (f->opts.key)
        eo.curve = (struct wn_curve_opts){.server = true, .secret_key = f->opts.key->secret_key,
                                          .allowed = workers, .allowed_n = 1};
    rc = wn_endpoint_open(&f->features, f->net, &eo, err);
    if (rc == WN_OK)
        snprintf(f->features_address, sizeof(f->features_address), "%s",
                 wn_endpoint_address(f->features));
    return rc;
}

void wn_front_close_sockets(struct wn_front *f)
{
    drop_all(&f->to_scheduler);
    drop_all(&f->to_workers);
    wn_endpoint_close(f->scheduler);
    wn_endpoint_close(f->features);
    for (int i = 0; i < WN_FRONT_LEADERS_MAX; i++) leader_close(&f->leaders[i]);
}
