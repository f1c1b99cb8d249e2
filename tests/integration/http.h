/* tests/integration/http.h - a client that speaks HTTP over a plain socket, for tests of the gateway, and the gateway
 * itself as a child. All of it fails the test when it does not get what it wants.
 * Owns: a socket, from open to close. Threads: one for each. */
#ifndef WN_TESTS_HTTP_H
#define WN_TESTS_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#define HTTP_TEXT_MAX ((size_t)1 << 20)

struct http {
    int fd;
    size_t n; /* bytes in `in` that were not taken yet */
    char *in;
};

struct http_reply {
    int status;
    char head[2048];
    char *body; /* without chunk sizes; the caller's */
};

/* A gateway in front of a service, on any port. options end with NULL. */
struct http_gateway {
    pid_t pid;
    int port, out;
};
void http_gateway_start(struct http_gateway *g, const char *winnow, const char *endpoint, const char *const *options);
void http_gateway_wait_end(struct http_gateway *g, int sig); /* sends it (0: none), and wants exit code 0 */

void http_open(struct http *h, int port);
bool http_try_open(struct http *h, int port); /* false: nobody listens */
void http_close(struct http *h);
void http_send(struct http *h, const char *text);
/* POST of a chat completion; headers: more of them, each with its line's end, or "". */
void http_post(struct http *h, const char *headers, const char *body);
void http_get(struct http *h, const char *path, const char *headers);

/* A whole reply. */
struct http_reply http_take(struct http *h);
/* The head of a stream; then its pieces, without "data: " and the empty line. The result lives until the next call. */
struct http_reply http_take_head(struct http *h);
const char *http_take_piece(struct http *h);
bool http_ends(struct http *h); /* the other side hangs up within 5 s, whatever it says before */

/* What an answer says: the whole, or the rest of a stream put together, up to [DONE]. The caller's. */
char *http_text(const char *body, int choice);
char *http_stream_text(struct http *h, int choice);

#endif
