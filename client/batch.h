/* client/batch.h - the parts of `winnow run-batch`: lines of the OpenAI batch shape in, lines of its output shape out,
 * and the two files that make a run resumable.
 *
 * The name of a request is the hash of its custom_id, or of its line where it has none; "id" of an output line has it,
 * so that a second run knows from the output alone what is left to do.
 *
 * Owns:    as said at each.     Threads: one at a time.
 * Fails:   WN_EFORMAT (no JSON), WN_EINVAL, WN_ELIMIT, WN_EUNSUPP (a field, named), WN_ENOENT, WN_EIO, WN_ENOMEM. */
#ifndef WN_CLIENT_BATCH_H
#define WN_CLIENT_BATCH_H

#include "client/chat.h"

#define BATCH_LINE_MAX      ((size_t)384 << 20) /* base64 of the most image bytes that a job may have, and some text */
#define BATCH_CUSTOM_ID_MAX 512
#define BATCH_ITEMS_MAX     (UINT32_MAX / 4)
#define BATCH_NAME_BYTES    16
#define BATCH_ID_MAX        48 /* "batch_req_" and the name in hex */

/* ---- one input line ---- */

struct batch_request {
    json_t *root;          /* behind the strings below; owned */
    const char *custom_id; /* NULL: the line has none */
    struct chat_request chat;
};

/* Reads a line. *out is to be given to fini in any case; after a failure it may still have its custom_id. */
WN_NODISCARD wn_status batch_line_parse(struct batch_request *out, const char *line, size_t bytes,
                                        struct wn_err *err);
void batch_request_fini(struct batch_request *r); /* a zeroed one is fine */

/* ---- one output line ---- */

struct batch_result {
    const char *id, *custom_id, *model; /* custom_id NULL: null */
    const struct chat_answer *answer;   /* NULL: the request failed */
    const char *job_id;                 /* then, and the rest; NULL: the server never named it */
    const char *error_code;             /* "invalid_request", ... */
    const char *error_text;
    int http_status; /* of the failure; 0: it never reached the server */
    int64_t created_s;
};

/* With its newline; free() it. NULL without memory. Text that is no UTF-8 is replaced. */
char *batch_result_line(const struct batch_result *r, size_t *bytes);

/* ---- the two files ---- */

struct batch_item {
    uint64_t at;          /* of the line in the input */
    uint32_t bytes, line; /* without the newline; counted from 1 */
    uint8_t name[BATCH_NAME_BYTES];
    bool done;
};

struct batch_files {
    int in, out;
    const char *in_path, *out_path;
    struct batch_item *item;
    uint32_t items_n, room;
    uint32_t *table; /* by name: index + 1; a power of two of entries */
    uint32_t table_size;
    uint32_t before_n, before_failed, strangers; /* found in the output; strangers are in no line of the input */
    uint64_t out_bytes;
};

/* Opens both, names each line of the input, refuses a custom_id that is there twice (with both line numbers), takes
 * what is finished from the output and cuts off its torn last line. An output that another run holds, or that no run
 * has written, is refused. *f is to be given to close in any case. */
WN_NODISCARD wn_status batch_files_open(struct batch_files *f, const char *in_path, const char *out_path,
                                        struct wn_err *err);
void batch_files_close(struct batch_files *f);

/* The line of an item, ended by a zero; the caller's. */
WN_NODISCARD wn_status batch_item_read(const struct batch_files *f, uint32_t item, char **line, struct wn_err *err);

/* Appends a line as a whole. */
WN_NODISCARD wn_status batch_files_append(struct batch_files *f, const char *line, size_t bytes, struct wn_err *err);

/* For "id" of the output. */
void batch_item_id(const struct batch_item *item, char out[BATCH_ID_MAX]);

/* The idempotency key: the line with its custom_id, and the pictures, as they are now. */
void batch_key(const struct batch_request *r, const char *line, size_t bytes, char out[65]);

#endif
