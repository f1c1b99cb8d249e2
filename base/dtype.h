/* base/dtype.h - element types of tensors and their conversions (bfloat16 rounds to nearest even). */
#ifndef WN_BASE_DTYPE_H
#define WN_BASE_DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* WN_I8 is of weights only, with scales beside it (shard/backend.h): it is no type of matrices or messages. */
typedef enum wn_dtype { WN_F32 = 0, WN_BF16 = 1, WN_F16 = 2, WN_I8 = 3 } wn_dtype;

typedef uint16_t wn_bf16; /* the upper half of a float32 */

static inline size_t wn_dtype_bytes(wn_dtype t)
{
    return t == WN_F32 ? 4 : t == WN_I8 ? 1 : 2;
}

static inline const char *wn_dtype_name(wn_dtype t)
{
    return t == WN_F32 ? "float32" : t == WN_BF16 ? "bfloat16" : t == WN_I8 ? "int8" : "float16";
}

static inline float wn_bf16_to_f32(wn_bf16 v)
{
    uint32_t u = (uint32_t)v << 16;
    float f;
    memcpy(&f, &u, sizeof(f));
    return f;
}

static inline wn_bf16 wn_f32_to_bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof(u));
    if ((u & 0x7fffffffu) > 0x7f800000u) return (wn_bf16)((u >> 16) | 0x40u); /* NaN stays NaN */
    u += 0x7fffu + ((u >> 16) & 1u);
    return (wn_bf16)(u >> 16);
}

/* IEEE half to float32, subnormals included. */
static inline float wn_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exp = (h >> 10) & 0x1fu, man = h & 0x3ffu, u;
    float f;
    if (exp == 0x1f) {
        u = sign | 0x7f800000u | (man << 13);
    } else if (exp != 0) {
        u = sign | ((exp + 112) << 23) | (man << 13);
    } else { /* zero or subnormal: man * 2^-24 is exact in float32 */
        f = (float)man * 0x1p-24f;
        return sign ? -f : f;
    }
    memcpy(&f, &u, sizeof(f));
    return f;
}

#endif
