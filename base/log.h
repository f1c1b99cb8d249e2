/* base/log.h - one-line records on standard error: time, level, role, area, text.
 * The level is tested before the arguments are evaluated. Any thread may log. The text may hold what peers sent:
 * control characters, backslashes and bytes that are not UTF-8 are written as \n, \\ or \x1b. */
#ifndef WN_BASE_LOG_H
#define WN_BASE_LOG_H

#include "base/status.h"

typedef enum wn_log_level { WN_LOG_ERROR, WN_LOG_WARN, WN_LOG_INFO, WN_LOG_DEBUG, WN_LOG_TRACE } wn_log_level;

extern wn_log_level wn_log_max; /* records above this are dropped; default WN_LOG_WARN */

/* Names this process in its records ("scheduler", "shard 3"); copied, at most 31 bytes. Call before threads start. */
void wn_log_role(const char *fmt, ...) WN_PRINTF(1, 2);

void wn_log_write(wn_log_level level, const char *area, const char *fmt, ...) WN_PRINTF(3, 4);

#define WN_LOG(level, ...) ((level) <= wn_log_max ? wn_log_write((level), __VA_ARGS__) : (void)0)
#define wn_error(...)      WN_LOG(WN_LOG_ERROR, __VA_ARGS__) /* (area, format, ...) */
#define wn_warn(...)       WN_LOG(WN_LOG_WARN, __VA_ARGS__)
#define wn_info(...)       WN_LOG(WN_LOG_INFO, __VA_ARGS__)
#define wn_debug(...)      WN_LOG(WN_LOG_DEBUG, __VA_ARGS__)
#define wn_trace(...)      WN_LOG(WN_LOG_TRACE, __VA_ARGS__)

#endif
