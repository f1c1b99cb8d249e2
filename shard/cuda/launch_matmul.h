/* shard/cuda/launch_matmul.h - launch.h's part for matmuls: weights as they lie on the device, products, launchers.
 *
 * Bits. wn_cuda_run_matmul_plain, and _mma with all that it uses, make the sums of a matmul in `slices` parts that
 * are added as a tree (shard/backend.h), in an order that the number of rows does not change; cuBLASLt does not. */
#ifndef WN_SHARD_CUDA_LAUNCH_MATMUL_H
#define WN_SHARD_CUDA_LAUNCH_MATMUL_H

#include "shard/cuda/launch.h"

#ifdef __cplusplus
extern "C" {
#endif

#define WN_CUDA_SLICES_MAX 64u
#define WN_CUDA_WALK_ROWS  16u /* rows up to which one block of _mma makes all slices of its columns */
#define WN_CUDA_PART_ROWS  512u /* rows whose parts are in memory at a time */
#define WN_CUDA_MANY_ROWS  64u /* above, int8 has a kernel of its own */

/* A weight [n, k]: rows of `stride` elements, a multiple of 8 and zero after column k; 16-byte aligned.
 * int8: the parts of a row are stride / slices bytes each, a multiple of 16 and zero after their end. Columns of a part
 * are in groups of 16, of which word t (of four) holds 2t, 2t + 8, 2t + 1, 2t + 9: what a lane gives to wn_mma. */
struct wn_cuda_w {
    const void *ptr;
    const float *scales; /* int8: [slices, n] of a product in `slices` parts; else NULL */
    uint32_t dtype, n, k, stride;
};

struct wn_cuda_matmul {
    struct wn_cuda_mat out, x;
    struct wn_cuda_w w;
    const float *bias; /* NULL or [n] */
    uint32_t slices, act;
    float *parts; /* _mma: [slices, up to PART_ROWS rows, n] if there are more slices than 1 and more rows than
                   * WALK_ROWS; cuBLASLt with an epilogue: [1, rows, n] */
};

/* n products of the same x in one launch: plain sums, no bias, no activation. */
#define WN_CUDA_GROUP 3
struct wn_cuda_matmul_group {
    struct wn_cuda_mat x, out[WN_CUDA_GROUP];
    struct wn_cuda_w w[WN_CUDA_GROUP];
    uint64_t n;
};

/* Rows as int8 (shard/backend.h), to w and its scales, of which `scales_step` are of one part. */
struct wn_cuda_quantise {
    struct wn_cuda_mat in;
    int8_t *out;
    float *scales;
    uint32_t stride, slices, scales_step;
};

int wn_cuda_run_quantise(const struct wn_cuda_quantise *a, wn_cuda_stream st);
int wn_cuda_run_matmul_plain(const struct wn_cuda_matmul *a, wn_cuda_stream st);
/* bfloat16 x, bfloat16 or int8 w, 16-byte aligned rows; one slice, or k / slices a multiple of 8 */
int wn_cuda_run_matmul_mma(const struct wn_cuda_matmul *a, wn_cuda_stream st);
int wn_cuda_run_matmul_group(const struct wn_cuda_matmul_group *a, wn_cuda_stream st); /* each as _mma */
/* _mma's and _group's, for int8 w and many rows; cudaErrorNotSupported: the device has too little shared memory */
int wn_cuda_run_matmul_many(const struct wn_cuda_matmul *a, wn_cuda_stream st);
int wn_cuda_run_matmul_many_group(const struct wn_cuda_matmul_group *a, wn_cuda_stream st);
/* parts -> out: the tree over `slices` parts, bias, activation, rounding */
int wn_cuda_run_matmul_finish(const struct wn_cuda_matmul *a, wn_cuda_stream st);

#ifdef __cplusplus
}
#endif

#endif
