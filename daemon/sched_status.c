/* daemon/sched_status.c - the scheduler's answer to StatusRequest. Ready means: everything expected is there now. */
#include <stdlib.h>

#include "base/log.h"
#include "daemon/sched.h"
#include "winnow_version.h"

/* The first rank of a replica that has done nothing for a lease, or that its leader has not heard of for so long. */
static bool stuck_rank(const struct wn_scheduler *s, char *text, size_t size)
{
    for (int i = 0; i < s->workers_n; i++) {
        const struct wn_sched_worker *w = &s->worker[i];
        const Wn__Heartbeat *h = w->up && w->heartbeat ? w->heartbeat->heartbeat : NULL;
        const double age_s = (double)(wn_now_us() - w->last_seen_us) / 1e6; /* of what the leader has said */
        uint32_t rank = 0;
        if (w->up && w->hangs) {
            const double stalled_s = (double)wn_sched_stalled_ms(w, &rank) / 1e3 + age_s;
            snprintf(text, size, "rank %u of %s has done nothing for %.1f s", rank, w->name, stalled_s);
            return true;
        }
        for (size_t k = 0; h && k < h->n_ranks; k++) {
            if (h->ranks[k]->last_seen_ms <= s->cfg.lease_ms) continue;
            snprintf(text, size, "rank %u of %s has said nothing for %.1f s", h->ranks[k]->rank, w->name,
                     (double)h->ranks[k]->last_seen_ms / 1e3 + age_s);
            return true;
        }
    }
    return false;
}

static void fill_totals(struct wn_scheduler *s, Wn__Status *st, Wn__LinkBytes *sent, int64_t now)
{
    const struct wn_job *first = s->list[WN_LIST_QUEUED].first;
    struct wn_traffic_table traffic = {0};

    st->prompt_tokens = s->prompt_tokens;
    st->generated_tokens = s->generated_tokens;
    st->image_tokens = s->image_tokens;
    st->image_tokens_before_pruning = s->image_tokens_before;
    st->busy = s->busy;
    st->queue_max = s->cfg.max_queue;
    st->queue_wait_ms = first ? (uint32_t)((now - first->queued_us) / 1000) : 0;
    st->clients = s->accounts.n;
    st->results = (uint32_t)s->list[WN_LIST_ENDED].n;
    wn_endpoint_traffic(s->clients, &traffic);
    wn_endpoint_traffic(s->workers, &traffic);
    sent->control = traffic.of[WN_TRAFFIC_CONTROL].sent_bytes;
    sent->image = traffic.of[WN_TRAFFIC_IMAGE].sent_bytes;
    sent->tokens = traffic.of[WN_TRAFFIC_TOKENS].sent_bytes;
    st->sent = sent;
}

static void readiness(const struct wn_scheduler *s, Wn__Status *st, char *text, size_t size)
{
    const unsigned leaders = wn_sched_workers_up(s, WN__ROLE__ROLE_LEADER);
    const unsigned vision = wn_sched_workers_up(s, WN__ROLE__ROLE_VISION);

    st->ready = false;
    st->not_ready_because = text;
    if (s->draining)
        snprintf(text, size, "the server is shutting down");
    else if (s->journal_error.code != WN_OK)
        snprintf(text, size, "%s", s->journal_error.text);
    else if (leaders < s->cfg.expect_replicas)
        snprintf(text, size, "%u of %u replicas are connected", leaders, s->cfg.expect_replicas);
    else if (vision < s->cfg.expect_vision_workers)
        snprintf(text, size, "%u of %u vision workers are connected", vision, s->cfg.expect_vision_workers);
    else if (!stuck_rank(s, text, size))
        st->ready = true;
    if (st->ready) text[0] = '\0';
}

static void fill_refused(struct wn_scheduler *s, Wn__Status *st)
{
    struct wn_endpoint *const both[] = {s->clients, s->workers};

    for (int i = 0; i < 2; i++) {
        struct wn_endpoint_stats stats;
        wn_endpoint_stats_get(both[i], &stats);
        st->refused_keys += stats.keys_refused;
        st->refused_handshakes += stats.handshake_failed - stats.keys_refused;
        st->refused_messages += stats.refused;
    }
    st->refused_messages += s->refused_messages;
}

static void fill_turned_away(const struct wn_scheduler *s, Wn__Status *st, Wn__TurnedAway *room, Wn__TurnedAway **list,
                             int64_t now)
{
    for (uint32_t i = 0; i < s->turned_away.n; i++) {
        const struct wn_turned_away *t = &s->turned_away.of[i];
        room[i] = (Wn__TurnedAway)WN__TURNED_AWAY__INIT;
        room[i].role = t->role;
        room[i].name = (char *)(uintptr_t)t->name;
        room[i].host = (char *)(uintptr_t)t->host;
        room[i].why = (char *)(uintptr_t)t->why;
        room[i].since_ms = (uint64_t)(now - t->since_us) / 1000;
        room[i].last_ms = (uint64_t)(now - t->last_us) / 1000;
        room[i].times = t->times;
        list[i] = &room[i];
    }
    st->turned_away = list;
    st->n_turned_away = s->turned_away.n;
    st->turned_away_total = s->turned_away.total;
}

/* A client's key sees whether it may send jobs; who works here, and who was turned away, is the admin's. */
void wn_sched_status_send(struct wn_scheduler *s, const struct wn_peer_id *to, const struct wn_access_entry *who)
{
    const bool all = !who || who->role != WN_KEY_CLIENT;
    const int64_t now = wn_now_us();
    Wn__WorkerStatus *ws = calloc(WN_SCHED_WORKERS_MAX, sizeof(*ws)), **list;
    Wn__Status st = WN__STATUS__INIT;
    Wn__TurnedAway away[WN_TURNED_AWAY_MAX], *away_list[WN_TURNED_AWAY_MAX];
    Wn__LinkBytes sent = WN__LINK_BYTES__INIT;
    char why[WN_ERR_TEXT_MAX];

    list = calloc(WN_SCHED_WORKERS_MAX, sizeof(*list));
    if (!ws || !list) goto out;
    readiness(s, &st, why, sizeof(why));
    st.model = s->cfg.model;
    if (s->cfg.quantization == WN_CONFIG_QUANTIZATION_INT8) st.quantization = "int8";
    st.version = WN_BUILD;
    st.queued = (uint32_t)s->list[WN_LIST_QUEUED].n;
    st.running = (uint32_t)(s->list[WN_LIST_RUNNING].n + s->list[WN_LIST_ORPHANED].n);
    st.accepted = s->accepted;
    st.answered = s->answered;
    st.failed = s->failed;
    st.cancelled = s->cancelled;
    st.replayed = s->replayed;
    fill_totals(s, &st, &sent, now);
    st.uptime_ms = (uint64_t)(now - s->started_us) / 1000;
    if (all) fill_refused(s, &st);
    if (all) fill_turned_away(s, &st, away, away_list, now);
    for (int i = 0; all && i < s->workers_n; i++) {
        struct wn_sched_worker *w = &s->worker[i];
        Wn__WorkerStatus *one = &ws[st.n_workers];
        *one = (Wn__WorkerStatus)WN__WORKER_STATUS__INIT;
        one->role = w->role;
        one->name = w->name;
        one->host = w->host;
        one->up = w->up;
        one->build = w->build;
        one->last_seen_ms = (uint64_t)(now - w->last_seen_us) / 1000;
        one->heartbeat = w->heartbeat ? w->heartbeat->heartbeat : NULL;
        list[st.n_workers++] = one;
    }
    st.workers = list;
    (void)!wn_sched_send(s->clients, to, WN__ENVELOPE__BODY_STATUS, &st, NULL, 0, 0, NULL);
out:
    free(list);
    free(ws);
}
