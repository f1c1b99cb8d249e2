/* shard/vision.h - the CLIP vision tower, whole, on one backend: pixels in, patch features out, and, on request, the
 * attention and key taps that pruning methods read. Only what is asked for is computed.
 *
 * Layers count from 0; layer i reads hidden state i and makes hidden state i+1. Features are hidden state `layers_run`
 * of the model (LLaVA's -2 is the output of the last layer but one). Tokens are CLS (row 0) and then the patches.
 *
 * Owns:    the tower's weights and scratch, from open to close. What encode returns belongs to the tower and is valid
 *          until the next encode or close. Backend and weights are borrowed: the backend until close, the weights
 *          until open returns.
 * Threads: the backend's thread. Encode allocates nothing after the first call with the same taps.
 * Fails:   open: WN_ENOENT, WN_EFORMAT (a tensor missing or of another shape), WN_ENOMEM.
 *          encode: WN_EINVAL (a tap of a layer that is not run), WN_ELIMIT (too many images), WN_ETIME, WN_ENOMEM. */
#ifndef WN_SHARD_VISION_H
#define WN_SHARD_VISION_H

#include <stdbool.h>
#include <stdint.h>

#include "shard/backend.h"
#include "shard/model.h"
#include "shard/weights.h"

struct wn_vision; /* opaque */

/* What encode returns besides the features. Masks: bit i asks for layer i, which must be below layers_run (and 64). */
struct wn_vision_taps {
    uint64_t cls_layers;  /* attention of the CLS query, each head */
    uint64_t mean_layers; /* attention that each token receives: mean over heads and queries */
    uint64_t keys_layers; /* keys and CLS query. Layer layers_run may be asked for too: only its first norm and two
                             projections are computed, it is not run */
    bool cls_features;    /* CLS's own row of the features, which models that drop it do not return otherwise */
    bool stay;            /* all that is as wide as the features stays in backend memory, and only attention comes to
                             the host */
};

struct wn_vision_out {
    const void *features;         /* [images, rows, width] of dtype; host memory, unless it should stay */
    uint32_t images, rows, width; /* rows of one image: the patches, and CLS first if the model keeps it */
    uint32_t tokens, heads;       /* of the tower: patches + 1 */
    wn_dtype dtype;
    /* NULL if not asked for; the last three are where the features are: */
    const float *cls_attention;  /* [bits of cls_layers, images, heads, tokens], ascending layers */
    const float *mean_attention; /* [bits of mean_layers, images, tokens] */
    const float *keys;           /* [bits of keys_layers, images, tokens, width]: projection with bias, not scaled */
    const float *cls_query;      /* [bits of keys_layers, images, width]: as keys */
    const void *cls_features;    /* [images, width] of dtype */
};

/* Loads the tower: layers 0 .. layers_run-1, and of layer layers_run (if there is one) what the key tap needs. dtype is
 * the type of weights and activations (float32 or bfloat16). images_max bounds the images of one call. */
WN_NODISCARD wn_status wn_vision_open(struct wn_vision **out, struct wn_backend *be,
                                      const struct wn_model *model,
                                      const struct wn_weights *weights, wn_dtype dtype,
                                      uint32_t images_max, struct wn_err *err);
void wn_vision_close(struct wn_vision *v); /* NULL is fine */

/* Does the checkpoint have all that open loads? As open fails; reads headers only. */
WN_NODISCARD wn_status wn_vision_check(const struct wn_model *model, const struct wn_weights *weights,
                                       struct wn_err *err);

/* Encodes pixels [images, 3, image_side, image_side] (normalised float32, host memory, borrowed). taps NULL: none. */
WN_NODISCARD wn_status wn_vision_encode(struct wn_vision *v, const float *pixels, uint32_t images,
                                        const struct wn_vision_taps *taps, int64_t deadline_us,
                                        struct wn_vision_out *out, struct wn_err *err);

#endif
