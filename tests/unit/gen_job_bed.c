/* tests/unit/gen_job_bed.c - see gen_job_bed.h. */
#include "tests/unit/gen_job_bed.h"

#define MODEL "models/tiny-llava"

struct wn_model model;
struct wn_tokenizer *tokenizer;
struct wn_gen_limits limits;

int gen_open(void **state)
{
    struct wn_err err = {0};

    (void)state;
    if (wn_model_open(&model, MODEL, &err) != WN_OK) return -1;
    if (wn_tokenizer_open(&tokenizer, MODEL "/tokenizer.json", &err) != WN_OK) return -1;
    limits = (struct wn_gen_limits){.model = &model, .tokenizer = tokenizer, .model_id = "x", .page_tokens = 8,
                                    .tokens_max = 1500, .max_new = 8, .images_max = 2};
    return 0;
}

int gen_close(void **state)
{
    (void)state;
    wn_tokenizer_close(tokenizer);
    return 0;
}

void gen_ask(struct asked *a, uint32_t images)
{
    a->ref = (Wn__JobRef)WN__JOB_REF__INIT;
    a->s = (Wn__Sampling)WN__SAMPLING__INIT;
    a->p = (Wn__Pruning)WN__PRUNING__INIT;
    a->g = (Wn__Generate)WN__GENERATE__INIT;
    a->ref.job_id = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
    a->ref.attempt = 1;
    a->s.max_tokens = 8;
    a->p.method = "cls-topk";
    a->p.position = WN__POSITION_POLICY__POSITION_COMPACT;
    a->g.job = &a->ref;
    a->g.prompt = "What does the text say?";
    a->g.images = images;
    a->g.sampling = &a->s;
    a->g.pruning = &a->p;
}

struct wn_front_msg *gen_message(Wn__Envelope__BodyCase kind, const void *body)
{
    struct wn_front_msg *msg = calloc(1, sizeof(*msg));
    struct wn_err err = {0};
    uint8_t *data;
    size_t bytes;

    assert_non_null(msg);
    wn_msg_init(&msg->msg);
    if (wn_codec_pack_body(&data, &bytes, kind, body, &err) != WN_OK) fail_msg("%s", err.text);
    if (wn_codec_unpack(&msg->env, data, bytes, &err) != WN_OK) fail_msg("%s", err.text);
    free(data);
    return msg;
}

struct wn_gen_job *gen_job_of(const struct asked *a)
{
    struct wn_front_msg *order = gen_message(WN__ENVELOPE__BODY_GENERATE, &a->g);
    struct wn_gen_job *job = NULL;
    struct wn_err err = {0};

    if (wn_gen_job_create(&job, order, &limits, &err) != WN_OK) fail_msg("%s", err.text);
    return job;
}

void gen_describe(struct sent *s, uint32_t image)
{
    const uint32_t index[KEPT] = {7, 100, 300, WN_PRUNE_NO_INDEX};

    memset(s, 0, sizeof(*s));
    s->ref = (Wn__JobRef)WN__JOB_REF__INIT;
    s->f = (Wn__Features)WN__FEATURES__INIT;
    s->ref.job_id = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
    s->ref.attempt = 1;
    memcpy(s->index, index, sizeof(index));
    s->flags[KEPT - 1] = WN_PRUNE_EXTRA;
    s->sha256[0] = (uint8_t)image;
    s->f.job = &s->ref;
    s->f.image = image;
    s->f.space = WN__FEATURE_SPACE__SPACE_TOWER;
    s->f.dtype = WN_BF16;
    s->f.rows = KEPT;
    s->f.n_index = KEPT;
    s->f.width = model.vision.hidden;
    s->f.index = s->index;
    s->f.flags = (ProtobufCBinaryData){KEPT, s->flags};
    s->f.sha256 = (ProtobufCBinaryData){sizeof(s->sha256), s->sha256};
    s->f.rows_before = model.vision.patches;
    s->payload_bytes = (size_t)KEPT * model.vision.hidden * 2;
}

struct wn_front_msg *gen_features_of(const struct sent *s)
{
    static const uint8_t payload[1 << 20];
    struct wn_front_msg *msg = gen_message(WN__ENVELOPE__BODY_FEATURES, &s->f);

    msg->payload = payload;
    msg->payload_bytes = s->payload_bytes;
    msg->damaged = s->damaged;
    return msg;
}

void gen_give(struct wn_gen_job *job, uint32_t image)
{
    struct sent s;
    struct wn_err err = {0};

    gen_describe(&s, image);
    if (wn_gen_job_features(job, gen_features_of(&s), &limits, &err) != WN_OK) fail_msg("%s", err.text);
}

struct wn_gen_job *gen_laid_out(const struct asked *a)
{
    struct wn_gen_job *job = gen_job_of(a);
    struct wn_err err = {0};

    for (uint32_t i = 0; i < a->g.images; i++) {
        assert_false(wn_gen_job_complete(job));
        gen_give(job, i);
    }
    assert_true(wn_gen_job_complete(job));
    if (wn_gen_job_layout(job, &limits, &err) != WN_OK) fail_msg("%s", err.text);
    return job;
}
