/* daemon/run_dir.c - see run_dir.h. */
#include "daemon/run_dir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/log.h"

#define PREFIX    "winnow-"
#define RANDOM    "XXXXXX"
#define OWNER     "owner"
#define TREE_MAX  8   /* folders inside each other that are removed */
#define HOST_MAX  64
#define OWNER_MAX 128 /* "process PID on HOST\n" */

/* ---- removing ---- */

static DIR *open_at(int at, const char *name)
{
    const int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *d = fd >= 0 ? fdopendir(fd) : NULL;

    if (!d && fd >= 0) close(fd);
    return d;
}

static bool is_dots(const char *name)
{
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

/* Links are removed, not followed. */
static void remove_tree(int at, const char *name, int depth)
{
    DIR *d = depth < TREE_MAX ? open_at(at, name) : NULL;
    const struct dirent *e;

    while (d && (e = readdir(d)) != NULL)
        if (!is_dots(e->d_name) && unlinkat(dirfd(d), e->d_name, 0) != 0) remove_tree(dirfd(d), e->d_name, depth + 1);
    if (d) closedir(d);
    unlinkat(at, name, AT_REMOVEDIR);
}

static bool is_socket(int at, const char *name)
{
    struct stat st;
    return fstatat(at, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISSOCK(st.st_mode);
}

/* Of a part, or (NULL) of all: its sockets, and its place. Anything else is not ours to remove. */
static void clear(const char *path, const char *part)
{
    const size_t n = part ? strlen(part) : 0;
    DIR *d = path[0] ? open_at(AT_FDCWD, path) : NULL;
    const struct dirent *e;

    while (d && (e = readdir(d)) != NULL) {
        const bool whole = part ? strcmp(e->d_name, part) == 0 : strncmp(e->d_name, "replica-", 8) == 0;
        const bool its = part ? strncmp(e->d_name, part, n) == 0 && e->d_name[n] == '-' : true;
        if (is_dots(e->d_name)) continue;
        if (its && is_socket(dirfd(d), e->d_name)) unlinkat(dirfd(d), e->d_name, 0);
        else if (whole) remove_tree(dirfd(d), e->d_name, 0);
    }
    if (d) closedir(d);
}

/* ---- who owns a folder ---- */

static void owner_text(char out[OWNER_MAX], const char *host)
{
    snprintf(out, OWNER_MAX, "process %d on %.*s\n", (int)getpid(), HOST_MAX, host);
}

static void host_name(char out[HOST_MAX])
{
    if (gethostname(out, HOST_MAX) != 0) snprintf(out, HOST_MAX, "?");
    out[HOST_MAX - 1] = '\0';
}

static void owner_read(int fd, char out[OWNER_MAX])
{
    const ssize_t n = pread(fd, out, OWNER_MAX - 1, 0);

    out[n > 0 ? n : 0] = '\0';
    out[strcspn(out, "\n")] = '\0';
}

/* A file that was removed while we waited for it is not the one that the next process sees. */
static bool still_there(int dir, int fd)
{
    struct stat mine, now;

    return fstat(fd, &mine) == 0 && fstatat(dir, OWNER, &now, AT_SYMLINK_NOFOLLOW) == 0 && mine.st_ino == now.st_ino &&
           mine.st_dev == now.st_dev;
}

/* Takes the lock of a folder. A file system without locks has nothing to ask. */
static wn_status lock_folder(struct wn_run_folder *f, struct wn_err *err)
{
    const int dir = open(f->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    char text[OWNER_MAX], host[HOST_MAX];
    wn_status rc = WN_OK;
    int fd = -1;

    if (dir >= 0) fd = openat(dir, OWNER, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0) {
        rc = wn_fail(err, WN_EIO, "%s: %s", f->path, strerror(errno));
        goto out;
    }
    if (flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
        owner_read(fd, text);
        rc = wn_fail(err, WN_EBUSY, "%s is the run folder of another service (%s)", f->path, text);
        goto out;
    }
    if (!still_there(dir, fd)) {
        rc = wn_fail(err, WN_EBUSY, "%s: another service has just ended in it; try again", f->path);
        goto out;
    }
    host_name(host);
    owner_text(text, host);
    if (ftruncate(fd, 0) != 0 || pwrite(fd, text, strlen(text), 0) < 0)
        rc = wn_fail(err, WN_EIO, "%s/" OWNER ": %s", f->path, strerror(errno));
out:
    if (rc == WN_OK) {
        (void)!flock(dir, LOCK_SH | LOCK_NB); /* systemd-tmpfiles leaves such a folder alone, however old it is */
        f->lock = fd;
        f->dir = dir;
        return WN_OK;
    }
    if (dir >= 0) close(dir);
    if (fd >= 0) close(fd);
    return rc;
}

static void remove_folder(const char *path)
{
    char owner[WN_RUN_PATH + sizeof(OWNER)];

    clear(path, NULL);
    snprintf(owner, sizeof(owner), "%s/" OWNER, path);
    unlink(owner);
    rmdir(path);
}

/* ---- what the dead have left ---- */

static bool is_our_name(const char *name)
{
    const size_t n = strlen(PREFIX);

    return strncmp(name, PREFIX, n) == 0 && strlen(name) == n + strlen(RANDOM) &&
           strspn(name + n, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") == strlen(RANDOM);
}

/* Of this user and this machine, and its owner is gone? Then removes it. */
static void sweep_one(const char *path, const char *host)
{
    const int dir = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    char text[OWNER_MAX], *on;
    struct stat st;
    int fd = -1;

    if (dir < 0 || fstat(dir, &st) != 0 || st.st_uid != geteuid()) goto out;
    fd = openat(dir, OWNER, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) goto out;
    owner_read(fd, text);
    on = strstr(text, " on ");
    if (!on || strcmp(on + strlen(" on "), host) != 0) goto out; /* or not written yet */
    if (flock(fd, LOCK_EX | LOCK_NB) != 0 || !still_there(dir, fd)) goto out;
    wn_info("run", "%s: its service (%s) is dead; removed", path, text);
    remove_folder(path);
out:
    if (fd >= 0) close(fd);
    if (dir >= 0) close(dir);
}

static void sweep(const char *base)
{
    DIR *d = opendir(base);
    char path[WN_RUN_PATH], host[HOST_MAX];
    const struct dirent *e;

    host_name(host);
    while (d && (e = readdir(d)) != NULL)
        if (is_our_name(e->d_name) && snprintf(path, sizeof(path), "%s/%s", base, e->d_name) < (int)sizeof(path))
            sweep_one(path, host);
    if (d) closedir(d);
}

/* ---- a service's own ---- */

static wn_status make_folder(struct wn_run_folder *f, const char *base, struct wn_err *err)
{
    wn_status rc;

    sweep(base);
    snprintf(f->path, sizeof(f->path), "%s/" PREFIX RANDOM, base);
    if (!mkdtemp(f->path)) {
        rc = wn_fail(err, WN_EIO, "%s: %s", f->path, strerror(errno));
        f->path[0] = '\0';
        return rc;
    }
    if ((rc = lock_folder(f, err)) == WN_OK) return WN_OK;
    remove_folder(f->path);
    f->path[0] = '\0';
    return rc;
}

static wn_status use_folder(struct wn_run_folder *f, const char *path, struct wn_err *err)
{
    wn_status rc;

    if (strlen(path) >= sizeof(f->path)) return wn_fail(err, WN_ELIMIT, "--run-dir: longer than %d", WN_RUN_PATH);
    snprintf(f->path, sizeof(f->path), "%s", path);
    f->named = true;
    if (mkdir(path, 0700) != 0 && errno != EEXIST)
        rc = wn_fail(err, WN_EIO, "%s: %s", path, strerror(errno));
    else
        rc = lock_folder(f, err);
    if (rc == WN_OK) {
        clear(path, NULL); /* of a service that was killed */
        return WN_OK;
    }
    f->path[0] = '\0';
    return wn_err_prefix(err, "--run-dir");
}

static void close_folder(struct wn_run_folder *f)
{
    char owner[WN_RUN_PATH + sizeof(OWNER)];

    if (!f->path[0]) return;
    if (f->named) {
        clear(f->path, NULL);
        snprintf(owner, sizeof(owner), "%s/" OWNER, f->path);
        unlink(owner);
    } else {
        remove_folder(f->path);
    }
    close(f->lock);
    close(f->dir);
    f->path[0] = '\0';
}

static void make_part(const struct wn_run_folder *f, const char *part, char out[WN_RUN_PATH])
{
    out[0] = '\0';
    if (!f->path[0] || snprintf(out, WN_RUN_PATH, "%s/%s", f->path, part) >= WN_RUN_PATH ||
        (mkdir(out, 0700) != 0 && errno != EEXIST))
        out[0] = '\0';
}

static void open_memory(struct wn_run_folder *f, const char *base, size_t bytes, const char *otherwise)
{
    struct wn_err err = {0};
    struct statvfs room;

    if (make_folder(f, base, &err) != WN_OK) {
        wn_warn("run", "shared memory is in %s: %s", otherwise, err.text);
    } else if (statvfs(f->path, &room) == 0 && room.f_bavail * room.f_frsize < bytes) {
        wn_warn("run", "%s has %llu MiB free and ranks may need %zu: their shared memory is in %s, which is slower",
                base, (unsigned long long)(room.f_bavail * room.f_frsize >> 20), bytes >> 20, otherwise);
        close_folder(f);
    }
}

wn_status wn_run_dir_open(struct wn_run_dir *d, const char *named, const char *base, const char *memory_base,
                          size_t memory_bytes, struct wn_err *err)
{
    wn_status rc;

    *d = (struct wn_run_dir){.files.lock = -1, .memory.lock = -1};
    rc = named[0] ? use_folder(&d->files, named, err) : make_folder(&d->files, base, err);
    if (rc == WN_OK && memory_bytes > 0) open_memory(&d->memory, memory_base, memory_bytes, d->files.path);
    return rc;
}

void wn_run_dir_open_memory(struct wn_run_dir *d, const char *memory_base, size_t memory_bytes, const char *part,
                            char memory[WN_RUN_PATH])
{
    *d = (struct wn_run_dir){.files.lock = -1, .memory.lock = -1};
    open_memory(&d->memory, memory_base, memory_bytes, "files");
    make_part(&d->memory, part, memory);
}

bool wn_run_dir_there(const struct wn_run_dir *d)
{
    struct stat mine, now;

    return fstat(d->files.dir, &mine) == 0 && stat(d->files.path, &now) == 0 && mine.st_ino == now.st_ino &&
           mine.st_dev == now.st_dev;
}

void wn_run_dir_part(const struct wn_run_dir *d, const char *part, char files[WN_RUN_PATH], char memory[WN_RUN_PATH])
{
    make_part(&d->files, part, files);
    make_part(d->memory.path[0] ? &d->memory : &d->files, part, memory);
}

void wn_run_dir_part_ended(const struct wn_run_dir *d, const char *part)
{
    clear(d->files.path, part);
    clear(d->memory.path, part);
}

void wn_run_dir_close(struct wn_run_dir *d)
{
    close_folder(&d->files);
    close_folder(&d->memory);
}
