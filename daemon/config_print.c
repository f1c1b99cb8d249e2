/* daemon/config_print.c - options as text: help, YAML, flags for a child process, versions. */
#include <ctype.h>
#include <jansson.h>
#include <mpi.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>
#include <zmq.h>

#include "daemon/config.h"
#include "proto/winnow.pb-c.h"
#include "winnow_version.h"

#define HELP_COLUMN 32

/* The value as it would be written in a flag. */
static void value_text(const struct wn_config *c, const struct wn_option *o, char *out, size_t size)
{
    const void *field = (const char *)c + o->offset;

    switch (o->type) {
    case WN_OPT_BOOL: snprintf(out, size, "%s", *(const bool *)field ? "true" : "false"); break;
    case WN_OPT_U32: snprintf(out, size, "%u", *(const uint32_t *)field); break;
    case WN_OPT_U64: snprintf(out, size, "%llu", (unsigned long long)*(const uint64_t *)field); break;
    case WN_OPT_FLOAT: snprintf(out, size, "%.9g", *(const float *)field); break;
    case WN_OPT_TEXT: snprintf(out, size, "%s", (const char *)field); break;
    case WN_OPT_CHOICE: {
        const char *at = o->choices;
        for (uint32_t i = *(const uint32_t *)field; i > 0; i--) at += strcspn(at, "|") + 1;
        snprintf(out, size, "%.*s", (int)strcspn(at, "|"), at);
        break;
    }
    }
}

static const char *group_title(enum wn_option_group group)
{
    switch (group) {
    case WN_OPTIONS_MODEL: return "Model and layout";
    case WN_OPTIONS_PRUNING: return "Images and pruning";
    case WN_OPTIONS_SERVER: return "Server";
    case WN_OPTIONS_CLUSTER: return "Cluster";
    case WN_OPTIONS_KEYS: return "Keys";
    case WN_OPTIONS_ROLES: return "Roles (winnow serve sets these)";
    case WN_OPTIONS_PLAN: return "The prompt and the device";
    case WN_OPTIONS_PRUNE: return "The picture";
    case WN_OPTIONS_BENCH_LINK: return "Messages";
    case WN_OPTIONS_OUTPUT: return "Output";
    case WN_OPTIONS_GENERAL: break;
    }
    return "General";
}

void wn_config_help(FILE *f, const char *usage, unsigned groups)
{
    const struct wn_option *before = NULL;

    fprintf(f, "Usage: %s\n", usage);
    for (const struct wn_option *o = wn_options; o < wn_options + wn_options_n; o++) {
        char left[80];
        int n = 0;
        if (!(o->group & (groups | WN_OPTIONS_GENERAL))) continue;
        if (!before || before->group != o->group) fprintf(f, "\n%s\n", group_title(o->group));
        before = o;
        if (o->short_name)
            n = snprintf(left, sizeof(left), "%s%s, ", strlen(o->short_name) > 2 ? "--" : "-", o->short_name);
        n += snprintf(left + n, sizeof(left) - (size_t)n, "--%s", o->name);
        if (o->value) n += snprintf(left + n, sizeof(left) - (size_t)n, " %s", o->value);
        if (n > HELP_COLUMN) fprintf(f, "  %s\n  %*s %s", left, HELP_COLUMN, "", o->help);
        else fprintf(f, "  %-*s %s", HELP_COLUMN, left, o->help);
        if (o->choices) fprintf(f, " (%s)", o->choices);
        if (o->value && o->def[0]) fprintf(f, " [%s]", o->def);
        fputc('\n', f);
    }
    fputs("\nIn brackets: the default. Sizes take K, M or G: --image-bytes-max 64M. Each option is also a key of the\n"
          "YAML file and, as WINNOW_MAX_QUEUE for --max-queue, an environment variable. A flag goes before the\n"
          "environment, the environment before the file. Options of other commands are taken and change nothing.\n",
          f);
}

void wn_config_print(FILE *f, const struct wn_config *c)
{
    static const char *const from[] = {"default", "file", "environment", "flag"};

    for (size_t i = 0; i < wn_options_n; i++) {
        const struct wn_option *o = &wn_options[i];
        char value[WN_PATH_LEN];
        if (o->early) continue;
        value_text(c, o, value, sizeof(value));
        fprintf(f, "%s: ", o->name);
        if (o->type == WN_OPT_TEXT) {
            fputc('\'', f);
            for (const char *p = value; *p; p++) fprintf(f, *p == '\'' ? "''" : "%c", *p);
            fputc('\'', f);
        } else {
            fputs(value, f);
        }
        fprintf(f, " # %s\n", from[c->source[i]]);
    }
}

wn_status wn_config_flags(const struct wn_config *c, char ***out, size_t *out_n, size_t extra_n, struct wn_err *err)
{
    char value[WN_PATH_LEN];
    size_t places = wn_options_n + extra_n + 1, text_bytes = wn_options_n * (WN_PATH_LEN + WN_NAME_LEN), n = 0;
    char **flags = calloc(1, places * sizeof(char *) + text_bytes), *at;

    if (!flags) return wn_fail(err, WN_ENOMEM, "flags of a child process");
    at = (char *)(flags + places);
    for (size_t i = 0; i < wn_options_n; i++) {
        if (wn_options[i].early || c->source[i] == WN_FROM_DEFAULT) continue;
        value_text(c, &wn_options[i], value, sizeof(value));
        flags[n++] = at;
        at += snprintf(at, WN_PATH_LEN + WN_NAME_LEN, "--%s=%s", wn_options[i].name, value) + 1;
    }
    *out = flags;
    *out_n = n;
    return WN_OK;
}

void wn_version_print(FILE *f, const char *program)
{
    char mpi[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    int major, minor, patch, n = 0;

    fprintf(f, "%s %s (commit %s)\n", program, WN_VERSION, WN_COMMIT);
    if (MPI_Get_library_version(mpi, &n) == MPI_SUCCESS)
        fprintf(f, "MPI         %.*s\n", (int)strcspn(mpi, ",\n"), mpi);
    zmq_version(&major, &minor, &patch);
    fprintf(f, "ZeroMQ      %d.%d.%d\n", major, minor, patch);
    fprintf(f, "protobuf-c  %s\n", protobuf_c_version());
    fprintf(f, "libyaml     %s\n", yaml_get_version_string());
    fprintf(f, "jansson     %s\n", jansson_version_str());
    fprintf(f, "libsodium   %s\n", sodium_version_string());
    fprintf(f, "compiler    %s\n", __VERSION__);
}
