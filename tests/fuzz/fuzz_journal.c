/* tests/fuzz/fuzz_journal.c - rows of a journal as a damaged disk, or another program, may leave them: a scheduler
 * starts on them or says why not. The input is four bytes (state, attempt, flags, bytes of an image that is not there)
 * and then the columns ids, text_end, text, outcome, error and request, each behind two bytes of length.
 * What must hold: a job that is taken over has ended exactly if its list says so, and its images lie in its payload. */
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "daemon/sched.h"
#include "daemon/scheduler.h"
#include "tests/scratch.h"

static char dir[64];

static void remove_dir(void)
{
    scratch_remove(dir);
}

/* An empty journal, made once: rows are put in and taken out. */
static void make_journal(void)
{
    struct wn_journal *j = NULL;

    wn_log_max = WN_LOG_ERROR;
    snprintf(dir, sizeof(dir), "/dev/shm/winnow-fuzz-journal-XXXXXX");
    WN_ASSERT(mkdtemp(dir) != NULL);
    atexit(remove_dir);
    WN_ASSERT(wn_journal_open(&j, dir, NULL) == WN_OK);
    wn_journal_close(j);
}

struct columns {
    const uint8_t *at, *end;
};

static void bind_next(sqlite3_stmt *st, int column, bool text, struct columns *c)
{
    size_t n = 0;

    if (c->end - c->at >= 2) {
        n = (size_t)(c->at[0] | c->at[1] << 8);
        c->at += 2;
        if (n > (size_t)(c->end - c->at)) n = (size_t)(c->end - c->at);
    }
    if (text) sqlite3_bind_text(st, column, (const char *)c->at, (int)n, SQLITE_TRANSIENT);
    else sqlite3_bind_blob(st, column, c->at, (int)n, SQLITE_TRANSIENT);
    c->at += n;
}

static void write_row(const uint8_t *data, size_t size)
{
    static const char *const inserts[2] = {
        "INSERT INTO jobs VALUES(1, '01ARZ3NDEKTSV4RRFFQ69G5FAV', ?1, ?2, 3, 1700000000000000, ?3, ?4, ?5, ?6, ?7, ?8,"
        " ?9, 0)",
        "INSERT INTO requests VALUES(1, ?1)"};
    struct columns c = {data + 4, data + size};
    sqlite3_stmt *st = NULL;
    sqlite3 *db = NULL;
    char path[96];

    snprintf(path, sizeof(path), "%s/journal.db", dir);
    WN_ASSERT(sqlite3_open(path, &db) == SQLITE_OK);
    WN_ASSERT(sqlite3_exec(db, "PRAGMA synchronous=OFF; DELETE FROM jobs; DELETE FROM requests; DELETE FROM images",
                           NULL, NULL, NULL) == SQLITE_OK);
    WN_ASSERT(sqlite3_prepare_v2(db, inserts[0], -1, &st, NULL) == SQLITE_OK);
    sqlite3_bind_int(st, 1, data[0]);
    sqlite3_bind_int(st, 2, (int8_t)data[1]);
    sqlite3_bind_int64(st, 3, data[2] & 1 ? 1700000001000000 : 0);
    for (int i = 4; i <= 7; i++) bind_next(st, i, false, &c);
    sqlite3_bind_int(st, 8, data[2] >> 1);
    bind_next(st, 9, true, &c);
    WN_ASSERT(sqlite3_step(st) == SQLITE_DONE);
    sqlite3_finalize(st);
    WN_ASSERT(sqlite3_prepare_v2(db, inserts[1], -1, &st, NULL) == SQLITE_OK);
    bind_next(st, 1, false, &c);
    WN_ASSERT(sqlite3_step(st) == SQLITE_DONE);
    sqlite3_finalize(st);
    snprintf(path, sizeof(path), "INSERT INTO images VALUES(1, 0, zeroblob(32), %u)", data[3]);
    if (data[3]) WN_ASSERT(sqlite3_exec(db, path, NULL, NULL, NULL) == SQLITE_OK);
    sqlite3_close(db);
}

static void check_list(const struct wn_scheduler *s, int list)
{
    for (const struct wn_job *job = s->list[list].first; job; job = job->next) {
        WN_ASSERT(wn_job_ended(&job->life) == (list == WN_LIST_ENDED));
        for (uint32_t i = 0; i < job->images_n; i++)
            WN_ASSERT(job->images[i].offset + job->images[i].bytes <= job->payload->bytes);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct wn_scheduler *s = NULL;
    struct wn_config cfg;
    struct wn_err err = {0};
    char workers[96];

    if (size < 4) return 0;
    if (!dir[0]) make_journal();
    write_row(data, size);
    wn_config_defaults(&cfg);
    cfg.port = 0;
    snprintf(cfg.journal, sizeof(cfg.journal), "%s", dir);
    snprintf(workers, sizeof(workers), "ipc://%s/s", dir);
    if (wn_scheduler_open(&s, &cfg, workers, &err) != WN_OK) return 0;
    for (int l = 0; l < WN_LISTS; l++) check_list(s, l);
    wn_scheduler_close(s);
    return 0;
}
