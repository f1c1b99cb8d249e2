/* shard/preprocess.h - from a picture to the vision tower's input, as the checkpoint's processor
 * does it.
 *
 * Reads preprocessor_config.json of Transformers' CLIPImageProcessor and does the same: resize
 * (shortest edge, or to a given size), centre crop (zeros where the picture is smaller), rescale,
 * normalise; every float is equal to that of the slow, Pillow-based processor. Nothing is padded to
 * a square first: the published LLaVA-1.5 checkpoints of this layout do not ask for it. Two remarks:
 * - Transformers guesses the layout of its array from its shape and takes a picture that is 1 or 3
 *   pixels high for channels first; here such a picture is treated as any other, as there with
 *   input_data_format "channels_last".
 * - for the EXIF orientation see image.h.
 * An option that would change the result and is not supported is refused by name.
 *
 * Owns:    a parsed struct wn_preprocess is plain data, nothing to free.
 * Threads: any; a parsed one is only read. wn_preprocess_many uses the pool.
 * Fails:   parse: WN_EFORMAT, WN_EUNSUPP, WN_ELIMIT, WN_EIO, WN_ENOENT; run: WN_ENOMEM,
 *          WN_ELIMIT. */
#ifndef WN_SHARD_PREPROCESS_H
#define WN_SHARD_PREPROCESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "shard/image.h"
#include "shard/resample.h"
#include "shard/threadpool.h"

#define WN_PREPROCESS_BYTES_MAX ((size_t)256 << 10) /* of preprocessor_config.json */
#define WN_PREPROCESS_SIDE_MAX  4096u               /* of sizes named in it */

struct wn_preprocess {
    bool do_resize, do_center_crop, do_rescale, do_normalize;
    uint32_t shortest_edge; /* 0: size_height x size_width, whatever the picture's shape */
    uint32_t size_height, size_width;
    wn_filter resample;
    uint32_t crop_height, crop_width;
    double rescale_factor;
    float mean[3], std[3];
    uint32_t height, width; /* of the result, the same for every picture */
    float value[3][256];    /* result of each channel for each 8-bit level */
};

/* bytes need not end in NUL. Success: *out is filled. Failure: *out is untouched. */
WN_NODISCARD wn_status wn_preprocess_parse(struct wn_preprocess *out, const char *json,
                                           size_t bytes, struct wn_err *err);

/* The same from a file; errors begin with its path. */
WN_NODISCARD wn_status wn_preprocess_load(struct wn_preprocess *out, const char *path,
                                          struct wn_err *err);

/* The resized and cropped picture before rescaling: rgb [height, width, 3], as it would be shown. */
WN_NODISCARD wn_status wn_preprocess_rgb(const struct wn_preprocess *pp, const struct wn_image *img,
                                         uint8_t *rgb, struct wn_err *err);

/* pixels [3, height, width]. */
WN_NODISCARD wn_status wn_preprocess_run(const struct wn_preprocess *pp, const struct wn_image *img,
                                         float *pixels, struct wn_err *err);

/* One picture of several. */
struct wn_preprocess_item {
    const void *data; /* the file's bytes, borrowed */
    size_t bytes;
    float *pixels; /* [3, height, width], borrowed; filled when rc is WN_OK */
    wn_status rc;  /* out */
    struct wn_err err;
};

/* Decodes and preprocesses n pictures on the pool's threads and the caller's. Each item has its own
 * outcome: a bad picture harms no other. */
void wn_preprocess_many(struct wn_pool *pool, const struct wn_preprocess *pp,
                        const struct wn_image_limits *limits, struct wn_preprocess_item *items,
                        size_t n);

#endif
