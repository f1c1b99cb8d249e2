/* tests/integration/sched_bed.c - see sched_bed.h. */
#include "sched_bed.h"

#include <sys/eventfd.h>

#include "base/key.h"

static void *bed_main(void *arg)
{
    struct bed *b = arg;
    struct wn_scheduler *s = NULL;
    wn_status rc = wn_scheduler_open(&s, &b->cfg, b->workers_at ? b->workers_at : "tcp://127.0.0.1:0", &b->err);

    pthread_mutex_lock(&b->lock);
    b->rc = rc;
    if (rc == WN_OK) {
        snprintf(b->clients, sizeof(b->clients), "%s", wn_scheduler_client_address(s));
        snprintf(b->workers, sizeof(b->workers), "%s", wn_scheduler_worker_address(s));
    }
    b->up = true;
    pthread_cond_signal(&b->cond);
    pthread_mutex_unlock(&b->lock);
    if (rc == WN_OK) rc = wn_scheduler_run(s, b->stop_fd, &b->err);
    wn_scheduler_close(s);
    pthread_mutex_lock(&b->lock);
    b->rc = rc;
    pthread_mutex_unlock(&b->lock);
    return NULL;
}

void bed_init(struct bed *b)
{
    memset(b, 0, sizeof(*b));
    wn_config_defaults(&b->cfg);
    b->cfg.port = 0;
    b->cfg.lease_ms = 60000;
    b->cfg.heartbeat_ms = 100;
    b->cfg.no_worker_timeout_ms = 400;
    b->cfg.shutdown_timeout_s = 0;
}

void bed_start(struct bed *b)
{
    struct wn_err err = {0};
    wn_status rc;

    b->up = false; /* it may have been up before */
    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->cond, NULL);
    b->stop_fd = eventfd(0, EFD_CLOEXEC);
    assert_true(b->stop_fd >= 0);
    assert_int_equal(wn_net_create(&b->net, &err), WN_OK);
    assert_int_equal(pthread_create(&b->thread, NULL, bed_main, b), 0);
    pthread_mutex_lock(&b->lock);
    while (!b->up) pthread_cond_wait(&b->cond, &b->lock);
    rc = b->rc;
    pthread_mutex_unlock(&b->lock);
    if (rc != WN_OK) fail_msg("scheduler: %s", b->err.text);
}

void bed_stop(struct bed *b)
{
    while (b->ends_n > 0) end_close(&b->ends[--b->ends_n]);
    eventfd_write(b->stop_fd, 1);
    pthread_join(b->thread, NULL);
    pthread_mutex_destroy(&b->lock);
    pthread_cond_destroy(&b->cond);
    close(b->stop_fd);
    wn_net_destroy(b->net);
    b->net = NULL;
    if (b->rc != WN_OK) fail_msg("scheduler: %s", b->err.text);
}

int bed_setup(void **state)
{
    struct bed *b = malloc(sizeof(*b));

    *state = b;
    if (b) bed_init(b);
    return b ? 0 : -1;
}

char bed_base[64];

void bed_new_journal(struct bed *b)
{
    static int folders;

    snprintf(b->cfg.journal, sizeof(b->cfg.journal), "%s/%d", bed_base, ++folders);
}

int bed_setup_journal(void **state)
{
    if (bed_setup(state) != 0) return -1;
    bed_new_journal(*state);
    return 0;
}

int bed_teardown(void **state)
{
    struct bed *b = *state;

    if (b->net) bed_stop(b);
    free(b);
    return 0;
}

void bed_start_with(struct bed *b, uint32_t leader_slots, uint32_t vision_slots)
{
    bed_start(b);
    if (leader_slots) b->leader = worker_open(b, WN__ROLE__ROLE_LEADER, "replica-0", leader_slots);
    if (vision_slots) b->vision = worker_open(b, WN__ROLE__ROLE_VISION, "vision-0", vision_slots);
    b->client = end_open(b, false);
}

struct end *end_open(struct bed *b, bool worker)
{
    return end_open_as(b, worker, NULL);
}

struct end *end_open_as(struct bed *b, bool worker, const char *key_file)
{
    struct wn_key *key = NULL;
    struct wn_endpoint_opts o = {
        .type = WN_ENDPOINT_DEALER,
        .address = worker ? b->workers : b->clients,
        .frame_max = {WN_CODEC_BYTES_MAX, (size_t)64 << 20},
    };
    struct end *e = &b->ends[b->ends_n];
    struct wn_err err = {0};

    assert_true(b->ends_n < BED_ENDS_MAX);
    if (key_file && wn_key_open(&key, key_file, &err) != WN_OK) fail_msg("%s", err.text);
    if (key)
        o.curve = (struct wn_curve_opts){.public_key = key->public_key, .secret_key = key->secret_key,
                                         .server_key = key->server_key};
    if (wn_endpoint_open(&e->ep, b->net, &o, &err) != WN_OK) fail_msg("%s", err.text);
    wn_key_close(key);
    b->ends_n++;
    return e;
}

void end_close(struct end *e)
{
    wn_endpoint_close(e->ep);
    e->ep = NULL;
}

void end_send_raw(struct end *e, const void *data, size_t bytes, const void *payload, size_t payload_bytes)
{
    struct wn_msg msg;
    wn_status rc = WN_EBUSY;

    wn_msg_init(&msg);
    assert_int_equal(wn_msg_add_copy(&msg, data, bytes), WN_OK);
    if (payload) assert_int_equal(wn_msg_add_copy(&msg, payload, payload_bytes), WN_OK);
    for (int i = 0; i < 500 && rc == WN_EBUSY; i++) {
        rc = wn_endpoint_send(e->ep, &msg, WN_TRAFFIC_CONTROL);
        if (rc == WN_EBUSY) usleep(10000);
    }
    wn_msg_clear(&msg);
    assert_int_equal(rc, WN_OK);
}

void end_send(struct end *e, Wn__Envelope__BodyCase kind, const void *body, const void *payload, size_t n)
{
    struct wn_err err = {0};
    uint8_t *data;
    size_t bytes;

    if (wn_codec_pack_body(&data, &bytes, kind, body, &err) != WN_OK) fail_msg("%s", err.text);
    end_send_raw(e, data, bytes, payload, n);
    free(data);
}

Wn__Envelope *end_recv(struct end *e, int ms)
{
    const int64_t deadline = wn_deadline_in_us((int64_t)ms * 1000);
    struct wn_msg msg;
    Wn__Envelope *env = NULL;
    struct wn_err err = {0};

    wn_msg_init(&msg);
    while (!env) {
        struct wn_poll_item item = {.ep = e->ep};
        wn_status rc = wn_endpoint_recv(e->ep, &msg);
        if (rc == WN_EBUSY && wn_endpoint_poll(&item, 1, deadline) == WN_ETIME) break;
        if (rc != WN_OK) continue;
        if (wn_codec_unpack(&env, wn_msg_data(&msg, 0), wn_msg_size(&msg, 0), &err) != WN_OK) fail_msg("%s", err.text);
        e->payload_bytes = msg.frames_n > 1 ? wn_msg_size(&msg, 1) : 0;
        if (e->payload_bytes)
            memcpy(e->payload, wn_msg_data(&msg, 1), e->payload_bytes < 64 ? e->payload_bytes : 64);
        if (env->body_case == WN__ENVELOPE__BODY_HEARTBEAT) {
            wn_codec_free(env);
            env = NULL;
        }
    }
    wn_msg_clear(&msg);
    return env;
}

Wn__Envelope *end_expect(struct end *e, Wn__Envelope__BodyCase kind)
{
    Wn__Envelope *env = end_recv(e, 5000);

    if (!env) fail_msg("%s did not come", wn_codec_body_name(kind));
    if (env->body_case != kind)
        fail_msg("%s came instead of %s: %s", wn_codec_body_name(env->body_case), wn_codec_body_name(kind),
                 env->body_case == WN__ENVELOPE__BODY_ERROR ? env->error->text : "");
    return env;
}

void end_expect_error(struct end *e, uint32_t code, const char *words)
{
    Wn__Envelope *env = end_expect(e, WN__ENVELOPE__BODY_ERROR);

    if (words && !strstr(env->error->text, words)) fail_msg("'%s' is not in '%s'", words, env->error->text);
    assert_int_equal(env->error->code, code);
    wn_codec_free(env);
}

static Wn__JobRef ref_of(const struct order *o)
{
    Wn__JobRef ref = WN__JOB_REF__INIT;

    ref.job_id = (char *)(uintptr_t)o->id;
    ref.attempt = o->attempt;
    return ref;
}

void worker_hello_with(struct end *e, Wn__Role role, const char *name, uint32_t slots, uint32_t pid,
                       const struct order *running)
{
    Wn__JobRef ref = running ? ref_of(running) : (Wn__JobRef)WN__JOB_REF__INIT, *list[] = {&ref};
    Wn__Hello h = WN__HELLO__INIT;

    h.role = role;
    h.name = (char *)(uintptr_t)name;
    h.host = "test";
    h.pid = pid;
    h.model_id = "abc";
    h.features_endpoint = role == WN__ROLE__ROLE_LEADER ? "ipc:///tmp/features" : "";
    h.slots = slots;
    h.running = list;
    h.n_running = running ? 1 : 0;
    end_send(e, WN__ENVELOPE__BODY_HELLO, &h, NULL, 0);
    wn_codec_free(end_expect(e, WN__ENVELOPE__BODY_WELCOME));
}

void worker_hello(struct end *e, Wn__Role role, const char *name, uint32_t slots, uint32_t pid)
{
    worker_hello_with(e, role, name, slots, pid, NULL);
}

void worker_heartbeat(struct end *e)
{
    Wn__Heartbeat h = WN__HEARTBEAT__INIT;
    end_send(e, WN__ENVELOPE__BODY_HEARTBEAT, &h, NULL, 0);
}

struct end *worker_open(struct bed *b, Wn__Role role, const char *name, uint32_t slots)
{
    struct end *e = end_open(b, true);

    worker_hello(e, role, name, slots, 100);
    worker_heartbeat(e);
    return e;
}

struct order take_order(struct end *e, Wn__Envelope__BodyCase kind)
{
    Wn__Envelope *env = end_expect(e, kind);
    struct order o = {0};
    const Wn__JobRef *ref = NULL;

    if (kind == WN__ENVELOPE__BODY_GENERATE) {
        ref = env->generate->job;
        snprintf(o.text, sizeof(o.text), "%s", env->generate->prompt);
        o.seed = env->generate->sampling ? env->generate->sampling->seed : 0;
        o.emitted_n = (uint32_t)env->generate->n_emitted;
        for (uint32_t i = 0; i < o.emitted_n && i < 8; i++) o.emitted[i] = env->generate->emitted[i];
    } else if (kind == WN__ENVELOPE__BODY_ENCODE) {
        ref = env->encode->job;
        o.image = env->encode->image;
        snprintf(o.text, sizeof(o.text), "%s", env->encode->leader_endpoint);
    } else if (kind == WN__ENVELOPE__BODY_CANCEL) {
        ref = env->cancel->job;
    }
    assert_non_null(ref);
    snprintf(o.id, sizeof(o.id), "%s", ref->job_id);
    o.attempt = ref->attempt;
    wn_codec_free(env);
    return o;
}

static void give(struct end *e, const struct order *o, uint32_t first, uint32_t id, const char *text,
                 ProtobufCBinaryData *logprobs)
{
    Wn__JobRef ref = ref_of(o);
    Wn__Tokens t = WN__TOKENS__INIT;

    t.job = &ref;
    t.first = first;
    t.ids = &id;
    t.n_ids = 1;
    t.text = (char *)(uintptr_t)text;
    t.logprobs = logprobs;
    t.n_logprobs = logprobs ? 1 : 0;
    end_send(e, WN__ENVELOPE__BODY_TOKENS, &t, NULL, 0);
}

void give_tokens(struct end *e, const struct order *o, uint32_t first, uint32_t id, const char *text)
{
    give(e, o, first, id, text, NULL);
}

void give_token_with_logprobs(struct end *e, const struct order *o, uint32_t first, uint32_t id, const char *text)
{
    Wn__TokenLogprobs t = WN__TOKEN_LOGPROBS__INIT;
    Wn__TokenChance chosen = WN__TOKEN_CHANCE__INIT, other = WN__TOKEN_CHANCE__INIT, *top = &other;
    uint8_t packed[WN_LOGPROBS_BYTES_MAX];
    ProtobufCBinaryData value = {0, packed};

    chosen.id = id;
    chosen.logprob = -1;
    chosen.text = (ProtobufCBinaryData){strlen(text), (uint8_t *)(uintptr_t)text};
    other.id = id + 1;
    other.logprob = -0.5f;
    other.text = (ProtobufCBinaryData){2, (uint8_t *)(uintptr_t)"\xc3\x28"}; /* no UTF-8 */
    t.chosen = &chosen;
    t.top = &top;
    t.n_top = 1;
    value.len = wn__token_logprobs__pack(&t, packed);
    give(e, o, first, id, text, &value);
}

void give_done(struct end *e, const struct order *o, uint32_t prompt_tokens)
{
    Wn__JobRef ref = ref_of(o);
    Wn__Done d = WN__DONE__INIT;
    Wn__Usage u = WN__USAGE__INIT;
    Wn__LinkBytes lb = WN__LINK_BYTES__INIT;

    lb.activation = 1000;
    u.prompt_tokens = prompt_tokens;
    /* as a leader says it; what a worker said may still be on its way */
    if (prompt_tokens > 576) u.image_tokens = u.image_tokens_before_pruning = 576;
    u.decode_us = 77;
    u.preemptions = 3;
    u.bytes_on_wire = &lb;
    d.job = &ref;
    d.reason = WN__FINISH_REASON__FINISH_STOP;
    d.usage = &u;
    end_send(e, WN__ENVELOPE__BODY_DONE, &d, NULL, 0);
}

static void say_encoded(struct end *e, const struct order *o, bool waiting)
{
    Wn__JobRef ref = ref_of(o);
    Wn__Encoded d = WN__ENCODED__INIT;

    d.waiting = waiting;
    d.job = &ref;
    d.image = o->image;
    d.rows = d.rows_before = 576;
    d.encode_us = 500;
    d.bytes = 576 * 64;
    end_send(e, WN__ENVELOPE__BODY_ENCODED, &d, NULL, 0);
}

void give_encoded(struct end *e, const struct order *o)
{
    say_encoded(e, o, false);
}

void give_waiting(struct end *e, const struct order *o)
{
    say_encoded(e, o, true);
}

void give_error(struct end *e, const struct order *o, wn_status code, bool retriable, const char *text)
{
    Wn__JobRef ref = ref_of(o);
    Wn__Error d = WN__ERROR__INIT;

    d.job = &ref;
    d.code = (uint32_t)code;
    d.text = (char *)(uintptr_t)text;
    d.retriable = retriable;
    end_send(e, WN__ENVELOPE__BODY_ERROR, &d, NULL, 0);
}

void submit(struct end *e, const char *prompt, const char *image, const char *key)
{
    Wn__Submit r = WN__SUBMIT__INIT;
    uint64_t n = image ? strlen(image) : 0;

    r.prompt = (char *)(uintptr_t)prompt;
    r.idempotency_key = (char *)(uintptr_t)key;
    r.client_tag = "7";
    r.stream = true;
    r.image_bytes = &n;
    r.n_image_bytes = image ? 1 : 0;
    end_send(e, WN__ENVELOPE__BODY_SUBMIT, &r, image, n);
}

void submit_new(struct end *e, const char *prompt, const char *image, char id[32])
{
    submit(e, prompt, image, "");
    expect_accepted(e, false, id);
}

void attach(struct end *e, const char *id, uint32_t from)
{
    Wn__Attach a = WN__ATTACH__INIT;

    a.job_id = (char *)(uintptr_t)id;
    a.from_token = from;
    end_send(e, WN__ENVELOPE__BODY_ATTACH, &a, NULL, 0);
}

void cancel(struct end *e, const char *id)
{
    Wn__JobRef ref = WN__JOB_REF__INIT;
    Wn__Cancel c = WN__CANCEL__INIT;

    ref.job_id = (char *)(uintptr_t)id;
    c.job = &ref;
    end_send(e, WN__ENVELOPE__BODY_CANCEL, &c, NULL, 0);
}

void expect_accepted(struct end *e, bool existed, char id[32])
{
    Wn__Envelope *env = end_expect(e, WN__ENVELOPE__BODY_ACCEPTED);

    assert_int_equal(env->accepted->existed, existed);
    assert_true(wn_job_id_valid(env->accepted->job_id));
    if (id) snprintf(id, 32, "%s", env->accepted->job_id);
    wn_codec_free(env);
}

void expect_tokens(struct end *e, uint32_t first, size_t n, const char *text)
{
    Wn__Envelope *env = end_expect(e, WN__ENVELOPE__BODY_TOKENS);

    assert_int_equal(env->tokens->first, first);
    assert_int_equal(env->tokens->n_ids, n);
    assert_string_equal(env->tokens->text, text);
    wn_codec_free(env);
}

Wn__Envelope *expect_done(struct end *e, Wn__FinishReason reason, const char *text)
{
    Wn__Envelope *env = end_expect(e, WN__ENVELOPE__BODY_DONE);

    assert_int_equal(env->done->reason, reason);
    assert_string_equal(env->done->text, text);
    return env;
}

void expect_answer(struct end *e, const char *text)
{
    wn_codec_free(expect_done(e, WN__FINISH_REASON__FINISH_STOP, text));
}

void expect_forgotten(struct end *e, const char *id, const char *words)
{
    const int64_t deadline = wn_deadline_in_us(10000000);
    Wn__Envelope *env;

    for (;; usleep(20000)) {
        attach(e, id, UINT32_MAX);
        env = end_recv(e, 5000);
        if (!env || env->body_case != WN__ENVELOPE__BODY_ACCEPTED) break;
        wn_codec_free(env);
        wn_codec_free(end_recv(e, 5000)); /* its Done or Error: that is kept still */
        if (wn_deadline_passed(deadline)) fail_msg("%s is still known", id);
    }
    assert_non_null(env);
    assert_int_equal(env->body_case, WN__ENVELOPE__BODY_ERROR);
    assert_int_equal(env->error->code, WN_ENOENT);
    if (!strstr(env->error->text, words)) fail_msg("'%s' is not in '%s'", words, env->error->text);
    wn_codec_free(env);
}

Wn__Envelope *ask_status(struct end *e)
{
    Wn__StatusRequest q = WN__STATUS_REQUEST__INIT;

    end_send(e, WN__ENVELOPE__BODY_STATUS_REQUEST, &q, NULL, 0);
    return end_expect(e, WN__ENVELOPE__BODY_STATUS);
}
