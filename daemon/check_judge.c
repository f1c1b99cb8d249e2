/* daemon/check_judge.c - what is wrong, from the lines of the probes. See check.h. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/check.h"
#include "daemon/fit.h"

const char *const wn_check_links[WN_CHECK_LINKS] = {"client", "control", "features", "stage to stage", "all-reduce"};

const char *wn_check_text(const json_t *line, const char *key)
{
    const char *text = json_string_value(json_object_get(line, key));
    return text ? text : "";
}

double wn_check_number(const json_t *line, const char *key)
{
    return json_number_value(json_object_get(line, key));
}

bool wn_check_is(const json_t *line, const char *kind)
{
    return strcmp(wn_check_text(line, "kind"), kind) == 0;
}

void wn_check_wrong(struct wn_check *c, const char *host, const char *name, const char *fmt, ...)
{
    char text[WN_ERR_TEXT_MAX];
    const json_t *line;
    size_t i;
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    json_array_foreach(c->lines, i, line) if (wn_check_is(line, "wrong") &&
                                              strcmp(wn_check_text(line, "host"), host) == 0 &&
                                              strcmp(wn_check_text(line, "text"), text) == 0) return;
    json_array_append_new(
        c->lines, json_pack("{s:s, s:s, s:s, s:s}", "kind", "wrong", "host", host, "name", name, "text", text));
}

const json_t *wn_check_find(const struct wn_check *c, const char *kind, const char *name, unsigned rank)
{
    const json_t *line;
    size_t i;

    json_array_foreach(c->lines, i, line) if (wn_check_is(line, kind) &&
                                              strcmp(wn_check_text(line, "name"), name) == 0 &&
                                              (unsigned)wn_check_number(line, "rank") == rank) return line;
    return NULL;
}

/* ---- who is there ---- */

static void judge_silence(struct wn_check *c)
{
    for (size_t i = 0; i < c->crew.parts_n; i++) {
        const struct wn_crew_part *p = &c->crew.parts[i];
        for (unsigned r = 0; r < p->ranks; r++) {
            if (wn_check_find(c, "host", p->name, r)) continue;
            wn_check_wrong(c, p->nodes ? p->nodes[r] : "this host", p->name, "%ssaid nothing",
                           p->ranks > 1 ? "one of its ranks " : "");
        }
    }
}

static void judge_same(struct wn_check *c, const json_t *first, const json_t *line, const char *key, const char *what)
{
    const char *a = wn_check_text(first, key), *b = wn_check_text(line, key);

    if (strcmp(a, b) != 0)
        wn_check_wrong(c, wn_check_text(line, "host"), wn_check_text(line, "name"),
                       "%s is %.80s here, and %.80s on %s", what, b, a, wn_check_text(first, "host"));
}

static void judge_versions(struct wn_check *c)
{
    static const char *const keys[][2] = {{"winnow", "winnow"}, {"mpi", "MPI"}, {"zmq", "ZeroMQ"}};
    const json_t *host = NULL, *model = NULL, *line;
    size_t i;

    json_array_foreach(c->lines, i, line)
    {
        if (wn_check_is(line, "host")) {
            if (!host) host = line;
            for (int k = 0; k < 3; k++) judge_same(c, host, line, keys[k][0], keys[k][1]);
        } else if (wn_check_is(line, "model")) {
            if (!model) model = line;
            if (strcmp(wn_check_text(model, "id"), wn_check_text(line, "id")) != 0)
                wn_check_wrong(c, wn_check_text(line, "host"), wn_check_text(line, "name"),
                               "%s: another config.json than on %s", c->cfg.model, wn_check_text(model, "host"));
        }
    }
}

/* ---- memory ---- */

static uint64_t vision_bytes(const struct wn_check *c)
{
    const struct wn_vision_config *v = &c->model.vision;
    const uint64_t h = v->hidden, layer = 4 * h * h + 2 * h * v->mlp;

    return layer * v->layers_run * wn_dtype_bytes(wn_worker_dtype(&c->cfg, &c->model)) + c->cfg.vision_cache_bytes;
}

static struct wn_check_host *host_of(struct wn_check *c, const json_t *line)
{
    const char *name = wn_check_text(line, "host");

    for (uint32_t i = 0; i < c->hosts_n; i++)
        if (strcmp(c->hosts[i].name, name) == 0) return &c->hosts[i];
    c->hosts[c->hosts_n] = (struct wn_check_host){
        .name = name, .line = line, .free_bytes = (uint64_t)wn_check_number(line, "memory_free")};
    return &c->hosts[c->hosts_n++];
}

/* In the order of the crew, the scheduler's host first. */
static void find_hosts(struct wn_check *c)
{
    for (size_t i = 0; i < c->crew.parts_n; i++) {
        const struct wn_crew_part *p = &c->crew.parts[i];
        for (unsigned r = 0; r < p->ranks; r++) {
            const json_t *line = wn_check_find(c, "host", p->name, r);
            struct wn_check_host *h = line ? host_of(c, line) : NULL;
            if (h && strncmp(p->name, "vision-", 7) == 0) h->visions++;
        }
    }
}

/* The ranks of a part that are on that host. */
static uint32_t ranks_on(const struct wn_check *c, const struct wn_crew_part *p, const char *host, uint32_t *ranks)
{
    uint32_t n = 0;

    for (unsigned r = 0; strncmp(p->name, "replica-", 8) == 0 && r < p->ranks; r++)
        if (strcmp(wn_check_text(wn_check_find(c, "host", p->name, r), "host"), host) == 0) ranks[n++] = r;
    return n;
}

/* Replicas that share a host share its memory, after its vision workers. */
static void judge_memory(struct wn_check *c, struct wn_check_host *h, const struct wn_step_limits *step,
                         uint32_t tokens_max)
{
    uint32_t ranks[WN_STAGES_MAX * WN_TENSOR_MAX], n;
    const uint64_t visions = h->visions * vision_bytes(c);
    const uint64_t left = h->free_bytes > visions ? h->free_bytes - visions : 0;
    struct wn_memory_limits limits = wn_fit_limits(&c->cfg, step, tokens_max, left);
    bool said = false;

    h->need_bytes = visions;
    limits.replicas = 0;
    for (size_t i = 0; i < c->crew.parts_n; i++)
        if (ranks_on(c, &c->crew.parts[i], h->name, ranks)) limits.replicas++;
    for (size_t i = 0; i < c->crew.parts_n; i++) {
        const struct wn_crew_part *p = &c->crew.parts[i];
        struct wn_memory_plan need;
        struct wn_err err = {0};
        wn_status rc;
        if (!(n = ranks_on(c, p, h->name, ranks))) continue;
        rc = wn_plan_memory_shared(&need, &c->plan, ranks, n, &limits, &err);
        h->need_bytes +=
            need.weight_bytes + need.step_bytes + need.feature_bytes + limits.pages_min * need.page_bytes;
        if (rc != WN_OK) wn_check_wrong(c, h->name, p->name, "memory: %s", err.text);
        said |= rc != WN_OK;
    }
    if (!said && visions > h->free_bytes)
        wn_check_wrong(c, h->name, "", "memory: vision workers need %.1f GB and %.1f GB are free",
                       (double)visions * 1e-9, (double)h->free_bytes * 1e-9);
}

/* ---- all of it ---- */

static uint32_t count(const struct wn_check *c, const char *kind, const char *what)
{
    const json_t *line;
    uint32_t n = 0;
    size_t i;

    json_array_foreach(c->lines, i, line) n +=
        wn_check_is(line, kind) && (!what || strcmp(wn_check_text(line, "what"), what) == 0);
    return n;
}

/* A gap without a reason would look like success. */
static void judge_gaps(struct wn_check *c)
{
    const struct wn_config *g = &c->cfg;
    const uint32_t stages = c->plan.stages, tensors = c->plan.tensors;
    const uint32_t wanted[WN_CHECK_LINKS] = {1, g->vision_workers + g->replicas * stages * tensors,
                                             g->vision_workers * g->replicas, g->replicas * (stages - 1) * tensors,
                                             tensors > 1 ? g->replicas * stages : 0};

    for (int i = 0; i < WN_CHECK_LINKS; i++) {
        const uint32_t n = count(c, "link", wn_check_links[i]);
        if (n < wanted[i])
            wn_check_wrong(c, "", "", "%u of %u links '%s' were measured", n, wanted[i], wn_check_links[i]);
    }
}

uint32_t wn_check_judge(struct wn_check *c)
{
    struct wn_step_limits limits;
    struct wn_err err = {0};
    uint32_t tokens_max;

    judge_silence(c);
    judge_versions(c);
    c->hosts = calloc(json_array_size(c->lines) + 1, sizeof(*c->hosts));
    if (c->hosts && c->planned) {
        find_hosts(c);
        if (wn_fit_step(&limits, &tokens_max, &c->cfg, &c->model, &err) != WN_OK)
            wn_check_wrong(c, "", "", "%s", err.text);
        else if (strncmp(c->cfg.backend, "cuda", 4) != 0) /* a device's is asked for where it is */
            for (uint32_t i = 0; i < c->hosts_n; i++) judge_memory(c, &c->hosts[i], &limits, tokens_max);
        if (count(c, "wrong", NULL) == 0) judge_gaps(c);
    }
    return count(c, "wrong", NULL);
}
