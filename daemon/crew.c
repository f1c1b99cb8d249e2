/* daemon/crew.c - see crew.h. */
#include "daemon/crew.h"

#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "daemon/access.h"
#include "daemon/netif.h"
#include "daemon/roles.h"
#include "daemon/worker.h"

#define EXTRA_ARGS 8 /* what add_part puts around the flags, and a NULL */

/* What would be overlooked where everything runs here. */
static wn_status check_local(const struct wn_config *cfg, struct wn_err *err)
{
    if (strcmp(cfg->layout, "auto") != 0)
        return wn_fail(err, WN_EINVAL,
                       "--layout %s: everything runs on this machine; --launcher slurm, in a job, uses its nodes",
                       cfg->layout);
    if (cfg->interface[0] && !if_nametoindex(cfg->interface))
        return wn_fail(err, WN_EINVAL, "--interface %s: this machine has no such network", cfg->interface);
    return WN_OK;
}

wn_status wn_crew_place(struct wn_crew *c, struct wn_err *err)
{
    const enum wn_config_launcher how = (enum wn_config_launcher)c->cfg->launcher;
    const bool inside = wn_slurm_inside();
    wn_status rc;

    c->launcher = &wn_launcher_local;
    if (!inside && how == WN_CONFIG_LAUNCHER_SLURM)
        return wn_fail(err, WN_EINVAL, "--launcher slurm: this is no Slurm job");
    if (inside && (rc = wn_slurm_open(&c->slurm, err)) != WN_OK) return rc;
    if (!inside || how == WN_CONFIG_LAUNCHER_LOCAL || (how == WN_CONFIG_LAUNCHER_AUTO && c->slurm.nodes.n == 1))
        return check_local(c->cfg, err);
    c->launcher = &wn_launcher_slurm;
    return wn_slurm_place(&c->slurm, c->cfg, c->plan->stages, c->plan->tensors, err);
}

/* --host as numbers, for ZeroMQ listens at nothing else: of an interface, or of a name of this machine. */
static wn_status resolve_host(struct wn_config *cfg, struct wn_err *err)
{
    struct wn_netif net = {0};
    struct in_addr numbers;
    wn_status rc;

    if (strcmp(cfg->host, "*") == 0 || inet_pton(AF_INET, cfg->host, &numbers) == 1) return WN_OK;
    rc = if_nametoindex(cfg->host) ? wn_netif_choose(&net, cfg->host, "", err)
                                   : wn_netif_resolve(net.address, cfg->host, err);
    if (rc != WN_OK) return wn_err_prefix(err, "--host %s", cfg->host);
    snprintf(cfg->host, sizeof(cfg->host), "%s", net.address);
    return wn_config_check_reach(cfg, err);
}

wn_status wn_crew_choose_port(struct wn_crew *c, struct wn_err *err)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)c->cfg->port)};
    socklen_t len = sizeof(a);
    const int one = 1;
    int fd = -1;
    wn_status rc;

    if (c->launcher == &wn_launcher_slurm && !c->slurm.here) return WN_OK;
    if ((rc = resolve_host(c->cfg, err)) != WN_OK) return rc;
    (void)inet_pton(AF_INET, c->cfg->host, &a.sin_addr); /* "*" is any */
    fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return wn_fail(err, WN_EIO, "socket: %s", strerror(errno));
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (bind(fd, (struct sockaddr *)&a, sizeof(a)) != 0 || getsockname(fd, (struct sockaddr *)&a, &len) != 0)
        rc = wn_fail(err, WN_EIO, "tcp://%s:%u: %s", c->cfg->host, c->cfg->port, strerror(errno));
    else
        c->cfg->port = ntohs(a.sin_port);
    close(fd);
    return rc;
}

wn_status wn_crew_check_keys(const struct wn_crew *c, struct wn_err *err)
{
    struct wn_access *access = NULL;
    struct wn_key *key = NULL;
    wn_status rc;

    if ((rc = wn_config_check_reach(c->cfg, err)) != WN_OK || !c->cfg->keys[0]) return rc;
    if ((rc = wn_access_open(&access, c->cfg->keys, err)) != WN_OK) return rc;
    rc = wn_worker_key(c->cfg, &key, err);
    if (rc == WN_OK && strcmp(key->server_key, access->self->public_key) != 0)
        rc = wn_fail(err, WN_EAUTH, "%s: worker.key is for another server than server.key is", c->cfg->keys);
    if (rc == WN_OK && !wn_access_find(access, key->public_key))
        rc = wn_fail(err, WN_EAUTH, "%s: worker.key is not in the file authorized", c->cfg->keys);
    wn_key_close(key);
    wn_access_close(access);
    return rc;
}

void wn_crew_client_address(const struct wn_crew *c, char *out, size_t size)
{
    const char *host = c->cfg->host;

    if (strcmp(host, "0.0.0.0") == 0 || strcmp(host, "*") == 0) host = "127.0.0.1";
    snprintf(out, size, "tcp://%s:%u", host, c->cfg->port);
}

static wn_status make_run_dir(struct wn_crew *c, struct wn_err *err)
{
    const char *base = getenv("XDG_RUNTIME_DIR");
    char *dir = c->cfg->run_dir;
    const unsigned ranks = c->plan->stages * c->plan->tensors;
    size_t shared = 0;
    wn_status rc;

    if (ranks > 1 && c->launcher == &wn_launcher_local) shared = wn_launcher_memory(c->cfg->replicas * ranks);
    rc = wn_run_dir_open(&c->run, dir, base && access(base, W_OK) == 0 ? base : "/tmp", "/dev/shm", shared, err);
    if (rc == WN_OK) snprintf(dir, sizeof(c->cfg->run_dir), "%s", c->run.files.path);
    return rc;
}

/* Names the nodes of a part's ranks. */
static wn_status add_nodes(struct wn_crew *c, struct wn_crew_part *p, const uint32_t *index, struct wn_err *err)
{
    if (c->launcher != &wn_launcher_slurm) return WN_OK;
    p->nodes = calloc(p->ranks, sizeof(*p->nodes));
    if (!p->nodes) return wn_fail(err, WN_ENOMEM, "nodes of %s", p->name);
    for (unsigned i = 0; i < p->ranks; i++) p->nodes[i] = c->slurm.nodes.names[index ? index[i] : 0];
    return WN_OK;
}

/* argv: program, role, flags that differ from their defaults, and what only this process knows. */
static wn_status add_part(struct wn_crew *c, const char *role, const char *name, unsigned ranks,
                          const uint32_t *nodes, struct wn_err *err)
{
    struct wn_crew_part *p = &c->parts[c->parts_n];
    char **flags = NULL;
    size_t n = 0;
    wn_status rc = wn_config_flags(c->cfg, &flags, &n, EXTRA_ARGS, err);

    if (rc != WN_OK) return rc;
    snprintf(p->name, sizeof(p->name), "%s", name);
    p->flags = flags;
    p->argv = calloc(n + EXTRA_ARGS, sizeof(*p->argv));
    c->parts_n++;
    if (!p->argv) return wn_fail(err, WN_ENOMEM, "arguments of %s", name);
    snprintf(p->name_flag, sizeof(p->name_flag), "--name=%s", name);
    p->ranks = ranks;
    p->argv[0] = c->program;
    p->argv[1] = (char *)(uintptr_t)role;
    memcpy(p->argv + 2, flags, n * sizeof(*flags));
    p->argv[2 + n] = p->name_flag;
    p->argv[3 + n] = c->run_flag;
    p->argv[4 + n] = c->port_flag;
    p->argv[5 + n] = c->expect_flags[0];
    p->argv[6 + n] = c->expect_flags[1];
    return add_nodes(c, p, nodes, err);
}

static wn_status add_parts(struct wn_crew *c, const char *role, struct wn_err *err)
{
    const unsigned ranks = c->plan->stages * c->plan->tensors;
    const struct wn_layout *l = &c->slurm.layout;
    char name[WN_NAME_LEN];
    wn_status rc = add_part(c, role ? role : "scheduler", "scheduler", 1, NULL, err);

    for (uint32_t i = 0; rc == WN_OK && i < c->cfg->vision_workers; i++) {
        snprintf(name, sizeof(name), "vision-%u", i);
        rc = add_part(c, role ? role : "vision", name, 1, l->vision ? l->vision + i : NULL, err);
    }
    for (uint32_t i = 0; rc == WN_OK && i < c->cfg->replicas; i++) {
        snprintf(name, sizeof(name), "replica-%u", i);
        rc = add_part(c, role ? role : "shard", name, ranks, l->rank ? l->rank + i * ranks : NULL, err);
    }
    return rc;
}

wn_status wn_crew_make(struct wn_crew *c, const char *role, struct wn_err *err)
{
    const ssize_t n = readlink("/proc/self/exe", c->program, sizeof(c->program) - 1);
    wn_status rc;

    if (n <= 0) return wn_fail(err, WN_EIO, "/proc/self/exe: %s", strerror(errno));
    c->program[n] = '\0';
    if ((rc = make_run_dir(c, err)) != WN_OK) return rc;
    snprintf(c->run_flag, sizeof(c->run_flag), "--run-dir=%s", c->cfg->run_dir);
    snprintf(c->port_flag, sizeof(c->port_flag), "--port=%u", c->cfg->port);
    snprintf(c->expect_flags[0], sizeof(c->expect_flags[0]), "--expect-replicas=%u", c->cfg->replicas);
    snprintf(c->expect_flags[1], sizeof(c->expect_flags[1]), "--expect-vision-workers=%u", c->cfg->vision_workers);
    c->parts = calloc(1 + c->cfg->vision_workers + c->cfg->replicas, sizeof(*c->parts));
    if (!c->parts) return wn_fail(err, WN_ENOMEM, "components");
    return add_parts(c, role, err);
}

wn_status wn_crew_start(const struct wn_crew *c, size_t part, int out_fd, pid_t *pid, struct wn_err *err)
{
    const struct wn_crew_part *p = &c->parts[part];
    char files[WN_RUN_PATH] = "", memory[WN_RUN_PATH] = "";
    const struct wn_launch l = {.argv = p->argv, .ranks = p->ranks, .name = p->name, .nodes = p->nodes, .cfg = c->cfg,
                                .out_fd = out_fd, .files = files, .memory = memory};

    if (p->ranks > 1 && c->launcher == &wn_launcher_local) wn_run_dir_part(&c->run, p->name, files, memory);
    return c->launcher->start(&l, pid, err);
}

/* Ranks on each node of the job, the scheduler counted as one. Owned by the caller. */
static uint32_t *loads(const struct wn_crew *c)
{
    const struct wn_nodelist *nodes = &c->slurm.nodes;
    uint32_t *load = calloc(nodes->n + 1, sizeof(*load)); /* one more: for a name that is not there */

    for (size_t i = 0; load && i < c->parts_n; i++)
        for (unsigned r = 0; r < c->parts[i].ranks; r++) load[wn_nodelist_find(nodes, c->parts[i].nodes[r])]++;
    return load;
}

void wn_crew_move(struct wn_crew *c, size_t part)
{
    const struct wn_nodelist *nodes = &c->slurm.nodes;
    struct wn_crew_part *p = &c->parts[part];
    uint32_t *load = NULL, n = (uint32_t)nodes->n;
    bool *lost = NULL;

    if (c->launcher != &wn_launcher_slurm || strcmp(c->cfg->layout, "auto") != 0 || part == 0) return;
    lost = calloc(n + 1, sizeof(*lost));
    load = loads(c);
    if (!lost || !load || !wn_slurm_ask_lost(&c->slurm, lost)) goto out;
    for (unsigned i = 0; i < p->ranks; i++) {
        const char *from = p->nodes[i];
        const size_t at = wn_nodelist_find(nodes, from);
        const uint32_t to = wn_layout_spare(load, lost, n);
        if (at == n || !lost[at] || to == n) continue;
        wn_warn("crew", "%s has lost node %s: its ranks there start again on %s", p->name, from, nodes->names[to]);
        for (unsigned k = i; k < p->ranks; k++) { /* all of them: they were neighbours */
            if (strcmp(p->nodes[k], from) != 0) continue;
            p->nodes[k] = nodes->names[to];
            load[to]++;
        }
    }
out:
    free(lost);
    free(load);
}

void wn_crew_ended(const struct wn_crew *c, size_t part)
{
    wn_run_dir_part_ended(&c->run, c->parts[part].name);
}

void wn_crew_close(struct wn_crew *c)
{
    for (size_t i = 0; c->parts && i < c->parts_n; i++) {
        free(c->parts[i].argv);
        free(c->parts[i].flags);
        free(c->parts[i].nodes);
    }
    free(c->parts);
    wn_slurm_close(&c->slurm);
    wn_run_dir_close(&c->run);
    *c = (struct wn_crew){0};
}
