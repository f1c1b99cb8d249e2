/* client/batch_result.c - an answer or a failure to one line of OpenAI's batch output; see batch.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "client/batch.h"

/* The text; bytes that are no UTF-8 (an answer cut inside of a character) as U+FFFD. NULL without memory. */
static json_t *safe_text(const char *text)
{
    const size_t n = strlen(text);
    json_t *v = json_stringn(text, n);
    char *clean;
    size_t at = 0;

    if (v || wn_utf8_valid(text, n)) return v;
    if (!(clean = malloc(3 * n + 1))) return NULL;
    for (size_t i = 0; i < n;) {
        size_t len = 4;
        while (len > 0 && (i + len > n || !wn_utf8_valid(text + i, len))) len--;
        if (len == 0) {
            memcpy(clean + at, "\xef\xbf\xbd", 3);
            at += 3;
            i++;
        } else {
            memcpy(clean + at, text + i, len);
            at += len;
            i += len;
        }
    }
    v = json_stringn(clean, at);
    free(clean);
    return v;
}

static json_t *usage_json(const struct batch_result *r)
{
    return json_pack("{s:I, s:I, s:I, s:{s:I, s:I}}", "prompt_tokens", (json_int_t)r->prompt_tokens,
                     "completion_tokens", (json_int_t)r->completion_tokens, "total_tokens",
                     (json_int_t)r->prompt_tokens + r->completion_tokens, "prompt_tokens_details", "image_tokens",
                     (json_int_t)r->image_tokens, "image_tokens_before_pruning",
                     (json_int_t)r->image_tokens_before);
}

static json_t *logprobs_json(const char *content)
{
    char *text = NULL;
    json_t *v;

    if (!content) return json_null();
    if (asprintf(&text, "{\"content\":[%s]}", content) < 0) return NULL;
    v = json_loads(text, 0, NULL);
    free(text);
    return v;
}

static json_t *choices_json(const struct batch_result *r)
{
    json_t *list = json_array();

    for (uint32_t i = 0; list && i < r->choices_n; i++) {
        const struct batch_choice *c = &r->choice[i];
        json_t *one = json_pack("{s:i, s:{s:s, s:o}, s:o, s:s}", "index", (int)i, "message", "role", "assistant",
                                "content", safe_text(c->text), "logprobs", logprobs_json(c->logprobs),
                                "finish_reason", c->finish_reason);
        if (json_array_append_new(list, one) == 0) continue;
        json_decref(list);
        list = NULL;
    }
    return list;
}

static json_t *completion_json(const struct batch_result *r)
{
    char id[WINNOW_JOB_ID_MAX + 16];

    snprintf(id, sizeof(id), "chatcmpl-%s", r->job_id ? r->job_id : "");
    return json_pack("{s:s, s:s, s:I, s:o, s:o, s:o}", "id", id, "object", "chat.completion", "created",
                     (json_int_t)r->created_s, "model", safe_text(r->model ? r->model : ""), "choices",
                     choices_json(r), "usage", usage_json(r));
}

static json_t *error_json(const struct batch_result *r)
{
    return json_pack("{s:s, s:o}", "code", r->error_code, "message", safe_text(r->error_text));
}

static json_t *response_json(const struct batch_result *r)
{
    json_t *body;

    if (!r->choices_n && !r->http_status) return json_null();
    body = r->choices_n ? completion_json(r) : json_pack("{s:o}", "error", error_json(r));
    return json_pack("{s:i, s:s, s:o}", "status_code", r->choices_n ? 200 : r->http_status, "request_id",
                     r->job_id ? r->job_id : "", "body", body);
}

char *batch_result_line(const struct batch_result *r, size_t *bytes)
{
    json_t *o = json_pack("{s:s, s:o, s:o, s:o}", "id", r->id, "custom_id",
                          r->custom_id ? safe_text(r->custom_id) : json_null(), "response", response_json(r), "error",
                          r->choices_n ? json_null() : error_json(r));
    char *text = o ? json_dumps(o, JSON_COMPACT) : NULL, *line;
    size_t n = text ? strlen(text) : 0;

    json_decref(o);
    if (!text) return NULL;
    if (!(line = realloc(text, n + 2))) {
        free(text);
        return NULL;
    }
    line[n] = '\n';
    line[n + 1] = '\0';
    *bytes = n + 1;
    return line;
}
