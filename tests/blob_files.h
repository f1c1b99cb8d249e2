/* tests/blob_files.h - the image files that lie in a journal's folder. Threads: one at a time. */
#ifndef WN_TESTS_BLOB_FILES_H
#define WN_TESTS_BLOB_FILES_H

int blob_files_count(const char *journal);

/* Cuts each to three bytes. Returns how many that were; -1: one could not be cut. */
int blob_files_tear(const char *journal);

#endif
