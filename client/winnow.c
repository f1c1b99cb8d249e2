/* client/winnow.c - the functions of winnow.h. */
#include "client/winnow.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/utf8.h"
#include "client/conn.h"
#include "winnow_version.h"

#define CONNECT_TIMEOUT_MS   5000
#define RECONNECT_TIMEOUT_MS 30000
#define PAYLOAD_MAX          ((size_t)256 << 20) /* images of one request */

static _Thread_local struct wn_err connect_error; /* there is no connection to keep it in */

const char *winnow_version(void)
{
    return WN_VERSION;
}

const char *winnow_error(const struct winnow *w)
{
    const char *text = w ? w->error.text : connect_error.text;

    return text[0] ? text : "no error";
}

/* The key file that the options or the environment name, else the one that a Slurm job has left for its clients. */
static int open_key(struct winnow *w, const char *endpoint, const struct winnow_options *options)
{
    const char *server = options ? options->server_key : NULL;
    const char *file = options && options->client_key_file ? options->client_key_file : getenv("WINNOW_KEY");
    struct conn_place place;
    wn_status rc;

    if (!file || !file[0]) {
        if ((rc = wn_conn_locate(endpoint, &place, &w->error)) != WN_OK) return wn_conn_result(rc);
        file = place.key_file;
    }
    if (!file[0]) {
        if (!server) return WINNOW_OK;
        return wn_conn_result(wn_fail(&w->error, WN_EINVAL, "a server's key was given, and no key file"));
    }
    if ((rc = wn_key_open(&w->key, file, &w->error)) != WN_OK) return rc == WN_ENOMEM ? WINNOW_ENOMEM : WINNOW_EINVAL;
    if (!server) return WINNOW_OK;
    if (!wn_key_text_valid(server, strlen(server)))
        return wn_conn_result(wn_fail(&w->error, WN_EINVAL, "the server's key is not a key (40 characters of Z85)"));
    memcpy(w->key->server_key, server, WN_KEY_CHARS);
    return WINNOW_OK;
}

int winnow_connect(struct winnow **out, const char *endpoint, const struct winnow_options *options)
{
    struct winnow *w = calloc(1, sizeof(*w));
    uint32_t timeout_ms = options && options->connect_timeout_ms ? options->connect_timeout_ms : CONNECT_TIMEOUT_MS;
    int rc;

    if (!out || !endpoint) {
        free(w);
        return wn_conn_result(wn_fail(&connect_error, WN_EINVAL, "no endpoint was given"));
    }
    *out = NULL;
    if (!w) return wn_conn_result(wn_fail(&connect_error, WN_ENOMEM, "connection"));
    w->reconnect_timeout_ms = options && options->reconnect_timeout_ms ? options->reconnect_timeout_ms
                                                                        : RECONNECT_TIMEOUT_MS;
    w->busy_timeout_ms = options ? options->busy_timeout_ms : 0;
    w->keep_results = options && options->keep_results;
    rc = open_key(w, endpoint, options);
    if (rc == WINNOW_OK && strncmp(endpoint, "tcp://", 6) != 0 && strncmp(endpoint, "ipc://", 6) != 0 &&
        strncmp(endpoint, "slurm:", 6) != 0)
        rc = wn_conn_result(wn_fail(&w->error, WN_EINVAL,
                                    "'%.200s' is neither tcp://HOST:PORT nor ipc://PATH nor slurm:JOBID", endpoint));
    if (rc == WINNOW_OK) rc = wn_conn_open(w, endpoint, (int)(timeout_ms < 86400000 ? timeout_ms : 86400000));
    if (rc != WINNOW_OK) {
        connect_error = w->error;
        winnow_close(w);
        return rc;
    }
    *out = w;
    return WINNOW_OK;
}

int winnow_acknowledge(struct winnow *w, const char *job_id)
{
    Wn__Acknowledge ack = WN__ACKNOWLEDGE__INIT;

    if (!wn_job_id_valid(job_id))
        return wn_conn_result(wn_fail(&w->error, WN_EINVAL, "'%.60s' is no job id", job_id ? job_id : ""));
    ack.job_id = (char *)(uintptr_t)job_id;
    return wn_conn_send(w, WN__ENVELOPE__BODY_ACKNOWLEDGE, &ack, NULL, 0, NULL);
}

/* The program has come back: it has what it was given last. If this does not get through, the result expires. */
static void acknowledge_delivered(struct winnow *w)
{
    if (w->delivered[0]) (void)!winnow_acknowledge(w, w->delivered);
    w->delivered[0] = '\0';
}

void winnow_close(struct winnow *w)
{
    if (!w) return;
    if (w->socket && !w->lost) acknowledge_delivered(w);
    wn_conn_close(w);
    wn_key_close(w->key);
    wn_codec_free(w->current);
    wn_chances_free(w->chances);
    for (size_t i = 0; i < w->jobs_n; i++) wn_conn_request_free(w->jobs[i].submit);
    free(w->jobs);
    free(w);
}

static int check_request(struct winnow *w, const struct winnow_request *r, uint64_t *image_bytes)
{
    uint64_t sum = 0;

    if (!r->prompt) return wn_conn_result(wn_fail(&w->error, WN_EINVAL, "the request has no prompt"));
    if (strlen(r->prompt) > WN_PROMPT_BYTES_MAX)
        return wn_conn_result(wn_fail(&w->error, WN_ELIMIT, "the prompt has %zu bytes; at most %zu are allowed",
                                      strlen(r->prompt), WN_PROMPT_BYTES_MAX));
    if (!wn_utf8_valid(r->prompt, strlen(r->prompt)))
        return wn_conn_result(wn_fail(&w->error, WN_EINVAL, "the prompt is not valid UTF-8"));
    if (r->n > WN_CHOICES_MAX)
        return wn_conn_result(wn_fail(&w->error, WN_ELIMIT, "n is %u; at most %d are allowed", r->n, WN_CHOICES_MAX));
    if (r->images_n > WN_IMAGES_MAX || (r->images_n && !r->images))
        return wn_conn_result(wn_fail(&w->error, WN_ELIMIT, "at most %d images are allowed", WN_IMAGES_MAX));
    for (size_t i = 0; i < r->images_n; i++) {
        if (!r->images[i].data || r->images[i].bytes == 0)
            return wn_conn_result(wn_fail(&w->error, WN_EINVAL, "image %zu is empty", i + 1));
        if (r->images[i].bytes > PAYLOAD_MAX - sum)
            return wn_conn_result(wn_fail(&w->error, WN_ELIMIT, "the images have more than %zu bytes", PAYLOAD_MAX));
        image_bytes[i] = r->images[i].bytes;
        sum += r->images[i].bytes;
    }
    return WINNOW_OK;
}

static void fresh_key(char out[33])
{
    uint8_t random[16] = {0};

    for (size_t at = 0; at < sizeof(random);) {
        ssize_t n = getrandom(random + at, sizeof(random) - at, 0);
        if (n > 0) at += (size_t)n;
    }
    for (int i = 0; i < 16; i++) snprintf(out + 2 * i, 3, "%02x", random[i]);
}

static void fill_sampling(Wn__Sampling *s, const struct winnow_request *r)
{
    s->max_tokens = r->max_tokens;
    s->temperature = r->temperature;
    s->top_k = r->top_k;
    s->top_p = r->top_p;
    s->repetition_penalty = r->repetition_penalty;
    s->seed = r->seed;
    s->stop = (char **)(uintptr_t)r->stop; /* read only */
    s->n_stop = r->stop ? r->stop_n : 0;
    s->ignore_eos = r->ignore_eos != 0;
    s->logprobs = r->logprobs != 0;
    s->top_logprobs = r->top_logprobs;
    s->stop_token_ids = (uint32_t *)(uintptr_t)r->stop_token_ids; /* read only */
    s->n_stop_token_ids = r->stop_token_ids ? r->stop_token_ids_n : 0;
}

int winnow_submit(struct winnow *w, const struct winnow_request *request, uint64_t *job)
{
    Wn__Submit submit = WN__SUBMIT__INIT;
    Wn__Sampling sampling = WN__SAMPLING__INIT;
    Wn__Pruning pruning = WN__PRUNING__INIT;
    uint64_t image_bytes[WN_IMAGES_MAX];
    struct winnow_job *entry;
    char key[33], tag[24];
    uint64_t number;
    int rc = check_request(w, request, image_bytes);

    if (rc != WINNOW_OK) return rc;
    fill_sampling(&sampling, request);
    pruning.method = (char *)(uintptr_t)(request->pruning_method ? request->pruning_method : "");
    pruning.keep = request->pruning_keep;
    pruning.rate = request->pruning_rate;
    pruning.cap = request->pruning_cap;
    pruning.seed = request->pruning_seed;
    if (request->pruning_setting) pruning.setting = (char *)(uintptr_t)request->pruning_setting;
    pruning.position = (Wn__PositionPolicy)request->pruning_position;
    pruning.projected = request->pruning_projected != 0;
    if (request->pruning_options) pruning.options = (char *)(uintptr_t)request->pruning_options;
    if (wn_sampling_check(&sampling, &w->error) != WN_OK || wn_pruning_check(&pruning, &w->error) != WN_OK)
        return wn_conn_result(w->error.code);
    if (!(entry = wn_jobs_add(w))) return wn_conn_result(wn_fail(&w->error, WN_ENOMEM, "job"));
    fresh_key(key);
    snprintf(tag, sizeof(tag), "%" PRIu64, entry->number);
    submit.idempotency_key = (char *)(uintptr_t)(request->idempotency_key ? request->idempotency_key : key);
    submit.prompt = (char *)(uintptr_t)request->prompt;
    submit.image_bytes = image_bytes;
    submit.n_image_bytes = request->images_n;
    submit.sampling = &sampling;
    submit.pruning = &pruning;
    submit.stream = !request->quiet;
    submit.client_tag = tag;
    submit.n = request->n > 1 ? request->n : 0;
    submit.deadline_ms = request->deadline_ms;
    entry->own = true;
    number = entry->number;
    rc = wn_conn_send(w, WN__ENVELOPE__BODY_SUBMIT, &submit, request->images, request->images_n, &entry->submit);
    if (rc == WINNOW_OK && !wn_jobs_add_choices(w, request->n))
        rc = wn_conn_result(wn_fail(&w->error, WN_ENOMEM, "job"));
    if (rc == WINNOW_OK) *job = number;
    else wn_jobs_drop(w, number);
    return rc;
}

int winnow_attach(struct winnow *w, const char *job_id, uint32_t from_token, uint64_t *job)
{
    Wn__Attach attach = WN__ATTACH__INIT;
    struct winnow_job *entry;
    int rc;

    if (!wn_job_id_valid(job_id))
        return wn_conn_result(wn_fail(&w->error, WN_EINVAL, "'%.60s' is no job id", job_id ? job_id : ""));
    if (!(entry = wn_jobs_add(w))) return wn_conn_result(wn_fail(&w->error, WN_ENOMEM, "job"));
    snprintf(entry->id, sizeof(entry->id), "%s", job_id);
    entry->from = entry->tokens = from_token;
    attach.job_id = entry->id;
    attach.from_token = from_token;
    rc = wn_conn_send(w, WN__ENVELOPE__BODY_ATTACH, &attach, NULL, 0, NULL);
    if (rc == WINNOW_OK)
        *job = entry->number;
    else
        wn_jobs_drop_one(w, entry);
    return rc;
}

int winnow_cancel(struct winnow *w, uint64_t job)
{
    struct winnow_job *entry = wn_jobs_by_number(w, job);

    if (!entry) return wn_conn_result(wn_fail(&w->error, WN_EINVAL, "job %" PRIu64 " has ended or never was", job));
    for (size_t i = 0; i < w->jobs_n; i++) {
        int rc;
        if (w->jobs[i].number != job) continue;
        w->jobs[i].cancel = true; /* goes out when the server has named the job, and again when it comes back */
        if (w->jobs[i].id[0] && (rc = wn_jobs_send_cancel(w, &w->jobs[i])) != WINNOW_OK) return rc;
    }
    return WINNOW_OK;
}

int winnow_next(struct winnow *w, struct winnow_event *event, int timeout_ms)
{
    return winnow_next_or(w, event, -1, timeout_ms);
}

int winnow_next_or(struct winnow *w, struct winnow_event *event, int fd, int timeout_ms)
{
    const int64_t deadline_us = timeout_ms < 0 ? WN_NEVER : wn_deadline_in_us((int64_t)timeout_ms * 1000);
    struct winnow_job *job = NULL;

    acknowledge_delivered(w);
    memset(event, 0, sizeof(*event));
    event->text = "";
    event->finish_reason = "";
    do {
        int rc;
        wn_codec_free(w->current);
        wn_chances_free(w->chances);
        w->current = NULL;
        w->chances = NULL;
        if ((rc = wn_conn_recv(w, &w->current, fd, deadline_us)) != WINNOW_OK) return rc;
    } while (!wn_event_fill(w, event, &job));
    if (!job) return WINNOW_OK;
    event->job = job->number;
    event->choice = job->choice;
    memcpy(event->job_id, job->id, sizeof(event->job_id));
    if (event->type == WINNOW_EVENT_DONE || event->type == WINNOW_EVENT_ERROR) {
        if (job->own && !w->keep_results) memcpy(w->delivered, job->id, sizeof(w->delivered));
        if (job->id[0]) wn_jobs_drop_one(w, job);
        else wn_jobs_drop(w, job->number); /* the request became no job at all */
    } else if (event->type == WINNOW_EVENT_BUSY) {
        wn_jobs_drop(w, job->number);
    }
    return WINNOW_OK;
}

char *winnow_status_json(struct winnow *w, int timeout_ms)
{
    const int64_t deadline_us = timeout_ms < 0 ? WN_NEVER : wn_deadline_in_us((int64_t)timeout_ms * 1000);
    Wn__Envelope *env = NULL;
    char *text;

    if (wn_conn_status(w, &env, deadline_us) != WINNOW_OK) return NULL;
    text = wn_status_json(env->status);
    if (!text) wn_fail(&w->error, WN_ENOMEM, "status");
    wn_codec_free(env);
    return text;
}
