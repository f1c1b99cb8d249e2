/* tests/unit/test_blobs.c - the folder of pictures beside the journal: what was put is what is got, files that are
 * damaged, short or no files at all are errors or are written anew, and a failure leaves no room taken. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/sha256.h"
#include "daemon/blobs.h"
#include "tests/scratch.h"

#define BIG 300000

static char base[64], dir[96];
static uint8_t big[BIG], got[BIG + 8];

int __real_fsync(int fd);
int __wrap_fsync(int fd);
static int syncs, failing_sync = -1; /* how many there were; the one that fails */

int __wrap_fsync(int fd)
{
    if (syncs++ != failing_sync) return __real_fsync(fd);
    errno = EIO;
    return -1;
}

static struct wn_blobs *open_blobs(void)
{
    struct wn_blobs *b = NULL;
    struct wn_err err = {0};

    snprintf(dir, sizeof(dir), "%s/blobs", base);
    if (wn_blobs_open(&b, dir, &err) != WN_OK) fail_msg("%s", err.text);
    return b;
}

static void path_of(const uint8_t hash[WN_BLOB_HASH], char path[256])
{
    int n = snprintf(path, 256, "%s/%02x/", dir, hash[0]);

    for (int i = 1; i < WN_BLOB_HASH; i++) n += snprintf(path + n, 256 - (size_t)n, "%02x", hash[i]);
}

static bool exists(const char *path)
{
    return access(path, F_OK) == 0;
}

static bool unfinished(void)
{
    char path[256];

    snprintf(path, sizeof(path), "%s/unfinished", dir);
    return exists(path);
}

static void expect_error(wn_status rc, const struct wn_err *err, wn_status want, const char *words)
{
    if (rc != want || !strstr(err->text, words)) fail_msg("%s: '%s'", wn_status_name(rc), err->text);
}

static int fresh(void **state)
{
    (void)state;
    return scratch_make(base, sizeof(base), "blobs") ? 0 : -1;
}

static int gone(void **state)
{
    (void)state;
    return scratch_remove(base) ? 0 : -1;
}

static void test_what_was_put(void **state)
{
    static const size_t sizes[] = {0, 1, 4096, BIG};
    struct wn_blobs *b = open_blobs();
    uint8_t hash[4][WN_BLOB_HASH], want[WN_BLOB_HASH];
    (void)state;

    for (size_t i = 0; i < BIG; i++) big[i] = (uint8_t)(i * 7 + i / 251);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(wn_blobs_put(b, big, sizes[i], hash[i], NULL), WN_OK);
        wn_sha256(want, big, sizes[i]);
        assert_memory_equal(hash[i], want, sizeof(want));
        assert_int_equal(wn_blobs_put(b, big, sizes[i], want, NULL), WN_OK); /* twice is once */
        assert_false(unfinished());
    }
    wn_blobs_close(b);
    b = open_blobs(); /* the folder is there already */
    for (int i = 0; i < 4; i++) {
        memset(got, 0xee, sizeof(got));
        assert_int_equal(wn_blobs_get(b, hash[i], got, sizes[i], NULL), WN_OK);
        assert_memory_equal(got, big, sizes[i]);
        assert_int_equal(got[sizes[i]], 0xee);
        wn_blobs_drop(b, hash[i]);
        wn_blobs_drop(b, hash[i]); /* gone is gone */
        assert_int_equal(wn_blobs_get(b, hash[i], got, sizes[i], NULL), WN_EIO);
    }
    wn_blobs_close(b);
    wn_blobs_close(NULL);
}

static void test_files_that_are_not_what_they_were(void **state)
{
    struct wn_blobs *b = open_blobs();
    struct wn_err err = {0};
    uint8_t hash[WN_BLOB_HASH];
    char path[256];
    FILE *f;
    (void)state;

    assert_int_equal(wn_blobs_put(b, "picture", 7, hash, NULL), WN_OK);
    path_of(hash, path);
    expect_error(wn_blobs_get(b, hash, got, 6, &err), &err, WN_EFORMAT, "is damaged");
    expect_error(wn_blobs_get(b, hash, got, 8, &err), &err, WN_EFORMAT, "is damaged");
    f = fopen(path, "r+");
    fputc('P', f);
    fclose(f);
    expect_error(wn_blobs_get(b, hash, got, 7, &err), &err, WN_EFORMAT, strrchr(path, '/'));
    assert_int_equal(truncate(path, 3), 0); /* torn: the next put writes it anew */
    expect_error(wn_blobs_get(b, hash, got, 7, &err), &err, WN_EFORMAT, "is damaged");
    assert_int_equal(wn_blobs_put(b, "picture", 7, hash, NULL), WN_OK);
    assert_int_equal(wn_blobs_get(b, hash, got, 7, NULL), WN_OK);
    assert_int_equal(unlink(path), 0);
    expect_error(wn_blobs_get(b, hash, got, 7, &err), &err, WN_EIO, "No such file");
    assert_int_equal(mkdir(path, 0700), 0);
    expect_error(wn_blobs_get(b, hash, got, 7, &err), &err, WN_EIO, "Is a directory");
    wn_blobs_close(b);
}

/* What cannot be kept is an error that names the file, and leaves nothing behind. */
static void test_puts_that_fail(void **state)
{
    const struct rlimit small = {.rlim_cur = 100000, .rlim_max = RLIM_INFINITY};
    struct wn_blobs *b = open_blobs();
    struct wn_err err = {0};
    struct rlimit all;
    uint8_t hash[WN_BLOB_HASH];
    char path[256], inside[300];
    (void)state;

    wn_sha256(hash, "picture", 7);
    path_of(hash, path);
    *strrchr(path, '/') = '\0';
    assert_int_equal(mkdir(path, 0700), 0);
    path_of(hash, path);
    assert_int_equal(mkdir(path, 0700), 0);
    snprintf(inside, sizeof(inside), "%s/x", path);
    assert_int_equal(mkdir(inside, 0700), 0);
    expect_error(wn_blobs_put(b, "picture", 7, hash, &err), &err, WN_EIO, strrchr(path, '/'));
    assert_false(unfinished());

    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &all), 0);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    expect_error(wn_blobs_put(b, big, BIG, hash, &err), &err, WN_EIO, "write");
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &all), 0);
    assert_false(unfinished());
    assert_int_equal(wn_blobs_put(b, big, BIG, hash, &err), WN_OK);
    assert_int_equal(wn_blobs_get(b, hash, got, BIG, &err), WN_OK);
    wn_blobs_close(b);
}

/* A disk that does not say "done", of the parent folder, the file or its folder: an error, nothing that passes for
 * whole, and the next put syncs what was not. */
static void test_disks_that_fail(void **state)
{
    struct wn_err err = {0};
    uint8_t hash[WN_BLOB_HASH];
    (void)state;

    for (int bad = 0; bad < 3; bad++) {
        struct wn_blobs *b = open_blobs();
        const uint8_t data = (uint8_t)(bad + 1); /* each has a folder of its own */
        int again;
        syncs = 0;
        failing_sync = bad;
        expect_error(wn_blobs_put(b, &data, 1, hash, &err), &err, WN_EIO, "Input/output error");
        failing_sync = -1;
        assert_false(unfinished());
        assert_int_equal(wn_blobs_get(b, hash, got, 1, &err), WN_EIO);
        syncs = 0;
        again = bad == 0 ? 3 : 2; /* the folder, once it is surely there, is not made again */
        assert_int_equal(wn_blobs_put(b, &data, 1, hash, &err), WN_OK);
        assert_int_equal(syncs, again);
        assert_int_equal(wn_blobs_get(b, hash, got, 1, &err), WN_OK);
        wn_blobs_close(b);
    }
}

static bool is_needed(void *arg, const uint8_t hash[WN_BLOB_HASH])
{
    return memcmp(arg, hash, WN_BLOB_HASH) == 0;
}

/* After a crash: what no job needs goes, and what is not ours stays. */
static void test_sweep(void **state)
{
    struct wn_blobs *b = open_blobs();
    uint8_t needed[WN_BLOB_HASH], other[WN_BLOB_HASH];
    char path[256], foreign[300];
    (void)state;

    assert_int_equal(wn_blobs_sweep(b, is_needed, needed), 0);
    assert_int_equal(wn_blobs_put(b, "needed", 6, needed, NULL), WN_OK);
    for (uint8_t i = 0; i < 10; i++) assert_int_equal(wn_blobs_put(b, &i, 1, other, NULL), WN_OK);
    path_of(other, path);
    *strrchr(path, '/') = '\0';
    snprintf(foreign, sizeof(foreign), "%s/notes.txt", path);
    assert_true(scratch_text(path, "notes.txt", "mine"));
    assert_true(scratch_text(dir, "unfinished", "half of a pict"));
    assert_int_equal(wn_blobs_sweep(b, is_needed, needed), 10 + 1);
    assert_false(unfinished());
    assert_true(exists(foreign));
    assert_int_equal(wn_blobs_get(b, needed, got, 6, NULL), WN_OK);
    assert_int_equal(wn_blobs_get(b, other, got, 1, NULL), WN_EIO);
    assert_int_equal(wn_blobs_sweep(b, is_needed, needed), 0);
    wn_blobs_close(b);
}

static void test_folders_that_cannot_be(void **state)
{
    struct wn_blobs *b = NULL;
    struct wn_err err = {0};
    char path[128];
    (void)state;

    snprintf(path, sizeof(path), "%s/no/blobs", base);
    expect_error(wn_blobs_open(&b, path, &err), &err, WN_EIO, "No such file");
    assert_true(scratch_text(base, "file", "x"));
    snprintf(path, sizeof(path), "%s/file", base);
    expect_error(wn_blobs_open(&b, path, &err), &err, WN_EIO, "Not a directory");
    assert_null(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_what_was_put, fresh, gone),
        cmocka_unit_test_setup_teardown(test_files_that_are_not_what_they_were, fresh, gone),
        cmocka_unit_test_setup_teardown(test_puts_that_fail, fresh, gone),
        cmocka_unit_test_setup_teardown(test_disks_that_fail, fresh, gone),
        cmocka_unit_test_setup_teardown(test_sweep, fresh, gone),
        cmocka_unit_test_setup_teardown(test_folders_that_cannot_be, fresh, gone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
