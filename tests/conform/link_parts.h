/* tests/conform/link_parts.h - what the two link suites and the programs that run them share: checks that say where
 * they failed and go on, numbers whose sums tell their order, ranks that are threads. Threads: no global state. */
#ifndef WN_TESTS_CONFORM_LINK_PARTS_H
#define WN_TESTS_CONFORM_LINK_PARTS_H

#include <pthread.h>

#include "tests/conform/link_suite.h"

/* ---- checks: s has link, rank, name (of the case) and bad (its failed checks) ---- */

#define CHECK(s, cond) ((cond) ? (void)0 : CHECK_FAILED(s, #cond, ""))
#define CHECK_OK(s, call)                                                                                            \
    ((call) == WN_OK ? (void)0 : CHECK_FAILED(s, #call, wn_link_error((s)->link)->text))
#define CHECK_FAILED(s, what, why)                                                                                   \
    link_check_failed((s)->rank, (s)->name, &(s)->bad, __FILE__, __LINE__, what, why)

/* Counts it, and prints the first five. */
void link_check_failed(int rank, const char *name, int *bad, const char *file, int line, const char *what,
                       const char *why);

/* ---- numbers ---- */

uint64_t link_mix(uint64_t x); /* splitmix64 */

/* Element i of a rank's part: any exponent from -20 to 20, so that another order of sums gives other bits. */
float link_element(int rank, size_t i, uint64_t seed);

/* The contract, word for word: a balanced tree over the next power of two, missing members left out. */
float link_sum(const int *ranks, int n, size_t i, uint64_t seed);

/* ---- ranks that are threads ---- */

#define LINK_THREADS_MAX 4

struct link_thread {
    pthread_t thread;
    struct wn_local_hub *hub;
    int rank, size;
    void (*run)(struct link_thread *t);
    void *arg;
    struct link_suite_result result;
};

/* Runs a group; adds what passed on rank 0 and what failed anywhere to *sum. */
void link_threads_run(int size, void (*run)(struct link_thread *t), void *arg, struct link_suite_result *sum);

/* This rank's end of the local link; it is there. */
struct wn_link *link_thread_open(const struct link_thread *t);

/* Prints the outcome; returns the exit code. */
int link_suite_report(const char *name, struct link_suite_result sum);

#endif
