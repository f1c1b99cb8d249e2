/* daemon/engine_inbox.c - what the front thread hands to the engine: orders, features, cancels, hellos. */
#include <string.h>

#include "base/log.h"
#include "daemon/engine_impl.h"

#define ORPHAN_US     (10 * 1000000ll)
#define WORKER_CREDIT 4 /* images that a vision worker may have unacknowledged here */

static struct wn_gen_job *find_job(struct wn_engine *e, const Wn__JobRef *ref)
{
    for (struct wn_gen_job *j = wn_batcher_oldest(e->batcher); j; j = j->next)
        if (!wn_gen_ended(&j->life) && wn_jobref_equal(j->g->job, ref)) return j;
    return NULL;
}

/* A job all of whose features are here: it is laid out, and waits for its turn. */
static void job_ready(struct wn_engine *e, struct wn_gen_job *job)
{
    struct wn_err err = {0};

    if (wn_gen_job_layout(job, &e->opts.gen, &err) != WN_OK || wn_batcher_check(e->batcher, job, &err) != WN_OK)
        wn_engine_fail(e, job, &err);
    else if (job->stopped || job->new_n >= job->max_new) /* a replay that had all but its end */
        wn_engine_finish(e, job, job->stopped ? WN__FINISH_REASON__FINISH_STOP : WN__FINISH_REASON__FINISH_LENGTH);
}

static bool has_ended(const struct wn_engine *e, const Wn__JobRef *ref)
{
    for (int i = 0; i < WN_ENGINE_ENDED_MAX; i++)
        if (e->ended[i].attempt == ref->attempt && strcmp(e->ended[i].job_id, ref->job_id) == 0) return true;
    return false;
}

/* Hands features to their job, or keeps them for an order that is still on its way. Takes m. */
static void take_features(struct wn_engine *e, struct wn_front_msg *m)
{
    struct wn_gen_job *job = find_job(e, m->env->features->job);
    struct wn_err err = {0};
    struct wn_orphan *place = &e->orphans[0];

    /* of a worker that was given up too early; of a job that was */
    if (job ? wn_gen_job_has(job, m->env->features->image) : has_ended(e, m->env->features->job)) {
        wn_engine_send_ack(e, m, NULL);
        wn_front_msg_free(m);
        return;
    }
    if (job) {
        if (wn_gen_job_features(job, m, &e->opts.gen, &err) == WN_OK) {
            wn_front_claim(m);
            if (wn_gen_job_complete(job)) job_ready(e, job);
            else wn_engine_accept_features(e, job); /* those that it waits for may need this one's credit to come */
            return;
        }
        wn_warn("engine", "%s: %s", m->env->features->job->job_id, err.text);
        wn_engine_send_ack(e, m, &err);
        wn_front_msg_free(m);
        wn_engine_fail(e, job, &err);
        return;
    }
    for (int i = 0; i < WN_ENGINE_ORPHANS_MAX; i++) { /* a free place, else the oldest */
        if (!place->msg) break;
        if (!e->orphans[i].msg || e->orphans[i].until_us < place->until_us) place = &e->orphans[i];
    }
    if (place->msg) {
        wn_fail(&err, WN_ENOENT, "no such job");
        wn_engine_send_ack(e, place->msg, &err);
        wn_front_msg_free(place->msg);
    }
    *place = (struct wn_orphan){.msg = m, .until_us = wn_deadline_in_us(ORPHAN_US)};
}

static void adopt_orphans(struct wn_engine *e, const Wn__JobRef *ref)
{
    for (int i = 0; i < WN_ENGINE_ORPHANS_MAX; i++) {
        struct wn_front_msg *m = e->orphans[i].msg;
        if (!m || !wn_jobref_equal(m->env->features->job, ref)) continue;
        e->orphans[i].msg = NULL;
        take_features(e, m);
    }
}

void wn_engine_expire_orphans(struct wn_engine *e)
{
    for (int i = 0; i < WN_ENGINE_ORPHANS_MAX; i++) {
        struct wn_orphan *o = &e->orphans[i];
        struct wn_err err = {0};
        if (!o->msg || !wn_deadline_passed(o->until_us)) continue;
        wn_fail(&err, WN_ENOENT, "no such job");
        wn_engine_send_ack(e, o->msg, &err);
        wn_front_msg_free(o->msg);
        o->msg = NULL;
    }
}

static void take_order(struct wn_engine *e, struct wn_front_msg *m)
{
    struct wn_gen_job *job = NULL;
    struct wn_err err = {0};
    const Wn__JobRef *ref = m->env->generate->job;

    if (e->draining) {
        wn_fail(&err, WN_EBUSY, "the replica is leaving");
        wn_front_send_error(e->opts.front, &m->party, m->env->generate->job, &err, true);
        wn_front_msg_free(m);
        return;
    }
    if (find_job(e, ref)) { /* said twice: the first counts */
        wn_front_msg_free(m);
        return;
    }
    if (wn_gen_job_create(&job, m, &e->opts.gen, &err) != WN_OK) {
        wn_front_send_error(e->opts.front, &m->party, m->env->generate->job, &err, false);
        wn_front_msg_free(m);
        return;
    }
    wn_batcher_add(e->batcher, job);
    if (job->images_n == 0)
        job_ready(e, job);
    else
        adopt_orphans(e, ref);
}

static void cancel_job(struct wn_engine *e, const Wn__JobRef *ref)
{
    struct wn_gen_job *job = find_job(e, ref);
    if (job) wn_engine_finish(e, job, WN__FINISH_REASON__FINISH_CANCELLED);
}

static void drop_all(struct wn_engine *e)
{
    uint32_t n = 0;
    for (struct wn_gen_job *job = wn_batcher_oldest(e->batcher); job; job = job->next) {
        if (wn_gen_ended(&job->life)) continue;
        wn_engine_end(e, job, WN_GEN_DROP);
        n++;
    }
    wn_warn("engine", "the scheduler is lost: its %u jobs are given up here", n);
}

static void greet_worker(struct wn_engine *e, const struct wn_front_msg *m, const char *model_id)
{
    Wn__Credit credit = WN__CREDIT__INIT;
    struct wn_err err = {0};

    if (strcmp(m->env->features_hello->model_id, model_id) != 0) {
        wn_fail(&err, WN_EINVAL, "vision worker %s serves another checkpoint", m->env->features_hello->name);
        wn_warn("engine", "%s", err.text);
        wn_front_send_error(e->opts.front, &m->party, NULL, &err, false);
        return;
    }
    credit.images = WORKER_CREDIT;
    wn_front_send(e->opts.front, &m->party, WN__ENVELOPE__BODY_CREDIT, &credit, WN_TRAFFIC_CONTROL, NULL, 0, NULL,
                  NULL);
}

void wn_engine_take(struct wn_engine *e, struct wn_front_msg *m)
{
    const Wn__Envelope *env = m->env;

    if (m->lease_lost) {
        drop_all(e);
    } else if (m->party.side == WN_SIDE_SCHEDULER && env->body_case == WN__ENVELOPE__BODY_GENERATE) {
        take_order(e, m);
        return;
    } else if (m->party.side == WN_SIDE_WORKER && env->body_case == WN__ENVELOPE__BODY_FEATURES) {
        take_features(e, m);
        return;
    } else if (m->party.side == WN_SIDE_SCHEDULER && env->body_case == WN__ENVELOPE__BODY_CANCEL) {
        cancel_job(e, env->cancel->job);
    } else if (m->party.side == WN_SIDE_SCHEDULER && env->body_case == WN__ENVELOPE__BODY_DRAIN) {
        e->draining = true;
    } else if (m->party.side == WN_SIDE_WORKER && env->body_case == WN__ENVELOPE__BODY_FEATURES_HELLO) {
        greet_worker(e, m, e->opts.gen.model_id);
    } else {
        wn_warn("engine", "unexpected %s", wn_codec_body_name(env->body_case));
    }
    wn_front_msg_free(m);
}
