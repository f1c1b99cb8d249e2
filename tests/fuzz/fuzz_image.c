/* tests/fuzz/fuzz_image.c - any bytes through the decoder and then the preprocessing, under small
 * limits. */
#include <stdlib.h>
#include <string.h>

#include "shard/image.h"
#include "shard/preprocess.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct wn_image_limits limits = {
    .bytes_max = 1 << 18, .pixels_max = 1 << 15, .side_max = 2048};

static const char *const configs[] = {
    "{\"size\":24,\"crop_size\":{\"height\":28,\"width\":20}}",
    "{\"do_resize\":false,\"crop_size\":{\"height\":9,\"width\":31}}",
    "{\"do_center_crop\":false,\"size\":{\"height\":5,\"width\":33},\"resample\":2}",
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct wn_image img = {0};
    struct wn_err err = {0};

    if (wn_image_decode(&img, data, size, &limits, &err) != WN_OK) {
        WN_ASSERT(err.code != WN_OK && err.text[0] && !img.rgb);
        return 0;
    }
    WN_ASSERT(img.rgb && img.width && img.height && img.width <= limits.side_max &&
              img.height <= limits.side_max &&
              (uint64_t)img.width * img.height <= limits.pixels_max);
    for (size_t i = 0; i < sizeof(configs) / sizeof(configs[0]); i++) {
        struct wn_preprocess pp;
        float *pixels;
        wn_status rc = wn_preprocess_parse(&pp, configs[i], strlen(configs[i]), &err);
        WN_ASSERT(rc == WN_OK);
        pixels = malloc((size_t)3 * pp.height * pp.width * sizeof(float));
        WN_ASSERT(pixels);
        rc = wn_preprocess_run(&pp, &img, pixels, &err);
        WN_ASSERT(rc == WN_OK);
        free(pixels);
    }
    wn_image_fini(&img);
    return 0;
}
