/* tests/unit/batcher_bed.h - daemon/batcher with a replica of paper: its KV memory holds the rows themselves, and a
 * token is a hash of all that the block table leads to. So a page that is lent too early, a wrong prefix hit or a row
 * that is missing after a preemption changes a token, and each job must get the tokens that it gets alone. Everything
 * here fails the test when something is wrong. */
#ifndef WN_TESTS_BATCHER_BED_H
#define WN_TESTS_BATCHER_BED_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "daemon/batcher.h"

enum { PAGE = 4, VOCAB = 1000, IMAGE = 999, PAGES_MAX = 64, SEQS_MAX = 4, FEATURES_MAX = 4, JOBS_MAX = 12 };

/* What a job is, and what its answer must be. */
struct ask {
    Wn__Generate g;
    Wn__Sampling s;
    struct wn_gen_job *job;
    uint32_t text[32], text_n; /* IMAGE is an image */
    uint32_t image[64], image_n, image_rows; /* its features, one number a row */
    uint32_t expected[64], got[64], got_n, max_new;
    bool ended;
};

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

extern uint64_t bed_copies; /* of pages, in all runs */

uint32_t pick(uint64_t *rng, uint32_t n);
void bed_open(struct bed *d, uint32_t pages, uint32_t depth, uint32_t seqs, uint32_t rows);
/* Nobody is there any more: every account is zero, and the replica holds nothing. */
void bed_close(struct bed *d);

/* The job's tokens, from its text, images, seed and max_new, into a->expected. */
void ask_expect(struct ask *a);

/* What may happen. */
void bed_order(struct bed *d, struct ask *a);    /* it comes; its features come later */
void bed_features(struct bed *d, struct ask *a); /* of all its images, if it waits for them */
void bed_cancel(struct bed *d, struct ask *a);
void bed_begin(struct bed *d); /* the next step leaves, if there is room for one */
void bed_land(struct bed *d);  /* the oldest step is over */

/* What is lent is what jobs that have not ended hold, and nothing else: at any moment, so also right after a cancel. */
void bed_check_accounts(const struct bed *d);

#endif
