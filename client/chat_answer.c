/* client/chat_answer.c - the events of a request, gathered, to the JSON of a chat completion; see chat.h. */
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "client/chat.h"
#include "client/chat_parts.h"
#include "client/cli.h"

/* ---- events ---- */

bool chat_answered(const struct winnow_event *done)
{
    return strcmp(done->finish_reason, "stop") == 0 || strcmp(done->finish_reason, "length") == 0;
}

void chat_usage_add(struct winnow_usage *sum, const struct winnow_usage *u)
{
    const struct winnow_usage before = *sum;

    *sum = *u;
    sum->completion_tokens += before.completion_tokens;
    sum->bytes_control += before.bytes_control;
    sum->bytes_embedding += before.bytes_embedding;
    sum->bytes_activation += before.bytes_activation;
    sum->bytes_allreduce += before.bytes_allreduce;
    sum->bytes_logits += before.bytes_logits;
    sum->bytes_image += before.bytes_image;
}

wn_status chat_answer_take(struct chat_answer *a, const struct winnow_event *ev, struct wn_err *err)
{
    struct chat_choice *c = ev->choice < a->choices_n ? &a->choice[ev->choice] : NULL;

    if (!c || c->text) return WN_OK;
    if (ev->type == WINNOW_EVENT_TEXT && ev->logprobs) {
        if (!c->scores && !(c->scores = open_memstream(&c->scores_text, &c->scores_bytes)))
            return wn_fail(err, WN_ENOMEM, "log-probabilities");
        cli_logprobs_json(c->scores, ev, &c->scores_any);
        if (fflush(c->scores) != 0) return wn_fail(err, WN_ENOMEM, "log-probabilities");
    } else if (ev->type == WINNOW_EVENT_DONE) {
        if (!(c->text = strdup(ev->text))) return wn_fail(err, WN_ENOMEM, "an answer");
        snprintf(c->job_id, sizeof(c->job_id), "%s", ev->job_id);
        snprintf(c->finish_reason, sizeof(c->finish_reason), "%s", ev->finish_reason);
        chat_usage_add(&a->usage, &ev->usage);
        a->done++;
    }
    return WN_OK;
}

void chat_answer_fini(struct chat_answer *a)
{
    for (uint32_t i = 0; i < a->choices_n; i++) {
        if (a->choice[i].scores) fclose(a->choice[i].scores);
        free(a->choice[i].scores_text);
        free(a->choice[i].text);
    }
    memset(a, 0, sizeof(*a));
}

/* ---- JSON ---- */

json_t *chat_text_json(const char *text)
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

json_t *chat_error_json(const char *message, const char *type, const char *param, const char *code)
{
    return json_pack("{s:{s:o, s:s, s:s?, s:s?}}", "error", "message", chat_text_json(message), "type", type, "param",
                     param, "code", code);
}

/* What the answer cost, in the words of `winnow ask --json`. */
static json_t *costs_json(const struct winnow_usage *u)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *f = open_memstream(&text, &bytes);
    json_t *o;

    if (!f) return NULL;
    cli_json_usage(f, u);
    fclose(f);
    o = text ? json_loads(text, 0, NULL) : NULL;
    free(text);
    for (int i = 0; o && i < 4; i++) { /* these have their places in OpenAI's own object */
        static const char *const names[] = {"prompt_tokens", "completion_tokens", "image_tokens",
                                            "image_tokens_before_pruning"};
        json_object_del(o, names[i]);
    }
    return o;
}

json_t *chat_usage_json(const struct winnow_usage *u, bool costs)
{
    json_t *o = json_pack("{s:I, s:I, s:I, s:{s:I, s:I}}", "prompt_tokens", (json_int_t)u->prompt_tokens,
                          "completion_tokens", (json_int_t)u->completion_tokens, "total_tokens",
                          (json_int_t)u->prompt_tokens + u->completion_tokens, "prompt_tokens_details",
                          "image_tokens", (json_int_t)u->image_tokens, "image_tokens_before_pruning",
                          (json_int_t)u->image_tokens_before_pruning);

    if (!costs || !o) return o;
    if (json_object_set_new(json_object_get(o, "prompt_tokens_details"), "cached_tokens",
                            json_integer(u->cached_tokens)) == 0 &&
        json_object_set_new(o, "winnow", costs_json(u)) == 0)
        return o;
    json_decref(o);
    return NULL;
}

json_t *chat_scores_json(const char *content)
{
    char *text = NULL;
    json_t *v;

    if (!content) return json_null();
    if (asprintf(&text, "{\"content\":[%s]}", content) < 0) return NULL;
    v = json_loads(text, 0, NULL);
    free(text);
    return v;
}

static json_t *choices_json(const struct chat_answer *a)
{
    json_t *list = json_array();

    for (uint32_t i = 0; list && i < a->choices_n; i++) {
        const struct chat_choice *c = &a->choice[i];
        json_t *one = json_pack("{s:i, s:{s:s, s:o}, s:o, s:s}", "index", (int)i, "message", "role", "assistant",
                                "content", chat_text_json(c->text), "logprobs", chat_scores_json(c->scores_text),
                                "finish_reason", c->finish_reason);
        if (json_array_append_new(list, one) == 0) continue;
        json_decref(list);
        list = NULL;
    }
    return list;
}

json_t *chat_answer_json(const struct chat_answer *a, const char *model, int64_t created_s, bool costs)
{
    char id[CHAT_ID_MAX];

    snprintf(id, sizeof(id), CHAT_ID_PREFIX "%s", a->choice[0].job_id);
    return json_pack("{s:s, s:s, s:I, s:o, s:o, s:o}", "id", id, "object", "chat.completion", "created",
                     (json_int_t)created_s, "model", chat_text_json(model ? model : ""), "choices", choices_json(a),
                     "usage", chat_usage_json(&a->usage, costs));
}
