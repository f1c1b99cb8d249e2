/* tests/unit/test_codec_values.c - each value that messages may hold, at its limit and beyond, and sums of usage. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "proto/codec.h"

static Wn__JobRef good = {.base = PROTOBUF_C_MESSAGE_INIT(&wn__job_ref__descriptor),
                          .job_id = "01ARZ3NDEKTSV4RRFFQ69G5FAV", .attempt = 1};
static Wn__JobRef bad = {.base = PROTOBUF_C_MESSAGE_INIT(&wn__job_ref__descriptor), .job_id = "no id", .attempt = 1};

/* Packs it; what goes out comes in. */
static wn_status pack(Wn__Envelope__BodyCase kind, const void *body)
{
    struct wn_err err = {0};
    Wn__Envelope *env = NULL;
    uint8_t *data = NULL;
    size_t bytes;
    wn_status rc = wn_codec_pack_body(&data, &bytes, kind, body, &err);

    if (rc == WN_OK && wn_codec_unpack(&env, data, bytes, &err) != WN_OK) fail_msg("%s", err.text);
    if (rc != WN_OK) assert_null(data);
    wn_codec_free(env);
    free(data);
    return rc;
}

static wn_status generate(const Wn__Sampling *s, const Wn__Pruning *p)
{
    Wn__Generate g = WN__GENERATE__INIT;

    g.job = &good;
    g.prompt = "q";
    g.sampling = (Wn__Sampling *)(uintptr_t)s;
    g.pruning = (Wn__Pruning *)(uintptr_t)p;
    return pack(WN__ENVELOPE__BODY_GENERATE, &g);
}

static void sampling_numbers(void **state)
{
    static const struct {
        size_t at;
        uint32_t max;
    } counts[] = {
        {offsetof(Wn__Sampling, max_tokens), WN_EMITTED_MAX}, {offsetof(Wn__Sampling, top_logprobs), WN_LOGPROBS_MAX}};
    static const struct {
        size_t at;
        float max;
    } numbers[] = {{offsetof(Wn__Sampling, temperature), 100},
                   {offsetof(Wn__Sampling, top_p), 1},
                   {offsetof(Wn__Sampling, repetition_penalty), 10}};

    (void)state;
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        Wn__Sampling s = WN__SAMPLING__INIT;
        uint32_t *value = (uint32_t *)(void *)((char *)&s + counts[i].at);
        *value = counts[i].max;
        assert_int_equal(generate(&s, NULL), WN_OK);
        (*value)++;
        assert_int_equal(generate(&s, NULL), WN_ELIMIT);
    }
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        Wn__Sampling s = WN__SAMPLING__INIT;
        float *value = (float *)(void *)((char *)&s + numbers[i].at);
        *value = numbers[i].max;
        assert_int_equal(generate(&s, NULL), WN_OK);
        *value = numbers[i].max * 1.01f;
        assert_int_equal(generate(&s, NULL), WN_EINVAL);
        *value = -0.01f;
        assert_int_equal(generate(&s, NULL), WN_EINVAL);
    }
}

static void sampling_stops(void **state)
{
    Wn__Sampling s = WN__SAMPLING__INIT;
    uint32_t ids[WN_STOP_MAX + 1] = {0};
    char text[WN_STOP_BYTES_MAX + 2] = {0}, *stop[WN_STOP_MAX + 1];

    (void)state;
    for (int i = 0; i <= WN_STOP_MAX; i++) stop[i] = "x";
    s.stop_token_ids = ids;
    s.n_stop_token_ids = WN_STOP_MAX;
    s.stop = stop;
    s.n_stop = WN_STOP_MAX;
    assert_int_equal(generate(&s, NULL), WN_OK);
    s.n_stop++;
    assert_int_equal(generate(&s, NULL), WN_ELIMIT);
    s.n_stop = 2;
    s.n_stop_token_ids++;
    assert_int_equal(generate(&s, NULL), WN_ELIMIT);
    s.n_stop_token_ids = 0;
    memset(text, 'x', WN_STOP_BYTES_MAX);
    stop[1] = text;
    assert_int_equal(generate(&s, NULL), WN_OK);
    text[WN_STOP_BYTES_MAX] = 'x';
    assert_int_equal(generate(&s, NULL), WN_EINVAL);
    stop[1] = "";
    assert_int_equal(generate(&s, NULL), WN_EINVAL);
}

/* Whoever passes pruning on checks it. */
static void pruning(void **state)
{
    static const struct {
        uint32_t keep, cap, position;
        float rate;
        wn_status want;
    } cases[] = {
        {WN_FEATURE_ROWS_MAX, WN_FEATURE_ROWS_MAX, WN__POSITION_POLICY__POSITION_COMPACT, 1, WN_OK},
        {WN_FEATURE_ROWS_MAX + 1, 0, 0, 0, WN_ELIMIT},
        {0, WN_FEATURE_ROWS_MAX + 1, 0, 0, WN_ELIMIT},
        {0, 0, WN__POSITION_POLICY__POSITION_COMPACT + 1, 0, WN_EINVAL},
        {0, 0, 0, 1.01f, WN_EINVAL},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        Wn__Pruning p = WN__PRUNING__INIT;
        Wn__Encode order = WN__ENCODE__INIT;
        Wn__Encoded done = WN__ENCODED__INIT;
        p.keep = cases[i].keep;
        p.cap = cases[i].cap;
        p.position = (Wn__PositionPolicy)cases[i].position;
        p.rate = cases[i].rate;
        order.job = done.job = &good;
        order.pruning = done.pruning = &p;
        assert_int_equal(generate(NULL, &p), cases[i].want);
        assert_int_equal(pack(WN__ENVELOPE__BODY_ENCODE, &order), cases[i].want);
        assert_int_equal(pack(WN__ENVELOPE__BODY_ENCODED, &done), cases[i].want);
    }
}

static void images(void **state)
{
    (void)state;
    for (uint32_t over = 0; over < 2; over++) {
        Wn__Generate g = WN__GENERATE__INIT;
        Wn__Encode order = WN__ENCODE__INIT;
        Wn__Encoded done = WN__ENCODED__INIT;
        g.job = order.job = done.job = &good;
        g.images = WN_IMAGES_MAX + over; /* a count, and numbers from 0 on */
        order.image = done.image = WN_IMAGES_MAX - 1 + over;
        assert_int_equal(pack(WN__ENVELOPE__BODY_GENERATE, &g), over ? WN_ELIMIT : WN_OK);
        assert_int_equal(pack(WN__ENVELOPE__BODY_ENCODE, &order), over ? WN_EPROTO : WN_OK);
        assert_int_equal(pack(WN__ENVELOPE__BODY_ENCODED, &done), over ? WN_EPROTO : WN_OK);
        done.image = 0;
        done.rows = WN_FEATURE_ROWS_MAX + over;
        assert_int_equal(pack(WN__ENVELOPE__BODY_ENCODED, &done), over ? WN_ELIMIT : WN_OK);
        done.rows = 0;
        done.rows_before = WN_FEATURE_ROWS_MAX + over;
        assert_int_equal(pack(WN__ENVELOPE__BODY_ENCODED, &done), over ? WN_ELIMIT : WN_OK);
    }
}

static void features(void **state)
{
    static uint32_t index[WN_FEATURE_ROWS_MAX + 1];
    static const struct {
        uint32_t rows, width, before, dtype, space, image;
        wn_status want;
    } cases[] = {
        {1, WN_FEATURE_ROWS_MAX, WN_FEATURE_ROWS_MAX, 2, WN__FEATURE_SPACE__SPACE_PROJECTED, 15, WN_OK},
        {WN_FEATURE_ROWS_MAX, 1, 1, 0, 0, 0, WN_OK},
        {WN_FEATURE_ROWS_MAX + 1, 1, 1, 0, 0, 0, WN_ELIMIT},
        {1, WN_FEATURE_ROWS_MAX + 1, 1, 0, 0, 0, WN_ELIMIT},
        {1, 1, WN_FEATURE_ROWS_MAX + 1, 0, 0, 0, WN_ELIMIT},
        {1, 1, 1, 3, 0, 0, WN_EPROTO},
        {1, 1, 1, 0, WN__FEATURE_SPACE__SPACE_PROJECTED + 1, 0, WN_EPROTO},
        {1, 1, 1, 0, 0, 16, WN_EPROTO},
    };
    uint8_t hash[32] = {0};

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        Wn__Features f = WN__FEATURES__INIT;
        f.job = &good;
        f.rows = cases[i].rows;
        f.index = index;
        f.n_index = cases[i].rows;
        f.width = cases[i].width;
        f.rows_before = cases[i].before;
        f.dtype = cases[i].dtype;
        f.space = (Wn__FeatureSpace)cases[i].space;
        f.image = cases[i].image;
        f.sha256 = (ProtobufCBinaryData){sizeof(hash), hash}; /* flags may be left out */
        assert_int_equal(pack(WN__ENVELOPE__BODY_FEATURES, &f), cases[i].want);
    }
}

/* Whatever names a job names a real one. */
static void references(void **state)
{
    Wn__JobRef *const refs[] = {&good, &bad, NULL};

    (void)state;
    assert_false(wn_job_id_valid(NULL));
    for (int i = 0; i < 3; i++) {
        const wn_status want = i ? WN_EPROTO : WN_OK;
        Wn__JobRef *list[] = {&good, refs[i]};
        Wn__Kept kept[2] = {WN__KEPT__INIT, WN__KEPT__INIT}, *kepts[] = {&kept[0], &kept[1]};
        Wn__Hello hello = WN__HELLO__INIT;
        Wn__Welcome welcome = WN__WELCOME__INIT;
        Wn__Cancel c = WN__CANCEL__INIT;
        Wn__Done d = WN__DONE__INIT;
        Wn__Tokens t = WN__TOKENS__INIT;
        Wn__FeaturesAck ack = WN__FEATURES_ACK__INIT;
        Wn__Error e = WN__ERROR__INIT;
        c.job = d.job = t.job = ack.job = e.job = kept[1].job = refs[i];
        kept[0].job = &good;
        welcome.kept = kepts;
        welcome.n_kept = 2;
        assert_int_equal(pack(WN__ENVELOPE__BODY_CANCEL, &c), want);
        assert_int_equal(pack(WN__ENVELOPE__BODY_DONE, &d), want);
        assert_int_equal(pack(WN__ENVELOPE__BODY_TOKENS, &t), want);
        assert_int_equal(pack(WN__ENVELOPE__BODY_FEATURES_ACK, &ack), want);
        assert_int_equal(pack(WN__ENVELOPE__BODY_WELCOME, &welcome), want);
        assert_int_equal(pack(WN__ENVELOPE__BODY_ERROR, &e), refs[i] ? want : WN_OK); /* it may be about none */
        if (!refs[i]) continue;
        hello.role = WN__ROLE__ROLE_LEADER;
        hello.name = "replica-0";
        hello.running = list;
        hello.n_running = 2;
        assert_int_equal(pack(WN__ENVELOPE__BODY_HELLO, &hello), want);
        hello.n_running = 0;
        hello.answering = list;
        hello.n_answering = 2;
        assert_int_equal(pack(WN__ENVELOPE__BODY_HELLO, &hello), want);
    }
}

static void enums_and_names(void **state)
{
    Wn__Hello h = WN__HELLO__INIT;
    Wn__Done d = WN__DONE__INIT;

    (void)state;
    h.role = WN__ROLE__ROLE_VISION;
    assert_int_equal(pack(WN__ENVELOPE__BODY_HELLO, &h), WN_EPROTO); /* without a name */
    h.name = "v";
    assert_int_equal(pack(WN__ENVELOPE__BODY_HELLO, &h), WN_OK);
    h.role = WN__ROLE__ROLE_LEADER;
    assert_int_equal(pack(WN__ENVELOPE__BODY_HELLO, &h), WN_OK);
    h.role = WN__ROLE__ROLE_UNSET;
    assert_int_equal(pack(WN__ENVELOPE__BODY_HELLO, &h), WN_EPROTO);
    d.job = &good;
    d.reason = WN__FINISH_REASON__FINISH_ERROR;
    assert_int_equal(pack(WN__ENVELOPE__BODY_DONE, &d), WN_OK);
    d.reason = (Wn__FinishReason)(WN__FINISH_REASON__FINISH_ERROR + 1);
    assert_int_equal(pack(WN__ENVELOPE__BODY_DONE, &d), WN_EPROTO);
}

/* One value for each token, or none at all; a value may be empty, which is "not known". */
static void log_probabilities(void **state)
{
    static uint8_t bytes[WN_LOGPROBS_BYTES_MAX];
    static uint32_t ids[600];
    static ProtobufCBinaryData values[600];
    Wn__TokenLogprobs *one = NULL;
    Wn__Tokens t = WN__TOKENS__INIT;
    struct wn_err err = {0};

    (void)state;
    t.job = &good;
    t.ids = ids;
    t.n_ids = 3;
    t.logprobs = values;
    assert_int_equal(pack(WN__ENVELOPE__BODY_TOKENS, &t), WN_OK);
    t.n_logprobs = 3;
    assert_int_equal(pack(WN__ENVELOPE__BODY_TOKENS, &t), WN_OK);
    t.n_logprobs = 2;
    assert_int_equal(pack(WN__ENVELOPE__BODY_TOKENS, &t), WN_EPROTO);
    t.n_ids = 0;
    assert_int_equal(pack(WN__ENVELOPE__BODY_TOKENS, &t), WN_EPROTO);
    assert_int_equal(wn_codec_unpack_logprobs(&one, bytes, 0, &err), WN_OK);
    assert_null(one->chosen);
    wn__token_logprobs__free_unpacked(one, NULL);
    for (int i = 0; i < 600; i++) values[i] = (ProtobufCBinaryData){sizeof(bytes), bytes};
    t.n_ids = t.n_logprobs = 500; /* about 1,000 KiB */
    assert_int_equal(pack(WN__ENVELOPE__BODY_TOKENS, &t), WN_OK);
    t.n_ids = t.n_logprobs = 600; /* no field is over its limit: the message is */
    assert_int_equal(pack(WN__ENVELOPE__BODY_TOKENS, &t), WN_ELIMIT);
}

/* What the other side would refuse does not go out. */
static void texts_are_checked_here(void **state)
{
    char *text = malloc(WN_PROMPT_BYTES_MAX + 2);
    Wn__Generate g = WN__GENERATE__INIT;

    (void)state;
    assert_non_null(text);
    memset(text, 'a', WN_PROMPT_BYTES_MAX + 1);
    text[WN_PROMPT_BYTES_MAX + 1] = '\0';
    g.job = &good;
    g.prompt = text + 1;
    assert_int_equal(pack(WN__ENVELOPE__BODY_GENERATE, &g), WN_OK);
    g.prompt = text;
    assert_int_equal(pack(WN__ENVELOPE__BODY_GENERATE, &g), WN_ELIMIT);
    g.prompt = "\xff";
    assert_int_equal(pack(WN__ENVELOPE__BODY_GENERATE, &g), WN_EPROTO);
    free(text);
}

/* Bytes by hand: what no sender of ours writes, and parsers have read in more than one way. */
static void strange_bytes(void **state)
{
    static const struct {
        const char *bytes;
        size_t n;
        wn_status want;
    } cases[] = {
        {"\x08\x01\x6a\x00", 4, WN_OK},                                    /* version 1, a body (13) */
        {"\x08\x01\x08\x01\x6a\x00", 6, WN_EPROTO},                        /* the version twice */
        {"\x0a\x01\x01\x6a\x00", 5, WN_EPROTO},                            /* the version as a packed list */
        {"\x08\x01\x68\x00", 4, WN_EPROTO},                                /* the body as a number */
        {"\x00\x01\x08\x01\x6a\x00", 6, WN_EPROTO},                        /* field 0 */
        {"\x88\x80\x80\x80\x10\x01\x08\x01\x6a\x00", 10, WN_EPROTO},       /* a tag of more than 32 bits */
        {"\x08\x81\x80\x80\x80\x80\x80\x80\x80\x80\x00\x6a\x00", 13, WN_OK},     /* a long form of 1, in 10 bytes */
        {"\x08\x81\x80\x80\x80\x80\x80\x80\x80\x80\x02\x6a\x00", 13, WN_EPROTO}, /* the 65th bit */
        {"\x08\x81\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00\x6a\x00", 14, WN_EPROTO}, /* 11 bytes */
        {"\x08\x01\xa9\x06\1\2\3\4\5\6\7\10\x6a\x00", 14, WN_OK},          /* field 101 of a later version: 64 bits */
        {"\x08\x01\xad\x06\1\2\3\4\x6a\x00", 10, WN_OK},                   /* 32 bits */
        {"\x08\x01\x6a\x00\xa9\x06\1\2\3\4\5\6\7", 13, WN_EPROTO},         /* cut */
        {"\x08\x01\x6a\x00\xad\x06\1\2\3", 9, WN_EPROTO},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        Wn__Envelope *env = NULL;
        struct wn_err err = {0};
        const wn_status rc = wn_codec_unpack(&env, cases[i].bytes, cases[i].n, &err);
        if (rc != cases[i].want) fail_msg("case %zu: %s", i, wn_status_name(rc));
        wn_codec_free(env);
    }
}

#define EACH_LINK_BYTES(X) X(control) X(embedding) X(activation) X(allreduce) X(logits) X(image) X(tokens)
#define EACH_SUM(X) X(preemptions) X(queue_us) X(preprocess_us) X(encode_us) X(prune_us) X(transfer_us) X(prefill_us) \
    X(decode_us)
#define EACH_LAST(X) X(prompt_tokens) X(completion_tokens) X(image_tokens) X(image_tokens_before_pruning) \
    X(cached_tokens)

/* Times and bytes add up, counts are those that were said last, if they were said. */
static void usage_adds_up(void **state)
{
    Wn__LinkBytes bytes[2] = {WN__LINK_BYTES__INIT, WN__LINK_BYTES__INIT};
    Wn__Usage sum = WN__USAGE__INIT, part = WN__USAGE__INIT, silent = WN__USAGE__INIT;
    unsigned n = 0;

    (void)state;
#define SET(name) bytes[0].name = 100 + n, bytes[1].name = 7 * ++n;
    EACH_LINK_BYTES(SET)
#undef SET
    wn_link_bytes_add(&bytes[0], &bytes[1]);
    wn_link_bytes_add(&bytes[0], NULL);
    n = 0;
#define CHECK(name) assert_int_equal(bytes[0].name, 100 + n + 7 * (n + 1)), n++;
    EACH_LINK_BYTES(CHECK)
#undef CHECK
    n = 0;
#define SET(name) sum.name = 100 + n, part.name = 7 * ++n;
    EACH_SUM(SET) EACH_LAST(SET)
#undef SET
    part.vision_cache_hit = true;
    part.bytes_on_wire = &bytes[1]; /* sum has no place for them */
    wn_usage_add(&sum, &part);
    wn_usage_add(&sum, &silent);
    wn_usage_add(&sum, NULL);
    n = 0;
#define CHECK(name) assert_int_equal(sum.name, 100 + n + 7 * (n + 1)), n++;
    EACH_SUM(CHECK)
#undef CHECK
#define CHECK(name) assert_int_equal(sum.name, 7 * ++n);
    EACH_LAST(CHECK)
#undef CHECK
    assert_true(sum.vision_cache_hit);
    assert_null(sum.bytes_on_wire);
}

static void bytes_of_traffic(void **state)
{
    struct wn_traffic_table table = {0};
    Wn__LinkBytes b = WN__LINK_BYTES__INIT;

    (void)state;
    for (unsigned k = 0; k < WN_TRAFFIC_N; k++) table.of[k].sent_bytes = 1u << k;
    wn_link_bytes_from_traffic(&b, &table);
    assert_int_equal(b.control, 1 << WN_TRAFFIC_CONTROL | 1 << WN_TRAFFIC_TOKENS);
    assert_int_equal(b.embedding, 1 << WN_TRAFFIC_EMBEDDING);
    assert_int_equal(b.activation, 1 << WN_TRAFFIC_ACTIVATION);
    assert_int_equal(b.allreduce, 1 << WN_TRAFFIC_ALLREDUCE);
    assert_int_equal(b.logits, 1 << WN_TRAFFIC_LOGITS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sampling_numbers),  cmocka_unit_test(sampling_stops),
        cmocka_unit_test(pruning),           cmocka_unit_test(images),
        cmocka_unit_test(features),          cmocka_unit_test(references),
        cmocka_unit_test(enums_and_names),   cmocka_unit_test(log_probabilities),
        cmocka_unit_test(texts_are_checked_here), cmocka_unit_test(strange_bytes),
        cmocka_unit_test(usage_adds_up),     cmocka_unit_test(bytes_of_traffic),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
