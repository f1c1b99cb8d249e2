/* shard/cpu/memory.h - memory of the CPU backends: the buffer operations that both share, and large allocations.
 * Owns: nothing. Threads: any. Fails: WN_ENOMEM. */
#ifndef WN_SHARD_CPU_MEMORY_H
#define WN_SHARD_CPU_MEMORY_H

#include "shard/backend.h"

/* 64-byte aligned; from 2 MiB on aligned to huge pages, which the kernel is asked to use. NULL if there is none.
 * Contents undefined. Freed by free(). */
void *wn_cpu_alloc(size_t bytes);

wn_status wn_cpu_memory(struct wn_backend *be, struct wn_memory *out); /* what this process may still take */
wn_status wn_cpu_buf_alloc(struct wn_backend *be, size_t bytes, struct wn_buf *out);
void wn_cpu_buf_free(struct wn_backend *be, struct wn_buf *buf);
wn_status wn_cpu_upload(struct wn_backend *be, void *dst, const void *host_src, size_t bytes);
wn_status wn_cpu_download(struct wn_backend *be, void *host_dst, const void *src, size_t bytes);
wn_status wn_cpu_sync(struct wn_backend *be, int64_t deadline_us); /* nothing is ever pending */

#endif
