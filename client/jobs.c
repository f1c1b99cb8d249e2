/* client/jobs.c - the jobs of a connection: found by what the server calls them, and asked for again when it comes
 * back. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "client/conn.h"

#define RESEND_US 10000 /* when the queue to the server is full */

struct winnow_job *wn_jobs_add(struct winnow *w)
{
    if (w->jobs_n == w->jobs_room) {
        size_t room = w->jobs_room * 2 + 16;
        struct winnow_job *jobs = realloc(w->jobs, room * sizeof(*jobs));
        if (!jobs) return NULL;
        w->jobs = jobs;
        w->jobs_room = room;
    }
    memset(&w->jobs[w->jobs_n], 0, sizeof(w->jobs[0]));
    w->jobs[w->jobs_n].number = ++w->last_number;
    return &w->jobs[w->jobs_n++];
}

/* The other answers of the request that w's last entry is for: entries that share its number and its message. */
bool wn_jobs_add_choices(struct winnow *w, uint32_t n)
{
    const struct winnow_job first = w->jobs[w->jobs_n - 1];

    for (uint32_t i = 1; i < n; i++) {
        struct winnow_job *job = wn_jobs_add(w);
        if (!job) return false;
        *job = first;
        job->choice = i;
        if (job->submit) wn_conn_request_share(job->submit);
        w->last_number = first.number;
    }
    return true;
}

/* The newest with this id: a job that was attached to again answers there. */
struct winnow_job *wn_jobs_by_id(struct winnow *w, const char *id)
{
    for (size_t i = w->jobs_n; id && id[0] && i > 0; i--)
        if (strcmp(w->jobs[i - 1].id, id) == 0) return &w->jobs[i - 1];
    return NULL;
}

struct winnow_job *wn_jobs_by_number(struct winnow *w, uint64_t number)
{
    for (size_t i = 0; i < w->jobs_n; i++)
        if (w->jobs[i].number == number) return &w->jobs[i];
    return NULL;
}

struct winnow_job *wn_jobs_by_tag(struct winnow *w, const char *tag, uint32_t choice)
{
    char *end;
    uint64_t number = strtoull(tag, &end, 10);

    if (!tag[0] || *end) return wn_jobs_by_id(w, tag);
    for (size_t i = 0; i < w->jobs_n; i++)
        if (w->jobs[i].number == number && w->jobs[i].choice == choice) return &w->jobs[i];
    return NULL;
}

void wn_jobs_drop_one(struct winnow *w, struct winnow_job *job)
{
    size_t i = (size_t)(job - w->jobs);

    wn_conn_request_free(job->submit);
    memmove(job, job + 1, (w->jobs_n - i - 1) * sizeof(*job));
    w->jobs_n--;
}

/* The job with all its choices. */
void wn_jobs_drop(struct winnow *w, uint64_t number)
{
    for (size_t i = w->jobs_n; i > 0; i--)
        if (w->jobs[i - 1].number == number) wn_jobs_drop_one(w, &w->jobs[i - 1]);
}

int wn_jobs_send_cancel(struct winnow *w, const struct winnow_job *job)
{
    Wn__Cancel cancel = WN__CANCEL__INIT;
    Wn__JobRef ref = WN__JOB_REF__INIT;

    ref.job_id = (char *)(uintptr_t)job->id;
    cancel.job = &ref;
    return wn_conn_send(w, WN__ENVELOPE__BODY_CANCEL, &cancel, NULL, 0, NULL);
}

/* The request of a job of which the server has not named all choices; NULL: it has. */
static struct conn_request *unaccepted(struct winnow *w, uint64_t number)
{
    for (size_t i = 0; i < w->jobs_n; i++)
        if (w->jobs[i].number == number && !w->jobs[i].id[0]) return w->jobs[i].submit;
    return NULL;
}

static bool is_first(struct winnow *w, const struct winnow_job *job)
{
    return job == wn_jobs_by_number(w, job->number);
}

/* An accepted job is followed from its first token on, and what the user has is skipped: by bytes, because the
 * text of a token may have come in pieces. */
static int resume(struct winnow *w, struct winnow_job *job)
{
    Wn__Attach attach = WN__ATTACH__INIT;
    int rc;

    job->stream_text = 0;
    job->retry_us = 0;
    if (unaccepted(w, job->number)) return is_first(w, job) ? wn_conn_resend(w, unaccepted(w, job->number)) : WINNOW_OK;
    attach.job_id = job->id;
    attach.from_token = job->from;
    rc = wn_conn_send(w, WN__ENVELOPE__BODY_ATTACH, &attach, NULL, 0, NULL);
    if (rc == WINNOW_OK && job->cancel) (void)!wn_jobs_send_cancel(w, job);
    return rc;
}

void wn_jobs_resume(struct winnow *w)
{
    for (size_t i = 0; i < w->jobs_n; i++) {
        if (!w->jobs[i].stale) continue;
        if (resume(w, &w->jobs[i]) != WINNOW_OK) return; /* the queue is full: the rest later */
        w->jobs[i].stale = false;
    }
    w->stale = false;
}

int64_t wn_jobs_retry(struct winnow *w)
{
    int64_t next_us = WN_NEVER;

    for (size_t i = 0; i < w->jobs_n; i++) {
        struct winnow_job *job = &w->jobs[i];
        if (!job->retry_us) continue;
        if (wn_deadline_passed(job->retry_us))
            job->retry_us = wn_conn_resend(w, job->submit) == WINNOW_OK ? 0 : job->retry_us + RESEND_US;
        if (job->retry_us && job->retry_us < next_us) next_us = job->retry_us;
    }
    return next_us;
}
