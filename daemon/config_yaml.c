/* daemon/config_yaml.c - the configuration file: one flat mapping of option names to scalars. */
#include <stdio.h>
#include <string.h>
#include <yaml.h>

#include "daemon/config.h"

/* Where the reader is: `key` is the option whose value comes next. */
struct reader {
    struct wn_config *c;
    const char *file;
    const struct wn_option *key;
    bool in_map, seen[WN_CONFIG_OPTIONS_MAX];
};

static wn_status take_key(struct reader *r, const char *name, size_t line, struct wn_err *err)
{
    const struct wn_option *o = wn_config_find(name);

    if (!o || o->early) return wn_fail(err, WN_EINVAL, "%s:%zu: unknown key '%.80s'", r->file, line, name);
    if (r->seen[o - wn_options]) return wn_fail(err, WN_EINVAL, "%s:%zu: %s comes twice", r->file, line, o->name);
    r->seen[o - wn_options] = true;
    r->key = o;
    return WN_OK;
}

static wn_status take_scalar(struct reader *r, const yaml_event_t *ev, struct wn_err *err)
{
    const char *text = (const char *)ev->data.scalar.value;
    const size_t line = ev->start_mark.line + 1;
    char where[WN_TEXT_LEN];
    const struct wn_option *o = r->key;

    if (!r->in_map) return wn_fail(err, WN_EINVAL, "%s:%zu: lines must be 'key: value'", r->file, line);
    if (strlen(text) != ev->data.scalar.length)
        return wn_fail(err, WN_EFORMAT, "%s:%zu: zero character in text", r->file, line);
    if (!o) return take_key(r, text, line, err);
    r->key = NULL;
    snprintf(where, sizeof(where), "%.160s:%zu: %s", r->file, line, o->name);
    return wn_config_set(r->c, o, text, WN_FROM_FILE, where, err);
}

static wn_status take_event(struct reader *r, const yaml_event_t *ev, struct wn_err *err)
{
    const size_t line = ev->start_mark.line + 1;

    switch (ev->type) {
    case YAML_MAPPING_START_EVENT:
        if (r->in_map) return wn_fail(err, WN_EINVAL, "%s:%zu: a mapping inside another", r->file, line);
        r->in_map = true;
        return WN_OK;
    case YAML_MAPPING_END_EVENT: r->in_map = false; return WN_OK;
    case YAML_SCALAR_EVENT: return take_scalar(r, ev, err);
    case YAML_SEQUENCE_START_EVENT:
        return wn_fail(err, WN_EINVAL, "%s:%zu: a list; values are plain here", r->file, line);
    case YAML_ALIAS_EVENT: return wn_fail(err, WN_EINVAL, "%s:%zu: aliases are not taken", r->file, line);
    default: return WN_OK;
    }
}

wn_status wn_config_read_yaml(struct wn_config *c, const char *file, const void *text, size_t bytes,
                              struct wn_err *err)
{
    struct reader r = {.c = c, .file = file};
    yaml_parser_t parser;
    wn_status rc = WN_OK;
    bool end = false;

    if (bytes > WN_CONFIG_FILE_MAX)
        return wn_fail(err, WN_ELIMIT, "%s: more than %zu bytes", file, WN_CONFIG_FILE_MAX);
    if (!yaml_parser_initialize(&parser)) return wn_fail(err, WN_ENOMEM, "%s: YAML parser", file);
    yaml_parser_set_input_string(&parser, text, bytes);
    yaml_parser_set_encoding(&parser, YAML_UTF8_ENCODING);
    while (rc == WN_OK && !end) {
        yaml_event_t ev;
        if (!yaml_parser_parse(&parser, &ev)) {
            rc = wn_fail(err, WN_EFORMAT, "%s:%zu: %s", file, parser.problem_mark.line + 1,
                         parser.problem ? parser.problem : "not YAML");
            break;
        }
        rc = take_event(&r, &ev, err);
        end = ev.type == YAML_STREAM_END_EVENT || ev.type == YAML_DOCUMENT_END_EVENT; /* one document */
        yaml_event_delete(&ev);
    }
    yaml_parser_delete(&parser);
    return rc;
}
