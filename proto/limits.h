/* proto/limits.h - length and count limits of every string, bytes and repeated field. For codec.c and its test. */
#ifndef WN_PROTO_LIMITS_H
#define WN_PROTO_LIMITS_H

#include <stdint.h>

#include "proto/codec.h"

struct wn_field_limit {
    const char *message, *field; /* as in winnow.proto */
    uint32_t count_max;          /* elements of a repeated field; 1 for others */
    uint32_t bytes_max;          /* of one string or bytes value; 0 for other types */
};

/* NULL if the field has no row: then it may not occur at all. */
const struct wn_field_limit *wn_field_limit_find(const char *message, const char *field);

/* Checks the raw bytes of a message against the limits, before they are parsed. */
WN_NODISCARD wn_status wn_codec_scan(const ProtobufCMessageDescriptor *type, const uint8_t *data, size_t bytes,
                                     struct wn_err *err);

#endif
