/* tests/conform/link_suite.h - what every link must do; see test_link.c for the links it runs on.
 *
 * Each rank of the group (a thread or a process) calls it with its own link. Threads: it keeps no global state.
 * Fails: prints each failed check with rank, file and line, and goes on. */
#ifndef WN_TESTS_LINK_SUITE_H
#define WN_TESTS_LINK_SUITE_H

#include "transport/link.h"

struct link_suite_result {
    int passed, failed; /* cases, with the outcomes of all ranks taken together */
};

/* Runs every case; the last one cancels the link, so afterwards it is good for close only. huge_bytes: the largest
 * message (smaller under a sanitizer). */
struct link_suite_result link_suite_run(struct wn_link *link, size_t huge_bytes);

#endif
