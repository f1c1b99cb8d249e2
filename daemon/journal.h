/* daemon/journal.h - what the scheduler must not forget, in DIR: journal.db (SQLite) and blobs/ (images by hash).
 *
 * A thread of its own writes: the scheduler's loop puts operations into a bounded queue and goes on. A commit waits for
 * the disk, milliseconds on a good one and seconds on a bad one, and the loop also carries the heartbeats that keep
 * workers alive. The thread takes all that is queued into one transaction (group commit: one sync for many jobs), then
 * hands each operation's outcome back and makes fd() readable. Operations of one job stay in order.
 *
 * The database is in WAL mode with synchronous=FULL: after wn_journal_take() says WN_OK, the operation survives a power
 * cut. Locking is exclusive, so that no shared memory is needed and DIR may be on a network file system with locks;
 * DIR/lock keeps a second scheduler out. An operation that failed has left no trace, with one exception: a failed sync
 * may be followed by a power cut that keeps what was written; then a job that was refused is there after all. After a
 * failure all is opened anew by its name, the lock too: DIR may be mounted again meanwhile, from another disk.
 * A final state is written once: later ones for the same job change nothing.
 *
 * Owns:    DIR's lock, the database, the thread; queued operations with copies of all they need.
 * Threads: all calls from one thread, but the release functions, which the journal's thread calls.
 * Fails:   WN_EBUSY: in use by another process, or the queue is full. WN_EUNSUPP: a newer schema. WN_EFORMAT: not a
 *          journal. WN_EIO: what the disk says. */
#ifndef WN_DAEMON_JOURNAL_H
#define WN_DAEMON_JOURNAL_H

#include "daemon/job.h"

#define WN_JOURNAL_SCHEMA    1
#define WN_JOURNAL_QUEUE_MAX 65536

struct wn_journal;

/* Where a job stands. Borrowed by save; in load valid for the call. Times are of CLOCK_REALTIME. */
struct wn_journal_state {
    struct wn_job_life life;
    const uint32_t *ids, *text_end; /* the answer so far */
    size_t ids_n;
    const char *text;
    size_t text_bytes;
    const void *outcome; /* the caller's bytes: how it ended, usage */
    size_t outcome_bytes;
    int64_t ended_us; /* 0: it has not */
    uint32_t code;    /* of the error */
    const char *error;
    bool retriable;
};

/* What a job is. */
struct wn_journal_job {
    const char *id;
    int64_t submitted_us;
    const void *request; /* the caller's bytes */
    size_t request_bytes;
    const uint8_t *images; /* one after the other */
    const uint64_t *image_bytes;
    uint32_t images_n;
    void (*release)(void *hint); /* add: called when `images` is no longer needed; NULL: images must outlive it */
    void *hint;
};

enum wn_journal_op { WN_JOURNAL_ADD, WN_JOURNAL_SAVE, WN_JOURNAL_FORGET, WN_JOURNAL_PROBE };

struct wn_journal_outcome {
    enum wn_journal_op op;
    char id[WN_JOB_ID_CHARS + 1];
    struct wn_err error; /* code WN_OK: it is on disk */
};

/* Opens DIR (made if it is not there), takes its lock, brings the schema up to date and removes images that no job
 * needs. *out is owned by the caller. */
WN_NODISCARD wn_status wn_journal_open(struct wn_journal **out, const char *dir, struct wn_err *err);

/* Calls fn for each job: ended ones by the time of their end, then the others by age. Images come with those that have
 * not ended; if they cannot be read, `damage` says why and job->images is NULL. Before wn_journal_start only. */
typedef wn_status (*wn_journal_fn)(void *arg, const struct wn_journal_job *job, const struct wn_journal_state *state,
                                   const struct wn_err *damage, struct wn_err *err);
WN_NODISCARD wn_status wn_journal_load(struct wn_journal *j, wn_journal_fn fn, void *arg, struct wn_err *err);

WN_NODISCARD wn_status wn_journal_start(struct wn_journal *j, struct wn_err *err); /* the thread */

/* Queue an operation. WN_EBUSY or WN_ENOMEM: not taken (release is not called). A probe only tries to write. */
WN_NODISCARD wn_status wn_journal_add(struct wn_journal *j, const struct wn_journal_job *job,
                                      const struct wn_job_life *life);
WN_NODISCARD wn_status wn_journal_save(struct wn_journal *j, const char *id, const struct wn_journal_state *state);
WN_NODISCARD wn_status wn_journal_forget(struct wn_journal *j, const char *id);
WN_NODISCARD wn_status wn_journal_probe(struct wn_journal *j);

int wn_journal_fd(const struct wn_journal *j);                              /* readable: outcomes are there */
bool wn_journal_take(struct wn_journal *j, struct wn_journal_outcome *out); /* the next outcome; false: none */

/* Writes what is queued, ends the thread and gives DIR back. NULL is fine. */
void wn_journal_close(struct wn_journal *j);

#endif
