/* tests/conform/backend_suite_parts.h - what the files of the backend suite share: matrices in a backend's memory
 * with NaNs around them, comparisons, and the attention cases. The tests run one after the other in one thread. */
#ifndef WN_TESTS_CONFORM_BACKEND_SUITE_PARTS_H
#define WN_TESTS_CONFORM_BACKEND_SUITE_PARTS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/conform/backend_suite.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

extern const char *be_name;         /* the backend under test */
extern struct wn_backend *be, *ref; /* ref is NULL when the backend under test is the reference */

struct dev {
    struct wn_buf buf;
    struct wn_mat m;
};

struct dev dev_raw(struct wn_backend *b, wn_dtype t, uint32_t rows, uint32_t cols, uint32_t pad, void **host);
struct dev dev_finish(struct wn_backend *b, struct dev d, void *host);
struct dev dev_out(struct wn_backend *b, wn_dtype t, uint32_t rows, uint32_t cols, uint32_t pad);
struct dev dev_rows(struct wn_backend *b, const struct case_mat *c, uint32_t first, uint32_t rows);
struct dev dev_mat(struct wn_backend *b, const struct case_mat *c);
void dev_read(struct wn_backend *b, const struct dev *d, float *out);
void dev_free(struct wn_backend *b, struct dev *d);
float *floats(size_t n);
void check_close(const char *what, const float *got, const float *want, const double *want64, size_t n, wn_dtype out);
void check_bits(const char *what, const float *got, const float *want, size_t n);
/* Computes a [n] in one call and each in one of its own: the same bits. Destroys the weights and the results. */
void check_together(struct wn_backend *be, const char *what, struct wn_matmul *a, struct wn_weight **w, struct dev *o,
                    size_t n);
void run_attn(struct wn_backend *b, const struct case_attn *c, float *out);
size_t attn_values(const struct case_attn *c);
void run_full(struct wn_backend *b, const struct case_full *c, uint32_t first, uint32_t images, float *out,
              float *cls, float *mean);
void attn_paged_close(void **state);
void attn_paged_bits(void **state);
void attn_paged_shared(void **state);
void attn_full_close(void **state);
void fused_norm(void **state);
void fused_rope(void **state);
void upload_large(void **state);
void weight_large(void **state);
void weight_blocks(void **state);
void pick_as_sampler(void **state);
void pick_seeds(void **state);
void pick_left(void **state);
void row_dots_bits(void **state);
void row_sums_bits(void **state);
void int8_values(void **state);
void int8_not_finite(void **state);
void int8_close(void **state);
void int8_rows(void **state);
void int8_slices(void **state);
void int8_as_bfloat16(void **state);
void int8_together(void **state);

#endif
