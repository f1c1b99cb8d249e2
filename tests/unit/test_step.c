/* tests/unit/test_step.c - proto/step: what is encoded comes back, and whatever breaks a limit is refused by name.
 * With a folder as argument it writes the corpus of fuzz_step there instead. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/dtype.h"
#include "proto/step.h"
#include "tests/step_limits.h"

/* Two sequences: a prompt chunk with image rows, and a decode. */
static void fill(struct wn_step_record *r)
{
    wn_step_record_clear(r);
    r->step = 0x123456789abcull;
    r->flags = WN_STEP_STATS;
    r->opens[r->opens_n++] = (struct wn_step_open){.slot = 1,
                                                   .temperature = 0.7f,
                                                   .top_k = 40,
                                                   .top_p = 0.9f,
                                                   .repetition_penalty = 1.1f,
                                                   .logprobs = 6,
                                                   .seed = ~0ull};
    r->closes[r->closes_n++] = 3;
    r->features[r->features_n++] =
        (struct wn_step_features){.slot = 2, .rows = 5, .width = 8, .dtype = WN_BF16};
    r->drops[r->drops_n++] = 0;
    for (uint32_t i = 0; i < 6; i++)
        r->rows[r->rows_n++] =
            i < 5 ? (struct wn_step_row){i, 2, 900 - i} : (struct wn_step_row){99, WN_STEP_NO_FEATURES, 999};
    r->rows[r->rows_n++] = (struct wn_step_row){7, WN_STEP_NO_FEATURES, 8};
    r->seqs[r->seqs_n++] = (struct wn_step_seq){.slot = 1, .rows = 6, .pages = 2, .sample = 1};
    r->seqs[r->seqs_n++] = (struct wn_step_seq){
        .slot = 0, .first_row = 6, .rows = 1, .pos = 8, .first_page = 2, .pages = 3};
    for (uint32_t i = 0; i < 5; i++) r->pages[r->pages_n++] = 63 - i;
    r->copies[r->copies_n++] = (struct wn_step_copy){.from = 17, .to = 61};
    r->copies[r->copies_n++] = (struct wn_step_copy){.from = 0, .to = 63};
}

struct fixture {
    struct wn_step_record r, back;
    uint8_t *wire;
    size_t n;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    assert_int_equal(wn_step_record_init(&f->r, &step_limits, NULL), WN_OK);
    assert_int_equal(wn_step_record_init(&f->back, &step_limits, NULL), WN_OK);
    f->wire = malloc(wn_step_bytes_max(&step_limits));
    fill(&f->r);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    wn_step_record_fini(&f->r);
    wn_step_record_fini(&f->back);
    free(f->wire);
    free(f);
    return 0;
}

static void test_round_trip(void **state)
{
    struct fixture *f = *state;
    f->n = wn_step_encode(&f->r, f->wire);
    assert_true(f->n <= wn_step_bytes_max(&step_limits));
    assert_int_equal(wn_step_decode(&f->back, &step_limits, f->wire, f->n, NULL), WN_OK);
    assert_int_equal(f->back.step, f->r.step);
    assert_int_equal(f->back.flags, f->r.flags);
    assert_memory_equal(f->back.opens, f->r.opens, sizeof(*f->r.opens));
    assert_memory_equal(f->back.closes, f->r.closes, sizeof(*f->r.closes));
    assert_memory_equal(f->back.features, f->r.features, sizeof(*f->r.features));
    assert_memory_equal(f->back.drops, f->r.drops, sizeof(*f->r.drops));
    assert_memory_equal(f->back.seqs, f->r.seqs, 2 * sizeof(*f->r.seqs));
    assert_memory_equal(f->back.rows, f->r.rows, 7 * sizeof(*f->r.rows));
    assert_memory_equal(f->back.pages, f->r.pages, 5 * sizeof(*f->r.pages));
    assert_int_equal(f->back.copies_n, 2);
    assert_memory_equal(f->back.copies, f->r.copies, 2 * sizeof(*f->r.copies));
}

static void test_empty(void **state)
{
    struct fixture *f = *state;
    wn_step_record_clear(&f->r);
    f->r.flags = WN_STEP_STOP;
    f->n = wn_step_encode(&f->r, f->wire);
    assert_int_equal(f->n, 64);
    assert_int_equal(wn_step_decode(&f->back, &step_limits, f->wire, f->n, NULL), WN_OK);
    assert_int_equal(f->back.flags, WN_STEP_STOP);
}

static void test_every_length_but_one_is_refused(void **state)
{
    struct fixture *f = *state;
    f->n = wn_step_encode(&f->r, f->wire);
    for (size_t n = 0; n < f->n; n++) {
        uint8_t *cut = malloc(n ? n : 1); /* exact, for the sanitizer */
        memcpy(cut, f->wire, n);
        assert_int_equal(wn_step_decode(&f->back, &step_limits, cut, n, NULL), WN_EPROTO);
        assert_int_equal(f->back.rows_n, 0);
        free(cut);
    }
}

static void refuse(struct fixture *f, const char *word)
{
    struct wn_err err = {0};
    f->n = wn_step_encode(&f->r, f->wire);
    assert_int_equal(wn_step_decode(&f->back, &step_limits, f->wire, f->n, &err), WN_EPROTO);
    if (!strstr(err.text, word)) fail_msg("'%s' is not in: %s", word, err.text);
    fill(&f->r);
}

static void test_what_is_refused(void **state)
{
    struct fixture *f = *state;
    f->r.flags = 64, refuse(f, "flags");
    f->r.opens[0].slot = 4, refuse(f, "opening");
    f->r.opens[0].temperature = -1, refuse(f, "opening");
    f->r.opens[0].logprobs = WN_STEP_TOP_MAX + 2, refuse(f, "opening");
    f->r.closes[0] = 4, refuse(f, "closing");
    f->r.features[0].slot = 3, refuse(f, "features");
    f->r.features[0].dtype = 9, refuse(f, "features");
    f->r.features[0].projected = 2, refuse(f, "features");
    f->r.drops[0] = 3, refuse(f, "dropping");
    f->r.rows[6].id = 100, refuse(f, "row 6");
    f->r.rows[0].features = 3, refuse(f, "row 0");
    f->r.rows[5].position = 1000, refuse(f, "position 1000 of row 5");
    f->r.pages[4] = 64, refuse(f, "page 64");
    f->r.copies[0].from = 64, refuse(f, "copy of page 64 to 61");
    f->r.copies[1].to = 64, refuse(f, "copy of page 0 to 64");
    f->r.copies[1].to = 0, refuse(f, "copy of page 0 to 0");
    f->r.seqs[0].slot = 4, refuse(f, "slot 4");
    f->r.seqs[1].first_row = 5, refuse(f, "rows of sequence 1");
    f->r.seqs[1].rows = 2, refuse(f, "rows of sequence 1");
    f->r.seqs[1].rows = 0, refuse(f, "rows of sequence 1");
    f->r.seqs[0].pages = 1, refuse(f, "pages of sequence 0");
    f->r.seqs[1].pos = UINT32_MAX, refuse(f, "pages of sequence 1");
    f->r.seqs[1].first_page = 3, refuse(f, "pages of sequence 1");
    f->r.seqs[0].sample = 2, refuse(f, "sample");
    f->r.seqs_n = 1, refuse(f, "no sequence has");
}

/* Numbers in the header that are over the limits, in their order there. */
static void test_counts_over_limits(void **state)
{
    const struct {
        uint32_t max;
        const char *words;
    } counts[] = {
        {step_limits.seqs_max, "more than 4 sequences"},    {step_limits.seqs_max, "more than 4 sequences"},
        {step_limits.features_max, "more than 3 features"}, {step_limits.features_max, "more than 3 features"},
        {step_limits.seqs_max, "more than 4 sequences"},    {step_limits.rows_max, "more than 32 rows"},
        {step_limits.table_max, "more than 64 pages"},      {step_limits.seqs_max, "more than 4 copies"},
    };
    struct fixture *f = *state;

    for (size_t i = 0; i < 8; i++) {
        uint8_t *at = f->wire + 20 + 4 * i;
        struct wn_err err = {0};
        f->n = wn_step_encode(&f->r, f->wire);
        at[0] = (uint8_t)(counts[i].max + 1);
        assert_int_equal(wn_step_decode(&f->back, &step_limits, f->wire, f->n, &err), WN_EPROTO);
        assert_non_null(strstr(err.text, counts[i].words));
        at[0] = (uint8_t)counts[i].max; /* is allowed, and gives another length */
        assert_int_equal(wn_step_decode(&f->back, &step_limits, f->wire, f->n, &err), WN_EPROTO);
        assert_null(strstr(err.text, "more than"));
        at[3] = 0xff;
        assert_int_equal(wn_step_decode(&f->back, &step_limits, f->wire, f->n, &err), WN_EPROTO);
        assert_non_null(strstr(err.text, counts[i].words));
    }
    f->r.features[0].projected = 1;
    f->n = wn_step_encode(&f->r, f->wire);
    assert_int_equal(wn_step_decode(&f->back, &step_limits, f->wire, f->n, NULL), WN_OK);
    assert_int_equal(f->back.features[0].projected, 1);
}

static void test_magic_and_version(void **state)
{
    struct fixture *f = *state;
    f->n = wn_step_encode(&f->r, f->wire);
    f->wire[4]++;
    assert_int_equal(wn_step_decode(&f->back, &step_limits, f->wire, f->n, NULL), WN_EPROTO);
    f->wire[4]--;
    f->wire[0]++;
    assert_int_equal(wn_step_decode(&f->back, &step_limits, f->wire, f->n, NULL), WN_EPROTO);
}

static int write_corpus(const char *dir)
{
    struct fixture *f;
    char path[512];
    setup((void **)&f);
    for (int i = 0; i < 12; i++) {
        FILE *out;
        fill(&f->r);
        if (i == 1) wn_step_record_clear(&f->r);
        if (i == 2) f->r.pages[0] = 1u << 31;
        if (i == 3) f->r.seqs[1].pos = UINT32_MAX;
        if (i == 4) f->r.seqs[0].rows = UINT32_MAX;
        if (i == 5) f->r.rows[2].features = 77;
        f->n = wn_step_encode(&f->r, f->wire);
        if (i == 6) f->n /= 2;
        if (i == 7) f->wire[25] = 0xff; /* counts */
        if (i == 8) memset(f->wire + 20, 0xff, 28);
        if (i == 9) f->n = 64;
        if (i == 10) f->n = 3;
        if (i == 11) memset(f->wire + 64, 0xff, f->n - 64);
        snprintf(path, sizeof(path), "%s/step-%02d", dir, i);
        out = fopen(path, "wb");
        if (!out || fwrite(f->wire, 1, f->n, out) != f->n) return 1;
        fclose(out);
    }
    teardown((void **)&f);
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_round_trip, setup, teardown),
        cmocka_unit_test_setup_teardown(test_empty, setup, teardown),
        cmocka_unit_test_setup_teardown(test_every_length_but_one_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_what_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_counts_over_limits, setup, teardown),
        cmocka_unit_test_setup_teardown(test_magic_and_version, setup, teardown),
    };
    if (argc > 1) return write_corpus(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
