/* base/key.c - see key.h. */
#include "base/key.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PATH_BYTES 1200
#define Z85        "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"

static const char *const role_names[WN_KEY_ROLES] = {"server", "worker", "client", "admin"};

const char *wn_key_role_name(wn_key_role role)
{
    return role_names[role];
}

bool wn_key_role_parse(const char *text, size_t n, wn_key_role *role)
{
    for (int i = 0; i < WN_KEY_ROLES; i++) {
        if (strlen(role_names[i]) != n || memcmp(role_names[i], text, n) != 0) continue;
        *role = (wn_key_role)i;
        return true;
    }
    return false;
}

bool wn_key_name_valid(const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!isalnum((unsigned char)text[i]) && !memchr("._-", text[i], 3)) return false;
    return n > 0 && n < WN_KEY_NAME_LEN && text[0] != '.' && text[0] != '-';
}

bool wn_key_text_valid(const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!memchr(Z85, text[i], sizeof(Z85) - 1)) return false;
    return n == WN_KEY_CHARS - 1;
}

wn_status wn_key_create(struct wn_key **out, struct wn_err *err)
{
    struct wn_key *key = sodium_init() < 0 ? NULL : sodium_malloc(sizeof(*key));

    if (!key) return wn_fail(err, WN_ENOMEM, "locked memory for a key: %s", strerror(errno));
    memset(key, 0, sizeof(*key));
    *out = key;
    return WN_OK;
}

void wn_key_close(struct wn_key *key)
{
    sodium_free(key); /* zeroes it */
}

/* One value into its place; the line's number is for errors. */
static wn_status take(struct wn_key *key, bool *have_role, const char *word, size_t word_n, const char *value,
                      size_t value_n, const char *file, unsigned line, struct wn_err *err)
{
    const struct {
        const char *word;
        char *place;
    } texts[] = {{"name", key->name},
                 {"public", key->public_key},
                 {"secret", key->secret_key},
                 {"server", key->server_key}};

    if (word_n == 4 && memcmp(word, "role", 4) == 0) {
        if (*have_role) return wn_fail(err, WN_EFORMAT, "%s:%u: a second role", file, line);
        *have_role = true;
        if (wn_key_role_parse(value, value_n, &key->role)) return WN_OK;
        return wn_fail(err, WN_EFORMAT, "%s:%u: the role is none of server, worker, client, admin", file, line);
    }
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        if (strlen(texts[i].word) != word_n || memcmp(texts[i].word, word, word_n) != 0) continue;
        if (texts[i].place[0]) return wn_fail(err, WN_EFORMAT, "%s:%u: a second %s", file, line, texts[i].word);
        if (i == 0 ? !wn_key_name_valid(value, value_n) : !wn_key_text_valid(value, value_n))
            return wn_fail(err, WN_EFORMAT, "%s:%u: not a %s", file, line,
                           i == 0 ? "name" : "key (40 characters of Z85)");
        memcpy(texts[i].place, value, value_n);
        texts[i].place[value_n] = '\0';
        return WN_OK;
    }
    return wn_fail(err, WN_EFORMAT, "%s:%u: not a line of a key file", file, line); /* it may be a secret: not shown */
}

wn_status wn_key_parse(struct wn_key *key, const char *file, const char *text, size_t bytes, struct wn_err *err)
{
    const char *at = text, *const end = text + bytes;
    bool have_role = false;
    wn_status rc = WN_OK;

    if (bytes > WN_KEY_FILE_MAX) return wn_fail(err, WN_ELIMIT, "%s: more than %zu bytes", file, WN_KEY_FILE_MAX);
    sodium_memzero(key, sizeof(*key));
    for (unsigned line = 1; rc == WN_OK && at < end; line++) {
        const char *stop = memchr(at, '\n', (size_t)(end - at)), *next = stop ? stop + 1 : end, *colon;
        if (!stop) stop = end;
        if (at == stop || *at == '#') {
            at = next;
            continue;
        }
        colon = memchr(at, ':', (size_t)(stop - at));
        if (!colon || stop - colon < 2 || colon[1] != ' ')
            return wn_fail(err, WN_EFORMAT, "%s:%u: not a line of a key file", file, line);
        rc = take(key, &have_role, at, (size_t)(colon - at), colon + 2, (size_t)(stop - colon) - 2, file, line, err);
        at = next;
    }
    if (rc != WN_OK) return rc;
    if (!have_role || !key->name[0] || !key->public_key[0] || !key->secret_key[0] || !key->server_key[0])
        return wn_fail(err, WN_EFORMAT, "%s: a key file has role, name, public, secret and server", file);
    return WN_OK;
}

/* The whole file into text; *n: its bytes. */
static wn_status read_private(const char *path, char *text, size_t room, size_t *n, struct wn_err *err)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    struct stat st;
    ssize_t got = 1;
    wn_status rc = WN_OK;

    *n = 0;
    if (fd < 0) return wn_fail(err, WN_EIO, "key file %s: %s", path, strerror(errno));
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
        rc = wn_fail(err, WN_EIO, "key file %s: not a file", path);
    else if (st.st_mode & 077)
        rc = wn_fail(err, WN_EAUTH, "key file %s may be read or written by others: chmod 600 it", path);
    while (rc == WN_OK && got > 0 && *n < room) {
        got = read(fd, text + *n, room - *n);
        if (got < 0 && errno == EINTR) got = 1;
        else if (got < 0) rc = wn_fail(err, WN_EIO, "key file %s: %s", path, strerror(errno));
        else *n += (size_t)got;
    }
    close(fd);
    return rc;
}

wn_status wn_key_open(struct wn_key **out, const char *path, struct wn_err *err)
{
    struct wn_key *key = NULL;
    char *text = NULL;
    size_t n = 0;
    wn_status rc = wn_key_create(&key, err);

    if (rc != WN_OK) goto out;
    text = sodium_malloc(WN_KEY_FILE_MAX + 1);
    if (!text) {
        rc = wn_fail(err, WN_ENOMEM, "locked memory for key file %s", path);
        goto out;
    }
    if ((rc = read_private(path, text, WN_KEY_FILE_MAX + 1, &n, err)) != WN_OK) goto out;
    if ((rc = wn_key_parse(key, path, text, n, err)) != WN_OK) goto out;
    *out = key;
    key = NULL;
out:
    sodium_free(text);
    wn_key_close(key);
    return rc;
}

wn_status wn_key_open_role(struct wn_key **out, const char *dir, wn_key_role role, struct wn_err *err)
{
    char path[PATH_BYTES];
    struct wn_key *key = NULL;
    wn_status rc;

    if (snprintf(path, sizeof(path), "%s/%s.key", dir, role_names[role]) >= (int)sizeof(path))
        return wn_fail(err, WN_ELIMIT, "the path of the keys is too long");
    if ((rc = wn_key_open(&key, path, err)) != WN_OK) return rc;
    if (key->role != role) {
        rc = wn_fail(err, WN_EAUTH, "key file %s has the role %s, not %s", path, role_names[key->role],
                     role_names[role]);
        wn_key_close(key);
        return rc;
    }
    *out = key;
    return WN_OK;
}

wn_status wn_key_write(const struct wn_key *key, const char *path, struct wn_err *err)
{
    const int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    char *text = NULL;
    int n;
    wn_status rc = WN_OK;

    if (fd < 0) return wn_fail(err, WN_EIO, "key file %s: %s", path, strerror(errno));
    text = sodium_malloc(WN_KEY_FILE_MAX);
    if (!text) {
        rc = wn_fail(err, WN_ENOMEM, "locked memory for key file %s", path);
        goto out;
    }
    n = snprintf(text, WN_KEY_FILE_MAX,
                 "# A Winnow key. Whoever can read this file may act as its owner.\n"
                 "role: %s\nname: %s\npublic: %s\nsecret: %s\nserver: %s\n",
                 role_names[key->role], key->name, key->public_key, key->secret_key, key->server_key);
    if (write(fd, text, (size_t)n) != n || fsync(fd) != 0)
        rc = wn_fail(err, WN_EIO, "key file %s: %s", path, strerror(errno));
out:
    if (close(fd) != 0 && rc == WN_OK) rc = wn_fail(err, WN_EIO, "key file %s: %s", path, strerror(errno));
    if (rc != WN_OK) unlink(path); /* ours: O_EXCL made it */
    sodium_free(text);
    return rc;
}
