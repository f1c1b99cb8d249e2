/* shard/cpu/cpu.h - the insides of the "cpu" backend: one table of kernels for each instruction set, and the drivers
 * above them (matmul.c, attention.c, rows.c), which know blocking and threads but no instruction.
 *
 * A new instruction set is one file with a table (it may include kernels.inc, or bring kernels of its own) and one row
 * in cpu.c. At open the best available row is taken, or the one that the environment names:
 * WINNOW_CPU_ISA=portable|avx2. Kernels hold the bit contract of backend.h: an output element is one chain of
 * multiply-adds in ascending order, whatever the number of rows, and a chain may be put down in memory and taken up
 * again.
 *
 * Owns: scratch memory, which only grows. Threads: one caller; OpenMP inside, as many as omp_get_max_threads() says. */
#ifndef WN_SHARD_CPU_CPU_H
#define WN_SHARD_CPU_CPU_H

#include "shard/backend.h"

#define WN_CPU_COLS 16u /* columns of a packed panel */
#define WN_CPU_ROWS 6u  /* most rows of a tile */

#define WN_CPU_BLOCK 64u /* keys that attention takes at a time, a multiple of the panel */

/* Where column c of a panel's bfloat16 row is: columns c and c + 8 share a 32-bit word, so that one load, one shift and
 * one mask widen a row. */
#define WN_CPU_BF16_AT(c) (2 * ((c) % 8) + (c) / 8)

/* Keys or values of one kv head where they lie in KV memory (kv.h), and what will be read after them: it is asked for
 * at the pace at which this is read. */
struct wn_cpu_block {
    const char *panel[WN_CPU_BLOCK / WN_CPU_COLS], *ahead[WN_CPU_BLOCK / WN_CPU_COLS];
    wn_dtype type;
    uint32_t n; /* keys, 1 .. 64 */
};

struct wn_cpu_isa {
    const char *name;
    bool (*available)(void);
    /* c[m, 16] (+)= a[m, k] * b[k, 16], m <= 6, b dense; `first` starts the chains at zero. lda, ldc in elements.
     * ahead: what is read after b, as much of it, asked for at the pace at which b is read; b itself if nothing is. */
    void (*tile)(uint32_t m, size_t k, const float *a, size_t lda, const float *b, const void *ahead, float *c,
                 size_t ldc, bool first);
    void (*tile_bf16)(uint32_t m, size_t k, const float *a, size_t lda, const wn_bf16 *b, const void *ahead, float *c,
                      size_t ldc, bool first);
    void (*tile_i8)(uint32_t m, size_t k, const float *a, size_t lda, const int8_t *b, const void *ahead, float *c,
                    size_t ldc, bool first);
    /* the same for two panels, m <= 2: they and what is read after them are `panel` bytes apart, c is dense */
    void (*pair_i8)(uint32_t m, size_t k, const float *a, size_t lda, const int8_t *b, size_t panel, const void *ahead,
                    float *c, bool first);
    /* k rows of 16 as a bfloat16 panel, in the order of WN_CPU_BF16_AT */
    void (*pack_bf16)(wn_bf16 *out, const float *in, size_t k);
    void (*pack_i8)(int8_t *out, float *scale, const float *in, size_t k); /* the same as int8: 16 scales */
    void (*unpack)(float *out, const void *panel, wn_dtype type, size_t k); /* k rows of 16 of a panel */
    /* rows of c[rows, 16] + bias[cols], activation, rounded into out; cols <= 16, stride in elements */
    void (*finish)(void *out, wn_dtype type, size_t stride, float *c, size_t rows, uint32_t cols, const float *bias,
                   wn_act act);
    void (*load)(float *out, const void *in, wn_dtype type, size_t n);
    void (*store)(void *out, wn_dtype type, const float *in, size_t n);
    /* out[panel][.][16] = 16 columns of a row of n, zeros after its end; panel_stride in floats */
    void (*split)(float *out, size_t panel_stride, const void *in, wn_dtype type, size_t n);
    void (*transpose)(float *out, const float *in, size_t ld, size_t n); /* out[n, 16] = in[16, n] */
    void (*add)(float *x, const float *y, size_t n);                     /* x += y */
    void (*add_scaled)(float *x, const float *y, float scale, size_t n); /* x += y * scale */
    void (*mul)(float *x, const float *y, size_t n);                     /* x *= y */
    void (*scale)(float *x, float scale, size_t n);                      /* x *= scale */
    void (*activate)(float *x, size_t n, wn_act act);
    float (*sum)(const float *x, size_t n);
    float (*sum_squares)(const float *x, float mean, size_t n); /* of x - mean */
    void (*normalise)(float *x, float mean, float scale, const float *weight, const float *bias, size_t n);
    void (*rotate)(float *x, const float *cos, const float *sin, size_t half);
    float (*max)(const float *x, size_t n);
    /* x = exp(x - max) for the first n of padded_n, zeros after them; the sum. padded_n is a multiple of 16. */
    float (*exp_sum)(float *x, float max, size_t n, size_t padded_n);
    /* Rows of scores [m, 64], the first keys[r] of them, become weights under the running maximum, zeros after them; o
     * [m, wide] and sum, made under the maximum before, are scaled. `first`: there was none. */
    void (*softmax)(uint32_t m, float *s, const uint32_t *keys, bool first, float *max, float *sum, float *o,
                    size_t wide);
    /* s[m, 64] = q[m, head_dim] * keys of a block, all of each panel; head_dim is a multiple of 16 */
    void (*scores)(uint32_t m, size_t head_dim, const float *q, const struct wn_cpu_block *keys, float *s);
    /* o[m, head_dim] (+)= s[m, 64] * values of a block, block->n of them; `first` starts the chains at zero */
    void (*weigh)(uint32_t m, size_t head_dim, const float *s, const struct wn_cpu_block *values, float *o,
                  bool first);
};

extern const struct wn_cpu_isa wn_cpu_isa_portable;
#ifdef WN_CPU_HAVE_AVX2
extern const struct wn_cpu_isa wn_cpu_isa_avx2;
#endif

struct wn_weight {
    void *panels; /* [ceil(n / 16)][k][16] of dtype, columns after n are zero; bfloat16: see WN_CPU_BF16_AT */
    wn_dtype dtype;
    uint32_t n, k;
    uint32_t slices; /* int8: parts of k, with scales of their own, [slices][16 * panels] */
    float *scales;   /* behind the panels, in the same memory; NULL: other types have none */
};

struct wn_cpu {
    struct wn_backend base;
    const struct wn_cpu_isa *isa;
    void *scratch;
    size_t scratch_bytes;
    float *rope; /* [rope_rows][head_dim / 2] pairs of rows: cosines, then sines */
    uint32_t rope_rows, rope_dim;
    float rope_theta;
};

static inline uint32_t wn_cpu_min(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static inline size_t wn_cpu_round_up(size_t n) /* to whole panels */
{
    return (n + WN_CPU_COLS - 1) / WN_CPU_COLS * WN_CPU_COLS;
}

/* The backend's scratch, at least `bytes` large; contents undefined. NULL if there is no memory. */
void *wn_cpu_scratch(struct wn_cpu *cpu, size_t bytes);
int wn_cpu_threads(void); /* of the next parallel region */
int wn_cpu_thread(void);  /* which of them this is */

wn_status wn_cpu_weight_create(struct wn_backend *be, struct wn_weight **out, const struct wn_mat *host, wn_dtype as);
wn_status wn_cpu_weight_i8(struct wn_backend *be, struct wn_weight **out, const struct wn_mat *host, uint32_t slices);
wn_status wn_cpu_weight_rows(struct wn_backend *be, struct wn_weight *w, uint32_t first, const struct wn_mat *host);
wn_status wn_cpu_weight_i8_rows(struct wn_backend *be, struct wn_weight *w, uint32_t first, const struct wn_mat *host);
/* cols[n, 16] = columns [k, k + n) of the 16 rows of panel p of host, zeros after its end; n <= 64 */
void wn_cpu_weight_cols(const struct wn_cpu_isa *isa, float *cols, const struct wn_mat *host, uint32_t p, uint32_t k,
                        uint32_t n);
void wn_cpu_weight_destroy(struct wn_backend *be, struct wn_weight *w);
wn_status wn_cpu_matmul(struct wn_backend *be, const struct wn_matmul *a);
wn_status wn_cpu_matmuls(struct wn_backend *be, const struct wn_matmul *a, uint32_t n);
wn_status wn_cpu_attn_paged(struct wn_backend *be, const struct wn_attn_paged *a);
wn_status wn_cpu_attn_full(struct wn_backend *be, const struct wn_attn_full *a);
wn_status wn_cpu_norm(struct wn_backend *be, const struct wn_norm *a);
wn_status wn_cpu_rope(struct wn_backend *be, const struct wn_rope *a);
wn_status wn_cpu_kv_write(struct wn_backend *be, const struct wn_kv_write *a);
wn_status wn_cpu_add_norm(struct wn_backend *be, const struct wn_mat *y, const struct wn_norm *a);
wn_status wn_cpu_rope_kv(struct wn_backend *be, const struct wn_rope *a, const struct wn_kv_write *w);
wn_status wn_cpu_add(struct wn_backend *be, const struct wn_mat *out, const struct wn_mat *a, const struct wn_mat *b);
wn_status wn_cpu_silu_mul(struct wn_backend *be, const struct wn_mat *out, const struct wn_mat *gate,
                          const struct wn_mat *up);
wn_status wn_cpu_gather_rows(struct wn_backend *be, const struct wn_mat *out, const struct wn_mat *table,
                             const uint32_t *index);
wn_status wn_cpu_convert(struct wn_backend *be, const struct wn_mat *out, const struct wn_mat *in);

#endif
