/* base/progress.h - whether the main thread of this process makes progress: it counts its work, another thread looks.
 *
 * The main thread notes every piece of work, some in each layer of a step, and every look at a link that it waits for:
 * whom it waits for is watched where that one runs. While it waits for a device it notes how far that has come
 * (transport/cuda_marks.h). One that notes nothing for long hangs, in a device, a disk or a lock, however alive the
 * rest of its process is.
 * Owns:    one counter of the process. Threads: the main thread notes, any looks; a wn_stall is its looker's. */
#ifndef WN_BASE_PROGRESS_H
#define WN_BASE_PROGRESS_H

#include <stdatomic.h>
#include <stdint.h>

extern atomic_ulong wn_progress_count;

static inline void wn_progress_note(void)
{
    atomic_fetch_add_explicit(&wn_progress_count, 1, memory_order_relaxed);
}

/* Zero-initialise. */
struct wn_stall {
    unsigned long count;
    int64_t looked_us, stalled_us;
};

/* For how long nothing was noted, as far as this was looked at: between two looks at most gap_us count, for a process
 * that was stopped, or a machine that slept, is not a hanging thread. */
int64_t wn_stall_look(struct wn_stall *s, int64_t now_us, int64_t gap_us);

#endif
