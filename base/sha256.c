/* base/sha256.c - see sha256.h. FIPS 180-4, section 6.2. */
#include "base/sha256.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

#define BLOCK 64u

/* The first 32 bits of the fractions of the cube roots of the first 64 primes. */
static const uint32_t k[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t turn(uint32_t x, int n)
{
    return x >> n | x << (32 - n);
}

static uint32_t load_be(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void blocks_portable(uint32_t h[8], const uint8_t *data, size_t blocks)
{
    for (; blocks > 0; blocks--, data += BLOCK) {
        uint32_t w[64], s[8];
        for (int i = 0; i < 16; i++) w[i] = load_be(data + 4 * i);
        for (int i = 16; i < 64; i++) {
            const uint32_t a = w[i - 15], b = w[i - 2];
            w[i] = w[i - 16] + (turn(a, 7) ^ turn(a, 18) ^ a >> 3) + w[i - 7] + (turn(b, 17) ^ turn(b, 19) ^ b >> 10);
        }
        memcpy(s, h, sizeof(s));
        for (int i = 0; i < 64; i++) {
            const uint32_t choose = (s[4] & s[5]) ^ (~s[4] & s[6]);
            const uint32_t most = (s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]);
            const uint32_t one = s[7] + (turn(s[4], 6) ^ turn(s[4], 11) ^ turn(s[4], 25)) + choose + k[i] + w[i];
            const uint32_t two = (turn(s[0], 2) ^ turn(s[0], 13) ^ turn(s[0], 22)) + most;
            memmove(s + 1, s, 7 * sizeof(s[0]));
            s[4] += one;
            s[0] = one + two;
        }
        for (int i = 0; i < 8; i++) h[i] += s[i];
    }
}

#if defined(__x86_64__)
/* The instructions hold the state as words a b e f and c d g h, the first the highest; two rounds at a time. */
__attribute__((target("sha,sse4.1"))) static void blocks_sha(uint32_t h[8], const uint8_t *data, size_t blocks)
{
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    const __m128i dcba = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)h), 0xb1);
    const __m128i hgfe = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)(h + 4)), 0x1b);
    __m128i abef = _mm_alignr_epi8(dcba, hgfe, 8), cdgh = _mm_blend_epi16(hgfe, dcba, 0xf0);

    for (; blocks > 0; blocks--, data += BLOCK) {
        const __m128i abef_was = abef, cdgh_was = cdgh;
        __m128i w[4];
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) { /* four rounds; w[i % 4] are their words, made of the 16 before */
            __m128i *now = &w[i % 4], sum;
            if (i < 4) {
                *now = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(data + 16 * i)), swap);
            } else {
                const __m128i last = w[(i + 3) % 4];
                *now = _mm_add_epi32(_mm_sha256msg1_epu32(*now, w[(i + 1) % 4]),
                                     _mm_alignr_epi8(last, w[(i + 2) % 4], 4));
                *now = _mm_sha256msg2_epu32(*now, last);
            }
            sum = _mm_add_epi32(*now, _mm_loadu_si128((const __m128i *)(k + 4 * i)));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0e));
        }
        abef = _mm_add_epi32(abef, abef_was);
        cdgh = _mm_add_epi32(cdgh, cdgh_was);
    }
    abef = _mm_shuffle_epi32(abef, 0x1b);
    cdgh = _mm_shuffle_epi32(cdgh, 0xb1);
    _mm_storeu_si128((__m128i *)h, _mm_blend_epi16(abef, cdgh, 0xf0));
    _mm_storeu_si128((__m128i *)(h + 4), _mm_alignr_epi8(cdgh, abef, 8));
}

static bool has_sha(void)
{
    unsigned a, b, c, d;
    return __builtin_cpu_supports("sse4.1") && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_SHA);
}
#endif

static atomic_int chosen; /* 0: not yet, 1: portable, 2: the processor's */

void wn_sha256_force_portable(void)
{
    atomic_store(&chosen, 1);
}

static void add_blocks(uint32_t h[8], const uint8_t *data, size_t blocks)
{
#if defined(__x86_64__)
    int which = atomic_load_explicit(&chosen, memory_order_relaxed);
    if (which == 0) {
        which = has_sha() ? 2 : 1;
        atomic_store_explicit(&chosen, which, memory_order_relaxed);
    }
    if (which == 2) {
        blocks_sha(h, data, blocks);
        return;
    }
#endif
    blocks_portable(h, data, blocks);
}

void wn_sha256_init(struct wn_sha256 *s)
{
    /* of the square roots of the first 8 primes */
    static const uint32_t h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                  0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    memcpy(s->h, h, sizeof(h));
    s->bytes = 0;
}

void wn_sha256_update(struct wn_sha256 *s, const void *data, size_t bytes)
{
    const uint8_t *from = data;
    const size_t have = s->bytes % BLOCK;

    if (bytes == 0) return;
    s->bytes += bytes;
    if (have) {
        const size_t n = bytes < BLOCK - have ? bytes : BLOCK - have;
        memcpy(s->block + have, from, n);
        if (have + n < BLOCK) return;
        add_blocks(s->h, s->block, 1);
        from += n;
        bytes -= n;
    }
    add_blocks(s->h, from, bytes / BLOCK);
    memcpy(s->block, from + bytes / BLOCK * BLOCK, bytes % BLOCK);
}

void wn_sha256_final(struct wn_sha256 *s, uint8_t out[WN_SHA256_BYTES])
{
    uint8_t end[2 * BLOCK] = {0x80};
    const uint64_t bits = s->bytes * 8;
    const size_t have = s->bytes % BLOCK, pad = (have < 56 ? 56 : 120) - have;

    for (size_t i = 0; i < 8; i++) end[pad + i] = (uint8_t)(bits >> (56 - 8 * i));
    wn_sha256_update(s, end, pad + 8);
    for (size_t i = 0; i < 8; i++)
        for (size_t j = 0; j < 4; j++) out[4 * i + j] = (uint8_t)(s->h[i] >> (24 - 8 * j));
}
