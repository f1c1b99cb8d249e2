/* client/chat_stream.c - the events of a request to server-sent events, as they come; see chat.h. */
#include <stdlib.h>
#include <string.h>

#include "client/chat.h"
#include "client/chat_parts.h"
#include "client/cli.h"

/* "data: {...}"; o is moved, NULL: there was no memory for it. */
static wn_status put(FILE *out, json_t *o)
{
    char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;

    json_decref(o);
    if (!text) return WN_ENOMEM;
    fprintf(out, "data: %s\n\n", text);
    free(text);
    return WN_OK;
}

/* choices is moved. */
static wn_status put_chunk(struct chat_stream *s, json_t *choices, json_t *usage, FILE *out)
{
    char id[CHAT_ID_MAX];
    json_t *o;

    snprintf(id, sizeof(id), CHAT_ID_PREFIX "%s", s->job_id);
    o = json_pack("{s:s, s:s, s:I, s:o, s:o}", "id", id, "object", "chat.completion.chunk", "created",
                  (json_int_t)s->created_s, "model", chat_text_json(s->model), "choices", choices);
    if (o && s->with_usage && json_object_set_new(o, "usage", usage) != 0) {
        json_decref(o);
        o = NULL;
    }
    return put(out, o);
}

/* A chunk of one choice; delta and scores are moved. */
static wn_status put_delta(struct chat_stream *s, uint32_t choice, json_t *delta, json_t *scores, const char *reason,
                           FILE *out)
{
    json_t *list = json_pack("[{s:i, s:o, s:o, s:s?}]", "index", (int)choice, "delta", delta, "logprobs", scores,
                             "finish_reason", reason);

    return put_chunk(s, list, json_null(), out);
}

/* Of the tokens of a TEXT event. *out may be NULL: no memory. */
static json_t *event_scores(const struct winnow_event *ev)
{
    char *text = NULL;
    size_t bytes = 0;
    bool any = false;
    json_t *v;
    FILE *f;

    if (!ev->logprobs) return json_null();
    if (!(f = open_memstream(&text, &bytes))) return NULL;
    cli_logprobs_json(f, ev, &any);
    fclose(f);
    v = text ? chat_scores_json(text) : NULL;
    free(text);
    return v;
}

static wn_status put_text(struct chat_stream *s, uint32_t choice, const char *text, json_t *scores, FILE *out)
{
    s->choice[choice].sent += strlen(text);
    return put_delta(s, choice, json_pack("{s:o}", "content", chat_text_json(text)), scores, NULL, out);
}

static wn_status on_done(struct chat_stream *s, const struct winnow_event *ev, FILE *out)
{
    const size_t sent = s->choice[ev->choice].sent;
    wn_status rc = WN_OK;

    if (sent < strlen(ev->text)) rc = put_text(s, ev->choice, ev->text + sent, json_null(), out);
    if (rc == WN_OK) rc = put_delta(s, ev->choice, json_object(), json_null(), ev->finish_reason, out);
    chat_usage_add(&s->usage, &ev->usage);
    if (++s->done < s->choices_n || rc != WN_OK) return rc;
    if (s->with_usage) rc = put_chunk(s, json_array(), chat_usage_json(&s->usage, true), out);
    fputs("data: [DONE]\n\n", out);
    return rc;
}

wn_status chat_stream_event(struct chat_stream *s, const struct winnow_event *ev, FILE *out)
{
    wn_status rc = WN_OK;

    if (ev->choice >= s->choices_n || s->done == s->choices_n) return WN_OK;
    if (!s->job_id[0]) snprintf(s->job_id, sizeof(s->job_id), "%s", ev->job_id);
    if (!s->choice[ev->choice].began) {
        s->choice[ev->choice].began = true;
        rc = put_delta(s, ev->choice, json_pack("{s:s, s:s}", "role", "assistant", "content", ""), json_null(), NULL,
                       out);
    }
    if (rc == WN_OK && ev->type == WINNOW_EVENT_TEXT &&
        (ev->text[0] || ev->logprobs)) /* else: a part of a character */
        rc = put_text(s, ev->choice, ev->text, event_scores(ev), out);
    if (rc == WN_OK && ev->type == WINNOW_EVENT_DONE) rc = on_done(s, ev, out);
    return rc;
}

wn_status chat_stream_fail(json_t *error, FILE *out)
{
    wn_status rc = put(out, error);

    fputs("data: [DONE]\n\n", out);
    return rc;
}
