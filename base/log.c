/* base/log.c - see log.h. A record is built in one buffer and written with one call, so that
 * records of processes that share a terminal do not mix. */
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

wn_log_level wn_log_max = WN_LOG_WARN;

static char log_role[32] = "winnow";
static const char *const level_names[] = {"error", "warn", "info", "debug", "trace"};

void wn_log_role(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(log_role, sizeof(log_role), fmt, ap);
    va_end(ap);
}

bool wn_log_level_parse(const char *name, wn_log_level *out)
{
    for (int i = 0; i < (int)(sizeof(level_names) / sizeof(level_names[0])); i++) {
        if (strcmp(name, level_names[i]) == 0) {
            *out = (wn_log_level)i;
            return true;
        }
    }
    return false;
}

/* Appends to line[*at]; a record that does not fit is cut, never overrun. */
static void append(char *line, size_t size, size_t *at, const char *fmt, va_list ap)
{
    int n = vsnprintf(line + *at, size - *at, fmt, ap);
    if (n < 0) return;
    *at = (size_t)n < size - *at ? *at + (size_t)n : size - 1;
}

static void appendf(char *line, size_t size, size_t *at, const char *fmt, ...) WN_PRINTF(4, 5);
static void appendf(char *line, size_t size, size_t *at, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    append(line, size, at, fmt, ap);
    va_end(ap);
}

void wn_log_write(wn_log_level level, const char *area, const char *fmt, ...)
{
    char line[1024];
    const size_t room = sizeof(line) - 1; /* the newline always fits */
    size_t at = 0;
    struct timespec ts;
    struct tm tm;
    va_list ap;

    clock_gettime(CLOCK_REALTIME, &ts);
    localtime_r(&ts.tv_sec, &tm);
    appendf(line, room, &at, "%02d:%02d:%02d.%03ld %-5s %s %s: ", tm.tm_hour, tm.tm_min, tm.tm_sec,
            ts.tv_nsec / 1000000, level_names[level], log_role, area);
    va_start(ap, fmt);
    append(line, room, &at, fmt, ap);
    va_end(ap);
    line[at++] = '\n';
    (void)!write(STDERR_FILENO, line, at);
}
