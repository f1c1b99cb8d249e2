/* base/log.c - see log.h. A record is built in one buffer and written with one call, so that
 * records of processes that share a terminal do not mix. */
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/utf8.h"

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

/* Appends to line[*at]; a record that does not fit is cut, never overrun. */
static void appendf(char *line, size_t size, size_t *at, const char *fmt, ...) WN_PRINTF(4, 5);
static void appendf(char *line, size_t size, size_t *at, const char *fmt, ...)
{
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(line + *at, size - *at, fmt, ap);
    va_end(ap);
    if (n < 0) return;
    *at = (size_t)n < size - *at ? *at + (size_t)n : size - 1;
}

/* Bytes of the UTF-8 character at p that may go to a terminal as they are; 0: a control character, or no UTF-8. */
static size_t printable(const char *p)
{
    uint32_t c;
    const int n = wn_utf8_decode(p, 4, &c); /* the NUL at the text's end is part of no longer character */

    return n <= 0 || c < 0x20 || c == '\\' || (c >= 0x7f && c < 0xa0) ? 0 : (size_t)n;
}

/* Texts of peers and file names end up in records: one record stays one line, and a terminal gets no commands. */
static void append_escaped(char *line, size_t size, size_t *at, const char *text)
{
    const char *p = text;

    while (*p) {
        const size_t n = printable(p);
        if (n > size - 1 - *at) return;
        memcpy(line + *at, p, n);
        *at += n;
        p += n;
        if (n > 0) continue;
        if (size - 1 - *at < 4) return;
        if (*p == '\n') appendf(line, size, at, "\\n");
        else if (*p == '\\') appendf(line, size, at, "\\\\");
        else appendf(line, size, at, "\\x%02x", (unsigned char)*p);
        p++;
    }
}

void wn_log_write(wn_log_level level, const char *area, const char *fmt, ...)
{
    char line[1024], text[1024];
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
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    append_escaped(line, room, &at, text);
    line[at++] = '\n';
    (void)!write(STDERR_FILENO, line, at);
}
