/* tests/integration/golden_rank.h - one rank of one plan, checked against Transformers and against one rank alone; see
 * test_golden.c. Owns: what open_all opens, until close_all. A check that fails says so in `failure`. */
#ifndef WN_TESTS_GOLDEN_RANK_H
#define WN_TESTS_GOLDEN_RANK_H

#include "shard/decoder.h"
#include "shard/kvpool.h"
#include "tests/integration/golden.h"
#include "transport/nccl.h"

#define TOLERANCE   1e-4
#define NEAR        0.05 /* bfloat16 against float32: 8 bits of mantissa, rounded after each operation */
#define PAGE_TOKENS 5    /* divides nothing here */
#define PAGES       64
#define ROWS_MAX    96
#define PATIENCE_US 60000000

/* One rank's view of one plan. */
struct rank {
    const struct golden *g;
    const char *backend;
    struct wn_link *link;
    uint32_t me, device; /* device: of a GPU backend */
    bool nccl;
    bool quick; /* whole prompts, bytes, and one prompt in chunks only */
    struct wn_plan plan;
    struct wn_backend *be;
    struct wn_weights *w;
    struct wn_stage *stage, *alone; /* alone: the whole decoder, on the rank that gets the logits */
    struct wn_kvpool *pool;         /* deals pages in the same order on every rank */
    bool root;
    float *whole[GOLDEN_PROMPTS_MAX]; /* root: logits of prompt i in one step, [rows, vocab] */
    float *got;                       /* root: [ROWS_MAX, vocab] */
    double error;                     /* largest */
    char failure[512];
};

/* Rows [from, from + n) of a prompt and of the greedy tokens that follow it. */
struct piece {
    uint32_t prompt, from, n;
    const uint32_t *pages;
};

struct filled {
    struct wn_step step;
    uint32_t token[ROWS_MAX], slot[ROWS_MAX], position[ROWS_MAX], wanted[ROWS_MAX];
    struct wn_seq seqs[GOLDEN_PROMPTS_MAX];
};

bool failed(struct rank *r, const char *fmt, ...) WN_PRINTF(2, 3); /* false */

/* Fills a step with pieces; all rows are wanted, or only the last of each piece. */
void fill(const struct golden *g, struct filled *f, const struct piece *p, uint32_t n, bool all);
bool run(struct rank *r, struct wn_stage *stage, const struct piece *p, uint32_t n, bool all, float *logits);

/* Images [first, first + n) into the slots of their numbers, as vision features or projected. */
bool share_images(struct rank *r, uint32_t first, uint32_t n, bool projected);

bool open_all(struct rank *r);
void close_all(struct rank *r);

/* All checks of one rank. The stage is closed by the caller, after the link if this failed. */
bool check_rank(struct rank *r);

#endif
