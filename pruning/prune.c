/* pruning/prune.c - see prune.h. */
#include "pruning/prune.h"

#include <stdio.h>
#include <string.h>

const struct wn_prune_method *const wn_prune_methods[] = {
    &wn_prune_none,
    NULL,
};

const struct wn_prune_method *wn_prune_find(const char *name, struct wn_err *err)
{
    char known[256] = "";
    size_t at = 0;

    if (!name || !name[0]) return &wn_prune_none;
    for (size_t i = 0; wn_prune_methods[i]; i++) {
        if (strcmp(wn_prune_methods[i]->name, name) == 0) return wn_prune_methods[i];
        if (at < sizeof(known))
            at += (size_t)snprintf(known + at, sizeof(known) - at, "%s%s", i ? ", " : "", wn_prune_methods[i]->name);
    }
    (void)wn_fail(err, WN_ENOENT, "pruning method '%.60s' is not known; known: %s", name, known);
    return NULL;
}

uint32_t wn_prune_count(const struct wn_prune_budget *budget, uint32_t rows)
{
    double left = (double)rows;
    uint32_t n;

    if (budget->keep) {
        n = budget->keep;
    } else {
        if (budget->rate > 0 && budget->rate < 1) left *= 1.0 - (double)budget->rate;
        n = (uint32_t)(left + 0.5);
    }
    if (n > rows) n = rows;
    return n == 0 && rows > 0 ? 1 : n;
}
