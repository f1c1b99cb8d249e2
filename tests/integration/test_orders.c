/* tests/integration/test_orders.c - the scheduler and one job with a picture: every order of what its workers and its
 * clients may do, from several points of its life. Whatever comes when, the job ends once, for everybody who asked for
 * it in the same way; then nothing of it is held, or the next job would not get the one slot that each worker has.
 *
 *   test_orders [LENGTH]    events after those that lead there: 2; 4 takes some minutes */
#include "base/log.h"
#include "sched_bed.h"

#define PATIENCE 4000 /* rounds until the end */

enum {
    EV_ENCODED,       /* the vision worker has sent the features */
    EV_ENCODE_FAILS,  /* it could not, and somebody else may */
    EV_TOKEN,         /* the leader says one more */
    EV_DONE,          /* and that it was the last */
    EV_LOST,          /* a rank of it died */
    EV_LATE,          /* what it says of the attempt before, or of the first one once more */
    EV_LEADER_DIES,   /* and is started again */
    EV_VISION_DIES,
    EV_CANCEL,
    EV_SAME_KEY,      /* another connection submits it again */
    EVS
};

/* What one client has heard of the job. */
struct ear {
    struct end *e;
    uint32_t tokens_n, ends, told_again; /* a cancel that comes too late is answered with the end */
    char text[256]; /* of its end: the answer, or why there is none */
    bool cancelled, failed;
};

struct scene {
    struct bed *b;
    struct ear one, two;
    struct order gen, before, enc; /* the last ones; attempt 0: none yet */
    uint32_t next, pid;            /* token of this attempt */
    bool generating, encoding;     /* they have not been answered */
    char id[32], key[16];
    bool asked_again;
};

static int length = 2;
static unsigned long orders, answered, cancelled, failed;

/* ---- what comes ---- */

/* The next message, heartbeats too, which end_recv leaves out: they answer ours, so what we said before was heard. */
static Wn__Envelope *hear(struct end *e)
{
    const int64_t deadline_us = wn_deadline_in_us(10000000);
    struct wn_poll_item item = {.ep = e->ep};
    Wn__Envelope *env = NULL;
    struct wn_err err = {0};
    struct wn_msg msg;

    wn_msg_init(&msg);
    for (wn_status rc; (rc = wn_endpoint_recv(e->ep, &msg)) == WN_EBUSY;)
        if (wn_endpoint_poll(&item, 1, deadline_us) == WN_ETIME) fail_msg("no answer");
    if (wn_codec_unpack(&env, wn_msg_data(&msg, 0), wn_msg_size(&msg, 0), &err) != WN_OK) fail_msg("%s", err.text);
    wn_msg_clear(&msg);
    return env;
}

static void copy_ref(struct order *o, const Wn__JobRef *ref)
{
    snprintf(o->id, sizeof(o->id), "%s", ref->job_id);
    o->attempt = ref->attempt;
}

/* All that a worker has been told by now. */
static void hear_worker(struct scene *s, struct end *e)
{
    bool more = true;

    worker_heartbeat(e);
    while (more) {
        Wn__Envelope *env = hear(e);
        if (env->body_case == WN__ENVELOPE__BODY_HEARTBEAT) {
            more = false;
        } else if (env->body_case == WN__ENVELOPE__BODY_GENERATE) {
            if (s->gen.attempt && strcmp(s->gen.id, env->generate->job->job_id) == 0) s->before = s->gen;
            copy_ref(&s->gen, env->generate->job);
            s->next = (uint32_t)env->generate->n_emitted;
            s->generating = true;
        } else if (env->body_case == WN__ENVELOPE__BODY_ENCODE) {
            copy_ref(&s->enc, env->encode->job);
            s->encoding = true;
        } else if (env->body_case == WN__ENVELOPE__BODY_CANCEL) {
            if (e == s->b->leader && wn_jobref_equal(env->cancel->job, &(Wn__JobRef){.job_id = s->gen.id,
                                                                                   .attempt = s->gen.attempt}))
                s->generating = false;
        }
        wn_codec_free(env);
    }
}

static void hear_end(struct ear *ear, const char *text, bool was_cancelled, bool has_failed)
{
    if (ear->ends++ > 0) { /* the same again */
        assert_string_equal(ear->text, text);
        assert_true(ear->cancelled == was_cancelled && ear->failed == has_failed);
    }
    ear->cancelled = was_cancelled;
    ear->failed = has_failed;
    snprintf(ear->text, sizeof(ear->text), "%s", text);
}

static void hear_client(struct scene *s, struct ear *ear)
{
    const Wn__StatusRequest ping = WN__STATUS_REQUEST__INIT;
    bool more = true;

    end_send(ear->e, WN__ENVELOPE__BODY_STATUS_REQUEST, &ping, NULL, 0);
    while (more) {
        Wn__Envelope *env = hear(ear->e);
        if (env->body_case == WN__ENVELOPE__BODY_STATUS) {
            more = false;
        } else if (env->body_case == WN__ENVELOPE__BODY_ACCEPTED) {
            if (!s->id[0]) snprintf(s->id, sizeof(s->id), "%s", env->accepted->job_id);
            assert_string_equal(env->accepted->job_id, s->id); /* the same key: the same job */
        } else if (env->body_case == WN__ENVELOPE__BODY_TOKENS) {
            assert_int_equal(ear->ends, 0);
            assert_int_equal(env->tokens->first, ear->tokens_n); /* each once, in order */
            ear->tokens_n += (uint32_t)env->tokens->n_ids;
        } else if (env->body_case == WN__ENVELOPE__BODY_DONE) {
            hear_end(ear, env->done->text, env->done->reason == WN__FINISH_REASON__FINISH_CANCELLED, false);
        } else if (env->body_case == WN__ENVELOPE__BODY_ERROR) {
            hear_end(ear, env->error->text, false, true);
        }
        wn_codec_free(env);
    }
}

/* Twice: orders that follow from what was said go out after the answers to it. */
static void hear_all(struct scene *s)
{
    for (int i = 0; i < 2; i++) {
        hear_client(s, &s->one);
        hear_client(s, &s->two);
        hear_worker(s, s->b->leader);
        hear_worker(s, s->b->vision);
    }
}

/* ---- what happens ---- */

static void token(struct scene *s, const struct order *o)
{
    const char text[2] = {(char)('a' + s->next % 26), '\0'}; /* any attempt says the same */

    give_tokens(s->b->leader, o, s->next, 100 + s->next, text);
    s->next++;
}

static void start_again(struct scene *s, struct end *e, Wn__Role role, const char *name)
{
    Wn__Hello h = WN__HELLO__INIT;

    h.role = role;
    h.name = (char *)(uintptr_t)name;
    h.host = "test";
    h.pid = ++s->pid;
    h.model_id = "abc";
    h.features_endpoint = role == WN__ROLE__ROLE_LEADER ? "ipc:///tmp/features" : "";
    h.slots = 1;
    end_send(e, WN__ENVELOPE__BODY_HELLO, &h, NULL, 0);
    if (role == WN__ROLE__ROLE_LEADER) s->generating = false;
    else s->encoding = false;
}

static void apply(struct scene *s, int ev)
{
    struct bed *b = s->b;

    if (ev == EV_ENCODED && s->enc.attempt) give_encoded(b->vision, &s->enc);
    if (ev == EV_ENCODED) s->encoding = false;
    if (ev == EV_ENCODE_FAILS && s->enc.attempt) give_error(b->vision, &s->enc, WN_EPEER, true, "features are lost");
    if (ev == EV_ENCODE_FAILS) s->encoding = false;
    if (ev == EV_TOKEN && s->generating) token(s, &s->gen);
    if (ev == EV_DONE && s->gen.attempt) give_done(b->leader, &s->gen, 9);
    if (ev == EV_DONE) s->generating = false;
    if (ev == EV_LOST && s->gen.attempt) give_error(b->leader, &s->gen, WN_EDEVICE, true, "a rank was lost");
    if (ev == EV_LOST) s->generating = false;
    if (ev == EV_LATE && s->before.attempt) {
        give_tokens(b->leader, &s->before, 0, 99, "WRONG");
        give_done(b->leader, &s->before, 9);
        give_error(b->leader, &s->before, WN_EINVAL, false, "WRONG");
    }
    if (ev == EV_LEADER_DIES) start_again(s, b->leader, WN__ROLE__ROLE_LEADER, "replica-0");
    if (ev == EV_VISION_DIES) start_again(s, b->vision, WN__ROLE__ROLE_VISION, "vision-0");
    if (ev == EV_CANCEL) s->one.told_again += s->one.ends > 0;
    if (ev == EV_CANCEL) cancel(s->one.e, s->id);
    if (ev == EV_SAME_KEY && !s->asked_again && !s->one.failed) { /* of one that has failed it makes a new job */
        submit(s->two.e, "q", "picture", s->key);
        s->asked_again = true;
    }
    hear_all(s);
}

/* Workers do their work, until the job has ended. */
static void run_out(struct scene *s)
{
    for (int i = 0; i < PATIENCE && !(s->one.ends && (!s->asked_again || s->two.ends)); i++) {
        if (s->encoding) apply(s, EV_ENCODED);
        while (s->generating && s->next < 3) token(s, &s->gen);
        if (s->generating) apply(s, EV_DONE);
        if (i > 20) usleep(1000);
        hear_all(s);
    }
}

static void check_end(struct scene *s, const char *what)
{
    const struct ear *a = &s->one, *b = &s->two;

    for (int i = 0; i < 2; i++) { /* what still comes of it is not heard, and a cancel is too late */
        if (s->gen.attempt) give_done(s->b->leader, &s->gen, 9);
        if (s->enc.attempt) give_encoded(s->b->vision, &s->enc);
        hear_all(s);
    }
    if (a->ends != 1 + a->told_again) fail_msg("%s: %u ends, not %u", what, a->ends, 1 + a->told_again);
    if (strstr(a->text, "WRONG")) fail_msg("%s: %s", what, a->text);
    if (!a->failed && !a->cancelled && strcmp(a->text, "abc") != 0 && a->tokens_n != strlen(a->text))
        fail_msg("%s: '%s' in %u tokens", what, a->text, a->tokens_n);
    if (s->asked_again && (b->ends != 1 || strcmp(a->text, b->text) != 0 || a->cancelled != b->cancelled))
        fail_msg("%s: the other heard %u ends, '%s', not '%s'", what, b->ends, b->text, a->text);
    answered += !a->failed && !a->cancelled;
    cancelled += a->cancelled;
    failed += a->failed;
}

static void open_scene(struct scene *s, struct bed *b, struct end *one, struct end *two, uint32_t pid, const char *key)
{
    *s = (struct scene){.b = b, .one = {.e = one}, .two = {.e = two}, .pid = pid};
    snprintf(s->key, sizeof(s->key), "%s", key);
    submit(one, "q", "picture", s->key);
    hear_all(s);
}

/* All orders of `length` events, after those of `start` (-1 ends them). */
static void every_order_after(struct bed *b, struct end *two, const int *start, uint32_t *pid)
{
    unsigned long all = 1;

    for (int i = 0; i < length; i++) all *= EVS;
    for (unsigned long code = 0; code < all; code++) {
        unsigned long c = code;
        char what[96] = "", key[16];
        size_t n = 0;
        struct scene s;
        snprintf(key, sizeof(key), "k%lu", orders++);
        open_scene(&s, b, b->client, two, *pid, key);
        for (const int *at = start; *at >= 0; at++) apply(&s, *at);
        for (int i = 0; i < length; i++, c /= EVS) {
            n += (size_t)snprintf(what + n, sizeof(what) - n, "%d ", (int)(c % EVS));
            apply(&s, (int)(c % EVS));
        }
        run_out(&s);
        check_end(&s, what);
        *pid = s.pid;
    }
}

static void every_order(void **state)
{
    static const int starts[][4] = {
        {-1},                                /* both have their orders */
        {EV_ENCODED, EV_TOKEN, -1},          /* it answers */
        {EV_ENCODED, EV_TOKEN, EV_LOST, -1}, /* it is tried again, with a token that is out */
        {EV_DONE, -1},                       /* it has ended */
    };
    struct bed *b = *state;
    struct end *two;
    uint32_t pid = 1000;

    b->cfg.no_worker_timeout_ms = 20000;
    b->cfg.heartbeat_ms = 60000; /* none but answers */
    bed_start_with(b, 1, 1);
    two = end_open(b, false);
    for (size_t i = 0; i < sizeof(starts) / sizeof(starts[0]); i++) every_order_after(b, two, starts[i], &pid);
    print_message("%lu orders: %lu answered, %lu cancelled, %lu failed\n", orders, answered, cancelled, failed);
    assert_true(answered && cancelled);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {BED_TEST(every_order)};

    wn_log_max = WN_LOG_ERROR; /* lost workers are what this is about */
    if (argc > 1) length = (int)strtol(argv[1], NULL, 10);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
