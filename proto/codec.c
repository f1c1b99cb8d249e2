/* proto/codec.c - see codec.h. */
#include "proto/codec.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/dtype.h"
#include "base/sha256.h"
#include "proto/scan.h"

/* protobuf-c allocates through this while it parses; whatever the bytes say, it gets no more than `left`. Memory
 * comes from malloc, so the message is later freed by protobuf-c's own allocator. */
struct budget {
    size_t left;
};

static void *budget_alloc(void *data, size_t bytes)
{
    struct budget *b = data;

    if (bytes > b->left) return NULL;
    b->left -= bytes;
    return malloc(bytes ? bytes : 1);
}

static void budget_free(void *data, void *p)
{
    (void)data; /* not given back: the bound is on the sum, so that a parse is bounded in time, too */
    free(p);
}

/* Crockford's base 32: digits, and letters without I, L, O and U. Every token's message is asked this at both ends. */
static bool is_id_char(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z' && c != 'I' && c != 'L' && c != 'O' && c != 'U');
}

bool wn_job_id_valid(const char *id)
{
    size_t n = 0;

    if (!id) return false;
    for (; id[n]; n++)
        if (n == WN_JOB_ID_CHARS || !is_id_char(id[n])) return false;
    return n == WN_JOB_ID_CHARS;
}

bool wn_jobref_equal(const Wn__JobRef *a, const Wn__JobRef *b)
{
    return a && b && a->attempt == b->attempt && strcmp(a->job_id, b->job_id) == 0;
}

static wn_status check_float(const char *name, float v, float min, float max, struct wn_err *err)
{
    if (isfinite(v) && v >= min && v <= max) return WN_OK;
    return wn_fail(err, WN_EINVAL, "%s is %g; it must be between %g and %g", name, v, min, max);
}

wn_status wn_sampling_check(const Wn__Sampling *s, struct wn_err *err)
{
    wn_status rc = WN_OK;

    if (!s) return WN_OK;
    if (s->max_tokens > WN_EMITTED_MAX)
        return wn_fail(err, WN_ELIMIT, "max_tokens is %u; at most %d are allowed", s->max_tokens, WN_EMITTED_MAX);
    if ((rc = check_float("temperature", s->temperature, 0, 100, err)) != WN_OK) return rc;
    if ((rc = check_float("top_p", s->top_p, 0, 1, err)) != WN_OK) return rc;
    if ((rc = check_float("repetition_penalty", s->repetition_penalty, 0, 10, err)) != WN_OK) return rc;
    if (s->top_logprobs > WN_LOGPROBS_MAX)
        return wn_fail(err, WN_ELIMIT, "top_logprobs is %u; at most %d are allowed", s->top_logprobs, WN_LOGPROBS_MAX);
    if (s->n_stop_token_ids > WN_STOP_MAX)
        return wn_fail(err, WN_ELIMIT, "%zu stop tokens; at most %d are allowed", s->n_stop_token_ids, WN_STOP_MAX);
    if (s->n_stop > WN_STOP_MAX)
        return wn_fail(err, WN_ELIMIT, "%zu stop strings; at most %d are allowed", s->n_stop, WN_STOP_MAX);
    for (size_t i = 0; i < s->n_stop; i++)
        if (!s->stop[i][0] || strlen(s->stop[i]) > WN_STOP_BYTES_MAX)
            return wn_fail(err, WN_EINVAL, "stop string %zu must have 1 to %d bytes", i + 1, WN_STOP_BYTES_MAX);
    return WN_OK;
}

wn_status wn_pruning_check(const Wn__Pruning *p, struct wn_err *err)
{
    if (!p) return WN_OK;
    if (p->keep > WN_FEATURE_ROWS_MAX || p->cap > WN_FEATURE_ROWS_MAX)
        return wn_fail(err, WN_ELIMIT, "pruning keep and cap may be at most %d", WN_FEATURE_ROWS_MAX);
    if ((unsigned)p->position > WN__POSITION_POLICY__POSITION_COMPACT)
        return wn_fail(err, WN_EINVAL, "pruning position policy %d is not known", (int)p->position);
    return check_float("pruning rate", p->rate, 0, 1, err);
}

static wn_status check_ref(const char *where, const Wn__JobRef *job, struct wn_err *err)
{
    if (!job) return wn_fail(err, WN_EPROTO, "%s: no job", where);
    if (!wn_job_id_valid(job->job_id)) return wn_fail(err, WN_EPROTO, "%s: '%s' is no job id", where, job->job_id);
    return WN_OK;
}

static wn_status check_features(const Wn__Features *f, struct wn_err *err)
{
    if (f->rows > WN_FEATURE_ROWS_MAX || f->width > WN_FEATURE_ROWS_MAX || f->rows_before > WN_FEATURE_ROWS_MAX)
        return wn_fail(err, WN_ELIMIT, "Features: %u x %u, at most %d each", f->rows, f->width, WN_FEATURE_ROWS_MAX);
    if (f->n_index != f->rows)
        return wn_fail(err, WN_EPROTO, "Features: %u rows, %zu indices", f->rows, f->n_index);
    if (f->flags.len != 0 && f->flags.len != f->rows)
        return wn_fail(err, WN_EPROTO, "Features: %u rows, %zu flags", f->rows, f->flags.len);
    if (f->sha256.len != WN_SHA256_BYTES) return wn_fail(err, WN_EPROTO, "Features: no SHA-256 of the payload");
    if (f->dtype > WN_F16) return wn_fail(err, WN_EPROTO, "Features: dtype %u is not known", f->dtype);
    if ((unsigned)f->space > WN__FEATURE_SPACE__SPACE_PROJECTED)
        return wn_fail(err, WN_EPROTO, "Features: space %d is not known", (int)f->space);
    if (f->image >= WN_IMAGES_MAX) return wn_fail(err, WN_EPROTO, "Features: image %u", f->image);
    return WN_OK;
}

static wn_status check_generate(const Wn__Generate *g, struct wn_err *err)
{
    wn_status rc = check_ref("Generate", g->job, err);

    if (rc == WN_OK && g->images > WN_IMAGES_MAX)
        rc = wn_fail(err, WN_ELIMIT, "Generate: %u images, at most %d", g->images, WN_IMAGES_MAX);
    if (rc == WN_OK) rc = wn_sampling_check(g->sampling, err);
    return rc == WN_OK ? wn_pruning_check(g->pruning, err) : rc;
}

static wn_status check_encode(const Wn__Encode *e, struct wn_err *err)
{
    wn_status rc = check_ref("Encode", e->job, err);

    if (rc == WN_OK && e->image >= WN_IMAGES_MAX) rc = wn_fail(err, WN_EPROTO, "Encode: image %u", e->image);
    return rc == WN_OK ? wn_pruning_check(e->pruning, err) : rc;
}

static wn_status check_encoded(const Wn__Encoded *e, struct wn_err *err)
{
    wn_status rc = check_ref("Encoded", e->job, err);

    if (rc == WN_OK && (e->rows > WN_FEATURE_ROWS_MAX || e->rows_before > WN_FEATURE_ROWS_MAX))
        rc = wn_fail(err, WN_ELIMIT, "Encoded: %u of %u rows, at most %d", e->rows, e->rows_before,
                     WN_FEATURE_ROWS_MAX);
    if (rc == WN_OK && e->image >= WN_IMAGES_MAX) rc = wn_fail(err, WN_EPROTO, "Encoded: image %u", e->image);
    return rc == WN_OK ? wn_pruning_check(e->pruning, err) : rc;
}

static wn_status check_hello(const Wn__Hello *h, struct wn_err *err)
{
    if (h->role != WN__ROLE__ROLE_VISION && h->role != WN__ROLE__ROLE_LEADER)
        return wn_fail(err, WN_EPROTO, "Hello: role %d is not known", (int)h->role);
    if (!h->name || !h->name[0]) return wn_fail(err, WN_EPROTO, "Hello: no name");
    for (size_t i = 0; i < h->n_running; i++) {
        wn_status rc = check_ref("Hello.running", h->running[i], err);
        if (rc != WN_OK) return rc;
    }
    for (size_t i = 0; i < h->n_answering; i++) {
        wn_status rc = check_ref("Hello.answering", h->answering[i], err);
        if (rc != WN_OK) return rc;
    }
    return WN_OK;
}

static wn_status check_welcome(const Wn__Welcome *w, struct wn_err *err)
{
    for (size_t i = 0; i < w->n_kept; i++) {
        wn_status rc = check_ref("Welcome.kept", w->kept[i]->job, err);
        if (rc != WN_OK) return rc;
    }
    return WN_OK;
}

static wn_status check_done(const Wn__Done *d, struct wn_err *err)
{
    if ((unsigned)d->reason > WN__FINISH_REASON__FINISH_ERROR)
        return wn_fail(err, WN_EPROTO, "Done: reason %d is not known", (int)d->reason);
    return check_ref("Done", d->job, err);
}

static wn_status check_drain(const Wn__Drain *d, struct wn_err *err)
{
    if (d->deadline_ms <= WN_DRAIN_MS_MAX) return WN_OK;
    return wn_fail(err, WN_ELIMIT, "Drain: %u ms, at most %d", d->deadline_ms, WN_DRAIN_MS_MAX);
}

static wn_status check_tokens(const Wn__Tokens *t, struct wn_err *err)
{
    if (t->n_logprobs != 0 && t->n_logprobs != t->n_ids)
        return wn_fail(err, WN_EPROTO, "Tokens: %zu ids, %zu log-probabilities", t->n_ids, t->n_logprobs);
    return check_ref("Tokens", t->job, err);
}

/* What the scan of bytes cannot see: values, and parts that must be there. */
static wn_status check_body(const Wn__Envelope *e, struct wn_err *err)
{
    switch (e->body_case) {
    case WN__ENVELOPE__BODY_CANCEL: return check_ref("Cancel", e->cancel->job, err);
    case WN__ENVELOPE__BODY_TOKENS: return check_tokens(e->tokens, err);
    case WN__ENVELOPE__BODY_DONE: return check_done(e->done, err);
    case WN__ENVELOPE__BODY_ENCODE: return check_encode(e->encode, err);
    case WN__ENVELOPE__BODY_ENCODED: return check_encoded(e->encoded, err);
    case WN__ENVELOPE__BODY_GENERATE: return check_generate(e->generate, err);
    case WN__ENVELOPE__BODY_HELLO: return check_hello(e->hello, err);
    case WN__ENVELOPE__BODY_WELCOME: return check_welcome(e->welcome, err);
    case WN__ENVELOPE__BODY_DRAIN: return check_drain(e->drain, err);
    case WN__ENVELOPE__BODY_FEATURES: {
        wn_status rc = check_ref("Features", e->features->job, err);
        return rc == WN_OK ? check_features(e->features, err) : rc;
    }
    case WN__ENVELOPE__BODY_FEATURES_ACK: return check_ref("FeaturesAck", e->features_ack->job, err);
    case WN__ENVELOPE__BODY_ERROR:
        return e->error->job && e->error->job->job_id && e->error->job->job_id[0]
                   ? check_ref("Error", e->error->job, err)
                   : WN_OK;
    case WN__ENVELOPE__BODY__NOT_SET: return wn_fail(err, WN_EPROTO, "message without a body that is known here");
    default: return WN_OK;
    }
}

static wn_status parse(Wn__Envelope **out, const void *data, size_t bytes, struct wn_err *err)
{
    struct budget budget = {WN_CODEC_MEMORY_MAX};
    ProtobufCAllocator allocator = {budget_alloc, budget_free, &budget};
    wn_status rc;

    if (bytes > WN_CODEC_BYTES_MAX)
        return wn_fail(err, WN_ELIMIT, "message of %zu bytes, at most %zu are allowed", bytes, WN_CODEC_BYTES_MAX);
    if (bytes == 0) return wn_fail(err, WN_EPROTO, "empty message");
    if ((rc = wn_codec_scan(&wn__envelope__descriptor, data, bytes, err)) != WN_OK) return rc;
    *out = wn__envelope__unpack(&allocator, bytes, data);
    if (*out) return WN_OK;
    return wn_fail(err, WN_EPROTO, "message of %zu bytes does not parse within %zu bytes of memory", bytes,
                   WN_CODEC_MEMORY_MAX);
}

wn_status wn_codec_unpack(Wn__Envelope **out, const void *data, size_t bytes, struct wn_err *err)
{
    Wn__Envelope *env = NULL;
    wn_status rc = parse(&env, data, bytes, err);

    if (rc != WN_OK) return rc;
    if (env->version != WN_PROTO_VERSION)
        rc = wn_fail(err, WN_EUNSUPP, "protocol version %u; this side speaks %d", env->version, WN_PROTO_VERSION);
    else
        rc = check_body(env, err);
    if (rc == WN_OK)
        *out = env;
    else
        wn_codec_free(env);
    return rc;
}

Wn__Envelope *wn_codec_unpack_strange_hello(const void *data, size_t bytes)
{
    Wn__Envelope *env = NULL;

    if (parse(&env, data, bytes, NULL) != WN_OK) return NULL;
    if (env->body_case == WN__ENVELOPE__BODY_HELLO && check_hello(env->hello, NULL) == WN_OK) return env;
    wn_codec_free(env);
    return NULL;
}

wn_status wn_codec_unpack_logprobs(Wn__TokenLogprobs **out, const void *data, size_t bytes, struct wn_err *err)
{
    wn_status rc;

    if (bytes > WN_LOGPROBS_BYTES_MAX)
        return wn_fail(err, WN_ELIMIT, "TokenLogprobs of %zu bytes, at most %d", bytes, WN_LOGPROBS_BYTES_MAX);
    if ((rc = wn_codec_scan(&wn__token_logprobs__descriptor, data, bytes, err)) != WN_OK) return rc;
    *out = wn__token_logprobs__unpack(NULL, bytes, data);
    return *out ? WN_OK : wn_fail(err, WN_EPROTO, "TokenLogprobs of %zu bytes does not parse", bytes);
}

void wn_codec_free(Wn__Envelope *env)
{
    if (env) wn__envelope__free_unpacked(env, NULL);
}

wn_status wn_codec_pack(uint8_t **out, size_t *out_bytes, const Wn__Envelope *env, struct wn_err *err)
{
    Wn__Envelope e = *env;
    uint8_t *data = NULL;
    size_t bytes;
    wn_status rc;

    e.version = WN_PROTO_VERSION;
    if ((rc = check_body(&e, err)) != WN_OK) return rc;
    bytes = wn__envelope__get_packed_size(&e);
    if (bytes > WN_CODEC_BYTES_MAX)
        return wn_fail(err, WN_ELIMIT, "%s of %zu bytes, at most %zu are allowed", wn_codec_body_name(e.body_case),
                       bytes, WN_CODEC_BYTES_MAX);
    data = malloc(bytes);
    if (!data) return wn_fail(err, WN_ENOMEM, "message of %zu bytes", bytes);
    bytes = wn__envelope__pack(&e, data);
    rc = wn_codec_scan(&wn__envelope__descriptor, data, bytes, err);
    if (rc != WN_OK) {
        free(data);
        return rc;
    }
    *out = data;
    *out_bytes = bytes;
    return WN_OK;
}

wn_status wn_codec_pack_body(uint8_t **out, size_t *out_bytes, Wn__Envelope__BodyCase kind, const void *body,
                             struct wn_err *err)
{
    Wn__Envelope e = WN__ENVELOPE__INIT;

    e.body_case = kind;
    e.submit = (Wn__Submit *)(uintptr_t)body; /* every body is a pointer in one union; only read from here on */
    return wn_codec_pack(out, out_bytes, &e, err);
}

const char *wn_codec_body_name(Wn__Envelope__BodyCase kind)
{
    const ProtobufCFieldDescriptor *f =
        protobuf_c_message_descriptor_get_field(&wn__envelope__descriptor, (unsigned)kind);

    if (!f || f->type != PROTOBUF_C_TYPE_MESSAGE) return "unknown";
    return ((const ProtobufCMessageDescriptor *)f->descriptor)->short_name;
}

bool wn_codec_has_payload(Wn__Envelope__BodyCase kind)
{
    return kind == WN__ENVELOPE__BODY_SUBMIT || kind == WN__ENVELOPE__BODY_ENCODE ||
           kind == WN__ENVELOPE__BODY_FEATURES;
}

void wn_link_bytes_add(Wn__LinkBytes *into, const Wn__LinkBytes *from)
{
    if (!from) return;
    into->control += from->control;
    into->embedding += from->embedding;
    into->activation += from->activation;
    into->allreduce += from->allreduce;
    into->logits += from->logits;
    into->image += from->image;
    into->tokens += from->tokens;
}

void wn_usage_add(Wn__Usage *into, const Wn__Usage *from)
{
    if (!from) return;
    if (from->prompt_tokens) into->prompt_tokens = from->prompt_tokens;
    if (from->completion_tokens) into->completion_tokens = from->completion_tokens;
    if (from->image_tokens) into->image_tokens = from->image_tokens;
    if (from->image_tokens_before_pruning) into->image_tokens_before_pruning = from->image_tokens_before_pruning;
    if (from->cached_tokens) into->cached_tokens = from->cached_tokens;
    into->vision_cache_hit |= from->vision_cache_hit;
    if (into->bytes_on_wire) wn_link_bytes_add(into->bytes_on_wire, from->bytes_on_wire);
    into->preemptions += from->preemptions;
    into->queue_us += from->queue_us;
    into->preprocess_us += from->preprocess_us;
    into->encode_us += from->encode_us;
    into->prune_us += from->prune_us;
    into->transfer_us += from->transfer_us;
    into->prefill_us += from->prefill_us;
    into->decode_us += from->decode_us;
}

void wn_link_bytes_from_traffic(Wn__LinkBytes *out, const struct wn_traffic_table *table)
{
    out->control = table->of[WN_TRAFFIC_CONTROL].sent_bytes + table->of[WN_TRAFFIC_TOKENS].sent_bytes;
    out->embedding = table->of[WN_TRAFFIC_EMBEDDING].sent_bytes;
    out->activation = table->of[WN_TRAFFIC_ACTIVATION].sent_bytes;
    out->allreduce = table->of[WN_TRAFFIC_ALLREDUCE].sent_bytes;
    out->logits = table->of[WN_TRAFFIC_LOGITS].sent_bytes;
}
