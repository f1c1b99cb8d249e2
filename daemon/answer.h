/* daemon/answer.h - from token ids to the text that a client may see: detokenized as it streams, cut at stop
 * strings.
 *
 * Text that may be the beginning of a stop string is held back until the next tokens decide. What comes out
 * depends on the ids alone, so a replay that pushes the tokens of an earlier attempt is in the same state
 * afterwards.
 * Owns:    its buffers.
 * Threads: one at a time. */
#ifndef WN_DAEMON_ANSWER_H
#define WN_DAEMON_ANSWER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct wn_answer;
struct wn_tokenizer;

/* Stop strings are copied; empty ones are WN_EINVAL. The tokenizer is borrowed until destroy. */
WN_NODISCARD wn_status wn_answer_create(struct wn_answer **out, const struct wn_tokenizer *tok, char *const *stop,
                                        size_t stop_n, struct wn_err *err);
void wn_answer_destroy(struct wn_answer *a); /* NULL is fine */

/* Takes one token. *text is what may be shown now (valid until the next call, never NULL, maybe ""); *stopped:
 * a stop string was completed, and *text ends before it. */
WN_NODISCARD wn_status wn_answer_push(struct wn_answer *a, uint32_t id, const char **text, bool *stopped,
                                      struct wn_err *err);

/* The same for the last token: nothing is held back. */
WN_NODISCARD wn_status wn_answer_push_last(struct wn_answer *a, uint32_t id, const char **text, bool *stopped,
                                           struct wn_err *err);

/* The end without a token of text: *text is what was held back. */
WN_NODISCARD wn_status wn_answer_finish(struct wn_answer *a, const char **text, struct wn_err *err);

#endif
