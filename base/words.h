/* base/words.h - what somebody who typed a word that is not known may have meant. Pure. */
#ifndef WN_BASE_WORDS_H
#define WN_BASE_WORDS_H

#include <stdbool.h>
#include <stddef.h>

#define WN_WORD_MAX 64 /* longer words are like no other */

/* How many letters have to be changed, added or left out to make b of a. */
unsigned wn_word_distance(const char *a, const char *b);

/* Is `known` likely meant by `typed`, and nearer to it than *distance (at first UINT_MAX), which then becomes its own?
 * For a walk over all words that are known. */
bool wn_word_is_nearer(const char *typed, const char *known, unsigned *distance);

#endif
