/* shard/detok.c - see detok.h. */
#include "shard/detok.h"

#include <stdlib.h>

#include "shard/tokenizer_impl.h"
#include "base/utf8.h"

#define HELD_MAX ((size_t)16 << 20)
#define OUT_MAX  ((size_t)1 << 30)

static wn_status append(char **p, size_t *n, size_t *cap, const char *bytes, size_t bytes_n, size_t max,
                        struct wn_err *err)
{
    struct tok_buf b = {*p, *n, *cap};
    wn_status rc = tok_buf_add(&b, bytes, bytes_n, max, err);

    *p = b.p;
    *n = b.n;
    *cap = b.cap;
    return rc;
}

static wn_status put(struct wn_detok *d, const char *p, size_t n, struct wn_err *err)
{
    while (d->strip && n) {
        if (*p != d->tok->dec.strip_char) {
            d->strip = 0;
            break;
        }
        d->strip--;
        p++;
        n--;
    }
    return append(&d->out, &d->out_n, &d->out_cap, p, n, OUT_MAX, err);
}

static wn_status put_replacement(struct wn_detok *d, struct wn_err *err)
{
    return put(d, WN_UTF8_REPLACEMENT, sizeof(WN_UTF8_REPLACEMENT) - 1, err);
}

static wn_status hold(struct wn_detok *d, const char *p, size_t n, struct wn_err *err)
{
    return append(&d->held, &d->held_n, &d->held_cap, p, n, HELD_MAX, err);
}

/* Byte-level: lets out what is whole or can never become so; a character's beginning stays unless `all`. */
static wn_status drain_stream(struct wn_detok *d, bool all, struct wn_err *err)
{
    size_t i = 0, good = 0;
    wn_status rc = WN_OK;

    while (rc == WN_OK && i < d->held_n) {
        uint32_t cp;
        int len = wn_utf8_decode(d->held + i, d->held_n - i, &cp);
        if (len > 0) {
            i += (size_t)len;
            continue;
        }
        rc = put(d, d->held + good, i - good, err);
        good = i;
        if (!len && !all) break;
        if (rc == WN_OK) rc = put_replacement(d, err);
        i = len ? i + (size_t)-len : d->held_n;
        good = i;
    }
    if (rc == WN_OK && i > good) rc = put(d, d->held + good, i - good, err);
    if (i && i < d->held_n) memmove(d->held, d->held + i, d->held_n - i);
    d->held_n -= i;
    return rc;
}

/* Byte fallback: a run of byte tokens that is not UTF-8 as a whole becomes one U+FFFD a byte. */
static wn_status drain_run(struct wn_detok *d, struct wn_err *err)
{
    size_t n = d->held_n;
    wn_status rc = WN_OK;

    d->held_n = 0;
    if (!n) return WN_OK;
    if (wn_utf8_check(d->held, n) == n) return put(d, d->held, n, err);
    for (size_t i = 0; rc == WN_OK && i < n; i++) rc = put_replacement(d, err);
    return rc;
}

/* The first token under a Metaspace decoder: its marks stand for nothing. */
static wn_status put_unmarked(struct wn_detok *d, const char *p, size_t n, struct wn_err *err)
{
    const struct tok_dec *dec = &d->tok->dec;
    wn_status rc = WN_OK;
    size_t i = 0;

    while (rc == WN_OK && i < n) {
        if (n - i >= dec->mark_n && memcmp(p + i, dec->mark, dec->mark_n) == 0) {
            i += dec->mark_n;
            continue;
        }
        rc = put(d, p + i, 1, err);
        i++;
    }
    return rc;
}

static wn_status feed_one(struct wn_detok *d, uint32_t id, struct wn_err *err)
{
    const struct wn_tokenizer *t = d->tok;
    const struct tok_entry *e = id < t->entry_n ? &t->entry[id] : NULL;
    bool first = !d->begun;
    wn_status rc;

    if (!e || !(e->flags & TOK_PRESENT)) return WN_OK;
    if (e->flags & TOK_SPECIAL && !d->keep_special) return WN_OK;
    d->begun = true;
    if (t->dec.kind == TOK_DEC_BYTES) {
        rc = hold(d, tok_at(t, e->bytes), e->bytes.len, err);
        return rc == WN_OK ? drain_stream(d, false, err) : rc;
    }
    if (e->flags & TOK_BYTE) return hold(d, tok_at(t, e->bytes), e->bytes.len, err);
    if ((rc = drain_run(d, err)) != WN_OK) return rc;
    if (first && t->dec.strip_first) return put_unmarked(d, tok_at(t, e->text), e->text.len, err);
    return put(d, tok_at(t, e->bytes), e->bytes.len, err);
}

static void begin(struct wn_detok *d)
{
    d->begun = false;
    d->held_n = 0;
    d->strip = d->tok->dec.kind == TOK_DEC_CHAIN ? d->tok->dec.strip : 0;
}

void wn_detok_init(struct wn_detok *d, const struct wn_tokenizer *tok, bool keep_special)
{
    *d = (struct wn_detok){.tok = tok, .keep_special = keep_special};
    begin(d);
}

void wn_detok_fini(struct wn_detok *d)
{
    free(d->out);
    free(d->held);
    *d = (struct wn_detok){0};
}

static void hand_out(const struct wn_detok *d, const char **text, size_t *bytes_n)
{
    *text = d->out ? d->out : "";
    *bytes_n = d->out_n;
}

wn_status wn_detok_feed(struct wn_detok *d, const uint32_t *ids, size_t n, const char **text, size_t *bytes_n,
                        struct wn_err *err)
{
    wn_status rc = WN_OK;

    d->out_n = 0;
    for (size_t i = 0; rc == WN_OK && i < n; i++) rc = feed_one(d, ids[i], err);
    hand_out(d, text, bytes_n);
    return rc;
}

wn_status wn_detok_flush(struct wn_detok *d, const char **text, size_t *bytes_n, struct wn_err *err)
{
    wn_status rc;

    d->out_n = 0;
    rc = d->tok->dec.kind == TOK_DEC_BYTES ? drain_stream(d, true, err) : drain_run(d, err);
    begin(d);
    hand_out(d, text, bytes_n);
    return rc;
}

wn_status wn_tokenizer_decode(const struct wn_tokenizer *tok, const uint32_t *ids, size_t n, bool keep_special,
                              char **text, size_t *bytes_n, struct wn_err *err)
{
    struct tok_buf all = {0};
    struct wn_detok d;
    const char *p;
    size_t len;
    wn_status rc;

    wn_detok_init(&d, tok, keep_special);
    if ((rc = wn_detok_feed(&d, ids, n, &p, &len, err)) != WN_OK) goto out;
    if ((rc = tok_buf_add(&all, p, len, OUT_MAX, err)) != WN_OK) goto out;
    if ((rc = wn_detok_flush(&d, &p, &len, err)) != WN_OK) goto out;
    if ((rc = tok_buf_add(&all, p, len, OUT_MAX, err)) != WN_OK) goto out;
    if ((rc = tok_buf_add(&all, "", 1, OUT_MAX + 1, err)) != WN_OK) goto out; /* the terminator */
    *text = all.p;
    *bytes_n = all.n - 1;
    all.p = NULL;
out:
    wn_detok_fini(&d);
    free(all.p);
    return rc;
}
