/* winnow.h - client library of Winnow, a distributed inference daemon for vision-language models.
 *
 *     struct winnow *w;
 *     winnow_connect(&w, "tcp://127.0.0.1:5599", NULL);
 *     struct winnow_request q = {.prompt = "What is this?", .images = &image, .images_n = 1};
 *     uint64_t job;
 *     winnow_submit(w, &q, &job);
 *     struct winnow_event ev;
 *     while (winnow_next(w, &ev, 10000) == WINNOW_OK && ev.type < WINNOW_EVENT_DONE)
 *         if (ev.type == WINNOW_EVENT_TEXT) fputs(ev.text, stdout);
 *     winnow_close(w);
 *
 * When the server goes away, the connection waits for it to come back and goes on with its open jobs: those
 * that were accepted are followed again, without a gap or a repeat, the others are submitted again under the
 * same key. With no open job, WINNOW_ECONNECT says that it is away; the next request tries it again. A
 * connection is used by one thread at a time. Submitting never blocks on the answer: jobs run side by side and
 * their events come out of winnow_next() in the order of arrival. Strings in an event are valid until the next
 * call on the same connection. Structures may grow at their end in later versions: zero-initialise them.
 *
 * The server keeps a result until it is acknowledged, or expires. The library acknowledges the end of a job that it
 * submitted when the program comes back for the next event or closes, so that a program that dies in between
 * still finds it (winnow_attach). */
#ifndef WINNOW_H
#define WINNOW_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define WINNOW_API        __attribute__((visibility("default")))
#define WINNOW_JOB_ID_MAX 32
#define WINNOW_METHOD_MAX 32
#define WINNOW_OPTIONS_MAX 257

enum winnow_result {
    WINNOW_OK = 0,
    WINNOW_TIMEOUT = 1,   /* nothing happened in time */
    WINNOW_EINVAL = 2,    /* the request makes no sense; winnow_error() says why */
    WINNOW_EBUSY = 3,     /* the server is full */
    WINNOW_ECONNECT = 4,  /* no server there, or it went away */
    WINNOW_ENOMEM = 5,
    WINNOW_EPROTO = 6     /* the other side does not speak this version */
};

struct winnow; /* a connection */

struct winnow_options {
    const char *server_key;       /* public key (Z85) that the server must have; NULL: the one in the key file */
    const char *client_key_file;  /* of `winnow keygen`, mode 0600; NULL: what WINNOW_KEY names, else plain text */
    uint32_t connect_timeout_ms;  /* 0: 5,000 */
    uint32_t reconnect_timeout_ms; /* how long open jobs wait for a server that went away; 0: 30,000 */
    uint32_t busy_timeout_ms;     /* a request that finds the server busy is sent again when the server says so, plus
                                   * some jitter, up to this long; 0: never, BUSY is an event at once */
    int keep_results;             /* non-zero: only winnow_acknowledge() acknowledges */
};

struct winnow_image {
    const void *data; /* a JPEG, PNG or WebP file in memory; borrowed until winnow_submit returns */
    size_t bytes;
};

/* Positions of kept visual tokens and of the text after them, in the language model. */
enum winnow_position {
    WINNOW_POSITION_DEFAULT = 0,   /* server's default */
    WINNOW_POSITION_ORIGINAL = 1,  /* as if nothing were pruned */
    WINNOW_POSITION_COMPACT = 2    /* numbered on */
};

struct winnow_request {
    const char *prompt;
    const struct winnow_image *images;
    size_t images_n;
    uint32_t max_tokens;           /* 0: server's default */
    float temperature;             /* 0: greedy */
    uint32_t top_k;                /* 0: off */
    float top_p;                   /* 0 or 1: off */
    float repetition_penalty;      /* 0 or 1: off */
    uint64_t seed;
    const char *const *stop;       /* stop strings */
    size_t stop_n;
    const char *pruning_method;    /* NULL: server's default; "none" */
    uint32_t pruning_keep;         /* visual tokens kept an image, all if there are fewer; 0: by rate */
    float pruning_rate;            /* share removed, up to 1 (one is left); 0: server's default, else the method's
                                      own count, else 64 */
    const char *idempotency_key;   /* NULL: a fresh one */
    int quiet;                     /* non-zero: no TEXT events, only the end */
    uint32_t pruning_cap;          /* most tokens of a method that chooses its own count; 0: none */
    uint64_t pruning_seed;         /* of methods that draw; same seed and picture: same tokens */
    const char *pruning_setting;   /* "faithful" or "paper" for methods that have both; NULL: server's default */
    uint32_t n;                    /* answers, each from its own seed: seed, seed + 1, ...; 0: one. Each has its own
                                    * events (see choice), the last DONE or ERROR of them ends the job */
    int logprobs;                  /* non-zero: TEXT events have log-probabilities */
    uint32_t top_logprobs;         /* of so many of the likeliest tokens, too; at most 20 */
    const uint32_t *stop_token_ids; /* end the answer as the end-of-sequence token does */
    size_t stop_token_ids_n;
    uint64_t deadline_ms;          /* from now; then the job ends with an ERROR, wherever it is. 0: none */
    enum winnow_position pruning_position; /* of kept visual tokens */
    int pruning_projected;         /* non-zero: they cross the vision link at the language model's width */
    const char *pruning_options;   /* numbers of single methods, "neighbours=16,anchors=0.2"; NULL: as published */
    int ignore_eos;                /* non-zero: goes on to max_tokens, also after an end-of-sequence token */
};

enum winnow_event_type {
    WINNOW_EVENT_NONE = 0,
    WINNOW_EVENT_ACCEPTED,         /* job_id is set: it outlives this connection */
    WINNOW_EVENT_TEXT,             /* text: the next piece of the answer, whole UTF-8 characters */
    WINNOW_EVENT_DONE,             /* text: the whole answer; usage is set */
    WINNOW_EVENT_BUSY,             /* the server took nothing; try again after retry_ms */
    WINNOW_EVENT_ERROR             /* text: why; the job has ended */
};

struct winnow_usage {
    uint32_t prompt_tokens, completion_tokens, image_tokens, image_tokens_before_pruning, attempts;
    uint64_t bytes_control, bytes_embedding, bytes_activation, bytes_allreduce, bytes_logits;
    uint64_t queue_us, preprocess_us, encode_us, prune_us, transfer_us, prefill_us, decode_us;
    uint64_t time_to_first_token_us, total_us;
    char pruning_method[WINNOW_METHOD_MAX]; /* that was in force, and so all below */
    uint32_t pruning_keep;                  /* what the budget came to; 0: all, or the method's own count */
    float pruning_rate;
    uint32_t cached_tokens;
    uint32_t vision_cache_hit;              /* non-zero: no encode was needed */
    uint32_t pruning_cap;
    enum winnow_position pruning_position;
    int pruning_projected;
    uint64_t pruning_seed;
    char pruning_setting[WINNOW_METHOD_MAX], pruning_options[WINNOW_OPTIONS_MAX];
    uint32_t preemptions; /* times that it lost its KV pages to an older job and computed its rows again */
    uint64_t bytes_image; /* pictures as files: to the scheduler and on to vision workers */
};

/* A log-softmax of the logits in float32, before temperature, penalty and filters. */
struct winnow_chance {
    uint32_t id;
    float logprob;
    const char *text;               /* the token's bytes, maybe a part of a character; ended by a zero */
    size_t text_bytes;
};

struct winnow_logprobs {
    struct winnow_chance chosen;    /* text NULL: not known any more (the server was restarted) */
    const struct winnow_chance *top; /* likeliest first */
    size_t top_n;
};

struct winnow_event {
    enum winnow_event_type type;
    uint64_t job;                       /* as winnow_submit gave it */
    char job_id[WINNOW_JOB_ID_MAX];     /* the server's name of the job */
    const char *text;
    const uint32_t *token_ids;          /* TEXT: the tokens of this piece */
    size_t token_ids_n;
    uint32_t first_token;               /* TEXT: index of the first of them in the answer */
    const char *finish_reason;          /* DONE: "stop", "length", "cancelled" */
    uint32_t error_code;                /* ERROR: enum winnow_result or a server's status */
    uint32_t retry_ms;
    struct winnow_usage usage;
    uint32_t choice;                    /* which of the request's n answers this is about */
    const struct winnow_logprobs *logprobs; /* TEXT: for each of token_ids, if asked for; else NULL */
};

/* Connects to "tcp://HOST:PORT", "ipc://PATH" or "slurm:JOBID" (a service in a Slurm job of this user, which may be
 * queued again and come back elsewhere) and checks that a server of this protocol answers. *out is
 * owned by the caller and must be closed. On failure *out is NULL-able to winnow_error() for the reason, too:
 * winnow_error(NULL). */
WINNOW_API int winnow_connect(struct winnow **out, const char *endpoint, const struct winnow_options *options);

/* Sends the request. *job is this connection's number for it. The answer comes as events. */
WINNOW_API int winnow_submit(struct winnow *w, const struct winnow_request *request, uint64_t *job);

/* Follows a job that another connection submitted, from its token `from_token` on. */
WINNOW_API int winnow_attach(struct winnow *w, const char *job_id, uint32_t from_token, uint64_t *job);

/* Waits up to timeout_ms (0: looks, -1: for ever) for the next event of any job. winnow_next_or is for programs that
 * wait for something else, too: WINNOW_TIMEOUT also when their descriptor `fd` can be read and no event is there. */
WINNOW_API int winnow_next(struct winnow *w, struct winnow_event *event, int timeout_ms);
WINNOW_API int winnow_next_or(struct winnow *w, struct winnow_event *event, int fd, int timeout_ms);

/* Asks the server to stop a job, all its answers; its DONE event follows with finish_reason "cancelled". */
WINNOW_API int winnow_cancel(struct winnow *w, uint64_t job);

/* Tells the server that it may forget an ended job. Not needed for jobs that this connection submitted. */
WINNOW_API int winnow_acknowledge(struct winnow *w, const char *job_id);

/* The server's state as JSON; owned by the caller: free(). NULL on failure. */
WINNOW_API char *winnow_status_json(struct winnow *w, int timeout_ms);

/* Why the last call on this connection failed; NULL asks about the last winnow_connect of this thread. Never NULL. */
WINNOW_API const char *winnow_error(const struct winnow *w);

WINNOW_API void winnow_close(struct winnow *w); /* NULL is fine; jobs go on at the server */
WINNOW_API const char *winnow_version(void);

#ifdef __cplusplus
}
#endif
#endif
