/* shard/tokenizer_regex.c - a Split pattern, translated and compiled; see tokenizer_impl.h.
 *
 * tokenizer.json holds patterns for Oniguruma. Most of what such patterns use means the same to PCRE2. What does
 * not is rewritten (\s, which PCRE2 lets match U+180E) or refused by name, so that no pattern is misread. */
#include <stdlib.h>

#include "shard/tokenizer_impl.h"

#define SPACES       "\\t-\\r\\x{85}\\p{Z}" /* Unicode's White_Space, as the inside of a class */
#define TRANSLATED_MAX (TOK_PATTERN_MAX * (sizeof(SPACES) + 2))

const char tok_gpt2_pattern[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

struct translation {
    const char *p;
    size_t n, i;
    bool in_class;
    struct tok_buf out;
    struct wn_err *err;
};

static wn_status put(struct translation *tr, const char *p, size_t n)
{
    return tok_buf_add(&tr->out, p, n, TRANSLATED_MAX, tr->err);
}

static wn_status refuse(const struct translation *tr, const char *what)
{
    return wn_fail(tr->err, WN_EUNSUPP, "regex: %s at byte %zu is not supported", what, tr->i);
}

static bool next_is(const struct translation *tr, size_t ahead, char c)
{
    return tr->n - tr->i > ahead && tr->p[tr->i + ahead] == c;
}

/* \p{L}: a property goes over whole, so that its braces are not taken for a repeat. */
static wn_status put_property(struct translation *tr)
{
    size_t left = tr->n - tr->i, len = 3;

    if (!next_is(tr, 2, '{')) return refuse(tr, "\\p without {");
    while (len < left && len < 64 && tr->p[tr->i + len] != '}') len++;
    if (!next_is(tr, len, '}')) return refuse(tr, "\\p{ without }");
    tr->i += len + 1;
    return put(tr, tr->p + tr->i - len - 1, len + 1);
}

static wn_status put_escape(struct translation *tr)
{
    char c = tr->n - tr->i > 1 ? tr->p[tr->i + 1] : '\0';
    const char *text = NULL;
    wn_status rc;

    if (c == 'p' || c == 'P') return put_property(tr);
    if (c == 's') text = tr->in_class ? SPACES : "[" SPACES "]";
    if (c == 'S' && !tr->in_class) text = "[^" SPACES "]";
    if (text) {
        rc = put(tr, text, strlen(text));
    } else if (c && (strchr("dDrntf", c) || (c > ' ' && c < 127 && strchr("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", c)))) {
        rc = put(tr, tr->p + tr->i, 2);
    } else {
        char name[] = {'\\', c > ' ' && c < 127 ? c : '?', '\0'};
        rc = refuse(tr, name);
    }
    tr->i += 2;
    return rc;
}

static wn_status put_group(struct translation *tr)
{
    if (next_is(tr, 1, '*')) return refuse(tr, "(*");
    if (next_is(tr, 1, '?')) {
        bool plain = next_is(tr, 2, ':') || next_is(tr, 2, '=') || next_is(tr, 2, '!') || next_is(tr, 2, '>');
        bool behind = next_is(tr, 2, '<') && (next_is(tr, 3, '=') || next_is(tr, 3, '!'));
        bool fold = next_is(tr, 2, 'i') && next_is(tr, 3, ':');
        size_t len = plain ? 3 : 4;
        if (!plain && !behind && !fold) return refuse(tr, "this kind of group");
        tr->i += len;
        return put(tr, tr->p + tr->i - len, len);
    }
    tr->i++;
    return put(tr, "(", 1);
}

static wn_status translate_one(struct translation *tr)
{
    char c = tr->p[tr->i];

    if (c == '\0') return refuse(tr, "NUL");
    if (c == '\\') return put_escape(tr);
    if (tr->in_class) {
        if (c == '[') return refuse(tr, "a class in a class");
        if (c == '&' && next_is(tr, 1, '&')) return refuse(tr, "&&");
        if (c == ']') tr->in_class = false;
    } else if (c == '[') {
        size_t first = next_is(tr, 1, '^') ? 2 : 1;
        if (next_is(tr, first, ']')) return refuse(tr, "[]");
        tr->in_class = true;
        tr->i += first;
        return put(tr, first == 2 ? "[^" : "[", first);
    } else {
        if (c == '(') return put_group(tr);
        if (c == '^' || c == '$') return refuse(tr, "a line anchor");
        if (c == '{' && next_is(tr, 1, ',')) return refuse(tr, "{,");
        if (c == '}' && next_is(tr, 1, '+')) return refuse(tr, "}+");
    }
    tr->i++;
    return put(tr, &c, 1);
}

static wn_status compile(pcre2_code **out, const char *p, size_t n, struct wn_err *err)
{
    int code = 0;
    PCRE2_SIZE at = 0;
    PCRE2_UCHAR text[120] = "";
    pcre2_code *re = pcre2_compile((PCRE2_SPTR)p, n, PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &code, &at,
                                   NULL);

    if (!re) {
        pcre2_get_error_message(code, text, sizeof(text));
        return wn_fail(err, WN_EFORMAT, "regex: %s (at byte %zu of its translation)", (const char *)text, at);
    }
    (void)pcre2_jit_compile(re, PCRE2_JIT_COMPLETE); /* where there is no JIT, matching interprets */
    *out = re;
    return WN_OK;
}

wn_status tok_regex_compile(pcre2_code **out, const char *pattern, size_t n, struct wn_err *err)
{
    struct translation tr = {.p = pattern, .n = n, .err = err};
    wn_status rc = WN_OK;

    if (n > TOK_PATTERN_MAX) return wn_fail(err, WN_ELIMIT, "regex: %zu bytes, at most %d", n, TOK_PATTERN_MAX);
    if (!n) return wn_fail(err, WN_EFORMAT, "regex: empty");
    while (rc == WN_OK && tr.i < n) rc = translate_one(&tr);
    if (rc == WN_OK) rc = compile(out, tr.out.p, tr.out.n, err);
    free(tr.out.p);
    return rc;
}

int tok_regex_next(struct tok_work *w, const pcre2_code *re, const char *p, size_t n, size_t from, size_t *start,
                   size_t *end)
{
    /* Enough for patterns that backtrack once over the longest run, not for ones that explode. */
    size_t limit = 100000 + 16 * n;
    const PCRE2_SIZE *span;
    int rc;

    if (!w->match) w->match = pcre2_match_data_create(1, NULL);
    if (!w->match_ctx) w->match_ctx = pcre2_match_context_create(NULL);
    if (!w->match || !w->match_ctx) return PCRE2_ERROR_NOMEMORY;
    pcre2_set_match_limit(w->match_ctx, limit > UINT32_MAX ? UINT32_MAX : (uint32_t)limit);
    pcre2_set_heap_limit(w->match_ctx, 64 * 1024); /* KiB */
    /* the text was checked when it came in; checking it again at each match would be quadratic */
    rc = pcre2_match(re, (PCRE2_SPTR)p, n, from, PCRE2_NO_UTF_CHECK, w->match, w->match_ctx);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(re, (PCRE2_SPTR)p, n, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, w->match, w->match_ctx);
    if (rc == PCRE2_ERROR_NOMATCH) return 0;
    if (rc < 0) return rc;
    span = pcre2_get_ovector_pointer(w->match);
    *start = span[0];
    *end = span[1];
    return 1;
}
