/* shard/prompt.c - see prompt.h. */
#include "shard/prompt.h"

#define LITERAL(text) ((struct wn_text){(text), sizeof(text) - 1, WN_TEXT_TRUSTED})

static size_t count_id(const struct wn_tokens *t, uint32_t id)
{
    size_t n = 0;

    for (size_t i = 0; i < t->n; i++) n += t->ids[i] == id;
    return n;
}

wn_status wn_prompt_encode(const struct wn_prompt *p, const struct wn_tokenizer *tok, size_t tokens_max,
                           struct wn_tokens *out, struct wn_err *err)
{
    struct wn_text parts[2 * WN_PROMPT_IMAGES_MAX + 3];
    size_t n = 0, image_n = 0, found;
    const char *image = NULL;
    bool added = wn_tokenizer_is_added(tok, p->image_token);
    /* A placeholder that is not marked special would be found in a user's text: then look for nothing there. */
    bool guarded = !added || wn_tokenizer_is_special(tok, p->image_token);
    wn_status rc;

    if (p->images > WN_PROMPT_IMAGES_MAX)
        return wn_fail(err, WN_ELIMIT, "prompt: %u images, at most %d", p->images, WN_PROMPT_IMAGES_MAX);
    if (added) image = wn_tokenizer_text(tok, p->image_token, &image_n);
    if (p->images && !image)
        return wn_fail(err, WN_EUNSUPP, "the image token %u is not an added token of the tokenizer", p->image_token);
    parts[n++] = LITERAL("USER: ");
    for (uint32_t i = 0; i < p->images; i++) {
        parts[n++] = (struct wn_text){image, image_n, WN_TEXT_TRUSTED};
        parts[n++] = LITERAL("\n");
    }
    parts[n++] = (struct wn_text){p->question, p->question_bytes, guarded ? WN_TEXT_USER : WN_TEXT_PLAIN};
    parts[n++] = LITERAL(" ASSISTANT:");
    if ((rc = wn_tokenizer_encode(tok, parts, n, true, tokens_max, out, err)) != WN_OK) return rc;
    found = count_id(out, p->image_token);
    if (added && found != p->images)
        return wn_fail(err, WN_EUNSUPP, "the prompt has %zu image tokens for %u images", found, p->images);
    return WN_OK;
}
