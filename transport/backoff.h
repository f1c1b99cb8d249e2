/* transport/backoff.h - how a wait that must poll spends its time. Internal to transport/.
 *
 * Spins for 20 us, since most messages of a busy group come within that; then yields; then sleeps an eighth of the time
 * waited so far, at most 500 us, and at most 5 ms once it has waited for a second. So the end of a wait is noticed at
 * most an eighth too late, and an idle rank polls 200 times a second (with MPI half a percent of a core). A wait that
 * itself drives a transfer on must not sleep: it says so. Owns nothing; one per wait, on the stack. */
#ifndef WN_TRANSPORT_BACKOFF_H
#define WN_TRANSPORT_BACKOFF_H

#include <sched.h>
#include <time.h>

#include "base/clock.h"
#include "base/progress.h"

#define WN_BACKOFF_SPIN_US  20
#define WN_BACKOFF_YIELD_US 200
#define WN_BACKOFF_SLEEP_US 500
#define WN_BACKOFF_IDLE_US  1000000 /* waited so long: idle */
#define WN_BACKOFF_NAP_US   5000    /* longest sleep of an idle wait */

struct wn_backoff {
    int64_t start_us;
};

static inline void wn_cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static inline struct wn_backoff wn_backoff_start(void)
{
    return (struct wn_backoff){.start_us = wn_now_us()};
}

static inline void wn_backoff_pause(const struct wn_backoff *b, int64_t deadline_us, bool may_sleep)
{
    int64_t now = wn_now_us(), waited = now - b->start_us;

    wn_progress_note();
    if (waited < WN_BACKOFF_SPIN_US) {
        wn_cpu_relax();
    } else if (waited < WN_BACKOFF_YIELD_US || !may_sleep) {
        sched_yield();
    } else {
        const int64_t longest_us = waited < WN_BACKOFF_IDLE_US ? WN_BACKOFF_SLEEP_US : WN_BACKOFF_NAP_US;
        int64_t sleep_us = waited / 8 < longest_us ? waited / 8 : longest_us;
        if (deadline_us - now < sleep_us) sleep_us = deadline_us - now;
        if (sleep_us > 0) {
            struct timespec ts = {.tv_sec = 0, .tv_nsec = (long)sleep_us * 1000};
            nanosleep(&ts, NULL);
        }
    }
}

#endif
