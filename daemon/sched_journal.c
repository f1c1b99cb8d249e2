/* daemon/sched_journal.c - the scheduler and its journal: what is recorded when, what waits for it, and what
 * comes back at start.
 *
 * A job waits in WN_LIST_PENDING until it is on record; its Accepted goes out after that. Later changes are
 * recorded behind the scheduler's back, at most one at a time for each job (`recording`); what changes
 * meanwhile makes it dirty and is recorded next, as a whole. Tokens only make it dirty: TICK_US bounds how
 * often they are written. The end is told to the followers when it is on record, or when it was seen that it
 * cannot be: then a crash of the scheduler before the disk recovers would run the job again. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "daemon/pruning_ask.h"
#include "daemon/sched.h"

#define TICK_US  ((int64_t)1000000)
#define PROBE_US ((int64_t)500000)

static int64_t real_us(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_REALTIME, &ts);
    return (int64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

/* The monotonic time that was so at this real time, and back; a clock that is set moves only what is shown. What is on
 * record is past, also where the clock was set back since. */
static int64_t from_real(int64_t us)
{
    const int64_t real = real_us();
    return (us < real ? us : real) + wn_now_us() - real;
}

static int64_t to_real(int64_t us)
{
    return us + real_us() - wn_now_us();
}

static void release_payload(void *hint)
{
    wn_payload_release(hint);
}

/* ---- out ---- */

wn_status wn_sched_journal_add(struct wn_scheduler *s, struct wn_job *job)
{
    uint64_t image_bytes[WN_IMAGES_MAX];
    struct wn_journal_job r = {.id = job->id, .image_bytes = image_bytes, .images_n = job->images_n};
    struct wn_err err = {0};
    uint8_t *request = NULL;
    size_t request_bytes = 0;
    wn_status rc = wn_codec_pack(&request, &request_bytes, job->request, &err);

    if (rc != WN_OK) return rc;
    r.submitted_us = to_real(job->submitted_us);
    r.request = request;
    r.request_bytes = request_bytes;
    for (uint32_t i = 0; i < job->images_n; i++) image_bytes[i] = job->images[i].bytes;
    if (job->payload) {
        r.images = job->payload->data;
        r.release = release_payload;
        r.hint = job->payload;
        atomic_fetch_add(&job->payload->refs, 1);
    }
    rc = wn_journal_add(s->journal, &r, &job->life);
    if (rc != WN_OK && job->payload) wn_payload_release(job->payload);
    if (rc == WN_OK) job->recording = true;
    free(request);
    return rc;
}

/* How it ended and what was measured, as a Done without its text. */
static wn_status pack_outcome(struct wn_job *job, uint8_t **out, size_t *bytes)
{
    Wn__JobRef ref = WN__JOB_REF__INIT;
    Wn__Done done = WN__DONE__INIT;
    Wn__Usage usage = job->usage;
    struct wn_err err = {0};

    usage.bytes_on_wire = &job->link;
    usage.pruning = &job->pruning;
    if (job->first_token_us) usage.time_to_first_token_us = (uint64_t)(job->first_token_us - job->submitted_us);
    ref.job_id = job->id;
    ref.attempt = job->life.attempt ? job->life.attempt : 1;
    done.job = &ref;
    done.reason = job->reason;
    done.usage = &usage;
    return wn_codec_pack_body(out, bytes, WN__ENVELOPE__BODY_DONE, &done, &err);
}

void wn_sched_record(struct wn_scheduler *s, struct wn_job *job)
{
    struct wn_journal_state st = {.life = job->life,
                                  .ids = job->answer.ids,
                                  .text_end = job->answer.text_end,
                                  .ids_n = job->answer.ids_n,
                                  .text = job->answer.text,
                                  .text_bytes = job->answer.text_bytes,
                                  .code = (uint32_t)job->error.code,
                                  .error = job->error.text,
                                  .retriable = job->retriable};
    uint8_t *outcome = NULL;

    if (!s->journal) return;
    wn_sched_mark(s, job, WN_MARK_DIRTY, true);
    job->urgent = true;
    if (job->recording) return; /* its outcome brings us back here */
    if (pack_outcome(job, &outcome, &st.outcome_bytes) != WN_OK) return;
    st.outcome = outcome;
    if (wn_job_ended(&job->life)) st.ended_us = to_real(job->ended_us);
    if (wn_journal_save(s->journal, job->id, &st) == WN_OK) { /* else the tick tries again */
        job->recording = true;
        job->urgent = false;
        wn_sched_mark(s, job, WN_MARK_DIRTY, false);
    }
    free(outcome);
}

bool wn_sched_forget(struct wn_scheduler *s, struct wn_job *job)
{
    if (!s->journal) {
        wn_sched_bury(s, job);
        return true;
    }
    /* the record goes first: one that outlives its job would be a job again at the next start */
    if (job->recording || !job->settled || s->journal_error.code != WN_OK) return false;
    if (wn_journal_forget(s->journal, job->id) != WN_OK) return false;
    job->recording = true;
    wn_sched_list_put(s, job, WN_LIST_LEAVING, false);
    return true;
}

/* ---- outcomes ---- */

static void settle(struct wn_scheduler *s, struct wn_job *job)
{
    if (!wn_job_ended(&job->life) || job->settled) return;
    job->settled = true;
    s->unsettled--;
    wn_sched_flush(s, job);
}

static void on_added(struct wn_scheduler *s, struct wn_job *job, const struct wn_err *error)
{
    if (error->code != WN_OK && wn_job_ended(&job->life)) {
        settle(s, job); /* cancelled meanwhile */
        return;
    }
    if (error->code != WN_OK) {
        for (unsigned i = 0; i < job->watchers_n; i++)
            wn_sched_busy(s, &job->watchers[i].peer, job->watchers[i].tag, error->text);
        wn_sched_job_destroy(s, job);
        return;
    }
    wn_sched_admit(s, job);
    if (job->urgent) wn_sched_record(s, job);
}

static void on_forgotten(struct wn_scheduler *s, struct wn_job *job, const struct wn_err *error)
{
    if (error->code == WN_OK) wn_sched_bury(s, job);
    else wn_sched_list_put(s, job, WN_LIST_ENDED, true); /* once the disk is better */
}

static void note_health(struct wn_scheduler *s, const struct wn_err *error)
{
    if (error->code != WN_OK && s->journal_error.code == WN_OK)
        wn_error("scheduler", "%s; new jobs are refused until it can be written", error->text);
    if (error->code == WN_OK && s->journal_error.code != WN_OK)
        wn_warn("scheduler", "the journal can be written again");
    s->journal_error = *error;
}

void wn_sched_journal_outcomes(struct wn_scheduler *s)
{
    struct wn_journal_outcome o;

    while (wn_journal_take(s->journal, &o)) {
        struct wn_job *job = o.op == WN_JOURNAL_PROBE ? NULL : wn_sched_job_find(s, o.id);
        note_health(s, &o.error);
        if (o.op == WN_JOURNAL_PROBE) s->probing = false;
        if (!job) continue;
        job->recording = false;
        if (o.op == WN_JOURNAL_ADD) {
            on_added(s, job, &o.error);
        } else if (o.op == WN_JOURNAL_FORGET) {
            on_forgotten(s, job, &o.error);
        } else if (o.error.code != WN_OK) {
            wn_sched_mark(s, job, WN_MARK_DIRTY, true); /* the tick tries again, once the disk is better */
            settle(s, job);
        } else if (job->urgent) {
            wn_sched_record(s, job);
        } else {
            settle(s, job);
        }
    }
}

void wn_sched_journal_tick(struct wn_scheduler *s, int64_t now_us)
{
    if (!s->journal) return;
    if (s->journal_error.code != WN_OK) {
        if (s->probing || now_us < s->probe_us) return;
        s->probing = wn_journal_probe(s->journal) == WN_OK;
        s->probe_us = now_us + PROBE_US;
        return;
    }
    if (now_us < s->record_us) return;
    s->record_us = now_us + TICK_US;
    for (struct wn_job *job = s->marked[WN_MARK_DIRTY], *next; job; job = next) {
        next = job->mark[WN_MARK_DIRTY].next;
        if (!job->recording) wn_sched_record(s, job);
    }
}

/* ---- at start ---- */

static wn_status load_outcome(struct wn_job *job, const struct wn_journal_state *st, struct wn_err *err)
{
    Wn__Envelope *env = NULL;
    wn_status rc;

    if (st->outcome_bytes == 0) return WN_OK; /* it never ran */
    if ((rc = wn_codec_unpack(&env, st->outcome, st->outcome_bytes, err)) != WN_OK) return rc;
    if (env->body_case == WN__ENVELOPE__BODY_DONE) {
        job->reason = env->done->reason;
        if (env->done->usage) {
            wn_link_bytes_add(&job->link, env->done->usage->bytes_on_wire);
            job->usage = *env->done->usage;
            job->usage.base = (ProtobufCMessage)PROTOBUF_C_MESSAGE_INIT(&wn__usage__descriptor);
            job->usage.bytes_on_wire = NULL;
            job->usage.pruning = NULL;
            wn_pruning_copy_numbers(&job->pruning, env->done->usage->pruning);
        }
    }
    wn_codec_free(env);
    return WN_OK;
}

/* Back to where the dead scheduler left it. A job that ran may still run: its leader is waited for. What was handed out
 * counts as a try, but not as a failed one. One that was queued may have been handed out unrecorded. */
static void revive(struct wn_scheduler *s, struct wn_job *job, const struct wn_err *damage)
{
    const bool ran = job->life.state == WN_JOB_RUNNING;
    struct wn_err err = {0};

    job->life.attempts_max++;
    if (!ran) {
        job->life.attempt++;
        job->life.state = WN_JOB_QUEUED;
    }
    wn_ticket_open(&job->ticket, s->journal_account);
    wn_sched_list_put(s, job, ran ? WN_LIST_ORPHANED : WN_LIST_QUEUED, false);
    if (damage->code == WN_OK) return;
    if (wn_job_apply(&job->life, WN_JOB_FAIL, &err) != WN_OK) return;
    wn_ticket_close(&s->accounts, &job->ticket);
    wn_fail(&job->error, WN_EIO, "an image was lost: %.300s", damage->text);
    job->ended_us = wn_now_us();
    s->failed++;
    s->unsettled++;
    wn_sched_payload_drop(s, job);
    wn_sched_list_put(s, job, WN_LIST_ENDED, false);
    wn_sched_mark(s, job, WN_MARK_DIRTY, true);
}

/* The parts of a row against each other. Images come with jobs that have not ended, unless they are damaged. */
static wn_status check_row(const struct wn_journal_job *r, const struct wn_journal_state *st,
                           const Wn__Envelope *request, const struct wn_err *damage, struct wn_err *err)
{
    const Wn__Submit *submit = request->body_case == WN__ENVELOPE__BODY_SUBMIT ? request->submit : NULL;

    if (!submit || submit->n_image_bytes > WN_IMAGES_MAX) return wn_fail(err, WN_EFORMAT, "not a request");
    if (wn_job_ended(&st->life) != (st->ended_us != 0))
        return wn_fail(err, WN_EFORMAT, "it is %s, and %s", wn_job_state_name(st->life.state),
                       st->ended_us ? "has ended" : "has not ended");
    if (st->ended_us || damage->code != WN_OK) return WN_OK;
    if (r->images_n != submit->n_image_bytes)
        return wn_fail(err, WN_EFORMAT, "%u images of %zu", r->images_n, submit->n_image_bytes);
    for (uint32_t i = 0; i < r->images_n; i++)
        if (r->image_bytes[i] != submit->image_bytes[i])
            return wn_fail(err, WN_EFORMAT, "image %u has %llu bytes of %llu", i, (unsigned long long)r->image_bytes[i],
                           (unsigned long long)submit->image_bytes[i]);
    return WN_OK;
}

static wn_status load_job(void *arg, const struct wn_journal_job *r, const struct wn_journal_state *st,
                          const struct wn_err *damage, struct wn_err *err)
{
    struct wn_scheduler *s = arg;
    Wn__Envelope *request = NULL;
    struct wn_job *job = NULL;
    size_t bytes = 0;
    wn_status rc;

    if ((rc = wn_codec_unpack(&request, r->request, r->request_bytes, err)) != WN_OK) goto out;
    if ((rc = check_row(r, st, request, damage, err)) != WN_OK) goto out;
    for (uint32_t i = 0; i < r->images_n; i++) bytes += (size_t)r->image_bytes[i];
    if ((rc = wn_sched_job_create(s, &job, request, r->id, r->images, bytes, err)) != WN_OK) goto out;
    request = NULL;
    wn_pruning_complete(&job->pruning, job->request->submit->pruning, &s->cfg);
    if ((rc = wn_transcript_restore(&job->answer, st->ids, st->text_end, st->ids_n, st->text, st->text_bytes, err)) !=
            WN_OK ||
        (rc = load_outcome(job, st, err)) != WN_OK)
        goto out;
    job->life = st->life;
    job->submitted_us = from_real(r->submitted_us);
    job->queued_us = wn_now_us();
    if (job->usage.time_to_first_token_us)
        job->first_token_us = job->submitted_us + (int64_t)job->usage.time_to_first_token_us;
    job->deadline_us = wn_sched_deadline(job->request->submit, job->submitted_us);
    if (st->code) wn_fail(&job->error, st->code < WN_STATUS_N ? (wn_status)st->code : WN_EIO, "%s", st->error);
    job->retriable = st->retriable;
    if (st->ended_us) {
        job->settled = true;
        job->ended_us = from_real(st->ended_us);
        wn_sched_list_put(s, job, WN_LIST_ENDED, false);
    } else {
        revive(s, job, damage);
    }
out:
    wn_codec_free(request);
    if (rc != WN_OK) {
        wn_err_prefix(err, "journal %s: job %s", s->cfg.journal, r->id);
        if (job) wn_sched_job_destroy(s, job);
    }
    return rc;
}

wn_status wn_sched_journal_open(struct wn_scheduler *s, struct wn_err *err)
{
    const struct wn_peer_id nobody = {0};
    wn_status rc;

    if (!s->cfg.journal[0]) return WN_OK;
    if ((rc = wn_journal_open(&s->journal, s->cfg.journal, err)) != WN_OK) return rc;
    if (!(s->journal_account = wn_account_open(&s->accounts, &nobody, wn_now_us())))
        return wn_fail(err, WN_ENOMEM, "scheduler");
    if ((rc = wn_journal_load(s->journal, load_job, s, err)) != WN_OK) return rc;
    s->adopt_until_us = wn_deadline_in_us((int64_t)s->cfg.lease_ms * 1000);
    wn_info("scheduler", "journal %s: %zu jobs to do, %zu that ran, %zu results", s->cfg.journal,
            s->list[WN_LIST_QUEUED].n, s->list[WN_LIST_ORPHANED].n, s->list[WN_LIST_ENDED].n);
    return wn_journal_start(s->journal, err);
}
