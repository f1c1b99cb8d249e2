/* Device memory, and the ways of host data to it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "shard/cpu/check.h"
#include "shard/cuda/cuda.h"

#define PIECE ((size_t)256 << 10) /* bytes that a thread copies at a time */

static struct wn_cuda *cuda(struct wn_backend *be)
{
    return (struct wn_cuda *)be;
}

wn_status wn_cuda_memory_open(struct wn_cuda *c, struct wn_err *err)
{
    wn_status rc =
        wn_cuda_check(cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking), "stream", err);

    for (uint32_t i = 0; rc == WN_OK && i < WN_CUDA_STAGES; i++) {
        struct wn_cuda_stage *s = &c->stages[i];
        rc = wn_cuda_check(cudaHostAlloc(&s->pinned, WN_CUDA_STAGE_BYTES, cudaHostAllocDefault), "pinned memory", err);
        if (rc == WN_OK)
            rc = wn_cuda_check(cudaEventCreateWithFlags(&s->copied, cudaEventDisableTiming), "event", err);
    }
    if (rc == WN_OK) rc = wn_cuda_marks_open(&c->marks, err);
    return rc == WN_OK ? wn_cuda_queue_open(c, err) : rc;
}

void wn_cuda_memory_close(struct wn_cuda *c)
{
    if (c->stream) (void)cudaStreamSynchronize(c->stream);
    wn_cuda_unpin(&c->base);
    for (uint32_t i = 0; i < WN_CUDA_STAGES; i++) {
        (void)cudaFreeHost(c->stages[i].pinned);
        if (c->stages[i].copied) (void)cudaEventDestroy(c->stages[i].copied);
    }
    wn_cuda_queue_close(c);
    wn_cuda_marks_close(&c->marks);
    for (int i = 0; i < WN_CUDA_SCRATCH_N; i++) (void)cudaFree(c->scratch[i].ptr);
    (void)cudaFree(c->freq);
    if (c->stream) (void)cudaStreamDestroy(c->stream);
    free(c->words);
}

wn_status wn_cuda_memory(struct wn_backend *be, struct wn_memory *out)
{
    size_t left = 0, total = 0;
    struct wn_memory m = {0};
    struct cudaDeviceProp p;
    wn_status rc = wn_cuda_check(cudaMemGetInfo(&left, &total), "device memory", NULL);

    if (rc == WN_OK) rc = wn_cuda_check(cudaGetDeviceProperties(&p, cuda(be)->device), "device", NULL);
    if (rc != WN_OK) return rc;
    for (size_t i = 0; i < sizeof(p.uuid); i++)
        snprintf(m.id + 2 * i, sizeof(m.id) - 2 * i, "%02x", (unsigned char)p.uuid.bytes[i]);
    m.free_bytes = left;
    m.total_bytes = total;
    *out = m;
    return WN_OK;
}

wn_status wn_cuda_buf_alloc(struct wn_backend *be, size_t bytes, struct wn_buf *out)
{
    void *p = NULL;
    cudaError_t code = cudaMalloc(&p, bytes ? bytes : 1);
    (void)be;

    if (code == cudaErrorMemoryAllocation) {
        size_t left = 0, total = 0;
        (void)cudaGetLastError();
        (void)cudaMemGetInfo(&left, &total);
        return wn_fail(NULL, WN_ENOMEM, "cuda: buffer of %zu bytes, the device has %zu left of %zu", bytes, left,
                       total);
    }
    if (code != cudaSuccess) return wn_cuda_check(code, "buffer", NULL);
    *out = (struct wn_buf){.ptr = p, .bytes = bytes};
    return WN_OK;
}

void wn_cuda_buf_free(struct wn_backend *be, struct wn_buf *buf)
{
    (void)!wn_cuda_flush(cuda(be)); /* what fails there fails again at the next wait */
    (void)cudaStreamSynchronize(cuda(be)->stream); /* queued work may still use it */
    (void)cudaFree(buf->ptr);
    *buf = (struct wn_buf){0};
}

/* The next chunk of the ring, once its last copy is over. */
static wn_status stage_take(struct wn_cuda *c, struct wn_cuda_stage **out)
{
    struct wn_cuda_stage *s = &c->stages[c->stage];

    c->stage = (c->stage + 1) % WN_CUDA_STAGES;
    *out = s;
    return wn_cuda_check(cudaEventSynchronize(s->copied), "wait for a copy", NULL);
}

/* n rows of `len` bytes, `step` apart, to `to`, one after the other. Threads share it: one alone reads memory, or the
 * pages of a file, at a fraction of the rate at which the device takes them. */
static void pack_rows(char *to, const char *from, size_t step, size_t len, size_t n)
{
    const size_t all = n * len, piece = step == len ? PIECE : len, pieces = (all + piece - 1) / piece;

#pragma omp parallel for schedule(static) if (all > PIECE)
    for (size_t i = 0; i < pieces; i++) {
        const size_t left = all - i * piece;
        memcpy(to + i * piece, from + i * (step == len ? piece : step), left < piece ? left : piece);
    }
}

/* May the device read there by itself? */
static bool is_pinned(const struct wn_cuda *c, const char *host, size_t bytes)
{
    const uintptr_t at = (uintptr_t)host, from = (uintptr_t)c->pinned;

    return c->pinned && at >= from && at - from <= c->pinned_bytes && bytes <= c->pinned_bytes - (at - from);
}

/* rows of `width` bytes, `host_step` apart, to dst with rows `step` apart: through the ring, so `host` is the caller's
 * again at return. */
static wn_status stage_rows(struct wn_cuda *c, char *dst, size_t step, const char *host, size_t host_step,
                             size_t width, size_t rows)
{
    wn_status rc = WN_OK;
    size_t piece = width < WN_CUDA_STAGE_BYTES ? width : WN_CUDA_STAGE_BYTES;
    size_t rows_max = piece ? WN_CUDA_STAGE_BYTES / piece : 0;

    for (size_t r = 0; rc == WN_OK && width && r < rows; r += rows_max) {
        size_t n = rows - r < rows_max ? rows - r : rows_max;
        for (size_t at = 0; rc == WN_OK && at < width; at += piece) { /* more than one piece: rows_max is 1 */
            size_t len = width - at < piece ? width - at : piece;
            struct wn_cuda_stage *s = NULL;
            if ((rc = stage_take(c, &s)) != WN_OK) break;
            pack_rows(s->pinned, host + r * host_step + at, host_step, len, n);
            rc = wn_cuda_check(cudaMemcpy2DAsync(dst + r * step + at, step, s->pinned, len, len, n,
                                                 cudaMemcpyHostToDevice, c->stream),
                               "upload", NULL);
            if (rc == WN_OK) rc = wn_cuda_check(cudaEventRecord(s->copied, c->stream), "upload", NULL);
        }
    }
    return rc;
}

/* The same; what is pinned is copied as it lies, and is the caller's after a sync. */
static wn_status upload_rows(struct wn_cuda *c, char *dst, size_t step, const char *host, size_t host_step,
                             size_t width, size_t rows)
{
    if (rows == 0 || width == 0) return WN_OK;
    if (!is_pinned(c, host, (rows - 1) * host_step + width))
        return stage_rows(c, dst, step, host, host_step, width, rows);
    return wn_cuda_check(
        cudaMemcpy2DAsync(dst, step, host, host_step, width, rows, cudaMemcpyHostToDevice, c->stream), "upload", NULL);
}

wn_status wn_cuda_pin(struct wn_backend *be, void *host, size_t bytes)
{
    struct wn_cuda *c = cuda(be);
    wn_status rc;

    WN_ASSERT(!c->pinned && bytes > 0);
    rc = wn_cuda_check(cudaHostRegister(host, bytes, cudaHostRegisterDefault), "pinned memory", NULL);
    if (rc != WN_OK) {
        (void)cudaGetLastError();
        return rc;
    }
    c->pinned = host;
    c->pinned_bytes = bytes;
    return WN_OK;
}

void wn_cuda_unpin(struct wn_backend *be)
{
    struct wn_cuda *c = cuda(be);

    if (!c->pinned) return;
    (void)cudaStreamSynchronize(c->stream);
    (void)cudaHostUnregister(c->pinned);
    c->pinned = NULL;
}

wn_status wn_cuda_upload(struct wn_backend *be, void *dst, const void *host_src, size_t bytes)
{
    struct wn_cuda *c = cuda(be);
    wn_status rc = wn_cuda_flush(c);

    for (size_t at = 0; rc == WN_OK && at < bytes; at += WN_CUDA_STAGE_BYTES) {
        size_t len = bytes - at < WN_CUDA_STAGE_BYTES ? bytes - at : WN_CUDA_STAGE_BYTES;
        rc = upload_rows(c, (char *)dst + at, len, (const char *)host_src + at, len, len, 1);
    }
    return rc;
}

/* Pageable host memory: CUDA stages it itself. */
wn_status wn_cuda_download(struct wn_backend *be, void *host_dst, const void *src, size_t bytes)
{
    struct wn_cuda *c = cuda(be);
    wn_status rc = wn_cuda_flush(c);

    if (rc == WN_OK && bytes)
        rc = wn_cuda_check(cudaMemcpyAsync(host_dst, src, bytes, cudaMemcpyDeviceToHost, c->stream), "download", NULL);
    return rc == WN_OK ? wn_cuda_check(cudaStreamSynchronize(c->stream), "download", NULL) : rc;
}

/* Rows from `first` on of the weight. */
static int convert_rows(const struct wn_cuda *c, const struct wn_weight *w, uint32_t first, struct wn_cuda_mat in)
{
    void *at = (char *)w->ptr + (size_t)first * w->stride * wn_dtype_bytes(w->dtype);
    const struct wn_cuda_rows rows = {
        .in = in, .out = {at, (uint32_t)w->dtype, in.rows, w->k, w->stride}, .rows = in.rows};
    const struct wn_cuda_quantise q = {.in = in,
                                       .out = at,
                                       .scales = w->scales ? w->scales + first : NULL,
                                       .stride = w->stride,
                                       .slices = w->slices,
                                       .scales_step = w->n};

    return w->dtype == WN_I8 ? wn_cuda_run_quantise(&q, wn_cuda_now(c)) : wn_cuda_run_rows(&rows, wn_cuda_now(c));
}

/* Rows go as they are and are converted on the device, in blocks of a chunk of the ring. */
static wn_status upload_converted(struct wn_cuda *c, struct wn_weight *w, uint32_t first, const struct wn_mat *host)
{
    size_t e = wn_dtype_bytes(host->dtype), width = (size_t)host->cols * e;
    uint32_t rows_max = (uint32_t)(WN_CUDA_STAGE_BYTES / width);
    wn_status rc = WN_OK;
    void *raw = NULL;

    if (rows_max == 0) rows_max = 1;
    if (rows_max > host->rows) rows_max = host->rows;
    rc = wn_cuda_scratch(c, WN_CUDA_SCRATCH_RAW, rows_max * width, &raw);
    for (uint32_t r = 0; rc == WN_OK && r < host->rows; r += rows_max) {
        uint32_t n = host->rows - r < rows_max ? host->rows - r : rows_max;
        const struct wn_cuda_mat in = {raw, (uint32_t)host->dtype, n, host->cols, host->cols};
        rc = upload_rows(c, raw, width, (const char *)host->ptr + (size_t)r * host->stride * e, host->stride * e, width,
                         n);
        if (rc == WN_OK) rc = wn_cuda_check((cudaError_t)convert_rows(c, w, first + r, in), "convert", NULL);
    }
    return rc;
}

wn_status wn_cuda_weight_rows(struct wn_backend *be, struct wn_weight *w, uint32_t first, const struct wn_mat *host)
{
    struct wn_cuda *c = cuda(be);
    const size_t e = wn_dtype_bytes(w->dtype);
    const int64_t start = wn_now_us();
    wn_status rc;

    wn_check_source(host);
    WN_ASSERT(first + host->rows <= w->n && host->cols == w->k);
    if (host->rows == 0 || host->cols == 0) return WN_OK;
    if (host->dtype == w->dtype)
        rc = upload_rows(c, (char *)w->ptr + first * w->stride * e, w->stride * e, host->ptr, host->stride * e,
                         w->k * e, host->rows);
    else
        rc = upload_converted(c, w, first, host);
    c->uploaded_bytes += (uint64_t)host->rows * w->k * wn_dtype_bytes(host->dtype);
    c->upload_us += (uint64_t)(wn_now_us() - start);
    return rc;
}

wn_status wn_cuda_weight_create(struct wn_backend *be, struct wn_weight **out, const struct wn_mat *host, wn_dtype as)
{
    struct wn_cuda *c = cuda(be);
    struct wn_weight *w = calloc(1, sizeof(*w));
    size_t bytes;
    struct wn_buf buf = {0};
    wn_status rc;

    if (!w) return wn_fail(NULL, WN_ENOMEM, "cuda: weight [%u, %u]", host->rows, host->cols);
    *w = (struct wn_weight){.dtype = as, .n = host->rows, .k = host->cols, .stride = (host->cols + 7) / 8 * 8};
    bytes = (size_t)w->n * w->stride * wn_dtype_bytes(as);
    if ((rc = wn_cuda_buf_alloc(be, bytes, &buf)) != WN_OK) goto out;
    w->ptr = buf.ptr;
    if (w->stride != w->k)
        rc = wn_cuda_check(cudaMemsetAsync(w->ptr, 0, bytes, c->stream), "weight", NULL);
    if (rc == WN_OK && host->ptr) rc = wn_cuda_weight_rows(be, w, 0, host);
out:
    if (rc != WN_OK) {
        wn_cuda_weight_destroy(be, w);
        return rc;
    }
    *out = w;
    return WN_OK;
}

wn_status wn_cuda_weight_i8(struct wn_backend *be, struct wn_weight **out, const struct wn_mat *host, uint32_t slices)
{
    struct wn_weight *w = calloc(1, sizeof(*w));
    const uint32_t part = host->cols / slices;
    struct wn_buf buf = {0};
    size_t bytes;
    wn_status rc;

    WN_ASSERT(slices >= 1 && host->cols % slices == 0);
    if (!w) return wn_fail(NULL, WN_ENOMEM, "cuda: weight [%u, %u] as int8", host->rows, host->cols);
    *w = (struct wn_weight){
        .dtype = WN_I8, .n = host->rows, .k = host->cols, .stride = (part + 15) / 16 * 16 * slices, .slices = slices};
    bytes = (size_t)w->n * w->stride;
    if ((rc = wn_cuda_buf_alloc(be, bytes + (size_t)slices * w->n * sizeof(float), &buf)) != WN_OK) goto out;
    w->ptr = buf.ptr;
    w->scales = (float *)(void *)((char *)buf.ptr + bytes);
    if (host->ptr) rc = wn_cuda_weight_rows(be, w, 0, host);
out:
    if (rc != WN_OK) {
        wn_cuda_weight_destroy(be, w);
        return rc;
    }
    *out = w;
    return WN_OK;
}

void wn_cuda_weight_destroy(struct wn_backend *be, struct wn_weight *w)
{
    struct wn_buf buf;
    if (!w) return;
    buf = (struct wn_buf){.ptr = w->ptr};
    if (w->ptr) wn_cuda_buf_free(be, &buf);
    free(w);
}

/* Asleep between looks: a step takes milliseconds, and the cores have other work. */
wn_status wn_cuda_sync(struct wn_backend *be, int64_t deadline_us)
{
    struct wn_cuda *c = cuda(be);
    wn_status rc = wn_cuda_flush(c);

    if (rc != WN_OK) return rc;
    if (deadline_us == WN_NEVER) return wn_cuda_check(cudaStreamSynchronize(c->stream), "sync", NULL);
    for (uint32_t turn = 0;; turn++) {
        cudaError_t code = cudaStreamQuery(c->stream);
        if (code == cudaSuccess) wn_cuda_marks_clear(&c->marks);
        if (code != cudaErrorNotReady) return wn_cuda_check(code, "sync", NULL);
        (void)cudaGetLastError(); /* "not ready" counts as an error there */
        if (wn_deadline_passed(deadline_us)) return wn_fail(NULL, WN_ETIME, "cuda: the device did not finish in time");
        if (turn <= 2000) continue;
        wn_cuda_marks_look(&c->marks);
        nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
    }
}

wn_status wn_cuda_scratch(struct wn_cuda *c, int purpose, size_t bytes, void **out)
{
    struct wn_buf *b = &c->scratch[purpose];

    if (b->bytes < bytes) {
        struct wn_buf grown = {0};
        wn_status rc = wn_cuda_flush(c); /* launches that are kept name the old memory */
        if (rc == WN_OK) rc = wn_cuda_buf_alloc(&c->base, bytes + bytes / 4, &grown);
        if (rc != WN_OK) return rc;
        if (b->ptr) wn_cuda_buf_free(&c->base, b);
        *b = grown;
    }
    *out = b->ptr;
    return WN_OK;
}

wn_status wn_cuda_words(struct wn_cuda *c, size_t words, uint32_t **out)
{
    if (words > c->words_room) {
        uint32_t *grown = realloc(c->words, 2 * words * sizeof(*grown));
        if (!grown) return wn_fail(NULL, WN_ENOMEM, "cuda: table of %zu words", words);
        c->words = grown;
        c->words_room = 2 * words;
    }
    *out = c->words;
    return WN_OK;
}
