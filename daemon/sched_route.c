/* daemon/sched_route.c - who gets which job, and every change of a job's state after it was accepted. */
#include <string.h>

#include "base/log.h"
#include "daemon/sched.h"

#define GAP_MAX_US ((int64_t)5000000)

static bool has_room(const struct wn_sched_worker *w, Wn__Role role)
{
    return w->up && !w->draining && !w->solo && !w->hangs && w->role == role && w->outstanding < w->slots;
}

/* The last try of a job whose leaders have died is made alone: if it is the job that kills them, nobody else's tries
 * are used up with it, and if it is not, it gets through. */
static bool wants_solo(const struct wn_job *job)
{
    return job->deaths > 0 && job->life.attempt + 1 >= job->life.attempts_max;
}

/* The leader with the smallest share of its slots in use; among equals the one that has had fewest jobs. */
static int pick_leader(const struct wn_scheduler *s, bool solo)
{
    int best = WN_NO_WORKER;

    for (int i = 0; i < s->workers_n; i++) {
        const struct wn_sched_worker *w = &s->worker[i], *b = &s->worker[best < 0 ? 0 : best];
        uint64_t load, best_load;
        if (!has_room(w, WN__ROLE__ROLE_LEADER) || (solo && w->outstanding > 0)) continue;
        load = (uint64_t)w->outstanding * b->slots;
        best_load = (uint64_t)b->outstanding * w->slots;
        if (best < 0 || load < best_load || (load == best_load && w->dispatched < b->dispatched)) best = i;
    }
    return best;
}

static uint64_t mix(uint64_t h, const char *name)
{
    for (; *name; name++) h = (h ^ (unsigned char)*name) * 0x100000001b3ull;
    h ^= h >> 33;
    h *= 0xff51afd7ed558ccdull;
    return h ^ h >> 33;
}

/* The worker that this image belongs to (the highest hash of image and name: when a worker leaves, only its images
 * move), or if that one is full the least loaded with room. */
static int pick_vision(const struct wn_scheduler *s, const struct wn_job_image *im)
{
    const bool choice = wn_sched_workers_up(s, WN__ROLE__ROLE_VISION) > 1;
    int home = WN_NO_WORKER, idle = WN_NO_WORKER;
    uint64_t home_hash = 0;

    for (int i = 0; i < s->workers_n; i++) {
        const struct wn_sched_worker *w = &s->worker[i];
        uint64_t h;
        if (!w->up || w->draining || w->role != WN__ROLE__ROLE_VISION || (choice && i == im->avoid)) continue;
        h = mix(im->hash, w->name);
        if (home < 0 || h > home_hash) {
            home = i;
            home_hash = h;
        }
        if (w->outstanding < w->slots && (idle < 0 || w->outstanding < s->worker[idle].outstanding)) idle = i;
    }
    return home >= 0 && has_room(&s->worker[home], WN__ROLE__ROLE_VISION) ? home : idle;
}

void wn_sched_tell_cancel(struct wn_scheduler *s, int worker, const struct wn_job *job)
{
    Wn__JobRef ref = WN__JOB_REF__INIT;
    Wn__Cancel c = WN__CANCEL__INIT;

    ref.job_id = (char *)(uintptr_t)job->id;
    ref.attempt = job->life.attempt;
    c.job = &ref;
    (void)!wn_sched_send(s->workers, &s->worker[worker].peer, WN__ENVELOPE__BODY_CANCEL, &c, NULL, 0, 0, NULL);
}

/* The attempt is over: its workers have room again; `cancel` tells them to stop. */
static void release(struct wn_scheduler *s, struct wn_job *job, bool cancel)
{
    if (job->leader != WN_NO_WORKER) {
        struct wn_sched_worker *w = &s->worker[job->leader];
        if (w->outstanding) w->outstanding--;
        if (job->solo) w->solo = false;
        job->solo = false;
        if (cancel) wn_sched_tell_cancel(s, job->leader, job);
        job->leader = WN_NO_WORKER;
    }
    for (uint32_t i = 0; i < job->images_n; i++) {
        struct wn_job_image *im = &job->images[i];
        if (im->worker != WN_NO_WORKER && !im->encoded) {
            struct wn_sched_worker *w = &s->worker[im->worker];
            if (w->outstanding) w->outstanding--;
            if (cancel) wn_sched_tell_cancel(s, im->worker, job);
        }
        im->worker = WN_NO_WORKER;
        im->encoded = false;
        im->orders = 0;
        im->avoid = WN_NO_WORKER;
        im->full_us = im->order_at_us = 0;
    }
}

/* How often a job ends: what Busy tells. A pause counts for little. */
static void note_gap(struct wn_scheduler *s, int64_t now_us)
{
    const int64_t gap_us = now_us - s->ended_us;

    if (s->ended_us) s->gap_us += ((gap_us < GAP_MAX_US ? gap_us : GAP_MAX_US) - s->gap_us) / 8;
    s->ended_us = now_us;
}

/* The job has ended in life.state. */
static void finish(struct wn_scheduler *s, struct wn_job *job)
{
    job->ended_us = wn_now_us();
    note_gap(s, job->ended_us);
    wn_ticket_close(&s->accounts, &job->ticket);
    job->usage.attempts = job->life.attempt;
    job->usage.completion_tokens = (uint32_t)job->answer.ids_n;
    job->usage.total_us = (uint64_t)(job->ended_us - job->submitted_us);
    if (job->first_token_us) job->usage.time_to_first_token_us = (uint64_t)(job->first_token_us - job->submitted_us);
    wn_sched_payload_drop(s, job);
    wn_sched_list_put(s, job, WN_LIST_ENDED, false);
    s->prompt_tokens += job->usage.prompt_tokens;
    s->image_tokens += job->usage.image_tokens;
    s->image_tokens_before += job->usage.image_tokens_before_pruning;
    if (s->journal) s->unsettled++;
    wn_sched_record(s, job);
    if (job->life.state == WN_JOB_DONE) s->answered++;
    if (job->life.state == WN_JOB_FAILED) s->failed++;
    if (job->life.state == WN_JOB_CANCELLED) s->cancelled++;
    wn_info("scheduler", "job %s %s after %llu ms, attempt %u%s%s", job->id, wn_job_state_name(job->life.state),
            (unsigned long long)job->usage.total_us / 1000, job->life.attempt, job->error.text[0] ? ": " : "",
            job->error.text);
    wn_sched_flush(s, job);
}

void wn_sched_admit(struct wn_scheduler *s, struct wn_job *job)
{
    struct wn_err err = {0};

    if (wn_job_apply(&job->life, WN_JOB_QUEUE, &err) != WN_OK) return; /* it was cancelled meanwhile */
    wn_sched_list_put(s, job, WN_LIST_QUEUED, false);
    s->accepted++;
    wn_sched_flush(s, job);
}

void wn_sched_lose(struct wn_scheduler *s, struct wn_job *job, const char *why)
{
    struct wn_err err = {0};
    char text[WN_ERR_TEXT_MAX];

    snprintf(text, sizeof(text), "%s", why); /* why may lie in what is changed below */
    if (job->leader != WN_NO_WORKER && !s->worker[job->leader].up) job->deaths++;
    release(s, job, true);
    if (wn_job_apply(&job->life, WN_JOB_LOSE, &err) != WN_OK) return;
    if (wn_job_ended(&job->life)) {
        if (job->deaths)
            wn_fail(&job->error, WN_EPEER,
                    "gave up after %u attempts, %u of which ended with their replica; the last: %.300s",
                    job->life.attempt, job->deaths, text);
        else
            wn_fail(&job->error, WN_EPEER, "gave up after %u attempts: %.300s", job->life.attempt, text);
        job->retriable = true;
        finish(s, job);
        return;
    }
    wn_warn("scheduler", "job %s goes back to the queue: %s", job->id, text);
    job->queued_us = wn_now_us();
    wn_sched_list_put(s, job, WN_LIST_QUEUED, true); /* it has waited longest */
    wn_sched_record(s, job);
}

void wn_sched_orphans(struct wn_scheduler *s, int64_t now_us)
{
    const bool all = wn_sched_workers_up(s, WN__ROLE__ROLE_LEADER) >= s->cfg.expect_replicas;

    if (!all && now_us < s->adopt_until_us) return;
    while (s->list[WN_LIST_ORPHANED].last) /* each goes to the head of the queue: the oldest last */
        wn_sched_lose(s, s->list[WN_LIST_ORPHANED].last, "no replica has it any more");
}

void wn_sched_fail(struct wn_scheduler *s, struct wn_job *job, wn_status code, bool retriable, const char *why)
{
    struct wn_err err = {0};
    char text[WN_ERR_TEXT_MAX];

    snprintf(text, sizeof(text), "%s", why);
    release(s, job, true);
    if (wn_job_apply(&job->life, WN_JOB_FAIL, &err) != WN_OK) return;
    wn_fail(&job->error, code, "%s", text);
    job->retriable = retriable;
    finish(s, job);
}

void wn_sched_cancel(struct wn_scheduler *s, struct wn_job *job)
{
    struct wn_err err = {0};

    release(s, job, true);
    if (wn_job_apply(&job->life, WN_JOB_CANCEL, &err) != WN_OK) return;
    job->reason = WN__FINISH_REASON__FINISH_CANCELLED;
    finish(s, job);
}

/* What the leader measured goes before what was added up from Encoded: it knows of caches. */
static void merge_usage(struct wn_job *job, const Wn__Usage *from)
{
    Wn__Usage encoded = job->usage;

    job->usage.bytes_on_wire = &job->link;
    if (from->preprocess_us || from->encode_us || from->prune_us)
        job->usage.preprocess_us = job->usage.encode_us = job->usage.prune_us = 0;
    wn_usage_add(&job->usage, from);
    job->usage.vision_cache_hit = from->vision_cache_hit;
    job->usage.cached_tokens = from->cached_tokens;
    if (!job->usage.image_tokens) job->usage.image_tokens = encoded.image_tokens;
}

void wn_sched_complete(struct wn_scheduler *s, struct wn_job *job, const Wn__Done *done)
{
    struct wn_err err = {0};

    if (done->reason == WN__FINISH_REASON__FINISH_ERROR) {
        wn_sched_fail(s, job, WN_EPEER, false, done->text[0] ? done->text : "the replica could not finish the job");
        return;
    }
    release(s, job, false);
    if (wn_job_apply(&job->life, WN_JOB_COMPLETE, &err) != WN_OK) return;
    if (done->usage) merge_usage(job, done->usage);
    job->reason = done->reason;
    finish(s, job);
}

static bool send_generate(struct wn_scheduler *s, struct wn_job *job, int leader)
{
    const Wn__Submit *r = job->request->submit;
    Wn__JobRef ref = WN__JOB_REF__INIT;
    Wn__Generate g = WN__GENERATE__INIT;
    size_t sent = 0;
    wn_status rc;

    ref.job_id = job->id;
    ref.attempt = job->life.attempt;
    g.job = &ref;
    g.prompt = r->prompt;
    g.images = job->images_n;
    g.sampling = r->sampling;
    g.emitted = job->answer.ids;
    g.n_emitted = job->answer.ids_n;
    g.pruning = &job->pruning;
    rc = wn_sched_send(s->workers, &s->worker[leader].peer, WN__ENVELOPE__BODY_GENERATE, &g, NULL, 0, 0, &sent);
    if (rc == WN_OK) job->link.control += sent;
    else if (rc == WN_ELIMIT) wn_sched_fail(s, job, WN_ELIMIT, false, "prompt and answer do not fit in one message");
    else wn_sched_worker_lost(s, leader, "its connection is gone");
    return rc == WN_OK;
}

static bool send_encode(struct wn_scheduler *s, struct wn_job *job, uint32_t image, int worker)
{
    const struct wn_sched_worker *leader = &s->worker[job->leader];
    struct wn_job_image *im = &job->images[image];
    Wn__JobRef ref = WN__JOB_REF__INIT;
    Wn__Encode e = WN__ENCODE__INIT;
    size_t sent = 0;

    ref.job_id = job->id;
    ref.attempt = job->life.attempt;
    e.job = &ref;
    e.image = image;
    e.pruning = &job->pruning;
    e.leader_endpoint = (char *)(uintptr_t)leader->features_endpoint;
    e.leader_name = (char *)(uintptr_t)leader->name;
    im->orders++;
    im->ordered_us = wn_now_us();
    im->waiting = false;
    im->worker = worker; /* before the send: if that fails, this job is among the worker's */
    s->worker[worker].outstanding++;
    s->worker[worker].dispatched++;
    if (wn_sched_send(s->workers, &s->worker[worker].peer, WN__ENVELOPE__BODY_ENCODE, &e, job->payload, im->offset,
                      im->bytes, &sent) != WN_OK) {
        wn_sched_worker_lost(s, worker, "its connection is gone");
        return false;
    }
    job->link.control += sent;
    job->link.image += im->bytes;
    return true;
}

/* Orders for the images that have no worker yet, as far as there is room. false: the job's state has changed. */
static bool encode_some(struct wn_scheduler *s, struct wn_job *job)
{
    if (s->worker[job->leader].hangs) return true; /* it would not take them */
    for (uint32_t i = 0; i < job->images_n; i++) {
        const struct wn_job_image *im = &job->images[i];
        int worker;
        if (im->worker != WN_NO_WORKER || (im->order_at_us && wn_now_us() < im->order_at_us)) continue;
        if ((worker = pick_vision(s, im)) == WN_NO_WORKER) return true;
        if (!send_encode(s, job, i, worker)) return false;
    }
    return true;
}

static void start(struct wn_scheduler *s, struct wn_job *job, int leader)
{
    const bool solo = wants_solo(job);
    struct wn_err err = {0};

    if (wn_job_apply(&job->life, WN_JOB_DISPATCH, &err) != WN_OK) return;
    wn_ticket_leave(&s->accounts, &job->ticket, true);
    wn_sched_list_put(s, job, WN_LIST_RUNNING, false);
    job->dispatched_us = wn_now_us();
    job->usage.queue_us = (uint64_t)(job->dispatched_us - job->submitted_us);
    job->usage.image_tokens = job->usage.image_tokens_before_pruning = 0;
    job->usage.preprocess_us = job->usage.encode_us = job->usage.prune_us = 0;
    job->answered = false;
    job->leader = leader;
    s->worker[leader].solo = job->solo = solo;
    s->worker[leader].outstanding++;
    s->worker[leader].dispatched++;
    if (job->life.attempt > 1) s->replayed++;
    wn_sched_record(s, job);
    if (send_generate(s, job, leader)) (void)encode_some(s, job);
}

/* The first queued job in the order of turns (accounts.h) that has workers; NULL: none. */
static struct wn_job *next_queued(struct wn_scheduler *s)
{
    const bool vision = wn_sched_workers_up(s, WN__ROLE__ROLE_VISION) > 0;

    for (struct wn_account *acc = s->accounts.turn_first; acc; acc = acc->turn_next) {
        for (struct wn_ticket *t = acc->first; t; t = t->next) {
            struct wn_job *job = (struct wn_job *)((char *)t - offsetof(struct wn_job, ticket));
            if (vision || job->images_n == 0) return job;
        }
    }
    return NULL;
}

void wn_sched_dispatch(struct wn_scheduler *s)
{
    struct wn_job *queued;
    int leader;

    /* Whatever changes a job's state below may move others in the lists: then begin again. Each pass moves one job on,
     * and a job comes back at most attempts_max times. */
    for (struct wn_job *job = s->list[WN_LIST_RUNNING].first, *next; job; job = next) {
        next = job->next;
        if (!encode_some(s, job)) next = s->list[WN_LIST_RUNNING].first;
    }
    while ((queued = next_queued(s)) != NULL && (leader = pick_leader(s, wants_solo(queued))) != WN_NO_WORKER)
        start(s, queued, leader);
}

/* Has nobody of a kind been connected for too long while the job waited? */
static bool waited_in_vain(const struct wn_scheduler *s, int64_t absent_us, const struct wn_job *job, int64_t now_us)
{
    const int64_t since_us = absent_us > job->queued_us ? absent_us : job->queued_us;

    return absent_us && now_us - since_us > (int64_t)s->cfg.no_worker_timeout_ms * 1000;
}

/* NULL, or what the job has waited for too long. */
static const char *hopeless(const struct wn_scheduler *s, const struct wn_job *job, int64_t now_us)
{
    bool images_wait = false;

    if (!s->cfg.no_worker_timeout_ms || s->journal) return NULL; /* what is on record waits for workers to come back */
    for (uint32_t i = 0; i < job->images_n; i++) images_wait |= job->images[i].worker == WN_NO_WORKER;
    if (job->leader == WN_NO_WORKER && waited_in_vain(s, s->absent_us[0], job, now_us))
        return "no replica is connected";
    if (images_wait && waited_in_vain(s, s->absent_us[1], job, now_us)) return "no vision worker is connected";
    return NULL;
}

/* Where a job was when its time was up. */
static void deadline_text(const struct wn_job *job, char *text, size_t size)
{
    const uint64_t ms = job->request->submit->deadline_ms;
    const char *where = "it waited for its first token";
    char tokens[64];

    if (job->list == WN_LIST_QUEUED) where = "it was queued";
    for (uint32_t i = 0; where[0] && job->list != WN_LIST_QUEUED && i < job->images_n; i++)
        if (!job->images[i].encoded) where = "its images were encoded";
    if (job->answer.ids_n > 0) {
        snprintf(tokens, sizeof(tokens), "it was answered, after %zu tokens", job->answer.ids_n);
        where = tokens;
    }
    snprintf(text, size, "the job's deadline of %llu ms has passed while %s", (unsigned long long)ms, where);
}

void wn_sched_deadlines(struct wn_scheduler *s, int64_t now_us)
{
    for (int l = WN_LIST_QUEUED; l <= WN_LIST_RUNNING; l++) {
        for (struct wn_job *job = s->list[l].first, *next; job; job = next) {
            const char *why = hopeless(s, job, now_us);
            char text[WN_ERR_TEXT_MAX];
            next = job->next;
            if (job->deadline_us != WN_NEVER && now_us >= job->deadline_us) {
                deadline_text(job, text, sizeof(text));
                wn_sched_fail(s, job, WN_ETIME, false, text);
            } else if (why) {
                wn_sched_fail(s, job, WN_EPEER, true, why);
            }
        }
    }
}
