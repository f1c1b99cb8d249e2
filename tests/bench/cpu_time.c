/* tests/bench/cpu_time.c - see cpu_time.h. The kernel counts a thread's time in ns in /proc/PID/task/TID/schedstat. */
#include "tests/bench/cpu_time.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tests/processes.h"

const char *const cpu_work_names[CPU_WORKS] = {"client", "scheduler", "messages", "compute", "vision"};

static const struct {
    const char *name; /* of the component */
    int work;
} components[] = {{"scheduler", CPU_SCHEDULER}, {"replica-0", CPU_COMPUTE}, {"vision-0", CPU_VISION}};

/* The first line of one of the thread's files that begins with `label`, without it. */
static bool read_line(const char *task, const char *file, const char *label, char *out, int room)
{
    char path[320], line[256];
    bool found = false;
    FILE *f;

    snprintf(path, sizeof(path), "%s/%s", task, file);
    if (!(f = fopen(path, "r"))) return false;
    while (!found && fgets(line, sizeof(line), f))
        if ((found = strncmp(line, label, strlen(label)) == 0)) snprintf(out, (size_t)room, "%s", line + strlen(label));
    fclose(f);
    return found;
}

static void add_thread(const char *task, int work, struct cpu_time *out)
{
    char name[32] = "", text[256];
    unsigned long long ns = 0, n = 0;

    (void)read_line(task, "comm", "", name, sizeof(name));
    if (work == CPU_COMPUTE && (strncmp(name, "front", 5) == 0 || strncmp(name, "ZMQ", 3) == 0)) work = CPU_MESSAGES;
    if (read_line(task, "schedstat", "", text, sizeof(text)) && sscanf(text, "%llu", &ns) == 1)
        out->us[work] += (double)ns / 1e3;
    if (read_line(task, "status", "voluntary_ctxt_switches:", text, sizeof(text)) && sscanf(text, "%llu", &n) == 1)
        out->switches[work] += n;
    if (read_line(task, "status", "nonvoluntary_ctxt_switches:", text, sizeof(text)) && sscanf(text, "%llu", &n) == 1)
        out->switches[work] += n;
}

static void add_process(pid_t pid, int work, struct cpu_time *out)
{
    char path[64], task[320];
    struct dirent *e;
    DIR *d;

    snprintf(path, sizeof(path), "/proc/%d/task", pid);
    d = opendir(path);
    while (d && (e = readdir(d)) != NULL) {
        if (e->d_name[0] == '.') continue;
        snprintf(task, sizeof(task), "%s/%s", path, e->d_name);
        add_thread(task, work, out);
    }
    if (d) closedir(d);
}

void cpu_time_read(const char *run_dir, struct cpu_time *out)
{
    pid_t pids[64];

    memset(out, 0, sizeof(*out));
    add_process(getpid(), CPU_CLIENT, out);
    for (size_t i = 0; i < sizeof(components) / sizeof(components[0]); i++) {
        const int n = processes_of(run_dir, components[i].name, false, pids, 64);
        for (int k = 0; k < n; k++) add_process(pids[k], components[i].work, out);
    }
}
