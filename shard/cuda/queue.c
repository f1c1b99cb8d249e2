#include "shard/cuda/queue.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "shard/cuda/cuda.h"

/* Arguments are compared and copied as they lie in memory. */
_Static_assert(sizeof(struct wn_cuda_norm) == 96 && sizeof(struct wn_cuda_rope) == 48 &&
                   sizeof(struct wn_cuda_rope_kv) == 128 &&
                   sizeof(struct wn_cuda_rows) == 72 && sizeof(struct wn_cuda_pair) == 72 &&
                   sizeof(struct wn_cuda_matmul) == 104 && sizeof(struct wn_cuda_attn) == 192 &&
                   sizeof(struct wn_cuda_picks) == 40 && sizeof(struct wn_cuda_matmul_group) == 200,
               "an argument struct has padding, or has grown");
_Static_assert(sizeof(struct wn_cuda_launch) == 208, "the union's words cover its largest member");

static int run_op(const struct wn_cuda_launch *l, wn_cuda_stream st)
{
    switch ((wn_cuda_op)l->op) {
    case WN_CUDA_OP_NORM: return wn_cuda_run_norm(&l->as.norm, st);
    case WN_CUDA_OP_ROPE: return wn_cuda_run_rope(&l->as.rope, st);
    case WN_CUDA_OP_ROPE_KV: return wn_cuda_run_rope_kv(&l->as.rope_kv, st);
    case WN_CUDA_OP_ROWS: return wn_cuda_run_rows(&l->as.rows, st);
    case WN_CUDA_OP_ADD: return wn_cuda_run_add(&l->as.pair, st);
    case WN_CUDA_OP_SILU_MUL: return wn_cuda_run_silu_mul(&l->as.pair, st);
    case WN_CUDA_OP_MATMUL_PLAIN: return wn_cuda_run_matmul_plain(&l->as.matmul, st);
    case WN_CUDA_OP_MATMUL_MMA: return wn_cuda_run_matmul_mma(&l->as.matmul, st);
    case WN_CUDA_OP_MATMUL_GROUP: return wn_cuda_run_matmul_group(&l->as.group, st);
    case WN_CUDA_OP_ATTN_PLAIN: return wn_cuda_run_attn_plain(&l->as.attn, st);
    case WN_CUDA_OP_ATTN_MMA: return wn_cuda_run_attn_mma(&l->as.attn, st);
    case WN_CUDA_OP_PICK: return wn_cuda_run_pick(&l->as.picks, st);
    }
    return (int)cudaErrorInvalidValue;
}

/* early: it follows another one of these, without a copy between. */
static wn_status run(struct wn_cuda *c, const struct wn_cuda_launch *l, bool early)
{
    static const char *const names[] = {
        [WN_CUDA_OP_NORM] = "norm",           [WN_CUDA_OP_ROPE] = "rope",
        [WN_CUDA_OP_ROPE_KV] = "rope_kv",     [WN_CUDA_OP_ROWS] = "rows",
        [WN_CUDA_OP_ADD] = "add",             [WN_CUDA_OP_SILU_MUL] = "silu_mul",
        [WN_CUDA_OP_MATMUL_PLAIN] = "matmul", [WN_CUDA_OP_MATMUL_MMA] = "matmul",
        [WN_CUDA_OP_ATTN_PLAIN] = "attention", [WN_CUDA_OP_ATTN_MMA] = "attention",
        [WN_CUDA_OP_PICK] = "pick",           [WN_CUDA_OP_MATMUL_GROUP] = "matmuls"};
    cudaError_t code;

    WN_ASSERT(l->op < sizeof(names) / sizeof(names[0]));
    code = (cudaError_t)run_op(l, (wn_cuda_stream){c->stream, early});
    return wn_cuda_check(code, names[l->op], NULL);
}

wn_status wn_cuda_launch(struct wn_cuda *c, const struct wn_cuda_launch *l)
{
    struct wn_cuda_queue *q = &c->queue;

    if (!q->open) {
        if (l->op == WN_CUDA_OP_ATTN_MMA || l->op == WN_CUDA_OP_ATTN_PLAIN)
            wn_cuda_marks_put(&c->marks, c->stream, false);
        return run(c, l, false);
    }
    if (q->n == q->room) {
        uint32_t room = q->room ? 2 * q->room : 1024;
        struct wn_cuda_launch *grown = realloc(q->list, room * sizeof(*grown));
        if (!grown) return wn_fail(NULL, WN_ENOMEM, "cuda: list of %u launches", room);
        q->list = grown;
        q->room = room;
    }
    q->list[q->n++] = *l;
    return WN_OK;
}

static wn_status run_list(struct wn_cuda *c)
{
    wn_status rc = WN_OK;
    for (uint32_t i = 0; rc == WN_OK && i < c->queue.n; i++) rc = run(c, &c->queue.list[i], c->queue.overlap && i > 0);
    return rc;
}

static uint64_t digest_of(const struct wn_cuda_launch *list, uint32_t n)
{
    uint64_t h = 0x9e3779b97f4a7c15u ^ n, w;

    for (const char *at = (const char *)list, *end = (const char *)(list + n); at < end; at += sizeof(w)) {
        memcpy(&w, at, sizeof(w));
        h = (h ^ w) * 0xff51afd7ed558ccdu;
        h ^= h >> 32;
    }
    return h;
}

static void drop(struct wn_cuda_queue *q, uint32_t i)
{
    if (q->graphs[i].exec) (void)cudaGraphExecDestroy(q->graphs[i].exec);
    free(q->graphs[i].list);
    q->graphs[i] = q->graphs[--q->graphs_n];
    q->graphs[q->graphs_n] = (struct wn_cuda_graph){.n = 0};
}

/* Room for a graph of n launches. */
static void make_room(struct wn_cuda_queue *q, uint32_t n)
{
    for (;;) {
        uint32_t launches = n, oldest = 0;
        for (uint32_t i = 0; i < q->graphs_n; i++) {
            launches += q->graphs[i].n;
            if (q->graphs[i].used < q->graphs[oldest].used) oldest = i;
        }
        if (q->graphs_n == 0 || (q->graphs_n < WN_CUDA_GRAPHS && launches <= WN_CUDA_GRAPH_LAUNCHES)) return;
        drop(q, oldest);
    }
}

/* The kept list as a graph. On failure nothing has run, and the stream captures no more. */
static wn_status capture(struct wn_cuda *c, uint64_t digest, struct wn_cuda_graph **out)
{
    struct wn_cuda_queue *q = &c->queue;
    struct wn_cuda_graph g = {.digest = digest, .n = q->n};
    cudaGraph_t graph = NULL;
    wn_status rc, ended;

    make_room(q, q->n);
    g.list = malloc((size_t)q->n * sizeof(*g.list));
    if (!g.list) return wn_fail(NULL, WN_ENOMEM, "cuda: graph of %u launches", q->n);
    memcpy(g.list, q->list, (size_t)q->n * sizeof(*g.list));
    rc = wn_cuda_check(cudaStreamBeginCapture(c->stream, cudaStreamCaptureModeRelaxed), "capture", NULL);
    if (rc == WN_OK) {
        rc = run_list(c);
        ended = wn_cuda_check(cudaStreamEndCapture(c->stream, &graph), "capture", NULL);
        if (rc == WN_OK) rc = ended;
    }
    if (rc == WN_OK) rc = wn_cuda_check(cudaGraphInstantiate(&g.exec, graph, 0), "graph", NULL);
    if (graph) (void)cudaGraphDestroy(graph);
    if (rc != WN_OK) {
        free(g.list);
        return rc;
    }
    q->graphs[q->graphs_n] = g;
    *out = &q->graphs[q->graphs_n++];
    return WN_OK;
}

static struct wn_cuda_graph *find(struct wn_cuda_queue *q, uint64_t digest)
{
    for (uint32_t i = 0; i < q->graphs_n; i++)
        if (q->graphs[i].digest == digest && q->graphs[i].n == q->n &&
            memcmp(q->graphs[i].list, q->list, (size_t)q->n * sizeof(*q->list)) == 0)
            return &q->graphs[i];
    return NULL;
}

/* Has such a list come before? Notes it. */
static bool seen(struct wn_cuda_queue *q, uint64_t digest)
{
    for (uint32_t i = 0; i < WN_CUDA_SEEN; i++)
        if (q->seen[i] == digest) return true;
    q->seen[++q->clock % WN_CUDA_SEEN] = digest;
    return false;
}

wn_status wn_cuda_flush(struct wn_cuda *c)
{
    struct wn_cuda_queue *q = &c->queue;
    struct wn_cuda_graph *g;
    uint64_t digest;
    wn_status rc;

    if (q->n == 0) return WN_OK;
    if ((rc = wn_cuda_tables_send(c)) != WN_OK) goto out;
    digest = digest_of(q->list, q->n);
    g = find(q, digest);
    if (!g && !q->off && seen(q, digest) && capture(c, digest, &g) != WN_OK) {
        wn_warn("cuda", "a step of %u launches could not be captured: launching one by one from now on", q->n);
        q->off = true;
    }
    if (g) {
        g->used = ++q->clock;
        rc = wn_cuda_check(cudaGraphLaunch(g->exec, c->stream), "graph", NULL);
    } else {
        rc = run_list(c);
    }
out:
    q->n = 0;
    return rc;
}

wn_status wn_cuda_step_begin(struct wn_backend *be, uint32_t rows, uint32_t rows_max, uint32_t *padded)
{
    struct wn_cuda *c = (struct wn_cuda *)be;
    uint32_t bucket = 1;
    wn_status rc;

    WN_ASSERT(!c->queue.open && rows > 0 && rows <= rows_max);
    *padded = rows;
    if (c->queue.off || rows > WN_CUDA_STEP_ROWS) return WN_OK;
    while (bucket < rows) bucket *= 2;
    if (bucket > rows_max) bucket = rows_max;
    if ((rc = wn_cuda_tables_reset(c)) != WN_OK) return rc;
    c->queue.open = true;
    c->queue.rows = bucket;
    *padded = bucket;
    return WN_OK;
}

wn_status wn_cuda_step_end(struct wn_backend *be)
{
    struct wn_cuda *c = (struct wn_cuda *)be;
    wn_status rc = wn_cuda_flush(c);

    c->queue.open = false;
    return rc;
}

void wn_cuda_step_alike(struct wn_backend *be, uint32_t *rows, uint32_t *tokens)
{
    const struct wn_cuda *c = (const struct wn_cuda *)be;
    uint64_t bucket = 1, chunks = 1;

    while (bucket < *rows) bucket *= 2;
    while (chunks * WN_CUDA_CHUNK < *tokens) chunks *= 2;
    if (*rows > WN_CUDA_STEP_ROWS) bucket = c->lt ? wn_cuda_row_class(*rows) : UINT32_MAX;
    chunks *= WN_CUDA_CHUNK;
    *rows = (uint32_t)bucket;
    *tokens = chunks < UINT32_MAX ? (uint32_t)chunks : UINT32_MAX;
}

/* *on, which is what holds without the variable, becomes what its text says. */
static wn_status read_switch(const char *name, const char *wish, bool *on, struct wn_err *err)
{
    if (!wish) return WN_OK;
    if (strcmp(wish, "0") != 0 && strcmp(wish, "1") != 0)
        return wn_fail(err, WN_EINVAL, "%s=%s: 0 or 1", name, wish);
    *on = *wish == '1';
    return WN_OK;
}

wn_status wn_cuda_queue_open(struct wn_cuda *c, struct wn_err *err)
{
    struct wn_cuda_queue *q = &c->queue;
    bool graphs = true;
    wn_status rc = wn_cuda_check(cudaEventCreateWithFlags(&q->step.copied, cudaEventDisableTiming), "event", err);

    if (rc == WN_OK) rc = read_switch("WINNOW_CUDA_GRAPHS", getenv("WINNOW_CUDA_GRAPHS"), &graphs, err);
    if (rc == WN_OK)
        rc = read_switch("WINNOW_CUDA_OVERLAP", getenv("WINNOW_CUDA_OVERLAP"), &q->overlap, err);
    q->off = !graphs;
    for (uint32_t i = 0; rc == WN_OK && i < WN_CUDA_METAS; i++)
        rc = wn_cuda_check(cudaEventCreateWithFlags(&q->metas[i].copied, cudaEventDisableTiming), "event", err);
    return rc;
}

static void meta_fini(struct wn_cuda_meta *m)
{
    (void)cudaFreeHost(m->host);
    (void)cudaFree(m->device);
    if (m->copied) (void)cudaEventDestroy(m->copied);
}

void wn_cuda_queue_close(struct wn_cuda *c)
{
    struct wn_cuda_queue *q = &c->queue;

    while (q->graphs_n > 0) drop(q, q->graphs_n - 1);
    for (uint32_t i = 0; i < WN_CUDA_METAS; i++) meta_fini(&q->metas[i]);
    meta_fini(&q->step);
    free(q->list);
}
