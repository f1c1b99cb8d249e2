/* client/winnow.c - the functions of winnow.h: requests out, events in. */
#include "client/winnow.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "client/conn.h"
#include "winnow_version.h"

#define CONNECT_TIMEOUT_MS 5000
#define RECONNECT_TIMEOUT_MS 30000
#define RETRY_MS_MAX         10000 /* the longest wait that a server is granted */
#define REFUSALS_MAX         3
#define RESEND_US            10000 /* when the queue to the server is full */
#define PAYLOAD_MAX        ((size_t)256 << 20) /* images of one request */

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
        if ((rc = conn_locate(endpoint, &place, &w->error)) != WN_OK) return conn_result(rc);
        file = place.key_file;
    }
    if (!file[0]) {
        if (!server) return WINNOW_OK;
        return conn_result(wn_fail(&w->error, WN_EINVAL, "a server's key was given, and no key file"));
    }
    if ((rc = wn_key_open(&w->key, file, &w->error)) != WN_OK) return rc == WN_ENOMEM ? WINNOW_ENOMEM : WINNOW_EINVAL;
    if (!server) return WINNOW_OK;
    if (!wn_key_text_valid(server, strlen(server)))
        return conn_result(wn_fail(&w->error, WN_EINVAL, "the server's key is not a key (40 characters of Z85)"));
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
        return conn_result(wn_fail(&connect_error, WN_EINVAL, "no endpoint was given"));
    }
    *out = NULL;
    if (!w) return conn_result(wn_fail(&connect_error, WN_ENOMEM, "connection"));
    w->reconnect_timeout_ms = options && options->reconnect_timeout_ms ? options->reconnect_timeout_ms
                                                                        : RECONNECT_TIMEOUT_MS;
    w->busy_timeout_ms = options ? options->busy_timeout_ms : 0;
    w->keep_results = options && options->keep_results;
    if ((rc = open_key(w, endpoint, options)) != WINNOW_OK)
        ; /* it said why */
    else if (strncmp(endpoint, "tcp://", 6) != 0 && strncmp(endpoint, "ipc://", 6) != 0 &&
             strncmp(endpoint, "slurm:", 6) != 0)
        rc = conn_result(wn_fail(&w->error, WN_EINVAL,
                                 "'%.200s' is neither tcp://HOST:PORT nor ipc://PATH nor slurm:JOBID", endpoint));
    else
        rc = conn_open(w, endpoint, (int)(timeout_ms < 86400000 ? timeout_ms : 86400000));
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
        return conn_result(wn_fail(&w->error, WN_EINVAL, "'%.60s' is no job id", job_id ? job_id : ""));
    ack.job_id = (char *)(uintptr_t)job_id;
    return conn_send(w, WN__ENVELOPE__BODY_ACKNOWLEDGE, &ack, NULL, 0, NULL);
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
    conn_close(w);
    wn_key_close(w->key);
    wn_codec_free(w->current);
    chances_free(w->chances);
    for (size_t i = 0; i < w->jobs_n; i++) conn_request_free(w->jobs[i].submit);
    free(w->jobs);
    free(w);
}

/* ---- jobs of this connection ---- */

static struct winnow_job *job_add(struct winnow *w)
{
    if (w->jobs_n == w->jobs_room) {
        size_t room = w->jobs_room * 2 + 16;
        struct winnow_job *jobs = realloc(w->jobs, room * sizeof(*jobs));
        if (!jobs) return NULL;
        w->jobs = jobs;
        w->jobs_room = room;
    }
    memset(&w->jobs[w->jobs_n], 0, sizeof(w->jobs[0]));
    w->jobs[w->jobs_n].number = ++w->last_number;
    return &w->jobs[w->jobs_n++];
}

/* The other answers of the request that w's last entry is for: entries that share its number and its message. */
static bool job_add_choices(struct winnow *w, uint32_t n)
{
    const struct winnow_job first = w->jobs[w->jobs_n - 1];

    for (uint32_t i = 1; i < n; i++) {
        struct winnow_job *job = job_add(w);
        if (!job) return false;
        *job = first;
        job->choice = i;
        if (job->submit) conn_request_share(job->submit);
        w->last_number = first.number;
    }
    return true;
}

/* The newest with this id: a job that was attached to again answers there. */
static struct winnow_job *job_by_id(struct winnow *w, const char *id)
{
    for (size_t i = w->jobs_n; id && id[0] && i > 0; i--)
        if (strcmp(w->jobs[i - 1].id, id) == 0) return &w->jobs[i - 1];
    return NULL;
}

static struct winnow_job *job_by_number(struct winnow *w, uint64_t number)
{
    for (size_t i = 0; i < w->jobs_n; i++)
        if (w->jobs[i].number == number) return &w->jobs[i];
    return NULL;
}

static struct winnow_job *job_by_tag(struct winnow *w, const char *tag, uint32_t choice)
{
    char *end;
    uint64_t number = strtoull(tag, &end, 10);

    if (!tag[0] || *end) return job_by_id(w, tag);
    for (size_t i = 0; i < w->jobs_n; i++)
        if (w->jobs[i].number == number && w->jobs[i].choice == choice) return &w->jobs[i];
    return NULL;
}

static void job_drop(struct winnow *w, struct winnow_job *job)
{
    size_t i = (size_t)(job - w->jobs);

    conn_request_free(job->submit);
    memmove(job, job + 1, (w->jobs_n - i - 1) * sizeof(*job));
    w->jobs_n--;
}

/* The job with all its choices. */
static void jobs_drop(struct winnow *w, uint64_t number)
{
    for (size_t i = w->jobs_n; i > 0; i--)
        if (w->jobs[i - 1].number == number) job_drop(w, &w->jobs[i - 1]);
}

/* ---- requests ---- */

static int check_request(struct winnow *w, const struct winnow_request *r, uint64_t *image_bytes)
{
    uint64_t sum = 0;

    if (!r->prompt) return conn_result(wn_fail(&w->error, WN_EINVAL, "the request has no prompt"));
    if (strlen(r->prompt) > WN_PROMPT_BYTES_MAX)
        return conn_result(wn_fail(&w->error, WN_ELIMIT, "the prompt has %zu bytes; at most %zu are allowed",
                                   strlen(r->prompt), WN_PROMPT_BYTES_MAX));
    if (!wn_utf8_valid(r->prompt, strlen(r->prompt)))
        return conn_result(wn_fail(&w->error, WN_EINVAL, "the prompt is not valid UTF-8"));
    if (r->n > WN_CHOICES_MAX)
        return conn_result(wn_fail(&w->error, WN_ELIMIT, "n is %u; at most %d are allowed", r->n, WN_CHOICES_MAX));
    if (r->images_n > WN_IMAGES_MAX || (r->images_n && !r->images))
        return conn_result(wn_fail(&w->error, WN_ELIMIT, "at most %d images are allowed", WN_IMAGES_MAX));
    for (size_t i = 0; i < r->images_n; i++) {
        if (!r->images[i].data || r->images[i].bytes == 0)
            return conn_result(wn_fail(&w->error, WN_EINVAL, "image %zu is empty", i + 1));
        if (r->images[i].bytes > PAYLOAD_MAX - sum)
            return conn_result(wn_fail(&w->error, WN_ELIMIT, "the images have more than %zu bytes", PAYLOAD_MAX));
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
        return conn_result(w->error.code);
    if (!(entry = job_add(w))) return conn_result(wn_fail(&w->error, WN_ENOMEM, "job"));
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
    rc = conn_send(w, WN__ENVELOPE__BODY_SUBMIT, &submit, request->images, request->images_n, &entry->submit);
    if (rc == WINNOW_OK && !job_add_choices(w, request->n)) rc = conn_result(wn_fail(&w->error, WN_ENOMEM, "job"));
    if (rc == WINNOW_OK) *job = number;
    else jobs_drop(w, number);
    return rc;
}

int winnow_attach(struct winnow *w, const char *job_id, uint32_t from_token, uint64_t *job)
{
    Wn__Attach attach = WN__ATTACH__INIT;
    struct winnow_job *entry;
    int rc;

    if (!wn_job_id_valid(job_id))
        return conn_result(wn_fail(&w->error, WN_EINVAL, "'%.60s' is no job id", job_id ? job_id : ""));
    if (!(entry = job_add(w))) return conn_result(wn_fail(&w->error, WN_ENOMEM, "job"));
    snprintf(entry->id, sizeof(entry->id), "%s", job_id);
    entry->from = entry->tokens = from_token;
    attach.job_id = entry->id;
    attach.from_token = from_token;
    rc = conn_send(w, WN__ENVELOPE__BODY_ATTACH, &attach, NULL, 0, NULL);
    if (rc == WINNOW_OK)
        *job = entry->number;
    else
        job_drop(w, entry);
    return rc;
}

static int send_cancel(struct winnow *w, const struct winnow_job *job)
{
    Wn__Cancel cancel = WN__CANCEL__INIT;
    Wn__JobRef ref = WN__JOB_REF__INIT;

    ref.job_id = (char *)(uintptr_t)job->id;
    cancel.job = &ref;
    return conn_send(w, WN__ENVELOPE__BODY_CANCEL, &cancel, NULL, 0, NULL);
}

int winnow_cancel(struct winnow *w, uint64_t job)
{
    struct winnow_job *entry = job_by_number(w, job);

    if (!entry) return conn_result(wn_fail(&w->error, WN_EINVAL, "job %" PRIu64 " has ended or never was", job));
    for (size_t i = 0; i < w->jobs_n; i++) {
        int rc;
        if (w->jobs[i].number != job) continue;
        w->jobs[i].cancel = true; /* goes out when the server has named the job, and again when it comes back */
        if (w->jobs[i].id[0] && (rc = send_cancel(w, &w->jobs[i])) != WINNOW_OK) return rc;
    }
    return WINNOW_OK;
}

/* The request of a job of which the server has not named all choices; NULL: it has. */
static struct conn_request *unaccepted(struct winnow *w, uint64_t number)
{
    for (size_t i = 0; i < w->jobs_n; i++)
        if (w->jobs[i].number == number && !w->jobs[i].id[0]) return w->jobs[i].submit;
    return NULL;
}

static bool is_first(struct winnow *w, const struct winnow_job *job)
{
    return job == job_by_number(w, job->number);
}

/* An accepted job is followed from its first token on, and what the user has is skipped: by bytes, because the
 * text of a token may have come in pieces. */
static int resume(struct winnow *w, struct winnow_job *job)
{
    Wn__Attach attach = WN__ATTACH__INIT;
    int rc;

    job->stream_text = 0;
    job->retry_us = 0;
    if (unaccepted(w, job->number)) return is_first(w, job) ? conn_resend(w, unaccepted(w, job->number)) : WINNOW_OK;
    attach.job_id = job->id;
    attach.from_token = job->from;
    rc = conn_send(w, WN__ENVELOPE__BODY_ATTACH, &attach, NULL, 0, NULL);
    if (rc == WINNOW_OK && job->cancel) (void)!send_cancel(w, job);
    return rc;
}

void jobs_resume(struct winnow *w)
{
    for (size_t i = 0; i < w->jobs_n; i++) {
        if (!w->jobs[i].stale) continue;
        if (resume(w, &w->jobs[i]) != WINNOW_OK) return; /* the queue is full: the rest later */
        w->jobs[i].stale = false;
    }
    w->stale = false;
}

int64_t jobs_retry(struct winnow *w)
{
    int64_t next_us = WN_NEVER;

    for (size_t i = 0; i < w->jobs_n; i++) {
        struct winnow_job *job = &w->jobs[i];
        if (!job->retry_us) continue;
        if (wn_deadline_passed(job->retry_us))
            job->retry_us = conn_resend(w, job->submit) == WINNOW_OK ? 0 : job->retry_us + RESEND_US;
        if (job->retry_us && job->retry_us < next_us) next_us = job->retry_us;
    }
    return next_us;
}

/* ---- events ---- */

static const char *reason_text(Wn__FinishReason reason)
{
    switch (reason) {
    case WN__FINISH_REASON__FINISH_STOP: return "stop";
    case WN__FINISH_REASON__FINISH_LENGTH: return "length";
    case WN__FINISH_REASON__FINISH_CANCELLED: return "cancelled";
    case WN__FINISH_REASON__FINISH_ERROR: return "error";
    default: return "unknown";
    }
}

static void fill_pruning(struct winnow_usage *out, const Wn__Pruning *p)
{
    snprintf(out->pruning_method, sizeof(out->pruning_method), "%s", p->method);
    snprintf(out->pruning_setting, sizeof(out->pruning_setting), "%s", p->setting);
    snprintf(out->pruning_options, sizeof(out->pruning_options), "%s", p->options);
    out->pruning_keep = p->keep;
    out->pruning_rate = p->rate;
    out->pruning_cap = p->cap;
    out->pruning_position = (enum winnow_position)p->position;
    out->pruning_projected = p->projected;
    out->pruning_seed = p->seed;
}

static void fill_usage(struct winnow_usage *out, const Wn__Usage *u)
{
    const Wn__LinkBytes *b = u->bytes_on_wire;

    out->prompt_tokens = u->prompt_tokens;
    out->completion_tokens = u->completion_tokens;
    out->image_tokens = u->image_tokens;
    out->image_tokens_before_pruning = u->image_tokens_before_pruning;
    out->attempts = u->attempts;
    if (b) {
        out->bytes_control = b->control;
        out->bytes_embedding = b->embedding;
        out->bytes_activation = b->activation;
        out->bytes_allreduce = b->allreduce;
        out->bytes_logits = b->logits;
        out->bytes_image = b->image;
    }
    out->queue_us = u->queue_us;
    out->preprocess_us = u->preprocess_us;
    out->encode_us = u->encode_us;
    out->prune_us = u->prune_us;
    out->transfer_us = u->transfer_us;
    out->prefill_us = u->prefill_us;
    out->decode_us = u->decode_us;
    out->time_to_first_token_us = u->time_to_first_token_us;
    out->total_us = u->total_us;
    if (u->pruning) fill_pruning(out, u->pruning);
    out->cached_tokens = u->cached_tokens;
    out->vision_cache_hit = u->vision_cache_hit;
    out->preemptions = u->preemptions;
}

static struct winnow_job *on_accepted(struct winnow *w, const Wn__Accepted *a, struct winnow_event *ev)
{
    struct winnow_job *job = a->client_tag[0] ? job_by_tag(w, a->client_tag, a->choice) : job_by_id(w, a->job_id);

    if (!job || !wn_job_id_valid(a->job_id)) return NULL;
    ev->type = WINNOW_EVENT_ACCEPTED;
    snprintf(job->id, sizeof(job->id), "%s", a->job_id);
    if (job->cancel && job->submit) (void)!send_cancel(w, job);
    conn_request_free(job->submit);
    job->submit = NULL;
    if (job->accepted) return NULL; /* the user knows */
    job->accepted = true;
    return job;
}

/* An Error is about a job, about a request that became none, or (job 0) about the connection. */
static struct winnow_job *on_error(struct winnow *w, const Wn__Error *e, struct winnow_event *ev)
{
    struct winnow_job *job = e->job ? job_by_id(w, e->job->job_id) : NULL;

    ev->type = WINNOW_EVENT_ERROR;
    ev->text = e->text;
    ev->error_code = e->code;
    return job ? job : job_by_tag(w, e->client_tag, 0);
}

/* false: the request is sent again later, and the user need not know. */
static bool on_busy(struct winnow *w, const Wn__Busy *b, struct winnow_event *ev, struct winnow_job **out)
{
    struct winnow_job *job = *out = job_by_tag(w, b->client_tag, 0);
    const int64_t now = wn_now_us();
    int64_t wait_us;
    uint32_t random = 0;

    ev->type = WINNOW_EVENT_BUSY;
    ev->text = b->reason;
    ev->retry_ms = b->retry_ms;
    if (!job) return false;
    if (!job->busy_us) job->busy_us = now;
    /* up to half as long again, so that clients that were refused together do not come back together; the server's time
     * is doubled with each refusal, up to a bound */
    if (getrandom(&random, sizeof(random), GRND_NONBLOCK) < 0) random = (uint32_t)now;
    wait_us = (int64_t)(b->retry_ms < RETRY_MS_MAX ? b->retry_ms : RETRY_MS_MAX) * 1000 << job->refusals;
    wait_us += wait_us / 2 * (random % 1024) / 1024;
    if (job->refusals < REFUSALS_MAX) job->refusals++;
    if (!job->submit || now + wait_us > job->busy_us + (int64_t)w->busy_timeout_ms * 1000) return true;
    job->retry_us = now + wait_us;
    return false;
}

/* false: the user has all of it. */
static bool on_tokens(struct winnow *w, struct winnow_job *job, const Wn__Tokens *t, struct winnow_event *ev)
{
    const size_t bytes = strlen(t->text), had = job->text > job->stream_text ? job->text - job->stream_text : 0;
    const size_t skip_text = had < bytes ? had : bytes;
    size_t skip = job->tokens > t->first ? job->tokens - t->first : 0;

    if (skip > t->n_ids) skip = t->n_ids;
    job->stream_text += bytes;
    if (skip == t->n_ids && skip_text == bytes && t->n_ids + bytes > 0) return false;
    ev->type = WINNOW_EVENT_TEXT;
    ev->text = t->text + skip_text;
    ev->token_ids = t->n_ids ? t->ids + skip : NULL;
    ev->token_ids_n = t->n_ids - skip;
    ev->first_token = t->first + (uint32_t)skip;
    if (t->n_logprobs > skip && /* what makes no sense is left out: the answer counts */
        chances_unpack(w, t->logprobs + skip, t->n_logprobs - skip, &ev->logprobs, &w->chances) != WINNOW_OK)
        ev->logprobs = NULL;
    if (job->tokens < t->first + t->n_ids) job->tokens = t->first + (uint32_t)t->n_ids;
    if (job->text < job->stream_text) job->text = job->stream_text;
    return true;
}

/* Fills ev from w->current; false: nothing for the user. *job: whose it is; NULL: none of ours. */
static bool to_event(struct winnow *w, struct winnow_event *ev, struct winnow_job **job)
{
    const Wn__Envelope *env = w->current;

    switch (env->body_case) {
    case WN__ENVELOPE__BODY_ACCEPTED: *job = on_accepted(w, env->accepted, ev); return *job != NULL;
    case WN__ENVELOPE__BODY_TOKENS:
        *job = job_by_id(w, env->tokens->job->job_id);
        return *job && on_tokens(w, *job, env->tokens, ev);
    case WN__ENVELOPE__BODY_DONE:
        *job = job_by_id(w, env->done->job->job_id);
        ev->type = WINNOW_EVENT_DONE;
        ev->text = env->done->text;
        ev->finish_reason = reason_text(env->done->reason);
        if (env->done->usage) fill_usage(&ev->usage, env->done->usage);
        return *job != NULL;
    case WN__ENVELOPE__BODY_BUSY:
        return on_busy(w, env->busy, ev, job);
    case WN__ENVELOPE__BODY_ERROR: *job = on_error(w, env->error, ev); return true;
    default: return false;
    }
}

int winnow_next(struct winnow *w, struct winnow_event *event, int timeout_ms)
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
        chances_free(w->chances);
        w->current = NULL;
        w->chances = NULL;
        if ((rc = conn_recv(w, &w->current, deadline_us)) != WINNOW_OK) return rc;
    } while (!to_event(w, event, &job));
    if (!job) return WINNOW_OK;
    event->job = job->number;
    event->choice = job->choice;
    memcpy(event->job_id, job->id, sizeof(event->job_id));
    if (event->type == WINNOW_EVENT_DONE || event->type == WINNOW_EVENT_ERROR) {
        if (job->own && !w->keep_results) memcpy(w->delivered, job->id, sizeof(w->delivered));
        if (job->id[0]) job_drop(w, job);
        else jobs_drop(w, job->number); /* the request became no job at all */
    } else if (event->type == WINNOW_EVENT_BUSY) {
        jobs_drop(w, job->number);
    }
    return WINNOW_OK;
}

char *winnow_status_json(struct winnow *w, int timeout_ms)
{
    const int64_t deadline_us = timeout_ms < 0 ? WN_NEVER : wn_deadline_in_us((int64_t)timeout_ms * 1000);
    Wn__Envelope *env = NULL;
    char *text;

    if (conn_status(w, &env, deadline_us) != WINNOW_OK) return NULL;
    text = status_json(env->status);
    if (!text) wn_fail(&w->error, WN_ENOMEM, "status");
    wn_codec_free(env);
    return text;
}
