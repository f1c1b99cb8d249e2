/* bench_load MODEL [BACKEND [int8]] - how fast a checkpoint's language model gets into the memory of a backend, as CSV
 * on standard output. One rank holds all of it.
 *
 * `mapped` is what a loader without shard/reader.h did: tensor by tensor out of the mapped files. `read` is the loader;
 * `direct` the same with WINNOW_WEIGHT_READS=direct. Cold: the files' pages were dropped from the page cache before
 * (posix_fadvise; /dev/shm keeps them); warm: they are there. Verified first: all bytes of the files as the reader
 * gives them, in both ways, are those of the mapping. disk_ratio is to the rate of one loop that reads the same files
 * past the page cache, 8 MiB at a time, in the same run. Ways take turns; the fastest of RUNS counts. */
#include <fcntl.h>
#include <omp.h>
#include <string.h>
#include <sys/statfs.h>
#include <unistd.h>

#include "shard/loader.h"
#include "tests/bench/must.h"
#include "winnow_version.h"

enum { RUNS = 2, FILES = 64, HELD = 1024 };
#define BLOCK ((size_t)8 << 20)
#define DISK  ((uint64_t)2 << 30) /* bytes at most that the disk's rate is measured with */

static struct wn_backend *be;
static struct wn_plan plan;
static struct wn_err err;
static const char *model_dir;
static struct wn_weight *held[HELD];
static struct wn_buf table;
static uint32_t held_n;

static struct wn_weights *open_weights(void)
{
    struct wn_weights *w = NULL;
    must(wn_weights_open(&w, model_dir, &err) == WN_OK, "%s", err.text);
    return w;
}

/* Nothing may have the files mapped. */
static void drop_pages(void)
{
    struct wn_weights *w = open_weights();
    struct wn_reader_file file;
    int fds[FILES], n = 0;

    while (n < FILES && wn_weights_file(w, (uint32_t)n, &file))
        must((fds[n++] = open(file.path, O_RDONLY)) >= 0, "%s", file.path);
    wn_weights_close(w);
    while (n-- > 0) {
        (void)fdatasync(fds[n]);
        (void)posix_fadvise(fds[n], 0, 0, POSIX_FADV_DONTNEED);
        close(fds[n]);
    }
}

/* ---- bytes ---- */

static void verify(wn_read_mode mode)
{
    struct wn_weights *w = open_weights();
    struct wn_reader_file files[FILES];
    struct wn_piece *pieces = calloc(1 << 16, sizeof(*pieces));
    struct wn_reader_opts o = {.files = files, .pieces = pieces, .mode = mode};
    struct wn_reader *r = NULL;

    must(pieces != NULL, "memory");
    while (o.files_n < FILES && wn_weights_file(w, (uint32_t)o.files_n, &files[o.files_n])) o.files_n++;
    for (uint32_t f = 0; f < o.files_n; f++)
        for (uint64_t at = 0; at < files[f].bytes && o.pieces_n < 1 << 16; at += BLOCK - 4099) { /* odd places */
            const size_t left = (size_t)(files[f].bytes - at), n = left < BLOCK - 4099 ? left : BLOCK - 4099;
            pieces[o.pieces_n++] = (struct wn_piece){
                .name = "block", .file = f, .rows = 1, .at = at, .row_bytes = n, .step = n};
        }
    for (size_t f = 0; f < o.files_n; f++) files[f].map = NULL;
    must(wn_reader_open(&r, &o, &err) == WN_OK, "%s", err.text);
    for (size_t i = 0; i < o.pieces_n; i++) {
        struct wn_reader_file file;
        struct wn_read read;
        must(wn_weights_file(w, pieces[i].file, &file) && wn_reader_next(r, &read, &err) == WN_OK, "%s", err.text);
        must(memcmp(read.data, file.map + pieces[i].at, pieces[i].row_bytes) == 0, "%s: other bytes from %llu on",
             file.path, (unsigned long long)pieces[i].at);
        wn_reader_give(r, 1);
    }
    wn_reader_close(r);
    wn_weights_close(w);
    free(pieces);
}

/* Bytes a second of one loop over the files, past the page cache if the file system can. */
static double disk_rate(void)
{
    struct wn_weights *w = open_weights();
    void *block = aligned_alloc(4096, BLOCK);
    struct wn_reader_file file;
    uint64_t bytes = 0;
    int64_t began_us;

    must(block != NULL, "memory");
    drop_pages();
    began_us = wn_now_us();
    for (uint32_t f = 0; bytes < DISK && wn_weights_file(w, f, &file); f++) {
        int fd = open(file.path, O_RDONLY | O_DIRECT);
        ssize_t n;
        if (fd < 0) fd = open(file.path, O_RDONLY);
        must(fd >= 0, "%s", file.path);
        while (bytes < DISK && (n = read(fd, block, BLOCK)) > 0) bytes += (uint64_t)n;
        close(fd);
    }
    began_us = wn_now_us() - began_us;
    free(block);
    wn_weights_close(w);
    return (double)bytes * 1e6 / (double)began_us;
}

/* ---- loading ---- */

static wn_status load_mapped(void *ctx, const struct wn_slice *s, struct wn_err *e)
{
    struct wn_tensor t;
    struct wn_mat host;
    const wn_status rc = wn_weights_find(ctx, s->name, &t, e);

    if (rc != WN_OK || t.dims_n != 2) return rc; /* norms are small */
    host = (struct wn_mat){(void *)(uintptr_t)t.data, t.dtype, (uint32_t)t.dims[0], (uint32_t)t.dims[1],
                           (uint32_t)t.dims[1]};
    must(held_n < HELD, "more than %d matrices", HELD);
    if (strstr(s->name, "embed_tokens")) {
        must(be->ops->buf_alloc(be, t.bytes, &table) == WN_OK, "memory");
        must(be->ops->upload(be, table.ptr, t.data, t.bytes) == WN_OK, "upload");
    } else if (s->int8_slices) {
        must(be->ops->weight_i8(be, &held[held_n++], &host, s->int8_slices) == WN_OK, "%s", s->name);
    } else {
        must(be->ops->weight_create(be, &held[held_n++], &host, plan.dtype) == WN_OK, "%s", s->name);
    }
    wn_weights_release(&t);
    return WN_OK;
}

static double mapped_us(struct wn_weights *w)
{
    int64_t began_us = wn_now_us();

    must(wn_plan_slices(&plan, 0, load_mapped, w, &err) == WN_OK, "%s", err.text);
    must(be->ops->sync(be, WN_NEVER) == WN_OK, "sync");
    began_us = wn_now_us() - began_us;
    while (held_n > 0) be->ops->weight_destroy(be, held[--held_n]);
    be->ops->buf_free(be, &table);
    return (double)began_us;
}

static double loader_us(struct wn_weights *w)
{
    struct wn_loader *l = NULL;
    struct wn_load_rate rate;

    must(wn_loader_open(&l, be, plan.dtype, &err) == WN_OK, "%s", err.text);
    must(wn_loader_plan(l, w, &plan, 0, &err) == WN_OK, "%s", err.text);
    rate = wn_loader_rate(l);
    wn_loader_close(l);
    return (double)rate.us;
}

static uint64_t file_bytes(void)
{
    struct wn_weights *w = open_weights();
    struct wn_loader *l = NULL;
    uint64_t bytes;

    must(wn_loader_open(&l, be, plan.dtype, &err) == WN_OK, "%s", err.text);
    must(wn_loader_plan(l, w, &plan, 0, &err) == WN_OK, "%s", err.text);
    bytes = wn_loader_rate(l).bytes;
    wn_loader_close(l);
    wn_weights_close(w);
    return bytes;
}

static double run(bool mapped, bool direct, bool cold)
{
    struct wn_weights *w;
    double us;

    if (cold) drop_pages();
    if (direct) setenv("WINNOW_WEIGHT_READS", "direct", 1);
    w = open_weights();
    us = mapped ? mapped_us(w) : loader_us(w);
    wn_weights_close(w);
    unsetenv("WINNOW_WEIGHT_READS");
    return us;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name, *cache;
        bool mapped, direct, cold;
    } ways[] = {{"mapped", "cold", true, false, true},
                {"read", "cold", false, false, true},
                {"direct", "cold", false, true, true},
                {"mapped", "warm", true, false, false}, /* `direct` has left nothing: its first run warms */
                {"read", "warm", false, false, false}};
    enum { WAYS = sizeof(ways) / sizeof(ways[0]) };
    const char *backend = argc > 2 ? argv[2] : "cpu";
    double best[WAYS] = {0}, disk;
    struct wn_model model;
    struct statfs fs = {0};
    uint64_t bytes;

    if (argc < 2 || argc > 4 || (argc == 4 && strcmp(argv[3], "int8") != 0)) {
        fprintf(stderr, "usage: bench_load MODEL [BACKEND [int8]]\n");
        return 2;
    }
    model_dir = argv[1];
    must(wn_model_open(&model, model_dir, &err) == WN_OK, "%s", err.text);
    must(wn_plan_make(&plan, &model, 1, 1, NULL, WN_BF16, &err) == WN_OK, "%s", err.text);
    if (argc == 4) plan.linear = WN_I8;
    must(wn_backend_open(&be, backend, 0, &err) == WN_OK, "%s", err.text);
    (void)statfs(model_dir, &fs);
    verify(WN_READ_DIRECT);
    verify(WN_READ_CACHED);
    bytes = file_bytes();
    disk = disk_rate();
    printf("# %.2f GB on a file system of type %#lx; one loop reads it at %.2f GB/s; %d threads\n",
           (double)bytes * 1e-9, (unsigned long)fs.f_type, disk * 1e-9, omp_get_max_threads());
    printf("commit,backend,type,way,cache,bytes,n,min_us,gbytes_s,disk_ratio\n");
    for (int n = 0; n < RUNS; n++)
        for (int i = 0; i < WAYS; i++) {
            double us;
            if (strcmp(ways[i].cache, "warm") == 0 && n == 0 && i == 3) (void)run(true, false, false);
            us = run(ways[i].mapped, ways[i].direct, ways[i].cold);
            if (best[i] == 0.0 || us < best[i]) best[i] = us;
        }
    for (int i = 0; i < WAYS; i++)
        printf("%.12s,%s,%s,%s,%s,%llu,%d,%.0f,%.3f,%.3f\n", WN_COMMIT, backend, wn_dtype_name(plan.linear),
               ways[i].name, ways[i].cache, (unsigned long long)bytes, RUNS, best[i], (double)bytes * 1e-3 / best[i],
               (double)bytes * 1e6 / best[i] / disk);
    wn_backend_close(be);
    return 0;
}
