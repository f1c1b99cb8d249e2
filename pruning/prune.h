/* pruning/prune.h - which visual tokens of an image are kept, and what the kept ones become.
 *
 * A method is a pure function over named taps: what the vision tower made (features) or noticed
 * (attention, keys) on its way. It says beforehand which taps it reads, so that the tower computes
 * only those. One file beside this one and one line in the table of prune.c make a new method.
 *
 * One rule for ties everywhere: the larger score first, then the lower index. Scores are float32.
 * Sums have a fixed order: the same input gives the same bits on every machine.
 *
 * Owns:    nothing; all memory is the caller's but for a result's recipe, scratch lives for one call.
 * Threads: any; with a worker its own.
 * Fails:   WN_ENOENT (no such method: the known ones are named), WN_EINVAL (numbers that make no
 *          sense, a tap that was not given), WN_EUNSUPP (a method that cannot do what is asked of
 *          this model), WN_ENOMEM. */
#ifndef WN_PRUNING_PRUNE_H
#define WN_PRUNING_PRUNE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pruning/rows.h"

#define WN_PRUNE_NO_INDEX UINT32_MAX /* a row that stands for no single patch */
#define WN_PRUNE_KEEP_DEFAULT 64 /* rows kept where a request names a method and no budget */

/* Flags of a kept row. 0: the tower's row, unchanged. */
enum { WN_PRUNE_MERGED = 1, WN_PRUNE_EXTRA = 2, WN_PRUNE_CLS = 4 };

/* What the rows of features are: as the tower made them, or through the projector. */
enum { WN_PRUNE_TOWER = 1, WN_PRUNE_PROJECTED = 2 };

/* Where a paper and its public code differ: do as the code does, or as the paper says. */
typedef enum wn_prune_setting { WN_PRUNE_FAITHFUL = 0, WN_PRUNE_PAPER = 1 } wn_prune_setting;

/* How many rows to keep. keep goes before rate. Neither: methods that choose their own count do,
 * the others keep all (see wn_prune_ask_complete for what a request gets). What counts is the rows
 * that leave, extra and CLS rows included. */
struct wn_prune_budget {
    uint32_t keep; /* rows; 0: by rate; more than there are: all */
    float rate;    /* share removed, 0 .. 1; halves round up; at least one row is left */
    uint32_t cap;  /* upper bound for methods that choose their own count; 0: none */
    uint64_t seed; /* for methods that draw; the same seed draws the same patches of any image */
};

/* Numbers of single methods; 0 is the published default. Their names in text: options.c. */
struct wn_prune_options {
    uint32_t neighbours;   /* prumerge, prumerge+: rows summed into a kept one (32) */
    uint32_t contextual;   /* visionzip: merged rows of the budget (5/32 of it) */
    double important;      /* vispruner: share chosen by attention (0.5) */
    double anchors;        /* hiprune: share of the budget around anchors (0.1) */
    uint32_t object_layer; /* hiprune: the layer of the anchors, from 1 (9 where features come
                              from layer 23, as deep in other towers) */
};

/* What a request wants. */
struct wn_prune_ask {
    struct wn_prune_budget budget;
    wn_prune_setting setting;
    bool projected; /* the rows come through the projector */
    struct wn_prune_options options;
};

/* What a model gives for one image. */
struct wn_prune_shape {
    uint32_t rows, width;    /* of the features */
    uint32_t grid_w, grid_h; /* patches across and down; rows = grid_w * grid_h (+ 1) */
    uint32_t heads;          /* of the tower's attention */
    uint32_t feature_layer;  /* the layer, from 0, whose output the features are */
    bool cls_first;          /* row 0 is CLS: the model keeps it */
};

/* The taps that a method reads, in the tower's numbering of layers. */
struct wn_prune_wants {
    uint64_t cls_layers;  /* bit i: attention of the CLS query in layer i */
    uint64_t mean_layers; /* bit i: attention received in layer i, mean over heads and queries */
    uint64_t keys_layers; /* bit i: keys and CLS query of layer i, which may be the one after the
                             feature layer */
    bool cls_row;         /* CLS's own row of features */
    bool features;        /* the features' values, to compare rows or to merge them */
};

/* The taps of one image. tokens = patches + 1, CLS first. What a mask lacks is not looked at. */
struct wn_prune_taps {
    uint64_t cls_layers, mean_layers, keys_layers; /* the layers that are there, ascending */
    const float *cls_attention;    /* [layers, heads, tokens]; probabilities */
    const float *mean_attention;   /* [layers, tokens] */
    const float *keys, *cls_query; /* [layers, tokens, width], [layers, width]; with bias, not scaled */
    size_t cls_stride, mean_stride, keys_stride, query_stride; /* floats from one layer to the next */
    const void *cls_row;           /* [width] of the features' dtype; NULL: none */
};

struct wn_prune_in {
    struct wn_prune_shape shape;
    struct wn_prune_ask ask;
    const void *features; /* [rows, width] of dtype; NULL if the method does not want them */
    wn_dtype dtype;
    struct wn_prune_taps taps;
    struct wn_row_worker *worker; /* has features, keys, cls_query and cls_row; NULL: the host */
};

/* How kept rows are made of the image's: see struct wn_row_sums; CLS's row is the last. */
struct wn_prune_recipe {
    uint32_t *first;
    float *div;
    struct wn_row_term *terms;
    size_t rows_room, terms_n, terms_room;
};

/* Room: wn_prune_rows_max() rows. Order is the order in which rows go to the language model. */
struct wn_prune_out {
    uint32_t *index; /* patch of each row; of a merged row the one it grew from; or NO_INDEX */
    uint8_t *flags;
    float *scores;   /* [rows] NULL: not wanted. What the method ranked by, larger is better */
    struct wn_prune_recipe recipe; /* zero before the first run; runs reuse its memory */
    uint32_t rows;                 /* kept */
    bool scored;                   /* scores were set */
};

struct wn_prune_ctx; /* pruning/impl.h */

struct wn_prune_method {
    const char *name;
    const char *help;
    uint8_t spaces; /* WN_PRUNE_TOWER | WN_PRUNE_PROJECTED: where it can run */
    bool adaptive;  /* chooses its count when no budget is given */
    bool paper;     /* has a setting `paper` beside `faithful` */
    bool grid;      /* needs to know the grid */
    bool cls_first; /* can serve models that keep CLS as a row */
    bool all;       /* keeps everything, whatever the budget */
    /* NULL: no taps. *w is empty on entry. */
    void (*wants)(const struct wn_prune_ask *ask, uint32_t feature_layer, struct wn_prune_wants *w);
    /* NULL: what the fields above say is all. */
    wn_status (*check)(const struct wn_prune_ask *ask, const struct wn_prune_shape *shape,
                       struct wn_err *err);
    wn_status (*run)(struct wn_prune_ctx *c);
};

extern const struct wn_prune_method *const wn_prune_methods[]; /* all there are; NULL-terminated */

/* NULL or "" means "none". NULL comes back, with *err filled, if there is no such method. */
const struct wn_prune_method *wn_prune_find(const char *name, struct wn_err *err);

/* "faithful", "paper", or "" and NULL for faithful. */
WN_NODISCARD wn_status wn_prune_setting_parse(wn_prune_setting *out, const char *text, struct wn_err *err);

/* "neighbours=16,anchors=0.2"; NULL and "": all published. WN_EINVAL names what is wrong. */
WN_NODISCARD wn_status wn_prune_options_parse(struct wn_prune_options *out, const char *text,
                                              struct wn_err *err);

/* A request that names no budget gets WN_PRUNE_KEEP_DEFAULT rows of methods that need one. */
void wn_prune_ask_complete(const struct wn_prune_method *method, struct wn_prune_ask *ask);

/* What can be said of a request before the image's shape is known. */
WN_NODISCARD wn_status wn_prune_check_ask(const struct wn_prune_method *method, const struct wn_prune_ask *ask,
                                          struct wn_err *err);

/* Can the method do this? For requests; run checks it again. */
WN_NODISCARD wn_status wn_prune_check(const struct wn_prune_method *method, const struct wn_prune_ask *ask,
                                      const struct wn_prune_shape *shape, struct wn_err *err);

/* The taps that the method reads. feature_layer as in the shape. */
void wn_prune_wants(const struct wn_prune_method *method, const struct wn_prune_ask *ask,
                    uint32_t feature_layer, struct wn_prune_wants *out);

/* Adds `more` to `all`. */
void wn_prune_wants_join(struct wn_prune_wants *all, const struct wn_prune_wants *more);

/* Rows that the budget leaves of `rows`: at least 1 of at least 1, at most all. */
uint32_t wn_prune_count(const struct wn_prune_budget *budget, uint32_t rows);

/* Where a row stands in its image of `rows` rows, 0 .. rows - 1, if kept rows keep the positions
 * that they had: a patch, and a merged row that grew from one, at its index; a CLS row without an
 * index first; any other row last. */
uint32_t wn_prune_position(uint32_t index, uint8_t flags, uint32_t rows);

/* The most rows that the method may return: for the out buffers and for planning memory. It is
 * rows + 1 at worst (prumerge+ without a cap). */
uint32_t wn_prune_rows_max(const struct wn_prune_method *method, const struct wn_prune_ask *ask,
                           uint32_t rows);

/* Chooses the rows of one image, and how they are made. On failure out's content is undefined. */
WN_NODISCARD wn_status wn_prune_run(const struct wn_prune_method *method, const struct wn_prune_in *in,
                                    struct wn_prune_out *out, struct wn_err *err);
void wn_prune_out_fini(struct wn_prune_out *out); /* the recipe; the rest is the caller's */

/* The kept rows as sums of the image's, for a worker; out has their shape and in's type. */
struct wn_row_sums wn_prune_sums(const struct wn_prune_in *in, const struct wn_prune_out *out);

/* Without a worker: writes the kept rows, [out->rows, width] of in->dtype. Rows without flags are
 * copied byte for byte. Float16 takes no others: WN_EUNSUPP. */
WN_NODISCARD wn_status wn_prune_gather(const struct wn_prune_in *in, const struct wn_prune_out *out, void *dst,
                                       struct wn_err *err);

/* The methods, one file each. */
extern const struct wn_prune_method wn_prune_none, wn_prune_random, wn_prune_uniform,
    wn_prune_cls_topk, wn_prune_prumerge, wn_prune_prumerge_plus, wn_prune_visionzip,
    wn_prune_vispruner, wn_prune_divprune, wn_prune_hiprune, wn_prune_matryoshka;

#endif
