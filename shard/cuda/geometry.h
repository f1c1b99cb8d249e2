/* shard/cuda/geometry.h - which kernel an operation gets, and the tables that a launch reads: pure functions of shapes,
 * so they are tested without a device. No state, any thread. Fails: nothing; wrong shapes are the caller's bug. */
#ifndef WN_SHARD_CUDA_GEOMETRY_H
#define WN_SHARD_CUDA_GEOMETRY_H

#include "shard/backend.h"
#include "shard/cuda/launch_matmul.h"

/* WINNOW_CUDA_KERNELS. plain: the plain loops; exact: tensor cores, with the bit contract of shard/backend.h;
 * fast (the default): as exact, and cuBLASLt where there are many rows. */
typedef enum wn_cuda_kernels { WN_CUDA_PLAIN, WN_CUDA_EXACT, WN_CUDA_FAST } wn_cuda_kernels;

typedef enum wn_cuda_matmul_kind { WN_CUDA_MATMUL_PLAIN, WN_CUDA_MATMUL_MMA, WN_CUDA_MATMUL_LT } wn_cuda_matmul_kind;

/* Rows from which on cuBLASLt is asked: below, a matmul reads its weights and does little else. */
#define WN_CUDA_LT_ROWS 65u

/* Do all rows begin on 16 bytes? */
bool wn_cuda_aligned(const struct wn_mat *m);

wn_cuda_matmul_kind wn_cuda_choose_matmul(wn_cuda_kernels kernels, const struct wn_matmul *a, wn_dtype w_type,
                                          uint32_t n, uint32_t k);

/* The class of a number of rows, named by its largest: cuBLASLt is asked for one algorithm a class. At most 127 rows,
 * or a sixteenth, larger than `rows`: the best tiles for 1,024 rows waste a third of the device on 616. */
uint32_t wn_cuda_row_class(uint32_t rows);

/* May the tensor cores do it? */
bool wn_cuda_choose_attn_mma(wn_cuda_kernels kernels, const struct wn_mat *q, const struct wn_mat *k,
                             const struct wn_mat *v, uint32_t head_dim);

/* Floats of parts that the choice needs (struct wn_cuda_matmul). */
size_t wn_cuda_matmul_parts(wn_cuda_matmul_kind kind, const struct wn_matmul *a, uint32_t n);

/* What an attention launch reads, in one block of 32-bit words that is uploaded as it is: sequences, row_seq, tiles,
 * split tiles, page tables. Offsets in words. */
struct wn_cuda_attn_plan {
    uint32_t words;
    uint32_t seqs, row_seq, tiles, split_tiles, tables;
    uint32_t tiles_n, split_tiles_n, chunks, split_rows;
    bool padded;
};

/* Sizes and offsets. group: query heads of a kv head. */
struct wn_cuda_attn_plan wn_cuda_plan_attn(const struct wn_seq *seqs, uint32_t seqs_n, uint32_t rows, uint32_t group,
                                           uint32_t page_tokens);
/* For a step of one row a sequence, of which `rows` leave room for more sequences than there are: makes the plan that
 * of all steps of so many rows and of this power of two of chunks. Every sequence is split; empty tiles name one
 * without rows. */
void wn_cuda_pad_attn(struct wn_cuda_attn_plan *plan, const struct wn_seq *seqs, uint32_t seqs_n, uint32_t rows,
                      uint32_t group, uint32_t page_tokens);
/* Fills `out`, plan->words words. */
void wn_cuda_fill_attn(const struct wn_cuda_attn_plan *plan, const struct wn_seq *seqs, uint32_t seqs_n, uint32_t rows,
                       uint32_t group, uint32_t page_tokens, uint32_t *out);

/* The pool row of every row of the step, UINT32_MAX for rows of no sequence: out [rows]. */
void wn_cuda_fill_targets(const struct wn_seq *seqs, uint32_t seqs_n, uint32_t rows, uint32_t page_tokens,
                          uint32_t *out);

#endif
