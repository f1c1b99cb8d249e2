/* tests/integration/http.c - see http.h. */
#include "tests/integration/http.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <arpa/inet.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define PATIENCE_MS 30000

/* ---- the gateway ---- */

void http_gateway_start(struct http_gateway *g, const char *winnow, const char *endpoint, const char *const *options)
{
    const char *argv[24] = {winnow, "gateway", "--port", "0", "--endpoint", endpoint};
    char line[512];
    int pipes[2], n = 6;
    const char *at;
    FILE *f;

    while (options && *options && n < 23) argv[n++] = *options++;
    assert_int_equal(pipe(pipes), 0);
    g->pid = fork();
    if (g->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dup2(pipes[1], STDOUT_FILENO);
        close(pipes[0]);
        close(pipes[1]);
        execv(winnow, (char **)(uintptr_t)argv);
        _exit(127);
    }
    close(pipes[1]);
    g->out = pipes[0];
    assert_non_null(f = fdopen(dup(g->out), "r"));
    assert_non_null(fgets(line, sizeof(line), f));
    assert_non_null(at = strstr(line, "ready at http://127.0.0.1:"));
    g->port = (int)strtol(strrchr(at, ':') + 1, NULL, 10);
    assert_true(g->port > 0);
    fclose(f);
}

void http_gateway_wait_end(struct http_gateway *g, int sig)
{
    int status = 0;

    if (sig) kill(g->pid, sig);
    for (int i = 0; i < PATIENCE_MS / 10 && waitpid(g->pid, &status, WNOHANG) == 0; i++) usleep(10000);
    close(g->out);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        fail_msg("the gateway ended with status %x", (unsigned)status);
    g->pid = 0;
}

/* ---- a connection ---- */

bool http_try_open(struct http *h, int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    const int bytes = 4096; /* what the kernel keeps for a reader who does not read */

    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    h->n = 0;
    h->in = calloc(1, HTTP_TEXT_MAX + 1);
    h->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(h->fd >= 0 && h->in);
    setsockopt(h->fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof(bytes));
    if (connect(h->fd, (struct sockaddr *)&a, sizeof(a)) == 0) return true;
    http_close(h);
    return false;
}

void http_open(struct http *h, int port)
{
    assert_true(http_try_open(h, port));
}

void http_close(struct http *h)
{
    close(h->fd);
    free(h->in);
    h->in = NULL;
}

void http_send(struct http *h, const char *text)
{
    const size_t n = strlen(text);

    for (size_t at = 0; at < n;) {
        const ssize_t sent = send(h->fd, text + at, n - at, MSG_NOSIGNAL);
        if (sent <= 0) return; /* it hung up: what it said shows why */
        at += (size_t)sent;
    }
}

void http_post(struct http *h, const char *headers, const char *body)
{
    char head[512];

    snprintf(head, sizeof(head),
             "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
             "Content-Length: %zu\r\n%s\r\n",
             strlen(body), headers);
    http_send(h, head);
    http_send(h, body);
}

void http_get(struct http *h, const char *path, const char *headers)
{
    char head[512];

    snprintf(head, sizeof(head), "GET %s HTTP/1.1\r\nHost: x\r\n%s\r\n", path, headers);
    http_send(h, head);
}

/* Reads some more; false: the other side has hung up. */
static bool more(struct http *h)
{
    struct pollfd p = {.fd = h->fd, .events = POLLIN};
    ssize_t got;

    if (h->n == HTTP_TEXT_MAX) fail_msg("a reply without an end");
    if (poll(&p, 1, PATIENCE_MS) != 1) fail_msg("nothing came after '%s'", h->in);
    if ((got = recv(h->fd, h->in + h->n, HTTP_TEXT_MAX - h->n, 0)) <= 0) return false;
    h->n += (size_t)got;
    h->in[h->n] = '\0';
    return true;
}

static void drop(struct http *h, size_t n)
{
    memmove(h->in, h->in + n, h->n - n + 1);
    h->n -= n;
}

bool http_ends(struct http *h)
{
    struct pollfd p = {.fd = h->fd, .events = POLLIN};
    char bytes[4096];

    while (poll(&p, 1, 5000) == 1)
        if (recv(h->fd, bytes, sizeof(bytes), 0) <= 0) return true;
    return false;
}

struct http_reply http_take_head(struct http *h)
{
    struct http_reply r = {0};
    char *end;

    while (!(end = strstr(h->in, "\r\n\r\n")))
        if (!more(h)) fail_msg("it hung up after '%s'", h->in);
    assert_true((size_t)(end - h->in) < sizeof(r.head) - 4);
    memcpy(r.head, h->in, (size_t)(end - h->in) + 2);
    drop(h, (size_t)(end - h->in) + 4);
    r.status = (int)strtol(r.head + 9, NULL, 10); /* HTTP/1.1 200 */
    return r;
}

/* The next chunk; NULL: the last one was it. The caller's. */
static char *take_chunk(struct http *h)
{
    char *end, *chunk;
    size_t n;

    while (!(end = strstr(h->in, "\r\n")))
        if (!more(h)) fail_msg("it hung up inside of a stream: '%s'", h->in);
    n = strtoul(h->in, NULL, 16);
    drop(h, (size_t)(end - h->in) + 2);
    while (h->n < n + 2)
        if (!more(h)) fail_msg("it hung up inside of a chunk: '%s'", h->in);
    chunk = n ? strndup(h->in, n) : NULL;
    drop(h, n + 2);
    return chunk;
}

struct http_reply http_take(struct http *h)
{
    struct http_reply r = http_take_head(h);
    const char *length = strcasestr(r.head, "Content-Length:");
    size_t n;

    if (!length) fail_msg("a reply without a length: %s", r.head);
    n = strtoul(length + 15, NULL, 10);
    while (h->n < n)
        if (!more(h)) fail_msg("it hung up inside of a body");
    r.body = strndup(h->in, n);
    drop(h, n);
    return r;
}

const char *http_take_piece(struct http *h)
{
    static char piece[HTTP_TEXT_MAX], rest[HTTP_TEXT_MAX]; /* chunks and pieces need not end together */
    static const struct http *whose;
    char *end, *chunk;

    if (whose != h) rest[0] = '\0';
    whose = h;
    while (!(end = strstr(rest, "\n\n"))) {
        if (!(chunk = take_chunk(h))) fail_msg("the stream ended with '%s'", rest);
        assert_true(strlen(rest) + strlen(chunk) < sizeof(rest));
        memcpy(rest + strlen(rest), chunk, strlen(chunk) + 1);
        free(chunk);
    }
    *end = '\0';
    assert_int_equal(strncmp(rest, "data: ", 6), 0);
    memcpy(piece, rest + 6, strlen(rest + 6) + 1);
    memmove(rest, end + 2, strlen(end + 2) + 1);
    return piece;
}

/* ---- answers ---- */

static const json_t *choice_of(const json_t *root, int choice)
{
    const json_t *list = json_object_get(root, "choices"), *one;
    size_t i;

    json_array_foreach(list, i, one)
    {
        if (json_integer_value(json_object_get(one, "index")) == choice) return one;
    }
    return NULL;
}

char *http_text(const char *body, int choice)
{
    json_t *root = json_loads(body, 0, NULL);
    const json_t *message = json_object_get(choice_of(root, choice), "message");
    const char *text = json_string_value(json_object_get(message, "content"));
    char *copy;

    if (!text) fail_msg("no answer: %s", body);
    copy = strdup(text);
    json_decref(root);
    return copy;
}

char *http_stream_text(struct http *h, int choice)
{
    char *text = calloc(1, HTTP_TEXT_MAX);
    const char *piece;
    size_t n = 0;

    while (strcmp(piece = http_take_piece(h), "[DONE]") != 0) {
        json_t *root = json_loads(piece, 0, NULL);
        const char *more_text =
            json_string_value(json_object_get(json_object_get(choice_of(root, choice), "delta"), "content"));
        if (!root || json_object_get(root, "error")) fail_msg("in a stream: %s", piece);
        if (more_text) n += (size_t)snprintf(text + n, HTTP_TEXT_MAX - n, "%s", more_text);
        json_decref(root);
    }
    assert_null(take_chunk(h)); /* the end of the stream, and the connection goes on */
    return text;
}
