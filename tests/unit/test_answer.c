/* tests/unit/test_answer.c - daemon/answer: stop strings across tokens, text held back and let go, replay. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "daemon/answer.h"
#include "shard/tokenizer.h"

/* A byte-level tokenizer whose ids are single bytes: 0 'a' .. 25 'z', 26 the space; 27 0xc3, 28 0xa9, 29 0xa8: the
 * halves of two letters with accents; 30 to 32 the bytes of the euro sign. */
static struct wn_tokenizer *make_tokenizer(void)
{
    char json[4096];
    size_t n = (size_t)snprintf(
        json, sizeof(json),
        "{\"version\":\"1.0\",\"added_tokens\":[],\"normalizer\":null,"
        "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true,"
        "\"trim_offsets\":true},\"post_processor\":null,\"decoder\":{\"type\":\"ByteLevel\","
        "\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true},"
        "\"model\":{\"type\":\"BPE\",\"vocab\":{");
    struct wn_tokenizer *tok = NULL;
    struct wn_err err = {0};
    for (int i = 0; i < 26; i++)
        n += (size_t)snprintf(json + n, sizeof(json) - n, "\"%c\":%d,", 'a' + i, i);
    snprintf(json + n, sizeof(json) - n,
             "\"\\u0120\":26,\"\\u00c3\":27,\"\\u00a9\":28,\"\\u00a8\":29,\"\\u00e2\":30,\"\\u0124\":31,"
             "\"\\u00ac\":32},\"merges\":[]}}");
    if (wn_tokenizer_parse(&tok, json, strlen(json), &err) != WN_OK) fail_msg("%s", err.text);
    return tok;
}

static uint32_t id_of(char c)
{
    static const char bytes[] = " \xc3\xa9\xa8\xe2\x82\xac";
    const char *at = strchr(bytes, c);

    return at ? 26 + (uint32_t)(at - bytes) : (uint32_t)(c - 'a');
}

static void append(char *out, const char *text)
{
    snprintf(out + strlen(out), 64 - strlen(out), "%s", text); /* every buffer here has 64 bytes */
}

/* Pushes the letters of `in`; appends what comes out, with '|' after each push if bars is set. Returns stopped. */
static bool push_all(struct wn_answer *a, const char *in, char *out)
{
    bool stopped = false;
    for (; *in && !stopped; in++) {
        const char *text;
        assert_int_equal(wn_answer_push(a, id_of(*in), &text, &stopped, NULL), WN_OK);
        append(out, text);
    }
    return stopped;
}

static void finish(struct wn_answer *a, char *out)
{
    const char *text;
    assert_int_equal(wn_answer_finish(a, &text, NULL), WN_OK);
    append(out, text);
}

static void test_plain(void **state)
{
    struct wn_tokenizer *tok = make_tokenizer();
    struct wn_answer *a = NULL;
    char out[64] = "";
    (void)state;
    assert_int_equal(wn_answer_create(&a, tok, NULL, 0, NULL), WN_OK);
    assert_false(push_all(a, "red circle", out));
    finish(a, out);
    assert_string_equal(out, "red circle");
    wn_answer_destroy(a);
    wn_tokenizer_close(tok);
}

static void test_stop_string_is_cut(void **state)
{
    struct wn_tokenizer *tok = make_tokenizer();
    char *stops[] = {"user", "use it"};
    struct wn_answer *a = NULL;
    char out[64] = "";
    (void)state;
    assert_int_equal(wn_answer_create(&a, tok, stops, 2, NULL), WN_OK);
    assert_true(push_all(a, "blue user red", out));
    assert_string_equal(out, "blue ");
    wn_answer_destroy(a);
    wn_tokenizer_close(tok);
}

static void test_false_start_is_let_go(void **state)
{
    struct wn_tokenizer *tok = make_tokenizer();
    char *stops[] = {"aab"};
    struct wn_answer *a = NULL;
    char out[64] = "";
    (void)state;
    assert_int_equal(wn_answer_create(&a, tok, stops, 1, NULL), WN_OK);
    assert_false(push_all(a, "aaa", out));
    assert_string_equal(out, "a"); /* the last two may still become a stop string */
    assert_true(push_all(a, "b", out));
    finish(a, out);
    assert_string_equal(out, "a");
    wn_answer_destroy(a);

    out[0] = '\0';
    assert_int_equal(wn_answer_create(&a, tok, stops, 1, NULL), WN_OK);
    assert_false(push_all(a, "xaa", out));
    assert_string_equal(out, "x");
    finish(a, out);
    assert_string_equal(out, "xaa"); /* the answer ended before the stop string did */
    wn_answer_destroy(a);
    wn_tokenizer_close(tok);
}

/* Letters of several bytes come in pieces, and so may a stop string: it is found in the text, whatever the tokens. No
 * piece of a letter is shown, not even of one that begins like the stop string's. */
static void test_stop_string_in_pieces(void **state)
{
    static const struct {
        const char *said, *shown; /* '|' after each token */
        bool stopped;
    } cases[] = {
        {"caf\xc3\xa9 x", "c||||", true}, /* "af" is held: the stop string begins so */
        {"caf\xc3\xa8 x", "c||||af\xc3\xa8| |x|", false}, /* the other accent: all is let go */
        {"x\xe2\x82\xac" "caf\xc3\xa9", "x|||\xe2\x82\xac|c||||", true},
        {"a\xe2\x82\xac", "|||a\xe2\x82\xac|", false},
        {"z\xc3\xa9\xc3\xa9", "z||||", true}, /* a stop string of nothing but such letters */
    };
    char *stops[] = {"af\xc3\xa9", "\xc3\xa9\xc3\xa9"};
    struct wn_tokenizer *tok = make_tokenizer();
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct wn_answer *a = NULL;
        char out[64] = "";
        bool stopped = false;
        assert_int_equal(wn_answer_create(&a, tok, stops, 2, NULL), WN_OK);
        for (const char *in = cases[i].said; *in && !stopped; in++) {
            const char *text;
            assert_int_equal(wn_answer_push(a, id_of(*in), &text, &stopped, NULL), WN_OK);
            append(out, text);
            if (!stopped) append(out, "|");
        }
        assert_int_equal(stopped, cases[i].stopped);
        assert_string_equal(out, cases[i].shown);
        wn_answer_destroy(a);
    }
    wn_tokenizer_close(tok);
}

/* The last token takes along what was held back: no text is without a token. */
static void test_last_token(void **state)
{
    struct wn_tokenizer *tok = make_tokenizer();
    char *stops[] = {"aab"};
    static const struct {
        char last;
        const char *text;
        bool stopped;
    } cases[] = {{'a', "aaa", false}, {'b', "", true}};
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct wn_answer *a = NULL;
        char out[64] = "";
        const char *text;
        bool stopped;
        assert_int_equal(wn_answer_create(&a, tok, stops, 1, NULL), WN_OK);
        assert_false(push_all(a, "aa", out));
        assert_string_equal(out, "");
        assert_int_equal(wn_answer_push_last(a, id_of(cases[i].last), &text, &stopped, NULL), WN_OK);
        assert_string_equal(text, cases[i].text);
        assert_int_equal(stopped, cases[i].stopped);
        wn_answer_destroy(a);
    }
    wn_tokenizer_close(tok);
}

static void test_replay_goes_on_where_it_was(void **state)
{
    struct wn_tokenizer *tok = make_tokenizer();
    char *stops[] = {"end"};
    struct wn_answer *a = NULL, *b = NULL;
    char whole[64] = "", before[64] = "", after[64] = "";
    (void)state;
    assert_int_equal(wn_answer_create(&a, tok, stops, 1, NULL), WN_OK);
    push_all(a, "we enter e", whole);
    push_all(a, "nd x", whole);
    for (size_t cut = 0; cut <= 10; cut++) {
        char head[16] = "";
        before[0] = after[0] = '\0';
        memcpy(head, "we enter e", cut);
        head[cut] = '\0';
        assert_int_equal(wn_answer_create(&b, tok, stops, 1, NULL), WN_OK);
        push_all(b, head, before); /* the first attempt showed this */
        push_all(b, &"we enter end x"[cut], after);
        append(before, after);
        assert_string_equal(before, whole);
        wn_answer_destroy(b);
    }
    wn_answer_destroy(a);
    wn_tokenizer_close(tok);
}

static void test_empty_stop_is_refused(void **state)
{
    struct wn_tokenizer *tok = make_tokenizer();
    char *stops[] = {"ok", ""};
    struct wn_answer *a = NULL;
    struct wn_err err = {0};
    (void)state;
    assert_int_equal(wn_answer_create(&a, tok, stops, 2, &err), WN_EINVAL);
    assert_null(a);
    wn_tokenizer_close(tok);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain),
        cmocka_unit_test(test_stop_string_is_cut),
        cmocka_unit_test(test_false_start_is_let_go),
        cmocka_unit_test(test_stop_string_in_pieces),
        cmocka_unit_test(test_last_token),
        cmocka_unit_test(test_replay_goes_on_where_it_was),
        cmocka_unit_test(test_empty_stop_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
