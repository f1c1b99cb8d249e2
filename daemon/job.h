/* daemon/job.h - a job: the pure state machine, its identity, and the answer as far as it is known.
 *
 *     accepted --queue--> queued --dispatch--> running --done--> done
 *                           ^                     |  \--fail--> failed
 *                           +--lost (tries left)--+  \--lost (no tries left)--> failed
 *     accepted, queued, running --cancel--> cancelled;  accepted, queued --fail--> failed
 *
 * Each dispatch is a new attempt; answers of an older attempt, or of a job that does not run, are not taken. Every
 * change of state goes through wn_job_apply(), and is then recorded (sched_journal.c).
 * Owns:    wn_transcript owns its arrays, from init to fini.
 * Threads: one at a time; nothing here reads clocks, sockets or files (but wn_job_id_make). */
#ifndef WN_DAEMON_JOB_H
#define WN_DAEMON_JOB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "proto/codec.h"

typedef enum wn_job_state {
    WN_JOB_ACCEPTED,
    WN_JOB_QUEUED,
    WN_JOB_RUNNING,
    WN_JOB_DONE,
    WN_JOB_FAILED,
    WN_JOB_CANCELLED,
    WN_JOB_STATES
} wn_job_state;

typedef enum wn_job_event {
    WN_JOB_QUEUE,    /* it is on record and may run */
    WN_JOB_DISPATCH, /* orders go out: attempt + 1 */
    WN_JOB_COMPLETE, /* the leader's Done */
    WN_JOB_FAIL,     /* it cannot succeed */
    WN_JOB_LOSE,     /* a worker of this attempt is gone */
    WN_JOB_CANCEL,   /* somebody asked */
    WN_JOB_EVENTS
} wn_job_event;

/* The journal keeps it. */
struct wn_job_life {
    wn_job_state state;
    uint32_t attempt;      /* of the last dispatch; 0: never */
    uint32_t attempts_max; /* at least 1 */
};

/* Moves on. WN_EINVAL: the event does not fit the state, which stays as it was. */
WN_NODISCARD wn_status wn_job_apply(struct wn_job_life *life, wn_job_event event, struct wn_err *err);

bool wn_job_ended(const struct wn_job_life *life);

/* Whether an answer with this attempt counts. */
bool wn_job_takes(const struct wn_job_life *life, uint32_t attempt);

const char *wn_job_state_name(wn_job_state state);

/* A new id, 26 characters and NUL: 48 bits of milliseconds since 1970 and 80 random ones, so that ids sort by age. */
void wn_job_id_make(char out[WN_JOB_ID_CHARS + 1]);

/* The answer so far: token ids, and for each the end of the text that is out when it is. */
struct wn_transcript {
    uint32_t *ids, *text_end;
    size_t ids_n, ids_room;
    char *text; /* NUL-terminated once there is any */
    size_t text_bytes, text_room;
};

void wn_transcript_fini(struct wn_transcript *a);

/* Adds what a leader sent. *news says whether something was added. Tokens that are there already (a replay) are
 * skipped; a gap or a partial overlap is WN_EPROTO, and nothing changes. Text without ids belongs to the last token. */
WN_NODISCARD wn_status wn_transcript_add(struct wn_transcript *a, uint32_t first, const uint32_t *ids, size_t ids_n,
                                         const char *text, bool *news, struct wn_err *err);

/* Fills an empty transcript. WN_EFORMAT: the offsets do not fit the text. */
WN_NODISCARD wn_status wn_transcript_restore(struct wn_transcript *a, const uint32_t *ids, const uint32_t *text_end,
                                             size_t ids_n, const char *text, size_t text_bytes, struct wn_err *err);

/* What leaders said of each token's chances: packed, kept as it came. Not on record: after a restart of the scheduler
 * the tokens before it have none. Owns its values, from zero to fini. */
struct wn_chances {
    ProtobufCBinaryData *of; /* [n] by index of the token; of no bytes: not known */
    size_t n, room;
};
void wn_chances_fini(struct wn_chances *c);
/* Those of the tokens from `first` on. false: without memory, and nothing is kept. */
bool wn_chances_add(struct wn_chances *c, size_t first, const ProtobufCBinaryData *values, size_t n);

/* Offset of the text that token `from` begins; the end for those to come. */
size_t wn_transcript_text_at(const struct wn_transcript *a, size_t from);

#endif
