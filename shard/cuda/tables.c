/* Small host tables - positions, page tables, row numbers - on their way to the device; see queue.h. */
#include <string.h>

#include "shard/cuda/cuda.h"

#define ALIGN 64u /* words between the tables of a step */

static wn_status grow(struct wn_cuda *c, struct wn_cuda_meta *m, size_t words)
{
    void *host = NULL, *device = NULL;
    size_t room = 2 * words < 1024 ? 1024 : 2 * words;
    wn_status rc = wn_cuda_check(cudaHostAlloc(&host, room * 4, cudaHostAllocDefault), "pinned table", NULL);

    if (rc == WN_OK) rc = wn_cuda_check(cudaMalloc(&device, room * 4), "table", NULL);
    if (rc == WN_OK) rc = wn_cuda_check(cudaStreamSynchronize(c->stream), "table", NULL); /* the old one is free */
    if (rc != WN_OK) {
        (void)cudaFreeHost(host);
        (void)cudaFree(device);
        return rc;
    }
    (void)cudaFreeHost(m->host);
    (void)cudaFree(m->device);
    m->host = host;
    m->device = device;
    m->room = room;
    return WN_OK;
}

/* Outside of a step: the last few tables stay where they are, and are compared. */
static wn_status cached(struct wn_cuda *c, const uint32_t *host, size_t words, const uint32_t **out)
{
    struct wn_cuda_queue *q = &c->queue;
    struct wn_cuda_meta *m = &q->metas[0];
    wn_status rc = WN_OK;

    q->clock++;
    for (uint32_t i = 0; i < WN_CUDA_METAS; i++) {
        struct wn_cuda_meta *t = &q->metas[i];
        if (t->used && t->words == words && memcmp(t->host, host, words * 4) == 0) {
            t->used = q->clock;
            *out = t->device;
            return WN_OK;
        }
        if (t->used < m->used) m = t; /* the one that was not wanted for longest */
    }
    m->used = 0;
    if (words > q->metas_room) q->metas_room = words;
    if (m->room < q->metas_room) rc = grow(c, m, q->metas_room); /* so that all are as large soon */
    /* The copy of what was here may not have left the pinned side yet. Kernels that read the device side are queued
     * before the new copy. */
    if (rc == WN_OK) rc = wn_cuda_check(cudaEventSynchronize(m->copied), "table", NULL);
    if (rc != WN_OK) return rc;
    if (words) memcpy(m->host, host, words * 4);
    if (words)
        rc = wn_cuda_check(cudaMemcpyAsync(m->device, m->host, words * 4, cudaMemcpyHostToDevice, c->stream), "table",
                           NULL);
    if (rc == WN_OK) rc = wn_cuda_check(cudaEventRecord(m->copied, c->stream), "table", NULL);
    if (rc != WN_OK) return rc;
    m->words = words;
    m->used = q->clock;
    *out = m->device;
    return WN_OK;
}

static bool same_key(struct wn_cuda_key a, struct wn_cuda_key b)
{
    return a.from == b.from && a.purpose == b.purpose && a.words == b.words;
}

bool wn_cuda_table_find(struct wn_cuda *c, struct wn_cuda_key key, const uint32_t **out)
{
    const struct wn_cuda_queue *q = &c->queue;

    for (uint32_t i = 0; q->open && i < q->tables_n; i++) {
        if (!same_key(q->tables[i].key, key)) continue;
        *out = q->step.device + q->tables[i].at;
        return true;
    }
    return false;
}

/* Everything kept so far goes, and its tables with it: there is room again. */
static wn_status start_over(struct wn_cuda *c, size_t words)
{
    wn_status rc = wn_cuda_flush(c);

    if (rc == WN_OK) rc = wn_cuda_tables_reset(c);
    return rc == WN_OK && words > c->queue.step.room ? grow(c, &c->queue.step, words) : rc;
}

wn_status wn_cuda_table(struct wn_cuda *c, struct wn_cuda_key key, const uint32_t *host, const uint32_t **out)
{
    struct wn_cuda_queue *q = &c->queue;
    struct wn_cuda_meta *m = &q->step;
    const size_t size = ((size_t)key.words + ALIGN - 1) / ALIGN * ALIGN;
    wn_status rc = WN_OK;

    if (!q->open) return cached(c, host, key.words, out);
    if (wn_cuda_table_find(c, key, out)) return WN_OK;
    if (q->tables_n == WN_CUDA_STEP_TABLES || m->words + size > m->room)
        if ((rc = start_over(c, m->words + size)) != WN_OK) return rc;
    memcpy(m->host + m->words, host, key.words * sizeof(*host));
    q->tables[q->tables_n].key = key;
    q->tables[q->tables_n++].at = m->words;
    *out = m->device + m->words;
    m->words += size;
    return WN_OK;
}

wn_status wn_cuda_tables_send(struct wn_cuda *c)
{
    struct wn_cuda_meta *m = &c->queue.step;
    size_t from = c->queue.sent;
    wn_status rc;

    if (m->words == from) return WN_OK;
    rc = wn_cuda_check(cudaMemcpyAsync(m->device + from, m->host + from, (m->words - from) * 4, cudaMemcpyHostToDevice,
                                       c->stream),
                       "tables", NULL);
    c->queue.sent = m->words;
    return rc == WN_OK ? wn_cuda_check(cudaEventRecord(m->copied, c->stream), "tables", NULL) : rc;
}

wn_status wn_cuda_tables_reset(struct wn_cuda *c)
{
    c->queue.tables_n = 0;
    c->queue.step.words = c->queue.sent = 0;
    return wn_cuda_check(cudaEventSynchronize(c->queue.step.copied), "tables", NULL); /* the pinned side is free */
}
