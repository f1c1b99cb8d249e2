/* test_cudasim [mode [test]] - the GPU backend against the conformance suite, on the simulated device: every kernel.
 * Modes: plain, exact (both without an argument), fast, with the simulated cuBLASLt that WINNOW_CUBLASLT names.
 * Tensor cores may be 1e-9 off for float32 results of bfloat16 factors; the plain kernels keep the CPU's limit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "shard/cuda/cuda.h"
#include "tests/conform/backend_suite.h"

/* Kernels that were built for other devices are found out when the device is opened. */
static void other_architecture(void **state)
{
    struct wn_backend *be = NULL;
    struct wn_err err = {0};
    (void)state;
    setenv("WN_CUDASIM_NO_CODE", "1", 1);
    assert_int_equal(wn_backend_open(&be, "cuda", 0, &err), WN_EUNSUPP);
    assert_non_null(strstr(err.text, "WN_CUDA_ARCHITECTURES=90"));
    unsetenv("WN_CUDASIM_NO_CODE");
    assert_int_equal(wn_backend_open(&be, "cuda", 0, &err), WN_OK);
    wn_backend_close(be);
}

enum { ROWS = 70, COLS = 24, DEPTH = 64 };

static struct wn_weight *weight_of(struct wn_backend *be, uint32_t seed)
{
    static wn_bf16 host[COLS * DEPTH];
    const struct wn_mat m = {host, WN_BF16, COLS, DEPTH, DEPTH};
    struct wn_weight *w = NULL;

    for (uint32_t i = 0; i < COLS * DEPTH; i++) host[i] = wn_f32_to_bf16((float)((i * 7 + seed) % 13) - 6.0f);
    assert_int_equal(be->ops->weight_create(be, &w, &m, WN_BF16), WN_OK);
    return w;
}

/* Two products of one shape are one call of cuBLASLt, if weights and results lie in one order; with the bits of two. */
static void matmul_two_in_one(void **state)
{
    static wn_bf16 x[ROWS * DEPTH], got[ROWS * 2 * COLS], want[ROWS * 2 * COLS];
    struct wn_backend *be = NULL;
    struct wn_buf xb, ob;
    (void)state;
    assert_int_equal(wn_backend_open(&be, "cuda", 0, NULL), WN_OK);
    struct wn_weight *w[2] = {weight_of(be, 1), weight_of(be, 5)};
    const int low = (uintptr_t)w[1]->ptr < (uintptr_t)w[0]->ptr;
    assert_int_equal(be->ops->buf_alloc(be, sizeof(x), &xb), WN_OK);
    assert_int_equal(be->ops->buf_alloc(be, sizeof(got), &ob), WN_OK);
    for (uint32_t i = 0; i < ROWS * DEPTH; i++) x[i] = wn_f32_to_bf16((float)(i % 17) - 8.0f);
    assert_int_equal(be->ops->upload(be, xb.ptr, x, sizeof(x)), WN_OK);
    const struct wn_mat out = {ob.ptr, WN_BF16, ROWS, 2 * COLS, 2 * COLS};
    for (int turned = 0; turned < 3; turned++) { /* up, across, down */
        struct wn_matmul a[2];
        unsigned long before = sim_counts.pushed;
        for (uint32_t i = 0; i < 2; i++)
            a[turned == 2 ? 1 - i : i] = (struct wn_matmul){.out = wn_mat_cols(out, i * COLS, COLS),
                                                            .x = {xb.ptr, WN_BF16, ROWS, DEPTH, DEPTH},
                                                            .w = w[(int)i ^ low ^ (turned == 1)],
                                                            .slices = 1};
        assert_int_equal(wn_be_matmuls(be, a, 2), WN_OK);
        assert_int_equal(sim_counts.pushed - before, turned == 1 ? 2 : 1);
        assert_int_equal(be->ops->download(be, got, ob.ptr, sizeof(got)), WN_OK);
        for (uint32_t i = 0; i < 2; i++) assert_int_equal(wn_be_matmul(be, &a[i]), WN_OK);
        assert_int_equal(be->ops->download(be, want, ob.ptr, sizeof(want)), WN_OK);
        assert_memory_equal(got, want, sizeof(want));
    }
    for (int i = 0; i < 2; i++) be->ops->weight_destroy(be, w[i]);
    be->ops->buf_free(be, &xb);
    be->ops->buf_free(be, &ob);
    wn_backend_close(be);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest opening[] = {cmocka_unit_test(other_architecture)},
                                   together[] = {cmocka_unit_test(matmul_two_in_one)};
    static const struct {
        const char *name;
        struct wn_suite_opts opts;
    } modes[] = {{"plain", {.title = "cuda, simulated: plain"}},
                 {"exact", {.title = "cuda, simulated: exact", .f32_limit = 1e-9}},
                 {"fast", {.title = "cuda, simulated: fast", .f32_limit = 1e-9, .rows_differ = true}}};
    const char *mode = argc > 1 ? argv[1] : NULL;
    int failed;

    if (argc > 2) cmocka_set_test_filter(argv[2]);
    failed = cmocka_run_group_tests_name("cuda, simulated: opening", opening, NULL, NULL);
    for (int i = 0; i < 3; i++) {
        if (mode ? strcmp(mode, modes[i].name) != 0 : i == 2) continue;
        setenv("WINNOW_CUDA_KERNELS", modes[i].name, 1);
        if (i == 1) setenv("WN_CUDASIM_ORDER", "reverse", 1); /* threads the other way round */
        if (i == 2) failed += cmocka_run_group_tests_name("cuda, simulated: cuBLASLt", together, NULL, NULL);
        failed += wn_backend_suite_run("cuda", &modes[i].opts);
    }
    return failed != 0;
}
