/* daemon/layout.h - which node of an allocation runs which vision worker and which rank. Pure.
 *
 * auto: with more nodes than stages, the first ones encode images and the others hold the language model; with fewer,
 * all nodes do both. A stage's tensor ranks stay on one node unless there are nodes to spare. A file says it line by
 * line; '#' starts a comment:
 *     vision: n1 n1            a word for each vision worker
 *     replica: n2*2 %2 %2      a word for each rank, stage by stage; one line for each replica
 * A word is a node's name or %INDEX in the allocation (a job that is queued again gets other nodes), "*COUNT" repeats.
 * Owns:    the arrays, from make to fini. Threads: any.
 * Fails:   WN_EFORMAT with the line, WN_ENOENT: no such node, WN_EINVAL: too many or too few, WN_ENOMEM. */
#ifndef WN_DAEMON_LAYOUT_H
#define WN_DAEMON_LAYOUT_H

#include <stdbool.h>
#include <stdio.h>

#include "daemon/nodelist.h"

#define WN_LAYOUT_FILE_MAX ((size_t)1 << 20)

struct wn_layout_ask {
    uint32_t vision_workers, replicas, stages, tensors;
};

/* Values are indices of nodes. */
struct wn_layout {
    uint32_t *vision; /* [vision_workers] */
    uint32_t *rank;   /* [replicas, stages * tensors] */
};

WN_NODISCARD wn_status wn_layout_auto(struct wn_layout *out, const struct wn_layout_ask *ask, uint32_t nodes_n,
                                      struct wn_err *err);

/* text ends with a zero byte; `file` names it in errors. */
WN_NODISCARD wn_status wn_layout_parse(struct wn_layout *out, const struct wn_layout_ask *ask,
                                       const struct wn_nodelist *nodes, const char *file, const char *text,
                                       struct wn_err *err);

/* A node for what ran on one that is lost: the one with the smallest load [nodes_n] among the others; nodes_n: there is
 * none. */
uint32_t wn_layout_spare(const uint32_t *load, const bool *lost, uint32_t nodes_n);

/* As a file of it would say it, each line behind `before`. */
void wn_layout_print(FILE *f, const char *before, const struct wn_layout *l, const struct wn_layout_ask *ask,
                     const struct wn_nodelist *nodes);

void wn_layout_fini(struct wn_layout *l);

#endif
