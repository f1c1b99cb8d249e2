/* tests/integration/side.c - see side.h. */
#include "side.h"

#include <stdlib.h>
#include <unistd.h>

void side_open(struct side *s, struct wn_net *net, const char *address)
{
    const struct wn_endpoint_opts o = {.type = WN_ENDPOINT_ROUTER,
                                       .address = address,
                                       .bind = true,
                                       .frame_max = {WN_CODEC_BYTES_MAX, (size_t)64 << 20}};
    struct wn_err err = {0};
    wn_status rc = WN_EIO;

    for (int i = 0; i < 200 && rc != WN_OK; i++) { /* ZeroMQ lets go of an address some time after it was closed */
        if (i) usleep(50000);
        rc = wn_endpoint_open(&s->ep, net, &o, &err);
    }
    if (rc != WN_OK) fail_msg("%s", err.text);
}

Wn__Envelope *side_wait(struct side *s, Wn__Envelope__BodyCase kind, int ms)
{
    const int64_t until = wn_deadline_in_us(ms * 1000ll);
    const Wn__Heartbeat beat = WN__HEARTBEAT__INIT;
    struct wn_msg msg;
    struct wn_err err = {0};

    wn_msg_init(&msg);
    while (!wn_deadline_passed(until)) {
        struct wn_poll_item item = {.ep = s->ep};
        Wn__Envelope *env = NULL;
        if (wn_endpoint_recv(s->ep, &msg) != WN_OK) {
            (void)!wn_endpoint_poll(&item, 1, wn_deadline_in_us(20000));
            continue;
        }
        s->worker = msg.peer;
        if (wn_codec_unpack(&env, wn_msg_data(&msg, 0), wn_msg_size(&msg, 0), &err) != WN_OK) fail_msg("%s", err.text);
        if (env->body_case == kind) {
            wn_msg_clear(&msg);
            return env;
        }
        if (env->body_case == WN__ENVELOPE__BODY_HEARTBEAT)
            side_say(s, WN__ENVELOPE__BODY_HEARTBEAT, &beat, NULL, 0);
        wn_codec_free(env);
    }
    return NULL;
}

Wn__Envelope *side_expect(struct side *s, Wn__Envelope__BodyCase kind)
{
    Wn__Envelope *env = side_wait(s, kind, 60000);

    if (!env) fail_msg("%s did not come", wn_codec_body_name(kind));
    return env;
}

static void make_message(struct wn_msg *msg, Wn__Envelope__BodyCase kind, const void *body, const void *payload,
                         size_t bytes)
{
    struct wn_err err = {0};
    uint8_t *data = NULL;
    size_t n = 0;

    wn_msg_init(msg);
    assert_int_equal(wn_codec_pack_body(&data, &n, kind, body, &err), WN_OK);
    assert_int_equal(wn_msg_add_copy(msg, data, n), WN_OK);
    if (payload) assert_int_equal(wn_msg_add_copy(msg, payload, bytes), WN_OK);
    free(data);
}

void side_say(struct side *s, Wn__Envelope__BodyCase kind, const void *body, const void *payload, size_t bytes)
{
    struct wn_msg msg;

    make_message(&msg, kind, body, payload, bytes);
    msg.peer = s->worker;
    assert_int_equal(wn_endpoint_send(s->ep, &msg, WN_TRAFFIC_CONTROL), WN_OK);
    wn_msg_clear(&msg);
}

void end_say(struct wn_endpoint *ep, int wait_ms, Wn__Envelope__BodyCase kind, const void *body, const void *payload,
             size_t bytes)
{
    const int64_t until = wn_deadline_in_us(wait_ms * 1000ll);
    struct wn_msg msg;
    wn_status rc;

    make_message(&msg, kind, body, payload, bytes);
    while ((rc = wn_endpoint_send(ep, &msg, WN_TRAFFIC_CONTROL)) == WN_EBUSY && !wn_deadline_passed(until))
        usleep(1000);
    assert_int_equal(rc, WN_OK);
    wn_msg_clear(&msg);
}
