/* daemon/slurm.c - see slurm.h. */
#include "daemon/slurm.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "daemon/netif.h"
#include "shard/jsonfile.h"

#define END_MARGIN_S 15 /* between the end of draining and Slurm's SIGTERM */

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

uint32_t wn_slurm_local_tasks(void)
{
    uint32_t n = 1;
    int64_t node;

    if (!env("SLURM_STEP_TASKS_PER_NODE")[0] || read_number("SLURM_NODEID", &node, NULL) != WN_OK) return 1;
    return wn_nodelist_count(env("SLURM_STEP_TASKS_PER_NODE"), (size_t)node, &n, NULL) == WN_OK ? n : 1;
}

/* ---- where things go ---- */

static wn_status make_layout(struct wn_slurm *s, const struct wn_config *cfg, uint32_t stages, uint32_t tensors,
                             struct wn_err *err)
{
    const struct wn_layout_ask ask = {.vision_workers = cfg->vision_workers, .replicas = cfg->replicas,
                                      .stages = stages, .tensors = tensors};
    char *text = NULL;
    size_t n = 0;
    wn_status rc;

    if (strcmp(cfg->layout, "auto") == 0) return wn_layout_auto(&s->layout, &ask, (uint32_t)s->nodes.n, err);
    if ((rc = wn_file_read(&text, &n, cfg->layout, WN_LAYOUT_FILE_MAX, err)) != WN_OK) return rc;
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

static wn_status free_port(const char *address, uint32_t *port, struct wn_err *err)
{
    struct sockaddr_in a = {.sin_family = AF_INET};
    socklen_t len = sizeof(a);
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    wn_status rc = WN_OK;

    inet_pton(AF_INET, address, &a.sin_addr);
    if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof(a)) != 0 || getsockname(fd, (struct sockaddr *)&a, &len) != 0)
        rc = wn_fail(err, WN_EIO, "tcp://%s: %s", address, strerror(errno));
    *port = ntohs(a.sin_port);
    if (fd >= 0) close(fd);
    return rc;
}

static wn_status set(struct wn_config *cfg, const char *name, const char *value, struct wn_err *err)
{
    const struct wn_option *o = wn_config_find(name);

    if (cfg->source[o - wn_options] != WN_FROM_DEFAULT) return WN_OK;
    return wn_config_set(cfg, o, value, WN_FROM_FLAG, name, err);
}

/* The scheduler's addresses. This process usually runs on its node, and can look for free ports; else (salloc on a
 * login node) they are --port and the next. */
static wn_status set_addresses(struct wn_slurm *s, struct wn_config *cfg, struct wn_err *err)
{
    const char *first = s->nodes.names[0], *other = s->nodes.n > 1 ? s->nodes.names[1] : first;
    char text[WN_TEXT_LEN];
    struct wn_netif net = {0};
    uint32_t workers_port = cfg->port + 1;
    wn_status rc;

    s->here = on_node(first);
    if (s->here) {
        if ((rc = wn_netif_choose(&net, cfg->interface, other, err)) != WN_OK) return rc;
        if ((rc = free_port(net.address, &workers_port, err)) != WN_OK) return rc;
        wn_info("slurm", "scheduler on %s, interface %s (%s)", first, net.name, net.address);
    } else {
        if (cfg->port == 0)
            return wn_fail(err, WN_EINVAL, "--port 0 wants winnow serve to run on the job's first node, %s", first);
        if ((rc = wn_netif_resolve(net.address, first, err)) != WN_OK) return rc;
    }
    if ((rc = set(cfg, "host", net.address, err)) != WN_OK) return rc;
    snprintf(text, sizeof(text), "tcp://%s:%u", net.address, workers_port);
    return set(cfg, "scheduler-endpoint", text, err);
}

wn_status wn_slurm_place(struct wn_slurm *s, struct wn_config *cfg, uint32_t stages, uint32_t tensors,
                         struct wn_err *err)
{
    const uint32_t ranks = stages * tensors;
    wn_status rc = make_layout(s, cfg, stages, tensors, err);

    if (rc != WN_OK) return rc;
    for (uint32_t i = 0; i < cfg->vision_workers; i++)
        wn_info("slurm", "vision-%u on %s", i, s->nodes.names[s->layout.vision[i]]);
    for (uint32_t i = 0; i < cfg->replicas * ranks; i++)
        wn_info("slurm", "replica-%u rank %u on %s", i / ranks, i % ranks, s->nodes.names[s->layout.rank[i]]);
    return set_addresses(s, cfg, err);
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

/* Written aside and renamed: a client never reads half of it. */
wn_status wn_slurm_publish(struct wn_slurm *s, const char *endpoint, const char *key_file, struct wn_err *err)
{
    char folder[WN_PATH_LEN], path[WN_PATH_LEN + 64], aside[WN_PATH_LEN + 64];
    wn_status rc = make_folder(folder, err);
    int fd, n;

    if (rc != WN_OK) return rc;
    snprintf(path, sizeof(path), "%s/%s", folder, s->job);
    snprintf(aside, sizeof(aside), "%s/.%s.%d", folder, s->job, (int)getpid());
    if (strlen(path) >= sizeof(s->file)) return wn_fail(err, WN_ELIMIT, "%s: too long", path);
    fd = open(aside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) return wn_fail(err, WN_EIO, "%s: %s", aside, strerror(errno));
    n = dprintf(fd, "endpoint: %s\n", endpoint);
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
