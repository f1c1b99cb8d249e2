/* daemon/access.c - see access.h. */
#include "daemon/access.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int by_key(const void *a, const void *b)
{
    return strcmp(((const struct wn_access_entry *)a)->key, ((const struct wn_access_entry *)b)->key);
}

/* The next word of a line; false at its end. */
static bool word(const char **at, const char *end, const char **out, size_t *n)
{
    while (*at < end && **at == ' ') (*at)++;
    *out = *at;
    while (*at < end && **at != ' ') (*at)++;
    *n = (size_t)(*at - *out);
    return *n > 0;
}

static wn_status take_line(struct wn_access *a, const char *line, const char *end, const char *file, unsigned number,
                           struct wn_err *err)
{
    struct wn_access_entry *e = &a->entries[a->n];
    const char *role, *key, *name, *rest;
    size_t role_n, key_n, name_n, rest_n;

    if (a->n == WN_ACCESS_KEYS_MAX)
        return wn_fail(err, WN_ELIMIT, "%s:%u: more than %d keys", file, number, WN_ACCESS_KEYS_MAX);
    if (!word(&line, end, &role, &role_n) || !word(&line, end, &key, &key_n) || !word(&line, end, &name, &name_n) ||
        word(&line, end, &rest, &rest_n))
        return wn_fail(err, WN_EFORMAT, "%s:%u: not 'ROLE KEY NAME'", file, number);
    if (!wn_key_role_parse(role, role_n, &e->role) || e->role == WN_KEY_SERVER)
        return wn_fail(err, WN_EFORMAT, "%s:%u: the role is none of client, worker, admin", file, number);
    if (!wn_key_text_valid(key, key_n))
        return wn_fail(err, WN_EFORMAT, "%s:%u: not a key (40 characters of Z85)", file, number);
    if (!wn_key_name_valid(name, name_n)) return wn_fail(err, WN_EFORMAT, "%s:%u: not a name", file, number);
    memcpy(e->key, key, key_n);
    memcpy(e->name, name, name_n);
    e->key[key_n] = e->name[name_n] = '\0';
    a->n++;
    return WN_OK;
}

wn_status wn_access_parse(struct wn_access *a, const char *file, const char *text, size_t bytes, struct wn_err *err)
{
    const char *at = text, *const end = text + bytes;
    wn_status rc = WN_OK;

    if (bytes > WN_ACCESS_FILE_MAX)
        return wn_fail(err, WN_ELIMIT, "%s: more than %zu bytes", file, WN_ACCESS_FILE_MAX);
    a->entries = calloc(WN_ACCESS_KEYS_MAX, sizeof(*a->entries));
    a->keys = calloc(WN_ACCESS_KEYS_MAX, sizeof(*a->keys));
    if (!a->entries || !a->keys) return wn_fail(err, WN_ENOMEM, "%s: list of keys", file);
    for (unsigned line = 1; rc == WN_OK && at < end; line++) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        if (!stop) stop = end;
        if (at < stop && *at != '#') rc = take_line(a, at, stop, file, line, err);
        at = stop + 1;
    }
    if (rc != WN_OK) return rc;
    qsort(a->entries, a->n, sizeof(*a->entries), by_key);
    for (size_t i = 1; i < a->n; i++)
        if (by_key(&a->entries[i - 1], &a->entries[i]) == 0)
            return wn_fail(err, WN_EFORMAT, "%s: the key of '%s' comes twice, also as '%s'", file,
                           a->entries[i - 1].name, a->entries[i].name);
    return WN_OK;
}

static wn_status read_list(struct wn_access *a, const char *dir, struct wn_err *err)
{
    char path[1200], *text = NULL;
    struct stat st;
    size_t n = 0;
    ssize_t got = 1;
    int fd = -1;
    wn_status rc = WN_OK;

    snprintf(path, sizeof(path), "%.1024s/authorized", dir);
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) {
        rc = wn_fail(err, WN_EIO, "list of keys %s: %s", path, strerror(errno));
        goto out;
    }
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || (st.st_mode & 022)) {
        rc = wn_fail(err, WN_EAUTH, "list of keys %s is not a file that only its owner may write", path);
        goto out;
    }
    text = malloc(WN_ACCESS_FILE_MAX + 1);
    if (!text) {
        rc = wn_fail(err, WN_ENOMEM, "list of keys");
        goto out;
    }
    while (got > 0 && n <= WN_ACCESS_FILE_MAX) {
        got = read(fd, text + n, WN_ACCESS_FILE_MAX + 1 - n);
        if (got > 0) n += (size_t)got;
    }
    rc = got < 0 ? wn_fail(err, WN_EIO, "list of keys %s: %s", path, strerror(errno))
                 : wn_access_parse(a, path, text, n, err);
out:
    if (fd >= 0) close(fd);
    free(text);
    return rc;
}

wn_status wn_access_open(struct wn_access **out, const char *dir, struct wn_err *err)
{
    struct wn_access *a = calloc(1, sizeof(*a));
    wn_status rc;

    if (!a) return wn_fail(err, WN_ENOMEM, "list of keys");
    rc = wn_key_open_role(&a->self, dir, WN_KEY_SERVER, err);
    if (rc == WN_OK) rc = read_list(a, dir, err);
    if (rc == WN_OK)
        *out = a;
    else
        wn_access_close(a);
    return rc;
}

void wn_access_fini(struct wn_access *a)
{
    wn_key_close(a->self);
    free(a->entries);
    free(a->keys);
    memset(a, 0, sizeof(*a));
}

void wn_access_close(struct wn_access *a)
{
    if (!a) return;
    wn_access_fini(a);
    free(a);
}

const char *const *wn_access_keys(const struct wn_access *a, unsigned roles, size_t *n)
{
    *n = 0;
    for (size_t i = 0; i < a->n; i++)
        if (roles & 1u << a->entries[i].role) a->keys[(*n)++] = a->entries[i].key;
    return a->keys;
}

const struct wn_access_entry *wn_access_find(const struct wn_access *a, const char *key)
{
    struct wn_access_entry want;

    if (!key || strlen(key) != WN_KEY_CHARS - 1) return NULL;
    memcpy(want.key, key, WN_KEY_CHARS);
    return bsearch(&want, a->entries, a->n, sizeof(*a->entries), by_key);
}

wn_status wn_access_check(const struct wn_access_entry *who, Wn__Envelope__BodyCase kind, struct wn_err *err)
{
    const bool asks = kind == WN__ENVELOPE__BODY_STATUS_REQUEST, ends = kind == WN__ENVELOPE__BODY_DRAIN;

    if (!who || who->role == WN_KEY_ADMIN || asks || (who->role == WN_KEY_CLIENT && !ends)) return WN_OK;
    return wn_fail(err, WN_EAUTH, "a %s key may not send %s here", wn_key_role_name(who->role),
                   wn_codec_body_name(kind));
}

bool wn_access_owns(const struct wn_access_entry *who, const Wn__Submit *job)
{
    return !who || who->role == WN_KEY_ADMIN || strcmp(who->key, job->owner) == 0;
}

wn_status wn_access_stamp(Wn__Submit *submit, const struct wn_access_entry *who)
{
    char *owner = strdup(who ? who->key : "");

    if (!owner) return WN_ENOMEM;
    if (submit->owner != protobuf_c_empty_string) free(submit->owner);
    submit->owner = owner;
    return WN_OK;
}
