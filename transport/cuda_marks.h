/* transport/cuda_marks.h - how far a device's queue has come: events along it, which a wait of the host looks at. For
 * transport/ and shard/cuda/.
 *
 * A wait that sees a mark passed notes progress (base/progress.h): the device works, however long its step. `peers`:
 * what follows the mark waits for other ranks; while the queue stands there each look is progress, too, as it is in a
 * wait for a link on the host: whom it waits for is watched where that one runs. A queue that stands anywhere else for
 * long hangs, and is taken for it.
 *
 * Owns: the events, from open to close. Threads: the queue's. Where all events are in use a mark is left out. */
#ifndef WN_TRANSPORT_CUDA_MARKS_H
#define WN_TRANSPORT_CUDA_MARKS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/progress.h"
#include "transport/cuda_check.h"

#define WN_CUDA_MARKS 256u /* a step has one for each layer, and some where it meets others */

struct wn_cuda_marks {
    cudaEvent_t events[WN_CUDA_MARKS];
    bool peers[WN_CUDA_MARKS];
    uint32_t first, n; /* those that were not seen passed */
    bool waits;        /* the last one that was passed is one of `peers` */
};

/* Zero before; after a failure, too, it is closed. */
static inline wn_status wn_cuda_marks_open(struct wn_cuda_marks *m, struct wn_err *err)
{
    wn_status rc = WN_OK;

    for (uint32_t i = 0; rc == WN_OK && i < WN_CUDA_MARKS; i++)
        rc = wn_cuda_check(cudaEventCreateWithFlags(&m->events[i], cudaEventDisableTiming), "event", err);
    return rc;
}

static inline void wn_cuda_marks_close(struct wn_cuda_marks *m)
{
    for (uint32_t i = 0; i < WN_CUDA_MARKS; i++)
        if (m->events[i]) (void)cudaEventDestroy(m->events[i]);
}

/* Notes progress if there was some since the last look. */
static inline void wn_cuda_marks_look(struct wn_cuda_marks *m)
{
    const uint32_t before = m->n;

    while (m->n > 0 && cudaEventQuery(m->events[m->first]) == cudaSuccess) {
        m->waits = m->peers[m->first];
        m->first = (m->first + 1) % WN_CUDA_MARKS;
        m->n--;
    }
    if (m->n > 0) (void)cudaGetLastError(); /* "not ready" counts as an error there */
    if (m->n < before || m->waits) wn_progress_note();
}

/* Here, in the queue. A failure shows where the queue is waited for. */
static inline void wn_cuda_marks_put(struct wn_cuda_marks *m, cudaStream_t queue, bool peers)
{
    const uint32_t at = (m->first + m->n) % WN_CUDA_MARKS;

    if (m->n == WN_CUDA_MARKS) wn_cuda_marks_look(m);
    if (m->n == WN_CUDA_MARKS || wn_cuda_check(cudaEventRecord(m->events[at], queue), "event", NULL) != WN_OK) return;
    m->peers[at] = peers;
    m->n++;
}

/* The queue is empty. */
static inline void wn_cuda_marks_clear(struct wn_cuda_marks *m)
{
    m->n = 0;
    m->waits = false;
}

#endif
