/* shard/cpu/kv.h - how the "cpu" backend lays KV memory out.
 *
 * Where pages are whole groups of 16 tokens, a group's keys are one panel [cols][16 tokens] and its values are panels
 * [cols / 16][16 tokens][16 columns]: attention's products read both as they lie, and what they read for one head is
 * one piece. In bfloat16 a panel's rows are in the order of WN_CPU_BF16_AT. Other pages have plain rows.
 * A page's bytes are in one piece either way. No state, any thread. */
#ifndef WN_SHARD_CPU_KV_H
#define WN_SHARD_CPU_KV_H

#include "shard/cpu/check.h"
#include "shard/cpu/cpu.h"

static inline bool wn_cpu_kv_panels(const struct wn_kv *kv)
{
    return kv->page_tokens % WN_CPU_COLS == 0 && kv->k.cols % WN_CPU_COLS == 0 && kv->k.stride == kv->k.cols &&
           kv->v.stride == kv->v.cols;
}

/* Row of the pool that holds token `at` of a sequence. */
static inline size_t wn_cpu_kv_row(const struct wn_kv *kv, const struct wn_seq *seq, uint32_t at)
{
    return (size_t)seq->pages[at / kv->page_tokens] * kv->page_tokens + at % kv->page_tokens;
}

static inline size_t wn_cpu_kv_in_row(wn_dtype type, size_t i)
{
    return type == WN_BF16 ? WN_CPU_BF16_AT(i) : i;
}

/* Element of the pool's memory that holds column col of row `row`, in panels. */
static inline size_t wn_cpu_kv_key_at(const struct wn_mat *k, size_t row, size_t col)
{
    size_t group = row / WN_CPU_COLS * WN_CPU_COLS * k->cols;
    return group + col * WN_CPU_COLS + wn_cpu_kv_in_row(k->dtype, row % WN_CPU_COLS);
}

static inline size_t wn_cpu_kv_value_at(const struct wn_mat *v, size_t row, size_t col)
{
    size_t group = row / WN_CPU_COLS * WN_CPU_COLS * v->cols, panel = col / WN_CPU_COLS * WN_CPU_COLS * WN_CPU_COLS;
    return group + panel + row % WN_CPU_COLS * WN_CPU_COLS + wn_cpu_kv_in_row(v->dtype, col % WN_CPU_COLS);
}

#endif
