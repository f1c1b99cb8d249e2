/* ZeroMQ endpoints on loopback, Unix sockets and inside the process. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>
#include <zmq.h>

#include "base/chunk.h"
#include "transport/endpoint.h"

#define TIMEOUT_US 10000000

static struct wn_net *net;

static int setup(void **state)
{
    (void)state;
    return wn_net_create(&net, NULL) == WN_OK ? 0 : 1;
}

static int teardown(void **state)
{
    (void)state;
    wn_net_destroy(net); /* hangs if a test leaves a socket open */
    net = NULL;
    return 0;
}

static struct wn_endpoint_opts router_opts(const char *address)
{
    return (struct wn_endpoint_opts){.type = WN_ENDPOINT_ROUTER, .address = address, .bind = true,
                                     .frame_max = {4096, 8u << 20}};
}

static struct wn_endpoint_opts dealer_opts(const char *address)
{
    return (struct wn_endpoint_opts){.type = WN_ENDPOINT_DEALER, .address = address, .frame_max = {4096, 8u << 20},
                                     .reconnect_ms = 10};
}

static struct wn_endpoint *open_ep(const struct wn_endpoint_opts *opts)
{
    struct wn_endpoint *ep = NULL;
    struct wn_err err = {0};

    if (wn_endpoint_open(&ep, net, opts, &err) != WN_OK) print_error("%s\n", err.text);
    assert_non_null(ep);
    return ep;
}

/* Where an endpoint was closed a moment ago: ZeroMQ lets go of an address some time later. */
static struct wn_endpoint *open_again(const struct wn_endpoint_opts *opts)
{
    const int64_t deadline = wn_deadline_in_us(TIMEOUT_US);
    struct wn_endpoint *ep = NULL;

    while (wn_endpoint_open(&ep, net, opts, NULL) != WN_OK && !wn_deadline_passed(deadline)) usleep(1000);
    assert_non_null(ep);
    return ep;
}

static struct wn_endpoint *open_router(const char *address)
{
    struct wn_endpoint_opts opts = router_opts(address);
    return open_ep(&opts);
}

static struct wn_endpoint *open_dealer(const char *address)
{
    struct wn_endpoint_opts opts = dealer_opts(address);
    return open_ep(&opts);
}

/* Sends one or two frames; waits for the connection if there is none yet. */
static wn_status send_to(struct wn_endpoint *ep, const struct wn_peer_id *peer, const void *head, size_t head_bytes,
                         const void *body, size_t body_bytes)
{
    struct wn_msg msg;
    int64_t deadline = wn_deadline_in_us(TIMEOUT_US);
    struct wn_poll_item item = {.ep = ep, .want_write = true};
    wn_status rc;

    wn_msg_init(&msg);
    if (peer) msg.peer = *peer;
    assert_int_equal(wn_msg_add_copy(&msg, head, head_bytes), WN_OK);
    if (body) assert_int_equal(wn_msg_add_copy(&msg, body, body_bytes), WN_OK);
    do {
        rc = wn_endpoint_send(ep, &msg, WN_TRAFFIC_CONTROL);
        if (rc == WN_EBUSY && wn_endpoint_poll(&item, 1, deadline) != WN_OK) break;
    } while (rc == WN_EBUSY);
    wn_msg_clear(&msg);
    return rc;
}

static wn_status recv_from(struct wn_endpoint *ep, struct wn_msg *msg, int64_t timeout_us)
{
    int64_t deadline = wn_deadline_in_us(timeout_us);
    struct wn_poll_item item = {.ep = ep};
    wn_status rc;

    while ((rc = wn_endpoint_recv(ep, msg)) == WN_EBUSY) {
        if (wn_endpoint_poll(&item, 1, deadline) == WN_ETIME) return WN_ETIME;
    }
    return rc;
}

/* Keeps `ep` (and its monitor) going until cond holds for its figures. */
static struct wn_endpoint_stats stats_until(struct wn_endpoint *ep, bool (*cond)(const struct wn_endpoint_stats *s))
{
    struct wn_endpoint_stats stats = {0};
    int64_t deadline = wn_deadline_in_us(TIMEOUT_US);

    do {
        struct wn_poll_item item = {.ep = ep};
        (void)!wn_endpoint_poll(&item, 1, wn_deadline_in_us(2000));
        wn_endpoint_stats_get(ep, &stats);
    } while (!cond(&stats) && !wn_deadline_passed(deadline));
    return stats;
}

static bool has_connected(const struct wn_endpoint_stats *s) { return s->connected > 0; }
static bool has_lost(const struct wn_endpoint_stats *s) { return s->disconnected > 0; }
static bool has_failed(const struct wn_endpoint_stats *s) { return s->handshake_failed > 0; }

static void check_sizes(const char *address, size_t largest)
{
    const size_t sizes[] = {0, 1, 33, 34, 8191, 100003, WN_CHUNK_BYTES - 1, WN_CHUNK_BYTES, WN_CHUNK_BYTES + 1,
                            2 * WN_CHUNK_BYTES, 3 * WN_CHUNK_BYTES + 77, largest};
    struct wn_endpoint *router = open_router(address), *dealer = open_dealer(wn_endpoint_address(router));
    unsigned char *data = malloc(largest);
    struct wn_msg msg;
    struct wn_traffic_table t = {0};
    uint64_t bytes = 0;

    assert_non_null(data);
    wn_msg_init(&msg);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        for (size_t k = 0; k < sizes[i]; k++) data[k] = (unsigned char)(k * 31 + i);
        assert_int_equal(send_to(dealer, NULL, &i, sizeof(i), data, sizes[i]), WN_OK);
        assert_int_equal(recv_from(router, &msg, TIMEOUT_US), WN_OK);
        assert_true(msg.peer.n > 0);
        assert_int_equal(msg.frames_n, 2);
        assert_int_equal(wn_msg_size(&msg, 0), sizeof(i));
        assert_int_equal(wn_msg_size(&msg, 1), sizes[i]);
        assert_memory_equal(wn_msg_data(&msg, 1), data, sizes[i]);
        wn_endpoint_received(router, WN_TRAFFIC_IMAGE, wn_msg_bytes(&msg));
        bytes += sizes[i] + sizeof(i);
        assert_int_equal(wn_endpoint_send(router, &msg, WN_TRAFFIC_TOKENS), WN_OK); /* back to where it came from */
        assert_int_equal(msg.frames_n, 0);
        assert_int_equal(recv_from(dealer, &msg, TIMEOUT_US), WN_OK);
        assert_int_equal(wn_msg_size(&msg, 1), sizes[i]);
        assert_memory_equal(wn_msg_data(&msg, 1), data, sizes[i]);
    }
    assert_int_equal(wn_endpoint_recv(router, &msg), WN_EBUSY);
    wn_endpoint_traffic(router, &t);
    assert_int_equal(t.of[WN_TRAFFIC_IMAGE].received_bytes, bytes);
    assert_int_equal(t.of[WN_TRAFFIC_TOKENS].sent_bytes, bytes);
    assert_int_equal(t.of[WN_TRAFFIC_TOKENS].sent_messages, sizeof(sizes) / sizeof(sizes[0]));
    assert_int_equal(t.of[WN_TRAFFIC_CONTROL].sent_messages, 0);
    memset(&t, 0, sizeof(t));
    wn_endpoint_traffic(dealer, &t);
    assert_int_equal(t.of[WN_TRAFFIC_CONTROL].sent_bytes, bytes);
    wn_msg_clear(&msg);
    free(data);
    wn_endpoint_close(dealer);
    wn_endpoint_close(router);
}

static void test_sizes(void **state)
{
    char path[64];

    (void)state;
    check_sizes("tcp://127.0.0.1:0", 8u << 20);
    check_sizes("inproc://sizes", 8u << 20);
    snprintf(path, sizeof(path), "ipc:///tmp/wn-test-%d", (int)getpid());
    check_sizes(path, 8u << 20);
    unlink(path + strlen("ipc://"));
}

/* ZeroMQ drops who announces a frame above the limit of all; the sender comes back and may go on. A payload above its
 * own limit is refused, however many pieces it has. */
static void test_oversized(void **state)
{
    struct wn_endpoint *router = open_router("tcp://127.0.0.1:0"), *dealer = open_dealer(wn_endpoint_address(router));
    struct wn_endpoint_stats stats;
    struct wn_msg msg;
    size_t bytes = (8u << 20) + 1;
    char *data = calloc(1, bytes);

    (void)state;
    wn_msg_init(&msg);
    assert_int_equal(send_to(dealer, NULL, "head", 4, data, bytes), WN_OK);
    assert_int_equal(recv_from(router, &msg, TIMEOUT_US), WN_EPROTO);
    assert_int_equal(send_to(dealer, NULL, data, WN_CHUNK_BYTES + 1, NULL, 0), WN_OK);
    stats = stats_until(router, has_lost);
    assert_int_equal(stats.disconnected, 1);
    assert_int_equal(recv_from(router, &msg, 50000), WN_ETIME);
    assert_int_equal(send_to(dealer, NULL, "head", 4, data, 10), WN_OK);
    assert_int_equal(recv_from(router, &msg, TIMEOUT_US), WN_OK);
    wn_msg_clear(&msg);
    free(data);
    wn_endpoint_close(dealer);
    wn_endpoint_close(router);
}

/* Pieces that do not follow the rule: a message ends in the middle of a payload, or has more pieces than it may have.
 * The next one is served. */
static void test_pieces(void **state)
{
    struct wn_endpoint *router = open_router("tcp://127.0.0.1:0");
    void *ctx = zmq_ctx_new(), *peer = zmq_socket(ctx, ZMQ_DEALER);
    char *data = calloc(1, WN_CHUNK_BYTES);
    struct wn_msg msg;

    (void)state;
    wn_msg_init(&msg);
    assert_int_equal(zmq_connect(peer, wn_endpoint_address(router)), 0);
    for (int pieces = 1; pieces <= 9; pieces += 8) {
        zmq_send(peer, "head", 4, ZMQ_SNDMORE);
        for (int i = 0; i < pieces; i++)
            zmq_send(peer, data, WN_CHUNK_BYTES, i + 1 < pieces ? ZMQ_SNDMORE : 0);
        assert_int_equal(recv_from(router, &msg, TIMEOUT_US), WN_EPROTO);
        assert_int_equal(msg.frames_n, 0);
    }
    zmq_send(peer, "head", 4, ZMQ_SNDMORE);
    zmq_send(peer, data, WN_CHUNK_BYTES, ZMQ_SNDMORE);
    zmq_send(peer, "tail", 4, 0);
    assert_int_equal(recv_from(router, &msg, TIMEOUT_US), WN_OK);
    assert_int_equal(msg.frames_n, 2);
    assert_int_equal(wn_msg_size(&msg, 1), WN_CHUNK_BYTES + 4);
    assert_memory_equal((char *)wn_msg_data(&msg, 1) + WN_CHUNK_BYTES, "tail", 4);
    wn_msg_clear(&msg);
    zmq_close(peer);
    zmq_ctx_term(ctx);
    free(data);
    wn_endpoint_close(router);
}

/* Each frame has its own limit; a message that breaks one is gone, the next is served. */
static void test_frame_limits(void **state)
{
    struct wn_endpoint *router = open_router("tcp://127.0.0.1:0");
    struct wn_endpoint_opts opts = dealer_opts(wn_endpoint_address(router));
    struct wn_endpoint *dealer;
    struct wn_endpoint_stats stats;
    struct wn_msg msg, many;
    char *data = calloc(1, 5000);

    (void)state;
    opts.identity = "worker-7";
    dealer = open_ep(&opts);
    wn_msg_init(&msg);
    wn_msg_init(&many);
    assert_int_equal(send_to(dealer, NULL, data, 4097, NULL, 0), WN_OK);
    assert_int_equal(recv_from(router, &msg, TIMEOUT_US), WN_EPROTO);
    assert_int_equal(msg.frames_n, 0);
    assert_int_equal(msg.peer.n, 8);
    assert_memory_equal(msg.peer.bytes, "worker-7", 8);
    for (int i = 0; i < 3; i++) assert_int_equal(wn_msg_add_copy(&many, data, 1), WN_OK);
    assert_int_equal(wn_endpoint_send(dealer, &many, WN_TRAFFIC_CONTROL), WN_OK);
    assert_int_equal(recv_from(router, &msg, TIMEOUT_US), WN_EPROTO); /* frame 2 must not come */
    assert_int_equal(send_to(dealer, NULL, data, 4096, data, 5000), WN_OK);
    assert_int_equal(recv_from(router, &msg, TIMEOUT_US), WN_OK);
    assert_int_equal(msg.frames_n, 2);
    wn_endpoint_stats_get(router, &stats);
    assert_int_equal(stats.refused, 2);
    assert_int_equal(stats.disconnected, 0);
    for (int i = 0; i < WN_MSG_FRAMES_MAX; i++) assert_int_equal(wn_msg_add_copy(&many, data, 1), WN_OK);
    assert_int_equal(wn_msg_add_copy(&many, data, 1), WN_ELIMIT);
    wn_msg_clear(&many);
    wn_msg_clear(&msg);
    free(data);
    wn_endpoint_close(dealer);
    wn_endpoint_close(router);
}

/* A queue that is full says so, keeps the message with the caller, and drains. */
static void test_busy(void **state)
{
    struct wn_endpoint_opts opts = router_opts("tcp://127.0.0.1:0");
    struct wn_endpoint *router, *dealer;
    struct wn_endpoint_stats stats;
    struct wn_msg msg, in;
    uint32_t sent = 0, got = 0;
    wn_status rc = WN_OK;
    void *room = NULL;

    (void)state;
    opts.recv_queue_max = 5;
    router = open_ep(&opts);
    opts = dealer_opts(wn_endpoint_address(router));
    opts.send_queue_max = 5;
    dealer = open_ep(&opts);
    wn_msg_init(&msg);
    wn_msg_init(&in);
    assert_int_equal(send_to(dealer, NULL, &sent, sizeof(sent), NULL, 0), WN_OK);
    for (sent = 1; sent < 10000; sent++) { /* a megabyte each: kernel buffers fill up, too */
        assert_int_equal(wn_msg_add_copy(&msg, &sent, sizeof(sent)), WN_OK);
        assert_int_equal(wn_msg_add_room(&msg, 1 << 20, &room), WN_OK);
        for (int tries = 0; tries < 20; tries++) {
            if ((rc = wn_endpoint_send(dealer, &msg, WN_TRAFFIC_CONTROL)) != WN_EBUSY) break;
            usleep(5000);
        }
        if (rc != WN_OK) break;
    }
    assert_int_equal(rc, WN_EBUSY);
    assert_int_equal(msg.frames_n, 2);
    assert_in_range(sent, 5, 200);
    wn_endpoint_stats_get(dealer, &stats);
    assert_true(stats.busy > 0);
    for (got = 0; got < sent; got++) {
        uint32_t number = 0;
        assert_int_equal(recv_from(router, &in, TIMEOUT_US), WN_OK);
        memcpy(&number, wn_msg_data(&in, 0), sizeof(number));
        assert_int_equal(number, got);
    }
    struct wn_poll_item item = {.ep = dealer, .want_write = true};
    assert_int_equal(wn_endpoint_poll(&item, 1, wn_deadline_in_us(TIMEOUT_US)), WN_OK);
    assert_true(item.writable);
    assert_int_equal(wn_endpoint_send(dealer, &msg, WN_TRAFFIC_CONTROL), WN_OK);
    assert_int_equal(recv_from(router, &in, TIMEOUT_US), WN_OK);
    wn_msg_clear(&in);
    wn_endpoint_close(dealer);
    wn_endpoint_close(router);
}

static void expect_refused(const struct wn_endpoint_opts *opts, wn_status code, const char *word)
{
    struct wn_endpoint *ep = NULL;
    struct wn_err err = {0};

    assert_int_equal(wn_endpoint_open(&ep, net, opts, &err), code);
    assert_null(ep);
    assert_non_null(strstr(err.text, opts->address));
    assert_non_null(strstr(err.text, word));
}

static void test_addresses(void **state)
{
    static const char *const wrong[] = {"tcp://127.0.0.1",      "tcp://127.0.0.1:port", "tcp://127.0.0.1:70000",
                                        "tcp://127.0.0.1:-1",   "127.0.0.1:1",          "tcp://127.0.0.1:80x",
                                        "http://127.0.0.1:80", ""};
    struct wn_endpoint *router = open_router("tcp://127.0.0.1:0");
    struct wn_endpoint_opts opts = router_opts(wn_endpoint_address(router));
    char path[64];

    (void)state;
    assert_non_null(strstr(wn_endpoint_address(router), "tcp://127.0.0.1:"));
    assert_null(strstr(wn_endpoint_address(router), ":0"));
    expect_refused(&opts, WN_EIO, "is in use");
    wn_endpoint_close(router);
    snprintf(path, sizeof(path), "ipc:///tmp/wn-test-%d", (int)getpid());
    router = open_router(path);
    opts = router_opts(path);
    expect_refused(&opts, WN_EIO, "is in use");
    wn_endpoint_close(router);
    unlink(path + strlen("ipc://"));
    opts = router_opts("tcp://192.0.2.1:5599");
    expect_refused(&opts, WN_EAUTH, "no keys");
    opts.insecure = true;
    expect_refused(&opts, WN_EIO, "not an address of this machine");
    opts = dealer_opts("tcp://192.0.2.1:5599");
    expect_refused(&opts, WN_EAUTH, "no keys");
    opts = router_opts("tcp://*:0");
    expect_refused(&opts, WN_EAUTH, "no keys");
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        opts = router_opts(wrong[i]);
        expect_refused(&opts, WN_EINVAL, "is not an address");
    }
    opts = dealer_opts("tcp://127.0.0.1:70000");
    expect_refused(&opts, WN_EINVAL, "is not an address");
    opts = dealer_opts("tcp://127.0.0.1:5599");
    opts.identity = "an identity that is longer than thirty-two characters";
    expect_refused(&opts, WN_EINVAL, "identity");
    opts = dealer_opts("tcp://127.0.0.1:5599");
    opts.frame_max[0] = 0;
    expect_refused(&opts, WN_EINVAL, "limit");
}

struct keys {
    char public_key[WN_CURVE_KEY_CHARS], secret_key[WN_CURVE_KEY_CHARS];
};

static struct keys new_keys(void)
{
    struct keys k;
    assert_int_equal(wn_curve_keypair(k.public_key, k.secret_key, NULL), WN_OK);
    return k;
}

/* One client; returns whether it gets a message through. *key (NULL is fine): as whom the server knows it. */
static bool client_gets_in_as(struct wn_endpoint *router, const struct wn_curve_opts *curve,
                              char key[WN_CURVE_KEY_CHARS])
{
    struct wn_endpoint_opts opts = dealer_opts(wn_endpoint_address(router));
    struct wn_endpoint *dealer;
    struct wn_msg msg, got;
    bool in = false;
    wn_status rc = WN_EBUSY;
    int64_t deadline = wn_deadline_in_us(TIMEOUT_US);
    struct wn_endpoint_stats before, now;

    wn_endpoint_stats_get(router, &before);
    if (curve) opts.curve = *curve;
    dealer = open_ep(&opts);
    wn_msg_init(&msg);
    wn_msg_init(&got);
    assert_int_equal(wn_msg_add_copy(&msg, "let me in", 9), WN_OK);
    do { /* until the message is there or the server has seen a handshake fail */
        struct wn_poll_item items[] = {{.ep = router}, {.ep = dealer}};
        if (rc == WN_EBUSY) rc = wn_endpoint_send(dealer, &msg, WN_TRAFFIC_CONTROL);
        (void)!wn_endpoint_poll(items, 2, wn_deadline_in_us(5000));
        in = wn_endpoint_recv(router, &got) == WN_OK;
        wn_endpoint_stats_get(router, &now);
    } while (!in && now.handshake_failed == before.handshake_failed && !wn_deadline_passed(deadline));
    assert_false(wn_deadline_passed(deadline));
    if (!in) assert_true(stats_until(dealer, has_failed).handshake_failed > 0); /* the client learns it, too */
    if (key) snprintf(key, WN_CURVE_KEY_CHARS, "%s", in && wn_msg_key(&got) ? wn_msg_key(&got) : "");
    wn_msg_clear(&msg);
    wn_msg_clear(&got);
    wn_endpoint_close(dealer);
    return in;
}

static bool client_gets_in(struct wn_endpoint *router, const struct wn_curve_opts *curve)
{
    return client_gets_in_as(router, curve, NULL);
}

static void test_curve(void **state)
{
    struct keys server = new_keys(), client = new_keys(), other = new_keys();
    const char *const list[] = {client.public_key};
    struct wn_curve_opts plain = {0};
    struct wn_curve_opts good = {.server_key = server.public_key}; /* a key for the occasion */
    struct wn_curve_opts known = {.server_key = server.public_key, .secret_key = client.secret_key};
    struct wn_curve_opts stranger = {.server_key = server.public_key, .public_key = other.public_key,
                                     .secret_key = other.secret_key};
    struct wn_curve_opts fooled = {.server_key = other.public_key, .secret_key = client.secret_key};
    struct wn_endpoint_opts opts = router_opts("tcp://127.0.0.1:0");
    struct wn_endpoint_stats stats;
    struct wn_endpoint *router;
    char key[WN_CURVE_KEY_CHARS];

    (void)state;
    opts.curve = (struct wn_curve_opts){.server = true, .secret_key = server.secret_key};
    router = open_ep(&opts);
    assert_true(client_gets_in_as(router, &good, key));
    assert_string_equal(key, ""); /* anybody may come in: nobody was asked who it is */
    assert_true(client_gets_in(router, &stranger));
    assert_false(client_gets_in(router, &plain));
    assert_false(client_gets_in(router, &fooled));
    wn_endpoint_close(router);

    opts.curve.allowed = list;
    opts.curve.allowed_n = 1;
    router = open_ep(&opts);
    assert_true(client_gets_in_as(router, &known, key));
    assert_string_equal(key, client.public_key);
    assert_false(client_gets_in(router, &stranger));
    assert_false(client_gets_in(router, &good));
    assert_true(client_gets_in(router, &known));
    assert_false(client_gets_in(router, &fooled));
    wn_endpoint_stats_get(router, &stats);
    assert_true(stats.keys_refused >= 2); /* whoever was turned away may have tried again */
    assert_true(stats.handshake_failed > stats.keys_refused);
    wn_endpoint_close(router);

    opts.curve.allowed_n = 0; /* a list of nobody is not "anybody" */
    router = open_ep(&opts);
    assert_false(client_gets_in(router, &known));
    wn_endpoint_close(router);

    opts = router_opts("tcp://127.0.0.1:0");
    opts.curve = (struct wn_curve_opts){.server = true, .secret_key = "short"};
    expect_refused(&opts, WN_EINVAL, "secret key");
    opts.curve = (struct wn_curve_opts){.server = true};
    expect_refused(&opts, WN_EINVAL, "secret key");
    opts = dealer_opts("tcp://127.0.0.1:5599");
    opts.curve.secret_key = client.secret_key;
    expect_refused(&opts, WN_EINVAL, "server's public key");
}

/* The client finds a server that comes back at the same address; the server sees a new client with an old name. */
static void test_restart(void **state)
{
    char address[256];
    struct wn_endpoint_opts opts = router_opts("tcp://127.0.0.1:0");
    struct wn_endpoint_opts client;
    struct wn_endpoint *router, *dealer;
    struct wn_msg msg;
    struct wn_peer_id peer, nobody = {.n = 2, .bytes = "w9"};

    (void)state;
    opts.handover = true;
    router = open_ep(&opts);
    snprintf(address, sizeof(address), "%s", wn_endpoint_address(router));
    client = dealer_opts(address);
    client.identity = "w0";
    dealer = open_ep(&client);
    wn_msg_init(&msg);
    assert_int_equal(send_to(dealer, NULL, "one", 3, NULL, 0), WN_OK);
    assert_int_equal(recv_from(router, &msg, TIMEOUT_US), WN_OK);
    peer = msg.peer;

    wn_endpoint_close(router);
    assert_true(stats_until(dealer, has_lost).disconnected >= 1); /* more: it came back while ZeroMQ was letting go */
    opts.address = address;
    router = open_again(&opts);
    assert_int_equal(send_to(router, &nobody, "who?", 4, NULL, 0), WN_EPEER);
    assert_int_equal(send_to(dealer, NULL, "two", 3, NULL, 0), WN_OK);
    assert_int_equal(recv_from(router, &msg, TIMEOUT_US), WN_OK);
    assert_memory_equal(wn_msg_data(&msg, 0), "two", 3);
    assert_true(wn_peer_equal(&peer, &msg.peer));

    wn_endpoint_close(dealer);
    dealer = open_ep(&client);
    assert_int_equal(send_to(dealer, NULL, "three", 5, NULL, 0), WN_OK);
    assert_int_equal(recv_from(router, &msg, TIMEOUT_US), WN_OK);
    assert_memory_equal(wn_msg_data(&msg, 0), "three", 5);
    assert_int_equal(wn_endpoint_send(router, &msg, WN_TRAFFIC_CONTROL), WN_OK);
    assert_int_equal(recv_from(dealer, &msg, TIMEOUT_US), WN_OK);
    wn_msg_clear(&msg);
    wn_endpoint_close(dealer);
    wn_endpoint_close(router);
}

/* Nobody listens: a connected DEALER queues nothing. */
static void test_nobody_there(void **state)
{
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t in_bytes = sizeof(in);
    struct wn_endpoint *dealer;
    char address[64];
    struct wn_msg msg;
    struct wn_poll_item item = {0};
    int64_t start;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0); /* has a port and does not listen */

    (void)state;
    assert_int_equal(bind(fd, (struct sockaddr *)&in, sizeof(in)), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&in, &in_bytes), 0);
    snprintf(address, sizeof(address), "tcp://127.0.0.1:%d", ntohs(in.sin_port));
    dealer = open_dealer(address);
    start = wn_now_us();
    wn_msg_init(&msg);
    assert_int_equal(wn_msg_add_copy(&msg, "hello", 5), WN_OK);
    assert_int_equal(wn_endpoint_send(dealer, &msg, WN_TRAFFIC_CONTROL), WN_EBUSY);
    assert_int_equal(msg.frames_n, 1);
    item = (struct wn_poll_item){.ep = dealer, .want_write = true};
    assert_int_equal(wn_endpoint_poll(&item, 1, start + 60000), WN_ETIME);
    assert_in_range(wn_now_us() - start, 60000, 400000);
    wn_msg_clear(&msg);
    wn_endpoint_close(dealer);
    close(fd);
}

/* Something that is not ZeroMQ connects and talks. */
static void test_wrong_protocol(void **state)
{
    struct wn_endpoint *router = open_router("tcp://127.0.0.1:0");
    struct wn_msg msg;
    char command[300];

    (void)state;
    snprintf(command, sizeof(command),
             "bash -c 'exec 3<>/dev/tcp/127.0.0.1/%s; printf \"GET / HTTP/1.1\\r\\n\\r\\n\" >&3; sleep 0.1'",
             strrchr(wn_endpoint_address(router), ':') + 1);
    assert_int_equal(system(command), 0);
    assert_true(stats_until(router, has_failed).handshake_failed > 0);
    wn_msg_init(&msg);
    assert_int_equal(wn_endpoint_recv(router, &msg), WN_EBUSY);
    wn_endpoint_close(router);
}

static void count_free(void *data, void *hint)
{
    __atomic_fetch_add((int *)hint, 1, __ATOMIC_SEQ_CST);
    free(data);
}

/* The caller's memory travels without a copy and comes back once, whether it is sent or not. */
static void test_zero_copy(void **state)
{
    struct wn_endpoint *router = open_router("tcp://127.0.0.1:0"), *dealer = open_dealer(wn_endpoint_address(router));
    struct wn_msg msg;
    int freed = 0;
    size_t bytes = 3 << 20;
    int64_t deadline = wn_deadline_in_us(TIMEOUT_US);
    char *data = malloc(bytes);

    (void)state;
    assert_true(stats_until(dealer, has_connected).connected == 1);
    memset(data, 7, bytes);
    wn_msg_init(&msg);
    assert_int_equal(wn_msg_add_copy(&msg, "head", 4), WN_OK);
    assert_int_equal(wn_msg_add_ref(&msg, data, bytes, count_free, &freed), WN_OK);
    assert_ptr_equal(wn_msg_data(&msg, 1), data);
    assert_int_equal(wn_endpoint_send(dealer, &msg, WN_TRAFFIC_EMBEDDING), WN_OK);
    assert_int_equal(recv_from(router, &msg, TIMEOUT_US), WN_OK);
    assert_int_equal(((char *)wn_msg_data(&msg, 1))[bytes - 1], 7);
    while (__atomic_load_n(&freed, __ATOMIC_SEQ_CST) == 0 && !wn_deadline_passed(deadline)) usleep(1000);
    assert_int_equal(freed, 1);
    wn_msg_clear(&msg);
    assert_int_equal(wn_msg_add_ref(&msg, malloc(10), 10, count_free, &freed), WN_OK);
    wn_msg_clear(&msg);
    assert_int_equal(freed, 2);
    wn_endpoint_close(dealer);
    wn_endpoint_close(router);
}

/* Endpoints and other descriptors in one wait. */
static void test_poll(void **state)
{
    struct wn_endpoint *router = open_router("tcp://127.0.0.1:0"), *dealer = open_dealer(wn_endpoint_address(router));
    int fd = eventfd(0, EFD_CLOEXEC);
    uint64_t one = 1;
    struct wn_msg msg = {.frames_n = 0};

    (void)state;
    assert_true(stats_until(dealer, has_connected).connected == 1);
    struct wn_poll_item items[] = {{.ep = router}, {.ep = dealer}, {.fd = fd}};
    const int64_t start = wn_now_us();
    assert_int_equal(wn_endpoint_poll(items, 3, start + 30500), WN_ETIME);
    assert_in_range(wn_now_us() - start, 30500, 400000);
    assert_int_equal(write(fd, &one, sizeof(one)), sizeof(one));
    assert_int_equal(wn_endpoint_poll(items, 3, WN_NEVER), WN_OK);
    assert_true(items[2].readable && !items[0].readable && !items[1].readable && !items[1].writable);
    assert_int_equal(read(fd, &one, sizeof(one)), sizeof(one));
    assert_int_equal(send_to(dealer, NULL, "x", 1, NULL, 0), WN_OK);
    assert_int_equal(wn_endpoint_poll(items, 3, wn_deadline_in_us(TIMEOUT_US)), WN_OK);
    assert_true(items[0].readable && !items[2].readable);
    assert_int_equal(wn_endpoint_recv(router, &msg), WN_OK);
    wn_msg_clear(&msg);
    assert_int_equal(wn_endpoint_poll(items, WN_ENDPOINT_POLL_MAX + 1, 0), WN_EINVAL);
    close(fd);
    wn_endpoint_close(dealer);
    wn_endpoint_close(router);
}

/* What a socket has taken in meanwhile is found by the next wait, and who is ready hides nobody else. */
static void test_poll_finds_all(void **state)
{
    struct wn_endpoint *router = open_router("tcp://127.0.0.1:0"), *dealer = open_dealer(wn_endpoint_address(router));
    int fd = eventfd(1, EFD_CLOEXEC);
    struct wn_poll_item items[] = {{.ep = dealer}, {.ep = router}, {.fd = fd}};
    struct wn_msg msg = {.frames_n = 0}, first = {.frames_n = 0};

    (void)state;
    assert_int_equal(send_to(dealer, NULL, "x", 1, NULL, 0), WN_OK);
    assert_int_equal(recv_from(router, &first, TIMEOUT_US), WN_OK);
    for (int i = 0; i < 20; i++) {
        assert_int_equal(wn_endpoint_recv(dealer, &msg), WN_EBUSY);
        assert_int_equal(send_to(router, &first.peer, "a", 1, NULL, 0), WN_OK);
        assert_int_equal(send_to(router, &first.peer, "b", 1, NULL, 0), WN_OK);
        usleep(3000);
        assert_int_equal(send_to(dealer, NULL, "c", 1, NULL, 0), WN_OK); /* ZeroMQ looks for news in every send */
        for (int k = 0; k < 2; k++, usleep(3000)) {
            assert_int_equal(wn_endpoint_poll(items, 3, wn_deadline_in_us(TIMEOUT_US)), WN_OK);
            assert_true(items[0].readable && items[2].readable);
            assert_int_equal(wn_endpoint_recv(dealer, &msg), WN_OK); /* the other of the two stays */
        }
        assert_int_equal(recv_from(router, &msg, TIMEOUT_US), WN_OK);
    }
    wn_msg_clear(&msg);
    wn_msg_clear(&first);
    close(fd);
    wn_endpoint_close(dealer);
    wn_endpoint_close(router);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_sizes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_oversized, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pieces, setup, teardown),
        cmocka_unit_test_setup_teardown(test_frame_limits, setup, teardown),
        cmocka_unit_test_setup_teardown(test_busy, setup, teardown),
        cmocka_unit_test_setup_teardown(test_addresses, setup, teardown),
        cmocka_unit_test_setup_teardown(test_curve, setup, teardown),
        cmocka_unit_test_setup_teardown(test_restart, setup, teardown),
        cmocka_unit_test_setup_teardown(test_nobody_there, setup, teardown),
        cmocka_unit_test_setup_teardown(test_wrong_protocol, setup, teardown),
        cmocka_unit_test_setup_teardown(test_zero_copy, setup, teardown),
        cmocka_unit_test_setup_teardown(test_poll, setup, teardown),
        cmocka_unit_test_setup_teardown(test_poll_finds_all, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
