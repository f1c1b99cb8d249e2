/* cuBLASLt: one algorithm for each class of shapes, chosen once and kept. Rows are rounded up for the choice
 * (wn_cuda_row_class), so that a step with one row more does not ask again, and gets the same algorithm. */
#include <stdlib.h>
#include <string.h>

#include "shard/cuda/cuda.h"

#ifdef WN_CUDA_HAVE_CUBLASLT

#include <cublasLt.h>
#include <dlfcn.h>
#include <pthread.h>

#define WORKSPACE ((size_t)32 << 20)
#define CHOICES   512u /* a model has about ten shapes, times some dozens of classes of rows */
#define TEXT_OF(x) #x
#define LIBRARY(version) "libcublasLt.so." TEXT_OF(version)

/* The library is half a gigabyte: it is opened with the device, not with every program that could use one. */
#define FUNCTIONS(F)                                                                                        \
    F(cublasLtCreate) F(cublasLtDestroy) F(cublasLtGetStatusString) F(cublasLtMatmulDescCreate)             \
    F(cublasLtMatmulDescDestroy) F(cublasLtMatmulDescSetAttribute) F(cublasLtMatrixLayoutCreate)            \
    F(cublasLtMatrixLayoutDestroy) F(cublasLtMatrixLayoutSetAttribute) F(cublasLtMatmulPreferenceCreate)    \
    F(cublasLtMatmulPreferenceDestroy) F(cublasLtMatmulPreferenceSetAttribute)                              \
    F(cublasLtMatmulAlgoGetHeuristic) F(cublasLtMatmul)

static struct {
    void *library;
#define MEMBER(name) __typeof__(name) *name;
    FUNCTIONS(MEMBER)
#undef MEMBER
} lib;

struct choice {
    uint32_t rows, n, k, w_stride, x_stride, out_stride, out_type, products; /* compared as they lie there */
    cublasLtMatmulAlgo_t algo;
    bool none; /* there is no algorithm */
};

struct wn_cuda_lt {
    cublasLtHandle_t handle;
    void *workspace;
    struct choice choices[CHOICES];
    uint32_t choices_n, next;
    uint64_t asked;
};

static wn_status lib_find(struct wn_err *err)
{
    static const char *const names[] = {LIBRARY(CUBLAS_VER_MAJOR), "/usr/local/cuda/lib64/" LIBRARY(CUBLAS_VER_MAJOR)};
    const char *wish = getenv("WINNOW_CUBLASLT");
    void *found = NULL;

    if (wish && *wish) {
        found = dlopen(wish, RTLD_NOW);
        if (!found) return wn_fail(err, WN_EUNSUPP, "WINNOW_CUBLASLT=%s: %s", wish, dlerror());
    }
    for (size_t i = 0; !found && i < sizeof(names) / sizeof(names[0]); i++) found = dlopen(names[i], RTLD_NOW);
    if (!found) return wn_fail(err, WN_EUNSUPP, "%s is not there (WINNOW_CUBLASLT may name it)", names[0]);
#define LOAD(name)                                                                                           \
    *(void **)&lib.name = dlsym(found, #name);                                                               \
    if (!lib.name) return wn_fail(err, WN_EUNSUPP, "%s has no " #name, wish && *wish ? wish : names[0]);
    FUNCTIONS(LOAD)
#undef LOAD
    lib.library = found;
    return WN_OK;
}

/* Once a process; the library stays. */
static wn_status lib_open(struct wn_err *err)
{
    static pthread_mutex_t opening = PTHREAD_MUTEX_INITIALIZER;
    wn_status rc;

    pthread_mutex_lock(&opening);
    rc = lib.library ? WN_OK : lib_find(err);
    pthread_mutex_unlock(&opening);
    return rc;
}

static wn_status check(cublasStatus_t code, const char *what, struct wn_err *err)
{
    if (code == CUBLAS_STATUS_SUCCESS) return WN_OK;
    return wn_fail(err, code == CUBLAS_STATUS_ALLOC_FAILED ? WN_ENOMEM : WN_EDEVICE, "cuBLASLt: %s: %s", what,
                   lib.cublasLtGetStatusString(code));
}

wn_status wn_cuda_lt_open(struct wn_cuda_lt **out, struct wn_err *err)
{
    struct wn_cuda_lt *lt;
    wn_status rc = lib_open(err);

    if (rc != WN_OK) return rc;
    lt = calloc(1, sizeof(*lt));
    if (!lt) return wn_fail(err, WN_ENOMEM, "cuBLASLt: handle");
    rc = check(lib.cublasLtCreate(&lt->handle), "open", err);
    if (rc == WN_OK) rc = wn_cuda_check(cudaMalloc(&lt->workspace, WORKSPACE), "cuBLASLt's workspace", err);
    if (rc != WN_OK) {
        wn_cuda_lt_close(lt);
        return rc;
    }
    *out = lt;
    return WN_OK;
}

void wn_cuda_lt_close(struct wn_cuda_lt *lt)
{
    if (!lt) return;
    (void)cudaFree(lt->workspace);
    if (lt->handle) (void)lib.cublasLtDestroy(lt->handle);
    free(lt);
}

uint64_t wn_cuda_lt_asked(const struct wn_cuda_lt *lt)
{
    return lt->asked;
}

/* The row-major product x * w^T is, read by columns, out^T[n, rows] = w * x^T. */
struct problem {
    cublasLtMatmulDesc_t op;
    cublasLtMatrixLayout_t w, x, out;
};

static void problem_fini(struct problem *p)
{
    if (p->op) (void)lib.cublasLtMatmulDescDestroy(p->op);
    if (p->w) (void)lib.cublasLtMatrixLayoutDestroy(p->w);
    if (p->x) (void)lib.cublasLtMatrixLayoutDestroy(p->x);
    if (p->out) (void)lib.cublasLtMatrixLayoutDestroy(p->out);
}

static cublasStatus_t step_by(cublasLtMatrixLayout_t m, const struct wn_cuda_same *of, int64_t step)
{
    const int32_t n = (int32_t)of->n;
    cublasStatus_t rc = lib.cublasLtMatrixLayoutSetAttribute(m, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &n, sizeof(n));

    if (rc != CUBLAS_STATUS_SUCCESS) return rc;
    return lib.cublasLtMatrixLayoutSetAttribute(m, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &step, sizeof(step));
}

static wn_status problem_init(struct problem *p, const struct wn_cuda_matmul *a, const struct wn_cuda_same *of,
                              uint32_t rows, uint32_t out_type, uint32_t out_stride)
{
    cublasOperation_t transposed = CUBLAS_OP_T;
    cudaDataType_t type = out_type == WN_CUDA_F32 ? CUDA_R_32F : CUDA_R_16BF;
    cublasStatus_t rc = lib.cublasLtMatmulDescCreate(&p->op, CUBLAS_COMPUTE_32F, CUDA_R_32F);

    if (rc == CUBLAS_STATUS_SUCCESS)
        rc = lib.cublasLtMatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed));
    if (rc == CUBLAS_STATUS_SUCCESS)
        rc = lib.cublasLtMatrixLayoutCreate(&p->w, CUDA_R_16BF, a->w.k, a->w.n, a->w.stride);
    if (rc == CUBLAS_STATUS_SUCCESS) rc = lib.cublasLtMatrixLayoutCreate(&p->x, CUDA_R_16BF, a->w.k, rows, a->x.stride);
    if (rc == CUBLAS_STATUS_SUCCESS) rc = lib.cublasLtMatrixLayoutCreate(&p->out, type, a->w.n, rows, out_stride);
    if (of->n > 1) {
        if (rc == CUBLAS_STATUS_SUCCESS) rc = step_by(p->w, of, of->w_step);
        if (rc == CUBLAS_STATUS_SUCCESS) rc = step_by(p->x, of, 0);
        if (rc == CUBLAS_STATUS_SUCCESS) rc = step_by(p->out, of, of->out_step);
    }
    return check(rc, "shape", NULL);
}

/* Asks for the best algorithm of a class; without split K, whose order of sums may change with the shape. */
static wn_status ask(struct wn_cuda_lt *lt, const struct wn_cuda_matmul *a, const struct wn_cuda_same *of,
                     uint32_t rows, uint32_t out_type, uint32_t out_stride, cublasLtMatmulAlgo_t *out)
{
    cublasLtMatmulPreference_t wish = NULL;
    cublasLtMatmulHeuristicResult_t found[1];
    static const cublasLtMatmulPreferenceAttributes_t loose[] = {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                                                                 CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                                                                 CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_NONE, align = 16;
    size_t workspace = WORKSPACE;
    struct problem p = {NULL, NULL, NULL, NULL};
    int n = 0;
    wn_status rc = problem_init(&p, a, of, rows, out_type, out_stride);

    if (rc == WN_OK) rc = check(lib.cublasLtMatmulPreferenceCreate(&wish), "preference", NULL);
    if (rc == WN_OK)
        rc = check(lib.cublasLtMatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                                        sizeof(workspace)),
                   "preference", NULL);
    if (rc == WN_OK)
        rc = check(lib.cublasLtMatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes,
                                                        sizeof(schemes)),
                   "preference", NULL);
    /* x and out are views of columns and rows: they are aligned to 16 bytes, not to 256. */
    for (size_t i = 0; rc == WN_OK && i < sizeof(loose) / sizeof(loose[0]); i++)
        rc = check(lib.cublasLtMatmulPreferenceSetAttribute(wish, loose[i], &align, sizeof(align)), "preference",
                   NULL);
    if (rc == WN_OK) {
        cublasStatus_t code =
            lib.cublasLtMatmulAlgoGetHeuristic(lt->handle, p.op, p.w, p.x, p.out, p.out, wish, 1, found, &n);
        if (code == CUBLAS_STATUS_NOT_SUPPORTED || (n > 0 && found[0].state != CUBLAS_STATUS_SUCCESS)) n = 0;
        else rc = check(code, "choice of an algorithm", NULL);
    }
    if (rc == WN_OK && n == 0)
        rc = wn_fail(NULL, WN_EUNSUPP, "cuBLASLt: no algorithm for %u of [%u, %u] x [%u, %u]", of->n, rows, a->w.k,
                     a->w.n, a->w.k);
    if (rc == WN_OK) *out = found[0].algo;
    if (wish) (void)lib.cublasLtMatmulPreferenceDestroy(wish);
    problem_fini(&p);
    return rc;
}

static wn_status choose(struct wn_cuda_lt *lt, const struct wn_cuda_matmul *a, const struct wn_cuda_same *of,
                        uint32_t rows, uint32_t out_type, uint32_t out_stride, const cublasLtMatmulAlgo_t **out)
{
    struct choice c = {.rows = rows,
                       .n = a->w.n,
                       .k = a->w.k,
                       .w_stride = a->w.stride,
                       .x_stride = a->x.stride,
                       .out_stride = out_stride,
                       .out_type = out_type,
                       .products = of->n};
    struct choice *to;
    wn_status rc;

    for (uint32_t i = 0; i < lt->choices_n; i++) {
        const struct choice *have = &lt->choices[i];
        if (memcmp(have, &c, offsetof(struct choice, algo)) != 0) continue;
        *out = &have->algo;
        return have->none ? WN_EUNSUPP : WN_OK;
    }
    lt->asked++;
    rc = ask(lt, a, of, c.rows, out_type, out_stride, &c.algo);
    if (rc != WN_OK && rc != WN_EUNSUPP) return rc;
    c.none = rc == WN_EUNSUPP;
    to = &lt->choices[lt->next];
    lt->next = (lt->next + 1) % CHOICES;
    if (lt->choices_n < CHOICES) lt->choices_n++;
    *to = c;
    *out = &to->algo;
    return rc;
}

/* With the algorithm that was chosen for `rows` rows. WN_EUNSUPP: it does not do this number of them. */
static wn_status run_as(struct wn_cuda_lt *lt, const struct wn_cuda_matmul *a, const struct wn_cuda_same *of,
                        uint32_t rows, cudaStream_t st)
{
    const float one = 1.0f, zero = 0.0f;
    uint32_t type = a->parts ? (uint32_t)WN_CUDA_F32 : a->out.dtype, stride = a->parts ? a->w.n : a->out.stride;
    void *out = a->parts ? (void *)a->parts : a->out.ptr;
    const cublasLtMatmulAlgo_t *algo = NULL;
    struct problem p = {NULL, NULL, NULL, NULL};
    wn_status rc = choose(lt, a, of, rows, type, stride, &algo);

    if (rc == WN_OK) rc = problem_init(&p, a, of, a->out.rows, type, stride);
    if (rc == WN_OK) {
        cublasStatus_t code = lib.cublasLtMatmul(lt->handle, p.op, &one, a->w.ptr, p.w, a->x.ptr, p.x, &zero, out,
                                                 p.out, out, p.out, algo, lt->workspace, WORKSPACE, st);
        bool refused = code == CUBLAS_STATUS_NOT_SUPPORTED || code == CUBLAS_STATUS_INVALID_VALUE;
        rc = refused ? WN_EUNSUPP : check(code, "matmul", NULL);
    }
    problem_fini(&p);
    return rc;
}

wn_status wn_cuda_lt_run(struct wn_cuda_lt *lt, const struct wn_cuda_matmul *a, const struct wn_cuda_same *of,
                         cudaStream_t st)
{
    const uint32_t class = wn_cuda_row_class(a->out.rows);
    wn_status rc = run_as(lt, a, of, class, st);

    return rc == WN_EUNSUPP && class != a->out.rows ? run_as(lt, a, of, a->out.rows, st) : rc;
}

#else

wn_status wn_cuda_lt_open(struct wn_cuda_lt **out, struct wn_err *err)
{
    (void)out;
    return wn_fail(err, WN_EUNSUPP, "this build has no cuBLASLt");
}

void wn_cuda_lt_close(struct wn_cuda_lt *lt)
{
    (void)lt;
}

uint64_t wn_cuda_lt_asked(const struct wn_cuda_lt *lt)
{
    (void)lt;
    return 0;
}

wn_status wn_cuda_lt_run(struct wn_cuda_lt *lt, const struct wn_cuda_matmul *a, const struct wn_cuda_same *of,
                         cudaStream_t st)
{
    (void)lt;
    (void)a;
    (void)of;
    (void)st;
    return WN_EUNSUPP;
}

#endif
