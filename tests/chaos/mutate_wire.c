/* tests/chaos/mutate_wire.c - the clients' port below ZeroMQ: noise, old handshakes, connections that never end. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
#include <zmq.h>

#include "base/clock.h"
#include "tests/chaos/mutate.h"

#define SLOW         200       /* connections that never finish */
#define HANDSHAKE_US 10000000ll /* after which the server drops one (transport/endpoint.c) */

static int tcp_connect(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    a.sin_port = htons((uint16_t)strtol(strrchr(m.service.endpoint, ':') + 1, NULL, 10));
    if (fd >= 0) (void)!connect(fd, (struct sockaddr *)&a, sizeof(a));
    return fd;
}

/* Reads until the other side is silent for ms or hangs up; returns the bytes it sent. */
static size_t listen_to(int fd, int ms, uint8_t *data, size_t room)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    size_t n = 0;
    ssize_t got = 1;

    while (got > 0 && n < room && poll(&p, 1, ms) > 0) {
        got = recv(fd, data + n, room - n, 0);
        if (got > 0) n += (size_t)got;
    }
    return n;
}

/* Copies bytes between a client of ours and the server until they are quiet, and keeps what the client said: a whole
 * handshake that went well, and a request. */
static size_t record_handshake(uint8_t *said, size_t room)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(a);
    const int door = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), server = tcp_connect();
    char address[64];
    uint8_t data[4096];
    size_t n = 0;
    void *client;
    int fd;

    if (bind(door, (struct sockaddr *)&a, sizeof(a)) != 0 || listen(door, 1) != 0 ||
        getsockname(door, (struct sockaddr *)&a, &len) != 0)
        return 0;
    snprintf(address, sizeof(address), "tcp://127.0.0.1:%u", ntohs(a.sin_port));
    client = dealer(address, m.client, m.client->server_key);
    (void)!zmq_send(client, "hello", 5, 0);
    fd = accept(door, NULL, NULL);
    for (int quiet = 0, gone = 0; quiet < 5 && !gone;) {
        struct pollfd p[2] = {{.fd = fd, .events = POLLIN}, {.fd = server, .events = POLLIN}};
        quiet = poll(p, 2, 100) > 0 ? 0 : quiet + 1;
        for (int i = 0; i < 2; i++) {
            const ssize_t got = p[i].revents ? recv(p[i].fd, data, sizeof(data), 0) : -1;
            gone += got == 0;
            if (got <= 0) continue;
            (void)!send(p[1 - i].fd, data, (size_t)got, MSG_NOSIGNAL);
            if (i == 0 && n + (size_t)got <= room) {
                memcpy(said + n, data, (size_t)got);
                n += (size_t)got;
            }
        }
    }
    zmq_close(client);
    close(fd);
    close(server);
    close(door);
    return n;
}

/* The same bytes again prove nothing: the server's part of the handshake is new each time. */
static void replay(const uint8_t *said, size_t n)
{
    static const uint8_t ready[] = "\5READY";
    uint8_t heard[4096];
    const int fd = tcp_connect();
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    size_t got;

    (void)!poll(&p, 1, 1000);
    (void)!send(fd, said, n, MSG_NOSIGNAL);
    got = listen_to(fd, 300, heard, sizeof(heard));
    if (memmem(heard, got, ready, sizeof(ready) - 1)) complain("a replayed handshake was let in");
    close(fd);
}

static void wire_noise(const uint8_t *said, size_t said_n)
{
    uint8_t data[MUTANT_MAX];
    const int fd = tcp_connect();
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    size_t n = dice_roll(&m.dice, (uint32_t)said_n + 1);

    memcpy(data, said, n); /* a good beginning of any length, then noise */
    for (uint32_t i = dice_roll(&m.dice, 200); i > 0; i--) data[n++] = (uint8_t)dice_roll(&m.dice, 256);
    if (dice_roll(&m.dice, 4) == 0) data[dice_roll(&m.dice, (uint32_t)n)] ^= 0x10;
    if (dice_roll(&m.dice, 8) == 0 && n > 80) memset(data + 64, 0xff, 10); /* a frame of 2^63 bytes */
    if (poll(&p, 1, 1000) > 0) (void)!send(fd, data, n, MSG_NOSIGNAL);
    close(fd);
}

/* A connection has so long to say who it is, however slowly it talks. */
static void expect_dropped(const int *slow, int64_t since_us)
{
    int open = 0;

    for (int k = 0; k < SLOW; k++) {
        uint8_t data[4096];
        ssize_t got = 1;
        while (got > 0) got = recv(slow[k], data, sizeof(data), 0);
        open += got < 0 && errno == EAGAIN;
    }
    if (since_us > HANDSHAKE_US * 3 / 2 && open > 0)
        complain("%d of %d connections that never finish were still open after %lld s", open, SLOW,
                 (long long)since_us / 1000000);
}

void attack_wire(void)
{
    const struct census before = count_processes();
    const int64_t began = wn_now_us();
    const uint32_t n = m.frames / 20 < 20000 ? m.frames / 20 : 20000; /* each is a connection */
    struct census after;
    uint8_t said[2048];
    const size_t said_n = record_handshake(said, sizeof(said));
    uint32_t i = 0;
    int slow[SLOW];

    if (said_n < 64) complain("no handshake was recorded");
    for (int k = 0; k < SLOW; k++) slow[k] = tcp_connect();
    for (; i < n && wn_now_us() - began < m.limit_us; i++) {
        const int at = (int)dice_roll(&m.dice, SLOW);
        wire_noise(said, said_n);
        (void)!send(slow[at], said + i % 64, 1, MSG_NOSIGNAL); /* one byte now and then */
        if (i % 200 == 0) replay(said, said_n);
    }
    expect_dropped(slow, wn_now_us() - began);
    for (int k = 0; k < SLOW; k++) close(slow[k]);
    after = count_processes();
    report("wire", i, 0, began, compare("wire", &before, &after));
}
