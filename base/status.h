/* base/status.h - one status code for everything, and the text that goes with a failure.
 *
 * Every function that can fail returns wn_status; 0 is success. The function that detects a failure
 * calls wn_fail() once, with a sentence that names the thing; callers only pass the code on.
 * Codes are grouped by the largest thing that the failure harms, so a caller knows what to drop. */
#ifndef WN_BASE_STATUS_H
#define WN_BASE_STATUS_H

#include <stddef.h>

#define WN_NODISCARD    __attribute__((warn_unused_result))
#define WN_PRINTF(f, a) __attribute__((format(printf, f, a)))

typedef enum wn_status {
    WN_OK = 0,
    /* the request is at fault: answer it, go on */
    WN_EINVAL,   /* an argument makes no sense */
    WN_ELIMIT,   /* more than a limit allows: too long, too large, too many */
    WN_EFORMAT,  /* bytes from outside do not parse: file, frame, image */
    WN_EUNSUPP,  /* understood, and not supported */
    WN_ENOENT,   /* there is no such thing */
    WN_EBUSY,    /* full for now: try again later */
    WN_ECANCEL,  /* somebody asked to stop */
    /* the peer is at fault: drop the connection */
    WN_EPROTO,   /* the peer broke the protocol */
    WN_EAUTH,    /* the peer may not do this */
    /* this process lacks something */
    WN_ENOMEM,
    WN_EIO,      /* the operating system said no: file, socket, process */
    /* a rank, link or device is lost: the whole group leaves */
    WN_EPEER,    /* a peer is gone or answered with an error */
    WN_ETIME,    /* a deadline passed */
    WN_EDEVICE,  /* an accelerator failed */
    WN_STATUS_N
} wn_status;

#define WN_ERR_TEXT_MAX 384

/* What went wrong. Zero-initialise it; it is valid after any call that returned non-zero. */
struct wn_err {
    wn_status code;
    char text[WN_ERR_TEXT_MAX];
};

/* Fills *err (NULL is fine) with a formatted sentence, notes it in the log at debug level, and returns code. */
wn_status wn_fail(struct wn_err *err, wn_status code, const char *fmt, ...) WN_PRINTF(3, 4);

/* Puts "prefix: " before the text of an error that a callee has already reported. Returns err->code. */
wn_status wn_err_prefix(struct wn_err *err, const char *fmt, ...) WN_PRINTF(2, 3);

/* "over the limit", "not found", ...: a constant string, never NULL. */
const char *wn_status_name(wn_status code);

/* A bug of ours. Stays on in release; never for what peers, files, memory or devices can cause. */
#define WN_ASSERT(cond) ((cond) ? (void)0 : wn_assert_failed(#cond, __FILE__, __LINE__))
_Noreturn void wn_assert_failed(const char *cond, const char *file, int line);

#endif
