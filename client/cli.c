/* client/cli.c - see cli.h. */
#include "client/cli.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "proto/codec.h"

#define DEFAULT_ENDPOINT   "tcp://127.0.0.1:5599"
#define CONNECT_TIMEOUT_MS 3000
#define TRY_WAIT_MS        100

static void print_help(const struct cli_args *a)
{
    printf("%s\n\nOptions\n", a->usage);
    for (const struct cli_opt *o = a->opts; o->name; o++) {
        char left[64];
        snprintf(left, sizeof(left), "--%s%s%s", o->name, o->value ? " " : "", o->value ? o->value : "");
        printf("  %-28s %s\n", left, o->help);
    }
    printf("  %-28s %s\n", "--key FILE", "our key, made by winnow keygen; else WINNOW_KEY, else plain text");
    printf("  %-28s %s\n", "--help", "print this and exit");
}

static int bad_option(const char *arg, const struct cli_opt *opts)
{
    fprintf(stderr, "winnow: unknown option %.80s; known:", arg);
    for (; opts->name; opts++) fprintf(stderr, " --%s", opts->name);
    fputc('\n', stderr);
    return CLI_BAD;
}

/* --key FILE is every command's: the library takes it from the environment. */
static int take_key(struct cli_args *a, const char *arg)
{
    const char *file = strchr(arg, '=') ? strchr(arg, '=') + 1 : a->at < a->argc ? a->argv[a->at++] : "";

    if (!file[0]) {
        fprintf(stderr, "winnow: --key wants a value\n");
        return CLI_BAD;
    }
    setenv("WINNOW_KEY", file, 1);
    return cli_next(a);
}

int cli_next(struct cli_args *a)
{
    const char *arg;
    size_t n;

    if (a->at == 0) a->at = 1; /* the subcommand's own name */
    if (a->at >= a->argc) return CLI_END;
    arg = a->argv[a->at++];
    if (!a->plain && strcmp(arg, "--") == 0) {
        a->plain = true;
        return cli_next(a);
    }
    if (a->plain || arg[0] != '-' || !arg[1]) {
        a->value = arg;
        return CLI_PLAIN;
    }
    if (strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0) {
        print_help(a);
        return CLI_EXIT;
    }
    if (strncmp(arg, "--", 2) != 0) return bad_option(arg, a->opts);
    n = strcspn(arg + 2, "=");
    if (n == 3 && strncmp(arg + 2, "key", 3) == 0) return take_key(a, arg);
    for (int i = 0; a->opts[i].name; i++) {
        if (strlen(a->opts[i].name) != n || strncmp(a->opts[i].name, arg + 2, n) != 0) continue;
        a->value = arg[2 + n] ? arg + 3 + n : NULL;
        if (!a->opts[i].value && a->value) {
            fprintf(stderr, "winnow: --%s has no value\n", a->opts[i].name);
            return CLI_BAD;
        }
        if (a->opts[i].value && !a->value) {
            if (a->at >= a->argc) {
                fprintf(stderr, "winnow: --%s wants a value\n", a->opts[i].name);
                return CLI_BAD;
            }
            a->value = a->argv[a->at++];
        }
        return i;
    }
    return bad_option(arg, a->opts);
}

int cli_take(struct cli_args *a, bool (*take)(void *ctx, int option, const char *value), void *ctx)
{
    int option;

    while ((option = cli_next(a)) != CLI_END) {
        if (option == CLI_EXIT) return CLI_OK;
        if (option == CLI_BAD || !take(ctx, option, a->value)) return CLI_USAGE;
    }
    return -1;
}

volatile sig_atomic_t cli_stopped;

static void on_signal(int signal_number)
{
    (void)signal_number;
    cli_stopped = 1;
}

void cli_catch_signals(void)
{
    const struct sigaction action = {.sa_handler = on_signal};

    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGPIPE, &action, NULL);
}

bool cli_u32(const char *name, const char *text, uint32_t max, uint32_t *out)
{
    char *end;
    unsigned long long v;

    errno = 0;
    v = strtoull(text, &end, 10);
    if (!isdigit((unsigned char)text[0]) || *end || errno || v > max) {
        fprintf(stderr, "winnow: --%s: '%.40s' is not a whole number up to %" PRIu32 "\n", name, text, max);
        return false;
    }
    *out = (uint32_t)v;
    return true;
}

bool cli_count(const char *name, const char *text, uint32_t max, uint32_t *out)
{
    if (!cli_u32(name, text, max, out)) return false;
    if (*out == 0) fprintf(stderr, "winnow: --%s: at least 1\n", name);
    return *out > 0;
}

bool cli_float(const char *name, const char *text, float min, float max, float *out)
{
    char *end;
    const float v = strtof(text, &end); /* as the bounds are: 0.1 must not be less than 0.1f */

    if (end == text || *end || !isfinite(v) || v < min || v > max) {
        fprintf(stderr, "winnow: --%s: '%.40s' is not a number from %g to %g\n", name, text, (double)min, (double)max);
        return false;
    }
    *out = v;
    return true;
}

const char *cli_endpoint(const char *flag)
{
    const char *env = getenv("WINNOW_ENDPOINT");

    return flag ? flag : env && *env ? env : DEFAULT_ENDPOINT;
}

struct winnow *cli_connect(const char *endpoint_flag)
{
    const struct winnow_options options = {.connect_timeout_ms = CONNECT_TIMEOUT_MS};
    struct winnow *w = NULL;

    if (winnow_connect(&w, cli_endpoint(endpoint_flag), &options) != WINNOW_OK)
        fprintf(stderr, "winnow: %s\n", winnow_error(NULL));
    return w;
}

void *cli_read_file(const char *path, size_t max, size_t *bytes)
{
    FILE *f = fopen(path, "rb");
    uint8_t *data = NULL;
    size_t room = 0, n = 0;

    if (!f) {
        fprintf(stderr, "winnow: cannot open %s: %s\n", path[0] ? path : "''", strerror(errno));
        return NULL;
    }
    while (!feof(f) && !ferror(f) && n <= max) {
        if (n == room) {
            uint8_t *more = realloc(data, room = room ? room * 2 : 1 << 16);
            if (!more) break;
            data = more;
        }
        n += fread(data + n, 1, room - n, f);
    }
    if (!feof(f) || n == 0 || n > max) {
        fprintf(stderr, "winnow: cannot read %s: %s\n", path,
                ferror(f) ? strerror(errno) : n == 0 ? "it is empty" : "it is too large");
        free(data);
        data = NULL;
    }
    fclose(f);
    *bytes = n;
    return data;
}

bool cli_can_write(const char *path)
{
    const bool there = path && access(path, F_OK) == 0;
    const int fd = path ? open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666) : -1;

    if (path && fd < 0) fprintf(stderr, "winnow: cannot write %s: %s\n", path, strerror(errno));
    if (fd >= 0) close(fd);
    if (fd >= 0 && !there) unlink(path); /* it comes when there is something to write */
    return !path || fd >= 0;
}

bool cli_pruning(const char *text, char method[WINNOW_METHOD_MAX], uint32_t *keep, float *rate)
{
    const size_t n = strcspn(text, ":");

    if (n == 0 || n >= WINNOW_METHOD_MAX) {
        fprintf(stderr, "winnow: --pruning: '%.60s' is not METHOD or METHOD:K\n", text);
        return false;
    }
    memcpy(method, text, n);
    method[n] = '\0';
    *keep = 0;
    *rate = 0;
    if (!text[n]) return true;
    if (!strchr(text + n, '.')) return cli_count("pruning", text + n + 1, WN_FEATURE_ROWS_MAX, keep);
    if (!cli_float("pruning", text + n + 1, 0, 1, rate)) return false;
    if (!(*rate > 0)) *keep = WN_FEATURE_ROWS_MAX;
    return true;
}

bool cli_try(struct winnow *w, const struct winnow_request *like, const char *label, uint32_t timeout_s)
{
    const int64_t until_us = wn_deadline_in_us((int64_t)timeout_s * 1000000);
    struct winnow_request q = *like;
    struct winnow_event ev = {0};
    uint64_t job;
    int rc;

    q.prompt = "?";
    q.images_n = 0;
    q.max_tokens = 1;
    q.quiet = 1;
    while ((rc = winnow_submit(w, &q, &job)) == WINNOW_OK) {
        do rc = winnow_next(w, &ev, TRY_WAIT_MS);
        while ((rc == WINNOW_TIMEOUT || (rc == WINNOW_OK && (ev.job != job || ev.type < WINNOW_EVENT_DONE))) &&
               !wn_deadline_passed(until_us) && !cli_stopped);
        if (rc == WINNOW_OK && ev.job_id[0]) (void)!winnow_acknowledge(w, ev.job_id);
        if (rc == WINNOW_OK && ev.type == WINNOW_EVENT_DONE) return true;
        if (rc != WINNOW_OK || ev.type != WINNOW_EVENT_BUSY || wn_deadline_passed(until_us) || cli_stopped) break;
        usleep(TRY_WAIT_MS * 1000);
    }
    fprintf(stderr, "winnow: %s: %s\n", label,
            rc == WINNOW_OK && ev.text ? ev.text : rc == WINNOW_TIMEOUT ? "no answer in time" : winnow_error(w));
    return false;
}

static bool take_position(enum winnow_position *out, const char *value)
{
    if (strcmp(value, "compact") == 0) *out = WINNOW_POSITION_COMPACT;
    else if (strcmp(value, "original") == 0) *out = WINNOW_POSITION_ORIGINAL;
    else fprintf(stderr, "winnow: --position: '%.40s' is neither compact nor original\n", value);
    return *out != WINNOW_POSITION_DEFAULT;
}

bool cli_pruning_option(struct winnow_request *r, int option, const char *value)
{
    uint32_t seed;

    switch (option) {
    case 0: return cli_u32("cap", value, WN_FEATURE_ROWS_MAX, &r->pruning_cap);
    case 1: return take_position(&r->pruning_position, value);
    case 2: r->pruning_projected = 1; return true;
    case 3: r->pruning_setting = value; return true;
    case 4:
        if (!cli_u32("pruning-seed", value, UINT32_MAX, &seed)) return false;
        r->pruning_seed = seed;
        return true;
    default: r->pruning_options = value; return true;
    }
}

void cli_put_text(FILE *f, const char *text)
{
    const unsigned char *p = (const unsigned char *)text;

    if (!isatty(fileno(f))) {
        fputs(text, f);
        fflush(f);
        return;
    }
    for (; *p; p++) {
        bool c1 = p[0] == 0xc2 && p[1] >= 0x80 && p[1] < 0xa0; /* control characters of two bytes */
        if (c1) p++;
        fputc(c1 || *p == 0x7f || (*p < 0x20 && *p != '\n' && *p != '\t') ? '?' : *p, f);
    }
    fflush(f);
}

void cli_json_text(FILE *f, const char *text)
{
    fputc('"', f);
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\') fprintf(f, "\\%c", c);
        else if (c == '\n') fputs("\\n", f);
        else if (c < 0x20) fprintf(f, "\\u%04x", c);
        else fputc(c, f);
    }
    fputc('"', f);
}

void cli_json_usage(FILE *f, const struct winnow_usage *u)
{
    fprintf(f,
            "{\"prompt_tokens\": %u, \"completion_tokens\": %u, \"image_tokens\": %u, "
            "\"image_tokens_before_pruning\": %u, \"attempts\": %u, ",
            u->prompt_tokens, u->completion_tokens, u->image_tokens, u->image_tokens_before_pruning, u->attempts);
    fprintf(f,
            "\"bytes_on_wire\": {\"control\": %" PRIu64 ", \"embedding\": %" PRIu64 ", \"activation\": %" PRIu64
            ", \"allreduce\": %" PRIu64 ", \"logits\": %" PRIu64 ", \"image\": %" PRIu64 "}, ",
            u->bytes_control, u->bytes_embedding, u->bytes_activation, u->bytes_allreduce, u->bytes_logits,
            u->bytes_image);
    fprintf(f,
            "\"queue_us\": %" PRIu64 ", \"preprocess_us\": %" PRIu64 ", \"encode_us\": %" PRIu64
            ", \"prune_us\": %" PRIu64 ", \"transfer_us\": %" PRIu64 ", \"prefill_us\": %" PRIu64
            ", \"decode_us\": %" PRIu64 ", \"time_to_first_token_us\": %" PRIu64 ", \"total_us\": %" PRIu64,
            u->queue_us, u->preprocess_us, u->encode_us, u->prune_us, u->transfer_us, u->prefill_us, u->decode_us,
            u->time_to_first_token_us, u->total_us);
    fputs(", \"pruning\": {\"method\": ", f);
    cli_json_text(f, u->pruning_method);
    fprintf(f,
            ", \"keep\": %u, \"rate\": %g, \"cap\": %u, \"position\": \"%s\", \"projected\": %s, \"seed\": %" PRIu64
            ", \"setting\": ",
            u->pruning_keep, (double)u->pruning_rate, u->pruning_cap,
            u->pruning_position == WINNOW_POSITION_ORIGINAL ? "original" : "compact",
            u->pruning_projected ? "true" : "false", u->pruning_seed);
    cli_json_text(f, u->pruning_setting[0] ? u->pruning_setting : "faithful");
    fputs(", \"options\": ", f);
    cli_json_text(f, u->pruning_options);
    fprintf(f, "}, \"cached_tokens\": %u, \"vision_cache_hit\": %s, \"preemptions\": %u}", u->cached_tokens,
            u->vision_cache_hit ? "true" : "false", u->preemptions);
}

void cli_usage_line(FILE *f, const struct winnow_usage *u)
{
    const uint64_t wire = u->bytes_embedding + u->bytes_activation + u->bytes_allreduce + u->bytes_logits;

    fprintf(f, "[%u + %u tokens", u->prompt_tokens, u->completion_tokens);
    if (u->image_tokens_before_pruning)
        fprintf(f, ", %u of %u visual", u->image_tokens, u->image_tokens_before_pruning);
    fprintf(f, "; first after %.1f ms, all after %.1f ms", (double)u->time_to_first_token_us / 1e3,
            (double)u->total_us / 1e3);
    if (u->encode_us) fprintf(f, "; image %.1f ms", (double)(u->preprocess_us + u->encode_us + u->prune_us) / 1e3);
    fprintf(f, "; %.1f KiB features, %.1f KiB on all links]\n", (double)u->bytes_embedding / 1024,
            (double)wire / 1024);
}
