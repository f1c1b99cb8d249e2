/* client/cmd_gateway.c - `winnow gateway`: its options and its file of keys; the rest is in gateway.h. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/address.h"
#include "client/cli.h"
#include "client/gateway.h"

#define KEYS_BYTES_MAX ((size_t)1 << 20)
#define KEY_CHARS_MIN  16

static const char usage[] = "Usage: winnow gateway [OPTION]...\n"
                            "OpenAI's HTTP interface in front of a service, until SIGTERM: POST "
                            "/v1/chat/completions, GET /v1/models, /health,\n"
                            "/metrics, /version. It speaks plain HTTP: a reverse proxy adds TLS.";
static const struct cli_opt opts[] = {
    {"host", "ADDRESS", "where it listens [127.0.0.1]"},
    {"port", "N", "0: any [8000]"},
    {"api-key", "FILE", "of mode 0600, with a key in each line: who asks must show one"},
    {"insecure", NULL, "without keys even where other machines can reach it"},
    {"max-connections", "N", "at a time [512]"},
    {"max-connections-per-address", "N", "of them from one address; 0: no bound of its own [0]"},
    {"max-request-bytes", "N", "of one request's body, pictures in base64 included [33554432]"},
    {"idle-timeout", "S", "a connection without a byte is closed, also one whose reader takes none [60]"},
    {"request-timeout", "S", "until a request has arrived whole [300]"},
    {"reconnect-timeout", "S", "how long requests wait for a service that went away [30]"},
    {"shutdown-timeout", "S", "how long SIGTERM lets requests go on [60]"},
    CLI_ENDPOINT_OPT,
    {NULL, NULL, NULL},
};
enum {
    O_HOST,
    O_PORT,
    O_API_KEY,
    O_INSECURE,
    O_CONNECTIONS,
    O_PER_ADDRESS,
    O_BODY,
    O_IDLE,
    O_ARRIVE,
    O_AWAY,
    O_DRAIN,
    O_ENDPOINT
};

struct gateway_cmd {
    struct gateway_opts o;
    const char *key_file, *endpoint;
    bool insecure;
};

static bool take_option(void *ctx, int option, const char *value)
{
    struct gateway_cmd *c = ctx;
    uint32_t port = 0;
    bool good;

    switch (option) {
    case O_HOST: c->o.host = value; return true;
    case O_PORT:
        good = cli_u32("port", value, 65535, &port);
        c->o.port = (uint16_t)port;
        return good;
    case O_API_KEY: c->key_file = value; return true;
    case O_INSECURE: c->insecure = true; return true;
    case O_CONNECTIONS: return cli_count("max-connections", value, 65536, &c->o.connections);
    case O_PER_ADDRESS: return cli_u32("max-connections-per-address", value, 65536, &c->o.per_address);
    case O_BODY: return cli_count("max-request-bytes", value, (uint32_t)384 << 20, &c->o.body_bytes);
    case O_IDLE: return cli_count("idle-timeout", value, 86400, &c->o.idle_s);
    case O_ARRIVE: return cli_count("request-timeout", value, 86400, &c->o.arrive_s);
    case O_AWAY: return cli_u32("reconnect-timeout", value, 86400 * 30, &c->o.away_s);
    case O_DRAIN: return cli_u32("shutdown-timeout", value, 86400, &c->o.drain_s);
    case O_ENDPOINT: c->endpoint = value; return true;
    default:
        fprintf(stderr, "winnow: unexpected argument '%.60s'\n", value);
        return false;
    }
}

static bool is_private(const char *path)
{
    struct stat st;

    if (stat(path, &st) != 0 || !S_ISREG(st.st_mode) || (st.st_mode & 077) == 0)
        return true; /* or reading it fails */
    fprintf(stderr, "winnow: --api-key %s: others can read it: chmod 600\n", path);
    return false;
}

static bool add_key(struct gateway_opts *o, const char *key, size_t n)
{
    uint8_t(*more)[WN_SHA256_BYTES] = realloc(o->keys, (o->keys_n + 1) * sizeof(*o->keys));

    if (more) o->keys = more;
    if (!more || o->keys_n == GATEWAY_KEYS_MAX || n < KEY_CHARS_MIN) {
        fprintf(stderr, "winnow: --api-key: key %zu %s\n", o->keys_n + 1,
                n < KEY_CHARS_MIN ? "has fewer than 16 characters" : "is one too many");
        return false;
    }
    wn_sha256(o->keys[o->keys_n++], key, n);
    return true;
}

/* One key a line; only hashes are kept. */
static bool read_keys(struct gateway_opts *o, const char *path)
{
    char *text;
    bool good = true;
    size_t n;

    if (!is_private(path) || !(text = cli_read_file(path, KEYS_BYTES_MAX, &n))) return false;
    for (size_t at = 0; good && at < n;) {
        const char *end = memchr(text + at, '\n', n - at);
        size_t line = end ? (size_t)(end - text) - at : n - at, key = line;
        while (key > 0 && (text[at + key - 1] == '\r' || text[at + key - 1] == ' ')) key--;
        if (key > 0) good = add_key(o, text + at, key);
        at += line + 1;
    }
    if (good && o->keys_n == 0) {
        fprintf(stderr, "winnow: --api-key %s: it has no key\n", path);
        good = false;
    }
    memset(text, 0, n);
    free(text);
    return good;
}

int cmd_gateway(int argc, char **argv)
{
    struct gateway_cmd c = {.o = {.host = "127.0.0.1",
                                  .port = 8000,
                                  .connections = 512,
                                  .body_bytes = 32 << 20,
                                  .idle_s = 60,
                                  .arrive_s = 300,
                                  .away_s = 30,
                                  .drain_s = 60}};
    struct cli_args args = {.argc = argc, .argv = argv, .opts = opts, .usage = usage};
    struct wn_err err = {0};
    int code;

    if ((code = cli_take(&args, take_option, &c)) >= 0) return code;
    if (c.key_file && !read_keys(&c.o, c.key_file)) {
        free(c.o.keys);
        return CLI_USAGE;
    }
    if (!c.o.keys_n && !c.insecure && !wn_host_is_local(c.o.host) && strcmp(c.o.host, "::1") != 0) {
        fprintf(stderr, "winnow: --host %.100s is not on this machine: give --api-key FILE, or say --insecure\n",
                c.o.host);
        return CLI_USAGE;
    }
    c.o.endpoint = cli_endpoint(c.endpoint);
    if (gateway_run(&c.o, &err) == WN_OK)
        code = CLI_OK;
    else
        fprintf(stderr, "winnow: %s\n", err.text);
    free(c.o.keys);
    return code < 0 ? CLI_FAILED : code;
}
