/* daemon/config.c - values, environment, flags and the checks between options. See config.h. */
#include "daemon/config.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/address.h"
#include "base/log.h"
#include "base/words.h"

extern char **environ;

const struct wn_option *wn_config_find(const char *name)
{
    for (size_t i = 0; i < wn_options_n; i++)
        if (strcmp(wn_options[i].name, name) == 0) return &wn_options[i];
    return NULL;
}

static wn_status set_number(const struct wn_option *o, void *field, const char *value, const char *where,
                            struct wn_err *err)
{
    uint64_t v, unit = 1;
    char *end;

    errno = 0;
    v = strtoull(value, &end, 10);
    if (!isdigit((unsigned char)value[0]) || errno != 0)
        return wn_fail(err, WN_EINVAL, "%s: '%s' is not a whole number", where, value);
    if (*end && end[1] == '\0' && o->type == WN_OPT_U64) {
        unit = *end == 'K' ? 1ull << 10 : *end == 'M' ? 1ull << 20 : *end == 'G' ? 1ull << 30 : 0;
        end++;
    }
    if (*end || unit == 0) return wn_fail(err, WN_EINVAL, "%s: '%s' is not a whole number", where, value);
    if (v > UINT64_MAX / unit || (double)(v * unit) < o->min || (double)(v * unit) > o->max)
        return wn_fail(err, WN_ELIMIT, "%s: %s is not between %.0f and %.0f", where, value, o->min, o->max);
    if (o->type == WN_OPT_U64)
        *(uint64_t *)field = v * unit;
    else
        *(uint32_t *)field = (uint32_t)v;
    return WN_OK;
}

static wn_status set_float(const struct wn_option *o, float *field, const char *value, const char *where,
                           struct wn_err *err)
{
    char *end;
    double v = strtod(value, &end);

    if (end == value || *end || isspace((unsigned char)value[0]) || !isfinite(v))
        return wn_fail(err, WN_EINVAL, "%s: '%s' is not a number", where, value);
    if (v < o->min || v > o->max)
        return wn_fail(err, WN_ELIMIT, "%s: %s is not between %g and %g", where, value, o->min, o->max);
    *field = (float)v;
    return WN_OK;
}

static wn_status set_choice(const struct wn_option *o, uint32_t *field, const char *value, const char *where,
                            struct wn_err *err)
{
    const char *at = o->choices;
    size_t n;

    for (uint32_t i = 0; at; i++) {
        n = strcspn(at, "|");
        if (strlen(value) == n && strncmp(at, value, n) == 0) {
            *field = i;
            return WN_OK;
        }
        at = at[n] ? at + n + 1 : NULL;
    }
    return wn_fail(err, WN_EINVAL, "%s: '%s' is none of %s", where, value, o->choices);
}

static wn_status set_bool(bool *field, const char *value, const char *where, struct wn_err *err)
{
    bool yes = strcmp(value, "true") == 0 || strcmp(value, "yes") == 0 || strcmp(value, "on") == 0 ||
               strcmp(value, "1") == 0;
    bool no = strcmp(value, "false") == 0 || strcmp(value, "no") == 0 || strcmp(value, "off") == 0 ||
              strcmp(value, "0") == 0;

    if (!yes && !no) return wn_fail(err, WN_EINVAL, "%s: '%s' is neither true nor false", where, value);
    *field = yes;
    return WN_OK;
}

wn_status wn_config_set(struct wn_config *c, const struct wn_option *o, const char *value, wn_config_source from,
                        const char *where, struct wn_err *err)
{
    void *field = (char *)c + o->offset;
    wn_status rc = WN_OK;

    switch (o->type) {
    case WN_OPT_BOOL: rc = set_bool(field, value, where, err); break;
    case WN_OPT_U32:
    case WN_OPT_U64: rc = set_number(o, field, value, where, err); break;
    case WN_OPT_FLOAT: rc = set_float(o, field, value, where, err); break;
    case WN_OPT_CHOICE: rc = set_choice(o, field, value, where, err); break;
    case WN_OPT_TEXT:
        if (strlen(value) >= o->size)
            return wn_fail(err, WN_ELIMIT, "%s: at most %zu characters are allowed", where, o->size - 1);
        for (const char *p = value; *p; p++)
            if (iscntrl((unsigned char)*p)) return wn_fail(err, WN_EINVAL, "%s: control character in value", where);
        memset(field, 0, o->size);
        memcpy(field, value, strlen(value));
        break;
    }
    if (rc == WN_OK) c->source[o - wn_options] = (uint8_t)from;
    return rc;
}

void wn_config_defaults(struct wn_config *c)
{
    memset(c, 0, sizeof(*c));
    for (size_t i = 0; i < wn_options_n; i++) {
        struct wn_err err = {0};
        wn_status rc = wn_config_set(c, &wn_options[i], wn_options[i].def, WN_FROM_DEFAULT, wn_options[i].name, &err);
        WN_ASSERT(rc == WN_OK); /* the table is ours */
    }
}

static wn_status read_file(struct wn_config *c, const char *path, struct wn_err *err)
{
    char *text = malloc(WN_CONFIG_FILE_MAX + 1);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    size_t bytes = 0;
    ssize_t n = 0;
    wn_status rc;

    if (!text) {
        rc = wn_fail(err, WN_ENOMEM, "%s: %zu bytes", path, WN_CONFIG_FILE_MAX);
        goto out;
    }
    if (fd < 0) {
        rc = wn_fail(err, WN_EIO, "cannot open %s: %s", path, strerror(errno));
        goto out;
    }
    while (bytes <= WN_CONFIG_FILE_MAX && (n = read(fd, text + bytes, WN_CONFIG_FILE_MAX + 1 - bytes)) > 0)
        bytes += (size_t)n;
    if (n < 0)
        rc = wn_fail(err, WN_EIO, "cannot read %s: %s", path, strerror(errno));
    else if (bytes > WN_CONFIG_FILE_MAX)
        rc = wn_fail(err, WN_ELIMIT, "%s: more than %zu bytes", path, WN_CONFIG_FILE_MAX);
    else
        rc = wn_config_read_yaml(c, path, text, bytes, err);
out:
    if (fd >= 0) close(fd);
    free(text);
    return rc;
}

/* "max-queue" -> "WINNOW_MAX_QUEUE" */
static void env_name(const struct wn_option *o, char *out, size_t size)
{
    snprintf(out, size, "WINNOW_%s", o->name);
    for (char *p = out; *p; p++) *p = *p == '-' ? '_' : (char)toupper((unsigned char)*p);
}

static wn_status read_environment(struct wn_config *c, struct wn_err *err)
{
    for (size_t i = 0; i < wn_options_n; i++) {
        char name[WN_NAME_LEN];
        const char *value;
        wn_status rc;
        env_name(&wn_options[i], name, sizeof(name));
        if (wn_options[i].early || !(value = getenv(name)) || !*value) continue;
        rc = wn_config_set(c, &wn_options[i], value, WN_FROM_ENV, name, err);
        if (rc != WN_OK) return rc;
    }
    return WN_OK;
}

static bool is_name(const char *name, const char *text, size_t n)
{
    return strlen(name) == n && strncmp(name, text, n) == 0;
}

const char *wn_config_unknown_env(size_t *at)
{
    /* of clients, of parts below this table, of bench wire for its own command */
    static const char *const others[] = {"WINNOW_ENDPOINT",     "WINNOW_KEY",         "WINNOW_CONFIG",
                                         "WINNOW_CPU_ISA",      "WINNOW_CUDA_GRAPHS", "WINNOW_CUDA_KERNELS",
                                         "WINNOW_CUDA_OVERLAP", "WINNOW_CUBLASLT",    "WINNOW_NCCL",
                                         "WINNOW_BENCH_MODEL",  "WINNOW_BENCH_SELF",  "WINNOW_WEIGHT_READS"};

    for (; environ[*at]; (*at)++) {
        const char *var = environ[*at];
        const size_t n = strcspn(var, "=");
        bool known = strncmp(var, "WINNOW_", 7) != 0;
        for (size_t i = 0; !known && i < sizeof(others) / sizeof(others[0]); i++) known = is_name(others[i], var, n);
        for (size_t i = 0; !known && i < wn_options_n; i++) {
            char name[WN_NAME_LEN];
            env_name(&wn_options[i], name, sizeof(name));
            known = !wn_options[i].early && is_name(name, var, n);
        }
        if (!known) return environ[(*at)++];
    }
    return NULL;
}

static wn_status unknown_flag(const char *arg, size_t name_len, struct wn_err *err)
{
    char name[WN_WORD_MAX];
    const char *best = NULL;
    unsigned distance = UINT_MAX;

    if (name_len >= sizeof(name)) return wn_fail(err, WN_EINVAL, "unknown option %.80s", arg);
    memcpy(name, arg, name_len);
    name[name_len] = '\0';
    for (size_t i = 0; i < wn_options_n; i++)
        if (wn_word_is_nearer(name + strspn(name, "-"), wn_options[i].name, &distance)) best = wn_options[i].name;
    if (best) return wn_fail(err, WN_EINVAL, "unknown option %s; did you mean --%s?", name, best);
    return wn_fail(err, WN_EINVAL, "unknown option %s; --help lists them", name);
}

/* The option that argv[i] names: "--long", "--long=value", "-short", "-short=value", and "--short" if it is a word.
 * *opposite: it says "--X" to an option "no-X". */
static const struct wn_option *match_flag(const char *arg, size_t *name_len, bool *opposite)
{
    size_t n = strcspn(arg, "=");
    bool is_long = strncmp(arg, "--", 2) == 0;

    *name_len = n;
    *opposite = false;
    for (size_t i = 0; i < wn_options_n; i++) {
        const char *shorter = wn_options[i].short_name;
        if (is_long && is_name(wn_options[i].name, arg + 2, n - 2)) return &wn_options[i];
        if (shorter && (!is_long || shorter[1]) && is_name(shorter, arg + (is_long ? 2 : 1), n - (is_long ? 2 : 1)))
            return &wn_options[i];
        *opposite = is_long && strncmp(wn_options[i].name, "no-", 3) == 0 && wn_options[i].type == WN_OPT_BOOL &&
                    is_name(wn_options[i].name + 3, arg + 2, n - 2);
        if (*opposite) return &wn_options[i];
    }
    return NULL;
}

/* Flags into c; with `early_only` just those that decide about the rest: --config, --help, --version. */
static wn_status read_flags(struct wn_config *c, int argc, char **argv, bool early_only, struct wn_err *err)
{
    bool only_args = false, have_model = false;

    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i], *value = NULL;
        const struct wn_option *o;
        char said[WN_NAME_LEN]; /* the flag as it was typed, without a value */
        bool opposite;
        size_t n;
        wn_status rc;

        if (!only_args && strcmp(arg, "--") == 0) {
            only_args = true;
            continue;
        }
        if (only_args || arg[0] != '-' || !arg[1]) {
            if (have_model) return wn_fail(err, WN_EINVAL, "unexpected argument '%.80s'", arg);
            have_model = true;
            if (early_only) continue;
            if ((rc = wn_config_set(c, wn_config_find("model"), arg, WN_FROM_FLAG, "MODEL", err)) != WN_OK) return rc;
            continue;
        }
        if (!(o = match_flag(arg, &n, &opposite))) return unknown_flag(arg, n, err);
        if (opposite && arg[n] == '=') {
            return wn_fail(err, WN_EINVAL, "%.*s has no value; --%s is its opposite", (int)n, arg, o->name);
        } else if (opposite) {
            value = "false";
        } else if (arg[n] == '=') {
            value = arg + n + 1;
        } else if (o->type == WN_OPT_BOOL) {
            value = "true";
        } else if (++i < argc) {
            value = argv[i];
        } else {
            return wn_fail(err, WN_EINVAL, "%s wants a value", arg);
        }
        if (early_only && !o->early) continue;
        snprintf(said, sizeof(said), "%.*s", (int)n, arg);
        if ((rc = wn_config_set(c, o, value, WN_FROM_FLAG, said, err)) != WN_OK) return rc;
    }
    return WN_OK;
}

wn_status wn_config_check_reach(const struct wn_config *c, struct wn_err *err)
{
    const char *const names[] = {"host", "scheduler-endpoint", "features-endpoint"};
    const char *const values[] = {c->host, c->scheduler_endpoint, c->features_endpoint};

    if (c->keys[0] || c->insecure) return WN_OK;
    for (int i = 0; i < 3; i++) {
        if (!values[i][0] || (i == 0 ? wn_host_is_local(values[i]) : wn_address_is_local(values[i]))) continue;
        return wn_fail(err, WN_EINVAL,
                       "--%s %s is not on this machine: give --keys DIR (winnow keygen DIR makes them), or say "
                       "--insecure",
                       names[i], values[i]);
    }
    return WN_OK;
}

static wn_status check_together(const struct wn_config *c, struct wn_err *err)
{
    wn_status rc;

    if (c->lease_ms < 2 * c->heartbeat_ms)
        return wn_fail(err, WN_EINVAL, "--lease-ms (%u) must be at least twice --heartbeat-ms (%u)", c->lease_ms,
                       c->heartbeat_ms);
    if (!c->host[0]) return wn_fail(err, WN_EINVAL, "--host: no address is named");
    if ((rc = wn_config_check_reach(c, err)) != WN_OK) return rc;
    if (c->image_keep_tokens && c->image_pruning_rate > 0)
        return wn_fail(err, WN_EINVAL, "--image-keep-tokens and --image-pruning-rate exclude each other");
    return WN_OK;
}

wn_status wn_config_parse(struct wn_config *c, int argc, char **argv, struct wn_err *err)
{
    wn_status rc;

    wn_config_defaults(c);
    if ((rc = read_flags(c, argc, argv, true, err)) != WN_OK) return rc;
    if (c->help || c->version) return WN_OK;
    if (!c->config[0] && getenv("WINNOW_CONFIG")) {
        rc = wn_config_set(c, wn_config_find("config"), getenv("WINNOW_CONFIG"), WN_FROM_ENV, "WINNOW_CONFIG", err);
        if (rc != WN_OK) return rc;
    }
    if (!c->config[0] && c->source[wn_config_find("config") - wn_options] != WN_FROM_DEFAULT)
        return wn_fail(err, WN_EINVAL, "--config: no file is named");
    if (c->config[0] && (rc = read_file(c, c->config, err)) != WN_OK) return rc;
    if ((rc = read_environment(c, err)) != WN_OK) return rc;
    if ((rc = read_flags(c, argc, argv, false, err)) != WN_OK) return rc;
    return check_together(c, err);
}

/* A misspelt variable would be no setting at all, and nobody would know. */
static void warn_environment(void)
{
    size_t at = 0;

    for (const char *var; (var = wn_config_unknown_env(&at)) != NULL;)
        fprintf(stderr, "winnow: %.*s in the environment is no option: it changes nothing\n",
                (int)strcspn(var, "="), var);
}

int wn_config_start(struct wn_config *c, int argc, char **argv, const char *usage, unsigned groups)
{
    struct wn_err err = {0};

    if (wn_config_parse(c, argc, argv, &err) != WN_OK) {
        fprintf(stderr, "winnow: %s\n", err.text);
        return err.code == WN_EIO ? 1 : 2;
    }
    wn_log_max = (wn_log_level)c->log_level;
    if (!c->run_dir[0]) warn_environment(); /* the parts of a service were started by one that has said it */
    if (c->help) wn_config_help(stdout, usage, groups);
    if (c->version) wn_version_print(stdout, "winnowd");
    if (c->print_config) wn_config_print(stdout, c);
    if (c->check_config && !c->print_config) puts("the configuration is good");
    return c->help || c->version || c->print_config || c->check_config ? 0 : -1;
}
