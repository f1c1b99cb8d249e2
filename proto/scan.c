/* proto/scan.c - see scan.h. Walks the wire format by the message's descriptor. Beside what is over a limit it refuses
 * what a peer of ours never sends and what parsers have had trouble with: groups, a wire type that does not fit the
 * field, a single message field that comes twice (merging), NUL or broken UTF-8 in text. */
#include <string.h>

#include "base/utf8.h"
#include "proto/scan.h"

static const struct wn_field_limit limits[] = {
    {"JobRef", "job_id", 1, 32}, /* these first: each token has them */
    {"Tokens", "ids", WN_TOKENS_IDS_MAX, 0},
    {"Tokens", "text", 1, WN_ANSWER_BYTES_MAX},
    {"Tokens", "logprobs", WN_TOKENS_IDS_MAX, WN_LOGPROBS_BYTES_MAX},
    {"Sampling", "stop", WN_STOP_MAX, WN_STOP_BYTES_MAX},
    {"Sampling", "stop_token_ids", WN_STOP_MAX, 0},
    {"Pruning", "method", 1, 64},
    {"Pruning", "setting", 1, 32},
    {"Pruning", "options", 1, 256},
    {"Submit", "idempotency_key", 1, WN_KEY_BYTES_MAX},
    {"Submit", "prompt", 1, WN_PROMPT_BYTES_MAX},
    {"Submit", "image_bytes", WN_IMAGES_MAX, 0},
    {"Submit", "client_tag", 1, 64},
    {"Submit", "owner", 1, 40},
    {"Attach", "job_id", 1, 32},
    {"Acknowledge", "job_id", 1, 32},
    {"Accepted", "job_id", 1, 32},
    {"Accepted", "client_tag", 1, 64},
    {"Busy", "client_tag", 1, 64},
    {"Busy", "reason", 1, 4096},
    {"TokenChance", "text", 1, WN_TOKEN_TEXT_MAX},
    {"TokenLogprobs", "top", WN_LOGPROBS_MAX, 0},
    {"Done", "text", 1, WN_ANSWER_BYTES_MAX},
    {"Error", "text", 1, 4096},
    {"Error", "client_tag", 1, 64},
    {"RankInfo", "host", 1, 256},
    {"Hello", "name", 1, 64},
    {"Hello", "host", 1, 256},
    {"Hello", "build", 1, 128},
    {"Hello", "model_id", 1, 128},
    {"Hello", "features_endpoint", 1, 512},
    {"Hello", "ranks", 1024, 0},
    {"Hello", "running", WN_RUNNING_MAX, 0},
    {"Hello", "answering", WN_RUNNING_MAX, 0},
    {"Welcome", "worker_id", 1, 64},
    {"Welcome", "kept", WN_RUNNING_MAX, 0},
    {"Heartbeat", "ranks", 1024, 0},
    {"Heartbeat", "stages", 64, 0},
    {"Encode", "leader_endpoint", 1, 512},
    {"Encode", "leader_name", 1, 64},
    {"Generate", "prompt", 1, WN_PROMPT_BYTES_MAX},
    {"Generate", "emitted", WN_EMITTED_MAX, 0},
    {"FeaturesHello", "name", 1, 64},
    {"FeaturesHello", "model_id", 1, 128},
    {"Features", "method", 1, 64},
    {"Features", "index", WN_FEATURE_ROWS_MAX, 0},
    {"Features", "flags", 1, WN_FEATURE_ROWS_MAX},
    {"Features", "sha256", 1, 32},
    {"FeaturesAck", "text", 1, 4096},
    {"WorkerStatus", "name", 1, 64},
    {"WorkerStatus", "host", 1, 256},
    {"WorkerStatus", "build", 1, 128},
    {"TurnedAway", "name", 1, 64},
    {"TurnedAway", "host", 1, 256},
    {"TurnedAway", "why", 1, 4096},
    {"Status", "model", 1, 256},
    {"Status", "version", 1, 128},
    {"Status", "quantization", 1, 32},
    {"Status", "workers", 1024, 0},
    {"Status", "turned_away", 256, 0},
    {"Status", "not_ready_because", 1, 4096},
};

const struct wn_field_limit *wn_field_limit_find(const char *message, const char *field)
{
    for (size_t i = 0; i < sizeof(limits) / sizeof(limits[0]); i++)
        if (strcmp(limits[i].message, message) == 0 && strcmp(limits[i].field, field) == 0) return &limits[i];
    return NULL;
}

/* What is left to read. */
struct cursor {
    const uint8_t *at, *end;
};

static bool read_varint(struct cursor *c, uint64_t *out)
{
    uint64_t v = 0;

    for (unsigned shift = 0; shift < 70 && c->at < c->end; shift += 7) {
        uint8_t b = *c->at++;
        if (shift == 63 && b > 1) return false; /* more than 64 bits */
        v |= (uint64_t)(b & 0x7f) << shift;
        if (!(b & 0x80)) {
            *out = v;
            return true;
        }
    }
    return false;
}

static bool skip_bytes(struct cursor *c, uint64_t bytes)
{
    if (bytes > (uint64_t)(c->end - c->at)) return false;
    c->at += bytes;
    return true;
}

/* Wire type that a field's values have when they are not packed. */
static unsigned wire_of(ProtobufCType type)
{
    switch (type) {
    case PROTOBUF_C_TYPE_FLOAT:
    case PROTOBUF_C_TYPE_FIXED32:
    case PROTOBUF_C_TYPE_SFIXED32: return 5;
    case PROTOBUF_C_TYPE_DOUBLE:
    case PROTOBUF_C_TYPE_FIXED64:
    case PROTOBUF_C_TYPE_SFIXED64: return 1;
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_BYTES:
    case PROTOBUF_C_TYPE_MESSAGE: return 2;
    default: return 0;
    }
}

/* Skips one value of this wire type; for 2, *out is what it holds. */
static bool skip_value(struct cursor *c, unsigned wire, struct cursor *out)
{
    uint64_t v;

    switch (wire) {
    case 0: return read_varint(c, &v);
    case 1: return skip_bytes(c, 8);
    case 5: return skip_bytes(c, 4);
    case 2:
        if (!read_varint(c, &v) || v > (uint64_t)(c->end - c->at)) return false;
        out->at = c->at;
        out->end = c->at + v;
        c->at += v;
        return true;
    default: return false; /* groups are not of proto3 */
    }
}

/* Counts the values of a packed field; -1: they do not fill it exactly. */
static int64_t packed_count(struct cursor v, unsigned wire)
{
    int64_t n = 0;
    struct cursor none;

    for (; v.at < v.end; n++)
        if (!skip_value(&v, wire, &none)) return -1;
    return n;
}

/* Where in the message we are, and how often each of its fields has come. */
struct scan {
    const ProtobufCMessageDescriptor *type;
    uint32_t seen[32];
    uint32_t unknown, bodies;
};

static wn_status scan_field(struct scan *s, const ProtobufCFieldDescriptor *f, unsigned wire, struct cursor v,
                            struct wn_err *err)
{
    const size_t bytes = wire == 2 ? (size_t)(v.end - v.at) : 0;
    const bool repeated = f->label == PROTOBUF_C_LABEL_REPEATED, text = f->type == PROTOBUF_C_TYPE_STRING;
    const bool limited = repeated || text || f->type == PROTOBUF_C_TYPE_BYTES; /* of the others there is one */
    const struct wn_field_limit *lim = limited ? wn_field_limit_find(s->type->short_name, f->name) : NULL;
    const uint32_t count_max = lim ? lim->count_max : repeated ? 0 : 1;
    uint32_t *seen = &s->seen[f - s->type->fields];
    int64_t n = 1;

    if (wire != wire_of(f->type)) {
        if (!repeated || wire != 2 || wire_of(f->type) == 2 || (n = packed_count(v, wire_of(f->type))) < 0)
            return wn_fail(err, WN_EPROTO, "%s.%s: not what this field holds", s->type->short_name, f->name);
    } else if (text || f->type == PROTOBUF_C_TYPE_BYTES) {
        if (!lim || bytes > lim->bytes_max)
            return wn_fail(err, WN_ELIMIT, "%s.%s: %zu bytes, at most %u are allowed", s->type->short_name, f->name,
                           bytes, lim ? lim->bytes_max : 0);
        if (text && !wn_utf8_valid((const char *)v.at, bytes))
            return wn_fail(err, WN_EPROTO, "%s.%s: the text is not valid UTF-8", s->type->short_name, f->name);
    }
    if (n > (int64_t)count_max - *seen)
        return wn_fail(err, repeated ? WN_ELIMIT : WN_EPROTO, "%s.%s: more than %u", s->type->short_name, f->name,
                       count_max);
    *seen += (uint32_t)n;
    if (f->type == PROTOBUF_C_TYPE_MESSAGE) return wn_codec_scan(f->descriptor, v.at, bytes, err);
    return WN_OK;
}

/* The schema has no recursion, so the depth of calls is bounded by its nesting (four). */
wn_status wn_codec_scan(const ProtobufCMessageDescriptor *type, const uint8_t *data, size_t bytes,
                        struct wn_err *err)
{
    struct cursor c = {data, data + bytes};
    struct scan s = {.type = type};
    wn_status rc;

    WN_ASSERT(type->n_fields <= sizeof(s.seen) / sizeof(s.seen[0]));
    while (c.at < c.end) {
        const ProtobufCFieldDescriptor *f;
        struct cursor v = {NULL, NULL};
        uint64_t tag;

        if (!read_varint(&c, &tag) || tag > UINT32_MAX || tag >> 3 == 0 || !skip_value(&c, (unsigned)(tag & 7), &v))
            return wn_fail(err, WN_EPROTO, "%s: cut short or not a message of this protocol", type->short_name);
        f = protobuf_c_message_descriptor_get_field(type, (unsigned)(tag >> 3));
        if (!f) {
            if (++s.unknown > WN_CODEC_UNKNOWN_MAX)
                return wn_fail(err, WN_ELIMIT, "%s: more than %d unknown fields", type->short_name,
                               WN_CODEC_UNKNOWN_MAX);
            continue;
        }
        if ((f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) && ++s.bodies > 1)
            return wn_fail(err, WN_EPROTO, "%s: more than one body", type->short_name);
        if ((rc = scan_field(&s, f, (unsigned)(tag & 7), v, err)) != WN_OK) return rc;
    }
    return WN_OK;
}
