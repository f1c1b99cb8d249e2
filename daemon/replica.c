/* daemon/replica.c - see replica.h. */
#include "daemon/replica.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/draw.h"
#include "transport/coll.h"
#include "transport/link.h"

/* Tags of a replica's messages; 8 is daemon/shard.c's, 16 and up are the decoder's (shard/decoder_link.c). */
enum { TAG_RECORD = 1, TAG_TOKENS = 2, TAG_STATS = 3, TAG_LENGTH = 4, TAG_TOP = 5 };

/* A step that the leader has begun and not collected. */
struct flight {
    uint8_t *wire; /* its encoded record, borrowed by the sends */
    wn_op *sends;  /* [2 * size]: length and record to each rank */
    uint64_t bytes;
    uint32_t flags, wanted_n;
    uint32_t *wanted_seq;        /* [seqs_max] whose tokens are to come */
    struct wn_step_token *drawn; /* [seqs_max] if the leader samples itself */
    uint32_t *top_n;             /* [seqs_max] likeliest tokens of each that is wanted */
    wn_draw_top *top;            /* [seqs_max] those, of the ones with top_n > 0 one after the other */
    int64_t deadline_us;
};

/* What a rank answers to WN_STEP_STATS. */
struct report {
    struct wn_traffic_table traffic;
    struct wn_stage_load load;
};

struct wn_replica {
    struct wn_replica_opts opts;
    struct wn_stage_load load;
    int64_t since_us; /* leader: end of its last share of a step; 0: there was nothing to run since */
    int rank, size, sampler_rank;
    struct wn_stage *stage;
    struct wn_step_record record;
    uint8_t *wire;          /* followers: the record as it came */
    struct flight *flights; /* leader: [depth], a ring */
    uint32_t depth, flights_first, flights_n;
    /* the step as the stage wants it, filled from the record */
    uint32_t *token, *row_slot, *position, *wanted, *wanted_seq;
    struct wn_seq *seqs;
    struct wn_step step;
    struct wn_draw *draw; /* sampler only */
    struct wn_step_token *drawn;
    uint32_t *slot_top, *top_n; /* [seqs_max] leader and sampler: of each slot 0 or 1 + top; of what is wanted now */
    wn_draw_top *top;           /* [seqs_max] sampler: as flight.top */
    struct flight *collected;   /* leader: the last one */
};

static bool is_sampler(const struct wn_replica *r)
{
    return r->rank == r->sampler_rank;
}

static wn_status open_flights(struct wn_replica *r, struct wn_err *err)
{
    const struct wn_step_limits *l = &r->opts.limits;

    r->flights = calloc(r->depth, sizeof(*r->flights));
    for (uint32_t i = 0; r->flights && i < r->depth; i++) {
        struct flight *f = &r->flights[i];
        f->wire = malloc(wn_step_bytes_max(l));
        f->sends = calloc(2 * (size_t)r->size, sizeof(*f->sends));
        f->wanted_seq = calloc(l->seqs_max, sizeof(*f->wanted_seq));
        f->drawn = calloc(l->seqs_max, sizeof(*f->drawn));
        f->top_n = calloc(l->seqs_max, sizeof(*f->top_n));
        f->top = calloc(l->seqs_max, sizeof(*f->top));
        if (!f->wire || !f->sends || !f->wanted_seq || !f->drawn || !f->top_n || !f->top)
            return wn_fail(err, WN_ENOMEM, "steps in flight");
    }
    return r->flights ? WN_OK : wn_fail(err, WN_ENOMEM, "steps in flight");
}

wn_status wn_replica_open(struct wn_replica **out, const struct wn_replica_opts *opts, struct wn_err *err)
{
    const struct wn_step_limits *l = &opts->limits;
    struct wn_replica *r = calloc(1, sizeof(*r));
    struct wn_stage_opts so;
    wn_status rc;

    if (!r) return wn_fail(err, WN_ENOMEM, "replica");
    r->opts = *opts;
    r->rank = opts->link ? wn_link_rank(opts->link) : 0;
    r->size = opts->link ? wn_link_size(opts->link) : 1;
    r->sampler_rank = (int)wn_plan_rank(opts->plan, opts->plan->stages - 1, 0);
    WN_ASSERT(r->size == (int)(opts->plan->stages * opts->plan->tensors));
    if ((rc = wn_step_record_init(&r->record, l, err)) != WN_OK) goto out;
    r->wire = malloc(wn_step_bytes_max(l));
    /* one for each stage, and with several one more, which hides what the leader does between two steps */
    r->depth = opts->plan->stages + (opts->plan->stages > 1);
    r->token = calloc(l->rows_max, sizeof(*r->token));
    r->row_slot = calloc(l->rows_max, sizeof(*r->row_slot));
    r->position = calloc(l->rows_max, sizeof(*r->position));
    r->wanted = calloc(l->seqs_max, sizeof(*r->wanted));
    r->wanted_seq = calloc(l->seqs_max, sizeof(*r->wanted_seq));
    r->seqs = calloc(l->seqs_max, sizeof(*r->seqs));
    r->drawn = calloc(l->seqs_max, sizeof(*r->drawn));
    r->slot_top = calloc(l->seqs_max, sizeof(*r->slot_top));
    r->top_n = calloc(l->seqs_max, sizeof(*r->top_n));
    r->top = calloc(l->seqs_max, sizeof(*r->top));
    if (!r->wire || !r->token || !r->row_slot || !r->position || !r->wanted || !r->wanted_seq || !r->seqs ||
        !r->drawn || !r->slot_top || !r->top_n || !r->top) {
        rc = wn_fail(err, WN_ENOMEM, "step of %u rows", l->rows_max);
        goto out;
    }
    if (r->rank == 0 && (rc = open_flights(r, err)) != WN_OK) goto out;
    so = (struct wn_stage_opts){
        .be = opts->be,
        .link = opts->link,
        .plan = opts->plan,
        .weights = opts->weights,
        .rank = (uint32_t)r->rank,
        .pages = l->pages_max,
        .page_tokens = l->page_tokens,
        .rows_max = l->rows_max,
        .seqs_max = l->seqs_max,
        .wanted_max = l->seqs_max,
        .slots = l->features_max,
    };
    if ((rc = wn_stage_open(&r->stage, &so, err)) != WN_OK) goto out;
    if (is_sampler(r) && (rc = wn_draw_open(&r->draw, r->stage, l, opts->tokens_max, err)) != WN_OK) goto out;
    rc = wn_stage_warm_up(r->stage, opts->tokens_max, wn_deadline_in_us(opts->step_timeout_us), err);
out:
    if (rc != WN_OK) {
        wn_replica_close(r);
        return rc;
    }
    *out = r;
    return WN_OK;
}

struct wn_load_rate wn_replica_load_rate(const struct wn_replica *r)
{
    return wn_stage_load_rate(r->stage);
}

void wn_replica_close(struct wn_replica *r)
{
    if (!r) return;
    wn_stage_close(r->stage);
    wn_draw_close(r->draw);
    free(r->drawn);
    free(r->top);
    free(r->top_n);
    free(r->slot_top);
    free(r->seqs);
    free(r->wanted_seq);
    free(r->wanted);
    free(r->position);
    free(r->row_slot);
    free(r->token);
    for (uint32_t i = 0; r->flights && i < r->depth; i++) {
        free(r->flights[i].wire);
        free(r->flights[i].sends);
        free(r->flights[i].wanted_seq);
        free(r->flights[i].drawn);
        free(r->flights[i].top_n);
        free(r->flights[i].top);
    }
    free(r->flights);
    free(r->wire);
    wn_step_record_fini(&r->record);
    free(r);
}

struct wn_step_record *wn_replica_record(struct wn_replica *r)
{
    wn_step_record_clear(&r->record);
    return &r->record;
}

/* Lays the record out as the stage wants it. */
static void fill_step(struct wn_replica *r)
{
    const struct wn_step_record *rec = &r->record;
    uint32_t wanted_n = 0;

    for (uint32_t i = 0; i < rec->rows_n; i++) {
        r->token[i] = rec->rows[i].id;
        r->row_slot[i] = rec->rows[i].features == WN_STEP_NO_FEATURES ? WN_SLOT_NONE : rec->rows[i].features;
        r->position[i] = rec->rows[i].position;
    }
    for (uint32_t i = 0; i < rec->seqs_n; i++) {
        const struct wn_step_seq *s = &rec->seqs[i];
        r->seqs[i] = (struct wn_seq){
            .first_row = s->first_row, .rows = s->rows, .pos = s->pos, .pages = rec->pages + s->first_page};
        if (s->sample) {
            r->wanted_seq[wanted_n] = i;
            r->top_n[wanted_n] = r->slot_top[s->slot] ? r->slot_top[s->slot] - 1 : 0;
            r->wanted[wanted_n++] = s->first_row + s->rows - 1;
        }
    }
    r->step = (struct wn_step){
        .rows = rec->rows_n,
        .token = r->token,
        .slot = r->row_slot,
        .position = r->position,
        .seqs_n = rec->seqs_n,
        .seqs = r->seqs,
        .wanted_n = wanted_n,
        .wanted = r->wanted,
    };
}

static wn_status link_failed(const struct wn_replica *r, const char *what, struct wn_err *err)
{
    const struct wn_err *e = wn_link_error(r->opts.link);
    return wn_fail(err, e->code, "%s: %s", what, e->text);
}

/* This rank was at a step from since_us until now; its stage's waits stood at `before` then. */
static void count_busy(struct wn_replica *r, int64_t since_us, struct wn_stage_waits before)
{
    const struct wn_stage_waits now = wn_stage_waits(r->stage);
    const uint64_t step_us = now.step_us - before.step_us, link_us = now.link_us - before.link_us;
    const uint64_t all_us = (uint64_t)(wn_now_us() - since_us);

    r->load.busy_us += all_us > step_us + link_us ? all_us - step_us - link_us : 0;
    r->load.wait_us += step_us;
    r->load.link_us += link_us;
}

void wn_replica_idle(struct wn_replica *r)
{
    if (r->since_us) r->load.wait_us += (uint64_t)(wn_now_us() - r->since_us);
    r->since_us = 0;
}

/* Every rank's share of a step, once it has the record. */
static wn_status run(struct wn_replica *r, const void *const *features, int64_t deadline_us, struct wn_err *err)
{
    const struct wn_step_record *rec = &r->record;
    wn_status rc;

    for (uint32_t i = 0; i < rec->drops_n; i++) wn_stage_features_drop(r->stage, rec->drops[i]);
    for (uint32_t i = 0; i < rec->features_n; i++) {
        const struct wn_step_features *f = &rec->features[i];
        const struct wn_features shape = {
            .rows = f->rows, .width = f->width, .dtype = (wn_dtype)f->dtype, .projected = f->projected != 0};
        if ((uint32_t)r->rank >= r->opts.plan->tensors) break; /* not on stage 0 */
        rc = wn_stage_features_share(r->stage, f->slot, features ? features[i] : NULL, &shape, deadline_us, err);
        if (rc != WN_OK) return rc;
    }
    for (uint32_t i = 0; i < rec->copies_n; i++)
        if ((rc = wn_stage_copy_page(r->stage, rec->copies[i].from, rec->copies[i].to, err)) != WN_OK) return rc;
    for (uint32_t i = 0; i < rec->opens_n; i++) r->slot_top[rec->opens[i].slot] = rec->opens[i].logprobs;
    fill_step(r);
    if (is_sampler(r)) return wn_draw_step(r->draw, rec, &r->step, deadline_us, r->drawn, r->top, err);
    return r->step.rows ? wn_stage_run(r->stage, &r->step, deadline_us, NULL, err) : WN_OK;
}

uint32_t wn_replica_depth(const struct wn_replica *r)
{
    return r->depth;
}

/* The length goes ahead in a message of its own: an idle rank waits for that one, asleep, where a wait for a large
 * message has to keep polling. */
static wn_status send_record(struct wn_replica *r, struct flight *f, struct wn_err *err)
{
    f->bytes = wn_step_encode(&r->record, f->wire);
    for (int peer = 1; peer < r->size; peer++) {
        struct wn_route to = {.peer = peer, .tag = TAG_LENGTH, .kind = WN_TRAFFIC_CONTROL};
        if (wn_link_send(r->opts.link, to, &f->bytes, sizeof(f->bytes), &f->sends[2 * peer]) != WN_OK)
            return link_failed(r, "step record", err);
        to.tag = TAG_RECORD;
        if (wn_link_send(r->opts.link, to, f->wire, f->bytes, &f->sends[2 * peer + 1]) != WN_OK)
            return link_failed(r, "step record", err);
    }
    return WN_OK;
}

/* The sends borrow the flight's buffer: they must be over before it is used again. */
static wn_status finish_sends(struct wn_replica *r, struct flight *f, struct wn_err *err)
{
    for (int i = 2; i < 2 * r->size; i++) {
        if (wn_link_wait(r->opts.link, f->sends[i], NULL, f->deadline_us) != WN_OK)
            return link_failed(r, "step record", err);
        f->sends[i] = WN_OP_NONE;
    }
    return WN_OK;
}

/* How many of them have likeliest tokens. */
static size_t tops_of(const uint32_t *top_n, uint32_t n)
{
    size_t tops = 0;

    for (uint32_t i = 0; i < n; i++) tops += top_n[i] > 0;
    return tops;
}

wn_status wn_replica_begin(struct wn_replica *r, const void *const *features, struct wn_err *err)
{
    struct flight *f = &r->flights[(r->flights_first + r->flights_n) % r->depth];
    const struct wn_stage_waits before = wn_stage_waits(r->stage);
    const int64_t now_us = wn_now_us();
    wn_status rc;

    WN_ASSERT(r->rank == 0 && r->flights_n < r->depth);
    if (r->since_us)
        r->load.wait_us += (uint64_t)(now_us - r->since_us);
    else
        r->record.flags |= WN_STEP_FRESH;
    f->deadline_us = wn_deadline_in_us(r->opts.step_timeout_us);
    r->record.step++;
    if (r->size > 1 && (rc = send_record(r, f, err)) != WN_OK) return rc;
    if ((rc = run(r, features, f->deadline_us, err)) != WN_OK) return rc;
    f->flags = r->record.flags;
    f->wanted_n = r->step.wanted_n;
    memcpy(f->wanted_seq, r->wanted_seq, f->wanted_n * sizeof(*f->wanted_seq));
    memcpy(f->top_n, r->top_n, f->wanted_n * sizeof(*f->top_n));
    if (is_sampler(r)) memcpy(f->drawn, r->drawn, f->wanted_n * sizeof(*f->drawn));
    if (is_sampler(r)) memcpy(f->top, r->top, tops_of(f->top_n, f->wanted_n) * sizeof(*f->top));
    r->flights_n++;
    count_busy(r, now_us, before);
    r->since_us = wn_now_us();
    return WN_OK;
}

static wn_status collect_tokens(struct wn_replica *r, struct flight *f, struct wn_step_token *tokens,
                                struct wn_err *err)
{
    const struct wn_route from = {.peer = r->sampler_rank, .tag = TAG_TOKENS, .kind = WN_TRAFFIC_TOKENS};
    const size_t bytes = f->wanted_n * sizeof(*tokens);

    if (f->wanted_n == 0) return WN_OK;
    if (is_sampler(r))
        memcpy(tokens, f->drawn, bytes);
    else if (wn_link_recv_now(r->opts.link, from, tokens, bytes, f->deadline_us) != WN_OK)
        return link_failed(r, "tokens of the last stage", err);
    for (uint32_t i = 0; i < f->wanted_n; i++) {
        if (tokens[i].seq != f->wanted_seq[i] || tokens[i].id >= r->opts.limits.vocab)
            return wn_fail(err, WN_EPROTO, "the last stage sent a token of the wrong sequence");
    }
    return WN_OK;
}

static wn_status collect_top(struct wn_replica *r, struct flight *f, struct wn_err *err)
{
    const struct wn_route from = {.peer = r->sampler_rank, .tag = TAG_TOP, .kind = WN_TRAFFIC_TOKENS};
    const size_t tops = tops_of(f->top_n, f->wanted_n);

    if (tops == 0 || is_sampler(r)) return WN_OK;
    if (wn_link_recv_now(r->opts.link, from, f->top, tops * sizeof(*f->top), f->deadline_us) != WN_OK)
        return link_failed(r, "likeliest tokens of the last stage", err);
    for (size_t i = 0; i < tops; i++)
        for (uint32_t k = 0; k < WN_STEP_TOP_MAX; k++)
            if (f->top[i][k].id >= r->opts.limits.vocab)
                return wn_fail(err, WN_EPROTO, "the last stage sent a token that is none");
    return WN_OK;
}

const struct wn_step_top *wn_replica_top(const struct wn_replica *r, uint32_t i, uint32_t *n)
{
    const struct flight *f = r->collected;

    WN_ASSERT(f && i < f->wanted_n);
    *n = f->top_n[i];
    return *n ? f->top[tops_of(f->top_n, i)] : NULL;
}

static void add_report(struct wn_replica_stats *stats, const struct report *from, uint32_t stage)
{
    for (int k = 0; k < WN_TRAFFIC_N; k++) {
        stats->traffic.of[k].sent_bytes += from->traffic.of[k].sent_bytes;
        stats->traffic.of[k].received_bytes += from->traffic.of[k].received_bytes;
        stats->traffic.of[k].sent_messages += from->traffic.of[k].sent_messages;
        stats->traffic.of[k].received_messages += from->traffic.of[k].received_messages;
    }
    stats->stages[stage].busy_us += from->load.busy_us;
    stats->stages[stage].wait_us += from->load.wait_us;
    stats->stages[stage].link_us += from->load.link_us;
}

static void make_report(const struct wn_replica *r, struct report *out)
{
    memset(out, 0, sizeof(*out));
    if (r->opts.link) wn_link_traffic(r->opts.link, -1, &out->traffic);
    out->load = r->load;
}

static wn_status collect_stats(struct wn_replica *r, int64_t deadline_us, struct wn_replica_stats *stats,
                               struct wn_err *err)
{
    struct report one;

    memset(stats, 0, sizeof(*stats));
    make_report(r, &one);
    add_report(stats, &one, 0);
    for (int peer = 1; peer < r->size; peer++) {
        const struct wn_route from = {.peer = peer, .tag = TAG_STATS, .kind = WN_TRAFFIC_CONTROL};
        if (wn_link_recv_now(r->opts.link, from, &one, sizeof(one), deadline_us) != WN_OK)
            return link_failed(r, "report of a rank", err);
        add_report(stats, &one, (uint32_t)peer / r->opts.plan->tensors);
    }
    return WN_OK;
}

wn_status wn_replica_collect(struct wn_replica *r, struct wn_step_token *tokens, uint32_t *tokens_n,
                             struct wn_replica_stats *stats, struct wn_err *err)
{
    struct flight *f = &r->flights[r->flights_first];
    wn_status rc;

    WN_ASSERT(r->flights_n > 0);
    if ((rc = collect_tokens(r, f, tokens, err)) != WN_OK || (rc = collect_top(r, f, err)) != WN_OK) return rc;
    r->collected = f;
    if (f->flags & WN_STEP_STATS && (rc = collect_stats(r, f->deadline_us, stats, err)) != WN_OK) return rc;
    if (r->size > 1 && (rc = finish_sends(r, f, err)) != WN_OK) return rc;
    *tokens_n = f->wanted_n;
    r->flights_first = (r->flights_first + 1) % r->depth;
    r->flights_n--;
    return WN_OK;
}

static wn_status receive_record(struct wn_replica *r, struct wn_err *err)
{
    struct wn_route from = {.peer = 0, .tag = TAG_LENGTH, .kind = WN_TRAFFIC_CONTROL};
    uint64_t bytes = 0;

    /* however long it takes: a leader that dies takes the group with it */
    if (wn_link_recv_now(r->opts.link, from, &bytes, sizeof(bytes), WN_NEVER) != WN_OK)
        return link_failed(r, "step record", err);
    if (bytes > wn_step_bytes_max(&r->opts.limits))
        return wn_fail(err, WN_EPROTO, "step record of %llu bytes", (unsigned long long)bytes);
    from.tag = TAG_RECORD;
    if (wn_link_recv_now(r->opts.link, from, r->wire, bytes, wn_deadline_in_us(r->opts.step_timeout_us)) != WN_OK)
        return link_failed(r, "step record", err);
    return wn_step_decode(&r->record, &r->opts.limits, r->wire, bytes, err);
}

static wn_status send_top(struct wn_replica *r, int64_t deadline_us, struct wn_err *err)
{
    const struct wn_route to = {.peer = 0, .tag = TAG_TOP, .kind = WN_TRAFFIC_TOKENS};
    const size_t tops = tops_of(r->top_n, r->step.wanted_n);

    if (tops == 0) return WN_OK;
    return wn_link_send_now(r->opts.link, to, r->top, tops * sizeof(*r->top), deadline_us) == WN_OK
               ? WN_OK
               : link_failed(r, "likeliest tokens", err);
}

wn_status wn_replica_follow(struct wn_replica *r, bool *stop, struct wn_err *err)
{
    const struct wn_stage_waits before = wn_stage_waits(r->stage);
    const int64_t since_us = wn_now_us();
    wn_status rc = receive_record(r, err);
    int64_t begun_us, deadline_us;

    if (rc != WN_OK) return rc;
    begun_us = wn_now_us();
    deadline_us = begun_us + r->opts.step_timeout_us;
    if (!(r->record.flags & WN_STEP_FRESH)) r->load.wait_us += (uint64_t)(begun_us - since_us);
    if ((rc = run(r, NULL, deadline_us, err)) != WN_OK) return rc;
    if (is_sampler(r) && r->step.wanted_n > 0) {
        const struct wn_route to = {.peer = 0, .tag = TAG_TOKENS, .kind = WN_TRAFFIC_TOKENS};
        if (wn_link_send_now(r->opts.link, to, r->drawn, r->step.wanted_n * sizeof(*r->drawn), deadline_us) != WN_OK)
            return link_failed(r, "tokens", err);
        if ((rc = send_top(r, deadline_us, err)) != WN_OK) return rc;
    }
    count_busy(r, begun_us, before);
    if (r->record.flags & WN_STEP_STATS) {
        const struct wn_route to = {.peer = 0, .tag = TAG_STATS, .kind = WN_TRAFFIC_CONTROL};
        struct report mine;
        make_report(r, &mine);
        if (wn_link_send_now(r->opts.link, to, &mine, sizeof(mine), deadline_us) != WN_OK)
            return link_failed(r, "report", err);
    }
    *stop = (r->record.flags & WN_STEP_STOP) != 0;
    return WN_OK;
}
