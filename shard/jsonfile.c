/* shard/jsonfile.c - see jsonfile.h. */
#include "shard/jsonfile.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

wn_status wn_path_join(char out[WN_PATH_MAX], const char *dir, const char *name, struct wn_err *err)
{
    int n = snprintf(out, WN_PATH_MAX, "%s/%s", dir, name);

    if (n < 0 || n >= WN_PATH_MAX)
        return wn_fail(err, WN_ELIMIT, "path longer than %d bytes: %.100s...", WN_PATH_MAX - 1,
                       dir);
    return WN_OK;
}

static wn_status read_all(int fd, char *data, size_t bytes, const char *path, struct wn_err *err)
{
    size_t done = 0;

    while (done < bytes) {
        ssize_t n = read(fd, data + done, bytes - done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return wn_fail(err, WN_EIO, "read %s: %s", path, strerror(errno));
        if (n == 0) return wn_fail(err, WN_EIO, "read %s: the file became shorter", path);
        done += (size_t)n;
    }
    return WN_OK;
}

wn_status wn_file_open(int *out, off_t *bytes, const char *path, struct wn_err *err)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO of that name must not block us */
    struct stat st;
    wn_status rc = WN_OK;

    if (fd < 0) return wn_fail(err, errno == ENOENT ? WN_ENOENT : WN_EIO, "open %s: %s", path, strerror(errno));
    if (fstat(fd, &st) != 0)
        rc = wn_fail(err, WN_EIO, "stat %s: %s", path, strerror(errno));
    else if (!S_ISREG(st.st_mode))
        rc = wn_fail(err, WN_EFORMAT, "%s is not a regular file", path);
    if (rc != WN_OK) {
        close(fd);
        return rc;
    }
    *out = fd;
    *bytes = st.st_size;
    return WN_OK;
}

wn_status wn_file_read(char **data, size_t *len, const char *path, size_t max, struct wn_err *err)
{
    wn_status rc = WN_OK;
    char *bytes = NULL;
    off_t size = 0;
    int fd = -1;

    if ((rc = wn_file_open(&fd, &size, path, err)) != WN_OK) goto out;
    if ((uintmax_t)size > max) {
        rc = wn_fail(err, WN_ELIMIT, "%s has %jd bytes; the limit is %zu", path,
                     (intmax_t)size, max);
        goto out;
    }
    bytes = malloc((size_t)size + 1);
    if (!bytes) {
        rc = wn_fail(err, WN_ENOMEM, "%s: %jd bytes", path, (intmax_t)size);
        goto out;
    }
    if ((rc = read_all(fd, bytes, (size_t)size, path, err)) != WN_OK) goto out;
    bytes[size] = '\0';
    *data = bytes;
    *len = (size_t)size;
    bytes = NULL;
out:
    if (fd >= 0) close(fd);
    free(bytes);
    return rc;
}

wn_status wn_json_parse(json_t **out, const char *what, const char *data, size_t len,
                        struct wn_err *err)
{
    json_error_t je;
    json_t *root = json_loadb(data, len, JSON_REJECT_DUPLICATES, &je);

    if (!root) return wn_fail(err, WN_EFORMAT, "%s: line %d: %s", what, je.line, je.text);
    if (!json_is_object(root)) {
        json_decref(root);
        return wn_fail(err, WN_EFORMAT, "%s: not a JSON object", what);
    }
    *out = root;
    return WN_OK;
}
