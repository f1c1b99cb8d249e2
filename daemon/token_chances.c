/* daemon/token_chances.c - see token_chances.h. */
#include "daemon/token_chances.h"

#include "shard/tokenizer.h"

/* Longest: 21 chances of a head, an id, a number and a text. */
_Static_assert(21 * (3 + 6 + 5 + 2 + WN_TOKEN_TEXT_MAX) <= WN_LOGPROBS_BYTES_MAX, "one message holds them");
_Static_assert(WN_STEP_TOP_MAX == WN_LOGPROBS_MAX, "what clients may ask for is what steps carry");

static Wn__TokenChance chance(const struct wn_tokenizer *tok, uint32_t id, float logprob)
{
    Wn__TokenChance c = WN__TOKEN_CHANCE__INIT;
    size_t bytes = 0;
    const char *text = wn_tokenizer_bytes(tok, id, &bytes);

    if (!text || bytes == 0) text = wn_tokenizer_text(tok, id, &bytes); /* special ones stand for no text */
    c.id = id;
    c.logprob = logprob;
    if (text) {
        c.text.data = (uint8_t *)(uintptr_t)text; /* read only */
        c.text.len = bytes < WN_TOKEN_TEXT_MAX ? bytes : WN_TOKEN_TEXT_MAX;
    }
    return c;
}

size_t wn_token_chances_pack(const struct wn_tokenizer *tok, const struct wn_step_token *drawn,
                             const struct wn_step_top *top, uint32_t n, uint8_t out[WN_LOGPROBS_BYTES_MAX])
{
    Wn__TokenLogprobs t = WN__TOKEN_LOGPROBS__INIT;
    Wn__TokenChance chosen = chance(tok, drawn->id, drawn->logprob), list[WN_STEP_TOP_MAX], *refs[WN_STEP_TOP_MAX];

    for (uint32_t i = 0; i < n; i++) {
        list[i] = chance(tok, top[i].id, top[i].logprob);
        refs[i] = &list[i];
    }
    t.chosen = &chosen;
    t.top = refs;
    t.n_top = n;
    return wn__token_logprobs__pack(&t, out);
}
