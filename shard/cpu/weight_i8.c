/* int8 weights: the panels of matmul.c, a byte an element, and a scale for each row and part of K behind them. */
#include <stdlib.h>

#include "shard/cpu/check.h"
#include "shard/cpu/cpu.h"
#include "shard/cpu/memory.h"

wn_status wn_cpu_weight_i8_rows(struct wn_backend *be, struct wn_weight *w, uint32_t first, const struct wn_mat *host)
{
    struct wn_cpu *cpu = (struct wn_cpu *)be;
    const struct wn_cpu_isa *isa = cpu->isa;
    const uint32_t slices = w->slices, len = w->k / slices, all = (uint32_t)(wn_cpu_round_up(w->n) / WN_CPU_COLS);
    const uint32_t panels = (uint32_t)(wn_cpu_round_up(host->rows) / WN_CPU_COLS), before = first / WN_CPU_COLS;
    const size_t part = (size_t)len * WN_CPU_COLS;
    const int threads = wn_cpu_threads();
    float *scratch = wn_cpu_scratch(cpu, (size_t)threads * part * sizeof(float));

    wn_check_source(host);
    WN_ASSERT(first % WN_CPU_COLS == 0 && first + host->rows <= w->n && host->cols == w->k);
    if (!scratch) return WN_ENOMEM;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (uint32_t i = 0; i < panels * slices; i++) {
        const uint32_t p = i / slices, s = i % slices;
        float *cols = scratch + (size_t)wn_cpu_thread() * part;
        for (uint32_t k = 0; k < len; k += 64)
            wn_cpu_weight_cols(isa, cols + (size_t)k * WN_CPU_COLS, host, p, s * len + k, wn_cpu_min(64, len - k));
        isa->pack_i8((int8_t *)w->panels + (size_t)(before + p) * w->k * WN_CPU_COLS + s * part,
                     w->scales + ((size_t)s * all + before + p) * WN_CPU_COLS, cols, len);
    }
    return WN_OK;
}

wn_status wn_cpu_weight_i8(struct wn_backend *be, struct wn_weight **out, const struct wn_mat *host, uint32_t slices)
{
    const size_t panels = wn_cpu_round_up(host->rows) / WN_CPU_COLS, bytes = panels * host->cols * WN_CPU_COLS;
    const size_t scales_n = slices * panels * WN_CPU_COLS;
    struct wn_weight *w = calloc(1, sizeof(*w));
    wn_status rc;

    WN_ASSERT(slices >= 1 && host->cols % slices == 0 && bytes % sizeof(float) == 0);
    if (w) w->panels = wn_cpu_alloc(bytes + scales_n * sizeof(float));
    if (!w || !w->panels) {
        free(w);
        return wn_fail(NULL, WN_ENOMEM, "cpu: weight [%u, %u] as int8", host->rows, host->cols);
    }
    w->dtype = WN_I8;
    w->n = host->rows;
    w->k = host->cols;
    w->slices = slices;
    w->scales = (float *)(void *)((char *)w->panels + bytes);
    rc = host->ptr ? wn_cpu_weight_i8_rows(be, w, 0, host) : WN_OK;
    if (rc != WN_OK) {
        wn_cpu_weight_destroy(be, w);
        return rc;
    }
    *out = w;
    return WN_OK;
}
