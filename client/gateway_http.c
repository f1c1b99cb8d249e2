/* client/gateway_http.c - the HTTP side of the gateway: routes, keys, bodies under limits, replies; see gateway.h. */
#include <errno.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "base/log.h"
#include "client/gateway.h"

#define BODIES_MAX   8     /* of the largest, on their way at a time */
#define SEND_BYTES   65536 /* of the kernel for a reader, who is slow if he leaves more */
#define BLOCK_BYTES  16384 /* of a stream at a time */
#define MEMORY_BYTES 32768 /* of MHD for a connection: its request's line and headers */
#define BODY_FIRST   ((size_t)16 << 10)
#define RETRY_FULL_S 1

struct gateway_route {
    const char *method, *path;
    enum MHD_Result (*run)(struct gateway_request *r);
    bool open; /* for everybody, also without a key */
};

/* ---- replies ---- */

static const struct {
    int status;
    const char *type, *code;
} kinds[] = {
    {400, "invalid_request_error", "invalid_request"},
    {401, "invalid_request_error", "invalid_api_key"},
    {404, "not_found_error", "not_found"},
    {405, "invalid_request_error", "method_not_allowed"},
    {413, "invalid_request_error", "too_large"},
    {415, "invalid_request_error", "unsupported_media_type"},
    {429, "rate_limit_error", "busy"},
    {499, "cancelled_error", "cancelled"},
    {503, "service_unavailable_error", "unavailable"},
    {504, "timeout_error", "deadline_passed"},
    {500, "server_error", "failed"}, /* and all others */
};

json_t *gateway_error_json(int status, const char *param, const char *text)
{
    size_t i = 0;

    while (i + 1 < sizeof(kinds) / sizeof(kinds[0]) && kinds[i].status != status) i++;
    return chat_error_json(text, kinds[i].type, param, status == 404 && param ? "model_not_found" : kinds[i].code);
}

static enum MHD_Result queue(struct gateway_request *r, int status, struct MHD_Response *response, uint32_t retry_s)
{
    enum MHD_Result queued;
    char text[16];

    if (!response) return MHD_NO;
    snprintf(text, sizeof(text), "%u", retry_s);
    if (retry_s) MHD_add_response_header(response, "Retry-After", text);
    if (status == 401) MHD_add_response_header(response, "WWW-Authenticate", "Bearer");
    if (status == 405) MHD_add_response_header(response, "Allow", r->route->method);
    if (r->g->draining) MHD_add_response_header(response, "Connection", "close");
    queued = MHD_queue_response(r->http, (unsigned)status, response);
    MHD_destroy_response(response);
    r->replied = queued == MHD_YES;
    return queued;
}

static enum MHD_Result reply_text(struct gateway_request *r, int status, char *text, const char *type,
                                  uint32_t retry_s)
{
    struct MHD_Response *response =
        text ? MHD_create_response_from_buffer(strlen(text), text, MHD_RESPMEM_MUST_FREE) : NULL;

    if (!response)
        free(text);
    else
        MHD_add_response_header(response, "Content-Type", type);
    return queue(r, status, response, retry_s);
}

enum MHD_Result gateway_reply_json(struct gateway_request *r, int status, json_t *o, uint32_t retry_s)
{
    char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;

    json_decref(o);
    return reply_text(r, status, text, "application/json", retry_s);
}

enum MHD_Result gateway_reply_error(struct gateway_request *r, int status, const char *param, const char *text,
                                    uint32_t retry_s)
{
    return gateway_reply_json(r, status, gateway_error_json(status, param, text), retry_s);
}

static ssize_t read_out(void *cls, uint64_t at, char *to, size_t max)
{
    struct gateway_request *r = cls;
    const size_t left = r->out_n - r->out_at, n = left < max ? left : max;
    (void)at;

    if (r->gone) return MHD_CONTENT_READER_END_WITH_ERROR;
    if (n == 0 && r->out_ends) return MHD_CONTENT_READER_END_OF_STREAM;
    if (n == 0)
        gateway_suspend(r);
    else
        memcpy(to, r->out + r->out_at, n);
    r->out_at += n;
    return (ssize_t)n;
}

enum MHD_Result gateway_reply_stream(struct gateway_request *r)
{
    struct MHD_Response *response =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, BLOCK_BYTES, read_out, r, NULL);

    if (response) {
        MHD_add_response_header(response, "Content-Type", "text/event-stream");
        MHD_add_response_header(response, "Cache-Control", "no-cache");
        MHD_add_response_header(response, "X-Accel-Buffering", "no"); /* nginx would hold pieces back */
    }
    return queue(r, 200, response, 0);
}

/* ---- the small routes ---- */

static enum MHD_Result run_models(struct gateway_request *r)
{
    const struct gateway_service *s = &r->g->service;
    json_t *list = s->model[0] ? json_pack("[{s:o, s:s, s:i, s:s}]", "id", chat_text_json(s->model), "object",
                                           "model", "created", 0, "owned_by", "winnow")
                               : json_array();

    return gateway_reply_json(r, 200, json_pack("{s:s, s:o}", "object", "list", "data", list), 0);
}

/* For whoever decides where requests go: a word, and no names of ours. */
static enum MHD_Result run_health(struct gateway_request *r)
{
    const struct gateway_service *s = &r->g->service;
    const char *word = s->ready ? "ready" : s->answers ? "not ready" : "no answer";

    return gateway_reply_json(r, s->ready ? 200 : 503, json_pack("{s:s}", "status", word), 0);
}

static enum MHD_Result run_version(struct gateway_request *r)
{
    return gateway_reply_json(r, 200, json_pack("{s:s}", "version", winnow_version()), 0);
}

static enum MHD_Result run_metrics(struct gateway_request *r)
{
    char *text = gateway_watch_metrics(r->g->watch);

    if (!text) return gateway_reply_error(r, 503, NULL, r->g->service.why, 0);
    return reply_text(r, 200, text, "text/plain; version=0.0.4", 0);
}

static const struct gateway_route routes[] = {
    {"POST", CHAT_URL, gateway_chat_begin, false}, {"GET", "/v1/models", run_models, false},
    {"GET", "/health", run_health, true},          {"GET", "/metrics", run_metrics, false},
    {"GET", "/version", run_version, false},
};

/* ---- a request arrives ---- */

static void refuse(struct gateway_request *r, int status, const char *text)
{
    if (r->refused) return;
    r->refused = status;
    snprintf(r->refused_text, sizeof(r->refused_text), "%s", text);
}

/* Compares hashes, and with all of them, so that the time says nothing about the key. */
static bool may_enter(const struct gateway *g, const char *authorization)
{
    uint8_t hash[WN_SHA256_BYTES];
    bool found = g->opts.keys_n == 0;

    if (found || !authorization || strncasecmp(authorization, "Bearer ", 7) != 0) return found;
    wn_sha256(hash, authorization + 7, strlen(authorization + 7));
    for (size_t i = 0; i < g->opts.keys_n; i++) found |= sodium_memcmp(hash, g->opts.keys[i], sizeof(hash)) == 0;
    return found;
}

static const char *header(struct gateway_request *r, const char *name)
{
    return MHD_lookup_connection_value(r->http, MHD_HEADER_KIND, name);
}

/* A page of another site may have its reader's browser post here, but not with this type unless we agreed. */
static bool is_json(const char *type)
{
    static const char want[] = "application/json";
    const size_t n = sizeof(want) - 1;

    return type && strncasecmp(type, want, n) == 0 && (!type[n] || type[n] == ';' || type[n] == ' ');
}

/* What line and headers say against it. */
static void admit(struct gateway_request *r, const char *method, const char *path)
{
    const bool get = strcmp(method, "GET") == 0 || strcmp(method, "HEAD") == 0;
    const char *length = header(r, "Content-Length");
    bool known = false;

    for (size_t i = 0; i < sizeof(routes) / sizeof(routes[0]) && !known; i++) {
        if (strcmp(path, routes[i].path) != 0) continue;
        r->route = &routes[i];
        known = strcmp(get ? "GET" : method, routes[i].method) == 0;
    }
    if (!(r->route && r->route->open) && !may_enter(r->g, header(r, "Authorization")))
        refuse(r, 401, "no API key, or one that is not known: Authorization: Bearer KEY");
    if (!r->route)
        refuse(r, 404, "there is nothing at this path");
    else if (!known)
        refuse(r, 405, "this path has another method");
    if (r->route && !get && !is_json(header(r, "Content-Type")))
        refuse(r, 415, "Content-Type is not application/json");
    if (length && strtoull(length, NULL, 10) > r->g->opts.body_bytes) {
        snprintf(r->refused_text, sizeof(r->refused_text), "the body has %.20s bytes; at most %u are allowed", length,
                 r->g->opts.body_bytes);
        r->refused = 413;
    }
    if (r->g->draining) refuse(r, 503, "the gateway is about to end");
}

static void drop_body(struct gateway_request *r)
{
    r->g->bodies -= r->body_room;
    free(r->body);
    r->body = NULL;
    r->body_n = r->body_room = 0;
}

/* false: it goes on and on. What is refused is read to its end, or its sender would not see why. */
static bool take_body(struct gateway_request *r, const char *data, size_t bytes)
{
    const size_t max = r->g->opts.body_bytes;
    size_t room = r->body_room ? r->body_room : BODY_FIRST;
    char *more;

    if (r->body_n + bytes > max) refuse(r, 413, "the body has more bytes than are allowed");
    while (room < r->body_n + bytes) room *= 2;
    if (!r->refused && room > r->body_room && r->g->bodies + room - r->body_room > BODIES_MAX * max)
        refuse(r, 503, "too many requests are on their way at a time");
    if (!r->refused && room > r->body_room) {
        if ((more = realloc(r->body, room)) != NULL) {
            r->g->bodies += room - r->body_room;
            r->body = more;
            r->body_room = room;
        } else {
            refuse(r, 503, "out of memory");
        }
    }
    if (!r->refused) memcpy(r->body + r->body_n, data, bytes);
    r->body_n += bytes;
    return r->body_n <= 2 * max;
}

static struct gateway_request *request_open(struct gateway *g, struct MHD_Connection *http)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(http, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    struct gateway_request *r = info && info->socket_context ? calloc(1, sizeof(*r)) : NULL;

    if (!r) return NULL;
    r->g = g;
    r->http = http;
    r->conn = info->socket_context;
    r->next = g->requests;
    r->link = &g->requests;
    if (r->next) r->next->link = &r->next;
    g->requests = r;
    return r;
}

static enum MHD_Result handle(void *cls, struct MHD_Connection *http, const char *path, const char *method,
                              const char *version, const char *data, size_t *bytes, void **context)
{
    struct gateway_request *r = *context;
    size_t n = *bytes;
    (void)version;

    if (!r) {
        if (!(r = *context = request_open(cls, http))) return MHD_NO;
        admit(r, method, path);
        if (r->refused == 413) return gateway_reply_error(r, 413, NULL, r->refused_text, 0);
        return MHD_YES;
    }
    *bytes = 0;
    if (r->gone) return MHD_NO;
    if (n > 0) return take_body(r, data, n) ? MHD_YES : MHD_NO;
    r->conn->busy = true;
    if (r->refused)
        return gateway_reply_error(r, r->refused, NULL, r->refused_text, r->refused == 503 ? RETRY_FULL_S : 0);
    return r->route->run(r);
}

static void completed(void *cls, struct MHD_Connection *http, void **context, enum MHD_RequestTerminationCode why)
{
    struct gateway_request *r = *context;
    struct gateway *g = cls;
    (void)http;
    (void)why;

    if (!r) return;
    gateway_chat_drop(r);
    drop_body(r);
    if (r->watched) epoll_ctl(g->epoll, EPOLL_CTL_DEL, r->conn->fd, NULL);
    r->conn->busy = false;
    r->conn->since_us = wn_now_us();
    *r->link = r->next;
    if (r->next) r->next->link = r->link;
    free(r);
    *context = NULL;
}

/* ---- connections ---- */

static void connected(void *cls, struct MHD_Connection *http, void **context, enum MHD_ConnectionNotificationCode why)
{
    struct gateway_conn *c = *context;
    struct gateway *g = cls;
    const int bytes = SEND_BYTES;

    if (why == MHD_CONNECTION_NOTIFY_STARTED) {
        if (!(c = *context = calloc(1, sizeof(*c)))) return; /* its first request is turned away */
        c->fd = MHD_get_connection_info(http, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
        c->since_us = wn_now_us();
        (void)setsockopt(c->fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
        c->next = g->conns;
        c->link = &g->conns;
        if (c->next) c->next->link = &c->next;
        g->conns = c;
    } else if (c) {
        *c->link = c->next;
        if (c->next) c->next->link = c->link;
        free(c);
        *context = NULL;
    }
}

void gateway_http_check_time(struct gateway *g)
{
    const int64_t before_us = wn_now_us() - (int64_t)g->opts.arrive_s * 1000000;

    for (struct gateway_conn *c = g->conns; c; c = c->next)
        if (!c->busy && c->since_us < before_us) shutdown(c->fd, SHUT_RDWR); /* MHD sees its end */
}

void gateway_suspend(struct gateway_request *r)
{
    struct epoll_event event = {.events = EPOLLRDHUP | EPOLLET, .data.ptr = r};

    MHD_suspend_connection(r->http);
    r->suspended = true;
    if (!r->watched) r->watched = epoll_ctl(r->g->epoll, EPOLL_CTL_ADD, r->conn->fd, &event) == 0;
}

void gateway_resume(struct gateway_request *r)
{
    if (!r->suspended) return;
    r->suspended = false;
    MHD_resume_connection(r->http);
}

void gateway_hang_up(struct gateway_request *r)
{
    r->gone = true;
    gateway_chat_drop(r);
    shutdown(r->conn->fd, SHUT_RDWR);
    gateway_resume(r);
}

static void note(void *cls, const char *format, va_list values)
{
    char text[256];
    (void)cls;

    vsnprintf(text, sizeof(text), format, values);
    text[strcspn(text, "\n")] = '\0';
    wn_debug("http", "%s", text);
}

wn_status gateway_http_start(struct gateway *g, struct wn_err *err)
{
    g->http = MHD_start_daemon(
        MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0, NULL, NULL, handle, g,
        MHD_OPTION_EXTERNAL_LOGGER, note, NULL, MHD_OPTION_LISTEN_SOCKET, g->listener, MHD_OPTION_CONNECTION_LIMIT,
        (unsigned)g->opts.connections, MHD_OPTION_PER_IP_CONNECTION_LIMIT, (unsigned)g->opts.per_address,
        MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)g->opts.idle_s, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        (size_t)MEMORY_BYTES, MHD_OPTION_NOTIFY_COMPLETED, completed, g, MHD_OPTION_NOTIFY_CONNECTION, connected, g,
        MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_SIGPIPE_HANDLED_BY_APP, 1, MHD_OPTION_END);
    if (!g->http) return wn_fail(err, WN_EIO, "libmicrohttpd does not start: %s", strerror(errno));
    return WN_OK;
}
