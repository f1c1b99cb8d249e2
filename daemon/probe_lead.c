/* daemon/probe_lead.c - the probe in the scheduler's place: who is there, and whose turn it is. See probe.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "daemon/access.h"
#include "daemon/probe.h"
#include "daemon/roles.h"

#define HELLO_US  45000000ll /* all of them, from the start: job steps on many nodes take their time */
#define GO_US     25000000ll
#define LINK_US   40000000ll
#define CLIENT_US 8000000ll
#define END_US    2000000ll

struct worker {
    struct wn_peer_id peer; /* n 0: it has not come */
    struct wn_probe_msg hello;
    bool done, ok, gone;
};

struct lead {
    struct wn_probe *p;
    struct wn_endpoint *clients, *workers;
    uint32_t vision_n, replicas_n, ranks_n; /* ranks of one replica */
    struct worker *all;                     /* [vision_n + replicas_n * ranks_n] */
    uint32_t all_n;
    bool client_done;
};

/* "vision-2" is the third, "replica-1" rank 0 comes after replica-0's ranks; all_n: nobody that is expected. */
static uint32_t place_of(const struct lead *l, const struct wn_probe_msg *m)
{
    unsigned i;

    if (sscanf(m->name, "vision-%u", &i) == 1 && i < l->vision_n) return i;
    if (sscanf(m->name, "replica-%u", &i) == 1 && i < l->replicas_n && m->rank < l->ranks_n)
        return l->vision_n + i * l->ranks_n + m->rank;
    return l->all_n;
}

static wn_status answer(struct wn_endpoint *ep, const struct wn_peer_id *to, const struct wn_probe_msg *m)
{
    struct wn_msg msg;
    wn_status rc;

    wn_msg_init(&msg);
    msg.peer = *to;
    rc = wn_msg_add_copy(&msg, m, sizeof(*m));
    if (rc == WN_OK) rc = wn_endpoint_send(ep, &msg, WN_TRAFFIC_CONTROL);
    wn_msg_clear(&msg);
    return rc;
}

static void set_gone(struct lead *l, const struct wn_probe_msg *m)
{
    const uint32_t first = place_of(l, m), n = strncmp(m->name, "vision-", 7) == 0 ? 1 : l->ranks_n;

    for (uint32_t i = first; i < first + n && i < l->all_n; i++) l->all[i].gone = true;
}

static void take(struct lead *l, struct wn_endpoint *ep, struct wn_msg *msg)
{
    struct wn_probe_msg m;
    struct worker *w;
    uint32_t at;

    if (!wn_probe_msg_read(msg, &m)) return;
    if (m.word != WN_PROBE_ECHO) wn_debug("probe", "%s rank %u: word %u", m.name, m.rank, m.word);
    if (m.word == WN_PROBE_ECHO) {
        (void)!answer(ep, &msg->peer, &m);
        return;
    }
    if (ep == l->clients && m.word == WN_PROBE_DONE) l->client_done = true;
    if (ep == l->clients && m.word == WN_PROBE_GONE) set_gone(l, &m);
    if (ep == l->clients || (at = place_of(l, &m)) == l->all_n) return;
    w = &l->all[at];
    if (m.word == WN_PROBE_HELLO) {
        w->peer = msg->peer;
        w->hello = m;
        w->ok = m.ok;
    } else if (m.word == WN_PROBE_DONE) {
        w->done = true;
        w->ok &= m.ok != 0;
    }
}

/* Waits until something comes, and takes all that is there. */
static void turn(struct lead *l, int64_t until)
{
    struct wn_poll_item items[] = {{.ep = l->clients}, {.ep = l->workers}};
    struct wn_msg msg;

    if (wn_endpoint_poll(items, 2, until) != WN_OK) return;
    wn_msg_init(&msg);
    for (int i = 0; i < 2; i++)
        while (wn_endpoint_recv(items[i].ep, &msg) == WN_OK) take(l, items[i].ep, &msg);
    wn_msg_clear(&msg);
}

/* Everyone who can still come has come. */
static bool all_there(const struct lead *l)
{
    for (uint32_t i = 0; i < l->all_n; i++)
        if (l->all[i].peer.n == 0 && !l->all[i].gone) return false;
    return true;
}

static void tell(struct lead *l, struct worker *w, wn_probe_word word, const struct wn_probe_msg *about)
{
    struct wn_probe_msg m = wn_probe_msg_make(l->p, word);

    if (about) { /* whom it is to reach */
        m = *about;
        m.word = word;
    }
    w->done = false;
    if (w->peer.n && answer(l->workers, &w->peer, &m) != WN_OK) w->ok = false;
}

/* Lets one worker measure the way to another. */
static void go(struct lead *l, uint32_t from, uint32_t to)
{
    struct worker *w = &l->all[from], *other = &l->all[to];
    const int64_t until = wn_deadline_in_us(GO_US);

    if (!w->peer.n || !w->hello.ok || !other->peer.n || !other->hello.address[0]) return;
    tell(l, w, WN_PROBE_GO, &other->hello);
    while (!w->done && !w->gone && !wn_deadline_passed(until)) turn(l, until);
    if (!w->done) w->ok = false; /* it says what it waits for */
}

static void go_ranks(struct lead *l, uint32_t first)
{
    const uint32_t tensors = l->p->plan.tensors, stages = l->p->plan.stages;

    for (uint32_t s = 0; s < stages; s++)
        for (uint32_t t = 0; t < tensors; t++) {
            const uint32_t rank = s * tensors + t;
            if (s + 1 < stages) go(l, first + rank, first + rank + tensors);
            if (tensors > 1) go(l, first + rank, first + s * tensors + (t + 1) % tensors);
        }
}

/* MPI waits for ever for a rank that does not come: it is opened only if all have reached each other. */
static void link_ranks(struct lead *l, uint32_t first)
{
    const int64_t until = wn_deadline_in_us(LINK_US);
    char missing[200] = "";
    uint32_t left = 1;

    for (uint32_t r = 0; r < l->ranks_n; r++)
        if (!l->all[first + r].peer.n || !l->all[first + r].ok) return;
    for (uint32_t r = 0; r < l->ranks_n; r++) tell(l, &l->all[first + r], WN_PROBE_LINK, NULL);
    while (left && !wn_deadline_passed(until)) {
        turn(l, until);
        left = 0;
        for (uint32_t r = 0; r < l->ranks_n; r++) left += !l->all[first + r].done;
    }
    for (uint32_t r = 0; left && r < l->ranks_n; r++) {
        const size_t n = strlen(missing);
        const struct worker *w = &l->all[first + r];
        if (!w->done) snprintf(missing + n, sizeof(missing) - n, "%s rank %u on %s", n ? "," : "", r, w->hello.host);
    }
    if (left)
        wn_probe_wrong(l->p,
                       "%s: over MPI nothing came for %lld s from%s, and small messages over ZeroMQ did: is a port "
                       "closed, or the MTU of an interface more than the network carries?",
                       l->all[first].hello.name, LINK_US / 1000000, missing);
}

/* A connection that closes takes along what its other side has not read yet. */
static bool all_done(const struct lead *l)
{
    for (uint32_t i = 0; i < l->all_n; i++)
        if (l->all[i].peer.n && !l->all[i].done && !l->all[i].gone) return false;
    return true;
}

static void lead(struct lead *l)
{
    int64_t until = wn_deadline_in_us(HELLO_US);

    while (!all_there(l) && !wn_deadline_passed(until)) turn(l, until);
    for (uint32_t v = 0; v < l->vision_n; v++)
        for (uint32_t r = 0; r < l->replicas_n; r++) go(l, v, l->vision_n + r * l->ranks_n);
    for (uint32_t r = 0; r < l->replicas_n && l->p->whole && l->ranks_n > 1; r++) {
        go_ranks(l, l->vision_n + r * l->ranks_n);
        link_ranks(l, l->vision_n + r * l->ranks_n);
    }
    until = wn_deadline_in_us(CLIENT_US);
    wn_debug("probe", "all done, client %d", l->client_done);
    while (!l->client_done && !wn_deadline_passed(until)) turn(l, until);
    for (uint32_t i = 0; i < l->all_n; i++) tell(l, &l->all[i], WN_PROBE_END, NULL);
    until = wn_deadline_in_us(END_US);
    while (!all_done(l) && !wn_deadline_passed(until)) turn(l, until);
}

static wn_status bind_both(struct lead *l, struct wn_err *err)
{
    const struct wn_config *cfg = &l->p->cfg;
    char address[WN_TEXT_LEN + 32];
    struct wn_endpoint_opts eo = {.type = WN_ENDPOINT_ROUTER,
                                  .address = address,
                                  .bind = true,
                                  .frame_max = {WN_PROBE_FRAME_MAX},
                                  .linger_ms = 1000,
                                  .insecure = cfg->insecure};
    struct wn_access *access = NULL;
    wn_status rc;

    if (cfg->keys[0]) {
        if ((rc = wn_access_open(&access, cfg->keys, err)) != WN_OK) return rc;
        eo.curve = (struct wn_curve_opts){.server = true, .secret_key = access->self->secret_key};
        eo.curve.allowed = wn_access_keys(access, 1u << WN_KEY_WORKER, &eo.curve.allowed_n);
    }
    wn_role_scheduler_address(cfg, address, sizeof(address));
    rc = wn_endpoint_open(&l->workers, l->p->zmq, &eo, err);
    snprintf(address, sizeof(address), "tcp://%s:%u", cfg->host, cfg->port);
    if (access) eo.curve.allowed = wn_access_keys(access, ~0u, &eo.curve.allowed_n);
    if (rc == WN_OK) rc = wn_endpoint_open(&l->clients, l->p->zmq, &eo, err);
    wn_access_close(access);
    return rc;
}

wn_status wn_probe_lead(struct wn_probe *p, struct wn_err *err)
{
    const struct wn_config *c = &p->cfg;
    struct lead l = {.p = p,
                     .vision_n = c->vision_workers,
                     .replicas_n = c->replicas,
                     .ranks_n = c->pipeline_parallel_size * c->tensor_parallel_size};
    wn_status rc = WN_OK;

    l.all_n = l.vision_n + l.replicas_n * l.ranks_n;
    l.all = calloc(l.all_n + 1, sizeof(*l.all));
    if (!l.all) rc = wn_fail(err, WN_ENOMEM, "%u probes", l.all_n);
    if (rc == WN_OK) rc = bind_both(&l, err);
    if (rc == WN_OK) lead(&l);
    wn_endpoint_close(l.workers);
    wn_endpoint_close(l.clients);
    free(l.all);
    return rc;
}
