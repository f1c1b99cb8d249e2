/* tests/bench/yardstick.c - see yardstick.h. */
#include "tests/bench/yardstick.h"

#include <omp.h>
#include <stddef.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define FMA_STEPS 100000

double yardstick_now_us(void)
{
    struct timespec ts;
    clock_gettime(omp_get_max_threads() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec * 1e6 + (double)ts.tv_nsec * 1e-3;
}

typedef float v4 __attribute__((vector_size(16)));

static volatile float sink;

void yardstick_read(const float *from, unsigned long n)
{
    float total = 0.0f;
#pragma omp parallel reduction(+ : total)
    {
        size_t parts = (size_t)omp_get_num_threads(), part = n / parts / 64 * 64;
        const v4 *p = (const v4 *)(from + part * (size_t)omp_get_thread_num());
        v4 s[8] = {{0}};
        for (size_t i = 0; i + 8 <= part / 4; i += 8) { /* 128 bytes a turn, asked for 512 bytes ahead */
            __builtin_prefetch((const char *)(p + i) + 512);
            __builtin_prefetch((const char *)(p + i) + 576);
            for (int j = 0; j < 8; j++) s[j] += p[i + (size_t)j];
        }
        for (int j = 0; j < 8; j++) total += s[j][0] + s[j][1] + s[j][2] + s[j][3];
    }
    sink = total;
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) static float fma_steps(void)
{
    __m256 s[12], x = _mm256_set1_ps(0.999f), y = _mm256_set1_ps(0.001f);
    for (int j = 0; j < 12; j++) s[j] = _mm256_set1_ps((float)j);
    for (int i = 0; i < FMA_STEPS; i++)
        for (int j = 0; j < 12; j++) s[j] = _mm256_fmadd_ps(s[j], x, y);
    for (int j = 1; j < 12; j++) s[0] = _mm256_add_ps(s[0], s[j]);
    return _mm256_cvtss_f32(s[0]);
}
#endif

double yardstick_fma(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        float total = 0.0f;
#pragma omp parallel reduction(+ : total)
        total += fma_steps();
        sink = total;
        return (double)omp_get_max_threads() * FMA_STEPS * 12 * 16;
    }
#endif
    return 0.0;
}
