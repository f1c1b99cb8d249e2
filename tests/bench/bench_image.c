/* tests/bench/bench_image.c - what preprocessing costs beside decoding. Verifies against the golden
 * picture, then times a JPEG of about two megapixels, made in memory, on one thread: the decode
 * alone, and decode + resize + crop + normalise to 336 x 336. Prints a header and one row.
 *
 *     bench_image [repetitions]        from the repository root */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jpeglib.h>

#include "base/clock.h"
#include "base/order.h"
#include "shard/image.h"
#include "shard/preprocess.h"
#include "tests/file_read.h"

#define DIR    "tests/golden/image/"
#define WIDTH  1632
#define HEIGHT 1224

static const struct wn_image_limits limits = WN_IMAGE_LIMITS_DEFAULT;

/* Smooth colours with texture, so that the entropy coder has the work that a photograph gives it.
 * */
static uint8_t *make_jpeg(unsigned long *bytes)
{
    struct jpeg_compress_struct c;
    struct jpeg_error_mgr mgr;
    uint8_t *out = NULL, row[WIDTH * 3], *rows = row;
    uint32_t noise = 1;

    c.err = jpeg_std_error(&mgr);
    jpeg_create_compress(&c);
    jpeg_mem_dest(&c, &out, bytes);
    c.image_width = WIDTH;
    c.image_height = HEIGHT;
    c.input_components = 3;
    c.in_color_space = JCS_RGB;
    jpeg_set_defaults(&c);
    jpeg_set_quality(&c, 85, TRUE);
    jpeg_start_compress(&c, TRUE);
    for (int y = 0; y < HEIGHT; y++) {
        for (int x = 0; x < WIDTH * 3; x++) {
            noise = noise * 1664525u + 1013904223u;
            row[x] = (uint8_t)(((x * (x % 3 + 1) / 9 + y / 3) ^ ((x / 90 + y / 40) * 8)) % 224 +
                               (noise >> 27));
        }
        jpeg_write_scanlines(&c, &rows, 1);
    }
    jpeg_finish_compress(&c);
    jpeg_destroy_compress(&c);
    return out;
}

/* The processor's own picture of tests/golden/image/large.jpg, within 1/255. */
static int verify(const struct wn_preprocess *pp)
{
    struct wn_image img = {0}, want = {0};
    struct wn_err err = {0};
    size_t a = 0, b = 0, n = (size_t)3 * pp->height * pp->width;
    uint8_t *jpeg = file_read(DIR "large.jpg", &a),
            *png = file_read(DIR "large.jpg.clip336.png", &b);
    uint8_t *rgb = malloc(n);
    int ok = jpeg && png && rgb && wn_image_decode(&img, jpeg, a, &limits, &err) == WN_OK &&
             wn_image_decode(&want, png, b, &limits, &err) == WN_OK && want.width == pp->width &&
             want.height == pp->height && wn_preprocess_rgb(pp, &img, rgb, &err) == WN_OK;

    for (size_t i = 0; ok && i < n; i++) ok = abs(rgb[i] - want.rgb[i]) <= 1;
    if (!ok) fprintf(stderr, "bench_image: the result is wrong: %s\n", err.text);
    wn_image_fini(&img);
    wn_image_fini(&want);
    free(jpeg);
    free(png);
    free(rgb);
    return ok;
}

int main(int argc, char **argv)
{
    long n = argc > 1 ? strtol(argv[1], NULL, 10) : 40;
    struct wn_preprocess pp;
    struct wn_err err = {0};
    unsigned long bytes = 0;
    uint8_t *jpeg = NULL;
    float *pixels = NULL;
    double *decode = NULL, *both = NULL;
    char host[64] = "?";
    int rc = 1;

    if (n < 1 || n > 100000) {
        fprintf(stderr, "usage: bench_image [repetitions]\n");
        return 2;
    }
    if (wn_preprocess_load(&pp, DIR "clip336.json", &err) != WN_OK) {
        fprintf(stderr, "bench_image: %s\n", err.text);
        return 1;
    }
    if (!verify(&pp)) return 1;
    jpeg = make_jpeg(&bytes);
    pixels = malloc((size_t)3 * pp.height * pp.width * sizeof(float));
    decode = malloc((size_t)n * sizeof(*decode));
    both = malloc((size_t)n * sizeof(*both));
    if (!jpeg || !pixels || !decode || !both) goto out;
    for (long i = -3; i < n; i++) { /* the first three warm up */
        struct wn_image img = {0};
        int64_t t0 = wn_now_us(), t1;
        if (wn_image_decode(&img, jpeg, bytes, &limits, &err) != WN_OK) goto out;
        t1 = wn_now_us();
        if (wn_preprocess_run(&pp, &img, pixels, &err) != WN_OK) goto out;
        if (i >= 0) {
            decode[i] = (double)(t1 - t0) / 1e3;
            both[i] = (double)(wn_now_us() - t0) / 1e3;
        }
        wn_image_fini(&img);
    }
    qsort(decode, (size_t)n, sizeof(*decode), wn_order_double);
    qsort(both, (size_t)n, sizeof(*both), wn_order_double);
    gethostname(host, sizeof(host) - 1);
    printf("bench,machine,shape,n,decode_min_ms,decode_p50_ms,all_min_ms,all_p50_ms,images_per_s,"
           "min_ratio,p50_ratio\n");
    printf("image,%s,jpeg %dx%d %lu bytes to %ux%u,%ld,%.2f,%.2f,%.2f,%.2f,%.1f,%.3f,%.3f\n", host,
           WIDTH, HEIGHT, bytes, pp.width, pp.height, n, decode[0], decode[n / 2], both[0],
           both[n / 2], 1e3 / both[n / 2], both[0] / decode[0], both[n / 2] / decode[n / 2]);
    rc = 0;
out:
    if (rc) fprintf(stderr, "bench_image: %s\n", err.text[0] ? err.text : "out of memory");
    free(jpeg);
    free(pixels);
    free(decode);
    free(both);
    return rc;
}
