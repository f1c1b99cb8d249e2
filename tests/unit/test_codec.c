/* tests/unit/test_codec.c - round trips, limits, and bytes that must be refused. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/utf8.h"
#include "proto/codec.h"
#include "proto/scan.h"

static char job_id[] = "01ARZ3NDEKTSV4RRFFQ69G5FAV";

/* A message built byte by byte. */
struct bytes {
    uint8_t *at;
    size_t n;
};

static void put(struct bytes *b, const void *data, size_t n)
{
    b->at = realloc(b->at, b->n + n + 1);
    assert_non_null(b->at);
    memcpy(b->at + b->n, data, n);
    b->n += n;
}

static void put_varint(struct bytes *b, uint64_t v)
{
    do {
        uint8_t c = (uint8_t)((v & 0x7f) | (v > 0x7f ? 0x80 : 0));
        put(b, &c, 1);
        v >>= 7;
    } while (v);
}

static void put_field(struct bytes *b, unsigned field, const void *data, size_t n)
{
    put_varint(b, field << 3 | 2);
    put_varint(b, n);
    put(b, data, n);
}

/* Envelope{version, field: body}; frees the body. */
static struct bytes envelope(unsigned version, unsigned field, struct bytes body)
{
    struct bytes b = {NULL, 0};

    put_varint(&b, 1 << 3);
    put_varint(&b, version);
    put_field(&b, field, body.at ? body.at : (void *)"", body.n);
    free(body.at);
    return b;
}

/* Unpacks, expects this status, frees the bytes; *text is the error's sentence. */
static void expect(struct bytes b, wn_status want, const char *words)
{
    Wn__Envelope *env = NULL;
    struct wn_err err = {0};
    wn_status rc = wn_codec_unpack(&env, b.at, b.n, &err);

    if (rc != want) print_error("got %s: %s\n", wn_status_name(rc), err.text);
    assert_int_equal(rc, want);
    if (rc != WN_OK) {
        assert_null(env);
        if (!strstr(err.text, words)) fail_msg("'%s' is not in '%s'", words, err.text);
    }
    wn_codec_free(env);
    free(b.at);
}

static void round_trip(void **state)
{
    Wn__Sampling sampling = WN__SAMPLING__INIT;
    Wn__Submit submit = WN__SUBMIT__INIT;
    uint64_t images[] = {10, 0, UINT64_MAX};
    char *stop[] = {"\n\n", "</s>"};
    Wn__Envelope *env = NULL;
    struct wn_err err = {0};
    uint8_t *data;
    size_t bytes;

    (void)state;
    sampling.temperature = 0.5f;
    sampling.stop = stop;
    sampling.n_stop = 2;
    submit.prompt = "Was ist das? \xe2\x82\xac";
    submit.image_bytes = images;
    submit.n_image_bytes = 3;
    submit.sampling = &sampling;
    assert_int_equal(wn_codec_pack_body(&data, &bytes, WN__ENVELOPE__BODY_SUBMIT, &submit, &err), WN_OK);
    assert_int_equal(wn_codec_unpack(&env, data, bytes, &err), WN_OK);
    assert_int_equal(env->body_case, WN__ENVELOPE__BODY_SUBMIT);
    assert_string_equal(env->submit->prompt, submit.prompt);
    assert_int_equal(env->submit->n_image_bytes, 3);
    assert_true(env->submit->image_bytes[2] == UINT64_MAX);
    assert_true(env->submit->sampling->temperature == 0.5f);
    assert_string_equal(env->submit->sampling->stop[1], "</s>");
    assert_null(env->submit->pruning);
    assert_string_equal(env->submit->client_tag, "");
    wn_codec_free(env);
    free(data);
}

static void every_bounded_field_has_a_limit(void **state)
{
    const ProtobufCMessageDescriptor *todo[64] = {&wn__envelope__descriptor};
    size_t n = 1, fields = 0;

    (void)state;
    for (size_t i = 0; i < n; i++) {
        for (unsigned j = 0; j < todo[i]->n_fields; j++) {
            const ProtobufCFieldDescriptor *f = &todo[i]->fields[j];
            const struct wn_field_limit *lim = wn_field_limit_find(todo[i]->short_name, f->name);
            bool bytes = f->type == PROTOBUF_C_TYPE_STRING || f->type == PROTOBUF_C_TYPE_BYTES;
            if (bytes || f->label == PROTOBUF_C_LABEL_REPEATED) {
                if (!lim) fail_msg("%s.%s has no limit", todo[i]->short_name, f->name);
                assert_true(bytes == (lim->bytes_max > 0));
                fields++;
            }
            if (f->type == PROTOBUF_C_TYPE_MESSAGE && n < 64) {
                bool known = false;
                for (size_t k = 0; k < n; k++) known |= todo[k] == f->descriptor;
                if (!known) todo[n++] = f->descriptor;
            }
        }
    }
    assert_true(fields > 40);
}

static void logprobs(void **state)
{
    Wn__TokenLogprobs t = WN__TOKEN_LOGPROBS__INIT, *back = NULL;
    Wn__TokenChance chance = WN__TOKEN_CHANCE__INIT, *top[WN_LOGPROBS_MAX + 1];
    struct wn_err err = {0};
    uint8_t data[2 * WN_LOGPROBS_BYTES_MAX];
    char text[WN_TOKEN_TEXT_MAX + 1];
    size_t bytes;

    (void)state;
    memset(text, 'a', sizeof(text));
    chance.id = UINT32_MAX;
    chance.logprob = -1.5f;
    chance.text.data = (uint8_t *)text;
    chance.text.len = WN_TOKEN_TEXT_MAX;
    t.chosen = &chance;
    t.top = top;
    t.n_top = WN_LOGPROBS_MAX;
    for (int i = 0; i <= WN_LOGPROBS_MAX; i++) top[i] = &chance;
    bytes = wn__token_logprobs__pack(&t, data); /* the longest one that there is */
    assert_true(bytes <= WN_LOGPROBS_BYTES_MAX);
    assert_int_equal(wn_codec_unpack_logprobs(&back, data, bytes, &err), WN_OK);
    assert_int_equal(back->n_top, WN_LOGPROBS_MAX);
    assert_true(back->top[19]->logprob == -1.5f);
    wn__token_logprobs__free_unpacked(back, NULL);
    for (size_t n = 1; n < bytes; n++) /* cut anywhere: refused, or what came before the cut */
        if (wn_codec_unpack_logprobs(&back, data, n, &err) == WN_OK) wn__token_logprobs__free_unpacked(back, NULL);
    t.n_top++;
    assert_int_equal(wn_codec_unpack_logprobs(&back, data, wn__token_logprobs__pack(&t, data), &err), WN_ELIMIT);
    t.n_top = 0;
    chance.text.len++;
    assert_int_equal(wn_codec_unpack_logprobs(&back, data, wn__token_logprobs__pack(&t, data), &err), WN_ELIMIT);
    assert_non_null(strstr(err.text, "TokenChance.text"));
    assert_int_equal(wn_codec_unpack_logprobs(&back, data, WN_LOGPROBS_BYTES_MAX + 1, &err), WN_ELIMIT);
}

static void string_limit(void **state)
{
    char *text = malloc(WN_PROMPT_BYTES_MAX + 1);
    struct bytes body = {NULL, 0};

    (void)state;
    memset(text, 'a', WN_PROMPT_BYTES_MAX + 1);
    put_field(&body, 2, text, WN_PROMPT_BYTES_MAX);
    expect(envelope(1, 10, body), WN_OK, "");
    body = (struct bytes){NULL, 0};
    put_field(&body, 2, text, WN_PROMPT_BYTES_MAX + 1);
    expect(envelope(1, 10, body), WN_ELIMIT, "Submit.prompt: 262145 bytes");
    free(text);
}

static void count_limit(void **state)
{
    struct bytes packed = {NULL, 0}, body = {NULL, 0}, loose = {NULL, 0};

    (void)state;
    for (int i = 0; i < WN_IMAGES_MAX + 1; i++) put_varint(&packed, 300);
    put_field(&body, 3, packed.at, packed.n);
    expect(envelope(1, 10, body), WN_ELIMIT, "Submit.image_bytes: more than 16");
    for (int i = 0; i < WN_IMAGES_MAX + 1; i++) {
        put_varint(&loose, 3 << 3);
        put_varint(&loose, 300);
    }
    expect(envelope(1, 10, loose), WN_ELIMIT, "Submit.image_bytes: more than 16");
    body = (struct bytes){NULL, 0};
    put_field(&body, 3, packed.at, packed.n - 1); /* ends inside a number */
    expect(envelope(1, 10, body), WN_EPROTO, "image_bytes");
    free(packed.at);
}

static void bad_frames(void **state)
{
    struct bytes b = {NULL, 0}, body = {NULL, 0};
    uint8_t *zeros = calloc(1, WN_CODEC_BYTES_MAX + 1);

    (void)state;
    expect(b, WN_EPROTO, "empty");
    put(&b, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 11);
    expect(b, WN_EPROTO, "cut short");
    b = (struct bytes){zeros, WN_CODEC_BYTES_MAX + 1};
    expect(b, WN_ELIMIT, "1048577 bytes");
    expect(envelope(2, 13, body), WN_EUNSUPP, "version 2");
    expect(envelope(0, 13, body), WN_EUNSUPP, "version 0");
    expect(envelope(1, 999, body), WN_EPROTO, "without a body");
    b = envelope(1, 13, body);
    put_field(&b, 13, "", 0); /* the same body again: protobuf would merge */
    expect(b, WN_EPROTO, "more than one body");
    b = envelope(1, 13, body);
    put_field(&b, 31, "", 0);
    expect(b, WN_EPROTO, "more than one body");
    b = (struct bytes){NULL, 0};
    put_varint(&b, 10 << 3); /* a body that is a number */
    put_varint(&b, 7);
    expect(b, WN_EPROTO, "Envelope.submit");
    b = (struct bytes){NULL, 0};
    put_varint(&b, 10 << 3 | 2);
    put_varint(&b, UINT64_MAX); /* a length that would wrap */
    expect(b, WN_EPROTO, "cut short");
    b = (struct bytes){NULL, 0};
    put_varint(&b, 10 << 3 | 3); /* a group */
    expect(b, WN_EPROTO, "cut short");
}

static void unknown_fields_are_bounded(void **state)
{
    struct bytes body = {NULL, 0};

    (void)state;
    for (int i = 0; i < WN_CODEC_UNKNOWN_MAX; i++) put_field(&body, 500, "later", 5);
    expect(envelope(1, 13, body), WN_OK, "");
    body = (struct bytes){NULL, 0};
    for (int i = 0; i < WN_CODEC_UNKNOWN_MAX + 1; i++) put_field(&body, 500, "later", 5);
    expect(envelope(1, 13, body), WN_ELIMIT, "unknown fields");
}

static void text_must_be_utf8(void **state)
{
    static const struct {
        const char *text;
        size_t n;
        bool good;
    } cases[] = {
        {"plain", 5, true},           {"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", 9, true},
        {"a\0b", 3, false},           {"\xc0\x80", 2, false},             /* long form of NUL */
        {"\xed\xa0\x80", 3, false},   {"\xf4\x90\x80\x80", 4, false},     /* surrogate; above U+10FFFF */
        {"\xe2\x82", 2, false},       {"\x80", 1, false},                 /* cut; out of place */
        {"\xe0\x9f\xbf", 3, false},   {"\xf0\x8f\xbf\xbf", 4, false},     /* long forms */
        {"\xff", 1, false},           {"\xc3\x28", 2, false},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct bytes body = {NULL, 0};
        assert_int_equal(wn_utf8_valid(cases[i].text, cases[i].n), cases[i].good);
        put_field(&body, 2, cases[i].text, cases[i].n);
        expect(envelope(1, 10, body), cases[i].good ? WN_OK : WN_EPROTO, "Submit.prompt: the text is not valid");
    }
}

static wn_status pack_generate(float temperature, float rate, const char *id)
{
    Wn__JobRef job = WN__JOB_REF__INIT;
    Wn__Sampling s = WN__SAMPLING__INIT;
    Wn__Pruning p = WN__PRUNING__INIT;
    Wn__Generate g = WN__GENERATE__INIT;
    struct wn_err err = {0};
    uint8_t *data = NULL;
    size_t bytes;
    wn_status rc;

    job.job_id = (char *)(uintptr_t)id;
    s.temperature = temperature;
    p.rate = rate;
    g.job = &job;
    g.sampling = &s;
    g.pruning = &p;
    rc = wn_codec_pack_body(&data, &bytes, WN__ENVELOPE__BODY_GENERATE, &g, &err);
    free(data);
    return rc;
}

static void ranges(void **state)
{
    (void)state;
    assert_int_equal(pack_generate(0.7f, 0.5f, job_id), WN_OK);
    assert_int_equal(pack_generate(NAN, 0, job_id), WN_EINVAL);
    assert_int_equal(pack_generate(INFINITY, 0, job_id), WN_EINVAL);
    assert_int_equal(pack_generate(-1, 0, job_id), WN_EINVAL);
    assert_int_equal(pack_generate(0, 1, job_id), WN_OK);
    assert_int_equal(pack_generate(0, 1.01f, job_id), WN_EINVAL);
    assert_int_equal(pack_generate(0, -0.01f, job_id), WN_EINVAL);
    assert_int_equal(pack_generate(0, 0, "short"), WN_EPROTO);
    assert_int_equal(pack_generate(0, 0, "01ARZ3NDEKTSV4RRFFQ69G5FAVX"), WN_EPROTO);
    assert_int_equal(pack_generate(0, 0, "01ARZ3NDEKTSV4RRFFQ69G5FA/"), WN_EPROTO);
}

static void drain_has_an_end(void **state)
{
    Wn__Drain drain = WN__DRAIN__INIT;
    const struct {
        uint32_t ms;
        wn_status want;
    } cases[] = {{0, WN_OK}, {WN_DRAIN_MS_MAX, WN_OK}, {WN_DRAIN_MS_MAX + 1, WN_ELIMIT}, {UINT32_MAX, WN_ELIMIT}};

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct wn_err err = {0};
        uint8_t *data = NULL;
        size_t n;
        drain.deadline_ms = cases[i].ms;
        assert_int_equal(wn_codec_pack_body(&data, &n, WN__ENVELOPE__BODY_DRAIN, &drain, &err), cases[i].want);
        free(data);
    }
}

static void features_must_agree(void **state)
{
    Wn__JobRef job = WN__JOB_REF__INIT;
    Wn__Features f = WN__FEATURES__INIT;
    uint32_t index[3] = {0, 5, 0xffffffff};
    uint8_t hash[32] = {1}, flags[3] = {0}, *data = NULL;
    struct wn_err err = {0};
    size_t bytes;

    (void)state;
    job.job_id = job_id;
    job.attempt = 1;
    f.job = &job;
    f.rows = 3;
    f.width = 8;
    f.index = index;
    f.n_index = 3;
    f.sha256 = (ProtobufCBinaryData){32, hash};
    f.flags = (ProtobufCBinaryData){3, flags};
    assert_int_equal(wn_codec_pack_body(&data, &bytes, WN__ENVELOPE__BODY_FEATURES, &f, &err), WN_OK);
    free(data);
    f.n_index = 2;
    assert_int_equal(wn_codec_pack_body(&data, &bytes, WN__ENVELOPE__BODY_FEATURES, &f, &err), WN_EPROTO);
    f.n_index = 3;
    f.flags.len = 2;
    assert_int_equal(wn_codec_pack_body(&data, &bytes, WN__ENVELOPE__BODY_FEATURES, &f, &err), WN_EPROTO);
    f.flags.len = 0;
    f.sha256.len = 31;
    assert_int_equal(wn_codec_pack_body(&data, &bytes, WN__ENVELOPE__BODY_FEATURES, &f, &err), WN_EPROTO);
    f.sha256.len = 32;
    f.dtype = 9;
    assert_int_equal(wn_codec_pack_body(&data, &bytes, WN__ENVELOPE__BODY_FEATURES, &f, &err), WN_EPROTO);
    f.dtype = 0;
    f.job = NULL;
    assert_int_equal(wn_codec_pack_body(&data, &bytes, WN__ENVELOPE__BODY_FEATURES, &f, &err), WN_EPROTO);
}

/* Every prefix and every single flipped bit of a real message: no crash, and whatever parses has a body. */
static void damaged_messages(void **state)
{
    Wn__JobRef job = WN__JOB_REF__INIT;
    Wn__Tokens t = WN__TOKENS__INIT;
    uint32_t ids[] = {1, 200, 70000};
    struct wn_err err = {0};
    uint8_t *data;
    size_t bytes;

    (void)state;
    job.job_id = job_id;
    job.attempt = 2;
    t.job = &job;
    t.ids = ids;
    t.n_ids = 3;
    t.text = "a red circle";
    assert_int_equal(wn_codec_pack_body(&data, &bytes, WN__ENVELOPE__BODY_TOKENS, &t, &err), WN_OK);
    for (size_t i = 0; i < bytes * 9; i++) {
        size_t n = i < bytes ? i : bytes;
        uint8_t *copy = malloc(n + (n == 0));
        Wn__Envelope *env = NULL;
        assert_non_null(copy);
        memcpy(copy, data, n);
        if (i >= bytes) copy[(i - bytes) / 8] ^= (uint8_t)(1 << (i - bytes) % 8);
        if (wn_codec_unpack(&env, copy, n, &err) == WN_OK)
            assert_int_not_equal(env->body_case, WN__ENVELOPE__BODY__NOT_SET);
        wn_codec_free(env);
        free(copy);
    }
    free(data);
}

/* Of a peer that speaks another version no more is read than who it is. */
static void a_strange_hello(void **state)
{
    Wn__Envelope env = WN__ENVELOPE__INIT, *out;
    Wn__Hello h = WN__HELLO__INIT;
    uint8_t bytes[256];
    size_t n;

    (void)state;
    env.version = WN_PROTO_VERSION + 1;
    env.body_case = WN__ENVELOPE__BODY_HELLO;
    env.hello = &h;
    h.role = WN__ROLE__ROLE_VISION;
    h.name = "vision-3";
    n = wn__envelope__pack(&env, bytes);
    assert_int_equal(wn_codec_unpack(&out, bytes, n, NULL), WN_EUNSUPP);
    assert_non_null(out = wn_codec_unpack_strange_hello(bytes, n));
    assert_string_equal(out->hello->name, "vision-3");
    wn_codec_free(out);
    assert_null(wn_codec_unpack_strange_hello(bytes, n - 1));
    h.name = "";
    assert_null(wn_codec_unpack_strange_hello(bytes, wn__envelope__pack(&env, bytes)));
    env.body_case = WN__ENVELOPE__BODY_STATUS_REQUEST;
    env.status_request = &(Wn__StatusRequest)WN__STATUS_REQUEST__INIT;
    assert_null(wn_codec_unpack_strange_hello(bytes, wn__envelope__pack(&env, bytes)));
}

static void names_and_helpers(void **state)
{
    Wn__JobRef a = WN__JOB_REF__INIT, b = WN__JOB_REF__INIT;
    Wn__LinkBytes sum = WN__LINK_BYTES__INIT, part = WN__LINK_BYTES__INIT;
    Wn__Usage into = WN__USAGE__INIT, from = WN__USAGE__INIT;

    (void)state;
    assert_string_equal(wn_codec_body_name(WN__ENVELOPE__BODY_FEATURES_ACK), "FeaturesAck");
    assert_string_equal(wn_codec_body_name(WN__ENVELOPE__BODY__NOT_SET), "unknown");
    assert_string_equal(wn_codec_body_name((Wn__Envelope__BodyCase)1), "unknown");
    assert_true(wn_codec_has_payload(WN__ENVELOPE__BODY_ENCODE));
    assert_false(wn_codec_has_payload(WN__ENVELOPE__BODY_DONE));
    a.job_id = b.job_id = job_id;
    a.attempt = b.attempt = 1;
    assert_true(wn_jobref_equal(&a, &b));
    b.attempt = 2;
    assert_false(wn_jobref_equal(&a, &b));
    assert_false(wn_jobref_equal(&a, NULL));
    part.embedding = 7;
    part.control = 1;
    part.image = 3;
    part.tokens = 2;
    into.bytes_on_wire = &sum;
    from.bytes_on_wire = &part;
    from.encode_us = 5;
    from.prompt_tokens = 600;
    wn_usage_add(&into, &from);
    wn_usage_add(&into, &from);
    assert_int_equal(sum.embedding, 14);
    assert_true(sum.control == 2 && sum.image == 6 && sum.tokens == 4);
    assert_int_equal(into.encode_us, 10);
    assert_int_equal(into.prompt_tokens, 600);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trip),
        cmocka_unit_test(every_bounded_field_has_a_limit),
        cmocka_unit_test(logprobs),
        cmocka_unit_test(string_limit),
        cmocka_unit_test(count_limit),
        cmocka_unit_test(bad_frames),
        cmocka_unit_test(unknown_fields_are_bounded),
        cmocka_unit_test(text_must_be_utf8),
        cmocka_unit_test(ranges), cmocka_unit_test(drain_has_an_end),
        cmocka_unit_test(features_must_agree),
        cmocka_unit_test(damaged_messages),
        cmocka_unit_test(a_strange_hello),
        cmocka_unit_test(names_and_helpers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
