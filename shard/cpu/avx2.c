/* shard/cpu/avx2.c - kernels for x86-64 with AVX2, FMA and F16C. Compiled with their flags; only the table's
 * `available` runs before the check. */
#include <cpuid.h>
#include <immintrin.h>
#include <stdbool.h>
#include <stddef.h>

static bool has_avx2(void)
{
    unsigned a, b, c = 0, d; /* not every compiler's builtin knows F16C */
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &a, &b, &c, &d) &&
           (c & bit_F16C);
}

/* The compiler makes longer sequences of its own vectors for these three. */
static inline __m256i load_bf16(const void *p)
{
    return _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), 16);
}

static inline __m256i load_i8(const void *p)
{
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(p));
}

static inline __m128i narrow(__m256i u)
{
    return _mm_packus_epi32(_mm256_castsi256_si128(u), _mm256_extracti128_si256(u, 1));
}

/* The halves added, then the halves of that, then its two lanes: the order of sum_lanes(). */
static inline float sum8(__m256 v)
{
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));

    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}

static inline float max8(__m256 v)
{
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));

    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

/* out[8, 16-strided] = in[8, 8] transposed: pairs, then fours, then halves change places. */
static inline void transpose8(float *out, const float *in, size_t ld_in)
{
    __m256 r[8], t[8];

    for (int i = 0; i < 8; i++) r[i] = _mm256_loadu_ps(in + (size_t)i * ld_in);
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + 2 + j], 0x44);
            r[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + 2 + j], 0xee);
        }
    }
    for (int i = 0; i < 4; i++) {
        _mm256_storeu_ps(out + (size_t)i * 16, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
        _mm256_storeu_ps(out + (size_t)(i + 4) * 16, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
    }
}

#define KERNEL_LANES        8
#define KERNEL_TILE_ROWS    6
#define KERNEL_FMA(a, b, c) ((vf)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define KERNEL_TRANSPOSE8   transpose8
#define KERNEL_SUM_LANES(v) sum8((__m256)(v))
#define KERNEL_MAX_LANES(v) max8((__m256)(v))
#define KERNEL_MAX(a, b)    ((vf)_mm256_max_ps((__m256)(a), (__m256)(b)))
#define KERNEL_LOAD_BF16(p) load_bf16(p)
#define KERNEL_LOAD_I8(p)   load_i8(p)
#define KERNEL_LOAD_F16(p)  _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p)))
#define KERNEL_NARROW(u)    ((vh)narrow((__m256i)(u)))
#define KERNEL_NAME         "avx2"
#define KERNEL_TABLE        wn_cpu_isa_avx2
#define KERNEL_AVAILABLE    has_avx2
#include "shard/cpu/kernels.inc"
