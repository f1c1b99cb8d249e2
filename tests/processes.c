/* tests/processes.c - see processes.h. */
#include "tests/processes.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool matches(const char *pid, const char *run_dir, const char *name, bool mpirun)
{
    char path[300], text[8192], run[256], named[128];
    bool in_run = false, has_name = name == NULL;
    size_t n;
    FILE *f;

    snprintf(path, sizeof(path), "/proc/%s/cmdline", pid);
    if (!(f = fopen(path, "rb"))) return false;
    n = fread(text, 1, sizeof(text) - 1, f);
    fclose(f);
    text[n] = '\0';
    if (name && !strstr(text, mpirun ? "mpirun" : "winnowd")) return false; /* both have the flags */
    snprintf(run, sizeof(run), "--run-dir=%s", run_dir);
    snprintf(named, sizeof(named), "--name=%s", name ? name : "");
    for (size_t i = 0; i < n; i += strlen(text + i) + 1) {
        in_run = in_run || strcmp(text + i, run) == 0;
        has_name = has_name || strcmp(text + i, named) == 0;
    }
    return in_run && has_name;
}

static int by_number(const void *a, const void *b)
{
    return *(const pid_t *)a - *(const pid_t *)b;
}

int processes_of(const char *run_dir, const char *name, bool mpirun, pid_t *pids, int max)
{
    DIR *d = opendir("/proc");
    struct dirent *e;
    int n = 0;

    while (d && (e = readdir(d)) != NULL && n < max)
        if (e->d_name[0] >= '1' && e->d_name[0] <= '9' && matches(e->d_name, run_dir, name, mpirun))
            pids[n++] = (pid_t)strtol(e->d_name, NULL, 10);
    if (d) closedir(d);
    qsort(pids, (size_t)n, sizeof(*pids), by_number);
    return n;
}
