/* daemon/engine_job.c - see engine_job.h. */
#include "daemon/engine_job.h"

#include <stdlib.h>
#include <string.h>

#include "base/sha256.h"
#include "daemon/pruning_ask.h"
#include "shard/prompt.h"

static wn_status check_sampling(const Wn__Sampling *s, uint32_t vocab, struct wn_err *err)
{
    for (size_t i = 0; s && i < s->n_stop_token_ids; i++)
        if (s->stop_token_ids[i] >= vocab)
            return wn_fail(err, WN_EINVAL, "stop token %u; the vocabulary has %u", s->stop_token_ids[i], vocab);
    return s ? wn_sampling_check(s, err) : WN_OK;
}

bool wn_gen_is_end(const Wn__Generate *g, const struct wn_model *model, uint32_t id)
{
    const Wn__Sampling *s = g->sampling;

    for (size_t i = 0; s && i < s->n_stop_token_ids; i++)
        if (id == s->stop_token_ids[i]) return true;
    for (uint32_t i = 0; i < model->eos_n; i++)
        if (id == model->eos[i]) return !(s && s->ignore_eos);
    return false;
}

wn_status wn_gen_job_create(struct wn_gen_job **out, struct wn_front_msg *order, const struct wn_gen_limits *limits,
                            struct wn_err *err)
{
    const Wn__Generate *g = order->env->generate;
    const Wn__Sampling *s = g->sampling;
    struct wn_gen_job *job = calloc(1, sizeof(*job));
    const struct wn_prompt prompt = {.question = g->prompt,
                                     .question_bytes = strlen(g->prompt),
                                     .images = g->images,
                                     .image_token = limits->model->image_token};
    const char *text;
    wn_status rc;

    if (!job) return wn_fail(err, WN_ENOMEM, "job");
    job->g = g;
    job->arrived_us = wn_now_us();
    job->images_n = g->images;
    job->original = g->pruning && g->pruning->position == WN__POSITION_POLICY__POSITION_ORIGINAL;
    if (g->images > limits->images_max) {
        rc = wn_fail(err, WN_ELIMIT, "%u images; at most %u in a job", g->images, limits->images_max);
        goto out;
    }
    if ((rc = check_sampling(s, limits->model->text.vocab, err)) != WN_OK) goto out;
    rc = wn_prompt_encode(&prompt, limits->tokenizer, limits->tokens_max, &job->tokens, err);
    if (rc != WN_OK) {
        if (rc == WN_ELIMIT) rc = wn_fail(err, WN_ELIMIT, "the prompt is longer than %u tokens", limits->tokens_max);
        goto out;
    }
    rc = wn_answer_create(&job->answer, limits->tokenizer, s ? s->stop : NULL, s ? s->n_stop : 0, err);
    if (rc != WN_OK) goto out;
    for (size_t i = 0; i < g->n_emitted; i++) {
        if (g->emitted[i] < limits->model->text.vocab) continue;
        rc = wn_fail(err, WN_EPROTO, "emitted token %u is not in the vocabulary", g->emitted[i]);
        goto out;
    }
    /* The text of earlier attempts has been shown; only the state that it left counts. */
    for (size_t i = 0; i < g->n_emitted && !job->stopped; i++) {
        if (wn_gen_is_end(g, limits->model, g->emitted[i])) job->stopped = true;
        else if ((rc = wn_answer_push(job->answer, g->emitted[i], &text, &job->stopped, err)) != WN_OK) goto out;
    }
    /* a repetition penalty counts the prompt's tokens where they are drawn: there every row has to pass */
    job->uncached = limits->no_prefix_caching || (s && s->repetition_penalty > 0 && s->repetition_penalty != 1);
    job->max_new = s && s->max_tokens ? s->max_tokens : limits->max_new;
    job->new_n = (uint32_t)g->n_emitted;
    job->order = order;
    job->life.state = WN_GEN_WAITING;
out:
    if (rc != WN_OK) {
        wn_gen_job_destroy(job);
        return rc;
    }
    *out = job;
    return WN_OK;
}

void wn_gen_job_destroy(struct wn_gen_job *job)
{
    if (!job) return;
    for (uint32_t i = 0; i < WN_IMAGES_MAX; i++) wn_front_msg_free(job->images[i].msg);
    wn_front_msg_free(job->order);
    wn_tokens_fini(&job->tokens);
    wn_answer_destroy(job->answer);
    free(job->rows);
    free(job->keys);
    free(job->pages);
    free(job);
}

/* What the header claims must be what the payload is, and what the model can take. That it has an index for each row
 * and a whole hash the codec has seen to. */
static wn_status check_features(const struct wn_gen_job *job, const struct wn_front_msg *msg,
                                const struct wn_gen_limits *limits, struct wn_err *err)
{
    const Wn__Features *f = msg->env->features;
    const struct wn_model *m = limits->model;
    const uint32_t width = f->space == WN__FEATURE_SPACE__SPACE_PROJECTED ? m->text.hidden : m->vision.hidden;

    if (f->image >= job->images_n)
        return wn_fail(err, WN_EPROTO, "features of image %u of %u", f->image, job->images_n);
    if (job->images[f->image].msg) return wn_fail(err, WN_EPROTO, "features of image %u came twice", f->image);
    if (f->dtype != WN_F32 && f->dtype != WN_BF16) return wn_fail(err, WN_EPROTO, "features of type %u", f->dtype);
    if (f->width != width) return wn_fail(err, WN_EPROTO, "features of width %u; the model's is %u", f->width, width);
    if (f->rows == 0 || f->rows > m->vision.patches + 1)
        return wn_fail(err, WN_EPROTO, "features of %u rows; the tower makes %u", f->rows, m->vision.patches);
    if (f->rows_before != m->vision.patches + (m->vision.keep_cls ? 1 : 0))
        return wn_fail(err, WN_EPROTO, "features of %u rows before pruning; the tower makes %u", f->rows_before,
                       m->vision.patches);
    for (size_t i = 0; i < f->n_index; i++)
        if (f->index[i] >= f->rows_before && f->index[i] != WN_PRUNE_NO_INDEX)
            return wn_fail(err, WN_EPROTO, "features of patch %u; the image has %u", f->index[i], f->rows_before);
    if (msg->payload_bytes != (size_t)f->rows * f->width * wn_dtype_bytes((wn_dtype)f->dtype))
        return wn_fail(err, WN_EPROTO, "features of %u x %u in %zu bytes", f->rows, f->width, msg->payload_bytes);
    if (msg->damaged)
        return wn_fail(err, WN_EPROTO, "features of image %u were damaged on the way", f->image);
    return WN_OK;
}

static uint64_t max64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* What is in the rows, and how they were chosen: the prefix cache keeps another method or budget apart even where it
 * kept the same rows. */
static void hash_image(const struct wn_gen_job *job, const Wn__Features *f, uint8_t out[WN_SHA256_BYTES])
{
    static const Wn__Pruning nothing = WN__PRUNING__INIT;
    uint8_t both[2][WN_SHA256_BYTES];

    memcpy(both[0], f->sha256.data, sizeof(both[0])); /* its length was checked */
    wn_pruning_hash(job->g->pruning ? job->g->pruning : &nothing, f->rows_before,
                    f->space == WN__FEATURE_SPACE__SPACE_PROJECTED, both[1]);
    wn_sha256(out, both, sizeof(both));
}

wn_status wn_gen_job_features(struct wn_gen_job *job, struct wn_front_msg *msg, const struct wn_gen_limits *limits,
                              struct wn_err *err)
{
    const Wn__Features *f = msg->env->features;
    wn_status rc = check_features(job, msg, limits, err);
    struct wn_gen_image *im;

    if (rc != WN_OK) return rc;
    im = &job->images[f->image];
    im->msg = msg;
    im->rows = f->rows;
    im->rows_before = f->rows_before;
    im->width = f->width;
    im->dtype = (wn_dtype)f->dtype;
    im->projected = f->space == WN__FEATURE_SPACE__SPACE_PROJECTED;
    hash_image(job, f, im->hash);
    job->image_rows += f->rows;
    job->image_rows_before += f->rows_before;
    job->cache_hits += f->cache_hit;
    job->features_us = wn_now_us();
    job->sent_us = max64(job->sent_us, f->sent_us);
    job->preprocess_us = max64(job->preprocess_us, f->preprocess_us);
    job->encode_us = max64(job->encode_us, f->encode_us);
    job->prune_us = max64(job->prune_us, f->prune_us);
    return WN_OK;
}

bool wn_gen_job_has(const struct wn_gen_job *job, uint32_t image)
{
    return image < job->images_n && job->images[image].msg;
}

bool wn_gen_job_complete(const struct wn_gen_job *job)
{
    for (uint32_t i = 0; i < job->images_n; i++)
        if (!job->images[i].msg) return false;
    return true;
}

/* The key of the first `n` rows of a page; those of the pages before are there. */
static void make_key(const struct wn_gen_job *job, uint32_t page_tokens, uint32_t page, uint32_t n,
                     struct wn_prefix_key *out)
{
    struct wn_prefix_row rows[WN_PREFIX_ROWS_MAX];

    WN_ASSERT(n <= WN_PREFIX_ROWS_MAX && (uint64_t)page * page_tokens + n <= job->rows_n);
    for (uint32_t i = 0; i < n; i++) {
        const struct wn_step_row *row = &job->rows[page * page_tokens + i];
        rows[i].id = row->id;
        rows[i].position = row->position;
        rows[i].image = row->features == WN_STEP_NO_FEATURES ? NULL : job->images[row->features].hash;
    }
    wn_prefix_key(page ? &job->keys[page - 1] : NULL, rows, n, out);
}

void wn_gen_job_keys(struct wn_gen_job *job, uint32_t page_tokens, uint32_t n)
{
    for (; job->keys_n < n; job->keys_n++)
        make_key(job, page_tokens, job->keys_n, page_tokens, &job->keys[job->keys_n]);
}

void wn_gen_job_head(struct wn_gen_job *job, uint32_t page_tokens, struct wn_gen_head *out)
{
    out->page = (job->prompt_rows_n - 1) / page_tokens;
    out->rows = (job->prompt_rows_n - 1) % page_tokens;
    wn_gen_job_keys(job, page_tokens, out->page);
    if (out->rows) make_key(job, page_tokens, out->page, out->rows, &out->key);
}

/* The input row of a token of the answer that is row `row` of the sequence. */
static struct wn_step_row token_row(const struct wn_gen_job *job, uint32_t id, uint32_t row)
{
    return (struct wn_step_row){
        .id = id, .features = WN_STEP_NO_FEATURES, .position = (uint32_t)((int64_t)row + job->ahead)};
}

void wn_gen_job_push(struct wn_gen_job *job, uint32_t id)
{
    WN_ASSERT(job->new_n < job->max_new);
    job->rows[job->rows_n] = token_row(job, id, job->rows_n);
    job->rows_n++;
    job->new_n++;
}

/* All that the job will need to the end of its longest answer, so that no step allocates. */
static wn_status make_room(struct wn_gen_job *job, uint64_t prompt, uint32_t page_tokens, struct wn_err *err)
{
    const uint32_t answer = job->max_new > job->new_n ? job->max_new : job->new_n;
    const size_t rows = (size_t)prompt + answer, pages = rows / page_tokens + 1;

    job->rows = calloc(rows, sizeof(*job->rows));
    job->pages = calloc(pages, sizeof(*job->pages));
    job->keys = calloc(pages, sizeof(*job->keys));
    return job->rows && job->pages && job->keys ? WN_OK : wn_fail(err, WN_ENOMEM, "job of %zu rows", rows);
}

/* Row numbers and rotary positions must stay below the model's limits, to the end of the longest answer. */
static wn_status check_length(struct wn_gen_job *job, uint64_t prompt, const struct wn_gen_limits *limits,
                              struct wn_err *err)
{
    const uint32_t positions_max = limits->model->text.positions_max;
    const uint64_t positions = prompt - job->image_rows + (job->original ? job->image_rows_before : job->image_rows);

    if (prompt + 1 > limits->tokens_max)
        return wn_fail(err, WN_ELIMIT, "the prompt has %llu tokens (%u of them image); at most %u fit with an answer",
                       (unsigned long long)prompt, job->image_rows, limits->tokens_max - 1);
    if (positions + 1 > positions_max)
        return wn_fail(err, WN_ELIMIT, "position policy 'original': the prompt takes %llu positions; the model has %u",
                       (unsigned long long)positions, positions_max);
    if (prompt + job->g->n_emitted > limits->tokens_max)
        return wn_fail(err, WN_ELIMIT, "the answer so far is longer than the model allows");
    if (job->max_new > limits->tokens_max - prompt) job->max_new = limits->tokens_max - (uint32_t)prompt;
    if (job->max_new > positions_max - positions) job->max_new = positions_max - (uint32_t)positions;
    return WN_OK;
}

/* Where a kept row was among the image's rows. */
static uint32_t original_place(const struct wn_gen_image *im, uint32_t r)
{
    const Wn__Features *f = im->msg->env->features;
    return wn_prune_position(f->index[r], f->flags.len ? f->flags.data[r] : 0, im->rows_before);
}

/* The rows of one image at rows[at ..], the first of them at rotary position `first`. Returns the position after it. */
static uint32_t lay_image(struct wn_gen_job *job, uint32_t image, uint32_t at, uint32_t first)
{
    const struct wn_gen_image *im = &job->images[image];

    for (uint32_t r = 0; r < im->rows; r++) {
        const uint32_t place = job->original ? original_place(im, r) : r;
        job->rows[at + r] = (struct wn_step_row){.id = r, .features = image, .position = first + place};
    }
    return first + (job->original ? im->rows_before : im->rows);
}

wn_status wn_gen_job_layout(struct wn_gen_job *job, const struct wn_gen_limits *limits, struct wn_err *err)
{
    const uint64_t prompt = (uint64_t)job->tokens.n - job->images_n + job->image_rows;
    uint32_t at = 0, image = 0, position = 0;
    wn_status rc = check_length(job, prompt, limits, err);

    if (rc != WN_OK) return rc;
    if ((rc = make_room(job, prompt, limits->page_tokens, err)) != WN_OK) return rc;
    for (size_t i = 0; i < job->tokens.n; i++) {
        if (job->tokens.ids[i] != limits->model->image_token) {
            job->rows[at++] = (struct wn_step_row){
                .id = job->tokens.ids[i], .features = WN_STEP_NO_FEATURES, .position = position++};
            continue;
        }
        position = lay_image(job, image, at, position);
        at += job->images[image].rows;
        job->images[image++].last_row = at;
    }
    WN_ASSERT(image == job->images_n && at == prompt);
    job->prompt_rows_n = at;
    job->ahead = (int32_t)((int64_t)position - at);
    for (size_t i = 0; i < job->g->n_emitted; i++, at++) job->rows[at] = token_row(job, job->g->emitted[i], at);
    job->rows_n = at;
    return wn_gen_apply(&job->life, WN_GEN_LAY_OUT) ? WN_OK : wn_fail(err, WN_EPROTO, "a job was laid out twice");
}

/* Payload bytes of the job on the replica's links, by the plan: rows from the cache cross none, those of a job that was
 * preempted cross again. */
static void count_bytes(const struct wn_gen_job *job, const struct wn_plan *plan, uint32_t chunk,
                        Wn__LinkBytes *bytes)
{
    const uint32_t ranks = plan->stages * plan->tensors;
    struct wn_plan_load rows = {
        .text_tokens = job->prompt_rows_n - job->cached_rows, .new_tokens = job->new_n, .chunk_tokens = chunk};
    const uint32_t once = rows.text_tokens + (job->new_n ? job->new_n - 1 : 0); /* the last token is no row */
    struct wn_plan_load features = {.new_tokens = 1, .chunk_tokens = chunk};

    for (uint32_t i = 0; i < job->images_n; i++) {
        features.image_rows += job->images[i].handed * job->images[i].rows;
        features.projected = job->images[i].projected;
    }
    if (job->computed_rows > once) rows.text_tokens += job->computed_rows - once;
    for (uint32_t src = 0; src < ranks; src++) {
        for (uint32_t dst = 0; dst < ranks; dst++) {
            if (src == dst) continue;
            bytes->embedding += wn_plan_link_bytes(plan, &features, src, dst, WN_TRAFFIC_EMBEDDING);
            bytes->activation += wn_plan_link_bytes(plan, &rows, src, dst, WN_TRAFFIC_ACTIVATION);
            bytes->allreduce += wn_plan_link_bytes(plan, &rows, src, dst, WN_TRAFFIC_ALLREDUCE);
            bytes->logits += wn_plan_link_bytes(plan, &rows, src, dst, WN_TRAFFIC_LOGITS);
        }
    }
}

void wn_gen_job_usage(const struct wn_gen_job *job, const struct wn_plan *plan, uint32_t chunk, Wn__Usage *usage,
                      Wn__LinkBytes *bytes)
{
    const int64_t now = wn_now_us();

    usage->prompt_tokens = job->prompt_rows_n;
    usage->completion_tokens = job->new_n;
    usage->cached_tokens = job->cached_rows;
    usage->preemptions = job->preemptions;
    usage->image_tokens = job->image_rows;
    usage->image_tokens_before_pruning = job->image_rows_before;
    usage->preprocess_us = job->preprocess_us;
    usage->encode_us = job->encode_us;
    usage->prune_us = job->prune_us;
    usage->vision_cache_hit = job->images_n > 0 && job->cache_hits == job->images_n;
    if (job->images_n > 0 && job->sent_us && (uint64_t)job->features_us > job->sent_us)
        usage->transfer_us = (uint64_t)job->features_us - job->sent_us;
    if (job->started_us && job->first_token_us) {
        usage->prefill_us = (uint64_t)(job->first_token_us - job->started_us);
        usage->decode_us = (uint64_t)(now - job->first_token_us);
    }
    if (job->started_us)
        usage->queue_us = (uint64_t)(job->started_us - (job->features_us ? job->features_us : job->arrived_us));
    if (!job->rows_n || !job->new_n) return;
    count_bytes(job, plan, chunk, bytes);
    usage->bytes_on_wire = bytes;
}
