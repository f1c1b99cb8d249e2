/* tests/fuzz/fuzz_preprocess.c - any bytes as preprocessor_config.json; what is accepted must be usable. */
#include <math.h>
#include <stdlib.h>

#include "shard/preprocess.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t rgb[5 * 3 * 3];
    const struct wn_image img = {.rgb = rgb, .width = 5, .height = 3};
    struct wn_preprocess pp;
    struct wn_err err = {0};
    uint8_t *out;

    for (size_t i = 0; i < sizeof(rgb); i++) rgb[i] = (uint8_t)(i * 37);
    if (wn_preprocess_parse(&pp, (const char *)data, size, &err) != WN_OK) {
        WN_ASSERT(err.code != WN_OK && err.text[0]);
        return 0;
    }
    WN_ASSERT(pp.height >= 1 && pp.height <= WN_PREPROCESS_SIDE_MAX);
    WN_ASSERT(pp.width >= 1 && pp.width <= WN_PREPROCESS_SIDE_MAX);
    for (int c = 0; c < 3; c++)
        for (int v = 0; v < 256; v++) WN_ASSERT(isfinite(pp.value[c][v]));
    if (pp.height > 512 || pp.width > 512) return 0;
    out = malloc((size_t)3 * pp.height * pp.width);
    WN_ASSERT(out);
    WN_ASSERT(wn_preprocess_rgb(&pp, &img, out, &err) == WN_OK);
    free(out);
    return 0;
}
