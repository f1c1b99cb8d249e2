/* tests/integration/golden.h - what Transformers computed for a tiny checkpoint (scripts/golden/llava.py, original.py),
 * and measures of agreement. Owns: the arrays, from open to close. */
#ifndef WN_TESTS_GOLDEN_H
#define WN_TESTS_GOLDEN_H

#include <stdbool.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/status.h"
#include "shard/backend.h"
#include "shard/model.h"

#define GOLDEN_PROMPTS_MAX 8

struct golden_prompt {
    uint32_t rows, images,
        image_first;  /* image rows take features of images image_first .. in order */
    uint32_t *tokens; /* [rows]; an image row is model.image_token */
    float *logits;    /* [rows, vocab] */
    uint32_t *greedy; /* [new_tokens] */
};

/* A prompt with two pruned images whose rows keep their positions. */
#define GOLDEN_KEPT_0 7
#define GOLDEN_KEPT_1 6
#define GOLDEN_ORIGINAL_ROWS (10 + GOLDEN_KEPT_0 + GOLDEN_KEPT_1)

struct golden_row {
    uint32_t token, image, row, index, flags, position; /* image UINT32_MAX: text */
};

struct golden_original {
    struct golden_row *rows; /* [GOLDEN_ORIGINAL_ROWS] */
    float *features;         /* [GOLDEN_KEPT_0 + GOLDEN_KEPT_1, vision hidden] */
    float *logits;           /* [GOLDEN_ORIGINAL_ROWS, vocab] */
    uint32_t *greedy;        /* [new_tokens] */
};

struct golden {
    char dir[128]; /* the checkpoint */
    struct wn_model model;
    uint32_t images, prompts, new_tokens;
    float *pixels, *features, *projected; /* as scripts/golden/llava.py says */
    float *cls_attention, *mean_attention, *keys, *query;
    struct golden_prompt prompt[GOLDEN_PROMPTS_MAX];
    struct golden_original original;
};

/* Reads tests/golden/NAME; a file that is missing or has another size is an error that names it. */
wn_status golden_open(struct golden *g, const char *name, struct wn_err *err);
void golden_close(struct golden *g);

/* Can this machine open the backend? Prints why not: a missing GPU is no failure. */
bool golden_backend_usable(const char *name);

/* Largest |got - want| over a row, divided by the largest |want| of the row: the largest over rows. NaN counts as
 * 1e9. */
double golden_error(const float *got, const float *want, size_t rows, size_t n);

/* n floats as `dtype` (float32 or bfloat16, rounded). Owned by the caller: free(). */
void *golden_as(const float *from, size_t n, wn_dtype dtype);

#endif
