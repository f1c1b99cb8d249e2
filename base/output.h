/* base/output.h - standard output at the end of a program. What was lost on its way to a full disk is a failure. */
#ifndef WN_BASE_OUTPUT_H
#define WN_BASE_OUTPUT_H

/* For main's last line: flushes standard output. Returns `code`, or 1 and an error line on standard error if `code` was
 * 0 and not all was written. A reader that went away (a pipe into head) is no failure. */
int wn_output_end(const char *program, int code);

#endif
