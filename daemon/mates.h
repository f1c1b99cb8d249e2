/* daemon/mates.h - which of the sequences that decode go into the next step, when steps are several on their way.
 *
 * Mates are sequences that read the same pages for half of their prompts at least, as those about one picture do.
 * Attention reads such pages once for all of a step that share them, so mates had best travel together. Who came when
 * says otherwise: so one that is in a step without most of its mates may wait once for theirs, and pushes another
 * lonely one out there, until all have found each other.
 *
 * Owns: nothing; a pure function. Threads: any. */
#ifndef WN_DAEMON_MATES_H
#define WN_DAEMON_MATES_H

#include <stdbool.h>
#include <stdint.h>

struct wn_mate {
    uint32_t page;          /* mates have the same */
    uint32_t passed;        /* steps in a row that went without it */
    bool ready;             /* none of its rows is on its way */
    bool chosen;            /* out */
    uint32_t at, all, here; /* inside: its group in `order`, the size of that, how many of them are ready */
};

/* Chooses of the ready ones, oldest first in m[n], at most `share`; with may_wait one less than there could be.
 * order: room for n. Who was passed goes before all others, so nobody is passed often. */
void wn_mates_choose(struct wn_mate *m, uint32_t n, uint32_t *order, uint32_t share, bool may_wait);

#endif
