/* shard/reader.c - see reader.h. Piece i lies in slot i % slots_n: it is read once piece i - slots_n was given back. */
#include "shard/reader.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/hostmem.h"
#include "shard/jsonfile.h"

#define ALIGN       4096u                /* of O_DIRECT: offsets, lengths and memory */
#define PROBE_BYTES ((uint64_t)256 << 10) /* one page of so many is looked for in the page cache */

struct file {
    int fd, direct; /* direct: -1 until its first use */
    atomic_bool no_direct;
};

/* A piece that is read or lent; err.code: it could not be. */
struct slot {
    bool ready;
    struct wn_read read;
    struct wn_err err;
};

struct wn_reader {
    struct wn_reader_opts o;
    bool direct; /* what is not in the page cache is read past it */
    struct file *files;
    struct slot slots[WN_READ_SLOTS];
    uint32_t slots_n;
    char *memory; /* [slots_n * slot_bytes] */
    size_t slot_bytes;
    pthread_t threads[WN_READ_THREADS];
    uint32_t threads_n;
    pthread_mutex_t lock; /* of what follows, and of slots */
    pthread_cond_t changed;
    size_t taken, next, given; /* pieces: whose reading has begun; lent next; given back */
    bool closing;
    struct wn_reader_stats stats;
};

/* Does it read what lies between the rows, too? */
static bool is_span(const struct wn_piece *p)
{
    return p->step - p->row_bytes <= WN_READ_GAP;
}

/* From its first byte in the file to its last. */
static uint64_t span_bytes(const struct wn_piece *p)
{
    return (uint64_t)(p->rows - 1) * p->step + p->row_bytes;
}

static size_t piece_room(const struct wn_piece *p)
{
    const uint64_t bytes = is_span(p) ? span_bytes(p) : (uint64_t)p->rows * p->row_bytes;

    return (size_t)(bytes + 2 * ALIGN) / ALIGN * ALIGN + ALIGN; /* whole blocks around it */
}

static wn_status too_short(const struct wn_reader *r, const struct wn_piece *p, uint64_t end, struct wn_err *err)
{
    const struct wn_reader_file *f = &r->o.files[p->file];

    return wn_fail(err, WN_EIO, "%s: tensor '%s': the file ends at byte %llu, and its header says %llu", f->path,
                   p->name, (unsigned long long)end, (unsigned long long)f->bytes);
}

/* Bytes [at, at + bytes) by way of the page cache. */
static wn_status read_cached(struct wn_reader *r, const struct wn_piece *p, char *to, uint64_t at, uint64_t bytes,
                             struct wn_err *err)
{
    for (uint64_t done = 0; done < bytes;) {
        const ssize_t n = pread(r->files[p->file].fd, to + done, bytes - done, (off_t)(at + done));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0)
            return wn_fail(err, WN_EIO, "%s: tensor '%s': read at byte %llu: %s", r->o.files[p->file].path, p->name,
                           (unsigned long long)(at + done), strerror(errno));
        if (n == 0) return too_short(r, p, at + done, err);
        done += (uint64_t)n;
    }
    return WN_OK;
}

static bool open_direct(struct wn_reader *r, uint32_t file)
{
    struct file *f = &r->files[file];
    bool good;

    if (atomic_load(&f->no_direct)) return false;
    pthread_mutex_lock(&r->lock);
    if (f->direct < 0) f->direct = open(r->o.files[file].path, O_RDONLY | O_CLOEXEC | O_DIRECT);
    good = f->direct >= 0;
    pthread_mutex_unlock(&r->lock);
    if (!good) atomic_store(&f->no_direct, true);
    return good;
}

/* Whole blocks around [at, at + bytes), which lies at to + at % ALIGN then. false: not in this way, or not all. */
static bool read_direct(struct wn_reader *r, const struct wn_piece *p, char *to, uint64_t at, uint64_t bytes)
{
    const uint64_t first = at / ALIGN * ALIGN, end = at + bytes, stop = (end + ALIGN - 1) / ALIGN * ALIGN;
    struct file *f = &r->files[p->file];

    if (!open_direct(r, p->file)) return false;
    for (uint64_t done = first; done < end;) {
        const ssize_t n = pread(f->direct, to + (done - first), stop - done, (off_t)done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) atomic_store(&f->no_direct, true);
        if (n <= 0) return false; /* the other way says what it is */
        done += (uint64_t)n;
        if (done < end && done % ALIGN != 0) return false; /* the file's end */
    }
    return true;
}

/* Is it in the page cache? A look at some of its pages. */
static bool is_cached(const struct wn_reader *r, const struct wn_piece *p)
{
    const uint64_t last = p->at + span_bytes(p) - 1;
    char byte;

    for (uint64_t at = p->at;; at = at + PROBE_BYTES < last ? at + PROBE_BYTES : last) {
        struct iovec v = {&byte, 1};
        if (preadv2(r->files[p->file].fd, &v, 1, (off_t)at, RWF_NOWAIT) != 1) return false;
        if (at == last) return true;
    }
}

/* Would the mapping end before the piece does, to touch it would end this process. */
static bool is_whole(const struct wn_reader *r, const struct wn_piece *p)
{
    return lseek(r->files[p->file].fd, 0, SEEK_END) >= (off_t)(p->at + span_bytes(p));
}

static wn_status read_rows(struct wn_reader *r, const struct wn_piece *p, char *to, struct slot *s)
{
    wn_status rc = WN_OK;

    for (uint32_t i = 0; rc == WN_OK && i < p->rows; i++)
        rc = read_cached(r, p, to + (size_t)i * p->row_bytes, p->at + (uint64_t)i * p->step, p->row_bytes, &s->err);
    s->read = (struct wn_read){to, p->row_bytes};
    return rc;
}

/* On a reader's thread: fills the slot. */
static void read_piece(struct wn_reader *r, const struct wn_piece *p, char *to, struct slot *s)
{
    const struct wn_reader_file *file = &r->o.files[p->file];
    const bool cached = r->o.mode != WN_READ_DIRECT && is_cached(r, p), span = is_span(p);
    const uint64_t bytes = span ? span_bytes(p) : (uint64_t)p->rows * p->row_bytes;
    bool direct = false;

    s->err = (struct wn_err){0};
    if (cached && file->map && is_whole(r, p)) {
        s->read = (struct wn_read){file->map + p->at, p->step};
    } else if (!span) {
        (void)!read_rows(r, p, to, s);
    } else {
        s->read = (struct wn_read){to + p->at % ALIGN, p->step};
        direct = !cached && r->direct && read_direct(r, p, to, p->at, bytes);
        if (!direct && !cached) /* all of it at once, not as much as the kernel reads ahead */
            (void)posix_fadvise(r->files[p->file].fd, (off_t)p->at, (off_t)bytes, POSIX_FADV_WILLNEED);
        if (!direct) (void)!read_cached(r, p, to + p->at % ALIGN, p->at, bytes, &s->err);
    }
    pthread_mutex_lock(&r->lock);
    r->stats.direct_bytes += direct ? bytes : 0;
    r->stats.cached_bytes += cached ? bytes : 0;
    s->ready = true;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

static void *reader_main(void *arg)
{
    struct wn_reader *r = arg;

    pthread_mutex_lock(&r->lock);
    while (!r->closing && r->taken < r->o.pieces_n) {
        const size_t i = r->taken, slot = i % r->slots_n;
        if (i >= r->given + r->slots_n) {
            pthread_cond_wait(&r->changed, &r->lock);
            continue;
        }
        r->taken++;
        pthread_mutex_unlock(&r->lock);
        read_piece(r, &r->o.pieces[i], r->memory + slot * r->slot_bytes, &r->slots[slot]);
        pthread_mutex_lock(&r->lock);
    }
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

/* AUTO becomes what it is here. */
static wn_status choose_mode(struct wn_reader *r, struct wn_err *err)
{
    static const char *const names[] = {"auto", "direct", "cached"}; /* in the order of wn_read_mode */
    const char *wish = getenv("WINNOW_WEIGHT_READS");
    struct wn_hostmem m = {0};
    uint64_t all = 0;
    int i = r->o.mode;

    if (r->o.mode == WN_READ_AUTO && wish && *wish) {
        for (i = 0; i < 3 && strcmp(wish, names[i]) != 0;) i++;
        if (i == 3)
            return wn_fail(err, WN_EINVAL, "WINNOW_WEIGHT_READS=%.40s is unknown; there are: auto, direct, cached",
                           wish);
    }
    r->o.mode = (wn_read_mode)i;
    for (size_t f = 0; f < r->o.files_n; f++) all += r->o.files[f].bytes;
    r->direct = r->o.mode == WN_READ_DIRECT;
    if (r->o.mode == WN_READ_AUTO) r->direct = wn_hostmem(&m, NULL) == WN_OK && all > m.free_bytes / 2;
    return WN_OK;
}

static wn_status open_files(struct wn_reader *r, struct wn_err *err)
{
    wn_status rc = WN_OK;

    r->files = calloc(r->o.files_n + 1, sizeof(*r->files));
    if (!r->files) return wn_fail(err, WN_ENOMEM, "reader of %zu files", r->o.files_n);
    for (size_t i = 0; i < r->o.files_n; i++) r->files[i].fd = r->files[i].direct = -1;
    for (size_t i = 0; rc == WN_OK && i < r->o.files_n; i++) {
        off_t size = 0;
        rc = wn_file_open(&r->files[i].fd, &size, r->o.files[i].path, err);
    }
    return rc;
}

static wn_status open_slots(struct wn_reader *r, struct wn_err *err)
{
    size_t most = 0;

    for (size_t i = 0; i < r->o.pieces_n; i++) {
        const struct wn_piece *p = &r->o.pieces[i];
        WN_ASSERT(p->file < r->o.files_n && p->rows > 0 && p->row_bytes > 0 && p->step >= p->row_bytes);
        if (piece_room(p) > most) most = piece_room(p);
    }
    if (most == 0) return WN_OK;
    r->slot_bytes = most;
    r->slots_n = WN_READ_ROOM / most < WN_READ_SLOTS ? (uint32_t)(WN_READ_ROOM / most) : WN_READ_SLOTS;
    if (r->slots_n < 2) r->slots_n = 2;
    if (r->slots_n > r->o.pieces_n) r->slots_n = (uint32_t)r->o.pieces_n;
    r->memory = mmap(NULL, r->slots_n * most, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (r->memory != MAP_FAILED) return WN_OK;
    r->memory = NULL;
    return wn_fail(err, WN_ENOMEM, "reader: %u pieces of %zu bytes", r->slots_n, most);
}

wn_status wn_reader_open(struct wn_reader **out, const struct wn_reader_opts *opts, struct wn_err *err)
{
    struct wn_reader *r = calloc(1, sizeof(*r));
    const uint32_t wish = opts->threads && opts->threads < WN_READ_THREADS ? opts->threads : WN_READ_THREADS;
    wn_status rc;

    if (!r) return wn_fail(err, WN_ENOMEM, "reader");
    r->o = *opts;
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->changed, NULL);
    if ((rc = choose_mode(r, err)) != WN_OK) goto out;
    if ((rc = open_files(r, err)) != WN_OK) goto out;
    if ((rc = open_slots(r, err)) != WN_OK) goto out;
    while (r->threads_n < wish && r->threads_n < r->slots_n) {
        const int code = pthread_create(&r->threads[r->threads_n], NULL, reader_main, r);
        if (code != 0 && r->threads_n == 0) rc = wn_fail(err, WN_EIO, "reader's thread: %s", strerror(code));
        if (code != 0) break; /* fewer will do */
        r->threads_n++;
    }
out:
    if (rc != WN_OK) {
        wn_reader_close(r);
        return rc;
    }
    *out = r;
    return WN_OK;
}

void wn_reader_close(struct wn_reader *r)
{
    if (!r) return;
    pthread_mutex_lock(&r->lock);
    r->closing = true;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
    for (uint32_t i = 0; i < r->threads_n; i++) pthread_join(r->threads[i], NULL);
    for (size_t i = 0; r->files && i < r->o.files_n; i++) {
        if (r->files[i].fd >= 0) close(r->files[i].fd);
        if (r->files[i].direct >= 0) close(r->files[i].direct);
    }
    if (r->memory) munmap(r->memory, r->slots_n * r->slot_bytes);
    pthread_cond_destroy(&r->changed);
    pthread_mutex_destroy(&r->lock);
    free(r->files);
    free(r);
}

wn_status wn_reader_next(struct wn_reader *r, struct wn_read *out, struct wn_err *err)
{
    const struct wn_piece *p = &r->o.pieces[r->next];
    struct slot *s = &r->slots[r->next % (r->slots_n ? r->slots_n : 1)];
    const int64_t began_us = wn_now_us();
    wn_status rc;

    WN_ASSERT(r->next < r->o.pieces_n && r->next - r->given < r->slots_n);
    pthread_mutex_lock(&r->lock);
    while (!s->ready) pthread_cond_wait(&r->changed, &r->lock);
    s->ready = false;
    r->next++;
    r->stats.bytes += (uint64_t)p->rows * p->row_bytes;
    r->stats.wait_us += (uint64_t)(wn_now_us() - began_us);
    pthread_mutex_unlock(&r->lock);
    rc = s->err.code;
    if (rc != WN_OK && err) *err = s->err;
    if (rc == WN_OK) *out = s->read;
    return rc;
}

void wn_reader_give(struct wn_reader *r, uint32_t n)
{
    WN_ASSERT(n <= r->next - r->given);
    pthread_mutex_lock(&r->lock);
    r->given += n;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

void *wn_reader_memory(struct wn_reader *r, size_t *bytes)
{
    *bytes = r->slots_n * r->slot_bytes;
    return r->memory;
}

uint32_t wn_reader_slots(const struct wn_reader *r)
{
    return r->slots_n;
}

struct wn_reader_stats wn_reader_stats(struct wn_reader *r)
{
    struct wn_reader_stats s;

    pthread_mutex_lock(&r->lock);
    s = r->stats;
    pthread_mutex_unlock(&r->lock);
    return s;
}
