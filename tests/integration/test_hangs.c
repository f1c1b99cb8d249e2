/* tests/integration/test_hangs.c - processes of a real service that are stopped (SIGSTOP), and a supervisor that is
 * killed: nothing hangs for ever, and nothing is left behind. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/integration/service.h"

#define MODEL    "models/tiny-llava"
#define PICTURE  "tests/eval/images/000.jpg"
#define QUESTION "What color is the object at the bottom right?"
#define GONE_MS  60000 /* a few seconds where nothing else runs */

static struct service service;
static struct winnow *conn;
static void *picture;
static size_t picture_bytes;
static char *good_answer;

static char *answer(void)
{
    char *text;

    if (ask(conn, picture, picture_bytes, QUESTION, &text, NULL) != WINNOW_EVENT_DONE) fail_msg("%s", text);
    return text;
}

static int start_service(void **state)
{
    const char *flags[] = {"-tp=2", "-pp=2", "--lease-ms=1500", "--stall-timeout=3000", NULL};

    (void)state;
    picture = read_file(PICTURE, &picture_bytes);
    service_start(&service, MODEL, flags);
    assert_int_equal(winnow_connect(&conn, service.endpoint, NULL), WINNOW_OK);
    good_answer = answer();
    return 0;
}

static int stop_service(void **state)
{
    (void)state;
    winnow_close(conn);
    free(picture);
    free(good_answer);
    return service_stop(&service);
}

/* Within the lease somebody sees it, and ends what it belongs to. */
static void stopped_processes(void **state)
{
    static const struct {
        const char *name;
        int which;
    } victims[] = {{"replica-0", 0}, {"replica-0", 3}, {"vision-0", 0}, {"scheduler", 0}};

    (void)state;
    for (int v = 0; v < 4; v++) {
        pid_t pids[16], pid;
        const int n = service_pids(&service, victims[v].name, pids, 16);
        char *text;
        if (n <= victims[v].which) fail_msg("%s has %d processes", victims[v].name, n);
        pid = pids[victims[v].which];
        kill(pid, SIGSTOP);
        for (int i = 0; i < GONE_MS / 20 && kill(pid, 0) == 0; i++) usleep(20000);
        if (kill(pid, 0) == 0) fail_msg("%s hangs", victims[v].name);
        text = answer();
        assert_string_equal(text, good_answer);
        free(text);
    }
}

/* The main thread of a rank hangs, and the rest of its process lives: `winnow status` says so, and in the end the
 * replica starts again. */
static void hung_main_threads(void **state)
{
    static const int ranks[] = {0, 3};

    (void)state;
    for (int k = 0; k < 2; k++) {
        pid_t pids[16], pid;
        bool said = false, ended = false;
        char *text, words[64];
        int status;
        assert_true(service_pids(&service, "replica-0", pids, 16) == 4);
        pid = pids[ranks[k]];
        if (ptrace(PTRACE_SEIZE, pid, NULL, NULL) != 0) skip(); /* not allowed here; it stops one thread of several */
        assert_int_equal(ptrace(PTRACE_INTERRUPT, pid, NULL, NULL), 0);
        assert_int_equal(waitpid(pid, &status, __WALL), pid);
        snprintf(words, sizeof(words), "rank %d of replica-0 has done nothing", ranks[k]);
        for (int i = 0; i < GONE_MS / 20 && !ended; i++) {
            char *json = winnow_status_json(conn, 10000);
            said = said || (json && strstr(json, words));
            free(json);
            ended = waitpid(pid, &status, __WALL | WNOHANG) == pid && !WIFSTOPPED(status);
            usleep(20000);
        }
        assert_true(ended);
        assert_true(said);
        text = answer();
        assert_string_equal(text, good_answer);
        free(text);
    }
}

/* The last test: there is no service after it. */
static void supervisor_dies(void **state)
{
    pid_t pids[64];
    int n = 64, status;

    (void)state;
    kill(service.pid, SIGKILL);
    waitpid(service.pid, &status, 0);
    service.pid = 0;
    for (int i = 0; i < GONE_MS / 20 && (n = service_pids(&service, NULL, pids, 64)) > 0; i++) usleep(20000);
    for (int i = 0; i < n; i++) kill(pids[i], SIGKILL);
    assert_int_equal(n, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(stopped_processes), cmocka_unit_test(hung_main_threads),
                                       cmocka_unit_test(supervisor_dies)};
    return cmocka_run_group_tests(tests, start_service, stop_service);
}
