/* base/sha256.h - SHA-256, with the processor's own instructions where it has them (seven times as fast here): pictures
 * and their features are hashed at every hop.
 *
 * No memory but the caller's, no failures. Threads: any, a state belongs to one. */
#ifndef WN_BASE_SHA256_H
#define WN_BASE_SHA256_H

#include <stddef.h>
#include <stdint.h>

#define WN_SHA256_BYTES 32

struct wn_sha256 {
    uint32_t h[8];
    uint64_t bytes;
    uint8_t block[64]; /* the first bytes % 64 of it wait for the rest */
};

void wn_sha256_init(struct wn_sha256 *s);
void wn_sha256_update(struct wn_sha256 *s, const void *data, size_t bytes);
void wn_sha256_final(struct wn_sha256 *s, uint8_t out[WN_SHA256_BYTES]);

static inline void wn_sha256(uint8_t out[WN_SHA256_BYTES], const void *data, size_t bytes)
{
    struct wn_sha256 s;
    wn_sha256_init(&s);
    wn_sha256_update(&s, data, bytes);
    wn_sha256_final(&s, out);
}

/* For tests: the portable rounds from now on. */
void wn_sha256_force_portable(void);

#endif
