/* daemon/engine_answer.c - what the engine says about a job: credit for its features, tokens, its end. */
#include <stdio.h>

#include "daemon/engine_impl.h"
#include "daemon/token_chances.h"

void wn_engine_send_ack(struct wn_engine *e, const struct wn_front_msg *m, const struct wn_err *err)
{
    Wn__FeaturesAck ack = WN__FEATURES_ACK__INIT;

    ack.job = m->env->features->job;
    ack.image = m->env->features->image;
    if (err) {
        ack.code = (uint32_t)err->code;
        ack.text = (char *)(uintptr_t)err->text;
    }
    wn_front_send(e->opts.front, &m->party, WN__ENVELOPE__BODY_FEATURES_ACK, &ack, WN_TRAFFIC_CONTROL, NULL, 0, NULL,
                  NULL);
}

void wn_engine_accept_features(struct wn_engine *e, struct wn_gen_job *job)
{
    for (uint32_t i = 0; i < job->images_n; i++) {
        struct wn_gen_image *im = &job->images[i];
        if (!im->msg || im->accepted) continue;
        im->accepted = true;
        wn_engine_send_ack(e, im->msg, NULL);
    }
}

void wn_engine_end(struct wn_engine *e, struct wn_gen_job *job, wn_gen_event how)
{
    wn_engine_accept_features(e, job);
    if (!wn_gen_job_complete(job)) {
        struct wn_ended *place = &e->ended[e->ended_at++ % WN_ENGINE_ENDED_MAX];
        snprintf(place->job_id, sizeof(place->job_id), "%s", job->g->job->job_id);
        place->attempt = job->g->job->attempt;
    }
    wn_batcher_end(e->batcher, job, how);
}

void wn_engine_fail(struct wn_engine *e, struct wn_gen_job *job, const struct wn_err *err)
{
    wn_front_send_error(e->opts.front, &job->order->party, job->g->job, err, false);
    wn_engine_end(e, job, WN_GEN_FAIL);
}

void wn_engine_finish(struct wn_engine *e, struct wn_gen_job *job, Wn__FinishReason reason)
{
    Wn__Done done = WN__DONE__INIT;
    Wn__Usage usage = WN__USAGE__INIT;
    Wn__LinkBytes bytes = WN__LINK_BYTES__INIT;

    wn_gen_job_usage(job, e->opts.plan, e->opts.step.rows_max, &usage, &bytes);
    done.job = job->g->job;
    done.reason = reason;
    done.usage = &usage;
    wn_front_send(e->opts.front, &job->order->party, WN__ENVELOPE__BODY_DONE, &done, WN_TRAFFIC_CONTROL, NULL, 0,
                  NULL, NULL);
    wn_engine_end(e, job, reason == WN__FINISH_REASON__FINISH_CANCELLED ? WN_GEN_CANCEL : WN_GEN_FINISH);
    e->stats_due = true;
}

static void send_token(struct wn_engine *e, const struct wn_gen_job *job, uint32_t id, const char *text,
                       ProtobufCBinaryData *chances)
{
    Wn__Tokens t = WN__TOKENS__INIT;

    t.job = job->g->job;
    t.first = job->new_n - 1;
    t.ids = &id;
    t.n_ids = 1;
    t.text = (char *)(uintptr_t)text;
    t.logprobs = chances;
    t.n_logprobs = chances ? 1 : 0;
    wn_front_send(e->opts.front, &job->order->party, WN__ENVELOPE__BODY_TOKENS, &t, WN_TRAFFIC_TOKENS, NULL, 0, NULL,
                  NULL);
}

/* What the last stage said of token i of the step, packed; nothing if the job did not ask. */
static ProtobufCBinaryData *pack_chances(struct wn_engine *e, const struct wn_gen_job *job, uint32_t i,
                                         ProtobufCBinaryData *packed)
{
    uint32_t top_n;
    const struct wn_step_top *top = wn_replica_top(e->opts.replica, i, &top_n);

    if (!job->g->sampling || !job->g->sampling->logprobs) return NULL;
    packed->len = wn_token_chances_pack(e->opts.gen.tokenizer, &e->tokens[i], top, top_n, packed->data);
    return packed;
}

void wn_engine_take_token(struct wn_engine *e, struct wn_gen_job *job, uint32_t i)
{
    uint8_t bytes[WN_LOGPROBS_BYTES_MAX];
    ProtobufCBinaryData packed = {0, bytes};
    const uint32_t id = e->tokens[i].id;
    const bool end = wn_gen_is_end(job->g, e->opts.gen.model, id);
    const char *text = "";
    struct wn_err err = {0};
    bool stopped = false;
    wn_status rc;

    if (!job->first_token_us) job->first_token_us = wn_now_us();
    wn_gen_job_push(job, id);
    /* what was held back goes out with the last token, so that no text is without a number */
    if (end) rc = wn_answer_finish(job->answer, &text, &err);
    else if (job->new_n >= job->max_new) rc = wn_answer_push_last(job->answer, id, &text, &stopped, &err);
    else rc = wn_answer_push(job->answer, id, &text, &stopped, &err);
    if (rc != WN_OK) {
        wn_engine_fail(e, job, &err);
        return;
    }
    send_token(e, job, id, text, pack_chances(e, job, i, &packed));
    if (end || stopped || job->new_n >= job->max_new)
        wn_engine_finish(e, job, end || stopped ? WN__FINISH_REASON__FINISH_STOP : WN__FINISH_REASON__FINISH_LENGTH);
}
