/* tests/fuzz/fuzz_step.c - the step record decoder; what it accepts must encode to the same bytes. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proto/step.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct wn_step_limits limits = {.rows_max = 32,
                                                 .seqs_max = 4,
                                                 .pages_max = 64,
                                                 .table_max = 64,
                                                 .features_max = 3,
                                                 .page_tokens = 4,
                                                 .vocab = 100,
                                                 .positions_max = 1000};
    struct wn_step_record r;
    uint8_t *again = malloc(wn_step_bytes_max(&limits));

    if (!again || wn_step_record_init(&r, &limits, NULL) != WN_OK) abort();
    if (wn_step_decode(&r, &limits, data, size, NULL) == WN_OK) {
        const size_t n = wn_step_encode(&r, again);
        /* all but the 16 reserved bytes of the header and the bits of a NaN */
        if (n != size || memcmp(again, data, 48) != 0) abort();
    }
    wn_step_record_fini(&r);
    free(again);
    return 0;
}
