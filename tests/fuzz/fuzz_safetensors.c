/* tests/fuzz/fuzz_safetensors.c - headers of safetensors files. Input: size of the data area (2
 * bytes, little-endian), then the JSON. Whatever is accepted must lie inside the data area, and
 * fill it. */
#include <stdint.h>
#include <string.h>

#include "shard/weights.h"

struct seen {
    uint64_t data_bytes, sum;
};

static wn_status see(void *ctx, const char *name, const char *type, const struct wn_tensor *t,
                     uint64_t offset, struct wn_err *err)
{
    struct seen *s = ctx;
    uint64_t elements = 1;

    (void)err;
    WN_ASSERT(name && type);
    WN_ASSERT(offset <= s->data_bytes && t->bytes <= s->data_bytes - offset);
    s->sum += t->bytes;
    if (t->dims_n > WN_DIMS_MAX) return WN_OK;
    for (uint32_t i = 0; i < t->dims_n; i++)
        elements *= t->dims[i]; /* bytes is small, so this is, or it is 0 */
    if (!strcmp(type, "F32") || !strcmp(type, "BF16") || !strcmp(type, "F16"))
        WN_ASSERT(elements * wn_dtype_bytes(t->dtype) == t->bytes);
    return WN_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct seen seen = {0};
    struct wn_err err = {0};
    wn_status rc;

    if (size < 2) return 0;
    seen.data_bytes = data[0] | (uint64_t)data[1] << 8;
    rc = wn_safetensors_parse((const char *)data + 2, size - 2, seen.data_bytes, see, &seen, &err);
    WN_ASSERT(rc == WN_OK ? seen.sum == seen.data_bytes : err.text[0] != '\0');
    return 0;
}
