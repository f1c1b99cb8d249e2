/* client/chat_parts.h - what an answer in one piece and one in pieces have in common: inside of chat_answer.c and
 * chat_stream.c. */
#ifndef WN_CLIENT_CHAT_PARTS_H
#define WN_CLIENT_CHAT_PARTS_H

#include "client/chat.h"

#define CHAT_ID_PREFIX "chatcmpl-"
#define CHAT_ID_MAX    (sizeof(CHAT_ID_PREFIX) + WINNOW_JOB_ID_MAX)

/* Tokens and bytes are added up; the rest is the later one's. */
void chat_usage_add(struct winnow_usage *sum, const struct winnow_usage *u);

/* NULL without memory. */
json_t *chat_usage_json(const struct winnow_usage *u, bool costs);
json_t *chat_scores_json(const char *content); /* the logprobs of a choice; content NULL: null */

#endif
