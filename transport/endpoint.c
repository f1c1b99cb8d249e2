/* transport/endpoint.c - messages through an endpoint that endpoint_open.c has opened. */
#include "transport/endpoint.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <string.h>
#include <zmq.h>

#include "base/chunk.h"
#include "transport/endpoint_auth.h"
#include "transport/endpoint_chunk.h"
#include "transport/endpoint_impl.h"
#include "transport/endpoint_watch.h"

_Static_assert(sizeof(zmq_msg_t) <= sizeof(struct wn_frame), "a frame holds a zmq_msg_t");

static zmq_msg_t *frame_msg(const struct wn_frame *frame)
{
    return (zmq_msg_t *)(uintptr_t)frame->store;
}

const char *wn_endpoint_address(const struct wn_endpoint *ep)
{
    return ep->address;
}

/* The first frame is in, the rest did not follow: the connection went away in between. What is left must still be
 * handed over, so that ZeroMQ sees the end of the message, which it drops. */
static wn_status send_rest_lost(struct wn_endpoint *ep, struct wn_msg *msg, unsigned from)
{
    for (unsigned i = from; i < msg->frames_n; i++) {
        int flags = ZMQ_DONTWAIT | (i + 1 < msg->frames_n ? ZMQ_SNDMORE : 0);
        if (wn_chunk_send(ep->socket, frame_msg(&msg->frames[i]), flags) < 0) break;
    }
    wn_msg_clear(msg);
    return WN_EIO;
}

wn_status wn_endpoint_send(struct wn_endpoint *ep, struct wn_msg *msg, wn_traffic kind)
{
    size_t bytes = wn_msg_bytes(msg);

    WN_ASSERT(pthread_equal(ep->thread, pthread_self()));
    WN_ASSERT(msg->frames_n > 0);
    ep->drained = false; /* a send may take in what ZeroMQ had to tell */
    if (ep->type == WN_ENDPOINT_ROUTER) {
        if (msg->peer.n == 0) return WN_EPEER;
        if (zmq_send(ep->socket, msg->peer.bytes, msg->peer.n, ZMQ_DONTWAIT | ZMQ_SNDMORE) < 0) {
            if (errno != EAGAIN) return WN_EPEER;
            ep->stats.busy++;
            return WN_EBUSY;
        }
    }
    for (unsigned i = 0; i < msg->frames_n; i++) {
        int flags = ZMQ_DONTWAIT | (i + 1 < msg->frames_n ? ZMQ_SNDMORE : 0);
        zmq_msg_t *frame = frame_msg(&msg->frames[i]);
        if ((i ? wn_chunk_send(ep->socket, frame, flags) : zmq_msg_send(frame, ep->socket, flags)) >= 0) continue;
        if (i > 0 || ep->type == WN_ENDPOINT_ROUTER) {
            wn_traffic_sent(&ep->meter, kind, bytes);
            return send_rest_lost(ep, msg, i + 1);
        }
        if (errno != EAGAIN) return WN_EPEER;
        ep->stats.busy++;
        return WN_EBUSY;
    }
    wn_traffic_sent(&ep->meter, kind, bytes);
    wn_msg_clear(msg);
    return WN_OK;
}

/* The ROUTER's first frame. Ids that we could not name again are refused. */
static bool recv_peer(struct wn_endpoint *ep, struct wn_msg *msg, bool *more, wn_status *rc)
{
    zmq_msg_t id;
    size_t n;

    zmq_msg_init(&id);
    if (zmq_msg_recv(&id, ep->socket, ZMQ_DONTWAIT) < 0) {
        ep->drained = errno == EAGAIN;
        zmq_msg_close(&id);
        return false;
    }
    n = zmq_msg_size(&id);
    *more = zmq_msg_more(&id) != 0;
    if (n > 0 && n <= WN_PEER_ID_MAX) {
        memcpy(msg->peer.bytes, zmq_msg_data(&id), n);
        msg->peer.n = (uint8_t)n;
    } else {
        *rc = WN_EPROTO;
    }
    zmq_msg_close(&id);
    return true;
}

wn_status wn_endpoint_recv(struct wn_endpoint *ep, struct wn_msg *msg)
{
    bool more = true;
    int fd = -1;
    wn_status rc = WN_OK;

    WN_ASSERT(pthread_equal(ep->thread, pthread_self()));
    wn_msg_clear(msg);
    msg->peer.n = 0;
    ep->drained = false;
    if (ep->type == WN_ENDPOINT_ROUTER && !recv_peer(ep, msg, &more, &rc)) {
        ep->stats.refused += wn_watch_look(ep->watch, ep->watch ? wn_now_us() : 0);
        return WN_EBUSY;
    }
    if (!more) rc = WN_EPROTO;
    while (more) {
        zmq_msg_t frame;
        unsigned i = msg->frames_n;
        zmq_msg_init(&frame);
        if (zmq_msg_recv(&frame, ep->socket, ZMQ_DONTWAIT) < 0) { /* only at the start: frames arrive together */
            ep->drained = errno == EAGAIN;
            zmq_msg_close(&frame);
            return WN_EBUSY;
        }
        more = zmq_msg_more(&frame) != 0;
        if (ep->watch && fd < 0) fd = zmq_msg_get(&frame, ZMQ_SRCFD);
        if (rc == WN_OK && i > 0 && i < WN_MSG_FRAMES_MAX && zmq_msg_size(&frame) == WN_CHUNK_BYTES)
            rc = wn_chunk_join(ep->socket, &frame, ep->frame_max[i], &more);
        if (rc == WN_OK && (i == WN_MSG_FRAMES_MAX || ep->frame_max[i] == 0 ||
                            zmq_msg_size(&frame) > ep->frame_max[i])) {
            rc = WN_EPROTO;
        }
        if (rc == WN_OK) {
            zmq_msg_init(frame_msg(&msg->frames[i]));
            zmq_msg_move(frame_msg(&msg->frames[i]), &frame);
            msg->frames_n++;
        }
        zmq_msg_close(&frame);
    }
    wn_watch_whole(ep->watch, fd);
    if (rc != WN_OK) {
        ep->stats.refused++;
        wn_msg_clear(msg);
    }
    return rc;
}

void wn_endpoint_received(struct wn_endpoint *ep, wn_traffic kind, size_t bytes)
{
    wn_traffic_received(&ep->meter, kind, bytes);
}

void wn_endpoint_traffic(const struct wn_endpoint *ep, struct wn_traffic_table *table)
{
    wn_traffic_snapshot(&ep->meter, table);
}

/* Takes what the monitor has to say: frames of {16 bits event, 32 bits value}, {address}. */
static void read_events(struct wn_endpoint *ep)
{
    unsigned char event[16];
    char address[8];
    uint16_t what;
    int32_t value; /* of a connection's events: its descriptor */

    while (ep->monitor && zmq_recv(ep->monitor, event, sizeof(event), ZMQ_DONTWAIT) >= 6) {
        zmq_recv(ep->monitor, address, sizeof(address), ZMQ_DONTWAIT);
        memcpy(&what, event, sizeof(what));
        memcpy(&value, event + sizeof(what), sizeof(value));
        if (what == ZMQ_EVENT_ACCEPTED) {
            if (!wn_watch_taken(ep->watch, value)) ep->stats.crowded++;
        } else if (what == ZMQ_EVENT_HANDSHAKE_SUCCEEDED) {
            ep->stats.connected++;
            ep->stats.up = true;
        } else if (what == ZMQ_EVENT_DISCONNECTED) {
            wn_watch_ended(ep->watch, value);
            ep->stats.disconnected++;
            ep->stats.up = false;
        } else if (what != ZMQ_EVENT_MONITOR_STOPPED) {
            ep->stats.handshake_failed++;
            ep->stats.keys_refused += what == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH;
            ep->stats.mismatched += what == ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL;
        }
    }
    ep->watched = true;
}

void wn_endpoint_stats_get(struct wn_endpoint *ep, struct wn_endpoint_stats *stats)
{
    WN_ASSERT(pthread_equal(ep->thread, pthread_self()));
    read_events(ep);
    *stats = ep->stats;
}

bool wn_endpoint_stranger(struct wn_endpoint *ep, struct wn_stranger *out)
{
    WN_ASSERT(pthread_equal(ep->thread, pthread_self()));
    return ep->domain && wn_auth_stranger(ep->net->auth, ep->domain, out);
}

static long poll_ms(int64_t deadline_us)
{
    int64_t us;

    if (deadline_us == WN_NEVER) return -1;
    us = deadline_us - wn_now_us();
    if (us <= 0) return 0;
    return us / 1000 >= INT_MAX ? INT_MAX : (long)((us + 999) / 1000);
}

/* Asks ZeroMQ what is ready. WN_ECANCEL: it is being ended. */
static wn_status look(struct wn_poll_item *item)
{
    size_t room = sizeof(int);
    int events = 0;

    while (zmq_getsockopt(item->ep->socket, ZMQ_EVENTS, &events, &room) != 0)
        if (errno != EINTR) return errno == ETERM ? WN_ECANCEL : WN_EIO;
    item->readable = (events & ZMQ_POLLIN) != 0;
    item->writable = item->want_write && (events & ZMQ_POLLOUT) != 0;
    item->ep->drained = !item->readable;
    return WN_OK;
}

/* What is known without waiting. *ready: something is. */
static wn_status look_all(struct wn_poll_item *items, size_t n, bool *ready)
{
    *ready = false;
    for (size_t i = 0; i < n; i++) {
        struct wn_endpoint *ep = items[i].ep;
        wn_status rc = WN_OK;
        items[i].readable = items[i].writable = false;
        if (ep && ep->monitor && !ep->watched) read_events(ep);
        if (ep && (!ep->drained || items[i].want_write)) rc = look(&items[i]);
        if (rc != WN_OK) return rc;
        *ready = *ready || items[i].readable || items[i].writable;
    }
    return WN_OK;
}

/* Waits for the descriptors, p [n + monitors]; what they tell is added to the items. */
static wn_status wait_all(struct wn_poll_item *items, size_t n, struct pollfd *p, size_t p_n, long wait_ms)
{
    if (poll(p, p_n, (int)wait_ms) <= 0) return WN_OK; /* also when a signal came: the deadline is looked at again */
    for (size_t i = 0, m = n; i < n; i++) {
        struct wn_endpoint *ep = items[i].ep;
        if (ep && ep->monitor && p[m++].revents) read_events(ep);
        if (!p[i].revents) continue;
        if (!ep) {
            items[i].readable = (p[i].revents & ~POLLOUT) != 0;
            items[i].writable = (p[i].revents & POLLOUT) != 0;
        } else if (!items[i].readable) {
            const wn_status rc = look(&items[i]);
            if (rc != WN_OK) return rc;
        }
    }
    return WN_OK;
}

/* zmq_poll() asks each socket, and each of these questions is two system calls, before it waits and once more after.
 * Here only a socket is asked that may have changed: where the last receive or look found nothing, the socket's
 * descriptor becomes readable with the next message. */
wn_status wn_endpoint_poll(struct wn_poll_item *items, size_t n, int64_t deadline_us)
{
    struct pollfd p[2 * WN_ENDPOINT_POLL_MAX];
    size_t p_n = n;

    if (n > WN_ENDPOINT_POLL_MAX) return WN_EINVAL;
    for (size_t i = 0; i < n; i++) {
        struct wn_endpoint *ep = items[i].ep;
        WN_ASSERT(!ep || pthread_equal(ep->thread, pthread_self()));
        p[i] = (struct pollfd){.fd = ep ? ep->fd : items[i].fd,
                               .events = (short)(POLLIN | (!ep && items[i].want_write ? POLLOUT : 0))};
        if (ep && ep->monitor) p[p_n++] = (struct pollfd){.fd = ep->monitor_fd, .events = POLLIN};
    }
    while (true) {
        bool ready;
        wn_status rc = look_all(items, n, &ready);
        if (rc == WN_OK) rc = wait_all(items, n, p, p_n, ready ? 0 : poll_ms(deadline_us));
        if (rc != WN_OK) return rc;
        for (size_t i = 0; i < n; i++) ready = ready || items[i].readable || items[i].writable;
        if (ready) return WN_OK;
        if (wn_deadline_passed(deadline_us)) return WN_ETIME;
    }
}

void wn_msg_init(struct wn_msg *msg)
{
    msg->peer.n = 0;
    msg->frames_n = 0;
}

void wn_msg_clear(struct wn_msg *msg)
{
    for (unsigned i = 0; i < msg->frames_n; i++) zmq_msg_close(frame_msg(&msg->frames[i]));
    msg->frames_n = 0;
}

wn_status wn_msg_add_room(struct wn_msg *msg, size_t bytes, void **room)
{
    if (msg->frames_n == WN_MSG_FRAMES_MAX) return WN_ELIMIT;
    if (zmq_msg_init_size(frame_msg(&msg->frames[msg->frames_n]), bytes) != 0) return WN_ENOMEM;
    *room = zmq_msg_data(frame_msg(&msg->frames[msg->frames_n++]));
    return WN_OK;
}

wn_status wn_msg_add_copy(struct wn_msg *msg, const void *data, size_t bytes)
{
    void *room = NULL;
    wn_status rc = wn_msg_add_room(msg, bytes, &room);

    if (rc == WN_OK && bytes) memcpy(room, data, bytes);
    return rc;
}

wn_status wn_msg_add_ref(struct wn_msg *msg, void *data, size_t bytes, void (*free_fn)(void *data, void *hint),
                         void *hint)
{
    if (msg->frames_n == WN_MSG_FRAMES_MAX) return WN_ELIMIT;
    if (zmq_msg_init_data(frame_msg(&msg->frames[msg->frames_n]), data, bytes, free_fn, hint) != 0) return WN_ENOMEM;
    msg->frames_n++;
    return WN_OK;
}

void *wn_msg_data(struct wn_msg *msg, unsigned i)
{
    WN_ASSERT(i < msg->frames_n);
    return zmq_msg_data(frame_msg(&msg->frames[i]));
}

size_t wn_msg_size(const struct wn_msg *msg, unsigned i)
{
    WN_ASSERT(i < msg->frames_n);
    return zmq_msg_size(frame_msg(&msg->frames[i]));
}

size_t wn_msg_bytes(const struct wn_msg *msg)
{
    size_t bytes = 0;
    for (unsigned i = 0; i < msg->frames_n; i++) bytes += zmq_msg_size(frame_msg(&msg->frames[i]));
    return bytes;
}

const char *wn_msg_key(const struct wn_msg *msg)
{
    const char *key = msg->frames_n ? zmq_msg_gets(frame_msg(&msg->frames[0]), "User-Id") : NULL;
    return key && key[0] ? key : NULL;
}

bool wn_peer_equal(const struct wn_peer_id *a, const struct wn_peer_id *b)
{
    return a->n == b->n && memcmp(a->bytes, b->bytes, a->n) == 0;
}
