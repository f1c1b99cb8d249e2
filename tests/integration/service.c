/* tests/integration/service.c - see service.h. */
#include "tests/integration/service.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/file_read.h"
#include "tests/processes.h"
#include "tests/scratch.h"

#define READY_S 60
#define STOP_S  40

double now_s(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* The ready line has the address; everything else is passed on. */
static bool read_ready(struct service *s)
{
    const double until = now_s() + READY_S;
    char line[512];
    size_t n = 0;

    while (now_s() < until && n < sizeof(line) - 1) {
        struct pollfd p = {.fd = s->out, .events = POLLIN};
        const char *at;
        if (poll(&p, 1, 200) <= 0) continue;
        if (read(s->out, line + n, 1) != 1) return false;
        line[++n] = '\0';
        if (line[n - 1] != '\n') continue;
        at = strstr(line, "ready at ");
        if (at && sscanf(at, "ready at %127s", s->endpoint) == 1) return true;
        n = 0;
    }
    return false;
}

void service_start(struct service *s, const char *model, const char *const *flags)
{
    const char *elsewhere = getenv("WN_TEST_WINNOWD"); /* a test that was built on another machine */
    const char *argv[40] = {elsewhere ? elsewhere : WN_TEST_WINNOWD, "serve", model, "--port=0"};
    char run[96];
    int n = 4, pipes[2];
    const double began = now_s();

    memset(s, 0, sizeof(*s));
    assert_true(scratch_make(s->run_dir, sizeof(s->run_dir), "service"));
    snprintf(run, sizeof(run), "--run-dir=%s", s->run_dir);
    argv[n++] = run;
    for (int i = 0; flags && flags[i]; i++) argv[n++] = flags[i];
    argv[n] = NULL;
    assert_int_equal(pipe(pipes), 0);
    s->pid = fork();
    if (s->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGTERM); /* a test that is killed leaves no service behind */
        dup2(pipes[1], STDOUT_FILENO);
        close(pipes[0]);
        close(pipes[1]);
        execv(argv[0], (char **)(uintptr_t)argv);
        _exit(127);
    }
    close(pipes[1]);
    s->out = pipes[0];
    if (!read_ready(s)) {
        service_stop(s);
        fail_msg("the service did not become ready in %d s", READY_S);
    }
    s->ready_s = now_s() - began;
}

int service_pids(const struct service *s, const char *name, pid_t *pids, int max)
{
    return processes_of(s->run_dir, name, false, pids, max);
}

int service_stop(struct service *s)
{
    const double until = now_s() + STOP_S;
    pid_t left[64];
    int status = 0, n;

    if (s->pid <= 0) return 0; /* it was never started: 0 would mean every process of the group */
    kill(s->pid, SIGTERM);
    while (waitpid(s->pid, &status, WNOHANG) == 0) {
        if (now_s() > until) {
            kill(s->pid, SIGKILL);
            waitpid(s->pid, &status, 0);
            status = -1;
            break;
        }
        usleep(20000);
    }
    close(s->out);
    for (int i = 0; i < 100 && (n = service_pids(s, NULL, left, 64)) > 0; i++) usleep(20000);
    if (n > 0) {
        for (int i = 0; i < n; i++) kill(left[i], SIGKILL);
        fail_msg("%d processes of the service were left", n);
    }
    (void)!scratch_remove(s->run_dir); /* its sockets: a service removes a folder that it has made itself */
    return status == -1 || !WIFEXITED(status) ? -1 : WEXITSTATUS(status);
}

void *read_file(const char *path, size_t *bytes)
{
    void *data = file_read(path, bytes);

    if (!data) fail_msg("%s cannot be read", path);
    return data;
}

int service_stages(struct winnow *w, struct stage_time *out, int max)
{
    char *json = winnow_status_json(w, 10000), *at, *end;
    int n = 0;

    if (!json) fail_msg("status: %s", winnow_error(w));
    at = strstr(json, "\"stages\": [");
    end = at ? strchr(at, ']') : NULL;
    while (end && n < max && (at = strstr(at, "\"busy_us\": ")) != NULL && at < end) {
        out[n].busy_us = strtod(at + strlen("\"busy_us\": "), &at);
        out[n].wait_us = strtod(at + strlen(", \"wait_us\": "), &at);
        out[n++].link_us = strtod(at + strlen(", \"link_us\": "), &at);
    }
    free(json);
    return n;
}

void service_says(struct winnow *w, const char *text)
{
    char *json = winnow_status_json(w, 10000);

    if (!json || !strstr(json, text)) fail_msg("the status has no '%s': %s", text, json ? json : winnow_error(w));
    free(json);
}

enum winnow_event_type ask(struct winnow *w, const void *image, size_t image_bytes,
                           const char *question, char **answer, struct winnow_usage *usage)
{
    const struct winnow_image im = {.data = image, .bytes = image_bytes};
    const struct winnow_request q = {
        .prompt = question, .images = image ? &im : NULL, .images_n = image ? 1 : 0};
    struct winnow_event ev;
    uint64_t job = 0;

    *answer = NULL;
    if (winnow_submit(w, &q, &job) != WINNOW_OK) {
        *answer = strdup(winnow_error(w));
        return WINNOW_EVENT_ERROR;
    }
    for (;;) {
        const int rc = winnow_next(w, &ev, 60000);
        if (rc != WINNOW_OK) fail_msg("no answer to '%s': %s", question, winnow_error(w));
        if (ev.job != job) continue;
        if (ev.type != WINNOW_EVENT_DONE && ev.type != WINNOW_EVENT_ERROR &&
            ev.type != WINNOW_EVENT_BUSY)
            continue;
        if (ev.text) *answer = strdup(ev.text);
        if (usage) *usage = ev.usage;
        return ev.type;
    }
}
