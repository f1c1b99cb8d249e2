/* shard/resample.h - resizing of 8-bit RGB, bit for bit as Pillow's Image.resize() does it.
 *
 * A separable filter that widens with the reduction (antialias): one pass along the rows and one
 * down the columns, each rounded to 8 bits, with weights in fixed point (22 bits). Only a window of
 * the resized picture is computed, so a crop costs what it shows: a 1 x 30,000 picture whose
 * resized form would fill the memory is as cheap as any other. The order of the passes, which shows
 * in the last bit, is that of Pillow 13; Pillow 12 and before differ for tall pictures (see
 * down_first in resample.c).
 *
 * Owns:    nothing after the call.     Threads: any; calls share nothing.
 * Fails:   WN_EINVAL (empty picture, window not inside), WN_ELIMIT (target side over
 *          WN_RESAMPLE_SIDE_MAX), WN_ENOMEM. */
#ifndef WN_SHARD_RESAMPLE_H
#define WN_SHARD_RESAMPLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "shard/image.h"

#define WN_RESAMPLE_SIDE_MAX (1u << 30)

/* Numbered as Pillow and preprocessor_config.json number them. */
typedef enum wn_filter {
    WN_FILTER_LANCZOS = 1,
    WN_FILTER_BILINEAR = 2,
    WN_FILTER_BICUBIC = 3
} wn_filter;

struct wn_resample {
    wn_filter filter;
    uint32_t width, height; /* of the whole resized picture; the source's own size copies it */
    struct {
        uint32_t x, y, width, height;
    } window;   /* the part of it that is wanted, inside it and not empty */
    bool plain; /* portable code only; the result is the same */
};

/* out: [window.height, window.width, 3] with out_stride bytes from row to row; it does not overlap src. */
WN_NODISCARD wn_status wn_resample_run(const struct wn_resample *rs, const struct wn_image *src,
                                       uint8_t *out, size_t out_stride, struct wn_err *err);

#endif
