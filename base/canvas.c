/* base/canvas.c - see canvas.h. */
#include "base/canvas.h"

#include <errno.h>
#include <math.h>
#include <png.h>
#include <stdlib.h>
#include <string.h>

wn_status wn_canvas_init(struct wn_canvas *out, uint32_t width, uint32_t height, struct wn_color fill,
                         struct wn_err *err)
{
    const size_t pixels = (size_t)width * height;
    uint8_t *rgb;

    if (width == 0 || height == 0 || width > WN_CANVAS_SIDE_MAX || height > WN_CANVAS_SIDE_MAX ||
        pixels > WN_CANVAS_PIXELS_MAX)
        return wn_fail(err, WN_ELIMIT, "a canvas of %u x %u pixels is not allowed: 1 to %u a side, %llu in all", width,
                       height, WN_CANVAS_SIDE_MAX, (unsigned long long)WN_CANVAS_PIXELS_MAX);
    if (!(rgb = malloc(pixels * 3))) return wn_fail(err, WN_ENOMEM, "canvas of %u x %u pixels", width, height);
    for (size_t i = 0; i < pixels; i++) {
        rgb[3 * i] = fill.r;
        rgb[3 * i + 1] = fill.g;
        rgb[3 * i + 2] = fill.b;
    }
    *out = (struct wn_canvas){.rgb = rgb, .width = width, .height = height};
    return WN_OK;
}

void wn_canvas_fini(struct wn_canvas *c)
{
    if (!c) return;
    free(c->rgb);
    *c = (struct wn_canvas){0};
}

static uint8_t mix(uint8_t below, uint8_t above, float alpha)
{
    return (uint8_t)((float)below + ((float)above - (float)below) * alpha + 0.5f);
}

void wn_canvas_blend(struct wn_canvas *c, int x, int y, struct wn_color color, float alpha)
{
    uint8_t *p;

    if (x < 0 || y < 0 || x >= (int)c->width || y >= (int)c->height || !(alpha > 0)) return;
    if (alpha > 1) alpha = 1;
    p = c->rgb + 3 * ((size_t)y * c->width + (size_t)x);
    p[0] = mix(p[0], color.r, alpha);
    p[1] = mix(p[1], color.g, alpha);
    p[2] = mix(p[2], color.b, alpha);
}

/* The part of [at, at + n) that lies in [0, max). */
static void clip(int at, int n, uint32_t max, int *first, int *end)
{
    const int64_t to = (int64_t)at + n;

    *first = at > 0 ? at : 0;
    *end = to < 0 ? 0 : to < (int64_t)max ? (int)to : (int)max;
}

void wn_canvas_fill(struct wn_canvas *c, struct wn_box box, struct wn_color color, float alpha)
{
    int x0, x1, y0, y1;

    clip(box.x, box.w, c->width, &x0, &x1);
    clip(box.y, box.h, c->height, &y0, &y1);
    for (int y = y0; y < y1; y++)
        for (int x = x0; x < x1; x++) wn_canvas_blend(c, x, y, color, alpha);
}

void wn_canvas_frame(struct wn_canvas *c, struct wn_box b, int thick, struct wn_color color)
{
    wn_canvas_fill(c, (struct wn_box){b.x, b.y, b.w, thick}, color, 1);
    wn_canvas_fill(c, (struct wn_box){b.x, b.y + b.h - thick, b.w, thick}, color, 1);
    wn_canvas_fill(c, (struct wn_box){b.x, b.y + thick, thick, b.h - 2 * thick}, color, 1);
    wn_canvas_fill(c, (struct wn_box){b.x + b.w - thick, b.y + thick, thick, b.h - 2 * thick}, color, 1);
}

/* A coordinate as a pixel number, kept near the canvas. */
static int to_pixel(float v)
{
    return v < -1 ? -1 : v > (float)WN_CANVAS_SIDE_MAX ? (int)WN_CANVAS_SIDE_MAX : (int)v;
}

void wn_canvas_line(struct wn_canvas *c, float x0, float y0, float x1, float y1, float thick, struct wn_color color)
{
    const float r = thick / 2, dx = x1 - x0, dy = y1 - y0, length2 = dx * dx + dy * dy;
    int left, right, top, bottom;

    if (!isfinite(length2) || !(r > 0)) return;
    left = to_pixel(fminf(x0, x1) - r - 1);
    right = to_pixel(fmaxf(x0, x1) + r + 1);
    top = to_pixel(fminf(y0, y1) - r - 1);
    bottom = to_pixel(fmaxf(y0, y1) + r + 1);
    for (int y = top; y <= bottom && y < (int)c->height; y++)
        for (int x = left; x <= right && x < (int)c->width; x++) {
            /* the pixel's middle, from the nearest point of the line */
            const float px = (float)x + 0.5f - x0, py = (float)y + 0.5f - y0;
            float t = length2 > 0 ? (px * dx + py * dy) / length2 : 0;
            t = t < 0 ? 0 : t > 1 ? 1 : t;
            wn_canvas_blend(c, x, y, color, r + 0.5f - hypotf(px - t * dx, py - t * dy));
        }
}

int wn_text_width(int scale, const char *text)
{
    const size_t n = strlen(text);

    return n ? ((int)n * WN_FONT_ADVANCE - 1) * scale : 0;
}

int wn_canvas_text(struct wn_canvas *c, int x, int y, int scale, struct wn_color color, const char *text)
{
    static const uint8_t box[WN_FONT_HEIGHT] = {0x1f, 0x11, 0x11, 0x11, 0x11, 0x11, 0x1f, 0};

    for (; *text && x < (int)c->width; text++, x += WN_FONT_ADVANCE * scale) {
        const uint8_t *rows = *text >= ' ' && *text <= '~' ? wn_font_rows[*text - ' '] : box;
        for (int row = 0; row < WN_FONT_HEIGHT; row++)
            for (int col = 0; col < 5; col++)
                if (rows[row] >> (4 - col) & 1)
                    wn_canvas_fill(c, (struct wn_box){x + col * scale, y + row * scale, scale, scale}, color, 1);
    }
    return x;
}

/* Where the middle of target pixel i of n lies among `from` source pixels: two neighbours and the second's share. */
static void place(int i, int n, uint32_t from, wn_scaling scaling, uint32_t at[2], float *share)
{
    float v = ((float)i + 0.5f) * (float)from / (float)n;

    if (scaling == WN_SCALE_BILINEAR) v = v > 0.5f ? v - 0.5f : 0;
    at[0] = v < (float)from - 1 ? (uint32_t)v : from - 1;
    at[1] = at[0] + 1 < from ? at[0] + 1 : at[0];
    *share = scaling == WN_SCALE_BILINEAR ? fminf(v - (float)at[0], 1) : 0;
}

void wn_canvas_picture(struct wn_canvas *c, struct wn_box box, struct wn_picture p, wn_scaling scaling)
{
    int x0, x1, y0, y1;

    if (p.width == 0 || p.height == 0) return;
    clip(box.x, box.w, c->width, &x0, &x1);
    clip(box.y, box.h, c->height, &y0, &y1);
    for (int y = y0; y < y1; y++) {
        uint32_t sy[2], sx[2];
        float fy, fx;
        place(y - box.y, box.h, p.height, scaling, sy, &fy);
        for (int x = x0; x < x1; x++) {
            uint8_t *to = c->rgb + 3 * ((size_t)y * c->width + (size_t)x);
            place(x - box.x, box.w, p.width, scaling, sx, &fx);
            for (int k = 0; k < 3; k++) {
                const uint8_t *up = p.rgb + 3 * (size_t)sy[0] * p.width, *low = p.rgb + 3 * (size_t)sy[1] * p.width;
                const float a = (float)up[3 * sx[0] + k] * (1 - fx) + (float)up[3 * sx[1] + k] * fx;
                const float b = (float)low[3 * sx[0] + k] * (1 - fx) + (float)low[3 * sx[1] + k] * fx;
                to[k] = (uint8_t)(a * (1 - fy) + b * fy + 0.5f);
            }
        }
    }
}

struct wn_color wn_color_heat(float value)
{
    static const struct wn_color stops[] = {
        {20, 16, 70}, {38, 70, 140}, {20, 132, 132}, {92, 190, 84}, {250, 230, 50}};
    const int last = (int)(sizeof(stops) / sizeof(stops[0])) - 1;
    const float v = value > 0 ? fminf(value, 1) * (float)last : 0;
    const int i = (int)v < last ? (int)v : last - 1;
    const float share = v - (float)i;

    return (struct wn_color){mix(stops[i].r, stops[i + 1].r, share), mix(stops[i].g, stops[i + 1].g, share),
                             mix(stops[i].b, stops[i + 1].b, share)};
}

wn_status wn_canvas_write_png(const struct wn_canvas *c, const char *path, struct wn_err *err)
{
    png_image image = {.version = PNG_IMAGE_VERSION, .width = c->width, .height = c->height, .format = PNG_FORMAT_RGB};
    FILE *f = fopen(path, "wb");
    int good;

    if (!f) return wn_fail(err, WN_EIO, "cannot write %s: %s", path, strerror(errno));
    good = png_image_write_to_stdio(&image, f, 0, c->rgb, 0, NULL);
    if (fclose(f) != 0 && good)
        return wn_fail(err, WN_EIO, "cannot write %s: %s", path, strerror(errno));
    return good ? WN_OK : wn_fail(err, WN_EIO, "cannot write %s: %s", path, image.message);
}
