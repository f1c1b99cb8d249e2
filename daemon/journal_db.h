/* daemon/journal_db.h - inside of the journal: the SQL and the blobs, without threads or queues.
 * Owns:    the database, its statements and the blob folder, from open to close.
 * Threads: one at a time. Fails: as journal.h says. */
#ifndef WN_DAEMON_JOURNAL_DB_H
#define WN_DAEMON_JOURNAL_DB_H

#include "daemon/blobs.h"
#include "daemon/journal.h"

struct wn_journal_db;

/* make: where there is none; else only what is there already is opened. */
WN_NODISCARD wn_status wn_journal_db_open(struct wn_journal_db **out, const char *dir, bool make, struct wn_err *err);
void wn_journal_db_close(struct wn_journal_db *db); /* NULL is fine */
WN_NODISCARD wn_status wn_journal_db_load(struct wn_journal_db *db, wn_journal_fn fn, void *arg, struct wn_err *err);
void wn_journal_db_sweep(struct wn_journal_db *db);

/* A transaction. Images go to disk before it begins; rollback and a failed commit leave nothing of it. */
WN_NODISCARD wn_status wn_journal_db_images(struct wn_journal_db *db, const struct wn_journal_job *job,
                                            uint8_t (*hashes)[WN_BLOB_HASH], struct wn_err *err);
WN_NODISCARD wn_status wn_journal_db_begin(struct wn_journal_db *db, struct wn_err *err);
WN_NODISCARD wn_status wn_journal_db_add(struct wn_journal_db *db, const struct wn_journal_job *job,
                                         const struct wn_job_life *life, uint8_t (*hashes)[WN_BLOB_HASH],
                                         struct wn_err *err);
WN_NODISCARD wn_status wn_journal_db_save(struct wn_journal_db *db, const char *id,
                                          const struct wn_journal_state *state, struct wn_err *err);
WN_NODISCARD wn_status wn_journal_db_forget(struct wn_journal_db *db, const char *id, struct wn_err *err);
WN_NODISCARD wn_status wn_journal_db_probe(struct wn_journal_db *db, struct wn_err *err);
WN_NODISCARD wn_status wn_journal_db_commit(struct wn_journal_db *db, struct wn_err *err);
void wn_journal_db_rollback(struct wn_journal_db *db);

#endif
