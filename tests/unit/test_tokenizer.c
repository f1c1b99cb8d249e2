/* tests/unit/test_tokenizer.c - ids and text against the `tokenizers` library (scripts/golden/tokenizer.py), streams
 * cut anywhere, text that tries to be a special token, and files that must be refused. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "shard/detok.h"
#include "shard/tokenizer.h"

#define GOLDEN     "tests/golden/tokenizer/"
#define TOKENS_MAX 100000

static json_t *load(const char *name)
{
    char path[256];
    json_error_t e;
    json_t *j;

    snprintf(path, sizeof(path), GOLDEN "%s", name);
    j = json_load_file(path, JSON_ALLOW_NUL, &e);
    if (!j) fail_msg("%s: line %d: %s", path, e.line, e.text);
    return j;
}

static wn_status parse(struct wn_tokenizer **tok, const json_t *j, struct wn_err *err)
{
    char *text = json_dumps(j, JSON_COMPACT);
    wn_status rc;

    assert_non_null(text);
    rc = wn_tokenizer_parse(tok, text, strlen(text), err);
    free(text);
    return rc;
}

/* The tokenizer of a file of golden data, with a patch (NULL: as it is). */
static struct wn_tokenizer *patched(const char *file, json_t *patch)
{
    struct wn_tokenizer *tok = NULL;
    struct wn_err err = {0};
    json_t *j = load(file);

    if (patch) assert_int_equal(json_object_update_recursive(j, patch), 0);
    if (parse(&tok, j, &err) != WN_OK) fail_msg("%s: %s", file, err.text);
    json_decref(j);
    return tok;
}

static void encode(const struct wn_tokenizer *tok, const char *p, size_t n, wn_text_trust trust, bool add_special,
                   struct wn_tokens *out)
{
    struct wn_text part = {p, n, trust};
    struct wn_err err = {0};

    if (wn_tokenizer_encode(tok, &part, 1, add_special, TOKENS_MAX, out, &err) != WN_OK) fail_msg("%s", err.text);
}

static void assert_ids(const char *what, size_t index, const struct wn_tokens *got, const json_t *want)
{
    size_t n = json_array_size(want);

    for (size_t i = 0; i < n && i < got->n; i++) {
        long long id = json_integer_value(json_array_get(want, i));
        if (got->ids[i] != id) fail_msg("%s: text %zu: id %zu is %u, not %lld", what, index, i, got->ids[i], id);
    }
    if (got->n != n) fail_msg("%s: text %zu: %zu ids, not %zu", what, index, got->n, n);
}

static void assert_text(const char *what, size_t index, const char *got, size_t n, const json_t *want)
{
    if (n != json_string_length(want) || memcmp(got, json_string_value(want), n) != 0)
        fail_msg("%s: decode %zu: \"%.*s\", not \"%s\"", what, index, (int)n, got, json_string_value(want));
}

static bool is_utf8(const char *p, size_t n)
{
    json_t *s = json_stringn(p, n); /* an opinion other than our own */
    bool good = s != NULL;

    json_decref(s);
    return good;
}

/* Feeds ids in two pieces cut at every place, then one by one; every piece is UTF-8 and together they are `all`. */
static void assert_streams(const struct wn_tokenizer *tok, const uint32_t *ids, size_t n, bool keep, const char *all,
                           size_t all_n)
{
    char *joined = malloc(all_n + 1);

    assert_non_null(joined);
    for (size_t at = 0; at <= n; at++) {
        size_t chunk = at ? n : 1, used = 0, len, first = at ? at : 1;
        struct wn_detok d;
        const char *text;
        wn_detok_init(&d, tok, keep);
        for (size_t i = 0; i <= n;) {
            size_t take = i == n ? 0 : i == 0 ? first : chunk;
            if (take > n - i) take = n - i;
            if (i == n) assert_int_equal(wn_detok_flush(&d, &text, &len, NULL), WN_OK);
            else assert_int_equal(wn_detok_feed(&d, ids + i, take, &text, &len, NULL), WN_OK);
            assert_true(is_utf8(text, len));
            assert_true(used + len <= all_n);
            memcpy(joined + used, text, len);
            used += len;
            i += i == n ? 1 : take;
        }
        wn_detok_fini(&d);
        assert_int_equal(used, all_n);
        assert_memory_equal(joined, all, all_n);
        if (n > 64 && at > 8) at += n / 16; /* long ones: not at every place */
    }
    free(joined);
}

static void check_decode(const char *name, size_t index, const struct wn_tokenizer *tok, const uint32_t *ids, size_t n,
                         bool keep, const json_t *want)
{
    struct wn_err err = {0};
    char *text = NULL;
    size_t len = 0;

    assert_int_equal(wn_tokenizer_decode(tok, ids, n, keep, &text, &len, &err), WN_OK);
    assert_text(name, index, text, len, want);
    assert_streams(tok, ids, n, keep, text, len);
    free(text);
}

static void check_random(const char *name, const struct wn_tokenizer *tok, const json_t *random)
{
    for (size_t i = 0; i < json_array_size(random); i++) {
        const json_t *r = json_array_get(random, i), *want = json_array_get(r, 0);
        size_t n = json_array_size(want);
        uint32_t ids[64];
        assert_true(n <= 64);
        for (size_t k = 0; k < n; k++) ids[k] = (uint32_t)json_integer_value(json_array_get(want, k));
        check_decode(name, i, tok, ids, n, false, json_array_get(r, 1));
        check_decode(name, i, tok, ids, n, true, json_array_get(r, 2));
    }
}

static void check_case(const json_t *c, const json_t *strings)
{
    const char *name = json_string_value(json_object_get(c, "name"));
    const json_t *ids = json_object_get(c, "ids");
    struct wn_tokenizer *tok = patched(json_string_value(json_object_get(c, "file")), json_object_get(c, "patch"));
    struct wn_tokens out = {0}, plain = {0};

    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_t *s = json_array_get(strings, i), *user, *decoded;
        char key[24];
        snprintf(key, sizeof(key), "%zu", i);
        decoded = json_object_get(json_object_get(c, "decoded"), key);
        user = json_object_get(json_object_get(c, "user"), key);
        encode(tok, json_string_value(s), json_string_length(s), WN_TEXT_TRUSTED, true, &out);
        assert_ids(name, i, &out, json_array_get(ids, i));
        check_decode(name, i, tok, out.ids, out.n, false, decoded ? decoded : s);
        encode(tok, json_string_value(s), json_string_length(s), WN_TEXT_USER, false, &plain);
        if (user) {
            assert_ids(name, i, &plain, user);
            continue;
        }
        encode(tok, json_string_value(s), json_string_length(s), WN_TEXT_TRUSTED, false, &out);
        assert_int_equal(out.n, plain.n);
        if (out.n) assert_memory_equal(out.ids, plain.ids, out.n * sizeof(*out.ids));
    }
    check_random(name, tok, json_object_get(c, "random"));
    wn_tokens_fini(&out);
    wn_tokens_fini(&plain);
    wn_tokenizer_close(tok);
}

static void test_golden(void **state)
{
    json_t *strings = load("strings.json"), *cases = load("cases.json");

    (void)state;
    assert_int_equal(json_array_size(strings), 1000);
    assert_true(json_array_size(cases) >= 10);
    for (size_t i = 0; i < json_array_size(cases); i++) check_case(json_array_get(cases, i), strings);
    json_decref(strings);
    json_decref(cases);
}

/* models/tiny-llava holds the tokenizer that the daemon really serves with. */
static void test_tiny_llava(void **state)
{
    static const char *const texts[] = {
        "USER: <image>\nWhat colour is the circle? ASSISTANT:", "There are 3 red stars.",
        "\xE4\xBD\xA0\xE5\xA5\xBD \xF0\x9F\x99\x82 caf\xC3\xA9", "", "\n\n  two  spaces "};
    const char *path = "models/tiny-llava/tokenizer.json";
    struct wn_tokenizer *tok = NULL;
    struct wn_err err = {0};
    struct wn_tokens out = {0};
    uint32_t image = 0, bos = 0;

    (void)state;
    if (access(path, R_OK) != 0) skip();
    if (wn_tokenizer_open(&tok, path, &err) != WN_OK) fail_msg("%s", err.text);
    assert_true(wn_tokenizer_id(tok, "<image>", &image) && wn_tokenizer_is_added(tok, image));
    assert_true(wn_tokenizer_id(tok, "<s>", &bos) && wn_tokenizer_is_special(tok, bos));
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        json_t *want = json_string(texts[i]);
        encode(tok, texts[i], strlen(texts[i]), WN_TEXT_PLAIN, false, &out);
        check_decode("tiny-llava", i, tok, out.ids, out.n, false, want);
        for (size_t k = 0; k < out.n; k++) assert_int_not_equal(out.ids[k], image);
        json_decref(want);
    }
    encode(tok, texts[0], strlen(texts[0]), WN_TEXT_TRUSTED, true, &out);
    assert_int_equal(out.ids[0], bos);
    wn_tokens_fini(&out);
    wn_tokenizer_close(tok);
}

static size_t specials(const struct wn_tokenizer *tok, const struct wn_tokens *t)
{
    size_t n = 0;

    for (size_t i = 0; i < t->n; i++) n += wn_tokenizer_is_special(tok, t->ids[i]);
    return n;
}

static void test_trust(void **state)
{
    static const char *const files[] = {"llama.json", "gpt2.json", "qwen2.json"};
    const char *text = "a <image> </s> <tool> <|endoftext|>";
    struct wn_tokens out = {0};
    uint32_t tool = 0;

    (void)state;
    for (size_t f = 0; f < 3; f++) {
        struct wn_tokenizer *tok = patched(files[f], NULL);
        /* a literal across two parts has the trust of the lesser */
        struct wn_text split[] = {{"<im", 3, WN_TEXT_TRUSTED}, {"age>", 4, WN_TEXT_USER}};
        bool has_tool = false;
        size_t len = strlen(text), trusted;

        assert_true(wn_tokenizer_id(tok, "<tool>", &tool));
        encode(tok, text, len, WN_TEXT_TRUSTED, false, &out);
        trusted = specials(tok, &out);
        assert_int_equal(trusted, f == 0 ? 2 : 3); /* the Llama file has no <|endoftext|> */
        encode(tok, text, len, WN_TEXT_USER, false, &out);
        assert_int_equal(specials(tok, &out), 0);
        /* normalised before it is searched for, "<tool>" is "\u2581<tool>" to Llama: it wants a space before it */
        for (size_t i = 0; i < out.n; i++) has_tool |= out.ids[i] == tool;
        assert_true(has_tool);
        encode(tok, text, len, WN_TEXT_PLAIN, false, &out);
        for (size_t i = 0; i < out.n; i++) assert_false(wn_tokenizer_is_added(tok, out.ids[i]));
        assert_int_equal(wn_tokenizer_encode(tok, split, 2, false, 100, &out, NULL), WN_OK);
        assert_int_equal(specials(tok, &out), 0);
        split[1].trust = WN_TEXT_TRUSTED;
        assert_int_equal(wn_tokenizer_encode(tok, split, 2, false, 100, &out, NULL), WN_OK);
        assert_int_equal(out.n, 1);
        assert_int_equal(specials(tok, &out), 1);
        wn_tokenizer_close(tok);
    }
    wn_tokens_fini(&out);
}

/* A vocabulary whose merges spell a special token must not make it from ordinary text. */
static void test_merges_cannot_inject(void **state)
{
    static const char model[] =
        "{\"version\":\"1.0\",\"added_tokens\":[{\"id\":4,\"content\":\"<s>\",\"special\":true,\"normalized\":false}],"
        "\"decoder\":{\"type\":\"ByteLevel\"},\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,"
        "\"use_regex\":false},\"model\":{\"type\":\"BPE\",\"ignore_merges\":true,"
        "\"vocab\":{\"<\":0,\"s\":1,\">\":2,\"s>\":3,\"<s>\":4},\"merges\":[\"s >\",\"< s>\"]}}";
    struct wn_tokenizer *tok = NULL;
    struct wn_err err = {0};
    struct wn_tokens out = {0};

    (void)state;
    if (wn_tokenizer_parse(&tok, model, sizeof(model) - 1, &err) != WN_OK) fail_msg("%s", err.text);
    encode(tok, "<s>", 3, WN_TEXT_USER, false, &out);
    assert_int_equal(out.n, 2);
    assert_int_equal(out.ids[0], 0);
    assert_int_equal(out.ids[1], 3);
    encode(tok, "<s>", 3, WN_TEXT_TRUSTED, false, &out);
    assert_int_equal(out.n, 1);
    assert_int_equal(out.ids[0], 4);
    wn_tokens_fini(&out);
    wn_tokenizer_close(tok);
}

static void test_lookup(void **state)
{
    struct wn_tokenizer *llama = patched("llama.json", NULL), *gpt2 = patched("gpt2.json", NULL);
    size_t n = 0;
    uint32_t id = 0;

    (void)state;
    assert_true(wn_tokenizer_id(llama, "<0x0A>", &id));
    assert_memory_equal(wn_tokenizer_text(llama, id, &n), "<0x0A>", 6);
    assert_int_equal(n, 6);
    assert_memory_equal(wn_tokenizer_bytes(llama, id, &n), "\n", 1);
    assert_int_equal(n, 1);
    assert_false(wn_tokenizer_is_added(llama, id));
    assert_true(wn_tokenizer_id(gpt2, "\xC4\xA0", &id)); /* how GPT-2 shows a space */
    assert_memory_equal(wn_tokenizer_bytes(gpt2, id, &n), " ", 1);
    assert_int_equal(n, 1);
    assert_true(wn_tokenizer_id(gpt2, "</s>", &id));
    assert_true(wn_tokenizer_is_special(gpt2, id) && wn_tokenizer_is_added(gpt2, id));
    assert_false(wn_tokenizer_id(gpt2, "no such token", &id));
    assert_null(wn_tokenizer_text(gpt2, wn_tokenizer_size(gpt2), &n));
    assert_null(wn_tokenizer_bytes(gpt2, UINT32_MAX, &n));
    wn_tokenizer_close(llama);
    wn_tokenizer_close(gpt2);
}

static void test_text_errors(void **state)
{
    static const char *const bad[] = {"\xFF", "a\x80", "\xC0\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80", "abc\xE4\xBD"};
    struct wn_tokenizer *tok = patched("qwen2.json", NULL);
    struct wn_tokens out = {0};
    struct wn_err err = {0};
    char *big = malloc(WN_TOKENIZER_TEXT_MAX + 1);
    struct wn_text part = {big, WN_TOKENIZER_TEXT_MAX + 1, WN_TEXT_USER};

    (void)state;
    assert_non_null(big);
    memset(big, 'a', WN_TOKENIZER_TEXT_MAX + 1);
    assert_int_equal(wn_tokenizer_encode(tok, &part, 1, true, SIZE_MAX, &out, &err), WN_ELIMIT);
    assert_non_null(strstr(err.text, "bytes"));
    part.bytes_n = 1000;
    assert_int_equal(wn_tokenizer_encode(tok, &part, 1, true, 3, &out, &err), WN_ELIMIT);
    assert_non_null(strstr(err.text, "3 tokens"));
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        part = (struct wn_text){bad[i], strlen(bad[i]), WN_TEXT_USER};
        assert_int_equal(wn_tokenizer_encode(tok, &part, 1, true, 100, &out, &err), WN_EFORMAT);
        assert_non_null(strstr(err.text, "UTF-8"));
    }
    assert_int_equal(wn_tokenizer_encode(tok, NULL, 0, true, 100, &out, &err), WN_OK);
    assert_int_equal(out.n, 0);
    free(big);
    wn_tokens_fini(&out);
    wn_tokenizer_close(tok);
}

/* Texts that would take minutes, and the largest ones hours, if any step were quadratic. */
static void test_long(void **state)
{
    static const char *const files[] = {"llama.json", "gpt2.json", "qwen2.json"};
    static const char *const units[] = {"a", " ", "\n", "<", "\xCC\x81\xCC\xA3", "ab\xE4\xBD\xA0", "' \t"};
    const size_t largest = 1 << 20;
    char *text = malloc(largest);
    struct wn_tokens out = {0};

    (void)state;
    assert_non_null(text);
    for (size_t f = 0; f < 3; f++) {
        struct wn_tokenizer *tok = patched(files[f], NULL);
        for (size_t u = 0; u < sizeof(units) / sizeof(units[0]); u++) {
            const size_t n = u == 0 ? largest : largest / 4;
            struct wn_text part = {text, n - n % strlen(units[u]), WN_TEXT_USER};
            struct wn_err err = {0};
            clock_t start = clock();
            double s;
            for (size_t i = 0; i < part.bytes_n; i++) text[i] = units[u][i % strlen(units[u])];
            if (wn_tokenizer_encode(tok, &part, 1, true, SIZE_MAX, &out, &err) != WN_OK)
                fail_msg("%s, unit %zu: %s", files[f], u, err.text);
            s = (double)(clock() - start) / CLOCKS_PER_SEC;
            if (s > (u == 0 ? 20 : 5)) fail_msg("%s, unit %zu: %.1f s for %zu bytes", files[f], u, s, n);
        }
        wn_tokenizer_close(tok);
    }
    free(text);
    wn_tokens_fini(&out);
}

static void *encode_all(void *arg)
{
    const struct wn_tokenizer *tok = arg;
    struct wn_tokens out = {0};
    struct wn_text part = {"Read the text, please: <image>", 30, WN_TEXT_TRUSTED};
    size_t sum = 0;

    for (int i = 0; i < 2000; i++) {
        if (wn_tokenizer_encode(tok, &part, 1, true, 100, &out, NULL) != WN_OK) sum = 1u << 30;
        sum += out.n;
    }
    wn_tokens_fini(&out);
    return (void *)(uintptr_t)sum;
}

static void test_threads(void **state)
{
    struct wn_tokenizer *tok = patched("qwen2.json", NULL);
    pthread_t thread[4];
    void *sum[4];

    (void)state;
    for (int i = 0; i < 4; i++) assert_int_equal(pthread_create(&thread[i], NULL, encode_all, tok), 0);
    for (int i = 0; i < 4; i++) assert_int_equal(pthread_join(thread[i], &sum[i]), 0);
    for (int i = 1; i < 4; i++) assert_ptr_equal(sum[i], sum[0]);
    assert_true((uintptr_t)sum[0] > 0 && (uintptr_t)sum[0] < 1u << 30);
    wn_tokenizer_close(tok);
}

struct refusal {
    const char *file, *patch, *text; /* the text is part of the message */
    wn_status code;
};

static void test_refused(void **state)
{
    static const struct refusal all[] = {
        {"llama.json", "{\"version\":\"2.0\"}", "version '2.0'", WN_EUNSUPP},
        {"llama.json", "{\"normalizer\":{\"type\":\"NFKC\"}}", "normalizer type 'NFKC'", WN_EUNSUPP},
        {"llama.json", "{\"normalizer\":{\"type\":\"Prepend\"}}", "Prepend", WN_EFORMAT},
        {"llama.json", "{\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"a\"}}}", "Replace", WN_EUNSUPP},
        {"llama.json", "{\"pre_tokenizer\":{\"type\":\"Whitespace\"}}", "pre_tokenizer type 'Whitespace'", WN_EUNSUPP},
        {"llama.json", "{\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"ab\"}}", "character", WN_EFORMAT},
        {"llama.json", "{\"pre_tokenizer\":{\"type\":\"Metaspace\",\"prepend_scheme\":\"x\"}}", "'x'", WN_EUNSUPP},
        {"llama.json", "{\"decoder\":null}", "decoder", WN_EUNSUPP},
        {"llama.json", "{\"decoder\":{\"type\":\"WordPiece\"}}", "decoder type 'WordPiece'", WN_EUNSUPP},
        {"llama.json", "{\"decoder\":{\"decoders\":[{\"type\":\"Strip\"}]}}", "Strip", WN_EUNSUPP},
        {"llama.json", "{\"post_processor\":{\"type\":\"BertProcessing\"}}", "'BertProcessing'", WN_EUNSUPP},
        {"llama.json", "{\"post_processor\":{\"special_tokens\":{\"<s>\":{\"ids\":[70000]}}}}", "<s>", WN_EFORMAT},
        {"llama.json", "{\"post_processor\":{\"single\":[]}}", "0 texts", WN_EUNSUPP},
        {"llama.json", "{\"model\":7}", "model", WN_EFORMAT},
        {"llama.json", "{\"model\":{\"type\":\"Unigram\"}}", "model type 'Unigram'", WN_EUNSUPP},
        {"llama.json", "{\"model\":{\"dropout\":0.1}}", "dropout", WN_EUNSUPP},
        {"llama.json", "{\"model\":{\"end_of_word_suffix\":\"</w>\"}}", "end_of_word_suffix", WN_EUNSUPP},
        {"llama.json", "{\"model\":{\"unk_token\":\"nope\"}}", "unk_token 'nope'", WN_EFORMAT},
        {"llama.json", "{\"model\":{\"vocab\":[]}}", "vocab", WN_EFORMAT},
        {"llama.json", "{\"model\":{\"vocab\":{\"<s>\":-1}}}", "model.vocab", WN_EFORMAT},
        {"llama.json", "{\"model\":{\"vocab\":{\"<s>\":1048576}}}", "model.vocab", WN_EFORMAT},
        {"llama.json", "{\"model\":{\"vocab\":{\"<s>\":5}}}", "twice", WN_EFORMAT},
        {"llama.json", "{\"model\":{\"merges\":[\"e r s\"]}}", "model.merges[0]", WN_EFORMAT},
        {"llama.json", "{\"model\":{\"merges\":[[\"e\"]]}}", "model.merges[0]", WN_EFORMAT},
        {"llama.json", "{\"model\":{\"merges\":[\"#version: 0.2\",\"e nope\"]}}", "model.merges[1]", WN_EFORMAT},
        {"llama.json", "{\"model\":{\"merges\":null}}", "model.merges", WN_EFORMAT},
        {"llama.json", "{\"added_tokens\":[{\"content\":\"x\"}]}", "added_tokens[0]", WN_EFORMAT},
        {"llama.json", "{\"added_tokens\":[{\"id\":3,\"content\":\"<s>\"}]}", "added_tokens[0]", WN_EFORMAT},
        {"llama.json", "{\"added_tokens\":[{\"id\":1,\"content\":\"new\"}]}", "added_tokens[0]", WN_EFORMAT},
        {"llama.json", "{\"added_tokens\":[{\"id\":5000,\"content\":\"\"}]}", "added_tokens[0]", WN_EFORMAT},
        {"qwen2.json", "{\"pre_tokenizer\":{\"pretokenizers\":[{\"type\":\"Digits\"}]}}", "'Digits'", WN_EUNSUPP},
        {"qwen2.json", "{\"pre_tokenizer\":{\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"String\":\"a\"}}]}}",
         "Regex", WN_EUNSUPP},
        {"qwen2.json", "{\"pre_tokenizer\":{\"pretokenizers\":[{\"type\":\"ByteLevel\"},{\"type\":\"ByteLevel\"}]}}",
         "after ByteLevel", WN_EUNSUPP},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        struct wn_tokenizer *tok = NULL;
        struct wn_err err = {0};
        json_t *j = load(all[i].file), *patch = json_loads(all[i].patch, 0, NULL);
        assert_non_null(patch);
        assert_int_equal(json_object_update_recursive(j, patch), 0);
        if (parse(&tok, j, &err) != all[i].code || !strstr(err.text, all[i].text))
            fail_msg("%s: \"%s\"", all[i].patch, err.text);
        assert_null(tok);
        json_decref(patch);
        json_decref(j);
    }
}

static void test_refused_patterns(void **state)
{
    static const char *const bad[] = {"",      "[a&&b]", "[a[b]]", "\\w+", "\\bx", "(?<name>a)", "(*ACCEPT)", "^a",
                                      "a{,3}", "a{2}+",  "(a",     "[]a]", "\\",   "[\\S]",      "(?x: a)",   "a$",
                                      "\\x41", "a**",    "\\pL",   "\\p{",  "\\K",  "\\p{Nope}",  "a\\1",      "(?R)"};

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct wn_tokenizer *tok = NULL;
        struct wn_err err = {0};
        json_t *j = load("qwen2.json");
        json_t *split = json_array_get(json_object_get(json_object_get(j, "pre_tokenizer"), "pretokenizers"), 0);
        assert_int_equal(json_object_set_new(json_object_get(split, "pattern"), "Regex", json_string(bad[i])), 0);
        if (parse(&tok, j, &err) == WN_OK) fail_msg("the pattern \"%s\" is accepted", bad[i]);
        assert_non_null(strstr(err.text, "regex: "));
        assert_null(tok);
        json_decref(j);
    }
}

static void test_refused_bytes(void **state)
{
    static const char *const bad[] = {"", "{", "[]", "7", "\xFF\xFE", "{\"model\":\"\xC3\"}", "{\"version\":\"1.0\"}",
                                      "{\"version\":\"1.0\",\"version\":\"1.0\"}"};
    struct wn_tokenizer *tok = NULL;
    struct wn_err err = {0};
    char *deep = malloc(1 << 20), *wide = malloc((size_t)9 << 20);

    (void)state;
    assert_true(deep && wide);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_not_equal(wn_tokenizer_parse(&tok, bad[i], strlen(bad[i]), &err), WN_OK);
        assert_null(tok);
    }
    memset(deep, '[', 1 << 20);
    assert_int_equal(wn_tokenizer_parse(&tok, deep, 1 << 20, &err), WN_EFORMAT);
    memset(wide, ',', (size_t)9 << 20);
    assert_int_equal(wn_tokenizer_parse(&tok, wide, (size_t)9 << 20, &err), WN_ELIMIT);
    assert_int_equal(wn_tokenizer_parse(&tok, wide, WN_TOKENIZER_FILE_MAX + 1, &err), WN_ELIMIT);
    assert_int_equal(wn_tokenizer_open(&tok, "tests/no-such-file.json", &err), WN_EIO);
    assert_non_null(strstr(err.text, "tests/no-such-file.json"));
    assert_int_equal(wn_tokenizer_open(&tok, "tests", &err), WN_ELIMIT);
    assert_int_equal(wn_tokenizer_open(&tok, GOLDEN "strings.json", &err), WN_EFORMAT);
    assert_non_null(strstr(err.text, "strings.json"));
    assert_null(tok);
    free(deep);
    free(wide);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),         cmocka_unit_test(test_tiny_llava),
        cmocka_unit_test(test_trust),          cmocka_unit_test(test_merges_cannot_inject),
        cmocka_unit_test(test_lookup),         cmocka_unit_test(test_text_errors),
        cmocka_unit_test(test_long),           cmocka_unit_test(test_threads),
        cmocka_unit_test(test_refused),        cmocka_unit_test(test_refused_patterns),
        cmocka_unit_test(test_refused_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
