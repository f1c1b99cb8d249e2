/* shard/tokenizer_pre.c - normalizers and pre-tokenizers; see tokenizer_impl.h. */
#include <stdlib.h>

#include <utf8proc.h>

#include "shard/tokenizer_impl.h"
#include "base/utf8.h"

bool tok_is_space(uint32_t cp)
{
    return (cp >= 9 && cp <= 13) || cp == 0x20 || cp == 0x85 || cp == 0xA0 || cp == 0x1680 ||
           (cp >= 0x2000 && cp <= 0x200A) || cp == 0x2028 || cp == 0x2029 || cp == 0x202F || cp == 0x205F ||
           cp == 0x3000;
}

bool tok_is_word(uint32_t cp)
{
    switch (utf8proc_category((utf8proc_int32_t)cp)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
        return true;
    default:
        break;
    }
    /* joiners, and the circled and squared letters, which are alphabetic though their category says symbol */
    return cp == 0x200C || cp == 0x200D || (cp >= 0x24B6 && cp <= 0x24E9) || (cp >= 0x1F130 && cp <= 0x1F149) ||
           (cp >= 0x1F150 && cp <= 0x1F169) || (cp >= 0x1F170 && cp <= 0x1F189);
}

/* GPT-2 shows a byte as the character of the same number if that is printable; the others follow from U+0100. */
static bool byte_is_shown(uint32_t b)
{
    return (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || (b >= 0xAE && b <= 0xFF);
}

size_t tok_byte_char(uint8_t byte, char out[4])
{
    uint32_t hidden = 0;

    if (byte_is_shown(byte)) return wn_utf8_encode(byte, out);
    for (uint32_t b = 0; b < byte; b++) hidden += !byte_is_shown(b);
    return wn_utf8_encode(0x100 + hidden, out);
}

bool tok_char_byte(uint32_t cp, uint8_t *byte)
{
    *byte = (uint8_t)cp;
    if (cp < 0x100) return byte_is_shown(cp);
    cp -= 0x100;
    for (uint32_t b = 0; b < 0x100; b++) {
        if (byte_is_shown(b)) continue;
        *byte = (uint8_t)b;
        if (!cp--) return true;
    }
    return false;
}

/* memmem() for a needle of 1 to 64 bytes, that reads no further than the hit (else ThreadSanitizer is quadratic). */
static const char *search(const char *p, size_t n, const char *needle, size_t needle_n)
{
    const char *end = p + n;

    while ((size_t)(end - p) >= needle_n && (p = memchr(p, needle[0], (size_t)(end - p) - needle_n + 1)) != NULL) {
        if (memcmp(p, needle, needle_n) == 0) return p;
        p++;
    }
    return NULL;
}

wn_status tok_replace(struct tok_buf *out, const struct tok_norm *r, const char *p, size_t n, size_t max,
                      struct wn_err *err)
{
    size_t kept = 0, i = 0;
    wn_status rc;

    while (n - i >= r->from_n) {
        const char *hit = search(p + i, n - i, r->from, r->from_n);
        if (!hit) break;
        i = (size_t)(hit - p);
        if ((rc = tok_buf_add(out, p + kept, i - kept, max, err)) != WN_OK) return rc;
        if ((rc = tok_buf_add(out, r->to, r->to_n, max, err)) != WN_OK) return rc;
        i += r->from_n;
        kept = i;
    }
    return tok_buf_add(out, p + kept, n - kept, max, err);
}

static int combining_class(int32_t cp)
{
    return cp < 0x300 ? 0 : utf8proc_get_property(cp)->combining_class;
}

/* Puts n combining marks into canonical order: stable, by class. Counting keeps a text of marks alone linear. */
static void order_marks(int32_t *cps, int32_t *tmp, size_t n)
{
    size_t at[257] = {0};

    for (size_t i = 0; i < n; i++) at[combining_class(cps[i]) + 1]++;
    for (int c = 0; c < 256; c++) at[c + 1] += at[c];
    for (size_t i = 0; i < n; i++) tmp[at[combining_class(cps[i])]++] = cps[i];
    memcpy(cps, tmp, n * sizeof(*cps));
}

static wn_status decompose(struct tok_work *w, const char *p, size_t n, size_t *count, struct wn_err *err)
{
    size_t out = 0;
    wn_status rc;
    int len;

    for (size_t i = 0; i < n; i += (size_t)len) {
        uint32_t cp = 0;
        int boundary = 0;
        utf8proc_ssize_t made;
        len = wn_utf8_decode(p + i, n - i, &cp);
        WN_ASSERT(len > 0);
        rc = tok_grow((void **)&w->cps, &w->cps_cap, out + 8, sizeof(*w->cps), err);
        if (rc != WN_OK) return rc;
        made = utf8proc_decompose_char((utf8proc_int32_t)cp, w->cps + out, 8, UTF8PROC_DECOMPOSE | UTF8PROC_STABLE,
                                       &boundary);
        if (made < 0 || made > 8) return wn_fail(err, WN_EFORMAT, "NFC: U+%04X: %s", cp, utf8proc_errmsg(made));
        out += (size_t)made;
    }
    *count = out;
    return WN_OK;
}

/* Composes in place, and returns how many are left. utf8proc drops U+11A7 after a Hangul syllable, as if it were a
 * final consonant; nothing composes with what is before it, so each one begins a stretch of its own. */
static utf8proc_ssize_t compose(int32_t *cps, size_t n)
{
    utf8proc_ssize_t kept = 0;
    size_t start = 0;

    while (start < n) {
        size_t end = start + 1;
        utf8proc_ssize_t got;
        while (end < n && cps[end] != 0x11A7) end++;
        got = utf8proc_normalize_utf32(cps + start, (utf8proc_ssize_t)(end - start),
                                       UTF8PROC_COMPOSE | UTF8PROC_STABLE);
        if (got < 0) return got;
        memmove(cps + kept, cps + start, (size_t)got * sizeof(*cps));
        kept += got;
        start = end;
    }
    return kept;
}

static wn_status normalize_nfc(struct tok_work *w, struct tok_buf *out, const char *p, size_t n, struct wn_err *err)
{
    size_t count = 0, ascii = 0, start, i = 0;
    utf8proc_ssize_t composed;
    wn_status rc;

    while (ascii < n && (uint8_t)p[ascii] < 0x80) ascii++;
    if (ascii == n) return tok_buf_add(out, p, n, TOK_WORK_MAX, err);
    if ((rc = decompose(w, p, n, &count, err)) != WN_OK) return rc;
    if ((rc = tok_grow((void **)&w->cps2, &w->cps2_cap, count, sizeof(*w->cps2), err)) != WN_OK) return rc;
    while (i < count) {
        for (start = i; i < count && combining_class(w->cps[i]); i++) {}
        if (i - start > 1) order_marks(w->cps + start, w->cps2, i - start);
        while (i < count && !combining_class(w->cps[i])) i++;
    }
    composed = compose(w->cps, count);
    if (composed < 0) return wn_fail(err, WN_EFORMAT, "NFC: %s", utf8proc_errmsg(composed));
    for (utf8proc_ssize_t k = 0; k < composed; k++) {
        char c[4];
        size_t len = wn_utf8_encode((uint32_t)w->cps[k], c);
        if ((rc = tok_buf_add(out, c, len, TOK_WORK_MAX, err)) != WN_OK) return rc;
    }
    return WN_OK;
}

wn_status tok_normalize(const struct wn_tokenizer *t, struct tok_work *w, const char *in, size_t n,
                        struct wn_err *err)
{
    wn_status rc;

    w->norm.n = 0;
    if ((rc = tok_buf_add(&w->norm, in, n, TOK_WORK_MAX, err)) != WN_OK) return rc;
    for (uint32_t i = 0; i < t->norm_n; i++) {
        const struct tok_norm *step = &t->norm[i];
        struct tok_buf from = w->norm;

        w->norm = w->spare;
        w->spare = from;
        w->norm.n = 0;
        if (!from.n) continue;
        switch (step->kind) {
        case TOK_NORM_PREPEND:
            rc = tok_buf_add(&w->norm, step->to, step->to_n, TOK_WORK_MAX, err);
            if (rc == WN_OK) rc = tok_buf_add(&w->norm, from.p, from.n, TOK_WORK_MAX, err);
            break;
        case TOK_NORM_REPLACE:
            rc = tok_replace(&w->norm, step, from.p, from.n, TOK_WORK_MAX, err);
            break;
        case TOK_NORM_NFC:
            rc = normalize_nfc(w, &w->norm, from.p, from.n, err);
            break;
        }
        if (rc != WN_OK) return rc;
    }
    return WN_OK;
}

static wn_status emit_bytes(const struct wn_tokenizer *t, struct tok_work *w, const char *p, size_t n,
                            struct wn_err *err)
{
    wn_status rc;

    w->mapped.n = 0;
    for (size_t i = 0; i < n; i++) {
        char c[4];
        size_t len = tok_byte_char((uint8_t)p[i], c);
        if ((rc = tok_buf_add(&w->mapped, c, len, TOK_WORK_MAX, err)) != WN_OK) return rc;
    }
    return tok_bpe(t, w, w->mapped.p, w->mapped.n, err);
}

static wn_status pre_step(const struct wn_tokenizer *t, struct tok_work *w, uint32_t step, const char *p, size_t n,
                          bool at_start, struct wn_err *err);

/* Hands each match, and each stretch between matches, to the steps after `step`. */
static wn_status split_regex(const struct wn_tokenizer *t, struct tok_work *w, uint32_t step, const char *p, size_t n,
                             bool at_start, struct wn_err *err)
{
    const struct tok_pre *pre = &t->pre[step];
    size_t done = 0, from = 0, start = 0, end = 0;
    wn_status rc = WN_OK;
    int got = 1;

    while (rc == WN_OK && from <= n && (got = tok_regex_next(w, pre->regex, p, n, from, &start, &end)) > 0) {
        const size_t cut[] = {done, start, end};
        for (int k = 0; k < 2 && rc == WN_OK; k++) {
            size_t len = cut[k + 1] - cut[k];
            bool first = at_start && !cut[k];
            if (!len) continue;
            rc = pre->kind == TOK_PRE_BYTES ? emit_bytes(t, w, p + cut[k], len, err)
                                            : pre_step(t, w, step + 1, p + cut[k], len, first, err);
        }
        done = end;
        from = end;
        if (start == end) { /* an empty match: look on after the next character */
            uint32_t cp;
            from += from < n ? (size_t)wn_utf8_decode(p + from, n - from, &cp) : 1;
        }
    }
    if (rc != WN_OK) return rc;
    if (got < 0) return wn_fail(err, WN_ELIMIT, "the text is too much for the tokenizer's pattern (PCRE2: %d)", got);
    if (done == n) return WN_OK;
    return pre->kind == TOK_PRE_BYTES ? emit_bytes(t, w, p + done, n - done, err)
                                      : pre_step(t, w, step + 1, p + done, n - done, at_start && !done, err);
}

static wn_status pre_bytes(const struct wn_tokenizer *t, struct tok_work *w, uint32_t step, const char *p, size_t n,
                           bool at_start, struct wn_err *err)
{
    const struct tok_pre *pre = &t->pre[step];
    wn_status rc;

    if (pre->prefix_space && p[0] != ' ') {
        w->pre.n = 0;
        if ((rc = tok_buf_add(&w->pre, " ", 1, TOK_WORK_MAX, err)) != WN_OK) return rc;
        if ((rc = tok_buf_add(&w->pre, p, n, TOK_WORK_MAX, err)) != WN_OK) return rc;
        p = w->pre.p;
        n = w->pre.n;
    }
    return pre->regex ? split_regex(t, w, step, p, n, at_start, err) : emit_bytes(t, w, p, n, err);
}

static wn_status pre_meta(const struct wn_tokenizer *t, struct tok_work *w, const struct tok_pre *pre, const char *p,
                          size_t n, bool at_start, struct wn_err *err)
{
    struct tok_norm mark = {.kind = TOK_NORM_REPLACE, .from_n = 1, .to_n = pre->mark_n, .from = " "};
    bool marked = p[0] == ' ' || (n >= pre->mark_n && memcmp(p, pre->mark, pre->mark_n) == 0);
    size_t start = 0;
    wn_status rc;

    memcpy(mark.to, pre->mark, pre->mark_n);
    w->pre.n = 0;
    if (!marked && (pre->scheme == TOK_META_ALWAYS || (pre->scheme == TOK_META_FIRST && at_start))) {
        if ((rc = tok_buf_add(&w->pre, pre->mark, pre->mark_n, TOK_WORK_MAX, err)) != WN_OK) return rc;
    }
    if ((rc = tok_replace(&w->pre, &mark, p, n, TOK_WORK_MAX, err)) != WN_OK) return rc;
    p = w->pre.p;
    n = w->pre.n;
    while (pre->split && n - start > pre->mark_n) { /* each mark begins a piece */
        const char *hit = search(p + start + 1, n - start - 1, pre->mark, pre->mark_n);
        if (!hit) break;
        if ((rc = tok_bpe(t, w, p + start, (size_t)(hit - p) - start, err)) != WN_OK) return rc;
        start = (size_t)(hit - p);
    }
    return tok_bpe(t, w, p + start, n - start, err);
}

/* Recursion is as deep as there are steps, at most TOK_STEPS_MAX. */
static wn_status pre_step(const struct wn_tokenizer *t, struct tok_work *w, uint32_t step, const char *p, size_t n,
                          bool at_start, struct wn_err *err)
{
    if (step == t->pre_n) return tok_bpe(t, w, p, n, err);
    switch (t->pre[step].kind) {
    case TOK_PRE_SPLIT: return split_regex(t, w, step, p, n, at_start, err);
    case TOK_PRE_BYTES: return pre_bytes(t, w, step, p, n, at_start, err);
    case TOK_PRE_META: return pre_meta(t, w, &t->pre[step], p, n, at_start, err);
    }
    return wn_fail(err, WN_EINVAL, "pre-tokenizer step %u", step);
}

wn_status tok_pretokenize(const struct wn_tokenizer *t, struct tok_work *w, const char *p, size_t n, bool at_start,
                          struct wn_err *err)
{
    return n ? pre_step(t, w, 0, p, n, at_start, err) : WN_OK;
}
