/* shard/model.h - what a checkpoint is: hyper-parameters read from config.json (and
 * generation_config.json).
 *
 * A plain value: no owned memory, copy it freely. Fields that a Hugging Face config.json leaves
 * out take the default of the class that it names. Anything that would change the arithmetic and
 * is not implemented is refused by name. */
#ifndef WN_SHARD_MODEL_H
#define WN_SHARD_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/status.h"
#include "shard/backend.h"

#define WN_EOS_MAX    4
#define WN_TOKEN_NONE UINT32_MAX /* the checkpoint names no such token */

/* CLIP vision tower. */
struct wn_vision_config {
    uint32_t hidden, mlp, layers, heads, head_dim;
    uint32_t image_side, patch_side; /* pixels */
    uint32_t patches; /* (image_side / patch_side)^2; tokens = patches + 1 (CLS first) */
    /* layers that make the features: vision_feature_layer, + layers + 1 if it is negative */
    uint32_t layers_run;
    bool keep_cls; /* vision_feature_select_strategy "full" */
    float eps;     /* layer norm */
    wn_act act;
};

/* Llama decoder. */
struct wn_text_config {
    uint32_t hidden, mlp, layers, heads, kv_heads, head_dim;
    uint32_t vocab; /* rows of the embedding and of the head */
    uint32_t positions_max;
    float rope_theta, eps;
    bool tied; /* the head is the embedding */
};

struct wn_model {
    char architecture[64]; /* "LlavaForConditionalGeneration" */
    struct wn_vision_config vision;
    struct wn_text_config text;
    wn_act projector_act;
    wn_dtype dtype; /* as stored; the compute type is chosen by the plan */
    uint32_t image_token;
    uint32_t bos, pad; /* or WN_TOKEN_NONE */
    uint32_t eos[WN_EOS_MAX], eos_n;
    /* Parts into which every sum over a tensor-parallel dimension is cut (see backend.h): the
     * largest power of two, at most 8, that divides kv_heads, mlp and hidden. Any
     * tensor-parallel size that divides it gives the same bits. */
    uint32_t slices;
};

/* Parses config.json; `generation` (generation_config.json) may be NULL. Bytes are borrowed. */
WN_NODISCARD wn_status wn_model_parse(struct wn_model *out, const char *config, size_t config_len,
                                      const char *generation, size_t generation_len,
                                      struct wn_err *err);

/* Reads DIR/config.json and, if there, DIR/generation_config.json. `path` may also be a
 * config.json itself, by whatever name: that is all a plan needs. */
WN_NODISCARD wn_status wn_model_open(struct wn_model *out, const char *path, struct wn_err *err);

#endif
