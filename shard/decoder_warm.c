/* shard/decoder_warm.c - steps with nothing in them, before the first request: see wn_stage_warm_up.
 *
 * The largest comes first, so that scratch has its size, and its place, when graphs that name it are captured. Every
 * row reads and writes page 0, which nobody needs yet. */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "shard/decoder_impl.h"

struct warm {
    struct wn_stage *s;
    uint32_t tokens_max; /* of a sequence */
    int64_t deadline_us;
    struct wn_err *err;
    uint32_t *token, *slot, *wanted, *pages, *picked; /* of the largest step */
    struct wn_seq *seqs;
    struct wn_pick *each;
    float *logits;
    uint32_t steps;
};

static void warm_fini(struct warm *w)
{
    free(w->token);
    free(w->slot);
    free(w->wanted);
    free(w->pages);
    free(w->picked);
    free(w->seqs);
    free(w->each);
    free(w->logits);
}

static wn_status warm_init(struct warm *w)
{
    const struct wn_stage_opts *o = &w->s->o;
    const uint32_t vocab = w->s->plan.model.text.vocab, pages = (w->tokens_max - 1) / o->page_tokens + 1;
    const bool scores = wn_stage_is_last(w->s) && !wn_stage_can_pick(w->s);

    w->token = calloc(o->rows_max, sizeof(*w->token));
    w->slot = calloc(o->rows_max, sizeof(*w->slot));
    w->wanted = calloc(o->wanted_max + 1, sizeof(*w->wanted));
    w->pages = calloc(pages, sizeof(*w->pages));
    w->picked = calloc(o->wanted_max + 1, sizeof(*w->picked));
    w->seqs = calloc(o->seqs_max, sizeof(*w->seqs));
    w->each = calloc(o->wanted_max + 1, sizeof(*w->each));
    w->logits = calloc(scores ? (size_t)o->wanted_max * vocab : 1, sizeof(float));
    if (!w->token || !w->slot || !w->wanted || !w->pages || !w->picked || !w->seqs || !w->each || !w->logits)
        return wn_fail(w->err, WN_ENOMEM, "warm-up steps of %u rows", o->rows_max);
    for (uint32_t i = 0; i < o->wanted_max; i++) w->each[i] = (struct wn_pick){.top_p = 1.0f, .wanted = 1};
    return WN_OK;
}

/* A step of `long_n` sequences of one row, `tokens` long, and then one of the other rows, of the picture in slot 0 or
 * of text; the last row of each is wanted. */
static wn_status warm_step(struct warm *w, uint32_t rows, uint32_t long_n, uint32_t tokens, bool picture)
{
    struct wn_stage *s = w->s;
    struct wn_step step = {.rows = rows, .token = w->token, .seqs = w->seqs, .wanted = w->wanted};
    uint32_t row = 0;

    while (row < rows) {
        const uint32_t left = row < long_n ? 1 : rows - row, n = left < w->tokens_max ? left : w->tokens_max;
        if (step.seqs_n == s->o.seqs_max) { /* sequences are too short for so many rows */
            step.rows = row;
            break;
        }
        w->seqs[step.seqs_n++] =
            (struct wn_seq){.first_row = row, .rows = n, .pos = row < long_n ? tokens - 1 : 0, .pages = w->pages};
        row += n;
        if (step.wanted_n < s->o.wanted_max) w->wanted[step.wanted_n++] = row - 1;
    }
    if (picture) {
        step.slot = w->slot;
        for (uint32_t i = 0; i < step.rows; i++) {
            w->slot[i] = i < long_n ? WN_SLOT_NONE : 0;
            w->token[i] = i < long_n ? 0 : i % s->plan.model.vision.patches;
        }
    } else {
        memset(w->token, 0, step.rows * sizeof(*w->token));
    }
    w->steps++;
    return wn_stage_can_pick(s) ? wn_stage_pick(s, &step, w->deadline_us, w->each, w->picked, w->err)
                                : wn_stage_run(s, &step, w->deadline_us, w->logits, w->err);
}

/* What a picture's rows are, as far as kernels go. */
static wn_status put_picture(struct wn_stage *s, struct wn_err *err)
{
    const struct wn_vision_config *v = &s->plan.model.vision;
    const struct wn_features f = {.rows = v->patches, .width = v->hidden, .dtype = s->plan.dtype};
    void *zeros;
    wn_status rc;

    if (!s->first) return WN_OK;
    zeros = calloc((size_t)f.rows * f.width, wn_dtype_bytes(f.dtype));
    if (!zeros) return wn_fail(err, WN_ENOMEM, "warm-up picture");
    rc = wn_stage_features_put(s, 0, zeros, &f, err);
    free(zeros);
    return rc;
}

/* The largest step that goes the same way as one of so many rows, the longest of `tokens`. */
static uint32_t alike(const struct warm *w, uint32_t rows, uint32_t rows_max, uint32_t *tokens)
{
    w->s->o.be->ops->step_alike(w->s->o.be, &rows, tokens);
    if (*tokens > w->tokens_max) *tokens = w->tokens_max;
    return rows < rows_max ? rows : rows_max;
}

/* Steps of one row a sequence, of every class of rows and lengths; large ones first. A rank alone captures such a step
 * when it comes for the second time; with others it makes it afresh (begin() in decoder_run.c), and lengths do not
 * matter. */
static wn_status warm_decode(struct warm *w)
{
    const struct wn_stage_opts *o = &w->s->o;
    const bool alone = w->s->plan.stages * w->s->plan.tensors == 1;
    uint32_t most = o->seqs_max < o->rows_max ? o->seqs_max : o->rows_max, any;
    wn_status rc = WN_OK;

    if (most > o->wanted_max) most = o->wanted_max;
    for (uint32_t rows = most, below; rc == WN_OK && rows > 0; rows = below) {
        for (below = rows - 1; below > 0; below--) /* the next class down ends where a step is not alike */
            if (any = 1, alike(w, below, most, &any) < rows) break;
        for (uint32_t tokens = w->tokens_max, shorter; rc == WN_OK && tokens > 0; tokens = shorter) {
            for (int n = 0; rc == WN_OK && n < (alone ? 2 : 1); n++) rc = warm_step(w, rows, rows, tokens, false);
            for (shorter = alone ? tokens - 1 : 0; shorter > 0; shorter--)
                if (any = shorter, (void)alike(w, rows, most, &any), any < tokens) break;
        }
    }
    return rc;
}

static wn_status warm_prefill(struct warm *w, bool pictures)
{
    const struct wn_stage_opts *o = &w->s->o;
    const uint32_t decodes = o->seqs_max - 1 < o->rows_max - 1 ? o->seqs_max - 1 : o->rows_max - 1;
    wn_status rc = warm_step(w, o->rows_max, decodes, w->tokens_max, pictures);
    uint32_t any = 1;

    for (uint32_t rows = 1; rc == WN_OK && rows <= o->rows_max; rows++) {
        rows = alike(w, rows, o->rows_max, &any);
        rc = warm_step(w, rows, 0, 0, false);
        if (rc == WN_OK && pictures) rc = warm_step(w, rows, 0, 0, true);
    }
    return rc;
}

wn_status wn_stage_warm_up(struct wn_stage *s, uint32_t tokens_max, int64_t deadline_us, struct wn_err *err)
{
    const uint64_t room = (uint64_t)s->o.pages * s->o.page_tokens;
    struct warm w = {.s = s, .tokens_max = tokens_max, .deadline_us = deadline_us, .err = err};
    const int64_t began_us = wn_now_us();
    const bool pictures = s->o.slots > 0;
    wn_status rc;

    if (!s->o.be->ops->step_alike) return WN_OK;
    if (w.tokens_max > s->plan.model.text.positions_max) w.tokens_max = s->plan.model.text.positions_max;
    if (w.tokens_max > room) w.tokens_max = (uint32_t)room;
    if ((rc = warm_init(&w)) != WN_OK) goto out;
    if (pictures && (rc = put_picture(s, err)) != WN_OK) goto out;
    rc = warm_prefill(&w, pictures);
    if (rc == WN_OK) rc = warm_decode(&w);
    if (pictures) wn_stage_features_drop(s, 0);
    s->waits = (struct wn_stage_waits){0};
    if (rc == WN_OK)
        wn_info("stage", "warmed up in %.2f s: %u steps of up to %u rows and %u tokens",
                (double)(wn_now_us() - began_us) * 1e-6, w.steps, s->o.rows_max, w.tokens_max);
out:
    warm_fini(&w);
    return rc;
}
