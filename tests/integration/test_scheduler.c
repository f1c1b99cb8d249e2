/* tests/integration/test_scheduler.c - the scheduler over real sockets with scripted workers and clients. */
#include "sched_bed.h"

#include <sys/eventfd.h>

#include "base/log.h"

static void happy_path(void **state)
{
    struct bed *b = *state;
    struct order gen, enc;
    Wn__Envelope *env;
    char id[32];

    bed_start_with(b, 4, 2);
    submit_new(b->client, "What is this?", "picture bytes", id);
    gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    assert_string_equal(gen.id, id);
    assert_string_equal(gen.text, "What is this?");
    assert_int_equal(gen.attempt, 1);
    enc = take_order(b->vision, WN__ENVELOPE__BODY_ENCODE);
    assert_string_equal(enc.id, id);
    assert_string_equal(enc.text, "ipc:///tmp/features");
    assert_int_equal(b->vision->payload_bytes, 13);
    assert_memory_equal(b->vision->payload, "picture bytes", 13);
    give_encoded(b->vision, &enc);
    usleep(50000);
    give_tokens(b->leader, &gen, 0, 11, "a red");
    expect_tokens(b->client, 0, 1, "a red");
    give_tokens(b->leader, &gen, 1, 12, " dot");
    expect_tokens(b->client, 1, 1, " dot");
    give_done(b->leader, &gen, 600);
    env = expect_done(b->client, WN__FINISH_REASON__FINISH_STOP, "a red dot");
    assert_int_equal(env->done->usage->prompt_tokens, 600);
    assert_int_equal(env->done->usage->completion_tokens, 2);
    assert_int_equal(env->done->usage->image_tokens, 576);
    assert_int_equal(env->done->usage->encode_us, 500);
    assert_int_equal(env->done->usage->decode_us, 77);
    assert_int_equal(env->done->usage->attempts, 1);
    assert_int_equal(env->done->usage->bytes_on_wire->embedding, 576 * 64);
    assert_int_equal(env->done->usage->bytes_on_wire->activation, 1000);
    assert_true(env->done->usage->bytes_on_wire->control > 100);
    assert_true(env->done->usage->time_to_first_token_us > 40000);
    assert_true(env->done->usage->total_us >= env->done->usage->time_to_first_token_us);
    assert_string_equal(env->done->usage->pruning->method, "none");
    wn_codec_free(env);

    submit_new(b->client, "text alone", NULL, NULL); /* goes to the leader only */
    gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    give_done(b->leader, &gen, 3);
    expect_answer(b->client, "");
    assert_null(end_recv(b->vision, 50));
}

/* The leader falls silent in the middle; another gets the job with the tokens that are out; the late one is not
 * heard. */
static void worker_death_and_fencing(void **state)
{
    struct bed *b = *state;
    struct end *one, *two;
    struct order gen, again;
    Wn__Envelope *env;

    b->cfg.no_worker_timeout_ms = 5000;
    b->cfg.lease_ms = 600;
    bed_start(b);
    one = worker_open(b, WN__ROLE__ROLE_LEADER, "replica-0", 4);
    b->client = end_open(b, false);
    submit_new(b->client, "go on", NULL, NULL);
    gen = take_order(one, WN__ENVELOPE__BODY_GENERATE);
    give_tokens(one, &gen, 0, 21, "one");
    give_tokens(one, &gen, 1, 22, " two");
    expect_tokens(b->client, 0, 1, "one");
    expect_tokens(b->client, 1, 1, " two");
    assert_int_equal(take_order(one, WN__ENVELOPE__BODY_CANCEL).attempt, 1); /* its lease has passed */
    two = worker_open(b, WN__ROLE__ROLE_LEADER, "replica-1", 4);
    again = take_order(two, WN__ENVELOPE__BODY_GENERATE);
    assert_string_equal(again.id, gen.id);
    assert_int_equal(again.attempt, 2);
    assert_int_equal(again.emitted_n, 2);
    assert_int_equal(again.emitted[0], 21);
    assert_int_equal(again.emitted[1], 22);
    give_tokens(one, &gen, 2, 99, " WRONG"); /* late */
    give_done(one, &gen, 1);
    give_tokens(two, &again, 2, 23, " three");
    expect_tokens(b->client, 2, 1, " three");
    give_done(two, &again, 5);
    env = expect_done(b->client, WN__FINISH_REASON__FINISH_STOP, "one two three");
    assert_int_equal(env->done->usage->attempts, 2);
    assert_int_equal(env->done->usage->completion_tokens, 3);
    wn_codec_free(env);
}

/* A worker that is started again under its name: what the old process had goes out anew at once, not after a lease. */
static void restarted_worker(void **state)
{
    struct bed *b = *state;
    struct end *fresh;
    struct order gen, enc;

    bed_start_with(b, 4, 2);
    submit_new(b->client, "q", "image", NULL);
    gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    enc = take_order(b->vision, WN__ENVELOPE__BODY_ENCODE);
    end_close(b->vision);
    fresh = end_open(b, true);
    worker_hello(fresh, WN__ROLE__ROLE_VISION, "vision-0", 2, 101);
    enc = take_order(fresh, WN__ENVELOPE__BODY_ENCODE); /* of the same attempt: the leader still waits for it */
    assert_int_equal(enc.attempt, 1);
    assert_memory_equal(fresh->payload, "image", 5);
    /* hello twice before it has seen the welcome is not a restart */
    worker_hello(fresh, WN__ROLE__ROLE_VISION, "vision-0", 2, 101);
    give_encoded(fresh, &enc);
    give_tokens(b->leader, &gen, 0, 1, "ok");
    give_done(b->leader, &gen, 9);
    expect_tokens(b->client, 0, 1, "ok");
    expect_answer(b->client, "ok");
}

/* Each attempt is lost; the third is the last. */
static void attempts_end(void **state)
{
    struct bed *b = *state;

    bed_start_with(b, 4, 0);
    submit_new(b->client, "q", NULL, NULL);
    for (uint32_t i = 1; i <= 3; i++) {
        struct order gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
        assert_int_equal(gen.attempt, i);
        give_error(b->leader, &gen, WN_EDEVICE, true, "a rank was lost");
        (void)take_order(b->leader, WN__ENVELOPE__BODY_CANCEL);
    }
    end_expect_error(b->client, WN_EPEER, "gave up after 3 attempts: a rank was lost");
}

/* An image that does not decode: the client is told, the leader stops waiting, the next job is served. */
static void bad_image(void **state)
{
    struct bed *b = *state;
    struct order gen, enc;

    bed_start_with(b, 1, 1);
    submit_new(b->client, "q", "not a picture", NULL);
    gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    enc = take_order(b->vision, WN__ENVELOPE__BODY_ENCODE);
    give_error(b->vision, &enc, WN_EFORMAT, false, "image 1: neither JPEG nor PNG nor WebP");
    end_expect_error(b->client, WN_EFORMAT, "neither JPEG");
    assert_string_equal(take_order(b->leader, WN__ENVELOPE__BODY_CANCEL).id, gen.id);
    (void)take_order(b->vision, WN__ENVELOPE__BODY_CANCEL);
    submit_new(b->client, "next", "picture", NULL); /* with one slot each: both have been given back */
    gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    enc = take_order(b->vision, WN__ENVELOPE__BODY_ENCODE);
    give_encoded(b->vision, &enc);
    give_done(b->leader, &gen, 3);
    expect_answer(b->client, "");
}

static void full_queue_and_slots(void **state)
{
    struct bed *b = *state;
    struct order gen;
    Wn__Envelope *env;

    b->cfg.max_queue = 2;
    b->cfg.no_worker_timeout_ms = 0;
    bed_start_with(b, 1, 0);
    submit_new(b->client, "first", NULL, NULL);
    submit_new(b->client, "second", NULL, NULL);
    submit(b->client, "third", NULL, "");
    env = end_expect(b->client, WN__ENVELOPE__BODY_BUSY);
    assert_string_equal(env->busy->client_tag, "7");
    assert_true(env->busy->retry_ms > 0);
    assert_string_equal(env->busy->reason, "the queue is full");
    wn_codec_free(env);
    gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    assert_string_equal(gen.text, "first");
    assert_null(end_recv(b->leader, 100)); /* one slot */
    give_done(b->leader, &gen, 1);
    expect_answer(b->client, "");
    gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    assert_string_equal(gen.text, "second");
    submit_new(b->client, "third", NULL, NULL);
}

static void cancel_and_attach(void **state)
{
    struct bed *b = *state;
    struct end *other;
    struct order gen;
    char id[32], same[32];

    bed_start_with(b, 4, 0);
    submit(b->client, "q", NULL, "key-1");
    expect_accepted(b->client, false, id);
    gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    for (uint32_t i = 0; i < 3; i++) give_tokens(b->leader, &gen, i, 30 + i, i == 0 ? "a" : i == 1 ? "b" : "c");
    for (uint32_t i = 0; i < 3; i++) expect_tokens(b->client, i, 1, i == 0 ? "a" : i == 1 ? "b" : "c");
    end_close(b->client); /* its client goes away; the job does not */

    other = end_open(b, false);
    attach(other, id, 1);
    expect_accepted(other, true, NULL);
    expect_tokens(other, 1, 2, "bc");
    submit(other, "q", NULL, "key-1"); /* the same key: the same job, from its beginning */
    expect_accepted(other, true, same);
    assert_string_equal(same, id);
    expect_tokens(other, 0, 3, "abc");
    cancel(other, id);
    assert_string_equal(take_order(b->leader, WN__ENVELOPE__BODY_CANCEL).id, id);
    wn_codec_free(expect_done(other, WN__FINISH_REASON__FINISH_CANCELLED, "abc"));
    give_tokens(b->leader, &gen, 3, 33, "late");
    attach(other, id, 1); /* the result is kept */
    expect_accepted(other, true, NULL);
    expect_tokens(other, 1, 2, "bc");
    wn_codec_free(expect_done(other, WN__FINISH_REASON__FINISH_CANCELLED, "abc"));
    attach(other, "01ARZ3NDEKTSV4RRFFQ69G5FAV", 1);
    end_expect_error(other, WN_ENOENT, "not known");
    cancel(other, "01ARZ3NDEKTSV4RRFFQ69G5FAV");
    end_expect_error(other, WN_ENOENT, "not known");
}

static void no_worker(void **state)
{
    struct bed *b = *state;

    bed_start_with(b, 0, 0);
    submit_new(b->client, "q", NULL, NULL);
    end_expect_error(b->client, WN_EPEER, "no replica is connected");
    (void)worker_open(b, WN__ROLE__ROLE_LEADER, "replica-0", 4);
    submit_new(b->client, "q", "image", NULL);
    end_expect_error(b->client, WN_EPEER, "no vision worker is connected");
}

/* Submits in every wrong way. */
static void refused_submits(void **state)
{
    struct bed *b = *state;
    Wn__Submit r = WN__SUBMIT__INIT;
    Wn__Sampling sampling = WN__SAMPLING__INIT;
    Wn__Pruning pruning = WN__PRUNING__INIT;
    uint64_t sizes[2] = {3, 4};

    b->cfg.image_bytes_max = 100;
    bed_start_with(b, 0, 0);
    submit(b->client, "", NULL, "");
    end_expect_error(b->client, WN_EINVAL, "the prompt is empty");
    r.prompt = "q";
    r.image_bytes = sizes;
    r.n_image_bytes = 2;
    end_send(b->client, WN__ENVELOPE__BODY_SUBMIT, &r, "12345678", 8);
    end_expect_error(b->client, WN_EPROTO, "said to have 7 bytes; 8 came");
    end_send(b->client, WN__ENVELOPE__BODY_SUBMIT, &r, NULL, 0);
    end_expect_error(b->client, WN_EPROTO, "said to have 7 bytes; 0 came");
    sizes[0] = 101;
    end_send(b->client, WN__ENVELOPE__BODY_SUBMIT, &r, "12345678", 8);
    end_expect_error(b->client, WN_ELIMIT, "image 1 has 101 bytes; at most 100");
    sizes[0] = UINT64_MAX;
    end_send(b->client, WN__ENVELOPE__BODY_SUBMIT, &r, "123", 3);
    end_expect_error(b->client, WN_ELIMIT, "image 1 has");
    sizes[0] = 0;
    end_send(b->client, WN__ENVELOPE__BODY_SUBMIT, &r, "1234", 4);
    end_expect_error(b->client, WN_EINVAL, "image 1 is empty");
    r.n_image_bytes = 0;
    r.sampling = &sampling;
    sampling.temperature = -1;
    end_send(b->client, WN__ENVELOPE__BODY_SUBMIT, &r, NULL, 0);
    end_expect_error(b->client, WN_EINVAL, "temperature");
    sampling.temperature = 0;
    r.pruning = &pruning;
    pruning.method = "x";
    end_send(b->client, WN__ENVELOPE__BODY_SUBMIT, &r, NULL, 0);
    end_expect_error(b->client, WN_ENOENT, "pruning method 'x' is not known; known: none");
    pruning.method = "none";
    end_send(b->client, WN__ENVELOPE__BODY_SUBMIT, &r, NULL, 0);
    expect_accepted(b->client, false, NULL);
}

/* A worker that lives and does nothing with its order: another one gets it, for the same attempt. */
static void slow_vision_worker(void **state)
{
    struct bed *b = *state;
    struct end *workers[2];
    Wn__Envelope *env = NULL;
    int slow = 0;

    b->cfg.encode_timeout_ms = 300;
    bed_start(b);
    b->leader = worker_open(b, WN__ROLE__ROLE_LEADER, "replica-0", 4);
    workers[0] = worker_open(b, WN__ROLE__ROLE_VISION, "vision-0", 4);
    workers[1] = worker_open(b, WN__ROLE__ROLE_VISION, "vision-1", 4);
    b->client = end_open(b, false);
    submit_new(b->client, "q", "image", NULL);
    (void)take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    while (!(env = end_recv(workers[slow], 50))) slow = !slow;
    assert_int_equal(env->body_case, WN__ENVELOPE__BODY_ENCODE);
    wn_codec_free(env);
    assert_int_equal(take_order(workers[!slow], WN__ENVELOPE__BODY_ENCODE).attempt, 1);
    assert_int_equal(take_order(workers[slow], WN__ENVELOPE__BODY_CANCEL).attempt, 1);
}

/* It has encoded in time, and the leader is busy: that is waited for, and costs no attempt. */
static void slow_leader(void **state)
{
    struct bed *b = *state;
    struct order gen, enc;
    Wn__Envelope *env;

    b->cfg.encode_timeout_ms = 100;
    bed_start_with(b, 1, 1);
    submit_new(b->client, "q", "image", NULL);
    gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    enc = take_order(b->vision, WN__ENVELOPE__BODY_ENCODE);
    give_waiting(b->vision, &enc);
    assert_null(end_recv(b->vision, 500));
    give_encoded(b->vision, &enc);
    give_done(b->leader, &gen, 600);
    env = expect_done(b->client, WN__FINISH_REASON__FINISH_STOP, "");
    assert_int_equal(env->done->usage->attempts, 1);
    assert_int_equal(env->done->usage->image_tokens, 576); /* counted once */
    wn_codec_free(env);
}

/* Garbage, wrong bodies, other versions, frames over the limit: answered or dropped, and the next client is served. */
static void malformed_frames(void **state)
{
    struct bed *b = *state;
    struct end *worker;
    struct order gen;
    uint8_t *large = calloc(1, WN_CODEC_BYTES_MAX + 1000);
    Wn__Heartbeat beat = WN__HEARTBEAT__INIT;

    b->cfg.image_bytes_max = 1 << 20;
    bed_start_with(b, 0, 0);
    end_send_raw(b->client, "\xff\xff\xff", 3, NULL, 0);
    end_expect_error(b->client, WN_EPROTO, "not a message of this protocol");
    end_send_raw(b->client, "\x08\x09\x6a\x00", 4, NULL, 0); /* version 9, StatusRequest */
    end_expect_error(b->client, WN_EUNSUPP, "protocol version 9");
    end_send_raw(b->client, "", 0, NULL, 0);
    end_expect_error(b->client, WN_EPROTO, "empty");
    end_send(b->client, WN__ENVELOPE__BODY_HEARTBEAT, &beat, NULL, 0);
    end_expect_error(b->client, WN_EPROTO, "Heartbeat is not for clients");
    end_send_raw(b->client, "\x08\x01\x6a\x00", 4, "payload", 7);
    end_expect_error(b->client, WN_EPROTO, "StatusRequest with a payload");
    free(large);
    large = calloc(1, (size_t)20 << 20);
    end_send_raw(b->client, "\x08\x01", 2, large, (size_t)20 << 20); /* over the payload's limit */
    end_expect_error(b->client, WN_ELIMIT, "larger than allowed");
    end_close(b->client);

    b->client = end_open(b, false);
    end_send_raw(b->client, large, WN_CODEC_BYTES_MAX + 1000, NULL, 0); /* over every limit: the connection is cut */
    assert_null(end_recv(b->client, 200));
    end_close(b->client);
    free(large);

    worker = end_open(b, true);
    end_send_raw(worker, "nonsense", 8, NULL, 0);
    end_expect_error(worker, WN_EPROTO, "Envelope");
    worker_heartbeat(worker); /* no hello: it is told to say it */
    end_expect_error(worker, WN_ENOENT, "has not said hello");
    end_close(worker);

    worker = worker_open(b, WN__ROLE__ROLE_LEADER, "replica-0", 4);
    b->client = end_open(b, false);
    submit_new(b->client, "still there?", NULL, NULL);
    gen = take_order(worker, WN__ENVELOPE__BODY_GENERATE);
    give_done(worker, &gen, 2);
    expect_answer(b->client, "");
}

/* The status once the service is ready, or once it is not; the leader lives all the time. The caller frees it. */
static Wn__Envelope *status_when(struct bed *b, bool ready)
{
    const int64_t deadline = wn_deadline_in_us(10000000);

    for (;; usleep(50000)) {
        Wn__Envelope *env;
        worker_heartbeat(b->leader);
        env = ask_status(b->client);
        if (env->status->ready == ready) return env;
        wn_codec_free(env);
        if (wn_deadline_passed(deadline)) fail_msg("still %sready", ready ? "not " : "");
    }
}

static void status_is_honest(void **state)
{
    struct bed *b = *state;
    Wn__Envelope *env;

    b->cfg.lease_ms = 600;
    bed_start_with(b, 0, 0);
    env = ask_status(b->client);
    assert_false(env->status->ready);
    assert_string_equal(env->status->not_ready_because, "0 of 1 replicas are connected");
    wn_codec_free(env);
    b->leader = worker_open(b, WN__ROLE__ROLE_LEADER, "replica-0", 4);
    env = ask_status(b->client);
    assert_string_equal(env->status->not_ready_because, "0 of 1 vision workers are connected");
    wn_codec_free(env);
    b->vision = worker_open(b, WN__ROLE__ROLE_VISION, "vision-0", 4);
    env = status_when(b, true);
    assert_int_equal(env->status->n_workers, 2);
    assert_string_equal(env->status->workers[0]->name, "replica-0");
    assert_true(env->status->workers[0]->up);
    wn_codec_free(env);
    env = status_when(b, false); /* the vision worker falls silent */
    assert_true(env->status->workers[0]->up);
    assert_false(env->status->workers[1]->up);
    wn_codec_free(env);
    worker_heartbeat(b->vision); /* it was only slow: it is to say hello again */
    end_expect_error(b->vision, WN_ENOENT, "has not said hello");
    worker_hello(b->vision, WN__ROLE__ROLE_VISION, "vision-0", 4, 100);
    wn_codec_free(status_when(b, true));
}

/* The same picture goes to the same worker, until that one is full. */
static void image_affinity(void **state)
{
    struct bed *b = *state;
    struct end *vision[2];
    int home = -1;

    bed_start(b);
    b->leader = worker_open(b, WN__ROLE__ROLE_LEADER, "replica-0", 64);
    vision[0] = worker_open(b, WN__ROLE__ROLE_VISION, "vision-0", 3);
    vision[1] = worker_open(b, WN__ROLE__ROLE_VISION, "vision-1", 3);
    b->client = end_open(b, false);
    for (int i = 0; i < 4; i++) {
        Wn__Envelope *env[2];
        submit_new(b->client, "q", "the same picture", NULL);
        (void)take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
        env[0] = end_recv(vision[0], 100);
        env[1] = env[0] ? NULL : end_recv(vision[1], 2000);
        assert_true(env[0] || env[1]);
        if (home < 0) home = env[0] ? 0 : 1;
        else if (i < 3) assert_non_null(env[home]);
        else assert_non_null(env[1 - home]); /* the fourth: no room at home */
        wn_codec_free(env[0]);
        wn_codec_free(env[1]);
    }
}

/* Two pictures in one prompt, two workers with room for one each: both encode. */
static void pictures_of_one_prompt(void **state)
{
    struct bed *b = *state;
    struct end *vision[2];
    Wn__Submit r = WN__SUBMIT__INIT;
    uint64_t bytes[] = {3, 5};
    struct order gen;

    bed_start(b);
    b->leader = worker_open(b, WN__ROLE__ROLE_LEADER, "replica-0", 4);
    vision[0] = worker_open(b, WN__ROLE__ROLE_VISION, "vision-0", 1);
    vision[1] = worker_open(b, WN__ROLE__ROLE_VISION, "vision-1", 1);
    b->client = end_open(b, false);
    r.prompt = "which is larger?";
    r.idempotency_key = r.client_tag = "";
    r.image_bytes = bytes;
    r.n_image_bytes = 2;
    end_send(b->client, WN__ENVELOPE__BODY_SUBMIT, &r, "onetwos", 8);
    expect_accepted(b->client, false, NULL);
    gen = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    for (int i = 0; i < 2; i++) {
        const struct order enc = take_order(vision[i], WN__ENVELOPE__BODY_ENCODE);
        assert_int_equal(vision[i]->payload_bytes, bytes[enc.image]);
        give_encoded(vision[i], &enc);
    }
    give_done(b->leader, &gen, 3);
    expect_answer(b->client, "");
}

static void models_do_not_mix(void **state)
{
    struct bed *b = *state;
    struct end *other;
    Wn__Hello h = WN__HELLO__INIT;
    struct order o;

    bed_start_with(b, 4, 4);
    submit_new(b->client, "q", NULL, NULL);
    o = take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    other = end_open(b, true);
    h.role = WN__ROLE__ROLE_VISION;
    h.name = "vision-1";
    h.model_id = "another";
    end_send(other, WN__ENVELOPE__BODY_HELLO, &h, NULL, 0);
    end_expect_error(other, WN_EINVAL, "do not mix");
    h.role = WN__ROLE__ROLE_LEADER; /* nor does it push out the one whose name it has */
    h.name = "replica-0";
    end_send(other, WN__ENVELOPE__BODY_HELLO, &h, NULL, 0);
    end_expect_error(other, WN_EINVAL, "do not mix");
    give_done(b->leader, &o, 1);
    expect_answer(b->client, "");
}

static bool is_draining(struct end *client)
{
    Wn__Envelope *env = ask_status(client);
    const bool yes = strstr(env->status->not_ready_because, "shutting down") != NULL;

    wn_codec_free(env);
    return yes;
}

static void shutdown_tells_clients(void **state)
{
    struct bed *b = *state;
    Wn__Envelope *end;

    b->cfg.shutdown_timeout_s = 2;
    bed_start_with(b, 4, 0);
    submit_new(b->client, "q", NULL, NULL);
    (void)take_order(b->leader, WN__ENVELOPE__BODY_GENERATE);
    eventfd_write(b->stop_fd, 1);
    while (!is_draining(b->client)) usleep(1000);
    submit(b->client, "q", NULL, "");
    wn_codec_free(end_expect(b->client, WN__ENVELOPE__BODY_BUSY));
    end = end_expect(b->client, WN__ENVELOPE__BODY_ERROR);
    assert_int_equal(end->error->code, WN_ECANCEL);
    assert_non_null(strstr(end->error->text, "shutting down"));
    assert_true(end->error->retriable);
    wn_codec_free(end);
    (void)take_order(b->leader, WN__ENVELOPE__BODY_CANCEL);
    wn_codec_free(end_expect(b->leader, WN__ENVELOPE__BODY_DRAIN));
    submit(b->client, "too late, and the leader is still there", NULL, "");
    wn_codec_free(end_expect(b->client, WN__ENVELOPE__BODY_BUSY));
}

/* Ports and addresses that cannot be had are one clear line. */
static void port_in_use(void **state)
{
    struct bed *b = *state;
    struct wn_scheduler *s = NULL;
    struct wn_err err = {0};
    const char *colon;

    bed_start(b);
    colon = strrchr(b->clients, ':');
    assert_non_null(colon);
    b->cfg.port = (uint32_t)strtoul(colon + 1, NULL, 10);
    assert_int_not_equal(wn_scheduler_open(&s, &b->cfg, "tcp://127.0.0.1:0", &err), WN_OK);
    assert_null(s);
    assert_non_null(strstr(err.text, colon));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        BED_TEST(happy_path),
        BED_TEST(worker_death_and_fencing),
        BED_TEST(restarted_worker),
        BED_TEST(attempts_end),
        BED_TEST(bad_image),
        BED_TEST(full_queue_and_slots),
        BED_TEST(cancel_and_attach),
        BED_TEST(no_worker),
        BED_TEST(refused_submits),
        BED_TEST(slow_vision_worker),
        BED_TEST(slow_leader),
        BED_TEST(malformed_frames),
        BED_TEST(status_is_honest),
        BED_TEST(image_affinity),
        BED_TEST(pictures_of_one_prompt),
        BED_TEST(models_do_not_mix),
        BED_TEST(shutdown_tells_clients),
        BED_TEST(port_in_use),
    };
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    wn_log_max = getenv("WINNOW_LOG_LEVEL") ? WN_LOG_DEBUG : WN_LOG_ERROR;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
