/* daemon/encoder.h - from image files to pruned visual tokens: decode, preprocess, vision tower, pruning. What the
 * vision worker serves and what `winnow prune` shows are made here.
 *
 * A request may ask for projected rows; a method that works on projected rows only gets them in any case. Selection
 * commutes with the projector, and merging comes before it, so other methods choose first and project what is left.
 *
 * A method that draws is given the request's seed mixed with the picture's hash: each picture has a draw of its own,
 * and the same picture, seed and method keep the same tokens, anywhere and at any time.
 *
 * Images of one call share an encode; the tower computes only the taps that one of them asks for.
 *
 * Features and keys stay where the tower made them. On a device products of rows, sums, the projector and the cache of
 * whole pictures are there, too (shard/row_worker.h): what comes to the host is attention, the products by which a
 * method chooses, and the rows that are kept.
 *
 * Owns:    tower, backend and buffers, from open to close. An item's results are the caller's: wn_encode_item_fini().
 * Threads: one; it uses helper threads inside.
 * Fails:   open: what the checkpoint's parts say. Run: each item has its own outcome, a bad image harms no other. */
#ifndef WN_DAEMON_ENCODER_H
#define WN_DAEMON_ENCODER_H

#include "daemon/config.h"
#include "pruning/prune.h"
#include "shard/image.h"
#include "shard/model.h"

#define WN_ENCODE_BATCH_MAX 4

struct wn_encoder;
struct wn_preprocess;

struct wn_encode_item {
    /* in, borrowed */
    const void *file;
    size_t file_bytes;
    const struct wn_prune_method *method;
    struct wn_prune_ask ask;
    bool want_scores;
    /* out */
    wn_status rc;
    struct wn_err err;
    void *rows;        /* [rows_n, width] of the encoder's dtype */
    uint32_t *index;   /* [rows_n] patch, or WN_PRUNE_NO_INDEX */
    uint8_t *flags;    /* [rows_n] WN_PRUNE_MERGED, ... */
    float *scores;     /* [patches] if wanted and the method has them, else NULL */
    uint32_t rows_n, rows_before, width;
    bool projected;    /* rows are of the decoder's width, through the projector */
    bool plain;        /* no flags are set */
    bool cached;       /* no encode was needed */
    uint64_t preprocess_us, encode_us, prune_us;
};

struct wn_encoder_opts {
    const struct wn_config *cfg; /* checkpoint folder, backend; borrowed until open returns */
    const struct wn_model *model;
    wn_dtype dtype;
    struct wn_image_limits limits;
};

WN_NODISCARD wn_status wn_encoder_open(struct wn_encoder **out, const struct wn_encoder_opts *opts, struct wn_err *err);
void wn_encoder_close(struct wn_encoder *e); /* NULL is fine */

/* Encodes n <= WN_ENCODE_BATCH_MAX items. */
void wn_encoder_run(struct wn_encoder *e, struct wn_encode_item *items, uint32_t n);
void wn_encode_item_fini(struct wn_encode_item *item);

/* Encodes nothing in particular, so that the first client does not wait for memory; on a device in batches of every
 * size, with every method, so that it has loaded its kernels, chosen its algorithms and grown its scratch, too. */
WN_NODISCARD wn_status wn_encoder_warm_up(struct wn_encoder *e, struct wn_err *err);

/* How the checkpoint in `dir` wants pictures, checked against its tower. */
WN_NODISCARD wn_status wn_encoder_preprocess(struct wn_preprocess *out, const char *dir, const struct wn_model *model,
                                             struct wn_err *err);

/* The shape that methods are checked against. */
struct wn_prune_shape wn_encoder_shape(const struct wn_model *model);

#endif
