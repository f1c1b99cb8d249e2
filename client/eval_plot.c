/* client/eval_plot.c - a picture of an evaluation: accuracy against tokens kept, one line a method. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/canvas.h"
#include "base/order.h"
#include "client/eval.h"

#define WIDTH  1280
#define HEIGHT 800
#define LEFT   90
#define RIGHT  (WIDTH - 270)
#define TOP    80
#define BOTTOM (HEIGHT - 90)
#define SCALE  2 /* of text */

static const struct wn_color paper = {255, 255, 255}, ink = {30, 32, 38}, grid = {226, 228, 232},
                             faint = {110, 112, 118}, lots = {150, 150, 150}, even = {40, 40, 40};
static const struct wn_color palette[] = {{214, 39, 40},  {31, 119, 180}, {44, 160, 44},   {255, 127, 14},
                                          {148, 103, 189}, {23, 190, 207}, {227, 119, 194}, {140, 86, 75},
                                          {188, 189, 34}};
#define PALETTE_N (sizeof(palette) / sizeof(palette[0]))

/* Where numbers lie on the canvas. x is logarithmic. */
struct axes { double x_low, x_high, y_low, y_high; };

static float place_x(const struct axes *a, double tokens)
{
    return (float)(LEFT + (RIGHT - LEFT) * (log(tokens) - log(a->x_low)) / (log(a->x_high) - log(a->x_low)));
}

static float place_y(const struct axes *a, double percent)
{
    return (float)(BOTTOM - (BOTTOM - TOP) * (percent - a->y_low) / (a->y_high - a->y_low));
}

static bool is_none(const struct eval_row *row)
{
    return strcmp(row->setting.method, "none") == 0;
}

/* A method that chose its own count: a point beside its line. */
static bool is_free(const struct eval_row *row)
{
    return !row->setting.keep && !(row->setting.rate > 0);
}

static struct axes find_axes(const struct eval_row *rows, uint32_t n)
{
    struct axes a = {.x_low = 1e9, .x_high = 1, .y_low = 100, .y_high = 0};

    for (uint32_t i = 0; i < n; i++) {
        const double y = 100 * eval_accuracy(&rows[i]), x = fmax(rows[i].tokens, 1);
        a.x_low = fmin(a.x_low, x);
        a.x_high = fmax(a.x_high, x);
        a.y_low = fmin(a.y_low, y);
        a.y_high = fmax(a.y_high, y);
    }
    a.x_low /= 1.12;
    a.x_high *= 1.12;
    a.y_low = fmax(0, 10 * floor((a.y_low - 1) / 10));
    a.y_high = fmin(100, 10 * ceil((a.y_high + 1) / 10));
    if (a.y_high <= a.y_low) a.y_high = a.y_low + 10;
    return a;
}

static void draw_tick_x(struct wn_canvas *c, const struct axes *a, double tokens, float *last)
{
    char text[24];
    const float x = place_x(a, tokens);

    snprintf(text, sizeof(text), "%.0f", tokens);
    if (*last > 0 && fabsf(x - *last) < (float)wn_text_width(SCALE, text) + 14) return; /* would touch its neighbour */
    wn_canvas_line(c, x, TOP, x, BOTTOM, 1, grid);
    wn_canvas_text(c, (int)x - wn_text_width(SCALE, text) / 2, BOTTOM + 10, SCALE, ink, text);
    *last = x;
}

static void draw_axes(struct wn_canvas *c, const struct axes *a, const struct eval_row *rows, uint32_t n)
{
    const char *label = "visual tokens kept an image, mean (logarithmic)";
    const double step = a->y_high - a->y_low > 50 ? 20 : a->y_high - a->y_low > 20 ? 10 : 5;
    double ticks[EVAL_SETTINGS_MAX];
    uint32_t ticks_n = 0;
    float last = 0;

    for (uint32_t i = 0; i < n; i++)
        if (!is_free(&rows[i]) || is_none(&rows[i]) || n == 1) ticks[ticks_n++] = fmax(rows[i].tokens, 1);
    qsort(ticks, ticks_n, sizeof(*ticks), wn_order_double);
    for (uint32_t i = 0; i < ticks_n; i++) draw_tick_x(c, a, ticks[i], &last);
    for (double y = step * ceil(a->y_low / step); y <= a->y_high; y += step) {
        char text[24];
        snprintf(text, sizeof(text), "%.0f", y);
        wn_canvas_line(c, LEFT, place_y(a, y), RIGHT, place_y(a, y), 1, grid);
        wn_canvas_text(c, LEFT - 12 - wn_text_width(SCALE, text), (int)place_y(a, y) - 7, SCALE, ink, text);
    }
    wn_canvas_line(c, LEFT, TOP, LEFT, BOTTOM, 2, ink);
    wn_canvas_line(c, LEFT, BOTTOM, RIGHT, BOTTOM, 2, ink);
    wn_canvas_text(c, (LEFT + RIGHT - wn_text_width(SCALE, label)) / 2, BOTTOM + 44, SCALE, ink, label);
    wn_canvas_text(c, 16, TOP - 36, SCALE, ink, "accuracy, %");
}

/* Every second method has square marks: colours alone are hard to tell apart. */
static void draw_mark(struct wn_canvas *c, float x, float y, struct wn_color color, uint32_t method, bool hollow)
{
    if (method % 2) {
        wn_canvas_fill(c, (struct wn_box){(int)x - 5, (int)y - 5, 11, 11}, color, 1);
        if (hollow) wn_canvas_fill(c, (struct wn_box){(int)x - 3, (int)y - 3, 7, 7}, paper, 1);
    } else {
        wn_canvas_line(c, x, y, x, y, 12, color);
        if (hollow) wn_canvas_line(c, x, y, x, y, 7, paper);
    }
}

static void draw_dashes(struct wn_canvas *c, float y)
{
    for (int x = LEFT; x < RIGHT; x += 18) wn_canvas_line(c, (float)x, y, (float)x + 9, y, 2, faint);
}

static struct wn_color color_of(const char *method, uint32_t *used)
{
    if (strcmp(method, "random") == 0) return lots;
    if (strcmp(method, "uniform") == 0) return even;
    return palette[(*used)++ % PALETTE_N];
}

static int by_tokens(const void *a, const void *b)
{
    const double x = (*(const struct eval_row *const *)a)->tokens, y = (*(const struct eval_row *const *)b)->tokens;
    return (x > y) - (x < y);
}

/* Draws rows[first]'s method, and its entry in the legend. False: it has one already. */
static bool draw_method(struct wn_canvas *c, const struct axes *a, const struct eval_row *rows, uint32_t n,
                        uint32_t first, uint32_t method, uint32_t *used)
{
    const struct eval_row *line[EVAL_SETTINGS_MAX];
    const char *name = rows[first].setting.method;
    const int y = TOP + 10 + (int)method * 30;
    struct wn_color color;
    uint32_t line_n = 0;

    for (uint32_t i = 0; i < first; i++)
        if (strcmp(rows[i].setting.method, name) == 0) return false;
    if (is_none(&rows[first])) {
        draw_dashes(c, place_y(a, 100 * eval_accuracy(&rows[first])));
        wn_canvas_line(c, RIGHT + 24, (float)y, RIGHT + 34, (float)y, 2, faint);
        wn_canvas_line(c, RIGHT + 42, (float)y, RIGHT + 52, (float)y, 2, faint);
        wn_canvas_text(c, RIGHT + 66, y - 7, SCALE, ink, "none (all kept)");
        return true;
    }
    color = color_of(name, used);
    for (uint32_t i = first; i < n; i++) {
        if (strcmp(rows[i].setting.method, name) != 0) continue;
        if (!is_free(&rows[i])) line[line_n++] = &rows[i];
        else
            draw_mark(c, place_x(a, fmax(rows[i].tokens, 1)), place_y(a, 100 * eval_accuracy(&rows[i])), color, method,
                      true);
    }
    qsort(line, line_n, sizeof(line[0]), by_tokens);
    for (uint32_t i = 0; i < line_n; i++) {
        const float x = place_x(a, fmax(line[i]->tokens, 1)), py = place_y(a, 100 * eval_accuracy(line[i]));
        if (i + 1 < line_n)
            wn_canvas_line(c, x, py, place_x(a, fmax(line[i + 1]->tokens, 1)),
                           place_y(a, 100 * eval_accuracy(line[i + 1])), 2.5f, color);
        draw_mark(c, x, py, color, method, false);
    }
    wn_canvas_line(c, RIGHT + 24, (float)y, RIGHT + 52, (float)y, 2.5f, color);
    draw_mark(c, RIGHT + 38, (float)y, color, method, line_n == 0);
    wn_canvas_text(c, RIGHT + 66, y - 7, SCALE, ink, name);
    return true;
}

bool eval_write_plot(const char *path, const struct eval_set *set, const struct eval_row *rows, uint32_t n)
{
    const struct axes a = find_axes(rows, n);
    uint32_t method = 0, used = 0;
    bool free_points = false;
    struct wn_canvas c = {0};
    struct wn_err err = {0};
    char title[160];
    wn_status rc = wn_canvas_init(&c, WIDTH, HEIGHT, paper, &err);

    if (rc != WN_OK) goto out;
    snprintf(title, sizeof(title), "Accuracy against visual tokens kept: %u questions about %u pictures", set->n,
             set->pictures_n);
    wn_canvas_text(&c, (WIDTH - wn_text_width(SCALE, title)) / 2, 20, SCALE, ink, title);
    draw_axes(&c, &a, rows, n);
    for (uint32_t i = 0; i < n; i++) {
        method += draw_method(&c, &a, rows, n, i, method, &used);
        free_points = free_points || (is_free(&rows[i]) && !is_none(&rows[i]));
    }
    if (free_points) {
        const int y = TOP + 24 + (int)method * 30;
        wn_canvas_text(&c, RIGHT + 24, y, SCALE, faint, "hollow: the");
        wn_canvas_text(&c, RIGHT + 24, y + 22, SCALE, faint, "method's own count");
    }
    rc = wn_canvas_write_png(&c, path, &err);
out:
    wn_canvas_fini(&c);
    if (rc != WN_OK) fprintf(stderr, "winnow: %s\n", err.text);
    return rc == WN_OK;
}
