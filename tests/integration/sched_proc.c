/* tests/integration/sched_proc.c - see sched_proc.h. */
#include "tests/integration/sched_proc.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/status.h"
#include "tests/child.h"

void sched_proc_init(struct sched_proc *s, const char *winnowd, const char *folder)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof(a);
    const int fd = socket(AF_INET, SOCK_STREAM, 0);

    *s = (struct sched_proc){.winnowd = winnowd, .folder = folder};
    assert_true(fd >= 0 && bind(fd, (struct sockaddr *)&a, n) == 0 &&
                getsockname(fd, (struct sockaddr *)&a, &n) == 0);
    close(fd);
    snprintf(s->clients, sizeof(s->clients), "tcp://127.0.0.1:%u", ntohs(a.sin_port));
    snprintf(s->workers, sizeof(s->workers), "ipc://%s/s", folder);
}

void sched_proc_start(struct sched_proc *s, const char *journal, const char *const *flags)
{
    char port[32], workers[128], kept[192], run[128];
    const char *argv[32] = {s->winnowd, "scheduler", port, workers, kept, run};
    int n = 6;

    snprintf(port, sizeof(port), "--port=%s", strrchr(s->clients, ':') + 1);
    snprintf(workers, sizeof(workers), "--scheduler-endpoint=%s", s->workers);
    snprintf(kept, sizeof(kept), "--journal=%s", journal);
    snprintf(run, sizeof(run), "--run-dir=%s", s->folder);
    for (int i = 0; flags[i]; i++) {
        WN_ASSERT(n < 31);
        argv[n++] = flags[i];
    }
    s->pid = child_start(argv);
}

int sched_proc_end(struct sched_proc *s, int sig)
{
    const int status = child_end(s->pid, sig);

    s->pid = 0;
    return status;
}

struct winnow *sched_proc_connect(const struct sched_proc *s, bool keep_results)
{
    const struct winnow_options o = {
        .reconnect_timeout_ms = 60000, .connect_timeout_ms = 20000, .keep_results = keep_results};
    struct winnow *w = NULL;

    if (winnow_connect(&w, s->clients, &o) != WINNOW_OK) fail_msg("%s", winnow_error(NULL));
    return w;
}
