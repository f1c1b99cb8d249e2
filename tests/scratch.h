/* tests/scratch.h - a folder of a test's own under /tmp, and folders removed with all that is in them. */
#ifndef WN_TESTS_SCRATCH_H
#define WN_TESTS_SCRATCH_H

#include <stdbool.h>
#include <stddef.h>

/* path: /tmp/winnow-NAME-XXXXXX, new and empty. */
bool scratch_make(char *path, size_t size, const char *name);

/* FOLDER/NAME with these bytes, or this text; folders that NAME has before it are made. */
bool scratch_write(const char *folder, const char *name, const void *data, size_t bytes);
bool scratch_text(const char *folder, const char *name, const char *text);

/* Links are removed, not followed. false: something is left. */
bool scratch_remove(const char *path);

#endif
