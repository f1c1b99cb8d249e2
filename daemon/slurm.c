/* daemon/slurm.c - see slurm.h. */
#include "daemon/slurm.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "daemon/launcher.h"
#include "shard/jsonfile.h"

#define END_MARGIN_S 15 /* between the end of draining and Slurm's SIGTERM */
#define ASK_US       5000000ll
#define NODES_TEXT_MAX 65536

/* ---- the environment ---- */

static const char *env(const char *name)
{
    const char *v = getenv(name);
    return v ? v : "";
}

bool wn_slurm_inside(void)
{
    return env("SLURM_JOB_ID")[0] && env("SLURM_JOB_NODELIST")[0];
}

static wn_status read_number(const char *name, int64_t *out, struct wn_err *err)
{
    const char *text = env(name);
    char *end;

    *out = 0;
    if (!text[0]) return WN_OK;
    errno = 0;
    *out = strtoll(text, &end, 10);
    if (errno || *end || *out < 0) return wn_fail(err, WN_EFORMAT, "%s: '%.40s' is not a number", name, text);
    return WN_OK;
}

wn_status wn_slurm_open(struct wn_slurm *s, struct wn_err *err)
{
    const char *job = env("SLURM_JOB_ID");
    int64_t restarts = 0;
    wn_status rc;

    if (strlen(job) >= sizeof(s->job) || job[strspn(job, "0123456789")])
        return wn_fail(err, WN_EFORMAT, "SLURM_JOB_ID: '%.40s' is not a job's number", job);
    memcpy(s->job, job, strlen(job) + 1);
    if ((rc = read_number("SLURM_JOB_END_TIME", &s->end_s, err)) != WN_OK) return rc;
    if ((rc = read_number("SLURM_RESTART_COUNT", &restarts, err)) != WN_OK) return rc;
    s->restarts = restarts < UINT32_MAX ? (uint32_t)restarts : UINT32_MAX;
    return wn_nodelist_expand(&s->nodes, env("SLURM_JOB_NODELIST"), err);
}

int64_t wn_slurm_drain_us(const struct wn_slurm *s, uint32_t grace_s)
{
    const int64_t left_s = s->end_s - (int64_t)time(NULL), margin_s = (int64_t)grace_s + END_MARGIN_S;

    if (!s->end_s) return WN_NEVER;
    /* a job that is hardly longer than the margin works for half of its time */
    return wn_deadline_in_us((left_s > 2 * margin_s ? left_s - margin_s : left_s / 2) * 1000000);
}

/* What a command writes, its errors too, as far as it fits and comes in time. */
static void output_of(char **argv, char *out, size_t size)
{
    const int64_t until = wn_deadline_in_us(ASK_US);
    struct pollfd p = {.events = POLLIN};
    int ends[2];
    size_t n = 0;
    ssize_t got = 1;
    pid_t pid;

    out[0] = '\0';
    if (pipe2(ends, O_CLOEXEC) != 0) return;
    if (wn_launcher_spawn(argv, SIGKILL, ends[1], &pid, NULL) == WN_OK) {
        close(ends[1]);
        p.fd = ends[0];
        while (got > 0 && n + 1 < size && poll(&p, 1, (int)((until - wn_now_us()) / 1000)) > 0) {
            got = read(ends[0], out + n, size - 1 - n);
            if (got > 0) n += (size_t)got;
            if (wn_deadline_passed(until)) break;
        }
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
    } else {
        close(ends[1]);
    }
    close(ends[0]);
    out[n] = '\0';
}

bool wn_slurm_ask_end(struct wn_slurm *s)
{
    /* seconds, whatever form of times the user likes to see */
    char *argv[] = {"env", "SLURM_TIME_FORMAT=%s", "squeue", "--noheader", "--jobs", s->job, "--format=%e", NULL};
    char text[64], *end;
    int64_t said;

    output_of(argv, text, sizeof(text));
    said = strtoll(text, &end, 10);
    if (end == text || *end != '\n' || said <= s->end_s) return false; /* "NONE": for ever */
    s->end_s = said;
    return true;
}

bool wn_slurm_ask_lost(const struct wn_slurm *s, bool *lost)
{
    char *argv[] = {"squeue", "--noheader", "--jobs", (char *)(uintptr_t)s->job, "--format=%N", NULL};
    struct wn_nodelist left = {0};
    char *text = malloc(NODES_TEXT_MAX);
    bool some = false;

    if (text) output_of(argv, text, NODES_TEXT_MAX);
    if (text) text[strcspn(text, "\n")] = '\0';
    if (text && text[0] && strlen(text) < NODES_TEXT_MAX - 1 &&
        wn_nodelist_expand(&left, text, NULL) == WN_OK && left.n > 0 &&
        wn_nodelist_find(&s->nodes, left.names[0]) < s->nodes.n) { /* a list, and no complaint of squeue's */
        for (size_t i = 0; i < s->nodes.n; i++) {
            lost[i] = wn_nodelist_find(&left, s->nodes.names[i]) == left.n;
            some = some || lost[i];
        }
    }
    wn_nodelist_fini(&left);
    free(text);
    return some;
}

uint32_t wn_slurm_local_tasks(void)
{
    uint32_t n = 1;
    int64_t node;

    if (!env("SLURM_STEP_TASKS_PER_NODE")[0] || read_number("SLURM_NODEID", &node, NULL) != WN_OK) return 1;
    return wn_nodelist_count(env("SLURM_STEP_TASKS_PER_NODE"), (size_t)node, &n, NULL) == WN_OK ? n : 1;
}

/* ---- where things go ---- */

static struct wn_layout_ask layout_ask(const struct wn_config *cfg, uint32_t stages, uint32_t tensors)
{
    return (struct wn_layout_ask){
        .vision_workers = cfg->vision_workers, .replicas = cfg->replicas, .stages = stages, .tensors = tensors};
}

static wn_status make_layout(struct wn_slurm *s, const struct wn_config *cfg, uint32_t stages, uint32_t tensors,
                             struct wn_err *err)
{
    const struct wn_layout_ask ask = layout_ask(cfg, stages, tensors);
    char *text = NULL;
    size_t n = 0;
    wn_status rc;

    if (strcmp(cfg->layout, "auto") == 0) return wn_layout_auto(&s->layout, &ask, (uint32_t)s->nodes.n, err);
    if ((rc = wn_file_read(&text, &n, cfg->layout, WN_LAYOUT_FILE_MAX, err)) != WN_OK)
        return wn_err_prefix(err, "--layout");
    rc = strlen(text) == n ? wn_layout_parse(&s->layout, &ask, &s->nodes, cfg->layout, text, err)
                           : wn_fail(err, WN_EFORMAT, "%s: not a text file", cfg->layout);
    free(text);
    return rc;
}

/* Is that node this one? Slurm's names may be short where the host's is long. */
static bool on_node(const char *node)
{
    char host[256] = "";
    const size_t n = strlen(node);

    if (strcmp(env("SLURMD_NODENAME"), node) == 0) return true;
    gethostname(host, sizeof(host) - 1);
    return strncmp(host, node, n) == 0 && (host[n] == '\0' || host[n] == '.');
}

uint32_t wn_slurm_ranks_here(const struct wn_config *cfg)
{
    const uint32_t stages = cfg->pipeline_parallel_size, tensors = cfg->tensor_parallel_size;
    const uint32_t tasks = wn_slurm_local_tasks();
    struct wn_slurm s = {0};
    uint32_t n = 0;

    if (wn_slurm_inside() && wn_slurm_open(&s, NULL) == WN_OK && make_layout(&s, cfg, stages, tensors, NULL) == WN_OK)
        for (uint32_t i = 0; i < cfg->replicas * stages * tensors; i++)
            n += on_node(s.nodes.names[s.layout.rank[i]]);
    wn_slurm_close(&s);
    return n > tasks ? n : tasks;
}

/* *port 0: any that is free. The socket keeps it until it is closed. */
static wn_status hold_port(const char *address, uint32_t *port, int *fd, struct wn_err *err)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)*port)};
    socklen_t len = sizeof(a);
    const int old = *port != 0; /* a port that was named may have served a moment ago */

    inet_pton(AF_INET, address, &a.sin_addr);
    *fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (*fd >= 0) setsockopt(*fd, SOL_SOCKET, SO_REUSEADDR, &old, sizeof(old));
    if (*fd < 0 || bind(*fd, (struct sockaddr *)&a, sizeof(a)) != 0 ||
        getsockname(*fd, (struct sockaddr *)&a, &len) != 0)
        return wn_fail(err, WN_EIO, "tcp://%s:%u: %s", address, *port, strerror(errno));
    *port = ntohs(a.sin_port);
    return WN_OK;
}

/* Two ports: held together, so that they are not one. */
static wn_status free_ports(const char *address, uint32_t *clients, uint32_t *workers, struct wn_err *err)
{
    int held[2] = {-1, -1};
    wn_status rc;

    *workers = 0;
    rc = hold_port(address, clients, &held[0], err);
    if (rc == WN_OK) rc = hold_port(address, workers, &held[1], err);
    for (int i = 0; i < 2; i++)
        if (held[i] >= 0) close(held[i]);
    return rc;
}

static wn_status set(struct wn_config *cfg, const char *name, const char *value, struct wn_err *err)
{
    const struct wn_option *o = wn_config_find(name);

    if (cfg->source[o - wn_options] != WN_FROM_DEFAULT) return WN_OK;
    return wn_config_set(cfg, o, value, WN_FROM_FLAG, name, err);
}

/* The interface that the other nodes and the clients reach: the one towards another node. A job of one node, and names
 * that only Slurm knows, leave the host that the job came from. A host's own name is the last choice: many a host takes
 * it for loopback. */
static wn_status scheduler_netif(struct wn_slurm *s, const struct wn_config *cfg, struct wn_err *err)
{
    const char *const towards[] = {s->nodes.n > 1 ? s->nodes.names[1] : "", env("SLURM_SUBMIT_HOST"),
                                   s->nodes.names[0]};
    wn_status rc = WN_OK; /* the first reason is the best one */

    for (int i = 0; i < 3; i++) {
        struct wn_netif net = {0};
        struct wn_err why = {0};
        if (!towards[i][0]) continue;
        if (wn_netif_choose(&net, cfg->interface, towards[i], &why) == WN_OK) {
            s->net = net;
            if (strncmp(net.address, "127.", 4) != 0) return WN_OK;
        } else if (rc == WN_OK) {
            rc = wn_fail(err, why.code, "%s", why.text);
        }
    }
    if (!s->net.name[0]) return rc;
    wn_warn("slurm", "on %s only loopback is known: nobody on another host reaches this service; see --interface",
            s->nodes.names[0]);
    return WN_OK;
}

/* The scheduler's addresses. This process usually runs on its node, and can look for free ports; else (salloc on a
 * login node) they are --port and the next. */
static wn_status set_addresses(struct wn_slurm *s, struct wn_config *cfg, struct wn_err *err)
{
    const char *first = s->nodes.names[0];
    char text[WN_TEXT_LEN], address[WN_NETIF_ADDRESS_LEN];
    uint32_t workers_port = cfg->port + 1;
    wn_status rc;

    s->here = on_node(first);
    if (s->here) {
        if ((rc = scheduler_netif(s, cfg, err)) != WN_OK) return rc;
        memcpy(address, s->net.address, sizeof(address));
        if ((rc = free_ports(address, &cfg->port, &workers_port, err)) != WN_OK) return rc;
    } else {
        if (cfg->port == 0)
            return wn_fail(err, WN_EINVAL, "--port 0 wants winnow serve to run on the job's first node, %s", first);
        if ((rc = wn_netif_resolve(address, first, err)) != WN_OK) return rc;
    }
    if ((rc = set(cfg, "host", address, err)) != WN_OK) return rc;
    snprintf(text, sizeof(text), "tcp://%s:%u", address, workers_port);
    return set(cfg, "scheduler-endpoint", text, err);
}

wn_status wn_slurm_place(struct wn_slurm *s, struct wn_config *cfg, uint32_t stages, uint32_t tensors,
                         struct wn_err *err)
{
    wn_status rc = make_layout(s, cfg, stages, tensors, err);

    if (env("SLURM_HET_SIZE")[0])
        wn_warn("slurm", "job %s is heterogeneous: the %zu nodes of this component are used", s->job, s->nodes.n);
    return rc == WN_OK ? set_addresses(s, cfg, err) : rc;
}

void wn_slurm_print(const struct wn_slurm *s, const struct wn_config *cfg, uint32_t stages, uint32_t tensors, FILE *f)
{
    const struct wn_layout_ask ask = layout_ask(cfg, stages, tensors);

    fprintf(f, "winnow: job %s, run %u: scheduler on %s at %s", s->job, s->restarts + 1, s->nodes.names[0], cfg->host);
    if (s->net.name[0]) fprintf(f, ", interface %s", s->net.name);
    fprintf(f, "; of %zu nodes\n", s->nodes.n);
    wn_layout_print(f, "winnow:   ", &s->layout, &ask, &s->nodes);
}

/* ---- the file that clients look for ---- */

static wn_status make_folder(char out[WN_PATH_LEN], struct wn_err *err)
{
    static const char *const parts[] = {"/.winnow", "/slurm"};
    const char *home = env("HOME");
    size_t n = (size_t)snprintf(out, WN_PATH_LEN, "%s", home);

    if (home[0] != '/' || n + 64 >= WN_PATH_LEN) return wn_fail(err, WN_EINVAL, "HOME '%.80s' is no folder", home);
    for (int i = 0; i < 2; i++) {
        n += (size_t)snprintf(out + n, WN_PATH_LEN - n, "%s", parts[i]);
        if (mkdir(out, 0700) != 0 && errno != EEXIST)
            return wn_fail(err, WN_EIO, "%s: %s", out, strerror(errno));
    }
    return WN_OK;
}

void wn_slurm_forget(const struct wn_slurm *s)
{
    char path[WN_PATH_LEN];
    const int n = snprintf(path, sizeof(path), "%s/.winnow/slurm/%s", env("HOME"), s->job);

    if (n > 0 && (size_t)n < sizeof(path) && path[0] == '/') unlink(path);
}

/* Written aside and renamed: a client never reads half of it. */
wn_status wn_slurm_publish(struct wn_slurm *s, const char *endpoint, const char *key_file, struct wn_err *err)
{
    char folder[WN_PATH_LEN], path[WN_PATH_LEN + 64], aside[WN_PATH_LEN + 64], host[256] = "";
    wn_status rc = make_folder(folder, err);
    int fd, n;

    if (rc != WN_OK) return rc;
    gethostname(host, sizeof(host) - 1);
    snprintf(path, sizeof(path), "%s/%s", folder, s->job);
    snprintf(aside, sizeof(aside), "%s/.%s.%d", folder, s->job, (int)getpid());
    if (strlen(path) >= sizeof(s->file)) return wn_fail(err, WN_ELIMIT, "%s: too long", path);
    fd = open(aside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) return wn_fail(err, WN_EIO, "%s: %s", aside, strerror(errno));
    n = dprintf(fd, "endpoint: %s\n", endpoint);
    if (n > 0 && strncmp(endpoint, "tcp://127.", 10) == 0) n = dprintf(fd, "only on: %s\n", host);
    if (n > 0 && key_file[0]) n = dprintf(fd, "key: %s\n", key_file);
    if (close(fd) != 0 || n < 0 || rename(aside, path) != 0) {
        rc = wn_fail(err, WN_EIO, "%s: %s", path, strerror(errno));
        unlink(aside);
        return rc;
    }
    memcpy(s->file, path, strlen(path) + 1);
    return WN_OK;
}

void wn_slurm_close(struct wn_slurm *s)
{
    if (s->file[0]) unlink(s->file);
    wn_layout_fini(&s->layout);
    wn_nodelist_fini(&s->nodes);
    *s = (struct wn_slurm){0};
}
