/* tests/scratch.h - a folder of a test's own under /tmp, and folders removed with all that is in them. */
#ifndef WN_TESTS_SCRATCH_H
#define WN_TESTS_SCRATCH_H

#include <stdbool.h>
#include <stddef.h>

/* path: /tmp/winnow-NAME-XXXXXX, new and empty. */
bool scratch_make(char *path, size_t size, const char *name);

/* Links are removed, not followed. false: something is left. */
bool scratch_remove(const char *path);

#endif
