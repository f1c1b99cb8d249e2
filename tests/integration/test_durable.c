/* tests/integration/test_durable.c - a scheduler with a journal: what a restart keeps, and what happens when the disk
 * is full. */
#include "sched_bed.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "base/log.h"
#include "tests/blob_files.h"
#include "tests/scratch.h"

static char base[64];
static int dirs;

static void bed_journal(struct bed *b)
{
    bed_init(b);
    snprintf(b->cfg.journal, sizeof(b->cfg.journal), "%s/%d", base, ++dirs);
}

static void start_again(struct bed *b)
{
    const struct wn_config cfg = b->cfg;

    bed_init(b);
    b->cfg = cfg;
    bed_start(b);
}

static void again(struct bed *b)
{
    bed_stop(b);
    start_again(b);
}

static void a_running_job_goes_on(void **state)
{
    struct bed b;
    struct end client, leader, vision;
    struct order first, second, enc;
    char id[32], same[32];

    (void)state;
    bed_journal(&b);
    bed_start(&b);
    client = end_open(&b, false);
    leader = worker_open(&b, WN__ROLE__ROLE_LEADER, "replica-0", 4);
    vision = worker_open(&b, WN__ROLE__ROLE_VISION, "vision-0", 4);
    submit(&client, "question", "picture", "key");
    expect_accepted(&client, false, id);
    first = take_order(&leader, WN__ENVELOPE__BODY_GENERATE);
    enc = take_order(&vision, WN__ENVELOPE__BODY_ENCODE);
    give_encoded(&vision, &enc);
    give_tokens(&leader, &first, 0, 11, "a ");
    expect_tokens(&client, 0, 1, "a ");
    end_close(&client);
    end_close(&leader);
    end_close(&vision);
    again(&b);

    client = end_open(&b, false);
    attach(&client, id, 2); /* it has seen one that was not recorded */
    expect_accepted(&client, true, same);
    assert_string_equal(id, same);
    leader = worker_open(&b, WN__ROLE__ROLE_LEADER, "replica-0", 4);
    vision = worker_open(&b, WN__ROLE__ROLE_VISION, "vision-0", 4);
    second = take_order(&leader, WN__ENVELOPE__BODY_GENERATE);
    enc = take_order(&vision, WN__ENVELOPE__BODY_ENCODE);
    assert_int_equal(vision.payload_bytes, 7);
    assert_memory_equal(vision.payload, "picture", 7);
    assert_string_equal(second.id, id);
    assert_true(second.attempt > first.attempt);
    assert_int_equal(second.emitted_n, 1);
    assert_int_equal(second.emitted[0], 11);
    give_tokens(&leader, &second, 1, 12, "red ");
    give_tokens(&leader, &second, 2, 13, "dot");
    expect_tokens(&client, 2, 1, "dot"); /* and not the second */
    give_done(&leader, &second, 60);
    wn_codec_free(expect_done(&client, WN__FINISH_REASON__FINISH_STOP, "a red dot"));
    end_close(&client);
    end_close(&leader);
    end_close(&vision);
    again(&b);

    client = end_open(&b, false);
    submit(&client, "question", "picture", "key"); /* the same job, and its one result */
    expect_accepted(&client, true, same);
    assert_string_equal(id, same);
    expect_tokens(&client, 0, 3, "a red dot");
    Wn__Envelope *done = expect_done(&client, WN__FINISH_REASON__FINISH_STOP, "a red dot");
    assert_int_equal(done->done->usage->prompt_tokens, 60);
    assert_int_equal(done->done->usage->completion_tokens, 3);
    assert_int_equal(done->done->usage->attempts, second.attempt);
    assert_int_equal(done->done->usage->bytes_on_wire->activation, 1000);
    wn_codec_free(done);
    bed_stop(&b);
}

/* Failed and cancelled jobs have their end, too; one that waits is still there; results end by time. */
static void other_ends(void **state)
{
    struct bed b;
    struct end client, leader;
    struct order o;
    char failed[32], cancelled[32], queued[32];

    (void)state;
    bed_journal(&b);
    bed_start(&b);
    client = end_open(&b, false);
    leader = worker_open(&b, WN__ROLE__ROLE_LEADER, "replica-0", 1);
    submit(&client, "one", NULL, "1");
    expect_accepted(&client, false, failed);
    o = take_order(&leader, WN__ENVELOPE__BODY_GENERATE);
    submit(&client, "two", NULL, "2");
    expect_accepted(&client, false, cancelled);
    submit(&client, "three", NULL, "3");
    expect_accepted(&client, false, queued);
    cancel(&client, cancelled);
    wn_codec_free(expect_done(&client, WN__FINISH_REASON__FINISH_CANCELLED, ""));
    give_error(&leader, &o, WN_ELIMIT, false, "too long");
    end_expect_error(&client, WN_ELIMIT, "too long");
    end_close(&client);
    end_close(&leader);
    b.cfg.result_ttl_s = 3;
    again(&b);

    client = end_open(&b, false);
    attach(&client, failed, 0);
    expect_accepted(&client, true, NULL);
    end_expect_error(&client, WN_ELIMIT, "too long");
    attach(&client, cancelled, 0);
    expect_accepted(&client, true, NULL);
    wn_codec_free(expect_done(&client, WN__FINISH_REASON__FINISH_CANCELLED, ""));
    sleep(4);
    attach(&client, failed, 0);
    end_expect_error(&client, WN_ENOENT, "has expired");
    end_close(&client);
    again(&b);

    client = end_open(&b, false);
    attach(&client, cancelled, 0);
    end_expect_error(&client, WN_ENOENT, "not known"); /* the journal has forgotten it, too */
    leader = worker_open(&b, WN__ROLE__ROLE_LEADER, "replica-0", 1);
    o = take_order(&leader, WN__ENVELOPE__BODY_GENERATE);
    assert_string_equal(o.id, queued);
    bed_stop(&b);
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

/* New jobs are refused by name, the running one is finished, and when there is room again, all of it is on record. */
static void disk_fills_up(struct bed *bed, void (*fill)(const struct bed *b), void (*make_room)(void))
{
    struct end client, leader;
    struct order o;
    char id[32];
    Wn__Envelope *env;
    bool accepted = false;

    bed_start(bed);
    client = end_open(bed, false);
    leader = worker_open(bed, WN__ROLE__ROLE_LEADER, "replica-0", 1);
    submit(&client, "one", NULL, "1");
    expect_accepted(&client, false, id);
    o = take_order(&leader, WN__ENVELOPE__BODY_GENERATE);
    usleep(300000); /* that it runs is on record, too */
    fill(bed);
    for (int i = 0; i < 2; i++) { /* found out, then known */
        submit(&client, "two", NULL, "2");
        env = end_expect(&client, WN__ENVELOPE__BODY_BUSY);
        if (!strstr(env->busy->reason, disk.says)) fail_msg("%s", env->busy->reason);
        assert_string_equal(env->busy->client_tag, "7");
        wn_codec_free(env);
    }
    give_tokens(&leader, &o, 0, 1, "yes");
    expect_tokens(&client, 0, 1, "yes");
    give_done(&leader, &o, 5);
    wn_codec_free(expect_done(&client, WN__FINISH_REASON__FINISH_STOP, "yes"));
    make_room();
    for (int i = 0; i < 50 && !accepted; i++) {
        submit(&client, "two", NULL, "2");
        env = end_recv(&client, 5000);
        assert_non_null(env);
        accepted = env->body_case == WN__ENVELOPE__BODY_ACCEPTED;
        wn_codec_free(env);
        if (!accepted) usleep(100000);
    }
    assert_true(accepted);
    end_close(&client);
    end_close(&leader);
    again(bed);
    client = end_open(bed, false);
    attach(&client, id, UINT32_MAX);
    expect_accepted(&client, true, NULL);
    wn_codec_free(expect_done(&client, WN__FINISH_REASON__FINISH_STOP, "yes"));
    end_close(&client);
    bed_stop(bed);
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
    struct bed b;
    struct end client, leader;
    struct order o;
    Wn__Envelope *env;
    char id[32];
    bool gone = false;

    (void)state;
    bed_journal(&b);
    b.cfg.lease_ms = 60000;
    bed_start(&b);
    client = end_open(&b, false);
    leader = worker_open(&b, WN__ROLE__ROLE_LEADER, "replica-0", 1);
    submit(&client, "one", NULL, "1");
    expect_accepted(&client, false, id);
    o = take_order(&leader, WN__ENVELOPE__BODY_GENERATE);
    usleep(300000); /* that it runs is on record */
    limit_files(&b);
    give_done(&leader, &o, 5);
    wn_codec_free(expect_done(&client, WN__FINISH_REASON__FINISH_STOP, ""));
    acknowledge(&client, id);
    usleep(300000); /* some ticks */
    unlimit_files();
    for (int i = 0; i < 100 && !gone; i++) { /* a probe finds that there is room, and a tick forgets the job */
        usleep(50000);
        attach(&client, id, 0);
        env = end_expect(&client, WN__ENVELOPE__BODY_ERROR);
        gone = strstr(env->error->text, "' was acknowledged") != NULL; /* told of ids that are not here any more */
        wn_codec_free(env);
    }
    assert_true(gone);
    end_close(&client);
    end_close(&leader);
    again(&b);
    client = end_open(&b, false);
    leader = worker_open(&b, WN__ROLE__ROLE_LEADER, "replica-0", 1);
    assert_null(end_recv(&leader, 500));
    attach(&client, id, 0);
    end_expect_error(&client, WN_ENOENT, "not known");
    bed_stop(&b);
}

static void no_file_grows(void **state)
{
    struct bed b;

    (void)state;
    bed_journal(&b);
    disk_fills_up(&b, limit_files, unlimit_files);
}

static void full_file_system(void **state)
{
    struct bed b;

    (void)state;
    bed_journal(&b);
    (void)!mkdir(b.cfg.journal, 0700);
    if (mount("tmpfs", b.cfg.journal, "tmpfs", 0, "size=1m") != 0) skip(); /* not allowed here */
    disk_fills_up(&b, fill_disk, empty_disk);
    assert_int_equal(umount2(b.cfg.journal, MNT_DETACH), 0);
}

static void read_only_file_system(void **state)
{
    struct bed b;
    char command[800];

    (void)state;
    bed_journal(&b);
    snprintf(command, sizeof(command), "mkdir %s && truncate -s 16M %s.disk && mkfs.ext4 -q -F %s.disk && "
             "mount -o loop %s.disk %s 2>&1", b.cfg.journal, b.cfg.journal, b.cfg.journal, b.cfg.journal,
             b.cfg.journal);
    if (system(command) != 0) skip(); /* no such mounts here */
    disk_fills_up(&b, abort_disk, replace_disk);
    assert_int_equal(umount2(b.cfg.journal, MNT_DETACH), 0);
}

/* Images cannot be written any more, as on a file system that turned read-only: jobs with images are refused by name,
 * the others are not. */
static void read_only(void **state)
{
    struct bed b;
    struct end client;
    Wn__Envelope *env;
    char blobs[256];

    (void)state;
    bed_journal(&b);
    bed_start(&b);
    bed_stop(&b);
    snprintf(blobs, sizeof(blobs), "%s/blobs", b.cfg.journal);
    if (mount(blobs, blobs, NULL, MS_BIND, NULL) != 0) skip(); /* not allowed here */
    start_again(&b); /* it keeps the folder open, so that the mount had to be there before */
    assert_int_equal(mount(NULL, blobs, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL), 0);
    client = end_open(&b, false);
    submit(&client, "one", "picture", "1");
    env = end_expect(&client, WN__ENVELOPE__BODY_BUSY);
    if (!strstr(env->busy->reason, "Read-only file system")) fail_msg("%s", env->busy->reason);
    wn_codec_free(env);
    for (int i = 0; i < 50; i++) { /* the database is well: that is found out before long */
        submit(&client, "two", NULL, "2");
        env = end_recv(&client, 5000);
        assert_non_null(env);
        if (env->body_case == WN__ENVELOPE__BODY_ACCEPTED) break;
        wn_codec_free(env);
        env = NULL;
        usleep(100000);
    }
    assert_non_null(env);
    wn_codec_free(env);
    bed_stop(&b);
    assert_int_equal(umount2(blobs, MNT_DETACH), 0);
}

static void torn_image(void **state)
{
    struct bed b;
    struct end client;
    char id[32], other[32];

    (void)state;
    bed_journal(&b);
    bed_start(&b);
    client = end_open(&b, false);
    submit(&client, "one", "picture", "1");
    expect_accepted(&client, false, id);
    submit(&client, "two", NULL, "2");
    expect_accepted(&client, false, other);
    bed_stop(&b);
    assert_int_equal(blob_files_tear(b.cfg.journal), 1);
    start_again(&b);
    client = end_open(&b, false);
    attach(&client, id, 0);
    expect_accepted(&client, true, NULL);
    end_expect_error(&client, WN_EIO, "an image was lost");
    attach(&client, other, 0);
    expect_accepted(&client, true, NULL);
    bed_stop(&b);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_running_job_goes_on),
        cmocka_unit_test(other_ends),
        cmocka_unit_test(no_file_grows),
        cmocka_unit_test(acknowledged_while_full),
        cmocka_unit_test(full_file_system),
        cmocka_unit_test(read_only_file_system),
        cmocka_unit_test(read_only),
        cmocka_unit_test(torn_image),
    };
    int rc;

    wn_log_max = WN_LOG_ERROR;
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    signal(SIGXFSZ, SIG_IGN);
    if (unshare(CLONE_NEWNS) == 0) (void)!mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
    if (!scratch_make(base, sizeof(base), "durable")) return 1;
    rc = cmocka_run_group_tests(tests, NULL, NULL);
    scratch_remove(base);
    return rc;
}
