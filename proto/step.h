/* proto/step.h - the record that the leader broadcasts before each step: what every rank must do next.
 *
 * On the wire: a header of 64 bytes, then the arrays one after the other, all little-endian, version in the
 * header; the header's counts give the length, which must be exact. A record is decoded under limits: every
 * count, slot, row, page and range is checked before the engine looks at it. Owns: a record owns its arrays,
 * sized once by init for the limits; encoding and decoding allocate nothing. */
#ifndef WN_PROTO_STEP_H
#define WN_PROTO_STEP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

#define WN_STEP_NO_FEATURES UINT32_MAX

/* What a replica was opened with; the same on every rank. */
struct wn_step_limits {
    uint32_t rows_max;     /* --max-num-batched-tokens */
    uint32_t seqs_max;     /* --max-num-seqs: slots 0 .. seqs_max - 1 */
    uint32_t pages_max;    /* pages of the KV pool: numbers 0 .. pages_max - 1 */
    uint32_t table_max;    /* entries of all block tables of a record together: a page may be in several */
    uint32_t features_max; /* feature slots */
    uint32_t page_tokens;
    uint32_t vocab;        /* token ids are below */
    uint32_t positions_max; /* rotary positions are below */
};

enum wn_step_flags {
    WN_STEP_STOP = 1,  /* leave after this record */
    WN_STEP_STATS = 2, /* every rank sends its traffic table and load to the leader after this record */
    WN_STEP_FRESH = 4, /* there was nothing to run before: that others waited for this record is no one's loss */
};

/* A sequence starts in a slot. How its tokens are drawn. */
struct wn_step_open {
    uint32_t slot;
    float temperature; /* 0: greedy */
    uint32_t top_k;
    float top_p, repetition_penalty;
    uint32_t logprobs; /* 0: none; else 1 + how many of the likeliest tokens are wanted beside the drawn one */
    uint64_t seed;
};

/* Features that follow this record as one broadcast inside stage 0. */
struct wn_step_features {
    uint32_t slot, rows, width, dtype;
    uint32_t projected; /* 1: at the decoder's width already */
};

/* A page becomes the same as another, on every rank: one after the other, before a row of this step is written. */
struct wn_step_copy {
    uint32_t from, to;
};

/* Rows of one sequence in this step. */
struct wn_step_seq {
    uint32_t slot;
    uint32_t first_row, rows;
    uint32_t pos;               /* tokens already in its pages */
    uint32_t first_page, pages; /* its block table: pages[first_page ..] of the record */
    uint32_t sample;            /* 1: the last row's logits are wanted, and one token drawn from them */
};

/* One input row: a token id, or row `id` of the features in slot `features`. Its place in the pages is its place in the
 * sequence, and it sees the rows before it there; the rotary position is another matter: a request may want pruned
 * image rows to keep the positions that they had, in whatever order they come. */
struct wn_step_row {
    uint32_t id;
    uint32_t features; /* WN_STEP_NO_FEATURES: a token */
    uint32_t position; /* rotary */
};

struct wn_step_record {
    uint64_t step;
    uint32_t flags;
    uint32_t opens_n, closes_n, features_n, drops_n, seqs_n, rows_n, pages_n, copies_n;
    struct wn_step_open *opens;         /* [seqs_max] */
    uint32_t *closes;                   /* [seqs_max] slots that end */
    struct wn_step_features *features;  /* [features_max] */
    uint32_t *drops;                    /* [features_max] feature slots that are free again */
    struct wn_step_seq *seqs;           /* [seqs_max] */
    struct wn_step_row *rows;           /* [rows_max] */
    uint32_t *pages;                    /* [table_max] */
    struct wn_step_copy *copies;        /* [seqs_max] */
};

/* One drawn token, last stage to leader: seqs[seq] of the record got it. */
struct wn_step_token {
    uint32_t seq, id;
    float logprob;
};

/* One of the likeliest tokens at the place of a drawn one. */
struct wn_step_top {
    uint32_t id;
    float logprob;
};
#define WN_STEP_TOP_MAX 20

/* Allocates the arrays for the limits. Pair: fini. After a failure the record is empty and safe for fini. */
WN_NODISCARD wn_status wn_step_record_init(struct wn_step_record *r, const struct wn_step_limits *limits,
                                           struct wn_err *err);
void wn_step_record_fini(struct wn_step_record *r);
void wn_step_record_clear(struct wn_step_record *r); /* all counts 0 */

/* The longest encoding under the limits, in bytes. */
size_t wn_step_bytes_max(const struct wn_step_limits *limits);

/* Writes the record into out[wn_step_bytes_max()]; returns its length. */
size_t wn_step_encode(const struct wn_step_record *r, uint8_t *out);

/* Reads and checks; the record's arrays must have been made for the same limits. WN_EPROTO names what is wrong. */
WN_NODISCARD wn_status wn_step_decode(struct wn_step_record *r, const struct wn_step_limits *limits,
                                      const uint8_t *data, size_t bytes, struct wn_err *err);

#endif
