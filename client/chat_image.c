/* client/chat_image.c - the pictures of a request: files and data URLs; see chat.h. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/chat.h"

static int value_of(char c)
{
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* Strict: padded, standard alphabet, nothing but its characters. */
static wn_status base64(const char *text, size_t n, size_t max, uint8_t **data, size_t *bytes, struct wn_err *err)
{
    uint8_t *out = NULL;
    size_t pad = 0, got = 0;
    uint32_t acc = 0;

    if (n == 0 || n % 4 != 0) return wn_fail(err, WN_EFORMAT, "base64: %zu characters, no multiple of 4", n);
    while (pad < 2 && text[n - 1 - pad] == '=') pad++;
    if (n / 4 * 3 - pad > max) return wn_fail(err, WN_ELIMIT, "an image has more than %zu bytes", max);
    if (!(out = malloc(n / 4 * 3))) return wn_fail(err, WN_ENOMEM, "image");
    for (size_t i = 0; i < n; i++) {
        const int v = i < n - pad ? value_of(text[i]) : 0;
        if (v < 0) {
            free(out);
            return wn_fail(err, WN_EFORMAT, "base64: byte 0x%02x at %zu", (unsigned char)text[i], i);
        }
        acc = acc << 6 | (uint32_t)v;
        if (i % 4 != 3) continue;
        out[got++] = (uint8_t)(acc >> 16);
        out[got++] = (uint8_t)(acc >> 8);
        out[got++] = (uint8_t)acc;
    }
    *data = out;
    *bytes = got - pad;
    return WN_OK;
}

/* data:image/jpeg;base64,... */
static wn_status read_data_url(const char *url, size_t max, uint8_t **data, size_t *bytes, struct wn_err *err)
{
    static const char mark[] = ";base64";
    const char *comma = strchr(url, ',');
    const size_t head = comma ? (size_t)(comma - url) : 0;

    if (!comma || head > 128) return wn_fail(err, WN_EFORMAT, "data URL without a comma");
    if (strncasecmp(url, "data:image/", 11) != 0)
        return wn_fail(err, WN_EUNSUPP, "data URL '%.*s' is no image", (int)(head < 60 ? head : 60), url);
    if (head < sizeof(mark) - 1 || strncasecmp(comma - (sizeof(mark) - 1), mark, sizeof(mark) - 1) != 0)
        return wn_fail(err, WN_EUNSUPP, "data URL without ;base64");
    return base64(comma + 1, strlen(comma + 1), max, data, bytes, err);
}

static int hex(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* file:///a%20b -> /a b */
static wn_status file_url_path(const char *url, char *out, size_t room, struct wn_err *err)
{
    const char *at = url + strlen("file://");
    size_t n = 0;

    if (strncasecmp(at, "localhost/", 10) == 0) at += 9;
    if (*at != '/') return wn_fail(err, WN_EUNSUPP, "'%.120s' is on another host", url);
    while (*at) {
        int c = (unsigned char)*at++;
        if (c == '%') {
            const int high = hex(at[0]), low = high < 0 ? -1 : hex(at[1]);
            c = low < 0 ? 0 : high * 16 + low;
            at += low < 0 ? 0 : 2;
        }
        if (c == 0) return wn_fail(err, WN_EFORMAT, "'%.120s': no two hex digits after %%, or %%00", url);
        if (n + 1 >= room) return wn_fail(err, WN_ELIMIT, "'%.120s...' is too long", url);
        out[n++] = (char)c;
    }
    out[n] = '\0';
    return WN_OK;
}

static wn_status read_file(const char *path, size_t max, uint8_t **data, size_t *bytes, struct wn_err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not hold us up */
    uint8_t *buffer = NULL;
    struct stat st;
    size_t n = 0;
    wn_status rc = WN_OK;

    if (fd < 0) {
        rc = wn_fail(err, errno == ENOENT ? WN_ENOENT : WN_EIO, "cannot open %.200s: %s", path, strerror(errno));
        goto out;
    }
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        rc = wn_fail(err, WN_EINVAL, "%.200s is no file", path);
        goto out;
    }
    if (st.st_size == 0 || (uint64_t)st.st_size > max) {
        rc = wn_fail(err, st.st_size ? WN_ELIMIT : WN_EINVAL, "%.200s has %lld bytes; 1 to %zu are allowed", path,
                     (long long)st.st_size, max);
        goto out;
    }
    if (!(buffer = malloc((size_t)st.st_size))) {
        rc = wn_fail(err, WN_ENOMEM, "%.200s: %lld bytes", path, (long long)st.st_size);
        goto out;
    }
    while (n < (size_t)st.st_size) {
        const ssize_t got = read(fd, buffer + n, (size_t)st.st_size - n);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) {
            rc = wn_fail(err, WN_EIO, "cannot read %.200s: %s", path, got ? strerror(errno) : "it became shorter");
            goto out;
        }
        n += (size_t)got;
    }
    *data = buffer;
    *bytes = n;
    buffer = NULL;
out:
    if (fd >= 0) close(fd);
    free(buffer);
    return rc;
}

wn_status chat_image_read(const char *url, const char *root, size_t max, uint8_t **data, size_t *bytes,
                           struct wn_err *err)
{
    char path[PATH_MAX];
    const char *scheme = strstr(url, "://");
    wn_status rc;

    *data = NULL;
    *bytes = 0;
    if (strncasecmp(url, "data:", 5) == 0) return read_data_url(url, max, data, bytes, err);
    if (strncasecmp(url, "file://", 7) == 0) {
        if ((rc = file_url_path(url, path, sizeof(path), err)) != WN_OK) return rc;
    } else if (strncasecmp(url, "http://", 7) == 0 || strncasecmp(url, "https://", 8) == 0) {
        return wn_fail(err, WN_EUNSUPP, "'%.120s': http and https are not fetched; use a file or a data URL", url);
    } else if (scheme && scheme - url < 16 && !memchr(url, '/', (size_t)(scheme - url))) {
        return wn_fail(err, WN_EUNSUPP, "'%.120s': the scheme is not supported", url);
    } else if (snprintf(path, sizeof(path), "%s%s%s", root && url[0] != '/' ? root : "",
                        root && url[0] != '/' ? "/" : "", url) >= (int)sizeof(path)) {
        return wn_fail(err, WN_ELIMIT, "'%.120s...' is too long", url);
    }
    return read_file(path, max, data, bytes, err);
}

/* A picture from nowhere but the request itself. */
static wn_status decode(const char *url, size_t max, uint8_t **data, size_t *bytes, struct wn_err *err)
{
    *data = NULL;
    *bytes = 0;
    if (strncasecmp(url, "data:", 5) == 0) return read_data_url(url, max, data, bytes, err);
    return wn_fail(err, WN_EUNSUPP, "image_url '%.120s': nothing is fetched and no file is read; use a data: URL", url);
}

static wn_status read_all(struct chat_request *r, bool files, const char *root, struct wn_err *err)
{
    size_t left = CHAT_IMAGE_MAX;

    for (size_t i = 0; i < r->request.images_n; i++) {
        const char *url = r->image_url[i];
        size_t *bytes = &r->image[i].bytes;
        uint8_t *data;
        wn_status rc = files ? chat_image_read(url, root, left, &data, bytes, err)
                             : decode(url, left, &data, bytes, err);
        if (rc != WN_OK) {
            r->field = "messages";
            return rc;
        }
        r->image[i].data = data;
        left -= *bytes;
    }
    return WN_OK;
}

wn_status chat_images_read(struct chat_request *r, const char *root, struct wn_err *err)
{
    return read_all(r, true, root, err);
}

wn_status chat_images_decode(struct chat_request *r, struct wn_err *err)
{
    return read_all(r, false, NULL, err);
}
