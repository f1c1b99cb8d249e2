/* daemon/token_chances.h - the log-probabilities of one token as they go to the client: with the tokens' own bytes.
 * Owns: nothing. Threads: any. */
#ifndef WN_DAEMON_TOKEN_CHANCES_H
#define WN_DAEMON_TOKEN_CHANCES_H

#include "proto/codec.h"
#include "proto/step.h"

struct wn_tokenizer;

/* Packs a TokenLogprobs of the drawn token and the n likeliest (at most WN_STEP_TOP_MAX). Returns its bytes. */
size_t wn_token_chances_pack(const struct wn_tokenizer *tok, const struct wn_step_token *drawn,
                             const struct wn_step_top *top, uint32_t n, uint8_t out[WN_LOGPROBS_BYTES_MAX]);

#endif
