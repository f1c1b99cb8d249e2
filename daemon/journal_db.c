/* daemon/journal_db.c - see journal_db.h. */
#include "daemon/journal_db.h"

#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "daemon/config.h"

#define APPLICATION_ID   0x574e4a4c /* "WNJL" */
#define IMAGES_BYTES_MAX ((uint64_t)256 << 20)
#define ATTEMPTS_MAX     ((int64_t)1 << 20) /* each restart of the scheduler may add one to what the options allow */

/* migrations[v] brings a database of schema v to v + 1. */
static const char *const migrations[WN_JOURNAL_SCHEMA] = {
    /* A job's row changes often, its request never: two tables, so that a long prompt is written once. */
    "CREATE TABLE jobs(seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, state INTEGER NOT NULL,"
    " attempt INTEGER NOT NULL, attempts_max INTEGER NOT NULL, submitted_us INTEGER NOT NULL,"
    " ended_us INTEGER NOT NULL DEFAULT 0, ids BLOB, text_end BLOB, text BLOB, outcome BLOB,"
    " code INTEGER NOT NULL DEFAULT 0, error TEXT NOT NULL DEFAULT '', retriable INTEGER NOT NULL DEFAULT 0);"
    "CREATE TABLE requests(job INTEGER PRIMARY KEY, request BLOB NOT NULL);"
    "CREATE TABLE images(job INTEGER NOT NULL, n INTEGER NOT NULL, hash BLOB NOT NULL, bytes INTEGER NOT NULL,"
    " PRIMARY KEY(job, n)) WITHOUT ROWID;"
    "CREATE INDEX images_hash ON images(hash);"
    "CREATE TABLE probe(id INTEGER PRIMARY KEY, n INTEGER NOT NULL);"
    "INSERT INTO probe VALUES(1, 0);",
};

enum statement {
    BEGIN,
    COMMIT,
    ROLLBACK,
    ADD_JOB,
    ADD_REQUEST,
    ADD_IMAGE,
    SAVE,
    FIND,
    IMAGES_OF,
    DROP_IMAGES,
    DROP_REQUEST,
    DROP_JOB,
    USES,
    PROBE,
    LOAD,
    STATEMENTS
};

static const char *const sql[STATEMENTS] = {
    [BEGIN] = "BEGIN IMMEDIATE",
    [COMMIT] = "COMMIT",
    [ROLLBACK] = "ROLLBACK",
    [ADD_JOB] = "INSERT INTO jobs(id, state, attempt, attempts_max, submitted_us) VALUES(?1, ?2, ?3, ?4, ?5)",
    [ADD_REQUEST] = "INSERT INTO requests VALUES(?1, ?2)",
    [ADD_IMAGE] = "INSERT INTO images VALUES(?1, ?2, ?3, ?4)",
    [SAVE] = "UPDATE jobs SET state=?2, attempt=?3, attempts_max=?4, ended_us=?5, ids=?6, text_end=?7, text=?8,"
             " outcome=?9, code=?10, error=?11, retriable=?12 WHERE id=?1 AND ended_us=0",
    [FIND] = "SELECT seq FROM jobs WHERE id=?1",
    [IMAGES_OF] = "SELECT hash, bytes FROM images WHERE job=?1 ORDER BY n",
    [DROP_IMAGES] = "DELETE FROM images WHERE job=?1",
    [DROP_REQUEST] = "DELETE FROM requests WHERE job=?1",
    [DROP_JOB] = "DELETE FROM jobs WHERE seq=?1",
    [USES] = "SELECT 1 FROM images WHERE hash=?1 LIMIT 1",
    [PROBE] = "UPDATE probe SET n=n+1 WHERE id=1",
    [LOAD] =
        "SELECT seq, id, state, attempt, attempts_max, submitted_us, ended_us, ids, text_end, text, outcome, code,"
        " error, retriable, request FROM jobs JOIN requests ON requests.job=jobs.seq"
        " ORDER BY ended_us=0, ended_us, seq",
};

struct wn_journal_db {
    sqlite3 *sql;
    sqlite3_stmt *st[STATEMENTS];
    struct wn_blobs *blobs;
    char path[WN_PATH_LEN + 16], blobs_path[WN_PATH_LEN + 16];
    uint8_t (*loose)[WN_BLOB_HASH]; /* images that may not be needed after this transaction */
    size_t loose_n, loose_room;
};

/* Of a failed commit SQLite does not keep the system's reason: it is asked again, with a file of our own. */
static int why_unwritable(const struct wn_journal_db *db)
{
    char path[sizeof(db->path) + 8];
    int fd, why = 0;

    snprintf(path, sizeof(path), "%s.try", db->path);
    fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, "x", 1) != 1 || fsync(fd) != 0) why = errno;
    if (fd >= 0) close(fd);
    unlink(path);
    return why;
}

static wn_status fail(struct wn_journal_db *db, struct wn_err *err)
{
    const int code = sqlite3_errcode(db->sql), system = sqlite3_system_errno(db->sql);
    const bool errno_says = system && (code & 0xff) != SQLITE_CONSTRAINT && (code & 0xff) != SQLITE_NOTADB;
    const wn_status status = (code & 0xff) == SQLITE_NOMEM    ? WN_ENOMEM
                             : (code & 0xff) == SQLITE_NOTADB ? WN_EFORMAT
                                                              : WN_EIO;
    const bool disk = (code & 0xff) == SQLITE_IOERR || (code & 0xff) == SQLITE_FULL || (code & 0xff) == SQLITE_READONLY;
    const int why = errno_says ? system : disk ? why_unwritable(db) : 0;

    return wn_fail(err, status, "journal %s: %s%s%s", db->path, sqlite3_errmsg(db->sql), why ? ": " : "",
                   why ? strerror(why) : "");
}

static wn_status run(struct wn_journal_db *db, const char *text, struct wn_err *err)
{
    return sqlite3_exec(db->sql, text, NULL, NULL, NULL) == SQLITE_OK ? WN_OK : fail(db, err);
}

/* Runs a statement that is bound and gives no rows; its bindings are dropped. */
static wn_status step(struct wn_journal_db *db, enum statement which, struct wn_err *err)
{
    sqlite3_stmt *st = db->st[which];
    wn_status rc = sqlite3_step(st) == SQLITE_DONE ? WN_OK : fail(db, err);

    sqlite3_reset(st);
    sqlite3_clear_bindings(st);
    return rc;
}

static wn_status get_number(struct wn_journal_db *db, const char *text, int64_t *out, struct wn_err *err)
{
    sqlite3_stmt *st = NULL;
    wn_status rc = WN_OK;

    if (sqlite3_prepare_v2(db->sql, text, -1, &st, NULL) != SQLITE_OK || sqlite3_step(st) != SQLITE_ROW)
        rc = fail(db, err);
    else
        *out = sqlite3_column_int64(st, 0);
    sqlite3_finalize(st);
    return rc;
}

static wn_status migrate(struct wn_journal_db *db, struct wn_err *err)
{
    int64_t version = 0, application = 0, tables = 0;
    char text[96];
    wn_status rc;

    if ((rc = get_number(db, "PRAGMA user_version", &version, err)) != WN_OK) return rc;
    if ((rc = get_number(db, "PRAGMA application_id", &application, err)) != WN_OK) return rc;
    if ((rc = get_number(db, "SELECT count(*) FROM sqlite_schema", &tables, err)) != WN_OK) return rc;
    if (application != APPLICATION_ID && (application || version || tables))
        return wn_fail(err, WN_EFORMAT, "journal %s: another program's database", db->path);
    if (version > WN_JOURNAL_SCHEMA)
        return wn_fail(err, WN_EUNSUPP,
                       "journal %s has schema version %lld; this winnow knows versions up to %d: use "
                       "the newer one",
                       db->path, (long long)version, WN_JOURNAL_SCHEMA);
    for (; version < WN_JOURNAL_SCHEMA; version++) {
        snprintf(text, sizeof(text), "PRAGMA application_id=%d; PRAGMA user_version=%d; COMMIT", APPLICATION_ID,
                 (int)version + 1);
        if ((rc = run(db, "BEGIN IMMEDIATE", err)) != WN_OK) return rc;
        if ((rc = run(db, migrations[version], err)) != WN_OK || (rc = run(db, text, err)) != WN_OK) {
            (void)!run(db, "ROLLBACK", NULL);
            return rc;
        }
    }
    return WN_OK;
}

wn_status wn_journal_db_open(struct wn_journal_db **out, const char *dir, bool make, struct wn_err *err)
{
    const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | (make ? SQLITE_OPEN_CREATE : 0);
    struct wn_journal_db *db = calloc(1, sizeof(*db));
    wn_status rc = WN_OK;

    if (!db) return wn_fail(err, WN_ENOMEM, "journal");
    snprintf(db->path, sizeof(db->path), "%.1023s/journal.db", dir);
    snprintf(db->blobs_path, sizeof(db->blobs_path), "%.1023s/blobs", dir);
    if (sqlite3_open_v2(db->path, &db->sql, flags, NULL) != SQLITE_OK) {
        rc = db->sql ? fail(db, err) : wn_fail(err, WN_ENOMEM, "journal");
        goto out;
    }
    sqlite3_extended_result_codes(db->sql, 1);
    if ((rc = run(db, "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL", err)) !=
            WN_OK ||
        (rc = migrate(db, err)) != WN_OK)
        goto out;
    for (int i = 0; i < STATEMENTS; i++)
        if (sqlite3_prepare_v3(db->sql, sql[i], -1, SQLITE_PREPARE_PERSISTENT, &db->st[i], NULL) != SQLITE_OK) {
            rc = fail(db, err);
            goto out;
        }
    if ((rc = wn_blobs_open(&db->blobs, db->blobs_path, err)) != WN_OK) goto out;
    *out = db;
    db = NULL;
out:
    wn_journal_db_close(db);
    return rc;
}

void wn_journal_db_close(struct wn_journal_db *db)
{
    if (!db) return;
    for (int i = 0; i < STATEMENTS; i++) sqlite3_finalize(db->st[i]);
    sqlite3_close(db->sql);
    wn_blobs_close(db->blobs);
    free(db->loose);
    free(db);
}

/* ---- images ---- */

static bool used(void *arg, const uint8_t hash[WN_BLOB_HASH])
{
    struct wn_journal_db *db = arg;
    bool yes;

    sqlite3_bind_blob(db->st[USES], 1, hash, WN_BLOB_HASH, SQLITE_STATIC);
    yes = sqlite3_step(db->st[USES]) != SQLITE_DONE; /* an error keeps the file */
    sqlite3_reset(db->st[USES]);
    return yes;
}

void wn_journal_db_sweep(struct wn_journal_db *db)
{
    unsigned n = wn_blobs_sweep(db->blobs, used, db);

    if (n) wn_info("journal", "removed %u images that no job needs", n);
}

/* It may turn out that nobody needs this one. Without memory it stays until the next sweep. */
static void note_loose(struct wn_journal_db *db, const void *hash)
{
    if (db->loose_n == db->loose_room) {
        size_t room = db->loose_room * 2 + 16;
        uint8_t(*more)[WN_BLOB_HASH] = realloc(db->loose, room * sizeof(*more));
        if (!more) return;
        db->loose = more;
        db->loose_room = room;
    }
    memcpy(db->loose[db->loose_n++], hash, WN_BLOB_HASH);
}

static void drop_loose(struct wn_journal_db *db)
{
    for (size_t i = 0; i < db->loose_n; i++)
        if (!used(db, db->loose[i])) wn_blobs_drop(db->blobs, db->loose[i]);
    db->loose_n = 0;
}

wn_status wn_journal_db_images(struct wn_journal_db *db, const struct wn_journal_job *job,
                               uint8_t (*hashes)[WN_BLOB_HASH], struct wn_err *err)
{
    const uint8_t *at = job->images;

    for (uint32_t i = 0; i < job->images_n; i++) {
        wn_status rc = wn_blobs_put(db->blobs, at, (size_t)job->image_bytes[i], hashes[i], err);
        note_loose(db, hashes[i]); /* if the job does not come into being */
        if (rc != WN_OK) return rc;
        at += job->image_bytes[i];
    }
    return WN_OK;
}

static wn_status drop_images(struct wn_journal_db *db, int64_t seq, struct wn_err *err)
{
    sqlite3_stmt *st = db->st[IMAGES_OF];
    int rc;

    sqlite3_bind_int64(st, 1, seq);
    while ((rc = sqlite3_step(st)) == SQLITE_ROW)
        if (sqlite3_column_bytes(st, 0) == WN_BLOB_HASH) note_loose(db, sqlite3_column_blob(st, 0));
    sqlite3_reset(st);
    if (rc != SQLITE_DONE) return fail(db, err);
    sqlite3_bind_int64(db->st[DROP_IMAGES], 1, seq);
    return step(db, DROP_IMAGES, err);
}

/* ---- a transaction ---- */

wn_status wn_journal_db_begin(struct wn_journal_db *db, struct wn_err *err)
{
    return step(db, BEGIN, err);
}

wn_status wn_journal_db_commit(struct wn_journal_db *db, struct wn_err *err)
{
    wn_status rc = step(db, COMMIT, err);

    if (rc == WN_OK)
        drop_loose(db);
    else
        wn_journal_db_rollback(db);
    return rc;
}

void wn_journal_db_rollback(struct wn_journal_db *db)
{
    if (!sqlite3_get_autocommit(db->sql)) (void)!step(db, ROLLBACK, NULL);
    drop_loose(db);
}

wn_status wn_journal_db_add(struct wn_journal_db *db, const struct wn_journal_job *job,
                            const struct wn_job_life *life, uint8_t (*hashes)[WN_BLOB_HASH], struct wn_err *err)
{
    sqlite3_stmt *st = db->st[ADD_JOB];
    int64_t seq;
    wn_status rc;

    sqlite3_bind_text(st, 1, job->id, -1, SQLITE_STATIC);
    sqlite3_bind_int(st, 2, (int)life->state);
    sqlite3_bind_int64(st, 3, life->attempt);
    sqlite3_bind_int64(st, 4, life->attempts_max);
    sqlite3_bind_int64(st, 5, job->submitted_us);
    if ((rc = step(db, ADD_JOB, err)) != WN_OK) return rc;
    seq = sqlite3_last_insert_rowid(db->sql);
    sqlite3_bind_int64(db->st[ADD_REQUEST], 1, seq);
    sqlite3_bind_blob64(db->st[ADD_REQUEST], 2, job->request, job->request_bytes, SQLITE_STATIC);
    if ((rc = step(db, ADD_REQUEST, err)) != WN_OK) return rc;
    for (uint32_t i = 0; i < job->images_n && rc == WN_OK; i++) {
        sqlite3_bind_int64(db->st[ADD_IMAGE], 1, seq);
        sqlite3_bind_int64(db->st[ADD_IMAGE], 2, i);
        sqlite3_bind_blob(db->st[ADD_IMAGE], 3, hashes[i], WN_BLOB_HASH, SQLITE_STATIC);
        sqlite3_bind_int64(db->st[ADD_IMAGE], 4, (int64_t)job->image_bytes[i]);
        rc = step(db, ADD_IMAGE, err);
    }
    return rc;
}

/* 0: there is none. */
static wn_status find(struct wn_journal_db *db, const char *id, int64_t *seq, struct wn_err *err)
{
    sqlite3_stmt *st = db->st[FIND];
    wn_status rc = WN_OK;
    int got;

    *seq = 0;
    sqlite3_bind_text(st, 1, id, -1, SQLITE_STATIC);
    if ((got = sqlite3_step(st)) == SQLITE_ROW)
        *seq = sqlite3_column_int64(st, 0);
    else if (got != SQLITE_DONE)
        rc = fail(db, err);
    sqlite3_reset(st);
    sqlite3_clear_bindings(st);
    return rc;
}

wn_status wn_journal_db_save(struct wn_journal_db *db, const char *id, const struct wn_journal_state *s,
                             struct wn_err *err)
{
    sqlite3_stmt *st = db->st[SAVE];
    int64_t seq;
    wn_status rc;

    sqlite3_bind_text(st, 1, id, -1, SQLITE_STATIC);
    sqlite3_bind_int(st, 2, (int)s->life.state);
    sqlite3_bind_int64(st, 3, s->life.attempt);
    sqlite3_bind_int64(st, 4, s->life.attempts_max);
    sqlite3_bind_int64(st, 5, s->ended_us);
    sqlite3_bind_blob64(st, 6, s->ids, s->ids_n * sizeof(*s->ids), SQLITE_STATIC);
    sqlite3_bind_blob64(st, 7, s->text_end, s->ids_n * sizeof(*s->text_end), SQLITE_STATIC);
    sqlite3_bind_blob64(st, 8, s->text, s->text_bytes, SQLITE_STATIC);
    sqlite3_bind_blob64(st, 9, s->outcome, s->outcome_bytes, SQLITE_STATIC);
    sqlite3_bind_int64(st, 10, s->code);
    sqlite3_bind_text(st, 11, s->error, -1, SQLITE_STATIC);
    sqlite3_bind_int(st, 12, s->retriable);
    if ((rc = step(db, SAVE, err)) != WN_OK || !s->ended_us) return rc;
    if ((rc = find(db, id, &seq, err)) != WN_OK || !seq) return rc;
    return drop_images(db, seq, err);
}

wn_status wn_journal_db_forget(struct wn_journal_db *db, const char *id, struct wn_err *err)
{
    int64_t seq;
    wn_status rc = find(db, id, &seq, err);

    if (rc != WN_OK || !seq) return rc;
    if ((rc = drop_images(db, seq, err)) != WN_OK) return rc;
    sqlite3_bind_int64(db->st[DROP_REQUEST], 1, seq);
    if ((rc = step(db, DROP_REQUEST, err)) != WN_OK) return rc;
    sqlite3_bind_int64(db->st[DROP_JOB], 1, seq);
    return step(db, DROP_JOB, err);
}

wn_status wn_journal_db_probe(struct wn_journal_db *db, struct wn_err *err)
{
    return step(db, PROBE, err);
}

/* ---- load ---- */

/* *out: the images of a job, one after the other; freed by the caller. */
static wn_status load_images(struct wn_journal_db *db, int64_t seq, uint8_t **out, uint64_t bytes[WN_IMAGES_MAX],
                             uint32_t *n, struct wn_err *err)
{
    uint8_t hashes[WN_IMAGES_MAX][WN_BLOB_HASH], *p = NULL;
    sqlite3_stmt *st = db->st[IMAGES_OF];
    uint64_t sum = 0;
    size_t at = 0;
    wn_status rc = WN_OK;
    int got;

    *n = 0;
    sqlite3_bind_int64(st, 1, seq);
    while ((got = sqlite3_step(st)) == SQLITE_ROW && rc == WN_OK) {
        const int64_t size = sqlite3_column_int64(st, 1);
        if (*n == WN_IMAGES_MAX || sqlite3_column_bytes(st, 0) != WN_BLOB_HASH || size < 1 ||
            (uint64_t)size > IMAGES_BYTES_MAX - sum) {
            rc = wn_fail(err, WN_EFORMAT, "journal %s: the list of images is damaged", db->path);
            break;
        }
        memcpy(hashes[*n], sqlite3_column_blob(st, 0), WN_BLOB_HASH);
        bytes[(*n)++] = (uint64_t)size;
        sum += (uint64_t)size;
    }
    if (rc == WN_OK && got != SQLITE_DONE) rc = fail(db, err);
    sqlite3_reset(st);
    if (rc != WN_OK || *n == 0) return rc;
    if (!(p = malloc(sum))) return wn_fail(err, WN_ENOMEM, "images of a job");
    for (uint32_t i = 0; i < *n && rc == WN_OK; i++) {
        rc = wn_blobs_get(db->blobs, hashes[i], p + at, (size_t)bytes[i], err);
        at += (size_t)bytes[i];
    }
    if (rc == WN_OK)
        *out = p;
    else
        free(p);
    return rc;
}

/* The columns of one row; what does not fit together was not written by us. */
static wn_status read_row(struct wn_journal_db *db, struct wn_journal_job *job, struct wn_journal_state *s,
                          struct wn_err *err)
{
    sqlite3_stmt *st = db->st[LOAD];
    const int state = sqlite3_column_int(st, 2);
    const int ids_bytes = sqlite3_column_bytes(st, 7);
    const int64_t attempt = sqlite3_column_int64(st, 3), attempts_max = sqlite3_column_int64(st, 4);

    job->id = (const char *)sqlite3_column_text(st, 1);
    if (!job->id || !wn_job_id_valid(job->id) || state < 0 || state >= WN_JOB_STATES || ids_bytes % 4 != 0 ||
        ids_bytes / 4 > WN_EMITTED_MAX || sqlite3_column_bytes(st, 8) != ids_bytes ||
        (size_t)sqlite3_column_bytes(st, 9) > WN_ANSWER_BYTES_MAX || attempt < 0 || attempt > attempts_max ||
        attempts_max > ATTEMPTS_MAX)
        return wn_fail(err, WN_EFORMAT, "journal %s: row %lld is damaged", db->path,
                       (long long)sqlite3_column_int64(st, 0));
    s->life.state = (wn_job_state)state;
    s->life.attempt = (uint32_t)attempt;
    s->life.attempts_max = (uint32_t)attempts_max;
    job->submitted_us = sqlite3_column_int64(st, 5);
    s->ended_us = sqlite3_column_int64(st, 6);
    s->ids = sqlite3_column_blob(st, 7);
    s->ids_n = (size_t)ids_bytes / sizeof(*s->ids);
    s->text_end = sqlite3_column_blob(st, 8);
    s->text = sqlite3_column_blob(st, 9);
    s->text_bytes = (size_t)sqlite3_column_bytes(st, 9);
    s->outcome = sqlite3_column_blob(st, 10);
    s->outcome_bytes = (size_t)sqlite3_column_bytes(st, 10);
    s->code = (uint32_t)sqlite3_column_int64(st, 11);
    s->error = (const char *)sqlite3_column_text(st, 12);
    if (!s->error) s->error = "";
    s->retriable = sqlite3_column_int(st, 13) != 0;
    job->request = sqlite3_column_blob(st, 14);
    job->request_bytes = (size_t)sqlite3_column_bytes(st, 14);
    return WN_OK;
}

wn_status wn_journal_db_load(struct wn_journal_db *db, wn_journal_fn fn, void *arg, struct wn_err *err)
{
    sqlite3_stmt *st = db->st[LOAD];
    wn_status rc = WN_OK;
    int got;

    while (rc == WN_OK && (got = sqlite3_step(st)) != SQLITE_DONE) {
        struct wn_journal_job job = {0};
        struct wn_journal_state state = {0};
        struct wn_err damage = {0};
        uint64_t image_bytes[WN_IMAGES_MAX];
        uint8_t *images = NULL;
        if (got != SQLITE_ROW) {
            rc = fail(db, err);
            break;
        }
        if ((rc = read_row(db, &job, &state, err)) != WN_OK) break;
        job.image_bytes = image_bytes;
        if (!state.ended_us &&
            load_images(db, sqlite3_column_int64(st, 0), &images, image_bytes, &job.images_n, &damage) == WN_ENOMEM)
            rc = wn_fail(err, WN_ENOMEM, "journal: %s", damage.text);
        job.images = images;
        if (rc == WN_OK) rc = fn(arg, &job, &state, &damage, err);
        free(images);
    }
    sqlite3_reset(st);
    return rc;
}
