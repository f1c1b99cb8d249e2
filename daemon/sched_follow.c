/* daemon/sched_follow.c - the followers of a job, and how they are kept up to date. */
#include <string.h>

#include "daemon/sched.h"

#define CHANCES_MAX 256 /* tokens with log-probabilities in one message: half of its bytes at most */

/* That a connection has ended is noticed when something is sent; of a job that waits nothing is. A client takes no
 * notice of a heartbeat. */
static void drop_gone(struct wn_scheduler *s, struct wn_job *job)
{
    Wn__Heartbeat beat = WN__HEARTBEAT__INIT;

    for (unsigned i = job->watchers_n; i-- > 0;)
        if (wn_sched_send(s->clients, &job->watchers[i].peer, WN__ENVELOPE__BODY_HEARTBEAT, &beat, NULL, 0, 0, NULL) ==
            WN_EPEER)
            job->watchers[i] = job->watchers[--job->watchers_n];
}

/* One that is there already starts anew. */
struct wn_watcher *wn_sched_watch(struct wn_scheduler *s, struct wn_job *job, const struct wn_peer_id *peer)
{
    struct wn_watcher *w = NULL;

    for (unsigned i = 0; i < job->watchers_n; i++)
        if (wn_peer_equal(&job->watchers[i].peer, peer)) w = &job->watchers[i];
    if (!w) {
        if (job->watchers_n == WN_SCHED_WATCHERS_MAX) drop_gone(s, job);
        if (job->watchers_n == WN_SCHED_WATCHERS_MAX) return NULL;
        w = &job->watchers[job->watchers_n++];
    }
    memset(w, 0, sizeof(*w));
    w->peer = *peer;
    return w;
}

static wn_status send_accepted(struct wn_scheduler *s, struct wn_job *job, struct wn_watcher *w, size_t *sent)
{
    Wn__Accepted a = WN__ACCEPTED__INIT;

    a.job_id = job->id;
    a.client_tag = w->tag;
    a.existed = w->existed;
    a.choice = w->choice;
    return wn_sched_send(s->clients, &w->peer, WN__ENVELOPE__BODY_ACCEPTED, &a, NULL, 0, 0, sent);
}

/* The piece of the answer after the follower's place. It ends where a leader's piece ended, or at the limit. */
static wn_status send_tokens(struct wn_scheduler *s, struct wn_job *job, struct wn_watcher *w, size_t *sent)
{
    const struct wn_transcript *a = &job->answer;
    Wn__JobRef ref = WN__JOB_REF__INIT;
    Wn__Tokens t = WN__TOKENS__INIT;
    size_t n = w->tokens_at < a->ids_n ? a->ids_n - w->tokens_at : 0, end;
    char saved;
    wn_status rc;

    if (n > WN_TOKENS_IDS_MAX) n = WN_TOKENS_IDS_MAX;
    if (job->chances.n && n > CHANCES_MAX) n = CHANCES_MAX;
    end = wn_transcript_text_at(a, w->tokens_at + n);
    if (w->tokens_at + n >= a->ids_n) end = a->text_bytes;
    if (end < w->text_at) end = w->text_at;
    ref.job_id = job->id;
    ref.attempt = job->life.attempt;
    t.job = &ref;
    t.first = (uint32_t)w->tokens_at;
    t.n_ids = n;
    t.ids = n ? a->ids + w->tokens_at : NULL;
    t.text = a->text + w->text_at;
    if (n && w->tokens_at + n <= job->chances.n) {
        t.logprobs = job->chances.of + w->tokens_at;
        t.n_logprobs = n;
    }
    saved = a->text[end]; /* ends the piece for the time of packing */
    a->text[end] = '\0';
    rc = wn_sched_send(s->clients, &w->peer, WN__ENVELOPE__BODY_TOKENS, &t, NULL, 0, 0, sent);
    a->text[end] = saved;
    if (rc != WN_OK) return rc;
    w->tokens_at += n;
    w->text_at = end;
    return WN_OK;
}

static wn_status send_end(struct wn_scheduler *s, struct wn_job *job, struct wn_watcher *w)
{
    Wn__JobRef ref = WN__JOB_REF__INIT;
    Wn__Done d = WN__DONE__INIT;
    Wn__Error e = WN__ERROR__INIT;

    ref.job_id = job->id;
    ref.attempt = job->life.attempt;
    if (job->life.state == WN_JOB_FAILED) {
        e.job = &ref;
        e.code = (uint32_t)job->error.code;
        e.text = job->error.text;
        e.client_tag = w->tag;
        e.retriable = job->retriable;
        return wn_sched_send(s->clients, &w->peer, WN__ENVELOPE__BODY_ERROR, &e, NULL, 0, 0, NULL);
    }
    job->usage.bytes_on_wire = &job->link;
    job->usage.pruning = &job->pruning;
    d.job = &ref;
    d.reason = job->reason;
    d.usage = &job->usage;
    d.text = job->answer.text ? job->answer.text : (char *)"";
    return wn_sched_send(s->clients, &w->peer, WN__ENVELOPE__BODY_DONE, &d, NULL, 0, 0, NULL);
}

/* WN_OK: up to date; WN_EBUSY: its queue is full; anything else: it is gone. *end: nothing more will come. */
static wn_status flush_watcher(struct wn_scheduler *s, struct wn_job *job, struct wn_watcher *w, bool *end)
{
    size_t sent = 0;
    wn_status rc;

    *end = false;
    if (!w->accepted) {
        if ((rc = send_accepted(s, job, w, &sent)) != WN_OK) return rc;
        w->accepted = true;
        job->link.control += sent;
    }
    if (w->ahead && w->tokens_at <= job->answer.ids_n) {
        w->text_at = wn_transcript_text_at(&job->answer, w->tokens_at);
        w->ahead = false;
    }
    while (w->stream && !w->ahead && (w->tokens_at < job->answer.ids_n || w->text_at < job->answer.text_bytes)) {
        if ((rc = send_tokens(s, job, w, &sent)) != WN_OK) return rc;
        if (!wn_job_ended(&job->life)) job->link.control += sent;
    }
    if (!wn_job_ended(&job->life) || (s->journal && !job->settled)) return WN_OK;
    if ((rc = send_end(s, job, w)) == WN_OK) *end = true;
    return rc;
}

void wn_sched_flush(struct wn_scheduler *s, struct wn_job *job)
{
    bool stalled = false;

    if (job->life.state == WN_JOB_ACCEPTED) return; /* not on record yet */
    for (unsigned i = 0; i < job->watchers_n;) {
        bool end;
        wn_status rc = flush_watcher(s, job, &job->watchers[i], &end);
        stalled = stalled || rc == WN_EBUSY;
        if (end || (rc != WN_OK && rc != WN_EBUSY)) /* the job goes on without it */
            job->watchers[i] = job->watchers[--job->watchers_n];
        else
            i++;
    }
    wn_sched_mark(s, job, WN_MARK_STALLED, stalled);
}

/* What a step gave goes out together: that wakes who writes to the socket, and who reads, once. */
void wn_sched_tell_news(struct wn_scheduler *s)
{
    struct wn_job *job;

    while ((job = s->news) != NULL) {
        s->news = job->by_news;
        job->news = false;
        wn_sched_flush(s, job);
    }
}
