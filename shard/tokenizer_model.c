/* shard/tokenizer_model.c - reads the vocabulary, merges and added tokens of a tokenizer.json; see tokenizer_impl.h. */
#include <stdlib.h>

#include "shard/tokenizer_read.h"
#include "base/utf8.h"

/* Makes entry[id] exist. Ids in between are holes. */
static wn_status reserve_id(struct wn_tokenizer *t, json_int_t id, struct wn_err *err)
{
    size_t old = t->entry_n, want = (size_t)id + 1;
    wn_status rc;

    if (want <= old) return WN_OK;
    rc = tok_grow((void **)&t->entry, &t->entry_cap, want, sizeof(*t->entry), err);
    if (rc != WN_OK) return rc;
    memset(t->entry + old, 0, (want - old) * sizeof(*t->entry));
    t->entry_n = want;
    return WN_OK;
}

static wn_status read_vocab(struct wn_tokenizer *t, json_t *vocab, struct wn_err *err)
{
    const char *key;
    size_t len, i = 0;
    json_t *v;
    wn_status rc;

    if (!json_is_object(vocab)) return wn_fail(err, WN_EFORMAT, "model.vocab is not an object");
    json_object_keylen_foreach(vocab, key, len, v)
    {
        json_int_t id = json_is_integer(v) ? json_integer_value(v) : -1;
        if (id < 0 || id >= WN_TOKENIZER_VOCAB_MAX)
            return wn_fail(err, WN_EFORMAT, "model.vocab: entry %zu: id is not a number below %u", i,
                           WN_TOKENIZER_VOCAB_MAX);
        if ((rc = reserve_id(t, id, err)) != WN_OK) return rc;
        if (t->entry[id].flags) return wn_fail(err, WN_EFORMAT, "model.vocab: id %u is given twice", (uint32_t)id);
        if ((rc = tok_store_add(t, key, len, &t->entry[id].text, err)) != WN_OK) return rc;
        t->entry[id].flags = TOK_PRESENT | TOK_MODEL;
        i++;
    }
    return tok_slots_build(t, err);
}

/* The two sides of a merge, "a b" or ["a", "b"]; false if it is neither. */
static bool merge_sides(const json_t *m, const char **a, size_t *a_n, const char **b, size_t *b_n)
{
    if (json_is_array(m)) {
        const json_t *x = json_array_get(m, 0), *y = json_array_get(m, 1);
        if (json_array_size(m) != 2 || !json_is_string(x) || !json_is_string(y)) return false;
        *a = json_string_value(x);
        *a_n = json_string_length(x);
        *b = json_string_value(y);
        *b_n = json_string_length(y);
        return true;
    }
    if (!json_is_string(m)) return false;
    *a = json_string_value(m);
    *b = memchr(*a, ' ', json_string_length(m));
    if (!*b) return false;
    *a_n = (size_t)(*b - *a);
    (*b)++;
    *b_n = json_string_length(m) - *a_n - 1;
    return !memchr(*b, ' ', *b_n);
}

static wn_status read_merge(struct wn_tokenizer *t, const json_t *m, size_t i, uint32_t rank, struct tok_buf *joined,
                            struct wn_err *err)
{
    const char *a = NULL, *b = NULL;
    size_t a_n = 0, b_n = 0;
    uint32_t left, right, id;
    wn_status rc;

    if (!merge_sides(m, &a, &a_n, &b, &b_n)) return wn_fail(err, WN_EFORMAT, "model.merges[%zu]: not a pair", i);
    joined->n = 0;
    if ((rc = tok_buf_add(joined, a, a_n, WN_TOKENIZER_FILE_MAX, err)) != WN_OK) return rc;
    if ((rc = tok_buf_add(joined, b, b_n, WN_TOKENIZER_FILE_MAX, err)) != WN_OK) return rc;
    left = tok_find(t, a, a_n);
    right = tok_find(t, b, b_n);
    id = tok_find(t, joined->p ? joined->p : "", joined->n);
    if (left == TOK_NONE || right == TOK_NONE || id == TOK_NONE)
        return wn_fail(err, WN_EFORMAT, "model.merges[%zu]: a side, or the sides joined, are not in the vocabulary", i);
    /* What spells a special token in ordinary text must stay ordinary. Where it is meant, it was found before. */
    if (!(t->entry[id].flags & TOK_SPECIAL)) tok_merges_put(t, left, right, rank, id);
    return WN_OK;
}

static wn_status read_merges(struct wn_tokenizer *t, const json_t *merges, struct wn_err *err)
{
    size_t n = json_array_size(merges);
    struct tok_buf joined = {0};
    uint32_t rank = 0;
    wn_status rc;

    if (!json_is_array(merges)) return wn_fail(err, WN_EFORMAT, "model.merges is not an array");
    if (n > WN_TOKENIZER_VOCAB_MAX)
        return wn_fail(err, WN_ELIMIT, "model.merges: %zu, at most %u", n, WN_TOKENIZER_VOCAB_MAX);
    rc = tok_merges_init(t, n, err);
    for (size_t i = 0; rc == WN_OK && i < n; i++) {
        const json_t *m = json_array_get(merges, i);
        const char *line = json_string_value(m);
        if (line && strncmp(line, "#version", 8) == 0) continue; /* the head line of merges.txt */
        rc = read_merge(t, m, i, rank++, &joined, err);
    }
    free(joined.p);
    return rc;
}

static wn_status matcher_add(struct tok_matcher *m, size_t cap, struct tok_added a, struct wn_err *err)
{
    if (!m->v) m->v = calloc(cap, sizeof(*m->v));
    if (!m->v) return wn_fail(err, WN_ENOMEM, "added_tokens: %zu", cap);
    m->v[m->n++] = a;
    return WN_OK;
}

static wn_status add_entry(struct wn_tokenizer *t, const json_t *o, size_t i, struct tok_added *a, struct wn_err *err)
{
    const json_t *content = json_object_get(o, "content"), *v = json_object_get(o, "id");
    json_int_t id = json_is_integer(v) ? json_integer_value(v) : -1;
    size_t len = json_string_length(content);
    struct tok_entry *e;
    uint32_t known;
    wn_status rc;

    if (id < 0 || id >= WN_TOKENIZER_VOCAB_MAX)
        return wn_fail(err, WN_EFORMAT, "added_tokens[%zu]: id is not a number below %u", i, WN_TOKENIZER_VOCAB_MAX);
    if (!json_is_string(content) || !len || len > TOK_ADDED_LEN_MAX)
        return wn_fail(err, WN_EFORMAT, "added_tokens[%zu]: content is not a string of 1 to %d bytes", i,
                       TOK_ADDED_LEN_MAX);
    known = tok_find(t, json_string_value(content), len);
    if (known != TOK_NONE && known != (uint32_t)id)
        return wn_fail(err, WN_EFORMAT, "added_tokens[%zu]: id %u, but %u in the vocabulary", i, (uint32_t)id, known);
    if ((rc = reserve_id(t, id, err)) != WN_OK) return rc;
    e = &t->entry[id];
    if (e->flags & TOK_ADDED || (known == TOK_NONE && e->flags))
        return wn_fail(err, WN_EFORMAT, "added_tokens[%zu]: id %u is taken", i, (uint32_t)id);
    if (known == TOK_NONE && (rc = tok_store_add(t, json_string_value(content), len, &e->text, err)) != WN_OK)
        return rc;
    e->flags |= TOK_PRESENT | TOK_ADDED | (tok_json_bool(o, "special", false) ? TOK_SPECIAL : 0);
    a->text = e->text;
    a->id = (uint32_t)id;
    return WN_OK;
}

static wn_status read_added(struct wn_tokenizer *t, const json_t *added, struct wn_err *err)
{
    size_t n = json_array_size(added);
    struct tok_work w = {0};
    wn_status rc = WN_OK;

    if (n > TOK_ADDED_MAX) return wn_fail(err, WN_ELIMIT, "added_tokens: %zu, at most %d", n, TOK_ADDED_MAX);
    for (size_t i = 0; rc == WN_OK && i < n; i++) {
        const json_t *o = json_array_get(added, i);
        struct tok_added a = {0};
        if ((rc = add_entry(t, o, i, &a, err)) != WN_OK) break;
        a.flags = (tok_json_bool(o, "lstrip", false) ? TOK_LSTRIP : 0u) |
                  (tok_json_bool(o, "rstrip", false) ? TOK_RSTRIP : 0u) |
                  (tok_json_bool(o, "single_word", false) ? TOK_SINGLE_WORD : 0u);
        if (!tok_json_bool(o, "normalized", !(t->entry[a.id].flags & TOK_SPECIAL))) {
            rc = matcher_add(&t->raw, n, a, err);
            continue;
        }
        if ((rc = tok_normalize(t, &w, tok_at(t, a.text), a.text.len, err)) != WN_OK) break;
        if (!w.norm.n) continue; /* nothing is left of it: no text can hold it */
        if ((rc = tok_store_add(t, w.norm.p, w.norm.n, &a.text, err)) != WN_OK) break;
        rc = matcher_add(&t->normalized, n, a, err);
    }
    tok_work_fini(&w);
    if (rc != WN_OK) return rc;
    tok_matcher_sort(t, &t->raw);
    tok_matcher_sort(t, &t->normalized);
    return WN_OK;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* "<0x0A>" -> 10, else -1. */
static int byte_of_name(const char *p, size_t n)
{
    int hi, lo;

    if (n != 6 || memcmp(p, "<0x", 3) != 0 || p[5] != '>') return -1;
    hi = hex_digit(p[3]);
    lo = hex_digit(p[4]);
    return hi < 0 || lo < 0 ? -1 : hi * 16 + lo;
}

/* A byte-level token's bytes. A token with a character that stands for no byte (an added one) decodes to itself. */
static wn_status decode_bytes(struct tok_buf *out, const char *p, size_t n, struct wn_err *err)
{
    int len;

    out->n = 0;
    for (size_t i = 0; i < n; i += (size_t)len) {
        uint32_t cp = 0;
        uint8_t byte = 0;
        wn_status rc;
        len = wn_utf8_decode(p + i, n - i, &cp);
        WN_ASSERT(len > 0); /* jansson lets only UTF-8 through */
        if (!tok_char_byte(cp, &byte)) {
            out->n = 0;
            return tok_buf_add(out, p, n, TOK_STORE_MAX, err);
        }
        if ((rc = tok_buf_add(out, (const char *)&byte, 1, TOK_STORE_MAX, err)) != WN_OK) return rc;
    }
    return WN_OK;
}

static wn_status decode_entry(const struct wn_tokenizer *t, struct tok_entry *e, struct tok_buf *out,
                              struct tok_buf *spare, struct wn_err *err)
{
    struct tok_norm mark = {.kind = TOK_NORM_REPLACE, .to_n = 1, .to = " ", .from_n = t->dec.mark_n};
    bool meta = t->dec.kind == TOK_DEC_META;
    uint32_t steps = meta ? 1 : t->dec.replace_n;
    wn_status rc;
    int byte;

    if (t->dec.kind == TOK_DEC_BYTES) return decode_bytes(out, tok_at(t, e->text), e->text.len, err);
    memcpy(mark.from, t->dec.mark, sizeof(t->dec.mark));
    out->n = 0;
    if ((rc = tok_buf_add(out, tok_at(t, e->text), e->text.len, TOK_STORE_MAX, err)) != WN_OK) return rc;
    for (uint32_t i = 0; i < steps && out->n; i++) {
        struct tok_buf from = *out;
        *out = *spare;
        *spare = from;
        out->n = 0;
        rc = tok_replace(out, meta ? &mark : &t->dec.replace[i], from.p, from.n, TOK_STORE_MAX, err);
        if (rc != WN_OK) return rc;
    }
    byte = t->dec.byte_fallback ? byte_of_name(out->p, out->n) : -1;
    if (byte >= 0) {
        e->flags |= TOK_BYTE;
        out->p[0] = (char)byte;
        out->n = 1;
    }
    return WN_OK;
}

static wn_status fill_bytes(struct wn_tokenizer *t, struct wn_err *err)
{
    struct tok_buf out = {0}, spare = {0};
    wn_status rc = WN_OK;

    for (size_t id = 0; rc == WN_OK && id < t->entry_n; id++) {
        struct tok_entry *e = &t->entry[id];
        if (!(e->flags & TOK_PRESENT)) continue;
        rc = decode_entry(t, e, &out, &spare, err);
        if (rc == WN_OK) rc = tok_store_add(t, out.p, out.n, &e->bytes, err);
    }
    free(out.p);
    free(spare.p);
    return rc;
}

static void fill_char_ids(struct wn_tokenizer *t)
{
    for (uint32_t cp = 0; cp < sizeof(t->char_id) / sizeof(t->char_id[0]); cp++) {
        char c[4];
        uint32_t id = tok_find(t, c, wn_utf8_encode(cp, c));
        t->char_id[cp] = id != TOK_NONE && t->entry[id].flags & TOK_SPECIAL ? TOK_NONE : id;
    }
    for (uint32_t b = 0; b < 256; b++) {
        char name[8];
        snprintf(name, sizeof(name), "<0x%02X>", b);
        t->byte_id[b] = t->byte_fallback ? tok_find(t, name, 6) : TOK_NONE;
    }
}

static wn_status read_options(struct wn_tokenizer *t, const json_t *model, struct wn_err *err)
{
    const json_t *type = json_object_get(model, "type");
    static const char *const affix[] = {"continuing_subword_prefix", "end_of_word_suffix"};

    if (!json_is_object(model)) return wn_fail(err, WN_EFORMAT, "model is not an object");
    if (type && strcmp(tok_json_text(model, "type"), "BPE") != 0) /* GPT-2's file has none */
        return wn_fail(err, WN_EUNSUPP, "model type '%.60s' is not supported", tok_json_text(model, "type"));
    for (size_t i = 0; i < 2; i++) {
        const char *text = tok_json_text(model, affix[i]);
        if (*text) return wn_fail(err, WN_EUNSUPP, "model.%s '%.60s' is not supported", affix[i], text);
    }
    if (json_number_value(json_object_get(model, "dropout")) != 0.0)
        return wn_fail(err, WN_EUNSUPP, "model.dropout is not supported");
    t->byte_fallback = tok_json_bool(model, "byte_fallback", false);
    t->fuse_unk = tok_json_bool(model, "fuse_unk", false);
    t->ignore_merges = tok_json_bool(model, "ignore_merges", false);
    return WN_OK;
}

static wn_status read_unk(struct wn_tokenizer *t, const json_t *unk, struct wn_err *err)
{
    t->unk = TOK_NONE;
    if (!json_is_string(unk)) return WN_OK;
    t->unk = tok_find(t, json_string_value(unk), json_string_length(unk));
    if (t->unk == TOK_NONE)
        return wn_fail(err, WN_EFORMAT, "model.unk_token '%.60s' is not in the vocabulary", json_string_value(unk));
    return WN_OK;
}

wn_status tok_read_model(struct wn_tokenizer *t, const json_t *model, const json_t *added, struct wn_err *err)
{
    wn_status rc = read_options(t, model, err);

    if (rc == WN_OK) rc = read_vocab(t, json_object_get(model, "vocab"), err);
    if (rc == WN_OK) rc = read_unk(t, json_object_get(model, "unk_token"), err);
    if (rc == WN_OK) rc = read_added(t, added, err);
    if (rc == WN_OK) rc = read_merges(t, json_object_get(model, "merges"), err);
    if (rc != WN_OK) return rc;
    fill_char_ids(t);
    return fill_bytes(t, err);
}
