/* daemon/blobs.c - see blobs.h. */
#include "daemon/blobs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/sha256.h"

#define HEX    (2 * WN_BLOB_HASH)
#define UNDONE "unfinished" /* one writer: one such file */

_Static_assert(WN_BLOB_HASH == WN_SHA256_BYTES, "SHA-256");

struct wn_blobs {
    int fd; /* the folder */
    char dir[1024];
};

static wn_status fail(const struct wn_blobs *b, struct wn_err *err, const char *what, const char *name)
{
    return wn_fail(err, WN_EIO, "%s %.900s/%s: %s", what, b->dir, name, strerror(errno));
}

/* "ab/cdef..." */
static void path_of(const uint8_t hash[WN_BLOB_HASH], char out[HEX + 2])
{
    char hex[HEX + 1];

    sodium_bin2hex(hex, sizeof(hex), hash, WN_BLOB_HASH);
    snprintf(out, HEX + 2, "%.2s/%s", hex, hex + 2);
}

wn_status wn_blobs_open(struct wn_blobs **out, const char *dir, struct wn_err *err)
{
    struct wn_blobs *b = calloc(1, sizeof(*b));

    if (!b) return wn_fail(err, WN_ENOMEM, "blob folder");
    snprintf(b->dir, sizeof(b->dir), "%s", dir);
    if (mkdir(dir, 0700) != 0 && errno != EEXIST) {
        wn_status rc = wn_fail(err, WN_EIO, "make %s: %s", dir, strerror(errno));
        free(b);
        return rc;
    }
    b->fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (b->fd < 0) {
        wn_status rc = wn_fail(err, WN_EIO, "open %s: %s", dir, strerror(errno));
        free(b);
        return rc;
    }
    *out = b;
    return WN_OK;
}

void wn_blobs_close(struct wn_blobs *b)
{
    if (!b) return;
    close(b->fd);
    free(b);
}

static bool write_all(int fd, const uint8_t *p, size_t n)
{
    while (n > 0) {
        ssize_t done = write(fd, p, n);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return false;
        p += done;
        n -= (size_t)done;
    }
    return fsync(fd) == 0;
}

/* The folder ab/ of this file, made if need be: a descriptor, or -1. */
static int open_folder(const struct wn_blobs *b, const char *path)
{
    char name[3] = {path[0], path[1], '\0'};
    int fd = openat(b->fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd >= 0 || errno != ENOENT) return fd;
    if (mkdirat(b->fd, name, 0700) != 0) return -1;
    if (fsync(b->fd) != 0) { /* not surely on disk: the next file in it must not find it made */
        const int reason = errno;
        unlinkat(b->fd, name, AT_REMOVEDIR);
        errno = reason;
        return -1;
    }
    return openat(b->fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

wn_status wn_blobs_put(struct wn_blobs *b, const void *data, size_t bytes, uint8_t hash[WN_BLOB_HASH],
                       struct wn_err *err)
{
    char path[HEX + 2];
    struct stat st;
    int fd = -1, folder = -1;
    wn_status rc = WN_OK;

    wn_sha256(hash, data, bytes);
    path_of(hash, path);
    if (fstatat(b->fd, path, &st, 0) == 0 && S_ISREG(st.st_mode) && (size_t)st.st_size == bytes) return WN_OK;
    if ((folder = open_folder(b, path)) < 0) return fail(b, err, "folder of", path);
    fd = openat(b->fd, UNDONE, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || !write_all(fd, data, bytes)) {
        rc = fail(b, err, "write", path);
        goto out;
    }
    if (renameat(b->fd, UNDONE, b->fd, path) != 0 || fsync(folder) != 0) {
        rc = fail(b, err, "keep", path);
        unlinkat(b->fd, path, 0); /* not surely on disk: it must not pass for whole */
    }
out:
    if (rc != WN_OK) unlinkat(b->fd, UNDONE, 0); /* gives the room back */
    if (fd >= 0) close(fd);
    close(folder);
    return rc;
}

wn_status wn_blobs_get(struct wn_blobs *b, const uint8_t hash[WN_BLOB_HASH], void *into, size_t bytes,
                       struct wn_err *err)
{
    uint8_t *p = into, found[WN_BLOB_HASH];
    char path[HEX + 2];
    size_t at = 0;
    wn_status rc = WN_OK;
    int fd;

    path_of(hash, path);
    if ((fd = openat(b->fd, path, O_RDONLY | O_CLOEXEC)) < 0) return fail(b, err, "open", path);
    while (at < bytes) {
        ssize_t n = read(fd, p + at, bytes - at);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            rc = fail(b, err, "read", path);
            goto out;
        }
        if (n == 0) break;
        at += (size_t)n;
    }
    wn_sha256(found, into, at);
    if (at != bytes || memcmp(found, hash, WN_BLOB_HASH) != 0)
        rc = wn_fail(err, WN_EFORMAT, "%.900s/%s is damaged: it is not what its name says", b->dir, path);
out:
    close(fd);
    return rc;
}

void wn_blobs_drop(struct wn_blobs *b, const uint8_t hash[WN_BLOB_HASH])
{
    char path[HEX + 2];

    path_of(hash, path);
    unlinkat(b->fd, path, 0);
}

/* One folder ab/. */
static unsigned sweep_folder(struct wn_blobs *b, const char *name,
                             bool (*needed)(void *arg, const uint8_t hash[WN_BLOB_HASH]), void *arg)
{
    int fd = openat(b->fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
    struct dirent *e;
    unsigned n = 0;

    if (!d) {
        if (fd >= 0) close(fd);
        return 0;
    }
    while ((e = readdir(d)) != NULL) {
        char hex[HEX + 1];
        uint8_t hash[WN_BLOB_HASH];
        size_t got = 0;
        if (e->d_name[0] == '.') continue;
        if (strlen(e->d_name) != HEX - 2) continue; /* not ours */
        snprintf(hex, sizeof(hex), "%.2s%.62s", name, e->d_name);
        if (sodium_hex2bin(hash, sizeof(hash), hex, HEX, NULL, &got, NULL) != 0 || got != WN_BLOB_HASH) continue;
        if (needed(arg, hash)) continue;
        if (unlinkat(fd, e->d_name, 0) == 0) n++;
    }
    closedir(d);
    return n;
}

unsigned wn_blobs_sweep(struct wn_blobs *b, bool (*needed)(void *arg, const uint8_t hash[WN_BLOB_HASH]), void *arg)
{
    unsigned n = unlinkat(b->fd, UNDONE, 0) == 0;

    for (int i = 0; i < 256; i++) {
        char name[3];
        snprintf(name, sizeof(name), "%02x", (unsigned)i);
        n += sweep_folder(b, name, needed, arg);
    }
    return n;
}
