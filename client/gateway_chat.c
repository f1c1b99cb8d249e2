/* client/gateway_chat.c - a chat completion at the gateway: a body becomes a job, its events a reply or a stream; see
 * gateway.h. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "client/gateway.h"

#define RETRY_AWAY_S 5

/* Codes of a service's errors. The request is at fault, or who asked, or the service. */
static int status_of(uint32_t code, bool was_a_job)
{
    switch (code) {
    case WN_EINVAL:
    case WN_ELIMIT:
    case WN_EFORMAT:
    case WN_EUNSUPP: return 400;
    case WN_ENOENT: return was_a_job ? 503 : 400; /* a service without a journal has lost it */
    case WN_EBUSY: return 429;
    case WN_ECANCEL: /* it is about to end */
    case WN_EPEER: return 503;
    case WN_ETIME: return 504;
    default: return 500;
    }
}

void gateway_chat_drop(struct gateway_request *r)
{
    if (r->job) (void)!winnow_cancel(r->g->w, r->job); /* its last event finds no request any more */
    r->job = 0;
    chat_answer_fini(&r->answer);
    free(r->out);
    r->out = NULL;
    r->out_n = r->out_at = r->out_room = 0;
}

/* ---- begin ---- */

static bool is_model(const struct gateway *g, const char *asked)
{
    const char *slash = asked ? strrchr(asked, '/') : NULL;

    return !asked || !asked[0] || strcmp(slash ? slash + 1 : asked, g->service.model) == 0;
}

/* Parses the body, which is gone afterwards. Not WN_OK: *status and err say what to reply. */
static wn_status parse(struct gateway_request *r, struct chat_request *q, json_t **root, int *status,
                       struct wn_err *err)
{
    wn_status rc = chat_json_load(root, r->body ? r->body : "", r->body_n, err);

    r->g->bodies -= r->body_room; /* the text has been copied */
    free(r->body);
    r->body = NULL;
    r->body_n = r->body_room = 0;
    *status = 400;
    if (rc == WN_OK) rc = chat_request_parse(q, *root, err);
    if (rc == WN_OK && !is_model(r->g, q->model)) {
        *status = 404;
        q->field = "model";
        rc = wn_fail(err, WN_ENOENT, "model '%.80s' is not served here, but '%s'", q->model, r->g->service.model);
    }
    if (rc == WN_OK) rc = chat_images_decode(q, err);
    if (rc == WN_ENOMEM) *status = 503;
    return rc;
}

/* What winnow_submit says at once. */
static enum MHD_Result refuse(struct gateway_request *r, int result)
{
    const char *text = winnow_error(r->g->w);

    if (result == WINNOW_EINVAL) return gateway_reply_error(r, 400, NULL, text, 0);
    if (result == WINNOW_EBUSY) return gateway_reply_error(r, 429, NULL, text, 1);
    if (result == WINNOW_ECONNECT) return gateway_reply_error(r, 503, NULL, text, RETRY_AWAY_S);
    return gateway_reply_error(r, 500, NULL, text, 0);
}

static void take_job(struct gateway_request *r, const struct chat_request *q)
{
    const uint32_t n = q->request.n ? q->request.n : 1;

    snprintf(r->model, sizeof(r->model), "%s", r->g->service.model);
    r->streams = q->stream;
    r->answer.choices_n = n;
    r->stream = (struct chat_stream){
        .model = r->model, .created_s = (int64_t)time(NULL), .choices_n = n, .with_usage = q->stream_usage};
    gateway_suspend(r);
}

enum MHD_Result gateway_chat_begin(struct gateway_request *r)
{
    struct gateway *g = r->g;
    struct chat_request q = {0};
    struct wn_err err = {0};
    json_t *root = NULL;
    enum MHD_Result result = MHD_YES;
    int status = 0, sent;

    if (!g->w || !g->service.answers)
        return gateway_reply_error(r, 503, NULL, g->service.answers ? "no connection to the service" : g->service.why,
                                   RETRY_AWAY_S);
    if (parse(r, &q, &root, &status, &err) != WN_OK)
        result = gateway_reply_error(r, status, q.field, err.text, status == 503 ? RETRY_AWAY_S : 0);
    else if ((sent = winnow_submit(g->w, &q.request, &r->job)) != WINNOW_OK)
        result = refuse(r, sent);
    else
        take_job(r, &q);
    chat_request_fini(&q);
    json_decref(root);
    return result;
}

/* ---- events ---- */

/* Appends to what the reader gets; one who leaves too much of it is left. */
static void put(struct gateway_request *r, const char *text, size_t n)
{
    const size_t left = r->out_n - r->out_at;

    if (left + n > GATEWAY_OUT_MAX) {
        gateway_hang_up(r);
        return;
    }
    if (r->out_at) memmove(r->out, r->out + r->out_at, left);
    r->out_at = 0;
    r->out_n = left;
    if (left + n > r->out_room) {
        char *more = realloc(r->out, left + n + 4096);
        if (!more) {
            gateway_hang_up(r);
            return;
        }
        r->out = more;
        r->out_room = left + n + 4096;
    }
    memcpy(r->out + left, text, n);
    r->out_n += n;
}

/* An event, or an error behind which nothing comes (moved), to the stream's text. */
static void put_event(struct gateway_request *r, const struct winnow_event *ev, json_t *error)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *f = open_memstream(&text, &bytes);
    wn_status rc = WN_ENOMEM;

    if (!f)
        json_decref(error);
    else
        rc = error ? chat_stream_fail(error, f) : chat_stream_event(&r->stream, ev, f);
    if (f && fclose(f) != 0) rc = WN_ENOMEM;
    if (rc == WN_OK && bytes > 0) put(r, text, bytes);
    free(text);
    if (rc != WN_OK) gateway_hang_up(r);
}

void gateway_chat_fail(struct gateway_request *r, int status, const char *text, uint32_t retry_s)
{
    if (r->job) (void)!winnow_cancel(r->g->w, r->job); /* its other answers */
    r->job = 0;
    if (r->replied) {
        put_event(r, NULL, gateway_error_json(status, NULL, text));
        r->out_ends = true;
    } else if (gateway_reply_error(r, status, NULL, text, retry_s) != MHD_YES) {
        gateway_hang_up(r);
    }
    gateway_resume(r);
}

static void on_stream(struct gateway_request *r, const struct winnow_event *ev)
{
    put_event(r, ev, NULL);
    if (r->gone) return;
    if (r->stream.done == r->stream.choices_n) {
        r->job = 0;
        r->out_ends = true;
    }
    if (!r->replied && gateway_reply_stream(r) != MHD_YES) gateway_hang_up(r);
    gateway_resume(r);
}

static void on_answer(struct gateway_request *r, const struct winnow_event *ev)
{
    struct wn_err err = {0};

    if (chat_answer_take(&r->answer, ev, &err) != WN_OK) {
        gateway_chat_fail(r, 500, err.text, 0);
    } else if (r->answer.done == r->answer.choices_n) {
        r->job = 0;
        if (gateway_reply_json(r, 200, chat_answer_json(&r->answer, r->model, r->stream.created_s, true), 0) !=
            MHD_YES)
            gateway_hang_up(r);
        gateway_resume(r);
    }
}

void gateway_chat_event(struct gateway *g, const struct winnow_event *ev)
{
    struct gateway_request *r = g->requests;

    while (r && (r->job == 0 || r->job != ev->job)) r = r->next;
    if (!r) return; /* its reader is gone */
    switch (ev->type) {
    case WINNOW_EVENT_BUSY:
        gateway_chat_fail(r, 429, ev->text, (ev->retry_ms + 999) / 1000 + (ev->retry_ms == 0));
        break;
    case WINNOW_EVENT_ERROR:
        gateway_chat_fail(r, status_of(ev->error_code, ev->job_id[0]), ev->text, 0);
        break;
    case WINNOW_EVENT_DONE:
        if (!chat_answered(ev)) {
            gateway_chat_fail(r, 499, "the job was cancelled at the service", 0);
            break;
        } /* fall through */
    default:
        if (r->streams)
            on_stream(r, ev);
        else
            on_answer(r, ev);
    }
}
