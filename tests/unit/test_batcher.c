/* tests/unit/test_batcher.c - daemon/batcher with a replica of paper: its KV memory holds the rows themselves, and a
 * token is a hash of all that the block table leads to. So a page that is lent too early, a wrong prefix hit or a row
 * that is missing after a preemption changes a token, and each job must get the tokens that it gets alone.
 *
 *   test_batcher [--runs N] [--seed S]     random runs, beside every order of a few events with two jobs */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/batcher.h"

enum { PAGE = 4, VOCAB = 1000, IMAGE = 999, PAGES_MAX = 64, SEQS_MAX = 4, FEATURES_MAX = 4, JOBS_MAX = 12 };

static uint64_t first_seed = 1;
static int runs = 1000;

static uint64_t mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * 0xff51afd7ed558ccdull;
    return h ^ h >> 32;
}

static uint32_t pick(uint64_t *rng, uint32_t n)
{
    *rng = *rng * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(*rng >> 33) % n;
}

/* ---- what a job is, and what its answer must be ---- */

struct ask {
    Wn__Generate g;
    Wn__Sampling s;
    struct wn_gen_job *job;
    uint32_t text[32], text_n; /* IMAGE is an image */
    uint32_t image[64], image_n, image_rows; /* its features, one number a row */
    uint32_t expected[64], got[64], got_n, max_new;
    bool ended;
};

static uint32_t token_of(uint64_t h)
{
    return (uint32_t)(h % (VOCAB - 1)); /* never an image */
}

static void expect(struct ask *a)
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

struct bed {
    struct wn_batcher *b;
    struct wn_step_record rec;
    struct wn_step_limits limits;
    struct wn_pipeline pipe;
    uint64_t cell[PAGES_MAX * PAGE];
    const uint32_t *slot_data[FEATURES_MAX];
    uint32_t slot_rows[FEATURES_MAX];
    uint64_t seed[SEQS_MAX];
    bool open[SEQS_MAX];
    struct {
        uint32_t token[SEQS_MAX];
        bool sampled[SEQS_MAX];
    } drawn[4]; /* of the steps on their way */
    uint32_t first, n;
    struct ask asks[JOBS_MAX];
    uint32_t asks_n;
};

static uint64_t copies; /* of pages, in all runs */

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
    copies += r->copies_n;
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
static void check_accounts(const struct bed *d)
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

static void begin(struct bed *d)
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

static void land(struct bed *d)
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
static void order(struct bed *d, struct ask *a)
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
    expect(a);
    wn_batcher_add(d->b, job);
}

static void features(struct bed *d, struct ask *a)
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

static void cancel(struct bed *d, struct ask *a)
{
    if (!a->job || a->ended) return;
    wn_batcher_end(d->b, a->job, WN_GEN_CANCEL);
    a->ended = true;
}

static void open_bed(struct bed *d, uint32_t pages, uint32_t depth, uint32_t seqs, uint32_t rows)
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
static void close_bed(struct bed *d)
{
    struct wn_batcher_load load;

    for (int i = 0; i < 3; i++) {
        begin(d); /* closes and drops */
        land(d);
    }
    while (wn_batcher_in_flight(d->b)) land(d);
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

/* ---- every order ---- */

enum { EV_ORDER_A, EV_ORDER_B, EV_FEATURES_A, EV_FEATURES_B, EV_BEGIN, EV_LAND, EV_CANCEL_A, EV_CANCEL_B, EVS };

static void two_jobs(struct bed *d, uint32_t depth)
{
    open_bed(d, 5, depth, 2, 6);
    d->asks_n = 2;
    for (uint32_t i = 0; i < 2; i++) {
        struct ask *a = &d->asks[i];
        *a = (struct ask){.text = {1, 2, IMAGE, 3}, .text_n = 4, .image_n = 1, .image_rows = 8, .max_new = 6};
        for (uint32_t r = 0; r < 8; r++) a->image[r] = 100 + i * 10 + r;
    }
}

static void apply(struct bed *d, int ev)
{
    struct ask *a = &d->asks[0], *b = &d->asks[1];

    if (ev == EV_ORDER_A && !a->job) order(d, a);
    if (ev == EV_ORDER_B && !b->job) order(d, b);
    if (ev == EV_FEATURES_A) features(d, a);
    if (ev == EV_FEATURES_B) features(d, b);
    if (ev == EV_BEGIN) begin(d);
    if (ev == EV_LAND) land(d);
    if (ev == EV_CANCEL_A) cancel(d, a);
    if (ev == EV_CANCEL_B) cancel(d, b);
    check_accounts(d);
}

/* All sequences of LENGTH events after `prefix` ones that get both jobs going; then all is let run out. */
static void every_order(uint32_t depth, int length, const int *prefix, int prefix_n)
{
    struct bed d;
    uint32_t total = 1;

    for (int i = 0; i < length; i++) total *= EVS;
    for (uint32_t code = 0; code < total; code++) {
        uint32_t c = code;
        two_jobs(&d, depth);
        for (int i = 0; i < prefix_n; i++) apply(&d, prefix[i]);
        for (int i = 0; i < length; i++, c /= EVS) apply(&d, (int)(c % EVS));
        for (uint32_t i = 0; i < 2; i++) {
            if (!d.asks[i].job) continue;
            features(&d, &d.asks[i]);
            for (int k = 0; k < 200 && !d.asks[i].ended; k++) {
                begin(&d);
                if (k & 1) land(&d);
            }
            assert_true(d.asks[i].ended); /* nobody waits for ever */
        }
        close_bed(&d);
    }
}

static void test_every_order_from_the_start(void **state)
{
    (void)state;
    every_order(1, 5, NULL, 0);
    every_order(2, 5, NULL, 0);
}

/* Both run, and there are pages for one: the next steps preempt. */
static void test_every_order_under_pressure(void **state)
{
    static const int both[] = {EV_ORDER_A, EV_FEATURES_A, EV_ORDER_B, EV_FEATURES_B, EV_BEGIN, EV_LAND, EV_BEGIN};
    (void)state;
    every_order(1, 5, both, 7);
    every_order(2, 5, both, 7);
    every_order(3, 4, both, 7);
}

/* ---- random runs ---- */

static void random_ask(struct bed *d, struct ask *a, uint64_t *rng)
{
    const uint32_t family = pick(rng, 2); /* prompts that share their beginning */

    memset(a, 0, sizeof(*a));
    a->text_n = pick(rng, 3) ? 1 + pick(rng, 24) : 11; /* some the same, to the end */
    for (uint32_t i = 0; i < a->text_n; i++) a->text[i] = i < 12 ? 10 * family + i : pick(rng, 5);
    a->image_n = a->text_n > 4 ? pick(rng, 3) : 0;
    a->image_rows = 8 + pick(rng, 2) * 3; /* the same picture with another budget is another picture */
    for (uint32_t i = 0; i < a->image_n; i++) a->text[2 + i] = IMAGE;
    for (uint32_t r = 0; r < a->image_rows; r++) a->image[r] = 100 * a->image_rows + r;
    a->max_new = 1 + pick(rng, 24);
    a->s.seed = 0;
    order(d, a);
    if (pick(rng, 3)) a->s.seed = 1 + pick(rng, 3);
    if (pick(rng, 4) == 0) a->s.repetition_penalty = 1.5f;
    expect(a);
}

static uint64_t preemptions;

static void random_run(uint64_t seed)
{
    uint64_t rng = seed * 0x9e3779b97f4a7c15ull;
    struct wn_batcher_load load;
    struct bed d;

    pick(&rng, 2);
    open_bed(&d, 8 + pick(&rng, 30), 1 + pick(&rng, 3), 1 + pick(&rng, SEQS_MAX), 0);
    wn_step_record_fini(&d.rec);
    wn_batcher_destroy(d.b);
    d.limits.rows_max = d.limits.seqs_max + pick(&rng, 20);
    assert_int_equal(wn_step_record_init(&d.rec, &d.limits, NULL), WN_OK);
    assert_int_equal(wn_batcher_create(&d.b, &d.limits, &d.pipe, NULL), WN_OK);
    for (int k = 0, idle = 0; idle < 400; k++) {
        struct ask *a = d.asks_n ? &d.asks[pick(&rng, d.asks_n)] : NULL;
        switch (pick(&rng, 10)) {
        case 0:
            if (d.asks_n < JOBS_MAX) random_ask(&d, &d.asks[d.asks_n++], &rng);
            break;
        case 1:
        case 2:
            if (a) features(&d, a);
            break;
        case 3:
            if (a && pick(&rng, 8) == 0) cancel(&d, a);
            break;
        case 4:
        case 5:
        case 6: land(&d); break;
        default: begin(&d); break;
        }
        check_accounts(&d);
        idle = d.asks_n == JOBS_MAX ? idle + 1 : 0;
    }
    for (uint32_t i = 0; i < d.asks_n; i++) features(&d, &d.asks[i]);
    for (int k = 0; k < 4000; k++) {
        begin(&d);
        land(&d);
    }
    for (uint32_t i = 0; i < d.asks_n; i++)
        if (!d.asks[i].ended) fail_msg("seed %llu: job %u waits for ever", (unsigned long long)seed, i);
    wn_batcher_load(d.b, &load);
    preemptions += load.preemptions;
    close_bed(&d);
}

static void test_random(void **state)
{
    (void)state;
    for (int i = 0; i < runs; i++) random_run(first_seed + (uint64_t)i);
    print_message("%d runs, %llu preemptions, %llu copies\n", runs, (unsigned long long)preemptions,
                  (unsigned long long)copies);
    if (runs > 100) assert_true(preemptions > (uint64_t)runs / 10 && copies > (uint64_t)runs / 10); /* or nothing was */
}

/* ---- order and room ---- */

/* A long prompt that came first is not overtaken by short ones that would fit. */
static void test_long_prompt_does_not_starve(void **state)
{
    struct bed d;
    (void)state;
    open_bed(&d, 12, 1, SEQS_MAX, 16);
    d.asks_n = 4;
    for (uint32_t i = 0; i < 4; i++) {
        struct ask *a = &d.asks[i];
        *a = (struct ask){.text_n = i == 1 ? 30 : 6, .max_new = i == 0 ? 12 : 4};
        for (uint32_t k = 0; k < a->text_n; k++) a->text[k] = 100 * i + k;
        order(&d, a);
        features(&d, a);
    }
    for (int k = 0; k < 200 && !d.asks[1].ended; k++) {
        begin(&d);
        land(&d);
        if (d.asks[1].got_n == 0) assert_int_equal(d.asks[2].got_n + d.asks[3].got_n, 0);
    }
    for (int k = 0; k < 50; k++) {
        begin(&d);
        land(&d);
    }
    for (uint32_t i = 0; i < 4; i++) assert_true(d.asks[i].ended);
    close_bed(&d);
}

/* Pages that were not lent to others meanwhile are found again: a preempted job computes little twice. */
static void test_preempted_job_finds_its_pages(void **state)
{
    struct wn_batcher_load load;
    struct bed d;
    uint32_t twice = 0;
    (void)state;
    open_bed(&d, 10, 1, 2, 64);
    d.asks_n = 2;
    for (uint32_t i = 0; i < 2; i++) {
        struct ask *a = &d.asks[i];
        *a = (struct ask){.text_n = 14, .max_new = 16};
        for (uint32_t k = 0; k < a->text_n; k++) a->text[k] = 100 * i + k;
        order(&d, a);
        features(&d, a);
    }
    for (int k = 0; k < 200; k++) {
        begin(&d);
        land(&d);
        for (uint32_t i = 0; i < 2; i++)
            if (!d.asks[i].ended && d.asks[i].job->preemptions) twice = d.asks[i].job->computed_rows;
    }
    wn_batcher_load(d.b, &load);
    assert_true(load.preemptions >= 1);
    assert_true(d.asks[0].ended && d.asks[1].ended);
    assert_true(twice > 0 && twice < 2 * 30);
    close_bed(&d);
}

/* Prompts that begin alike and come together: the first one's rows are computed once, in one step or in several. */
static void together(uint32_t rows_max)
{
    struct bed d;
    uint32_t computed = 0;

    open_bed(&d, 40, 1, SEQS_MAX, rows_max);
    d.asks_n = 4;
    for (uint32_t i = 0; i < 4; i++) {
        struct ask *a = &d.asks[i];
        *a = (struct ask){.text_n = 30, .max_new = 3};
        for (uint32_t k = 0; k < a->text_n; k++) a->text[k] = k < 29 ? k : 100 + i;
        order(&d, a);
        features(&d, a);
    }
    for (int k = 0; k < 40; k++) {
        begin(&d);
        for (uint32_t i = 0; i < d.rec.seqs_n; i++) computed += d.rec.seqs[i].rows;
        wn_step_record_clear(&d.rec);
        land(&d);
    }
    for (uint32_t i = 0; i < 4; i++) assert_int_equal(d.asks[i].got_n, 3);
    assert_int_equal(computed, 30 + 3 * (30 - 29 / PAGE * PAGE) + 4 * 2);
    close_bed(&d);
}

static void test_jobs_that_come_together_share(void **state)
{
    (void)state;
    together(64);
    together(12);
}

/* One prompt again and again: its last row is computed, whether the job before still writes the page or is gone. */
static void repeated(uint32_t pages, uint32_t apart, uint32_t max_new, uint32_t copies_n)
{
    const uint64_t before = copies;
    uint32_t computed = 0;
    struct bed d;

    open_bed(&d, pages, 1, SEQS_MAX, 64);
    d.asks_n = 4;
    for (uint32_t i = 0; i < 4; i++) {
        struct ask *a = &d.asks[i];
        *a = (struct ask){.text_n = 11, .max_new = max_new};
        for (uint32_t k = 0; k < a->text_n; k++) a->text[k] = k;
        order(&d, a);
        features(&d, a);
        for (uint32_t k = 0; k < (i < 3 ? apart : 20); k++) {
            begin(&d);
            computed += d.rec.rows_n;
            wn_step_record_clear(&d.rec);
            land(&d);
        }
    }
    for (uint32_t i = 0; i < 4; i++) assert_true(d.asks[i].ended);
    assert_int_equal(copies - before, copies_n);
    assert_int_equal(computed, 11 + 3 * (apart ? 1 : 3) + 4 * (max_new - 1));
    close_bed(&d);
}

static void test_repeated_prompt_copies_its_last_page(void **state)
{
    (void)state;
    repeated(40, 1, 8, 3);  /* the first one writes its first token beside the rows that the second copies */
    repeated(40, 12, 8, 3); /* alone, and after the page has been filled */
    repeated(3, 12, 1, 0);  /* there is no page left but the one to be copied: it is taken as it is */
    repeated(40, 0, 8, 0);  /* all in one record: nothing is there to be copied before it */
}

static void test_repeated_prompt_computes_one_row(void **state)
{
    struct bed d;
    (void)state;
    open_bed(&d, 40, 1, SEQS_MAX, 64);
    d.asks_n = 3;
    for (uint32_t i = 0; i < 3; i++) {
        struct ask *a = &d.asks[i];
        *a = (struct ask){.text_n = i < 2 ? 11 : 12, .max_new = 1}; /* the third goes on where they end */
        for (uint32_t k = 0; k < a->text_n; k++) a->text[k] = k;
        order(&d, a);
        features(&d, a);
        begin(&d);
        assert_int_equal(d.rec.rows_n, i == 0 ? 11 : i == 1 ? 1 : 4);
        assert_int_equal(d.rec.copies_n, i == 1);
        land(&d);
        assert_true(a->ended);
    }
    close_bed(&d);
}

/* ---- chunks for stages ---- */

static void test_chunk_sizes(void **state)
{
    static const struct {
        uint32_t stages, chunk_min, rows, chunk;
    } cases[] = {
        {1, 32, 588, 588},                                       /* nothing to fill */
        {2, 0, 588, 588},                                        /* nobody knows what a chunk costs */
        {2, 32, 1, 1},     {2, 32, 63, 63}, {2, 256, 76, 76},    /* chunks would cost what the whole does */
        {2, 32, 64, 32},   {2, 32, 76, 38}, {4, 32, 76, 38},     /* as many as chunk_min allows */
        {2, 32, 588, 74},  {4, 32, 588, 37}, {2, 32, 1025, 129}, /* as many as win something */
    };
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct wn_pipeline pipe = {.stages = cases[i].stages, .chunk_min = cases[i].chunk_min};
        assert_int_equal(wn_pipeline_chunk(&pipe, cases[i].rows), cases[i].chunk);
    }
}

/* A prompt alone goes in chunks, one behind the other, as long as nobody else comes. */
static void test_lone_prompt_is_cut(void **state)
{
    struct bed d;
    (void)state;
    open_bed(&d, 40, 3, SEQS_MAX, 64);
    d.asks_n = 3;
    for (uint32_t i = 0; i < 3; i++) {
        struct ask *a = &d.asks[i];
        *a = (struct ask){.text_n = 30, .max_new = 3};
        for (uint32_t k = 0; k < a->text_n; k++) a->text[k] = 100 * i + k;
    }
    order(&d, &d.asks[0]);
    features(&d, &d.asks[0]);
    for (uint32_t i = 0; i < 3; i++) { /* 30 rows in 7 chunks of at least 4 */
        begin(&d);
        assert_int_equal(d.rec.rows_n, 5);
    }
    land(&d);
    order(&d, &d.asks[1]);
    features(&d, &d.asks[1]);
    begin(&d); /* the rest of it, and the other */
    assert_int_equal(d.rec.rows_n, 15 + 30);
    for (int k = 0; k < 20; k++) {
        land(&d);
        begin(&d);
    }
    assert_true(d.asks[0].ended && d.asks[1].ended);
    order(&d, &d.asks[2]); /* alone again: after those that have ended */
    features(&d, &d.asks[2]);
    begin(&d);
    assert_int_equal(d.rec.rows_n, 5);
    for (int k = 0; k < 20; k++) {
        land(&d);
        begin(&d);
    }
    assert_true(d.asks[2].ended);
    close_bed(&d);
}

static void test_too_large_is_refused(void **state)
{
    struct bed d;
    (void)state;
    open_bed(&d, 5, 1, 2, 8);
    d.asks_n = 1;
    d.asks[0] = (struct ask){.text_n = 10, .max_new = 11};
    order(&d, &d.asks[0]);
    features(&d, &d.asks[0]);
    assert_true(d.asks[0].ended);
    close_bed(&d);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"runs", required_argument, NULL, 'r'}, {"seed", required_argument, NULL, 's'}, {0}};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_too_large_is_refused),
        cmocka_unit_test(test_chunk_sizes),
        cmocka_unit_test(test_lone_prompt_is_cut),
        cmocka_unit_test(test_long_prompt_does_not_starve),
        cmocka_unit_test(test_preempted_job_finds_its_pages),
        cmocka_unit_test(test_jobs_that_come_together_share),
        cmocka_unit_test(test_repeated_prompt_copies_its_last_page),
        cmocka_unit_test(test_repeated_prompt_computes_one_row),
        cmocka_unit_test(test_every_order_from_the_start),
        cmocka_unit_test(test_every_order_under_pressure),
        cmocka_unit_test(test_random),
    };

    for (int opt; (opt = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (opt == 'r') runs = (int)strtol(optarg, NULL, 10);
        else if (opt == 's') first_seed = strtoull(optarg, NULL, 10);
        else return 2;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
