/* tests/unit/test_run_dir.c - a service's folders: one owner each; what a dead one has left goes, and nothing else. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/run_dir.h"
#include "tests/scratch.h"

static char dir[64], files_base[96], memory_base[96];

static int setup(void **state)
{
    (void)state;
    if (!scratch_make(dir, sizeof(dir), "test-run-dir")) return -1;
    snprintf(files_base, sizeof(files_base), "%s/files", dir);
    snprintf(memory_base, sizeof(memory_base), "%s/memory", dir);
    return mkdir(files_base, 0700) || mkdir(memory_base, 0700);
}

static int teardown(void **state)
{
    (void)state;
    return scratch_remove(dir) ? 0 : -1;
}

static void open_dir(struct wn_run_dir *d, const char *named)
{
    struct wn_err err = {0};

    if (wn_run_dir_open(d, named, files_base, memory_base, 1, &err) != WN_OK) fail_msg("%s", err.text);
}

static bool exists(const char *folder, const char *name)
{
    char path[WN_RUN_PATH + 64];
    struct stat st;

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    return lstat(path, &st) == 0;
}

static void make_socket(const char *folder, const char *name)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    assert_true(snprintf(a.sun_path, sizeof(a.sun_path), "%s/%s", folder, name) < (int)sizeof(a.sun_path));
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    close(fd);
}

/* What a service has while it runs. */
static void fill(const struct wn_run_dir *d)
{
    char files[WN_RUN_PATH], memory[WN_RUN_PATH], link[WN_RUN_PATH + 16], target[128];

    wn_run_dir_part(d, "replica-0", files, memory);
    assert_true(scratch_text(files, "ompi.host.0/pid.1/0/contact", "x"));
    assert_true(scratch_text(memory, "vader_segment.host.0.1.0", "x"));
    snprintf(target, sizeof(target), "%s/precious", dir);
    snprintf(link, sizeof(link), "%s/link", files);
    assert_int_equal(symlink(target, link), 0);
    make_socket(d->files.path, "scheduler.sock");
    make_socket(d->files.path, "replica-0-1.sock");
}

static void a_life_in_order(void **state)
{
    struct wn_run_dir one, two;
    char path[WN_RUN_PATH], memory[WN_RUN_PATH], files[WN_RUN_PATH];

    (void)state;
    assert_true(scratch_text(dir, "precious/file", "x"));
    open_dir(&one, "");
    fill(&one);
    assert_true(wn_run_dir_there(&one));
    snprintf(path, sizeof(path), "%s-moved", one.files.path);
    assert_int_equal(rename(one.files.path, path), 0);
    assert_false(wn_run_dir_there(&one));
    assert_int_equal(rename(path, one.files.path), 0);
    open_dir(&two, ""); /* one is alive */
    assert_true(exists(one.files.path, "scheduler.sock"));
    assert_true(exists(one.memory.path, "replica-0"));
    wn_run_dir_part(&one, "replica-00", files, memory);
    make_socket(one.files.path, "replica-00-1.sock");

    wn_run_dir_part_ended(&one, "replica-0");
    assert_false(exists(one.files.path, "replica-0"));
    assert_false(exists(one.files.path, "replica-0-1.sock"));
    assert_false(exists(one.memory.path, "replica-0"));
    assert_true(exists(one.files.path, "scheduler.sock"));
    assert_true(exists(one.files.path, "replica-00"));
    assert_true(exists(one.files.path, "replica-00-1.sock"));
    assert_true(exists(dir, "precious/file"));

    snprintf(path, sizeof(path), "%s", one.files.path);
    snprintf(memory, sizeof(memory), "%s", one.memory.path);
    wn_run_dir_close(&one);
    assert_false(exists(path, ""));
    assert_false(exists(memory, ""));
    wn_run_dir_close(&two);
    wn_run_dir_close(&two);
}

static void a_service_that_was_killed(void **state)
{
    struct wn_run_dir d;
    char was[2][WN_RUN_PATH] = {"", ""};
    int status, fds[2];
    pid_t pid;

    (void)state;
    assert_true(scratch_text(dir, "precious/file", "x"));
    assert_int_equal(pipe(fds), 0);
    pid = fork();
    if (pid == 0) {
        open_dir(&d, "");
        fill(&d);
        _exit(write(fds[1], d.files.path, WN_RUN_PATH) > 0 && write(fds[1], d.memory.path, WN_RUN_PATH) > 0 ? 0 : 1);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    for (int i = 0; i < 2; i++) assert_int_equal(read(fds[0], was[i], WN_RUN_PATH), WN_RUN_PATH);
    close(fds[0]);
    close(fds[1]);
    assert_true(exists(was[0], "replica-0/ompi.host.0/pid.1/0/contact"));

    assert_true(scratch_text(files_base, "winnow-abcdef/file", "x"));            /* nobody's */
    assert_true(scratch_text(files_base, "winnow-ABCDEF/owner", "process 1 on elsewhere\n")); /* of another machine */
    assert_true(scratch_text(files_base, "winnow-chaos-abcdef/owner", "x"));     /* not a name of ours */
    open_dir(&d, "");
    assert_false(exists(was[0], ""));
    assert_false(exists(was[1], ""));
    assert_true(exists(files_base, "winnow-abcdef/file"));
    assert_true(exists(files_base, "winnow-ABCDEF/owner"));
    assert_true(exists(files_base, "winnow-chaos-abcdef/owner"));
    assert_true(exists(dir, "precious/file"));
    wn_run_dir_close(&d);
}

static void a_named_folder(void **state)
{
    struct wn_run_dir one, two;
    struct wn_err err = {0};
    char path[WN_RUN_PATH];

    (void)state;
    snprintf(path, sizeof(path), "%s/mine", dir);
    assert_true(scratch_text(dir, "mine/notes", "x"));
    make_socket(path, "scheduler.sock"); /* of a service that was killed */
    open_dir(&one, path);
    assert_false(exists(path, "scheduler.sock"));
    fill(&one);
    assert_int_equal(wn_run_dir_open(&two, path, files_base, memory_base, 1, &err), WN_EBUSY);
    assert_non_null(strstr(err.text, path));
    assert_true(exists(path, "scheduler.sock"));
    wn_run_dir_close(&two);
    assert_true(exists(path, "owner"));
    wn_run_dir_close(&one);
    assert_true(exists(path, "notes"));
    assert_false(exists(path, "scheduler.sock"));
    assert_false(exists(path, "replica-0"));
    assert_false(exists(path, "owner"));
    open_dir(&two, path);
    wn_run_dir_close(&two);
}

/* A rank under srun: a place in shared memory alone, which the next rank on its machine removes if it was killed. One
 * that lives keeps its own. */
static void a_rank_that_was_killed(void **state)
{
    struct wn_run_dir alive, d;
    char memory[2][WN_RUN_PATH] = {"", ""};
    int status, fds[2];
    pid_t pid;

    (void)state;
    assert_true(scratch_text(memory_base, "vader_segment.host.0.1.0", "x")); /* somebody else's */
    wn_run_dir_open_memory(&alive, memory_base, 1, "replica-0", memory[0]);
    assert_true(scratch_text(memory[0], "vader_segment.host.0.1.0", "x"));
    assert_int_equal(pipe(fds), 0);
    pid = fork();
    if (pid == 0) {
        wn_run_dir_open_memory(&d, memory_base, 1, "replica-0", memory[1]);
        if (!scratch_text(memory[1], "vader_segment.host.0.1.1", "x") || write(fds[1], memory[1], WN_RUN_PATH) < 0)
            _exit(1);
        pause();
    }
    assert_int_equal(read(fds[0], memory[1], WN_RUN_PATH), WN_RUN_PATH);
    wn_run_dir_open_memory(&d, memory_base, 1, "replica-0", memory[0]);
    assert_true(exists(memory[1], "vader_segment.host.0.1.1")); /* both live */
    wn_run_dir_close(&d);
    assert_false(exists(memory[0], ""));
    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    wn_run_dir_open_memory(&d, memory_base, 1, "replica-0", memory[0]);
    assert_false(exists(memory[1], ""));
    assert_true(exists(alive.memory.path, "replica-0/vader_segment.host.0.1.0"));
    assert_true(exists(memory_base, "vader_segment.host.0.1.0"));
    wn_run_dir_close(&d);
    wn_run_dir_close(&alive);
    assert_false(exists(alive.memory.path, "replica-0"));
    wn_run_dir_open_memory(&d, "/nowhere", 1, "replica-0", memory[0]);
    assert_string_equal(memory[0], "");
    wn_run_dir_close(&d);
    close(fds[0]);
    close(fds[1]);
}

/* Without /dev/shm, or with one that is too small for what may come, it is all in files. */
static void no_shared_memory(void **state)
{
    struct wn_run_dir d;
    struct wn_err err = {0};
    char files[WN_RUN_PATH], memory[WN_RUN_PATH];

    (void)state;
    for (int small = 0; small < 2; small++) {
        assert_int_equal(wn_run_dir_open(&d, "", files_base, small ? memory_base : "/nowhere",
                                         small ? SIZE_MAX : 1, &err), WN_OK);
        wn_run_dir_part(&d, "replica-0", files, memory);
        assert_true(files[0] != '\0');
        assert_string_equal(files, memory);
        wn_run_dir_close(&d);
        assert_false(exists(files, ""));
        assert_int_equal(rmdir(memory_base), 0); /* nothing is left in it */
        assert_int_equal(mkdir(memory_base, 0700), 0);
    }
    assert_int_equal(wn_run_dir_open(&d, "", "/nowhere", memory_base, 1, &err), WN_EIO);
    wn_run_dir_close(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_life_in_order, setup, teardown),
        cmocka_unit_test_setup_teardown(a_service_that_was_killed, setup, teardown),
        cmocka_unit_test_setup_teardown(a_named_folder, setup, teardown),
        cmocka_unit_test_setup_teardown(a_rank_that_was_killed, setup, teardown),
        cmocka_unit_test_setup_teardown(no_shared_memory, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
