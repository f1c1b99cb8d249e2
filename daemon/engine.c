/* daemon/engine.c - see engine.h. */
#include "daemon/engine.h"

#include <stdlib.h>

#include "base/progress.h"
#include "daemon/engine_impl.h"

#define STATS_PERIOD_US 1000000ll /* how old the reported traffic may get under load */
#define IDLE_WAIT_US    500000ll  /* a look at the drain flag, at least this often */

wn_status wn_engine_open(struct wn_engine **out, const struct wn_engine_opts *opts, struct wn_err *err)
{
    const struct wn_pipeline pipe = {
        .depth = wn_replica_depth(opts->replica), .stages = opts->plan->stages, .chunk_min = opts->chunk_min};
    struct wn_engine *e = calloc(1, sizeof(*e));
    wn_status rc = WN_OK;

    if (!e) return wn_fail(err, WN_ENOMEM, "engine");
    e->opts = *opts;
    e->tokens = calloc(opts->step.seqs_max, sizeof(*e->tokens));
    if (!e->tokens) rc = wn_fail(err, WN_ENOMEM, "engine of %u sequences", opts->step.seqs_max);
    if (rc == WN_OK) rc = wn_batcher_create(&e->batcher, &opts->step, &pipe, err);
    if (rc != WN_OK) {
        wn_engine_close(e);
        return rc;
    }
    atomic_store(&wn_front_load(opts->front)->pages, opts->step.pages_max);
    *out = e;
    return WN_OK;
}

void wn_engine_close(struct wn_engine *e)
{
    if (!e) return;
    wn_batcher_destroy(e->batcher);
    for (int i = 0; i < WN_ENGINE_ORPHANS_MAX; i++) wn_front_msg_free(e->orphans[i].msg);
    free(e->tokens);
    free(e);
}

static void report_stats(struct wn_engine *e, const struct wn_replica_stats *stats)
{
    struct wn_front_load *load = wn_front_load(e->opts.front);
    for (int k = 0; k < WN_TRAFFIC_N; k++) atomic_store(&load->sent_bytes[k], stats->traffic.of[k].sent_bytes);
    for (uint32_t i = 0; i < e->opts.plan->stages; i++) {
        atomic_store(&load->stages[i].busy_us, stats->stages[i].busy_us);
        atomic_store(&load->stages[i].wait_us, stats->stages[i].wait_us);
        atomic_store(&load->stages[i].link_us, stats->stages[i].link_us);
    }
    e->stats_us = wn_now_us();
    e->stats_due = false;
}

static void report_load(struct wn_engine *e)
{
    struct wn_front_load *load = wn_front_load(e->opts.front);
    struct wn_batcher_load now;

    wn_batcher_load(e->batcher, &now);
    atomic_store(&load->running, now.running);
    atomic_store(&load->waiting, now.waiting);
    atomic_store(&load->pages_used, now.pages_used);
    atomic_store(&load->preemptions, now.preemptions);
    atomic_store(&load->feature_slots, now.feature_slots_used);
    for (int i = 0; i < WN_ENGINE_ORPHANS_MAX; i++) now.features += e->orphans[i].msg != NULL;
    atomic_store(&load->features, now.features);
}

static void fill_record(struct wn_engine *e, struct wn_step_record *rec)
{
    const bool idle = !wn_batcher_oldest(e->batcher);

    wn_batcher_fill(e->batcher, rec);
    if (e->draining && idle) rec->flags |= WN_STEP_STOP;
    if ((e->stats_due && idle) || (rec->rows_n && wn_now_us() - e->stats_us > STATS_PERIOD_US))
        rec->flags |= WN_STEP_STATS;
}

/* Sends the record on its way. */
static wn_status begin(struct wn_engine *e, const struct wn_step_record *rec, struct wn_err *err)
{
    const wn_status rc = wn_replica_begin(e->opts.replica, wn_batcher_features(e->batcher), err);

    if (rc != WN_OK) return rc;
    wn_batcher_begun(e->batcher, rec);
    for (struct wn_gen_job *j = wn_batcher_oldest(e->batcher); rec->opens_n && j; j = j->next)
        if (j->life.state == WN_GEN_PREFILL) wn_engine_accept_features(e, j);
    atomic_fetch_add(&wn_front_load(e->opts.front)->steps, 1);
    return WN_OK;
}

/* Waits for the oldest step, and does what its tokens mean. */
static wn_status collect(struct wn_engine *e, struct wn_err *err)
{
    const struct wn_flight *f;
    struct wn_replica_stats stats;
    uint32_t tokens_n = 0;
    const wn_status rc = wn_replica_collect(e->opts.replica, e->tokens, &tokens_n, &stats, err);

    if (rc != WN_OK) return rc;
    f = wn_batcher_landed(e->batcher);
    if (tokens_n) wn_front_hold(e->opts.front);
    for (uint32_t i = 0; i < tokens_n; i++) {
        struct wn_gen_job *job = f->order[e->tokens[i].seq];
        if (wn_gen_apply(&job->life, WN_GEN_TOKEN)) wn_engine_take_token(e, job, i);
    }
    if (tokens_n) wn_front_release(e->opts.front);
    if (f->flags & WN_STEP_STATS) report_stats(e, &stats);
    return WN_OK;
}

wn_status wn_engine_run(struct wn_engine *e, struct wn_err *err)
{
    const uint32_t depth = wn_replica_depth(e->opts.replica);

    for (;;) {
        struct wn_front_msg *m;
        wn_status rc;

        wn_progress_note();
        while ((m = wn_front_take(e->opts.front)) != NULL) wn_engine_take(e, m);
        if (*e->opts.drain) e->draining = true;
        wn_engine_expire_orphans(e);
        wn_batcher_reap(e->batcher);
        report_load(e);
        if (wn_batcher_in_flight(e->batcher) < depth) {
            struct wn_step_record *rec = wn_replica_record(e->opts.replica);
            fill_record(e, rec);
            if (!wn_batcher_is_idle(rec)) {
                if ((rc = begin(e, rec, err)) != WN_OK) return rc;
                if (!(rec->flags & WN_STEP_STOP)) continue;
                while (rc == WN_OK && wn_batcher_in_flight(e->batcher)) rc = collect(e, err);
                return rc;
            }
        }
        if (wn_batcher_in_flight(e->batcher) == 0) {
            wn_replica_idle(e->opts.replica);
            wn_front_wait(e->opts.front, wn_deadline_in_us(IDLE_WAIT_US));
        } else if ((rc = collect(e, err)) != WN_OK) {
            return rc;
        }
    }
}
