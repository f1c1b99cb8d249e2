/* daemon/nodelist.h - Slurm's short forms of lists: host names ("n[1-3,07],gpu5") and counts ("4(x2),1"). Pure.
 *
 * Owns:    the names, from expand to fini. Threads: any.
 * Fails:   WN_EFORMAT names the place; WN_ELIMIT: more than WN_NODES_MAX names, or one too long; WN_ENOMEM. */
#ifndef WN_DAEMON_NODELIST_H
#define WN_DAEMON_NODELIST_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define WN_NODES_MAX     4096
#define WN_NODE_NAME_LEN 64

struct wn_nodelist {
    char (*names)[WN_NODE_NAME_LEN]; /* [n] in the order of the text; a name may come twice */
    size_t n;
};

/* A range keeps the width of its first number: "n[08-10]" is n08, n09, n10. Several ranges in a name multiply, the last
 * one runs fastest. Success: *out is owned by the caller. Failure: it is empty. */
WN_NODISCARD wn_status wn_nodelist_expand(struct wn_nodelist *out, const char *text, struct wn_err *err);
void wn_nodelist_fini(struct wn_nodelist *list);

/* Index of a name, or list->n. */
size_t wn_nodelist_find(const struct wn_nodelist *list, const char *name);

/* The index-th number of a list of counts as in SLURM_TASKS_PER_NODE. */
WN_NODISCARD wn_status wn_nodelist_count(const char *text, size_t index, uint32_t *count, struct wn_err *err);

#endif
