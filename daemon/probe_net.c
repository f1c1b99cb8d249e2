/* daemon/probe_net.c - how probes talk: messages, timed round trips and streams, the thread that echoes. See probe.h.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/order.h"
#include "daemon/probe.h"

#define MAGIC         0x31627057u /* "Wpb1" */
#define PINGS         31
#define ANSWER_US     5000000ll /* an answer that takes longer does not come */
#define START_US      15000000ll /* so much later than the first job step the last one may be there (prologs) */
#define STREAM_US     200000.0
#define STREAM_MAX    16 /* messages on their way at a time */
#define ECHO_SLICE_US 50000ll

struct wn_probe_msg wn_probe_msg_make(const struct wn_probe *p, wn_probe_word word)
{
    struct wn_probe_msg m = {.magic = MAGIC, .word = word, .rank = p->rank, .ok = 1};

    memcpy(m.name, p->cfg.name, sizeof(m.name));
    memcpy(m.host, p->host, sizeof(m.host));
    return m;
}

/* ---- endpoints ---- */

wn_status wn_probe_connect(const struct wn_probe *p, bool to_scheduler, const char *address, struct wn_endpoint **out,
                           struct wn_err *err)
{
    const struct wn_endpoint_opts eo = {.type = WN_ENDPOINT_DEALER,
                                        .address = address,
                                        .frame_max = {WN_PROBE_FRAME_MAX},
                                        .reconnect_ms = 20,
                                        .reconnect_max_ms = 200,
                                        .linger_ms = 500,
                                        .curve = wn_worker_curve(p->key, to_scheduler),
                                        .insecure = p->cfg.insecure};

    return wn_endpoint_open(out, p->zmq, &eo, err);
}

static void keep(void *data, void *hint)
{
    (void)data, (void)hint;
}

/* Waits for room in the queue. The payload is borrowed until the other side has answered. */
static wn_status put(struct wn_endpoint *ep, const struct wn_probe_msg *m, void *payload, size_t bytes,
                     int64_t deadline_us)
{
    struct wn_msg msg;
    wn_status rc;

    wn_msg_init(&msg);
    rc = wn_msg_add_copy(&msg, m, sizeof(*m));
    if (rc == WN_OK && payload) rc = wn_msg_add_ref(&msg, payload, bytes, keep, NULL);
    while (rc == WN_OK && (rc = wn_endpoint_send(ep, &msg, WN_TRAFFIC_CONTROL)) == WN_EBUSY) {
        struct wn_poll_item item = {.ep = ep, .want_write = true};
        rc = wn_endpoint_poll(&item, 1, deadline_us);
    }
    wn_msg_clear(&msg);
    return rc;
}

wn_status wn_probe_send(struct wn_endpoint *ep, const struct wn_probe_msg *m, int64_t deadline_us)
{
    return put(ep, m, NULL, 0, deadline_us);
}

bool wn_probe_msg_read(struct wn_msg *msg, struct wn_probe_msg *m)
{
    if (msg->frames_n < 1 || wn_msg_size(msg, 0) != sizeof(*m)) return false;
    memcpy(m, wn_msg_data(msg, 0), sizeof(*m));
    m->name[sizeof(m->name) - 1] = m->host[sizeof(m->host) - 1] = m->address[sizeof(m->address) - 1] = '\0';
    return m->magic == MAGIC;
}

wn_status wn_probe_recv(struct wn_endpoint *ep, struct wn_probe_msg *m, int64_t deadline_us)
{
    struct wn_msg msg;
    bool ours = false;
    wn_status rc = WN_OK;

    wn_msg_init(&msg);
    while (rc == WN_OK && !ours) {
        struct wn_poll_item item = {.ep = ep};
        if ((rc = wn_endpoint_poll(&item, 1, deadline_us)) != WN_OK) break;
        while (!ours && wn_endpoint_recv(ep, &msg) == WN_OK) ours = wn_probe_msg_read(&msg, m);
    }
    wn_msg_clear(&msg);
    return rc;
}

/* ---- measuring ---- */

wn_status wn_probe_ping(const struct wn_probe *p, struct wn_endpoint *ep, bool patient, double *us, struct wn_err *err)
{
    const struct wn_probe_msg echo = wn_probe_msg_make(p, WN_PROBE_ECHO);
    struct wn_probe_msg back;
    double took[PINGS];

    for (int i = -1; i < PINGS; i++) { /* the first one makes the connection */
        const int64_t began_us = wn_now_us(), most_us = i < 0 && patient ? START_US : ANSWER_US;
        const int64_t until = began_us + most_us;
        wn_status rc = put(ep, &echo, NULL, 0, until);
        if (rc == WN_OK) rc = wn_probe_recv(ep, &back, until);
        if (rc != WN_OK)
            return wn_fail(err, rc, "%s does not answer within %lld s", wn_endpoint_address(ep),
                           (long long)most_us / 1000000);
        if (i >= 0) took[i] = (double)(wn_now_us() - began_us) / 2;
    }
    qsort(took, PINGS, sizeof(took[0]), wn_order_double);
    *us = took[PINGS / 2];
    return WN_OK;
}

/* n messages, and the answers to all of them. */
static wn_status stream(struct wn_endpoint *ep, const struct wn_probe_msg *echo, void *payload, size_t bytes, int n)
{
    struct wn_probe_msg back;
    wn_status rc = WN_OK;

    for (int i = 0; i < n && rc == WN_OK; i++) rc = put(ep, echo, payload, bytes, wn_deadline_in_us(ANSWER_US));
    for (int i = 0; i < n && rc == WN_OK; i++) rc = wn_probe_recv(ep, &back, wn_deadline_in_us(2 * ANSWER_US));
    return rc;
}

wn_status wn_probe_stream(const struct wn_probe *p, struct wn_endpoint *ep, size_t bytes, double *bytes_per_s,
                          uint64_t *sent, struct wn_err *err)
{
    const struct wn_probe_msg echo = wn_probe_msg_make(p, WN_PROBE_ECHO);
    void *payload = calloc(1, bytes);
    int64_t began_us = wn_now_us(), us = 0;
    int n = 1;
    wn_status rc = payload ? stream(ep, &echo, payload, bytes, 1) : WN_ENOMEM;

    if (rc == WN_OK) {
        us = wn_now_us() - began_us + 1;
        n = STREAM_US / (double)us > STREAM_MAX ? STREAM_MAX : (int)(STREAM_US / (double)us) + 1;
        began_us = wn_now_us();
        rc = stream(ep, &echo, payload, bytes, n);
        us = wn_now_us() - began_us + 1;
    }
    *sent = (uint64_t)n * bytes;
    *bytes_per_s = (double)*sent * 1e6 / (double)(us ? us : 1);
    if (rc != WN_OK) wn_fail(err, rc, "%s does not answer", wn_endpoint_address(ep));
    if (rc == WN_ETIME) wn_probe_blame_size(p, bytes, err);
    /* ZeroMQ may still hold a message that was never answered: its memory stays */
    if (rc == WN_OK) free(payload);
    return rc;
}

/* ---- the thread that echoes ---- */

struct wn_probe_echo {
    struct wn_probe probe; /* a copy: keys and name */
    char bind[WN_ADDRESS_MAX], address[WN_ADDRESS_MAX];
    size_t payload_max;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool opened;
    wn_status rc;
    struct wn_err err;
    atomic_bool stop;
};

static wn_status open_echo(struct wn_probe_echo *e, struct wn_endpoint **ep)
{
    const struct wn_key *key = e->probe.key;
    const char *const workers[] = {key ? key->public_key : NULL};
    struct wn_endpoint_opts eo = {.type = WN_ENDPOINT_ROUTER,
                                  .address = e->bind,
                                  .bind = true,
                                  .frame_max = {WN_PROBE_FRAME_MAX, e->payload_max},
                                  .insecure = e->probe.cfg.insecure};

    if (key)
        eo.curve =
            (struct wn_curve_opts){.server = true, .secret_key = key->secret_key, .allowed = workers, .allowed_n = 1};
    return wn_endpoint_open(ep, e->probe.zmq, &eo, &e->err);
}

static void *echo_main(void *arg)
{
    struct wn_probe_echo *e = arg;
    struct wn_endpoint *ep = NULL;
    struct wn_probe_msg m;
    struct wn_msg msg, back;
    wn_status rc = open_echo(e, &ep);

    wn_msg_init(&msg);
    wn_msg_init(&back);
    pthread_mutex_lock(&e->lock);
    e->rc = rc;
    e->opened = true;
    if (rc == WN_OK) snprintf(e->address, sizeof(e->address), "%s", wn_endpoint_address(ep));
    pthread_cond_signal(&e->changed);
    pthread_mutex_unlock(&e->lock);
    while (rc == WN_OK && !atomic_load(&e->stop)) {
        struct wn_poll_item item = {.ep = ep};
        if (wn_endpoint_poll(&item, 1, wn_deadline_in_us(ECHO_SLICE_US)) != WN_OK) continue;
        while (wn_endpoint_recv(ep, &msg) == WN_OK) {
            if (!wn_probe_msg_read(&msg, &m) || m.word != WN_PROBE_ECHO) continue;
            back.peer = msg.peer;
            if (wn_msg_add_copy(&back, &m, sizeof(m)) == WN_OK)
                (void)!wn_endpoint_send(ep, &back, WN_TRAFFIC_CONTROL);
            wn_msg_clear(&back);
        }
    }
    wn_msg_clear(&msg);
    wn_endpoint_close(ep);
    return NULL;
}

wn_status wn_probe_echo_start(struct wn_probe_echo **out, const struct wn_probe *p, const char *bind,
                              size_t payload_max, struct wn_err *err)
{
    struct wn_probe_echo *e = calloc(1, sizeof(*e));
    int code;

    if (!e) return wn_fail(err, WN_ENOMEM, "thread that echoes");
    e->probe = *p;
    e->payload_max = payload_max;
    snprintf(e->bind, sizeof(e->bind), "%s", bind);
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->changed, NULL);
    if ((code = pthread_create(&e->thread, NULL, echo_main, e)) != 0) {
        free(e);
        return wn_fail(err, WN_EIO, "thread that echoes: %s", strerror(code));
    }
    pthread_mutex_lock(&e->lock);
    while (!e->opened) pthread_cond_wait(&e->changed, &e->lock);
    pthread_mutex_unlock(&e->lock);
    if (e->rc == WN_OK) {
        *out = e;
        return WN_OK;
    }
    *err = e->err;
    wn_probe_echo_stop(e);
    return err->code;
}

const char *wn_probe_echo_address(const struct wn_probe_echo *e)
{
    return e->address;
}

void wn_probe_echo_stop(struct wn_probe_echo *e)
{
    if (!e) return;
    atomic_store(&e->stop, true);
    pthread_join(e->thread, NULL);
    pthread_mutex_destroy(&e->lock);
    pthread_cond_destroy(&e->changed);
    free(e);
}
