/* base/mat.h - memory of a backend (shard/backend.h), and views of it as matrices. Plain data: owns nothing, any
 * thread, cannot fail. */
#ifndef WN_BASE_MAT_H
#define WN_BASE_MAT_H

#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"

/* Memory of one backend. Owned by whoever allocated it. For the CPU, ptr is an ordinary pointer (64-byte aligned). */
struct wn_buf {
    void *ptr;
    size_t bytes;
};

/* A view of a row-major matrix [rows, cols]: row i starts at element i * stride. Borrowed memory. */
struct wn_mat {
    void *ptr;
    wn_dtype dtype;
    uint32_t rows, cols;
    uint32_t stride; /* elements between rows, >= cols */
};

static inline size_t wn_mat_row_bytes(const struct wn_mat *m)
{
    return (size_t)m->cols * wn_dtype_bytes(m->dtype);
}

/* Rows [first, first + rows) of m. */
static inline struct wn_mat wn_mat_rows(struct wn_mat m, uint32_t first, uint32_t rows)
{
    m.ptr = (char *)m.ptr + (size_t)first * m.stride * wn_dtype_bytes(m.dtype);
    m.rows = rows;
    return m;
}

/* Columns [first, first + cols) of m. */
static inline struct wn_mat wn_mat_cols(struct wn_mat m, uint32_t first, uint32_t cols)
{
    m.ptr = (char *)m.ptr + (size_t)first * wn_dtype_bytes(m.dtype);
    m.cols = cols;
    return m;
}

#endif
