/* client/chat_body.c - the body of a chat completion to a request; see chat.h. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "client/chat.h"

#define DEADLINE_MS_MAX ((uint64_t)30 * 86400000)

/* What OpenAI's clients send and what changes nothing here. */
static bool harmless(const char *key, const json_t *v)
{
    static const char *const notes[] = {"user", "metadata", "store", "service_tier", "safety_identifier"};

    if (json_is_null(v)) return true;
    for (size_t i = 0; i < sizeof(notes) / sizeof(notes[0]); i++)
        if (strcmp(key, notes[i]) == 0) return true;
    if (strcmp(key, "presence_penalty") == 0 || strcmp(key, "frequency_penalty") == 0)
        return json_is_number(v) && fpclassify(json_number_value(v)) == FP_ZERO;
    return false;
}

static wn_status get_text(const json_t *o, const char *where, const char *key, const char **out, struct wn_err *err)
{
    const json_t *v = json_object_get(o, key);

    *out = NULL;
    if (!v || json_is_null(v)) return WN_OK;
    if (!json_is_string(v)) return wn_fail(err, WN_EINVAL, "%s%s is no text", where, key);
    *out = json_string_value(v);
    return WN_OK;
}

static wn_status get_whole(const json_t *v, const char *key, uint64_t max, uint64_t *out, struct wn_err *err)
{
    if (!json_is_integer(v) || json_integer_value(v) < 0 || (uint64_t)json_integer_value(v) > max)
        return wn_fail(err, WN_EINVAL, "%s is no whole number from 0 to %" PRIu64, key, max);
    *out = (uint64_t)json_integer_value(v);
    return WN_OK;
}

static wn_status get_number(const json_t *v, const char *key, double max, float *out, struct wn_err *err)
{
    const double x = json_number_value(v);

    if (!json_is_number(v) || !(x >= 0) || x > max)
        return wn_fail(err, WN_EINVAL, "%s is no number from 0 to %g", key, max);
    *out = (float)x;
    return WN_OK;
}

static wn_status get_truth(const json_t *v, const char *key, int *out, struct wn_err *err)
{
    if (!json_is_boolean(v)) return wn_fail(err, WN_EINVAL, "%s is neither true nor false", key);
    *out = json_is_true(v);
    return WN_OK;
}

/* ---- messages ---- */

static wn_status add_text(char **prompt, const char *text, struct wn_err *err)
{
    const size_t had = *prompt ? strlen(*prompt) : 0, n = strlen(text);
    char *more;

    if (n > WN_PROMPT_BYTES_MAX || had + n + 1 > WN_PROMPT_BYTES_MAX)
        return wn_fail(err, WN_ELIMIT, "the prompt has more than %zu bytes", WN_PROMPT_BYTES_MAX);
    if (!(more = realloc(*prompt, had + n + 2))) return wn_fail(err, WN_ENOMEM, "prompt");
    if (had) more[had] = '\n';
    memcpy(more + had + (had > 0), text, n + 1);
    *prompt = more;
    return WN_OK;
}

static wn_status add_image(struct chat_request *r, size_t i, const json_t *part, struct wn_err *err)
{
    const json_t *v = json_object_get(part, "image_url");
    const char *url = json_is_string(v) ? json_string_value(v) : json_string_value(json_object_get(v, "url"));

    if (!url || !url[0]) return wn_fail(err, WN_EINVAL, "messages: content[%zu] has no image_url.url", i);
    if (r->request.images_n == WN_IMAGES_MAX)
        return wn_fail(err, WN_ELIMIT, "messages: more than %d images", WN_IMAGES_MAX);
    r->image_url[r->request.images_n++] = url;
    return WN_OK;
}

static wn_status add_part(struct chat_request *r, size_t i, const json_t *part, struct wn_err *err)
{
    const char *type = json_string_value(json_object_get(part, "type"));
    const char *text = json_string_value(json_object_get(part, "text"));

    if (!type) return wn_fail(err, WN_EINVAL, "messages: content[%zu] has no type", i);
    if (strcmp(type, "image_url") == 0) return add_image(r, i, part, err);
    if (strcmp(type, "text") != 0)
        return wn_fail(err, WN_EUNSUPP, "messages: content[%zu] of type '%.40s' is not supported", i, type);
    if (!text) return wn_fail(err, WN_EINVAL, "messages: content[%zu] has no text", i);
    return add_text(&r->prompt, text, err);
}

static wn_status parse_messages(struct chat_request *r, const json_t *all, struct wn_err *err)
{
    const json_t *message = json_array_get(all, 0), *content = json_object_get(message, "content"), *part;
    const char *role = json_string_value(json_object_get(message, "role"));
    wn_status rc = WN_OK;
    size_t i;

    if (!json_is_array(all) || json_array_size(all) == 0)
        return wn_fail(err, WN_EINVAL, "body.messages is no list of messages");
    if (!role) return wn_fail(err, WN_EINVAL, "messages[0] has no role");
    if (strcmp(role, "user") != 0)
        return wn_fail(err, WN_EUNSUPP, "messages[0]: role '%.40s' is not supported, only 'user'", role);
    if (json_array_size(all) > 1)
        return wn_fail(err, WN_EUNSUPP, "messages: %zu of them; only one is supported", json_array_size(all));
    if (json_is_string(content)) {
        rc = add_text(&r->prompt, json_string_value(content), err);
    } else if (json_is_array(content)) {
        json_array_foreach(content, i, part)
        {
            if ((rc = add_part(r, i, part, err)) != WN_OK) return rc;
        }
    } else {
        rc = wn_fail(err, WN_EINVAL, "messages[0].content is neither text nor a list of parts");
    }
    if (rc == WN_OK && (!r->prompt || !r->prompt[0])) rc = wn_fail(err, WN_EINVAL, "messages[0] has no text");
    return rc;
}

/* ---- the other fields of the body ---- */

static wn_status parse_stop(struct chat_request *r, const json_t *v, struct wn_err *err)
{
    const size_t n = json_is_array(v) ? json_array_size(v) : 1;

    if (n > WN_STOP_MAX) return wn_fail(err, WN_ELIMIT, "stop: %zu texts; at most %d are allowed", n, WN_STOP_MAX);
    for (size_t i = 0; i < n; i++) {
        const char *text = json_string_value(json_is_array(v) ? json_array_get(v, i) : v);
        if (!text) return wn_fail(err, WN_EINVAL, "stop is neither a text nor a list of texts");
        if (!text[0]) return wn_fail(err, WN_EINVAL, "stop: an empty text");
        r->stop[r->request.stop_n++] = text;
    }
    return WN_OK;
}

static wn_status parse_position(const json_t *v, enum winnow_position *out, struct wn_err *err)
{
    const char *text = json_is_string(v) ? json_string_value(v) : "";

    if (strcmp(text, "compact") == 0) *out = WINNOW_POSITION_COMPACT;
    else if (strcmp(text, "original") == 0) *out = WINNOW_POSITION_ORIGINAL;
    else return wn_fail(err, WN_EINVAL, "image_pruning.position is neither \"compact\" nor \"original\"");
    return WN_OK;
}

static wn_status parse_pruning_field(struct winnow_request *q, const json_t *o, const char *key, const json_t *v,
                                     struct wn_err *err)
{
    uint64_t whole = 0;
    wn_status rc;

    if (strcmp(key, "method") == 0) return get_text(o, "image_pruning.", key, &q->pruning_method, err);
    if (strcmp(key, "setting") == 0) return get_text(o, "image_pruning.", key, &q->pruning_setting, err);
    if (strcmp(key, "options") == 0) return get_text(o, "image_pruning.", key, &q->pruning_options, err);
    if (strcmp(key, "position") == 0) return parse_position(v, &q->pruning_position, err);
    if (strcmp(key, "seed") == 0) return get_whole(v, "image_pruning.seed", INT64_MAX, &q->pruning_seed, err);
    if (strcmp(key, "keep") == 0) {
        rc = get_whole(v, "image_pruning.keep", WN_FEATURE_ROWS_MAX, &whole, err);
        if (rc == WN_OK && whole == 0) rc = wn_fail(err, WN_EINVAL, "image_pruning.keep is 0: at least 1 is kept");
        q->pruning_keep = (uint32_t)whole;
        return rc;
    }
    if (strcmp(key, "cap") == 0) {
        rc = get_whole(v, "image_pruning.cap", WN_FEATURE_ROWS_MAX, &whole, err);
        q->pruning_cap = (uint32_t)whole;
        return rc;
    }
    if (strcmp(key, "rate") == 0) { /* of 0: nothing is removed, which a request says as a count */
        rc = get_number(v, "image_pruning.rate", 1, &q->pruning_rate, err);
        if (rc == WN_OK && !(q->pruning_rate > 0) && !q->pruning_keep) q->pruning_keep = WN_FEATURE_ROWS_MAX;
        return rc;
    }
    if (strcmp(key, "projected") == 0) {
        if (!json_is_boolean(v)) return wn_fail(err, WN_EINVAL, "image_pruning.projected is neither true nor false");
        q->pruning_projected = json_is_true(v);
        return WN_OK;
    }
    return wn_fail(err, WN_EUNSUPP, "image_pruning.%.40s is not supported", key);
}

static wn_status parse_pruning(struct chat_request *r, json_t *o, struct wn_err *err)
{
    const char *key;
    json_t *v;

    if (!json_is_object(o)) return wn_fail(err, WN_EINVAL, "image_pruning is no object");
    r->pruned = true;
    json_object_foreach(o, key, v)
    {
        wn_status rc = json_is_null(v) ? WN_OK : parse_pruning_field(&r->request, o, key, v, err);
        if (rc != WN_OK) return rc;
    }
    return WN_OK;
}

static wn_status parse_stream(struct chat_request *r, const json_t *v, struct wn_err *err)
{
    int truth = 0;
    wn_status rc = get_truth(v, "stream", &truth, err);

    r->stream = truth;
    return rc;
}

static wn_status parse_stream_options(struct chat_request *r, json_t *o, struct wn_err *err)
{
    wn_status rc = WN_OK;
    const char *key;
    int truth = 0;
    json_t *v;

    if (!json_is_object(o)) return wn_fail(err, WN_EINVAL, "stream_options is no object");
    json_object_foreach(o, key, v)
    {
        if (strcmp(key, "include_usage") != 0)
            return wn_fail(err, WN_EUNSUPP, "stream_options.%.40s is not supported", key);
        if ((rc = get_truth(v, "stream_options.include_usage", &truth, err)) != WN_OK) return rc;
    }
    r->stream_usage = truth;
    return rc;
}

static wn_status parse_field(struct chat_request *r, json_t *body, const char *key, json_t *v, struct wn_err *err)
{
    struct winnow_request *q = &r->request;
    uint64_t whole = 0;
    wn_status rc;

    if (strcmp(key, "model") == 0) return get_text(body, "body.", key, &r->model, err);
    if (strcmp(key, "messages") == 0) return parse_messages(r, v, err);
    if (harmless(key, v)) return WN_OK;
    if (strcmp(key, "max_tokens") == 0 || strcmp(key, "max_completion_tokens") == 0) {
        rc = get_whole(v, key, WN_EMITTED_MAX, &whole, err);
        if (rc == WN_OK && whole == 0) rc = wn_fail(err, WN_EINVAL, "%s is 0", key);
        if (rc == WN_OK) q->max_tokens = (uint32_t)whole;
        return rc;
    }
    if (strcmp(key, "temperature") == 0) return get_number(v, key, 100, &q->temperature, err);
    if (strcmp(key, "top_p") == 0) return get_number(v, key, 1, &q->top_p, err);
    if (strcmp(key, "repetition_penalty") == 0) return get_number(v, key, 10, &q->repetition_penalty, err);
    if (strcmp(key, "seed") == 0) return get_whole(v, key, INT64_MAX, &q->seed, err);
    if (strcmp(key, "stop") == 0) return parse_stop(r, v, err);
    if (strcmp(key, "stream") == 0) return parse_stream(r, v, err);
    if (strcmp(key, "stream_options") == 0) return parse_stream_options(r, v, err);
    if (strcmp(key, "logprobs") == 0) return get_truth(v, key, &q->logprobs, err);
    if (strcmp(key, "ignore_eos") == 0) return get_truth(v, key, &q->ignore_eos, err);
    if (strcmp(key, "top_logprobs") == 0) {
        if ((rc = get_whole(v, key, WN_LOGPROBS_MAX, &whole, err)) == WN_OK) q->top_logprobs = (uint32_t)whole;
        return rc;
    }
    if (strcmp(key, "n") == 0) {
        rc = get_whole(v, key, WN_CHOICES_MAX, &whole, err);
        if (rc == WN_OK && whole == 0) rc = wn_fail(err, WN_EINVAL, "n is 0");
        if (rc == WN_OK) q->n = (uint32_t)whole;
        return rc;
    }
    if (strcmp(key, "deadline_ms") == 0) return get_whole(v, key, DEADLINE_MS_MAX, &q->deadline_ms, err);
    if (strcmp(key, "image_pruning") == 0) return parse_pruning(r, v, err);
    if (strcmp(key, "top_k") == 0) {
        if (json_is_integer(v) && json_integer_value(v) == -1) return WN_OK; /* some say "off" so */
        rc = get_whole(v, key, UINT32_MAX, &whole, err);
        if (rc == WN_OK) q->top_k = (uint32_t)whole;
        return rc;
    }
    return wn_fail(err, WN_EUNSUPP, "body.%.60s is not supported", key);
}

wn_status chat_request_parse(struct chat_request *out, json_t *body, struct wn_err *err)
{
    struct winnow_request *q = &out->request;
    const char *key;
    json_t *v;
    wn_status rc;

    memset(out, 0, sizeof(*out));
    q->images = out->image;
    q->stop = out->stop;
    out->field = "messages";
    if (!json_object_get(body, "messages")) return wn_fail(err, WN_EINVAL, "the body has no messages");
    json_object_foreach(body, key, v)
    {
        out->field = key;
        if ((rc = parse_field(out, body, key, v, err)) != WN_OK) return rc;
    }
    out->field = "stream_options";
    if (out->stream_usage && !out->stream)
        return wn_fail(err, WN_EINVAL, "stream_options without \"stream\": true");
    out->field = NULL;
    q->prompt = out->prompt;
    q->quiet = !q->logprobs && !out->stream;
    return WN_OK;
}

void chat_request_fini(struct chat_request *r)
{
    for (size_t i = 0; i < WN_IMAGES_MAX; i++) free((void *)(uintptr_t)r->image[i].data);
    free(r->prompt);
    memset(r, 0, sizeof(*r));
}

/* A value of three bytes ("[],") takes more than a hundred in memory, a long text no more than it is. */
static bool has_few_values(const char *text, size_t bytes)
{
    bool quoted = false;
    size_t n = 0;

    for (size_t i = 0; i < bytes; i++) {
        const char c = text[i];
        if (c == '"') quoted = !quoted;
        else if (quoted) i += c == '\\';
        else n += c == ',' || c == ':' || c == '[' || c == '{';
    }
    return n <= CHAT_VALUES_MAX;
}

wn_status chat_json_load(json_t **root, const char *text, size_t bytes, struct wn_err *err)
{
    json_error_t e;

    *root = NULL;
    if (!has_few_values(text, bytes))
        return wn_fail(err, WN_ELIMIT, "JSON with more than %d values", CHAT_VALUES_MAX);
    *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &e);
    if (!*root) return wn_fail(err, WN_EFORMAT, "no JSON: %s (column %d)", e.text, e.column);
    if (!json_is_object(*root)) return wn_fail(err, WN_EFORMAT, "no JSON object");
    return WN_OK;
}
