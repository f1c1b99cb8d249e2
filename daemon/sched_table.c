/* daemon/sched_table.c - the job table: lookup by id and by key, lists and marks, and what jobs own. */
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/log.h"
#include "daemon/sched.h"

static void free_bytes(void *data, void *hint)
{
    (void)hint;
    free(data);
}

void wn_payload_release(struct wn_payload *p)
{
    if (p && atomic_fetch_sub(&p->refs, 1) == 1) free(p);
}

static void payload_free_fn(void *data, void *hint)
{
    (void)data;
    wn_payload_release(hint);
}

wn_status wn_sched_send(struct wn_endpoint *ep, const struct wn_peer_id *to, Wn__Envelope__BodyCase kind,
                        const void *body, struct wn_payload *payload, size_t offset, size_t bytes, size_t *sent)
{
    struct wn_err err = {0};
    struct wn_msg msg;
    uint8_t *data = NULL;
    size_t data_bytes = 0;
    wn_status rc = wn_codec_pack_body(&data, &data_bytes, kind, body, &err);

    if (rc != WN_OK) {
        wn_error("scheduler", "cannot send %s: %s", wn_codec_body_name(kind), err.text);
        return rc;
    }
    wn_msg_init(&msg);
    msg.peer = *to;
    rc = wn_msg_add_ref(&msg, data, data_bytes, free_bytes, NULL);
    if (rc != WN_OK) free(data);
    if (rc == WN_OK && payload) {
        atomic_fetch_add(&payload->refs, 1);
        rc = wn_msg_add_ref(&msg, payload->data + offset, bytes, payload_free_fn, payload);
        if (rc != WN_OK) wn_payload_release(payload);
    }
    if (rc == WN_OK)
        rc = wn_endpoint_send(ep, &msg,
                              payload                                ? WN_TRAFFIC_IMAGE
                              : kind == WN__ENVELOPE__BODY_TOKENS ? WN_TRAFFIC_TOKENS
                                                                  : WN_TRAFFIC_CONTROL);
    if (rc == WN_OK && sent) *sent = data_bytes;
    wn_msg_clear(&msg);
    return rc;
}

/* Keys come from clients, but a bucket's length is bounded by the number of jobs. */
static uint32_t bucket_of(const char *text)
{
    return wn_hash(text, strlen(text)) % WN_SCHED_BUCKETS;
}

/* Of image bytes, eight at a time: it chooses a worker and nothing else, so it need not resist anybody. */
static uint64_t hash_bytes(const uint8_t *p, size_t n)
{
    uint64_t h = 0x9e3779b97f4a7c15ull ^ n, v;

    for (; n >= 8; p += 8, n -= 8) {
        memcpy(&v, p, 8);
        h = (h ^ v) * 0xff51afd7ed558ccdull;
        h ^= h >> 32;
    }
    for (; n > 0; p++, n--) h = (h ^ *p) * 0x100000001b3ull;
    return h;
}

struct wn_job *wn_sched_job_find(struct wn_scheduler *s, const char *id)
{
    struct wn_job *job = s->by_id[bucket_of(id)];

    while (job && strcmp(job->id, id) != 0) job = job->by_id;
    return job;
}

struct wn_job *wn_sched_job_find_key(struct wn_scheduler *s, const char *key, const char *owner)
{
    struct wn_job *job = key[0] ? s->by_key[bucket_of(key)] : NULL;

    while (job && (strcmp(job->request->submit->idempotency_key, key) != 0 ||
                   strcmp(job->request->submit->owner, owner) != 0))
        job = job->by_key;
    return job;
}

static void list_remove(struct wn_scheduler *s, struct wn_job *job)
{
    if (job->list == WN_LISTS) return;
    wn_ticket_leave(&s->accounts, &job->ticket, false);
    if (job->prev) job->prev->next = job->next;
    else s->list[job->list].first = job->next;
    if (job->next) job->next->prev = job->prev;
    else s->list[job->list].last = job->prev;
    s->list[job->list].n--;
    job->prev = job->next = NULL;
    job->list = WN_LISTS;
}

void wn_sched_list_put(struct wn_scheduler *s, struct wn_job *job, enum wn_job_list list, bool first)
{
    list_remove(s, job);
    job->list = list;
    if (list == WN_LIST_QUEUED) wn_ticket_queue(&s->accounts, &job->ticket, first);
    if (first) {
        job->next = s->list[list].first;
        if (job->next) job->next->prev = job;
        else s->list[list].last = job;
        s->list[list].first = job;
    } else {
        job->prev = s->list[list].last;
        if (job->prev) job->prev->next = job;
        else s->list[list].first = job;
        s->list[list].last = job;
    }
    s->list[list].n++;
}

void wn_sched_mark(struct wn_scheduler *s, struct wn_job *job, enum wn_job_mark mark, bool on)
{
    if (job->mark[mark].on == on) return;
    job->mark[mark].on = on;
    if (on) {
        job->mark[mark].prev = NULL;
        job->mark[mark].next = s->marked[mark];
        if (s->marked[mark]) s->marked[mark]->mark[mark].prev = job;
        s->marked[mark] = job;
        return;
    }
    if (job->mark[mark].prev) job->mark[mark].prev->mark[mark].next = job->mark[mark].next;
    else s->marked[mark] = job->mark[mark].next;
    if (job->mark[mark].next) job->mark[mark].next->mark[mark].prev = job->mark[mark].prev;
}

void wn_sched_payload_drop(struct wn_scheduler *s, struct wn_job *job)
{
    if (!job->payload) return;
    s->held_bytes -= job->payload->bytes;
    wn_payload_release(job->payload);
    job->payload = NULL;
}

wn_status wn_sched_job_create(struct wn_scheduler *s, struct wn_job **out, Wn__Envelope *request, const char *id,
                              const void *images, size_t images_bytes, struct wn_err *err)
{
    const Wn__Submit *submit = request->submit;
    struct wn_job *job = calloc(1, sizeof(*job)), **bucket;
    size_t at = 0;

    if (!images) images_bytes = 0;
    if (job && images_bytes > 0) job->payload = malloc(sizeof(*job->payload) + images_bytes);
    if (!job || (images_bytes > 0 && !job->payload)) {
        free(job);
        return wn_fail(err, WN_ENOMEM, "no memory for a job with %zu bytes of images", images_bytes);
    }
    if (job->payload) {
        atomic_init(&job->payload->refs, 1);
        job->payload->bytes = images_bytes;
        memcpy(job->payload->data, images, images_bytes);
        s->held_bytes += images_bytes;
    }
    /* the caller checked that they fill the payload exactly */
    for (uint32_t i = 0; job->payload && i < submit->n_image_bytes; i++) {
        struct wn_job_image *im = &job->images[job->images_n++];
        im->offset = at;
        im->bytes = (size_t)submit->image_bytes[i];
        im->hash = hash_bytes(job->payload->data + at, im->bytes);
        im->worker = im->avoid = WN_NO_WORKER;
        at += im->bytes;
    }
    if (id) snprintf(job->id, sizeof(job->id), "%s", id);
    else wn_job_id_make(job->id);
    job->life = (struct wn_job_life){.state = WN_JOB_ACCEPTED, .attempts_max = s->cfg.max_attempts};
    job->request = request;
    job->leader = WN_NO_WORKER;
    job->list = WN_LISTS;
    job->usage = (Wn__Usage)WN__USAGE__INIT;
    job->link = (Wn__LinkBytes)WN__LINK_BYTES__INIT;
    bucket = &s->by_id[bucket_of(job->id)];
    job->by_id = *bucket;
    *bucket = job;
    if (submit->idempotency_key[0]) {
        bucket = &s->by_key[bucket_of(submit->idempotency_key)];
        job->by_key = *bucket;
        *bucket = job;
    }
    *out = job;
    return WN_OK;
}

void wn_sched_job_share(struct wn_scheduler *s, struct wn_job *job, const struct wn_job *twin)
{
    if (!twin->payload) return;
    atomic_fetch_add(&twin->payload->refs, 1);
    job->payload = twin->payload;
    job->images_n = twin->images_n;
    memcpy(job->images, twin->images, sizeof(job->images));
    s->held_bytes += job->payload->bytes; /* as if it had its own: the bound stays a bound */
    for (uint32_t i = 0; i < job->images_n; i++) {
        job->images[i].worker = WN_NO_WORKER;
        job->images[i].encoded = false;
    }
}

void wn_sched_job_destroy(struct wn_scheduler *s, struct wn_job *job)
{
    const char *key = job->request->submit->idempotency_key;
    struct wn_job **p;

    list_remove(s, job);
    for (int m = 0; m < WN_MARKS; m++) wn_sched_mark(s, job, (enum wn_job_mark)m, false);
    wn_ticket_close(&s->accounts, &job->ticket);
    for (p = &s->by_id[bucket_of(job->id)]; *p; p = &(*p)->by_id) {
        if (*p != job) continue;
        *p = job->by_id;
        break;
    }
    for (p = &s->by_key[bucket_of(key)]; *p; p = &(*p)->by_key) {
        if (*p != job) continue;
        *p = job->by_key;
        break;
    }
    wn_sched_payload_drop(s, job);
    wn_transcript_fini(&job->answer);
    wn_chances_fini(&job->chances);
    wn_codec_free(job->request);
    free(job);
}

void wn_sched_bury(struct wn_scheduler *s, struct wn_job *job)
{
    memcpy(s->gone[s->gone_at].id, job->id, sizeof(job->id));
    s->gone[s->gone_at].acknowledged = job->acknowledged;
    s->gone_at = (s->gone_at + 1) % WN_SCHED_GONE;
    wn_sched_job_destroy(s, job);
}

const char *wn_sched_gone(const struct wn_scheduler *s, const char *id)
{
    for (unsigned i = 0; i < WN_SCHED_GONE; i++) {
        if (strcmp(s->gone[i].id, id) != 0) continue;
        return s->gone[i].acknowledged ? "was acknowledged: its result is not kept any more"
                                       : "has expired: its result is not kept any more";
    }
    return "is not known here";
}

void wn_sched_expire(struct wn_scheduler *s, int64_t now_us)
{
    const int64_t ttl_us = (int64_t)s->cfg.result_ttl_s * 1000000;

    /* acknowledged ones, then oldest first; a job that somebody still reads may stay a little over the number, not
     * over the time */
    for (struct wn_job *job = s->list[WN_LIST_ENDED].first, *next; job; job = next) {
        const size_t n = s->list[WN_LIST_ENDED].n;
        const int64_t age_us = now_us - job->ended_us, grace_us = job->watchers_n ? 10000000 : 0;
        bool over = n > s->cfg.max_results && (!job->watchers_n || n > (size_t)s->cfg.max_results + s->cfg.max_queue);
        next = job->next;
        if (job->acknowledged) {
            if (!job->watchers_n) (void)wn_sched_forget(s, job);
            continue;
        }
        if (!over && age_us <= (ttl_us > grace_us ? ttl_us : grace_us)) {
            if (n <= s->cfg.max_results) break; /* the rest is younger */
            continue;
        }
        if (!wn_sched_forget(s, job) && job->settled && !job->recording) break; /* nor would the next */
    }
}
