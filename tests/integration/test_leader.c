/* tests/integration/test_leader.c - a real leader of one rank, and all that may reach it out of order, twice, too late,
 * damaged, or from who may not say it: every job has one answer or one error, every picture its credit back, and the
 * leader goes on.
 *
 *   test_leader WINNOWD
 *
 * Scheduler and vision worker are scripted. */
#include "side.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/dtype.h"
#include "base/log.h"
#include "base/sha256.h"
#include "tests/child.h"
#include "tests/scratch.h"

/* models/tiny-llava: its tower's width, patches, and vocabulary */
#define WIDTH   256u
#define PATCHES 576u
#define VOCAB   1024u
#define ROWS    6u /* that were kept of a picture */
#define ANSWER  8u
#define WAIT_MS 20000

static const char *program;
static char base[64], scheduler_at[96], leader_at[96], model_id[128];
static struct wn_net *net;
static struct side scheduler;
static struct wn_endpoint *vision;
static pid_t leader;

/* ---- the vision worker ---- */

static void vision_say(Wn__Envelope__BodyCase kind, const void *body, const void *payload, size_t bytes)
{
    end_say(vision, WAIT_MS, kind, body, payload, bytes);
}

/* The next message for the vision worker; NULL: none in time. */
static Wn__Envelope *vision_hear(int ms)
{
    const int64_t until = wn_deadline_in_us(ms * 1000ll);
    Wn__Envelope *env = NULL;
    struct wn_msg msg;

    wn_msg_init(&msg);
    while (wn_endpoint_recv(vision, &msg) != WN_OK) {
        struct wn_poll_item item = {.ep = vision};
        if (wn_endpoint_poll(&item, 1, until) != WN_OK) return NULL;
    }
    assert_int_equal(wn_codec_unpack(&env, wn_msg_data(&msg, 0), wn_msg_size(&msg, 0), NULL), WN_OK);
    wn_msg_clear(&msg);
    return env;
}

static Wn__Envelope *vision_expect(Wn__Envelope__BodyCase kind)
{
    Wn__Envelope *env = vision_hear(WAIT_MS);

    if (!env) fail_msg("%s did not come", wn_codec_body_name(kind));
    assert_int_equal(env->body_case, kind);
    return env;
}

static Wn__JobRef ref_of(int job)
{
    static char ids[32][27];
    Wn__JobRef ref = WN__JOB_REF__INIT;

    ref.job_id = ids[job % 32];
    snprintf(ref.job_id, sizeof(ids[0]), "01ARZ3NDEKTSV4RRFFQ69%05d", job);
    ref.attempt = 1;
    return ref;
}

/* Features of a picture, and what a test may change of them. */
struct picture {
    Wn__Features f;
    Wn__JobRef ref;
    uint32_t index[PATCHES + 8];
    uint8_t hash[WN_SHA256_BYTES];
    float rows[PATCHES + 8][WIDTH];
    size_t bytes;
};

static struct picture *picture_of(int job, uint32_t image)
{
    static struct picture p;

    p.ref = ref_of(job);
    p.f = (Wn__Features)WN__FEATURES__INIT;
    p.f.job = &p.ref;
    p.f.image = image;
    p.f.method = "uniform";
    p.f.dtype = WN_F32;
    p.f.rows = ROWS;
    p.f.width = WIDTH;
    p.f.rows_before = PATCHES;
    p.f.index = p.index;
    p.f.n_index = ROWS;
    for (uint32_t i = 0; i < PATCHES + 8; i++) p.index[i] = i % PATCHES;
    srand(1 + image);
    for (uint32_t i = 0; i < ROWS * WIDTH; i++) p.rows[i / WIDTH][i % WIDTH] = (float)(rand() % 2001 - 1000) / 500.0f;
    p.bytes = ROWS * WIDTH * sizeof(float);
    return &p;
}

static void send_picture(struct picture *p)
{
    wn_sha256(p->hash, p->rows, p->bytes);
    p->f.sha256 = (ProtobufCBinaryData){.len = sizeof(p->hash), .data = p->hash};
    vision_say(WN__ENVELOPE__BODY_FEATURES, &p->f, p->rows, p->bytes);
}

static void say_features(int job, uint32_t image)
{
    send_picture(picture_of(job, image));
}

/* The next word about features is about these. code WN_OK: the credit is back. */
static void expect_ack(int job, uint32_t image, uint32_t code, const char *words)
{
    Wn__Envelope *env = vision_expect(WN__ENVELOPE__BODY_FEATURES_ACK);

    assert_string_equal(env->features_ack->job->job_id, ref_of(job).job_id);
    assert_int_equal(env->features_ack->image, image);
    assert_int_equal(env->features_ack->code, code);
    if (!strstr(env->features_ack->text, words)) fail_msg("'%s' is not in '%s'", words, env->features_ack->text);
    wn_codec_free(env);
}

/* ---- the scheduler ---- */

struct order {
    Wn__Generate g;
    Wn__Sampling s;
    Wn__JobRef ref;
};

static struct order order_of(int job, uint32_t images)
{
    struct order o = {.g = WN__GENERATE__INIT, .s = WN__SAMPLING__INIT, .ref = ref_of(job)};

    o.g.prompt = "What is on the left?";
    o.g.images = images;
    o.s.max_tokens = ANSWER;
    o.s.temperature = 20.0f; /* drawn, by seed and place */
    o.s.seed = 5;
    o.s.ignore_eos = true;
    return o;
}

static void say_order(struct order *o)
{
    o->g.job = &o->ref;
    o->g.sampling = &o->s;
    side_say(&scheduler, WN__ENVELOPE__BODY_GENERATE, &o->g, NULL, 0);
}

static void order(int job, uint32_t images)
{
    struct order o = order_of(job, images);

    say_order(&o);
}

/* An answer as it came. */
struct answer {
    uint32_t ids[64], first, n;
    char text[2048];
    Wn__FinishReason reason;
    uint32_t prompt_tokens, image_tokens, completion_tokens;
};

/* Hears all about one job until it is done. */
static struct answer hear_answer(int job)
{
    struct answer a = {.first = UINT32_MAX};

    for (;;) {
        Wn__Envelope *env = NULL;
        struct wn_msg msg;
        struct wn_poll_item item = {.ep = scheduler.ep};
        wn_msg_init(&msg);
        while (wn_endpoint_recv(scheduler.ep, &msg) != WN_OK)
            if (wn_endpoint_poll(&item, 1, wn_deadline_in_us(WAIT_MS * 1000)) != WN_OK) fail_msg("job %d: no end", job);
        assert_int_equal(wn_codec_unpack(&env, wn_msg_data(&msg, 0), wn_msg_size(&msg, 0), NULL), WN_OK);
        wn_msg_clear(&msg);
        if (env->body_case == WN__ENVELOPE__BODY_ERROR) fail_msg("%s", env->error->text);
        if (env->body_case == WN__ENVELOPE__BODY_TOKENS) {
            assert_string_equal(env->tokens->job->job_id, ref_of(job).job_id);
            if (a.first == UINT32_MAX) a.first = env->tokens->first;
            assert_int_equal(env->tokens->first, a.first + a.n); /* none twice, none left out */
            for (size_t i = 0; i < env->tokens->n_ids && a.n < 64; i++) a.ids[a.n++] = env->tokens->ids[i];
            strncat(a.text, env->tokens->text, sizeof(a.text) - strlen(a.text) - 1);
        }
        if (env->body_case == WN__ENVELOPE__BODY_DONE) {
            assert_string_equal(env->done->job->job_id, ref_of(job).job_id);
            a.reason = env->done->reason;
            a.prompt_tokens = env->done->usage->prompt_tokens;
            a.image_tokens = env->done->usage->image_tokens;
            a.completion_tokens = env->done->usage->completion_tokens;
            wn_codec_free(env);
            return a;
        }
        wn_codec_free(env);
    }
}

static void hear_error(int job, uint32_t code, const char *words, bool retriable)
{
    Wn__Envelope *env = side_expect(&scheduler, WN__ENVELOPE__BODY_ERROR);

    assert_string_equal(env->error->job->job_id, ref_of(job).job_id);
    if (!strstr(env->error->text, words)) fail_msg("'%s' is not in '%s'", words, env->error->text);
    assert_int_equal(env->error->code, code);
    assert_int_equal(env->error->retriable, retriable);
    wn_codec_free(env);
}

static void say_cancel(int job)
{
    Wn__Cancel c = WN__CANCEL__INIT;
    Wn__JobRef ref = ref_of(job);

    c.job = &ref;
    side_say(&scheduler, WN__ENVELOPE__BODY_CANCEL, &c, NULL, 0);
}

/* ---- the tests, in this order, against one leader; each has jobs of its own ---- */

static struct answer with_picture; /* of a job with picture 0: the same whatever happens around it */

static void greeting(void **state)
{
    Wn__FeaturesHello hello = WN__FEATURES_HELLO__INIT;
    Wn__Envelope *env;

    (void)state;
    hello.name = "vision-7";
    hello.model_id = "another";
    vision_say(WN__ENVELOPE__BODY_FEATURES_HELLO, &hello, NULL, 0);
    env = vision_expect(WN__ENVELOPE__BODY_ERROR);
    assert_non_null(strstr(env->error->text, "vision-7 serves another checkpoint"));
    wn_codec_free(env);
    hello.model_id = model_id;
    vision_say(WN__ENVELOPE__BODY_FEATURES_HELLO, &hello, NULL, 0);
    env = vision_expect(WN__ENVELOPE__BODY_CREDIT);
    assert_int_equal(env->credit->images, 4);
    wn_codec_free(env);
}

static void features_after_their_order_or_before_it(void **state)
{
    struct answer early;

    (void)state;
    order(1, 1);
    say_features(1, 0);
    expect_ack(1, 0, WN_OK, "");
    with_picture = hear_answer(1);
    assert_int_equal(with_picture.n, ANSWER);
    assert_true(strlen(with_picture.text) > 0);
    assert_int_equal(with_picture.image_tokens, ROWS);
    assert_int_equal(with_picture.reason, WN__FINISH_REASON__FINISH_LENGTH);
    say_features(2, 0);
    assert_null(vision_hear(100)); /* kept, and not paid back before they are used */
    order(2, 1);
    expect_ack(2, 0, WN_OK, "");
    early = hear_answer(2);
    assert_memory_equal(early.ids, with_picture.ids, sizeof(early.ids));
    assert_string_equal(early.text, with_picture.text);
}

/* Of two that wait, each gets its own features, and the one that is cancelled is the one that was named. */
static void two_that_wait(void **state)
{
    struct answer a;

    (void)state;
    for (int job = 10; job <= 13; job++) order(job, 1);
    say_features(11, 0);
    expect_ack(11, 0, WN_OK, "");
    a = hear_answer(11);
    assert_string_equal(a.text, with_picture.text);
    say_cancel(12);
    a = hear_answer(12);
    assert_int_equal(a.reason, WN__FINISH_REASON__FINISH_CANCELLED);
    for (int job = 13; job >= 10; job -= 3) {
        say_features(job, 0);
        expect_ack(job, 0, WN_OK, "");
        a = hear_answer(job);
        assert_string_equal(a.text, with_picture.text);
    }
}

static void features_twice_and_too_late(void **state)
{
    struct answer a;

    (void)state;
    order(3, 2);
    say_features(3, 1);
    expect_ack(3, 1, WN_OK, ""); /* at once: the other picture may wait for this credit */
    say_features(3, 1);
    expect_ack(3, 1, WN_OK, "");
    say_features(3, 0);
    expect_ack(3, 0, WN_OK, "");
    a = hear_answer(3);
    assert_int_equal(a.image_tokens, 2 * ROWS);
    order(4, 2);
    say_features(4, 0);
    expect_ack(4, 0, WN_OK, "");
    say_cancel(4);
    a = hear_answer(4);
    assert_int_equal(a.reason, WN__FINISH_REASON__FINISH_CANCELLED);
    assert_int_equal(a.n, 0);
    say_features(4, 1); /* for nobody */
    expect_ack(4, 1, WN_OK, "");
    say_cancel(4); /* nor this */
}

/* What does not fit the model or its own header: the worker and the scheduler hear why, and no one else is harmed. */
static void features_that_make_no_sense(void **state)
{
    static const struct {
        const char *words;
        uint32_t image, dtype, rows, width, before, index;
        int bytes, damage;
    } bad[] = {
        {"features of image 1 of 1", 1, WN_F32, ROWS, WIDTH, PATCHES, 0, 0, 0},
        {"features of type 2", 0, WN_F16, ROWS, WIDTH, PATCHES, 0, -(int)(ROWS * WIDTH * 2), 0},
        {"features of width 255", 0, WN_F32, ROWS, WIDTH - 1, PATCHES, 0, -(int)(ROWS * 4), 0},
        {"features of 0 rows", 0, WN_F32, 0, WIDTH, PATCHES, 0, -(int)((ROWS - 1) * WIDTH * 4), 0},
        {"features of 578 rows", 0, WN_F32, PATCHES + 2, WIDTH, PATCHES, 0, (int)((PATCHES + 2 - ROWS) * WIDTH * 4), 0},
        {"features of 577 rows before pruning", 0, WN_F32, ROWS, WIDTH, PATCHES + 1, 0, 0, 0},
        {"features of patch 576", 0, WN_F32, ROWS, WIDTH, PATCHES, PATCHES, 0, 0},
        {"features of 6 x 256 in 6140 bytes", 0, WN_F32, ROWS, WIDTH, PATCHES, 0, -4, 0},
        {"features of 6 x 256 in 6148 bytes", 0, WN_F32, ROWS, WIDTH, PATCHES, 0, 4, 0},
        {"features of image 0 were damaged", 0, WN_F32, ROWS, WIDTH, PATCHES, 0, 0, 1},
    };
    struct answer a;

    (void)state;
    for (int i = 0; i < (int)(sizeof(bad) / sizeof(bad[0])); i++) {
        struct picture *p = picture_of(100 + i, bad[i].image);
        order(100 + i, 1);
        p->f.dtype = bad[i].dtype;
        p->f.n_index = p->f.rows = bad[i].rows;
        p->f.width = bad[i].width;
        p->f.rows_before = bad[i].before;
        p->index[ROWS - 1] = bad[i].index;
        p->bytes = (size_t)((int)p->bytes + bad[i].bytes);
        wn_sha256(p->hash, p->rows, p->bytes);
        p->hash[3] ^= (uint8_t)bad[i].damage;
        p->f.sha256 = (ProtobufCBinaryData){.len = sizeof(p->hash), .data = p->hash};
        vision_say(WN__ENVELOPE__BODY_FEATURES, &p->f, p->rows, p->bytes);
        expect_ack(100 + i, bad[i].image, WN_EPROTO, bad[i].words);
        hear_error(100 + i, WN_EPROTO, bad[i].words, false);
    }
    for (int limit = 0; limit < 2; limit++) { /* as many as there may be are fine, and so are rows of no patch */
        struct picture *p = picture_of(120 + limit, 0);
        order(120 + limit, 1);
        p->f.n_index = p->f.rows = limit ? PATCHES + 1 : 1;
        p->index[0] = UINT32_MAX;
        p->bytes = p->f.rows * WIDTH * sizeof(float);
        send_picture(p);
        expect_ack(120 + limit, 0, WN_OK, "");
        a = hear_answer(120 + limit);
        assert_int_equal(a.image_tokens, limit ? PATCHES + 1 : 1);
    }
}

/* Features of jobs that nobody ordered are kept for a while, so many at most; the oldest makes room. */
static void features_of_nobody(void **state)
{
    struct answer a;

    (void)state;
    for (int i = 0; i <= 64; i++) say_features(200 + i, 0);
    expect_ack(200, 0, WN_ENOENT, "no such job");
    say_features(265, 0);
    expect_ack(201, 0, WN_ENOENT, "no such job");
    for (int i = 202; i <= 265; i += 63) {
        order(i, 1);
        expect_ack(i, 0, WN_OK, "");
        a = hear_answer(i);
        assert_memory_equal(a.ids, with_picture.ids, sizeof(a.ids));
    }
}

static void an_order_said_twice(void **state)
{
    struct order o = order_of(5, 1);

    (void)state;
    say_order(&o);
    say_order(&o);
    say_features(5, 0);
    expect_ack(5, 0, WN_OK, "");
    hear_answer(5);
    order(6, 0);
    hear_answer(6); /* and nothing more of job 5 before it */
}

/* Only the scheduler orders and cancels, and only vision workers bring features. */
static void who_may_say_what(void **state)
{
    Wn__Cancel c = WN__CANCEL__INIT;
    struct order stolen = order_of(8, 0);
    struct picture *p = picture_of(7, 0);
    Wn__JobRef ref = ref_of(7);
    struct answer a;

    (void)state;
    order(7, 1);
    c.job = &ref;
    vision_say(WN__ENVELOPE__BODY_CANCEL, &c, NULL, 0);
    stolen.g.job = &stolen.ref;
    stolen.g.sampling = &stolen.s;
    vision_say(WN__ENVELOPE__BODY_GENERATE, &stolen.g, NULL, 0);
    wn_sha256(p->hash, p->rows, p->bytes);
    p->f.sha256 = (ProtobufCBinaryData){.len = sizeof(p->hash), .data = p->hash};
    side_say(&scheduler, WN__ENVELOPE__BODY_FEATURES, &p->f, p->rows, p->bytes);
    assert_null(side_wait(&scheduler, WN__ENVELOPE__BODY_DONE, 200));
    say_features(7, 0);
    expect_ack(7, 0, WN_OK, "");
    a = hear_answer(7); /* the only one */
    assert_memory_equal(a.ids, with_picture.ids, sizeof(a.ids));
}

static bool is_among(uint32_t id, const uint32_t *ids, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (ids[i] == id) return true;
    return false;
}

/* A replay goes on after the tokens that were shown, and is the same answer; one that had all but its end just ends. */
static void replays(void **state)
{
    struct answer whole, a;
    struct order o;
    uint32_t stop = 0; /* a token that is not among those before it */
    int job = 300;

    (void)state;
    order(job, 0);
    whole = hear_answer(job);
    assert_int_equal(whole.n, ANSWER);
    for (uint32_t shown = 0; shown <= ANSWER; shown++) {
        o = order_of(++job, 0);
        o.g.emitted = whole.ids;
        o.g.n_emitted = shown;
        say_order(&o);
        a = hear_answer(job);
        assert_int_equal(a.n, ANSWER - shown);
        if (a.n) assert_int_equal(a.first, shown);
        assert_memory_equal(a.ids, whole.ids + shown, a.n * sizeof(a.ids[0]));
        assert_int_equal(a.completion_tokens, ANSWER);
        assert_int_equal(a.reason, WN__FINISH_REASON__FINISH_LENGTH);
    }
    while (stop < 1 || is_among(whole.ids[stop], whole.ids, stop)) assert_true(++stop < ANSWER);
    for (uint32_t shown = stop; shown <= stop + 1; shown++) { /* that token is not yet, and is already shown */
        o = order_of(++job, 0);
        o.s.stop_token_ids = &whole.ids[stop];
        o.s.n_stop_token_ids = 1;
        o.g.emitted = whole.ids;
        o.g.n_emitted = shown;
        say_order(&o);
        a = hear_answer(job);
        assert_int_equal(a.n, stop + 1 - shown);
        assert_int_equal(a.completion_tokens, stop + 1);
        assert_int_equal(a.reason, WN__FINISH_REASON__FINISH_STOP);
    }
}

static void orders_that_make_no_sense(void **state)
{
    static char longest[40000];
    uint32_t outside = VOCAB, last = VOCAB - 1;
    struct order o = order_of(400, 0);

    (void)state;
    o.s.stop_token_ids = &outside;
    o.s.n_stop_token_ids = 1;
    say_order(&o);
    hear_error(400, WN_EINVAL, "stop token 1024; the vocabulary has 1024", false);
    o = order_of(401, 0);
    o.g.emitted = &outside;
    o.g.n_emitted = 1;
    say_order(&o);
    hear_error(401, WN_EPROTO, "emitted token 1024 is not in the vocabulary", false);
    o = order_of(402, 0);
    memset(longest, '?', sizeof(longest) - 1);
    o.g.prompt = longest;
    say_order(&o);
    hear_error(402, WN_ELIMIT, "the prompt is longer than", false);
    o = order_of(403, 0); /* the last token of all is one */
    o.s.stop_token_ids = &last;
    o.s.n_stop_token_ids = 1;
    say_order(&o);
    hear_answer(403);
}

/* It finishes what it has, refuses what comes, and leaves. */
static void drain(void **state)
{
    const Wn__Drain d = WN__DRAIN__INIT;
    struct answer a;
    int status;

    (void)state;
    order(500, 1);
    side_say(&scheduler, WN__ENVELOPE__BODY_DRAIN, &d, NULL, 0);
    order(501, 0);
    hear_error(501, WN_EBUSY, "the replica is leaving", true);
    say_features(500, 0);
    a = hear_answer(500);
    assert_memory_equal(a.ids, with_picture.ids, sizeof(a.ids));
    status = child_end(leader, 0);
    leader = 0;
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* ---- start and end ---- */

static int start(void **state)
{
    const struct wn_endpoint_opts o = {.type = WN_ENDPOINT_DEALER, .address = leader_at,
                                       .frame_max = {WN_CODEC_BYTES_MAX, 4096}};
    char from[128], at[128];
    const char *const argv[] = {program,   "shard", "models/tiny-llava",   from, at, "--name=replica-0", "--threads=1",
                                "--log-level=error", NULL};
    Wn__Welcome welcome = WN__WELCOME__INIT;
    Wn__Envelope *env;

    (void)state;
    snprintf(from, sizeof(from), "--scheduler-endpoint=%s", scheduler_at);
    snprintf(at, sizeof(at), "--features-endpoint=%s", leader_at);
    side_open(&scheduler, net, scheduler_at);
    leader = child_start(argv);
    env = side_expect(&scheduler, WN__ENVELOPE__BODY_HELLO);
    snprintf(model_id, sizeof(model_id), "%s", env->hello->model_id);
    wn_codec_free(env);
    welcome.lease_ms = 600000; /* it is not heard of while we talk to it as a vision worker */
    welcome.heartbeat_ms = 1000;
    side_say(&scheduler, WN__ENVELOPE__BODY_WELCOME, &welcome, NULL, 0);
    return wn_endpoint_open(&vision, net, &o, NULL) == WN_OK ? 0 : -1;
}

static int end(void **state)
{
    (void)state;
    if (leader) child_end(leader, SIGKILL);
    wn_endpoint_close(vision);
    wn_endpoint_close(scheduler.ep);
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greeting),
        cmocka_unit_test(features_after_their_order_or_before_it),
        cmocka_unit_test(two_that_wait),
        cmocka_unit_test(features_twice_and_too_late),
        cmocka_unit_test(features_that_make_no_sense),
        cmocka_unit_test(features_of_nobody),
        cmocka_unit_test(an_order_said_twice),
        cmocka_unit_test(who_may_say_what),
        cmocka_unit_test(replays),
        cmocka_unit_test(orders_that_make_no_sense),
        cmocka_unit_test(drain),
    };
    int rc;

    if (argc < 2) return 2;
    program = argv[1];
    wn_log_max = WN_LOG_ERROR;
    if (!scratch_make(base, sizeof(base), "leader") || wn_net_create(&net, NULL) != WN_OK) return 1;
    snprintf(scheduler_at, sizeof(scheduler_at), "ipc://%s/s", base);
    snprintf(leader_at, sizeof(leader_at), "ipc://%s/l", base);
    rc = cmocka_run_group_tests(tests, start, end);
    if (rc == 0) wn_net_destroy(net); /* else sockets may be open */
    scratch_remove(base);
    return rc;
}
