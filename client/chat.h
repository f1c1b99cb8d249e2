/* client/chat.h - OpenAI's chat completions, as run-batch reads them from lines and the gateway from HTTP: the body of
 * a request to a winnow_request, events to an answer, the answer to JSON, in one piece or in pieces as it comes.
 *
 * Owns:    as said at each.     Threads: one at a time.
 * Fails:   WN_EFORMAT (no JSON), WN_EINVAL, WN_ELIMIT, WN_EUNSUPP (a field, named), WN_ENOENT, WN_EIO, WN_ENOMEM. */
#ifndef WN_CLIENT_CHAT_H
#define WN_CLIENT_CHAT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/status.h"
#include "client/winnow.h"
#include "proto/codec.h"

#define CHAT_URL        "/v1/chat/completions"
#define CHAT_IMAGE_MAX  ((size_t)256 << 20) /* all images of a request */
#define CHAT_VALUES_MAX 65536               /* commas, colons, brackets and braces of a text of JSON */

/* ---- a request ---- */

struct chat_request {
    const char *model;             /* NULL: the body has none */
    const char *field;             /* of the body, at fault after a failure; NULL: none of them */
    char *prompt;                  /* owned */
    const char *image_url[WN_IMAGES_MAX];
    struct winnow_image image[WN_IMAGES_MAX]; /* data is owned; filled by one of the chat_images_ */
    const char *stop[WN_STOP_MAX];
    bool pruned;                   /* the body says something about pruning */
    bool stream, stream_usage;     /* pieces are wanted; usage behind them, too */
    struct winnow_request request;
};

/* As json_loadb, with a bound on what the text may grow to in memory. *root is the caller's. */
WN_NODISCARD wn_status chat_json_load(json_t **root, const char *text, size_t bytes, struct wn_err *err);

/* Reads a body, which *out borrows. *out is to be given to fini in any case. */
WN_NODISCARD wn_status chat_request_parse(struct chat_request *out, json_t *body, struct wn_err *err);
void chat_request_fini(struct chat_request *r); /* a zeroed one is fine */

/* Loads the pictures of r->image_url: paths (relative to root, if it is not NULL), file:// and data: URLs; or data:
 * URLs only, for requests of strangers. */
WN_NODISCARD wn_status chat_images_read(struct chat_request *r, const char *root, struct wn_err *err);
WN_NODISCARD wn_status chat_images_decode(struct chat_request *r, struct wn_err *err);

/* One picture; *data is the caller's. More than `max` bytes: WN_ELIMIT. http(s): WN_EUNSUPP. */
WN_NODISCARD wn_status chat_image_read(const char *url, const char *root, size_t max, uint8_t **data, size_t *bytes,
                                       struct wn_err *err);

/* ---- its answer, in one piece ---- */

/* One of the answers, as far as it has come. */
struct chat_choice {
    char job_id[WINNOW_JOB_ID_MAX], finish_reason[16];
    char *text;   /* owned; NULL: it is not there yet */
    FILE *scores; /* log-probabilities of its tokens: elements of logprobs.content, into scores_text; NULL: none */
    char *scores_text;
    size_t scores_bytes;
    bool scores_any;
};

struct chat_answer { /* zero-initialise it and set choices_n */
    struct chat_choice choice[WN_CHOICES_MAX];
    uint32_t choices_n, done;
    struct winnow_usage usage; /* tokens and bytes of all choices, times of the last */
};

/* Takes the TEXT and DONE events of a request. */
WN_NODISCARD wn_status chat_answer_take(struct chat_answer *a, const struct winnow_event *ev, struct wn_err *err);
void chat_answer_fini(struct chat_answer *a); /* a zeroed one is fine; afterwards it is one */

/* "chat.completion"; `costs`: usage.winnow too. The caller's; NULL without memory. */
json_t *chat_answer_json(const struct chat_answer *a, const char *model, int64_t created_s, bool costs);

/* Any text as JSON: what is no UTF-8 as U+FFFD. NULL without memory. */
json_t *chat_text_json(const char *text);

/* {"message", "type", "param", "code"}; param and code may be NULL. */
json_t *chat_error_json(const char *message, const char *type, const char *param, const char *code);

/* Did it end in an answer? Else somebody has cancelled it at the server. */
bool chat_answered(const struct winnow_event *done);

/* ---- its answer, in pieces: server-sent events ---- */

struct chat_stream { /* zero-initialise it and set the first line */
    const char *model;
    int64_t created_s;
    uint32_t choices_n;
    bool with_usage;
    char job_id[WINNOW_JOB_ID_MAX]; /* of the first event */
    struct {
        bool began;
        size_t sent; /* bytes of text */
    } choice[WN_CHOICES_MAX];
    uint32_t done;
    struct winnow_usage usage;
};

/* Writes what an ACCEPTED, TEXT or DONE is for the reader: some chunks; behind the last DONE usage, if it is wanted,
 * and the end. WN_ENOMEM. */
WN_NODISCARD wn_status chat_stream_event(struct chat_stream *s, const struct winnow_event *ev, FILE *out);

/* The end of a stream that failed; `error` is moved. */
WN_NODISCARD wn_status chat_stream_fail(json_t *error, FILE *out);

#endif
