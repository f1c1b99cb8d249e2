/* tests/bench/serving.h - what the benchmarks of a whole service share. Where it cannot go on it fails the test that
 * runs, as tests/integration/service.h does. */
#ifndef WN_BENCH_SERVING_H
#define WN_BENCH_SERVING_H

#include <stddef.h>

enum { SERVING_FLAGS_MAX = 32 };

/* What follows on the command line for winnowd serve; NULL-terminated, and there is room for two more. */
struct serving_flags {
    const char *list[SERVING_FLAGS_MAX];
    int n;
    char text[512]; /* the same, for a row */
};
void serving_flags_take(struct serving_flags *f, char **argv, int n);

/* "PROCESSOR xCORES". */
void serving_machine(char *out, size_t room);

/* The first n pictures of tests/eval; free() each. */
void serving_pictures(void **data, size_t *bytes, int n);

/* Sorts times [n]; 0 if there is none. */
double serving_quantile_ms(double *seconds, size_t n, double q);

#endif
