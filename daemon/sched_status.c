/* daemon/sched_status.c - the scheduler's answer to StatusRequest. Ready means: everything expected is there now. */
#include <stdlib.h>

#include "base/log.h"
#include "daemon/sched.h"
#include "winnow_version.h"

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
    else
        st->ready = true;
    if (st->ready) text[0] = '\0';
}

void wn_sched_status_send(struct wn_scheduler *s, const struct wn_peer_id *to)
{
    const int64_t now = wn_now_us();
    Wn__WorkerStatus *ws = calloc(WN_SCHED_WORKERS_MAX, sizeof(*ws)), **list;
    Wn__Status st = WN__STATUS__INIT;
    char why[128];

    list = calloc(WN_SCHED_WORKERS_MAX, sizeof(*list));
    if (!ws || !list) goto out;
    readiness(s, &st, why, sizeof(why));
    st.model = s->cfg.model;
    st.version = WN_VERSION " (" WN_COMMIT ")";
    st.queued = (uint32_t)s->list[WN_LIST_QUEUED].n;
    st.running = (uint32_t)s->list[WN_LIST_RUNNING].n;
    st.accepted = s->accepted;
    st.answered = s->answered;
    st.failed = s->failed;
    st.cancelled = s->cancelled;
    st.replayed = s->replayed;
    st.uptime_ms = (uint64_t)(now - s->started_us) / 1000;
    for (int i = 0; i < WN_SCHED_WORKERS_MAX; i++) {
        struct wn_sched_worker *w = &s->worker[i];
        Wn__WorkerStatus *one = &ws[st.n_workers];
        if (!w->used) continue;
        *one = (Wn__WorkerStatus)WN__WORKER_STATUS__INIT;
        one->role = w->role;
        one->name = w->name;
        one->host = w->host;
        one->up = w->up;
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
