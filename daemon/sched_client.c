/* daemon/sched_client.c - what clients ask. */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "daemon/pruning_ask.h"
#include "daemon/sched.h"

#define HELD_MAX     ((size_t)2 << 30) /* images of all jobs that have not ended; more is Busy */
#define RETRY_MS_MIN 50
#define RETRY_MS_MAX 10000

void wn_sched_refuse(struct wn_endpoint *ep, const struct wn_peer_id *to, const char *tag, const struct wn_err *err)
{
    Wn__Error e = WN__ERROR__INIT;

    e.code = (uint32_t)err->code;
    e.text = (char *)(uintptr_t)err->text;
    e.client_tag = (char *)(uintptr_t)(tag ? tag : "");
    wn_info("scheduler", "refused: %s", err->text);
    (void)!wn_sched_send(ep, to, WN__ENVELOPE__BODY_ERROR, &e, NULL, 0, 0, NULL); /* gone or full: nothing lost */
}

static wn_status check_images(const struct wn_scheduler *s, const Wn__Submit *r, size_t payload, struct wn_err *err)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < r->n_image_bytes; i++) {
        if (r->image_bytes[i] == 0) return wn_fail(err, WN_EINVAL, "image %zu is empty", i + 1);
        if (r->image_bytes[i] > s->cfg.image_bytes_max)
            return wn_fail(err, WN_ELIMIT, "image %zu has %llu bytes; at most %llu are allowed", i + 1,
                           (unsigned long long)r->image_bytes[i], (unsigned long long)s->cfg.image_bytes_max);
        sum += r->image_bytes[i]; /* 16 of at most 2^30 */
    }
    if (sum > s->cfg.max_request_bytes)
        return wn_fail(err, WN_ELIMIT, "the images have %llu bytes together; at most %llu are allowed",
                       (unsigned long long)sum, (unsigned long long)s->cfg.max_request_bytes);
    if (sum != payload)
        return wn_fail(err, WN_EPROTO, "the images are said to have %llu bytes; %zu came", (unsigned long long)sum,
                       payload);
    return WN_OK;
}

/* More than ever fits is an error: who is told to come back would come back for ever. */
static wn_status check_choices(const struct wn_scheduler *s, const Wn__Submit *r, size_t payload, struct wn_err *err)
{
    const uint32_t most = s->cfg.max_queue < s->accounts.jobs_max ? s->cfg.max_queue : s->accounts.jobs_max;

    if (r->n > WN_CHOICES_MAX) return wn_fail(err, WN_ELIMIT, "n is %u; at most %d are allowed", r->n, WN_CHOICES_MAX);
    if (r->n > 1 && strlen(r->idempotency_key) > WN_KEY_BYTES_MAX - 3) /* "#15" is added */
        return wn_fail(err, WN_ELIMIT, "with n > 1 the idempotency key may have %d bytes", WN_KEY_BYTES_MAX - 3);
    if (r->n > most)
        return wn_fail(err, WN_ELIMIT, "n is %u; this server holds at most %u jobs of a client at a time", r->n, most);
    if (payload > 0 && r->n > HELD_MAX / payload)
        return wn_fail(err, WN_ELIMIT, "n is %u, and the images have %zu bytes; at most %zu are allowed together", r->n,
                       payload, HELD_MAX);
    return WN_OK;
}

static wn_status check_submit(const struct wn_scheduler *s, const Wn__Submit *r, size_t payload, struct wn_err *err)
{
    const struct wn_prune_method *method;
    struct wn_prune_ask ask;
    Wn__Pruning pruning;
    wn_status rc;

    if (!r->prompt[0] && r->n_image_bytes == 0) return wn_fail(err, WN_EINVAL, "the prompt is empty");
    if ((rc = check_images(s, r, payload, err)) != WN_OK) return rc;
    if ((rc = wn_sampling_check(r->sampling, err)) != WN_OK) return rc;
    if ((rc = wn_pruning_check(r->pruning, err)) != WN_OK) return rc;
    wn_pruning_complete(&pruning, r->pruning, &s->cfg);
    return wn_pruning_ask(&pruning, &method, &ask, err);
}

/* Why nothing more is taken just now; NULL if it is. */
static const char *full(const struct wn_scheduler *s, uint32_t jobs, size_t payload)
{
    if (s->draining) return "the server is shutting down";
    if (s->journal_error.code != WN_OK) return s->journal_error.text;
    if (s->list[WN_LIST_PENDING].n + s->list[WN_LIST_QUEUED].n + s->list[WN_LIST_RUNNING].n + jobs > s->cfg.max_queue)
        return "the queue is full";
    if (s->held_bytes > HELD_MAX || jobs * payload > HELD_MAX - s->held_bytes)
        return "too many images are waiting";
    return NULL;
}

/* About when the next job will have ended: then there is room again. */
static uint32_t retry_ms(const struct wn_scheduler *s)
{
    const int64_t ms = s->gap_us / 1000;

    return (uint32_t)(ms < RETRY_MS_MIN ? RETRY_MS_MIN : ms > RETRY_MS_MAX ? RETRY_MS_MAX : ms);
}

static void send_busy(struct wn_scheduler *s, const struct wn_peer_id *to, const char *tag, const char *why,
                      uint32_t after_ms)
{
    Wn__Busy b = WN__BUSY__INIT;

    s->busy++;
    b.client_tag = (char *)(uintptr_t)tag;
    b.retry_ms = after_ms;
    b.reason = (char *)(uintptr_t)why;
    (void)!wn_sched_send(s->clients, to, WN__ENVELOPE__BODY_BUSY, &b, NULL, 0, 0, NULL);
}

void wn_sched_busy(struct wn_scheduler *s, const struct wn_peer_id *to, const char *tag, const char *why)
{
    send_busy(s, to, tag, why, retry_ms(s));
}

/* Who is charged: a key, else a connection. */
static struct wn_peer_id client_of(const struct wn_peer_id *peer, const char *owner)
{
    struct wn_peer_id who = *peer;

    if (!owner[0]) return who;
    who.n = WN_PEER_ID_MAX; /* 32 of a key's 40 characters tell keys apart */
    memcpy(who.bytes, owner, WN_PEER_ID_MAX);
    return who;
}

/* The sender's account if it may bring so many jobs now; else it was answered. */
static struct wn_account *charge(struct wn_scheduler *s, const struct wn_peer_id *peer, const Wn__Submit *r,
                                 uint32_t jobs, size_t payload)
{
    const int64_t now = wn_now_us();
    const char *why = full(s, jobs, payload);
    const struct wn_peer_id who = client_of(peer, r->owner);
    struct wn_account *acc = why ? NULL : wn_account_open(&s->accounts, &who, now);
    uint32_t after_ms = 0;
    char text[128];

    if (acc && wn_account_allows(&s->accounts, acc, jobs, now, &after_ms)) return acc;
    if (!why && !acc) {
        why = "too many clients";
    } else if (!why) {
        if (after_ms) snprintf(text, sizeof(text), "more than %g jobs/s from this client", s->accounts.jobs_per_s);
        else snprintf(text, sizeof(text), "this client has %u jobs here; at most %u at a time", acc->jobs,
                      s->accounts.jobs_max);
        why = text;
    }
    send_busy(s, peer, r->client_tag, why, after_ms ? after_ms : retry_ms(s));
    return NULL;
}

static void refuse_follower(struct wn_scheduler *s, const struct wn_peer_id *peer, const char *tag,
                            const struct wn_job *job)
{
    struct wn_err err = {0};

    wn_fail(&err, WN_ELIMIT, "job %s has %d followers already", job->id, WN_SCHED_WATCHERS_MAX);
    wn_sched_refuse(s->clients, peer, tag, &err);
}

/* Lets the sender of r follow the job. */
static void follow(struct wn_scheduler *s, struct wn_job *job, const struct wn_peer_id *peer, const Wn__Submit *r,
                   uint32_t choice, bool existed)
{
    struct wn_watcher *w = wn_sched_watch(s, job, peer);

    if (!w) {
        refuse_follower(s, peer, r->client_tag, job);
        return;
    }
    snprintf(w->tag, sizeof(w->tag), "%s", r->client_tag);
    w->stream = r->stream;
    w->choice = choice;
    w->existed = existed;
}

int64_t wn_sched_deadline(const Wn__Submit *r, int64_t submitted_us)
{
    if (r->deadline_ms == 0 || r->deadline_ms >= (uint64_t)(WN_NEVER / 2) / 1000) return WN_NEVER;
    return submitted_us + (int64_t)r->deadline_ms * 1000;
}

/* One request as it came. */
struct request {
    const struct wn_peer_id *peer;
    const uint8_t *data; /* the envelope */
    size_t bytes;
    const void *images; /* NULL: none */
    size_t images_bytes;
    const struct wn_access_entry *who; /* NULL: no keys */
};

/* A job with the request's end, or one to be tried again: not of use to who submits under its key. */
static bool usable(const struct wn_job *job)
{
    return job && !(job->life.state == WN_JOB_FAILED && job->retriable);
}

/* The key of one choice: the first has the client's own. */
static void choice_key(const Wn__Submit *r, uint32_t choice, char out[WN_KEY_BYTES_MAX + 16])
{
    if (choice == 0 || !r->idempotency_key[0])
        snprintf(out, WN_KEY_BYTES_MAX + 16, "%s", r->idempotency_key);
    else
        snprintf(out, WN_KEY_BYTES_MAX + 16, "%s#%u", r->idempotency_key, choice);
}

/* The request of one choice alone: its key, its seed. NULL: without memory. */
static Wn__Envelope *choice_request(const struct request *q, uint32_t choice)
{
    Wn__Envelope *env = NULL;
    char key[WN_KEY_BYTES_MAX + 16], *own;

    if (wn_codec_unpack(&env, q->data, q->bytes, NULL) != WN_OK) return NULL;
    if (wn_access_stamp(env->submit, q->who) != WN_OK) { /* the bytes may say another owner */
        wn_codec_free(env);
        return NULL;
    }
    choice_key(env->submit, choice, key);
    env->submit->n = 0;
    if (env->submit->sampling) env->submit->sampling->seed += choice;
    if (strcmp(env->submit->idempotency_key, key) == 0) return env;
    if (!(own = strdup(key))) {
        wn_codec_free(env);
        return NULL;
    }
    free(env->submit->idempotency_key); /* not the shared empty text: the client's key is in it */
    env->submit->idempotency_key = own;
    return env;
}

/* A new job of the account. NULL: it was answered. */
static struct wn_job *add_job(struct wn_scheduler *s, const struct request *q, uint32_t choice,
                              struct wn_account *account, const struct wn_job *twin)
{
    Wn__Envelope *env = choice_request(q, choice);
    const void *images = twin ? NULL : q->images;
    struct wn_job *job = NULL;
    struct wn_err err = {0};
    const Wn__Submit *r;

    if (!env) {
        wn_fail(&err, WN_ENOMEM, "no memory for the job");
        wn_sched_refuse(s->clients, q->peer, NULL, &err);
        return NULL;
    }
    r = env->submit;
    if (wn_sched_job_create(s, &job, env, NULL, images, images ? q->images_bytes : 0, &err) != WN_OK) {
        wn_sched_refuse(s->clients, q->peer, r->client_tag, &err);
        wn_codec_free(env);
        return NULL;
    }
    if (twin) wn_sched_job_share(s, job, twin);
    wn_ticket_open(&job->ticket, account);
    job->submitted_us = job->queued_us = wn_now_us();
    job->deadline_us = wn_sched_deadline(r, job->submitted_us);
    wn_pruning_complete(&job->pruning, r->pruning, &s->cfg);
    if (choice == 0) { /* the client said it once for all answers */
        job->link.control += q->bytes;
        job->link.image += images ? q->images_bytes : 0;
    }
    if (s->journal && wn_sched_journal_add(s, job) != WN_OK) {
        wn_sched_busy(s, q->peer, r->client_tag, "the journal cannot keep up");
        wn_sched_job_destroy(s, job);
        return NULL;
    }
    wn_sched_list_put(s, job, WN_LIST_PENDING, false);
    return job;
}

static void on_submit(struct wn_scheduler *s, const struct request *q, const Wn__Submit *r)
{
    const uint32_t n = r->n ? r->n : 1;
    struct wn_job *jobs[WN_CHOICES_MAX] = {NULL}, *twin = NULL;
    struct wn_account *account = NULL;
    uint32_t fresh = 0;
    struct wn_err err = {0};
    char key[WN_KEY_BYTES_MAX + 16];

    if (check_choices(s, r, q->images_bytes, &err) != WN_OK) {
        wn_sched_refuse(s->clients, q->peer, r->client_tag, &err);
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        choice_key(r, i, key);
        jobs[i] = wn_sched_job_find_key(s, key, r->owner);
        if (!usable(jobs[i])) jobs[i] = NULL;
        fresh += !jobs[i];
    }
    if (fresh && check_submit(s, r, q->images_bytes, &err) != WN_OK) {
        wn_sched_refuse(s->clients, q->peer, r->client_tag, &err);
        return;
    }
    if (fresh && !(account = charge(s, q->peer, r, fresh, q->images_bytes))) return;
    for (uint32_t i = 0; i < n; i++) {
        const bool existed = jobs[i] != NULL;
        if (!existed && !(jobs[i] = add_job(s, q, i, account, twin))) return;
        if (!existed) twin = jobs[i];
        follow(s, jobs[i], q->peer, r, i, existed);
        if (existed) wn_sched_flush(s, jobs[i]);
        else if (!s->journal) wn_sched_admit(s, jobs[i]);
    }
    wn_debug("scheduler", "job %s: %zu bytes of prompt, %zu images, %u answers", jobs[0]->id, strlen(r->prompt),
             r->n_image_bytes, n);
}

/* The job, if `who` may have it; else an answer is sent. */
static struct wn_job *find_own(struct wn_scheduler *s, const struct wn_peer_id *peer, const char *id,
                               const struct wn_access_entry *who)
{
    struct wn_job *job = wn_sched_job_find(s, id);
    struct wn_err err = {0};

    if (job && wn_access_owns(who, job->request->submit)) return job;
    if (job)
        wn_fail(&err, WN_EAUTH, "job %s belongs to another key", id);
    else
        wn_fail(&err, WN_ENOENT, "job '%s' %s", id, wn_sched_gone(s, id));
    wn_sched_refuse(s->clients, peer, id, &err);
    s->refused_messages += job != NULL;
    return NULL;
}

static void on_attach(struct wn_scheduler *s, const struct wn_peer_id *peer, const Wn__Attach *a,
                      const struct wn_access_entry *who)
{
    struct wn_job *job = find_own(s, peer, a->job_id, who);
    struct wn_watcher *w;
    struct wn_err err = {0};

    if (!job) return;
    if (job->acknowledged) {
        wn_fail(&err, WN_ENOENT, "job %s was acknowledged: its result is not kept any more", job->id);
        wn_sched_refuse(s->clients, peer, a->job_id, &err);
        return;
    }
    if (!(w = wn_sched_watch(s, job, peer))) {
        refuse_follower(s, peer, a->job_id, job);
        return;
    }
    w->stream = w->existed = true;
    w->tokens_at = a->from_token;
    w->ahead = a->from_token > job->answer.ids_n;
    w->text_at = wn_transcript_text_at(&job->answer, w->tokens_at);
    wn_sched_flush(s, job);
}

static void on_cancel(struct wn_scheduler *s, const struct wn_peer_id *peer, const Wn__Cancel *c,
                      const struct wn_access_entry *who)
{
    struct wn_job *job = find_own(s, peer, c->job->job_id, who);
    bool follows = false;

    if (!job) return;
    for (unsigned i = 0; i < job->watchers_n; i++) follows |= wn_peer_equal(&job->watchers[i].peer, peer);
    if (!follows) { /* who cancels hears of the end */
        struct wn_watcher *w = wn_sched_watch(s, job, peer);
        if (w) w->existed = true;
        else refuse_follower(s, peer, c->job->job_id, job);
    }
    if (!wn_job_ended(&job->life)) wn_sched_cancel(s, job);
    else wn_sched_flush(s, job);
}

/* Nothing is answered to who says it twice, or after the result has expired. */
static void on_acknowledge(struct wn_scheduler *s, const struct wn_peer_id *peer, const Wn__Acknowledge *a,
                           const struct wn_access_entry *who)
{
    struct wn_job *job = wn_sched_job_find(s, a->job_id);
    struct wn_err err = {0};

    if (!job || job->acknowledged || !(job = find_own(s, peer, a->job_id, who))) return;
    if (!wn_job_ended(&job->life)) {
        wn_fail(&err, WN_EINVAL, "job %s has not ended: there is nothing to acknowledge", job->id);
        wn_sched_refuse(s->clients, peer, NULL, &err);
        return;
    }
    job->acknowledged = true; /* the tick forgets it when its last follower has it */
    wn_sched_list_put(s, job, WN_LIST_ENDED, true);
}

/* The service ends, as after SIGTERM. */
static void on_drain(struct wn_scheduler *s, const struct wn_peer_id *peer, const Wn__Drain *d,
                     const struct wn_access_entry *who)
{
    const int64_t wait_us = d->deadline_ms ? d->deadline_ms * 1000ll : s->cfg.shutdown_timeout_s * 1000000ll;
    Wn__Drain answer = WN__DRAIN__INIT;
    int64_t left_us;

    wn_info("scheduler", "%s drains the service", who ? who->name : "a client");
    wn_sched_drain(s, wn_deadline_in_us(wait_us));
    left_us = s->drain_until_us - wn_now_us();
    answer.deadline_ms = left_us > 0 ? (uint32_t)(left_us / 1000) : 0;
    answer.jobs = (uint32_t)wn_sched_jobs_left(s);
    (void)!wn_sched_send(s->clients, peer, WN__ENVELOPE__BODY_DRAIN, &answer, NULL, 0, 0, NULL);
}

/* Parses a message and checks that it may come from here. *env may be set on failure, too. */
static wn_status admit_message(const struct wn_scheduler *s, Wn__Envelope **env, struct wn_msg *msg,
                               const struct wn_access_entry *who, struct wn_err *err)
{
    wn_status rc;

    if (s->access && !who) return wn_fail(err, WN_EAUTH, "this key is not known here"); /* the handshake saw to that */
    if ((rc = wn_codec_unpack(env, wn_msg_data(msg, 0), wn_msg_size(msg, 0), err)) != WN_OK) return rc;
    if ((rc = wn_access_check(who, (*env)->body_case, err)) != WN_OK) return rc;
    if ((*env)->body_case == WN__ENVELOPE__BODY_SUBMIT)
        return wn_access_stamp((*env)->submit, who) == WN_OK ? WN_OK : wn_fail(err, WN_ENOMEM, "a job's owner");
    if (msg->frames_n > 1) return wn_fail(err, WN_EPROTO, "%s with a payload", wn_codec_body_name((*env)->body_case));
    return WN_OK;
}

void wn_sched_client_message(struct wn_scheduler *s, struct wn_msg *msg)
{
    const struct wn_peer_id peer = msg->peer;
    const size_t bytes = wn_msg_size(msg, 0), payload = msg->frames_n > 1 ? wn_msg_size(msg, 1) : 0;
    const struct wn_access_entry *who = s->access ? wn_access_find(s->access, wn_msg_key(msg)) : NULL;
    Wn__Envelope *env = NULL;
    struct wn_err err = {0};

    wn_endpoint_received(s->clients, WN_TRAFFIC_CONTROL, bytes);
    if (msg->frames_n > 1) wn_endpoint_received(s->clients, WN_TRAFFIC_IMAGE, payload);
    if (admit_message(s, &env, msg, who, &err) != WN_OK) {
        s->refused_messages++;
        wn_sched_refuse(s->clients, &peer, NULL, &err);
        wn_codec_free(env);
        return;
    }
    switch (env->body_case) {
    case WN__ENVELOPE__BODY_SUBMIT:
        on_submit(s,
                  &(struct request){.peer = &peer,
                                    .data = wn_msg_data(msg, 0),
                                    .bytes = bytes,
                                    .images = msg->frames_n > 1 ? wn_msg_data(msg, 1) : NULL,
                                    .images_bytes = payload,
                                    .who = who},
                  env->submit);
        break;
    case WN__ENVELOPE__BODY_ACKNOWLEDGE: on_acknowledge(s, &peer, env->acknowledge, who); break;
    case WN__ENVELOPE__BODY_ATTACH: on_attach(s, &peer, env->attach, who); break;
    case WN__ENVELOPE__BODY_CANCEL: on_cancel(s, &peer, env->cancel, who); break;
    case WN__ENVELOPE__BODY_STATUS_REQUEST: wn_sched_status_send(s, &peer, who); break;
    case WN__ENVELOPE__BODY_DRAIN: on_drain(s, &peer, env->drain, who); break;
    default:
        wn_fail(&err, WN_EPROTO, "%s is not for clients", wn_codec_body_name(env->body_case));
        s->refused_messages++;
        wn_sched_refuse(s->clients, &peer, NULL, &err);
    }
    wn_codec_free(env);
}
