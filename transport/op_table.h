/* transport/op_table.h - numbers of operations in flight, for links. Internal to transport/.
 *
 * A handle is an index into the link's own array of operations plus a generation, so that a handle that was used up is
 * noticed. Owns: nothing. Threads: as the link says. Fails: WN_OP_NONE when every number is taken. */
#ifndef WN_TRANSPORT_OP_TABLE_H
#define WN_TRANSPORT_OP_TABLE_H

#include "transport/link.h"

#define WN_OP_GENERATIONS (1u << 22) /* x WN_LINK_OPS_MAX fits a handle */

struct wn_op_table {
    uint32_t free_n;
    uint16_t free[WN_LINK_OPS_MAX];
    uint32_t generation[WN_LINK_OPS_MAX]; /* even: free, odd: taken */
};

static inline void wn_op_table_init(struct wn_op_table *t)
{
    t->free_n = WN_LINK_OPS_MAX;
    for (uint32_t i = 0; i < WN_LINK_OPS_MAX; i++) { /* the last one given back is taken first: it is in the cache */
        t->free[i] = (uint16_t)(WN_LINK_OPS_MAX - 1 - i);
        t->generation[i] = 0;
    }
}

static inline wn_op wn_op_table_take(struct wn_op_table *t, uint32_t *index)
{
    if (t->free_n == 0) return WN_OP_NONE;
    *index = t->free[--t->free_n];
    t->generation[*index]++; /* odd: a handle is never WN_OP_NONE */
    return t->generation[*index] * WN_LINK_OPS_MAX + *index;
}

/* The index of a handle in flight; a stale handle is a bug. */
static inline uint32_t wn_op_table_index(const struct wn_op_table *t, wn_op op)
{
    uint32_t index = op % WN_LINK_OPS_MAX;
    WN_ASSERT(op / WN_LINK_OPS_MAX == t->generation[index] && t->generation[index] % 2 == 1);
    return index;
}

static inline bool wn_op_table_taken(const struct wn_op_table *t, uint32_t index)
{
    return t->generation[index] % 2 == 1;
}

static inline void wn_op_table_give(struct wn_op_table *t, uint32_t index)
{
    t->generation[index] = (t->generation[index] + 1) % WN_OP_GENERATIONS;
    t->free[t->free_n++] = (uint16_t)index;
}

#endif
