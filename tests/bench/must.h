/* tests/bench/must.h - a benchmark that cannot go on says why, and ends with 1. */
#ifndef WN_BENCH_MUST_H
#define WN_BENCH_MUST_H

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

__attribute__((format(printf, 2, 3))) static inline void must(bool ok, const char *why, ...)
{
    va_list ap;

    if (ok) return;
    fprintf(stderr, "%s: ", program_invocation_short_name);
    va_start(ap, why);
    vfprintf(stderr, why, ap);
    va_end(ap);
    fputc('\n', stderr);
    exit(1);
}

#endif
