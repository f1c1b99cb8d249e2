/* daemon/gen_life.c - see gen_life.h. */
#include "daemon/gen_life.h"

#define NO      WN_GEN_STATES /* the event does not fit */
#define ENDINGS WN_GEN_FAILED, WN_GEN_CANCELLED, WN_GEN_DROPPED

/* Rows: the state before. Columns: lay out, admit, send, land, token, preempt, finish, fail, cancel, drop. */
static const unsigned char next[WN_GEN_STATES][WN_GEN_EVENTS] = {
    [WN_GEN_WAITING] = {WN_GEN_READY, NO, NO, NO, NO, NO, NO, ENDINGS},
    [WN_GEN_READY] = {NO, WN_GEN_PREFILL, NO, NO, NO, NO, WN_GEN_DONE, ENDINGS},
    [WN_GEN_PREFILL] = {NO, NO, WN_GEN_PREFILL, WN_GEN_PREFILL, WN_GEN_DECODE, WN_GEN_PREEMPTED, NO, ENDINGS},
    [WN_GEN_DECODE] = {NO, NO, WN_GEN_DECODE, WN_GEN_DECODE, WN_GEN_DECODE, WN_GEN_PREEMPTED, WN_GEN_DONE, ENDINGS},
    [WN_GEN_PREEMPTED] = {NO, WN_GEN_PREFILL, NO, WN_GEN_PREEMPTED, WN_GEN_PREEMPTED, NO, WN_GEN_DONE, ENDINGS},
    [WN_GEN_DONE] = {NO, NO, NO, WN_GEN_DONE, NO, NO, NO, NO, NO, NO},
    [WN_GEN_FAILED] = {NO, NO, NO, WN_GEN_FAILED, NO, NO, NO, NO, NO, NO},
    [WN_GEN_CANCELLED] = {NO, NO, NO, WN_GEN_CANCELLED, NO, NO, NO, NO, NO, NO},
    [WN_GEN_DROPPED] = {NO, NO, NO, WN_GEN_DROPPED, NO, NO, NO, NO, NO, NO},
};

bool wn_gen_apply(struct wn_gen_life *life, wn_gen_event event)
{
    const wn_gen_state to = (wn_gen_state)next[life->state][event];

    if (to == NO) return false;
    if (event == WN_GEN_LAND && life->flying == 0) return false;
    if (event == WN_GEN_ADMIT && life->flying > 0) return false;
    if (event == WN_GEN_SEND && life->state == WN_GEN_DECODE && life->flying > 0) return false;
    life->flying += event == WN_GEN_SEND;
    life->flying -= event == WN_GEN_LAND;
    life->state = to;
    return true;
}

bool wn_gen_holds(const struct wn_gen_life *life)
{
    return life->state == WN_GEN_PREFILL || life->state == WN_GEN_DECODE;
}

bool wn_gen_ended(const struct wn_gen_life *life)
{
    return life->state >= WN_GEN_DONE;
}

bool wn_gen_gone(const struct wn_gen_life *life)
{
    return wn_gen_ended(life) && life->flying == 0;
}
