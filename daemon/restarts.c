/* daemon/restarts.c - see restarts.h. */
#include "daemon/restarts.h"

int64_t wn_restarts_pause(struct wn_restarts *r, int64_t now_us, int64_t lived_us)
{
    int64_t pause = WN_RESTART_PAUSE_US;

    if (lived_us >= WN_RESTART_YOUNG_US) {
        r->young = 0;
        return pause;
    }
    if (r->n == 0 || now_us - r->window_us > WN_RESTARTS_WINDOW_US) {
        r->window_us = now_us;
        r->n = 0;
    }
    if (++r->n > WN_RESTARTS_MAX) return -1;
    r->young++;
    for (unsigned i = 1; i < r->young && pause < WN_RESTART_LONGEST_US; i++) pause *= 2;
    return pause < WN_RESTART_LONGEST_US ? pause : WN_RESTART_LONGEST_US;
}
