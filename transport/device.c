/* transport/device.c - the arithmetic of device collectives: who sums what, and the bytes that count. */
#include "transport/device.h"

#define SPAN_FLOATS 4                  /* spans start at 16 bytes */

bool wn_dev_sums_whole(int n, size_t count)
{
    return n == 2 || count <= WN_DEV_WHOLE_FLOATS; /* between two the bytes are the same */
}

void wn_dev_span(int n, int member, size_t count, size_t *first, size_t *end)
{
    size_t each = (count + (size_t)n - 1) / (size_t)n;

    each = (each + SPAN_FLOATS - 1) / SPAN_FLOATS * SPAN_FLOATS;
    *first = each * (size_t)member < count ? each * (size_t)member : count;
    *end = *first + each < count ? *first + each : count;
}

uint64_t wn_dev_allreduce_bytes(int n, bool fast, int from, int to, size_t count)
{
    size_t first, end, theirs_first, theirs_end;

    if (n < 2 || from == to) return 0;
    if (!fast && wn_dev_sums_whole(n, count)) return (uint64_t)count * sizeof(float);
    /* the receiver's span as `from` has it, and from's span summed. NCCL's own rings move as much in all */
    wn_dev_span(n, from, count, &first, &end);
    wn_dev_span(n, to, count, &theirs_first, &theirs_end);
    return (uint64_t)(end - first + theirs_end - theirs_first) * sizeof(float);
}
