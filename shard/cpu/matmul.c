/* Weights in panels of 16 columns, and the blocked product over them.
 *
 * Few rows (decoding): each panel is read once, straight from memory, the rows' sums in registers. Many rows: x is
 * copied into blocks of KC columns; a task takes a strip of panels and goes down K block by block, so that a strip's
 * block stays in the second-level cache for all rows and one panel of it in the first. Sums that leave the registers
 * between blocks are put down as they are: all of this changes the time and no bit of the result. */
#include <stdlib.h>

#include "shard/cpu/check.h"
#include "shard/cpu/cpu.h"
#include "shard/cpu/memory.h"

#define KC         256u        /* columns of a block of x */
#define MC         96u         /* rows whose block of x is swept while a panel is in the first-level cache */
#define MB         768u        /* most rows of a task */
#define STRIP      8u          /* panels of a task with many rows */
#define FEW_ROWS   WN_CPU_ROWS /* up to here a panel is read once, top to bottom */
#define SMALL_MACS 300000u     /* less work than this is not worth waking threads for */
#define SMALL_COPY 32768u      /* floats of x that one thread copies sooner than two meet */
#define TOGETHER   4u          /* products of the same x in one call */

struct mm {
    const struct wn_cpu_isa *isa;
    const struct wn_matmul *a;
    const float *x; /* block b of KC columns at x + b * block_stride, rows x_ld apart */
    size_t x_ld, block_stride;
    uint32_t m, rows, strip, slice_len, kc, blocks_per_slice;
    uint32_t levels;
    size_t area; /* floats of one level of sums */
};

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static uint32_t div_up(uint32_t a, uint32_t b)
{
    return a / b + (a % b != 0);
}

wn_status wn_cpu_weight_create(struct wn_backend *be, struct wn_weight **out, const struct wn_mat *host, wn_dtype as)
{
    const struct wn_cpu_isa *isa = ((struct wn_cpu *)be)->isa;
    uint32_t panels = div_up(host->rows, WN_CPU_COLS);
    size_t e = wn_dtype_bytes(as), panel_bytes = (size_t)host->cols * WN_CPU_COLS * e;
    struct wn_weight *w = calloc(1, sizeof(*w));

    wn_check_source(host);
    WN_ASSERT(as == WN_F32 || as == WN_BF16);
    if (w) w->panels = wn_cpu_alloc(panels * panel_bytes);
    if (!w || !w->panels) {
        free(w);
        return wn_fail(NULL, WN_ENOMEM, "cpu: weight [%u, %u] as %s", host->rows, host->cols, wn_dtype_name(as));
    }
    w->dtype = as;
    w->n = host->rows;
    w->k = host->cols;
#pragma omp parallel for schedule(static)
    for (uint32_t p = 0; p < panels; p++) {
        float rows[WN_CPU_COLS][64], cols[64 * WN_CPU_COLS];
        char *to = (char *)w->panels + p * panel_bytes;
        memset(rows, 0, sizeof(rows));
        for (uint32_t k = 0; k < w->k; k += 64) {
            uint32_t n = min_u32(64, w->k - k);
            for (uint32_t j = 0; j < min_u32(WN_CPU_COLS, w->n - p * WN_CPU_COLS); j++)
                isa->load(rows[j], wn_mat_at(host, p * WN_CPU_COLS + j, k), host->dtype, n);
            isa->transpose(cols, rows[0], 64, n);
            if (as == WN_F32)
                memcpy(to + (size_t)k * WN_CPU_COLS * e, cols, (size_t)n * WN_CPU_COLS * e);
            else
                isa->pack_bf16((wn_bf16 *)(to + (size_t)k * WN_CPU_COLS * e), cols, n);
        }
    }
    *out = w;
    return WN_OK;
}

void wn_cpu_weight_destroy(struct wn_backend *be, struct wn_weight *w)
{
    (void)be;
    if (!w) return;
    free(w->panels);
    free(w);
}

/* sums[panel][row][16] of one slice of K: a strip of panels [p0, p1) times rows [r0, r1). */
static void slice_sums(const struct mm *p, uint32_t slice, uint32_t p0, uint32_t p1, uint32_t r0, uint32_t r1,
                       float *sums)
{
    const struct wn_weight *w = p->a->w;
    size_t e = wn_dtype_bytes(w->dtype);

    for (uint32_t b = 0; b < p->blocks_per_slice; b++) {
        uint32_t k0 = slice * p->slice_len + b * p->kc, n = min_u32(p->kc, p->slice_len - b * p->kc);
        const float *x = p->x + (size_t)(slice * p->blocks_per_slice + b) * p->block_stride;
        if (p->block_stride == 0) x = p->x + k0;
        for (uint32_t m0 = r0; m0 < r1; m0 += MC) {
            uint32_t m1 = min_u32(m0 + MC, r1);
            for (uint32_t j = p0; j < p1; j++) {
                const char *panel = (char *)w->panels + ((size_t)j * w->k + k0) * WN_CPU_COLS * e;
                float *c = sums + (size_t)(j - p0) * p->rows * WN_CPU_COLS;
                for (uint32_t r = m0, rows; r < m1; r += rows) {
                    const float *xr = x + (size_t)r * p->x_ld;
                    float *cr = c + (size_t)(r - r0) * WN_CPU_COLS;
                    rows = div_up(m1 - r, div_up(m1 - r, WN_CPU_ROWS)); /* 8 are 4 + 4: faster than 6 + 2 */
                    if (w->dtype == WN_F32)
                        p->isa->tile(rows, n, xr, p->x_ld, (const float *)panel, cr, WN_CPU_COLS, b == 0);
                    else
                        p->isa->tile_bf16(rows, n, xr, p->x_ld, (const wn_bf16 *)panel, cr, WN_CPU_COLS, b == 0);
                }
            }
        }
    }
}

/* One strip of panels for one block of rows: slices, their tree, bias, activation, rounding. */
static void mm_task(const struct mm *p, uint32_t task, uint32_t row_blocks, float *scratch)
{
    const struct wn_matmul *a = p->a;
    uint32_t panels = div_up(a->w->n, WN_CPU_COLS), p0 = task / row_blocks * p->strip,
             p1 = min_u32(p0 + p->strip, panels);
    uint32_t r0 = task % row_blocks * p->rows, r1 = min_u32(r0 + p->rows, p->m);

    /* Level by level like a binary counter: slice s has popcount(s) finished sums before it. */
    for (uint32_t s = 0; s < a->slices; s++) {
        float *sums = scratch + (uint32_t)__builtin_popcount(s) * p->area;
        slice_sums(p, s, p0, p1, r0, r1, sums);
        for (uint32_t t = s; t & 1; t >>= 1, sums -= p->area)
            for (uint32_t j = 0; j < p1 - p0; j++)
                p->isa->add(sums - p->area + (size_t)j * p->rows * WN_CPU_COLS,
                            sums + (size_t)j * p->rows * WN_CPU_COLS, (size_t)(r1 - r0) * WN_CPU_COLS);
    }
    for (uint32_t j = p0; j < p1; j++)
        p->isa->finish(wn_mat_at(&a->out, r0, (size_t)j * WN_CPU_COLS), a->out.dtype, a->out.stride,
                       scratch + (size_t)(j - p0) * p->rows * WN_CPU_COLS, r1 - r0,
                       min_u32(WN_CPU_COLS, a->w->n - j * WN_CPU_COLS), a->bias ? a->bias + j * WN_CPU_COLS : NULL,
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
            uint32_t at = b * p->kc, n = min_u32(p->kc, p->slice_len - at);
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
        p->kc = p->slice_len;
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
    return (floats + 15) / 16 * 16;
}

wn_status wn_cpu_matmuls(struct wn_backend *be, const struct wn_matmul *a, uint32_t n)
{
    struct wn_cpu *cpu = (struct wn_cpu *)be;
    struct mm p[TOGETHER] = {{.isa = cpu->isa, .a = a}};
    uint32_t tasks[TOGETHER], row_blocks, all = 0;
    size_t x_floats, task_floats = 0;
    uint64_t macs = 0;
    int threads = wn_cpu_threads();
    bool alone;
    float *x, *scratch;

    WN_ASSERT(n > 0 && n <= TOGETHER);
    for (uint32_t i = 0; i < n; i++) {
        wn_check_matmul(&a[i], a[i].w->n, a[i].w->k);
        WN_ASSERT(a[i].x.ptr == a[0].x.ptr && a[i].x.rows == a[0].x.rows && a[i].slices == a[0].slices);
        macs += (uint64_t)a[i].x.rows * a[i].w->n * a[i].w->k;
    }
    if (a->x.rows == 0) return WN_OK;
    if (macs < SMALL_MACS) threads = 1;
    x_floats = lay_x(&p[0], a);
    alone = x_floats < SMALL_COPY;
    row_blocks = div_up(p[0].m, p[0].rows);
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t panels = div_up(a[i].w->n, WN_CPU_COLS);
        p[i] = p[0];
        p[i].a = &a[i];
        p[i].strip = p[i].m <= FEW_ROWS || panels == 0 ? 1 : min_u32(STRIP, div_up(panels, 4 * (uint32_t)threads));
        p[i].area = (size_t)p[i].strip * p[i].rows * WN_CPU_COLS;
        if (task_floats < p[i].levels * p[i].area) task_floats = p[i].levels * p[i].area;
        tasks[i] = div_up(panels, p[i].strip) * row_blocks;
        all += tasks[i];
    }
    x = wn_cpu_scratch(cpu, (x_floats + (size_t)threads * task_floats) * sizeof(float));
    if (!x) return WN_ENOMEM;
    scratch = x + x_floats;
    for (uint32_t i = 0; i < n; i++) p[i].x = x_floats ? x : a->x.ptr;
    for (uint32_t r = 0; x_floats && alone && r < p[0].m; r++) copy_x_row(&p[0], x, r);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        float *mine = scratch + (size_t)wn_cpu_thread() * task_floats;
        if (!alone) {
#pragma omp for schedule(static)
            for (uint32_t r = 0; r < p[0].m; r++) copy_x_row(&p[0], x, r);
        }
#pragma omp for schedule(dynamic)
        for (uint32_t t = 0; t < all; t++) {
            uint32_t i = 0, at = t;
            while (at >= tasks[i]) at -= tasks[i++];
            mm_task(&p[i], at, row_blocks, mine);
        }
    }
    return WN_OK;
}

wn_status wn_cpu_matmul(struct wn_backend *be, const struct wn_matmul *a)
{
    return wn_cpu_matmuls(be, a, 1);
}
