/* tests/fuzz/fuzz_envelope.c - bytes of a control message: whatever parses is within its limits and packs again. */
#include <stdint.h>
#include <stdlib.h>

#include "proto/codec.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Wn__Envelope *env = NULL, *again = NULL;
    struct wn_err err = {0};
    uint8_t *packed = NULL;
    size_t bytes = 0;

    if (wn_codec_unpack(&env, data, size, &err) != WN_OK) return 0;
    WN_ASSERT(env->body_case != WN__ENVELOPE__BODY__NOT_SET);
    if (env->body_case == WN__ENVELOPE__BODY_SUBMIT) {
        (void)!wn_sampling_check(env->submit->sampling, &err);
        (void)!wn_pruning_check(env->submit->pruning, &err);
    }
    /* re-packed numbers may be longer than they came (a repeated field that was packed): only the limit may refuse */
    if (wn_codec_pack(&packed, &bytes, env, &err) == WN_OK) {
        WN_ASSERT(wn_codec_unpack(&again, packed, bytes, &err) == WN_OK);
        WN_ASSERT(again->body_case == env->body_case);
    } else {
        WN_ASSERT(err.code == WN_ELIMIT);
    }
    free(packed);
    wn_codec_free(again);
    wn_codec_free(env);
    return 0;
}
