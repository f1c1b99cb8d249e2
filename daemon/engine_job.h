/* daemon/engine_job.h - a job at the leader: its prompt as rows, its features, its pages, its answer so far.
 *
 * Owns:    everything it points at, from create to destroy, features too: whoever has to compute rows again needs
 *          them again. The scheduler gives a leader --max-num-seqs jobs at a time, which bounds them. KV pages, slot
 *          and feature slots are the batcher's (daemon/batcher.h).
 * Threads: engine only. */
#ifndef WN_DAEMON_ENGINE_JOB_H
#define WN_DAEMON_ENGINE_JOB_H

#include "daemon/answer.h"
#include "daemon/front.h"
#include "daemon/gen_life.h"
#include "daemon/prefix_cache.h"
#include "proto/step.h"
#include "shard/plan.h"
#include "shard/tokenizer.h"

/* One image's features at the leader. */
struct wn_gen_image {
    struct wn_front_msg *msg; /* header and payload, until the job ends; NULL: not here yet */
    uint32_t rows, rows_before, width;
    wn_dtype dtype;
    bool projected;     /* at the decoder's width already */
    uint32_t slot;      /* feature slot in the replica, while the prompt is being read */
    uint32_t last_row;  /* prompt row after which the slot is free */
    bool accepted;      /* its worker has its credit back */
    bool held;          /* is in `slot` */
    uint32_t handed;    /* how often it was put into a slot */
    uint8_t hash[32];   /* of the features' SHA-256, and of the pruning that is in force */
};

struct wn_gen_job {
    struct wn_gen_job *next;
    struct wn_front_msg *order; /* the Generate */
    const Wn__Generate *g;      /* inside order */
    struct wn_gen_life life;
    struct wn_tokens tokens; /* prompt ids, one placeholder an image */
    struct wn_gen_image images[WN_IMAGES_MAX];
    uint32_t images_n;
    uint32_t image_rows, image_rows_before, cache_hits;
    bool original; /* image rows keep the rotary positions that they had unpruned */
    int32_t ahead; /* rotary position less row number, of all rows after the last image */
    /* [rows_n] prompt and emitted tokens; `features` is the image's number in the job */
    struct wn_step_row *rows; /* room for the longest answer, as in pages and keys */
    uint32_t rows_n, prompt_rows_n;
    uint32_t pos; /* rows in the KV cache */
    uint32_t chunk; /* rows of a step while no other job needs the stages */
    uint32_t passed; /* steps in a row that it could have been in */
    uint32_t slot, *pages, pages_n;
    struct wn_prefix_key *keys; /* [keys_n] of its first full pages */
    uint32_t keys_n, published; /* pages of them that others can find */
    bool head_published;        /* they can find the rows of the prompt's last page too */
    uint32_t cached_rows;       /* rows that were found in the cache at first */
    bool uncached;              /* computes every row itself */
    uint32_t computed_rows;     /* rows that went into steps; more than there are after a preemption */
    uint32_t preemptions;
    uint32_t max_new, new_n; /* of the whole answer, emitted ones included */
    struct wn_answer *answer;
    bool stopped; /* an earlier attempt gave the last token, and its end was not heard */
    int64_t arrived_us, features_us, started_us, first_token_us;
    uint64_t sent_us, preprocess_us, encode_us, prune_us; /* of the slowest image */
};

struct wn_gen_limits {
    const struct wn_model *model;
    const struct wn_tokenizer *tokenizer;
    const char *model_id; /* of the checkpoint, see daemon/worker.h */
    uint32_t page_tokens;
    uint32_t tokens_max;  /* rows of prompt and answer together */
    uint32_t max_new;     /* when the job names no number */
    bool no_prefix_caching;
    uint32_t images_max;
};

/* Makes a job of a Generate message: checks it and tokenizes the prompt. Success: *out is the caller's and owns
 * `order`. Failure (WN_EINVAL, WN_ELIMIT, ...: answer it): `order` is still the caller's. */
WN_NODISCARD wn_status wn_gen_job_create(struct wn_gen_job **out, struct wn_front_msg *order,
                                         const struct wn_gen_limits *limits, struct wn_err *err);
/* Whether the answer ends with this token: one of the job's own stop tokens, or an end-of-sequence token that it does
 * not ignore. */
bool wn_gen_is_end(const Wn__Generate *g, const struct wn_model *model, uint32_t id);

void wn_gen_job_destroy(struct wn_gen_job *job); /* NULL is fine */

/* Checks features against the model and keeps them (takes msg). WN_EPROTO: msg is still the caller's. */
WN_NODISCARD wn_status wn_gen_job_features(struct wn_gen_job *job, struct wn_front_msg *msg,
                                           const struct wn_gen_limits *limits, struct wn_err *err);

bool wn_gen_job_has(const struct wn_gen_job *job, uint32_t image); /* are its features here, or done with? */
bool wn_gen_job_complete(const struct wn_gen_job *job); /* are all features here? */

/* Lays the rows out from the real row counts, and gives each its rotary position: its number, or, under the policy
 * `original`, for an image row the first position of its image and then wn_prune_position(), and for text what it would
 * have if nothing were pruned. WN_ELIMIT: the prompt is too long. State becomes READY. */
WN_NODISCARD wn_status wn_gen_job_layout(struct wn_gen_job *job, const struct wn_gen_limits *limits,
                                         struct wn_err *err);

/* The token that was drawn after the last row: the next row. */
void wn_gen_job_push(struct wn_gen_job *job, uint32_t id);

/* Makes sure that keys[0..n) are there; rows [0, n * page_tokens) must be. */
void wn_gen_job_keys(struct wn_gen_job *job, uint32_t page_tokens, uint32_t n);

/* The rows of the prompt's last page but the very last row, which every job computes for its logits: who has the same
 * prompt can go on from a copy of them. */
struct wn_gen_head {
    uint32_t page, rows; /* place in the job's pages; 0 rows: the prompt's last row is the first of its page */
    struct wn_prefix_key key;
};
void wn_gen_job_head(struct wn_gen_job *job, uint32_t page_tokens, struct wn_gen_head *out);

/* Usage so far, as far as the leader knows it. `bytes` is filled from the plan. Strings and messages are the
 * job's. */
void wn_gen_job_usage(const struct wn_gen_job *job, const struct wn_plan *plan, uint32_t chunk, Wn__Usage *usage,
                      Wn__LinkBytes *bytes);

#endif
