/* shard/tokenizer_impl.h - what the tokenizer's own files share; nobody else includes it.
 *
 *   tokenizer_json.c   reads tokenizer.json; tokenizer_model.c its vocabulary, merges and added tokens
 *   tokenizer_vocab.c  strings, tables of tokens and merges, search for added tokens
 *   tokenizer_pre.c    normalizers and pre-tokenizers: text to pieces
 *   tokenizer_regex.c  the Split pattern, from Oniguruma's dialect to PCRE2's
 *   tokenizer_bpe.c    a piece to ids
 *   tokenizer.c        the public functions; cuts a text at its added tokens */
#ifndef WN_SHARD_TOKENIZER_IMPL_H
#define WN_SHARD_TOKENIZER_IMPL_H

#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "shard/tokenizer.h"

#define TOK_NONE         UINT32_MAX
#define TOK_STEPS_MAX    8    /* normalizers, pre-tokenizers */
#define TOK_AFFIX_MAX    16   /* ids that the post-processor puts before or after */
#define TOK_LITERAL_MAX  64   /* bytes of a normalizer's pattern or content */
#define TOK_ADDED_MAX    65536
#define TOK_ADDED_LEN_MAX 1024 /* bytes of an added token */
#define TOK_PATTERN_MAX  4096 /* bytes of a Split pattern */
#define TOK_STORE_MAX    ((size_t)512 << 20)
#define TOK_WORK_MAX     ((size_t)256 << 20) /* a text after the normalizers */

/* Growable bytes. */
struct tok_buf {
    char *p;
    size_t n, cap;
};
WN_NODISCARD wn_status tok_buf_add(struct tok_buf *b, const char *p, size_t n, size_t max, struct wn_err *err);
/* Makes *p hold at least `want` elements; doubles, so that adding one by one stays linear. */
WN_NODISCARD wn_status tok_grow(void **p, size_t *cap, size_t want, size_t elem, struct wn_err *err);

/* A range of the string store. */
struct tok_str {
    uint32_t off, len;
};

enum tok_entry_flags {
    TOK_PRESENT = 1,
    TOK_MODEL = 2,   /* in the model's vocabulary: BPE may make it */
    TOK_ADDED = 4,
    TOK_SPECIAL = 8, /* added and special: BPE must not make it */
    TOK_BYTE = 16,   /* "<0x0A>" under a byte-fallback decoder: `bytes` is one byte */
};

struct tok_entry {
    struct tok_str text, bytes; /* as spelt; as decoded */
    uint32_t flags;
};

struct tok_merge { /* one slot; empty if rank == TOK_NONE */
    uint64_t pair;   /* left id << 32 | right id */
    uint32_t rank, id;
};

enum tok_added_flags { TOK_LSTRIP = 1, TOK_RSTRIP = 2, TOK_SINGLE_WORD = 4, TOK_NORMALIZED = 8 };
struct tok_added {
    struct tok_str text; /* for tokens with TOK_NORMALIZED: after the normalizers */
    uint32_t id, flags;
};
struct tok_matcher { /* sorted by text */
    struct tok_added *v;
    size_t n;
};

typedef enum tok_norm_kind { TOK_NORM_PREPEND, TOK_NORM_REPLACE, TOK_NORM_NFC } tok_norm_kind;
struct tok_norm {
    tok_norm_kind kind;
    uint32_t from_n, to_n;
    char from[TOK_LITERAL_MAX], to[TOK_LITERAL_MAX];
};

typedef enum tok_pre_kind { TOK_PRE_SPLIT, TOK_PRE_BYTES, TOK_PRE_META } tok_pre_kind;
typedef enum tok_meta { TOK_META_NEVER, TOK_META_FIRST, TOK_META_ALWAYS } tok_meta;
struct tok_pre {
    tok_pre_kind kind;
    pcre2_code *regex;  /* SPLIT; BYTES: GPT-2's pattern, or NULL */
    bool prefix_space;  /* BYTES */
    tok_meta scheme;    /* META */
    bool split;
    uint32_t mark_n;
    char mark[4];       /* the character that stands for a space */
};

typedef enum tok_dec_kind { TOK_DEC_NONE, TOK_DEC_BYTES, TOK_DEC_CHAIN, TOK_DEC_META } tok_dec_kind;
struct tok_dec {
    tok_dec_kind kind;
    struct tok_norm replace[TOK_STEPS_MAX];
    uint32_t replace_n;
    bool byte_fallback;
    bool strip_first;         /* META: marks in the first token vanish */
    char mark[4], strip_char; /* META; CHAIN */
    uint32_t mark_n, strip;   /* CHAIN: how many leading strip_char go */
};

struct wn_tokenizer {
    struct tok_buf store;     /* all strings */
    struct tok_entry *entry;  /* [entry_n], by id */
    size_t entry_n, entry_cap;
    uint32_t *slot;           /* [slot_mask + 1]: id + 1 of model tokens, by hash of the text */
    uint32_t slot_mask;
    struct tok_merge *merge;  /* [merge_mask + 1] */
    uint32_t merge_mask;
    uint32_t char_id[512];    /* of the first characters, TOK_NONE if not in the vocabulary */
    uint32_t byte_id[256];    /* "<0x00>"... */
    uint32_t unk;             /* TOK_NONE: characters that are not there vanish */
    bool fuse_unk, byte_fallback, ignore_merges;
    struct tok_norm norm[TOK_STEPS_MAX];
    uint32_t norm_n;
    struct tok_pre pre[TOK_STEPS_MAX];
    uint32_t pre_n;
    struct tok_dec dec;
    struct tok_matcher raw, normalized; /* added tokens searched before and after the normalizers */
    uint32_t prefix[TOK_AFFIX_MAX], suffix[TOK_AFFIX_MAX];
    uint32_t prefix_n, suffix_n;
};

struct tok_symbol {
    uint32_t id; /* TOK_NONE: merged into its left neighbour */
    int32_t prev, next;
};
struct tok_cand {
    uint64_t order; /* rank << 32 | position */
    uint32_t id;
};

/* Scratch of one encode call. */
struct tok_work {
    struct tok_buf norm, spare; /* the segment in hand, and the other side of a normalizer */
    struct tok_buf pre, mapped; /* with a prefixed space or marks; bytes as characters */
    int32_t *cps, *cps2;        /* NFC */
    size_t cps_cap, cps2_cap;
    struct tok_symbol *sym;
    size_t sym_cap;
    struct tok_cand *heap;
    size_t heap_cap;
    pcre2_match_data *match;
    pcre2_match_context *match_ctx;
    struct wn_tokens *out;
    size_t tokens_max;
};
void tok_work_fini(struct tok_work *w);
WN_NODISCARD wn_status tok_emit(struct tok_work *w, uint32_t id, struct wn_err *err);

/* tokenizer_vocab.c */
WN_NODISCARD wn_status tok_store_add(struct wn_tokenizer *t, const char *p, size_t n, struct tok_str *out,
                                     struct wn_err *err);
const char *tok_at(const struct wn_tokenizer *t, struct tok_str s);
uint32_t tok_find(const struct wn_tokenizer *t, const char *p, size_t n); /* model tokens only; TOK_NONE */
WN_NODISCARD wn_status tok_slots_build(struct wn_tokenizer *t, struct wn_err *err);
WN_NODISCARD wn_status tok_merges_init(struct wn_tokenizer *t, size_t merges, struct wn_err *err);
void tok_merges_put(struct wn_tokenizer *t, uint32_t left, uint32_t right, uint32_t rank, uint32_t id);
const struct tok_merge *tok_merges_find(const struct wn_tokenizer *t, uint32_t left, uint32_t right);
void tok_matcher_sort(const struct wn_tokenizer *t, struct tok_matcher *m);
/* The longest added token that starts at p, or NULL. */
const struct tok_added *tok_matcher_at(const struct wn_tokenizer *t, const struct tok_matcher *m, const char *p,
                                       size_t n);

/* tokenizer_pre.c. Normalises `in` into w->norm. */
WN_NODISCARD wn_status tok_normalize(const struct wn_tokenizer *t, struct tok_work *w, const char *in, size_t n,
                                     struct wn_err *err);
/* Cuts a segment into pieces and emits the ids of each. at_start: the segment begins the text. */
WN_NODISCARD wn_status tok_pretokenize(const struct wn_tokenizer *t, struct tok_work *w, const char *p, size_t n,
                                       bool at_start, struct wn_err *err);
WN_NODISCARD wn_status tok_replace(struct tok_buf *out, const struct tok_norm *r, const char *p, size_t n, size_t max,
                                   struct wn_err *err);
size_t tok_byte_char(uint8_t byte, char out[4]);   /* GPT-2's printable character for a byte */
bool tok_char_byte(uint32_t cp, uint8_t *byte);    /* and back; false if cp is none of the 256 */
bool tok_is_space(uint32_t cp);                    /* Unicode White_Space */
bool tok_is_word(uint32_t cp);                     /* letter, mark, digit, connector, joiner */

/* tokenizer_regex.c */
extern const char tok_gpt2_pattern[];
WN_NODISCARD wn_status tok_regex_compile(pcre2_code **out, const char *pattern, size_t n, struct wn_err *err);
/* Finds the next match at or after `from`: 1 found, 0 none; negative: PCRE2's error. */
int tok_regex_next(struct tok_work *w, const pcre2_code *re, const char *p, size_t n, size_t from, size_t *start,
                   size_t *end);

/* tokenizer_bpe.c */
WN_NODISCARD wn_status tok_bpe(const struct wn_tokenizer *t, struct tok_work *w, const char *p, size_t n,
                               struct wn_err *err);

#endif
