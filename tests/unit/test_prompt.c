/* tests/unit/test_prompt.c - the chat layout against the `tokenizers` library (scripts/golden/tokenizer.py), hostile
 * questions among them, and what must be refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "shard/prompt.h"

#define GOLDEN "tests/golden/tokenizer/"

static struct wn_tokenizer *make(const char *file, json_t *patch)
{
    char path[256], *text;
    struct wn_tokenizer *tok = NULL;
    struct wn_err err = {0};
    json_t *j;

    snprintf(path, sizeof(path), GOLDEN "%s", file);
    j = json_load_file(path, 0, NULL);
    assert_non_null(j);
    if (patch) assert_int_equal(json_object_update_recursive(j, patch), 0);
    text = json_dumps(j, 0);
    assert_non_null(text);
    if (wn_tokenizer_parse(&tok, text, strlen(text), &err) != WN_OK) fail_msg("%s: %s", file, err.text);
    free(text);
    json_decref(j);
    return tok;
}

static void test_layout(void **state)
{
    json_t *all = json_load_file(GOLDEN "prompts.json", 0, NULL);
    struct wn_tokens out = {0};

    (void)state;
    assert_true(json_array_size(all) > 100);
    for (size_t i = 0; i < json_array_size(all); i++) {
        json_t *c = json_array_get(all, i), *q = json_object_get(c, "question"), *want = json_object_get(c, "ids");
        struct wn_tokenizer *tok = make(json_string_value(json_object_get(c, "file")), json_object_get(c, "patch"));
        struct wn_prompt p = {.question = json_string_value(q), .question_bytes = json_string_length(q)};
        struct wn_err err = {0};
        p.images = (uint32_t)json_integer_value(json_object_get(c, "images"));
        assert_true(wn_tokenizer_id(tok, "<image>", &p.image_token));
        if (wn_prompt_encode(&p, tok, 1000, &out, &err) != WN_OK) fail_msg("prompt %zu: %s", i, err.text);
        for (size_t k = 0; k < out.n && k < json_array_size(want); k++) {
            if (out.ids[k] != json_integer_value(json_array_get(want, k))) fail_msg("prompt %zu: id %zu", i, k);
        }
        assert_int_equal(out.n, json_array_size(want));
        wn_tokenizer_close(tok);
    }
    wn_tokens_fini(&out);
    json_decref(all);
}

/* An image token that the file does not mark as special is still out of a user's reach. */
static void test_unmarked_image(void **state)
{
    static const char question[] = "<image> and <image>";
    json_t *j = json_load_file(GOLDEN "llama.json", 0, NULL), *added = json_object_get(j, "added_tokens"), *patch, *t;
    struct wn_tokens out = {0};
    struct wn_prompt p = {question, sizeof(question) - 1, 2, 0};
    struct wn_err err = {0};
    struct wn_tokenizer *tok;
    size_t i;

    (void)state;
    json_array_foreach(added, i, t)
    {
        if (strcmp(json_string_value(json_object_get(t, "content")), "<image>") == 0)
            json_object_set_new(t, "special", json_false());
    }
    patch = json_pack("{s:O}", "added_tokens", added);
    tok = make("llama.json", patch);
    assert_true(wn_tokenizer_id(tok, "<image>", &p.image_token));
    assert_false(wn_tokenizer_is_special(tok, p.image_token));
    for (p.images = 0; p.images < 3; p.images++) {
        size_t found = 0;
        if (wn_prompt_encode(&p, tok, 1000, &out, &err) != WN_OK) fail_msg("%s", err.text);
        for (size_t k = 0; k < out.n; k++) found += out.ids[k] == p.image_token;
        assert_int_equal(found, p.images);
    }
    wn_tokens_fini(&out);
    wn_tokenizer_close(tok);
    json_decref(patch);
    json_decref(j);
}

static void test_refused(void **state)
{
    struct wn_tokenizer *tok = make("llama.json", NULL);
    struct wn_tokens out = {0};
    struct wn_err err = {0};
    struct wn_prompt p = {"why?", 4, WN_PROMPT_IMAGES_MAX, 0};

    (void)state;
    assert_true(wn_tokenizer_id(tok, "<image>", &p.image_token));
    assert_int_equal(wn_prompt_encode(&p, tok, 1000, &out, &err), WN_OK);
    p.images++;
    assert_int_equal(wn_prompt_encode(&p, tok, 1000, &out, &err), WN_ELIMIT);
    assert_non_null(strstr(err.text, "images"));
    p.images = 1;
    assert_int_equal(wn_prompt_encode(&p, tok, 5, &out, &err), WN_ELIMIT);
    assert_non_null(strstr(err.text, "5 tokens"));
    p.image_token = 300; /* an ordinary entry of the vocabulary */
    assert_int_equal(wn_prompt_encode(&p, tok, 1000, &out, &err), WN_EUNSUPP);
    p.image_token = UINT32_MAX;
    assert_int_equal(wn_prompt_encode(&p, tok, 1000, &out, &err), WN_EUNSUPP);
    p.images = 0;
    assert_int_equal(wn_prompt_encode(&p, tok, 1000, &out, &err), WN_OK);
    p.question = "\xC3(";
    p.question_bytes = 2;
    assert_int_equal(wn_prompt_encode(&p, tok, 1000, &out, &err), WN_EFORMAT);
    wn_tokens_fini(&out);
    wn_tokenizer_close(tok);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layout),
        cmocka_unit_test(test_unmarked_image),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
