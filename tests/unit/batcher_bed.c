/* tests/unit/batcher_bed.c - see batcher_bed.h. */
#include "tests/unit/batcher_bed.h"

#include <stdlib.h>
#include <string.h>

uint64_t bed_copies;

static uint64_t mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * 0xff51afd7ed558ccdull;
    return h ^ h >> 32;
}

uint32_t pick(uint64_t *rng, uint32_t n)
{
    *rng = *rng * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(*rng >> 33) % n;
}

/* ---- what a job is, and what its answer must be ---- */

static uint32_t token_of(uint64_t h)
{
    return (uint32_t)(h % (VOCAB - 1)); /* never an image */
}

void ask_expect(struct ask *a)
{
    uint64_t h = a->s.seed;

    for (uint32_t i = 0; i < a->text_n; i++) {
        if (a->text[i] != IMAGE) h = mix(h, a->text[i]);
        for (uint32_t r = 0; a->text[i] == IMAGE && r < a->image_rows; r++) h = mix(h, (uint64_t)a->image[r] << 32);
    }
    for (uint32_t t = 0; t < a->max_new; t++) {
        a->expected[t] = token_of(h);
        h = mix(h, a->expected[t]);
    }
}

/* ---- the replica of paper ---- */

/* Every rank's share: runs the record, keeps its tokens until it lands. */
static void run_record(struct bed *d)
{
    const struct wn_step_record *r = &d->rec;
    const uint32_t at = (d->first + d->n++) % 4;
    const void *const *data = wn_batcher_features(d->b);

    for (uint32_t i = 0; i < r->closes_n; i++) {
        assert_true(d->open[r->closes[i]]);
        d->open[r->closes[i]] = false;
    }
    for (uint32_t i = 0; i < r->drops_n; i++) {
        assert_non_null(d->slot_data[r->drops[i]]);
        d->slot_data[r->drops[i]] = NULL;
    }
    for (uint32_t i = 0; i < r->features_n; i++) {
        assert_null(d->slot_data[r->features[i].slot]);
        d->slot_data[r->features[i].slot] = data[i];
        d->slot_rows[r->features[i].slot] = r->features[i].rows;
    }
    for (uint32_t i = 0; i < r->opens_n; i++) {
        assert_false(d->open[r->opens[i].slot]);
        d->open[r->opens[i].slot] = true;
        d->seed[r->opens[i].slot] = r->opens[i].seed;
    }
    for (uint32_t i = 0; i < r->copies_n; i++)
        memcpy(d->cell + r->copies[i].to * PAGE, d->cell + r->copies[i].from * PAGE, PAGE * sizeof(*d->cell));
    bed_copies += r->copies_n;
    for (uint32_t i = 0; i < r->seqs_n; i++) {
        const struct wn_step_seq *s = &r->seqs[i];
        const uint32_t *table = r->pages + s->first_page;
        uint64_t h = d->seed[s->slot];
        assert_true(d->open[s->slot]);
        for (uint32_t k = 0; k < s->rows; k++) {
            const struct wn_step_row *row = &r->rows[s->first_row + k];
            uint64_t v = row->id;
            assert_int_equal(row->position, s->pos + k);
            if (row->features != WN_STEP_NO_FEATURES) {
                assert_non_null(d->slot_data[row->features]);
                assert_true(row->id < d->slot_rows[row->features]);
                v = (uint64_t)d->slot_data[row->features][row->id] << 32;
            }
            d->cell[table[(s->pos + k) / PAGE] * PAGE + (s->pos + k) % PAGE] = v;
        }
        for (uint32_t k = 0; k < s->pos + s->rows; k++) h = mix(h, d->cell[table[k / PAGE] * PAGE + k % PAGE]);
        d->drawn[at].token[i] = token_of(h);
        d->drawn[at].sampled[i] = s->sample;
    }
}

/* ---- exact accounts ---- */

/* What is lent is what jobs that have not ended hold, and nothing else: at any moment, so also right after a cancel. */
void bed_check_accounts(const struct bed *d)
{
    uint32_t pages = 0, slots = 0, features = 0;
    bool lent[PAGES_MAX] = {false};
    struct wn_batcher_load load;

    for (uint32_t i = 0; i < d->asks_n; i++) {
        const struct wn_gen_job *job = d->asks[i].job;
        if (!job || d->asks[i].ended) continue;
        slots += wn_gen_holds(&job->life);
        for (uint32_t k = 0; k < job->pages_n; k++) {
            pages += !lent[job->pages[k]];
            lent[job->pages[k]] = true;
        }
        for (uint32_t k = 0; k < job->images_n; k++) features += job->images[k].held;
    }
    wn_batcher_load(d->b, &load);
    assert_int_equal(load.running, slots);
    assert_int_equal(load.pages_used, pages);
    assert_int_equal(load.feature_slots_used, features);
}

/* After a record the ranks hold what it left: what ended before it has gone from them in this one step. Features that
 * were read in it go with the next. */
static void check_ranks(const struct bed *d)
{
    struct wn_batcher_load load;
    uint32_t open = 0, kept = 0, read = 0;

    wn_batcher_load(d->b, &load);
    for (uint32_t i = 0; i < SEQS_MAX; i++) open += d->open[i];
    for (uint32_t i = 0; i < FEATURES_MAX; i++) kept += d->slot_data[i] != NULL;
    for (uint32_t i = 0; i < d->asks_n; i++) {
        const struct wn_gen_job *job = d->asks[i].job;
        for (uint32_t k = 0; job && !d->asks[i].ended && k < job->images_n; k++)
            read += wn_gen_holds(&job->life) && !job->images[k].held;
    }
    assert_int_equal(open, load.running);
    assert_in_range(kept, load.feature_slots_used, load.feature_slots_used + read);
}

/* ---- steps ---- */

void bed_begin(struct bed *d)
{
    uint8_t wire[8192];

    if (wn_batcher_in_flight(d->b) == d->pipe.depth) return;
    wn_batcher_reap(d->b);
    wn_step_record_clear(&d->rec);
    wn_batcher_fill(d->b, &d->rec);
    if (wn_batcher_is_idle(&d->rec)) {
        check_ranks(d);
        return;
    }
    assert_true(wn_step_bytes_max(&d->limits) <= sizeof(wire));
    assert_int_equal(wn_step_decode(&d->rec, &d->limits, wire, wn_step_encode(&d->rec, wire), NULL), WN_OK);
    run_record(d);
    wn_batcher_begun(d->b, &d->rec);
    check_ranks(d);
}

static struct ask *ask_of(struct bed *d, const struct wn_gen_job *job)
{
    for (uint32_t i = 0; i < d->asks_n; i++)
        if (d->asks[i].job == job && !d->asks[i].ended) return &d->asks[i];
    fail_msg("a token of a job that is gone");
    return NULL;
}

void bed_land(struct bed *d)
{
    const struct wn_flight *f;
    const uint32_t at = d->first;

    if (wn_batcher_in_flight(d->b) == 0) return;
    f = wn_batcher_landed(d->b);
    d->first = (d->first + 1) % 4;
    d->n--;
    for (uint32_t i = 0; i < f->seqs_n; i++) {
        struct wn_gen_job *job = f->order[i];
        struct ask *a;
        if (!d->drawn[at].sampled[i] || !wn_gen_apply(&job->life, WN_GEN_TOKEN)) continue;
        a = ask_of(d, job);
        assert_false(a->ended);
        assert_true(a->got_n < a->max_new);
        if (d->drawn[at].token[i] != a->expected[a->got_n]) fail_msg("token %u of a job is another", a->got_n);
        a->got[a->got_n++] = d->drawn[at].token[i];
        wn_gen_job_push(job, d->drawn[at].token[i]);
        if (a->got_n < a->max_new) continue;
        wn_batcher_end(d->b, job, WN_GEN_FINISH);
        a->ended = true;
    }
}

/* ---- what may happen ---- */

/* Puts a job into the list; its features come later. */
void bed_order(struct bed *d, struct ask *a)
{
    struct wn_gen_job *job = calloc(1, sizeof(*job));

    wn__generate__init(&a->g);
    wn__sampling__init(&a->s);
    a->g.sampling = &a->s;
    assert_non_null(job);
    job->g = &a->g;
    job->images_n = a->image_n;
    job->max_new = a->max_new;
    job->tokens.ids = calloc(a->text_n, sizeof(uint32_t));
    memcpy(job->tokens.ids, a->text, a->text_n * sizeof(uint32_t));
    job->tokens.n = a->text_n;
    a->job = job;
    ask_expect(a);
    wn_batcher_add(d->b, job);
}

void bed_features(struct bed *d, struct ask *a)
{
    static const struct wn_model model = {.image_token = IMAGE, .text.positions_max = 1000};
    const struct wn_gen_limits limits = {.model = &model, .page_tokens = PAGE, .tokens_max = PAGES_MAX * PAGE};
    struct wn_err err = {0};

    if (a->ended || !a->job || a->job->life.state != WN_GEN_WAITING) return;
    for (uint32_t i = 0; i < a->image_n; i++) {
        struct wn_gen_image *im = &a->job->images[i];
        im->msg = calloc(1, sizeof(*im->msg));
        assert_non_null(im->msg);
        wn_msg_init(&im->msg->msg);
        im->msg->payload = a->image;
        im->rows = a->image_rows;
        im->width = 1;
        memcpy(im->hash, a->image, sizeof(im->hash));
        a->job->image_rows += im->rows;
    }
    assert_int_equal(wn_gen_job_layout(a->job, &limits, &err), WN_OK);
    if (wn_batcher_check(d->b, a->job, &err) == WN_OK) return;
    wn_batcher_end(d->b, a->job, WN_GEN_FAIL);
    a->ended = true;
}

void bed_cancel(struct bed *d, struct ask *a)
{
    if (!a->job || a->ended) return;
    wn_batcher_end(d->b, a->job, WN_GEN_CANCEL);
    a->ended = true;
}

void bed_open(struct bed *d, uint32_t pages, uint32_t depth, uint32_t seqs, uint32_t rows)
{
    memset(d, 0, sizeof(*d));
    d->pipe = (struct wn_pipeline){.depth = depth, .stages = depth, .chunk_min = 4};
    d->limits = (struct wn_step_limits){.rows_max = rows,
                                        .seqs_max = seqs,
                                        .pages_max = pages,
                                        .table_max = seqs * PAGES_MAX,
                                        .features_max = FEATURES_MAX,
                                        .page_tokens = PAGE,
                                        .vocab = VOCAB,
                                        .positions_max = 1000};
    assert_int_equal(wn_step_record_init(&d->rec, &d->limits, NULL), WN_OK);
    assert_int_equal(wn_batcher_create(&d->b, &d->limits, &d->pipe, NULL), WN_OK);
}

/* Nobody is there any more: every account is zero, and the replica holds nothing. */
void bed_close(struct bed *d)
{
    struct wn_batcher_load load;

    for (int i = 0; i < 3; i++) {
        bed_begin(d); /* closes and drops */
        bed_land(d);
    }
    while (wn_batcher_in_flight(d->b)) bed_land(d);
    wn_batcher_reap(d->b);
    wn_batcher_load(d->b, &load);
    assert_null(wn_batcher_oldest(d->b));
    assert_int_equal(load.running + load.waiting, 0);
    assert_int_equal(load.pages_used + load.feature_slots_used + load.features, 0);
    for (uint32_t i = 0; i < SEQS_MAX; i++) assert_false(d->open[i]);
    for (uint32_t i = 0; i < FEATURES_MAX; i++) assert_null(d->slot_data[i]);
    wn_batcher_destroy(d->b);
    wn_step_record_fini(&d->rec);
}
