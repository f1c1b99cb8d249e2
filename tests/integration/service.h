/* tests/integration/service.h - a real `winnowd serve` as a child of the test: started on a free port, stopped
 * in order. Owns: the process and its output pipe, from start to stop. Threads: one. */
#ifndef WN_TESTS_SERVICE_H
#define WN_TESTS_SERVICE_H

#include <stdbool.h>
#include <sys/types.h>

#include "client/winnow.h"

struct service {
    pid_t pid;
    int out; /* its standard output */
    char endpoint[128];
    char run_dir[64];
    double ready_s;
};

/* Starts "winnowd serve MODEL flags..." (NULL-terminated) and waits for its ready line; fails the test if none
 * comes. */
void service_start(struct service *s, const char *model, const char *const *flags);

/* SIGTERM; returns the exit code, or -1 if it had to be killed. No process of the service is left. */
int service_stop(struct service *s);

/* Process ids of a component's processes by its --name ("vision-0"), without mpirun itself; returns how many. */
int service_pids(const struct service *s, const char *name, pid_t *pids, int max);

/* What `winnow status` says of the first replica's stages, since its start. */
struct stage_time {
    double busy_us, wait_us, link_us;
};

/* Returns how many stages have reported. */
int service_stages(struct winnow *w, struct stage_time *out, int max);

void service_says(struct winnow *w, const char *text); /* in its status, as JSON */

/* Seconds of a clock that only goes on. */
double now_s(void);

/* As file_read; fails the test if it cannot be read. */
void *read_file(const char *path, size_t *bytes);

/* Asks one question and waits for the end. Returns the event type; *answer (free it) is the answer or the error
 * text. */
enum winnow_event_type ask(struct winnow *w, const void *image, size_t image_bytes, const char *question,
                           char **answer, struct winnow_usage *usage);

#endif
