/* daemon/front_beat.c - signs of life: hello to the scheduler, leases both ways, ranks that are heard or not. */
#include <stdio.h>
#include <unistd.h>

#include "base/log.h"
#include "daemon/front_impl.h"

#define DEFAULT_BEAT_MS   500
#define DEFAULT_LEASE_MS  3000
#define ROLL_FIRST_LEASES 3 /* until every rank must have been heard first */

wn_status wn_front_beat_init(struct wn_front *f, struct wn_err *err)
{
    const struct wn_front_opts *o = &f->opts;

    f->beat_us = DEFAULT_BEAT_MS * 1000;
    f->lease_us = DEFAULT_LEASE_MS * 1000;
    return wn_roll_init(&f->roll, o->link ? o->ranks : NULL, o->ranks_n,
                        ROLL_FIRST_LEASES * (int64_t)o->lease_ms * 1000, err);
}

static void say_again(void *arg, const void *frame, size_t bytes)
{
    struct wn_front *f = arg;
    struct wn_front_msg *m = wn_front_msg_new();

    if (!m) return;
    m->party.side = WN_SIDE_SCHEDULER;
    m->traffic = WN_TRAFFIC_TOKENS;
    if (wn_msg_add_copy(&m->msg, frame, bytes) == WN_OK)
        wn_front_put(f, m);
    else
        wn_front_msg_free(m); /* the gap is seen, and the job replayed */
}

/* The scheduler does not know this worker any more, or is not there. */
static void miss_scheduler(struct wn_front *f, const char *why)
{
    wn_warn("front", "%s", why);
    f->welcome = false;
    f->next_beat_us = 0;
    f->away_us = wn_now_us();
}

/* The scheduler was away for too long: what it ordered is given up. */
static void give_up(struct wn_front *f)
{
    struct wn_front_msg *m = wn_front_msg_new();

    f->away_us = 0;
    wn_ledger_clear(f->ledger);
    if (!m) return;
    m->party.side = WN_SIDE_SELF;
    m->lease_lost = true;
    if (!wn_ring_put(f->inbound, m)) wn_front_msg_free(m);
}

static void send_hello(struct wn_front *f)
{
    const struct wn_party to = {.side = WN_SIDE_SCHEDULER};
    Wn__Hello h = WN__HELLO__INIT;
    struct wn_err err = {0};

    if (wn_ledger_hello(f->ledger, &h, &err) != WN_OK) wn_warn("front", "hello without jobs: %s", err.text);
    h.role = f->opts.role;
    h.name = (char *)(uintptr_t)f->opts.name;
    h.host = f->host;
    h.pid = (uint32_t)getpid();
    h.build = (char *)(uintptr_t)f->opts.build;
    h.model_id = (char *)(uintptr_t)f->opts.model_id;
    h.features_endpoint = f->features_address;
    h.slots = f->opts.slots;
    h.tokens_max = f->opts.tokens_max;
    h.ranks = f->opts.ranks;
    h.n_ranks = f->opts.ranks_n;
    wn_front_put(f, wn_front_msg_pack(&to, WN__ENVELOPE__BODY_HELLO, &h, NULL, 0, NULL, NULL));
}

static void send_heartbeat(struct wn_front *f)
{
    const struct wn_party to = {.side = WN_SIDE_SCHEDULER};
    Wn__Heartbeat h = WN__HEARTBEAT__INIT;
    Wn__LinkBytes sent = WN__LINK_BYTES__INIT;
    struct wn_traffic_table table = {0};
    Wn__StageLoad stages[WN_STAGES_MAX], *list[WN_STAGES_MAX];

    for (uint32_t i = 0; i < f->opts.stages_n; i++) {
        list[i] = &stages[i];
        stages[i] = (Wn__StageLoad)WN__STAGE_LOAD__INIT;
        stages[i].busy_us = atomic_load(&f->load.stages[i].busy_us);
        stages[i].wait_us = atomic_load(&f->load.stages[i].wait_us);
        stages[i].link_us = atomic_load(&f->load.stages[i].link_us);
    }
    h.stages = list;
    h.n_stages = f->opts.stages_n;
    for (int k = 0; k < WN_TRAFFIC_N; k++)
        table.of[k].sent_bytes = atomic_load(&f->load.sent_bytes[k]);
    wn_link_bytes_from_traffic(&sent, &table);
    h.running = atomic_load(&f->load.running);
    h.waiting = atomic_load(&f->load.waiting);
    h.pages_used = atomic_load(&f->load.pages_used);
    h.pages = atomic_load(&f->load.pages);
    h.steps = atomic_load(&f->load.steps);
    h.images = atomic_load(&f->load.images);
    h.cache_hits = atomic_load(&f->load.cache_hits);
    h.encodes = atomic_load(&f->load.encodes);
    h.preemptions = atomic_load(&f->load.preemptions);
    h.features = atomic_load(&f->load.features);
    h.feature_slots = atomic_load(&f->load.feature_slots);
    h.sent = &sent;
    h.ranks = f->opts.ranks;
    h.n_ranks = f->opts.ranks_n;
    wn_front_put(f, wn_front_msg_pack(&to, WN__ENVELOPE__BODY_HEARTBEAT, &h, NULL, 0, NULL, NULL));
}

static void note_refusal(struct wn_front *f, const char *why)
{
    if (!f->refused) wn_error("front", "the scheduler at %s refuses this worker: %s", f->opts.scheduler, why);
    f->refused = true; /* it asks again and again: what is in its way may leave */
}

/* ZeroMQ does not try again where the handshake was refused, but keys can be put right while this worker waits. */
static void watch_handshake(struct wn_front *f)
{
    struct wn_endpoint_stats stats;

    wn_endpoint_stats_get(f->scheduler, &stats);
    if (stats.up || stats.keys_refused + stats.mismatched == 0) return;
    note_refusal(f, stats.keys_refused ? "this worker's key is not in its list"
                    : f->opts.key      ? "no handshake: it has no keys, or others than the file says"
                                       : "no handshake: it wants a key (--keys), or is no scheduler");
    wn_front_reopen_scheduler(f);
}

/* Its jobs need not wait until the lease ends: the group does. */
static void leave(struct wn_front *f, int lost)
{
    const struct wn_party to = {.side = WN_SIDE_SCHEDULER};
    Wn__Error body = WN__ERROR__INIT;
    char why[96];

    if (atomic_exchange(&f->leaving, true)) return;
    if (lost < 0) snprintf(why, sizeof(why), "rank 0 has done nothing for %u ms", f->opts.stall_ms);
    else snprintf(why, sizeof(why), "nothing heard from rank %d for %u ms", lost, f->opts.lease_ms);
    body.code = WN_EPEER;
    body.text = why;
    body.retriable = true;
    wn_front_put(f, wn_front_msg_pack(&to, WN__ENVELOPE__BODY_ERROR, &body, NULL, 0, NULL, NULL));
}

/* A leader ends the group when a rank is silent, or when it hangs itself. */
static void watch_ranks(struct wn_front *f, int64_t now)
{
    const uint32_t beat_ms = (uint32_t)(f->beat_us / 1000);
    const int lost = wn_roll_call(&f->roll, now, (int64_t)f->opts.lease_ms * 1000);

    if (f->opts.ranks_n > 0)
        f->opts.ranks[0]->stalled_ms =
            wn_pulse_stalled(&f->stall, beat_ms, f->opts.stall_ms, f->opts.link, &f->ending_us);
    if (lost >= 0 && !f->ending_us)
        wn_error("front", "nothing heard from rank %d for %u ms: the group ends", lost, f->opts.lease_ms);
    if (lost >= 0) wn_pulse_end_group(f->opts.link, &f->ending_us);
    if (f->ending_us) leave(f, lost);
}

void wn_front_beat(struct wn_front *f)
{
    const int64_t now = wn_now_us();

    if (now < f->next_beat_us) return;
    watch_ranks(f, now);
    if (f->welcome && now - f->heard_us > f->lease_us) miss_scheduler(f, "nothing heard from the scheduler");
    if (f->away_us && now - f->away_us >= (int64_t)f->opts.grace_ms * 1000) give_up(f);
    if (f->welcome) wn_ledger_expire(f->ledger, now - 2 * f->lease_us);
    f->next_beat_us = now + f->beat_us;
    if (!f->welcome) watch_handshake(f);
    if (f->to_scheduler.first || atomic_load(&f->leaving)) return; /* no use in piling up */
    if (f->welcome)
        send_heartbeat(f);
    else
        send_hello(f);
}

/* Milliseconds that the other side says, within the bounds that the options have. */
static int64_t within_us(uint32_t ms, uint32_t fallback, uint32_t min, uint32_t max)
{
    if (ms == 0) ms = fallback;
    return (int64_t)(ms < min ? min : ms > max ? max : ms) * 1000;
}

static bool hear_scheduler(struct wn_front *f, const struct wn_front_msg *m)
{
    const Wn__Envelope *e = m->env;

    f->heard_us = wn_now_us();
    if (e->body_case == WN__ENVELOPE__BODY_WELCOME) {
        f->welcome = true;
        f->refused = false;
        f->beat_us = within_us(e->welcome->heartbeat_ms, DEFAULT_BEAT_MS, 10, 60000);
        f->lease_us = within_us(e->welcome->lease_ms, DEFAULT_LEASE_MS, 50, 600000);
        f->next_beat_us = 0;
        f->away_us = 0;
        for (size_t i = 0; i < e->welcome->n_kept; i++)
            wn_ledger_resume(f->ledger, e->welcome->kept[i]->job, e->welcome->kept[i]->tokens, say_again, f);
        return true;
    }
    if (e->body_case == WN__ENVELOPE__BODY_ERROR && e->error->code == WN_ENOENT && !e->error->job) {
        if (f->welcome) miss_scheduler(f, "the scheduler was started again, or has given this worker up");
        return true;
    }
    if (e->body_case == WN__ENVELOPE__BODY_ERROR && !e->error->job && !f->welcome) {
        note_refusal(f, e->error->text);
        return true;
    }
    if (e->body_case == WN__ENVELOPE__BODY_GENERATE) wn_ledger_order(f->ledger, e->generate->job);
    if (e->body_case == WN__ENVELOPE__BODY_CANCEL) wn_ledger_drop(f->ledger, e->cancel->job);
    return e->body_case == WN__ENVELOPE__BODY_HEARTBEAT;
}

/* A rank's sign of life, and ours back. */
static bool hear_rank(struct wn_front *f, const struct wn_front_msg *m)
{
    Wn__Heartbeat answer = WN__HEARTBEAT__INIT;

    if (m->party.side != WN_SIDE_WORKER || m->env->body_case != WN__ENVELOPE__BODY_HEARTBEAT) return false;
    if (wn_roll_heard(&f->roll, m->env->heartbeat, wn_now_us()))
        wn_front_put(f, wn_front_msg_pack(&m->party, WN__ENVELOPE__BODY_HEARTBEAT, &answer, NULL, 0, NULL, NULL));
    return true;
}

void wn_front_hear_strange(struct wn_front *f, const char *what)
{
    if (!f->welcome) note_refusal(f, what);
}

bool wn_front_hear(struct wn_front *f, const struct wn_front_msg *m)
{
    return m->party.side == WN_SIDE_SCHEDULER ? hear_scheduler(f, m) : hear_rank(f, m);
}
