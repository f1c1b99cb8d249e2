/* tests/fuzz/fuzz_tokenizer.c - a tokenizer.json, and after its first NUL a text: parse, encode, decode, stream.
 * What must hold: nothing is read or written outside its bounds, no user text makes a special token that the file's
 * unk_token is not, and a stream tells the same as decoding at once. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "shard/detok.h"
#include "shard/tokenizer.h"

#define TOKENS_MAX 4096

static void check_stream(const struct wn_tokenizer *tok, const struct wn_tokens *t, const char *all, size_t all_n)
{
    struct wn_detok d;
    size_t used = 0, len = 0;
    const char *text;

    wn_detok_init(&d, tok, true);
    for (size_t i = 0; i <= t->n; i++) {
        wn_status rc = i < t->n ? wn_detok_feed(&d, t->ids + i, 1, &text, &len, NULL)
                                : wn_detok_flush(&d, &text, &len, NULL);
        WN_ASSERT(rc == WN_OK);
        WN_ASSERT(used + len <= all_n && (!len || memcmp(all + used, text, len) == 0));
        used += len;
    }
    WN_ASSERT(used == all_n);
    wn_detok_fini(&d);
}

static void exercise(const struct wn_tokenizer *tok, const char *text, size_t n)
{
    /* two parts, so that literals lie across them too; the cut may be inside a character */
    struct wn_text parts[] = {{text, n / 2, WN_TEXT_TRUSTED}, {text + n / 2, n - n / 2, WN_TEXT_TRUSTED}};
    struct wn_tokens out = {0};

    for (int trust = WN_TEXT_PLAIN; trust <= WN_TEXT_TRUSTED; trust++) {
        char *all = NULL;
        size_t all_n = 0;
        parts[1].trust = (wn_text_trust)trust;
        if (wn_tokenizer_encode(tok, parts, 2, trust & 1, TOKENS_MAX, &out, NULL) != WN_OK) continue;
        for (size_t i = 0; i < out.n; i++) WN_ASSERT(out.ids[i] < wn_tokenizer_size(tok));
        if (wn_tokenizer_decode(tok, out.ids, out.n, true, &all, &all_n, NULL) != WN_OK) continue;
        check_stream(tok, &out, all, all_n);
        free(all);
    }
    wn_tokens_fini(&out);
}

/* User text alone, with no prefix: special tokens can only come from unk_token, which is one id, or be bytes. */
static void check_trust(const struct wn_tokenizer *tok, const char *text, size_t n)
{
    struct wn_text part = {text, n, WN_TEXT_USER};
    struct wn_tokens out = {0};
    uint32_t unk = UINT32_MAX;

    if (wn_tokenizer_encode(tok, &part, 1, false, TOKENS_MAX, &out, NULL) != WN_OK) out.n = 0;
    for (size_t i = 0; i < out.n; i++) {
        size_t len = 0;
        const char *name = wn_tokenizer_text(tok, out.ids[i], &len);
        if (!wn_tokenizer_is_special(tok, out.ids[i])) continue;
        if (len == 6 && memcmp(name, "<0x", 3) == 0) continue;
        WN_ASSERT(unk == UINT32_MAX || unk == out.ids[i]);
        unk = out.ids[i];
    }
    wn_tokens_fini(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *nul = size ? memchr(data, 0, size) : NULL;
    size_t json_n = nul ? (size_t)(nul - data) : size, n = nul ? size - json_n - 1 : 0;
    const char *text = nul ? (const char *)nul + 1 : "a <s> b";
    struct wn_tokenizer *tok = NULL;
    struct wn_err err = {0};

    if (!nul) n = 7;
    if (wn_tokenizer_parse(&tok, data, json_n, &err) != WN_OK) return 0;
    exercise(tok, text, n);
    check_trust(tok, text, n);
    wn_tokenizer_close(tok);
    return 0;
}
