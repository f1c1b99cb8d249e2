/* shard/tokenizer_json.c - reads tokenizer.json; see tokenizer_impl.h.
 *
 * Every field that changes ids or text is read or refused. Left aside: truncation and padding (the engine has limits of
 * its own), trim_offsets (we keep no offsets) and the template for pairs of texts. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#include "shard/tokenizer_impl.h"
#include "shard/tokenizer_read.h"
#include "base/utf8.h"

#define JSON_VALUES_MAX ((size_t)8 << 20) /* jansson spends about 50 bytes on each */

bool tok_json_bool(const json_t *o, const char *key, bool preset)
{
    const json_t *v = json_object_get(o, key);

    return json_is_boolean(v) ? json_is_true(v) : preset;
}

const char *tok_json_text(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);

    return json_is_string(v) ? json_string_value(v) : "";
}

static bool is_type(const json_t *o, const char *type)
{
    return strcmp(tok_json_text(o, "type"), type) == 0;
}

static wn_status unsupported(const json_t *o, const char *what, struct wn_err *err)
{
    return wn_fail(err, WN_EUNSUPP, "%s type '%.60s' is not supported", what, tok_json_text(o, "type"));
}

/* The elements of a Sequence under `key`, or o itself as the only one; NULL after the last. */
static const json_t *element(const json_t *o, const char *key, size_t i)
{
    if (!is_type(o, "Sequence")) return i ? NULL : o;
    return json_array_get(json_object_get(o, key), i);
}

/* A string of 1 to max bytes. */
static wn_status read_literal(const json_t *v, const char *what, size_t max, char *out, uint32_t *n,
                              struct wn_err *err)
{
    size_t len = json_string_length(v);

    if (!json_is_string(v) || !len) return wn_fail(err, WN_EFORMAT, "%s: a string is missing", what);
    if (len > max) return wn_fail(err, WN_ELIMIT, "%s: %zu bytes, at most %zu", what, len, max);
    memcpy(out, json_string_value(v), len);
    *n = (uint32_t)len;
    return WN_OK;
}

static wn_status read_replace(const json_t *o, const char *what, struct tok_norm *out, struct wn_err *err)
{
    const json_t *content = json_object_get(o, "content");
    const json_t *text = json_object_get(json_object_get(o, "pattern"), "String");
    wn_status rc;

    out->kind = TOK_NORM_REPLACE;
    if (!text) return wn_fail(err, WN_EUNSUPP, "%s Replace: only a pattern of type String is supported", what);
    if ((rc = read_literal(text, what, TOK_LITERAL_MAX, out->from, &out->from_n, err)) != WN_OK) return rc;
    if (json_is_string(content) && !json_string_length(content)) return WN_OK; /* replaced by nothing */
    return read_literal(content, what, TOK_LITERAL_MAX, out->to, &out->to_n, err);
}

static wn_status read_normalizer(struct wn_tokenizer *t, const json_t *o, struct wn_err *err)
{
    const json_t *e;
    wn_status rc = WN_OK;

    if (!o || json_is_null(o)) return WN_OK;
    for (size_t i = 0; rc == WN_OK && (e = element(o, "normalizers", i)) != NULL; i++) {
        struct tok_norm *step = &t->norm[t->norm_n];
        if (t->norm_n == TOK_STEPS_MAX) return wn_fail(err, WN_ELIMIT, "normalizer: over %d steps", TOK_STEPS_MAX);
        t->norm_n++;
        if (is_type(e, "Prepend")) {
            step->kind = TOK_NORM_PREPEND;
            rc = read_literal(json_object_get(e, "prepend"), "normalizer Prepend", TOK_LITERAL_MAX, step->to,
                              &step->to_n, err);
        } else if (is_type(e, "Replace")) {
            rc = read_replace(e, "normalizer", step, err);
        } else if (is_type(e, "NFC")) {
            step->kind = TOK_NORM_NFC;
        } else {
            return unsupported(e, "normalizer", err);
        }
    }
    return rc;
}

/* One character of at most 4 bytes. */
static wn_status read_char(const json_t *v, const char *what, char out[4], uint32_t *n, struct wn_err *err)
{
    uint32_t cp;
    wn_status rc = read_literal(v, what, 4, out, n, err);

    if (rc == WN_OK && wn_utf8_decode(out, *n, &cp) != (int)*n)
        return wn_fail(err, WN_EFORMAT, "%s: more than one character", what);
    return rc;
}

static wn_status read_scheme(const json_t *o, tok_meta *out, struct wn_err *err)
{
    const char *scheme = tok_json_text(o, "prepend_scheme");

    if (!*scheme) scheme = tok_json_bool(o, "add_prefix_space", true) ? "always" : "never"; /* older files */
    if (strcmp(scheme, "always") == 0) *out = TOK_META_ALWAYS;
    else if (strcmp(scheme, "first") == 0) *out = TOK_META_FIRST;
    else if (strcmp(scheme, "never") == 0) *out = TOK_META_NEVER;
    else return wn_fail(err, WN_EUNSUPP, "Metaspace prepend_scheme '%.60s' is not supported", scheme);
    return WN_OK;
}

static wn_status read_split(struct tok_pre *pre, const json_t *o, struct wn_err *err)
{
    const json_t *regex = json_object_get(json_object_get(o, "pattern"), "Regex");
    const char *behavior = tok_json_text(o, "behavior");

    pre->kind = TOK_PRE_SPLIT;
    if (!json_is_string(regex))
        return wn_fail(err, WN_EUNSUPP, "pre_tokenizer Split: only a pattern of type Regex is supported");
    if (strcmp(behavior, "Isolated") != 0)
        return wn_fail(err, WN_EUNSUPP, "pre_tokenizer Split: behavior '%.60s' is not supported", behavior);
    return tok_regex_compile(&pre->regex, json_string_value(regex), json_string_length(regex), err);
}

static wn_status read_pre_one(struct wn_tokenizer *t, const json_t *o, struct wn_err *err)
{
    struct tok_pre *pre = &t->pre[t->pre_n];
    tok_pre_kind before = t->pre_n ? pre[-1].kind : TOK_PRE_SPLIT;
    wn_status rc;

    if (t->pre_n == TOK_STEPS_MAX) return wn_fail(err, WN_ELIMIT, "pre_tokenizer: over %d steps", TOK_STEPS_MAX);
    if (before != TOK_PRE_SPLIT)
        return wn_fail(err, WN_EUNSUPP, "pre_tokenizer: a step after ByteLevel or Metaspace is not supported");
    t->pre_n++;
    if (is_type(o, "Split")) return read_split(pre, o, err);
    if (is_type(o, "ByteLevel")) {
        pre->kind = TOK_PRE_BYTES;
        pre->prefix_space = tok_json_bool(o, "add_prefix_space", true);
        if (!tok_json_bool(o, "use_regex", true)) return WN_OK;
        return tok_regex_compile(&pre->regex, tok_gpt2_pattern, strlen(tok_gpt2_pattern), err);
    }
    if (is_type(o, "Metaspace")) {
        pre->kind = TOK_PRE_META;
        if (t->pre_n > 1) return wn_fail(err, WN_EUNSUPP, "pre_tokenizer: Metaspace after a Split is not supported");
        pre->split = tok_json_bool(o, "split", true);
        if ((rc = read_scheme(o, &pre->scheme, err)) != WN_OK) return rc;
        return read_char(json_object_get(o, "replacement"), "Metaspace replacement", pre->mark, &pre->mark_n, err);
    }
    return unsupported(o, "pre_tokenizer", err);
}

static wn_status read_pre(struct wn_tokenizer *t, const json_t *o, struct wn_err *err)
{
    const json_t *e;
    wn_status rc = WN_OK;

    if (!o || json_is_null(o)) return WN_OK;
    for (size_t i = 0; rc == WN_OK && (e = element(o, "pretokenizers", i)) != NULL; i++) rc = read_pre_one(t, e, err);
    if (rc == WN_OK && t->pre_n && t->pre[t->pre_n - 1].kind == TOK_PRE_SPLIT)
        rc = wn_fail(err, WN_EUNSUPP, "pre_tokenizer: a Split without ByteLevel is not supported");
    return rc;
}

static wn_status read_strip(struct tok_dec *dec, const json_t *o, struct wn_err *err)
{
    const json_t *start = json_object_get(o, "start"), *stop = json_object_get(o, "stop");
    char c[4];
    uint32_t n = 0;
    wn_status rc = read_char(json_object_get(o, "content"), "decoder Strip", c, &n, err);

    if (rc != WN_OK) return rc;
    if (n != 1) return wn_fail(err, WN_EUNSUPP, "decoder Strip: only an ASCII character is supported");
    if (json_integer_value(stop)) return wn_fail(err, WN_EUNSUPP, "decoder Strip: stop > 0 is not supported");
    if (!json_is_integer(start) || json_integer_value(start) < 0 || json_integer_value(start) > 64)
        return wn_fail(err, WN_EFORMAT, "decoder Strip: start is not a number from 0 to 64");
    dec->strip_char = c[0];
    dec->strip = (uint32_t)json_integer_value(start);
    return WN_OK;
}

/* Replace..., ByteFallback, Fuse, Strip: any of them may lack, but Strip wants Fuse. */
static wn_status read_chain(struct tok_dec *dec, const json_t *o, struct wn_err *err)
{
    static const char *const order[] = {"Replace", "ByteFallback", "Fuse", "Strip"};
    enum { REPLACE, BYTE_FALLBACK, FUSE, STRIP, KINDS } at = REPLACE;
    const json_t *e;
    bool fused = false;
    wn_status rc = WN_OK;

    dec->kind = TOK_DEC_CHAIN;
    for (size_t i = 0; rc == WN_OK && (e = element(o, "decoders", i)) != NULL; i++) {
        int kind = KINDS;
        for (int k = 0; k < KINDS; k++)
            if (is_type(e, order[k])) kind = k;
        if (kind == KINDS) return unsupported(e, "decoder", err);
        if (kind < (int)at) return wn_fail(err, WN_EUNSUPP, "decoder: %s at step %zu is not supported", order[kind], i);
        if (kind == REPLACE) {
            if (dec->replace_n == TOK_STEPS_MAX) return wn_fail(err, WN_ELIMIT, "decoder: too many Replace steps");
            rc = read_replace(e, "decoder", &dec->replace[dec->replace_n++], err);
        }
        at = kind == REPLACE ? REPLACE : kind + 1;
        dec->byte_fallback |= kind == BYTE_FALLBACK;
        fused |= kind == FUSE;
        if (kind == STRIP && !fused) return wn_fail(err, WN_EUNSUPP, "decoder: Strip without Fuse is not supported");
        if (kind == STRIP) rc = read_strip(dec, e, err);
    }
    return rc;
}

static wn_status read_decoder(struct wn_tokenizer *t, const json_t *o, struct wn_err *err)
{
    struct tok_dec *dec = &t->dec;
    tok_meta scheme = TOK_META_NEVER;
    wn_status rc;

    if (!json_is_object(o)) return wn_fail(err, WN_EUNSUPP, "a tokenizer without a decoder is not supported");
    if (is_type(o, "ByteLevel")) {
        dec->kind = TOK_DEC_BYTES;
        return WN_OK;
    }
    if (!is_type(o, "Metaspace")) return read_chain(dec, o, err);
    dec->kind = TOK_DEC_META;
    if ((rc = read_scheme(o, &scheme, err)) != WN_OK) return rc;
    dec->strip_first = scheme != TOK_META_NEVER;
    return read_char(json_object_get(o, "replacement"), "Metaspace replacement", dec->mark, &dec->mark_n, err);
}

/* {"SpecialToken": {"id": "<s>"}} and the template's own table of ids for that name. */
static wn_status read_affix(struct wn_tokenizer *t, const json_t *processor, const json_t *piece, bool after,
                            struct wn_err *err)
{
    const char *name = tok_json_text(json_object_get(piece, "SpecialToken"), "id");
    const json_t *ids = json_object_get(json_object_get(json_object_get(processor, "special_tokens"), name), "ids");
    uint32_t *to = after ? t->suffix : t->prefix, *n = after ? &t->suffix_n : &t->prefix_n;

    if (!json_array_size(ids)) return wn_fail(err, WN_EFORMAT, "post_processor: '%.60s' has no ids", name);
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_t *v = json_array_get(ids, i);
        json_int_t id = json_is_integer(v) ? json_integer_value(v) : -1;
        if (id < 0 || (size_t)id >= t->entry_n || !(t->entry[id].flags & TOK_PRESENT))
            return wn_fail(err, WN_EFORMAT, "post_processor: an id of '%.60s' is not in the vocabulary", name);
        if (*n == TOK_AFFIX_MAX) return wn_fail(err, WN_ELIMIT, "post_processor: over %d ids", TOK_AFFIX_MAX);
        to[(*n)++] = (uint32_t)id;
    }
    return WN_OK;
}

static wn_status read_template(struct wn_tokenizer *t, const json_t *o, struct wn_err *err)
{
    const json_t *single = json_object_get(o, "single");
    size_t texts = 0;
    wn_status rc = WN_OK;

    for (size_t i = 0; rc == WN_OK && i < json_array_size(single); i++) {
        const json_t *piece = json_array_get(single, i);
        if (json_object_get(piece, "Sequence")) texts++;
        else rc = read_affix(t, o, piece, texts != 0, err);
    }
    if (rc == WN_OK && texts != 1) rc = wn_fail(err, WN_EUNSUPP, "post_processor: a template with %zu texts", texts);
    return rc;
}

static wn_status read_post(struct wn_tokenizer *t, const json_t *o, struct wn_err *err)
{
    const json_t *e;
    size_t templates = 0;
    wn_status rc = WN_OK;

    if (!o || json_is_null(o)) return WN_OK;
    for (size_t i = 0; rc == WN_OK && (e = element(o, "processors", i)) != NULL; i++) {
        if (is_type(e, "ByteLevel")) continue; /* trims offsets, which we do not keep */
        if (!is_type(e, "TemplateProcessing")) return unsupported(e, "post_processor", err);
        if (templates++) return wn_fail(err, WN_EUNSUPP, "post_processor: two templates are not supported");
        rc = read_template(t, e, err);
    }
    return rc;
}

static wn_status read_all(struct wn_tokenizer *t, const json_t *root, struct wn_err *err)
{
    const char *version = tok_json_text(root, "version");
    wn_status rc;

    if (!json_is_object(root)) return wn_fail(err, WN_EFORMAT, "not an object");
    if (strcmp(version, "1.0") != 0) return wn_fail(err, WN_EUNSUPP, "version '%.60s' is not supported", version);
    if ((rc = read_normalizer(t, json_object_get(root, "normalizer"), err)) != WN_OK) return rc;
    if ((rc = read_pre(t, json_object_get(root, "pre_tokenizer"), err)) != WN_OK) return rc;
    if ((rc = read_decoder(t, json_object_get(root, "decoder"), err)) != WN_OK) return rc;
    if ((rc = tok_read_model(t, json_object_get(root, "model"), json_object_get(root, "added_tokens"), err)) != WN_OK)
        return rc;
    return read_post(t, json_object_get(root, "post_processor"), err);
}

wn_status wn_tokenizer_parse(struct wn_tokenizer **out, const void *json, size_t json_bytes, struct wn_err *err)
{
    struct wn_tokenizer *t = NULL;
    const char *p = json;
    json_t *root = NULL;
    json_error_t je;
    size_t values = 0;
    wn_status rc;

    if (json_bytes > WN_TOKENIZER_FILE_MAX) {
        rc = wn_fail(err, WN_ELIMIT, "%zu bytes, at most %zu", json_bytes, WN_TOKENIZER_FILE_MAX);
        goto out;
    }
    for (size_t i = 0; i < json_bytes; i++) values += p[i] == ',' || p[i] == '[' || p[i] == '{';
    if (values > JSON_VALUES_MAX) { /* commas in strings count too: a bound, not a count */
        rc = wn_fail(err, WN_ELIMIT, "over %zu values", JSON_VALUES_MAX);
        goto out;
    }
    root = json_loadb(json_bytes ? p : "", json_bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &je);
    if (!root) {
        rc = wn_fail(err, WN_EFORMAT, "line %d, column %d: %s", je.line, je.column, je.text);
        goto out;
    }
    t = calloc(1, sizeof(*t));
    rc = t ? read_all(t, root, err) : wn_fail(err, WN_ENOMEM, "tokenizer");
    if (rc != WN_OK) goto out;
    *out = t;
    t = NULL;
out:
    json_decref(root);
    wn_tokenizer_close(t);
    return rc;
}

static wn_status read_file(const char *path, char **out, size_t *out_n, struct wn_err *err)
{
    struct stat st;
    char *data = NULL;
    size_t n = 0, size = 0;
    wn_status rc = WN_OK;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0 || fstat(fd, &st) != 0) {
        rc = wn_fail(err, WN_EIO, "%s: %s", path, strerror(errno));
        goto out;
    }
    if (!S_ISREG(st.st_mode) || st.st_size < 0 || (uint64_t)st.st_size > WN_TOKENIZER_FILE_MAX) {
        rc = wn_fail(err, WN_ELIMIT, "%s: not a regular file of at most %zu bytes", path, WN_TOKENIZER_FILE_MAX);
        goto out;
    }
    size = (size_t)st.st_size;
    data = malloc(size + 1);
    if (!data) {
        rc = wn_fail(err, WN_ENOMEM, "%s: %zu bytes", path, size);
        goto out;
    }
    while (n < size) {
        ssize_t got = read(fd, data + n, size - n);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) {
            rc = wn_fail(err, WN_EIO, "%s: %s", path, got ? strerror(errno) : "shorter than its size");
            goto out;
        }
        n += (size_t)got;
    }
    *out = data;
    *out_n = n;
    data = NULL;
out:
    if (fd >= 0) close(fd);
    free(data);
    return rc;
}

wn_status wn_tokenizer_open(struct wn_tokenizer **out, const char *path, struct wn_err *err)
{
    char *data = NULL;
    size_t n = 0;
    wn_status rc = read_file(path, &data, &n, err);

    if (rc != WN_OK) return rc;
    rc = wn_tokenizer_parse(out, data, n, err);
    if (rc != WN_OK) wn_err_prefix(err, "%s", path);
    free(data);
    return rc;
}
