/* client/events.c - messages of the server to events. */
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "client/conn.h"

#define RETRY_MS_MAX 10000 /* the longest wait that a server is granted */
#define REFUSALS_MAX 3

static const char *reason_text(Wn__FinishReason reason)
{
    switch (reason) {
    case WN__FINISH_REASON__FINISH_STOP: return "stop";
    case WN__FINISH_REASON__FINISH_LENGTH: return "length";
    case WN__FINISH_REASON__FINISH_CANCELLED: return "cancelled";
    case WN__FINISH_REASON__FINISH_ERROR: return "error";
    default: return "unknown";
    }
}

static void fill_pruning(struct winnow_usage *out, const Wn__Pruning *p)
{
    snprintf(out->pruning_method, sizeof(out->pruning_method), "%s", p->method);
    snprintf(out->pruning_setting, sizeof(out->pruning_setting), "%s", p->setting);
    snprintf(out->pruning_options, sizeof(out->pruning_options), "%s", p->options);
    out->pruning_keep = p->keep;
    out->pruning_rate = p->rate;
    out->pruning_cap = p->cap;
    out->pruning_position = (enum winnow_position)p->position;
    out->pruning_projected = p->projected;
    out->pruning_seed = p->seed;
}

static void fill_usage(struct winnow_usage *out, const Wn__Usage *u)
{
    const Wn__LinkBytes *b = u->bytes_on_wire;

    out->prompt_tokens = u->prompt_tokens;
    out->completion_tokens = u->completion_tokens;
    out->image_tokens = u->image_tokens;
    out->image_tokens_before_pruning = u->image_tokens_before_pruning;
    out->attempts = u->attempts;
    if (b) {
        out->bytes_control = b->control;
        out->bytes_embedding = b->embedding;
        out->bytes_activation = b->activation;
        out->bytes_allreduce = b->allreduce;
        out->bytes_logits = b->logits;
        out->bytes_image = b->image;
    }
    out->queue_us = u->queue_us;
    out->preprocess_us = u->preprocess_us;
    out->encode_us = u->encode_us;
    out->prune_us = u->prune_us;
    out->transfer_us = u->transfer_us;
    out->prefill_us = u->prefill_us;
    out->decode_us = u->decode_us;
    out->time_to_first_token_us = u->time_to_first_token_us;
    out->total_us = u->total_us;
    if (u->pruning) fill_pruning(out, u->pruning);
    out->cached_tokens = u->cached_tokens;
    out->vision_cache_hit = u->vision_cache_hit;
    out->preemptions = u->preemptions;
}

static struct winnow_job *on_accepted(struct winnow *w, const Wn__Accepted *a, struct winnow_event *ev)
{
    struct winnow_job *job =
        a->client_tag[0] ? wn_jobs_by_tag(w, a->client_tag, a->choice) : wn_jobs_by_id(w, a->job_id);

    if (!job || !wn_job_id_valid(a->job_id)) return NULL;
    ev->type = WINNOW_EVENT_ACCEPTED;
    snprintf(job->id, sizeof(job->id), "%s", a->job_id);
    if (job->cancel && job->submit) (void)!wn_jobs_send_cancel(w, job);
    wn_conn_request_free(job->submit);
    job->submit = NULL;
    if (job->accepted) return NULL; /* the user knows */
    job->accepted = true;
    return job;
}

/* An Error is about a job, about a request that became none, or (job 0) about the connection. */
static struct winnow_job *on_error(struct winnow *w, const Wn__Error *e, struct winnow_event *ev)
{
    struct winnow_job *job = e->job ? wn_jobs_by_id(w, e->job->job_id) : NULL;

    ev->type = WINNOW_EVENT_ERROR;
    ev->text = e->text;
    ev->error_code = e->code;
    return job ? job : wn_jobs_by_tag(w, e->client_tag, 0);
}

/* false: the request is sent again later, and the user need not know. */
static bool on_busy(struct winnow *w, const Wn__Busy *b, struct winnow_event *ev, struct winnow_job **out)
{
    struct winnow_job *job = *out = wn_jobs_by_tag(w, b->client_tag, 0);
    const int64_t now = wn_now_us();
    int64_t wait_us;
    uint32_t random = 0;

    ev->type = WINNOW_EVENT_BUSY;
    ev->text = b->reason;
    ev->retry_ms = b->retry_ms;
    if (!job) return false;
    if (!job->busy_us) job->busy_us = now;
    /* up to half as long again, so that clients that were refused together do not come back together; the server's time
     * is doubled with each refusal, up to a bound */
    if (getrandom(&random, sizeof(random), GRND_NONBLOCK) < 0) random = (uint32_t)now;
    wait_us = (int64_t)(b->retry_ms < RETRY_MS_MAX ? b->retry_ms : RETRY_MS_MAX) * 1000 << job->refusals;
    wait_us += wait_us / 2 * (random % 1024) / 1024;
    if (job->refusals < REFUSALS_MAX) job->refusals++;
    if (!job->submit || now + wait_us > job->busy_us + (int64_t)w->busy_timeout_ms * 1000) return true;
    job->retry_us = now + wait_us;
    return false;
}

/* false: the user has all of it. */
static bool on_tokens(struct winnow *w, struct winnow_job *job, const Wn__Tokens *t, struct winnow_event *ev)
{
    const size_t bytes = strlen(t->text), had = job->text > job->stream_text ? job->text - job->stream_text : 0;
    const size_t skip_text = had < bytes ? had : bytes;
    size_t skip = job->tokens > t->first ? job->tokens - t->first : 0;

    if (skip > t->n_ids) skip = t->n_ids;
    job->stream_text += bytes;
    if (skip == t->n_ids && skip_text == bytes && t->n_ids + bytes > 0) return false;
    ev->type = WINNOW_EVENT_TEXT;
    ev->text = t->text + skip_text;
    ev->token_ids = t->n_ids ? t->ids + skip : NULL;
    ev->token_ids_n = t->n_ids - skip;
    ev->first_token = t->first + (uint32_t)skip;
    if (t->n_logprobs > skip && /* what makes no sense is left out: the answer counts */
        wn_chances_unpack(w, t->logprobs + skip, t->n_logprobs - skip, &ev->logprobs, &w->chances) != WINNOW_OK)
        ev->logprobs = NULL;
    if (job->tokens < t->first + t->n_ids) job->tokens = t->first + (uint32_t)t->n_ids;
    if (job->text < job->stream_text) job->text = job->stream_text;
    return true;
}

bool wn_event_fill(struct winnow *w, struct winnow_event *ev, struct winnow_job **job)
{
    const Wn__Envelope *env = w->current;

    switch (env->body_case) {
    case WN__ENVELOPE__BODY_ACCEPTED: *job = on_accepted(w, env->accepted, ev); return *job != NULL;
    case WN__ENVELOPE__BODY_TOKENS:
        *job = wn_jobs_by_id(w, env->tokens->job->job_id);
        return *job && on_tokens(w, *job, env->tokens, ev);
    case WN__ENVELOPE__BODY_DONE:
        *job = wn_jobs_by_id(w, env->done->job->job_id);
        ev->type = WINNOW_EVENT_DONE;
        ev->text = env->done->text;
        ev->finish_reason = reason_text(env->done->reason);
        if (env->done->usage) fill_usage(&ev->usage, env->done->usage);
        return *job != NULL;
    case WN__ENVELOPE__BODY_BUSY:
        return on_busy(w, env->busy, ev, job);
    case WN__ENVELOPE__BODY_ERROR: *job = on_error(w, env->error, ev); return true;
    default: return false;
    }
}
