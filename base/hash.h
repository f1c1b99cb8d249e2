/* base/hash.h - FNV-1a, 32 bits: for tables whose keys are short and whose buckets are bounded by something else, for
 * it resists nobody. Pure. */
#ifndef WN_BASE_HASH_H
#define WN_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

static inline uint32_t wn_hash(const void *data, size_t bytes)
{
    const uint8_t *p = data;
    uint32_t h = 2166136261u;

    for (size_t i = 0; i < bytes; i++) h = (h ^ p[i]) * 16777619u;
    return h;
}

#endif
