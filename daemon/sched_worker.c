/* daemon/sched_worker.c - vision workers and leaders: who is there, and what they answer. */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "daemon/pruning_ask.h"
#include "daemon/sched.h"
#include "winnow_version.h"

#define ENCODE_ORDERS_MAX 2 /* of one image in one attempt */
#define FULL_PAUSE_US     100000ll /* before a worker without room is asked again */
#define CONNECT_US        500000ll /* for a worker that was cut off to connect again */
#define ROLL_CALL_US      500000ll /* until ZeroMQ has taken down a connection that it says is lost */

static bool is_leader(const struct wn_sched_worker *w)
{
    return w->role == WN__ROLE__ROLE_LEADER;
}

static int find_peer(const struct wn_scheduler *s, const struct wn_peer_id *peer)
{
    for (int i = 0; i < s->workers_n; i++)
        if (wn_peer_equal(&s->worker[i].peer, peer)) return i;
    return WN_NO_WORKER;
}

static int find_name(const struct wn_scheduler *s, Wn__Role role, const char *name)
{
    for (int i = 0; i < s->workers_n; i++)
        if (s->worker[i].role == role && strcmp(s->worker[i].name, name) == 0) return i;
    return WN_NO_WORKER;
}

/* A new place, or that of somebody who is long gone. */
static int find_place(struct wn_scheduler *s)
{
    if (s->workers_n < WN_SCHED_WORKERS_MAX) return s->workers_n++;
    for (int i = 0; i < s->workers_n; i++)
        if (!s->worker[i].up) return i;
    return WN_NO_WORKER;
}

unsigned wn_sched_workers_up(const struct wn_scheduler *s, Wn__Role role)
{
    unsigned n = 0;

    for (int i = 0; i < s->workers_n; i++) n += s->worker[i].up && s->worker[i].role == role;
    return n;
}

static void note_absence(struct wn_scheduler *s)
{
    const bool there[2] = {wn_sched_workers_up(s, WN__ROLE__ROLE_LEADER) > 0,
                           wn_sched_workers_up(s, WN__ROLE__ROLE_VISION) > 0};

    for (int i = 0; i < 2; i++) {
        if (there[i]) s->absent_us[i] = 0;
        else if (s->absent_us[i] == 0) s->absent_us[i] = wn_now_us();
    }
}

/* Whether a running job cannot go on without this worker. Features that were sent may still have been in its queue, so
 * a vision worker counts until the leader's first token shows that they arrived. */
static bool depends(const struct wn_job *job, int worker)
{
    if (job->leader == worker) return true;
    if (job->answered) return false;
    for (uint32_t i = 0; i < job->images_n; i++)
        if (job->images[i].worker == worker) return true;
    return false;
}

/* The worker no longer has the image; rather another one gets the next order. */
static void take_image(struct wn_scheduler *s, struct wn_job_image *im)
{
    struct wn_sched_worker *w = &s->worker[im->worker];

    if (!im->encoded && w->outstanding) w->outstanding--;
    im->avoid = im->worker;
    im->worker = WN_NO_WORKER;
    im->encoded = false;
}

/* Another vision worker can encode what this one had, for the same attempt: the leader drops what comes twice. false:
 * it has been tried, or the worker is the job's leader. */
static bool order_again(struct wn_scheduler *s, struct wn_job *job, int worker)
{
    if (job->leader == worker) return false;
    for (uint32_t i = 0; i < job->images_n; i++)
        if (job->images[i].worker == worker && job->images[i].orders >= ENCODE_ORDERS_MAX) return false;
    for (uint32_t i = 0; i < job->images_n; i++)
        if (job->images[i].worker == worker) take_image(s, &job->images[i]);
    return true;
}

/* Whether a worker has not got on with anything for --encode-timeout, at least since `since_us`. */
static bool stands_still(const struct wn_scheduler *s, int worker, int64_t since_us, int64_t now_us)
{
    const int64_t moved_us = s->worker[worker].moved_us, wait_us = (int64_t)s->cfg.encode_timeout_ms * 1000;

    return wait_us && now_us - (since_us > moved_us ? since_us : moved_us) > wait_us;
}

/* The worker has no room for the job's images, as when features wait there for a leader that is busy. That is no
 * attempt: they are ordered again before long, while the worker or the leader gets on. false: neither does for
 * --encode-timeout, or the worker is the job's leader. */
static bool order_later(struct wn_scheduler *s, struct wn_job *job, int worker)
{
    const int64_t now_us = wn_now_us();

    if (job->leader == worker) return false;
    for (uint32_t i = 0; i < job->images_n; i++) {
        struct wn_job_image *im = &job->images[i];
        if (im->worker != worker) continue;
        if (!im->full_us) im->full_us = now_us;
        if (stands_still(s, worker, im->full_us, now_us) && stands_still(s, job->leader, im->full_us, now_us))
            return false;
        im->order_at_us = now_us + FULL_PAUSE_US;
        im->orders--;
        take_image(s, im);
    }
    return true;
}

/* A worker that is alive and does not get on, or not with this image although all before it have had their time:
 * somebody else is asked, or the attempt is lost. One that is only slow is waited for. */
void wn_sched_slow_encodes(struct wn_scheduler *s, int64_t now_us)
{
    const int64_t wait_us = (int64_t)s->cfg.encode_timeout_ms * 1000;
    char why[128];

    for (struct wn_job *job = s->list[WN_LIST_RUNNING].first, *next; job && wait_us; job = next) {
        next = job->next;
        for (uint32_t i = 0; i < job->images_n; i++) {
            const struct wn_job_image *im = &job->images[i];
            const int worker = im->worker;
            if (worker == WN_NO_WORKER || im->encoded || im->waiting) continue;
            if (!stands_still(s, worker, im->ordered_us, now_us) &&
                now_us - im->ordered_us <= wait_us * (s->worker[worker].slots + 1))
                continue;
            snprintf(why, sizeof(why), "%s had image %u for %lld ms", s->worker[worker].name, i,
                     (long long)(now_us - im->ordered_us) / 1000);
            wn_warn("scheduler", "job %s: %s", job->id, why);
            wn_sched_tell_cancel(s, worker, job);
            if (!order_again(s, job, worker)) wn_sched_lose(s, job, why);
            break;
        }
    }
}

static bool lists(Wn__JobRef *const *refs, size_t n, const struct wn_job *job)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(refs[i]->job_id, job->id) == 0 && refs[i]->attempt == job->life.attempt) return true;
    return false;
}

/* Takes its jobs back, but for those that it says it still has. */
static void take_back(struct wn_scheduler *s, int worker, const char *why, const Wn__Hello *hello)
{
    for (struct wn_job *job = s->list[WN_LIST_RUNNING].first, *next; job; job = next) {
        next = job->next;
        if (!depends(job, worker) || (hello && lists(hello->running, hello->n_running, job))) continue;
        if (!order_again(s, job, worker)) wn_sched_lose(s, job, why);
    }
}

/* Jobs of the scheduler before this one that a leader still has: they go on where they are. */
static void adopt(struct wn_scheduler *s, int leader, const Wn__Hello *h)
{
    for (struct wn_job *job = s->list[WN_LIST_ORPHANED].first, *next; job; job = next) {
        next = job->next;
        if (!lists(h->running, h->n_running, job)) continue;
        job->leader = leader;
        job->answered = lists(h->answering, h->n_answering, job);
        job->dispatched_us = wn_now_us();
        wn_sched_list_put(s, job, WN_LIST_RUNNING, false);
        wn_info("scheduler", "job %s goes on at %s", job->id, s->worker[leader].name);
    }
}

void wn_sched_worker_lost(struct wn_scheduler *s, int worker, const char *why)
{
    struct wn_sched_worker *w = &s->worker[worker];
    char text[WN_ERR_TEXT_MAX];

    if (!w->up) return;
    wn_warn("scheduler", "%s is lost: %s", w->name, why);
    w->up = false;
    note_absence(s);
    snprintf(text, sizeof(text), "%s was lost: %.200s", w->name, why);
    take_back(s, worker, text, NULL);
    w->outstanding = 0;
}

void wn_sched_leases(struct wn_scheduler *s, int64_t now_us)
{
    char why[64];

    snprintf(why, sizeof(why), "nothing heard for %u ms", s->cfg.lease_ms);
    for (int i = 0; i < s->workers_n; i++)
        if (s->worker[i].up && now_us - s->worker[i].last_seen_us > (int64_t)s->cfg.lease_ms * 1000)
            wn_sched_worker_lost(s, i, why);
}

/* A process that dies takes its connection along, and is missed at once: on this machine a connection breaks with its
 * process only. One to another machine may come back, and the worker with it, which says hello again: it has the time
 * to connect and two heartbeats for that. */
void wn_sched_roll_call(struct wn_scheduler *s, int64_t now_us)
{
    const bool here = strncmp(wn_endpoint_address(s->workers), "ipc://", 6) == 0;
    const int64_t back_us = here ? 0 : CONNECT_US + 2000ll * s->cfg.heartbeat_ms;
    Wn__Heartbeat beat = WN__HEARTBEAT__INIT;
    struct wn_endpoint_stats stats;

    wn_endpoint_stats_get(s->workers, &stats);
    if (stats.disconnected != s->cuts) s->call_until_us = now_us + ROLL_CALL_US;
    s->cuts = stats.disconnected;
    for (int i = 0; i < s->workers_n; i++) {
        struct wn_sched_worker *w = &s->worker[i];
        if (!w->up) continue;
        if (!w->cut_us && now_us < s->call_until_us &&
            wn_sched_send(s->workers, &w->peer, WN__ENVELOPE__BODY_HEARTBEAT, &beat, NULL, 0, 0, NULL) == WN_EPEER)
            w->cut_us = now_us;
        if (w->cut_us && now_us - w->cut_us >= back_us) wn_sched_worker_lost(s, i, "its connection has ended");
    }
}

/* It asks again and again: the log has it once. */
static void turn_away(struct wn_scheduler *s, Wn__Role role, const char *name, const char *host, const char *why)
{
    if (wn_turned_away_note(&s->turned_away, role, name, host, why, wn_now_us()))
        wn_warn("scheduler", "turned away %s%s%s: %s", name, host[0] ? " on " : "", host, why);
}

/* Whose key is not in the list is known by that key; of other handshakes ZeroMQ says only that they failed. */
void wn_sched_strangers(struct wn_scheduler *s, int64_t now_us)
{
    struct wn_endpoint_stats stats;
    struct wn_stranger who;
    char name[65];

    while (wn_endpoint_stranger(s->workers, &who)) {
        snprintf(name, sizeof(name), "key %s", who.key);
        turn_away(s, WN__ROLE__ROLE_UNSET, name, who.address, "its key is not that of the workers");
    }
    wn_endpoint_stats_get(s->workers, &stats);
    if (stats.mismatched != s->mismatched)
        turn_away(s, WN__ROLE__ROLE_UNSET, "no name", "",
                  s->access ? "no handshake: it has no key, or takes this for another service, or is no worker"
                            : "no handshake: it has a key, and this service has none, or it is no worker");
    s->mismatched = stats.mismatched;
    wn_turned_away_expire(&s->turned_away, now_us);
}

/* Against all but the place that the worker had. */
static wn_status check_mates(const struct wn_scheduler *s, const Wn__Hello *h, int place, struct wn_err *err)
{
    for (int i = 0; i < s->workers_n; i++) {
        const struct wn_sched_worker *w = &s->worker[i];
        if (i != place && w->up && strcmp(w->model_id, h->model_id) != 0)
            return wn_fail(err, WN_EINVAL,
                           "%s serves model %.12s, but %s serves %.12s: they do not mix (were files replaced?)",
                           h->name, h->model_id, w->name, w->model_id);
        if (i != place && w->up && w->role == h->role && h->tokens_max != w->tokens_max)
            return wn_fail(err, WN_EINVAL,
                           "%s takes %u tokens a job, but %s takes %u: a job must fit either (--max-model-len)",
                           h->name, h->tokens_max, w->name, w->tokens_max);
    }
    return WN_OK;
}

/* With it goes how much is here of each job that it has: it says the rest. */
static void send_welcome(struct wn_scheduler *s, int worker, const Wn__Hello *h)
{
    Wn__Kept *kept = calloc(h->n_running + 1, sizeof(*kept)), **list = calloc(h->n_running + 1, sizeof(*list));
    Wn__Welcome body = WN__WELCOME__INIT;

    for (size_t i = 0; kept && list && i < h->n_running; i++) {
        const struct wn_job *job = wn_sched_job_find(s, h->running[i]->job_id);
        if (!job || !wn_job_takes(&job->life, h->running[i]->attempt) || job->leader != worker) continue;
        kept[body.n_kept] = (Wn__Kept)WN__KEPT__INIT;
        kept[body.n_kept].job = h->running[i];
        kept[body.n_kept].tokens = (uint32_t)job->answer.ids_n;
        list[body.n_kept] = &kept[body.n_kept];
        body.n_kept++;
    }
    body.kept = list;
    body.lease_ms = s->cfg.lease_ms;
    body.heartbeat_ms = s->cfg.heartbeat_ms;
    body.worker_id = s->worker[worker].name;
    (void)!wn_sched_send(s->workers, &s->worker[worker].peer, WN__ENVELOPE__BODY_WELCOME, &body, NULL, 0, 0, NULL);
    free(list);
    free(kept);
}

static void fill_worker(struct wn_sched_worker *w, const Wn__Hello *h, const struct wn_peer_id *peer)
{
    w->up = true;
    w->confirmed = w->draining = w->hangs = false;
    w->cut_us = w->moved_us = 0;
    w->peer = *peer;
    w->role = h->role;
    w->pid = h->pid;
    w->slots = h->slots ? h->slots : 1;
    w->tokens_max = h->tokens_max;
    snprintf(w->name, sizeof(w->name), "%s", h->name);
    snprintf(w->host, sizeof(w->host), "%s", h->host);
    snprintf(w->model_id, sizeof(w->model_id), "%s", h->model_id);
    snprintf(w->build, sizeof(w->build), "%s", strcmp(h->build, WN_BUILD) == 0 ? "" : h->build);
    if (w->build[0]) wn_warn("scheduler", "%s is of build %s, this is " WN_BUILD, w->name, w->build);
    snprintf(w->features_endpoint, sizeof(w->features_endpoint), "%s", h->features_endpoint);
    wn_codec_free(w->heartbeat);
    w->heartbeat = NULL;
}

/* Jobs that the worker still has and that are not its any more. */
static void cancel_strange(struct wn_scheduler *s, int worker, const Wn__Hello *h)
{
    for (size_t i = 0; i < h->n_running; i++) {
        const struct wn_job *job = wn_sched_job_find(s, h->running[i]->job_id);
        Wn__Cancel c = WN__CANCEL__INIT;
        if (job && wn_job_takes(&job->life, h->running[i]->attempt) && depends(job, worker)) continue;
        c.job = h->running[i];
        (void)!wn_sched_send(s->workers, &s->worker[worker].peer, WN__ENVELOPE__BODY_CANCEL, &c, NULL, 0, 0, NULL);
    }
}

static void on_hello(struct wn_scheduler *s, const struct wn_peer_id *peer, const Wn__Hello *h)
{
    int i = find_name(s, h->role, h->name);
    struct wn_sched_worker *w = i == WN_NO_WORKER ? NULL : &s->worker[i];
    struct wn_err err = {0};

    if (w && w->up && wn_peer_equal(&w->peer, peer) && w->pid == h->pid && !w->confirmed) {
        w->last_seen_us = wn_now_us(); /* it had not seen our Welcome yet when it said hello again */
        send_welcome(s, i, h);
        return;
    }
    if (check_mates(s, h, i, &err) != WN_OK) { /* first: it must not push out the worker whose name it has */
        turn_away(s, h->role, h->name, h->host, err.text);
        wn_sched_refuse(s->workers, peer, NULL, &err);
        return;
    }
    if (w && w->up) {
        char why[WN_ERR_TEXT_MAX];
        bool same = w->pid == h->pid;
        snprintf(why, sizeof(why), "%s %s", w->name, same ? "gave up its jobs and came back" : "was restarted");
        w->up = false;
        take_back(s, i, why, same ? h : NULL);
    }
    if (i == WN_NO_WORKER && (i = find_place(s)) == WN_NO_WORKER) {
        wn_fail(&err, WN_ELIMIT, "more than %d workers", WN_SCHED_WORKERS_MAX);
        turn_away(s, h->role, h->name, h->host, err.text);
        wn_sched_refuse(s->workers, peer, NULL, &err);
        return;
    }
    w = &s->worker[i];
    fill_worker(w, h, peer);
    w->last_seen_us = wn_now_us();
    w->outstanding = 0;
    if (is_leader(w)) adopt(s, i, h);
    for (const struct wn_job *job = s->list[WN_LIST_RUNNING].first; job; job = job->next) { /* what it kept */
        w->outstanding += is_leader(w) && job->leader == i;
        for (uint32_t k = 0; !is_leader(w) && k < job->images_n; k++)
            w->outstanding += job->images[k].worker == i && !job->images[k].encoded;
    }
    note_absence(s);
    wn_turned_away_forget(&s->turned_away, w->role, w->name);
    wn_info("scheduler", "%s on %s is there, %u slots", w->name, w->host, w->slots);
    send_welcome(s, i, h);
    cancel_strange(s, i, h);
    if (is_leader(w)) wn_sched_orphans(s, wn_now_us()); /* before its slots go to jobs that have waited less */
}

uint64_t wn_sched_stalled_ms(const struct wn_sched_worker *w, uint32_t *rank)
{
    const Wn__Heartbeat *h = w->heartbeat ? w->heartbeat->heartbeat : NULL;
    uint64_t most = 0;

    for (size_t i = 0; h && i < h->n_ranks; i++) {
        if (h->ranks[i]->stalled_ms <= most) continue;
        most = h->ranks[i]->stalled_ms;
        *rank = h->ranks[i]->rank;
    }
    return most;
}

/* A leader whose engine hangs takes no features: vision workers' places are for images of others, until it gets on and
 * these are ordered again. That is no attempt. */
static void take_places_back(struct wn_scheduler *s, int leader)
{
    for (struct wn_job *job = s->list[WN_LIST_RUNNING].first; job; job = job->next) {
        for (uint32_t i = 0; job->leader == leader && !job->answered && i < job->images_n; i++) {
            const int worker = job->images[i].worker;
            if (worker == WN_NO_WORKER || job->images[i].encoded) continue;
            wn_sched_tell_cancel(s, worker, job);
            for (uint32_t k = 0; k < job->images_n; k++) { /* the job's others there are given up with it */
                if (job->images[k].worker != worker) continue;
                take_image(s, &job->images[k]);
                job->images[k].avoid = WN_NO_WORKER;
                job->images[k].orders--;
            }
        }
    }
}

/* Whether a rank has done nothing for a lease, as the last heartbeat says. */
static void note_stall(struct wn_scheduler *s, int worker)
{
    struct wn_sched_worker *w = &s->worker[worker];
    uint32_t rank = 0;
    const uint64_t stalled_ms = wn_sched_stalled_ms(w, &rank);
    const bool hangs = is_leader(w) && stalled_ms > s->cfg.lease_ms;

    if (hangs == w->hangs) return;
    w->hangs = hangs;
    if (hangs) wn_warn("scheduler", "rank %u of %s does nothing; its jobs wait", rank, w->name);
    else wn_info("scheduler", "%s gets on", w->name);
    if (hangs) take_places_back(s, worker);
}

static void on_heartbeat(struct wn_scheduler *s, int worker, Wn__Envelope **env)
{
    struct wn_sched_worker *w = &s->worker[worker];
    Wn__Heartbeat answer = WN__HEARTBEAT__INIT;
    const Wn__Heartbeat *was = w->heartbeat ? w->heartbeat->heartbeat : NULL, *is = (*env)->heartbeat;

    if (was && (is->images != was->images || is->steps != was->steps)) w->moved_us = wn_now_us();
    wn_codec_free(w->heartbeat);
    w->heartbeat = *env;
    *env = NULL;
    w->confirmed = true;
    note_stall(s, worker);
    (void)!wn_sched_send(s->workers, &w->peer, WN__ENVELOPE__BODY_HEARTBEAT, &answer, NULL, 0, 0, NULL);
}

/* The job that an answer is about, if the answer still counts. */
static struct wn_job *current(struct wn_scheduler *s, const Wn__JobRef *ref, const char *what)
{
    struct wn_job *job = wn_sched_job_find(s, ref->job_id);

    if (job && wn_job_takes(&job->life, ref->attempt)) return job;
    wn_debug("scheduler", "dropped %s of job %s, attempt %u: %s", what, ref->job_id, ref->attempt,
             job ? wn_job_state_name(job->life.state) : "not known");
    return NULL;
}

static void on_encoded(struct wn_scheduler *s, int worker, const Wn__Encoded *e, size_t bytes)
{
    struct wn_job *job = current(s, e->job, "Encoded");
    struct wn_job_image *im;

    s->worker[worker].moved_us = wn_now_us(); /* whoever wanted that */
    if (!job || e->image >= job->images_n) return;
    im = &job->images[e->image];
    if (im->worker != worker || im->encoded) return;
    im->waiting = e->waiting; /* for a leader that is busy: nobody else could be faster */
    if (e->waiting) return;
    im->encoded = true;
    if (s->worker[worker].outstanding) s->worker[worker].outstanding--;
    job->link.control += bytes;
    job->link.embedding += e->bytes;
    job->usage.image_tokens += e->rows;
    job->usage.image_tokens_before_pruning += e->rows_before;
    wn_pruning_copy_numbers(&job->pruning, e->pruning);
    job->usage.preprocess_us += e->preprocess_us;
    job->usage.encode_us += e->encode_us;
    job->usage.prune_us += e->prune_us;
}

static void on_tokens(struct wn_scheduler *s, int worker, const Wn__Tokens *t, size_t bytes)
{
    struct wn_job *job = current(s, t->job, "Tokens");
    struct wn_err err = {0};
    bool news;

    if (!job || job->leader != worker) return;
    job->link.control += bytes;
    job->answered = true;
    if (job->news) wn_sched_flush(s, job); /* pieces stay what the leader sent */
    if (wn_transcript_add(&job->answer, t->first, t->ids, t->n_ids, t->text, &news, &err) != WN_OK) {
        wn_warn("scheduler", "%s: job %s: %s", s->worker[worker].name, job->id, err.text);
        if (err.code == WN_EPROTO) wn_sched_lose(s, job, err.text);
        else wn_sched_fail(s, job, err.code, false, err.text);
        return;
    }
    if (!news) return;
    s->generated_tokens += t->n_ids;
    if (t->n_logprobs) (void)!wn_chances_add(&job->chances, t->first, t->logprobs, t->n_logprobs);
    wn_sched_mark(s, job, WN_MARK_DIRTY, true); /* recorded before long */
    if (!job->first_token_us) job->first_token_us = wn_now_us();
    if (job->news) return;
    job->news = true;
    job->by_news = s->news;
    s->news = job;
}

static void on_error(struct wn_scheduler *s, int worker, const Wn__Error *e)
{
    struct wn_sched_worker *w = &s->worker[worker];
    struct wn_job *job;
    bool concerned;

    if (!e->job || !e->job->job_id || !e->job->job_id[0]) {
        if (is_leader(w) && e->code >= WN_EPEER) wn_sched_worker_lost(s, worker, e->text);
        else wn_warn("scheduler", "%s says: %s", w->name, e->text);
        return;
    }
    if (!(job = current(s, e->job, "Error"))) return;
    concerned = job->leader == worker;
    for (uint32_t i = 0; i < job->images_n; i++) concerned |= job->images[i].worker == worker;
    if (!concerned) return;
    if (job->leader != worker && job->answered) return; /* the features arrived after all */
    if (e->retriable) {
        const bool full = e->code == WN_EBUSY;
        if (full && job->leader == worker) w->draining = true; /* it leaves: the next order would be refused, too */
        if (!(full ? order_later(s, job, worker) : order_again(s, job, worker))) wn_sched_lose(s, job, e->text);
    } else {
        wn_sched_fail(s, job, e->code > 0 && e->code < WN_STATUS_N ? (wn_status)e->code : WN_EPEER, false, e->text);
    }
}

static void on_answer(struct wn_scheduler *s, int worker, Wn__Envelope **env, size_t bytes)
{
    Wn__Envelope *e = *env;
    struct wn_job *job;

    switch (e->body_case) {
    case WN__ENVELOPE__BODY_HEARTBEAT: on_heartbeat(s, worker, env); break;
    case WN__ENVELOPE__BODY_ENCODED: on_encoded(s, worker, e->encoded, bytes); break;
    case WN__ENVELOPE__BODY_TOKENS: on_tokens(s, worker, e->tokens, bytes); break;
    case WN__ENVELOPE__BODY_DONE:
        job = current(s, e->done->job, "Done");
        if (job && job->leader == worker) {
            job->link.control += bytes;
            wn_sched_complete(s, job, e->done);
        }
        break;
    case WN__ENVELOPE__BODY_ERROR: on_error(s, worker, e->error); break;
    case WN__ENVELOPE__BODY_DRAIN: s->worker[worker].draining = true; break;
    default:
        wn_warn("scheduler", "%s sent %s, which is not for the scheduler", s->worker[worker].name,
                wn_codec_body_name(e->body_case));
    }
}

void wn_sched_worker_message(struct wn_scheduler *s, struct wn_msg *msg)
{
    const size_t bytes = wn_msg_size(msg, 0);
    Wn__Envelope *env = NULL;
    struct wn_err err = {0};
    int worker;

    wn_endpoint_received(s->workers, WN_TRAFFIC_CONTROL, bytes);
    if (wn_codec_unpack(&env, wn_msg_data(msg, 0), bytes, &err) != WN_OK) {
        s->refused_messages++;
        if (err.code == WN_EUNSUPP && (env = wn_codec_unpack_strange_hello(wn_msg_data(msg, 0), bytes)) != NULL)
            turn_away(s, env->hello->role, env->hello->name, env->hello->host, err.text);
        wn_codec_free(env);
        wn_sched_refuse(s->workers, &msg->peer, NULL, &err);
        return;
    }
    if (env->body_case == WN__ENVELOPE__BODY_HELLO) {
        on_hello(s, &msg->peer, env->hello);
    } else if ((worker = find_peer(s, &msg->peer)) != WN_NO_WORKER && s->worker[worker].up) {
        s->worker[worker].last_seen_us = wn_now_us();
        on_answer(s, worker, &env, bytes);
    } else if (env->body_case == WN__ENVELOPE__BODY_HEARTBEAT) {
        /* It knew the scheduler before this one, or was given up and is alive: then others may be here by now that it
         * does not go with. */
        wn_fail(&err, WN_ENOENT, "a heartbeat of a worker that has not said hello");
        wn_sched_refuse(s->workers, &msg->peer, NULL, &err);
    } else {
        wn_debug("scheduler", "%s from a stranger", wn_codec_body_name(env->body_case));
    }
    wn_codec_free(env);
}

bool wn_sched_dismiss(struct wn_scheduler *s)
{
    Wn__Drain drain = WN__DRAIN__INIT;
    Wn__Heartbeat beat = WN__HEARTBEAT__INIT;
    bool all = true;

    for (int i = 0; i < s->workers_n; i++) {
        struct wn_sched_worker *w = &s->worker[i];
        const bool told = w->draining; /* or it leaves by itself */
        wn_status rc;
        if (!w->up) continue;
        rc = wn_sched_send(s->workers, &w->peer, told ? WN__ENVELOPE__BODY_HEARTBEAT : WN__ENVELOPE__BODY_DRAIN,
                           told ? (const void *)&beat : &drain, NULL, 0, 0, NULL);
        w->draining = told || rc == WN_OK;
        w->up = rc == WN_OK || rc == WN_EBUSY;
        all = all && !w->up;
    }
    return all;
}
