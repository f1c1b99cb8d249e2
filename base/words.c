/* base/words.c - see words.h. */
#include "base/words.h"

#include <limits.h>
#include <string.h>

#define NEAR 3u /* letters */

unsigned wn_word_distance(const char *a, const char *b)
{
    unsigned row[WN_WORD_MAX + 1];
    const size_t n = strlen(b);

    if (n > WN_WORD_MAX || strlen(a) > WN_WORD_MAX) return UINT_MAX;
    for (size_t j = 0; j <= n; j++) row[j] = (unsigned)j;
    for (size_t i = 0; a[i]; i++) {
        unsigned left = row[0]++, next;
        for (size_t j = 1; j <= n; j++) {
            next = row[j];
            row[j] = left + (a[i] != b[j - 1]);
            if (next + 1 < row[j]) row[j] = next + 1;
            if (row[j - 1] + 1 < row[j]) row[j] = row[j - 1] + 1;
            left = next;
        }
    }
    return row[n];
}

bool wn_word_is_nearer(const char *typed, const char *known, unsigned *distance)
{
    const unsigned d = wn_word_distance(typed, known);

    if (d >= *distance || d > NEAR || d * 2 > strlen(known)) return false;
    *distance = d;
    return true;
}
