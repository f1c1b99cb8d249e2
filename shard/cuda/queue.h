/* shard/cuda/queue.h - launches: at once, or kept until a step's end and then replayed as one CUDA graph.
 *
 * Outside a step (wn_backend_ops.step_begin) a launch goes to the stream at once, and its tables (positions, page
 * tables, row numbers) through a few pinned buffers that are compared with what they held before.
 *
 * In a step nothing is launched. Operations choose kernels, grow scratch and write tables as always, but a launch is
 * kept: which one, and a copy of its arguments. A wait, a copy or the step's end flushes: the tables go up in one
 * copy, and the list is looked up among those that were captured before. If it is there the graph is launched. A list
 * that comes for the first time is launched one by one (the driver loads kernels then); the second time it runs under
 * capture, becomes a graph, and that is launched. So a step is one copy, one graph launch, and the sync that brings its
 * results.
 *
 * What is captured: kernel launches of one stream; no copies, events or allocations.
 * When a graph is invalid: never. It is found by comparing every argument of every launch - kernels, pointers, shapes,
 * numbers -, so a graph that is found does what the list would do. Scratch that has moved, another bucket of rows or
 * of context, another KV pool make another list. What changes within a bucket - token ids, positions, pages, lengths -
 * lies in tables, whose addresses follow from the order and sizes in which a step asks for them.
 * Buckets: rows are padded to a power of two (1 .. WN_CUDA_STEP_ROWS) with rows of no sequence, chunks of context too;
 * blocks without work return at once. Larger steps are launched as they come: there the device is what takes time.
 *
 * WINNOW_CUDA_OVERLAP=1 (devices from 9.0 on): blocks of a step's next kernel may start while the last ones of a kernel
 * still run, and a matmul asks for its first weights before what it multiplies is there (wn_follow in device.cuh).
 * Off by default until it has been measured on a device.
 *
 * Owns: graphs, and the list and tables of the step. Limits: WN_CUDA_GRAPHS graphs of at most WN_CUDA_GRAPH_LAUNCHES
 * launches together; the one not used for longest goes first. WINNOW_CUDA_GRAPHS=0 turns all of it off. */
#ifndef WN_SHARD_CUDA_QUEUE_H
#define WN_SHARD_CUDA_QUEUE_H

#include "shard/backend.h"
#include "shard/cuda/launch_matmul.h"
#include "transport/cuda_check.h"

#define WN_CUDA_STEP_ROWS      64u
#define WN_CUDA_GRAPHS         256u
#define WN_CUDA_GRAPH_LAUNCHES (128u << 10)
#define WN_CUDA_METAS          8u
#define WN_CUDA_STEP_TABLES    8u
#define WN_CUDA_SEEN           64u

struct wn_cuda;

typedef enum wn_cuda_op {
    WN_CUDA_OP_NORM,
    WN_CUDA_OP_ROPE,
    WN_CUDA_OP_ROPE_KV,
    WN_CUDA_OP_ROWS,
    WN_CUDA_OP_ADD,
    WN_CUDA_OP_SILU_MUL,
    WN_CUDA_OP_MATMUL_PLAIN,
    WN_CUDA_OP_MATMUL_MMA,
    WN_CUDA_OP_MATMUL_GROUP,
    WN_CUDA_OP_ATTN_PLAIN,
    WN_CUDA_OP_ATTN_MMA,
    WN_CUDA_OP_PICK
} wn_cuda_op;

/* All of it is compared: it has no padding, and what an operation does not use is zero. */
struct wn_cuda_launch {
    uint64_t op; /* wn_cuda_op */
    union {
        struct wn_cuda_norm norm;
        struct wn_cuda_rope rope;
        struct wn_cuda_rope_kv rope_kv;
        struct wn_cuda_rows rows;
        struct wn_cuda_pair pair;
        struct wn_cuda_matmul matmul;
        struct wn_cuda_matmul_group group;
        struct wn_cuda_attn attn;
        struct wn_cuda_picks picks;
        uint64_t words[25];
    } as;
};

struct wn_cuda_graph {
    uint64_t digest, used; /* clock of the last use */
    struct wn_cuda_launch *list;
    uint32_t n;
    cudaGraphExec_t exec;
};

/* Names a table within a step: its purpose and the host memory that it comes from. */
struct wn_cuda_key {
    const void *from;
    uint32_t purpose, words;
};

enum {
    WN_CUDA_TABLE_POSITIONS,
    WN_CUDA_TABLE_ROWS,
    WN_CUDA_TABLE_TARGETS,
    WN_CUDA_TABLE_ATTN,
    WN_CUDA_TABLE_PICKS,
    WN_CUDA_TABLE_LISTS,
    WN_CUDA_TABLE_TERMS
};

struct wn_cuda_meta {
    uint32_t *host, *device; /* pinned; its copy */
    size_t words, room;
    uint64_t used; /* clock of the last use; 0: empty */
    cudaEvent_t copied;
};

struct wn_cuda_queue {
    bool off, open;      /* off: no graphs wanted, or capture has failed */
    bool overlap;        /* launches of a step may begin early */
    uint32_t rows;       /* of the open step, padded */
    struct wn_cuda_launch *list;
    uint32_t n, room, graphs_n;
    struct wn_cuda_graph graphs[WN_CUDA_GRAPHS];
    uint64_t seen[WN_CUDA_SEEN]; /* digests of the last lists that came for the first time */
    uint64_t clock;
    /* tables of the open step, one after the other in `step`; [0, sent) are on the device */
    struct wn_cuda_meta step;
    size_t sent;
    struct {
        struct wn_cuda_key key;
        size_t at;
    } tables[WN_CUDA_STEP_TABLES];
    uint32_t tables_n;
    /* tables outside of steps */
    struct wn_cuda_meta metas[WN_CUDA_METAS];
    size_t metas_room; /* words of the largest so far */
};

wn_status wn_cuda_queue_open(struct wn_cuda *c, struct wn_err *err);
void wn_cuda_queue_close(struct wn_cuda *c); /* after the stream has come to rest */

/* Launches, or keeps. */
wn_status wn_cuda_launch(struct wn_cuda *c, const struct wn_cuda_launch *l);
/* Sends what is kept; before anything else touches the stream or frees memory. */
wn_status wn_cuda_flush(struct wn_cuda *c);
wn_status wn_cuda_step_begin(struct wn_backend *be, uint32_t rows, uint32_t rows_max, uint32_t *padded);
wn_status wn_cuda_step_end(struct wn_backend *be);
void wn_cuda_step_alike(struct wn_backend *be, uint32_t *rows, uint32_t *tokens);

/* ---- tables.c ---- */

/* Is this table of the open step there already? */
bool wn_cuda_table_find(struct wn_cuda *c, struct wn_cuda_key key, const uint32_t **out);
/* The device copy of a host table [key.words], good for the step, or for launches until WN_CUDA_METAS other tables
 * were asked for. */
wn_status wn_cuda_table(struct wn_cuda *c, struct wn_cuda_key key, const uint32_t *host, const uint32_t **out);
wn_status wn_cuda_tables_send(struct wn_cuda *c);  /* to the device, what is not there yet */
wn_status wn_cuda_tables_reset(struct wn_cuda *c); /* a step begins */

#endif
