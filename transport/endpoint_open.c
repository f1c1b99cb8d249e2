/* transport/endpoint_open.c - opens and closes endpoints: limits, keys, addresses. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <zmq.h>

#include "base/address.h"
#include "base/chunk.h"
#include "transport/endpoint_auth.h"
#include "transport/endpoint_impl.h"
#include "transport/endpoint_watch.h"

#define HANDSHAKE_MS 10000 /* a connection that has not said who it is by then is dropped */
#define BACKLOG      128
#define COMMAND_MAX  1024  /* of ZeroMQ's own frames; CURVE's INITIATE has 257 bytes and its sender's name */
#define CURVE_BYTES  33    /* that a frame grows by under CURVE: name of the command, nonce, seal, flags */

wn_status wn_net_create(struct wn_net **out, struct wn_err *err)
{
    struct wn_net *net = calloc(1, sizeof(*net));

    if (!net) return wn_fail(err, WN_ENOMEM, "ZeroMQ context");
    net->ctx = zmq_ctx_new();
    if (!net->ctx) {
        free(net);
        return wn_fail(err, WN_EIO, "ZeroMQ context: %s", zmq_strerror(errno));
    }
    pthread_mutex_init(&net->lock, NULL);
    *out = net;
    return WN_OK;
}

void wn_net_destroy(struct wn_net *net)
{
    if (!net) return;
    wn_auth_destroy(net->auth);
    while (zmq_ctx_term(net->ctx) != 0 && errno == EINTR) continue;
    pthread_mutex_destroy(&net->lock);
    free(net);
}

static int or_default(int value, int fallback)
{
    return value == 0 ? fallback : value;
}

static wn_status set_int(void *socket, int option, int value, struct wn_err *err)
{
    if (zmq_setsockopt(socket, option, &value, sizeof(value)) == 0) return WN_OK;
    return wn_fail(err, WN_EINVAL, "ZeroMQ option %d = %d: %s", option, value, zmq_strerror(errno));
}

static wn_status set_key(void *socket, int option, const char *key, const char *which, struct wn_err *err)
{
    if (strlen(key) == WN_CURVE_KEY_CHARS - 1 && zmq_setsockopt(socket, option, key, WN_CURVE_KEY_CHARS) == 0) {
        return WN_OK;
    }
    return wn_fail(err, WN_EINVAL, "%s is not a key (40 characters of Z85)", which); /* never print a key */
}

/* The largest frame that ZeroMQ takes from a connection: its own must fit, and ours as they travel. */
static wn_status set_frame_max(struct wn_endpoint *ep, const struct wn_endpoint_opts *o, struct wn_err *err)
{
    int64_t largest = 0;

    for (int i = 0; i < WN_MSG_FRAMES_MAX; i++) {
        ep->frame_max[i] = o->frame_max[i];
        if (o->frame_max[i] > (size_t)largest) largest = (int64_t)o->frame_max[i];
    }
    if (o->frame_max[0] == 0) return wn_fail(err, WN_EINVAL, "no limit is set for frame 0");
    if (o->frame_max[0] > WN_CHUNK_BYTES)
        return wn_fail(err, WN_EINVAL, "frame 0 of %zu bytes: it travels in one piece", o->frame_max[0]);
    if (largest > (int64_t)WN_CHUNK_BYTES) largest = WN_CHUNK_BYTES;
    if (o->curve.secret_key || o->curve.server_key) largest += CURVE_BYTES;
    if (largest < COMMAND_MAX) largest = COMMAND_MAX;
    if (zmq_setsockopt(ep->socket, ZMQ_MAXMSGSIZE, &largest, sizeof(largest)) == 0) return WN_OK;
    return wn_fail(err, WN_EINVAL, "largest frame of %lld bytes", (long long)largest);
}

static wn_status set_limits(struct wn_endpoint *ep, const struct wn_endpoint_opts *o, struct wn_err *err)
{
    int beat = or_default(o->heartbeat_ms, 2000), silence = or_default(o->heartbeat_timeout_ms, beat * 4);
    wn_status rc = set_frame_max(ep, o, err);

    const int table[][2] = {
        {ZMQ_SNDHWM, or_default(o->send_queue_max, 1000)}, {ZMQ_RCVHWM, or_default(o->recv_queue_max, 1000)},
        {ZMQ_LINGER, o->linger_ms},                        {ZMQ_IPV6, 0},
        {ZMQ_HANDSHAKE_IVL, or_default(o->handshake_ms, HANDSHAKE_MS)},
        {ZMQ_BACKLOG, BACKLOG},
        {ZMQ_RECONNECT_IVL, or_default(o->reconnect_ms, 50)},
        {ZMQ_RECONNECT_IVL_MAX, or_default(o->reconnect_max_ms, 2000)},
    };
    for (size_t i = 0; rc == WN_OK && i < sizeof(table) / sizeof(table[0]); i++) {
        rc = set_int(ep->socket, table[i][0], table[i][1], err);
    }
    if (rc == WN_OK && beat > 0) rc = set_int(ep->socket, ZMQ_HEARTBEAT_IVL, beat, err);
    if (rc == WN_OK && beat > 0) rc = set_int(ep->socket, ZMQ_HEARTBEAT_TIMEOUT, silence, err);
    if (rc == WN_OK && beat > 0) rc = set_int(ep->socket, ZMQ_HEARTBEAT_TTL, silence, err);
    if (rc == WN_OK && ep->type == WN_ENDPOINT_ROUTER) {
        rc = set_int(ep->socket, ZMQ_ROUTER_MANDATORY, 1, err);
        if (rc == WN_OK && o->handover) rc = set_int(ep->socket, ZMQ_ROUTER_HANDOVER, 1, err);
    } else if (rc == WN_OK && !o->bind) {
        rc = set_int(ep->socket, ZMQ_IMMEDIATE, 1, err); /* nothing is queued for a server that is not there */
    }
    if (rc == WN_OK && o->identity) {
        size_t n = strlen(o->identity);
        if (ep->type != WN_ENDPOINT_DEALER || n < 1 || n > WN_PEER_ID_MAX ||
            zmq_setsockopt(ep->socket, ZMQ_ROUTING_ID, o->identity, n) != 0) {
            rc = wn_fail(err, WN_EINVAL, "'%s' cannot be an identity (a DEALER's, 1 to %d characters)", o->identity,
                         WN_PEER_ID_MAX);
        }
    }
    return rc;
}

/* Clients that are not in the list are turned away in the handshake. */
static wn_status set_allowed(struct wn_endpoint *ep, const struct wn_curve_opts *c, struct wn_err *err)
{
    char name[WN_AUTH_DOMAIN_CHARS];
    wn_status rc = WN_OK;

    pthread_mutex_lock(&ep->net->lock);
    if (!ep->net->auth) rc = wn_auth_create(&ep->net->auth, ep->net->ctx, err);
    pthread_mutex_unlock(&ep->net->lock);
    if (rc != WN_OK) return rc;
    rc = wn_auth_allow(ep->net->auth, c->allowed, c->allowed_n, &ep->domain, err);
    if (rc != WN_OK) return rc;
    wn_auth_domain_name(ep->domain, name);
    if (zmq_setsockopt(ep->socket, ZMQ_ZAP_DOMAIN, name, strlen(name)) != 0) {
        return wn_fail(err, WN_EIO, "ZeroMQ authentication: %s", zmq_strerror(errno));
    }
    return WN_OK;
}

static wn_status set_keys(struct wn_endpoint *ep, const struct wn_curve_opts *c, struct wn_err *err)
{
    char public_key[WN_CURVE_KEY_CHARS], secret_key[WN_CURVE_KEY_CHARS];
    const char *pub = c->public_key, *sec = c->secret_key;
    wn_status rc;

    if (!c->server && !c->secret_key && !c->server_key) {
        return c->public_key || c->allowed
                   ? wn_fail(err, WN_EINVAL, "keys are given, but neither the own secret key nor the server's")
                   : WN_OK; /* plain text */
    }
    if (!zmq_has("curve")) return wn_fail(err, WN_EUNSUPP, "this ZeroMQ was built without CURVE");
    if (c->server) {
        if (!c->secret_key) return wn_fail(err, WN_EINVAL, "a server with keys needs its secret key");
        if ((rc = set_int(ep->socket, ZMQ_CURVE_SERVER, 1, err)) != WN_OK) return rc;
        rc = set_key(ep->socket, ZMQ_CURVE_SECRETKEY, c->secret_key, "the server's secret key", err);
        return rc == WN_OK && c->allowed ? set_allowed(ep, c, err) : rc;
    }
    if (!c->server_key) return wn_fail(err, WN_EINVAL, "a client with keys needs the server's public key");
    if (!sec) { /* a key for this connection: the server proves itself, the client does not */
        if ((rc = wn_curve_keypair(public_key, secret_key, err)) != WN_OK) return rc;
        pub = public_key;
        sec = secret_key;
    } else if (!pub) {
        if (zmq_curve_public(public_key, sec) != 0) return wn_fail(err, WN_EINVAL, "the secret key is not a key");
        pub = public_key;
    }
    rc = set_key(ep->socket, ZMQ_CURVE_SERVERKEY, c->server_key, "the server's public key", err);
    if (rc == WN_OK) rc = set_key(ep->socket, ZMQ_CURVE_PUBLICKEY, pub, "the public key", err);
    if (rc == WN_OK) rc = set_key(ep->socket, ZMQ_CURVE_SECRETKEY, sec, "the secret key", err);
    explicit_bzero(secret_key, sizeof(secret_key));
    return rc;
}

/* ZeroMQ takes a socket file over from whoever serves it: look first. A file that nobody serves is fine. */
static bool ipc_in_use(const char *address)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    const char *path = strncmp(address, "ipc://", 6) == 0 ? address + 6 : "";
    int fd;
    bool used;

    if (path[0] == '\0' || path[0] == '@' || path[0] == '*' || strlen(path) >= sizeof(to.sun_path)) return false;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return false;
    snprintf(to.sun_path, sizeof(to.sun_path), "%s", path);
    used = connect(fd, (struct sockaddr *)&to, sizeof(to)) == 0 || errno == EAGAIN;
    close(fd);
    return used;
}

static wn_status address_failed(const char *address, bool bind, int code, struct wn_err *err)
{
    switch (code) {
    case EADDRINUSE: return wn_fail(err, WN_EIO, "%s is in use by another process", address);
    case EADDRNOTAVAIL:
    case ENODEV:
        return wn_fail(err, WN_EIO, "%s is not an address of this machine (a number or an interface name)", address);
    case EINVAL:
    case EPROTONOSUPPORT:
    case ENOCOMPATPROTO:
        return wn_fail(err, WN_EINVAL, "%s is not an address (tcp://HOST:PORT or ipc://PATH)", address);
    case EACCES: return wn_fail(err, WN_EIO, "%s: permission denied", address);
    default:
        return wn_fail(err, WN_EIO, "%s %s: %s", bind ? "listen on" : "connect to", address, zmq_strerror(code));
    }
}

/* ZeroMQ takes port 70000 for 4464: the number is checked here. */
static bool port_ok(const char *address, bool bind)
{
    const char *port;
    char *end = NULL;
    long n;

    if (strncmp(address, "tcp://", 6) != 0) return true; /* ZeroMQ knows about the others */
    port = strrchr(address, ':') + 1;
    if (bind && strcmp(port, "*") == 0) return true;
    n = strtol(port, &end, 10);
    return port[0] >= '0' && port[0] <= '9' && *end == '\0' && n <= 65535 && n >= (bind ? 0 : 1);
}

static wn_status attach(struct wn_endpoint *ep, const struct wn_endpoint_opts *o, struct wn_err *err)
{
    size_t room = sizeof(ep->address);
    int rc;

    if (strncmp(o->address, "tcp://", 6) != 0 && !wn_address_is_local(o->address))
        return address_failed(o->address, o->bind, EPROTONOSUPPORT, err);
    if (!wn_address_is_local(o->address) && !o->insecure && !o->curve.secret_key && !o->curve.server_key)
        return wn_fail(err, WN_EAUTH, "%s is not on this machine, and there are no keys for it", o->address);
    if (!port_ok(o->address, o->bind)) return address_failed(o->address, o->bind, EINVAL, err);
    if (o->bind && ipc_in_use(o->address)) return address_failed(o->address, true, EADDRINUSE, err);
    rc = o->bind ? zmq_bind(ep->socket, o->address) : zmq_connect(ep->socket, o->address);
    if (rc != 0) return address_failed(o->address, o->bind, errno, err);
    if (zmq_getsockopt(ep->socket, ZMQ_LAST_ENDPOINT, ep->address, &room) != 0) {
        return wn_fail(err, WN_EIO, "%s: %s", o->address, zmq_strerror(errno));
    }
    return WN_OK;
}

/* Connections' events come through a socket of its own, inside the process. */
static wn_status watch(struct wn_endpoint *ep, struct wn_err *err)
{
    char name[64];
    wn_status rc;
    const int events = ZMQ_EVENT_ACCEPTED | ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL |
                       ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH | ZMQ_EVENT_DISCONNECTED;

    snprintf(name, sizeof(name), "inproc://wn-watch-%u", atomic_fetch_add(&ep->net->names, 1));
    if (zmq_socket_monitor(ep->socket, name, events) != 0) goto failed;
    ep->monitor = zmq_socket(ep->net->ctx, ZMQ_PAIR);
    if (!ep->monitor) goto failed;
    if ((rc = set_int(ep->monitor, ZMQ_LINGER, 0, err)) != WN_OK) return rc;
    if (zmq_connect(ep->monitor, name) == 0) return WN_OK;
failed:
    return wn_fail(err, WN_EIO, "ZeroMQ monitor: %s", zmq_strerror(errno));
}

static bool get_fd(void *socket, int *fd)
{
    size_t room = sizeof(*fd);

    return zmq_getsockopt(socket, ZMQ_FD, fd, &room) == 0;
}

wn_status wn_endpoint_open(struct wn_endpoint **out, struct wn_net *net, const struct wn_endpoint_opts *o,
                           struct wn_err *err)
{
    struct wn_endpoint *ep = calloc(1, sizeof(*ep));
    size_t message_max = 0;
    wn_status rc = WN_OK;

    if (!ep) {
        rc = wn_fail(err, WN_ENOMEM, "%s: endpoint", o->address);
        goto out;
    }
    ep->net = net;
    ep->type = o->type;
    ep->thread = pthread_self();
    ep->socket = zmq_socket(net->ctx, o->type == WN_ENDPOINT_ROUTER ? ZMQ_ROUTER : ZMQ_DEALER);
    if (!ep->socket) {
        rc = wn_fail(err, WN_EIO, "%s: socket: %s", o->address, zmq_strerror(errno));
        goto out;
    }
    rc = set_limits(ep, o, err);
    if (rc == WN_OK && o->bind && strncmp(o->address, "tcp://", 6) == 0) {
        for (int i = 0; i < WN_MSG_FRAMES_MAX; i++) message_max += o->frame_max[i];
        rc = wn_watch_create(&ep->watch, message_max, err);
    }
    if (rc == WN_OK) rc = set_keys(ep, &o->curve, err);
    if (rc == WN_OK && strncmp(o->address, "inproc:", 7) != 0) rc = watch(ep, err);
    if (rc != WN_OK) {
        wn_err_prefix(err, "%s", o->address);
        goto out;
    }
    if ((rc = attach(ep, o, err)) != WN_OK) goto out;
    if (!get_fd(ep->socket, &ep->fd) || (ep->monitor && !get_fd(ep->monitor, &ep->monitor_fd))) {
        rc = wn_fail(err, WN_EIO, "%s: descriptor: %s", o->address, zmq_strerror(errno));
        goto out;
    }
    *out = ep;
    ep = NULL;
out:
    wn_endpoint_close(ep);
    return rc;
}

void wn_endpoint_close(struct wn_endpoint *ep)
{
    if (!ep) return;
    WN_ASSERT(pthread_equal(ep->thread, pthread_self()));
    if (ep->monitor) {
        zmq_socket_monitor(ep->socket, NULL, 0);
        zmq_close(ep->monitor);
    }
    if (ep->socket) zmq_close(ep->socket);
    if (ep->domain) wn_auth_forget(ep->net->auth, ep->domain);
    wn_watch_destroy(ep->watch);
    free(ep);
}

wn_status wn_curve_keypair(char public_key[WN_CURVE_KEY_CHARS], char secret_key[WN_CURVE_KEY_CHARS],
                           struct wn_err *err)
{
    if (zmq_curve_keypair(public_key, secret_key) == 0) return WN_OK;
    return wn_fail(err, WN_EUNSUPP, "key pair: %s", zmq_strerror(errno));
}
