/* shard/backend.h - the compute vtable: everything a forward pass asks of a processor.
 *
 * Callers use matrices (views of memory of one backend) and the wn_be_* wrappers; they never see a device type.
 * Work is queued in order; results may be read on the host after wn_be_sync(). One thread uses a backend.
 *
 * Rounding. The element type of a matrix is where rounding happens: an operation reads its inputs exactly, computes in
 * float32 and rounds once when it stores to a bfloat16 output. A stored element depends only on its own row and the
 * weights, never on how many other rows the call has: that is what makes batches, chunks and replays bit-identical.
 *
 * Sums over the input width K of a matmul are made in `slices` equal parts of K, each in ascending order of K with a
 * blocking that depends on nothing but the part's length, and the parts are added as a balanced binary tree
 * ((p0+p1)+(p2+p3)). A tensor-parallel rank that holds K/T columns makes `slices`/T of those parts, and an all-reduce
 * that adds ranks in the same tree gives the same bits for every T that divides `slices`. */
#ifndef WN_SHARD_BACKEND_H
#define WN_SHARD_BACKEND_H

#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"
#include "base/status.h"
#include "base/mat.h"
#include "shard/ops.h"

struct wn_backend; /* one processor: opaque, each backend has its own */
struct wn_row_dots; /* pruning/rows.h */
struct wn_row_sums;
struct wn_dev_sum; /* transport/device.h */
struct wn_picks;   /* shard/pick.h */

/* A weight matrix [out, in] prepared by the backend for matmul (packed, or as it is). Owned by the caller. */
struct wn_weight;
#define WN_WEIGHT_ROWS 16u /* its rows come in such blocks, if they do not come at once */

/* Memory that buffers come from. Backends of one host with the same id share it. */
struct wn_memory {
    uint64_t free_bytes, total_bytes;
    char id[64]; /* "host", or a device's UUID: MIG instances of a GPU have memory of their own */
};

struct wn_backend_ops {
    const char *name;   /* "cpu", "cuda" */
    bool device_memory; /* buffers are not host memory: links cannot send from them */
    uint32_t rows_min;  /* a product of fewer rows takes as long: weights are read, loops are started; 0: not known */
    wn_status (*open)(struct wn_backend **out, int device, struct wn_err *err);
    void (*close)(struct wn_backend *be);
    wn_status (*memory)(struct wn_backend *be, struct wn_memory *out);
    wn_status (*buf_alloc)(struct wn_backend *be, size_t bytes, struct wn_buf *out); /* owned; contents undefined */
    void (*buf_free)(struct wn_backend *be, struct wn_buf *buf);                     /* leaves *buf empty */
    /* Page-aligned host memory from which rows are to be copied at the device's speed; one piece at a time, until it is
     * unpinned. An upload from it is over after a sync. NULL: there is nothing to gain. */
    wn_status (*pin)(struct wn_backend *be, void *host, size_t bytes);
    void (*unpin)(struct wn_backend *be); /* waits for what is on its way */
    wn_status (*upload)(struct wn_backend *be, void *dst, const void *host_src, size_t bytes);
    wn_status (*download)(struct wn_backend *be, void *host_dst, const void *src, size_t bytes); /* waits */
    /* host rows [out, in] of dtype f32, bf16 or f16, row stride in elements; `as` is the type kept (f32 or bf16).
     * host->ptr NULL, for backends with weight_rows: memory alone, all of whose rows follow. */
    wn_status (*weight_create)(struct wn_backend *be, struct wn_weight **out, const struct wn_mat *host, wn_dtype as);
    /* The same as int8, for products in `slices` parts. Each part of each row is q = w * (127 / m) to the nearest, ties
     * to even, with m its largest |w|; its sum is that of x * q, times m / 127 at the end. */
    wn_status (*weight_i8)(struct wn_backend *be, struct wn_weight **out, const struct wn_mat *host, uint32_t slices);
    /* Rows [first, first + host->rows) of a weight made without any; first is a multiple of WN_WEIGHT_ROWS, and so are
     * all but the last rows. What lies in pinned memory may not change before a sync. NULL: weights are made whole. */
    wn_status (*weight_rows)(struct wn_backend *be, struct wn_weight *w, uint32_t first, const struct wn_mat *host);
    wn_status (*weight_i8_rows)(struct wn_backend *be, struct wn_weight *w, uint32_t first, const struct wn_mat *host);
    void (*weight_destroy)(struct wn_backend *be, struct wn_weight *w);
    wn_status (*matmul)(struct wn_backend *be, const struct wn_matmul *a);
    wn_status (*matmuls)(struct wn_backend *be, const struct wn_matmul *a, uint32_t n); /* NULL: one by one */
    wn_status (*norm)(struct wn_backend *be, const struct wn_norm *a);
    wn_status (*rope)(struct wn_backend *be, const struct wn_rope *a);
    wn_status (*kv_write)(struct wn_backend *be, const struct wn_kv_write *a);
    wn_status (*attn_paged)(struct wn_backend *be, const struct wn_attn_paged *a);
    wn_status (*attn_full)(struct wn_backend *be, const struct wn_attn_full *a);
    wn_status (*add)(struct wn_backend *be, const struct wn_mat *out, const struct wn_mat *a, const struct wn_mat *b);
    /* out = silu(gate) * up, rounded once more to out's type between the two as the model's own arithmetic does */
    wn_status (*silu_mul)(struct wn_backend *be, const struct wn_mat *out, const struct wn_mat *gate,
                          const struct wn_mat *up);
    /* out row i = t's row index[i] if index[i] < t->rows, else zeros; converts types. index: host memory */
    wn_status (*gather_rows)(struct wn_backend *be, const struct wn_mat *out, const struct wn_mat *t,
                             const uint32_t *index);
    wn_status (*convert)(struct wn_backend *be, const struct wn_mat *out, const struct wn_mat *in); /* rounds, widens */
    wn_status (*sync)(struct wn_backend *be, int64_t deadline_us);
    wn_status (*devices)(int *n, struct wn_err *err); /* that may be opened; NULL: the machine itself is the only one */
    /* Where its work is queued, for links: a cudaStream_t, with all that a step has kept back; NULL: host memory. */
    void *(*queue)(struct wn_backend *be);
    wn_status (*sum_parts)(struct wn_backend *be, const struct wn_dev_sum *s); /* with queue: see transport/device.h */
    /* Two operations as one, with the same bits; NULL: the functions below call them one after the other.
     * add_norm: n->x += y, then the norm; y may be n->out. rope_kv: r->x is queries and then w->k, rotated; what w->k
     * holds afterwards is not said. */
    wn_status (*add_norm)(struct wn_backend *be, const struct wn_mat *y, const struct wn_norm *n);
    wn_status (*rope_kv)(struct wn_backend *be, const struct wn_rope *r, const struct wn_kv_write *w);
    wn_status (*pick)(struct wn_backend *be, const struct wn_picks *a); /* NULL: rows come to the host for that */
    /* pruning/rows.h, with its bits; dots are in backend memory, too. NULL: memory is the host's, and so is the work */
    wn_status (*row_dots)(struct wn_backend *be, const struct wn_row_dots *a);
    wn_status (*row_sums)(struct wn_backend *be, const struct wn_row_sums *a);
    /* NULL where there is nothing to gain. Opens a step of `rows` rows, one for each of its sequences: until step_end,
     * which follows whatever happens, calls may be kept back and go to the device together, at the latest for a sync,
     * a download or queue; host tables that they name keep their contents. *padded, at most rows_max, is how many rows
     * matrices had best have: the rows after the first `rows` are of no sequence, and what is in them is anything. */
    wn_status (*step_begin)(struct wn_backend *be, uint32_t rows, uint32_t rows_max, uint32_t *padded);
    wn_status (*step_end)(struct wn_backend *be);
    /* *rows and *tokens, of a step and of its longest sequence, become those of the largest step that has all that the
     * device has to make for this one: kernels, algorithms, graphs. NULL: nothing is made for a step. */
    void (*step_alike)(struct wn_backend *be, uint32_t *rows, uint32_t *tokens);
};

/* Every backend starts with this, so that the wrappers below find its operations. */
struct wn_backend {
    const struct wn_backend_ops *ops;
};

/* The compiled-in backends; NULL-terminated. */
extern const struct wn_backend_ops *const wn_backends[];
extern const struct wn_backend_ops wn_backend_cpu;           /* fastest kernels that this processor has */
extern const struct wn_backend_ops wn_backend_cpu_reference; /* plain loops: the yardstick of the conformance tests */

/* Opens the backend called `name` ("cpu", "cpu-reference", and "cuda" where the build has it) on `device`, or on the
 * one that the name says: "cuda:1". *out is owned by the caller. WN_ENOENT names the known ones. */
WN_NODISCARD wn_status wn_backend_open(struct wn_backend **out, const char *name, int device, struct wn_err *err);
WN_NODISCARD wn_status wn_backend_known(const char *name, struct wn_err *err); /* is it here? */
/* How many devices `name` may be opened on; 0: it has no devices to choose from. *asked: of "cuda:1" 1, else -1. */
WN_NODISCARD wn_status wn_backend_devices(const char *name, int *n, int *asked, struct wn_err *err);
void wn_backend_close(struct wn_backend *be); /* NULL is fine */

/* n <= 4 products of the same x in as many parts: to the bit what they are one by one, in less time. */
WN_NODISCARD wn_status wn_be_matmuls(struct wn_backend *be, const struct wn_matmul *a, uint32_t n);
/* Two operations, as one where the backend has it. */
WN_NODISCARD wn_status wn_be_add_norm(struct wn_backend *be, const struct wn_mat *y, const struct wn_norm *n);
WN_NODISCARD wn_status wn_be_rope_kv(struct wn_backend *be, const struct wn_rope *r, const struct wn_kv_write *w);

#define wn_be_matmul(be, a)      ((be)->ops->matmul((be), (a)))
#define wn_be_norm(be, a)        ((be)->ops->norm((be), (a)))
#define wn_be_rope(be, a)        ((be)->ops->rope((be), (a)))
#define wn_be_kv_write(be, a)    ((be)->ops->kv_write((be), (a)))
#define wn_be_attn_paged(be, a)  ((be)->ops->attn_paged((be), (a)))
#define wn_be_attn_full(be, a)   ((be)->ops->attn_full((be), (a)))
#define wn_be_add(be, o, a, b)   ((be)->ops->add((be), (o), (a), (b)))
#define wn_be_silu_mul(be, o, g, u) ((be)->ops->silu_mul((be), (o), (g), (u)))
#define wn_be_gather_rows(be, o, t, i) ((be)->ops->gather_rows((be), (o), (t), (i)))
#define wn_be_convert(be, o, i)  ((be)->ops->convert((be), (o), (i)))

#endif
