/* shard/weights.c - see weights.h. */
#include "shard/weights.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "shard/jsonfile.h"

#define INDEX_BYTES_MAX  ((size_t)16 << 20)
#define HEADER_BYTES_MAX ((uint64_t)100 * 1000 * 1000)
#define SHARDS_MAX       1024u
#define NAME_ROOM        640u /* a name after its prefix has been exchanged */

#define DIGEST_BYTES 64 /* of a tensor */
#define SINGLE_FILE "model.safetensors"
#define INDEX_FILE  "model.safetensors.index.json"

struct entry {
    char *name; /* owned */
    struct wn_tensor tensor;
    char type[12]; /* as in the file */
    bool readable; /* a type of wn_dtype */
    const struct shard *shard;
};

struct shard {
    char *file; /* name in the directory; owned */
    char *path; /* owned */
    uint8_t *map;
    size_t bytes;
};

struct wn_weights {
    char dir[WN_PATH_MAX];
    struct shard *shards;  /* [shards_n] */
    struct entry *entries; /* [entries_n], sorted by name once open is over */
    size_t shards_n, entries_n, entries_room;
};

/* What add_tensor needs to know about the file it is called for. */
struct adding {
    struct wn_weights *w;
    const struct shard *shard;
    const uint8_t *data;
    const json_t *weight_map; /* of the index, or NULL: then every tensor counts */
};

static wn_status grow(struct wn_weights *w, struct wn_err *err)
{
    size_t room = w->entries_room ? w->entries_room * 2 : 256;
    struct entry *bigger = realloc(w->entries, room * sizeof(*bigger));

    if (!bigger) return wn_fail(err, WN_ENOMEM, "table of %zu tensors", room);
    w->entries = bigger;
    w->entries_room = room;
    return WN_OK;
}

static wn_status add_tensor(void *ctx, const char *name, const char *type,
                            const struct wn_tensor *t, uint64_t offset, struct wn_err *err)
{
    struct adding *a = ctx;
    struct wn_weights *w = a->w;
    struct entry *e;
    wn_status rc;

    if (a->weight_map) { /* what the index places elsewhere is not ours */
        const char *file = json_string_value(json_object_get(a->weight_map, name));
        if (!file || strcmp(file, a->shard->file) != 0) return WN_OK;
    }
    if (w->entries_n == w->entries_room && (rc = grow(w, err)) != WN_OK) return rc;
    e = &w->entries[w->entries_n];
    *e = (struct entry){.tensor = *t, .shard = a->shard};
    e->tensor.data = a->data + offset;
    e->tensor.file = a->shard->file;
    e->tensor.file_i = (uint32_t)(a->shard - w->shards);
    e->tensor.at = (uint64_t)(a->data - a->shard->map) + offset;
    snprintf(e->type, sizeof(e->type), "%s", type);
    e->readable = strcmp(type, "F32") == 0 || strcmp(type, "F16") == 0 || strcmp(type, "BF16") == 0;
    if (!(e->name = strdup(name))) return wn_fail(err, WN_ENOMEM, "tensor name");
    w->entries_n++;
    return WN_OK;
}

static wn_status map_file(struct shard *s, const char *path, struct wn_err *err)
{
    wn_status rc = WN_OK;
    off_t size = 0;
    void *map;
    int fd = -1;

    if ((rc = wn_file_open(&fd, &size, path, err)) != WN_OK) goto out;
    if (size < 8) {
        rc = wn_fail(err, WN_EFORMAT, "%s: %jd bytes are too few for a safetensors file", path,
                     (intmax_t)size);
        goto out;
    }
    map = mmap(NULL, (size_t)size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED) {
        rc = wn_fail(err, WN_EIO, "map %s: %s", path, strerror(errno));
        goto out;
    }
    s->map = map;
    s->bytes = (size_t)size;
out:
    if (fd >= 0) close(fd);
    return rc;
}

/* Maps w->shards[i] and adds its tensors. */
static wn_status open_shard(struct wn_weights *w, struct shard *s, const json_t *weight_map,
                            struct wn_err *err)
{
    char path[WN_PATH_MAX];
    uint64_t header = 0;
    struct adding a = {.w = w, .shard = s, .weight_map = weight_map};
    wn_status rc = wn_path_join(path, w->dir, s->file, err);

    if (rc == WN_OK && !(s->path = strdup(path))) rc = wn_fail(err, WN_ENOMEM, "file name");
    if (rc == WN_OK) rc = map_file(s, path, err);
    if (rc != WN_OK) return rc;
    for (int i = 7; i >= 0; i--) header = header << 8 | s->map[i]; /* little-endian */
    if (header > s->bytes - 8)
        return wn_fail(err, WN_EFORMAT, "%s: header of %llu bytes in a file of %zu", path,
                       (unsigned long long)header, s->bytes);
    if (header > HEADER_BYTES_MAX)
        return wn_fail(err, WN_ELIMIT, "%s: header of %llu bytes; the limit is %llu", path,
                       (unsigned long long)header, (unsigned long long)HEADER_BYTES_MAX);
    a.data = s->map + 8 + header;
    rc = wn_safetensors_parse((const char *)s->map + 8, (size_t)header, s->bytes - 8 - header,
                              add_tensor, &a, err);
    return rc == WN_OK ? rc : wn_err_prefix(err, "%s", path);
}

static int entry_order(const void *a, const void *b)
{
    return strcmp(((const struct entry *)a)->name, ((const struct entry *)b)->name);
}

static const struct entry *lookup(const struct wn_weights *w, const char *name)
{
    struct entry key = {.name = (char *)(uintptr_t)name}; /* only compared */

    if (!w->entries_n) return NULL;
    return bsearch(&key, w->entries, w->entries_n, sizeof(key), entry_order);
}

/* A file in the same directory: nothing else may be named by an index. */
static bool is_plain_name(const char *file)
{
    size_t n = strnlen(file, 256);

    return n > 0 && n < 256 && file[0] != '.' && !strchr(file, '/') && !strchr(file, '\\');
}

/* Collects the distinct files that the index names, in the order of first mention. */
static wn_status list_shards(struct wn_weights *w, const json_t *weight_map, struct wn_err *err)
{
    const char *name;
    const json_t *v;

    json_object_foreach((json_t *)(uintptr_t)weight_map, name, v)
    {
        const char *file = json_string_value(v);
        size_t i = w->shards_n;
        if (!file || !is_plain_name(file))
            return wn_fail(err, WN_EFORMAT,
                           INDEX_FILE ": weight_map: '%.150s': '%.100s' is not a plain file name",
                           name, file ? file : "?");
        while (i > 0 && strcmp(w->shards[i - 1].file, file) != 0) i--; /* mostly the last one */
        if (i > 0) continue;
        if (w->shards_n == SHARDS_MAX)
            return wn_fail(err, WN_ELIMIT, INDEX_FILE ": more than %u files", SHARDS_MAX);
        if (!(w->shards[w->shards_n].file = strdup(file)))
            return wn_fail(err, WN_ENOMEM, "file name");
        w->shards_n++;
    }
    return WN_OK;
}

static wn_status open_index(struct wn_weights *w, const char *path, struct wn_err *err)
{
    char *text = NULL;
    size_t len = 0;
    json_t *index = NULL;
    const json_t *map, *v;
    const char *name;
    wn_status rc = wn_file_read(&text, &len, path, INDEX_BYTES_MAX, err);

    if (rc == WN_ENOENT)
        rc = wn_fail(err, WN_ENOENT, "%.200s: neither " SINGLE_FILE " nor " INDEX_FILE " is there",
                     w->dir);
    if (rc != WN_OK) goto out;
    if ((rc = wn_json_parse(&index, path, text, len, err)) != WN_OK) goto out;
    map = json_object_get(index, "weight_map");
    if (!json_is_object(map)) {
        rc = wn_fail(err, WN_EFORMAT, "%s: weight_map: missing, or not an object", path);
        goto out;
    }
    if (!(w->shards = calloc(SHARDS_MAX, sizeof(*w->shards)))) {
        rc = wn_fail(err, WN_ENOMEM, "table of files");
        goto out;
    }
    if ((rc = list_shards(w, map, err)) != WN_OK) goto out;
    for (size_t i = 0; i < w->shards_n; i++)
        if ((rc = open_shard(w, &w->shards[i], map, err)) != WN_OK) goto out;
    if (w->entries_n) qsort(w->entries, w->entries_n, sizeof(*w->entries), entry_order);
    json_object_foreach((json_t *)(uintptr_t)map, name, v) if (!lookup(w, name))
    {
        rc = wn_fail(err, WN_EFORMAT, INDEX_FILE ": tensor '%.150s' is not in %.100s", name,
                     json_string_value(v));
        goto out;
    }
out:
    json_decref(index);
    free(text);
    return rc;
}

static wn_status open_single(struct wn_weights *w, struct wn_err *err)
{
    wn_status rc;

    if (!(w->shards = calloc(1, sizeof(*w->shards))))
        return wn_fail(err, WN_ENOMEM, "table of files");
    if (!(w->shards[0].file = strdup(SINGLE_FILE))) return wn_fail(err, WN_ENOMEM, "file name");
    w->shards_n = 1;
    if ((rc = open_shard(w, &w->shards[0], NULL, err)) != WN_OK) return rc;
    if (w->entries_n) qsort(w->entries, w->entries_n, sizeof(*w->entries), entry_order);
    return WN_OK;
}

void wn_weights_digest(const struct wn_weights *w, struct wn_sha256 *s)
{
    for (size_t i = 0; i < w->entries_n; i++) {
        const struct entry *e = &w->entries[i];
        const uint64_t n = e->tensor.bytes < DIGEST_BYTES ? e->tensor.bytes : DIGEST_BYTES;
        wn_sha256_update(s, e->name, strlen(e->name) + 1);
        wn_sha256_update(s, e->type, strlen(e->type) + 1);
        wn_sha256_update(s, e->tensor.dims, sizeof(e->tensor.dims));
        wn_sha256_update(s, (const uint8_t *)e->tensor.data + (e->tensor.bytes - n) / 2, n);
    }
}

bool wn_weights_exist(const char *dir)
{
    static const char *const files[] = {SINGLE_FILE, INDEX_FILE};
    char path[WN_PATH_MAX];
    bool any = false;

    for (int i = 0; i < 2 && !any; i++)
        any = wn_path_join(path, dir, files[i], NULL) == WN_OK && access(path, F_OK) == 0;
    return any;
}

wn_status wn_weights_open(struct wn_weights **out, const char *dir, struct wn_err *err)
{
    struct wn_weights *w = calloc(1, sizeof(*w));
    char single[WN_PATH_MAX], index[WN_PATH_MAX];
    wn_status rc = WN_OK;
    struct stat st;

    if (!w) {
        rc = wn_fail(err, WN_ENOMEM, "weights handle");
        goto out;
    }
    if ((rc = wn_path_join(single, dir, SINGLE_FILE, err)) != WN_OK) goto out;
    if ((rc = wn_path_join(index, dir, INDEX_FILE, err)) != WN_OK) goto out;
    snprintf(w->dir, sizeof(w->dir), "%s", dir);
    rc = stat(single, &st) == 0 ? open_single(w, err) : open_index(w, index, err);
    if (rc != WN_OK) goto out;
    *out = w;
    w = NULL;
out:
    wn_weights_close(w);
    return rc;
}

void wn_weights_close(struct wn_weights *w)
{
    if (!w) return;
    for (size_t i = 0; i < w->entries_n; i++) free(w->entries[i].name);
    for (size_t i = 0; i < w->shards_n; i++) {
        if (w->shards[i].map) munmap(w->shards[i].map, w->shards[i].bytes);
        free(w->shards[i].file);
        free(w->shards[i].path);
    }
    free(w->entries);
    free(w->shards);
    free(w);
}

/* The newer name of an older one; false if the name has none, or is too long to be in a file. */
static bool newer_name(char out[NAME_ROOM], const char *name)
{
    static const struct {
        const char *old, *new;
    } prefixes[] = {
        {"language_model.model.", "model.language_model."},
        {"language_model.lm_head.", "lm_head."},
        {"multi_modal_projector.", "model.multi_modal_projector."},
        {"vision_tower.", "model.vision_tower."},
    };

    for (size_t i = 0; i < sizeof(prefixes) / sizeof(prefixes[0]); i++) {
        size_t n = strlen(prefixes[i].old);
        int len;
        if (strncmp(name, prefixes[i].old, n) != 0) continue;
        len = snprintf(out, NAME_ROOM, "%s%s", prefixes[i].new, name + n);
        return len > 0 && (size_t)len < NAME_ROOM;
    }
    return false;
}

wn_status wn_weights_find(const struct wn_weights *w, const char *name, struct wn_tensor *out,
                          struct wn_err *err)
{
    char newer[NAME_ROOM];
    const struct entry *e = lookup(w, name);

    if (!e && newer_name(newer, name)) e = lookup(w, newer);
    if (!e && w->shards_n == 1)
        return wn_fail(err, WN_ENOENT, "tensor '%.200s' is not in %.100s/%.40s", name, w->dir, w->shards[0].file);
    if (!e)
        return wn_fail(err, WN_ENOENT, "tensor '%.200s' is in none of the %zu files of %.100s", name, w->shards_n,
                       w->dir);
    if (!e->readable)
        return wn_fail(err, WN_EUNSUPP,
                       "%s: tensor '%.200s' has type %s; supported: F32, F16, BF16", e->shard->file,
                       e->name, e->type);
    if (e->tensor.dims_n > WN_DIMS_MAX)
        return wn_fail(err, WN_EUNSUPP, "%s: tensor '%.200s' has %u dimensions; supported: %d",
                       e->shard->file, e->name, e->tensor.dims_n, WN_DIMS_MAX);
    if ((uintptr_t)e->tensor.data % wn_dtype_bytes(e->tensor.dtype) != 0)
        return wn_fail(err, WN_EUNSUPP,
                       "%s: tensor '%.150s' is not aligned to its type: save the file again",
                       e->shard->file, e->name);
    *out = e->tensor;
    return WN_OK;
}

bool wn_weights_file(const struct wn_weights *w, uint32_t i, struct wn_reader_file *out)
{
    if (i >= w->shards_n) return false;
    *out = (struct wn_reader_file){.path = w->shards[i].path, .bytes = w->shards[i].bytes, .map = w->shards[i].map};
    return true;
}

/* Whole pages of it: its neighbours may have begun on the first and the last. */
void wn_weights_release(const struct wn_tensor *t)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), data = (uintptr_t)t->data;
    const uintptr_t first = (data + page - 1) / page * page, end = (data + t->bytes) / page * page;

    if (first < end) (void)madvise((void *)first, end - first, MADV_DONTNEED);
}
