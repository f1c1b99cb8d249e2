/* Weights in panels of 16 columns, and the blocked product over them.
 *
 * Few rows (decoding): each panel is read once, straight from memory, the rows' sums in registers. Many rows: x is
 * copied into blocks of KC columns; a task takes a strip of panels and goes down K block by block, so that a strip's
 * block stays in the second-level cache for all rows and one panel of it in the first. Sums that leave the registers
 * between blocks are put down as they are: all of this changes the time and no bit of the result. */
#include <stdatomic.h>
#include <stdlib.h>

#include "shard/cpu/check.h"
#include "shard/cpu/cpu.h"
#include "shard/cpu/memory.h"

#define KC         256u        /* columns of a block of x */
#define MC         96u         /* rows whose block of x is swept while a panel is in the first-level cache */
#define MB         768u        /* most rows of a task */
#define STRIP      8u          /* panels of a task with many rows */
#define FEW_ROWS   WN_CPU_ROWS /* up to here a panel is read once, top to bottom */
#define PAIR_ROWS  2u          /* up to here int8 panels go two by two: the sums of one do not hide their latency */
#define SMALL_MACS 300000u     /* less work than this is not worth waking threads for */
#define SMALL_COPY 32768u      /* floats of x that each thread copies for itself, into its own cache */
#define TOGETHER   4u          /* products of the same x in one call */

struct mm {
    const struct wn_cpu_isa *isa;
    const struct wn_matmul *a;
    const float *x; /* block b of KC columns at x + b * block_stride, rows x_ld apart */
    size_t x_ld, block_stride;
    uint32_t m, rows, strip, slice_len, kc, blocks_per_slice;
    uint32_t levels, row_blocks;
    uint32_t side; /* panels that a tile takes side by side, 1 or 2 */
    size_t area; /* floats of one level of sums */
};

static uint32_t div_up(uint32_t a, uint32_t b)
{
    return a / b + (a % b != 0);
}

void wn_cpu_weight_cols(const struct wn_cpu_isa *isa, float *cols, const struct wn_mat *host, uint32_t p, uint32_t k,
                        uint32_t n)
{
    float rows[WN_CPU_COLS][64];

    memset(rows, 0, sizeof(rows));
    for (uint32_t j = 0; j < wn_cpu_min(WN_CPU_COLS, host->rows - p * WN_CPU_COLS); j++)
        isa->load(rows[j], wn_mat_at(host, p * WN_CPU_COLS + j, k), host->dtype, n);
    isa->transpose(cols, rows[0], 64, n);
}

wn_status wn_cpu_weight_rows(struct wn_backend *be, struct wn_weight *w, uint32_t first, const struct wn_mat *host)
{
    const struct wn_cpu_isa *isa = ((struct wn_cpu *)be)->isa;
    const uint32_t panels = div_up(host->rows, WN_CPU_COLS);
    const size_t e = wn_dtype_bytes(w->dtype), panel_bytes = (size_t)w->k * WN_CPU_COLS * e;

    wn_check_source(host);
    WN_ASSERT(first % WN_CPU_COLS == 0 && first + host->rows <= w->n && host->cols == w->k);
#pragma omp parallel for schedule(static)
    for (uint32_t p = 0; p < panels; p++) {
        float cols[64 * WN_CPU_COLS];
        char *to = (char *)w->panels + (first / WN_CPU_COLS + p) * panel_bytes;
        for (uint32_t k = 0; k < w->k; k += 64) {
            uint32_t n = wn_cpu_min(64, w->k - k);
            wn_cpu_weight_cols(isa, cols, host, p, k, n);
            if (w->dtype == WN_F32)
                memcpy(to + (size_t)k * WN_CPU_COLS * e, cols, (size_t)n * WN_CPU_COLS * e);
            else
                isa->pack_bf16((wn_bf16 *)(to + (size_t)k * WN_CPU_COLS * e), cols, n);
        }
    }
    return WN_OK;
}

wn_status wn_cpu_weight_create(struct wn_backend *be, struct wn_weight **out, const struct wn_mat *host, wn_dtype as)
{
    const size_t panels = div_up(host->rows, WN_CPU_COLS);
    struct wn_weight *w = calloc(1, sizeof(*w));

    WN_ASSERT(as == WN_F32 || as == WN_BF16);
    if (w) w->panels = wn_cpu_alloc(panels * host->cols * WN_CPU_COLS * wn_dtype_bytes(as));
    if (!w || !w->panels) {
        free(w);
        return wn_fail(NULL, WN_ENOMEM, "cpu: weight [%u, %u] as %s", host->rows, host->cols, wn_dtype_name(as));
    }
    w->dtype = as;
    w->n = host->rows;
    w->k = host->cols;
    *out = w;
    return host->ptr ? wn_cpu_weight_rows(be, w, 0, host) : WN_OK;
}

void wn_cpu_weight_destroy(struct wn_backend *be, struct wn_weight *w)
{
    (void)be;
    if (!w) return;
    free(w->panels);
    free(w);
}

/* Weights from column k on of panel j. */
static const char *panel_at(const struct mm *p, uint32_t j, uint32_t k)
{
    const struct wn_weight *w = p->a->w;

    return (const char *)w->panels + ((size_t)j * w->k + k) * WN_CPU_COLS * wn_dtype_bytes(w->dtype);
}

/* One block of a panel, n columns of K, times rows [m0, m1). Weights stream through the cache once a step, so that the
 * block that is read next is asked for meanwhile, by the first tile. */
static void sweep(const struct mm *p, const char *panel, const char *next, uint32_t n, const float *x, uint32_t m0,
                  uint32_t m1, float *c, bool first)
{
    const char *ahead = next ? next : panel;

    for (uint32_t r = m0, rows; r < m1; r += rows, x += rows * p->x_ld, c += rows * WN_CPU_COLS, ahead = panel) {
        rows = div_up(m1 - r, div_up(m1 - r, WN_CPU_ROWS)); /* 8 are 4 + 4: faster than 6 + 2 */
        if (p->a->w->dtype == WN_F32)
            p->isa->tile(rows, n, x, p->x_ld, (const float *)(const void *)panel, ahead, c, WN_CPU_COLS, first);
        else if (p->a->w->dtype == WN_I8)
            p->isa->tile_i8(rows, n, x, p->x_ld, (const int8_t *)panel, ahead, c, WN_CPU_COLS, first);
        else
            p->isa->tile_bf16(rows, n, x, p->x_ld, (const wn_bf16 *)(const void *)panel, ahead, c, WN_CPU_COLS, first);
    }
}

/* sums[panel][row][16] of one slice of K: a strip of panels [p0, p1) times rows [r0, r1). `next` is read after it. */
static void slice_sums(const struct mm *p, uint32_t slice, uint32_t p0, uint32_t p1, uint32_t r0, uint32_t r1,
                       const char *next, float *sums)
{
    for (uint32_t b = 0; b < p->blocks_per_slice; b++) {
        uint32_t k0 = slice * p->slice_len + b * p->kc, n = wn_cpu_min(p->kc, p->slice_len - b * p->kc);
        const float *x = p->x + (size_t)(slice * p->blocks_per_slice + b) * p->block_stride;
        if (p->block_stride == 0) x = p->x + k0;
        for (uint32_t m0 = r0; m0 < r1; m0 += MC) {
            uint32_t m1 = wn_cpu_min(m0 + MC, r1);
            for (uint32_t j = p0, side; j < p1; j += side) {
                const char *after = next;
                side = wn_cpu_min(p->side, p1 - j);
                if (j + side < p1) after = panel_at(p, j + side, k0);
                else if (b + 1 < p->blocks_per_slice) after = panel_at(p, p0, k0 + n);
                if (m1 < r1) after = NULL; /* the strip again */
                if (side == 2) { /* of a strip of two, all rows */
                    p->isa->pair_i8(p->m, n, x, p->x_ld, (const int8_t *)panel_at(p, j, k0),
                                    (size_t)p->a->w->k * WN_CPU_COLS, after ? after : panel_at(p, j, k0), sums, b == 0);
                    continue;
                }
                sweep(p, panel_at(p, j, k0), after, n, x + (size_t)m0 * p->x_ld, m0, m1,
                      sums + ((size_t)(j - p0) * p->rows + m0 - r0) * WN_CPU_COLS, b == 0);
            }
        }
    }
}

/* The sums of a slice of int8 weights, times their scales. */
static void scale_sums(const struct mm *p, uint32_t slice, uint32_t p0, uint32_t p1, uint32_t rows, float *sums)
{
    const float *scales = p->a->w->scales + (size_t)slice * div_up(p->a->w->n, WN_CPU_COLS) * WN_CPU_COLS;

    for (uint32_t j = p0; j < p1; j++)
        for (uint32_t r = 0; r < rows; r++)
            p->isa->mul(sums + ((size_t)(j - p0) * p->rows + r) * WN_CPU_COLS, scales + (size_t)j * WN_CPU_COLS,
                        WN_CPU_COLS);
}

/* One strip of panels for one block of rows: slices, their tree, bias, activation, rounding. */
static void mm_task(const struct mm *p, uint32_t task, const char *next, float *scratch)
{
    const struct wn_matmul *a = p->a;
    uint32_t panels = div_up(a->w->n, WN_CPU_COLS), p0 = task / p->row_blocks * p->strip,
             p1 = wn_cpu_min(p0 + p->strip, panels);
    uint32_t r0 = task % p->row_blocks * p->rows, r1 = wn_cpu_min(r0 + p->rows, p->m);

    /* Level by level like a binary counter: slice s has popcount(s) finished sums before it. */
    for (uint32_t s = 0; s < a->slices; s++) {
        float *sums = scratch + (uint32_t)__builtin_popcount(s) * p->area;
        slice_sums(p, s, p0, p1, r0, r1, s + 1 < a->slices ? panel_at(p, p0, (s + 1) * p->slice_len) : next, sums);
        if (a->w->scales) scale_sums(p, s, p0, p1, r1 - r0, sums);
        for (uint32_t t = s; t & 1; t >>= 1, sums -= p->area)
            for (uint32_t j = 0; j < p1 - p0; j++)
                p->isa->add(sums - p->area + (size_t)j * p->rows * WN_CPU_COLS,
                            sums + (size_t)j * p->rows * WN_CPU_COLS, (size_t)(r1 - r0) * WN_CPU_COLS);
    }
    for (uint32_t j = p0; j < p1; j++)
        p->isa->finish(wn_mat_at(&a->out, r0, (size_t)j * WN_CPU_COLS), a->out.dtype, a->out.stride,
                       scratch + (size_t)(j - p0) * p->rows * WN_CPU_COLS, r1 - r0,
                       wn_cpu_min(WN_CPU_COLS, a->w->n - j * WN_CPU_COLS), a->bias ? a->bias + j * WN_CPU_COLS : NULL,
                       a->act);
}

/* x as float32, in blocks [block][row][kc] or (few rows) row by row. */
static void copy_x_row(const struct mm *p, float *to, uint32_t row)
{
    const struct wn_mat *x = &p->a->x;
    if (p->block_stride == 0) {
        p->isa->load(to + row * p->x_ld, wn_mat_at(x, row, 0), x->dtype, x->cols);
        return;
    }
    for (uint32_t s = 0; s < p->a->slices; s++) {
        for (uint32_t b = 0; b < p->blocks_per_slice; b++) {
            uint32_t at = b * p->kc, n = wn_cpu_min(p->kc, p->slice_len - at);
            p->isa->load(to + (size_t)(s * p->blocks_per_slice + b) * p->block_stride + row * p->x_ld,
                         wn_mat_at(x, row, (size_t)s * p->slice_len + at), x->dtype, n);
        }
    }
}

/* How x lies, which is the same for all products of it. Returns the floats of its copy; 0: it is read as it is. */
static size_t lay_x(struct mm *p, const struct wn_matmul *a)
{
    const uint32_t k = a->w->k;
    size_t floats;

    p->m = a->x.rows;
    p->slice_len = k / a->slices;
    p->levels = 1 + (uint32_t)__builtin_ctz(a->slices);
    if (p->m <= FEW_ROWS) {
        p->rows = p->m;
        p->kc = KC;
        p->x_ld = a->x.dtype == WN_F32 ? a->x.stride : k;
        floats = a->x.dtype == WN_F32 ? 0 : (size_t)p->m * k;
    } else {
        p->rows = div_up(div_up(p->m, div_up(p->m, MB)), WN_CPU_ROWS) * WN_CPU_ROWS;
        p->kc = KC;
        p->x_ld = KC;
        p->block_stride = (size_t)p->m * KC;
        floats = (size_t)a->slices * div_up(p->slice_len, KC) * p->block_stride;
    }
    p->blocks_per_slice = p->slice_len ? div_up(p->slice_len, p->kc) : 1;
    p->row_blocks = div_up(p->m, p->rows);
    return (floats + 15) / 16 * 16;
}

/* The products of a call, and their tasks one after the other. */
struct work {
    struct mm p[TOGETHER];
    uint32_t tasks[TOGETHER], n, all;
    size_t x_floats, task_floats;
    atomic_uint taken;
};

/* Takes the next task: its product, its number there in *task, its first weights in *from. NULL: there is none. */
static const struct mm *take(struct work *w, uint32_t *task, const char **from)
{
    uint32_t i = 0, at = atomic_fetch_add_explicit(&w->taken, 1, memory_order_relaxed);

    *from = NULL;
    if (at >= w->all) return NULL;
    while (at >= w->tasks[i]) at -= w->tasks[i++];
    *task = at;
    *from = panel_at(&w->p[i], at / w->p[i].row_blocks * w->p[i].strip, 0);
    return &w->p[i];
}

/* A thread's share: as long as there are tasks, and a task ahead of itself, so that it knows what it will read. */
static void run_tasks(struct work *w, const float *x, float *scratch)
{
    uint32_t task = 0, next_task = 0;
    const char *from;
    const struct mm *next, *p = take(w, &task, &from);

    for (; p; p = next, task = next_task) {
        struct mm mine = *p;
        next = take(w, &next_task, &from);
        mine.x = x;
        mm_task(&mine, task, from, scratch);
    }
}

static void plan_work(struct work *w, const struct wn_cpu_isa *isa, const struct wn_matmul *a, uint32_t n, int threads)
{
    w->n = n;
    w->p[0] = (struct mm){.isa = isa, .a = a};
    w->x_floats = lay_x(&w->p[0], a);
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t panels = div_up(a[i].w->n, WN_CPU_COLS);
        struct mm *p = &w->p[i];
        *p = w->p[0];
        p->a = &a[i];
        p->strip = p->m <= FEW_ROWS || panels == 0 ? 1 : wn_cpu_min(STRIP, div_up(panels, 4 * (uint32_t)threads));
        p->side = a[i].w->dtype == WN_I8 && p->m <= PAIR_ROWS && panels >= 8 * (uint32_t)threads ? 2 : 1;
        if (p->side == 2) p->strip = 2;
        p->area = (size_t)p->strip * p->rows * WN_CPU_COLS;
        if (w->task_floats < p->levels * p->area) w->task_floats = p->levels * p->area;
        w->tasks[i] = div_up(panels, p->strip) * p->row_blocks;
        w->all += w->tasks[i];
    }
}

wn_status wn_cpu_matmuls(struct wn_backend *be, const struct wn_matmul *a, uint32_t n)
{
    struct wn_cpu *cpu = (struct wn_cpu *)be;
    struct work w = {.n = 0};
    uint64_t macs = 0;
    int threads = wn_cpu_threads();
    bool own;
    size_t thread_floats;
    float *scratch;

    WN_ASSERT(n > 0 && n <= TOGETHER);
    for (uint32_t i = 0; i < n; i++) {
        wn_check_matmul(&a[i], a[i].w->n, a[i].w->k);
        WN_ASSERT(!a[i].w->scales || a[i].w->slices == a[i].slices);
        WN_ASSERT(a[i].x.ptr == a[0].x.ptr && a[i].x.rows == a[0].x.rows && a[i].slices == a[0].slices);
        macs += (uint64_t)a[i].x.rows * a[i].w->n * a[i].w->k;
    }
    if (a->x.rows == 0) return WN_OK;
    if (macs < SMALL_MACS) threads = 1;
    plan_work(&w, cpu->isa, a, n, threads);
    own = w.x_floats > 0 && w.x_floats < SMALL_COPY;
    thread_floats = w.task_floats + (own ? w.x_floats : 0);
    scratch = wn_cpu_scratch(cpu, ((own ? 0 : w.x_floats) + (size_t)threads * thread_floats) * sizeof(float));
    if (!scratch) return WN_ENOMEM;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        float *mine = scratch + (size_t)wn_cpu_thread() * thread_floats, *x = mine + w.task_floats;
        if (!own) x = scratch + (size_t)threads * thread_floats;
        if (own) {
            for (uint32_t r = 0; r < w.p[0].m; r++) copy_x_row(&w.p[0], x, r);
        } else if (w.x_floats > 0) {
#pragma omp for schedule(static)
            for (uint32_t r = 0; r < w.p[0].m; r++) copy_x_row(&w.p[0], x, r);
        }
        run_tasks(&w, w.x_floats ? x : a->x.ptr, mine);
    }
    return WN_OK;
}

wn_status wn_cpu_matmul(struct wn_backend *be, const struct wn_matmul *a)
{
    return wn_cpu_matmuls(be, a, 1);
}
