/* shard/image.h - pictures from outside bytes: JPEG, PNG and WebP to 8-bit RGB, under limits.
 *
 * The pixels are those of Pillow's Image.open(...).convert("RGB"), for that is what the checkpoints
 * were trained and measured with:
 * - alpha and transparent palette entries are dropped, not blended;
 * - CMYK and YCCK JPEG are taken as Adobe-inverted;
 * - 16-bit colour keeps the high byte, but 16-bit grey without alpha is clipped: all above 255 is
 *   white;
 * - the EXIF orientation is not applied. Transformers does not apply it either when its processor
 *   is given an opened picture; it does when it is given a path or a URL.
 * Animated WebP is refused; of an animated PNG the still picture counts.
 *
 * Owns:    the pixel buffer, from decode to fini.     Threads: any; calls share nothing.
 * Fails:   WN_ELIMIT before any pixel is allocated, WN_EFORMAT (truncated, damaged, no picture at
 *          all), WN_EUNSUPP, WN_ENOMEM. */
#ifndef WN_SHARD_IMAGE_H
#define WN_SHARD_IMAGE_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct wn_image {
    uint8_t *rgb; /* [height, width, 3], owned */
    uint32_t width, height;
};

/* What a picture may cost. All three are checked against the file's own header. */
struct wn_image_limits {
    size_t bytes_max;    /* of the file */
    uint64_t pixels_max; /* width x height */
    uint32_t side_max;   /* the longer of width and height */
};

#define WN_IMAGE_LIMITS_DEFAULT                                                                                       \
    {                                                                                                                 \
        .bytes_max = (size_t)32 << 20, .pixels_max = (uint64_t)32 << 20, .side_max = 32768,                           \
    }

/* Decodes a whole file in memory; the format is told by its first bytes, never by a name.
 * Success: *out is owned by the caller. Failure: *out is untouched. */
WN_NODISCARD wn_status wn_image_decode(struct wn_image *out, const void *data, size_t bytes,
                                       const struct wn_image_limits *limits, struct wn_err *err);

/* Frees the pixels and clears *img; a zeroed image and NULL are fine. */
void wn_image_fini(struct wn_image *img);

#endif
