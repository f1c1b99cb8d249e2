/* client/conn.c - the ZeroMQ socket of a connection. A monitor socket beside it tells when the server goes away, which
 * a DEALER would otherwise hide by reconnecting. */
#include "client/conn.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#include "base/chunk.h"

#define LINGER_MS     1000
#define FRAME_MAX     ((int64_t)WN_CODEC_BYTES_MAX + 33) /* by so much CURVE makes a frame longer */
#define HEARTBEAT_MS  2000
#define SILENCE_MS    10000
#define PEEK_MS       500
#define RECONNECT_MS  100
#define REOPEN_US     ((int64_t)100000)
#define AWAY_POLL_MS  50
#define EVENTS                                                                                     \
    (ZMQ_EVENT_CONNECTED | ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_DISCONNECTED |               \
     ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH)

struct conn_request {
    unsigned owners; /* beside the first */
    size_t parts;
    zmq_msg_t part[]; /* the envelope, and the pieces of the payload (base/chunk.h) */
};

int wn_conn_result(wn_status code)
{
    switch (code) {
    case WN_OK: return WINNOW_OK;
    case WN_EINVAL:
    case WN_ELIMIT:
    case WN_ENOENT:
    case WN_EUNSUPP: return WINNOW_EINVAL;
    case WN_EBUSY: return WINNOW_EBUSY;
    case WN_ENOMEM: return WINNOW_ENOMEM;
    case WN_ETIME: return WINNOW_TIMEOUT;
    case WN_EIO:
    case WN_EAUTH:
    case WN_EPEER: return WINNOW_ECONNECT;
    default: return WINNOW_EPROTO;
    }
}

static int fail(struct winnow *w, wn_status code, const char *what)
{
    return wn_conn_result(wn_fail(&w->error, code, "%s: %s", what, zmq_strerror(errno)));
}

static bool set_option(struct winnow *w, int option, int value)
{
    return zmq_setsockopt(w->socket, option, &value, sizeof(value)) == 0;
}

static bool set_keys(struct winnow *w)
{
    return zmq_setsockopt(w->socket, ZMQ_CURVE_SERVERKEY, w->key->server_key, WN_KEY_CHARS) == 0 &&
           zmq_setsockopt(w->socket, ZMQ_CURVE_PUBLICKEY, w->key->public_key, WN_KEY_CHARS) == 0 &&
           zmq_setsockopt(w->socket, ZMQ_CURVE_SECRETKEY, w->key->secret_key, WN_KEY_CHARS) == 0;
}

static int open_sockets(struct winnow *w, const char *endpoint)
{
    const int64_t frame_max = FRAME_MAX;
    char inside[64];

    w->ctx = zmq_ctx_new();
    if (!w->ctx) return fail(w, WN_ENOMEM, "ZeroMQ");
    w->socket = zmq_socket(w->ctx, ZMQ_DEALER);
    w->monitor = zmq_socket(w->ctx, ZMQ_PAIR);
    if (!w->socket || !w->monitor) return fail(w, WN_ENOMEM, "ZeroMQ");
    snprintf(inside, sizeof(inside), "inproc://winnow-monitor-%p", (void *)w);
    if (!set_option(w, ZMQ_LINGER, LINGER_MS) || !set_option(w, ZMQ_HEARTBEAT_IVL, HEARTBEAT_MS) ||
        !set_option(w, ZMQ_HEARTBEAT_TIMEOUT, SILENCE_MS) || !set_option(w, ZMQ_RECONNECT_IVL, RECONNECT_MS) ||
        !set_option(w, ZMQ_SNDHWM, 1024) || !set_option(w, ZMQ_RCVHWM, 4096) ||
        zmq_setsockopt(w->socket, ZMQ_MAXMSGSIZE, &frame_max, sizeof(frame_max)) != 0)
        return fail(w, WN_EINVAL, "ZeroMQ options");
    if (w->key && !set_keys(w))
        return wn_conn_result(wn_fail(&w->error, WN_EINVAL, "the key file does not hold a key pair"));
    if (zmq_socket_monitor(w->socket, inside, EVENTS) != 0 ||
        zmq_connect(w->monitor, inside) != 0)
        return fail(w, WN_EIO, "ZeroMQ monitor");
    if (zmq_connect(w->socket, endpoint) != 0)
        return wn_conn_result(
            wn_fail(&w->error, WN_EINVAL, "'%.200s' is no address: %s", endpoint, zmq_strerror(errno)));
    return WINNOW_OK;
}

static void drop_pending(struct winnow *w)
{
    while (w->first) {
        struct pending *p = w->first;
        w->first = p->next;
        wn_codec_free(p->env);
        free(p);
    }
    w->end = &w->first;
    w->pending_n = 0;
}

static void close_sockets(struct winnow *w)
{
    if (w->socket) zmq_socket_monitor(w->socket, NULL, 0);
    if (w->monitor) zmq_close(w->monitor);
    if (w->socket) zmq_close(w->socket);
    if (w->ctx) zmq_ctx_term(w->ctx);
    w->ctx = w->socket = w->monitor = NULL;
}

int wn_conn_open(struct winnow *w, const char *endpoint, int timeout_ms)
{
    const int64_t deadline_us = wn_deadline_in_us((int64_t)timeout_ms * 1000);
    Wn__Envelope *status = NULL;
    wn_status located;
    int rc;

    w->end = &w->first;
    snprintf(w->endpoint, sizeof(w->endpoint), "%s", endpoint);
    if ((located = wn_conn_locate(endpoint, &w->place, &w->error)) != WN_OK) return wn_conn_result(located);
    if ((rc = open_sockets(w, w->place.address)) != WINNOW_OK) return rc;
    rc = wn_conn_status(w, &status, deadline_us);
    wn_codec_free(status);
    if (rc != WINNOW_OK) (void)set_option(w, ZMQ_LINGER, 0); /* nobody is there to say the rest to */
    if (rc != WINNOW_OK && w->refused && !w->greeted && wn_conn_is_zeromq(w->place.address, PEEK_MS)) {
        rc = wn_conn_result(wn_fail(&w->error, WN_EAUTH, "%s lets nobody in %s", endpoint,
                                    w->key ? "with this key: it is not in its list, is for another server, or the "
                                             "server has no keys"
                                           : "without a key: name the key file by --key FILE or WINNOW_KEY"));
    } else if (rc != WINNOW_OK && w->refused && !w->greeted) {
        rc = wn_conn_result(
            wn_fail(&w->error, WN_EPEER, "no server at %s: what is there does not speak ZeroMQ", endpoint));
    } else if (rc == WINNOW_TIMEOUT || rc == WINNOW_ECONNECT) {
        rc = wn_conn_result(wn_fail(&w->error, WN_EPEER, w->reached ? "the server at %s does not answer"
                                                                 : "no server at %s", endpoint));
    } else if (rc != WINNOW_OK) {
        wn_err_prefix(&w->error, "%s is no server of this version", endpoint);
    }
    return rc;
}

void wn_conn_close(struct winnow *w)
{
    drop_pending(w);
    close_sockets(w);
}

/* A job that Slurm has queued again may run elsewhere. */
static bool has_moved(struct winnow *w)
{
    struct conn_place now = {0};

    if (wn_conn_locate(w->endpoint, &now, NULL) != WN_OK || strcmp(now.address, w->place.address) == 0) return false;
    w->place = now;
    return true;
}

/* The server went away. A new socket, so that nothing is left over from the old one; what was waiting to be read will
 * be told again. */
static int recover(struct winnow *w)
{
    const int64_t now = wn_now_us();

    if (!w->lost_us) w->lost_us = now;
    if (w->jobs_n > 0 && now - w->lost_us > (int64_t)w->reconnect_timeout_ms * 1000) w->dead = true;
    if (w->dead) return wn_conn_result(wn_fail(&w->error, WN_EPEER, "the connection to %s was lost", w->endpoint));
    if (now - w->reopened_us < REOPEN_US) return WINNOW_OK;
    if (has_moved(w)) w->lost = true;
    if (!w->lost) return WINNOW_OK;
    drop_pending(w);
    if (w->socket) (void)set_option(w, ZMQ_LINGER, 0);
    close_sockets(w);
    w->lost = w->connected = false;
    w->reopened_us = now;
    w->stale = true;
    for (size_t i = 0; i < w->jobs_n; i++) w->jobs[i].stale = true;
    return open_sockets(w, w->place.address);
}

static void free_bytes(void *data, void *hint)
{
    (void)hint;
    free(data);
}

static size_t payload_of(const struct winnow_image *images, size_t n)
{
    size_t bytes = 0;

    for (size_t i = 0; i < n; i++) bytes += images[i].bytes; /* the caller checked the sum */
    return bytes;
}

/* All images as one payload, behind the envelope. */
static int gather(struct winnow *w, struct conn_request *r, const struct winnow_image *images, size_t n)
{
    const uint8_t *from = images[0].data;
    size_t left = payload_of(images, n), have = images[0].bytes;

    for (size_t pieces = wn_chunks_of(left), image = 0; pieces > 0; pieces--) {
        const size_t bytes = left < WN_CHUNK_BYTES ? left : WN_CHUNK_BYTES;
        if (zmq_msg_init_size(&r->part[r->parts], bytes) != 0) return fail(w, WN_ENOMEM, "images");
        for (size_t at = 0; at < bytes;) {
            const size_t some = have < bytes - at ? have : bytes - at;
            if (some) memcpy((uint8_t *)zmq_msg_data(&r->part[r->parts]) + at, from, some);
            at += some;
            from += some;
            have -= some;
            if (have > 0 || ++image == n) continue;
            from = images[image].data;
            have = images[image].bytes;
        }
        r->parts++;
        left -= bytes;
    }
    return WINNOW_OK;
}

struct conn_request *wn_conn_request_share(struct conn_request *r)
{
    r->owners++;
    return r;
}

void wn_conn_request_free(struct conn_request *r)
{
    if (!r || r->owners-- > 0) return;
    for (size_t i = 0; i < r->parts; i++) zmq_msg_close(&r->part[i]);
    free(r);
}

/* A copy of a large part shares its bytes. */
int wn_conn_resend(struct winnow *w, struct conn_request *r)
{
    w->asked = true;
    for (size_t i = 0; i < r->parts; i++) {
        zmq_msg_t copy;
        /* the other parts of a message never wait or fail once the first was taken */
        const int flags = (i + 1 < r->parts ? ZMQ_SNDMORE : 0) | (i > 0 ? 0 : ZMQ_DONTWAIT);
        zmq_msg_init(&copy);
        if (zmq_msg_copy(&copy, &r->part[i]) == 0 && zmq_msg_send(&copy, w->socket, flags) >= 0) continue;
        zmq_msg_close(&copy);
        return errno == EAGAIN ? wn_conn_result(wn_fail(&w->error, WN_EBUSY, "too many requests are on their way"))
                               : fail(w, WN_EIO, "send");
    }
    return WINNOW_OK;
}

int wn_conn_send(struct winnow *w, Wn__Envelope__BodyCase kind, const void *body, const struct winnow_image *images,
                 size_t images_n, struct conn_request **keep)
{
    struct conn_request *r;
    uint8_t *data = NULL;
    size_t bytes = 0;
    wn_status code;
    int rc;

    if ((w->lost || w->dead) && (rc = recover(w)) != WINNOW_OK) return rc;
    code = wn_codec_pack_body(&data, &bytes, kind, body, &w->error);
    if (code != WN_OK) return wn_conn_result(code);
    r = calloc(1, sizeof(*r) + (1 + wn_chunks_of(payload_of(images, images_n))) * sizeof(r->part[0]));
    if (!r || zmq_msg_init_data(&r->part[0], data, bytes, free_bytes, NULL) != 0) {
        free(r);
        free(data);
        return wn_conn_result(wn_fail(&w->error, WN_ENOMEM, "message"));
    }
    r->parts = 1;
    rc = images_n > 0 ? gather(w, r, images, images_n) : WINNOW_OK;
    if (rc == WINNOW_OK) rc = wn_conn_resend(w, r);
    if (rc == WINNOW_OK && keep) *keep = r;
    else wn_conn_request_free(r);
    return rc;
}

/* Takes what the monitor has to say. */
static void watch(struct winnow *w)
{
    for (;;) {
        zmq_msg_t msg;
        uint16_t event = 0;
        int more = 1;
        zmq_msg_init(&msg);
        if (zmq_msg_recv(&msg, w->monitor, ZMQ_DONTWAIT) < 0) {
            zmq_msg_close(&msg);
            return;
        }
        if (zmq_msg_size(&msg) >= sizeof(event)) memcpy(&event, zmq_msg_data(&msg), sizeof(event));
        for (more = zmq_msg_more(&msg); more; more = zmq_msg_more(&msg)) /* the address */
            if (zmq_msg_recv(&msg, w->monitor, ZMQ_DONTWAIT) < 0) break;
        zmq_msg_close(&msg);
        if (event == ZMQ_EVENT_CONNECTED) w->reached = true;
        if (event == ZMQ_EVENT_HANDSHAKE_SUCCEEDED) {
            w->connected = w->greeted = true;
            w->lost_us = 0;
        }
        if (event == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH || event == ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL ||
            event == ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL) /* the other side hung up: it saw first what is wrong */
            w->refused = !w->greeted;
        if (event == ZMQ_EVENT_DISCONNECTED && w->connected) w->lost = true;
    }
}

/* One message from the socket, if there is one: WINNOW_TIMEOUT if not. Frames after the first are dropped. */
static int take(struct winnow *w, Wn__Envelope **out)
{
    zmq_msg_t msg, rest;
    wn_status code;
    int more;

    zmq_msg_init(&msg);
    if (zmq_msg_recv(&msg, w->socket, ZMQ_DONTWAIT) < 0) {
        zmq_msg_close(&msg);
        return errno == EAGAIN || errno == EINTR ? WINNOW_TIMEOUT : fail(w, WN_EIO, "receive");
    }
    for (more = zmq_msg_more(&msg); more;) {
        zmq_msg_init(&rest);
        more = zmq_msg_recv(&rest, w->socket, 0) >= 0 && zmq_msg_more(&rest);
        zmq_msg_close(&rest);
    }
    code = wn_codec_unpack(out, zmq_msg_data(&msg), zmq_msg_size(&msg), &w->error);
    zmq_msg_close(&msg);
    if (code == WN_OK) return WINNOW_OK;
    return code == WN_ENOMEM ? WINNOW_ENOMEM : WINNOW_EPROTO;
}

/* Until ZeroMQ has something to tell of sockets where the last look found nothing, or fd (-1: none) is readable.
 * zmq_poll() would look at both sockets again, before and after. */
static int wait_sockets(struct winnow *w, int fd, int64_t wait_us)
{
    struct pollfd p[3] = {{.events = POLLIN}, {.events = POLLIN}, {.fd = fd, .events = POLLIN}};
    size_t room[2] = {sizeof(int), sizeof(int)};

    if (zmq_getsockopt(w->socket, ZMQ_FD, &p[0].fd, &room[0]) != 0 ||
        zmq_getsockopt(w->monitor, ZMQ_FD, &p[1].fd, &room[1]) != 0 ||
        (poll(p, 3, (int)(wait_us / 1000 + 1)) < 0 && errno != EINTR))
        return fail(w, WN_EIO, "wait");
    if (p[2].revents && !p[0].revents)
        return wn_conn_result(wn_fail(&w->error, WN_ETIME, "something else came before %s", w->endpoint));
    return WINNOW_OK;
}

/* Waits for the socket, or for fd; not longer than the deadline. */
static int receive(struct winnow *w, Wn__Envelope **out, int fd, int64_t deadline_us)
{
    for (;;) {
        int64_t left_us, retry_us;
        int rc = take(w, out);
        if (rc != WINNOW_TIMEOUT) return rc;
        w->asked = false;
        watch(w);
        if (w->lost && (rc = take(w, out)) != WINNOW_TIMEOUT) return rc; /* what it said before it went */
        if ((w->lost || w->lost_us || w->dead) && (rc = recover(w)) != WINNOW_OK) return rc;
        if (w->lost_us && w->jobs_n == 0) /* nothing to wait for */
            return wn_conn_result(wn_fail(&w->error, WN_EPEER, "the connection to %s was lost", w->endpoint));
        if (w->stale && w->connected) wn_jobs_resume(w);
        retry_us = w->connected && !w->stale ? wn_jobs_retry(w) : WN_NEVER;
        left_us = deadline_us == WN_NEVER ? 3600000000 : deadline_us - wn_now_us();
        if (left_us <= 0)
            return wn_conn_result(wn_fail(&w->error, WN_ETIME, "nothing came from %s in time", w->endpoint));
        if (retry_us - wn_now_us() < left_us) left_us = retry_us > wn_now_us() ? retry_us - wn_now_us() : 0;
        if ((w->lost_us || w->stale) && left_us > AWAY_POLL_MS * 1000) left_us = AWAY_POLL_MS * 1000;
        if (w->asked && (rc = take(w, out)) != WINNOW_TIMEOUT) return rc; /* ZeroMQ looks for more when it sends */
        if ((rc = wait_sockets(w, fd, left_us)) != WINNOW_OK) return rc;
    }
}

int wn_conn_recv(struct winnow *w, Wn__Envelope **out, int fd, int64_t deadline_us)
{
    struct pending *p = w->first;

    if (!p) return receive(w, out, fd, deadline_us);
    w->first = p->next;
    if (!w->first) w->end = &w->first;
    w->pending_n--;
    *out = p->env;
    free(p);
    return WINNOW_OK;
}

int wn_conn_status(struct winnow *w, Wn__Envelope **out, int64_t deadline_us)
{
    Wn__StatusRequest q = WN__STATUS_REQUEST__INIT;
    int rc;

    if ((rc = wn_conn_send(w, WN__ENVELOPE__BODY_STATUS_REQUEST, &q, NULL, 0, NULL)) != WINNOW_OK) return rc;
    for (;;) {
        Wn__Envelope *env = NULL;
        struct pending *p;
        if ((rc = receive(w, &env, -1, deadline_us)) != WINNOW_OK) return rc;
        if (env->body_case == WN__ENVELOPE__BODY_STATUS) {
            *out = env;
            return WINNOW_OK;
        }
        p = w->pending_n < WN_CLIENT_PENDING_MAX ? calloc(1, sizeof(*p)) : NULL;
        if (!p) {
            wn_codec_free(env);
            return wn_conn_result(wn_fail(&w->error, WN_ENOMEM, "too many events are waiting: take them first"));
        }
        p->env = env;
        *w->end = p;
        w->end = &p->next;
        w->pending_n++;
    }
}
