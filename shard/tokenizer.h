/* shard/tokenizer.h - text to token ids as a Hugging Face tokenizer.json says, and the bytes of each token.
 *
 * Two families are read, everything else is refused by name:
 *   - Llama's BPE over characters with byte fallback (Prepend and Replace normalizers, or a Metaspace pre-tokenizer);
 *   - byte-level BPE (GPT-2, OPT, Qwen2), with GPT-2's pattern or a Split pattern of its own, and NFC if asked for.
 * Ids are those of the `tokenizers` library, but NFC also orders combining marks that are newer than its tables, and to
 * a byte-level tokenizer's pattern letters that are newer than PCRE2's tables (Unicode 14 in Debian 12) are none.
 * Text from a user cannot become a special token: see wn_text_trust.
 *
 * Owns:    all tables, from open to close; immutable, so any number of threads may share one tokenizer.
 * Fails:   WN_EIO, WN_EFORMAT, WN_EUNSUPP and WN_ELIMIT for the file; WN_EFORMAT (not UTF-8) and WN_ELIMIT for a
 *          text. The decoder is in shard/detok.h, the chat layout in shard/prompt.h. */
#ifndef WN_SHARD_TOKENIZER_H
#define WN_SHARD_TOKENIZER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

#define WN_TOKENIZER_FILE_MAX  ((size_t)64 << 20) /* bytes of tokenizer.json */
#define WN_TOKENIZER_VOCAB_MAX ((uint32_t)1 << 20) /* ids */
#define WN_TOKENIZER_TEXT_MAX  ((size_t)4 << 20)  /* bytes of one text */

struct wn_tokenizer; /* opaque */

/* Token ids. Zero-initialise; encode grows it; the caller frees it with wn_tokens_fini(). */
struct wn_tokens {
    uint32_t *ids;
    size_t n, cap;
};
void wn_tokens_fini(struct wn_tokens *t); /* leaves it empty and usable */

/* What the literal of an added token ("<image>", "</s>") in a text means. */
typedef enum wn_text_trust {
    WN_TEXT_PLAIN,   /* no literal is a token: all is ordinary text */
    WN_TEXT_USER,    /* literals of special tokens are ordinary text, those of other added tokens are tokens */
    WN_TEXT_TRUSTED, /* all literals are tokens: for text that we wrote ourselves */
} wn_text_trust;

/* A piece of a text. The text is tokenised as one, as if the pieces had been joined; a literal that lies across
 * pieces has the least trust of them. */
struct wn_text {
    const char *bytes; /* UTF-8, borrowed; NUL is a character like others */
    size_t bytes_n;
    wn_text_trust trust;
};

/* Success: *out is owned by the caller. Failure: *out is untouched. */
WN_NODISCARD wn_status wn_tokenizer_open(struct wn_tokenizer **out, const char *path, struct wn_err *err);
/* The same from the bytes of the file, which are borrowed during the call only. */
WN_NODISCARD wn_status wn_tokenizer_parse(struct wn_tokenizer **out, const void *json, size_t json_bytes,
                                          struct wn_err *err);
void wn_tokenizer_close(struct wn_tokenizer *tok); /* NULL is fine */

/* Replaces the ids in *out with those of the text. add_special: with what the file's post-processor puts around
 * it ("<s>"). WN_ELIMIT if that makes more than tokens_max ids. On failure *out holds fewer ids and stays valid. */
WN_NODISCARD wn_status wn_tokenizer_encode(const struct wn_tokenizer *tok, const struct wn_text *parts, size_t parts_n,
                                           bool add_special, size_t tokens_max, struct wn_tokens *out,
                                           struct wn_err *err);

/* Largest id + 1. There may be holes below it. */
uint32_t wn_tokenizer_size(const struct wn_tokenizer *tok);

/* The id of exactly this vocabulary entry or added token ("</s>"); false if there is none. */
bool wn_tokenizer_id(const struct wn_tokenizer *tok, const char *token, uint32_t *id);

/* The entry as the file spells it (not terminated); NULL for a hole. Borrowed from the tokenizer. */
const char *wn_tokenizer_text(const struct wn_tokenizer *tok, uint32_t id, size_t *bytes_n);

/* The bytes that the token stands for in decoded text: "\u2581a" is " a", "<0x0A>" is one byte. NULL for a hole. */
const char *wn_tokenizer_bytes(const struct wn_tokenizer *tok, uint32_t id, size_t *bytes_n);

bool wn_tokenizer_is_added(const struct wn_tokenizer *tok, uint32_t id);
bool wn_tokenizer_is_special(const struct wn_tokenizer *tok, uint32_t id);

#endif
