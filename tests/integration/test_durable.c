/* tests/integration/test_durable.c - a scheduler with a journal: what a restart keeps, and what happens when the disk
 * is full. */
#include "sched_bed.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sqlite3.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "base/log.h"
#include "tests/blob_files.h"
#include "tests/scratch.h"

static void start_again(struct bed *b)
{
    bed_stop(b);
    bed_start_with(b, 0, 0);
}

static void a_running_job_goes_on(void **state)
{
    struct bed *b = *state;
    struct order first, second, enc;
    char id[32], same[32];

    bed_start_with(b, 4, 4);
    submit(b->client, "question", "picture", "key");
    expect_accepted(b->client, false, id);
    first = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    enc = take_order(b->vision, WN__ENVELOPE__BODY_ENCODE);
    give_encoded(b->vision, &enc);
    give_tokens(b->leader, &first, 0, 11, "a ");
    expect_tokens(b->client, 0, 1, "a ");

    start_again(b);
    attach(b->client, id, 2); /* it has seen one that was not recorded */
    expect_accepted(b->client, true, same);
    assert_string_equal(id, same);
    b->leader = worker_open(b, WN__ROLE__ROLE_LEADER, "replica-0", 4);
    b->vision = worker_open(b, WN__ROLE__ROLE_VISION, "vision-0", 4);
    second = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    enc = take_order(b->vision, WN__ENVELOPE__BODY_ENCODE);
    assert_int_equal(b->vision->payload_bytes, 7);
    assert_memory_equal(b->vision->payload, "picture", 7);
    assert_string_equal(second.id, id);
    assert_true(second.attempt > first.attempt);
    assert_int_equal(second.emitted_n, 1);
    assert_int_equal(second.emitted[0], 11);
    give_tokens(b->leader, &second, 1, 12, "red ");
    give_tokens(b->leader, &second, 2, 13, "dot");
    expect_tokens(b->client, 2, 1, "dot"); /* and not the second */
    give_done(b->leader, &second, 60);
    expect_answer(b->client, "a red dot");

    start_again(b);
    submit(b->client, "question", "picture", "key"); /* the same job, and its one result */
    expect_accepted(b->client, true, same);
    assert_string_equal(id, same);
    expect_tokens(b->client, 0, 3, "a red dot");
    Wn__Envelope *done = expect_done(b->client, WN__FINISH_REASON__FINISH_STOP, "a red dot");
    assert_int_equal(done->done->usage->prompt_tokens, 60);
    assert_int_equal(done->done->usage->completion_tokens, 3);
    assert_int_equal(done->done->usage->attempts, second.attempt);
    assert_int_equal(done->done->usage->bytes_on_wire->activation, 1000);
    wn_codec_free(done);
}

/* Failed and cancelled jobs have their end, too; one that waits is still there; results end by time. */
static void other_ends(void **state)
{
    struct bed *b = *state;
    struct order o;
    char failed[32], cancelled[32], queued[32];

    bed_start_with(b, 1, 0);
    submit_new(b->client, "one", NULL, failed);
    o = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    submit_new(b->client, "two", NULL, cancelled);
    submit_new(b->client, "three", NULL, queued);
    cancel(b->client, cancelled);
    wn_codec_free(expect_done(b->client, WN__FINISH_REASON__FINISH_CANCELLED, ""));
    give_error(b->leader, &o, WN_ELIMIT, false, "too long");
    end_expect_error(b->client, WN_ELIMIT, "too long");

    b->cfg.result_ttl_s = 3;
    start_again(b);
    attach(b->client, failed, 0);
    expect_accepted(b->client, true, NULL);
    end_expect_error(b->client, WN_ELIMIT, "too long");
    attach(b->client, cancelled, 0);
    expect_accepted(b->client, true, NULL);
    wn_codec_free(expect_done(b->client, WN__FINISH_REASON__FINISH_CANCELLED, ""));
    expect_forgotten(b->client, failed, "has expired");
    expect_forgotten(b->client, cancelled, "has expired");

    start_again(b);
    attach(b->client, cancelled, 0);
    end_expect_error(b->client, WN_ENOENT, "not known"); /* the journal has forgotten it, too */
    b->leader = worker_open(b, WN__ROLE__ROLE_LEADER, "replica-0", 1);
    o = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    assert_string_equal(o.id, queued);
}

/* A disk on which the journal's files cannot grow for some time. */
static struct {
    struct rlimit before;
    char ballast[300];
    const char *says; /* what a refusal has in it */
} disk;

static void limit_files(const struct bed *b)
{
    struct rlimit small;

    (void)b;
    getrlimit(RLIMIT_FSIZE, &disk.before);
    small = disk.before;
    small.rlim_cur = 8192;
    setrlimit(RLIMIT_FSIZE, &small);
    disk.says = "journal.db: disk I/O error";
}

static void unlimit_files(void)
{
    setrlimit(RLIMIT_FSIZE, &disk.before);
}

static void fill_disk(const struct bed *b)
{
    static const char zeros[4096];
    int fd;

    snprintf(disk.ballast, sizeof(disk.ballast), "%s/ballast", b->cfg.journal);
    fd = open(disk.ballast, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    while (write(fd, zeros, sizeof(zeros)) > 0) continue;
    assert_int_equal(errno, ENOSPC);
    close(fd);
    disk.says = "journal.db: database or disk is full";
}

static void empty_disk(void)
{
    assert_int_equal(unlink(disk.ballast), 0);
}

/* The disk has failed, and its file system lets nobody write any more, who has files open neither. */
static void abort_disk(const struct bed *b)
{
    char command[400];

    snprintf(command, sizeof(command), "mount -o remount,abort %s", b->cfg.journal);
    assert_int_equal(system(command), 0);
    snprintf(disk.ballast, sizeof(disk.ballast), "%s", b->cfg.journal);
    disk.says = "Read-only file system";
}

/* What could be read of it is put on another disk. Nothing is made in the empty folder meanwhile. */
static void replace_disk(void)
{
    char command[800];

    snprintf(command, sizeof(command), "umount -l %s && sleep 0.7 && test -z \"$(ls %s)\" && cp %s.disk %s.other && "
             "mount -o loop %s.other %s", disk.ballast, disk.ballast, disk.ballast, disk.ballast, disk.ballast,
             disk.ballast);
    assert_int_equal(system(command), 0);
}

/* What was refused is accepted before long. */
static void submit_until_accepted(struct end *client, const char *key)
{
    for (int i = 0; i < 50; i++, usleep(100000)) {
        Wn__Envelope *env;
        bool accepted;
        submit(client, "two", NULL, key);
        env = end_recv(client, 5000);
        accepted = env && env->body_case == WN__ENVELOPE__BODY_ACCEPTED;
        wn_codec_free(env);
        if (accepted) return;
    }
    fail_msg("still refused");
}

static void expect_refused(struct end *client, const char *words)
{
    Wn__Envelope *env = end_expect(client, WN__ENVELOPE__BODY_BUSY);

    if (!strstr(env->busy->reason, words)) fail_msg("'%s' is not in '%s'", words, env->busy->reason);
    assert_string_equal(env->busy->client_tag, "7");
    wn_codec_free(env);
}

/* New jobs are refused by name, the running one is finished, and when there is room again, all of it is on record. */
static void disk_fills_up(struct bed *b, void (*fill)(const struct bed *b), void (*make_room)(void))
{
    struct order o;
    char id[32];

    bed_start_with(b, 1, 0);
    submit_new(b->client, "one", NULL, id);
    o = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    usleep(300000); /* that it runs is on record, too */
    fill(b);
    for (int i = 0; i < 2; i++) { /* found out, then known */
        submit(b->client, "two", NULL, "2");
        expect_refused(b->client, disk.says);
    }
    give_tokens(b->leader, &o, 0, 1, "yes");
    expect_tokens(b->client, 0, 1, "yes");
    give_done(b->leader, &o, 5);
    expect_answer(b->client, "yes");
    make_room();
    submit_until_accepted(b->client, "2");
    start_again(b);
    attach(b->client, id, UINT32_MAX);
    expect_accepted(b->client, true, NULL);
    expect_answer(b->client, "yes");
    bed_stop(b);
}

static void acknowledge(struct end *e, const char *id)
{
    Wn__Acknowledge a = WN__ACKNOWLEDGE__INIT;

    a.job_id = (char *)(uintptr_t)id;
    end_send(e, WN__ENVELOPE__BODY_ACKNOWLEDGE, &a, NULL, 0);
}

/* A job whose end could not be recorded, and that is acknowledged meanwhile, does not run again at the next start. */
static void acknowledged_while_full(void **state)
{
    struct bed *b = *state;
    struct order o;
    char id[32];
    bool gone = false;

    bed_start_with(b, 1, 0);
    submit_new(b->client, "one", NULL, id);
    o = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    usleep(300000); /* that it runs is on record */
    limit_files(b);
    give_done(b->leader, &o, 5);
    expect_answer(b->client, "");
    acknowledge(b->client, id);
    usleep(300000); /* some ticks */
    unlimit_files();
    for (int i = 0; i < 100 && !gone; i++) { /* a probe finds that there is room, and a tick forgets the job */
        Wn__Envelope *env;
        usleep(50000);
        attach(b->client, id, 0);
        env = end_expect(b->client, WN__ENVELOPE__BODY_ERROR);
        gone = strstr(env->error->text, "' was acknowledged") != NULL; /* told of ids that are not here any more */
        wn_codec_free(env);
    }
    assert_true(gone);
    start_again(b);
    b->leader = worker_open(b, WN__ROLE__ROLE_LEADER, "replica-0", 1);
    assert_null(end_recv(b->leader, 500));
    attach(b->client, id, 0);
    end_expect_error(b->client, WN_ENOENT, "not known");
}

/* The clock was an hour ahead when the job was taken, and is right now: no time is negative, or an age of the world. */
static void the_clock_was_set_back(void **state)
{
    struct bed *b = *state;
    char path[128], id[32];
    sqlite3 *sql = NULL;
    Wn__Envelope *done;
    struct order o;

    bed_start_with(b, 0, 0);
    submit_new(b->client, "one", NULL, id);
    bed_stop(b);
    snprintf(path, sizeof(path), "%s/journal.db", b->cfg.journal);
    assert_int_equal(sqlite3_open(path, &sql), SQLITE_OK);
    assert_int_equal(sqlite3_exec(sql, "UPDATE jobs SET submitted_us = submitted_us + 3600000000", NULL, NULL, NULL),
                     SQLITE_OK);
    sqlite3_close(sql);
    bed_start_with(b, 4, 0);
    o = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    attach(b->client, id, 0);
    expect_accepted(b->client, true, id);
    give_done(b->leader, &o, 5);
    done = expect_done(b->client, WN__FINISH_REASON__FINISH_STOP, "");
    assert_in_range(done->done->usage->queue_us, 0, 60000000);
    assert_in_range(done->done->usage->total_us, 0, 60000000);
    wn_codec_free(done);
}

static void no_file_grows(void **state)
{
    disk_fills_up(*state, limit_files, unlimit_files);
}

static void full_file_system(void **state)
{
    struct bed *b = *state;

    (void)!mkdir(b->cfg.journal, 0700);
    if (mount("tmpfs", b->cfg.journal, "tmpfs", 0, "size=1m") != 0) skip(); /* not allowed here */
    disk_fills_up(b, fill_disk, empty_disk);
    assert_int_equal(umount2(b->cfg.journal, MNT_DETACH), 0);
}

static void read_only_file_system(void **state)
{
    struct bed *b = *state;
    char command[800];

    snprintf(command, sizeof(command), "mkdir %s && truncate -s 16M %s.disk && mkfs.ext4 -q -F %s.disk && "
             "mount -o loop %s.disk %s 2>&1", b->cfg.journal, b->cfg.journal, b->cfg.journal, b->cfg.journal,
             b->cfg.journal);
    if (system(command) != 0) skip(); /* no such mounts here */
    disk_fills_up(b, abort_disk, replace_disk);
    assert_int_equal(umount2(b->cfg.journal, MNT_DETACH), 0);
}

/* Images cannot be written any more, as on a file system that turned read-only: jobs with images are refused by name,
 * the others are not. */
static void read_only(void **state)
{
    struct bed *b = *state;
    char blobs[256];

    bed_start(b);
    bed_stop(b);
    snprintf(blobs, sizeof(blobs), "%s/blobs", b->cfg.journal);
    if (mount(blobs, blobs, NULL, MS_BIND, NULL) != 0) skip(); /* not allowed here */
    bed_start_with(b, 0, 0); /* it keeps the folder open, so that the mount had to be there before */
    assert_int_equal(mount(NULL, blobs, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL), 0);
    submit(b->client, "one", "picture", "1");
    expect_refused(b->client, "Read-only file system");
    submit_until_accepted(b->client, "2"); /* the database is well: that is found out before long */
    bed_stop(b);
    assert_int_equal(umount2(blobs, MNT_DETACH), 0);
}

static void torn_image(void **state)
{
    struct bed *b = *state;
    char id[32], other[32];

    bed_start_with(b, 0, 0);
    submit_new(b->client, "one", "picture", id);
    submit_new(b->client, "two", NULL, other);
    bed_stop(b);
    assert_int_equal(blob_files_tear(b->cfg.journal), 1);
    bed_start_with(b, 0, 0);
    attach(b->client, id, 0);
    expect_accepted(b->client, true, NULL);
    end_expect_error(b->client, WN_EIO, "an image was lost");
    attach(b->client, other, 0);
    expect_accepted(b->client, true, NULL);
}


int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        JOURNAL_TEST(a_running_job_goes_on),
        JOURNAL_TEST(other_ends),
        JOURNAL_TEST(no_file_grows),
        JOURNAL_TEST(acknowledged_while_full),
        JOURNAL_TEST(full_file_system),
        JOURNAL_TEST(read_only_file_system),
        JOURNAL_TEST(read_only),
        JOURNAL_TEST(torn_image),
        JOURNAL_TEST(the_clock_was_set_back),
    };
    int rc;

    wn_log_max = WN_LOG_ERROR;
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    signal(SIGXFSZ, SIG_IGN);
    if (unshare(CLONE_NEWNS) == 0) (void)!mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
    if (!scratch_make(bed_base, sizeof(bed_base), "durable")) return 1;
    rc = cmocka_run_group_tests(tests, NULL, NULL);
    scratch_remove(bed_base);
    return rc;
}
