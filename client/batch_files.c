/* client/batch_files.c - the input's lines by offset and name, the output's finished lines; see batch.h. */
#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/batch.h"

#define PREFIX "batch_req_"
#define BLOCK  ((size_t)1 << 20)

void batch_item_id(const struct batch_item *item, char out[BATCH_ID_MAX])
{
    size_t n = (size_t)snprintf(out, BATCH_ID_MAX, PREFIX);

    for (size_t i = 0; i < BATCH_NAME_BYTES; i++)
        n += (size_t)snprintf(out + n, BATCH_ID_MAX - n, "%02x", item->name[i]);
}

static bool name_of_id(const char *id, uint8_t name[BATCH_NAME_BYTES])
{
    size_t n = 0;

    return id && strncmp(id, PREFIX, sizeof(PREFIX) - 1) == 0 &&
           sodium_hex2bin(name, BATCH_NAME_BYTES, id + sizeof(PREFIX) - 1, strlen(id + sizeof(PREFIX) - 1), NULL, &n,
                          NULL) == 0 &&
           n == BATCH_NAME_BYTES && strlen(id) == sizeof(PREFIX) - 1 + 2 * BATCH_NAME_BYTES;
}

/* ---- lines of a file ---- */

struct lines {
    int fd;
    const char *path;
    char *block;
    uint64_t at, line_at; /* of the block's end, of the line's start */
    size_t have, used;
    uint32_t line;
    bool ended; /* the line has its newline */
};

static wn_status pread_all(int fd, const char *path, void *out, size_t bytes, uint64_t at, struct wn_err *err)
{
    for (size_t n = 0; n < bytes;) {
        const ssize_t got = pread(fd, (char *)out + n, bytes - n, (off_t)(at + n));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0)
            return wn_fail(err, WN_EIO, "cannot read %.200s: %s", path, got ? strerror(errno) : "it became shorter");
        n += (size_t)got;
    }
    return WN_OK;
}

/* Finds the next line; its bytes are not kept. *bytes without the newline. WN_ENOENT: there is none. */
static wn_status next_line(struct lines *l, uint64_t *bytes, struct wn_err *err)
{
    *bytes = 0;
    l->ended = false;
    l->line_at = l->at - l->have + l->used;
    for (;;) {
        const char *nl = l->have > l->used ? memchr(l->block + l->used, '\n', l->have - l->used) : NULL;
        ssize_t got;
        *bytes += nl ? (size_t)(nl - l->block) - l->used : l->have - l->used;
        l->used = nl ? (size_t)(nl - l->block) + 1 : l->have;
        l->ended = nl != NULL;
        if (nl) break;
        got = pread(l->fd, l->block, BLOCK, (off_t)l->at);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return wn_fail(err, WN_EIO, "cannot read %.200s: %s", l->path, strerror(errno));
        if (got == 0 && *bytes == 0) return WN_ENOENT;
        if (got == 0) break;
        l->at += (size_t)got;
        l->have = (size_t)got;
        l->used = 0;
    }
    if (l->line == UINT32_MAX) return wn_fail(err, WN_ELIMIT, "%.200s has too many lines", l->path);
    l->line++;
    return WN_OK;
}

/* ---- the input ---- */

static struct batch_item *find(const struct batch_files *f, const uint8_t *name, uint32_t **slot)
{
    uint64_t h;

    memcpy(&h, name, sizeof(h));
    for (uint32_t i = (uint32_t)h & (f->table_size - 1);; i = (i + 1) & (f->table_size - 1)) {
        *slot = &f->table[i];
        if (!f->table[i]) return NULL;
        if (memcmp(f->item[f->table[i] - 1].name, name, BATCH_NAME_BYTES) == 0) return &f->item[f->table[i] - 1];
    }
}

static wn_status grow(struct batch_files *f, struct wn_err *err)
{
    const uint32_t room = f->room ? 2 * f->room : 1024;
    struct batch_item *item;

    if (room > BATCH_ITEMS_MAX) return wn_fail(err, WN_ELIMIT, "%.200s has too many requests", f->in_path);
    if (!(item = realloc(f->item, room * sizeof(*item)))) return wn_fail(err, WN_ENOMEM, "%u requests", room);
    f->item = item;
    f->room = room;
    free(f->table);
    f->table_size = 4 * room;
    if (!(f->table = calloc(f->table_size, sizeof(*f->table)))) return wn_fail(err, WN_ENOMEM, "%u requests", room);
    for (uint32_t i = 0; i < f->items_n; i++) {
        uint32_t *slot;
        find(f, f->item[i].name, &slot);
        *slot = i + 1;
    }
    return WN_OK;
}

/* By custom_id, or by line number and text where there is none. *id, for messages, lives as long as *root. */
static void name_line(const char *line, size_t bytes, uint32_t number, uint8_t *name, json_t **root, const char **id)
{
    crypto_generichash_state h;

    *root = json_loadb(line, bytes, JSON_REJECT_DUPLICATES, NULL);
    *id = json_string_value(json_object_get(*root, "custom_id"));
    if (*id && (!(*id)[0] || strlen(*id) > BATCH_CUSTOM_ID_MAX)) *id = NULL;
    crypto_generichash_init(&h, NULL, 0, BATCH_NAME_BYTES);
    crypto_generichash_update(&h, (const uint8_t *)(*id ? "id" : "at"), 2);
    if (!*id) crypto_generichash_update(&h, (const uint8_t *)&number, sizeof(number));
    crypto_generichash_update(&h, (const uint8_t *)(*id ? *id : line), *id ? strlen(*id) : bytes);
    crypto_generichash_final(&h, name, BATCH_NAME_BYTES);
}

static wn_status add_item(struct batch_files *f, const struct lines *l, const char *line, size_t bytes,
                          struct wn_err *err)
{
    struct batch_item *item, *twin;
    const char *id;
    uint32_t *slot;
    json_t *root;
    wn_status rc = WN_OK;

    if (f->items_n == f->room && (rc = grow(f, err)) != WN_OK) return rc;
    item = &f->item[f->items_n];
    *item = (struct batch_item){.at = l->line_at, .bytes = (uint32_t)bytes, .line = l->line};
    name_line(line, bytes, l->line, item->name, &root, &id);
    if ((twin = find(f, item->name, &slot)) != NULL)
        rc = wn_fail(err, WN_EINVAL, "%.150s: line %u: custom_id '%.80s' is also in line %u", f->in_path, l->line,
                     id ? id : "", twin->line);
    else
        *slot = ++f->items_n;
    json_decref(root);
    return rc;
}

static wn_status scan_input(struct batch_files *f, struct lines *l, struct wn_err *err)
{
    char *line = NULL;
    size_t room = 0;
    uint64_t bytes;
    wn_status rc = grow(f, err);

    while (rc == WN_OK && (rc = next_line(l, &bytes, err)) == WN_OK) {
        if (bytes > BATCH_LINE_MAX) {
            rc = wn_fail(err, WN_ELIMIT, "%.200s: line %u has %llu bytes; at most %zu are allowed", f->in_path,
                         l->line, (unsigned long long)bytes, BATCH_LINE_MAX);
            break;
        }
        if (bytes + 1 > room) {
            char *more = realloc(line, room = bytes + 4096);
            if (!more) {
                rc = wn_fail(err, WN_ENOMEM, "a line of %llu bytes", (unsigned long long)bytes);
                break;
            }
            line = more;
        }
        if ((rc = pread_all(l->fd, l->path, line, bytes, l->line_at, err)) != WN_OK) break;
        line[bytes] = '\0';
        if (strspn(line, " \t\r") == bytes) continue; /* blank */
        rc = add_item(f, l, line, bytes, err);
    }
    free(line);
    return rc == WN_ENOENT ? WN_OK : rc;
}

/* ---- the output ---- */

static wn_status take_finished(struct batch_files *f, const struct lines *l, const char *line, size_t bytes,
                               struct wn_err *err)
{
    json_t *root = json_loadb(line, bytes, 0, NULL);
    uint8_t name[BATCH_NAME_BYTES];
    struct batch_item *item;
    uint32_t *slot;
    wn_status rc = WN_OK;

    if (!name_of_id(json_string_value(json_object_get(root, "id")), name)) {
        rc = wn_fail(err, WN_EFORMAT, "%.200s: line %u is no output of run-batch: choose another file", f->out_path,
                     l->line);
    } else if (!(item = find(f, name, &slot))) {
        f->strangers++;
    } else if (!item->done) {
        item->done = true;
        f->before_n++;
        f->before_failed += !json_is_null(json_object_get(root, "error"));
    }
    json_decref(root);
    return rc;
}

/* Is this how a line of ours begins, as far as it goes? */
static bool is_torn(const char *line, size_t bytes)
{
    static const char start[] = "{\"id\":\"" PREFIX;
    const size_t n = sizeof(start) - 1;

    return memcmp(line, start, bytes < n ? bytes : n) == 0;
}

static wn_status scan_output(struct batch_files *f, struct lines *l, struct wn_err *err)
{
    char *line = NULL;
    uint64_t bytes;
    wn_status rc;

    while ((rc = next_line(l, &bytes, err)) == WN_OK) {
        if (bytes > BATCH_LINE_MAX || !(line = malloc(bytes + 1))) {
            rc = wn_fail(err, WN_ELIMIT, "%.200s: line %u is too long", f->out_path, l->line);
            break;
        }
        if ((rc = pread_all(l->fd, l->path, line, bytes, l->line_at, err)) != WN_OK) break;
        if (l->ended) {
            rc = take_finished(f, l, line, bytes, err);
            f->out_bytes = l->line_at + bytes + 1;
        } else if (!is_torn(line, bytes)) {
            rc = wn_fail(err, WN_EFORMAT, "%.200s: line %u is no output of run-batch: choose another file",
                         f->out_path, l->line);
        } else if (ftruncate(f->out, (off_t)l->line_at) != 0) {
            rc = wn_fail(err, WN_EIO, "cannot cut %.200s: %s", f->out_path, strerror(errno));
        } else {
            break; /* it was the last */
        }
        free(line);
        line = NULL;
        if (rc != WN_OK) break;
    }
    free(line);
    return rc == WN_ENOENT ? WN_OK : rc;
}

static wn_status open_both(struct batch_files *f, struct wn_err *err)
{
    struct stat in, out;

    f->in = open(f->in_path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (f->in < 0) return wn_fail(err, WN_ENOENT, "cannot open %.200s: %s", f->in_path, strerror(errno));
    if (fstat(f->in, &in) != 0 || !S_ISREG(in.st_mode))
        return wn_fail(err, WN_EINVAL, "%.200s is no file", f->in_path);
    f->out = open(f->out_path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0666);
    if (f->out < 0) return wn_fail(err, WN_EIO, "cannot open %.200s: %s", f->out_path, strerror(errno));
    if (fstat(f->out, &out) != 0 || !S_ISREG(out.st_mode))
        return wn_fail(err, WN_EINVAL, "%.200s is no file", f->out_path);
    if (in.st_dev == out.st_dev && in.st_ino == out.st_ino)
        return wn_fail(err, WN_EINVAL, "%.200s is input and output", f->in_path);
    if (flock(f->out, LOCK_EX | LOCK_NB) != 0)
        return wn_fail(err, WN_EBUSY, "%.200s is being written by another run", f->out_path);
    return WN_OK;
}

wn_status batch_files_open(struct batch_files *f, const char *in_path, const char *out_path, struct wn_err *err)
{
    struct lines in = {0}, out = {0};
    wn_status rc = WN_OK;

    *f = (struct batch_files){.in = -1, .out = -1, .in_path = in_path, .out_path = out_path};
    if (sodium_init() < 0) rc = wn_fail(err, WN_EIO, "libsodium does not start");
    if (rc == WN_OK) rc = open_both(f, err);
    in = (struct lines){.fd = f->in, .path = in_path, .block = malloc(BLOCK)};
    out = (struct lines){.fd = f->out, .path = out_path, .block = malloc(BLOCK)};
    if (rc == WN_OK && (!in.block || !out.block)) rc = wn_fail(err, WN_ENOMEM, "blocks of files");
    if (rc == WN_OK) rc = scan_input(f, &in, err);
    if (rc == WN_OK) rc = scan_output(f, &out, err);
    free(in.block);
    free(out.block);
    return rc;
}

void batch_files_close(struct batch_files *f)
{
    if (f->in >= 0) close(f->in);
    if (f->out >= 0) close(f->out);
    free(f->item);
    free(f->table);
    *f = (struct batch_files){.in = -1, .out = -1};
}

wn_status batch_item_read(const struct batch_files *f, uint32_t item, char **line, struct wn_err *err)
{
    const struct batch_item *it = &f->item[item];
    char *text = malloc((size_t)it->bytes + 1);
    wn_status rc;

    if (!text) return wn_fail(err, WN_ENOMEM, "a line of %u bytes", it->bytes);
    if ((rc = pread_all(f->in, f->in_path, text, it->bytes, it->at, err)) != WN_OK) {
        free(text);
        return rc;
    }
    text[it->bytes] = '\0';
    *line = text;
    return WN_OK;
}

wn_status batch_files_append(struct batch_files *f, const char *line, size_t bytes, struct wn_err *err)
{
    for (size_t n = 0; n < bytes;) {
        const ssize_t put = write(f->out, line + n, bytes - n);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) return wn_fail(err, WN_EIO, "cannot write %.200s: %s", f->out_path, strerror(errno));
        n += (size_t)put;
    }
    f->out_bytes += bytes;
    return WN_OK;
}

void batch_key(const struct batch_request *r, const char *line, size_t bytes, char out[65])
{
    crypto_generichash_state h;
    uint8_t sum[32];

    crypto_generichash_init(&h, NULL, 0, sizeof(sum));
    crypto_generichash_update(&h, (const uint8_t *)line, bytes); /* with the custom_id */
    for (size_t i = 0; i < r->chat.request.images_n; i++) {
        const uint64_t n = r->chat.image[i].bytes;
        crypto_generichash_update(&h, (const uint8_t *)&n, sizeof(n));
        crypto_generichash_update(&h, r->chat.image[i].data, n);
    }
    crypto_generichash_final(&h, sum, sizeof(sum));
    sodium_bin2hex(out, 65, sum, sizeof(sum));
}
