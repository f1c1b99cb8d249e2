/* shard/tokenizer.c - the public functions, and the cutting of a text at its added tokens; see tokenizer.h. */
#include "shard/tokenizer.h"

#include <stdlib.h>

#include "shard/tokenizer_impl.h"
#include "base/utf8.h"

void wn_tokens_fini(struct wn_tokens *t)
{
    free(t->ids);
    *t = (struct wn_tokens){0};
}

uint32_t wn_tokenizer_size(const struct wn_tokenizer *tok)
{
    return (uint32_t)tok->entry_n;
}

bool wn_tokenizer_id(const struct wn_tokenizer *tok, const char *token, uint32_t *id)
{
    size_t n = strlen(token);
    uint32_t found = tok_find(tok, token, n);

    for (size_t i = 0; i < tok->entry_n && found == TOK_NONE; i++) {
        const struct tok_entry *e = &tok->entry[i];
        bool added = (e->flags & TOK_ADDED) && e->text.len == n && memcmp(tok_at(tok, e->text), token, n) == 0;
        if (added) found = (uint32_t)i;
    }
    if (found != TOK_NONE) *id = found;
    return found != TOK_NONE;
}

static const struct tok_entry *entry_of(const struct wn_tokenizer *tok, uint32_t id)
{
    return id < tok->entry_n && tok->entry[id].flags & TOK_PRESENT ? &tok->entry[id] : NULL;
}

const char *wn_tokenizer_text(const struct wn_tokenizer *tok, uint32_t id, size_t *bytes_n)
{
    const struct tok_entry *e = entry_of(tok, id);

    *bytes_n = e ? e->text.len : 0;
    return e ? tok_at(tok, e->text) : NULL;
}

const char *wn_tokenizer_bytes(const struct wn_tokenizer *tok, uint32_t id, size_t *bytes_n)
{
    const struct tok_entry *e = entry_of(tok, id);

    *bytes_n = e ? e->bytes.len : 0;
    return e ? tok_at(tok, e->bytes) : NULL;
}

bool wn_tokenizer_is_added(const struct wn_tokenizer *tok, uint32_t id)
{
    const struct tok_entry *e = entry_of(tok, id);

    return e && e->flags & TOK_ADDED;
}

bool wn_tokenizer_is_special(const struct wn_tokenizer *tok, uint32_t id)
{
    const struct tok_entry *e = entry_of(tok, id);

    return e && e->flags & TOK_SPECIAL;
}

void wn_tokenizer_close(struct wn_tokenizer *tok)
{
    if (!tok) return;
    for (uint32_t i = 0; i < tok->pre_n; i++) pcre2_code_free(tok->pre[i].regex);
    free(tok->store.p);
    free(tok->entry);
    free(tok->slot);
    free(tok->merge);
    free(tok->raw.v);
    free(tok->normalized.v);
    free(tok);
}

void tok_work_fini(struct tok_work *w)
{
    free(w->norm.p);
    free(w->spare.p);
    free(w->pre.p);
    free(w->mapped.p);
    free(w->cps);
    free(w->cps2);
    free(w->sym);
    free(w->heap);
    pcre2_match_data_free(w->match);
    pcre2_match_context_free(w->match_ctx);
}

wn_status tok_emit(struct tok_work *w, uint32_t id, struct wn_err *err)
{
    wn_status rc;

    if (w->out->n >= w->tokens_max) return wn_fail(err, WN_ELIMIT, "the text makes over %zu tokens", w->tokens_max);
    rc = tok_grow((void **)&w->out->ids, &w->out->cap, w->out->n + 1, sizeof(*w->out->ids), err);
    if (rc == WN_OK) w->out->ids[w->out->n++] = id;
    return rc;
}

/* One encode call. `text` is all parts joined; part i begins at bound[i]. */
struct encoding {
    const struct wn_tokenizer *tok;
    struct tok_work *work;
    const char *text;
    const struct wn_text *parts;
    const size_t *bound; /* [parts_n + 1] */
    size_t parts_n;
    struct wn_err *err;
};

/* What a cut of the text is good for: the least trust of the parts that it touches. */
static wn_text_trust trust_of(const struct encoding *e, size_t start, size_t end)
{
    wn_text_trust trust = WN_TEXT_TRUSTED;
    size_t lo = 0, hi = e->parts_n;

    while (lo < hi) { /* the first part that ends after start */
        size_t mid = lo + (hi - lo) / 2;
        if (e->bound[mid + 1] <= start) lo = mid + 1;
        else hi = mid;
    }
    for (; lo < e->parts_n && e->bound[lo] < end; lo++) {
        if (e->parts[lo].trust < trust) trust = e->parts[lo].trust;
    }
    return trust;
}

static bool word_before(const char *p, size_t at)
{
    uint32_t cp = 0;
    size_t i = at;

    if (!at) return false;
    do i--;
    while (i && ((uint8_t)p[i] & 0xC0) == 0x80);
    return wn_utf8_decode(p + i, at - i, &cp) > 0 && tok_is_word(cp);
}

static bool word_after(const char *p, size_t n, size_t at)
{
    uint32_t cp = 0;

    return at < n && wn_utf8_decode(p + at, n - at, &cp) > 0 && tok_is_word(cp);
}

static size_t skip_spaces_back(const char *p, size_t at, size_t floor)
{
    while (at > floor) {
        uint32_t cp = 0;
        size_t i = at;
        do i--;
        while (i && ((uint8_t)p[i] & 0xC0) == 0x80);
        if (i < floor || wn_utf8_decode(p + i, at - i, &cp) <= 0 || !tok_is_space(cp)) break;
        at = i;
    }
    return at;
}

static size_t skip_spaces(const char *p, size_t n, size_t at)
{
    uint32_t cp = 0;
    int len;

    while (at < n && (len = wn_utf8_decode(p + at, n - at, &cp)) > 0 && tok_is_space(cp)) at += (size_t)len;
    return at;
}

/* Cuts p at its added tokens. Stage 1 (raw == true) looks at the text as it came; what lies between is normalised and
 * cut again in stage 2; what lies between there goes to the pre-tokenizer. offset: where p is in the whole text. In
 * stage 2, where places in the text are no longer known, the whole cut has the trust `trust`. */
static wn_status cut(struct encoding *e, bool raw, const char *p, size_t n, size_t offset, wn_text_trust trust);

static wn_status cut_between(struct encoding *e, bool raw, const char *p, size_t start, size_t end, size_t offset)
{
    wn_status rc;

    if (start >= end) return WN_OK;
    if (!raw) return tok_pretokenize(e->tok, e->work, p + start, end - start, !offset && !start, e->err);
    if ((rc = tok_normalize(e->tok, e->work, p + start, end - start, e->err)) != WN_OK) return rc;
    return cut(e, false, e->work->norm.p, e->work->norm.n, start, trust_of(e, start, end));
}

static wn_status cut(struct encoding *e, bool raw, const char *p, size_t n, size_t offset, wn_text_trust trust)
{
    const struct tok_matcher *m = raw ? &e->tok->raw : &e->tok->normalized;
    size_t done = 0, i = 0;
    wn_status rc;

    while (m->n && i < n) {
        const struct tok_added *a = tok_matcher_at(e->tok, m, p + i, n - i);
        size_t start = i, end;

        if (!a) {
            i++;
            continue;
        }
        end = i = start + a->text.len; /* a literal that does not count still hides those that overlap it */
        if (raw) trust = trust_of(e, start, end);
        if (trust == WN_TEXT_PLAIN) continue;
        if (trust == WN_TEXT_USER && e->tok->entry[a->id].flags & TOK_SPECIAL) continue;
        if (a->flags & TOK_SINGLE_WORD && (word_before(p, start) || word_after(p, n, end))) continue;
        if (a->flags & TOK_LSTRIP) start = skip_spaces_back(p, start, done);
        if (a->flags & TOK_RSTRIP) end = skip_spaces(p, n, end);
        if ((rc = cut_between(e, raw, p, done, start, offset)) != WN_OK) return rc;
        if ((rc = tok_emit(e->work, a->id, e->err)) != WN_OK) return rc;
        done = end;
    }
    return cut_between(e, raw, p, done, n, offset);
}

static wn_status join_parts(struct encoding *e, size_t *bound, struct tok_buf *joined)
{
    wn_status rc;
    size_t valid;

    for (size_t i = 0; i < e->parts_n; i++) {
        bound[i] = joined->n;
        rc = tok_buf_add(joined, e->parts[i].bytes, e->parts[i].bytes_n, WN_TOKENIZER_TEXT_MAX, NULL);
        if (rc == WN_ELIMIT) return wn_fail(e->err, rc, "the text has over %zu bytes", WN_TOKENIZER_TEXT_MAX);
        if (rc != WN_OK) return wn_fail(e->err, rc, "tokenizer: a text of %zu bytes", e->parts[i].bytes_n);
    }
    bound[e->parts_n] = joined->n;
    valid = wn_utf8_check(joined->p, joined->n);
    if (valid < joined->n) return wn_fail(e->err, WN_EFORMAT, "the text is not UTF-8 at byte %zu", valid);
    e->text = joined->p;
    e->bound = bound;
    return WN_OK;
}

wn_status wn_tokenizer_encode(const struct wn_tokenizer *tok, const struct wn_text *parts, size_t parts_n,
                              bool add_special, size_t tokens_max, struct wn_tokens *out, struct wn_err *err)
{
    struct tok_work work = {.out = out, .tokens_max = tokens_max};
    struct encoding e = {.tok = tok, .work = &work, .parts = parts, .parts_n = parts_n, .err = err};
    struct tok_buf joined = {0};
    size_t *bound = calloc(parts_n + 1, sizeof(*bound));
    wn_status rc = WN_OK;

    out->n = 0;
    if (!bound) {
        rc = wn_fail(err, WN_ENOMEM, "tokenizer: %zu parts", parts_n);
        goto out;
    }
    if ((rc = join_parts(&e, bound, &joined)) != WN_OK) goto out;
    for (uint32_t i = 0; add_special && i < tok->prefix_n; i++) {
        if ((rc = tok_emit(&work, tok->prefix[i], err)) != WN_OK) goto out;
    }
    if ((rc = cut(&e, true, e.text, joined.n, 0, WN_TEXT_PLAIN)) != WN_OK) goto out;
    for (uint32_t i = 0; add_special && i < tok->suffix_n; i++) {
        if ((rc = tok_emit(&work, tok->suffix[i], err)) != WN_OK) goto out;
    }
out:
    tok_work_fini(&work);
    free(joined.p);
    free(bound);
    return rc;
}
