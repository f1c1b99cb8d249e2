/* daemon/front_wire.c - the sockets of the front: keys, connections to leaders, and the queue of what goes out. */
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "daemon/front_impl.h"
#include "daemon/worker.h"

#define RECONNECT_MAX_MS 250 /* a scheduler that was started again is found soon */

static struct wn_endpoint *leader_connect(struct wn_front *f, const char *address)
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
void wn_front_send_queued(struct wn_front *f)
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

void wn_front_queue(struct wn_front *f, struct wn_front_msg *m)
{
    if (!m) return;
    m->next = NULL;
    *f->pending_end = m;
    f->pending_end = &m->next;
}

void wn_front_watch_leaders(struct wn_front *f)
{
    for (int i = 0; i < WN_FRONT_LEADERS_MAX; i++) {
        struct wn_front_leader *l = &f->leaders[i];
        struct wn_endpoint_stats stats;
        struct wn_front_msg *m;
        if (!l->ep) continue;
        wn_endpoint_stats_get(l->ep, &stats);
        if (stats.disconnected == l->losses || !(m = wn_front_msg_new())) continue;
        l->losses = stats.disconnected;
        m->party.side = WN_SIDE_LEADER;
        snprintf(m->party.address, sizeof(m->party.address), "%s", l->address);
        m->link_lost = true;
        if (!wn_ring_put(f->inbound, m)) wn_front_msg_free(m);
    }
}

wn_status wn_front_open_sockets(struct wn_front *f, struct wn_err *err)
{
    struct wn_endpoint_opts eo = {.type = WN_ENDPOINT_DEALER,
                                  .address = f->opts.scheduler,
                                  .frame_max = {WN_CODEC_BYTES_MAX, f->opts.payload_max},
                                  .reconnect_max_ms = RECONNECT_MAX_MS,
                                  .linger_ms = 200,
                                  .curve = wn_worker_curve(f->opts.key, true),
                                  .insecure = f->opts.insecure};
    const char *const workers[] = {f->opts.key ? f->opts.key->public_key : NULL};
    wn_status rc = wn_endpoint_open(&f->scheduler, f->net, &eo, err);

    if (rc != WN_OK || !f->opts.features_bind) return rc;
    eo.type = WN_ENDPOINT_ROUTER;
    eo.bind = true;
    eo.address = f->opts.features_bind;
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
    wn_endpoint_close(f->scheduler);
    wn_endpoint_close(f->features);
    for (int i = 0; i < WN_FRONT_LEADERS_MAX; i++) wn_endpoint_close(f->leaders[i].ep);
}
