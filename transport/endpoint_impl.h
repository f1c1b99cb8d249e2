/* transport/endpoint_impl.h - inside of an endpoint, for endpoint.c and endpoint_open.c. */
#ifndef WN_TRANSPORT_ENDPOINT_IMPL_H
#define WN_TRANSPORT_ENDPOINT_IMPL_H

#include <pthread.h>
#include <stdatomic.h>

#include "transport/endpoint.h"

struct wn_net {
    void *ctx;
    struct wn_auth *auth; /* checks clients' keys; NULL until an endpoint needs it */
    pthread_mutex_t lock; /* of auth */
    atomic_uint names;    /* for what needs a name of its own inside the process */
};

struct wn_endpoint {
    struct wn_net *net;
    void *socket;
    void *monitor; /* what happens to connections; NULL for inproc, which has none */
    int fd, monitor_fd; /* readable when ZeroMQ has something to tell the sockets */
    bool drained;  /* the last look found nothing to receive: until fd is readable there is nothing */
    bool watched;  /* the same of the monitor */
    wn_endpoint_type type;
    size_t frame_max[WN_MSG_FRAMES_MAX];
    pthread_t thread;
    struct wn_traffic_meter meter;
    struct wn_endpoint_stats stats;
    struct wn_watch *watch; /* over connections that others make by TCP; else NULL */
    unsigned domain; /* in net->auth, if keys are checked; else 0 */
    char address[256];
};

#endif
