/* libcublasltsim.so: cuBLASLt on the simulated device of tests/cudasim, so that shard/cuda/lt.c runs as it is where
 * there is no GPU: column-major layouts with leading dimensions and batches, algorithms that are good for what they
 * were asked for, and refusals. Its sums run backwards: an order that is not ours. It knows nothing of Winnow.
 *
 * What it refuses: memory that is less aligned than its algorithm was asked for, dimensions that do not fit, batches
 * that differ. Of one output width (72) there is no algorithm; an algorithm for a depth that is no multiple of eight
 * does only the number of columns that it was asked for.
 *
 * What it cannot show: speed, workspaces, and whether cuBLASLt itself does what its documentation says. */
#include "tests/cudasim/cublasLt.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/dtype.h"
#include "tests/cudasim/sim_stream.h"

#define WIDTH_WITHOUT 72u

struct sim_lt_op {
    int transposed;
};

struct sim_lt_layout {
    cudaDataType_t type;
    uint64_t rows, cols;
    int64_t ld, step;
    int32_t batch;
};

struct sim_lt_wish {
    uint64_t workspace;
    uint32_t schemes, align[3]; /* of b, c, d */
};

/* What an algorithm is good for. */
struct good_for {
    uint64_t rows, cols, depth, batch;
    uint32_t align[3], exact;
};
_Static_assert(sizeof(struct good_for) <= sizeof(cublasLtMatmulAlgo_t), "it travels as an algorithm");

const char *cublasLtGetStatusString(cublasStatus_t code)
{
    return code == CUBLAS_STATUS_SUCCESS ? "success" : "simulated refusal";
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle)
{
    *handle = malloc(1);
    return *handle ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_ALLOC_FAILED;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle)
{
    free(handle);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *op, cublasComputeType_t compute, cudaDataType_t scale)
{
    if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F) return CUBLAS_STATUS_INVALID_VALUE;
    *op = calloc(1, sizeof(**op));
    return *op ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_ALLOC_FAILED;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t op)
{
    free(op);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t op, cublasLtMatmulDescAttributes_t what,
                                              const void *value, size_t bytes)
{
    if (what != CUBLASLT_MATMUL_DESC_TRANSA || bytes != sizeof(op->transposed)) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(&op->transposed, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *m, cudaDataType_t type, uint64_t rows, uint64_t cols,
                                          int64_t ld)
{
    if (rows == 0 || cols == 0 || ld < (int64_t)rows) return CUBLAS_STATUS_INVALID_VALUE;
    *m = malloc(sizeof(**m));
    if (!*m) return CUBLAS_STATUS_ALLOC_FAILED;
    **m = (struct sim_lt_layout){.type = type, .rows = rows, .cols = cols, .ld = ld, .batch = 1};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t m)
{
    free(m);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t m, cublasLtMatrixLayoutAttribute_t what,
                                                const void *value, size_t bytes)
{
    const bool count = what == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT;
    void *to = count ? (void *)&m->batch : (void *)&m->step;

    if (bytes != (count ? sizeof(m->batch) : sizeof(m->step))) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(to, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *wish)
{
    *wish = malloc(sizeof(**wish));
    if (!*wish) return CUBLAS_STATUS_ALLOC_FAILED;
    **wish = (struct sim_lt_wish){.schemes = 7, .align = {256, 256, 256}};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t wish)
{
    free(wish);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t wish,
                                                    cublasLtMatmulPreferenceAttributes_t what, const void *value,
                                                    size_t bytes)
{
    void *to = what == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES     ? (void *)&wish->workspace
               : what == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK ? (void *)&wish->schemes
                                    : (void *)&wish->align[what - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES];

    if (bytes != (to == &wish->workspace ? 8 : 4)) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(to, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

static bool fit(const struct sim_lt_op *op, const struct sim_lt_layout *a, const struct sim_lt_layout *b,
                const struct sim_lt_layout *c, const struct sim_lt_layout *d)
{
    return op->transposed == CUBLAS_OP_T && a->type == CUDA_R_16BF && b->type == CUDA_R_16BF && a->rows == b->rows &&
           d->rows == a->cols && d->cols == b->cols && c == d && a->batch == d->batch && b->batch == d->batch;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t op,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t wish, int most,
                                              cublasLtMatmulHeuristicResult_t *found, int *n)
{
    const struct good_for good = {.rows = d->rows,
                                  .cols = d->cols,
                                  .depth = a->rows,
                                  .batch = (uint64_t)d->batch,
                                  .align = {wish->align[0], wish->align[1], wish->align[2]},
                                  .exact = a->rows % 8 != 0};

    *n = 0;
    if (!handle || most < 1 || !fit(op, a, b, c, d)) return CUBLAS_STATUS_INVALID_VALUE;
    if (wish->schemes != CUBLASLT_REDUCTION_SCHEME_NONE || d->rows == WIDTH_WITHOUT) return CUBLAS_STATUS_NOT_SUPPORTED;
    *found = (cublasLtMatmulHeuristicResult_t){.state = CUBLAS_STATUS_SUCCESS};
    memcpy(&found->algo, &good, sizeof(good));
    *n = 1;
    return CUBLAS_STATUS_SUCCESS;
}

struct product {
    const wn_bf16 *a, *b;
    void *d;
    struct sim_lt_layout a_is, b_is, d_is;
};

static bool compute(void *ctx)
{
    struct product *p = ctx;

    for (int32_t i = 0; i < p->d_is.batch; i++)
        for (uint64_t col = 0; col < p->d_is.cols; col++)
            for (uint64_t row = 0; row < p->d_is.rows; row++) {
                const wn_bf16 *a = p->a + i * p->a_is.step + (int64_t)row * p->a_is.ld;
                const wn_bf16 *b = p->b + i * p->b_is.step + (int64_t)col * p->b_is.ld;
                const int64_t at = i * p->d_is.step + (int64_t)col * p->d_is.ld + (int64_t)row;
                float sum = 0.0f;
                for (uint64_t k = p->a_is.rows; k-- > 0;) sum += wn_bf16_to_f32(a[k]) * wn_bf16_to_f32(b[k]);
                if (p->d_is.type == CUDA_R_32F)
                    ((float *)p->d)[at] = sum;
                else
                    ((wn_bf16 *)p->d)[at] = wn_f32_to_bf16(sum);
            }
    free(p);
    return true;
}

static bool aligned(const void *p, const struct sim_lt_layout *m, uint32_t to)
{
    const uint64_t e = m->type == CUDA_R_32F ? 4 : 2;

    return (uintptr_t)p % to == 0 && (uint64_t)m->ld * e % to == 0 && (uint64_t)m->step * e % to == 0;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t op, const void *alpha, const void *a,
                              cublasLtMatrixLayout_t a_is, const void *b, cublasLtMatrixLayout_t b_is,
                              const void *beta, const void *c, cublasLtMatrixLayout_t c_is, void *d,
                              cublasLtMatrixLayout_t d_is, const cublasLtMatmulAlgo_t *algo, void *workspace,
                              size_t workspace_bytes, cudaStream_t st)
{
    const float *one = alpha, *zero = beta;
    struct good_for good;
    struct product *p;

    if (!handle || !workspace || workspace_bytes < 32u << 20 || !st || !fit(op, a_is, b_is, c_is, d_is) || c != d ||
        *one != 1.0f || *zero != 0.0f)
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(&good, algo, sizeof(good));
    if (good.rows != d_is->rows || good.depth != a_is->rows || good.batch != (uint64_t)d_is->batch ||
        (good.exact && good.cols != d_is->cols) || !aligned(b, b_is, good.align[0]) ||
        !aligned(d, d_is, good.align[1] > good.align[2] ? good.align[1] : good.align[2]))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    p = malloc(sizeof(*p));
    if (!p) return CUBLAS_STATUS_ALLOC_FAILED;
    *p = (struct product){.a = a, .b = b, .d = d, .a_is = *a_is, .b_is = *b_is, .d_is = *d_is};
    sim_stream_push(st, compute, p);
    return CUBLAS_STATUS_SUCCESS;
}
