/* shard/prompt.h - the chat layout of LLaVA-1.5, as token ids.
 *
 *     USER: <image>\n{question} ASSISTANT:
 *
 * with one "<image>\n" for each image, all before the question. Each image is one placeholder id; the leader puts as
 * many rows there as the vision worker sent. The ids equal those of the Hugging Face processor for the same string,
 * unless the question spells special tokens: those stay ordinary text, so no user can add an image or end the turn.
 *
 * Threads: any.   Fails: WN_EUNSUPP (the tokenizer has no such image token), WN_EFORMAT (the question is not UTF-8),
 * WN_ELIMIT (too many images or tokens). */
#ifndef WN_SHARD_PROMPT_H
#define WN_SHARD_PROMPT_H

#include "shard/tokenizer.h"

#define WN_PROMPT_IMAGES_MAX 64

struct wn_prompt {
    const char *question; /* UTF-8, borrowed */
    size_t question_bytes;
    uint32_t images;      /* how many; 0 for a question without a picture */
    uint32_t image_token; /* the placeholder: image_token_index of config.json; set it with no image too */
};

/* Replaces the ids in *out by those of the prompt, with the tokenizer's own prefix ("<s>"). */
WN_NODISCARD wn_status wn_prompt_encode(const struct wn_prompt *p, const struct wn_tokenizer *tok, size_t tokens_max,
                                        struct wn_tokens *out, struct wn_err *err);

#endif
