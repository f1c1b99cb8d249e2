/* client/batch_line.c - a line of OpenAI's batch input to a request, an answer or a failure to a line of its output;
 * see batch.h. */
#include <stdlib.h>
#include <string.h>

#include "client/batch.h"

static wn_status get_text(const json_t *o, const char *key, const char **out, struct wn_err *err)
{
    const json_t *v = json_object_get(o, key);

    *out = NULL;
    if (!v || json_is_null(v)) return WN_OK;
    if (!json_is_string(v)) return wn_fail(err, WN_EINVAL, "%s is no text", key);
    *out = json_string_value(v);
    return WN_OK;
}

wn_status batch_line_parse(struct batch_request *out, const char *line, size_t bytes, struct wn_err *err)
{
    const char *method, *url, *id;
    json_t *body;
    wn_status rc;

    memset(out, 0, sizeof(*out));
    if (bytes > BATCH_LINE_MAX)
        return wn_fail(err, WN_ELIMIT, "the line has %zu bytes; at most %zu are allowed", bytes, BATCH_LINE_MAX);
    if ((rc = chat_json_load(&out->root, line, bytes, err)) != WN_OK) return rc;
    if ((rc = get_text(out->root, "custom_id", &id, err)) != WN_OK) return rc;
    if (!id || !id[0]) return wn_fail(err, WN_EINVAL, "the line has no custom_id");
    if (strlen(id) > BATCH_CUSTOM_ID_MAX)
        return wn_fail(err, WN_ELIMIT, "custom_id has %zu bytes; at most %d are allowed", strlen(id),
                       BATCH_CUSTOM_ID_MAX);
    out->custom_id = id;
    if ((rc = get_text(out->root, "method", &method, err)) != WN_OK) return rc;
    if (!method || strcmp(method, "POST") != 0)
        return wn_fail(err, WN_EUNSUPP, "method '%.40s' is not supported, only POST", method ? method : "");
    if ((rc = get_text(out->root, "url", &url, err)) != WN_OK) return rc;
    if (!url || strcmp(url, CHAT_URL) != 0)
        return wn_fail(err, WN_EUNSUPP, "url '%.80s' is not supported, only " CHAT_URL, url ? url : "");
    body = json_object_get(out->root, "body");
    if (!json_is_object(body)) return wn_fail(err, WN_EINVAL, "the line has no body");
    if ((rc = chat_request_parse(&out->chat, body, err)) != WN_OK) return rc;
    if (out->chat.stream) return wn_fail(err, WN_EUNSUPP, "body.stream is not supported");
    return WN_OK;
}

void batch_request_fini(struct batch_request *r)
{
    chat_request_fini(&r->chat);
    json_decref(r->root);
    memset(r, 0, sizeof(*r));
}

/* ---- output ---- */

static json_t *error_json(const struct batch_result *r)
{
    return json_pack("{s:s, s:o}", "code", r->error_code, "message", chat_text_json(r->error_text));
}

static json_t *response_json(const struct batch_result *r)
{
    json_t *body;

    if (!r->answer && !r->http_status) return json_null();
    body = r->answer ? chat_answer_json(r->answer, r->model, r->created_s, false)
                     : json_pack("{s:o}", "error", error_json(r));
    return json_pack("{s:i, s:s, s:o}", "status_code", r->answer ? 200 : r->http_status, "request_id",
                     r->answer   ? r->answer->choice[0].job_id
                     : r->job_id ? r->job_id
                                 : "",
                     "body", body);
}

char *batch_result_line(const struct batch_result *r, size_t *bytes)
{
    json_t *o = json_pack("{s:s, s:o, s:o, s:o}", "id", r->id, "custom_id",
                          r->custom_id ? chat_text_json(r->custom_id) : json_null(), "response", response_json(r),
                          "error", r->answer ? json_null() : error_json(r));
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
