/* transport/local.c - ranks are threads of one process. Messages are matched under the hub's one lock: a receive that
 * waits gets the bytes at once; else a small message is copied into the receiver's queue (a bounded one) and a large
 * one stays with its sender until the receive comes. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "transport/backoff.h"
#include "transport/link_impl.h"
#include "transport/op_table.h"

#define EAGER_BYTES_MAX ((size_t)64 << 10) /* larger messages wait for their receive */
#define QUEUE_BYTES_MAX ((size_t)1 << 20)  /* copied messages of one pair of ranks */

struct local_op;

struct message {
    struct message *next;
    struct local_op *sender; /* NULL: a copy, its bytes follow this header */
    uint32_t tag;
    wn_traffic kind;
    size_t bytes;
};

struct local_op {
    struct local_op *next; /* among the posted receives of a pair */
    struct message message; /* of a send that waits for its receive */
    struct wn_route route;
    const void *from; /* send */
    void *to;         /* receive */
    size_t bytes;     /* send: size; receive: room, then size */
    bool send, done;
    wn_status status;
};

/* What goes from one rank to another. */
struct pair {
    struct message *first, **end; /* sent, not received */
    struct local_op *posted, **posted_end;
    size_t copied_bytes;
};

struct place {
    pthread_cond_t changed; /* an operation of this rank is over, or somebody left */
    atomic_uint changes;
    bool joined, left;
};

struct wn_local_hub {
    pthread_mutex_t lock;
    int size;
    struct place *places; /* [size] */
    struct pair *pairs;   /* [size to, size from] */
};

struct local_link {
    struct wn_link base;
    struct wn_local_hub *hub;
    struct wn_op_table table;
    struct local_op ops[WN_LINK_OPS_MAX];
};

static struct pair *pair_of(struct wn_local_hub *hub, int from, int to)
{
    return &hub->pairs[(size_t)to * (size_t)hub->size + (size_t)from];
}

wn_status wn_local_hub_create(struct wn_local_hub **out, int size, struct wn_err *err)
{
    struct wn_local_hub *hub = NULL;
    pthread_condattr_t attr;
    pthread_mutexattr_t lock_attr;

    if (size < 1 || size > WN_LINK_RANKS_MAX) {
        return wn_fail(err, WN_EINVAL, "local hub: %d ranks (1 to %d)", size, WN_LINK_RANKS_MAX);
    }
    hub = calloc(1, sizeof(*hub));
    if (hub) {
        hub->places = calloc((size_t)size, sizeof(*hub->places));
        hub->pairs = calloc((size_t)size * (size_t)size, sizeof(*hub->pairs));
    }
    if (!hub || !hub->places || !hub->pairs) {
        if (hub) {
            free(hub->places);
            free(hub->pairs);
        }
        free(hub);
        return wn_fail(err, WN_ENOMEM, "local hub of %d ranks", size);
    }
    hub->size = size;
    pthread_mutexattr_init(&lock_attr); /* none of these can fail on Linux */
    pthread_mutexattr_settype(&lock_attr, PTHREAD_MUTEX_ADAPTIVE_NP); /* held for microseconds: spin a little */
    pthread_mutex_init(&hub->lock, &lock_attr);
    pthread_mutexattr_destroy(&lock_attr);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    for (int i = 0; i < size; i++) pthread_cond_init(&hub->places[i].changed, &attr);
    pthread_condattr_destroy(&attr);
    for (size_t i = 0; i < (size_t)size * (size_t)size; i++) {
        hub->pairs[i].end = &hub->pairs[i].first;
        hub->pairs[i].posted_end = &hub->pairs[i].posted;
    }
    *out = hub;
    return WN_OK;
}

static void pair_clear(struct pair *pair)
{
    while (pair->first) {
        struct message *m = pair->first;
        pair->first = m->next;
        if (!m->sender) free(m);
    }
    pair->end = &pair->first;
    pair->copied_bytes = 0;
    pair->posted = NULL;
    pair->posted_end = &pair->posted;
}

void wn_local_hub_destroy(struct wn_local_hub *hub)
{
    if (!hub) return;
    for (int i = 0; i < hub->size; i++) pthread_cond_destroy(&hub->places[i].changed);
    for (size_t i = 0; i < (size_t)hub->size * (size_t)hub->size; i++) pair_clear(&hub->pairs[i]);
    pthread_mutex_destroy(&hub->lock);
    free(hub->places);
    free(hub->pairs);
    free(hub);
}

static void notify(struct wn_local_hub *hub, int rank)
{
    atomic_fetch_add_explicit(&hub->places[rank].changes, 1, memory_order_release);
    pthread_cond_broadcast(&hub->places[rank].changed);
}

static wn_status local_open(struct wn_link **out, const struct wn_group *group, struct wn_err *err)
{
    struct local_link *l = NULL;
    wn_status rc = WN_OK;

    if (!group->hub || group->size != group->hub->size) {
        return wn_fail(err, WN_EINVAL, "local link: %d ranks, and a hub for %d", group->size,
                       group->hub ? group->hub->size : 0);
    }
    l = calloc(1, sizeof(*l));
    if (!l) return wn_fail(err, WN_ENOMEM, "local link");
    rc = wn_link_init(&l->base, &wn_link_local, group->rank, group->size, err);
    if (rc != WN_OK) goto out;
    wn_op_table_init(&l->table);
    l->hub = group->hub;
    pthread_mutex_lock(&l->hub->lock);
    if (l->hub->places[group->rank].joined) {
        rc = wn_fail(err, WN_EBUSY, "local link: rank %d has joined before", group->rank);
    }
    l->hub->places[group->rank].joined = true;
    pthread_mutex_unlock(&l->hub->lock);
    if (rc != WN_OK) goto out;
    *out = &l->base;
    l = NULL;
out:
    if (l) wn_link_fini(&l->base);
    free(l);
    return rc;
}

/* Takes the messages that lie with this rank's own sends out of a queue. */
static void pair_take_back(struct pair *pair)
{
    struct message **at = &pair->first;

    while (*at) {
        if ((*at)->sender) {
            *at = (*at)->next;
        } else {
            at = &(*at)->next;
        }
    }
    pair->end = at;
}

static void local_close(struct wn_link *link)
{
    struct local_link *l = (struct local_link *)link;
    struct wn_local_hub *hub = l->hub;

    pthread_mutex_lock(&hub->lock);
    hub->places[link->rank].left = true;
    for (int peer = 0; peer < hub->size; peer++) {
        pair_take_back(pair_of(hub, link->rank, peer));
        /* large messages to this rank: their senders learn from `left` that nobody will take them */
        pair_clear(pair_of(hub, peer, link->rank));
        notify(hub, peer);
    }
    pthread_mutex_unlock(&hub->lock);
    wn_link_fini(link);
    free(l);
}

static void local_wake(struct wn_link *link)
{
    struct local_link *l = (struct local_link *)link;

    pthread_mutex_lock(&l->hub->lock);
    notify(l->hub, link->rank);
    pthread_mutex_unlock(&l->hub->lock);
}

static void op_receive(struct local_op *op, const void *data, size_t bytes)
{
    op->done = true;
    op->status = bytes > op->bytes ? WN_EPROTO : WN_OK;
    if (op->status == WN_OK && bytes) memcpy(op->to, data, bytes);
    op->bytes = bytes;
}

/* Gives the bytes to a receive that waits for them, if there is one. */
static bool send_to_posted(struct local_link *l, struct pair *pair, const struct local_op *op)
{
    for (struct local_op **at = &pair->posted; *at; at = &(*at)->next) {
        struct local_op *r = *at;
        if (r->route.tag != op->route.tag || r->route.kind != op->route.kind) continue;
        *at = r->next;
        if (pair->posted_end == &r->next) pair->posted_end = at;
        op_receive(r, op->from, op->bytes);
        notify(l->hub, op->route.peer);
        return true;
    }
    return false;
}

static wn_status local_send(struct wn_link *link, struct wn_route to, const void *data, size_t bytes, wn_op *out)
{
    struct local_link *l = (struct local_link *)link;
    struct pair *pair = pair_of(l->hub, link->rank, to.peer);
    struct message *m = NULL;
    uint32_t index = 0;
    wn_op handle = wn_op_table_take(&l->table, &index);
    struct local_op *op = &l->ops[index];
    wn_status rc = WN_OK;

    if (handle == WN_OP_NONE) return wn_link_op_failed(link, WN_EBUSY, to, true, "too many operations in flight");
    *op = (struct local_op){.route = to, .from = data, .bytes = bytes, .send = true};
    pthread_mutex_lock(&l->hub->lock);
    if (l->hub->places[to.peer].left) {
        rc = wn_link_op_failed(link, WN_EPEER, to, true, "that rank has left");
        goto out;
    }
    if (send_to_posted(l, pair, op)) {
        op->done = true;
        goto out;
    }
    if (bytes <= EAGER_BYTES_MAX && pair->copied_bytes + bytes <= QUEUE_BYTES_MAX) {
        m = malloc(sizeof(*m) + bytes);
    }
    if (m) {
        op->done = true;
        pair->copied_bytes += bytes;
        if (bytes) memcpy(m + 1, data, bytes);
    } else {
        m = &op->message;
    }
    *m = (struct message){.sender = op->done ? NULL : op, .tag = to.tag, .kind = to.kind, .bytes = bytes};
    *pair->end = m;
    pair->end = &m->next;
out:
    pthread_mutex_unlock(&l->hub->lock);
    if (rc == WN_OK) {
        *out = handle;
    } else {
        wn_op_table_give(&l->table, index);
    }
    return rc;
}

static wn_status local_recv(struct wn_link *link, struct wn_route from, void *data, size_t room, wn_op *out)
{
    struct local_link *l = (struct local_link *)link;
    struct pair *pair = pair_of(l->hub, from.peer, link->rank);
    uint32_t index = 0;
    wn_op handle = wn_op_table_take(&l->table, &index);
    struct local_op *op = &l->ops[index];
    struct message **at;

    if (handle == WN_OP_NONE) return wn_link_op_failed(link, WN_EBUSY, from, false, "too many operations in flight");
    *op = (struct local_op){.route = from, .to = data, .bytes = room};
    pthread_mutex_lock(&l->hub->lock);
    for (at = &pair->first; *at; at = &(*at)->next) {
        if ((*at)->tag == from.tag && (*at)->kind == from.kind) break;
    }
    if (*at) {
        struct message *m = *at;
        *at = m->next;
        if (pair->end == &m->next) pair->end = at;
        op_receive(op, m->sender ? m->sender->from : m + 1, m->bytes);
        if (m->sender) {
            m->sender->done = true;
            notify(l->hub, from.peer);
        } else {
            pair->copied_bytes -= m->bytes;
            free(m);
        }
    } else {
        *pair->posted_end = op;
        pair->posted_end = &op->next;
    }
    pthread_mutex_unlock(&l->hub->lock);
    *out = handle;
    return WN_OK;
}

/* Takes an operation that will never end out of the queues. The hub is locked. */
static void op_withdraw(struct local_link *l, struct local_op *op)
{
    struct pair *pair = op->send ? pair_of(l->hub, l->base.rank, op->route.peer)
                                 : pair_of(l->hub, op->route.peer, l->base.rank);
    struct local_op **at = &pair->posted;

    if (op->send) return; /* its receiver has left and has emptied that queue */
    while (*at && *at != op) at = &(*at)->next;
    if (!*at) return;
    *at = op->next;
    if (pair->posted_end == &op->next) pair->posted_end = at;
}

/* Sleeps until something changes for this rank. The hub is locked; looks around without the lock for a while first. */
static void wait_change(struct local_link *l, int64_t deadline_us, bool *spun)
{
    struct place *place = &l->hub->places[l->base.rank];
    unsigned seen = atomic_load_explicit(&place->changes, memory_order_relaxed);
    struct timespec ts = {.tv_sec = (time_t)(deadline_us / 1000000), .tv_nsec = (long)(deadline_us % 1000000) * 1000};

    if (!*spun) {
        int64_t start_us = wn_now_us();
        *spun = true;
        pthread_mutex_unlock(&l->hub->lock);
        while (atomic_load_explicit(&place->changes, memory_order_acquire) == seen &&
               wn_now_us() - start_us < WN_BACKOFF_SPIN_US) {
            sched_yield(); /* the rank that is waited for is often a thread of the same core */
        }
        pthread_mutex_lock(&l->hub->lock);
    } else if (deadline_us == WN_NEVER) {
        pthread_cond_wait(&place->changed, &l->hub->lock);
    } else {
        pthread_cond_timedwait(&place->changed, &l->hub->lock, &ts);
    }
}

static wn_status local_wait(struct wn_link *link, wn_op handle, size_t *bytes, int64_t deadline_us)
{
    struct local_link *l = (struct local_link *)link;
    uint32_t index = wn_op_table_index(&l->table, handle);
    struct local_op *op = &l->ops[index];
    bool spun = false, over = true;
    wn_status rc = WN_OK;

    pthread_mutex_lock(&l->hub->lock);
    while (true) {
        if (atomic_load(&link->cancelled)) {
            rc = WN_ECANCEL;
            over = false;
        } else if (op->done) {
            rc = op->status;
        } else if (l->hub->places[op->route.peer].left) {
            op_withdraw(l, op);
            rc = WN_EPEER;
        } else if (deadline_us == WN_LINK_POLL || wn_deadline_passed(deadline_us)) {
            rc = WN_ETIME;
            over = false;
        } else {
            wait_change(l, deadline_us, &spun);
            continue;
        }
        break;
    }
    pthread_mutex_unlock(&l->hub->lock);
    if (over) {
        wn_op_table_give(&l->table, index);
        *bytes = op->bytes;
    }
    if (rc == WN_OK && !op->send) wn_traffic_received(&link->meters[op->route.peer], op->route.kind, op->bytes);
    if (rc == WN_EPROTO) wn_link_op_failed(link, rc, op->route, op->send, "the message is larger than the buffer");
    if (rc == WN_EPEER) wn_link_op_failed(link, rc, op->route, op->send, "that rank has left");
    if (rc == WN_ECANCEL) wn_link_op_failed(link, rc, op->route, op->send, "cancelled");
    if (rc == WN_ETIME && deadline_us != WN_LINK_POLL) {
        wn_link_op_failed(link, rc, op->route, op->send, "the deadline passed");
    }
    return rc;
}

static wn_status local_withdraw(struct wn_link *link, wn_op handle, int64_t deadline_us)
{
    struct local_link *l = (struct local_link *)link;
    const uint32_t index = wn_op_table_index(&l->table, handle);

    (void)deadline_us; /* a message comes whole */
    WN_ASSERT(!l->ops[index].send);
    pthread_mutex_lock(&l->hub->lock);
    op_withdraw(l, &l->ops[index]);
    pthread_mutex_unlock(&l->hub->lock);
    wn_op_table_give(&l->table, index);
    return WN_OK;
}

const struct wn_link_ops wn_link_local = {
    .name = "local",
    .open = local_open,
    .close = local_close,
    .send = local_send,
    .recv = local_recv,
    .wait = local_wait,
    .withdraw = local_withdraw,
    .wake = local_wake,
};
