/* tests/fuzz/fuzz_step.c - the step record decoder; what it accepts must encode to the same bytes. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "tests/step_limits.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct wn_step_record r;
    uint8_t *again = malloc(wn_step_bytes_max(&step_limits));

    if (!again || wn_step_record_init(&r, &step_limits, NULL) != WN_OK) abort();
    if (wn_step_decode(&r, &step_limits, data, size, NULL) == WN_OK) {
        const size_t n = wn_step_encode(&r, again);
        /* all but the 12 reserved bytes of the header and the bits of a NaN */
        if (n != size || memcmp(again, data, 52) != 0) abort();
    }
    wn_step_record_fini(&r);
    free(again);
    return 0;
}
