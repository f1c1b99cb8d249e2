/* shard/cpu/kernels.h - the kernels of one instruction set, written once with the compiler's vectors.
 *
 * Included by the file of that instruction set, which says before:
 *   KERNEL_LANES      floats in a vector: 8 (or 4, 16)
 *   KERNEL_TILE_ROWS  rows of a tile whose sums fit in registers
 *   KERNEL_FMA(a, b, c)   a * b + c on vectors: fused or not, but always the same
 *   KERNEL_LOAD_BF16(p), KERNEL_NARROW(u)   a vector of bfloat16 widened; the low halves of its 32-bit lanes
 *   KERNEL_NAME, KERNEL_TABLE, KERNEL_AVAILABLE   name, symbol and test of the table that it defines
 * The end of a row goes through the same vector code, padded: so a value does not depend on where in a row it
 * stands. */
#include <math.h>

#include "shard/cpu/check.h"
#include "shard/cpu/cpu.h"

#define L            KERNEL_LANES
#define PANEL_VECS   (WN_CPU_COLS / L)
#define KERNEL_FEW   4   /* rows */
#define KERNEL_AHEAD 512 /* bytes */
#define INLINE       static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(4 * L)));
typedef int32_t vi __attribute__((vector_size(4 * L)));
typedef uint32_t vu __attribute__((vector_size(4 * L)));
typedef uint16_t vh __attribute__((vector_size(2 * L)));
typedef vf vf_any __attribute__((aligned(4), may_alias));
typedef vu vu_any __attribute__((aligned(2), may_alias));
typedef vh vh_any __attribute__((aligned(2), may_alias));

INLINE vf all(float x)
{
    return x - (vf){0};
}

INLINE vf ld(const float *p)
{
    return *(const vf_any *)p;
}

INLINE void st(float *p, vf v)
{
    *(vf_any *)p = v;
}

INLINE vf ld_bf16(const wn_bf16 *p)
{
    return (vf)KERNEL_LOAD_BF16(p);
}

INLINE vf pick(vi mask, vf a, vf b)
{
    return (vf)((mask & (vi)a) | (~mask & (vi)b));
}

/* Rounded to bfloat16, in the upper halves of the lanes. */
INLINE vu round_bf16(vf v)
{
    vu u = (vu)v, nan = (vu)(v != v), rounded = u + 0x7fffu + ((u >> 16) & 1u);
    return ((nan & (u | 0x400000u)) | (~nan & rounded)) & 0xffff0000u;
}

INLINE void st_bf16(wn_bf16 *p, vf v)
{
    *(vh_any *)p = KERNEL_NARROW(round_bf16(v) >> 16);
}

/* Lanes from n on are zero. */
INLINE vf ld_n(const float *p, size_t n)
{
    float t[L] = {0};
    if (n >= L) return ld(p);
    for (size_t i = 0; i < n; i++) t[i] = p[i];
    return ld(t);
}

INLINE void st_n(float *p, vf v, size_t n)
{
    float t[L];
    if (n >= L) {
        st(p, v);
        return;
    }
    st(t, v);
    for (size_t i = 0; i < n; i++) p[i] = t[i];
}

/* Lane by lane in one fixed order. */
INLINE float sum_lanes(vf v)
{
    float t[L];
    st(t, v);
    for (int w = L / 2; w > 0; w /= 2)
        for (int i = 0; i < w; i++) t[i] += t[i + w];
    return t[0];
}

/* ---- functions: 1-2 units in the last place ---- */

/* 2^n * e^r with |r| <= ln 2 / 2. Below -87.3 the result is 0, above 88.7 it is infinite. NaN stays NaN. */
INLINE vf vexp(vf x)
{
    const vf magic = all(0x1.8p23f);
    vi tiny = x<all(-87.33654f), huge = x> all(88.72284f);
    vf c = pick(tiny | huge, all(0.0f), x);
    vf shifted = KERNEL_FMA(c, all(1.44269504f), magic), n = shifted - magic;
    vf r = KERNEL_FMA(n, all(-0.693145752f), c); /* ln 2 in two parts: the first has zeros at its end */
    vf q = all(0.00139487788f), p;
    vi e = (vi)shifted - (vi)magic;

    r = KERNEL_FMA(n, all(-1.42860677e-6f), r);
    q = KERNEL_FMA(q, r, all(0.00837060157f));
    q = KERNEL_FMA(q, r, all(0.0416662283f));
    q = KERNEL_FMA(q, r, all(0.166665033f));
    q = KERNEL_FMA(q, r, all(0.5f));
    p = KERNEL_FMA(r * r, q, r) + all(1.0f);
    /* n = 128 does not fit in one exponent: two steps */
    p = p * (vf)((vu)((e >> 1) + 127) << 23) * (vf)((vu)(e - (e >> 1) + 127) << 23);
    p = pick(tiny, all(0.0f), p);
    return pick(huge, all(INFINITY), p);
}

/* x * P(Z <= x), Z normal. With a = |x| and t = 1 / (1 + a/4): P(Z <= -a) = e^(-a^2/2) * t * (polynomial in t),
 * fitted by least squares of the relative error over a in [0, 14]; so the far negative end is right too. */
INLINE vf vgelu(vf x)
{
    static const float c[] = {0.0168642085f, -0.0643372834f, 0.0552849285f, 0.0235923175f, 0.0167401321f,
                              0.0844940096f, 0.0727477670f,  0.0953550711f, 0.0995119512f, 0.0997468978f};
    vf a = (vf)((vi)x & 0x7fffffff), t = all(1.0f) / KERNEL_FMA(a, all(0.25f), all(1.0f)), p = all(c[0]);

    for (size_t i = 1; i < sizeof(c) / sizeof(c[0]); i++) p = KERNEL_FMA(p, t, all(c[i]));
    p = p * t * vexp(all(-0.5f) * a * a);
    return x * pick(x > all(0.0f), all(1.0f) - p, p);
}

INLINE vf vsigmoid_mul(vf x, float slope)
{
    return x / (all(1.0f) + vexp(all(-slope) * x));
}

INLINE vf vact(vf x, wn_act act)
{
    switch (act) {
    case WN_ACT_GELU:
        return vgelu(x);
    case WN_ACT_QUICK_GELU:
        return vsigmoid_mul(x, 1.702f);
    case WN_ACT_SILU:
        return vsigmoid_mul(x, 1.0f);
    case WN_ACT_NONE:
        break;
    }
    return x;
}

/* ---- tiles ---- */

/* A row of a bfloat16 panel is eight 32-bit words: column i below, column i + 8 above, so that one load, one shift
 * and one mask widen it. */
#define HALF_VECS (PANEL_VECS / 2)

INLINE void ld_panel(vf w[PANEL_VECS], const void *row, wn_dtype type)
{
    if (type == WN_F32) {
        for (uint32_t v = 0; v < PANEL_VECS; v++) w[v] = ld((const float *)row + v * L);
        return;
    }
    for (uint32_t v = 0; v < HALF_VECS; v++) {
        vu u = *((const vu_any *)row + v);
        w[v] = (vf)(u << 16);
        w[v + HALF_VECS] = (vf)(u & 0xffff0000u);
    }
}

static void k_pack_bf16(wn_bf16 *out, const float *in, size_t k)
{
    for (; k > 0; k--, in += WN_CPU_COLS, out += WN_CPU_COLS)
        for (uint32_t v = 0; v < HALF_VECS; v++)
            *((vu_any *)out + v) = round_bf16(ld(in + v * L)) >> 16 | round_bf16(ld(in + (v + HALF_VECS) * L));
}

INLINE void tile_rows(const uint32_t m, size_t k, const float *a, size_t lda, const void *b, wn_dtype type, float *c,
                      size_t ldc, bool first)
{
    vf sum[KERNEL_TILE_ROWS][PANEL_VECS];

    for (uint32_t r = 0; r < m; r++)
        for (uint32_t v = 0; v < PANEL_VECS; v++) sum[r][v] = first ? all(0.0f) : ld(c + r * ldc + v * L);
    for (size_t i = 0; i < k; i++) {
        vf w[PANEL_VECS];
        const char *row = (const char *)b + i * WN_CPU_COLS * wn_dtype_bytes(type);
        if (m <= KERNEL_FEW) __builtin_prefetch(row + KERNEL_AHEAD); /* the panel comes straight from memory */
        ld_panel(w, row, type);
        for (uint32_t r = 0; r < m; r++) {
            vf x = all(a[r * lda + i]);
            for (uint32_t v = 0; v < PANEL_VECS; v++) sum[r][v] = KERNEL_FMA(x, w[v], sum[r][v]);
        }
    }
    for (uint32_t r = 0; r < m; r++)
        for (uint32_t v = 0; v < PANEL_VECS; v++) st(c + r * ldc + v * L, sum[r][v]);
}

INLINE void tile_any(uint32_t m, size_t k, const float *a, size_t lda, const void *b, wn_dtype type, float *c,
                     size_t ldc, bool first)
{
    for (; m > KERNEL_TILE_ROWS; m -= KERNEL_TILE_ROWS) {
        tile_rows(KERNEL_TILE_ROWS, k, a, lda, b, type, c, ldc, first);
        a += KERNEL_TILE_ROWS * lda;
        c += KERNEL_TILE_ROWS * ldc;
    }
    switch (m) {
    case 1:
        tile_rows(1, k, a, lda, b, type, c, ldc, first);
        break;
    case 2:
        tile_rows(2, k, a, lda, b, type, c, ldc, first);
        break;
#if KERNEL_TILE_ROWS > 2
    case 3:
        tile_rows(3, k, a, lda, b, type, c, ldc, first);
        break;
    case 4:
        tile_rows(4, k, a, lda, b, type, c, ldc, first);
        break;
    case 5:
        tile_rows(5, k, a, lda, b, type, c, ldc, first);
        break;
    case 6:
        tile_rows(6, k, a, lda, b, type, c, ldc, first);
        break;
#endif
    default:
        break;
    }
}

static void k_tile(uint32_t m, size_t k, const float *a, size_t lda, const float *b, float *c, size_t ldc, bool first)
{
    tile_any(m, k, a, lda, b, WN_F32, c, ldc, first);
}

static void k_tile_bf16(uint32_t m, size_t k, const float *a, size_t lda, const wn_bf16 *b, float *c, size_t ldc,
                        bool first)
{
    tile_any(m, k, a, lda, b, WN_BF16, c, ldc, first);
}

/* ---- rows ---- */

static void k_load(float *out, const void *in, wn_dtype type, size_t n)
{
    size_t i = 0;
    if (type == WN_F32)
        for (; i + L <= n; i += L) st(out + i, ld((const float *)in + i));
    else if (type == WN_BF16)
        for (; i + L <= n; i += L) st(out + i, ld_bf16((const wn_bf16 *)in + i));
    for (; i < n; i++) out[i] = wn_load(in, type, i);
}

static void k_store(void *out, wn_dtype type, const float *in, size_t n)
{
    size_t i = 0;
    if (type == WN_F32)
        for (; i + L <= n; i += L) st((float *)out + i, ld(in + i));
    else
        for (; i + L <= n; i += L) st_bf16((wn_bf16 *)out + i, ld(in + i));
    for (; i < n; i++) wn_store(out, type, i, in[i]);
}

INLINE void finish_rows(void *out, wn_dtype type, size_t stride, float *c, size_t rows, uint32_t cols,
                        const float *bias, wn_act act)
{
    vf b[PANEL_VECS];
    for (uint32_t v = 0; v < PANEL_VECS; v++)
        b[v] = bias && cols > v * L ? ld_n(bias + v * L, cols - v * L) : all(0.0f);
    for (size_t r = 0; r < rows; r++, c += WN_CPU_COLS) {
        for (uint32_t v = 0; v < PANEL_VECS; v++) {
            vf x = ld(c + v * L);
            if (bias) x += b[v]; /* adding zero would turn -0 into 0 */
            st(c + v * L, vact(x, act));
        }
        k_store((char *)out + r * stride * wn_dtype_bytes(type), type, c, cols);
    }
}

static void k_finish(void *out, wn_dtype type, size_t stride, float *c, size_t rows, uint32_t cols, const float *bias,
                     wn_act act)
{
    switch (act) {
    case WN_ACT_NONE:
        finish_rows(out, type, stride, c, rows, cols, bias, WN_ACT_NONE);
        break;
    case WN_ACT_GELU:
        finish_rows(out, type, stride, c, rows, cols, bias, WN_ACT_GELU);
        break;
    case WN_ACT_QUICK_GELU:
        finish_rows(out, type, stride, c, rows, cols, bias, WN_ACT_QUICK_GELU);
        break;
    case WN_ACT_SILU:
        finish_rows(out, type, stride, c, rows, cols, bias, WN_ACT_SILU);
        break;
    }
}

static void k_split(float *out, size_t panel_stride, const void *in, wn_dtype type, size_t n)
{
    for (size_t at = 0; at < n; at += WN_CPU_COLS, out += panel_stride) {
        size_t cols = n - at < WN_CPU_COLS ? n - at : WN_CPU_COLS;
        for (size_t i = cols; i < WN_CPU_COLS; i++) out[i] = 0.0f;
        k_load(out, (const char *)in + at * wn_dtype_bytes(type), type, cols);
    }
}

static void k_transpose(float *out, const float *in, size_t ld_in, size_t n)
{
    size_t i = 0;
#ifdef KERNEL_TRANSPOSE8
    for (; i + 8 <= n; i += 8) {
        KERNEL_TRANSPOSE8(out + i * WN_CPU_COLS, in + i, ld_in);
        KERNEL_TRANSPOSE8(out + i * WN_CPU_COLS + 8, in + 8 * ld_in + i, ld_in);
    }
#endif
    for (; i < n; i++)
        for (size_t j = 0; j < WN_CPU_COLS; j++) out[i * WN_CPU_COLS + j] = in[j * ld_in + i];
}

/* Runs a statement over x in vectors, the end padded with zeros; `left` is how many elements are left at i. */
#define OVER(n, ...)                                                                                                 \
    for (size_t i = 0, left = (n); i < (n); i += L, left -= L < left ? L : left) {                                   \
        __VA_ARGS__;                                                                                                 \
    }

static void k_add(float *x, const float *y, size_t n)
{
    OVER(n, st_n(x + i, ld_n(x + i, left) + ld_n(y + i, left), left));
}

static void k_add_scaled(float *x, const float *y, float scale, size_t n)
{
    OVER(n, st_n(x + i, KERNEL_FMA(ld_n(y + i, left), all(scale), ld_n(x + i, left)), left));
}

static void k_mul(float *x, const float *y, size_t n)
{
    OVER(n, st_n(x + i, ld_n(x + i, left) * ld_n(y + i, left), left));
}

static void k_scale(float *x, float scale, size_t n)
{
    OVER(n, st_n(x + i, ld_n(x + i, left) * all(scale), left));
}

static void k_activate(float *x, size_t n, wn_act act)
{
    if (act == WN_ACT_SILU) {
        OVER(n, st_n(x + i, vact(ld_n(x + i, left), WN_ACT_SILU), left));
    } else {
        OVER(n, st_n(x + i, vact(ld_n(x + i, left), act), left));
    }
}

static float k_sum(const float *x, size_t n)
{
    vf s0 = all(0.0f), s1 = s0, s2 = s0, s3 = s0;
    size_t i = 0;
    for (; i + 4 * L <= n; i += 4 * L) {
        s0 += ld(x + i);
        s1 += ld(x + i + L);
        s2 += ld(x + i + 2 * L);
        s3 += ld(x + i + 3 * L);
    }
    for (; i < n; i += L) s0 += ld_n(x + i, n - i);
    return sum_lanes((s0 + s1) + (s2 + s3));
}

static float k_sum_squares(const float *x, float mean, size_t n)
{
    vf s0 = all(0.0f), s1 = s0, m = all(mean), d;
    size_t i = 0;
    for (; i + 2 * L <= n; i += 2 * L) {
        d = ld(x + i) - m;
        s0 = KERNEL_FMA(d, d, s0);
        d = ld(x + i + L) - m;
        s1 = KERNEL_FMA(d, d, s1);
    }
    for (; i < n; i += L) {
        float t[L];
        for (size_t j = 0; j < L; j++) t[j] = i + j < n ? x[i + j] - mean : 0.0f;
        d = ld(t);
        s0 = KERNEL_FMA(d, d, s0);
    }
    return sum_lanes(s0 + s1);
}

static void k_normalise(float *x, float mean, float scale, const float *weight, const float *bias, size_t n)
{
    vf m = all(mean), s = all(scale);
    if (bias) {
        OVER(n, st_n(x + i, (ld_n(x + i, left) - m) * s * ld_n(weight + i, left) + ld_n(bias + i, left), left));
    } else {
        OVER(n, st_n(x + i, (ld_n(x + i, left) - m) * s * ld_n(weight + i, left), left));
    }
}

static void k_rotate(float *x, const float *cosine, const float *sine, size_t half)
{
    OVER(half, {
        vf x0 = ld_n(x + i, left), x1 = ld_n(x + half + i, left), c = ld_n(cosine + i, left),
           s = ld_n(sine + i, left);
        st_n(x + i, x0 * c - x1 * s, left);
        st_n(x + half + i, x1 * c + x0 * s, left);
    });
}

static float k_max(const float *x, size_t n)
{
    float t[L], max = x[0];
    vf m = all(x[0]);
    size_t i = 0;
    for (; i + L <= n; i += L) {
        vf v = ld(x + i);
        m = pick(v > m, v, m);
    }
    st(t, m);
    for (size_t j = 0; j < L; j++) max = t[j] > max ? t[j] : max;
    for (; i < n; i++) max = x[i] > max ? x[i] : max;
    return max;
}

static float k_exp_sum(float *x, float max, size_t n, size_t padded_n)
{
    vf s0 = all(0.0f), s1 = s0, m = all(max);
    size_t i = 0;
    for (; i + 2 * L <= n; i += 2 * L) {
        vf e0 = vexp(ld(x + i) - m), e1 = vexp(ld(x + i + L) - m);
        st(x + i, e0);
        st(x + i + L, e1);
        s0 += e0;
        s1 += e1;
    }
    for (; i < padded_n; i += 2 * L) { /* the same sums, the lanes after n made zero first */
        for (size_t v = 0; v < 2; v++) {
            float t[L];
            st(t, vexp(ld(x + i + v * L) - m));
            for (size_t j = 0; j < L; j++)
                if (i + v * L + j >= n) t[j] = 0.0f;
            st(x + i + v * L, ld(t));
            if (v == 0)
                s0 += ld(t);
            else
                s1 += ld(t);
        }
    }
    return sum_lanes(s0 + s1);
}

const struct wn_cpu_isa KERNEL_TABLE = {
    .name = KERNEL_NAME,
    .available = KERNEL_AVAILABLE,
    .tile = k_tile,
    .tile_bf16 = k_tile_bf16,
    .pack_bf16 = k_pack_bf16,
    .finish = k_finish,
    .load = k_load,
    .store = k_store,
    .split = k_split,
    .transpose = k_transpose,
    .add = k_add,
    .add_scaled = k_add_scaled,
    .mul = k_mul,
    .scale = k_scale,
    .activate = k_activate,
    .sum = k_sum,
    .sum_squares = k_sum_squares,
    .normalise = k_normalise,
    .rotate = k_rotate,
    .max = k_max,
    .exp_sum = k_exp_sum,
};
