/* base/status.c - see status.h. */
#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

wn_status wn_fail(struct wn_err *err, wn_status code, const char *fmt, ...)
{
    char text[WN_ERR_TEXT_MAX];
    va_list ap;

    WN_ASSERT(code > WN_OK && code < WN_STATUS_N);
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    if (err) {
        err->code = code;
        memcpy(err->text, text, sizeof(text));
    }
    wn_debug("status", "%s: %s", wn_status_name(code), text);
    return code;
}

wn_status wn_err_prefix(struct wn_err *err, const char *fmt, ...)
{
    char text[WN_ERR_TEXT_MAX];
    va_list ap;
    size_t n;

    if (!err) return WN_EINVAL;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    n = strlen(text);
    snprintf(text + n, sizeof(text) - n, ": %s", err->text);
    memcpy(err->text, text, sizeof(text));
    return err->code;
}

const char *wn_status_name(wn_status code)
{
    static const char *const names[WN_STATUS_N] = {
        [WN_OK] = "ok",
        [WN_EINVAL] = "invalid argument",
        [WN_ELIMIT] = "over the limit",
        [WN_EFORMAT] = "malformed input",
        [WN_EUNSUPP] = "not supported",
        [WN_ENOENT] = "not found",
        [WN_EBUSY] = "busy",
        [WN_ECANCEL] = "cancelled",
        [WN_EPROTO] = "protocol error",
        [WN_EAUTH] = "not allowed",
        [WN_ENOMEM] = "out of memory",
        [WN_EIO] = "input/output error",
        [WN_EPEER] = "peer lost",
        [WN_ETIME] = "deadline passed",
        [WN_EDEVICE] = "device error",
    };
    if ((unsigned)code >= WN_STATUS_N || !names[code]) return "unknown status";
    return names[code];
}

void wn_assert_failed(const char *cond, const char *file, int line)
{
    fprintf(stderr, "winnow: bug: %s:%d: %s\n", file, line, cond);
    abort();
}
