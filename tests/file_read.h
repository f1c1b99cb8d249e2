/* tests/file_read.h - a whole file in memory. */
#ifndef WN_TESTS_FILE_READ_H
#define WN_TESTS_FILE_READ_H

#include <stddef.h>

/* Its bytes, and a zero behind them; free() it. *bytes: without the zero. NULL: it cannot be read. */
void *file_read(const char *path, size_t *bytes);

#endif
