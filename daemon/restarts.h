/* daemon/restarts.h - when a component that has died is started again, and when no more.
 *
 * After a pause, which doubles each time that it dies young; so a component that cannot run costs little, and one that
 * ran well and was killed is back at once, however often. One that dies young more than WN_RESTARTS_MAX times in
 * WN_RESTARTS_WINDOW_US is given up.
 * Threads: one at a time. */
#ifndef WN_DAEMON_RESTARTS_H
#define WN_DAEMON_RESTARTS_H

#include <stdint.h>

#define WN_RESTARTS_MAX       10
#define WN_RESTARTS_WINDOW_US 60000000ll
#define WN_RESTART_PAUSE_US   200000ll
#define WN_RESTART_LONGEST_US 5000000ll
#define WN_RESTART_YOUNG_US   3000000ll

/* All zero: it has not died yet. */
struct wn_restarts {
    int64_t window_us; /* when the window began */
    unsigned n, young; /* young deaths in it; those without a longer life between them */
};

/* It has died at now_us, lived_us after it was started. Returns the pause in us, or -1: give it up. */
int64_t wn_restarts_pause(struct wn_restarts *r, int64_t now_us, int64_t lived_us);

#endif
