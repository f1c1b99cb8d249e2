/* shard/cpu/portable.c - kernels for any processor: no instruction beyond what the compiler is told to assume.
 * Products are rounded before they are added, so the last bits differ from those of processors with fused
 * multiply-add. */
#include <stdbool.h>

static bool always(void)
{
    return true;
}

#define KERNEL_LANES        4
#define KERNEL_TILE_ROWS    2
#define KERNEL_FMA(a, b, c) ((a) * (b) + (c))
#define KERNEL_LOAD_BF16(p) (__builtin_convertvector(*(const vh_any *)(p), vu) << 16)
#define KERNEL_NARROW(u)    __builtin_convertvector((u), vh)
#define KERNEL_NAME         "portable"
#define KERNEL_TABLE        wn_cpu_isa_portable
#define KERNEL_AVAILABLE    always
#include "shard/cpu/kernels.inc"
