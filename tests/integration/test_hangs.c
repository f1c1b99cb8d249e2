/* tests/integration/test_hangs.c - processes of a real service that are stopped (SIGSTOP), and a supervisor that is
 * killed: nothing hangs for ever, and nothing is left behind. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <signal.h>
#include <stdlib.h>
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
    const char *flags[] = {"-tp=2", "-pp=2", "--lease-ms=1500", NULL};

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
    const struct CMUnitTest tests[] = {cmocka_unit_test(stopped_processes), cmocka_unit_test(supervisor_dies)};
    return cmocka_run_group_tests(tests, start_service, stop_service);
}
