/* tests/fuzz/fuzz_generate.c - what a leader is told: an order (Generate) and the features for it, as a scheduler and a
 * vision worker may send them. The input is the two messages, each behind two bytes of length, then the payload.
 * What must hold: a job that is laid out has ids of the vocabulary and rows of its features, and no more than fit. */
#include <stdlib.h>
#include <string.h>

#include "daemon/engine_job.h"

#define MODEL      "models/tiny-llava"
#define TOKENS_MAX 512

static struct wn_model model;
static struct wn_tokenizer *tokenizer;

static void open_model(void)
{
    struct wn_err err = {0};

    if (tokenizer) return;
    WN_ASSERT(wn_model_open(&model, MODEL, &err) == WN_OK);
    WN_ASSERT(wn_tokenizer_open(&tokenizer, MODEL "/tokenizer.json", &err) == WN_OK);
}

/* The next message of the input as the front hands it over; NULL: it is none. */
static struct wn_front_msg *next_message(const uint8_t **at, const uint8_t *end)
{
    struct wn_front_msg *msg = calloc(1, sizeof(*msg));
    struct wn_err err = {0};
    size_t n;

    if (!msg || end - *at < 2) goto none;
    n = (size_t)((*at)[0] | (*at)[1] << 8);
    *at += 2;
    if (n > (size_t)(end - *at)) n = (size_t)(end - *at);
    wn_msg_init(&msg->msg);
    if (wn_codec_unpack(&msg->env, *at, n, &err) != WN_OK) goto none;
    *at += n;
    return msg;
none:
    free(msg);
    return NULL;
}

static void check_rows(const struct wn_gen_job *job)
{
    WN_ASSERT(job->rows_n <= TOKENS_MAX);
    for (uint32_t i = 0; i < job->rows_n; i++) {
        const struct wn_step_row *row = &job->rows[i];
        if (row->features == WN_STEP_NO_FEATURES) {
            WN_ASSERT(row->id < model.text.vocab);
        } else {
            WN_ASSERT(row->features < job->images_n);
            WN_ASSERT(row->id < job->images[row->features].rows);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct wn_gen_limits limits = {.model = &model, .tokenizer = tokenizer, .model_id = "x", .page_tokens = 16,
                                         .tokens_max = TOKENS_MAX, .max_new = 8, .images_max = WN_IMAGES_MAX};
    const uint8_t *at = data, *const end = data + size;
    struct wn_front_msg *order, *features;
    struct wn_gen_job *job = NULL;
    struct wn_err err = {0};

    if (!tokenizer) {
        open_model();
        return LLVMFuzzerTestOneInput(data, size);
    }
    order = next_message(&at, end);
    if (!order || order->env->body_case != WN__ENVELOPE__BODY_GENERATE ||
        wn_gen_job_create(&job, order, &limits, &err) != WN_OK) {
        wn_front_msg_free(order);
        return 0;
    }
    while ((features = next_message(&at, end)) != NULL) {
        features->payload = at;
        features->payload_bytes = (size_t)(end - at);
        if (features->env->body_case != WN__ENVELOPE__BODY_FEATURES ||
            wn_gen_job_features(job, features, &limits, &err) != WN_OK)
            wn_front_msg_free(features);
    }
    if (wn_gen_job_complete(job) && wn_gen_job_layout(job, &limits, &err) == WN_OK) check_rows(job);
    wn_gen_job_destroy(job);
    return 0;
}
