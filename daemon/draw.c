/* daemon/draw.c - see draw.h. */
#include "daemon/draw.h"

#include <stdlib.h>

#include "shard/sample.h"

struct slot {
    struct wn_sample_opts opts;
    uint32_t logprobs; /* as struct wn_step_open says it */
    uint32_t *history; /* [tokens_max] text tokens of the sequence so far */
    uint32_t history_n;
};

struct wn_draw {
    struct wn_stage *stage;
    struct wn_sampler *sampler;
    uint32_t seqs_max, tokens_max, vocab;
    struct slot *slots;    /* [seqs_max] */
    float *logits;         /* [seqs_max, vocab], or one row where the device picks */
    struct wn_pick *picks; /* [seqs_max] where it does; else NULL */
    uint32_t *picked;      /* [seqs_max] */
};

wn_status wn_draw_open(struct wn_draw **out, struct wn_stage *stage, const struct wn_step_limits *limits,
                       uint32_t tokens_max, struct wn_err *err)
{
    const bool device = wn_stage_can_pick(stage);
    const uint32_t seqs_max = limits->seqs_max;
    struct wn_draw *d = calloc(1, sizeof(*d));
    wn_status rc = WN_ENOMEM;

    if (!d) goto out;
    d->stage = stage;
    d->seqs_max = seqs_max;
    d->tokens_max = tokens_max;
    d->vocab = limits->vocab;
    d->slots = calloc(seqs_max, sizeof(*d->slots));
    d->logits = malloc((device ? 1 : (size_t)seqs_max) * d->vocab * sizeof(float));
    if (device) d->picks = calloc(seqs_max, sizeof(*d->picks));
    d->picked = calloc(seqs_max, sizeof(*d->picked));
    if (!d->slots || !d->logits || !d->picked || (device && !d->picks)) goto out;
    for (uint32_t i = 0; i < seqs_max; i++)
        if (!(d->slots[i].history = malloc((size_t)tokens_max * sizeof(uint32_t)))) goto out;
    rc = wn_sampler_create(&d->sampler, d->vocab, NULL);
out:
    if (rc != WN_OK) {
        wn_draw_close(d);
        return wn_fail(err, rc, "sampler of %u sequences", seqs_max);
    }
    *out = d;
    return WN_OK;
}

void wn_draw_close(struct wn_draw *d)
{
    if (!d) return;
    wn_sampler_destroy(d->sampler);
    for (uint32_t i = 0; d->slots && i < d->seqs_max; i++) free(d->slots[i].history);
    free(d->slots);
    free(d->logits);
    free(d->picks);
    free(d->picked);
    free(d);
}

/* Slots that start, and the text of this step. */
static void note(struct wn_draw *d, const struct wn_step_record *rec)
{
    for (uint32_t i = 0; i < rec->opens_n; i++) {
        const struct wn_step_open *o = &rec->opens[i];
        struct slot *slot = &d->slots[o->slot];
        slot->opts = (struct wn_sample_opts){.temperature = o->temperature,
                                             .top_k = o->top_k,
                                             .top_p = o->top_p,
                                             .repetition_penalty = o->repetition_penalty,
                                             .seed = o->seed};
        slot->logprobs = o->logprobs;
        slot->history_n = 0;
    }
    for (uint32_t i = 0; i < rec->seqs_n; i++) {
        const struct wn_step_seq *s = &rec->seqs[i];
        struct slot *slot = &d->slots[s->slot];
        for (uint32_t j = s->first_row; j < s->first_row + s->rows; j++)
            if (rec->rows[j].features == WN_STEP_NO_FEATURES && slot->history_n < d->tokens_max)
                slot->history[slot->history_n++] = rec->rows[j].id;
    }
}

/* Where the device picks: what it is told of each row. Penalties need the history and likelihoods all of the row, and
 * those are here. */
static void fill_picks(struct wn_draw *d, const struct wn_step_record *rec)
{
    struct wn_pick *p = d->picks;

    for (uint32_t i = 0; i < rec->seqs_n; i++) {
        const struct wn_step_seq *s = &rec->seqs[i];
        const struct wn_sample_opts *o = &d->slots[s->slot].opts;
        if (!s->sample) continue;
        *p++ = (struct wn_pick){.seed = o->seed,
                                .position = (uint64_t)s->pos + s->rows,
                                .temperature = o->temperature,
                                .top_p = o->top_p,
                                .top_k = o->top_k,
                                .wanted = o->repetition_penalty == 1.0f && !d->slots[s->slot].logprobs};
    }
}

/* Logits of wanted row i, or NULL: the device has picked. */
static wn_status row_logits(struct wn_draw *d, uint32_t i, const float **out, struct wn_err *err)
{
    *out = d->picks ? NULL : d->logits + (size_t)i * d->vocab;
    if (!d->picks || d->picked[i] != WN_PICK_NONE) return WN_OK;
    *out = d->logits;
    return wn_stage_logits(d->stage, i, d->logits, err);
}

/* Wanted row i, the last one of s. */
static wn_status draw_row(struct wn_draw *d, const struct wn_step_seq *s, uint32_t i, struct wn_step_token *drawn,
                          wn_draw_top *top, uint32_t *top_n, struct wn_err *err)
{
    const struct slot *slot = &d->slots[s->slot];
    struct wn_sampled got = {.token = d->picked[i]}, likeliest[WN_STEP_TOP_MAX] = {{0}};
    const float *logits;
    wn_status rc = row_logits(d, i, &logits, err);

    if (rc == WN_OK && logits)
        rc = wn_sampler_pick(d->sampler, &slot->opts, logits, slot->history, slot->history_n,
                             (uint64_t)s->pos + s->rows, false, &got, err);
    if (rc != WN_OK) return rc;
    *top_n = slot->logprobs ? slot->logprobs - 1 : 0;
    if (slot->logprobs) wn_sampler_logprobs(d->sampler, logits, got.token, &got.logprob, likeliest, *top_n);
    for (uint32_t k = 0; k < *top_n; k++)
        (*top)[k] = (struct wn_step_top){.id = likeliest[k].token, .logprob = likeliest[k].logprob};
    drawn->id = got.token;
    drawn->logprob = got.logprob;
    return WN_OK;
}

wn_status wn_draw_step(struct wn_draw *d, const struct wn_step_record *rec, const struct wn_step *step,
                       int64_t deadline_us, struct wn_step_token *drawn, wn_draw_top *top, struct wn_err *err)
{
    uint32_t row = 0, top_n;
    wn_status rc;

    note(d, rec);
    if (step->rows == 0) return WN_OK;
    if (d->picks) fill_picks(d, rec);
    rc = d->picks ? wn_stage_pick(d->stage, step, deadline_us, d->picks, d->picked, err)
                  : wn_stage_run(d->stage, step, deadline_us, d->logits, err);
    for (uint32_t i = 0; rc == WN_OK && i < rec->seqs_n; i++) {
        if (!rec->seqs[i].sample) continue;
        drawn[row].seq = i;
        rc = draw_row(d, &rec->seqs[i], row, &drawn[row], top, &top_n, err);
        top += rc == WN_OK && top_n > 0;
        row++;
    }
    return rc;
}
