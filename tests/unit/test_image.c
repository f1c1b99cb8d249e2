/* tests/unit/test_image.c - decoding, resizing and preprocessing against Pillow and Transformers
 * (scripts/golden/image.py made the data), and what happens with bytes that are no picture. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <sodium.h>

#include "shard/image.h"
#include "shard/preprocess.h"
#include "shard/resample.h"
#include "tests/file_read.h"

#define DIR       "tests/golden/image/"
#define CONFIGS_N 5

static const struct wn_image_limits limits = WN_IMAGE_LIMITS_DEFAULT;
static const char *const configs[CONFIGS_N] = {"clip336", "clip64", "pad", "stretch", "croponly"};

static void *read_golden(const char *name, const char *suffix, size_t *bytes)
{
    char path[256];
    void *data;

    snprintf(path, sizeof(path), DIR "%s%s", name, suffix);
    data = file_read(path, bytes);
    if (!data) fail_msg("cannot open %s", path);
    return data;
}

static void digest(const void *data, size_t bytes, char text[17])
{
    unsigned char hash[crypto_hash_sha256_BYTES];

    crypto_hash_sha256(hash, data, bytes);
    for (int i = 0; i < 8; i++) snprintf(text + 2 * i, 3, "%02x", hash[i]);
}

static int max_diff(const uint8_t *a, const uint8_t *b, size_t n)
{
    int most = 0;

    for (size_t i = 0; i < n; i++)
        if (abs(a[i] - b[i]) > most) most = abs(a[i] - b[i]);
    return most;
}

/* One line of index.txt. */
struct golden {
    char file[64];
    unsigned width, height;
    char digest[CONFIGS_N][17];
};

static int next_golden(FILE *index, struct golden *g)
{
    char line[512];

    while (fgets(line, sizeof(line), index)) {
        if (line[0] == '#') continue;
        assert_int_equal(sscanf(line, "%63s %u %u %16s %16s %16s %16s %16s", g->file, &g->width,
                                &g->height, g->digest[0], g->digest[1], g->digest[2], g->digest[3],
                                g->digest[4]),
                         3 + CONFIGS_N);
        return 1;
    }
    return 0;
}

static FILE *open_index(void)
{
    FILE *f = fopen(DIR "index.txt", "r");

    assert_non_null(f);
    return f;
}

static struct wn_image decode_ok(const char *name)
{
    struct wn_image img = {0};
    struct wn_err err = {0};
    size_t bytes;
    void *data = read_golden(name, "", &bytes);

    if (wn_image_decode(&img, data, bytes, &limits, &err) != WN_OK)
        fail_msg("%s: %s", name, err.text);
    free(data);
    return img;
}

static struct wn_preprocess load_ok(const char *config)
{
    struct wn_preprocess pp;
    struct wn_err err = {0};
    char path[256];

    snprintf(path, sizeof(path), DIR "%s.json", config);
    if (wn_preprocess_load(&pp, path, &err) != WN_OK) fail_msg("%s", err.text);
    return pp;
}

/* ---- the golden pictures ---- */

static void decodes_as_pillow(void **state)
{
    FILE *index = open_index();
    struct golden g;
    int n = 0, exact = 0;

    (void)state;
    while (next_golden(index, &g)) {
        struct wn_image img = decode_ok(g.file);
        size_t bytes;
        uint8_t *want;
        int diff;

        assert_int_equal(img.width, g.width);
        assert_int_equal(img.height, g.height);
        if (strcmp(g.file, "large.jpg") != 0) {
            want = read_golden(g.file, ".rgb", &bytes);
            assert_int_equal(bytes, (size_t)g.width * g.height * 3);
            diff = max_diff(img.rgb, want, bytes);
            if (diff) print_message("%s: differs from Pillow by up to %d/255\n", g.file, diff);
            if (diff > 1) fail_msg("%s: differs from Pillow by up to %d", g.file, diff);
            exact += diff == 0;
            free(want);
            n++;
        }
        wn_image_fini(&img);
        assert_null(img.rgb);
    }
    fclose(index);
    assert_true(n >= 20);
    print_message("%d of %d pictures are equal to Pillow's to the last bit\n", exact, n);
}

/* From Pillow's own pixels the result must be the processor's to the last bit of every float. */
static void processor_is_exact(void **state)
{
    FILE *index = open_index();
    struct golden g;
    struct wn_err err = {0};

    (void)state;
    while (next_golden(index, &g)) {
        struct wn_image img = {.width = g.width, .height = g.height};
        size_t bytes;

        if (strcmp(g.file, "large.jpg") == 0) continue; /* its pixels are not kept */
        img.rgb = read_golden(g.file, ".rgb", &bytes);
        for (int c = 0; c < CONFIGS_N; c++) {
            struct wn_preprocess pp = load_ok(configs[c]);
            size_t n = (size_t)3 * pp.height * pp.width;
            float *pixels = malloc(n * sizeof(float));
            char text[17];

            assert_int_equal(wn_preprocess_run(&pp, &img, pixels, &err), WN_OK);
            digest(pixels, n * sizeof(float), text);
            if (strcmp(text, g.digest[c]) != 0)
                fail_msg("%s with %s: %s", g.file, configs[c], text);
            free(pixels);
        }
        wn_image_fini(&img);
    }
    fclose(index);
}

/* From the file's bytes: within 1/255 of the processor, whatever decoder is installed. */
static void processor_end_to_end(void **state)
{
    struct wn_preprocess pp64 = load_ok("clip64"), pp336 = load_ok("clip336");
    static const char *const also336[] = {"large.jpg", "cmyk.jpg", "palettetrns.png"};
    uint8_t *rgb = malloc(336 * 336 * 3);
    float *pixels = malloc(64 * 64 * 3 * sizeof(float));
    FILE *index = open_index();
    struct wn_err err = {0};
    struct golden g;

    (void)state;
    while (next_golden(index, &g)) {
        struct wn_image img = decode_ok(g.file);
        size_t bytes;
        uint8_t *want = read_golden(g.file, ".clip64.rgb", &bytes);
        int diff;

        assert_int_equal(bytes, 64 * 64 * 3);
        assert_int_equal(wn_preprocess_rgb(&pp64, &img, rgb, &err), WN_OK);
        diff = max_diff(rgb, want, bytes);
        if (diff > 1) fail_msg("%s: differs by up to %d", g.file, diff);
        /* the floats are those of the formula, computed here on its own */
        assert_int_equal(wn_preprocess_run(&pp64, &img, pixels, &err), WN_OK);
        for (size_t i = 0; i < 64 * 64; i++)
            for (size_t c = 0; c < 3; c++) {
                static const double mean[] = {0.48145466, 0.4578275, 0.40821073};
                static const double std[] = {0.26862954, 0.26130258, 0.27577711};
                double x = (rgb[i * 3 + c] / 255.0 - mean[c]) / std[c];
                assert_float_equal(pixels[c * 64 * 64 + i], x, 1e-6);
            }
        free(want);
        wn_image_fini(&img);
    }
    fclose(index);
    for (size_t i = 0; i < sizeof(also336) / sizeof(also336[0]); i++) {
        char name[64];
        struct wn_image img = decode_ok(also336[i]), want;
        snprintf(name, sizeof(name), "%s.clip336.png", also336[i]);
        want = decode_ok(name);
        assert_int_equal(want.width, 336);
        assert_int_equal(want.height, 336);
        assert_int_equal(wn_preprocess_rgb(&pp336, &img, rgb, &err), WN_OK);
        assert_true(max_diff(rgb, want.rgb, 336 * 336 * 3) <= 1);
        wn_image_fini(&img);
        wn_image_fini(&want);
    }
    free(rgb);
    free(pixels);
}

/* ---- resize ---- */

/* The same generator as in scripts/golden/image.py. */
static struct wn_image noise(uint32_t width, uint32_t height, uint32_t seed, int contrast)
{
    struct wn_image img = {.width = width, .height = height};
    size_t n = (size_t)width * height * 3;

    img.rgb = malloc(n);
    assert_non_null(img.rgb);
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        img.rgb[i] = (uint8_t)(contrast ? (seed >> 31) * 255 : seed >> 24);
    }
    return img;
}

static struct wn_resample whole(wn_filter filter, uint32_t width, uint32_t height)
{
    return (struct wn_resample){
        .filter = filter, .width = width, .height = height, .window = {0, 0, width, height}};
}

static void check_windows(const struct wn_resample *full, const struct wn_image *src,
                          const uint8_t *want)
{
    uint32_t w = full->width, h = full->height;
    struct wn_resample rs = *full;
    uint8_t *out;
    struct wn_err err = {0};

    rs.window.x = w / 3;
    rs.window.y = h / 4;
    rs.window.width = w - w / 3 - w / 5;
    rs.window.height = h - h / 4 - h / 6;
    out = malloc((size_t)rs.window.height * (rs.window.width * 3 + 5));
    assert_int_equal(wn_resample_run(&rs, src, out, rs.window.width * 3 + 5, &err), WN_OK);
    for (uint32_t y = 0; y < rs.window.height; y++)
        assert_memory_equal(out + (size_t)y * (rs.window.width * 3 + 5),
                            want + ((size_t)(y + rs.window.y) * w + rs.window.x) * 3,
                            rs.window.width * 3);
    free(out);
}

static void resize_is_pillows(void **state)
{
    FILE *f = fopen(DIR "resample.txt", "r");
    char line[256], want[17], got[17];
    unsigned seed, contrast, w, h, filter, nw, nh;
    struct wn_err err = {0};
    int n = 0;

    (void)state;
    assert_non_null(f);
    while (fgets(line, sizeof(line), f)) {
        struct wn_image src;
        struct wn_resample rs;
        uint8_t *out;

        if (line[0] == '#') continue;
        assert_int_equal(sscanf(line, "%u %u %u %u %u %u %u %16s", &seed, &contrast, &w, &h,
                                &filter, &nw, &nh, want),
                         8);
        src = noise(w, h, seed, (int)contrast);
        rs = whole((wn_filter)filter, nw, nh);
        out = malloc((size_t)nw * nh * 3);
        for (int plain = 0; plain < 2; plain++) {
            rs.plain = plain;
            memset(out, 0xa5, (size_t)nw * nh * 3);
            assert_int_equal(wn_resample_run(&rs, &src, out, (size_t)nw * 3, &err), WN_OK);
            digest(out, (size_t)nw * nh * 3, got);
            if (strcmp(got, want) != 0) fail_msg("%s: got %s (plain %d)", line, got, plain);
            check_windows(&rs, &src, out);
        }
        free(out);
        wn_image_fini(&src);
        n++;
    }
    fclose(f);
    assert_true(n >= 50);
}

static void resize_refuses(void **state)
{
    struct wn_image src = noise(8, 8, 1, 0), none = {0};
    struct wn_resample rs = whole(WN_FILTER_BICUBIC, 4, 4);
    uint8_t out[4 * 4 * 3];
    struct wn_err err = {0};

    (void)state;
    assert_int_equal(wn_resample_run(&rs, &none, out, 12, &err), WN_EINVAL);
    rs.window.x = 1; /* 1 + 4 > 4 */
    assert_int_equal(wn_resample_run(&rs, &src, out, 12, &err), WN_EINVAL);
    rs.window.x = UINT32_MAX - 1;
    assert_int_equal(wn_resample_run(&rs, &src, out, 12, &err), WN_EINVAL);
    rs = whole(WN_FILTER_BICUBIC, 4, 4);
    rs.window.height = 0;
    assert_int_equal(wn_resample_run(&rs, &src, out, 12, &err), WN_EINVAL);
    rs = whole(WN_FILTER_BICUBIC, WN_RESAMPLE_SIDE_MAX + 1, 4);
    assert_int_equal(wn_resample_run(&rs, &src, out, 12, &err), WN_ELIMIT);
    wn_image_fini(&src);
}

/* Resized whole, this picture would have 3.4 million rows of 336 pixels; only the crop is made. */
static void thin_pictures_are_cheap(void **state)
{
    struct wn_preprocess pp = load_ok("clip336");
    struct wn_image tall = noise(1, 10000, 5, 0), wide = noise(30000, 2, 6, 0);
    float *pixels = malloc(336 * 336 * 3 * sizeof(float));
    struct wn_err err = {0};

    (void)state;
    assert_int_equal(wn_preprocess_run(&pp, &tall, pixels, &err), WN_OK);
    assert_int_equal(wn_preprocess_run(&pp, &wide, pixels, &err), WN_OK);
    tall.height = 1u << 30; /* refused from the sizes alone */
    assert_int_equal(wn_preprocess_run(&pp, &tall, pixels, &err), WN_ELIMIT);
    assert_non_null(strstr(err.text, "1x1073741824"));
    free(pixels);
    wn_image_fini(&tall);
    wn_image_fini(&wide);
}

/* ---- bytes that are no picture ---- */

/* Runs a copy of exactly n bytes, so that a sanitizer sees the first byte read past them. */
static wn_status decode_copy(const void *data, size_t n, const struct wn_image_limits *lim,
                             struct wn_err *err)
{
    struct wn_image img = {.width = 77};
    uint8_t *copy = malloc(n ? n : 1);
    wn_status rc;

    assert_non_null(copy);
    memcpy(copy, data, n);
    memset(err, 0, sizeof(*err));
    rc = wn_image_decode(&img, copy, n, lim, err);
    free(copy);
    if (rc == WN_OK) {
        wn_image_fini(&img);
    } else {
        assert_int_equal(img.width, 77); /* untouched */
        assert_int_equal(err->code, rc);
        assert_memory_equal(err->text, "image: ", 7);
    }
    return rc;
}

static void every_prefix_is_an_error(void **state)
{
    static const char *const files[] = {"rgb.png",      "palettetrns.png",   "rgb16.png",
                                        "baseline.jpg", "progressive.jpg",   "cmyk.jpg",
                                        "lossy.webp",   "lossyalpha.webp",   "lossless.webp",
                                        "dot.png",      "losslessalpha.webp"};
    struct wn_err err;

    (void)state;
    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
        size_t bytes;
        uint8_t *data = read_golden(files[i], "", &bytes);
        assert_int_equal(decode_copy(data, bytes, &limits, &err), WN_OK);
        for (size_t n = 0; n < bytes; n++)
            if (decode_copy(data, n, &limits, &err) == WN_OK)
                fail_msg("%s: %zu of %zu bytes are taken for a picture", files[i], n, bytes);
        free(data);
    }
}

/* A damaged byte anywhere is an error or a picture, never a crash; the sanitizers watch. */
static void damaged_bytes_do_no_harm(void **state)
{
    static const char *const files[] = {"palettetrns.png", "grey.jpg", "progressive.jpg",
                                        "lossy.webp"};
    struct wn_image_limits small = {.bytes_max = 1 << 20, .pixels_max = 100000, .side_max = 4096};
    uint32_t seed = 9;
    struct wn_err err;

    (void)state;
    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
        size_t bytes;
        uint8_t *data = read_golden(files[i], "", &bytes);
        for (size_t n = 0; n < bytes; n++) {
            uint8_t was = data[n];
            seed = seed * 1664525u + 1013904223u;
            data[n] ^= (uint8_t)((seed >> 24) | 1);
            (void)decode_copy(data, bytes, &small, &err);
            data[n] = was;
        }
        free(data);
    }
}

static void expect(const void *data, size_t n, const struct wn_image_limits *lim, wn_status rc,
                   const char *text)
{
    struct wn_err err;

    assert_int_equal(decode_copy(data, n, lim, &err), rc);
    if (!strstr(err.text, text)) fail_msg("'%s' does not say '%s'", err.text, text);
}

static void bombs_are_refused(void **state)
{
    static const uint8_t png[] =
        "\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\xea\x60\0\0\xea\x60\x08\2\0\0\0abcd";
    static const uint8_t jpeg[] =
        "\xff\xd8\xff\xc0\0\x11\x08\xea\x60\xea\x60\3\1\x22\0\2\x11\1\3\x11\1"
        "\xff\xda\0\x0c\3\1\0\2\x11\3\x11\0\x3f\0";
    static const uint8_t webp[] = "RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\x5f\xea\0\x5f\xea\0";
    /* lossy and lossless streams cannot claim more than 16,383 a side */
    static const uint8_t vp8[] =
        "RIFF\x16\0\0\0WEBPVP8 \x0a\0\0\0\x10\0\0\x9d\1\x2a\xff\x3f\xff\x3f";
    static const uint8_t vp8l[] = "RIFF\x12\0\0\0WEBPVP8L\5\0\0\0\x2f\xfe\xbf\xff\x0f\0";
    struct wn_image_limits lim = limits, tiny = limits;

    (void)state;
    expect(png, sizeof(png) - 1, &lim, WN_ELIMIT,
           "image: PNG 60000x60000 exceeds 32,768 pixels a side");
    expect(jpeg, sizeof(jpeg) - 1, &lim, WN_ELIMIT,
           "image: JPEG 60000x60000 exceeds 32,768 pixels a side");
    expect(webp, sizeof(webp) - 1, &lim, WN_ELIMIT,
           "image: WebP 60000x60000 exceeds 32,768 pixels a side");
    lim.side_max = 65535;
    expect(png, sizeof(png) - 1, &lim, WN_ELIMIT,
           "image: PNG 60000x60000 exceeds 33,554,432 pixels");
    expect(jpeg, sizeof(jpeg) - 1, &lim, WN_ELIMIT,
           "image: JPEG 60000x60000 exceeds 33,554,432 pixels");
    expect(webp, sizeof(webp) - 1, &lim, WN_ELIMIT,
           "image: WebP 60000x60000 exceeds 33,554,432 pixels");
    expect(vp8, sizeof(vp8) - 1, &lim, WN_ELIMIT,
           "image: WebP 16383x16383 exceeds 33,554,432 pixels");
    expect(vp8l, sizeof(vp8l) - 1, &lim, WN_ELIMIT,
           "image: WebP 16383x16383 exceeds 33,554,432 pixels");
    tiny.bytes_max = 20;
    expect(png, sizeof(png) - 1, &tiny, WN_ELIMIT, "exceeds 20 bytes");
}

static void limits_are_exact(void **state)
{
    struct wn_image_limits lim = {.bytes_max = 1 << 20, .pixels_max = 97 * 63, .side_max = 97};
    size_t bytes;
    uint8_t *data = read_golden("baseline.jpg", "", &bytes);
    struct wn_err err;

    (void)state;
    lim.bytes_max = bytes;
    assert_int_equal(decode_copy(data, bytes, &lim, &err), WN_OK);
    lim.pixels_max--;
    assert_int_equal(decode_copy(data, bytes, &lim, &err), WN_ELIMIT);
    lim.pixels_max++;
    lim.side_max--;
    assert_int_equal(decode_copy(data, bytes, &lim, &err), WN_ELIMIT);
    lim.side_max++;
    lim.bytes_max--;
    assert_int_equal(decode_copy(data, bytes, &lim, &err), WN_ELIMIT);
    free(data);
}

static void others_are_refused(void **state)
{
    static const uint8_t animated[] = "RIFF\x28\0\0\0WEBPVP8X\x0a\0\0\0\2\0\0\0\x0f\0\0\x0f\0\0"
                                      "ANIM\6\0\0\0\0\0\0\0\0\0ANMF";
    static const uint8_t empty_png[] =
        "\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\0\0\0\0\0\1\x08\2\0\0\0abcd";
    static const uint8_t no_ihdr[] =
        "\x89PNG\r\n\x1a\n\0\0\0\x0dIDAT\0\0\0\1\0\0\0\1\x08\2\0\0\0abcd";
    uint8_t zeros[64] = {0};

    (void)state;
    expect("", 0, &limits, WN_EFORMAT, "no bytes");
    expect("GIF89a....", 10, &limits, WN_EUNSUPP, "neither JPEG nor PNG nor WebP, but GIF");
    expect("\0\0\0\x20" "ftypavif", 12, &limits, WN_EUNSUPP, "WebP, but AVIF");
    expect("BM", 2, &limits, WN_EUNSUPP, "WebP, but BMP");
    expect("<svg/>", 6, &limits, WN_EUNSUPP, "neither");
    expect(zeros, sizeof(zeros), &limits, WN_EUNSUPP, "neither");
    expect("\xff\xd8\xff", 3, &limits, WN_EFORMAT, "JPEG: ");
    expect(animated, sizeof(animated) - 1, &limits, WN_EUNSUPP, "animated WebP");
    expect(empty_png, sizeof(empty_png) - 1, &limits, WN_EFORMAT, "PNG of 0x1 pixels");
    expect(no_ihdr, sizeof(no_ihdr) - 1, &limits, WN_EFORMAT, "without a header chunk");
}

/* A small file can make a decoder walk the picture thousands of times: the scans are counted. */
static void scans_are_counted(void **state)
{
    size_t bytes, sos = 0, end, scan;
    uint8_t *data = read_golden("progressive.jpg", "", &bytes), *many;

    (void)state;
    while (data[sos] != 0xff || data[sos + 1] != 0xda) sos++;
    end = sos + 2;
    while (data[end] != 0xff || data[end + 1] == 0)
        end++; /* the next marker: the first scan's data ends */
    scan = end - sos;
    many = malloc(bytes + scan * 150);
    memcpy(many, data, sos);
    for (size_t i = 0; i < 150; i++) memcpy(many + sos + i * scan, data + sos, scan);
    memcpy(many + sos + scan * 150, data + end, bytes - end);
    expect(many, bytes + scan * 149, &limits, WN_EFORMAT, "more than 100 scans");
    expect(data, bytes - 1, &limits, WN_EFORMAT, "the data ends too early");
    free(many);
    free(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decodes_as_pillow),        cmocka_unit_test(processor_is_exact),
        cmocka_unit_test(processor_end_to_end),     cmocka_unit_test(resize_is_pillows),
        cmocka_unit_test(resize_refuses),           cmocka_unit_test(thin_pictures_are_cheap),
        cmocka_unit_test(every_prefix_is_an_error), cmocka_unit_test(damaged_bytes_do_no_harm),
        cmocka_unit_test(bombs_are_refused),        cmocka_unit_test(limits_are_exact),
        cmocka_unit_test(others_are_refused),       cmocka_unit_test(scans_are_counted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
