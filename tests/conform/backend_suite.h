/* tests/conform/backend_suite.h - one conformance suite that every compute backend must pass.
 *
 * Each operation is run on the backend and compared with "cpu-reference" by normalised mean square error, with a
 * limit per output type; "cpu-reference" itself is compared with the same sums in double. Memory outside the views
 * holds NaNs and must stay as it was. Bit tests ask that a row's result does not depend on its neighbours, on
 * chunks, pages, threads. */
#ifndef WN_TESTS_CONFORM_BACKEND_SUITE_H
#define WN_TESTS_CONFORM_BACKEND_SUITE_H

#include "shard/backend.h"

/* What a backend promises less of than the CPU. */
struct wn_suite_opts {
    const char *title;   /* NULL: the backend's name */
    double f32_limit;    /* normalised mean square error of float32 results; 0: 1e-11 */
    bool rows_differ;    /* a matmul's row may have other bits in a call of another number of rows */
};

/* Runs all of it over the backend called `name` (opts NULL: all promises); returns the number of failed tests. */
int wn_backend_suite_run(const char *name, const struct wn_suite_opts *opts);

/* ---- between the suite's two files: cases and what they should give ---- */

/* A matrix of random values, the same for the same seed on every backend. */
struct case_mat {
    wn_dtype dtype;
    uint32_t rows, cols, pad; /* stride = cols + pad */
    uint64_t seed;
    float scale;
};

struct case_matmul {
    uint32_t m, n, k, slices;
    wn_act act;
    bool bias;
    wn_dtype x, w, out;
    uint32_t pad;
};

struct case_norm {
    uint32_t rows, cols;
    bool rms, bias;
    wn_dtype type;
};

struct case_seq {
    uint32_t pos, rows;
    uint32_t id; /* names its values */
};

struct case_attn {
    uint32_t heads, kv_heads, head_dim, page_tokens;
    wn_dtype q, kv, out;
    struct case_seq seqs[6];
    uint32_t seqs_n;
    bool aligned; /* rows of 16 bytes: what fast kernels may ask for */
};

struct case_full {
    uint32_t images, tokens, heads, head_dim;
    wn_dtype type;
    bool aligned;
};

#define CASE_ROPE_THETA 10000.0f

/* Element (r, c) of the matrix, exactly as it is stored. */
float case_value(const struct case_mat *m, size_t r, size_t c);

struct case_mat case_matmul_x(const struct case_matmul *c);
struct case_mat case_matmul_w(const struct case_matmul *c);
float case_vector(uint64_t seed, uint32_t i); /* biases and norm weights, near 1 */

/* Rows of sequence s: token t's query, key or value row in a matrix of its own, whatever pages hold it. */
struct case_mat case_attn_rows(const struct case_attn *c, uint32_t s, char which);
struct case_mat case_full_rows(const struct case_full *c, char which);

/* The same results in double. out is dense. */
void double_matmul(const struct case_matmul *c, double *out);
void double_norm(const struct case_norm *c, const struct case_mat *x, double *out);
void double_rope(const struct case_mat *x, const uint32_t *position, uint32_t head_dim, double *out);
void double_attn(const struct case_attn *c, double *out); /* rows of the step, sequence after sequence */
void double_full(const struct case_full *c, double *out, double *cls_rows, double *mean_cols);

#endif
