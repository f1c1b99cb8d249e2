/* daemon/nodelist.c - see nodelist.h. */
#include "daemon/nodelist.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DIGITS_MAX 9 /* fits 32 bits */
#define RANGES_MAX 4 /* brackets in one name */

/* A name on its way: what is fixed so far, and its text that is still to be read. */
struct maker {
    struct wn_nodelist *out;
    size_t room;
    const char *text; /* whole list, for errors */
    char name[WN_NODE_NAME_LEN];
    struct wn_err *err;
};

static wn_status bad(const struct maker *m, const char *at, const char *what)
{
    return wn_fail(m->err, WN_EFORMAT, "node list '%.100s': %s at character %zu", m->text, what,
                   (size_t)(at - m->text) + 1);
}

static wn_status put(struct maker *m)
{
    struct wn_nodelist *l = m->out;

    if (l->n == WN_NODES_MAX)
        return wn_fail(m->err, WN_ELIMIT, "node list '%.100s': more than %d names", m->text, WN_NODES_MAX);
    if (l->n == m->room) {
        const size_t room = m->room ? m->room * 2 : 16;
        void *more = realloc(l->names, room * sizeof(*l->names));
        if (!more) return wn_fail(m->err, WN_ENOMEM, "%zu node names", room);
        l->names = more;
        m->room = room;
    }
    memcpy(l->names[l->n++], m->name, sizeof(m->name));
    return WN_OK;
}

/* Digits at *at into *value and *width. */
static wn_status number(const struct maker *m, const char **at, uint32_t *value, int *width)
{
    const char *p = *at;

    for (*value = 0, *width = 0; isdigit((unsigned char)*p) && *width < DIGITS_MAX; p++, (*width)++)
        *value = *value * 10 + (uint32_t)(*p - '0');
    if (*width == 0 || isdigit((unsigned char)*p)) return bad(m, p, "a number of 1 to 9 digits is wanted");
    *at = p;
    return WN_OK;
}

static wn_status item(struct maker *m, const char *at, const char *end, size_t len, int depth);

/* at: behind '['. Every number of the ranges, and for each of them the rest of the name. */
static wn_status ranges(struct maker *m, const char *at, const char *end, size_t len, int depth)
{
    const char *close = memchr(at, ']', (size_t)(end - at));
    wn_status rc = WN_OK;

    if (!close) return bad(m, at, "']' is missing");
    if (depth == RANGES_MAX) return bad(m, at, "too many brackets in one name");
    for (;;) {
        uint32_t first, last;
        int width, unused;
        if ((rc = number(m, &at, &first, &width)) != WN_OK) return rc;
        last = first;
        if (*at == '-') {
            at++;
            if ((rc = number(m, &at, &last, &unused)) != WN_OK) return rc;
        }
        if (last < first) return bad(m, at, "a range runs backwards");
        if (last - first >= WN_NODES_MAX)
            return wn_fail(m->err, WN_ELIMIT, "node list '%.100s': more than %d names", m->text, WN_NODES_MAX);
        for (uint32_t i = first; i <= last; i++) {
            const int n = snprintf(m->name + len, sizeof(m->name) - len, "%0*u", width, i);
            if (n < 0 || (size_t)n >= sizeof(m->name) - len)
                return wn_fail(m->err, WN_ELIMIT, "node list '%.100s': a name is too long", m->text);
            if ((rc = item(m, close + 1, end, len + (size_t)n, depth + 1)) != WN_OK) return rc;
        }
        if (at == close) return WN_OK;
        if (*at++ != ',') return bad(m, at - 1, "',' or ']' is wanted");
    }
}

/* One comma-separated item, or what is left of it behind a range; len characters of the name are there. */
static wn_status item(struct maker *m, const char *at, const char *end, size_t len, int depth)
{
    for (; at < end && *at != '['; at++) {
        if (!isalnum((unsigned char)*at) && !strchr("._-", *at)) return bad(m, at, "a character that no host name has");
        if (len + 1 >= sizeof(m->name))
            return wn_fail(m->err, WN_ELIMIT, "node list '%.100s': a name is too long", m->text);
        m->name[len++] = *at;
    }
    if (at < end) return ranges(m, at + 1, end, len, depth);
    if (len == 0) return bad(m, at, "a name is missing");
    memset(m->name + len, 0, sizeof(m->name) - len);
    return put(m);
}

wn_status wn_nodelist_expand(struct wn_nodelist *out, const char *text, struct wn_err *err)
{
    struct maker m = {.out = out, .text = text, .err = err};
    const char *at = text;
    wn_status rc = WN_OK;

    *out = (struct wn_nodelist){0};
    for (;;) {
        const char *end = at;
        for (bool inside = false; *end && (inside || *end != ','); end++)
            inside = *end == '[' || (inside && *end != ']');
        if ((rc = item(&m, at, end, 0, 0)) != WN_OK) break;
        if (!*end) return WN_OK;
        at = end + 1;
    }
    wn_nodelist_fini(out);
    return rc;
}

void wn_nodelist_fini(struct wn_nodelist *list)
{
    free(list->names);
    *list = (struct wn_nodelist){0};
}

size_t wn_nodelist_find(const struct wn_nodelist *list, const char *name)
{
    size_t i = 0;

    while (i < list->n && strcmp(list->names[i], name) != 0) i++;
    return i;
}

wn_status wn_nodelist_count(const char *text, size_t index, uint32_t *count, struct wn_err *err)
{
    const struct maker m = {.text = text, .err = err};
    const char *at = text;

    for (;;) {
        uint32_t value, times = 1;
        int width;
        wn_status rc = number(&m, &at, &value, &width);
        if (rc == WN_OK && strncmp(at, "(x", 2) == 0) {
            at += 2;
            if ((rc = number(&m, &at, &times, &width)) == WN_OK && *at++ != ')') rc = bad(&m, at - 1, "')' is wanted");
        }
        if (rc != WN_OK) return rc;
        if (index < times) {
            *count = value;
            return WN_OK;
        }
        index -= times;
        if (*at++ != ',') return bad(&m, at - 1, *(at - 1) ? "',' is wanted" : "there are too few numbers");
    }
}
