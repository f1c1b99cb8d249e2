/* shard/decoder.h - one rank's part of the Llama decoder: the layers of its stage, cut over the tensor ranks, with the
 * projector and the embedding on stage 0, the head on the last stage, and the rank's KV memory.
 *
 * All ranks of a replica call wn_stage_run with the same step, in the same order. What crosses which link is said in
 * shard/plan.h and counted by the links; a rank never sends what another rank does not expect, so a step that one rank
 * refuses for its contents is refused by all, before anything is sent.
 *
 * Bits. A row's result depends on its sequence's rows and the weights only: not on P, on T (if it divides plan.slices),
 * on chunks, on neighbours in the step, or on page numbers.
 *
 * Owns:    weights, KV pages, scratch and features, from open to close. Backend and link are borrowed until close.
 * Threads: the backend's and link's thread. Run allocates nothing after open; on a device, after warm-up.
 * Fails:   WN_EINVAL, WN_ELIMIT, WN_ENOENT (the step is wrong: nothing was sent, the stage is as before);
 *          WN_EPEER, WN_ETIME, WN_EDEVICE, WN_ENOMEM (a rank is lost or late: the group has to leave).
 * Closing: the stage first, then the link. After a failed run the link first: its messages use the stage's memory. */
#ifndef WN_SHARD_DECODER_H
#define WN_SHARD_DECODER_H

#include <stdbool.h>
#include <stdint.h>

#include "shard/backend.h"
#include "shard/loader.h"
#include "shard/pick.h"
#include "shard/plan.h"
#include "shard/weights.h"

struct wn_link;  /* transport/link.h */
struct wn_stage; /* opaque */

#define WN_SLOT_NONE UINT32_MAX /* the row is text */

/* One step: rows of several sequences, prefill chunks and single decode rows together. Borrowed memory.
 * Row i is token[i] if slot[i] is WN_SLOT_NONE, else row token[i] of the features in slot[i].
 * Sequences lie in the rows one after the other, in the order of seqs, and cover them. */
struct wn_step {
    uint32_t rows;
    const uint32_t *token; /* [rows]: token id, or row of the features */
    const uint32_t *slot;  /* [rows]; NULL: all text */
    const uint32_t *position; /* [rows] rotary position of each row; NULL: its place in its sequence. What a row sees is
                                 decided by the place alone, so positions may jump, repeat and fall. */
    uint32_t seqs_n;
    const struct wn_seq *seqs; /* [seqs_n]: first row, rows, tokens already in pages, block table */
    uint32_t wanted_n;
    const uint32_t *wanted; /* [wanted_n] rows whose logits are wanted, ascending */
};

struct wn_stage_opts {
    struct wn_backend *be;            /* borrowed until close */
    struct wn_link *link;             /* borrowed until close; NULL if the plan has one rank */
    const struct wn_plan *plan;       /* copied */
    const struct wn_weights *weights; /* borrowed until open returns */
    uint32_t rank;                    /* of the plan: stage * T + tensor; also the link's rank */
    uint32_t pages, page_tokens;      /* KV memory */
    uint32_t rows_max, seqs_max;      /* of a step */
    uint32_t wanted_max;              /* rows of a step that may want logits */
    uint32_t slots;                   /* feature matrices that stage 0 can hold */
};

/* Attaches NCCL to the replica's link, so that a stage on a GPU speaks to the others' memory (transport/nccl.h): the
 * tensor ranks of its stage, and the neighbours of its own tensor rank. By all ranks, before wn_stage_open. Without it
 * messages of a device backend go by way of host memory. fast_sums: see wn_dev_allreduce_f32. */
WN_NODISCARD wn_status wn_stage_attach(struct wn_link *link, struct wn_backend *be, const struct wn_plan *plan,
                                       uint32_t rank, int device, bool fast_sums, int64_t deadline_us,
                                       struct wn_err *err);

/* Loads this rank's weights and allocates its memory. *out is owned by the caller; on failure it is untouched. */
WN_NODISCARD wn_status wn_stage_open(struct wn_stage **out, const struct wn_stage_opts *opts,
                                     struct wn_err *err);
void wn_stage_close(struct wn_stage *s); /* NULL is fine; waits 5 s at most for its last rows to leave */

/* Before the first request, by all ranks at the same point: runs steps of every size that requests of up to tokens_max
 * tokens can make, with nothing in them, so that the device has loaded its kernels, chosen its algorithms, captured its
 * graphs and grown its scratch, and ranks have met. Pages and slots hold nothing afterwards. Backends whose steps are
 * alike (wn_backend_ops.step_alike) do nothing. */
WN_NODISCARD wn_status wn_stage_warm_up(struct wn_stage *s, uint32_t tokens_max, int64_t deadline_us,
                                        struct wn_err *err);

/* Is `step` within the limits: of the options, the vocabulary, the positions and the pages? The leader calls it before
 * it broadcasts a step, so that no rank refuses one. Features are checked by run, on stage 0: they may come with the
 * step. */
WN_NODISCARD wn_status wn_stage_check(const struct wn_stage *s, const struct wn_step *step,
                                      struct wn_err *err);

/* Runs one step through this stage. On tensor rank 0 of the last stage logits [wanted_n, vocab] (host memory) is
 * written before it returns; elsewhere it may be NULL. Their values are rounded to the plan's type, as the model's own
 * arithmetic does: where two tokens are that close, the lower id wins here as there. On the other stages it returns
 * when the rows are on their way, so that the next step may follow at once. Every wait ends at deadline_us. */
WN_NODISCARD wn_status wn_stage_run(struct wn_stage *s, const struct wn_step *step,
                                    int64_t deadline_us, float *logits, struct wn_err *err);

/* May this rank's device choose the tokens? Then what comes back from it is an id a row, not the logits. */
bool wn_stage_can_pick(const struct wn_stage *s);

/* As wn_stage_run on such a rank, and tokens [wanted_n] are what each [wanted_n] says, or WN_PICK_NONE: not wanted, or
 * left to wn_sampler_pick with the row's logits. */
WN_NODISCARD wn_status wn_stage_pick(struct wn_stage *s, const struct wn_step *step, int64_t deadline_us,
                                     const struct wn_pick *each, uint32_t *tokens, struct wn_err *err);

/* Logits [vocab] of wanted row i of the last step, which was a wn_stage_pick. */
WN_NODISCARD wn_status wn_stage_logits(struct wn_stage *s, uint32_t i, float *logits, struct wn_err *err);

/* Page `to` becomes the same as page `from`, in every layer of this rank. Queued. */
WN_NODISCARD wn_status wn_stage_copy_page(struct wn_stage *s, uint32_t from, uint32_t to, struct wn_err *err);

/* Features as they arrive: the vision tower's rows and width, or rows that are projected already, of the decoder's. */
struct wn_features {
    uint32_t rows, width;
    wn_dtype dtype; /* float32, bfloat16 or float16 */
    bool projected;
};

/* Keeps features (host memory, copied) in `slot` on this rank, in place of what was there. On every tensor rank of
 * stage 0, with the same data; ranks of other stages hold none: there it does nothing. */
WN_NODISCARD wn_status wn_stage_features_put(struct wn_stage *s, uint32_t slot, const void *data,
                                             const struct wn_features *shape, struct wn_err *err);

/* As put, and the data comes from rank 0: it broadcasts `data` to the tensor ranks of stage 0 (kind EMBEDDING), which
 * pass NULL. All tensor ranks of stage 0 call it at the same point; ranks of other stages need not. */
WN_NODISCARD wn_status wn_stage_features_share(struct wn_stage *s, uint32_t slot, const void *data,
                                               const struct wn_features *shape, int64_t deadline_us,
                                               struct wn_err *err);
void wn_stage_features_drop(struct wn_stage *s, uint32_t slot); /* an empty slot is fine */

/* Time that runs and shared features have spent waiting since open, with nothing else to do. */
struct wn_stage_waits {
    uint64_t step_us; /* for the stage before to be done with its share: the pipeline's bubble */
    uint64_t link_us; /* for bytes: rows that were on their way here, rows sent before that are not gone yet, sums and
                         parts of the tensor ranks (with the time that these ranks are apart) */
};
struct wn_stage_waits wn_stage_waits(const struct wn_stage *s);

struct wn_load_rate wn_stage_load_rate(const struct wn_stage *s);

bool wn_stage_is_last(const struct wn_stage *s); /* does this rank's run write logits? */

#endif
