/* tests/unit/test_batcher.c - daemon/batcher with the replica of paper of batcher_bed.h: each job gets the tokens that
 * it gets alone, and what is lent is what jobs hold.
 *
 *   test_batcher [--runs N] [--seed S]     random runs, beside every order of a few events with two jobs */
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/batcher_bed.h"

static uint64_t first_seed = 1;
static int runs = 1000;

/* ---- every order ---- */

enum { EV_ORDER_A, EV_ORDER_B, EV_FEATURES_A, EV_FEATURES_B, EV_BEGIN, EV_LAND, EV_CANCEL_A, EV_CANCEL_B, EVS };

static void two_jobs(struct bed *d, uint32_t depth)
{
    bed_open(d, 5, depth, 2, 6);
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

    if (ev == EV_ORDER_A && !a->job) bed_order(d, a);
    if (ev == EV_ORDER_B && !b->job) bed_order(d, b);
    if (ev == EV_FEATURES_A) bed_features(d, a);
    if (ev == EV_FEATURES_B) bed_features(d, b);
    if (ev == EV_BEGIN) bed_begin(d);
    if (ev == EV_LAND) bed_land(d);
    if (ev == EV_CANCEL_A) bed_cancel(d, a);
    if (ev == EV_CANCEL_B) bed_cancel(d, b);
    bed_check_accounts(d);
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
            bed_features(&d, &d.asks[i]);
            for (int k = 0; k < 200 && !d.asks[i].ended; k++) {
                bed_begin(&d);
                if (k & 1) bed_land(&d);
            }
            assert_true(d.asks[i].ended); /* nobody waits for ever */
        }
        bed_close(&d);
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
    bed_order(d, a);
    if (pick(rng, 3)) a->s.seed = 1 + pick(rng, 3);
    if (pick(rng, 4) == 0) a->s.repetition_penalty = 1.5f;
    ask_expect(a);
}

static uint64_t preemptions;

static void random_run(uint64_t seed)
{
    uint64_t rng = seed * 0x9e3779b97f4a7c15ull;
    struct wn_batcher_load load;
    struct bed d;

    pick(&rng, 2);
    bed_open(&d, 8 + pick(&rng, 30), 1 + pick(&rng, 3), 1 + pick(&rng, SEQS_MAX), 0);
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
            if (a) bed_features(&d, a);
            break;
        case 3:
            if (a && pick(&rng, 8) == 0) bed_cancel(&d, a);
            break;
        case 4:
        case 5:
        case 6: bed_land(&d); break;
        default: bed_begin(&d); break;
        }
        bed_check_accounts(&d);
        idle = d.asks_n == JOBS_MAX ? idle + 1 : 0;
    }
    for (uint32_t i = 0; i < d.asks_n; i++) bed_features(&d, &d.asks[i]);
    for (int k = 0; k < 4000; k++) {
        bed_begin(&d);
        bed_land(&d);
    }
    for (uint32_t i = 0; i < d.asks_n; i++)
        if (!d.asks[i].ended) fail_msg("seed %llu: job %u waits for ever", (unsigned long long)seed, i);
    wn_batcher_load(d.b, &load);
    preemptions += load.preemptions;
    bed_close(&d);
}

static void test_random(void **state)
{
    (void)state;
    for (int i = 0; i < runs; i++) random_run(first_seed + (uint64_t)i);
    print_message("%d runs, %llu preemptions, %llu copies\n", runs, (unsigned long long)preemptions,
                  (unsigned long long)bed_copies);
    if (runs <= 100) return;
    assert_true(preemptions > (uint64_t)runs / 10); /* or nothing was shown */
    assert_true(bed_copies > (uint64_t)runs / 10);
}

/* ---- order and room ---- */

/* A long prompt that came first is not overtaken by short ones that would fit. */
static void test_long_prompt_does_not_starve(void **state)
{
    struct bed d;
    (void)state;
    bed_open(&d, 12, 1, SEQS_MAX, 16);
    d.asks_n = 4;
    for (uint32_t i = 0; i < 4; i++) {
        struct ask *a = &d.asks[i];
        *a = (struct ask){.text_n = i == 1 ? 30 : 6, .max_new = i == 0 ? 12 : 4};
        for (uint32_t k = 0; k < a->text_n; k++) a->text[k] = 100 * i + k;
        bed_order(&d, a);
        bed_features(&d, a);
    }
    for (int k = 0; k < 200 && !d.asks[1].ended; k++) {
        bed_begin(&d);
        bed_land(&d);
        if (d.asks[1].got_n == 0) assert_int_equal(d.asks[2].got_n + d.asks[3].got_n, 0);
    }
    for (int k = 0; k < 50; k++) {
        bed_begin(&d);
        bed_land(&d);
    }
    for (uint32_t i = 0; i < 4; i++) assert_true(d.asks[i].ended);
    bed_close(&d);
}

/* Pages that were not lent to others meanwhile are found again: a preempted job computes little twice. */
static void test_preempted_job_finds_its_pages(void **state)
{
    struct wn_batcher_load load;
    struct bed d;
    uint32_t twice = 0;
    (void)state;
    bed_open(&d, 10, 1, 2, 64);
    d.asks_n = 2;
    for (uint32_t i = 0; i < 2; i++) {
        struct ask *a = &d.asks[i];
        *a = (struct ask){.text_n = 14, .max_new = 16};
        for (uint32_t k = 0; k < a->text_n; k++) a->text[k] = 100 * i + k;
        bed_order(&d, a);
        bed_features(&d, a);
    }
    for (int k = 0; k < 200; k++) {
        bed_begin(&d);
        bed_land(&d);
        for (uint32_t i = 0; i < 2; i++)
            if (!d.asks[i].ended && d.asks[i].job->preemptions) twice = d.asks[i].job->computed_rows;
    }
    wn_batcher_load(d.b, &load);
    assert_true(load.preemptions >= 1);
    assert_true(d.asks[0].ended && d.asks[1].ended);
    assert_true(twice > 0 && twice < 2 * 30);
    bed_close(&d);
}

/* Prompts that begin alike and come together: the first one's rows are computed once, in one step or in several. */
static void together(uint32_t rows_max)
{
    struct bed d;
    uint32_t computed = 0;

    bed_open(&d, 40, 1, SEQS_MAX, rows_max);
    d.asks_n = 4;
    for (uint32_t i = 0; i < 4; i++) {
        struct ask *a = &d.asks[i];
        *a = (struct ask){.text_n = 30, .max_new = 3};
        for (uint32_t k = 0; k < a->text_n; k++) a->text[k] = k < 29 ? k : 100 + i;
        bed_order(&d, a);
        bed_features(&d, a);
    }
    for (int k = 0; k < 40; k++) {
        bed_begin(&d);
        for (uint32_t i = 0; i < d.rec.seqs_n; i++) computed += d.rec.seqs[i].rows;
        wn_step_record_clear(&d.rec);
        bed_land(&d);
    }
    for (uint32_t i = 0; i < 4; i++) assert_int_equal(d.asks[i].got_n, 3);
    assert_int_equal(computed, 30 + 3 * (30 - 29 / PAGE * PAGE) + 4 * 2);
    bed_close(&d);
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
    const uint64_t before = bed_copies;
    uint32_t computed = 0;
    struct bed d;

    bed_open(&d, pages, 1, SEQS_MAX, 64);
    d.asks_n = 4;
    for (uint32_t i = 0; i < 4; i++) {
        struct ask *a = &d.asks[i];
        *a = (struct ask){.text_n = 11, .max_new = max_new};
        for (uint32_t k = 0; k < a->text_n; k++) a->text[k] = k;
        bed_order(&d, a);
        bed_features(&d, a);
        for (uint32_t k = 0; k < (i < 3 ? apart : 20); k++) {
            bed_begin(&d);
            computed += d.rec.rows_n;
            wn_step_record_clear(&d.rec);
            bed_land(&d);
        }
    }
    for (uint32_t i = 0; i < 4; i++) assert_true(d.asks[i].ended);
    assert_int_equal(bed_copies - before, copies_n);
    assert_int_equal(computed, 11 + 3 * (apart ? 1 : 3) + 4 * (max_new - 1));
    bed_close(&d);
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
    bed_open(&d, 40, 1, SEQS_MAX, 64);
    d.asks_n = 3;
    for (uint32_t i = 0; i < 3; i++) {
        struct ask *a = &d.asks[i];
        *a = (struct ask){.text_n = i < 2 ? 11 : 12, .max_new = 1}; /* the third goes on where they end */
        for (uint32_t k = 0; k < a->text_n; k++) a->text[k] = k;
        bed_order(&d, a);
        bed_features(&d, a);
        bed_begin(&d);
        assert_int_equal(d.rec.rows_n, i == 0 ? 11 : i == 1 ? 1 : 4);
        assert_int_equal(d.rec.copies_n, i == 1);
        bed_land(&d);
        assert_true(a->ended);
    }
    bed_close(&d);
}

/* A page is found by all that is before it, too: of a prompt whose first page is one prompt's and whose second page is
 * another's, the first is found and the second is not. Features that differ in the same place are no hit, either. */
static void found_by_what_is_before(bool images)
{
    static const uint32_t first[] = {1, 2, 1}, second[] = {10, 20, 20}, rows[] = {2 * PAGE + 1, 2 * PAGE + 1, PAGE + 1};
    struct bed d;

    bed_open(&d, 40, 1, SEQS_MAX, 64);
    d.asks_n = 3;
    for (uint32_t i = 0; i < 3; i++) {
        struct ask *a = &d.asks[i];
        *a = (struct ask){.max_new = 1};
        for (uint32_t k = 0; k < PAGE && !images; k++) a->text[a->text_n++] = first[i];
        if (images) {
            a->text[a->text_n++] = IMAGE;
            for (uint32_t k = 0; k < PAGE; k++) a->image[k] = first[i];
            a->image_n = 1;
            a->image_rows = PAGE;
        }
        for (uint32_t k = 0; k < PAGE; k++) a->text[a->text_n++] = second[i];
        a->text[a->text_n++] = 5;
        bed_order(&d, a);
        bed_features(&d, a);
        bed_begin(&d);
        assert_int_equal(d.rec.rows_n, rows[i]);
        assert_int_equal(d.rec.copies_n, 0);
        bed_land(&d);
        assert_true(a->ended);
    }
    bed_close(&d);
}

static void test_page_is_found_by_what_is_before(void **state)
{
    (void)state;
    found_by_what_is_before(false);
    found_by_what_is_before(true);
}

/* One that must compute every row itself (a repetition penalty: it needs its prompt's ids) neither finds nor copies. */
static void uncached(uint32_t rows)
{
    struct bed d;
    bed_open(&d, 40, 1, SEQS_MAX, 64);
    d.asks_n = 2;
    for (uint32_t i = 0; i < 2; i++) {
        struct ask *a = &d.asks[i];
        *a = (struct ask){.text_n = rows, .max_new = 1};
        for (uint32_t k = 0; k < a->text_n; k++) a->text[k] = k;
        bed_order(&d, a);
        a->job->uncached = i == 1;
        bed_features(&d, a);
        bed_begin(&d);
        assert_int_equal(d.rec.rows_n, rows);
        assert_int_equal(d.rec.copies_n, 0);
        bed_land(&d);
        assert_true(a->ended);
    }
    bed_close(&d);
}

static void test_uncached_computes_all_rows(void **state)
{
    (void)state;
    uncached(11); /* whole pages are there ... */
    uncached(3);  /* ... or a page to copy */
}

/* What ranks are told of a job's sampling: that of the request, and the defaults of what it does not say. */
static void test_opens_say_how_to_sample(void **state)
{
    struct bed d;
    (void)state;
    bed_open(&d, 40, 1, SEQS_MAX, 64);
    d.asks_n = 3;
    for (uint32_t i = 0; i < 3; i++) {
        struct ask *a = &d.asks[i];
        *a = (struct ask){.text = {10 * i + 1, 2}, .text_n = 2, .max_new = 1};
        bed_order(&d, a);
        a->s.top_logprobs = 3;
        a->s.logprobs = i == 1;
        if (i == 1) {
            a->s.temperature = 0.5f;
            a->s.top_k = 7;
            a->s.top_p = 0.25f;
            a->s.repetition_penalty = 1.5f;
        }
        if (i == 2) a->g.sampling = NULL;
        bed_features(&d, a);
    }
    bed_begin(&d);
    assert_int_equal(d.rec.opens_n, 3);
    for (uint32_t i = 0; i < 3; i++) {
        const struct wn_step_open *o = &d.rec.opens[i];
        assert_int_equal(o->logprobs, i == 1 ? 4 : 0);
        assert_int_equal(o->top_k, i == 1 ? 7 : 0);
        assert_true(o->temperature == (i == 1 ? 0.5f : 0) && o->top_p == (i == 1 ? 0.25f : 1));
        assert_true(o->repetition_penalty == (i == 1 ? 1.5f : 1));
    }
    bed_land(&d);
    bed_close(&d);
}

/* Features go as soon as a step that reads their last row has begun. */
static void test_read_features_make_room(void **state)
{
    struct wn_batcher_load load;
    struct bed d;
    (void)state;
    bed_open(&d, 40, 1, SEQS_MAX, 10);
    d.asks_n = 1;
    d.asks[0] = (struct ask){.text = {1, 2, IMAGE, 3}, .text_n = 4, .image_n = 1, .image_rows = 8, .max_new = 1};
    bed_order(&d, &d.asks[0]);
    bed_features(&d, &d.asks[0]);
    bed_begin(&d); /* ten of eleven rows: the last one of the image is the last one of them */
    assert_int_equal(d.rec.rows_n, 10);
    wn_batcher_load(d.b, &load);
    assert_int_equal(load.feature_slots_used, 0);
    bed_land(&d);
    bed_begin(&d);
    assert_int_equal(d.rec.drops_n, 1);
    bed_land(&d);
    assert_true(d.asks[0].ended);
    bed_close(&d);
}

/* ---- chunks for stages ---- */

/* Every stage has a step to work on: sequences are dealt over the steps in flight. */
static void test_decodes_are_dealt(void **state)
{
    struct bed d;
    (void)state;
    bed_open(&d, 40, 2, SEQS_MAX, 64);
    d.asks_n = 4;
    for (uint32_t i = 0; i < 4; i++) {
        struct ask *a = &d.asks[i];
        *a = (struct ask){.text = {10 * i + 1, 2, 3}, .text_n = 3, .max_new = 5};
        bed_order(&d, a);
        bed_features(&d, a);
    }
    bed_begin(&d);
    assert_int_equal(d.rec.seqs_n, 4);
    bed_land(&d);
    for (int k = 0; k < 2; k++) {
        bed_begin(&d);
        assert_int_equal(d.rec.seqs_n, 2);
    }
    for (int k = 0; k < 20; k++) {
        bed_land(&d);
        bed_begin(&d);
    }
    bed_close(&d);
}

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
    bed_open(&d, 40, 3, SEQS_MAX, 64);
    d.asks_n = 3;
    for (uint32_t i = 0; i < 3; i++) {
        struct ask *a = &d.asks[i];
        *a = (struct ask){.text_n = 30, .max_new = 3};
        for (uint32_t k = 0; k < a->text_n; k++) a->text[k] = 100 * i + k;
    }
    bed_order(&d, &d.asks[0]);
    bed_features(&d, &d.asks[0]);
    for (uint32_t i = 0; i < 3; i++) { /* 30 rows in 7 chunks of at least 4 */
        bed_begin(&d);
        assert_int_equal(d.rec.rows_n, 5);
    }
    bed_land(&d);
    bed_order(&d, &d.asks[1]);
    bed_features(&d, &d.asks[1]);
    bed_begin(&d); /* the rest of it, and the other */
    assert_int_equal(d.rec.rows_n, 15 + 30);
    for (int k = 0; k < 20; k++) {
        bed_land(&d);
        bed_begin(&d);
    }
    assert_true(d.asks[0].ended && d.asks[1].ended);
    bed_order(&d, &d.asks[2]); /* alone again: after those that have ended */
    bed_features(&d, &d.asks[2]);
    bed_begin(&d);
    assert_int_equal(d.rec.rows_n, 5);
    for (int k = 0; k < 20; k++) {
        bed_land(&d);
        bed_begin(&d);
    }
    assert_true(d.asks[2].ended);
    bed_close(&d);
}

static void test_too_large_is_refused(void **state)
{
    struct bed d;
    (void)state;
    bed_open(&d, 5, 1, 2, 8);
    d.asks_n = 1;
    d.asks[0] = (struct ask){.text_n = 10, .max_new = 11};
    bed_order(&d, &d.asks[0]);
    bed_features(&d, &d.asks[0]);
    assert_true(d.asks[0].ended);
    bed_close(&d);
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
        cmocka_unit_test(test_page_is_found_by_what_is_before),
        cmocka_unit_test(test_repeated_prompt_copies_its_last_page),
        cmocka_unit_test(test_repeated_prompt_computes_one_row),
        cmocka_unit_test(test_uncached_computes_all_rows),
        cmocka_unit_test(test_opens_say_how_to_sample),
        cmocka_unit_test(test_read_features_make_room),
        cmocka_unit_test(test_decodes_are_dealt),
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
