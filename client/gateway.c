/* client/gateway.c - start, the one loop, and the end of the gateway; see gateway.h. */
#include "client/gateway.h"

#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define CONNECT_MS 2000
#define TICK_MS    250
#define AWAY_MS    50  /* between two tries to hear the service */
#define EVENTS_MAX 256 /* of the service between two looks at sockets */
#define RETRY_S    5

/* ---- start ---- */

static wn_status listen_at(struct gateway *g, const struct addrinfo *a, struct wn_err *err)
{
    const int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), on = 1;

    if (fd >= 0) (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (fd < 0 || bind(fd, a->ai_addr, a->ai_addrlen) != 0 || listen(fd, SOMAXCONN) != 0) {
        wn_fail(err, WN_EIO, "cannot listen on %s port %u: %s", g->opts.host, g->opts.port, strerror(errno));
        if (fd >= 0) close(fd);
        return WN_EIO;
    }
    g->listener = fd;
    return WN_OK;
}

static wn_status open_listener(struct gateway *g, struct wn_err *err)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *found = NULL;
    char port[8];
    wn_status rc;
    int e;

    snprintf(port, sizeof(port), "%u", g->opts.port);
    if ((e = getaddrinfo(g->opts.host, port, &hints, &found)) != 0)
        return wn_fail(err, WN_EINVAL, "--host %.100s: %s", g->opts.host, gai_strerror(e));
    rc = listen_at(g, found, err);
    freeaddrinfo(found);
    return rc;
}

static uint16_t port_of(int fd)
{
    struct sockaddr_storage a;
    socklen_t n = sizeof(a);
    char port[8] = "";

    if (getsockname(fd, (struct sockaddr *)&a, &n) != 0 ||
        getnameinfo((struct sockaddr *)&a, n, NULL, 0, port, sizeof(port), NI_NUMERICSERV) != 0)
        return 0;
    return (uint16_t)strtoul(port, NULL, 10);
}

/* Signals come as a descriptor: no call is cut short by them. */
static wn_status open_waits(struct gateway *g, struct wn_err *err)
{
    struct epoll_event event = {.events = EPOLLIN};
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    g->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    g->epoll = epoll_create1(EPOLL_CLOEXEC);
    event.data.ptr = &g->signals;
    if (g->signals < 0 || g->epoll < 0 || epoll_ctl(g->epoll, EPOLL_CTL_ADD, g->signals, &event) != 0)
        return wn_fail(err, WN_EIO, "epoll: %s", strerror(errno));
    return WN_OK;
}

/* The watch knows whether a service is there, so that connecting does not wait for one. Open jobs wait for one that
 * went away, for ever: for how long their readers do is ours to say. */
static void look(struct gateway *g)
{
    const struct winnow_options options = {.connect_timeout_ms = CONNECT_MS, .reconnect_timeout_ms = UINT32_MAX};

    gateway_watch_look(g->watch, &g->service);
    if (!g->w && g->service.answers) (void)!winnow_connect(&g->w, g->opts.endpoint, &options);
}

static wn_status start(struct gateway *g, struct wn_err *err)
{
    struct epoll_event event = {.events = EPOLLIN};
    wn_status rc;
    int fd;

    if ((rc = open_waits(g, err)) != WN_OK) return rc;
    if ((rc = open_listener(g, err)) != WN_OK) return rc;
    if ((rc = gateway_watch_start(&g->watch, g->opts.endpoint, err)) != WN_OK) return rc;
    look(g);
    if (!g->w) fprintf(stderr, "winnow: %s; answering 503 until it is there\n", g->service.why);
    if ((rc = gateway_http_start(g, err)) != WN_OK) return rc;
    fd = MHD_get_daemon_info(g->http, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd;
    event.data.ptr = g->http;
    if (epoll_ctl(g->epoll, EPOLL_CTL_ADD, fd, &event) != 0)
        return wn_fail(err, WN_EIO, "epoll: %s", strerror(errno));
    printf("winnow: gateway to %s, ready at http://%s%s%s:%u\n", g->opts.endpoint,
           strchr(g->opts.host, ':') ? "[" : "", g->opts.host, strchr(g->opts.host, ':') ? "]" : "",
           port_of(g->listener));
    fflush(stdout);
    return WN_OK;
}

/* ---- the loop ---- */

/* SIGTERM: takes nothing new. A second one, or the time for it, ends what still runs. */
static void on_signal(struct gateway *g)
{
    struct signalfd_siginfo info;
    int fd;

    while (read(g->signals, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
        g->drained_us = g->draining ? wn_now_us() : wn_deadline_in_us((int64_t)g->opts.drain_s * 1000000);
        g->draining = true;
    }
    if (!g->draining || g->listener < 0) return;
    if ((fd = MHD_quiesce_daemon(g->http)) >= 0) close(fd);
    g->listener = -1;
}

/* The tags of the set are the daemon, the signals, and requests whose readers have hung up. */
static void on_epoll(struct gateway *g)
{
    struct epoll_event events[64];
    const int n = epoll_wait(g->epoll, events, 64, 0);

    for (int i = 0; i < n; i++) {
        void *tag = events[i].data.ptr;
        if (tag == &g->signals)
            on_signal(g);
        else if (tag != g->http)
            gateway_hang_up(tag);
    }
    MHD_run(g->http);
}

static void fail_all(struct gateway *g, const char *why)
{
    struct gateway_request *next;

    for (struct gateway_request *r = g->requests; r; r = next) {
        next = r->next;
        if (r->job) gateway_chat_fail(r, 503, why, RETRY_S);
    }
}

static void tick(struct gateway *g)
{
    look(g);
    if (g->service.away_us && wn_now_us() - g->service.away_us > (int64_t)g->opts.away_s * 1000000)
        fail_all(g, g->service.why);
    gateway_http_check_time(g);
}

/* Waits for anything, and takes what the service says. */
static void wait_for_events(struct gateway *g)
{
    struct pollfd p = {.fd = g->epoll, .events = POLLIN};
    struct winnow_event ev;
    MHD_UNSIGNED_LONG_LONG http_ms;
    int ms = TICK_MS, got = WINNOW_ECONNECT;

    if (MHD_get_timeout(g->http, &http_ms) == MHD_YES && http_ms < TICK_MS) ms = (int)http_ms;
    if (g->w) got = winnow_next_or(g->w, &ev, g->epoll, ms);
    for (int i = 0; got == WINNOW_OK && i < EVENTS_MAX; i++) {
        gateway_chat_event(g, &ev);
        got = winnow_next(g->w, &ev, 0);
    }
    if (got == WINNOW_OK)
        gateway_chat_event(g, &ev);
    else if (got != WINNOW_TIMEOUT)
        poll(&p, 1, ms < AWAY_MS ? ms : AWAY_MS); /* it is away, and says so at once */
}

static void run(struct gateway *g)
{
    int64_t tick_us = 0;

    while (!g->draining || (g->requests && !wn_deadline_passed(g->drained_us))) {
        if (wn_deadline_passed(tick_us)) {
            tick(g);
            tick_us = wn_deadline_in_us((int64_t)TICK_MS * 1000);
        }
        on_epoll(g);
        wait_for_events(g);
    }
}

/* MHD wants no suspended connection at its end. */
static void stop(struct gateway *g)
{
    struct gateway_request *next;

    for (struct gateway_request *r = g->requests; r; r = next) {
        next = r->next;
        gateway_hang_up(r);
    }
    if (g->http) {
        MHD_run(g->http);
        MHD_stop_daemon(g->http);
    } else if (g->listener >= 0) {
        close(g->listener);
    }
    gateway_watch_stop(g->watch);
    winnow_close(g->w);
    if (g->epoll >= 0) close(g->epoll);
    if (g->signals >= 0) close(g->signals);
}

wn_status gateway_run(const struct gateway_opts *opts, struct wn_err *err)
{
    struct gateway g = {.opts = *opts, .listener = -1, .epoll = -1, .signals = -1};
    wn_status rc = start(&g, err);

    if (rc == WN_OK) run(&g);
    stop(&g);
    return rc;
}
