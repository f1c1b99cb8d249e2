/* tests/fuzz/fuzz_chat.c - the body of a chat completion as a stranger sends it, its pictures, and an answer in which
 * its words come back. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "client/chat.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_answer(const char *text, uint32_t n)
{
    struct chat_answer a = {.choices_n = n};
    struct chat_stream s = {.model = text, .choices_n = n, .with_usage = true};
    struct winnow_event ev = {.type = WINNOW_EVENT_DONE, .text = text, .finish_reason = "stop"};
    char *stream = NULL;
    size_t bytes = 0;
    FILE *f = open_memstream(&stream, &bytes);
    json_t *o;

    WN_ASSERT(f);
    for (ev.choice = 0; ev.choice < n; ev.choice++) {
        WN_ASSERT(chat_answer_take(&a, &ev, NULL) == WN_OK);
        WN_ASSERT(chat_stream_event(&s, &ev, f) == WN_OK);
    }
    fclose(f);
    WN_ASSERT(bytes > 14 && strcmp(stream + bytes - 14, "data: [DONE]\n\n") == 0);
    o = chat_answer_json(&a, text, 0, true);
    WN_ASSERT(o && json_array_size(json_object_get(o, "choices")) == n);
    json_decref(o);
    chat_answer_fini(&a);
    free(stream);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct chat_request r = {0};
    struct wn_err err = {0};
    json_t *root;
    wn_status rc = chat_json_load(&root, (const char *)data, size, &err);

    if (rc == WN_OK) rc = chat_request_parse(&r, root, &err);
    WN_ASSERT(rc == WN_OK || err.text[0]);
    if (rc == WN_OK) {
        const struct winnow_request *q = &r.request;
        WN_ASSERT(q->prompt && q->images_n <= WN_IMAGES_MAX && q->stop_n <= WN_STOP_MAX && q->n <= WN_CHOICES_MAX);
        rc = chat_images_decode(&r, &err);
        WN_ASSERT(rc == WN_OK || strcmp(r.field, "messages") == 0);
        for (size_t i = 0; rc == WN_OK && i < q->images_n; i++) WN_ASSERT(q->images[i].bytes > 0);
        check_answer(q->prompt, q->n ? q->n : 1);
    }
    chat_request_fini(&r);
    json_decref(root);
    return 0;
}
