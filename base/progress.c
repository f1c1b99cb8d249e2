/* base/progress.c - see progress.h. */
#include "base/progress.h"

atomic_ulong wn_progress_count;

int64_t wn_stall_look(struct wn_stall *s, int64_t now_us, int64_t gap_us)
{
    const unsigned long count = atomic_load_explicit(&wn_progress_count, memory_order_relaxed);
    const int64_t since_us = s->looked_us ? now_us - s->looked_us : 0;

    s->stalled_us = count == s->count ? s->stalled_us + (since_us < gap_us ? since_us : gap_us) : 0;
    s->count = count;
    s->looked_us = now_us;
    return s->stalled_us;
}
