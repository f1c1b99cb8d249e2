/* base/clock.h - monotonic time and deadlines, in microseconds. */
#ifndef WN_BASE_CLOCK_H
#define WN_BASE_CLOCK_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#define WN_NEVER INT64_MAX /* a deadline that does not pass */

/* Monotonic clock of this machine; compare only with values from the same machine. */
static inline int64_t wn_now_us(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

static inline int64_t wn_deadline_in_us(int64_t us)
{
    return us >= WN_NEVER - wn_now_us() ? WN_NEVER : wn_now_us() + us;
}

static inline bool wn_deadline_passed(int64_t deadline_us)
{
    return deadline_us != WN_NEVER && wn_now_us() >= deadline_us;
}

#endif
