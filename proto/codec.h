/* proto/codec.h - control messages to bytes and back, under limits.
 *
 * Owns:    nothing; messages from wn_codec_unpack and bytes from wn_codec_pack are the caller's.
 * Threads: any; no state.
 * Fails:   WN_ELIMIT (a length or count over the table in scan.c), WN_EPROTO (not our wire format, a field with the
 *          wrong type, text that is not UTF-8, a body that is unknown or lacks its job), WN_EUNSUPP (another protocol
 *          version), WN_EINVAL (a value outside its range), WN_ENOMEM. The sentence names message and field.
 *
 * Every length, count and string is checked on the raw bytes before protobuf-c parses them; a parse may then allocate
 * at most WN_CODEC_MEMORY_MAX in all. Both directions check, so that nobody sends what the other side refuses. */
#ifndef WN_PROTO_CODEC_H
#define WN_PROTO_CODEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "base/traffic.h"
#include "proto/winnow.pb-c.h"

#define WN_PROTO_VERSION       1
#define WN_CODEC_BYTES_MAX     ((size_t)1 << 20)  /* one Envelope */
#define WN_CODEC_MEMORY_MAX    ((size_t)64 << 20) /* what one parse may allocate */
#define WN_CODEC_UNKNOWN_MAX   64                 /* fields of a later version of a message: skipped */
#define WN_PROMPT_BYTES_MAX    ((size_t)256 << 10)
#define WN_ANSWER_BYTES_MAX    ((size_t)512 << 10) /* Done.text */
#define WN_IMAGES_MAX          16                  /* images of a job */
#define WN_TOKENS_IDS_MAX      4096                /* ids in one Tokens */
#define WN_RUNNING_MAX         4096                /* jobs in Hello.running and Welcome.kept */
#define WN_EMITTED_MAX         65536               /* ids in Generate.emitted: the longest answer */
#define WN_FEATURE_ROWS_MAX    65536               /* rows of one Features */
#define WN_STOP_MAX            16                  /* stop strings */
#define WN_STOP_BYTES_MAX      64
#define WN_JOB_ID_CHARS        26                  /* Crockford base32, as in a ULID */
#define WN_LOGPROBS_MAX        20                  /* likeliest tokens beside the chosen one */
#define WN_TOKEN_TEXT_MAX      64                  /* of one token in them: longer ones are cut */
#define WN_LOGPROBS_BYTES_MAX  2048                /* one packed TokenLogprobs */
#define WN_CHOICES_MAX         16                  /* answers of one Submit */
#define WN_KEY_BYTES_MAX       128                 /* idempotency key */
#define WN_DRAIN_MS_MAX        86400000            /* for jobs that run when the service ends */

/* The bytes of one message; *out is owned by the caller: free(). env->version is ignored and sent as ours. */
WN_NODISCARD wn_status wn_codec_pack(uint8_t **out, size_t *out_bytes, const Wn__Envelope *env, struct wn_err *err);

/* The same for a body alone: wn_codec_pack_body(&p, &n, WN__ENVELOPE__BODY_HELLO, &hello, err). */
WN_NODISCARD wn_status wn_codec_pack_body(uint8_t **out, size_t *out_bytes, Wn__Envelope__BodyCase kind,
                                          const void *body, struct wn_err *err);

/* Parses one message. *out is owned by the caller: wn_codec_free(). It has a body, and a body about a job has a JobRef
 * with a well-formed id (Error.job may be NULL). Submessages that were not sent are NULL, strings are never NULL. */
WN_NODISCARD wn_status wn_codec_unpack(Wn__Envelope **out, const void *data, size_t bytes, struct wn_err *err);
void wn_codec_free(Wn__Envelope *env); /* NULL is fine */

/* The Hello of a peer that speaks another version (wn_codec_unpack said WN_EUNSUPP): for what may be told of it. NULL:
 * it is none, or not as we know it. The caller's: wn_codec_free(). */
Wn__Envelope *wn_codec_unpack_strange_hello(const void *data, size_t bytes);

/* What one value of Tokens.logprobs holds. *out is owned by the caller: wn__token_logprobs__free_unpacked(). */
WN_NODISCARD wn_status wn_codec_unpack_logprobs(Wn__TokenLogprobs **out, const void *data, size_t bytes,
                                                struct wn_err *err);

/* "Submit", "Features", ...: for logs. Never NULL. */
const char *wn_codec_body_name(Wn__Envelope__BodyCase kind);

/* Whether this body may be followed by a payload frame. */
bool wn_codec_has_payload(Wn__Envelope__BodyCase kind);

/* Ranges of what a client may ask for. NULL is fine: nothing asked. WN_EINVAL or WN_ELIMIT, named. wn_codec_unpack
 * makes these checks itself for all bodies but Submit, whose receiver can answer the client about them. */
WN_NODISCARD wn_status wn_sampling_check(const Wn__Sampling *s, struct wn_err *err);
WN_NODISCARD wn_status wn_pruning_check(const Wn__Pruning *p, struct wn_err *err);

/* 26 characters of Crockford's base32. */
bool wn_job_id_valid(const char *id);

/* Same job and same attempt. NULL equals nothing. */
bool wn_jobref_equal(const Wn__JobRef *a, const Wn__JobRef *b);

/* *into += from, field by field. from may be NULL. */
void wn_link_bytes_add(Wn__LinkBytes *into, const Wn__LinkBytes *from);

/* Times and bytes add up; token counts of *from replace those that are not 0; into->bytes_on_wire must be there if
 * from's is. pruning, attempts and total_us are not touched. */
void wn_usage_add(Wn__Usage *into, const Wn__Usage *from);

/* What was sent, by kind, in the message's form. Token ids and text count as control. */
void wn_link_bytes_from_traffic(Wn__LinkBytes *out, const struct wn_traffic_table *table);

#endif
