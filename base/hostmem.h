/* base/hostmem.h - how much memory this process may still take on this machine.
 *
 * The kernel's estimate of what is available, or less where a control group (v2 or v1: Slurm, containers, systemd) is
 * tighter; cached file pages count as available in both. Owns: nothing. Threads: any.
 * Fails: WN_EIO where /proc is not what it should be. */
#ifndef WN_BASE_HOSTMEM_H
#define WN_BASE_HOSTMEM_H

#include <stdint.h>

#include "base/status.h"

struct wn_hostmem {
    uint64_t free_bytes, total_bytes;
};

WN_NODISCARD wn_status wn_hostmem(struct wn_hostmem *out, struct wn_err *err);

/* The same below another root folder, which has proc/ and sys/ as "/" has: for tests. */
WN_NODISCARD wn_status wn_hostmem_at(struct wn_hostmem *out, const char *root, struct wn_err *err);

#endif
