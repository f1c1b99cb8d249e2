/* shard/tokenizer_read.h - what the two readers of tokenizer.json share; nobody else includes it. */
#ifndef WN_SHARD_TOKENIZER_READ_H
#define WN_SHARD_TOKENIZER_READ_H

#include <jansson.h>

#include "shard/tokenizer_impl.h"

bool tok_json_bool(const json_t *o, const char *key, bool preset);
const char *tok_json_text(const json_t *o, const char *key); /* "" if there is no such string */

/* tokenizer_model.c: vocabulary, merges and added tokens. The normalizer and the decoder have been read. */
WN_NODISCARD wn_status tok_read_model(struct wn_tokenizer *t, const json_t *model, const json_t *added,
                                      struct wn_err *err);

#endif
