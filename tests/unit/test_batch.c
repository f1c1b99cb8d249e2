/* tests/unit/test_batch.c - lines of a batch to requests, answers to lines, and the two files of a resumable run. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/batch.h"
#include "tests/scratch.h"

#define HEAD     "{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\"body\":"
#define MESSAGES "\"messages\":[{\"role\":\"user\",\"content\":\"Why?\"}]"

static char folder[64];

static int make_folder(void **state)
{
    (void)state;
    return scratch_make(folder, sizeof(folder), "test-batch") ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    return scratch_remove(folder) ? 0 : -1;
}

static const char *in_folder(const char *name)
{
    static char path[4][128];
    static int i;

    i = (i + 1) % 4;
    snprintf(path[i], sizeof(path[i]), "%s/%s", folder, name);
    return path[i];
}

static char *read_text(const char *path)
{
    static char text[8192];
    FILE *f = fopen(path, "r");

    assert_non_null(f);
    text[fread(text, 1, sizeof(text) - 1, f)] = '\0';
    fclose(f);
    return text;
}

/* ---- input lines ---- */

static void test_all_fields(void **state)
{
    static const char line[] =
        HEAD "{\"model\":\"tiny\",\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"One\"},"
             "{\"type\":\"image_url\",\"image_url\":{\"url\":\"a.jpg\",\"detail\":\"high\"}},{\"type\":\"text\","
             "\"text\":\"two\"},{\"type\":\"image_url\",\"image_url\":\"b.png\"}]}],\"max_completion_tokens\":17,"
             "\"temperature\":0.5,\"top_p\":0.25,\"top_k\":9,\"seed\":123456789012,\"stop\":[\"x\",\"yy\"],\"n\":3,"
             "\"ignore_eos\":true,"
             "\"stream\":false,\"user\":\"me\",\"logit_bias\":null,\"image_pruning\":{\"method\":\"cls-topk\","
             "\"keep\":64,\"rate\":null,\"cap\":99,\"position\":\"original\",\"projected\":true,\"setting\":\"paper\","
             "\"seed\":3,\"options\":\"neighbours=8\"}}}";
    struct batch_request r;
    struct wn_err err = {0};
    (void)state;

    if (batch_line_parse(&r, line, strlen(line), &err) != WN_OK) fail_msg("%s", err.text);
    assert_string_equal(r.custom_id, "a");
    assert_string_equal(r.chat.model, "tiny");
    assert_string_equal(r.chat.prompt, "One\ntwo");
    assert_int_equal(r.chat.request.images_n, 2);
    assert_string_equal(r.chat.image_url[0], "a.jpg");
    assert_string_equal(r.chat.image_url[1], "b.png");
    assert_int_equal(r.chat.request.max_tokens, 17);
    assert_true(r.chat.request.temperature == 0.5f && r.chat.request.top_p == 0.25f);
    assert_int_equal(r.chat.request.top_k, 9);
    assert_int_equal(r.chat.request.n, 3);
    assert_true(r.chat.request.ignore_eos);
    assert_int_equal(r.chat.request.seed, 123456789012);
    assert_int_equal(r.chat.request.stop_n, 2);
    assert_string_equal(r.chat.request.stop[1], "yy");
    assert_string_equal(r.chat.request.pruning_method, "cls-topk");
    assert_int_equal(r.chat.request.pruning_keep, 64);
    assert_int_equal(r.chat.request.pruning_cap, 99);
    assert_int_equal(r.chat.request.pruning_position, WINNOW_POSITION_ORIGINAL);
    assert_true(r.chat.request.pruning_projected && r.chat.pruned);
    assert_string_equal(r.chat.request.pruning_setting, "paper");
    assert_int_equal(r.chat.request.pruning_seed, 3);
    assert_string_equal(r.chat.request.pruning_options, "neighbours=8");
    batch_request_fini(&r);
}

static void test_least_fields(void **state)
{
    static const char line[] = HEAD "{" MESSAGES ",\"temperature\":0,\"max_tokens\":65536,\"stop\":null}}";
    struct batch_request r;
    struct wn_err err = {0};
    (void)state;

    if (batch_line_parse(&r, line, strlen(line), &err) != WN_OK) fail_msg("%s", err.text);
    assert_true(r.chat.request.temperature == 0);
    assert_int_equal(r.chat.request.max_tokens, 65536);
    assert_int_equal(r.chat.request.stop_n, 0);
    assert_true(r.chat.request.quiet); /* the file wants the end, not each token */
    batch_request_fini(&r);
}

static void refused(const char *line, wn_status code, const char *word)
{
    struct batch_request r;
    struct wn_err err = {0};

    if (batch_line_parse(&r, line, strlen(line), &err) != code) fail_msg("%s: '%s'", line, err.text);
    if (!strstr(err.text, word)) fail_msg("%s: '%s' is not in '%s'", line, word, err.text);
    batch_request_fini(&r);
}

static void test_bad_lines_are_refused_by_name(void **state)
{
    (void)state;
    refused("", WN_EFORMAT, "JSON");
    refused("[]", WN_EFORMAT, "object");
    refused("{\"custom_id\":\"a\"", WN_EFORMAT, "JSON");
    refused("{\"custom_id\":\"a\",\"custom_id\":\"b\"}", WN_EFORMAT, "duplicate");
    refused("{\"custom_id\":\"a\\u0000b\"}", WN_EFORMAT, "JSON");
    refused("{\"custom_id\":7}", WN_EINVAL, "custom_id");
    refused("{\"method\":\"POST\"}", WN_EINVAL, "custom_id");
    refused("{\"custom_id\":\"a\",\"method\":\"GET\"}", WN_EUNSUPP, "GET");
    refused("{\"custom_id\":\"a\",\"method\":null}", WN_EUNSUPP, "method ''");
    refused("{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/embeddings\"}", WN_EUNSUPP, "/v1/embeddings");
    refused(HEAD "7}", WN_EINVAL, "body");
    refused(HEAD "{}}", WN_EINVAL, "messages");
    refused(HEAD "{\"messages\":[]}}", WN_EINVAL, "messages");
    refused(HEAD "{\"messages\":[{\"role\":\"system\",\"content\":\"x\"}]}}", WN_EUNSUPP, "system");
    refused(HEAD "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"},{\"role\":\"user\"}]}}", WN_EUNSUPP,
            "only one");
    refused(HEAD "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"input_audio\"}]}]}}", WN_EUNSUPP,
            "audio");
    refused(HEAD "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]}}", WN_EINVAL, "url");
    refused(HEAD "{\"messages\":[{\"role\":\"user\",\"content\":[]}]}}", WN_EINVAL, "no text");
    refused(HEAD "{" MESSAGES ",\"max_tokens\":-1}}", WN_EINVAL, "max_tokens");
    refused(HEAD "{" MESSAGES ",\"max_tokens\":65537}}", WN_EINVAL, "max_tokens");
    refused(HEAD "{" MESSAGES ",\"max_tokens\":1.5}}", WN_EINVAL, "max_tokens");
    refused(HEAD "{" MESSAGES ",\"temperature\":\"hot\"}}", WN_EINVAL, "temperature");
    refused(HEAD "{" MESSAGES ",\"top_p\":1.01}}", WN_EINVAL, "top_p");
    refused(HEAD "{" MESSAGES ",\"stop\":[1]}}", WN_EINVAL, "stop");
    refused(HEAD "{" MESSAGES ",\"stop\":\"\"}}", WN_EINVAL, "stop: an empty text");
    refused(HEAD "{" MESSAGES ",\"image_pruning\":{\"keep\":0}}}", WN_EINVAL, "image_pruning.keep is 0");
    refused(HEAD "{" MESSAGES ",\"n\":17}}", WN_EINVAL, "n is no whole number from 0 to 16");
    refused(HEAD "{" MESSAGES ",\"n\":0}}", WN_EINVAL, "n is 0");
    refused(HEAD "{" MESSAGES ",\"stream\":true}}", WN_EUNSUPP, "stream");
    refused(HEAD "{" MESSAGES ",\"ignore_eos\":1}}", WN_EINVAL, "ignore_eos");
    refused(HEAD "{" MESSAGES ",\"logprobs\":\"yes\"}}", WN_EINVAL, "logprobs");
    refused(HEAD "{" MESSAGES ",\"top_logprobs\":21}}", WN_EINVAL, "top_logprobs");
    refused(HEAD "{" MESSAGES ",\"tools\":[]}}", WN_EUNSUPP, "tools");
    refused(HEAD "{" MESSAGES ",\"image_pruning\":{\"kep\":1}}}", WN_EUNSUPP, "kep");
    refused(HEAD "{" MESSAGES ",\"image_pruning\":{\"rate\":1.01}}}", WN_EINVAL, "rate");
    refused(HEAD "{" MESSAGES ",\"image_pruning\":{\"position\":\"here\"}}}", WN_EINVAL, "position");
    refused(HEAD "{" MESSAGES ",\"image_pruning\":{\"projected\":1}}}", WN_EINVAL, "projected");
}

static void test_a_bad_line_keeps_its_custom_id(void **state)
{
    static const char line[] = HEAD "{" MESSAGES ",\"tools\":[]}}";
    struct batch_request r;
    (void)state;

    assert_int_equal(batch_line_parse(&r, line, strlen(line), NULL), WN_EUNSUPP);
    assert_string_equal(r.custom_id, "a");
    batch_request_fini(&r);
}

static size_t put(char *to, const char *text)
{
    memcpy(to, text, strlen(text) + 1);
    return strlen(text);
}

/* Each limit holds at its value and refuses one more. */
static void test_limits(void **state)
{
    static const char end[] = "\"}]}}";
    static const char start[] = HEAD "{\"messages\":[{\"role\":\"user\",\"content\":\"";
    char *line = malloc(sizeof(start) + WN_PROMPT_BYTES_MAX + sizeof(end)), *at;
    struct batch_request r;
    size_t n = WN_PROMPT_BYTES_MAX - 1;
    (void)state;

    assert_non_null(line);
    memcpy(line, start, sizeof(start) - 1);
    memset(line + sizeof(start) - 1, 'x', n);
    memcpy(line + sizeof(start) - 1 + n, end, sizeof(end));
    assert_int_equal(batch_line_parse(&r, line, strlen(line), NULL), WN_OK);
    batch_request_fini(&r);
    memset(line + sizeof(start) - 1, 'x', ++n);
    memcpy(line + sizeof(start) - 1 + n, end, sizeof(end));
    refused(line, WN_ELIMIT, "prompt");

    for (int images = WN_IMAGES_MAX; images <= WN_IMAGES_MAX + 1; images++) {
        at = line;
        at += put(at, HEAD "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"x\"}");
        for (int i = 0; i < images; i++) at += put(at, ",{\"type\":\"image_url\",\"image_url\":{\"url\":\"a\"}}");
        put(at, "]}]}}");
        assert_int_equal(batch_line_parse(&r, line, strlen(line), NULL), images > WN_IMAGES_MAX ? WN_ELIMIT : WN_OK);
        batch_request_fini(&r);
    }
    for (size_t id = BATCH_CUSTOM_ID_MAX; id <= BATCH_CUSTOM_ID_MAX + 1; id++) {
        at = line + put(line, "{\"custom_id\":\"");
        memset(at, 'i', id);
        put(at + id, "\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\"body\":{" MESSAGES "}}");
        assert_int_equal(batch_line_parse(&r, line, strlen(line), NULL),
                         id > BATCH_CUSTOM_ID_MAX ? WN_ELIMIT : WN_OK);
        batch_request_fini(&r);
    }
    free(line);
}

/* ---- pictures ---- */

static void decoded(const char *url, const char *want)
{
    uint8_t *data;
    size_t n;
    struct wn_err err = {0};

    if (chat_image_read(url, NULL, 100, &data, &n, &err) != WN_OK) fail_msg("%s: %s", url, err.text);
    assert_int_equal(n, strlen(want));
    assert_memory_equal(data, want, n);
    free(data);
}

static void not_decoded(const char *url, wn_status code, const char *word)
{
    uint8_t *data;
    size_t n;
    struct wn_err err = {0};

    if (chat_image_read(url, folder, 8, &data, &n, &err) != code) fail_msg("%s: '%s'", url, err.text);
    if (!strstr(err.text, word)) fail_msg("%s: '%s' is not in '%s'", url, word, err.text);
    assert_null(data);
}

static void test_data_urls(void **state)
{
    uint8_t *data;
    size_t n;
    (void)state;
    decoded("data:image/png;base64,Zg==", "f");
    decoded("data:image/png;base64,Zm8=", "fo");
    decoded("data:image/png;base64,Zm9v", "foo");
    decoded("DATA:image/jpeg;charset=x;BASE64,Zm9vYmFy", "foobar");
    decoded("data:image/webp;base64,+/+/", "\xfb\xff\xbf");
    not_decoded("data:image/png;base64,", WN_EFORMAT, "base64");
    not_decoded("data:image/png;base64,Zg=", WN_EFORMAT, "multiple");
    not_decoded("data:image/png;base64,Z===", WN_EFORMAT, "0x3d");
    not_decoded("data:image/png;base64,Zg==Zg==", WN_EFORMAT, "0x3d");
    not_decoded("data:image/png;base64,Zm 9", WN_EFORMAT, "0x20");
    not_decoded("data:image/png;base64,Zm-_", WN_EFORMAT, "0x2d");
    not_decoded("data:image/png,abc", WN_EUNSUPP, "base64");
    not_decoded("data:text/plain;base64,Zg==", WN_EUNSUPP, "no image");
    not_decoded("data:image/png;base64", WN_EFORMAT, "comma");
    not_decoded("data:image/png;base64,Zm9vYmFyZm9v", WN_ELIMIT, "more than 8 bytes"); /* 9 */
    assert_int_equal(chat_image_read("data:image/png;base64,Zm9vYmFyZm9v", NULL, 9, &data, &n, NULL), WN_OK);
    assert_int_equal(n, 9);
    free(data);
}

static void test_files(void **state)
{
    char url[256];
    uint8_t *data;
    size_t n;
    (void)state;

    assert_true(scratch_text(folder, "a b", "12345678"));
    assert_true(scratch_text(folder, "long", "123456789"));
    assert_true(scratch_text(folder, "empty", ""));
    decoded(in_folder("a b"), "12345678");
    snprintf(url, sizeof(url), "file://%s/a%%20b", folder);
    decoded(url, "12345678");
    assert_true(scratch_text(folder, "k~~k", "tilde"));
    snprintf(url, sizeof(url), "file://%s/%%6B%%7e%%7E%%6b", folder);
    decoded(url, "tilde");
    snprintf(url, sizeof(url), "file://localhost%s/a%%20b", folder);
    decoded(url, "12345678");
    assert_int_equal(chat_image_read("a b", folder, 8, &data, &n, NULL), WN_OK); /* relative to the root */
    free(data);
    not_decoded("long", WN_ELIMIT, "9 bytes");
    not_decoded("empty", WN_EINVAL, "0 bytes");
    not_decoded("none", WN_ENOENT, "none");
    not_decoded(".", WN_EINVAL, "no file");
    not_decoded("http://example.org/a.jpg", WN_EUNSUPP, "http");
    not_decoded("HTTPS://example.org/a.jpg", WN_EUNSUPP, "http");
    not_decoded("ftp://example.org/a.jpg", WN_EUNSUPP, "scheme");
    not_decoded("file://other/a.jpg", WN_EUNSUPP, "host");
    not_decoded("file:///a%00b", WN_EFORMAT, "%00");
    not_decoded("file:///a%2", WN_EFORMAT, "hex");
    not_decoded("file:///a%2g", WN_EFORMAT, "hex");
    not_decoded("file:///a%G2", WN_EFORMAT, "hex");
    not_decoded("file:///a%`2", WN_EFORMAT, "hex");
}

/* ---- output lines ---- */

static void test_answer_line(void **state)
{
    const struct chat_answer a = {
        .choice = {{.job_id = "J", .finish_reason = "stop", .text = (char *)"a \"cat\"\n\xff\xc3\xa9"}},
        .choices_n = 1,
        .usage = {.prompt_tokens = 100,
                  .completion_tokens = 5,
                  .image_tokens = 64,
                  .image_tokens_before_pruning = 576}};
    const struct batch_result r = {.id = "i", .custom_id = "c", .answer = &a, .model = "m", .created_s = 7};
    size_t n;
    char *line = batch_result_line(&r, &n);
    (void)state;

    assert_non_null(line);
    assert_int_equal(strlen(line), n);
    assert_string_equal(
        line,
        "{\"id\":\"i\",\"custom_id\":\"c\",\"response\":{\"status_code\":200,\"request_id\":\"J\",\"body\":{\"id\":"
        "\"chatcmpl-J\",\"object\":\"chat.completion\",\"created\":7,\"model\":\"m\",\"choices\":[{\"index\":0,"
        "\"message\":{\"role\":\"assistant\",\"content\":\"a \\\"cat\\\"\\n\xef\xbf\xbd\xc3\xa9\"},\"logprobs\":null,"
        "\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":100,\"completion_tokens\":5,\"total_tokens\":105,"
        "\"prompt_tokens_details\":{\"image_tokens\":64,\"image_tokens_before_pruning\":576}}}},\"error\":null}\n");
    free(line);
}

static void test_logprobs_in_an_answer(void **state)
{
    const struct chat_answer a = {
        .choice = {{.finish_reason = "stop",
                    .text = (char *)"a",
                    .scores_text = (char *)"{\"token\": \"a\", \"logprob\": -0.5, \"bytes\": [97], "
                                           "\"top_logprobs\": []}"}},
        .choices_n = 1};
    const struct batch_result r = {.id = "i", .answer = &a};
    size_t n;
    char *line = batch_result_line(&r, &n);
    (void)state;

    assert_non_null(line);
    assert_non_null(strstr(line, "\"logprobs\":{\"content\":[{\"token\":\"a\",\"logprob\":-0.5,\"bytes\":[97],"
                                 "\"top_logprobs\":[]}]},\"finish_reason\""));
    free(line);
}

static void test_several_choices(void **state)
{
    const struct chat_answer a = {.choice = {{.finish_reason = "stop", .text = (char *)"a"},
                                             {.finish_reason = "length", .text = (char *)"b"}},
                                  .choices_n = 2};
    const struct batch_result r = {.id = "i", .answer = &a};
    size_t n;
    char *line = batch_result_line(&r, &n);
    (void)state;

    assert_non_null(line);
    assert_non_null(strstr(line, "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"a\"},"
                                 "\"logprobs\":null,\"finish_reason\":\"stop\"},{\"index\":1,\"message\":{"
                                 "\"role\":\"assistant\",\"content\":\"b\"},\"logprobs\":null,"
                                 "\"finish_reason\":\"length\"}]"));
    free(line);
}

static void test_error_lines(void **state)
{
    struct batch_result r = {.id = "i", .error_code = "invalid_line", .error_text = "bad"};
    size_t n;
    char *line = batch_result_line(&r, &n);
    (void)state;

    assert_string_equal(line,
                        "{\"id\":\"i\",\"custom_id\":null,\"response\":null,\"error\":{\"code\":\"invalid_line\","
                        "\"message\":\"bad\"}}\n");
    free(line);
    r.http_status = 400;
    r.custom_id = "c";
    line = batch_result_line(&r, &n);
    assert_string_equal(line,
                        "{\"id\":\"i\",\"custom_id\":\"c\",\"response\":{\"status_code\":400,\"request_id\":\"\","
                        "\"body\":{\"error\":{\"code\":\"invalid_line\",\"message\":\"bad\"}}},\"error\":{\"code\":"
                        "\"invalid_line\",\"message\":\"bad\"}}\n");
    free(line);
}

/* ---- the two files ---- */

static const char *in, *out;

static wn_status open_files(struct batch_files *f, struct wn_err *err)
{
    in = in_folder("in");
    out = in_folder("out");
    return batch_files_open(f, in, out, err);
}

static void append_answer(struct batch_files *f, uint32_t item, const char *error_code)
{
    char id[BATCH_ID_MAX], *line;
    const struct chat_answer a = {.choice = {{.finish_reason = "stop", .text = (char *)"x"}}, .choices_n = 1};
    struct batch_result r = {.id = id, .custom_id = "c", .answer = error_code ? NULL : &a, .error_code = error_code,
                             .error_text = "bad"};
    size_t n;

    batch_item_id(&f->item[item], id);
    line = batch_result_line(&r, &n);
    assert_int_equal(batch_files_append(f, line, n, NULL), WN_OK);
    free(line);
}

static void remove_files(void)
{
    unlink(in_folder("in"));
    unlink(in_folder("out"));
}

static void test_resume_after_a_torn_line(void **state)
{
    struct batch_files f;
    char *line, *whole;
    size_t kept;
    (void)state;

    assert_true(scratch_text(folder, "in",
                             "{\"custom_id\":\"a\"}\n\n  \r\n{\"custom_id\":\"b\"}\nbroken\nbroken\n"
                             "{\"custom_id\":\"c\"}")); /* the last one without its newline */
    assert_int_equal(open_files(&f, NULL), WN_OK);
    assert_int_equal(f.items_n, 5);
    assert_int_equal(f.item[1].line, 4);
    assert_int_equal(batch_item_read(&f, 4, &line, NULL), WN_OK);
    assert_string_equal(line, "{\"custom_id\":\"c\"}");
    free(line);
    append_answer(&f, 1, NULL);
    append_answer(&f, 2, "invalid_line");
    kept = strlen(read_text(in_folder("out")));
    append_answer(&f, 4, NULL);
    batch_files_close(&f);

    for (long cut = (long)strlen(read_text(in_folder("out"))) - 1; cut > (long)kept; cut -= 7) {
        assert_int_equal(truncate(in_folder("out"), cut), 0);
        assert_int_equal(open_files(&f, NULL), WN_OK);
        assert_int_equal(f.before_n, 2);
        assert_int_equal(f.before_failed, 1);
        assert_true(!f.item[0].done && f.item[1].done && f.item[2].done && !f.item[3].done && !f.item[4].done);
        whole = read_text(in_folder("out"));
        assert_int_equal(strlen(whole), kept); /* cut off */
        assert_int_equal(f.out_bytes, kept);
        append_answer(&f, 4, NULL);
        batch_files_close(&f);
    }
    assert_int_equal(open_files(&f, NULL), WN_OK);
    assert_int_equal(f.before_n, 3);
    batch_files_close(&f);
    remove_files();
}

static void files_refused(wn_status code, const char *word)
{
    struct batch_files f;
    struct wn_err err = {0};

    if (open_files(&f, &err) != code) fail_msg("'%s'", err.text);
    if (!strstr(err.text, word)) fail_msg("'%s' is not in '%s'", word, err.text);
    batch_files_close(&f);
}

static void test_files_that_are_refused(void **state)
{
    struct batch_files f;
    struct wn_err err = {0};
    (void)state;

    assert_true(scratch_text(folder, "in",
                             "{\"custom_id\":\"a\"}\n{\"custom_id\":\"b\"}\n{\"x\":1,\"custom_id\":\"a\"}\n"));
    files_refused(WN_EINVAL, "line 3: custom_id 'a' is also in line 1");
    assert_true(scratch_text(folder, "in", "{\"custom_id\":\"a\"}\n"));
    assert_true(scratch_text(folder, "out", "my notes"));
    files_refused(WN_EFORMAT, "line 1");
    assert_string_equal(read_text(in_folder("out")), "my notes"); /* untouched */
    assert_true(scratch_text(folder, "out", "{\"id\":\"batch_req_12\"}\n"));
    files_refused(WN_EFORMAT, "line 1");
    unlink(in_folder("out"));
    assert_int_equal(open_files(&f, NULL), WN_OK);
    files_refused(WN_EBUSY, "another run");
    batch_files_close(&f);
    assert_int_equal(batch_files_open(&f, in_folder("in"), in_folder("in"), &err), WN_EINVAL);
    batch_files_close(&f);
    unlink(in_folder("in"));
    files_refused(WN_ENOENT, "cannot open");
    remove_files();
}

static void test_many_lines(void **state)
{
    enum { N = 5000 };
    struct batch_files f;
    FILE *file = fopen(in_folder("in"), "w");
    char *line, want[64];
    (void)state;

    for (int i = 0; i < N; i++) fprintf(file, "{\"custom_id\":\"%d\",\"pad\":\"%0*d\"}\n", i, i * 97 % 900 + 1, 0);
    fclose(file);
    assert_int_equal(open_files(&f, NULL), WN_OK); /* 2 MB: more than a block */
    assert_int_equal(f.items_n, N);
    for (int i = 0; i < N; i += 7) {
        assert_int_equal(batch_item_read(&f, (uint32_t)i, &line, NULL), WN_OK);
        snprintf(want, sizeof(want), "{\"custom_id\":\"%d\",", i);
        assert_memory_equal(line, want, strlen(want));
        assert_int_equal(line[strlen(line) - 1], '}');
        append_answer(&f, (uint32_t)i, NULL);
        free(line);
    }
    batch_files_close(&f);
    assert_int_equal(open_files(&f, NULL), WN_OK);
    for (int i = 0; i < N; i++) assert_int_equal(f.item[i].done, i % 7 == 0);
    batch_files_close(&f);
    remove_files();
}

static void test_keys_differ_with_line_and_picture(void **state)
{
    struct batch_request r = {0};
    char a[65], b[65], c[65];
    (void)state;

    r.chat.request.images_n = 1;
    r.chat.image[0] = (struct winnow_image){"one", 3};
    batch_key(&r, "line", 4, a);
    batch_key(&r, "link", 4, b);
    r.chat.image[0] = (struct winnow_image){"two", 3};
    batch_key(&r, "line", 4, c);
    assert_int_equal(strlen(a), 64);
    assert_string_not_equal(a, b);
    assert_string_not_equal(a, c);
    r.chat.image[0] = (struct winnow_image){"one", 3};
    batch_key(&r, "line", 4, c);
    assert_string_equal(a, c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_fields),
        cmocka_unit_test(test_least_fields),
        cmocka_unit_test(test_bad_lines_are_refused_by_name),
        cmocka_unit_test(test_a_bad_line_keeps_its_custom_id),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_data_urls),
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_answer_line),
        cmocka_unit_test(test_logprobs_in_an_answer), cmocka_unit_test(test_several_choices),
        cmocka_unit_test(test_error_lines),
        cmocka_unit_test(test_resume_after_a_torn_line),
        cmocka_unit_test(test_files_that_are_refused),
        cmocka_unit_test(test_many_lines),
        cmocka_unit_test(test_keys_differ_with_line_and_picture),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
