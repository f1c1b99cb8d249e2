/* shard/cpu/memory.c - see memory.h. */
#include "shard/cpu/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/hostmem.h"

#define LINE      64u
#define HUGE_PAGE ((size_t)2 << 20)

void *wn_cpu_alloc(size_t bytes)
{
    size_t align = bytes >= HUGE_PAGE ? HUGE_PAGE : LINE;
    void *p;

    if (bytes > SIZE_MAX - align) return NULL;
    bytes = (bytes + align - 1) / align * align;
    p = aligned_alloc(align, bytes ? bytes : align);
    /* Only advice: a kernel without huge pages costs time, not correctness. */
    if (p && align == HUGE_PAGE) (void)madvise(p, bytes, MADV_HUGEPAGE);
    return p;
}

wn_status wn_cpu_memory(struct wn_backend *be, struct wn_memory *out)
{
    struct wn_hostmem m;
    wn_status rc = wn_hostmem(&m, NULL);
    (void)be;

    if (rc != WN_OK) return rc;
    *out = (struct wn_memory){.free_bytes = m.free_bytes, .total_bytes = m.total_bytes};
    snprintf(out->id, sizeof(out->id), "host");
    return WN_OK;
}

wn_status wn_cpu_buf_alloc(struct wn_backend *be, size_t bytes, struct wn_buf *out)
{
    void *p = wn_cpu_alloc(bytes);
    (void)be;
    if (!p) return wn_fail(NULL, WN_ENOMEM, "cpu backend: buffer of %zu bytes", bytes);
    *out = (struct wn_buf){.ptr = p, .bytes = bytes};
    return WN_OK;
}

void wn_cpu_buf_free(struct wn_backend *be, struct wn_buf *buf)
{
    (void)be;
    free(buf->ptr);
    *buf = (struct wn_buf){0};
}

wn_status wn_cpu_upload(struct wn_backend *be, void *dst, const void *host_src, size_t bytes)
{
    (void)be;
    if (bytes) memcpy(dst, host_src, bytes);
    return WN_OK;
}

wn_status wn_cpu_download(struct wn_backend *be, void *host_dst, const void *src, size_t bytes)
{
    (void)be;
    if (bytes) memcpy(host_dst, src, bytes);
    return WN_OK;
}

wn_status wn_cpu_sync(struct wn_backend *be, int64_t deadline_us)
{
    (void)be;
    (void)deadline_us;
    return WN_OK;
}
