/* shard/reader.h: every piece arrives as it lies in its file, whichever way it is read; what goes wrong is named. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "shard/reader.h"
#include "tests/scratch.h"

#define BYTES  (((size_t)3 << 20) + 1237) /* of the first file; the other has half of it */
#define PIECES 60u

static char dir[64], path[2][96];
static uint8_t *content[2];
static size_t content_bytes[2];

/* What the system calls of the reader do instead, when they are told to. */
static struct {
    int refuse_direct; /* errno of an open with O_DIRECT */
    int fail_direct;   /* errno of a read of a file that was opened so */
    int fail;          /* errno of a read that begins at or after fail_from */
    off_t fail_from;
    size_t most; /* bytes that a read returns, if not 0 */
} turn;

int __real_open(const char *name, int flags, ...);
int __wrap_open(const char *name, int flags, ...);
ssize_t __real_pread(int fd, void *to, size_t bytes, off_t at);
ssize_t __wrap_pread(int fd, void *to, size_t bytes, off_t at);

int __wrap_open(const char *name, int flags, ...)
{
    if ((flags & O_DIRECT) && turn.refuse_direct) {
        errno = turn.refuse_direct;
        return -1;
    }
    return __real_open(name, flags, 0);
}

ssize_t __wrap_pread(int fd, void *to, size_t bytes, off_t at)
{
    const int flags = fcntl(fd, F_GETFL);

    if ((flags & O_DIRECT) && turn.fail_direct) errno = turn.fail_direct;
    else if (turn.fail && at >= turn.fail_from) errno = turn.fail;
    else return __real_pread(fd, to, turn.most && bytes > turn.most ? turn.most : bytes, at);
    return -1;
}

static int setup(void **state)
{
    (void)state;
    if (!scratch_make(dir, sizeof(dir), "test-reader")) return -1;
    for (int f = 0; f < 2; f++) {
        char name[16];
        snprintf(name, sizeof(name), "%d.data", f);
        snprintf(path[f], sizeof(path[f]), "%s/%s", dir, name);
        content_bytes[f] = f ? BYTES / 2 : BYTES;
        content[f] = malloc(content_bytes[f]);
        if (!content[f]) return -1;
        for (size_t i = 0; i < content_bytes[f]; i++)
            content[f][i] = (uint8_t)(i * 131 + (i >> 8) * 17 + (i >> 16) * 3 + (size_t)f);
        if (!scratch_write(dir, name, content[f], content_bytes[f])) return -1;
    }
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    free(content[0]);
    free(content[1]);
    return scratch_remove(dir) ? 0 : -1;
}

static int reset(void **state)
{
    (void)state;
    memset(&turn, 0, sizeof(turn));
    unsetenv("WINNOW_WEIGHT_READS");
    return 0;
}

static void list_files(struct wn_reader_file files[2])
{
    for (int f = 0; f < 2; f++) files[f] = (struct wn_reader_file){.path = path[f], .bytes = content_bytes[f]};
}

/* Odd places and sizes, whole rows, rows cut out of wider ones, rows far apart, and the ends of both files. */
static void list_pieces(struct wn_piece pieces[PIECES])
{
    for (uint32_t i = 0; i < PIECES; i++) {
        const uint32_t f = i % 2;
        struct wn_piece p = {.name = "tensor", .file = f, .rows = 1 + i * 7 % 13, .row_bytes = 1 + i * i * 37 % 9000};
        p.step = i % 3 == 0 ? p.row_bytes : i % 3 == 1 ? p.row_bytes + i * 11 : WN_READ_GAP + p.row_bytes + i;
        p.at = (uint64_t)i * 20011 % (content_bytes[f] / 3);
        if (i >= PIECES - 4) p.at = content_bytes[f] - (p.rows - 1) * p.step - p.row_bytes;
        if (i == PIECES - 5) p = (struct wn_piece){.name = "all", .file = f, .rows = 1, .row_bytes = content_bytes[f],
                                                   .step = content_bytes[f]};
        pieces[i] = p;
    }
}

static void check_piece(const struct wn_piece *p, const struct wn_read *read)
{
    for (uint32_t r = 0; r < p->rows; r++)
        if (memcmp((const char *)read->data + r * read->step, content[p->file] + p->at + r * p->step, p->row_bytes))
            fail_msg("row %u of %zu bytes at %llu, %zu apart", r, p->row_bytes, (unsigned long long)p->at, p->step);
}

/* Reads all pieces, `lent` of them at a time. */
static struct wn_reader_stats read_all(const struct wn_reader_opts *o, uint32_t lent)
{
    struct wn_reader *r = NULL;
    struct wn_reader_stats s;
    struct wn_err err = {0};
    struct wn_read reads[WN_READ_SLOTS];
    uint64_t bytes = 0;

    if (wn_reader_open(&r, o, &err) != WN_OK) fail_msg("%s", err.text);
    if (lent > wn_reader_slots(r)) lent = wn_reader_slots(r);
    for (size_t i = 0, n; i < o->pieces_n; i += n) {
        for (n = 0; n < lent && i + n < o->pieces_n; n++)
            if (wn_reader_next(r, &reads[n], &err) != WN_OK) fail_msg("%s", err.text);
        for (size_t k = 0; k < n; k++) check_piece(&o->pieces[i + k], &reads[k]); /* after all of them came */
        wn_reader_give(r, (uint32_t)n);
    }
    for (size_t i = 0; i < o->pieces_n; i++) bytes += o->pieces[i].rows * o->pieces[i].row_bytes;
    s = wn_reader_stats(r);
    assert_true(s.bytes == bytes);
    wn_reader_close(r);
    return s;
}

/* In every way, with few threads and many, from a cold page cache and a warm one. */
static void pieces_arrive(void **state)
{
    static const wn_read_mode modes[] = {WN_READ_AUTO, WN_READ_DIRECT, WN_READ_CACHED};
    struct wn_reader_file files[2];
    struct wn_piece pieces[PIECES];
    (void)state;

    list_files(files);
    list_pieces(pieces);
    for (size_t m = 0; m < 3; m++)
        for (uint32_t threads = 0; threads < 4; threads++) {
            const struct wn_reader_opts o = {.files = files, .files_n = 2, .pieces = pieces, .pieces_n = PIECES,
                                             .threads = threads, .mode = modes[m]};
            const int fd = open(path[threads % 2], O_RDONLY);
            assert_int_equal(fdatasync(fd), 0);
            (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
            close(fd);
            turn.most = threads == 3 ? 5000 : 0; /* short reads */
            read_all(&o, 1 + threads * 5);
        }
}

/* Who refuses O_DIRECT, at once or in a read, is read by way of the page cache. */
static void direct_refused(void **state)
{
    struct wn_reader_file files[2];
    struct wn_piece pieces[PIECES];
    const struct wn_reader_opts o = {.files = files, .files_n = 2, .pieces = pieces, .pieces_n = PIECES,
                                     .mode = WN_READ_DIRECT};
    (void)state;

    list_files(files);
    list_pieces(pieces);
    turn.refuse_direct = EINVAL;
    assert_true(read_all(&o, 3).direct_bytes == 0);
    turn.refuse_direct = 0;
    turn.fail_direct = EINVAL;
    assert_true(read_all(&o, 3).direct_bytes == 0);
}

/* What the page cache has is lent from the mapping, but not where it is to be read past the cache. */
static void cached_pieces_are_lent(void **state)
{
    struct wn_reader_file files[2];
    struct wn_piece pieces[PIECES];
    struct wn_reader_opts o = {.files = files, .files_n = 2, .pieces = pieces, .pieces_n = PIECES};
    struct wn_reader *r = NULL;
    struct wn_reader_stats s;
    struct wn_read read;
    uint8_t *maps[2];
    (void)state;

    list_files(files);
    list_pieces(pieces);
    for (int f = 0; f < 2; f++) {
        const int fd = open(path[f], O_RDONLY);
        maps[f] = mmap(NULL, content_bytes[f], PROT_READ, MAP_PRIVATE, fd, 0);
        assert_true(maps[f] != MAP_FAILED);
        close(fd);
        assert_memory_equal(maps[f], content[f], content_bytes[f]); /* now it is there */
        files[f].map = maps[f];
    }
    s = read_all(&o, 2);
    assert_int_equal(wn_reader_open(&r, &o, NULL), WN_OK);
    assert_int_equal(wn_reader_next(r, &read, NULL), WN_OK);
    if (s.cached_bytes > 0) /* the file system says what is there */
        assert_true(read.data == maps[pieces[0].file] + pieces[0].at && read.step == pieces[0].step);
    wn_reader_close(r);
    o.mode = WN_READ_DIRECT;
    assert_true(read_all(&o, 2).cached_bytes == 0);
    for (int f = 0; f < 2; f++) munmap(maps[f], content_bytes[f]);
}

static void expect(const struct wn_reader_opts *o, size_t good, wn_status code, const char *says)
{
    struct wn_reader *r = NULL;
    struct wn_err err = {0};
    wn_status rc = wn_reader_open(&r, o, &err);

    for (size_t i = 0; rc == WN_OK && i <= good; i++) {
        struct wn_read read;
        rc = wn_reader_next(r, &read, &err);
        if (rc != WN_OK) assert_int_equal(i, good);
        if (rc == WN_OK) wn_reader_give(r, 1);
    }
    if (rc != code || !strstr(err.text, says)) fail_msg("%s: '%s', expected '%s'", wn_status_name(rc), err.text, says);
    wn_reader_close(r);
}

static void errors_are_named(void **state)
{
    struct wn_reader_file files[2];
    struct wn_piece pieces[2] = {{.name = "first", .rows = 1, .row_bytes = 4096, .step = 4096},
                                 {.name = "model.norm", .rows = 1, .at = BYTES - 100, .row_bytes = 100, .step = 100}};
    struct wn_reader_opts o = {.files = files, .files_n = 1, .pieces = pieces, .pieces_n = 2};
    char says[160];
    (void)state;

    list_files(files);
    for (o.mode = WN_READ_AUTO; o.mode <= WN_READ_CACHED; o.mode++) {
        turn.fail = EIO;
        turn.fail_from = 8192;
        snprintf(says, sizeof(says), "%s: tensor 'model.norm': read at byte %zu: Input/output error", path[0],
                 BYTES - 100);
        expect(&o, 1, WN_EIO, says);
        turn.fail = 0;
        files[0].bytes = BYTES + 50; /* the file is shorter than it was */
        pieces[1].at += 50;
        snprintf(says, sizeof(says), "%s: tensor 'model.norm': the file ends at byte %zu, and its header says %zu",
                 path[0], BYTES, BYTES + 50);
        expect(&o, 1, WN_EIO, says);
        files[0].map = content[0]; /* what it would lend is not there */
        expect(&o, 1, WN_EIO, says);
        files[0] = (struct wn_reader_file){.path = path[0], .bytes = BYTES};
        pieces[1].at -= 50;
    }
    files[0].path = "/nowhere/model.safetensors";
    expect(&o, 0, WN_ENOENT, "/nowhere/model.safetensors");
    files[0].path = dir;
    expect(&o, 0, WN_EFORMAT, "is not a regular file");
    list_files(files);
    o.mode = WN_READ_AUTO;
    setenv("WINNOW_WEIGHT_READS", "fast", 1);
    expect(&o, 0, WN_EINVAL, "WINNOW_WEIGHT_READS=fast is unknown; there are: auto, direct, cached");
    setenv("WINNOW_WEIGHT_READS", "direct", 1);
    read_all(&o, 1);
}

/* Its threads wait for slots, or have not begun, or there is nothing to read. */
static void closed_in_the_middle(void **state)
{
    struct wn_reader_file files[2];
    struct wn_piece pieces[PIECES];
    struct wn_reader_opts o = {.files = files, .files_n = 2, .pieces = pieces, .pieces_n = PIECES};
    (void)state;

    list_files(files);
    list_pieces(pieces);
    for (int n = 0; n < 20; n++) {
        struct wn_reader *r = NULL;
        struct wn_read read;
        assert_int_equal(wn_reader_open(&r, &o, NULL), WN_OK);
        for (int i = 0; i < n && i < 10; i++) assert_int_equal(wn_reader_next(r, &read, NULL), WN_OK);
        wn_reader_close(r);
    }
    o.pieces_n = 0;
    read_all(&o, 1);
    wn_reader_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(pieces_arrive, reset),    cmocka_unit_test_setup(direct_refused, reset),
        cmocka_unit_test_setup(errors_are_named, reset), cmocka_unit_test_setup(cached_pieces_are_lent, reset),
        cmocka_unit_test_setup(closed_in_the_middle, reset),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
