/* base/utf8.h - UTF-8: characters decoded and encoded, texts checked. Pure functions. */
#ifndef WN_BASE_UTF8_H
#define WN_BASE_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define WN_UTF8_REPLACEMENT "\xEF\xBF\xBD" /* U+FFFD */

/* Decodes the character at p, n >= 1 bytes. Returns its length and sets *cp; 0 if the bytes are the beginning of a
 * character and end too early; -k if the first k bytes can begin no character (Unicode's "maximal subpart", which
 * one U+FFFD replaces). Surrogates, overlong forms and values over U+10FFFF are invalid. */
static inline int wn_utf8_decode(const char *bytes, size_t n, uint32_t *cp)
{
    const uint8_t *p = (const uint8_t *)bytes;
    uint8_t lo = 0x80, hi = 0xBF; /* bounds of the second byte */
    int more;
    uint32_t c;

    if (p[0] < 0x80) {
        *cp = p[0];
        return 1;
    }
    if (p[0] < 0xC2 || p[0] > 0xF4) return -1;
    more = p[0] < 0xE0 ? 1 : p[0] < 0xF0 ? 2 : 3;
    if (p[0] == 0xE0) lo = 0xA0;
    if (p[0] == 0xED) hi = 0x9F;
    if (p[0] == 0xF0) lo = 0x90;
    if (p[0] == 0xF4) hi = 0x8F;
    c = p[0] & (0x3Fu >> more);
    for (int i = 1; i <= more; i++) {
        if ((size_t)i >= n) return 0;
        if (p[i] < lo || p[i] > hi) return -i;
        c = c << 6 | (p[i] & 0x3Fu);
        lo = 0x80;
        hi = 0xBF;
    }
    *cp = c;
    return more + 1;
}

/* Writes cp (a valid scalar value) to out, at most 4 bytes. Returns how many. */
static inline size_t wn_utf8_encode(uint32_t cp, char out[4])
{
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    if (cp < 0x800) {
        out[0] = (char)(0xC0 | cp >> 6);
        out[1] = (char)(0x80 | (cp & 0x3F));
        return 2;
    }
    if (cp < 0x10000) {
        out[0] = (char)(0xE0 | cp >> 12);
        out[1] = (char)(0x80 | (cp >> 6 & 0x3F));
        out[2] = (char)(0x80 | (cp & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | cp >> 18);
    out[1] = (char)(0x80 | (cp >> 12 & 0x3F));
    out[2] = (char)(0x80 | (cp >> 6 & 0x3F));
    out[3] = (char)(0x80 | (cp & 0x3F));
    return 4;
}

/* The offset of the first byte that is not part of a valid character, or n. */
static inline size_t wn_utf8_check(const char *bytes, size_t n)
{
    size_t i = 0;

    while (i < n) {
        uint32_t cp;
        int len = wn_utf8_decode(bytes + i, n - i, &cp);
        if (len <= 0) break;
        i += (size_t)len;
    }
    return i;
}

/* Valid as a whole, and without a NUL: may go where texts end in one. */
static inline bool wn_utf8_valid(const char *bytes, size_t n)
{
    return n == 0 || (!memchr(bytes, '\0', n) && wn_utf8_check(bytes, n) == n);
}

#endif
