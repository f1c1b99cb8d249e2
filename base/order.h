/* base/order.h - ascending order, for qsort. */
#ifndef WN_BASE_ORDER_H
#define WN_BASE_ORDER_H

#include <stdint.h>

static inline int wn_order_double(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static inline int wn_order_int64(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

#endif
