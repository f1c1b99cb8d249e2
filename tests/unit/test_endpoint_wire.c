/* Endpoints and what comes over the wire below ZeroMQ: limits at their edge, crowds, old handshakes, handshakes and
 * messages that never end. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/chunk.h"
#include "transport/endpoint.h"

#define TIMEOUT_US   10000000
#define SLOW         120 /* connections that never finish; a third of each kind */
#define HANDSHAKE_MS 2000
#define GREETING     64 /* bytes */

static struct wn_net *net;
static char server_public[WN_CURVE_KEY_CHARS], server_secret[WN_CURVE_KEY_CHARS];
static char client_public[WN_CURVE_KEY_CHARS], client_secret[WN_CURVE_KEY_CHARS];

static int setup(void **state)
{
    (void)state;
    if (wn_curve_keypair(server_public, server_secret, NULL) != WN_OK) return 1;
    if (wn_curve_keypair(client_public, client_secret, NULL) != WN_OK) return 1;
    return wn_net_create(&net, NULL) == WN_OK ? 0 : 1;
}

static int teardown(void **state)
{
    (void)state;
    wn_net_destroy(net); /* hangs if a test leaves a socket open */
    return 0;
}

static struct wn_endpoint *open_ep(const struct wn_endpoint_opts *opts)
{
    struct wn_endpoint *ep = NULL;
    struct wn_err err = {0};

    if (wn_endpoint_open(&ep, net, opts, &err) != WN_OK) fail_msg("%s", err.text);
    return ep;
}

/* Lets in who has the client's key. */
static struct wn_endpoint *open_router(bool keys, size_t frame_0, size_t frame_1)
{
    const char *const allowed[] = {client_public};
    struct wn_endpoint_opts o = {.type = WN_ENDPOINT_ROUTER, .address = "tcp://127.0.0.1:0", .bind = true,
                                 .frame_max = {frame_0, frame_1}, .handshake_ms = HANDSHAKE_MS};

    if (keys) o.curve = (struct wn_curve_opts){.server = true, .secret_key = server_secret, .allowed = allowed,
                                               .allowed_n = 1};
    return open_ep(&o);
}

static struct wn_endpoint *open_dealer(const char *address, const char *identity, bool keys)
{
    struct wn_endpoint_opts o = {.type = WN_ENDPOINT_DEALER, .address = address, .frame_max = {1},
                                 .identity = identity, .reconnect_ms = 10};

    if (keys) o.curve = (struct wn_curve_opts){.server_key = server_public, .public_key = client_public,
                                               .secret_key = client_secret};
    return open_ep(&o);
}

static void send_frames(struct wn_endpoint *ep, const void *head, size_t head_n, const void *body, size_t body_n)
{
    const int64_t deadline = wn_deadline_in_us(TIMEOUT_US);
    struct wn_poll_item item = {.ep = ep, .want_write = true};
    struct wn_msg msg;
    wn_status rc;

    wn_msg_init(&msg);
    assert_int_equal(wn_msg_add_copy(&msg, head, head_n), WN_OK);
    if (body) assert_int_equal(wn_msg_add_copy(&msg, body, body_n), WN_OK);
    while ((rc = wn_endpoint_send(ep, &msg, WN_TRAFFIC_CONTROL)) == WN_EBUSY)
        if (wn_endpoint_poll(&item, 1, deadline) == WN_ETIME) break;
    wn_msg_clear(&msg);
    assert_int_equal(rc, WN_OK);
}

static wn_status recv_frames(struct wn_endpoint *ep, struct wn_msg *msg)
{
    const int64_t deadline = wn_deadline_in_us(TIMEOUT_US);
    struct wn_poll_item item = {.ep = ep};
    wn_status rc;

    while ((rc = wn_endpoint_recv(ep, msg)) == WN_EBUSY)
        if (wn_endpoint_poll(&item, 1, deadline) == WN_ETIME) return WN_ETIME;
    return rc;
}

/* An endpoint of tiny frames is not too small for ZeroMQ's own, and takes no larger ones for that. */
static void test_tiny_frames(void **state)
{
    (void)state;
    for (int keys = 0; keys < 2; keys++) {
        struct wn_endpoint *router = open_router(keys, 8, 0);
        struct wn_endpoint *dealer = open_dealer(wn_endpoint_address(router), "names of the greatest length: 32", keys);
        struct wn_msg msg;

        wn_msg_init(&msg);
        send_frames(dealer, "12345678", 8, NULL, 0);
        assert_int_equal(recv_frames(router, &msg), WN_OK);
        assert_int_equal(wn_msg_size(&msg, 0), 8);
        send_frames(dealer, "123456789", 9, NULL, 0);
        assert_int_equal(recv_frames(router, &msg), WN_EPROTO);
        wn_msg_clear(&msg);
        wn_endpoint_close(dealer);
        wn_endpoint_close(router);
    }
}

/* CURVE makes a frame longer: one of the greatest size must still come through. One byte more is refused, and in a
 * frame that travels in one piece it costs the connection. */
static void test_largest_frame(void **state)
{
    const size_t largest = WN_CHUNK_BYTES;
    char *data = calloc(1, largest + 1);
    struct wn_endpoint *router = open_router(true, 64, largest);
    struct wn_endpoint *dealer = open_dealer(wn_endpoint_address(router), NULL, true);
    struct wn_endpoint_stats stats = {0};
    const int64_t deadline = wn_deadline_in_us(TIMEOUT_US);
    struct wn_msg msg;

    (void)state;
    assert_non_null(data);
    wn_msg_init(&msg);
    send_frames(dealer, "head", 4, data, largest);
    assert_int_equal(recv_frames(router, &msg), WN_OK);
    assert_int_equal(wn_msg_size(&msg, 1), largest);
    send_frames(dealer, "head", 4, data, largest + 1);
    assert_int_equal(recv_frames(router, &msg), WN_EPROTO);
    send_frames(dealer, data, largest + 1, NULL, 0);
    while (stats.disconnected == 0 && !wn_deadline_passed(deadline)) {
        struct wn_poll_item item = {.ep = router};
        (void)!wn_endpoint_poll(&item, 1, wn_deadline_in_us(10000));
        assert_int_equal(wn_endpoint_recv(router, &msg), WN_EBUSY);
        wn_endpoint_stats_get(router, &stats);
    }
    assert_int_equal(stats.disconnected, 1);
    wn_msg_clear(&msg);
    wn_endpoint_close(dealer);
    wn_endpoint_close(router);
    free(data);
}

/* ---- below ZeroMQ ---- */

static struct sockaddr_in loopback(uint16_t port)
{
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                                .sin_port = htons(port)};
}

static int tcp_connect(const struct wn_endpoint *ep)
{
    const struct sockaddr_in a = loopback((uint16_t)strtoul(strrchr(wn_endpoint_address(ep), ':') + 1, NULL, 10));
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (const struct sockaddr *)&a, sizeof(a)), 0);
    return fd;
}

/* Before a stranger has proved who it is it may announce no more than a piece, whatever payloads may be: the connection
 * is dropped at once, not when so much has come, or not at all until the time for handshakes is over. */
static void announce(bool keys, size_t bytes, bool dropped)
{
    static const uint8_t greeting[GREETING] = {0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 1, 'C', 'U', 'R', 'V', 'E'};
    uint8_t said[GREETING + 9], heard[256];
    struct wn_endpoint *router = open_router(keys, 64, (size_t)256 << 20);
    struct pollfd p = {.events = POLLIN};
    const int64_t until = wn_deadline_in_us(HANDSHAKE_MS * 1000 / 2);
    ssize_t got = 1;

    memcpy(said, greeting, GREETING);
    if (!keys) memcpy(said + 12, "NULL\0", 5);
    said[GREETING] = 6; /* a command, its length in eight bytes */
    for (int i = 0; i < 8; i++) said[GREETING + 1 + i] = (uint8_t)(bytes >> (56 - 8 * i));
    p.fd = tcp_connect(router);
    assert_int_equal(send(p.fd, said, sizeof(said), MSG_NOSIGNAL), sizeof(said));
    while (got > 0 && !wn_deadline_passed(until))
        if (poll(&p, 1, 50) > 0) got = recv(p.fd, heard, sizeof(heard), 0);
    if ((got <= 0) != dropped) fail_msg("%zu bytes: %s", bytes, dropped ? "not dropped" : "dropped");
    close(p.fd);
    wn_endpoint_close(router);
}

static void test_announced(void **state)
{
    (void)state;
    for (int keys = 0; keys < 2; keys++) {
        announce(keys, WN_CHUNK_BYTES, false);
        announce(keys, WN_CHUNK_BYTES + 64, true); /* 33 more are for CURVE */
        announce(keys, (size_t)200 << 20, true);
    }
}

/* Copies bytes between a client and the server until both are quiet; keeps what the client said: a handshake that went
 * well, and a message. */
static size_t record(struct wn_endpoint *router, uint8_t *said, size_t room)
{
    struct sockaddr_in a = loopback(0);
    socklen_t len = sizeof(a);
    const int door = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), server = tcp_connect(router);
    struct wn_endpoint *dealer;
    struct pollfd p[2] = {{.events = POLLIN}, {.fd = server, .events = POLLIN}};
    char address[64];
    bool sent = false;
    size_t n = 0;

    assert_int_equal(bind(door, (struct sockaddr *)&a, sizeof(a)), 0);
    assert_int_equal(listen(door, 1), 0);
    assert_int_equal(getsockname(door, (struct sockaddr *)&a, &len), 0);
    snprintf(address, sizeof(address), "tcp://127.0.0.1:%u", ntohs(a.sin_port));
    dealer = open_dealer(address, NULL, true);
    p[0].fd = accept(door, NULL, NULL);
    for (int quiet = 0; quiet < 3;) {
        quiet = poll(p, 2, 100) > 0 ? 0 : quiet + 1;
        for (int i = 0; i < 2; i++) {
            uint8_t data[4096];
            const ssize_t got = p[i].revents ? recv(p[i].fd, data, sizeof(data), 0) : 0;
            if (got <= 0) continue;
            assert_int_equal(send(p[1 - i].fd, data, (size_t)got, MSG_NOSIGNAL), got);
            if (i == 1) continue;
            assert_true(n + (size_t)got <= room);
            memcpy(said + n, data, (size_t)got);
            n += (size_t)got;
        }
        if (quiet == 1 && !sent) send_frames(dealer, "let me in", 9, NULL, 0);
        sent = sent || quiet == 1;
    }
    close(p[0].fd);
    close(server);
    close(door);
    wn_endpoint_close(dealer);
    return n;
}

/* The same bytes again prove nothing, for the server's part of a handshake is new each time. */
static void test_replayed_handshake(void **state)
{
    struct wn_endpoint *router = open_router(true, 64, 0);
    struct wn_endpoint_stats before, now;
    const int64_t deadline = wn_deadline_in_us(TIMEOUT_US);
    uint8_t said[4096], heard[4096];
    size_t heard_n = 0;
    struct pollfd p = {.events = POLLIN};
    struct wn_msg msg;
    ssize_t got;
    size_t n;

    (void)state;
    n = record(router, said, sizeof(said));
    wn_msg_init(&msg);
    assert_int_equal(recv_frames(router, &msg), WN_OK); /* what was recorded was good */
    assert_memory_equal(wn_msg_data(&msg, 0), "let me in", 9);
    while (wn_endpoint_recv(router, &msg) == WN_OK) continue;
    wn_endpoint_stats_get(router, &before);
    assert_int_equal(before.connected, 1);
    p.fd = tcp_connect(router);
    assert_int_equal(send(p.fd, said, n, MSG_NOSIGNAL), n);
    do { /* until the server hangs up */
        assert_int_equal(poll(&p, 1, 5000), 1);
        got = recv(p.fd, heard + heard_n, sizeof(heard) - heard_n, 0);
        if (got > 0) heard_n += (size_t)got;
    } while (got > 0);
    close(p.fd);
    assert_null(memmem(heard, heard_n, "\5READY", 6));
    do {
        struct wn_poll_item item = {.ep = router};
        (void)!wn_endpoint_poll(&item, 1, wn_deadline_in_us(10000));
        wn_endpoint_stats_get(router, &now);
    } while (now.handshake_failed == before.handshake_failed && !wn_deadline_passed(deadline));
    assert_int_equal(now.handshake_failed, before.handshake_failed + 1);
    assert_int_equal(now.connected, 1);
    assert_int_equal(wn_endpoint_recv(router, &msg), WN_EBUSY);
    wn_endpoint_close(router);
}

/* Of the first kind a connection says nothing, of the second the greeting and of the third what follows it, byte by
 * byte. */
static void trickle(int *fds, const uint8_t *said, size_t turn)
{
    for (int i = 0; i < SLOW; i++) {
        const size_t at = i % 3 == 2 ? GREETING + turn : turn;
        if (fds[i] >= 0 && i % 3 > 0) (void)!send(fds[i], said + at, 1, MSG_NOSIGNAL);
    }
}

/* Closes those that the server has dropped, and counts the others. */
static int still_open(int *fds)
{
    int n = 0;

    for (int i = 0; i < SLOW; i++) {
        uint8_t data[256];
        ssize_t got = 1;
        while (fds[i] >= 0 && got > 0) got = recv(fds[i], data, sizeof(data), MSG_DONTWAIT);
        if (fds[i] >= 0 && (got == 0 || errno != EAGAIN)) {
            close(fds[i]);
            fds[i] = -1;
        }
        n += fds[i] >= 0;
    }
    return n;
}

/* Who never finishes its handshake holds nobody up, and is dropped, however slowly it talks. */
static void test_slow_handshakes(void **state)
{
    struct wn_endpoint *router = open_router(true, 64, 0), *dealer;
    struct wn_endpoint_stats before, now;
    const int64_t deadline = wn_deadline_in_us(TIMEOUT_US);
    uint8_t said[4096];
    struct wn_msg msg;
    int fds[SLOW];
    int64_t began;

    (void)state;
    assert_true(record(router, said, sizeof(said)) > GREETING + 200);
    wn_msg_init(&msg);
    assert_int_equal(recv_frames(router, &msg), WN_OK);
    wn_endpoint_stats_get(router, &before);
    for (int i = 0; i < SLOW; i++) {
        fds[i] = tcp_connect(router);
        if (i % 3 == 2) assert_int_equal(send(fds[i], said, GREETING, MSG_NOSIGNAL), GREETING);
    }
    began = wn_now_us();
    dealer = open_dealer(wn_endpoint_address(router), NULL, true);
    send_frames(dealer, "hello", 5, NULL, 0);
    assert_int_equal(recv_frames(router, &msg), WN_OK);
    assert_memory_equal(wn_msg_data(&msg, 0), "hello", 5);
    assert_true(wn_now_us() - began < HANDSHAKE_MS * 1000 || still_open(fds) == SLOW); /* beside them, not after */
    for (size_t turn = 0; still_open(fds) > 0 && !wn_deadline_passed(deadline); turn++) {
        struct wn_poll_item item = {.ep = router};
        trickle(fds, said, turn % 63); /* of the greeting never the last byte */
        (void)!wn_endpoint_poll(&item, 1, wn_deadline_in_us(50000));
    }
    assert_int_equal(still_open(fds), 0);
    wn_endpoint_stats_get(router, &now);
    assert_int_equal(now.handshake_failed - before.handshake_failed, SLOW);
    assert_int_equal(now.connected - before.connected, 1);
    assert_int_equal(wn_endpoint_recv(router, &msg), WN_EBUSY);
    wn_endpoint_close(dealer);
    wn_endpoint_close(router);
}

/* Lets the router work for a while; whole messages are none of this. */
static struct wn_endpoint_stats turn_for(struct wn_endpoint *router, int64_t us)
{
    const int64_t until = wn_deadline_in_us(us);
    struct wn_endpoint_stats stats;
    struct wn_msg msg;

    wn_msg_init(&msg);
    do {
        struct wn_poll_item item = {.ep = router};
        (void)!wn_endpoint_poll(&item, 1, until);
        assert_int_equal(wn_endpoint_recv(router, &msg), WN_EBUSY);
    } while (!wn_deadline_passed(until));
    wn_endpoint_stats_get(router, &stats);
    return stats;
}

/* A peer that was let in sends parts of a message and no last one: it is cut off, and others are not. */
static void test_endless_message(void **state)
{
    static const uint8_t hello[] = "\4\34\5READY\13Socket-Type\0\0\0\6DEALER";
    static uint8_t part[9 + WN_CHUNK_BYTES] = {3, 0, 0, 0, 0, 0, WN_CHUNK_BYTES >> 16}; /* more to come; eight bytes */
    uint8_t greeting[GREETING] = {0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 1, 'N', 'U', 'L', 'L'};
    struct wn_endpoint *router = open_router(false, 64, WN_CHUNK_BYTES), *dealer;
    struct wn_endpoint_stats stats = {0};
    const int64_t deadline = wn_deadline_in_us(TIMEOUT_US);
    struct wn_msg msg;
    size_t sent = 0;
    ssize_t got = 0;
    int fd;

    (void)state;
    wn_msg_init(&msg);
    dealer = open_dealer(wn_endpoint_address(router), NULL, false);
    send_frames(dealer, "hello", 5, NULL, 0);
    assert_int_equal(recv_frames(router, &msg), WN_OK);
    fd = tcp_connect(router);
    assert_int_equal(send(fd, greeting, GREETING, MSG_NOSIGNAL), GREETING);
    assert_int_equal(send(fd, hello, sizeof(hello) - 1, MSG_NOSIGNAL), sizeof(hello) - 1);
    while (!stats.refused && !wn_deadline_passed(deadline)) {
        got = send(fd, part + sent % sizeof(part), sizeof(part) - sent % sizeof(part), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (got > 0) sent += (size_t)got;
        stats = turn_for(router, 5000);
    }
    assert_int_equal(stats.refused, 1);
    assert_in_range(sent, (size_t)17 << 20, (size_t)400 << 20);
    stats = turn_for(router, 300000);
    assert_int_equal(stats.refused, 1);
    assert_int_equal(stats.disconnected, 1);
    send_frames(dealer, "again", 5, NULL, 0);
    assert_int_equal(recv_frames(router, &msg), WN_OK);
    wn_msg_clear(&msg);
    close(fd);
    wn_endpoint_close(dealer);
    wn_endpoint_close(router);
}

/* When most of the files that may be open are, the next to connect is turned away: what is left is for the others of
 * this process, or ZeroMQ would end it. */
static void test_crowd(void **state)
{
    struct wn_endpoint_opts ipc = {.type = WN_ENDPOINT_ROUTER, .bind = true, .frame_max = {64}};
    struct wn_endpoint *router, *workers, *dealer;
    struct wn_endpoint_stats stats;
    struct rlimit files, few;
    struct wn_msg msg;
    char address[64];
    int fds[SLOW], n = 0;

    (void)state;
    wn_msg_init(&msg);
    for (int i = 0; i < SLOW; i++) fds[i] = -1;
    snprintf(address, sizeof(address), "ipc:///tmp/winnow-crowd-%d", (int)getpid());
    ipc.address = address;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &files), 0);
    few = (struct rlimit){.rlim_cur = 160, .rlim_max = files.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
    router = open_router(false, 64, 0);
    workers = open_ep(&ipc);
    for (n = 0; n < SLOW && (n == 0 || fds[n - 1] < 140); n++) { /* each takes two here: its own, and the server's */
        fds[n] = tcp_connect(router);
        (void)turn_for(router, 1000);
    }
    stats = turn_for(router, 200000);
    assert_true(stats.crowded > 0);
    assert_int_equal(still_open(fds), n - (int)stats.crowded);
    dealer = open_dealer(address, NULL, false);
    send_frames(dealer, "hello", 5, NULL, 0);
    assert_int_equal(recv_frames(workers, &msg), WN_OK);
    wn_endpoint_close(dealer);
    for (int i = 0; i < n; i++)
        if (fds[i] >= 0) close(fds[i]);
    (void)turn_for(router, 100000);
    dealer = open_dealer(wn_endpoint_address(router), NULL, false);
    send_frames(dealer, "hello", 5, NULL, 0);
    assert_int_equal(recv_frames(router, &msg), WN_OK);
    wn_msg_clear(&msg);
    wn_endpoint_close(dealer);
    wn_endpoint_close(workers);
    unlink(address + strlen("ipc://"));
    wn_endpoint_close(router);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &files), 0);
}

/* Until one of the two counters of a client has moved: it was turned away. */
static void wait_turned_away(struct wn_endpoint *dealer, bool mismatched)
{
    const int64_t deadline = wn_deadline_in_us(TIMEOUT_US);
    struct wn_endpoint_stats stats;
    struct wn_poll_item item = {.ep = dealer};

    do {
        assert_false(wn_deadline_passed(deadline));
        (void)!wn_endpoint_poll(&item, 1, wn_deadline_in_us(5000));
        wn_endpoint_stats_get(dealer, &stats);
    } while ((mismatched ? stats.mismatched : stats.keys_refused) == 0);
}

/* Who is turned away is named, with key and address: of a crowd the last ones are, in their order (one may have tried
 * more than once), and only at the endpoint that they tried. Who has no key does not come so far. */
static void test_strangers(void **state)
{
    struct wn_endpoint *router = open_router(true, 8, 0), *other = open_router(true, 8, 0), *dealer;
    char keys[10][WN_CURVE_KEY_CHARS], secret[WN_CURVE_KEY_CHARS];
    struct wn_stranger who;
    int at = -1, seen = 0;

    (void)state;
    assert_false(wn_endpoint_stranger(router, &who));
    for (int i = 0; i < 10; i++) {
        struct wn_endpoint_opts o = {.type = WN_ENDPOINT_DEALER, .address = wn_endpoint_address(router),
                                     .frame_max = {1}};
        assert_int_equal(wn_curve_keypair(keys[i], secret, NULL), WN_OK);
        o.curve = (struct wn_curve_opts){.server_key = server_public, .public_key = keys[i], .secret_key = secret};
        dealer = open_ep(&o);
        wait_turned_away(dealer, false);
        wn_endpoint_close(dealer);
    }
    for (; wn_endpoint_stranger(router, &who); seen++) {
        const int before = at;
        for (at = at < 0 ? 0 : at; at < 10 && strcmp(keys[at], who.key) != 0; at++) continue;
        assert_true(at < 10 && (before < 0 || at - before <= 1));
        assert_string_equal(who.address, "127.0.0.1");
    }
    assert_int_equal(at, 9);
    assert_in_range(seen, 2, 8);
    dealer = open_dealer(wn_endpoint_address(router), NULL, false);
    wait_turned_away(dealer, true);
    wn_endpoint_close(dealer);
    assert_false(wn_endpoint_stranger(router, &who));
    assert_false(wn_endpoint_stranger(other, &who));
    wn_endpoint_close(other);
    wn_endpoint_close(router);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_tiny_frames, setup, teardown),
        cmocka_unit_test_setup_teardown(test_largest_frame, setup, teardown),
        cmocka_unit_test_setup_teardown(test_announced, setup, teardown),
        cmocka_unit_test_setup_teardown(test_replayed_handshake, setup, teardown),
        cmocka_unit_test_setup_teardown(test_slow_handshakes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_endless_message, setup, teardown),
        cmocka_unit_test_setup_teardown(test_crowd, setup, teardown),
        cmocka_unit_test_setup_teardown(test_strangers, setup, teardown),
    };
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
