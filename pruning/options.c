/* pruning/options.c - numbers of single methods, as text: "neighbours=16,anchors=0.2". */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pruning/prune.h"

#define WHOLE_MAX 65536

static const struct option {
    const char *name;
    size_t offset;
    bool share; /* a double from 0 to 1; else a uint32_t */
} options[] = {
    {"neighbours", offsetof(struct wn_prune_options, neighbours), false},
    {"contextual", offsetof(struct wn_prune_options, contextual), false},
    {"important", offsetof(struct wn_prune_options, important), true},
    {"anchors", offsetof(struct wn_prune_options, anchors), true},
    {"object-layer", offsetof(struct wn_prune_options, object_layer), false},
};
#define OPTIONS_N (sizeof(options) / sizeof(options[0]))

static const struct option *find(const char *name, size_t n)
{
    for (size_t i = 0; i < OPTIONS_N; i++)
        if (strlen(options[i].name) == n && strncmp(options[i].name, name, n) == 0)
            return &options[i];
    return NULL;
}

static wn_status unknown(const char *text, size_t n, struct wn_err *err)
{
    char known[128] = "";

    for (size_t i = 0, at = 0; i < OPTIONS_N && at < sizeof(known); i++)
        at += (size_t)snprintf(known + at, sizeof(known) - at, "%s%s", i ? ", " : "", options[i].name);
    return wn_fail(err, WN_EINVAL, "pruning option '%.*s' is not known; known: %s", n < 40 ? (int)n : 40, text,
                   known);
}

wn_status wn_prune_options_parse(struct wn_prune_options *out, const char *text, struct wn_err *err)
{
    struct wn_prune_options all = {0};

    while (text && *text) {
        const size_t n = strcspn(text, "=,");
        const struct option *o = find(text, n);
        const char *value = text + n + 1;
        double v;
        char *end;

        if (!o) return unknown(text, n, err);
        if (text[n] != '=') return wn_fail(err, WN_EINVAL, "pruning option '%s' has no value", o->name);
        v = strtod(value, &end);
        if (end == value || (*end && *end != ',') || !(v >= 0 && v <= (o->share ? 1 : WHOLE_MAX)) ||
            (!o->share && v != (double)(uint32_t)v))
            return wn_fail(err, WN_EINVAL, "pruning option '%s' is no %s from 0 to %d", o->name,
                           o->share ? "number" : "whole number", o->share ? 1 : WHOLE_MAX);
        if (o->share)
            memcpy((char *)&all + o->offset, &v, sizeof(v));
        else
            memcpy((char *)&all + o->offset, &(uint32_t){(uint32_t)v}, sizeof(uint32_t));
        text = *end ? end + 1 : end;
    }
    *out = all;
    return WN_OK;
}
