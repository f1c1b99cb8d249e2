/* daemon/pulse.c - see pulse.h. */
#include "daemon/pulse.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "daemon/worker.h"
#include "transport/endpoint.h"

#define END_US      1000000ll /* for the main thread, once the link is cancelled */
#define FIRST_TIMES 3         /* leases until the leader must have been heard first */
#define TURN_US     100000ll  /* how soon a stop is seen */

struct wn_pulse {
    struct wn_pulse_opts opts;
    pthread_t thread;
    atomic_bool stop;
    struct wn_net *net;
    struct wn_endpoint_opts endpoint;
    char address[512];
};

void wn_pulse_end_group(struct wn_link *link, int64_t *ending_us)
{
    if (*ending_us == 0) {
        *ending_us = wn_deadline_in_us(END_US);
        if (link) wn_link_cancel(link);
    } else if (wn_deadline_passed(*ending_us)) {
        wn_error("pulse", "a step does not end; the process does");
        kill(getpid(), SIGKILL); /* in the middle of a long product there is nobody to ask */
    }
}

uint64_t wn_pulse_stalled(struct wn_stall *stall, uint32_t beat_ms, uint32_t limit_ms, struct wn_link *link,
                          int64_t *ending_us)
{
    const int64_t stalled_us = wn_stall_look(stall, wn_now_us(), 2000ll * beat_ms);

    if (limit_ms && stalled_us > (int64_t)limit_ms * 1000) {
        if (*ending_us == 0) wn_error("pulse", "the main thread has done nothing for %u ms: the group ends", limit_ms);
        wn_pulse_end_group(link, ending_us);
    }
    return (uint64_t)stalled_us / 1000;
}

static uint64_t resident_bytes(void)
{
    unsigned long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");

    if (!f) return 0;
    if (fscanf(f, "%*s %lu", &pages) != 1) pages = 0;
    fclose(f);
    return (uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static void send_beat(struct wn_pulse *p, struct wn_endpoint *ep, uint64_t stalled_ms)
{
    Wn__RankInfo info = WN__RANK_INFO__INIT, *list[] = {&info};
    Wn__Heartbeat beat = WN__HEARTBEAT__INIT;

    info.rank = p->opts.rank;
    info.pid = (uint32_t)getpid();
    info.rss_bytes = resident_bytes();
    info.stalled_ms = stalled_ms;
    beat.ranks = list;
    beat.n_ranks = 1;
    wn_worker_say(ep, WN__ENVELOPE__BODY_HEARTBEAT, &beat); /* not there: its silence counts */
}

/* Whatever the leader answers is a sign of life. */
static bool heard_any(struct wn_endpoint *ep)
{
    struct wn_msg msg;
    bool any = false;

    wn_msg_init(&msg);
    while (wn_endpoint_recv(ep, &msg) == WN_OK) any = true;
    wn_msg_clear(&msg);
    return any;
}

static void *pulse_main(void *arg)
{
    struct wn_pulse *p = arg;
    const int64_t beat_us = (int64_t)p->opts.beat_ms * 1000, lease_us = (int64_t)p->opts.lease_ms * 1000;
    int64_t next_us = 0, ending_us = 0, heard_us = wn_now_us() + (FIRST_TIMES - 1) * lease_us;
    struct wn_stall stall = {0};
    struct wn_endpoint *ep = NULL;
    struct wn_err err = {0};

    if (wn_endpoint_open(&ep, p->net, &p->endpoint, &err) != WN_OK) {
        wn_error("pulse", "%s", err.text);
        wn_link_cancel(p->opts.link);
        return NULL;
    }
    while (!atomic_load(&p->stop)) {
        struct wn_poll_item item = {.ep = ep};
        int64_t now;
        (void)!wn_endpoint_poll(&item, 1, wn_deadline_in_us(beat_us < TURN_US ? beat_us : TURN_US));
        now = wn_now_us();
        if (heard_any(ep)) heard_us = heard_us > now ? heard_us : now;
        if (now >= next_us) {
            send_beat(p, ep, wn_pulse_stalled(&stall, p->opts.beat_ms, p->opts.stall_ms, p->opts.link, &ending_us));
            next_us = now + beat_us;
        }
        if (now - heard_us <= lease_us) continue;
        if (ending_us == 0)
            wn_error("pulse", "nothing heard from the leader for %u ms: the group ends", p->opts.lease_ms);
        wn_pulse_end_group(p->opts.link, &ending_us);
    }
    wn_endpoint_close(ep);
    return NULL;
}

wn_status wn_pulse_start(struct wn_pulse **out, const struct wn_pulse_opts *opts, struct wn_err *err)
{
    struct wn_pulse *p = calloc(1, sizeof(*p));
    wn_status rc;

    if (!p) return wn_fail(err, WN_ENOMEM, "pulse");
    p->opts = *opts;
    snprintf(p->address, sizeof(p->address), "%s", opts->leader);
    p->opts.leader = p->address;
    p->endpoint = (struct wn_endpoint_opts){.type = WN_ENDPOINT_DEALER,
                                            .address = p->address,
                                            .frame_max = {WN_CODEC_BYTES_MAX},
                                            .reconnect_max_ms = 250,
                                            .curve = wn_worker_curve(opts->key, false),
                                            .insecure = opts->insecure};
    rc = wn_net_create(&p->net, err);
    if (rc == WN_OK && pthread_create(&p->thread, NULL, pulse_main, p) != 0)
        rc = wn_fail(err, WN_EIO, "pulse: no thread could be started");
    if (rc != WN_OK) {
        wn_net_destroy(p->net);
        free(p);
        return rc;
    }
    *out = p;
    return WN_OK;
}

void wn_pulse_stop(struct wn_pulse *p)
{
    if (!p) return;
    atomic_store(&p->stop, true);
    pthread_join(p->thread, NULL);
    wn_net_destroy(p->net);
    free(p);
}

/* ---- the leader's side ---- */

wn_status wn_roll_init(struct wn_roll *r, Wn__RankInfo **ranks, size_t n, int64_t first_us, struct wn_err *err)
{
    *r = (struct wn_roll){.ranks = ranks, .n = ranks ? n : 0};
    r->heard_us = calloc(r->n + 1, sizeof(*r->heard_us));
    if (!r->heard_us) return wn_fail(err, WN_ENOMEM, "list of %zu ranks", n);
    for (size_t i = 0; i < r->n; i++) r->heard_us[i] = wn_now_us() + first_us;
    return WN_OK;
}

void wn_roll_fini(struct wn_roll *r)
{
    free(r->heard_us);
    r->heard_us = NULL;
}

bool wn_roll_heard(struct wn_roll *r, const Wn__Heartbeat *beat, int64_t now_us)
{
    const Wn__RankInfo *info = beat->n_ranks == 1 ? beat->ranks[0] : NULL;

    if (!info || info->rank == 0 || info->rank >= r->n || r->ranks[info->rank]->pid != info->pid) return false;
    r->heard_us[info->rank] = now_us;
    r->ranks[info->rank]->rss_bytes = info->rss_bytes;
    r->ranks[info->rank]->stalled_ms = info->stalled_ms;
    return true;
}

int wn_roll_call(struct wn_roll *r, int64_t now_us, int64_t lease_us)
{
    int lost = -1;

    for (size_t i = 1; i < r->n; i++) { /* rank 0 asks */
        const int64_t silent_us = now_us > r->heard_us[i] ? now_us - r->heard_us[i] : 0;
        r->ranks[i]->last_seen_ms = (uint64_t)silent_us / 1000;
        if (silent_us > lease_us && lost < 0) lost = (int)i;
    }
    if (r->n > 0) r->ranks[0]->rss_bytes = resident_bytes();
    return lost;
}
