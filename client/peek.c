/* client/peek.c - what listens at an address that did not become a connection: ZeroMQ, or something else. */
#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client/conn.h"

#define GREETING 0xff /* the first byte that ZeroMQ says, to everybody and at once */

/* "tcp://HOST:PORT" as the resolver wants it; false: it is no such thing. */
static bool split(const char *address, char host[256], char port[16])
{
    const char *at = address + 6, *colon = strrchr(address, ':');
    size_t n;

    if (strncmp(address, "tcp://", 6) != 0 || colon < at || strlen(colon + 1) >= 16) return false;
    n = (size_t)(colon - at);
    if (n >= 2 && at[0] == '[' && at[n - 1] == ']') {
        at++;
        n -= 2;
    }
    if (n == 0 || n >= 256) return false;
    memcpy(host, at, n);
    host[n] = '\0';
    memcpy(port, colon + 1, strlen(colon + 1) + 1);
    return true;
}

/* The first byte that the other side says, or -1. */
static int first_byte(const struct addrinfo *a, int timeout_ms)
{
    const int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    unsigned char byte;
    int got = -1;

    if (fd < 0) return -1;
    if (connect(fd, a->ai_addr, a->ai_addrlen) == 0 || (errno == EINPROGRESS && poll(&p, 1, timeout_ms) == 1)) {
        p.events = POLLIN;
        if (poll(&p, 1, timeout_ms) == 1 && recv(fd, &byte, 1, 0) == 1) got = byte;
    }
    close(fd);
    return got;
}

bool wn_conn_is_zeromq(const char *address, int timeout_ms)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    char host[256], port[16];
    bool is = false;

    if (!split(address, host, port)) return strncmp(address, "ipc://", 6) == 0;
    if (getaddrinfo(host, port, &hints, &found) != 0) return false;
    is = first_byte(found, timeout_ms) == GREETING;
    freeaddrinfo(found);
    return is;
}
