/* transport/endpoint_watch.c - see endpoint_watch.h. */
#include "transport/endpoint_watch.h"

#include <linux/tcp.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/log.h"

#define KEPT_MIN   32 /* descriptors for others, and one in KEPT_PART */
#define KEPT_PART  8
#define LOOK_US    250000ll
#define TELL_US    1000000ll /* between two records about the same */
#define SLACK      ((uint64_t)16 << 20) /* ZeroMQ's own frames; what has come and was not looked at */

struct connection {
    bool there;
    uint64_t at; /* bytes that it had brought when its last whole message was received */
};

struct wn_watch {
    uint64_t message_max;
    int descriptors; /* that connections may have */
    struct connection *connections; /* [room], by descriptor */
    int room, top;                  /* top: behind the last one that is there */
    int64_t look_us, told_us;
    unsigned refused; /* and not told of */
};

/* The limit may be raised while we run. */
static int descriptors_for_connections(void)
{
    struct rlimit files;
    rlim_t kept;

    if (getrlimit(RLIMIT_NOFILE, &files) != 0 || files.rlim_cur > INT32_MAX) return INT32_MAX;
    kept = files.rlim_cur / KEPT_PART > KEPT_MIN ? files.rlim_cur / KEPT_PART : KEPT_MIN;
    return files.rlim_cur > kept ? (int)(files.rlim_cur - kept) : 0;
}

/* 0: not a TCP connection any more. */
static uint64_t bytes_brought(int fd)
{
    struct tcp_info info = {0};
    socklen_t n = sizeof(info);

    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &n) != 0) return 0;
    return n >= offsetof(struct tcp_info, tcpi_bytes_received) + sizeof(info.tcpi_bytes_received)
               ? info.tcpi_bytes_received
               : 0;
}

wn_status wn_watch_create(struct wn_watch **out, size_t message_max, struct wn_err *err)
{
    struct wn_watch *w = calloc(1, sizeof(*w));

    if (!w) return wn_fail(err, WN_ENOMEM, "watch over connections");
    w->message_max = message_max + SLACK;
    w->descriptors = descriptors_for_connections();
    *out = w;
    return WN_OK;
}

void wn_watch_destroy(struct wn_watch *w)
{
    if (!w) return;
    free(w->connections);
    free(w);
}

static struct connection *find(struct wn_watch *w, int fd)
{
    return w && fd >= 0 && fd < w->top && w->connections[fd].there ? &w->connections[fd] : NULL;
}

static bool grow(struct wn_watch *w, int fd)
{
    struct connection *more;
    const int room = 2 * (fd + 32);

    if (fd < w->room) return true;
    if (!(more = realloc(w->connections, (size_t)room * sizeof(*more)))) return false;
    for (int i = w->room; i < room; i++) more[i] = (struct connection){0};
    w->connections = more;
    w->room = room;
    return true;
}

bool wn_watch_taken(struct wn_watch *w, int fd)
{
    const int64_t now_us = wn_now_us();

    if (!w || fd < 0) return true;
    if (fd < w->descriptors && grow(w, fd)) {
        w->connections[fd] = (struct connection){.there = true, .at = bytes_brought(fd)};
        if (fd >= w->top) w->top = fd + 1;
        return true;
    }
    shutdown(fd, SHUT_RDWR);
    w->refused++;
    if (w->told_us && now_us - w->told_us < TELL_US) return false;
    wn_warn("endpoint", "too many connections for the open files that are allowed (ulimit -n): refused %u", w->refused);
    w->told_us = now_us;
    w->refused = 0;
    return false;
}

void wn_watch_ended(struct wn_watch *w, int fd)
{
    struct connection *c = find(w, fd);

    if (!c) return;
    c->there = false;
    while (w->top > 0 && !w->connections[w->top - 1].there) w->top--;
}

void wn_watch_whole(struct wn_watch *w, int fd)
{
    struct connection *c = find(w, fd);

    if (c) c->at = bytes_brought(fd);
}

unsigned wn_watch_look(struct wn_watch *w, int64_t now_us)
{
    unsigned n = 0;

    if (!w || now_us < w->look_us) return 0;
    w->look_us = now_us + LOOK_US;
    for (int fd = 0; fd < w->top; fd++) {
        struct connection *c = find(w, fd);
        if (!c || bytes_brought(fd) <= c->at + w->message_max) continue;
        wn_warn("endpoint", "a message of more than %llu bytes does not end: its connection is closed",
                (unsigned long long)w->message_max);
        shutdown(fd, SHUT_RDWR);
        wn_watch_ended(w, fd);
        n++;
    }
    return n;
}
