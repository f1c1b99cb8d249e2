/* shard/sample.h - picks the next token from a row of logits.
 *
 * The order is that of Transformers' processors: repetition penalty, temperature, top-k, top-p; then one draw. Among
 * equal logits the lowest id counts as the larger, everywhere: in greedy picks, at the edge of top-k and of top-p.
 *
 * The draw is a pure function of (seed, position): word 0 and 1 of Philox4x32-10 with the seed as key and the position
 * as counter make a uniform number of 53 bits. So a job that is replayed from the tokens it has already emitted goes
 * on with the same text, whatever ran beside it. `position` is the index of the new token in its sequence (prompt rows
 * and emitted tokens before it).
 *
 * Owns:    scratch for one row, from create to destroy; pick allocates nothing.
 * Threads: one at a time for each sampler.
 * Fails:   WN_EINVAL (options out of range, a logit that is NaN or infinite, a context id past the vocabulary). */
#ifndef WN_SHARD_SAMPLE_H
#define WN_SHARD_SAMPLE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

struct wn_sample_opts {
    float temperature; /* 0: greedy, top_k, top_p and seed are not used */
    uint32_t top_k;    /* 0: off */
    float top_p;       /* (0, 1]; 1: off */
    float repetition_penalty; /* > 0; 1: off. Over the ids of `context`: prompt and emitted tokens */
    uint64_t seed;
};

#define WN_SAMPLE_GREEDY ((struct wn_sample_opts){.top_p = 1.0f, .repetition_penalty = 1.0f})

struct wn_sampled {
    uint32_t token;
    float logprob; /* log-softmax of the logits as they came, before any processor; only if asked for, else 0 */
};

struct wn_sampler; /* opaque */

/* Creates a sampler for rows of `vocab` logits. *out is owned by the caller; on failure it is untouched. */
WN_NODISCARD wn_status wn_sampler_create(struct wn_sampler **out, uint32_t vocab,
                                         struct wn_err *err);
void wn_sampler_destroy(struct wn_sampler *s); /* NULL is fine */

/* Is every option in its range? For the door: what passes here does not fail in pick. */
WN_NODISCARD wn_status wn_sample_opts_check(const struct wn_sample_opts *opts, struct wn_err *err);

/* Picks from logits [vocab] (borrowed, not changed). context [context_n] may be NULL when the penalty is off. */
WN_NODISCARD wn_status wn_sampler_pick(struct wn_sampler *s, const struct wn_sample_opts *opts,
                                       const float *logits, const uint32_t *context,
                                       uint32_t context_n, uint64_t position, bool logprob,
                                       struct wn_sampled *out, struct wn_err *err);

/* Log-softmax of raw logits [vocab], summed in double: *chosen of one token, and the n likeliest in falling order (n is
 * cut to the vocabulary; returns it). */
uint32_t wn_sampler_logprobs(const struct wn_sampler *s, const float *logits, uint32_t token, float *chosen,
                             struct wn_sampled *top, uint32_t n);

#endif
