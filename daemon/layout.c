/* daemon/layout.c - see layout.h. */
#include "daemon/layout.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

static wn_status make(struct wn_layout *l, const struct wn_layout_ask *ask, struct wn_err *err)
{
    const size_t ranks = (size_t)ask->replicas * ask->stages * ask->tensors;

    l->vision = calloc(ask->vision_workers + 1, sizeof(*l->vision)); /* one more: never of size 0 */
    l->rank = calloc(ranks + 1, sizeof(*l->rank));
    if (l->vision && l->rank) return WN_OK;
    wn_layout_fini(l);
    return wn_fail(err, WN_ENOMEM, "a layout of %zu ranks", ranks);
}

void wn_layout_fini(struct wn_layout *l)
{
    free(l->vision);
    free(l->rank);
    *l = (struct wn_layout){0};
}

wn_status wn_layout_auto(struct wn_layout *out, const struct wn_layout_ask *ask, uint32_t nodes_n, struct wn_err *err)
{
    const uint32_t stages = ask->replicas * ask->stages; /* of all replicas */
    uint32_t first = 0, language = nodes_n, vision = nodes_n;
    wn_status rc = make(out, ask, err);

    if (rc != WN_OK) return rc;
    if (nodes_n > stages && ask->vision_workers > 0) {
        first = vision = nodes_n - stages < ask->vision_workers ? nodes_n - stages : ask->vision_workers;
        language = nodes_n - vision;
    }
    for (uint32_t i = 0; i < ask->vision_workers; i++)
        out->vision[i] = first ? i % vision : nodes_n - 1 - i % vision; /* shared: the scheduler's node last */
    for (uint32_t s = 0; s < stages; s++) {
        const uint32_t span = language > stages ? language / stages : 1; /* nodes of a stage */
        const uint32_t at = first + (language > stages ? s * span : (uint32_t)((uint64_t)s * language / stages));
        for (uint32_t t = 0; t < ask->tensors; t++)
            out->rank[s * ask->tensors + t] =
                at + (span < ask->tensors ? (uint32_t)((uint64_t)t * span / ask->tensors) : t);
    }
    return WN_OK;
}

uint32_t wn_layout_spare(const uint32_t *load, const bool *lost, uint32_t nodes_n)
{
    uint32_t best = nodes_n;

    for (uint32_t i = 0; i < nodes_n; i++)
        if (!lost[i] && (best == nodes_n || load[i] < load[best])) best = i;
    return best;
}

/* ---- the file ---- */

struct reader {
    const struct wn_nodelist *nodes;
    const char *file;
    uint32_t line;
    struct wn_err *err;
};

/* "NAME*COUNT" or "%INDEX*COUNT" of n characters. */
static wn_status word(const struct reader *r, const char *at, size_t n, uint32_t *node, uint32_t *count)
{
    char name[WN_NODE_NAME_LEN] = "";
    const char *star = memchr(at, '*', n);
    const size_t name_n = star ? (size_t)(star - at) : n;
    char *end;

    *count = 1;
    if (star) {
        *count = isdigit((unsigned char)star[1]) ? (uint32_t)strtoul(star + 1, &end, 10) : 0;
        if (*count == 0 || *count > WN_NODES_MAX || end != at + n)
            return wn_fail(r->err, WN_EFORMAT, "%s:%u: '%.*s': a count from 1 to %d is wanted behind '*'", r->file,
                           r->line, (int)(n < 80 ? n : 80), at, WN_NODES_MAX);
    }
    if (name_n >= sizeof(name)) return wn_fail(r->err, WN_EFORMAT, "%s:%u: a name is too long", r->file, r->line);
    memcpy(name, at, name_n);
    if (name[0] == '%') {
        const unsigned long i = isdigit((unsigned char)name[1]) ? strtoul(name + 1, &end, 10) : r->nodes->n;
        *node = i < r->nodes->n && !*end ? (uint32_t)i : (uint32_t)r->nodes->n;
    } else {
        *node = (uint32_t)wn_nodelist_find(r->nodes, name);
    }
    if (*node < r->nodes->n) return WN_OK;
    return wn_fail(r->err, WN_ENOENT, "%s:%u: the allocation of %zu nodes has no node '%s'", r->file, r->line,
                   r->nodes->n, name);
}

/* The words of a line into out[room]; exactly `room` of them. */
static wn_status words(const struct reader *r, const char *at, const char *end, uint32_t *out, uint32_t room,
                       const char *what)
{
    uint32_t n = 0;

    for (;;) {
        const char *from;
        uint32_t node = 0, count = 0;
        wn_status rc;
        while (at < end && isspace((unsigned char)*at)) at++;
        if (at == end) break;
        for (from = at; at < end && !isspace((unsigned char)*at);) at++;
        if ((rc = word(r, from, (size_t)(at - from), &node, &count)) != WN_OK) return rc;
        for (; count > 0; count--, n++)
            if (n < room) out[n] = node;
    }
    if (n == room) return WN_OK;
    return wn_fail(r->err, WN_EINVAL, "%s:%u: %u nodes, and there are %u %s", r->file, r->line, n, room, what);
}

wn_status wn_layout_parse(struct wn_layout *out, const struct wn_layout_ask *ask, const struct wn_nodelist *nodes,
                          const char *file, const char *text, struct wn_err *err)
{
    const uint32_t ranks = ask->stages * ask->tensors;
    struct reader r = {.nodes = nodes, .file = file, .err = err};
    uint32_t replicas = 0;
    bool vision = ask->vision_workers == 0;
    wn_status rc = make(out, ask, err);

    for (const char *at = text; rc == WN_OK && *at;) {
        const char *next = at + strcspn(at, "\n"), *end = at + strcspn(at, "#\n");
        r.line++;
        while (at < end && isspace((unsigned char)*at)) at++;
        if (at == end) {
            /* nothing on it */
        } else if (strncmp(at, "vision:", 7) == 0) {
            rc = words(&r, at + 7, end, out->vision, ask->vision_workers, "vision workers");
            vision = true;
        } else if (strncmp(at, "replica:", 8) != 0) {
            rc = wn_fail(err, WN_EFORMAT, "%s:%u: neither 'vision:' nor 'replica:'", file, r.line);
        } else if (replicas == ask->replicas) {
            rc = wn_fail(err, WN_EINVAL, "%s:%u: there are %u replicas", file, r.line, ask->replicas);
        } else {
            rc = words(&r, at + 8, end, out->rank + (size_t)replicas++ * ranks, ranks, "ranks in a replica");
        }
        at = *next ? next + 1 : next;
    }
    if (rc == WN_OK && !vision) rc = wn_fail(err, WN_EINVAL, "%s: no line 'vision:'", file);
    if (rc == WN_OK && replicas < ask->replicas)
        rc = wn_fail(err, WN_EINVAL, "%s: %u lines 'replica:', and there are %u", file, replicas, ask->replicas);
    if (rc != WN_OK) wn_layout_fini(out);
    return rc;
}

/* n nodes; neighbours that are the same one as NAME*COUNT. */
static void print_words(FILE *f, const uint32_t *index, uint32_t n, const struct wn_nodelist *nodes)
{
    for (uint32_t i = 0, same; i < n; i += same) {
        for (same = 1; i + same < n && index[i + same] == index[i];) same++;
        fprintf(f, " %s", nodes->names[index[i]]);
        if (same > 1) fprintf(f, "*%u", same);
    }
    fputc('\n', f);
}

void wn_layout_print(FILE *f, const char *before, const struct wn_layout *l, const struct wn_layout_ask *ask,
                     const struct wn_nodelist *nodes)
{
    const uint32_t ranks = ask->stages * ask->tensors;

    if (ask->vision_workers) {
        fprintf(f, "%svision:", before);
        print_words(f, l->vision, ask->vision_workers, nodes);
    }
    for (uint32_t i = 0; i < ask->replicas; i++) {
        fprintf(f, "%sreplica:", before);
        print_words(f, l->rank + (size_t)i * ranks, ranks, nodes);
    }
}
