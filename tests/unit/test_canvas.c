/* tests/unit/test_canvas.c - drawing: limits, clipping, scaling, letters, and the PNG that is written. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <png.h>

#include "base/canvas.h"

static const struct wn_color white = {255, 255, 255}, black = {0, 0, 0}, red = {255, 0, 0};

static struct wn_canvas make(uint32_t w, uint32_t h)
{
    struct wn_canvas c;
    assert_int_equal(wn_canvas_init(&c, w, h, white, NULL), WN_OK);
    return c;
}

static struct wn_color at(const struct wn_canvas *c, uint32_t x, uint32_t y)
{
    const uint8_t *p = c->rgb + 3 * ((size_t)y * c->width + x);
    return (struct wn_color){p[0], p[1], p[2]};
}

static bool same(struct wn_color a, struct wn_color b)
{
    return a.r == b.r && a.g == b.g && a.b == b.b;
}

/* Pixels that are not white. */
static uint32_t inked(const struct wn_canvas *c)
{
    uint32_t n = 0;
    for (uint32_t y = 0; y < c->height; y++)
        for (uint32_t x = 0; x < c->width; x++) n += !same(at(c, x, y), white);
    return n;
}

static void sizes_have_limits(void **state)
{
    static const uint32_t bad[][2] = {{0, 5}, {5, 0}, {16385, 1}, {1, 16385}, {16384, 16384}, {UINT32_MAX, UINT32_MAX}};
    struct wn_canvas c = {.rgb = NULL, .width = 7};

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct wn_err err = {0};
        char size[32];
        snprintf(size, sizeof(size), "%u x %u", bad[i][0], bad[i][1]);
        assert_int_equal(wn_canvas_init(&c, bad[i][0], bad[i][1], white, &err), WN_ELIMIT);
        if (!strstr(err.text, size)) fail_msg("no size in '%s'", err.text);
        assert_int_equal(c.width, 7); /* untouched */
    }
    wn_canvas_fini(NULL);
    wn_canvas_fini(&(struct wn_canvas){0});
}

static void everything_is_clipped(void **state)
{
    static const uint8_t dot[3] = {9, 9, 9};
    const struct wn_picture p = {dot, 1, 1};
    struct wn_canvas c = make(10, 8);

    (void)state;
    wn_canvas_fill(&c, (struct wn_box){-5, -5, 5, 50}, black, 1);
    wn_canvas_fill(&c, (struct wn_box){10, 0, INT32_MAX, INT32_MAX}, black, 1);
    wn_canvas_fill(&c, (struct wn_box){3, 3, -2, 4}, black, 1);
    wn_canvas_blend(&c, -1, 0, black, 1);
    wn_canvas_blend(&c, 0, 8, black, 1);
    wn_canvas_line(&c, -1e30f, 0, 1e30f, 3, 2, black); /* its length is no float */
    wn_canvas_line(&c, 1, 1, 5, 5, 0, black);
    wn_canvas_picture(&c, (struct wn_box){-9, -9, 9, 9}, p, WN_SCALE_NEAREST);
    wn_canvas_text(&c, 2, -WN_FONT_HEIGHT, 1, black, "clipped");
    wn_canvas_text(&c, -400, 0, 1, black, "left of it");
    assert_int_equal(inked(&c), 0);
    wn_canvas_fill(&c, (struct wn_box){-3, -3, 5, 5}, black, 1);
    assert_int_equal(inked(&c), 4);
    wn_canvas_line(&c, -500, 4, 500, 4, 2, red);
    assert_true(same(at(&c, 0, 3), red) && same(at(&c, 9, 4), red));
    assert_true(same(at(&c, 5, 6), white));
    wn_canvas_fini(&c);
}

static void fill_frame_and_blend(void **state)
{
    struct wn_canvas c = make(20, 20);

    (void)state;
    wn_canvas_frame(&c, (struct wn_box){2, 3, 10, 8}, 2, red);
    assert_int_equal(inked(&c), 10 * 8 - 6 * 4);
    assert_true(same(at(&c, 2, 3), red) && same(at(&c, 11, 10), red) && same(at(&c, 4, 5), white));
    wn_canvas_blend(&c, 0, 0, black, 0.5f);
    assert_int_equal(at(&c, 0, 0).g, 128);
    wn_canvas_blend(&c, 1, 0, black, 7);
    assert_true(same(at(&c, 1, 0), black));
    wn_canvas_fini(&c);
}

/* A disc of radius 5 has an area of 78.5, edges included. */
static void lines_are_smooth_and_round(void **state)
{
    struct wn_canvas c = make(21, 21);
    double ink = 0;

    (void)state;
    wn_canvas_line(&c, 10.5f, 10.5f, 10.5f, 10.5f, 10, black);
    for (uint32_t y = 0; y < 21; y++)
        for (uint32_t x = 0; x < 21; x++) {
            ink += (255 - at(&c, x, y).g) / 255.0;
            assert_true(same(at(&c, x, y), at(&c, y, x)) && same(at(&c, x, y), at(&c, 20 - x, y)));
        }
    assert_true(ink > 77 && ink < 80.5);
    wn_canvas_fini(&c);
}

static void letters(void **state)
{
    static const char *const wanted[] = {".###.", "#...#", "#...#", "#####", "#...#", "#...#", "#...#", "....."};
    struct wn_canvas c = make(40, 24);

    (void)state;
    assert_int_equal(wn_canvas_text(&c, 1, 1, 2, black, "A"), 1 + 2 * WN_FONT_ADVANCE);
    for (int y = 0; y < 16; y++)
        for (int x = 0; x < 10; x++)
            assert_true(same(at(&c, (uint32_t)(1 + x), (uint32_t)(1 + y)),
                             wanted[y / 2][x / 2] == '#' ? black : white));
    assert_int_equal(wn_text_width(2, "ab"), 2 * (6 + 5));
    assert_int_equal(wn_text_width(3, ""), 0);
    for (int a = 1; a < 95; a++) /* every letter can be seen, and told from the others */
        for (int b = 0; b < a; b++)
            assert_true(memcmp(wn_font_rows[a], wn_font_rows[b], WN_FONT_HEIGHT) != 0);
    wn_canvas_fini(&c);
    c = make(8, 8);
    wn_canvas_text(&c, 0, 0, 1, black, "\xc3");
    assert_int_equal(inked(&c), 2 * 5 + 2 * 5); /* a box */
    wn_canvas_fini(&c);
}

static void pictures_are_scaled(void **state)
{
    static const uint8_t two[6] = {0, 0, 0, 200, 200, 200};
    const struct wn_picture p = {two, 2, 1};
    struct wn_canvas c = make(8, 3);

    (void)state;
    wn_canvas_picture(&c, (struct wn_box){0, 0, 8, 3}, p, WN_SCALE_NEAREST);
    assert_int_equal(at(&c, 3, 2).r, 0);
    assert_int_equal(at(&c, 4, 0).r, 200);
    wn_canvas_picture(&c, (struct wn_box){0, 0, 8, 3}, p, WN_SCALE_BILINEAR);
    static const uint8_t ramp[8] = {0, 0, 25, 75, 125, 175, 200, 200};
    for (uint32_t x = 0; x < 8; x++) assert_int_equal(at(&c, x, 1).b, ramp[x]);
    wn_canvas_fini(&c);
}

static void heat_gets_lighter(void **state)
{
    int last = -1;

    (void)state;
    for (int i = 0; i <= 100; i++) {
        const struct wn_color k = wn_color_heat((float)i / 100);
        const int light = 30 * k.r + 59 * k.g + 11 * k.b;
        assert_true(light > last);
        last = light;
    }
    assert_true(same(wn_color_heat(-3), wn_color_heat(0)) && same(wn_color_heat(3), wn_color_heat(1)));
    assert_true(same(wn_color_heat(0.0f / 0.0f), wn_color_heat(0)));
}

static void png_reads_back(void **state)
{
    char path[] = "/tmp/winnow-test-canvas-XXXXXX";
    const int fd = mkstemp(path);
    png_image image = {.version = PNG_IMAGE_VERSION};
    struct wn_canvas c = make(33, 17);
    struct wn_err err = {0};
    uint8_t *back;

    (void)state;
    assert_true(fd >= 0);
    close(fd);
    for (uint32_t i = 0; i < 33 * 17 * 3; i++) c.rgb[i] = (uint8_t)(i * 7);
    assert_int_equal(wn_canvas_write_png(&c, path, &err), WN_OK);
    assert_true(png_image_begin_read_from_file(&image, path));
    assert_int_equal(image.width, 33);
    assert_int_equal(image.height, 17);
    image.format = PNG_FORMAT_RGB;
    back = malloc(PNG_IMAGE_SIZE(image));
    assert_true(png_image_finish_read(&image, NULL, back, 0, NULL));
    assert_memory_equal(back, c.rgb, 33 * 17 * 3);
    free(back);
    unlink(path);
    assert_int_equal(wn_canvas_write_png(&c, "/nonexistent/x.png", &err), WN_EIO);
    assert_non_null(strstr(err.text, "/nonexistent/x.png"));
    assert_int_equal(wn_canvas_write_png(&c, "/dev/full", &err), WN_EIO);
    assert_non_null(strstr(err.text, "/dev/full"));
    wn_canvas_fini(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_have_limits), cmocka_unit_test(everything_is_clipped),
        cmocka_unit_test(fill_frame_and_blend), cmocka_unit_test(lines_are_smooth_and_round),
        cmocka_unit_test(letters), cmocka_unit_test(pictures_are_scaled),
        cmocka_unit_test(heat_gets_lighter), cmocka_unit_test(png_reads_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
