/* proto/scan.h - the limits of every string, bytes and repeated field, and the walk over a message's raw bytes that
 * checks them before anything is parsed or allocated. For codec.c and its test.
 *
 * Owns: nothing. Threads: any; no state. Fails: WN_ELIMIT, WN_EPROTO; the text names message and field. */
#ifndef WN_PROTO_SCAN_H
#define WN_PROTO_SCAN_H

#include <stdint.h>

#include "proto/codec.h"

struct wn_field_limit {
    const char *message, *field; /* as in winnow.proto */
    uint32_t count_max;          /* elements of a repeated field; 1 for others */
    uint32_t bytes_max;          /* of one string or bytes value; 0 for other types */
};

/* NULL if the field has no row: then it may not occur at all. */
const struct wn_field_limit *wn_field_limit_find(const char *message, const char *field);

/* Are these bytes a message of this type within the limits? Submessages are walked too. */
WN_NODISCARD wn_status wn_codec_scan(const ProtobufCMessageDescriptor *type, const uint8_t *data, size_t bytes,
                                     struct wn_err *err);

#endif
