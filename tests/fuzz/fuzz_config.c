/* tests/fuzz/fuzz_config.c - the text of a configuration file. */
#include <stdint.h>

#include "daemon/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct wn_config c;
    struct wn_err err = {0};

    wn_config_defaults(&c);
    if (wn_config_read_yaml(&c, "fuzz.yaml", data, size, &err) != WN_OK) WN_ASSERT(err.text[0]);
    return 0;
}
