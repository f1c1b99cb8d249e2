/* daemon/batcher.c - see batcher.h. */
#include "daemon/batcher.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/mates.h"
#include "shard/kvpool.h"

#define STEP_ROWS      8
#define CHUNKS_A_STAGE 4 /* of a prompt alone: with two stages it takes an eighth more than no pipeline would */

struct wn_batcher {
    struct wn_step_limits step;
    struct wn_kvpool *pool;
    struct wn_prefix_cache *prefix;      /* every page comes from here and goes back here */
    struct wn_gen_job *jobs, **jobs_end; /* in order of arrival */
    struct wn_gen_job **slots;           /* [seqs_max] who has the slot */
    bool *feature_busy;                  /* [features_max] */
    uint32_t *closes, closes_n, *drops, drops_n; /* to be said in the next record */
    const void **features;                       /* [features_max] data of the record's features */
    struct wn_flight *flights;                   /* [depth], a ring */
    struct wn_pipeline pipe;
    uint32_t flights_first, flights_n;
    struct wn_gen_job **decoding; /* [seqs_max] of the record that is filled, and what is to be known of each: */
    struct wn_mate *mates;        /* [seqs_max] */
    uint32_t *mates_order;        /* [seqs_max] */
    uint32_t running; /* slots in use */
    uint64_t preemptions;
};

wn_status wn_batcher_create(struct wn_batcher **out, const struct wn_step_limits *l, const struct wn_pipeline *pipe,
                            struct wn_err *err)
{
    struct wn_batcher *b = calloc(1, sizeof(*b));
    wn_status rc = WN_OK;

    if (!b) return wn_fail(err, WN_ENOMEM, "batcher");
    b->step = *l;
    b->pipe = *pipe;
    b->jobs_end = &b->jobs;
    b->slots = calloc(l->seqs_max, sizeof(*b->slots));
    b->closes = calloc(l->seqs_max, sizeof(*b->closes));
    b->feature_busy = calloc(l->features_max, sizeof(*b->feature_busy));
    b->drops = calloc(l->features_max, sizeof(*b->drops));
    b->features = calloc(l->features_max, sizeof(*b->features));
    b->flights = calloc(pipe->depth, sizeof(*b->flights));
    b->decoding = calloc(l->seqs_max, sizeof(*b->decoding));
    b->mates = calloc(l->seqs_max, sizeof(*b->mates));
    b->mates_order = calloc(l->seqs_max, sizeof(*b->mates_order));
    for (uint32_t i = 0; b->flights && i < pipe->depth; i++)
        if (!(b->flights[i].order = calloc(l->seqs_max, sizeof(*b->flights[i].order)))) rc = WN_ENOMEM;
    if (rc != WN_OK || !b->slots || !b->closes || !b->feature_busy || !b->drops || !b->features || !b->flights ||
        !b->decoding || !b->mates || !b->mates_order)
        rc = wn_fail(err, WN_ENOMEM, "batcher of %u sequences", l->seqs_max);
    if (rc == WN_OK) rc = wn_kvpool_create(&b->pool, l->pages_max, err);
    if (rc == WN_OK) rc = wn_prefix_cache_create(&b->prefix, b->pool, err);
    if (rc != WN_OK) {
        wn_batcher_destroy(b);
        return rc;
    }
    *out = b;
    return WN_OK;
}

/* With no job there is nothing that could have been lent: else it would be lost for ever. */
static void check_idle(const struct wn_batcher *b)
{
    struct wn_batcher_load load;

    wn_batcher_load(b, &load);
    WN_ASSERT(b->running == 0 && load.pages_used == 0 && load.feature_slots_used == 0);
}

void wn_batcher_destroy(struct wn_batcher *b)
{
    if (!b) return;
    if (b->prefix && !b->jobs) check_idle(b);
    while (b->jobs) {
        struct wn_gen_job *next = b->jobs->next;
        wn_gen_job_destroy(b->jobs);
        b->jobs = next;
    }
    wn_prefix_cache_destroy(b->prefix);
    wn_kvpool_destroy(b->pool);
    for (uint32_t i = 0; b->flights && i < b->pipe.depth; i++) free(b->flights[i].order);
    free(b->flights);
    free(b->mates_order);
    free(b->mates);
    free(b->decoding);
    free(b->features);
    free(b->drops);
    free(b->feature_busy);
    free(b->closes);
    free(b->slots);
    free(b);
}

/* What the batcher does itself always fits the job's state. */
static void advance(struct wn_gen_job *job, wn_gen_event event)
{
    const bool fits = wn_gen_apply(&job->life, event);
    WN_ASSERT(fits);
}

/* ---- the list of jobs ---- */

void wn_batcher_add(struct wn_batcher *b, struct wn_gen_job *job)
{
    *b->jobs_end = job;
    b->jobs_end = &job->next;
}

struct wn_gen_job *wn_batcher_oldest(const struct wn_batcher *b)
{
    return b->jobs;
}

wn_status wn_batcher_check(const struct wn_batcher *b, const struct wn_gen_job *job, struct wn_err *err)
{
    const uint32_t rows = job->prompt_rows_n + job->max_new;

    if (wn_kvpool_need(rows, b->step.page_tokens) <= b->step.pages_max) return WN_OK;
    return wn_fail(err, WN_ELIMIT,
                   "%u tokens of prompt and answer need more KV pages than there are (%u of %u tokens)", rows,
                   b->step.pages_max, b->step.page_tokens);
}

static void drop_features(struct wn_batcher *b, struct wn_gen_image *im)
{
    im->held = false;
    b->feature_busy[im->slot] = false;
    b->drops[b->drops_n++] = im->slot;
}

/* What a job has while it is in a slot. */
static void give_back(struct wn_batcher *b, struct wn_gen_job *job)
{
    wn_prefix_release(b->prefix, job->pages, job->pages_n);
    job->pages_n = job->published = job->pos = 0;
    job->head_published = false;
    b->slots[job->slot] = NULL;
    b->running--;
    b->closes[b->closes_n++] = job->slot;
    for (uint32_t i = 0; i < job->images_n; i++)
        if (job->images[i].held) drop_features(b, &job->images[i]);
}

void wn_batcher_end(struct wn_batcher *b, struct wn_gen_job *job, wn_gen_event how)
{
    const bool holds = wn_gen_holds(&job->life);

    advance(job, how);
    WN_ASSERT(wn_gen_ended(&job->life));
    if (holds) give_back(b, job);
}

void wn_batcher_reap(struct wn_batcher *b)
{
    struct wn_gen_job **at = &b->jobs, *job;

    while ((job = *at) != NULL) {
        if (!wn_gen_gone(&job->life)) {
            at = &job->next;
            continue;
        }
        *at = job->next;
        wn_gen_job_destroy(job);
    }
    b->jobs_end = at;
}

/* ---- admission ---- */

/* A feature slot for each image that rows from job->pos on still need. */
static bool find_feature_slots(const struct wn_batcher *b, struct wn_gen_job *job)
{
    uint32_t s = 0;

    for (uint32_t i = 0; i < job->images_n; i++) {
        if (job->images[i].last_row <= job->pos) continue;
        while (s < b->step.features_max && b->feature_busy[s]) s++;
        if (s == b->step.features_max) return false;
        job->images[i].slot = s++;
    }
    return true;
}

/* Where the rest of the prompt but its last row can be copied from, when its first `cached` pages were found. Returns
 * how many rows that are. */
static uint32_t find_head(struct wn_batcher *b, struct wn_gen_job *job, uint32_t cached, uint32_t *page)
{
    struct wn_gen_head head;

    if (job->uncached) return 0;
    wn_gen_job_head(job, b->step.page_tokens, &head);
    return head.rows && head.page == cached && wn_prefix_find_head(b->prefix, &head.key, page) ? head.rows : 0;
}

/* Pages for the rows that there are: those in the cache, and fresh ones. All or none. The first fresh one may begin as
 * a copy; from == to: it need not. */
static bool find_pages(struct wn_batcher *b, struct wn_gen_job *job, struct wn_step_copy *copy)
{
    const uint32_t need = wn_kvpool_need(job->rows_n, b->step.page_tokens);
    /* the last row is always computed: its logits are wanted */
    const uint32_t full = job->uncached ? 0 : (job->rows_n - 1) / b->step.page_tokens;
    uint32_t cached, copied;

    *copy = (struct wn_step_copy){0};
    wn_gen_job_keys(job, b->step.page_tokens, full);
    cached = wn_prefix_match(b->prefix, job->keys, full, job->pages);
    copied = find_head(b, job, cached, &copy->from);
    /* A page more for each that runs, or the next page that one of them needs would be taken from this job. */
    if (wn_prefix_available(b->prefix) < need - cached + b->running ||
        wn_prefix_take(b->prefix, job->pages + cached, need - cached) != WN_OK) {
        wn_prefix_release(b->prefix, job->pages, cached);
        return false;
    }
    job->pages_n = need;
    job->published = cached;
    job->pos = cached * b->step.page_tokens + copied;
    if (copied) copy->to = job->pages[cached]; /* that page itself, if nobody used it and no other was left */
    if (!job->started_us) job->cached_rows = job->pos;
    return true;
}

/* Puts the features that rows still need into the record. */
static void hand_features(struct wn_batcher *b, struct wn_gen_job *job, struct wn_step_record *rec)
{
    for (uint32_t i = 0; i < job->images_n; i++) {
        struct wn_gen_image *im = &job->images[i];
        if (im->last_row <= job->pos) continue;
        b->feature_busy[im->slot] = im->held = true;
        im->handed++;
        b->features[rec->features_n] = im->msg->payload;
        rec->features[rec->features_n++] = (struct wn_step_features){.slot = im->slot,
                                                                     .rows = im->rows,
                                                                     .width = im->width,
                                                                     .dtype = (uint32_t)im->dtype,
                                                                     .projected = im->projected};
    }
}

/* Gives the job a slot, pages and feature slots, or leaves all as it was. */
static bool admit(struct wn_batcher *b, struct wn_gen_job *job, struct wn_step_record *rec)
{
    const Wn__Sampling *s = job->g->sampling;
    struct wn_step_copy copy;
    uint32_t slot = 0;

    while (slot < b->step.seqs_max && b->slots[slot]) slot++;
    if (slot == b->step.seqs_max || !find_pages(b, job, &copy)) return false;
    if (!find_feature_slots(b, job)) {
        wn_prefix_release(b->prefix, job->pages, job->pages_n);
        job->pages_n = job->published = job->pos = 0;
        return false;
    }
    advance(job, WN_GEN_ADMIT);
    job->slot = slot;
    b->slots[slot] = job;
    b->running++;
    job->chunk = wn_pipeline_chunk(&b->pipe, job->rows_n - job->pos);
    hand_features(b, job, rec);
    if (copy.from != copy.to) rec->copies[rec->copies_n++] = copy;
    rec->opens[rec->opens_n++] = (struct wn_step_open){
        .slot = slot,
        .temperature = s ? s->temperature : 0,
        .top_k = s ? s->top_k : 0,
        .top_p = s && s->top_p > 0 ? s->top_p : 1,
        .repetition_penalty = s && s->repetition_penalty > 0 ? s->repetition_penalty : 1,
        .seed = s ? s->seed : 0,
        .logprobs = s && s->logprobs ? 1 + s->top_logprobs : 0,
    };
    if (!job->started_us) job->started_us = wn_now_us();
    return true;
}

/* ---- preemption ---- */

static struct wn_gen_job *youngest(const struct wn_batcher *b)
{
    struct wn_gen_job *found = NULL;

    for (struct wn_gen_job *j = b->jobs; j; j = j->next)
        if (wn_gen_holds(&j->life)) found = j;
    return found;
}

/* The page of the next row of a job that decodes: if none is free the youngest job leaves its slot, and computes its
 * rows again later. false: that was this job itself. */
static bool find_page(struct wn_batcher *b, struct wn_gen_job *job)
{
    if (job->pos < job->pages_n * b->step.page_tokens) return true;
    while (wn_prefix_take(b->prefix, &job->pages[job->pages_n], 1) != WN_OK) {
        struct wn_gen_job *victim = youngest(b);
        WN_ASSERT(b->running > 1); /* the oldest always goes on: alone it has pages enough */
        advance(victim, WN_GEN_PREEMPT);
        give_back(b, victim);
        victim->preemptions++;
        b->preemptions++;
        if (victim == job) return false;
    }
    job->pages_n++;
    return true;
}

/* ---- rows ---- */

static struct wn_flight *next_flight(const struct wn_batcher *b)
{
    return &b->flights[(b->flights_first + b->flights_n) % b->pipe.depth];
}

/* Rows [pos, pos + n) of the job, as the next sequence of the record. The last row that there is asks for a token. */
static void add_rows(struct wn_batcher *b, struct wn_step_record *rec, struct wn_gen_job *job, uint32_t n)
{
    const uint32_t pages = wn_kvpool_need(job->pos + n, b->step.page_tokens);

    WN_ASSERT(pages <= job->pages_n && rec->pages_n + pages <= b->step.table_max);
    advance(job, WN_GEN_SEND);
    next_flight(b)->order[rec->seqs_n] = job;
    rec->seqs[rec->seqs_n++] = (struct wn_step_seq){.slot = job->slot,
                                                    .first_row = rec->rows_n,
                                                    .rows = n,
                                                    .pos = job->pos,
                                                    .first_page = rec->pages_n,
                                                    .pages = pages,
                                                    .sample = job->pos + n == job->rows_n};
    memcpy(rec->pages + rec->pages_n, job->pages, pages * sizeof(*job->pages));
    rec->pages_n += pages;
    for (uint32_t i = job->pos; i < job->pos + n; i++) {
        struct wn_step_row row = job->rows[i];
        if (row.features != WN_STEP_NO_FEATURES) row.features = job->images[row.features].slot;
        rec->rows[rec->rows_n++] = row;
    }
    job->pos += n;
    job->computed_rows += n;
    /* Sequences after this one, and later steps, find the rows in their places on every rank. */
    for (; (job->published + 1) * b->step.page_tokens <= job->pos; job->published++) {
        wn_gen_job_keys(job, b->step.page_tokens, job->published + 1);
        wn_prefix_publish(b->prefix, job->pages[job->published], &job->keys[job->published]);
    }
}

/* Sequences of one step when `decoding` of them are dealt over the steps in flight, so that every stage has one to work
 * on. A step of few rows takes as long as one of STEP_ROWS: few sequences get by with one step less. */
static uint32_t share_of(uint32_t decoding, uint32_t depth)
{
    uint32_t share = (decoding + depth - 1) / depth, fewer;

    if (depth < 3 || share >= STEP_ROWS) return share;
    fewer = (decoding + depth - 2) / (depth - 1);
    return fewer < STEP_ROWS ? fewer : STEP_ROWS;
}

/* The page in the middle of the prompt: those before it are the same too where this one is. */
static uint32_t common_page(const struct wn_batcher *b, const struct wn_gen_job *job)
{
    return job->pages[job->prompt_rows_n / 2 / b->step.page_tokens];
}

static void add_decodes(struct wn_batcher *b, struct wn_step_record *rec)
{
    uint32_t n = 0, ready = 0;

    for (struct wn_gen_job *j = b->jobs; j; j = j->next) {
        if (j->life.state != WN_GEN_DECODE) continue;
        b->mates[n] = (struct wn_mate){.page = common_page(b, j), .passed = j->passed, .ready = !j->life.flying};
        ready += b->mates[n].ready;
        b->decoding[n++] = j;
    }
    wn_mates_choose(b->mates, n, b->mates_order, share_of(n, b->pipe.depth), b->flights_n > 0 && ready >= STEP_ROWS);
    for (uint32_t i = 0; i < n; i++) {
        struct wn_gen_job *j = b->decoding[i];
        if (!b->mates[i].ready) continue;
        j->passed = b->mates[i].chosen ? 0 : j->passed + 1;
        if (b->mates[i].chosen && rec->rows_n < b->step.rows_max && j->life.state == WN_GEN_DECODE && find_page(b, j))
            add_rows(b, rec, j, 1);
    }
}

uint32_t wn_pipeline_chunk(const struct wn_pipeline *pipe, uint32_t rows)
{
    const uint32_t most = CHUNKS_A_STAGE * pipe->stages;
    uint32_t n = pipe->chunk_min ? rows / pipe->chunk_min : 1;

    if (pipe->stages == 1 || n == 0) return rows;
    if (n > most) n = most;
    return (rows + n - 1) / n;
}

/* Has nobody else rows for the stages to work on? */
static bool is_alone(const struct wn_batcher *b, const struct wn_gen_job *job)
{
    for (const struct wn_gen_job *j = b->jobs; j; j = j->next)
        if (j != job && j->life.state != WN_GEN_WAITING && !wn_gen_ended(&j->life)) return false;
    return true;
}

/* As many rows of the prompt as there is room for, or a chunk if it is alone; none if all are on their way. */
static void add_prompt(struct wn_batcher *b, struct wn_step_record *rec, struct wn_gen_job *job)
{
    const uint32_t room = b->step.rows_max - rec->rows_n, left = job->rows_n - job->pos;
    uint32_t n = room < left ? room : left;

    if (n > job->chunk && is_alone(b, job)) n = job->chunk;
    if (n) add_rows(b, rec, job, n);
}

static void add_prompts(struct wn_batcher *b, struct wn_step_record *rec)
{
    for (struct wn_gen_job *j = b->jobs; j; j = j->next)
        if (j->life.state == WN_GEN_PREFILL) add_prompt(b, rec, j);
}

/* Lets in who fits, each with its rows, so that the next one finds the pages that these fill: a layer writes the
 * rows of all sequences of a step before it attends to any. Without room for a row nobody is let in: a step later
 * there may be more to find. In order: nobody overtakes the one that waits for room. */
static void admit_ready(struct wn_batcher *b, struct wn_step_record *rec)
{
    for (struct wn_gen_job *j = b->jobs; j && rec->rows_n < b->step.rows_max; j = j->next) {
        if (j->life.state != WN_GEN_READY && j->life.state != WN_GEN_PREEMPTED) continue;
        if (j->life.flying || !admit(b, j, rec)) break;
        add_prompt(b, rec, j);
    }
}

void wn_batcher_fill(struct wn_batcher *b, struct wn_step_record *rec)
{
    const uint64_t preemptions = b->preemptions;

    add_decodes(b, rec); /* first: whom they preempt is not in this record yet */
    memcpy(rec->closes, b->closes, b->closes_n * sizeof(*b->closes));
    rec->closes_n = b->closes_n;
    memcpy(rec->drops, b->drops, b->drops_n * sizeof(*b->drops));
    rec->drops_n = b->drops_n;
    b->closes_n = b->drops_n = 0;
    add_prompts(b, rec); /* who runs is older than who waits */
    if (b->preemptions == preemptions) admit_ready(b, rec);
}

bool wn_batcher_is_idle(const struct wn_step_record *rec)
{
    return rec->rows_n == 0 && rec->flags == 0 && rec->closes_n == 0 && rec->drops_n == 0;
}

const void *const *wn_batcher_features(const struct wn_batcher *b)
{
    return b->features;
}

/* ---- steps on their way ---- */

/* From the next record on others can copy the rows of the prompt's last page: copies come before the rows of their own
 * record, which therefore must not have written them. */
static void publish_head(struct wn_batcher *b, struct wn_gen_job *job)
{
    struct wn_gen_head head;

    if (job->head_published || job->pos + 1 < job->prompt_rows_n) return;
    job->head_published = true;
    wn_gen_job_head(job, b->step.page_tokens, &head);
    if (head.rows) wn_prefix_publish_head(b->prefix, job->pages[head.page], &head.key);
}

void wn_batcher_begun(struct wn_batcher *b, const struct wn_step_record *rec)
{
    struct wn_flight *f = next_flight(b);

    WN_ASSERT(b->flights_n < b->pipe.depth);
    f->seqs_n = rec->seqs_n;
    f->flags = rec->flags;
    b->flights_n++;
    for (uint32_t i = 0; i < f->seqs_n; i++) {
        struct wn_gen_job *job = f->order[i];
        publish_head(b, job);
        for (uint32_t k = 0; k < job->images_n; k++) /* features whose rows have all been read make room */
            if (job->images[k].held && job->pos >= job->images[k].last_row) drop_features(b, &job->images[k]);
    }
}

const struct wn_flight *wn_batcher_landed(struct wn_batcher *b)
{
    const struct wn_flight *f = &b->flights[b->flights_first];

    WN_ASSERT(b->flights_n > 0);
    b->flights_first = (b->flights_first + 1) % b->pipe.depth;
    b->flights_n--;
    for (uint32_t i = 0; i < f->seqs_n; i++) advance(f->order[i], WN_GEN_LAND);
    return f;
}

uint32_t wn_batcher_in_flight(const struct wn_batcher *b)
{
    return b->flights_n;
}

void wn_batcher_load(const struct wn_batcher *b, struct wn_batcher_load *load)
{
    struct wn_prefix_stats pages;

    *load = (struct wn_batcher_load){0};
    for (const struct wn_gen_job *j = b->jobs; j; j = j->next) {
        for (uint32_t i = 0; i < j->images_n; i++) load->features += j->images[i].msg != NULL;
        if (wn_gen_ended(&j->life)) continue;
        load->running += wn_gen_holds(&j->life);
        load->waiting += !wn_gen_holds(&j->life);
    }
    load->preemptions = b->preemptions;
    wn_prefix_stats(b->prefix, &pages);
    load->pages_used = pages.used;
    for (uint32_t i = 0; i < b->step.features_max; i++) load->feature_slots_used += b->feature_busy[i];
}
