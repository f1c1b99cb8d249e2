/* tests/chaos/mutator.h - damaged messages from good ones, the same for the same seed. Pure. */
#ifndef WN_TESTS_MUTATOR_H
#define WN_TESTS_MUTATOR_H

#include <stddef.h>
#include <stdint.h>

#define MUTANT_MAX  ((size_t)8192)
#define SEEDS_MAX   256

struct seed_file {
    uint8_t *data;
    size_t bytes;
};

struct seeds {
    struct seed_file file[SEEDS_MAX];
    size_t n;
};

struct dice {
    uint64_t state;
};

uint32_t dice_roll(struct dice *d, uint32_t below); /* 0 .. below - 1 */

/* Adds every file of a folder that fits a mutant; the program ends if there is none. */
void seeds_read(struct seeds *s, const char *folder);
void seeds_free(struct seeds *s);

/* Writes a mutant of one of the seeds into out[MUTANT_MAX]; returns its size. One in eight is noise. The others keep
 * protobuf's structure and have a field changed, doubled, dropped or grown at any depth; a third of them also has bytes
 * bent, cut, copied or taken from another seed. */
size_t mutate(struct dice *d, const struct seeds *s, uint8_t *out);

#endif
