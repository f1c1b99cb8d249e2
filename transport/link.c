/* transport/link.c - see link.h: the table of links, and the checks that all of them share. */
#include "transport/link.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "transport/device.h"
#include "transport/link_impl.h"

static const struct wn_link_ops *const links[] = {&wn_link_local, &wn_link_mpi, NULL};

wn_status wn_link_open(struct wn_link **out, const char *name, const struct wn_group *group, struct wn_err *err)
{
    char known[64] = "";

    for (int i = 0; links[i]; i++) {
        const struct wn_link_ops *ops = links[i];
        WN_ASSERT(ops->name && ops->open && ops->close && ops->send && ops->recv && ops->wait &&
                  ops->withdraw);
        if (strcmp(ops->name, name) == 0) return ops->open(out, group, err);
        size_t used = strlen(known);
        snprintf(known + used, sizeof(known) - used, "%s%s", i ? ", " : "", ops->name);
    }
    return wn_fail(err, WN_ENOENT, "there is no link '%s' (known: %s)", name, known);
}

void wn_link_close(struct wn_link *link)
{
    if (!link) return;
    if (link->device) link->device->ops->close(link);
    link->ops->close(link);
}

void wn_link_cancel(struct wn_link *link)
{
    atomic_store(&link->cancelled, true);
    if (link->ops->wake) link->ops->wake(link);
    if (link->device) link->device->ops->cancel(link);
}

wn_status wn_link_init(struct wn_link *link, const struct wn_link_ops *ops, int rank, int size, struct wn_err *err)
{
    if (size < 1 || size > WN_LINK_RANKS_MAX || rank < 0 || rank >= size) {
        return wn_fail(err, WN_EINVAL, "%s link: rank %d of %d (1 to %d ranks)", ops->name, rank, size,
                       WN_LINK_RANKS_MAX);
    }
    link->ops = ops;
    link->rank = rank;
    link->size = size;
    atomic_init(&link->cancelled, false);
    link->meters = calloc((size_t)size, sizeof(*link->meters));
    if (!link->meters) return wn_fail(err, WN_ENOMEM, "%s link: counters of %d ranks", ops->name, size);
    return WN_OK;
}

void wn_link_fini(struct wn_link *link)
{
    free(link->meters);
    free(link->scratch);
    link->meters = NULL;
    link->scratch = NULL;
}

static wn_status link_check(struct wn_link *link, struct wn_route route, const void *data, size_t bytes)
{
    if (atomic_load_explicit(&link->cancelled, memory_order_relaxed)) {
        return wn_fail(&link->error, WN_ECANCEL, "%s link: cancelled", link->ops->name);
    }
    if (route.peer < 0 || route.peer >= link->size || route.peer == link->rank) {
        return wn_fail(&link->error, WN_EINVAL, "%s link: rank %d cannot speak to rank %d of %d", link->ops->name,
                       link->rank, route.peer, link->size);
    }
    if (route.tag >= WN_LINK_TAGS_ALL || (unsigned)route.kind >= WN_TRAFFIC_N) {
        return wn_fail(&link->error, WN_EINVAL, "%s link: tag %u, kind %d", link->ops->name, route.tag,
                       (int)route.kind);
    }
    if (bytes > WN_LINK_BYTES_MAX) {
        return wn_fail(&link->error, WN_ELIMIT, "%s link: a message of %zu bytes (at most %zu)", link->ops->name,
                       bytes, WN_LINK_BYTES_MAX);
    }
    if (!data && bytes) {
        return wn_fail(&link->error, WN_EINVAL, "%s link: %zu bytes at NULL", link->ops->name, bytes);
    }
    return WN_OK;
}

wn_status wn_link_send(struct wn_link *link, struct wn_route to, const void *data, size_t bytes, wn_op *op)
{
    wn_status rc = link_check(link, to, data, bytes);

    *op = WN_OP_NONE;
    if (rc == WN_OK) rc = link->ops->send(link, to, data, bytes, op);
    if (rc == WN_OK) wn_traffic_sent(&link->meters[to.peer], to.kind, bytes);
    return rc;
}

wn_status wn_link_recv(struct wn_link *link, struct wn_route from, void *data, size_t room, wn_op *op)
{
    wn_status rc = link_check(link, from, data, room);

    *op = WN_OP_NONE;
    return rc == WN_OK ? link->ops->recv(link, from, data, room, op) : rc;
}

wn_status wn_link_wait(struct wn_link *link, wn_op op, size_t *bytes, int64_t deadline_us)
{
    size_t got = 0;
    wn_status rc;

    if (deadline_us < 0) deadline_us = 0; /* WN_LINK_POLL is not for callers */
    rc = op == WN_OP_NONE ? WN_OK : link->ops->wait(link, op, &got, deadline_us);
    if (bytes) *bytes = got;
    return rc;
}

wn_status wn_link_test(struct wn_link *link, wn_op op, bool *done, size_t *bytes)
{
    size_t got = 0;
    wn_status rc = op == WN_OP_NONE ? WN_OK : link->ops->wait(link, op, &got, WN_LINK_POLL);

    *done = rc != WN_ETIME;
    if (bytes) *bytes = got;
    return rc == WN_ETIME ? WN_OK : rc;
}

wn_status wn_link_withdraw(struct wn_link *link, wn_op op, int64_t deadline_us)
{
    return op == WN_OP_NONE ? WN_OK : link->ops->withdraw(link, op, deadline_us);
}

wn_status wn_link_send_now(struct wn_link *link, struct wn_route to, const void *data, size_t bytes,
                           int64_t deadline_us)
{
    wn_op op;
    wn_status rc = wn_link_send(link, to, data, bytes, &op);

    return rc == WN_OK ? wn_link_wait(link, op, NULL, deadline_us) : rc;
}

wn_status wn_link_wait_exact(struct wn_link *link, wn_op op, struct wn_route from, size_t bytes,
                             int64_t deadline_us)
{
    size_t got;
    wn_status rc = wn_link_wait(link, op, &got, deadline_us);

    if (rc == WN_OK && got != bytes) {
        rc = wn_fail(&link->error, WN_EPROTO, "%s link: rank %d sent %zu bytes of %s (tag %u), not %zu",
                     link->ops->name, from.peer, got, wn_traffic_name(from.kind), from.tag, bytes);
    }
    return rc;
}

wn_status wn_link_recv_now(struct wn_link *link, struct wn_route from, void *data, size_t bytes,
                           int64_t deadline_us)
{
    wn_op op;
    wn_status rc = wn_link_recv(link, from, data, bytes, &op);

    return rc == WN_OK ? wn_link_wait_exact(link, op, from, bytes, deadline_us) : rc;
}

wn_status wn_link_op_failed(struct wn_link *link, wn_status code, struct wn_route route, bool send, const char *why)
{
    return wn_fail(&link->error, code, "%s link: rank %d, %s of %s (tag %u) %s rank %d: %s", link->ops->name,
                   link->rank, send ? "send" : "receive", wn_traffic_name(route.kind), route.tag,
                   send ? "to" : "from", route.peer, why);
}

void wn_link_traffic(const struct wn_link *link, int peer, struct wn_traffic_table *table)
{
    for (int i = 0; i < link->size; i++) {
        if (peer < 0 || peer == i) wn_traffic_snapshot(&link->meters[i], table);
    }
}
