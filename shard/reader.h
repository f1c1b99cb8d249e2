/* shard/reader.h - pieces of large files into memory, in a given order, read ahead by a few threads.
 *
 * A thread takes the next piece and a slot of a ring of page-aligned memory, so that disk, page cache and whoever uses
 * the pieces are busy at the same time, and what is held is slots_n slots, whatever the files' size. Where the bytes of
 * a piece come from is decided for each (AUTO):
 *  - those in the page cache are copied from there by the thread, or, if the file's mapping is given, lent as they lie;
 *  - others are read from the disk past the page cache (O_DIRECT) if the files would not stay in it, because together
 *    they are larger than half of the memory that this process may still take; else by way of it, so that the next
 *    start, and other ranks of this host, find them there.
 * A file system that refuses O_DIRECT, or fails one such read, is read by way of the page cache; nobody hears of it.
 * WINNOW_WEIGHT_READS=auto, direct or cached overrides AUTO.
 *
 * Rows that lie apart (columns of a matrix) are read with what is between them, for a disk that is faster than to ask
 * for each, unless that is more than WN_READ_GAP bytes a row.
 *
 * Owns:    threads, slots and open files, from open to close. Borrows files and pieces until close.
 * Threads: one calls these functions.
 * Fails:   WN_EIO (naming file and piece: unreadable, or shorter than it was), WN_ENOENT, WN_EFORMAT (not a regular
 *          file), WN_ENOMEM, WN_EINVAL (WINNOW_WEIGHT_READS). */
#ifndef WN_SHARD_READER_H
#define WN_SHARD_READER_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define WN_READ_THREADS 8u            /* at most */
#define WN_READ_SLOTS   12u           /* at most */
#define WN_READ_ROOM    (96ull << 20) /* of all slots, if two pieces take no more */
#define WN_READ_GAP     (64u << 10)

struct wn_reader; /* opaque */

struct wn_reader_file {
    const char *path;
    uint64_t bytes;     /* when its header was read */
    const uint8_t *map; /* its mapping, from which cached pieces may be lent; NULL: all are read */
};

/* Rows of row_bytes that begin `step` bytes apart, the first at byte `at`. */
struct wn_piece {
    const char *name; /* for errors */
    uint32_t file, rows;
    uint64_t at;
    size_t row_bytes, step;
};

typedef enum wn_read_mode {
    WN_READ_AUTO,
    WN_READ_DIRECT, /* past the page cache, where that is possible */
    WN_READ_CACHED  /* always by way of it */
} wn_read_mode;

struct wn_reader_opts {
    const struct wn_reader_file *files; /* [files_n] */
    const struct wn_piece *pieces;      /* [pieces_n], as they are wanted */
    size_t files_n, pieces_n;
    uint32_t threads; /* 0: WN_READ_THREADS */
    wn_read_mode mode;
};

/* A piece: row i at data + i * step. Lent. */
struct wn_read {
    const void *data;
    size_t step;
};

struct wn_reader_stats {
    uint64_t bytes;                      /* of the pieces that were given out */
    uint64_t direct_bytes, cached_bytes; /* read past the page cache; found in it. With what lies between rows */
    uint64_t wait_us;                    /* that wn_reader_next waited */
};

/* *out is owned by the caller. Reading begins. */
WN_NODISCARD wn_status wn_reader_open(struct wn_reader **out, const struct wn_reader_opts *opts, struct wn_err *err);
void wn_reader_close(struct wn_reader *r); /* NULL is fine; reads under way are waited for */

/* The next piece, once it is there; it is lent until it is given back. No more than wn_reader_slots may be lent. */
WN_NODISCARD wn_status wn_reader_next(struct wn_reader *r, struct wn_read *out, struct wn_err *err);
void wn_reader_give(struct wn_reader *r, uint32_t n); /* the n that were lent first */

/* All slots, for who wants to pin them: [*bytes], 0 if there are no pieces. */
void *wn_reader_memory(struct wn_reader *r, size_t *bytes);
uint32_t wn_reader_slots(const struct wn_reader *r);
struct wn_reader_stats wn_reader_stats(struct wn_reader *r);

#endif
