/* base/canvas.h - a small 8-bit RGB drawing surface, for overlays and plots that tools write as PNG.
 *
 * Whatever lies outside of the canvas is clipped, so callers need no checks of their own. Alpha is 0 (nothing) to 1
 * (opaque). Text is a built-in 5 x 7 font for printable ASCII; other bytes are drawn as a box.
 *
 * Owns:    the pixels, from init to fini.   Threads: one at a time.
 * Fails:   init: WN_ELIMIT, WN_ENOMEM; write: WN_EIO with the path and libpng's reason. Drawing cannot fail. */
#ifndef WN_BASE_CANVAS_H
#define WN_BASE_CANVAS_H

#include <stdint.h>

#include "base/status.h"

#define WN_CANVAS_SIDE_MAX   16384u
#define WN_CANVAS_PIXELS_MAX ((uint64_t)64 << 20)
#define WN_FONT_ADVANCE      6 /* pixels from one character to the next, at scale 1 */
#define WN_FONT_HEIGHT       8 /* a line with its descenders, at scale 1 */

struct wn_color { uint8_t r, g, b; };

struct wn_canvas {
    uint8_t *rgb; /* [height, width, 3], owned */
    uint32_t width, height;
};

/* A place on the canvas, or one partly outside of it. */
struct wn_box { int x, y, w, h; };

/* A picture to be drawn, borrowed: rgb [height, width, 3]. */
struct wn_picture { const uint8_t *rgb; uint32_t width, height; };

typedef enum wn_scaling { WN_SCALE_NEAREST, WN_SCALE_BILINEAR } wn_scaling;

/* Makes a canvas of one colour. Success: *out is the caller's, to be given to fini. Failure: untouched. */
WN_NODISCARD wn_status wn_canvas_init(struct wn_canvas *out, uint32_t width, uint32_t height, struct wn_color fill,
                                      struct wn_err *err);
void wn_canvas_fini(struct wn_canvas *c); /* a zeroed one and NULL are fine */

/* One pixel; outside: nothing. */
void wn_canvas_blend(struct wn_canvas *c, int x, int y, struct wn_color color, float alpha);

/* A filled rectangle, and the outline of one (inside of the box, `thick` pixels). */
void wn_canvas_fill(struct wn_canvas *c, struct wn_box box, struct wn_color color, float alpha);
void wn_canvas_frame(struct wn_canvas *c, struct wn_box box, int thick, struct wn_color color);

/* A straight line `thick` pixels wide with round ends and smooth edges; both ends the same: a disc. */
void wn_canvas_line(struct wn_canvas *c, float x0, float y0, float x1, float y1, float thick, struct wn_color color);

/* Text with its upper left corner at (x, y), each font pixel `scale` pixels wide. Returns the x after it. */
int wn_canvas_text(struct wn_canvas *c, int x, int y, int scale, struct wn_color color, const char *text);
int wn_text_width(int scale, const char *text);

/* Scales the picture into the box. */
void wn_canvas_picture(struct wn_canvas *c, struct wn_box box, struct wn_picture picture, wn_scaling scaling);

/* A colour between dark blue (0) and yellow (1), by way of green; NaN counts as 0. Lightness rises with the value. */
struct wn_color wn_color_heat(float value);

WN_NODISCARD wn_status wn_canvas_write_png(const struct wn_canvas *c, const char *path, struct wn_err *err);

/* The glyphs of ' ' to '~': eight rows from the top, bit 4 is the left column. */
extern const uint8_t wn_font_rows[95][WN_FONT_HEIGHT];

#endif
