/* daemon/prune_draw.c - see prune_draw.h. */
#include "daemon/prune_draw.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MARGIN     16
#define GAP        8
#define LINE       (WN_FONT_HEIGHT * 2 + 8) /* of text at scale 2 */
#define COLUMNS    3u
#define CELL_SIDE  336 /* of the picture on a sheet; its scores have half of it */
#define LEGEND     "bright: kept   orange: kept, others merged into it   dark: dropped"

static const struct wn_color paper = {250, 250, 248}, ink = {30, 32, 38}, faint = {120, 122, 128},
                             shade = {14, 15, 20}, tint = {255, 120, 0}, edge = {255, 255, 255};

enum { DROPPED, KEPT, MERGED };

struct wn_prune_figures wn_prune_figures(const struct wn_prune_view *v)
{
    const struct wn_encode_item *it = v->item;
    struct wn_prune_figures f = {.kept = it->rows_n, .of = it->rows_before};

    for (uint32_t i = 0; i < it->rows_n; i++) {
        f.merged += (it->flags[i] & WN_PRUNE_MERGED) != 0;
        f.extra += (it->flags[i] & WN_PRUNE_EXTRA) != 0;
    }
    f.bytes_before = f.of * v->row_bytes;
    f.bytes_after = f.kept * v->kept_row_bytes;
    return f;
}

/* What became of each patch: [grid_h, grid_w]; owned by the caller. */
static uint8_t *fates(const struct wn_prune_view *v)
{
    const uint32_t patches = v->shape.grid_w * v->shape.grid_h, first = v->shape.cls_first ? 1 : 0;
    uint8_t *fate = calloc(patches, 1);

    for (uint32_t i = 0; fate && i < v->item->rows_n; i++) {
        const uint32_t row = v->item->index[i];
        if (row == WN_PRUNE_NO_INDEX || row < first || row - first >= patches) continue;
        fate[row - first] = v->item->flags[i] & WN_PRUNE_MERGED ? MERGED : KEPT;
    }
    return fate;
}

/* Patch (x, y) in a box that shows the whole grid. */
static struct wn_box patch_box(const struct wn_prune_shape *s, struct wn_box all, uint32_t x, uint32_t y)
{
    const int x0 = (int)((uint64_t)all.w * x / s->grid_w), x1 = (int)((uint64_t)all.w * (x + 1) / s->grid_w);
    const int y0 = (int)((uint64_t)all.h * y / s->grid_h), y1 = (int)((uint64_t)all.h * (y + 1) / s->grid_h);

    return (struct wn_box){all.x + x0, all.y + y0, x1 - x0, y1 - y0};
}

static void draw_overlay(struct wn_canvas *c, struct wn_box box, const struct wn_prune_view *v, const uint8_t *fate)
{
    const struct wn_prune_shape *s = &v->shape;

    wn_canvas_picture(c, box, v->picture, WN_SCALE_BILINEAR);
    for (uint32_t y = 0; y < s->grid_h; y++)
        for (uint32_t x = 0; x < s->grid_w; x++) {
            const uint8_t *at = &fate[y * s->grid_w + x];
            const struct wn_box b = patch_box(s, box, x, y);
            if (*at == DROPPED) wn_canvas_fill(c, b, shade, 0.74f);
            if (*at == MERGED) wn_canvas_fill(c, b, tint, 0.38f);
            /* a light edge where kept and dropped meet: on dark pictures dimming alone is hard to see */
            if (x > 0 && (at[-1] == DROPPED) != (*at == DROPPED))
                wn_canvas_fill(c, (struct wn_box){b.x, b.y, 1, b.h}, edge, 0.7f);
            if (y > 0 && (*(at - s->grid_w) == DROPPED) != (*at == DROPPED))
                wn_canvas_fill(c, (struct wn_box){b.x, b.y, b.w, 1}, edge, 0.7f);
        }
}

static int ascending(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Lowest score, and one that 1 % exceed: a single large one would leave the rest of the map dark. */
static wn_status score_range(const float *score, uint32_t n, float *low, float *high, struct wn_err *err)
{
    float *sorted = malloc(n * sizeof(*sorted));

    if (!sorted) return wn_fail(err, WN_ENOMEM, "%u scores", n);
    memcpy(sorted, score, n * sizeof(*sorted));
    qsort(sorted, n, sizeof(*sorted), ascending);
    *low = sorted[0];
    *high = sorted[(n - 1) - (n - 1) / 100];
    free(sorted);
    return WN_OK;
}

static wn_status draw_scores(struct wn_canvas *c, struct wn_box box, const struct wn_prune_view *v, struct wn_err *err)
{
    const struct wn_prune_shape *s = &v->shape;
    const float *score = v->item->scores ? v->item->scores + (s->cls_first ? 1 : 0) : NULL;
    float low = 0, high = 0;
    wn_status rc;

    if (!score) {
        const char *text = "no scores";
        wn_canvas_frame(c, box, 1, faint);
        wn_canvas_text(c, box.x + (box.w - wn_text_width(2, text)) / 2, box.y + box.h / 2 - WN_FONT_HEIGHT, 2, faint,
                       text);
        return WN_OK;
    }
    if ((rc = score_range(score, s->grid_w * s->grid_h, &low, &high, err)) != WN_OK) return rc;
    for (uint32_t y = 0; y < s->grid_h; y++)
        for (uint32_t x = 0; x < s->grid_w; x++) {
            const float value = score[y * s->grid_w + x];
            wn_canvas_fill(c, patch_box(s, box, x, y),
                           wn_color_heat(high > low ? (value - low) / (high - low) : 0), 1);
        }
    return WN_OK;
}

/* "score: low ====== high" */
static void draw_scale(struct wn_canvas *c, int x, int y, int scale)
{
    x = wn_canvas_text(c, x, y, scale, faint, "score: low ");
    for (int i = 0; i < 60 * scale; i++)
        wn_canvas_fill(c, (struct wn_box){x + i, y, 1, 7 * scale}, wn_color_heat((float)i / (60.0f * (float)scale)), 1);
    wn_canvas_text(c, x + 63 * scale, y, scale, faint, "high");
}

static void draw_failure(struct wn_canvas *c, struct wn_box box, const char *text)
{
    const int in_line = (box.w - 2 * GAP) / (2 * WN_FONT_ADVANCE);
    int y = box.y + GAP;

    wn_canvas_frame(c, box, 1, faint);
    for (int n = (int)strlen(text); n > 0 && y < box.y + box.h - LINE; y += LINE) {
        char line[128];
        int take = n < in_line ? n : in_line;
        if (take > (int)sizeof(line) - 1) take = (int)sizeof(line) - 1;
        for (int k = take; take < n && k > take / 2; k--)
            if (text[k] == ' ') {
                take = k;
                break;
            }
        snprintf(line, sizeof(line), "%.*s", take, text);
        wn_canvas_text(c, box.x + GAP, y, 2, ink, line);
        take += text[take] == ' ';
        text += take;
        n -= take;
    }
}

static wn_status draw_view(struct wn_canvas *c, struct wn_box overlay, struct wn_box scores,
                           const struct wn_prune_view *v, struct wn_err *err)
{
    uint8_t *fate;

    if (v->item->rc != WN_OK) {
        draw_failure(c, overlay, v->item->err.text);
        return WN_OK;
    }
    if (!(fate = fates(v))) return wn_fail(err, WN_ENOMEM, "patches");
    draw_overlay(c, overlay, v, fate);
    free(fate);
    return draw_scores(c, scores, v, err);
}

wn_status wn_prune_draw_one(struct wn_canvas *out, const struct wn_prune_view *v, struct wn_err *err)
{
    const int w = (int)v->picture.width * 2, h = (int)v->picture.height * 2;
    const int wide = 2 * w + 3 * MARGIN, top = MARGIN + LINE, below = top + h + MARGIN;
    const struct wn_prune_figures f = wn_prune_figures(v);
    struct wn_canvas c;
    char text[160];
    wn_status rc = wn_canvas_init(&c, (uint32_t)wide, (uint32_t)(below + 3 * LINE + GAP), paper, err);

    if (rc != WN_OK) return rc;
    wn_canvas_text(&c, MARGIN, MARGIN, 2, ink, v->item->method->name);
    draw_scale(&c, 2 * MARGIN + w, MARGIN, 2);
    rc = draw_view(&c, (struct wn_box){MARGIN, top, w, h}, (struct wn_box){2 * MARGIN + w, top, w, h}, v, err);
    if (rc != WN_OK) {
        wn_canvas_fini(&c);
        return rc;
    }
    snprintf(text, sizeof(text), "%u of %u visual tokens kept (%.1f %%), %u of them merged, %u extra", f.kept, f.of,
             f.of ? 100.0 * f.kept / f.of : 0, f.merged, f.extra);
    wn_canvas_text(&c, MARGIN, below, 2, ink, text);
    snprintf(text, sizeof(text), "vision link %.1f KiB -> %.1f KiB (%.1f times less)   prune %.2f ms, encode %.1f ms",
             (double)f.bytes_before / 1024, (double)f.bytes_after / 1024,
             f.bytes_after ? (double)f.bytes_before / (double)f.bytes_after : 0, (double)v->item->prune_us / 1e3,
             (double)v->item->encode_us / 1e3);
    wn_canvas_text(&c, MARGIN, below + LINE, 2, ink, text);
    wn_canvas_text(&c, MARGIN, below + 2 * LINE, 2, faint, LEGEND);
    *out = c;
    return WN_OK;
}

/* Method, picture, scores, and the figures in the space under the scores. */
static wn_status draw_cell(struct wn_canvas *c, int x, int y, const struct wn_prune_view *v, struct wn_err *err)
{
    const struct wn_prune_figures f = wn_prune_figures(v);
    const int side = x + CELL_SIDE + GAP, half = CELL_SIDE / 2;
    char lines[5][40] = {{0}};
    wn_status rc;

    wn_canvas_text(c, x, y, 2, ink, v->item->method->name);
    y += LINE;
    rc = draw_view(c, (struct wn_box){x, y, CELL_SIDE, CELL_SIDE}, (struct wn_box){side, y, half, half}, v, err);
    if (rc != WN_OK || v->item->rc != WN_OK) return rc;
    snprintf(lines[0], sizeof(lines[0]), "%u of %u", f.kept, f.of);
    snprintf(lines[1], sizeof(lines[1]), "%.1f %%", f.of ? 100.0 * f.kept / f.of : 0);
    snprintf(lines[2], sizeof(lines[2]), "%.1f KiB", (double)f.bytes_after / 1024);
    snprintf(lines[3], sizeof(lines[3]), "%.2f ms", (double)v->item->prune_us / 1e3);
    if (f.merged || f.extra) snprintf(lines[4], sizeof(lines[4]), "%u merged", f.merged);
    for (int i = 0; i < 5; i++) wn_canvas_text(c, side, y + half + GAP + i * (LINE + 4), 2, ink, lines[i]);
    return WN_OK;
}

static void draw_legend(struct wn_canvas *c, int x, int y)
{
    static const struct { struct wn_color color; const char *text; } key[] = {
        {{235, 235, 235}, "kept"},
        {{255, 170, 90}, "kept, others merged into it"},
        {{60, 61, 66}, "dropped"},
    };

    y += LINE;
    for (int i = 0; i < 3; i++, y += LINE + 4) {
        wn_canvas_fill(c, (struct wn_box){x, y, 24, 16}, key[i].color, 1);
        wn_canvas_frame(c, (struct wn_box){x, y, 24, 16}, 1, faint);
        wn_canvas_text(c, x + 32, y, 2, ink, key[i].text);
    }
    draw_scale(c, x, y, 2);
    wn_canvas_text(c, x, y + LINE + 8, 2, faint, "KiB: on the vision link");
    wn_canvas_text(c, x, y + 2 * LINE + 8, 2, faint, "ms: choosing and merging");
}

wn_status wn_prune_draw_all(struct wn_canvas *out, const struct wn_prune_view *v, uint32_t n, const char *title,
                            struct wn_err *err)
{
    const int cell_w = CELL_SIDE + GAP + CELL_SIDE / 2 + MARGIN, cell_h = LINE + CELL_SIDE + MARGIN;
    const uint32_t rows = n / COLUMNS + 1; /* the legend has a cell, too */
    struct wn_canvas c;
    wn_status rc = wn_canvas_init(&c, COLUMNS * (uint32_t)cell_w + MARGIN,
                                  rows * (uint32_t)cell_h + MARGIN + LINE + GAP, paper, err);

    if (rc != WN_OK) return rc;
    wn_canvas_text(&c, MARGIN, MARGIN, 2, ink, title);
    for (uint32_t i = 0; i <= n && rc == WN_OK; i++) {
        const int x = MARGIN + (int)(i % COLUMNS) * cell_w, y = MARGIN + LINE + GAP + (int)(i / COLUMNS) * cell_h;
        if (i < n)
            rc = draw_cell(&c, x, y, &v[i], err);
        else
            draw_legend(&c, x, y);
    }
    if (rc != WN_OK)
        wn_canvas_fini(&c);
    else
        *out = c;
    return rc;
}
