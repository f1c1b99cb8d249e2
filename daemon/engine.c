/* daemon/engine.c - see engine.h. */
#include "daemon/engine.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "shard/kvpool.h"

#define ORPHANS_MAX     64 /* features that came before their order */
#define ORPHAN_US       (10 * 1000000ll)
#define WORKER_CREDIT   4         /* images that a vision worker may have unacknowledged here */
#define STATS_PERIOD_US 1000000ll /* how old the reported traffic may get under load */
#define IDLE_WAIT_US    500000ll  /* a look at the drain flag, at least this often */

struct orphan {
    struct wn_front_msg *msg;
    int64_t until_us;
};

/* A step in flight: whose sequences it has. */
struct flight {
    struct wn_gen_job **order; /* [seqs_max] */
    uint32_t seqs_n;
    bool stats;
};

struct wn_engine {
    struct wn_engine_opts opts;
    struct wn_kvpool *pool;
    struct wn_prefix_cache *prefix;      /* every page comes from here and goes back here */
    struct wn_gen_job *jobs, **jobs_end; /* in order of arrival */
    uint32_t jobs_n;
    struct wn_gen_job **slots;                   /* [seqs_max] who has the slot */
    bool *feature_busy;                          /* [features_max] */
    uint32_t *closes, closes_n, *drops, drops_n; /* to be said in the next record */
    const void **features;                       /* [features_max] data of the record's features */
    struct wn_front_msg **handed;                /* [features_max] their messages, to acknowledge after the step */
    struct flight *flights;                      /* [depth], a ring */
    uint32_t depth, flights_first, flights_n;
    struct wn_step_token *tokens;
    struct orphan orphans[ORPHANS_MAX];
    bool draining, stats_due;
    int64_t stats_us;
};

wn_status wn_engine_open(struct wn_engine **out, const struct wn_engine_opts *opts, struct wn_err *err)
{
    const struct wn_step_limits *l = &opts->step;
    struct wn_engine *e = calloc(1, sizeof(*e));
    wn_status rc = WN_OK;

    if (!e) return wn_fail(err, WN_ENOMEM, "engine");
    e->opts = *opts;
    e->jobs_end = &e->jobs;
    e->slots = calloc(l->seqs_max, sizeof(*e->slots));
    e->depth = wn_replica_depth(opts->replica);
    e->flights = calloc(e->depth, sizeof(*e->flights));
    for (uint32_t i = 0; e->flights && i < e->depth; i++)
        if (!(e->flights[i].order = calloc(l->seqs_max, sizeof(*e->flights[i].order)))) rc = WN_ENOMEM;
    e->closes = calloc(l->seqs_max, sizeof(*e->closes));
    e->tokens = calloc(l->seqs_max, sizeof(*e->tokens));
    e->feature_busy = calloc(l->features_max, sizeof(*e->feature_busy));
    e->drops = calloc(l->features_max, sizeof(*e->drops));
    e->features = calloc(l->features_max, sizeof(*e->features));
    e->handed = calloc(l->features_max, sizeof(*e->handed));
    if (rc != WN_OK || !e->slots || !e->flights || !e->closes || !e->tokens || !e->feature_busy || !e->drops ||
        !e->features || !e->handed)
        rc = wn_fail(err, WN_ENOMEM, "engine of %u sequences", l->seqs_max);
    if (rc == WN_OK) rc = wn_kvpool_create(&e->pool, l->pages_max, err);
    if (rc == WN_OK) rc = wn_prefix_cache_create(&e->prefix, e->pool, err);
    if (rc != WN_OK) {
        wn_engine_close(e);
        return rc;
    }
    atomic_store(&wn_front_load(opts->front)->pages, l->pages_max);
    *out = e;
    return WN_OK;
}

void wn_engine_close(struct wn_engine *e)
{
    if (!e) return;
    while (e->jobs) {
        struct wn_gen_job *next = e->jobs->next;
        wn_gen_job_destroy(e->jobs);
        e->jobs = next;
    }
    for (int i = 0; i < ORPHANS_MAX; i++) wn_front_msg_free(e->orphans[i].msg);
    wn_prefix_cache_destroy(e->prefix);
    wn_kvpool_destroy(e->pool);
    free(e->handed);
    free(e->features);
    free(e->drops);
    free(e->feature_busy);
    free(e->tokens);
    free(e->closes);
    for (uint32_t i = 0; e->flights && i < e->depth; i++) free(e->flights[i].order);
    free(e->flights);
    free(e->slots);
    free(e);
}

/* ---- the life of a job ---- */

static struct wn_gen_job *find_job(struct wn_engine *e, const Wn__JobRef *ref)
{
    for (struct wn_gen_job *j = e->jobs; j; j = j->next)
        if (!j->doomed && wn_jobref_equal(j->g->job, ref)) return j;
    return NULL;
}

/* Takes the job out of every account and frees it; one with rows in flight when the last of them is back. */
static void remove_job(struct wn_engine *e, struct wn_gen_job *job)
{
    struct wn_gen_job **at = &e->jobs;

    job->doomed = true;
    if (job->flying) return;

    while (*at != job) at = &(*at)->next;
    *at = job->next;
    if (e->jobs_end == &job->next) e->jobs_end = at;
    e->jobs_n--;
    if (job->state == WN_GEN_PREFILL || job->state == WN_GEN_DECODE) {
        wn_prefix_release(e->prefix, job->pages, job->pages_n);
        e->slots[job->slot] = NULL;
        if (job->opened) e->closes[e->closes_n++] = job->slot;
        for (uint32_t i = 0; i < job->images_n; i++) {
            if (job->images[i].held) {
                e->drops[e->drops_n++] = job->images[i].slot;
                e->feature_busy[job->images[i].slot] = false;
            }
        }
    }
    wn_gen_job_destroy(job);
}

static void acknowledge(struct wn_engine *e, const struct wn_front_msg *m, const struct wn_err *err)
{
    Wn__FeaturesAck ack = WN__FEATURES_ACK__INIT;

    ack.job = m->env->features->job;
    ack.image = m->env->features->image;
    if (err) {
        ack.code = (uint32_t)err->code;
        ack.text = (char *)(uintptr_t)err->text;
    }
    wn_front_send(e->opts.front, &m->party, WN__ENVELOPE__BODY_FEATURES_ACK, &ack, WN_TRAFFIC_CONTROL, NULL, 0, NULL,
                  NULL);
}

/* Features that will not be used free their credit, too. */
static void acknowledge_waiting(struct wn_engine *e, const struct wn_gen_job *job)
{
    for (uint32_t i = 0; i < job->images_n; i++)
        if (job->images[i].msg) acknowledge(e, job->images[i].msg, NULL);
}

static void fail_job(struct wn_engine *e, struct wn_gen_job *job, const struct wn_err *err)
{
    acknowledge_waiting(e, job);
    wn_front_send_error(e->opts.front, &job->order->party, job->g->job, err, false);
    remove_job(e, job);
}

static void send_tokens(struct wn_engine *e, const struct wn_gen_job *job, uint32_t *id, const char *text)
{
    Wn__Tokens t = WN__TOKENS__INIT;

    t.job = job->g->job;
    t.first = id ? job->new_n - 1 : job->new_n;
    t.ids = id;
    t.n_ids = id ? 1 : 0;
    t.text = (char *)(uintptr_t)text;
    wn_front_send(e->opts.front, &job->order->party, WN__ENVELOPE__BODY_TOKENS, &t, WN_TRAFFIC_TOKENS, NULL, 0, NULL,
                  NULL);
}

static void finish_job(struct wn_engine *e, struct wn_gen_job *job, Wn__FinishReason reason)
{
    Wn__Done done = WN__DONE__INIT;
    Wn__Usage usage = WN__USAGE__INIT;
    Wn__LinkBytes bytes = WN__LINK_BYTES__INIT;

    wn_gen_job_usage(job, e->opts.plan, e->opts.step.rows_max, &usage, &bytes);
    done.job = job->g->job;
    done.reason = reason;
    done.usage = &usage;
    wn_front_send(e->opts.front, &job->order->party, WN__ENVELOPE__BODY_DONE, &done, WN_TRAFFIC_CONTROL, NULL, 0,
                  NULL, NULL);
    remove_job(e, job);
    e->stats_due = true;
}

static void job_ready(struct wn_engine *e, struct wn_gen_job *job)
{
    struct wn_err err = {0};

    if (!wn_gen_job_complete(job)) return;
    if (wn_gen_job_layout(job, &e->opts.gen, &err) != WN_OK) {
        fail_job(e, job, &err);
    } else if (wn_kvpool_need(job->prompt_rows_n + job->max_new, e->opts.step.page_tokens) > e->opts.step.pages_max) {
        wn_fail(&err, WN_ELIMIT, "%u tokens of prompt and answer need more KV pages than there are (%u of %u tokens)",
                job->prompt_rows_n + job->max_new, e->opts.step.pages_max, e->opts.step.page_tokens);
        fail_job(e, job, &err);
    } else if (job->new_n >= job->max_new) { /* a replay that had all but its end */
        finish_job(e, job, WN__FINISH_REASON__FINISH_LENGTH);
    }
}

/* ---- inbound messages ---- */

/* Hands features to their job, or keeps them for an order that is still on its way. Takes m. */
static void take_features(struct wn_engine *e, struct wn_front_msg *m)
{
    struct wn_gen_job *job = find_job(e, m->env->features->job);
    struct wn_err err = {0};
    struct orphan *place = &e->orphans[0];

    if (job) {
        if (wn_gen_job_features(job, m, &e->opts.gen, &err) == WN_OK) {
            job_ready(e, job);
            return;
        }
        wn_warn("engine", "%s: %s", m->env->features->job->job_id, err.text);
        acknowledge(e, m, &err);
        wn_front_msg_free(m);
        fail_job(e, job, &err);
        return;
    }
    for (int i = 0; i < ORPHANS_MAX; i++) { /* a free place, else the oldest */
        if (!place->msg) break;
        if (!e->orphans[i].msg || e->orphans[i].until_us < place->until_us) place = &e->orphans[i];
    }
    if (place->msg) {
        wn_fail(&err, WN_ENOENT, "no such job");
        acknowledge(e, place->msg, &err);
        wn_front_msg_free(place->msg);
    }
    *place = (struct orphan){.msg = m, .until_us = wn_deadline_in_us(ORPHAN_US)};
}

/* Features that waited for this job, and those that waited too long (job NULL). */
static void visit_orphans(struct wn_engine *e, const Wn__JobRef *ref)
{
    for (int i = 0; i < ORPHANS_MAX; i++) {
        struct orphan *o = &e->orphans[i];
        struct wn_front_msg *m = o->msg;
        struct wn_err err = {0};
        if (!m) continue;
        if (ref && wn_jobref_equal(m->env->features->job, ref)) {
            o->msg = NULL;
            take_features(e, m);
        } else if (wn_deadline_passed(o->until_us)) {
            o->msg = NULL;
            wn_fail(&err, WN_ENOENT, "no such job");
            acknowledge(e, m, &err);
            wn_front_msg_free(m);
        }
    }
}

static void take_order(struct wn_engine *e, struct wn_front_msg *m)
{
    struct wn_gen_job *job = NULL;
    struct wn_err err = {0};
    const Wn__JobRef *ref = m->env->generate->job;

    if (e->draining) {
        wn_fail(&err, WN_EBUSY, "the replica is leaving");
        wn_front_send_error(e->opts.front, &m->party, m->env->generate->job, &err, true);
        wn_front_msg_free(m);
        return;
    }
    if (find_job(e, ref)) { /* said twice: the first counts */
        wn_front_msg_free(m);
        return;
    }
    if (wn_gen_job_create(&job, m, &e->opts.gen, &err) != WN_OK) {
        wn_front_send_error(e->opts.front, &m->party, m->env->generate->job, &err, false);
        wn_front_msg_free(m);
        return;
    }
    *e->jobs_end = job;
    e->jobs_end = &job->next;
    e->jobs_n++;
    if (job->images_n == 0)
        job_ready(e, job);
    else
        visit_orphans(e, ref);
}

static void cancel_job(struct wn_engine *e, const Wn__JobRef *ref)
{
    struct wn_gen_job *job = find_job(e, ref);
    if (!job) return;
    acknowledge_waiting(e, job);
    finish_job(e, job, WN__FINISH_REASON__FINISH_CANCELLED);
}

static void drop_all(struct wn_engine *e)
{
    for (struct wn_gen_job *job = e->jobs, *next; job; job = next) {
        next = job->next;
        if (job->doomed) continue;
        acknowledge_waiting(e, job);
        remove_job(e, job);
    }
}

static void greet_worker(struct wn_engine *e, const struct wn_front_msg *m, const char *model_id)
{
    Wn__Credit credit = WN__CREDIT__INIT;
    struct wn_err err = {0};

    if (strcmp(m->env->features_hello->model_id, model_id) != 0) {
        wn_fail(&err, WN_EINVAL, "vision worker %s serves another checkpoint", m->env->features_hello->name);
        wn_warn("engine", "%s", err.text);
        wn_front_send_error(e->opts.front, &m->party, NULL, &err, false);
        return;
    }
    credit.images = WORKER_CREDIT;
    wn_front_send(e->opts.front, &m->party, WN__ENVELOPE__BODY_CREDIT, &credit, WN_TRAFFIC_CONTROL, NULL, 0, NULL,
                  NULL);
}

static void take_message(struct wn_engine *e, struct wn_front_msg *m)
{
    const Wn__Envelope *env = m->env;

    if (m->lease_lost) {
        wn_warn("engine", "the scheduler is lost: its %u jobs are given up here", e->jobs_n);
        drop_all(e);
    } else if (m->party.side == WN_SIDE_SCHEDULER && env->body_case == WN__ENVELOPE__BODY_GENERATE) {
        take_order(e, m);
        return;
    } else if (m->party.side == WN_SIDE_WORKER && env->body_case == WN__ENVELOPE__BODY_FEATURES) {
        take_features(e, m);
        return;
    } else if (m->party.side == WN_SIDE_SCHEDULER && env->body_case == WN__ENVELOPE__BODY_CANCEL) {
        cancel_job(e, env->cancel->job);
    } else if (m->party.side == WN_SIDE_SCHEDULER && env->body_case == WN__ENVELOPE__BODY_DRAIN) {
        e->draining = true;
    } else if (m->party.side == WN_SIDE_WORKER && env->body_case == WN__ENVELOPE__BODY_FEATURES_HELLO) {
        greet_worker(e, m, e->opts.gen.model_id);
    } else {
        wn_warn("engine", "unexpected %s", wn_codec_body_name(env->body_case));
    }
    wn_front_msg_free(m);
}

/* ---- the next step ---- */

/* Images that rows from `first` on still need. */
static uint32_t images_needed(const struct wn_gen_job *job, uint32_t first)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < job->images_n; i++) n += job->images[i].last_row > first;
    return n;
}

static bool find_feature_slots(struct wn_engine *e, struct wn_gen_job *job, uint32_t first)
{
    uint32_t s = 0;

    for (uint32_t i = 0; i < job->images_n; i++) {
        if (job->images[i].last_row <= first) continue;
        while (s < e->opts.step.features_max && e->feature_busy[s]) s++;
        if (s == e->opts.step.features_max) return false;
        job->images[i].slot = s++;
    }
    return true;
}

/* Pages for the whole job: those of its prompt that are in the cache, and fresh ones. All or none. */
static bool find_pages(struct wn_engine *e, struct wn_gen_job *job)
{
    const uint32_t need = wn_kvpool_need(job->prompt_rows_n + job->max_new, e->opts.step.page_tokens);
    const Wn__Sampling *s = job->g->sampling;
    /* a repetition penalty counts the prompt's tokens where they are drawn: there every row has to pass */
    const bool penalty = s && s->repetition_penalty > 0 && s->repetition_penalty != 1;
    uint32_t cached;

    if (!job->pages && !(job->pages = calloc(need, sizeof(*job->pages)))) return false;
    cached = wn_prefix_match(e->prefix, job->keys, penalty ? 0 : job->keys_n, job->pages);
    if (wn_prefix_take(e->prefix, job->pages + cached, need - cached) != WN_OK) {
        wn_prefix_release(e->prefix, job->pages, cached);
        return false;
    }
    job->pages_n = need;
    job->published = cached;
    job->pos = job->cached_rows = cached * e->opts.step.page_tokens;
    return true;
}

/* Puts the features that rows still need into the record; the others are done with. */
static void hand_features(struct wn_engine *e, struct wn_gen_job *job, struct wn_step_record *rec)
{
    for (uint32_t i = 0; i < job->images_n; i++) {
        struct wn_gen_image *im = &job->images[i];
        if (im->last_row <= job->pos) {
            acknowledge(e, im->msg, NULL);
            wn_front_msg_free(im->msg);
        } else {
            e->feature_busy[im->slot] = im->held = true;
            e->features[rec->features_n] = im->msg->payload;
            e->handed[rec->features_n] = im->msg;
            rec->features[rec->features_n++] = (struct wn_step_features){.slot = im->slot,
                                                                         .rows = im->rows,
                                                                         .width = im->width,
                                                                         .dtype = (uint32_t)im->dtype,
                                                                         .projected = im->projected};
        }
        im->msg = NULL;
    }
    for (uint32_t i = job->pos; i < job->rows_n; i++)
        if (job->rows[i].features != WN_STEP_NO_FEATURES)
            job->rows[i].features = job->images[job->rows[i].features].slot;
}

/* Gives the job a slot, pages and feature slots, or leaves all as it was. */
static bool admit(struct wn_engine *e, struct wn_gen_job *job, struct wn_step_record *rec)
{
    const Wn__Sampling *s = job->g->sampling;
    uint32_t slot = 0;

    while (slot < e->opts.step.seqs_max && e->slots[slot]) slot++;
    if (slot == e->opts.step.seqs_max || !find_pages(e, job)) return false;
    if (rec->features_n + images_needed(job, job->pos) > e->opts.step.features_max ||
        !find_feature_slots(e, job, job->pos)) {
        wn_prefix_release(e->prefix, job->pages, job->pages_n);
        return false;
    }
    job->slot = slot;
    e->slots[slot] = job;
    hand_features(e, job, rec);
    rec->opens[rec->opens_n++] = (struct wn_step_open){
        .slot = slot,
        .temperature = s ? s->temperature : 0,
        .top_k = s ? s->top_k : 0,
        .top_p = s && s->top_p > 0 ? s->top_p : 1,
        .repetition_penalty = s && s->repetition_penalty > 0 ? s->repetition_penalty : 1,
        .seed = s ? s->seed : 0,
    };
    job->opened = true;
    job->state = WN_GEN_PREFILL;
    job->started_us = wn_now_us();
    return true;
}

static void admit_ready(struct wn_engine *e, struct wn_step_record *rec)
{
    for (struct wn_gen_job *j = e->jobs; j; j = j->next) {
        if (j->state != WN_GEN_READY || j->doomed) continue;
        if (!admit(e, j, rec)) break; /* in order: nobody overtakes the one that waits for room */
    }
}

/* Rows [pos, pos + n) of the job, as the next sequence of the record. */
static void add_rows(struct wn_engine *e, struct wn_step_record *rec, struct wn_gen_job *job, uint32_t n, bool sample)
{
    const uint32_t pages = wn_kvpool_need(job->pos + n, e->opts.step.page_tokens);

    WN_ASSERT(pages <= job->pages_n && rec->pages_n + pages <= e->opts.step.pages_max);
    e->flights[(e->flights_first + e->flights_n) % e->depth].order[rec->seqs_n] = job;
    job->flying++;
    rec->seqs[rec->seqs_n++] = (struct wn_step_seq){.slot = job->slot,
                                                    .first_row = rec->rows_n,
                                                    .rows = n,
                                                    .pos = job->pos,
                                                    .first_page = rec->pages_n,
                                                    .pages = pages,
                                                    .sample = sample};
    memcpy(rec->pages + rec->pages_n, job->pages, pages * sizeof(*job->pages));
    rec->pages_n += pages;
    if (job->state == WN_GEN_DECODE) {
        rec->rows[rec->rows_n++] = (struct wn_step_row){.id = job->last_token, .features = WN_STEP_NO_FEATURES};
    } else {
        memcpy(rec->rows + rec->rows_n, job->rows + job->pos, n * sizeof(*job->rows));
        rec->rows_n += n;
    }
    job->pos += n;
    /* Later steps follow this one on every rank, so what it fills may be read from now on. */
    for (; job->published < job->keys_n && (job->published + 1) * e->opts.step.page_tokens <= job->pos;
         job->published++)
        wn_prefix_publish(e->prefix, job->pages[job->published], &job->keys[job->published]);
}

static void fill_record(struct wn_engine *e, struct wn_step_record *rec)
{
    uint32_t room, decoding = 0, share;

    memcpy(rec->closes, e->closes, e->closes_n * sizeof(*e->closes));
    rec->closes_n = e->closes_n;
    memcpy(rec->drops, e->drops, e->drops_n * sizeof(*e->drops));
    rec->drops_n = e->drops_n;
    e->closes_n = e->drops_n = 0;
    admit_ready(e, rec);
    /* Decodes are dealt over the steps in flight, so that every stage has one to work on. */
    for (struct wn_gen_job *j = e->jobs; j; j = j->next) decoding += j->state == WN_GEN_DECODE && !j->doomed;
    share = (decoding + e->depth - 1) / e->depth;
    for (struct wn_gen_job *j = e->jobs; j && rec->rows_n < e->opts.step.rows_max && rec->seqs_n < share; j = j->next)
        if (j->state == WN_GEN_DECODE && !j->flying && !j->doomed) add_rows(e, rec, j, 1, true);
    for (struct wn_gen_job *j = e->jobs; j; j = j->next) {
        if (j->state != WN_GEN_PREFILL || j->doomed || (room = e->opts.step.rows_max - rec->rows_n) == 0) continue;
        if (room > j->rows_n - j->pos) room = j->rows_n - j->pos;
        if (room) add_rows(e, rec, j, room, j->pos + room == j->rows_n);
    }
    if (e->draining && !e->jobs) rec->flags |= WN_STEP_STOP;
    if ((e->stats_due && !e->jobs) || (rec->rows_n && wn_now_us() - e->stats_us > STATS_PERIOD_US))
        rec->flags |= WN_STEP_STATS;
}

/* ---- after the step ---- */

/* One drawn token of a job. */
static void take_token(struct wn_engine *e, struct wn_gen_job *job, uint32_t id)
{
    const struct wn_model *m = e->opts.gen.model;
    const Wn__Sampling *s = job->g->sampling;
    const char *text = "", *rest = "";
    struct wn_err err = {0};
    bool stopped = false, eos = false;

    if (!job->first_token_us) job->first_token_us = wn_now_us();
    job->state = WN_GEN_DECODE;
    job->last_token = id;
    job->new_n++;
    for (uint32_t i = 0; i < m->eos_n; i++) eos = eos || (id == m->eos[i] && !(s && s->ignore_eos));
    if (!eos && wn_answer_push(job->answer, id, &text, &stopped, &err) != WN_OK) {
        fail_job(e, job, &err);
        return;
    }
    send_tokens(e, job, &id, text);
    if (!eos && !stopped && job->new_n < job->max_new) return;
    if (!stopped && wn_answer_finish(job->answer, &rest, &err) == WN_OK && rest[0]) send_tokens(e, job, NULL, rest);
    finish_job(e, job, eos || stopped ? WN__FINISH_REASON__FINISH_STOP : WN__FINISH_REASON__FINISH_LENGTH);
}

/* Features whose rows have all been read make room. */
static void release_features(struct wn_engine *e, struct wn_gen_job *job)
{
    for (uint32_t i = 0; i < job->images_n; i++) {
        struct wn_gen_image *im = &job->images[i];
        if (!im->held || job->pos < im->last_row) continue;
        im->held = false;
        e->feature_busy[im->slot] = false;
        e->drops[e->drops_n++] = im->slot;
    }
}

static void report_traffic(struct wn_engine *e, const struct wn_traffic_table *stats)
{
    struct wn_front_load *load = wn_front_load(e->opts.front);
    for (int k = 0; k < WN_TRAFFIC_N; k++) atomic_store(&load->sent_bytes[k], stats->of[k].sent_bytes);
    e->stats_us = wn_now_us();
    e->stats_due = false;
}

static void report_load(struct wn_engine *e)
{
    struct wn_front_load *load = wn_front_load(e->opts.front);
    struct wn_prefix_stats pages;
    uint32_t running = 0;

    wn_prefix_stats(e->prefix, &pages);
    for (uint32_t i = 0; i < e->opts.step.seqs_max; i++) running += e->slots[i] != NULL;
    atomic_store(&load->running, running);
    atomic_store(&load->waiting, e->jobs_n - running);
    atomic_store(&load->pages_used, pages.used);
}

/* Sends the record on its way; e->features and e->handed are the features that go with it. */
static wn_status begin(struct wn_engine *e, const struct wn_step_record *rec, struct wn_err *err)
{
    struct flight *f = &e->flights[(e->flights_first + e->flights_n) % e->depth];
    const wn_status rc = wn_replica_begin(e->opts.replica, e->features, err);

    for (uint32_t i = 0; i < rec->features_n; i++) {
        acknowledge(e, e->handed[i], NULL);
        wn_front_msg_free(e->handed[i]);
        e->handed[i] = NULL;
    }
    if (rc != WN_OK) return rc;
    f->seqs_n = rec->seqs_n;
    f->stats = (rec->flags & WN_STEP_STATS) != 0;
    e->flights_n++;
    for (uint32_t i = 0; i < f->seqs_n; i++) release_features(e, f->order[i]);
    atomic_fetch_add(&wn_front_load(e->opts.front)->steps, 1);
    return WN_OK;
}

/* Waits for the oldest step, and does what its tokens mean. */
static wn_status collect(struct wn_engine *e, struct wn_err *err)
{
    struct flight *f = &e->flights[e->flights_first];
    struct wn_traffic_table stats;
    uint32_t tokens_n = 0;
    const wn_status rc = wn_replica_collect(e->opts.replica, e->tokens, &tokens_n, &stats, err);

    if (rc != WN_OK) return rc;
    e->flights_first = (e->flights_first + 1) % e->depth;
    e->flights_n--;
    for (uint32_t i = 0; i < f->seqs_n; i++) f->order[i]->flying--;
    for (uint32_t i = 0; i < tokens_n; i++) {
        struct wn_gen_job *job = f->order[e->tokens[i].seq];
        f->order[e->tokens[i].seq] = NULL; /* the token may end it */
        if (job->doomed)
            remove_job(e, job);
        else
            take_token(e, job, e->tokens[i].id);
    }
    for (uint32_t i = 0; i < f->seqs_n; i++) /* chunks without a token */
        if (f->order[i] && f->order[i]->doomed) remove_job(e, f->order[i]);
    if (f->stats) report_traffic(e, &stats);
    return WN_OK;
}

static bool is_empty(const struct wn_step_record *rec)
{
    return rec->rows_n == 0 && rec->flags == 0 && rec->closes_n == 0 && rec->drops_n == 0;
}

wn_status wn_engine_run(struct wn_engine *e, struct wn_err *err)
{
    for (;;) {
        struct wn_front_msg *m;
        wn_status rc;

        while ((m = wn_front_take(e->opts.front)) != NULL) take_message(e, m);
        if (*e->opts.drain) e->draining = true;
        visit_orphans(e, NULL);
        report_load(e);
        if (e->flights_n < e->depth) {
            struct wn_step_record *rec = wn_replica_record(e->opts.replica);
            fill_record(e, rec);
            if (!is_empty(rec)) {
                if ((rc = begin(e, rec, err)) != WN_OK) return rc;
                if (!(rec->flags & WN_STEP_STOP)) continue;
                while (rc == WN_OK && e->flights_n) rc = collect(e, err);
                return rc;
            }
        }
        if (e->flights_n == 0)
            wn_front_wait(e->opts.front, wn_deadline_in_us(IDLE_WAIT_US));
        else if ((rc = collect(e, err)) != WN_OK)
            return rc;
    }
}
