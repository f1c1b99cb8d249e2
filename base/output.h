/* base/output.h - standard streams at the start and the end of a program. */
#ifndef WN_BASE_OUTPUT_H
#define WN_BASE_OUTPUT_H

/* For main's first line: a stream that the caller has closed (winnow ... >&-) leads nowhere, so that no socket or file
 * of ours takes its number and gets what we print. */
void wn_output_begin(void);

/* For main's last line: flushes standard output. Returns `code`, or 1 and an error line on standard error if `code` was
 * 0 and not all was written. A reader that went away (a pipe into head) is no failure. */
int wn_output_end(const char *program, int code);

#endif
