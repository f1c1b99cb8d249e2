/* base/bytes.h - amounts of memory and of messages as people read them: "512 B", "6.12 GiB". Pure. */
#ifndef WN_BASE_BYTES_H
#define WN_BASE_BYTES_H

#include <stdio.h>

#define WN_BYTES_TEXT 24

/* Writes to out and returns it; `decimals` behind the point of all but plain bytes. */
static inline const char *wn_bytes_text(char out[WN_BYTES_TEXT], double bytes, int decimals)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    int u = 0;

    for (; bytes >= 1024 && u < 5; u++) bytes /= 1024;
    snprintf(out, WN_BYTES_TEXT, "%.*f %s", u ? decimals : 0, bytes, units[u]);
    return out;
}

#endif
