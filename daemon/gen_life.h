/* daemon/gen_life.h - the life of a job at the leader: what may happen to it when, and when it holds memory of the
 * replica. A table, pure.
 *
 *     waiting --ready--> ready --admit--> prefill --token--> decode --token--> decode ...
 *                                            |                  |
 *                                            +-----preempt------+--> preempted --admit--> prefill ...
 *
 *     all of these --fail--> failed, --cancel--> cancelled, --drop--> dropped;
 *     ready, decode, preempted --finish--> done
 *
 * In prefill and decode, and in no other state, it holds a slot and pages. `flying` counts the steps on their way that
 * have rows of it: it goes on counting after the end, and a job is gone when it has ended and nothing flies. A job
 * that is preempted while a row of it flies keeps the token that comes back; until then it is not admitted again,
 * or it would draw that token twice. */
#ifndef WN_DAEMON_GEN_LIFE_H
#define WN_DAEMON_GEN_LIFE_H

#include <stdbool.h>
#include <stdint.h>

typedef enum wn_gen_state {
    WN_GEN_WAITING,   /* features are missing */
    WN_GEN_READY,     /* laid out, waits for a slot and pages */
    WN_GEN_PREFILL,   /* in a slot; no token since it got there */
    WN_GEN_DECODE,    /* in a slot, one row a step */
    WN_GEN_PREEMPTED, /* was in a slot, and waits for another */
    WN_GEN_DONE,
    WN_GEN_FAILED,
    WN_GEN_CANCELLED,
    WN_GEN_DROPPED, /* nobody asks for it any more */
    WN_GEN_STATES
} wn_gen_state;

typedef enum wn_gen_event {
    WN_GEN_LAY_OUT, /* its features are here */
    WN_GEN_ADMIT,   /* it gets a slot and pages */
    WN_GEN_SEND,    /* rows of it leave in a step */
    WN_GEN_LAND,    /* that step is over */
    WN_GEN_TOKEN,   /* a step that has landed drew a token for it */
    WN_GEN_PREEMPT, /* an older job needs its pages */
    WN_GEN_FINISH,
    WN_GEN_FAIL,
    WN_GEN_CANCEL,
    WN_GEN_DROP,
    WN_GEN_EVENTS
} wn_gen_event;

struct wn_gen_life {
    wn_gen_state state;
    uint32_t flying;
};

/* Moves on. false: the event does not fit, and nothing has changed. */
bool wn_gen_apply(struct wn_gen_life *life, wn_gen_event event);

bool wn_gen_holds(const struct wn_gen_life *life); /* a slot and pages? */
bool wn_gen_ended(const struct wn_gen_life *life); /* has it been answered? */
bool wn_gen_gone(const struct wn_gen_life *life);  /* ended, and nothing of it on its way */

#endif
