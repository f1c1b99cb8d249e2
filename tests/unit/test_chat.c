/* tests/unit/test_chat.c - bodies of chat completions to requests, and events to answers, whole and in pieces. What
 * bodies and lines of a batch have in common is in test_batch.c. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "client/chat.h"

#define MESSAGES "\"messages\":[{\"role\":\"user\",\"content\":\"Why?\"}]"

/* ---- requests ---- */

static wn_status parse(const char *text, json_t **root, struct chat_request *r, struct wn_err *err)
{
    memset(r, 0, sizeof(*r));
    assert_int_equal(chat_json_load(root, text, strlen(text), err), WN_OK);
    return chat_request_parse(r, *root, err);
}

static void test_stream_fields(void **state)
{
    struct chat_request r;
    struct wn_err err = {0};
    json_t *root;
    (void)state;

    assert_int_equal(parse("{" MESSAGES ",\"stream\":true,\"stream_options\":{\"include_usage\":true},"
                           "\"deadline_ms\":1500}",
                           &root, &r, &err),
                     WN_OK);
    assert_true(r.stream && r.stream_usage && !r.request.quiet);
    assert_int_equal(r.request.deadline_ms, 1500);
    assert_string_equal(r.request.prompt, "Why?");
    chat_request_fini(&r);
    json_decref(root);
    assert_int_equal(parse("{\"stream\":false," MESSAGES ",\"logprobs\":true}", &root, &r, &err), WN_OK);
    assert_true(!r.stream && !r.request.quiet && r.request.logprobs);
    chat_request_fini(&r);
    json_decref(root);
    assert_int_equal(parse("{" MESSAGES "}", &root, &r, &err), WN_OK);
    assert_true(r.request.quiet);
    chat_request_fini(&r);
    json_decref(root);
}

static void refused(const char *text, wn_status code, const char *field, const char *word)
{
    struct chat_request r;
    struct wn_err err = {0};
    json_t *root;

    if (parse(text, &root, &r, &err) != code || !strstr(err.text, word))
        fail_msg("%s: %d '%s'", text, err.code, err.text);
    if (!r.field || strcmp(r.field, field) != 0) fail_msg("%s: field '%s'", text, r.field ? r.field : "");
    chat_request_fini(&r);
    json_decref(root);
}

static void test_the_field_at_fault(void **state)
{
    (void)state;
    refused("{\"n\":1}", WN_EINVAL, "messages", "no messages");
    refused("{" MESSAGES ",\"n\":17}", WN_EINVAL, "n", "16");
    refused("{" MESSAGES ",\"tools\":[]}", WN_EUNSUPP, "tools", "tools");
    refused("{" MESSAGES ",\"stream\":1}", WN_EINVAL, "stream", "true nor false");
    refused("{" MESSAGES ",\"stream_options\":7}", WN_EINVAL, "stream_options", "object");
    refused("{" MESSAGES ",\"stream_options\":{\"x\":1}}", WN_EUNSUPP, "stream_options", "stream_options.x");
    refused("{" MESSAGES ",\"stream_options\":{\"include_usage\":true}}", WN_EINVAL, "stream_options", "without");
    refused("{" MESSAGES ",\"image_pruning\":{\"keep\":-1}}", WN_EINVAL, "image_pruning", "keep");
    refused("{\"messages\":[{\"role\":\"system\",\"content\":\"x\"}]}", WN_EUNSUPP, "messages", "system");
}

/* Nothing but the request itself is read for a stranger. */
static void test_pictures_of_strangers(void **state)
{
    static const char *const urls[] = {
        "/etc/passwd", "a.jpg", "file:///etc/passwd", "http://localhost/a.jpg", "https://example.org/a.jpg",
        "ftp://x/y"};
    struct chat_request r;
    struct wn_err err = {0};
    char text[512];
    json_t *root;
    (void)state;

    for (size_t i = 0; i < sizeof(urls) / sizeof(urls[0]); i++) {
        snprintf(text, sizeof(text),
                 "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"x\"},"
                 "{\"type\":\"image_url\",\"image_url\":{\"url\":\"%s\"}}]}]}",
                 urls[i]);
        assert_int_equal(parse(text, &root, &r, &err), WN_OK);
        assert_int_equal(chat_images_decode(&r, &err), WN_EUNSUPP);
        assert_non_null(strstr(err.text, urls[i]));
        assert_string_equal(r.field, "messages");
        chat_request_fini(&r);
        json_decref(root);
    }
    assert_int_equal(
        parse("{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"x\"},{\"type\":"
              "\"image_url\",\"image_url\":{\"url\":\"data:image/webp;base64,Zm9v\"}}]}]}",
              &root, &r, &err),
        WN_OK);
    assert_int_equal(chat_images_decode(&r, &err), WN_OK);
    assert_int_equal(r.image[0].bytes, 3);
    assert_memory_equal(r.image[0].data, "foo", 3);
    chat_request_fini(&r);
    json_decref(root);
}

/* So many values are read, and one more is not; what stands in quotes is no value. */
static void test_values_are_counted(void **state)
{
    const size_t room = 4 * CHAT_VALUES_MAX;
    char *text = malloc(room);
    struct wn_err err = {0};
    json_t *root;
    size_t n;
    (void)state;

    assert_non_null(text);
    for (int more = 0; more < 2; more++) { /* the object, the list, a colon, and the list's commas */
        n = (size_t)snprintf(text, room, "{\"a,[{:\\\"\":[0");
        for (int i = 0; i < CHAT_VALUES_MAX - 3 + more; i++) n += (size_t)snprintf(text + n, room - n, ",0");
        n += (size_t)snprintf(text + n, room - n, "]}");
        assert_int_equal(chat_json_load(&root, text, n, &err), more ? WN_ELIMIT : WN_OK);
        json_decref(root);
    }
    free(text);
    assert_int_equal(chat_json_load(&root, "{\"a\":\"", 6, &err), WN_EFORMAT);
    assert_null(root);
    assert_int_equal(chat_json_load(&root, "{\"a\\", 4, &err), WN_EFORMAT);
    assert_int_equal(chat_json_load(&root, "[1]", 3, &err), WN_EFORMAT);
    json_decref(root);
}

/* ---- answers ---- */

static struct winnow_event event(enum winnow_event_type type, uint32_t choice, const char *text)
{
    struct winnow_event ev = {.type = type, .choice = choice, .text = text, .job_id = "J", .finish_reason = ""};

    if (type == WINNOW_EVENT_DONE) {
        ev.finish_reason = "stop";
        ev.usage = (struct winnow_usage){.prompt_tokens = 100,
                                         .completion_tokens = 3,
                                         .image_tokens = 64,
                                         .image_tokens_before_pruning = 576,
                                         .bytes_embedding = 1000,
                                         .pruning_method = "cls-topk",
                                         .cached_tokens = 7};
    }
    return ev;
}

/* What the events become, in pieces. */
static const char *stream(struct chat_stream *s, const struct winnow_event *events, size_t n)
{
    static char text[8192];
    FILE *f = fmemopen(text, sizeof(text), "w");

    assert_non_null(f);
    for (size_t i = 0; i < n; i++) assert_int_equal(chat_stream_event(s, &events[i], f), WN_OK);
    assert_int_equal(fclose(f), 0);
    return text;
}

#define CHUNK(choices)                                                                                               \
    "data: {\"id\":\"chatcmpl-J\",\"object\":\"chat.completion.chunk\",\"created\":7,\"model\":\"m\","               \
    "\"choices\":[" choices "]}\n\n"
#define CHOICE(index, delta, reason)                                                                                 \
    "{\"index\":" index ",\"delta\":{" delta "},\"logprobs\":null,\"finish_reason\":" reason "}"
#define ROLE "\"role\":\"assistant\",\"content\":\"\""

static void test_stream(void **state)
{
    struct chat_stream s = {.model = "m", .created_s = 7, .choices_n = 1};
    const struct winnow_event events[] = {event(WINNOW_EVENT_ACCEPTED, 0, ""),
                                          event(WINNOW_EVENT_TEXT, 0, "a \"cat\"\n"),
                                          event(WINNOW_EVENT_TEXT, 0, ""),
                                          event(WINNOW_EVENT_TEXT, 0, "s"),
                                          event(WINNOW_EVENT_DONE, 0, "a \"cat\"\ns"),
                                          event(WINNOW_EVENT_DONE, 0, "never twice")};
    const char *text = stream(&s, events, 6);
    (void)state;

    assert_string_equal(text, CHUNK(CHOICE("0", ROLE, "null"))
                                  CHUNK(CHOICE("0", "\"content\":\"a \\\"cat\\\"\\n\"", "null"))
                                      CHUNK(CHOICE("0", "\"content\":\"s\"", "null"))
                                          CHUNK(CHOICE("0", "", "\"stop\"")) "data: [DONE]\n\n");
}

/* Choices come as they come; the end comes behind the last of them, and usage counts all. */
static void test_stream_of_choices_with_usage(void **state)
{
    struct chat_stream s = {.model = "m", .created_s = 7, .choices_n = 2, .with_usage = true};
    const struct winnow_event events[] = {event(WINNOW_EVENT_TEXT, 1, "b"), event(WINNOW_EVENT_DONE, 1, "b"),
                                          event(WINNOW_EVENT_TEXT, 0, "a"),
                                          event(WINNOW_EVENT_DONE, 0, "ax"), /* a piece that never came as TEXT */
                                          event(WINNOW_EVENT_TEXT, 2, "no such choice")};
    const char *text = stream(&s, events, 5), *end;
    (void)state;

    assert_non_null(strstr(text, CHOICE("0", "\"content\":\"x\"", "null")));
    assert_non_null(strstr(text, "\"usage\":null}\n\n"));
    assert_non_null(end = strstr(text, "\"choices\":[],\"usage\":{\"prompt_tokens\":100,\"completion_tokens\":6,"
                                       "\"total_tokens\":106,\"prompt_tokens_details\":{\"image_tokens\":64,"
                                       "\"image_tokens_before_pruning\":576,\"cached_tokens\":7},\"winnow\":{"));
    assert_non_null(strstr(end, "\"embedding\":2000"));
    assert_non_null(strstr(end, "\"method\":\"cls-topk\""));
    assert_string_equal(strstr(end, "}\n\n"), "}\n\ndata: [DONE]\n\n");
    assert_null(strstr(text, "no such"));
}

static void test_scores_in_a_stream(void **state)
{
    const struct winnow_chance top[2] = {{.id = 1, .logprob = -0.5f, .text = "a", .text_bytes = 1},
                                         {.id = 2, .logprob = -1, .text = "\xff", .text_bytes = 1}};
    const struct winnow_logprobs scores = {.chosen = top[0], .top = top, .top_n = 2};
    struct chat_stream s = {.model = "m", .created_s = 7, .choices_n = 1};
    const uint32_t id = 1;
    struct winnow_event ev = event(WINNOW_EVENT_TEXT, 0, "");
    const char *text;
    (void)state;

    ev.logprobs = &scores;
    ev.token_ids = &id;
    ev.token_ids_n = 1;
    text = stream(&s, &ev, 1); /* a part of a character has no text, and a probability */
    assert_non_null(
        strstr(text, "\"delta\":{\"content\":\"\"},\"logprobs\":{\"content\":[{\"token\":\"a\",\"logprob\":-0.5,"
                     "\"bytes\":[97],\"top_logprobs\":[{\"token\":\"a\",\"logprob\":-0.5,\"bytes\":[97]},"
                     "{\"token\":\"\xef\xbf\xbd\",\"logprob\":-1,\"bytes\":[255]}]}]},"));
}

static void test_failed_stream(void **state)
{
    char text[512];
    FILE *f = fmemopen(text, sizeof(text), "w");
    (void)state;

    assert_non_null(f);
    assert_int_equal(chat_stream_fail(chat_error_json("gone \xff", "server_error", NULL, "cancelled"), f), WN_OK);
    fclose(f);
    assert_string_equal(
        text, "data: {\"error\":{\"message\":\"gone \xef\xbf\xbd\",\"type\":\"server_error\",\"param\":null,"
              "\"code\":\"cancelled\"}}\n\ndata: [DONE]\n\n");
}

static void test_answer_with_costs(void **state)
{
    struct chat_answer a = {.choices_n = 2};
    const struct winnow_event events[] = {event(WINNOW_EVENT_DONE, 1, "b"), event(WINNOW_EVENT_DONE, 0, "a")};
    json_t *o, *usage;
    (void)state;

    for (int i = 0; i < 2; i++) assert_int_equal(chat_answer_take(&a, &events[i], NULL), WN_OK);
    assert_int_equal(a.done, 2);
    assert_non_null(o = chat_answer_json(&a, "m", 7, true));
    usage = json_object_get(o, "usage");
    assert_int_equal(json_integer_value(json_object_get(usage, "completion_tokens")), 6);
    usage = json_object_get(usage, "winnow");
    assert_int_equal(json_integer_value(json_object_get(json_object_get(usage, "bytes_on_wire"), "embedding")), 2000);
    assert_null(json_object_get(usage, "prompt_tokens"));
    json_decref(o);
    chat_answer_fini(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stream_fields),
        cmocka_unit_test(test_the_field_at_fault),
        cmocka_unit_test(test_pictures_of_strangers),
        cmocka_unit_test(test_values_are_counted),
        cmocka_unit_test(test_stream),
        cmocka_unit_test(test_stream_of_choices_with_usage),
        cmocka_unit_test(test_scores_in_a_stream),
        cmocka_unit_test(test_failed_stream),
        cmocka_unit_test(test_answer_with_costs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
