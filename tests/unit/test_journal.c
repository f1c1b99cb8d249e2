/* tests/unit/test_journal.c - what the journal keeps over a restart, and what it says when it cannot. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "daemon/blobs.h"
#include "daemon/journal.h"
#include "tests/blob_files.h"
#include "tests/scratch.h"

#define LIFE(st, att) ((struct wn_job_life){.state = (st), .attempt = (att), .attempts_max = 3})

static char base[64], dir[96];
static int dirs;

static void fresh_dir(void)
{
    snprintf(dir, sizeof(dir), "%s/%d", base, ++dirs);
}

static struct wn_journal *open_idle(void)
{
    struct wn_journal *j = NULL;
    struct wn_err err = {0};

    if (wn_journal_open(&j, dir, &err) != WN_OK) fail_msg("%s", err.text);
    return j;
}

static struct wn_journal *open_started(void)
{
    struct wn_journal *j = open_idle();
    struct wn_err err = {0};

    assert_int_equal(wn_journal_start(j, &err), WN_OK);
    return j;
}

/* The next outcome, which must be this operation's. */
static struct wn_err outcome(struct wn_journal *j, enum wn_journal_op op)
{
    struct pollfd p = {.fd = wn_journal_fd(j), .events = POLLIN};
    struct wn_journal_outcome o;

    while (!wn_journal_take(j, &o))
        if (poll(&p, 1, 10000) != 1) fail_msg("no outcome");
    assert_int_equal(o.op, op);
    return o.error;
}

static void add_image(struct wn_journal *j, const char *id, const char *request, const void *image, size_t bytes)
{
    const uint64_t size = bytes;
    struct wn_journal_job job = {.id = id,
                                 .submitted_us = 5,
                                 .request = request,
                                 .request_bytes = strlen(request),
                                 .images = image,
                                 .image_bytes = &size,
                                 .images_n = image ? 1 : 0};

    assert_int_equal(wn_journal_add(j, &job, &LIFE(WN_JOB_ACCEPTED, 0)), WN_OK);
}

static void add(struct wn_journal *j, const char *id, const char *request, const char *image)
{
    add_image(j, id, request, image, image ? strlen(image) : 0);
    struct wn_err err = outcome(j, WN_JOURNAL_ADD);
    if (err.code != WN_OK) fail_msg("%s", err.text);
}

static void save(struct wn_journal *j, const char *id, wn_job_state state, const char *text, int64_t ended_us)
{
    const uint32_t ids[2] = {7, 8}, ends[2] = {1, (uint32_t)strlen(text)};
    struct wn_journal_state s = {.life = LIFE(state, 2),
                                 .ids = ids,
                                 .text_end = ends,
                                 .ids_n = 2,
                                 .text = text,
                                 .text_bytes = strlen(text),
                                 .outcome = "how",
                                 .outcome_bytes = 3,
                                 .ended_us = ended_us,
                                 .code = 4,
                                 .error = "why",
                                 .retriable = true};

    assert_int_equal(wn_journal_save(j, id, &s), WN_OK);
    assert_int_equal(outcome(j, WN_JOURNAL_SAVE).code, WN_OK);
}

#define ID_A "0123456789ABCDEFGHJKMNPQ00"
#define ID_B "0123456789ABCDEFGHJKMNPQ01"
#define ID_C "0123456789ABCDEFGHJKMNPQ02"

/* What load gave, one line a job. */
struct seen {
    char text[2048], damage[512];
    int n;
};

static wn_status look(void *arg, const struct wn_journal_job *job, const struct wn_journal_state *s,
                      const struct wn_err *damage, struct wn_err *err)
{
    struct seen *seen = arg;
    size_t at = strlen(seen->text);

    (void)err;
    seen->n++;
    snprintf(seen->text + at, sizeof(seen->text) - at, "%.2s %s/%u %.*s [%.*s] %zu:%.*s %.*s %s|", job->id + 24,
             wn_job_state_name(s->life.state), s->life.attempt, (int)job->request_bytes, (const char *)job->request,
             job->images ? (int)job->image_bytes[0] : 0, job->images ? (const char *)job->images : "", s->ids_n,
             (int)s->text_bytes, s->text ? s->text : "", (int)s->outcome_bytes,
             s->outcome ? (const char *)s->outcome : "", s->error);
    if (damage->code) snprintf(seen->damage, sizeof(seen->damage), "%s", damage->text);
    return WN_OK;
}

static struct seen load(struct wn_journal *j)
{
    struct seen seen = {0};
    struct wn_err err = {0};

    if (wn_journal_load(j, look, &seen, &err) != WN_OK) fail_msg("%s", err.text);
    return seen;
}

static struct seen reopen(void)
{
    struct wn_journal *j = open_idle();
    struct seen seen = load(j);

    wn_journal_close(j);
    return seen;
}

/* ---- */

static void kept_over_a_restart(void **state)
{
    struct wn_journal *j;
    struct seen seen;

    (void)state;
    fresh_dir();
    j = open_started();
    add(j, ID_A, "first", "picture");
    add(j, ID_B, "second", NULL);
    add(j, ID_C, "third", "picture");
    save(j, ID_A, WN_JOB_RUNNING, "one two", 0);
    save(j, ID_C, WN_JOB_DONE, "end", 1000);
    assert_int_equal(blob_files_count(dir), 1); /* one file for both; the second still needs it */
    wn_journal_close(j);
    seen = reopen();
    assert_string_equal(seen.text, "02 done/2 third [] 2:end how why|00 running/2 first [picture] 2:one two how why|"
                                   "01 accepted/0 second [] 0:  |");
    j = open_started();
    save(j, ID_C, WN_JOB_FAILED, "other", 2000); /* the end is written once */
    save(j, ID_A, WN_JOB_DONE, "all", 3000);
    assert_int_equal(blob_files_count(dir), 0);
    assert_int_equal(wn_journal_forget(j, ID_B), WN_OK);
    assert_int_equal(outcome(j, WN_JOURNAL_FORGET).code, WN_OK);
    add(j, ID_B, "again", NULL); /* nothing of it is left */
    assert_int_equal(wn_journal_forget(j, ID_B), WN_OK);
    assert_int_equal(outcome(j, WN_JOURNAL_FORGET).code, WN_OK);
    wn_journal_close(j);
    seen = reopen();
    assert_string_equal(seen.text, "02 done/2 third [] 2:end how why|00 done/2 first [] 2:all how why|");
}

/* The process is killed right after it heard that the job is on record. */
static void kept_over_a_kill(void **state)
{
    int pipes[2], status;
    char byte;
    pid_t pid;

    (void)state;
    fresh_dir();
    assert_int_equal(pipe(pipes), 0);
    if ((pid = fork()) == 0) {
        struct wn_journal *j = open_started();
        for (int i = 0; i < 50; i++) {
            char id[32];
            snprintf(id, sizeof(id), "0123456789ABCDEFGHJKMNPQ%02d", i);
            add(j, id, "x", "picture");
        }
        if (write(pipes[1], "x", 1) != 1) _exit(1);
        pause();
        _exit(0);
    }
    assert_int_equal(read(pipes[0], &byte, 1), 1);
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
    close(pipes[0]);
    close(pipes[1]);
    assert_int_equal(reopen().n, 50);
}

static void one_at_a_time(void **state)
{
    struct wn_journal *j, *other = NULL;
    struct wn_err err = {0};
    char who[64];

    (void)state;
    fresh_dir();
    j = open_idle();
    assert_int_equal(wn_journal_open(&other, dir, &err), WN_EBUSY);
    snprintf(who, sizeof(who), "is in use by process %ld on ", (long)getpid());
    assert_non_null(strstr(err.text, who));
    assert_null(other);
    wn_journal_close(j);
    wn_journal_close(open_idle());
}

static void patch_file(const char *name, long at, const void *data, size_t bytes)
{
    char path[160];
    int fd;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    fd = open(path, O_WRONLY | O_CREAT, 0600);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, data, bytes, at), bytes);
    close(fd);
}

static void other_files_are_refused(void **state)
{
    struct wn_journal *j = NULL;
    struct wn_err err = {0};
    char junk[4096];

    (void)state;
    fresh_dir();
    wn_journal_close(open_idle());
    patch_file("journal.db", 60, "\0\0\0\7", 4); /* user_version */
    assert_int_equal(wn_journal_open(&j, dir, &err), WN_EUNSUPP);
    assert_non_null(strstr(err.text, "schema version 7; this winnow knows versions up to 1"));
    patch_file("journal.db", 60, "\0\0\0\1", 4);
    patch_file("journal.db", 68, "abcd", 4); /* application_id */
    assert_int_equal(wn_journal_open(&j, dir, &err), WN_EFORMAT);
    assert_non_null(strstr(err.text, "another program's database"));
    patch_file("journal.db", 60, "\0\0\0\0", 4);
    patch_file("journal.db", 68, "\0\0\0\0", 4); /* of a program that names neither, and has tables */
    assert_int_equal(wn_journal_open(&j, dir, &err), WN_EFORMAT);
    assert_non_null(strstr(err.text, "another program's database"));
    memset(junk, 'x', sizeof(junk));
    patch_file("journal.db", 0, junk, sizeof(junk));
    assert_int_equal(wn_journal_open(&j, dir, &err), WN_EFORMAT);
    assert_non_null(strstr(err.text, "not a database"));
    snprintf(dir, sizeof(dir), "%s", base);
    patch_file("file", 0, "x", 1);
    snprintf(dir, sizeof(dir), "%s/file", base);
    assert_int_equal(wn_journal_open(&j, dir, &err), WN_EIO);
    assert_null(j);
}

/* Runs UPDATE on the file, as no journal would. */
static void tamper(const char *update)
{
    char path[160];
    sqlite3 *sql = NULL;

    snprintf(path, sizeof(path), "%s/journal.db", dir);
    assert_int_equal(sqlite3_open(path, &sql), SQLITE_OK);
    if (sqlite3_exec(sql, update, NULL, NULL, NULL) != SQLITE_OK) fail_msg("%s: %s", update, sqlite3_errmsg(sql));
    sqlite3_close(sql);
}

/* A journal of one running job with a picture, tampered with. Says what load says of it, or of its pictures. */
static const char *load_tampered(const char *update, wn_status want)
{
    static struct seen seen;
    static struct wn_err err;
    struct wn_journal *j;

    fresh_dir();
    j = open_started();
    add(j, ID_A, "first", "picture");
    save(j, ID_A, WN_JOB_RUNNING, "one two", 0);
    wn_journal_close(j);
    tamper(update);
    j = open_idle();
    seen = (struct seen){0};
    err = (struct wn_err){0};
    if (wn_journal_load(j, look, &seen, &err) != want) fail_msg("%s: '%s'", update, err.text);
    wn_journal_close(j);
    return want == WN_OK ? seen.damage : err.text;
}

static void damaged_rows(void **state)
{
    static const char *const rows[] = {
        "UPDATE jobs SET id='short'",
        "UPDATE jobs SET state=-1",
        "UPDATE jobs SET state=99",
        "UPDATE jobs SET attempt=-1",
        "UPDATE jobs SET attempt=4", /* of 3 */
        "UPDATE jobs SET attempts_max=(1<<20)+1",
        "UPDATE jobs SET ids=zeroblob(7), text_end=zeroblob(7)",
        "UPDATE jobs SET text_end=zeroblob(4)",
        "UPDATE jobs SET ids=zeroblob(4*65537), text_end=zeroblob(4*65537)",
        "UPDATE jobs SET text=zeroblob(524289)",
    };
    static const char *const pictures[] = {
        "UPDATE images SET bytes=0",
        "UPDATE images SET bytes=1<<62",
        "UPDATE images SET hash=zeroblob(31)",
        ("WITH RECURSIVE k(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM k LIMIT 16)"
         " INSERT INTO images SELECT 1, n, zeroblob(32), 1 FROM k"),
    };

    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        const char *got = load_tampered(rows[i], WN_EFORMAT);
        if (!strstr(got, "row 1 is damaged")) fail_msg("%s: '%s'", rows[i], got);
    }
    for (size_t i = 0; i < sizeof(pictures) / sizeof(pictures[0]); i++) {
        const char *got = load_tampered(pictures[i], WN_OK);
        if (!strstr(got, "the list of images is damaged")) fail_msg("%s: '%s'", pictures[i], got);
    }
    load_tampered("UPDATE jobs SET ids=zeroblob(4*65536), text_end=zeroblob(4*65536), text=zeroblob(524288), "
                  "attempts_max=1<<20",
                  WN_OK); /* the limits themselves */
}

static void torn_image(void **state)
{
    struct wn_journal *j;
    struct seen seen;

    (void)state;
    fresh_dir();
    j = open_started();
    add(j, ID_A, "first", "picture");
    add(j, ID_B, "second", NULL);
    wn_journal_close(j);
    assert_int_equal(blob_files_tear(dir), 1);
    seen = reopen();
    assert_int_equal(seen.n, 2);
    assert_non_null(strstr(seen.damage, "is damaged"));
    assert_non_null(strstr(seen.text, "first [] 0:"));
    j = open_started(); /* the same picture again is written anew */
    add(j, ID_C, "third", "picture");
    wn_journal_close(j);
    assert_non_null(strstr(reopen().text, "third [picture]"));
}

static void orphans_are_swept(void **state)
{
    struct wn_blobs *b = NULL;
    struct wn_err err = {0};
    uint8_t hash[WN_BLOB_HASH];
    char path[160];

    (void)state;
    fresh_dir();
    wn_journal_close(open_idle());
    snprintf(path, sizeof(path), "%s/blobs", dir);
    assert_int_equal(wn_blobs_open(&b, path, &err), WN_OK);
    assert_int_equal(wn_blobs_put(b, "lost", 4, hash, &err), WN_OK);
    wn_blobs_close(b);
    patch_file("blobs/unfinished", 0, "x", 1);
    assert_int_equal(blob_files_count(dir), 2);
    wn_journal_close(open_idle());
    assert_int_equal(blob_files_count(dir), 0);
}

/* No file may grow: as on a full disk. The running job's state waits, and all works when there is room again. */
static void no_room(void **state)
{
    struct rlimit before, small;
    struct wn_journal *j;
    struct wn_err err;
    char *prompt = malloc(200001);

    (void)state;
    memset(prompt, 'p', 200000);
    prompt[200000] = '\0';
    fresh_dir();
    j = open_started();
    add(j, ID_A, "first", NULL);
    getrlimit(RLIMIT_FSIZE, &before);
    small = before;
    small.rlim_cur = 65536;
    setrlimit(RLIMIT_FSIZE, &small);
    add_image(j, ID_B, prompt, NULL, 0);
    err = outcome(j, WN_JOURNAL_ADD);
    assert_int_equal(err.code, WN_EIO);
    assert_non_null(strstr(err.text, "journal.db"));
    if (!strstr(err.text, "disk I/O error")) fail_msg("%s", err.text);
    add_image(j, ID_B, "x", prompt, 200000);
    err = outcome(j, WN_JOURNAL_ADD);
    assert_int_equal(err.code, WN_EIO);
    assert_non_null(strstr(err.text, "blobs"));
    setrlimit(RLIMIT_FSIZE, &before);
    assert_int_equal(wn_journal_probe(j), WN_OK);
    assert_int_equal(outcome(j, WN_JOURNAL_PROBE).code, WN_OK);
    add(j, ID_C, prompt, NULL);
    wn_journal_close(j);
    assert_int_equal(reopen().n, 2);
    assert_int_equal(blob_files_count(dir), 0);
    free(prompt);
}

static int complain(const char *text)
{
    fprintf(stderr, "unexpected: %s\n", text);
    return 1;
}

/* A real full file system, and one that is read-only; in a child, for its own mounts. */
static int on_a_small_disk(void)
{
    struct wn_journal *j, *other = NULL;
    struct wn_err err = {0};
    char path[160], *zeros = calloc(1, 65536);
    ssize_t n;
    int fd;

    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0) return 77;
    mkdir(dir, 0700);
    if (mount("tmpfs", dir, "tmpfs", 0, "size=1m") != 0) return 77;
    j = open_started();
    add(j, ID_A, "first", "picture");
    snprintf(path, sizeof(path), "%s/ballast", dir);
    fd = open(path, O_WRONLY | O_CREAT, 0600);
    while ((n = write(fd, zeros, 65536)) > 0) continue;
    while ((n = write(fd, zeros, 4096)) > 0) continue;
    close(fd);
    add_image(j, ID_B, "second", "another picture", 15);
    err = outcome(j, WN_JOURNAL_ADD);
    if (!strstr(err.text, "No space left")) return complain(err.text);
    unlink(path);
    add(j, ID_B, "second", "another picture");
    wn_journal_close(j);
    if (mount("tmpfs", dir, "tmpfs", MS_REMOUNT | MS_RDONLY, "size=1m") != 0) return complain(strerror(errno));
    if (wn_journal_open(&other, dir, &err) != WN_EIO || !strstr(err.text, "Read-only")) return complain(err.text);
    if (mount("tmpfs", dir, "tmpfs", MS_REMOUNT, "size=1m") != 0) return complain(strerror(errno));
    assert_int_equal(reopen().n, 2);
    free(zeros);
    return 0;
}

static void small_disk(void **state)
{
    int status;
    pid_t pid;

    (void)state;
    fresh_dir();
    if ((pid = fork()) == 0) _exit(on_a_small_disk());
    waitpid(pid, &status, 0);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77) skip(); /* mounting needs root */
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kept_over_a_restart),
        cmocka_unit_test(kept_over_a_kill),
        cmocka_unit_test(one_at_a_time),
        cmocka_unit_test(other_files_are_refused),
        cmocka_unit_test(damaged_rows),
        cmocka_unit_test(torn_image),
        cmocka_unit_test(orphans_are_swept),
        cmocka_unit_test(no_room),
        cmocka_unit_test(small_disk),
    };
    int rc;

    wn_log_max = WN_LOG_ERROR;
    if (!scratch_make(base, sizeof(base), "journal")) return 1;
    rc = cmocka_run_group_tests(tests, NULL, NULL);
    scratch_remove(base);
    return rc;
}
